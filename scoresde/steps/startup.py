"""How a multistep method takes its first intervals, where it knows fewer nodes than it will have."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ..shapes import count
from .singlestep import Tableau


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


@dataclass(frozen=True)
class Staged(StartUp):
    """The first intervals by a method of one step, whose q at their beginnings are the nodes of those after; then the
    orders rise from there, if need be. Intervals to sigma = 0 are none of them.
    """

    tableau: Tableau
    intervals: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.tableau, Tableau):
            raise ValueError(f"tableau must be a value such as Thirds(), got {self.tableau!r}")
        count("intervals", self.intervals)

    def order(self, k: int) -> int:
        """min(k, order of the tableau + 1, intervals + 2): errors of few intervals count as one power of h less."""
        return min(k, self.tableau.order + 1, self.intervals + 2)
