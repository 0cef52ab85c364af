"""The latent of a sample along the probability flow, and back."""

from typing import Any

import torch
from torch import Tensor

from ..ode import Embedded
from ..process import Reverse, require_reverse
from ..reference import Reference
from ..shapes import as_time
from .conditions import conditions, given
from .coordinates import Coordinates
from .quadrature import Adams, AsNeeded, Integrator, Node, integrate
from .samples import entry, finite


@torch.inference_mode(False)
@torch.no_grad()
def encode(
    p: Reverse, x: Tensor, method: Integrator | Embedded = Adams(40), around: Reference | None = None, **cond: Any
) -> Tensor:
    """The latent x_T of x (B, *D) at t_min along the probability flow of p: (B, *D), in float32 or better. cond: as in
    `log_prob`. Raises ValueError for what is no process, no state or no solver; `SampleError`, a RuntimeError naming
    the sample and the time, if the score is not finite on the way.
    """
    return _carry(require_reverse(p), x, (p.sde.t_min, p.sde.T), method, around, cond)


@torch.inference_mode(False)
@torch.no_grad()
def decode(
    p: Reverse, x_T: Tensor, method: Integrator | Embedded = Adams(40), around: Reference | None = None, **cond: Any
) -> Tensor:
    """The state at t_min of the latent x_T: the inverse of `encode` up to the solver's error, and with its errors."""
    return _carry(require_reverse(p), x_T, (p.sde.T, p.sde.t_min), method, around, cond)


def _carry(
    p: Reverse,
    x: Tensor,
    span: tuple[float, float],
    method: Integrator | Embedded,
    around: Reference | None,
    cond: dict[str, Any],
) -> Tensor:
    if not isinstance(method, Integrator | Embedded):
        raise ValueError(f"method must be a value such as Adams(), got {method!r}")
    if isinstance(method, AsNeeded):
        raise ValueError(
            f"method must not be told by the error of a likelihood, which a latent has not, got {method!r}"
        )
    x, (t, s) = entry(x), map(as_time, span)
    of, told = Coordinates.of(p, around, x), conditions(cond, x, p.score)
    u, u_s = of.u(t), of.u(s)

    def node(u: Tensor, y: Tensor, rows: Tensor) -> Node:
        at, nothing = of.at(u), y.new_zeros(len(y), 1)
        denoised = given(p, told, rows).denoise(of.x(y, at), at.t)
        rate = finite("the score", at.t, of.drift(y, at, denoised), rows=rows)
        return Node(rate, nothing, nothing[:, 0], torch.zeros_like(y))

    return finite("the state", s, of.x(integrate(method, node, of.y(x, of.at(u), t), u, u_s).y, of.at(u_s)))
