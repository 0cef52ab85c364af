"""`scoresde train`."""

from argparse import Namespace
from dataclasses import fields

from ..checkpoint import exists
from ..loss import MaximumLikelihood, Times, Unbiased, UniformTime, Weight
from ..model import Karras, ScoreModel
from ..noise import seeded
from ..process import LinearSDE
from ..shapes import number
from ..training import Settings, train
from .common import join_processes, place
from .parts import read, read_data, read_net


def run(o: Namespace) -> None:
    """Train."""
    rank, device, source = join_processes(), place(o), read_data(o.data)
    data, sde = source.load(), read("sde", o.sde, LinearSDE)
    times = read("times", o.times, Times) or Settings.times
    weight = read("weight", o.weight, Weight)
    if isinstance(weight, MaximumLikelihood) and not isinstance(times, UniformTime):
        weight = Unbiased(weight, times)  # the same objective, whatever the law of t
    told = {f.name: getattr(o, f.name, None) for f in fields(Settings)}
    told |= {"weight": weight, "times": times, "stratified": not o.not_stratified}
    settings = Settings(**{name: value for name, value in told.items() if value is not None})
    around = data.around
    if o.conditional and not data.classes:
        raise ValueError("conditional training needs data with labels")
    with seeded(o.seed):
        model = ScoreModel(read_net(o.net, data.shape, data.classes * o.conditional), sde, Karras(around)).to(device)
    number("save_every", o.save_every, least=0)
    train(model, data, settings, folder=o.out, source=source, resume=exists(o.out), save_every=o.save_every)
    if rank == 0:
        print(f"trained {settings.steps} steps; the checkpoint is in {o.out}")
