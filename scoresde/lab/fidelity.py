"""How good samples are, by several measures at once: fidelity and variety apart, what was learned by heart, and the
error of each number.

A distance of features depends on the features and on how many samples there are. So each measure stands beside its
value for samples of the training data, as many, against the same data held out: what a perfect model would be given.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..shapes import count
from .metrics import EXACT, energy_distance, frechet, nearest, paired, sliced_wasserstein

Measure = Callable[[Tensor, Tensor], float]
SHARE = 0.05
"""Of data held out, those that are nearest to the training data: as near as these a sample is taken for a copy."""


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """E k(x, x') + E k(y, y') - 2 E k(x, y) with k = (x.y/d + 1)^3, of a (n, *D) and b (m, *D): the unbiased estimate
    (Binkowski et al. 2018, section 4), which may fall below 0, and whose mean does not depend on n. Raises ValueError
    if a and b have not one D, or fewer than 2 samples.
    """
    a, b = paired(a, b)
    _enough(a, b, 2)

    def total(x: Tensor, y: Tensor) -> float:
        return float(sum(((part @ y.T / x.shape[1] + 1) ** 3).sum() for part in x.split(1024)))

    def own(x: Tensor) -> float:
        return (total(x, x) - float(((x * x).sum(1) / x.shape[1] + 1).pow(3).sum())) / (len(x) * (len(x) - 1))

    return own(a) + own(b) - 2 * total(a, b) / (len(a) * len(b))


def _enough(a: Tensor, b: Tensor, least: int) -> None:
    for name, x in (("a", a), ("b", b)):
        if len(x) < least:
            raise ValueError(f"{name} must hold at least {least} samples, got {len(x)}")


@dataclass(frozen=True)
class Neighbourhoods:
    """What is inside balls around samples, each as large as the distance to its k-th nearest neighbour.

    precision: the share of samples in a ball of real data, and recall: the share of real data in a ball of samples
    (Kynkaanniemi et al. 2019); density: how many balls of real data a sample is in, over k, 1 on average for samples of
    the same law; coverage: the share of balls of real data that hold a sample (Naeem et al. 2020, eqs. 2 and 3), on
    average 1 - C(N - 1, k)/C(2N - 1, k) for N samples and N data of one law.
    """

    precision: float
    recall: float
    density: float
    coverage: float

    @classmethod
    def of(cls, samples: Tensor, real: Tensor, k: int = 5) -> "Neighbourhoods":
        """Raises ValueError if they have not one D, or not more than k samples each."""
        samples, real = paired(samples, real)
        _enough(samples, real, count("k", k) + 1)
        apart = torch.cdist(samples, real, compute_mode=EXACT)
        own, theirs = (_radii(x, k) for x in (samples, real))
        inside = apart < theirs
        return cls(
            precision=float(inside.any(1).double().mean()),
            recall=float((apart < own[:, None]).any(0).double().mean()),
            density=float(inside.double().sum(1).mean()) / k,
            coverage=float(inside.any(0).double().mean()),
        )


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance of each to its k-th nearest neighbour, itself left out."""
    return torch.cdist(x, x, compute_mode=EXACT).kthvalue(k + 1).values


def neighbour_test(a: Tensor, b: Tensor) -> float:
    """The share of samples whose nearest neighbour among all others is of their own set: 1/2 for two sets of one law
    that are equally large, 1 where they can be told apart (Lopez-Paz & Oquab 2017, with one neighbour). The larger set
    is cut. Raises ValueError if they have not one D, or fewer than 2 samples.
    """
    a, b = paired(a, b)
    _enough(a, b, 2)
    n = min(len(a), len(b))
    both, side = torch.cat([a[:n], b[:n]]), torch.arange(2 * n, device=a.device) < n
    apart = torch.cdist(both, both, compute_mode=EXACT).fill_diagonal_(math.inf)
    return float((side[apart.argmin(1)] == side).double().mean())


