"""A denoising autoencoder is a score, and a row of them is DDPM (Vincent 2011; Ho et al. 2020).

    python examples/denoising_autoencoder.py

An autoencoder D learns to restore x_0 from x_0 + sigma z by squared error. (D(x) - x)/sigma^2 is then the score of the
data smoothed by sigma: measured here against the exact score of a mixture of eight Gaussians. One autoencoder is
trained for each of ten noise levels, by plain reconstruction and by nothing else; ancestral sampling from the noisiest
to the least noisy one, each step of which denoises and adds back less noise, gives samples of the data. On the way it
is checked that the reconstruction error is `dsm` of the noise times sigma^2, number for number. Where sigma is small
the score is a small part of the noise that the error is made of, and a training as short as this one finds only some
of it.
"""

import copy
import math

import torch
from torch import Tensor, nn

from scoresde import Ancestral, ScoreModel, dsm, exact, iid, sample
from scoresde.loss import Simple
from scoresde.model import Data
from scoresde.process import TabulatedVE
from scoresde.process.chain import geometric_sigmas

ANGLE = torch.arange(8, dtype=torch.float64) * math.pi / 4
LAW = exact.GaussianMixture(torch.ones(8), torch.stack([ANGLE.cos(), ANGLE.sin()], 1), torch.full((8,), 0.1**2))
SIGMAS = geometric_sigmas(10, 0.05, 3.0)


class Autoencoder(nn.Module):
    """D(x) = x + sigma net(x): with the input kept, the network has to learn the noise alone."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma, layers = sigma, [nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        cleaned: Tensor = x + self.sigma * self.net(x)
        return cleaned


def train(sigma: float, steps: int, generator: torch.Generator) -> Autoencoder:
    """Trained to restore data from data + sigma z."""
    D = Autoencoder(sigma)
    optimizer = torch.optim.Adam(D.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x_0 = LAW.sample(256, generator).float()
        loss = (D(x_0 + sigma * torch.randn(x_0.shape, generator=generator)) - x_0).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return D


def reconstruction_is_dsm(D: Autoencoder, sde: TabulatedVE, t: Tensor, generator: torch.Generator) -> float:
    """The largest relative difference of |D(x_0 + sigma z) - x_0|^2 and sigma^2 dsm, on the same x_0 and z."""
    D = copy.deepcopy(D).double()
    x_0, z = LAW.sample(100, generator), torch.randn(100, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        error = (D(x_0 + D.sigma * z) - x_0).square().sum(1)
        loss = D.sigma**2 * dsm(ScoreModel(D, sde, Data()), x_0, t.expand(100), Simple(), noise=lambda *_: z)
    return float(((error - loss).abs() / error).max())


def main(steps: int = 400) -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    sde = TabulatedVE(SIGMAS)
    truth, nets = LAW.diffuse(sde), []
    print("sigma    error of (D(x) - x)/sigma^2 as the score, relative    of reconstruction as dsm")
    for sigma, t in zip(SIGMAS.tolist(), sde.grid().flip(0), strict=True):
        nets.append(train(sigma, steps, g))
        x = truth.sample(4000, t, g)
        with torch.no_grad():
            score = (nets[-1](x.float()).double() - x) / sigma**2
        exact_score = truth(x, t)
        error = (score - exact_score).square().sum(1).mean() / exact_score.square().sum(1).mean()
        identity = reconstruction_is_dsm(nets[-1], sde, t, g)
        print(f"{sigma:5.3f}    {error.sqrt():41.3f}    {identity:.1e}")

    def score_of(x: Tensor, t: Tensor) -> Tensor:
        i = round(float(t) * (len(SIGMAS) - 1))
        cleaned: Tensor = nets[i](x.float())
        return (cleaned.to(x.dtype) - x) / SIGMAS[i] ** 2

    p, noise = sde.reverse(score_of), iid(g)
    x = p.denoise(
        sample(p, sde.prior((4000, 2), noise, torch.float64), sde.grid(), Ancestral(), noise=noise), sde.grid()[-1]
    )
    fresh = LAW.sample(4000, g)
    print(f"mean log-density of samples of the row of autoencoders {LAW.log_prob(x).mean():.3f}")
    print(f"                 of samples of the data itself         {LAW.log_prob(fresh).mean():.3f}")
    modes = (torch.cdist(x, LAW.means).argmin(1)).bincount(minlength=8) / len(x)
    print(f"share of each of the 8 modes, 0.125 in truth: {', '.join(f'{m:.3f}' for m in modes)}")


if __name__ == "__main__":
    main()
