"""A checkpoint gives back what was saved, to the bit, or says what is wrong with it; and it never runs anything."""

import dataclasses
import gc
import hashlib
import inspect
import json
import math
import os
import pickle
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scoresde import (
    EDM,
    VE,
    VP,
    Cosine,
    Epsilon,
    Karras,
    LinearSDE,
    Quantized,
    RectifiedFlow,
    Reference,
    ScoreModel,
    SubVP,
    Tabulated,
    loss,
)
from scoresde import nn as networks
from scoresde.checkpoint import MANIFEST, Checkpoint, exists, load, load_state, require_savable, save
from scoresde.data import (
    Array,
    Checkerboard,
    Cifar10,
    Digits,
    Idx,
    Images,
    Mapped,
    Moons,
    Ring,
    Sounds,
    Source,
    SwissRoll,
    Table,
)
from scoresde.files import write
from scoresde.model import (
    Clock,
    Data,
    EnergyModel,
    FlowVelocity,
    LogSNR,
    NoiseLevel,
    Parametrisation,
    ScoreValue,
    StepIndex,
    Steps,
    Time,
    TwoHeads,
    Velocity,
)
from scoresde.process import TabulatedVE
from scoresde.values import SEAL, build, describe, identity, sealed, unsealed

# describe and build


def number(low, high):
    return st.floats(low, high, allow_nan=False)


SDES = st.one_of(
    st.builds(VP, number(0, 1), number(1, 40), number(1e-6, 0.5)),
    st.builds(SubVP, number(0, 1), number(1, 40), number(1e-6, 0.5)),
    st.builds(VE, number(1e-6, 1), number(2, 1e4)),
    st.builds(Cosine, number(1e-6, 1), number(0.01, 0.9999)),
    st.builds(RectifiedFlow, number(0.01, 0.9999)),
    st.builds(EDM, number(1, 1e4), number(1e-6, 0.5)),
    st.builds(Tabulated, st.lists(number(1e-6, 0.999), min_size=1, max_size=9).map(torch.tensor)),
    st.builds(TabulatedVE, st.lists(number(1e-6, 1e3), min_size=2, max_size=9, unique=True).map(sorted)),
)
MEANS = st.one_of(
    number(-9, 9), st.lists(number(-9, 9), min_size=1, max_size=4).map(lambda m: torch.tensor(m, dtype=torch.float64))
)
SIZES = st.lists(st.tuples(number(-9, 9), number(1e-6, 9)), max_size=4, unique_by=lambda pair: pair[0])
REFERENCES = st.builds(Reference, MEANS, number(1e-6, 1e6), SIZES.map(lambda pairs: tuple(sorted(pairs))))
PREDICTS = st.one_of(
    *(st.just(kind()) for kind in (Epsilon, Data, Velocity, ScoreValue)),
    st.builds(FlowVelocity, st.booleans()),
    st.builds(Karras, REFERENCES),
)
CLOCKS = st.one_of(
    st.builds(LogSNR, number(-9, 9)),
    st.builds(Steps, st.integers(1, 10**6), number(-9, 9)),
    st.builds(StepIndex, st.integers(1, 10**6), st.booleans()),
    st.builds(Time, number(-9, 9), number(-9, 9)),
    st.just(NoiseLevel()),
)
TIMES = st.one_of(
    st.just(loss.UniformTime()),
    st.just(loss.UniformLogSNR()),
    st.builds(loss.LogNormal, number(-9, 9), number(1e-3, 9)),
)
WEIGHTS = st.one_of(
    st.just(loss.Simple()),
    st.just(loss.MaximumLikelihood()),
    st.builds(loss.MinSNR, st.one_of(number(1e-6, 1e6), st.just(math.inf))),
    st.builds(loss.Output, PREDICTS),
)
WEIGHTS = st.one_of(WEIGHTS, st.builds(loss.Unbiased, WEIGHTS, TIMES))
TOY = (st.integers(5, 10**6), st.integers(0, 2**32 - 1))
PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map(Path)
WORDS = st.text(st.characters(categories=["L"]), min_size=1, max_size=5)
SOURCES = st.one_of(
    st.just(Digits()),
    st.builds(Ring, *TOY, st.integers(1, 20), number(1e-6, 9)),
    st.builds(Moons, *TOY, number(1e-6, 9)),
    st.builds(SwissRoll, *TOY, number(1e-6, 9)),
    st.builds(Checkerboard, *TOY),
    st.builds(Array, PATHS, st.text(), st.integers(2, 999), st.booleans(), number(0, 0.9), st.integers(0, 99)),
    st.builds(Images, PATHS, st.integers(0, 99), st.booleans(), number(0, 0.9), st.integers(0, 99)),
    st.builds(Sounds, PATHS, st.integers(1, 99), number(0, 0.9), st.integers(0, 99), st.booleans(), st.booleans()),
    st.builds(Table, PATHS, st.lists(WORDS, unique=True).map(tuple), st.just(""), number(0, 0.9), st.integers(0, 99)),
    st.builds(Idx, PATHS, st.lists(WORDS, unique=True).map(tuple), st.sampled_from(["", "letters"])),
    st.builds(Cifar10, PATHS),
    st.builds(
        Mapped, PATHS, st.none() | PATHS, st.none() | st.integers(2, 256), number(0, 0.9), st.booleans(), st.none()
    ),
)
BASES = {
    LinearSDE: SDES,
    Parametrisation: PREDICTS,
    Clock: CLOCKS,
    loss.Times: TIMES,
    loss.Weight: WEIGHTS,
    Source: SOURCES,
    Reference: st.one_of(REFERENCES, st.builds(Reference, MEANS, st.sampled_from([0.0, math.inf]))),
    Quantized: st.builds(Quantized, st.integers(2, 999), number(-9, -1), number(1, 9)),
}


