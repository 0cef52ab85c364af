"""Discrete chains: a linear SDE seen at the times of a grid.

A chain x_0 -> x_1 -> ... -> x_N has the Gaussian steps x_i | x_{i-1} ~ N(a_i x_{i-1}, v_i I) and the marginals
x_i | x_0 ~ N(alpha_i x_0, sigma_i^2 I), with a_i = alpha_i/alpha_{i-1} and v_i = sigma_i^2 - a_i^2 sigma_{i-1}^2. On
the grid these are exact, whatever its spacing. DDPM is a chain with alpha_i^2 = 1 - sigma_i^2 = prod (1 - beta_j) (Ho
et al. 2020), NCSN one with alpha_i = 1 (Song & Ermon 2019). The other way, `Tabulated` and `TabulatedVE` are the SDEs
through a table. Level 0 is the data: a last time of the grid where sigma = 0 is level 0 and no further one.
"""

import math
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..shapes import SCALE, as_table, as_time, count, like, number, place, shown, times, wide
from .sde import LinearSDE, require_linear

LONGEST = 10_000_000
"""Entries of a table at most, which are then less than a second's work."""


def linear_betas(n: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """DDPM's table: beta_1..beta_n equally spaced (Ho et al. 2020, section 4)."""
    return torch.linspace(*_ends(n, first, last), n, dtype=torch.float64, device="cpu")


def scaled_linear_betas(n: int = 1000, first: float = 8.5e-4, last: float = 0.012) -> Tensor:
    """sqrt(beta) equally spaced (Rombach et al. 2022)."""
    low, high = _ends(n, first, last)
    return torch.linspace(math.sqrt(low), math.sqrt(high), n, dtype=torch.float64, device="cpu") ** 2


def cosine_betas(n: int = 1000, s: float = 0.008, most: float = 0.999) -> Tensor:
    """alpha_i^2 = cos^2((i/n + s)/(1 + s) pi/2), normalised, betas cut at `most` (Nichol & Dhariwal 2021, eq. 17)."""
    number("s", s, above=0, most=1), number("most", most, above=0, below=1)
    u = (
        (torch.arange(count("n", n, most=LONGEST) + 1, dtype=torch.float64, device="cpu") / n + s)
        / (1 + s)
        * math.pi
        / 2
    )
    return (1 - (u[1:].cos() / u[:-1].cos()) ** 2).clamp_max(most)


def geometric_sigmas(n: int = 10, first: float = 0.01, last: float = 1.0) -> Tensor:
    """NCSN's levels: sigma_1 < ... < sigma_n in geometric progression (Song & Ermon 2019, section 4.1)."""
    number("last", last, above=number("first", first, least=1 / SCALE), most=SCALE)
    n = count("n", n, least=2, most=LONGEST)
    return torch.linspace(math.log(first), math.log(last), n, dtype=torch.float64, device="cpu").exp()


def _ends(n: int, first: float, last: float) -> tuple[float, float]:
    count("n", n, most=LONGEST)
    return number("first", first, above=0, below=1), number("last", last, above=0, below=1)


@dataclass(frozen=True, eq=False)
class TabulatedVE(LinearSDE):
    """The variance-exploding SDE through levels sigma_1 < ... < sigma_N, with log sigma linear between the knots
    t_i = (i - 1)/(N - 1): alpha = 1, and sigma(0) = sigma_1 as for `VE`.

    sigmas: (N,) numbers, N >= 2. Raises ValueError unless they are positive, finite and increase.
    """

    sigmas: Tensor
    log_sigmas: Tensor = field(init=False, repr=False)
    t_min = 0.0

    def __post_init__(self) -> None:
        s = as_table("sigmas", self.sigmas, least=2)
        if not (s[0] > 0 and s.isfinite().all() and (s.diff() > 0).all()):
            raise ValueError("sigmas must be positive, finite and increasing")
        number("sigmas[0]", s[0].item(), least=1 / SCALE), number("sigmas[-1]", s[-1].item(), most=SCALE)
        object.__setattr__(self, "sigmas", s)
        object.__setattr__(self, "log_sigmas", s.log())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TabulatedVE) and torch.equal(self.sigmas, other.sigmas)

    def __hash__(self) -> int:
        return hash(tuple(self.sigmas.tolist()))

    def grid(self) -> Tensor:
        """The times of the knots, from T to 0."""
        return torch.linspace(1, 0, len(self.sigmas), dtype=torch.float64, device="cpu")

    def _log_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log sigma, and its slope."""
        n, knots = len(self.sigmas) - 1, place(self.log_sigmas, t.device)
        i = (t.detach().nan_to_num(0.0) * n).floor().clamp(0, n - 1).long()
        rise = knots[i + 1] - knots[i]
        return knots[i] + (t * n - i) * rise, n * rise

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha_t = 0, in the shape of t."""
        return 0 * as_time(t)

    def var(self, t: Tensor) -> Tensor:
        """sigma_t^2, with log sigma linear between the knots."""
        return (2 * self._log_sigma(as_time(t))[0]).exp()

    def f(self, t: Tensor) -> Tensor:
        """f(t) = 0, in the shape of t."""
        return 0 * as_time(t)

    def g2(self, t: Tensor) -> Tensor:
        """2 sigma^2 d log sigma/dt."""
        t = as_time(t)
        return 2 * self.var(t) * self._log_sigma(t)[1]

    def time(self, log_snr: Tensor) -> Tensor:
        """log sigma = -lambda, then the inverse of a piecewise linear function."""
        target = -as_time(log_snr, "log_snr")
        knots, n = place(self.log_sigmas, target.device), len(self.sigmas) - 1
        i = (torch.searchsorted(knots, target.to(knots), right=True) - 1).clamp(0, n - 1)
        return (i + (target - knots[i]) / (knots[i + 1] - knots[i])) / n


