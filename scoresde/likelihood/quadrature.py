"""Integration of a flow together with what is observed along it, and how wrong both are.

An integrator solves dy/dt = rate beside dQ/dt = q. f is called as `f(t, y, rows)`, where rows (b,) says which samples y
holds, and answers with a `Node`. Fixed numbers of calls: `Adams`, `RungeKutta`; steps for each sample: the embedded
pairs of `ode`, whose samples leave the batch when they have arrived; the first, and then the second for the samples
that need it: `AsNeeded`.

Where q is an estimate, so is what an error of Q is told from: it counts as far as it exceeds its standard error, and
all of it where that is not known. So that chance hides little, it is told from an estimate whose error is the same at
all nodes of a block, if there is one: neighbours of Adams' method, the stages of a step of Runge and Kutta's. Of what
their values differ by that error is no part.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..ode import BASHFORTH, Dopri5, Embedded, Pair, Trial, stages, weighted
from ..shapes import count, like, number
from .samples import MANY

SAFETY = 3.0
"""The error of a pair that chooses its steps in units of what it says, which is too small where steps are long."""
LONGEST = 1 / 16
"""Of the whole, a step of a pair: where two solutions cross, they tell no error of a longer one."""
LEAST = 0.2
"""Of the tolerance, the least that is told of a refined sample: errors of y are turned into those of the report to
first order only, which few long steps do not suffice for.
"""
NEAR = 2.0
"""Times the tolerance, the error up to which twice the steps are tried: beyond, rates are too rough as a rule."""
USUAL = 2.5
"""The size of y, and its inverse, up to which the coordinates are those of the samples, and few steps are trusted."""


class Common(NamedTuple):
    """An estimate of the mean of q, which has a part in it. value, (b,); the variance of its error that is independent
    of other nodes, (b,); that which nodes of a block have in common, (b,); its part in the mean of q.
    """

    value: Tensor
    var: Tensor
    tied: Tensor
    part: float


class Node(NamedTuple):
    """What is known at (t, y): dy/dt = rate, and beside it quantities Q with dQ/dt = q, in m channels, whose mean over
    channels has an error of the variance `var`, independent of that at other nodes, beside that of `common`. gradient:
    that of the final report, G(y(s)) + Q, by y at t; it turns errors of y into errors of the report.

    rate and gradient: (b, *D); q: (b, m); var: (b,).
    """

    rate: Tensor
    q: Tensor
    var: Tensor
    gradient: Tensor
    common: Common | None = None

    @property
    def steady(self) -> Common:
        """What errors are told from."""
        return self.common or Common(self.q.detach().mean(1), self.var, torch.zeros_like(self.var), 0.0)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that there is for each sample."""
        return (*self[:4], *self.common[:3]) if self.common else self[:4]

    def at(self, rows: Tensor | slice) -> "Node":
        """That of some samples, as a copy."""
        rate, q, var, gradient, *rest = (v[rows].clone() for v in self.tensors)
        common = self.common and Common(rest[0], rest[1], rest[2], self.common.part)
        return Node(rate, q, var, gradient, common)


class Solution(NamedTuple):
    """y(s), (B, *D); int q dt, (B, m); the variance of its mean over channels if nodes are independent, (B,); an
    estimate of the error that the solver makes in the report, (B,), not negative; what of that is left without the
    share that probes alone may seem to be twice in a hundred samples; the nodes evaluated.
    """

    y: Tensor
    Q: Tensor
    var: Tensor
    error: Tensor
    sure: Tensor
    nodes: int


Observed = Callable[[Tensor, Tensor, Tensor], Node]


@runtime_checkable
class Drawing(Protocol):
    """An observed equation with randomness of its own."""

    def together(self, n: int) -> None:
        """The next n calls are a block, over which what is `Common` stays; any other call is a block of its own."""

    def skip(self, n: int) -> None:
        """Pass over the randomness of n calls."""


class _Some:
    """An observed equation, of some of the samples."""

    def __init__(self, f: "Observed", which: Tensor) -> None:
        self.f, self.which = f, which

    def __call__(self, t: Tensor, y: Tensor, rows: Tensor) -> Node:
        return self.f(t, y, self.which[rows])

    def together(self, n: int) -> None:
        _together(self.f, n)

    def skip(self, n: int) -> None:
        _skip(self.f, n)


def _together(f: "Observed", n: int) -> None:
    if isinstance(f, Drawing):
        f.together(n)


def _skip(f: "Observed", n: int) -> None:
    if isinstance(f, Drawing):
        f.skip(n)


