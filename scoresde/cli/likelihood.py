"""`scoresde likelihood`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import tyro
from torch import Tensor

from .. import grid
from ..chain import Chain
from ..checkpoint import load, write
from ..data import Array, Checkerboard, Digits, Images, Moons, Ring, SwissRoll
from ..elbo import continuous_elbo, elbo
from ..exact import GaussianMixture
from ..likelihood import Frame, gaussian_prior, log_prob, prior_mismatch
from ..noise import per_sample, seeds
from ..ode import Adams, Dopri5, RungeKutta, Tsit5
from ..problems import DigitClasses, Lattice, Modes, Problem
from ..processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from ..progress import bar
from ..provenance import provenance
from ..quantize import Decoded, Quantized, TruncatedNormal, Uniform
from ..sde import LinearSDE, Score
from ..shapes import as_time, count
from ..trace import Exact, Hadamard, Hutchinson, HutchPP
from .common import Command, as_lines, join_processes, read_lines, recipe

LAWS: dict[str, Problem] = {"mixture": Modes(), "lattice": Lattice(), "digits": DigitClasses()}


@dataclass(frozen=True)
class Subject:
    """Whose likelihood: a score, samples x to measure, and what is known of the data they come from."""

    name: str
    sde: LinearSDE
    score: Score
    x: Tensor
    known: Tensor
    quantized: Quantized | None
    prior: GaussianMixture | None = None
    truth: GaussianMixture | None = None

    @property
    def unit(self) -> float:
        """Nats in a unit of the report: bits/dim of discrete data, nats/dim of continuous ones."""
        return self.x[0].numel() * (math.log(2) if self.quantized else 1.0)


@dataclass(frozen=True, kw_only=True)
class Likelihood(Command):
    """The likelihood of data under a checkpoint, along its probability flow, with an error budget and two bounds.

    Grey levels are reported in bits/dim, continuous data in nats/dim, -log p / d; lower is better. The density is that
    of the model at t = t_min, where its flow ends. Beside it stand the bounds of the discrete chain and of continuous
    time, on the same samples. One line a sample goes to likelihood.jsonl, and an interrupted run goes on when called
    again; under torchrun the samples are shared out, and the lines are the same.
    """

    model: tyro.conf.Positional[Path | None] = None
    """The folder of the checkpoint."""
    data: None | Digits | Ring | Moons | SwissRoll | Checkerboard | Array | Images = None
    """The data; those that the model was trained on, unless given."""
    exact: Literal["mixture", "lattice", "digits"] | None = None
    """Instead of a checkpoint, an exact law, whose true density is shown beside: eight modes, 25 modes, digits."""
    sde: None | VP | VE | SubVP | Cosine | RectifiedFlow | EDM = None
    """The process of an exact law; VP unless given."""
    split: Literal["held-out", "train"] = "held-out"
    """Which part of the data."""
    n: int | None = None
    """How many of its samples, from the first on; all unless given, 200 of an exact law."""
    method: None | Adams | Dopri5 | Tsit5 | RungeKutta = None
    """The solver, of a fixed number of calls or with steps chosen for each sample: Dopri5 at 1e-6 up to 16 dimensions
    and Adams above, unless given."""
    trace: None | Exact | Hutchinson | Hadamard | HutchPP = None
    """The divergence; exact up to 16 dimensions and two fresh probes a step above, unless given."""
    dequantization: Uniform | TruncatedNormal | Decoded = Uniform()
    """How grey levels become continuous."""
    draws: int = 1
    """Draws of it, averaged inside the logarithm; more than one needs trace:exact."""
    fitted_prior: bool = False
    """Replace the prior N(0, sigma_T^2) by the Gaussian with the moments of the training data, diffused to T."""
    terms: int = 8
    """Times a sample for each of the two bounds; 0 leaves them out."""
    chain: int = 1000
    """Steps of the discrete chain, uniform in t; a model of a table of betas has its own."""
    batch: int = 128
    """Samples solved together. The values do not depend on it."""
    out: Path = Path("runs/likelihood")
    """The folder for the results."""

    def run(self) -> None:
        """Compute, print the mean, and write one line a sample."""
        count("batch", self.batch), count("terms", self.terms, least=0), count("chain", self.chain, least=2)
        rank, device = join_processes(), self.place()
        subject = self._trained(device) if self.exact is None else self._exact(device)
        kept = ("seed", "split", "method", "trace", "dequantization", "draws", "fitted_prior", "terms", "chain")
        if rank == 0:
            recipe(self.out, subject=subject.name, sde=subject.sde, **{k: getattr(self, k) for k in kept})
            self._gather()
        _barrier()
        rows = read_lines(self.out / "likelihood.jsonl")
        done = {row["index"] for row in rows}
        todo = [i for i in range(len(subject.x)) if i not in done][rank :: _processes()]
        part = self.out / (f"part-{rank}.jsonl" if _processes() > 1 else "likelihood.jsonl")
        shown = bar(total=len(todo), desc="likelihood", disable=rank > 0)
        with part.open("a") as lines, shown:
            for start in range(0, len(todo), self.batch):
                index = todo[start : start + self.batch]
                try:
                    found = self._values(subject, index, device)
                except RuntimeError as error:
                    raise RuntimeError(f"in the batch of samples {index[0]} to {index[-1]}: {error}") from error
                lines.write(as_lines(found))
                lines.flush()
                shown.update(len(index))
        _barrier()
        if rank == 0:
            self._gather()
            rows = [row for row in read_lines(self.out / "likelihood.jsonl") if row["index"] < len(subject.x)]
            print(self._summary(rows, subject))

    def _trained(self, device: torch.device) -> Subject:
        if self.model is None:
            raise ValueError("model must be the folder of a checkpoint, or --exact must name a law")
        if self.sde is not None:
            raise ValueError(f"sde belongs to --exact: a checkpoint has its own, got {self.sde!r}")
        found = load(self.model, device=device)
        source = self.data or found.source
        if source is None:
            raise ValueError("data must be given, since the checkpoint does not say what it was trained on")
        data = source.load()
        if data.shape != found.shape:
            raise ValueError(f"data must have the model's shape {found.shape}, got {data.shape}")
        x = data.held_out if self.split == "held-out" else data.train
        x = x[: count("n", self.n)] if self.n is not None else x
        if not len(x):
            raise ValueError(f"split must hold samples, but {self.split} has none")
        name = f"{found.digest} on {source!r}"
        sde = found.model.sde
        return Subject(name, sde, found.model, x, data.train, data.quantized, self._prior(sde, data.train, device))

    def _exact(self, device: torch.device) -> Subject:
        if self.model is not None or self.data is not None:
            raise ValueError(f"exact stands for both model and data: leave them out, got {self.model or self.data!r}")
        assert self.exact is not None
        law, sde = LAWS[self.exact].law(), self.sde or VP()
        g = torch.Generator().manual_seed(self.seed)
        known = law.sample(1000, g)
        # one at a time, so that the first samples are the same for every n
        x = torch.cat([law.sample(1, g) for _ in range(count("n", 200 if self.n is None else self.n))])
        score = law.to(device).diffuse(sde)
        return Subject(f"exact {self.exact}", sde, score, x, known, None, self._prior(sde, known, device), law)

    def _prior(self, sde: LinearSDE, known: Tensor, device: torch.device) -> GaussianMixture | None:
        return gaussian_prior(sde, known).to(device) if self.fitted_prior else None

    def _gather(self) -> None:
        """Into one file, in order, what processes have left, without a line that was cut off."""
        whole, parts = self.out / "likelihood.jsonl", sorted(self.out.glob("part-*.jsonl"))
        rows = {row["index"]: row for file in (whole, *parts) for row in read_lines(file)}
        write(whole, as_lines(rows[i] for i in sorted(rows)).encode())
        for part in parts:
            part.unlink()

    def _values(self, subject: Subject, index: list[int], device: torch.device) -> list[dict[str, float]]:
        """One row a sample. All its randomness is the sample's own stream."""
        sde, known, quantized = subject.sde, subject.known, subject.quantized
        every, x = seeds(self.seed, index[-1] + 1), subject.x[index].to(device)
        noise = per_sample([every[i] for i in index])
        frame = Frame(sde, float(known.mean()), float(known.std()))
        p = sde.reverse(subject.score, 0.0)
        found = log_prob(
            p,
            x,
            quantized,
            method=self.method,
            trace=self.trace,
            prior=subject.prior,
            dequantization=self.dequantization,
            draws=self.draws,
            noise=noise,
            frame=frame,
        )
        key = "bits_per_dim" if quantized else "nats_per_dim"
        columns: dict[str, Any] = {
            "log_p": found.log_p,
            key: found.values,
            "probe_error": found.probe_error / subject.unit,
            "solver_error": found.solver_error / subject.unit,
            "end_bias": found.end_bias / subject.unit,
        }
        if self.terms:
            noise = noise.rows(0, len(index))  # an adaptive solver's draws depend on the batch; these do not follow it
            r = sde.reverse(subject.score)
            ts = sde.grid() if hasattr(sde, "grid") else grid.uniform(sde, self.chain)
            grey, volume = quantized, 0.0
            if quantized and isinstance(self.dequantization, Uniform):  # what the network was trained on
                volume = x[0].numel() * math.log(quantized.width)
                x, grey = quantized.dequantize(x, noise), None
            continuous = continuous_elbo(r, x, grey, terms=self.terms, noise=noise)
            discrete = elbo(Chain(sde, ts), r, x, grey, terms=self.terms, noise=noise)
            columns["continuous_bound"] = (continuous.nats - volume) / subject.unit
            columns["discrete_bound"] = (discrete.nats - volume) / subject.unit
        if subject.truth is not None:
            columns["truth"] = -subject.truth.marginal(sde, sde.t_min).log_prob(x.cpu()) / subject.unit
        calls = {"nfe": found.nfe, "products": found.products}
        return [{"index": i, **{k: float(v[j]) for k, v in columns.items()}, **calls} for j, i in enumerate(index)]

    def _summary(self, rows: list[dict[str, float]], subject: Subject) -> str:
        """What is printed; the same numbers go to summary.json."""
        unit, key = ("bits/dim", "bits_per_dim") if subject.quantized else ("nats/dim", "nats_per_dim")
        n, sde = len(rows), subject.sde
        prior = subject.prior.to("cpu") if subject.prior else None
        lines = [
            f"{n} samples ({'exact law' if self.exact else self.split}), in {unit}, +- the standard error over them"
        ]
        table: list[dict[str, Any]] = []
        said = {
            key: f"probability flow, density at t = {sde.t_min:g}",
            "truth": "its true value",
            "continuous_bound": f"upper bound of continuous time, {self.terms} times a sample",
            "discrete_bound": f"upper bound of the discrete chain, {self.terms} of its terms a sample",
        }
        if subject.quantized:
            said[key] = f"probability flow, {self.dequantization!r}, an upper bound in the mean"
        for column, title in said.items():
            if column in rows[0]:
                values = torch.tensor([row[column] for row in rows], dtype=torch.float64)
                mean, error = float(values.mean()), float(values.std()) / math.sqrt(n) if n > 1 else math.nan
                table.append({"quantity": title, "mean": mean, "standard_error": error})
                lines.append(f"  {mean:9.4f}" + (f" +- {error:.4f}" if n > 1 else "") + f"  {title}")
        probes = math.sqrt(sum(row["probe_error"] ** 2 for row in rows)) / n
        solver = sum(row["solver_error"] for row in rows) / n
        end = abs(sum(row["end_bias"] for row in rows)) / n
        mismatch = prior_mismatch(sde, sde.alpha(sde.t_min) * subject.x, as_time(sde.t_min), prior) / subject.unit
        errors = {"probes": probes, "solver": solver, "end": end, "prior": mismatch}
        results = {**provenance(), "unit": unit, "samples": n, "table": table, "errors_of_the_first": errors}
        write(self.out / "summary.json", json.dumps(results, indent=2).encode())
        lines.append(
            f"errors of the first: probes {probes:.1g}, solver {solver:.1g}; against the density at t = 0 {end:.1g}, "
            f"under the prior at T {mismatch:.1g}"
        )
        if subject.truth is not None:
            off = [row[key] - row["truth"] for row in rows]
            lines.append(f"first less truth: {sum(off) / n:.2g} in the mean, {max(map(abs, off)):.2g} at most")
        lines.append(
            f"{rows[0]['nfe']:.0f} network calls and {rows[0]['products']:.0f} vector-Jacobian products a batch; one "
            f"line a sample in {self.out / 'likelihood.jsonl'}"
        )
        return "\n".join(lines)


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
