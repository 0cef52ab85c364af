"""What learned solvers share: what a fit is given, what it costs, and what it leaves.

A learned solver is fitted to one flow by some of its trajectories, the pilots. Here each is written anew from the
formulas of its paper, in y = x/alpha, s = sigma/alpha and D = E[x_0 | x_t], in which all linear SDEs have one flow,
dy/ds = (y - D)/s. `Task` holds the flow and the pilots; `Learned.fit` returns what carries any y from the highest level
to the lowest in no more than `calls` calls of the network, those in parallel counted.

The cost of a fit is told in evaluations of the network for one sample: forward, and those of them through which a
gradient went back, which cost about three times as much.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde import LinearSDE, Reference, grid, iid, sample
from scoresde.process import Score
from scoresde.steps.singlestep import THIRD, SingleStep

from .common import Problem

Carry = Callable[[Problem, Tensor], Tensor]
"""(the flow, y at the highest level (B, *D)) -> y at the lowest level."""


class Evaluated:
    """A score that counts the samples that it is asked for, and those of them with a gradient."""

    def __init__(self, score: Score) -> None:
        self.score, self.forward, self.backward = score, 0, 0

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.forward += len(x)
        self.backward += len(x) * (x.requires_grad and torch.is_grad_enabled())
        return self.score(x, t, **cond)


@dataclass(frozen=True, eq=False)
class Task:
    """A flow to fit a solver to.

    sde, score: the flow, from T to t_min. around: mean and deviation of the data. calls: what the solver may spend. n:
    pilots. seed: of their starts and of all else that is drawn. fine: intervals of three calls that they are solved in.
    """

    sde: LinearSDE
    score: Score
    around: Reference
    shape: tuple[int, ...]
    calls: int
    n: int = 256
    seed: int = 0
    fine: int = 120
    dtype: torch.dtype = torch.float64

    @cached_property
    def problem(self) -> Problem:
        """The flow in y and s."""
        return Problem(self.sde, self.score)

    @property
    def levels(self) -> tuple[float, float]:
        """s at T and at t_min."""
        high, low = self.problem.levels(grid.uniform(self.sde, 1)).tolist()
        return high, low

    @cached_property
    def generator(self) -> torch.Generator:
        """Of what a fit draws besides pilots."""
        return torch.Generator().manual_seed(self.seed + 1)

    @cached_property
    def starts(self) -> Tensor:
        """y of the pilots at the highest level, (n, *D)."""
        noise = iid(torch.Generator().manual_seed(self.seed))
        return self.sde.prior((self.n, *self.shape), noise, self.dtype) / self.sde.alpha(self.sde.T)

    @cached_property
    def ends(self) -> Tensor:
        """y of the pilots at the lowest level."""
        return self.along(grid.reference(self.sde, self.fine, around=self.around))[-1]

    @torch.no_grad()
    def along(self, ts: Tensor) -> Tensor:
        """y of the pilots at times ts from T to t_min, (len(ts), n, *D), of order 3 in three calls an interval: the
        grid should be fine.
        """
        q, x = self.sde.reverse(self.score, 0.0), self.starts * self.sde.alpha(self.sde.T)
        states, step = [x], SingleStep(THIRD, self.around)
        for t, s in zip(ts[:-1], ts[1:], strict=True):
            states.append(sample(q, states[-1], torch.stack([t, s]), step))
        return torch.stack([x / self.sde.alpha(t) for x, t in zip(states, ts, strict=True)])

    def enough(self, solver: "Learned") -> None:
        """Raise ValueError if there are fewer calls than the solver can do with."""
        if self.calls < solver.least:
            raise ValueError(f"{solver.name} needs at least {solver.least} network calls, got {self.calls}")

    def log_snr_levels(self, n: int) -> Tensor:
        """n + 1 levels s with equal steps in log s, from the highest to the lowest."""
        return self.problem.levels(grid.log_snr(self.sde, n))


class Learned(ABC):
    """A solver that is fitted to a flow. A subclass is a frozen dataclass whose fields are what its paper leaves open,
    such as steps of its optimiser.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    """Paper, year."""
    eta: ClassVar[float] = 0.0
    """0 on the flow; 1 for what draws noise, from torch's global generator."""
    least: ClassVar[int] = 2
    """The fewest calls that it can do with."""

    @abstractmethod
    def fit(self, task: Task) -> Carry:
        """What carries y from the highest level to the lowest in task.calls calls at most. Raises ValueError if they
        are fewer than `least`.
        """


def distance(a: Tensor, b: Tensor) -> Tensor:
    """The root mean square over dimensions of a - b: (B,)."""
    return (a - b).flatten(1).square().mean(1).clamp_min(1e-30).sqrt()