def copied(samples: Tensor, train: Tensor, held_out: Tensor, share: float = SHARE) -> float:
    """The share of samples that are nearer to the training data than all but `share` of the data held out are: `share`
    itself where nothing is learned by heart. Raises ValueError if they have not one D.
    """
    return float(_near(samples, train, held_out, share).mean())


def _near(samples: Tensor, train: Tensor, held_out: Tensor, share: float) -> Tensor:
    """1 for each sample that is so near, and 0 for the others, (n,)."""
    limit = nearest(held_out, train)[0].double().quantile(share)
    return (nearest(samples, train)[0].double() <= limit).double()


def with_error(measure: Measure, a: Tensor, b: Tensor, draws: int = 20, seed: int = 0) -> tuple[float, float]:
    """The measure and its standard error over a, from the deviation between random halves of a, which for what is a
    mean over a is that of a whole (a half without replacement has half its variance left: var(2/n - 1/n)). Copies, as a
    bootstrap draws them, would be each other's neighbours.
    """
    g = torch.Generator().manual_seed(count("seed", seed, least=0))
    halves = [
        a[torch.randperm(len(a), generator=g)[: len(a) // 2].to(a.device)] for _ in range(count("draws", draws, 2))
    ]
    values = torch.tensor([measure(half, b) for half in halves], dtype=torch.float64)
    return measure(a, b), float(values.std())


@dataclass(frozen=True)
class Quality:
    """One measure of samples against data held out, with its standard error, and what as many samples of the training
    data have, nan where that says nothing; best: what it would be for a perfect model with endless samples.
    """

    name: str
    best: float
    value: float
    error: float
    train: float
    train_error: float

    def __str__(self) -> str:
        train = "" if math.isnan(self.train) else f"   training data {self.train:.4f} +- {self.train_error:.4f}"
        return f"{self.name:18s} {self.value:8.4f} +- {self.error:.4f}   best {self.best:g}{train}"


def quality(
    samples: Tensor, train: Tensor, held_out: Tensor, features: Callable[[Tensor], Tensor] | None = None, seed: int = 0
) -> list[Quality]:
    """All measures of samples (n, *D). features: to measure distances and neighbourhoods in, (n, *D) -> (n, d); the
    numbers themselves unless given. Sliced Wasserstein and copies are of the numbers.

    Of training and samples as many are taken as there are of both. Raises ValueError if they have not one D, or fewer
    than 12 samples.
    """
    for name, x in (("samples", samples), ("train", train), ("held_out", held_out)):
        if paired(samples, x)[1].shape[0] < 12:
            raise ValueError(f"{name} must hold at least 12 samples, got {len(x)}")
    n = min(len(samples), len(train))
    seen = features or (lambda x: x.flatten(1))
    made, real, held = samples[:n], train[:n], held_out
    f_made, f_real, f_held = (seen(x).double() for x in (made, real, held))

    def ball(name: str) -> Measure:
        return lambda a, b: float(getattr(Neighbourhoods.of(a, b), name))

    of_features: dict[str, tuple[float, Measure]] = {
        "frechet": (0.0, frechet),
        "kernel distance": (0.0, kernel_distance),
        "energy distance": (0.0, energy_distance),
        **{name: (1.0, ball(name)) for name in ("precision", "recall", "density", "coverage")},
        "neighbour test": (0.5, neighbour_test),
    }
    rows = [(name, best, measure, f_made, f_real, f_held) for name, (best, measure) in of_features.items()]
    rows += [("sliced Wasserstein", 0.0, sliced_wasserstein, made, real, held)]
    found = []
    for name, best, measure, own, theirs, against in rows:
        told = *with_error(measure, own, against, seed=seed), *with_error(measure, theirs, against, seed=seed)
        found.append(Quality(name, best, *told))
    near = _near(made, train, held, SHARE)  # once, as it looks at all training data
    told_copies = with_error(lambda a, _: float(a.mean()), near, held, seed=seed)
    return [*found, Quality("copies", SHARE, *told_copies, math.nan, math.nan)]
