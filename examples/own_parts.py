"""A process and a solver of your own, in fifteen lines each, through everything that ours go through.

    python examples/own_parts.py
    scoresde bench --step examples.own_parts:Midpoint --only Midpoint "DPMSolver(2)" EDMHeun --out runs/own
    scoresde train Moons --sde examples.own_parts:Straight --out runs/straight

Straight: alpha^2 falls linearly in t, a process that no paper needs; drift and diffusion are derived. Midpoint: the
explicit midpoint rule for the probability flow. Likelihoods of Gaussian data equal the closed form.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde import LinearSDE, Quadrature, Reverse, Step, exact, grid, log_prob, noise, ode, sample


@dataclass(frozen=True)
class Straight(LinearSDE):
    """alpha^2 = 1 - t, sigma^2 = t."""

    T: float = 0.999

    def log_alpha(self, t: Tensor) -> Tensor:
        """log(1 - t)/2."""
        return torch.log1p(-t) / 2

    def var(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t


@dataclass(frozen=True)
class Midpoint(Step):
    """x_s = x + h v(x + h/2 v(x, t), t + h/2), v the drift of the flow and h = s - t."""

    order: ClassVar[int] = 2

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: noise.Noise) -> Tensor:
        """Two network calls."""
        h = s - t
        return x + h * p.drift(x + h / 2 * p.drift(x, t), t + h / 2)


def main() -> None:
    sde, law = Straight(), exact.Gaussian(torch.tensor([1.0, -2.0]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    score, x = law.diffuse(sde), law.sample(5)
    x_T = sde.prior((20_000, 2), dtype=torch.float64)
    y = sample(sde.reverse(score, eta=0), x_T, grid.uniform(sde, 200), Midpoint())
    print(f"mean {y.mean(0).tolist()}, covariance {torch.cov(y.T).flatten().tolist()}")
    how = Quadrature(ode.Dopri5(1e-8, 1e-8), prior=law.marginal(sde, sde.T))
    off = log_prob(sde.reverse(score), x, how=how).log_p - score.log_prob(x, sde.t_min)
    print("largest error of log p:", float(off.abs().max()))


if __name__ == "__main__":
    main()
