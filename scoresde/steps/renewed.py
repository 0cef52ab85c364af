"""A solver fitted to a reverse process with noise, eta > 0.

A step along the flow to a time u < s and back to s by noise (`Renoised`) leaves all marginals exact if the flow is
solved exactly, for any data and any eta. So there is a truth for each sample again: pilots go along the flow, solved
finely, and back by the noise of their own, and a solver that is given the same noise should be where they are. What it
is off by there bounds how far its law is from the exact one, in the distance W_2 of optimal transport.

q is not smooth along such a path. What the last q tell of the way to u is therefore a question to the pilots, which the
regression of `fit` answers on each interval, and then all weights are improved together by the error at the end; times
stay as they are, since the noise of other times leads elsewhere. A second set of pilots decides, and a third one says
how far the chosen one is from exact.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch import Tensor

from .. import grid
from ..noise import Noise, iid
from ..process import Reverse
from ..reference import DATA, Reference
from .fit import Candidate, Sets, best, fit, improved, noise_amplification, off_of, surveyed
from .multistep import Multistep
from .newton import Ends, typical
from .pilots import SCREENED, Metered, Pilots, fine_step, parts, residual
from .step import sample
from .stochastic import there_and_back
from .tuned import BAND, Error, Tuned, Tuning

TRIED = ((0.05, True), (0.2, True), (1.0, True), (0.2, False))
"""What is added to the density of the grid in units of its mean, and whether the first node is taken without a call."""
USUAL = {"one node": (1, DATA), "two nodes": (2, DATA)}
"""Methods that need no fit, by their nodes: DDPM's step, and the second-order one of DPM-Solver++ on the way to u."""


class Given:
    """Noise that was drawn for the intervals of ts, (n, B, *D): its first rows are those of fewer samples."""

    def __init__(self, ts: Tensor, like: Tensor, generator: torch.Generator) -> None:
        draw = iid(generator)
        self.z = {float(t): draw(like, t, s) for t, s in zip(ts[:-1], ts[1:], strict=True)}

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.z[float(t)][: len(x)]


class Restarts:
    """Pilots of p, eta > 0, on the intervals of ts: states (n + 1, B, *D), the flow between solved in `fine` calls."""

    def __init__(self, p: Reverse, ts: Tensor, x_T: Tensor, seed: int, around: Reference, fine: int) -> None:
        self.q, self.x_T, self.ts = p, x_T, ts
        self.noise: Noise = Given(ts, x_T, torch.Generator().manual_seed(seed))
        sde, flow = p.sde, replace(p, eta=0.0)
        u, a, std = there_and_back(p, ts[:-1], ts[1:])
        low, long = sde.log_snr(ts[:-1]), sde.log_snr(u) - sde.log_snr(ts[:-1])
        parts = (fine * long / long.sum()).ceil().long().clamp_min(4)
        self.states = [x_T]
        for n, (c, loud) in enumerate(zip(a.tolist(), std.tolist(), strict=True)):
            part = torch.linspace(0, 1, int(parts[n]) + 1, dtype=torch.float64, device="cpu")
            way = sde.time(low[n] + long[n] * part)
            way[0], way[-1] = ts[n], u[n]
            x = c * sample(flow, self.states[-1], way, fine_step(around))
            self.states.append(x.add_(self.noise(x, ts[n], ts[n + 1]), alpha=loud) if loud else x)

    def at(self, ts: Tensor) -> list[Tensor]:
        """The states at the times that they were made for."""
        return self.states

    @property
    def ends(self) -> Ends:
        """The last states, and what leads there."""
        return Ends(self.x_T, self.states[-1], self.noise)


@dataclass
class OnGrids:
    """Three sets of pilots of p, on any grid, once each."""

    p: Reverse
    starts: list[Tensor]
    seed: int
    around: Reference
    fine: int
    made: dict[tuple[int, int | None, tuple[float, ...]], Restarts] = field(default_factory=dict)

    def __call__(self, which: int, ts: Tensor, n: int | None = None) -> Restarts:
        """The first n of one."""
        key = which, n, tuple(ts.tolist())
        if key not in self.made:
            seed = 3 * self.seed + which + 1
            self.made[key] = Restarts(self.p, ts, self.starts[which][:n], seed, self.around, self.fine)
        return self.made[key]


