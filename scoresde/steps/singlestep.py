"""Single-step exponential integrators: Runge-Kutta methods in the variables of `exponential`, on the flow.

In y = (x~ - m)/S the flow is dy/dlambda = q g/S. A stage at the part c of the interval in lambda has y_0 plus what the
q of the stages before weigh, all of it told by two numbers: mu_0(c), the integral of g/S over that part, and mu_1(c),
that of (lambda - lambda_0)/h g/S.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..process import LinearSDE, Reverse
from ..reference import DATA, NOISE, Reference
from ..shapes import number, shown
from .euler import Churn, needs_flow
from .exponential import Exponential, Interval, Stage, stages_of

Moments = tuple[Tensor, Tensor]


class Tableau(ABC):
    """Where the stages are, and what the q of the stages before weigh in each and in the result."""

    order: ClassVar[int]

    @property
    @abstractmethod
    def c(self) -> tuple[float, ...]:
        """Of the stages but the first, which is at 0."""

    def places(self, sde: LinearSDE, t: Tensor, s: Tensor) -> list[Tensor]:
        """lambda at the stages but the first, of the intervals from t to s, (n,): parts `c` of the way."""
        low, high = sde.log_snr(t), sde.log_snr(s)
        return [low + c * (high - low) if c < 1 else high for c in self.c]

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
        """The place of the second stage, (c2,)."""
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
        """The places of the second and third stages, (1/3, 2/3)."""
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
        """The places of the second and third stages, (1/2, 1)."""
        return (0.5, 1.0)

    def rows(self, mu: list[Moments], S: list[Tensor]) -> list[list[Tensor]]:
        """With gamma = (3 c3^2 - 2 c3)/(c2 (2 - 3 c2)) = 4, and phi_2(c2) carried from its own end to that of c3."""
        (first, bent), (second, tilt), (whole, last) = mu
        gamma = 4.0
        a32 = gamma * S[0] / S[1] * bent / self.c[0] + tilt / self.c[0]
        b = last / (gamma * self.c[0] + self.c[1])
        return [[first], [second - a32, a32], [whole - (1 + gamma) * b, gamma * b, b]]


@dataclass(frozen=True)
class PseudoRungeKutta(Tableau):
    """The classical four stages, at 0, the middle of the interval in t twice, and 1, each carried from the interval's
    start by one q, and weighed 1/6, 1/3, 1/3, 1/6 (Liu et al. 2022, eq. 13). With noise prediction it is of order 4
    where sigma/alpha is linear in t, as in `EDM`, otherwise of order 2.
    """

    order: ClassVar[int] = 2

    @property
    def c(self) -> tuple[float, ...]:
        """The places of the stages in t, (1/2, 1/2, 1)."""
        return (0.5, 0.5, 1.0)

    def places(self, sde: LinearSDE, t: Tensor, s: Tensor) -> list[Tensor]:
        """lambda in the middle in t, twice, and at the end."""
        middle = sde.log_snr((t + s) / 2)
        return [middle, middle, sde.log_snr(s)]

    def rows(self, mu: list[Moments], S: list[Tensor]) -> list[list[Tensor]]:
        """[mu_0]; [0, mu_0]; [0, 0, mu_0]; mu_0 times the weights."""
        (first, _), (second, _), (third, _), (whole, _) = mu
        none = 0 * whole
        return [[first], [none, second], [none, none, third], [whole / 6, whole / 3, whole / 3, whole / 6]]


THIRD = Thirds()


def substeps(
    around: Reference, sde: LinearSDE, ts: Tensor, to: Tensor, tableau: Tableau, eta: float | Tensor = 0.0
) -> list[list[Stage]]:
    """The stages from each time of ts (n,) to that of `to` (n,), without noise."""
    low, high = sde.log_snr(ts), sde.log_snr(to)
    h, mu, decays, tops = high - low, [], [], [*tableau.places(sde, ts, to), high]
    for top in tops:
        at, mass = around.masses(low, top, eta)
        r = around.decay(low, top, eta)
        mu.append((mass.sum(1) / r, (mass * (at - low[:, None])).sum(1) / h / r))
        decays.append(r)
    times = [ts, *(sde.time(top) if c < 1 else to for top, c in zip(tops, tableau.c, strict=False)), to]
    rows = tableau.rows(mu, [around.log_S(top).exp() for top in tops])
    made = []
    for t, after, r, row in zip(times[:-1], times[1:], decays, rows, strict=True):
        alpha = sde.alpha(after)
        w = torch.stack([alpha * r * v for v in reversed(row)], 1)
        made.append(stages_of(t, around.q(sde, t), alpha / sde.alpha(ts) * r, alpha * (1 - r), w))
    return [list(of_one) for of_one in zip(*made, strict=True)]


@dataclass(frozen=True)
class SingleStep(Exponential):
    """An exponential Runge-Kutta method on the flow: one call of the network a stage. Raises ValueError if eta != 0."""

    upwards: ClassVar[bool] = True
    tableau: Tableau = Line()
    around: Reference = DATA

    def __post_init__(self) -> None:
        if not isinstance(self.tableau, Tableau):
            raise ValueError(f"tableau must be a value such as Line(), got {self.tableau!r}")
        if not isinstance(self.around, Reference):
            raise ValueError(f"around must be a Reference, got {self.around!r}")

    @property
    def order(self) -> int:  # type: ignore[override]
        """That of the tableau."""
        return self.tableau.order

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """Raises ValueError unless eta is 0: it is a step of the flow."""
        needs_flow(p)

    def plan(self, p: Reverse, t: Tensor, s: Tensor, hops: int = 0) -> list[Interval]:
        """The stages of each interval."""
        rows = substeps(self.around, p.sde, t, s, self.tableau)
        return [Interval(a, b, row, 0.0, 0) for a, b, row in zip(t.tolist(), s.tolist(), rows, strict=True)]


def EDMHeun(churn: float = 0.0, low: float = 0.0, high: float = 1e300, noise: float = 1.0) -> Churn:
    """The stochastic sampler of Karras et al. (2022, Algorithm 2), for any linear SDE, on the flow: churn, and Heun's
    method in sigma~. Their S_churn, S_tmin, S_tmax and S_noise; with churn = 0 it draws no noise. Where sigma = 0 at
    the end, the last interval is Euler's, as theirs: 2n - 1 calls, otherwise 2n.
    """
    return Churn(SingleStep(Line(1.0, centred=True), NOISE), churn, low, high, noise)


def _order(order: int) -> int:
    """Return order; raise ValueError unless there is a method of that order."""
    if isinstance(order, np.ndarray | Tensor) or order not in (2, 3):
        raise ValueError(f"order must be 2 or 3, got {shown(order)}")
    return order


def DPMSolver(order: int = 2) -> SingleStep:
    """DPM-Solver-2 or -3 (Lu et al. 2022a, Algorithms 1 and 2): eps, with `order` network calls a step."""
    return SingleStep(Line(0.5, centred=True) if _order(order) == 2 else THIRD, NOISE)


def DPMSolverPP2S() -> SingleStep:
    """DPM-Solver++(2S) (Lu et al. 2022b, Algorithm 1, r = 1/2): E[x_0 | x_t], with two network calls a step."""
    return SingleStep(Line(0.5, centred=True))


def RES(order: int = 2) -> SingleStep:
    """The single-step Refined Exponential Solver of order 2 or 3 (Zhang et al. 2023): E[x_0 | x_t], with `order`
    network calls a step and coefficients that meet the order conditions of stiff problems.
    """
    return SingleStep(Line(0.5) if _order(order) == 2 else Refined())
