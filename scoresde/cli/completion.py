"""`scoresde completion`."""

from argparse import ArgumentParser, Namespace

from . import first
from .options import COMMANDS, model, place


def run(o: Namespace) -> None:
    """Print the script. Raises RuntimeError where the library that writes it is missing."""
    try:
        import shtab
    except ImportError as error:
        raise RuntimeError("completion needs shtab: pip install 'scoresde[shell]'") from error
    whole = ArgumentParser("scoresde")
    commands = whole.add_subparsers()
    for name, takes in COMMANDS.items():
        parser = commands.add_parser(name, help=first(takes), description=first(takes))
        takes(parser)
        for action in parser._actions:
            if action.type in (model, place):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(whole, o.shell))
