"""One network, four families of samplers: a sampler is a choice of process, of times and of steps, in one loop. What
the demo draws, and how good it is.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import monotonic

import torch
from torch import Tensor

from .. import grid
from ..data import Dataset
from ..exact import Gaussian
from ..likelihood import log_prob
from ..model import Counted, ScoreModel, transport
from ..noise import iid, per_sample, seeds
from ..ode import Heun
from ..process import VE, LinearSDE, Reverse
from ..steps import SNR, Ancestral, Flow, Langevin, ReverseDiffusion, Step, draw, trajectory
from .metrics import Classifier, frechet, nearest
from .subjects import Row

Samples = list[tuple[str, Tensor]]


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


def judged(model: ScoreModel, data: Dataset, seed: int, say: Callable[[str], None] = print) -> tuple[Row, Samples]:
    """How good a network and each of its samplers are on labelled images of grey levels, and the samples under titles.
    say: told of each result as it comes. Raises ValueError for data without labels or grey levels.
    """
    if data.held_out_labels is None or data.quantized is None:
        raise ValueError("data must be grey levels with labels, and have not both")
    classifier = Classifier.fit(data.train, data.train_labels, seed)
    held, said, shown = classifier.features(data.held_out), {}, []
    real = [frechet(classifier.features(x), held) for x in data.train.split(len(held)) if len(x) == len(held)]
    like, x = next(model.parameters()), data.train
    for s in samplers(model.sde):
        p, start = s.process(model), monotonic()
        x = draw(p, data.shape, s.ts, *s.steps, seeds=seeds(seed, s.samples), like=like).cpu()
        nfe, far, seconds = p.score.nfe, frechet(classifier.features(x), held), monotonic() - start  # type: ignore[attr-defined]
        said[s.name] = {"nfe": nfe, "seconds": seconds, "frechet": far}
        say(f"{s.name}: {nfe} network calls, {seconds:.0f} s, Frechet distance {far:.2f}")
        shown.append((f"{s.name}, {nfe} network calls", x))
    near, index = nearest(x, data.train)
    shown += [("training digits nearest to the ODE samples", data.train[index]), ("digits held out", data.held_out)]
    sets = {"held-out digits": data.held_out, "training digits": data.train[: len(data.held_out)]}
    bits = {name: _bits(model, x, data, seed) for name, x in sets.items()}
    bits["held-out digits under the Gaussian fitted to the training digits"] = _gaussian(data, seed)
    say(f"held-out digits: {bits['held-out digits']} bits/dim")
    found: Row = {
        "classifier_accuracy": classifier.accuracy(data.held_out, data.held_out_labels),
        "frechet_of_training_digits": sum(real) / len(real),
        "sets_of_training_digits": len(real),
        "nearest_training_digit": float(near.mean()),
        "nearest_training_digit_of_held_out": float(nearest(data.held_out, data.train)[0].mean()),
        "samplers": said,
        "bits_per_dim": {name: asdict(value) for name, value in bits.items()},
    }
    return found, shown


def stations(model: ScoreModel, shape: tuple[int, ...], seed: int, n: int = 10) -> list[tuple[str, Tensor, list[str]]]:
    """One sample of each sampler on its way: (name, x (n, *D), the noise level sigma/alpha at each station)."""
    rows, like = [], next(model.parameters())
    for s in samplers(model.sde):
        noise, p = per_sample(seeds(seed, 1)), s.process(model)
        x_T = s.sde.prior((1, *shape), noise, like.dtype, like.device)
        path = list(trajectory(p, x_T, s.ts, *s.steps, noise=noise))
        times = s.ts if len(path) == len(s.ts) else torch.cat([s.ts[:1], s.ts])
        at = torch.linspace(0, len(path) - 1, n).round().long().tolist()
        levels = [float((-s.sde.log_snr(times[i])).exp()) for i in at]
        said = [f"{level:.0f}" if level >= 10 else f"{level:.2g}" for level in levels]
        rows.append((s.name, torch.cat([path[i] for i in at]).cpu(), said))
    return rows


def _bits(model: ScoreModel, x: Tensor, data: Dataset, seed: int) -> Bits:
    noise, p = per_sample(seeds(seed, len(x))), model.sde.reverse(model)
    found = log_prob(p, x.to(next(model.parameters())), data.quantized, noise=noise)
    return Bits.of(found.bits_per_dim.cpu(), found.nfe)


def _gaussian(data: Dataset, seed: int) -> Bits:
    assert data.quantized is not None
    g = torch.Generator().manual_seed(seed)
    known, held = (data.quantized.dequantize(x.double(), iid(g)) for x in (data.train, data.held_out))
    return Bits.of(data.quantized.bits_per_dim(Gaussian.fit(known).log_prob(held), known[0].numel()))
