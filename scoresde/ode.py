"""Solvers of dy/dt = f(t, y). Knows tensors, not diffusion.

A solver is a frozen value called as `method(f, y, t, s)`; it carries y of shape (B, *D) from time t to time s, in
either direction, and returns y(s). f is called as `f(t, y)` with t of shape () by the fixed-step methods and (B,) by
the adaptive ones. An `Integrator` carries quantities along, and says how wrong they are; an adaptive method is both.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from .shapes import count, like, number

Field = Callable[[Tensor, Tensor], Tensor]


class Method(Protocol):
    """Carries y from time t to time s along dy/dt = f(t, y). `ends = True` says that it asks for f at s itself, `order`
    what its order of convergence is.
    """

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Euler:
    """y_s = y + h f(t, y), h = s - t. Order 1, one call."""

    order: ClassVar[int] = 1

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return y + (s - t) * f(t, y)


@dataclass(frozen=True)
class Heun:
    """The explicit trapezoidal rule, y_s = y + h/2 (f(t, y) + f(s, y + h f(t, y))). Order 2, two calls."""

    order: ClassVar[int] = 2
    ends: ClassVar[bool] = True

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        h, k = s - t, f(t, y)
        return y + h / 2 * (k + f(s, y + h * k))


@dataclass(frozen=True)
class RK4:
    """The classical Runge-Kutta method (Kutta 1901). Order 4, four calls."""

    order: ClassVar[int] = 4
    ends: ClassVar[bool] = True

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        h, m = s - t, (s + t) / 2
        k1 = f(t, y)
        k2 = f(m, y + h / 2 * k1)
        k3 = f(m, y + h / 2 * k2)
        k4 = f(s, y + h * k3)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


class Node(NamedTuple):
    """What is known at (t, y) of an observed equation: dy/dt = rate, and beside it quantities Q with dQ/dt = q, in m
    channels, whose mean over channels is known with the variance `var` at a node. gradient: that of the final report,
    G(y(s)) + Q, by y at t; it turns errors of y into errors of the report.

    rate and gradient: (b, *D); q: (b, m); var: (b,).
    """

    rate: Tensor
    q: Tensor
    var: Tensor
    gradient: Tensor


class Solution(NamedTuple):
    """y(s), (B, *D); int q dt, (B, m); the variance of its mean over channels if nodes are independent, (B,); an
    estimate of the error that the solver makes in the report, (B,), not negative; the nodes evaluated; and the steps
    accepted and rejected, (B,).
    """

    y: Tensor
    Q: Tensor
    var: Tensor
    error: Tensor
    nodes: int
    accepted: Tensor
    rejected: Tensor


Observed = Callable[[Tensor, Tensor, Tensor], Node]


class Integrator(ABC):
    """Solves an observed equation: f(t, y, rows) -> Node, where rows (b,) says which samples y holds."""

    @abstractmethod
    def integrate(self, f: Observed, y: Tensor, t: Tensor, s: Tensor) -> Solution:
        """From y (B, *D) at t to s."""


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
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    ),
    (0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    (
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
)


@dataclass(frozen=True)
class Adaptive(Integrator):
    """An embedded pair of orders 5(4) with local extrapolation, step sizes chosen for each sample on its own.

    Sample i takes its own steps: the root mean square r over its dimensions of err / (atol + rtol max(|y|, |y_s|)) is
    kept at most 1, and the next step is h min(5, max(0.2, 0.9 r^(-0.7/5) r_before^(0.4/5))), r_before being that of the
    step before (proportional-integral control; Hairer, Norsett & Wanner 1993, II.4). What a sample becomes does not
    depend on its neighbours in the batch, if f does not; how f rounds can decide whether a step is accepted. Called as
    a method of a sampler, a sample that has arrived waits for the others; in `integrate` it leaves the batch, and costs
    nothing more. The error is the sum over steps of what the embedded solution differs by in y and in Q, all signs
    alike.

    Six calls of f a step, and one to start. Raises RuntimeError naming the sample and its time if f is not finite, or
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
        return self.solve(f, y, t, s).y

    def solve(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Solution:
        """From y at t to s, with the steps that it took."""
        nothing = y.new_zeros(len(y), 0)
        return self._run(lambda t, y, rows: Node(f(t, y), nothing, nothing.sum(1), 0 * y), y, t, s, False)

    def integrate(self, f: Observed, y: Tensor, t: Tensor, s: Tensor) -> Solution:
        """From y at t to s, with f called on those rows that have not arrived."""
        return self._run(f, y, t, s, True)

    def _run(self, f: Observed, y: Tensor, t: Tensor, s: Tensor, leave: bool) -> Solution:
        B, everyone = len(y), torch.arange(len(y), device=y.device)
        end = s.to(y.device, torch.float64).expand(B)
        now = t.to(y.device, torch.float64).expand(B).clone()
        y, first, h, before = y.clone(), f(now.clone(), y, everyone), (end - now) / 50, torch.ones_like(now)
        k1 = Node(*(v.clone() for v in first))
        Q, var, wrong = torch.zeros_like(k1.q), torch.zeros_like(k1.var), torch.zeros_like(k1.var)
        nodes, (accepted, rejected) = 1, torch.zeros(2, B, dtype=torch.long, device=y.device)
        for _ in range(self.max_steps):
            rows = everyone[now != end]
            if not len(rows):
                break
            rows = rows if leave else everyone
            y0, t0, to = y[rows], now[rows], end[rows]
            last = (to - t0).abs() <= h[rows].abs()
            step = torch.where(last, to - t0, h[rows])
            y1, k = self._stages(f, y0, Node(*(v[rows] for v in k1)), t0, step, rows)
            nodes += len(k) - 1
            off = like(step, y0) * _weighted(self.pair.e, [node.rate.detach() for node in k])
            scale = self.atol + self.rtol * torch.maximum(y0.detach().abs(), y1.detach().abs())
            r = (off / scale).flatten(1).square().mean(1).sqrt().to(torch.float64)
            moving = t0 != to
            self._require_finite(r, moving, t0, rows)
            accept = moving & (r <= 1)
            arrived = rows[accept]
            accepted[rows] += accept
            rejected[rows] += moving & ~accept
            if len(arrived):
                b, w = self.pair.a[-1], step[accept].to(y)
                y[arrived] = y1[accept]
                for kept, new in zip(k1, k[-1], strict=True):
                    kept[arrived] = new[accept]
                Q[arrived] += w[:, None] * _weighted(b, [node.q[accept] for node in k])
                var[arrived] += w**2 * _weighted([v**2 for v in b], [node.var[accept] for node in k])
                lost = (k[-1].gradient * off).flatten(1).sum(1)[accept]
                q = [node.q.detach().mean(1)[accept] for node in k]
                wrong[arrived] += lost.abs() + ((w * _weighted(self.pair.e, q)).abs() if Q.shape[1] else 0.0)
                now[arrived] = torch.where(last[accept], to[accept], (t0 + step)[accept])
            r = r.clamp_min(1e-10)
            grow = (0.9 * (0.08 * before[rows].log() - 0.14 * r.log()).exp()).clamp(0.2, 5.0)
            h[rows] = torch.where(moving, step * torch.where(accept, grow, grow.clamp_max(1.0)), h[rows])
            before[arrived] = r[accept].clamp_min(1e-4)
        late = everyone[now != end]
        if len(late):
            i = int(late[0])
            raise RuntimeError(f"{self} did not reach t = {float(end[i]):g}: sample {i} is at t = {float(now[i]):.6g}")
        return Solution(y, Q, var, wrong, nodes, accepted, rejected)

    def _stages(
        self, f: Observed, y: Tensor, k1: Node, t: Tensor, h: Tensor, rows: Tensor
    ) -> tuple[Tensor, list[Node]]:
        k, z, step = [k1], y, like(h, y)
        for a, c in zip(self.pair.a, self.pair.c, strict=True):
            z = y + step * _weighted(a, [node.rate for node in k])
            k.append(f(t + c * h, z, rows))
        return z, k

    @staticmethod
    def _require_finite(ratio: Tensor, active: Tensor, t: Tensor, rows: Tensor) -> None:
        bad = active & ~ratio.isfinite()
        if bad.any():
            i = int(bad.nonzero()[0])
            raise RuntimeError(f"the drift of sample {int(rows[i])} is not finite at t = {float(t[i]):.6g}")


def _weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """sum of w v over the weights that are not 0; values may be more than weights."""
    return sum(w * v for w, v in zip(weights, values, strict=False) if w)  # type: ignore[return-value]


@dataclass(frozen=True)
class Dopri5(Adaptive):
    """Dormand & Prince (1980)."""

    pair: ClassVar[Pair] = DORMAND_PRINCE


@dataclass(frozen=True)
class Tsit5(Adaptive):
    """Tsitouras (2011): as many calls as Dormand & Prince, smaller errors."""

    pair: ClassVar[Pair] = TSITOURAS


@dataclass(frozen=True)
class RungeKutta(Integrator):
    """n equal steps of Dormand & Prince's pair, whose embedded error is reported and does not act. 6n + 1 calls."""

    n: int = 8
    """How many."""

    def __post_init__(self) -> None:
        count("n", self.n)

    def integrate(self, f: Observed, y: Tensor, t: Tensor, s: Tensor) -> Solution:
        """From y at t to s."""
        rows, solver, h = torch.arange(len(y), device=y.device), Dopri5(), (s - t) / self.n
        k1 = f(t, y, rows)
        Q, var, wrong = torch.zeros_like(k1.q), torch.zeros_like(k1.var), torch.zeros_like(k1.var)
        for j in range(self.n):
            y, k = solver._stages(f, y, k1, t + j * h, h, rows)
            b, e, k1 = solver.pair.a[-1], solver.pair.e, k[-1]
            off = (h * _weighted(e, [node.rate for node in k])).detach()
            Q = Q + h * _weighted(b, [node.q for node in k])
            var = var + h**2 * _weighted([v**2 for v in b], [node.var for node in k])
            lost = (h * _weighted(e, [node.q.detach().mean(1) for node in k])).abs()
            wrong = wrong + (k1.gradient * off).flatten(1).sum(1).abs() + lost
        return Solution(y, Q, var, wrong, 6 * self.n + 1, torch.full_like(rows, self.n), torch.zeros_like(rows))


BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12))
MOULTON = ((1.0,), (1 / 2, 1 / 2), (5 / 12, 8 / 12, -1 / 12), (9 / 24, 19 / 24, -5 / 24, 1 / 24))
SIMPSON = (3 / 8, 9 / 8, 9 / 8, 3 / 8)
GREGORY = (3 / 8, 7 / 6, 23 / 24)