def equal(a, b):
    """The same class and the same fields, to the bit; a table is compared by its numbers."""
    fields = [f.name for f in dataclasses.fields(a)]
    same = lambda u, v: torch.equal(u, v) if isinstance(u, torch.Tensor) else u == v  # noqa: E731
    return type(a) is type(b) and all(same(getattr(a, k), getattr(b, k)) for k in fields)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
@given(data=st.data())
def test_describe_and_build(base, data):
    """A value written as JSON text and read back is the value, for every subclass that belongs in the place."""
    value = data.draw(BASES[base])
    assert equal(build(base, json.loads(json.dumps(describe(value)))), value)


def test_fields_of_later_versions_may_be_absent():
    """They are what they were before there was such a field; another field of a class must be there."""
    assert build(LinearSDE, {"class": "SubVP", "beta_min": 0.2, "beta_max": 9.0}) == SubVP(0.2, 9.0, 1e-3)
    assert build(LinearSDE, {"class": "Cosine", "s": 0.1, "T": 0.5}) == Cosine(0.1, 0.5, 1e-3)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_every_class_is_drawn(base):
    """The strategies above miss no class of the package that a manifest may name."""
    found, known, drawn = [base], set(), set()
    while found:
        cls = found.pop()
        found += cls.__subclasses__()
        if cls.__module__.startswith("scoresde.") and not inspect.isabstract(cls):
            known.add(cls)
    settings(max_examples=200)(given(BASES[base])(lambda value: drawn.add(type(value))))()
    assert known and known == drawn


@pytest.mark.parametrize(
    ("base", "described", "said"),
    [
        (LinearSDE, {"class": "Popen", "args": "true"}, "class must be a known LinearSDE"),
        (LinearSDE, {"class": "Epsilon"}, "class must be a known LinearSDE"),
        (LinearSDE, {"class": "object"}, "class must be a known LinearSDE"),
        (LinearSDE, {"class": ["VP"]}, "class must be a known LinearSDE"),
        (LinearSDE, {"class": "LinearSDE"}, "LinearSDE is no dataclass"),
        (LinearSDE, {"class": "VP", "beta_min": 0.1, "beta_max": 20.0, "beta": 3.0}, "VP has no field 'beta'"),
        (LinearSDE, {"class": "Tabulated", "betas": [0.1], "knots": [0.0]}, "Tabulated has no field 'knots'"),
        (LinearSDE, {"class": "VP", "beta_min": "0.1", "beta_max": 20.0}, "beta_min must"),
        (LinearSDE, {"class": "VP", "beta_min": {"class": "VP"}, "beta_max": 1.0}, "beta_min must be a finite number"),
        (LinearSDE, {"class": "VP", "beta_min": 0.1}, "VP lacks the field 'beta_max'"),
        (LinearSDE, {"class": "EDM", "T": 80.0}, "EDM lacks the field 't_min'"),
        (LinearSDE, {"beta_min": 0.1}, "must be described by an object with a class"),
        (LinearSDE, ["VP"], "must be described by an object with a class"),
        (Clock, {"class": "VP"}, "class must be a known Clock"),
        (Source, {**describe(Array("a.npy")), "path": {"class": "Path"}}, "is no dataclass"),
    ],
)
def test_build_errors(base, described, said):
    """What is not a known subclass of the base class with its own fields is a ValueError that says so."""
    with pytest.raises(ValueError, match=said):
        build(base, described)


