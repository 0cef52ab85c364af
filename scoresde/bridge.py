"""What samples need that each go at their own pace: Brownian paths, draws of noise, and answers that still hold."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .noise import Noise
from .shapes import like


def choose(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The rows of a (B, *D) where mask (B,) is true, and those of b elsewhere."""
    return torch.where(mask.view(-1, *(1,) * (a.ndim - 1)), a, b)


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
        free = self.at >= self.at[:, :1]
        free[:, 0] = False
        if (reject & ~free.any(1)).any():
            one = torch.ones_like(free[:, :1])
            self.at, free = torch.cat([self.at, torch.inf * one], 1), torch.cat([free, one], 1)
            self.W = torch.cat([self.W, torch.zeros_like(self.W[:, :1])], 1)
        i = reject.nonzero()[:, 0]
        slot = free[i].to(torch.uint8).argmax(1)
        self.at[i, slot], self.W[i, slot] = self.to[i], self.dW[i]
        i = accept.nonzero()[:, 0]
        self.W[i] -= self.dW[i][:, None]
        self.at[i, 0], self.W[i, 0] = self.to[i], 0.0


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


class Recent:
    """f(x, t), computed again only if x is another tensor than last time: no row has moved."""

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.f = f
        self.x: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if x is not self.x:
            self.x, self.value = x, self.f(x, t)
        return self.value
