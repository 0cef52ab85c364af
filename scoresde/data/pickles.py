"""Values in a pickle, read without running what is in it.

`pickle.load` calls whatever a file names. Here a pickle is taken apart by `pickletools.genops`, and only the opcodes of
plain values are understood. The few functions by which NumPy's arrays are stored are recognised by their names and
never looked up; an array is a view of the bytes in the file.
"""

import math
import os
import pickletools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..shapes import shown
from .dataset import check_memory

STEPS = 10**6
"""How many opcodes a pickle may have: each adds at most a hundred bytes or so to what is in the file."""
NESTED = 32
"""How deep its values may lie in each other."""

RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
FROMBUFFER = ("numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer")
NDARRAY, DTYPE, ENCODE = "numpy ndarray", "numpy dtype", "_codecs encode"
MOST_AXES = 8
KNOWN = (*RECONSTRUCT, *FROMBUFFER, NDARRAY, DTYPE, ENCODE)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclass(frozen=True)
class _Named:
    """A function or type, as it is named."""

    name: str


@dataclass
class _Dtype:
    code: str
    order: str = "|"


@dataclass
class _Blank:
    """An array before its state is given, and where the memo holds it."""

    memo: list[int] = field(default_factory=list)


def unpickle(file: Path) -> Any:
    """The value in a pickle of protocol 0 to 5: dicts, lists, tuples, whole numbers, booleans, None, str, bytes and
    arrays of numbers. The str of Python 2 are bytes here; keys are str, bytes or whole numbers.

    Raises ValueError, naming the file, and the opcode or what it names, for anything else, for what is damaged, has
    more than 10^6 opcodes, whole numbers of more than 64 bits, values in each other deeper than 32 or in a circle, or
    would not fit into memory.
    """
    try:
        check_memory("it", 8 * os.path.getsize(file))
        return _Machine(file.read_bytes()).run()
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a pickle of plain values: {str(error)[:300]}") from error


