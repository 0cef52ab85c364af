"""How a multistep method takes its first intervals, where it knows fewer nodes than it will have."""

from abc import ABC, abstractmethod
from dataclasses import dataclass


class StartUp(ABC):
    """The first intervals of a method of k nodes without a corrector, on the flow."""

    @abstractmethod
    def order(self, k: int) -> int:
        """The order of convergence that the start leaves to k nodes."""


@dataclass(frozen=True)
class FullOrder(StartUp):
    """No order is lost: of three nodes the first interval is corrected with two, of four it is taken in three stages
    and the second corrected with three. On a grid of no more intervals than nodes the orders just rise.
    """

    def order(self, k: int) -> int:
        """k."""
        return k


@dataclass(frozen=True)
class Rising(StartUp):
    """As many nodes as there are: 1, 2, up to k, as most published methods start. The first interval is left with an
    error O(h^2), and so the result, for any k > 1.
    """

    def order(self, k: int) -> int:
        """min(k, 2)."""
        return min(k, 2)
