"""`scoresde demo`."""

import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from ..checkpoint import exists
from ..data import Dataset, Digits
from ..files import write
from ..lab import origin
from ..lab.tour import Bits, judged, samplers, stations
from ..model import Karras, ScoreModel
from ..nn import UNet
from ..noise import seeded
from ..process import VP
from ..reference import Reference
from ..shapes import count
from ..training import Settings, train
from .common import place
from .folder import opened

SHOWN = 50  # samples in a picture


def run(o: Namespace) -> None:
    """Train, sample, measure, report."""
    from ..lab.report import path_picture, side_by_side

    began, device, data = monotonic(), place(o), Digits().load()
    count("steps", o.steps)
    with opened(o.out, {}, command="demo"), threads(1):  # batches this small lose time on a second thread
        model = _train(o, data, device)
        found, shown = judged(model, data, o.seed)
        side_by_side([(title, x[:SHOWN]) for title, x in shown], o.out / "samples.png")
        path_picture(stations(model, data.shape, o.seed), o.out / "path.png")
        results = {**origin(device), "seed": o.seed, "training_steps": o.steps, **found}
        results["seconds"] = monotonic() - began
        write(o.out / "results.json", json.dumps(results, indent=2).encode())
        _report(o, model, results)
    print(f"{monotonic() - began:.0f} s in all; open {o.out / 'report.html'}")


def _train(o: Namespace, data: Dataset, device: torch.device) -> ScoreModel:
    with seeded(o.seed):
        model = ScoreModel(UNet(data.shape), VP(), Karras(Reference.fit(data.train))).to(device)
    settings, folder = Settings(steps=o.steps, seed=o.seed), o.out / "model"
    return train(model, data, settings, folder=folder, source=Digits(), resume=exists(folder))


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
        "sets": results["sets_of_training_digits"],
        "shown": min(SHOWN, *(s.samples for s in every)),
        "out": o.out,
    }
    text = (Path(__file__).parent / "demo.md").read_text().format(**{**results, **said})
    Report("Handwritten digits by a score-based model", [text]).write(o.out)
