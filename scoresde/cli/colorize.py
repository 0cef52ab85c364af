"""`scoresde colorize`."""

from argparse import Namespace

from ..inverse import Grey
from .restore import ImageMap, restore


def run(o: Namespace) -> None:
    """Sample colours."""
    restore(o, "colorize", _grey)


def _grey(shape: tuple[int, ...]) -> ImageMap:
    C, H, W = shape
    if C == 1:
        raise ValueError(f"model must be of images of 3 channels to be coloured, got one of shape {shape}")
    return ImageMap(Grey((C, H, W)), (1, H, W))
