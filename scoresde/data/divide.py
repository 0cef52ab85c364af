"""Numbers as they were read, in two parts: grey levels in bytes, continuous ones in float32, in units of their own."""

import warnings

import numpy as np
import torch
from torch import Tensor

from ..quantize import Quantized
from ..units import Units
from .dataset import Dataset, split


def divided(
    a: np.ndarray,
    levels: int | None,
    held_out: float,
    seed: int,
    name: str,
    labels: tuple[np.ndarray, tuple[str, ...]] | None = None,
    standardise: bool = False,
    columns: tuple[str, ...] = (),
) -> Dataset:
    """The samples in two parts, their labels (n,) with the names that these have, and the names of the columns of a
    table; continuous ones in units of those to train on if asked for.
    """
    train, held = split(len(a), held_out, seed)
    if not len(train):
        raise ValueError(f"held_out must leave samples to train on, got {held_out:g} of {len(a)} samples")
    x, quantized, units = None, None, None
    if a.dtype.kind != "f":
        x, quantized = discrete(a, levels, name)
    else:
        require_continuous(a, levels, name)
        if standardise:
            x = torch.from_numpy(a.astype(np.float64))
            units = Units.fit(x[train])
            a = units.standardise(x).numpy()
        x = _single(a, name)
    y, names = (None, ()) if labels is None else labels
    whole = None if y is None else torch.from_numpy(np.ascontiguousarray(y, dtype=np.int64))
    y_train, y_held = (None, None) if whole is None else (whole[train], whole[held])
    return Dataset(x[train], x[held], y_train, y_held, quantized, names, units, columns)


def numbered(words: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Each word's place among those that there are, and these in order."""
    names, places = np.unique(words, return_inverse=True)
    return places, tuple(names.tolist())


def require_continuous(a: np.ndarray, levels: int | None, name: str) -> None:
    """Raise ValueError if floating-point numbers are not finite, or are grey levels."""
    if levels is not None:
        raise ValueError(f"levels must be None for {name}, which holds {a.dtype}, got {levels}: store whole numbers")
    parts = [a[start : start + 4096] for start in range(0, len(a), 4096)]  # which may lie on the disk
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError(f"{name} must hold finite numbers, got nan or inf")
    whole = a.ndim > 2 and a.min() >= 0 and 127 < a.max() <= 255
    if whole and all((part == np.rint(part)).all() for part in parts):
        raise ValueError(
            f"{name} must hold whole numbers if these are grey levels, got {a.dtype} that are all whole, "
            f"{a.min():g} to {a.max():g}: store them as uint8"
        )


def _single(a: np.ndarray, name: str) -> Tensor:
    """The numbers in float32. Raises ValueError if they vary less than a thousand roundings."""
    with np.errstate(all="ignore"):
        x = np.ascontiguousarray(a, dtype=np.float32)
        if a.dtype.itemsize > 4:
            lost, varied = abs(a - x).mean(0), abs(a - a.mean(0)).mean(0)
            if (bad := ((a != a[0]).any(0) | np.isinf(lost)) & ~(lost < 1e-3 * varied)).any():
                k = tuple(np.argwhere(bad)[0].tolist())
                raise ValueError(
                    f"{name} must hold what float32 can tell apart, but numbers like {a[0][k]:.10g} in column "
                    f"{', '.join(map(str, k))} vary by {varied[k]:.3g} and rounding changes them by {lost[k]:.3g}: "
                    "subtract what they have in common, or standardise them"
                )
    return torch.from_numpy(x)


def discrete(a: np.ndarray, levels: int | None, name: str) -> tuple[Tensor, Quantized]:
    """Grey levels as they are, which `Dataset.values` moves to [-1, 1]. Raises ValueError if they are not 0..levels-1,
    or levels is None and how many there are is not plain. Warns if few of them are used.
    """
    low, high, said = int(a.min()), int(a.max()), levels
    if levels is None and (a.dtype.kind == "b" or high == 1):
        levels = 2
    elif levels is None and (high == 255 or (a.dtype == np.uint8 and high > 127)):
        levels = 256
    if levels is None or not 0 <= low <= high < levels:
        hint = ": give their number, or store as float32 what is no grey level" if levels is None else ""
        raise ValueError(f"levels must cover the grey levels of {name}, {low} to {high}, got {said}{hint}")
    x = np.ascontiguousarray(a, dtype=np.uint8 if levels <= 256 else np.int16)
    warn_of_few(x, levels, name)
    return torch.from_numpy(x), Quantized(levels, -1.0, 1.0)


def warn_of_few(x: np.ndarray, levels: int, name: str) -> None:
    """Warn if grey levels x (n, *D) are but an eighth of all that there are, or fewer."""
    comes = np.zeros(levels, bool)
    for start in range(0, len(x), 1024):
        comes[x[start : start + 1024].ravel()] = True
    used = np.flatnonzero(comes)
    if len(used) <= levels // 8 and x.size > 8 * levels:
        some = ", ".join(map(str, used[:4]))
        warnings.warn(
            f"{name} uses {len(used)} of {levels} grey levels, {some}, ...: number those that there are from 0 on, "
            "since bits/dim are of levels of which most never come",
            stacklevel=5,
        )
