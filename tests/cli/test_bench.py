"""`scoresde bench`: the laboratory's rows in a file, a run that goes on, a report, and one line where something is
wrong.
"""

import importlib
import inspect
import json
import math
import re
import sys
from dataclasses import dataclass, replace
from html import unescape

import pytest
import torch
from made import Broken, Mine, Wild, one_line
from test_compare import Network, interrupted

from scoresde import Reference, grid, iid, lab, ode, process, sample, steps
from scoresde.checkpoint import load
from scoresde.cli import bench as module
from scoresde.cli import main
from scoresde.cli.folder import JOURNAL
from scoresde.data import Digits
from scoresde.lab import (
    PROCESSES,
    SPACINGS,
    DigitClasses,
    Lattice,
    Modes,
    adaptive,
    bench,
    exact_subject,
    memorised_subject,
    on_grid,
    pages,
    solvers,
    tuned,
)
from scoresde.ode import Dopri5
from scoresde.steps import METHODS, DPMSolverAdaptive, Error, Flow, GottaGoFast, tune
from scoresde.steps.catalogue import fixed, own
from scoresde.values import natural

F64 = torch.float64
N, WEAK = 16, 50
PUBLIC = {**vars(ode), **vars(process), **vars(steps), "grid": grid, "Reference": Reference, "inf": math.inf}
TIMES = ("seconds", "overhead_us", "seconds_to_fit")


def quick_tune(q, like, calls, around, pilots):
    """With few intervals for its pilots."""
    return tune(q, like, calls, around, replace(pilots, fine=30))


def handful(own=()):
    """Of each kind one, on the flow; and one's own on all grids."""
    placed = (
        ("DDIM", "uniform"), ("DPMSolverPP(2)", "log_snr"), ("DPMSolverPP(2)", "reference"), ("DEIS(3)", "karras"),
        ("GaussianReference", "reference"), ("DPMSolver(3)", "reference"), ("EDMHeun", "quadratic"),
        ("Flow(Heun())", "log_snr"),
    )  # fmt: skip
    loose = adaptive("DPMSolverAdaptive(2)", lambda rtol, atol: DPMSolverAdaptive(2, rtol, atol), 0.0)
    mine = [on_grid(method, spacing) for method in own for spacing in SPACINGS]
    return [tuned(8), *(on_grid(METHODS[name], spacing) for name, spacing in placed), loose, *mine]


def few(own=()):
    """Of each kind one, on the reverse SDE."""
    placed = (METHODS["DDPM, fixed-small"], "uniform"), (METHODS["GaussianReference, eta 0.6"], "reference")
    mine = [(method, "log_snr") for method in own]
    return [*(on_grid(*one) for one in (*placed, *mine)), adaptive("GottaGoFast", GottaGoFast, 1.0)]


def measures(patch, flows, diffusions):
    """Let the command measure these solvers."""
    for home in (module, lab):
        patch.setattr(home, "flows", flows, raising=False)
        patch.setattr(home, "diffusions", diffusions, raising=False)


def small(patch):
    measures(patch, handful, few)
    patch.setattr(solvers, "tune", quick_tune)


@pytest.fixture
def quick(monkeypatch):
    small(monkeypatch)


def without_pictures(patch):
    patch.setattr(pages, "curves", lambda diagrams, file: file.write_bytes(b"curves"))


def rows(out):
    lines = [natural(json.loads(line)) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("recipe", "seal")} for row in lines]


def timeless(found):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in found]


def benched(out, *args):
    small = () if "--problems" in args else ("--problems", "modes")
    sizes = () if "--n" in args else ("--n", N, "--n-sde", WEAK)
    assert main(["bench", *map(str, (*small, *args, *sizes)), "--device", "cpu", "--out", str(out)]) == 0
    return rows(out)


