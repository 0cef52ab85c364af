"""A residual multilayer perceptron for vectors and small arrays."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..shapes import count, dims
from .embed import DEEPEST, Embedding, Network, affordable, zeroed


class Layer(nn.Module):
    """x + W2 silu(W1 norm(x) + W3 v)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm, self.first, self.told = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(dim, width)
        self.last = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        return x + self.last(nn.functional.silu(self.first(self.norm(x)) + self.told(v)))


class MLP(Network):
    """`depth` residual blocks of `width` units on x flattened.

    shape: that of one sample, D. classes: the number of class labels, 0 for none.
    Called as net(x, c, label=None): (B, *D), (B,), (B,) -> (B, *D).
    """

    def __init__(self, shape: Sequence[int], width: int = 128, depth: int = 4, classes: int = 0) -> None:
        super().__init__(shape=list(dims("shape", shape)), width=width, depth=depth, classes=classes)
        size = 1
        for n in shape:
            size *= n
        count("width", width), count("depth", depth, most=DEEPEST)
        affordable(width * (2 * size + 3 * depth * width + count("classes", classes, least=0)))
        self.classes = classes
        self.embed = Embedding(width, classes)
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Layer(width, width) for _ in range(depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), zeroed(nn.Linear(width, size)))

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        v, h = self.embed(c, label), self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, v)
        return self.leave(h).view(x.shape)
