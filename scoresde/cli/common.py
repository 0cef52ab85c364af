"""What the commands share: the device, the model, the data, and what the recipes say of them."""

import importlib
import io
import math
import os
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..checkpoint import Checkpoint, identified, load, load_as, recorded_net, recorded_shape
from ..data import Dataset, Source
from ..files import digest
from ..guide import classified, classifier_free, conditioned
from ..lab import Row, Subject
from ..model import ClassModel
from ..process import Score
from ..shapes import count, shown
from ..units import Units
from .folder import Folder
from .parts import evaluated, own_module, read_data, read_net, told


def place(o: Namespace) -> torch.device:
    """The device. Raises ValueError if it cannot be used, and for a seed that cannot."""
    if not 0 <= o.seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, got {o.seed}")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if o.device == "auto" else o.device
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # one of several processes of a machine, each with its own
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % max(1, torch.cuda.device_count())}"
    try:
        torch.empty(1, device=name)
        if name.startswith("cuda:"):
            torch.cuda.set_device(name)
        return torch.device(name)
    except Exception as error:  # every backend has its own kinds
        raise ValueError(f"device must be one that torch can use here, got {o.device!r}: {error}") from error


def model_of(o: Namespace, device: torch.device) -> Checkpoint:
    """The checkpoint in o.model, its network made by o.net if the manifest cannot make it, or what a function of one's
    own returns. A CPU, which is slow in half precision, computes in float32.
    """
    net, own = None, own_module(str(o.model)) and not o.model.exists()
    if own and o.net is not None:
        raise ValueError(f"net must not be given beside a model of your own, {o.model}, which has one, got {o.net!r}")
    if o.net is not None:
        config = (recorded_net(o.model) or {}).get("config") or {}
        net = read_net(o.net, recorded_shape(o.model), int(config.get("classes", 0)))
    found = _own_model(str(o.model), device) if own else load(o.model, net, device)
    if device.type == "cpu" and any(p.dtype in (torch.float16, torch.bfloat16) for p in found.model.parameters()):
        found.model.float()
    return found


def _own_model(text: str, device: torch.device) -> Checkpoint:
    """What a function of one's own, package.module:function, returns. Raises ValueError unless it is a checkpoint."""
    made = evaluated("model", text, {})
    if callable(made):
        with told("model", text):
            made = made()
    if not isinstance(made, Checkpoint) or isinstance(made.model, ClassModel):
        raise ValueError(
            f"model must name a function that returns a Checkpoint of a score, got {text!r}, which is {shown(made)}"
        )
    made.model.to(device).eval().requires_grad_(False)
    return replace(identified(made), around=made.model.around or made.around)


def classifier_of(o: Namespace, found: Checkpoint, device: torch.device) -> Checkpoint[ClassModel] | None:
    """The classifier in o.classifier that is to guide the model, or None. Raises ValueError unless it is of the model's
    process, shape and units, and for one without a label to guide to.
    """
    if o.classifier is None:
        return None
    if o.label is None:
        raise ValueError(f"classifier must guide towards a label: give --label too, got {o.classifier}")
    made = load_as(ClassModel, o.classifier, device=device)
    for name, its, own in (
        ("process", made.model.sde, found.model.sde),
        ("shape", made.shape, found.shape),
        ("grid", made.quantized, found.quantized),
        ("units", made.units, found.units),
    ):
        if its != own:
            raise ValueError(f"classifier must have the model's {name}, {own}, got {its}: {o.classifier}")
    return made


def visible(shape: tuple[int, ...]) -> bool:
    """Whether samples of a shape can be seen: images of one or three channels, or points."""
    return (len(shape) == 3 and shape[0] in (1, 3)) or tuple(shape) == (2,)


def picture(x: torch.Tensor, units: Units | None, file: Path) -> None:
    """Samples in their own units as a picture, if they can be seen."""
    if not visible(x.shape[1:]):
        return
    from ..lab.report import grid_picture

    shown = x if x.ndim == 2 or not units else 2 * (x - x.min()) / (x.max() - x.min()) - 1
    grid_picture(shown[: 256 if x.ndim == 4 else 20_000], file)


