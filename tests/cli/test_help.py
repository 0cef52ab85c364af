"""What the command line says of itself: where to begin, what is rare, which values an option takes, to a shell too."""

import re
import shlex
import subprocess
import sys

import pytest

from scoresde import VP, Reference
from scoresde.cli import Parser, choices, main
from scoresde.cli.options import CHOICES, COMMANDS, Rare
from scoresde.cli.parts import read, read_data, read_grid, read_method, read_net

TAKING = [(name, option) for name in COMMANDS for option in Parser(name).choices]


def told(capsys, *args):
    assert main([*args]) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def test_where_to_begin(capsys):
    """Nothing typed is answered by three commands that can be typed, and by where to read on, in a few lines."""
    lines = told(capsys).splitlines()
    assert len(lines) <= 10 and max(map(len, lines)) <= 110
    shown = [shlex.split(re.split(r" {2,}", line.strip())[0])[1:] for line in lines if line.startswith("  scoresde ")]
    assert [line[0] for line in shown] == ["demo", "sample", "train"]
    for name, *args in shown:
        assert Parser(name).parse_args(args)
    assert "`scoresde --help`" in lines[-1]


@pytest.mark.parametrize("name", COMMANDS)
def test_rare_options(capsys, name):
    """`--help` leaves rare options out and says how many there are, `--help-all` shows all; both parse them."""
    rare = [a.option_strings[-1] for a in Parser(name)._actions if isinstance(a.help, Rare)]
    usual = told(capsys, name, "--help")
    assert not [option for option in rare if re.search(rf"^  {option}\b", usual, re.M)]
    if rare:
        every = told(capsys, name, "--help-all")
        assert all(re.search(rf"^  {option}\b", every, re.M) for option in rare)
        assert f"{len(rare)} that are rarely needed" in usual
        more = {line for line in every.splitlines() if line.startswith("  --")}
        assert more > {line for line in usual.splitlines() if line.startswith("  --")}
    else:
        assert "--help-all" not in usual


@pytest.mark.parametrize("name, option", TAKING)
def test_values_of_an_option(capsys, name, option):
    """`--help NAME` lists values that the option takes, each with a sentence, on any terminal."""
    lines = told(capsys, name, "--help", option).splitlines()
    shown = [line.split("(")[0].strip() for line in lines if re.match(r"  \w", line)]
    assert shown and max(map(len, lines)) <= 110
    assert len([line for line in lines if re.match(r" {6}\w", line)]) >= len(shown)
    assert not [line for line in lines if re.search(r"\b(et al|eq|eqs)$", line) and line is lines[-1]]
    for value in shown:
        reads(name, option, value)


def reads(name, option, value):
    """What reads an option takes a name alone, unless it has arguments that must be given."""
    if option == "net":
        assert read_net(f"{value}(width=8)", (1, 8, 8), 0)
    elif option == "grid":
        assert read_grid(value, around=Reference(std=0.5))(VP(), 4, None).numel() == 5
    elif option == "method" and name in ("inpaint", "colorize", "superres"):
        assert read_method(value)
    elif option == "data":
        assert value in choices.values("data") and read_data("Ring(n=50)")
    else:
        assert read(option, value, choices.KINDS[option], around=Reference(std=0.5)) is not None


def test_what_is_listed():
    """The steps and processes of everyday use are among them, and nothing that cannot be typed."""
    steps = choices.values("step").keys()
    assert {"Ancestral", "UniPC", "DPMSolverPP", "GaussianReference", "Langevin", "Flow", "SASolver"} <= steps
    assert not {"Prepared", "Step", "Affine", "Tuned", "AnalyticDPM"} & steps
    assert choices.values("sde").keys() == {"VP", "SubVP", "VE", "EDM", "Cosine", "RectifiedFlow"}
    assert {option for _, option in TAKING} == set(CHOICES)


@pytest.mark.parametrize("line", ["sample --help steps", "demo --help sde", "models --help step"])
def test_no_such_option(capsys, line):
    """One line that says which there are."""
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("scoresde: help ") and len(err.splitlines()) == 1
    assert line.split()[-1] in err


# completion

TRY = """
source /dev/stdin
compgen() { builtin compgen "$@"; }
words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); $function; echo "${COMPREPLY[@]}"; }
function=$(complete -p scoresde | sed 's/.*-F \\([^ ]*\\).*/\\1/')
words scoresde tr
words scoresde sample --te
words scoresde likelihood --split h
"""


def test_a_shell_completes(capsys):
    """With the script of `completion bash` a shell knows commands, options and choices."""
    script = told(capsys, "completion", "bash")
    done = subprocess.run(["bash", "-c", TRY], input=script, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["train", "--temperature", "held-out"], done.stderr


@pytest.mark.parametrize("shell, said", [("zsh", "#compdef scoresde"), ("tcsh", "complete scoresde")])
def test_other_shells(capsys, shell, said):
    """Their scripts name every command."""
    script = told(capsys, "completion", shell)
    assert said in script and all(name in script for name in COMMANDS)


def test_completion_without_its_library(capsys, monkeypatch):
    """One line that names what to install."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    out, err = capsys.readouterr()
    assert not out and err == "scoresde: completion needs shtab: pip install 'scoresde[shell]'\n"
