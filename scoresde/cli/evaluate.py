"""`scoresde evaluate`."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Dataset
from ..files import digest, write
from ..lab import Classifier, origin, quality
from ..shapes import count, shown
from ..units import Units
from .common import as_array, code_of, join_processes, place, shared_out
from .parts import evaluated, own_module, read_data, told
from .plan import tell


def run(o: Namespace) -> None:
    """Measure samples, and write the table."""
    rank, device, file = join_processes(), place(o), o.samples / "samples.npy" if o.samples.is_dir() else o.samples
    _require_ours(o.out)
    source = read_data(o.data)
    data = source.load()
    content, x = _samples(file, data)
    n = len(x) if o.n is None else count("n", o.n, least=12, most=len(x))
    if o.dry_run:
        chosen = o.features or ("classifier, if the data are images with labels, else numbers")
        against = f"{min(n, len(data.train))} samples of {file} against {len(data.held_out)} held out of {source!r}"
        return tell(f"{against}, into {o.out}", f"features: {chosen}; device: {device}") if rank == 0 else None
    features, said = _features(o, data, device)
    units = Units.fit(data.train) if features is None and data.units is None and data.quantized is None else None
    dtype = torch.float32 if features else torch.float64

    def numbers(part: Tensor, units: Units | None = units) -> Tensor:
        """In the units that are compared."""
        return (part if units is None else units.standardise(part)).to(device, dtype)

    made, held = numbers(x[:n], data.units or units), numbers(data.values(data.held_out))
    rows = quality(
        made, data.train, held, features, o.seed, values=lambda part: numbers(data.values(part)), spread=shared_out
    )
    if rank > 0:
        return
    print(f"{min(n, len(data.train))} samples against {len(held)} held out of {source!r}; features: {said}")
    print("\n".join(f"  {row}" for row in rows))
    of: dict[str, Any] = {"samples": digest(content), "n": n, "data": data.digest, "features": said}
    of |= {"code": code_of(o)}
    o.out.parent.mkdir(parents=True, exist_ok=True)
    written = {**origin(device), **of, "quality": [{k: _plain(v) for k, v in vars(row).items()} for row in rows]}
    write(o.out, json.dumps(written, indent=2).encode())
    print(f"the table is in {o.out}")


def _samples(file: Path, data: Dataset) -> tuple[bytes, Tensor]:
    """The content of the file, and the samples. Raises ValueError if they are none like the data."""
    if not file.is_file():
        raise ValueError(f"samples must be a .npy file, or the folder of `scoresde sample`, got {str(file)!r}")
    content = file.read_bytes()
    try:
        x = torch.from_numpy(as_array(content))
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise ValueError(f"{file} cannot be read as samples: {error}") from error
    if not x.is_floating_point() or tuple(x.shape[1:]) != data.shape:
        raise ValueError(f"samples must be numbers of shape (n, *{data.shape}), got {x.dtype} of {tuple(x.shape)}")
    return content, x


def _features(o: Namespace, data: Dataset, device: torch.device) -> tuple[Callable[[Tensor], Tensor] | None, str]:
    """What distances are of, None for the numbers themselves, and what is said of it. Raises ValueError for a choice
    that is none.
    """
    labelled = len(data.shape) == 3 and data.train_labels is not None
    chosen = o.features or ("classifier" if labelled else "numbers")
    if chosen == "numbers":
        return None, "the numbers themselves"
    if chosen == "classifier":
        if not labelled:
            raise ValueError("features must be numbers unless the data are images with labels, got 'classifier'")
        values = lambda x: data.values(x).to(device)  # noqa: E731
        fitted = Classifier.fit(data.train, data.train_labels, o.seed, values=values)
        return fitted.features, "a classifier fitted to the training images"
    if not own_module(chosen):
        raise ValueError(f"features must be classifier, numbers or package.module:function, got {chosen!r}")
    return _own(chosen), chosen


def _own(text: str) -> Callable[[Tensor], Tensor]:
    """A function of one's own, called on 256 samples at a time. Raises ValueError unless it makes a row of each."""
    made = evaluated("features", text, {})

    def features(x: Tensor) -> Tensor:
        with told("features", text), torch.no_grad():
            rows = [made(part) for part in x.split(256)]
            for part, row in zip(x.split(256), rows, strict=True):
                if not isinstance(row, Tensor) or row.ndim != 2 or len(row) != len(part) or not row.is_floating_point():
                    raise ValueError(f"it must make floating-point rows of {tuple(part.shape)}, got {shown(row)}")
            return torch.cat(rows)

    return features


def _require_ours(out: Path) -> None:
    """Raise ValueError for a folder, and for a file that is no such table: it is not written over."""
    if out.is_dir():
        raise ValueError(f"out must be a file to write, and {out} is a folder")
    if out.exists():
        try:
            ours = "quality" in json.loads(out.read_bytes())
        except (ValueError, TypeError):
            ours = False
        if not ours:
            raise ValueError(f"out must be new, or a table of this command, and {out} is another file")


def _plain(v: Any) -> Any:
    return None if v != v else v  # JSON has no nan
