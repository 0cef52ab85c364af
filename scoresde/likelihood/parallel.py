"""A flow parallel in time: the rates at all nodes of a method at once, again and again, until none would change.

The method is run on supposed rates, at first none, which in `coordinates` is exact for Gaussian data; the network is
asked in one batch at all the places that this leads to; and so on from these rates (Picard's iteration; Shih et al.
2023). Where it ends the rates are those of the path, which is then that of the method in sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..shapes import number
from .quadrature import Adams, Node, Observed, RungeKutta


@dataclass(frozen=True)
class Picard:
    """`method` by Picard's iteration, for `encode` and `decode`: as many calls of the network as sweeps, the first with
    all nodes of all samples. The first k nodes are right after k sweeps, so that there are no more than nodes.

    Raises ValueError for a method that is not of a fixed number of calls, and a tolerance below 0. An iteration that
    leads where the score is not finite ends in `SampleError`, though the path itself may not.
    """

    method: Adams | RungeKutta = Adams(40)
    tol: float = 1e-8
    """Every rate is that of a state no farther from where it is used, in root mean square over dimensions and in units
    of alpha S, the deviation of the data like `around` at that time; with 0 the result is that of `method` but for
    rounding."""

    def __post_init__(self) -> None:
        if not isinstance(self.method, Adams | RungeKutta):
            raise ValueError(f"method must be of a fixed number of calls, such as Adams(40), got {self.method!r}")
        number("tol", self.tol, least=0)

    def integrate(self, f: Observed, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """y at s, (B, *D), from y at t, for an f of whose answers the rate alone counts."""
        rates, method = _Rates(y, self.tol), self.method
        while True:
            rates.next = 0
            end = method.integrate(rates, y, t, s).y
            if not rates.renew(f):
                return end


class _Rates:
    """An equation that answers from memory: dy/dt of each call in order, (calls, B, *D), and the y it belongs to."""

    def __init__(self, y: Tensor, tol: float) -> None:
        self.tol, self.next = tol, 0
        self.t: list[Tensor] = []
        self.y: list[Tensor] = []
        self.rates, self.seen = y.new_zeros(0, *y.shape), y.new_zeros(0, *y.shape)

    def __call__(self, t: Tensor, y: Tensor, rows: Tensor) -> Node:
        if self.next == len(self.y):
            self.t.append(t)
            self.y.append(y)
        self.y[self.next] = y
        rate = self.rates[self.next] if len(self.rates) else torch.zeros_like(y)
        self.next += 1
        nothing = y.new_zeros(len(y), 1)
        return Node(rate, nothing, nothing[:, 0], torch.zeros_like(y))

    def renew(self, f: Observed) -> bool:
        """Ask f wherever y has moved since it was asked there. Whether there was anything to ask."""
        y, t = torch.stack(self.y), torch.stack(self.t).to(self.rates.device)
        if not len(self.rates):
            self.rates, self.seen = torch.zeros_like(y), torch.full_like(y, torch.nan)
        stale = ~((y - self.seen).flatten(2).square().mean(2) <= self.tol**2)
        if not stale.any():
            return False
        j, rows = stale.nonzero(as_tuple=True)
        self.rates[j, rows] = f(t[j], y[j, rows], rows).rate
        self.seen[j, rows] = y[j, rows]
        return True
