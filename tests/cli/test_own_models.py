"""A function of one's own in the place of a checkpoint: its model is sampled and measured as one that was saved."""

import json

import numpy as np
import pytest
import torch

from scoresde import Checkpoint, GaussianReference, draw, grid, load, save
from scoresde.cli import main
from scoresde.interop import from_betas
from scoresde.process import linear_betas

CODE = """
import torch
from scoresde import Checkpoint
from scoresde.interop import from_betas
from scoresde.process import linear_betas
from scoresde.reference import Reference

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.9))

    def forward(self, x, i):
        return self.w * x * ((i + 1) / 1000)[:, None]

net = Net()

def model():
    return Checkpoint(from_betas(net, linear_betas()), (2,), around=Reference(0.0, 0.7))

def nothing():
    return net

def broken():
    raise RuntimeError("no weights here")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a module of one's own where one is."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name}.py").write_text(CODE)
    return name


def test_sample(mine, tmp_path, capsys):
    """The samples are those of the function's model; a checkpoint of it has its digest; other code is refused."""
    args = ["sample", f"{mine}:model", "--n", "6", "--steps", "5", "--out", str(tmp_path / "out")]
    assert main(args) == 0
    found = __import__(mine).model()
    ts = grid.reference(found.model.sde, 5, around=found.around)
    p, step = found.model.sde.reverse(found.model, 0.0), GaussianReference(found.around)
    want = draw(p, (2,), ts, step, seeds=range(6), denoise=True)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "samples.npy"), want, rtol=1e-5, atol=1e-6)
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    save(tmp_path / "saved", found)
    assert recipe["model"] == load(tmp_path / "saved", net=found.model.net).digest
    assert mine in json.dumps(recipe)
    (tmp_path / f"{mine}.py").write_text(CODE + "\n# edited\n")
    assert main(args) == 2
    assert main(["sample", f"{mine}:model", "--n", "3", "--steps", "5", "--out", str(tmp_path / "more")]) == 0


def test_likelihood(mine, tmp_path, capsys):
    """Data are given, as for a checkpoint that does not say what it was trained on."""
    args = ["likelihood", f"{mine}:model", "--terms", "0", "--n", "5", "--out", str(tmp_path / "out")]
    assert main(args) == 2
    assert "data must be given" in capsys.readouterr().err
    assert main([*args, "--data", "Ring(n=100)"]) == 0
    table = json.loads((tmp_path / "out" / "summary.json").read_text())["table"]
    assert np.isfinite(table[0]["mean"])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nothing"], "model must name a function that returns a Checkpoint of a score, got"),
        (["broken"], "no weights here"),
        (["absent"], "model must be like"),
        (["model", "--net", "mine:net"], "net must not be given beside a model of your own"),
    ],
)
def test_what_is_no_model(mine, args, says, capsys, tmp_path):
    assert main(["sample", f"{mine}:{args[0]}", *args[1:], "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_digest_is_of_the_weights(mine):
    """Two models that differ in one number are told apart."""
    from scoresde.checkpoint import identified

    def of(w):
        net = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(net.weight, w)
        torch.nn.init.zeros_(net.bias)
        return identified(Checkpoint(from_betas(net, linear_betas()), (2,))).digest

    assert of(1.0) == of(1.0) != of(1.0 + 1e-6)
