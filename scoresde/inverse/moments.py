"""Moment matching posterior sampling."""

import torch
from torch import Tensor

from ..guide import Guided
from ..process import Score
from ..reference import Reference
from ..shapes import count, like
from .krylov import conjugate
from .measure import Back, Observation, linear, pulled
from .pseudo import spread

LEAST = 0.01
"""The least variance of x_0 given x_t that is believed, as a part of that for round data: what a network says of less
is its error."""


def mmps(score: Score, seen: Observation, iterations: int = 10, around: Reference | None = None) -> Guided:
    """The score of p_t(x | y) where x_0 given x_t is taken for a Gaussian of its own mean and covariance (Rozet et al.
    2024, eqs. 12 to 15; Boys et al. 2024, TMPD, without the rows' sums):

        s + J^T A^T (A V A^T + std^2 I)^(-1) (y - A E[x_0 | x_t]),    V = Cov[x_0 | x_t] = sigma^2/alpha J,

    by at most `iterations` of conjugate gradients, each of one vector-Jacobian product, as J is symmetric for a score
    that is a gradient. They start at the solution of `pigdm`, with `around` as there, and a sample stays where J is no
    covariance's, as that of a network at much noise may be: where along a direction A V A^T + std^2 I has less than
    std^2, or less than V would have if it were `LEAST` of what it is there. Exact for any Gaussian that has more, once
    there are as many steps as numbers were measured. Where a sample stays is a matter of rounding at times, so that a
    network's in float32 may depend on the batch. Raises ValueError unless A is linear.
    """
    A = linear(seen)
    count("iterations", iterations)

    def push(x_0: Tensor, alpha: Tensor, noise: Tensor, back: Back) -> Tensor:
        left, scale = seen.left(x_0), like(noise**2 * alpha, x_0)  # sigma^2/alpha

        def apply(v: Tensor) -> Tensor:
            return A(scale * back(A.adjoint(v))) + seen.std**2 * v

        def least(d: Tensor) -> Tensor:
            told = A.adjoint(d).flatten(1).square().sum(1, keepdim=True)
            return torch.maximum(seen.std**2 * d.square().sum(1, keepdim=True), LEAST * like(r2, told) * told)

        r2 = spread(around, score, x_0, noise)
        start = A.solve(left, r2, torch.full_like(r2, seen.std**2))
        return A.adjoint(conjugate(apply, left, start, iterations, least))

    return pulled(score, push)
