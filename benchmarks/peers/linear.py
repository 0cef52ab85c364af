"""Linear solvers with all of their past, which BNS, S4S and the generalized solver are fitted in.

    y_(n+1) = (s_(n+1)/s_0) a_n y_0 + sum_(j<=n) w_nj D(y_j, told_j)

for levels s_0 > .. > s_N, in N calls. With d in place of D, or with any y_j besides, it is the same family, and all
multistep methods are in it, and all Runge-Kutta methods, whose stages count as steps (Shaul et al. 2024). A step with
weights c of its own, y' = (s'/s) y + (1 - s'/s) sum_j c_j D_j, has w_n = (s_(n+1)/s_n) w_(n-1) + (1 - s_(n+1)/s_n) c_n
and a = 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import DPMSolverPP, grid

from .common import Problem
from .descent import denoise
from .learned import Task, distance


@dataclass(frozen=True, eq=False)
class Linear:
    """a: (N,), w: (N, N) lower triangular, s: (N + 1,) levels, told: (N,), those that the network is told."""

    a: Tensor
    w: Tensor
    s: Tensor
    told: Tensor

    @classmethod
    def local(cls, c: Tensor, s: Tensor, told: Tensor) -> "Linear":
        """From weights c (N, N) of each step's own."""
        r, rows = s[1:] / s[:-1], []
        for n in range(len(c)):
            rows.append((1 - r[n]) * c[n] + (r[n] * rows[-1] if n else 0.0))
        return cls(torch.ones_like(told), torch.stack(rows), s, told)

    def __call__(self, problem: Problem, y: Tensor) -> Tensor:
        """y from the highest to the lowest level."""
        return self.path(problem, y)[0][-1]

    def path(self, problem: Problem, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """All y_n, and all D_n."""
        states, seen = [y], []
        for n, told in enumerate(self.told):
            seen.append(denoise(problem, states[-1], told))
            known = torch.stack(seen, -1) @ self.w[n, : n + 1].to(y)
            states.append((self.s[n + 1] / self.s[0] * self.a[n]).to(y) * y + known)
        return states, seen


def multistep(task: Task, ts: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Multistep DPM-Solver++ of that order on times ts, as weights c (N, N) and levels."""
    q = task.sde.reverse(task.score, 0.0)
    s, c = task.problem.levels(ts), torch.zeros(len(ts) - 1, len(ts) - 1, dtype=torch.float64)
    alpha = task.sde.alpha(ts[1:])
    for n, interval in enumerate(DPMSolverPP(order).plan(q, ts[:-1], ts[1:])):
        w = torch.tensor(interval.stages[0].w[: n + 1], dtype=torch.float64)
        c[n, n + 1 - len(w) : n + 1] = w.flip(0) / (alpha[n] * (1 - s[n + 1] / s[n]))
    return c, s


@torch.no_grad()
def start(task: Task, orders: tuple[int, ...] = (2, 3)) -> tuple[Tensor, Tensor]:
    """c and s of multistep DPM-Solver++ of the order and on the grid that have the least mean of log e on pilots."""
    best = None
    for spacing in (grid.log_snr, grid.karras, lambda sde, n: grid.reference(sde, n, around=task.around)):
        for order in orders:
            c, s = multistep(task, spacing(task.sde, task.calls), order)
            off = distance(Linear.local(c, s, s[:-1])(task.problem, task.starts), task.ends).log().mean()
            if best is None or off < best[0]:
                best = off, c, s
    assert best is not None
    return best[1], best[2]
