"""How good samples are, by several measures at once: fidelity and variety apart, what was learned by heart, and the
error of each number.

A distance of features depends on the features and on how many samples there are. So each measure stands beside its
value for samples of the training data, as many, against the same data held out: what a perfect model would be given.
And beside what it is in the mean for two sets of one law, as large as these, where that is known.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..shapes import count
from .metrics import EXACT, Values, energy_distance, frechet, frechet_bias, nearest, paired, sliced_wasserstein

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
        own, theirs = (_radii(x, k) for x in (samples, real))
        precise, balls, recalled, covered = 0, 0, *(torch.zeros_like(theirs, dtype=torch.bool) for _ in range(2))
        for part, radius in zip(samples.split(1024), own.split(1024), strict=True):
            apart = torch.cdist(part, real, compute_mode=EXACT)
            inside = apart < theirs
            precise, balls = precise + int(inside.any(1).sum()), balls + int(inside.sum())
            recalled, covered = recalled | (apart < radius[:, None]).any(0), covered | inside.any(0)
        return cls(
            precision=precise / len(samples),
            recall=float(recalled.double().mean()),
            density=balls / len(samples) / k,
            coverage=float(covered.double().mean()),
        )


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance of each to its k-th nearest neighbour, itself left out."""
    return torch.cat([torch.cdist(part, x, compute_mode=EXACT).kthvalue(k + 1).values for part in x.split(1024)])


def neighbour_test(a: Tensor, b: Tensor) -> float:
    """The share of samples whose nearest neighbour among all others is of their own set: 1/2 for two sets of one law
    that are equally large, 1 where they can be told apart (Lopez-Paz & Oquab 2017, with one neighbour). The larger set
    is cut. Raises ValueError if they have not one D, or fewer than 2 samples.
    """
    a, b = paired(a, b)
    _enough(a, b, 2)
    n = min(len(a), len(b))
    both, side = torch.cat([a[:n], b[:n]]), torch.arange(2 * n, device=a.device) < n
    same = 0
    for rows in torch.arange(2 * n, device=a.device).split(1024):
        apart = torch.cdist(both[rows], both, compute_mode=EXACT)
        apart[torch.arange(len(rows), device=a.device), rows] = math.inf
        same += int((side[apart.argmin(1)] == side[rows]).sum())
    return same / (2 * n)


def copied(samples: Tensor, train: Tensor, held_out: Tensor, share: float = SHARE) -> float:
    """The share of samples that are nearer to the training data than all but `share` of the data held out are: `share`
    itself where nothing is learned by heart. Raises ValueError if they have not one D.
    """
    return float(_near(samples, train, held_out, share).mean())


def _near(samples: Tensor, train: Tensor, held_out: Tensor, share: float, values: Values = lambda x: x) -> Tensor:
    """1 for each sample that is so near, and 0 for the others, (n,)."""
    far = nearest(torch.cat([held_out, samples]), train, values)[0].double()
    return (far[len(held_out) :] <= far[: len(held_out)].quantile(share)).double()


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
    data have, nan where that says nothing; best: what it would be for a perfect model with endless samples; expected:
    what it is in the mean for as many as there are, of the law of the data held out, nan where that is not known.
    """

    name: str
    best: float
    value: float
    error: float
    train: float
    train_error: float
    expected: float

    def __str__(self) -> str:
        train = f"   training data {self.train:.4f} +- {self.train_error:.4f}"
        said = ("" if math.isnan(self.train) else train, f"   expected {self.expected:.4f}")
        of = said[0] + ("" if math.isnan(self.expected) else said[1])
        return f"{self.name:18s} {self.value:8.4f} +- {self.error:.4f}   best {self.best:g}{of}"


def expected(n: int, held_out: Tensor, k: int = 5) -> dict[str, float]:
    """What measures of n samples against m data held out (m, d) are in the mean, if both are of one law: the Frechet
    distance of a Gaussian by `frechet_bias`; (1/n + 1/m)^(1/2) E|X - X'|^(1/2) of the energy distance, whose square has
    this mean; of any law, none of the kernel distance, 1 of density, 1 - C(m - 1, k)/C(n + m - 1, k) of coverage (the k
    data nearest to one are nearer than every sample), and (n - 1)/(2n - 1) of the neighbour test of n beside n.
    """
    m = len(held_out)
    least = min(n, m)
    apart = sum(float(torch.cdist(part, held_out, compute_mode=EXACT).sum()) for part in held_out.split(1024))
    left = math.prod((m - 1 - i) / (n + m - 1 - i) for i in range(k))
    return {
        "frechet": frechet_bias(torch.atleast_2d(held_out.T.cov()), n, m),
        "kernel distance": 0.0,
        "energy distance": math.sqrt((1 / n + 1 / m) * apart / (m * (m - 1))),
        "density": 1.0,
        "coverage": 1 - left,
        "neighbour test": (least - 1) / (2 * least - 1),
        "copies": SHARE,
    }


Tasks = list[Callable[[], Quality]]


def _in_turn(tasks: Tasks) -> list[Quality]:
    return [task() for task in tasks]


def quality(
    samples: Tensor,
    train: Tensor,
    held_out: Tensor,
    features: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    *,
    values: Values = lambda x: x,
    spread: Callable[[Tasks], list[Quality]] = _in_turn,
) -> list[Quality]:
    """All measures of samples (n, *D). features: to measure distances and neighbourhoods in, (n, *D) -> (n, d); the
    numbers themselves unless given. Sliced Wasserstein and copies are of the numbers.

    Of training and samples as many are taken as there are of both, and all training data are looked at for copies.
    values: makes numbers of stored training data, some thousands at a time, so that more than fit into memory may be
    given as they are stored. spread: carries out the measures, which several processes may share. Raises ValueError if
    they have not one D, or fewer than 12 samples.
    """
    for name, x in (("samples", samples), ("train", train), ("held_out", held_out)):
        if len(x) < 12:
            raise ValueError(f"{name} must hold at least 12 samples, got {len(x)}")
    n = min(len(samples), len(train))
    seen = features or (lambda x: x.flatten(1))
    made, real, held = samples[:n], values(train[:n]), held_out
    paired(made, real), paired(made, held)
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
    known = expected(n, f_held)

    def told(name: str, best: float, measure: Measure, own: Tensor, theirs: Tensor, against: Tensor) -> Quality:
        both = *with_error(measure, own, against, seed=seed), *with_error(measure, theirs, against, seed=seed)
        return Quality(name, best, *both, known.get(name, math.nan))

    def copies() -> Quality:
        near = _near(made, train, held, SHARE, values)  # once, as it looks at all training data
        both = with_error(lambda a, _: float(a.mean()), near, held, seed=seed)
        return Quality("copies", SHARE, *both, math.nan, math.nan, known["copies"])

    return spread([*(partial(told, *row) for row in rows), copies])
