"""`bench` and `compare` as functions: rows that can be made again, true counts within their budgets, and errors and
distances that are what they say; for solvers of the library and for one's own.
"""

import math
from dataclasses import replace

import pytest
import torch
from made import Broken, Wild, network_calls

from scoresde import (
    VE,
    VP,
    Counted,
    Flow,
    Reference,
    ScoreModel,
    Step,
    grid,
    iid,
    ode,
    per_sample,
    process,
    sample,
    steps,
)
from scoresde.data import Ring
from scoresde.lab import (
    COMPARED,
    PROCESSES,
    SPACINGS,
    DigitClasses,
    Lattice,
    Modes,
    Solver,
    adaptive,
    bench,
    compare,
    diffusions,
    energy_distance,
    exact_subject,
    floors,
    flows,
    on_grid,
    paths,
    sliced_wasserstein,
    solvers,
    trained_subject,
    tuned,
)
from scoresde.model import Karras
from scoresde.nn import MLP
from scoresde.noise import seeds
from scoresde.ode import Dopri5
from scoresde.steps import METHODS, AnalyticDPM, Ancestral, DPMSolverAdaptive, Error, GottaGoFast, tune
from scoresde.steps.catalogue import annealed_langevin, fixed, own, predictor_corrector

F64 = torch.float64
N, WEAK, MANY = 16, 50, 200
TIMES = ("seconds", "overhead_us", "seconds_to_fit")


def quick_tune(q, like, calls, around, pilots):
    """With few intervals for its pilots."""
    return tune(q, like, calls, around, replace(pilots, n=8, fine=30))


PUBLIC = {
    **vars(ode), **vars(process), **vars(steps), "grid": grid, "Reference": Reference, "inf": math.inf,
    "tune": quick_tune,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(solvers, "tune", quick_tune)


class Mine(Step):
    """Heun's method on the flow, by hand: two network calls a step."""

    order = 2

    def __call__(self, p, x, t, s, noise):
        h = float(s - t)
        first = p.drift(x, t)
        second = p.drift(x + h * first, s)
        return x + h / 2 * (first + second)


class Noisy(Step):
    """The method of Euler and Maruyama, by hand."""

    def __call__(self, p, x, t, s, noise):
        h = float(t - s)
        return x - h * p.drift(x, t) + math.sqrt(h) * float(p.diffusion(t)) * noise(x, t, s)


def handful():
    """Of each kind one, on the flow."""
    placed = (
        ("DDIM", "uniform"), ("DPMSolverPP(2)", "log_snr"), ("DPMSolverPP(2)", "reference"), ("DEIS(3)", "karras"),
        ("GaussianReference", "reference"), ("DPMSolver(3)", "reference"), ("EDMHeun", "quadratic"),
        ("Flow(Heun())", "log_snr"),
    )  # fmt: skip
    loose = adaptive("DPMSolverAdaptive(2)", lambda rtol, atol: DPMSolverAdaptive(2, rtol, atol), 0.0)
    return [tuned(8), *(on_grid(METHODS[name], spacing) for name, spacing in placed), loose]


def few():
    """Of each kind one, on the reverse SDE."""
    placed = ("DDPM, fixed-small", "uniform"), ("GaussianReference, eta 0.6", "reference")
    return [*(on_grid(METHODS[name], spacing) for name, spacing in placed), adaptive("GottaGoFast", GottaGoFast, 1.0)]


CELLS = [
    *((s, k) for s in handful() for k in ((6, 12, 90) if s.grid == "its own" else (6, 12))),
    *((s, k) for s in few() for k in ((20, 90) if s.grid == "its own" else (20,))),
]


def watched(subject):
    """The same, and how many points its score is asked for at each call."""
    asked = []

    def score(x, t):
        asked.append(len(x))
        return subject.score(x, t)

    return replace(subject, score=score), asked


def modes(n, seed=0, sde=VP()):
    return exact_subject(repr(Modes()), Modes().law(), sde, n, seed)


@pytest.fixture(scope="module")
def subject():
    return modes(WEAK, 3)


@pytest.fixture(scope="module")
def benched(subject):
    """Rows, and for how many points the score was asked."""
    seen, asked = watched(subject)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solvers, "tune", quick_tune)
        return list(bench(seen, CELLS, N, WEAK, 3)), asked


