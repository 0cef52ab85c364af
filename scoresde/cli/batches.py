"""Samples in batches that several processes share, each kept as it is drawn, so that what was cut off goes on."""

import sys
from collections.abc import Callable
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from ..lab.solvers import Watched
from ..progress import bar
from .common import agreed, as_array, as_bytes, processes, total
from .folder import Folder
from .plan import SAID, duration

DONE, FIRST = "samples.npy", 4


def held(folder: Folder, rank: int, wanted: int) -> int:
    """How many of the `wanted` samples a folder holds, which is said if it is all of them; all processes are told the
    same.
    """
    if rank == 0:
        folder.gather()
    content = folder.read(DONE) if rank == 0 else None
    there = int(agreed(0 if content is None else len(as_array(content))))
    if there >= wanted and rank == 0:
        print(f"{folder.path / DONE} is complete already" + (f", and holds {there}" if there > wanted else ""))
    return there


def in_batches(
    folder: Folder,
    rank: int,
    n: int,
    batch: int,
    net: Watched,
    make: Callable[[int, int], Tensor],
    what: str,
    start: int = 0,
    each: int = 1,
    expected: int = 0,
) -> tuple[Tensor | None, str]:
    """What make(first, how many) draws, from `start` up to n: in the first process all of it, and how many network
    calls it took, in words; None in others. each: samples in one of n. expected: network calls that a batch takes, if
    that is known: then it is said how long all will take, by the first calls. `enter` ends it.
    """
    parts = {k: f"part-{k:08d}-{min(batch, n - k):08d}.npy" for k in range(start, n, batch)}
    missing = agreed([k for k, part in parts.items() if rank == 0 and folder.read(part) is None])
    shown = bar(missing[rank :: processes()], desc=what, unit="batch", disable=rank > 0)
    net.nfe = net.evaluations = 0
    begun: list[float] = []

    def ask(calls: int) -> None:
        shown.set_postfix(calls=calls, refresh=False)
        begun.append(monotonic())
        if len(begun) == FIRST and expected:
            last = (begun[-1] - begun[0]) / (FIRST - 1) * expected * len(missing[rank :: processes()])
            if last >= SAID and rank == 0:
                shown.write(f"{what} will take {duration(last)}, by the first calls", file=sys.stderr)

    net.ask = ask
    for k in shown:
        folder.keep(parts[k], as_bytes(make(k, min(batch, n - k)).cpu().numpy()))
    calls, evaluations = total(net.nfe), total(net.evaluations)
    if rank > 0:
        return None, ""
    folder.gather()
    x = torch.from_numpy(np.concatenate([as_array(folder.read(part) or b"") for part in parts.values()]))
    said = f"{calls} network calls, for the {len(missing)} of {len(parts)} batches drawn now"
    drawn = each * sum(min(batch, n - k) for k in missing)
    return x, f"{evaluations / drawn:.4g} network calls a sample ({said})" if drawn else said


def enter(folder: Folder, x: Tensor) -> None:
    """All samples, as one file, in place of those of the batches."""
    folder.keep(DONE, as_bytes(x.numpy()))  # last, since it says that all is there
    folder.drop(*(name for (name,) in list(folder.files) if name.startswith("part-")))
