"""`scoresde demo`: from the bundled digits to samples, likelihoods and a report."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from .. import grid
from ..ancestral import Ancestral
from ..checkpoint import exists, write
from ..correct import SNR, Langevin
from ..count import Counted
from ..data import Dataset, Digits
from ..exact import Gaussian
from ..likelihood import Frame, log_prob
from ..loss import Karras as KarrasWeight
from ..metrics import Classifier, frechet, nearest
from ..model import Karras, ScoreModel, transport
from ..nn import UNet
from ..noise import iid, per_sample, seeded, seeds
from ..ode import Heun
from ..predict import Flow, ReverseDiffusion
from ..processes import VE, VP
from ..provenance import provenance
from ..report import Report, path_picture, side_by_side
from ..sample import Step, trajectory
from ..sde import LinearSDE, Score
from ..shapes import count
from ..train import Settings, train
from .common import Command, draw

SHOWN = 50  # samples in a picture


@dataclass(frozen=True)
class Sampler:
    """One choice of process (sde and eta), times (n steps of a grid) and steps, and the samples it is judged by."""

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


@dataclass(frozen=True)
class Row:
    """What came of a sampler."""

    sampler: Sampler
    nfe: int
    seconds: float
    distance: float


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


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Train on handwritten digits, sample with every family of sampler, and write a report: about three minutes.

    The folder gets the checkpoint, pictures, report.md and report.html. An interrupted demo goes on when called again.
    """

    steps: int = 1500
    """Training steps."""
    out: Path = Path("scoresde-demo")
    """The folder for everything that is written."""

    def run(self) -> None:
        """Train, sample, measure, report."""
        with threads(1):  # batches this small lose time on a second thread
            self._run(monotonic(), self.place(), Digits().load())

    def _run(self, began: float, device: torch.device, data: Dataset) -> None:
        count("steps", self.steps)
        model = self._train(data, device)
        assert data.train_labels is not None and data.held_out_labels is not None
        classifier = Classifier.fit(data.train, data.train_labels, self.seed)
        held = classifier.features(data.held_out)
        real = [part for part in data.train.split(len(held)) if len(part) == len(held)]
        floors = [frechet(classifier.features(part), held) for part in real]
        rows, shown = [], []
        for sampler in samplers(model.sde):
            score = Counted(score_on(model, sampler.sde))
            start = monotonic()
            p, n = sampler.sde.reverse(score, sampler.eta), sampler.samples
            x = draw(
                p, data.shape, sampler.ts, sampler.steps, seed=self.seed, n=n, device=device, progress=sampler.name
            )
            x = x.cpu()
            row = Row(sampler, score.nfe, monotonic() - start, frechet(classifier.features(x), held))
            print(f"{sampler.name}: {row.nfe} network calls, {row.seconds:.0f} s, Frechet distance {row.distance:.2f}")
            rows.append(row)
            shown.append((f"{sampler.name}, {row.nfe} network calls", x[:SHOWN]))
        near, index = nearest(x, data.train)
        shown.append(("training digits nearest to the ODE samples", data.train[index[:SHOWN]]))
        shown.append(("digits held out", data.held_out[:SHOWN]))
        side_by_side(shown, self.out / "samples.png")
        self._paths(model, data.shape, device)
        bits = {
            "held-out digits": self._bits(model, data.held_out, data, device),
            "training digits": self._bits(model, data.train[: len(data.held_out)], data, device),
            "held-out digits under the Gaussian fitted to the training digits": self._gaussian(data),
        }
        print(f"held-out digits: {bits['held-out digits']} bits/dim")
        results = {
            **provenance(device),
            "seed": self.seed,
            "training_steps": self.steps,
            "classifier_accuracy": classifier.accuracy(data.held_out, data.held_out_labels),
            "frechet_of_training_digits": sum(floors) / len(floors),
            "nearest_training_digit": float(near.mean()),
            "nearest_training_digit_of_held_out": float(nearest(data.held_out, data.train)[0].mean()),
            "samplers": {r.sampler.name: {"nfe": r.nfe, "seconds": r.seconds, "frechet": r.distance} for r in rows},
            "bits_per_dim": {name: asdict(value) for name, value in bits.items()},
            "seconds": monotonic() - began,
        }
        write(self.out / "results.json", json.dumps(results, indent=2).encode())
        report(rows, bits, results, self).write(self.out)
        print(f"{monotonic() - began:.0f} s in all; open {self.out / 'report.html'}")

    def _train(self, data: Dataset, device: torch.device) -> ScoreModel:
        sigma_data = float(data.train.std())
        with seeded(self.seed):
            model = ScoreModel(UNet(data.shape), VP(), Karras(sigma_data)).to(device)
        settings = Settings(steps=self.steps, weight=KarrasWeight(sigma_data), seed=self.seed)
        folder = self.out / "model"
        return train(model, data, settings, folder=folder, source=Digits(), resume=exists(folder))

    def _paths(self, model: ScoreModel, shape: tuple[int, ...], device: torch.device) -> None:
        """One sample of each sampler on its way, ten stations each."""
        rows = []
        for s in samplers(model.sde):
            p, noise = s.sde.reverse(score_on(model, s.sde), s.eta), per_sample(seeds(self.seed, 1))
            x_T = s.sde.prior((1, *shape), noise, torch.float32, device)
            path = list(trajectory(p, x_T, s.ts, *s.steps, noise=noise))
            times = s.ts if len(path) == len(s.ts) else torch.cat([s.ts[:1], s.ts])
            at = torch.linspace(0, len(path) - 1, 10).round().long().tolist()
            levels = [float((-s.sde.log_snr(times[i])).exp()) for i in at]
            rows.append(
                (
                    s.name,
                    torch.cat([path[i] for i in at]).cpu(),
                    [f"{level:.0f}" if level >= 10 else f"{level:.2g}" for level in levels],
                )
            )
        path_picture(rows, self.out / "path.png")

    def _bits(self, model: ScoreModel, x: Tensor, data: Dataset, device: torch.device) -> Bits:
        frame = Frame(model.sde, float(data.train.mean()), float(data.train.std()))
        p, noise = model.sde.reverse(model, 0.0), per_sample(seeds(self.seed, len(x)))
        found = log_prob(p, x.to(device), data.quantized, noise=noise, frame=frame)
        return Bits.of(found.bits_per_dim.cpu(), found.nfe)

    def _gaussian(self, data: Dataset) -> Bits:
        assert data.quantized is not None
        g = torch.Generator().manual_seed(self.seed)
        train, held = (data.quantized.dequantize(x.double(), iid(g)) for x in (data.train, data.held_out))
        return Bits.of(data.quantized.bits_per_dim(Gaussian.fit(train).log_prob(held), train[0].numel()))


