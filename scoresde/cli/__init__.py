"""The command line: `scoresde demo | train | average | sample | inpaint | colorize | superres | interpolate |
evaluate | tune | likelihood | compare | bench | explain | fetch | models | cite | completion`.

Options and files; what is computed is the library's. Processes, networks and steps are typed as the library shows them
(`parts`). An error is one line on standard error and exit status 2.
"""

import importlib
import inspect
import os
import re
import signal
import sys
import textwrap
import warnings
from argparse import SUPPRESS, Action, ArgumentParser, HelpFormatter
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from ..progress import stoppable
from .options import CHOICES, COMMANDS, OWN, Rare

FIRST = """Score-based (diffusion) models. Begin with one of these:

  scoresde demo                              train on digits, sample, write a report: three minutes
  scoresde sample mnist --n 64               draw from a model that comes with the library
  scoresde train FILE.csv --out runs/mine    train on your own data: a table, an array, a folder of images

`scoresde --help` lists all commands, and `scoresde COMMAND --help` what one of them takes.
"""


class Usual(HelpFormatter):
    """Leaves rare options out."""

    def add_argument(self, action: Action) -> None:
        """Add one that is not."""
        if not isinstance(action.help, Rare):
            super().add_argument(action)


class Helping(Action):
    """Prints the help, with all options if `const` says so, or that of the values which an option takes."""

    def __call__(self, parser: Any, _: Any, value: Any, option: str | None = None) -> NoReturn:
        """Print it and exit."""
        if isinstance(value, str):
            importlib.import_module(".choices", __package__).tell(parser.prog, value, parser.choices)
        else:
            parser.formatter_class = partial(HelpFormatter if self.const else Usual, max_help_position=20, width=110)
            parser.print_help()
        raise SystemExit(0)


class Parser(ArgumentParser):
    """Says what is wrong in one line, and helps on one screen."""

    def __init__(self, name: str) -> None:
        command, own = COMMANDS[name], {"allow_abbrev": False, "add_help": False}
        super().__init__(f"scoresde {name}", description=inspect.getdoc(command), **own)  # type: ignore[arg-type]
        said = "show this, or which values an option takes, as in --help step"
        self.add_argument("-h", "--help", metavar="NAME", nargs="?", action=Helping, default=SUPPRESS, help=said)
        command(self)
        self.choices = [a.dest for a in self._actions if a.dest in CHOICES and (name, a.dest) not in OWN]
        if rare := sum(isinstance(action.help, Rare) for action in self._actions):
            said = f"show these, and {rare} that are rarely needed"
            self.add_argument("--help-all", nargs=0, const=True, action=Helping, default=SUPPRESS, help=said)
        shown = {"?": "[{}]", "*": "[{} ...]"}
        places = [shown.get(str(a.nargs), "{}").format(a.dest.upper()) for a in self._get_positional_actions()]
        self.usage = " ".join([self.prog, *places, "[options]"])

    def error(self, message: str) -> NoReturn:
        """Raise ValueError in place of a usage text."""
        raise ValueError(f"{message} (`{self.prog} --help` lists what it takes)")


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process if None) and return its exit status: 141, as of what SIGPIPE ends, where
    nobody reads on.
    """
    try:
        status = _status(sys.argv[1:] if args is None else list(args))
        sys.stdout.flush()  # at exit it could only fail
        return status
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return 141


def _status(args: list[str]) -> int:
    try:
        with stoppable(), warnings.catch_warnings():
            warnings.showwarning = _warn
            return _run(args)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", signal.SIGINT)
        said = (
            f"stopped by {signal.Signals(number).name}; the same command with the same --out goes on from what is there"
        )
        return _fail(said, 128 + number)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        return _fail(str(error))
    except ImportError as error:
        return _fail(f"{error}: the command line needs pip install 'scoresde[app]'")


def _run(args: list[str]) -> int:
    if not args:
        print(FIRST, end="")
        return 0
    name = args[0]
    if name in ("-h", "--help"):
        print("usage: scoresde COMMAND [options], scoresde COMMAND --help\n")
        for command, takes in COMMANDS.items():
            print(textwrap.fill(first(takes), 110, initial_indent=f"  {command:12s}", subsequent_indent=" " * 14))
        print("\nBegin with `scoresde demo`, or with `scoresde train digits --out runs/digits`.")
        return 0
    if name not in COMMANDS:
        raise ValueError(f"COMMAND must be one of {', '.join(COMMANDS)}, got {name!r}")
    options: Any = Parser(name).parse_args(args[1:])
    status = int(importlib.import_module(f".{name}", __package__).run(options) or 0)
    if "WORLD_SIZE" in os.environ:
        importlib.import_module(".common", __package__).leave_processes()
    return status


def first(takes: Any) -> str:
    """The first sentence of a docstring."""
    text = " ".join(str(inspect.getdoc(takes)).split()) + " "
    return re.split(r"(?<=[\w)^])(?<!et al)(?<!eq)(?<!eqs)[.:;] ", text)[0].strip().removesuffix(".")


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print("scoresde: warning: " + " ".join(str(message).split()), file=sys.stderr)


def _fail(message: str, status: int = 2) -> int:
    print("scoresde: " + " ".join(message.split()), file=sys.stderr)
    return status
