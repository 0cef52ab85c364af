"""`scoresde inpaint`."""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from ..inverse import Mask
from ..noise import seeds
from ..shapes import number
from .images import pixels
from .restore import ImageMap, restore


def run(o: Namespace) -> None:
    """Sample what is missing."""
    if o.mask is not None and o.keep is not None:
        raise ValueError(f"keep must not be given beside mask, got {o.keep!r}")
    restore(o, "inpaint", lambda shape: ImageMap(Mask(_known(o, shape).expand(shape).clone())))


def _known(o: Namespace, shape: tuple[int, ...]) -> Tensor:
    """Where pixels are known, (1, H, W). Raises ValueError if they are nowhere."""
    _, H, W = shape
    keep = _of_file(o.mask, H, W) if o.mask is not None else _of_word(o.keep or "upper", H, W, o.seed)
    if not keep.any():
        raise ValueError(f"some of the {H} x {W} pixels must be known, got none by {o.mask or o.keep or 'upper'}")
    return keep


def _of_file(file: Path, H: int, W: int) -> Tensor:
    found = pixels("mask", file)
    if found.shape[1:] != (H, W):
        raise ValueError(f"mask must have {H} x {W} pixels, got {' x '.join(map(str, found.shape[1:]))}")
    return found.mean(0, keepdim=True) > 0.5


def _of_word(text: str, H: int, W: int, seed: int) -> Tensor:
    y, x = torch.arange(H)[:, None], torch.arange(W)[None]
    middle = (y >= H // 4) & (y < H - H // 4) & (x >= W // 4) & (x < W - W // 4)
    sides = {"upper": y < H // 2, "lower": y >= H // 2, "left": x < W // 2, "right": x >= W // 2, "border": ~middle}
    if text in sides:
        return sides[text].expand(H, W)[None]
    keep, g = torch.zeros(1, H, W, dtype=torch.bool), torch.Generator().manual_seed(seeds(seed, 1, 2**32 - 1)[0])
    known = torch.randperm(H * W, generator=g)[: max(1, round(_share(text, *sides) * H * W))]
    keep.view(-1)[known] = True
    return keep


def _share(text: str, *sides: str) -> float:
    try:
        return number("keep", float(text), above=0, below=1)
    except ValueError as error:
        raise ValueError(
            f"keep must be one of {', '.join(sides)}, or a share above 0 and below 1, got {text!r}"
        ) from error