def label_of(o: Namespace, found: Checkpoint[Any]) -> int | None:
    """The number of the class in o.label, which is the name of one or a number, or None. Raises ValueError if it is no
    class of the network, which is the classifier's where one guides.
    """
    classes, said = getattr(found.model.net, "classes", 0), o.label
    if said is None:
        return None
    if not classes:
        raise ValueError(f"label must not be given, since the network has no classes, got {said}")
    number = int(said) if said.isdecimal() and len(said) < 10 else classes
    label = found.names.index(said) if said in found.names else number
    if label >= classes:
        names = f", or one of {', '.join(found.names)}" if found.names else ""
        raise ValueError(f"label must be one of the network's classes, 0 to {classes - 1}{names}, got {said}")
    return label


def labelled(net: Score, label: int | None) -> Score:
    """The score under a label, if there is one."""
    return net if label is None else conditioned(net, label=label)


def guided(o: Namespace, net: Score, label: int | None, by: Checkpoint[ClassModel] | None = None) -> Score:
    """The score under the label, and with the guidance, that was asked for, by a classifier or free of one."""
    if o.guidance is None and by is None:
        if o.interval is not None:
            raise ValueError(f"interval must not be given without guidance, got {o.interval}")
        return labelled(net, label)
    if label is None:
        raise ValueError(f"guidance must be towards a label: give --label too, got {o.guidance:g}")
    low, high = o.interval or (0.0, math.inf)
    if not 0 <= low < high:
        raise ValueError(f"interval must be two noise levels, the lower one first, got {low:g} and {high:g}")
    if by is None:
        return conditioned(classifier_free(net, o.guidance, low=low, high=high), label=label)
    w = 1.0 if o.guidance is None else o.guidance
    return conditioned(classified(net, by.model, w, low=low, high=high), label=label)


def condition(o: Namespace, label: int | None, by: Checkpoint[ClassModel] | None = None) -> str:
    """What that is, in words; nothing without a label."""
    if label is None:
        return ""
    towards = "" if o.guidance is None else f", guidance {o.guidance:g}"
    towards = f", classifier {by.digest[:12]}{towards}" if by else towards
    kept = " at noise from {:g} to {:g}".format(*o.interval) if o.interval else ""
    return f"label {label}{towards}{kept}"


def one_subject(o: Namespace) -> None:
    """Raise ValueError if there is a law in o beside a model or data, or data without a model."""
    for name, what in (("model", "a model"), ("data", "data")):
        if o.law and getattr(o, name, None):
            raise ValueError(f"law must not be given beside {what}, got {o.law!r}")
    if getattr(o, "data", None) and not o.model:
        raise ValueError(f"data must not be given without a model, got {o.data!r}")


def data_of(o: Namespace, found: Checkpoint) -> tuple[Source, Dataset]:
    """The data in o.data, or else those that the checkpoint was trained on, if they come with the library: a checkpoint
    does not choose which files are read. Raises ValueError if they are not what the model is of.
    """
    source = read_data(o.data) if o.data else found.source
    if source is None or not (o.data or source.bundled):
        said = "does not say what it was trained on" if source is None else f"says it was trained on {source!r}"
        raise ValueError(
            f"data must be given, --data FILE or FOLDER: the checkpoint {said}, and does not choose what is read"
        )
    data = source.load()
    if data.shape != found.shape:
        raise ValueError(f"data must have the model's shape {found.shape}, got {data.shape}")
    if data.quantized != found.quantized:
        raise ValueError(f"data must lie on the model's grid, {found.quantized}, got {data.quantized}")
    if data.columns and (trained := tuple(found.notes.get("columns", data.columns))) != data.columns:
        raise ValueError(f"data must have the columns of the model, {trained}, in their order, got {data.columns}")
    if source != found.source and (place := _file_of(source)) and place == _file_of(found.source):
        warnings.warn(
            f"the model was trained on {found.source!r}: what {source!r} holds out may be among that", stacklevel=2
        )
    return source, data.in_units(found.units)


