"""What is built of the repository holds all that the library and its tests need."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scoresde

ROOT = Path(__file__).parents[1]
BUILT = """
import json, sys
from pathlib import Path
from setuptools import Distribution
made = Distribution({"script_name": "setup.py"})
made.parse_config_files()
egg = made.get_command_obj("egg_info")
egg.egg_base = sys.argv[1]
egg.ensure_finalized()
egg.run()
build = made.get_command_obj("build_py")
build.build_lib = ""
build.ensure_finalized()
wheel = [Path(file).as_posix() for file in build.get_outputs(include_bytecode=False)]
print("BUILT" + json.dumps({"wheel": wheel, "sdist": [Path(file).as_posix() for file in egg.filelist.files]}))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The files of the wheel and of the source distribution, by their places in the repository."""
    folder = tmp_path_factory.mktemp("egg")
    run = [sys.executable, "-c", BUILT, str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert "BUILT" in done.stdout, done.stderr
    return {name: set(files) for name, files in json.loads(done.stdout.split("BUILT")[1]).items()}


def files(*folders):
    """Those below folders, but for what Python leaves there."""
    found = {f.relative_to(ROOT) for folder in folders for f in (ROOT / folder).rglob("*") if f.is_file()}
    return {f.as_posix() for f in found if "__pycache__" not in f.parts}


def test_the_wheel_holds_the_package(built):
    """Every file of the package, weights, templates and types among them, and nothing else."""
    assert built["wheel"] == files("scoresde")
    assert {"scoresde/py.typed", "scoresde/__init__.pyi", "scoresde/cli/demo.md"} <= built["wheel"]
    assert sum(name.endswith(".safetensors") for name in built["wheel"]) >= 6


def test_the_source_distribution_holds_the_tests(built):
    """Beside the package the tests, with all that they read, and what a reader looks for at the top."""
    assert files("scoresde", "tests", "benchmarks", "examples") <= built["sdist"]
    top = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml"}
    assert top <= built["sdist"]


def test_one_version():
    """What is cited and what is told to be new are of the version of the package."""
    now = scoresde.__version__
    assert f"\nversion: {now}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## .*\b{re.escape(now)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)
