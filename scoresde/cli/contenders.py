"""What `scoresde compare` compares: samplers for any number of network calls, and what their samples should be."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..ancestral import AnalyticDPM, Ancestral, ConsistentAnnealed
from ..checkpoint import load
from ..correct import NCSN, Langevin, ncsnv2_step
from ..exact import GaussianMixture
from ..metrics import Classifier, energy_distance, frechet, sliced_wasserstein, weights_error
from ..model import transport
from ..noise import iid
from ..ode import Heun
from ..predict import EulerMaruyama, Flow, ReverseDiffusion
from ..sample import Step
from ..sde import LinearSDE, Reverse, Score
from ..shapes import count

FRESH = 8  # sets of real samples that tell the floor
Steps = Callable[[Reverse, Tensor, Tensor], tuple[Step, ...]]


@dataclass(frozen=True)
class Subject:
    """A score of an SDE, and what its samples should be.

    x_0: data to fit variances to. fresh: sets of samples that are as good as samples can be. measures: from samples to
    a number that is best near 0. denoise: whether samples end with E[x_0 | x_t], one more network call.
    """

    name: str
    sde: LinearSDE
    score: Score
    shape: tuple[int, ...]
    x_0: Tensor
    fresh: list[Tensor]
    measures: dict[str, Callable[[Tensor], float]]
    denoise: bool

    @property
    def n(self) -> int:
        """Samples to draw."""
        return len(self.fresh[0])


def exact_subject(name: str, law: GaussianMixture, sde: LinearSDE, n: int, seed: int, device: torch.device) -> Subject:
    """The exact score of a law. Its samples should be those of the law of x_t at t = t_min."""
    end, g = law.marginal(sde, sde.t_min), torch.Generator().manual_seed(seed)
    truth = end.sample(count("n", n, least=2), g)
    level = float(torch.cat([end.log_prob(end.sample(10_000, g)) for _ in range(10)]).mean())
    measures: dict[str, Callable[[Tensor], float]] = {
        "sliced_wasserstein": lambda x: sliced_wasserstein(x, truth),
        "energy_distance": lambda x: energy_distance(x, truth),
        "log_density_gap": lambda x: float(end.log_prob(x.double()).mean()) - level,
        "mode_weights": lambda x: weights_error(end, x),
    }
    x_0, fresh = law.sample(1000, g).to(device), [end.sample(n, g) for _ in range(FRESH)]
    return Subject(name, sde, law.to(device).diffuse(sde), tuple(law.shape), x_0, fresh, measures, False)


def trained_subject(folder: Path, sde: LinearSDE | None, n: int | None, seed: int, device: torch.device) -> Subject:
    """The network of a checkpoint, read on `sde`. Its samples should be like the data that were held out."""
    found = load(folder, device=device)
    if found.source is None:
        raise ValueError("model must be a checkpoint that says what data it was trained on, and this one does not")
    data, own = found.source.load(), found.model.sde
    sde, held = sde or own, data.held_out
    n = count("n", max(2, min(len(held), 359)) if n is None else n, least=2)
    if len(held) < 2 or len(data.train) < n:
        raise ValueError(f"n must be at most {len(data.train)}, the number of samples to train on, got {n}")
    measures: dict[str, Callable[[Tensor], float]] = {}
    if data.train_labels is not None and len(data.shape) == 3:
        features = Classifier.fit(data.train, data.train_labels, seed).features
        at_data = features(held)
        measures["frechet"] = lambda x: frechet(features(x), at_data)
    measures["sliced_wasserstein"] = lambda x: sliced_wasserstein(x, held)
    measures["energy_distance"] = lambda x: energy_distance(x, held)
    score = found.model if sde == own else transport(found.model, own, sde)
    fresh = [part for part in data.train.split(n) if len(part) == n][:FRESH]
    name = f"the checkpoint {found.digest[:12]}, trained on {found.source!r}"
    return Subject(name, sde, score, data.shape, data.train[:1000].to(device), fresh, measures, True)


@dataclass(frozen=True)
class Method:
    """A sampler that has to be told its times alone.

    steps: from the process, the grid and data. each: network calls an interval; of a corrector alone, a level of noise.
    """

    name: str
    eta: float
    each: int
    steps: Steps
    levels: bool = False

    @property
    def least(self) -> int:
        """The fewest network calls."""
        return self.each * (1 + self.levels)

    def intervals(self, calls: int) -> int:
        """The intervals that `calls` network calls pay for."""
        return calls // self.each - self.levels


def methods(r: float, corrections: int) -> list[Method]:
    """The samplers of the literature. r: the signal-to-noise ratio of the corrector beside a predictor, whose step is
    2 r^2 sigma_t^2: that of `SNR(r)` where |score| = sqrt(d)/sigma, without its bias. corrections: Langevin steps a
    level of the corrector alone, whose size is NCSNv2's for the ratio of the levels.
    """

    def optimal(p: Reverse, ts: Tensor, x_0: Tensor) -> tuple[Step, ...]:
        return (AnalyticDPM.fit(p, x_0, ts, iid(torch.Generator().manual_seed(0))),)

    def annealed(p: Reverse, ts: Tensor, x_0: Tensor) -> tuple[Step, ...]:
        ratio = float(p.sde.log_snr(ts).diff().max().exp())
        return (Langevin(relative(ncsnv2_step(ratio, corrections)), corrections),)

    return [
        Method("DDPM ancestral, fixed-small", 1.0, 1, lambda *_: (Ancestral(0.0),)),
        Method("DDPM ancestral, fixed-large", 1.0, 1, lambda *_: (Ancestral(1.0),)),
        Method("DDPM ancestral, optimal", 1.0, 1, optimal),
        Method("Reverse diffusion", 1.0, 1, lambda *_: (ReverseDiffusion(),)),
        Method("Euler-Maruyama", 1.0, 1, lambda *_: (EulerMaruyama(),)),
        Method("Consistent annealed", 1.0, 1, lambda *_: (ConsistentAnnealed(),)),
        Method("Predictor-corrector", 1.0, 2, lambda *_: (Langevin(relative(2 * r**2)), ReverseDiffusion())),
        Method("Annealed Langevin", 1.0, corrections, annealed, levels=True),
        Method("DDIM", 0.0, 1, lambda *_: (Ancestral(),)),
        Method("Probability-flow ODE, Heun", 0.0, 2, lambda *_: (Flow(Heun()),)),
    ]


def relative(e: float) -> NCSN:
    """The step size e sigma_t^2."""
    return NCSN(2 * e, 1.0)
