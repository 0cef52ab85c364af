"""Moment matching posterior sampling."""

import torch
from torch import Tensor

from ..guide import Guided
from ..process import Score
from ..reference import Reference
from ..shapes import count, like
from .maps import conjugate
from .measure import Back, Observation, linear, pulled
from .pseudo import spread


def mmps(score: Score, seen: Observation, iterations: int = 10, around: Reference | None = None) -> Guided:
    """The score of p_t(x | y) where x_0 given x_t is taken for a Gaussian of its own mean and covariance (Rozet et al.
    2024, eqs. 12 to 15; Boys et al. 2024, TMPD, without the rows' sums):

        s + J^T A^T (A V A^T + std^2 I)^(-1) (y - A E[x_0 | x_t]),    V = Cov[x_0 | x_t] = sigma^2/alpha J,

    by at most `iterations` of conjugate gradients, each of one vector-Jacobian product, as J is symmetric for a score
    that is a gradient. They start at the solution of `pigdm`, with `around` as there, and a sample stays where J is no
    covariance's, as that of a network at much noise may be. Exact for any Gaussian, once there are as many as numbers
    were measured. Raises ValueError unless A is linear.
    """
    A = linear(seen)
    count("iterations", iterations)

    def push(x_0: Tensor, alpha: Tensor, noise: Tensor, back: Back) -> Tensor:
        left, scale = seen.left(x_0), like(noise**2 * alpha, x_0)  # sigma^2/alpha

        def apply(v: Tensor) -> Tensor:
            return A(scale * back(A.adjoint(v))) + seen.std**2 * v

        r2 = spread(around, score, x_0, noise)
        start = A.solve(left, r2, torch.full_like(r2, seen.std**2))
        return A.adjoint(conjugate(apply, left, start, iterations, seen.std**2))

    return pulled(score, push)
