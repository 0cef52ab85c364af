"""Data to train on, and data held out.

A `Source` is a frozen value that says where samples come from; `load()` gives them as a `Dataset`. Discrete data (grey
levels) are stored on [-1, 1] together with their `Quantized`, from which every later bits/dim follows; continuous data
are taken as they are. Which samples are held out depends on the seed of the source alone.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .files import digest
from .quantize import Quantized
from .shapes import count, number
from .values import identity


@dataclass(frozen=True)
class Dataset:
    """train (n, *D) and held_out (m, *D) in float32; their labels (n,) and (m,), or None; the grid they lie on, or None
    for continuous data.
    """

    train: Tensor
    held_out: Tensor
    train_labels: Tensor | None = None
    held_out_labels: Tensor | None = None
    quantized: Quantized | None = None

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
            "".join([*said, repr(self.quantized)]).encode(), *(x.numpy().data for x in parts if x is not None)
        )


class Source(ABC):
    """Where samples come from."""

    @abstractmethod
    def load(self) -> Dataset:
        """The samples. Raises ValueError if there are none, or they are not what the source says."""


def split(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The indices of 0..n-1 to train on and to hold out, round(share n) of them, by a fixed random order."""
    number("held_out", share, least=0, below=1)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(n))  # its stream never changes
    held = round(share * n)
    return order[held:], order[:held]