def _variance(weights: Sequence[float], var: Sequence[Tensor], tied: Sequence[Tensor], blocks: Sequence[int]) -> Tensor:
    """Of the sum of w e, for errors e that have a part of the variance `var`, independent of others, and one of the
    variance `tied` that is the same within a block: sum w^2 var, and for each block (sum w)^2 times the mean of tied,
    weighted by |w|.
    """
    total = weighted([w**2 for w in weights], var)
    told = list(zip(weights, tied, blocks, strict=False))  # there may be more estimates than weights
    for block in {b for _, _, b in told}:
        w, inside = zip(*((w, v) for w, v, b in told if b == block), strict=True)
        sizes = [abs(v) for v in w]
        total = total + sum(w) ** 2 / sum(sizes) * weighted(sizes, inside)
    return total


class Integrator(ABC):
    """Solves an observed equation, with a fixed number of calls."""

    @abstractmethod
    def integrate(self, f: Observed, y: Tensor, t: Tensor, s: Tensor) -> Solution:
        """From y (B, *D) at t to s."""


def integrate(
    method: Integrator | Embedded, f: Observed, y: Tensor, t: Tensor, s: Tensor, most: float = torch.inf
) -> Solution:
    """From y (B, *D) at t to s by either kind of method. most: what the error of the report may be; a step of a pair
    that is a share h of the whole may be off by h^(1/2) of it, as errors of many steps have either sign.
    """
    if isinstance(method, Integrator):
        return method.integrate(f, y, t, s)
    now, end = (u.to(y.device, torch.float64).expand(len(y)) for u in (t, s))
    path = _Observing(method, f, y, now, end, most)
    method.control(path, now, end, leave=True)
    return Solution(path.y, path.Q, path.var, SAFETY * path.wrong, SAFETY * path.wrong, path.nodes)


def _beyond(off: Tensor, var: Tensor) -> Tensor:
    """|off|, less its standard error where that is known, but not below 0."""
    return (off.abs() - var.nan_to_num(0.0).sqrt()).clamp_min(0)


class _Change(NamedTuple):
    """What a step of a pair makes of y, Q, var and wrong; the last node; what the embedded solution differs by, in y
    and in the report, (b,), as far as that is beyond chance.
    """

    y: Tensor
    Q: Tensor
    var: Tensor
    wrong: Tensor
    node: Node
    off: Tensor
    sure: Tensor


def _step(pair: Pair, f: Observed, y: Tensor, first: Node, t: Tensor, h: Tensor, rows: Tensor) -> _Change:
    """A step h from t; both are () or (b,)."""
    nodes = [first]
    _together(f, len(pair.c))

    def rate(u: Tensor, z: Tensor) -> Tensor:
        nodes.append(f(u, z, rows))
        return nodes[-1].rate

    new, rates = stages(pair, rate, y, first.rate, t, h)
    b, e, w = pair.a[-1], pair.e, like(h, first.var)
    off = (like(h, y) * weighted(e, rates)).detach()
    Q, parts = like(h, first.q) * weighted(b, [node.q for node in nodes]), [node.steady for node in nodes]
    tied, one, apart = [part.tied for part in parts], [0] * len(nodes), [0] + [1] * len(pair.c)
    # what is common to a step and to the one before it has the weight 1 in all, wherever the first node belongs
    var = w**2 * _variance(b, [node.var for node in nodes], [part.part**2 * part.tied for part in parts], one)
    lost = w * weighted(e, [part.value for part in parts])
    noise = w**2 * _variance(e, [part.var for part in parts], tied, apart)
    moved = (nodes[-1].gradient * off).flatten(1).sum(1).abs()
    return _Change(new, Q, var, moved + _beyond(lost, noise), nodes[-1], off, moved + _beyond(lost, 9 * noise))


