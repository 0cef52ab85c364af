"""`scoresde train --classifier`, and `scoresde sample --classifier`, which it guides."""

import json
import re

import numpy as np
import pytest
import torch

from scoresde import VE, VP, Checkpoint, grid, load, save
from scoresde.checkpoint import load_as
from scoresde.cli import main
from scoresde.data import Digits
from scoresde.guide import classified, conditioned
from scoresde.lab import Classifier
from scoresde.model import ClassModel
from scoresde.nn import MLPEncoder
from scoresde.steps import GaussianReference, draw

SMALL = "MLPEncoder(width=16, depth=1)"


def train(folder, *args, data, steps=40):
    return main(["train", data, "--steps", str(steps), "--warmup", "5", *map(str, args), "--out", str(folder)])


def sample(folder, model, *args):
    return main(["sample", str(model), "--n", "4", "--steps", "5", *map(str, args), "--out", str(folder)])


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """Three clouds of points in the plane, with labels."""
    place, g = tmp_path_factory.mktemp("data") / "points.npz", np.random.default_rng(0)
    y = g.integers(0, 3, 400)
    angle = 2 * np.pi * y / 3
    x = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.2 * g.standard_normal((400, 2))
    np.savez(place, x=x.astype(np.float32), y=y)
    return f"Array({str(place)!r}, labels='y')"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, points):
    """A score model and a classifier of the same data."""
    folder = tmp_path_factory.mktemp("trained")
    assert train(folder / "s", "--net", "MLP(width=16, depth=1)", data=points) == 0
    assert train(folder / "c", "--classifier", "--net", SMALL, data=points) == 0
    return folder


def test_train(trained, points, tmp_path):
    """The checkpoint is a classifier's, whose times reach into much noise; called again it goes on; a network, process
    and times may be typed.
    """
    found = load_as(ClassModel, trained / "c")
    assert found.model.net.config == MLPEncoder((2,), 3, 16, 1).config and found.model.sde == VP()
    assert found.notes["settings"]["times"]["mean"] == 0.0 and found.notes["settings"]["times"]["std"] == 2.0
    assert train(tmp_path, "--classifier", "--net", SMALL, data=points, steps=20) == 0
    assert train(tmp_path, "--classifier", "--net", SMALL, data=points) == 0
    assert load_as(ClassModel, tmp_path).notes["step"] == 40
    more = ("--sde", "VE(0.01, 9)", "--times", "LogNormal(-1.0, 1.0)")
    assert train(tmp_path / "b", "--classifier", *more, data=points, steps=6) == 0
    other = load_as(ClassModel, tmp_path / "b")
    assert other.model.sde == VE(0.01, 9) and other.notes["settings"]["times"]["mean"] == -1.0
    assert other.model.net.config == MLPEncoder((2,), 3).config
    rows = [json.loads(line) for line in (trained / "c" / "loss.jsonl").read_text().splitlines()]
    assert any("held_out" in row for row in rows)


def test_samples_are_those_of_the_guided_score(trained, tmp_path):
    """Of `classified` at the weight that was asked for, 1 if none was; in an interval of noise levels only there."""
    s, c = load(trained / "s"), load_as(ClassModel, trained / "c")
    options = ((), 1.0, {}), (("--guidance", 3), 3.0, {}), (("--guidance", 3, "--interval", 0.2, 2), 3.0, (0.2, 2.0))
    drawn = []
    for k, (args, w, levels) in enumerate(options):
        assert sample(tmp_path / str(k), trained / "s", "--classifier", trained / "c", "--label", 1, *args) == 0
        kept = dict(zip(("low", "high"), levels, strict=False))
        p = s.model.sde.reverse(conditioned(classified(s.model, c.model, w, **kept), label=1), 0.0)
        ts = grid.reference(s.model.sde, 5, around=s.around)
        want = draw(p, (2,), ts, GaussianReference(s.around), seeds=range(4))
        found = np.load(tmp_path / str(k) / "samples.npy")
        own = want if s.units is None else s.units.restore(want)
        assert np.abs(found - own.numpy()).max() < 1e-5
        drawn.append(found)
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3 and np.abs(drawn[1] - drawn[2]).max() > 1e-3


