"""Does DDPM step optimally through the annealing levels of Langevin sampling? It steps better, and far from optimally.

    python examples/optimal_annealing.py [FOLDER]

Between neighbouring levels a sampler takes one affine step x' = a x + b score + c z. Two modes on a line, 0.7 N(-1,
0.1^2) + 0.3 N(1, 0.141^2), noise from sigma = 4 down to 0.05, the exact score: KL(truth || sampler) of DDPM with the
small, the large and the analytic variance, of Langevin dynamics with the step size e = r sigma^2 that is best for it,
and of the a, b and c of every level that are best together. The optimum is found by L-BFGS through the kernels, on
fixed grids, and every number told is that of `law_of`. Printed, with what the optimum changes, and drawn into
FOLDER/optimal-annealing.png.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from scoresde import NCSN, VE, Ancestral, Langevin, exact, grid, iid
from scoresde.lab import law_of
from scoresde.process import Reverse
from scoresde.steps import AnalyticDPM, Step
from scoresde.steps.step import Affine

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

LAW = exact.GaussianMixture(torch.tensor([0.7, 0.3]), torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.01], [0.02]]))
SDE = VE(0.05, 4.0)
P = SDE.reverse(LAW.diffuse(SDE))
LEVELS = (4, 8, 16)
POINTS = 500
WIDE = 8.0  # deviations of x_t that a grid reaches


@dataclass(frozen=True)
class Chosen(Affine):
    """x' = a x + b score + c z with numbers (n, 3) of one's own for the intervals of a grid."""

    numbers: Tensor

    def line(self, p: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """They themselves."""
        a, b, c = self.numbers.unbind(1)
        return a, b, c


def kl(ts: Tensor, *steps: Step) -> float:
    """KL(truth || sampler) at the last level."""
    return law_of(P, ts, *steps).distances(LAW.marginal(SDE, ts[-1]))["kl"]


def langevin(n: int) -> float:
    """One step at each of n levels, with the best r."""
    ts = grid.log_snr(SDE, n - 1)
    found = minimize_scalar(
        lambda log_r: kl(ts, Langevin(NCSN(2 * math.exp(log_r), 1.0))),
        bounds=(-4.0, math.log(0.95)),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return float(found.fun)


def optimal(ts: Tensor) -> Tensor:
    """The best (a, b, c) of every interval, (n, 3), from those of DDPM on; b and c in units of theirs."""
    a, b, c = Ancestral().line(P, ts[:-1], ts[1:])
    ends = [LAW.marginal(SDE, t) for t in ts]
    reach = [WIDE * float(law.moments[1]) for law in ends]
    xs = [torch.linspace(-r, r, POINTS, dtype=torch.float64) for r in reach]
    scores = [P.score(x[:, None], t)[:, 0] for x, t in zip(xs, ts, strict=True)]
    truth = ends[-1].log_prob(xs[-1][:, None])
    start = -((xs[0] / float(SDE.sigma(ts[0]))) ** 2) / 2

    def numbers(free: Tensor) -> Tensor:
        return torch.stack([a * free[0].exp(), b * free[1].exp(), c * free[2].exp()], 1)

    def lost(free: Tensor) -> Tensor:
        q = (start - start.logsumexp(0)).exp()
        for (a, b, c), x, score, y in zip(numbers(free), xs[:-1], scores[:-1], xs[1:], strict=True):
            kernel = (-(((y - (a * x + b * score)[:, None]) / c) ** 2) / 2).exp() / (c * math.sqrt(2 * math.pi))
            q = (q @ kernel) * (y[1] - y[0])
        h = xs[-1][1] - xs[-1][0]
        return h * (truth.exp() * (truth - (q / h).clamp_min(1e-300).log())).sum()

    def asked(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        free = torch.from_numpy(values).view(3, -1).requires_grad_()
        loss = lost(free)
        (slope,) = torch.autograd.grad(loss, free)
        return float(loss.detach()), slope.flatten().numpy()

    limits = [(-1.5, 1.5)] * (3 * len(a))
    found = minimize(asked, np.zeros(3 * len(a)), jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 500})
    return numbers(torch.from_numpy(found.x).view(3, -1))


def main() -> None:
    """Print, and draw."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/optimal-annealing")
    folder.mkdir(parents=True, exist_ok=True)
    x_0 = LAW.sample(100_000, torch.Generator().manual_seed(0))
    found: dict[str, list[float]] = {}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for n in LEVELS:
        ts = grid.log_snr(SDE, n)
        best = optimal(ts)
        for name, value in {
            "Langevin, best r": langevin(n),
            "DDPM, large": kl(ts, Ancestral(1.0)),
            "DDPM, small": kl(ts, Ancestral()),
            "DDPM, analytic": kl(ts, AnalyticDPM.fit(P, x_0, ts, iid(torch.Generator().manual_seed(1)))),
            "best (a, b, c)": kl(ts, Chosen(best)),
        }.items():
            found.setdefault(name, []).append(value)
            print(f"{n} levels, {name}: {value:.3g} nats", flush=True)
        ddpm = torch.stack(Ancestral().line(P, ts[:-1], ts[1:]), 1)
        for t, numbers in zip(ts.tolist(), (best / ddpm).tolist(), strict=False):
            sigma, (a, b, c) = float(SDE.sigma(torch.tensor(t))), numbers
            print(f"    sigma {sigma:6.3f}: a, b, c are {a:.3f}, {b:.3f}, {c:.3f} times those of DDPM, small")
        if n == LEVELS[-1]:
            for name, line in zip("abc", (best / ddpm).T, strict=True):
                right.semilogx(SDE.sigma(ts[:-1]), line, "o-", label=f"{name}, best / DDPM, small")
    for name, values in found.items():
        left.loglog(LEVELS, values, "o-", label=name)
    left.set_xticks(LEVELS, map(str, LEVELS), minor=False)
    left.set_xticks([], minor=True)
    left.set(xlabel="network calls, one a level", ylabel="KL(truth || sampler), nats")
    right.set(xlabel="sigma", title=f"What is best, {LEVELS[-1]} levels")
    right.invert_xaxis()
    for axes in (left, right):
        axes.legend(fontsize=8)
    figure.savefig(folder / "optimal-annealing.png", dpi=130, bbox_inches="tight")
    print(f"drawn into {folder / 'optimal-annealing.png'}")


if __name__ == "__main__":
    main()
