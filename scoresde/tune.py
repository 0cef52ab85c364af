"""A solver fitted to one model: residual size, grid and weights from a few of its own trajectories.

Pilots are trajectories of the flow, solved with hundreds of calls in batches of a few dozen. They tell

- the mean of the data that the network supposes: that of its denoised pilots under much noise, where they vary little;
- the size of the residual at each noise level (`Reference.size`), so that what is interpolated is of one size;
- a grid: equal integrals of (RMS |q''| g/S)^(1/3), the density of steps that makes errors of second order equal,
  plus a part of its mean;
- weights: going along the grid, what the pilots' next state differs by from the prediction is regressed on the last
  four q that the solver itself has seen, so that later weights know of earlier errors. Samples that are far off count
  less, and a ridge keeps weights small, since in a few dimensions the q are nearly dependent.

All of it is forward calls and linear algebra. A second set of pilots decides between the fits and the best method that
needs none, by the mean of the square roots of the errors, among those whose mean square is not larger than the least
one beyond chance. Mean squares hang on the few samples that end in another mode, and medians do not see them. A third
set says how far the one chosen is from the flow.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import grid
from .convergence import Error, distance
from .exponential import DATA, Exponential, Reference, fit_reference
from .multistep import DDIM, DEIS, IPNDM, DPMSolverPP, GaussianReference, Multistep, UniPC
from .noise import iid
from .sample import Step, sample, trajectory
from .sde import LinearSDE, Reverse
from .shapes import count, state
from .singlestep import THIRD, SingleStep
from .tuned import BAND, Tuned, Tuning

RIDGE = 1e-3
HUGE = 1e100  # in place of an error that is not finite
FAR = 30.0
"""The deviations of the data in sigma/alpha where the mean is taken: nearer it varies, further a network is loud."""
TRIED = ((2, 0.05, True), (3, 0.05, True), (2, 0.2, True), (2, 0.2, False))
"""Nodes of the predictor, what is added to the density of the grid in units of its mean, and whether the first node is
taken without a call: what suits depends on the dimension and the budget.
"""


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

    data: (n, *shape), whose deviation the integrator is built around; the pilots' own ends unless given.
    pilots: trajectories of each of three sets. fine: intervals of three calls that they are solved in, at least; unless
    given 120, or twice `calls` if that is more. progress: called with a line before each part of the work.
    Raises ValueError unless eta is 0, for fewer than 2 calls, and for data that do not vary.
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
        progress("the data's deviation")
        ends = sample(q, noises[0], grid.log_snr(sde, max(fine // 2, 2)), DPMSolverPP(2))
        data = ends / float(sde.alpha(sde.t_min))
    plain = fit_reference(data)
    if not plain.std:
        raise ValueError(f"data must vary, got {len(data)} samples that are all the same")
    around = _centred(q, noises[0], plain)
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
    usual = [_Candidate(*row) for row in untuned(sde, calls, plain)]
    truth = second.end()
    off = {one: distance(sample(q, noises[1], one.ts, one.step), truth) for one in (*fitted, *usual)}
    other = _best(usual, off)
    best = _best([*fitted, other], off)

    progress("a third set of pilots")
    fresh = Error.of(sample(q, noises[2], best.ts, best.step), third.end())
    loud = noise_amplification(best.step, q, best.ts) if isinstance(best.step, Exponential) else 1.0
    validation = (Error.over(off[best]), fresh, other.name, Error.over(off[other]))
    return Tuning(best.step, best.ts, sde, best.name, best is not other, calls, best.left, *validation, loud)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A solver; left: the error on the pilots of its fit, if it was fitted."""

    name: str
    step: Step
    ts: Tensor
    left: Error | None = None


def _best(of: list[_Candidate], off: dict[_Candidate, Tensor]) -> _Candidate:
    """The least mean of the square roots of the errors `off`, of those whose mean square exceeds the least one by no
    more than two standard errors of the difference.
    """
    e = torch.stack([off[one] for one in of]).nan_to_num(HUGE, HUGE)
    more = e.square() - e[e.square().mean(1).argmin()].square()
    chance = more.mean(1) <= 2 * more.std(1) / math.sqrt(e.shape[1])
    return of[int(torch.where(chance, e.sqrt().mean(1), math.inf).argmin())]


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


def _centred(q: Reverse, x_T: Tensor, around: Reference) -> Reference:
    """Around the mean m that D = E[x_0|x_t] tells where Gaussian data lead to from x_T: D = m + shrink (x~ - m)."""
    sde, x, ts = q.sde, x_T, torch.tensor([q.sde.T, q.sde.T], dtype=torch.float64)
    lam = torch.tensor(-math.log(FAR * around.std), dtype=torch.float64)
    if lam > sde.log_snr(ts[0]):
        ts[1] = sde.time(lam)
        x = sample(q, x_T, ts, GaussianReference(around))
    A, B, _ = (float(v) for v in DATA.q(sde, ts[1]))
    shrink = 1 / (1 + math.exp(-2 * float(sde.log_snr(ts[1]))) / around.std**2)
    off = (A - shrink / float(sde.alpha(ts[1]))) * x + B * q.ask(x, ts[1])
    return replace(around, mean=off.mean(0) / (1 - shrink))


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
