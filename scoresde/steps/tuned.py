"""A solver that was fitted to one model, and the file that keeps it: see `tune`."""

import math
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..files import write
from ..process import Between, LinearSDE, Reverse
from ..reference import Reference
from ..shapes import number, times
from ..values import build, later, sealed, unsealed
from .exponential import Exponential, Interval
from .multistep import Multistep
from .step import Step
from .stochastic import and_back, farther

BAND = 4
"""The q that a fitted weight is found for on each interval."""


def distance(x: Tensor, y: Tensor) -> Tensor:
    """The root mean square over dimensions of x - y, in float64: (B, *D) -> (B,)."""
    return (x - y).flatten(1).double().square().mean(1).sqrt()


@dataclass(frozen=True)
class Error:
    """Of last states: per sample the root mean square over dimensions; of these the root mean square, the median and
    the 90th percentile over samples.
    """

    rms: float
    median: float
    p90: float

    @classmethod
    def of(cls, x: Tensor, truth: Tensor) -> "Error":
        """x and truth are (B, *D)."""
        return cls.over(distance(x, truth))

    @classmethod
    def over(cls, e: Tensor) -> "Error":
        """e: (B,), per sample."""
        return cls(float(e.square().mean().sqrt()), float(e.median()), float(e.quantile(0.9)))

    def __str__(self) -> str:
        return f"{self.rms:.2e} (median {self.median:.1e}, 90th percentile {self.p90:.1e})"


@dataclass(frozen=True, eq=False)
class Tuned(Exponential):
    """A multistep method with fitted weights, for one process and one grid.

    base: the method that the weights are added to. sde, ts, eta: what it was fitted for. extra: (n, 5), what is added
    to the weights of the last q on each interval, newest first. With eta > 0 each interval goes on along the flow to
    u < s, and back to s by noise (see `Renoised`): so all marginals are exact where the flow is solved exactly, as it
    is for data that are `around`, whatever the weights and eta. Raises ValueError for anything else, for eta above 1,
    and when used on another process, with another eta, or on other times.
    """

    fixed: ClassVar[bool] = True
    base: Multistep
    sde: LinearSDE
    ts: Tensor
    extra: Tensor
    eta: float | Between = later(0.0)

    def __post_init__(self) -> None:
        if not isinstance(self.base, Multistep | Tuned) or not isinstance(self.sde, LinearSDE):
            raise ValueError(f"base must be a Multistep and sde a LinearSDE, got {self.base!r} and {self.sde!r}")
        wanted = (len(times("ts", self.ts, self.sde.T)) - 1, BAND + 1)
        if not isinstance(self.extra, Tensor) or self.extra.shape != wanted:
            raise ValueError(f"extra must be {wanted}, got {tuple(getattr(self.extra, 'shape', ())) or self.extra!r}")
        if not self.extra.isfinite().all():
            raise ValueError(f"extra must be finite, got {self.extra.tolist()}")
        noise = self.eta.eta if isinstance(self.eta, Between) else self.eta
        number("eta", noise, least=0, most=1)
        if isinstance(self.base, Tuned) and self.base.eta != self.eta:
            raise ValueError(f"eta must be that of base, {self.base.eta}, got {self.eta}")

    @property
    def around(self) -> Reference:  # type: ignore[override]
        """What is solved exactly."""
        return self.base.around

    def __repr__(self) -> str:
        noise = f", eta={self.eta:g}" if self.eta else ""
        return f"Tuned({self.base!r} on {len(self.ts) - 1} intervals of {self.sde!r}{noise})"

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """p and the intervals are those of the fit."""
        if p.sde != self.sde:
            raise ValueError(f"sde must be {self.sde!r}, which the solver was tuned for, got {p.sde!r}")
        if p.eta != self.eta:
            raise ValueError(f"eta must be {self.eta:g}, which the solver was tuned for, got {p.eta:g}")
        ends = torch.stack([t, s])
        if len(t) != len(self.ts) - 1 or (ends - torch.stack([self.ts[:-1], self.ts[1:]])).abs().max() > 1e-9 * p.T:
            raise ValueError(
                f"ts must be the {len(self.ts)} times that the solver was tuned for, from {self.ts[0]:g} to "
                f"{self.ts[-1]:g}, got {len(t) + 1} from {t[0]:g} to {s[-1]:g}"
            )

    def plan(self, p: Reverse, t: Tensor, s: Tensor, hops: int = 0) -> list[Interval]:
        """That of `base`, with the weights added."""
        there = not self.eta or isinstance(self.base, Tuned)
        plan = self.base.plan(p, t, s, hops) if there else and_back(self.base, p, t, s)
        return [with_weights(now, row) for now, row in zip(plan, self.extra.tolist(), strict=True)]


def masses(p: Reverse, around: Reference, ts: Tensor) -> Tensor:
    """alpha int (S_1/S) g dlambda over each interval of ts, or as far as the flow is followed with eta > 0: what q = 1
    all along it would add to the state.
    """
    lam, sde = p.sde.log_snr(ts), p.sde
    to = farther(p, ts[:-1], ts[1:]) if p.eta else lam[1:]
    return sde.alpha(ts[1:]) * around.masses(lam[:-1], to, 0.0)[1].sum(1)


def with_weights(now: Interval, extra: list[float]) -> Interval:
    """An interval of one stage whose q weigh that much more."""
    (stage,) = now.stages
    w = tuple(a + b for a, b in zip_longest(stage.w, extra, fillvalue=0.0))
    return now._replace(stages=[stage._replace(w=w)], kept=len(w) - 1)


@dataclass(frozen=True, eq=False)
class Tuning:
    """A step with the grid to take it on, and how they were found: `sample(q, x_T, tuning.ts, tuning.step)`.

    name: of the method; tuned: whether it was fitted, which it is unless a method that needs no fit was better. calls:
    of the network. calibration: the error of the fit on the pilots that it was fitted to, None without a fit;
    validation: on those that decided; fresh: on noise that nothing was chosen by. untuned: of the methods that need no
    fit the best on those that decided, and its error. noise_amplification: the sum of |w| over |the sum of w|, w being
    what each q weighs in the last state: how much louder errors of the network come out than they would with positive
    weights. condition: in words what the score was told, such as a label and a guidance; nothing unless said.
    evaluations: of the network for one sample, that the fit cost. roughness: of the network in t along the pilots, what
    no polynomial of a solver's order carries of how its residual changes from node to node, over that change: see
    `Trajectories.roughness`. Near 0 it is smooth at the pilots' steps; near 1 it is noise there. NaN if nobody told.
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
    condition: str = later("")
    evaluations: int = later(0)
    roughness: float = later(math.nan)

    @property
    def eta(self) -> float | Between:
        """Of the process that it is for."""
        return self.step.eta if isinstance(self.step, Tuned) else 0.0

    def save(self, file: str | Path) -> None:
        """Write it as JSON with a seal, so that no changed entry is taken for what was fitted."""
        write(Path(file), sealed(self))

    @classmethod
    def load(cls, file: str | Path) -> "Tuning":
        """Read what `save` wrote. Raises ValueError for anything else."""
        said = unsealed(Path(file).read_bytes(), file)
        try:
            if said.get("class") != cls.__name__:
                raise ValueError(f"it does not describe a {cls.__name__}")
            found = build(cls, said)
            times("ts", found.ts, found.sde.T)
            if not isinstance(found.step, Step):
                raise ValueError(f"step must be a step, got {found.step!r}")
            return found
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{file} is damaged, or is no tuned solver: {error}") from error
