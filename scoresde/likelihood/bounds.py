"""Bounds on the likelihood: the discrete one, term by term, and the continuous-time one.

For a chain x_0 -> ... -> x_N and reverse kernels p(x_{i-1} | x_i) (Ho et al. 2020, eq. 5),

    -log p(x_0) <= KL(q(x_N | x_0) || prior) + sum_{i=2}^N E KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i))
                   + E[-log p(x_0 | x_1)],

L_N, L_{i-1} and L_0. As the grid is refined the sum tends to (Kingma et al. 2021, eq. 17; Song et al. 2021b, theorem 3)

    int_eps^T g^2/(2 sigma^2) E|eps(x_t, t) - z|^2 dt,

for every linear SDE. Expectations are over the noise, one draw a term and sample. All terms are in nats and (B,).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..loss import Times, UniformLogSNR
from ..noise import Noise, drawn, iid, require_noise
from ..process import Chain, LinearSDE, Reverse, Score, require_reverse
from ..quantize import Quantized
from ..shapes import SCALE, as_time, count, like, number
from ..steps import Ancestral, Posterior
from .conditions import conditions, given, under
from .samples import MANY, entry, finite

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Bound:
    """-log p(x) <= prior + between + decoder for each sample, in nats: of the discrete data if they are `quantized`, of
    their density otherwise; given: what is to be said of conditions.

    prior: L_N, (B,). steps: (B, K) estimates, whose sum over the K columns is `between`: the terms L_1, ..., L_{N-1}
    themselves if all are there, and not `drawn` at random. decoder: L_0, (B,). nfe: the network calls made. d: the
    dimension.
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor
    nfe: int
    d: int
    quantized: Quantized | None = None
    given: str = ""
    drawn: bool = True

    @property
    def nats(self) -> Tensor:
        """The bound of -log p of each sample in nats, (B,)."""
        return self.prior + self.steps.sum(1) + self.decoder

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound in bits a dimension, (B,). Raises ValueError for continuous data."""
        if self.quantized is None:
            raise ValueError("bits/dim are of discrete data: give `quantized`, or report nats")
        return self.nats / (self.d * math.log(2))

    @property
    def draws_error(self) -> Tensor:
        """The standard error of each sample's `between` from the draws of t and noise, as if these were independent,
        (B,): somewhat too large, as they are of strata. nan for one, and where all terms of the chain are there.
        """
        K = self.steps.shape[1]
        spread = self.steps.std(1) * math.sqrt(K) if K > 1 and self.drawn else self.prior.new_full((), math.nan)
        return spread.expand(len(self.prior))

    def error(self) -> float:
        """The standard error of the mean of `nats` over samples; it holds what the draws of t and noise add."""
        return float(self.nats.std()) / math.sqrt(len(self.nats))

    def __str__(self) -> str:
        per = self.d * (math.log(2) if self.quantized else 1.0)
        spread = f" +- {self.error() / per:.1g}" if len(self.nats) > 1 else ""
        unit, of = ("bits/dim", " of the discrete data") if self.quantized else ("nats/dim", "")
        return (
            f"{float(self.nats.mean()) / per:.4f}{spread} {unit} over {len(self.nats)} samples (upper bound of -log p"
            f"{of}{self.given}, {self.steps.shape[1]} times a sample); {self.nfe} network calls"
        )


def _gaussian_kl(sde: LinearSDE, x_0: Tensor, t: Tensor) -> Tensor:
    """KL(q(x_t | x_0) || N(0, sigma_T^2 I)), (B,)."""
    over, r = sde.var(as_time(sde.T)), sde.var(t) / sde.var(as_time(sde.T))
    signal = (sde.alpha(t) * x_0).square().flatten(1).sum(1) / over
    return finite("the bound", t, (signal + x_0[0].numel() * (r - 1 - r.log())) / 2)


def _decoder(
    p: Reverse, x_0: Tensor, t: Tensor, quantized: Quantized | None, width: float | None, noise: Noise
) -> Tensor:
    """E[-log p(x_0 | x_t)] with p(x_0 | x_t) = N(E[x_0 | x_t], width^2), by one draw, (B,). width: sigma_t/alpha_t
    unless given.
    """
    x_t, _ = p.sde.perturb(x_0, t, noise)
    std = p.sde.sigma(t) / p.sde.alpha(t) if width is None else as_time(width)
    mean = p.denoise(x_t, t)
    if quantized is None:
        value = ((x_0 - mean) / std).square() / 2 + std.log() + LOG_2PI / 2
    else:
        value = -quantized.log_bin(x_0, mean, std)
    return finite("the bound", t, value.flatten(1).sum(1))


@torch.inference_mode(False)
@torch.no_grad()
def elbo(
    chain: Chain,
    score: Score,
    x: Tensor,
    quantized: Quantized | None = None,
    *,
    kernel: Posterior = Ancestral(v=1.0),
    terms: int | None = None,
    width: float | None = None,
    noise: Noise = iid(),
    **cond: Any,
) -> Bound:
    """The discrete bound of x (B, *D) under the reverse chain of a score with the kernels of a step.

    quantized: the grid that x lies on; None for continuous data. kernel: says the variance of p(x_{i-1} | x_i).
    terms: None for all N - 1 terms between, or K of them for each sample at random, weighted so that the sum is
    unbiased: in proportion to the width of the step in log-SNR, one in each K-th of the whole. width: the standard
    deviation of the decoder p(x_0 | x_1) = N(E[x_0 | x_1], width^2), in the units of x; sigma_1/alpha_1 unless given.
    Ho et al. (2020) take that of the step before, `chain.posterior_variances[1]**0.5`; best on average is the root mean
    square error of E[x_0 | x_1]. cond: what the score is told beside x and t, such as label=y, y () or (B,).

    Raises ValueError unless chain, x, kernel, terms, width and noise are as stated; `SampleError`, a RuntimeError
    naming the sample and the time, if a term is not finite.
    """
    for name, value, kind in (("chain", chain, Chain), ("kernel", kernel, Posterior)):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}")
    require_noise(noise)
    _positive(width)
    x_0, N = entry(x, quantized), len(chain)
    told = conditions(cond, x_0, score)
    p = given(chain.sde.reverse(score), told)
    kernel.check(p, chain.t[1:], chain.t[:-1])
    columns = []
    if terms is None:
        columns = [_between(chain, p, x_0, torch.tensor(i), kernel, noise) for i in range(2, N + 1)]
    else:
        rise = -p.sde.log_snr(chain.t).diff()
        share = rise / rise.sum()
        below = share.cumsum(0)[:-1]
        for k in range(count("terms", terms, most=MANY)):
            j = torch.searchsorted(below, (k + _uniform(x_0, noise).cpu()) / terms, right=True)
            weight = (1 / (terms * share[j])).to(x_0)
            columns.append(weight * _between(chain, p, x_0, j + 2, kernel, noise))
    decoder = _decoder(p, x_0, chain.t[0], quantized, width, noise)
    steps = torch.stack(columns, 1)
    prior, of = _gaussian_kl(chain.sde, x_0, chain.t[-1]), (x[0].numel(), quantized, under(score, told))
    return Bound(prior, steps, decoder, len(columns) + 1, *of, drawn=terms is not None)


@torch.inference_mode(False)
@torch.no_grad()
def continuous_elbo(
    p: Reverse,
    x: Tensor,
    quantized: Quantized | None = None,
    *,
    terms: int = 8,
    times: Times = UniformLogSNR(),
    width: float | None = None,
    noise: Noise = iid(),
    **cond: Any,
) -> Bound:
    """The continuous-time bound of x (B, *D): the prior at T, the integral from t_min to T, and the decoder at t_min.

    The integral is estimated from `terms` times for each sample, one in each stratum of the law `times`, weighted by
    the inverse of its density; uniform in log-SNR makes that weight constant. width: of the decoder, sigma/alpha at
    t_min unless given, and cond: as in `elbo`.

    Raises ValueError and `SampleError` as `elbo` does.
    """
    if not isinstance(times, Times):
        raise ValueError(f"times must be a law of times such as UniformLogSNR(), got {times!r}")
    sde, columns, score = require_reverse(p).sde, [], p.score
    require_noise(noise)
    _positive(width)
    x_0 = entry(x, quantized)
    told = conditions(cond, x_0, score)
    p = given(p, told)
    for k in range(count("terms", terms, most=MANY)):
        t = times.quantile(sde, (k + _uniform(x_0, noise)) / terms)
        x_t, z = sde.perturb(x_0, t, noise)
        weight = (sde.g2(t) / sde.var(t) / 2 / times.density(sde, t) / terms).to(x_0)
        columns.append(finite("the bound", t, weight * (p.eps(x_t, t) - z).square().flatten(1).sum(1)))
    decoder = _decoder(p, x_0, as_time(sde.t_min), quantized, width, noise)
    prior, steps = _gaussian_kl(sde, x_0, as_time(sde.T)), torch.stack(columns, 1)
    return Bound(prior, steps, decoder, terms + 1, x[0].numel(), quantized, under(score, told))


def _positive(width: float | None) -> None:
    if width is not None:
        number("width", width, least=1 / SCALE, most=SCALE)


def _uniform(x: Tensor, noise: Noise) -> Tensor:
    """One number in (0, 1) for each sample, from its own stream, (B,) in float64."""
    t = as_time(0.0)
    return torch.special.ndtr(drawn(noise, x, t, t).flatten(1)[:, 0].double())


def _between(chain: Chain, p: Reverse, x_0: Tensor, i: Tensor, kernel: Posterior, noise: Noise) -> Tensor:
    """KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i)) at one draw of x_i for each sample, (B,)."""
    t, s = (chain.t[j].to(x_0.device) if i.ndim else chain.t[j] for j in (i - 1, i - 2))
    x_i, _ = p.sde.perturb(x_0, t, noise)
    mean, var = chain.posterior(x_i, x_0, i)
    guess, w = kernel.kernel(p, x_i, t, s)
    w = w if w.ndim == x_0.ndim else torch.as_tensor(like(w, x_0))
    r = like(var, x_0) / w
    gap = (mean - guess).square() / w
    return finite("the bound", t, ((gap + r - 1 - r.log()).expand_as(x_0) / 2).flatten(1).sum(1))