# save and load


class Own(nn.Module):
    """A user's network, of which a checkpoint knows the numbers only."""

    def __init__(self, width=5):
        super().__init__()
        self.enter, self.leave = nn.Linear(3, width), nn.Linear(width, 2)
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("low", torch.randn(3, dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x, c):
        return self.leave(self.norm(self.enter(torch.cat([x, c[:, None]], 1))).tanh()) + self.low.sum().to(x)


class Remembers(networks.Network):
    """A user's network that a checkpoint can make again, given that its class is imported."""

    def __init__(self, dims, width=5):
        super().__init__(dims=dims, width=width)
        self.net = nn.Sequential(nn.Linear(dims[0], width), nn.Tanh(), nn.Linear(width, dims[0]))

    def forward(self, x, c):
        return self.net(x) * c[:, None]


class Tied(nn.Module):
    """Two layers that are one."""

    def __init__(self):
        super().__init__()
        self.a = self.b = nn.Linear(2, 2)

    def forward(self, x, c):
        return self.b(self.a(x).tanh())


def filled(net):
    """Every number random, also those that start at 0."""
    with torch.no_grad():
        for v in net.state_dict().values():
            v.copy_(torch.randn(v.shape) if v.is_floating_point() else v + 1)
            v.abs_()  # running variances are positive
    return net


NETS = {
    "mlp": (lambda: networks.MLP((2,), 8, 2, classes=3), None, (2,)),
    "unet": (lambda: networks.UNet((1, 4, 4), 4, (1, 2), 1, 1), None, (1, 4, 4)),
    "ncsn++": (lambda: networks.NCSNpp((1, 4, 4), 4, (1, 2), 1, (2,)), None, (1, 4, 4)),
    "own": (Own, Own, (2,)),
    "remembers": (lambda: Remembers([2], width=7), None, (2,)),
    "tied": (Tied, Tied, (2,)),
}


@pytest.mark.parametrize("kind", NETS)
def test_save_and_load(tmp_path, kind):
    """The model that is loaded is the model that was saved: every number, dtype, output, and everything beside it."""
    make, again, shape = NETS[kind]
    around = Reference.fit(torch.randn(9, *shape) + 0.4)
    model = ScoreModel(filled(make()), VE(0.02, 30.0), Karras(around), LogSNR(-0.25)).eval()
    notes = {"step": 3, "own": [1.5, None, "x"]}
    saved = Checkpoint(model, shape, Quantized(17, -1.0, 1.0), Ring(seed=4), notes, names=("ash", "oak"))
    state = {"a.b": torch.randn(3, 2).T, "n": torch.tensor(5)}
    save(tmp_path, saved, state)
    torch.manual_seed(1)
    found = load(tmp_path, net=again() if again else None)
    assert found.model.state_dict().keys() == model.state_dict().keys()
    for k, v in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[k], v) and found.model.state_dict()[k].dtype == v.dtype
    x, t = torch.randn(3, *shape), torch.tensor([0.1, 0.5, 1.0])
    assert torch.equal(found.model(x, t), model(x, t))
    assert (found.model.sde, found.model.predicts, found.model.clock) == (model.sde, model.predicts, model.clock)
    assert found.model.around == around and found.model.around.mean.shape == shape
    assert (found.shape, found.quantized, found.source, found.notes) == (shape, saved.quantized, saved.source, notes)
    assert found.names == saved.names
    assert not found.model.training and not any(p.requires_grad for p in found.model.parameters())
    read = load_state(tmp_path)
    assert read.keys() == state.keys() and all(torch.equal(read[k], state[k]) for k in state)
    assert found.digest == load(tmp_path, net=again() if again else None).digest
    save(tmp_path, dataclasses.replace(saved, model=ScoreModel(model.net, VE(0.02, 31.0), Karras(around))), state)
    assert found.digest != load(tmp_path, net=again() if again else None).digest  # the same weights, another model


class Doubled(networks.Network):
    """A network that returns twice the channels of x."""

    def __init__(self, dims):
        super().__init__(dims=dims)
        self.net = nn.Sequential(nn.Linear(dims[0] + 1, 6), nn.Tanh(), nn.Linear(6, 2 * dims[0]))

    def forward(self, x, c):
        return self.net(torch.cat([x, c[:, None]], 1))


