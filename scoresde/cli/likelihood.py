"""`scoresde likelihood`."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .. import likelihood as of
from ..exact import GaussianMixture
from ..files import write
from ..lab import Problem, Target, origin
from ..process import LinearSDE
from ..progress import bar
from ..reference import Reference
from ..shapes import count
from .common import as_lines, join_processes, model_of, one_subject, place, read_lines, recipe, source_of
from .parts import read

KINDS: dict[str, type[Any]] = {"uniform": of.Uniform, "truncated-normal": of.TruncatedNormal, "decoded": of.Decoded}


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
                lines.write(as_lines(subject.rows(index, o.seed)))
            except RuntimeError as error:
                raise RuntimeError(f"in the batch of samples {index[0]} to {index[-1]}: {error}") from error
            lines.flush()
            shown.update(len(index))
    _barrier()
    if rank == 0:
        _gather(o.out)
        rows = [row for row in read_lines(file) if row["index"] < len(subject.x)]
        summary = subject.summary(rows)
        write(o.out / "summary.json", json.dumps({**origin(), **summary}, indent=2).encode())
        print(_said(rows, subject, summary, o))


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
    how = _how(o, prior)
    return Target(
        f"{found.digest} on {source!r}", sde, found.model, x, around, discrete, how, None, o.terms, o.chain, device
    )


def _exact(o: Namespace, device: torch.device) -> Target:
    law = read("law", o.law, Problem).law()
    sde, g = read("sde", o.sde or "vp", LinearSDE), torch.Generator().manual_seed(o.seed)
    around = Reference.fit(law.sample(1000, g))
    # one at a time, so that the first samples are the same for every n
    x = torch.cat([law.sample(1, g) for _ in range(count("n", 200 if o.n is None else o.n))])
    prior = around.prior(sde, tuple(law.shape)).to(device) if o.fitted_prior else None
    score, how = law.to(device).diffuse(sde), _how(o, prior)
    return Target(f"exact {o.law}", sde, score, x, around, None, how, law, o.terms, o.chain, device)


def _gather(out: Path) -> None:
    """Into one file, in order, what processes have left, without a line that was cut off."""
    whole, parts = out / "likelihood.jsonl", sorted(out.glob("part-*.jsonl"))
    rows = {row["index"]: row for file in (whole, *parts) for row in read_lines(file)}
    write(whole, as_lines(rows[i] for i in sorted(rows)).encode())
    for part in parts:
        part.unlink()


def _said(rows: list[dict[str, Any]], subject: Target, found: dict[str, Any], o: Namespace) -> str:
    """What is printed."""
    n = len(rows)
    lines = [f"{n} samples ({'exact law' if o.law else o.split}), in {subject.unit}, +- the standard error over them"]
    for row in found["table"]:
        spread = f" +- {row['standard_error']:.4f}" if n > 1 else ""
        lines.append(f"  {row['mean']:9.4f}{spread}  {row['quantity']}")
    lines.append(
        "errors of the first: probes {probes:.1g}, solver {solver:.1g}; against the density at t = 0 {end:.1g}, under "
        "the prior at T {prior:.1g}".format(**found["errors_of_the_first"])
    )
    if subject.truth is not None:
        off = [row[subject.key] - row["truth"] for row in rows]
        lines.append(f"first less truth: {sum(off) / n:.2g} in the mean, {max(map(abs, off)):.2g} at most")
    calls = "{nfe:.0f} network calls and {products:.0f} vector-Jacobian products a batch".format(**rows[0])
    return "\n".join([*lines, f"{calls}; one line a sample in {o.out / 'likelihood.jsonl'}"])


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
