"""Parallel in time: all calls of the network at once, again and again, until none would be made elsewhere.

A sampler asks the network at one place after the other, each told by the answers before. Picard's iteration supposes
all answers, runs the sampler on them, which without the network costs little, asks the network in one batch at all the
places that it came to, and starts again (Shih et al. 2023, Algorithm 1; Tang et al. 2024). The first k answers are
right after k sweeps, so that as many sweeps as calls are always enough; where the answers are supposed well, a few are.

What is kept of an answer s is by how much it is other than that of data N(m, c^2 I) would be. At another x it is

    r(x, t) + q/(sigma S),    q = sigma S (s(x', t) - r(x', t)),    r(x, t) = (alpha m - x)/(alpha S)^2,

x' being where the network was asked, and S^2 = c^2 + (sigma/alpha)^2. So the first sweep begins with the flow of that
Gaussian, and is the last if the data are N(m, c^2 I). q is the output of the network of Karras et al. (2022), of one
size at all times: where the network was not asked yet, the q of the call before is taken. Shih et al. begin with x_T
everywhere, and keep how far each step moved.

Where the iteration ends each q is that of x itself, and x what the sampler comes to in sequence: whatever the step is,
of many stages, with memory, or with noise, which is drawn once for each interval.
"""

from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..noise import Noise, drawn, iid, require_noise
from ..process import LinearSDE, Reverse, require_linear, require_reverse
from ..reference import UNIT, Reference, known, warn_of_misfit
from ..shapes import choose, count, lifted, number, place, state, times
from .step import Step, predictor, started

NUMBERS = (int, np.integer, np.ndarray, list, tuple)


class Parallel(NamedTuple):
    """What `sample_parallel` returns: x at the last time (B, *D). Of each sample, (B,): the sweeps, batches of the
    network that it waited for one after the other; and nfe, the network evaluations in all of them.
    """

    x: Tensor
    sweeps: Tensor
    nfe: Tensor


def sample_parallel(
    p: Reverse,
    x: Tensor,
    ts: Tensor,
    step: Step,
    *,
    tol: float = 1e-4,
    window: int = 64,
    around: Reference | None = None,
    noise: Noise = iid(),
    **cond: Any,
) -> Parallel:
    """`sample(p, x, ts, step)` by Picard's iteration (Shih et al. 2023), parallel in time: the formulas are the
    module's. x is (B, *D) at ts[0]; without gradients.

    tol: every answer is that to a state no farther from where it is used, in root mean square over dimensions and in
    units of alpha S, the deviation at that time of data like `around`. With 0 the result is that of `sample` but for
    rounding; else it is off by some times tol, as much as the sampler makes of changes on its way. window: calls in a
    row that are made at once for a sample; the network sees B window states at most. The states between the slowest
    sample and the fastest are held. around: the data's Gaussian; unless given, that which the score was made for, or
    N(0, I). It decides how many sweeps are needed, not what they come to. noise: drawn once for each interval, in the
    order of `sample`. cond: what the score is told beside x and t, such as label=y, a whole number or a tensor () or
    (B,). The score is asked about K states at K times, (K,), some of the samples at several, so that it must not hold
    anything for each sample itself. A sample does not depend on its neighbours.

    Raises ValueError before any work if an argument is not as stated, and unless p.sde is linear and the step is a
    predictor that asks the score at times of its own, such as DDIM() or UniPC(); RuntimeError naming a sample whose
    score is not finite on its way, and the time.
    """
    sde = require_linear("p.sde", require_reverse(p).sde)
    require_noise(noise), predictor(step)
    number("tol", tol, least=0), count("window", window)
    x, ts = state("x", x), times("ts", ts, p.T)
    told = {name: _for_each(name, c, x) for name, c in cond.items()}
    gaussian = known(around, p.score, x.shape[1:]) or UNIT
    warn_of_misfit(sde, p.score, ts)
    with torch.no_grad():
        memory = _Memory(p, gaussian, lifted(x), tol, told)
        done = _Sweeps(replace(p, score=memory), lifted(x), ts, step, noise, memory).solve(window)
    return Parallel(done.to(x.dtype), memory.sweeps, memory.nfe)


def _for_each(name: str, c: Any, x: Tensor) -> Tensor:
    """A condition as (B, ...), where x is."""
    given = c
    if isinstance(c, NUMBERS):
        with suppress(TypeError, ValueError, RuntimeError):  # what is no array of numbers is told below
            c = torch.as_tensor(c)
    if not isinstance(c, Tensor) or (c.ndim and len(c) != len(x)):
        said = f"{name} must be a whole number or a tensor, () or one row for each of the {len(x)} samples"
        raise ValueError(f"{said}, got {given!r}")
    return c.to(x.device) if c.ndim else c.to(x.device).expand(len(x))


class _Call:
    """One call of the network, at time t: x is where it would be made now, seen where it was made, and q what it said
    to the samples `known`, to all of them if that is None.
    """

    def __init__(self, sde: LinearSDE, c: float, t: Tensor, x: Tensor) -> None:
        self.t, self.x, self.q, self.seen = t, x, torch.zeros_like(x), torch.full_like(x, torch.nan)
        self.known: Tensor | None = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        self.v = (self.alpha * c) ** 2 + sigma**2
        self.size = sigma * self.v**0.5 / self.alpha


