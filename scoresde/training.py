"""Training a score model by denoising score matching.

Step k draws its batch, times and noise from a generator seeded by (seed, k) alone, for the whole batch, and so are the
global generators seeded that a network may draw from, as dropout does: a training that was interrupted and resumed is
the same training, and so is one spread over several processes, each of which takes its rows of the batch
(`torchrun --nproc-per-node 2 ...`), to the rounding of sums, if its network draws nothing.
"""

import copy
import math
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .checkpoint import (
    Checkpoint,
    exists,
    fill,
    load,
    load_state,
    recorded_net,
    require_savable,
    save,
    tensors_of,
    unwrapped,
)
from .data import Dataset, Source
from .files import alone
from .logbook import logbook
from .loss import LogNormal, Times, Weight, dsm
from .model import ScoreModel
from .nn import Network, drop_labels
from .noise import iid, seeded
from .progress import bar, stoppable, unbroken
from .reference import Reference, misfit
from .shapes import as_time, count, number
from .values import describe


@dataclass(frozen=True)
class Settings:
    """How to train. Raises ValueError, naming the field, where one is out of range."""

    steps: int = 5000
    """Optimiser steps."""
    batch: int = 32
    """Samples a step, over all processes together."""
    lr: float = 4e-3
    """The learning rate of Adam, after warm-up and before its linear decay to 0."""
    warmup: int | None = None
    """Steps over which the learning rate rises from 0: 100, or all if there are fewer, unless given."""
    decay: float = 0.5
    """The share of the steps, at the end, over which it falls to 0."""
    beta2: float = 0.99
    """Adam's memory of squared gradients."""
    clip: float = 1.0
    """The largest norm of a step's gradient."""
    ema: float = 0.05
    """Half-life of the averaged weights, as a part of the steps so far (Karras et al. 2022, 2024)."""
    weight: Weight | None = None
    """The weight of the loss at each noise level; 1 on the network's output unless given."""
    times: Times = LogNormal()
    """The law that times are drawn from."""
    stratified: bool = True
    """Whether the times of a batch are spread evenly over their law."""
    label_dropout: float = 0.1
    """The share of labels hidden from a network that has classes."""
    bf16: bool = False
    """Compute the network in bfloat16 (autocast); weights, their average and the loss stay in float32."""
    seed: int = 0
    """The seed of batches, times and noise."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            count(name, getattr(self, name))
        if self.warmup is not None and count("warmup", self.warmup, least=0) > self.steps:
            raise ValueError(f"warmup must not be longer than the training of {self.steps} steps, got {self.warmup}")
        count("seed", self.seed, least=0)
        number("lr", self.lr, above=0)
        number("clip", self.clip, above=0)
        number("decay", self.decay, least=0, most=1)
        number("beta2", self.beta2, above=0, below=1)
        number("ema", self.ema, above=0)
        number("label_dropout", self.label_dropout, least=0, most=1)

    def lr_factor(self, step: int) -> float:
        """The learning rate of step 1, 2, ... in units of `lr`."""
        rising = min(100, self.steps) if self.warmup is None else self.warmup
        left = (self.steps - step + 1) / max(1.0, self.decay * self.steps)
        return min(1.0, step / max(1, rising), left)

    def ema_rate(self, step: int) -> float:
        """The share by which the average moves at a step: 1 - 2^(-1/(ema step))."""
        return -math.expm1(-math.log(2) / (self.ema * step))


class _Loss(nn.Module):
    """The mean loss of a batch, per dimension; a module, so that gradients can be shared between processes."""

    def __init__(self, model: ScoreModel, weight: Weight | None, bf16: bool) -> None:
        super().__init__()
        self.model, self.weight, self.bf16 = model, weight, bf16

    def forward(self, x_0: Tensor, t: Tensor, z: Tensor, cond: dict[str, Tensor]) -> Tensor:
        with torch.autocast(x_0.device.type, torch.bfloat16, enabled=self.bf16):
            return dsm(self.model, x_0, t, self.weight, lambda *_: z, **cond).mean() / x_0[0].numel()


def generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one step."""
    return torch.Generator().manual_seed(_start(seed, step))


