"""GITS, geometry-inspired time scheduling (Chen, Zhou, Wang, Shen & Lyu 2024, "On the trajectory regularity of
ODE-based diffusion sampling", section 5).

Of some trajectories on a fine grid a table says what an Euler step from each node to each later one is wrong by,

    cost(j, i) = E |y_j + (s_i - s_j) d_j - y_i|,    d = (y - D)/s,

and dynamic programming finds the grid of n steps with the least V_n(0), V_k(j) = min cost(j, i) + c V_(k-1)(i): c > 1
makes the errors of later steps count more, for those that are amplified on the way. The paper sets c = 1.15 by hand,
and takes a fine grid of 60 Euler steps; any solver may then run on the grid. Here the fine trajectories are of third
order, on levels equal in log s; and c, and a power of the cost, are those with which the solver in use brings the
pilots nearest to their ends. The paper's power is 1; the cost grows with the square of a step, so that 3/2 fits a
second-order solver. On the digits mixture the power 1 leaves DPM-Solver++(2M) with a larger error than
equal steps in log s do, powers of 1.5 and 2 lower it to about theirs; for DDIM 1 and 1.5 are the best.
"""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from scoresde import DPMSolverPP, Step, grid

from .grids import OnGrid, best, shortest
from .learned import Learned, Task


@dataclass(frozen=True)
class GITS(Learned):
    """The grid of GITS, for any step of scoresde with a call an interval."""

    step: Step = DPMSolverPP(2)
    growth: tuple[float, ...] = (1.0, 1.03, 1.07, 1.1, 1.15, 1.2, 1.3)
    """Coefficients to choose from."""
    powers: tuple[float, ...] = (1.0, 1.5, 2.0)
    """Powers of the cost to choose from."""
    nodes: int = 120
    """Intervals of the fine grid."""
    name: ClassVar[str] = "GITS"
    source: ClassVar[str] = "Chen et al. 2024"

    def fit(self, task: Task) -> OnGrid:
        """The step on the grid that was found."""
        task.enough(self)
        ts = grid.log_snr(task.sde, self.nodes)
        cost = euler_errors(task, ts)
        tried = product(self.growth, self.powers)
        return best(self.step, [ts[shortest(cost**power, task.calls, c)] for c, power in tried], task)


@torch.no_grad()
def euler_errors(task: Task, ts: Tensor) -> Tensor:
    """The table: the mean distance of an Euler step from each node of ts to each other, (K + 1, K + 1)."""
    s, y = task.problem.levels(ts), task.along(ts)
    cost = torch.zeros(len(ts), len(ts), dtype=torch.float64)
    for j in range(len(ts) - 1):
        d = (y[j] - task.problem.denoise(y[j], s[j])) / s[j]
        step = y[j] + (s[j + 1 :] - s[j]).view(-1, *[1] * d.ndim) * d
        cost[j, j + 1 :] = (step - y[j + 1 :]).flatten(2).norm(dim=2).mean(1)
    return cost
