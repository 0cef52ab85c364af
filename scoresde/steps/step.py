"""A sampler is a process, a decreasing grid of times, and a sequence of steps; this is the loop.

Predictors carry x from t to s, correctors stay where x is. DDPM is a predictor alone, annealed Langevin dynamics a
corrector alone, the predictor-corrector sampler of Song et al. (2021) both. The step calls the score, the loop never
does, and randomness comes in as `noise`.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..noise import Noise, iid, per_sample, require_noise
from ..process import Reverse, require_reverse
from ..reference import warn_of_misfit
from ..shapes import dims, intervals, lifted, state, times


class Step(ABC):
    """Carries x from time t to time s along a `Reverse` process.

    x is (B, *D), t and s are 0-dim float64 on the CPU, so that reading them never waits for a device. A corrector sets
    `moves = False`: it is called at the time where x is, and leaves it there.
    """

    moves: ClassVar[bool] = True
    fixed: ClassVar[bool] = False
    """Whether, once started on a grid, it can take no other intervals: what it remembers belongs to those."""
    upwards: ClassVar[bool] = False
    """Whether its formula on the flow, eta = 0, carries x from t up to s > t as well: see `invert`."""
    noisy: ClassVar[bool] = False
    """Whether it is a method of the reverse SDE: the command line then takes eta = 1, unless it is told another."""
    order: ClassVar[int | None] = None
    """The order of convergence on the flow, eta = 0."""
    strong: ClassVar[float | None] = None
    """The strong order for eta > 0."""
    weak: ClassVar[float | None] = None
    """The weak order for eta > 0."""

    def __repr__(self) -> str:
        """With what it holds, since it goes into recipes; dataclasses have their own."""
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"

    def start(self, p: Reverse, t: Tensor, s: Tensor) -> "Step":
        """The step as it stands before the first of the intervals from t to s, both (n,): a fresh copy of a method with
        memory, with everything that the intervals alone tell. Those of a corrector are empty, t = s.

        Raises ValueError for intervals that increase or lie outside [0, T], and if the step cannot be taken there.
        """
        t, s = intervals(t, s, p.T, empty=not self.moves)
        self.check(p, t, s)
        return self.prepare(p, t, s)

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:  # noqa: B027  (most steps can do everything)
        """Raise ValueError if the step cannot be taken on p from t to s, (n,)."""

    def prepare(self, p: Reverse, t: Tensor, s: Tensor) -> "Step":
        """What `start` returns, for intervals that are checked: here the step itself."""
        return self

    @abstractmethod
    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor: ...


class Run(NamedTuple):
    """What a step that chooses its own sizes returns from a method `run`, called as the step is: x at the end (B, *D);
    the steps that were accepted and rejected for each sample, (B,).
    """

    x: Tensor
    accepted: Tensor
    rejected: Tensor


class Prepared(Step):
    """A step that computes what its intervals alone tell when it is started; called without that, it starts on one."""

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        return self.start(p, t[None], s[None])(p, x, t, s, noise)


class Affine(Prepared):
    """x_s = a x + b score(x, t) + c z with numbers a, b, c, computed for a whole grid before its first step."""

    @abstractmethod
    def line(self, p: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, c), of the shape of t and s, () or (n,)."""

    def prepare(self, p: Reverse, t: Tensor, s: Tensor) -> Step:
        """With the numbers of each interval."""
        return _Lines(self, t, s, zip(*(c.tolist() for c in self.line(p, t, s)), strict=True))


def predictor(step: Any) -> Step:
    """Return step; raise ValueError unless it is one that carries samples through the intervals that it is given."""
    if isinstance(step, Step) and step.moves and not hasattr(step, "run"):
        return step
    why = ""
    if isinstance(step, Step) and step.moves:
        why = ", which may choose sizes of its own: take EDMHeun() or DPMSolver(2) on the flow, Ancestral() on the SDE"
    elif isinstance(step, Step):
        why = ", a corrector, which stays at its time: only `sample` takes one, beside a predictor"
    raise ValueError(f"step must be a predictor that takes the intervals of ts, such as Ancestral(), got {step!r}{why}")


def memoryless(step: Any) -> Affine:
    """Return step; raise ValueError unless it is `Affine`, and so knows of nothing but the interval that it is on."""
    if not isinstance(step, Affine):
        raise ValueError(f"step must be one that remembers nothing, such as Ancestral(), got {step!r}")
    return step


class ByInterval(Step):
    """A step at work, with what it knows of each interval from t to s, (n,)."""

    def __init__(self, step: Step, t: Tensor, s: Tensor, known: Iterable[Any]) -> None:
        self.step, self.known = step, dict(zip(zip(t.tolist(), s.tolist(), strict=True), known, strict=True))

    def at(self, t: Tensor, s: Tensor) -> Any:
        """What it knows of one. Raises ValueError for an interval that it was not started on."""
        found = self.known.get((float(t), float(s)))
        if found is None:
            raise off_grid(self.step, t, s)
        return found


class Wrapping(ByInterval):
    """One that moves by another, `inner`, which is copied with it."""

    def __init__(self, step: Step, t: Tensor, s: Tensor, known: Iterable[Any], inner: Step) -> None:
        super().__init__(step, t, s, known)
        self.inner = inner

    def __copy__(self) -> "Wrapping":
        made = object.__new__(type(self))
        vars(made).update(vars(self), inner=copy(self.inner))
        return made


class _Lines(ByInterval):
    """A step with its numbers."""

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        a, b, c = self.at(t, s)
        mean = (a * x).add_(p.ask(x, t), alpha=b)
        return mean.add_(noise(x, t, s), alpha=c) if c else mean


