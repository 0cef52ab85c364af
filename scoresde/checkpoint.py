"""Checkpoints: a folder with a JSON manifest that says how to make the model, and its numbers as safetensors.

Nothing that is read can run code: a class is named, and looked up among the subclasses, already imported, of the base
class that belongs in its place; a network of your own is found so if it derives from `nn.Network`, or is handed to
`load`. A file is written beside its place and then moved into it, and the manifest, which names the others and their
sha256, comes last: at every moment the folder holds one complete checkpoint.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from . import __name__ as package
from .data import Source
from .model import Clock, Parametrisation, ScoreModel
from .nn import Network
from .quantize import Quantized
from .sde import LinearSDE

MANIFEST, VERSION = "manifest.json", 1


def describe(value: Any) -> Any:
    """A value as JSON: a dataclass becomes {"class": its name, field: ...}, a tensor a list, a path a string.

    Raises ValueError for any other object: it could not be made again.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, (str, int, float, dict, type(None))):
        raise ValueError(f"{type(value).__name__} must be a dataclass to be saved, got {value!r}")
    return value


def _subclass(base: type, name: Any) -> type:
    found: list[type] = [base]
    known: dict[str, type] = {}
    while found:
        cls = found.pop()
        twin = known.setdefault(cls.__name__, cls)
        if cls.__name__ == name and (twin.__module__, twin.__qualname__) != (cls.__module__, cls.__qualname__):
            both = f"{twin.__module__}.{twin.__qualname__} and {cls.__module__}.{cls.__qualname__}"
            raise ValueError(f"class must tell one {base.__name__}, but {name!r} is both {both}: rename one of them")
        known[cls.__name__] = cls
        found += cls.__subclasses__()
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"class must be a known {base.__name__} ({', '.join(sorted(known))}), got {name!r}: import the module that "
            "defines it first"
        )
    return known[name]


def build(base: type, described: Any) -> Any:
    """The value that `describe` told of, a `base` or one of its subclasses. Raises ValueError if it is none."""
    if not isinstance(described, dict) or "class" not in described:
        raise ValueError(f"a {base.__name__} must be described by an object with a class, got {described!r}")
    cls = _subclass(base, described["class"])
    if not dataclasses.is_dataclass(cls):
        raise ValueError(f"{cls.__name__} is no dataclass, so its fields cannot be read back")
    hints, values = get_type_hints(cls), {k: v for k, v in described.items() if k != "class"}
    unknown = set(values) - {f.name for f in dataclasses.fields(cls) if f.init}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {min(unknown)!r}")
    return cls(**{name: _field(hints[name], v) for name, v in values.items()})


def _field(hint: Any, v: Any) -> Any:
    kinds = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
    if Tensor in kinds and (isinstance(v, list) or hint is Tensor):
        return torch.tensor(v, dtype=torch.float64)
    base = next((kind for kind in kinds if isinstance(kind, type) and kind not in (dict, type(None))), None)
    if isinstance(v, dict) and base:
        return build(base, v)
    return Path(v) if hint is Path else _tuples(v)


def _tuples(v: Any) -> Any:
    return tuple(map(_tuples, v)) if isinstance(v, list) else v


@dataclass(frozen=True)
class Checkpoint:
    """A model, with what it models: the shape of a sample, the grid that data lie on (None if continuous) and the
    source of the data (None if it was no `Source`); notes, JSON of your own; and, once loaded, the sha256 of
    the weights.
    """

    model: ScoreModel
    shape: tuple[int, ...]
    quantized: Quantized | None = None
    source: Source | None = None
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    digest: str = ""


