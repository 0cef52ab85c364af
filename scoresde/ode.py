"""Solvers of dy/dt = f(t, y), and the control of step sizes for each sample. Knows tensors, not diffusion.

A solver is a frozen value called as `method(f, y, t, s)`; it carries y of shape (B, *D) from time t to time s, in
either direction, and returns y(s). f is called as `f(t, y)` with t of shape () by the fixed-step methods and (B,) by
the adaptive ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from .shapes import answer, as_time, choose, count, function, like, number, wide

Field = Callable[[Tensor, Tensor], Tensor]
Reach = Callable[[Tensor, Tensor], Tensor]
BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class OneStep(Protocol):
    """Carries y from time t to time s along dy/dt = f(t, y). `ends = True` says that it asks for f at s itself, `order`
    what its order of convergence is.
    """

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor: ...


def _posed(f: Field, y: Tensor, t: Tensor | float, s: Tensor | float, dims: int = 1) -> tuple[Field, Tensor, Tensor]:
    """f, whose answers must have the shape of y, and the times t and s as tensors. Raises ValueError naming what is no
    part of such an equation.
    """
    function("f", f, "a callable (t, y) -> dy/dt"), wide("y", y, dims)
    t, s = as_time(t), as_time(s, "s")
    like(t, y), like(s, y)
    return lambda u, v: answer("f", f(u, v), v), t, s


@dataclass(frozen=True)
class Euler:
    """y_s = y + h f(t, y), h = s - t. Order 1, one call."""

    order: ClassVar[int] = 1

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        f, t, s = _posed(f, y, t, s)
        return y + like(s - t, y) * f(t, y)


@dataclass(frozen=True)
class Heun:
    """The explicit trapezoidal rule, y_s = y + h/2 (f(t, y) + f(s, y + h f(t, y))). Order 2, two calls."""

    order: ClassVar[int] = 2
    ends: ClassVar[bool] = True

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        f, t, s = _posed(f, y, t, s)
        h, k = like(s - t, y), f(t, y)
        return y + h / 2 * (k + f(s, y + h * k))


@dataclass(frozen=True)
class RK4:
    """The classical Runge-Kutta method (Kutta 1901). Order 4, four calls."""

    order: ClassVar[int] = 4
    ends: ClassVar[bool] = True

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        f, t, s = _posed(f, y, t, s)
        h, m = like(s - t, y), (s + t) / 2
        k1 = f(t, y)
        k2 = f(m, y + h / 2 * k1)
        k3 = f(m, y + h / 2 * k2)
        k4 = f(s, y + h * k3)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


class SampleError(RuntimeError):
    """What keeps one sample from its end. said: the message, in which {} stands for the sample's number; sample: that
    number inside the batch.
    """

    def __init__(self, said: str, sample: int) -> None:
        super().__init__(said, sample)
        self.said, self.sample = said, sample

    def __str__(self) -> str:
        return self.said.format(self.sample)


class Trial(ABC):
    """An equation, being solved by steps that are tried from where each sample is, and then kept or not."""

    @abstractmethod
    def attempt(self, now: Tensor, to: Tensor, h: Tensor, rows: Tensor) -> Tensor:
        """E of a step h from `now` to `to`, all (b,) in float64, for the samples `rows`: at most 1 where it is good
        enough.
        """

    @abstractmethod
    def settle(self, accept: Tensor, reject: Tensor, rows: Tensor) -> None:
        """Told which of the samples `rows` keep the step that was tried, and which do not, (b,); those that are neither
        have arrived.
        """

    def reach(self, now: Tensor, h: Tensor) -> Tensor:
        """The step h from `now`, (b,), or a shorter one where estimates of the error of so long a step mean nothing."""
        return h

    def time(self, now: Tensor) -> Tensor:
        """What `now` is called in messages."""
        return now


class Tally(NamedTuple):
    """The steps that were accepted and rejected for each sample, (B,)."""

    accepted: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class Control:
    """How long the next step is, in units of the last: safety E^-power E_before^memory, E the error of the last in
    units of what is tolerated and E_before that of the last that was accepted, kept between `least` and `most`; after a
    rejection never more than 1. (With memory: proportional-integral control, Hairer, Norsett & Wanner 1993, II.4.)
    """

    safety: float
    power: float
    memory: float = 0.0
    least: float = 0.0
    most: float = torch.inf
    max_steps: int = 10_000
    """Steps after which to give up."""

    def growth(self, E: Tensor, before: Tensor, accept: Tensor) -> Tensor:
        """The next step in units of the last; E, before and accept are (b,)."""
        E = E.clamp_min(1e-12)
        grow = self.safety * (self.memory * before.log() - self.power * E.log()).exp()
        grow = grow.clamp(self.least, self.most)
        return torch.where(accept, grow, grow.clamp_max(1.0))

    def __call__(self, trial: Trial, now: Tensor, end: Tensor, h: Tensor, leave: bool = False) -> Tally:
        """Carry each sample from `now` to `end`, first by a step h, all (B,) in float64: the one loop that accepts and
        rejects. Sample i takes its own steps, never beyond the end; what it becomes does not depend on its neighbours.

        leave: samples that have arrived are not tried any more; otherwise all are, and those wait.
        Raises `SampleError` naming the sample and its time if E is not finite, or max_steps do not suffice.
        """
        before, rows = torch.ones_like(now), torch.arange(len(now), device=now.device)
        accepted, rejected = torch.zeros(2, len(now), dtype=torch.long, device=now.device)
        for _ in range(self.max_steps):
            moving = now != end
            if leave:
                now, end, h, before, rows, moving = (u[moving] for u in (now, end, h, before, rows, moving))
            if not moving.any():
                return Tally(accepted, rejected)
            h, rest = trial.reach(now, h), end - now
            last = rest.abs() <= h.abs()
            step, to = torch.where(last, rest, h), torch.where(last, end, now + h)
            E = trial.attempt(now, to, step, rows)
            if (wrong := moving & ~E.isfinite()).any():
                i = int(wrong.nonzero()[0])
                at = float(trial.time(now)[i])
                raise SampleError(f"the drift of sample {{}} is not finite at t = {at:.6g}", int(rows[i]))
            accept = moving & (E <= 1)
            reject = moving ^ accept
            trial.settle(accept, reject, rows)
            h = torch.where(moving, step * self.growth(E, before, accept), h)
            before = torch.where(accept, E.clamp_min(1e-4), before)
            now = torch.where(accept, to, now)
            accepted[rows] += accept
            rejected[rows] += reject
        if not (late := now != end).any():
            return Tally(accepted, rejected)
        i = int(late.nonzero()[0])
        at, wanted = (float(trial.time(u)[i]) for u in (now, end))
        raise SampleError(
            f"max_steps = {self.max_steps} do not suffice to t = {wanted:g}: sample {{}} is at t = {at:.6g}",
            int(rows[i]),
        )


@dataclass(frozen=True)
class Pair:
    """An embedded explicit Runge-Kutta pair whose last stage is the first of the next step: nodes c, rows a, of which
    the last is the solution, and weights e of the error estimate.
    """

    a: tuple[tuple[float, ...], ...]
    c: tuple[float, ...]
    e: tuple[float, ...]


DORMAND_PRINCE = Pair(
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
TSITOURAS = Pair(
    (
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    ),
    (0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    (-0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629,
     0.5823571654525552, -0.45808210592918697, 1 / 66),
)  # fmt: skip


@dataclass(frozen=True)
class Embedded:
    """An embedded pair of orders 5(4) with local extrapolation, step sizes chosen for each sample on its own.

    E is the root mean square over dimensions of err / (atol + rtol |y_s|), of the size at the end of the step, since y
    may shrink in it by orders of magnitude; the next step is h min(5, max(0.2, 0.9 E^(-0.7/5) E_before^(0.4/5))), and
    the first a fiftieth of the whole. What a sample becomes does not depend on its neighbours in the batch, if f does
    not; how f rounds can decide whether a step is accepted. A sample that has arrived waits for the others.

    Six calls of f a step, and one to start. Raises `SampleError` naming the sample and its time if f is not finite, or
    if `max_steps` do not suffice.
    """

    order: ClassVar[int] = 5
    ends: ClassVar[bool] = True
    pair: ClassVar[Pair]
    rtol: float = 1e-5
    """Relative tolerance."""
    atol: float = 1e-5
    """Absolute tolerance."""
    max_steps: int = 10_000
    """Steps after which to give up."""

    def __post_init__(self) -> None:
        number("rtol", self.rtol, least=0)
        number("atol", self.atol, above=0)
        count("max_steps", self.max_steps)

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.solve(f, y, t, s)[0]

    def solve(self, f: Field, y: Tensor, t: Tensor, s: Tensor, reach: Reach = lambda now, h: h) -> tuple[Tensor, Tally]:
        """y at s, with the steps that it took. reach: from (B,) times and steps to steps that are not too long."""
        f, t, s = _posed(f, y, t, s, dims=2)
        now, end = (u.to(y.device, torch.float64).expand(len(y)) for u in (t, s))
        trial = _Solution(self, f, y, f(now, y).to(y), reach)
        tally = self.control(trial, now, end)
        return trial.y, tally

    def control(self, trial: Trial, now: Tensor, end: Tensor, leave: bool = False) -> Tally:
        """The loop, by this method's rules."""
        return Control(0.9, 0.14, 0.08, 0.2, 5.0, self.max_steps)(trial, now, end, (end - now) / 50, leave)

    def error(self, new: Tensor, off: Tensor) -> Tensor:
        """E, (b,), of a step to `new` that is off by `off`; without a graph, as step sizes are no variables."""
        scale = self.atol + self.rtol * new.detach().abs()
        return (off.detach() / scale).flatten(1).square().mean(1).sqrt().to(torch.float64)


