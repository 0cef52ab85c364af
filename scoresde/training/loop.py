"""Training from the first step to the last, of a score or of a classifier of noisy samples."""

import copy
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from time import monotonic

import torch
import torch.distributed as dist
from torch import Tensor

from ..checkpoint import Checkpoint, M, classes_of, exists, require_savable, unwrapped
from ..data import Dataset, Source
from ..files import alone
from ..logbook import logbook
from ..model import ClassModel, NoisyModel, ScoreModel
from ..nn import Network
from ..progress import bar, stoppable
from ..reference import misfit
from ..shapes import as_time, count, number
from .averages import FOLDER as SNAPSHOTS
from .run import Share, Training, asked
from .settings import Settings, evenly
from .shard import require_shardable


def train(
    model: M,
    data: Dataset,
    settings: Settings = Settings(),
    *,
    folder: str | Path | None = None,
    source: Source | None = None,
    resume: bool = False,
    save_every: float = 60.0,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
    on_view: Callable[[int, M], None] | None = None,
    views: int = 8,
    sharded: bool | torch.device = False,
) -> M:
    """Train model on data.train, where its parameters are, and return a copy with the averaged weights: a score by
    `dsm`, a `ClassModel` by `cross_entropy` on data with labels.

    folder: where checkpoints go, every `save_every` seconds and when the training ends or is interrupted, from the
    keyboard or by SIGTERM or SIGHUP; what the training says of itself goes to loss.jsonl there, and to TensorBoard's
    files if that is installed. source: recorded in the checkpoint. resume: go on from the checkpoint in folder, which
    must have been made with the same data, settings and process, but that `steps` may grow: what is left of the
    schedule is then that of the longer training. on_step: called with the step and its loss. on_view: called with the
    step and the averaged weights, which it must leave as they are, `views` times after equally many steps, such as to
    draw samples; it changes nothing of the training. sharded: leave each process of torchrun its part of the weights,
    gradients, averages and the optimiser's state (torch 2.6 or newer; see `training.shard`), where the parameters are,
    or on a device that the model is too large for; checkpoints are as ever. All processes are then to give the same
    on_view, whose model computes in all of them together; model is left in parts, and what is returned is on the CPU.

    Warns if the process does not suit the data (`reference.misfit`). Raises ValueError before work starts if settings,
    data and model do not fit together, folder holds a checkpoint that is not to be resumed or snapshots of another
    training, another process trains there, or the model cannot be sharded; RuntimeError, leaving the last good
    checkpoint, if the loss or a weight is not finite.
    """
    number("save_every", save_every)
    count("views", views, least=0)
    first = not dist.is_initialized() or dist.get_rank() == 0
    with alone(Path(folder)) if folder is not None and first else nullcontext(), stoppable():
        run = _started(model, data, settings, folder, source, resume, sharded)
        run.alike(settings=settings, folder=folder is not None, on_view=on_view is not None, views=views, resume=resume)
        saved = monotonic()
        if progress and first:
            print(_said(run.form if run.shards else model, data, settings), file=sys.stderr)
        shown = bar(
            total=settings.steps, initial=run.step, desc="train", disable=not progress or not first, unit="step"
        )
        at = folder if first or run.shards else None
        with shown, run.together() as stops, logbook(at, run.step, not first) as log:
            try:
                while run.step < settings.steps:
                    loss = run.advance()
                    shown.update()
                    if run.step % 50 == 0 or run.step == settings.steps:
                        _require_finite(loss, run.step)
                        shown.set_postfix(loss=f"{loss:.4f}", refresh=False)
                        log.loss(run.step, float(loss), settings.lr * settings.lr_factor(run.step), settings.batch)
                    if on_step:
                        on_step(run.step, float(loss))
                    run.keep(folder)
                    if on_view and evenly(run.step, settings.steps, views):
                        on_view(run.step, run.average)
                    if run.agreed(monotonic() - saved > save_every, stops):
                        run.save(folder, source)
                        log.held_out(run.step, run.average, data, settings.batch)
                        saved = monotonic()
                run.save(folder, source)
                log.held_out(run.step, run.average, data, settings.batch)
                run.agreed(False, stops)
            except KeyboardInterrupt:
                run.keep(folder)  # which the interrupt may have come before
                run.save(folder, source)
                raise
        return run.averaged()


def rehearse(
    model: NoisyModel,
    data: Dataset,
    settings: Settings,
    *,
    folder: str | Path | None = None,
    source: Source | None = None,
    resume: bool = False,
    sharded: bool | torch.device = False,
) -> tuple[str, int, float]:
    """What `train` would do with the same arguments, in words; the step that it would begin after, and how many seconds
    a step takes, measured on the second of two, which change the model. Nothing is written. Raises ValueError as it.
    """
    run = _started(model, data, settings, folder, source, resume, sharded)
    said, start = _said(run.form if run.shards else model, data, settings), run.step
    run.advance()
    began = monotonic()
    _require_finite(run.advance(), run.step)
    return said, start, monotonic() - began


