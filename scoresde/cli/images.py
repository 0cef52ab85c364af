"""Images that a command is told of: held out, or in files."""

import warnings
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import Checkpoint
from ..data.images import upright
from ..shapes import count
from .common import data_of, visible


def require_images(found: Checkpoint) -> None:
    """Raise ValueError unless a model is of images on their own scale, grey or of three channels."""
    if len(found.shape) != 3 or not visible(found.shape):
        raise ValueError(f"model must be of images of 1 or 3 channels, got one of shape {found.shape}")
    if found.units is not None:
        raise ValueError(f"model must be of images of grey levels, got one of standardised numbers, {found.units!r}")


def span(found: Checkpoint) -> tuple[float, float]:
    """What black and white are."""
    return (found.quantized.low, found.quantized.high) if found.quantized else (-1.0, 1.0)


def visibly(x: Tensor, found: Checkpoint) -> Tensor:
    """Samples on [-1, 1]."""
    low, high = span(found)
    return 2 * (x - low) / (high - low) - 1


def warn_of_range(x: Tensor, found: Checkpoint, what: str) -> None:
    """Warn of samples whose numbers are far beyond black and white, and say what may help."""
    (low, high), least, most = span(found), float(x.min()), float(x.max())
    if least < 2 * low - high or most > 2 * high - low:
        said = f"samples reach from {least:.3g} to {most:.3g}, and grey levels from {low:g} to {high:g}"
        warnings.warn(f"{said}: {what}", stacklevel=2)


def pixels(name: str, file: Path) -> Tensor:
    """The image in a file, (1 or 3, H, W) on [0, 1], of one channel if it is grey. Raises ValueError, naming it, for
    what is none.
    """
    try:
        image, _ = upright(file)
    except Exception as error:  # every decoder has its own kinds for a damaged file
        raise ValueError(f"{name} must be the file of an image, got {str(file)!r}: {error}") from error
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return x[:1] if (x == x[:1]).all() else x


def of_file(file: Path, found: Checkpoint, *others: tuple[int, ...]) -> Tensor:
    """The image in a file in the units of a model, of its shape, or one of the other shapes. A grey one is one of equal
    colours too. Raises ValueError for another shape.
    """
    low, high = span(found)
    x = low + (high - low) * pixels("image", file)
    if tuple(x.shape) in others:
        return x
    fits = [shape for shape in (found.shape, *others) if x.shape[1:] == shape[1:] and x.shape[0] in (1, shape[0])]
    if not fits:
        wanted = " or ".join(map(str, dict.fromkeys((tuple(found.shape), *others))))
        raise ValueError(f"image must have the model's shape, {wanted}, got {tuple(x.shape)} in {str(file)!r}")
    return x.expand(fits[0])


def held_out(o: Namespace, found: Checkpoint, numbers: list[int]) -> Tensor:
    """Held-out images of these numbers. Raises ValueError where there are not as many."""
    _, data = data_of(o, found)
    for k in numbers:
        if not 0 <= k < len(data.held_out):
            raise ValueError(f"images must be among the {len(data.held_out)} that are held out, got number {k}")
    return data.values(data.held_out[numbers]).float()


def first(o: Namespace, found: Checkpoint) -> Tensor:
    """As many held-out images as were asked for."""
    _, data = data_of(o, found)
    n = count("images", 4 if o.images is None else o.images, most=len(data.held_out))
    return data.values(data.held_out[:n]).float()


def alone(o: Namespace) -> None:
    """Raise ValueError if files are given beside held-out images."""
    for name in ("images", "data"):
        if o.image is not None and getattr(o, name) is not None:
            raise ValueError(f"{name} must not be given beside image, got {getattr(o, name)!r}")
