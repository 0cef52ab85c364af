"""Result files say by which command they were made."""

import sys

import pytest

from scoresde.lab import origin


@pytest.mark.parametrize("program", ("/bin/scoresde", "/packages/scoresde/__main__.py"))
def test_command(monkeypatch, program):
    """The installed command and `python -m scoresde`, as torchrun starts it, are told by one name."""
    monkeypatch.setattr(sys, "argv", [program, "likelihood", "--n", "2"])
    assert origin()["command"] == "scoresde likelihood --n 2"


def test_command_of_a_program(monkeypatch):
    """A program is told by the name of its file."""
    monkeypatch.setattr(sys, "argv", ["benchmarks/orders.py", "--out", "a"])
    assert origin()["command"] == "orders.py --out a"
