"""BNS: all coefficients of a linear solver and its levels, by gradient (Shaul et al. 2024, "Bespoke non-stationary
solvers for fast sampling of diffusion and flow models").

    y_(n+1) = (s_(n+1)/s_0) a_n y_0 + sum_(j<=n) w_nj D_j,    D_j = D(y_j, s_j)

minimising the mean of log |y_N - truth|^2 over a, w and s, the loss of the paper, which is its PSNR: N (N + 5)/2 - 1
numbers for N calls, with both ends of the levels fixed. It starts at multistep DPM-Solver++ of order 2 or 3 on the grid
that suits the pilots best, where the paper starts at Euler's or the midpoint method under a scheduler of choice, and
walks in whitened coordinates (`descent`), as the paper does not. Its 15,000 iterations are 800 here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .common import whole
from .descent import Descent, levels, roots, shares
from .learned import Carry, Learned, Task, distance
from .linear import Linear, start


@dataclass(frozen=True)
class NonStationary(Learned):
    """rates: of weights and of levels (`Descent`), those of `Generalized`."""

    name: ClassVar[str] = "BNS"
    source: ClassVar[str] = "Shaul et al. 2024"
    descent: Descent = Descent()
    rates: tuple[float, float] = (0.3, 1.0)

    def fit(self, task: Task) -> Carry:
        """The weights and levels that are best on pilots held out."""
        N = whole(task.calls, 1, self.least - 1) + self.least - 1
        c, s = start(task)
        first = Linear.local(c, s, s[:-1])
        with torch.no_grad():
            seen = first.path(task.problem, task.starts)[1]
        known = torch.stack([task.starts / s[0], *seen], -1)
        R = roots(known, torch.ones(N, N + 1, dtype=torch.bool).tril(1))

        def solver(values: Sequence[Tensor]) -> Linear:
            moved, to = torch.einsum("nij,nj->ni", R, values[0]), levels(values[1], *task.levels)
            return Linear(first.a + moved[:, 0] / s[1:], first.w + moved[:, 1:], to, to[:-1])

        def error(values: Sequence[Tensor], rows: Tensor) -> Tensor:
            return distance(solver(values)(task.problem, task.starts[rows]), task.ends[rows])

        return solver(self.descent(error, [torch.zeros(N, N + 1, dtype=torch.float64), shares(s)], self.rates, task))
