"""Networks for `ClassModel`, called as net(u, c): u (B, *D) and c (B,) to logits (B, classes).

`UNetEncoder` is the way down of a `UNet` and its bottom, `MLPEncoder` the body of an `MLP`; the head of either is
linear, and 0 at first, where all classes are alike. (Dhariwal & Nichol 2021, section 4.1, with a mean over the last
level for their attention.)
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ..shapes import count, dims, number
from .embed import DEEPEST, Embedding, Network, affordable, zeroed
from .mlp import Layer
from .unet import CONVS, POOLS, Attended, Sides, norm


class MLPEncoder(Network):
    """`depth` residual blocks of `width` units on x flattened, to logits of `classes`.

    shape: that of one sample, D. Called as net(x, c): (B, *D), (B,) -> (B, classes).
    """

    def __init__(self, shape: Sequence[int], classes: int, width: int = 128, depth: int = 4) -> None:
        super().__init__(shape=list(dims("shape", shape)), classes=classes, width=width, depth=depth)
        size = math.prod(shape)
        self.classes = count("classes", classes, least=2)
        count("width", width), count("depth", depth, most=DEEPEST)
        affordable(width * (size + 3 * depth * width + classes))
        self.embed, self.enter = Embedding(width), nn.Linear(size, width)
        self.blocks = nn.ModuleList(Layer(width, width) for _ in range(depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), zeroed(nn.Linear(width, classes)))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        v, h = self.embed(c, None), self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, v)
        return self.leave(h)


class UNetEncoder(Network):
    """`blocks` residual blocks a level, each with half the sides of the one before, the mean over the last, and logits
    of `classes`. shape, width, multipliers, attention and dropout are those of `UNet`.

    Called as net(x, c): (B, C, ...), (B,) -> (B, classes).
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        width: int = 16,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            shape=list(dims("shape", shape)),
            classes=classes,
            width=width,
            multipliers=list(dims("multipliers", multipliers)),
            blocks=blocks,
            attention=attention,
            dropout=number("dropout", dropout, least=0, below=1),
        )
        sides, levels = len(shape) - 1, len(multipliers)
        if sides not in CONVS:
            raise ValueError(f"shape must be that of a series, an image or a volume, got {tuple(shape)}")
        if not levels:
            raise ValueError("multipliers must name at least one level, got none")
        count("width", width), count("blocks", blocks, most=DEEPEST), count("attention", attention, least=0)
        self.classes, self.blocks, self.pool = count("classes", classes, least=2), blocks, POOLS[sides]
        widths, of = [width * m for m in multipliers], Sides(sides, 4 * width, dropout)
        affordable(2 * 3**sides * blocks * sum(w * w for w in widths) + widths[-1] * classes)
        self.embed, self.enter = Embedding(of.dim), of.conv(shape[0], width, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (above, after) in enumerate(zip([width, *widths], widths, strict=False)):
            attend = i >= levels - attention
            self.down.extend(Attended(of, n, after, attend) for n in [above] + [after] * (blocks - 1))
        self.leave = nn.Sequential(norm(widths[-1]), nn.SiLU())
        self.head = zeroed(nn.Linear(widths[-1], classes))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        v, h = self.embed(c, None), self.enter(x)
        for i, stage in enumerate(self.down):
            if i and i % self.blocks == 0:
                h = self.pool(h, [min(2, n) for n in h.shape[2:]], ceil_mode=True)
            h = stage(h, v)
        return self.head(self.leave(h).flatten(2).mean(2))
