"""Coordinates in which the probability flow is mild.

They are y = (x/alpha - m)/S with S^2 = c^2 + (sigma/alpha)^2, in which the flow does not move at all if the data are
N(m, c^2 I), over u = log((1 + r/k)/(1 + r/K)), r = sigma/alpha: equal steps in u are equal in r below k, in log r
between k and K, and in 1/r above. With lambda = log(alpha/sigma), E[x_0 | x] the denoiser and l = c^2/S^2,

    dy/dlambda = (E[x_0 | x] - m - l (x/alpha - m))/S,    d log p_y/dlambda = -(sigma^2 tr grad score + d (1 - l)),

so that the linear part of the drift and its divergence are known. k is LOW c for data without structure finer than
that. Discrete data have it: spread over levels of width h they are not smooth below h/12^(1/2), the deviation of noise
in a level, and the divergence is of size 1 in log r down to there or to the least noise.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..process import LinearSDE, Reverse
from ..reference import UNIT, Reference, known
from ..shapes import like

LOW, HIGH = 0.04, 3.0  # the largest k, and K, in units of c
FAR = 30.0  # deviations beyond which coordinates are not those of the data


class Place(NamedTuple):
    """What the coordinates are at some u, each () or (b,): the time, alpha, S and dlambda/du."""

    t: Tensor
    alpha: Tensor
    S: Tensor
    rate: Tensor


class Coordinates:
    """The coordinates y and u of the module, for the process `sde` and data like `around`, as states like x, which
    have no structure finer than `grain`.
    """

    def __init__(self, sde: LinearSDE, around: Reference, x: Tensor, grain: float = math.inf) -> None:
        self.sde, self.std = sde, around.checked(x.shape[1:]).std
        self.low = min(LOW, grain / self.std)
        self.mean = around.mean.to(x) if isinstance(around.mean, Tensor) else around.mean

    @classmethod
    def of(cls, p: Reverse, around: Reference | None, x: Tensor, grain: float = math.inf) -> "Coordinates":
        """Around what is said, or what the score was made for, or N(0, I)."""
        return cls(p.sde, known(around, p.score, x.shape[1:]) or UNIT, x, grain)

    def u(self, t: Tensor) -> Tensor:
        """log((1 + r/k)/(1 + r/K))."""
        r = (-self.sde.log_snr(t)).exp() / self.std
        return torch.log1p(r / self.low) - torch.log1p(r / HIGH)

    def at(self, u: Tensor) -> Place:
        """The place of u, computed once for all that is done there."""
        r = torch.expm1(u) / (1 / self.low - u.exp() / HIGH)
        t = self.sde.time(-(self.std * r).log())
        rate = -(self.low + r) * (HIGH + r) / ((HIGH - self.low) * r)
        return Place(t, self.sde.alpha(t), self.std * (1 + r**2).sqrt(), rate)

    def y(self, x: Tensor, at: Place, t: Tensor) -> Tensor:
        """From the state x at the time t () of a place."""
        return (x / self.sde.alpha(t) - self.mean) / at.S

    def x(self, y: Tensor, at: Place) -> Tensor:
        """Back to the state."""
        return like(at.alpha, y) * (self.mean + like(at.S, y) * y)

    def drift(self, y: Tensor, at: Place, denoised: Tensor) -> Tensor:
        """dy/du, from E[x_0 | x], (B, *D)."""
        return like(at.rate / at.S, y) * (denoised - self.mean) - like(at.rate * self.std**2 / at.S**2, y) * y

    def log_volume(self, at: Place) -> Tensor:
        """log |dx/dy| of one dimension."""
        return self.sde.log_alpha(at.t) + at.S.log()

    def far(self, x: Tensor, t: Tensor) -> str:
        """What is to be said of samples x at t that are not of the reference's size; nothing if they are."""
        off = (x.detach() / self.sde.alpha(t) - self.mean) / self.std
        size = float(off.flatten(1).square().mean(1).sqrt().max())
        if size <= FAR and (size * FAR >= 1 or x.numel() < 4):  # three numbers may be small by chance
            return ""
        return (
            f"the samples are up to {size:.3g} deviations of the Gaussian around from its mean, where the solver's "
            "error is told too small: give around=Reference.fit(data)"
        )
