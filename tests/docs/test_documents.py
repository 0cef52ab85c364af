"""What README and the pages of docs say runs: their Python, their commands, their links, and the lines they promise."""

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
from scoresde.cli import Parser, main
from scoresde.cli.parts import read

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import reference  # noqa: E402

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *(path for path in sorted(DOCS.rglob("*.md")) if path.parent.name != "templates")]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MADE = reference.pages()
PRINTED = re.compile(r"`python (examples/\w+\.py)`\s+prints\n\n```text\n(.*?)^```$", re.M | re.S)
OUTPUTS = {name: text for page in PAGES for name, text in PRINTED.findall(page.read_text())}
FENCE = re.compile(r"^```python([^\n]*)\n(.*?)^```$", re.M | re.S)


def snippets(page):
    """The Python of a page: each block, and those of one session as one."""
    found = {}
    for i, (options, code) in enumerate(FENCE.findall(page.read_text())):
        session = re.search(r'session="([^"]+)"', options)
        name = f"{page.relative_to(ROOT)}:{session[1] if session else i}"
        found[name] = found.get(name, "") + code
    return found


SNIPPETS = {  # those of the lecture, which has no annotations, are run by `test_lecture`
    name: code for page in PAGES if page.parent.name != "lecture" for name, code in snippets(page).items()
}


def files(text):
    """The files that a page tells to write, "a file `NAME.py`", by their names."""
    return dict(re.findall(r"a file `(\w+\.py)`.*?^```python\n(.*?)^```$", text, re.M | re.S))


@pytest.mark.parametrize("name", SNIPPETS)
def test_code_runs(name, tmp_path, monkeypatch):
    """Every block of Python runs as it stands, those of one session one after the other."""
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[name], name, "exec"), {"__name__": "page"})


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, capsys, monkeypatch, tmp_path):
    """Every example runs and says something, and what a page says that it prints, each number to 2 %."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert printed
    for line in OUTPUTS.get(f"examples/{example.name}", "").splitlines():
        assert any(alike(line, other) for other in printed), line


def alike(a, b):
    """Whether two lines have the same words, and numbers that differ by 2 % at most."""
    number = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"
    if re.sub(number, "", a).split() != re.sub(number, "", b).split():
        return False
    pairs = zip(re.findall(number, a), re.findall(number, b), strict=True)
    return all(math.isclose(float(x), float(y), rel_tol=0.02, abs_tol=1.1 * 10.0 ** -digits(x)) for x, y in pairs)


def digits(number):
    """How many stand behind the point of a number that is written without an exponent, else as many as never matter."""
    return 300 if "e" in number else len(number.partition(".")[2])


def test_three_examples_are_told():
    """Each with lines whose numbers would be missed."""
    assert len(OUTPUTS) == 3 and all(len(text.splitlines()) >= 6 for text in OUTPUTS.values())
    assert alike("r: 0.205 nats", "r: 0.204 nats") and not alike("r: 0.205 nats", "r: 0.211 nats")
    assert alike("4.42e+13 steps", "4.43e+13 steps") and not alike("4.42e+13 steps", "4.42e+12 steps")


@pytest.mark.slow
def test_types(tmp_path):
    """`mypy --strict` accepts every example and every block of Python, as it would for a user who has the package
    installed.
    """
    for path in EXAMPLES:
        (tmp_path / path.name).write_text(path.read_text())
    for name, code in SNIPPETS.items():
        (tmp_path / f"page_{re.sub(r'[^a-z0-9]', '_', name.lower())}.py").write_text(code)
    names = [path.name for path in tmp_path.glob("*.py")]
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *names]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and f"in {len(names)} source files" in done.stdout, done.stdout


def commands(text):
    """The `scoresde` commands of a text: lines of their own, and in back quotes; torchrun's without what starts it."""
    text = re.sub(r"torchrun [^`\n]*?-m scoresde -- ", "scoresde ", text)
    lines = re.findall(r"^ *scoresde ([a-z]+ .*)$", text, re.M)
    quoted = re.findall(r"`scoresde ([a-z]+ -?[^`]+)`", text)
    return [" ".join(command.split()) for command in lines + quoted if not command.endswith("...")]