def write(path: Path, content: bytes) -> None:
    """Write a file so that the path never holds a part of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save(folder: str | Path, checkpoint: Checkpoint, state: dict[str, Tensor] | None = None) -> None:
    """Write the checkpoint into folder, made if need be; `state` holds further tensors, as an optimiser's.

    `checkpoint.notes` is JSON of your own; it comes back from `load`. Replaces a checkpoint that is there.
    """
    folder, model = Path(folder), checkpoint.model
    manifest = {**_manifest_of(checkpoint), "notes": checkpoint.notes}
    json.dumps(manifest)  # what cannot be written must fail before anything is
    folder.mkdir(parents=True, exist_ok=True)
    files = {"weights": model.state_dict(), **({"state": state} if state else {})}
    listed = {}
    for name, tensors in files.items():
        copies = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        content = safetensors.torch.save(copies)  # which refuses tensors that share memory, as tied weights do
        digest = hashlib.sha256(content).hexdigest()
        listed[name] = {"file": f"{name}-{digest[:12]}.safetensors", "sha256": digest}
        write(folder / listed[name]["file"], content)
    write(folder / MANIFEST, json.dumps({**manifest, "files": listed}, indent=2).encode())
    keep = {entry["file"] for entry in listed.values()}
    for pattern in ("weights-*.safetensors", "state-*.safetensors", ".*.part"):  # a part: of a process that was killed
        for old in folder.glob(pattern):
            if old.name not in keep:
                old.unlink(missing_ok=True)


def _manifest_of(checkpoint: Checkpoint) -> dict[str, Any]:
    model, net = checkpoint.model, checkpoint.model.net
    described = {"sde": describe(model.sde), "predicts": describe(model.predicts), "clock": describe(model.clock)}
    for base, name in ((LinearSDE, "sde"), (Parametrisation, "predicts"), (Clock, "clock")):
        _subclass(base, described[name]["class"])  # raises if `load` could not tell which class it is
    return {
        "format": f"{package}-checkpoint",
        "version": VERSION,
        "model": type(model).__name__,
        "net": {"class": type(net).__name__, "config": net.config if isinstance(net, Network) else None},
        **described,
        "shape": list(checkpoint.shape),
        "quantized": describe(checkpoint.quantized),
        "source": describe(checkpoint.source),
    }


def require_savable(checkpoint: Checkpoint) -> None:
    """Raise ValueError if `save` would: before a long training rather than at its end."""
    json.dumps(_manifest_of(checkpoint))


def exists(folder: str | Path) -> bool:
    """Whether there is a checkpoint in folder."""
    return (Path(folder) / MANIFEST).is_file()


def recorded_net(folder: str | Path) -> Any:
    """How the manifest in folder describes the network: its class and the arguments that it was made from."""
    return _manifest(Path(folder)).get("net")


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"checkpoint must be a folder with a {MANIFEST}, got {str(folder)!r}")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != f"{package}-checkpoint":
        raise ValueError(f"{path} is not the manifest of a checkpoint")
    if manifest.get("version") != VERSION:
        raise ValueError(f"{path} has version {manifest.get('version')!r}, this program reads version {VERSION}")
    return manifest


def _tensors(folder: Path, listed: Any, name: str) -> dict[str, Tensor]:
    try:
        file, digest = str(listed[name]["file"]), listed[name]["sha256"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} names no {name} file") from error
    path = folder / Path(file).name
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or is no safetensors file ({error}); pickles are never read") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}")
    return tensors


def load(folder: str | Path, net: nn.Module | None = None, device: torch.device | str = "cpu") -> Checkpoint:
    """The checkpoint in folder, its model in evaluation mode on `device`.

    net: the network to fill, if the manifest cannot make it (see the module). Raises ValueError, naming the file, if
    anything is missing, damaged, or does not fit together.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    tensors = _tensors(folder, manifest.get("files"), "weights")
    try:
        made = net or _network(manifest["net"])
        sde, predicts = build(LinearSDE, manifest["sde"]), build(Parametrisation, manifest["predicts"])
        kind = _subclass(ScoreModel, manifest["model"])
        model = kind(made, sde, predicts, build(Clock, manifest["clock"]))
        model.load_state_dict(tensors)
        quantized, source = (
            build(base, manifest[key]) if manifest[key] else None
            for base, key in ((Quantized, "quantized"), (Source, "source"))
        )
        shape, notes = tuple(manifest["shape"]), manifest["notes"]
    except KeyError as error:
        raise ValueError(f"{folder / MANIFEST} lacks {error}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder / MANIFEST} does not give a model: {error}") from error
    model = model.to(device).eval().requires_grad_(False)
    return Checkpoint(model, shape, quantized, source, notes, manifest["files"]["weights"]["sha256"])


def load_state(folder: str | Path) -> dict[str, Tensor]:
    """The further tensors that were saved beside the model."""
    folder = Path(folder)
    return _tensors(folder, _manifest(folder).get("files"), "state")


def _network(described: dict[str, Any]) -> nn.Module:
    config = described["config"]
    if not isinstance(config, dict):
        raise ValueError(f"its network {described['class']!r} has no recorded arguments: give `net` to load")
    return _subclass(Network, described["class"])(**config)
