"""A law on the line as numbers: its log-density at equal steps, and how far it is from another."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..exact import Law

if TYPE_CHECKING:
    from scipy.interpolate import BSpline

FLOOR = 1e-30
"""Of the largest density, the least that is kept."""
ROUGH = 128
"""Points at which a density is looked for."""
DENSE = 8
"""How many times finer two laws are looked at where they are compared."""
LITTLE = 1e-13
"""The mass that a law may have where another is not kept, before their divergence is infinite."""


@dataclass(frozen=True)
class LineLaw:
    """A law on the line, of which nothing is kept outside [low, high].

    log_p: (n,) float64, the log-density at equal steps from low to high; between them its logarithm is a spline of
    fifth degree. coarse: the same law from half as many points, by which its numerical error is told.
    """

    low: float
    high: float
    log_p: Tensor
    coarse: "LineLaw | None" = None

    @property
    def x(self) -> Tensor:
        """(n,): the points of log_p."""
        return torch.linspace(self.low, self.high, len(self.log_p), dtype=torch.float64, device="cpu")

    @cached_property
    def _log(self) -> "BSpline":
        return spline(self.x, self.log_p)

    @cached_property
    def _cdf(self) -> "BSpline":
        return spline(self.x, self.log_p.exp()).antiderivative()

    def log_prob(self, x: Tensor) -> Tensor:
        """log p in nats at x, of any shape; -inf outside [low, high]."""
        at = x.detach().cpu().double()
        found = torch.from_numpy(np.asarray(self._log(at.numpy())))
        return torch.where((at < self.low) | (at > self.high), -math.inf, found).to(x)

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), of the shape of x."""
        at = x.detach().cpu().double().clamp(self.low, self.high)
        return torch.from_numpy(np.asarray(self._cdf(at.numpy()))).to(x)

    @property
    def mass(self) -> float:
        """Of the whole; what it lacks of 1 was lost on the way."""
        return float(self._cdf(self.high))

    def quantile(self, u: Tensor) -> Tensor:
        """x with P(X <= x) = u for u (m,) in (0, mass)."""
        x, at = self.x.numpy(), u.numpy()
        told = np.maximum.accumulate(self._cdf(x))
        i = np.clip(np.searchsorted(told, at), 1, len(x) - 1)
        low, high = x[i - 1], x[i]
        found = np.clip(low + (at - told[i - 1]) / np.maximum(told[i] - told[i - 1], 1e-300) * (high - low), low, high)
        for _ in range(4):
            p = np.exp(self._log(found))
            found = np.clip(found - (self._cdf(found) - at) / p, low, high)
        return torch.from_numpy(found)

    def moment(self, k: int) -> float:
        """E X^k."""
        return float(self.integral(self.x**k * self.log_p.exp()))

    @property
    def mean(self) -> float:
        """E X."""
        return self.moment(1)

    @property
    def var(self) -> float:
        """E (X - E X)^2."""
        return float(self.integral((self.x - self.mean) ** 2 * self.log_p.exp()))

    def integral(self, values: Tensor) -> Tensor:
        """Of values (n,) at x that are 0 at both ends."""
        return values.sum() * (self.high - self.low) / (len(values) - 1)

    def distances(self, truth: "Law | LineLaw") -> dict[str, float]:
        """How far it is from the truth: kl, KL(truth || this), and reverse_kl, KL(this || truth), in nats;
        total_variation, half of int |p - q| dx, at most 1; wasserstein2, the root of the least mean square distance at
        which one can be carried to the other, int (F^-1(u) - G^-1(u))^2 du.

        A divergence is infinite if one law has mass where another, unless that is known in closed form, is not kept.
        Raises ValueError if truth is no law on a line.
        """
        other = truth if isinstance(truth, LineLaw) else tabulated(truth, len(self.log_p))
        true = truth.log_prob if isinstance(truth, LineLaw) else lambda x: truth.log_prob(x[:, None])
        return {
            "kl": _divergence(other, self.log_prob(other.x)),
            "reverse_kl": _divergence(self, true(self.x)),
            "total_variation": _total_variation(self, other),
            "wasserstein2": math.sqrt(max(0.0, _transport(self, other))),
        }

    def errors(self, truth: "Law | LineLaw") -> dict[str, float]:
        """By how much each of `distances` changes on half the points: far more than its error, which falls by orders
        when points are doubled, but after `MALA`, whose rejections have edges, of its size. nan for a law that is not
        known so.
        """
        fine = self.distances(truth)
        other = self.coarse.distances(truth) if self.coarse else dict.fromkeys(fine, math.nan)
        return {key: abs(value - other[key]) for key, value in fine.items()}


