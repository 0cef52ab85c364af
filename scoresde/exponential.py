"""Exponential integrators: what is linear is solved exactly, the rest is interpolated.

In x~ = x/alpha, sigma~ = sigma/alpha and lambda = -log sigma~, the reverse processes of all linear SDEs are one,

    dx~ = (1 + eta^2) (D - x~) dlambda + eta sqrt(2) sigma~ dw,    D = E[x_0 | x_t].

Were the data N(m, c^2 I), D would be m + c^2/S^2 (x~ - m) with S = sqrt(c^2 + sigma~^2). Let R be D less that. Solving
the linear part (variation of constants) leaves, from lambda_0 to lambda_1, with e = 1 + eta^2,

    x~_1 = m + (S_1/S_0)^e (x~_0 - m) + e int (S_1/S)^e R dlambda + S_1 sqrt(1 - (S_1/S_0)^(2 eta^2)) z,

exactly but for how z depends on the path. An integrator interpolates q = R/g, which it knows where the network was
asked, by polynomials, and integrates them against g (S_1/S)^e exactly. With g = sigma~/S, in which q is the output of
the network of Karras et al. (2022), both customary forms are members: c = 0 interpolates D (data prediction: Lu et al.
2022b), and c = infinity -eps (noise prediction: Lu et al. 2022a). A step is exact for data that are N(m, c^2 I).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .noise import Noise
from .sample import Step
from .sde import LinearSDE, Reverse
from .shapes import number, state

POINTS, MASSES = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(24))
BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True, eq=False)
class Reference:
    """The data whose flow is solved exactly, N(mean, std^2 I), and the size of what remains.

    mean: a number or (*D). std: from 0, data prediction, to infinity, noise prediction. size: the root mean square of
    q = R S/sigma~ at some lambdas, increasing; q is divided by it (linear in the logarithm, constant beyond the ends),
    so that what is interpolated has one size. Raises ValueError for std < 0, and for a mean or a size that is not as
    stated.
    """

    mean: Tensor | float = 0.0
    std: float = 0.0
    size: tuple[tuple[float, float], ...] = ()
    """Pairs (lambda, size)."""

    def __post_init__(self) -> None:
        if self.std != math.inf:
            number("std", self.std, least=0)
        if not isinstance(self.mean, Tensor):
            number("mean", self.mean)
        pairs = [pair for pair in self.size if isinstance(pair, tuple) and len(pair) == 2]
        lam, size = torch.tensor(pairs, dtype=torch.float64).view(-1, 2).T
        good = lam.isfinite() & size.isfinite() & (size > 0)
        if len(pairs) < len(self.size) or not (good.all() and (lam.diff() > 0).all()):
            raise ValueError("size must be pairs (lambda, size) with increasing lambda and positive size")

    def log_S(self, lam: Tensor) -> Tensor:
        """log S, S in units of c where c is infinite."""
        if self.std in (0.0, math.inf):
            return -lam if self.std == 0 else 0 * lam
        return torch.logaddexp(torch.full_like(lam, 2 * math.log(self.std)), -2 * lam) / 2

    def log_g(self, lam: Tensor) -> Tensor:
        """log of the size of R: log size + log(sigma~/S)."""
        return self._log_size(lam) - lam - self.log_S(lam)

    def _log_size(self, lam: Tensor) -> Tensor:
        if not self.size:
            return 0 * lam
        known, size = torch.tensor(self.size, dtype=torch.float64).T
        return torch.as_tensor(np.interp(lam.numpy(), known.numpy(), size.log().numpy()))

    def q(self, sde: LinearSDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(A, B, C) with q = A x + B score + C mean at time t."""
        lam, alpha = sde.log_snr(t), sde.alpha(t)
        scale = (self.log_S(lam) - self._log_size(lam)).exp()
        B = sde.sigma(t) * scale
        A = 0 * B if self.std == math.inf else (-lam - self.log_S(lam) - self._log_size(lam)).exp() / alpha
        return A, B, -A * alpha

    def noise(self, low: Tensor, high: Tensor, eta: float) -> Tensor:
        """The standard deviation of the noise in x~ from lambda = low to high."""
        if self.std == math.inf:
            return eta * ((-2 * low).exp() - (-2 * high).exp()).sqrt()
        if self.std == 0:
            fall = low - high
        else:  # as differences of log(S/c), which is small where c is large
            far, near = (torch.logaddexp(0 * lam, -2 * (lam + math.log(self.std))) / 2 for lam in (low, high))
            fall = near - far
        return self.log_S(high).exp() * (-torch.expm1(2 * eta**2 * fall)).sqrt()

    def decay(self, low: Tensor, high: Tensor, eta: float) -> Tensor:
        """(S_1/S_0)^e."""
        return ((1 + eta**2) * (self.log_S(high) - self.log_S(low))).exp()

    def masses(self, low: Tensor, high: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """Points lambda (..., 24) inside [low, high] (...,), and what a polynomial there weighs: its integral against
        e g (S_1/S)^e is the sum of its values times these.
        """
        half = ((high - low) / 2)[..., None]
        lam = low[..., None] + half * (1 + POINTS)
        e = 1 + eta**2
        return lam, e * half * MASSES * (self.log_g(lam) + e * (self.log_S(high)[..., None] - self.log_S(lam))).exp()


DATA = Reference()
NOISE = Reference(std=math.inf)


def fit_reference(x_0: Tensor) -> Reference:
    """The mean of data x_0 (n, *D), and the root mean square deviation from it over samples and dimensions."""
    if len(state("x_0", x_0)) < 2:
        raise ValueError(f"x_0 must hold at least 2 samples, got {len(x_0)}")
    rows = x_0.to(torch.float64)
    return Reference(rows.mean(0), float((rows - rows.mean(0)).square().mean().sqrt()))


class Interpolation(ABC):
    """A polynomial through what is known of q, in some variable u, and its integral."""

    compat: float = 0.0
    """From 0, what is right, to 1, what is widely used where that differs."""

    @abstractmethod
    def u(self, sde: LinearSDE, lam: Tensor) -> Tensor:
        """The variable at lambda."""

    def __call__(self, sde: LinearSDE, nodes: Tensor, lam: Tensor, mass: Tensor) -> Tensor:
        """The weights (N, k) of q at nodes (N, k), newest first, in the integrals with mass (N, G) at lam (N, G)."""
        return (lagrange(self.u(sde, nodes), self.u(sde, lam)) * mass[:, None]).sum(-1)


def lagrange(nodes: Tensor, u: Tensor) -> Tensor:
    """Lagrange's polynomials of nodes (N, k) at u (N, G) -> (N, k, G)."""
    k = nodes.shape[1]
    factors = []
    for j in range(k):
        other = nodes[:, [i for i in range(k) if i != j]]
        factors.append(((u[:, None] - other[..., None]) / (nodes[:, j, None] - other)[..., None]).prod(1))
    return torch.stack(factors, 1)


@dataclass(frozen=True)
class InLogSNR(Interpolation):
    """u = lambda."""

    def u(self, sde: LinearSDE, lam: Tensor) -> Tensor:
        return lam


@dataclass(frozen=True)
class InTime(Interpolation):
    """u = t (the tAB-DEIS of Zhang & Chen 2023)."""

    def u(self, sde: LinearSDE, lam: Tensor) -> Tensor:
        return sde.time(lam)


@dataclass(frozen=True)
class InSigma(Interpolation):
    """u = sigma~ (the rhoAB-DEIS of Zhang & Chen 2023).

    compat: from 0, the weights of the nodes as they are, to 1, Adams and Bashforth's for equal steps whatever the
    nodes, as iPNDM has them (Liu et al. 2022; Zhang & Chen 2023), which are of second order on any other grid, and of
    first where the steps do not change gradually.
    """

    compat: float = 0.0

    def __post_init__(self) -> None:
        number("compat", self.compat, least=0, most=1)

    def u(self, sde: LinearSDE, lam: Tensor) -> Tensor:
        return (-lam).exp()

    def __call__(self, sde: LinearSDE, nodes: Tensor, lam: Tensor, mass: Tensor) -> Tensor:
        right = super().__call__(sde, nodes, lam, mass)
        if not self.compat:
            return right
        fixed = mass.sum(1, keepdim=True) * torch.tensor(BASHFORTH[nodes.shape[1] - 1], dtype=torch.float64)
        return (1 - self.compat) * right + self.compat * fixed


@dataclass(frozen=True)
class Centred(InLogSNR):
    """u = lambda, and a line is taken at the middle of the interval instead of being integrated, as in the published
    formulas of DPM-Solver-2, DPM-Solver++(2M) (Lu et al. 2022a,b) and UniPC (Zhao et al. 2023, B(h) = e^h - 1).

    compat: from 0, the parabola through three nodes, to 1, the same with its second derivative halved, as widely used
    code has it, which takes the second divided difference for the derivative; that is of second order.
    """

    compat: float = 0.0

    def __post_init__(self) -> None:
        number("compat", self.compat, least=0, most=1)

    def __call__(self, sde: LinearSDE, nodes: Tensor, lam: Tensor, mass: Tensor) -> Tensor:
        if nodes.shape[1] == 2:
            return lagrange(nodes, lam.mean(1, keepdim=True))[..., 0] * mass.sum(1, keepdim=True)
        right = super().__call__(sde, nodes, lam, mass)
        if nodes.shape[1] != 3 or not self.compat:
            return right
        bend = 1 / torch.stack([(nodes[:, [j]] - nodes[:, [i for i in range(3) if i != j]]).prod(1) for j in range(3)])
        return right - self.compat / 2 * bend.T * ((lam - nodes[:, :1]).square() * mass).sum(1, keepdim=True)


class Stage(NamedTuple):
    """Ask the network at time t and x; q = A x + B score + C mean, 0 without asking if B is 0. Then x becomes
    a times x at the start of the interval, plus k mean, plus what the q known weigh, newest first.
    """

    t: Tensor
    A: float
    B: float
    C: float
    a: float
    k: float
    w: tuple[float, ...]


def rows_of(t: Tensor, A: Tensor, B: Tensor, C: Tensor, a: Tensor, k: Tensor, w: Tensor) -> list[Stage]:
    """One stage a row of t, A, B, C, a, k (n,) and w (n, m)."""
    columns = zip(t, *(c.tolist() for c in (A, B, C, a, k, w)), strict=True)
    return [Stage._make((*row[:-1], tuple(row[-1]))) for row in columns]


class Interval(NamedTuple):
    """From time t to s by stages, and then noise of standard deviation std. kept: the q of the first stage is kept for
    the intervals to come, so that each interval finds this many.
    """

    t: Tensor
    s: Tensor
    stages: Sequence[Stage]
    std: float
    kept: int


class Exponential(Step):
    """A step whose coefficients follow from the grid: a subclass says the intervals. Where sigma = 0 at the grid's end,
    the last interval is x_s = alpha_s E[x_0 | x_t].
    """

    around: Reference

    @abstractmethod
    def intervals(self, p: Reverse, ts: Tensor) -> list[Interval]:
        """All that there is to compute on a grid with sigma > 0, but for what the network says."""

    def start(self, p: Reverse, ts: Tensor) -> "Started":
        """With its coefficients on ts, and no memory."""
        self.check(p, ts)
        ends = bool(p.sde.var(ts[-1]) == 0)
        plan = self.intervals(p, ts[:-1] if ends else ts) if len(ts) > 2 or not ends else []
        return Started(self, [*plan, clean(p.sde, ts[-2], ts[-1])] if ends else plan)

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        return self.start(p, torch.stack([t, s]))(p, x, t, s, noise)


def clean(sde: LinearSDE, t: Tensor, s: Tensor) -> Interval:
    """x_s = alpha_s E[x_0 | x_t], whatever the reference's mean."""
    A, B, _ = (float(v) for v in DATA.q(sde, t))
    return Interval(t, s, [Stage(t, A, B, 0.0, 0.0, 0.0, (float(sde.alpha(s)),))], 0.0, 0)


def off_grid(step: Step, t: Tensor, s: Tensor) -> ValueError:
    """What to raise where a step is called elsewhere than on the grid that it was started on."""
    return ValueError(f"{step} was started on a grid with no step from t = {t:g} to {s:g} here")


class Started(Step):
    """A step at work on a grid."""

    def __init__(self, step: Exponential, plan: list[Interval]) -> None:
        self.step, self.todo = step, iter(plan)
        self.known: tuple[Tensor, ...] = ()
        self.mean: Tensor | None = None

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        now = next(self.todo, None)
        if now is None or s != now.s or (t != now.t and self.step.fixed):
            raise off_grid(self.step, t, s)
        if t != now.t:  # as `Churn` has it
            (now,) = self.step.start(p, torch.stack([t, s])).todo
        mean, y, known = self._mean(x), x, self.known
        for i, stage in enumerate(now.stages):
            q = (stage.A * y).add(p.ask(y, stage.t), alpha=stage.B) if stage.B else torch.zeros_like(x)
            q = q if mean is None else q.add(mean, alpha=stage.C)
            known = (q, *known)
            y = stage.a * x if mean is None else (stage.a * x).add(mean, alpha=stage.k)
            for w, q in zip(stage.w, known, strict=False):
                y = y.add(q, alpha=w)
            if i == 0:
                self.known = known[: now.kept]
        return y.add(noise(x, t, s), alpha=now.std) if now.std else y

    def _mean(self, x: Tensor) -> Tensor | None:
        """The reference's mean, where x is; None if it is 0."""
        mean = self.step.around.mean
        if self.mean is None and (isinstance(mean, Tensor) or mean):
            self.mean = torch.as_tensor(mean).to(x)
        return self.mean
