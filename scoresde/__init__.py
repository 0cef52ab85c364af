"""Continuous-time score-based models: which process, which times, which steps.

The names below are all that is needed every day; the rest lies in `process`, `steps`, `likelihood`, `lab` and the
modules. What is here stands in `__init__.pyi`, for type checkers and for this file, and is imported when it is used.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text()).body
_HOME = {node.names[0].name: node.module for node in _STUB if isinstance(node, ast.ImportFrom)}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME[name]
    globals()[name] = (
        getattr(import_module(f".{home}", __name__), name) if home else import_module(f".{name}", __name__)
    )
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
