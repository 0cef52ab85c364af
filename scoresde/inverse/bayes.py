"""Bayes' rule where it has a closed form: for mixtures of Gaussians."""

import math

import torch
from torch import Tensor

from ..exact import GaussianMixture
from ..shapes import number
from .measure import Observation


def _parts(law: GaussianMixture, seen: Observation) -> tuple[Tensor, Tensor, Tensor]:
    """A as a matrix (m, d); A C_k A^T + std^2 I, (K, m, m); y - A m_k, (K, m)."""
    if not isinstance(law, GaussianMixture):
        raise ValueError(f"law must be a GaussianMixture, got {law!r}")
    if tuple(law.shape) != seen.A.shape:
        raise ValueError(f"law must be of shape {seen.A.shape}, got {tuple(law.shape)}")
    if seen.y.ndim != 1:
        raise ValueError(f"y must be one observation, ({seen.A.m},), got {tuple(seen.y.shape)}")
    unit = torch.eye(law.d, dtype=torch.float64).view(law.d, *law.shape)
    A = seen.A(unit).T.to(law.means)
    S = A @ law.covariances @ A.T + seen.std**2 * torch.eye(len(A)).to(A)
    return A, S, seen.y.to(A) - law.means @ A.T


def posterior(law: GaussianMixture, seen: Observation) -> GaussianMixture:
    """p(x | y), a mixture too: of N(m_k + C_k A^T S_k^(-1) (y - A m_k), C_k - C_k A^T S_k^(-1) A C_k), S_k = A C_k A^T
    + std^2 I, with weights in proportion to w_k N(y; A m_k, S_k). Its diffusion is what an exact method would follow:
    `posterior(law, seen).diffuse(sde)` is the score of p_t(x | y).

    Raises ValueError unless law is a mixture of the shape of A, y is one observation, and std > 0, without which the
    posterior has no density.
    """
    number("std", seen.std, above=0)
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
    number("std", seen.std, above=0)
    _, S, off = _parts(law, seen)
    return float((law.weights.log() + _log_normal(off, torch.linalg.cholesky(S))).logsumexp(0))


def _log_normal(off: Tensor, root: Tensor) -> Tensor:
    """log N(off; 0, R R^T), (K,)."""
    white = torch.linalg.solve_triangular(root, off[..., None], upper=False)[..., 0]
    log_det = root.diagonal(dim1=1, dim2=2).log().sum(1)
    return -white.square().sum(1) / 2 - log_det - off.shape[1] * math.log(2 * math.pi) / 2
