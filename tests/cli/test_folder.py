"""Whose files they are, what they are of, and who is writing them."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from made import one_line

from scoresde import VE, VP, Counted, ScoreModel
from scoresde.checkpoint import Checkpoint, load, save
from scoresde.cli import main
from scoresde.cli.common import measured
from scoresde.cli.folder import JOURNAL, LEDGER, Folder, Journal, opened
from scoresde.data import Array, Images
from scoresde.files import alone
from scoresde.guide import combined
from scoresde.lab import Modes, Target, exact_subject
from scoresde.nn import MLP

TRAIN = ("--steps", "5", "--batch", "8", "--net", "MLP(width=8, depth=1)")


def table(file, seed=0):
    """A table of 60 rows in the plane."""
    np.save(file, np.random.RandomState(seed).randn(60, 2).astype(np.float32))
    return str(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network on a table."""
    home = tmp_path_factory.mktemp("mine")
    assert main(["train", table(home / "x.npy"), *TRAIN, "--out", str(home / "model")]) == 0
    return home / "model"


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def other(folder, sde=VP(), seed=1):
    """Another model in a folder."""
    torch.manual_seed(seed)
    save(folder, Checkpoint(ScoreModel(MLP((2,), 8, 1), sde), (2,)))


def commands(model, data):
    small = ("--n", "4")
    return {
        "sample": ["sample", str(model), *small, "--steps", "3"],
        "likelihood": ["likelihood", str(model), "--data", data, *small, "--terms", "0"],
        "compare": ["compare", str(model), "--data", data, *small, "--nfe", "3"],
        "bench": ["bench", "--model", str(model), "--data", data, *small, "--only", "DDIM", "--nfe", "3"],
    }


# what results are of


def test_a_file_in_the_place_of_a_folder(capsys, tmp_path):
    """One line says so, of a run as of a dry run, and the file stays."""
    file = tmp_path / "taken"
    file.write_text("mine")
    for more in ([], ["--dry-run"]):
        assert main(["sample", "digits-vp", "--n", "1", "--steps", "2", "--out", str(file), *more]) == 2
        assert capsys.readouterr().err == f"scoresde: out must be a folder, and {file} is a file\n"
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", ["sample", "likelihood", "compare", "bench"])
def test_another_model_in_the_same_place(capsys, tmp_path, name):
    """Where another model lies at the same path, also one with the same weights and another process, results of the
    first are not gone on with.
    """
    data = table(tmp_path / "x.npy")
    other(tmp_path / "m")
    line = [*commands(tmp_path / "m", data)[name], "--out", str(tmp_path / "out")]
    assert main(line) == 0
    before = contents(tmp_path / "out")
    for change in ({"seed": 2}, {"sde": VE(0.01, 20.0)}):
        other(tmp_path / "m", **change)
        capsys.readouterr()
        assert main(line) == 2
        said = one_line(capsys)
        assert any(f"out holds results with {key} = " in said for key in ("model", "subject", "sde"))
        assert contents(tmp_path / "out") == before
    other(tmp_path / "m")
    assert main(line) == 0


@pytest.mark.parametrize("name", ["likelihood", "compare", "bench"])
def test_other_data_under_the_same_name(capsys, tmp_path, model, name):
    """An array whose numbers have changed is other data, and one that was moved is the same."""
    data = table(tmp_path / "x.npy")
    line = [*commands(model, data)[name], "--out", str(tmp_path / "out")]
    assert main(line) == 0
    table(tmp_path / "x.npy", seed=5)
    capsys.readouterr()
    assert main(line) == 2
    assert "out holds results with data = " in one_line(capsys)
    moved = table(tmp_path / "moved.npy")
    assert main([moved if word == data else word for word in line]) == 0


