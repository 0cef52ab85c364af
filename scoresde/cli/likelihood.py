"""`scoresde likelihood`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from ..checkpoint import Checkpoint, load, write
from ..count import Counted
from ..data import Array, Checkerboard, Dataset, Digits, Images, Moons, Ring, SwissRoll
from ..likelihood import Exact, Hutchinson, bits_per_dim, log_prob
from ..noise import per_sample, seeds
from ..ode import Dopri5
from ..progress import bar
from ..shapes import count, number
from .common import Command, recipe


@dataclass(frozen=True, kw_only=True)
class Likelihood(Command):
    """The likelihood of data under a checkpoint, along its probability flow.

    Grey levels are reported in bits/dim, uniformly dequantised; continuous data in nats/dim, -log p / d. The density
    is that of the model at t = t_min, where its flow ends. One line a sample goes to likelihood.jsonl, and an
    interrupted run goes on when called again.
    """

    model: tyro.conf.Positional[Path]
    """The folder of the checkpoint."""
    data: None | Digits | Ring | Moons | SwissRoll | Checkerboard | Array | Images = None
    """The data; those that the model was trained on, unless given."""
    split: Literal["held-out", "train"] = "held-out"
    """Which part of the data."""
    n: int | None = None
    """How many of its samples, from the first on; all unless given."""
    exact: bool = False
    """The exact divergence of the drift instead of Hutchinson's estimate: as many network derivatives as dimensions."""
    tolerance: float = 1e-4
    """The solver's relative and absolute tolerance."""
    batch: int = 128
    """Samples solved together. The values do not depend on it."""
    out: Path = Path("runs/likelihood")
    """The folder for the results."""

    def run(self) -> None:
        """Compute, print the mean, and write one line a sample."""
        batch, device = count("batch", self.batch), self.place()
        number("tolerance", self.tolerance, above=0)
        found = load(self.model, device=device)
        source = self.data or found.source
        if source is None:
            raise ValueError("data must be given, since the checkpoint does not say what it was trained on")
        data = source.load()
        if data.shape != found.shape:
            raise ValueError(f"data must have the model's shape {found.shape}, got {data.shape}")
        x = data.held_out if self.split == "held-out" else data.train
        x = x[: count("n", self.n)] if self.n is not None else x
        if not len(x):
            raise ValueError(f"split must hold samples, but {self.split} has none")
        chosen = {k: getattr(self, k) for k in ("seed", "split", "exact", "tolerance")}
        recipe(self.out, weights=found.digest, data=source, **chosen)
        score = Counted(found.model)
        rows = self._rows()
        file = self.out / "likelihood.jsonl"
        write(file, "".join(map(_line, rows)).encode())  # without a line that was cut off
        todo = [i for i in range(len(x)) if i not in {row["index"] for row in rows}]
        with file.open("a") as lines, bar(total=len(x), initial=len(x) - len(todo), desc="likelihood") as shown:
            for start in range(0, len(todo), batch):
                index = todo[start : start + batch]
                values = self._values(found, score, x[index], index, data, device)
                new = [{"index": i, **row} for i, row in zip(index, values, strict=True)]
                lines.write("".join(map(_line, new)))
                lines.flush()
                rows += new
                shown.update(len(index))
        print(self._summary([row for row in rows if row["index"] < len(x)], data, score.nfe))

    def _rows(self) -> list[dict[str, float]]:
        file = self.out / "likelihood.jsonl"
        text = file.read_text() if file.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]

    def _values(
        self, found: Checkpoint, score: Counted, x: Tensor, index: list[int], data: Dataset, device: torch.device
    ) -> list[dict[str, float]]:
        p, method = found.model.sde.reverse(score, 0.0), Dopri5(self.tolerance, self.tolerance)
        every = seeds(self.seed, 2 * (index[-1] + 1))  # two streams a sample: one dequantises, one probes
        probe = per_sample([every[2 * i] for i in index])
        trace = Exact() if self.exact else Hutchinson(probe)
        x, d = x.to(device), x[0].numel()
        if data.quantized is None:
            nats = log_prob(p, x, method=method, divergence=trace)
            return [{"log_p": float(v), "nats_per_dim": -float(v) / d} for v in nats]
        uniform = per_sample([every[2 * i + 1] for i in index])
        bits = bits_per_dim(p, x, data.quantized, method=method, divergence=trace, noise=uniform)
        return [{"bits_per_dim": float(v)} for v in bits]

    def _summary(self, rows: list[dict[str, float]], data: Dataset, nfe: int) -> str:
        key, unit = ("bits_per_dim", "bits/dim") if data.quantized else ("nats_per_dim", "nats/dim")
        values = torch.tensor([row[key] for row in rows], dtype=torch.float64)
        error = f" +- {float(values.std()) / math.sqrt(len(values)):.4f}" if len(values) > 1 else ""
        return (
            f"{float(values.mean()):.4f}{error} {unit} over {len(values)} samples ({self.split}); "
            f"{nfe} network calls now; one line a sample in {self.out / 'likelihood.jsonl'}"
        )


def _line(row: dict[str, float]) -> str:
    return json.dumps(row) + "\n"