class _Memory:
    """A score that answers from memory, and learns what it is asked."""

    def __init__(self, p: Reverse, around: Reference, x: Tensor, tol: float, told: dict[str, Tensor]) -> None:
        self.p, self.c, self.tol, self.told = p, around.std, tol, told
        self.mean = torch.as_tensor(around.mean).to(x)
        self.calls: list[_Call] = []
        self.next, self.q = 0, torch.zeros_like(x)
        self.sweeps, self.nfe = torch.zeros(2, len(x), dtype=torch.long, device=x.device)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if self.next == len(self.calls):
            if t.ndim:
                raise ValueError(f"step must ask the score at one time for all samples, got {len(t)} times")
            self.calls.append(_Call(self.p.sde, self.c, t, x))
        call = self.calls[self.next]
        call.x = x
        self.next += 1
        self.q = call.q if call.known is None else choose(call.known, call.q, self.q)
        r = (x / -call.v).add_(self.mean, alpha=call.alpha / call.v)
        return r.add_(self.q, alpha=1 / call.size)

    def stale(self) -> Tensor:
        """Where the network would be asked elsewhere by now than it was, (calls, B)."""
        moved = torch.stack([(call.x - call.seen).flatten(1).square().mean(1) / call.v for call in self.calls])
        return ~(moved <= self.tol**2)

    def ask(self, window: int) -> int | None:
        """Ask the network wherever it would be asked elsewhere, of each sample inside the window that begins there.
        The first call that was asked; None if there was nothing to ask.
        """
        stale = self.stale()
        first = first_of(stale)
        index = torch.arange(len(stale), device=stale.device)[:, None]
        wanted = stale & (index < first + window)
        if not wanted.any():
            return None
        j, rows = wanted.nonzero(as_tuple=True)
        x, seen, q = (torch.stack([getattr(call, name) for call in self.calls]) for name in ("x", "seen", "q"))
        found = self._answers(x[j, rows], j, rows)
        good = (found.isfinite() & x[j, rows].isfinite()).flatten(1).all(1)
        if (wrong := ~good & (j == first[rows])).any():  # elsewhere the state may be far from where it will be
            k = int(wrong.nonzero()[0])
            raise RuntimeError(f"the score of sample {int(rows[k])} is not finite at t = {self.calls[int(j[k])].t:.6g}")
        seen[j[good], rows[good]], q[j[good], rows[good]] = x[j[good], rows[good]], found[good]
        known = ~seen.flatten(2).isnan().any(2)
        for k, (call, every) in enumerate(zip(self.calls, known.all(1).tolist(), strict=True)):
            call.seen, call.q, call.known = seen[k], q[k], None if every else known[k]
        self.sweeps += wanted.any(0)
        self.nfe += wanted.sum(0)
        return int(first.min())

    def _answers(self, x: Tensor, j: Tensor, rows: Tensor) -> Tensor:
        """q of the samples `rows` at x (K, *D), in the calls j, (K,)."""
        numbers = [(float(call.t), call.alpha, call.v, call.size) for call in self.calls]
        t, *told = place(torch.tensor(numbers, dtype=torch.float64, device="cpu"), x.device)[j].T
        alpha, v, size = (c.to(x).view(-1, *(1,) * (x.ndim - 1)) for c in told)
        score = partial(self.p.score, **{name: c[rows] for name, c in self.told.items()})
        return size * (replace(self.p, score=score).ask(x, t) - (alpha * self.mean - x) / v)


def first_of(stale: Tensor) -> Tensor:
    """For each sample the first call that is stale, (B,); their number if none is."""
    return torch.where(stale.any(0), stale.int().argmax(0), len(stale))


class _Draws:
    """The noise of each interval, once drawn."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.z: list[Tensor] = []
        self.next = 0

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if self.next == len(self.z):
            self.z.append(drawn(self.noise, x, t, s))
        self.next += 1
        return self.z[self.next - 1]


class _Mark(NamedTuple):
    """The sampler before the interval k: its state and its step; the calls and draws made since the first mark."""

    k: int
    x: Tensor
    step: Step
    calls: int
    draws: int


class _Sweeps:
    """The sampler, run on the answers of `memory` from the first call on that is not what it will be."""

    def __init__(self, p: Reverse, x: Tensor, ts: Tensor, step: Step, noise: Noise, memory: _Memory) -> None:
        self.p, self.ts, self.memory, self.noise = p, ts, memory, _Draws(noise)
        self.k, self.x, self.step = 0, x, started(p, ts, (step,))[0]
        self.named = step
        self.marks: list[_Mark] = []

    def solve(self, window: int) -> Tensor:
        """x at the last time."""
        self.on(window)
        if not self.memory.calls:
            raise ValueError(f"step must ask the score of p, which is asked in parallel, and {self.named} does not")
        while True:
            self.on(int(first_of(self.memory.stale()).max()) + window)
            first = self.memory.ask(window)
            if first is None:
                return self.x
            self.back(first)
            self.on(len(self.memory.calls))

    def on(self, calls: int) -> None:
        """On through whole intervals until so many calls were made, or to the end."""
        while self.memory.next < calls and self.k < len(self.ts) - 1:
            self.marks.append(_Mark(self.k, self.x, copy(self.step), self.memory.next, self.noise.next))
            self.x = self.step(self.p, self.x, self.ts[self.k], self.ts[self.k + 1], self.noise)
            self.k += 1

    def back(self, first: int) -> None:
        """Back to the interval of the first call that may change, forgetting what was before."""
        mark = [mark for mark in self.marks if mark.calls <= first][-1]
        self.k, self.x, self.step, self.marks = mark.k, mark.x, mark.step, []
        del self.memory.calls[: mark.calls], self.noise.z[: mark.draws]
        self.memory.next = self.noise.next = 0