@dataclass(frozen=True)
class Digits(Source):
    """The 1797 handwritten digits of 8x8 pixels and 17 grey levels that scikit-learn bundles (Alpaydin & Kaynak 1998):
    1438 to train on, 359 held out.
    """

    def load(self) -> Dataset:
        """x/8 - 1 of the grey levels 0..16, as (n, 1, 8, 8)."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ValueError("the digits come with scikit-learn: pip install 'scoresde[app]'") from error
        raw = load_digits()
        x = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 8 - 1
        y = torch.tensor(raw.target, dtype=torch.long)
        train, held = split(len(x), 0.2, seed=0)
        return Dataset(x[train], x[held], y[train], y[held], Quantized(17, -1.0, 1.0))


@dataclass(frozen=True)
class Toy(Source):
    """n points in the plane, four fifths to train on: a subclass says how one batch is drawn."""

    n: int = 10_000
    """How many points to draw."""
    seed: int = 0
    """The seed that they are drawn with."""

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2)."""

    def load(self) -> Dataset:
        """The points, (n, 2)."""
        n = count("n", self.n, least=5)
        x = self.draw(n, torch.Generator().manual_seed(self.seed)).to(torch.float32)
        return Dataset(x[n // 5 :], x[: n // 5])


def _randn(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def _rand(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Ring(Toy):
    """`modes` Gaussians of standard deviation `std` evenly on the unit circle."""

    modes: int = 8
    """How many."""
    std: float = 0.05
    """Their standard deviation."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2)."""
        k = (_rand(n, generator) * count("modes", self.modes)).floor()
        angle = 2 * math.pi * k / self.modes
        return torch.stack([angle.cos(), angle.sin()], 1) + number("std", self.std, above=0) * _randn(n, generator)


@dataclass(frozen=True)
class Moons(Toy):
    """Two interleaved half circles of unit radius, with Gaussian noise of standard deviation `std`."""

    std: float = 0.1
    """Of the noise."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2), centred."""
        side, angle = (_rand(n, generator) < 0.5).double() * 2 - 1, math.pi * _rand(n, generator)
        arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1) * side[:, None]
        return arc + number("std", self.std, above=0) * _randn(n, generator)


@dataclass(frozen=True)
class SwissRoll(Toy):
    """A spiral of one and a half turns inside the unit disc, with Gaussian noise of standard deviation `std`."""

    std: float = 0.03
    """Of the noise."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2)."""
        r = (1 + 2 * _rand(n, generator)) / 3
        angle = 4.5 * math.pi * r
        return torch.stack([r * angle.cos(), r * angle.sin()], 1) + number("std", self.std, above=0) * _randn(
            n, generator
        )


@dataclass(frozen=True)
class Checkerboard(Toy):
    """Uniform on the black squares of a 4x4 board over [-1, 1]^2: a density with edges."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2)."""
        x, y = 4 * _rand(n, generator), 2 * _rand(n, generator)
        y = 2 * y.floor() + y % 1 + x.floor() % 2
        return torch.stack([x, y], 1) / 2 - 1


@dataclass(frozen=True)
class Array(Source):
    """An array in a .npy file, or one of a .npz file: samples along the first axis.

    Integers are grey levels 0..levels-1 and are moved to [-1, 1]; floating-point numbers are taken as they are.
    """

    path: Path
    """The .npy or .npz file."""
    key: str = ""
    """Which array of a .npz file; the only one if empty."""
    levels: int = 256
    """The number of grey levels, if the numbers are integers."""
    channels_last: bool = False
    """Whether images are stored as (n, height, width, channels)."""
    held_out: float = 0.1
    """The share of the samples that is not trained on."""
    seed: int = 0
    """The seed that chooses them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    def load(self) -> Dataset:
        """The samples, (n, *D); images of one channel stored as (n, height, width) become (n, 1, height, width)."""
        a = self._read()
        if a.ndim < 2 or len(a) < 2 or a.size == 0 or a.dtype.kind not in "uif":
            raise ValueError(f"{self.path} must hold numbers of shape (n, *D) with n > 1, got {a.dtype} of {a.shape}")
        if self.channels_last:
            a = np.moveaxis(a, -1, 1)
        if a.ndim == 3:
            a = a[:, None]
        return _dataset(a, self.levels, self.held_out, self.seed, str(self.path))

    def _read(self) -> np.ndarray:
        if not self.path.is_file():
            raise ValueError(f"path must be a .npy or .npz file, got {str(self.path)!r}, which is not there")
        try:
            read = np.load(self.path, allow_pickle=False)
            if isinstance(read, np.ndarray):
                return read
            with read:
                key = self.key or (read.files[0] if len(read.files) == 1 else "")
                if key not in read.files:
                    raise ValueError(f"key must be one of {', '.join(read.files)}, got {self.key!r}")
                return np.asarray(read[key])  # bytes, if it is no .npy inside
        except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for a damaged file
            raise ValueError(f"{self.path} cannot be read as a plain array: {error}") from error


@dataclass(frozen=True)
class Images(Source):
    """All images of a folder and the folders below it, in the order of their names: 256 levels, moved to [-1, 1]."""

    folder: Path
    """Where the images are."""
    size: int = 0
    """Cut each to its central square and scale that to this many pixels a side; 0 leaves them as they are."""
    grey: bool = False
    """One channel instead of three."""
    held_out: float = 0.1
    """The share of the images that is not trained on."""
    seed: int = 0
    """The seed that chooses them."""

    SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    def load(self) -> Dataset:
        """The images, (n, channels, height, width)."""
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise ValueError("folders of images need Pillow: pip install 'scoresde[app]'") from error
        count("size", self.size, least=0)
        files = sorted(f for f in self.folder.rglob("*") if f.suffix.lower() in self.SUFFIXES)
        if len(files) < 2:
            raise ValueError(f"folder must hold at least 2 images, got {str(self.folder)!r} with {len(files)}")
        arrays: list[np.ndarray] = []
        for file in files:
            try:
                with Image.open(file) as opened:
                    if opened.mode.startswith(("I", "F")):
                        raise ValueError("it has more than 8 bits a channel; give it as an array")
                    image = opened.convert("L" if self.grey else "RGB")
            except Exception as error:  # every decoder has its own kinds for a damaged file
                raise ValueError(f"{file} cannot be read as an image: {error}") from error
            if self.size:
                image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.LANCZOS)
            arrays.append(np.asarray(image).reshape(image.height, image.width, -1))
            if arrays[-1].shape != arrays[0].shape:
                both = f"{files[0].name} has {arrays[0].shape[:2]} and {file.name} {arrays[-1].shape[:2]}"
                raise ValueError(f"images must have one size, but {both}: give a size")
        return _dataset(np.moveaxis(np.stack(arrays), -1, 1), 256, self.held_out, self.seed, str(self.folder))


def _dataset(a: np.ndarray, levels: int, held_out: float, seed: int, name: str) -> Dataset:
    train, held = split(len(a), held_out, seed)
    if a.dtype.kind == "f":
        x = torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32))
        if not x.isfinite().all():
            raise ValueError(f"{name} must hold finite numbers, got nan or inf")
        return Dataset(x[train], x[held])
    low, high = int(a.min()), int(a.max())
    if low < 0 or high >= count("levels", levels, least=2):
        raise ValueError(f"levels must cover the grey levels of {name}, {low} to {high}, got {levels}")
    x = torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) * (2 / (levels - 1)) - 1
    return Dataset(x[train], x[held], quantized=Quantized(levels, -1.0, 1.0))
