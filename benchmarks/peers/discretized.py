"""LD3 (Tong et al. 2025, "Learning to discretize denoising diffusion ODEs"): the levels alone, for a usual solver.

    log s_k falls in shares softmax(u),    min over u of the mean of min over |y' - y_0| <= r s_0 of |solve(y') - truth|

the solver being multistep DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2), with h_n = log s_n/s_(n+1):

    y_(n+1) = (s_(n+1)/s_n) y_n + (1 - s_(n+1)/s_n) (D_n + h_n/(2 h_(n-1)) (D_n - D_(n-1)))

The gradient goes through all of it, and the start is moved with u (`SoftTeacher`). The paper's loss is a perceptual
distance, on 100 pilots; its shares are of time, those here of log s, and it starts at the usual grid that suits the
pilots best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .common import whole
from .descent import Descent, SoftTeacher, levels, shares
from .learned import Carry, Learned, Task, distance
from .linear import Linear, start


def second(s: Tensor) -> Linear:
    """DPM-Solver++(2M) on levels s, with the derivative by them."""
    h = (s[:-1] / s[1:]).log()
    k = torch.cat([h.new_zeros(1), h[1:] / (2 * h[:-1])])
    return Linear.local(torch.diag(1 + k) - torch.diag(k[1:], -1), s, s[:-1])


@dataclass(frozen=True)
class Discretized(Learned):
    """radius: r of the soft teacher; of 0, 0.003, 0.01 and 0.03 the second was best on fresh starts of digits, by 1 %
    from 0, and larger ones were worse. rate: of levels (`Descent`); 1 was no better.
    """

    name: ClassVar[str] = "LD3"
    source: ClassVar[str] = "Tong et al. 2025"
    descent: Descent = Descent()
    radius: float = 0.003
    rate: float = 0.3

    def fit(self, task: Task) -> Carry:
        """The levels that are best on pilots held out, which start where they do."""
        whole(task.calls, 1, self.least - 1)
        teacher = SoftTeacher(task, self.radius)

        def error(values: Sequence[Tensor], rows: Tensor) -> Tensor:
            return distance(second(levels(values[0], *task.levels))(task.problem, teacher(rows)), task.ends[rows])

        (u,) = self.descent(error, [shares(start(task, (2,))[1])], [self.rate], task, teacher.after)
        return second(levels(u, *task.levels))
