"""Arrays in NumPy's files."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..shapes import count
from .dataset import Dataset, Source, check_memory, check_split, flag, known_path
from .divide import divided, numbered


@dataclass(frozen=True)
class Array(Source):
    """An array in a .npy file, or one of a .npz file: samples along the first axis.

    Whole numbers are grey levels 0..levels-1 and are moved to [-1, 1]; floating-point numbers are taken as they are, if
    float32 can hold them: to a thousandth of the mean deviation of each column.
    """

    path: Path
    """The .npy or .npz file."""
    key: str = ""
    """Which array of a .npz file; the only one if empty."""
    levels: int | None = None
    """The number of grey levels, if the numbers are whole; unless said, 2 for booleans and for 0 and 1, and 256 for
    numbers up to 255, or bytes above 127."""
    channels_last: bool | None = None
    """Whether images are stored as (n, height, width, channels); must be said where the shape looks so."""
    held_out: float = 0.1
    """The share of the samples that is not trained on."""
    seed: int = 0
    """The seed that chooses them."""
    labels: str = ""
    """Which array of a .npz file holds the labels (n,), whole numbers from 0 on, or the names of classes, which are
    then numbered in the order of the alphabet; empty for none."""
    standardise: bool = True
    """Whether floating-point numbers are moved to mean 0 and deviation 1 in every column, of images every channel."""
    series: bool = False
    """Whether an array (n, channels, length) holds series; images of one channel unless said."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", known_path("path", self.path))
        for name, value in (("key", self.key), ("labels", self.labels)):
            if not isinstance(value, str):
                raise ValueError(f"{name} must be the name of an array, got {value!r}")
        if self.levels is not None:  # float32 does not tell more of them apart to 1e-3 of a bin
            count("levels", self.levels, least=2, most=4096)
        if self.channels_last is not None:
            flag("channels_last", self.channels_last)
        flag("standardise", self.standardise)
        flag("series", self.series)
        check_split(self.held_out, self.seed)

    def load(self) -> Dataset:
        """The samples, (n, *D); unless they are series, (n, height, width) become images of one channel, (n, 1, height,
        width).

        Raises ValueError, naming the file or the field, for what is not as the fields say, or can be read in two ways.
        """
        a, y = self._read()
        if a.ndim < 2 or len(a) < 2 or a.size == 0 or a.dtype.kind not in "buif":
            raise ValueError(f"{self.path} must hold numbers of shape (n, *D) with n > 1, got {a.dtype} of {a.shape}")
        if y is not None and (y.shape != (len(a),) or y.dtype.kind not in "iuU"):
            what = f"got {y.dtype} of {y.shape}"
            raise ValueError(f"labels of {self.path} must be whole numbers or names of shape ({len(a)},), {what}")
        check_memory(str(self.path), (8 if a.dtype.kind == "f" else 2) * a.size + 2 * a.nbytes)  # and in two parts
        a = self._channels_first(a)
        if self.series and a.ndim != 3:
            raise ValueError(
                f"series must be False for {self.path} of shape {a.shape}, which is no (n, channels, length)"
            )
        if a.ndim == 3 and not self.series:
            a = a[:, None]
        labels = None if y is None else numbered(y) if y.dtype.kind == "U" else (y, ())
        return divided(a, self.levels, self.held_out, self.seed, str(self.path), labels, self.standardise)

    def _channels_first(self, a: np.ndarray) -> np.ndarray:
        shape, said, image = a.shape, self.channels_last, a.ndim >= 4
        if said is None and image and shape[-1] <= 4 < shape[1]:
            raise ValueError(
                f"channels_last must be given for {self.path} of shape {shape}: True if it is (n, height, width, "
                "channels), False if it is (n, channels, height, width)"
            )
        if said and (not image or (shape[1] in (1, 3) and min(shape[2:]) > 4)):
            raise ValueError(f"channels_last must be False for {self.path} of shape {shape}: its channels are not last")
        return np.moveaxis(a, -1, 1) if said else a

    def _read(self) -> tuple[np.ndarray, np.ndarray | None]:
        if not os.path.isfile(self.path):
            raise ValueError(f"path must be a .npy or .npz file, got {str(self.path)!r}, which is not there")
        try:
            check_memory("it", os.path.getsize(self.path))
            read = np.load(self.path, allow_pickle=False)
            if isinstance(read, np.ndarray):
                for name, value in (("key", self.key), ("labels", self.labels)):
                    if value:
                        raise ValueError(f"{name} must be empty, since there is one array in it, got {value!r}")
                return read, None
            with read:
                rest = [name for name in read.files if name != self.labels]
                key = self.key or (rest[0] if len(rest) == 1 else "")
                for name, value in (("key", key), ("labels", self.labels or key)):
                    if value not in read.files:
                        raise ValueError(f"{name} must be one of {', '.join(read.files)}, got {value!r}")
                check_memory("it", sum(file.file_size for file in read.zip.infolist()))
                a = np.asarray(read[key])  # bytes, if it is no .npy inside
                return a, np.asarray(read[self.labels]) if self.labels else None
        except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for a damaged file
            raise ValueError(f"{self.path} cannot be read as a plain array: {error}") from error
