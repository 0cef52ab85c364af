"""What `scoresde inpaint | colorize | superres` share: samples of images given what was measured of them."""

import warnings
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
from .batches import enter, held, in_batches
from .common import as_bytes, code_of, fitting, join_processes, label_of, labelled, model_of, place
from .folder import Folder, opened, require_fitting
from .images import alone, first, of_file, require_images, visibly, warn_of_range
from .parts import read_method
from .plan import calls_of, duration, network, seconds_a_call, tell

SUMMARY = "summary.txt"
NOISE = 2**31
"""The first seed of what is measured, beyond those of samples."""
SHOWN, ROWS = 6, 16
"""Samples of an image, and images, in the picture."""
UNKNOWN = torch.tensor([-0.1, 0.2, 0.7]).view(3, 1, 1)
"""The colour of pixels that are not known."""


@dataclass(frozen=True)
class ImageMap:
    """A linear map, and the shape of the image that it makes of one, if that is one."""

    A: Linear
    small: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class SeenImages:
    """y = A x + std z of images, (images, m), and the images (images, *shape), if they are known."""

    A: Linear
    y: Tensor
    std: float
    truth: Tensor | None


def restore(o: Namespace, command: str, measurement: Callable[[tuple[int, ...]], ImageMap]) -> None:
    """Sample x given y = A x + noise for every image."""
    rank, n, device = join_processes(), count("n", o.n), place(o)
    alone(o)
    method, steps, std = read_method(o.method), count("steps", o.steps), number("std", o.std, least=0)
    batch = max(1, 256 // n) if o.batch is None else count("batch", o.batch)
    found = model_of(o, device)
    require_images(found)
    seen = _measured(o, found, measurement(found.shape))
    y = seen.y
    fitting(len(y) * n, found.shape)
    net, label = Watched(found.model), label_of(o, found)
    score, ts = labelled(net, label), grid.log_snr(found.model.sde, steps)

    def given(y: Tensor, score: Score = score) -> tuple[Reverse, Step]:
        made, step = method(score, Observation(seen.A, y.to(device), std), Ancestral(1.0))
        return found.model.sde.reverse(made), step

    p, step = given(y[:1])
    started(p, ts, (step,))
    kept = _recipe(o, seen) | {"label": label, "model": found.digest, "process": repr(p.sde), "method": repr(method)}
    if o.dry_run:
        if rank == 0:
            require_fitting(o.out, code_of(o), command=command, **kept)
            like, sde = torch.empty(0, device=device), p.sde
            nfe = calls_of(lambda net: given(y[:1], labelled(net, label))[0], sde, found.shape, ts, step, like=like)
            p, _ = given(y[:1].repeat_interleave(n, 0))
            x = sde.prior((n, *found.shape), per_sample(seeds(o.seed, n)), device=device)
            net.nfe = 0
            each = 2 * seconds_a_call(p.score, x, ts[0]) / max(1, net.nfe)  # it is asked twice
            known = f"{nfe} network calls a sample, {duration(nfe * each * len(y))}"
            known = known if nfe else "the method chooses how many network calls"
            tell(
                f"{n} samples for each of {len(y)} images of {seen.A.m} measured numbers, by {method}, into {o.out}",
                network(found.model, device),
                f"{steps} steps of {sde!r}, {known}; one takes {each:.2g} s for an image's",
            )
        return
    with opened(o.out, code_of(o), rank, command=command, **kept) as folder:
        if held(folder, rank, len(y)) >= len(y):
            if rank == 0:
                print((folder.read(SUMMARY) or b"").decode())
            return
        like = torch.empty(0, device=device)

        def make(start: int, k: int) -> Tensor:
            p, step = given(y[start : start + k].repeat_interleave(n, 0))
            every = seeds(o.seed, k * n, start * n)
            return draw(p, found.shape, ts, step, seeds=every, like=like).view(k, n, *found.shape)

        x, calls = in_batches(folder, rank, len(y), batch, net, make, command, each=n)
        if x is None:
            return
        said = _written(folder, x, seen, found)
    print(f"{n} samples for each of {len(y)} images in {o.out}, by {method}: {calls}\n{said}")


def _measured(o: Namespace, found: Checkpoint, how: ImageMap) -> SeenImages:
    """What is measured of the images that were asked for."""
    if o.image is None:
        x = first(o, found)
    else:
        x = of_file(o.image, found, *([how.small] if how.small else []))[None]
        if tuple(x.shape[1:]) == how.small:
            return SeenImages(how.A, x.flatten(1), o.std, None)
    y, t = how.A(x), torch.zeros((), dtype=torch.float64)
    return SeenImages(how.A, y + o.std * per_sample(seeds(o.seed, len(x), NOISE))(y, t, t), o.std, x)


def _recipe(o: Namespace, seen: SeenImages) -> dict[str, Any]:
    """What was asked for, and the digests of what it is of."""
    asked = {k: getattr(o, k) for k in ("n", "seed", "std", "steps", "factor") if hasattr(o, k)}
    of = {"map": seen.A.adjoint(torch.ones(1, seen.A.m)), "y": seen.y, "images": seen.truth}
    return asked | {k: None if v is None else digest(as_bytes(v.numpy())) for k, v in of.items()}


def _put_in(A: Linear, x: Tensor, y: Tensor) -> Tensor:
    """x + A^+ (y - A x), of which A is y: numbers of a mask are y exactly."""
    return x - _back(A, A(x)) + _back(A, y)


def _back(A: Linear, y: Tensor) -> Tensor:
    """A^+ y."""
    one = y.new_ones(len(y))
    return A.adjoint(A.solve(y, one, 0 * one))


def _written(folder: Folder, x: Tensor, seen: SeenImages, found: Checkpoint) -> str:
    """Write all files, and say how good samples x (images, n, *shape) are."""
    A, y, std, truth = seen.A, seen.y, seen.std, seen.truth
    n, rows, every = x.shape[1], x.flatten(0, 1), y.repeat_interleave(x.shape[1], 0)
    off = float((A(rows) - every).square().mean().sqrt())
    said = f"{A.m} of {rows[0].numel()} numbers measured, std {std:g}; A x - y is {off:.3g}"
    if std == 0:
        x, said = _put_in(A, rows, every).view(x.shape), f"{said}, before y is put in at the end"
    elif off < std / 2:
        warnings.warn(f"A x - y is {off:.2g}, where y has noise of {std:g}: the method takes y as exact", stacklevel=2)
    warn_of_range(x, found, "take more --steps or another --method")
    mean, deviation = x.mean(1), x.std(1) if n > 1 else None
    numbers = {"measured": y, "mean": mean, "deviation": deviation, "known": A.keep if isinstance(A, Mask) else None}
    for name, value in numbers.items():
        if value is not None:
            folder.keep(f"{name}.npy", as_bytes(value.numpy()))
    if truth is not None:
        said += f"; mean less truth {float((mean - truth).square().mean().sqrt()):.3g}"
    if deviation is not None:
        said += f"; deviation {float(deviation.square().mean().sqrt()):.3g}"
    said = f"{said} (root mean squares)"
    folder.keep(SUMMARY, said.encode())
    _picture(folder.path / "picture.png", x, seen, found)
    enter(folder, x)
    return said


def _picture(file: Path, x: Tensor, measured: SeenImages, found: Checkpoint) -> None:
    """A row for each image: the truth, what was measured, samples, their mean and deviation."""
    from ..lab.report import gallery

    A, x, y, truth = measured.A, x[:ROWS], measured.y[:ROWS], measured.truth
    seen = visibly(_back(A, y), found).expand(-1, 3, -1, -1)
    seen = torch.where(A.keep[:1], seen, UNKNOWN) if isinstance(A, Mask) else seen
    groups = [] if truth is None else [("truth", visibly(truth[:ROWS], found)[:, None])]
    groups += [("measured", seen[:, None]), ("samples", visibly(x[:, :SHOWN], found))]
    if x.shape[1] > 1:
        off = x.std(1, keepdim=True).square().mean(2, keepdim=True).sqrt()
        top = max(float(off.max()), 1e-9)
        groups += [("mean", visibly(x.mean(1, keepdim=True), found)), (f"deviation\n0 to {top:.2g}", 2 * off / top - 1)]
    gallery(groups, file)
