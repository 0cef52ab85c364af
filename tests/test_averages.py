"""Averages that are chosen afterwards are those that the training would have made."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import VP, Karras, Reference, ScoreModel, Settings, load, shipped, train
from scoresde.cli import main
from scoresde.data import Dataset
from scoresde.nn import MLP
from scoresde.noise import seeded
from scoresde.training import averaged
from scoresde.training.averages import FOLDER, HALF_LIVES, combination, profile, rate

SETTINGS = Settings(steps=60, batch=8, lr=0.01, warmup=5, seed=1)


def data(seed=0):
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(seed))
    return Dataset(x, x[:0])


def run(folder=None, resume=False, of=None, on_step=None, **settings):
    with seeded(0):
        model = ScoreModel(MLP((2,), 8, 1), VP(), Karras(Reference(std=1.0)))
    how = dataclasses.replace(SETTINGS, **settings)
    return train(model, of or data(), how, folder=folder, resume=resume, on_step=on_step, progress=False)


def close(a, b, atol):
    for k, v in b.state_dict().items():
        torch.testing.assert_close(a.state_dict()[k], v, rtol=0, atol=atol)


@given(st.floats(0.01, 2.0), st.integers(1, 60), st.integers(0, 60))
def test_profiles(ema, step, more):
    """The weights of the weights are those of the recursion, from the first weights on, and sum to 1."""
    v = np.zeros(step + more + 1)
    v[0] = 1.0
    for t in range(1, step + 1):
        r = rate(ema, t)
        v *= 1 - r
        v[t] += r
    np.testing.assert_allclose(profile(ema, step, step + more), v, rtol=0, atol=1e-12)
    assert v.sum() == pytest.approx(1.0)


def test_profiles_are_powers():
    """Late in a training they are the powers of Karras et al. (2024, eq. 121), whose relative widths are 0.05, 0.10."""
    for ema, width in zip(HALF_LIVES, (0.05, 0.10), strict=True):
        gamma, n = math.log(2) / ema - 1, 20_000
        v, j = profile(ema, n, n), np.arange(n + 1) / n
        np.testing.assert_allclose(v[n // 2 :], (gamma + 1) / n * j[n // 2 :] ** gamma, rtol=2e-3)
        assert ((v @ j**2) - (v @ j) ** 2) ** 0.5 == pytest.approx(width, rel=5e-3)


@pytest.mark.parametrize("ema", [0.02, 0.05, 0.2, 0.5])
def test_averages_are_those_of_a_training(tmp_path, ema):
    """With snapshots at every step, the average by any half-life is that of a training with it, at its end and before;
    with fewer it is as near as is said, in units of how far weights are apart.
    """
    run(tmp_path / "all", snapshots=60)
    found, missed = averaged(tmp_path / "all", ema)
    assert missed < 1e-4
    close(found.model, run(ema=ema), 2e-5)
    early, missed = averaged(tmp_path / "all", ema, 40)
    half, at_40 = [], dataclasses.replace(SETTINGS, ema=ema)

    def stop(step, _):
        if step == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "half", on_step=stop, ema=at_40.ema)
    half = load(tmp_path / "half").model
    assert missed < 1e-4
    close(early.model, half, 2e-5)


def test_few_snapshots_are_as_near_as_said(tmp_path):
    """Eight snapshots make the average by 0.06 to two per cent of its profile, and weights to that of their way."""
    run(tmp_path, snapshots=8)
    found, missed = averaged(tmp_path, 0.06)
    assert 1e-4 < missed < 0.02 and len(list((tmp_path / FOLDER).iterdir())) == 8
    with seeded(0):
        start = MLP((2,), 8, 1).state_dict()
    want = run(ema=0.06).net.state_dict()
    way = torch.cat([(want[k] - start[k]).flatten() for k in want]).abs().max()
    close(found.model.net, run(ema=0.06).net, 3 * missed * float(way))


@pytest.mark.parametrize("stop", [7, 20, 33, 59])
def test_snapshots_of_a_resumed_training(tmp_path, stop):
    """A training that was interrupted keeps the same snapshots, to the bit, and keeping them moves no weight."""

    def interrupt(step, _):
        if step == stop:
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole", snapshots=6)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", on_step=interrupt, snapshots=6)
    run(tmp_path / "parts", resume=True, snapshots=6)
    files = sorted((tmp_path / "whole" / FOLDER).iterdir())
    assert [f.name for f in files] == [f"{10 * k:09d}.safetensors" for k in range(1, 7)]
    for file in files:
        assert file.read_bytes() == (tmp_path / "parts" / FOLDER / file.name).read_bytes()
    close(whole, run(), 0.0)


def test_what_cannot_be_averaged(tmp_path):
    """No snapshots, a damaged one, one of another training, a step that was not reached, and a half-life that those
    kept do not make, are refused by name.
    """
    run(tmp_path / "none")
    with pytest.raises(ValueError, match="^folder must hold averages that a training with snapshots kept"):
        averaged(tmp_path / "none", 0.1)
    run(tmp_path / "few", snapshots=3)
    with pytest.raises(ValueError, match="^ema must be one whose average the 6 kept ones make to a tenth, got 0.001"):
        averaged(tmp_path / "few", 0.001)
    for value in (0.0, math.nan, "1"):
        with pytest.raises(ValueError, match="^ema must be a finite number"):
            averaged(tmp_path / "few", value)
    with pytest.raises(ValueError, match="^step must be a whole number .*, got 61"):
        averaged(tmp_path / "few", 0.1, 61)
    file = tmp_path / "few" / FOLDER / "000000020.safetensors"
    good = file.read_bytes()
    run(tmp_path / "other", snapshots=3, of=data(5))
    file.write_bytes((tmp_path / "other" / FOLDER / file.name).read_bytes())
    with pytest.raises(ValueError, match="must be of the training whose checkpoint is in"):
        averaged(tmp_path / "few", 0.1)
    for bad in (b"", good[:50], b"\x80\x04}."):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match="is no snapshot of a training"):
            averaged(tmp_path / "few", 0.1)


@pytest.mark.parametrize(("ema", "step"), [(0.15, 60), (0.04, 45)])
def test_what_does_not_change_is_as_it_was(tmp_path, ema, step):
    """The factors sum to 1, so that a weight that is not trained comes back the same."""
    with seeded(0):
        model = ScoreModel(MLP((2,), 8, 1), VP(), Karras(Reference(std=1.0)))
    frozen = model.net.enter.weight.requires_grad_(False).clone()
    train(model, data(), dataclasses.replace(SETTINGS, snapshots=4), folder=tmp_path, progress=False)
    torch.testing.assert_close(averaged(tmp_path, ema, step)[0].model.net.enter.weight, frozen, rtol=1e-6, atol=0)


def test_snapshots_of_another_training_are_not_mixed_in(tmp_path):
    """Where the checkpoint is gone and its snapshots are there, a new training is refused; a checkpoint that comes
    without snapshots has no averages.
    """
    run(tmp_path, snapshots=3)
    for file in tmp_path.glob("*.*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(ValueError, match="^folder must hold no snapshots of another training"):
        run(tmp_path, snapshots=3)
    with pytest.raises(ValueError, match="^folder must hold averages"):
        averaged(shipped("digits-vp"), 0.1)


def test_combination_finds_what_is_there():
    """The average of a half-life and step that was kept is itself."""
    kept = [(e, at) for at in (100, 200, 300) for e in HALF_LIVES]
    for i, (e, at) in enumerate(kept):
        factors, missed = combination(kept, e, at)
        np.testing.assert_allclose(factors, np.eye(len(kept))[i], atol=1e-6)
        assert missed < 1e-6


def test_command(tmp_path, capsys):
    """`scoresde average` writes a checkpoint that says what it is, replaces one of its own, and no other."""
    run(tmp_path / "run", snapshots=8)
    line = ["average", str(tmp_path / "run"), "--ema", "0.06", "--out", str(tmp_path / "out")]
    assert main(line) == 0 and main(line) == 0
    assert "the average of step 60 by the half-life 0.06, to 0.0" in capsys.readouterr().out
    found = load(tmp_path / "out")
    assert found.notes["average"]["ema"] == 0.06 and found.notes["average"]["step"] == 60
    close(found.model, averaged(tmp_path / "run", 0.06)[0].model, 0.0)
    assert main([*line[:-1], str(tmp_path / "run")]) == 2
    assert "out must hold no checkpoint but one that was averaged so" in capsys.readouterr().err
