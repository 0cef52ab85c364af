"""A training under way."""

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import (
    Checkpoint,
    M,
    classes_of,
    exists,
    fill,
    load_as,
    load_state,
    plain_name,
    recorded_kind,
    recorded_net,
    save,
    tensors_of,
    unwrapped,
)
from ..data import Dataset, Source
from ..loss import Weight, cross_entropy, dsm
from ..model import NoisyModel, ScoreModel
from ..nn import Network, drop_labels
from ..noise import iid, seeded
from ..progress import unbroken
from ..reference import Reference
from ..values import describe
from . import averages
from .settings import PRECISIONS, Settings, evenly
from .shard import Shards, gathered, hollow, local

SCALE = ("scale", "_growth_tracker")  # what changes of a scaled loss's scale


class Loss(nn.Module):
    """The mean loss of a batch, of a score model per dimension; a module, so that gradients can be shared between
    processes.
    """

    def __init__(self, model: NoisyModel, weight: Weight | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.weight, self.dtype = model, weight, dtype

    def forward(self, x_0: Tensor, t: Tensor, z: Tensor, cond: dict[str, Tensor]) -> Tensor:
        with torch.autocast(x_0.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if isinstance(self.model, ScoreModel):
                return dsm(self.model, x_0, t, self.weight, lambda *_: z, **cond).mean() / x_0[0].numel()
            return cross_entropy(self.model, x_0, t, cond["label"], lambda *_: z).mean()


def asked(model: NoisyModel, x: Tensor, t: Tensor) -> Tensor:
    """What the network says of x: eps, or the logits of a classifier."""
    said: Tensor = (model.eps if isinstance(model, ScoreModel) else model)(x, t)
    return said


def generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one step."""
    return torch.Generator().manual_seed(_start(seed, step))


class Batches:
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
class Share:
    """Which part of a batch this process takes, the device that it computes on, and whether of the weights, too, it
    holds a part alone.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    sharded: bool = False

    def __call__(self, a: Tensor) -> Tensor:
        """This process's rows of a, on its device; a GPU fetches them while the process goes on."""
        size = len(a) // self.world
        mine = a[self.rank * size : (self.rank + 1) * size]
        return (
            mine.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else mine.to(self.device)
        )


class Training(Generic[M]):
    """A training under way: everything that changes, and what a step of it is."""

    def __init__(self, model: M, data: Dataset, settings: Settings, share: Share) -> None:
        self.model, self.data, self.settings, self.share, self.step = model.train(), data, settings, share, 0
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        start = {plain_name(model, name): p.detach() for name, p in model.named_parameters()}
        beside = len(averages.HALF_LIVES) if settings.snapshots else 0
        self.kept = [{name: p.clone() for name, p in start.items()} for _ in range(beside)]
        fused = share.device.type in ("cpu", "cuda") and all(p.is_floating_point() for p in model.parameters())
        self.optimizer = _adam(model, settings, fused)
        self.scaler = torch.amp.GradScaler(share.device.type, enabled=settings.precision == "float16")
        loss = Loss(model, settings.weight, PRECISIONS[settings.precision])
        alone = share.world == 1 or share.sharded
        self.loss: nn.Module = loss if alone else DistributedDataParallel(loss)
        self.batches = Batches(len(data.train), settings)
        self.shards: Shards | None = None

    def shard(self) -> None:
        """From here on, this process holds its part of the weights, of their averages and of the optimiser's state.
        Raises ValueError if the network cannot be computed so.
        """
        self.shards, self.form = Shards(self.share.device), hollow(self.average)
        moments, fused = self.optimizer.state_dict()["state"], bool(self.optimizer.defaults["fused"])
        del self.optimizer  # which holds the whole weights
        for model in (self.model, self.average):
            self.shards.same([*model.parameters(), *model.buffers()])
        for kept in self.kept:
            self.shards.same(kept.values())
        self.kept = [{name: self.shards.part(v) for name, v in kept.items()} for kept in self.kept]
        for state in moments.values():
            state.update({k: self.shards.part(v) for k, v in state.items() if v.ndim})
        try:
            for model in (self.model, self.average):
                self.shards.spread(model)
            t = torch.tensor(self.model.sde.T, dtype=torch.float64)
            with torch.no_grad():
                asked(self.average, self.data.values(self.data.train[:1]).to(self.share.device), t)
        except Exception as error:  # whatever a network of one's own may raise
            raise ValueError(f"net must be one that can be computed in parts to be sharded: {error}") from error
        self.optimizer = _adam(self.model, self.settings, fused)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def together(self) -> AbstractContextManager[list[int]]:
        """Inside, signals that ask the process to end wait for `agreed`, if the weights are spread over processes: one
        that left the others alone could gather nothing.
        """
        return nullcontext([]) if self.shards is None else unbroken()

    def agreed(self, due: bool, asked: list[int]) -> bool:
        """Whether something is due, here or in another process that the weights are spread over. Raises in all of them
        if one was asked to end.
        """
        return due if self.shards is None else self.shards.agree(due, asked)

    def alike(self, **said: Any) -> None:
        """Raise ValueError, in all processes that the weights are spread over, unless each was told the same."""
        if self.shards is not None:
            self.shards.alike(said)

    def averaged(self, here: bool = True) -> M:
        """The model with the averaged weights, whole; all processes take part, and it is filled where it is `here`."""
        if self.shards is None:
            return self.average
        whole = copy.deepcopy(self.form)
        found = gathered(dict(self.average.named_parameters()), here)
        whole.load_state_dict(found, strict=False, assign=True)
        for kept, now in zip(whole.buffers(), self.average.buffers(), strict=True):
            kept.data = now.detach().to("cpu", copy=True)
        return whole

    def advance(self) -> Tensor:
        """One step; its loss. It is not interrupted: a network may count its calls, as running statistics do."""
        with unbroken():
            batch = self._batch(self.step + 1)
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.lr * self.settings.lr_factor(self.step + 1)
            self.optimizer.zero_grad()
            own = _start(self.settings.seed, self.step + 1, self.share.rank, 2)
            with seeded(own, self.share.device), torch.enable_grad():
                loss = self._gradient(*batch)
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
            with torch.no_grad():
                self.scaler.step(self.optimizer)  # unless a scaled gradient is not finite
                self.scaler.update()
                rate = self.settings.ema_rate(self.step + 1)
                torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), rate)
                for e, beside in zip(averages.HALF_LIVES, self.kept, strict=False):
                    to = averages.rate(e, self.step + 1)
                    torch._foreach_lerp_(list(beside.values()), list(self.model.parameters()), to)
                if self.shards:
                    self.shards.same(self.model.buffers())
                for kept, now in zip(self.average.buffers(), self.model.buffers(), strict=True):
                    kept.copy_(now)
            self.step += 1
        return loss

    def _gradient(self, x_0: Tensor, t: Tensor, z: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """That of the loss, added up over the parts of the batch, and the loss."""
        parts, total = self.settings.accumulate, x_0.new_zeros(())
        for k, (x, u, noise) in enumerate(zip(x_0.chunk(parts), t.chunk(parts), z.chunk(parts), strict=True)):
            told = {name: value.chunk(parts)[k] for name, value in cond.items()}
            alone = isinstance(self.loss, DistributedDataParallel) and k < parts - 1  # all share the last
            with self.loss.no_sync() if alone else nullcontext():  # type: ignore[operator]
                loss = self.loss(x, u, noise, told) / parts
                self.scaler.scale(loss).backward()
            total = total + loss.detach()
        return total

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """This process's share of the data, times, noise and conditions of a step, drawn for all processes alike."""
        s, data, g, rows = self.settings, self.data, generator(self.settings.seed, step), self.batches(step)
        x_0 = data.values(data.train[rows])
        if data.quantized:
            x_0 = data.quantized.dequantize(x_0, iid(g))
        t = s.times.draw(self.model.sde, s.batch, g, stratified=s.stratified)
        z = torch.randn(x_0.shape, generator=g, device="cpu")
        cond, classes = {}, classes_of(self.model)
        if classes and data.train_labels is not None:
            hidden = s.label_dropout if isinstance(self.model, ScoreModel) else 0.0
            cond["label"] = self.share(drop_labels(data.train_labels[rows], hidden, classes, g))
        if s.flips:
            turned = torch.rand(s.batch, generator=g, device="cpu") < 0.5
            x_0 = torch.where(turned.view(-1, 1, 1, 1), x_0.flip(-1), x_0)
        return self.share(x_0), self.share(t), self.share(z), cond

    def save(self, folder: str | Path | None, source: Source | None) -> None:
        """A checkpoint into folder, if there is one and this process is the first. Raises RuntimeError if a weight is
        not finite: such a state must not replace a good one.
        """
        for part in (self.model, self.average):
            if self.agreed(not all(local(p).isfinite().all() for p in part.parameters()), []):
                raise RuntimeError(f"the weights are not finite after step {self.step}: lower lr, or look at the data")
        first = self.share.rank == 0
        if folder is None or not (first or self.shards):
            return
        average, state = self.averaged(first), gathered(self._state(), first)
        if first:
            around = self.average.around or _around(self.data)
            about = (
                self.data.shape,
                self.data.quantized,
                source,
                self._notes(),
                around,
                self.data.names,
                self.data.units,
            )
            with unbroken():
                save(folder, Checkpoint(average, *about), state)

    def keep(self, folder: str | Path | None) -> None:
        """The averages of now into folder, where they are to be kept; again, if this is the same step."""
        if folder is None or not evenly(self.step, self.settings.steps, self.settings.snapshots):
            return
        first = self.share.rank == 0
        whole = [gathered(kept, first) for kept in self.kept]
        if first:
            training = averages.training_of(self._notes(), self.model.sde)
            averages.keep(Path(folder), self.step, whole, training)

    def _notes(self) -> dict[str, Any]:
        notes = {"step": self.step, "settings": describe(self.settings), "data": self.data.digest}
        return notes | ({"columns": list(self.data.columns)} if self.data.columns else {})

    def _state(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the average, flat."""
        flat = {f"model.{k}": v for k, v in tensors_of(self.model).items()}
        flat |= {f"kept.{i}.{k}": v for i, kept in enumerate(self.kept) for k, v in kept.items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            flat |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        scale = self.scaler.state_dict()
        return flat | {f"scaler.{k}": torch.tensor(scale[k]) for k in SCALE if k in scale}

    def resume(self, folder: str | Path | None, source: Source | None) -> None:
        """The inverse of `save`. Raises ValueError unless the checkpoint is one of this training."""
        if folder is None or not exists(folder):
            raise ValueError(f"resume needs a folder with a checkpoint, got {folder!r}")
        if (was_kind := recorded_kind(folder)) != type(self.model).__name__:
            raise ValueError(f"model must be as in {folder} to resume, {was_kind}, got {type(self.model).__name__}")
        recorded, net = recorded_net(folder), unwrapped(self.average.net)
        if isinstance(net, Network) and recorded != {"class": type(net).__name__, "config": net.config}:
            raise ValueError(f"net must be as in {folder} to resume, {recorded!r}, got {net.config!r}")
        found = load_as(type(self.model), folder, net=copy.deepcopy(net))
        recorded, now = dict(found.notes.get("settings", {})), describe(self.settings)
        if recorded.pop("bf16", False):  # as it was said before there was float16
            recorded["precision"] = "bfloat16"
        was = describe(Settings()) | recorded
        for name in self.model.parts:
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
        for at, kept in enumerate(self.kept):
            for name, v in kept.items():
                v.copy_(flat[f"kept.{at}.{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, v in flat.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = v
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        scale = {k: flat[f"scaler.{k}"].item() for k in SCALE if f"scaler.{k}" in flat}
        self.scaler.load_state_dict({**self.scaler.state_dict(), **scale})


def _adam(model: NoisyModel, settings: Settings, fused: bool) -> torch.optim.Optimizer:
    """Adam, with decay of the weights that multiply, if any."""
    options: dict[str, Any] = {"lr": settings.lr, "betas": (0.9, settings.beta2), "fused": fused}
    if not settings.weight_decay:
        return torch.optim.Adam(model.parameters(), **options)
    groups: list[list[nn.Parameter]] = [[], []]
    for p in model.parameters():
        groups[p.ndim < 2].append(p)
    decays = zip(groups, (settings.weight_decay, 0.0), strict=True)
    return torch.optim.AdamW([{"params": g, "weight_decay": w} for g, w in decays if g], **options)


def _start(*numbers: int) -> int:
    """A seed that depends on these whole numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _around(data: Dataset) -> Reference | None:
    """The Gaussian around the data, if they tell one."""
    try:
        return data.around
    except ValueError:  # one sample, or many that are the same
        return None