ARGS = ("--nfe", 12, 6, 6, "--nfe-sde", 20, "--seed", 3)
CELLS = [*((s, k) for s in handful() for k in (6, 12)), *((s, 20) for s in few())]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with pictures."""
    out = tmp_path_factory.mktemp("bench") / "out"
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        benched(out, *ARGS)
    return out


@pytest.fixture(scope="module")
def subject():
    """What is measured there, once more."""
    return exact_subject(repr(Modes()), Modes().law(), PROCESSES["vp"], WEAK, 3)


# rows


def test_rows_are_those_of_the_laboratory(quick, run, subject):
    """A row for each solver, grid and budget, with the problem and the process; a budget that is given twice counts
    once. All but the seconds are what the functions say for the same options.
    """
    found, made = timeless(rows(run)), list(bench(subject, CELLS, N, WEAK, 3))
    assert found == [{"problem": "modes", "process": "vp", **row} for row in timeless(made)]
    assert [(row["solver"], row["spacing"], row["budget"]) for row in found] == [(s.name, s.grid, k) for s, k in CELLS]
    assert all(row["seconds"] > 0 for row in rows(run) if "skipped" not in row)


DIGITS = pytest.param("digits", DigitClasses(), marks=pytest.mark.slow)
MEMORISED = pytest.param("memorised", None, marks=pytest.mark.slow)


@pytest.mark.parametrize(("problem", "law"), [("modes", Modes()), ("lattice", Lattice()), DIGITS, MEMORISED])
def test_problems_and_processes(quick, monkeypatch, tmp_path, problem, law):
    """By the names of the options: the laws, the bundled digits themselves, and the library's processes."""
    without_pictures(monkeypatch)
    measures(monkeypatch, lambda own: [], lambda own: [on_grid(METHODS["DDPM, fixed-small"], "uniform")])
    found = benched(tmp_path, "--nfe-sde", 6, 4, "--problems", problem, "--processes", "edm")
    digits, sde = Digits().load(), PROCESSES["edm"]
    if law:
        here = exact_subject(repr(law), law.law(), sde, WEAK)
    else:
        here = memorised_subject(torch.cat([digits.train, digits.held_out]), sde, WEAK)
    want = bench(here, [(on_grid(METHODS["DDPM, fixed-small"], "uniform"), k) for k in (4, 6)], N, WEAK)
    want = [{"problem": problem, "process": "edm", **row} for row in want]
    assert timeless(found) == timeless(want)


@dataclass(frozen=True)
class Quicker(process.VP):
    """VP with other numbers."""

    beta_max: float = 12.0


def test_a_process_of_ones_own(quick, monkeypatch, tmp_path):
    """Typed as everywhere, in place of those that have a name: its rows are the laboratory's on it, under the name of
    its class; one folder holds no two that differ in their numbers.
    """
    without_pictures(monkeypatch)
    measures(monkeypatch, lambda own: handful()[1:3], lambda own: few()[:1])
    args = ("--nfe", 5, "--nfe-sde", 4, "--seed", 3)
    for typed, sde in (("edm", PROCESSES["edm"]), (f"{__name__}:Quicker", Quicker())):
        found = benched(tmp_path / type(sde).__name__, *args, "--sde", typed)
        here = exact_subject(repr(Modes()), Modes().law(), sde, WEAK, 3)
        made = bench(here, [*((s, 5) for s in handful()[1:3]), (few()[0], 4)], N, WEAK, 3)
        want = [{"problem": "modes", "process": type(sde).__name__, **row} for row in made]
        assert timeless(found) == timeless(want) and {row["sde"] for row in found} == {repr(sde)}
    out = [
        "--problems",
        "modes",
        "--n",
        str(N),
        "--n-sde",
        str(WEAK),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "Quicker"),
    ]
    for other in (["--sde", f"{__name__}:Quicker(beta_max=11)"], ["--sde", "vp"], []):
        assert main(["bench", *map(str, args), *other, *out]) == 2
    assert "## Flow: modes, Quicker" in (tmp_path / "Quicker" / "report.md").read_text()


