"""Correctors: steps that stay at a time and bring x closer to its law there."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..noise import Noise
from ..process import Reverse, needs_noise
from ..shapes import SCALE, count, like, number, wide
from .step import Step


class StepSize(ABC):
    """The e of x + e score + sqrt(2 e) z: (p, t, score, z) -> () or (B,)."""

    @abstractmethod
    def __call__(self, p: Reverse, t: Tensor, score: Tensor, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Constant(StepSize):
    """The step size e itself, at every level."""

    e: float
    """The step size."""

    def __post_init__(self) -> None:
        number("e", self.e, above=0, most=SCALE**2)

    def __call__(self, p: Reverse, t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        return torch.tensor(self.e, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class NCSN(StepSize):
    """eps sigma_t^2 / sigma_min^2 / 2 (Song & Ermon 2019, Algorithm 1, whose alpha_i is 2e)."""

    eps: float = 2e-5
    """The paper's epsilon: twice the step size at the least noisy level."""
    sigma_min: float = 0.01
    """sigma of the least noisy level."""

    def __post_init__(self) -> None:
        number("eps", self.eps, above=0, most=SCALE)
        number("sigma_min", self.sigma_min, least=1 / SCALE, most=SCALE)

    def __call__(self, p: Reverse, t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        return self.eps * p.sde.var(t) / self.sigma_min**2 / 2


@dataclass(frozen=True)
class SNR(StepSize):
    """min(2 (r |z| / |score|)^2, sigma_t^2), with the norms of each sample (Song et al. 2021, Algorithms 4 and 5).

    r is the ratio of the sizes of score term and noise. Two departures from the paper make a sample's step its own:
    norms are not averaged over the batch, and the factor alpha_i = 1 - beta_i of Algorithm 5, which tends to 1 as the
    number of steps grows, is left out. The bound matters in a few dimensions, where |score| comes close to 0: p_t is a
    convolution with N(0, sigma_t^2), so its log-density curves down by at most 1/sigma_t^2, and e <= sigma_t^2 never
    overshoots. The step depends on x and z, so p_t is not quite stationary under it, however many steps are taken: the
    variance of N(0, I) becomes 4.2 in 2 dimensions, 1.6 in 8 and 1.1 in 64 after 300 corrections of VP at alpha = sigma
    and r = 0.16. In a few dimensions `NCSN` or `Constant` serve better.
    """

    r: float = 0.16
    """The signal-to-noise ratio of a step."""

    def __post_init__(self) -> None:
        number("r", self.r, above=0, most=1e3)

    def __call__(self, p: Reverse, t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        z2, s2 = (a.flatten(1).square().sum(1) for a in (wide("z", z), wide("score", score)))
        return (2 * self.r**2 * z2 / s2).clamp_max(float(p.sde.var(t)))


@dataclass(frozen=True)
class Langevin(Step):
    """n steps of x + e score(x, t) + sqrt(2 e) z at time t, unadjusted Langevin dynamics.

    Alone on a grid it is annealed Langevin dynamics, beside a predictor the corrector of Song et al. (2021). Raises
    ValueError at sigma = 0, where the score is singular, and on the probability flow (eta = 0), which draws no noise.
    """

    step_size: StepSize = SNR()
    n: int = 1
    moves: ClassVar[bool] = False

    def __post_init__(self) -> None:
        count("n", self.n)
        if isinstance(self.step_size, type) or not callable(self.step_size):
            raise ValueError(f"step_size must be a rule such as SNR(0.16) or Constant(1e-3), got {self.step_size!r}")

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """eta > 0, and sigma > 0 at every time."""
        if not p.eta:
            raise ValueError("Langevin dynamics is random: it needs a process with eta > 0, got eta=0")
        needs_noise(p, t)

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        self.check(p, t, s)
        dtype, x = x.dtype, wide("x", x)
        for _ in range(self.n):
            score, z = p.ask(x, t), noise(x, t, t)
            e = self.step_size(p, t, score, z)
            x = x + like(e, x) * score + like((2 * e).sqrt(), x) * z
        return x.to(dtype)


def ncsnv2_step(ratio: float, n: int) -> float:
    """The r = epsilon/sigma_L^2 for which n Langevin steps a level keep the variance best in step with the levels.

    With levels sigma_{i-1} = ratio sigma_i and data at a point, steps of e = r sigma_i^2 take the variance at level i,
    in units of sigma_i^2, from ratio^2 to (1 - r)^(2n) (ratio^2 - b) + b with b = 2r/(1 - (1 - r)^2) > 1. The r in
    (0, 1) that brings it closest to 1 is returned (Song & Ermon 2020, technique 4), and the rule with it is
    `NCSN(2 * r * sigma_min**2, sigma_min)`. Raises ValueError unless ratio > 1.
    """
    from scipy.optimize import minimize_scalar  # here, since it is slow to import

    number("ratio", ratio, above=1)
    count("n", n)

    def variance(r: float) -> float:
        b = 1 / (1 - r / 2)
        return (1 - r) ** (2 * n) * (ratio**2 - b) + b

    return float(minimize_scalar(variance, bounds=(0, 1), method="bounded", options={"xatol": 1e-12}).x)