class OneNumber(networks.Network):
    """A network that returns one number a sample."""

    def __init__(self, dims):
        super().__init__(dims=dims)
        self.net = nn.Sequential(nn.Linear(dims[0] + 1, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x, c):
        return self.net(torch.cat([x, c[:, None]], 1))[:, 0]


@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.tensor([0.1, 0.5, 1.0])], ids=["()", "(B,)"])
@pytest.mark.parametrize("predicts", [Epsilon(), Karras(Reference(0.4, 0.7)), Velocity()], ids=repr)
def test_two_heads_and_energies_come_back(tmp_path, predicts, t):
    """A model of another class is loaded as that class, and all that it can be asked is the same to the bit: the score,
    with and without gradients, and its gradient by x; of two heads, both; of an energy, log_prob.
    """
    for kind, net, ask in ((TwoHeads, Doubled([2]), "both"), (EnergyModel, OneNumber([2]), "log_prob")):
        model = kind(filled(net), VE(0.02, 30.0), predicts, LogSNR(-0.25)).eval()
        plain = ScoreModel(model.net, model.sde, predicts, model.clock)
        save(tmp_path / kind.__name__, Checkpoint(model, (2,)))
        torch.manual_seed(1)
        found = load(tmp_path / kind.__name__).model
        assert type(found) is kind and type(found.net) is type(net)
        x = torch.randn(3, 2)
        with torch.no_grad():
            assert torch.equal(found(x, t), model(x, t))
        extra, want = getattr(found, ask)(x, t), getattr(model, ask)(x, t)
        for a, b in zip(extra, want) if kind is TwoHeads else [(extra, want)]:
            assert torch.equal(a, b)
        slopes = []
        for m in (found, model):
            y = x.clone().requires_grad_()
            slopes += torch.autograd.grad(m(y, t).square().sum(), y)
        assert torch.equal(*slopes) and slopes[0].any()
        with pytest.raises(ValueError, match="^net must return the shape of x"):
            plain(x, t)


def test_what_is_not_recorded_is_none(tmp_path):
    """Continuous data of no source, and no further state."""
    save(tmp_path, Checkpoint(ScoreModel(networks.MLP((2,), 4, 1), VP()), (2,)))
    found = load(tmp_path)
    assert found.quantized is None and found.source is None and found.notes == {}
    with pytest.raises(ValueError, match="names no state file"):
        load_state(tmp_path)


def test_own_network_must_be_given(tmp_path):
    """A network that is no `Network` is asked for, and one of another size does not fit: both name the manifest."""
    save(tmp_path, Checkpoint(ScoreModel(Own(), VP()), (2,)))
    with pytest.raises(ValueError, match=f"{MANIFEST} does not give a model: .*'Own'.*give `net`"):
        load(tmp_path)
    with pytest.raises(ValueError, match=f"{MANIFEST} does not give a model"):
        load(tmp_path, net=Own(width=6))


def test_saving_again_replaces(tmp_path):
    """After a second save the folder holds the second checkpoint, nothing of the first, nor what a kill left over."""
    assert not exists(tmp_path)
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = ScoreModel(filled(networks.MLP((2,), 4, 1)), VP())
        for old in tmp_path.glob("weights-*"):
            (tmp_path / f".{old.name}.{seed}.part").write_bytes(b"what a kill left over")
        save(tmp_path, Checkpoint(model, (2,)), {"seed": torch.tensor(seed)})
    assert exists(tmp_path)
    assert load_state(tmp_path)["seed"] == 2
    assert torch.equal(load(tmp_path).model.net.enter.weight, model.net.enter.weight)
    assert sorted(f.name.split("-")[0] for f in tmp_path.iterdir()) == [MANIFEST, "state", "weights"]


# damage


AROUND = Karras(Reference(torch.tensor([0.3, -0.2]), 0.7, ((-1.0, 0.5), (2.0, 0.3))))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small checkpoint; tests copy it before they damage it."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(3)
    model = ScoreModel(filled(networks.MLP((2,), 4, 1)), VP(), AROUND)
    save(folder, Checkpoint(model, (2,), source=Ring()), {"n": torch.tensor(5)})
    return folder


def copied(saved, name):
    return Path(shutil.copytree(saved, Path(name) / "copy"))


def file_of(folder, kind):
    return folder / MANIFEST if kind == "manifest" else next(folder.glob(f"{kind}-*.safetensors"))


def read(folder, kind):
    return load_state(folder) if kind == "state" else load(folder)


@pytest.mark.parametrize("kind", ["weights", "state", "manifest"])
@settings(max_examples=100)
@given(data=st.data())
def test_cut_anywhere(saved, kind, data):
    """A file that lacks its end, wherever it was cut, is refused by name."""
    with tempfile.TemporaryDirectory() as name:
        file = file_of(copied(saved, name), kind)
        content = file.read_bytes()
        file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        with pytest.raises(ValueError) as error:
            read(file.parent, kind)
        assert str(file) in str(error.value)


