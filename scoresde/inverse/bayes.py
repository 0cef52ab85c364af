"""Bayes' rule: in closed form for mixtures of Gaussians, and by weights for any law that can be sampled."""

import math

import torch
from torch import Tensor

from ..exact import GaussianMixture, Law, require_law
from ..noise import iid
from ..shapes import count, number
from ..weighted import Weighted
from .measure import Observation, linear, observation, single
from .particles import Particles


def _parts(law: GaussianMixture, seen: Observation) -> tuple[Tensor, Tensor, Tensor]:
    """A as a matrix (m, d); A C_k A^T + std^2 I, (K, m, m); y - A m_k, (K, m)."""
    if not isinstance(law, GaussianMixture):
        raise ValueError(f"law must be a GaussianMixture, got {law!r}")
    if tuple(law.shape) != seen.A.shape:
        raise ValueError(f"law must be of shape {seen.A.shape}, got {tuple(law.shape)}")
    unit = torch.eye(law.d, dtype=torch.float64).view(law.d, *law.shape)
    A = linear(single(seen))(unit).T.to(law.means)
    S = A @ law.covariances @ A.T + seen.std**2 * torch.eye(len(A)).to(A)
    return A, S, seen.y.to(A) - law.means @ A.T


def posterior(law: GaussianMixture, seen: Observation) -> GaussianMixture:
    """p(x | y), a mixture too: of N(m_k + C_k A^T S_k^(-1) (y - A m_k), C_k - C_k A^T S_k^(-1) A C_k), S_k = A C_k A^T
    + std^2 I, with weights in proportion to w_k N(y; A m_k, S_k). Its diffusion is what an exact method would follow:
    `posterior(law, seen).diffuse(sde)` is the score of p_t(x | y).

    Raises ValueError unless law is a mixture of the shape of A, A is linear, y is one observation, and std > 0, without
    which the posterior has no density.
    """
    number("std", observation(seen).std, above=0)
    A, S, off = _parts(law, seen)
    C, root = law.covariances, torch.linalg.cholesky(S)
    gain = torch.cholesky_solve(A @ C, root).mT  # (K, d, m)
    means = law.means + (gain @ off[..., None])[..., 0]
    left = torch.eye(law.d).to(C) - gain @ A
    covariances = left @ C @ left.mT + seen.std**2 * gain @ gain.mT  # Joseph's form, which stays positive
    log_w = law.weights.log() + _log_normal(off, root)
    weights = (log_w - log_w.max()).exp().clamp_min(1e-300)
    return GaussianMixture.from_covariances(weights, means.view(-1, *law.shape), (covariances + covariances.mT) / 2)


def log_evidence(law: GaussianMixture, seen: Observation) -> float:
    """log p(y) in nats. Raises ValueError as `posterior`."""
    number("std", observation(seen).std, above=0)
    _, S, off = _parts(law, seen)
    return float((law.weights.log() + _log_normal(off, torch.linalg.cholesky(S))).logsumexp(0))


def importance(law: Law, seen: Observation, n: int, generator: torch.Generator | None = None) -> Particles:
    """n draws of the law, weighted by p(y | x) = N(y; A(x), std^2 I), for any A, and the log of their mean weight, log
    p(y): weighted means tend to those of p(x | y) at the rate that their errors tell. It is for a few numbers measured:
    the share of the draws that is left in effect is about that of the law which fits y.

    Raises ValueError unless law is one of the shape of A, y is one observation, std > 0 and n >= 2.
    """
    number("std", single(seen).std, above=0), iid(generator)
    x = require_law("law", law, seen.A.shape).sample(count("n", n, least=2), generator)
    with torch.no_grad():
        off = seen.left(x).double()
    log_w = -(off.square().sum(1) / seen.std**2 + seen.A.m * math.log(2 * math.pi * seen.std**2)) / 2
    log_evidence = float(log_w.logsumexp(0)) - math.log(n)
    t = torch.zeros((), dtype=torch.float64)
    return Particles(Weighted.at(t, x, log_w, torch.arange(n, device=x.device), 0, 0), log_evidence)


def _log_normal(off: Tensor, root: Tensor) -> Tensor:
    """log N(off; 0, R R^T), (K,)."""
    white = torch.linalg.solve_triangular(root, off[..., None], upper=False)[..., 0]
    log_det = root.diagonal(dim1=1, dim2=2).log().sum(1)
    return -white.square().sum(1) / 2 - log_det - off.shape[1] * math.log(2 * math.pi) / 2
