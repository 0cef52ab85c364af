"""Data that come with the library: handwritten digits of 8x8 pixels, and laws in the plane."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..quantize import Quantized
from ..shapes import count, number
from .dataset import Dataset, Source, check_memory, split


@dataclass(frozen=True)
class Digits(Source):
    """The 1797 handwritten digits of 8x8 pixels and 17 grey levels that scikit-learn bundles (Alpaydin & Kaynak 1998):
    1438 to train on, 359 held out.
    """

    bundled: ClassVar[bool] = True

    def load(self) -> Dataset:
        """x/8 - 1 of the grey levels 0..16, as (n, 1, 8, 8)."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ValueError("the digits come with scikit-learn: pip install 'scoresde[app]'") from error
        raw = load_digits()
        x = torch.tensor(raw.images, dtype=torch.float32, device="cpu")[:, None] / 8 - 1
        y = torch.tensor(raw.target, dtype=torch.long, device="cpu")
        train, held = split(len(x), 0.2, seed=0)
        names = tuple(map(str, range(10)))
        return Dataset(x[train], x[held], y[train], y[held], Quantized(17, -1.0, 1.0), names)


@dataclass(frozen=True)
class Toy(Source):
    """n points in the plane, four fifths to train on: a subclass says how one batch is drawn."""

    bundled: ClassVar[bool] = True
    n: int = 10_000
    """How many points to draw."""
    seed: int = 0
    """The seed that they are drawn with."""

    def __post_init__(self) -> None:
        count("n", self.n, least=5, most=2**40)
        count("seed", self.seed, least=0, most=2**64 - 1)

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2)."""

    def load(self) -> Dataset:
        """The points, (n, 2)."""
        check_memory(f"n = {self.n}", 100 * self.n)  # of float64 numbers, a dozen for each point while they are drawn
        x = self.draw(self.n, torch.Generator(device="cpu").manual_seed(self.seed)).to(torch.float32)
        return Dataset(x[self.n // 5 :], x[: self.n // 5])


def _randn(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64, device="cpu")


def _rand(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Ring(Toy):
    """`modes` Gaussians of standard deviation `std` evenly on the unit circle."""

    modes: int = 8
    """How many."""
    std: float = 0.05
    """Their standard deviation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        count("modes", self.modes, least=1, most=2**24)
        number("std", self.std, above=0)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2)."""
        k = (_rand(n, generator) * self.modes).floor()
        angle = 2 * math.pi * k / self.modes
        return torch.stack([angle.cos(), angle.sin()], 1) + self.std * _randn(n, generator)


@dataclass(frozen=True)
class Moons(Toy):
    """Two interleaved half circles of unit radius, with Gaussian noise of standard deviation `std`."""

    std: float = 0.1
    """Of the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number("std", self.std, above=0)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2), centred."""
        side, angle = (_rand(n, generator) < 0.5).double() * 2 - 1, math.pi * _rand(n, generator)
        arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1) * side[:, None]
        return arc + self.std * _randn(n, generator)


@dataclass(frozen=True)
class SwissRoll(Toy):
    """A spiral of one and a half turns inside the unit disc, with Gaussian noise of standard deviation `std`."""

    std: float = 0.03
    """Of the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number("std", self.std, above=0)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2)."""
        r = (1 + 2 * _rand(n, generator)) / 3
        angle = 4.5 * math.pi * r
        return torch.stack([r * angle.cos(), r * angle.sin()], 1) + self.std * _randn(n, generator)


@dataclass(frozen=True)
class Checkerboard(Toy):
    """Uniform on the black squares of a 4x4 board over [-1, 1]^2: a density with edges."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2)."""
        x, y = 4 * _rand(n, generator), 2 * _rand(n, generator)
        y = 2 * y.floor() + y % 1 + x.floor() % 2
        return torch.stack([x, y], 1) / 2 - 1