@dataclass(frozen=True)
class Dopri5(Embedded):
    """Dormand & Prince (1980)."""

    pair: ClassVar[Pair] = DORMAND_PRINCE


@dataclass(frozen=True)
class Tsit5(Embedded):
    """Tsitouras (2011): as many calls as Dormand & Prince, smaller errors."""

    pair: ClassVar[Pair] = TSITOURAS


class _Solution(Trial):
    """y on its way along f, with the rate there."""

    def __init__(self, method: Embedded, f: Field, y: Tensor, rate: Tensor, reach: Reach) -> None:
        self.method, self.f, self.y, self.rate, self._reach = method, f, y, rate, reach

    def reach(self, now: Tensor, h: Tensor) -> Tensor:
        return self._reach(now, h)

    def attempt(self, now: Tensor, to: Tensor, h: Tensor, rows: Tensor) -> Tensor:
        pair = self.method.pair
        self.new, rates = stages(pair, self.f, self.y, self.rate, now, h)
        self.new_rate = rates[-1]
        return self.method.error(self.new, weighted(pair.e, rates).mul_(like(h, self.y)))

    def settle(self, accept: Tensor, reject: Tensor, rows: Tensor) -> None:
        self.y, self.rate = choose(accept, self.new, self.y), choose(accept, self.new_rate, self.rate)


def stages(pair: Pair, f: Field, y: Tensor, rate: Tensor, t: Tensor, h: Tensor) -> tuple[Tensor, list[Tensor]]:
    """y after a step h from t, and the rates of all stages, of which `rate` is the first. t and h are () or (b,)."""
    rates, new, step = [rate], y, like(h, y)
    for a, c in zip(pair.a, pair.c, strict=True):
        new = weighted(a, rates).mul_(step).add_(y)
        rates.append(f(t + c * h, new).to(y))
    return new, rates


def weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """The sum of w v over the weights that are not 0; values may be more than weights."""
    terms = (w * v for w, v in zip(weights, values, strict=False) if w)  # one at a time, in memory that is at hand
    total = next(terms)
    for term in terms:
        total += term
    return total
