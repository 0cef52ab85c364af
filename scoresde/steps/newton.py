"""A fitted solver improved as a whole, by its error at the end.

Weights that are found interval by interval leave each interval nearly right, and know nothing of what its error becomes
later, nor of better times. Here all weights and the inner times are changed together, so that the pilots' last states
come nearer to the flow's: the method of Gauss and Newton, damped (Levenberg 1944; Marquardt 1963), on squares in which
samples that are far off count less. Derivatives are difference quotients: a change in one interval asks the network
again in the intervals after it, and no gradient is needed of it. Between two derivatives the last one follows what was
seen, by Broyden's update (1965). A second set of pilots says which solver on the way is kept, so that none is kept that
suits the first set alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..noise import Noise, iid
from ..process import Reverse
from .exponential import Interval, Seen, advance, asking
from .pilots import mean_like
from .tuned import BAND, Tuned, distance, masses

SMALL = 1e-3
"""The change in difference quotients, in units of an interval's mass or length."""
RIDGE = 1e-4
"""What pulls the changes to 0, in units of the squares of their derivatives: the q are nearly dependent."""
LONGEST = 0.5
"""The most that a step changes anything, in the same units."""
SHORT = 0.02
"""An interval may not become shorter than this part of what it was."""
UPDATES = 10
"""Steps by one derivative."""
TRIES = 4
"""Steps that are tried, each damped more, before there is none."""
PATIENCE = 5
"""Steps in a row that bring nothing on the second set."""
STEPS = 40
LEAST = 16
"""Pilots with which a derivative is worth having."""
COORDINATES = 4096
"""Of a sample that derivatives are taken of; of larger ones so many are drawn."""


class Ends(NamedTuple):
    """Starts x_T and where the flow takes them, (B, *D), with the noise on the way if there is any, which is drawn."""

    x_T: Tensor
    end: Tensor
    noise: Noise = iid()

    def first(self, n: int) -> "Ends":
        """Of the first n."""
        return Ends(self.x_T[:n], self.end[:n], self.noise)


def trust(off: Tensor, far: float = 1.0) -> Tensor:
    """What a sample counts that is off by e, the root mean square of its row: 1/(1 + (e/(far median))^2)."""
    e = off.square().mean(1).sqrt()
    return 1 / (1 + (e / (far * e.median()).clamp_min(1e-300)).square())


def typical(off: Tensor) -> float:
    """The mean of the square roots of the errors (B,), which medians and the far samples both enter; infinite if one is
    not finite.
    """
    return float(off.double().sqrt().mean().nan_to_num(torch.inf, torch.inf))


@dataclass(frozen=True, eq=False)
class Family:
    """The solvers of q near one: theta changes the weights of the last q on each interval, in units of its mass, and
    then the inner times, in units of the shorter interval beside them; with eta > 0 the weights alone, since the noise
    of other times leads elsewhere.
    """

    q: Reverse
    solver: Tuned

    @property
    def n(self) -> int:
        """Intervals."""
        return len(self.solver.ts) - 1

    @property
    def weights(self) -> list[tuple[int, int]]:
        """(interval, place of q from the newest) of each weight; an analytic first q is 0, and weighs nothing."""
        unseen = int(self.solver.base.analytic)
        return [(n, j) for n in range(self.n) for j in range(min(n + 1 - unseen, BAND))]

    @property
    def size(self) -> int:
        """Of theta."""
        return len(self.weights) + self.inner

    @property
    def inner(self) -> int:
        """Times that may change."""
        return 0 if self.solver.eta else self.n - 1

    @property
    def cost(self) -> int:
        """Evaluations for one pilot that a derivative costs."""
        after = sum(self.n - n - 1 for n, _ in self.weights)
        times = sum(self.n - n + 1 for n in range(1, self.inner + 1))
        return self.n + after + times - int(self.solver.base.analytic) * (1 + (self.inner > 0))

    @cached_property
    def masses(self) -> Tensor:
        """Those of its intervals."""
        return masses(self.q, self.solver.around, self.solver.ts)

    def at(self, theta: Tensor) -> Tuned | None:
        """The solver, None where an interval would be too short."""
        sde, ts = self.q.sde, self.solver.ts.clone()
        lam, extra = sde.log_snr(ts), self.solver.extra.clone()
        h = lam.diff()
        if self.inner:
            moved, change = lam.clone(), theta[len(self.weights) :]
            moved[1:-1] += change * torch.minimum(h[:-1], h[1:])
            if (moved.diff() < SHORT * h).any():
                return None
            ts[1:-1] = torch.where(change == 0, ts[1:-1], sde.time(moved)[1:-1])
        rows, places = torch.tensor(self.weights, device="cpu").T
        extra[rows, places] += theta[: len(self.weights)] * self.masses[rows]
        return replace(self.solver, ts=ts, extra=extra)

    def plan(self, theta: Tensor) -> list[Interval]:
        """Its intervals, none where there is no such solver."""
        found = self.at(theta)
        return [] if found is None else found.plan(self.q, found.ts[:-1], found.ts[1:])


