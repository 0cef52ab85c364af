"""The latent of a sample along the probability flow, and back."""

from typing import Any

import torch
from torch import Tensor

from ..ode import Embedded
from ..process import Reverse, require_linear, require_reverse
from ..reference import Reference
from ..shapes import SCALE, as_time, number
from .conditions import conditions, given
from .coordinates import Coordinates
from .parallel import Picard
from .quadrature import Adams, AsNeeded, Integrator, Node, integrate
from .samples import entry, finite

Method = Integrator | Embedded | Picard


@torch.inference_mode(False)
@torch.no_grad()
def encode(
    p: Reverse,
    x: Tensor,
    method: Method = Adams(40),
    around: Reference | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    **cond: Any,
) -> Tensor:
    """The latent, at time `end`, of x (B, *D) at time `start` along the probability flow of p: (B, *D), in float32 or
    better. start < end are t_min and T unless given. method: `Picard(Adams(40))` asks the network about many times in
    one call. cond: as in `log_prob`.

    Raises ValueError for what is no process, no state or no solver, and unless start < end lie inside [0, T] with
    sigma > 0; `SampleError`, a RuntimeError naming the sample and the time, if the score is not finite on the way.
    """
    t, s = _span(p, start, end, up=True)
    return _carry(p, x, t, s, method, around, cond)


@torch.inference_mode(False)
@torch.no_grad()
def decode(
    p: Reverse,
    x_T: Tensor,
    method: Method = Adams(40),
    around: Reference | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    **cond: Any,
) -> Tensor:
    """The state at time `end` of the latent x_T at time `start`, T and t_min unless given: the inverse of `encode` up
    to the solver's error, and with its errors, start and end changed over.
    """
    t, s = _span(p, start, end, up=False)
    return _carry(p, x_T, t, s, method, around, cond)


def _span(p: Reverse, start: float | None, end: float | None, up: bool) -> tuple[Tensor, Tensor]:
    """The times from which and to which."""
    sde = require_linear("p.sde", require_reverse(p).sde)
    usual = (sde.t_min, sde.T) if up else (sde.T, sde.t_min)
    t, s = (
        as_time(u if v is None else number(name, v, least=0, most=sde.T))
        for name, v, u in (("start", start, usual[0]), ("end", end, usual[1]))
    )
    if not (t < s if up else t > s):
        raise ValueError(f"end must be {'later' if up else 'earlier'} than start = {t:g}, got {s:g}")
    for name, v in (("start", t), ("end", s)):
        if sde.sigma(v) < 1 / SCALE:
            raise ValueError(f"{name} must be a time with sigma > 0, where there is a score, got {float(v):g}")
    return t, s


def _carry(
    p: Reverse,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    method: Method,
    around: Reference | None,
    cond: dict[str, Any],
) -> Tensor:
    if not isinstance(method, Method):
        raise ValueError(f"method must be a value such as Adams(), got {method!r}")
    if isinstance(method, AsNeeded):
        raise ValueError(
            f"method must not be told by the error of a likelihood, which a latent has not, got {method!r}"
        )
    x = entry(x)
    of, told = Coordinates.of(p, around, x), conditions(cond, x, p.score)
    u, u_s = of.u(t), of.u(s)

    def node(u: Tensor, y: Tensor, rows: Tensor) -> Node:
        at, nothing = of.at(u), y.new_zeros(len(y), 1)
        denoised = given(p, told, rows).denoise(of.x(y, at), at.t)
        rate = finite("the score", at.t, of.drift(y, at, denoised), rows=rows)
        return Node(rate, nothing, nothing[:, 0], torch.zeros_like(y))

    y = of.y(x, of.at(u), t)
    end = method.integrate(node, y, u, u_s) if isinstance(method, Picard) else integrate(method, node, y, u, u_s).y
    return finite("the state", s, of.x(end, of.at(u_s)))
