"""Samples with weights: what the methods made of particles share."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..noise import Noise, iid, require_noise
from ..shapes import number
from ..steps.step import memoryless
from ..weighted import Weighted, redrawn


class Particles(NamedTuple):
    """Weighted samples of p(x | y), and log p(y) in nats, which they are an estimate of."""

    samples: Weighted
    log_evidence: float

    @property
    def error(self) -> float:
        """The standard error of log p(y), sqrt(1/effective - 1/B): by lineages, as that of means, which counts draws
        anew in full (Lee & Whiteley 2018). Where there were none it is the usual one of a mean weight.
        """
        return math.sqrt(max(0.0, 1 / self.samples.effective - 1 / len(self.samples.log_w)))


def require_particles(step: object, noise: Noise, generator: torch.Generator | None, least: float) -> None:
    """Raise ValueError unless these are what particles can be moved and drawn anew by."""
    require_noise(noise), iid(generator), number("least", least, least=0, most=1), memoryless(step)


class Cloud:
    """Particles at work: log weights since they were last drawn anew, which start each came from, and log p(y) so far
    as it is settled.
    """

    def __init__(self, x: Tensor) -> None:
        self.log_w = x.new_zeros(len(x), dtype=torch.float64)
        self.start, self.drawn, self.settled = torch.arange(len(x), device=x.device), 0, 0.0

    @property
    def log_evidence(self) -> float:
        """log of the product of the mean weights."""
        return self.settled + float(self.log_w.logsumexp(0)) - math.log(len(self.log_w))

    def redraw(self, least: float, generator: torch.Generator | None) -> Tensor | None:
        """`redrawn`, after which weights are 1."""
        rows = redrawn(self.log_w, least, generator)
        if rows is not None:
            self.settled, self.start, self.drawn = self.log_evidence, self.start[rows], self.drawn + 1
            self.log_w = torch.zeros_like(self.log_w)
        return rows

    def at(self, t: Tensor, x: Tensor, nfe: int) -> Particles:
        """What has arrived. Raises RuntimeError if samples are not finite."""
        return Particles(Weighted.at(t, x, self.log_w, self.start, self.drawn, nfe), self.log_evidence)