def test_commands_parse(monkeypatch, tmp_path):
    """Every `scoresde` command in README, the pages and the examples is one that the command line understands, up to
    the files it names; steps and processes are read, those of the files that pages tell to write too.
    """
    for page in PAGES:
        for name, code in files(page.read_text()).items():
            (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(ROOT)
    found = [command for path in [*PAGES, *EXAMPLES] for command in commands(path.read_text())]
    assert len(found) >= 80
    for command in found:
        name, *rest = shlex.split(command)
        options = Parser(name).parse_args(rest)
        for step in getattr(options, "step", None) or []:
            read("step", step, Step, around=Reference())
        read("sde", getattr(options, "sde", None), SDE)


def test_programs_are_there():
    """Every program that a command of the pages runs is in the repository."""
    text = "\n".join(path.read_text() for path in PAGES)
    found = set(re.findall(r"\b((?:benchmarks|examples|docs)/\w+\.py)\b", text))
    assert len(found) >= 20
    assert not [name for name in found if not (ROOT / name).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(page):
    """Every link and every picture leads to a file of the repository, or to a page that the site makes of the code."""
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
        path = (page.parent / target.partition("#")[0]).resolve()
        made = path.is_relative_to(DOCS) and str(path.relative_to(DOCS)) in MADE
        assert made or path.exists() and path.is_relative_to(ROOT), target


def test_no_page_asks_another_machine():
    """No page, style or setting of the site loads anything from elsewhere."""
    for path in [*PAGES, *DOCS.glob("*.css"), ROOT / "mkdocs.yml"]:
        assert not re.findall(
            r"(?:src|href)=[\"']https?:|url\(|!\[[^]]*\]\(https?:|^ *- https?:", path.read_text(), re.M
        )
    assert "font: false" in (ROOT / "mkdocs.yml").read_text()


def test_lines_that_are_promised():
    """ "In N lines" stands before a block of so many lines, blank ones not counted."""
    promised = 0
    for page in PAGES:
        for n, code in re.findall(r"\bIn (\d+) lines?\b.*?^```\w*\n(.*?)^```$", page.read_text(), re.M | re.S):
            assert len([line for line in code.splitlines() if line.strip()]) == int(n), (page.name, code)
            promised += 1
    assert promised >= 6


def test_four_ways_in(monkeypatch, tmp_path):
    """The network of the page has bits/dim, and its solver a row in the table, by the commands of the page."""
    page = (DOCS / "start" / "path.md").read_text()
    for name, code in files(page).items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    run = {name: shlex.split(f"{name} {rest}") for name, rest in re.findall(r"^scoresde (\w+) (.*)$", page, re.M)}
    less = {
        "likelihood": ["--n", "2", "--terms", "0", "--method", "Adams(6)", "--trace", "Hutchinson(2)"],
        "bench": ["--problems", "modes", "--n", "8", "--nfe", "6", "--only", "Midpoint", "DDIM"],
    }
    for name, options in less.items():
        command = [sys.executable, "-m", "scoresde", *run[name], *options]
        env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert not missing("bench", tmp_path / "runs" / "own") and not missing("likelihood", tmp_path / "runs" / "mine")
    assert '"Midpoint"' in (tmp_path / "runs" / "own" / "results.jsonl").read_text()


def missing(command, folder):
    """The files of a command, by the page of what each writes, that its folder lacks."""
    page = (DOCS / "start" / "outputs.md").read_text()
    (row,) = re.findall(rf"^\| `scoresde {command}`.*?\| (.*) \|$", page, re.M)
    names = re.findall(r"`([\w*-]+\.\w+)`", row)
    assert names
    return [name for name in names if not [*folder.glob(name)]]


def test_what_each_command_writes(tmp_path, monkeypatch):
    """Training, samples, a fit of them to an image and a path leave what the page says."""
    monkeypatch.chdir(tmp_path)
    assert main("train digits --steps 2 --views 1 --net MLP(width=8) --out a".split()) == 0
    assert main("sample a --n 2 --steps 2 --out b".split()) == 0
    assert main("inpaint a --keep upper --n 2 --images 1 --steps 2 --out c".split()) == 0
    assert main("interpolate a --n 2 --out d".split()) == 0
    for command, folder in (("train", "a"), ("sample", "b"), ("inpaint", "c"), ("interpolate", "d")):
        assert not missing(command, tmp_path / folder), command
        assert (tmp_path / folder / ("manifest.json" if command == "train" else "recipe.json")).is_file()
