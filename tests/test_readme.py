"""What the README says runs, and its numbers are those of the result files."""

import json
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scoresde import SDE, Reference, Step
from scoresde.cli import Parser
from scoresde.cli.parts import read

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("code", SNIPPETS)
def test_code_runs(code):
    """Every block of Python in the README runs as it stands."""
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, capsys, monkeypatch, tmp_path):
    """Every example runs and says something."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.slow
def test_types(tmp_path):
    """`mypy --strict` accepts every example and every block of Python in the README, as it would for a user who has the
    package installed.
    """
    for path in EXAMPLES:
        (tmp_path / path.name).write_text(path.read_text())
    for i, code in enumerate(SNIPPETS):
        (tmp_path / f"readme_{i}.py").write_text(code)
    files = [path.name for path in tmp_path.glob("*.py")]
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *files]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and f"in {len(files)} source files" in done.stdout, done.stdout


def test_commands_parse(monkeypatch):
    """Every `scoresde` command in the README and in the examples is one that the command line understands, up to the
    files it names.
    """
    monkeypatch.chdir(ROOT)
    text = "\n".join([README, *(path.read_text() for path in EXAMPLES)])
    lines, quoted = (
        re.findall(r"^ *scoresde ([a-z]+ .*)$", text, re.M),
        re.findall(r"`scoresde ([a-z]+ -?[^`]+)`", text),
    )
    assert len(lines) >= 15 and len(quoted) >= 4
    for command in lines + quoted:
        name, *rest = shlex.split(command)
        options = Parser(name).parse_args(rest)
        for step in getattr(options, "step", None) or []:
            read("step", step, Step, around=Reference())
        read("sde", getattr(options, "sde", None), SDE)


def numbers(name):
    """The cells of README's table under the line that names a file."""
    part = README.split(f"(`{name}`)", 1)[1].split("\n\n", 2)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part[1].splitlines()]


@pytest.mark.parametrize(
    "name", ["train", "noise", "likelihood", "likelihood-cost", "coverage", "overhead", "orders", "inverse"]
)
def test_benchmark_tables(name):
    """A benchmark's table in the README holds the rows of its result file."""
    file = f"benchmarks/results/{name}-cpu.json"
    rows = json.loads((ROOT / file).read_text())["rows"]
    head, _, *body = numbers(file)
    assert head == list(rows[0])
    assert body == [[str(v) for v in row.values()] for row in rows]


def test_likelihoods_by_paths():
    """And those of samplers, which hold a part of each."""
    name = "benchmarks/results/paths-cpu.json"
    rows = {(r["of"], r["sampler"], r["steps"]): r for r in json.loads((ROOT / name).read_text())["rows"]}
    _, _, *body = numbers(name)
    assert len(body) == len({key[:2] for key in rows})
    for of, sampler, *told in body:
        limit = rows.get((of, sampler, ""))
        here = [rows[of, sampler, k] for k in ("20", "50", "200")] if limit is None else []
        assert told == ([f"{r['1 path']} / {r['16 paths']}" for r in here] or ["", "", str(limit["16 paths"])])
    name = "benchmarks/results/along-cpu.json"
    rows = {
        (r["sampler"], str(r["steps"]), r["control variate"]): r for r in json.loads((ROOT / name).read_text())["rows"]
    }
    head, _, *body = numbers(name)
    assert len(body) * 4 == len(rows)
    for sampler, steps, *told in body:
        here = [rows[sampler, steps, variate] for variate in head[2:]]
        assert told == [f"{r['RMS error']} ({r['told']})".removesuffix(" ()") for r in here]


def test_demo_table():
    """So does the demo's."""
    results = json.loads((ROOT / "examples/demo-results.json").read_text())
    _, _, *body = numbers("examples/demo-results.json")
    expected = [[name, str(r["nfe"]), f"{r['frechet']:.2f}"] for name, r in results["samplers"].items()]
    expected.append(["359 training digits", "", f"{results['frechet_of_training_digits']:.2f}"])
    assert body == expected
    for b in results["bits_per_dim"].values():
        assert f"{b['mean']:.3f} +- {b['error']:.3f}" in README


def test_likelihood_table():
    """And that of the three yardsticks, which stand in the right order."""
    rows = json.loads((ROOT / "examples/demo-likelihood.json").read_text())["table"]
    _, _, *body = numbers("examples/demo-likelihood.json")
    assert body == [[r["quantity"], f"{r['mean']:.3f}", f"{r['standard_error']:.3f}"] for r in rows]
    flow, continuous, discrete = (r["mean"] for r in rows)
    assert flow < continuous < discrete


