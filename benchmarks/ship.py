"""Make a trained model one that comes with the library, and write down how good it is.

    scoresde train digits --steps 12000 ... --out runs/digits-vp
    scoresde likelihood runs/digits-vp --terms 0 --out runs/digits-vp-likelihood
    python benchmarks/ship.py digits-vp runs/digits-vp runs/digits-vp-likelihood --command "scoresde train ..." [--half]

The checkpoint goes to scoresde/weights/NAME, with the command that made it, the time that it took and its bits/dim in
the notes of its manifest; what was measured to benchmarks/results/weights/NAME.json, and 64 samples of 50 network calls
beside that as a picture, with the loss on the way, by `loss.jsonl` of the training, and held out at its end by noise
level. --half stores numbers of half precision. Looks whether the likelihood is that of this model.
"""

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scoresde import GaussianReference, draw, grid, load, save
from scoresde.files import WEIGHTS, write
from scoresde.lab import origin
from scoresde.lab.report import grid_picture

RESULTS = Path(__file__).parent / "results" / "weights"


POINTS = 50


def curve(folder: Path) -> dict[str, Any]:
    """The mean loss of each fiftieth of the training, by its last step, and the loss held out, by sigma/alpha, at the
    end.
    """
    rows = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    parts = [steps[k * len(steps) // POINTS : (k + 1) * len(steps) // POINTS] for k in range(POINTS)]
    means = [(part[-1]["step"], round(sum(row["loss"] for row in part) / len(part), 5)) for part in parts if part]
    return {"loss": means, "held_out": [row["held_out"] for row in rows if "held_out" in row][-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("model", type=Path)
    parser.add_argument("likelihood", type=Path)
    parser.add_argument("--command", required=True)
    parser.add_argument("--took", required=True)
    parser.add_argument("--half", action="store_true")
    options = parser.parse_args()
    found = load(options.model)
    summary = json.loads((options.likelihood / "summary.json").read_text())
    of = json.loads((options.likelihood / "recipe.json").read_text())
    if of["subject"] != found.digest:
        raise SystemExit(f"{options.likelihood} is no likelihood of {options.model}")
    flow = summary["table"][0]
    value, n = f"{flow['mean']:.3f} +- {flow['standard_error']:.3f} {summary['unit']}", summary["samples"]
    result = f"{value} of {n} samples held out, {flow['quantity'].removeprefix('probability flow, ')}"
    notes = {"command": options.command, "took": options.took, "result": result}
    model = copy.deepcopy(found.model)
    save(WEIGHTS / options.name, replace(found, model=model.half() if options.half else model, notes=notes))
    shipped = load(WEIGHTS / options.name, dtype=torch.float32)
    q, around = shipped.model.sde.reverse(shipped.model, 0.0), shipped.around
    assert around is not None
    ts = grid.reference(q.sde, 50, around=around)
    x = draw(q, shipped.shape, ts, GaussianReference(around), seeds=range(64), denoise=True)
    RESULTS.mkdir(exist_ok=True)
    grid_picture(x, RESULTS / f"{options.name}.png")
    written = {**notes, "likelihood": summary, "samples": origin(), "training": curve(options.model)}
    write(RESULTS / f"{options.name}.json", json.dumps(written, indent=2).encode())
    print(f"{options.name}: {result}")


if __name__ == "__main__":
    main()
