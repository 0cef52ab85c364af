"""Samplers of posteriors of another library for `inverse.py`, as its package has them: azula's (0.11).

They are told our times, and the mean of x_0 given x_t by the same score. DDPM there has the small variance. PGDM takes
r^2 = sigma^2/(alpha^2 + sigma^2), that of data N(m, I), and no noise of y.
"""

from typing import Any

import torch
from azula import guidance, sample
from azula.linalg.covariance import IsotropicCovariance
from peers import Denoiser, Problem
from torch import Tensor

from scoresde.inverse import Linear, Mask
from scoresde.lab.posteriors import Asked
from scoresde.process import Score

NAMES = ("MMPS", "TMPD", "DiffPIR", "PGDM", "DPS", "RePaint")
ITERATIONS = {"iterations": 10}


def azula_method(name: str, a: Asked, score: Score, alone: int) -> Tensor:
    """Samples at the last time; of DPS, which is called for one at a time, so many. Raises ValueError where it is not
    for such a measurement.
    """
    seen, n = a.task.seen, len(a.ts) - 1
    y, A, var = seen.y, seen.A.forward, seen.std**2
    clock: dict[str, Any] = {"start": float(n), "stop": 0.0, "steps": n, "silent": True, "dtype": torch.float64}
    denoiser = Denoiser(Problem(a.sde, score), a.ts)
    torch.manual_seed(a.seed)
    if name == "PGDM":
        return guidance.PGDMSampler(denoiser, y, A, lambda y: _inverse(seen.A, y), **clock)(a.x_T)
    if name == "DPS":
        sampler = guidance.DPSSampler(denoiser, y, A, **clock)
        return torch.cat([sampler(x) for x in a.x_T[:alone].split(1)])
    if name == "RePaint":
        if not isinstance(seen.A, Mask):
            raise ValueError(f"seen must be through a Mask, got {type(seen.A).__name__}")
        return guidance.RePaintSampler(denoiser, seen.A.adjoint(y[None])[0], seen.A.keep, 5, **clock)(a.x_T)
    made = {
        "MMPS": lambda: guidance.MMPSDenoiser(denoiser, y, A, IsotropicCovariance(var), **ITERATIONS),
        "TMPD": lambda: guidance.TMPDenoiser(denoiser, y, A, var),
        "DiffPIR": lambda: guidance.DiffPIRDenoiser(denoiser, y, A, var, lmbda=1.0, **ITERATIONS),
    }[name]
    return sample.DDPMSampler(made(), **clock)(a.x_T)


def _inverse(A: Linear, y: Tensor) -> Tensor:
    """The pseudo-inverse."""
    one = y.new_ones(y.shape[:-1]).reshape(-1)
    return A.adjoint(A.solve(y.reshape(len(one), -1), one, 1e-12 * one))
