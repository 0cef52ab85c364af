"""`scoresde likelihood`."""

import json
import math
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import grid
from .. import likelihood as of
from ..exact import GaussianMixture
from ..lab import Problem, origin
from ..noise import per_sample, seeds
from ..process import Chain, LinearSDE, Score
from ..progress import bar
from ..reference import Reference
from ..shapes import as_time, count
from ..values import write
from .common import as_lines, join_processes, model_of, one_subject, place, read_lines, recipe, source_of
from .parts import read

KINDS: dict[str, type[Any]] = {"uniform": of.Uniform, "truncated-normal": of.TruncatedNormal, "decoded": of.Decoded}


@dataclass(frozen=True)
class Target:
    """Whose likelihood: a score, samples x to measure, and what is known of the data they come from."""

    name: str
    sde: LinearSDE
    score: Score
    x: Tensor
    around: Reference
    discrete: of.Dequantization | None
    how: of.Quadrature
    truth: GaussianMixture | None = None

    @property
    def unit(self) -> float:
        """Nats in a unit of the report: bits/dim of discrete data, nats/dim of continuous ones."""
        return self.x[0].numel() * (math.log(2) if self.discrete else 1.0)

    @property
    def key(self) -> str:
        """The name of that unit in a row."""
        return "bits_per_dim" if self.discrete else "nats_per_dim"


def run(o: Namespace) -> None:
    """Compute, print the mean, and write one line a sample."""
    count("batch", o.batch), count("terms", o.terms, least=0), count("chain", o.chain, least=2)
    one_subject(o)
    rank, device = join_processes(), place(o)
    subject = (_exact if o.law else _trained)(o, device)
    kept = ("seed", "split", "method", "trace", "dequantization", "draws", "fitted_prior", "terms", "chain")
    if rank == 0:
        recipe(o.out, subject=subject.name, sde=subject.sde, **{k: getattr(o, k) for k in kept})
        _gather(o.out)
    _barrier()
    file = o.out / "likelihood.jsonl"
    done = {row["index"] for row in read_lines(file)}
    processes = dist.get_world_size() if dist.is_initialized() else 1
    todo = [i for i in range(len(subject.x)) if i not in done][rank::processes]
    part = o.out / f"part-{rank}.jsonl" if processes > 1 else file
    shown = bar(total=len(todo), desc="likelihood", disable=rank > 0)
    with part.open("a") as lines, shown:
        for start in range(0, len(todo), o.batch):
            index = todo[start : start + o.batch]
            try:
                found = rows_of(o, subject, index, device)
            except RuntimeError as error:
                raise RuntimeError(f"in the batch of samples {index[0]} to {index[-1]}: {error}") from error
            lines.write(as_lines(found))
            lines.flush()
            shown.update(len(index))
    _barrier()
    if rank == 0:
        _gather(o.out)
        print(_summary(o, [row for row in read_lines(file) if row["index"] < len(subject.x)], subject))


def _how(o: Namespace, prior: GaussianMixture | None) -> of.Quadrature:
    return of.Quadrature(read("method", o.method, object), read("trace", o.trace, of.Trace), prior=prior)


def _trained(o: Namespace, device: torch.device) -> Target:
    if o.model is None:
        raise ValueError("model must be the folder of a checkpoint, or --law must name a law")
    sde = read("sde", o.sde, LinearSDE)  # before the checkpoint, which may be of this process of your own
    found = model_of(o, device)
    if sde not in (None, found.model.sde):
        raise ValueError(f"sde belongs to --law: a checkpoint has its own, got {o.sde!r}")
    source = source_of(o, found)
    data = source.load()
    if data.shape != found.shape:
        raise ValueError(f"data must have the model's shape {found.shape}, got {data.shape}")
    x = data.held_out if o.split == "held-out" else data.train
    x = x[: count("n", o.n)] if o.n is not None else x
    if not len(x):
        raise ValueError(f"split must hold samples, but {o.split} has none")
    sde, around = found.model.sde, found.model.around or Reference.fit(data.train)
    prior = around.prior(sde, data.shape).to(device) if o.fitted_prior else None
    if o.draws > 1 and data.quantized is None:
        raise ValueError(f"draws must be 1 unless data are discrete, got {o.draws}")
    discrete = KINDS[o.dequantization](data.quantized, o.draws) if data.quantized else None
    return Target(f"{found.digest} on {source!r}", sde, found.model, x, around, discrete, _how(o, prior))


def _exact(o: Namespace, device: torch.device) -> Target:
    law = read("law", o.law, Problem).law()
    sde, g = read("sde", o.sde or "vp", LinearSDE), torch.Generator().manual_seed(o.seed)
    around = Reference.fit(law.sample(1000, g))
    # one at a time, so that the first samples are the same for every n
    x = torch.cat([law.sample(1, g) for _ in range(count("n", 200 if o.n is None else o.n))])
    prior = around.prior(sde, tuple(law.shape)).to(device) if o.fitted_prior else None
    return Target(f"exact {o.law}", sde, law.to(device).diffuse(sde), x, around, None, _how(o, prior), law)


