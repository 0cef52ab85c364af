"""AdaSDE (Wang, Zhu, Li, Yuan & Zhang 2025, "Adaptive stochastic coefficients for accelerating diffusion sampling",
NeurIPS).

From s to s' in two calls: noise is added, up to the level t = (1 + gamma) s, and then a step with a stage between goes
down to s',

    y_t = y + (t^2 - s^2)^(1/2) z,    u = t^r s'^(1 - r),
    y_u = y_t + (u - t) d(y_t, t),    y' = y_t + (s' - t) a d(y_u, b u),    d(y, s) = (y - D(y, s))/s,

whose gamma, r, a and b are learned for each step, one step after another, by gradient on the distance to the teacher at
the step's end. At gamma = 0, r = 1/2 and a = b = 1 it is DPM-Solver-2. Noise forgets earlier errors, and costs the
error of a longer step. For an odd number of calls the first d is that of the Gaussian reference (their "analytical
first step").

The teacher has had the same noise: its own state at s, y_t from that, and the flow to s' by the same step with
gamma = 0 in `fine` parts, four times as many for its next state. gamma = (1 + w^2)^(1/2) - 1 for a free number w, the
noise being s w z. The levels, which the paper takes as given, are those of the usual grid on which DPM-Solver-2 brings
the pilots nearest to their ends. The loss is the mean distance; the paper's last step has a perceptual one. On the
digits mixture, whose score is exact, little noise is learned, most of it for the last steps, and twice as many steps of
Adam gain nothing.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde import Reference, grid

from .common import Problem
from .learned import Learned, Task, distance

START = (0.1, 0.0, 0.0, 0.0)
"""w, logit r, log a, log b."""


def denoise(problem: Problem, y: Tensor, s: Tensor) -> Tensor:
    """D at level s, with times of samples, through which gradients go, in place of a single one."""
    t = problem.sde.time(-s.log())
    alpha = problem.sde.alpha(t)
    return y + s**2 * alpha * problem.score(y * alpha, t.expand(len(y)))


@dataclass(frozen=True, eq=False)
class TwoStage:
    """The steps with their numbers (n, 4), on levels s (n + 1,)."""

    numbers: Tensor
    s: Tensor
    first: Reference | None = None
    """The Gaussian that the first d is taken of, without a call."""

    @torch.no_grad()
    def __call__(self, problem: Problem, y: Tensor) -> Tensor:
        """y at the highest level (B, *D) -> y at the lowest, with noise from torch's global generator."""
        for k in range(len(self.numbers)):
            z = torch.randn(y.shape, dtype=y.dtype) if self.numbers[k, 0] else torch.zeros_like(y)
            y = self.step(problem, k, self.numbers[k], y, z)
        return y

    def step(self, problem: Problem, k: int, numbers: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """One step of those numbers (4,)."""
        w, r, a, b = numbers[0], numbers[1].sigmoid(), numbers[2].exp(), numbers[3].exp()
        t, after = self.s[k] * (1 + w**2).sqrt(), self.s[k + 1]
        y = y + self.s[k] * w * z
        u = t**r * after ** (1 - r)
        if k == 0 and self.first is not None:
            d = t / (self.first.std**2 + t**2) * (y - self.first.mean)
        else:
            d = (y - denoise(problem, y, t)) / t
        told = b * u
        middle = y + (u - t) * d
        return y + (after - t) * a * (middle - denoise(problem, middle, told)) / told


def teacher(problem: Problem, y: Tensor, t: Tensor, after: Tensor, fine: int) -> Tensor:
    """The flow from level t to another, by DPM-Solver-2 in `fine` steps."""
    s = (t.log() + (after / t).log() * torch.linspace(0, 1, fine + 1, dtype=t.dtype)).exp()
    parts = TwoStage(torch.zeros(fine, 4, dtype=t.dtype), s)
    for k in range(fine):
        y = parts.step(problem, k, parts.numbers[k], y, torch.zeros_like(y))
    return y


@dataclass(frozen=True)
class AdaSDE(Learned):
    """AdaSDE with one stage between."""

    steps: int = 100
    """Of Adam, for each step."""
    batch: int = 64
    """Pilots in each."""
    rate: float = 0.05
    """Of learning, at first; it falls to 0 as a cosine."""
    fine: int = 5
    """Steps of the teacher for one of these."""
    name: ClassVar[str] = "AdaSDE"
    source: ClassVar[str] = "Wang et al. 2025"
    eta: ClassVar[float] = 1.0

    def fit(self, task: Task) -> TwoStage:
        """With the numbers of each step, learned in turn."""
        task.enough(self)
        found = self.untrained(task)
        y = exact = task.starts
        for k in range(len(found.numbers)):
            w, *_ = found.numbers[k] = self.learned(task, found, k, y, exact)
            z = self.noise(task, y)
            with torch.no_grad():
                y = found.step(task.problem, k, found.numbers[k], y, z)
                t = found.s[k] * (1 + w**2).sqrt()
                exact = teacher(task.problem, exact + found.s[k] * w * z, t, found.s[k + 1], 4 * self.fine)
        return found

    def untrained(self, task: Task) -> TwoStage:
        """DPM-Solver-2, on the best grid for it, with the numbers to start from."""
        n, tried = -(-task.calls // 2), []
        first = task.around if task.calls % 2 else None
        for make in grid.usual(task.around).values():
            one = TwoStage(torch.zeros(n, 4, dtype=torch.float64), task.problem.levels(make(task.sde, n)), first)
            tried.append((float(distance(one(task.problem, task.starts), task.ends).mean()), one))
        best = min(tried, key=lambda row: row[0])[1]
        best.numbers[:] = torch.tensor(START, dtype=torch.float64)
        return best

    def learned(self, task: Task, found: TwoStage, k: int, y: Tensor, exact: Tensor) -> Tensor:
        """The numbers of step k, for pilots that are at y and should be at `exact`."""
        numbers = found.numbers[k].clone().requires_grad_()
        adam = torch.optim.Adam([numbers], self.rate)
        for i in range(self.steps):
            adam.param_groups[0]["lr"] = self.rate * (1 + math.cos(math.pi * i / self.steps)) / 2
            at = torch.randint(0, len(y), (self.batch,), generator=task.generator)
            z = self.noise(task, y[at])
            t = found.s[k] * (1 + numbers[0] ** 2).sqrt()
            target = teacher(task.problem, exact[at] + found.s[k] * numbers[0] * z, t, found.s[k + 1], self.fine)
            adam.zero_grad()
            distance(found.step(task.problem, k, numbers, y[at], z), target).mean().backward()
            adam.step()
        return numbers.detach()

    def noise(self, task: Task, y: Tensor) -> Tensor:
        """Of a state's shape."""
        return torch.randn(y.shape, generator=task.generator, dtype=y.dtype)
