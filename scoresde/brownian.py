"""Brownian paths: of a whole batch at every step size, on one grid, or for each sample at its own pace.

- `Brownian`: a path and its integral, from its seed alone, in the form in which torchsde asks for them;
- `Path`: the same as the noise of a sampler;
- `GridPath`: a path known at the times of one grid, at the cost of a look-up;
- `Bridge`: what is known of each sample's path beyond where the sample is, with `Draws` of noise dealt to rows.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .noise import Noise
from .shapes import choose, count, floating, like, number, place, times


class Bridge:
    """What is known of each sample's Brownian path beyond the time where the sample is: W(u) - W(now) at some u < now.

    A value between two known times is drawn from the Brownian bridge, one beyond them from the free path, and all that
    was ever drawn is kept until the sample has passed it (rejection sampling with memory: Rackauckas & Nie 2017). So a
    path does not depend on which steps were tried on it.

    x: a state (B, *D), t: the times where its rows are, (B,) in float64.
    """

    def __init__(self, x: Tensor, t: Tensor) -> None:
        self.at = t[:, None].clone()
        """(B, M): first where the row is, then known times; those that are not below it mean nothing."""
        self.W = torch.zeros_like(x)[:, None]
        """W(at) - W(now), (B, M, *D)."""

    def reach(self, to: Tensor, z: Tensor) -> Tensor:
        """W(to) - W(now), (B, *D), for to (B,) not above `now`; z: standard normal numbers like x."""
        everyone, known = torch.arange(len(to), device=to.device), self.at <= self.at[:, :1]
        before, i = self.at.where(known & (self.at >= to[:, None]), math.inf).min(1)
        after, j = self.at.where(known & (self.at <= to[:, None]), -math.inf).max(1)
        gap = before - to
        part = gap / (before - after).clamp_min(1e-300)  # 0 beyond all that is known, and at a known time
        W = self.W[everyone, i]
        mean = W + like(part, z) * (self.W[everyone, j] - W)
        self.to, self.dW = to, mean + like((gap * (1 - part)).sqrt(), z) * z
        return self.dW

    def settle(self, accept: Tensor, reject: Tensor) -> None:
        """Move the rows that accept, (B,), to what was last reached, and keep it for those that reject it, (B,)."""
        if reject.any():
            free = self.at >= self.at[:, :1]
            free[:, 0] = False
            if (reject & ~free.any(1)).any():
                one = torch.ones_like(free[:, :1])
                self.at, free = torch.cat([self.at, torch.inf * one], 1), torch.cat([free, one], 1)
                self.W = torch.cat([self.W, torch.zeros_like(self.W[:, :1])], 1)
            i = reject.nonzero()[:, 0]
            slot = free[i].to(torch.uint8).argmax(1)
            self.at[i, slot], self.W[i, slot] = self.to[i], self.dW[i]
        if (ahead := accept & (self.at[:, 1:] < self.to[:, None]).any(1)).any():
            i = ahead.nonzero()[:, 0]
            self.W[i, 1:] -= self.dW[i][:, None]
        self.at[:, 0] = torch.where(accept, self.to, self.at[:, 0])


class Draws:
    """Draws of whole batches, dealt to rows: the k-th that a row asks for is the k-th that is made for it.

    A draw is made for all rows at once, and what a row does not use is kept for when it next asks, so that its numbers
    do not depend on how long it waited for others. Unless `keep` is set, a row that does not ask never will again.
    """

    def __init__(self) -> None:
        self.keep = False
        self.spare: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor, noise: Noise, asking: Tensor) -> Tensor:
        """z (B, *D), N(0, I) in the rows that are asking, (B,)."""
        z, left, later = torch.zeros_like(x), [], torch.ones_like(asking) if self.keep else asking
        for draw, unused in self.spare:
            give = asking & unused
            z, asking = choose(give, draw, z), asking & ~give
            left.append((draw, unused & ~give))
        if asking.any():
            draw = noise(x, t, t)  # as a corrector asks: it is no increment of a path that is known elsewhere
            z = choose(asking, draw, z)
            left.append((draw, ~asking))
        self.spare = [(draw, unused & later) for draw, unused in left if (unused & later).any()]
        return z


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
    alone, on the CPU, down to 2^-levels of the length; below that W is the parabola that W and H tell. The intervals
    around the last reading are kept, so that the next costs few draws: 4 states in float64 for each level.

    x: a state (B, d), which the increments are like.
    """

    levy_area_approximation = "foster"
    """What `log_ode` asks for; it multiplies the derivative of the diffusion by x, which is 0 here."""

    def __init__(self, length: float, x: Tensor, seed: int, levels: int = 16) -> None:
        self.length, self.seed, self.x, self.shape, self.levels = length, seed, x, x.shape, levels
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
        deepest = self.levels
        place = u * 2**deepest
        place = float(round(place)) if abs(place - round(place)) < 1e-4 else place  # times are sums of rounded steps
        level = next(k for k in range(deepest + 1) if k == deepest or place % 2 ** (deepest - k) == 0)
        number = min(int(place) >> (deepest - level), 2**level - 1)
        while len(self.cells) > level + 1 or self.cells[-1].number != number >> (level + 1 - len(self.cells)):
            self.cells.pop()
        while len(self.cells) <= level:
            self.cells.append(self._half(self.cells[-1], number >> (level - len(self.cells))))
        cell, h = self.cells[-1], 0.5**level
        part = place / 2 ** (deepest - level) - number
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
        return place(torch.from_numpy(z), self.x.device)


