"""Training a score model by denoising score matching.

Step k draws its batch, times and noise from a generator seeded by (seed, k) alone, for the whole batch: a training that
was interrupted and resumed is the same training, and so is one spread over several processes, each of which takes its
rows of the batch (`torchrun --nproc-per-node 2 ...`), to the rounding of sums.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .checkpoint import Checkpoint, describe, exists, load, load_state, recorded_net, require_savable, save
from .data import Dataset, Source
from .loss import Karras, LogNormal, Times, Weight, dsm
from .model import ScoreModel
from .nn import Network, drop_labels
from .noise import iid
from .progress import bar, unbroken
from .shapes import count, number


@dataclass(frozen=True)
class Settings:
    """How to train. Raises ValueError, naming the field, where one is out of range."""

    steps: int = 5000
    """Optimiser steps."""
    batch: int = 32
    """Samples a step, over all processes together."""
    lr: float = 4e-3
    """The learning rate of Adam, after warm-up and before its linear decay to 0."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0."""
    decay: float = 0.5
    """The share of the steps, at the end, over which it falls to 0."""
    beta2: float = 0.99
    """Adam's memory of squared gradients."""
    clip: float = 1.0
    """The largest norm of a step's gradient."""
    ema: float = 0.05
    """Half-life of the averaged weights, as a part of the steps so far (Karras et al. 2022, 2024)."""
    weight: Weight = Karras()
    """The weight of the loss at each noise level."""
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
        count("warmup", self.warmup, least=0)
        count("seed", self.seed, least=0)
        number("lr", self.lr, above=0)
        number("clip", self.clip, above=0)
        number("decay", self.decay, least=0, most=1)
        number("beta2", self.beta2, above=0, below=1)
        number("ema", self.ema, above=0)
        number("label_dropout", self.label_dropout, least=0, most=1)

    def lr_factor(self, step: int) -> float:
        """The learning rate of step 1, 2, ... in units of `lr`."""
        left = (self.steps - step + 1) / max(1.0, self.decay * self.steps)
        return min(1.0, step / max(1, self.warmup), left)

    def ema_rate(self, step: int) -> float:
        """The share by which the average moves at a step: 1 - 2^(-1/(ema step))."""
        return -math.expm1(-math.log(2) / (self.ema * step))


class _Loss(nn.Module):
    """The mean loss of a batch, per dimension; a module, so that gradients can be shared between processes."""

    def __init__(self, model: ScoreModel, bf16: bool) -> None:
        super().__init__()
        self.model, self.bf16 = model, bf16

    def forward(self, x_0: Tensor, t: Tensor, z: Tensor, weight: Weight, cond: dict[str, Tensor]) -> Tensor:
        with torch.autocast(x_0.device.type, torch.bfloat16, enabled=self.bf16):
            return dsm(self.model, x_0, t, weight, lambda *_: z, **cond).mean() / x_0[0].numel()


def generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one step."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))


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


