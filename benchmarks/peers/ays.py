"""AYS, align your steps (Sabour, Fidler & Kreis 2024, "Align your steps: optimizing sampling schedules in diffusion
models").

A stochastic step of first order keeps D at what it was at the interval's start. By Girsanov's theorem the divergence
of its law from that of the reverse SDE is at most the sum over intervals (their KLUB, section 3.2)

    cost(j, i) = integral from s_i to s_j of E |D(y_s, s) - D(y_j, s_j)|^2 ds/s^3,

over paths of the forward process, y_j = y_s + sqrt(s_j^2 - s^2) z. The grid is improved one node at a time, over
candidates between its neighbours, from equal steps in log s on; the paper stops early, by looking at samples, since the
bound's own minimum is not the best grid. Its grids then serve other solvers, on the flow too.

The expectations are over a table of paths from the ends of the pilots, on levels equal in log s, in place of new draws
from data at each trial; candidates are all nodes of it; and among the grids after each sweep that one is kept on which
the solver in use brings the pilots nearest to their ends.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde import DPMSolverPP, Step, grid

from .grids import OnGrid, best, shortest, sweeps
from .learned import Learned, Task


@dataclass(frozen=True)
class AYS(Learned):
    """The grid of AYS, for any step of scoresde with a call an interval."""

    step: Step = DPMSolverPP(2)
    nodes: int = 240
    """Intervals of the fine grid."""
    name: ClassVar[str] = "AYS"
    source: ClassVar[str] = "Sabour et al. 2024"

    def fit(self, task: Task) -> OnGrid:
        """The step on the grid that was found."""
        task.enough(self)
        ts = grid.log_snr(task.sde, self.nodes)
        cost = bounds(task, ts)
        start = torch.linspace(0, self.nodes, task.calls + 1).round().long().tolist()
        found = [*sweeps(cost, start), shortest(cost, task.calls)]
        return best(self.step, [ts[k] for k in found], task)


@torch.no_grad()
def bounds(task: Task, ts: Tensor) -> Tensor:
    """The table of the integrals, by the trapezoidal rule in log s, (K + 1, K + 1)."""
    s, y = task.problem.levels(ts), task.ends
    D = torch.empty(len(ts), y.numel(), dtype=torch.float64)
    for k in range(len(ts) - 1, -1, -1):  # upwards in noise, from the ends, which are at s[-1]
        if k < len(ts) - 1:
            y = y + (s[k] ** 2 - s[k + 1] ** 2).sqrt() * torch.randn(y.shape, generator=task.generator, dtype=y.dtype)
        D[k] = task.problem.denoise(y, s[k]).flatten()
    moved = torch.cdist(D, D, compute_mode="donot_use_mm_for_euclid_dist").square() / len(y) / s**2
    cost = torch.zeros_like(moved)
    cost[:, 1:] = ((moved[:, 1:] + moved[:, :-1]) / 2 * -s.log().diff()).cumsum(1)
    return cost - cost.diagonal()[:, None]