@pytest.mark.parametrize("kind", ["weights", "state"])
@settings(max_examples=100)
@given(data=st.data())
def test_changed_anywhere(saved, kind, data):
    """A file with one byte changed, wherever it is, is refused by name."""
    with tempfile.TemporaryDirectory() as name:
        file = file_of(copied(saved, name), kind)
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        file.write_bytes(bytes(content))
        with pytest.raises(ValueError) as error:
            read(file.parent, kind)
        assert str(file) in str(error.value)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=4,
)


def places(value, path=()):
    """The path of every entry below a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


@settings(max_examples=150)
@given(data=st.data())
def test_manifest_with_another_entry(saved, data):
    """A manifest with any entry missing or replaced by any JSON either gives a model, or is refused by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = copied(saved, name)
        manifest = manifest_in(folder)
        *path, last = data.draw(st.sampled_from(sorted(places(manifest))))
        inner = manifest
        for key in path:
            inner = inner[key]
        if data.draw(st.booleans()):
            del inner[last]
        else:
            inner[last] = data.draw(JSON)
        (folder / MANIFEST).write_bytes(sealed(manifest))
        try:
            assert isinstance(load(folder).model, ScoreModel)
        except ValueError as error:
            assert str(folder) in str(error)


def manifest_in(folder):
    return unsealed((folder / MANIFEST).read_bytes(), "it")


def edited(saved, folder, edit):
    """A copy of the checkpoint whose manifest was written anew, with another content."""
    folder = copied(saved, folder)
    manifest = manifest_in(folder)
    edit(manifest)
    (folder / MANIFEST).write_bytes(sealed(manifest))
    return folder


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m: m.update(version=1), "has version 1, this program reads version 5"),
        (lambda m: m.pop("version"), "has version None"),
        (lambda m: m.update(format="other"), "is not the manifest of a checkpoint"),
        (lambda m: m["sde"].update({"class": "Popen"}), "does not give a model: class must be a known LinearSDE"),
        (lambda m: m["sde"].update({"class": "MLP"}), "does not give a model: class must be a known LinearSDE"),
        (lambda m: m["net"].update({"class": "Linear"}), "does not give a model: class must be a known Network"),
        (lambda m: m["net"].update({"class": "Popen"}), "does not give a model: class must be a known Network"),
        (lambda m: m["net"]["config"].update(depth=2), "(?s)does not give a model: .*blocks.1"),
        (lambda m: m["net"]["config"].update(depth=9999), "does not give a model: .* more numbers than the"),
        (lambda m: m["net"]["config"].update(width=10**4), "does not give a model: .* more numbers than the"),
        (lambda m: m.update(shape=[2, 0]), "does not give a model: shape must be that of a sample"),
        (lambda m: m.update(shape=2), "does not give a model: shape must be that of a sample"),
        (lambda m: m["net"]["config"].update(colour="red"), "does not give a model: .*colour"),
        (lambda m: m["predicts"].update({"class": "VP"}), "does not give a model: class must be a known Param"),
        (lambda m: m["predicts"].update(around=0.5), "does not give a model: around must be a Reference"),
        (lambda m: m["predicts"]["around"].update(std=0), "does not give a model: around must have a standard dev"),
        (lambda m: m["predicts"]["around"].update(size=[[0, -1]]), "does not give a model: size must"),
        (lambda m: m["sde"].update(beta=1.0), "does not give a model: VP has no field 'beta'"),
        (lambda m: m["sde"].update(beta_min=30.0), "does not give a model: beta_max must"),
        (lambda m: m["sde"].pop("beta_min"), "does not give a model: VP lacks the field 'beta_min'"),
        (lambda m: m["source"].update({"class": "Toy"}), "does not give a model"),
        (lambda m: m.pop("clock"), "lacks 'clock'"),
        (lambda m: m.pop("names"), "lacks 'names'"),
        (lambda m: m.update(names=["a", "a"]), "does not give a model: names must differ"),
        (lambda m: m.update(names="ab"), "does not give a model: names must be the names"),
        (lambda m: m["files"].pop("weights"), "names no weights file"),
        (lambda m: m.pop("files"), "names no weights file"),
    ],
)
def test_manifest_errors(saved, tmp_path, edit, said):
    """Each wrong entry of a manifest has its own complaint, with the manifest's path."""
    folder = edited(saved, tmp_path, edit)
    with pytest.raises(ValueError, match=said) as error:
        load(folder)
    assert str(folder / MANIFEST) in str(error.value)


