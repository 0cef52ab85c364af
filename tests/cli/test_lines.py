"""Whatever is typed, a command ends in a result or in one line that names what was wrong with it."""

import json
import math
import signal
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde.cli import main

LINES, SECONDS = 300, 120

ODD = [
    "0", "-1", "1e23", "1e-320", "1e200", "nan", "inf", "-inf", "1j", "None", "True", "x", "", " ", "()", "[1]", "\\",
    "é", "100000000000000000000000000", "-100000000000000000000000000", "9223372036854775808", "0x10", "1_0", "VP(",
    "VP()", "VP(beta_max=1e300)", "VE(1e200)", "EDM(T=1e999)", "no.module:Name", "os:system", "Ring(n=10**9)",
    "a" * 300,
    "(" * 200, "__import__('os')", "lambda: 0", "1e3.5", "/", "/dev/null", ".",
]  # fmt: skip
GOOD = {
    "train": (["Ring(n=50)"], {
        "--steps": "2", "--batch": "4", "--sde": "ve", "--net": "MLP(width=8)", "--weight": "MinSNR(5)", "--lr": "0.01",
        "--times": "UniformTime", "--warmup": "1", "--decay": "0.1", "--beta2": "0.9", "--clip": "1", "--ema": "0.1",
        "--label-dropout": "0.1", "--weight-decay": "0.1", "--accumulate": "2", "--precision": "float16",
        "--views": "1", "--recipe": "mnist-ve", "--save-every": "5", "--seed": "1", "--device": "cpu"}),
    "sample": (["MODEL"], {
        "--n": "3", "--step": "UniPC(3)", "--steps": "3", "--grid": "karras(rho=5)", "--end": "0.01", "--eta": "0",
        "--sde": "VP()", "--batch": "2", "--seed": "1", "--device": "cpu"}),
    "likelihood": (["MODEL"], {
        "--n": "2", "--method": "Adams(12)", "--trace": "Hutchinson(1)", "--terms": "1", "--chain": "10",
        "--batch": "2", "--draws": "1", "--seed": "1", "--data": "Ring(n=50)"}),
    "compare": ([], {"--nfe": "4", "--n": "8", "--r": "0.1", "--corrections": "1", "--seed": "1", "--eta": "1",
                     "--batch": "8", "--law": "Modes(3)"}),
    "bench": (["--only", "DDIM"], {"--nfe": "3", "--n": "4", "--seed": "1", "--sde": "edm", "--eta": "0"}),
    "tune": ([], {"--nfe": "2", "--pilots": "8", "--seed": "1", "--sde": "edm", "--law": "Modes(3)"}),
}  # fmt: skip
SLOW = {"compare", "tune", "bench"}  # what is right would take seconds: there something is always wrong


@st.composite
def lines(draw):
    """A command line of which at most two values are odd."""
    command = draw(st.sampled_from(sorted(GOOD)))
    places, options = GOOD[command]
    least = 1 if command in SLOW else 0
    odd = draw(st.lists(st.sampled_from(sorted(options)), min_size=least, max_size=2, unique=True))
    told = {k: options[k] for k in options if k in odd or command not in ("sample",) or k in ("--n", "--steps")}
    return [command, *places, *(f"{k}={draw(st.sampled_from(ODD)) if k in odd else v}" for k, v in told.items())]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines") / "model"
    line = ["train", "Ring(n=50)", "--steps", "2", "--batch", "4", "--net", "MLP(width=8)", "--out", str(folder)]
    assert main(line) == 0
    return folder


def late(number, frame):
    raise AssertionError(f"the command did not end in {SECONDS} s")


def finite(folder):
    """Whether all samples and rows in a folder are."""
    arrays = [np.load(f) for f in folder.rglob("*.npy")]
    rows = [json.loads(line) for f in folder.glob("*.jsonl") for line in f.read_text().splitlines()]
    numbers = [v for row in rows for k, v in row.items() if isinstance(v, float) and k != "seconds"]
    return all(np.isfinite(a).all() for a in arrays) and all(map(math.isfinite, numbers))


@pytest.mark.slow
def test_lines(model, tmp_path_factory, monkeypatch, capsys):
    """300 lines, the same each time: never a traceback, never longer than a moment, never an error of more than a line,
    and never a result that is not finite without a word.
    """
    told = Counter()
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))

    @settings(max_examples=LINES, derandomize=True, deadline=None, database=None)
    @given(lines())
    def each(line):
        out = tmp_path_factory.mktemp("out") / "r"
        line = [str(model) if word == "MODEL" else word for word in line]
        before = signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
        try:
            status = main([*line, "--out", str(out)])
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        said = [
            text for text in capsys.readouterr().err.replace("\r", "\n").splitlines() if text.startswith("scoresde:")
        ]
        said = [text for text in said if not text.startswith("scoresde: warning:")]
        assert status in (0, 1, 2), line
        assert len(said) == (status == 2), (line, said)
        if status == 0 and out.is_dir():
            assert finite(out), line
        if status == 2:
            assert not any(
                word in said[0] for word in ("Traceback", "object is not", "has no attribute", "NoneType")
            ), said
        told[line[0], status] += 1

    each()
    with capsys.disabled():
        print(f"\n{sum(told.values())} lines (derandomized): {dict(sorted(told.items()))}")