def samplers(own: LinearSDE) -> tuple[Sampler, ...]:
    """The four families, for a network trained on `own`; another process is reached by transporting its score."""
    ve = VE(sigma_min=0.02, sigma_max=20.0)
    return (
        Sampler("DDPM ancestral", own, 1.0, grid.uniform, 100, (Ancestral(),)),
        Sampler("Predictor-corrector", own, 1.0, grid.quadratic, 60, (Langevin(SNR(0.16)), ReverseDiffusion())),
        Sampler("Annealed Langevin", ve, 1.0, grid.uniform, 39, (Langevin(SNR(0.3), n=5),)),
        Sampler("Probability-flow ODE", own, 0.0, grid.karras, 16, (Flow(Heun()),), samples=1000),
    )


def score_on(model: ScoreModel, sde: LinearSDE) -> Score:
    """The model's score for the marginals of `sde`."""
    return model if sde == model.sde else transport(model, model.sde, sde)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Compute with n threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def report(rows: list[Row], bits: dict[str, Bits], results: dict[str, Any], demo: Demo) -> Report:
    """The report of a demo."""
    again = f"scoresde demo --seed {demo.seed} --steps {demo.steps} --out {demo.out}"
    model, held, train_bits, gauss = demo.out / "model", *bits.values()
    r = Report("Handwritten digits by a score-based model")
    r.text(
        f"A U-Net was trained for {demo.steps} steps of denoising score matching on 1438 digits of 8x8 pixels and 17 "
        "grey levels; 359 digits were held out. One network then serves every sampler: a sampler is a choice of "
        "process, of times, and of steps, in one loop."
    )
    r.heading("Samples")
    r.picture("samples.png", "Samples of each sampler, not selected, and real digits.")
    floor, accuracy = results["frechet_of_training_digits"], results["classifier_accuracy"]
    r.table(
        ["sampler", "network calls", "samples", "seconds", "distance to held-out digits"],
        [[r.sampler.name, str(r.nfe), str(r.sampler.samples), f"{r.seconds:.1f}", f"{r.distance:.2f}"] for r in rows]
        + [["training digits", "", str(held.images), "", f"{floor:.2f}"]],
    )
    r.table(
        ["sampler", "which process", "which times", "which steps"],
        [
            [s.name, f"{s.sde!r}, eta={s.eta:g}", f"{s.spacing.__name__}, {s.n} steps", ", ".join(map(repr, s.steps))]
            for s in (row.sampler for row in rows)
        ],
    )
    r.text(
        "The distance is the Frechet distance in the 64 features of a small classifier that was fitted to the training "
        f"digits (it is right on {100 * accuracy:.1f} % of the held-out ones). It is no FID, and depends on the number "
        "of samples; the last row is what as many real digits get, the mean over four sets of them. One network call "
        "evaluates the network once for all the samples; one of them removes the last of the noise at the end."
    )
    near, held_near = results["nearest_training_digit"], results["nearest_training_digit_of_held_out"]
    r.text(
        f"Samples are not copies: the nearest training digit is {near:.2f} away from an ODE sample on average (root "
        f"mean square a pixel, pixels on [-1, 1]), and {held_near:.2f} from a held-out digit."
    )
    r.heading("From noise to digit")
    r.picture("path.png", "One sample of each sampler on its way. The numbers are the noise level sigma/alpha.")
    r.heading("Likelihood")
    r.table(
        ["images", "bits/dim", "number", "network calls"],
        [[name, str(b), str(b.images), str(b.nfe or "")] for name, b in bits.items()],
    )
    r.text(
        "Bits/dim of 17 grey levels under uniform dequantisation, by the probability flow with two Hutchinson probes "
        f"at each of 21 nodes, of the model's density at t = {VP().t_min:g}; +- is the standard error over images. A "
        f"model that knows nothing has log2(17) = {math.log2(17):.3f}. The gap between training and held-out digits is "
        f"{held.mean - train_bits.mean:.3f}; the fitted Gaussian is {gauss.mean - held.mean:.2f} worse."
    )
    r.heading("Go on")
    r.text("This report was made by the first command; the others use the checkpoint that it left.")
    r.commands(
        f"{again}\n"
        f"scoresde sample {model} --n 256 --steps 50 predictor:ancestral --eta 0 --out runs/ddim\n"
        f"scoresde sample {model} --n 256 predictor:dopri5 --out runs/ode\n"
        f"scoresde sample {model} --n 256 --steps 60 corrector:snr predictor:reverse-diffusion --out runs/pc\n"
        f"scoresde likelihood {model} --out runs/likelihood\n"
        f"scoresde train data:ring --steps 2000 --out runs/ring"
    )
    return r