def test_floors(run, subject):
    """What fresh exact samples have, as many, in the report and beside it."""
    made, text = json.loads((run / "made.json").read_text()), (run / "report.md").read_text()
    assert list(made["floors"]) == ["modes-vp"] and made["floors"]["modes-vp"].keys() == subject.measures.keys()
    for key, value in made["floors"]["modes-vp"].items():
        want = sum(abs(subject.measures[key](x)) for x in subject.fresh) / len(subject.fresh)
        assert value == pytest.approx(want) and f"Real samples, as many: {value:.3g}." in text


def test_report(run):
    """One file that asks for nothing beside it, with one script, that sorts, a row a solver with its best grid, and the
    pictures.
    """
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert not re.search(r"https?:|src=\"(?!data:)|href|@import|url\(", page)
    assert page.count("<script>") == page.count("</script>") == 1 and ".sort(sorted)" in page
    assert page.count("<img ") == 2 and page.count("data:image/png;base64,") == 2
    assert sorted(f.name for f in run.glob("*.png")) == ["flow-modes-vp.png", "sde-modes-vp.png"]
    two = [row for row in rows(run) if row["solver"] == "DPMSolverPP(2)"]
    cells = []
    for k in (6, 12):
        row = min((row for row in two if row["budget"] == k), key=lambda row: row["rms"])
        cells.append(f"{row['rms']:.2e} ({row['median']:.1e}) {row['spacing']}")
    assert f"| DPMSolverPP(2) | {cells[0]} | {cells[1]} |" in text
    heads = re.findall(r"^\| solver \| .*$", text, re.M)
    assert heads == ["| solver | 6 calls | 12 calls |", *["| solver | 20 calls |"] * 4]
    assert {"versions", "seconds", "floors"} <= json.loads((run / "made.json").read_text()).keys()


# runs that go on


