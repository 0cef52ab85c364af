"""A solver fitted to one model: residual size, grid and weights from a few of its own trajectories.

Pilots are trajectories of the flow, solved with hundreds of calls in batches of a few dozen. They tell

- the size of the residual at each noise level (`Reference.size`), so that what is interpolated is of one size;
- a grid: equal integrals of (RMS |q''| g/S)^(1/3), the density of steps that makes errors of second order equal,
  plus a part of its mean;
- weights: going along the grid, what the pilots' next state differs by from the prediction is regressed on the last
  four q that the solver itself has seen, so that later weights know of earlier errors. Samples that are far off count
  less, and a ridge keeps weights small, since in a few dimensions the q are nearly dependent.

All of it is forward calls and linear algebra. A second set of pilots decides between the fit and methods that need
none: of the fits whose root mean square error is no larger than that of the best of these, the one with the least 90th
percentile, since the first hangs on the few samples that end in another mode; if there is no such fit, the best of the
others. A third set says how far the one chosen is from the flow.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import grid
from .checkpoint import build, describe, write
from .convergence import Error
from .exponential import Exponential, Interval, Reference, fit_reference
from .multistep import DDIM, DEIS, IPNDM, DPMSolverPP, GaussianReference, Multistep, UniPC
from .noise import iid
from .sample import Step, sample, trajectory
from .sde import LinearSDE, Reverse
from .shapes import count, state, times
from .singlestep import THIRD, SingleStep

BAND, RIDGE = 4, 1e-3
TRIED = ((2, 0.05, True), (3, 0.05, True), (2, 0.2, True), (2, 0.2, False))
"""Nodes of the predictor, what is added to the density of the grid in units of its mean, and whether the first node is
taken without a call: what suits depends on the dimension and the budget.
"""


@dataclass(frozen=True, eq=False)
class Tuned(Exponential):
    """A multistep method with fitted weights, for one process and one grid.

    base: the method that the weights are added to. sde, ts: what it was fitted for. extra: (n, 5), what is added to the
    weights of the last q on each interval, newest first. Raises ValueError for another shape, and when used on another
    process, or on other times.
    """

    base: Multistep
    sde: LinearSDE
    ts: Tensor
    extra: Tensor

    def __post_init__(self) -> None:
        if self.extra.shape != (len(self.ts) - 1, BAND + 1):
            raise ValueError(f"extra must be ({len(self.ts) - 1}, {BAND + 1}), got {tuple(self.extra.shape)}")

    @property
    def around(self) -> Reference:  # type: ignore[override]
        """What is solved exactly."""
        return self.base.around

    def __repr__(self) -> str:
        return f"Tuned({self.base!r} on {len(self.ts) - 1} intervals of {self.sde!r})"

    def check(self, p: Reverse, ts: Tensor) -> None:
        """p and ts are those of the fit, and eta is 0."""
        if p.sde is not self.sde and describe(p.sde) != describe(self.sde):
            raise ValueError(f"sde must be {self.sde!r}, which the solver was tuned for, got {p.sde!r}")
        if p.eta:
            raise ValueError(f"a tuned solver solves the probability flow, eta=0, got eta={p.eta:g}")
        if len(ts) != len(self.ts) or (ts - self.ts).abs().max() > 1e-9 * p.T:
            raise ValueError(
                f"ts must be the {len(self.ts)} times that the solver was tuned for, from {self.ts[0]:g} to "
                f"{self.ts[-1]:g}, got {len(ts)} from {ts[0]:g} to {ts[-1]:g}"
            )

    def intervals(self, p: Reverse, ts: Tensor) -> list[Interval]:
        """Those of `base`, with the weights added."""
        return [_add(now, row) for now, row in zip(self.base.intervals(p, ts), self.extra.tolist(), strict=True)]


def _add(now: Interval, extra: list[float]) -> Interval:
    w = [*now.stages[0].w, *[0.0] * (len(extra) - len(now.stages[0].w))]
    w = [a + b for a, b in zip(w, extra, strict=True)]
    return now._replace(stages=[now.stages[0]._replace(w=tuple(w))], kept=len(w) - 1)


@dataclass(frozen=True, eq=False)
class Tuning:
    """A step with the grid to take it on, and how they were found: `sample(q, x_T, tuning.ts, tuning.step)`.

    name: of the method; tuned: whether it was fitted, which it is unless a method that needs no fit was better. calls:
    of the network. calibration: the error of the fit on the pilots that it was fitted to, None without a fit;
    validation: on those that decided; fresh: on noise that nothing was chosen by. untuned: the method that needs no fit
    and has the least root mean square error on those that decided, and that error. noise_amplification: the sum of |w|
    over |the sum of w|, w being what each q weighs in the last state: how much louder errors of the network come out
    than they would with positive weights.
    """

    step: Step
    ts: Tensor
    sde: LinearSDE
    name: str
    tuned: bool
    calls: int
    calibration: Error | None
    validation: Error
    fresh: Error
    untuned: str
    untuned_validation: Error
    noise_amplification: float

    def save(self, file: str | Path) -> None:
        """Write it as JSON, in which numbers that are not finite are strings."""
        write(Path(file), json.dumps(_each(describe(self), _spell), indent=1, allow_nan=False).encode())

    @classmethod
    def load(cls, file: str | Path) -> "Tuning":
        """Read what `save` wrote. Raises ValueError for anything else."""
        try:
            said = json.loads(Path(file).read_bytes())
            if not isinstance(said, dict) or said.get("class") != cls.__name__:
                raise ValueError(f"it does not describe a {cls.__name__}")
            found = build(cls, _each(said, _read))
            left = build(Error, found.calibration) if found.calibration else None
            times("ts", found.ts, found.sde.T)
            return replace(found, step=_mended(found.step), calibration=left)
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{file} is damaged, or is no tuned solver: {error}") from error


NOT_FINITE = {str(v): v for v in (math.inf, -math.inf, math.nan)}


def _spell(v: Any) -> Any:
    return str(v) if isinstance(v, float) and not math.isfinite(v) else v


def _read(v: Any) -> Any:
    return NOT_FINITE.get(v, v) if isinstance(v, str) else v


def _each(v: Any, f: Callable[[Any], Any]) -> Any:
    """JSON with f of every value in it."""
    if isinstance(v, dict):
        return {k: _each(item, f) for k, item in v.items()}
    return [_each(item, f) for item in v] if isinstance(v, list) else f(v)


def _mended(step: Any) -> Any:
    """With a mean that is a tensor in float64 and pairs of size, which JSON tells as lists."""
    if isinstance(step, Tuned):
        return replace(step, base=_mended(step.base))
    if not isinstance(step, Step):
        raise ValueError(f"step must be a step, got {step!r}")
    if not isinstance(step, Multistep):
        return step
    mean, size = step.around.mean, tuple((float(lam), float(v)) for lam, v in step.around.size)
    mean = mean if isinstance(mean, float) else torch.tensor(mean, dtype=torch.float64)
    return replace(step, around=replace(step.around, mean=mean, size=size))


@dataclass(frozen=True)
class _Pilots:
    """Trajectories of q from x_T, with order 3 around a reference in no fewer than `fine` intervals."""

    q: Reverse
    x_T: Tensor
    around: Reference
    fine: int

    def at(self, ts: Tensor) -> list[Tensor]:
        """The states at ts, each interval divided equally in lambda."""
        lam, m = self.q.sde.log_snr(ts), -(-self.fine // (len(ts) - 1))
        inner = torch.arange(m, dtype=torch.float64) / m
        dense = self.q.sde.time(torch.cat([(lam[:-1, None] + inner * lam.diff()[:, None]).flatten(), lam[-1:]]))
        dense[::m] = ts
        return [x for i, x in enumerate(trajectory(self.q, self.x_T, dense, self.step)) if i % m == 0]

    def end(self) -> Tensor:
        """The last states."""
        return self.at(grid.reference(self.q.sde, self.fine, std=self.around.std))[-1]

    @property
    def step(self) -> Step:
        return SingleStep(THIRD, self.around)


@torch.no_grad()
def tune(
    q: Reverse,
    shape: tuple[int, ...],
    calls: int,
    data: Tensor | None = None,
    *,
    pilots: int = 64,
    seed: int = 0,
    fine: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] = lambda said: None,
) -> Tuning:
    """The best solver that is found of the flow q for that number of network calls, from T to q.sde.t_min.

    data: (n, *shape), whose mean and deviation the integrator is built around; the pilots' own ends unless given.
    pilots: trajectories of each of three sets. fine: intervals of three calls that they are solved in, at least; unless
    given 120, or twice `calls` if that is more. progress: called with a line before each part of the work.
    Raises ValueError unless eta is 0, and for fewer than 2 calls.
    """
    count("calls", calls, least=2)
    count("pilots", pilots, least=8)
    fine = max(120, 2 * calls) if fine is None else count("fine", fine, least=2 * calls)
    if q.eta:
        raise ValueError(f"q must be a probability flow, eta=0, got eta={q.eta:g}")
    if data is not None and state("data", data).shape[1:] != shape:
        raise ValueError(f"data must hold samples of shape {tuple(shape)}, got {tuple(data.shape[1:])}")
    sde, g = q.sde, torch.Generator().manual_seed(seed)
    noises = [sde.prior((pilots, *shape), iid(g), dtype, device) for _ in range(3)]
    if data is None:
        progress("the data's mean and deviation")
        ends = sample(q, noises[0], grid.log_snr(sde, max(fine // 2, 2)), DPMSolverPP(2))
        data = ends / float(sde.alpha(sde.t_min))
    around = fit_reference(data)
    fits, second, third = (_Pilots(q, x, around, fine) for x in noises)

    progress("pilots, and what they tell of size and grid")
    sized, lam, density = _residual(fits)
    fitted: list[_Candidate] = []
    for predictor, floor, analytic in TRIED:
        progress(f"weights, attempt {len(fitted) // 2 + 1} of {len(TRIED)}")
        ts = grid.equal(sde, calls + analytic, lam, density + floor * density.mean())
        base = Multistep(predictor, 3, sized, analytic=analytic)
        step, left, before = _fit(fits, base, ts)
        fitted += [_Candidate("tuned weights", step, ts, left), _Candidate("tuned size and grid", base, ts, before)]

    progress("a second set of pilots, and methods that need no fit")
    plain = [_Candidate(*row) for row in untuned(sde, calls, around)]
    truth = second.end()
    seen = {one: Error.of(sample(q, noises[1], one.ts, one.step), truth) for one in (*fitted, *plain)}
    other = min(plain, key=lambda one: _finite(seen[one].rms))
    better = [one for one in fitted if _finite(seen[one].rms) <= _finite(seen[other].rms)]
    best = min(better, key=lambda one: seen[one].p90) if better else other

    progress("a third set of pilots")
    fresh = Error.of(sample(q, noises[2], best.ts, best.step), third.end())
    loud = noise_amplification(best.step, q, best.ts) if isinstance(best.step, Exponential) else 1.0
    found = (best.name, best is not other, calls, best.left, seen[best], fresh, other.name, seen[other], loud)
    return Tuning(best.step, best.ts, sde, *found)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A solver; left: the error on the pilots of its fit, if it was fitted."""

    name: str
    step: Step
    ts: Tensor
    left: Error | None = None


