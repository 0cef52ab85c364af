"""Values as JSON and back, sealed: what was changed on the way is told from what was written."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from .files import digest


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
    if isinstance(value, dict):
        return {k: describe(v) for k, v in value.items()}
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, (str, int, float, type(None))):
        raise ValueError(f"{type(value).__name__} must be a dataclass to be saved, got {value!r}")
    return value


def later(default: Any) -> Any:
    """A field of a dataclass that files of earlier versions lack; `default` is what they meant."""
    return dataclasses.field(default=default, metadata={"later": True})


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
    fields = {f.name: f.metadata for f in dataclasses.fields(cls) if f.init}
    lacking = {name for name in fields.keys() - values.keys() if "later" not in fields[name]}
    for names, wrong in ((values.keys() - fields.keys(), "has no field"), (lacking, "lacks the field")):
        if names:
            raise ValueError(f"{cls.__name__} {wrong} {min(names)!r}")
    return cls(**{name: _field(hints[name], v) for name, v in values.items()})


PLAIN = (bool, int, float, str, dict, type(None))
"""Types whose values JSON has: of a union, what is described by an object is none of these."""


def _field(hint: Any, v: Any) -> Any:
    kinds = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
    if Tensor in kinds and (isinstance(v, list) or hint is Tensor):
        return torch.tensor(v, dtype=torch.float64, device="cpu")
    base = next((kind for kind in kinds if isinstance(kind, type) and kind not in PLAIN), None)
    if isinstance(v, dict) and base:
        return build(base, v)
    return Path(v) if hint is Path else _tuples(v)


def _tuples(v: Any) -> Any:
    return tuple(map(_tuples, v)) if isinstance(v, list) else v


NOT_FINITE = {str(v): v for v in (math.inf, -math.inf, math.nan)}
SEAL = "sha256"


def plain(value: Any) -> Any:
    """`describe` as it comes back from a file, in which a number that is not finite, since JSON has none, is
    {"number": how it is spelled}.
    """
    return json.loads(json.dumps(_each(describe(value), _spell), allow_nan=False))


def natural(said: Any) -> Any:
    """What `plain` was told, as far as JSON tells it."""
    return _each(said, _read)


def identity(value: Any) -> str:
    """The sha256 of a value as `plain` says it, whatever the order of its keys."""
    return digest(json.dumps(plain(value), sort_keys=True).encode())


def sealed(value: Any) -> bytes:
    """The content of a file that holds a value as a JSON object, together with its own `identity`."""
    said = plain(value)
    return json.dumps({**said, SEAL: identity(said)}, indent=1).encode()


def unsealed(content: bytes, name: str | Path) -> dict[str, Any]:
    """What `sealed` was told. Raises ValueError, naming the file, unless content is strict JSON of an object with the
    seal that it must have.
    """
    try:
        said = json.loads(content, parse_constant=_refuse)
        if not isinstance(said, dict):
            raise ValueError("it is no object")
        seal = said.pop(SEAL, None)
        if seal != identity(said):
            raise ValueError(f"its {SEAL} is not that of what it says")
        return natural(said)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged ({error}), or is no file of this program") from error


def _refuse(spelled: str) -> Any:
    raise ValueError(f"{spelled} is no JSON")


def _spell(v: Any) -> Any:
    return {"number": str(v)} if isinstance(v, float) and not math.isfinite(v) else v


def _read(v: Any) -> Any:
    return NOT_FINITE.get(v["number"], v) if isinstance(v, dict) and v.keys() == {"number"} else v


def _each(v: Any, f: Callable[[Any], Any]) -> Any:
    """JSON with f of every value in it, from within."""
    if isinstance(v, dict):
        return f({k: _each(item, f) for k, item in v.items()})
    return [_each(item, f) for item in v] if isinstance(v, list) else f(v)
