"""log p of a sample along the path that led to it.

On a path of the reverse SDE the density is known without a divergence (Karczewski et al. 2025, theorem 1). In u =
x/alpha and v = sigma^2/alpha^2, for the score s of the law p at noise v and any law q whose score r is known, with e =
s - r,

    d (log p_v(u) - log q_v(u)) = e (du - s |dv|) + |e|^2/2 |dv|,

the first by Ito's integral as v falls. Without q it is the theorem; the nearer q is to p, the less there is for steps
to be wrong about. A step from v to w < v moves u by s (v - w) + n; the second term is taken by the trapezoid rule, and

    n De/2 (1 - d (v - w) w/v / |n|^2),

De what e changes by, makes up for kernels whose noise n is not that of the SDE, whose variance is (v - w) w/v given
x_0, and for the part of Ito's integral that is known from the size of n.
"""

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from ..exact import Diffused, Gaussian, GaussianMixture, Law, require_law
from ..model import Counted
from ..noise import Noise, iid
from ..process import Reverse, needs_noise
from ..reference import UNIT, Reference, known
from ..shapes import state
from ..steps import Step
from ..steps.step import trajectory
from .samples import finite, sampled

SIZES = 64
"""Numbers from which the size of the noise is told."""


@dataclass(frozen=True)
class Sampled:
    """Samples with the log-density of each.

    x: (B, *D), what `sample` returns. log_p: (B,), in nats, of the density at time t. error: (B,), an estimate of the
    size of the error of each; nan for one step. nfe: network calls.
    """

    x: Tensor
    log_p: Tensor
    error: Tensor
    t: float
    nfe: int

    def __str__(self) -> str:
        d, n = self.x[0].numel(), len(self.x)
        mean, error = -float(self.log_p.mean()) / d, float(self.error.square().mean().sqrt()) / d
        return (
            f"{mean:.4f} nats/dim on average over {n} samples (-log p/d of the density at t = {self.t:g}, along the "
            f"paths that led to them), each wrong by some {error:.1g}; {self.nfe} network calls"
        )


class _Remembering(Counted):
    """A score that remembers the first of its answers since it last forgot."""

    first: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        asked = x.clone(), t.clone()
        told = super().__call__(x, t, **cond)
        self.first = self.first or (*asked, told.clone())
        return told

    def at(self, x: Tensor, t: Tensor) -> Tensor | None:
        """What it first answered, if that was at x and t; and forget it."""
        first, self.first = self.first, None
        same = first is not None and torch.equal(first[1], t) and torch.equal(first[0].to(x), x)
        return first[2] if first and same else None


