"""What it costs to take the prior for the law of x_T."""

import math

import torch
from torch import Tensor

from ..exact import GaussianMixture
from ..process import LinearSDE, require_linear
from ..shapes import as_time, inside, shown, state


def prior_mismatch(sde: LinearSDE, x: Tensor, t: Tensor, prior: GaussianMixture | None = None) -> float:
    """KL(N || prior) in nats for the Gaussian N with the mean and covariance C that x_T has if x (n, *D) are samples of
    x_t: what replacing p_T by the prior costs, as far as moments tell. nan for one sample, and for a prior of several
    components; inf where C is singular, for fewer samples than dimensions at t = T.

    With x_T = y + v^(1/2) z, C = Y^T Y/n + v I for the centred rows Y of y. Where n < d its eigenvalues are v and those
    of Y Y^T/n + v I, so that the price is n^2 d: no matrix is d x d.
    """
    state("x", x), require_linear("sde", sde)
    if inside(t, sde.T).ndim:
        raise ValueError(f"t must be one time, shape (), got {shown(t)}")
    if prior is not None and (not isinstance(prior, GaussianMixture) or prior.shape != x.shape[1:]):
        raise ValueError(f"prior must be a law of shape {tuple(x.shape[1:])}, got {getattr(prior, 'shape', prior)!r}")
    if len(x) < 2 or (prior is not None and len(prior.weights) > 1):
        return math.nan
    T, (n, d) = as_time(sde.T), x.flatten(1).shape
    a, v = (float(c) for c in sde.transition(T, t))
    y = x.detach().flatten(1).to(torch.float64)
    if prior is None:
        prior = GaussianMixture(torch.ones(1), torch.zeros(1, *x.shape[1:]), sde.var(T).view(1)).to(x.device)
    if n >= d:
        C = a**2 * torch.cov(y.T, correction=0).view(d, d) + v * torch.eye(d, dtype=y.dtype, device=y.device)
        return prior.kl_from(a * y.mean(0), C)
    Y = a * (y - y.mean(0))
    log_det = (torch.linalg.eigvalsh(Y @ Y.T / n).clamp_min(0) + v).log().sum() + (d - n) * as_time(v).log()
    low = prior.diagonal[0].expand(d)
    precisions = (1 / low).sum() + (1 / prior.extra[0] - 1 / low[: prior.extra.shape[1]]).sum()
    cross = v / 2 * precisions - prior.log_prob((a * y).view(x.shape)).mean()
    return float(cross - (d * (1 + math.log(2 * math.pi)) + log_det) / 2)
