"""`scoresde bench`: rows that can be made again, true counts within their budgets, and a run that goes on."""

import json
import math
import re
from functools import partial

import pytest
import torch

import scoresde
from scoresde import (
    VE,
    VP,
    Ancestral,
    Counted,
    DPMSolver,
    DPMSolverPP,
    EDMHeun,
    Flow,
    GaussianReference,
    Reference,
    Step,
    exact,
    fit_reference,
    grid,
    iid,
    ode,
    sample,
    singlestep,
)
from scoresde import adaptive as adaptive_steps
from scoresde.adaptive import DPMSolverAdaptive, GottaGoFast
from scoresde.checkpoint import load
from scoresde.cli import bench as module
from scoresde.cli import main, solvers
from scoresde.cli.bench import best
from scoresde.cli.contenders import exact_subject
from scoresde.cli.solvers import Solver, adaptive, case, diffusions, flows, on_grid, tuned
from scoresde.convergence import Error
from scoresde.exact import Empirical
from scoresde.metrics import energy_distance, sliced_wasserstein
from scoresde.multistep import DEIS
from scoresde.ode import Dopri5
from scoresde.problems import DigitClasses, Lattice, Modes
from scoresde.report import SORT
from scoresde.tune import tune

F64, CPU = torch.float64, torch.device("cpu")
N, WEAK = 16, 50
QUICK = partial(tune, fine=30)  # with few intervals for its pilots
PUBLIC = {**vars(scoresde), **vars(ode), **vars(adaptive_steps), **vars(singlestep), "tune": QUICK, "torch": torch}
TIMES = ("seconds", "overhead_us", "seconds_to_fit")


def handful():
    """Of each kind one, on the flow."""
    return [
        tuned(8),
        on_grid("DDIM", Ancestral(), "uniform"),
        on_grid("DPMSolverPP(2)", DPMSolverPP(2), "log_snr"),
        on_grid("DPMSolverPP(2)", DPMSolverPP(2), "reference"),
        on_grid("DEIS(3)", DEIS(3), "karras"),
        on_grid("GaussianReference", GaussianReference(Reference()), "reference", free=1),
        on_grid("DPMSolver(3)", DPMSolver(3), "reference", each=3),
        on_grid("EDMHeun", EDMHeun(), "quadratic", each=2),
        on_grid("Flow(Heun())", Flow(), "log_snr", each=2),
        adaptive("DPMSolverAdaptive(2)", lambda rtol, atol: DPMSolverAdaptive(2, rtol, atol), 0.0),
    ]


def few():
    """Of each kind one, on the reverse SDE."""
    made = [
        on_grid("Ancestral", Ancestral(), "uniform", 1.0),
        on_grid("GaussianReference, eta 0.6", GaussianReference(Reference()), "reference", 0.6, free=1),
        adaptive("GottaGoFast", GottaGoFast, 1.0),
    ]
    return [Solver(s.name, s.grid, s.eta, s.solve, weak=True) for s in made]


ALL = [(s.name, s.grid) for s in handful()], [(s.name, s.grid) for s in few()]


def small(patch):
    patch.setattr(module, "flows", handful)
    patch.setattr(module, "diffusions", few)
    patch.setattr(solvers, "tune", QUICK)


@pytest.fixture
def quick(monkeypatch):
    small(monkeypatch)


def without_pictures(patch):
    patch.setattr(module, "curves", lambda diagrams, file: file.write_bytes(b"curves"))


def rows(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def timeless(found):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in found]


def benched(out, *args):
    small = () if "--problems" in args else ("--problems", "modes")
    sizes = () if "--n" in args else ("--n", N, "--n-sde", WEAK)
    assert main(["bench", *map(str, (*small, *args, *sizes)), "--device", "cpu", "--out", str(out)]) == 0
    return rows(out)


