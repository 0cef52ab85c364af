"""The samples of a dataset of torch.utils.data, of torchvision or of one's own."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ..progress import bar
from ..quantize import Quantized
from ..shapes import count, number, shown
from .dataset import STORED, Dataset, check_memory, split
from .divide import warn_of_few

SAMPLES, LABELS = ("image", "img", "x", "data"), ("label", "y")
BYTES, BITS = Quantized(256, -1.0, 1.0), Quantized(2, -1.0, 1.0)


def from_torch(
    train: Any, held_out: Any = None, *, quantized: Quantized | None = None, share: float = 0.1, seed: int = 0
) -> Dataset:
    """The items of map-style datasets, which have a length and items 0, 1, ...: those of `train` to train on and those
    of `held_out` held out, or a `share` of train, chosen by the seed, if that is None.

    An item is a sample, (sample, label), or a dict with the sample as "image", "img", "x" or "data" and, if it has one,
    the label as "label" or "y". A sample is a tensor or an array (*D), channels first, or an image of PIL, which is
    then (channels, height, width). Floating-point numbers are continuous data; uint8 are grey levels, 256 on [-1, 1]
    unless `quantized` says on what grid, and (height, width) of them become (1, height, width). The labels have the
    names in `train.classes`, if it has such. Each item is read once, in order: what a transform draws is drawn once.

    Warns of floating-point images on a grid of 256 levels over [0, 1] or [-1, 1], as torchvision's ToTensor makes them,
    and of two levels at its ends: they are stored as the grey levels they are.

    Raises ValueError, naming the item, for what has no length or no items, items of other kinds, samples of other
    numbers, or of different types or shapes, images whose channels look last, and labels that are no whole numbers.
    """
    number("share", share, least=0, below=1)
    count("seed", seed, least=0, most=2**32 - 1)
    parts = {"train": train} if held_out is None else {"train": train, "held_out": held_out}
    sizes = {name: _length(name, items) for name, items in parts.items()}
    if not sizes["train"]:
        raise ValueError("train must hold items to train on, got none")
    with bar(total=sum(sizes.values()), desc="read", unit="item") as shown_bar:
        read = [_read(name, items, sizes[name], shown_bar) for name, items in parts.items() if sizes[name]]
    x, y = [part[0] for part in read], [part[1] for part in read]
    if len({(str(part.dtype), part.shape[1:]) for part in x}) > 1:
        both = " and ".join(f"{part.dtype} of {tuple(part.shape[1:])}" for part in x)
        raise ValueError(f"held_out must hold samples as train does, got {both}")
    if x[0].dtype in STORED:
        quantized = quantized or BYTES
    elif quantized is None and x[0].ndim == 4:
        x, quantized = _levels(x)
    if held_out is None:
        kept, held = split(len(x[0]), share, seed)
        if not len(kept):
            raise ValueError(f"share must leave samples to train on, got {share:g} of {len(x[0])}")
        x, y = [x[0][kept], x[0][held]], [None if y[0] is None else y[0][rows] for rows in (kept, held)]
    elif len(x) < 2:
        x, y = [x[0], x[0][:0]], [y[0], None if y[0] is None else y[0][:0]]
    data = Dataset(x[0], x[1], y[0], y[1], quantized, _names(train, y))
    if data.train.dtype in STORED and quantized is not None:
        warn_of_few(data.train.numpy(), quantized.levels, "train")
    return data


def _length(name: str, items: Any) -> int:
    whole = hasattr(items, "__len__") and hasattr(items, "__getitem__")
    if not whole or isinstance(items, IterableDataset | Mapping | str | bytes):
        raise ValueError(
            f"{name} must be a map-style dataset, with __len__ and __getitem__, got {type(items).__name__}: "
            "list(...) makes one of what can only be iterated"
        )
    try:
        return len(items)
    except Exception as error:
        raise ValueError(f"{name} must have a length, got {type(items).__name__}: {error!r}") from error


def _read(name: str, items: Any, n: int, progress: Any) -> tuple[Tensor, Tensor | None]:
    """The samples (n, *D) and the labels (n,), if they have them."""
    x, y = torch.empty(0), torch.empty(n, dtype=torch.int64, device="cpu")
    labelled = False
    for i in range(n):
        item = f"{name}[{i}]"
        try:
            got = items[i]
        except Exception as error:  # of the user's own
            raise ValueError(f"{item} cannot be read: {error!r}") from error
        sample, label = _parts(item, got)
        v = _sample(item, sample)
        if i == 0:
            check_memory(f"{n} samples as {item}, {tuple(v.shape)},", 2 * n * v.numel() * v.element_size())  # two parts
            x, labelled = torch.empty((n, *v.shape), dtype=v.dtype, device="cpu"), label is not None
        if (v.dtype, v.shape) != (x.dtype, x.shape[1:]):
            both = f"{v.dtype} of {tuple(v.shape)}, but {name}[0] of {x.dtype} of {tuple(x.shape[1:])}"
            raise ValueError(f"samples must have one shape and type, but {item} is {both}")
        if (label is not None) != labelled:
            raise ValueError(f"{item} must have {'a' if labelled else 'no'} label, as {name}[0] has")
        x[i] = v
        if labelled:
            y[i] = _label(item, label)
        progress.update()
    return x, y if labelled else None


def _parts(item: str, got: Any) -> tuple[Any, Any]:
    """The sample of an item, and its label or None."""
    if isinstance(got, Mapping):
        there = [[key for key in keys if key in got] for keys in (SAMPLES, LABELS)]
        if len(there[0]) != 1 or len(there[1]) > 1:
            said = " or ".join(map(repr, SAMPLES)) + ", and a label as " + " or ".join(map(repr, LABELS))
            raise ValueError(f"{item} must have one sample as {said} if any, got the keys {shown(list(got))}")
        return got[there[0][0]], got[there[1][0]] if there[1] else None
    if isinstance(got, tuple | list):
        if not 1 <= len(got) <= 2:
            raise ValueError(f"{item} must be a sample or (sample, label), got {len(got)} in a {type(got).__name__}")
        return got[0], got[1] if len(got) == 2 else None
    return got, None


def _sample(item: str, v: Any) -> Tensor:
    if hasattr(v, "getbands"):
        v = _pixels(item, v)
    if isinstance(v, np.ndarray) and v.dtype.kind in "buif":
        v = torch.from_numpy(np.array(v, dtype=v.dtype.newbyteorder("=")))
    if not isinstance(v, Tensor) or v.layout != torch.strided or v.is_meta:
        raise ValueError(f"{item} must be a tensor, an array or an image of PIL, got {_kind(v)}")
    v = v.detach().to("cpu")
    if v.dtype in (torch.float16, torch.bfloat16):
        v = v.to(torch.float32)
    if v.dtype not in (torch.float32, torch.float64, *STORED) or not v.ndim:
        what = f"got {v.dtype} of shape {tuple(v.shape)}"
        raise ValueError(
            f"{item} must hold floating-point numbers or uint8, in a dimension or more, {what}: convert it"
        )
    if v.ndim == 2 and v.dtype in STORED:
        v = v[None]
    if v.ndim == 3 and v.shape[-1] <= 4 < v.shape[0]:
        shape = tuple(v.shape)
        raise ValueError(f"{item} must have its channels first, got shape {shape}, where they look last: permute it")
    return v


def _pixels(item: str, image: Any) -> np.ndarray:
    """The pixels of an image of PIL, (channels, height, width)."""
    plain = image.convert({"1": "L", "P": "RGB"}.get(image.mode, image.mode))
    if plain.mode not in ("L", "RGB"):
        raise ValueError(f"{item} must be an image in grey or RGB, got its mode {image.mode!r}: convert it")
    a = np.asarray(plain)
    return a[None] if a.ndim == 2 else a.transpose(2, 0, 1)


def _label(item: str, label: Any) -> int:
    plain = label
    if isinstance(label, Tensor | np.ndarray | np.generic) and len(label.reshape(-1)) == 1:
        plain = label.item()
    if isinstance(plain, bool) or not isinstance(plain, int) or not 0 <= plain < 10**6:
        what = f"got {shown(plain)} ({_kind(label)})"
        raise ValueError(f"the label of {item} must be a whole number from 0 on, below 10^6, {what}")
    return plain


def _kind(v: Any) -> str:
    return f"{type(v).__name__} of {v.dtype}" if isinstance(v, Tensor | np.ndarray) else type(v).__name__


def _levels(parts: list[Tensor]) -> tuple[list[Tensor], Quantized | None]:
    """Images as levels on the grid that they all lie on, to 1e-6, with a warning; as they are if on none."""
    for low in (0.0, -1.0):
        for grid, levels in ((BITS, 2), (BYTES, 256)):
            step = (1 - low) / (levels - 1)
            found = [_on(part, low, step, levels) for part in parts]
            if all(part is not None for part in found):
                warnings.warn(
                    f"images hold the {levels} levels of a grid over [{low:g}, 1] only, and are stored as these grey "
                    f"levels, with {grid}: return uint8, or give quantized",
                    stacklevel=3,
                )
                return [part for part in found if part is not None], grid
    return parts, None


def _on(x: Tensor, low: float, step: float, levels: int) -> Tensor | None:
    """The levels of x in uint8, None if it is not on the grid."""
    out = torch.empty(x.shape, dtype=torch.uint8, device="cpu")
    for part, to in zip(x.split(1024), out.split(1024), strict=True):
        k = (part - low) / step
        if not ((k - k.round()).abs() * step <= 1e-6).all() or k.min() < -0.5 or k.max() > levels - 0.5:
            return None
        to.copy_(k.round())
    return out


def _names(train: Any, labels: list[Tensor | None]) -> tuple[str, ...]:
    """The names that a dataset, or the whole that it is a subset of, has for all labels; none if it has no such, or
    changes its labels.
    """
    whole = train if hasattr(train, "classes") else getattr(train, "dataset", None)
    names = () if getattr(whole, "target_transform", None) else getattr(whole, "classes", ())
    known = isinstance(names, tuple | list) and all(isinstance(name, str) and name.strip() for name in names)
    most = max((int(y.max()) for y in labels if y is not None and len(y)), default=-1)
    return tuple(names) if known and len(set(names)) == len(names) and 0 <= most < len(names) else ()
