"""Why one anneals: the "long, long time" of Langevin dynamics as a number, at every noise level, without a sample.

    python examples/why_anneal.py [FOLDER]

Two modes on a line, 0.7 N(-1, 0.1^2) + 0.3 N(1, 0.141^2), under VE, and steps of 0.2 sigma^2: the relaxation time from
the spectrum of the kernel, plain and with Metropolis' correction; where an eigenvalue tells no more, the time to cross
and come back, times both weights. Beside it the law of 200 steps from N(0, 1): all of them at the last level, and
annealed, 5 at each of 40 levels. Printed, and drawn into FOLDER/why-anneal.png.
"""

import math
import sys
from pathlib import Path

import matplotlib
import torch

from scoresde import NCSN, VE, Langevin, exact, grid
from scoresde.lab import law_of, mixing, tabulated
from scoresde.steps import MALA

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

LAW = exact.GaussianMixture(torch.tensor([0.7, 0.3]), torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.01], [0.02]]))
WEIGHTS = 0.7 * 0.3
SDE = VE(0.05, 4.0)
RULE = NCSN(0.4, 1.0)
SIGMAS = (4.0, 2.0, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.13, 0.1, 0.07, 0.05)
KINDS: dict[str, Langevin | MALA] = {"plain": Langevin(RULE), "with Metropolis": MALA(RULE)}


def steps(sigma: float, step: Langevin | MALA) -> float:
    """The relaxation time in steps."""
    t = SDE.time(torch.tensor(-math.log(sigma), dtype=torch.float64)).clamp(SDE.t_min, SDE.T)
    chain = mixing(SDE.reverse(LAW.diffuse(SDE)), t, step, tabulated(LAW.marginal(SDE, t)))
    return chain.relaxation if chain.relaxation < 1e9 else WEIGHTS * chain.crossing(-1.0, 1.0)


def main() -> None:
    """Print, and draw."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/why-anneal")
    folder.mkdir(parents=True, exist_ok=True)
    p, figure, (left, right) = SDE.reverse(LAW.diffuse(SDE)), *plt.subplots(1, 2, figsize=(11, 4))
    for name, step in KINDS.items():
        times = [steps(sigma, step) for sigma in SIGMAS]
        left.loglog(SIGMAS, times, "o-" if name == "plain" else "s--", label=name)
        for sigma, time in zip(SIGMAS, times, strict=True):
            print(f"sigma {sigma:5.2f}, {name}: {time:.3g} steps")
    left.set(xlabel="noise level sigma", ylabel="relaxation time, steps", title="Langevin dynamics at one level")
    left.invert_xaxis()
    left.legend()
    last = torch.tensor([1e-9, 0.0], dtype=torch.float64)
    wide = exact.Gaussian(torch.zeros(1), 1.0)
    alone = law_of(p, last, Langevin(RULE, n=100), prior=wide)
    annealed = law_of(p, grid.log_snr(SDE, 39), Langevin(RULE, n=5))
    truth = tabulated(LAW.marginal(SDE, 0.0))
    for name, law in (("truth", truth), ("200 steps at the last level", alone), ("5 at each of 40 levels", annealed)):
        right.plot(law.x, law.log_p.exp(), label=name)
        mass = law.mass - float(law.cdf(torch.zeros(1, dtype=torch.float64)))
        print(f"{name}: {mass:.4f} of the mass in the right mode, {law.distances(truth)}")
    right.set(xlim=(-2, 2), xlabel="x", title="Densities at sigma = 0.05")
    right.legend(fontsize=8)
    figure.savefig(folder / "why-anneal.png", dpi=130, bbox_inches="tight")
    print(f"drawn into {folder / 'why-anneal.png'}")


if __name__ == "__main__":
    main()
