"""Plug-and-play restoration."""

import torch
from torch import Tensor

from ..guide import Guided
from ..process import Score
from ..shapes import number
from .measure import Observation, corrected, linear


def diffpir(score: Score, seen: Observation, weight: float = 1.0) -> Guided:
    """The score whose E[x_0 | x_t] is argmin_x |y - A x|^2/std^2 + weight |x - E[x_0 | x_t]|^2/v, v = sigma^2/alpha^2
    (Zhu et al. 2023, eq. 14):

        x_0 + A^T (A A^T + weight std^2/v I)^(-1) (y - A x_0).

    With weight 1 it takes v for the variance of x_0 given x_t, which is more than that is on average. Raises ValueError
    unless A is linear and weight > 0.
    """
    A = linear(seen)
    number("weight", weight, above=0)

    def correct(x_0: Tensor, noise: Tensor) -> Tensor:
        ridge = (weight * seen.std**2 / noise**2).clamp_min(1e-12 * A.scale)
        return x_0 + A.adjoint(A.solve(seen.left(x_0), torch.ones_like(ridge), ridge))

    return corrected(score, correct)
