"""Weights in parts over two processes train as whole ones in one: torchrun runs this file, whose `main` are the two."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from test_training import SHORT, Running, breaking, data, model, same, weights
from torch import nn

from scoresde import VP, Quantized
from scoresde.checkpoint import load, load_state
from scoresde.data import Dataset
from scoresde.model import EnergyModel
from scoresde.nn import MLP, UNet
from scoresde.noise import seeded
from scoresde.training import averaged, train
from scoresde.training import shard as module
from scoresde.training.run import Share, Training

FULL = dataclasses.replace(SHORT, steps=20, clip=0.1, accumulate=2, weight_decay=0.1, snapshots=3)


def points(dtype=torch.float64):
    x = data().train.to(dtype)
    return Dataset(x, x[:32], torch.arange(len(x)) % 3, torch.arange(32) % 3)


def images():
    x = torch.randint(0, 5, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 2 - 1
    return Dataset(x, x[:8], quantized=Quantized(5, -1.0, 1.0))


def told(dtype=torch.float64):
    with seeded(0):
        return model(net=MLP((2,), 7, 3, classes=3)).to(dtype)


def drawn():
    with seeded(0):
        return model(net=UNet((1, 8, 8), 4)).double()


def frozen():
    m = told()
    m.net.enter.requires_grad_(False)
    return m


CASES = {
    "double": (told, points, FULL, 1e-10),
    "single": (lambda: told(torch.float32), lambda: points(torch.float32), FULL, 1e-6),
    "images": (drawn, images, dataclasses.replace(SHORT, steps=6, flips=True), 1e-10),
    "frozen": (frozen, points, dataclasses.replace(SHORT, steps=10), 1e-10),
}


def trained(name, **options):
    """The averaged weights of one of the cases."""
    make, read, settings, _ = CASES[name]
    return train(make(), read(), settings, progress=False, **options)


def close(found, wanted, atol):
    assert found.keys() == wanted.keys()
    for k, v in wanted.items():
        torch.testing.assert_close(found[k], v, rtol=0, atol=atol)


def main(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for name in CASES:
        out = trained(name, sharded=True, folder=folder / name)
        assert same(weights(out), weights(load(folder / name).model)) and all(p.is_leaf for p in out.parameters())
    going_on(folder, rank)
    views(rank)
    as_with_whole_weights(rank)
    parts()
    refusals(rank, folder)


def going_on(folder, rank):
    """A signal that one process gets ends both, after the same step; what one process left off both go on with."""

    def asked(step, value):
        if step == 13 and rank == 1:
            signal.raise_signal(signal.SIGTERM)

    try:
        trained("double", sharded=True, folder=folder / "stopped", on_step=asked)
    except KeyboardInterrupt as stop:
        assert stop.number == signal.SIGTERM
    else:
        raise AssertionError("not stopped")
    trained("double", sharded=torch.device("cpu"), folder=folder / "alone", resume=True, save_every=-1.0)


def views(rank):
    """A view sees the average, whose model computes in both processes, also in inference mode; none is to lack one."""
    found = []

    @torch.inference_mode()
    def on_view(step, m):
        found.append(m(torch.ones(3, 2).double(), 0.5, label=torch.zeros(3, dtype=torch.long)))

    out = trained("double", sharded=True, on_view=on_view, views=2)
    wanted = out(torch.ones(3, 2).double(), 0.5, label=torch.zeros(3, dtype=torch.long))
    assert len(found) == 2 and (found[0] - wanted).abs().max() > 1e-3
    torch.testing.assert_close(found[1].clone(), wanted, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="^on_view must be alike in all processes"):
        trained("double", sharded=True, on_view=on_view if rank else None)


def running(rank):
    with seeded(rank):
        return model(net=Running()).double()  # Adam makes noise of a gradient that is 0 in float32


def as_with_whole_weights(rank):
    """In bfloat16, and with running statistics, as two processes train that have whole weights, from the first's."""
    bf16, short = dataclasses.replace(FULL, precision="bfloat16"), dataclasses.replace(SHORT, steps=10)
    for make, x, settings, atol in (
        (lambda: told(torch.float32), points(torch.float32), bf16, 1e-6),
        (lambda: running(rank), points(), short, 1e-10),
    ):
        one, two = (train(make(), x, settings, progress=False, sharded=s) for s in (False, True))
        if rank == 0:
            close(weights(two), weights(one), atol)