@torch.inference_mode(False)
@torch.no_grad()
def sample_and_log_prob(
    p: Reverse,
    x: Tensor,
    ts: Tensor,
    step: Step,
    *,
    around: Reference | GaussianMixture | None = None,
    prior: Law | None = None,
    noise: Noise = iid(),
) -> Sampled:
    """`sample(p, x, ts, step)` on the reverse SDE, and log p of every sample at the last time, at one further call if
    the step first asks for the score where x is, as almost all do. x (B, *D) was drawn from the prior at ts[0], N(0,
    sigma_T^2 I) at T unless given.

    around: a law near that of the data, the q of the module: `Gaussian.fit(data)`, with its full covariance, is best;
    or a `Reference`; unless given, that which the score was made for, or N(0, I). It moves the result by no more than
    the error, which has two parts. One is of first order in the step. The other is random, as that of a divergence from
    one probe a step, and falls with the root of the number of steps. Both are least where most steps are at noise as
    large as the data, as on `grid.reference`.

    Raises ValueError before any work as `sample` does, and unless p is the reverse SDE (eta = 1) of a linear SDE, and
    step a predictor that takes the intervals that it is given; RuntimeError as `sample`, and naming the first sample
    whose log p is not finite.
    """
    x = state("x", x)
    ts, sde = sampled(p, x, ts, step, prior), p.sde
    if p.eta != 1:
        raise ValueError(f"eta must be 1, on whose paths log p needs no divergence, got {p.eta:g}: take log_prob")
    needs_noise(p, ts)
    q = require_law("around", _near(around, p.score, x), x.shape[1:]).diffuse(sde)
    score = _Remembering(p.score)
    asked = replace(p, score=score)
    states = trajectory(asked, x, ts, step, noise=noise)
    y = next(states)
    gap = (sde.log_prior(y) if prior is None else prior.log_prob(y)).double() - q.log_prob(y.double(), ts[0])
    points, fine, rough = deque[_Point](maxlen=3), _Ito(), _Ito()
    for k, t in enumerate(ts):
        to = next(states, y)  # at the last time it is at y already
        told = score.at(y, t)
        points.append(_Point.of(q, y, t, asked.ask(y, t) if told is None else told))
        if k > 0:
            fine.add(points[-2], points[-1])
        if k > 0 and k % 2 == 0:
            rough.add(points[0], points[-1])
        score.first, y = None, to
    gains, coarse = fine.gains(), rough.gains()
    n = len(coarse)
    off = gains[: 2 * n].view(n, 2, -1).sum(1) - coarse if n else torch.full_like(gains[:1], math.nan)
    error = (off.sum(0).square() + off.square().sum(0)).sqrt()
    log_p = finite("log p", ts[-1], q.log_prob(y.double(), ts[-1]) + gap + gains.sum(0))
    return Sampled(y, log_p, error, float(ts[-1]), score.nfe)


def _near(around: Any, score: Any, x: Tensor) -> GaussianMixture:
    """The law that is near that of the data."""
    if isinstance(around, GaussianMixture):
        return around.to(x.device)
    told = known(around, score, x.shape[1:]) or UNIT
    return Gaussian(torch.as_tensor(told.mean, dtype=torch.float64).expand(x.shape[1:]), told.std**2).to(x.device)


class _Point(NamedTuple):
    """A point of a path in float64: u (B, d), v, s and e."""

    u: Tensor
    v: float
    s: Tensor
    e: Tensor

    @classmethod
    def of(cls, q: Diffused, x: Tensor, t: Tensor, score: Tensor) -> "_Point":
        """x at time t, the score of p there, and the law q."""
        alpha, x = float(q.sde.alpha(t)), x.double()
        s, r = (alpha * v.double().flatten(1) for v in (score, q(x, t)))
        return cls((x / alpha).flatten(1), float(q.sde.var(t)) / alpha**2, s, s - r)


class _Ito:
    """What log p - log q gains on each of some steps. The size of n is that of as many steps as make `SIZES` numbers,
    so that it is never near 0.
    """

    def __init__(self) -> None:
        self.known: list[Tensor] = []
        self.bent: list[Tensor] = []
        self.sizes: list[Tensor] = []
        self.var: list[float] = []

    def add(self, a: _Point, b: _Point) -> None:
        """From one point to the next."""
        h, self.d = a.v - b.v, a.u.shape[1]
        n = b.u - a.u - a.s * h
        square = (a.e.square() + b.e.square()).sum(1) / 2
        self.known.append((a.e * n).sum(1) + square * h / 2)
        self.bent.append((n * (b.e - a.e)).sum(1) / 2)
        self.sizes.append(n.square().sum(1))
        self.var.append(self.d * h * b.v / a.v)

    def gains(self) -> Tensor:
        """(n, B) of n steps."""
        if not self.known:
            return torch.empty(0, 0)
        size, n = torch.stack(self.sizes), len(self.sizes)
        reach = min(math.ceil(SIZES / self.d) // 2, n - 1)
        var = torch.tensor(self.var, dtype=torch.float64).to(size)[:, None]
        size, var = (avg_pool1d(v.T, 2 * reach + 1, 1, reach, count_include_pad=False).T for v in (size, var))
        return torch.stack(self.known) + torch.stack(self.bent) * (1 - var / size)
