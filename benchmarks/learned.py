"""Solvers that are fitted to a flow: ours beside those of papers, and the best of the classical ones, in one run.

    pip install -e '.[bench]' && pip install --no-deps k-diffusion azula
    python benchmarks/learned.py [--problems digits modes lattice network-digits network-mnist]
                                 [--processes vp ve edm flow] [--calls 3 4 5 ...] [--n 4096] [--fits 3]
                                 [--without NAME ...] [--out runs/learned]

All are measured on the same n starts, which no fit has seen, by the distance of their ends from the flow's: root mean
square (with its standard error), median (with the interval of order statistics that holds it in 95 of 100 cases) and
90th percentile. Each is fitted `fits` times, from other pilots. What a fit costs is told in evaluations of the network
for one sample, forward and with a gradient, and in seconds of one core. "Tuned" is `tune` as it comes; "Tuned, more"
has twice the pilots and a million evaluations. "Classical" are the two of all other libraries and of ours, on all
grids, that are best by root mean square and by median on 256 of the starts, n of them or not: chosen by what they are
then judged by, which favours them.

Networks are those that come with the library, in float32 with states in float64, each under its own process and on
fewer starts. Their flows are solved by UniPC of order 3 on a grid of log-SNR, and how far that is from half as many
calls, in RMS, stands in each row (`truth`). Pilots of peers have as many calls as ours there, 120. What is left out
there for the cost of its fit, by --without, has a row that says what an evaluation costs.

Rows are kept in OUT/rows.jsonl; called again, the run goes on. What is there goes to
benchmarks/results/learned-cpu.json.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from harness import kept, save, table
from peers import LEARNED, peers
from peers.learned import Evaluated, Learned, Task
from torch import Tensor

from scoresde import Counted, Flow, Reference, Reverse, UniPC, grid, load, ode, sample, tune
from scoresde.files import WEIGHTS
from scoresde.lab import PROCESSES
from scoresde.lab.problems import DigitClasses, Lattice, Modes
from scoresde.lab.solvers import FLOWS
from scoresde.steps import Known, Pilots
from scoresde.steps.tuned import distance


@dataclass(frozen=True)
class Network:
    """One that comes with the library, by name; starts at most, and of those the ones that choose the classical."""

    weights: str
    process: str
    n: int
    screened: int
    truth: int = 200
    """Network calls that its flow is solved with."""


PROBLEMS = {"digits": DigitClasses(), "modes": Modes(), "lattice": Lattice()}
NETWORKS = {
    "network-digits": Network("digits-vp", "vp", 512, 64),
    "network-mnist": Network("mnist-vp", "vp", 64, 16),
}
CALLS = (3, 4, 5, 6, 8, 10, 15, 20)
SCREENED = 256
OURS = ("Tuned", "Tuned, more")
PACKAGES = ("scoresde", "torch", "diffusers", "k-diffusion", "azula", "torchdiffeq", "flow_matching")
Solve = Callable[[Reverse, Tensor], Tensor]


class Case:
    """A flow, starts and where it takes them. fine: intervals of the pilots of peers. said: what a row tells of it."""

    def __init__(self, problem: str, process: str, n: int) -> None:
        self.screened, self.fine = SCREENED, 120
        self.said: dict[str, Any] = {"problem": problem, "process": process, "n": n}
        if problem in NETWORKS:
            self._network(NETWORKS[problem], n)
        else:
            law, self.sde = PROBLEMS[problem].law(), PROCESSES[process]
            self.score, self.shape = law.diffuse(self.sde), tuple(law.shape)
            self.around = Reference.fit(law.sample(2000, torch.Generator().manual_seed(0)))
            ts = torch.tensor([self.sde.T, self.sde.t_min], dtype=torch.float64)
            exact, q = Flow(ode.Dopri5(1e-9, 1e-9)), self._start(n)
            self.end = torch.cat([sample(q, x, ts, exact) for x in self.x_T.split(512)])

    def _network(self, network: Network, n: int) -> None:
        found = load(WEIGHTS / network.weights, dtype=torch.float32)
        assert found.around is not None
        self.score, self.sde = found.model.requires_grad_(False), found.model.sde
        self.shape, self.around, self.screened, self.fine = found.shape, found.around, network.screened, 40
        q = self._start(min(n, network.n))
        half, self.end = (
            torch.cat([sample(q, x, grid.log_snr(self.sde, k), UniPC(3)) for x in self.x_T.split(64)])
            for k in (network.truth // 2, network.truth)
        )
        off = float(distance(half, self.end).square().mean().sqrt())
        self.said |= {"n": len(self.x_T), "truth": f"{network.truth} calls, {off:.1e} from half as many"}

    def _start(self, n: int) -> Reverse:
        """The flow, with n starts."""
        z = torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(1000), dtype=torch.float64)
        self.x_T = self.sde.prior(z.shape, lambda x, t, s: z.to(x), torch.float64)
        return self.sde.reverse(self.score, 0.0)

    def task(self, score: Any, calls: int, seed: int = 0) -> Task:
        """What a learned peer is given."""
        return Task(self.sde, score, self.around, self.shape, calls, seed=seed, fine=self.fine)

    def cost(self) -> str:
        """Of an evaluation."""
        told, t = [], torch.tensor(self.sde.T / 2, dtype=torch.float64)
        for gradient in (False, True):
            x = self.x_T[:64].clone().requires_grad_(gradient)
            began = time.process_time()
            score = self.score(x, t)
            if gradient:
                score.sum().backward()
            told.append((time.process_time() - began) / len(x) * 1000)
        return "an evaluation takes {:.2g} ms of one core, one with a gradient {:.2g} ms".format(*told)

    def row(self, solve: Solve, n: int | None = None) -> dict[str, Any]:
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


def theirs(case: Case, calls: int, seed: int, learned: Learned) -> tuple[Solve, dict[str, Any]]:
    """A learned peer."""
    began, score = time.process_time(), Evaluated(case.score)
    task = case.task(score, calls, seed)
    carry = learned.fit(task)
    sde = case.sde

    def solve(q: Reverse, x: Tensor) -> Tensor:
        with torch.no_grad():
            return carry(case.task(q.score, calls).problem, x / sde.alpha(sde.T)) * sde.alpha(sde.t_min)

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
            rough[name] = case.row(solve, case.screened)
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
    parser.add_argument("--problems", nargs="+", choices=[*PROBLEMS, *NETWORKS], default=list(PROBLEMS))
    parser.add_argument("--processes", nargs="+", choices=PROCESSES, default=["vp", "ve", "edm", "flow"])
    parser.add_argument("--calls", nargs="+", type=int, default=list(CALLS))
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--fits", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="solvers by name; without it, all")
    parser.add_argument("--without", nargs="+", default=[], help="solvers whose fits cost too much")
    parser.add_argument("--out", type=Path, default=Path("runs/learned"))
    o = parser.parse_args()
    torch.set_num_threads(1)
    rows, add = kept(o.out)
    key = ("problem", "process", "calls", "solver", "fit", "n")
    done = {tuple(row[k] for k in key) for row in rows}

    def keep(row: dict[str, Any]) -> None:
        add(row)
        print(row, flush=True)

    for problem, process in product(o.problems, o.processes):
        if problem in NETWORKS and process != NETWORKS[problem].process:
            continue
        case = Case(problem, process, o.n)
        for calls in o.calls:
            of = {**case.said, "calls": calls}
            if not o.only and not any((problem, process, calls) == d[:3] and d[4] is None for d in done):
                for name, solve in classical(case, calls).items():
                    keep({**of, "solver": name, "fit": None, **case.row(solve), "classical": True})
            for said, make in cells(case, calls, o.fits, o.only):
                if (problem, process, calls, said["solver"], said["fit"], of["n"]) in done:
                    continue
                if said["solver"] in o.without:
                    keep({**of, **said, "skipped": f"left out: {case.cost()}"})
                    continue
                try:
                    solve, cost = make()
                    keep({**of, **said, **case.row(solve), **cost})
                except ValueError as error:  # what asks for more calls than there are
                    keep({**of, **said, "skipped": str(error)})
    print(table(summary(rows)))
    rounded = [
        {key: _rounded(v) for key, v in row.items()}
        for row in sorted(rows, key=lambda row: _place((row["problem"], row["process"], row["calls"])))
    ]
    print(f"written to {save('learned', 'cpu', PACKAGES, rounded)}")


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each problem, process and number of calls: root mean square and (median) of ours, and the least of each of
    learned peers and of the others, medians over fits; and what fits cost, in evaluations: of Tuned, and of the peer
    with the least median, (those with a gradient).
    """
    found = []
    for at in sorted({(row["problem"], row["process"], row["calls"]) for row in rows}, key=_place):
        here = [row for row in rows if (row["problem"], row["process"], row["calls"]) == at and "rms" in row]
        of: dict[str, list[dict[str, Any]]] = {}
        for row in here:
            of.setdefault(row["solver"], []).append(row)
        kinds = {name: [name] for name in OURS}
        kinds["best learned"] = [name for name in of if of[name][0]["fit"] is not None and name not in OURS]
        kinds["best of other libraries and ours without a fit"] = [n for n in of if of[n][0]["fit"] is None]
        line: dict[str, Any] = {"problem, process": ", ".join(at[:2]), "calls": at[2]}
        spent = []
        for kind, names in kinds.items():
            present = [name for name in names if name in of]
            if not present:
                line[kind] = "not measured"
                continue
            least = {by: min((_middle(of[name], by), name) for name in present) for by in ("rms", "median")}
            said = [f"{v:.1e}" + ("" if name in OURS else f" {name}") for v, name in least.values()]
            line[kind] = "{} ({})".format(*said).replace(" scoresde", "")
            if kind in ("Tuned", "best learned"):
                forward, backward = (_middle(of[least["median"][1]], key) for key in ("forward", "backward"))
                spent.append(f"{forward:,}" + f" ({backward:,})" * (backward > 0))
        found.append({**line, "evaluations of fits": " / ".join(spent)})
    return found


def _place(at: tuple[str, str, int]) -> tuple[int, int, int]:
    problem, process, calls = at
    return [*PROBLEMS, *NETWORKS].index(problem), list(PROCESSES).index(process), calls


def _middle(rows: list[dict[str, Any]], key: str) -> Any:
    return sorted(row[key] for row in rows)[len(rows) // 2]


def _rounded(v: Any) -> Any:
    return float(f"{v:.4g}") if isinstance(v, float) else list(map(_rounded, v)) if isinstance(v, list) else v


if __name__ == "__main__":
    main()
