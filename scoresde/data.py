"""Data to train on, and data held out.

A `Source` is a frozen value that says where samples come from; `load()` gives them as a `Dataset`. Discrete data (grey
levels) are stored on [-1, 1] together with their `Quantized`, from which every later bits/dim follows; continuous data
are taken as they are. Which samples are held out depends on the seed of the source alone. To make a source looks at
its fields only; `load()` is what reads files.
"""

import math
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .files import digest
from .quantize import Quantized
from .shapes import count, number, state
from .values import identity


@dataclass(frozen=True)
class Dataset:
    """train (n, *D) and held_out (m, *D), n > 0, in float32 or float64; their labels (n,) and (m,), whole numbers from
    0 on, which become int64, or None; the grid they lie on, or None for continuous data; the names of labels 0, 1, ...,
    none if they have none.

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

    def __post_init__(self) -> None:
        if not isinstance(self.quantized, Quantized | None):
            raise ValueError(f"quantized must be a Quantized or None, got {self.quantized!r}")
        for name in ("train", "held_out"):
            x, y = getattr(self, name), getattr(self, f"{name}_labels")
            dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta
            if not dense or x.dtype not in (torch.float32, torch.float64) or x.ndim < 2:
                raise ValueError(
                    f"{name} must be a dense float32 or float64 tensor of shape (n, *D), got {_said(x)}: convert it, "
                    "grey level k of L to 2k/(L - 1) - 1"
                )
            if x.shape[1:] != self.train.shape[1:]:
                raise ValueError(f"{name} must hold samples of shape {self.shape}, as train does, got {_said(x)}")
            if not len(self.train):
                raise ValueError(f"data must have samples to train on, got a train of shape {tuple(x.shape)}")
            if len(x):
                state(name, x)
                if self.quantized:
                    _check_grid(name, x, self.quantized)
            if y is not None:
                object.__setattr__(self, f"{name}_labels", _labels(f"{name}_labels", y, len(x)))
        if (self.train_labels is None) != (self.held_out_labels is None):
            has, lacks = ("held_out", "train") if self.train_labels is None else ("train", "held_out")
            raise ValueError(f"{lacks}_labels must be given if {has}_labels are, got None")
        object.__setattr__(self, "names", class_names(self.names))
        if self.names and (self.train_labels is None or self.classes > len(self.names)):
            what = f"{self.classes} labels" if self.train_labels is not None else "no labels"
            raise ValueError(f"names must be those of all labels, got {len(self.names)} for {what}")
        if self.train.ndim == 2 and len(self.train) > 1 and self.quantized is None:
            self._compare_columns()

    def _compare_columns(self) -> None:
        constant = (self.train == self.train[0]).all(0)
        if constant.any():
            k, n = int(constant.nonzero()[0]), int(constant.sum())
            warnings.warn(f"{n} columns of train are constant, such as {k}: leave out what is known", stacklevel=4)
        std = self.moments[1].masked_fill(constant, math.nan)
        low, high = (int(a.nan_to_num(fill).argmin()) for a, fill in ((std, math.inf), (-std, math.inf)))
        if std[high] > 1000 * std[low]:
            warnings.warn(
                f"columns {low} and {high} of train have deviations {std[low]:.3g} and {std[high]:.3g}: no noise level "
                "suits both, so standardise them",
                stacklevel=4,
            )

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean of train and its standard deviation, sqrt(E (x - mean)^2), in every dimension: (*D) in float64."""
        n, parts = len(self.train), self.train.split(4096)
        mean = torch.stack([part.to(torch.float64).sum(0) for part in parts]).sum(0) / n
        return mean, torch.stack([(part - mean).square().sum(0) for part in parts]).sum(0).div(n).sqrt()

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

    bundled: ClassVar[bool] = False
    """Whether they come with the library, so that no file of the user's is read for them."""

    @abstractmethod
    def load(self) -> Dataset:
        """The samples. Raises ValueError if there are none, or they are not what the source says."""


