"""Networks that diffusers saved.

Of a folder only JSON and safetensors are read, and only its networks and its scheduler: no code of a pipeline runs.
"""

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model import (
    Clock,
    Data,
    Epsilon,
    FlowVelocity,
    Karras,
    LogSNR,
    NoiseLevel,
    Parametrisation,
    ScoreModel,
    ScoreValue,
    StepIndex,
    Time,
    Velocity,
)
from ..process import EDM, VE, LinearSDE, RectifiedFlow, Tabulated
from ..reference import Reference
from .networks import Adapted, Seen, adapted

NETWORKS = ("unet", "transformer")
"""The folders of a pipeline that a network lies in."""
PREDICTS = {"epsilon": Epsilon(), "sample": Data(), "v_prediction": Velocity()}


class Reading(NamedTuple):
    """How the answers of a network are to be read, and whether it returns a variance beside them."""

    sde: LinearSDE
    predicts: Parametrisation
    clock: Clock
    variance: bool = False


def from_diffusers(source: Any, scheduler: Any = None, *, data: Seen | None = None) -> ScoreModel:
    """The score of a network of diffusers.

    source: the folder of a pipeline, or of a network, that `save_pretrained` wrote; a pipeline; or a network, a
    `UNet2DModel`, a `DiTTransformer2DModel` or another that is called as model(sample, timestep, class_labels=...). A
    network by itself needs its scheduler too, or the folder of one. What the scheduler says of betas or noise levels,
    of the prediction and of a learned variance is taken over; how it would sample is not, so that clipping
    (`clip_sample`) is `clamped`. data: as in `from_betas`.

    label=, class_labels there, is what classes are told by; other conditions go by the names that the network has.
    Raises ValueError, naming it, for what is not understood or cannot be honoured: dynamic thresholding, an unknown
    prediction, betas that end in no signal at all, a learned variance without channels for it, weights that are not
    safetensors; and, with data, as `from_betas`. ImportError if diffusers is not installed.
    """
    net, plan = parts_of(source, scheduler)
    reading = reading_of(plan, net.config)
    classes = net.config.get("num_class_embeds") or 0
    none = None
    if type(net).__name__ == "DiTTransformer2DModel":
        classes = none = net.config["num_embeds_ada_norm"]  # one row more stands for no label
    whole = isinstance(reading.clock, StepIndex) and reading.clock.whole
    own = Adapted(net, "class_labels", classes, none, whole)
    return adapted(own, reading.sde, reading.predicts, reading.clock, reading.variance, data)


def parts_of(source: Any, scheduler: Any) -> tuple[Any, Any]:
    """The network and the scheduler."""
    if isinstance(source, (str, Path)):
        folder = Path(source)
        inside = [folder / name for name in NETWORKS if (folder / name / "config.json").is_file()]
        found = _loaded(inside[0] if inside else folder, "config.json")
        if scheduler is None and (folder / "scheduler").is_dir():
            scheduler = folder / "scheduler"
    else:
        found = next((part for name in NETWORKS if (part := getattr(source, name, None)) is not None), source)
        scheduler = scheduler if scheduler is not None else getattr(source, "scheduler", None)
    if isinstance(scheduler, (str, Path)):
        scheduler = _loaded(Path(scheduler), "scheduler_config.json")
    for name, part in (("source", found), ("scheduler", scheduler)):
        if not hasattr(part, "config"):
            raise ValueError(f"{name} must be one of diffusers, or the folder that it was saved in, got {part!r}")
    return found, scheduler


