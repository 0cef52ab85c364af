"""GS, the generalized solver of GAS (Oganov et al. 2025, "GAS: improving discretization of diffusion ODEs via
generalized adversarial solver"), without the adversary.

    y_(n+1) = (s_(n+1)/s_n) y_n + (1 - s_(n+1)/s_n) sum_(j<=n) c_nj D(y_j, s_j exp(xi_j))

in data prediction over the whole past; c, the levels s, and the labels xi told to the network are fitted together, from
the weights of multistep DPM-Solver++, by Adam on the distance to the teacher: the paper's loss in pixels, on 1,400
teacher samples. Its perceptual distance and its discriminator do not exist here. Start (the paper: order 3 throughout)
and coordinates are those of `nonstationary`, whose solvers are these without xi and with a factor on y_0 more.
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
class Generalized(Learned):
    """rates: of weights, levels and labels (`Descent`), on fresh starts of digits the best of 0.1 and 0.3, 0.3 and 1,
    and 0.3 and 1.
    """

    name: ClassVar[str] = "GS"
    source: ClassVar[str] = "Oganov et al. 2025"
    descent: Descent = Descent()
    rates: tuple[float, float, float] = (0.3, 1.0, 0.3)

    def fit(self, task: Task) -> Carry:
        """The weights, levels and labels that are best on pilots held out."""
        N = whole(task.calls, 1, self.least - 1) + self.least - 1
        c, s = start(task)
        with torch.no_grad():
            seen = Linear.local(c, s, s[:-1]).path(task.problem, task.starts)[1]
        R = roots(torch.stack(seen, -1), torch.ones(N, N, dtype=torch.bool).tril())

        def solver(values: Sequence[Tensor]) -> Linear:
            v, u, xi = values
            to = levels(u, *task.levels)
            return Linear.local(c + torch.einsum("nij,nj->ni", R, v), to, to[:-1] * xi.exp())

        def error(values: Sequence[Tensor], rows: Tensor) -> Tensor:
            return distance(solver(values)(task.problem, task.starts[rows]), task.ends[rows])

        none = torch.zeros(N, N + 1, dtype=torch.float64)
        return solver(self.descent(error, [none[:, 1:], shares(s), none[:, 0]], self.rates, task))
