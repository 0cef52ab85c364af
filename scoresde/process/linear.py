"""The linear SDEs of the literature, each a frozen value with closed forms for what `LinearSDE` derives."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shapes import SCALE, as_table, as_time, number, place
from ..values import later
from .sde import LinearSDE


@dataclass(frozen=True)
class VP(LinearSDE):
    """Variance preserving: dx = -beta/2 x dt + sqrt(beta) dw, beta linear in t (Song et al. 2021, eq. 11 and 32).

    With B(t) = int_0^t beta: alpha = exp(-B/2), sigma^2 = 1 - exp(-B). DDPM is its discretisation.
    """

    beta_min: float = 0.1
    """beta at t = 0."""
    beta_max: float = 20.0
    """beta at t = 1."""
    t_min: float = later(1e-3)
    """The smallest time of training and sampling; 1e-5 for likelihoods of 256 grey levels (ibid., appendix C)."""

    def __post_init__(self) -> None:
        number("beta_min", self.beta_min, least=0)
        number("beta_max", self.beta_max, above=0, least=self.beta_min, most=1e3)
        number("t_min", self.t_min, least=1 / SCALE, below=1)

    def beta(self, t: Tensor | float) -> Tensor:
        """beta(t) = beta_min + (beta_max - beta_min) t."""
        return self.beta_min + (self.beta_max - self.beta_min) * as_time(t)

    def B(self, t: Tensor | float) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        t = as_time(t)
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha_t = -B(t)/2."""
        return -self.B(t) / 2

    def var(self, t: Tensor) -> Tensor:
        """sigma_t^2 = 1 - exp(-B(t))."""
        return -torch.expm1(-self.B(t))

    def f(self, t: Tensor) -> Tensor:
        """f(t) = -beta(t)/2, the factor of x in the drift."""
        return -self.beta(t) / 2

    def g2(self, t: Tensor) -> Tensor:
        """g(t)^2 = beta(t), the square of the diffusion."""
        return self.beta(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """The root of B(t) = log(1 + exp(-2 lambda))."""
        return self._when(F.softplus(-2 * as_time(log_snr, "log_snr")))

    def _when(self, B: Tensor) -> Tensor:
        """The inverse of B, in the form of the quadratic's root that does not cancel."""
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B).sqrt()
        return 2 * B / (self.beta_min + root).clamp_min(torch.finfo(B.dtype).tiny)  # 0 at B=0 also if beta_min=0


@dataclass(frozen=True)
class SubVP(VP):
    """The drift of VP with less noise: sigma^2 = (1 - exp(-B))^2 (Song et al. 2021, eq. 12)."""

    def var(self, t: Tensor) -> Tensor:
        """sigma_t^2 = (1 - exp(-B(t)))^2."""
        return torch.expm1(-self.B(t)) ** 2

    def g2(self, t: Tensor) -> Tensor:
        """beta (1 - exp(-2B))."""
        return -self.beta(t) * torch.expm1(-2 * self.B(t))

    def time(self, log_snr: Tensor) -> Tensor:
        """sigma/alpha = 2 sinh(B/2)."""
        return self._when(2 * torch.asinh((-as_time(log_snr, "log_snr")).exp() / 2))


