"""What `import scoresde` offers: every name is there, is one thing, and hides no module."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import scoresde

PACKAGE = Path(scoresde.__file__).parent
STUB = ast.parse((PACKAGE / "__init__.pyi").read_text())
FILES = [path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__")]
WINGS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def dotted(path):
    """The name under which a file is imported."""
    return ".".join(("scoresde", *path.relative_to(PACKAGE).with_suffix("").parts))


def defined(path):
    """The public classes and functions of a file."""
    return [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]


def test_all():
    """`__all__` lists some forty names beside the modules, each of them is there and in `dir`, and nothing else is."""
    values = {name: getattr(scoresde, name) for name in scoresde.__all__}
    modules = {name for name, value in values.items() if isinstance(value, ModuleType)}
    assert {"data", "metrics", "lab", "grid", "process", "steps", "likelihood"} <= modules
    assert {"train", "tune", "load", "save", "sample", "draw", "log_prob", "elbo", "dsm"} <= values.keys() - modules
    assert 30 <= len(values.keys() - modules) <= 50
    assert len(set(scoresde.__all__)) == len(scoresde.__all__) and set(scoresde.__all__) <= set(dir(scoresde))
    with pytest.raises(AttributeError, match="has no attribute 'diffuse'"):
        scoresde.diffuse  # noqa: B018
    assert not hasattr(scoresde, "__path_of_nothing__")


def test_star():
    """`from scoresde import *` gives just those."""
    names = {}
    exec("from scoresde import *", names)
    assert names.keys() - {"__builtins__"} == set(scoresde.__all__)


def test_checkers_see_the_same():
    """What type checkers read names the home of each thing, and it is that thing."""
    for node in STUB.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            home = importlib.import_module(f"scoresde.{node.module}")
            (alias,) = node.names
            assert alias.asname == alias.name and getattr(scoresde, alias.name) is getattr(home, alias.name)


@pytest.mark.parametrize("wing", WINGS)
def test_wings(wing):
    """A wing that imports names exports them all, each once."""
    module = importlib.import_module(f"scoresde.{wing}")
    tree = ast.parse(Path(module.__file__).read_text())
    here = [a.name for n in tree.body if isinstance(n, ast.ImportFrom) and n.level for a in n.names]
    if wing != "cli":
        assert sorted(module.__all__) == sorted(here)


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_no_module_is_hidden(path):
    """`import scoresde.a.b as m` gives the module, whatever was imported before."""
    for name in scoresde.__all__:
        getattr(scoresde, name)
    parts = dotted(path).split(".")
    found = importlib.import_module(dotted(path))
    for part in reversed(parts[1:]):
        parent = importlib.import_module(".".join(parts[: parts.index(part)]))
        assert isinstance(getattr(parent, part), ModuleType)
    assert getattr(importlib.import_module(".".join(parts[:-1])), parts[-1]) is found


def test_one_name_one_thing():
    """No two public classes or functions of the library have one name."""
    homes = {}
    for path in FILES:
        for name in defined(path) if path.parent.name != "cli" else []:
            homes.setdefault(name, []).append(dotted(path))
    assert not {name: where for name, where in homes.items() if len(where) > 1}


def test_the_command_line_names_no_class_of_the_library():
    """Nor does a class of the command line have the name of one of the library."""
    library = {name for path in FILES if path.parent.name != "cli" for name in defined(path)}
    for path in (PACKAGE / "cli").glob("*.py"):
        module = importlib.import_module(dotted(path).removesuffix(".__init__"))
        own = {k for k, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__}
        assert not own & library, path.name


def test_what_an_import_costs():
    """The package alone imports neither torch nor scipy; its names of every day need torch and no optimiser of scipy,
    no torchsde and no plots.
    """
    code = """
import sys, scoresde
print(sorted({"torch", "scipy", "numpy"} & sys.modules.keys()))
scoresde.VP, scoresde.sample, scoresde.ScoreModel, scoresde.dsm, scoresde.log_prob, scoresde.Reference
heavy = {"scipy.optimize", "torchsde", "matplotlib", "sklearn", "PIL", "safetensors", "markdown"}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n[]\n", done.stdout + done.stderr
