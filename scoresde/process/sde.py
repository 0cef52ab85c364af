"""Ito SDEs, forward and reverse.

A linear SDE dx = f(t) x dt + g(t) dw is fixed by its marginals x_t | x_0 ~ N(alpha_t x_0, sigma_t^2 I), and

    f = d log alpha / dt,    g^2 = d sigma^2 / dt - 2 f sigma^2.

The marginal is the primitive, because differentiating (alpha, sigma) into (f, g) is exact and the inverse is not; log
alpha and sigma^2 are asked for because their derivatives stay finite at t = 0 and their differences do not cancel. t=0
is data and t=T is noise. Everything else follows: with the score of the marginals, the processes

    dx = [f x - (1 + eta^2)/2 g^2 score(x, t)] dt + eta g dw

run backwards all have the marginals of the forward SDE (Anderson 1982 for eta=1; Song et al. 2021, eq. 13, for the
probability-flow ODE, eta=0). `linear` holds the SDEs that the literature uses.

Shapes: x is (B, *D) for any D; t is () or (B,), and functions of time alone return its shape.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import get_annotations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..noise import Noise, drawn, iid
from ..shapes import (
    answer,
    as_time,
    dims,
    floating,
    function,
    inside,
    like,
    number,
    recordable,
    recording,
    rounded,
    shown,
    wide,
)
from .between import Between
from .simulate import simulate

Score = Callable[[Tensor, Tensor], Tensor]


def derivative(fn: Callable[[Tensor], Tensor], t: Tensor | float) -> Tensor:
    """d fn / dt of an elementwise function, by automatic differentiation."""
    with recording():
        u: Tensor = recordable(as_time(t)).detach().requires_grad_()
        y = fn(u)
        return torch.autograd.grad(y.sum(), u)[0] if y.requires_grad else torch.zeros_like(u)  # a constant


class SDE(ABC):
    """dx = drift(x, t) dt + diffusion(t) dw, linear in x or not."""

    T: float = 1.0

    @abstractmethod
    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, *D), () or (B,) -> (B, *D)."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """() or (B,) -> the same shape."""

    def simulate(self, x: Tensor, ts: Tensor, *, steps: int = 1000, seed: int = 0, **options: Any) -> Tensor:
        """Paths from x at time ts[0] through the times ts, which may increase or decrease -> (len(ts), B, *D).

        Solved by `torchsde.sdeint` from each time to the next, in equal steps no longer than the whole range / `steps`;
        `options` are its own (`method`, `adaptive`, `rtol`, `bm`, ...). `seed` fixes the Brownian path, whatever the
        method and the steps. Raises ValueError if ts is not monotone.
        """
        return simulate(self, x, ts, steps, seed, options)

    def reverse(self, score: Score, eta: float | Between = 1.0) -> "Reverse":
        """The processes with the same marginals run backwards: eta=1 reverse SDE, eta=0 probability-flow ODE, and
        Between(1.0, low, high) the reverse SDE at these noise levels and the flow at others.
        """
        return Reverse(self, score, eta)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if hasattr(type(self), name):  # a property that raised: say what it said
                return object.__getattribute__(self, name)
            if name in MARGINAL:
                if isinstance(vars(self).get("sde"), LinearSDE):
                    raise AttributeError(f"{type(self).__name__} has no `{name}`: ask its `sde` for it")
                raise AttributeError(
                    f"{type(self).__name__} has no `{name}`: the marginals x_t | x_0 of an SDE whose drift is not "
                    "linear in x have no closed form. Use `simulate`, or subclass LinearSDE if the drift is f(t) x."
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class LinearSDE(SDE):
    """dx = f(t) x dt + g(t) dw, given by x_t | x_0 ~ N(alpha_t x_0, sigma_t^2 I).

    A subclass writes `log_alpha` and `var`, elementwise in t. `T` is where noise is, `t_min` the smallest time at which
    samplers and losses ask for a score unless told otherwise (a score is singular where sigma = 0).
    """

    t_min: float = 1e-3

    def __init_subclass__(cls) -> None:
        """Raise TypeError for a t_min that a field of a base would hide."""
        super().__init_subclass__()
        fields = any("t_min" in getattr(base, "__dataclass_fields__", {}) for base in cls.__mro__[1:])
        if fields and "t_min" in vars(cls) and "t_min" not in get_annotations(cls):
            raise TypeError(f"t_min of {cls.__name__} must be a field of a dataclass, t_min: float = ...")

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha_t, non-increasing, 0 at t=0."""

    @abstractmethod
    def var(self, t: Tensor) -> Tensor:
        """sigma_t^2, the variance of x_t | x_0, in the shape of t."""

    def alpha(self, t: Tensor | float) -> Tensor:
        """alpha_t, what is left of x_0 in x_t. Like sigma and log_snr it goes on beyond T, as far as its formula does;
        all three raise ValueError for times on the CPU that are negative, infinite or nan.
        """
        return self.log_alpha(inside(t, self.T, beyond=True)).exp()

    def sigma(self, t: Tensor | float) -> Tensor:
        """sigma_t, the deviation of x_t | x_0."""
        return self.var(inside(t, self.T, beyond=True)).sqrt()

    def log_snr(self, t: Tensor | float) -> Tensor:
        """lambda_t = log(alpha_t / sigma_t), strictly decreasing: half the logarithm of the signal-to-noise ratio.
        It is infinite where sigma = 0.
        """
        t = inside(t, self.T, beyond=True)
        return self.log_alpha(t) - self.var(t).log() / 2

    def f(self, t: Tensor) -> Tensor:
        """f(t) = d log alpha / dt."""
        return derivative(self.log_alpha, t)

    def g2(self, t: Tensor) -> Tensor:
        """g(t)^2 = d sigma^2 / dt - 2 f(t) sigma^2."""
        t = as_time(t)
        return derivative(self.var, t) - 2 * self.f(t) * self.var(t)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The forward drift f(t) x, (B, *D)."""
        w = wide("x", x)
        return rounded(like(self.f(inside(t, self.T)), w) * w, x)

    def diffusion(self, t: Tensor) -> Tensor:
        """The diffusion coefficient g(t), in the shape of t."""
        return self.g2(inside(t, self.T)).sqrt()

    def perturb(self, x_0: Tensor, t: Tensor | float, noise: Noise = iid()) -> tuple[Tensor, Tensor]:
        """(x_t, z) with x_t = alpha_t x_0 + sigma_t z. Raises ValueError for an x_0 of whole numbers, and for times on
        the CPU outside [0, T].
        """
        t, w = inside(t, self.T), wide("x_0", x_0)
        z = drawn(noise, w, t, t)
        x_t = like(self.alpha(t), w) * w + like(self.sigma(t), w) * z
        return rounded(x_t, x_0), rounded(z, x_0)

    def transition(self, t: Tensor | float, s: Tensor | float) -> tuple[Tensor, Tensor]:
        """(a, v) with x_t | x_s ~ N(a x_s, v I) for s <= t: a = alpha_t/alpha_s, v = sigma_t^2 - a^2 sigma_s^2. Raises
        ValueError for times of different shapes and, on the CPU, outside [0, T] or with s > t.
        """
        t, s = inside(t, self.T), inside(s, self.T, "s")
        if t.ndim and s.ndim and t.shape != s.shape:
            raise ValueError(f"t and s must have one shape, got {tuple(t.shape)} and {tuple(s.shape)}")
        if t.is_cpu and s.is_cpu and (t < s).any():
            raise ValueError(f"s must not be later than t, got s = {shown(s.tolist())} and t = {shown(t.tolist())}")
        a = (self.log_alpha(t) - self.log_alpha(s)).exp()
        fall = (self.log_snr(t) - self.log_snr(s)).nan_to_num(0.0, neginf=-math.inf)  # 0 also from sigma = 0 to itself
        return a, -self.var(t) * torch.expm1(2 * fall)

    def time(self, log_snr: Tensor) -> Tensor:
        """The t in [0, T] with lambda_t = log_snr: by bisection here, in closed form in those of `linear`."""
        log_snr = as_time(log_snr, "log_snr")
        low, high = torch.zeros_like(log_snr), torch.full_like(log_snr, self.T)
        for _ in range(80):
            mid = (low + high) / 2
            above = self.log_snr(mid) > log_snr
            low, high = torch.where(above, mid, low), torch.where(above, high, mid)
        return (low + high) / 2

    def prior(
        self,
        shape: Sequence[int],
        noise: Noise = iid(),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """x_T ~ N(0, sigma_T^2 I), the law that p_T is replaced by when sampling."""
        x, T = torch.empty(dims("shape", shape, least=0), dtype=dtype, device=device), as_time(self.T)
        return rounded(self.sigma(T) * drawn(noise, wide("shape", floating("dtype", x)), T, T), x)

    def log_prior(self, x: Tensor) -> Tensor:
        """log N(x; 0, sigma_T^2 I) in nats: (B, *D) -> (B,), in float32 for half precision."""
        x, v = wide("x", x, dims=2), self.var(as_time(self.T))
        return -0.5 * (x.square() / v + (2 * math.pi * v).log()).flatten(1).sum(1)


MARGINAL = {name for name in vars(LinearSDE) if not name.startswith("_") and name not in ("drift", "diffusion")} | {
    "denoise",
    "eps",
}


@dataclass(frozen=True)
class Reverse(SDE):
    """dx = [drift(x, t) - (1 + eta^2)/2 g^2 score(x, t)] dt + eta g dw, to be run from T down to 0.

    eta=1 is the reverse-time SDE (Anderson 1982), eta=0 the probability-flow ODE (Song et al. 2021, eq. 13); all eta
    share the marginals of `sde`, one that depends on the noise level too. `score` is any callable (x, t) -> (B, *D).
    Raises ValueError unless 0 <= eta <= 1000 or eta is `Between` on a linear SDE, and for a score that says it is of
    another `sde`.
    """

    sde: Any
    score: Score
    eta: float | Between = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.eta, Between):
            number("eta", self.eta, least=0, most=1e3)
        elif isinstance(self.sde, SDE) and not isinstance(self.sde, LinearSDE):
            raise ValueError(f"eta must be a number on {self.sde!r}, which has no noise level, got {self.eta!r}")
        if not isinstance(self.sde, SDE):
            raise ValueError(f"sde must be an SDE, got {type(self.sde).__name__}")
        function("score", self.score, "a callable (x, t) -> (B, *D)")
        require_score_of(self.score, self.sde)

    @property
    def T(self) -> float:  # type: ignore[override]
        """The time of the prior."""
        return self.sde.T

    def eta_at(self, t: Tensor) -> float | Tensor:
        """eta, of a step that begins at t: a number, or in the shape of t."""
        return self.eta(self.sde.log_snr(t)) if isinstance(self.eta, Between) else self.eta

    def ask(self, x: Tensor, t: Tensor) -> Tensor:
        """score(x, t) in the dtype of x; a state of half precision is shown to it in float32. It is given copies, so
        that it may work in place.

        Raises ValueError unless it returns floating-point numbers in the shape of x, and for times on the CPU outside
        [0, T].
        """
        w, t = wide("x", x), inside(t, self.T)
        return answer("score", self.score(w.clone(), t.clone()), x).to(x.dtype)

    def _told(self, c: Callable[[Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        """c(t) score(x, t) for a c that is 0 where sigma is. There it is 0, whatever the score may be, which is
        singular: x_t is x_0, and tells nothing of z.
        """
        value = c(t)
        return like(value, x) * self.ask(x, torch.where(value > 0, t, self.T))

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """drift(x, t) - (1 + eta^2)/2 g(t)^2 score(x, t)."""
        w, t = wide("x", x), inside(t, self.T)
        g2 = self.sde.diffusion(t).square()
        return rounded(self.sde.drift(w, t) - like((1 + self.eta_at(t) ** 2) / 2 * g2, w) * self.ask(w, t), x)

    def diffusion(self, t: Tensor) -> Tensor:
        """The diffusion coefficient eta g(t), in the shape of t."""
        return self.eta_at(t) * self.sde.diffusion(t)

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise in x_t that the score tells of, E[z | x_t] = -sigma_t score(x, t), and 0 where sigma = 0."""
        w, t = wide("x", x), inside(t, self.T)
        return -rounded(self._told(self.sde.sigma, w, t), x)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t] = (x + sigma_t^2 score(x, t)) / alpha_t (Tweedie's formula), and x / alpha_t where sigma = 0."""
        w, t = wide("x", x), inside(t, self.T)
        return rounded((w + self._told(self.sde.var, w, t)) / like(self.sde.alpha(t), w), x)


def require_score_of(score: Score, sde: SDE) -> None:
    """Raise ValueError for a score that says it is of another process than sde."""
    own = getattr(score, "sde", sde)
    comparable = type(own) is not type(sde) or type(own).__eq__ is not object.__eq__
    if isinstance(own, SDE) and comparable and own != sde:
        raise ValueError(f"score is that of {own!r}, not of {sde!r}: `transport` reads it on another process")


def require_linear(name: str, sde: Any) -> LinearSDE:
    """Return sde; raise ValueError naming it unless it is a `LinearSDE`."""
    if not isinstance(sde, LinearSDE):
        raise ValueError(f"{name} must be a LinearSDE such as VP(), got {shown(sde)}")
    return sde


def needs_noise(p: Any, ts: Tensor) -> None:
    """Raise ValueError where sigma = 0 at one of the times ts: the score of p.sde is singular there. (A non-linear SDE
    has no sigma to tell.)
    """
    if hasattr(p.sde, "var") and (p.sde.var(ts) == 0).any():
        raise ValueError(f"the score is singular where sigma = 0: end the grid before t = {float(ts.min()):g}")


def require_reverse(p: Any) -> Reverse:
    """Return p; raise ValueError unless it is a `Reverse`."""
    if not isinstance(p, Reverse):
        raise ValueError(f"p must be a Reverse process, as sde.reverse(score) returns, got {type(p).__name__}")
    return p
