"""What is measured: a score of an SDE, where its flow leads to, and what its samples should be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..data import Dataset
from ..exact import Empirical, GaussianMixture
from ..model import ScoreModel, transport
from ..noise import iid
from ..ode import Dopri5
from ..process import LinearSDE, Score
from ..reference import Reference
from ..shapes import count
from ..steps import Flow, Known, sample
from .metrics import Classifier, energy_distance, frechet, sliced_wasserstein, weights_error

FRESH = 8  # sets of real samples that tell the floor
Measures = dict[str, Callable[[Tensor], float]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A score of an SDE, and what its samples should be.

    x_0: data to fit variances and references to. fresh: sets of samples that are as good as samples can be. measures:
    from samples to a number that is best near 0. denoise: whether samples end with E[x_0 | x_t], one more network call.
    tol: the tolerance that the flow is solved to where a truth is needed. standardised: whether samples are in units in
    which the data have mean 0 and deviation 1, and so are distances.
    """

    name: str
    sde: LinearSDE
    score: Score
    shape: tuple[int, ...]
    x_0: Tensor
    fresh: list[Tensor]
    measures: Measures
    denoise: bool = False
    tol: float = 1e-10
    standardised: bool = False

    @property
    def n(self) -> int:
        """How many samples to draw: as many as a fresh set has."""
        return len(self.fresh[0])

    @cached_property
    def known(self) -> Known:
        """What solvers may know of the data."""
        return Known(Reference.fit(self.x_0), self.x_0)

    def starts(self, n: int, seed: int) -> Tensor:
        """n states x_T, in the type and place of the data."""
        noise = iid(torch.Generator().manual_seed(seed))
        return self.sde.prior((n, *self.shape), noise, self.x_0.dtype, self.x_0.device)

    def truth(self, x_T: Tensor) -> Tensor:
        """Where the flow takes states x_T at t_min, by Dormand and Prince's pair."""
        ts = torch.tensor([self.sde.T, self.sde.t_min], dtype=torch.float64)
        return sample(self.sde.reverse(self.score, 0.0), x_T, ts, Flow(Dopri5(self.tol, self.tol)))

    def measured(self, x: Tensor) -> dict[str, float]:
        """Each measure of samples."""
        return {k: measure(x.cpu()) for k, measure in self.measures.items()}


def floors(real: Sequence[Row]) -> dict[str, float]:
    """The mean size of each measure over sets of real samples."""
    return {k: sum(abs(row[k]) for row in real) / len(real) for k in real[0]}


def exact_subject(
    name: str, law: GaussianMixture, sde: LinearSDE, n: int, seed: int = 0, device: torch.device | str = "cpu"
) -> Subject:
    """The exact score of a law. Its samples should be those of the law of x_t at t = t_min."""
    end, g = law.marginal(sde, sde.t_min), torch.Generator().manual_seed(seed)
    truth = end.sample(count("n", n, least=2), g)
    many = (part for _ in range(10) for part in end.sample(10_000, g).split(500))  # which a cache holds
    level = float(torch.cat([end.log_prob(part) for part in many]).mean())
    measures: Measures = {
        **_distances(truth),
        "log_density_gap": lambda x: float(end.log_prob(x.double()).mean()) - level,
        "mode_weights": lambda x: weights_error(end, x),
    }
    x_0, fresh = law.sample(1000, g).to(device), [end.sample(n, g) for _ in range(FRESH)]
    return Subject(name, sde, law.to(device).diffuse(sde), tuple(law.shape), x_0, fresh, measures)


def memorised_subject(
    data: Tensor, sde: LinearSDE, n: int, seed: int = 0, device: torch.device | str = "cpu"
) -> Subject:
    """The exact score of data (N, *D) themselves, as a law of N points."""
    data, g = data.to(device, torch.float64), torch.Generator().manual_seed(seed)
    end = Empirical(data).diffuse(sde)
    truth, *fresh = (end.sample(n, sde.t_min, g) for _ in range(1 + FRESH))
    return Subject("the data themselves", sde, end, tuple(data.shape[1:]), data, fresh, _distances(truth), tol=1e-8)


def trained_subject(
    model: ScoreModel, data: Dataset, sde: LinearSDE | None = None, n: int | None = None, seed: int = 0
) -> Subject:
    """A network, read on `sde`, its own unless given. Its samples should be like the data that were held out."""
    held, sde = data.values(data.held_out), sde or model.sde
    n = count("n", max(2, min(len(held), 359)) if n is None else n, least=2)
    if len(held) < 2 or len(data.train) < n:
        raise ValueError(f"n must be at most {len(data.train)}, the number of samples to train on, got {n}")
    measures = _distances(held)
    if data.train_labels is not None and len(data.shape) == 3:
        features = Classifier.fit(data.values(data.train), data.train_labels, seed).features
        at_data = features(held)
        measures = {"frechet": lambda x: frechet(features(x), at_data), **measures}
    fresh = [data.values(part) for part in data.train.split(n)[:FRESH] if len(part) == n]
    x_0 = data.values(data.train[:1000]).to(next(model.parameters()).device)
    score = transport(model, model.sde, sde)
    own = data.units is not None
    return Subject("a network", sde, score, data.shape, x_0, fresh, measures, True, 1e-5, standardised=own)


def _distances(truth: Tensor) -> Measures:
    return {
        "sliced_wasserstein": lambda x: sliced_wasserstein(x, truth),
        "energy_distance": lambda x: energy_distance(x, truth),
    }