def _finite(v: float) -> float:
    return v if math.isfinite(v) else math.inf


def untuned(sde: LinearSDE, calls: int, around: Reference) -> Iterator[tuple[str, Step, Tensor]]:
    """The multistep methods that need no pilots, on the usual grids, for that number of calls: (name, step, grid)."""
    steps = {
        "DDIM": DDIM(),
        "DPMSolverPP(2)": DPMSolverPP(2),
        "DPMSolverPP(3)": DPMSolverPP(3),
        "UniPC(2)": UniPC(2),
        "UniPC(3)": UniPC(3),
        "DEIS(3)": DEIS(3),
        "IPNDM(3)": IPNDM(3),
        "GaussianReference": GaussianReference(around),
    }
    for name, step in steps.items():
        n = calls + (name == "GaussianReference")
        for spacing in (grid.uniform, grid.quadratic, grid.log_snr, grid.karras):
            yield f"{name} on grid.{spacing.__name__}", step, spacing(sde, n)
        yield f"{name} on grid.reference", step, grid.reference(sde, n, std=around.std)


def _residual(pilots: _Pilots) -> tuple[Reference, Tensor, Tensor]:
    """The reference with the size of the residual; lambda and the density of a grid."""
    q, around = pilots.q, pilots.around
    sde, ts = q.sde, grid.reference(q.sde, pilots.fine, std=around.std)
    lam, mean, (A, B, C) = sde.log_snr(ts), torch.as_tensor(around.mean).to(pilots.x_T), around.q(sde, ts)
    states = enumerate(trajectory(q, pilots.x_T, ts, pilots.step))
    seen = [A[i] * x + B[i] * q.ask(x, ts[i]) + C[i] * mean for i, x in states]
    values = torch.stack([v.flatten().to("cpu", torch.float64) for v in seen])
    size = values.square().mean(1).sqrt()
    size = size.clamp_min(1e-6 * size.max())
    around = replace(around, size=tuple(zip(lam.tolist(), size.tolist(), strict=True)))
    bend = values / size[:, None]
    for _ in range(2):
        (bend,) = torch.gradient(bend, spacing=(lam,), dim=0)
    density = (bend.square().mean(1).sqrt() * (around.log_g(lam) - around.log_S(lam)).exp()) ** (1 / 3)
    density = F.avg_pool1d(F.pad(density[None], (3, 3), mode="replicate"), 7, 1)[0]
    return around, lam, density


