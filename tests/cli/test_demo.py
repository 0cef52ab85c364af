"""The demo does what its report says, and goes on where it was interrupted."""

import dataclasses
import functools
import json
import math
import re
import shlex
import signal
from html.parser import HTMLParser

import pytest
import torch

from scoresde import VP
from scoresde.checkpoint import load
from scoresde.cli import Parser, demo, main
from scoresde.cli.parts import read, read_data, read_grid
from scoresde.data import Digits, Source
from scoresde.lab import report, tour
from scoresde.lab.metrics import nearest
from scoresde.model import Counted
from scoresde.steps import Step
from scoresde.training import Settings

SAMPLERS = {"DDPM ancestral", "Predictor-corrector", "Annealed Langevin", "Probability-flow ODE"}
FILES = {"recipe.json", "results.json", "report.md", "report.html", "samples.png", "path.png"}


class Loaded(HTMLParser):
    """Everything that a browser would fetch for a page."""

    def __init__(self, text):
        super().__init__()
        self.sources = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert tag not in ("link", "iframe")  # the one script, which sorts tables, has no source
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset")]


def self_contained(html):
    sources = Loaded(html).sources
    return len(sources) == 2 and all(source.startswith("data:image/png;base64,") for source in sources)


def results(out):
    """What was measured, without how long it took."""
    found = json.loads((out / "results.json").read_text())
    found.pop("seconds")
    for row in found["samplers"].values():
        row.pop("seconds")
    return found


@functools.cache
def digits():
    return Digits().load()


@dataclasses.dataclass(frozen=True)
class Few(Source):
    """A few of the digits."""

    def load(self):
        data = digits()
        few = {name: getattr(data, name)[:30] for name in ("held_out", "held_out_labels")}
        return dataclasses.replace(data, train=data.train[:90], train_labels=data.train_labels[:90], **few)


@pytest.fixture
def small(monkeypatch):
    """The demo on 120 digits, with short grids and few samples; all else as it is."""
    real = demo.samplers
    short = lambda own: tuple(dataclasses.replace(s, n=3, samples=20) for s in real(own))  # noqa: E731
    for module in (demo, tour):
        monkeypatch.setattr(module, "samplers", short)
    monkeypatch.setattr(demo, "Digits", Few)


def run(out, steps=20):
    return main(["demo", "--steps", str(steps), "--seed", "3", "--out", str(out)])


def test_demo_goes_on(monkeypatch, capsys, tmp_path, small):
    """Interrupted in training and again before the report, the demo ends with the same results; the training is
    not done again; and seed and steps are in what it says would repeat it.
    """
    monkeypatch.setattr(report, "path_picture", lambda _, file: file.write_bytes(b"drawn in the other test"))
    assert run(tmp_path / "whole") == 0
    want, out, trained = results(tmp_path / "whole"), tmp_path / "broken", load(tmp_path / "whole" / "model").digest

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    rate = Settings.ema_rate
    at_10 = lambda self, step: (step == 10 and signal.raise_signal(signal.SIGINT)) or rate(self, step)  # noqa: E731
    for owner, name, stop in (
        (Settings, "ema_rate", at_10),
        (report.Report, "write", interrupt),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stop)
            assert run(out) == 130
        assert not (out / "report.html").exists()
    monkeypatch.setattr(Settings, "ema_rate", interrupt)  # no step is left to take
    assert run(out) == 0
    assert results(out) == want
    assert load(out / "model").digest == trained
    assert {f.name for f in out.glob("[!.]*") if f.is_file()} == FILES
    html = (out / "report.html").read_text()
    assert self_contained(html) and f"scoresde demo --seed 3 --steps 20 --out {out}" in html
    capsys.readouterr()
    assert run(out, steps=19) == 2
    assert "scoresde: steps must be as in" in capsys.readouterr().err
    assert results(out) == want


