"""Methods for y = A x + noise against posteriors that are known: how biased each is, and by what.

    python benchmarks/inverse.py [--samples 2000] [--steps 200]

The law is a mixture of Gaussians, so that p(x | y), p(y) and the score of every p_t(x | y) have closed forms. "exact
score" follows that score by the same steps: what is wrong with it is the steps' own, and what is wrong with a method
beyond it is that of its approximation. weights: total variation between the modes' weights of samples and of the
posterior; mean: root mean square over dimensions of the error of the mean, in posterior deviations; covered: the share
of the posterior inside the interval that 90 % of the samples are in, over dimensions; W2: sliced Wasserstein distance
to exact samples, over that of others as good. Weighted samples are drawn by their weights first. zeta and the weight of
restoration are 1. Steps: DDPM, fixed-large.
"""

import argparse
from collections.abc import Callable
from time import process_time
from typing import Any

import torch
from harness import save, table
from torch import Tensor

from scoresde import VP, Ancestral, Reference, grid, iid, sample
from scoresde.exact import GaussianMixture
from scoresde.inverse import (
    DPS,
    Average,
    Mask,
    Observation,
    Replacement,
    ddnm,
    diffpir,
    log_evidence,
    mmps,
    pigdm,
    posterior,
    twisted,
)
from scoresde.lab import DigitClasses, sliced_wasserstein, weights_error
from scoresde.model import Counted

SDE = VP()


def two_modes() -> tuple[GaussianMixture, Observation]:
    """Two modes in four dimensions, of which one number is known."""
    means = torch.tensor([[-1.0, 0.3, 0.5, 0.0], [1.0, -0.5, 0.2, 0.8]], dtype=torch.float64)
    covariances = torch.stack([0.2 * torch.eye(4) + 0.1, 0.1 * torch.eye(4) + 0.05]).double()
    law = GaussianMixture.from_covariances(torch.tensor([0.6, 0.4], dtype=torch.float64), means, covariances)
    keep = torch.tensor([True, False, False, False])
    return law, Observation(Mask(keep), torch.tensor([0.3], dtype=torch.float64), 0.5)


def digits(A: Mask | Average, std: float) -> tuple[GaussianMixture, Observation]:
    """A digit of the mixture of ten classes in 64 dimensions."""
    law, g = DigitClasses().law(), torch.Generator().manual_seed(4)
    seen = Observation.of(A, law.sample(1, g), std, g)
    return law, Observation(A, seen.y[0], std)


def rows_known() -> Mask:
    """The upper half of an 8 x 8 image."""
    keep = torch.zeros(1, 8, 8, dtype=torch.bool)
    keep[:, :4] = True
    return Mask(keep)


PROBLEMS: dict[str, Callable[[], tuple[GaussianMixture, Observation]]] = {
    "two modes, one number of four": two_modes,
    "digits, upper half": lambda: digits(rows_known(), 0.2),
    "digits, blocks of 4 x 4": lambda: digits(Average((1, 8, 8), 4), 0.1),
}


def noise(seed: int) -> iid:
    """A new stream."""
    return iid(torch.Generator().manual_seed(seed))


def methods(score: Counted, seen: Observation, truth: GaussianMixture, around: Reference) -> dict[str, Any]:
    """Scores, and steps with the plain score."""
    step = Ancestral(1.0)
    found: dict[str, Any] = {
        "exact score": (Counted(truth.diffuse(SDE)), step),
        "pigdm": (pigdm(score, seen, around), step),
        "mmps": (mmps(score, seen), step),
        "diffpir": (diffpir(score, seen), step),
        "ddnm": (ddnm(score, seen), step),
        "DPS": (score, DPS(step, seen)),
    }
    if isinstance(seen.A, Mask):
        found |= {"Replacement": (score, Replacement(step, seen)), "RePaint": (score, Replacement(step, seen, 5))}
    return found


def measured(x: Tensor, fresh: tuple[Tensor, Tensor], truth: GaussianMixture) -> dict[str, float]:
    """How far samples are from the posterior, of which there are two sets of samples as good as can be."""
    mean, std = truth.moments
    low, high = (x.flatten(1).quantile(q, 0) for q in (0.05, 0.95))
    inside = (fresh[0].flatten(1) >= low) & (fresh[0].flatten(1) <= high)
    off = ((x.mean(0) - mean) / std).square().mean().sqrt()
    return {
        "weights": round(weights_error(truth, x), 3),
        "mean": round(float(off), 3),
        "covered": round(float(inside.double().mean()), 3),
        "W2": round(sliced_wasserstein(x, fresh[0]) / sliced_wasserstein(fresh[1], fresh[0]), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, rows = options.samples, []
    for name, make in PROBLEMS.items():
        law, seen = make()
        truth, ts = posterior(law, seen), grid.log_snr(SDE, options.steps)
        end, around = (
            float(SDE.alpha(ts[-1])),
            Reference.fit(law.sample(2000, torch.Generator().manual_seed(1))).overall,
        )
        fresh = truth.sample(n, torch.Generator().manual_seed(5)), truth.sample(n, torch.Generator().manual_seed(6))
        x_T = SDE.prior((n, *law.shape), noise(2), torch.float64)
        score = Counted(law.diffuse(SDE))
        for method, (s, step) in methods(score, seen, truth, around).items():
            before = score.nfe, getattr(s, "nfe", 0)
            began = process_time()
            x = sample(SDE.reverse(s), x_T, ts, step, noise=noise(3)) / end
            taken = round(process_time() - began, 1)
            calls = s.nfe - before[1] if method == "exact score" else score.nfe - before[0]
            row = {"log p(y)": "", "calls": calls, "CPU seconds": taken}
            rows.append({"problem": name, "method": method, **measured(x, fresh, truth), **row})
            print(rows[-1], flush=True)
        draws, began = torch.Generator().manual_seed(4), process_time()
        made = twisted(law.diffuse(SDE), seen, x_T, ts, noise=noise(3), generator=draws, around=around)
        taken = round(process_time() - began, 1)
        chosen = torch.multinomial(made.samples.log_w.softmax(0), n, replacement=True, generator=draws)
        told = f"{made.log_evidence:.2f} ({log_evidence(law, seen):.2f})"
        row = {"log p(y)": told, "calls": made.samples.nfe, "CPU seconds": taken}
        rows.append(
            {"problem": name, "method": "twisted", **measured(made.samples.x[chosen] / end, fresh, truth), **row}
        )
        print(rows[-1], flush=True)
    file = save("inverse", "cpu", ("scoresde", "torch"), rows)
    print(table(rows), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
