"""`scoresde bench`."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import write
from ..convergence import Error, distance
from ..count import Counted
from ..progress import bar
from ..provenance import provenance
from ..report import Curve, Diagram, Report, curves
from ..sde import Score
from ..shapes import count
from .common import Command, as_bytes, as_lines, read_lines, recipe
from .compare import TITLES
from .solvers import Case, Solver, case, diffusions, flows

SWITCHED = 0.5  # deviations of the data: an error beyond it is taken for another mode
SHOWN = 9  # curves in a picture
FLOW = {"rms": "Root mean square error", "median": "Median error"}
Rows = Iterator[dict[str, Any]]
ProblemName = Literal["modes", "lattice", "digits", "memorised", "model"]
ProcessName = Literal["vp", "ve", "subvp", "cosine", "flow", "edm"]


class Clocked(Counted):
    """Counts calls, and the seconds spent in them."""

    def __init__(self, f: Score) -> None:
        super().__init__(f)
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        began = perf_counter()
        said = super().__call__(*args, **kwargs)
        self.seconds += perf_counter() - began
        return said


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure solvers against exact truth: error by network calls, on any of the problems, processes and grids.

    Solvers of the flow are measured by where they end, against the same flow solved to 1e-10; those of the reverse SDE
    by how far their samples are from fresh exact ones. One line a cell goes to results.jsonl, and everything to
    report.html; an interrupted run goes on when called again.
    """

    problems: tuple[ProblemName, ...] = ()
    """Laws whose score is exact: a ring of 8 modes, a lattice of 25, the classes of the digits (64 dimensions), and the
    digits themselves, memorised; or model. The first and the third, or the model, unless given; all four if --full."""
    model: Path | None = None
    """The folder of a checkpoint, for the problem `model`."""
    processes: tuple[ProcessName, ...] = ()
    """vp; also ve and edm if --full, unless given."""
    nfe: tuple[int, ...] = ()
    """Budgets of network calls for the flow: 6 10 20, and also 5 8 15 40 if --full, unless given."""
    nfe_sde: tuple[int, ...] = ()
    """Budgets for the reverse SDE: 10 20 50; and also 100 200 if --full, unless given."""
    only: tuple[str, ...] = ()
    """Names of the solvers to run, as the report has them; all unless given."""
    n: int | None = None
    """Starts of the flow: 128, or 384 if --full, unless given."""
    n_sde: int | None = None
    """Samples of the reverse SDE: 1000, or 4000 if --full, unless given."""
    full: bool = False
    """All problems, three processes, more budgets and samples."""
    out: Path = Path("runs/bench")
    """The folder for everything that is written."""

    def run(self) -> None:
        """Measure, and write a report."""
        self.measure([*flows(), *diffusions()], ("scoresde", "torch"))

    def measure(self, solvers: list[Solver], packages: tuple[str, ...], skipped: dict[str, str] | None = None) -> None:
        """The same with any solvers; packages: whose versions to tell; skipped: packages that could not be used."""
        began, device = monotonic(), self.place()
        problems = self.problems or (("model",) if self.model else ("modes", "lattice", "digits", "memorised"))
        if not (self.problems or self.model or self.full):
            problems = ("modes", "digits")
        if ("model" in problems) != (self.model is not None):
            raise ValueError(f"model must be given for the problem model, and only then, got {self.model}")
        processes = self.processes or (("vp", "ve", "edm") if self.full else ("vp",))
        budgets = self.nfe or ((5, 6, 8, 10, 15, 20, 40) if self.full else (6, 10, 20))
        budgets_sde = self.nfe_sde or ((10, 20, 50, 100, 200) if self.full else (10, 20, 50))
        n, n_sde = (384, 4000) if self.full else (128, 1000)
        n, n_sde = n if self.n is None else self.n, n_sde if self.n_sde is None else self.n_sde
        for name, values in (("nfe", (*budgets, *budgets_sde)), ("n", (n, n_sde))):
            for value in values:
                count(name, value)
        if unknown := sorted(set(self.only) - {solver.name for solver in solvers}):
            names = sorted({solver.name for solver in solvers})
            raise ValueError(f"only must name solvers, got {unknown}; there are {', '.join(names)}")
        solvers = [solver for solver in solvers if not self.only or solver.name in self.only]
        recipe(self.out, seed=self.seed, n=n, n_sde=n_sde, model=self.model, device=device.type)
        file = self.out / "results.jsonl"
        rows = {_key(row): row for row in read_lines(file)}
        write(file, as_lines(rows.values()).encode())
        floors: dict[str, dict[str, float]] = {}
        with file.open("a") as lines:
            for problem in dict.fromkeys(problems):
                for process in dict.fromkeys(processes):
                    here = case(problem, process, self.model, n_sde, self.seed, device)
                    floors[f"{problem}-{process}"] = {
                        k: float(np.mean([abs(measure(x.cpu())) for x in here.subject.fresh]))
                        for k, measure in here.subject.measures.items()
                    }
                    todo = [(s, k) for s in solvers for k in sorted(set(budgets_sde if s.weak else budgets))]
                    missing = [c for c in todo if (problem, process, c[0].name, c[0].grid, c[1]) not in rows]
                    for row in self._rows(here, missing, n, n_sde, device):
                        lines.write(as_lines([row]))
                        lines.flush()
                        rows[_key(row)] = row
        made = {**provenance(device, packages), "seconds": round(monotonic() - began), "skipped": skipped or {}}
        made["floors"] = floors
        kept = [row for row in rows.values() if row["problem"] in problems and row["process"] in processes]
        report(kept, floors, made, self.out)
        print(f"{monotonic() - began:.0f} s; open {self.out / 'report.html'}")

    def _rows(
        self, here: Case, cells: list[tuple[Solver, int]], n: int, n_sde: int, device: torch.device
    ) -> Iterator[dict[str, Any]]:
        """One row a cell that its budget pays for."""
        if not cells:
            return
        starts = {False: here.starts(n, self.seed + 1, device), True: here.starts(n_sde, self.seed + 2, device)}
        truth = self._truth(here, starts[False])
        for solver, calls in bar(cells, desc=f"{here.problem}, {here.process}", unit="run"):
            x_T, score, began = starts[solver.weak], Clocked(here.subject.score), perf_counter()
            try:
                x, said = solver.solve(here, score, x_T, calls)
            except (ValueError, RuntimeError) as error:  # what diverges, as some do in a few calls, stops no other
                yield {**_names(here, solver, calls), "skipped": str(error)}
                continue
            seconds = perf_counter() - began - said.get("seconds_to_fit", 0.0)
            if solver.weak:
                measured = {k: measure(x.cpu()) for k, measure in here.subject.measures.items()}
            else:
                switched = float((distance(x, truth) > SWITCHED * here.around.std).double().mean())
                measured = {**vars(Error.of(x, truth)), "switched": switched}
            yield {
                **_names(here, solver, calls),
                "nfe": score.nfe,
                **measured,
                "seconds": seconds,
                "overhead_us": 1e6 * (seconds - score.seconds) / max(1, score.nfe),
                "eta": solver.eta,
                **said,
                "subject": here.subject.name,
                "sde": repr(here.sde),
                "n": len(x_T),
                "seed": self.seed,
                "starts": f"seed {self.seed + 1 + solver.weak}",
            }

    def _truth(self, here: Case, x_T: Tensor) -> Tensor:
        """The flow's end, kept for runs that go on."""
        file = self.out / f"truth-{here.problem}-{here.process}.npy"
        if not file.is_file():
            write(file, as_bytes(here.truth(x_T).cpu().numpy()))
        return torch.from_numpy(np.load(file, allow_pickle=False)).to(x_T)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("problem", "process", "solver", "spacing", "budget"))


