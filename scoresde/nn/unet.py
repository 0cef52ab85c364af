"""A U-Net for series, images and volumes of any size and number of channels.

Every level halves the sides by averaging (rounding sizes up) and doubles it by repeating pixels, cut to the size that
the level had on the way down: no size needs padding by the caller. (Ronneberger et al. 2015; with residual blocks,
noise embedding, dropout and attention as in Ho et al. 2020 and Dhariwal & Nichol 2021.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..shapes import count, dims, number, shown
from .embed import DEEPEST, Embedding, Network, affordable, zeroed


def norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Groups of at least 4 channels, at most 32 groups."""
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps)


CONVS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class Sides:
    """What all blocks have in common: how many sides a sample has, the length of v, and the share that is dropped."""

    sides: int
    dim: int
    dropout: float

    @property
    def conv(self) -> type[nn.Conv1d | nn.Conv2d | nn.Conv3d]:
        return CONVS[self.sides]


class Block(nn.Module):
    """skip(x) + conv drop silu norm (conv silu norm x + W v)."""

    def __init__(self, of: Sides, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), of.conv(before, after, 3, padding=1)
        self.told = nn.Linear(of.dim, after)
        self.norm2, self.conv2 = norm(after), zeroed(of.conv(after, after, 3, padding=1))
        self.skip = of.conv(before, after, 1) if before != after else nn.Identity()
        self.dropout = of.dropout

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.told(v).unflatten(1, (-1, *(1,) * (x.ndim - 2)))
        return self.skip(x) + self.conv2(F.dropout(F.silu(self.norm2(h)), self.dropout, self.training))


class Attention(nn.Module):
    """Self-attention between pixels, in heads of 32 channels (or one of all, if 32 does not divide them)."""

    def __init__(self, of: Sides, channels: int) -> None:
        super().__init__()
        self.heads = channels // 32 if channels % 32 == 0 else 1
        self.norm, self.qkv = norm(channels), of.conv(channels, 3 * channels, 1)
        self.out = zeroed(of.conv(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, u = rearrange(self.qkv(self.norm(x)).flatten(2), "b (n h c) x -> n b h x c", n=3, h=self.heads)
        y = F.scaled_dot_product_attention(q, k, u)
        return x + self.out(rearrange(y, "b h x c -> b (h c) x").unflatten(2, x.shape[2:]))


class Attended(nn.Module):
    """A block, and attention after it if asked for."""

    def __init__(self, of: Sides, before: int, after: int, attention: bool) -> None:
        super().__init__()
        self.block = Block(of, before, after)
        self.attention = Attention(of, after) if attention else nn.Identity()

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        return self.attention(self.block(x, v))


class UNet(Network):
    """A U-Net: `blocks` residual blocks a level on each side, and two at the bottom.

    shape: (channels, length) of a series, (channels, height, width) of an image, (channels, depth, height, width) of a
    volume; the network takes those of other sizes as well.
    width: channels at full resolution; multipliers: the channels of each level in units of width, one level an entry;
    blocks: blocks a level; attention: the number of levels, counted from the bottom, with attention;
    classes: the number of class labels, 0 for none;
    dropout: the share of a block's values that are 0 at a training step, against learning small data by heart;
    fourier: angular frequencies whose sines and cosines of the input are fed in beside it, computed in float32: what
    the input says far below its own size, such as where in its bin a grey level lies, is otherwise lost in bfloat16 and
    slow to learn (Kingma et al. 2021, appendix C).
    Called as net(x, c, label=None): (B, C, ...), (B,), (B,) -> (B, C, ...).
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 16,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: int = 1,
        classes: int = 0,
        fourier: Sequence[float] = (),
        dropout: float = 0.0,
    ) -> None:
        if not isinstance(fourier, (list, tuple)):
            raise ValueError(f"fourier must be a sequence of frequencies, got {shown(fourier)}")
        super().__init__(
            shape=list(dims("shape", shape)),
            width=width,
            multipliers=list(dims("multipliers", multipliers)),
            blocks=blocks,
            attention=attention,
            classes=classes,
            fourier=list(fourier),
            dropout=number("dropout", dropout, least=0, below=1),
        )
        if len(shape) - 1 not in CONVS:
            raise ValueError(
                f"shape must be (channels, length), (channels, height, width) or of a volume, got {tuple(shape)}"
            )
        if not multipliers:
            raise ValueError("multipliers must name at least one level, got none")
        count("width", width), count("blocks", blocks, most=DEEPEST), count("attention", attention, least=0)
        widths = [width * m for m in multipliers]
        sides = len(shape) - 1
        of = Sides(sides, 4 * width, dropout)
        affordable(4 * 3**sides * blocks * sum(w * w for w in widths) + of.dim * count("classes", classes, least=0))
        self.classes, self.blocks, self.pool = classes, blocks, POOLS[sides]
        self.embed = Embedding(of.dim, classes)
        self.fourier = [number("fourier", w, above=0, most=1e6) for w in fourier]
        self.enter = of.conv(shape[0] * (1 + 2 * len(fourier)), width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, after in enumerate(widths):
            above, below = widths[i - 1] if i else width, widths[min(i + 1, len(widths) - 1)]
            attend = i >= len(widths) - attention
            self.down.extend(Attended(of, n, after, attend) for n in [above] + [after] * (blocks - 1))
            up = [Attended(of, n, after, attend) for n in [below + after] + [2 * after] * (blocks - 1)]
            self.up = nn.ModuleList([*up, *self.up])
        self.bottom = nn.ModuleList(Attended(of, widths[-1], widths[-1], attend) for attend in (attention > 0, False))
        self.leave = nn.Sequential(norm(widths[0]), nn.SiLU(), zeroed(of.conv(widths[0], shape[0], 3, padding=1)))

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        v, h, skips = self.embed(c, label), self.enter(self._features(x)), []
        for i, stage in enumerate(self.down):
            if i and i % self.blocks == 0:
                h = self.pool(h, [min(2, n) for n in h.shape[2:]], ceil_mode=True)
            h = stage(h, v)
            skips.append(h)
        for stage in self.bottom:
            h = stage(h, v)
        for stage in self.up:
            skip = skips.pop()
            h = F.interpolate(h, size=skip.shape[2:]) if h.shape[2:] != skip.shape[2:] else h
            h = stage(torch.cat([h, skip], 1), v)
        return self.leave(h)

    def _features(self, x: Tensor) -> Tensor:
        phases = [w * x.float() for w in self.fourier]
        return torch.cat([x, *(p.sin().to(x) for p in phases), *(p.cos().to(x) for p in phases)], 1) if phases else x
