"""DDPM, DDIM, SMLD and NCSN are discretisations of one kind of SDE, exactly. Theorem by theorem: the discrete formula
of the paper, what it is here, and the largest difference between them, in float64 on shared noise and a made-up net.

    python examples/ddpm_is_an_sde.py
"""

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde import (
    NCSN,
    VE,
    Ancestral,
    Chain,
    Epsilon,
    Langevin,
    ReverseDiffusion,
    ScoreModel,
    Tabulated,
    dsm,
    elbo,
    sample,
)
from scoresde.model import Steps
from scoresde.process import TabulatedVE
from scoresde.process.chain import cosine_betas, geometric_sigmas, linear_betas

F64 = torch.float64
N = 100
BETAS = linear_betas(N, 1e-3, 0.2)
BAR = torch.cat([torch.ones(1, dtype=F64), (1 - BETAS).cumprod(0)])
DDPM = Tabulated(BETAS)
G = torch.Generator().manual_seed(0)
X, Z = torch.randn(4, 3, generator=G, dtype=F64), torch.randn(10 * N, 4, 3, generator=G, dtype=F64)


def eps(x: Tensor, i: float) -> Tensor:
    """A network that no formula was fitted to, at step i."""
    return torch.tanh(1.3 * x + 0.4 * x.flip(1) + 3 * i / N) + 0.2 * torch.sin(5 * x * i / N)


def score(x: Tensor, t: Tensor) -> Tensor:
    """Its score."""
    i = round(float(t) * N)
    return -eps(x, i) / (1 - BAR[i]).sqrt()


