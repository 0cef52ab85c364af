"""The U-Nets of Song et al. (2021), appendix H, for images: DDPM++ and NCSN++.

Both are made of residual blocks as in BigGAN (Brock et al. 2019), which halve and double the sides inside of a block,
and whose sum is divided by sqrt 2. Written from the paper's description; published weights are not read here.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..shapes import count, dims, number, shown
from .embed import DEEPEST, Embedding, Network, Waves, affordable, zeroed
from .unet import norm

HALF = 0.5**0.5
_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)


class Positional(Waves):
    """sin and cos of w c with frequencies w from 1 down to 1e-4 (Vaswani et al. 2017): (B,) -> (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.size = 2 * (dim // 2)

    def forward(self, c: Tensor) -> Tensor:
        w = torch.logspace(0, -4, self.size // 2, dtype=torch.float32, device=c.device)
        phase = c[:, None] * w.to(c.dtype)
        return torch.cat([phase.sin(), phase.cos()], 1)


class Fourier(Waves):
    """sin and cos of 2 pi w c with w drawn from N(0, 16^2) and kept (Tancik et al. 2020): (B,) -> (B, dim)."""

    bits: Tensor

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__()
        w = scale * torch.randn(dim // 2, dtype=torch.float32)
        self.register_buffer("bits", w.view(torch.int32))  # which no change of the network's type rounds
        self.size = 2 * len(w)

    def forward(self, c: Tensor) -> Tensor:
        phase = 2 * math.pi * c[:, None] * self.bits.view(torch.float32).to(c.dtype)
        return torch.cat([phase.sin(), phase.cos()], 1)


class Resample(nn.Module):
    """Halves or doubles the sides, rounding up: by averaging and repeating, or with the filter (1, 3, 3, 1)/8 (Zhang
    2019).
    """

    kernel: Tensor

    def __init__(self, up: bool, filtered: bool) -> None:
        super().__init__()
        self.up, self.filtered = up, filtered
        k = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", k[:, None] * k, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, (height, width) = x.shape[1], x.shape[2:]
        kernel = self.kernel.to(x).expand(channels, 1, 4, 4)
        if self.up:
            if not self.filtered:
                return F.interpolate(x, scale_factor=2.0)
            return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=1, groups=channels)
        if not self.filtered:
            return F.avg_pool2d(x, [min(2, height), min(2, width)], ceil_mode=True)
        return F.conv2d(F.pad(x, (1, 1 + width % 2, 1, 1 + height % 2)), kernel, stride=2, groups=channels)


def _begun(layer: _Layer) -> _Layer:
    """The layer with weights of Xavier's uniform law and no bias."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def conv(before: int, after: int, side: int = 3) -> nn.Conv2d:
    """A convolution that keeps the sides."""
    return _begun(nn.Conv2d(before, after, side, padding=side // 2))


class Shrink(nn.Module):
    """A convolution at every second pixel of what the filter (1, 3, 3, 1)/8 has smoothed."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.filter, self.conv = Resample(False, True), nn.Conv2d(before, after, 3, stride=2)
        _begun(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        channels, (height, width) = x.shape[1], x.shape[2:]
        wide = F.pad(x, (2, 2 + width % 2, 2, 2 + height % 2))
        return self.conv(F.conv2d(wide, self.filter.kernel.to(x).expand(channels, 1, 4, 4), groups=channels))


class BigBlock(nn.Module):
    """(skip(r x) + conv drop silu norm (conv r silu norm x + W v)) / sqrt 2, where r resamples, if at all."""

    def __init__(self, before: int, after: int, dim: int, dropout: float, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.conv1, self.told = norm(before, 1e-6), conv(before, after), _begun(nn.Linear(dim, after))
        self.norm2, self.conv2 = norm(after, 1e-6), zeroed(conv(after, after))
        self.resample = nn.Identity() if resample is None else resample
        self.skip = conv(before, after, 1) if before != after or resample is not None else nn.Identity()
        self.dropout = dropout

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x)))) + self.told(v)[:, :, None, None]
        h = self.conv2(F.dropout(F.silu(self.norm2(h)), self.dropout, self.training))
        return (self.skip(self.resample(x)) + h) * HALF


class PixelAttention(nn.Module):
    """(x + attention between pixels, in one head) / sqrt 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv = norm(channels, 1e-6), conv(channels, 3 * channels, 1)
        self.out = zeroed(conv(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, u = rearrange(self.qkv(self.norm(x)), "b (n c) h w -> n b 1 (h w) c", n=3)
        y = rearrange(F.scaled_dot_product_attention(q, k, u), "b 1 (h w) c -> b c h w", h=x.shape[2])
        return (x + self.out(y)) * HALF


class BigStage(nn.Module):
    """A block, attention, or both, one after the other."""

    def __init__(self, block: BigBlock | None, attention: PixelAttention | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        h = x if self.block is None else self.block(x, v)
        return h if self.attention is None else self.attention(h)


class DDPMpp(Network):
    """DDPM++, Song et al.'s (2021) network for VP and sub-VP: `blocks` blocks a level on the way down and one more on
    the way up, sides halved by averages, the clock by sines of its value.

    shape: (channels, height, width); images of other sizes are taken as well. width: channels at full resolution;
    multipliers: the channels of each level in units of width; attention: the heights with attention, beside the lowest
    level, which has it always; classes: the number of class labels, 0 for none; dropout: the share of a block's values
    that are 0 at a training step. The defaults are those of CIFAR-10: 61.8 million weights; 8 blocks are "deep". There
    the clock was the step index, `Steps(1000)`.
    Called as net(x, c, label=None): (B, C, H, W), (B,), (B,) -> (B, C, H, W).
    """

    filtered = False
    """Whether sides are halved and doubled with a filter."""
    pyramid = False
    """Whether the image itself, made smaller, is fed in at every level."""

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        classes: int = 0,
        dropout: float = 0.1,
    ) -> None:
        if not isinstance(attention, (list, tuple)):
            raise ValueError(f"attention must be a sequence of heights, got {shown(attention)}")
        super().__init__(
            shape=list(dims("shape", shape)),
            width=count("width", width, least=2),
            multipliers=list(dims("multipliers", multipliers)),
            blocks=count("blocks", blocks, most=DEEPEST),
            attention=[count("attention", side) for side in attention],
            classes=count("classes", classes, least=0),
            dropout=number("dropout", dropout, least=0, below=1),
        )
        if len(shape) != 3:
            raise ValueError(f"shape must be (channels, height, width), got {tuple(shape)}")
        if not multipliers:
            raise ValueError("multipliers must name at least one level, got none")
        widths, dim, levels = [width * m for m in multipliers], 4 * width, len(multipliers)
        affordable(40 * blocks * sum(w * w for w in widths) + dim * classes)
        self.classes, self.blocks = classes, blocks
        self.embed = Embedding(dim, classes, self.told(width))
        self.enter = conv(shape[0], width)
        heights = [-(-shape[1] // 2**i) for i in range(levels)]

        def block(before: int, after: int, height: int, *resample: nn.Module) -> BigStage:
            attend = height in attention
            return BigStage(BigBlock(before, after, dim, dropout, *resample), PixelAttention(after) if attend else None)

        self.down, self.up, self.shrink = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips, now = [width], width
        for i, after in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(now, after, heights[i]))
                skips.append(now := after)
            if i < levels - 1:
                self.down.append(block(now, now, 0, Resample(False, self.filtered)))
                skips.append(now)
                if self.pyramid:
                    before = shape[0] if i == 0 else widths[i - 1]
                    self.shrink.append(Shrink(before, now))
        self.bottom = nn.ModuleList([block(now, now, 0), BigStage(None, PixelAttention(now)), block(now, now, 0)])
        for i, after in reversed(list(enumerate(widths))):
            for k in range(blocks + 1):
                self.up.append(block(now + skips.pop(), after, heights[i] if k == blocks else 0))
                now = after
            if i:
                self.up.append(block(now, now, 0, Resample(True, self.filtered)))
        self.leave = nn.Sequential(norm(now, 1e-6), nn.SiLU(), zeroed(conv(now, shape[0])))

    def told(self, width: int) -> Waves:
        """What the clock is told by."""
        return Positional(width)

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        v, h, image = self.embed(c, label), self.enter(x), x
        skips = [h]
        for i, stage in enumerate(self.down, 1):
            h = stage(h, v)
            if self.pyramid and i % (self.blocks + 1) == 0:
                h = image = (self.shrink[i // (self.blocks + 1) - 1](image) + h) * HALF
            skips.append(h)
        for stage in self.bottom:
            h = stage(h, v)
        for i, stage in enumerate(self.up, 1):
            if i % (self.blocks + 2):
                skip = skips.pop()
                h = torch.cat([h[..., : skip.shape[2], : skip.shape[3]], skip], 1)
            h = stage(h, v)
        return self.leave(h)


class NCSNpp(DDPMpp):
    """NCSN++, Song et al.'s (2021) network for VE, with the arguments of `DDPMpp`: sides are halved and doubled with a
    filter, the image itself is fed in at every level, made smaller ("residual" progressive input), and the clock, which
    was log sigma, `LogSNR(-1)`, is told by random Fourier features.

    These make the score rough in the noise level, so that likelihoods cost more calls than with other clocks. The
    defaults are those of CIFAR-10: 62.8 million weights.
    """

    filtered, pyramid = True, True

    def told(self, width: int) -> Waves:
        """What the clock is told by."""
        return Fourier(2 * width)
