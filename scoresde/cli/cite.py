"""`scoresde cite`."""

import inspect
import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from ..bibliography import citation
from ..checkpoint import MANIFEST
from ..guide import classified, classifier_free, tempered
from ..steps import Tuning
from .folder import RECIPE
from .options import model
from .parts import PUBLIC, evaluated, methods_of_inverse_problems


def run(o: Namespace) -> None:
    """Print BibTeX."""
    print(citation(*(value for text in o.used for value in _used(text))), end="")


def _used(text: str) -> list[Any]:
    """The parts that a text names, or that a run in a folder used. Raises ValueError for a folder of neither kind."""
    place = model(text)
    if place.is_file():
        return [Tuning.load(place)]
    if not place.is_dir():
        return [evaluated("used", text, PUBLIC)]
    for file in (place / MANIFEST, place / RECIPE):
        if file.is_file():
            return _told(file)
    raise ValueError(f"used must be the folder of a checkpoint or of results, or a part such as UniPC(3), got {text!r}")


def _told(file: Path) -> list[Any]:
    """The classes whose names are in a file of JSON, and what the options are of that it tells; nothing of it is
    evaluated. Raises ValueError for another.
    """
    try:
        said = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    names = sorted({*re.findall(r"\b[A-Z]\w*", json.dumps(said))} & PUBLIC.keys())
    found = [PUBLIC[name] for name in names if inspect.isclass(PUBLIC[name])]
    return found + (_options(said) if isinstance(said, dict) else [])


def _options(said: dict[str, Any]) -> list[Any]:
    """Guidance, temperature, and the method of an inverse problem."""
    free = {"guidance": classifier_free} if "classifier" not in said else {"classifier": classified}
    every = {**free, "temperature": tempered}
    method = methods_of_inverse_problems().get(str(said.get("method")).partition("(")[0])
    return [part for name, part in every.items() if said.get(name) is not None] + ([method] if method else [])
