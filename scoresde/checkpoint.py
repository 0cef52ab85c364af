"""Checkpoints: a folder with a JSON manifest that says how to make the model, and its numbers as safetensors.

Nothing that is read can run code: a class is named, and looked up among the subclasses, already imported, of the base
class that belongs in its place; a network of your own is found so if it derives from `nn.Network`, or is handed to
`load`. A file is written beside its place and then moved into it, and the manifest, which names the others and their
sha256, comes last: at every moment the folder holds one complete checkpoint. The manifest holds its own sha256 too, so
that no changed entry is taken for what was written. Nothing but what a checkpoint has written itself is removed.
"""

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from typing_extensions import TypeVar

from . import __name__ as package
from .data import Source, class_names
from .files import digest, write
from .model import ClassModel, NoisyModel, ScoreModel
from .nn import Network
from .quantize import Quantized
from .reference import Reference
from .units import Units
from .values import SEAL, build, describe, identity, sealed, subclass, unsealed

MANIFEST, JOURNAL, VERSION = "manifest.json", ".saving.json", 5
OURS = re.compile(r"(weights|state)-[0-9a-f]{12}\.safetensors")
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)

M = TypeVar("M", bound=NoisyModel, default=ScoreModel)


@dataclass(frozen=True)
class Checkpoint(Generic[M]):
    """A model, with what it models: the shape of a sample, the grid that data lie on (None if continuous), the source
    of the data (None if it was no `Source`; a record, which nothing reads the data of) and the Gaussian around them;
    notes, JSON of your own; the names of labels 0, 1, ..., if they have any; the units of continuous data, None if the
    model is of the numbers as they came; and, once loaded, a sha256 of all that the model is, which tells it from any
    other.
    """

    model: M
    shape: tuple[int, ...]
    quantized: Quantized | None = None
    source: Source | None = None
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    around: Reference | None = None
    names: tuple[str, ...] = ()
    units: Units | None = None
    digest: str = ""


def save(folder: str | Path, checkpoint: Checkpoint[M], state: dict[str, Tensor] | None = None) -> None:
    """Write the checkpoint into folder, made if need be; `state` holds further tensors, as an optimiser's.

    `checkpoint.notes` is JSON of your own; it comes back from `load`. Replaces a checkpoint that is there. A network
    that was compiled, or wrapped to run on several devices, is saved as the one inside. Raises ValueError, before
    anything is written, for what could not be loaded again.
    """
    folder = Path(folder)
    manifest = {**_manifest_of(checkpoint), "notes": checkpoint.notes}
    sealed(manifest)  # what cannot be written must fail before anything is
    contents, listed = {}, {}
    for name, tensors in {"weights": tensors_of(checkpoint.model), **({"state": state} if state else {})}.items():
        content, said = _content(tensors)
        listed[name] = {"file": f"{name}-{said[:12]}.safetensors", SEAL: said}
        contents[listed[name]["file"]] = content
    before = _written(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / JOURNAL, sealed({"files": [*contents, *before]}))
    for file, content in contents.items():
        write(folder / file, content)
    write(folder / MANIFEST, sealed({**manifest, "files": listed}))
    for old in before:
        if old not in contents:
            (folder / old).unlink(missing_ok=True)
        for part in folder.glob(f".{old}.*.part"):  # of a process that was killed
            part.unlink(missing_ok=True)
    (folder / JOURNAL).unlink()


def _written(folder: Path) -> list[str]:
    """What a checkpoint that is there, and one that was broken off, have written. Raises ValueError where a manifest
    is no checkpoint's: it is not replaced.
    """
    found: list[Any] = []
    if exists(folder):
        found += [entry["file"] for entry in _manifest(folder)["files"].values()]
    if (folder / JOURNAL).is_file():
        found += unsealed((folder / JOURNAL).read_bytes(), folder / JOURNAL)["files"]
    return [name for name in dict.fromkeys(found) if OURS.fullmatch(str(name))]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, under the names that it has without compilation and wrappers. Raises ValueError, naming
    the entry, for what safetensors do not hold.
    """
    found = {plain_name(module, k): v for k, v in module.state_dict().items()}
    for k, v in found.items():
        if not isinstance(v, Tensor) or v.layout is not torch.strided or v.is_quantized or v.is_meta:
            what = f"a {v.layout} tensor of {v.dtype}" if isinstance(v, Tensor) else type(v).__name__
            raise ValueError(f"net must have plain tensors as state to be saved, and its {k!r} is {what}")
        try:
            safetensors.torch.save({k: torch.empty(0, dtype=v.dtype)})
        except (KeyError, ValueError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"net must have numbers of a usual type to be saved, and its {k!r} is {v.dtype}"
            ) from error
    return found


def fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a module the state that `tensors_of` told, in the types that it has there. Raises ValueError, naming the
    entry, where one lacks, is too many, has another shape or kind of number, or is not finite.
    """
    own = module.state_dict(keep_vars=True)
    names = {plain_name(module, k): k for k in own}
    if wrong := sorted(names.keys() ^ tensors.keys()):
        raise ValueError(f"net must have the state that was saved: {wrong[0]!r} is {_where(wrong[0], tensors)}")
    for name, v in tensors.items():
        here = own[names[name]]
        if here.shape != v.shape or not same_kind(here.dtype, v.dtype):
            raise ValueError(f"{name!r} must be {here.dtype} of {tuple(here.shape)}, got {v.dtype} of {tuple(v.shape)}")
        if (v.is_floating_point() or v.is_complex()) and not v.isfinite().all():
            raise ValueError(f"{name!r} must hold finite numbers, got nan or inf")
    for name, v in tensors.items():
        own[names[name]].data = own[names[name]].data.to(v.dtype)
    module.load_state_dict({names[k]: v for k, v in tensors.items()})


