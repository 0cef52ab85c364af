"""Where the error of a sampler comes from: its steps, its prior, where it stops, or its network.

    python examples/error_budget.py

A network of 97,000 parameters is trained for 3,000 steps on 0.7 N(-1, 0.1^2) + 0.3 N(1, 0.141^2), on a line, where that
of what a sampler returns is computed instead of sampled. One thing at a time is switched from exact to real: the
divergence of the data to the samples, and the distances, of DDPM with 20, 100 and 500 calls under the network. With few
calls it is the steps that are wrong; with more the network, and no sampler mends that.
"""

import torch

from scoresde import VP, Ancestral, Karras, Reference, ScoreModel, dsm, exact, grid
from scoresde.lab import error_budget
from scoresde.loss import UniformLogSNR
from scoresde.nn import MLP

LAW = exact.GaussianMixture(torch.tensor([0.7, 0.3]), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.01, 0.02]))


def train(sde: VP, steps: int) -> ScoreModel:
    """By denoising score matching on fresh samples."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = ScoreModel(MLP((1,), width=96, depth=3), sde, Karras(Reference.fit(LAW.sample(10_000, g))))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        t = UniformLogSNR().quantile(sde, torch.rand(512, generator=g))
        loss = dsm(model, LAW.sample(512, g).float(), t).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False)


def main() -> None:
    torch.set_num_threads(1)
    sde = VP()
    model = train(sde, 3000)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    for calls in (20, 100, 500):
        found = error_budget(LAW, sde.reverse(model), grid.log_snr(sde, calls), Ancestral())
        print(f"\nDDPM with {calls} network calls:\n{found}")


if __name__ == "__main__":
    main()
