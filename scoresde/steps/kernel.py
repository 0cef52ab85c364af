"""A step with noise as a Markov kernel: x_s | x_t = x is N(m(x), c(x)^2), where noise enters once and linearly."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..process import Reverse
from .step import Step


def named(step: Step) -> Step:
    """Of a step at work, the step."""
    return getattr(step, "step", step)


def gaussian_kernel(step: Step, p: Reverse, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(m, c), each like x (B, *D), of a step at work from t to s, from draws of 0, 1 and -1: one step, and as many
    network calls as it makes, since the three begin at the same x. c is 0 for a step without noise.

    Raises ValueError, naming the step, if it draws more than once, or if its noise does not enter linearly.
    """
    draws: list[int] = []
    z = torch.stack([torch.zeros_like(x), torch.ones_like(x), -torch.ones_like(x)]).flatten(0, 1)

    def noise(*_: Tensor) -> Tensor:
        draws.append(1)
        return z.clone()

    def once(y: Tensor, u: Tensor, **cond: Any) -> Tensor:
        """The score, asked a third of the rows at a time, once where all three are the same."""
        parts, us = y.chunk(3), u.chunk(3) if u.ndim else (u, u, u)
        if u.ndim or not (torch.equal(parts[0], parts[1]) and torch.equal(parts[0], parts[2])):
            return torch.cat([p.score(part, at, **cond) for part, at in zip(parts, us, strict=True)])
        return p.score(parts[0], u, **cond).repeat(3, *(1,) * (y.ndim - 1))

    found = step(replace(p, score=once), x.repeat(3, *(1,) * (x.ndim - 1)), t, s, noise)
    m, up, down = found.view(3, *x.shape)
    name = named(step)
    if len(draws) > 1:
        raise ValueError(
            f"{name} draws {len(draws)} times from t = {t:g} to {s:g}, which is no Gaussian kernel: sample it"
        )
    c, tol = (up - down) / 2, 1e-9 if x.dtype == torch.float64 else 1e-3
    if (((up + down) / 2 - m).abs() > tol * (c.abs() + 1e-3 * m.abs() + 1e-12)).any():
        raise ValueError(
            f"the noise of {name} at t = {t:g} does not enter linearly, so that it is no Gaussian kernel: sample it, "
            "or take a rule that does not look at the noise, such as NCSN"
        )
    return m, c.abs()