def tape() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Z[0], Z[1], ... in order."""
    rows = iter(Z)
    return lambda x, t, s: next(rows)


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def table() -> float:
    chain = Chain(DDPM, DDPM.grid())
    cosine = Tabulated(cosine_betas(N))
    return max(gap(chain.betas, BETAS), gap(Chain(cosine, cosine.grid()).betas, cosine_betas(N)))


def marginal() -> float:
    x, var, chain = X, torch.zeros((), dtype=F64), Chain(DDPM, DDPM.grid())
    for beta in BETAS:
        x, var = (1 - beta).sqrt() * x, (1 - beta) * var + beta
    mean, v = chain.marginal(X, N)
    return max(gap(mean, x), gap(v, var))


def posterior() -> float:
    mean, var = Chain(DDPM, DDPM.grid()).posterior(Z[0], X, 40)
    b, now, before = BETAS[39], BAR[40], BAR[39]
    paper = (before.sqrt() * b * X + (1 - b).sqrt() * (1 - before) * Z[0]) / (1 - now)
    return max(gap(mean, paper), gap(var, (1 - before) / (1 - now) * b))


def training() -> float:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return eps(x, float(c[0]))

    model = ScoreModel(Net(), DDPM, Epsilon(), Steps(N + 1))
    x_t = BAR[40].sqrt() * X + (1 - BAR[40]).sqrt() * Z[0]
    loss = dsm(model, X, torch.full((4,), 0.4, dtype=F64), noise=tape())
    return gap(loss, (Z[0] - eps(x_t, 40)).square().sum(1))


def ancestral() -> float:
    x, noise = X, iter(Z)
    for i in range(N, 0, -1):
        b = BETAS[i - 1]
        x = (x - b / (1 - BAR[i]).sqrt() * eps(x, i)) / (1 - b).sqrt()
        x = x + ((1 - BAR[i - 1]) / (1 - BAR[i]) * b).sqrt() * next(noise) if i > 1 else x
    return gap(sample(DDPM.reverse(score), X, DDPM.grid(), Ancestral(), noise=tape()), x)


def ddim() -> float:
    x = X
    for i in range(N, 0, -5):
        e, j = eps(x, i), i - 5
        x = BAR[j].sqrt() * (x - (1 - BAR[i]).sqrt() * e) / BAR[i].sqrt() + (1 - BAR[j]).sqrt() * e
    return gap(sample(DDPM.reverse(score, eta=0), X, DDPM.grid()[::5], Ancestral()), x)


def reverse_diffusion() -> float:
    x = X
    for i, z in zip(range(N, 0, -1), Z, strict=False):
        b = BETAS[i - 1]
        x = (2 - (1 - b).sqrt()) * x - b * eps(x, i) / (1 - BAR[i]).sqrt() + b.sqrt() * z
    return gap(sample(DDPM.reverse(score), X, DDPM.grid(), ReverseDiffusion(), noise=tape()), x)


LEVELS = geometric_sigmas(20, 0.05, 10.0)
SMLD = TabulatedVE(LEVELS)


def level_score(x: Tensor, t: Tensor) -> Tensor:
    """A score that depends on the level."""
    s = LEVELS[round(float(t) * 19)]
    return -torch.tanh(x / s + 0.3 * x.flip(1)) / s


def smld() -> float:
    x, ts = 10 * X, SMLD.grid()
    for k, z in zip(range(19, 0, -1), Z, strict=False):
        hi, lo = LEVELS[k], LEVELS[k - 1]
        x = x + (hi**2 - lo**2) * level_score(x, ts[19 - k]) + (lo**2 * (hi**2 - lo**2) / hi**2).sqrt() * z
    return gap(sample(SMLD.reverse(level_score), 10 * X, ts, Ancestral(), noise=tape()), x)


def ncsn() -> float:
    x, noise, ts = 10 * X, iter(Z), SMLD.grid()
    for k in range(19, -1, -1):
        a = 2e-4 * LEVELS[k] ** 2 / LEVELS[0] ** 2
        for _ in range(5):
            x = x + a / 2 * level_score(x, ts[19 - k]) + a.sqrt() * next(noise)
    got = sample(SMLD.reverse(level_score), 10 * X, ts, Langevin(NCSN(2e-4, float(LEVELS[0])), n=5), noise=tape())
    return gap(got, x)


def geometric() -> float:
    t = torch.linspace(0, 1, 101, dtype=F64)
    return gap(SMLD.g2(t), VE(0.05, 10.0).g2(t))


def bound() -> float:
    chain, i = Chain(DDPM, DDPM.grid()), 40
    got = elbo(chain, score, X, kernel=Ancestral(1.0), noise=lambda *_: Z[0]).steps[:, i - 2]
    x_t = BAR[i].sqrt() * X + (1 - BAR[i]).sqrt() * Z[0]
    b, tilde = BETAS[i - 1], (1 - BAR[i - 1]) / (1 - BAR[i]) * BETAS[i - 1]
    # eq. 12 with sigma_t^2 = beta_t, and the part of the KL divergence that does not depend on the network
    squares = b**2 / (2 * b * (1 - b) * (1 - BAR[i])) * (Z[0] - eps(x_t, i)).square().sum(1)
    return gap(got, squares + 3 * (tilde / b - 1 - (tilde / b).log()) / 2)


THEOREMS = [
    ("a table of betas is a VP SDE through its knots", "beta_i", "1 - (alpha_i/alpha_{i-1})^2", table),
    ("q(x_t | x_0), Ho et al. eq. 4", "steps of eq. 2, composed", "N(alpha_t x_0, sigma_t^2)", marginal),
    ("q(x_{t-1} | x_t, x_0), eq. 6-7", "mu~_t, beta~_t", "Chain.posterior", posterior),
    ("training, Algorithm 1", "|z - eps(sqrt(abar) x_0 + ..., t)|^2", "dsm", training),
    ("the bound's L_{t-1}, eq. 12", "beta^2/(2 sigma^2 alpha (1 - abar)) |...|^2", "elbo", bound),
    ("DDPM sampling, Algorithm 2", "(x - beta/sqrt(1-abar) eps)/sqrt(alpha) + ...", "Ancestral(), eta=1", ancestral),
    ("DDIM, Song Meng & Ermon eq. 12", "sqrt(abar') x_0 + sqrt(1-abar') eps", "Ancestral(), eta=0", ddim),
    (
        "reverse diffusion, Song et al. eq. 46",
        "(2 - sqrt(1-b)) x + b score + ...",
        "ReverseDiffusion()",
        reverse_diffusion,
    ),
    ("SMLD ancestral, eq. 47", "x + (s_i^2 - s_{i-1}^2) score + ...", "Ancestral(), on VE", smld),
    ("NCSN, Song & Ermon Algorithm 1", "x + a/2 score + sqrt(a) z", "Langevin(NCSN(...)), alone", ncsn),
    ("geometric levels are the VE SDE", "sigma_i of NCSN", "g^2 of VE, eq. 30", geometric),
]


def main() -> None:
    print(f"{'theorem':47s} {'in the paper':46s} {'here':28s} largest relative difference")
    for name, discrete, continuous, check in THEOREMS:
        print(f"{name:47s} {discrete:46s} {continuous:28s} {check():.1e}")


if __name__ == "__main__":
    main()
