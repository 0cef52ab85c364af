"""The law of what a sampler returns, computed instead of sampled.

A step with Gaussian noise is a Markov kernel N(m(x), c(x)^2) that can be written down, so that on a line

    p_s(y) = int p_t(x) N(y; m(x), c(x)^2) dx

is an integral of a smooth function over the real line, for which the trapezoid rule converges faster than any power of
the step (Trefethen & Weideman 2014). A flow is a map of the line: p_s(m(x)) |m'(x)| = p_t(x), for all of its steps at
once where one remembers those before it. Densities are kept as logarithms at equal steps between the points where they
fall below 1e-30 of their largest value. All terms are positive, so that what is told is as true in the tails, down to
some 1e-20 of the peak.
"""

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from ..exact import Gaussian, Law, require_law
from ..process import Reverse, require_reverse
from ..shapes import as_time, count, times
from ..steps import MALA, Langevin, Step
from ..steps.kernel import gaussian_kernel
from ..steps.metropolis import mean_score
from ..steps.step import end, started
from .line import FLOOR, LineLaw, kept, spline, tabulated

Points = NDArray[np.float64]

REACH = 12.0
"""Deviations of a kernel after which it is left out."""
NARROW = 1.5
"""The least deviation of a kernel, in steps of the grid that it is integrated over."""
BLOCK = 1 << 16
"""Numbers that are computed at once, which a cache holds."""
FINER = 4
"""How many times finer than densities maps are known."""
FINEST = 128
"""How many times finer that grid may be than the one that densities are kept on."""