@dataclass(frozen=True)
class VE(LinearSDE):
    """Variance exploding: dx = sqrt(d sigma^2/dt) dw with sigma geometric in t (Song et al. 2021, eq. 9 and 30).

    sigma = sigma_min (sigma_max/sigma_min)^t; NCSN is its discretisation. sigma(0) = sigma_min: t=0 is the least noisy
    level, not the data itself, so scores exist there, and a likelihood at t=0 is of the data convolved with
    N(0, sigma_min^2).
    """

    sigma_min: float = 0.01
    """sigma at t = 0."""
    sigma_max: float = 50.0
    """sigma at t = 1; about the largest distance between two samples of the data (Song & Ermon 2020)."""
    t_min = 0.0

    def __post_init__(self) -> None:
        number("sigma_min", self.sigma_min, least=1 / SCALE)
        number("sigma_max", self.sigma_max, above=self.sigma_min, most=SCALE)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha_t = 0, in the shape of t."""
        return 0 * as_time(t)

    def var(self, t: Tensor) -> Tensor:
        """sigma_t^2 = sigma_min^2 (sigma_max/sigma_min)^(2t)."""
        return self.sigma_min**2 * (2 * self._rate * as_time(t)).exp()

    def f(self, t: Tensor) -> Tensor:
        """f(t) = 0, in the shape of t."""
        return 0 * as_time(t)

    def g2(self, t: Tensor) -> Tensor:
        """g(t)^2 = 2 log(sigma_max/sigma_min) sigma_t^2."""
        return 2 * self._rate * self.var(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """(-lambda - log sigma_min) / log(sigma_max/sigma_min)."""
        return (-as_time(log_snr, "log_snr") - math.log(self.sigma_min)) / self._rate


@dataclass(frozen=True)
class Cosine(LinearSDE):
    """VP with alpha = cos u / cos u_0, u = (t + s)/(1 + s) pi/2 (Nichol & Dhariwal 2021, eq. 17, in continuous time).

    alpha vanishes and beta diverges at t=1, so the process stops at T < 1 (0.9946: Lu et al. 2022a).
    """

    s: float = 0.008
    """The offset that keeps beta from vanishing near t = 0."""
    T: float = 0.9946
    """The time of the prior, below 1."""
    t_min: float = later(1e-3)
    """The smallest time of training and sampling."""

    def __post_init__(self) -> None:
        number("s", self.s, above=0, most=1)
        number("t_min", self.t_min, least=1 / SCALE)
        number("T", self.T, above=self.t_min, below=1)

    def _u(self, t: Tensor | float) -> tuple[Tensor, float]:
        return (as_time(t) + self.s) / (1 + self.s) * (math.pi / 2), self.s / (1 + self.s) * (math.pi / 2)

    def log_alpha(self, t: Tensor) -> Tensor:
        """log cos u - log cos u_0."""
        u, u_0 = self._u(t)
        return u.cos().log() - math.log(math.cos(u_0))

    def var(self, t: Tensor) -> Tensor:
        """1 - alpha^2 = sin(u - u_0) sin(u + u_0) / cos^2 u_0."""
        u, u_0 = self._u(t)
        return (math.pi / 2 / (1 + self.s) * as_time(t)).sin() * (u + u_0).sin() / math.cos(u_0) ** 2

    def f(self, t: Tensor) -> Tensor:
        """-pi/(2 (1 + s)) tan u."""
        return -math.pi / 2 / (1 + self.s) * self._u(t)[0].tan()

    def g2(self, t: Tensor) -> Tensor:
        """-2f, as for every variance-preserving process."""
        return -2 * self.f(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """From cos u = alpha cos u_0 and sin^2 u = sin^2 u_0 + sigma^2 cos^2 u_0."""
        lam, u_0 = as_time(log_snr, "log_snr"), self._u(0.0)[1]
        cos = math.cos(u_0) * torch.sigmoid(2 * lam).sqrt()
        sin = (math.sin(u_0) ** 2 + math.cos(u_0) ** 2 * torch.sigmoid(-2 * lam)).sqrt()
        return (torch.atan2(sin, cos) - u_0) * (2 / math.pi) * (1 + self.s)


@dataclass(frozen=True)
class RectifiedFlow(LinearSDE):
    """x_t = (1 - t) x_0 + t z (Liu et al. 2023; Lipman et al. 2023), as an SDE: f = -1/(1-t), g^2 = 2t/(1-t).

    alpha vanishes at t=1, where a score no longer tells of x_0, so the process stops at T < 1.
    """

    T: float = 0.999
    """The time of the prior, below 1."""
    t_min: float = later(1e-3)
    """The smallest time of training and sampling."""

    def __post_init__(self) -> None:
        number("t_min", self.t_min, least=1 / SCALE)
        number("T", self.T, above=self.t_min, below=1)

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha_t = log(1 - t)."""
        return torch.log1p(-as_time(t))

    def var(self, t: Tensor) -> Tensor:
        """sigma_t^2 = t^2, in the shape of t."""
        return as_time(t) ** 2

    def f(self, t: Tensor) -> Tensor:
        """f(t) = -1/(1 - t)."""
        return -1 / (1 - as_time(t))

    def g2(self, t: Tensor) -> Tensor:
        """g(t)^2 = 2t/(1 - t)."""
        t = as_time(t)
        return 2 * t / (1 - t)

    def time(self, log_snr: Tensor) -> Tensor:
        """t = 1/(1 + exp(lambda)), the inverse of `log_snr`."""
        return torch.sigmoid(-as_time(log_snr, "log_snr"))


