"""How long Langevin dynamics takes to find the modes, and what annealing buys.

    python examples/langevin_mixing.py [FOLDER]

Two laws with exact scores and unequal weights: two Gaussians in the plane of weights 0.2 and 0.8, and the mixture of
the ten digit classes in 64 dimensions fitted to scikit-learn's digits, reweighted 10:1. At one noise level, started
from N(0, I), a chain has to cross between modes by chance; annealed, it arrives in each mode with about its weight.
Total variation of the mode weights against network calls, and the floor that exact
samples of the same number have; plotted into FOLDER/mixing.png.
"""

import sys
from functools import partial
from pathlib import Path

import matplotlib
import torch

from scoresde import NCSN, VE, Counted, Langevin, exact, grid, iid, sample
from scoresde.data import Digits
from scoresde.lab import weights_error
from scoresde.steps import MALA

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

N = 400
CALLS = (30, 100, 300, 1000)


def plane() -> exact.GaussianMixture:
    """Two Gaussians four standard deviations of each apart and more."""
    return exact.GaussianMixture(
        torch.tensor([0.2, 0.8]), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), torch.full((2,), 0.3**2)
    )


def digits() -> exact.GaussianMixture:
    """One Gaussian a class, the first five ten times as likely as the others."""
    data = Digits().load()
    x, y = data.train.flatten(1).double(), data.train_labels
    classes = [x[y == k] for k in range(10)]
    C = torch.stack([torch.cov(c.T) + 0.05 * torch.eye(64, dtype=torch.float64) for c in classes])
    weights = torch.tensor([10.0] * 5 + [1.0] * 5)
    return exact.GaussianMixture.from_covariances(weights, torch.stack([c.mean(0) for c in classes]), C)


def annealed(law: exact.GaussianMixture, sigma_max: float, calls: int) -> tuple[float, int]:
    """Ten Langevin steps a level, from sigma_max down to 0.1."""
    ve, noise = VE(0.1, sigma_max), iid(torch.Generator().manual_seed(0))
    score = Counted(law.diffuse(ve))
    ts = grid.uniform(ve, max(1, calls // 10 - 1))
    x = ve.prior((N, *law.shape), noise, torch.float64)
    return weights_error(law, sample(ve.reverse(score), x, ts, Langevin(NCSN(0.002, 0.1), 10), noise=noise)), score.nfe


def single(law: exact.GaussianMixture, adjusted: bool, calls: int) -> tuple[float, int]:
    """One level, sigma = 0.1, all the way: unadjusted or Metropolis-adjusted."""
    ve, noise = VE(0.1, 1.0), iid(torch.Generator().manual_seed(0))
    score, rule = Counted(law.diffuse(ve)), NCSN(0.004, 0.1)
    step = MALA(rule, max(1, calls // 2 - 1)) if adjusted else Langevin(rule, calls)
    t = torch.tensor(0.0, dtype=torch.float64)
    x = noise(torch.empty(N, *law.shape, dtype=torch.float64), t, t)
    with torch.no_grad():
        x = step(ve.reverse(score), x, t, t, noise)
    return weights_error(law, x), score.nfe


def main(folder: str = ".", *, calls: tuple[int, ...] = CALLS) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, (name, law, sigma_max) in zip(axes, (("plane", plane(), 5.0), ("digits", digits(), 20.0)), strict=True):
        floor = weights_error(law, law.sample(N, torch.Generator().manual_seed(9)))
        print(f"{name}: floor of {N} exact samples {floor:.3f}")
        chains = {
            "Langevin at one level": partial(single, law, False),
            "MALA at one level": partial(single, law, True),
            "annealed Langevin": partial(annealed, law, sigma_max),
        }
        for title, chain in chains.items():
            errors, spent = zip(*(chain(k) for k in calls), strict=True)
            print(f"  {title:22s} " + ", ".join(f"{e:.3f} at {n}" for e, n in zip(errors, spent, strict=True)))
            axis.loglog(spent, errors, marker="o", label=title)
        axis.set_ylim(bottom=floor / 3)
        axis.axhline(floor, color="gray", linestyle=":", label="exact samples")
        axis.set(title=name, xlabel="network calls", ylabel="error of the mode weights (total variation)")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(Path(folder) / "mixing.png", dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
