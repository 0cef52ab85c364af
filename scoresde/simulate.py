"""Paths of any SDE through torchsde, in either direction of time, on a Brownian path that its seed alone determines.

torchsde's own path depends on where and in which order a solver reads it. `Brownian` does not, so that two solvers, or
one with more steps, approximate the same solution.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torchsde
from torch import Tensor

from .shapes import count, state

STRATONOVICH = {"heun", "midpoint", "euler_heun", "log_ode", "reversible_heun", "adjoint_reversible_heun"}
LEVELS = 16


class Cell(NamedTuple):
    """Interval `number` of its level of the tree: W's increment over it, the mean H over it of W less the line between
    its ends, and W and int_0 W at its start.
    """

    number: int
    W: Tensor
    H: Tensor
    start: Tensor
    area: Tensor


class Brownian:
    """A Brownian path W on [0, length] and its integral, in the form in which torchsde asks for them.

    An interval of length h falls into halves with W/2 +- (3/2 H + sqrt(h)/4 X) for W and H/4 - sqrt(h)/8 X +-
    sqrt(h/48) Y for H, X and Y ~ N(0, I) (Foster, Lyons & Oberhauser 2020). X and Y are drawn from (seed, interval)
    alone, on the CPU, down to 2^-16 of the length; below that W is the parabola that W and H tell. The intervals around
    the last reading are kept, so that the next costs few draws: up to 64 times the memory of a state in float64.

    x: a state (B, d), which the increments are like.
    """

    levy_area_approximation = "foster"
    """What `log_ode` asks for; it multiplies the derivative of the diffusion by x, which is 0 here."""

    def __init__(self, length: float, x: Tensor, seed: int) -> None:
        self.length, self.seed, self.x, self.shape = length, seed, x, x.shape
        W, H = self._normals(0, 0)
        self.cells = [Cell(0, W, H / math.sqrt(12), torch.zeros_like(W), torch.zeros_like(W))]

    def __call__(self, ta: Any, tb: Any, return_U: bool = False, return_A: bool = False) -> Any:
        """W(tb) - W(ta), with the integral of W - W(ta) over [ta, tb] if U is asked for, and 0 for A."""
        a, b = (min(max(float(u) / self.length, 0.0), 1.0) for u in (ta, tb))
        (W_a, I_a), (W_b, I_b) = self._at(a), self._at(b)
        W = (math.sqrt(self.length) * (W_b - W_a)).to(self.x)
        if not return_U and not return_A:
            return W
        U = (self.length**1.5 * (I_b - I_a - (b - a) * W_a)).to(self.x)
        return (W, *((U,) if return_U else ()), *((0.0,) if return_A else ()))

    def _at(self, u: float) -> tuple[Tensor, Tensor]:
        """W(u) and int_0^u W on [0, 1], from the largest interval that begins at u."""
        place = u * 2**LEVELS
        place = float(round(place)) if abs(place - round(place)) < 1e-4 else place  # times are sums of rounded steps
        level = next(k for k in range(LEVELS + 1) if k == LEVELS or place % 2 ** (LEVELS - k) == 0)
        number = min(int(place) >> (LEVELS - level), 2**level - 1)
        while len(self.cells) > level + 1 or self.cells[-1].number != number >> (level + 1 - len(self.cells)):
            self.cells.pop()
        while len(self.cells) <= level:
            self.cells.append(self._half(self.cells[-1], number >> (level - len(self.cells))))
        cell, h = self.cells[-1], 0.5**level
        part = place / 2 ** (LEVELS - level) - number
        W = part * cell.W + 6 * part * (1 - part) * cell.H
        mean = part**2 / 2 * cell.W + part**2 * (3 - 2 * part) * cell.H
        return cell.start + W, cell.area + h * (part * cell.start + mean)

    def _half(self, cell: Cell, number: int) -> Cell:
        """The half of cell, the last of the tree, that is interval `number` of the next level."""
        h = 0.5 ** (len(self.cells) - 1)
        X, Y = self._normals(len(self.cells), cell.number)
        left, H = cell.W / 2 + 1.5 * cell.H + h**0.5 / 4 * X, cell.H / 4 - h**0.5 / 8 * X
        odd = (h / 48) ** 0.5 * Y
        if number % 2 == 0:
            return Cell(number, left, H + odd, cell.start, cell.area)
        area = cell.area + h / 2 * (cell.start + left / 2 + H + odd)
        return Cell(number, cell.W - left, H - odd, cell.start + left, area)

    def _normals(self, level: int, number: int) -> Tensor:
        z = np.random.default_rng((self.seed, level, number)).standard_normal((2, *self.shape))
        return torch.from_numpy(z).to(self.x.device)


class _Forward(torch.nn.Module):
    """The SDE as torchsde wants it: time that increases from 0, a state of shape (B, d), diagonal noise.

    The diffusion does not depend on the state, so the Ito and Stratonovich readings are one equation, and the type is
    whatever the chosen solver asks for. Solvers ask for one drift several times; it is computed once.
    """

    noise_type = "diagonal"

    def __init__(
        self,
        drift: Callable[..., Tensor],
        diffusion: Callable[..., Tensor],
        t0: Tensor,
        sign: float,
        shape: torch.Size,
        kind: str,
    ) -> None:
        super().__init__()
        self.drift, self.diffusion, self.t0, self.sign, self.shape, self.sde_type = (
            drift,
            diffusion,
            t0,
            sign,
            shape,
            kind,
        )
        self.known: list[tuple[Tensor, Tensor, Tensor]] = []

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        for at, known, value in self.known:
            if known is y and at == u:
                return value
        value = self.sign * self.drift(y.view(self.shape), self.t0 + self.sign * u).flatten(1)
        self.known = [(u, y, value), *self.known[:7]]
        return value

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        return self.diffusion(self.t0 + self.sign * u).to(y).expand_as(y) + 0 * y


def simulate(
    drift: Callable[..., Tensor],
    diffusion: Callable[..., Tensor],
    x: Tensor,
    ts: Tensor,
    steps: int,
    seed: int,
    options: dict[str, Any],
) -> Tensor:
    """Integrate dx = drift(x, t) dt + diffusion(t) dw from x at ts[0]; see `SDE.simulate`."""
    x, ts = state("x", x), ts.detach().to("cpu", torch.float64)
    count("steps", steps)
    count("seed", seed, least=0)
    if ts.ndim != 1 or len(ts) < 2 or not ((ts.diff() > 0).all() or (ts.diff() < 0).all()):
        raise ValueError(f"ts must be at least 2 strictly increasing or strictly decreasing times, got {ts.tolist()}")
    sign = 1.0 if ts[-1] > ts[0] else -1.0
    u = sign * (ts - ts[0])
    options = dict(options)
    method, dt = options.pop("method", "euler"), float(u[-1]) / steps
    kind = "stratonovich" if method in STRATONOVICH else "ito"
    if options.get("bm") is None:
        options["bm"] = Brownian(float(u[-1]), x.flatten(1), seed)
    sde = _Forward(drift, diffusion, ts[0], sign, x.shape, kind)
    ys = [x.flatten(1)]
    for ends in zip(u[:-1], u[1:], strict=True):  # one at a time: torchsde interpolates linearly inside a range
        length = float(ends[1] - ends[0])
        h = length / max(1, math.ceil(length / dt - 1e-6)) * (1 + 1e-12)  # not a hair less, which takes one step more
        ys.append(torchsde.sdeint(sde, ys[-1], torch.stack(ends), method=method, dt=h, **options)[-1])
    return torch.stack(ys).view(len(ts), *x.shape)