def parts():
    """Of weights, gradients, both averages and moments this process has its half, rows rounded up or down."""
    run = Training(told(), points(), FULL, Share(torch.device("cpu"), dist.get_rank(), 2, True))
    n = sum(p.numel() for p in run.model.parameters())
    run.shard()
    run.advance()
    states = [s for s in run.optimizer.state.values()]
    for tensors in (
        list(run.model.parameters()),
        [p.grad for p in run.model.parameters()],
        list(run.average.parameters()),
        *([*kept.values()] for kept in run.kept),
        *([s[k] for s in states] for k in ("exp_avg", "exp_avg_sq")),
    ):
        here = torch.tensor(sum(v.to_local().numel() for v in tensors))
        assert 0.4 * n < here < 0.6 * n
        dist.all_reduce(here)
        assert here == n


class Tied(nn.Module):
    """Two layers with one matrix."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.layers[1].weight = self.layers[0].weight

    def forward(self, x, c):
        return self.layers[1](self.layers[0](x))


class Reached(nn.Module):
    """A network that reaches into a block instead of calling it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2)])

    def forward(self, x, c):
        return x @ self.layers[0].weight


class Number(nn.Module):
    """A network with a weight of no dimension."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x, c):
        return self.w * x


def refusals(rank, folder):
    """What cannot be trained in parts is named, and nothing is written."""
    for net, settings, said in (
        (MLP((2,), 8, 1), dataclasses.replace(SHORT, precision="float16"), "precision must be float32 or bfloat16"),
        (Tied(), SHORT, "net must have no weight that two"),
        (Reached(), SHORT, "net must be one that can be computed in parts"),
        (Number(), SHORT, "net must hold all weights, real and of a dimension or more, to be sharded, not 'net.w'"),
        (torch.compile(MLP((2,), 8, 1), backend="eager"), SHORT, "net must not be compiled"),
    ):
        with pytest.raises(ValueError, match=f"^{said}"):
            train(model(net=net), data(), settings, sharded=True, progress=False, folder=folder / "refused")
    energy = EnergyModel(MLP((2,), 8, 1), VP())
    with pytest.raises(ValueError, match="^model must not be an EnergyModel"):
        train(energy, data(), SHORT, sharded=True, progress=False)
    for name, differing in (
        ("folder", {"folder": None if rank else folder / "refused"}),
        ("views", {"views": 3 + rank}),
        ("settings", {"settings": dataclasses.replace(SHORT, steps=5 + rank)}),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be alike in all processes"):
            train(model(), data(), **{"settings": SHORT, "sharded": True, "progress": False, **differing})
    assert rank or not list((folder / "refused").glob("*.json"))


@pytest.mark.slow
def test_weights_in_parts(tmp_path):
    """Checkpoints and snapshots are those of one process, to the rounding of sums; those of either go on in the other;
    and what `main` asserts in both processes.
    """
    whole = {name: trained(name, folder=tmp_path / f"one-{name}") for name in CASES}
    with pytest.raises(KeyboardInterrupt):
        trained("double", folder=tmp_path / "alone", on_step=breaking(KeyboardInterrupt, 9))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, __file__, str(tmp_path)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, (make, _, _, atol) in CASES.items():
        one, two = tmp_path / f"one-{name}", tmp_path / name
        close(weights(load(two).model), weights(whole[name]), atol)
        close(load_state(two), load_state(one), atol)
        assert max(float((v - make().state_dict()[k]).abs().max()) for k, v in weights(whole[name]).items()) > 1e-2
        for file in (one / "averages").glob("*"):
            close(*(safetensors.torch.load_file(at / "averages" / file.name) for at in (two, one)), atol)
    assert len(list((tmp_path / "double" / "averages").iterdir())) == 3
    assert averaged(tmp_path / "double", 0.1)[0].notes["step"] == 20
    assert load(tmp_path / "stopped").notes["step"] == 13
    out = trained("double", folder=tmp_path / "stopped", resume=True)
    for found in (out, load(tmp_path / "alone").model):
        close(weights(found), weights(whole["double"]), 1e-10)


def test_one_process_has_no_parts(monkeypatch):
    """One process is refused, and an older torch, which cannot; what is no choice is named."""
    with pytest.raises(ValueError, match="^sharded needs two processes or more, as torchrun"):
        trained("single", sharded=True)
    with pytest.raises(ValueError, match="^sharded must be True, False or a torch.device, got 'yes'"):
        trained("single", sharded="yes")
    monkeypatch.delattr("torch.distributed.fsdp.fully_shard")
    with pytest.raises(ValueError, match=r"^sharded needs torch 2.6 or newer, got \d"):
        module.require_shardable(told(), "float32")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
