"""What a training says of itself on its way: one JSON object a line in loss.jsonl, and TensorBoard's files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from . import grid
from .data import Dataset
from .files import write
from .loss import Simple, dsm
from .model import ScoreModel
from .noise import iid

LINES = "loss.jsonl"
LEVELS, SAMPLES = 8, 64
"""Noise levels, and samples at each, of the loss on data that are held out."""


class Logbook:
    """Rows of a training that begins after `step`, in folder/loss.jsonl, if there is a folder: those of later steps, of
    a process that was killed, are taken out, and lines that are none of these rows stay.
    """

    def __init__(self, folder: Path | None, step: int, tensorboard: Any = None) -> None:
        self.path, self.tensorboard = folder and folder / LINES, tensorboard
        self.step, self.began = step, monotonic()
        if self.path and self.path.is_file():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = "".join(line for line in lines if _step(line) <= step)
            write(self.path, (kept if kept.endswith("\n") or not kept else kept + "\n").encode())

    def loss(self, step: int, loss: float, lr: float, batch: int) -> None:
        """The loss of a batch, the learning rate, and the samples that were seen a second since the last row."""
        speed = (step - self.step) * batch / max(1e-9, monotonic() - self.began)
        self._write(step, {"loss": loss, "lr": lr, "samples_per_second": round(speed, 1)})
        self.step, self.began = step, monotonic()

    def held_out(self, step: int, model: ScoreModel, data: Dataset) -> None:
        """The loss on data that are held out, at each of some noise levels, under noise that is always the same."""
        if (self.path or self.tensorboard) and len(data.held_out):
            self._write(step, {"held_out": held_out_loss(model, data)})

    def _write(self, step: int, row: dict[str, Any]) -> None:
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
        if self.tensorboard:
            flat = {f"held_out/{k}": v for k, v in row["held_out"].items()} if "held_out" in row else row
            for name, value in flat.items():
                self.tensorboard.add_scalar(name, value, step)


@torch.no_grad()
def held_out_loss(model: ScoreModel, data: Dataset) -> dict[str, float]:
    """E |eps(x_t, t) - z|^2 a dimension on the first samples held out, by sigma/alpha, equally spaced in log SNR."""
    like, g = next(model.parameters()), torch.Generator().manual_seed(0)
    x, y, found = data.values(data.held_out[:SAMPLES]), data.held_out_labels, {}
    if data.quantized:
        x = data.quantized.dequantize(x, iid(g))
    x = x.to(like.device)
    told = getattr(model.net, "classes", 0) and y is not None
    cond = {"label": y[:SAMPLES].to(like.device)} if told and y is not None else {}
    for t in grid.log_snr(model.sde, LEVELS - 1):
        errors = dsm(model, x, t.to(x).expand(len(x)), Simple(), iid(g), **cond)
        found[f"{float((-model.sde.log_snr(t)).exp()):.3g}"] = float(errors.mean()) / x[0].numel()
    return found


def _step(line: str) -> int:
    """Of a row the step, of another line -1."""
    try:
        row = json.loads(line)
    except ValueError:
        return -1
    return row["step"] if isinstance(row, dict) and isinstance(row.get("step"), int) else -1


@contextmanager
def logbook(folder: str | Path | None, step: int) -> Iterator[Logbook]:
    """A log in folder, by TensorBoard too if that is installed; one that writes nothing without a folder."""
    if folder is None:
        yield Logbook(None, step)
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield Logbook(Path(folder), step)
        return
    with SummaryWriter(str(folder)) as writer:
        yield Logbook(Path(folder), step, writer)
