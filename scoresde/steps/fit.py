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
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import grid
from ..noise import iid
from ..process import Reverse
from ..reference import DATA, Reference, known
from ..shapes import count
from .catalogue import METHODS, Known
from .exponential import Exponential, Seen, advance, asking, stages_of
from .multistep import DPMSolverPP, GaussianReference, Multistep
from .singlestep import THIRD, SingleStep
from .step import Step, end, sample, trajectory
from .tuned import BAND, Error, Tuned, Tuning, distance, with_weights

RIDGE = 1e-3
HUGE = 1e100  # in place of an error that is not finite
FAR = 30.0
"""The deviations of the data in sigma/alpha where the mean is taken: nearer it varies, further a network is loud."""
TRIED = ((2, 0.05, True), (3, 0.05, True), (2, 0.2, True), (2, 0.2, False))
"""Nodes of the predictor, what is added to the density of the grid in units of its mean, and whether the first node is
taken without a call: what suits depends on the dimension and the budget.
"""


@dataclass(frozen=True)
class Pilots:
    """How a fit is made. Raises ValueError for fewer than 8 trajectories."""

    n: int = 64
    """Trajectories of each of three sets: to fit, to decide, to report."""
    seed: int = 0
    """Of their starts."""
    fine: int | None = None
    """Intervals of three calls that they are solved in, at least: 120, or twice the solver's calls if that is more,
    unless given."""

    def __post_init__(self) -> None:
        count("pilots", self.n, least=8, most=grid.MOST)
        if self.fine is not None:
            count("fine", self.fine, most=grid.MOST)

    def sets(self, q: Reverse, like: Tensor) -> list[Tensor]:
        """Three sets of starts, as states like `like` (any, *D)."""
        g = torch.Generator().manual_seed(self.seed)
        return [q.sde.prior((self.n, *like.shape[1:]), iid(g), like.dtype, like.device) for _ in range(3)]


