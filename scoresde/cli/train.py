"""`scoresde train`."""

import warnings
from argparse import Namespace
from dataclasses import fields, replace
from functools import partial

import torch

from .. import grid
from ..checkpoint import exists, load
from ..data import Dataset, Source
from ..loss import MaximumLikelihood, Times, Unbiased, UniformTime, Weight
from ..model import ClassModel, Karras, LogSNR, NoisyModel, ScoreModel
from ..noise import seeded
from ..process import LinearSDE
from ..shapes import count, number
from ..steps import GaussianReference, draw
from ..training import RECIPES, Recipe, Settings, train, usual_settings
from ..training.loop import rehearse
from .common import join_processes, picture, place, visible
from .parts import own_module, read, read_data, read_net
from .plan import duration, tell, weighs

SEEN, CALLS, VIEWS = 64, 12, 8
"""Samples of a picture on the way, network calls of each, and how many pictures there are."""
OF_SCORES = ("recipe", "init", "conditional", "weight", "label_dropout", "views")
"""Options that mean nothing for a classifier."""


def run(o: Namespace) -> None:
    """Train."""
    rank, device, source = join_processes(), place(o), read_data(o.data)
    if o.recipe is not None and o.recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {o.recipe!r}")
    recipe = RECIPES[o.recipe] if o.recipe else None
    sde, start, data = read("sde", o.sde, LinearSDE), recipe.settings if recipe else Settings(), source.load()
    _settings(o, start)  # which are refused before a network is made
    if o.conditional and not data.classes:
        raise ValueError("conditional training needs data with labels")
    number("save_every", o.save_every, least=0)
    model: NoisyModel = _classifier(o, sde, data) if o.classifier else _model(o, recipe, sde, data)
    model = model if o.shard else model.to(device)
    settings = _settings(o, start if recipe else usual_settings(model.net, data, o.classifier))
    if device.type == "cuda" and len(data.shape) == 3 and not o.shard:  # as its convolutions are fastest
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if o.compile:
        model.net = torch.compile(model.net)  # type: ignore[assignment]
    count("views", VIEWS if o.views is None else o.views, least=0)
    if o.dry_run:
        return _plan(o, model, data, settings, source, device, rank == 0)
    how = {
        "resume": exists(o.out),
        "save_every": o.save_every,
        "views": VIEWS if o.views is None else o.views,
        "sharded": device if o.shard else False,
    }
    view = partial(_view, o, data, rank == 0) if (rank == 0 or o.shard) and not o.classifier else None
    train(model, data, settings, folder=o.out, source=source, on_view=view, **how)
    if rank == 0:
        print(f"trained {settings.steps} steps; the checkpoint is in {o.out}")


def _plan(
    o: Namespace,
    model: NoisyModel,
    data: Dataset,
    settings: Settings,
    source: Source,
    device: torch.device,
    here: bool,
) -> None:
    """Say what would be trained, and how long that would take, by two steps in memory."""
    if o.out.exists() and not o.out.is_dir():
        raise ValueError(f"out must be a folder, and {o.out} is a file")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    how = {"folder": o.out, "source": source, "resume": exists(o.out), "sharded": device if o.shard else False}
    said, start, each = rehearse(model, data, settings, **how)
    left = max(0, settings.steps - start)
    if here:
        tell(
            said,
            f"on {device}, into {o.out}" + (f", where {start} steps are done" if start else ""),
            f"{left} steps of {each:.2g} s, {duration(left * each)}",
            f"weights, gradients, Adam's moments and averages take {weighs((5 + 2 * bool(settings.snapshots)) * size)}",
        )


def _settings(o: Namespace, start: Settings) -> Settings:
    """Those at the start, changed by what is said."""
    times = read("times", o.times, Times) or start.times
    weight = read("weight", o.weight, Weight)
    if weight is None:
        weight = start.weight.weight if isinstance(start.weight, Unbiased) else start.weight
    if isinstance(weight, MaximumLikelihood) and not isinstance(times, UniformTime):
        weight = Unbiased(weight, times)  # the same objective, whatever the law of t
    told = {f.name: getattr(o, f.name, None) for f in fields(Settings)}
    told |= {"weight": weight, "times": times, "stratified": False if o.not_stratified else None}
    if o.warmup is None and start.warmup is not None and o.steps is not None:
        told["warmup"] = min(start.warmup, max(1, o.steps // 10))
    return replace(start, **{name: value for name, value in told.items() if value is not None})


def _model(o: Namespace, recipe: Recipe | None, sde: LinearSDE | None, data: Dataset) -> ScoreModel:
    """What is trained, with its first weights."""
    recipe = recipe and replace(recipe, sde=sde or recipe.sde, settings=replace(recipe.settings, seed=o.seed))
    if o.init is not None:
        if o.net is not None or o.conditional:
            raise ValueError("net and conditional must not be given beside init, whose network is trained")
        found = load(o.init, dtype=torch.float32)
        if found.shape != data.shape:
            raise ValueError(f"init must be of samples of shape {data.shape}, got one of {found.shape}: {o.init}")
        sde = sde or (recipe.sde if recipe else found.model.sde)
        return ScoreModel(found.model.net.requires_grad_(), sde, found.model.predicts, found.model.clock)
    if recipe and o.net is None:
        return recipe.model(data, o.conditional)
    sde = sde or (recipe.sde if recipe else read("sde", "vp", LinearSDE))
    with seeded(o.seed):
        net, clock = read_net(o.net, data.shape, data.classes * o.conditional), recipe.clock if recipe else LogSNR()
        return ScoreModel(net, sde, Karras(data.around), clock)


def _classifier(o: Namespace, sde: LinearSDE | None, data: Dataset) -> NoisyModel:
    """A classifier of noisy samples, with its first weights."""
    for name in OF_SCORES:
        if (said := getattr(o, name)) is not None and said is not False:
            raise ValueError(f"{name} must not be given beside classifier, for which it means nothing, got {said}")
    if data.classes < 2:
        raise ValueError(f"a classifier needs data with labels, of at least two classes, got {data.classes}")
    if o.net is not None and own_module(o.net):
        raise ValueError(f"net must be one that `sample` can make again, UNetEncoder or MLPEncoder, got {o.net!r}")
    with seeded(o.seed):
        net = read_net(o.net, data.shape, data.classes, classifier=True)
        return ClassModel(net, sde or read("sde", "vp", LinearSDE), data.around)


def _view(o: Namespace, data: Dataset, first: bool, step: int, model: ScoreModel) -> None:
    """A picture of samples at a step, always from the same noise, by the first process, whom others may help to draw;
    where there is none, training goes on.
    """
    try:
        _draw_view(o, data, first, step, model)
    except Exception as error:  # matplotlib that is not there, samples that are not finite, a disk that is full
        warnings.warn(f"no picture of step {step}: {error}", stacklevel=2)


def _draw_view(o: Namespace, data: Dataset, first: bool, step: int, model: ScoreModel) -> None:
    if not visible(data.shape):
        return
    own, around, classes = next(model.parameters()), data.around, getattr(model.net, "classes", 0)
    like = torch.empty(0, dtype=own.dtype, device=own.device)  # no part of a tensor in parts
    label = torch.arange(SEEN, device=like.device) % classes if classes else None
    score = model if label is None else lambda x, t: model(x, t, label=label)
    p, ts = model.sde.reverse(score, 0.0), grid.reference(model.sde, CALLS, around=around)
    x = draw(p, data.shape, ts, GaussianReference(around), seeds=range(SEEN), like=like).cpu()
    if first:
        picture(x if data.units is None else data.units.restore(x), data.units, o.out / f"samples-{step:07d}.png")