@dataclass(frozen=True)
class EDM(LinearSDE):
    """dx = sqrt(2t) dw, so alpha = 1 and sigma = t, for t up to T (Karras et al. 2022, table 1, last column)."""

    T: float = 80.0
    """The largest noise level."""
    t_min: float = 0.002
    """The smallest noise level."""

    def __post_init__(self) -> None:
        number("t_min", self.t_min, least=1 / SCALE)
        number("T", self.T, above=self.t_min, most=SCALE)

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha_t = 0, in the shape of t."""
        return 0 * as_time(t)

    def var(self, t: Tensor) -> Tensor:
        """sigma_t^2 = t^2, in the shape of t."""
        return as_time(t) ** 2

    def f(self, t: Tensor) -> Tensor:
        """f(t) = 0, in the shape of t."""
        return 0 * as_time(t)

    def g2(self, t: Tensor) -> Tensor:
        """g(t)^2 = 2t, the square of the diffusion."""
        return 2 * as_time(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """t = exp(-lambda), the inverse of `log_snr`."""
        return (-as_time(log_snr, "log_snr")).exp()


@dataclass(frozen=True, eq=False)
class Tabulated(LinearSDE):
    """The variance-preserving SDE through a table beta_1..beta_N (Ho et al. 2020), with log alpha linear between knots.

    At the knots t_i = i/N, alpha_i^2 = prod_{j <= i} (1 - beta_j) exactly, so the discrete chain is a special case and
    not a limit. betas: (N,) numbers. Raises ValueError unless all are inside (0, 1).
    """

    betas: Tensor
    knots: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        b = as_table("betas", self.betas)
        bad = ~((b > 0) & (b < 1))
        if bad.any():
            i = int(bad.nonzero()[0])
            raise ValueError(f"betas must be inside (0, 1), got betas[{i}] = {float(b[i]):g}")
        object.__setattr__(self, "betas", b)
        object.__setattr__(self, "knots", torch.cat([b.new_zeros(1), torch.log1p(-b).cumsum(0) / 2]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tabulated) and torch.equal(self.betas, other.betas)

    def __hash__(self) -> int:
        return hash(tuple(self.betas.tolist()))

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """The first knot, 1/N."""
        return 1 / len(self.betas)

    def grid(self) -> Tensor:
        """The times of the knots, N/N, ..., 1/N, 0."""
        n = len(self.betas)
        return torch.arange(n, -1, -1, dtype=torch.float64, device="cpu") / n

    def _slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The interval that t is in, and the change of log alpha over it."""
        i = (t.detach().nan_to_num(0.0) * len(self.betas)).floor().clamp(0, len(self.betas) - 1).long()
        knots = place(self.knots, t.device)
        return i, knots[i + 1] - knots[i]

    def log_alpha(self, t: Tensor) -> Tensor:
        """Linear between the knots."""
        t = as_time(t)
        i, slope = self._slope(t)
        return place(self.knots, t.device)[i] + (t * len(self.betas) - i) * slope

    def var(self, t: Tensor) -> Tensor:
        """sigma_t^2 = 1 - alpha_t^2."""
        return 0 - torch.expm1(2 * self.log_alpha(t))  # at t=0 this is 0, and its negation -0

    def f(self, t: Tensor) -> Tensor:
        """N (log alpha_{i+1} - log alpha_i) on [i/N, (i+1)/N)."""
        return len(self.betas) * self._slope(as_time(t))[1]

    def g2(self, t: Tensor) -> Tensor:
        """g(t)^2 = -2 f(t)."""
        return -2 * self.f(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """log alpha = -log(1 + exp(-2 lambda))/2, then the inverse of a piecewise linear function."""
        target = F.softplus(-2 * as_time(log_snr, "log_snr")) / 2
        falls = -place(self.knots, target.device)
        i = (torch.searchsorted(falls, target.to(falls), right=True) - 1).clamp(0, len(self.betas) - 1)
        return (i + (target - falls[i]) / (falls[i + 1] - falls[i])) / len(self.betas)
