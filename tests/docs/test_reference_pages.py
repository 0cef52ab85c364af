"""Every public name is on a page of the reference and is told there."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

import scoresde

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "scoresde"
sys.path.insert(0, str(ROOT / "docs"))

import reference  # noqa: E402

PAGES = reference.pages()
SHOWN = {module for path, text in PAGES.items() for module in re.findall(r"^::: (\S+)$", text, re.M)}
MODULES = sorted(
    ".".join(("scoresde", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in PACKAGE.rglob("*.py")
    if path.stem not in ("__init__", "__main__") and path.parent.name != "cli"
)
WINGS = sorted(f"scoresde.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py") if path.parent.name != "cli")


def test_every_module_is_on_a_page():
    """Once."""
    assert sorted(SHOWN) == sorted([*MODULES, *WINGS])
    text = "\n".join(PAGES.values())
    assert all(len(re.findall(rf"^::: {re.escape(module)}$", text, re.M)) == 1 for module in SHOWN)


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_is_told(module):
    """A module and every public class and function in it has a docstring, without which the site leaves it out."""
    assert reference.opening(module)
    assert not [name for name, told in reference.public(module) if not told]


def test_names_of_every_day():
    """Every name of `scoresde.__all__` is in the table, and leads to where it is defined, which is on a page."""
    homes = reference.homes()
    assert homes.keys() == {*scoresde.__all__} - {"__version__"}
    for name, home in homes.items():
        assert f"[`{name}`][{home}]" in PAGES["reference/index.md"]
        module = home if home in SHOWN else home.rpartition(".")[0]
        assert module in SHOWN, name


@pytest.mark.parametrize("wing", WINGS)
def test_names_of_wings(wing):
    """Every name that a wing exports is a public name of a module on a page."""
    found = importlib.import_module(wing)
    here = {module for module in SHOWN if module.startswith(wing)}
    named = {node for module in here for node in assigned(module)}
    assert not {*found.__all__} - named


def assigned(module):
    """What a module binds at its top: classes, functions and values."""
    for node in ast.parse(reference.source(module).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_theory_is_what_the_modules_say():
    """The pages of theory hold the opening texts of modules, word by word, and the largest of them are there."""
    text = "\n".join(text for path, text in PAGES.items() if path.startswith("theory/"))
    for module in ("scoresde.process.sde", "scoresde.steps.exponential", "scoresde.likelihood.flow", "scoresde.loss"):
        assert reference.opening(module).partition("\n\n")[2] in text
    assert len(re.findall(r"^## ", text, re.M)) >= 40


def test_every_page_is_in_the_navigation():
    """Those that are made and those that lie in docs; the lecture and `explain.md` come by themselves."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"(\S+\.md)$", nav, re.M)
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    there = {path for path in there if not path.startswith(("templates/", "lecture/")) and path != "explain.md"}
    assert sorted(listed) == sorted(there | PAGES.keys())


def test_commands_are_told():
    """Every command's help is on the page."""
    text = PAGES["reference/commands.md"]
    assert all(f"usage: scoresde {name}" in text for name in ("train", "sample", "likelihood", "bench", "tune", "demo"))
