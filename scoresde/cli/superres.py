"""`scoresde superres`."""

from argparse import Namespace

from ..inverse import Average
from ..shapes import count
from .restore import ImageMap, restore


def run(o: Namespace) -> None:
    """Sample details."""
    k = count("factor", o.factor, least=2)
    restore(o, "superres", lambda shape: _small(shape, k))


def _small(shape: tuple[int, ...], k: int) -> ImageMap:
    C, H, W = shape
    if H % k or W % k:
        raise ValueError(f"factor must divide the {H} x {W} pixels of the model, got {k}")
    return ImageMap(Average((C, H, W), k), (C, H // k, W // k))