@dataclass(frozen=True, eq=False)
class Chain:
    """The chain of `sde` on the decreasing grid ts; `sample(sde.reverse(score), x, chain.ts, Ancestral())` runs it
    back.

    Vectors over the steps or levels i = 1..N are (N,) in float64: `t`, `a`, `v`, and the properties. In the methods i
    is a whole number or (B,) of them, x is (B, *D), and a Gaussian is answered as (mean, variance), the variance () or
    (B,).

    Raises ValueError unless ts decreases inside [0, T] and gives at least 2 steps; warns if the signal that is left at
    the top makes the prior wrong by more than 1e-3 nats a dimension of unit variance.
    """

    sde: LinearSDE
    ts: Tensor
    t: Tensor = field(init=False, repr=False)
    a: Tensor = field(init=False, repr=False)
    v: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ts = times("ts", self.ts, require_linear("sde", self.sde).T)
        levels = ts[self.sde.var(ts) > 0].flip(0)
        if len(levels) < 2:
            raise ValueError(f"ts must give a chain of at least 2 steps, got {len(levels)}")
        log_alpha = torch.cat([levels.new_zeros(1), self.sde.log_alpha(levels)])
        log_snr = torch.cat([levels.new_full((1,), math.inf), self.sde.log_snr(levels)])
        put = object.__setattr__
        put(self, "ts", ts)
        put(self, "t", levels)
        put(self, "a", log_alpha.diff().exp())
        put(self, "v", -self.sde.var(levels) * torch.expm1(2 * log_snr.diff()))
        if (wrong := self.prior_mismatch()) > 1e-3:
            warnings.warn(
                f"the chain ends with sigma/alpha = {float((-log_snr[-1]).exp()):.3g}: to replace its last marginal by "
                f"the prior costs up to {wrong:.3g} nats a dimension of unit variance",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return len(self.t)

    @property
    def betas(self) -> Tensor:
        """1 - a_i^2; DDPM's beta_i where the variance is preserved."""
        return -torch.expm1(2 * self.a.log())

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha_i^2, (N,): the product of a_j^2 up to i."""
        return (2 * self.sde.log_alpha(self.t)).exp()

    @property
    def sigmas(self) -> Tensor:
        """sigma_i; NCSN's levels where alpha = 1."""
        return self.sde.sigma(self.t)

    @property
    def posterior_variances(self) -> Tensor:
        """v_i sigma_{i-1}^2 / sigma_i^2, the variance of x_{i-1} | x_i, x_0: Ho et al.'s fixed-small. 0 for i = 1."""
        var = self.sde.var(self.t)
        return self.v * torch.cat([var.new_zeros(1), var[:-1]]) / var

    def prior_mismatch(self, second_moment: float = 1.0) -> float:
        """KL(x_N | x_0 || prior) in nats a dimension, for data of that mean square: alpha_N^2 E x_0^2/(2 sigma_T^2),
        and the difference in variance if the grid does not begin at T. It bounds KL(p_N || prior)/d.
        """
        top, T = self.t[-1], as_time(self.sde.T)
        r = self.sde.var(top) / self.sde.var(T)
        signal = self.sde.alpha(top) ** 2 * number("second_moment", second_moment, least=0) / self.sde.var(T)
        return float(signal + r - 1 - r.log()) / 2

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n times of the chain, uniformly: with `dsm`, Ho et al.'s Algorithm 1."""
        return self.t[torch.randint(len(self.t), (count("n", n),), generator=generator, device="cpu")]

    def _level(self, i: Tensor | int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(a_i, v_i, alpha_{i-1}, sigma_{i-1}^2, sigma_i^2)."""
        i = i.cpu() if isinstance(i, Tensor) else torch.tensor(count("i", i))
        if i.is_floating_point() or i.is_complex() or i.dtype == torch.bool or (i < 1).any() or (i > len(self)).any():
            raise ValueError(f"i must be whole numbers from 1 to {len(self)}, got {shown(i.tolist())}")
        alpha = torch.cat([self.t.new_ones(1), self.sde.alpha(self.t)])
        var = torch.cat([self.t.new_zeros(1), self.sde.var(self.t)])
        return self.a[i - 1], self.v[i - 1], alpha[i - 1], var[i - 1], var[i]

    def step(self, x: Tensor, i: Tensor | int) -> tuple[Tensor, Tensor]:
        """q(x_i | x_{i-1} = x) = N(a_i x, v_i I) (Ho et al. 2020, eq. 2)."""
        (a, v, *_), w = self._level(i), wide("x", x)
        return (like(a, w) * w).to(x.dtype), v

    def marginal(self, x_0: Tensor, i: Tensor | int) -> tuple[Tensor, Tensor]:
        """q(x_i | x_0) = N(alpha_i x_0, sigma_i^2 I) (Ho et al. 2020, eq. 4)."""
        (a, _, alpha, _, var), w = self._level(i), wide("x_0", x_0)
        return (like(a * alpha, w) * w).to(x_0.dtype), var

    def posterior(self, x_i: Tensor, x_0: Tensor, i: Tensor | int) -> tuple[Tensor, Tensor]:
        """q(x_{i-1} | x_i, x_0), with mean (alpha_{i-1} v_i x_0 + a_i sigma_{i-1}^2 x_i)/sigma_i^2 and variance
        v_i sigma_{i-1}^2/sigma_i^2 (Ho et al. 2020, eq. 6 and 7).
        """
        (a, v, alpha, below, var), w, w_0 = self._level(i), wide("x_i", x_i), wide("x_0", x_0)
        if w.shape != w_0.shape:
            raise ValueError(f"x_i must have the shape of x_0, {tuple(w_0.shape)}, got {tuple(w.shape)}")
        mean = like(alpha * v / var, w_0) * w_0 + like(a * below / var, w) * w
        return mean.to(x_i.dtype), v * below / var
