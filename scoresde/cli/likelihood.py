"""`scoresde likelihood`."""

import json
from argparse import Namespace
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from .. import likelihood
from ..checkpoint import Checkpoint
from ..data import Dataset
from ..exact import GaussianMixture
from ..files import write
from ..lab import Problem, Target, origin
from ..process import LinearSDE
from ..progress import bar, portions
from ..reference import Reference
from ..shapes import count
from ..values import plain
from .common import code_of, data_of, fitting, join_processes, label_of, model_of, one_subject, place, processes, wait
from .folder import Folder, opened, read_rows, require_fitting
from .parts import read
from .plan import duration, tell

KINDS: dict[str, type[Any]] = {
    "uniform": likelihood.Uniform,
    "truncated-normal": likelihood.TruncatedNormal,
    "decoded": likelihood.Decoded,
}
LINES = "likelihood.jsonl"
MEASURED = 8
"""Samples by which a dry run tells the time."""


def run(o: Namespace) -> int:
    """Compute, print the mean, and write one line a sample; 1 if some samples have no likelihood."""
    count("batch", o.batch), count("terms", o.terms, least=0), count("chain", o.chain, least=2)
    one_subject(o)
    rank, device = join_processes(), place(o)
    subject, of = (_exact if o.law else _trained)(o, device)
    kept = {k: getattr(o, k) for k in ("seed", "split", "dequantization", "draws", "fitted_prior", "terms", "chain")}
    kept |= {"sde": subject.sde, "method": repr(subject.how.method), "trace": repr(subject.how.trace), **of}
    if o.dry_run:
        require_fitting(o.out, code_of(o), command="likelihood", **kept)
        return _plan(o, subject) if rank == 0 else 0
    with opened(o.out, code_of(o), rank, command="likelihood", **kept) as folder:
        if rank == 0:
            _gather(folder)
        wait()
        done = {row["index"] for row in read_rows(o.out / LINES, folder.of, "index")}
        todo = [i for i in range(len(subject.x)) if i not in done][rank :: processes()]
        rows = folder.rows(f"part-{rank}.jsonl" if processes() > 1 else LINES, "index")
        with bar(total=len(todo), desc="likelihood", disable=rank > 0) as shown:
            for index in portions(todo, o.batch):
                try:
                    rows.add(*subject.rows(index, o.seed))
                except RuntimeError as error:
                    raise RuntimeError(f"in the batch of samples {index[0]} to {index[-1]}: {error}") from error
                shown.update(len(index))
        wait()
        return _report(o, subject, _gather(folder)) if rank == 0 else 0


def _plan(o: Namespace, subject: Target) -> int:
    """Say what would be computed, and how long that would take, by the first samples."""
    n, few = len(subject.x), min(MEASURED, len(subject.x))
    began = monotonic()
    subject.rows(range(few), o.seed)
    each = (monotonic() - began) / few
    shape, method, trace = "x".join(map(str, subject.x.shape[1:])), o.method or "usual", o.trace or "usual"
    tell(
        f"likelihoods of {n} samples of {shape} under {subject.name}, in {subject.unit}",
        f"{subject.sde!r}, method {method}, trace {trace}, {o.terms} terms a bound, into {o.out}",
        f"{duration(n * each)} or less, by {few} samples at {each:.2g} s each, as larger batches are faster",
    )
    return 0


def _report(o: Namespace, subject: Target, found: dict[int, dict[str, Any]]) -> int:
    """Write the summary and print it. Raises RuntimeError if there is not a row for every sample."""
    rows = [found[i] for i in sorted(found) if i < len(subject.x)]
    if len(rows) < len(subject.x):
        raise RuntimeError(f"only {len(rows)} of {len(subject.x)} samples have a row in {o.out / LINES}: call it again")
    summary = subject.summary(rows)
    write(o.out / "summary.json", json.dumps(plain({**origin(), **summary}), indent=2).encode())
    bad, good = [row for row in rows if "error" in row], [row for row in rows if "error" not in row]
    print(_said(good, subject, summary, o) if good else "no sample has a likelihood")
    for row in bad[:3]:
        print(f"not among them: {row['error']}")
    if bad:
        print(f"{len(bad)} of {len(rows)} samples have no likelihood; {o.out / LINES} says why")
    return int(bool(bad))


