"""Discrete data, and what a density says of them.

Data on a grid with bins of width h have probabilities, P(x) = int over the bin of the model's density. With x_t drawn
from a law q(x_t | x) around the datum x,

    log P(x) >= E log p_t(x_t) + log w,    w = p(x | x_t) / q(x_t | x),

and a `Dequantization` says q and w. For those on the bin itself p(x | x_t) = 1. The mean over K draws inside the
logarithm is a tighter bound (Burda et al. 2016; Ho et al. 2019).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import Noise, iid
from .sde import Reverse
from .shapes import as_time, count, number, state


@dataclass(frozen=True)
class Quantized:
    """Discrete data: `levels` equally spaced values from `low` to `high`, as the data are stored.

    A bin has the width h = (high - low)/(levels - 1) in every dimension, and the probability of a bin is h^d times the
    mean density in it, so -log2 P / d = -log p / (d log 2) - log2 h: the Jacobian follows from the object.
    """

    levels: int
    low: float
    high: float

    def __post_init__(self) -> None:
        count("levels", self.levels, least=2)
        number("high", self.high, above=number("low", self.low))

    @property
    def width(self) -> float:
        """h."""
        return (self.high - self.low) / (self.levels - 1)

    def check(self, x: Tensor) -> Tensor:
        """Return x; raise ValueError unless every value is one of the levels (to 1e-3 of a bin)."""
        k = (state("x", x) - self.low) / self.width
        if k.min() < -1e-3 or k.max() > self.levels - 1 + 1e-3:
            raise ValueError(
                f"x must be inside [{self.low:g}, {self.high:g}], got {float(x.min()):g} to {float(x.max()):g}"
            )
        if (k - k.round()).abs().max() > 1e-3:
            raise ValueError(
                f"x must hold the {self.levels} levels of {self}, got values between them: is it dequantised already?"
            )
        return x

    def dequantize(self, x: Tensor, noise: Noise = iid()) -> Tensor:
        """x + h (u - 1/2) with u uniform on (0, 1): the law with density P(bin)/h^d on each bin (Theis et al. 2016)."""
        t = as_time(0.0)
        u = torch.special.ndtr(noise(x, t, t))
        return self.check(x) + self.width * (u - 0.5)

    def log_bin(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The discretised decoder: log of the mass that N(mean, std^2) gives to each bin of x, in nats, elementwise.
        The first and the last bin reach to infinity (Ho et al. 2020, eq. 13).

        log(Phi(b) - Phi(a)) is taken from log Phi on the side where it is small, so far tails keep their digits.
        std has the shape of x, or (); it is computed in float64.
        """
        x, mean, std = (a.to(torch.float64) for a in (self.check(x), mean, std))
        top, bottom = x > self.high - self.width / 2, x < self.low + self.width / 2
        b = torch.where(top, math.inf, (x + self.width / 2 - mean) / std)
        a = torch.where(bottom, -math.inf, (x - self.width / 2 - mean) / std)
        flip = a > 0
        low, high = (torch.special.log_ndtr(torch.where(flip, -u, v)) for u, v in ((b, a), (a, b)))
        return high + torch.log(-torch.expm1(low - high))

    def bits_per_dim(self, log_p: Tensor, d: int) -> Tensor:
        """-log p / (d log 2) - log2 h for log-densities in nats of dequantised samples of d dimensions.

        Its mean over uniform dequantisation bounds the bits/dim of the discrete data from above.
        """
        return -log_p / (count("d", d) * math.log(2)) - math.log2(self.width)


class Dequantization(ABC):
    """How discrete data become states of the flow at the time t where it ends."""

    @abstractmethod
    def __call__(self, p: Reverse, data: Quantized, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """(x_t, log w), (B, *D) and (B,)."""


@dataclass(frozen=True)
class Uniform(Dequantization):
    """x + h (u - 1/2), u uniform: log w = d log h (Theis et al. 2016). The density at t is taken for that at 0."""

    def __call__(self, p: Reverse, data: Quantized, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        d = x[0].numel()
        return data.dequantize(x, noise), x.new_full((len(x),), d * math.log(data.width))


@dataclass(frozen=True)
class TruncatedNormal(Dequantization):
    """alpha x + sigma u with u normal and cut to |u| < tau = alpha h/(2 sigma), for models trained on the discrete data
    themselves (Zheng et al. 2023, section 4.2): log w = d log sigma + sum (u^2/2) + d log((2 pi)^(1/2) Z), where Z is
    the mass that is not cut. It is tight where tau is about 3.
    """

    def __call__(self, p: Reverse, data: Quantized, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        alpha, sigma = p.sde.alpha(t), p.sde.sigma(t)
        tau = alpha * data.width / (2 * sigma)
        tail, most = torch.special.ndtr(-tau), float(tau)
        v = torch.special.ndtr(noise(data.check(x), t, t))
        u = torch.special.ndtri(tail + (1 - 2 * tail) * v.double()).clamp(-most, most).to(x)
        constant = sigma.log() + math.log(2 * math.pi) / 2 + torch.log1p(-2 * tail)
        return alpha * x + sigma * u, (u.square() / 2).flatten(1).sum(1) + x[0].numel() * constant.to(x)


@dataclass(frozen=True)
class Decoded(Dequantization):
    """alpha x + sigma z with z normal, read back by the discretised Gaussian around E[x_0 | x_t] of width sigma/alpha
    (Ho et al. 2020, eq. 13): log w = log p(x | x_t) - log q(x_t | x). One more network call.
    """

    def __call__(self, p: Reverse, data: Quantized, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        x_t, z = p.sde.perturb(data.check(x), t, noise)
        sigma = p.sde.sigma(t)
        q = -((z.square() + math.log(2 * math.pi)) / 2 + sigma.log()).flatten(1).sum(1)
        read = data.log_bin(x, p.denoise(x_t, t), sigma / p.sde.alpha(t)).flatten(1).sum(1).to(x)
        return x_t, read - q
