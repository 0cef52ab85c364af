"""Values as JSON and back, and files that are whole or not there."""

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor


def describe(value: Any) -> Any:
    """A value as JSON: a dataclass becomes {"class": its name, field: ...}, a tensor a list, a path a string.

    Raises ValueError for any other object: it could not be made again.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, (str, int, float, dict, type(None))):
        raise ValueError(f"{type(value).__name__} must be a dataclass to be saved, got {value!r}")
    return value


def subclass(base: type, name: Any) -> type:
    """`base` or the subclass of it that has that name. Raises ValueError if there is none, or there are two."""
    found: list[type] = [base]
    known: dict[str, type] = {}
    while found:
        cls = found.pop()
        twin = known.setdefault(cls.__name__, cls)
        if cls.__name__ == name and (twin.__module__, twin.__qualname__) != (cls.__module__, cls.__qualname__):
            both = f"{twin.__module__}.{twin.__qualname__} and {cls.__module__}.{cls.__qualname__}"
            raise ValueError(f"class must tell one {base.__name__}, but {name!r} is both {both}: rename one of them")
        known[cls.__name__] = cls
        found += cls.__subclasses__()
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"class must be a known {base.__name__} ({', '.join(sorted(known))}), got {name!r}: import the module that "
            "defines it first"
        )
    return known[name]


def build(base: type, described: Any) -> Any:
    """The value that `describe` told of, a `base` or one of its subclasses. Raises ValueError if it is none."""
    if not isinstance(described, dict) or "class" not in described:
        raise ValueError(f"a {base.__name__} must be described by an object with a class, got {described!r}")
    cls = subclass(base, described["class"])
    if not dataclasses.is_dataclass(cls):
        raise ValueError(f"{cls.__name__} is no dataclass, so its fields cannot be read back")
    hints, values = get_type_hints(cls), {k: v for k, v in described.items() if k != "class"}
    unknown = set(values) - {f.name for f in dataclasses.fields(cls) if f.init}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {min(unknown)!r}")
    return cls(**{name: _field(hints[name], v) for name, v in values.items()})


def _field(hint: Any, v: Any) -> Any:
    kinds = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
    if Tensor in kinds and (isinstance(v, list) or hint is Tensor):
        return torch.tensor(v, dtype=torch.float64)
    base = next((kind for kind in kinds if isinstance(kind, type) and kind not in (dict, type(None))), None)
    if isinstance(v, dict) and base:
        return build(base, v)
    return Path(v) if hint is Path else _tuples(v)


def _tuples(v: Any) -> Any:
    return tuple(map(_tuples, v)) if isinstance(v, list) else v


def write(path: Path, content: bytes) -> None:
    """Write a file so that the path never holds a part of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


NOT_FINITE = {str(v): v for v in (math.inf, -math.inf, math.nan)}


def dumps(value: Any) -> bytes:
    """`describe` as the content of a file, in which numbers that are not finite are strings."""
    return json.dumps(_each(describe(value), _spell), indent=1, allow_nan=False).encode()


def loads(content: bytes) -> Any:
    """What `dumps` said, for `build`."""
    return _each(json.loads(content), _read)


def _spell(v: Any) -> Any:
    return str(v) if isinstance(v, float) and not math.isfinite(v) else v


def _read(v: Any) -> Any:
    return NOT_FINITE.get(v, v) if isinstance(v, str) else v


def _each(v: Any, f: Callable[[Any], Any]) -> Any:
    """JSON with f of every value in it."""
    if isinstance(v, dict):
        return {k: _each(item, f) for k, item in v.items()}
    return [_each(item, f) for item in v] if isinstance(v, list) else f(v)
