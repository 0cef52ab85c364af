"""DDPM, predictor-corrector, annealed Langevin, DDIM and the probability-flow ODE as one loop, on an exact score.

    python examples/six_lines.py

The data are eight Gaussians on a circle, so the score is known in closed form and so is what every sampler should give.
Mean log-density under the true law, and the same of exact samples: a sampler is as good as it comes close.
"""

import math

import torch
from torch import Tensor

from scoresde import (
    NCSN,
    SNR,
    VE,
    VP,
    Ancestral,
    Counted,
    Flow,
    Langevin,
    LinearSDE,
    ReverseDiffusion,
    Step,
    exact,
    grid,
    iid,
    ode,
    sample,
)

angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
law = exact.GaussianMixture(torch.ones(8), torch.stack([angle.cos(), angle.sin()], 1), torch.full((8,), 0.05**2))
vp, ve = VP(), VE(sigma_min=0.01, sigma_max=5.0)
SAMPLERS: dict[str, tuple[LinearSDE, float, Tensor, list[Step]]] = {
    "DDPM": (vp, 1.0, grid.uniform(vp, 200), [Ancestral()]),
    "predictor-corrector": (vp, 1.0, grid.quadratic(vp, 100), [Langevin(SNR(0.16)), ReverseDiffusion()]),
    "annealed Langevin": (ve, 1.0, grid.uniform(ve, 40), [Langevin(NCSN(2e-5, 0.01), n=10)]),
    "DDIM": (vp, 0.0, grid.karras(vp, 50), [Ancestral()]),
    "Heun, probability flow": (vp, 0.0, grid.karras(vp, 25), [Flow(ode.Heun())]),
}


def main() -> None:
    fresh = law.sample(4000, torch.Generator().manual_seed(1))
    print(f"{'sampler':24s} network calls   mean log p")
    print(f"{'exact samples':24s} {'':13s} {law.log_prob(fresh).mean():12.3f}")
    for name, (sde, eta, ts, steps) in SAMPLERS.items():
        noise = iid(torch.Generator().manual_seed(0))
        score = Counted(law.diffuse(sde))
        p = sde.reverse(score, eta)
        x = sample(p, sde.prior((4000, 2), noise, torch.float64), ts, *steps, noise=noise)
        x = p.denoise(x, ts[-1])
        print(f"{name:24s} {score.nfe:13d} {law.log_prob(x).mean():12.3f}")


if __name__ == "__main__":
    main()
