"""Discrete data, and what a density says of them: the Jacobian follows from the grid that they lie on."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import Noise, drawn, iid
from .shapes import as_time, count, lifted, number, reals, state, wide


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
        """h, the distance between two neighbouring levels."""
        return (self.high - self.low) / (self.levels - 1)

    def check(self, x: Tensor) -> Tensor:
        """Return x; raise ValueError unless every value is one of the levels (to 1e-3 of a bin)."""
        k = (lifted(state("x", x)) - self.low) / self.width
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
        """x + h (u - 1/2) with u uniform on (0, 1): the law with density P(bin)/h^d on each bin (Theis et al. 2016), in
        float32 or better.
        """
        t, x = as_time(0.0), lifted(self.check(x))
        u = torch.special.ndtr(drawn(noise, x, t, t))
        return x + self.width * (u - 0.5)

    def log_bin(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The discretised decoder: log of the mass that N(mean, std^2) gives to each bin of x, in nats, elementwise.
        The first and the last bin reach to infinity (Ho et al. 2020, eq. 13).

        log(Phi(b) - Phi(a)) is taken from log Phi on the side where it is small, so far tails keep their digits.
        std has the shape of x, or (); it is computed in float64.
        """
        x, mean, std = self.check(x).to(torch.float64), reals("mean", mean), reals("std", std)
        if not (std > 0).all():
            raise ValueError(f"std must be above 0, got {float(std.min()):g}")
        for name, value in (("mean", mean), ("std", std)):
            if value.ndim and value.shape != x.shape:
                raise ValueError(f"{name} must have shape () or {tuple(x.shape)}, got {tuple(value.shape)}")
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
        return -wide("log_p", log_p) / (count("d", d) * math.log(2)) - math.log2(self.width)
