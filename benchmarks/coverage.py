"""How often a likelihood's stated solver error holds, over networks of all kinds, most of which were not made for it.

    python benchmarks/coverage.py [--images 16] [--only NAMES ...] [--models runs/bench-likelihood]

The solver's own error: every sample is measured as `log_prob` does by default, but with two probes that are kept for
the whole path, and again with these probes at a tight tolerance, of the state and, for networks, of the report; what is
left between the two is no chance. "within": the share of samples whose error is at most the stated one, and at most
twice that. "by default", with fresh probes, as `log_prob` comes: its distance to the tight solution by eight fresh
probes in place of two, four for images of 784 pixels; the share of samples that are within the stated error of the
solver and two standard errors from the probes of both; and the mean distance, its standard error from probes beside it.

Errors are in bits/dim for images, in nats/dim for laws. Networks on the digits are trained first, if they are not
there. Two published networks and real images are looked for in ../shared/data, and left out where they are absent.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from foreign import GREY, SHARED, images, published
from harness import save, table
from likelihood import network, noise, told
from torch import Tensor, nn

from scoresde import EDM, VE, VP, Karras, Quantized, Reference, ScoreModel, Settings, load, log_prob, shipped, train
from scoresde.data import Digits
from scoresde.lab import DigitClasses, Modes
from scoresde.likelihood import Adams, AsNeeded, Exact, Hutchinson, Integrator, Quadrature, Trace
from scoresde.nn import UNet
from scoresde.noise import seeded
from scoresde.ode import Dopri5, Embedded
from scoresde.process import LinearSDE, Score


@dataclass
class Subject:
    """A score, samples x at t_min of its process, how many nats its unit has in a dimension, and the levels that the
    samples were dequantised from.
    """

    score: Score
    sde: LinearSDE
    x: Tensor
    around: Reference | None
    nats: float = math.log(2)
    grey: Quantized | None = None


def digits(n: int, kind: str, models: Path) -> Subject:
    """A U-Net on the bundled digits: trained, for a few steps, not at all, in bfloat16, or told a whole step index."""
    data = Digits().load()
    assert data.quantized is not None
    around = Reference.fit(data.train).overall
    if kind in ("few", "random"):
        with seeded(0):
            model = ScoreModel(UNet(data.shape), VP(), Karras(around))
            if kind == "few":
                train(model, data, Settings(steps=30, batch=32))
            else:
                for p in model.parameters():
                    nn.init.normal_(p, std=0.1)
    else:
        model = network("MLP" if kind == "MLP" else "U-Net", models, "cpu")
    model.eval().requires_grad_(False)
    x, score = data.quantized.dequantize(data.held_out[:n], noise(0)), model
    if kind == "bfloat16":
        model.net.to(torch.bfloat16)
    if kind == "stepped":
        score = lambda x, t: model(x, ((t * 1000).ceil() / 1000).clamp(1e-3, 1.0))  # noqa: E731
    return Subject(score, model.sde, x, around, grey=data.quantized)


def grey(n: int, model: ScoreModel, of: str) -> Subject:
    """A network of images of 256 levels."""
    return Subject(model, model.sde, GREY.dequantize(images(of, n), noise(0)), model.around, grey=GREY)


def ours(n: int, name: str, of: str) -> Subject:
    """A network that comes with the library, whose numbers are of float16, computed in float32."""
    return grey(n, load(shipped(name), dtype=torch.float32).model, of)


def rough(n: int, law: object, sde: LinearSDE, size: float, rate: float) -> Subject:
    """An exact score and a known wave beside it, in x and in the noise level."""
    exact = law.law()  # type: ignore[attr-defined]
    score, x = exact.diffuse(sde), exact.marginal(sde, sde.t_min).sample(n, torch.Generator().manual_seed(0))

    def wavy(x: Tensor, t: Tensor) -> Tensor:
        lam, sigma = sde.log_snr(t), sde.sigma(t)
        lam, sigma = (v.view(-1, *[1] * (x.ndim - 1)) if v.ndim else v for v in (lam, sigma))
        wave = (rate * lam + 2 * x / (sigma**2 + sde.alpha(torch.tensor(0.5)) ** 2).sqrt()).sin()
        return score(x, t) + size * wave / sigma

    return Subject(wavy, sde, x, Reference.fit(exact.sample(1000, torch.Generator().manual_seed(1))), 1.0)


SUBJECTS: dict[str, Callable[[int, Path], Subject]] = {
    "published, MNIST": lambda n, m: grey(n, published("mnist"), "mnist"),
    "published, Fashion-MNIST": lambda n, m: grey(n, published("fashion"), "fashion"),
    "digits, U-Net": lambda n, m: digits(n, "U-Net", m),
    "digits, MLP": lambda n, m: digits(n, "MLP", m),
    "digits, U-Net of 30 steps": lambda n, m: digits(n, "few", m),
    "digits, random U-Net": lambda n, m: digits(n, "random", m),
    "digits, U-Net in bfloat16": lambda n, m: digits(n, "bfloat16", m),
    "digits, U-Net told a step index": lambda n, m: digits(n, "stepped", m),
    "MNIST, VP": lambda n, m: ours(n, "mnist-vp", "mnist"),
    "Fashion-MNIST, VP": lambda n, m: ours(n, "fashion-mnist", "fashion"),
    "MNIST, EDM with Fourier features": lambda n, m: ours(min(n, 4), "mnist", "mnist"),
    "law, VP": lambda n, m: rough(n, DigitClasses(), VP(), 0.0, 0.0),
    "law, EDM": lambda n, m: rough(n, DigitClasses(), EDM(T=80.0), 0.0, 0.0),
    "law with a slow wave, VP": lambda n, m: rough(n, DigitClasses(), VP(), 0.05, 2.0),
    "law with a wave, VP": lambda n, m: rough(n, DigitClasses(), VP(), 0.05, 10.0),
    "law with a fast wave, VE": lambda n, m: rough(n, DigitClasses(), VE(0.01, 50.0), 0.02, 40.0),
    "plane with a wave, VP": lambda n, m: rough(n, Modes(), VP(), 0.05, 10.0),
}


TIGHT = AsNeeded(0.001, Adams(12), Dopri5(1e-5, 1e-5))
"""As far as the numbers of networks in float32 reach."""


class Asked:
    """A score, and how many samples it was asked for."""

    def __init__(self, score: Score) -> None:
        self.score, self.samples = score, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.samples += len(x)
        return self.score(x, t)


class Found(NamedTuple):
    """log p of each sample and what is said of its errors, a dimension in its unit; network calls a sample."""

    log_p: Tensor
    solver: Tensor
    probes: Tensor
    calls: float


KEPT = Hutchinson(2, fresh=False)


def measured(s: Subject, method: Integrator | Embedded | None, trace: Trace = KEPT, seed: int = 1) -> Found:
    """By these choices; the divergence is exact up to 16 dimensions."""
    d, score = s.x[0].numel(), Asked(s.score)
    how = Quadrature(method, Exact() if d <= 16 else trace)
    p, given = s.sde.reverse(score), (s.x,) if s.grey is None else told(s.x, s.grey)
    found = log_prob(p, *given, around=s.around, how=how, noise=noise(seed))
    values = (v / (d * s.nats) for v in (found.log_p, found.solver_error, found.probe_error))
    return Found(*values, score.samples / len(s.x))


def usual(s: Subject, tight: Integrator | Embedded) -> dict[str, Any]:
    """What `log_prob` comes to by default, against the truth."""
    d = s.x[0].numel()
    truth, found = measured(s, tight, Hutchinson(4 if d > 100 else 8), 2), measured(s, None, Hutchinson(2), 3)
    off, chance = found.log_p - truth.log_p, (found.probes**2 + truth.probes**2).sqrt()
    return {
        "calls by default": round(found.calls, 1),
        "within by default": round(float((off.abs() <= found.solver + 2 * chance).double().mean()), 3),
        "mean by default": round(float(off.mean()), 5),
        "chance": round(float(chance.square().sum().sqrt()) / len(off), 5),
    }


def row(name: str, error: Tensor, stated: Tensor, calls: float, few: Tensor) -> dict[str, Any]:
    """What is told of the solver's own error on a subject."""
    return {
        "scores": name,
        "samples": len(error),
        "calls a sample": round(calls, 1),
        "mean error": round(float(error.mean()), 5),
        "RMS error": round(float(error.square().mean().sqrt()), 5),
        "stated": round(float(stated.mean()), 5),
        "within": round(float((error.abs() <= stated).double().mean()), 3),
        "within twice": round(float((error.abs() <= 2 * stated).double().mean()), 3),
        "largest ratio": round(float((error.abs() / stated).max()), 2),
        "RMS error of Adams()": round(float(few.square().mean().sqrt()), 5),
    }


