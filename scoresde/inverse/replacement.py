"""Replacement, and RePaint."""

from copy import copy
from dataclasses import dataclass

from torch import Tensor

from ..noise import Noise
from ..process import Reverse
from ..shapes import count
from ..steps import Step
from ..steps.step import Affine, predictor
from .maps import Mask
from .measure import Observation, observation


@dataclass(frozen=True, eq=False)
class Replacement(Step):
    """A step, after which the known numbers are those of y with noise of their own, alpha_s y + sigma_s z (Song et al.
    2021, appendix I.2); where sigma_s = 0 they are y itself. times: how often an interval is taken, from the second on
    after noise from s back to t (RePaint: Lugmayr et al. 2022, algorithm 1), so that the rest may follow; that into
    sigma_s = 0 is taken once. The way back needs noise of its own, which that of a path has not, and refuses.

    It is the step of no law. Raises ValueError unless the observation is through a Mask and the step is a predictor,
    and one that remembers nothing where an interval is taken more than once.
    """

    step: Step
    seen: Observation
    times: int = 1

    def __post_init__(self) -> None:
        if not isinstance(observation(self.seen).A, Mask):
            raise ValueError(f"seen must be through a Mask, got {type(self.seen.A).__name__}")
        predictor(self.step)
        if count("times", self.times) > 1 and not isinstance(self.step, Affine):
            raise ValueError(
                f"step must remember nothing where intervals are taken {self.times} times, got {self.step!r}"
            )

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """Raises ValueError where the step inside does."""
        self.step.check(p, t, s)

    def prepare(self, p: Reverse, t: Tensor, s: Tensor) -> Step:
        """With the step inside started."""
        started = copy(self)
        object.__setattr__(started, "step", self.step.start(p, t, s))  # which is no Affine any more
        return started

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        A = self.seen.A
        assert isinstance(A, Mask)
        (a, b), (v, w) = ([float(of(u)) for u in (t, s)] for of in (p.sde.alpha, p.sde.var))
        times = self.times if w else 1
        for k in range(times):
            y = self.step(p, x, t, s, noise)
            known = b * self.seen.rows(y) + w**0.5 * A(noise(y, t, s))
            y = y + A.adjoint(known - A(y))
            if k + 1 < times:
                x = a / b * y + max(0.0, v - (a / b) ** 2 * w) ** 0.5 * noise(y, t, t)
        return y
