"""The pages of results are what the result files give: every file, every table, every command."""

import copy
import json
import math
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "docs"))

import results  # noqa: E402

PAGES = results.pages()
NAMED = [(page, name) for page, (_, names) in PAGES.items() for name in sorted(names)]


def page_of(name):
    """The page in docs that is of a file."""
    (page,) = [page for page, of in NAMED if of == name and page.parent.name == "results" and shown(page, name)]
    return page.read_text()


def shown(page, name):
    path = name if name.startswith("examples/") else f"benchmarks/results/{name}"
    return f"](../../{path})" in page.read_text()


def table_of(name):
    """The cells of the first table under the line that names a file, and those of the second."""
    path = name if name.startswith("examples/") else f"benchmarks/results/{name}"
    after = page_of(name).split(f"](../../{path})", 1)[1]
    tables = re.findall(r"^(?:\|.*\|\n)+", after + "\n", re.M)
    return [cells(table) for table in tables]


def cells(table):
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
    return [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]


def lines(name):
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in (FILES / name).read_text().splitlines()]


def rows(name):
    """The rows of a file."""
    return json.loads((FILES / name).read_text())["rows"]


def test_pages_are_what_the_files_give():
    """`python docs/results.py` would change none."""
    for page, (text, _) in PAGES.items():
        assert page.read_text() == text, f"{page.name}: python docs/results.py"


def test_every_result_file_is_on_a_page():
    """And the two of the demo."""
    there = {str(path.relative_to(FILES)) for path in FILES.rglob("*.json*")}
    assert {name for _, name in NAMED} == there | {"examples/demo-results.json", "examples/demo-likelihood.json"}


