"""STORK, stabilised Taylor orthogonal Runge-Kutta (Tan, Wang, Bertozzi & Ryu 2025, arXiv 2505.24210).

A stabilised Runge-Kutta method takes many stages, for a region of stability that grows with their square, and here no
stage but the first asks the network: what it would say at a stage is its Taylor series at the interval's start, whose
derivatives are divided differences of what it said before. So an interval costs one call. The method is that of Runge,
Kutta and Gegenbauer, of second order (Skaras, Saxton, Meyer & Aslam 2021): for dz/du = F and intervals of size h,

    Y_0 = z,    Y_1 = z + w h F_0,    w = 6/((S + 4)(S - 1)),
    Y_j = m_j Y_(j-1) + n_j Y_(j-2) + (1 - m_j - n_j) z + w m_j h (F_(j-1) - a_(j-1) F_0),    j = 2, ..., S,
    m_j = (2j + 1)/j b_j/b_(j-1),    n_j = -(j + 1)/j b_j/b_(j-2),    a_j = 1 - b_j (j + 1)(j + 2)/2,
    b_j = 4 (j - 1)(j + 4)/(3 j (j + 1)(j + 2)(j + 3)),    b_0 = 1,    b_1 = 1/3,

F_j being taken at Y_j and at u_0 + h c_j, whose c_j the same recursion yields for F = 1. With noise, F = a(u) z + b(u)
eps, of which eps alone is a Taylor series; with velocities F is all of it, and the stages are a quadrature.

The published code has equal steps' first derivative beside the second derivative on any grid, and the stages of another
family's times; here the series is the polynomial through the last nodes, and the times are those above. It also has a
method of fourth order (ROCK4), which is left out: the series are no better than their second derivative. Of forms
and derivatives the defaults had the least error on the digits mixture under VP at 6 and at 10 calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from scoresde import LinearSDE, grid

from .common import Grid, Problem, straight
from .learned import Carry, Learned, Task, distance

Numbers = Callable[[LinearSDE, Tensor], Tensor]


@dataclass(frozen=True)
class Form:
    """A way to write the flow, dz/du = a z + b e, with e what is asked of the network at y and s."""

    u: Numbers
    """Of times."""
    scale: Numbers
    """z = y scale, at times."""
    e: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Of D, eps and s."""
    linear: Callable[[LinearSDE, Tensor], tuple[Tensor, Tensor]]
    """(a, b), at values of u."""


def _eps(D: Tensor, eps: Tensor, s: Tensor) -> Tensor:
    return eps


def _in_t(sde: LinearSDE, t: Tensor) -> tuple[Tensor, Tensor]:
    return sde.f(t), sde.g2(t) / (2 * sde.sigma(t))


def _alone(sde: LinearSDE, u: Tensor) -> tuple[Tensor, Tensor]:
    return 0 * u, 1 + 0 * u


def _level(sde: LinearSDE, t: Tensor) -> Tensor:
    return (-sde.log_snr(t)).exp()


IN_T = Form(lambda sde, t: t, lambda sde, t: sde.alpha(t), _eps, _in_t)
"""x over t: dx/dt = f x + g^2/(2 sigma) eps, the paper's."""
STRAIGHT = Form(
    lambda sde, t: torch.sigmoid(-sde.log_snr(t)),
    lambda sde, t: 1 / (1 + _level(sde, t)),
    lambda D, eps, s: eps - D,
    _alone,
)
"""y/(1 + s) over r = s/(1 + s), the straight path: the velocity is eps - D, the paper's for flow matching."""


@dataclass(frozen=True)
class STORK(Learned):
    """STORK-2, of which nothing but the grid is chosen by pilots."""

    form: Form = STRAIGHT
    nodes: Grid | None = None
    """None for that of the usual grids, and of equal steps on the straight path, with which the pilots end best."""
    derivatives: int = 2
    """Of the Taylor series, 0 to 2 or more; as many as nodes allow."""
    stages: int = 50
    """S, the paper's."""
    name: ClassVar[str] = "STORK"
    source: ClassVar[str] = "Tan et al. 2025"

    def fit(self, task: Task) -> Carry:
        """The method on its grid."""
        task.enough(self)
        if self.nodes:
            return self.on(task, self.nodes(task.sde, task.calls))
        usual = [make(task.sde, task.calls) for make in (*grid.usual(task.around).values(), straight)]
        carries = [self.on(task, ts) for ts in usual]
        off = [float(distance(carry(task.problem, task.starts), task.ends).mean()) for carry in carries]
        return carries[off.index(min(off))]

    def on(self, task: Task, ts: Tensor) -> Carry:
        """The method on times ts."""
        u, scale, s = self.form.u(task.sde, ts), self.form.scale(task.sde, ts), task.problem.levels(ts)
        rows = [
            weights(task.sde, self.form, u[max(0, k - self.derivatives) : k + 2].flip(0), self.stages)
            for k in range(task.calls)
        ]

        @torch.no_grad()
        def carry(problem: Problem, y: Tensor) -> Tensor:
            z, known = y * scale[0], []
            for k, (own, *row) in enumerate(rows):
                y = z / scale[k]
                D = problem.denoise(y, s[k])
                known = [self.form.e(D, (y - D) / s[k], s[k]), *known]
                z = own * z + sum(w * e for w, e in zip(row, known, strict=False))
            return z / scale[-1]

        return carry


def weights(sde: LinearSDE, form: Form, u: Tensor, stages: int) -> list[float]:
    """What z and the last e, newest first, weigh in z after the interval from u[1] to u[0]; u: (nodes + 1,)."""
    h, nodes = float(u[0] - u[1]), u[1:].numpy()
    c = times(stages)
    a, b = (v.tolist() for v in form.linear(sde, u[1] + h * torch.from_numpy(c)))
    unit = np.eye(len(nodes) + 1)

    def slope(j: int, Y: np.ndarray) -> np.ndarray:
        at = nodes[0] + h * c[j]
        series = [np.prod([(at - other) / (node - other) for other in nodes if other != node]) for node in nodes]
        return h * (a[j] * Y + b[j] * np.array([0.0, *series]))

    return recursion(unit[0], slope, stages).tolist()


def times(stages: int) -> np.ndarray:
    """c_0, ..., c_(S-1): 0, w, and w (j + 4)(j - 1)/6."""
    j = np.arange(stages, dtype=float)
    c = (j + 4) * (j - 1) / ((stages + 4) * (stages - 1))
    c[:2] = 0.0, 6 / ((stages + 4) * (stages - 1))
    return c


def recursion(z: np.ndarray, slope: Callable[[int, np.ndarray], np.ndarray], stages: int) -> np.ndarray:
    """Y_S, from z and h F_j = slope(j, Y_j)."""
    w = times(stages)[1]
    b = [1.0, 1 / 3, *(4 * (j - 1) * (j + 4) / (3 * j * (j + 1) * (j + 2) * (j + 3)) for j in range(2, stages + 1))]
    first = slope(0, z)
    before, Y = z, z + w * first
    for j in range(2, stages + 1):
        m, n = (2 * j + 1) / j * b[j] / b[j - 1], -(j + 1) / j * b[j] / b[j - 2]
        a = 1 - b[j - 1] * j * (j + 1) / 2
        before, Y = Y, m * Y + n * before + (1 - m - n) * z + w * m * (slope(j - 1, Y) - a * first)
    return Y