@dataclass(frozen=True)
class Adams(Integrator):
    """n equal steps of Adams' multistep method, one call each and one at the end: Bashforth's formula of `order`
    predicts y at the next node, f is evaluated there, and Moulton's formula of one order more then corrects y (Hairer,
    Norsett & Wanner 1993, III.1). The first steps use lower orders, until the third node, whose y is then taken from
    the first four rates by Simpson's 3/8 rule. One of these rates is Euler's, so that the order is 3 at most.

    Q is the sum over all nodes with the weights 3/8, 7/6, 23/24, 1, 1, ..., in units of the step (Gregory's rule of
    order 4), which are nearly equal, so that independent errors of the nodes average out. The error of y is taken to be
    Moulton's formula less that of one order less, all signs alike; that of Q a quarter of its change on half the nodes.
    """

    n: int = 20
    """Steps, an even number."""
    order: int = 3
    """Of the predictor, 1 to 3."""

    def __post_init__(self) -> None:
        if count("n", self.n, least=12) % 2:
            raise ValueError(f"n must be even, got {self.n}")
        if count("order", self.order) > 3:
            raise ValueError(f"order must be 1, 2 or 3, got {self.order}")

    def integrate(self, f: Observed, y: Tensor, t: Tensor, s: Tensor) -> Solution:
        """From y at t to s."""
        rows, h = torch.arange(len(y), device=y.device), (s - t) / self.n
        fine, coarse = _gregory(self.n).tolist(), (2 * _gregory(self.n // 2)).tolist()
        node = f(t, y, rows)
        y_0, first, past = y, [node.rate], [node.rate]
        Q, half = fine[0] * node.q, coarse[0] * node.q.detach()
        var, wrong = fine[0] ** 2 * node.var, torch.zeros_like(node.var)
        for j in range(1, self.n + 1):
            ahead = y + h * _weighted(BASHFORTH[len(past) - 1], past)
            node = f(t + j * h, ahead, rows)
            rates, k = [node.rate, *past], len(past)
            better, worse = y + h * _weighted(MOULTON[k], rates), y + h * _weighted(MOULTON[k - 1], rates)
            if j <= 3:
                first.append(node.rate)
                better, worse = (y_0 + h * _weighted(SIMPSON, first) if j == 3 else better), better
            lost = (better - worse).detach() if j >= 3 else torch.zeros_like(y)
            y, past = better, rates[: self.order]
            wrong = wrong + (node.gradient * lost).flatten(1).sum(1).abs()
            Q, var = Q + fine[j] * node.q, var + fine[j] ** 2 * node.var
            half = half if j % 2 else half + coarse[j // 2] * node.q.detach()
        error = wrong + (h * (Q.detach() - half)).mean(1).abs() / 4
        taken, refused = torch.full_like(rows, self.n), torch.zeros_like(rows)
        return Solution(y, h * Q, h**2 * var, error, self.n + 1, taken, refused)


def _gregory(n: int) -> Tensor:
    """The weights of n + 1 nodes."""
    w = torch.ones(n + 1, dtype=torch.float64)
    for i, end in enumerate(GREGORY):
        w[i] = w[-1 - i] = end
    return w
