"""DyWeight (Zhao et al. 2026, "DyWeight: dynamic gradient weighting for few-step diffusion sampling"): weights of the
last three directions that need not add up to 1, and the noise level that they lead to.

    d_i       = (y_i - D(y_i, l_i))/l_i,    l_i = c_i tau_i
    y_(i+1)   = y_i + (s_(i+1) - tau_i) sum_(i-3<j<=i) W_ij d_j
    tau_(i+1) = tau_i + (s_(i+1) - tau_i) sum_j W_ij

with tau_0 = s_0, on a usual grid that stays. The first direction asks no network: it is that of N(m, c^2 I) with the
mean and deviation of the data, (y - m) s/(c^2 + s^2) (Dockhorn et al. 2022, "GENIE", began analytically), so that N
calls make N + 1 intervals. W and c are fitted to the distance at the end, in the paper a perceptual one on 10,000
teacher images. Where W starts is iPNDM (Zhang & Chen 2023) of order 1, 2 or 3, on the grid, that suit the pilots best;
coordinates are whitened (`descent`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde import grid
from scoresde.steps import IPNDM

from .common import Problem, whole
from .descent import Descent, denoise, gain, roots
from .learned import Carry, Learned, Task, distance

PAST = 3


@dataclass(frozen=True, eq=False)
class Weighted:
    """w: (N + 1, N + 1), lower triangular; s: (N + 2,); c: (N + 1,), the first unused; mean and std of the data."""

    w: Tensor
    s: Tensor
    c: Tensor
    mean: Tensor | float = 0.0
    std: float = 1.0

    def __call__(self, problem: Problem, y: Tensor) -> Tensor:
        """y from the highest to the lowest level."""
        return self.path(problem, y)[0]

    def path(self, problem: Problem, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last y, and all directions."""
        tau, seen = (
            self.s[0],
            [(y - torch.as_tensor(self.mean).to(y)) * float(self.s[0] / (self.std**2 + self.s[0] ** 2))],
        )
        for i, row in enumerate(self.w):
            if i:
                told = (self.c[i] * tau).clamp_min(self.s[-1])
                seen.append((y - denoise(problem, y, told)) / told.to(y))
            far = self.s[i + 1] - tau
            y = y + torch.stack(seen, -1) @ (far * row[: i + 1]).to(y)
            tau = tau + far * row.sum()
        return y, seen


def ipndm(task: Task, ts: Tensor, order: int) -> Tensor:
    """Weights (n, n) of iPNDM on n intervals."""
    w, s, alpha = torch.zeros(len(ts) - 1, len(ts) - 1).double(), task.problem.levels(ts), task.sde.alpha(ts)
    q = task.sde.reverse(task.score, 0.0)
    for n, interval in enumerate(IPNDM(order).plan(q, ts[:-1], ts[1:])):
        row = torch.tensor(interval.stages[0].w[: n + 1], dtype=torch.float64).flip(0)
        w[n, n + 1 - len(row) : n + 1] = row / (alpha[n + 1] * (s[n] - s[n + 1]))  # of sigma score = -eps
    return w


@torch.no_grad()
def start(task: Task) -> Weighted:
    """Of the orders and grids the one with the least mean of log e on pilots."""
    n, found = task.calls + 1, []
    for spacing in grid.usual(task.around).values():
        ts = spacing(task.sde, n)
        for order in (1, 2, PAST):
            c = torch.ones(n, dtype=torch.float64)
            one = Weighted(ipndm(task, ts, order), task.problem.levels(ts), c, task.around.mean, task.around.std)
            off = distance(one(task.problem, task.starts), task.ends).log().mean()
            found.append((float(off), one))
    return min(found, key=lambda pair: pair[0])[1]


@dataclass(frozen=True)
class DyWeight(Learned):
    """rates: of weights and of c (`Descent`). On fresh starts of digits 0.1 was as good in 6 calls, worse in 10 and far
    worse in 20, where the walk was thrown out; 0.3 was worse in 6.
    """

    name: ClassVar[str] = "DyWeight"
    source: ClassVar[str] = "Zhao et al. 2026"
    descent: Descent = Descent()
    rates: tuple[float, float] = (0.03, 0.03)

    def fit(self, task: Task) -> Carry:
        """The weights and labels that are best on pilots held out."""
        n = whole(task.calls, 1, self.least - 1) + self.least
        first = start(task)
        with torch.no_grad():
            seen = torch.stack(first.path(task.problem, task.starts)[1], -1)
        R = roots(seen, torch.ones(n, n, dtype=torch.bool).tril().triu(1 - PAST))
        R = R * (gain(task, first.s[1:]) / -first.s.diff())[:, None, None]

        def solver(values: Sequence[Tensor]) -> Weighted:
            v, c = values
            return Weighted(first.w + torch.einsum("nij,nj->ni", R, v), first.s, c.exp(), first.mean, first.std)

        def error(values: Sequence[Tensor], rows: Tensor) -> Tensor:
            return distance(solver(values)(task.problem, task.starts[rows]), task.ends[rows])

        none = torch.zeros(n, n + 1, dtype=torch.float64)
        return solver(self.descent(error, [none[:, 1:], none[:, 0]], self.rates, task))