def named(rows, **of):
    return [row for row in rows if all(row[k] == v for k, v in of.items())]


# bench: rows


def test_a_row_for_each_cell(benched):
    """In turn. Those of the flow have errors, the others distances; one that was not run says why, and no more."""
    found = benched[0]
    assert [(row["solver"], row["spacing"], row["budget"]) for row in found] == [(s.name, s.grid, k) for s, k in CELLS]
    for row, (solver, _) in zip(found, CELLS, strict=True):
        assert row["package"] == "scoresde"
        if "skipped" in row:
            assert row.keys() == {"solver", "package", "spacing", "budget", "skipped"}
            continue
        assert row["n"] == (WEAK if solver.weak else N) and row["seed"] == 3
        assert ("rms" in row) != solver.weak and ("energy_distance" in row) == solver.weak
        assert row["seconds"] > 0 and row["overhead_us"] > 0
        if solver.grid != "its own":  # whose calls at other tolerances are no part of its seconds
            assert row["overhead_us"] < 1e6 * row["seconds"] / row["nfe"] + 1


def truth_calls(subject):
    """Calls of the flow's solution to 1e-10."""
    seen, asked = watched(subject)
    truth(seen.score, subject.sde, starts(subject.sde, N, 4, subject.shape))
    return len(asked)


