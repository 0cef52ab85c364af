"""A training is decided by its settings: interrupted, spread over processes or repeated, it is the same training."""

import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn

import scoresde.training.run as module
from scoresde import VE, VP, Epsilon, Karras, Quantized, Reference, ScoreModel, SubVP, loss
from scoresde.checkpoint import load, load_state
from scoresde.data import Dataset, Ring
from scoresde.exact import Gaussian
from scoresde.model import Data, LogSNR, ScoreValue
from scoresde.nn import MLP
from scoresde.noise import seeded
from scoresde.training import Settings, train
from scoresde.training.run import Share, Training

SHORT = Settings(steps=40, batch=16, warmup=5, ema=0.2, seed=1)


def data(n=100, seed=0):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([0.3, 1.0]) + 0.5
    return Dataset(x, x[:0])


def model(seed=0, sde=VP(), net=None, predicts=Karras(Reference(std=0.5)), clock=LogSNR()):
    with seeded(seed):
        return ScoreModel(MLP((2,), 8, 1) if net is None else net, sde, predicts, clock)


def run(settings=SHORT, seed=0, **options):
    """The averaged weights of a training."""
    return weights(train(model(seed), data(), settings, progress=False, **options))


def weights(m):
    return {k: v.clone() for k, v in m.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Stop(Exception):
    """What a killed process stands for here: nothing is saved when it comes."""


def breaking(kind, *at):
    """An on_step that raises at these steps, counted from the first call of all."""
    calls = count(1)

    def on_step(step, value):
        if next(calls) in at:
            raise kind

    return on_step


# resuming


@pytest.mark.parametrize("at", [(1,), (13,), (39,), (40,), (3, 4, 20, 21)])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, Stop])
def test_resumed_is_uninterrupted(tmp_path, kind, at):
    """Broken off at any step and resumed, to the bit: averaged weights, weights, and the optimiser's moments.

    An interrupt saves; after a crash the last periodic checkpoint, of the step before, goes on.
    """
    whole = run(folder=tmp_path / "whole")
    on_step, folder = breaking(kind, *at), tmp_path / "broken"
    options = {"folder": folder, "on_step": on_step, "save_every": -1.0 if kind is Stop else 1e9}
    for i in range(len(at)):
        with pytest.raises(kind):
            run(seed=i, resume=(folder / "manifest.json").exists(), **options)  # the first weights are those saved
        if i == 0 and not (folder / "manifest.json").exists():
            assert kind is Stop and at[0] == 1
            with pytest.raises(ValueError, match="^resume needs a folder with a checkpoint"):
                run(resume=True, **options)
            options["on_step"] = None
            run(**options)
    broken = run(seed=9, resume=True, **options)
    assert same(broken, whole)
    assert same(weights(load(folder).model), whole)
    assert same(load_state(folder), load_state(tmp_path / "whole"))
    assert load(folder).notes["step"] == 40


