"""log p of what a sampler returns: its own, by paths, beside the continuous limit; and along the path to a sample.

    python benchmarks/paths.py [--images 24] [--paths 16] [--samples 128] [--models runs/bench-likelihood]

Bounds: -log p under the sampler itself, by the importance-weighted bound of its own chain, with 1, 4 and all paths; the
first is DDPM's bound. Densities at t_min: of the digits' mixture in 64 dimensions in nats/dim, whose true law is known;
and of held-out digits under the demo's U-Net (trained first, if it is not there) in bits/dim, dequantised. The
same images or samples in every row, whose standard error is the last column; differences between rows are far more
certain. "DDPM, optimal" and "AffineDPM" are fitted to 1,000 samples or training images. "the flow" is `log_prob`, "the
reverse SDE" `continuous_elbo`: what many steps come to.

Along the path: root mean square error in nats of the log-density that `sample_and_log_prob` tells of samples of that
mixture, whose log-density is known; the mean error, the root mean square of the error that it tells, and how many of
the true errors are within twice that. The control variates know less and less of the data; with none, and neither
trapezoid nor correction, it is the theorem as it stands ("by hand").
"""

import argparse
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from harness import save, table
from likelihood import network, noise
from torch import Tensor

from scoresde import (
    VP,
    Ancestral,
    DPMSolverPP,
    EulerMaruyama,
    LinearSDE,
    Reference,
    ReverseDiffusion,
    SASolver,
    Step,
    grid,
    log_prob,
    trajectory,
)
from scoresde.data import Digits
from scoresde.exact import Diffused, Gaussian
from scoresde.lab.problems import DigitClasses
from scoresde.likelihood import continuous_elbo, sample_and_log_prob, sampler_log_prob
from scoresde.process import Score
from scoresde.quantize import Quantized
from scoresde.steps import AffineDPM, AnalyticDPM

FITTED: dict[str, type[AffineDPM] | type[AnalyticDPM]] = {"DDPM, optimal": AnalyticDPM, "AffineDPM": AffineDPM}
SAMPLERS: dict[str, Step] = {
    "DDPM, fixed-small": Ancestral(),
    "DDPM, v = 0.5": Ancestral(0.5),
    "DDPM, fixed-large": Ancestral(1.0),
    "ReverseDiffusion": ReverseDiffusion(),
    "EulerMaruyama": EulerMaruyama(),
    "DPMSolverPP(2)": DPMSolverPP(2),
    "SASolver(3, 4)": SASolver(),
}


def bounds(
    of: str,
    sde: LinearSDE,
    score: Score,
    x: Tensor,
    data: Tensor,
    around: Reference,
    grey: Quantized | None,
    paths: int,
) -> list[dict[str, Any]]:
    """A row for each sampler and number of steps; two of them are fitted to data."""
    p, rows, d = sde.reverse(score), [], x[0].numel()

    def row(sampler: str, steps: str, log_p: Tensor, few: tuple[Tensor, ...] = ()) -> dict[str, Any]:
        told = [-v.double() / d if grey is None else grey.bits_per_dim(v.double(), d) for v in (*few, log_p)]
        first, some, every = ["", "", *(round(float(v.mean()), 4) for v in told)][-3:]
        return {
            "of": of, "sampler": sampler, "steps": steps, "1 path": first, "4 paths": some, f"{paths} paths": every,
            "error": round(float(told[-1].std()) / math.sqrt(len(x)), 4),
        }  # fmt: skip

    for name in (*SAMPLERS, *FITTED):
        for n in (20, 50, 200):
            ts = grid.reference(sde, n, around=around)
            step = SAMPLERS[name] if name in SAMPLERS else FITTED[name].fit(p, data, ts, noise(5))
            w = sampler_log_prob(p, x, ts, step, paths=paths, noise=noise(n))
            four = w.log_w.view(-1, 4, len(x)).logsumexp(1).mean(0) - math.log(4)
            rows.append(row(name, str(n), w.log_p, (w.elbo, four)))
            print(rows[-1], flush=True)
    if isinstance(score, Diffused):
        rows.append(row("the law itself", "", score.log_prob(x, sde.t_min)))
    rows.append(row("the reverse SDE", "", -continuous_elbo(p, x, terms=64, noise=noise(1)).nats))
    rows.append(row("the flow", "", log_prob(p, x, around=around, noise=noise(2)).log_p))
    return rows


