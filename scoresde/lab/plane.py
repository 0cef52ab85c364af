"""The law of what a sampler returns in the plane, by deposition and convolution.

A step is a map m and isotropic noise, x' = m(x) + c z. The mass of every point of a grid is laid down where it goes,
as a narrow Gaussian of deviation g; that makes a smooth density, whose Fourier transform is that of the masses times
exp(-g^2 k^2/2). Times exp((g^2 - c^2) k^2/2) it is that of the law after the step (the gridding of Dutt & Rokhlin
1993), for any c, 0 too. It converges faster than any power of the grid's step while half of its frequencies hold the
density.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..exact import Law
from ..process import Reverse
from ..shapes import count
from ..steps import MALA, Step
from ..steps.kernel import gaussian_kernel
from .law import beginning, calls, remembers

WIDE = 1.5
"""The deviation g of a deposit, in steps of the grid."""
STENCIL = 13
"""Steps from its middle at which a deposit ends."""
KEPT = 1e-13
"""Of the largest density, the least that is carried on: what rounding of a Fourier transform leaves of digits."""
BEYOND = 1e-6
"""The mass that a truth may have outside the rectangle of a law, before their divergence is not told."""
LOST = 1e-3
"""The mass that may be lost before a law is not told."""


@dataclass(frozen=True)
class PlaneLaw:
    """A law in the plane, of which nothing is kept outside the rectangle from low to high, (2,) each.

    p: (n, n) float64, the density at equal steps, x along the first axis. coarse: the same from half as many steps, by
    which its numerical error is told.
    """

    low: Tensor
    high: Tensor
    p: Tensor
    coarse: "PlaneLaw | None" = None

    @property
    def x(self) -> Tensor:
        """(n^2, 2): the points of p, in its order."""
        axes = (
            torch.linspace(float(a), float(b), len(self.p), dtype=torch.float64)
            for a, b in zip(self.low, self.high, strict=True)
        )
        return torch.cartesian_prod(*axes)

    @property
    def area(self) -> float:
        """Of a cell of the grid."""
        return float((self.high - self.low).prod()) / (len(self.p) - 1) ** 2

    @property
    def mass(self) -> float:
        """Of the whole; what it lacks of 1 was lost on the way."""
        return float(self.p.sum()) * self.area

    @property
    def mean(self) -> Tensor:
        """E X, (2,)."""
        return self.p.flatten() @ self.x * self.area

    @property
    def covariance(self) -> Tensor:
        """Cov X, (2, 2)."""
        off = self.x - self.mean
        return (self.p.flatten()[:, None] * off).T @ off * self.area

    def distances(self, truth: Law) -> dict[str, float]:
        """How far it is from the truth, a law of shape (2,): kl, KL(truth || this), and reverse_kl, KL(this || truth),
        in nats; total_variation, half of int |p - q| dx, at most 1. Densities below 1e-13 of this law's largest are as
        good as that. Where the truth has more than 1e-6 of its mass beyond the rectangle kl is nan, as this law is not
        known there. Raises ValueError if the truth is too narrow for the steps of the grid.
        """
        if not isinstance(truth, Law) or truth.shape != (2,):
            raise ValueError(f"a law in the plane is wanted, of shape (2,), got {truth!r}")
        least = KEPT * float(self.p.max())
        log_q, p = truth.log_prob(self.x).view_as(self.p), self.p.clamp_min(least)
        q = log_q.exp()
        half = (self.high - self.low) / (len(self.p) - 1) / 2
        between = truth.log_prob(self.x + half).exp().sum()
        if abs(float(between - q.sum())) * self.area > 1e-3 * (1 + float(q.sum()) * self.area):
            raise ValueError(f"n must be larger than {len(self.p)} to tell a truth as narrow as {truth!r}")
        both = torch.where(q > least, q * (log_q - p.log()) - q + p, self.p)
        back = torch.where(self.p > least, p * (p.log() - log_q) - p + q, q)
        outside = max(0.0, 1 - float(q.sum()) * self.area)  # the mass of the truth where this law has none
        return {
            "kl": math.nan if outside > BEYOND else float(both.sum()) * self.area,
            "reverse_kl": float(back.sum()) * self.area + outside,
            "total_variation": (float((self.p - q).abs().sum()) * self.area + outside) / 2,
        }

    def errors(self, truth: Law) -> dict[str, float]:
        """By how much each of `distances` changes on half as many steps."""
        fine = self.distances(truth)
        other = self.coarse.distances(truth) if self.coarse else dict.fromkeys(fine, math.nan)
        return {key: abs(value - other[key]) for key, value in fine.items()}


def plane_law_of(p: Reverse, ts: Tensor, *steps: Step, prior: Law | None = None, n: int = 256) -> PlaneLaw:
    """The law of `sample(p, x, ts, *steps)` in the plane, x of shape (2,) drawn from the prior at ts[0], N(0, sigma_T^2
    I) at T unless given. n: steps of the grid along each axis; all is done again with half as many, for
    `PlaneLaw.errors`. The deviation of a mode should be four steps or more.

    A step has noise of one size for all x, as all samplers here but `LearnedVariance`, or is a flow's, which must not
    draw neighbours apart by more than a step of the grid. Raises ValueError before any work as `sample` does, and,
    naming the step, for one that remembers earlier states, draws twice, has noise that depends on x, or accepts and
    rejects; and where more than a thousandth of the mass was lost on the way, for which n is too small.
    """
    ts, start = beginning(p, ts, prior, (2,), False)
    n = count("n", n, least=32)
    if mala := [step for step in steps if isinstance(step, MALA)]:
        raise ValueError(
            f"steps must each be a map with noise, got {mala[0]!r}, which accepts and rejects: take Langevin, or "
            "sample it"
        )
    with torch.no_grad():
        if memory := remembers(p, ts, steps, (2,)):
            raise ValueError(
                f"steps must each be a kernel of their own, got {memory!r}, which remembers earlier states: take one "
                "that does not, such as Ancestral(), or sample it"
            )
        fine, half = (_through(_tabulated(start, k), p, ts, steps) for k in (n, n // 2))
    if not abs(fine.mass - 1) < LOST:
        raise ValueError(
            f"n must be larger than {n} for {', '.join(map(str, steps))}: {1 - fine.mass:.2g} of the mass was lost"
        )
    return replace(fine, coarse=half)


def _through(law: PlaneLaw, p: Reverse, ts: Tensor, steps: tuple[Step, ...]) -> PlaneLaw:
    for step, going, t, s in calls(p, ts, steps):
        law = _moved(law, partial(gaussian_kernel, going, p, t=t, s=s), step)
    return law


def _tabulated(law: Law, n: int) -> PlaneLaw:
    """A law in closed form, from where it falls to where it does."""
    mean, std = law.moments
    low, high = mean - 40 * std, mean + 40 * std
    for _ in range(8):
        told = PlaneLaw(low, high, torch.zeros(n, n, dtype=torch.float64))
        p = law.log_prob(told.x).view(n, n).exp()
        low, high = _held(told, p)
    told = PlaneLaw(low, high, p)
    return PlaneLaw(low, high, law.log_prob(told.x).view(n, n).exp())


def _held(law: PlaneLaw, p: Tensor) -> tuple[Tensor, Tensor]:
    """The rectangle of the points of law where p is kept, and one step more."""
    x, n = law.x[(p > KEPT * p.max()).flatten()], len(p)
    h = (law.high - law.low) / (n - 1)
    return torch.maximum(law.low, x.amin(0) - h), torch.minimum(law.high, x.amax(0) + h)


def _moved(law: PlaneLaw, kernel: "partial[tuple[Tensor, Tensor]]", step: Step) -> PlaneLaw:
    """After one step."""
    n, r = len(law.p), (law.p / law.p.max()).flatten()
    kept = r > KEPT
    m, noise = kernel(x=law.x[kept])
    c = float(noise.mean())
    if float((noise - c).abs().max()) > 1e-9 * (c + 1e-12):
        raise ValueError(f"the noise of {step} depends on x or on the direction: sample it")
    reach = c * (2 * (r[kept] / KEPT).log()).sqrt()[:, None]  # where what comes from there falls below what is kept
    low, high = (m - reach).amin(0), (m + reach).amax(0)
    low, high = low - 0.02 * (high - low), high + 0.02 * (high - low)
    h = (high - low) / n  # of a grid that closes on itself
    masses = law.p.flatten()[kept] * law.area
    density = _deposited((m - low) / h, masses, n) / float(h.prod())
    k = [2 * math.pi * torch.fft.fftfreq(n, float(step_), dtype=torch.float64) for step_ in h]
    gain = [((WIDE * float(b)) ** 2 - c**2) * a**2 / 2 for a, b in zip(k, h, strict=True)]
    whole = [a.abs() * float(b) <= math.pi / 2 for a, b in zip(k, h, strict=True)]
    filters = [torch.where(w, g.exp(), 0.0) for g, w in zip(gain, whole, strict=True)]
    changed = torch.fft.fft2(density) * filters[0][:, None] * filters[1]
    p = torch.fft.ifft2(changed).real
    least = max(KEPT, 3 * float(-p.min() / p.max()))  # ripples are as high as they are deep
    return PlaneLaw(low, low + h * (n - 1), torch.where(p > least * p.max(), p, 0.0))


def _deposited(at: Tensor, masses: Tensor, n: int) -> Tensor:
    """Masses as Gaussians of deviation `WIDE` at places `at` (N, 2) of a grid of unit steps, (n, n)."""
    found = torch.zeros(n * n, dtype=torch.float64)
    reach = torch.arange(-STENCIL, STENCIL + 1)
    for rows in range(0, len(at), 4096):
        part, mass = at[rows : rows + 4096], masses[rows : rows + 4096]
        first = part.round().long()
        to = first[..., None] + reach  # (b, 2, k)
        weight = (-(((to - part[..., None]) / WIDE) ** 2) / 2).exp() / (math.sqrt(2 * math.pi) * WIDE)
        where = to[:, 0, :, None] % n * n + to[:, 1, None, :] % n
        value = (mass[:, None] * weight[:, 0])[:, :, None] * weight[:, 1, None, :]
        found.index_add_(0, where.flatten(), value.flatten())
    return found.view(n, n)
