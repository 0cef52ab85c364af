"""Orders of convergence, measured.

A step is of strong order r if E|x_h - x| falls like h^r, x_h and x the states at the last time on one Brownian path, by
steps of size h and in the limit; it is of weak order r if E phi(x_h) - E phi(x) does, here for phi(x) = |x|^2/d
(Kloeden & Platen 1992, sections 9.6 and 9.7). On one path phi(x_h) - phi(x) has a small variance, so that both are
measured with the same few samples.
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..brownian import GridPath
from ..noise import Noise, iid
from ..ode import Euler
from ..process import Reverse
from ..shapes import count
from ..steps import METHODS, EulerMaruyama, Flow, Step, distance, sample
from .solvers import spaced
from .subjects import Row, Subject


@dataclass(frozen=True)
class Slope:
    """The slope of log error against log step size, and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Limit:
    """What steps converge to: from states x at ts[0], (B, *D), the states `end` at ts[-1]; for a random process on the
    Brownian path that `noise` tells, a `Path` or `GridPath`. The intervals of ts are the finest steps.
    """

    x: Tensor
    ts: Tensor
    end: Tensor
    noise: Noise = iid()


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


def path_errors(p: Reverse, step: Step, steps: list[int], limit: Limit) -> PathErrors:
    """The errors of `step` in each number of `steps`, which must divide the number of intervals of limit.ts."""
    n, strong, weak = len(limit.ts) - 1, [], []
    for k in steps:
        if n % count("steps", k):
            raise ValueError(f"steps must divide the {n} intervals of ts, got {k}")
        y = sample(p, limit.x, limit.ts[:: n // k], step, noise=limit.noise)
        strong.append(distance(y, limit.end))
        weak.append((y.square() - limit.end.square()).flatten(1).mean(1))
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


REVERSED = ("DDPM, fixed-small", "DDPM, fixed-large", "ReverseDiffusion", "EulerMaruyama", "ConsistentAnnealed")
FLOWING = ("DDIM", "Flow(Heun())", "Flow(Euler())")


def paths(
    subject: Subject,
    spacing: str = "log_snr",
    seed: int = 0,
    skip: Collection[str] = (),
    begin: Callable[[str], Any] = lambda name: None,
) -> Iterator[Row]:
    """How discretisations of the reverse SDE converge on one Brownian path, and those of the flow without: a row each,
    with the mean errors at each number of steps, and the slopes; one that says why where a step or an error is not
    finite. skip: names of those that are known already. begin: told the name of each before it is measured, and
    "limit" before what they converge to.
    """
    if {*REVERSED, *FLOWING} <= set(skip):
        return
    begin("limit")
    exact, d = subject.tol < 1e-6, math.prod(subject.shape)
    few, steps = (max(64, 4096 // d), [16, 32, 64, 128]) if exact else (16, [8, 16, 32, 64])
    ts, _ = spaced(subject, spacing, 16 * steps[-1])
    g = torch.Generator().manual_seed(seed)
    noise = GridPath(ts, (few, *subject.shape), g)
    x = subject.sde.prior((few, *subject.shape), iid(g), subject.x_0.dtype, subject.x_0.device)
    p, q = subject.sde.reverse(subject.score), subject.sde.reverse(subject.score, 0.0)
    limit = Limit(x, ts, sample(p, x, ts, EulerMaruyama(), noise=noise), noise)
    flow = Limit(x, ts, subject.truth(x))
    known = {name: METHODS[name].steps(p, ts, subject.known)[0] for name in (*REVERSED, *FLOWING[:-1])}
    for name, step in (*known.items(), (FLOWING[-1], Flow(Euler()))):
        if name in skip:
            continue
        begin(name)
        process, end = (p, limit) if name in REVERSED else (q, flow)
        try:
            errors = path_errors(process, step, steps, end)
            strong = str(errors.strong_slope())
        except (ValueError, RuntimeError) as error:  # what diverges stops no other
            yield {"name": name, "steps": steps, "skipped": str(error)}
            continue
        seen = resolved(errors.weak)
        weak = str(slope(errors.steps[seen], errors.weak[seen])) if seen.sum() > 1 else "below its sampling error"
        means = {"strong": errors.strong.mean(1).tolist(), "weak": errors.weak.mean(1).abs().tolist()}
        yield {"name": name, "steps": steps, **means, "strong_slope": strong, "weak_slope": weak}
