"""Ancestral sampling: the reverse kernels of discrete chains, as steps.

All of them draw x_s from q(x_s | x_t, x_0) with x_0 replaced by E[x_0 | x_t]; they differ in the variance. With
u = eta^2 var_s (1 - exp(2 (lambda_t - lambda_s))), at eta=1 the variance of x_s | x_t, x_0,

    x_s = alpha_s x_0 + sqrt(var_s - u) eps + sqrt(w) z,    x_0 = (x - sigma_t eps)/alpha_t.

DDPM and SMLD are eta=1, DDIM is eta=0 (Ho et al. 2020, Algorithm 2; Song, Meng & Ermon 2021, eq. 12; Song et al. 2021,
eq. 47 for VE).
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..noise import Noise, iid
from ..process import Reverse, require_reverse
from ..shapes import as_table, like, number, rounded, shown, state, times, wide
from .step import Affine, Step


class Posterior(Step):
    """The mean of the module's formula; a subclass says the variance w. The hop to var_s = 0 adds no noise."""

    order: ClassVar[int] = 1
    strong: ClassVar[float] = 1.0
    weak: ClassVar[float] = 1.0

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """eta is at most 1: the variance cannot be larger than that of x_s | x_0."""
        number("eta", float(torch.as_tensor(p.eta_at(t), dtype=torch.float64, device="cpu").max()), most=1)

    @abstractmethod
    def kernel(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, w) of x_s given x_t = x, at the price of one network call; w of the shape of t or of x. t and s are
        () or (B,), of one shape.
        """

    def small(self, p: Reverse, t: Tensor, s: Tensor) -> Tensor:
        """u, Ho et al.'s fixed-small variance."""
        return -(p.eta_at(t) ** 2) * p.sde.var(s) * torch.expm1(2 * (p.sde.log_snr(t) - p.sde.log_snr(s)))

    def large(self, p: Reverse, t: Tensor, s: Tensor) -> Tensor:
        """eta^2 times the variance of x_t | x_s, Ho et al.'s fixed-large one."""
        return p.eta_at(t) ** 2 * p.sde.transition(t, s)[1]

    def between(self, p: Reverse, t: Tensor, s: Tensor, v: Any) -> Tensor:
        """small^(1 - v) large^v for a number v or v of shape (B, *D)."""
        low, high = (like(w, v) if isinstance(v, Tensor) else w for w in (self.small(p, t, s), self.large(p, t, s)))
        return low ** (1 - v) * high**v

    def slope(self, p: Reverse, t: Tensor, s: Tensor) -> Tensor:
        """The derivative of the mean by eps: sqrt(var_s - u) - alpha_s/alpha_t sigma_t."""
        sde = p.sde
        return (sde.var(s) - self.small(p, t, s)).sqrt() - sde.alpha(s) / sde.alpha(t) * sde.sigma(t)

    def mean(self, p: Reverse, x: Tensor, score: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The mean of x_s given x_t = x and its score."""
        w, score = wide("x", x), wide("score", score)
        a, b = p.sde.alpha(s) / p.sde.alpha(t), -p.sde.sigma(t) * self.slope(p, t, s)
        return rounded(like(a, w) * w + like(b, w) * score, x)


class FixedVariance(Posterior, Affine):
    """A posterior whose variance depends on the times alone."""

    upwards: ClassVar[bool] = True

    @abstractmethod
    def variance(self, p: Reverse, t: Tensor, s: Tensor) -> Tensor:
        """w, of the shape of t, where eta > 0 and var_s > 0."""

    def line(self, p: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha_s/alpha_t, -sigma_t times the slope, sqrt(w), 0 where var_s is."""
        noisy = (p.sde.var(s) > 0) & (torch.as_tensor(p.eta_at(t), device="cpu") > 0)
        w = torch.where(noisy, self.variance(p, t, s), 0.0) if p.eta else 0 * t
        return p.sde.alpha(s) / p.sde.alpha(t), -p.sde.sigma(t) * self.slope(p, t, s), w.sqrt()

    def kernel(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, w), at the price of one network call."""
        return self.mean(p, x, p.ask(x, t), t, s), self.variance(p, t, s)


@dataclass(frozen=True)
class Ancestral(FixedVariance):
    """DDPM, SMLD and DDIM: w is interpolated in its logarithm between Ho et al.'s two choices.

    At eta=1, fixed-small is the right variance for data at one point and fixed-large that for data from N(0, I) (Ho et
    al. 2020, section 3.2). Raises ValueError unless 0 <= v <= 1 and, when used, eta <= 1.
    """

    v: float = 0.0
    """The variance of the noise, between fixed-small (0) and fixed-large (1)."""

    def __post_init__(self) -> None:
        number("v", self.v, least=0, most=1)

    @property
    def noisy(self) -> bool:  # type: ignore[override]
        """It is with a variance of its own, v > 0; without one it is DDIM as well."""
        return self.v > 0

    def variance(self, p: Reverse, t: Tensor, s: Tensor) -> Tensor:
        """u^(1 - v) large^v."""
        return self.between(p, t, s, self.v)


@dataclass(frozen=True, eq=False)
class AnalyticDPM(FixedVariance):
    """The variance of largest likelihood, w = u + slope^2 (1 - E|eps(x_t, t)|^2/d) (Bao et al. 2022, theorem 1).

    E[z | x_t] = eps, so 1 - E|eps|^2/d is the mean over x_t and dimensions of the variance of z | x_t, which the mean
    of x_s carries on with `slope`. ts: (N,) times, decreasing; second_moment: (N,) values of E|eps|^2/d there. `fit`
    measures them. Raises ValueError where the step starts from another time than those, or unless 0 <= second_moment.
    """

    ts: Tensor
    second_moment: Tensor

    def __post_init__(self) -> None:
        for name in ("ts", "second_moment"):
            object.__setattr__(self, name, as_table(name, getattr(self, name)))
        if self.ts.shape != self.second_moment.shape:
            shapes = f"{tuple(self.ts.shape)} and {tuple(self.second_moment.shape)}"
            raise ValueError(f"ts and second_moment must have one shape (N,), got {shapes}")
        if not (self.second_moment >= 0).all():
            raise ValueError("second_moment must be a table of numbers >= 0")

    def __repr__(self) -> str:
        return f"AnalyticDPM(fitted at {len(self.ts)} times)"

    @classmethod
    @torch.no_grad()
    def fit(cls, p: Reverse, x_0: Tensor, ts: Tensor, noise: Noise = iid()) -> "AnalyticDPM":
        """From data x_0 (n, *D), noised anew at each time of the grid ts but the last: len(ts) - 1 network calls."""
        x_0 = wide("x_0", state("x_0", x_0))
        values = [p.eps(p.sde.perturb(x_0, t, noise)[0], t).square().mean() for t in ts[:-1]]
        return cls(ts[:-1], torch.stack(values).to("cpu", torch.float64))

    def variance(self, p: Reverse, t: Tensor, s: Tensor) -> Tensor:
        """u + slope^2 (1 - E|eps|^2/d), the bracket cut at 0."""
        off, i = (self.ts - t.cpu()[..., None]).abs().min(-1)
        if (off > 1e-9 * p.T).any():
            raise ValueError(f"t must be a time that the variances were fitted at, got {t.tolist()}")
        spread = (1 - self.second_moment[i]).clamp_min(0).to(t.device)
        return self.small(p, t, s) + self.slope(p, t, s) ** 2 * spread


def _needs_one(p: Reverse) -> None:
    if p.eta != 1:
        raise ValueError(f"eta must be 1, for which such kernels are fitted, got {p.eta:g}")


@dataclass(frozen=True, eq=False)
class AffineDPM(Affine):
    """The affine step of largest likelihood: of all kernels N(a x + b score, c^2 I) that nearest to x_s | x_t.

    E KL(q(x_s | x_t) || N(a x + b score, c^2 I)) is least where a x + b score is the regression of x_s on x_t and its
    score, and c^2 what it leaves, a dimension. With the exact score that is the mean of DDPM and the variance of
    `AnalyticDPM` (Bao et al. 2022, theorem 1); of a network that is too long or too short by a factor it makes up for
    that. ts: (N + 1,) times, decreasing; a, b, c: (N,) of the intervals between them. `fit` measures them. Raises
    ValueError on other intervals, and for eta other than 1.
    """

    ts: Tensor
    a: Tensor
    b: Tensor
    c: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "ts", as_table("ts", self.ts, least=2))
        if not (self.ts.diff() < 0).all():
            raise ValueError(f"ts must strictly decrease, got {shown(self.ts.tolist())}")
        for name in "abc":
            told = as_table(name, getattr(self, name))
            object.__setattr__(self, name, told)
            if len(told) != len(self.ts) - 1:
                raise ValueError(f"{name} must have one number for each of the {len(self.ts) - 1} intervals of ts")
            if not told.isfinite().all() or (name == "c" and (told < 0).any()):
                raise ValueError(f"{name} must be finite{', and at least 0' if name == 'c' else ''}")

    def __repr__(self) -> str:
        return f"AffineDPM(fitted on {len(self.a)} intervals)"

    @classmethod
    @torch.no_grad()
    def fit(cls, p: Reverse, x_0: Tensor, ts: Tensor, noise: Noise = iid()) -> "AffineDPM":
        """From data x_0 (n, *D), noised anew at the beginning of each interval of the grid ts: len(ts) - 1 network
        calls. x_s itself is replaced by its mean given x_t and x_0, whose variance is known. Raises ValueError for eta
        other than 1, and naming the time where the score is not finite.
        """
        _needs_one(require_reverse(p))
        x_0, ts = wide("x_0", state("x_0", x_0)), times("ts", ts, require_reverse(p).T)
        sde, rows = p.sde, []
        for t, s in pairwise(ts):
            x, _ = sde.perturb(x_0, t, noise)
            v = float(((sde.log_snr(t) - sde.log_snr(s)) * 2).exp())  # of v_s/v_t, 0 at sigma_s = 0
            mean = float(sde.alpha(s)) * (x_0 + v * (x / float(sde.alpha(t)) - x_0))
            y, *known = (u.flatten().double().cpu() for u in (mean, x, p.ask(x, t)))
            if not known[1].isfinite().all():
                raise ValueError(f"score must be finite on the data, but at t = {t:.6g} it is not")
            size = torch.stack([u.square().mean().sqrt() for u in known])
            size = torch.where(size > 0, size, 1.0)  # a score that is 0 everywhere tells nothing
            X = torch.stack(known, 1) / size
            told = torch.linalg.lstsq(X, y, driver="gelsd").solution  # of least norm where the two are one direction
            left = (y - X @ told).square().mean() + sde.var(s) * (1 - v)
            rows.append((*(told / size).tolist(), float(left.sqrt()) if sde.var(s) > 0 else 0.0))
        return cls(ts, *torch.tensor(rows, dtype=torch.float64, device="cpu").T)

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """eta = 1, and the intervals are those that were fitted."""
        _needs_one(p)
        self._rows(p, t, s)

    def _rows(self, p: Reverse, t: Tensor, s: Tensor) -> Tensor:
        off, i = (self.ts[:-1] - t.cpu()[..., None]).abs().min(-1)
        if (torch.maximum(off, (self.ts[i + 1] - s.cpu()).abs()) > 1e-9 * p.T).any():
            raise ValueError(f"t and s must be an interval that was fitted, got {t.tolist()} and {s.tolist()}")
        return i

    def line(self, p: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The numbers of the fit."""
        i = self._rows(p, t, s)
        return self.a[i], self.b[i], self.c[i]


@dataclass(frozen=True)
class LearnedVariance(Posterior):
    """The variance by a network, elementwise: w = u^(1 - v) large^v with v(x, t) in [0, 1] (Nichol & Dhariwal 2021,
    eq. 15, whose network says 2v - 1).

    both: (x, t) -> (score, v), each (B, *D), such as `TwoHeads.both`. It is called once a step, in place of p.score.
    """

    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def __post_init__(self) -> None:
        if not callable(self.both):
            raise ValueError(f"both must be a callable (x, t) -> (score, v), got {self.both!r}")

    def kernel(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, w), both from the one call, which may work in place."""
        score, v = self.both(x.clone(), t.clone())
        return self.mean(p, x, score, t, s), self.between(p, t, s, wide("v", v))

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        self.check(p, t, s)
        y = wide("x", x)
        mean, w = self.kernel(p, y, t, s)
        return rounded(mean + w.sqrt() * noise(y, t, s) if p.eta_at(t) and p.sde.var(s) > 0 else mean, x)


@dataclass(frozen=True)
class ConsistentAnnealed(Affine):
    """Consistent annealed sampling (Jolicoeur-Martineau et al. 2021a, Algorithm 2), for any linear SDE.

    A Langevin step that leaves exactly the noise of the next level: in x~ = x/alpha and sigma~ = sigma/alpha,

        x~_s = x~ + h sigma~_t^2 score~ + sqrt(sigma~_s^2 - (1 - h)^2 sigma~_t^2) z.

    The noise that the score sees is shrunk by 1 - h, and fresh noise makes up the level. h is the paper's eta; unless
    given it is `ratio` times the smallest that a step allows, 1 - sigma~_s/sigma~_t, which is DDIM, cut at 1, which
    draws all noise anew. Raises ValueError if h is too small for a step, where the root would be of a negative number.
    """

    h: float | None = None
    """The paper's eta, between 0 and 1; chosen at each step unless given."""
    ratio: float = 2.0
    """If h is not given: how many times the smallest h that the step allows."""

    def __post_init__(self) -> None:
        if self.h is not None:
            number("h", self.h, above=0, most=1)
        number("ratio", self.ratio, least=1, most=1e6)

    @property
    def strong(self) -> float | None:  # type: ignore[override]
        """1 with the ratio 2, whose limit is the reverse SDE; others tend to a process of the same law with more noise
        or less, and an h that is given does not go to 0 with the step.
        """
        return 1.0 if self.h is None and self.ratio == 2 else None

    @property
    def weak(self) -> float | None:  # type: ignore[override]
        """1, unless h is given."""
        return 1.0 if self.h is None else None

    def _h(self, p: Reverse, t: Tensor, s: Tensor) -> Tensor:
        least = -torch.expm1(p.sde.log_snr(t) - p.sde.log_snr(s))
        if self.h is None:
            return (self.ratio * least).clamp_max(1.0)
        if (least > self.h * (1 + 1e-12)).any():
            raise ValueError(
                f"h must be at least 1 - sigma_s/sigma_t, here up to {float(least.max()):.4g}, got {self.h:g}"
            )
        return torch.full_like(least, self.h)

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """eta is 1, and h large enough for every step."""
        if p.eta != 1:
            raise ValueError(f"consistent annealed sampling has its own noise: it needs eta=1, got eta={p.eta:g}")
        self._h(p, t, s)

    def line(self, p: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha_s/alpha_t, h sigma_t^2 times that, and what is missing of var_s."""
        h, ratio = self._h(p, t, s), p.sde.alpha(s) / p.sde.alpha(t)
        w = (p.sde.var(s) - ((1 - h) * ratio) ** 2 * p.sde.var(t)).clamp_min(0)
        return ratio, ratio * h * p.sde.var(t), w.sqrt()
