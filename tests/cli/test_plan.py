"""What commands say before they begin: dry runs check and write as much as their commands would, and nothing."""

import re

import pytest
import torch

from scoresde import VE, VP, Ancestral, Flow, Langevin, UniPC, grid, ode
from scoresde.cli import Parser, batches, main
from scoresde.cli.options import COMMANDS
from scoresde.cli.plan import calls_of, duration, weighs
from scoresde.guide import classifier_free
from scoresde.steps import MALA, EDMHeun

SMALL = ("--steps", "20", "--warmup", "5", "--net", "MLP(width=16, depth=1)", "--views", "0")
LINES = {
    "train": "Ring(n=150) --steps 50 --warmup 5 --net MLP(width=16,depth=1) --views 0",
    "sample": "RING --n 30 --steps 7 --step UniPC(3)",
    "likelihood": "RING --data Ring(n=150) --n 5 --method Adams(12) --terms 1",
    "tune": "--nfe 3 --pilots 8 --law Modes(3)",
    "evaluate": "SAMPLES Ring(n=150)",
    "compare": "--law Modes(3) --nfe 4 --n 20",
    "bench": "--only DDIM --nfe 3 --n 4 --n-sde 8 --problems modes",
    "inpaint": "digits-vp --images 2 --n 2 --steps 5",
    "superres": "digits-vp --images 2 --n 2 --steps 5",
}
ALSO = {"bench, inverse": "bench --inverse --problems upper-half --only DPS --nfe 5 --n 10"}


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ring")
    assert main(["train", "Ring(n=150)", *SMALL, "--out", str(folder / "model")]) == 0
    assert main(["sample", str(folder / "model"), "--n", "20", "--steps", "3", "--out", str(folder / "samples")]) == 0
    return folder


def words(ring, name, out):
    line = ALSO.get(name) or f"{name} {LINES[name]}"
    places = {"RING": str(ring / "model"), "SAMPLES": str(ring / "samples")}
    return [*(places.get(word, word) for word in line.split()), "--out", str(out)]