class Path:
    """One Brownian path W on [t0, t1], the same at every step size: z = (W(t) - W(s)) / sqrt(t - s) for t > s,
    and the same for the step from s to t.

    Increments over the halves of an interval add up to the increment over the whole, whatever is asked first, so two
    discretisations that are given the same Path approximate the same solution (strong convergence). It is `Brownian` in
    units of the whole interval.

    shape: that of the state, (B, *D). tol: the resolution of times, as a part of t1 - t0. Raises ValueError when asked
    for another shape, for times outside [t0, t1] or for an interval below the resolution: an empty one, as a corrector
    asks for, is no increment of the path.
    """

    def __init__(self, t0: float, t1: float, shape: Sequence[int], seed: int = 0, tol: float = 1e-9) -> None:
        self.t0 = number("t0", t0)
        self.t1 = number("t1", t1, above=self.t0)
        self.tol = number("tol", tol, above=0, below=1)
        start = torch.zeros(*shape, dtype=torch.float64, device="cpu")
        self.W = Brownian(1.0, start, count("seed", seed, least=0, most=math.inf), math.ceil(-math.log2(tol)))

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if floating("x", x).shape != self.W.shape:
            raise ValueError(f"this Path has shape {tuple(self.W.shape)}, but the state has {tuple(x.shape)}")
        low, high = ((float(u) - self.t0) / (self.t1 - self.t0) for u in sorted((t, s), key=float))
        if low < -self.tol or high > 1 + self.tol:
            raise ValueError(f"a Path on [{self.t0:g}, {self.t1:g}] has no increment from {float(s):g} to {float(t):g}")
        low, high = max(low, 0.0), min(high, 1.0)
        if high - low <= self.tol:
            raise ValueError(
                f"a Path has no increment over the empty interval at t = {float(t):g}: correctors need their own noise"
            )
        return (self.W(low, high) / (high - low) ** 0.5).to(x)


class GridPath:
    """A Brownian path W known at the times of a grid: z = (W(t) - W(s))/sqrt(t - s) for any two of them, t > s, and the
    same for the step from s to t.

    It serves the same purpose as `Path` where all step sizes divide one grid, and costs one look-up.
    """

    def __init__(self, ts: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> None:
        ts, self.shape = times("ts", ts, math.inf), tuple(shape)
        z = torch.randn(len(ts) - 1, *shape, generator=generator, dtype=torch.float64, device="cpu")
        dW = (-ts.diff()).sqrt().view(-1, *(1,) * len(shape)) * z
        self.W = torch.cat([dW.new_zeros(1, *shape), -dW.cumsum(0)])
        self.index = {t: i for i, t in enumerate(ts.tolist())}

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Raises ValueError for another shape, and for a time that is not on the grid."""
        if tuple(floating("x", x).shape) != self.shape:
            raise ValueError(f"this GridPath has shape {self.shape}, but the state has {tuple(x.shape)}")
        try:
            i, j = self.index[float(t)], self.index[float(s)]
        except KeyError as error:
            raise ValueError(f"the path is not known at t = {error}") from error
        if i == j:
            raise ValueError(f"the path has no increment over the empty interval at t = {float(t):g}")
        return (abs(j - i) / (j - i) * (self.W[i] - self.W[j]) / (t - s).abs().sqrt()).to(x)