class _Observing(Trial):
    """y on its way with all that is observed; samples that have arrived are not asked for."""

    def __init__(self, method: Embedded, f: Observed, y: Tensor, now: Tensor, end: Tensor, most: float) -> None:
        whole = (end - now).abs().max()
        self.method, self.f, self.nodes, self.longest, self.rate = method, f, 1, LONGEST * whole, most / whole**0.5
        self.everyone = torch.arange(len(y), device=y.device)
        _together(f, 1)
        self.y, self.node = y.clone(), f(now.clone(), y, self.everyone).at(slice(None))
        self.Q, self.var = torch.zeros_like(self.node.q), torch.zeros_like(self.node.var)
        self.wrong = torch.zeros_like(self.var)

    def reach(self, now: Tensor, h: Tensor) -> Tensor:
        return h.clamp(-self.longest, self.longest)

    def attempt(self, now: Tensor, to: Tensor, h: Tensor, rows: Tensor) -> Tensor:
        y, first, here = self.y[rows], self.node.at(rows), self.everyone[rows]
        self.change = _step(self.method.pair, self.f, y, first, now, h, here)
        self.nodes += len(self.method.pair.c)
        return torch.maximum(
            self.method.error(self.change.y, self.change.off), SAFETY * self.change.sure / (self.rate * h.abs() ** 0.5)
        )

    def settle(self, accept: Tensor, reject: Tensor, rows: Tensor) -> None:
        arrived, made = self.everyone[rows][accept], self.change
        self.y[arrived] = made.y[accept]
        for kept, new in zip(self.node.tensors, made.node.tensors, strict=True):
            kept[arrived] = new[accept]
        self.Q[arrived] += made.Q[accept]
        self.var[arrived] += made.var[accept]
        self.wrong[arrived] += made.wrong[accept]


@dataclass(frozen=True)
class RungeKutta(Integrator):
    """n equal steps of Dormand & Prince's pair, whose embedded error is reported and does not act. 6n + 1 calls."""

    n: int = 8
    """How many."""

    def __post_init__(self) -> None:
        count("n", self.n, most=MANY)

    def integrate(self, f: Observed, y: Tensor, t: Tensor, s: Tensor) -> Solution:
        """From y at t to s."""
        rows, h = torch.arange(len(y), device=y.device), (s - t) / self.n
        node = f(t, y, rows)
        Q, var, wrong = torch.zeros_like(node.q), torch.zeros_like(node.var), torch.zeros_like(node.var)
        for j in range(self.n):
            made = _step(Dopri5.pair, f, y, node, t + j * h, h, rows)
            y, node = made.y, made.node
            Q, var, wrong = Q + made.Q, var + made.var, wrong + made.wrong
        return Solution(y, Q, var, wrong, wrong, 6 * self.n + 1)


MOULTON = ((1.0,), (1 / 2, 1 / 2), (5 / 12, 8 / 12, -1 / 12), (9 / 24, 19 / 24, -5 / 24, 1 / 24))
SIMPSON = (3 / 8, 9 / 8, 9 / 8, 3 / 8)
GREGORY = (-5 / 8, 1 / 6, -1 / 24)


