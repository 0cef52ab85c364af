"""Checkpoints: a folder with a JSON manifest that says how to make the model, and its numbers as safetensors.

Nothing that is read can run code: a class is named, and looked up among the subclasses, already imported, of the base
class that belongs in its place; a network of your own is found so if it derives from `nn.Network`, or is handed to
`load`. A file is written beside its place and then moved into it, and the manifest, which names the others and their
sha256, comes last: at every moment the folder holds one complete checkpoint.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from . import __name__ as package
from .data import Source
from .model import Clock, Parametrisation, ScoreModel
from .nn import Network
from .process import LinearSDE
from .quantize import Quantized
from .values import build, describe, subclass, write

MANIFEST, VERSION = "manifest.json", 2


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
        subclass(base, described[name]["class"])  # raises if `load` could not tell which class it is
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


def recorded_shape(folder: str | Path) -> tuple[int, ...]:
    """The shape of one sample, as the manifest in folder says."""
    shape = _manifest(Path(folder)).get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) for n in shape):
        raise ValueError(f"{Path(folder) / MANIFEST} does not say the shape of a sample, got {shape!r}")
    return tuple(shape)


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
        kind = subclass(ScoreModel, manifest["model"])
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
    return subclass(Network, described["class"])(**config)
