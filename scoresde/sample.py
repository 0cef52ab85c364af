"""A sampler is a process, a decreasing grid of times, and a sequence of steps; this is the loop.

Predictors carry x from t to s, correctors stay where x is. DDPM is a predictor alone, annealed Langevin dynamics a
corrector alone, the predictor-corrector sampler of Song et al. (2021) both. The step calls the score, the loop never
does, and randomness comes in as `noise`.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .noise import Noise, iid
from .sde import Reverse
from .shapes import state, times


class Step(ABC):
    """Carries x from time t to time s along a `Reverse` process.

    x is (B, *D), t and s are 0-dim float64 on the CPU, so that reading them never waits for a device. A corrector sets
    `moves = False`: it is called at the time where x is, and leaves it there.
    """

    moves: ClassVar[bool] = True
    fixed: ClassVar[bool] = False
    """Whether, once started on a grid, it can take no other intervals: what it remembers belongs to those."""
    order: ClassVar[int | None] = None
    """The order of convergence on the flow, eta = 0."""
    strong: ClassVar[float | None] = None
    """The strong order for eta > 0."""
    weak: ClassVar[float | None] = None
    """The weak order for eta > 0."""

    def start(self, p: Reverse, ts: Tensor) -> "Step":
        """The step as it stands before the first interval of the grid ts: a fresh copy of a method with memory, with
        everything that the grid alone tells.
        """
        return self

    def check(self, p: Reverse, ts: Tensor) -> None:  # noqa: B027  (most steps can do everything)
        """Raise ValueError if the step cannot be taken on p at the times ts, those that it will be called at."""

    @abstractmethod
    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor: ...


class Run(NamedTuple):
    """What a step that chooses its own sizes returns from a method `run`, called as the step is: x at the end (B, *D);
    the steps that were accepted and rejected for each sample, (B,).
    """

    x: Tensor
    accepted: Tensor
    rejected: Tensor


class Affine(Step):
    """x_s = a x + b score(x, t) + c z with numbers a, b, c, computed for a whole grid before its first step."""

    @abstractmethod
    def line(self, p: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, c), of the shape of t and s, () or (n,)."""

    def start(self, p: Reverse, ts: Tensor) -> Step:
        """With the numbers of each interval."""
        self.check(p, ts)
        t, s = ts[:-1], ts[1:]
        lines = zip(*(c.tolist() for c in self.line(p, t, s)), strict=True)
        return _Lines(self, dict(zip(zip(t.tolist(), s.tolist(), strict=True), lines, strict=True)))

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        self.check(p, torch.stack([t, s]))
        return _Lines(self, {})(p, x, t, s, noise)


class _Lines(Step):
    """A step with its numbers, by interval; of other intervals, as `Churn` makes them, they are computed."""

    def __init__(self, step: Affine, known: dict[tuple[float, float], tuple[float, ...]]) -> None:
        self.step, self.known = step, known

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        a, b, c = self.known.get((float(t), float(s))) or map(float, self.step.line(p, t, s))
        mean = (a * x).add(p.ask(x, t), alpha=b)
        return mean.add(noise(x, t, s), alpha=c) if c else mean


def needs_noise(p: Reverse, ts: Tensor) -> None:
    """Raise ValueError where sigma = 0 at one of the times ts: the score is singular there. (A non-linear SDE has no
    sigma to tell.)
    """
    if hasattr(p.sde, "var") and (p.sde.var(ts) == 0).any():
        raise ValueError(f"the score is singular where sigma = 0: end the grid before t = {float(ts.min()):g}")


def trajectory(p: Reverse, x: Tensor, ts: Tensor, *steps: Step, noise: Noise = iid()) -> Iterator[Tensor]:
    """Yield x at ts[0], then after each interval of ts. x is (B, *D) at time ts[0]; without gradients.

    With no predictor there is nothing that carries x between the times, and each time of ts is visited once: with
    `Langevin` that is annealed Langevin dynamics (Song & Ermon 2019, Algorithm 1).

    Raises ValueError before any work if p is no Reverse, x or ts is not as stated, there is no step, more than one
    step moves, or a step cannot do what is asked.
    """
    if not isinstance(p, Reverse):
        raise ValueError(f"p must be a Reverse process, as sde.reverse(score) returns, got {type(p).__name__}")
    for step in steps:
        if not isinstance(step, Step):
            raise ValueError(f"steps must be Step values such as Ancestral(), got {step!r}")
    movers = [step for step in steps if step.moves]
    if not steps or len(movers) > 1:
        raise ValueError(f"steps must hold at least one step and at most one predictor, got {steps}")
    x, ts = state("x", x), times("ts", ts, p.T)
    if movers:
        at = steps.index(movers[0])
        for i, step in enumerate(steps):
            step.check(p, ts if i == at else ts[:-1] if i < at else ts[1:])
    else:
        for step in steps:
            step.check(p, ts)
    return run(p, x, ts, steps, noise)


@torch.no_grad()
def run(p: Reverse, x: Tensor, ts: Tensor, steps: tuple[Step, ...], noise: Noise) -> Iterator[Tensor]:
    """The loop of `trajectory`, which checks what it is given."""
    steps = tuple(step.start(p, ts) for step in steps)
    yield x
    for t, s in pairwise(ts) if any(step.moves for step in steps) else zip(ts, ts, strict=True):
        for step in steps:
            x = step(p, x, t, s, noise)
            t = s if step.moves else t
        yield x


def sample(p: Reverse, x: Tensor, ts: Tensor, *steps: Step, noise: Noise = iid()) -> Tensor:
    """x at the last time: the end of `trajectory`, which see."""
    return deque(trajectory(p, x, ts, *steps, noise=noise), maxlen=1).pop()
