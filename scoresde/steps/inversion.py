"""Steps of the flow taken from data up to noise: the latent that a sampler would have come from.

`invert` takes each step by its own formula from s up to t, with the network asked where it begins: that is the method
on the flow run the other way (DDIM inversion: Song, Meng & Ermon 2021, section 4.3; Mokady et al. 2023, section 3), and
`sample` comes back to x up to the method's error. `exact_inverse` solves each step for where it began, so that `sample`
comes back to x itself.
"""

from collections import deque
from itertools import pairwise

import torch
from torch import Tensor

from ..process import Reverse, needs_noise, require_linear, require_reverse
from ..shapes import choose, count, lifted, number, state, times
from .euler import needs_flow
from .step import Step, run, watched


def invert(p: Reverse, x: Tensor, ts: Tensor, step: Step) -> Tensor:
    """The state at ts[0] of x (B, *D) at ts[-1], by a step on the flow p taken upwards on the grid ts of `sample`. For
    DDIM from s up to t

        x_t = alpha_t/alpha_s x + (sigma_t - alpha_t/alpha_s sigma_s) eps(x, s).

    Code for images often tells the network t in place of s there, which is of the same order.

    Raises ValueError as `sample`, and unless eta is 0, sigma > 0 at ts[-1], and the step is one whose formula goes both
    ways (`Step.upwards`); RuntimeError as `sample` for a state that is not finite.
    """
    ts = _flow(p, x, ts)
    if not isinstance(step, Step) or not step.upwards:
        raise ValueError(f"step must be one whose formula goes upwards too, such as DDIM(), got {step!r}")
    needs_noise(p, ts)
    up = ts.flip(0)
    step.check(p, up[:-1], up[1:])
    with torch.no_grad():
        taken = step.prepare(p, up[:-1], up[1:])
    return deque(watched(run(p, x, up, (taken,), _silent(step)), up), maxlen=1).pop()


@torch.no_grad()
def exact_inverse(p: Reverse, x: Tensor, ts: Tensor, step: Step, tol: float = 1e-6, most: int = 100) -> Tensor:
    """The state at ts[0] from which `sample(p, ., ts, step)` comes to x (B, *D) at ts[-1]. Each interval x_s = F(x_t)
    is solved by

        x_t <- x_t - alpha_t/alpha_s (F(x_t) - x_s),

    which for DDIM asks eps at t itself (Pan et al. 2023; Garibi et al. 2024). It converges where the step is short
    enough: DDIM's on Gaussian data always, each time by (1 - sigma~_s/sigma~_t)/(1 + c^2/sigma~_t^2) with sigma~ =
    sigma/alpha. A row is iterated until |F(x_t) - x_s| <= tol |x_s|, with root mean squares over its dimensions,
    whatever its neighbours are, at most `most` times: each is a step. A tol below the digits of x may not be reached.

    Raises ValueError as `sample`, and unless eta is 0 and the step is of one step and without noise; RuntimeError
    naming the first sample, and the interval, that is not solved, at once where what the step makes is not finite.
    """
    ts = _flow(p, x, ts)
    if not isinstance(step, Step) or not step.moves or step.fixed:
        raise ValueError(f"step must be one that remembers nothing, such as DDIM(), to have an inverse, got {step!r}")
    number("tol", tol, above=0), count("most", most)
    step.start(p, ts[:-1], ts[1:])
    y = lifted(x)
    for s, t in pairwise(ts.flip(0)):
        y = _solved(p, y, t, s, step, tol, most)
    return y.to(x.dtype)


def _solved(p: Reverse, x: Tensor, t: Tensor, s: Tensor, step: Step, tol: float, most: int) -> Tensor:
    """The x_t whose step from t to s is x."""
    ratio, size, noise = float(p.sde.alpha(t) / p.sde.alpha(s)), _rms(x), _silent(step)
    y = ratio * x
    for _ in range(most):
        off = step(p, y, t, s, noise) - x
        if wrong := (~off.flatten(1).isfinite().all(1)).nonzero().flatten().tolist():
            raise RuntimeError(
                f"sample {wrong[0]} is not finite between t = {t:.6g} and {s:.6g}: the score must be finite there, and "
                "steps so short that the iteration converges"
            )
        there = _rms(off) <= tol * size
        if there.all():
            return y
        y = choose(there, y, y - ratio * off)
    i = int((~there).nonzero()[0])
    raise RuntimeError(
        f"sample {i} is not solved to tol = {tol:g} between t = {t:.6g} and {s:.6g} in {most} iterations: take shorter "
        "steps there, or a larger tol"
    )


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1).sqrt()


def _flow(p: Reverse, x: Tensor, ts: Tensor) -> Tensor:
    """ts, checked with the rest."""
    require_linear("p.sde", require_reverse(p).sde), state("x", x)
    needs_flow(p)
    return times("ts", ts, p.T)


class _silent:
    """No noise: what is drawn could not be undone. Raises ValueError naming the step that asks for it."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        raise ValueError(f"step must draw no noise to be inverted, got {self.step!r}")