def test_code_of_ones_own_that_changed(tmp_path):
    """The module of a step of one's own is told by its content; steps of other modules may join."""
    text = "from scoresde import Ancestral\n\nclass {}(Ancestral):\n    'A step of my own.'\n"
    (tmp_path / "mine.py").write_text(text.format("Mine"))
    (tmp_path / "more.py").write_text(text.format("More"))

    def run(*steps):
        line = [
            sys.executable,
            "-m",
            "scoresde",
            "bench",
            "--problems",
            "modes",
            "--nfe",
            "3",
            "--n",
            "4",
            "--out",
            "out",
        ]
        told = [word for step in steps for word in ("--step", step)]
        names = [step.split(":")[1] for step in steps]
        return subprocess.run([*line, *told, "--only", *names], cwd=tmp_path, capture_output=True, text=True)

    assert run("mine:Mine").returncode == 0
    assert run("mine:Mine", "more:More").returncode == 0
    (tmp_path / "mine.py").write_text(text.format("Mine") + "    order = 1\n")
    done = run("mine:Mine")
    assert done.returncode == 2 and "out holds results with code = " in done.stderr.splitlines()[-1]


# what is taken for a result


@pytest.mark.parametrize("name", ["samples.npy", "part-00000000-00000004.npy", "results.jsonl", "truth-modes-vp.npy"])
def test_files_without_a_recipe(capsys, tmp_path, name):
    """Files that lie in a folder are nobody's results: the folder is refused, and stays as it is."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"mine")
    other(tmp_path / "m")
    for line in (["sample", str(tmp_path / "m")], ["bench", "--problems", "modes"], ["compare"], ["demo"]):
        capsys.readouterr()
        assert main([*line, "--out", str(tmp_path / "out")]) == 2
        assert f"out must be new, or a folder of this command, but {tmp_path / 'out'} holds {name!r}" in one_line(
            capsys
        )
    assert {k: v for k, v in contents(tmp_path / "out").items() if k != ".lock"} == {name: b"mine"}


def test_a_recipe_that_was_removed_or_changed(capsys, tmp_path, model):
    """Without its recipe, or with one that was edited, a finished folder certifies nothing."""
    out = tmp_path / "out"
    line = ["sample", str(model), "--n", "4", "--steps", "3", "--out", str(out)]
    assert main(line) == 0
    recipe = (out / "recipe.json").read_text()
    (out / "recipe.json").write_text(recipe.replace('"seed": 0', '"seed": 5'))
    capsys.readouterr()
    assert main(line) == 2
    assert "recipe.json is damaged" in one_line(capsys)
    (out / "recipe.json").unlink()
    assert main(line) == 2
    assert "holds 'samples.npy' and no recipe.json" in one_line(capsys)
    (out / "recipe.json").write_text(recipe)
    assert main(line) == 0
    np.save(out / "samples.npy", np.zeros((4, 2), np.float32))
    capsys.readouterr()
    assert main(line) == 2
    assert "samples.npy is not what was written there" in one_line(capsys)


def test_rows_of_another_recipe(capsys, tmp_path):
    """Rows that were copied from another folder are refused, and rows that were deleted are made again."""
    line = ["likelihood", "--law", "modes", "--n", "6", "--terms", "0"]
    for seed in (0, 1):
        assert main([*line, "--seed", str(seed), "--out", str(tmp_path / str(seed))]) == 0
    file, foreign = (tmp_path / name / "likelihood.jsonl" for name in ("0", "1"))
    whole = file.read_bytes()
    file.write_bytes(foreign.read_bytes())
    capsys.readouterr()
    assert main([*line, "--out", str(tmp_path / "0")]) == 2
    assert "holds a row of another recipe in line 1" in one_line(capsys)
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[::2]))
    assert main([*line, "--out", str(tmp_path / "0")]) == 0
    rows, again = ([json.loads(row) for row in text.splitlines()] for text in (whole, file.read_bytes()))
    assert [row["index"] for row in again] == list(range(6)) and again[::2] == rows[::2]
    assert [row["log_p"] for row in again] == pytest.approx([row["log_p"] for row in rows], rel=1e-9)
    file.write_bytes(whole.replace(b'"index": 3', b'"index" 3'))
    capsys.readouterr()
    assert main([*line, "--out", str(tmp_path / "0")]) == 2
    assert "is damaged in line 4" in one_line(capsys)


def test_no_mean_over_a_part(capsys, monkeypatch, tmp_path):
    """Where rows are missing at the end no mean is printed, and the exit status says so."""
    real = Target.rows
    monkeypatch.setattr(Target, "rows", lambda target, index, seed: real(target, index, seed)[:-1])
    assert main(["likelihood", "--law", "modes", "--n", "6", "--terms", "0", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "only 5 of 6 samples have a row" in err and "nats/dim" not in out
    assert not (tmp_path / "summary.json").exists()


# who writes


@pytest.mark.parametrize("name", ["sample", "likelihood", "compare", "bench", "tune", "train", "demo"])
def test_one_writer(capsys, tmp_path, model, name):
    """A folder that another process writes into is refused in one line that names it, before anything is changed."""
    out = tmp_path / "out"
    lines = commands(model, str(model.with_name("x.npy")))
    line = lines.get(name) or ([name, "Ring(n=50)", *TRAIN] if name == "train" else [name])
    held = out.with_name(".out.work") if name == "tune" else out
    with alone(held):
        before = contents(tmp_path)
        assert main([*line, "--out", str(out)]) == 2
        assert f"{held} is being written by process {os.getpid()} on " in one_line(capsys)
        assert contents(tmp_path) == before


def test_a_process_that_ended_holds_nothing(tmp_path):
    """The lock of a process that was killed is stale, and taken over; what it says stays no longer than that."""
    code = "import os, sys; from pathlib import Path; from scoresde.files import alone\n"
    code += "with alone(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert json.loads((tmp_path / ".lock.json").read_text())["pid"] != os.getpid()
    with alone(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock.json").exists()


# what is ours


def test_files_of_others_are_not_written_over(capsys, tmp_path):
    """`tune` replaces a solver that was tuned, and no other file; no path at all is no path."""
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["tune", "--nfe", "2", "--pilots", "8", "--out", str(tmp_path / "thesis.txt")]) == 2
    assert "thesis.txt is damaged" in one_line(capsys) and (tmp_path / "thesis.txt").read_text() == "years of work"
    for line in (["sample", "m"], ["train", "digits"], ["tune"], ["bench"], ["demo"]):
        assert main([*line, "--out", ""]) == 2
        assert "--out: it must be a path, got nothing" in one_line(capsys)


# what a checkpoint reads


@pytest.mark.parametrize("source", [Images("/"), Array("gone.npy")], ids=lambda s: type(s).__name__)
def test_a_checkpoint_does_not_choose_what_is_read(capsys, monkeypatch, tmp_path, model, source):
    """Whatever source a checkpoint names, sampling and tuning need nothing but the checkpoint, and what needs data asks
    for them.
    """
    found = load(model)
    save(tmp_path / "m", Checkpoint(found.model, (2,), source=source))
    monkeypatch.setattr(type(source), "load", lambda self: pytest.fail("it was read"))
    assert main(["sample", str(tmp_path / "m"), "--n", "4", "--steps", "3", "--out", str(tmp_path / "s")]) == 0
    line = ["tune", str(tmp_path / "m"), "--nfe", "2", "--pilots", "8", "--out", str(tmp_path / "t.json")]
    assert main(line) == 0
    for line in (["likelihood", str(tmp_path / "m")], ["compare", str(tmp_path / "m")]):
        capsys.readouterr()
        assert main([*line, "--out", str(tmp_path / "out")]) == 2
        said = one_line(capsys)
        assert "data must be given, --data FILE or FOLDER: the checkpoint says it was trained on" in said
        assert type(source).__name__ in said
    assert main(["bench", "--model", str(tmp_path / "m"), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_data_of_another_model(capsys, tmp_path, model):
    """Data that the model cannot be of are refused: another shape, or another grid."""
    np.save(tmp_path / "wide.npy", np.random.RandomState(0).randn(30, 3).astype(np.float32))
    np.save(tmp_path / "grey.npy", np.random.RandomState(0).randint(0, 2, (30, 2)).astype(np.uint8))
    for name, said in (("wide", "data must have the model's shape"), ("grey", "data must lie on the model's grid")):
        line = ["likelihood", str(model), "--data", str(tmp_path / f"{name}.npy"), "--out", str(tmp_path / "out")]
        assert main(line) == 2
        assert said in one_line(capsys)


# answers that are kept


class Cut(BaseException):
    """The process ends here."""


def work(score, calls=20):
    """Answers that hang on one another, as those of a sampler do."""
    x = torch.arange(6.0).view(3, 2)
    for k in range(calls):
        x = x + 0.1 * score(x, torch.tensor(1 - k / calls, dtype=torch.float64))
    return x


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(Journal, "PATIENCE", -1.0)
    with opened(tmp_path / "out", {}, command="test") as found:
        yield found


def asked(stop=None):
    """A score, and its questions."""
    made = []

    def score(x, t):
        if stop is not None and len(made) == stop:
            raise Cut
        made.append(t)
        return (x * t.to(x)).sin()

    return score, made


@pytest.mark.parametrize("stop", [1, 7, 19])
@pytest.mark.parametrize("damage", ["none", "cut", "flipped"])
def test_work_that_was_cut_off_goes_on(folder, stop, damage):
    """What was answered is not asked again, and the end is the same to the bit; of a file that was cut or changed, what
    is no answer to the question is asked anew.
    """
    want = work(asked()[0])
    with pytest.raises(Cut):
        work(Journal(asked(stop)[0], folder).start("this"))
    file = folder.path / JOURNAL
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[: len(content) * 2 // 3])
    if damage == "flipped":
        content[content.index(b'"question"') + 20] ^= 1
        file.write_bytes(bytes(content))
    score, made = asked()
    journal = Journal(score, folder).start("this")
    assert torch.equal(work(journal), want)
    recalled = journal.recalled
    assert len(made) == 20 - recalled and (recalled == stop or damage != "none")
    assert np.isnan(journal.done({"seconds": 1.0})["seconds"]) == (recalled > 0)
    assert not file.exists()


@pytest.mark.parametrize("cut", [0, 3, 8])
def test_sets_of_real_samples_are_measured_once(folder, cut):
    """After `cut` of the 8 sets a run is cut off; the next one measures the others, and one after that none at all: it
    does not even ask for the subject.
    """
    subject, asked = exact_subject("x", Modes().law(), VP(), 20), []

    def measure(x):
        if len(asked) == cut and cut < 8:
            asked.append("cut off")
            raise KeyboardInterrupt
        asked.append(next(k for k, y in enumerate(subject.fresh) if y is x))
        return subject.measures["energy_distance"](x)

    here = replace(subject, measures={"energy_distance": measure})
    for k in range(2 if cut < 8 else 1):
        with pytest.raises(KeyboardInterrupt) if cut < 8 and not k else nullcontext():
            found = measured(folder, "here", lambda: here)
    assert [k for k in asked if k != "cut off"] == list(range(8))
    assert measured(folder, "here", lambda: pytest.fail("the subject was asked for")) == found
    assert found == [{"energy_distance": subject.measures["energy_distance"](x)} for x in subject.fresh]
    assert measured(folder, "another", lambda: subject) == [subject.measured(x) for x in subject.fresh]


def test_answers_to_other_work(folder):
    """They are not used."""
    with pytest.raises(Cut):
        work(Journal(asked(9)[0], folder).start("this"))
    score, made = asked()
    assert torch.equal(work(Journal(score, folder).start("that")), work(asked()[0])) and len(made) == 20


@pytest.mark.parametrize("stop", [4, 17])
def test_network_calls_of_a_score_that_makes_several(folder, stop):
    """All are counted once, kept answers and what follows them: 2 an answer here."""

    def twice(made):
        return combined((0.5, made[0]), (0.5, made[0])), made[1]

    with pytest.raises(Cut):
        work(Journal(twice(asked(stop))[0], folder).start("this"))
    score, made = twice(asked())
    counted = Counted(Journal(score, folder).start("this"))
    work(counted)
    assert counted.nfe == counted.f.calls == 40
    assert counted.f.recalled == 40 - len(made) == 2 * (stop // 2)


def test_a_question_that_is_another(folder):
    """From the first other question on, all is asked anew."""
    with pytest.raises(Cut):
        work(Journal(asked(9)[0], folder).start("this"))
    score, made = asked()
    journal = Journal(score, folder).start("this")
    x = torch.ones(3, 2)
    assert torch.equal(journal(x, torch.tensor(0.3)), asked()[0](x, torch.tensor(0.3))) and len(made) == 1


def test_short_work_keeps_nothing(tmp_path):
    """Work that takes no second writes no file, and its seconds stand."""
    with opened(tmp_path / "out", {}, command="test") as folder:
        journal = Journal(asked()[0], folder).start("this")
        work(journal)
        assert not (folder.path / JOURNAL).exists() and journal.done({"seconds": 0.5}) == {"seconds": 0.5}


def test_files_of_a_folder(tmp_path):
    """Kept files are read back, and others are none, whatever lies there."""
    with opened(tmp_path, {}, command="test") as folder:
        assert isinstance(folder, Folder) and folder.read("a") is None
        (tmp_path / "a").write_bytes(b"not entered")
        assert folder.read("a") is None
        folder.keep("a", b"entered")
        assert folder.read("a") == b"entered"
        assert folder.kept("a", lambda: pytest.fail("it is there")) == b"entered"
        folder.drop("a", "b")
        assert folder.read("a") is None and not (tmp_path / "a").exists()


# more of the same


@pytest.mark.parametrize("name", ["sample", "likelihood", "bench"])
def test_the_same_model_in_another_place(tmp_path, name):
    """A model that was moved is the same, and nothing is computed anew."""
    data = table(tmp_path / "x.npy")
    other(tmp_path / "m")
    line = [*commands(tmp_path / "m", data)[name], "--out", str(tmp_path / "out")]
    assert main(line) == 0
    file = tmp_path / "out" / {"sample": "samples.npy", "likelihood": "likelihood.jsonl"}.get(name, "results.jsonl")
    before = file.read_bytes()
    shutil.move(tmp_path / "m", tmp_path / "moved")
    assert main([str(tmp_path / "moved") if word == str(tmp_path / "m") else word for word in line]) == 0
    assert file.read_bytes() == before


@pytest.mark.parametrize("file", ["part-00000000-00000002.npy", "truth-modes-vp.npy", "samples"])
def test_bytes_that_were_changed(capsys, monkeypatch, tmp_path, file):
    """A part, a truth or samples that were changed after they were written are refused by name, and stay."""
    out = tmp_path / "out"
    other(tmp_path / "m")
    if file.startswith("part"):
        line = ["sample", str(tmp_path / "m"), "--n", "4", "--batch", "2", "--steps", "3"]
        real = Folder.keep

        def keep(self, name, content):
            if name.startswith("part-00000002"):
                raise KeyboardInterrupt
            real(self, name, content)

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "keep", keep)
            assert main([*line, "--out", str(out)]) == 130
        name = file
    elif file.startswith("truth"):
        line = ["bench", "--problems", "modes", "--n", "4", "--only", "DDIM", "--nfe", "3"]
        assert main([*line, "--out", str(out)]) == 0
        line += ["--nfe", "4"]
        name = "truth-modes-vp.npy"
    else:
        line = commands(tmp_path / "m", table(tmp_path / "x.npy"))["compare"]
        assert main([*line, "--out", str(out)]) == 0
        name = next(str(f.relative_to(out)) for f in sorted((out / "samples").glob("*.npy")))
    a = np.load(out / name)
    np.save(out / name, a + 1)
    before = (out / name).read_bytes()
    capsys.readouterr()
    assert main([*line, "--out", str(out)]) == 2
    assert f"{out / name} is not what was written there" in capsys.readouterr().err
    assert (out / name).read_bytes() == before


@pytest.mark.parametrize("name", ["likelihood", "bench"])
@pytest.mark.parametrize("made_by", [None, "0123456789abcdef"])
def test_rows_of_nobody(capsys, tmp_path, model, name, made_by):
    """A row without a recipe, or of another, is refused by name in every file of rows, and nothing is changed."""
    out = tmp_path / "out"
    line = [*commands(model, str(model.with_name("x.npy")))[name], "--out", str(out)]
    assert main(line) == 0
    for file in sorted(out.glob("*.jsonl")) + [out / LEDGER]:
        whole = file.read_bytes()
        if not whole:
            continue
        rows = [json.loads(text) for text in whole.splitlines()]
        del rows[-1]["recipe"]
        rows[-1] |= {} if made_by is None else {"recipe": made_by}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        before = contents(out)
        capsys.readouterr()
        assert main(line) == 2, file.name
        assert f"{file} holds a row of another recipe in line {len(rows)}" in capsys.readouterr().err
        assert contents(out) == before
        file.write_bytes(whole)
    assert main(line) == 0


@pytest.mark.parametrize("name", ["likelihood", "bench"])
def test_rows_that_were_edited(capsys, tmp_path, model, name):
    """A digit changed in a row that keeps its recipe, or a row without a seal, is refused by file and line."""
    out = tmp_path / "out"
    line = [*commands(model, str(model.with_name("x.npy")))[name], "--out", str(out)]
    assert main(line) == 0
    for file in sorted(out.glob("*.jsonl")) + [out / LEDGER]:
        whole = file.read_bytes()
        for k, row in enumerate(whole.splitlines(keepends=True), 1):
            body = row[: row.index(b', "recipe"')]
            digits = [i for i, c in enumerate(body) if 48 <= c < 58]
            swapped = [
                row[:i] + bytes([48 + (row[i] - 47) % 10]) + row[i + 1 :] for i in digits[:: len(digits) // 5 + 1]
            ]
            for other in (*swapped, row.replace(b'"seal"', b'"said"')):
                if json.loads(other) == json.loads(row):  # a last digit may be beyond what a float holds
                    continue
                file.write_bytes(whole.replace(row, other))
                assert main(line) == 2
                assert f"{file} is damaged in line {k}" in capsys.readouterr().err
        file.write_bytes(whole)
    assert main(line) == 0


@pytest.mark.slow
def test_two_processes(tmp_path):
    """The second on one folder is refused and told the first's pid; the first ends with all its rows."""
    out = tmp_path / "out"
    line = [sys.executable, "-m", "scoresde", "likelihood", "--law", "modes", "--n", "24", "--batch", "1",
            "--terms", "0", "--out", str(out)]  # fmt: skip
    first = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (out / "likelihood.jsonl").exists() and first.poll() is None:
        time.sleep(0.005)
    second = subprocess.run(line, capture_output=True, text=True)
    if first.poll() is not None:
        pytest.skip("the first was done before the second began")
    assert second.returncode == 2 and second.stdout == "" and second.stderr.count("\n") == 1
    assert f"{out} is being written by process {first.pid} on " in second.stderr
    assert first.wait() == 0
    rows = [json.loads(text)["index"] for text in (out / "likelihood.jsonl").read_text().splitlines()]
    assert rows == list(range(24))


