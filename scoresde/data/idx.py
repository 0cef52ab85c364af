"""The IDX files of MNIST and of what is stored like it, Fashion-MNIST, KMNIST and EMNIST."""

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..quantize import Quantized
from ..values import later
from .dataset import Dataset, Source, check_memory, class_names, known_path

TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
"""What the third byte of a file says of its numbers."""
SPLITS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
DIMENSIONS = {"images": 3, "labels": 1}
CHUNK = 2**20


@dataclass(frozen=True)
class Idx(Source):
    """Images of one channel in IDX files, 256 levels on [-1, 1]: the official part to train on, and the test images
    held out.

    The files are train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte,
    or with .idx for -idx, and each with .gz or not; of several spellings the first of these is read. What a file holds,
    and not its name, tells whether it is packed. Those of a split of EMNIST (Cohen et al. 2017), such as "letters", are
    emnist-letters-train-images-idx3-ubyte and so on, with test for t10k: its images lie on their sides and are turned,
    and the labels of its letters, which are 1 to 26, become 0 to 25.
    """

    folder: Path
    """Where the files are."""
    names: tuple[str, ...] = ()
    """The names of labels 0, 1, ...; none if empty."""
    split: str = later("")
    """Which split of EMNIST; none of them if empty."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", known_path("folder", self.folder))
        object.__setattr__(self, "names", class_names(self.names))
        if not isinstance(self.split, str) or self.split not in ("", *SPLITS):
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, or empty, got {self.split!r}")

    def load(self) -> Dataset:
        """The images, (n, 1, height, width) in uint8, and their labels, if there are files of them.

        Raises ValueError, naming the file, for one that is missing, damaged or packed wrongly, that does not hold uint8
        in 3 or 1 dimensions, or not exactly as many as it declares; for images without pixels or of two sizes, another
        number of labels than of images, and labels of one part only.
        """
        parts = [f"emnist-{self.split}-{part}" for part in ("train", "test")] if self.split else ["train", "t10k"]
        (x, y), (x_test, y_test) = map(self._part, parts)
        if (y is None) != (y_test is None):
            lacks = _spelt(parts[y is not None], "labels")[0]
            raise ValueError(f"folder must hold {lacks} or .gz, or no labels, got {str(self.folder)!r} without")
        if x.shape[1:] != x_test.shape[1:]:
            sizes = f"{tuple(x.shape[1:])}, as those to train on are, got {tuple(x_test.shape[1:])}"
            raise ValueError(f"{self._find(parts[1], 'images')} must hold images of {sizes}")
        return Dataset(x, x_test, y, y_test, Quantized(256, -1.0, 1.0), self.names)

    def _part(self, part: str) -> tuple[Tensor, Tensor | None]:
        file, of_labels = (self._find(part, what) for what in DIMENSIONS)
        if file is None:
            raise ValueError(f"folder must hold {_spelt(part, 'images')[0]} or .gz, got {str(self.folder)!r} without")
        x = torch.from_numpy(_read(file, DIMENSIONS["images"])[:, None])
        x = x.transpose(-1, -2).contiguous() if self.split else x
        if of_labels is None:
            return x, None
        y = torch.from_numpy(_read(of_labels, DIMENSIONS["labels"]))
        if len(y) != len(x):
            raise ValueError(f"{of_labels} must hold {len(x)} labels, one for each image of {file}, got {len(y)}")
        if self.split == "letters":
            if len(y) and int(y.min()) < 1:
                raise ValueError(f"{of_labels} must hold 1 to 26, the letters, got 0")
            y = y - 1
        return x, y

    def _find(self, part: str, what: str) -> Path | None:
        return next((file for name in _spelt(part, what) if os.path.isfile(file := self.folder / name)), None)


def _spelt(part: str, what: str) -> list[str]:
    return [f"{part}-{what}{mark}idx{DIMENSIONS[what]}-ubyte{end}" for mark in "-." for end in ("", ".gz")]


def _read(file: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of a file. Raises ValueError, naming it, unless it has these dimensions and nothing else."""
    try:
        with open(file, "rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            magic = stream.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES:
                raise ValueError(f"it must begin with 0, 0, a type and the number of dimensions, got {list(magic)}")
            if magic[2:] != bytes([0x08, dimensions]):
                said = f"{TYPES[magic[2]]} in {magic[3]} dimensions"
                raise ValueError(f"it must hold uint8 in {dimensions} dimensions, got {said}")
            header = stream.read(4 * dimensions)
            shape = tuple(int.from_bytes(header[k : k + 4], "big") for k in range(0, len(header), 4))
            if len(header) < 4 * dimensions or not all(shape[1:]):
                raise ValueError(f"it must declare {dimensions} lengths, and images of pixels, got {shape}")
            size = math.prod(shape)
            check_memory(f"an array of {shape}", 2 * size)
            content = bytearray()
            while part := stream.read(min(CHUNK, size + 1 - len(content))):  # the end of gzip has a sum to check
                content += part
        if len(content) != size:
            found = f"{len(content)}, its end is missing" if len(content) < size else "more"
            raise ValueError(f"it must hold {size} bytes after its header, an array of {shape}, got {found}")
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{file} cannot be read as IDX: {error}") from error