def _fit(pilots: _Pilots, base: Multistep, ts: Tensor) -> tuple[Tuned, Error, Error]:
    """The weights that `base` should be given besides on ts, the error that it is then left with, and that without."""
    q, x, mean = pilots.q, pilots.x_T, torch.as_tensor(base.around.mean).to(pilots.x_T)
    truth, lam = pilots.at(ts), q.sde.log_snr(ts)
    masses = q.sde.alpha(ts[1:]) * base.around.masses(lam[:-1], lam[1:], 0.0)[1].sum(1)
    extra = torch.zeros(len(ts) - 1, BAND + 1, dtype=torch.float64)
    known: tuple[Tensor, ...] = ()
    added = torch.zeros(0, dtype=torch.float64)
    for n, now in enumerate(base.intervals(q, ts)):
        stage = now.stages[0]
        new = stage.A * x + stage.B * q.ask(x, now.t) + stage.C * mean if stage.B else 0 * x
        known = (new, *known)[: BAND + 1]
        extra[n, 1 : len(added) + 1] -= stage.a * added  # the corrector redoes the last interval without what was added
        weights = [a + b for a, b in zip([*stage.w, *[0.0] * BAND], extra[n].tolist(), strict=False)]
        x = stage.a * x + stage.k * mean + sum(w * k for w, k in zip(weights, known, strict=False))
        seen = torch.stack([k.flatten(1).to("cpu", torch.float64) for k in known[:BAND]], -1) * masses[n]
        added = _ridge(seen, (truth[n + 1] - x).flatten(1).to("cpu", torch.float64)) * masses[n]
        extra[n, : len(added)] += added
        x = x + sum(w * k for w, k in zip(added.tolist(), known, strict=False))
    before = Error.of(sample(q, pilots.x_T, ts, base), truth[-1])
    return Tuned(base, q.sde, ts, extra), Error.of(x, truth[-1]), before