def off_grid(step: Step, t: Tensor, s: Tensor) -> ValueError:
    """What to raise where a step is called on other intervals than it was started on."""
    return ValueError(f"{step} was started on intervals of which none from t = {t:g} to {s:g} is the next")


def trajectory(p: Reverse, x: Tensor, ts: Tensor, *steps: Step, noise: Noise = iid()) -> Iterator[Tensor]:
    """Yield x at ts[0], then after each interval of ts. x is (B, *D) at time ts[0]; without gradients.

    With no predictor there is nothing that carries x between the times, and each time of ts is visited once: with
    `Langevin` that is annealed Langevin dynamics (Song & Ermon 2019, Algorithm 1).

    States of half precision are carried in float32 and yielded in their own type.

    Raises ValueError before any work if p is no Reverse, x or ts is not as stated, there is no step, more than one
    step moves, or a step cannot do what is asked; RuntimeError after the last state, whose other rows are good, naming
    the first sample that is not finite and the time where it first was not.
    """
    require_reverse(p), require_noise(noise)
    x, ts = state("x", x), times("ts", ts, p.T)
    warn_of_misfit(p.sde, p.score, ts)
    return watched(run(p, x, ts, started(p, ts, steps), noise), _visited(ts, steps))


def _visited(ts: Tensor, steps: tuple[Step, ...]) -> Tensor:
    """The times of the states that the loop yields."""
    return ts if any(step.moves for step in steps) else torch.cat([ts[:1], ts])


@torch.no_grad()
def watched(states: Iterator[Tensor], ts: Tensor) -> Iterator[Tensor]:
    """The states at ts, and then the error if they are not finite: until then nothing waits for the device."""
    good = None
    for x in states:
        finite = x.flatten(1).isfinite().all(1)
        good = finite.long() if good is None else good + finite  # the states before the first that is not finite
        yield x
    if good is not None and not finite.all():
        i = int((~finite).nonzero()[0])
        raise RuntimeError(f"sample {i} is not finite at t = {ts[int(good[i])]:.6g} and after")


@torch.no_grad()
def started(p: Reverse, ts: Tensor, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps, started on what they are called at: the intervals of ts, or the times before or after those."""
    for step in steps:
        if not isinstance(step, Step):
            raise ValueError(f"steps must be Step values such as Ancestral(), got {step!r}")
    if not steps or sum(step.moves for step in steps) > 1:
        raise ValueError(f"steps must hold at least one step and at most one predictor, got {steps}")
    at = next((i for i, step in enumerate(steps) if step.moves), None)

    def where(i: int) -> tuple[Tensor, Tensor]:
        u = ts if at is None else ts[:-1] if i <= at else ts[1:]
        return u, ts[1:] if i == at else u

    return tuple(step.start(p, *where(i)) for i, step in enumerate(steps))


@torch.no_grad()
def run(p: Reverse, x: Tensor, ts: Tensor, steps: tuple[Step, ...], noise: Noise) -> Iterator[Tensor]:
    """The loop of `trajectory`, with steps that are started."""
    dtype = x.dtype
    yield x
    x = lifted(x)
    for t, s in pairwise(ts) if any(step.moves for step in steps) else zip(ts, ts, strict=True):
        for step in steps:
            x = step(p, x, t, s, noise)
            t = s if step.moves else t
        yield x.to(dtype)


def sample(p: Reverse, x: Tensor, ts: Tensor, *steps: Step, noise: Noise = iid()) -> Tensor:
    """x at the last time: the end of `trajectory`, which see."""
    return deque(trajectory(p, x, ts, *steps, noise=noise), maxlen=1).pop()


def end(p: Reverse, x: Tensor, ts: Tensor, *steps: Step, noise: Noise = iid()) -> Tensor:
    """`sample` whose rows may be not finite, for those who say it in their own words. x and ts are checked already."""
    return deque(run(p, x, ts, started(p, ts, steps), noise), maxlen=1).pop()


def draw(
    p: Reverse,
    shape: tuple[int, ...],
    ts: Tensor,
    *steps: Step,
    seeds: Sequence[int],
    like: Tensor | None = None,
    denoise: bool = True,
) -> Tensor:
    """Samples from the prior on: (len(seeds), *shape). Row i depends on seeds[i] alone: whatever the chunks and the
    processes that they are drawn in, they are the same.

    like: whose type and place they have, torch's default on the CPU unless given. denoise: end with E[x_0 | x_t] at the
    last time, one more network call unless sigma is 0 there already. Raises ValueError as `trajectory`, and unless ts
    begins at T, where the prior is; RuntimeError naming the first sample that is not finite.
    """
    ts = times("ts", ts, require_reverse(p).T)
    if ts[0] < p.T * (1 - 1e-6):
        raise ValueError(f"ts must begin at T = {p.T:g}, where x is drawn from the prior, got {ts[0]:.6g}")
    noise, like = per_sample(seeds), torch.empty(0) if like is None else like
    if not noise.seeds:
        raise ValueError("seeds must hold one whole number a sample, got none")
    warn_of_misfit(p.sde, p.score, ts)
    shape = dims("shape", shape)
    dtype, device = lifted(like[:0]).dtype, like.device
    x = end(p, p.sde.prior((len(seeds), *shape), noise, dtype, device), ts, *steps, noise=noise)
    if denoise and p.sde.var(ts[-1]) > 0:
        with torch.no_grad():
            x = p.denoise(x, ts[-1])
    x = x.to(like.dtype)
    bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        i = int(bad.nonzero()[0])
        raise RuntimeError(f"sample {i}, of seed {seeds[i]}, is not finite after the grid {ts[0]:g} to {ts[-1]:g}")
    return x
