"""Solvers of reverse processes with noise, by their weak error: how far the law is that they sample.

    python benchmarks/noisy.py [--problems modes digits lattice] [--etas 1 0.5] [--calls 10 20 50] [--n 16000]
                               [--fits 3] [--out runs/noisy]

Of n samples (an eighth of them of the digits): how far -log p(x) a dimension, p being the exact law at t_min, is
distributed from how it is for samples of that law, by the distance W_1 of optimal transport, in nats a dimension (so
samples that lie too far out do not make up for others that lie too close to the modes); the second moment about the
mean, over the law's own, less 1, with its standard error; and the total variation between the shares of the nearest
modes and those of the law. The first and the last stand beside what as many exact samples have, the mean of eight
draws.

"Tuned" is `tune` of the reverse process as it comes, once a seed. All others are taken on each of the usual grids, and
told on the one with the least sum of the first two measures, which favours them. AdaSDE has noise of its own, that it
learns. "Tuned flow", with no noise, is there to compare.

Rows are kept in OUT/rows.jsonl; called again, the run goes on. What is there goes to benchmarks/results/noisy-cpu.json.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import kept, save, table
from learned import PROBLEMS
from peers.adasde import AdaSDE
from peers.learned import Evaluated, Task
from torch import Tensor

from scoresde import VP, Ancestral, Counted, DPMSolverPP, Reference, Reverse, SASolver, grid, iid, sample, tune
from scoresde.steps import DPMSolverPPSDE, Pilots, Renoised, Step

USUAL: dict[str, tuple[Step, int]] = {
    "DDPM": (Ancestral(), 1),
    "SDE-DPM-Solver++(2M)": (DPMSolverPP(2), 1),
    "SDE-DPM-Solver++(3M)": (DPMSolverPP(3), 1),
    "SA-Solver(2, 2)": (SASolver(2, 2), 1),
    "SA-Solver(2, 3)": (SASolver(2, 3), 1),
    "SA-Solver(3, 4)": (SASolver(), 1),
    "DPM-Solver++ SDE": (DPMSolverPPSDE(), 2),
    "DPM-Solver++ 2S ancestral": (Renoised(), 2),
}
"""Steps, and the calls that each of their intervals makes."""
PACKAGES = ("scoresde", "torch")
PART = 4000
Row = dict[str, Any]


class Case:
    """A law under VP, and what is known of it."""

    def __init__(self, problem: str, n: int) -> None:
        self.sde, self.law, self.n = VP(), PROBLEMS[problem].law(), n // 8 if problem == "digits" else n
        self.score = self.law.diffuse(self.sde)
        self.around = Reference.fit(self.law.sample(2000, torch.Generator().manual_seed(0)))
        self.end = self.law.marginal(self.sde, self.sde.t_min)
        self.x_T = self.sde.prior((self.n, *self.law.shape), iid(torch.Generator().manual_seed(1000)), torch.float64)
        g = torch.Generator().manual_seed(1)
        told = [self.told(self.end.sample(PART, g)) for _ in range(25)]
        surprise, second, near = (torch.cat(parts) for parts in zip(*told, strict=True))
        self.surprise, self.second, self.near = surprise.sort().values, float(second.mean()), self.shares(near)
        few = [self.told(self.end.sample(self.n, torch.Generator().manual_seed(100 + k))) for k in range(8)]
        self.chance = {
            "surprise": sum(self.off(a) for a, _, _ in few) / 8,
            "modes": sum(self.apart(c) for _, _, c in few) / 8,
        }

    def off(self, surprise: Tensor) -> float:
        """W_1 between these and those of the law, by quantiles."""
        at = ((torch.arange(len(surprise)) + 0.5) * (len(self.surprise) / len(surprise))).long()
        return float((surprise.sort().values - self.surprise[at]).abs().mean())

    def apart(self, near: Tensor) -> float:
        """The total variation between the shares of these modes and those of the law."""
        return float((self.shares(near) - self.near).abs().sum() / 2)

    def told(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each sample -log p a dimension, the square of the distance from the mean, and the nearest mode."""
        rows = x.flatten(1)
        d, mean = rows.shape[1], (self.end.weights[:, None] * self.end.means).sum(0)
        return -self.end.log_prob(x) / d, (rows - mean).square().sum(1), torch.cdist(rows, self.end.means).argmin(1)

    def shares(self, near: Tensor) -> Tensor:
        """Of the modes."""
        return torch.bincount(near, minlength=len(self.end.means)) / len(near)

    def row(self, solve: Callable[[Reverse, Tensor], Tensor], eta: float) -> Row:
        """What a solver leaves, with noise that is the same whatever the batch."""
        counted, generator = Counted(self.score), torch.Generator().manual_seed(2000)
        p = self.sde.reverse(counted, eta)
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            x = torch.cat([solve(p, x) for x in self.x_T.split(PART)])
        surprise, second, near = self.told(x)
        return {
            "nfe": counted.nfe // len(self.x_T.split(PART)),
            "surprise": self.off(surprise),
            "second": float(second.mean()) / self.second - 1,
            "second_error": float(second.std()) / len(x) ** 0.5 / self.second,
            "modes": self.apart(near),
            "by_chance": self.chance,
        }