@pytest.mark.parametrize(("page", "name"), NAMED, ids=lambda value: str(getattr(value, "stem", value)))
def test_every_page_names_its_commands(page, name):
    """A page tells the command of each of its files, with or without the quotes that a shell needs."""
    command, text = results.full(results.load(name)["command"]), page.read_text()
    if page.name == "README.md":
        command = re.sub(r" --(?!out).*", "", command)  # the file and the page have its options
    lines = [line for block in re.findall(r"```console\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert command in text or " ".join(command.split()) in [" ".join(shlex.split(line)) for line in lines]


def test_a_page_follows_its_file(monkeypatch):
    """Were `Tuned` ten times worse, or a row away, the sentences about it and the table would say so."""
    template = ROOT / "docs" / "templates" / "learned.md"
    made = copy.deepcopy(results.load("learned-cpu.json"))
    before = results.Page(template).render()
    for row in made["rows"]:
        if row["solver"] == "Tuned":
            row["median"] *= 1000
    monkeypatch.setattr(results, "load", lambda name: made)
    after = results.Page(template).render()
    count = len({(row["problem"], row["process"], row["calls"]) for row in made["rows"]})
    (led,), (left,) = (re.findall(r"lower in (\d+) by the median", " ".join(text.split())) for text in (before, after))
    assert count / 2 < int(led) <= count and left == "0"
    made["rows"] = [row for row in made["rows"] if "digits" not in row["problem"]]
    assert "digits, vp" in before and "times on digits" in before
    fewer = results.Page(template).render()
    assert "digits, vp" not in fewer and "times on digits" not in fewer and "times on modes" in fewer


WHOLE = "train noise likelihood likelihood-cost coverage overhead orders inverse quality parallel".split()


@pytest.mark.parametrize("name", WHOLE)
def test_whole_tables(name):
    """Where all rows of a file are shown, the table holds them, column by column."""
    file = f"{name}-cpu.json"
    head, _, *body = table_of(file)[0]
    assert head == list(rows(file)[0])
    assert body == [[str(v) for v in row.values()] for row in rows(file)]


def test_likelihoods_by_paths():
    """Tables that hold a part of each row."""
    of = {(r["of"], r["sampler"], r["steps"]): r for r in rows("paths-cpu.json")}
    _, _, *body = table_of("paths-cpu.json")[0]
    assert len(body) == len({key[:2] for key in of})
    for law, sampler, *told in body:
        limit = of.get((law, sampler, ""))
        here = [of[law, sampler, k] for k in ("20", "50", "200")] if limit is None else []
        assert told == ([f"{r['1 path']} / {r['16 paths']}" for r in here] or ["", "", str(limit["16 paths"])])
    of = {(r["sampler"], str(r["steps"]), r["control variate"]): r for r in rows("along-cpu.json")}
    head, _, *body = table_of("along-cpu.json")[0]
    assert len(body) * 4 == len(of)
    for sampler, steps, *told in body:
        here = [of[sampler, steps, variate] for variate in head[2:]]
        assert told == [f"{r['RMS error']} ({r['told']})".removesuffix(" ()") for r in here]


def test_demo_table():
    """And the demo's."""
    made = json.loads((ROOT / "examples/demo-results.json").read_text())
    _, _, *body = table_of("examples/demo-results.json")[0]
    expected = [[name, str(r["nfe"]), f"{r['frechet']:.2f}"] for name, r in made["samplers"].items()]
    assert body == [*expected, ["359 training digits", "", f"{made['frechet_of_training_digits']:.2f}"]]
    for b in made["bits_per_dim"].values():
        assert f"{b['mean']:.3f} +- {b['error']:.3f}" in page_of("examples/demo-results.json")


def test_likelihood_table():
    """And that of the three yardsticks, which stand in the right order."""
    made = json.loads((ROOT / "examples/demo-likelihood.json").read_text())["table"]
    _, _, *body = table_of("examples/demo-likelihood.json")[0]
    assert body == [[r["quantity"], f"{r['mean']:.3f}", f"{r['standard_error']:.3f}"] for r in made]
    flow, continuous, discrete = (r["mean"] for r in made)
    assert flow < continuous < discrete


@pytest.mark.parametrize(
    ("folder", "measure", "digits"), [("compare-ve", "log_density_gap", 3), ("compare-digits-ve", "frechet", 2)]
)
def test_comparisons(folder, measure, digits):
    """And those of the samplers."""
    of = lines(f"{folder}/results.jsonl")
    head, _, *body = table_of(f"{folder}/results.jsonl")[0]
    values = {(row["method"], str(row["budget"])): row[measure] for row in of}
    methods = list(dict.fromkeys(row["method"] for row in of))
    assert body == [[m, *(f"{values[m, k]:.{digits}f}" for k in head[1:])] for m in methods]


def rate(a, b, key):
    """The slope of a distance between two rows, by the calls that were made."""
    return f"{math.log(b[key] / a[key]) / math.log(b['nfe'] / a['nfe']):.2f}"


def test_laws_that_are_computed():
    """And those that are computed, not sampled: all digits hold, but for Metropolis' correction, as is said."""
    of = {(row["method"], row["budget"]): row for row in lines("compare-vp/laws.jsonl")}
    head, _, *body = table_of("compare-vp/laws.jsonl")[0]
    budgets = [int(k) for k in head[1:-1]]
    for method, *told, slope in body:
        assert told == [f"{of[method, k]['kl']:.2e}" for k in budgets]
        assert slope == rate(of[method, 200], of[method, 500], "kl")
    assert len(body) == len({method for method, _ in of})
    for row in of.values():
        if row["method"] == "Predictor-corrector, MALA":
            assert row["nfe"] == row["budget"] // 3 * 3
            assert row["error"]["kl"] < (0.45 if row["budget"] == 500 else 0.03) * row["kl"]
        else:
            assert row["nfe"] == row["budget"] and max(row["error"].values()) < 2e-5
    of = {(r["method"], r["budget"]): r for r in lines("compare-vp/gaussians.jsonl") if "skipped" not in r}
    _, _, *body = table_of("compare-vp/gaussians.jsonl")[0]
    for method, *told in body:
        few, more, many = (of[method, k] for k in (50, 200, 500))
        want = [[f"{few[k]:.2e}", f"{many[k]:.2e}", rate(more, many, k)] for k in ("kl", "wasserstein2")]
        assert told == want[0] + want[1]
    assert len(body) * 5 == len(of)


def test_many_starts():
    """And those on more starts, in which the tuned solver comes first."""
    of = [r for r in rows("solvers-many-cpu.json") if "rms" in r]
    best = {}
    for r in sorted(of, key=lambda r: -r["rms"]):
        assert r["n"] == 4096
        best[r["process"], r["solver"], str(r["budget"])] = f"{r['rms']:.1e} ({r['median']:.1e}) {r['spacing']}"
    head, _, *body = table_of("solvers-many-cpu.json")[0]
    assert body == [[*row[:2], *(best[row[0], row[1], k] for k in head[2:])] for row in body]
    assert {row[0] for row in body} == {"vp", "ve", "edm"} and len(body) >= 18
    tuned = {(r["process"], r["budget"]): r["rms"] for r in of if r["solver"] == "Tuned"}
    assert all(tuned[r["process"], r["budget"]] <= r["rms"] for r in of)


@pytest.mark.parametrize(
    ("name", "problem"), [("solvers-cpu.json", "digits"), ("bench-model/results.jsonl", "model")]
)  # fmt: skip
def test_solvers_table(name, problem):
    """And those of solvers: the least root mean square error over grids, with the median of the same run."""
    best = {}
    every = lines(name) if name.endswith("l") else rows(name)
    for r in sorted((r for r in every if "rms" in r), key=lambda r: -r["rms"]):
        if (r["problem"], r["process"]) == (problem, "vp"):
            best[r["solver"], str(r["budget"])] = f"{r['rms']:.1e} ({r['median']:.1e}) {r['spacing']}"
    head, _, *body = table_of(name)[0]
    assert len(body) >= 11
    assert body == [[row[0], *(best[row[0], k] for k in head[1:])] for row in body]


def test_fitted_solvers():
    """And that of fitted solvers: of each kind the least of medians over fits, by root mean square and by median."""
    every = [r for r in rows("learned-cpu.json") if "rms" in r]
    _, _, *body = table_of("learned-cpu.json")[0]
    assert len(body) == len({(r["problem"], r["process"], r["calls"]) for r in every})
    for cell, calls, tuned, _, learned, _ in body:
        here = [r for r in every if (f"{r['problem']}, {r['process']}", str(r["calls"])) == (cell, calls)]

        def middle(solver, key, here=here):
            found = sorted(r[key] for r in here if r["solver"] == solver)
            return (found[len(found) // 2] + found[(len(found) - 1) // 2]) / 2

        assert tuned == f"{middle('Tuned', 'rms'):.1e} ({middle('Tuned', 'median'):.1e})"
        fitted = {r["solver"] for r in here if r["fit"] is not None and not r["solver"].startswith("Tuned")}
        best = [min(fitted, key=lambda name: middle(name, key)) for key in ("rms", "median")]
        a, b = middle(best[0], "rms"), middle(best[1], "median")
        assert learned == f"{a:.1e} {best[0]} ({b:.1e} {best[1]})"


def test_orders_are_those_declared():
    """Each of our steps converges at the order that it states, as README says."""
    ours = [r for r in rows("orders-cpu.json") if r["who"] == "scoresde"]
    assert all(abs(r["measured"] - r["order"]) < 0.05 for r in ours)
    assert f"{len(ours)} steps converge at the order" in (ROOT / "README.md").read_text()


def test_what_words_say():
    """Where a sentence says which is less without a number, it is so."""
    of = {(r["method"], r["budget"]): r for r in lines("compare-digits-ve/results.jsonl")}
    for key in ("frechet", "sliced_wasserstein"):
        found = [of[name, 200][key] for name in ("ReverseDiffusion", "Predictor-corrector", "Annealed Langevin")]
        assert found == sorted(found)
    gap = {(r["method"], r["budget"]): abs(r["log_density_gap"]) for r in lines("compare-ve/results.jsonl")}
    alone, pair = ([gap[name, k] for k in (50, 200, 500)] for name in ("ReverseDiffusion", "Predictor-corrector"))
    assert pair[0] > 1.5 * alone[0] and abs(pair[1] - alone[1]) < 0.01 and 0 < alone[2] - pair[2] < 0.01
    assert all(gap["Annealed Langevin", k] > max(alone[i], pair[i]) for i, k in enumerate((50, 200, 500)))
    of = {(r["of"], r["sampler"], r["steps"]): r["16 paths"] for r in rows("paths-cpu.json")}
    assert all(of["U-Net", name, "200"] < of["U-Net", "the flow", ""] for name in ("DDPM, optimal", "DDPM, v = 0.5"))
    of = {(r["network"], r["procedure"]): r["CPU seconds"] for r in rows("likelihood-cpu.json")}
    assert of["our MNIST, VP", "ours, default"] > of["our MNIST, VP", "customary: RK45, one system"]
    small = {(r["sampler"], r["steps"], r["start"], r["tol"]): r["seconds"] for r in rows("parallel-cpu.json")[::-1]}
    assert all(small["DDPM", n, "in sequence", ""] < small["DDPM", n, "reference", 1e-5] for n in (20, 50, 100, 1000))
