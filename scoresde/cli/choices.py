"""The values that options take, as `--help NAME` lists them."""

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from .. import data, grid, lab, likelihood, loss, ode, process, steps
from . import first
from .parts import PUBLIC, SCORES, methods_of_inverse_problems

KINDS: dict[str, tuple[type, ...]] = {
    "step": (steps.Step,),
    "sde": (process.LinearSDE,),
    "data": (data.Source,),
    "law": (lab.Problem,),
    "method": (likelihood.Integrator, ode.Embedded),
    "trace": (likelihood.Trace,),
    "weight": (loss.Weight,),
    "times": (loss.Times,),
}
GIVEN = {"grid": ("sde", "n", "end", "around"), "net": ("shape", "classes"), "method": ("score", "seen", "step")}
"""Arguments that the command knows, as it does `around` where that has no default."""
TYPED = (int, float, str, Path)
BASES = (steps.Prepared, ode.Embedded)


def tell(command: str, name: str, known: list[str]) -> None:
    """Print each value of an option and what it is. Raises ValueError for an option without such."""
    if name not in known:
        said = f"must be about one of {', '.join(known)}" if known else "takes no name here"
        raise ValueError(f"help {said}, got {name!r} (`{command} --help` lists all options)")
    print(f"--{name} takes one of these, or package.module:Name of your own:\n")
    for value, part in values(name, inverse=command.split()[-1] in ("inpaint", "colorize", "superres")).items():
        print(
            textwrap.fill(
                value + arguments(part, GIVEN.get(name, ())), 110, initial_indent="  ", subsequent_indent=" " * 8
            )
        )
        print(textwrap.fill(first(part), 110, initial_indent=" " * 6, subsequent_indent=" " * 6))


def values(name: str, inverse: bool = False) -> dict[str, Any]:
    """The parts that an option takes, by the names that are typed."""
    if name == "grid":
        return {k: getattr(grid, k) for k in grid.usual()}
    if name == "net":
        return {net.__name__: net for net in SCORES}
    if inverse and name == "method":
        return methods_of_inverse_problems()
    return {k: v for k, v in PUBLIC.items() if k == getattr(v, "__name__", "") and _makes(v, KINDS[name])}


def arguments(part: Callable[..., Any], given: tuple[str, ...]) -> str:
    """Those that can be typed after a name, with their defaults."""
    takes = [p for p in _takes(part) if p.name not in given]
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in takes]
    return f"({', '.join(shown)})" if shown else ""


def _takes(part: Callable[..., Any]) -> list[inspect.Parameter]:
    every = inspect.signature(part).parameters.values()
    return [p for p in every if p.name != "around" or p.default is not p.empty]


def _makes(part: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a part is a class of some kind, or a function that makes one, whose arguments can be typed."""
    made = part if inspect.isclass(part) else inspect.isfunction(part) and get_type_hints(part).get("return")
    if not inspect.isclass(made) or not issubclass(made, kinds) or inspect.isabstract(part) or part in BASES:
        return False
    hints = get_type_hints(part.__init__ if inspect.isclass(part) else part)
    return all(hints.get(p.name) in TYPED for p in _takes(part) if p.default is p.empty)
