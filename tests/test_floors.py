"""A module imports only from its own floor or lower ones, and no chain of imports leads back: each can be read and
checked without those above it.
"""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scoresde"

FLOORS = (
    {
        "shapes",
        "progress",
        "files",
        "values",
        "noise",
        "ode",
        "brownian",
        "weighted",
        "bibliography",
    },  # anything but diffusion
    {"process"},
    {"reference", "exact", "quantize", "units", "grid", "closures", "model", "loss", "data", "nn"},
    {"steps"},
    {"likelihood", "guide", "edit", "inverse"},
    {"checkpoint", "logbook", "training", "interop"},
    {"lab"},
    {"cli"},
    {"__init__", "__main__"},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
WINGS = {"process", "steps", "likelihood", "lab", "nn", "data", "training", "interop", "inverse", "cli"}
NN = {"torch", "einops", "scoresde"} | sys.stdlib_module_names


def module(path, package):
    """The dotted name of a file inside the package."""
    return ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")


def imports(path, package):
    """(line, dotted name) of everything that a file imports, wherever in the file, relative names resolved."""
    home = (package.name, *path.relative_to(package).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else ()
            base = (*base, *(node.module or "").split(".")) if node.module else base
            for alias in node.names:
                yield node.lineno, ".".join((*base, alias.name))


def leads_to(name, modules):
    """The module of the package that a dotted name is in or is."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in modules:
        parts = parts[:-1]
    return ".".join(parts) or "__init__"


def violations(package):
    """What is wrong with the imports of a package, one line each."""
    wrong, arrows = [], {}
    modules = {module(path, package) for path in package.rglob("*.py")}
    for path in sorted(package.rglob("*.py")):
        name, where = module(path, package), path.relative_to(package.parent)
        here = name.split(".")[0]
        if here not in FLOOR:
            wrong.append(f"{where}: the module `{here}` stands on no floor: place it in FLOORS of tests/test_floors.py")
            continue
        for line, target in imports(path, package):
            top, *rest = target.split(".")
            if here == "nn" and (top not in NN or (top == "scoresde" and rest[:1] not in (["nn"], ["shapes"]))):
                wrong.append(f"{where}:{line}: nn imports torch, einops and scoresde.shapes only, not {target}")
            if top != package.name or rest[:1] in (["__name__"], ["__version__"]):
                continue
            known = rest and (rest[0] in FLOOR or rest[0] in {m.split(".")[0] for m in modules})
            there = rest[0] if known else "__init__"  # a name of the package itself
            arrows.setdefault(name, set()).add(leads_to(target, modules))
            if FLOOR.get(there, 0) > FLOOR[here]:
                wrong.append(f"{where}:{line}: {here} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]})")
    try:
        list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        wrong.append(f"imports lead in a circle: {' -> '.join(error.args[1])}")
    return wrong


def private(path):
    """Imports of a file outside the package that reach for what is not public."""
    for line, name in imports(path, path.parent):
        parts = name.split(".")
        if parts[0] == "scoresde" and any(part.startswith("_") for part in parts):
            yield f"{path.relative_to(ROOT)}:{line}: {name} is not public"
        if parts[0] == "tests":
            yield f"{path.relative_to(ROOT)}:{line}: {name} belongs to the tests"


def test_imports_go_down():
    """Every import inside the package, at whatever depth of code, leads to its own floor or a lower one, and to no
    circle.
    """
    assert not violations(PACKAGE), "\n".join(violations(PACKAGE))


def test_every_floor_is_walked():
    """The walk finds the package: the foundation's modules, and the imports that are known to be there."""
    found = {module(path, PACKAGE).split(".")[0] for path in PACKAGE.rglob("*.py")}
    assert {"shapes", "ode", "noise", "exact", *WINGS} <= found
    assert "scoresde.shapes.like" in {name for _, name in imports(PACKAGE / "process" / "sde.py", PACKAGE)}
    assert "scoresde.shapes.count" in {name for _, name in imports(PACKAGE / "nn" / "mlp.py", PACKAGE)}


def test_the_wings_are_flat():
    """The package has the wings of the table and no further folders; the tests stand in folders of the same names, and
    those of the documentation in one of their own.
    """
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == WINGS
    assert not [path for wing in WINGS for path in (PACKAGE / wing).rglob("*.py") if path.parent.name != wing]
    mirrored = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("test_*.py"))}
    assert mirrored <= WINGS | {"docs"}


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"process/sde.py": "from ..exact import Gaussian"}, "process (floor 1) imports exact (floor 2)"),
        ({"grid.py": "def f():\n    from .steps import step"}, "grid.py:2: grid (floor 2) imports steps (floor 3)"),
        ({"ode.py": "import scoresde.steps.step"}, "ode (floor 0) imports steps"),
        ({"ode.py": "from scoresde import VP"}, "ode (floor 0) imports __init__"),
        ({"loss.py": "from .training import train"}, "loss (floor 2) imports training"),
        ({"likelihood/flow.py": "from ..lab import metrics"}, "likelihood (floor 4) imports lab (floor 6)"),
        ({"nn/unet.py": "from ..process.sde import VP"}, "nn imports torch, einops and scoresde.shapes only"),
        ({"nn/unet.py": "import torchvision"}, "nn imports torch, einops and scoresde.shapes only"),
        ({"solver.py": ""}, "the module `solver` stands on no floor: place it in FLOORS"),
        ({"cli/plot.py": "from .. import VP"}, "cli (floor 7) imports __init__"),
        ({"grid.py": "from .model import a", "model.py": "from .grid import b"}, "imports lead in a circle"),
        ({"steps/a.py": "from .b import x", "steps/b.py": "from . import a"}, "imports lead in a circle"),
        ({"exact.py": "from .process.sde import SDE\nfrom . import shapes\nimport torch"}, None),
        ({"cli/plot.py": "from .style import red\nfrom ..training import train\nfrom ..nn import UNet"}, None),
        ({"steps/a.py": "from .b import x", "steps/b.py": "from ..grid import y"}, None),
        ({"nn/unet.py": "import math\nfrom torch import nn\nfrom ..shapes import like\nfrom .mlp import MLP"}, None),
    ],
)
def test_the_walk_sees_a_wrong_import(tmp_path, files, complaint):
    """A package with one wrong import has one complaint about it, and a package without has none."""
    for name, source in files.items():
        path = tmp_path / "scoresde" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    wrong = violations(tmp_path / "scoresde")
    assert [complaint in line for line in wrong] == [True] if complaint else not wrong


def test_contributors_are_told_the_floors():
    """The table of CONTRIBUTING.md has those that the walk keeps."""
    told = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (\d) \| (.*) \|$", told, re.M)
    assert [(int(floor), set(re.findall(r"`(\w+)`", names))) for floor, names in rows] == list(enumerate(FLOORS[:-1]))


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_users_import_public_names(folder):
    """What stands outside the package uses it as any user can."""
    wrong = [line for path in sorted((ROOT / folder).rglob("*.py")) for line in private(path)]
    assert not wrong, "\n".join(wrong)
