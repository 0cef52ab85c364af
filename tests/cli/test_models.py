"""The models that come with the library: they are there, are what they say, and are taken by name."""

import json

import numpy as np
import pytest
import torch

from scoresde import load, shipped
from scoresde.cli import main
from scoresde.cli.options import model
from scoresde.data import Digits
from scoresde.files import WEIGHTS

NAMES = sorted(path.parent.name for path in WEIGHTS.glob("*/manifest.json"))
LARGEST = {"digits": 1e6, "mnist": 5e6, "fashion-mnist": 5e6}
"""Bytes of a model's folder, by the data that it is of."""


def of(name):
    return next(data for data in LARGEST if name.startswith(data))


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_with_the_library(name):
    """Small files, finite numbers, and the command, the time and the result of the training."""
    found = load(shipped(name))
    assert sum(file.stat().st_size for file in shipped(name).iterdir()) < LARGEST[of(name)]
    assert found.notes.keys() == {"command", "took", "result"} and "held out" in found.notes["result"]
    assert all(p.isfinite().all() for p in found.model.parameters())
    assert {p.name.split("-")[0] for p in shipped(name).iterdir()} == {"manifest.json", "weights"}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("digits")])
def test_digits_are_denoised(name):
    """At medium noise the mean of a digit given the noisy one is closer to it than the best linear one, by far."""
    found, data = load(shipped(name)), Digits().load()
    sde, x_0 = found.model.sde, data.values(data.held_out)
    t = sde.time(torch.tensor(0.0, dtype=torch.float64))
    x_t, _ = sde.perturb(x_0, t)
    off = (sde.reverse(found.model).denoise(x_t, t) - x_0).square().mean()
    v = data.moments[1].square().clamp_min(1e-9)  # of each pixel alone
    ratio = (sde.alpha(t) ** 2 * v / (sde.alpha(t) ** 2 * v + sde.var(t))).float()
    mean = data.moments[0].float()
    linear = (mean + ratio * (x_t / float(sde.alpha(t)) - mean) - x_0).square().mean()
    assert off < 0.6 * linear


def test_they_are_listed_and_sampled_by_name(tmp_path, capsys, monkeypatch):
    """`scoresde models` has a line of each; `scoresde sample NAME` needs no folder, but a folder of that name wins."""
    assert main(["models", "--commands"]) == 0
    said = capsys.readouterr().out
    for name in NAMES:
        assert f"\n{name} " in f"\n{said}" and load(shipped(name)).notes["command"] in said
    assert main(["sample", "digits-vp", "--n", "3", "--out", str(tmp_path / "out")]) == 0
    assert np.load(tmp_path / "out" / "samples.npy").shape == (3, 1, 8, 8)
    assert "3 samples" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["model"] == load(shipped("digits-vp")).digest
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-vp").mkdir()
    assert model("digits-vp").resolve() == tmp_path / "digits-vp" and model("digits-ve").parent == WEIGHTS


def test_half_precision_is_read_in_float32(tmp_path):
    """A model stored in float16 computes in what it is asked to."""
    half, single = load(shipped("mnist")), load(shipped("mnist"), dtype=torch.float32)
    for a, b in zip(half.model.parameters(), single.model.parameters(), strict=True):
        assert a.dtype == torch.float16 and b.dtype == torch.float32 and torch.equal(a.float(), b)


@pytest.mark.parametrize("name", ["", "nothing", "../weights/mnist"])
def test_no_other_name(name):
    with pytest.raises(ValueError, match="name must be one of digits-subvp, digits-ve, digits-vp"):
        shipped(name)
