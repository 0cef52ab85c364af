"""The law of what a sampler returns, computed instead of sampled.

A step with Gaussian noise is a Markov kernel N(m(x), c(x)^2) that can be written down, so that on a line

    p_s(y) = int p_t(x) N(y; m(x), c(x)^2) dx

is an integral of a smooth function over the real line, for which the trapezoid rule converges faster than any power of
the step (Trefethen & Weideman 2014). A flow is a map of the line: p_s(m(x)) |m'(x)| = p_t(x), for all of its steps at
once, so that those with memory are no exception. Densities are kept as logarithms at equal steps between the points
where they fall below `FLOOR` of their largest value. All terms are positive, so that what is told is as true in the
tails, down to some 1e-20 of the peak.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from ..exact import Gaussian, Law
from ..process import Reverse, require_reverse
from ..shapes import as_time, count, times
from ..steps import MALA, Langevin, Step
from ..steps.step import run, started

if TYPE_CHECKING:
    from scipy.interpolate import BSpline

Points = NDArray[np.float64]

FLOOR = 1e-30
"""Of the largest density, the least that is kept."""
REACH = 12.0
"""Deviations of a kernel after which it is left out."""
NARROW = 1.5
"""The least deviation of a kernel, in steps of the grid that it is integrated over."""
FINEST = 128
"""How many times finer that grid may be than the one that densities are kept on."""
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
        return self._spline(self.log_p)

    @cached_property
    def _cdf(self) -> "BSpline":
        return self._spline(self.log_p.exp()).antiderivative()

    def _spline(self, values: Tensor) -> "BSpline":
        from scipy.interpolate import make_interp_spline  # here, since it is slow to import

        return make_interp_spline(self.x.numpy(), values.numpy(), 5)

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

    def _area(self, x: Tensor) -> Tensor:
        """int P(X <= y) dy up to x."""
        twice, at = self._cdf.antiderivative(), x.clamp(self.low, self.high)
        return torch.from_numpy(twice(at.numpy())) + (x - self.high).clamp_min(0) * self.mass

    def distances(self, truth: "Law | LineLaw") -> dict[str, float]:
        """How far it is from the truth: kl, KL(truth || this), and reverse_kl, KL(this || truth), in nats;
        total_variation, half of int |p - q| dx, at most 1; wasserstein2, the root of the least mean square distance at
        which one can be carried to the other, int (F^-1(u) - G^-1(u))^2 du, whose square is told to some 1e-13.

        A divergence is infinite if one law has mass where another, unless that is known in closed form, is not kept.
        Raises ValueError if truth is no law on a line.
        """
        other = truth if isinstance(truth, LineLaw) else tabulated(truth, len(self.log_p))
        true = truth.log_prob if isinstance(truth, LineLaw) else lambda x: truth.log_prob(x[:, None])
        return {
            "kl": _divergence(other, self.log_prob(other.x)),
            "reverse_kl": _divergence(self, true(self.x)),
            "total_variation": _total_variation(self, other),
            "wasserstein2": math.sqrt(max(0.0, _carried(self, other))),
        }

    def errors(self, truth: "Law | LineLaw") -> dict[str, float]:
        """By how much each of `distances` changes on half the points: far more than its error, which falls by orders
        when points are doubled. nan for a law that is not known so.
        """
        fine = self.distances(truth)
        other = self.coarse.distances(truth) if self.coarse else dict.fromkeys(fine, math.nan)
        return {key: abs(value - other[key]) for key, value in fine.items()}


def tabulated(law: Law, n: int = 1024) -> LineLaw:
    """A law in closed form at n points. Raises ValueError unless it is a law on a line, of shape (1,)."""
    if not isinstance(law, Law) or law.shape != (1,):
        raise ValueError(f"a law on a line is wanted, of shape (1,), got {law!r}")
    mean, std = (float(v) for v in law.moments)
    return _kept(mean - 40 * std, mean + 40 * std, n, lambda y: law.log_prob(y[:, None]))


def law_of(p: Reverse, ts: Tensor, *steps: Step, prior: Law | None = None, n: int = 1024) -> LineLaw:
    """The law of `sample(p, x, ts, *steps)` on a line, x of shape (1,) drawn from the prior at ts[0], N(0, sigma_T^2)
    at T unless given. n: points that densities are kept at; all is done again with half as many, for `LineLaw.errors`.

    A step with noise must be a Gaussian kernel: one draw, which enters linearly, with a variance that may depend on x;
    `Langevin` and `MALA` take n of them. On the flow, eta = 0, steps may be any that keep the order of points. Raises
    ValueError before any work as `sample` does, and, naming the step, for other kernels: a step with noise that
    remembers earlier states, draws twice, or scales its noise by itself (`SNR`), and a flow whose steps are so long
    that points change places. Sample such, and compare by samples. Also if the noise is too small for n points.
    """
    require_reverse(p), count("n", n, least=64)
    ts = times("ts", ts, p.T)
    if prior is None and ts[0] < p.T * (1 - 1e-6):
        raise ValueError(f"ts must begin at T = {p.T:g} unless a prior is given for its first time, got {ts[0]:.6g}")
    prior = Gaussian(torch.zeros(1), float(p.sde.var(as_time(p.T)))) if prior is None else prior
    with torch.no_grad():
        fine, coarse = (_law(p, ts, steps, tabulated(prior, m)) for m in (n, n // 2))
    return replace(fine, coarse=coarse)


def _law(p: Reverse, ts: Tensor, steps: tuple[Step, ...], law: LineLaw) -> LineLaw:
    if not p.eta:
        return _mapped(law, lambda x: deque(run(p, x, ts, started(p, ts, steps), _none), maxlen=1).pop(), steps)
    for step, t, s in _calls(p, ts, steps):
        law = _moved(law, p, step, t, s)
    return law


def _none(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return torch.zeros_like(x)


def _calls(p: Reverse, ts: Tensor, steps: tuple[Step, ...]) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """(step, t, s) in the order of `sample`, with `Langevin` one step at a time; each can be taken by itself.

    Raises ValueError for a step with memory: a few points are carried along, and where one interval is the first.
    """
    x, g = torch.tensor([[-0.7], [0.3], [1.1]], dtype=torch.float64), torch.Generator().manual_seed(0)
    at = next((i for i, step in enumerate(steps) if step.moves), None)
    whole = started(p, ts, steps)
    for t, s in zip(ts[:-1], ts[1:], strict=True) if at is not None else zip(ts, ts, strict=True):
        for step, going in zip(steps, whole, strict=True):
            z, here = torch.randn(x.shape, generator=g, dtype=x.dtype), (t, s if step.moves else t)
            told = going(p, x, *here, lambda *_, z=z: z)
            if not torch.allclose(told, _call(step, p, x, *here, z)[0], rtol=1e-9, atol=1e-9):
                raise ValueError(f"{step} remembers earlier states, so that its law is no chain of kernels: sample it")
            x, t = told, here[1]
            for _ in range(step.n if isinstance(step, Langevin) else 1):
                yield (replace(step, n=1) if isinstance(step, Langevin) else step), *here


def _call(step: Step, p: Reverse, x: Tensor, t: Tensor, s: Tensor, z: Tensor) -> tuple[Tensor, int]:
    """One step with the draws z, and how often it draws."""
    asked = []

    def noise(x: Tensor, *_: Tensor) -> Tensor:
        asked.append(1)
        return z

    return step.start(p, t[None], s[None])(p, x, t, s, noise), len(asked)


def _moved(law: LineLaw, p: Reverse, step: Step, t: Tensor, s: Tensor) -> LineLaw:
    """After one step."""
    n, plain = len(law.log_p), Langevin(step.step_size) if isinstance(step, MALA) else step
    m, c = _kernel(plain, p, law.x, t, s)
    if not c.any():
        return _mapped(law, lambda x: _call(step, p, x, t, s, torch.zeros_like(x))[0], (step,))
    h = (law.high - law.low) / (n - 1)
    ratio = NARROW * float((m.diff().abs() / torch.minimum(c[1:], c[:-1])).max())
    if ratio > FINEST:
        raise ValueError(f"n must be {n * ratio / FINEST:.0f} or so for the noise of {step} at t = {t:g}, got {n}")
    finer = math.ceil(ratio)
    if isinstance(step, MALA):
        return _accepted(law, p, step, t, max(1, finer))
    if finer > 1:
        x = torch.linspace(law.low, law.high, finer * (n - 1) + 1, dtype=torch.float64)
        law, h = LineLaw(law.low, law.high, law.log_prob(x)), h / finer
        m, c = _kernel(plain, p, x, t, s)
    weight = (h * law.log_p.exp()).numpy()
    low, high = float((m - REACH * c).min()), float((m + REACH * c).max())
    return _kept(low, high, n, lambda y: torch.from_numpy(_sum(y.numpy(), m.numpy(), c.numpy(), weight)).log())


def _kernel(step: Step, p: Reverse, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(m, c) at x (n,), from draws of 0, 1 and -1. Raises ValueError for what is no Gaussian kernel."""
    z = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64).repeat_interleave(len(x))[:, None]
    out, draws = _call(step, p, x.repeat(3)[:, None], t, s, z)
    if draws > 1:
        raise ValueError(f"{step} draws {draws} times from t = {t:g} to {s:g}, which is no Gaussian kernel: sample it")
    m, up, down = out.view(3, -1)
    c = (up - down) / 2
    if (((up + down) / 2 - m).abs() > 1e-9 * (c.abs() + 1e-3 * m.abs() + 1e-12)).any():
        raise ValueError(
            f"the noise of {step} at t = {t:g} does not enter linearly, so that it is no Gaussian kernel: sample it, "
            "or take a rule that does not look at the noise, such as NCSN"
        )
    return m, c.abs()