def contents(folder):
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("name", [*LINES, *ALSO])
def test_a_dry_run_writes_nothing(capsys, tmp_path, ring, name):
    """It exits with 0, says where results would go, and leaves no file and no folder."""
    before = contents(ring)
    assert main([*words(ring, name, tmp_path / "new" / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("\na dry run: nothing was written\n") and str(tmp_path / "new" / "out") in said
    assert not list(tmp_path.iterdir()) and contents(ring) == before


def test_what_takes_long_has_one():
    """All that take long, and the options of none are other than those of its dry run."""
    has = {name for name in COMMANDS if any(a.dest == "dry_run" for a in Parser(name)._actions)}
    assert has == {*LINES, "colorize"}


@pytest.mark.parametrize("name", ["sample", "likelihood", "compare", "tune", "train", "evaluate"])
def test_a_dry_run_finds_what_the_run_would(capsys, tmp_path, ring, name):
    """Results of another recipe, files of others and a file in the place of a folder are refused in the same words."""
    out = tmp_path / "out"
    args = words(ring, name, out)
    if name in ("tune", "evaluate"):
        out.write_text("{}")
    else:
        out.mkdir()
        (out / ("weights.txt" if name != "train" else "manifest.json")).write_text("{}")
    before = contents(tmp_path)
    said = []
    for more in ([], ["--dry-run"]):
        assert main([*args, *more]) == 2
        said.append(capsys.readouterr().err.splitlines()[-1])
    assert said[0] == said[1]
    assert {f: c for f, c in contents(tmp_path).items() if not f.name.startswith(".")} == before


WRONG = {
    "seed": "sample RING --n 5 --seed 1 --steps 7 --step UniPC(3)",
    "step": "sample RING --step Ancestral --eta 2",
    "guidance": "sample RING --guidance 2",
    "accumulate": "train Ring(n=150) --accumulate 5",
    "batch": "train Ring(n=150) --flips",
    "trace": "likelihood RING --data Ring(n=150) --trace Hadamard(3)",
    "solver": "bench --only Nothing",
    "keep": "inpaint digits-vp --keep nothing",
}


@pytest.mark.parametrize("case", WRONG)
def test_a_dry_run_refuses_what_the_run_refuses(capsys, tmp_path, ring, case):
    """Whatever is wrong is said in the same line, with status 2."""
    out = tmp_path / "out"
    if case == "seed":
        assert main(words(ring, "sample", out)) == 0
    args = [str(ring / "model") if word == "RING" else word for word in WRONG[case].split()]
    capsys.readouterr()
    said = []
    for more in ([], ["--dry-run"]):
        assert main([*args, "--out", str(out), *more]) == 2
        said.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("scoresde: ")])
    assert said[0] == said[1] and len(said[0]) == 1


def test_a_dry_run_of_what_is_there(capsys, tmp_path, ring):
    """Says how many samples a folder holds, and how many steps of a training are done."""
    args = words(ring, "sample", tmp_path / "out")
    assert main(args) == 0 and main([*args, "--n", "44", "--dry-run"]) == 0
    assert "44 samples of 2 into" in (said := capsys.readouterr().out) and "out, which holds 30: 1 batches" in said
    line = ["train", "Ring(n=150)", *SMALL, "--out", str(ring / "model"), "--dry-run"]
    before = contents(ring)
    assert main(["--steps" if k == "--steps" else k for k in line]) == 0
    assert ", where 20 steps are done\n0 steps of" in capsys.readouterr().out
    line[line.index("--steps") + 1] = "70"
    assert main(line) == 0
    assert "\n50 steps of" in capsys.readouterr().out and contents(ring) == before


@pytest.mark.parametrize(
    "more",
    ["--step UniPC(3)", "--step Ancestral --eta 1 --grid uniform", "--step EDMHeun", "--step Langevin --step UniPC(2)",
     "--sde VE(sigma_min=0.02,sigma_max=20) --step Flow(Heun())", "", "--no-denoise",
     "--temperature 0.7"],
)  # fmt: skip
def test_the_calls_that_are_told_are_made(capsys, tmp_path, ring, more):
    """A dry run says as many network calls as the run then makes for a sample."""
    args = ["sample", str(ring / "model"), "--n", "5", "--steps", "6", *more.split(), "--out", str(tmp_path)]
    assert main([*args, "--dry-run"]) == 0
    told = re.search(r"\n(\d+) network calls a sample, ", capsys.readouterr().out)[1]
    assert main(args) == 0
    assert re.search(r": (\d+) network calls a sample ", capsys.readouterr().out)[1] == told


@pytest.mark.parametrize("method", ["DPS", "Replacement(times=4)", "DAPS(calls=3)", "mmps", "DDRM"])
def test_the_calls_of_inverse_problems(capsys, tmp_path, method):
    """They are those of the method, which may ask many times a step."""
    args = ["inpaint", "digits-vp", "--images", "1", "--n", "2", "--steps", "3", "--method", method]
    assert main([*args, "--out", str(tmp_path), "--dry-run"]) == 0
    told = re.search(r", (\d+) network calls a sample, ", capsys.readouterr().out)[1]
    assert main([*args, "--out", str(tmp_path)]) == 0
    assert re.search(r": (\d+) network calls a sample ", capsys.readouterr().out)[1] == told


def test_calls_of():
    """They are those of guidance too; steps that choose their sizes, or need more than a score, have none."""
    ts, sde = grid.log_snr(VP(), 8), VP()

    def make(score):
        return sde.reverse(score, 0.0)

    def guided(score):
        said = classifier_free(score, 3.0)
        return sde.reverse(lambda x, t: said(x, t, label=torch.zeros(len(x), dtype=torch.long)), 0.0)

    assert calls_of(make, sde, (2,), ts, UniPC(2)) == 9 and calls_of(make, sde, (2,), ts, EDMHeun()) == 17

    def between(score):
        said = classifier_free(score, 3.0, low=0.0, high=1.0)
        return sde.reverse(lambda x, t: said(x, t, label=torch.zeros(len(x), dtype=torch.long)), 0.0)

    def asking(score):
        score(torch.zeros(1, 2), torch.tensor(0.5))
        return make(score)

    assert calls_of(guided, sde, (2,), ts, UniPC(2), denoise=False) == 16
    near = int((sde.log_snr(ts[:-1]) >= 0).sum())
    assert 0 < near < 8 and calls_of(between, sde, (2,), ts, UniPC(2), denoise=False) == 8 + near
    assert calls_of(asking, sde, (2,), ts, UniPC(2), denoise=False) == 8
    assert calls_of(make, sde, (2,), ts, Flow(ode.Dopri5())) == 0
    assert calls_of(lambda score: sde.reverse(score), sde, (2,), ts, MALA()) == 0
    noisy = lambda score: VE().reverse(score)  # noqa: E731
    assert calls_of(noisy, VE(), (1, 4, 4), grid.log_snr(VE(), 8), Langevin(), Ancestral()) == 17


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.3, "less than a second"), (12.34, "about 12 s"), (99, "about 99 s"), (300, "about 5 min"),
     (7200, "about 2 h"), (86400 * 9, "about 9 days")],
)  # fmt: skip
def test_durations(seconds, said):
    """Two digits, in the unit that they fit."""
    assert duration(seconds) == said and weighs(3 << 20) == "3 MiB"


def test_the_time_that_is_left_is_told(capsys, monkeypatch, tmp_path, ring):
    """By the first three calls, once, where all take ten seconds: here a clock goes on by half a second a call."""
    clock = iter(range(10_000))
    monkeypatch.setattr(batches, "monotonic", lambda: next(clock) / 2)
    args = ["sample", str(ring / "model"), "--n", "9", "--batch", "3", "--steps", "11", "--step", "UniPC(2)"]
    assert main([*args, "--out", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().err.count("sample will take about 18 s, by the first calls\n") == 1
    assert main([*args[:-4], "--steps", "4", "--step", "UniPC(2)", "--out", str(tmp_path / "b")]) == 0
    assert "will take" not in capsys.readouterr().err