class _Machine:
    """The stack, the stacks below the marks, and the memo of a pickle."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0

    def run(self) -> Any:
        for step, (opcode, arg, at) in enumerate(pickletools.genops(self.content)):
            if step == STEPS:
                raise ValueError(f"it has more than {STEPS} opcodes")
            if opcode.name == "STOP":
                if self.below or len(self.stack) != 1 or at is None or at + 1 != len(self.content):
                    raise ValueError(f"it must end with one value, got STOP at byte {at} of {len(self.content)}")
                _check_plain(self.stack[0])
                return self.stack[0]
            self._do(opcode.name, arg, f"{opcode.name} at byte {at}")
        raise ValueError("it has no end")

    def _do(self, op: str, arg: Any, where: str) -> None:
        push = self.stack.append
        match op:
            case "PROTO":
                if arg > 5:
                    raise ValueError(f"its protocol must be 0 to 5, got {arg}")
            case "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push(CONSTANTS[op])
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4":
                if not -(2**63) <= arg < 2**64:
                    raise ValueError(f"whole numbers must fit into 64 bits, got {where}")
                push(arg)
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING":
                push(arg.encode("latin-1"))
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                push(arg)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                push(bytes(arg))
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                push({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[op]())
            case "MARK":
                if len(self.below) == NESTED:
                    raise ValueError(f"values must lie in each other {NESTED} deep at most, got {where}")
                self.below.append(self.stack)
                self.stack = []
            case "TUPLE" | "LIST" | "DICT":
                items = self._marked()
                self.stack.append(tuple(items) if op == "TUPLE" else items if op == "LIST" else _pairs(items, where))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self._popped(int(op[-1]))))
            case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS":
                items = self._popped(1 if op == "APPEND" else 2) if op[-1] != "S" else self._marked()
                self._add(list if op.startswith("APPEND") else dict, items, where)
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                if not self.stack:
                    raise ValueError(f"the memo must be given a value, got {where}")
                key = len(self.memo) if op == "MEMOIZE" else arg
                if isinstance(self.stack[-1], _Blank):
                    self.stack[-1].memo.append(key)
                self.memo[key] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                if arg not in self.memo:
                    raise ValueError(f"the memo must hold what is taken from it, got {where} of entry {shown(arg)}")
                push(self.memo[arg])
            case "GLOBAL" | "STACK_GLOBAL":
                name = arg if op == "GLOBAL" else " ".join(map(_text, self._popped(2)))
                if name not in KNOWN:
                    raise ValueError(f"it must name nothing but NumPy's arrays, got {shown(name)} by {where}")
                push(_Named(name))
            case "REDUCE":
                function, args = self._popped(2)
                push(self._reduce(function, args, where))
            case "BUILD":
                blank, state = self._popped(2)
                push(self._build(blank, state, where))
            case _:
                raise ValueError(f"its opcodes must be those of plain values, got {where}")

    def _popped(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise ValueError(f"the stack must hold {n} values more, got {len(self.stack)}")
        items = self.stack[-n:]
        del self.stack[-n:]
        return items

    def _marked(self) -> list[Any]:
        if not self.below:
            raise ValueError("a mark must come before what it begins, got none")
        items, self.stack = self.stack, self.below.pop()
        return items

    def _add(self, kind: type, items: list[Any], where: str) -> None:
        target = self.stack[-1] if self.stack else None
        if type(target) is not kind:
            raise ValueError(f"items must be added to a {kind.__name__}, got {where}")
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, dict):
            target.update(_pairs(items, where))

    def _reduce(self, function: Any, args: Any, where: str) -> Any:
        """What a call makes, if it is one of those by which arrays are stored, with what belongs into it."""
        name = function.name if isinstance(function, _Named) else f"a {type(function).__name__}"
        match args:
            case (str(text), "latin1" | "latin-1") if name == ENCODE:
                self.encoded += len(text)
                if self.encoded > len(self.content):
                    raise ValueError(f"text must be encoded once, got {where} of {len(text)} characters again")
                return text.encode("latin-1")
            case (str() | bytes() as code, int(), int()) if name == DTYPE:
                return _Dtype(_text(code))
            case (_Named(name="numpy ndarray"), (0,), bytes()) if name in RECONSTRUCT:
                return _Blank()
            case (bytes(data), _Dtype() as dtype, tuple(shape), "C" | "F" as order) if name in FROMBUFFER:
                return _array(data, dtype, shape, order == "F")
        raise ValueError(f"it must call nothing but what makes NumPy's arrays, got {shown(name)} called by {where}")

    def _build(self, target: Any, state: Any, where: str) -> Any:
        """The array or type of numbers that a state makes of what has been called for."""
        match target, state:
            case _Dtype(), (3, str() | bytes() as order, None, None, None, -1, -1, 0):
                target.order = _text(order)
                return target
            case _Blank(), (1, tuple(shape), _Dtype() as dtype, bool() | 0 | 1 as by_columns, bytes(data)):
                made = _array(data, dtype, shape, bool(by_columns))
                while target.memo:
                    if self.memo[key := target.memo.pop()] is target:
                        self.memo[key] = made
                return made
        kinds = {_Dtype: "an array's type", _Blank: "an array", _Named: "a function"}
        what = kinds.get(type(target), f"a {type(target).__name__}")
        raise ValueError(f"only an array may be given a state, and one of its kind, got {where} of {what}")


def _array(data: bytes, dtype: _Dtype, shape: tuple[Any, ...], by_columns: bool) -> np.ndarray:
    """A view of data."""
    if not re.fullmatch("b1|[iu][1248]|f[248]", dtype.code) or dtype.order not in ("|", "=", "<", ">"):
        raise ValueError(f"arrays must hold plain numbers, got the type {shown(dtype.order + dtype.code)}")
    if len(shape) > MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"arrays must have {MOST_AXES} axes at most, of lengths from 0 on, got {len(shape)} axes")
    need = math.prod(shape) * int(dtype.code[1])
    if need != len(data):
        raise ValueError(f"an array of {shape} must hold {need} bytes, got {len(data)}")
    flat = np.frombuffer(data, dtype.order + dtype.code)
    return flat.reshape(shape[::-1]).T if by_columns else flat.reshape(shape)


def _text(value: Any) -> str:
    if not isinstance(value, str | bytes):
        raise ValueError(f"names must be text, got a {type(value).__name__}")
    return value if isinstance(value, str) else value.decode("latin-1")


def _pairs(items: list[Any], where: str) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError(f"a dict must have a value for each key, got {len(items)} of both by {where}")
    for key in items[::2]:
        if type(key) not in (str, bytes, int):
            raise ValueError(f"keys must be text or whole numbers, got a {type(key).__name__} by {where}")
    return dict(zip(items[::2], items[1::2], strict=True))


def _check_plain(value: Any) -> None:
    """Raise ValueError for what is nested too deep, as a circle is, and for an array that was not finished."""
    deepest: dict[int, int] = {}
    rest = [(value, 0)]
    while rest:
        v, depth = rest.pop()
        if type(v) in (dict, list, tuple):
            if depth == NESTED:
                raise ValueError(f"values must lie in each other {NESTED} deep at most, and in no circle")
            if deepest.get(id(v), -1) < depth:
                deepest[id(v)] = depth
                rest += [(inside, depth + 1) for inside in (v.values() if isinstance(v, dict) else v)]
        elif v is not None and type(v) not in (str, bytes, int, bool, np.ndarray):
            raise ValueError(f"it must hold plain values, got a part of an array alone, {type(v).__name__[1:]}")