def _sum(y: Points, m: Points, c: Points, weight: Points) -> Points:
    """sum_i weight_i N(y; m_i, c_i^2) at equal steps y."""
    h, n = y[1] - y[0], len(y)
    found, scale = np.zeros(n), weight / (math.sqrt(2 * math.pi) * c)
    reach = min(n, math.ceil(REACH * float(c.max()) / h) + 1)
    if 2 * reach + 1 >= n:
        for i in range(0, len(m), 1024):
            part = slice(i, i + 1024)
            found += scale[part] @ np.exp(-(((y - m[part, None]) / c[part, None]) ** 2) / 2)
        return found
    first = np.rint((m - y[0]) / h).astype(np.int64) - reach
    at = first[:, None] + np.arange(2 * reach + 1)
    terms = scale[:, None] * np.exp(-(((y[0] + at * h - m[:, None]) / c[:, None]) ** 2) / 2)
    inside = (at >= 0) & (at < n)
    return np.bincount(at[inside], terms[inside], n).astype(np.float64)


def _accepted(law: LineLaw, p: Reverse, step: MALA, t: Tensor, finer: int) -> LineLaw:
    """After the steps of MALA: p(y) (1 - int a(y, x) q(x | y) dx) + int p(x) a(x, y) q(y | x) dx, with the acceptance
    a(x, y) = min(1, pi(y) q(x | y) / (pi(x) q(y | x))) for the level pi of the score. The points stay where they are,
    so that pi is kept to all digits; a has kinks, which cost the rest an order.
    """
    n = finer * (len(law.log_p) - 1) + 1
    x = torch.linspace(law.low, law.high, n, dtype=torch.float64)
    h, level = float(x[1] - x[0]), p.score.log_prob(x[:, None], t)  # type: ignore[attr-defined]
    m, c = _kernel(Langevin(step.step_size), p, x, t, t)
    reach = min(n - 1, math.ceil(float(((m - x).abs() + REACH * c).max()) / h))
    to = torch.arange(n)[:, None] + torch.arange(-reach, reach + 1)
    inside, to = (to >= 0) & (to < n), to.clamp(0, n - 1)

    def log_q(y: Tensor, m: Tensor, c: Tensor) -> Tensor:
        return -(((y - m) / c) ** 2) / 2 - c.log() - math.log(2 * math.pi) / 2

    forth = level[:, None] + log_q(x[to], m[:, None], c[:, None])
    back = level[to] + log_q(x[:, None], m[to], c[to])
    moves = torch.where(inside, (torch.minimum(forth, back) - level[:, None]).exp() * h, 0.0)
    density, stays = law.log_prob(x).exp(), (1 - moves.sum(1)).clamp_min(0)
    for _ in range(step.n):
        came = torch.zeros_like(density).index_add_(0, to.flatten(), (density[:, None] * moves).flatten())
        density = came + density * stays
    return LineLaw(law.low, law.high, density[::finer].clamp_min(1e-300).log())


