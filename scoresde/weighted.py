"""Samples that have weights, and how they are drawn anew."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Weighted(NamedTuple):
    """Samples x, (B, *D), each of weight exp log_w, (B,), whose mean is 1; the start that each came from, (B,), of
    which several may be one, since samples were drawn anew so often; the calls of each score.
    """

    x: Tensor
    log_w: Tensor
    start: Tensor
    drawn: int
    nfe: int

    @classmethod
    def at(cls, t: Tensor, x: Tensor, log_w: Tensor, start: Tensor, drawn: int, nfe: int) -> "Weighted":
        """Samples that have arrived at t, of weights in proportion. Raises RuntimeError if they are not finite."""
        if not x.isfinite().all():
            raise RuntimeError(f"samples are not finite at t = {t:g}: take more steps")
        return cls(x, log_w - log_w.logsumexp(0) + math.log(len(x)), start, drawn, nfe)

    @property
    def effective(self) -> float:
        """(sum w)^2/sum_k w_k^2, w_k the weight of all that came from the start k: how many independent samples there
        are in effect.
        """
        return float(1 / self._lineages(torch.ones_like(self.log_w)).square().sum())

    def mean(self, f: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """The weighted mean of f(x), (B, ...)."""
        values = f(self.x)
        return (self.log_w.softmax(0).view(-1, *[1] * (values.ndim - 1)).to(values) * values).sum(0)

    def error(self, f: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """The standard error of that mean, by lineages (Lee & Whiteley 2018): what came from one start moves as one."""
        off = f(self.x) - self.mean(f)
        return self._lineages(off.double()).square().sum(0).sqrt().to(off)

    def _lineages(self, values: Tensor) -> Tensor:
        """The sum of w f over what came from each start, for weights of the sum 1."""
        w = self.log_w.softmax(0).view(-1, *[1] * (values.ndim - 1))
        return torch.zeros_like(values).index_add(0, self.start, w * values)


def redrawn(log_w: Tensor, least: float, generator: torch.Generator | None) -> Tensor | None:
    """As many rows as there are, each as often as its weight says, to less than one (systematic resampling), where
    fewer than the share `least` of them are left in effect; else None.
    """
    n, w = len(log_w), log_w.softmax(0)
    if float(1 / w.square().sum()) >= least * n:
        return None
    place = "cpu" if generator is None else generator.device
    u = torch.rand((), generator=generator, dtype=torch.float64, device=place).to(log_w.device)
    return torch.searchsorted(w.cumsum(0), (torch.arange(n, device=log_w.device) + u) / n).clamp_max(n - 1)