@pytest.mark.parametrize("place", ["answer", "head"])
def test_answers_that_were_changed(folder, place):
    """Bits of the journal that were changed, in a head or in an answer, give no other result."""
    want = work(asked()[0])
    with pytest.raises(Cut):
        work(Journal(asked(4)[0], folder).start("this"))
    file = folder.path / JOURNAL
    whole = file.read_bytes()
    head, content = whole.index(b"\n"), json.loads(whole[: whole.index(b"\n")])["bytes"]
    places = range(head + content - 23, head + content + 1) if place == "answer" else range(0, head, 5)
    for at in places:
        changed = bytearray(whole)
        changed[at] ^= 1
        file.write_bytes(changed)
        assert torch.equal(work(Journal(asked()[0], folder).start("this")), want), at


@pytest.mark.parametrize("result", [False, True])
def test_answers_outlive_the_process(monkeypatch, tmp_path, result):
    """A folder that is opened again, with a first result in it or with none yet, still has what was answered."""
    monkeypatch.setattr(Journal, "PATIENCE", -1.0)
    with pytest.raises(Cut), opened(tmp_path / "out", {}, command="test") as folder:
        if result:
            folder.keep("first", b"done")
        work(Journal(asked(9)[0], folder).start("this"))
    with opened(tmp_path / "out", {}, command="test") as folder:
        score, made = asked()
        journal = Journal(score, folder).start("this")
        assert torch.equal(work(journal), work(asked()[0]))
        assert (journal.recalled, len(made)) == (9, 11)


def test_answers_by_other_code(capsys, monkeypatch, tmp_path):
    """Answers that code of one's own gave are not gone on with after it changed, with no result yet."""
    monkeypatch.setattr(Journal, "PATIENCE", -1.0)
    with pytest.raises(Cut), opened(tmp_path / "out", {"mine": "a"}, command="test") as folder:
        work(Journal(asked(9)[0], folder).start("this"))
    score, made = asked()
    try:
        with opened(tmp_path / "out", {"mine": "b"}, command="test") as folder:
            work(Journal(score, folder).start("this"))
    except ValueError as error:
        assert "code" in str(error)
    else:
        assert len(made) == 20