def picture(points: dict[str, tuple[Tensor, Tensor]], file: Path) -> None:
    """True against stated errors, a point a sample."""
    figure, axes = plt.subplots(figsize=(7, 6))
    for k, (name, (error, stated)) in enumerate(points.items()):
        axes.loglog(
            stated, error.abs().clamp_min(1e-6), "ov^sDPX*<"[k % 9], color=f"C{k % 10}", ms=4, label=name, alpha=0.7
        )
    ends = torch.tensor([1e-5, 1.0])
    axes.loglog(ends, ends, "k-", lw=0.8, label="as stated")
    axes.loglog(ends, 2 * ends, "k:", lw=0.8, label="twice that")
    axes.set(xlabel="stated error", ylabel="error", xlim=(1e-5, 0.3), ylim=(1e-6, 0.3))
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(file, dpi=130, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=SUBJECTS)
    parser.add_argument("--models", type=Path, default=Path("runs/bench-likelihood"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, points = [], {}
    for name in options.only or SUBJECTS:
        if "MNIST" in name and not SHARED.is_dir():
            print(f"{name}: left out, as there is no {SHARED}")
            continue
        subject = SUBJECTS[name](options.images, options.models)
        tight = Dopri5(1e-8, 1e-8) if subject.x.dtype == torch.float64 else TIGHT
        truth, found, few = (measured(subject, method) for method in (tight, None, Adams()))
        points[name] = found.log_p - truth.log_p, found.solver
        rows.append(row(name, *points[name], found.calls, few.log_p - truth.log_p) | usual(subject, tight))
        print(rows[-1], flush=True)
    error, stated = (torch.cat([point[k] for point in points.values()]) for k in (0, 1))
    parts, empty = sum(r["samples"] for r in rows), dict.fromkeys(rows[0], "")
    within = round(sum(r["samples"] * r["within by default"] for r in rows) / parts, 3)
    last = row("all", error, stated, math.nan, error) | {"calls a sample": "", "RMS error of Adams()": ""}
    rows.append(empty | last | {"within by default": within})
    file = save("coverage", "cpu", ("scoresde", "torch"), rows)
    picture(points, file.with_suffix(".png"))
    print(table(rows), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
