"""The laboratory's reports have every number of their rows, pictures of the same, and nothing else."""

import base64
import json
import math
import re
from html import unescape

import numpy as np
import pytest
import torch

from scoresde import VP
from scoresde.lab import pages as module
from scoresde.lab.pages import SHOWN, TITLES, bench_page, compare_page, leaders
from scoresde.lab.subjects import Subject

MADE = {"command": "scoresde <made>", "seed": 7, "versions": {"torch": "2"}}


@pytest.fixture
def drawn(monkeypatch):
    """File -> what is drawn into it, in place of drawing."""
    said = {}

    def draw(what, file, order=()):
        said[file.name] = list(what)
        file.write_bytes(b"picture of " + file.name.encode())

    monkeypatch.setattr(module, "curves", draw)
    monkeypatch.setattr(module, "side_by_side", draw)
    return said


def sections(out):
    """heading -> the text below it, in the order of report.md."""
    title, *parts = (out / "report.md").read_text().split("\n## ")
    found = {unescape(part.partition("\n")[0]): part.partition("\n")[2] for part in parts}
    assert len(found) == len(parts) and title.startswith("# ")
    return found


def cells(text):
    """The cells of the only table in it."""
    (found,) = re.findall(r"(?:^\|.*\n)+", text + "\n", re.M)
    head, _, *body = ([c.strip() for c in line.strip("|\n").split("|")] for line in found.splitlines())
    return [head, *body]


def complete(out, pictures, papers=()):
    """report.html has the pictures of report.md inside; made.json and both reports have where the numbers came from."""
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert re.findall(r"^!\[.*\]\((.*)\)$", text, re.M) == pictures
    inside = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]*)"', page)]
    assert inside == [(out / name).read_bytes() for name in pictures]
    assert not re.search(r"https?:|src=\"(?!data:)|href|@import|url\(", page)
    assert sorted(f.name for f in out.iterdir()) == sorted(
        ["made.json", "report.html", "report.md", *pictures, *papers]
    )
    assert all((out / name).read_bytes().startswith(b"%PDF") for name in papers)
    assert json.loads((out / "made.json").read_text()) == MADE
    for said in (text, unescape(page)):
        assert json.dumps(MADE, indent=2) in said.partition("Where this came from")[2]


# which grid is best


def rows_of(table, key="rms"):
    return [dict(zip(("solver", "spacing", "budget", key), row, strict=True)) for row in table]


def test_best_grid():
    """At each budget the row of the smallest |value|; what is not finite loses to all that is."""
    nan, inf = math.nan, math.inf
    for values, chosen in (
        ((1.0, -0.5, 0.7), 1), ((nan, 3.0, inf), 1), ((inf, nan, -1e9), 2), ((0.0, 1e-200, 1.0), 0),
        ((-0.1, 0.2, nan), 0),
    ):  # fmt: skip
        given = rows_of(("a", f"g{i}", 5, value) for i, value in enumerate(values))
        for order in (given, given[::-1]):
            assert leaders(order, "rms") == {"a": {5: given[chosen]}}
    for values in ((nan, inf), (inf, nan)):
        assert list(leaders(rows_of(("a", f"g{i}", 5, v) for i, v in enumerate(values)), "rms")["a"]) == [5]


def test_order_of_solvers():
    """By the mean of the logarithms of their best values; with fewer budgets behind those that have more."""
    table = [
        ("large once", "x", 5, 100.0), ("large once", "x", 9, 1e-4),  # mean of logs below, mean above
        ("even", "x", 5, 1.0), ("even", "x", 9, 1.0), ("even", "y", 5, 1e9),
        ("never", "x", 5, math.nan), ("never", "x", 9, 1e-9),
        ("one", "x", 9, 1e-9), ("half", "x", 9, -1e-6),
    ]  # fmt: skip
    want = ["large once", "even", "never", "one", "half"]
    assert list(leaders(rows_of(table), "rms")) == list(leaders(rows_of(table[::-1]), "rms")) == want
    assert leaders([], "rms") == {}


# solvers against exact truth


KEYS = ("sliced_wasserstein", "energy_distance", "mode_weights")


