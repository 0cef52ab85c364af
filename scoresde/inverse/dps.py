"""Diffusion posterior sampling."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..noise import Noise
from ..process import Reverse
from ..shapes import like, number, recordable, recording
from ..steps import Step
from ..steps.step import predictor
from .measure import Observation, observation


@dataclass(frozen=True, eq=False)
class DPS(Step):
    """A step, then x_s - zeta grad_x |y - A E[x_0 | x_t]| (Chung et al. 2023, algorithm 1 with zeta_i = zeta/(2 |y - A
    x_0|)), for any A. A rule of thumb: the share of the data depends on the number of steps, not on std. One call and
    one product. Raises ValueError unless the step is a predictor and zeta >= 0.
    """

    step: Step
    seen: Observation
    zeta: float = 1.0

    def __post_init__(self) -> None:
        predictor(self.step), observation(self.seen), number("zeta", self.zeta, least=0)

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """Raises ValueError where the step inside does."""
        self.step.check(p, t, s)

    def prepare(self, p: Reverse, t: Tensor, s: Tensor) -> Step:
        """With the step inside started."""
        return replace(self, step=self.step.start(p, t, s))

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        with recording():
            z = recordable(x).detach().requires_grad_()
            score = p.ask(z, t)
            x_0 = (z + like(p.sde.var(t), z) * score) / like(p.sde.alpha(t), z)
            (g,) = torch.autograd.grad(self.seen.left(x_0).norm(dim=1).sum(), z)

        def known(y: Tensor, u: Tensor, **cond: Any) -> Tensor:
            return score.detach() if torch.equal(y, x) and float(u) == float(t) else p.score(y, u, **cond)

        return self.step(replace(p, score=known), x, t, s, noise) - self.zeta * g