def law_of(
    p: Reverse, ts: Tensor, *steps: Step, prior: Law | None = None, denoise: bool = False, n: int | None = None
) -> LineLaw:
    """The law of `sample(p, x, ts, *steps)` on a line, x of shape (1,) drawn from the prior at ts[0], N(0, sigma_T^2)
    at T unless given. denoise: end with E[x_0 | x_t] at the last time, as `draw` does, unless sigma is 0 there. n:
    points that densities are kept at, unless given 512, and 1,024 with `MALA`, whose rejections have edges, and on the
    flow, or 2,048 in less than 64 steps, which bend it more; all is done again with half as many, for `LineLaw.errors`.

    A step with noise must be a Gaussian kernel: one draw, which enters linearly, with a variance that may depend on x;
    `Langevin` and `MALA` take n of them. On the flow, eta = 0, steps may be any that keep the order of points. Raises
    ValueError before any work as `sample` does, and, naming the step, for other kernels: a step with noise that
    remembers earlier states, draws twice, or scales its noise by itself (`SNR`), and a flow whose steps are so long
    that points change places. Sample such, and compare by samples. Also if the noise is too small for n points.
    """
    ts, prior = beginning(p, ts, prior, (1,), denoise)
    n = count("n", _points(p, ts, steps) if n is None else n, least=64)
    laws = [tabulated(prior, m) for m in (n, n // 2)]
    with torch.no_grad():
        memory = remembers(p, ts, steps, (1,))
        if memory and p.eta:
            raise ValueError(
                f"steps must each be a kernel of their own for eta > 0, got {memory!r} on eta = {p.eta:g}, which "
                "remembers earlier states: take one that does not, such as Ancestral(), or eta = 0, or sample it"
            )
        if memory:
            laws = [_carried(law, lambda x: end(p, x, ts, *steps, noise=_none), steps, whole=True) for law in laws]
        else:
            _, laws = deque(_along(laws, p, ts, steps), maxlen=1).pop()
        if denoise and p.sde.var(ts[-1]) > 0:
            laws = [_carried(law, lambda x: p.denoise(x, ts[-1]), ("E[x_0 | x_t]",)) for law in laws]
    return replace(laws[0], coarse=laws[1])


def _points(p: Reverse, ts: Tensor, steps: tuple[Step, ...]) -> int:
    """How many tell a law to 1e-8 or so, at a cost that is bearable."""
    if not p.eta:
        return 1024 if len(ts) > 64 else 2048
    return 1024 if any(isinstance(step, MALA) for step in steps) else 512


def law_path(
    p: Reverse, ts: Tensor, *steps: Step, prior: Law | None = None, n: int = 256
) -> list[tuple[float, LineLaw]]:
    """The time and the law of `trajectory(p, x, ts, *steps)` at each of its states on a line, as `law_of` the last.
    Raises ValueError as that does, and for steps with memory on the flow too.
    """
    ts, prior = beginning(p, ts, prior, (1,), False)
    laws = [tabulated(prior, count("n", n, least=64))]
    with torch.no_grad():
        if memory := remembers(p, ts, steps, (1,)):
            raise ValueError(
                f"steps must each be a kernel of their own, got {memory!r}, which remembers earlier states: take one "
                "that does not, such as Ancestral(), or `law_of`, which tells the law at the end alone on the flow"
            )
        return [(float(ts[0]), laws[0]), *((t, law) for t, (law,) in _along(laws, p, ts, steps))]


def _along(
    laws: list[LineLaw], p: Reverse, ts: Tensor, steps: tuple[Step, ...]
) -> Iterator[tuple[float, list[LineLaw]]]:
    """The laws after each round of the steps, and its time."""
    each = sum(step.n if isinstance(step, Langevin) else 1 for step in steps)
    for k, (step, going, t, s) in enumerate(calls(p, ts, steps), 1):
        laws = _moved(laws, p, step, going, t, s)
        if k % each == 0:
            yield float(s), laws


def beginning(p: Reverse, ts: Tensor, prior: Law | None, shape: tuple[int, ...], denoise: bool) -> tuple[Tensor, Law]:
    """The times and the law of x at the first of them. Raises ValueError for what is not as stated."""
    ts = times("ts", ts, require_reverse(p).T)
    if prior is None and ts[0] < p.T * (1 - 1e-6):
        raise ValueError(f"ts must begin at T = {p.T:g} unless a prior is given for its first time, got {ts[0]:.6g}")
    if not isinstance(denoise, bool):
        raise ValueError(f"denoise must be True or False, got {denoise!r}")
    if prior is None:
        return ts, Gaussian(torch.zeros(shape), float(p.sde.var(as_time(p.T))))
    return ts, require_law("prior", prior, shape)


def _none(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return torch.zeros_like(x)


def calls(p: Reverse, ts: Tensor, steps: tuple[Step, ...]) -> Iterator[tuple[Step, Step, Tensor, Tensor]]:
    """(step, the same at work, t, s) in the order of `sample`, with `Langevin` one step at a time."""
    steps = tuple(
        one for step in steps for one in ([replace(step, n=1)] * step.n if isinstance(step, Langevin) else [step])
    )
    going, moves = started(p, ts, steps), any(step.moves for step in steps)
    for t, s in zip(ts[:-1], ts[1:], strict=True) if moves else zip(ts, ts, strict=True):
        for step, at_work in zip(steps, going, strict=True):
            yield step, at_work, t, s if step.moves else t
            t = s if step.moves else t


def remembers(p: Reverse, ts: Tensor, steps: tuple[Step, ...], shape: tuple[int, ...]) -> Step | None:
    """A step that does not do the same when it is called again, at a few points of that shape on their way."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, *shape, generator=g, dtype=torch.float64)
    for step, going, t, s in calls(p, ts, steps):
        z = torch.randn(x.shape, generator=g, dtype=x.dtype)
        told = going(p, x, t, s, lambda *_, z=z: z)
        try:
            again = going(p, x, t, s, lambda *_, z=z: z)
        except ValueError:  # it has gone on to the next interval
            return step
        if not torch.equal(told, again):
            return step
        x = told
    return None


def _moved(laws: list[LineLaw], p: Reverse, step: Step, going: Step, t: Tensor, s: Tensor) -> list[LineLaw]:
    """After one step."""
    kernel = Langevin(step.step_size) if isinstance(step, MALA) else going
    told = kernels(kernel, p, [law.x for law in laws], t, s)
    if not any(c.any() for _, c in told):
        return [_carried(law, lambda x: going(p, x, t, s, _none), (step,)) for law in laws]
    return [_spread(law, m, c, p, step, kernel, t, s) for law, (m, c) in zip(laws, told, strict=True)]


def _spread(law: LineLaw, m: Tensor, c: Tensor, p: Reverse, step: Step, kernel: Step, t: Tensor, s: Tensor) -> LineLaw:
    """After one step with noise, N(m, c^2) from the points of the law."""
    n = len(law.log_p)
    h = (law.high - law.low) / (n - 1)
    apart = torch.full_like(m[1:], h) if isinstance(step, MALA) else m.diff().abs()  # of means, or of points that stay
    ratio = NARROW * float((apart / torch.minimum(c[1:], c[:-1])).max())
    if ratio > FINEST:
        raise ValueError(f"n must be {n * ratio / FINEST:.0f} or so for the noise of {step} at t = {t:g}, got {n}")
    finer = max(1, math.ceil(ratio))
    if isinstance(step, MALA):
        return _accepted(law, p, step, kernel, t, finer)
    if finer > 1:
        x = torch.linspace(law.low, law.high, finer * (n - 1) + 1, dtype=torch.float64)
        law, h = LineLaw(law.low, law.high, law.log_prob(x)), h / finer
        ((m, c),) = kernels(kernel, p, [x], t, s)
    weight = (h * law.log_p.exp()).numpy()
    low, high = float((m - REACH * c).min()), float((m + REACH * c).max())
    return kept(low, high, n, lambda y: torch.from_numpy(_sum(y.numpy(), m.numpy(), c.numpy(), weight)).log())


def kernels(step: Step, p: Reverse, xs: list[Tensor], t: Tensor, s: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(m, c) at each x (n,). Raises ValueError for what is no Gaussian kernel."""
    m, c = gaussian_kernel(step, p, torch.cat(xs)[:, None], t, s)
    sizes = [len(x) for x in xs]
    return list(zip(m[:, 0].split(sizes), c[:, 0].split(sizes), strict=True))


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


def _accepted(law: LineLaw, p: Reverse, step: MALA, proposal: Step, t: Tensor, finer: int) -> LineLaw:
    """After the steps of MALA: p(y) (1 - int a(y, x) q(x | y) dx) + int p(x) a(x, y) q(y | x) dx. The points stay where
    they are, so that the level is kept to all digits; a has kinks, which cost the rest an order.
    """
    n = finer * (len(law.log_p) - 1) + 1
    x = torch.linspace(law.low, law.high, n, dtype=torch.float64)
    density, stays = x.new_zeros(n + n), x.new_ones(n + n)  # of which the second half lies beyond
    density[:n], pairs = law.log_prob(x).exp(), list(metropolis(p, step, proposal, t, x))
    for rows, up, down, there in pairs:
        stays[rows] -= up.sum(1)
        stays.index_add_(0, there, down.flatten(), alpha=-1)
    stays.clamp_min_(0)
    for _ in range(step.n):
        came = density * stays
        for rows, up, down, there in pairs:
            came[rows] += density[there].view_as(down).mul_(down).sum(1)
            came.index_add_(0, there, (density[rows, None] * up).flatten())
        density = came
    return LineLaw(law.low, law.high, density[:n:finer].clamp_min(1e-300).log())


def _next(v: Tensor, reach: int) -> Tensor:
    """(n, reach): v[i + 1], ..., v[i + reach] for each i, and the last beyond the end."""
    return torch.cat([v[1:], v[-1:].expand(reach)]).unfold(0, reach, 1)


class Pairs(NamedTuple):
    """Probabilities of moves from rows of points up to the k next, and back down, (r, k); 0 for what is beyond the last
    point. there: (r k,), which those are.
    """

    rows: slice
    up: Tensor
    down: Tensor
    there: Tensor


def metropolis(p: Reverse, step: MALA, proposal: Step, t: Tensor, x: Tensor) -> Iterator[Pairs]:
    """Where MALA goes in one step between points x (n,) at equal steps, each pair once: with probability
    h q(y | x) a(x, y), of the acceptance a(x, y) = min(1, pi(y) q(x | y) / (pi(x) q(y | x))) for the level pi of the
    score, or its ratio by the scores; so that pi(x) times it is the same both ways.
    """
    n, h = len(x), float(x[1] - x[0])
    ((m, c),) = kernels(proposal, p, [x], t, t)
    reach = min(n - 1, math.ceil(float(((m - x).abs() + REACH * c).max()) / h))
    known = p.ask(x[:, None], t)[:, 0] if step.by_scores else p.score.log_prob(x[:, None], t)  # type: ignore[attr-defined]
    of_each = (x, m, -1 / (2 * c**2), math.log(h / math.sqrt(2 * math.pi)) - c.log(), known)
    next_to_each = [_next(v, reach) for v in of_each]
    between = None
    if step.by_scores == 3:  # at points and half way between them
        fine = torch.linspace(float(x[0]), float(x[-1]), 2 * n - 1, dtype=x.dtype)
        between = _next(p.ask(fine[:, None], t)[:, 0], reach)[::2]
    size = max(1, BLOCK // reach)
    for i in range(0, n, size):
        rows = slice(i, min(i + size, n))
        x_0, m_0, rate_0, log_0, known_0 = (v[rows, None] for v in of_each)
        x_1, m_1, rate_1, log_1, known_1 = (v[rows] for v in next_to_each)
        log_up = (x_1 - m_0).square_().mul_(rate_0).add_(log_0)
        log_down = (x_0 - m_1).square_().mul_(rate_1).add_(log_1)
        if step.by_scores:
            ratio = mean_score(known_0, known_1, None if between is None else between[rows]).mul_(x_1 - x_0)
        else:
            ratio = known_1 - known_0
        least = torch.minimum(log_up, log_down.add_(ratio))
        up, down = least.exp(), least.sub_(ratio).exp_()
        there = torch.arange(n)[rows, None] + torch.arange(1, reach + 1)
        if int(there[-1, -1]) >= n:
            up, down = up.masked_fill_(there >= n, 0.0), down.masked_fill_(there >= n, 0.0)
        yield Pairs(rows, up, down, there.flatten())


Valued = Callable[[Tensor], tuple[Tensor, Tensor]]


def _exactly(f: Callable[[Tensor], Tensor]) -> Valued:
    """f on (B, 1) and its derivative, by forward differentiation."""

    def valued(x: Tensor) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings(), forward_ad.dual_level():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own rules of differentiation
            y, slope = forward_ad.unpack_dual(f(forward_ad.make_dual(x[:, None], torch.ones_like(x)[:, None])))
            return y[:, 0].clone(), (torch.zeros_like(y) if slope is None else slope)[:, 0].clone()

    return valued


def _smoothly(f: Callable[[Tensor], Tensor], x: Tensor) -> Valued:
    """The same of one step, as smooth as the density that it carries, by a spline through points x."""
    value = spline(x, f(x[:, None])[:, 0])
    slope = value.derivative()
    return lambda x: (torch.from_numpy(value(x.numpy())), torch.from_numpy(slope(x.numpy())))


def _carried(law: LineLaw, f: Callable[[Tensor], Tensor], names: tuple[object, ...], whole: bool = False) -> LineLaw:
    """The law of f(x), for an increasing f on (B, 1): at y, p(x)/f'(x) where f(x) = y. whole: f is not one step, but
    all of them. Raises ValueError, with the names of the steps, if f is not increasing.
    """
    n = len(law.log_p)
    x = torch.linspace(law.low, law.high, FINER * (n - 1) + 1, dtype=torch.float64)
    tries = (_exactly(f),) if whole else (_smoothly(f, x), _exactly(f))  # the second where the first is too rough
    for valued in tries:
        y, slope = valued(x)
        if (y.diff() > 0).all() and (slope > 0).all():
            break
    else:
        raise ValueError(f"points change places on the flow by {', '.join(map(str, names))}: take more steps")
    told = law.log_prob(x) - slope.log()
    above = (told > told.max() + math.log(FLOOR)).nonzero()[:, 0]
    low, high = float(y[(above[0] - 1).clamp_min(0)]), float(y[(above[-1] + 1).clamp_max(len(y) - 1)])
    at = torch.linspace(low, high, n, dtype=x.dtype)
    i = torch.searchsorted(y, at).clamp(1, len(y) - 1)
    guess = x[i - 1] + (at - y[i - 1]).clamp_min(0) / (y[i] - y[i - 1]) * (x[i] - x[i - 1])
    root, gradient = _inverse(valued, at, x[i - 1], guess.clamp_max(x[i]), x[i])
    found = law.log_prob(root) - gradient.log()
    return LineLaw(low, high, found.clamp_min(float(found.max()) - 700))


def _inverse(f: Valued, y: Tensor, low: Tensor, guess: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
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
