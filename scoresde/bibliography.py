"""What to cite: BibTeX of the works that docstrings name.

Each public step, process and method says in its docstring which paper it is of, as `Song et al. 2021`. The table of
works, works.bib, has each under those words, `song-et-al-2021`, so that what a run used leads to what it rests on.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from . import __version__

TABLE = Path(__file__).with_name("works.bib")
OWN = f"""@misc{{scoresde,
  author = {{{{The scoresde authors}}}},
  title = {{scoresde: continuous-time score-based models in {{PyTorch}}}},
  howpublished = {{Python package, version {__version__}}},
  year = {{2026}},
}}
"""
PACKAGE = __name__.partition(".")[0]
ORDERS = (1, 2, 3, 4)


@cache
def works() -> dict[str, str]:
    """The entries of the table, by their keys."""
    entries = re.split(r"(?m)^(?=@)", TABLE.read_text(encoding="utf-8"))[1:]
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry.strip() + "\n" for entry in entries}


def works_in(text: str | None) -> list[str]:
    """The keys of the works that a text names: the words of a key, with what may stand between them."""
    return [key for key in works() if text and _pattern(key).search(text)]


@cache
def _pattern(key: str) -> re.Pattern[str]:
    between = r"(?:[\s,.()&-]+(?:and\s+)?)"
    return re.compile(r"\b" + between.join(map(re.escape, key.split("-"))) + r"\b", re.IGNORECASE)


def citation(*used: Any) -> str:
    """BibTeX of what was used: steps, processes, scores, networks' parametrisations, likelihoods, guidance, results of
    `tune`, or the classes and functions that make them. This package comes first, then the works that their docstrings
    name, and those of what they are made of, each once.

    Raises ValueError for what is not of this package and made of nothing that is.
    """
    for value in used:
        if not _ours(value):
            raise ValueError(f"used must be steps, processes or other parts of {PACKAGE}, got {value!r}")
    found = {key for value in used for key in cited(value)}
    return "\n".join([OWN, *(entry for key, entry in works().items() if key in found)])


def cited(value: Any) -> set[str]:
    """The keys of the works that a part rests on: named by its class or function, by those it is derived from, by a
    function of its wing that would make it, and by its own parts; by its module if by none of the first.
    """
    found: set[str] = set()
    for part in _parts(value, set()):
        what = part if inspect.isclass(part) or inspect.isroutine(part) else type(part)
        said = {key for text in _docstrings(what) for key in works_in(text)}
        said |= {key for maker in _makers(part) for key in works_in(inspect.getdoc(maker))}
        found |= said or set(works_in(importlib.import_module(what.__module__).__doc__))
    return found


def _ours(value: Any) -> bool:
    """Whether a value is, or is of, a class or function of this package, or one derived from such."""
    if inspect.isroutine(value):
        return str(value.__module__).partition(".")[0] == PACKAGE
    kinds = inspect.getmro(value if inspect.isclass(value) else type(value))
    return any(kind.__module__.partition(".")[0] == PACKAGE for kind in kinds)


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """A value and all parts of this package that it is made of."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, tuple | list | dict):
        inside = list(value.values() if isinstance(value, dict) else value)
    elif not _ours(value):
        return
    else:
        yield value
        inside = _inside(value)
    for part in inside:
        yield from _parts(part, seen)


def _inside(value: Any) -> list[Any]:
    """What a value holds, or a function has closed over."""
    if inspect.isfunction(value):
        return [cell.cell_contents for cell in value.__closure__ or ()]
    return [] if inspect.isclass(value) else list(getattr(value, "__dict__", {}).values())


def _docstrings(what: Any) -> Iterator[str | None]:
    """Of a class and those that it is derived from, or of the function that a function stands in."""
    if inspect.isclass(what):
        yield from (vars(kind).get("__doc__") for kind in inspect.getmro(what) if _ours(kind))
    else:
        outer = getattr(importlib.import_module(what.__module__), what.__qualname__.partition(".")[0], what)
        yield outer.__doc__


def _makers(part: Any) -> Iterator[Any]:
    """The functions of a value's wing that make an equal one: `DPMSolverPP` of a `Multistep`."""
    home = importlib.import_module(type(part).__module__.rpartition(".")[0] or PACKAGE)
    for maker in vars(home).values() if home.__name__ != PACKAGE else ():
        if inspect.isfunction(maker) and maker.__annotations__.get("return") is type(part):
            if any(made == part for made in _made(maker, part)):
                yield maker


def _made(maker: Any, part: Any) -> Iterator[Any]:
    """What a function makes of a value's own numbers, and of parts that its docstring names, at each order."""
    takes = inspect.signature(maker).parameters
    told = inspect.getdoc(maker) or ""
    own = {
        name: now
        for name, p in takes.items()
        if (now := getattr(part, name, None)) is not None
        and (p.default is p.empty or isinstance(now, int | float) or type(now).__name__ in told)
    }
    if any(p.default is p.empty and name not in (*own, "order") for name, p in takes.items()):
        return
    for order in ORDERS if "order" in takes else (None,):
        with suppress(ValueError):
            yield maker(**{**own, "order": order} if order else own)