@dataclass
class _Run:
    """Everything that changes while training."""

    model: ScoreModel
    average: ScoreModel
    optimizer: torch.optim.Adam
    step: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """The state for a checkpoint, flat."""
        flat = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            flat |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        return flat

    def check(self) -> None:
        """Raise RuntimeError if a weight is not finite: such a state must not replace a good one."""
        for part in (self.model, self.average):
            if not all(p.isfinite().all() for p in part.parameters()):
                raise RuntimeError(f"the weights are not finite after step {self.step}: lower lr, or look at the data")

    def restore(self, step: int, average: ScoreModel, flat: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        self.step = step
        self.average.load_state_dict(average.state_dict())
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in flat.items() if k.startswith("model.")})
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

    folder: where checkpoints go, every `save_every` seconds and when the training ends or is interrupted; the loss goes
    to TensorBoard there if that is installed. source: recorded in the checkpoint. resume: go on from the checkpoint in
    folder, which must have been made with the same settings, process and source. on_step: called with the step and its
    loss.

    Raises ValueError before work starts if the settings, the data and the model do not fit together or if folder holds
    a checkpoint that is not to be resumed; RuntimeError, leaving the last good checkpoint, if the loss or a weight is
    not finite.
    """
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    if settings.batch % world:
        raise ValueError(f"batch must be a multiple of the number of processes, {world}, got {settings.batch}")
    if not len(data.train):
        raise ValueError("data must have samples to train on, got none")
    if folder is not None and not resume and exists(folder):
        raise ValueError(f"folder must hold no checkpoint unless resume is asked for, got {str(folder)!r}")
    device = _fitting(model, data)
    if folder is not None:
        require_savable(Checkpoint(model, data.shape, data.quantized, source))
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(model.parameters(), settings.lr, betas=(0.9, settings.beta2), fused=fused)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    run = _Run(model.train(), average, optimizer)
    if resume:
        _resume(run, settings, source, folder)
    loss_of: nn.Module = _Loss(model, settings.bf16)
    loss_of = loss_of if world == 1 else DistributedDataParallel(loss_of)
    batches, logger = _Batches(len(data.train), settings), _logger(folder if rank == 0 else None)
    saved = monotonic()

    def checkpoint() -> None:
        run.check()
        if folder is not None and rank == 0:
            notes = {"step": run.step, "settings": describe(settings)}
            save(folder, Checkpoint(run.average, data.shape, data.quantized, source, notes), run.tensors())

    shown = bar(total=settings.steps, initial=run.step, desc="train", disable=not progress or rank > 0, unit="step")
    try:
        while run.step < settings.steps:
            loss = _step(run, loss_of, data, batches, settings, device, world, rank)
            shown.update()
            if run.step % 50 == 0 or run.step == settings.steps:
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise RuntimeError(f"the loss is {value} at step {run.step}: lower lr, or look at the data")
                shown.set_postfix(loss=f"{value:.4f}", refresh=False)
                if logger:
                    logger.add_scalar("loss", value, run.step)
            if on_step:
                on_step(run.step, float(loss.detach()))
            if monotonic() - saved > save_every:
                checkpoint()
                saved = monotonic()
        checkpoint()
    except KeyboardInterrupt:
        checkpoint()
        raise
    finally:
        shown.close()
        if logger:
            logger.close()
    return run.average


def _fitting(model: ScoreModel, data: Dataset) -> torch.device:
    """The model's device. Raises ValueError unless the model has parameters and takes the data and their labels."""
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError(f"model must have parameters to train, but {type(model.net).__name__} has none")
    device, classes = parameters[0].device, getattr(model.net, "classes", 0)
    if 0 < classes < data.classes:
        raise ValueError(f"net must have a class for each of the {data.classes} labels, got {classes}")
    t = torch.tensor(model.sde.T, dtype=torch.float64)
    try:
        with torch.no_grad():
            copy.deepcopy(model).eval().eps(data.train[:1].to(device), t)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"net must take samples of shape {data.shape}: {error}") from error
    return device


def _step(
    run: _Run,
    loss_of: nn.Module,
    data: Dataset,
    batches: _Batches,
    settings: Settings,
    device: torch.device,
    world: int,
    rank: int,
) -> Tensor:
    step, share = run.step + 1, settings.batch // world
    g, rows, mine = generator(settings.seed, step), batches(step), slice(rank * share, (rank + 1) * share)
    x_0 = data.train[rows]
    if data.quantized:
        x_0 = data.quantized.dequantize(x_0, iid(g))
    t = settings.times.draw(run.model.sde, settings.batch, g, stratified=settings.stratified)
    z = torch.randn(x_0.shape, generator=g)
    cond, classes = {}, getattr(run.model.net, "classes", 0)
    if classes and data.train_labels is not None:
        cond["label"] = _sent(drop_labels(data.train_labels[rows], settings.label_dropout, classes, g)[mine], device)
    loss = loss_of(*(_sent(a[mine], device) for a in (x_0, t, z)), settings.weight, cond)
    for group in run.optimizer.param_groups:
        group["lr"] = settings.lr * settings.lr_factor(step)
    run.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), settings.clip)
    with unbroken(), torch.no_grad():
        run.optimizer.step()
        rate = settings.ema_rate(step)
        torch._foreach_lerp_(list(run.average.parameters()), list(run.model.parameters()), rate)
        for kept, now in zip(run.average.buffers(), run.model.buffers(), strict=True):
            kept.copy_(now)
        run.step = step
    return loss


def _sent(a: Tensor, device: torch.device) -> Tensor:
    """a on the device; a GPU fetches it while this process goes on."""
    return a.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else a.to(device)


def _resume(run: _Run, settings: Settings, source: Source | None, folder: str | Path | None) -> None:
    if folder is None or not exists(folder):
        raise ValueError(f"resume needs a folder with a checkpoint, got {folder!r}")
    recorded, net = recorded_net(folder), run.average.net
    if isinstance(net, Network) and recorded != {"class": type(net).__name__, "config": net.config}:
        raise ValueError(f"net must be as in {folder} to resume, {recorded!r}, got {net.config!r}")
    found = load(folder, net=copy.deepcopy(net))
    was, now = dict(found.notes.get("settings", {})), describe(settings)
    for name in ("sde", "predicts", "clock"):
        was[name], now[name] = (describe(getattr(model, name)) for model in (found.model, run.model))
    was["source"], now["source"] = describe(found.source), describe(source)
    for name in ("source", *now):  # first, since other data change other settings too
        if was.get(name) != now[name]:
            raise ValueError(f"{name} must be as in {folder} to resume, {was.get(name)!r}, got {now[name]!r}")
    run.restore(found.notes["step"], found.model, load_state(folder))


def _logger(folder: str | Path | None) -> Any:
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
