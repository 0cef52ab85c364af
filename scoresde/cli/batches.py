"""Samples in batches that several processes share, each kept as it is drawn, so that what was cut off goes on."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..lab.solvers import Watched
from ..progress import bar
from .common import agreed, as_array, as_bytes, processes, total
from .folder import Folder

DONE = "samples.npy"


def complete(folder: Folder, rank: int) -> bool:
    """Whether a folder holds what was asked for, which is said then; all processes are told the same."""
    if rank == 0:
        folder.gather()
    done = bool(agreed(rank == 0 and folder.read(DONE) is not None))
    if done and rank == 0:
        print(f"{folder.path / DONE} is complete already")
    return done


def in_batches(
    folder: Folder, rank: int, n: int, batch: int, net: Watched, make: Callable[[int, int], Tensor], what: str
) -> tuple[Tensor | None, str]:
    """What make(start, how many) draws, for n in all: in the first process all of it, and how many network calls it
    took, in words; None in others. `enter` ends it.
    """
    parts = {start: f"part-{start:08d}-{min(batch, n - start):08d}.npy" for start in range(0, n, batch)}
    missing = agreed([start for start, part in parts.items() if rank == 0 and folder.read(part) is None])
    shown = bar(missing[rank :: processes()], desc=what, unit="batch", disable=rank > 0)
    net.nfe = 0
    net.ask = lambda calls: shown.set_postfix(calls=calls, refresh=False)
    for start in shown:
        folder.keep(parts[start], as_bytes(make(start, min(batch, n - start)).cpu().numpy()))
    calls = total(net.nfe)
    if rank > 0:
        return None, ""
    folder.gather()
    x = torch.from_numpy(np.concatenate([as_array(folder.read(part) or b"") for part in parts.values()]))
    return x, f"{calls} network calls, for the {len(missing)} of {len(parts)} batches drawn now"


def enter(folder: Folder, x: Tensor) -> None:
    """All samples, as one file, in place of those of the batches."""
    folder.keep(DONE, as_bytes(x.numpy()))  # last, since it says that all is there
    folder.drop(*(name for (name,) in list(folder.files) if name.startswith("part-")))