def bench_rows(problem="modes", process="vp", flows=2, diffusions=2, seed=0):
    """On two grids and two budgets, but for the last solver at the larger one."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for name, n, keys in (("flow", flows, ("rms", "median")), ("sde", diffusions, KEYS)):
        for i, spacing, budget in ((i, s, k) for i in range(n) for s in ("karras", "log_snr") for k in (6, 12)):
            if i < n - 1 or budget == 6:
                values = {k: float(torch.rand((), generator=g, dtype=torch.float64).exp()) - 1 for k in keys}
                at = {"problem": problem, "process": process, "solver": f"{name} {i}", "spacing": spacing}
                rows.append({**at, "budget": budget, "nfe": budget - 1, **values})
    return rows


FLOORS = {
    f"{a}-{b}": dict.fromkeys(TITLES, 0.012345 * n) for n, (a, b) in enumerate([("modes", "vp"), ("digits", "ve")], 1)
}


def test_bench_has_every_number(drawn, tmp_path):
    """A table for the flow and one for each measure, a column a budget and a row a solver, best first: its value on the
    grid that is best there, and that grid; nothing where there is no row.
    """
    rows = bench_rows()
    bench_page(rows, FLOORS, MADE, tmp_path)
    found = sections(tmp_path)
    assert list(found) == [
        "Flow: modes, vp", *(f"{TITLES[k]}: modes, vp" for k in TITLES if k in KEYS), "Where this came from",
    ]  # fmt: skip
    for title, key in (("Flow", "rms"), *((TITLES[key], key) for key in KEYS)):
        head, *body = cells(found[f"{title}: modes, vp"])
        assert head == ["solver", "6 calls", "12 calls"]
        assert [line[0] for line in body] == list(leaders([row for row in rows if key in row], key))
        for name, *line in body:
            for budget, cell in zip((6, 12), line, strict=True):
                here = [row for row in rows if row["solver"] == name and row["budget"] == budget]
                row = min(here, key=lambda row: abs(row[key]), default=None)
                want = "" if row is None else f"{row[key]:.3g} {row['spacing']}"
                if row and title == "Flow":
                    want = f"{row['rms']:.2e} ({row['median']:.1e}) {row['spacing']}"
                assert cell == (want and f"{want}, {budget - 1} calls")
        assert title == "Flow" or "Real samples, as many: 0.0123." in found[f"{title}: modes, vp"]
    complete(tmp_path, ["flow-modes-vp.png", "sde-modes-vp.png"])


def test_bench_draws_what_it_says(drawn, tmp_path):
    """By the network calls that were made, not those that were allowed, sizes on each solver's best grid: the flow's
    two errors in one picture, the measures of the reverse SDE with their floors in another.
    """
    rows = bench_rows()
    bench_page(rows, FLOORS, MADE, tmp_path)
    flow, sde = drawn["flow-modes-vp.png"], drawn["sde-modes-vp.png"]
    assert [d.title for d in flow] == ["Root mean square error", "Median error"] and {d.floor for d in flow} == {None}
    assert [d.title for d in sde] == [TITLES[k] for k in TITLES if k in KEYS] and {d.floor for d in sde} == {0.012345}
    keys = ["rms", "median", *(k for k in TITLES if k in KEYS)]
    for diagram, key in zip([*flow, *sde], keys, strict=True):
        found = leaders([row for row in rows if key in row], key)
        assert diagram.across == "network calls" and [c.name for c in diagram.lines] == list(found)
        for curve in diagram.lines:
            assert list(curve.x) == [k - 1 for k in sorted(found[curve.name])]
            assert list(curve.y) == [abs(found[curve.name][k + 1][key]) for k in curve.x]


def test_a_budget_is_no_number_of_calls(drawn, tmp_path):
    """A solver of two calls an interval cannot spend five: its cell says that it made four, and its curve stands there;
    one that spends all says nothing.
    """
    at = {"problem": "modes", "process": "vp", "spacing": "karras", "budget": 5, "median": 0.25}
    bench_page(
        [{**at, "solver": "one", "rms": 0.5, "nfe": 5}, {**at, "solver": "two", "rms": 1.0, "nfe": 4}],
        {}, MADE, tmp_path,
    )  # fmt: skip
    want = [["one", "5.00e-01 (2.5e-01) karras"], ["two", "1.00e+00 (2.5e-01) karras, 4 calls"]]
    assert cells(sections(tmp_path)["Flow: modes, vp"]) == [["solver", "5 calls"], *want]
    assert [(c.name, c.x) for c in drawn["flow-modes-vp.png"][0].lines] == [("one", [5]), ("two", [4])]


@pytest.mark.parametrize("n", [1, 2, SHOWN, SHOWN + 3])
def test_bench_shows_the_best_few(drawn, tmp_path, n):
    """Of more solvers than can be told apart the picture has the best, the table all; the caption has the numbers."""
    rows = bench_rows(flows=n, diffusions=0)
    bench_page(rows, FLOORS, MADE, tmp_path)
    every, drawn_ = list(leaders(rows, "rms")), drawn["flow-modes-vp.png"][0].lines
    assert [c.name for c in drawn_] == every[:SHOWN]
    assert [line[0] for line in cells(sections(tmp_path)["Flow: modes, vp"])[1:]] == every
    assert f"![The best {len(drawn_)} of {n} solvers in each diagram," in (tmp_path / "report.md").read_text()
    complete(tmp_path, ["flow-modes-vp.png"])


def test_bench_of_some_problems(drawn, tmp_path):
    """Each problem and process has tables of its own rows, with its own floors, and pictures where it has rows."""
    one, two = bench_rows(diffusions=0), bench_rows("digits", "ve", flows=0, diffusions=1, seed=1)
    bench_page([*two[:1], *one, *two[1:]], FLOORS, MADE, tmp_path)
    found = sections(tmp_path)
    titles = [TITLES[key] for key in TITLES if key in KEYS]
    assert list(found) == [*(f"{t}: digits, ve" for t in titles), "Flow: modes, vp", "Where this came from"]
    assert {line[0] for line in cells(found[f"{titles[0]}: digits, ve"])[1:]} == {"sde 0"}
    assert {line[0] for line in cells(found["Flow: modes, vp"])[1:]} == {"flow 0", "flow 1"}
    assert "as many: 0.0247." in found[f"{titles[0]}: digits, ve"]
    assert {d.floor for d in drawn["sde-digits-ve.png"]} == {2 * 0.012345}
    complete(tmp_path, ["sde-digits-ve.png", "flow-modes-vp.png"])


def test_bench_without_some_rows(drawn, tmp_path):
    """What was not run is counted at the head, stands in the tables as such and at the end with why; values without an
    end are in the tables, and off the picture, whose caption says how many.
    """
    rows, at = bench_rows(flows=1, diffusions=0), {"problem": "modes", "process": "vp"}
    skipped = [{**at, "solver": "b", "budget": k, "spacing": "karras", "skipped": "needs <2> calls"} for k in (1, 2)]
    wild = [{**at, "solver": "wild", "budget": 6, "spacing": "karras", "rms": math.nan, "median": math.inf, "nfe": 6}]
    late = [{**at, "solver": "wild", "budget": 12, "spacing": "karras", "skipped": "diverged"}]
    bench_page([*skipped, *rows, *wild, *late], FLOORS, MADE, tmp_path)
    found = sections(tmp_path)
    head, first, *rest = cells(found["Flow: modes, vp"])
    assert head[1:] == ["6 calls", "12 calls"] and (first[0], first[2]) == ("flow 0", "")
    assert rest == [["wild", "nan (inf) karras", "not run"]]
    end = unescape(found["Where this came from"])
    assert end.count("Not run: b: needs <2> calls (cells: 2); wild: diverged (cells: 1).") == 1
    head = (tmp_path / "report.md").read_text().partition("##")[0]
    assert f"{len(rows) + 1} of {len(rows) + 4} cells were run, 1 of them to numbers that are not finite; why" in head
    for d, y in zip(drawn["flow-modes-vp.png"], (math.nan, math.inf), strict=True):
        assert [str(c.y) for c in d.lines if c.name == "wild"] == [str([y])]
    assert "Not drawn: 2 values that are 0 or not finite." in found["Flow: modes, vp"]
    complete(tmp_path, ["flow-modes-vp.png"])


def test_bench_of_nothing(drawn, tmp_path):
    """It is a report all the same."""
    bench_page([], {}, MADE, tmp_path)
    assert list(sections(tmp_path)) == ["Where this came from"]
    complete(tmp_path, [])


# samplers of one SDE


MEASURES = {
    "sliced_wasserstein": lambda x: float(x.double().std()),
    "log_density_gap": lambda x: -float(x.double().square().mean()),
}


def subject_of(shape=(2,), fresh=3, n=2100, denoise=False):
    g = torch.Generator().manual_seed(0)
    sets = [torch.randn(n, *shape, generator=g) for _ in range(fresh)]
    return Subject("a <score>", VP(), lambda x, t: x, shape, sets[0], sets, MEASURES, denoise)


def compare_rows():
    """Two samplers, of which the second is too dear for the first budget."""
    values = [("DDIM", 6, 5, 1.23456, -0.5), ("DDIM", 12, 12, 0.1, 0.0004321), ("UniPC(3)", 12, 11, 1e-5, -3.0)]
    keys = ("method", "budget", "nfe", *MEASURES)
    return [dict(zip(keys, row, strict=True)) for row in values]


FEWER = (", 5 calls", "", ", 11 calls")

PATHS = [
    {
        "name": name,
        "steps": [16, 32],
        "strong": [0.4 * k, 0.2],
        "weak": [0.3 * k, 0.1],
        "strong_slope": s,
        "weak_slope": w,
    }
    for k, (name, s, w) in enumerate(
        [("DDIM", "1.01 (0.98 to 1.04)", "0.90 (0.8 to 1)"), ("X", "0.5", "below its error")], 1
    )
]


def real(subject):
    return [subject.measured(x) for x in subject.fresh]


def compared(out, subject=None, rows=None, **more):
    samples = [("DDIM", torch.zeros(2100, *(subject or subject_of()).shape))]
    subject = subject or subject_of(**more)
    compare_page(subject, rows or compare_rows(), PATHS, samples, real(subject), MADE, out)
    return sections(out)


def test_compare_has_every_number(drawn, tmp_path):
    """Each measure has a table: a column a budget, a row a sampler, nothing where it has no row, and last the floor,
    mean and standard deviation over sets of real samples.
    """
    found, subject = compared(tmp_path), subject_of()
    assert list(found) == [*(TITLES[k] for k in MEASURES), "Samples", "On one Brownian path", "Where this came from"]
    for key, measure in MEASURES.items():
        real = [measure(x) for x in subject.fresh]
        a, b, c = (f"{row[key]:.3g}{more}" for row, more in zip(compare_rows(), FEWER))
        floor = f"{np.mean(real):.3g} +- {np.std(real, ddof=1):.2g}"
        want = [["sampler", "6 calls", "12 calls"], ["DDIM", a, b], ["UniPC(3)", "", c], ["real samples", floor, ""]]
        assert cells(found[TITLES[key]]) == want
    head, *body = cells(found["On one Brownian path"])
    assert head == ["discretisation", "strong slope", "weak slope"]
    assert body == [[row["name"], row["strong_slope"], row["weak_slope"]] for row in PATHS]
    text = (tmp_path / "report.md").read_text()
    assert text.startswith(f"# Samplers of {VP()!r}, compared\n") and "![6 network calls, or as" in found["Samples"]
    assert "\n3 of 3 cells were run.\n" in text.partition("##")[0] and "Not drawn" not in text
    complete(tmp_path, ["distances.png", "samples.png", "paths.png"])


def test_compare_draws_what_it_says(drawn, tmp_path):
    """Sizes of the measures by the calls that were made, with their floors; errors by the numbers of steps."""
    compared(tmp_path)
    rows, subject = compare_rows(), subject_of()
    distances, errors = drawn["distances.png"], drawn["paths.png"]
    for diagram, (key, measure) in zip(distances, MEASURES.items(), strict=True):
        assert (diagram.title, diagram.across) == (TITLES[key], "network calls")
        size = (lambda v: v) if key == "log_density_gap" else abs
        sets = [size(measure(x)) for x in subject.fresh]
        assert diagram.floor == pytest.approx(np.mean(sets)) and diagram.signed == (size is not abs)
        assert np.diff(diagram.band)[0] == pytest.approx(4 * np.std(sets, ddof=1))
        lines = [(c.name, list(c.x), list(c.y)) for c in diagram.lines]
        a, b, c = (size(row[key]) for row in rows)
        assert lines == [("DDIM", [5, 12], [a, b]), ("UniPC(3)", [11], [c])]
    for diagram, title, key in zip(errors, ("Strong error", "Weak error of |x|^2/d"), ("strong", "weak"), strict=True):
        assert (diagram.title, diagram.across, diagram.floor) == (title, "steps", None)
        assert [(c.name, c.x, c.y) for c in diagram.lines] == [(row["name"], row["steps"], row[key]) for row in PATHS]


@pytest.mark.parametrize(
    ("shape", "shown"), [((2,), 2000), ((1, 3, 3), 50), ((3, 2, 4), 50), ((5,), 0), ((2, 3, 3), 0), ((1, 4), 0)]
)
def test_compare_shows_samples(drawn, tmp_path, shape, shown):
    """Points of the plane and images of one or three channels, the first ones of each sampler and real ones last; other
    samples have no picture.
    """
    subject = subject_of(shape)
    found = compared(tmp_path, subject)
    assert ("Samples" in found) == ("samples.png" in drawn) == (shown > 0)
    if shown:
        (one, x), (last, real) = drawn["samples.png"]
        assert (one, last) == ("DDIM, 5 calls", "real samples") and x.equal(torch.zeros(shown, *shape))
        assert real.equal(subject.fresh[0][:shown])
    complete(tmp_path, ["distances.png", *["samples.png"] * bool(shown), "paths.png"])


def test_compare_without_some_rows(drawn, tmp_path):
    """What could not be run is counted at the head, is no empty cell, and stands at the end with why; 0 and nan are in
    the tables, and nan is counted below the picture, which cannot show it.
    """
    skipped = {"method": "UniPC(3)", "budget": 6, "skipped": "sample 3 is not finite"}
    wild = {"method": "wild", "budget": 6, "nfe": 6, "sliced_wasserstein": math.nan, "log_density_gap": 0.0}
    found = compared(tmp_path, rows=[*compare_rows(), skipped, wild])
    head, end = (tmp_path / "report.md").read_text().partition("##")[0], found["Where this came from"]
    assert "4 of 5 cells were run, 1 of them to numbers that are not finite; why the others were not stands" in head
    assert "Not run: UniPC(3): sample 3 is not finite (cells: 1)." in end
    for key, said in (("sliced_wasserstein", "nan"), ("log_density_gap", "0")):
        assert [line[:2] for line in cells(found[TITLES[key]])[2:4]] == [["UniPC(3)", "not run"], ["wild", said]]
    assert "from set to set. Not drawn: 1 values that are 0 or not finite.](" in (tmp_path / "report.md").read_text()


def test_compare_without_some_paths(drawn, tmp_path):
    """A discretisation that diverged has no slopes and no curve, and the text says why."""
    rows = [*PATHS, {"name": "wild", "steps": [16, 32], "skipped": "sample 3 is not finite"}]
    compare_page(subject_of((5,)), compare_rows(), rows, [], real(subject_of((5,))), MADE, tmp_path)
    found = sections(tmp_path)["On one Brownian path"]
    assert cells(found)[-1] == ["wild", "not run", "not run"]
    assert "Not run: wild: sample 3 is not finite (cells: 1)." in found
    assert [[c.name for c in d.lines] for d in drawn["paths.png"]] == [[row["name"] for row in PATHS]] * 2


def law_rows():
    """On a line: two samplers, the second below its error at the end, and one that was not run."""
    error = {"kl": 1e-3, "total_variation": 1e-9, "wasserstein2": 1e-9}
    return [
        {
            "method": name,
            "budget": k,
            "nfe": k,
            "kl": c / k**2,
            "total_variation": c / k,
            "wasserstein2": c,
            "error": error,
        }
        for name, c in (("DDIM", 100.0), ("EulerMaruyama", 0.2))
        for k in (6, 12)
    ] + [{"method": "wild", "budget": k, "skipped": "no kernel"} for k in (6, 12)]


def test_compare_shows_laws_on_a_line_first(drawn, tmp_path):
    """A table for each distance, with the slope between the largest budgets; points below their error are told apart,
    and colours are those of the other pictures.
    """
    compare_page(subject_of(), compare_rows(), PATHS, [], real(subject_of()), MADE, tmp_path, law_rows())
    found = sections(tmp_path)
    assert next(iter(found)) == "On a line, exactly"
    table = cells(found["KL(truth || sampler), nats: a line"])
    assert table[1] == ["DDIM", "2.78", "0.694", "-2.00"] and table[3] == ["wild", "not run", "not run", ""]
    assert cells(found["Total variation: a line"])[2] == ["EulerMaruyama", "0.0333", "0.0167", "-1.00"]
    assert cells(found["Wasserstein-2: a line"].partition("![")[0])[1] == ["DDIM", "100", "100", "0.00"]
    assert "On a line. Not run: wild: no kernel (cells: 2)." in found["Where this came from"]
    first, *_ = drawn["laws.png"]
    assert {line.name: list(line.hollow) for line in first.lines} == {
        "DDIM": [False, False],
        "EulerMaruyama": [False, False],
        "wild": [],
    }


def test_compare_shows_gaussian_data_next(drawn, tmp_path):
    """Two distances, each with its slope; and why one is missing there."""
    rows = [{k: v for k, v in row.items() if k != "total_variation"} for row in law_rows()]
    compare_page(subject_of(), compare_rows(), PATHS, [], real(subject_of()), MADE, tmp_path, law_rows(), (), rows)
    found = sections(tmp_path)
    assert "In eight dimensions, exactly" in found
    assert cells(found["KL(truth || sampler), nats: eight dimensions"])[1] == ["DDIM", "2.78", "0.694", "-2.00"]
    assert "Total variation: eight dimensions" not in found
    assert "In eight dimensions. Not run: wild: no kernel (cells: 2)." in found["Where this came from"]
    assert [d.slopes for d in drawn["gaussians.png"]] == [(-2.0,), (-1.0,)]


def test_compare_says_what_distances_are_to(drawn, tmp_path):
    """Of an exact law to draws at t_min, of a network to held-out data, after a last call that denoises; one set of
    real samples has no deviation.
    """
    for name, denoise, said, other in (
        ("law", False, "the exact law of x_t at t = t_min, where the samplers stop", "held-out"),
        ("network", True, "Distances are to held-out data", "exact law"),
    ):
        out = tmp_path / name
        out.mkdir()
        found = compared(out, subject_of(fresh=1, denoise=denoise))
        text = unescape((out / "report.md").read_text())
        start = text.partition("##")[0]
        assert (
            said in start
            and other not in start
            and "The score is that of a <score>." in start
            and "2100 points" in start
        )
        assert (
            cells(found[TITLES["sliced_wasserstein"]])[-1][1]
            == f"{MEASURES['sliced_wasserstein'](subject_of().fresh[0]):.3g}"
        )


def test_pages_are_drawn(tmp_path):
    """With real pictures the reports are whole, also with values that are not finite."""
    out, bench = tmp_path / "compare", tmp_path / "bench"
    out.mkdir()
    bench.mkdir()
    rows = [*compare_rows(), {"method": "wild", "budget": 6, "nfe": 6, **dict.fromkeys(MEASURES, math.nan)}]
    subject = subject_of((1, 3, 3), n=60)
    samples = [("DDIM", subject.fresh[1]), ("wild", 0 * subject.fresh[1])]
    compare_page(subject, rows, PATHS, samples, real(subject), MADE, out)
    assert cells(sections(out)[TITLES["sliced_wasserstein"]])[3] == ["wild", "nan", ""]
    complete(out, ["distances.png", "samples.png", "paths.png"], ["distances.pdf", "paths.pdf"])
    wild = [{**row, "solver": "wild", "rms": math.inf} for row in bench_rows(diffusions=0)]
    bench_page([*bench_rows(diffusions=0), *wild], FLOORS, MADE, bench)
    complete(bench, ["flow-modes-vp.png"], ["flow-modes-vp.pdf"])
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in tmp_path.rglob("*.png"))