@pytest.mark.parametrize("kept", [1, 9, 22])
def test_cut_off(run, quick, monkeypatch, tmp_path, kept):
    """A file of results that was cut, in the middle of a line or between two, is continued: the rest is what a run that
    was not interrupted has, but for the seconds, and what was there is not made again.
    """
    without_pictures(monkeypatch)
    lines = (run / "results.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 23
    for name in ("recipe.json", "truth-modes-vp.npy", ".files.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
    found = benched(tmp_path, *ARGS)
    assert timeless(found) == timeless(rows(run))
    assert (tmp_path / "results.jsonl").read_bytes().startswith(b"".join(lines[:kept]))
    assert (tmp_path / "truth-modes-vp.npy").read_bytes() == (run / "truth-modes-vp.npy").read_bytes()


def test_interrupted(quick, monkeypatch, tmp_path):
    """Stopped at a row, it goes on from there, in another order of the budgets if need be."""
    without_pictures(monkeypatch)
    measures(monkeypatch, lambda own: handful()[1:4], few)
    args, real, made = ("--nfe", 3, 5, "--nfe-sde", 4), Error.of, []
    want = benched(tmp_path / "whole", *args)

    def of(*states):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(0)
        return real(*states)

    with monkeypatch.context() as patch:
        patch.setattr(Error, "of", of)
        out = ["--n", str(N), "--n-sde", str(WEAK), "--device", "cpu", "--out", str(tmp_path / "cut")]
        assert main(["bench", "--problems", "modes", *map(str, args), *out]) == 130
    assert timeless(rows(tmp_path / "cut")) == timeless(want[:3])
    assert timeless(benched(tmp_path / "cut", *args)) == timeless(want)
    before = (tmp_path / "cut" / "results.jsonl").read_bytes()
    benched(tmp_path / "cut", *args)
    assert (tmp_path / "cut" / "results.jsonl").read_bytes() == before
    more = benched(tmp_path / "cut", "--nfe", 7, 3, "--nfe-sde", 4, "--processes", "edm", "vp")
    assert (tmp_path / "cut" / "results.jsonl").read_bytes().startswith(before)
    assert {(row["process"], row["budget"]) for row in more[len(want) :]} == {
        ("edm", 3),
        ("edm", 4),
        ("edm", 7),
        ("vp", 7),
    }
    text = (tmp_path / "cut" / "report.md").read_text()
    assert "## Flow: modes, edm" in text and "## Flow: modes, vp" in text


@pytest.mark.parametrize("seed", range(2))
def test_interrupted_at_any_network_call(quick, monkeypatch, tmp_path, seed):
    """Rows, and the flow's ends, are those of a run that was not stopped; the network has answered what it answers
    there, each question once and in that order; no time of what was cut off is known, those of the others are.
    """
    without_pictures(monkeypatch)
    measures(monkeypatch, lambda own: [*handful()[:2], handful()[8]], lambda own: few()[:2])
    monkeypatch.setattr(lab, "exact_subject", lambda *args: replace(exact_subject(*args), tol=1e-3))
    args = ["bench", "--problems", "modes", "--nfe", "5", "--nfe-sde", "8", "--n", "16", "--n-sde", "30"]
    args += ["--device", "cpu", "--out"]
    with monkeypatch.context() as patch:
        whole = Network(patch)
        assert main([*args, str(tmp_path / "whole")]) == 0
    network, out, truth = Network(monkeypatch), tmp_path / "cut", "truth-modes-vp.npy"
    cells = set(interrupted(network, whole, out, lambda: main([*args, str(out)]), 4, seed, truth))
    assert (network.answered == whole.answered) is True  # without the difference, which is long
    assert (out / truth).read_bytes() == (tmp_path / "whole" / truth).read_bytes()
    found = rows(out)
    assert timeless(found) == timeless(rows(tmp_path / "whole"))
    ran = {n: row for n, row in enumerate(found) if "skipped" not in row}
    for n, row in ran.items():
        assert {math.isnan(row[k]) for k in TIMES if k in row} == {n in cells}
        assert math.isnan(row["seconds"]) or row["seconds"] > 0
    assert ran.keys() & cells and ran.keys() - cells and not (out / JOURNAL).exists()


@pytest.mark.parametrize(
    ("more", "key"), [(("--seed", 1), "seed"), (("--n", 17), "n"), (("--n-sde", 51), "n_sde")], ids=str
)
def test_other_options_in_the_same_folder(capsys, run, more, key):
    """Rows of another seed or number of samples are not put beside these."""
    before = {f.name: f.read_bytes() for f in run.iterdir()}
    size = {"--seed": 3, "--n": N, "--n-sde": WEAK} | {more[0]: more[1]}
    options = [str(v) for pair in size.items() for v in pair]
    assert main(["bench", "--problems", "modes", *options, "--device", "cpu", "--out", str(run)]) == 2
    assert f"out holds results with {key} = " in one_line(capsys)
    assert {f.name: f.read_bytes() for f in run.iterdir()} == before


# budgets


def test_budgets_that_are_too_small(quick, monkeypatch, tmp_path):
    """Below what a solver needs its row says so, and why, and so does the report; the others have theirs."""
    without_pictures(monkeypatch)
    found = benched(tmp_path, "--nfe", 1, "--nfe-sde", 2)
    said = {row["solver"]: row["skipped"] for row in found if "skipped" in row}
    assert said == {
        "Tuned": "calls must be a whole number >= 2, got 1",
        "DPMSolver(3)": "DPMSolver(3) needs at least 3 network calls, got 1",
        "EDMHeun": "EDMHeun needs at least 2 network calls, got 1",
        "Flow(Heun())": "Flow(Heun()) needs at least 2 network calls, got 1",
        "DPMSolverAdaptive(2)": "DPMSolverAdaptive(2) needs more than 1 network calls at any tolerance",
        "GottaGoFast": "GottaGoFast needs more than 2 network calls at any tolerance",
    }
    assert all(row.keys() == {"problem", "process", "solver", "package", "spacing", "budget", "skipped"}
               for row in found if "skipped" in row)  # fmt: skip
    rest = [row for row in found if "skipped" not in row]
    assert len(rest) == 7 and all(row["nfe"] == row["budget"] for row in rest)
    text = unescape((tmp_path / "report.md").read_text())
    assert all(f"{name}: {why}" in text for name, why in said.items())


def test_only_some_solvers(run, quick, monkeypatch, tmp_path):
    """Of the solvers named there are the same rows as among all; others can join them later."""
    without_pictures(monkeypatch)
    every = rows(run)
    names = ("DPMSolverPP(2)", "DDPM, fixed-small")
    some = benched(tmp_path / "some", *ARGS, "--only", *names)
    assert timeless(some) == timeless(row for row in every if row["solver"] in names)
    more = benched(tmp_path / "some", *ARGS, "--only", "DDIM")
    assert timeless(more) == timeless([*some, *(row for row in every if row["solver"] == "DDIM")])


def test_what_diverges_stops_no_other(monkeypatch, tmp_path):
    """An error of one solver is its row, and so is what is not finite."""
    some = [*(on_grid(fixed(s.__name__, s()), "uniform") for s in (Broken, Wild)), *handful()[1:2]]
    measures(monkeypatch, lambda own: some, list)
    found = benched(tmp_path, "--nfe", 4)
    broken, wild, _ = said = [row.get("skipped") for row in found]
    assert broken == "the drift of sample 0 is not finite" and wild.startswith("sample 0 is not finite at t = ")
    assert said[2] is None and found[2]["rms"] < 1
    text = (tmp_path / "report.md").read_text()
    assert "| DDIM |" in text and "Broken: the drift of sample 0" in text and "Wild: sample 0 is not finite" in text
    without_pictures(monkeypatch)
    assert [repr(row) for row in timeless(benched(tmp_path, "--nfe", 4))] == [repr(row) for row in timeless(found)]


# a step of one's own


def measured(subject, name, step, calls=(6, 12)):
    """What the functions say of a step of one's own."""
    cells = [(on_grid(own(name, step), spacing), k) for spacing in SPACINGS for k in calls]
    return timeless({"problem": "modes", "process": "vp", **row} for row in bench(subject, cells, N, WEAK, 3))


def test_ones_own_stands_in_the_table(run, subject, quick, tmp_path):
    """Named by its module and class: on every grid, within its budget, with the rows that the functions give it, and in
    one table with ours, whose rows are what they are without it.
    """
    ours = ("Flow(Heun())", "DDPM, fixed-small")
    found = timeless(benched(tmp_path, *ARGS, "--step", f"{__name__}:Mine", "--only", "Mine", *ours))
    mine, others = ([row for row in found if (row["solver"] == "Mine") == own] for own in (True, False))
    assert others == timeless(row for row in rows(run) if row["solver"] in ours)
    assert mine == measured(subject, "Mine", Mine()) and all(row["nfe"] == row["budget"] for row in mine)
    assert [(row["spacing"], row["budget"]) for row in mine] == [(g, k) for g in SPACINGS for k in (6, 12)]
    by_hand = [row["rms"] for row in mine if row["spacing"] == "log_snr"]
    assert by_hand == pytest.approx([row["rms"] for row in others if row["solver"] == "Flow(Heun())"], rel=1e-9)
    (table,) = re.findall(r"## Flow: modes, vp\n\n((?:\|.*\n)+)", (tmp_path / "report.md").read_text())
    assert table.count("| Mine |") == table.count("| Flow(Heun()) |") == 1


def test_ones_own_with_noise(quick, monkeypatch, tmp_path):
    """With an eta it stands among the solvers of the reverse SDE, and is measured by its samples."""
    without_pictures(monkeypatch)
    measures(monkeypatch, *2 * [lambda own: [on_grid(method, "log_snr") for method in own]])
    (row,) = benched(tmp_path, "--nfe-sde", 9, "--step", f"{__name__}:Mine", "--eta", 0.5)
    assert row["eta"] == 0.5 and row["nfe"] == 8 and row["n"] == WEAK and "energy_distance" in row


def test_steps_of_both_kinds_stand_where_they_belong(quick, monkeypatch, tmp_path):
    """Unless an eta is given, a method of the reverse SDE is measured on that, and one of the flow there."""
    without_pictures(monkeypatch)
    measures(monkeypatch, *2 * [lambda own: [on_grid(method, "log_snr") for method in own]])
    own = ("--step", f"{__name__}:Mine", "--step", "TwoStage()")
    found = benched(tmp_path, "--nfe", 8, "--nfe-sde", 8, *own)
    assert [(row["solver"], row["eta"]) for row in found] == [("Mine", 0.0), ("TwoStage(), eta 1", 1.0)]


def test_ones_own_on_two_processes(quick, monkeypatch, tmp_path):
    """In one folder the rows of one eta are not taken for those of another: the name tells them apart."""
    without_pictures(monkeypatch)
    measures(monkeypatch, *2 * [lambda own: [on_grid(method, "log_snr") for method in own]])
    for eta in (0.5, 0.0, 1.0):
        found = benched(tmp_path, "--nfe", 8, "--nfe-sde", 8, "--step", f"{__name__}:Mine", "--eta", eta)
    assert [(row["solver"], row["eta"]) for row in found] == [("Mine, eta 0.5", 0.5), ("Mine", 0.0), ("Mine, eta 1", 1)]


def test_ones_own_lies_where_one_is(subject, quick, monkeypatch, tmp_path):
    """A file in the working directory is a module; options are given as Python has them, and are part of the name."""
    without_pictures(monkeypatch)
    heading = "from dataclasses import dataclass\nfrom scoresde import Step\n\n"
    (tmp_path / "my_own_steps.py").write_text(heading + inspect.getsource(Mine))
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    names = {"Mine(w=0.25)": Mine(0.25), "Mine": Mine()}
    chosen = [word for name in names for word in ("--step", f"my_own_steps:{name}")]
    try:
        found = benched(tmp_path / "out", "--nfe", 6, "--seed", 3, *chosen, "--only", *names)
    finally:
        sys.modules.pop("my_own_steps", None)
    assert timeless(found) == [row for name, step in names.items() for row in measured(subject, name, step, (6,))]


# a checkpoint


SMALL = ("--steps", "60", "--warmup", "10", "--net", "MLP(width=16, depth=1)")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small network on a toy in the plane."""
    folder = tmp_path_factory.mktemp("model") / "model"
    assert main(["train", "Ring(n=150)", *SMALL, "--device", "cpu", "--out", str(folder)]) == 0
    return folder


def test_a_checkpoint(quick, monkeypatch, tmp_path, model):
    """Given a model its flow is the problem, measured in float32 against a solution of its own to 1e-5."""
    without_pictures(monkeypatch)
    measures(monkeypatch, lambda own: handful()[1:4], few)
    options = ["--nfe", "6", "--nfe-sde", "5", "--n", "16", "--n-sde", "20", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["bench", "--model", str(model), *options]) == 0
    found = rows(tmp_path)
    assert {row["problem"] for row in found} == {"model"} and len(found) == 6
    net = load(model).model
    sde = net.sde
    x_T = sde.prior((16, 2), iid(torch.Generator().manual_seed(1)), torch.float32)
    end = truth(net, sde, x_T.double())
    for row in found[:2]:
        ts, made = eval(row["grid"], {"grid": grid, "sde": sde}), [eval(step, dict(PUBLIC)) for step in row["steps"]]
        assert row["rms"] == pytest.approx(Error.of(sample(sde.reverse(net, 0.0), x_T, ts, *made), end).rms, rel=1e-2)
    assert main(["bench", "--model", str(model), "--problems", "model", *options]) == 0
    options[-1] += "/own"
    assert main(["bench", "--model", str(model), "--sde", f"{__name__}:Quicker(beta_max=20)", *options]) == 0
    for a, b in zip(found, rows(tmp_path / "own"), strict=True):
        assert b.get("skipped") == a.get("skipped") and b.get("sde") in (
            None,
            "Quicker(beta_min=0.1, beta_max=20, t_min=0.001)",
        )
        assert all(b[key] == pytest.approx(a[key], rel=1e-2) for key in {"rms", "energy_distance"} & a.keys())


def truth(score, sde, x_T):
    ts = torch.tensor([sde.T, sde.t_min], dtype=F64)
    return sample(sde.reverse(score, 0.0), x_T, ts, Flow(Dopri5(1e-10, 1e-10)))


# bad input

BAD = {
    "a problem without its model": ("--problems model", "model must be given for the problem model"),
    "and beside others": ("--problems modes model", "model must be given for the problem model"),
    "a model without its problem": ("--problems modes --model MODEL", "model must be given for the problem model"),
    "no model": ("--model NONE", "checkpoint must"),
    "no problem": ("--problems cats", "--problems"),
    "no process": ("--processes sde", "--processes"),
    "no process of one's own": ("--sde modes", "sde must name a LinearSDE"),
    "a process besides": ("--sde vp --processes ve", "sde must not be given beside processes, got 'vp'"),
    "a process before its model": ("--model NONE --sde nowhere:Quicker", "sde must be like"),
    "no calls": ("--nfe 0", "nfe must"),
    "fewer than none": ("--nfe-sde -5", "nfe must"),
    "no starts": ("--n 0", "n must"),
    "no samples": ("--n-sde 0", "n must"),
    "one sample": ("--problems modes --n-sde 1", "n must"),
    "no such solver": ("--only DDIM DDIN", "only must name solvers, got ['DDIN']; there are "),
    "no such module": ("--step nowhere:Step", "step must be like "),
    "no such step": ("--step math:Step", "step must be like "),
    "no step at all": ("--step math:pi", "step must name a Step"),
    "a step that is there": ("--step DDIM", "step must have a name of its own"),
    "a step twice": ("--step IPNDM(1) --step IPNDM(1)", "step must have a name of its own"),
    "a step with times of its own": ("--step Flow(Dopri5())", "step must make as many network calls in every interval"),
    "an eta below 0": ("--step Ancestral --eta -1", "eta must"),
    "no device": ("--device cuda:99", "device must"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_options(capsys, quick, tmp_path, model, what):
    """One line on standard error that names what is wrong, and status 2."""
    line, said = BAD[what]
    places = {"MODEL": model, "NONE": tmp_path / "none"}
    assert main(["bench", *(str(places.get(word, word)) for word in line.split()), "--out", str(tmp_path / "out")]) == 2
    assert said in one_line(capsys)
    assert not list(tmp_path.rglob("results.jsonl")) or not (tmp_path / "out" / "results.jsonl").read_text()


def test_a_law_beside_a_model(quick, monkeypatch, tmp_path):
    """Of a law and a model in one run, each row is of its own problem: that of the law is what it is alone."""
    without_pictures(monkeypatch)
    small = ("--steps", "5", "--batch", "8", "--net", "MLP(width=8, depth=1)", "--out", str(tmp_path / "m"))
    assert main(["train", "Ring(n=150)", *small]) == 0
    args = ("--only", "DDIM", "--nfe", 4)
    alone = benched(tmp_path / "alone", "--problems", "modes", *args)
    both = benched(tmp_path / "both", "--problems", "modes", "model", "--model", tmp_path / "m", *args)
    of_law, of_model = ([row for row in both if row["problem"] == name] for name in ("modes", "model"))
    assert timeless(of_law) == timeless(alone) and of_model[0]["subject"] == "a network"
