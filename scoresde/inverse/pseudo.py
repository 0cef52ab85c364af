"""Pseudo-inverse guidance."""

import torch
from torch import Tensor

from ..guide import Guided
from ..process import Score
from ..reference import UNIT, Reference, known
from .measure import Back, Observation, linear, pulled


def spread(around: Reference | None, score: Score, x: Tensor, noise: Tensor) -> Tensor:
    """r^2 = c^2 v/(c^2 + v), v = sigma^2/alpha^2 and c the deviation of the data: the variance of x_0 given x_t for
    data N(m, c^2 I), (B,).
    """
    c2 = (known(around, score, x.shape[1:]) or UNIT).std ** 2
    return c2 * noise**2 / (c2 + noise**2)


def pigdm(score: Score, seen: Observation, around: Reference | None = None) -> Guided:
    """The score of p_t(x | y) where x_0 given x_t is taken for N(E[x_0 | x_t], r^2 I) (Song, Vahdat, Mardani & Kautz
    2023, eqs. 7 and 8):

        s + J^T A^T (r^2 A A^T + std^2 I)^(-1) (y - A E[x_0 | x_t]),    J = d E[x_0 | x_t]/d x_t,

    with r^2 = c^2 v/(c^2 + v), v = sigma^2/alpha^2, for data of the deviation c of `around`, that which the score was
    made for unless given, or 1. Exact for data N(m, c^2 I). One call, and one vector-Jacobian product. Raises
    ValueError unless A is linear.
    """
    A = linear(seen)

    def push(x_0: Tensor, alpha: Tensor, noise: Tensor, back: Back) -> Tensor:
        r2 = spread(around, score, x_0, noise)
        return A.adjoint(A.solve(seen.left(x_0), r2, torch.full_like(r2, seen.std**2)))

    return pulled(score, push)
