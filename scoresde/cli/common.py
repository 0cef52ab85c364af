"""What the commands share: the device, files of rows, and what a folder of results is of."""

import io
import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..checkpoint import Checkpoint, load, recorded_net, recorded_shape
from ..data import Source
from ..files import write
from ..values import describe
from .parts import read_data, read_net


def place(o: Namespace) -> torch.device:
    """The device. Raises ValueError if it cannot be used, and for a seed that cannot."""
    if not 0 <= o.seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, got {o.seed}")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if o.device == "auto" else o.device
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be one that torch can use here, got {o.device!r}: {error}") from error


def model_of(o: Namespace, device: torch.device) -> Checkpoint:
    """The checkpoint in o.model, its network made by o.net if the manifest cannot make it."""
    if o.net is None:
        return load(o.model, device=device)
    config = (recorded_net(o.model) or {}).get("config") or {}
    return load(o.model, read_net(o.net, recorded_shape(o.model), int(config.get("classes", 0))), device)


def one_subject(o: Namespace) -> None:
    """Raise ValueError if there is a law in o beside a model or data."""
    for name, what in (("model", "a model"), ("data", "data")):
        if o.law and getattr(o, name, None):
            raise ValueError(f"law must not be given beside {what}, got {o.law!r}")


def source_of(o: Namespace, found: Checkpoint) -> Source:
    """The data in o.data, if the command has it, or else those that the checkpoint says it was trained on."""
    if getattr(o, "data", None):
        return read_data(o.data)
    if found.source is None:
        raise ValueError("model must be a checkpoint that says what data it was trained on, and this one does not")
    return found.source


def join_processes() -> int:
    """Join the group that `torchrun` started, if it did, and return this process's rank."""
    if "WORLD_SIZE" not in os.environ:
        return 0
    if not dist.is_initialized():
        dist.init_process_group("gloo" if not torch.cuda.is_available() else "nccl")
    return dist.get_rank()


def as_bytes(a: np.ndarray) -> bytes:
    """The content of a .npy file."""
    file = io.BytesIO()
    np.save(file, a, allow_pickle=False)
    return file.getvalue()


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, without a last line that was cut off; none if there is no file."""
    text = file.read_text() if file.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]


def as_lines(rows: Iterable[dict[str, Any]]) -> str:
    """The content of a file of JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


class Rows(dict[tuple[Any, ...], dict[str, Any]]):
    """The rows of a file of JSON lines by their columns `key`, those that are to be kept; without a last line that was
    cut off.
    """

    def __init__(self, file: Path, *key: str, keep: Callable[[dict[str, Any]], bool] = bool) -> None:
        self.file, self.key = file, key
        super().__init__({tuple(row[k] for k in key): row for row in read_lines(file) if keep(row)})
        write(file, as_lines(self.values()).encode())

    def add(self, row: dict[str, Any]) -> None:
        """A new row, here and in the file."""
        with self.file.open("a") as lines:
            lines.write(as_lines([row]))
        self[tuple(row[k] for k in self.key)] = row


def recipe(out: Path, **values: Any) -> None:
    """Write recipe.json into out, or find it there. Raises ValueError if another one is there with its results, which
    would be mixed up with these; alone, left by a command that failed before its first result, it is replaced.
    """
    out.mkdir(parents=True, exist_ok=True)
    now, file = {k: describe(v) for k, v in values.items()}, out / "recipe.json"
    if file.is_file() and any(f != file and not f.name.startswith(".") and f.stat().st_size for f in out.iterdir()):
        try:
            was = json.loads(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}): delete it, or give another --out") from error
        for key in now:
            if json.loads(json.dumps(now[key])) != was.get(key):
                raise ValueError(
                    f"out holds results with {key} = {was.get(key)!r}, not {now[key]!r}: give another --out"
                )
    else:
        write(file, json.dumps(now, indent=2).encode())