def spline(x: Tensor, values: Tensor) -> "BSpline":
    """Of fifth degree, through values (n,) at x (n,)."""
    from scipy.interpolate import make_interp_spline  # here, since it is slow to import

    return make_interp_spline(x.numpy(), values.numpy(), 5)


def tabulated(law: Law, n: int = 512) -> LineLaw:
    """A law in closed form at n points. Raises ValueError unless it is a law on a line, of shape (1,)."""
    if not isinstance(law, Law) or law.shape != (1,):
        raise ValueError(f"a law on a line is wanted, of shape (1,), got {law!r}")
    mean, std = (float(v) for v in law.moments)
    return kept(mean - 40 * std, mean + 40 * std, n, lambda y: law.log_prob(y[:, None]))


def kept(low: float, high: float, n: int, log_p: Callable[[Tensor], Tensor]) -> LineLaw:
    """At n points between those where log_p falls below the floor, which lie between low and high."""
    for _ in range(8):
        y = torch.linspace(low, high, ROUGH, dtype=torch.float64, device="cpu")
        found = log_p(y)
        above = (found > found.max() + math.log(FLOOR)).nonzero()[:, 0]
        a, b = max(int(above[0]) - 1, 0), min(int(above[-1]) + 1, ROUGH - 1)
        low, high = float(y[a]), float(y[b])
        if b - a > 0.8 * ROUGH:
            break
    found = log_p(torch.linspace(low, high, n, dtype=torch.float64, device="cpu"))
    return LineLaw(low, high, found.clamp_min(float(found.max()) - 700))


def _divergence(p: LineLaw, log_q: Tensor) -> float:
    """KL(p || q) for log q at the points of p; what p has less than `LITTLE` of may be missing in q."""
    both = p.log_p.exp() * (p.log_p - log_q) - p.log_p.exp() + log_q.exp()
    missing = log_q == -math.inf
    if float(p.integral(torch.where(missing, p.log_p.exp(), 0.0))) > LITTLE:
        return math.inf
    return float(p.integral(torch.where(missing, 0.0, both)))


def _joined(p: LineLaw, q: LineLaw) -> Tensor:
    """Points over both, close to each other."""
    n = DENSE * max(len(p.log_p), len(q.log_p))
    return torch.linspace(min(p.low, q.low), max(p.high, q.high), n, dtype=torch.float64, device="cpu")


def _total_variation(p: LineLaw, q: LineLaw) -> float:
    """Half the way that F - G goes up and down; it turns where p = q."""
    x = _joined(p, q)
    d = p.log_prob(x).exp() - q.log_prob(x).exp()
    i = (d[1:] * d[:-1] < 0).nonzero()[:, 0]
    x = torch.cat([x[:1], x[i] - d[i] * (x[i + 1] - x[i]) / (d[i + 1] - d[i]), x[-1:]])
    return float((p.cdf(x) - q.cdf(x)).diff().abs().sum()) / 2


def _transport(p: LineLaw, q: LineLaw) -> float:
    """int (F^-1(u) - G^-1(u))^2 du, by Gauss' rule between all u that points of either law have: there both are
    smooth.
    """
    u = torch.cat([law.cdf(law.x) / law.mass for law in (p, q)]).clamp(0, 1).sort()[0]
    u = torch.cat([u.new_zeros(1), u, u.new_ones(1)])
    middle, half, total = (u[1:] + u[:-1]) / 2, u.diff() / 2, 0.0
    for node, weight in zip(*np.polynomial.legendre.leggauss(4), strict=True):
        at = (middle + float(node) * half).clamp(1e-300, 1 - 1e-16)
        off = p.quantile(at * p.mass) - q.quantile(at * q.mass)
        total += float(weight) * float((half * off**2).sum())
    return total
