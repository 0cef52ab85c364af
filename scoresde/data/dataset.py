"""A `Dataset`, samples to train on and samples held out, and a `Source` that says where they come from."""

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..files import digest
from ..quantize import Quantized
from ..reference import Reference
from ..shapes import count, number, state
from ..units import Units
from ..values import describe, identity

STORED = (torch.uint8, torch.int16)
"""What grey levels are stored as."""


@dataclass(frozen=True)
class Dataset:
    """train (n, *D) and held_out (m, *D), n > 0, in float32 or float64, or grey levels as they are stored, 0 to
    levels - 1 in uint8 or int16, which `values` moves to where they lie; their labels (n,) and (m,), whole numbers from
    0 on, which become int64, or None; the grid they lie on, or None for continuous data; the names of labels 0, 1, ...,
    none if they have none; the units of continuous data, None if they are as they came; the names of the columns of a
    table, none if they have none.

    Warns of the columns of a table (n, d) of continuous data that are constant, or that differ 1000 times in deviation.
    Raises ValueError, naming the field, for numbers of another type, not finite or not on the grid, for shapes that do
    not fit together, for labels that are not as stated or that only one part has, and for names that are not of them.
    """

    train: Tensor
    held_out: Tensor
    train_labels: Tensor | None = None
    held_out_labels: Tensor | None = None
    quantized: Quantized | None = None
    names: tuple[str, ...] = ()
    units: Units | None = None
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.quantized, Quantized | None):
            raise ValueError(f"quantized must be a Quantized or None, got {self.quantized!r}")
        if not isinstance(self.units, Units | None) or (self.units and self.quantized):
            raise ValueError(f"units must be those of continuous data or None, got {self.units!r}")
        for name in ("train", "held_out"):
            x, y = getattr(self, name), getattr(self, f"{name}_labels")
            dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta
            known = (torch.float32, torch.float64, *(STORED if self.quantized else ()))
            if not dense or x.dtype not in known or x.ndim < 2:
                raise ValueError(
                    f"{name} must be a dense float32 or float64 tensor of shape (n, *D), or uint8 if quantized says on "
                    f"what grid, got {_said(x)}: convert it"
                )
            if x.shape[1:] != self.train.shape[1:]:
                raise ValueError(f"{name} must hold samples of shape {self.shape}, as train does, got {_said(x)}")
            if not len(self.train):
                raise ValueError(f"data must have samples to train on, got a train of shape {tuple(x.shape)}")
            object.__setattr__(self, name, x.contiguous())
            if len(x) and x.dtype in STORED:
                _check_levels(name, x, self.quantized)
            elif len(x):
                state(name, x)
                if self.quantized:
                    _check_grid(name, x, self.quantized)
            if y is not None:
                object.__setattr__(self, f"{name}_labels", _labels(f"{name}_labels", y, len(x)))
        if (self.train_labels is None) != (self.held_out_labels is None):
            has, lacks = ("held_out", "train") if self.train_labels is None else ("train", "held_out")
            raise ValueError(f"{lacks}_labels must be given if {has}_labels are, got None")
        if self.units and len(self.units.mean) != self.shape[0]:
            raise ValueError(f"units must be of the {self.shape[0]} features of train, got {self.units!r}")
        if self.columns and len(self.columns) != self.shape[0]:
            raise ValueError(f"columns must name the {self.shape[0]} columns of train, got {self.columns}")
        object.__setattr__(self, "names", class_names(self.names))
        if self.names and (self.train_labels is None or self.classes > len(self.names)):
            what = f"{self.classes} labels" if self.train_labels is not None else "no labels"
            raise ValueError(f"names must be those of all labels, got {len(self.names)} for {what}")
        if self.train.ndim == 2 and len(self.train) > 1 and self.quantized is None:
            self._compare_columns()

    def _compare_columns(self) -> None:
        constant = torch.stack([(part == self.train[0]).all(0) for part in self.train.split(4096)]).all(0)
        if constant.any():
            k, n = int(constant.nonzero()[0]), int(constant.sum())
            warnings.warn(f"{n} columns of train are constant, such as {k}: leave out what is known", stacklevel=4)
        std = self.moments[1].masked_fill(constant, math.nan)
        low, high = (int(a.nan_to_num(fill).argmin()) for a, fill in ((std, math.inf), (-std, math.inf)))
        if self.units is None and std[high] > 1000 * std[low]:
            warnings.warn(
                f"columns {low} and {high} of train have deviations {std[low]:.3g} and {std[high]:.3g}: no noise level "
                "suits both, so standardise them",
                stacklevel=4,
            )

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean of train and its standard deviation, sqrt(E (x - mean)^2), in every dimension: (*D) in float64."""
        n, parts = len(self.train), self.train.split(4096)
        mean = torch.stack([self.values(part).to(torch.float64).sum(0) for part in parts]).sum(0) / n
        off = torch.stack([(self.values(part) - mean).square().sum(0) for part in parts])
        return mean, off.sum(0).div(n).sqrt()

    @property
    def around(self) -> Reference:
        """The Gaussian of train, as `Reference.fit`. Raises ValueError for data that do not vary."""
        mean, std = self.moments
        if not std.any():
            raise ValueError(f"data must vary, got {len(self.train)} samples that are all the same")
        return Reference(mean, float(std.square().mean().sqrt()))

    def in_units(self, units: Units | None) -> "Dataset":
        """The same samples in other units, those that a network was trained in; None for those they came in. Raises
        ValueError for units of other features, and of grey levels.
        """
        if units == self.units:
            return self
        if self.quantized:
            raise ValueError(f"units must be None for data on {self.quantized}, got {units!r}")
        both = [
            x.double() if self.units is None else self.units.restore(x.double()) for x in (self.train, self.held_out)
        ]
        train, held_out = (x if units is None else units.standardise(x) for x in both)
        return replace(self, train=train.to(self.train), held_out=held_out.to(self.train), units=units)

    def values(self, x: Tensor) -> Tensor:
        """Samples of train or held_out as numbers: grey level k is low + k h, in float32; others are as they are."""
        if self.quantized is None or x.is_floating_point():
            return x
        return x.to(torch.float32) * self.quantized.width + self.quantized.low

    @property
    def shape(self) -> tuple[int, ...]:
        """D, the shape of one sample."""
        return tuple(self.train.shape[1:])

    @property
    def classes(self) -> int:
        """The number of labels, 0 for none."""
        labels = (self.train_labels, self.held_out_labels)
        return max((int(y.max()) + 1 for y in labels if y is not None and len(y)), default=0)

    @property
    def digest(self) -> str:
        """The sha256 of all samples and labels, which tells these data from any others, wherever they lie."""
        parts = (self.train, self.held_out, self.train_labels, self.held_out_labels)
        said = [identity([None if x is None else (str(x.dtype), list(x.shape)) for x in parts])]
        return digest(
            "".join([*said, repr(self.quantized), identity(describe(self.units))]).encode(),
            *(x.numpy().data for x in parts if x is not None),
        )


class Source(ABC):
    """Where samples come from."""

    bundled: ClassVar[bool] = False
    """Whether they come with the library, so that no file of the user's is read for them."""

    @abstractmethod
    def load(self) -> Dataset:
        """The samples. Raises ValueError if there are none, or they are not what the source says."""