def bare_methods(p: Reverse, calls: int, around: Reference) -> Iterator[Candidate]:
    """The methods that need no fit, on the usual grids."""
    spacings = grid.usual(around).items()
    for (name, (nodes, centre)), (spacing, make) in product(USUAL.items(), spacings):
        ts = make(p.sde, calls)
        yield Candidate(f"{name} on grid.{spacing}", bare(p, Multistep(nodes, around=centre), ts), ts)


def bare(p: Reverse, base: Multistep, ts: Tensor) -> Tuned:
    """A method on the way to u, with nothing added to its weights."""
    return Tuned(base, p.sde, ts, torch.zeros(len(ts) - 1, BAND + 1, dtype=torch.float64, device="cpu"), p.eta)


def renewed(
    p: Reverse, like: Tensor, calls: int, around: Reference | None, pilots: Pilots, progress: Callable[[str], None]
) -> Tuning:
    """`tune` of a process with noise, whose arguments are checked. What is found is a `Tuned` step, and the errors are
    those with the noise of the pilots. Their root mean square times the root of the dimension bounds the distance W_2
    of the law that is sampled from that of the data at t_min, but for what the prior is off by.
    """
    fine, starts, meter = pilots.calls(calls), pilots.sets(p, like), Metered(p.score)
    p = replace(p, score=meter)
    flow = replace(p, eta=0.0)
    around, flights, rough = surveyed(flow, starts[0], around, fine, progress)
    sized, lam, density = residual(flights)
    sets, fitted = OnGrids(p, starts, pilots.seed, flights.around, fine), []
    for n, (floor, analytic) in enumerate(TRIED, 1):
        progress(f"weights, attempt {n} of {len(TRIED)}")
        ts = grid.equal(p.sde, calls + analytic, lam, density + floor * density.mean())
        base = Multistep(1, around=sized, analytic=analytic)
        step, after, before = fit(sets(0, ts), base, ts)
        fitted += [Candidate("tuned weights", step, ts, after), Candidate("tuned grid", bare(p, base, ts), ts, before)]
    progress("a second set of pilots, and methods that need no fit")
    few = max(SCREENED, parts(p.score))
    at_first = {one: typical(off_of(p, one, sets(1, one.ts, few).ends)) for one in bare_methods(p, calls, around)}
    other = min(at_first, key=lambda one: at_first[one])
    off = {one: off_of(p, one, sets(1, one.ts).ends) for one in (*fitted, other)}
    chosen = best(fitted, off)
    kept = pilots.n * (fine + 8 * calls + 5)  # for the third set, whose ways are of four parts or more, and checks
    left = lambda: (pilots.evaluations - meter.evaluations) // meter.each - kept  # noqa: E731
    of = Sets(*(sets(k, chosen.ts).ends for k in range(2)))
    for whole in improved(p, chosen, other, off, of, left, progress):
        fitted.append(whole)
        off[whole] = off_of(p, whole, of.second)
    found = best([*fitted, other], off)
    progress("a third set of pilots")
    last = Error.over(off_of(p, found, sets(2, found.ts).ends))
    assert isinstance(found.step, Tuned)
    loud = noise_amplification(found.step, p, found.ts)
    said = (found.step, found.ts, p.sde, found.name, found is not other, calls, found.left)
    validation = (Error.over(off[found]), last, other.name, Error.over(off[other]))
    return Tuning(*said, *validation, loud, evaluations=meter.evaluations, roughness=rough)


def bounds(calls: int, pilots: Pilots = Pilots(), known: bool = True, flows: int = 1) -> tuple[int, int]:
    """Between which numbers the evaluations of the score for one sample are that a fit with noise takes where nothing
    is improved together, as `least` tells it of a flow: each way to u is solved in four parts at least.
    """
    fine, few = pilots.calls(calls), min(pilots.n, max(SCREENED, flows))
    grids = len(grid.usual()) * len(USUAL)
    ways, tried = pilots.n * (2 * len(TRIED) + 2) + few * len(grid.usual()), 2 * len(TRIED)
    flights = pilots.n * (fine + 2 + (0 if known else max(fine // 2, 2)))
    solved = pilots.n * (tried + tried + 2) * calls + few * grids * calls
    fewest = flights + ways * fine + solved
    return fewest, fewest + 5 * ways * (calls + 1)
