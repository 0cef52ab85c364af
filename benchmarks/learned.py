"""Solvers that are fitted to a flow: ours beside those of papers, and the best of the classical ones, in one run.

    pip install -e '.[bench]' && pip install --no-deps k-diffusion azula
    python benchmarks/learned.py [--problems digits modes lattice] [--processes vp ve edm flow] [--calls 3 4 5 ...]
                                 [--n 4096] [--fits 3] [--out runs/learned]

All are measured on the same n starts, which no fit has seen, by the distance of their ends from the flow's: root mean
square (with its standard error), median (with the interval of order statistics that holds it in 95 of 100 cases) and
90th percentile. Each is fitted `fits` times, from other pilots. What a fit costs is told in evaluations of the network
for one sample, forward and with a gradient, and in seconds of one core. "Tuned" is `tune` as it comes; "Tuned, more"
has twice the pilots and a million evaluations. "Classical" are the two of all other libraries and of ours, on all
grids, that are best by root mean square and by median on 256 of the starts, n of them or not: chosen by what they are
then judged by, which favours them.

Rows are kept in OUT/rows.jsonl; called again, the run goes on. What is there goes to
benchmarks/results/learned-cpu.json.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import save, table
from peers import LEARNED, peers
from peers.learned import Evaluated, Task
from torch import Tensor

from scoresde import Counted, Flow, Reference, Reverse, grid, ode, sample, tune
from scoresde.lab import PROCESSES
from scoresde.lab.problems import DigitClasses, Lattice, Modes
from scoresde.lab.solvers import FLOWS
from scoresde.steps import Known, Pilots
from scoresde.steps.tuned import distance

PROBLEMS = {"digits": DigitClasses(), "modes": Modes(), "lattice": Lattice()}
CALLS = (3, 4, 5, 6, 8, 10, 15, 20)
SCREENED = 256
PACKAGES = ("scoresde", "torch", "diffusers", "k-diffusion", "azula", "torchdiffeq", "flow_matching")
Solve = Callable[[Reverse, Tensor], Tensor]


class Case:
    """A flow, starts and where it takes them."""

    def __init__(self, problem: str, process: str, n: int) -> None:
        self.name, self.process, self.law, self.sde = problem, process, PROBLEMS[problem].law(), PROCESSES[process]
        self.score = self.law.diffuse(self.sde)
        self.around = Reference.fit(self.law.sample(2000, torch.Generator().manual_seed(0)))
        z = torch.randn(n, *self.law.shape, generator=torch.Generator().manual_seed(1000), dtype=torch.float64)
        self.x_T = self.sde.prior(z.shape, lambda x, t, s: z.to(x), torch.float64)
        ts = torch.tensor([self.sde.T, self.sde.t_min], dtype=torch.float64)
        exact, q = Flow(ode.Dopri5(1e-9, 1e-9)), self.sde.reverse(self.score, 0.0)
        self.end = torch.cat([sample(q, x, ts, exact) for x in self.x_T.split(512)])

    def row(self, solve: Solve, calls: int, n: int | None = None) -> dict[str, Any]:
        """What a solver leaves, and the calls that it makes."""
        counted, parts = Counted(self.score), []
        q = self.sde.reverse(counted, 0.0)
        for x in self.x_T[:n].split(512):
            parts.append(solve(q, x))
        e = distance(torch.cat(parts), self.end[:n]).nan_to_num(1e9, 1e9)
        k, low = len(e), int(1.96 * math.sqrt(len(e)) / 2)
        ordered, square = e.sort().values, e.square()
        rms = float(square.mean().sqrt())
        found = {
            "rms": rms,
            "rms_error": float(square.std() / math.sqrt(k) / (2 * rms)),
            "median": float(e.median()),
            "median_interval": [float(ordered[max(0, k // 2 - low)]), float(ordered[min(k - 1, k // 2 + low)])],
            "p90": float(e.quantile(0.9)),
        }
        return {"nfe": counted.nfe // len(parts), **found}


def ours(case: Case, calls: int, seed: int, pilots: Pilots) -> tuple[Solve, dict[str, Any]]:
    """`tune`."""
    began = time.process_time()
    found = tune(case.sde.reverse(case.score, 0.0), case.x_T[:1], calls, case.around, pilots)
    said = {"found": found.name, "pilots": 3 * pilots.n, "forward": found.evaluations, "backward": 0}
    return lambda q, x: sample(q, x, found.ts, found.step), {**said, "seconds": time.process_time() - began}


def theirs(case: Case, calls: int, seed: int, learned: Any) -> tuple[Solve, dict[str, Any]]:
    """A learned peer."""
    began, score = time.process_time(), Evaluated(case.score)
    task = Task(case.sde, score, case.around, tuple(case.law.shape), calls, seed=seed)
    carry = learned.fit(task)
    sde = case.sde

    def solve(q: Reverse, x: Tensor) -> Tensor:
        with torch.no_grad():
            problem = Task(sde, q.score, case.around, tuple(case.law.shape), calls).problem
            return carry(problem, x / sde.alpha(sde.T)) * sde.alpha(sde.t_min)

    cost = {"pilots": task.n, "forward": score.forward, "backward": score.backward}
    return solve, {"source": learned.source, **cost, "seconds": time.process_time() - began}


def classical(case: Case, calls: int) -> dict[str, Solve]:
    """Those with the least root mean square and the least median on a few of the starts."""
    every: dict[str, Solve] = {}
    for peer in peers()[0]:
        if not peer.eta:
            every[peer.name] = lambda q, x, peer=peer: peer.solve(q.sde, q.score, x, calls)
    known = Known(case.around, None)
    for method in FLOWS:
        for spacing, make in grid.usual(case.around).items():
            if (n := method.intervals(calls)) >= 1:
                ts = make(case.sde, n)
                every[f"scoresde {method.name}, {spacing}"] = lambda q, x, ts=ts, method=method: sample(
                    q, x, ts, *method.steps(q, ts, known)
                )
    rough = {}
    for name, solve in every.items():
        try:
            rough[name] = case.row(solve, calls, SCREENED)
        except (ValueError, RuntimeError):  # too few calls, or it diverges
            continue
    names = {min(rough, key=lambda name: rough[name][by]) for by in ("rms", "median")}
    return {name: every[name] for name in sorted(names)}


def cells(case: Case, calls: int, fits: int, only: list[str]) -> Iterator[tuple[dict[str, Any], Callable[[], Any]]]:
    """What is to be measured, and what makes the solver."""
    fitted: dict[str, Callable[[int], Any]] = {
        "Tuned": lambda seed: ours(case, calls, seed, Pilots(64, seed)),
        "Tuned, more": lambda seed: ours(case, calls, seed, Pilots(128, seed, evaluations=1_000_000)),
    }
    for one in LEARNED:
        if not one.eta:
            fitted[one.name] = lambda seed, one=one: theirs(case, calls, seed, one)
    for name, make in fitted.items():
        if not only or name in only:
            for seed in range(fits):
                yield {"solver": name, "fit": seed}, lambda make=make, seed=seed: make(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--processes", nargs="+", choices=PROCESSES, default=["vp", "ve", "edm", "flow"])
    parser.add_argument("--calls", nargs="+", type=int, default=list(CALLS))
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--fits", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="solvers by name; without it, all")
    parser.add_argument("--out", type=Path, default=Path("runs/learned"))
    o = parser.parse_args()
    torch.set_num_threads(1)
    o.out.mkdir(parents=True, exist_ok=True)
    file = o.out / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    key = ("problem", "process", "calls", "solver", "fit", "n")
    done = {tuple(row[k] for k in key) for row in rows}

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        with file.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(row, flush=True)

    for problem in o.problems:
        for process in o.processes:
            case = Case(problem, process, o.n)
            for calls in o.calls:
                of = {"problem": problem, "process": process, "calls": calls, "n": o.n}
                if not o.only and not any((problem, process, calls) == d[:3] and d[4] is None for d in done):
                    for name, solve in classical(case, calls).items():
                        keep({**of, "solver": name, "fit": None, **case.row(solve, calls), "classical": True})
                for said, make in cells(case, calls, o.fits, o.only):
                    if (problem, process, calls, said["solver"], said["fit"], o.n) in done:
                        continue
                    try:
                        solve, cost = make()
                        keep({**of, **said, **case.row(solve, calls), **cost})
                    except ValueError as error:  # what asks for more calls than there are
                        keep({**of, **said, "skipped": str(error)})
    print(table(summary(rows)))
    print(f"written to {save('learned', 'cpu', PACKAGES, rows)}")


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each problem, process and number of calls: ours, the best learned peer and the best classical one, RMS and
    median, medians over fits.
    """
    found = []
    for at in dict.fromkeys((row["problem"], row["process"], row["calls"]) for row in rows):
        kinds: dict[str, dict[str, list[dict[str, Any]]]] = {
            "Tuned": {},
            "Tuned, more": {},
            "learned": {},
            "classical": {},
        }
        for row in rows:
            if (row["problem"], row["process"], row["calls"]) == at and "rms" in row:
                own = row["solver"] if row["solver"] in kinds else "classical" if row["fit"] is None else "learned"
                kinds[own].setdefault(row["solver"], []).append(row)
        line: dict[str, Any] = dict(zip(("problem", "process", "calls"), at, strict=True))
        for kind, solvers in kinds.items():
            for by in ("rms", "median"):
                middle = {name: sorted(r[by] for r in of)[len(of) // 2] for name, of in solvers.items()}
                if middle:
                    name = min(middle, key=lambda name: middle[name])
                    said = "" if kind.startswith("Tuned") else f" {name}"
                    line[f"{kind}, {by}"] = f"{middle[name]:.2e}{said}"
        found.append(line)
    return found


if __name__ == "__main__":
    main()
