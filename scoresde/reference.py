"""The Gaussian of the data, said once.

Were the data N(m, c^2 I), everything would be known: the score at every time, the flow, the likelihood. So whatever
depends on how the data are placed and scaled takes one value, `Reference.fit(data)`: the parametrisation of a network,
whose output is what is left over; the weight of its loss; grids, which have most steps where the noise is as large as
c; exponential integrators, which solve the flow of that Gaussian exactly; the coordinates in which likelihoods are
integrated; and the fitted prior. The process never comes from here.

In x~ = x/alpha, sigma~ = sigma/alpha and lambda = -log sigma~, with S^2 = c^2 + sigma~^2: E[x_0 | x_t] = m + c^2/S^2
(x~ - m), and y = (x~ - m)/S does not move.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .exact import Gaussian, GaussianMixture
from .process import LinearSDE, require_linear
from .shapes import dims, number, state

POINTS, MASSES = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(24))


@dataclass(frozen=True, eq=False)
class Reference:
    """N(mean, std^2 I), and the size of what remains.

    mean: a number or (*D). std: from 0, data at a point (data prediction), to infinity (noise prediction). size: the
    root mean square of q = R S/sigma~ at some lambdas, increasing, with R = E[x_0 | x_t] less that of the Gaussian; q
    is divided by it (linear in the logarithm, constant beyond the ends), so that what is interpolated has one size.
    Raises ValueError for std < 0, and for a mean or a size that is not as stated.
    """

    mean: Tensor | float = 0.0
    """m."""
    std: float = 0.0
    """c."""
    size: tuple[tuple[float, float], ...] = ()
    """Pairs (lambda, size)."""

    def __post_init__(self) -> None:
        if not (isinstance(self.std, float) and self.std == math.inf):
            number("std", self.std, least=0)
        if not isinstance(self.mean, Tensor):
            number("mean", self.mean)
        elif not (self.mean.is_floating_point() and self.mean.numel() and self.mean.isfinite().all()):
            what = f"{self.mean.dtype} of shape {tuple(self.mean.shape)}"
            raise ValueError(f"mean must be finite floating-point numbers, at least one, got {what}")
        try:
            lam, size = torch.tensor(self.size, dtype=torch.float64, device="cpu").view(len(self.size), 2).T
            good = lam.isfinite() & size.isfinite() & (size > 0)
        except (TypeError, ValueError, RuntimeError):
            good = lam = torch.zeros(1, device="cpu")
        if not (isinstance(self.size, tuple) and good.all() and (lam.diff() > 0).all()):
            raise ValueError("size must be pairs (lambda, size) with increasing lambda and positive size")

    @classmethod
    def fit(cls, x_0: Tensor) -> "Reference":
        """The mean of data x_0 (n, *D), and the root mean square deviation from it over samples and dimensions.

        Raises ValueError for fewer than 2 samples, and for data that do not vary.
        """
        if len(state("x_0", x_0)) < 2:
            raise ValueError(f"x_0 must hold at least 2 samples, got {len(x_0)}")
        rows = x_0.to(torch.float64)
        mean = rows.mean(0)
        if (rows == rows[0]).all():
            raise ValueError(f"data must vary, got {len(x_0)} samples that are all the same")
        return cls(mean, float((rows - mean).square().mean().sqrt()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reference):
            return NotImplemented
        means = (torch.as_tensor(r.mean, dtype=torch.float64, device="cpu") for r in (self, other))
        return (self.std, self.size) == (other.std, other.size) and torch.equal(*means)

    def __hash__(self) -> int:
        return hash((self.std, self.size))

    def __repr__(self) -> str:
        mean = f"<of shape {tuple(self.mean.shape)}>" if isinstance(self.mean, Tensor) else repr(self.mean)
        return f"Reference(mean={mean}, std={self.std!r}{', size=...' if self.size else ''})"

    @property
    def overall(self) -> "Reference":
        """The same Gaussian seen by what treats all dimensions alike, such as a convolution: the mean over dimensions,
        and the deviation about it, c^2 plus the variance of m.
        """
        m = torch.as_tensor(self.mean, dtype=torch.float64, device="cpu")
        return Reference(float(m.mean()), math.sqrt(self.std**2 + float(m.var(correction=0))), self.size)

    def checked(self, shape: torch.Size | tuple[int, ...]) -> "Reference":
        """This value. Raises ValueError unless it is a Gaussian of samples of that shape, with 0 < std < infinity."""
        if isinstance(self.mean, Tensor) and tuple(self.mean.shape) not in ((), tuple(shape)):
            raise ValueError(
                f"around must have a number or an array of shape {tuple(shape)} as mean, got {tuple(self.mean.shape)}"
            )
        if not 0 < self.std < math.inf:
            raise ValueError(f"around must have a standard deviation above 0 and below infinity, got {self.std:g}")
        return self

    def prior(self, sde: LinearSDE, shape: torch.Size | tuple[int, ...]) -> GaussianMixture:
        """The law of x_T for samples of that shape, N(alpha_T m, (alpha_T^2 c^2 + sigma_T^2) I): of all priors of this
        form the nearest to p_T.
        """
        shape, T = dims("shape", shape), require_linear("sde", sde).T
        mean = torch.as_tensor(self.checked(shape).mean, dtype=torch.float64).expand(shape)
        return Gaussian(mean, self.std**2).marginal(sde, T)

    def log_S(self, lam: Tensor) -> Tensor:
        """log S, S in units of c where c is infinite."""
        if self.std in (0.0, math.inf):
            return -lam if self.std == 0 else torch.zeros_like(lam)
        return torch.logaddexp(torch.full_like(lam, 2 * math.log(self.std)), -2 * lam) / 2

    def log_g(self, lam: Tensor) -> Tensor:
        """log of the size of R: log size + log(sigma~/S)."""
        return self._log_size(lam) - lam - self.log_S(lam)

    def _log_size(self, lam: Tensor) -> Tensor:
        if not self.size:
            return 0 * lam
        known, size = torch.tensor(self.size, dtype=torch.float64, device="cpu").T
        return torch.as_tensor(np.interp(lam.numpy(), known.numpy(), size.log().numpy()), device="cpu")

    def q(self, sde: LinearSDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(A, B, C) with q = A x + B score + C mean at time t."""
        lam, alpha = sde.log_snr(t), sde.alpha(t)
        scale = (self.log_S(lam) - self._log_size(lam)).exp()
        B = sde.sigma(t) * scale
        A = 0 * B if self.std == math.inf else (-lam - self.log_S(lam) - self._log_size(lam)).exp() / alpha
        return A, B, -A * alpha

    def noise(self, low: Tensor, high: Tensor, eta: float | Tensor) -> Tensor:
        """The standard deviation of the noise in x~ from lambda = low to high; 0 on the flow, either way."""
        if not torch.as_tensor(eta, device="cpu").any():
            return torch.zeros_like(low)
        if self.std == math.inf:
            return eta * ((-2 * low).exp() - (-2 * high).exp()).sqrt()
        if self.std == 0:
            fall = low - high
        else:  # as differences of log(S/c), which is small where c is large
            far, near = (torch.logaddexp(0 * lam, -2 * (lam + math.log(self.std))) / 2 for lam in (low, high))
            fall = near - far
        return self.log_S(high).exp() * (-torch.expm1(2 * eta**2 * fall)).sqrt()

    def decay(self, low: Tensor, high: Tensor, eta: float | Tensor) -> Tensor:
        """(S_1/S_0)^e with e = 1 + eta^2."""
        return ((1 + eta**2) * (self.log_S(high) - self.log_S(low))).exp()

    def masses(self, low: Tensor, high: Tensor, eta: float | Tensor) -> tuple[Tensor, Tensor]:
        """Points lambda (..., 24) inside [low, high] (...,), and what a polynomial there weighs: its integral against
        e g (S_1/S)^e is the sum of its values times these. With std infinite and eta = 0 high may be infinite.
        """
        half = ((high - low) / 2)[..., None]
        lam = low[..., None] + half * (1 + POINTS)
        e = 1 + (eta[..., None] if isinstance(eta, Tensor) else eta) ** 2
        mass = e * half * MASSES * (self.log_g(lam) + e * (self.log_S(high)[..., None] - self.log_S(lam))).exp()
        if high.isfinite().all():
            return lam, mass
        sigma, far = (-low).exp()[..., None] / 2, high.isinf()[..., None]  # in sigma~ from there to 0
        ends = -(sigma * (1 - POINTS)).log()
        return torch.where(far, ends, lam), torch.where(far, sigma * MASSES * self._log_size(ends).exp(), mass)


