"""Paths of any SDE through torchsde, in either direction of time."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torchsde
from torch import Tensor

from .shapes import count, state

STRATONOVICH = {"heun", "midpoint", "euler_heun", "log_ode", "reversible_heun", "adjoint_reversible_heun"}
LEVY = {"srk": "space-time", "log_ode": "foster"}


class _Forward(torch.nn.Module):
    """The SDE as torchsde wants it: time that increases from 0, a state of shape (B, d), diagonal noise.

    The diffusion does not depend on the state, so the Ito and Stratonovich readings are one equation, and the type is
    whatever the chosen solver asks for.
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

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        return self.sign * self.drift(y.view(self.shape), self.t0 + self.sign * u).flatten(1)

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
    if ts.ndim != 1 or len(ts) < 2 or not ((ts.diff() > 0).all() or (ts.diff() < 0).all()):
        raise ValueError(f"ts must be at least 2 strictly increasing or strictly decreasing times, got {ts.tolist()}")
    sign = 1.0 if ts[-1] > ts[0] else -1.0
    u = sign * (ts - ts[0])
    method, dt = options.pop("method", "euler"), float(u[-1]) / steps
    kind = "stratonovich" if method in STRATONOVICH else "ito"
    if options.get("bm") is None:
        options["bm"] = torchsde.BrownianInterval(
            float(u[0]),
            float(u[-1]),
            size=x.flatten(1).shape,
            dtype=x.dtype,
            device=x.device,
            entropy=seed,
            dt=dt,
            levy_area_approximation=LEVY.get(method, "none"),
        )
    sde = _Forward(drift, diffusion, ts[0], sign, x.shape, kind)
    ys = [x.flatten(1)]
    for ends in zip(u[:-1], u[1:], strict=True):  # one at a time: torchsde interpolates linearly inside a range
        length = float(ends[1] - ends[0])
        h = length / max(1, math.ceil(length / dt - 1e-6))
        ys.append(torchsde.sdeint(sde, ys[-1], torch.stack(ends), method=method, dt=h, **options)[-1])
    return torch.stack(ys).view(len(ts), *x.shape)
