"""Noise that depends on the seed of each sample alone, against one torch.randn for the whole batch.

    python benchmarks/noise.py [--repeats 15] [--device cpu]

Each row draws the noise of 64 steps. The cost is per_sample/randn; below about 3,000 values a sample the fixed cost of
a call for every row shows, and is spread over the steps that are drawn ahead. On a GPU per_sample still draws on the
CPU, where every machine has the same stream, and is compared with randn on the GPU: wall time, since both take part.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from harness import interleaved, ratio, save, table

from scoresde import iid, per_sample

SHAPES = [(1, 64), (16, 64), (256, 64), (256, 784), (1, 3072), (16, 3072), (64, 3072), (256, 3072)]
STEPS = 64


def drawer(make: Callable[[], Callable], x: torch.Tensor) -> Callable[[], None]:
    """Draw the noise of a whole trajectory from fresh streams."""

    def draw() -> None:
        noise, t = make(), torch.tensor(0.0)
        for _ in range(STEPS):
            noise(x, t, t)

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for batch, values in SHAPES:
        x = torch.empty(batch, values, device=options.device)
        calls = {
            "per_sample": drawer(lambda batch=batch: per_sample(range(batch)), x),
            "randn": drawer(lambda: iid(torch.Generator(options.device).manual_seed(0)), x),
        }
        times = interleaved(calls, options.repeats, options.device)
        rows.append(
            {
                "batch": batch,
                "values a sample": values,
                "us a step, per_sample": round(1e6 * statistics.median(times["per_sample"]) / STEPS, 1),
                "us a step, randn": round(1e6 * statistics.median(times["randn"]) / STEPS, 1),
                "per_sample/randn": round(ratio(times, "per_sample", "randn"), 2),
            }
        )
    file = save("noise", options.device, ("scoresde", "torch"), rows)
    print(table(rows), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
