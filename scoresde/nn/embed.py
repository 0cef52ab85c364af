"""What the networks share: how the noise level and an optional class reach every block."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..shapes import as_time, count, number


class Network(nn.Module):
    """A network that remembers the arguments it was made from, so that a checkpoint can make it again.

    A subclass calls `super().__init__(name=value, ...)` with the arguments of its own constructor, all of them JSON.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config


DEEPEST, LARGEST = 10_000, 10**10
"""Blocks of a network at most, which take seconds to make, and its weights, 40 GB in float32."""


def affordable(weights: int) -> None:
    """Raise ValueError for a network of so many weights that none is meant."""
    if weights > LARGEST:
        raise ValueError(
            f"a network of {weights:.3g} weights is more than {LARGEST:.0e}: lower its shape, width or depth"
        )


class Waves(nn.Module):
    """Cosines and sines of 16 angular frequencies from 1/16 to 8 per unit of c: a clock value of a few units, as
    log-SNR is, is resolved, and the network stays smooth in it. (B,) -> (B, 32).
    """

    size: int = 32

    def forward(self, c: Tensor) -> Tensor:
        w = torch.linspace(math.log(1 / 16), math.log(8), 16, dtype=torch.float32, device=c.device).exp()
        phase = c[:, None] * w.to(c.dtype)
        return torch.cat([phase.cos(), phase.sin()], 1)


class Embedding(nn.Module):
    """The noise level c (B,) and the class label (B,) as one vector: (B, dim).

    c is told by `waves`, which are called in float32 or better, since 80 radians in bfloat16 are known to a quarter,
    and then cast to the weights' dtype. `classes` is the number of labels; the index `classes` itself stands for no
    label, which is also what label=None means.

    Raises ValueError if a label is given to a network without classes, has the wrong shape, is not a whole number or,
    on the CPU, is outside 0..classes.
    """

    def __init__(self, dim: int, classes: int = 0, waves: Waves | None = None) -> None:
        super().__init__()
        self.classes, self.waves = count("classes", classes, least=0), Waves() if waves is None else waves
        self.level = nn.Sequential(nn.Linear(self.waves.size, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(classes + 1, dim) if classes else None

    def forward(self, c: Tensor, label: Tensor | None) -> Tensor:
        first = cast(nn.Linear, self.level[0])
        v = self.level(self.waves(as_time(c)).to(first.weight.dtype))
        if self.label is None:
            if label is not None:
                raise ValueError("label was given to a network without classes: make it with classes=n")
            return nn.functional.silu(v)
        if label is None:
            label = torch.full((len(c),), self.classes, device=c.device)
        if label.shape != c.shape:
            raise ValueError(f"label must have shape {tuple(c.shape)}, got {tuple(label.shape)}")
        if label.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"label must hold whole numbers, torch.int64 or torch.int32, got {label.dtype}")
        if label.is_cpu and (off := (label < 0) | (label > self.classes)).any():
            raise ValueError(f"label must be in 0..{self.classes}, got {int(label[off][0])}")
        return nn.functional.silu(v + self.label(label))


def drop_labels(label: Tensor, p: float, classes: int, generator: torch.Generator | None = None) -> Tensor:
    """label with a share p of its entries replaced by `classes`, no label (Ho & Salimans 2022, Algorithm 1).

    A network trained so gives the conditional and the unconditional score, which classifier-free guidance mixes.
    Raises ValueError unless 0 <= p <= 1.
    """
    number("p", p, least=0, most=1)
    keep = torch.rand(label.shape, generator=generator, device="cpu").to(label.device) >= p
    return torch.where(keep, label, torch.full_like(label, classes))


def zeroed(layer: nn.Linear | nn.modules.conv._ConvNd) -> Any:
    """The layer with weights and bias 0: a residual block that ends in it starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