def by_hand(p: Any, x: Tensor, ts: Tensor, step: Step, seed: int) -> tuple[Tensor, Tensor]:
    """Samples, and the theorem at the left end of each step."""
    sde, states = p.sde, list(trajectory(p, x, ts, step, noise=noise(seed)))
    alpha, v = sde.alpha(ts), sde.var(ts) / sde.alpha(ts) ** 2
    log_p = sde.log_prior(x) + x[0].numel() * alpha[0].log()
    for k, (a, b) in enumerate(pairwise(states)):
        s = (alpha[k] * p.score(a, ts[k])).flatten(1)
        moved = (b / alpha[k + 1] - a / alpha[k]).flatten(1)
        log_p = log_p + (s * moved).sum(1) - s.square().sum(1) / 2 * (v[k] - v[k + 1])
    return states[-1], log_p - x[0].numel() * alpha[-1].log()


def along(n: int) -> list[dict[str, Any]]:
    """A row for each sampler, number of steps and control variate."""
    law, sde, rows = DigitClasses().law(), VP(), []
    score, data = law.diffuse(sde), law.sample(5000, torch.Generator().manual_seed(0))
    p, around = sde.reverse(score), Reference.fit(data)
    variates = {"covariance": Gaussian.fit(data), "deviation": around, "N(0, I)": Reference(std=1.0)}
    for steps in (50, 200):
        ts = grid.reference(sde, steps, around=around)
        for sampler in ("DDPM, fixed-small", "DDPM, fixed-large", "EulerMaruyama", "SASolver(3, 4)"):
            x = sde.prior((n, *law.shape), noise(1), torch.float64)
            y, log_p = by_hand(p, x, ts, SAMPLERS[sampler], 2)
            told: dict[str, tuple[Tensor, Tensor | None]] = {"none, by hand": (log_p, None)}
            for name, near in variates.items():
                found = sample_and_log_prob(p, x, ts, SAMPLERS[sampler], around=near, noise=noise(2))
                told[name] = found.log_p, found.error
            for name, (log_p, error) in reversed(told.items()):
                off = log_p - score.log_prob(y, ts[-1])
                rows.append(
                    {
                        "sampler": sampler,
                        "steps": steps,
                        "control variate": name,
                        "RMS error": round(float(off.square().mean().sqrt()), 2),
                        "mean error": round(float(off.mean()), 2),
                        "told": "" if error is None else round(float(error.square().mean().sqrt()), 2),
                        "within twice": ""
                        if error is None
                        else round(float((off.abs() < 2 * error).double().mean()), 3),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--paths", type=int, default=16)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--models", type=Path, default=Path("runs/bench-likelihood"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = along(options.samples)
    file = save("along", "cpu", ("scoresde", "torch"), rows)
    print(table(rows), f"\nwritten to {file}", flush=True)

    data, law, sde = Digits().load(), DigitClasses().law(), VP()
    around, score = Reference.fit(data.train).overall, law.diffuse(sde)
    x = score.sample(options.samples, sde.t_min, torch.Generator().manual_seed(3))
    rows = bounds(
        "mixture", sde, score, x, law.sample(1000, torch.Generator().manual_seed(6)), around, None, options.paths
    )
    model = network("U-Net", options.models, "cpu")
    assert data.quantized is not None
    x = data.quantized.dequantize(data.held_out[: options.images], noise(4))
    fit = data.quantized.dequantize(data.train[:1000], noise(7))
    rows += bounds("U-Net", model.sde, model, x, fit, around, data.quantized, options.paths)
    file = save("paths", "cpu", ("scoresde", "torch"), rows)
    print(table(rows), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