def _said(model: NoisyModel, data: Dataset, s: Settings) -> str:
    """What is about to be trained, and on what."""
    shape, weights = "x".join(map(str, data.shape)), sum(p.numel() for p in model.parameters())
    kind = f"{data.quantized.levels} levels" if data.quantized else "standardised" if data.units else "as they are"
    net = unwrapped(model.net)
    made = {k: v for k, v in net.config.items() if k != "shape" and v} if isinstance(net, Network) else {}
    how = f"({', '.join(f'{k}={v}' for k, v in made.items())})" if made else ""
    return (
        f"{type(net).__name__}{how} of {weights:,} weights, {model.sde!r}; {len(data.train)} samples of {shape}, "
        f"{kind}, and {len(data.held_out)} held out; {s.steps} steps of {s.batch}, "
        f"{s.steps * s.batch / len(data.train):.3g} times all samples, at a learning rate of {s.lr:g}"
        f"{_coarse(model, data)}"
    )


def _coarse(model: NoisyModel, data: Dataset) -> str:
    """What is to be said where the least noise hides the levels of discrete data."""
    least = float((-model.sde.log_snr(as_time(model.sde.t_min))).exp())
    if not isinstance(model, ScoreModel) or data.quantized is None or least <= data.quantized.width / 3:
        return ""
    return (
        f". The least noise, sigma/alpha = {least:.2g}, is not small beside a level of {data.quantized.width:.2g}: "
        "good for samples, but for bits/dim by uniform dequantisation train down to less, as by VP(t_min=1e-5)"
    )


def _require_finite(loss: Tensor, step: int) -> None:
    if not loss.isfinite():
        raise RuntimeError(f"the loss is {loss} at step {step}: lower lr, or look at the data")


def _started(
    model: M,
    data: Dataset,
    settings: Settings,
    folder: str | Path | None,
    source: Source | None,
    resume: bool,
    sharded: bool | torch.device,
) -> Training[M]:
    """The training to go on with, once all that was asked for is known to fit together."""
    if folder is not None and not resume and exists(folder):
        raise ValueError(f"folder must hold no checkpoint unless resume is asked for, got {str(folder)!r}")
    if folder is not None and not resume and list((Path(folder) / SNAPSHOTS).glob("*.safetensors")):
        raise ValueError(f"folder must hold no snapshots of another training, got {str(Path(folder) / SNAPSHOTS)!r}")
    share = _share(model, data, settings, sharded)
    for what in misfit(model.sde, *data.moments):
        warnings.warn(what, stacklevel=3)
    if folder is not None:
        require_savable(Checkpoint(model, data.shape, data.quantized, source), folder)
    run = Training(model, data, settings, share)
    if resume:
        run.resume(folder, source)
    if sharded:
        run.shard()
    return run


def _share(model: NoisyModel, data: Dataset, settings: Settings, sharded: bool | torch.device) -> Share:
    """The part of this process. Raises ValueError unless model, data and settings fit together."""
    if not isinstance(sharded, (bool, torch.device)):
        raise ValueError(f"sharded must be True, False or a torch.device, got {sharded!r}")
    if sharded:
        require_shardable(model, settings.precision)
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    if settings.batch % world:
        raise ValueError(f"batch must be a multiple of the number of processes, {world}, got {settings.batch}")
    if settings.batch // world % settings.accumulate:
        raise ValueError(
            f"accumulate must divide the {settings.batch // world} samples of a process's share, got "
            f"{settings.accumulate}"
        )
    if settings.flips and len(data.shape) != 3:
        raise ValueError(f"flips must be False for data that are no images, but of shape {data.shape}, got True")
    if not len(data.train):
        raise ValueError("data must have samples to train on, got none")
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError(f"model must have parameters to train, but {type(model.net).__name__} has none")
    if not any(p.requires_grad for p in parameters):
        raise ValueError("model must have parameters that require gradients, as after model.requires_grad_(), got none")
    if half := [p for p in parameters if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16)]:
        raise ValueError(
            f"net must have weights in float32 or float64 to be trained, got {half[0].dtype}, in which small steps and "
            "the average of the weights round away: precision='bfloat16' computes in that from such weights"
        )
    if torch.is_inference_mode_enabled():
        raise ValueError("training needs gradients, and torch.inference_mode has none: train outside of it")
    device, classes = parameters[0].device, classes_of(model)
    if isinstance(model, ClassModel):
        _require_classifiable(data, settings)
    if 0 < classes < data.classes:
        raise ValueError(f"net must have a class for each of the {data.classes} labels, got {classes}")
    t = torch.tensor(model.sde.T, dtype=torch.float64)
    try:
        with torch.no_grad():
            asked(copy.deepcopy(model).eval(), data.values(data.train[:1]).to(device), t)
    except Exception as error:  # whatever a network of one's own may raise
        raise ValueError(f"net must take samples of shape {data.shape}: {error}") from error
    return Share(sharded if isinstance(sharded, torch.device) else device, rank, world, bool(sharded))


def _require_classifiable(data: Dataset, settings: Settings) -> None:
    """Raise ValueError for data without labels, and for settings that mean nothing for a classifier."""
    if data.train_labels is None:
        raise ValueError("a classifier needs data with labels, and these have none")
    if settings.weight is not None:
        raise ValueError(f"weight must be None for a classifier, which has no error of eps, got {settings.weight!r}")
    if settings.label_dropout != Settings.label_dropout:
        raise ValueError(
            f"label_dropout must be left as it is, {Settings.label_dropout}, for a classifier, from which no label is "
            f"hidden, got {settings.label_dropout}"
        )
