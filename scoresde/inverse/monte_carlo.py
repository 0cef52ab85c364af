"""Monte Carlo guided diffusion."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..noise import Noise, drawn, iid
from ..process import LinearSDE, Score
from ..reference import Reference, known
from ..shapes import lifted, number, state, times
from ..steps import Ancestral
from ..steps.step import Affine
from .measure import Observation, linear, sde_of, single
from .particles import Cloud, Particles, require_particles


@torch.no_grad()
def mcgdiff(
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
    """Samples of the model's own posterior, by particles whose potentials need no derivative (Cardoso, Janati El
    Idrissi, Le Corff & Moulines 2023, algorithm 1 and its extension to noise): y is compared with x~ = x_t/alpha_t
    itself, in the right singular vectors v_i of A, of the singular values s_i, with r = sigma_t/alpha_t,

        g_t(x_t) = prod_i N(y_i; v_i . x~, max(r^2, std^2/s_i^2)),

    with y_i what y says of v_i . x_0, and p(y | x_0) in place of it at the last time, where x/alpha is taken for x_0.
    The proposal p(x_s | x_t) g_s(x_s) is Gaussian, and each weight the integral of that by x_s, over g_t(x_t). As with
    `twisted`, weighted means tend to those of the step's own law given y as x (B, *D), N(0, sigma^2 I) at ts[0],
    becomes many; the mean weight is p(y) on average however few they are. Fewer than `least` of the samples in effect
    are drawn anew (`generator`). One call a step.

    At much noise such potentials ask more of x_t than y tells, which takes many particles. Given `around`, N(m, c^2 I),
    they are the p(y | x_t) of such data instead, of the means v_i . (m + c^2/(c^2 + r^2) (x~ - m)) and the variances
    c^2 r^2/(c^2 + r^2) + std^2/s_i^2.

    Raises ValueError before any work for what is not as stated, for an A that is not linear or whose A A^T is not
    known, and for std = 0 if the last step adds no noise, as y could then not be met.
    """
    sde, x = sde_of(score), state("x", x)
    toward = _Toward(seen, None if around is None else known(around, score, x.shape[1:]), x.device)
    require_particles(step, noise, generator, least)
    seen.left(x[:1])
    ts = times("ts", ts, sde.T)
    dtype, x, p = x.dtype, lifted(x), sde.reverse(score)
    lines = [[float(v) for v in step.line(p, t, u)] for t, u in pairwise(ts)]
    if not lines[-1][2]:
        number("std where the last step adds no noise", seen.std, above=0)
    potentials = [toward.at(sde, t) for t in ts[:-1]] + [toward.at(sde, ts[-1], last=True)]
    cloud, sigma = Cloud(x), float(sde.sigma(ts[0]))
    x, log_w = toward.drawn(0 * x, sigma, x / sigma, potentials[0])
    cloud.log_w += log_w
    for (a, b, c), (t, u), (here, there) in zip(lines, pairwise(ts), pairwise(potentials), strict=True):
        if (rows := cloud.redraw(least, generator)) is not None:
            x = x[rows]
        before, z = toward.log(x, here), drawn(noise, x, t, u)
        x, log_w = toward.drawn(a * x + b * p.ask(x, t), c, z, there)
        cloud.log_w += log_w - before
    return cloud.at(ts[-1], x.to(dtype), len(ts) - 1)


class _Potential(NamedTuple):
    """N(y_i; e_i + q v_i . x, var_i), e and var (m,) in float64."""

    q: float
    e: Tensor
    var: Tensor


class _Toward:
    """Potentials, and draws toward y."""

    def __init__(self, seen: Observation, around: Reference | None, device: torch.device) -> None:
        self.A, self.around = linear(single(seen)), around
        self.values = self.A.spectrum()[0].to(device)
        self.y, self.far2 = self.A.coordinates(seen.y.to(device)[None])[0], seen.std**2 / self.values
        mean = torch.as_tensor(0.0 if around is None else around.mean).to(self.y)
        self.m = self.A.coordinates(self.A(mean.expand(1, *self.A.shape)))[0]

    def at(self, sde: LinearSDE, t: Tensor, last: bool = False) -> _Potential:
        """That of a time."""
        alpha = float(sde.alpha(t))
        r2 = 0.0 if last else float(sde.var(t)) / alpha**2
        if self.around is None or last:
            return _Potential(1 / alpha, 0 * self.y, self.far2.clamp_min(r2))
        k = self.around.std**2 / (self.around.std**2 + r2)
        return _Potential(k / alpha, (1 - k) * self.m, k * r2 + self.far2)

    def log(self, x: Tensor, g: _Potential) -> Tensor:
        """log g(x), (B,) in float64."""
        return self._normal(self.A.coordinates(self.A(x)), g)

    def drawn(self, mean: Tensor, c: float, z: Tensor, g: _Potential) -> tuple[Tensor, Tensor]:
        """A draw of N(x; mean, c^2 I) g(x), made of z, and the log of its integral, (B,) in float64."""
        m, n, var = self.A.coordinates(self.A(mean)), self.A.coordinates(self.A(z)), g.var + (g.q * c) ** 2
        gain = (g.q * c**2 / var).to(m)
        off = gain * ((self.y - g.e).to(m) - g.q * m) + ((1 - g.q * gain).clamp_min(0).sqrt() - 1) * c * n
        return mean + c * z + self.A.embed(off), self._normal(m, g._replace(var=var))

    def _normal(self, m: Tensor, g: _Potential) -> Tensor:
        """The same of coordinates (B, m): the density of y itself, S U^T of y_i."""
        off = self.y - g.e - g.q * m.to(self.y)
        return -(off.square() / g.var + (2 * math.pi * g.var * self.values).log()).sum(1) / 2
