"""EPD (Zhu et al. 2025, "Distilling parallel gradients for fast ODE solvers of diffusion models"): in each step K
evaluations that do not wait for one another.

    d   = (y - D(y, s))/s                            s_k = s'^(r_k) s^(1 - r_k),    y_k = y + (s_k - s) d
    y'  = y + (s' - s) sum_k w_k a_k d_k,            d_k = (y_k - D(y_k, b_k s_k))/s_k

r, w, a and b are learned, on a usual grid that stays; with K = 1 and r = 1/2, w = a = b = 1 it is DPM-Solver-2 (Lu et
al. 2022a), and with K = 1 and b = 1 AMED-Solver (Zhou et al. 2024) whose r and w are numbers, not a network's. The
first d asks no network: it is that of N(m, c^2 I) with the mean and deviation of the data, (y - m) s/(c^2 + s^2)
(Dockhorn et al. 2022, "GENIE", began analytically). Calls in parallel count as calls, so that n steps spend n - 1 + sum
K of them, K being the same but for the last steps, which take what is left; of K = 1 and 2 the first was better. The
paper fits the states of all steps to the teacher's, with a perceptual distance at the end; here the distance at the end
is fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde import grid

from .common import Problem, whole
from .descent import Descent, denoise, gain
from .learned import Carry, Learned, Task, distance


@dataclass(frozen=True, eq=False)
class Ensemble:
    """s: (n + 1,) levels. many: K of each step. r, w, b: (sum K,), w with a in it. mean and std of the data."""

    s: Tensor
    many: tuple[int, ...]
    r: Tensor
    w: Tensor
    b: Tensor
    mean: Tensor | float = 0.0
    std: float = 1.0

    def __call__(self, problem: Problem, y: Tensor) -> Tensor:
        """y from the highest to the lowest level."""
        parts = zip(self.s[:-1], self.s[1:], *(v.split(self.many) for v in (self.r, self.w, self.b)), strict=True)
        for i, (s, to, r, w, b) in enumerate(parts):
            far = self.std**2 + s**2
            d = (y - denoise(problem, y, s)) / s if i else (y - torch.as_tensor(self.mean).to(y)) * (s / far)
            total = torch.zeros_like(y)
            for at, w_k, b_k in zip(to**r * s ** (1 - r), w, b, strict=True):
                inner = y + (at - s) * d
                total = total + w_k * (inner - denoise(problem, inner, b_k * at)) / at
            y = y + (to - s) * total
        return y


def division(calls: int, parallel: int) -> tuple[int, ...]:
    """K of each step: `parallel`, but more in the last ones, so that n steps make n - 1 + sum K = calls."""
    n = max(1, (calls + 1) // (parallel + 1))
    each, left = divmod(calls - n + 1, n)
    return (each,) * (n - left) + (each + 1,) * left


@dataclass(frozen=True)
class Parallel(Learned):
    """parallel: K. rates: of logit r, w, and log b (`Descent`), the first and last the best of 0.1, 0.3 and 1."""

    name: ClassVar[str] = "EPD"
    source: ClassVar[str] = "Zhu et al. 2025"
    descent: Descent = Descent()
    parallel: int = 1
    rates: tuple[float, float, float] = (1.0, 0.1, 1.0)

    def first(self, task: Task) -> Ensemble:
        """Midpoints, evenly weighed, on the grid with the least mean of log e on pilots."""
        many, found = division(task.calls, self.parallel), []
        r = torch.cat([torch.arange(1, k + 1).double() / (k + 1) for k in many])
        w = torch.cat([torch.ones(k).double() / k for k in many])
        for spacing in grid.usual(task.around).values():
            s = task.problem.levels(spacing(task.sde, len(many)))
            one = Ensemble(s, many, r, w, torch.ones_like(w), task.around.mean, task.around.std)
            with torch.no_grad():
                off = distance(one(task.problem, task.starts), task.ends).log().mean()
            found.append((float(off), one))
        return min(found, key=lambda pair: pair[0])[1]

    def fit(self, task: Task) -> Carry:
        """The parameters that are best on pilots held out."""
        whole(task.calls, 1, self.least - 1)
        first = self.first(task)
        unit = (gain(task, first.s[1:]) / -first.s.diff()).repeat_interleave(torch.tensor(first.many))

        def solver(values: Sequence[Tensor]) -> Ensemble:
            r, w, b = values
            return Ensemble(first.s, first.many, r.sigmoid(), first.w + unit * w, b.exp(), first.mean, first.std)

        def error(values: Sequence[Tensor], rows: Tensor) -> Tensor:
            return distance(solver(values)(task.problem, task.starts[rows]), task.ends[rows])

        values = [first.r.logit(), torch.zeros_like(first.w), torch.zeros_like(first.w)]
        return solver(self.descent(error, values, self.rates, task))
