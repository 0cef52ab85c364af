"""How a training of CIFAR-10 went: held-out loss by noise level, bits/dim, images per second, and what the published
size would take at that pace.

    scoresde train CIFAR-10 --recipe cifar10-vp-likelihood --net "DDPMpp(width=16, multipliers=(1,2,4,8), blocks=1,
        dropout=0)" --steps 7000 --batch 32 --lr 1e-3 --out runs/cifar10
    scoresde likelihood runs/cifar10 --data CIFAR-10 --n 100 --terms 0 --out runs/cifar10-likelihood
    python benchmarks/curve.py runs/cifar10 runs/cifar10-likelihood --command "scoresde train ..."

Writes results/cifar10-cpu.json and .png. The pace of the published size is that of one training step of DDPM++ with its
defaults, on 4 images, in CPU time of one thread; its setting is 400,000 steps of 128 images, the recipe's.
"""

import argparse
import json
import statistics
from pathlib import Path

import matplotlib
import torch
from harness import save, seconds

from scoresde import load
from scoresde.nn import DDPMpp
from scoresde.training import RECIPES

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

BATCH = 4


def pace() -> float:
    """CPU seconds an image of a training step of the published size."""
    net = DDPMpp((3, 32, 32))
    optimizer = torch.optim.Adam(net.parameters(), 2e-4, fused=True)
    x, c = torch.randn(BATCH, 3, 32, 32), torch.rand(BATCH)

    def step() -> None:
        optimizer.zero_grad()
        (net(x, c) - x).square().mean().backward()
        optimizer.step()

    step()
    return statistics.median(seconds(step, "cpu") for _ in range(3)) / BATCH


def picture(curve: list[dict[str, object]], file: Path) -> None:
    """The held-out loss of each noise level, a line each, against steps."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    steps = [row["step"] for row in curve]
    for level in [name for name in curve[-1] if name != "step"]:
        axes.loglog(steps, [row[level] for row in curve], label=f"sigma/alpha {level}")
    axes.xaxis.set_minor_formatter("")
    axes.set(xlabel="step", ylabel="squared error of the noise, held out")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(file, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("likelihood", type=Path)
    parser.add_argument("--command", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, summary = load(options.model), json.loads((options.likelihood / "summary.json").read_text())
    if json.loads((options.likelihood / "recipe.json").read_text())["subject"] != found.digest:
        raise SystemExit(f"{options.likelihood} is no likelihood of {options.model}")
    log = [json.loads(line) for line in (options.model / "loss.jsonl").read_text().splitlines()]
    curve = [{"step": row["step"], **row["held_out"]} for row in log if "held_out" in row]
    flow, full = summary["table"][0], RECIPES["cifar10-vp-likelihood"].settings
    alone = pace()
    row = {
        "training": options.command,
        "weights": sum(p.numel() for p in found.model.parameters()),
        "steps": found.notes["step"],
        "images a second": statistics.median(row["samples_per_second"] for row in log if "samples_per_second" in row),
        "bits/dim": round(flow["mean"], 3),
        "standard error": round(flow["standard_error"], 3),
        "images": summary["samples"],
        "quantity": flow["quantity"],
        "published size, CPU seconds an image": round(alone, 3),
        "published setting, days of one core": round(alone * full.steps * full.batch / 86400),
    }
    thinned = [curve[k] for k in sorted({round(i * (len(curve) - 1) / 39) for i in range(40)})]
    file = save("cifar10", "cpu", ("scoresde", "torch"), [row, *thinned])
    picture(curve, file.with_suffix(".png"))
    print(json.dumps(row, indent=2), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