@dataclass(frozen=True)
class Adams(Integrator):
    """n equal steps of Adams' multistep method, one call each, one at the end and one more at the start: Bashforth's
    formula of `order` predicts y at the next node, f is evaluated there, and Moulton's formula of one order more then
    corrects y (Hairer, Norsett & Wanner 1993, III.1). The first steps use lower orders, until the third node, whose y
    is then taken from the first four rates by Simpson's 3/8 rule; as the first prediction is Euler's, f is evaluated
    again where its correction leads. The order is one more than that of the predictor.

    Q is the sum over all nodes with the weights 3/8, 7/6, 23/24, 1, 1, ..., in units of the step (Gregory's rule of
    order 4), which are nearly equal, so that independent errors of the nodes average out. The error of y is taken to be
    Moulton's formula less that of one order less, all signs alike; that of Q a quarter of its change on half the nodes.
    """

    n: int = 20
    """Steps, an even number from 6 on; below 12 they say more of many samples than of one."""
    order: int = 3
    """Of the predictor, 1 to 3."""

    def __post_init__(self) -> None:
        if count("n", self.n, least=6, most=MANY) % 2:
            raise ValueError(f"n must be even, got {self.n}")
        if count("order", self.order) > 3:
            raise ValueError(f"order must be 1, 2 or 3, got {self.order}")

    def integrate(self, f: Observed, y: Tensor, t: Tensor, s: Tensor) -> Solution:
        """From y at t to s."""
        rows, h = torch.arange(len(y), device=y.device), (s - t) / self.n
        fine, coarse = _gregory(self.n).tolist(), (2 * _gregory(self.n // 2)).tolist()
        _together(f, 3)  # the second node takes two
        node = f(t, y, rows)
        y_0, first, past = y, [node.rate], [node.rate]
        Q, wrong, var, parts = fine[0] * node.q, torch.zeros_like(node.var), [node.var], [node.steady]
        for j in range(1, self.n + 1):
            if j % 2 == 0:
                _together(f, 2 if j < self.n else 1)
            ahead = y + h * weighted(BASHFORTH[len(past) - 1], past)
            node = f(t + j * h, ahead, rows)
            if j == 1:
                node = f(t + h, y + h / 2 * (node.rate + past[0]), rows)
            rates, k = [node.rate, *past], len(past)
            better, worse = y + h * weighted(MOULTON[k], rates), y + h * weighted(MOULTON[k - 1], rates)
            if j <= 3:
                first.append(node.rate)
                better, worse = (y_0 + h * weighted(SIMPSON, first) if j == 3 else better), better
            lost = (better - worse).detach() if j >= 3 else torch.zeros_like(y)
            y, past = better, rates[: self.order]
            wrong = wrong + (node.gradient * lost).flatten(1).sum(1).abs()
            Q = Q + fine[j] * node.q
            var, parts = [*var, node.var], [*parts, node.steady]
        change = [w - (0.0 if j % 2 else coarse[j // 2]) for j, w in enumerate(fine)]
        tied, pairs = [part.tied for part in parts], [j // 2 for j in range(len(parts))]
        noise = h**2 * _variance(change, [part.var for part in parts], tied, pairs)
        seen = _beyond(h * weighted(change, [part.value for part in parts]), noise) / 4
        sure = _beyond(seen, noise / 16)
        spread = _variance(fine, var, [part.part**2 * part.tied for part in parts], pairs)
        return Solution(y, h * Q, h**2 * spread, wrong + seen, wrong + sure, self.n + 2)


@dataclass(frozen=True)
class AsNeeded(Integrator):
    """Adams' steps for all samples, twice as many for those of up to two times the tolerance, and Dormand and Prince's
    pair for those that neither suffices for, or whose y is not of size 1, as the coordinates are not theirs.

    Few steps do where the rate is smooth, and there their estimate of the error is several times too large. Where it is
    rough, as that of a network that was trained for a thousand fixed times, it may be several times too small: a sample
    is not done before its estimate is small, and the second attempt chooses its own steps. It begins anew. Corrections
    to a path that is there, by its gradient times its defect, would use all calls twice, but hold only where the score
    is the gradient of the log-density of its own flow, which that of a network is not.
    """

    tol: float = 0.005
    """The error of the report, a dimension, above which a sample is refined."""
    first: Adams = Adams()
    """For all samples."""
    then: Embedded = Dopri5(1e-3, 1e-3)
    """For those that are refined, whose steps are also short enough for the error of the report, whatever the size of
    y: a quarter of `tol` in the root mean square."""

    def __post_init__(self) -> None:
        number("tol", self.tol, above=0)
        if not isinstance(self.first, Adams):
            raise ValueError(f"first must be a value such as Adams(), got {self.first!r}")
        if not isinstance(self.then, Embedded):
            raise ValueError(f"then must be a value such as Dopri5(1e-4, 1e-4), got {self.then!r}")

    def integrate(self, f: Observed, y: Tensor, t: Tensor, s: Tensor) -> Solution:
        """From y at t to s."""
        found, most = self.first.integrate(f, y, t, s), self.tol * y[0].numel()
        size = y.detach().flatten(1).square().mean(1).sqrt()
        other = (size > USUAL) | (size < 1 / USUAL)
        near = (found.sure > most) & (found.sure <= NEAR * most) & ~other
        more = replace(self.first, n=2 * self.first.n)
        if near.any():
            found = _anew(more, f, y, t, s, found, near)
        left = (found.sure > most) | other
        if left.any() and not near.any():
            _skip(f, more.n + 2)  # so that what is drawn for the rows that are left does not depend on the others
        return _anew(self.then, f, y, t, s, found, left, most) if left.any() else found


def _anew(
    method: Adams | Embedded,
    f: Observed,
    y: Tensor,
    t: Tensor,
    s: Tensor,
    found: Solution,
    which: Tensor,
    most: float = torch.inf,
) -> Solution:
    """found, with the rows `which` solved again by method, to a tolerance `most` of the report if it is a pair."""
    left = which.nonzero()[:, 0]
    again = integrate(method, _Some(f, left), y[left], t, s, most / 4)
    if isinstance(method, Embedded):
        again = again._replace(error=again.error.clamp_min(LEAST * most))
    y, Q, var, error, sure = (a.index_copy(0, left, b) for a, b in zip(found[:5], again[:5], strict=True))
    return Solution(y, Q, var, error, sure, found.nodes + again.nodes)


def _gregory(n: int) -> Tensor:
    """The weights of n + 1 nodes; at least three."""
    w = torch.ones(n + 1, dtype=torch.float64, device="cpu")
    for i, change in enumerate(GREGORY):
        w[i] += change
        w[-1 - i] += change
    return w