def _kept(low: float, high: float, n: int, log_p: Callable[[Tensor], Tensor]) -> LineLaw:
    """Between the points where log_p falls below the floor, which lie between low and high, at n points."""
    for _ in range(8):
        y = torch.linspace(low, high, n, dtype=torch.float64)
        found = log_p(y)
        above = (found > found.max() + math.log(FLOOR)).nonzero()[:, 0]
        a, b = max(int(above[0]) - 1, 0), min(int(above[-1]) + 1, n - 1)
        if b - a > 0.9 * (n - 1):
            break
        low, high = float(y[a]), float(y[b])
    return LineLaw(low, high, found.clamp_min(float(found.max()) - 700))


def _mapped(law: LineLaw, f: Callable[[Tensor], Tensor], steps: tuple[Step, ...]) -> LineLaw:
    """The law of f(x), for an increasing f on (B, 1): at y, p(x)/f'(x) where f(x) = y."""

    def valued(x: Tensor) -> tuple[Tensor, Tensor]:
        with forward_ad.dual_level():
            y, slope = forward_ad.unpack_dual(f(forward_ad.make_dual(x[:, None], torch.ones_like(x)[:, None])))
            return y[:, 0].clone(), (torch.zeros_like(y) if slope is None else slope)[:, 0].clone()

    x = torch.linspace(law.low, law.high, 4 * (len(law.log_p) - 1) + 1, dtype=torch.float64)
    y, slope = valued(x)
    if not (y.diff() > 0).all() or not (slope > 0).all():
        raise ValueError(f"points change places on the flow by {', '.join(map(repr, steps))}: take more steps")

    def log_p(at: Tensor) -> Tensor:
        i = torch.searchsorted(y, at.contiguous()).clamp(1, len(y) - 1)
        guess = x[i - 1] + (at - y[i - 1]).clamp_min(0) / (y[i] - y[i - 1]) * (x[i] - x[i - 1])
        root, gradient = _inverse(valued, at, x[i - 1], guess.clamp_max(x[i]), x[i])
        return law.log_prob(root) - gradient.log()

    return _kept(float(y[0]), float(y[-1]), len(law.log_p), log_p)


