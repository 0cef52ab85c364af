"""Our solvers and those of other libraries on the same problems, in one run: `scoresde bench` with more contenders.

    pip install -e '.[bench]' && pip install --no-deps k-diffusion azula
    python benchmarks/solvers.py [--full] [--problems digits modes] [--processes vp] [--out runs/solvers]

Takes the options of `scoresde bench`. Every row of OUT/results.jsonl is a recipe; packages that cannot be imported are
listed with the reason in OUT/made.json and in the report. Each library is run on every grid that its arguments allow,
and the report shows each solver on its best one; so does benchmarks/results/NAME-DEVICE.json, in a few columns, NAME
being that of the folder OUT.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from harness import save
from peers import Peer, peers
from torch import Tensor

from scoresde.cli import Parser
from scoresde.cli.bench import measure
from scoresde.cli.common import place
from scoresde.cli.parts import read_steps
from scoresde.lab import Solver, Subject, diffusions, flows
from scoresde.process import Score

COLUMNS = (
    *("problem", "process", "solver", "package", "spacing", "budget", "nfe", "rms", "median", "p90", "switched"),
    *("sliced_wasserstein", "energy_distance", "log_density_gap", "mode_weights", "eta", "n"),
)
PACKAGES = ("scoresde", "torch", "diffusers", "k-diffusion", "azula", "torchdiffeq", "torchsde", "flow_matching")


def contender(peer: Peer) -> Solver:
    """A peer as the benchmark wants it. Its noise is that of torch's global generator."""
    name, _, spacing = peer.name.partition(", ")

    def solve(subject: Subject, score: Score, x_T: Tensor, calls: int) -> tuple[Tensor, dict[str, Any]]:
        torch.manual_seed(calls)
        x = peer.solve(subject.sde, score, x_T, calls).to(x_T.dtype)
        return x, {"steps": [peer.name], "grid": spacing or "its own", "noise": f"torch.manual_seed({calls})"}

    return Solver(name, spacing or "its own", peer.eta, solve, peer.package, weak=peer.eta > 0)


def main() -> None:
    parser = Parser("bench")
    parser.set_defaults(out=Path("runs/solvers"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, reasons = peers()
    mine = read_steps(options)
    solvers = [*flows([] if options.eta else mine), *diffusions(mine if options.eta else []), *map(contender, found)]
    measure(options, solvers, PACKAGES[2:], reasons)
    rows = [json.loads(line) for line in (options.out / "results.jsonl").read_text().splitlines()]
    print(f"written to {save(options.out.name, place(options).type, PACKAGES, summary(rows))}")


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each solver and budget, the row with the least error, on the flow by the root mean square and by the median,
    on the SDE by the mean log-density; measured columns only.
    """
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        for key in ("rms", "median", "log_density_gap"):
            if isinstance(row.get(key), float) and math.isfinite(row[key]):
                at = (*(row[k] for k in ("problem", "process", "solver", "budget")), key)
                if at not in kept or abs(row[key]) < abs(kept[at][key]):
                    kept[at] = row
    unique = {id(row): row for row in kept.values()}.values()
    return [{k: _rounded(row[k]) for k in COLUMNS if k in row} for row in unique]


def _rounded(v: Any) -> Any:
    return float(f"{v:.3g}") if isinstance(v, float) else v


if __name__ == "__main__":
    main()