def one_line(capsys):
    """The only line on standard error."""
    err = capsys.readouterr().err
    assert err.startswith("scoresde: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


ARGS = ("--nfe", 12, 6, 6, "--nfe-sde", 20, "--seed", 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with pictures, and how often the score was asked for how many points."""
    out, asked, real = tmp_path_factory.mktemp("bench") / "out", [], exact.Diffused.__call__

    def call(self, x, t):
        asked.append(len(x))
        return real(self, x, t)

    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        patch.setattr(exact.Diffused, "__call__", call)
        benched(out, *ARGS)
    return out, asked


@pytest.fixture(scope="module")
def subject():
    """What is measured there, once more."""
    return exact_subject("x", Modes().law(), VP(), WEAK, 3, CPU)


# rows


def test_a_row_for_each_solver_grid_and_budget(run):
    """Each once; a budget that is given twice counts once. Those of the flow have errors, the others distances."""
    found = rows(run[0])
    want = [(*names, k) for names in ALL[0] for k in (6, 12)] + [(*names, 20) for names in ALL[1]]
    assert [(row["solver"], row["spacing"], row["budget"]) for row in found] == want
    for row in found:
        assert (row["problem"], row["process"], row["package"]) == ("modes", "vp", "scoresde")
        weak = (row["solver"], row["spacing"]) in ALL[1]
        if "skipped" not in row:
            assert row["n"] == (WEAK if weak else N) and row["seed"] == 3
            assert ("rms" in row) != weak and ("energy_distance" in row) == weak
            assert row["seconds"] > 0 and 0 < row["overhead_us"] < 1e6 * row["seconds"] / row["nfe"] + 1


def test_network_calls_are_true(run):
    """All of a row's calls are within its budget; of a step of k calls an interval as many as fit; together they are
    what the score was asked for, but for what found tolerances.
    """
    out, asked = run
    found = [row for row in rows(out) if "nfe" in row]
    each = {"DPMSolver(3)": 3, "EDMHeun": 2, "Flow(Heun())": 2}
    for row in found:
        k = each.get(row["solver"], 1)
        assert row["nfe"] <= row["budget"] and (row["spacing"] == "its own" or row["nfe"] == row["budget"] // k * k)
    tolerances = 2 * len(solvers.TOLERANCES) * 12
    flows = sum(row["nfe"] for row in found if row["n"] == N) + truth_calls()
    assert flows <= asked.count(N) <= flows + tolerances
    weak = sum(row["nfe"] for row in found if row["n"] == WEAK)
    assert weak <= asked.count(WEAK) <= weak + tolerances
    assert asked.count(8) == sum(row.get("nfe_to_fit", 0) for row in found) > 0


def truth_calls():
    score = Counted(Modes().law().diffuse(VP()))
    truth(score, VP(), starts(VP(), N, 4, (2,)))
    return score.nfe


def starts(sde, n, seed, shape):
    return sde.prior((n, *shape), iid(torch.Generator().manual_seed(seed)), F64)


def truth(score, sde, x_T):
    ts = torch.tensor([sde.T, sde.t_min], dtype=F64)
    return sample(sde.reverse(score, 0.0), x_T, ts, Flow(Dopri5(1e-10, 1e-10)))


def number(said):
    """The number in "seed 17"."""
    return int(said.removeprefix("seed "))


def rebuilt(row, score, x_0, shape):
    """The samples, from nothing but a row, the score, data and public names."""
    sde = eval(row["sde"], dict(PUBLIC))
    x_T = starts(sde, row["n"], number(row["starts"]), shape)
    names = {**PUBLIC, "sde": sde, "x_0": x_0, "q": sde.reverse(score, 0.0)}
    steps = [eval(step, names) for step in row["steps"]]
    if row["grid"] == "of the tuning":
        ts, steps = steps[0].ts, [steps[0].step]
    elif row["grid"] == "its own":
        ts = torch.tensor([sde.T, sde.t_min], dtype=F64)
    else:
        ts = eval(row["grid"], names)
    noise = iid(torch.Generator().manual_seed(number(row["noise"]))) if "noise" in row else iid()
    return sample(sde.reverse(score, row["eta"]), x_T, ts, *steps, noise=noise)


def test_rows_are_recipes(run, subject):
    """The numbers of every row follow from it, in eval's words, to 1e-9."""
    law, made = Modes().law(), 0
    score = law.diffuse(VP())
    end = truth(score, VP(), starts(VP(), N, 4, (2,)))
    for row in rows(run[0]):
        if "skipped" in row:
            continue
        assert row["subject"] == repr(Modes()) and eval(row["subject"], {"Modes": Modes}) == Modes()
        x, made = rebuilt(row, score, subject.x_0, (2,)), made + 1
        if "rms" in row:
            want = vars(Error.of(x, end))
            off = (x - end).square().mean(1).sqrt()
            want["switched"] = sum(float(e) > 0.5 * fit_reference(subject.x_0).std for e in off) / N
        else:
            want = {k: measure(x) for k, measure in subject.measures.items()}
        for key, value in want.items():
            assert row[key] == pytest.approx(value, rel=1e-9, abs=1e-12), (row["solver"], key)
    assert made >= 20


def test_floors(run, subject):
    """What fresh exact samples have, as many, in the report and beside it; a mean of absolute values over the sets."""
    made, text = json.loads((run[0] / "made.json").read_text()), (run[0] / "report.md").read_text()
    assert list(made["floors"]) == ["modes-vp"] and made["floors"]["modes-vp"].keys() == subject.measures.keys()
    for key, value in made["floors"]["modes-vp"].items():
        want = sum(abs(subject.measures[key](x)) for x in subject.fresh) / len(subject.fresh)
        assert value == pytest.approx(want) and f"Real samples, as many: {value:.3g}." in text


def test_report(run):
    """One file that asks for nothing beside it, with the script that sorts, a row a solver with its best grid, and the
    pictures.
    """
    out = run[0]
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert not re.search(r"https?:|src=\"(?!data:)|href|@import|url\(", page) and f"<script>{SORT}</script>" in page
    assert page.count("<img ") == 2 and page.count("data:image/png;base64,") == 2
    assert sorted(f.name for f in out.glob("*.png")) == ["flow-modes-vp.png", "sde-modes-vp.png"]
    two = [row for row in rows(out) if row["solver"] == "DPMSolverPP(2)"]
    cells = []
    for k in (6, 12):
        row = min((row for row in two if row["budget"] == k), key=lambda row: row["rms"])
        cells.append(f"{row['rms']:.2e} ({row['median']:.1e}) {row['spacing']}")
    assert f"| DPMSolverPP(2) | {cells[0]} | {cells[1]} |" in text
    heads = re.findall(r"^\| solver \| .*$", text, re.M)
    assert heads == ["| solver | 6 calls | 12 calls |", *["| solver | 20 calls |"] * 4]
    assert {"versions", "seconds", "floors"} <= json.loads((out / "made.json").read_text()).keys()


def test_the_best():
    """On its best grid at each budget, in the order of the mean logarithm; what has no row at some budget comes last,
    and what is not finite after all that is.
    """
    table = [
        ("a", "x", 5, 1.0), ("a", "y", 5, -0.5), ("a", "x", 9, 0.02), ("a", "y", 9, 0.1),
        ("b", "x", 5, 0.1), ("b", "x", 9, 0.05), ("c", "x", 9, 1e-9), ("d", "x", 5, math.nan), ("d", "x", 9, 1e-9),
        ("e", "x", 5, math.inf), ("e", "y", 5, 2.0), ("e", "x", 9, 2.0),
    ]  # fmt: skip
    given = [dict(zip(("solver", "spacing", "budget", "rms"), row, strict=True)) for row in table]
    found = best(given, "rms")
    assert list(found) == ["b", "a", "e", "d", "c"]
    assert {k: row["spacing"] for k, row in found["a"].items()} == {5: "y", 9: "x"}
    assert found["e"][5]["spacing"] == "y" and list(found["c"]) == [9]


# runs that go on


@pytest.mark.parametrize("kept", [1, 9, 22])
def test_cut_off(run, quick, monkeypatch, tmp_path, kept):
    """A file of results that was cut, in the middle of a line or between two, is continued: the rest is what a run that
    was not interrupted has, but for the seconds, and what was there is not made again.
    """
    without_pictures(monkeypatch)
    lines = (run[0] / "results.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 23
    for name in ("recipe.json", "truth-modes-vp.npy"):
        (tmp_path / name).write_bytes((run[0] / name).read_bytes())
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
    found = benched(tmp_path, *ARGS)
    assert timeless(found) == timeless(rows(run[0]))
    assert (tmp_path / "results.jsonl").read_bytes().startswith(b"".join(lines[:kept]))
    assert (tmp_path / "truth-modes-vp.npy").read_bytes() == (run[0] / "truth-modes-vp.npy").read_bytes()


def test_interrupted(quick, monkeypatch, tmp_path):
    """Stopped at a row, it goes on from there, in another order of the budgets if need be."""
    without_pictures(monkeypatch)
    monkeypatch.setattr(module, "flows", lambda: handful()[1:4])
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


@pytest.mark.parametrize(
    ("more", "key"), [(("--seed", 1), "seed"), (("--n", 17), "n"), (("--n-sde", 51), "n_sde")], ids=str
)
def test_other_options_in_the_same_folder(capsys, run, more, key):
    """Rows of another seed or number of samples are not put beside these."""
    before = {f.name: f.read_bytes() for f in run[0].iterdir()}
    size = {"--seed": 3, "--n": N, "--n-sde": WEAK} | {more[0]: more[1]}
    options = [str(v) for pair in size.items() for v in pair]
    assert main(["bench", "--problems", "modes", *options, "--device", "cpu", "--out", str(run[0])]) == 2
    assert f"out holds results with {key} = " in one_line(capsys)
    assert {f.name: f.read_bytes() for f in run[0].iterdir()} == before


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
    text = (tmp_path / "report.md").read_text()
    assert all(f"{name}: {why}" in text for name, why in said.items())


class Broken(Step):
    """A step that diverges."""

    def __call__(self, p, x, t, s, noise):
        raise RuntimeError("the drift of sample 0 is not finite")


class Wild(Step):
    """A step to where there are no numbers."""

    def __call__(self, p, x, t, s, noise):
        return p.ask(x, t) * math.nan


def test_only_some_solvers(quick, monkeypatch, tmp_path):
    """Of the solvers named there are the same rows as among all; others can join them later."""
    without_pictures(monkeypatch)
    every = benched(tmp_path / "all", *ARGS)
    names = ("DPMSolverPP(2)", "Ancestral")
    some = benched(tmp_path / "some", *ARGS, "--only", *names)
    assert timeless(some) == timeless(row for row in every if row["solver"] in names)
    more = benched(tmp_path / "some", *ARGS, "--only", "DDIM")
    assert timeless(more) == timeless([*some, *(row for row in every if row["solver"] == "DDIM")])


def test_what_diverges_stops_no_other(monkeypatch, tmp_path):
    """An error of one solver is its row; nan is a number like others, and comes last."""
    some = [on_grid("Broken", Broken(), "uniform"), on_grid("Wild", Wild(), "uniform"), *handful()[1:2]]
    monkeypatch.setattr(module, "flows", lambda: some)
    monkeypatch.setattr(module, "diffusions", list)
    found = benched(tmp_path, "--nfe", 4)
    assert [row.get("skipped") for row in found] == ["the drift of sample 0 is not finite", None, None]
    assert math.isnan(found[1]["rms"]) and found[2]["rms"] < 1
    text = (tmp_path / "report.md").read_text()
    assert text.index("| DDIM |") < text.index("| Wild |") and "Broken: the drift of sample 0" in text
    without_pictures(monkeypatch)
    assert [repr(row) for row in timeless(benched(tmp_path, "--nfe", 4))] == [repr(row) for row in timeless(found)]


EVERY = [*flows()[1:], *(s for s in diffusions() if s.name != "Tuned flow")]


@pytest.fixture(scope="module")
def ring():
    return case("modes", "ve", None, 100, 0, CPU)


def test_every_solver_keeps_its_budget(ring):
    """Of all solvers on all grids, at any budget: never more network calls than that, and those on a grid as many whole
    intervals as fit; or an error that says what is needed.
    """
    assert len({(s.name, s.grid, s.weak) for s in EVERY}) == len(EVERY) > 100
    each = {s.name: 2 for s in EVERY if re.match(r"DPMSolver\(2|DPMSolverPP2S|RES\(2|EDMHeun|Flow", s.name)}
    each |= {"DPMSolver(3)": 3, "RES(3)": 3}
    x_T = ring.starts(4, 1, CPU)
    for solver in EVERY:
        for calls in (1, 2, 7):
            score, k = Counted(ring.subject.score), each.get(solver.name, 1)
            try:
                x, said = solver.solve(ring, score, x_T, calls)
            except ValueError as error:
                assert "network calls" in str(error) and (solver.grid == "its own" or calls < k)
                continue
            assert x.shape == x_T.shape and said["steps"]
            if solver.grid == "its own":
                assert said["nfe"] <= calls
            else:
                assert score.nfe == calls // k * k, (solver.name, calls)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_tolerances(ring, eta):
    """The tightest tolerance of those that stay within the budget, going down from the loosest; a run that is out of it
    is stopped there, not followed to its end.
    """
    make = GottaGoFast if eta else lambda rtol, atol: DPMSolverAdaptive(3, rtol, atol)
    x_T, calls = ring.starts(5, 1, CPU), 90
    score = Counted(ring.subject.score)
    x, said = adaptive("it", make, eta).solve(ring, score, x_T, calls)
    ts, asked = torch.tensor([1.0, 0.0], dtype=F64), []
    for tol in solvers.TOLERANCES:
        one = Counted(ring.subject.score)
        noise = iid(torch.Generator().manual_seed(calls))
        want = sample(VE().reverse(one, eta), x_T, ts, make(tol, tol), noise=noise)
        asked.append(one.nfe)
        if one.nfe > calls:
            break
        end, step = want, make(tol, tol)
    assert len(asked) > 2 and asked[-1] > calls and x.equal(end)
    assert said["steps"] == [repr(step)] and said["nfe"] == asked[-2]
    assert score.nfe == sum(asked[:-1]) + calls
    assert said["accepted"] > 0 and said["rejected"] >= 0


# problems


DIGITS = pytest.param("digits", DigitClasses(), marks=pytest.mark.slow)


@pytest.mark.parametrize(("problem", "law"), [("modes", Modes()), ("lattice", Lattice()), DIGITS])
@pytest.mark.parametrize("process", ["vp", "edm"])
def test_exact_problems(problem, law, process):
    """The score is the law's on the process, the truth where its flow ends, and the Gaussian that of its data."""
    here, sde = case(problem, process, None, 300, 0, CPU), solvers.PROCESSES[process]
    score = law.law().diffuse(sde)
    x_T = here.starts(3, 7, CPU)
    assert x_T.equal(starts(sde, 3, 7, law.law().shape)) and here.sde == sde
    assert here.subject.score(x_T, torch.tensor(sde.T)).equal(score(x_T, torch.tensor(sde.T)))
    if process == "vp":
        torch.testing.assert_close(here.truth(x_T), truth(score, sde, x_T), rtol=0, atol=1e-12)
    x_0 = law.law().sample(20_000, torch.Generator().manual_seed(1))
    std = float((x_0 - x_0.mean(0)).square().mean().sqrt())
    assert here.around.std == pytest.approx(std, rel=0.1)
    assert float((here.around.mean - x_0.mean(0)).abs().max()) < 6 / math.sqrt(1000)


@pytest.mark.slow
def test_memorised_digits():
    """The law of the digits themselves: exact samples are digits with the noise of t_min."""
    here = case("memorised", "vp", None, 200, 0, CPU)
    law = here.subject.score.law
    assert isinstance(law, Empirical) and law.n == 1797
    x_T = here.starts(4, 1, CPU)
    near = torch.cdist(here.truth(x_T).flatten(1), law.data).min(1).values / 8
    assert (near < 4 * float(VP().sigma(VP().t_min))).all()
    fresh = here.subject.fresh
    for measure, f in ((sliced_wasserstein, "sliced_wasserstein"), (energy_distance, "energy_distance")):
        assert here.subject.measures[f](fresh[0]) < 2 * measure(fresh[1], fresh[2])


SMALL = ("--steps", "60", "--warmup", "10", "net:mlp", "--net.width", "16", "--net.depth", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small network on a toy in the plane."""
    folder = tmp_path_factory.mktemp("model") / "model"
    assert main(["train", "data:ring", "--data.n", "150", *SMALL, "--device", "cpu", "--out", str(folder)]) == 0
    return folder


def test_a_checkpoint(quick, monkeypatch, tmp_path, model):
    """Given a model its flow is the problem, measured in float32 against a solution of its own to 1e-5."""
    without_pictures(monkeypatch)
    monkeypatch.setattr(module, "flows", lambda: handful()[1:4])
    options = ["--nfe", "6", "--nfe-sde", "5", "--n", "16", "--n-sde", "20", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["bench", "--model", str(model), *options]) == 0
    found = rows(tmp_path)
    assert {row["problem"] for row in found} == {"model"} and len(found) == 6
    net = load(model).model
    sde = net.sde
    x_T = sde.prior((16, 2), iid(torch.Generator().manual_seed(1)), torch.float32)
    end = truth(net, sde, x_T.double())
    for row in found[:2]:
        ts, steps = eval(row["grid"], {"grid": grid, "sde": sde}), [eval(step, dict(PUBLIC)) for step in row["steps"]]
        assert row["rms"] == pytest.approx(Error.of(sample(sde.reverse(net, 0.0), x_T, ts, *steps), end).rms, rel=1e-2)
    assert main(["bench", "--model", str(model), "--problems", "model", *options]) == 0


# bad input

BAD = {
    "a problem without its model": ("--problems model", "model must be given for the problem model"),
    "and beside others": ("--problems modes model", "model must be given for the problem model"),
    "a model without its problem": ("--problems modes --model MODEL", "model must be given for the problem model"),
    "no model": ("--model NONE", "checkpoint must"),
    "no problem": ("--problems cats", "--problems"),
    "no process": ("--processes sde", "--processes"),
    "no calls": ("--nfe 0", "nfe must"),
    "fewer than none": ("--nfe-sde -5", "nfe must"),
    "no starts": ("--n 0", "n must"),
    "no samples": ("--n-sde 0", "n must"),
    "one sample": ("--problems modes --n-sde 1", "n must"),
    "no such solver": ("--only DDIM DDIN", "only must name solvers, got ['DDIN']; there are "),
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