class Runs:
    """Solvers of a family from the same starts, whose coordinates are compared with where the flow leads."""

    def __init__(self, family: Family, pilots: Ends) -> None:
        self.family, self.pilots = family, pilots
        self.mean = mean_like(family.solver.around, pilots.x_T)
        self.ask = asking(family.q, self.mean)
        d = pilots.end[0].numel()
        drawn = torch.randperm(d, generator=torch.Generator().manual_seed(0), device="cpu")[:COORDINATES]
        self.seen = (drawn if d > COORDINATES else torch.arange(d, device="cpu")).to(pilots.end.device)

    def __call__(self, plan: list[Interval], start: tuple[Tensor, Seen] | None = None, first: int = 0) -> Tensor:
        """The last states; after the intervals from `first` on, from what is known there, unless that is the start."""
        at = start or (self.pilots.x_T, ())
        for n, now in enumerate(plan[first:], first):
            at = self.next(n, now, *at)
        return at[0]

    def next(self, n: int, now: Interval, x: Tensor, known: Seen) -> tuple[Tensor, Seen]:
        """What is known after the n-th interval."""
        x, known = advance(now, x, known, self.mean, self.ask)
        t, s = self.family.solver.ts[n : n + 2]
        return (x.add_(self.pilots.noise(x, t, s), alpha=now.std) if now.std else x), known

    def coordinates(self, x: Tensor) -> Tensor:
        """Those that are compared, (B, d)."""
        return x.flatten(1)[:, self.seen].to("cpu", torch.float64)

    def off(self, x: Tensor) -> Tensor:
        """What the last states are off by there."""
        return self.coordinates(x - self.pilots.end)

    def derivative(self, theta: Tensor) -> Tensor:
        """Of the last states by theta, (B, d, size of theta)."""
        plan = self.family.plan(theta)
        at: list[tuple[Tensor, Seen]] = [(self.pilots.x_T, ())]
        for n, now in enumerate(plan):
            at.append(self.next(n, now, *at[-1]))
        end, columns = self.coordinates(at[-1][0]), []
        unit = self.family.masses.tolist()
        for n, j in self.family.weights:
            x, known = at[n + 1]
            x = self(plan, (x.add(known[j], alpha=SMALL * unit[n]), known), n + 1)
            columns.append((self.coordinates(x) - end) / SMALL)
        for n in range(1, self.family.inner + 1):
            change = torch.zeros_like(theta)
            change[len(self.family.weights) + n - 1] = SMALL
            way = 1 if self.family.at(theta + change) else -1  # where the next interval would be too short
            moved = self.family.plan(theta + way * change)
            columns.append((self.coordinates(self(moved, at[n - 1], n - 1)) - end) / (way * SMALL))
        return torch.stack(columns, -1)


@dataclass
class Descent:
    """On its way: theta, what the last states are off by there, the derivative, and how much a step is damped."""

    runs: Runs
    theta: Tensor
    off: Tensor
    J: Tensor
    damping: float = 1e-2

    @property
    def typical(self) -> float:
        """Of the errors."""
        return typical(self.off.square().mean(1).sqrt())

    def step(self) -> bool:
        """Go where the squares, by the derivative, are least, if the errors are smaller there, and let the derivative
        follow; with more and more damping, and at last not at all.
        """
        weight = trust(self.off)
        gram = torch.einsum("bdi,bdj,b->ij", self.J, self.J, weight)
        slope = torch.einsum("bdi,bd,b->i", self.J, self.off, weight)
        scale = gram.diagonal().clamp_min(1e-3 * gram.diagonal().mean()).clamp_min(1e-300)
        for _ in range(TRIES):
            pull = RIDGE * scale
            change = -torch.linalg.solve(gram + torch.diag(pull + self.damping * scale), slope + pull * self.theta)
            if not change.isfinite().all():
                return False
            change = change * min(1.0, LONGEST / max(float(change.abs().max()), 1e-300))
            plan = self.runs.family.plan(self.theta + change)
            if plan:
                off = self.runs.off(self.runs(plan))
                if typical(off.square().mean(1).sqrt()) < self.typical:
                    seen = (off - self.off - self.J @ change) / change.square().sum()
                    self.J, self.theta, self.off = self.J + seen[..., None] * change, self.theta + change, off
                    self.damping = max(self.damping / 4, 1e-6)
                    return True
            self.damping *= 4
        return False


def improve(q: Reverse, solver: Tuned, first: Ends, second: Ends, left: Callable[[], int], least: int = LEAST) -> Tuned:
    """The solver near `solver` whose last states are nearest to the flow's on the second pilots, of those that are met
    on the way to the best on the first.

    left: the evaluations of the network that there still are, each of the score for one sample; no more are spent. If
    two derivatives would need more with all pilots of the first set, fewer are taken, but at least `least`. The solver
    itself is returned where there are too few.
    """
    family = Family(q, solver)
    few = min(len(first.x_T), left() // (2 * family.cost + 2 * UPDATES * family.n))
    look = family.n * len(second.x_T)
    one = family.n * TRIES * few + look
    derivative = few * (family.cost + family.n) + one
    if few < min(least, len(first.x_T)) or not family.size or left() < look + derivative:
        return solver
    runs, held = Runs(family, first.first(few)), Runs(family, second)
    theta = torch.zeros(family.size, dtype=torch.float64, device="cpu")
    best, kept, stale, taken = _typical_of(held, theta), theta, 0, 0
    while taken < STEPS and stale < PATIENCE and left() >= derivative:
        way = Descent(runs, theta, runs.off(runs(family.plan(theta))), runs.derivative(theta))
        before = way.typical
        for _ in range(UPDATES):
            now = way.typical
            if left() < one or not way.step():
                break
            taken += 1
            there = _typical_of(held, way.theta)
            stale = 0 if there < best else stale + 1
            if there < best:
                best, kept = there, way.theta
            if way.typical > 0.99 * now or stale == PATIENCE:
                break
        theta = way.theta
        if not way.typical < 0.998 * before:
            break
    return family.at(kept) or solver


def _typical_of(runs: Runs, theta: Tensor) -> float:
    return typical(distance(runs(runs.family.plan(theta)), runs.pilots.end))
