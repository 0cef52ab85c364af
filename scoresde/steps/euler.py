"""Predictors: steps that carry x from t to s < t. `ancestral` holds those that draw from the chain's posterior."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..noise import Noise
from ..ode import Embedded, Field, Heun, OneStep
from ..process import Reverse, needs_noise
from ..shapes import number
from .step import Affine, Prepared, Run, Step, Wrapping

FARTHEST = 1.5
"""The longest step in lambda that is chosen by an estimate of its error. The flow of N(0, c^2 I) has S = sqrt(c^2 +
exp(-2 lambda)), whose nearest singularities lie pi/2 from the real axis: about one end of a longer step a series says
nothing of the other, and the difference of two solutions may be 0 by chance.
"""


def needs_flow(p: Reverse) -> None:
    """Raise ValueError unless p is a probability flow."""
    if p.eta:
        raise ValueError(f"an ODE step needs the probability flow, eta=0, got eta={p.eta:g}")


@dataclass(frozen=True)
class EulerMaruyama(Affine):
    """x_s = x + (s - t) drift(x, t) + g_p(t) sqrt(t - s) z, on any process, linear or not (Maruyama 1955).
    Strong and weak order 1.
    """

    upwards: ClassVar[bool] = True
    noisy: ClassVar[bool] = True
    order: ClassVar[int] = 1
    strong: ClassVar[float] = 1.0
    weak: ClassVar[float] = 1.0

    def line(self, p: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """1 + (s - t) f, (t - s) (1 + eta^2)/2 g^2, eta g sqrt(t - s), of a linear SDE."""
        h, g2 = t - s, p.sde.g2(t)
        return 1 - h * p.sde.f(t), h * (1 + p.eta_at(t) ** 2) / 2 * g2, (p.eta_at(t) ** 2 * g2 * h).sqrt()

    def prepare(self, p: Reverse, t: Tensor, s: Tensor) -> Step:
        """With the numbers of each interval, of a linear SDE."""
        return super().prepare(p, t, s) if hasattr(p.sde, "g2") else self

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        mean = x + (s - t) * p.drift(x, t)
        return mean + p.diffusion(t) * (t - s).sqrt() * noise(x, t, s) if p.eta_at(t) else mean


@dataclass(frozen=True)
class ReverseDiffusion(Affine):
    """The reverse SDE discretised as the forward chain is (Song et al. 2021, eq. 46).

    With x_t | x_s ~ N(a x_s, v I): x_s = (2 - a) x + (1 + eta^2)/2 v score + eta sqrt(v) z.
    """

    noisy: ClassVar[bool] = True
    order: ClassVar[int] = 1
    strong: ClassVar[float] = 1.0
    weak: ClassVar[float] = 1.0

    def line(self, p: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """2 - a, (1 + eta^2)/2 v, eta sqrt(v)."""
        a, v = p.sde.transition(t, s)
        return 2 - a, (1 + p.eta_at(t) ** 2) / 2 * v, p.eta_at(t) * v.sqrt()


@dataclass(frozen=True)
class Flow(Step):
    """Any ODE solver on the probability flow, dx/dt = f x - g^2/2 score.

    Raises ValueError when used with eta != 0, and where the solver asks for the score at sigma = 0, which is singular:
    end the grid at t > 0 and take `p.denoise` for the last hop.
    """

    method: OneStep = Heun()

    def __post_init__(self) -> None:
        if isinstance(self.method, (type, Step)) or not callable(self.method):
            raise ValueError(f"method must be a solver such as Heun(), got {self.method!r}")

    @property
    def upwards(self) -> bool:  # type: ignore[override]
        """It is, with a method of fixed steps; `encode` is for those that choose their own."""
        return not isinstance(self.method, Embedded)

    @property
    def order(self) -> int | None:  # type: ignore[override]
        """That of the method, if it says it; of an adaptive method, in the step sizes that it chooses."""
        return getattr(self.method, "order", None)

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """eta is 0, and sigma > 0 at the end if the solver asks for the score there."""
        needs_flow(p)
        if getattr(self.method, "ends", False):
            needs_noise(p, s)

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        return (
            self.run(p, x, t, s, noise).x if isinstance(self.method, Embedded) else self.method(self._drift(p), x, t, s)
        )

    def run(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Run:
        """With the steps taken, none longer than `FARTHEST` in lambda on a linear SDE. Raises ValueError if the method
        does not choose its own.
        """
        if not isinstance(self.method, Embedded):
            raise ValueError(f"method must choose its own steps, as Dopri5() does, got {self.method!r}")

        def reach(now: Tensor, h: Tensor) -> Tensor:
            if not hasattr(p.sde, "log_snr"):
                return h
            return torch.maximum(h, p.sde.time(p.sde.log_snr(now) + FARTHEST) - now)

        y, tally = self.method.solve(self._drift(p), x, t, s, reach)
        return Run(y, *tally)

    @staticmethod
    def _drift(p: Reverse) -> Field:
        needs_flow(p)

        def drift(u: Tensor, y: Tensor) -> Tensor:
            if not u.is_cuda:
                needs_noise(p, u)
            return p.drift(y, u)

        return drift


@dataclass(frozen=True)
class Churn(Prepared):
    """Forget a little, then let `step` pay for it (Karras et al. 2022, Algorithm 2), on any linear SDE.

    Where low <= sigma/alpha <= high, x is first carried back to the time u with sigma/alpha larger by the factor
    1 + gamma (never beyond T), by the forward transition with its noise times `noise`; `step` then goes from u to s.
    gamma = min(churn/n, sqrt(2) - 1) with n the intervals that the step is started on. With churn = 0 it is `step`
    itself; else it draws noise on the probability flow too, as theirs does, and raises ValueError for a multistep
    method, whose memory does not outlast noise.
    """

    step: Step = Flow()
    churn: float = 40.0
    """S_churn."""
    low: float = 0.0
    """S_tmin."""
    high: float = 1e300
    """S_tmax."""
    noise: float = 1.0
    """S_noise."""

    def __post_init__(self) -> None:
        number("churn", self.churn, least=0)
        number("high", self.high, least=number("low", self.low, least=0))
        number("noise", self.noise, least=0)
        if not isinstance(self.step, Step) or not self.step.moves:
            raise ValueError(f"step must be a predictor such as Flow(), got {self.step!r}")
        if self.churn and self.step.fixed:
            raise ValueError(f"step must take any interval, as a method of one step does, got {self.step!r}")

    @property
    def fixed(self) -> bool:  # type: ignore[override]
        """As the step is."""
        return self.step.fixed

    @property
    def upwards(self) -> bool:  # type: ignore[override]
        """Without churn, as the step is."""
        return not self.churn and self.step.upwards

    @property
    def order(self) -> int | None:  # type: ignore[override]
        """Without churn, that of the step."""
        return None if self.churn else self.step.order

    def prepare(self, p: Reverse, t: Tensor, s: Tensor) -> Step:
        """With `step` started where the noise leads to."""
        if not self.churn:
            self.step.check(p, t, s)
            return self.step.prepare(p, t, s)
        lam = p.sde.log_snr(t)
        sigma, gamma = (-lam).exp(), min(self.churn / len(t), math.sqrt(2) - 1)
        back = p.sde.time(lam - math.log1p(gamma)).clamp(max=p.T)
        u = torch.where((self.low <= sigma) & (sigma <= self.high), torch.maximum(back, t), t)
        a, v = p.sde.transition(u, t)
        kicks = zip(u, a.tolist(), (self.noise * v.clamp_min(0).sqrt()).tolist(), strict=True)
        return _Churned(self, t, s, kicks, self.step.start(p, u, s))


class _Churned(Wrapping):
    """A step `inner` after a kick: the time u that it leads to, and (a, std) of x_u | x_t."""

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        u, a, std = self.at(t, s)
        return self.inner(p, (a * x).add_(noise(x, t, u), alpha=std) if u > t else x, u, s, noise)
