"""Laws with a known score, density and weights at every time, to measure samplers and likelihoods on."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from ..data import Digits
from ..exact import GaussianMixture
from ..shapes import count, number

MODES = 10_000  # beyond which the densities of one batch take gigabytes


class Problem(ABC):
    """A mixture of Gaussians."""

    @abstractmethod
    def law(self) -> GaussianMixture:
        """The law of x_0."""


@dataclass(frozen=True)
class Modes(Problem):
    """Equal Gaussians evenly on the unit circle of the plane."""

    n: int = 8
    """How many."""
    std: float = 0.05
    """Their standard deviation."""

    def __post_init__(self) -> None:
        count("n", self.n, most=MODES)
        _deviation(self.std)

    def law(self) -> GaussianMixture:
        """In the plane, shape (2,)."""
        angle = 2 * math.pi / self.n * torch.arange(self.n, dtype=torch.float64)
        return _equal(torch.stack([angle.cos(), angle.sin()], 1), self.std)


@dataclass(frozen=True)
class Lattice(Problem):
    """Equal Gaussians on a square lattice over [-1, 1]^2."""

    side: int = 5
    """How many along a side."""
    std: float = 0.05
    """Their standard deviation."""

    def __post_init__(self) -> None:
        count("side", self.side, least=2, most=math.isqrt(MODES))
        _deviation(self.std)

    def law(self) -> GaussianMixture:
        """In the plane, shape (2,)."""
        line = torch.linspace(-1, 1, self.side, dtype=torch.float64)
        return _equal(torch.cartesian_prod(line, line), self.std)


@dataclass(frozen=True)
class Peaks(Problem):
    """Gaussians on a line, of different weights, means and standard deviations."""

    weights: tuple[float, ...] = (0.5, 0.2, 0.3)
    """Their shares, up to a factor."""
    means: tuple[float, ...] = (-1.3, 0.1, 1.2)
    """Where they stand."""
    stds: tuple[float, ...] = (0.15, 0.1, 0.2)
    """Their standard deviations."""

    def __post_init__(self) -> None:
        for name, least in (("weights", 0.0), ("means", -math.inf), ("stds", 0.0)):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not 0 < len(values) == len(self.weights) <= MODES:
                raise ValueError(f"{name} must be a tuple of as many numbers as weights, at least 1, got {values!r}")
            for value in values:
                number(name, value, above=least)
        for std in self.stds:
            _deviation(std, "stds")

    def law(self) -> GaussianMixture:
        """On the line, shape (1,)."""
        w, m, s = (torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means, self.stds))
        return GaussianMixture(w, m[:, None], s**2)


def _deviation(std: float, name: str = "std") -> None:
    """One whose square is a number above 0."""
    number(name, std, least=1e-100, most=1e100)


def _equal(means: torch.Tensor, std: float) -> GaussianMixture:
    return GaussianMixture(torch.ones(len(means)), means, torch.full((len(means),), std**2, dtype=torch.float64))


@dataclass(frozen=True)
class DigitClasses(Problem):
    """One Gaussian for each class of the bundled digits, in 64 dimensions: the class's share, its mean, its `rank`
    largest principal variances, and the mean of the others in all other directions.
    """

    rank: int = 15
    """Principal directions a class."""

    def __post_init__(self) -> None:
        count("rank", self.rank)

    def law(self) -> GaussianMixture:
        """Of images, shape (1, 8, 8), fitted to all of the digits."""
        data = Digits().load()
        assert data.train_labels is not None and data.held_out_labels is not None
        x, y = torch.cat([data.train, data.held_out]).double(), torch.cat([data.train_labels, data.held_out_labels])
        classes = [x[y == k] for k in range(10)]
        values, vectors = torch.linalg.eigh(torch.stack([torch.cov(c.flatten(1).T) for c in classes]))
        r, most = self.rank, int((values > 1e-9).sum(1).min()) - 1
        if r > most:
            raise ValueError(f"rank must be at most {most}, beyond which some class does not vary, got {r}")
        means, weights = torch.stack([c.mean(0) for c in classes]), torch.tensor([float(len(c)) for c in classes])
        return GaussianMixture(weights, means, values[:, -r:], vectors[:, :, -r:], values[:, :-r].mean(1))