def test_demo_reports_what_it_measured(monkeypatch, tmp_path, small):
    """Network calls are those made; bits/dim are means over their images with their standard error; distances to the
    nearest training digit are those of the samples of the last row; the report has the numbers of results.json, and
    says what each sampler was.
    """
    drawn, made, bits = [], [], []
    draw, call, of = tour.draw, Counted.__call__, demo.Bits.of

    def counting(self, *args, **kwargs):
        made.append(self)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Counted, "__call__", counting)
    monkeypatch.setattr(tour, "draw", lambda *a, **k: drawn.append((draw(*a, **k), len(made))) or drawn[-1][0])
    monkeypatch.setattr(demo.Bits, "of", lambda values, nfe=0: bits.append(values) or of(values, nfe))
    assert run(tmp_path) == 0
    found = results(tmp_path)
    assert set(found["samplers"]) == SAMPLERS
    ends = [0, *(end for _, end in drawn)]
    assert [row["nfe"] for row in found["samplers"].values()] == [b - a for a, b in zip(ends, ends[1:])]
    assert len(bits) == len(found["bits_per_dim"]) == 3
    for values, row in zip(bits, found["bits_per_dim"].values()):
        assert row["images"] == len(values) == 30
        assert row["mean"] == pytest.approx(float(values.mean()), rel=1e-6)
        assert row["error"] == pytest.approx(float(values.std()) / math.sqrt(30), rel=1e-6)
    data = Few().load()
    assert found["nearest_training_digit"] == pytest.approx(
        float(nearest(drawn[-1][0], data.train)[0].mean()), rel=1e-6
    )
    held = float(nearest(data.held_out, data.train)[0].mean())
    assert found["nearest_training_digit_of_held_out"] == pytest.approx(held, rel=1e-6)
    text = (tmp_path / "report.md").read_text()
    for name, row in found["samplers"].items():
        cells = [cell.strip() for cell in re.search(rf"^\| {name} \|(.*)\|$", text, re.M)[1].split("|")]
        assert cells[0] == str(row["nfe"]) and cells[-1] == f"{row['frechet']:.2f}"
    for row in found["bits_per_dim"].values():
        assert f"| {row['mean']:.3f} +- {row['error']:.3f} | 30 | {row['nfe']} |" in text
    for key in ("nearest_training_digit", "nearest_training_digit_of_held_out"):
        assert f"{found[key]:.2f}" in text
    said = " ".join(text.split())
    assert "the mean over 3 sets of training digits" in said and "| training digits |  | 30 |" in text
    assert "samplers do not have equally many network calls" in said
    assert f"The first {min(demo.SHOWN, 20)} samples of each sampler" in said and "not copies" not in said
    held, known, gauss = (row["mean"] for row in found["bits_per_dim"].values())
    assert (
        f"training and held-out digits is {held - known:.3f}; the fitted Gaussian is {gauss - held:.2f} worse" in text
    )
    for s in demo.samplers(VP()):
        assert f"| {s.name} | {s.sde!r}, eta={s.eta:g} | {s.spacing.__name__}, {s.n} steps | {s.steps!r} |" in text
    html = (tmp_path / "report.html").read_text()
    assert [html.count(f"<{tag}>") for tag in ("table", "figure", "h2", "pre")] == [3, 2, 4, 1]
    commands_can_be_typed(text, tmp_path)


def commands_can_be_typed(text, out):
    """What the report says to go on with are commands that are taken, on its own checkpoint; the first repeats it."""
    (said,) = re.findall(r"^```\n(.*?)\n```$", text, re.M | re.S)
    first, *others = [shlex.split(line) for line in said.split("\n")]
    assert first == ["scoresde", "demo", "--seed", "3", "--steps", "20", "--out", str(out)]
    assert [line[:2] for line in others] == [["scoresde", name] for name in ("sample",) * 3 + ("likelihood", "train")]
    for _, name, *args in others:
        o = Parser(name).parse_args(args)
        assert name == "train" or o.model == out / "model"
        if name == "sample":
            assert all(isinstance(read("step", step, Step), Step) for step in o.step)
            assert len(read_grid(o.grid or "uniform")(VP(), 5, None)) == 6
    assert isinstance(read_data(o.data), Source)


def test_threads_are_given_back():
    """The demo computes with one thread, and leaves the number that was there, also after an error."""
    before = torch.get_num_threads()
    with demo.threads(2):
        assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), demo.threads(2):
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_demo(tmp_path):
    """The demo as it is: a model that has learned digits (held-out bits/dim) and not by heart (the gap to training),
    samples at most 1.5 times as far from held-out digits as real ones, and no copies; a second run trains nothing.
    """
    assert main(["demo", "--out", str(tmp_path)]) == 0
    found = results(tmp_path)
    bits = found["bits_per_dim"]
    held, train = bits["held-out digits"]["mean"], bits["training digits"]["mean"]
    assert held <= 2.0 and abs(held - train) < 0.15
    assert held + 0.5 < bits["held-out digits under the Gaussian fitted to the training digits"]["mean"]
    assert found["samplers"]["Probability-flow ODE"]["frechet"] <= 1.5 * found["frechet_of_training_digits"]
    assert found["classifier_accuracy"] > 0.93
    assert found["nearest_training_digit"] > 0.8 * found["nearest_training_digit_of_held_out"]
    nfe = {name: row["nfe"] for name, row in found["samplers"].items()}
    by_formula = [100 + 1, 2 * 60 + 1, 5 * (39 + 1) + 1, 2 * 16 + 1]  # the last call denoises
    assert list(nfe.values()) == by_formula and set(nfe) == SAMPLERS
    assert {f.name for f in tmp_path.glob("[!.]*") if f.is_file()} == FILES
    assert self_contained((tmp_path / "report.html").read_text())
    weights = {f: f.read_bytes() for f in (tmp_path / "model").glob("weights-*")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "ema_rate", None)  # no step can be taken
        assert main(["demo", "--out", str(tmp_path)]) == 0
    assert results(tmp_path) == found
    assert weights == {f: f.read_bytes() for f in (tmp_path / "model").glob("weights-*")}