def _ridge(seen: Tensor, off: Tensor) -> Tensor:
    """The w (k,) with seen (B, d, k) w nearest to off (B, d); a sample off by e counts 1/(1 + (e/(3 median))^2)."""
    e = off.square().mean(1).sqrt()
    trust = 1 / (1 + (e / (3 * e.median()).clamp_min(1e-300)).square())
    gram = torch.einsum("bdi,bdj,b->ij", seen, seen, trust)
    ridge = RIDGE * gram.trace() / len(gram)
    if not ridge > 0:  # the first q of an analytic start
        return torch.zeros(len(gram), dtype=torch.float64)
    eye = torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(gram + ridge * eye, torch.einsum("bdi,bd,b->i", seen, off, trust))


def noise_amplification(step: Exponential, q: Reverse, ts: Tensor) -> float:
    """The sum of |w| over |the sum of w|, w being what each q that the network is asked for on ts weighs in the last
    state.
    """
    plan = step.intervals(q, ts)
    asked = sum(bool(stage.B) for now in plan for stage in now.stages)
    ones = iter(torch.eye(asked, dtype=torch.float64))
    x = none = torch.zeros(asked, dtype=torch.float64)
    known: tuple[Tensor, ...] = ()
    for now in plan:  # as `Started` goes, with the weights in place of the states
        y, seen = x, known
        for i, stage in enumerate(now.stages):
            seen = (next(ones) if stage.B else none, *seen)
            y = stage.a * x + sum(w * k for w, k in zip(stage.w, seen, strict=False))
            if i == 0:
                known = seen[: now.kept]
        x = y
    return float(x.abs().sum() / x.sum().abs())
