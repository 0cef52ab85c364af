"""`scoresde evaluate`: what is printed and written is `lab.quality` of the samples, in units that the data have."""

import json
import re
import sys

import numpy as np
import pytest
import torch

from scoresde import iid
from scoresde.cli import Parser, evaluate, main
from scoresde.data import Digits, Ring
from scoresde.lab import Classifier, quality
from scoresde.units import Units

F64 = torch.float64


def written(folder, x, name="x.npy"):
    np.save(folder / name, np.asarray(x))
    return str(folder / name)


def rows(out):
    return json.loads(out.read_text())["quality"]


def same(found, want):
    for row, of in zip(found, want, strict=True):
        assert row["name"] == of.name and row["value"] == pytest.approx(of.value, rel=1e-6, abs=1e-8)
        assert row["error"] == pytest.approx(of.error, rel=1e-5, abs=1e-8)
        assert (row["train"] is None) == np.isnan(of.train)


def test_points(tmp_path, capsys):
    """Of a toy, in units of its training data: fresh points are as good as these, shifted ones are not."""
    data, out = Ring(n=400).load(), tmp_path / "q.json"
    fresh = Ring(n=400, seed=5).load().train
    assert main(["evaluate", written(tmp_path, fresh), "Ring(n=400)", "--out", str(out)]) == 0
    units = Units.fit(data.train)
    same(rows(out), quality(*(units.standardise(x) for x in (fresh, data.train, data.held_out))))
    said = capsys.readouterr().out
    assert "320 samples against 80 held out of Ring(" in said and "features: the numbers themselves" in said
    assert said.count("+-") == 2 * len(rows(out)) - 1  # copies have no training data beside them
    near = {row["name"]: row for row in rows(out)}
    shifted = written(tmp_path, fresh + 0.5)
    assert main(["evaluate", shifted, "Ring(n=400)", "--out", str(out), "--n", "200"]) == 0
    for row in rows(out):
        if row["name"] in ("frechet", "energy distance", "sliced Wasserstein"):
            assert row["value"] > near[row["name"]]["value"] + 5 * row["error"]


def test_images_with_labels(tmp_path):
    """In features of a classifier that was fitted to the training images; and from the folder of `scoresde sample`."""
    data, out = Digits().load(), tmp_path / "q.json"
    x = data.quantized.dequantize(data.train[:60], iid(torch.Generator().manual_seed(0)))
    folder = tmp_path / "samples"
    folder.mkdir()
    written(folder, x, "samples.npy")
    assert main(["evaluate", str(folder), "digits", "--out", str(out), "--seed", "2"]) == 0
    features = Classifier.fit(data.train, data.train_labels, 2).features
    same(rows(out), quality(x, data.train, data.held_out, features, 2))
    assert "classifier" in json.loads(out.read_text())["features"]


def test_features_of_ones_own(tmp_path, monkeypatch):
    """A function of images, named as other parts are, is what distances are of, a few samples at a time; its code is
    known by its digest, and what makes no rows is refused.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_here.py").write_text(
        "sizes = []\ndef half(x):\n    sizes.append(len(x))\n    return x.flatten(1)[:, ::2]\n"
        "def one(x):\n    return x.sum()\n"
    )
    data, out = Digits().load(), tmp_path / "q.json"
    samples = written(tmp_path, data.values(data.train[:600]))
    assert main(["evaluate", samples, "digits", "--features", "mine_here:half", "--out", str(out)]) == 0
    x, train, held = (data.values(part) for part in (data.train[:600], data.train, data.held_out))
    same(rows(out), quality(x, train, held, lambda x: x.flatten(1)[:, ::2], 0))
    said = json.loads(out.read_text())
    assert said["features"] == "mine_here:half" and list(said["code"]) == ["mine_here"]
    assert max(sys.modules["mine_here"].sizes) == 256
    for text, says in (
        ("mine_here:one", "features must be like .*it must make floating-point rows of"),
        ("inception", "features must be classifier, numbers or"),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate.run(
                Parser("evaluate").parse_args(
                    [samples, "digits", "--features", text, "--out", str(tmp_path / "r.json")]
                )
            )


def test_a_table_in_its_own_units(tmp_path):
    """Samples are compared with the data as they came, however those are stored."""
    a = 1e6 + 100 * np.random.RandomState(0).randn(300, 2)
    source = written(tmp_path, a, "data.npy")
    out, samples = tmp_path / "q.json", written(tmp_path, 1e6 + 100 * np.random.RandomState(1).randn(100, 2))
    assert main(["evaluate", samples, source, "--out", str(out)]) == 0
    found = {row["name"]: row for row in rows(out)}
    assert found["frechet"]["value"] < 0.3 and found["coverage"]["value"] > 0.8


@pytest.mark.parametrize(
    "change, says",
    [
        ({"samples": "none.npy"}, "samples must be a .npy file, or the folder of `scoresde sample`, got"),
        ({"samples": "text.npy"}, "cannot be read as samples"),
        ({"samples": "wide.npy"}, r"samples must be numbers of shape \(n, \*\(2,\)\), got torch.float64 of \(20, 3\)"),
        ({"--n": "5"}, "n must be a whole number >= 12"),
        ({"--n": "50"}, "<= 20"),
        (
            {"--features": "inception"},
            "features must be classifier, numbers or package.module:function, got 'inception'",
        ),
        ({"--features": "classifier"}, "features must be numbers unless the data are images with labels"),
        ({"--out": "other.json"}, "out must be new, or a table of this command"),
        ({"--out": "."}, "out must be a file to write"),
    ],
    ids=str,
)
def test_bad_input(tmp_path, monkeypatch, capsys, change, says):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, np.random.RandomState(0).randn(20, 2))
    written(tmp_path, np.zeros((20, 3)), "wide.npy")
    (tmp_path / "text.npy").write_text("words")
    (tmp_path / "other.json").write_text("[1]")
    options = {"--out": "q.json"} | {k: v for k, v in change.items() if k != "samples"}
    args = [
        "evaluate",
        change.get("samples", "x.npy"),
        "Ring(n=100)",
        *(word for pair in options.items() for word in pair),
    ]
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert not out and re.search(says, err) and err.count("\n") == 1
    assert (tmp_path / "other.json").read_text() == "[1]" and not (tmp_path / "q.json").exists()
