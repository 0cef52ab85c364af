"""What learned grids share: steps of the literature on times that were found, and the best grid through a table.

A grid is a path k_0 = 0 < k_1 < ... < k_n = K through the nodes of a fine one, and each of its intervals costs what a
table (K + 1, K + 1) says of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import Step, sample

from .common import Problem
from .learned import Task, distance


@dataclass(frozen=True, eq=False)
class OnGrid:
    """A step of the flow on times ts (n + 1,) from T to t_min."""

    step: Step
    ts: Tensor

    @torch.no_grad()
    def __call__(self, problem: Problem, y: Tensor) -> Tensor:
        """y at the highest level (B, *D) -> y at the lowest."""
        sde = problem.sde
        q = sde.reverse(problem.score, 0.0)
        return sample(q, y * sde.alpha(sde.T), self.ts, self.step) / sde.alpha(sde.t_min)


def best(step: Step, grids: Iterable[Tensor], task: Task) -> OnGrid:
    """Of the grids the one on which the pilots end at the least mean distance from where they should."""
    carries = [OnGrid(step, ts) for ts in grids]
    off = [float(distance(carry(task.problem, task.starts), task.ends).mean()) for carry in carries]
    return carries[off.index(min(off))]


def shortest(cost: Tensor, n: int, growth: float = 1.0) -> list[int]:
    """The path of n intervals with the least sum of growth^i times the cost of the interval i, by dynamic programming:

        V_1(j) = cost(j, K),    V_k(j) = min over i > j of cost(j, i) + growth V_(k-1)(i).

    cost: (K + 1, K + 1), of which the upper triangle is read.
    """
    upper = torch.ones_like(cost, dtype=torch.bool).triu(1)
    cost = cost.masked_fill(~upper, float("inf"))
    left, nexts = cost[:, -1], []
    for _ in range(n - 1):
        left, at = (cost + growth * left).min(1)
        nexts.append(at)
    k = [0]
    for at in reversed(nexts):
        k.append(int(at[k[-1]]))
    return [*k, len(cost) - 1]


def sweeps(cost: Tensor, k: list[int]) -> Iterable[list[int]]:
    """The path, and after it what every sweep makes of it, in which each node moves, one after another, to where the
    two intervals beside it cost least; until none moves.
    """
    last: list[int] = []
    while k != last:
        yield k
        last, k = k, list(k)
        for i in range(1, len(k) - 1):
            a, b = k[i - 1], k[i + 1]
            k[i] = a + 1 + int((cost[a, a + 1 : b] + cost[a + 1 : b, b]).argmin())
