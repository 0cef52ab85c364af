"""log p(x) by the instantaneous change of variables along the probability flow.

With dx/dt = v(x, t): log p_{t_0}(x(t_0)) = log p_T(x(T)) + int_{t_0}^T div v dt (Chen et al. 2018; Song et al. 2021,
eq. 39). log p_T is taken to be the SDE's prior unless another is given. The value is the log-density of x at time
t_0 = ts[0], in nats.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from .noise import Noise, iid
from .ode import Dopri5, Method
from .sde import Reverse, Score
from .shapes import as_time, count, number, state, times

Divergence = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]


class Trace(ABC):
    """How the divergence of the drift is computed."""

    @abstractmethod
    def start(self, x: Tensor) -> Divergence:
        """A function (v, x) -> v(x), div v(x) for the length of one integration: ((B, *D), (B,))."""


@dataclass(frozen=True)
class Exact(Trace):
    """sum_i dv_i/dx_i, by vector-Jacobian products over `chunk` dimensions at a time. d products for d dimensions."""

    chunk: int = 64

    def __post_init__(self) -> None:
        count("chunk", self.chunk)

    def start(self, x: Tensor) -> Divergence:
        d = x[0].numel()
        eye = torch.eye(d, dtype=x.dtype, device=x.device)

        def divergence(v: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                y = v(x)
            total = x.new_zeros(len(x))
            for start, rows in zip(range(0, d, self.chunk), eye.split(self.chunk), strict=True):
                probes = rows.view(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
                (g,) = torch.autograd.grad(y, x, probes, is_grads_batched=True, retain_graph=start + self.chunk < d)
                total = total + torch.einsum("kbk->b", g.flatten(2)[..., start : start + self.chunk])
            return y.detach(), total

        return divergence


@dataclass(frozen=True)
class Hutchinson(Trace):
    """z^T (dv/dx) z with one Rademacher probe z for each sample, kept over the path (Grathwohl et al. 2019). Unbiased.

    The probe is the sign of a draw of `noise`: with `per_sample` streams a sample's probe is its own.
    """

    noise: Noise = field(default_factory=iid)

    def start(self, x: Tensor) -> Divergence:
        t = as_time(0.0)
        probe = torch.where(self.noise(x, t, t) < 0, -1.0, 1.0).to(x)

        def divergence(v: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                y = v(x)
                (g,) = torch.autograd.grad((y * probe).sum(), x)
            return y.detach(), (g * probe).flatten(1).sum(1)

        return divergence


def _differentiable(score: Score) -> Score:
    """The score, which must carry gradients: computed under no_grad, its part of the divergence would be lost."""

    def asked(x: Tensor, t: Tensor) -> Tensor:
        s = score(x, t)
        if x.requires_grad and not s.requires_grad:
            raise ValueError(
                "score must be differentiable in x, but its result carries no gradient: is it computed under no_grad? "
                "(A score that is constant in x can add 0 * x.)"
            )
        return s

    return asked


@torch.no_grad()
def log_prob(
    p: Reverse,
    x: Tensor,
    ts: Tensor | None = None,
    method: Method = Dopri5(),
    divergence: Trace = Exact(),
    log_prior: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """log p_{t_0}(x) of the flow's own model in nats: (B, *D) -> (B,), in the dtype of x.

    ts: increasing times from t_0 to T, `[sde.t_min, sde.T]` if None; a fixed-step `method` takes one step an interval.
    log_prior: log p_T, (B, *D) -> (B,); `sde.log_prior` if None.
    The state and its log-density are solved as one system, sample by sample if the method is adaptive.

    Raises ValueError before any work unless p has eta=0, x is finite, ts increases, ends at T and begins where
    sigma > 0; RuntimeError, naming the sample and the time, if the drift is not finite on the way.
    """
    if not isinstance(p, Reverse) or p.eta:
        raise ValueError(f"p must be a probability flow, sde.reverse(score, eta=0), got {p!r}")
    sde, shape = p.sde, state("x", x).shape
    ts = torch.tensor([sde.t_min, sde.T], dtype=torch.float64) if ts is None else ts
    ts = times("ts", ts, sde.T, increasing=True)
    if sde.var(ts[0]) == 0:
        raise ValueError(
            f"ts must begin where sigma > 0, since the score is singular at sigma = 0, got ts[0] = {float(ts[0]):g}"
        )
    if abs(float(ts[-1]) - sde.T) > 1e-6 * sde.T:
        raise ValueError(f"ts must end at T = {sde.T:g}, where the prior is, got {float(ts[-1]):g}")
    trace, p = divergence.start(x), Reverse(sde, _differentiable(p.score), 0.0)

    def augmented(t: Tensor, y: Tensor) -> Tensor:
        v, div = trace(lambda x: p.drift(x, t), y[:, :-1].view(shape))
        return torch.cat([v.flatten(1), div[:, None]], 1)

    y = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
    for t, s in pairwise(ts):
        y = method(augmented, y, t, s)
    return (log_prior or sde.log_prior)(y[:, :-1].view(shape)) + y[:, -1]


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


def bits_per_dim(
    p: Reverse,
    x: Tensor,
    data: Quantized,
    ts: Tensor | None = None,
    method: Method = Dopri5(),
    divergence: Trace = Exact(),
    noise: Noise = iid(),
    log_prior: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Bits per dimension of discrete samples x (B, *D) under uniform dequantisation: -> (B,). See `log_prob`."""
    nats = log_prob(p, data.dequantize(x, noise), ts, method, divergence, log_prior)
    return data.bits_per_dim(nats, x[0].numel())