def known(around: Reference | None, score: Any, shape: torch.Size | tuple[int, ...]) -> Reference | None:
    """`around`, or where that is None the Gaussian that a score says it was made for, as a `ScoreModel` may, or that of
    the moments that it has, as an exact law does; None if it says none. Raises ValueError unless it is one of samples
    of that shape.
    """
    if around is None:
        around = said(score)
    elif not isinstance(around, Reference):
        raise ValueError(f"around must be a Reference, such as Reference.fit(data), got {around!r}")
    return around and around.checked(shape)


def said(score: Any) -> Reference | None:
    """The Gaussian of the data that a score says, if it does."""
    around, moments = (getattr(score, name, None) for name in ("around", "moments"))
    if isinstance(around, Reference):
        return around
    if not isinstance(moments, tuple) or not moments[1].any():
        return None
    return Reference(moments[0], float(moments[1].square().mean().sqrt()))


MISMATCH = 0.03
"""KL(p_T || prior) in nats a dimension from which it is worth a warning: the deviation at T is wrong by a sixth."""
WIDER = 30
"""How many times the least noise a dimension is, beside others that this noise hides, for no noise to suit both."""


def misfit(
    sde: LinearSDE, mean: Tensor | float, std: Tensor | float, span: tuple[float, float] | None = None
) -> list[str]:
    """What is wrong with `sde` for data of that mean and deviations, numbers or (*D) (0 for dimensions that are
    constant), sampled from T to t_min or along another span of times: a sentence each.

    The prior should be what becomes of the data, whose Gaussian is N(alpha_T m, alpha_T^2 c^2 + sigma_T^2) at T: said
    where KL from it to N(0, sigma_T^2) is above `MISMATCH` nats a dimension, if the span begins there. And sigma/alpha
    at the end should be less than the data's deviations: said where it is less than none. Raises ValueError where it is
    not less than a quarter of them or more, while another is more than `WIDER` times as large as it: no noise suits
    both, and such data must be brought to one scale.
    """
    m, c = (torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in (mean, std))
    start, end = span or (sde.T, sde.t_min)
    high, low = (float((-sde.log_snr(t)).exp()) for t in (sde.T, min(end, sde.t_min)))
    varies, widest = c > 0, float(c.max())
    narrow = varies & (c <= low)
    if widest > WIDER * low and narrow.sum() * 4 >= varies.sum():
        raise ValueError(
            f"data must be of one scale, but deviations are {float(c[varies].min()):.3g} to {widest:.3g} and the least "
            f"noise of {sde!r} is {low:.3g}: divide each column by its own deviation"
        )
    found, r = [], (c / high) ** 2
    wrong = float((r + (m / high) ** 2 - r.log1p()).mean()) / 2
    if wrong > MISMATCH and start > sde.T * (1 - 1e-6):
        found.append(
            f"data of mean {float(m.mean()):.3g} and deviation {float(c.square().mean().sqrt()):.3g} are not hidden by "
            f"the noise of {sde!r}, sigma/alpha = {high:.3g} at T: the prior is wrong by {wrong:.3g} nats a dimension. "
            "Standardise the data, or take a process with more noise"
        )
    if varies.any() and widest <= low:
        found.append(
            f"data of deviation {widest:.3g} are hidden by the least noise of {sde!r}, sigma/alpha = {low:.3g}. "
            "Standardise the data, or go on to less noise"
        )
    return found


def warn_of_misfit(sde: Any, score: Any, ts: Tensor) -> None:
    """Warn, in the name of the caller's caller, of what `misfit` finds on the times ts for the data that a score says
    it was made for. Raises ValueError as it does.
    """
    moments, around = getattr(score, "moments", None), getattr(score, "around", None)
    if isinstance(around, Reference) and 0 < around.std < math.inf:
        moments = around.mean, around.std
    if isinstance(moments, tuple) and hasattr(sde, "log_snr"):
        mean, std = moments
        for what in misfit(sde, mean, std, (float(ts[0]), float(ts[-1]))):
            warnings.warn(what, stacklevel=3)


DATA = Reference()
NOISE = Reference(std=math.inf)
UNIT = Reference(std=1.0)
