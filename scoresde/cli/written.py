"""Samples in the form that data come in: images as PNG files, rows of a table as a CSV file."""

import csv
import io
from pathlib import Path

import numpy as np
from torch import Tensor

from ..checkpoint import Checkpoint
from ..files import write
from ..quantize import Quantized
from .common import visible
from .images import span

IMAGES, TABLE = "images", "samples.csv"
LEVELS = 256
"""Of a PNG file."""


def as_data(x: Tensor, found: Checkpoint, folder: Path, start: int = 0) -> str:
    """Write samples x in their own units, of which those from `start` on are new, into a folder, and say where they
    are; nothing of samples that are neither images of at most 256 grey levels nor rows of a table.
    """
    if columns := found.notes.get("columns"):
        write(folder / TABLE, rows(x, tuple(columns)))
        return str(folder / TABLE)
    grid = found.quantized or Quantized(LEVELS, *span(found))
    if len(found.shape) != 3 or not visible(found.shape) or found.units or grid.levels > LEVELS:
        return ""
    (folder / IMAGES).mkdir(exist_ok=True)
    for k, image in enumerate(pixels(x[start:], grid), start):
        write(folder / IMAGES / f"{k:06d}.png", png(image))
    return str(folder / IMAGES)


def pixels(x: Tensor, grid: Quantized) -> np.ndarray:
    """Images (n, C, H, W) as bytes (n, H, W, C): the nearest level of each number, black at `low`, white at `high`."""
    k = ((x.double() - grid.low) / grid.width).round().clamp(0, grid.levels - 1)
    found: np.ndarray = (k * (255 / (grid.levels - 1))).round().byte().permute(0, 2, 3, 1).numpy()
    return found


def png(image: np.ndarray) -> bytes:
    """The content of a PNG file of an image (H, W, 1 or 3) of bytes."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def rows(x: Tensor, columns: tuple[str, ...]) -> bytes:
    """The content of a CSV file: the names of columns, then samples (n, d), whose numbers can be read back exactly."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows(map(str, row) for row in x.numpy())
    return text.getvalue().encode()
