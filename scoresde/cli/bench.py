"""`scoresde bench`."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from .. import lab
from ..checkpoint import Checkpoint
from ..data import Dataset, Digits
from ..process import LinearSDE
from ..progress import bar
from ..shapes import count
from .common import as_array, as_bytes, code_of, data_of, measured, model_of, place
from .folder import Folder, Journal, opened, require_fitting
from .options import INVERSE
from .parts import read, read_steps
from .plan import duration, seconds_a_call, tell
from .posteriors import measure as measure_posteriors

LAWS = {"modes": lab.Modes(), "lattice": lab.Lattice(), "digits": lab.DigitClasses()}


def run(o: Namespace) -> None:
    """Measure, and write a report."""
    if o.inverse:
        return measure_posteriors(o)
    if o.method:
        raise ValueError(f"method must not be given without inverse, got {o.method}")
    if alone := sorted({*(o.problems or ())} & {*INVERSE}):
        raise ValueError(f"problems must be given with inverse to be of inverse problems, got {', '.join(alone)}")
    mine = read_steps(o)
    on_flow, noisy = ([method for method in mine if bool(method.eta) == noise] for noise in (False, True))
    measure(o, [*lab.flows(on_flow), *lab.diffusions(noisy)])


def measure(
    o: Namespace, solvers: list[lab.Solver], packages: Sequence[str] = (), skipped: dict[str, str] | None = None
) -> None:
    """The same with any solvers; packages: whose versions to tell beside; skipped: those that could not be used."""
    from ..lab.pages import bench_page

    began, device = monotonic(), place(o)
    o = _filled(o, {solver.name for solver in solvers})
    solvers = [solver for solver in solvers if not o.only or solver.name in o.only]
    found = model_of(o, device) if o.model else None
    of = data_of(o, found) if found else None
    kept = {"seed": o.seed, "n": o.n, "n_sde": o.n_sde, "device": device.type, "sde": o.sde}
    kept |= {"model": found and found.digest, "data": of and of[1].digest, "command": "bench"}
    cells = [(s, k) for s in solvers for k in sorted(set(o.nfe_sde if s.weak else o.nfe))]
    if not cells:
        raise ValueError("only must leave a solver to run, got none")
    every, floors = list(product(dict.fromkeys(o.problems), o.processes.items())), {}
    if o.dry_run:
        require_fitting(o.out, code_of(o), **kept)
        (problem, (_, sde)), calls = every[0], sum(k for _, k in cells) * len(every)
        subject = _subject(o, problem, sde, device, found, of and of[1])
        x = subject.starts(max(o.n, o.n_sde), o.seed)
        each = seconds_a_call(subject.score, x, torch.tensor(sde.T, dtype=torch.float64))
        names = ", ".join(f"{problem} on {process}" for problem, (process, _) in every)
        return tell(
            f"{len(cells)} runs of {len({s.name for s in solvers})} solvers for each of {names}, into {o.out}",
            f"at least {duration(calls * each)}: {calls:,} calls of {len(x)} samples at {each:.2g} s, and the truth",
        )
    with opened(o.out, code_of(o), **kept) as folder:
        rows = folder.rows("results.jsonl", "problem", "process", "solver", "spacing", "budget")
        for problem, (process, sde) in every:
            here = cache(partial(_subject, o, problem, sde, device, found, of and of[1]))
            todo = [(s, k) for s, k in cells if (problem, process, s.name, s.grid, k) not in rows]
            floors[f"{problem}-{process}"] = lab.floors(measured(folder, f"{problem}-{process}", here))
            if not todo:
                continue
            journal = Journal(here().score, folder)
            subject = replace(here(), score=journal)
            truth = _truth(subject, folder, f"{problem}-{process}", o, journal)
            for solver, calls in bar(todo, desc=f"{problem}, {process}", unit="run"):
                journal.start(folder.of, problem, process, solver.name, solver.grid, calls)
                (row,) = lab.bench(subject, [(solver, calls)], o.n, o.n_sde, o.seed, truth)
                rows.add({"problem": problem, "process": process, **journal.done(row)})
        made: dict[str, Any] = {
            **lab.origin(device, ("scoresde", "torch", *packages)),
            "seconds": round(monotonic() - began),
        }
        shown = [row for row in rows.values() if row["problem"] in o.problems and row["process"] in o.processes]
        bench_page(shown, floors, {**made, "skipped": skipped or {}, "floors": floors}, o.out)
    print(f"{monotonic() - began:.0f} s; open {o.out / 'report.html'}")


def _filled(o: Namespace, names: set[str]) -> Namespace:
    """The options with their defaults, checked; the processes by name."""
    if o.sde and o.processes:
        raise ValueError(f"sde must not be given beside processes, got {o.sde!r}")
    full, every, sde = o.full, ("modes", "lattice", "digits", "memorised"), read("sde", o.sde, LinearSDE)
    defaults: dict[str, Any] = {
        "problems": ("model",) if o.model else every if full else ("modes", "digits"),
        "processes": ("vp", "ve", "edm") if full else ("vp",),
        "nfe": (5, 6, 8, 10, 15, 20, 40) if full else (6, 10, 20),
        "nfe_sde": (10, 20, 50, 100, 200) if full else (10, 20, 50),
        "n": 384 if full else 128,
        "n_sde": 4000 if full else 1000,
    }
    o = Namespace(**{**vars(o), **{k: v for k, v in defaults.items() if getattr(o, k) is None}})
    o.sde, o.processes = sde, {type(sde).__name__: sde} if sde else {name: lab.PROCESSES[name] for name in o.processes}
    if ("model" in o.problems) != (o.model is not None):
        raise ValueError(f"model must be given for the problem model, and only then, got {o.model}")
    for name, values in (("nfe", (*o.nfe, *o.nfe_sde)), ("n", (o.n, o.n_sde))):
        for value in values:
            count(name, value)
    if unknown := sorted(set(o.only or ()) - names):
        raise ValueError(f"only must name solvers, got {unknown}; there are {', '.join(sorted(names))}")
    return o


def _subject(
    o: Namespace, problem: str, sde: LinearSDE, device: torch.device, found: Checkpoint | None, data: Dataset | None
) -> lab.Subject:
    if problem == "model" and found and data:
        return replace(lab.trained_subject(found.model, data, sde, None, o.seed), denoise=False)
    if problem == "memorised":
        digits = Digits().load()
        return lab.memorised_subject(torch.cat([digits.train, digits.held_out]), sde, o.n_sde, o.seed, device)
    return lab.exact_subject(repr(LAWS[problem]), LAWS[problem].law(), sde, o.n_sde, o.seed, device)


def _truth(subject: lab.Subject, folder: Folder, name: str, o: Namespace, journal: Journal) -> Tensor:
    """The flow's end, kept for runs that go on."""
    x_T = subject.starts(o.n, o.seed + 1)

    def solved() -> bytes:
        journal.start(folder.of, name)
        content = as_bytes(subject.truth(x_T).cpu().numpy())
        journal.done({})
        return content

    return torch.from_numpy(as_array(folder.kept(f"truth-{name}.npy", solved))).to(x_T)