def test_missing_files(saved, tmp_path):
    """No folder, no manifest, no weights: each is named."""
    with pytest.raises(ValueError, match=f"^checkpoint must be a folder with a {MANIFEST}, got .*none"):
        load(tmp_path / "none")
    folder = copied(saved, tmp_path)
    weights = file_of(folder, "weights")
    weights.unlink()
    with pytest.raises(ValueError, match=f"{weights.name} is missing"):
        load(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match=f"^checkpoint must be a folder with a {MANIFEST}"):
        load(folder)


class Trap:
    """Read as a pickle, it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("writer", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("listed", [False, True])
def test_pickle_does_not_run(saved, tmp_path, writer, listed):
    """A pickle in place of the weights is refused by name, also where the manifest has its sha256, and does not run."""
    mark, folder = tmp_path / "ran", copied(saved, tmp_path)
    file = file_of(folder, "weights")
    writer(Trap(mark), file)
    if listed:
        manifest = manifest_in(folder)
        manifest["files"]["weights"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        (folder / MANIFEST).write_bytes(sealed(manifest))
    with pytest.raises(ValueError, match="pickles are never read") as error:
        load(folder)
    assert str(file) in str(error.value) and not mark.exists()
    same = shutil.copy(file, tmp_path / "same.pt")
    torch.load(same, weights_only=False) if writer is torch.save else pickle.loads(file.read_bytes())
    assert mark.exists()  # the trap was one


@pytest.mark.parametrize("way", ["../{}", "../../up/{}", "sub/../../{}", "{}", "absolute"])
def test_files_outside_the_folder_are_not_read(saved, tmp_path, way):
    """Whatever path a manifest gives, only a file in its own folder is opened."""
    folder = copied(saved, tmp_path)
    file = file_of(folder, "weights")
    outside = tmp_path / "up" / file.name if "up" in way else tmp_path / file.name
    outside.parent.mkdir(exist_ok=True)
    file.rename(outside)
    manifest = manifest_in(folder)
    manifest["files"]["weights"]["file"] = str(outside) if way == "absolute" else way.format(file.name)
    (folder / MANIFEST).write_bytes(sealed(manifest))
    with pytest.raises(ValueError, match=f"copy/{file.name} is missing"):
        load(folder)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a\0b", 3, None])
def test_file_names_that_are_none(saved, tmp_path, name):
    """A manifest that names a folder, or nothing, in place of the weights is refused."""
    folder = edited(saved, tmp_path, lambda m: m["files"]["weights"].update(file=name))
    with pytest.raises(ValueError, match=f"{folder}.* is missing"):
        load(folder)


# the seal, and what is written


def test_a_changed_manifest_is_refused_or_the_same(saved, tmp_path):
    """Of all single bits of a manifest, each that is turned over is either seen, and the file named, or without effect:
    the model that comes back is the one that was saved.
    """
    folder = copied(saved, tmp_path)
    file, model, g = folder / MANIFEST, load(saved).model, torch.Generator().manual_seed(0)
    content, x, seen = file.read_bytes(), torch.ones(1, 2), 0
    every = torch.randperm(8 * len(content), generator=g)[:1500].tolist()
    for bit in every:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(flipped))
        try:
            found = load(folder)
            assert torch.equal(found.model(x, 0.5), model(x, 0.5)) and found.digest == load(saved).digest
        except ValueError as error:
            assert str(file) in str(error)
            seen += 1
    assert seen > 0.7 * len(every)  # blanks may change


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True, "x"]}, {"a": math.inf, "b": [-math.inf, {"c": 1e-300}]}])
def test_seals(value):
    """What was sealed is read again, whatever its order and layout; and a bare NaN, a change, a missing seal or
    brackets without end are refused in one line that names the file.
    """
    content = sealed(value)
    assert unsealed(content, "f") == value
    shuffled = json.dumps(dict(reversed(json.loads(content).items())), indent=7).encode()
    assert unsealed(shuffled, "f") == value and identity(value) == json.loads(content)[SEAL]
    bad = [
        content.replace(b'"a"', b'"z"'),
        json.dumps(value).encode(),
        b"[" * 10**6,
        b'{"a": NaN}',
        b"[]",
        b"",
        b"\xff",
    ]
    for other in bad:
        with pytest.raises(ValueError, match="^f is damaged") as error:
            unsealed(other, "f")
        assert "\n" not in str(error.value)


def test_only_what_was_written_is_removed(tmp_path):
    """Files of the user with names of the same pattern are there after saves, and a manifest of another program is
    neither read nor replaced.
    """
    mine = ["weights-best.safetensors", "state-1.safetensors", ".notes.part", "weights-0123456789ab.safetensors"]
    for name in mine:
        (tmp_path / name).write_text(name)
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        save(tmp_path, Checkpoint(ScoreModel(filled(networks.MLP((2,), 4, 1)), VP()), (2,)))
    assert all((tmp_path / name).read_text() == name for name in mine)
    assert len(list(tmp_path.iterdir())) == len(mine) + 2
    (tmp_path / MANIFEST).write_text('{"name": "another program"}')
    with pytest.raises(ValueError, match=f"{MANIFEST} is damaged .* or is no file of this program"):
        save(tmp_path, Checkpoint(ScoreModel(networks.MLP((2,), 4, 1), VP()), (2,)))
    assert (tmp_path / MANIFEST).read_text() == '{"name": "another program"}'


# networks as they come


def compiled(net):
    return torch.compile(net, backend="eager")


class Inside(nn.Module):
    """A network of which a part is compiled."""

    def __init__(self, wrap=lambda net: net):
        super().__init__()
        self.part = wrap(networks.MLP((2,), 4, 1))

    def forward(self, x, c):
        return self.part(x, c)


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda net: nn.DataParallel(compiled(net))])
def test_wrapped_networks(tmp_path, wrap):
    """A network that was compiled or wrapped, as a whole or in part, is saved as what is inside, and comes back plain,
    or into one that is wrapped.
    """
    net = filled(networks.MLP((2,), 4, 1))
    x, want = torch.randn(3, 2), ScoreModel(net, VP())(torch.ones(3, 2), 0.5)
    save(tmp_path / "a", Checkpoint(ScoreModel(wrap(net), VP()), (2,)))
    for again in (None, networks.MLP((2,), 4, 1), wrap(networks.MLP((2,), 4, 1))):
        found = load(tmp_path / "a", net=again).model
        assert torch.equal(found(torch.ones(3, 2), 0.5), want)
    outer = Inside(wrap)
    save(tmp_path / "b", Checkpoint(ScoreModel(outer, VP()), (2,)))
    assert torch.equal(load(tmp_path / "b", net=Inside()).model(x, 0.5), ScoreModel(outer, VP())(x, 0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_type_of_weights_is_kept(tmp_path, dtype):
    """Numbers come back in the type that they were saved in, whatever type the network was made in, also tied ones."""
    model = ScoreModel(filled(networks.MLP((2,), 8, 1)), VP()).to(dtype)
    save(tmp_path, Checkpoint(model, (2,)))
    found = load(tmp_path).model
    assert {v.dtype for v in found.state_dict().values()} == {dtype}
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in model.state_dict().items())

    class TiedWeights(Own):
        def __init__(self):
            super().__init__()
            self.twin = nn.Linear(3, 5)
            self.twin.weight = self.enter.weight

    save(tmp_path / "tied", Checkpoint(ScoreModel(TiedWeights().to(dtype), VP()), (2,)))
    net = load(tmp_path / "tied", net=TiedWeights()).model.net
    assert net.twin.weight is net.enter.weight and net.twin.weight.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_refused(tmp_path, dtype):
    """Whole numbers, truth values or complex numbers in place of real ones are not cast."""
    net = Own()
    net.low = torch.ones(3, dtype=dtype)
    save(tmp_path, Checkpoint(ScoreModel(net, VP()), (2,)))
    assert load(tmp_path, net=Own_with(net.low)).model.net.low.dtype == dtype
    with pytest.raises(ValueError, match=f"'net.low' must be torch.bfloat16 of .3,., got {dtype}"):
        load(tmp_path, net=Own())


def Own_with(low):
    net = Own()
    net.low = torch.zeros_like(low)
    return net


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_do_not_load(tmp_path, value):
    """They would give samples that are not."""
    net = networks.MLP((2,), 4, 1)
    with torch.no_grad():
        net.enter.weight[0, 0] = value
    save(tmp_path, Checkpoint(ScoreModel(net, VP()), (2,)))
    with pytest.raises(ValueError, match=f"{MANIFEST} does not give a model: 'net.enter.weight' must hold finite"):
        load(tmp_path)


class Scaled(Own):
    """A network whose extra state is no tensor."""

    def get_extra_state(self):
        return {"amax": 1.0}

    def set_extra_state(self, state):
        pass


def test_state_that_cannot_be_saved_is_named(tmp_path):
    """Extra state that is no tensor, and tensors that are not plain, are refused before anything is written."""
    sparse = Own()
    sparse.low = torch.eye(3).to_sparse()
    for net, said in ((Scaled(), "'net._extra_state' is dict"), (sparse, "'net.low' is a torch.sparse_coo tensor")):
        checkpoint = Checkpoint(ScoreModel(net, VP()), (2,))
        for refuse in (save, lambda folder, checkpoint: require_savable(checkpoint, folder)):
            with pytest.raises(ValueError, match=said):
                refuse(tmp_path / "new", checkpoint)
    assert not (tmp_path / "new").exists()


# interruption


class Crash(BaseException):
    """Not an Exception, as an interrupt is none."""


def stages(monkeypatch, at):
    """Every call of save that reaches the disk, counted; the one with number `at` does not happen, or half of it."""
    calls = iter(range(10**6))

    def wrap(owner, name, half=None):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            if next(calls) == at:
                if half:
                    half(*args)
                raise Crash(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    wrap(os, "fsync", half=lambda fd: os.ftruncate(fd, 10))
    wrap(Path, "replace")
    wrap(Path, "open")
    return calls


def test_crash_at_every_stage(tmp_path):
    """A save that is broken off anywhere leaves the old checkpoint, or after its last write the new; and no parts."""
    models = {}
    for seed in (1, 2):
        torch.manual_seed(seed)
        models[seed] = ScoreModel(filled(networks.MLP((2,), 4, 1)), VP())
    crashed = 0
    for at in range(100):
        folder = tmp_path / str(at)
        save(folder, Checkpoint(models[1], (2,)), {"seed": torch.tensor(1)})
        with pytest.MonkeyPatch.context() as patch:
            calls = stages(patch, at)
            try:
                save(folder, Checkpoint(models[2], (2,)), {"seed": torch.tensor(2)})
                done = True
            except Crash:
                done, crashed = False, crashed + 1
        seed = int(load_state(folder)["seed"])
        assert seed == (2 if done else 1)
        assert torch.equal(load(folder).model.net.enter.weight, models[seed].net.enter.weight)
        assert not [f.name for f in folder.iterdir() if f.name.endswith(".part")]
        save(folder, Checkpoint(models[2], (2,)), {"seed": torch.tensor(2)})
        assert len(list(folder.iterdir())) == 3  # what the crash left is gone
        (folder / "weights-mine.safetensors").write_bytes(b"not written by save")
        save(folder, Checkpoint(models[1], (2,)))
        assert sorted(f.name.split("-")[0] for f in folder.iterdir()) == [MANIFEST, "weights", "weights"]
        if done:
            break
    assert crashed == next(calls)


def test_crash_while_old_files_are_removed(tmp_path, monkeypatch):
    """The new checkpoint is whole before the first old file goes."""
    old, model = (ScoreModel(filled(networks.MLP((2,), 4, 1)), VP()) for _ in range(2))
    save(tmp_path, Checkpoint(old, (2,)))
    real = Path.unlink

    def unlink(self, missing_ok=False):
        if self.name.startswith(("weights", "state")):
            raise Crash
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(Crash):
        save(tmp_path, Checkpoint(model, (2,)))
    assert torch.equal(load(tmp_path).model.net.enter.weight, model.net.enter.weight)


def test_write(tmp_path):
    """A file holds the old content or the new, never a part."""
    file, old, new = tmp_path / "a", random.Random(0).randbytes(999), np.arange(99).tobytes()
    write(file, old)
    with pytest.MonkeyPatch.context() as patch:
        stages(patch, 1)  # after the new content was cut
        with pytest.raises(Crash):
            write(file, new)
    assert file.read_bytes() == old and list(tmp_path.iterdir()) == [file]
    write(file, new)
    assert file.read_bytes() == new and list(tmp_path.iterdir()) == [file]


class Plain(LinearSDE):
    """No dataclass, so nothing says how to make it again."""

    def log_alpha(self, t):
        return -t

    def var(self, t):
        return -torch.expm1(-2 * t)


def test_what_cannot_be_saved_fails_before_anything_is_written(tmp_path):
    """An SDE that no manifest can describe is refused by name, and the folder is left as it is."""
    with pytest.raises(ValueError, match="Plain must be a dataclass"):
        save(tmp_path / "new", Checkpoint(ScoreModel(networks.MLP((2,), 8, 1), Plain()), (2,)))
    assert not (tmp_path / "new").exists()


def test_two_classes_of_one_name_are_refused():
    """A class that shares its name with another of the same kind is never taken for it."""
    described = {"class": "VP", "beta_min": 0.1, "beta_max": 20.0}

    @dataclasses.dataclass(frozen=True)
    class VP(LinearSDE):
        def log_alpha(self, t):
            return -t

        def var(self, t):
            return t

    try:
        with pytest.raises(ValueError, match="is both"):
            build(LinearSDE, described)
    finally:
        del VP
        gc.collect()
    build(LinearSDE, described)
