"""A module imports only from strictly lower floors, so that each can be read and checked without those above it."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scoresde"

FLOORS = (
    {"shapes", "count", "progress", "provenance"},
    {"ode", "noise", "simulate"},
    {"sde"},
    {"processes", "grid", "chain", "model", "exact"},
    {"loss", "sample", "trace", "quantize"},
    {"predict", "ancestral", "correct", "bridge", "capture", "exponential", "likelihood", "inverse"},
    {"singlestep", "adaptive", "elbo", "nn"},  # nn for its users only: what is below takes any network
    {"multistep", "data", "metrics", "convergence"},
    {"checkpoint", "problems"},
    {"train", "tuned"},
    {"report", "tune", "interop"},
    {"cli"},
    {"__init__", "__main__"},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
NN = {"torch", "einops", "scoresde"} | sys.stdlib_module_names


def unit(path, package):
    """The entry of the table that a file belongs to: the module, or the package directly under the root."""
    return path.relative_to(package).parts[0].removesuffix(".py")


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


def violations(package):
    """What is wrong with the imports of a package, one line each."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        here, where = unit(path, package), path.relative_to(package.parent)
        if here not in FLOOR:
            wrong.append(f"{where}: the module `{here}` stands on no floor: place it in FLOORS of tests/test_floors.py")
            continue
        for line, name in imports(path, package):
            top, *rest = name.split(".")
            if here == "nn" and (top not in NN or (top == "scoresde" and rest[:1] not in (["nn"], ["shapes"]))):
                wrong.append(f"{where}:{line}: nn imports torch, einops and scoresde.shapes only, not {name}")
            if top != package.name:
                continue
            there = rest[0] if rest else "__init__"
            if (there == here and there in ("nn", "cli")) or there in ("__name__", "__version__"):
                continue
            if there not in FLOOR:
                there = "__init__"  # a name of the package itself
            if FLOOR[there] >= FLOOR[here]:
                wrong.append(f"{where}:{line}: {here} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]})")
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
    """Every import inside the package, at whatever depth of code, leads to a strictly lower floor."""
    assert not violations(PACKAGE), "\n".join(violations(PACKAGE))


def test_every_floor_is_walked():
    """The walk finds the package: the foundation's modules, and the imports that are known to be there."""
    found = {unit(path, PACKAGE) for path in PACKAGE.rglob("*.py")}
    assert {"shapes", "ode", "noise", "sde", "processes", "exact", "sample", "nn"} <= found
    assert "scoresde.shapes.like" in {name for _, name in imports(PACKAGE / "sde.py", PACKAGE)}
    assert "scoresde.shapes.count" in {name for _, name in imports(PACKAGE / "nn" / "mlp.py", PACKAGE)}


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("sde.py", "from .exact import Gaussian", "sde (floor 2) imports exact (floor 3)"),
        ("grid.py", "def f():\n    from . import model", "grid.py:2: grid (floor 3) imports model (floor 3)"),
        ("ode.py", "import scoresde.sample", "ode (floor 1) imports sample"),
        ("ode.py", "from scoresde import VP", "ode (floor 1) imports __init__"),
        ("loss.py", "from .nn.unet import UNet", "loss (floor 4) imports nn"),
        ("checkpoint.py", "from .train import fit", "checkpoint (floor 8) imports train (floor 9)"),
        ("nn/unet.py", "from ..sde import VP", "nn imports torch, einops and scoresde.shapes only"),
        ("nn/unet.py", "import torchvision", "nn imports torch, einops and scoresde.shapes only"),
        ("solver.py", "", "the module `solver` stands on no floor: place it in FLOORS"),
        ("cli/plot.py", "from .. import VP", "cli (floor 11) imports __init__"),
        ("exact.py", "from .sde import SDE\nfrom . import shapes\nimport torch", None),
        ("cli/plot.py", "from .style import red\nfrom ..train import fit\nfrom ..nn import UNet", None),
        ("nn/unet.py", "import math\nfrom torch import nn\nfrom ..shapes import like\nfrom .mlp import MLP", None),
    ],
)
def test_the_walk_sees_a_wrong_import(tmp_path, module, source, complaint):
    """A package with one wrong import has one complaint about it, and a package without has none."""
    path = tmp_path / "scoresde" / module
    path.parent.mkdir(parents=True)
    path.write_text(source)
    wrong = violations(tmp_path / "scoresde")
    assert [complaint in line for line in wrong] == [True] if complaint else not wrong


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_users_import_public_names(folder):
    """What stands outside the package uses it as any user can."""
    wrong = [line for path in sorted((ROOT / folder).rglob("*.py")) for line in private(path)]
    assert not wrong, "\n".join(wrong)
