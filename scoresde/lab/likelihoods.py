"""Likelihoods as rows, one a sample, and what they come to: the flow's, two bounds, and the truth where it is known.

A sample that cannot be computed, as its score is not finite, has a row that says so, and does not end the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import grid
from ..exact import GaussianMixture
from ..likelihood import Dequantization, Quadrature, Uniform, continuous_elbo, elbo, log_prob, prior_mismatch
from ..likelihood.conditions import under
from ..noise import per_sample, seeds
from ..ode import SampleError
from ..process import Chain, LinearSDE, Score
from ..reference import Reference
from ..shapes import as_time, count, lifted, state
from ..units import Units
from .subjects import Row


@dataclass(frozen=True)
class Target:
    """Whose likelihood: a score of sde, samples x (n, *D) to measure, and what is known of the data they come from.

    discrete: how grey levels become continuous, None for continuous data. truth: the law that x was drawn from, if it
    is known. terms: times a sample of each of the two bounds, 0 for none; chain: steps of the discrete one, unless the
    process has a grid of its own. device: where the score is. labels: what it is told of each sample, (n,); None for
    nothing. units: those of x, so that rows tell of the data as they came. Raises ValueError unless x is a batch of
    finite numbers, terms at least 0, chain at least 2, and there is a label for every sample or none.
    """

    name: str
    sde: LinearSDE
    score: Score
    x: Tensor
    around: Reference
    discrete: Dequantization | None = None
    how: Quadrature = Quadrature()
    truth: GaussianMixture | None = None
    terms: int = 8
    chain: int = 1000
    device: torch.device | str = "cpu"
    labels: Tensor | None = None
    units: Units | None = None

    def __post_init__(self) -> None:
        state("x", self.x), count("terms", self.terms, least=0), count("chain", self.chain, least=2)
        if self.labels is not None and self.labels.shape != (len(self.x),):
            raise ValueError(f"labels must have shape ({len(self.x)},), got {tuple(self.labels.shape)}")

    @property
    def per(self) -> float:
        """Nats in a unit: bits/dim of discrete data, nats/dim of continuous ones."""
        return self.x[0].numel() * (math.log(2) if self.discrete else 1.0)

    @property
    def volume(self) -> float:
        """Nats of a sample in its own units beyond those in the network's."""
        return self.units.log_volume(self.x.shape[1:]) if self.units else 0.0

    @property
    def unit(self) -> str:
        """The name of that unit."""
        return "bits/dim" if self.discrete else "nats/dim"

    @property
    def key(self) -> str:
        """Its column in a row."""
        return self.unit.replace("/", "_per_")

    def rows(self, index: Sequence[int], seed: int) -> list[Row]:
        """One row for each of the samples index. All its randomness is the sample's own stream.

        For a sample that fails it is {"index": i, "error": what happened}; the others have the rows that they have
        without it, by halves of the batch, at most 1 + log2(n) times the work in all. Raises ValueError for numbers of
        samples that there are not.
        """
        if not all(0 <= i < len(self.x) for i in index):
            raise ValueError(f"index must hold numbers of samples from 0 to {len(self.x) - 1}, got {list(index)}")
        try:
            return self._rows(index, seed) if len(index) else []
        except SampleError as error:
            if len(index) == 1:
                return [{"index": index[0], "error": error.said.format(index[0])}]
        half = len(index) // 2
        return self.rows(index[:half], seed) + self.rows(index[half:], seed)

    def _rows(self, index: Sequence[int], seed: int) -> list[Row]:
        every, x = seeds(seed, max(index) + 1), lifted(self.x[list(index)]).to(self.device)
        noise, p = per_sample([every[i] for i in index]), self.sde.reverse(self.score)
        cond = self._told(index)
        found = log_prob(p, x, self.discrete, around=self.around, how=self.how, noise=noise, **cond)
        columns: dict[str, Any] = {
            "log_p": found.log_p - self.volume,
            self.key: found.values + self.volume / self.per,
            "probe_error": found.probe_error / self.per,
            "solver_error": found.solver_error / self.per,
            "end_bias": found.end_bias / self.per,
        }
        if self.terms:  # by fresh streams: what an adaptive solver has drawn depends on the batch
            columns |= self._bounds(x, noise.rows(0, len(index)), cond)
        if self.truth is not None:
            columns["truth"] = -self.truth.marginal(self.sde, self.sde.t_min).log_prob(x.cpu()) / self.per
        calls = {"nfe": found.nfe, "products": found.products}
        return [{"index": i, **{k: float(v[j]) for k, v in columns.items()}, **calls} for j, i in enumerate(index)]

    def _told(self, index: Sequence[int]) -> dict[str, Any]:
        """The conditions of these samples."""
        return {} if self.labels is None else {"label": self.labels[list(index)].to(self.device)}

    def _bounds(self, x: Tensor, noise: per_sample, cond: dict[str, Any]) -> dict[str, Tensor]:
        sde, discrete = self.sde, self.discrete
        ts = sde.grid() if hasattr(sde, "grid") else grid.uniform(sde, self.chain)
        grey, volume = discrete.quantized if discrete else None, 0.0
        if isinstance(discrete, Uniform):  # what the network was trained on
            volume = x[0].numel() * math.log(discrete.quantized.width)
            x, grey = discrete.quantized.dequantize(x, noise), None
        continuous = continuous_elbo(sde.reverse(self.score), x, grey, terms=self.terms, noise=noise, **cond)
        chain = elbo(Chain(sde, ts), self.score, x, grey, terms=self.terms, noise=noise, **cond)
        found = {"continuous_bound": continuous, "discrete_bound": chain}
        values = {name: (bound.nats - volume + self.volume) / self.per for name, bound in found.items()}
        return values | {f"{name}_error": bound.draws_error / self.per for name, bound in found.items()}

    def summary(self, rows: Sequence[Row]) -> Row:
        """Means with their standard errors, (n > 1), and how wrong the first may be, from the rows of n samples that
        have no error; how many have one is `failed`.
        """
        failed, rows = [row["index"] for row in rows if "error" in row], [row for row in rows if "error" not in row]
        n, sde, good = len(rows), self.sde, torch.ones(len(self.x), dtype=torch.bool)
        good[failed] = False
        how = f"{type(self.discrete).__name__}, an upper bound in the mean" if self.discrete else "density"
        how += f" at t = {sde.t_min:g}{under(self.score, self._told(range(0)))}"
        said = {
            self.key: f"probability flow, {how}",
            "truth": "its true value",
            "continuous_bound": f"upper bound of continuous time, {self.terms} times a sample",
            "discrete_bound": f"upper bound of the discrete chain, {self.terms} of its terms a sample",
        }
        table: list[Row] = []
        for column, title in said.items():
            if n and column in rows[0]:
                values = torch.tensor([row[column] for row in rows], dtype=torch.float64)
                error = float(values.std()) / math.sqrt(n) if n > 1 else math.nan
                table.append({"quantity": title, "mean": float(values.mean()), "standard_error": error})
        prior = self.how.prior.to("cpu") if self.how.prior else None
        x_t = self.x[good] * (sde.alpha(sde.t_min) if self.discrete else 1)
        errors = dict.fromkeys(("probes", "solver", "end", "prior"), math.nan)
        if n:
            errors = {
                "probes": math.sqrt(sum(row["probe_error"] ** 2 for row in rows)) / n,
                "solver": sum(row["solver_error"] for row in rows) / n,
                "end": abs(sum(row["end_bias"] for row in rows)) / n,
                "prior": prior_mismatch(sde, x_t, as_time(sde.t_min), prior) / self.per,
            }
        said_of = {"unit": self.unit, "samples": n, "failed": len(failed)}
        return {**said_of, "table": table, "errors_of_the_first": errors}