def _how(o: Namespace, prior: GaussianMixture | None) -> likelihood.Quadrature:
    return likelihood.Quadrature(
        read("method", o.method, object), read("trace", o.trace, likelihood.Trace), prior=prior
    )


def _trained(o: Namespace, device: torch.device) -> tuple[Target, dict[str, Any]]:
    if o.model is None:
        raise ValueError("model must be the folder of a checkpoint, or --law must name a law")
    sde = read("sde", o.sde, LinearSDE)  # before the checkpoint, which may be of this process of your own
    found = model_of(o, device)
    if sde not in (None, found.model.sde):
        raise ValueError(f"sde belongs to --law: a checkpoint has its own, got {o.sde!r}")
    source, data = data_of(o, found)
    x = data.held_out if o.split == "held-out" else data.train
    if o.n is not None and count("n", o.n) > len(x):
        raise ValueError(f"n must be at most {len(x)}, the samples of {o.split}, got {o.n}")
    x = data.values(x[: o.n])
    if not len(x):
        raise ValueError(f"split must hold samples, but {o.split} has none")
    sde, around = found.model.sde, found.around or data.around
    prior = around.prior(sde, data.shape).to(device) if o.fitted_prior else None
    if o.draws > 1 and data.quantized is None:
        raise ValueError(f"draws must be 1 unless data are discrete, got {o.draws}")
    discrete, how = KINDS[o.dequantization](data.quantized, o.draws) if data.quantized else None, _how(o, prior)
    name, one = f"{o.model} on {source!r}", label_of(o, found)
    labels = None if one is None else torch.full((len(x),), one)
    if o.own_labels:
        labels = _own_labels(o, found, data)[: len(x)]
    of = {"subject": found.digest, "data": data.digest, "label": one, "own_labels": o.own_labels}
    what = (name, sde, found.model, x, around, discrete, how, None, o.terms, o.chain, device, labels, found.units)
    return Target(*what), of


def _own_labels(o: Namespace, found: Checkpoint, data: Dataset) -> Tensor:
    """The labels of the samples of o.split. Raises ValueError where there are none that the network knows."""
    own = data.held_out_labels if o.split == "held-out" else data.train_labels
    classes = getattr(found.model.net, "classes", 0)
    if o.label is not None:
        raise ValueError(f"label must not be given beside own_labels, got {o.label}")
    if own is None or not 0 < data.classes <= classes:
        what = "has no classes" if not classes else f"has {classes} classes, and the data {data.classes} labels"
        raise ValueError(f"own_labels must not be given, since the network {what}")
    if found.names and data.names and found.names != data.names:
        raise ValueError(f"data must have the names of the model's labels, {found.names}, got {data.names}")
    return own


def _exact(o: Namespace, device: torch.device) -> tuple[Target, dict[str, Any]]:
    if o.label is not None or o.own_labels:
        raise ValueError("label and own_labels must not be given with a law, which has no classes")
    problem = read("law", o.law, Problem)
    law, n = problem.law(), 200 if o.n is None else o.n
    sde, g = read("sde", o.sde or "vp", LinearSDE), torch.Generator().manual_seed(o.seed)
    around = Reference.fit(law.sample(1000, g))
    # one at a time, so that the first samples are the same for every n
    x = torch.cat([law.sample(1, g) for _ in range(fitting(n, tuple(law.shape)))])
    prior = around.prior(sde, tuple(law.shape)).to(device) if o.fitted_prior else None
    score, how = law.to(device).diffuse(sde), _how(o, prior)
    target = Target(f"exact {o.law}", sde, score, x, around, None, how, law, o.terms, o.chain, device)
    return target, {"subject": repr(problem), "data": None}


def _gather(folder: Folder) -> dict[int, dict[str, Any]]:
    """Into one file, in order, what processes have left; the rows by their numbers."""
    whole, parts = folder.rows(LINES, "index"), sorted(folder.path.glob("part-*.jsonl"))
    rows = {key: row for part in (whole, *(folder.rows(p.name, "index") for p in parts)) for key, row in part.items()}
    whole.clear()
    whole.update({key: rows[key] for key in sorted(rows)})
    whole.write()
    for part in parts:
        part.unlink()
    return {i: row for (i,), row in whole.items()}


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
    return "\n".join([*lines, f"{calls}; one line a sample in {o.out / LINES}"])
