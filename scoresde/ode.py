"""Solvers of dy/dt = f(t, y). Knows tensors, not diffusion.

A solver is a frozen value called as `method(f, y, t, s)`; it carries y of shape (B, *D) from time t to time s, in
either direction, and returns y(s). f is called as `f(t, y)` with t of shape () by the fixed-step methods and (B,) by
the adaptive one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from .shapes import count, like, number

Field = Callable[[Tensor, Tensor], Tensor]


class Method(Protocol):
    """Carries y from time t to time s along dy/dt = f(t, y). `ends = True` says that it asks for f at s itself."""

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Euler:
    """y_s = y + h f(t, y), h = s - t. Order 1, one call."""

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return y + (s - t) * f(t, y)


@dataclass(frozen=True)
class Heun:
    """The explicit trapezoidal rule, y_s = y + h/2 (f(t, y) + f(s, y + h f(t, y))). Order 2, two calls."""

    ends: ClassVar[bool] = True

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        h, k = s - t, f(t, y)
        return y + h / 2 * (k + f(s, y + h * k))


@dataclass(frozen=True)
class RK4:
    """The classical Runge-Kutta method (Kutta 1901). Order 4, four calls."""

    ends: ClassVar[bool] = True

    def __call__(self, f: Field, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        h, m = s - t, (s + t) / 2
        k1 = f(t, y)
        k2 = f(m, y + h / 2 * k1)
        k3 = f(m, y + h / 2 * k2)
        k4 = f(s, y + h * k3)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclass(frozen=True)
class Dopri5:
    """Dormand & Prince (1980), 5(4) with local extrapolation, step sizes chosen for each sample on its own.

    Sample i takes its own steps: the root mean square over its dimensions of err / (atol + rtol max(|y|, |y_s|)) is
    kept at most 1, and the next step is h min(5, max(0.2, 0.9 r^(-1/5))) (Hairer, Norsett & Wanner 1993, II.4). What a
    sample becomes does not depend on its neighbours in the batch; a sample that has arrived waits for the others.

    Six calls of f a step on the whole batch, and one to start. Raises RuntimeError naming the sample and its time if
    f is not finite, or if `max_steps` do not suffice.
    """

    ends: ClassVar[bool] = True
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
        end = s.to(y.device, torch.float64).expand(len(y))
        now = t.to(y.device, torch.float64).expand(len(y)).clone()
        h, k1 = (end - now) / 50, f(now, y)
        for _ in range(self.max_steps):
            active = now != end
            if not active.any():
                break
            last = (end - now).abs() <= h.abs()
            h = torch.where(last, end - now, h)
            z, k = self._stages(f, y, k1, now, h)
            error = like(h, y) * sum(w * ki for w, ki in zip(E, k, strict=True))
            ratio = (
                (error / (self.atol + self.rtol * torch.maximum(y.abs(), z.abs()))).flatten(1).square().mean(1).sqrt()
            )
            ratio = ratio.to(torch.float64)
            self._require_finite(ratio, active, now)
            accept = active & (ratio <= 1)
            row = accept.view(-1, *(1,) * (y.ndim - 1))
            y, k1 = torch.where(row, z, y), torch.where(row, k[-1], k1)
            now = torch.where(accept, torch.where(last, end, now + h), now)
            h = h * (0.9 * ratio.clamp_min(1e-10) ** -0.2).clamp(0.2, 5.0)
            h = torch.where(now == end, 0.0, h)
        late = (now != end).nonzero()
        if len(late):
            i = int(late[0])
            raise RuntimeError(f"{self} did not reach t = {float(end[i]):g}: sample {i} is at t = {float(now[i]):.6g}")
        return y

    @staticmethod
    def _stages(f: Field, y: Tensor, k1: Tensor, t: Tensor, h: Tensor) -> tuple[Tensor, list[Tensor]]:
        k, z, step = [k1], y, like(h, y)
        for a, c in zip(A, C, strict=True):
            z = y + step * sum(w * ki for w, ki in zip(a, k, strict=True))
            k.append(f(t + c * h, z))
        return z, k

    @staticmethod
    def _require_finite(ratio: Tensor, active: Tensor, t: Tensor) -> None:
        bad = active & ~ratio.isfinite()
        if bad.any():
            i = int(bad.nonzero()[0])
            raise RuntimeError(f"the drift of sample {i} is not finite at t = {float(t[i]):.6g}")
