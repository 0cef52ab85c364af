"""Orders of convergence, measured.

A step is of strong order r if E|x_h - x| falls like h^r, x_h and x the states at the last time on one Brownian path, by
steps of size h and in the limit; it is of weak order r if E phi(x_h) - E phi(x) does, here for phi(x) = |x|^2/d
(Kloeden & Platen 1992, sections 9.6 and 9.7). On one path phi(x_h) - phi(x) has a small variance, so that both are
measured with the same few samples.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .noise import Noise, iid
from .sample import Step, sample
from .sde import Reverse
from .shapes import count


@dataclass(frozen=True)
class Slope:
    """The slope of log error against log step size, and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def distance(x: Tensor, y: Tensor) -> Tensor:
    """The root mean square over dimensions of x - y, in float64: (B, *D) -> (B,)."""
    return (x - y).flatten(1).double().square().mean(1).sqrt()


@dataclass(frozen=True)
class Error:
    """Of last states: per sample the root mean square over dimensions; of these the root mean square, the median and
    the 90th percentile over samples.
    """

    rms: float
    median: float
    p90: float

    @classmethod
    def of(cls, x: Tensor, truth: Tensor) -> "Error":
        """x and truth are (B, *D)."""
        return cls.over(distance(x, truth))

    @classmethod
    def over(cls, e: Tensor) -> "Error":
        """e: (B,), per sample."""
        return cls(float(e.square().mean().sqrt()), float(e.median()), float(e.quantile(0.9)))

    def __str__(self) -> str:
        return f"{self.rms:.2e} (median {self.median:.1e}, 90th percentile {self.p90:.1e})"


class GridPath:
    """A Brownian path W known at the times of a grid: z = (W(t) - W(s))/sqrt(t - s) for any two of them, t > s, and the
    same for the step from s to t.

    It serves the same purpose as `noise.Path` where all step sizes divide one grid, and costs one look-up.
    """

    def __init__(self, ts: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> None:
        z = torch.randn(len(ts) - 1, *shape, generator=generator, dtype=torch.float64)
        dW = (-ts.diff()).sqrt().view(-1, *(1,) * len(shape)) * z
        self.W = torch.cat([torch.zeros(1, *shape, dtype=torch.float64), -dW.cumsum(0)])
        self.index = {t: i for i, t in enumerate(ts.tolist())}

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Raises ValueError for a time that is not on the grid."""
        try:
            i, j = self.index[float(t)], self.index[float(s)]
        except KeyError as error:
            raise ValueError(f"the path is not known at t = {error}") from error
        if i == j:
            raise ValueError(f"the path has no increment over the empty interval at t = {float(t):g}")
        return (abs(j - i) / (j - i) * (self.W[i] - self.W[j]) / (t - s).abs().sqrt()).to(x)


@dataclass(frozen=True)
class PathErrors:
    """steps: (K,) numbers of steps. strong: (K, B), the root mean square over dimensions of x_h - x for each sample.
    weak: (K, B), phi(x_h) - phi(x).
    """

    steps: Tensor
    strong: Tensor
    weak: Tensor

    def strong_slope(self, resamples: int = 1000) -> Slope:
        """Of E|x_h - x|."""
        return slope(self.steps, self.strong, resamples)

    def weak_slope(self, resamples: int = 1000) -> Slope:
        """Of |E phi(x_h) - E phi(x)|."""
        return slope(self.steps, self.weak, resamples)


def path_errors(
    p: Reverse, x: Tensor, ts: Tensor, step: Step, steps: list[int], limit: Tensor, noise: Noise = iid()
) -> PathErrors:
    """The errors of `step` in each number of `steps` between ts[0] and ts[-1], which must divide len(ts) - 1.

    x: (B, *D) at ts[0]; limit: (B, *D), the state at ts[-1] that is converged to; noise: for a random process the
    `Path` or `GridPath` that led to limit.
    """
    n, strong, weak = len(ts) - 1, [], []
    for k in steps:
        if n % count("steps", k):
            raise ValueError(f"steps must divide the {n} intervals of ts, got {k}")
        y = sample(p, x, ts[:: n // k], step, noise=noise)
        strong.append(distance(y, limit))
        weak.append((y.square() - limit.square()).flatten(1).mean(1))
    return PathErrors(torch.tensor(steps), torch.stack(strong), torch.stack(weak))


def resolved(errors: Tensor) -> Tensor:
    """Which of the K rows of errors (K, B) have a mean that exceeds twice its standard error, (K,)."""
    return errors.mean(1).abs() > 2 * errors.std(1, correction=0) / math.sqrt(errors.shape[1])


def slope(steps: Tensor, errors: Tensor, resamples: int = 1000, seed: int = 0) -> Slope:
    """The least-squares slope of log |mean error| against log (1/steps), and its 95 % confidence interval by the
    bootstrap over samples (Efron 1979, percentile method).

    steps: (K,), K >= 2; errors: (K, B), a sample's errors in one column, since they belong to one path.
    Raises ValueError for other shapes, fewer than two different steps, and errors that are not finite. The interval
    means nothing where a mean error is not `resolved`.
    """
    if len(set(steps.tolist())) < 2:
        raise ValueError(f"steps must hold two different numbers, got {steps.tolist()}")
    if errors.ndim != 2 or len(errors) != len(steps) or len(steps) < 2:
        raise ValueError(f"errors must be (K, B) with K = {len(steps)} >= 2 steps, got {tuple(errors.shape)}")
    if not errors.isfinite().all():
        raise ValueError("errors must be finite, got nan or inf")
    e, h = errors.detach().cpu().double().numpy(), -torch.log(steps.to(torch.float64)).numpy()
    h = h - h.mean()

    def fitted(means: np.ndarray) -> np.ndarray:
        return np.log(np.abs(means)) @ h / (h @ h)

    rows = np.random.default_rng(seed).multinomial(e.shape[1], np.full(e.shape[1], 1 / e.shape[1]), resamples)
    many = fitted(rows @ e.T / e.shape[1])
    low, high = np.quantile(many, [0.025, 0.975])
    return Slope(float(fitted(e.mean(1))), float(low), float(high))