def test_another_classifier_is_another_run(trained, points, tmp_path, capsys):
    """A folder of samples is not gone on with by another classifier, and a solver tuned with one is refused without."""
    assert train(tmp_path / "d", "--classifier", "--net", SMALL, "--seed", 1, data=points) == 0
    by = ("--label", 1, "--classifier")
    assert sample(tmp_path / "a", trained / "s", *by, trained / "c") == 0
    capsys.readouterr()
    assert sample(tmp_path / "a", trained / "s", *by, tmp_path / "d") == 2
    assert "classifier" in capsys.readouterr().err
    line = ["tune", str(trained / "s"), "--nfe", "3", "--pilots", "8", *map(str, by), str(trained / "c")]
    tuned = tmp_path / "tuned.json"
    assert main([*line, "--out", str(tuned)]) == 0
    args = ["sample", str(trained / "s"), "--n", "2", "--tuned", str(tuned), "--out"]
    assert main([*args, str(tmp_path / "t"), *map(str, by), str(trained / "c")]) == 0
    assert main([*args, str(tmp_path / "u"), "--label", "1"]) == 2
    assert main([*args, str(tmp_path / "v"), *map(str, by), str(tmp_path / "d")]) == 2
    assert "tuned must be a solver that was fitted under what is asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--conditional",), "conditional must not be given beside classifier"),
        (("--recipe", "digits-vp"), "recipe must not be given beside classifier"),
        (("--init", "digits-vp"), "init must not be given beside classifier"),
        (("--weight", "Simple"), "weight must not be given beside classifier"),
        (("--label-dropout", 0.1), "label_dropout must not be given beside classifier"),
        (("--label-dropout", 0.0), "label_dropout must not be given beside classifier"),
        (("--views", 0), "views must not be given beside classifier"),
        (("--net", "MLP(width=8)"), "net must be like"),
        (("--net", f"{__name__}:own"), "net must be one that `sample` can make again"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path, capsys, points, args, said):
    assert train(tmp_path, "--classifier", *args, data=points) == 2
    assert f"scoresde: {said}" in capsys.readouterr().err and not (tmp_path / "manifest.json").exists()


def test_data_without_labels(tmp_path, capsys):
    assert train(tmp_path, "--classifier", data="SwissRoll") == 2
    assert "a classifier needs data with labels" in capsys.readouterr().err


def test_what_does_not_fit_is_named(trained, points, tmp_path, capsys):
    """A classifier of another process, shape or units than the model's, without that label, or no classifier at all;
    and a classifier where a score is expected.
    """

    def saved(name, model, shape, **more):
        save(tmp_path / name, Checkpoint(model, shape, **more))
        return tmp_path / name

    s, c = load(trained / "s"), load_as(ClassModel, trained / "c")
    moved = saved("sde", ClassModel(c.model.net, VE(), c.around), (2,), units=c.units)
    larger = saved("shape", ClassModel(MLPEncoder((3,), 3, 8, 1), VP(), c.model.around.overall), (3,), units=None)
    levels = saved("grid", c.model, (2,), units=c.units, quantized=Digits().load().quantized)
    own, out = trained / "s", tmp_path / "out"
    for args, said in (
        ((own, "--label", 1, "--classifier", moved), r"classifier must have the model's process, VP\(.*, got VE\("),
        ((own, "--label", 1, "--classifier", larger), r"classifier must have the model's shape, \(2,\), got \(3,\)"),
        ((own, "--label", 1, "--classifier", levels), "classifier must have the model's grid, None, got Quantized"),
        ((own, "--label", 3, "--classifier", trained / "c"), "label must be one of the network's classes, 0 to 2"),
        ((own, "--classifier", trained / "c"), "classifier must guide towards a label: give --label too"),
        ((own, "--label", 1, "--classifier", own), "it is a score model, where a classifier is asked for"),
        ((trained / "c",), "it is a classifier, where a score model is asked for"),
    ):
        assert sample(out, *args) == 2
        err = capsys.readouterr().err
        assert re.search(said, err) and err.count("\n") == 1 and not out.exists()
    assert train(trained / "c", "--net", "MLP(width=16, depth=1)", data=points) == 2
    assert "to resume, ClassModel, got ScoreModel" in capsys.readouterr().err
    assert s.model.sde == VP()


@pytest.mark.slow
def test_guided_digits_are_of_the_class(tmp_path):
    """Of what a network without classes draws, a few are threes; guided by a classifier many are, and with more
    guidance most, as another classifier, of clean digits, says.
    """
    assert train(tmp_path / "c", "--classifier", data="digits", steps=500) == 0
    data = Digits().load()
    judge = Classifier.fit(data.values(data.train), data.train_labels)
    shares = []
    for k, args in enumerate(((), (1,), (3,))):
        more = ("--label", 3, "--classifier", tmp_path / "c", "--guidance", *args) if args else ()
        assert main(["sample", "digits-vp", "--n", "64", *map(str, more), "--out", str(tmp_path / str(k))]) == 0
        x = torch.from_numpy(np.load(tmp_path / str(k) / "samples.npy")).float()
        shares.append(float((judge(x).argmax(1) == 3).double().mean()))
    assert shares[0] < 0.2 and shares[1] > 0.3 and shares[2] > 0.7
