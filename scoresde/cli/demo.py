"""`scoresde demo`."""

import json
import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from .. import grid
from ..checkpoint import exists
from ..data import Dataset, Digits
from ..exact import Gaussian
from ..lab import Classifier, frechet, nearest, origin
from ..likelihood import log_prob
from ..model import Counted, Karras, ScoreModel, transport
from ..nn import UNet
from ..noise import iid, per_sample, seeded, seeds
from ..ode import Heun
from ..process import VE, VP, LinearSDE, Reverse
from ..reference import Reference
from ..shapes import count
from ..steps import SNR, Ancestral, Flow, Langevin, ReverseDiffusion, Step, draw, trajectory
from ..training import Settings, train
from ..values import write
from .common import place

SHOWN = 50  # samples in a picture


@dataclass(frozen=True)
class Choice:
    """A sampler: a process (sde and eta), times (n steps of a grid) and steps, and how many samples it is judged by."""

    name: str
    sde: LinearSDE
    eta: float
    spacing: Callable[[LinearSDE, int], Tensor]
    n: int
    steps: tuple[Step, ...]
    samples: int = 359

    @property
    def ts(self) -> Tensor:
        """The times."""
        return self.spacing(self.sde, self.n)

    def process(self, model: ScoreModel) -> Reverse:
        """Of the model, with calls that are counted."""
        return self.sde.reverse(Counted(transport(model, model.sde, self.sde)), self.eta)


@dataclass(frozen=True)
class Bits:
    """Bits/dim of some images, with the standard error of the mean over them, and the network calls it took."""

    mean: float
    error: float
    images: int
    nfe: int = 0

    @classmethod
    def of(cls, values: Tensor, nfe: int = 0) -> "Bits":
        """From one value an image."""
        return cls(float(values.mean()), float(values.std()) / math.sqrt(len(values)), len(values), nfe)

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.error:.3f}"


def samplers(own: LinearSDE) -> tuple[Choice, ...]:
    """The four families, for a network trained on `own`; another process is reached by transporting its score."""
    ve = VE(sigma_min=0.02, sigma_max=20.0)
    return (
        Choice("DDPM ancestral", own, 1.0, grid.uniform, 100, (Ancestral(),)),
        Choice("Predictor-corrector", own, 1.0, grid.quadratic, 60, (Langevin(SNR(0.16)), ReverseDiffusion())),
        Choice("Annealed Langevin", ve, 1.0, grid.uniform, 39, (Langevin(SNR(0.3), n=5),)),
        Choice("Probability-flow ODE", own, 0.0, grid.karras, 16, (Flow(Heun()),), samples=1000),
    )


def run(o: Namespace) -> None:
    """Train, sample, measure, report."""
    began, device, data = monotonic(), place(o), Digits().load()
    count("steps", o.steps)
    with threads(1):  # batches this small lose time on a second thread
        model = _train(o, data, device)
        results = _measured(o, model, data)
        results["seconds"] = monotonic() - began
        write(o.out / "results.json", json.dumps(results, indent=2).encode())
        _report(o, model, results)
    print(f"{monotonic() - began:.0f} s in all; open {o.out / 'report.html'}")


def _train(o: Namespace, data: Dataset, device: torch.device) -> ScoreModel:
    with seeded(o.seed):
        model = ScoreModel(UNet(data.shape), VP(), Karras(Reference.fit(data.train))).to(device)
    settings, folder = Settings(steps=o.steps, seed=o.seed), o.out / "model"
    return train(model, data, settings, folder=folder, source=Digits(), resume=exists(folder))


