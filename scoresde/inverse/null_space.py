"""Null-space sampling."""

import torch
from torch import Tensor

from ..guide import Guided
from ..process import Score
from .measure import Observation, corrected, linear


def ddnm(score: Score, seen: Observation) -> Guided:
    """The score whose E[x_0 | x_t] has what was measured put in, x_0 + A^+ (y - A x_0), A^+ = A^T (A A^T)^(-1) (Wang et
    al. 2023, eq. 13). It is meant for std = 0; noise of y goes into the samples as it is. Raises ValueError
    unless A is linear.
    """
    A = linear(seen)

    def correct(x_0: Tensor, noise: Tensor) -> Tensor:
        one = torch.ones_like(noise)
        return x_0 + A.adjoint(A.solve(seen.left(x_0), one, 1e-12 * A.scale * one))

    return corrected(score, correct)