class _Batches:
    """Rows of the training data, each once an epoch, in an order that depends on (seed, epoch)."""

    def __init__(self, n: int, settings: Settings) -> None:
        self.n, self.batch, self.seed = n, settings.batch, settings.seed
        self.epoch, self.order = -1, np.empty(0, dtype=np.int64)

    def __call__(self, step: int) -> Tensor:
        at = np.arange((step - 1) * self.batch, step * self.batch)
        rows = np.empty(self.batch, dtype=np.int64)
        for epoch in range(at[0] // self.n, at[-1] // self.n + 1):
            if epoch != self.epoch:
                seed = np.random.SeedSequence([self.seed, epoch, 1]).generate_state(1)[0]
                self.epoch, self.order = epoch, np.random.RandomState(seed).permutation(self.n)
            inside = at // self.n == epoch
            rows[inside] = self.order[at[inside] % self.n]
        return torch.from_numpy(rows)


@dataclass(frozen=True)
class _Share:
    """Which part of a batch this process takes, and the device that it computes on."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def __call__(self, a: Tensor) -> Tensor:
        """This process's rows of a, on its device; a GPU fetches them while the process goes on."""
        size = len(a) // self.world
        mine = a[self.rank * size : (self.rank + 1) * size]
        return (
            mine.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else mine.to(self.device)
        )


class _Run:
    """A training under way: everything that changes, and what a step of it is."""

    def __init__(self, model: ScoreModel, data: Dataset, settings: Settings, share: _Share) -> None:
        self.model, self.data, self.settings, self.share, self.step = model.train(), data, settings, share, 0
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        fused = share.device.type in ("cpu", "cuda") and all(p.is_floating_point() for p in model.parameters())
        self.optimizer = torch.optim.Adam(model.parameters(), settings.lr, betas=(0.9, settings.beta2), fused=fused)
        loss = _Loss(model, settings.weight, settings.bf16)
        self.loss: nn.Module = loss if share.world == 1 else DistributedDataParallel(loss)
        self.batches = _Batches(len(data.train), settings)

    def advance(self) -> Tensor:
        """One step; its loss. It is not interrupted: a network may count its calls, as running statistics do."""
        with unbroken():
            batch = self._batch(self.step + 1)
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.lr * self.settings.lr_factor(self.step + 1)
            self.optimizer.zero_grad()
            own = _start(self.settings.seed, self.step + 1, self.share.rank, 2)
            with seeded(own, self.share.device), torch.enable_grad():
                loss: Tensor = self.loss(*batch)
                loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
            with torch.no_grad():
                self.optimizer.step()
                rate = self.settings.ema_rate(self.step + 1)
                torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), rate)
                for kept, now in zip(self.average.buffers(), self.model.buffers(), strict=True):
                    kept.copy_(now)
            self.step += 1
        return loss.detach()

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """This process's share of the data, times, noise and conditions of a step, drawn for all processes alike."""
        s, data, g, rows = self.settings, self.data, generator(self.settings.seed, step), self.batches(step)
        x_0 = data.values(data.train[rows])
        if data.quantized:
            x_0 = data.quantized.dequantize(x_0, iid(g))
        t = s.times.draw(self.model.sde, s.batch, g, stratified=s.stratified)
        z = torch.randn(x_0.shape, generator=g, device="cpu")
        cond, classes = {}, getattr(self.model.net, "classes", 0)
        if classes and data.train_labels is not None:
            cond["label"] = self.share(drop_labels(data.train_labels[rows], s.label_dropout, classes, g))
        return self.share(x_0), self.share(t), self.share(z), cond

    def save(self, folder: str | Path | None, source: Source | None) -> None:
        """A checkpoint into folder, if there is one and this process is the first. Raises RuntimeError if a weight is
        not finite: such a state must not replace a good one.
        """
        for part in (self.model, self.average):
            if not all(p.isfinite().all() for p in part.parameters()):
                raise RuntimeError(f"the weights are not finite after step {self.step}: lower lr, or look at the data")
        if folder is not None and self.share.rank == 0:
            notes = {"step": self.step, "settings": describe(self.settings), "data": self.data.digest}
            notes |= {"columns": list(self.data.columns)} if self.data.columns else {}
            around = self.average.around or _around(self.data)
            about = self.data.shape, self.data.quantized, source, notes, around, self.data.names, self.data.units
            with unbroken():
                save(folder, Checkpoint(self.average, *about), self._state())

    def _state(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the average, flat."""
        flat = {f"model.{k}": v for k, v in tensors_of(self.model).items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            flat |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        return flat

    def resume(self, folder: str | Path | None, source: Source | None) -> None:
        """The inverse of `save`. Raises ValueError unless the checkpoint is one of this training."""
        if folder is None or not exists(folder):
            raise ValueError(f"resume needs a folder with a checkpoint, got {folder!r}")
        recorded, net = recorded_net(folder), unwrapped(self.average.net)
        if isinstance(net, Network) and recorded != {"class": type(net).__name__, "config": net.config}:
            raise ValueError(f"net must be as in {folder} to resume, {recorded!r}, got {net.config!r}")
        found = load(folder, net=copy.deepcopy(net))
        was, now = dict(found.notes.get("settings", {})), describe(self.settings)
        for name in ("sde", "predicts", "clock"):
            was[name], now[name] = (describe(getattr(model, name)) for model in (found.model, self.model))
        was["data"], now["data"] = found.notes.get("data"), self.data.digest
        was["types"], now["types"] = (
            [str(v.dtype) for v in m.state_dict().values()] for m in (found.model, self.model)
        )
        for name in ("data", *now):  # first, since other data change other settings too
            if was.get(name) != now[name] and not (name == "steps" and now[name] > was[name]):
                raise ValueError(f"{name} must be as in {folder} to resume, {was.get(name)!r}, got {now[name]!r}")
        self.step = found.notes["step"]
        fill(self.average, tensors_of(found.model))
        self._restore(load_state(folder))

    def _restore(self, flat: dict[str, Tensor]) -> None:
        fill(self.model, {k.removeprefix("model."): v for k, v in flat.items() if k.startswith("model.")})
        state: dict[int, dict[str, Tensor]] = {}
        for key, v in flat.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = v
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def train(
    model: ScoreModel,
    data: Dataset,
    settings: Settings = Settings(),
    *,
    folder: str | Path | None = None,
    source: Source | None = None,
    resume: bool = False,
    save_every: float = 60.0,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
) -> ScoreModel:
    """Train model on data.train, where its parameters are, and return a copy with the averaged weights.

    folder: where checkpoints go, every `save_every` seconds and when the training ends or is interrupted, from the
    keyboard or by SIGTERM or SIGHUP; what the training says of itself goes to loss.jsonl there, and to TensorBoard's
    files if that is installed. source: recorded in the checkpoint. resume: go on from the checkpoint in folder, which
    must have been made with the same data, settings and process, but that `steps` may grow: what is left of the
    schedule is then that of the longer training. on_step: called with the step and its loss.

    Warns if the process does not suit the data (`reference.misfit`). Raises ValueError before work starts if settings,
    data and model do not fit together, folder holds a checkpoint that
    is not to be resumed, or another process trains there; RuntimeError, leaving the last good checkpoint, if the loss
    or a weight is not finite.
    """
    number("save_every", save_every)
    first = not dist.is_initialized() or dist.get_rank() == 0
    with alone(Path(folder)) if folder is not None and first else nullcontext(), stoppable():
        run = _started(model, data, settings, folder, source, resume)
        saved = monotonic()
        if progress and first:
            print(_said(model, data, settings), file=sys.stderr)
        shown = bar(
            total=settings.steps, initial=run.step, desc="train", disable=not progress or not first, unit="step"
        )
        with shown, logbook(folder if first else None, run.step) as log:
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
                    if monotonic() - saved > save_every:
                        run.save(folder, source)
                        log.held_out(run.step, run.average, data, settings.batch)
                        saved = monotonic()
                run.save(folder, source)
                log.held_out(run.step, run.average, data, settings.batch)
            except KeyboardInterrupt:
                run.save(folder, source)
                raise
    return run.average


def _said(model: ScoreModel, data: Dataset, s: Settings) -> str:
    """What is about to be trained, and on what."""
    shape, weights = "x".join(map(str, data.shape)), sum(p.numel() for p in model.parameters())
    kind = f"{data.quantized.levels} levels" if data.quantized else "standardised" if data.units else "as they are"
    return (
        f"{type(unwrapped(model.net)).__name__} of {weights:,} weights, {model.sde!r}; {len(data.train)} samples of "
        f"{shape}, {kind}, and {len(data.held_out)} held out; {s.steps} steps of {s.batch}, "
        f"{s.steps * s.batch / len(data.train):.3g} times all samples{_coarse(model, data)}"
    )


def _coarse(model: ScoreModel, data: Dataset) -> str:
    """What is to be said where the least noise hides the levels of discrete data."""
    least = float((-model.sde.log_snr(as_time(model.sde.t_min))).exp())
    if data.quantized is None or least <= data.quantized.width / 3:
        return ""
    return (
        f". The least noise, sigma/alpha = {least:.2g}, is not small beside a level of {data.quantized.width:.2g}: "
        "good for samples, but for bits/dim by uniform dequantisation train down to less, as by VP(t_min=1e-5)"
    )


def _start(*numbers: int) -> int:
    """A seed that depends on these whole numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _around(data: Dataset) -> Reference | None:
    """The Gaussian around the data, if they tell one."""
    try:
        return data.around
    except ValueError:  # one sample, or many that are the same
        return None


def _require_finite(loss: Tensor, step: int) -> None:
    if not loss.isfinite():
        raise RuntimeError(f"the loss is {loss} at step {step}: lower lr, or look at the data")


def _started(
    model: ScoreModel, data: Dataset, settings: Settings, folder: str | Path | None, source: Source | None, resume: bool
) -> _Run:
    """The training to go on with, once all that was asked for is known to fit together."""
    if folder is not None and not resume and exists(folder):
        raise ValueError(f"folder must hold no checkpoint unless resume is asked for, got {str(folder)!r}")
    share = _share(model, data, settings)
    for what in misfit(model.sde, *data.moments):
        warnings.warn(what, stacklevel=3)
    if folder is not None:
        require_savable(Checkpoint(model, data.shape, data.quantized, source), folder)
    run = _Run(model, data, settings, share)
    if resume:
        run.resume(folder, source)
    return run


def _share(model: ScoreModel, data: Dataset, settings: Settings) -> _Share:
    """The part of this process. Raises ValueError unless model, data and settings fit together."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    if settings.batch % world:
        raise ValueError(f"batch must be a multiple of the number of processes, {world}, got {settings.batch}")
    if not len(data.train):
        raise ValueError("data must have samples to train on, got none")
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError(f"model must have parameters to train, but {type(model.net).__name__} has none")
    if half := [p for p in parameters if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16)]:
        raise ValueError(
            f"net must have weights in float32 or float64 to be trained, got {half[0].dtype}, in which small steps and "
            "the average of the weights round away: bf16=True computes in bfloat16 from such weights"
        )
    if torch.is_inference_mode_enabled():
        raise ValueError("training needs gradients, and torch.inference_mode has none: train outside of it")
    device, classes = parameters[0].device, getattr(model.net, "classes", 0)
    if 0 < classes < data.classes:
        raise ValueError(f"net must have a class for each of the {data.classes} labels, got {classes}")
    t = torch.tensor(model.sde.T, dtype=torch.float64)
    try:
        with torch.no_grad():
            copy.deepcopy(model).eval().eps(data.values(data.train[:1]).to(device), t)
    except Exception as error:  # whatever a network of one's own may raise
        raise ValueError(f"net must take samples of shape {data.shape}: {error}") from error
    return _Share(device, rank, world)