def _gather(out: Path) -> None:
    """Into one file, in order, what processes have left, without a line that was cut off."""
    whole, parts = out / "likelihood.jsonl", sorted(out.glob("part-*.jsonl"))
    rows = {row["index"]: row for file in (whole, *parts) for row in read_lines(file)}
    write(whole, as_lines(rows[i] for i in sorted(rows)).encode())
    for part in parts:
        part.unlink()


def rows_of(o: Namespace, subject: Target, index: list[int], device: torch.device) -> list[dict[str, float]]:
    """One row a sample. All its randomness is the sample's own stream."""
    sde, discrete, every = subject.sde, subject.discrete, seeds(o.seed, index[-1] + 1)
    noise, x = per_sample([every[i] for i in index]), subject.x[index].to(device)
    p = sde.reverse(subject.score)
    found = of.log_prob(p, x, discrete, around=subject.around, how=subject.how, noise=noise)
    columns: dict[str, Any] = {
        "log_p": found.log_p,
        subject.key: found.values,
        "probe_error": found.probe_error / subject.unit,
        "solver_error": found.solver_error / subject.unit,
        "end_bias": found.end_bias / subject.unit,
    }
    if o.terms:
        noise = noise.rows(0, len(index))  # an adaptive solver's draws depend on the batch; these do not follow it
        ts = sde.grid() if hasattr(sde, "grid") else grid.uniform(sde, o.chain)
        grey, volume = discrete.quantized if discrete else None, 0.0
        if isinstance(discrete, of.Uniform):  # what the network was trained on
            volume = x[0].numel() * math.log(discrete.quantized.width)
            x, grey = discrete.quantized.dequantize(x, noise), None
        continuous = of.continuous_elbo(p, x, grey, terms=o.terms, noise=noise)
        chain = of.elbo(Chain(sde, ts), subject.score, x, grey, terms=o.terms, noise=noise)
        columns["continuous_bound"] = (continuous.nats - volume) / subject.unit
        columns["discrete_bound"] = (chain.nats - volume) / subject.unit
    if subject.truth is not None:
        columns["truth"] = -subject.truth.marginal(sde, sde.t_min).log_prob(x.cpu()) / subject.unit
    calls = {"nfe": found.nfe, "products": found.products}
    return [{"index": i, **{k: float(v[j]) for k, v in columns.items()}, **calls} for j, i in enumerate(index)]


def _summary(o: Namespace, rows: list[dict[str, float]], subject: Target) -> str:
    """What is printed; the same numbers go to summary.json."""
    n, sde, key, unit = len(rows), subject.sde, subject.key, "bits/dim" if subject.discrete else "nats/dim"
    flow = f"probability flow, density at t = {sde.t_min:g}"
    said = {
        key: f"probability flow, {o.dequantization}, an upper bound in the mean" if subject.discrete else flow,
        "truth": "its true value",
        "continuous_bound": f"upper bound of continuous time, {o.terms} times a sample",
        "discrete_bound": f"upper bound of the discrete chain, {o.terms} of its terms a sample",
    }
    lines = [f"{n} samples ({'exact law' if o.law else o.split}), in {unit}, +- the standard error over them"]
    table: list[dict[str, Any]] = []
    for column, title in said.items():
        if column in rows[0]:
            values = torch.tensor([row[column] for row in rows], dtype=torch.float64)
            mean, error = float(values.mean()), float(values.std()) / math.sqrt(n) if n > 1 else math.nan
            table.append({"quantity": title, "mean": mean, "standard_error": error})
            lines.append(f"  {mean:9.4f}" + (f" +- {error:.4f}" if n > 1 else "") + f"  {title}")
    prior = subject.how.prior.to("cpu") if subject.how.prior else None
    x_t = sde.alpha(sde.t_min) * subject.x
    errors = {
        "probes": math.sqrt(sum(row["probe_error"] ** 2 for row in rows)) / n,
        "solver": sum(row["solver_error"] for row in rows) / n,
        "end": abs(sum(row["end_bias"] for row in rows)) / n,
        "prior": of.prior_mismatch(sde, x_t, as_time(sde.t_min), prior) / subject.unit,
    }
    results = {**origin(), "unit": unit, "samples": n, "table": table, "errors_of_the_first": errors}
    write(o.out / "summary.json", json.dumps(results, indent=2).encode())
    lines.append(
        "errors of the first: probes {probes:.1g}, solver {solver:.1g}; against the density at t = 0 {end:.1g}, under "
        "the prior at T {prior:.1g}".format(**errors)
    )
    if subject.truth is not None:
        off = [row[key] - row["truth"] for row in rows]
        lines.append(f"first less truth: {sum(off) / n:.2g} in the mean, {max(map(abs, off)):.2g} at most")
    calls, products = rows[0]["nfe"], rows[0]["products"]
    lines.append(f"{calls:.0f} network calls and {products:.0f} vector-Jacobian products a batch; one line a sample in")
    return "\n".join(lines) + f" {o.out / 'likelihood.jsonl'}"


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