def _measured(o: Namespace, model: ScoreModel, data: Dataset) -> dict[str, Any]:
    """Everything that the report says, and the pictures."""
    from ..lab.report import side_by_side

    assert data.train_labels is not None and data.held_out_labels is not None
    classifier, said, shown = Classifier.fit(data.train, data.train_labels, o.seed), {}, []
    held = classifier.features(data.held_out)
    real = [frechet(classifier.features(x), held) for x in data.train.split(len(held)) if len(x) == len(held)]
    like, x = next(model.parameters()), data.train
    for s in samplers(model.sde):
        p, start = s.process(model), monotonic()
        x = draw(p, data.shape, s.ts, *s.steps, seeds=seeds(o.seed, s.samples), like=like).cpu()
        nfe, far, seconds = p.score.nfe, frechet(classifier.features(x), held), monotonic() - start  # type: ignore[attr-defined]
        said[s.name] = {"nfe": nfe, "seconds": seconds, "frechet": far}
        print(f"{s.name}: {nfe} network calls, {seconds:.0f} s, Frechet distance {far:.2f}")
        shown.append((f"{s.name}, {nfe} network calls", x[:SHOWN]))
    near, index = nearest(x, data.train)
    shown += [("training digits nearest to the ODE samples", data.train[index[:SHOWN]])]
    side_by_side([*shown, ("digits held out", data.held_out[:SHOWN])], o.out / "samples.png")
    _paths(o, model, data.shape)
    sets = {"held-out digits": data.held_out, "training digits": data.train[: len(data.held_out)]}
    bits = {name: _bits(o, model, x, data) for name, x in sets.items()}
    bits["held-out digits under the Gaussian fitted to the training digits"] = _gaussian(o, data)
    print(f"held-out digits: {bits['held-out digits']} bits/dim")
    return {
        **origin(like.device),
        "seed": o.seed,
        "training_steps": o.steps,
        "classifier_accuracy": classifier.accuracy(data.held_out, data.held_out_labels),
        "frechet_of_training_digits": sum(real) / len(real),
        "nearest_training_digit": float(near.mean()),
        "nearest_training_digit_of_held_out": float(nearest(data.held_out, data.train)[0].mean()),
        "samplers": said,
        "bits_per_dim": {name: asdict(value) for name, value in bits.items()},
    }


def _paths(o: Namespace, model: ScoreModel, shape: tuple[int, ...]) -> None:
    """One sample of each sampler on its way, ten stations each."""
    from ..lab.report import path_picture

    rows, like = [], next(model.parameters())
    for s in samplers(model.sde):
        noise, p = per_sample(seeds(o.seed, 1)), s.process(model)
        x_T = s.sde.prior((1, *shape), noise, like.dtype, like.device)
        path = list(trajectory(p, x_T, s.ts, *s.steps, noise=noise))
        times = s.ts if len(path) == len(s.ts) else torch.cat([s.ts[:1], s.ts])
        at = torch.linspace(0, len(path) - 1, 10).round().long().tolist()
        levels = [float((-s.sde.log_snr(times[i])).exp()) for i in at]
        said = [f"{level:.0f}" if level >= 10 else f"{level:.2g}" for level in levels]
        rows.append((s.name, torch.cat([path[i] for i in at]).cpu(), said))
    path_picture(rows, o.out / "path.png")


def _bits(o: Namespace, model: ScoreModel, x: Tensor, data: Dataset) -> Bits:
    noise, p = per_sample(seeds(o.seed, len(x))), model.sde.reverse(model)
    found = log_prob(p, x.to(next(model.parameters())), data.quantized, noise=noise)
    return Bits.of(found.bits_per_dim.cpu(), found.nfe)


def _gaussian(o: Namespace, data: Dataset) -> Bits:
    assert data.quantized is not None
    g = torch.Generator().manual_seed(o.seed)
    known, held = (data.quantized.dequantize(x.double(), iid(g)) for x in (data.train, data.held_out))
    return Bits.of(data.quantized.bits_per_dim(Gaussian.fit(known).log_prob(held), known[0].numel()))


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Compute with n threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _report(o: Namespace, model: ScoreModel, results: dict[str, Any]) -> None:
    """`demo.md`, filled in."""
    from ..lab.report import Report, table

    bits = {name: Bits(**value) for name, value in results["bits_per_dim"].items()}
    (held, known, gauss), of, every = bits.values(), results["samplers"], samplers(model.sde)
    rows = [[s.name, of[s.name]["nfe"], s.samples, of[s.name]["seconds"], of[s.name]["frechet"]] for s in every]
    rows.append(["training digits", "", held.images, "", results["frechet_of_training_digits"]])
    chosen = [[s.name, f"{s.sde!r}, eta={s.eta:g}", f"{s.spacing.__name__}, {s.n} steps", repr(s.steps)] for s in every]
    said = {
        "samplers": table(["sampler", "network calls", "samples", "seconds", "distance to held-out digits"], rows),
        "choices": table(["sampler", "which process", "which times", "which steps"], chosen),
        "bits": table(
            ["images", "bits/dim", "number", "network calls"], [[k, b, b.images, b.nfe] for k, b in bits.items()]
        ),
        "accuracy": 100 * results["classifier_accuracy"],
        "gap": held.mean - known.mean,
        "gauss": gauss.mean - held.mean,
        "t_min": model.sde.t_min,
        "out": o.out,
    }
    text = (Path(__file__).parent / "demo.md").read_text().format(**{**results, **said})
    Report("Handwritten digits by a score-based model", [text]).write(o.out)