def _said(x: Any) -> str:
    where = f"{x.layout} on {x.device}".removeprefix("torch.strided on ") if isinstance(x, Tensor) else ""
    return f"{x.dtype} of shape {tuple(x.shape)} ({where})" if where else type(x).__name__


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


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ValueError(f"{name} must be a path, got {value!r}")
    return Path(value)


def _check_memory(what: str, need: int) -> None:
    """Raise ValueError if so many bytes are more than the machine has, where it says that."""
    if hasattr(os, "sysconf") and need > (have := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise ValueError(f"{what} must fit into memory, but needs {need / 2**30:.3g} GiB of {have / 2**30:.3g}")


def _check_split(share: float, seed: int) -> None:
    number("held_out", share, least=0, below=1)
    count("seed", seed, least=0, most=2**32 - 1)


def split(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The indices of 0..n-1 to train on and to hold out, round(share n) of them, by a fixed random order.

    Raises ValueError unless n is a whole number from 0, 0 <= share < 1 and 0 <= seed < 2^32.
    """
    _check_split(share, seed)
    count("n", n, least=0, most=10**9)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(n))  # its stream never changes
    held = round(share * n)
    return order[held:], order[:held]


@dataclass(frozen=True)
class Digits(Source):
    """The 1797 handwritten digits of 8x8 pixels and 17 grey levels that scikit-learn bundles (Alpaydin & Kaynak 1998):
    1438 to train on, 359 held out.
    """

    bundled: ClassVar[bool] = True

    def load(self) -> Dataset:
        """x/8 - 1 of the grey levels 0..16, as (n, 1, 8, 8)."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ValueError("the digits come with scikit-learn: pip install 'scoresde[app]'") from error
        raw = load_digits()
        x = torch.tensor(raw.images, dtype=torch.float32, device="cpu")[:, None] / 8 - 1
        y = torch.tensor(raw.target, dtype=torch.long, device="cpu")
        train, held = split(len(x), 0.2, seed=0)
        names = tuple(map(str, range(10)))
        return Dataset(x[train], x[held], y[train], y[held], Quantized(17, -1.0, 1.0), names)


@dataclass(frozen=True)
class Toy(Source):
    """n points in the plane, four fifths to train on: a subclass says how one batch is drawn."""

    bundled: ClassVar[bool] = True
    n: int = 10_000
    """How many points to draw."""
    seed: int = 0
    """The seed that they are drawn with."""

    def __post_init__(self) -> None:
        count("n", self.n, least=5, most=2**40)
        count("seed", self.seed, least=0, most=2**64 - 1)

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2)."""

    def load(self) -> Dataset:
        """The points, (n, 2)."""
        _check_memory(f"n = {self.n}", 100 * self.n)  # of float64 numbers, a dozen for each point while they are drawn
        x = self.draw(self.n, torch.Generator(device="cpu").manual_seed(self.seed)).to(torch.float32)
        return Dataset(x[self.n // 5 :], x[: self.n // 5])


def _randn(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64, device="cpu")


def _rand(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Ring(Toy):
    """`modes` Gaussians of standard deviation `std` evenly on the unit circle."""

    modes: int = 8
    """How many."""
    std: float = 0.05
    """Their standard deviation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        count("modes", self.modes, least=1, most=2**24)
        number("std", self.std, above=0)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2)."""
        k = (_rand(n, generator) * self.modes).floor()
        angle = 2 * math.pi * k / self.modes
        return torch.stack([angle.cos(), angle.sin()], 1) + self.std * _randn(n, generator)


@dataclass(frozen=True)
class Moons(Toy):
    """Two interleaved half circles of unit radius, with Gaussian noise of standard deviation `std`."""

    std: float = 0.1
    """Of the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number("std", self.std, above=0)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2), centred."""
        side, angle = (_rand(n, generator) < 0.5).double() * 2 - 1, math.pi * _rand(n, generator)
        arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1) * side[:, None]
        return arc + self.std * _randn(n, generator)


@dataclass(frozen=True)
class SwissRoll(Toy):
    """A spiral of one and a half turns inside the unit disc, with Gaussian noise of standard deviation `std`."""

    std: float = 0.03
    """Of the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number("std", self.std, above=0)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, 2)."""
        r = (1 + 2 * _rand(n, generator)) / 3
        angle = 4.5 * math.pi * r
        return torch.stack([r * angle.cos(), r * angle.sin()], 1) + self.std * _randn(n, generator)


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", _path("path", self.path))
        for name, value in (("key", self.key), ("labels", self.labels)):
            if not isinstance(value, str):
                raise ValueError(f"{name} must be the name of an array, got {value!r}")
        if self.levels is not None:  # float32 does not tell more of them apart to 1e-3 of a bin
            count("levels", self.levels, least=2, most=4096)
        if self.channels_last is not None:
            _flag("channels_last", self.channels_last)
        _check_split(self.held_out, self.seed)

    def load(self) -> Dataset:
        """The samples, (n, *D); images of one channel stored as (n, height, width) become (n, 1, height, width).

        Raises ValueError, naming the file or the field, for what is not as the fields say, or can be read in two ways.
        """
        a, y = self._read()
        if a.ndim < 2 or len(a) < 2 or a.size == 0 or a.dtype.kind not in "buif":
            raise ValueError(f"{self.path} must hold numbers of shape (n, *D) with n > 1, got {a.dtype} of {a.shape}")
        if y is not None and (y.shape != (len(a),) or y.dtype.kind not in "iuU"):
            what = f"got {y.dtype} of {y.shape}"
            raise ValueError(f"labels of {self.path} must be whole numbers or names of shape ({len(a)},), {what}")
        _check_memory(str(self.path), (8 + 2 * a.dtype.itemsize) * a.size)  # stored, in float32, and that in two parts
        a = self._channels_first(a)
        if a.ndim == 3:
            a = a[:, None]
        labels = None if y is None else _numbered(y) if y.dtype.kind == "U" else (y, ())
        return _dataset(a, self.levels, self.held_out, self.seed, str(self.path), labels)

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
            _check_memory("it", os.path.getsize(self.path))
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
                _check_memory("it", sum(file.file_size for file in read.zip.infolist()))
                a = np.asarray(read[key])  # bytes, if it is no .npy inside
                return a, np.asarray(read[self.labels]) if self.labels else None
        except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for a damaged file
            raise ValueError(f"{self.path} cannot be read as a plain array: {error}") from error


@dataclass(frozen=True)
class Images(Source):
    """All images of a folder and the folders below it, in the order of their names: 256 levels, moved to [-1, 1].

    They are turned as their EXIF data say. Three channels, or one if all of them are stored in grey. Hidden files
    and folders, and __MACOSX, are passed over. Warns if `size` cuts or scales images of several sizes, or enlarges.
    """

    folder: Path
    """Where the images are."""
    size: int = 0
    """Cut each to its central square and scale that to this many pixels a side; 0 leaves them as they are."""
    grey: bool = False
    """Make all of them grey: one channel."""
    held_out: float = 0.1
    """The share of the images that is not trained on."""
    seed: int = 0
    """The seed that chooses them."""
    classes: bool = False
    """Whether each folder in `folder` is a class of its name; they are numbered in the order of the alphabet."""

    SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", _path("folder", self.folder))
        count("size", self.size, least=0, most=2**16)
        _flag("grey", self.grey)
        _flag("classes", self.classes)
        _check_split(self.held_out, self.seed)

    def load(self) -> Dataset:
        """The images, (n, channels, height, width).

        Raises ValueError, naming the file, for one that cannot be read, is transparent in places, has several pages or
        frames, more than 8 bits a channel or other colours than red, green and blue; for images of several sizes
        without `size`, or of which some are stored in grey and others in colour without `grey`; for an image beside the
        folders of classes.
        """
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise ValueError("folders of images need Pillow: pip install 'scoresde[app]'") from error
        files = self._files()
        if len(files) < 2:
            raise ValueError(f"folder must hold at least 2 images, got {str(self.folder)!r} with {len(files)}")
        labels = self._classes(files) if self.classes else None
        arrays: list[np.ndarray] = []
        sizes: list[tuple[int, int]] = []
        stored: dict[bool, Path] = {}
        for file in files:
            try:
                image, in_grey = _upright(file)
            except Exception as error:  # every decoder has its own kinds for a damaged file
                raise ValueError(f"{file} cannot be read as an image: {error}") from error
            stored.setdefault(in_grey, file)
            sizes.append(image.size)
            if not arrays:
                pixels = len(files) * (self.size**2 or image.width * image.height)
                _check_memory(f"{len(files)} images, by size = {self.size},", 10 * (1 if self.grey else 3) * pixels)
            image = image.convert("L") if self.grey else image
            if self.size:
                image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.LANCZOS)
            arrays.append(np.asarray(image).reshape(image.height, image.width, -1))
            if arrays[-1].shape != arrays[0].shape:
                both = f"{files[0].name} has {arrays[0].shape[:2]} and {file.name} {arrays[-1].shape[:2]}"
                raise ValueError(f"images must have one size, but {both}: give a size")
        if self.size:
            self._compare_sizes(files, sizes)
        a = np.moveaxis(np.stack(arrays), -1, 1)
        if not self.grey and False not in stored:
            a = a[:, :1]
        elif not self.grey and True in stored:
            both = f"{stored[True]} is stored in grey and {stored[False]} in colour"
            raise ValueError(f"grey must be True, or the images of one kind, but {both}")
        elif not self.grey and (a == a[:, :1]).all():
            warnings.warn(f"all images of {self.folder} are grey: grey=True gives them one channel", stacklevel=2)
        return _dataset(a, 256, self.held_out, self.seed, str(self.folder), labels)

    def _classes(self, files: list[Path]) -> tuple[np.ndarray, tuple[str, ...]]:
        inside = [file.relative_to(self.folder).parts for file in files]
        if beside := [file for file, parts in zip(files, inside, strict=True) if len(parts) < 2]:
            raise ValueError(f"classes must be False where images lie in no folder of a class, such as {beside[0]}")
        return _numbered(np.array([parts[0] for parts in inside]))

    def _files(self) -> list[Path]:
        def refuse(error: OSError) -> None:
            raise ValueError(f"folder must be readable, got {str(self.folder)!r}: {error}") from error

        found: list[Path] = []
        for where, inside, names in os.walk(self.folder, onerror=refuse) if os.path.isdir(self.folder) else ():
            inside[:] = [name for name in inside if not name.startswith(".") and name != "__MACOSX"]
            if links := [path for path in (Path(where, name) for name in inside) if path.is_symlink()]:
                raise ValueError(f"folder must hold no links to folders, got {links[0]}: they may lead in a circle")
            found += [Path(where, name) for name in names if not name.startswith(".")]
        return sorted(file for file in found if file.suffix.lower() in self.SUFFIXES)

    def _compare_sizes(self, files: list[Path], sizes: list[tuple[int, int]]) -> None:
        usual = Counter(sizes).most_common(1)[0][0]
        others = [i for i, (w, h) in enumerate(sizes) if (w, h) != usual]
        small = [i for i, (w, h) in enumerate(sizes) if min(w, h) < self.size]
        for found, what in (
            (others, f"are not of {usual[0]}x{usual[1]} pixels as others are, and are cut and scaled to one size"),
            (small, f"are smaller than size = {self.size}, and are enlarged"),
        ):
            if found:
                first = "{} of {}x{}".format(files[found[0]], *sizes[found[0]])
                warnings.warn(f"{len(found)} of {len(files)} images, such as {first}, {what}", stacklevel=3)


def _upright(file: Path) -> tuple[Any, bool]:
    """The image in a file, as it is to be seen, in RGB; and whether it is stored in grey."""
    from PIL import Image, ImageOps

    if not file.is_file():
        raise ValueError("it is no file")
    with Image.open(file) as opened:
        mode, tiles = opened.mode, [tile[3] for tile in getattr(opened, "tile", ())]
        deep = any(re.search(";16[BLN]", str(how)) for how in tiles)  # which would be cut to 8 bits
        deep |= opened.format == "PPM" and any(isinstance(how, tuple) and how[-1] > 255 for how in tiles)
        if deep or mode.startswith(("I", "F")):
            raise ValueError("it has more than 8 bits a channel; give it as an array")
        if mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
            raise ValueError(f"its colours are {mode}, and not red, green and blue; convert it")
        if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":  # a photograph with previews of it
            raise ValueError("it has several frames or pages; give each as a file")
        image = ImageOps.exif_transpose(opened)
        if mode.endswith("A") or "transparency" in opened.info:
            image = image.convert("RGBA")
            if np.asarray(image)[..., 3].min() < 255:
                raise ValueError("it is transparent in places, where its colours mean nothing; save it without alpha")
        palette = np.reshape(opened.getpalette() or [0, 0, 1], (-1, 3))
        return image.convert("RGB"), mode in ("1", "L", "LA") or bool((palette == palette[:, :1]).all())


def _dataset(
    a: np.ndarray,
    levels: int | None,
    held_out: float,
    seed: int,
    name: str,
    labels: tuple[np.ndarray, tuple[str, ...]] | None = None,
) -> Dataset:
    """The samples in two parts, and their labels (n,) with the names that these have."""
    train, held = split(len(a), held_out, seed)
    if not len(train):
        raise ValueError(f"held_out must leave samples to train on, got {held_out:g} of {len(a)} samples")
    x, quantized = _continuous(a, levels, name) if a.dtype.kind == "f" else _discrete(a, levels, name)
    if labels is None:
        return Dataset(x[train], x[held], quantized=quantized)
    y = torch.from_numpy(np.ascontiguousarray(labels[0], dtype=np.int64))
    return Dataset(x[train], x[held], y[train], y[held], quantized, labels[1])


def _numbered(words: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Each word's place among those that there are, and these in order."""
    names, places = np.unique(words, return_inverse=True)
    return places, tuple(names.tolist())