def _names(here: Case, solver: Solver, calls: int) -> dict[str, Any]:
    of = {"problem": here.problem, "process": here.process, "solver": solver.name, "package": solver.package}
    return {**of, "spacing": solver.grid, "budget": calls}


def report(rows: list[dict[str, Any]], floors: dict[str, dict[str, float]], made: dict[str, Any], out: Path) -> None:
    """report.md and report.html: for each problem and process, every solver on its best grid."""
    r = Report("Solvers against exact truth")
    r.text(
        "Flow: the distance a dimension between where a solver ends and where the flow does, as root mean square over "
        "samples, and in brackets the median; the first hangs on the few samples that end in another mode. SDE: "
        "distances of samples to as many real ones. A solver stands on the grid that was best for it at each number of "
        "network calls; results.jsonl has all of them. A click on the head of a column sorts by it."
    )
    for place in dict.fromkeys((row["problem"], row["process"]) for row in rows):
        here = [row for row in rows if (row["problem"], row["process"]) == place and "skipped" not in row]
        flow, diffusion = [row for row in here if "rms" in row], [row for row in here if "rms" not in row]
        name, diagrams = f"{place[0]}, {place[1]}", []
        if flow:
            r.heading(f"Flow: {name}")
            _table(r, flow, "rms", "{rms:.2e} ({median:.1e}) {spacing}")
            _picture(r, [_diagram(flow, key, title) for key, title in FLOW.items()], f"flow-{'-'.join(place)}.png", out)
        for key in TITLES:
            found = [row for row in diffusion if key in row]
            if found:
                r.heading(f"{TITLES[key]}: {name}")
                floor = floors["-".join(place)][key]
                r.text(f"Real samples, as many: {floor:.3g}.")
                _table(r, found, key, f"{{{key}:.3g}} {{spacing}}")
                diagrams.append(_diagram(found, key, TITLES[key], floor))
        if diagrams:
            _picture(r, diagrams, f"sde-{'-'.join(place)}.png", out)
    skipped = {f"{row['solver']}: {row['skipped']}" for row in rows if "skipped" in row}
    r.heading("Where this came from")
    if skipped:
        r.text("Not run: " + "; ".join(sorted(skipped)) + ".")
    r.commands(json.dumps(made, indent=2))
    write(out / "made.json", json.dumps(made, indent=2).encode())
    r.write(out)


