"""Samples changed by a model: variations, and paths between two.

The flow carries a sample to a latent and back (`encode`, `decode`); how far that comes out from where it went in is
`round_trip`, and what is drawn between two samples is no more exact than this.
"""

from typing import Any

import torch
from torch import Tensor

from .likelihood import Adams, Integrator, decode, encode
from .noise import Noise, iid, require_noise
from .ode import Embedded
from .process import Reverse, require_linear, require_reverse
from .reference import Reference
from .shapes import count, lifted, state, times
from .steps import Step, sample

DEFAULT = Adams(40)


def round_trip(
    p: Reverse, x: Tensor, method: Integrator | Embedded = DEFAULT, around: Reference | None = None, **cond: Any
) -> Tensor:
    """The root mean square over dimensions of decode(encode(x)) - x, (B,), in the units of x (B, *D) at t_min. The
    arguments are those of `encode`, which raises the errors.
    """
    back = decode(p, encode(p, x, method, around, **cond), method, around, **cond)
    return (back - x).flatten(1).square().mean(1).sqrt()


def interpolate(
    p: Reverse,
    a: Tensor,
    b: Tensor,
    n: int = 8,
    method: Integrator | Embedded = DEFAULT,
    around: Reference | None = None,
    **cond: Any,
) -> Tensor:
    """n states at t_min from each a to each b (B, *D), both ends among them: (n, B, *D). Latents are joined on a great
    circle, sin((1 - u) w)/sin w a_T + sin(u w)/sin w b_T with the angle w between them, as those of equal length keep
    that on the way (Song et al. 2021, DDIM, appendix D.5). Raises ValueError as `encode`, unless a and b have one shape
    and n is from 2 on.
    """
    if state("a", a).shape != state("b", b).shape:
        raise ValueError(f"b must have the shape of a, {tuple(a.shape)}, got {tuple(b.shape)}")
    u = torch.linspace(0, 1, count("n", n, least=2), dtype=torch.float64)
    ends = [encode(p, x, method, around, **cond) for x in (a, b)]
    first, second = (end.double().flatten(1) for end in ends)
    cosine = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1)).clamp_min(1e-300)
    w = cosine.clamp(-1, 1).arccos()[None]
    flat = w.sin() < 1e-6  # on one line: the chord is the circle's limit
    u = u.to(w)[:, None]
    left, right = (torch.where(flat, v, (v * w).sin() / w.sin()) for v in (1 - u, u))
    between = left[..., None] * first + right[..., None] * second
    latents = between.view(n * len(a), *a.shape[1:]).to(ends[0].dtype)
    every: dict[str, Any] = {k: v.repeat(n) if isinstance(v, Tensor) and v.ndim else v for k, v in cond.items()}
    return decode(p, latents, method, around, **every).view(n, *a.shape)


def vary(p: Reverse, x: Tensor, ts: Tensor, *steps: Step, noise: Noise = iid()) -> Tensor:
    """x (B, *D) noised to ts[0], alpha x + sigma z, and sampled from there along ts (SDEdit: Meng et al. 2022): the
    later ts[0], the less is left of x. For x of the model's own law so is what returns, and on the reverse SDE it is a
    draw of p(x_0 | x_t). Raises ValueError as `sample`, and unless the SDE is linear.
    """
    require_noise(noise), state("x", x)
    sde = require_linear("p.sde", require_reverse(p).sde)
    noisy, _ = sde.perturb(lifted(x), times("ts", ts, p.T)[0], noise)
    return sample(p, noisy, ts, *steps, noise=noise).to(x.dtype)
