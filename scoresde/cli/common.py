"""What the commands share: options, devices, and sampling in chunks."""

import io
import json
import os
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .. import nn
from ..checkpoint import describe, write
from ..noise import per_sample, seeds
from ..progress import bar
from ..sample import Step, trajectory
from ..sde import Reverse


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of every command."""

    seed: int = 0
    """The seed of everything random: the same seed gives the same result."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, got {self.seed}")

    def run(self) -> None:
        """Do it. Raises ValueError for options that cannot be met."""
        raise NotImplementedError

    def place(self) -> torch.device:
        """The device. Raises ValueError if it cannot be used."""
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            torch.empty(1, device=name)
            return torch.device(name)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device must be one that torch can use here, got {self.device!r}: {error}") from error


@dataclass(frozen=True)
class UNet:
    """A U-Net, for images."""

    width: int = 16
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each level in units of width; one level an entry, each at half the resolution of the one before."""
    blocks: int = 2
    """Residual blocks a level."""
    attention: int = 1
    """The number of levels, from the bottom, with attention."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Network:
        """The network for samples of that shape."""
        return nn.UNet(shape, self.width, self.multipliers, self.blocks, self.attention, classes)


@dataclass(frozen=True)
class MLP:
    """A multilayer perceptron, for vectors and small arrays."""

    width: int = 128
    """Units a layer."""
    depth: int = 4
    """Residual blocks."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Network:
        """The network for samples of that shape."""
        return nn.MLP(shape, self.width, self.depth, classes)


def join_processes() -> int:
    """Join the group that `torchrun` started, if it did, and return this process's rank."""
    if "WORLD_SIZE" not in os.environ:
        return 0
    if not dist.is_initialized():
        dist.init_process_group("gloo" if not torch.cuda.is_available() else "nccl")
    return dist.get_rank()


def draw(
    p: Reverse,
    shape: tuple[int, ...],
    ts: Tensor,
    steps: tuple[Step, ...],
    *,
    seed: int,
    n: int,
    start: int = 0,
    device: torch.device | str = "cpu",
    denoise: bool = True,
    progress: str = "",
) -> Tensor:
    """Samples start, ..., start + n - 1 of the collection `seed`, (n, *shape) in float32, the same in any chunks.

    denoise: end with the mean of x_0 given x at the last time, one more network call unless sigma is 0 there already.
    progress: the title of a bar. Raises RuntimeError if a sample is not finite.
    """
    noise = per_sample(seeds(seed, n, start))
    states = trajectory(p, p.sde.prior((n, *shape), noise, torch.float32, device), ts, *steps, noise=noise)
    x = deque(
        bar(states, desc=progress, total=len(ts), disable=not (progress and sys.stderr.isatty()), leave=False), maxlen=1
    ).pop()
    if denoise and p.sde.var(ts[-1]) > 0:
        with torch.no_grad():
            x = p.denoise(x, ts[-1])
    if not x.isfinite().all():
        raise RuntimeError(f"samples are not finite: the score is not, somewhere on the grid {ts[0]:g} to {ts[-1]:g}")
    return x


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
