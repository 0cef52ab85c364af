"""Folders of images."""

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..shapes import count
from .dataset import Dataset, Source, check_memory, check_split, flag, known_path
from .divide import divided, numbered
from .folders import files_below, folders_of


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
        object.__setattr__(self, "folder", known_path("folder", self.folder))
        count("size", self.size, least=0, most=2**16)
        flag("grey", self.grey)
        flag("classes", self.classes)
        check_split(self.held_out, self.seed)

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
        files = files_below(self.folder, self.SUFFIXES)
        if len(files) < 2:
            raise ValueError(f"folder must hold at least 2 images, got {str(self.folder)!r} with {len(files)}")
        labels = numbered(folders_of(self.folder, files)) if self.classes else None
        arrays: list[np.ndarray] = []
        sizes: list[tuple[int, int]] = []
        stored: dict[bool, Path] = {}
        for file in files:
            try:
                image, in_grey = upright(file)
            except Exception as error:  # every decoder has its own kinds for a damaged file
                raise ValueError(f"{file} cannot be read as an image: {error}") from error
            stored.setdefault(in_grey, file)
            sizes.append(image.size)
            if not arrays:
                pixels = len(files) * (self.size**2 or image.width * image.height)
                check_memory(f"{len(files)} images, by size = {self.size},", 10 * (1 if self.grey else 3) * pixels)
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
        return divided(a, 256, self.held_out, self.seed, str(self.folder), labels)

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


def upright(file: Path) -> tuple[Any, bool]:
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
