"""A solver fitted to one model: residual size, grid and weights from a few of its own trajectories.

Pilots are trajectories of the flow, solved with hundreds of calls in batches of a few dozen. They tell

- the mean of the data that the network supposes: that of its denoised pilots under much noise, where they vary little;
- the size of the residual at each noise level (`Reference.size`), so that what is interpolated is of one size;
- a grid: equal integrals of (RMS |q''| g/S)^(1/3), the density of steps that makes errors of second order equal,
  plus a part of its mean;
- weights: going along the grid, what the pilots' next state differs by from the prediction is regressed on the last
  four q that the solver itself has seen, so that later weights know of earlier errors. Samples that are far off count
  less, and a ridge keeps weights small, since in a few dimensions the q are nearly dependent;
- how all weights and the inner times should change together for a smaller error at the end (`newton`).

All of it is forward calls and linear algebra. A second set of pilots decides between the fits and the best method that
needs none, by the mean of the square roots of the errors, among those whose mean square is not larger than the least
one beyond chance. Mean squares hang on the few samples that end in another mode, and medians do not see them. Where the
weights are far worse than that method, no more is spent on them. A third set says how far the one chosen is from the
flow.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .. import grid
from ..process import Reverse
from ..reference import Reference
from .catalogue import METHODS, Known
from .exponential import Exponential, Seen, advance, asking
from .multistep import DPMSolverPP, Multistep
from .newton import LEAST, Ends, improve, trust, typical
from .pilots import SCREENED, Course, Metered, Pilots, Trajectories, centred, ends, mean_like, parts, residual
from .step import Step, end, sample
from .tuned import BAND, Error, Tuned, Tuning, distance, masses, with_weights

RIDGE = 1e-3
HUGE = 1e100  # in place of an error that is not finite
HOPELESS = 1.5
"""Above this part of the square root of the best usual method's error nothing more is spent on a fit: one that began
at 1.1 ended at a thirtieth.
"""
WORTH = 8
"""The methods that need no fit which are tried on all pilots of the second set."""
TRIED = ((2, 0.05, True), (2, 0.2, True), (2, 0.2, False))
"""Nodes of the predictor, what is added to the density of the grid in units of its mean, and whether the first node is
taken without a call: what suits depends on the dimension and the budget.
"""


def fitted(
    q: Reverse, like: Tensor, calls: int, around: Reference | None, pilots: Pilots, progress: Callable[[str], None]
) -> Tuning:
    """`tune` of a flow, whose arguments are checked."""
    fine, starts = pilots.calls(calls), pilots.sets(q, like)
    meter = Metered(q.score)
    q = replace(q, score=meter)
    around, flights, rough = surveyed(q, starts[0], around, fine, progress)
    centre = flights.around
    fits = list(_fits(flights, calls, progress))
    progress("a second set of pilots, and methods that need no fit")
    first, second = (Ends(x, y) for x, y in ((starts[0], flights.end), (starts[1], ends(q, starts[1], centre, fine))))
    other, off_other = _usual(q, calls, around, second)
    off = {other: off_other, **{one: off_of(q, one, second) for one in fits}}
    kept = pilots.n * (fine + 3 * calls)  # which are needed further down
    left = lambda: (pilots.evaluations - meter.evaluations) // meter.each - kept  # noqa: E731
    for whole in improved(q, best(fits, off), other, off, Sets(first, second), left, progress):
        fits.append(whole)
        off[whole] = off_of(q, whole, second)
    found = best([*fits, other], off)

    progress("a third set of pilots")
    fresh = Error.of(sample(q, starts[2], found.ts, found.step), ends(q, starts[2], centre, fine))
    loud = noise_amplification(found.step, q, found.ts) if isinstance(found.step, Exponential) else 1.0
    validation = (Error.over(off[found]), fresh, other.name, Error.over(off[other]))
    of = (found.step, found.ts, q.sde, found.name, found is not other, calls, found.left)
    return Tuning(*of, *validation, loud, evaluations=meter.evaluations, roughness=rough)


def surveyed(
    q: Reverse, x_T: Tensor, around: Reference | None, fine: int, progress: Callable[[str], None]
) -> tuple[Reference, Trajectories, float]:
    """The Gaussian of the data, pilots of a flow around where it leads, and how rough in t they find the network."""
    if around is None:
        progress("the data's deviation")
        around = estimated(q, x_T, max(fine // 2, 2))
    centre = centred(q, x_T, around)
    progress("pilots, and what they tell of size and grid")
    flights = Trajectories(q, x_T, centre, fine)
    rough, _, _ = flights.roughness()
    progress(f"roughness in t {rough:.2g}")
    return around, flights, rough


def least(calls: int, pilots: Pilots = Pilots(), known: bool = True, flows: int = 1) -> int:
    """The evaluations of the score for one sample that `tune` takes where nothing is improved as a whole: no fit takes
    fewer, and none more than the larger of this and `pilots.evaluations`. calls: of the network, that the solver makes;
    known: whether the Gaussian of the data is; flows: how many share the pilots. A guided score may ask its network
    twice each time.
    """
    fine, few = pilots.calls(calls), min(pilots.n, max(SCREENED, flows))
    trajectories = 3 * fine + 2 + (0 if known else max(fine // 2, 2))
    fits, usual = 4 * len(TRIED) + 1, len(UNTUNED) * len(grid.usual())
    return pilots.n * (trajectories + calls * (fits + WORTH)) + few * calls * usual


class Sets(NamedTuple):
    """Pilots: those that a solver is fitted to, and those that decide."""

    first: Ends
    second: Ends


def improved(
    q: Reverse,
    chosen: "Candidate",
    other: "Candidate",
    off: dict["Candidate", Tensor],
    of: Sets,
    left: Callable[[], int],
    progress: Callable[[str], None],
) -> Iterator["Candidate"]:
    """The best fit improved as a whole, from weights of 0 if it has none: none where it is far worse than the method
    that needs no fit, or where too few evaluations are left.
    """
    said = f"the fit leaves {share(off[chosen], off[other])} of the error of {other.name}"
    if worse(off[chosen], off[other], HOPELESS):
        progress(f"{said}, so no more is spent on it")
        return
    what = "weights" if q.eta else "weights and times"
    progress(f"{said}; {what} together")
    nothing = torch.zeros(len(chosen.ts) - 1, BAND + 1, dtype=torch.float64, device="cpu")
    base = chosen.step
    solver = base if isinstance(base, Tuned) else Tuned(cast(Multistep, base), q.sde, chosen.ts, nothing)
    step = improve(q, solver, *of, left, max(LEAST, parts(q.score)))
    if step is solver:
        progress("too few evaluations are left for that")
        return
    made = Candidate("tuned weights together" if q.eta else "tuned weights and times", step, step.ts)
    yield replace(made, left=Error.over(off_of(q, made, of.first)))


def off_of(q: Reverse, one: "Candidate", pilots: Ends) -> Tensor:
    """Its errors, (B,)."""
    return distance(end(q, pilots.x_T, one.ts, one.step, noise=pilots.noise), pilots.end)


def _usual(q: Reverse, calls: int, around: Reference, pilots: Ends) -> tuple["Candidate", Tensor]:
    """The best of the methods that need no fit, and its errors: of all on a few pilots, the best on the rest."""
    every, few = [Candidate(*row) for row in untuned(q, calls, around)], pilots.first(max(SCREENED, parts(q.score)))
    good = sorted(every, key=lambda one: typical(off_of(q, one, few)))[:WORTH]
    off = {one: off_of(q, one, pilots) for one in good}
    found = best(good, off)
    return found, off[found]


def _ratio(off: Tensor, other: Tensor) -> tuple[float, float]:
    """The mean of the square roots of errors (B,) over that of others of the same pilots, and its standard error."""
    a, b = (e.double().nan_to_num(HUGE, HUGE).sqrt() for e in (off, other))
    if not b.any():
        return (math.inf if a.any() else 1.0), 0.0
    r = float(a.mean() / b.mean())
    return r, float((a - r * b).std() / b.mean() / math.sqrt(len(a)))


def worse(off: Tensor, other: Tensor, factor: float = 1.0) -> bool:
    """Whether errors are larger than others by more than a factor, beyond chance; a factor of the square roots."""
    r, error = _ratio(off, other)
    return r - 2 * error > factor


def share(off: Tensor, other: Tensor) -> str:
    """How much of others errors are."""
    return "{:.0%} +- {:.0%}".format(*_ratio(off, other))


def _fits(flights: Trajectories, calls: int, progress: Callable[[str], None]) -> Iterator["Candidate"]:
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


def fit(pilots: Course, base: Multistep, ts: Tensor) -> tuple[Tuned, Error, Error]:
    """The weights that `base` should be given besides on ts, the error that it is then left with, and that without."""
    q, x, mean = pilots.q, pilots.x_T, mean_like(base.around, pilots.x_T)
    truth, unit, ask = pilots.at(ts), masses(q, base.around, ts), asking(q, mean)
    extra = torch.zeros(len(ts) - 1, BAND + 1, dtype=torch.float64, device="cpu")
    bare = Tuned(base, q.sde, ts, extra.clone(), q.eta)
    known: Seen = ()
    added = torch.zeros(0, dtype=torch.float64, device="cpu")
    for n, now in enumerate(bare.plan(q, ts[:-1], ts[1:])):
        a = now.stages[0].a if base.corrector else 0.0
        extra[n, 1 : len(added) + 1] -= a * added  # the corrector redoes the last interval without what was added
        x, known = advance(with_weights(now, extra[n].tolist())._replace(kept=BAND + 1), x, known, mean, ask)
        if now.std:
            x = x.add_(pilots.noise(x, ts[n], ts[n + 1]), alpha=now.std)
        seen = torch.stack([k.flatten(1).to("cpu", torch.float64) for k in known[:BAND]], -1) * unit[n]
        added = ridge(seen, (truth[n + 1] - x).flatten(1).to("cpu", torch.float64)) * unit[n]
        extra[n, : len(added)] += added
        for w, k in zip(added.tolist(), known, strict=False):
            x = x + w * k
    before = Error.of(end(q, pilots.x_T, ts, bare, noise=pilots.noise), truth[-1])
    return replace(bare, extra=extra), Error.of(x, truth[-1]), before


def ridge(seen: Tensor, off: Tensor) -> Tensor:
    """The w (k,) with seen (B, d, k) w nearest to off (B, d); a sample off by e counts 1/(1 + (e/(3 median))^2)."""
    weight = trust(off, far=3.0)
    gram = torch.einsum("bdi,bdj,b->ij", seen, seen, weight)
    ridge = RIDGE * gram.trace() / len(gram)
    if not ridge > 0:  # the first q of an analytic start
        return torch.zeros(len(gram), dtype=torch.float64, device="cpu")
    eye = torch.eye(len(gram), dtype=torch.float64, device="cpu")
    return torch.linalg.solve(gram + ridge * eye, torch.einsum("bdi,bd,b->i", seen, off, weight))


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
