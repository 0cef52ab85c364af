"""Single-step exponential integrators: Runge-Kutta methods in the variables of `exponential`, on the flow.

In y = (x~ - m)/S the flow is dy/dlambda = q g/S. A stage at the part c of the interval in lambda has y_0 plus what the
q of the stages before weigh, all of it told by two numbers: mu_0(c), the integral of g/S over that part, and mu_1(c),
that of (lambda - lambda_0)/h g/S.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .exponential import DATA, NOISE, Exponential, Interval, Reference, Stage, Started, clean, off_grid, rows_of
from .noise import Noise
from .predict import needs_flow
from .sample import Step
from .sde import LinearSDE, Reverse
from .shapes import number

Moments = tuple[Tensor, Tensor]


class Tableau(ABC):
    """Where the stages are, and what the q of the stages before weigh in each and in the result."""

    order: ClassVar[int]

    @property
    @abstractmethod
    def c(self) -> tuple[float, ...]:
        """Of the stages but the first, which is at 0."""

    @abstractmethod
    def rows(self, mu: list[Moments], S: list[Tensor]) -> list[list[Tensor]]:
        """For each stage but the first, then for the result, the weights in y of the q so far, first stage first.

        mu: the moments of [0, c] for those stages and of the whole; S: at the same ends.
        """


@dataclass(frozen=True)
class Line(Tableau):
    """Two stages, at 0 and c: q is the line through both (order 2; Hochbruck & Ostermann 2010, eq. 2.39).

    centred: the line is taken at the middle of the interval instead of being integrated (DPM-Solver-2).
    """

    c2: float = 0.5
    centred: bool = False
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        number("c2", self.c2, above=0, most=1)

    @property
    def c(self) -> tuple[float, ...]:
        """(c2,)."""
        return (self.c2,)

    def rows(self, mu: list[Moments], S: list[Tensor]) -> list[list[Tensor]]:
        """[mu_0(c)]; [mu_0 - mu_1/c, mu_1/c]."""
        (start, _), (whole, tilt) = mu
        slope = (whole / 2 if self.centred else tilt) / self.c2
        return [[start], [whole - slope, slope]]


@dataclass(frozen=True)
class Thirds(Tableau):
    """Three stages, at 0, 1/3 and 2/3, each on the line through the first and the last before it (order 3;
    DPM-Solver-3, Lu et al. 2022a, Algorithm 2; without the exponential, Heun's third-order method).
    """

    order: ClassVar[int] = 3

    @property
    def c(self) -> tuple[float, ...]:
        """(1/3, 2/3)."""
        return (1 / 3, 2 / 3)

    def rows(self, mu: list[Moments], S: list[Tensor]) -> list[list[Tensor]]:
        """[mu_0]; [mu_0 - mu_1/c, mu_1/c]; the same with a 0 between."""
        (first, _), (second, tilt), (whole, last) = mu
        return [
            [first],
            [second - tilt * 3, tilt * 3],
            [whole - last * 3 / 2, 0 * whole, last * 3 / 2],
        ]


@dataclass(frozen=True)
class Refined(Tableau):
    """Three stages, at 0, 1/2 and 1 (order 3, also where the linear part is stiff; Hochbruck & Ostermann 2005, eq.
    5.9; RES, Zhang et al. 2023).
    """

    order: ClassVar[int] = 3

    @property
    def c(self) -> tuple[float, ...]:
        """(1/2, 1)."""
        return (0.5, 1.0)

    def rows(self, mu: list[Moments], S: list[Tensor]) -> list[list[Tensor]]:
        """With gamma = (3 c3^2 - 2 c3)/(c2 (2 - 3 c2)) = 4, and phi_2(c2) carried from its own end to that of c3."""
        (first, bent), (second, tilt), (whole, last) = mu
        gamma = 4.0
        a32 = gamma * S[0] / S[1] * bent / self.c[0] + tilt / self.c[0]
        b = last / (gamma * self.c[0] + self.c[1])
        return [[first], [second - a32, a32], [whole - (1 + gamma) * b, gamma * b, b]]


THIRD = Thirds()


def stages(around: Reference, sde: LinearSDE, ts: Tensor, to: Tensor, tableau: Tableau) -> list[list[Stage]]:
    """The stages from each time of ts (n,) to that of `to` (n,)."""
    low, high = sde.log_snr(ts), sde.log_snr(to)
    h, mu, decays, tops = high - low, [], [], [low + c * (high - low) if c < 1 else high for c in (*tableau.c, 1.0)]
    for top in tops:
        at, mass = around.masses(low, top, 0.0)
        r = around.decay(low, top, 0.0)
        mu.append((mass.sum(1) / r, (mass * (at - low[:, None])).sum(1) / h / r))
        decays.append(r)
    times = [ts, *(sde.time(top) if c < 1 else to for top, c in zip(tops, tableau.c, strict=False)), to]
    rows = tableau.rows(mu, [around.log_S(top).exp() for top in tops])
    made = []
    for t, after, r, row in zip(times[:-1], times[1:], decays, rows, strict=True):
        alpha = sde.alpha(after)
        w = torch.stack([alpha * r * v for v in reversed(row)], 1)
        made.append(rows_of(t, *around.q(sde, t), alpha / sde.alpha(ts) * r, alpha * (1 - r), w))
    return [list(of_one) for of_one in zip(*made, strict=True)]


@dataclass(frozen=True)
class SingleStep(Exponential):
    """An exponential Runge-Kutta method on the flow: one call of the network a stage. Raises ValueError if eta != 0."""

    tableau: Tableau = Line()
    around: Reference = DATA

    def __post_init__(self) -> None:
        if not isinstance(self.tableau, Tableau):
            raise ValueError(f"tableau must be a value such as Line(), got {self.tableau!r}")

    @property
    def order(self) -> int:  # type: ignore[override]
        """That of the tableau."""
        return self.tableau.order

    def check(self, p: Reverse, ts: Tensor) -> None:
        """eta is 0."""
        needs_flow(p)

    def intervals(self, p: Reverse, ts: Tensor) -> list[Interval]:
        """All coefficients on ts."""
        plan = stages(self.around, p.sde, ts[:-1], ts[1:], self.tableau)
        return [Interval(t, s, row, 0.0, 0) for t, s, row in zip(ts[:-1], ts[1:], plan, strict=True)]


@dataclass(frozen=True)
class EDMHeun(Step):
    """The stochastic sampler of Karras et al. (2022, Algorithm 2), for any linear SDE: x~ is given the noise that takes
    it from sigma~ to (1 + gamma) sigma~, never beyond that of T, gamma = min(churn/n, sqrt(2) - 1) with n the intervals
    of the grid, and then Heun's method in sigma~ goes to the next time; on the flow.

    churn, low, high, noise: their S_churn, S_tmin, S_tmax (in sigma~) and S_noise. With churn = 0 it draws no noise.
    Where sigma = 0 at the grid's end, the last interval is Euler's, as theirs: 2n - 1 calls, otherwise 2n.
    """

    churn: float = 0.0
    low: float = 0.0
    high: float = 1e300
    noise: float = 1.0
    order: ClassVar[int] = 2
    fixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("churn", self.churn, least=0)
        number("high", self.high, least=number("low", self.low, least=0))
        number("noise", self.noise, least=0)

    def check(self, p: Reverse, ts: Tensor) -> None:
        """eta is 0."""
        needs_flow(p)

    def start(self, p: Reverse, ts: Tensor) -> "Step":
        """With its coefficients on ts."""
        self.check(p, ts)
        sde, t, s = p.sde, ts[:-1], ts[1:]
        sigma = (-sde.log_snr(t)).exp()
        gamma = min(self.churn / len(t), math.sqrt(2) - 1) * ((self.low <= sigma) & (sigma <= self.high)).to(sigma)
        u = torch.where(gamma > 0, sde.time(sde.log_snr(t) - torch.log1p(gamma)).clamp(max=sde.T), t)
        a, v = sde.transition(u, t)
        n = len(t) - int(sde.var(ts[-1]) == 0)
        plan = stages(NOISE, sde, u[:n], s[:n], Line(1.0, centred=True))
        intervals = [Interval(*row, 0.0, 0) for row in zip(u[:n], s[:n], plan, strict=True)]
        intervals += [clean(sde, u[i], s[i]) for i in range(n, len(t))]
        kicks = zip(t, u, a.tolist(), (self.noise * v.clamp_min(0).sqrt()).tolist(), strict=True)
        return _Churned(self, Started(SingleStep(around=NOISE), intervals), iter(list(kicks)))

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        return self.start(p, torch.stack([t, s]))(p, x, t, s, noise)


@dataclass(frozen=True)
class _Churned(Step):
    """`step` after a kick: its time t, the time u that it leads to, and (a, std) of x_u | x_t."""

    of: EDMHeun
    step: Started
    kicks: Iterator[tuple[Tensor, Tensor, float, float]]

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        at, u, a, std = next(self.kicks, (None, t, 1.0, 0.0))
        if t != at:
            raise off_grid(self.of, t, s)
        return self.step(p, a * x + std * noise(x, t, u) if u > t else x, u, s, noise)


def DPMSolver(order: int = 2) -> SingleStep:
    """DPM-Solver-2 or -3 (Lu et al. 2022a, Algorithms 1 and 2): eps, with `order` network calls a step."""
    if order not in (2, 3):
        raise ValueError(f"order must be 2 or 3, got {order!r}")
    return SingleStep(Line(0.5, centred=True) if order == 2 else THIRD, NOISE)


def DPMSolverPP2S() -> SingleStep:
    """DPM-Solver++(2S) (Lu et al. 2022b, Algorithm 1, r = 1/2): E[x_0 | x_t], with two network calls a step."""
    return SingleStep(Line(0.5, centred=True))


def RES(order: int = 2) -> SingleStep:
    """The single-step Refined Exponential Solver of order 2 or 3 (Zhang et al. 2023): E[x_0 | x_t], with `order`
    network calls a step and coefficients that meet the order conditions of stiff problems.
    """
    if order not in (2, 3):
        raise ValueError(f"order must be 2 or 3, got {order!r}")
    return SingleStep(Line(0.5) if order == 2 else Refined())