def best(rows: list[dict[str, Any]], key: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Solver -> budget -> its row with the smallest |key| over grids; the solvers in the order of their means of logs,
    those that have no row for some of the budgets behind those that have more.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        of = found.setdefault(row["solver"], {})
        if row["budget"] not in of or _size(row, key) < _size(of[row["budget"]], key):
            of[row["budget"]] = row

    def level(name: str) -> tuple[int, float]:
        of = found[name].values()
        return -len(of), sum(math.log(_size(row, key)) for row in of) / len(of)

    return {name: found[name] for name in sorted(found, key=level)}


def _size(row: dict[str, Any], key: str) -> float:
    return max(abs(row[key]), 1e-300) if math.isfinite(row[key]) else math.inf


def _table(r: Report, rows: list[dict[str, Any]], key: str, cell: str) -> None:
    found, budgets = best(rows, key), sorted({row["budget"] for row in rows})
    body = [[name, *(cell.format(**of[k]) if k in of else "" for k in budgets)] for name, of in found.items()]
    r.table(["solver", *(f"{k} calls" for k in budgets)], body)


def _picture(r: Report, diagrams: list[Diagram], file: str, out: Path) -> None:
    curves(diagrams, out / file)
    r.picture(file, f"The {SHOWN} best solvers, each on its best grid, by network calls.")


def _diagram(rows: list[dict[str, Any]], key: str, title: str, floor: float | None = None) -> Diagram:
    found = list(best(rows, key).items())[:SHOWN]
    lines = [Curve(name, sorted(of), [_size(of[k], key) for k in sorted(of)]) for name, of in found]
    return Diagram(title, "network calls", lines, floor)
