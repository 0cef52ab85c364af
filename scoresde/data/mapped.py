"""Samples that stay on the disk."""

import mmap
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..shapes import count
from .dataset import Dataset, Source, check_split, flag, known_path
from .divide import discrete, require_continuous


@dataclass(frozen=True)
class Mapped(Source):
    """An array in a .npy file larger than the memory: what a step of training needs is read from the file, in which it
    stays. Samples are along the first axis, as `Array` reads them: uint8 are grey levels on [-1, 1], float32 continuous
    data, which are taken as they are.

    The samples are not moved either: the last ones are held out, so that the file's order must be a random one. To load
    it reads the whole file once, as its digest does again.
    """

    path: Path
    """The .npy file."""
    labels: Path | None = None
    """A .npy file of labels (n,), whole numbers from 0 on; none if None."""
    levels: int | None = None
    """The number of grey levels; unless said, 2 for 0 and 1, and 256 for numbers above 127."""
    held_out: float = 0.1
    """The share of the samples, at the end, that is not trained on."""
    series: bool = False
    """Whether an array (n, channels, length) holds series; images of one channel unless said."""
    channels_last: bool | None = None
    """False where the shape looks as if images were stored as (n, height, width, channels), which they must not be."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", known_path("path", self.path))
        if self.labels is not None:
            object.__setattr__(self, "labels", known_path("labels", self.labels))
        if self.levels is not None:
            count("levels", self.levels, least=2, most=256)
        flag("series", self.series)
        if self.channels_last not in (None, False):
            raise ValueError(f"channels_last must be False or None, got {self.channels_last!r}")
        check_split(self.held_out, 0)

    def load(self) -> Dataset:
        """The samples, (n, *D), which are in the file still.

        Raises ValueError, naming the file, unless it holds uint8 or float32 in the order of C, with channels first; and
        for labels that are not one for each sample.
        """
        a = _opened(self.path)
        if a.ndim < 2 or len(a) < 2 or a.size == 0 or a.dtype not in (np.uint8, np.float32) or not a.flags.c_contiguous:
            raise ValueError(
                f"{self.path} must hold uint8 or float32 of shape (n, *D) with n > 1, in the order of C, got {a.dtype} "
                f"of {a.shape}: store it as that, or take Array"
            )
        if self.channels_last is None and a.ndim >= 4 and a.shape[-1] <= 4 < a.shape[1]:
            raise ValueError(
                f"{self.path} of shape {a.shape} must hold images with channels first: channels_last=False says that "
                "it does; if not, store it as that"
            )
        if self.series and a.ndim != 3:
            raise ValueError(f"series must be False for {self.path} of {a.shape}, which is no (n, channels, length)")
        y = None if self.labels is None else _opened(self.labels)
        if y is not None and (y.shape != (len(a),) or y.dtype.kind not in "iu"):
            raise ValueError(f"{self.labels} must hold whole numbers of shape ({len(a)},), got {y.dtype} of {y.shape}")
        quantized = None
        if a.dtype == np.uint8:
            x, quantized = discrete(a, self.levels, str(self.path))
        else:
            require_continuous(a, self.levels, str(self.path))
            x = torch.from_numpy(a)
        if x.ndim == 3 and not self.series:
            x = x[:, None]
        kept = len(x) - round(self.held_out * len(x))
        if not kept:
            raise ValueError(f"held_out must leave samples to train on, got {self.held_out:g} of {len(x)} samples")
        told = None if y is None else torch.from_numpy(y.astype(np.int64))
        y_train, y_held = (None, None) if told is None else (told[:kept], told[kept:])
        return Dataset(x[:kept], x[kept:], y_train, y_held, quantized)


def _private(file: int) -> mmap.mmap:
    """The content of a file; what is written into it stays here, and no memory is set aside for that, of which there
    may be too little.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
    return mmap.mmap(file, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _opened(path: Path) -> np.ndarray:
    """The array of a file; what is written into it would not reach the file. Raises ValueError, naming it."""
    if not os.path.isfile(path):
        raise ValueError(f"path must be a .npy file, got {str(path)!r}, which is not there")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.memmap):
            raise ValueError("it holds several arrays")
        with open(path, "rb") as file:
            content = _private(file.fileno())
        order: Literal["C", "F"] = "C" if found.flags.c_contiguous else "F"
        return np.ndarray(found.shape, found.dtype, content, found.offset, order=order)
    except Exception as error:  # numpy raises several kinds for a damaged file
        raise ValueError(f"{path} cannot be read as a .npy file: {error}") from error
