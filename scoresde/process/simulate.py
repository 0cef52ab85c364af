"""Paths of any SDE through torchsde, in either direction of time, on a Brownian path that its seed alone determines.

torchsde's own path depends on where and in which order a solver reads it. `Brownian` does not, so that two solvers, or
one with more steps, approximate the same solution.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ..brownian import Brownian
from ..shapes import count, reals, shown, state, wide

STRATONOVICH = {"heun", "midpoint", "euler_heun", "log_ode", "reversible_heun", "adjoint_reversible_heun"}


class Coefficients(Protocol):
    """The drift and the diffusion coefficient of an SDE."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor: ...

    def diffusion(self, t: Tensor) -> Tensor: ...


class _Forward(torch.nn.Module):
    """The SDE as torchsde wants it: time that increases from 0, a state of shape (B, d), diagonal noise.

    The diffusion does not depend on the state, so the Ito and Stratonovich readings are one equation, and the type is
    whatever the chosen solver asks for. Solvers ask for one drift several times; it is computed once.
    """

    noise_type = "diagonal"

    def __init__(self, sde: Coefficients, t0: Tensor, sign: float, shape: torch.Size, kind: str) -> None:
        super().__init__()
        self.sde, self.t0, self.sign, self.shape, self.sde_type = sde, t0, sign, shape, kind
        self.known: list[tuple[Tensor, Tensor, Tensor]] = []

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        for at, known, value in self.known:
            if known is y and at == u:
                return value
        value = self.sign * self.sde.drift(y.view(self.shape), self.t0 + self.sign * u).flatten(1)
        self.known = [(u, y, value), *self.known[:7]]
        return value

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        return self.sde.diffusion(self.t0 + self.sign * u).to(y).expand_as(y) + 0 * y


def simulate(sde: Coefficients, x: Tensor, ts: Tensor, steps: int, seed: int, options: dict[str, Any]) -> Tensor:
    """Integrate dx = drift(x, t) dt + diffusion(t) dw from x at ts[0]; see `SDE.simulate`."""
    import torchsde  # here, since nothing else needs it

    dtype, x, ts = state("x", x).dtype, wide("x", x), reals("ts", ts).detach().cpu()
    count("steps", steps)
    count("seed", seed, least=0, most=math.inf)
    if ts.ndim != 1 or len(ts) < 2 or not ((ts.diff() > 0).all() or (ts.diff() < 0).all()):
        raise ValueError(
            f"ts must be at least 2 strictly increasing or strictly decreasing times, got {shown(ts.tolist())}"
        )
    sign = 1.0 if ts[-1] > ts[0] else -1.0
    u = sign * (ts - ts[0])
    options = dict(options)
    method, dt = options.pop("method", "euler"), float(u[-1]) / steps
    kind = "stratonovich" if method in STRATONOVICH else "ito"
    if options.get("bm") is None:
        options["bm"] = Brownian(float(u[-1]), x.flatten(1), seed)
    forward, ys = _Forward(sde, ts[0], sign, x.shape, kind), [x.flatten(1)]
    for ends in zip(u[:-1], u[1:], strict=True):  # one at a time: torchsde interpolates linearly inside a range
        length = float(ends[1] - ends[0])
        h = length / max(1, math.ceil(length / dt - 1e-6)) * (1 + 1e-12)  # not a hair less, which takes one step more
        ys.append(torchsde.sdeint(forward, ys[-1], torch.stack(ends), method=method, dt=h, **options)[-1])
    return torch.stack(ys).view(len(ts), *x.shape).to(dtype)