def test_network_calls_are_true(benched, subject):
    """All of a row's calls are within its budget; of a step of k calls an interval as many as fit; together they are
    what the score was asked for, but for what found tolerances.
    """
    found, asked = [row for row in benched[0] if "nfe" in row], benched[1]
    each = {"DPMSolver(3)": 3, "EDMHeun": 2, "Flow(Heun())": 2}
    for row in found:
        k = each.get(row["solver"], 1)
        assert row["nfe"] <= row["budget"] and (row["spacing"] == "its own" or row["nfe"] == row["budget"] // k * k)
    tolerances = len(solvers.TOLERANCES) * (6 + 12 + 90)
    on_flow = sum(row["nfe"] for row in found if row["n"] == N) + truth_calls(subject)
    assert on_flow <= asked.count(N) <= on_flow + tolerances
    weak = sum(row["nfe"] for row in found if row["n"] == WEAK)
    assert weak <= asked.count(WEAK) <= weak + len(solvers.TOLERANCES) * (20 + 90)
    assert asked.count(8) == sum(row.get("nfe_to_fit", 0) for row in found) > 0


def starts(sde, n, seed, shape):
    return sde.prior((n, *shape), iid(torch.Generator().manual_seed(seed)), F64)


def truth(score, sde, x_T):
    ts = torch.tensor([sde.T, sde.t_min], dtype=F64)
    return sample(sde.reverse(score, 0.0), x_T, ts, Flow(Dopri5(1e-10, 1e-10)))


def number(said):
    """The number in "seed 17"."""
    return int(said.removeprefix("seed "))


def rebuilt(row, score, x_0, shape):
    """The samples, from nothing but a row of `bench`, the score, data and public names."""
    sde = eval(row["sde"], dict(PUBLIC))
    x_T, q = starts(sde, row["n"], number(row["starts"]), shape), sde.reverse(score, 0.0)
    names = {**PUBLIC, "sde": sde, "x_0": x_0, "x_T": x_T, "q": q}
    made = [eval(step, names) for step in row["steps"]]
    if row["grid"] == "of the tuning":
        ts, made = made[0].ts, [made[0].step]
    elif row["grid"] == "its own":
        ts = torch.tensor([sde.T, sde.t_min], dtype=F64)
    else:
        ts = eval(row["grid"], names)
    noise = iid(torch.Generator().manual_seed(number(row["noise"]))) if "noise" in row else iid()
    return sample(sde.reverse(score, row["eta"]), x_T, ts, *made, noise=noise)


@pytest.fixture(scope="module")
def end(subject):
    return truth(subject.score, VP(), starts(VP(), N, 4, (2,)))


@pytest.mark.parametrize("name", list(dict.fromkeys(s.name for s, _ in CELLS)))
def test_rows_are_recipes(benched, subject, end, name):
    """The numbers of every row follow from it, in eval's words, to 1e-9."""
    made = 0
    for row in named(benched[0], solver=name):
        if "skipped" in row:
            continue
        assert row["subject"] == repr(Modes()) and eval(row["subject"], {"Modes": Modes}) == Modes()
        score = Counted(subject.score)
        x, made = rebuilt(row, score, subject.x_0, (2,)), made + 1
        assert score.nfe == row["nfe"] + row.get("nfe_to_fit", 0)
        if "rms" in row:
            want = vars(Error.of(x, end))
            off = (x - end).square().mean(1).sqrt()
            want = {**want, "switched": sum(float(e) > 0.5 * Reference.fit(subject.x_0).std for e in off) / N}
        else:
            want = {k: measure(x) for k, measure in subject.measures.items()}
        for key, value in want.items():
            assert row[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key
    assert made > 0


def test_a_truth_that_is_known_is_taken(subject, end):
    """Given the flow's end the rows are those without it, and none of its calls are made."""
    cells = [(on_grid(METHODS["DDIM"], "uniform"), 6)]
    seen, asked = watched(subject)
    (given,), (found,) = bench(seen, cells, N, WEAK, 3, end), bench(subject, cells, N, WEAK, 3)
    assert len(asked) == 6 and {k: v for k, v in given.items() if k not in TIMES} == {
        k: v for k, v in found.items() if k not in TIMES
    }


def test_what_diverges_stops_no_other(subject):
    """An error of one solver is its row, and so is what is not finite."""
    wild = fixed("Wild", Wild()), fixed("Wild, eta 1", Wild(), eta=1.0)
    cells = [(on_grid(m, "uniform"), 4) for m in (fixed("Broken", Broken()), *wild, METHODS["DDIM"])]
    found = list(bench(subject, cells, N, WEAK, 3))
    assert [row.get("skipped") for row in found[::3]] == ["the drift of sample 0 is not finite", None]
    assert found[3]["rms"] < 1 and all(
        row["skipped"].startswith("sample 0 is not finite at t = ") for row in found[1:3]
    )


def test_a_truth_is_of_the_starts(subject):
    """One of another number of starts, or of another shape, is refused before anything is run."""
    for shape in ((N + 1, 2), (N, 3), (N,), (1, 2)):
        with pytest.raises(ValueError, match=rf"^truth must have the shape of the starts, \({N}, 2\), got "):
            next(bench(subject, [(on_grid(METHODS["DDIM"], "uniform"), 4)], N, WEAK, 3, torch.zeros(shape)))


# bench: budgets

EACH = {
    **dict.fromkeys(("DPMSolver(2)", "DPMSolverPP2S", "RES(2)", "EDMHeun", "Flow(Heun())", "Mine"), 2),
    **dict.fromkeys(("DPMSolver(3)", "RES(3)"), 3),
}
EVERY = [*flows([own("Mine", Mine())]), *diffusions([own("Noisy", Noisy(), 1.0)])]


@pytest.fixture(scope="module")
def on_ve():
    return modes(100, sde=VE())


def test_every_solver_keeps_its_budget(on_ve):
    """Of all solvers on all grids, at any budget: never more network calls than that, and those on a grid as many whole
    intervals as fit; what a row says is what the network got; or an error says what is needed.
    """
    assert len({(s.name, s.grid, s.weak) for s in EVERY}) == len(EVERY) > 100
    seen, asked = watched(on_ve)
    cells = [(solver, calls) for solver in EVERY for calls in (1, 2, 7)]
    found, before = bench(seen, cells, 4, 6, truth=torch.zeros(4, 2, dtype=F64)), 0
    for (solver, calls), row in zip(cells, found, strict=True):
        made, before, k = len(asked) - before, len(asked), EACH.get(solver.name, 1)
        if "skipped" in row:
            at_all = made == 0 if solver.grid != "its own" else made == calls
            assert "calls" in row["skipped"] and at_all, row
            assert calls < k or solver.grid == "its own" or (solver.grid, calls) == ("tuned", 1), row
            continue
        assert row["nfe"] <= calls and row["steps"]
        if solver.grid == "its own":
            one = Counted(on_ve.score)
            rebuilt(row, one, on_ve.x_0, (2,))
            assert one.nfe == row["nfe"] <= made, row
        else:
            assert row["nfe"] == calls // k * k == made - row.get("nfe_to_fit", 0), row


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_tolerances(on_ve, eta):
    """The tightest tolerance of those that stay within the budget, going down from the loosest; a run that is out of it
    is stopped there, not followed to its end.
    """
    make = GottaGoFast if eta else lambda rtol, atol: DPMSolverAdaptive(3, rtol, atol)
    x_T, calls = on_ve.starts(5, 1), 90
    score = Counted(on_ve.score)
    x, said = adaptive("it", make, eta).solve(on_ve, score, x_T, calls)
    ts, asked = torch.tensor([1.0, 0.0], dtype=F64), []
    for tol in solvers.TOLERANCES:
        one = Counted(on_ve.score)
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


@pytest.mark.parametrize("spacing", ["cosine", "equal", "", "usual"])
def test_a_grid_is_one_of_the_usual(subject, spacing):
    """Any other is an error that names it, and not a row: in `compare`, for a solver of `bench`, and in `paths`."""
    said = f"^spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}$"
    for wrong in (
        lambda: list(compare(subject, [(METHODS["DDIM"], 5)], spacing)),
        lambda: on_grid(METHODS["DDIM"], spacing),
        lambda: list(paths(subject, spacing)),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


# bench: a step of one's own


def test_ones_own_stands_among_ours(subject):
    """On every grid, by the names of flows() and diffusions(), with rows of the same kind; by hand or by us, Heun's
    method has one error, and that of Euler and Maruyama one distance.
    """
    mine, noisy = own("Mine", Mine()), own("Noisy", Noisy(), 1.0)
    assert [s.grid for s in flows([mine]) if s.name == "Mine"] == list(SPACINGS)
    assert [s.grid for s in diffusions([noisy]) if s.name == "Noisy"] == ["log_snr", "uniform", "reference"]
    for every, names, calls in (
        (flows([mine]), ("Mine", "Flow(Heun())"), 13),
        (diffusions([noisy]), ("Noisy", "EulerMaruyama"), 12),
    ):
        chosen = [s for name in names for s in every if s.name == name]
        found = list(bench(subject, [(s, calls) for s in chosen], N, WEAK, 3))
        half = len(found) // 2
        for a, b in zip(found[:half], found[half:], strict=True):
            assert a.keys() == b.keys() and a["spacing"] == b["spacing"] and a["nfe"] == b["nfe"] == 12
            for key in {"rms", "median", "switched", *subject.measures} & a.keys():
                assert a[key] == pytest.approx(b[key], rel=1e-9)


@pytest.mark.parametrize("step", [Flow(Dopri5()), GottaGoFast(), DPMSolverAdaptive(2)], ids=str)
def test_ones_own_has_one_price(step):
    """A step that chooses how often it asks has no number of intervals for a budget; `adaptive` is for those."""
    with pytest.raises(ValueError, match="^step must make as many network calls in every interval, got "):
        own("Mine", step, float(isinstance(step, GottaGoFast)))


def test_a_solver_of_ones_own_without_a_grid(subject, end):
    """A `Solver` has only a function of (subject, score, x_T, calls): one that knows the answer makes no error."""

    def solve(subject, score, x_T, calls):
        score(x_T, torch.tensor(1.0))
        return end.clone(), {"steps": ["from memory"]}

    (row,) = bench(subject, [(Solver("Oracle", "none", 0.0, solve, package="mine"), 9)], N, WEAK, 3)
    assert (row["solver"], row["package"], row["nfe"], row["steps"]) == ("Oracle", "mine", 1, ["from memory"])
    assert row["rms"] < 1e-9 and row["switched"] == 0


# compare: counts


@pytest.fixture(scope="module")
def many():
    return modes(MANY)


@pytest.fixture(scope="module")
def compared(many):
    """All samplers with two budgets, and for how many points the score was asked."""
    seen, asked = watched(many)
    return list(compare(seen, [(METHODS[name], k) for k in (12, 24) for name in COMPARED])), asked


def test_network_calls_of_a_comparison_are_true(compared):
    """nfe is what the sampler's formula says, never above the budget, and all of them together are the calls that the
    score got, with those to fit variances, which are told apart.
    """
    found, asked = [row for row, _ in compared[0]], compared[1]
    assert [(row["method"], row["budget"]) for row in found] == [(name, k) for k in (12, 24) for name in COMPARED]
    for row in found:
        assert row["nfe"] == network_calls(row["method"], row["budget"]) <= row["budget"]
        fits = {"DDPM, optimal": row["budget"], "Predictor-corrector, MALA": 9 * (row["budget"] // 3)}
        assert row["nfe_to_fit"] == fits.get(row["method"], 0)
    assert asked.count(MANY) == sum(row["nfe"] for row in found)
    assert asked.count(1000) == 12 + 24 and asked.count(512) == 9 * (4 + 8)
    assert len(asked) == asked.count(MANY) + sum(row["nfe_to_fit"] for row in found)


LEAST = {"Predictor-corrector": 2, "Predictor-corrector, MALA": 3, "Flow(Heun())": 2}


def test_below_what_a_sampler_needs_its_row_says_so():
    """And it has no samples; the others have theirs."""
    small, least = modes(20), {**LEAST, "Annealed Langevin": 6}
    every = [annealed_langevin(3) if name == "Annealed Langevin" else METHODS[name] for name in COMPARED]
    found = list(compare(small, [(m, k) for k in (1, 5) for m in every]))
    assert [(row["method"], row["budget"]) for row, _ in found] == [(name, k) for k in (1, 5) for name in COMPARED]
    for row, x in found:
        name, budget = row["method"], row["budget"]
        if ran := least.get(name, 1) <= budget:
            assert row["nfe"] == network_calls(name, budget) or name == "Annealed Langevin"
        else:
            said = f"{name} needs at least {least[name]} network calls, got {budget}"
            assert row == {"method": name, "budget": budget, "skipped": said}
        assert x.shape == (20 * ran, 2)


def test_what_diverges_stops_no_other_comparison(many):
    """Its row says why, and there are no samples of it; the others are what they are without it."""
    wild, broken, ddim = fixed("Wild", Wild()), fixed("Broken", Broken()), METHODS["DDIM"]
    (a, x), (b, y), (c, z) = compare(many, [(wild, 4), (broken, 4), (ddim, 4)])
    ((want, samples),) = compare(many, [(ddim, 4)])
    assert a["skipped"].startswith("sample 0, of seed 0, is not finite")
    assert b == {"method": "Broken", "budget": 4, "skipped": "the drift of sample 0 is not finite"}
    assert len(x) == len(y) == 0 and z.equal(samples) and {**c, "seconds": 0} == {**want, "seconds": 0}


@pytest.mark.parametrize("batch", [0, -1, 2.0])
def test_a_batch_holds_one_sample_at_least(many, batch):
    """Of none there is no comparison."""
    with pytest.raises(ValueError, match="^batch must be a whole number >= 1"):
        next(compare(many, [(METHODS["DDIM"], 4)], batch=batch))


# compare: the numbers do not depend on how they were made


def test_batches_do_not_show(compared, many):
    """The same seed gives the same samples and the same numbers in batches of 64."""
    again = compare(many, [(METHODS[name], 12) for name in COMPARED], batch=64)
    for (a, x), (b, y) in zip(compared[0], again, strict=False):
        torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-5)
        for key in a.keys() - {"seconds"}:
            assert b[key] == (pytest.approx(a[key], rel=1e-3, abs=1e-5) if isinstance(a[key], float) else a[key]), key


class Careful(Step):
    """Euler's method on the flow, which asks three times where a sample starts on the right."""

    def __call__(self, p, x, t, s, noise):
        for _ in range(1 + 2 * int(bool((x[:, 0] > 0).any()))):
            drift = p.drift(x, t)
        return x + float(s - t) * drift


def test_unequal_batches_do_not_show():
    """A row's calls are those of a batch, the most where batches differ, since the samples drawn together take as many:
    neither the sum over the batches nor its mean.
    """
    here, method = modes(20), fixed("Careful", Careful())
    starts = VP().prior((20, 2), per_sample(seeds(0, 20)), torch.float32)
    assert 0 < (starts[:, 0] > 0).sum() < 20
    nfe = [row["nfe"] for batch in (20, 7, 1) for row, _ in compare(here, [(method, 1)], batch=batch)]
    assert nfe == [3, 3, 3]


def test_another_seed_gives_other_samples(compared, many):
    """Of every sampler; from the same law, so that their means agree within 5 standard errors."""
    again = compare(many, [(METHODS[name], 12) for name in COMPARED], seed=1)
    for (_, x), (b, y) in zip(compared[0], again, strict=False):
        assert not torch.isclose(x, y).all(1).any() and b["seed"] == 1
        error = ((x.var(0) + y.var(0)) / MANY).sqrt()
        assert ((x.mean(0) - y.mean(0)).abs() < 5 * error).all()


# compare: rows are recipes

FITTED = ("DDPM, optimal", "Predictor-corrector, MALA")
"""Whose steps are made from data, which a row does not hold."""


def remade(row, score, sde, shape, x_0=None):
    """The samples, from nothing but a row of `compare`, the score and public names."""
    assert repr(sde) == row["sde"]
    ts = eval(row["grid"], {**PUBLIC, "sde": sde, "x_0": x_0})
    made = [eval(step, dict(PUBLIC)) for step in row["steps"]]
    noise, p = per_sample(seeds(row["seed"], row["n"])), sde.reverse(score, row["eta"])
    x = sample(p, sde.prior((row["n"], *shape), noise, torch.float32), ts, *made, noise=noise)
    with torch.no_grad():
        return p.denoise(x, ts[-1]) if row["denoise"] else x


def test_rows_of_a_comparison_are_recipes(compared):
    """The samples of every row whose steps are values follow from it, to 1e-6."""
    law, k = Modes().law(), 0
    for row, y in compared[0]:
        assert row["subject"] == repr(Modes()) and not row["denoise"]
        if row["method"] not in FITTED:
            x = remade(row, law.diffuse(VP()), eval(row["sde"], dict(PUBLIC)), (2,))
            torch.testing.assert_close(y, x, rtol=0, atol=1e-6 * max(1.0, float(x.abs().max())))
            k += 1
    assert k == 2 * (len(COMPARED) - len(FITTED))


DIGITS = pytest.param(DigitClasses(8), VP(), "log_snr", 30, 1e-4, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("problem", "sde", "spacing", "n", "tol"),
    [
        (Lattice(), VE(0.01, 20.0), "uniform", 20, 1e-5),
        (Modes(3), VP(), "karras", 20, 1e-5),
        (Modes(), VP(), "reference", 20, 1e-5),
        DIGITS,
    ],
    ids=str,
)
def test_other_laws_processes_and_grids(problem, sde, spacing, n, tol):
    """The law, the process and the grid are those that were asked for."""
    here = exact_subject(repr(problem), problem.law(), sde, n)
    for row, y in compare(here, [(METHODS[name], 10) for name in COMPARED], spacing):
        assert row["subject"] == repr(problem) and f"grid.{spacing}(" in row["grid"]
        if row["method"] not in FITTED:
            x = remade(row, problem.law().diffuse(sde), sde, here.shape, here.x_0)
            torch.testing.assert_close(y, x, rtol=tol, atol=max(1e-6, tol if tol > 1e-5 else 0))


def test_the_steps_of_the_literature(compared):
    """Which steps a row names, and with which eta; annealed Langevin dynamics visits times, not intervals."""
    found = {row["method"]: row for row, _ in compared[0] if row["budget"] == 12}
    made = {name: row["steps"] for name, row in found.items()}
    assert made["DDPM, fixed-small"] == made["DDIM"] == [repr(Ancestral(0.0))]
    assert made["DDPM, fixed-large"] == [repr(Ancestral(1.0))]
    assert {name for name, row in found.items() if row["eta"] == 0} == {"DDIM", "Flow(Heun())"}
    corrector, _ = (eval(step, dict(PUBLIC)) for step in made["Predictor-corrector"])
    (langevin,) = (eval(step, dict(PUBLIC)) for step in made["Annealed Langevin"])
    p, t, z = VP().reverse(Modes().law().diffuse(VP())), torch.tensor(0.3, dtype=F64), torch.zeros(1, 2)
    assert float(corrector.step_size(p, t, z, z)) == pytest.approx(2 * 0.16**2 * float(VP().var(t)), rel=1e-12)
    assert (corrector.n, langevin.n) == (1, 5)
    assert [row["grid"] for name, row in found.items() if name == "Annealed Langevin"] == ["grid.log_snr(sde, 1)"]
    other, _ = predictor_corrector(0.3).steps(p, grid.log_snr(VP(), 4), None)
    assert float(other.step_size(p, t, z, z)) == pytest.approx(2 * 0.3**2 * float(VP().var(t)), rel=1e-12)


def test_optimal_variance(compared, many):
    """Its samples are those of `AnalyticDPM` fitted to 1000 points of the law."""
    x = next(x for row, x in compared[0] if row["method"] == "DDPM, optimal")
    p, ts, noise = VP().reverse(many.score), grid.log_snr(VP(), 12), per_sample(seeds(0, MANY))
    assert many.x_0.shape == (1000, 2)
    step = AnalyticDPM.fit(p, many.x_0, ts, iid(torch.Generator().manual_seed(0)))
    want = sample(p, VP().prior((MANY, 2), noise, torch.float32), ts, step, noise=noise)
    torch.testing.assert_close(x, want, rtol=0, atol=1e-6)


# compare: what is measured


def test_measures_are_of_the_samples(compared, many):
    """Distances are the library's, to draws from the exact law at t_min; the log-density is less -entropy, in closed
    form where modes are apart, up to the 100,000 draws that it is measured with; weights are shares of the modes.
    """
    v = 0.05**2 * float(VP().alpha(VP().t_min)) ** 2 + float(VP().sigma(VP().t_min)) ** 2
    centres = Modes().law().means * VP().alpha(VP().t_min)
    level = -math.log(8) - 1 - math.log(2 * math.pi * v)
    for row, x in compared[0]:
        square = (x.double()[:, None] - centres).square().sum(2)
        log_p = (-square / (2 * v)).logsumexp(1) - math.log(8 * 2 * math.pi * v)
        assert row["log_density_gap"] == pytest.approx(float(log_p.mean()) - level, abs=4.5 / math.sqrt(100_000))
        if row["method"] != "Annealed Langevin":  # far off, a sample may belong to two modes
            shares = torch.bincount(square.argmin(1), minlength=8) / MANY
            assert row["mode_weights"] == pytest.approx(float((shares - 1 / 8).abs().sum() / 2), abs=5e-3)
        for key in ("sliced_wasserstein", "energy_distance"):
            assert row[key] == pytest.approx(many.measures[key](x), rel=1e-9)


@pytest.mark.slow
def test_samplers_come_close_to_the_law():
    """With 160 calls DDIM, all three DDPM and Heun are as far from the law as real samples are, within 4 standard
    deviations of that. From the same points DDIM goes where Heun goes: its distance to Heun's end, sample by sample,
    falls with order 1.
    """
    here, law = modes(1000), ("sliced_wasserstein", "energy_distance", "mode_weights")
    cells = [(METHODS[name], k) for k in (40, 80, 160) for name in COMPARED]
    found = {(row["method"], row["budget"]): (row, x) for row, x in compare(here, cells)}
    close = [name for name in COMPARED if name.startswith("DDPM")]
    assert len(close) == 3
    for key in law:
        floor = torch.tensor([here.measures[key](x) for x in here.fresh], dtype=F64)
        for name in (*close, "DDIM", "Flow(Heun())"):
            assert abs(found[name, 160][0][key] - floor.mean()) < 4 * floor.std(), (name, key)
    end = found["Flow(Heun())", 160][1]
    off = [float((found["DDIM", k][1] - end).norm(dim=1).median()) for k in (40, 80, 160)]
    assert off[0] / off[1] == pytest.approx(2, rel=0.3) and off[1] / off[2] == pytest.approx(2, rel=0.15)


def test_ones_own_is_compared_with_ours(many):
    """From the same starting points on the same grid, with the same network calls: Heun's method by hand ends where
    ours does, and that of Euler and Maruyama too.
    """
    pairs = ((own("Mine", Mine()), "Flow(Heun())"), (own("Noisy", Noisy(), 1.0), "EulerMaruyama"))
    for mine, name in pairs:
        (a, x), (b, y) = compare(many, [(mine, 25), (METHODS[name], 25)], "reference", seed=2)
        assert a.keys() == b.keys() and a["nfe"] == b["nfe"] == network_calls(name, 25) and a["grid"] == b["grid"]
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
        for key in many.measures:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-4), key


# compare: a network


@pytest.fixture(scope="module")
def network():
    """One that was not trained, and the data that it is for."""
    data, net = Ring(n=150).load(), MLP((2,), 16, 1)
    g = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=g)
    return ScoreModel(net, VP(), Karras(Reference.fit(data.train))), data


def test_a_network_is_compared(network):
    """The samples are those of the network, from the rows; the last call removes the noise, and is counted; distances
    are to the held-out data, of which there are as many.
    """
    model, data = network
    found = list(compare(trained_subject(model, data), [(METHODS[name], 8) for name in COMPARED]))
    assert [row["method"] for row, _ in found] == list(COMPARED)
    for row, x in found:
        if row["method"] == "Annealed Langevin":
            assert row["skipped"] == "Annealed Langevin needs at least 11 network calls, got 8"
            continue
        assert row["denoise"] and row["n"] == len(data.held_out) == 30
        assert row["nfe"] == network_calls(row["method"], 7) + 1 <= 8
        if row["method"] not in FITTED:
            torch.testing.assert_close(x, remade(row, model, VP(), (2,)), rtol=1e-5, atol=1e-5)
        assert row["sliced_wasserstein"] == pytest.approx(sliced_wasserstein(x, data.held_out), rel=1e-9)
        assert row["energy_distance"] == pytest.approx(energy_distance(x, data.held_out), rel=1e-9)


def test_network_is_called_as_often_as_is_told(network):
    """nfe and nfe_to_fit are all the calls that the network gets, in each of the batches."""
    model, data = network
    made, hook = [], model.register_forward_pre_hook(lambda _, args: made.append(len(args[0])))
    found = [
        row for row, _ in compare(trained_subject(model, data), [(METHODS[name], 12) for name in COMPARED], batch=13)
    ]
    hook.remove()
    assert len(found) == len(COMPARED)
    for size in (13, 13, 4):
        assert made.count(size) == sum(row["nfe"] for row in found) * (13, 13, 4).count(size)
    assert made.count(120) == sum(row["nfe_to_fit"] for row in found) == 11 + 9 * 3
    assert len(made) == made.count(13) + made.count(4) + made.count(120)


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_that_have_a_name(name):
    """A solver of the reverse SDE ends as near to the law on each as real samples are, up to a factor of 3."""
    sde, solver = PROCESSES[name], on_grid(METHODS["DPMSolverPP(2), eta 1"], "log_snr")
    here = modes(MANY, sde=sde)
    (row,) = bench(here, [(solver, 40)], 1, MANY)
    assert row["sde"] == repr(sde) and row["nfe"] == 40
    assert all(row[key] < 3 * floor for key, floor in floors([here.measured(x) for x in here.fresh]).items())