def _said(x: Any) -> str:
    where = f"{x.layout} on {x.device}".removeprefix("torch.strided on ") if isinstance(x, Tensor) else ""
    return f"{x.dtype} of shape {tuple(x.shape)} ({where})" if where else type(x).__name__


def _check_levels(name: str, x: Tensor, quantized: Quantized | None) -> None:
    low, high = int(x.min()), int(x.max())
    if quantized is None or low < 0 or high >= quantized.levels:
        raise ValueError(
            f"{name} must hold levels of {quantized}, 0 to {quantized and quantized.levels - 1}, got {low} to {high}"
        )


def _check_grid(name: str, x: Tensor, quantized: Quantized) -> None:
    try:
        for part in x.split(4096):
            quantized.check(part)
    except ValueError as error:
        raise ValueError(f"{name} must lie on {quantized}: {error}") from error


def class_names(names: Any) -> tuple[str, ...]:
    """The names of labels 0, 1, .... Raises ValueError unless they are words that differ."""
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"names must be the names of labels 0, 1, ..., got {names!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"names must differ, got {Counter(names).most_common(1)[0][0]!r} twice")
    return tuple(names)


def _labels(name: str, y: Any, n: int) -> Tensor:
    whole = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not whole or y.shape != (n,):
        hint = ": one-hot rows become labels by argmax(1)" if isinstance(y, Tensor) and y.ndim == 2 else ""
        raise ValueError(f"{name} must be whole numbers (int64) of shape ({n},), got {_said(y)}{hint}")
    y = y.to(torch.int64)
    if n and not 0 <= int(y.min()) <= int(y.max()) < 10**6:
        raise ValueError(f"{name} must count classes from 0 on, below 10^6, got {int(y.min())} to {int(y.max())}")
    return y


def flag(name: str, value: Any) -> None:
    """Raise ValueError, naming it, unless value is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def known_path(name: str, value: Any) -> Path:
    """Return value as a path; raise ValueError, naming it, for what is none."""
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ValueError(f"{name} must be a path, got {value!r}")
    return Path(value)


def check_memory(what: str, need: int) -> None:
    """Raise ValueError if so many bytes are more than the machine has, where it says that."""
    if hasattr(os, "sysconf") and need > (have := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise ValueError(f"{what} must fit into memory, but needs {need / 2**30:.3g} GiB of {have / 2**30:.3g}")


def check_split(share: float, seed: int) -> None:
    """Raise ValueError unless 0 <= share < 1 and 0 <= seed < 2^32."""
    number("held_out", share, least=0, below=1)
    count("seed", seed, least=0, most=2**32 - 1)


def split(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The indices of 0..n-1 to train on and to hold out, round(share n) of them, by a fixed random order.

    Raises ValueError unless n is a whole number from 0, 0 <= share < 1 and 0 <= seed < 2^32.
    """
    check_split(share, seed)
    count("n", n, least=0, most=10**9)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(n))  # its stream never changes
    held = round(share * n)
    return order[held:], order[:held]
