"""Noise on a part of the way: eta as a function of the noise level."""

from dataclasses import dataclass

from torch import Tensor

from ..shapes import number


@dataclass(frozen=True)
class Between:
    """eta where low <= sigma/alpha <= high, and 0 elsewhere: noise in the middle of the way alone, as S_tmin and S_tmax
    (Karras et al. 2022, Algorithm 2) and the tau of SA-Solver (Xue et al. 2023, section 6) have it.

    On a step from t to s it is that of t, its beginning. Raises ValueError unless 0 < eta <= 1000 and 0 <= low <= high.
    """

    eta: float = 1.0
    low: float = 0.0
    high: float = 1e300

    def __post_init__(self) -> None:
        number("eta", self.eta, above=0, most=1e3)
        number("high", self.high, least=number("low", self.low, least=0))

    def __call__(self, log_snr: Tensor) -> Tensor:
        """eta where lambda is log_snr, in its shape."""
        level = (-log_snr).exp()
        return self.eta * ((self.low <= level) & (level <= self.high)).to(level)

    def __format__(self, spec: str) -> str:
        """As it is written, whatever numbers beside it look like."""
        return repr(self)
