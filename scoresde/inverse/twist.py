"""Twisted sequential Monte Carlo."""

import math

import torch
from torch import Tensor

from ..noise import Noise, iid
from ..process import Score
from ..reference import Reference
from ..shapes import lifted, like, number, recordable, recording, state, times
from ..steps import Ancestral
from ..steps.step import Affine
from .measure import Observation, level, linear, sde_of, single
from .particles import Cloud, Particles, require_particles
from .pseudo import spread


@torch.no_grad()
def twisted(
    score: Score,
    seen: Observation,
    x: Tensor,
    ts: Tensor,
    step: Affine = Ancestral(1.0),
    *,
    around: Reference | None = None,
    noise: Noise = iid(),
    generator: torch.Generator | None = None,
    least: float = 0.5,
) -> Particles:
    """Samples of the model's own posterior, by particles (Wu et al. 2023, algorithm 1): the guided step of `pigdm` is a
    proposal, and weights make up for what is wrong with it,

        w_s = p(x_s | x_t) q_s(y | x_s) / (p~(x_s | x_t, y) q_t(y | x_t)),

    with q_t(y | x) = N(y; A E[x_0 | x], r_t^2 A A^T + std^2 I), and p(y | x_0) itself at the last time, where x/alpha
    is taken for x_0. However bad q is, weighted means tend to those of the step's own law given y as x (B, *D), drawn
    from the prior at ts[0], becomes many; their mean weight tends to p(y). Where fewer than `least` of the samples
    are left in effect they are drawn anew (`generator`). One call and one product a step.

    Raises ValueError before any work for what is not as stated, for an A that is not linear or whose A A^T is not
    known, and without noise in y.
    """
    sde, x, A = sde_of(score), state("x", x), linear(single(seen))
    require_particles(step, noise, generator, least)
    number("std", seen.std, above=0), A(x[:1]), A.spectrum()
    ts = times("ts", ts, sde.T)
    dtype, x = x.dtype, lifted(x)
    p, cloud, twist = sde.reverse(score), Cloud(x), _Twist(score, seen, around)
    log_q, s_t, g = twist(x, ts[0])
    cloud.log_w += log_q
    for k in range(len(ts) - 1):
        t, u = ts[k], ts[k + 1]
        if (rows := cloud.redraw(least, generator)) is not None:
            x, s_t, g, log_q = x[rows], s_t[rows], g[rows], log_q[rows]
        a, b, c = (float(v) for v in step.line(p, t, u))
        z = noise(x, t, u)
        # where the step adds no noise nothing could make up for another mean, and none is proposed
        moved = a * x + b * (s_t + g) + c * z if c else a * x + b * s_t
        # log p(x_s | x_t) - log of the proposal: both have the deviation c, and means that are b g apart
        apart = (b * g / c).flatten(1) if c else torch.zeros_like(x).flatten(1)
        ratio = -(apart * (z.flatten(1) + apart / 2)).sum(1).double()
        last = k == len(ts) - 2
        before, x = log_q, moved
        if last:
            log_q = _log_normal(seen, x / like(sde.alpha(u), x), 0 * log_q)
        else:
            log_q, s_t, g = twist(x, u)
        cloud.log_w += ratio + log_q - before
    return cloud.at(ts[-1], x.to(dtype), len(ts) - 1)


class _Twist:
    """log q_t(y | x), (B,), the score, and the gradient of the first by x."""

    def __init__(self, score: Score, seen: Observation, around: Reference | None) -> None:
        self.score, self.seen, self.around, self.sde = score, seen, around, sde_of(score)

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with recording():
            z = recordable(x).detach().requires_grad_()
            s = self.score(z, t)
            x_0 = (z + like(self.sde.var(t), z) * s) / like(self.sde.alpha(t), z)
            r2 = spread(self.around, self.score, z, level(self.sde, t, z)[1])
            log_q = _log_normal(self.seen, x_0, r2)
            (g,) = torch.autograd.grad(log_q.sum(), z)
        return log_q.detach(), s.detach(), g


def _log_normal(seen: Observation, x_0: Tensor, r2: Tensor) -> Tensor:
    """log N(y; A x_0, r^2 A A^T + std^2 I), (B,) in float64."""
    A, noise, left = linear(seen), torch.full_like(r2, seen.std**2), seen.left(x_0)
    square = (left * A.solve(left, r2, noise)).sum(1).double()
    return -(square + A.log_det(r2, noise) + A.m * math.log(2 * math.pi)) / 2
