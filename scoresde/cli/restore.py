"""What `scoresde inpaint | colorize | superres` share: samples of images given what was measured of them."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import grid
from ..checkpoint import Checkpoint
from ..files import digest
from ..inverse import Linear, Mask, Observation
from ..lab.solvers import Watched
from ..noise import per_sample, seeds
from ..process import Reverse, Score
from ..shapes import count, number
from ..steps import Ancestral, Step, draw, started
from .batches import complete, enter, in_batches
from .common import as_bytes, code_of, fitting, join_processes, label_of, labelled, model_of, place
from .folder import Folder, opened
from .images import alone, first, of_file, require_images, visibly
from .parts import Restoration, read_method

NOISE = 2**31
"""The first seed of what is measured, beyond those of samples."""
SHOWN, ROWS = 6, 16
"""Samples of an image, and images, in the picture."""
UNKNOWN = torch.tensor([-0.1, 0.2, 0.7]).view(3, 1, 1)
"""The colour of pixels that are not known."""


@dataclass(frozen=True)
class Measurement:
    """A linear map, and the shape of the image that it makes of one, if that is one."""

    A: Linear
    small: tuple[int, int, int] | None = None


def restore(o: Namespace, command: str, measurement: Callable[[tuple[int, ...]], Measurement]) -> None:
    """Sample x given y = A x + noise for every image."""
    rank, n, std, device = join_processes(), count("n", o.n), number("std", o.std, least=0), place(o)
    alone(o)
    method, steps = read_method(o.method), count("steps", o.steps)
    batch = max(1, 256 // n) if o.batch is None else count("batch", o.batch)
    found = model_of(o, device)
    require_images(found)
    how = measurement(found.shape)
    truth, y = _measured(o, found, how)
    fitting(len(y) * n, found.shape)
    net, label = Watched(found.model), label_of(o, found)
    score, ts = labelled(net, label), grid.log_snr(found.model.sde, steps)
    p, step = _given(method, score, how.A, y[:1].to(device), std)
    started(p, ts, (step,))
    kept: dict[str, Any] = {k: getattr(o, k) for k in ("n", "seed", "std", "steps", "keep", "factor") if hasattr(o, k)}
    kept |= {"label": label, "model": found.digest, "process": repr(found.model.sde), "method": repr(method)}
    kept |= {"images": None if truth is None else digest(as_bytes(truth.numpy()))}
    kept |= {"map": digest(as_bytes(how.A.adjoint(torch.ones(1, how.A.m)).numpy())), "y": digest(as_bytes(y.numpy()))}
    with opened(o.out, code_of(o), rank, command=command, **kept) as folder:
        if complete(folder, rank):
            return
        like = torch.empty(0, device=device)

        def make(start: int, k: int) -> Tensor:
            rows = y[start : start + k].repeat_interleave(n, 0).to(device)
            p, step = _given(method, score, how.A, rows, std)
            every = seeds(o.seed, k * n, start * n)
            return draw(p, found.shape, ts, step, seeds=every, like=like).view(k, n, *found.shape)

        x, calls = in_batches(folder, rank, len(y), batch, net, make, command)
        if x is None:
            return
        said = _written(folder, x, truth, y, how.A, std, found)
    print(f"{n} samples for each of {len(y)} images in {o.out}, by {method}: {calls}\n{said}")


def _measured(o: Namespace, found: Checkpoint, how: Measurement) -> tuple[Tensor | None, Tensor]:
    """The images, if they are known, and what was measured of each, (images, m)."""
    if o.image is None:
        x = first(o, found)
    else:
        x = of_file(o.image, found, *([how.small] if how.small else []))[None]
        if tuple(x.shape[1:]) == how.small:
            return None, x.flatten(1)
    y = how.A(x)
    t = torch.zeros((), dtype=torch.float64)
    return x, y + o.std * per_sample(seeds(o.seed, len(x), NOISE))(y, t, t)


def _given(method: Restoration, score: Score, A: Linear, y: Tensor, std: float) -> tuple[Reverse, Step]:
    """The process and the step that sample x given y."""
    made, step = method(score, Observation(A, y, std), Ancestral(1.0))
    return score.sde.reverse(made), step  # type: ignore[attr-defined]


def _put_in(A: Linear, x: Tensor, y: Tensor) -> Tensor:
    """x + A^+ (y - A x), of which A is y: numbers of a mask are y exactly."""
    one = x.new_ones(len(x))
    back = lambda v: A.adjoint(A.solve(v, one, 0 * one))  # noqa: E731
    return x - back(A(x)) + back(y)


def _written(
    folder: Folder, x: Tensor, truth: Tensor | None, y: Tensor, A: Linear, std: float, found: Checkpoint
) -> str:
    """Write all files, and say how good samples x (images, n, *shape) are."""
    n, rows, every = x.shape[1], x.flatten(0, 1), y.repeat_interleave(x.shape[1], 0)
    off = float((A(rows) - every).square().mean().sqrt())
    said = f"{A.m} of {rows[0].numel()} numbers measured, std {std:g}; A x - y is {off:.3g}"
    if std == 0:
        x, said = _put_in(A, rows, every).view(x.shape), f"{said}, before y is put in at the end"
    mean, deviation = x.mean(1), x.std(1) if n > 1 else None
    numbers = {"measured": y, "mean": mean, "deviation": deviation, "known": A.keep if isinstance(A, Mask) else None}
    for name, value in numbers.items():
        if value is not None:
            folder.keep(f"{name}.npy", as_bytes(value.numpy()))
    if truth is not None:
        said += f"; mean less truth {float((mean - truth).square().mean().sqrt()):.3g}"
    if deviation is not None:
        said += f"; deviation {float(deviation.square().mean().sqrt()):.3g}"
    _picture(folder.path / "picture.png", x, truth, y, A, found)
    enter(folder, x)
    return f"{said} (root mean squares)"


def _picture(file: Path, x: Tensor, truth: Tensor | None, y: Tensor, A: Linear, found: Checkpoint) -> None:
    """A row for each image: the truth, what was measured, samples, their mean and deviation."""
    from ..lab.report import gallery

    x, y = x[:ROWS], y[:ROWS]
    one = x.new_ones(len(x))
    seen = visibly(A.adjoint(A.solve(y, one, 0 * one)), found).expand(-1, 3, -1, -1)
    seen = torch.where(A.keep[:1], seen, UNKNOWN) if isinstance(A, Mask) else seen
    groups = [] if truth is None else [("truth", visibly(truth[:ROWS], found)[:, None])]
    groups += [("measured", seen[:, None]), ("samples", visibly(x[:, :SHOWN], found))]
    if x.shape[1] > 1:
        off = x.std(1, keepdim=True).square().mean(2, keepdim=True).sqrt()
        top = max(float(off.max()), 1e-9)
        groups += [("mean", visibly(x.mean(1, keepdim=True), found)), (f"deviation\n0 to {top:.2g}", 2 * off / top - 1)]
    gallery(groups, file)
