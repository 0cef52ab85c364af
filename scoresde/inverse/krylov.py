"""Linear equations by products alone."""

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate(
    apply: Callable[[Tensor], Tensor],
    y: Tensor,
    start: Tensor | None = None,
    iterations: int = 200,
    least: Callable[[Tensor], Tensor] = lambda d: torch.zeros_like(d[:, :1]),
) -> Tensor:
    """The solution v of apply(v) = y for each row of y (B, m), for a symmetric map that is positive (Hestenes et al.
    1952), from `start`, or 0. A row whose next direction d has d.apply(d) < least(d), (B, 1), keeps what it has: the
    map is not what it is taken for.
    """
    v = torch.zeros_like(y) if start is None else start
    r = y - apply(v) if start is not None else y.clone()
    d, rr = r, r.square().sum(1, keepdim=True)
    end, tiny = y.square().sum(1, keepdim=True) * (4 * torch.finfo(y.dtype).eps) ** 2, torch.finfo(y.dtype).tiny
    going = rr > end
    for _ in range(min(iterations, 4 * y.shape[1] + 10)):
        if not going.any():
            break
        Ad = apply(d)
        curved = (d * Ad).sum(1, keepdim=True)
        going = going & (curved > 0.999 * least(d)) & (curved > 0)
        step = torch.where(going, rr / curved.clamp_min(tiny), torch.zeros_like(rr))
        v, r = v + step * d, r - step * Ad
        new = r.square().sum(1, keepdim=True)
        going = going & (new > end)
        d, rr = torch.where(going, r + new / rr.clamp_min(tiny) * d, d), torch.where(going, new, rr)
    return v
