"""CIFAR-10, as it is published."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..quantize import Quantized
from ..shapes import shown
from .dataset import Dataset, Source, check_memory, class_names, known_path
from .pickles import unpickle

TRAIN, TEST = tuple(f"data_batch_{k}" for k in range(1, 6)), "test_batch"
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
CLASSES = 10


@dataclass(frozen=True)
class Cifar10(Source):
    """CIFAR-10, 256 levels on [-1, 1]: the five batches to train on, and the test batch held out.

    The binary version (data_batch_1.bin) or the Python version (data_batch_1), whose pickles are read without running
    what is in them. Where there are several, the one in the folder itself comes first, and of two there the binary one.
    """

    folder: Path
    """Where the files are, or their folder, cifar-10-batches-bin or cifar-10-batches-py."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", known_path("folder", self.folder))

    def load(self) -> Dataset:
        """The images, (n, 3, 32, 32) in uint8, their labels and the names of these.

        Raises ValueError, naming the file, for one that is missing, damaged or not as the version has it, for batches
        that do not hold equally many images, as one with its end missing, and for labels other than 0 to 9.
        """
        folder, end = self._version()
        names = _names(folder / ("batches.meta.txt" if end else "batches.meta"))
        files = [folder / f"{name}{end}" for name in (*TRAIN, TEST)]
        if missing := [file for file in files if not os.path.isfile(file)]:
            raise ValueError(f"{missing[0]} must be there, beside the other batches, but is not")
        check_memory(f"the batches in {folder}", 3 * sum(os.path.getsize(file) for file in files))
        batches = [_binary(file) if end else _python(file) for file in files]
        for file, (labels, _) in zip(files, batches, strict=True):
            if len(labels) != len(batches[0][0]):
                raise ValueError(
                    f"{file} must hold {len(batches[0][0])} images, as {files[0].name} does, got {len(labels)}"
                )
            if labels.min() < 0 or labels.max() >= CLASSES:
                raise ValueError(f"{file} must hold labels 0 to 9, got {labels.min()} to {labels.max()}")
        (x, y), (x_test, y_test) = _joined(batches[:-1]), _joined(batches[-1:])
        return Dataset(x, x_test, y, y_test, Quantized(256, -1.0, 1.0), names)

    def _version(self) -> tuple[Path, str]:
        """The folder of the batches and the end of their names."""
        for inside, ends in (("", (".bin", "")), ("cifar-10-batches-bin", (".bin",)), ("cifar-10-batches-py", ("",))):
            for end in ends:
                if any(os.path.isfile(self.folder / inside / f"{name}{end}") for name in (*TRAIN, TEST)):
                    return self.folder / inside, end
        raise ValueError(
            f"folder must hold data_batch_1.bin or data_batch_1, or cifar-10-batches-bin or -py with them, got "
            f"{str(self.folder)!r}: unpack the archive there"
        )


Batch = tuple[np.ndarray, np.ndarray]


def _joined(batches: list[Batch]) -> tuple[Tensor, Tensor]:
    x = np.concatenate([pixels for _, pixels in batches]).reshape(-1, *SHAPE)
    return torch.from_numpy(x), torch.from_numpy(np.concatenate([labels for labels, _ in batches]).astype(np.int64))


def _binary(file: Path) -> Batch:
    try:
        a = np.fromfile(file, np.uint8)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not len(a) or len(a) % (1 + PIXELS):
        raise ValueError(
            f"{file} must hold images of {1 + PIXELS} bytes, a label and {PIXELS} pixels, got {len(a)} bytes"
        )
    a = a.reshape(-1, 1 + PIXELS)
    return a[:, 0], a[:, 1:]


def _python(file: Path) -> Batch:
    pixels, labels = _values(file, "data", "labels")
    known = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 2
    if not known or not len(pixels) or pixels.shape[1] != PIXELS:
        what = f"{pixels.dtype} of {pixels.shape}" if isinstance(pixels, np.ndarray) else f"a {type(pixels).__name__}"
        raise ValueError(f"{file} must hold data in uint8 of shape (n, {PIXELS}), got {what}")
    whole = isinstance(labels, list) and all(type(label) is int and abs(label) < 2**31 for label in labels)
    if not whole or len(labels) != len(pixels):
        what = f"{len(labels)}" if whole else f"a {type(labels).__name__} of others"
        raise ValueError(f"{file} must hold a list of {len(pixels)} labels, whole numbers, got {what}")
    return np.array(labels), pixels


def _values(file: Path, *keys: str) -> list[Any]:
    """What a pickled dict has under keys, bytes where Python 2 wrote it. Raises ValueError if it lacks one."""
    found = unpickle(file)
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold a dict, got a {type(found).__name__}")
    for key in keys:
        if (key in found) == (key.encode() in found):
            raise ValueError(f"{file} must hold {key!r} once, got the keys {shown(list(found))}")
    return [found[key] if key in found else found[key.encode()] for key in keys]


def _names(file: Path) -> tuple[str, ...]:
    """The names of the labels. Raises ValueError, naming the file, unless there are 10 that differ."""
    try:
        if file.suffix == ".txt":
            with open(file, encoding="utf-8") as opened:
                words = [line.strip() for line in opened.read(2**16).split("\n") if line.strip()]
        else:
            (words,) = _values(file, "label_names")
            if not isinstance(words, list):
                raise ValueError(f"label_names must be a list, got a {type(words).__name__}")
            words = [word.decode() if isinstance(word, bytes) else word for word in words]
        if len(words) != CLASSES:
            raise ValueError(f"{CLASSES} lines or words, got {len(words)}")
        return class_names(words)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} must hold the names of the {CLASSES} labels: {error}") from error
