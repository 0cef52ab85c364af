"""A solver that was fitted to one model, and the file that keeps it: see `tune`."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from .checkpoint import build, describe, write
from .convergence import Error
from .exponential import Exponential, Interval, Reference
from .multistep import Multistep
from .sample import Step
from .sde import LinearSDE, Reverse
from .shapes import times

BAND = 4
"""The q that a fitted weight is found for on each interval."""


@dataclass(frozen=True, eq=False)
class Tuned(Exponential):
    """A multistep method with fitted weights, for one process and one grid.

    base: the method that the weights are added to. sde, ts: what it was fitted for. extra: (n, 5), what is added to the
    weights of the last q on each interval, newest first. Raises ValueError for another shape, and when used on another
    process, or on other times.
    """

    fixed: ClassVar[bool] = True
    base: Multistep
    sde: LinearSDE
    ts: Tensor
    extra: Tensor

    def __post_init__(self) -> None:
        if self.extra.shape != (len(self.ts) - 1, BAND + 1):
            raise ValueError(f"extra must be ({len(self.ts) - 1}, {BAND + 1}), got {tuple(self.extra.shape)}")

    @property
    def around(self) -> Reference:  # type: ignore[override]
        """What is solved exactly."""
        return self.base.around

    def __repr__(self) -> str:
        return f"Tuned({self.base!r} on {len(self.ts) - 1} intervals of {self.sde!r})"

    def check(self, p: Reverse, ts: Tensor) -> None:
        """p and ts are those of the fit, and eta is 0."""
        if p.sde is not self.sde and describe(p.sde) != describe(self.sde):
            raise ValueError(f"sde must be {self.sde!r}, which the solver was tuned for, got {p.sde!r}")
        if p.eta:
            raise ValueError(f"a tuned solver solves the probability flow, eta=0, got eta={p.eta:g}")
        if len(ts) != len(self.ts) or (ts - self.ts).abs().max() > 1e-9 * p.T:
            raise ValueError(
                f"ts must be the {len(self.ts)} times that the solver was tuned for, from {self.ts[0]:g} to "
                f"{self.ts[-1]:g}, got {len(ts)} from {ts[0]:g} to {ts[-1]:g}"
            )

    def intervals(self, p: Reverse, ts: Tensor) -> list[Interval]:
        """Those of `base`, with the weights added."""
        return [_add(now, row) for now, row in zip(self.base.intervals(p, ts), self.extra.tolist(), strict=True)]


def _add(now: Interval, extra: list[float]) -> Interval:
    w = [*now.stages[0].w, *[0.0] * (len(extra) - len(now.stages[0].w))]
    w = [a + b for a, b in zip(w, extra, strict=True)]
    return now._replace(stages=[now.stages[0]._replace(w=tuple(w))], kept=len(w) - 1)


@dataclass(frozen=True, eq=False)
class Tuning:
    """A step with the grid to take it on, and how they were found: `sample(q, x_T, tuning.ts, tuning.step)`.

    name: of the method; tuned: whether it was fitted, which it is unless a method that needs no fit was better. calls:
    of the network. calibration: the error of the fit on the pilots that it was fitted to, None without a fit;
    validation: on those that decided; fresh: on noise that nothing was chosen by. untuned: of the methods that need no
    fit the best on those that decided, and its error. noise_amplification: the sum of |w| over |the sum of w|, w being
    what each q weighs in the last state: how much louder errors of the network come out than they would with positive
    weights.
    """

    step: Step
    ts: Tensor
    sde: LinearSDE
    name: str
    tuned: bool
    calls: int
    calibration: Error | None
    validation: Error
    fresh: Error
    untuned: str
    untuned_validation: Error
    noise_amplification: float

    def save(self, file: str | Path) -> None:
        """Write it as JSON, in which numbers that are not finite are strings."""
        write(Path(file), json.dumps(_each(describe(self), _spell), indent=1, allow_nan=False).encode())

    @classmethod
    def load(cls, file: str | Path) -> "Tuning":
        """Read what `save` wrote. Raises ValueError for anything else."""
        try:
            said = json.loads(Path(file).read_bytes())
            if not isinstance(said, dict) or said.get("class") != cls.__name__:
                raise ValueError(f"it does not describe a {cls.__name__}")
            found = build(cls, _each(said, _read))
            times("ts", found.ts, found.sde.T)
            if not isinstance(found.step, Step):
                raise ValueError(f"step must be a step, got {found.step!r}")
            return found
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{file} is damaged, or is no tuned solver: {error}") from error


NOT_FINITE = {str(v): v for v in (math.inf, -math.inf, math.nan)}


def _spell(v: Any) -> Any:
    return str(v) if isinstance(v, float) and not math.isfinite(v) else v


def _read(v: Any) -> Any:
    return NOT_FINITE.get(v, v) if isinstance(v, str) else v


def _each(v: Any, f: Callable[[Any], Any]) -> Any:
    """JSON with f of every value in it."""
    if isinstance(v, dict):
        return {k: _each(item, f) for k, item in v.items()}
    return [_each(item, f) for item in v] if isinstance(v, list) else f(v)