def _where(name: str, tensors: dict[str, Tensor]) -> str:
    return "not in the network" if name in tensors else "not in the file"


def same_kind(a: torch.dtype, b: torch.dtype) -> bool:
    """Whether two types of numbers are one, or both of them real, or both complex: precision may differ, no more."""
    return a == b or (a.is_floating_point, a.is_complex) == (b.is_floating_point, b.is_complex) != (False, False)


def plain_name(module: nn.Module, key: str) -> str:
    """The name of an entry of a module's state without what compilation and wrappers put into it."""
    for name, inner in module.named_modules():
        if isinstance(inner, WRAPPERS):
            key = re.sub(f"^{re.escape(f'{name}.' if name else '')}module[.]", f"{name}." if name else "", key)
    return key.replace("_orig_mod.", "")


def unwrapped(net: nn.Module) -> nn.Module:
    """The network that compilation and wrappers were put around."""
    while isinstance(net, WRAPPERS) or hasattr(net, "_orig_mod"):
        net = net.module if isinstance(net, WRAPPERS) else net._orig_mod  # type: ignore[assignment]
    return net


def classes_of(model: NoisyModel) -> int:
    """How many classes its network tells apart or is told, 0 if none."""
    classes: int = getattr(model if isinstance(model, ClassModel) else unwrapped(model.net), "classes", 0)
    return classes


def _manifest_of(checkpoint: Checkpoint[M]) -> dict[str, Any]:
    model, net = checkpoint.model, unwrapped(checkpoint.model.net)
    described = {name: describe(getattr(model, name)) for name in model.parts}
    for name, base in model.parts.items():
        subclass(base, described[name]["class"])  # raises if `load` could not tell which class it is
    return {
        "format": f"{package}-checkpoint",
        "version": VERSION,
        "model": type(model).__name__,
        "net": {"class": type(net).__name__, "config": net.config if isinstance(net, Network) else None},
        "shape": list(checkpoint.shape),
        "quantized": describe(checkpoint.quantized),
        "source": describe(checkpoint.source),
        "names": list(class_names(checkpoint.names)),
        "units": describe(checkpoint.units),
        "around": None if model.around else describe(checkpoint.around),
        **described,
    }


def require_savable(checkpoint: Checkpoint[M], folder: str | Path) -> None:
    """Raise ValueError if `save` would: before a long training rather than at its end."""
    sealed(_manifest_of(checkpoint))
    tensors_of(checkpoint.model)
    _written(Path(folder))


def exists(folder: str | Path) -> bool:
    """Whether there is a checkpoint in folder."""
    return (Path(folder) / MANIFEST).is_file()


def recorded_net(folder: str | Path) -> Any:
    """How the manifest in folder describes the network: its class and the arguments that it was made from."""
    return _manifest(Path(folder)).get("net")


def recorded_kind(folder: str | Path) -> Any:
    """The class of model that the manifest in folder says."""
    return _manifest(Path(folder)).get("model")


def recorded_shape(folder: str | Path) -> tuple[int, ...]:
    """The shape of one sample, as the manifest in folder says."""
    return _shape(_manifest(Path(folder)).get("shape"))


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"checkpoint must be a folder with a {MANIFEST}, got {str(folder)!r}")
    manifest = unsealed(path.read_bytes(), path)
    if manifest.get("format") != f"{package}-checkpoint":
        raise ValueError(f"{path} is not the manifest of a checkpoint")
    if manifest.get("version") != VERSION:
        raise ValueError(f"{path} has version {manifest.get('version')!r}, this program reads version {VERSION}")
    return manifest