def _continuous(a: np.ndarray, levels: int | None, name: str) -> tuple[Tensor, None]:
    """The numbers in float32. Raises ValueError if they are not finite, or vary less than a thousand roundings."""
    if levels is not None:
        raise ValueError(f"levels must be None for {name}, which holds {a.dtype}, got {levels}: store whole numbers")
    if not np.isfinite(a).all():
        raise ValueError(f"{name} must hold finite numbers, got nan or inf")
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
    return torch.from_numpy(x), None


def _discrete(a: np.ndarray, levels: int | None, name: str) -> tuple[Tensor, Quantized]:
    """Grey levels on [-1, 1]. Raises ValueError if they are not 0..levels-1, or None and how many is not plain."""
    low, high, said = int(a.min()), int(a.max()), levels
    if levels is None and (a.dtype.kind == "b" or high == 1):
        levels = 2
    elif levels is None and (high == 255 or (a.dtype == np.uint8 and high > 127)):
        levels = 256
    if levels is None or not 0 <= low <= high < levels:
        hint = ": give their number, or store as float32 what is no grey level" if levels is None else ""
        raise ValueError(f"levels must cover the grey levels of {name}, {low} to {high}, got {said}{hint}")
    x = torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) * (2 / (levels - 1)) - 1
    return x, Quantized(levels, -1.0, 1.0)