@dataclass(frozen=True)
class Trajectories:
    """Trajectories of q from x_T, with order 3 around a reference in no fewer than `fine` intervals."""

    q: Reverse
    x_T: Tensor
    around: Reference
    fine: int

    def at(self, ts: Tensor) -> list[Tensor]:
        """The states at ts, each interval divided equally in lambda."""
        lam, m = self.q.sde.log_snr(ts), -(-self.fine // (len(ts) - 1))
        inner = torch.arange(m, dtype=torch.float64, device="cpu") / m
        dense = self.q.sde.time(torch.cat([(lam[:-1, None] + inner * lam.diff()[:, None]).flatten(), lam[-1:]]))
        dense[::m] = ts
        return [x for i, x in enumerate(trajectory(self.q, self.x_T, dense, self.step)) if i % m == 0]

    def end(self) -> Tensor:
        """The last states of all trajectories."""
        return self.at(grid.reference(self.q.sde, self.fine, around=self.around))[-1]

    @property
    def step(self) -> Step:
        return SingleStep(THIRD, self.around)


@torch.no_grad()
def tune(
    q: Reverse,
    like: Tensor,
    calls: int,
    around: Reference | None = None,
    pilots: Pilots = Pilots(),
    progress: Callable[[str], None] = lambda said: None,
) -> Tuning:
    """The best solver that is found of the flow q for that number of network calls, from T to q.sde.t_min.

    like: a state (any, *D), whose shape, type and place the pilots have. around: the mean and deviation of the data;
    unless given, those that the score was made for, or of the pilots' own ends. progress: called with a line before
    each part of the work.

    Raises ValueError unless eta is 0, for fewer than 2 calls, and for a reference of another shape.
    """
    count("calls", calls, least=2)
    fine = max(120, 2 * calls) if pilots.fine is None else count("fine", pilots.fine, least=2 * calls)
    if q.eta:
        raise ValueError(f"q must be a probability flow, eta=0, got eta={q.eta:g}")
    around, starts = known(around, q.score, like.shape[1:]), pilots.sets(q, like)
    if around is None:
        progress("the data's deviation")
        around = estimated(q, starts[0], max(fine // 2, 2))
    first, second, third = (Trajectories(q, x, centred(q, starts[0], around), fine) for x in starts)

    progress("pilots, and what they tell of size and grid")
    fitted = list(_fitted(first, calls, progress))
    progress("a second set of pilots, and methods that need no fit")
    usual = [Candidate(*row) for row in untuned(q, calls, around)]
    truth = second.end()
    off = {one: distance(end(q, second.x_T, one.ts, one.step), truth) for one in (*fitted, *usual)}
    other = best(usual, off)
    found = best([*fitted, other], off)

    progress("a third set of pilots")
    fresh = Error.of(sample(q, third.x_T, found.ts, found.step), third.end())
    loud = noise_amplification(found.step, q, found.ts) if isinstance(found.step, Exponential) else 1.0
    validation = (Error.over(off[found]), fresh, other.name, Error.over(off[other]))
    return Tuning(found.step, found.ts, q.sde, found.name, found is not other, calls, found.left, *validation, loud)


def _fitted(flights: Trajectories, calls: int, progress: Callable[[str], None]) -> Iterator["Candidate"]:
    """Two a setting of TRIED: with fitted size and grid, and with fitted weights as well."""
    sized, lam, density = residual(flights)
    for n, (predictor, floor, analytic) in enumerate(TRIED, 1):
        progress(f"weights, attempt {n} of {len(TRIED)}")
        ts = grid.equal(flights.q.sde, calls + analytic, lam, density + floor * density.mean())
        base = Multistep(predictor, 3, sized, analytic=analytic)
        step, left, before = fit(flights, base, ts)
        yield Candidate("tuned weights", step, ts, left)
        yield Candidate("tuned size and grid", base, ts, before)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A solver; left: the error on the pilots of its fit, if it was fitted."""

    name: str
    step: Step
    ts: Tensor
    left: Error | None = None


def best(of: list[Candidate], off: dict[Candidate, Tensor]) -> Candidate:
    """The least mean of the square roots of the errors `off`, of those whose mean square exceeds the least one by no
    more than two standard errors of the difference.
    """
    e = torch.stack([off[one] for one in of]).nan_to_num(HUGE, HUGE)
    more = e.square() - e[e.square().mean(1).argmin()].square()
    chance = more.mean(1) <= 2 * more.std(1) / math.sqrt(e.shape[1])
    return of[int(torch.where(chance, e.sqrt().mean(1), math.inf).argmin())]


UNTUNED = (
    *("DDIM", "DPMSolverPP(2)", "DPMSolverPP(3)", "UniPC(2)", "UniPC(3)", "DEIS(3)", "IPNDM(3)"),
    "GaussianReference",
)


def estimated(q: Reverse, x_T: Tensor, n: int = 20) -> Reference:
    """The Gaussian of the data where nothing is known of them: that of the ends of q from x_T in n steps."""
    ends = sample(q, x_T, grid.log_snr(q.sde, n), DPMSolverPP(2))
    return Reference.fit(ends / float(q.sde.alpha(q.sde.t_min)))


def untuned(q: Reverse, calls: int, around: Reference) -> Iterator[tuple[str, Step, Tensor]]:
    """The multistep methods that need no pilots, on the usual grids, for that number of calls: (name, step, grid)."""
    for method, (name, spacing) in product((METHODS[name] for name in UNTUNED), grid.usual(around).items()):
        ts = spacing(q.sde, method.intervals(calls))
        (step,) = method.steps(q, ts, Known(around))
        yield f"{method.name} on grid.{name}", step, ts


def centred(q: Reverse, x_T: Tensor, around: Reference) -> Reference:
    """Around the mean m that D = E[x_0|x_t] tells where Gaussian data lead to from x_T: D = m + shrink (x~ - m)."""
    sde, x, ts = q.sde, x_T, torch.tensor([q.sde.T, q.sde.T], dtype=torch.float64, device="cpu")
    lam = torch.tensor(-math.log(FAR * around.std), dtype=torch.float64, device="cpu")
    if lam > sde.log_snr(ts[0]):
        ts[1] = sde.time(lam)
        x = sample(q, x_T, ts, GaussianReference(around))
    A, B, _ = (float(v) for v in DATA.q(sde, ts[1]))
    shrink = 1 / (1 + math.exp(-2 * float(sde.log_snr(ts[1]))) / around.std**2)
    off = (A - shrink / float(sde.alpha(ts[1]))) * x + B * q.ask(x, ts[1])
    return replace(around, mean=off.mean(0) / (1 - shrink))


def residual(pilots: Trajectories) -> tuple[Reference, Tensor, Tensor]:
    """The reference with the size of the residual; lambda and the density of a grid."""
    q, around = pilots.q, pilots.around
    sde, ts = q.sde, grid.reference(q.sde, pilots.fine, around=around)
    lam, ask = sde.log_snr(ts), asking(q, _like(around, pilots.x_T))
    nodes = stages_of(ts, around.q(sde, ts), 0 * ts, 0 * ts, ts[:, None])
    states = zip(nodes, trajectory(q, pilots.x_T, ts, pilots.step), strict=True)
    values = torch.stack([ask(node, x).flatten().to("cpu", torch.float64) for node, x in states])
    size = values.square().mean(1).sqrt()
    size = size.clamp_min(1e-6 * size.max())
    around = replace(around, size=tuple(zip(lam.tolist(), size.tolist(), strict=True)))
    bend = values / size[:, None]
    for _ in range(2):
        (bend,) = torch.gradient(bend, spacing=(lam,), dim=0)
    density = (bend.square().mean(1).sqrt() * (around.log_g(lam) - around.log_S(lam)).exp()) ** (1 / 3)
    density = F.avg_pool1d(F.pad(density[None], (3, 3), mode="replicate"), 7, 1)[0]
    return around, lam, density


def _like(around: Reference, x: Tensor) -> Tensor:
    """The mean, as states like x."""
    return torch.as_tensor(around.mean).to(x)


def fit(pilots: Trajectories, base: Multistep, ts: Tensor) -> tuple[Tuned, Error, Error]:
    """The weights that `base` should be given besides on ts, the error that it is then left with, and that without."""
    q, x, mean = pilots.q, pilots.x_T, _like(base.around, pilots.x_T)
    truth, lam, ask = pilots.at(ts), q.sde.log_snr(ts), asking(q, mean)
    masses = q.sde.alpha(ts[1:]) * base.around.masses(lam[:-1], lam[1:], 0.0)[1].sum(1)
    extra = torch.zeros(len(ts) - 1, BAND + 1, dtype=torch.float64, device="cpu")
    known: Seen = ()
    added = torch.zeros(0, dtype=torch.float64, device="cpu")
    for n, now in enumerate(base.plan(q, ts[:-1], ts[1:])):
        a = now.stages[0].a
        extra[n, 1 : len(added) + 1] -= a * added  # the corrector redoes the last interval without what was added
        x, known = advance(with_weights(now, extra[n].tolist())._replace(kept=BAND + 1), x, known, mean, ask)
        seen = torch.stack([k.flatten(1).to("cpu", torch.float64) for k in known[:BAND]], -1) * masses[n]
        added = ridge(seen, (truth[n + 1] - x).flatten(1).to("cpu", torch.float64)) * masses[n]
        extra[n, : len(added)] += added
        for w, k in zip(added.tolist(), known, strict=False):
            x = x + w * k
    before = Error.of(end(q, pilots.x_T, ts, base), truth[-1])
    return Tuned(base, q.sde, ts, extra), Error.of(x, truth[-1]), before


def ridge(seen: Tensor, off: Tensor) -> Tensor:
    """The w (k,) with seen (B, d, k) w nearest to off (B, d); a sample off by e counts 1/(1 + (e/(3 median))^2)."""
    e = off.square().mean(1).sqrt()
    trust = 1 / (1 + (e / (3 * e.median()).clamp_min(1e-300)).square())
    gram = torch.einsum("bdi,bdj,b->ij", seen, seen, trust)
    ridge = RIDGE * gram.trace() / len(gram)
    if not ridge > 0:  # the first q of an analytic start
        return torch.zeros(len(gram), dtype=torch.float64, device="cpu")
    eye = torch.eye(len(gram), dtype=torch.float64, device="cpu")
    return torch.linalg.solve(gram + ridge * eye, torch.einsum("bdi,bd,b->i", seen, off, trust))


def noise_amplification(step: Exponential, q: Reverse, ts: Tensor) -> float:
    """The sum of |w| over |the sum of w|, w being what each q that the network is asked for on ts weighs in the last
    state.
    """
    plan = step.plan(q, ts[:-1], ts[1:])
    asked = sum(bool(stage.B) for now in plan for stage in now.stages)
    ones, none = (
        iter(torch.eye(asked, dtype=torch.float64, device="cpu")),
        torch.zeros(asked, dtype=torch.float64, device="cpu"),
    )
    x: Tensor = none
    known: Seen = ()
    for now in plan:  # with the weights in place of the states
        x, known = advance(now, x, known, None, lambda stage, _: next(ones) if stage.B else none)
    return float(x.abs().sum() / x.sum().abs())