@pytest.mark.parametrize("where", ["lr_factor", "ema_rate"])
def test_interrupt_in_the_middle_of_a_step(tmp_path, monkeypatch, where):
    """A signal that comes before the update, or between the weights' and their average's, tears nothing."""
    whole = run(folder=tmp_path / "whole")
    real, calls = getattr(Settings, where), count(1)

    def interrupted(self, step):
        if next(calls) in (5, 17):
            signal.raise_signal(signal.SIGINT)
        return real(self, step)

    monkeypatch.setattr(Settings, where, interrupted)
    for i in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(folder=tmp_path / "broken", resume=i > 0)
    assert same(run(folder=tmp_path / "broken", resume=True), whole)
    assert same(load_state(tmp_path / "broken"), load_state(tmp_path / "whole"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_resuming_what_is_finished(tmp_path):
    """A training that is complete is not trained again: its weights stay."""
    whole = run(folder=tmp_path)
    files = {f.name: f.read_bytes() for f in tmp_path.glob("*.safetensors")}
    assert same(run(seed=5, folder=tmp_path, resume=True, on_step=breaking(Stop, 1)), whole)
    assert files == {f.name: f.read_bytes() for f in tmp_path.glob("*.safetensors")}


def test_checkpoint_has_all_that_is_needed(tmp_path):
    """The checkpoint of a training records data, source and settings, and its model is the one that is returned."""
    q, source = Quantized(5, -1.0, 1.0), Ring(n=500)
    x = torch.randint(0, 5, (50, 2), generator=torch.Generator().manual_seed(0)) / 2 - 1
    settings = dataclasses.replace(SHORT, weight=loss.MinSNR(3.0))
    out = train(model(), Dataset(x, x, quantized=q), settings, folder=tmp_path, source=source, progress=False)
    found = load(tmp_path)
    assert same(weights(found.model), weights(out))
    assert (found.shape, found.quantized, found.source) == ((2,), q, source)
    assert found.notes["settings"]["steps"] == 40
    assert found.notes["settings"]["weight"] == {"class": "MinSNR", "gamma": 3.0}


@pytest.mark.parametrize("predicts", [Karras(Reference(0.5, 0.7)), Epsilon(), Data(), ScoreValue()], ids=repr)
def test_weight_is_one_on_the_output_unless_given(predicts):
    """Settings without a weight train as those with `Output` of what the network predicts, to the bit."""
    plain, said = (
        weights(train(model(predicts=predicts), data(), dataclasses.replace(SHORT, weight=w), progress=False))
        for w in (None, loss.Output(predicts))
    )
    assert same(plain, said)


CHANGES = {
    "steps": 39, "batch": 8, "lr": 1e-3, "warmup": 6, "decay": 0.4, "beta2": 0.9, "clip": 2.0, "ema": 0.1,
    "weight": loss.Simple(), "times": loss.UniformTime(), "stratified": False, "label_dropout": 0.2,
    "accumulate": 2, "weight_decay": 0.1, "flips": True, "snapshots": 4, "precision": "bfloat16", "seed": 2,
}  # fmt: skip


def test_every_setting_can_be_changed():
    """The table above misses no field."""
    assert CHANGES.keys() == {f.name for f in dataclasses.fields(Settings)}


@pytest.mark.parametrize("name", [*CHANGES, "sde", "predicts", "clock", "data", "types"])
def test_resuming_another_training(tmp_path, name):
    """To go on with another setting, process, parametrisation, clock, precision or data is refused by name; nothing
    moves.
    """
    train(model(), data(), SHORT, folder=tmp_path, source=Ring(), progress=False)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    settings = dataclasses.replace(SHORT, **{name: CHANGES[name]}) if name in CHANGES else SHORT
    made = {"sde": SubVP(), "predicts": Epsilon(), "clock": LogSNR(0.5)}
    other = model(**{name: made[name]}) if name in made else model()
    other, x = other.double() if name == "types" else other, data(seed=1) if name == "data" else data()
    said = "flips must be False for data that are no images" if name == "flips" else f"{name} must be as in"
    with pytest.raises(ValueError, match=f"^{said}"):
        train(other, x, settings, folder=tmp_path, source=Ring(), resume=True, progress=False)
    assert before == {f.name: f.read_bytes() for f in tmp_path.iterdir()}


def test_folders_that_do_not_fit(tmp_path):
    """A checkpoint is not overwritten unasked, none is not resumed, and one of another network is refused."""
    run(folder=tmp_path)
    with pytest.raises(ValueError, match="^folder must hold no checkpoint unless resume is asked for"):
        run(folder=tmp_path)
    for folder in (None, tmp_path / "none"):
        with pytest.raises(ValueError, match="^resume needs a folder with a checkpoint"):
            run(folder=folder, resume=True)
    with pytest.raises(ValueError, match="^net must be as in"):
        train(model(net=MLP((2,), 16, 1)), data(), SHORT, folder=tmp_path, resume=True, progress=False)


class Chancy(nn.Module):
    """A network that draws from all global generators, in training alone."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave, self.drop = nn.Linear(3, 16), nn.Linear(16, 2), nn.Dropout(0.3)

    def forward(self, x, c):
        h = self.drop(self.enter(torch.cat([x, c[:, None]], 1)).tanh())
        return self.leave(h) * (random.random() + np.random.rand() if self.training else 1.0)


def test_randomness_inside_a_network_is_resumed(tmp_path):
    """What a network draws itself depends on (seed, step) alone, so that resumed is uninterrupted, to the bit; and what
    the caller draws afterwards does not depend on the training.
    """

    def go(settings=SHORT, **options):
        return weights(train(model(net=make()), data(), settings, progress=False, **options))

    def make():
        with seeded(0):
            return Chancy()

    whole = go()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    want = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    with pytest.raises(KeyboardInterrupt):
        go(folder=tmp_path, on_step=breaking(KeyboardInterrupt, 17))
    assert (torch.rand(1), np.random.rand(), random.random()) == want
    assert same(go(folder=tmp_path, resume=True), whole)
    assert not same(go(dataclasses.replace(SHORT, seed=2)), whole)


def test_steps_may_grow(tmp_path):
    """A training of more steps goes on from one of fewer: where the schedule is flat, it is the longer training."""
    flat = dataclasses.replace(SHORT, warmup=0, decay=0.0)
    longer = dataclasses.replace(flat, steps=60)
    run(flat, folder=tmp_path)
    assert same(run(longer, folder=tmp_path, resume=True), run(longer))
    assert load(tmp_path).notes["settings"]["steps"] == 60


@pytest.fixture
def heard():
    """Signals as a shell leaves them: under `nohup` and in the background some are ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_save(tmp_path, name):
    """Asked to end, by a cluster, a closed terminal or the keyboard, a training saves first, also if it is asked once
    more while it does; and afterwards the signals are handled as before.
    """
    number, real = getattr(signal, name), module.save
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def twice(*args):
        signal.raise_signal(number)
        real(*args)

    def on_step(step, value):
        if step == 11:
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save", twice)
        with pytest.raises(KeyboardInterrupt) as stopped:
            run(folder=tmp_path, on_step=on_step)
    assert getattr(stopped.value, "number", signal.SIGINT) == number
    assert load(tmp_path).notes["step"] == 11
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert same(run(folder=tmp_path, resume=True), run())


def test_one_training_a_folder(tmp_path):
    """While one process trains into a folder another is refused, and told which one it is; the first goes on."""
    heard = []

    def on_step(step, value):
        if step == 3:
            code = "import sys; from test_training import run; run(folder=sys.argv[1])"
            done = subprocess.run(
                [sys.executable, "-c", code, str(tmp_path)],
                cwd=os.path.dirname(__file__),
                capture_output=True,
                text=True,
            )
            heard.append(done.stderr.splitlines()[-1])

    assert same(run(folder=tmp_path, on_step=on_step), run())
    assert f"is being written by process {os.getpid()} on " in heard[0] and heard[0].startswith("ValueError")


def test_a_killed_training_holds_no_folder(tmp_path):
    """The lock of a process that was killed is none, whatever it has left."""
    code = (
        "import os, sys; from test_training import run; "
        "run(folder=sys.argv[1], save_every=-1.0, on_step=lambda k, l: k < 7 or os.kill(os.getpid(), 9))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=os.path.dirname(__file__))
    assert json.loads((tmp_path / ".lock.json").read_text())["pid"] != os.getpid()
    assert load(tmp_path).notes["step"] == 6
    assert same(run(folder=tmp_path, resume=True), run())


def test_files_of_others_stay(tmp_path):
    """A training removes nothing that it has not written."""
    mine = ["weights-best.safetensors", "state-1.safetensors", ".thesis.part", "notes.txt"]
    for name in mine:
        (tmp_path / name).write_text(name)
    run(folder=tmp_path, save_every=-1.0)
    run(dataclasses.replace(SHORT, steps=50), folder=tmp_path, save_every=-1.0, resume=True)
    assert all((tmp_path / name).read_text() == name for name in mine)


# what networks may be


class Spectral(nn.Module):
    """A network with complex weights."""

    def __init__(self):
        super().__init__()
        self.w, self.l = nn.Parameter(torch.ones(2, dtype=torch.cfloat)), nn.Linear(1, 2)

    def forward(self, x, c):
        return torch.fft.irfft(torch.fft.rfft(x) * self.w, n=2) + self.l(c[:, None])


def test_complex_weights():
    """Complex weights are trained and averaged as pairs of real ones: the recursion of the average holds for them."""
    m = model(net=Spectral())
    want = m.net.w.detach().to(torch.complex128).clone()

    def on_step(k, value):
        want.lerp_(m.net.w.detach().to(want), SHORT.ema_rate(k))

    out = train(m, data(), SHORT, progress=False, on_step=on_step)
    assert out.net.w.is_complex() and not torch.equal(out.net.w, torch.ones(2, dtype=torch.cfloat))
    torch.testing.assert_close(out.net.w.to(want), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_refused(dtype):
    """Their average would never move: 1 + 1e-3 is 1 in bfloat16."""
    with pytest.raises(ValueError, match=f"^net must have weights in float32 or float64 to be trained, got {dtype}"):
        train(model().to(dtype), data(), SHORT, progress=False)


def test_training_without_gradients():
    """Inside no_grad a training makes its own gradients; inside inference_mode there are none, which is said."""
    with torch.no_grad():
        inside = run()
    assert same(inside, run())
    with torch.inference_mode(), pytest.raises(ValueError, match="torch.inference_mode"):
        run()


def test_state_that_cannot_be_saved_is_told_before_the_first_step(tmp_path):
    """A network with extra state that is no tensor is refused by name where there is a folder, and trains without."""

    class Extra(Running):
        def get_extra_state(self):
            return {"scale": 1.0}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ValueError, match="'net._extra_state' is dict"):
        train(model(net=Extra()), data(), SHORT, folder=tmp_path, on_step=breaking(Stop, 1), progress=False)
    train(model(net=Extra()), data(), dataclasses.replace(SHORT, steps=5), progress=False)


def test_compiled_networks_are_resumed(tmp_path):
    """A network that was compiled is saved and resumed as the plain one, in either direction."""
    compiled = lambda: model(net=torch.compile(MLP((2,), 8, 1), backend="eager"))  # noqa: E731
    for first, then in ((compiled, model), (model, compiled)):
        folder = tmp_path / str(first is compiled)
        with pytest.raises(KeyboardInterrupt):
            train(first(), data(), SHORT, folder=folder, progress=False, on_step=breaking(KeyboardInterrupt, 9))
        out = train(then(), data(), SHORT, folder=folder, progress=False, resume=True)
        assert load(folder).notes["step"] == 40
        x = torch.ones(3, 2)
        assert torch.equal(load(folder).model(x, 0.5), out(x, 0.5))


# what decides


def test_seeds():
    """The seed decides the result to the bit, whatever torch's global generator does; another seed gives another."""
    a = run()
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert same(run(), a) and torch.equal(torch.get_rng_state(), before)
    assert not same(run(dataclasses.replace(SHORT, seed=2)), a)


def seen(monkeypatch, settings, dataset):
    """x_0 and t of every step, as the loss is given them."""
    steps, real = [], module.dsm

    def spy(m, x_0, t, *args, **cond):
        steps.append((x_0.clone(), t.clone()))
        return real(m, x_0, t, *args, **cond)

    monkeypatch.setattr(module, "dsm", spy)
    train(model(), dataset, settings, progress=False)
    return steps


@pytest.mark.parametrize(("n", "batch"), [(96, 16), (50, 16), (10, 16), (7, 30)])
def test_epochs(monkeypatch, n, batch):
    """Every epoch visits each row exactly once, also where batches straddle epochs, in another order each time."""
    x = torch.arange(2.0 * n).view(n, 2) / n
    settings = dataclasses.replace(SHORT, steps=-(-4 * n // batch), batch=batch, warmup=None)
    rows = torch.cat([x_0 for x_0, _ in seen(monkeypatch, settings, Dataset(x, x[:0]))])
    index = (rows[:, 0] * n / 2).round().long()
    assert torch.equal(x[index], rows)
    epochs = [index[k * n : (k + 1) * n].tolist() for k in range(4)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_dequantisation(monkeypatch):
    """Discrete data are seen with uniform noise over their bin, fresh at every visit."""
    q = Quantized(3, -1.0, 1.0)
    x = torch.randint(0, 3, (64, 2), generator=torch.Generator().manual_seed(0)) - 1.0
    steps = seen(monkeypatch, dataclasses.replace(SHORT, batch=64), Dataset(x, x, quantized=q))
    u = torch.cat([x_0 for x_0, _ in steps]) + 0.5
    inside = u - u.floor()
    assert u.min() > -1 and u.max() < 2 and len(inside.unique()) > 0.99 * inside.numel()
    n = inside.numel()
    for k in (1, 2, 3):
        error = (inside.double() ** k).mean() - 1 / (k + 1)
        assert abs(float(error)) < 4.5 * math.sqrt(1 / (2 * k + 1) - 1 / (k + 1) ** 2) / math.sqrt(n)


def test_levels_train_as_the_numbers_that_they_stand_for():
    """Grey levels in bytes and the same in float32: to the bit the same weights."""
    grey, levels = Quantized(9, -1.0, 1.0), torch.randint(9, (40, 2), generator=torch.Generator().manual_seed(0))
    kept = Dataset(levels.to(torch.uint8), levels[:0].to(torch.uint8), quantized=grey)
    floats = Dataset(kept.values(kept.train), kept.values(kept.held_out), quantized=grey)
    assert same(*(weights(train(model(), d, SHORT, progress=False)) for d in (kept, floats)))


@pytest.mark.parametrize("stratified", [True, False])
def test_times(monkeypatch, stratified):
    """Times follow the law of the settings; stratified, each n-th of the law holds one time of every batch."""
    settings = dataclasses.replace(SHORT, times=loss.UniformTime(), stratified=stratified)
    u = torch.stack([(t - VP.t_min) / (1 - VP.t_min) for _, t in seen(monkeypatch, settings, data())])
    k = (u * 16).floor().long().sort(1).values
    assert (k == torch.arange(16)).all(1).all() == stratified
    assert abs(float(u.mean()) - 0.5) < 4.5 / math.sqrt(12 * u.numel())
    assert len(u.unique()) == u.numel()


# rates


@pytest.mark.parametrize(("steps", "warmup", "decay"), [(100, 10, 0.5), (100, 0, 0.0), (7, 5, 1.0), (1, None, 0.5)])
def test_learning_rate(steps, warmup, decay):
    """It rises linearly to 1 over `warmup` steps and falls linearly over the last decay*steps, a step short of 0."""
    settings = Settings(steps=steps, warmup=warmup, decay=decay)
    for k in range(1, steps + 1):
        up = k / (min(100, steps) if warmup is None else warmup) if warmup != 0 else 1.0
        down = (steps + 1 - k) / (decay * steps) if decay * steps >= 1 else steps + 1 - k
        assert settings.lr_factor(k) == pytest.approx(min(1.0, up, down), rel=1e-12)
        assert 0 < settings.lr_factor(k) <= 1


def test_learning_rate_is_used(monkeypatch):
    """Step k of the optimiser is taken with lr times its factor."""
    used, real = [], torch.optim.Adam.step

    def step(self, *args):
        used.append([group["lr"] for group in self.param_groups])
        return real(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    run()
    assert used == [[SHORT.lr * SHORT.lr_factor(k)] for k in range(1, 41)]


def test_average_is_its_recursion():
    """a_k = a_(k-1) + (1 - 2^(-1/(ema k))) (w_k - a_(k-1)) from a_0 = w_0, written out over every step's weights."""
    m = model()
    want = {k: v.double() for k, v in weights(m).items()}

    def on_step(k, value):
        rate = 1 - 2 ** (-1 / (SHORT.ema * k))
        for name, v in m.state_dict().items():
            want[name] += rate * (v.double() - want[name])

    out = train(m, data(), SHORT, progress=False, on_step=on_step)
    for name, v in out.state_dict().items():
        torch.testing.assert_close(v.double(), want[name], rtol=1e-5, atol=1e-6)
    assert not same(weights(out), weights(m))


@pytest.mark.parametrize("ema", [0.01, 0.05])
def test_half_life(ema):
    """After ema k further steps half of the average at step k is left, to first order in ema."""
    k = 100_000
    left = sum(math.log1p(-Settings(ema=ema).ema_rate(j)) for j in range(k + 1, k + 1 + round(ema * k)))
    assert math.exp(left) == pytest.approx(2 ** (-math.log1p(ema) / ema), rel=1e-4)
    assert math.exp(left) == pytest.approx(0.5, rel=ema / 2)


class Running(nn.Module):
    """A network with buffers."""

    def __init__(self):
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x, c):
        return self.leave(self.norm(self.enter(torch.cat([x, c[:, None]], 1))).tanh())


def test_buffers_are_not_averaged():
    """The averaged model has the buffers of the trained one: running statistics are averages already."""
    m = model(net=Running())
    out = train(m, data(), SHORT, progress=False)
    assert int(out.net.norm.num_batches_tracked) == 40
    for a, b in zip(out.buffers(), m.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("batch", 0), ("batch", 1.5), ("warmup", -1), ("warmup", 5001), ("seed", -1),
        ("lr", 0.0), ("lr", math.nan),
        ("clip", 0.0), ("decay", 1.1), ("decay", -0.1), ("beta2", 1.0), ("beta2", 0.0), ("ema", 0.0),
        ("label_dropout", 1.1), ("label_dropout", -0.1), ("accumulate", 0), ("weight_decay", -0.1),
        ("precision", "bf16"), ("precision", torch.bfloat16), ("flips", 1), ("snapshots", -1),
    ],
)  # fmt: skip
def test_settings_errors(name, value):
    """A setting out of range is named."""
    with pytest.raises(ValueError, match=f"^{name} must"):
        Settings(**{name: value})


def test_data_errors(monkeypatch):
    """No data, and a batch that processes cannot share equally."""
    with pytest.raises(ValueError, match="^data must have samples"):
        train(model(), data(0), SHORT, progress=False)
    with pytest.raises(ValueError, match="^accumulate must divide the 16 samples of a process's share, got 3"):
        run(dataclasses.replace(SHORT, accumulate=3))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    with pytest.raises(ValueError, match="^batch must be a multiple of the number of processes, 3, got 16"):
        run()


# what a step is


def images(n=64):
    x = torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    return Dataset(x + torch.linspace(0, 3, 4), x[:0])


def test_parts_of_a_batch_are_the_batch():
    """The gradient of parts that follow one another is that of the whole, labels included, to the rounding of sums."""
    x, y = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).double(), torch.arange(64) % 3

    def trained(parts):
        with seeded(0):
            m = model(net=MLP((2,), 8, 1, classes=3)).double()
        settings = dataclasses.replace(SHORT, accumulate=parts)
        return weights(train(m, Dataset(x, x[:0], y, y[:0]), settings, progress=False))

    whole = trained(1)
    for parts in (2, 16):
        for k, v in trained(parts).items():
            torch.testing.assert_close(v, whole[k], rtol=0, atol=1e-10)


@pytest.mark.parametrize("parts", [1, 4])
def test_only_parts_are_in_the_network_at_once(monkeypatch, parts):
    """Of a batch in parts no more than one part is asked for."""
    sizes, real = [], module.dsm
    monkeypatch.setattr(module, "dsm", lambda m, x, *a, **c: (sizes.append(len(x)), real(m, x, *a, **c))[1])
    run(dataclasses.replace(SHORT, accumulate=parts, steps=5))
    assert sizes == [16 // parts] * 5 * parts


def test_decay_of_weights():
    """A step with decay takes lr times it of weights of two dimensions besides, and of those of one dimension nothing
    (Loshchilov & Hutter 2019, Algorithm 2): without a gradient the former shrink by the product over the steps.
    """
    s = Settings(steps=20, batch=8, lr=0.1, weight_decay=0.3, ema=1e-6)
    net = Still()
    before = weights(net)
    after = weights(train(model(net=net), data(), s, progress=False).net)
    shrunk = math.prod(1 - 0.1 * s.lr_factor(k) * 0.3 for k in range(1, 21))
    torch.testing.assert_close(after["matrix"], before["matrix"] * shrunk, rtol=1e-5, atol=0)
    assert torch.equal(after["vector"], before["vector"])


class Still(nn.Module):
    """A network whose output does not depend on its weights."""

    def __init__(self):
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))

    def forward(self, x, c):
        return 0 * (self.matrix.sum() + self.vector.sum()) + x


def test_flips(monkeypatch):
    """Half of the images are shown as their mirror images, chosen anew at every step; nothing else of a step moves."""
    seen, real = [], module.dsm
    monkeypatch.setattr(
        module, "dsm", lambda m, x, t, w, z, **c: (seen.append((x, t, z())), real(m, x, t, w, z, **c))[1]
    )
    for flips in (False, True):
        train(model(net=MLP((1, 4, 4), 8, 1)), images(), dataclasses.replace(SHORT, flips=flips), progress=False)
    plain, turned = seen[:40], seen[40:]
    mirrored = []
    for (x, t, z), (y, u, w) in zip(plain, turned, strict=True):
        assert torch.equal(t, u) and torch.equal(z, w)
        mirrored += [torch.equal(b, a.flip(-1)) and not torch.equal(b, a) for a, b in zip(x, y, strict=True)]
        assert all(torch.equal(b, a.flip(-1) if m else a) for a, b, m in zip(x, y, mirrored[-16:], strict=True))
    assert abs(sum(mirrored) - 320) < 4 * (640 / 4) ** 0.5


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_the_same(precision):
    """The loss on held-out data is that of float32 to a few per cent; weights and averages stay in float32."""
    held = data(2000, seed=9).train

    def trained(precision):
        s = dataclasses.replace(SHORT, steps=300, precision=precision)
        found = train(model(), data(), s, progress=False)
        assert all(p.dtype == torch.float32 for p in found.parameters())
        t, z = torch.full((len(held),), 0.3, dtype=torch.float64), torch.randn(held.shape, generator=generator())
        return float(loss.dsm(found, held, t, None, lambda *_: z).mean())

    exact, half = trained("float32"), trained(precision)
    assert half != exact and half == pytest.approx(exact, rel=0.05)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_step_whose_scaled_gradient_is_too_large_is_left_out(tmp_path):
    """In float16 the loss is scaled; where a gradient is not finite then, no weight moves, and the scale is halved. The
    scale is part of the state.
    """
    settings = dataclasses.replace(SHORT, precision="float16")
    m, kept = model(), []
    before = weights(m)
    train(m, data(), settings, folder=tmp_path, progress=False, on_step=lambda k, _: kept.append(weights(m)))
    assert float(load_state(tmp_path)["scaler.scale"]) <= 2.0**16
    m = model()
    halve = Training(m, data(), settings, Share(torch.device("cpu")))
    halve.scaler.load_state_dict({**halve.scaler.state_dict(), "scale": 2.0**127})
    halve.advance()
    assert same(weights(m), before) and halve.scaler.get_scale() == 2.0**126 and not same(kept[0], before)


# losses that are no number


def finite(folder):
    return all(v.isfinite().all() for v in [*weights(load(folder).model).values(), *load_state(folder).values()])


@pytest.mark.parametrize("then", [None, KeyboardInterrupt])
@pytest.mark.parametrize("bad", [12, 39, 40])
def test_weights_that_are_not_finite(tmp_path, bad, then):
    """Whenever weights turn to nan, RuntimeError says so, and neither a periodic save, the last one, nor the one of an
    interrupt puts them in the place of the last good checkpoint, from which training goes on as if nothing had been.
    """
    m = model()

    def poison(step, value):
        if step == bad:
            with torch.no_grad():
                m.net.enter.weight[0, 0] = math.nan
            if then:
                raise then

    with pytest.raises(RuntimeError, match=f"not finite after step {bad}: lower lr"):
        train(m, data(), SHORT, folder=tmp_path, save_every=-1.0, progress=False, on_step=poison)
    assert finite(tmp_path) and load(tmp_path).notes["step"] == bad - 1
    assert same(run(folder=tmp_path, resume=True), run())


@pytest.mark.parametrize("save_every", [-1.0, 1e9])
def test_loss_that_is_not_finite(tmp_path, save_every):
    """Data that overflow give a loss of inf or nan: RuntimeError, and nothing is saved, in between or at the end."""
    x = torch.full((100, 2), 3e38)
    with pytest.raises(RuntimeError, match="lower lr, or look at the data"):
        train(model(), Dataset(x, x), SHORT, folder=tmp_path, save_every=save_every, progress=False)
    assert not list(tmp_path.glob("[!.]*"))


# labels


class Told(nn.Module):
    """A network that notes the labels that it is told."""

    def __init__(self, classes):
        super().__init__()
        self.classes, self.told, self.layer = classes, [], nn.Linear(2, 2)

    def forward(self, x, c, label=None):
        self.told.append(label)
        return self.layer(x)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_label_dropout(monkeypatch, p):
    """The network is told each sample's own label, or with probability p `classes`, for none."""
    n = 200
    x = torch.arange(n)[:, None].expand(n, 2).float() / n
    labels = torch.arange(n) % 3
    rows, real = [], module.dsm
    monkeypatch.setattr(module, "dsm", lambda m, x_0, *a, **c: (rows.append(x_0.clone()), real(m, x_0, *a, **c))[1])
    net = Told(3)
    settings = dataclasses.replace(SHORT, label_dropout=p)
    train(model(net=net), Dataset(x, x, labels, labels), settings, progress=False)
    told, own = torch.cat(net.told), labels[(torch.cat(rows)[:, 0] * n).round().long()]
    dropped = told == 3
    assert torch.equal(told[~dropped], own[~dropped])
    assert abs(float(dropped.double().mean()) - p) <= 4.5 * math.sqrt(p * (1 - p) / len(told))


def test_no_labels():
    """A network without classes is told none though the data have some, and one with classes none if they have none."""
    x, y = data().train, torch.zeros(100, dtype=torch.long)
    for classes, labels in ((0, y), (3, None)):
        net = Told(classes)
        train(model(net=net), Dataset(x, x, labels, labels), SHORT, progress=False)
        assert len(net.told) == 40 and all(label is None for label in net.told)


# what is reached


@pytest.mark.parametrize("sde", [VP(), VE(0.01, 5.0)], ids=lambda s: type(s).__name__)
def test_training_reaches_the_optimum(sde):
    """On held-out draws of a Gaussian the loss falls to that of its exact score, the least possible: of the excess at
    the start, measured on the same t and z, less than a twentieth is left.
    """
    law = Gaussian(torch.tensor([0.5, -0.3]), torch.tensor([0.09, 1.0]))
    with seeded(0):
        x, held = law.sample(4000).float(), law.sample(4000).float()
    settings = Settings(steps=1000, batch=64, lr=1e-2, times=loss.LogNormal(-0.5, 1.0))
    m = model(net=MLP((2,), 32, 2), sde=sde)
    exact = law.diffuse(sde)
    with seeded(1):
        t = settings.times.draw(sde, len(held), stratified=True)
        z = torch.randn_like(held)
    x_t, _ = sde.perturb(held, t, lambda *_: z)
    best = -sde.sigma(t)[:, None] * exact(x_t.double(), t)

    def excess(m):
        with torch.no_grad():
            errors = loss.dsm(m, held, t, noise=lambda *_: z).double()
        least = loss.Output(m.predicts)(sde, t) * (best - z).square().sum(1)
        return float((errors - least).mean()), float((errors - least).std()) / len(t) ** 0.5

    before, _ = excess(m)
    after, error = excess(train(m, Dataset(x, held), settings, progress=False))
    assert -4.5 * error < after < before / 20


# processes


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Two processes that share a training through torchrun end with the weights of one, to the rounding of sums."""
    args = ["train", "Ring(n=500)", "--net", "MLP(width=8, depth=1)"]
    args += ["--steps", "60", "--batch", "32", "--warmup", "10"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "scoresde"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, command in (("one", [sys.executable, "-m", "scoresde"]), ("two", launch)):
        done = subprocess.run(
            [*command, *args, "--out", str(tmp_path / name)], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("trained 60 steps") == 1  # one process speaks
    one, two = (load(tmp_path / name).model.state_dict() for name in ("one", "two"))
    for k in one:
        torch.testing.assert_close(two[k], one[k], rtol=0, atol=1e-5)
    start = model().state_dict()
    assert max(float((one[k] - start[k]).abs().max()) for k in one) > 1e-2  # training took them somewhere


# data and process


def test_data_that_the_process_does_not_suit():
    """Data that the noise does not hide at T are trained on with a warning; columns of which a quarter lies below the
    least noise are refused, before the first step.
    """
    x = data().train
    with pytest.warns(UserWarning, match="are not hidden by the noise of VP"):
        train(model(), Dataset(1000 * x, x[:0]), dataclasses.replace(SHORT, steps=1, warmup=0), progress=False)
    with pytest.raises(ValueError, match="^data must be of one scale, but deviations are 0.000"):
        columns = Dataset(x * torch.tensor([1e-3, 1.0]), x[:0])
        train(model(), columns, SHORT, progress=False, on_step=breaking(Stop, 1))