def usual(case: Case, calls: int, eta: float) -> Iterator[Row]:
    """Each method that needs no fit, on the grid that suits it best."""
    for name, (step, each) in USUAL.items():
        rows = []
        for spacing, make in grid.usual(case.around).items():
            ts = make(case.sde, calls // each)
            try:
                row = case.row(lambda p, x, ts=ts, step=step: sample(p, x, ts, step), eta)
            except RuntimeError:  # it diverges
                continue
            rows.append({"grid": spacing, **row})
        yield {"solver": name, **min(rows, key=lambda row: row["surprise"] + abs(row["second"]))}


def tuned(case: Case, calls: int, eta: float, seed: int) -> Row:
    """`tune`, of the flow too."""
    began = time.process_time()
    found = tune(case.sde.reverse(case.score, eta), case.x_T[:1], calls, case.around, Pilots(seed=seed))
    cost = {"found": found.name, "evaluations": found.evaluations, "seconds": time.process_time() - began}
    row = case.row(lambda p, x: sample(p, x, found.ts, found.step), eta)
    return {"solver": "Tuned" if eta else "Tuned flow", "fit": seed, **row, "bound": found.fresh.rms, **cost}


def adaptive(case: Case, calls: int, seed: int) -> Row:
    """AdaSDE."""
    began, score = time.process_time(), Evaluated(case.score)
    carry = AdaSDE().fit(Task(case.sde, score, case.around, tuple(case.law.shape), calls, seed=seed))
    cost = {"evaluations": score.forward, "backward": score.backward, "seconds": time.process_time() - began}

    def solve(p: Reverse, x: Tensor) -> Tensor:
        problem = Task(case.sde, p.score, case.around, tuple(case.law.shape), calls).problem
        with torch.no_grad():
            return carry(problem, x / case.sde.alpha(case.sde.T)) * case.sde.alpha(case.sde.t_min)

    return {"solver": "AdaSDE", "fit": seed, **case.row(solve, 0.0), **cost}


def cells(case: Case, calls: int, etas: list[float], fits: int) -> Iterator[tuple[Row, Callable[[], list[Row]]]]:
    """What is to be measured, and how."""
    for eta in etas:
        yield {"eta": eta, "what": "usual"}, lambda eta=eta: list(usual(case, calls, eta))
    for eta in (*etas, 0.0):
        for seed in range(fits):
            yield {"eta": eta, "what": f"tuned {seed}"}, lambda eta=eta, seed=seed: [tuned(case, calls, eta, seed)]
    yield {"eta": None, "what": "AdaSDE"}, lambda: [adaptive(case, calls, 0)]


def summary(rows: list[Row]) -> list[Row]:
    """As a table, of fits the one in the middle by the sum of the first two measures."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[k] for k in ("problem", "calls", "eta", "solver")), []).append(row)
    lines = []
    for (problem, calls, eta, solver), of in found.items():
        of = sorted(of, key=lambda row: row["surprise"] + abs(row["second"]))
        row = of[len(of) // 2]
        lines.append(
            {
                **{"problem": problem, "calls": calls, "eta": "its own" if eta is None else eta},
                **{"solver": solver, "grid": row.get("grid", "")},
                "nats/dim": f"{row['surprise']:.4f} ({row['by_chance']['surprise']:.4f})",
                "second moment": f"{row['second']:+.2%} ± {row['second_error']:.2%}",
                "modes": f"{row['modes']:.3f} ({row['by_chance']['modes']:.3f})",
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=["modes", "digits", "lattice"])
    parser.add_argument("--etas", nargs="+", type=float, default=[1.0, 0.5])
    parser.add_argument("--calls", nargs="+", type=int, default=[10, 20, 50])
    parser.add_argument("--n", type=int, default=16_000)
    parser.add_argument("--fits", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/noisy"))
    o = parser.parse_args()
    torch.set_num_threads(1)
    rows, keep = kept(o.out)
    key = ("problem", "calls", "eta", "what", "n")
    done = {tuple(row[k] for k in key) for row in rows}
    for problem in o.problems:
        case = Case(problem, o.n)
        for calls in o.calls:
            for said, measure in cells(case, calls, o.etas, o.fits):
                of = {"problem": problem, "calls": calls, "n": o.n, **said}
                if tuple(of[k] for k in key) in done:
                    continue
                made = [{**of, **row} for row in measure()]
                for row in made:
                    keep(row)
                print(table(summary(made)), flush=True)
    print(table(summary(rows)))
    print(f"written to {save('noisy', 'cpu', PACKAGES, rows)}")


if __name__ == "__main__":
    main()