def _inverse(
    f: Callable[[Tensor], tuple[Tensor, Tensor]], y: Tensor, low: Tensor, guess: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """x with f(x) = y for an increasing f between low and high, by Newton's method kept inside what encloses the root;
    and f'(x).
    """
    low, high, left = low.clone(), high.clone(), torch.arange(len(y))
    root, slope = guess.clone(), torch.ones_like(y)
    for _ in range(100):
        x = root[left]
        value, slope[left] = f(x)
        off = value - y[left]
        low[left], high[left] = torch.where(off <= 0, x, low[left]), torch.where(off >= 0, x, high[left])
        new = x - off / slope[left]
        new = torch.where((new >= low[left]) & (new <= high[left]), new, (low[left] + high[left]) / 2)
        near = (off.abs() <= 1e-14 * (1 + y[left].abs())) | ((new - x).abs() <= 4e-16 * (1 + new.abs()))
        root[left], left = torch.where(near, x, new), left[~near]
        if not len(left):
            break
    return root, slope


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


def _carried(p: LineLaw, q: LineLaw) -> float:
    """int (F^-1(u) - G^-1(u))^2 du = 2 int dx int_x^y (F(x) - G(z)) dz with G(y) = F(x): an error of y is squared."""
    x = _joined(p, q)
    F, G = p.cdf(x) / p.mass, q.cdf(x) / q.mass
    top = G.cummax(0)[0]
    up = torch.cat([torch.ones(1, dtype=torch.bool), top[1:] > top[:-1]])
    y = torch.from_numpy(np.interp(F.numpy(), G[up].numpy(), x[up].numpy()))
    inner = F * (y - x) - (q._area(y) - q._area(x)) / q.mass
    return 2 * float(inner.sum() * (x[1] - x[0]))
