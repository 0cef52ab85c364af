"""How discrete data become states of the flow.

With x_t drawn from a law q(x_t | x) around the datum x,

    log P(x) >= E log p_t(x_t) + log w,    w = p(x | x_t) / q(x_t | x),

and a `Dequantization` says q and w. For those on the bin itself p(x | x_t) = 1. The mean over `draws` inside the
logarithm is a tighter bound (Burda et al. 2016; Ho et al. 2019).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import Noise
from ..process import LinearSDE, Reverse
from ..quantize import Quantized
from ..shapes import count
from .samples import MANY


@dataclass(frozen=True)
class Dequantization(ABC):
    """Of data on the grid `quantized`. Raises ValueError unless that is one, and draws at least 1."""

    quantized: Quantized
    """The grid that the data lie on."""
    draws: int = 1
    """Draws that are averaged inside the logarithm."""

    def __post_init__(self) -> None:
        if not isinstance(self.quantized, Quantized):
            raise ValueError(f"quantized must be a grid such as Quantized(256, -1, 1), got {self.quantized!r}")
        count("draws", self.draws, most=MANY)

    @abstractmethod
    def __call__(self, p: Reverse, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """(x_t, log w), (B, *D) and (B,), at the time t where the flow ends."""

    def doubt(self, sde: LinearSDE, t: Tensor) -> str:
        """What is to be said where the flow ends at t; nothing if that is no reason to doubt."""
        return ""


@dataclass(frozen=True)
class Uniform(Dequantization):
    """x + h (u - 1/2), u uniform: log w = d log h (Theis et al. 2016). The density at t is taken for that at 0, which
    is warned of where its noise sigma/alpha is more than a third of h.
    """

    def doubt(self, sde: LinearSDE, t: Tensor) -> str:
        """Of noise that a grey level does not cover."""
        r, h = float((-sde.log_snr(t)).exp()), self.quantized.width
        if r <= h / 3:
            return ""
        return (
            f"the density at t = {float(t):g} is that of data with noise of sigma/alpha = {r:.3g}, which is not small "
            f"beside a grey level of {h:.3g}: end the flow earlier, Quadrature(t=), or take TruncatedNormal or Decoded"
        )

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        d = x[0].numel()
        return self.quantized.dequantize(x, noise), x.new_full((len(x),), d * math.log(self.quantized.width))


@dataclass(frozen=True)
class TruncatedNormal(Dequantization):
    """alpha x + sigma u with u normal and cut to |u| < tau = alpha h/(2 sigma), for models trained on the discrete data
    themselves (Zheng et al. 2023, section 4.2): log w = d log sigma + sum (u^2/2) + d log((2 pi)^(1/2) Z), where Z is
    the mass that is not cut. It is tight where tau is about 3.
    """

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        alpha, sigma = p.sde.alpha(t), p.sde.sigma(t)
        tau = alpha * self.quantized.width / (2 * sigma)
        tail, most = torch.special.ndtr(-tau), float(tau)
        v = torch.special.ndtr(noise(self.quantized.check(x), t, t))
        u = torch.special.ndtri(tail + (1 - 2 * tail) * v.double()).clamp(-most, most).to(x)
        constant = sigma.log() + math.log(2 * math.pi) / 2 + torch.log1p(-2 * tail)
        return alpha * x + sigma * u, (u.square() / 2).flatten(1).sum(1) + x[0].numel() * constant.to(x)


@dataclass(frozen=True)
class Decoded(Dequantization):
    """alpha x + sigma z with z normal, read back by the discretised Gaussian around E[x_0 | x_t] of width sigma/alpha
    (Ho et al. 2020, eq. 13): log w = log p(x | x_t) - log q(x_t | x). One more network call.
    """

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        x_t, z = p.sde.perturb(self.quantized.check(x), t, noise)
        sigma = p.sde.sigma(t)
        q = -((z.square() + math.log(2 * math.pi)) / 2 + sigma.log()).flatten(1).sum(1)
        mean = p.denoise(x_t, t)
        read = self.quantized.log_bin(x, mean, sigma / p.sde.alpha(t)).flatten(1).sum(1).to(x)
        return x_t, read - q