def _file_of(source: Source | None) -> Path | None:
    """The file or folder that a source reads."""
    place = getattr(source, "path", None) or getattr(source, "folder", None)
    return place and Path(place).resolve()


def code_of(o: Namespace) -> dict[str, str]:
    """The sha256 of each module of one's own that was named in o, by its name: other code gives other results."""
    said = [
        getattr(o, name, None) or []
        for name in ("step", "sde", "net", "law", "method", "trace", "grid", "features", "model")
    ]
    texts = [text for value in said for text in (value if isinstance(value, list) else [value])]
    named = {own_module(str(text)) for text in texts if not (isinstance(text, Path) and text.exists())} - {""}
    files = {name: importlib.import_module(name).__file__ for name in named}
    return {name: digest(Path(file).read_bytes()) for name, file in sorted(files.items()) if file}


def measured(folder: Folder, name: str, subject: Callable[[], Subject]) -> list[Row]:
    """Each measure of each set of real samples of a subject, kept under its name. It is made if some are missing."""
    rows = folder.rows("real.jsonl", "subject", "set")

    def found() -> list[Row]:
        return [row for row in rows.values() if row["subject"] == name]

    if not (known := found()) or len(known) < known[0]["sets"]:
        made = subject()
        for k, x in enumerate(made.fresh):
            if (name, k) not in rows:
                rows.add({"subject": name, "set": k, "sets": len(made.fresh), **made.measured(x)})
    return [{k: v for k, v in row.items() if k not in ("subject", "set", "sets")} for row in found()]


def join_processes() -> int:
    """Join the group that `torchrun` started, if it did, and return this process's rank."""
    if "WORLD_SIZE" not in os.environ:
        return 0
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=7))  # some samples take far longer than others
    return dist.get_rank()


def leave_processes() -> None:
    """Wait for the others, and leave the group in good order: a process that ends inside of it may be aborted."""
    if dist.is_initialized():
        wait()
        dist.destroy_process_group()


def processes() -> int:
    """How many share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def agreed(value: Any) -> Any:
    """What the first process says, for all of them."""
    said = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(said, device=torch.device("cpu"))
    return said[0]


def shared_out(tasks: list[Callable[[], Any]]) -> list[Any]:
    """What each task makes, in their order; every process does some of them, and all have all of it."""
    rank, others = (dist.get_rank() if dist.is_initialized() else 0), processes()
    own = {k: tasks[k]() for k in range(rank, len(tasks), others)}
    every: list[dict[int, Any]] = [own] * others
    if others > 1:
        dist.all_gather_object(every, own)
    made = {k: task for some in every for k, task in some.items()}
    return [made[k] for k in range(len(tasks))]


def total(value: int) -> int:
    """The sum over all processes, which wait for one another here."""
    every = torch.tensor(value)
    if dist.is_initialized():
        dist.all_reduce(every)
    return int(every)


def wait() -> None:
    """Until all processes are here."""
    total(0)


def as_bytes(a: np.ndarray) -> bytes:
    """The content of a .npy file."""
    file = io.BytesIO()
    np.save(file, a, allow_pickle=False)
    return file.getvalue()


def as_array(content: bytes) -> np.ndarray:
    """The array of a .npy file's content."""
    found: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return found


def fitting(n: int, shape: tuple[int, ...]) -> int:
    """n samples of that shape. Raises ValueError where they would take more than 64 GiB."""
    size = count("n", n) * 8 * int(np.prod([float(k) for k in shape]))
    if size > 64 << 30:
        raise ValueError(f"n must be so that samples fit into memory: {n} of shape {shape} take {size / 2**30:.3g} GiB")
    return n