def _tensors(folder: Path, listed: Any, name: str) -> dict[str, Tensor]:
    try:
        file, said = str(listed[name]["file"]), listed[name][SEAL]
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
    if digest(content) != said:
        raise ValueError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}")
    return tensors


def load(
    folder: str | Path,
    net: nn.Module | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Checkpoint:
    """The checkpoint of a score model in folder, its model in evaluation mode on `device`.

    net: the network to fill, if the manifest cannot make it (see the module). dtype: what it computes in, such as
    float32 for weights of half precision on a CPU; what it was saved in unless given.

    Raises ValueError, naming the file, if anything is missing, damaged, or does not fit together, and for the
    checkpoint of another kind of model: see `load_as`.
    """
    return load_as(ScoreModel, folder, net, device, dtype)


def load_as(
    kind: type[M],
    folder: str | Path,
    net: nn.Module | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Checkpoint[M]:
    """`load` of another kind of model, such as load_as(ClassModel, folder)."""
    folder = Path(folder)
    manifest = _manifest(folder)
    tensors = _tensors(folder, manifest.get("files"), "weights")
    try:
        found: type[M] = subclass(NoisyModel, manifest["model"])
        if not issubclass(found, kind):
            it, asked = (k.__name__ if found.kind == kind.kind else k.kind for k in (found, kind))
            raise ValueError(f"it is {it}, where {asked} is asked for")
        made = net if net is not None else _network(manifest["net"], sum(v.numel() for v in tensors.values()))
        model = found(made, **{name: build(base, manifest[name]) for name, base in found.parts.items()})
        fill(model, tensors)
        quantized, source, around, units = (
            build(base, manifest[key]) if manifest[key] else None
            for base, key in ((Quantized, "quantized"), (Source, "source"), (Reference, "around"), (Units, "units"))
        )
        shape, notes, names = _shape(manifest["shape"]), manifest["notes"], class_names(manifest["names"])
    except KeyError as error:
        raise ValueError(f"{folder / MANIFEST} lacks {error}") from error
    except (ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{folder / MANIFEST} does not give a model: {error}") from error
    model = model.to(device, dtype).eval().requires_grad_(False)
    return Checkpoint(model, shape, quantized, source, notes, model.around or around, names, units, _digest(manifest))


def identified(checkpoint: Checkpoint[M]) -> Checkpoint[M]:
    """The same, with the digest that it has once saved and loaded. Raises ValueError for what cannot be saved."""
    manifest, (_, said) = _manifest_of(checkpoint), _content(tensors_of(checkpoint.model))
    return dataclasses.replace(checkpoint, digest=_digest({**manifest, "files": {"weights": {SEAL: said}}}))


def _content(tensors: dict[str, Tensor]) -> tuple[bytes, str]:
    """The bytes of a file of them, and their digest."""
    copies = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    content = safetensors.torch.save(copies)
    return content, digest(content)


def _digest(manifest: dict[str, Any]) -> str:
    """Of the model, whatever is noted or kept beside it."""
    said = {k: v for k, v in manifest.items() if k not in ("notes", "files", "source", "names")}
    return identity({**said, "weights": manifest["files"]["weights"][SEAL]})


def load_state(folder: str | Path) -> dict[str, Tensor]:
    """The further tensors that were saved beside the model."""
    folder = Path(folder)
    return _tensors(folder, _manifest(folder).get("files"), "state")


def _shape(said: Any) -> tuple[int, ...]:
    if not isinstance(said, list) or not said or not all(type(n) is int and n > 0 for n in said):
        raise ValueError(f"shape must be that of a sample, got {said!r}")
    return tuple(said)


def _network(described: dict[str, Any], numbers: int) -> nn.Module:
    """The network that is described; one of the package has no more numbers than there are in the file, which is known
    before memory is taken for them.
    """
    config = described["config"]
    if not isinstance(config, dict):
        raise ValueError(f"its network {described['class']!r} has no recorded arguments: give `net` to load")
    make = subclass(Network, described["class"])
    if make.__module__.startswith(f"{package}."):
        with _at_most(numbers), torch.device("meta"):
            make(**config)
    return make(**config)


@contextmanager
def _at_most(numbers: int) -> Iterator[None]:
    """Inside, modules with parameters of more than so many numbers raise ValueError while they are made."""
    total = 0

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        total += parameter.numel() if parameter is not None else 0
        if total > 2 * numbers:  # a module may replace what it has registered
            raise ValueError(f"its network would have more numbers than the {numbers} of the file of its weights")

    hook = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        hook.remove()
