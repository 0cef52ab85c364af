"""A forward process of your own is two methods: log alpha and sigma^2. Everything else follows from them.

    python examples/own_sde.py

Here alpha^2 falls linearly in t, a process that no paper needs. The drift and the diffusion are derived, every sampler
runs, and the likelihood of Gaussian data along its probability flow equals the closed form.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import Ancestral, Flow, LinearSDE, exact, grid, log_prob, ode, sample


@dataclass(frozen=True)
class Straight(LinearSDE):
    """alpha^2 = 1 - t, sigma^2 = t."""

    T: float = 0.999

    def log_alpha(self, t: Tensor) -> Tensor:
        """log(1 - t)/2."""
        return torch.log1p(-t) / 2

    def var(self, t: Tensor) -> Tensor:
        """t."""
        return t


def main() -> None:
    sde, law = Straight(), exact.Gaussian(torch.tensor([1.0, -2.0]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    p_t = law.diffuse(sde)
    x_T = sde.prior((20_000, 2), dtype=torch.float64)
    for name, eta, step in (("ancestral", 1.0, Ancestral()), ("Heun", 0.0, Flow(ode.Heun()))):
        x = sample(sde.reverse(p_t, eta), x_T, grid.uniform(sde, 200), step)
        print(f"{name:10s} mean {x.mean(0).tolist()}, covariance {torch.cov(x.T).flatten().tolist()}")
    x = law.sample(5)
    flow = log_prob(sde.reverse(p_t, eta=0), x, method=ode.Dopri5(1e-8, 1e-8), prior=law.marginal(sde, sde.T))
    print("largest error of log p:", float((flow.log_p - p_t.log_prob(x, sde.t_min)).abs().max()))


if __name__ == "__main__":
    main()
