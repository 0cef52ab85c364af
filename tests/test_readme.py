"""README is short, and has the two commands that everything begins with."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_two_commands():
    """To install and run the main job, and to install and pass the tests; each is a line of its own, once."""
    assert re.findall(r"^pip install .*$", README, re.M) == [
        'pip install -e ".[app]" && scoresde demo',
        'pip install -e ".[test]" && pytest -n auto',
    ]


def test_length():
    """It is read in five minutes; the rest is in docs, to which it leads."""
    assert len(README.splitlines()) <= 140
    assert {"docs/index.md", "docs/results/index.md", "docs/limits.md"} <= set(re.findall(r"\((docs/[^)]*)\)", README))
