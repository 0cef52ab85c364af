"""What a score is told beside the state and the time, for samples that leave a batch one by one."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..process import Reverse

Conditions = dict[str, Tensor]


def conditions(cond: Mapping[str, Any], x: Tensor, score: Any) -> Conditions:
    """Each condition for every one of the samples x (B, *D): (B, ...), where x is. A number is the same for all.

    Raises ValueError, naming it, for a condition that is no tensor of B rows, or that the score does not take.
    """
    found: Conditions = {}
    if cond:
        _require_taken(cond, x, score)
    for name, value in cond.items():
        try:
            c = torch.as_tensor(value).to(x.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} must be a number or a tensor, got {value!r}") from error
        if c.ndim and len(c) != len(x):
            raise ValueError(f"{name} must be one for each of the {len(x)} samples, got shape {tuple(c.shape)}")
        found[name] = c if c.ndim else c.expand(len(x))
    return found


def _require_taken(cond: Mapping[str, Any], x: Tensor, score: Any) -> None:
    try:
        inspect.signature(score).bind(x, x, **cond)
    except TypeError as error:
        raise ValueError(f"{' and '.join(cond)} must not be given to a score that does not take it: {error}") from error
    except ValueError:
        return  # a builtin tells no signature


def given(p: Reverse, cond: Conditions, rows: Tensor | None = None) -> Reverse:
    """p with a score that is told the conditions of the samples `rows`, of all of them unless said."""
    if not cond:
        return p
    told = {name: c if rows is None else c[rows.to(c.device)] for name, c in cond.items()}
    return replace(p, score=partial(p.score, **told))


def under(score: Any, cond: Conditions) -> str:
    """Under which conditions; nothing if there are none, and the network knows of none."""
    if cond:
        return f", given {' and '.join(cond)}"
    if said := getattr(score, "given", ""):
        return str(said)
    return ", under the network's label for none" if getattr(getattr(score, "net", None), "classes", 0) else ""
