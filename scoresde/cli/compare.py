"""`scoresde compare`."""

from argparse import Namespace
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

import torch

from ..exact import GaussianMixture
from ..lab import (
    COMPARED,
    LINE,
    SPREAD,
    Problem,
    Subject,
    compare,
    density_paths,
    exact_rows,
    exact_subject,
    origin,
    paths,
    trained_subject,
)
from ..process import LinearSDE
from ..progress import bar
from ..shapes import count, number
from ..steps import METHODS, Method
from ..steps.catalogue import annealed_langevin, predictor_corrector
from .common import as_array, as_bytes, code_of, data_of, measured, model_of, one_subject, place
from .folder import Folder, Journal, opened, require_fitting
from .parts import read, read_steps
from .plan import duration, seconds_a_call, tell


def run(o: Namespace) -> None:
    """Compare, and write a report."""
    from ..lab.pages import MAPPED, compare_page

    began, device = monotonic(), place(o)
    count("batch", o.batch)
    every = _methods(o)
    budgets = [count("nfe", k) for k in o.nfe or ((20, 50, 100) if o.model else (20, 50, 100, 200, 500))]
    subject, of = _subject(o, device)
    if all(m.intervals(max(budgets) - subject.denoise) < 1 for m in every):
        raise ValueError(f"nfe must pay for one sampler at least, got {' '.join(map(str, budgets))}")
    kept = {k: getattr(o, k) for k in ("seed", "grid", "r", "corrections")} | of
    cells = [(m, k) for k in sorted(set(budgets)) for m in every]
    if o.dry_run:
        require_fitting(o.out, code_of(o), command="compare", sde=subject.sde, n=subject.n, **kept)
        return _plan(o, subject, [budget for _, budget in cells])
    with opened(o.out, code_of(o), command="compare", sde=subject.sde, n=subject.n, **kept) as folder:
        rows, journal = folder.rows("results.jsonl", "method", "budget"), Journal(subject.score, folder)
        subject = replace(subject, score=journal)
        for method, budget in bar(cells, desc="compare", unit="run"):
            if _whole(folder, rows.get((method.name, budget))):
                continue
            journal.start(folder.of, method.name, budget)
            ((row, x),) = compare(subject, [(method, budget)], o.grid, o.seed, o.batch)
            if "skipped" not in row:
                row["samples"] = _file(row)
                folder.keep(row["samples"], as_bytes(x.numpy()))
            rows.add(journal.done(row))
        table = [rows[m.name, k] for m, k in cells]
        for row in table:
            if "skipped" in row:
                print(f"{row['method']} was not run with {row['budget']} network calls: {row['skipped']}")
        ran = [row for row in table if "skipped" not in row]
        if not ran:
            raise RuntimeError("no sampler could be run")
        least = [row for row in ran if row["budget"] == ran[0]["budget"]]
        samples = [(row["method"], torch.from_numpy(as_array(folder.read(row["samples"]) or b""))) for row in least]
        real, lines = measured(folder, "compared", lambda: subject), _paths(o, subject, folder, journal)
        laws = _laws(o, subject.sde, cells, folder, "laws", LINE)
        gaussians = _laws(o, subject.sde, cells, folder, "gaussians", SPREAD)
        mapped = density_paths(subject.sde, [m for m in every if m.name in MAPPED], min(budgets), o.grid)
        made = {**origin(device), "seconds": round(monotonic() - began)}
        compare_page(subject, table, lines, samples, real, made, o.out, laws, mapped, gaussians)
    print(f"{monotonic() - began:.0f} s; open {o.out / 'report.html'}")


def _plan(o: Namespace, subject: Subject, budgets: list[int]) -> None:
    """Say what would be compared, and how long the network calls alone would take."""
    x = subject.starts(min(o.batch, subject.n), o.seed)
    each = seconds_a_call(subject.score, x, torch.tensor(subject.sde.T, dtype=torch.float64))
    calls = sum(budgets) * -(-subject.n // o.batch)
    tell(
        f"{len(budgets)} runs of {subject.n} samples each of {subject.name}, on {subject.sde!r}, into {o.out}",
        f"at least {duration(calls * each)}: {calls:,} network calls of {len(x)} samples at {each:.2g} s, and measures",
    )


def _file(row: dict[str, Any]) -> str:
    """Where the samples of a row are."""
    name = row["method"].lower().replace(",", "").replace(" ", "-").replace("/", "_")
    return f"samples/{name}-{row['budget']}.npy"


def _whole(folder: Folder, row: dict[str, Any] | None) -> bool:
    """Whether a row is there, and its samples too."""
    return row is not None and ("skipped" in row or folder.read(row["samples"]) is not None)


def _methods(o: Namespace) -> list[Method]:
    """Those of the literature, and your own."""
    r, n = number("r", o.r, above=0, most=0.7), count("corrections", o.corrections)
    told = {m.name: m for m in (predictor_corrector(r), annealed_langevin(n))}
    return [*(told.get(name, METHODS[name]) for name in COMPARED), *read_steps(o)]


def _subject(o: Namespace, device: torch.device) -> tuple[Subject, dict[str, Any]]:
    """What is sampled, and what the recipe says of it."""
    sde = read("sde", o.sde, LinearSDE)
    one_subject(o)
    if o.model:
        found = model_of(o, device)
        _, data = data_of(o, found)
        of = {"subject": found.digest, "data": data.digest}
        return trained_subject(found.model, data, sde, o.n, o.seed), of
    law = read("law", o.law or "modes", Problem)
    n, sde = 4000 if o.n is None else o.n, sde or read("sde", "vp", LinearSDE)
    return exact_subject(repr(law), law.law(), sde, n, o.seed, device), {"subject": repr(law), "data": None}


def _laws(
    o: Namespace, sde: LinearSDE, cells: list[tuple[Method, int]], folder: Folder, name: str, law: GaussianMixture
) -> list[dict[str, Any]]:
    """Of every sampler for such data, kept for runs that go on."""
    rows = folder.rows(f"{name}.jsonl", "method", "budget")
    left = [(m, k) for m, k in cells if (m.name, k) not in rows]
    for row in bar(exact_rows(sde, left, o.grid, law), desc=name, total=len(left), unit="run"):
        rows.add(row)
    return [rows[m.name, k] for m, k in cells]


def _paths(o: Namespace, subject: Subject, folder: Folder, journal: Journal) -> list[dict[str, Any]]:
    """Kept for runs that go on."""
    rows = folder.rows("paths.jsonl", "name")
    begin = partial(journal.start, folder.of, "paths")
    for row in bar(paths(subject, o.grid, o.seed, [name for (name,) in rows], begin), desc="paths", unit="run"):
        rows.add(row)
    journal.done({})
    return list(rows.values())
