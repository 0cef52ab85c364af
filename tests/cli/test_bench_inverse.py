"""`scoresde bench --inverse`: rows that are the laboratory's, a run that goes on, one line where something is wrong."""

import json
import re

import pytest
from made import one_line

from scoresde import VE
from scoresde.cli import main
from scoresde.cli import posteriors as module
from scoresde.cli.options import INVERSE
from scoresde.inverse import pigdm
from scoresde.lab.posteriors import METHODS, TASKS, inverse_rows, of_score, one_of_four

SHORT = ["--inverse", "--problems", "one-of-four", "--nfe", "5", "10", "--n", "40"]


def mine(score, seen):
    """A method of one's own."""
    return pigdm(score, seen)


def rows_in(folder):
    """Its rows, but for the seconds and what seals them."""
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return {
        (row["task"], row["method"], row["steps"]): {
            k: v for k, v in row.items() if k not in ("seconds", "seal", "recipe", "task")
        }
        for row in rows
    }


def measured(folder, *args):
    """Exit status of the command."""
    return main(["bench", *SHORT, *args, "--out", str(folder)])


def test_rows_of_the_laboratory(tmp_path, capsys):
    """The rows are those of `inverse_rows`, of all tasks that help names, also of a method of one's own and on another
    process; the report has each.
    """
    assert INVERSE == tuple(TASKS)
    own = f"{__name__}:mine"
    assert measured(tmp_path / "a", "--only", "ddnm", own, "--method", own, "--sde", "VE(sigma_max=20)") == 0
    found = rows_in(tmp_path / "a")
    methods = {"ddnm": METHODS["ddnm"], own: of_score(mine)}
    for steps in (5, 10):
        for row in inverse_rows(one_of_four(), VE(sigma_max=20), 40, steps, 0, methods):
            want = {k: v for k, v in row.items() if k != "seconds"}
            assert found["one-of-four", row["method"], steps] == pytest.approx(want, abs=1e-12)
    assert len(found) == 4
    said = (tmp_path / "a" / "report.md").read_text()
    assert len(re.findall(r"^\| (?:ddnm|\S+:mine) \|", said, re.M)) == 4
    assert (tmp_path / "a" / "one-of-four.png").stat().st_size > 5000
    assert f"open {tmp_path / 'a' / 'report.html'}" in capsys.readouterr().out


def test_goes_on(tmp_path, monkeypatch):
    """A run that stops between two methods goes on with the rest, to the rows of one that did not; more steps add to
    it, and other samples are refused.
    """
    whole, made = tmp_path / "whole", []
    assert measured(whole, "--only", "pigdm", "ddnm", "diffpir") == 0

    def stopping(*args):
        for row in inverse_rows(*args):
            if len(made) == 2:
                raise KeyboardInterrupt
            made.append(row["method"])
            yield row

    monkeypatch.setattr(module, "inverse_rows", stopping)
    cut = tmp_path / "cut"
    assert measured(cut, "--only", "pigdm", "ddnm", "diffpir") == 130
    assert len(rows_in(cut)) == 2
    monkeypatch.setattr(module, "inverse_rows", lambda *args: (made.extend(args[5]), inverse_rows(*args))[1])
    assert measured(cut, "--only", "pigdm", "ddnm", "diffpir") == 0
    assert rows_in(cut) == rows_in(whole) and len(made) == 2 + 4
    assert measured(cut, "--only", "pigdm", "ddnm", "diffpir") == 0 and len(made) == 6


WRONG = {
    "a model": (["--inverse", "--model", "digits-vp"], "model must not be given beside inverse"),
    "a step": (["--inverse", "--step", "DDIM"], "step must not be given beside inverse"),
    "a process list": (["--inverse", "--processes", "ve"], "processes must not be given beside inverse"),
    "full": (["--inverse", "--full"], "full must not be given beside inverse"),
    "a problem of solvers": (["--inverse", "--problems", "modes"], "problems must be of one-of-four"),
    "a task without inverse": (["--problems", "blocks"], "problems must be given with inverse"),
    "an unknown method": (["--inverse", "--only", "magic"], "only must name methods"),
    "no function": (["--inverse", "--method", "pigdm"], "method must name a function"),
    "a method without inverse": (["--method", "made:Mine"], "method must not be given without inverse"),
    "one sample": (["--inverse", "--n", "1"], "n must"),
    "no steps": (["--inverse", "--nfe", "0"], "nfe must"),
    "a GPU": (["--inverse", "--device", "cuda"], "device must be cpu"),
}


@pytest.mark.parametrize("args, says", WRONG.values(), ids=WRONG)
def test_bad_input(args, says, tmp_path, capsys):
    """One line before any work."""
    assert main(["bench", *args, "--out", str(tmp_path / "out")]) == 2
    assert says in one_line(capsys)
    assert not (tmp_path / "out" / "results.jsonl").exists()
