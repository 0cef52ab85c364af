"""log p of what a sampler returns, by paths.

A sampler whose steps are Gaussian kernels p(x_{i-1} | x_i, x_{i+1}, ...) has a law of its own, whatever the continuous
process has. With paths x_1, ..., x_N drawn from the forward process given x_0,

    log p(x_0) >= E log 1/K sum_k w_k,    w = p(x_N) prod_i p(x_{i-1} | x_i, ...) / q(x_1, ..., x_N | x_0)

(Burda et al. 2016, eq. 8; K = 1 is the bound of Ho et al. 2020), which rises with K to log p(x_0) itself.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..exact import Law
from ..model import Counted
from ..noise import Noise, iid, require_noise
from ..process import Reverse
from ..quantize import Quantized
from ..shapes import WITHOUT_FLOAT64, count
from ..steps import Step
from ..steps.kernel import gaussian_kernel, named
from ..steps.step import started
from .conditions import conditions, given, under
from .samples import MANY, entry, finite, sampled


@dataclass(frozen=True)
class PathBound:
    """log p(x) of what a sampler returns, from below, for each sample.

    log_w: (K, B), log w of each path in nats, so that E w = p(x). nfe: network calls. d: the dimension. quantized: the
    grid of discrete data, of whose probability it is then; None for a density. given: what is to be said of conditions.
    """

    log_w: Tensor
    nfe: int
    d: int
    quantized: Quantized | None = None
    given: str = ""

    @property
    def log_p(self) -> Tensor:
        """log of the mean of w over paths, (B,): at most log p(x) in expectation, and nearer to it with more paths."""
        return self.log_w.logsumexp(0) - math.log(len(self.log_w))

    @property
    def elbo(self) -> Tensor:
        """The mean of log w over paths, (B,): the bound with one path, in expectation."""
        return self.log_w.mean(0)

    @property
    def effective(self) -> Tensor:
        """(sum w)^2 / sum w^2, (B,): how many paths there are in effect. Where it is not many, log_p is a bound and no
        estimate.
        """
        return 1 / self.log_w.softmax(0).square().sum(0)

    @property
    def paths_error(self) -> Tensor:
        """The standard error of log_p from the paths drawn, (B,), to first order; nan for one."""
        K = len(self.log_w)
        if K == 1:
            return torch.full_like(self.log_w[0], math.nan)
        return (K * self.log_w.softmax(0)).std(0) / math.sqrt(K)

    @property
    def values(self) -> Tensor:
        """(B,): the bound in bits/dim of discrete data, in nats/dim, -log p/d, of continuous ones."""
        return -self.log_p / self._unit

    @property
    def _unit(self) -> float:
        return self.d * (math.log(2) if self.quantized else 1.0)

    def error(self) -> float:
        """The standard error of the mean of `values` over samples; it holds what the paths add."""
        return float(self.values.std()) / math.sqrt(len(self.values))

    def __str__(self) -> str:
        unit, of = ("bits/dim", " of the discrete data") if self.quantized else ("nats/dim", "")
        spread = f" +- {self.error():.1g}" if len(self.values) > 1 else ""
        paths = f"{len(self.log_w)} paths a sample, {float(self.effective.mean()):.1f} in effect"
        return (
            f"{float(self.values.mean()):.4f}{spread} {unit} over {len(self.values)} samples (upper bound of -log p"
            f"{of} under the sampler{self.given}, {paths}); {self.nfe} network calls"
        )


@torch.inference_mode(False)
@torch.no_grad()
def sampler_log_prob(
    p: Reverse,
    x: Tensor,
    ts: Tensor,
    step: Step,
    quantized: Quantized | None = None,
    *,
    paths: int = 1,
    prior: Law | None = None,
    noise: Noise = iid(),
    **cond: Any,
) -> PathBound:
    """log p of x (B, *D) under `sample(p, x_T, ts, step)` itself, from below, by K = `paths` paths for each sample.

    x lies at the last of the times ts; with its grid `quantized` it is discrete data at time 0, and the sampler ends
    with the decoder of `elbo`, N(E[x_0 | x_t], sigma_t^2/alpha_t^2) integrated over each level. prior: the law of x at
    ts[0], N(0, sigma_T^2 I) at T unless given. step: any predictor with Gaussian noise, such as `Ancestral`,
    `ReverseDiffusion`, `EulerMaruyama`, or a multistep method on the SDE. cond: as in `elbo`. Each path costs what
    the sampler does.

    Raises ValueError before any work unless all is as stated, the step is a predictor, eta > 0, without which it draws
    no noise, and sigma > 0 at the last time; on its way, naming the step, if that draws more than once an interval or
    not at all; `SampleError`, a RuntimeError naming the sample and the time, for a weight that is not finite.
    """
    require_noise(noise), count("paths", paths, most=MANY)
    x = entry(x, quantized)
    ts, score = sampled(p, x, ts, step, prior), Counted(p.score)
    told = conditions(cond, x, p.score)
    if not p.eta or p.sde.var(ts[-1]) == 0:
        why = f"eta = {p.eta:g}" if not p.eta else f"the hop to sigma = 0 at t = {ts[-1]:g}"
        raise ValueError(f"{step} draws no noise for {why}, so that what it returns has no density")
    dtype, x = x.dtype, x.to(torch.float32 if x.device.type in WITHOUT_FLOAT64 else torch.float64)

    def ask(y: Tensor, t: Tensor, **c: Any) -> Tensor:
        return score(y.to(dtype), t, **c).to(y)

    going, q = (given(replace(p, score=f), told) for f in (p.score, ask))
    started(going, ts, (step,))
    log_w = [_weight(q, x, ts, started(going, ts, (step,))[0], quantized, prior, noise) for _ in range(paths)]
    return PathBound(torch.stack(log_w), score.nfe, x[0].numel(), quantized, under(p.score, told))


def _weight(
    p: Reverse, x_0: Tensor, ts: Tensor, step: Step, quantized: Quantized | None, prior: Law | None, noise: Noise
) -> Tensor:
    """log w of one path for each sample, (B,), from the noisiest state on: of u = x/alpha, whose law given u_0 and the
    last is that of a Brownian bridge in the variance W that is added to u_0.
    """
    sde = p.sde
    alpha, var = sde.alpha(ts), sde.var(ts)
    v = var / alpha**2
    W = v if quantized else v - v[-1]
    u_0 = x_0 if quantized else x_0 / float(alpha[-1])
    u = u_0 + float(W[0].sqrt()) * noise(x_0, ts[-1], ts[0])
    x = float(alpha[0]) * u
    log_w = (sde.log_prior(x) if prior is None else prior.log_prob(x)) - _normal(u, u_0, W[0].sqrt(), alpha[0])
    for i, (t, s) in enumerate(pairwise(ts), 1):
        m, c = gaussian_kernel(step, p, x, t, s)
        if not c.any():
            raise ValueError(
                f"{named(step)} draws no noise from t = {t:g} to {s:g}, so that what it returns has no density"
            )
        last = i == len(ts) - 1 and not quantized
        if last:
            x = x_0
        else:
            keep = W[i] / W[i - 1]
            mean, std = u_0 + float(keep) * (u - u_0), (keep * (W[i - 1] - W[i])).sqrt()
            u = mean + float(std) * noise(x_0, t, s)
            x = float(alpha[i]) * u
            log_w = log_w - _normal(u, mean, std, alpha[i])
        log_w = finite("the weight", s, log_w + _normal(x, m, c))
    if quantized:
        log_w = log_w + quantized.log_bin(x_0, p.denoise(x, ts[-1]), v[-1].sqrt()).flatten(1).sum(1)
    return finite("the weight", ts[-1], log_w)


def _normal(y: Tensor, mean: Tensor, std: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """log of the density of scale y for y ~ N(mean, std^2), (B,)."""
    deviation = torch.as_tensor(std * scale)
    log_p = -((y - mean) / std).square() / 2 - deviation.log() - math.log(2 * math.pi) / 2
    return log_p.flatten(1).sum(1)
