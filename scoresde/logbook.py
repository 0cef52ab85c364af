"""What a training says of itself on its way: one JSON object a line in loss.jsonl, and TensorBoard's files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, cast

import torch

from . import grid
from .checkpoint import classes_of
from .data import Dataset
from .files import write
from .loss import Simple, cross_entropy, dsm
from .model import ClassModel, NoisyModel, ScoreModel
from .noise import iid

LINES, BEGIN, HELD_OUT = "loss.jsonl", '{"step": ', '"held_out": '
LEVELS, SAMPLES = 8, 64
"""Noise levels, and samples at each, of the loss on data that are held out."""


class Logbook:
    """Rows of a training that begins after `step`, in folder/loss.jsonl, if there is a folder: those of later steps, of
    a process that was killed, and one that it did not end are taken out, and lines that are none of these rows stay.
    reads: computes what there is to write, as several processes do together, and leaves that to another.
    """

    def __init__(self, folder: Path | None, step: int, tensorboard: Any = None, reads: bool = False) -> None:
        self.path, self.tensorboard, self.reads = folder and folder / LINES, tensorboard, reads
        self.step, self.began, self.told = step, monotonic(), -1
        if self.path and self.path.is_file():
            lines = self.path.read_text().splitlines(keepends=True)
            if lines and not lines[-1].endswith("\n"):
                lines = [*lines[:-1], *([] if lines[-1].startswith(BEGIN) else [lines[-1] + "\n"])]
            if not reads:
                write(self.path, "".join(line for line in lines if _step(line) <= step).encode())
            self.told = max((_step(line) for line in lines if HELD_OUT in line and _step(line) <= step), default=-1)

    def loss(self, step: int, loss: float, lr: float, batch: int) -> None:
        """The loss of a batch, the learning rate, and the samples that were seen a second since the last row."""
        speed = (step - self.step) * batch / max(1e-9, monotonic() - self.began)
        self._write(step, {"loss": loss, "lr": lr, "samples_per_second": round(speed, 1)})
        self.step, self.began = step, monotonic()

    def held_out(self, step: int, model: NoisyModel, data: Dataset, batch: int = SAMPLES) -> None:
        """The loss on data that are held out, at each of some noise levels, under noise that is always the same, once a
        step; batch: how many samples the network is asked at once.
        """
        if (self.path or self.tensorboard) and len(data.held_out) and step > self.told:
            self._write(step, {"held_out": held_out_loss(model, data, batch)})
            self.told = step

    def _write(self, step: int, row: dict[str, Any]) -> None:
        if self.path and not self.reads:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
        if self.tensorboard:
            flat = {f"held_out/{k}": v for k, v in row["held_out"].items()} if "held_out" in row else row
            for name, value in flat.items():
                self.tensorboard.add_scalar(name, value, step)


@torch.no_grad()
def held_out_loss(model: NoisyModel, data: Dataset, batch: int = SAMPLES) -> dict[str, float]:
    """E |eps(x_t, t) - z|^2 a dimension on the first samples held out, or E[-log p(c | x_t)] of a classifier, by
    sigma/alpha, equally spaced in log SNR.
    """
    like, g = next(model.parameters()), torch.Generator().manual_seed(0)
    x, y, found = data.values(data.held_out[:SAMPLES]), data.held_out_labels, {}
    if data.quantized:
        x = data.quantized.dequantize(x, iid(g))
    classes = classes_of(model)
    label = y[: len(x)] if y is not None and classes else None
    for t in grid.log_snr(model.sde, LEVELS - 1):
        z, errors = torch.randn(x.shape, generator=g, dtype=x.dtype, device="cpu"), []
        for rows in torch.arange(len(x)).split(batch):
            cond = {} if label is None else {"label": label[rows].to(like.device)}
            x_0, z_0 = x[rows].to(like.device), z[rows].to(like.device)
            at = t.to(x_0).expand(len(rows))
            if isinstance(model, ClassModel):
                error = cross_entropy(model, x_0, at, cond["label"], lambda *_, z_0=z_0: z_0)
            else:
                error = dsm(cast(ScoreModel, model), x_0, at, Simple(), lambda *_, z_0=z_0: z_0, **cond)
            errors.append(error.cpu())
        parts = 1 if isinstance(model, ClassModel) else x[0].numel()
        found[f"{float((-model.sde.log_snr(t)).exp()):.3g}"] = float(torch.cat(errors).mean()) / parts
    return found


def _step(line: str) -> int:
    """Of a row the step, of another line -1."""
    try:
        row = json.loads(line)
    except ValueError:
        return -1
    return row["step"] if isinstance(row, dict) and isinstance(row.get("step"), int) else -1


@contextmanager
def logbook(folder: str | Path | None, step: int, reads: bool = False) -> Iterator[Logbook]:
    """A log in folder, by TensorBoard too if that is installed; one that writes nothing without a folder, or if it
    `reads` alone.
    """
    if folder is None or reads:
        yield Logbook(None if folder is None else Path(folder), step, reads=reads)
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield Logbook(Path(folder), step)
        return
    with SummaryWriter(str(folder), purge_step=step + 1) as writer:
        yield Logbook(Path(folder), step, writer)
