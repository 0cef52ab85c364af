"""S4S-Alt (Frankel et al. 2025, "S4S: solving for a fast diffusion model solver"): the coefficients of a multistep
method and its levels in turn.

    y_(n+1) = (s_(n+1)/s_n) y_n + (1 - s_(n+1)/s_n) sum_(n-k<j<=n) c_nj D(y_j, s_j exp(xi_j))

over the last k = 3, c being fitted with s and xi fixed, then s and xi with c fixed, and again, on the distance to the
teacher from a start that may move within a radius (`SoftTeacher`). Perceptual distances do not exist here. It starts at
multistep DPM-Solver++ on the grid that suits the pilots best, in whitened coordinates (`descent`); the paper on some
700 pilots at a usual solver's coefficients, with a radius that falls with N.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .common import whole
from .descent import Descent, SoftTeacher, levels, roots, shares
from .learned import Carry, Learned, Task, distance
from .linear import Linear, start


@dataclass(frozen=True)
class Alternating(Learned):
    """past: k. rounds: of both. radius: of the soft teacher, that of LD3. rates: of weights, levels and labels
    (`Descent`), those of `Generalized`.
    """

    name: ClassVar[str] = "S4S-Alt"
    source: ClassVar[str] = "Frankel et al. 2025"
    descent: Descent = Descent()
    past: int = 3
    rounds: int = 4
    radius: float = 0.003
    rates: tuple[float, float, float] = (0.3, 1.0, 0.3)

    def fit(self, task: Task) -> Carry:
        """The weights, levels and labels that are best on pilots held out, which start where they do."""
        N = whole(task.calls, 1, self.least - 1) + self.least - 1
        c, s = start(task)
        with torch.no_grad():
            seen = Linear.local(c, s, s[:-1]).path(task.problem, task.starts)[1]
        R = roots(torch.stack(seen, -1), torch.ones(N, N, dtype=torch.bool).tril().triu(1 - self.past))
        teacher = SoftTeacher(task, self.radius)

        def solver(v: Tensor, u: Tensor, xi: Tensor) -> Linear:
            to = levels(u, *task.levels)
            return Linear.local(c + torch.einsum("nij,nj->ni", R, v), to, to[:-1] * xi.exp())

        def weights(values: Sequence[Tensor], rows: Tensor) -> Tensor:
            return distance(solver(values[0], u, xi)(task.problem, teacher(rows)), task.ends[rows])

        def grid(values: Sequence[Tensor], rows: Tensor) -> Tensor:
            return distance(solver(v, *values)(task.problem, teacher(rows)), task.ends[rows])

        v, u, xi = torch.zeros(N, N, dtype=torch.float64), shares(s), torch.zeros(N, dtype=torch.float64)
        turn = replace(self.descent, steps=self.descent.steps // (2 * self.rounds))
        for _ in range(self.rounds):
            (v,) = turn(weights, [v], self.rates[:1], task, teacher.after)
            u, xi = turn(grid, [u, xi], self.rates[1:], task, teacher.after)
        return solver(v, u, xi)
