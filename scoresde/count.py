"""The true number of network calls."""

from typing import Any

from torch import Tensor


class Counted:
    """A callable that counts its calls: `Counted(score).nfe` is the number of network calls made so far.

    Rejected steps, correctors and the stages of a Runge-Kutta method all call the score, so all are counted.
    """

    def __init__(self, f: Any) -> None:
        self.f, self.nfe = f, 0  # before any look-up can reach __getattr__

    def __getattr__(self, name: str) -> Any:
        """The same attribute of f; a method of it, such as `log_prob` of an energy, counts as a call too."""
        value = getattr(self.f, name)
        if not callable(value):
            return value

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.nfe += 1
            return value(*args, **kwargs)

        return counted

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.nfe += 1
        return self.f(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Counted({self.f!r}, nfe={self.nfe})"