@pytest.mark.parametrize(
    ("folder", "measure", "digits"), [("compare-ve", "log_density_gap", 3), ("compare-digits-ve", "frechet", 2)]
)
def test_comparisons(folder, measure, digits):
    """And those of the samplers."""
    name = f"benchmarks/results/{folder}/results.jsonl"
    rows = [json.loads(line) for line in (ROOT / name).read_text().splitlines()]
    head, _, *body = numbers(name)
    values = {(row["method"], str(row["budget"])): row[measure] for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    assert body == [[m, *(f"{values[m, k]:.{digits}f}" for k in head[1:])] for m in methods]


def test_laws_that_are_computed():
    """And those that are computed, not sampled: all digits hold, but for Metropolis' correction, as is said."""
    name = "benchmarks/results/compare-vp/laws.jsonl"
    rows = [json.loads(line) for line in (ROOT / name).read_text().splitlines()]
    of = {(row["method"], row["budget"]): row for row in rows}
    head, _, *body = numbers(name)
    budgets = [int(k) for k in head[1:-1]]
    for method, *told, slope in body:
        assert told == [f"{of[method, k]['kl']:.2e}" for k in budgets]
        assert slope == rate(of[method, 200], of[method, 500], "kl")
    assert len(body) == len({row["method"] for row in rows})
    for row in rows:
        if row["method"] == "Predictor-corrector, MALA":
            assert row["nfe"] == row["budget"] // 3 * 3
            assert row["error"]["kl"] < (0.45 if row["budget"] == 500 else 0.03) * row["kl"]
        else:
            assert row["nfe"] == row["budget"] and max(row["error"].values()) < 2e-5
    name = "benchmarks/results/compare-vp/gaussians.jsonl"
    rows = [json.loads(line) for line in (ROOT / name).read_text().splitlines()]
    of = {(row["method"], row["budget"]): row for row in rows if "skipped" not in row}
    _, _, *body = numbers(name)
    for method, *told in body:
        few, more, many = (of[method, k] for k in (50, 200, 500))
        want = [[f"{few[k]:.2e}", f"{many[k]:.2e}", rate(more, many, k)] for k in ("kl", "wasserstein2")]
        assert told == want[0] + want[1]
    assert len(body) * 5 == len(of)


def rate(a, b, key):
    """The slope of a distance between two rows, by the calls that were made."""
    return f"{math.log(b[key] / a[key]) / math.log(b['nfe'] / a['nfe']):.2f}"


def test_many_starts():
    """And those on more starts, in which the tuned solver comes first."""
    file = "benchmarks/results/solvers-many-cpu.json"
    rows = [r for r in json.loads((ROOT / file).read_text())["rows"] if "rms" in r]
    best = {}
    for r in sorted(rows, key=lambda r: -r["rms"]):
        assert r["n"] == 4096
        best[r["process"], r["solver"], str(r["budget"])] = f"{r['rms']:.1e} ({r['median']:.1e}) {r['spacing']}"
    head, _, *body = numbers(file)
    assert body == [[*row[:2], *(best[row[0], row[1], k] for k in head[2:])] for row in body]
    for r in rows:
        tuned = next(
            t for t in rows if (t["solver"], t["process"], t["budget"]) == ("Tuned", r["process"], r["budget"])
        )
        assert tuned["rms"] <= r["rms"]


def test_solvers_table():
    """And those of solvers: the least root mean square error over grids, with the median of the same run."""
    mixture, model = "benchmarks/results/solvers-cpu.json", "benchmarks/results/bench-model/results.jsonl"
    lines = [json.loads(line) for line in (ROOT / model).read_text().splitlines()]
    rows = json.loads((ROOT / mixture).read_text())["rows"]
    for name, every, problem in ((mixture, rows, "digits"), (model, lines, "model")):
        best = {}
        for r in sorted((r for r in every if "rms" in r), key=lambda r: -r["rms"]):
            if (r["problem"], r["process"]) == (problem, "vp"):
                best[r["solver"], str(r["budget"])] = f"{r['rms']:.1e} ({r['median']:.1e}) {r['spacing']}"
        head, _, *body = numbers(name)
        assert body == [[row[0], *(best[row[0], k] for k in head[1:])] for row in body]