def _loaded(folder: Path, name: str) -> Any:
    """What diffusers saved in a folder, by its own class."""
    file = folder / name
    if not file.is_file():
        raise ValueError(f"source must be a folder that save_pretrained wrote, and there is no {file}")
    try:
        config = json.loads(file.read_text())
        said = config["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} must be a configuration of diffusers, but it cannot be read: {error!r}") from error
    library, network = importlib.import_module("diffusers"), name == "config.json"
    kind: Any = getattr(library, str(said), None)
    base = library.ModelMixin if network else library.SchedulerMixin
    if not inspect.isclass(kind) or not issubclass(kind, base):
        what = "network" if network else "scheduler"
        raise ValueError(f"{file} must name a {what} of diffusers {library.__version__}, got {said!r}")
    made: Any = kind
    if not network:
        return made.from_config(config)
    try:
        return made.from_pretrained(str(folder), use_safetensors=True, local_files_only=True)
    except OSError as error:
        raise ValueError(f"{folder} must hold weights as safetensors, which run no code: {error}") from error


def reading_of(scheduler: Any, net: Any) -> Reading:
    """By the scheduler's configuration, and the network's where it is told another clock. Raises ValueError for what is
    not understood.
    """
    config, kind = scheduler.config, type(scheduler).__name__
    for name, what in (
        ("thresholding", "dynamic thresholding, which is no score: set it to False"),
        ("rescale_betas_zero_snr", "betas that end in no signal at all, where noise has no score"),
        ("use_flow_sigmas", "noise levels that are not those of its betas"),
    ):
        if config.get(name):
            raise ValueError(f"{kind}.{name} cannot be honoured: {what}")
    for kinds, read in READ.items():
        if kind in kinds:
            return read(kind, config, net)
    if isinstance(getattr(scheduler, "betas", None), Tensor):
        return _of_betas(kind, config, net, scheduler)
    raise ValueError(f"scheduler must be one that has betas, or of {sorted(sum(READ, ()))}, got {kind}")


def _predicts(kind: str, config: Any, known: dict[str, Parametrisation]) -> Parametrisation:
    said = config.get("prediction_type", "epsilon")
    if said not in known:
        raise ValueError(f"{kind}.prediction_type must be one of {', '.join(known)}, got {said!r}")
    return known[said]


def _of_betas(kind: str, config: Any, net: Any, scheduler: Any) -> Reading:
    betas = scheduler.betas
    ins, outs = net.get("in_channels"), net.get("out_channels")
    learned = str(config.get("variance_type") or "").startswith("learned")
    if learned and outs != 2 * ins:
        raise ValueError(
            f"{kind}.variance_type is {config['variance_type']!r}, but the network has {outs} channels for {ins} of "
            "the sample, and not twice as many"
        )
    told = net.get("time_embedding_type")
    if told == "fourier":
        raise ValueError("time_embedding_type must not be 'fourier' beside betas: such a network is told sigma")
    clock = StepIndex(len(betas), whole=told == "learned")
    sde, kept = Tabulated(betas.to("cpu", torch.float64)), getattr(scheduler, "alphas_cumprod", None)
    if kept is not None and not torch.allclose(kept.to("cpu", torch.float64), sde.knots[1:].mul(2).exp(), rtol=1e-3):
        raise ValueError(f"{kind}.alphas_cumprod cannot be honoured: they are not the products of its betas")
    return Reading(sde, _predicts(kind, config, PREDICTS), clock, bool(ins and outs == 2 * ins))


def _of_sigmas(kind: str, config: Any, net: Any) -> Reading:
    known: dict[str, Parametrisation] = {"epsilon": Karras(Reference(std=float(config["sigma_data"])))}
    sde = EDM(T=float(config["sigma_max"]), t_min=float(config["sigma_min"]))
    return Reading(sde, _predicts(kind, config, known), LogSNR(-0.25))


def _of_ve(kind: str, config: Any, net: Any) -> Reading:
    return Reading(VE(float(config["sigma_min"]), float(config["sigma_max"])), ScoreValue(), NoiseLevel())


def _of_flow(kind: str, config: Any, net: Any) -> Reading:
    return Reading(RectifiedFlow(), FlowVelocity(), Time(float(config["num_train_timesteps"])))


READ: dict[tuple[str, ...], Callable[[str, Any, Any], Reading]] = {
    ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"): _of_sigmas,
    ("ScoreSdeVeScheduler",): _of_ve,
    ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"): _of_flow,
}
"""Schedulers without betas."""
