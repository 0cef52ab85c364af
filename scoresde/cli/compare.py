"""`scoresde compare`."""

from argparse import Namespace
from time import monotonic
from typing import Any

import numpy as np
import torch

from ..files import write
from ..lab import COMPARED, Problem, Subject, compare, exact_subject, origin, paths, trained_subject
from ..process import LinearSDE
from ..progress import bar
from ..shapes import count, number
from ..steps import METHODS, Method
from ..steps.catalogue import annealed_langevin, predictor_corrector
from .common import Rows, as_bytes, as_lines, model_of, one_subject, place, read_lines, recipe, source_of
from .parts import read, read_steps


def run(o: Namespace) -> None:
    """Compare, and write a report."""
    from ..lab.pages import compare_page

    began, device = monotonic(), place(o)
    count("batch", o.batch)
    every = _methods(o)
    budgets = [count("nfe", k) for k in o.nfe or ((20, 50, 100) if o.model else (20, 50, 100, 200, 500))]
    subject, of = _subject(o, device)
    if all(m.intervals(max(budgets) - subject.denoise) < 1 for m in every):
        raise ValueError(f"nfe must pay for one sampler at least, got {' '.join(map(str, budgets))}")
    kept = {k: getattr(o, k) for k in ("seed", "grid", "r", "corrections")}
    recipe(o.out, subject=of, sde=subject.sde, n=subject.n, **kept)
    cells = [(m, k) for k in sorted(set(budgets)) for m in every]
    rows = Rows(o.out / "results.jsonl", "method", "budget", keep=lambda row: (o.out / row.get("samples", "")).exists())
    todo = [(m, k) for m, k in cells if (m.name, k) not in rows]
    (o.out / "samples").mkdir(exist_ok=True)
    for row, x in bar(compare(subject, todo, o.grid, o.seed, o.batch), total=len(todo), desc="compare", unit="run"):
        if "skipped" not in row:
            name = row["method"].lower().replace(",", "").replace(" ", "-").replace("/", "_")
            row["samples"] = f"samples/{name}-{row['budget']}.npy"
            write(o.out / row["samples"], as_bytes(x.numpy()))
        rows.add(row)
    table = [rows[m.name, k] for m, k in cells]
    for row in table:
        if "skipped" in row:
            print(f"{row['method']} was not run with {row['budget']} network calls: {row['skipped']}")
    ran = [row for row in table if "skipped" not in row]
    if not ran:
        raise RuntimeError("no sampler could be run")
    least = [row for row in ran if row["budget"] == ran[0]["budget"]]
    samples = [(row["method"], torch.from_numpy(np.load(o.out / row["samples"]))) for row in least]
    made = {**origin(device), "seconds": round(monotonic() - began)}
    compare_page(subject, table, _paths(o, subject), samples, made, o.out)
    print(f"{monotonic() - began:.0f} s; open {o.out / 'report.html'}")


def _methods(o: Namespace) -> list[Method]:
    """Those of the literature, and your own."""
    r, n = number("r", o.r, above=0, most=0.7), count("corrections", o.corrections)
    told = {m.name: m for m in (predictor_corrector(r), annealed_langevin(n))}
    return [*(told.get(name, METHODS[name]) for name in COMPARED), *read_steps(o)]


def _subject(o: Namespace, device: torch.device) -> tuple[Subject, str]:
    """What is sampled, and what the recipe calls it."""
    sde = read("sde", o.sde, LinearSDE)
    one_subject(o)
    if o.model:
        found = model_of(o, device)
        return trained_subject(found.model, source_of(o, found).load(), sde, o.n, o.seed), found.digest
    law = read("law", o.law or "modes", Problem)
    n, sde = 4000 if o.n is None else o.n, sde or read("sde", "vp", LinearSDE)
    return exact_subject(repr(law), law.law(), sde, n, o.seed, device), repr(law)


def _paths(o: Namespace, subject: Subject) -> list[dict[str, Any]]:
    """Kept for runs that go on."""
    file = o.out / "paths.jsonl"
    if not file.is_file():
        write(file, as_lines(bar(paths(subject, o.grid, o.seed), desc="paths", unit="run")).encode())
    return read_lines(file)
