"""What every likelihood asks of its samples and of the type of a score, and the name of a sample that fails."""

from typing import Any

import torch
from torch import Tensor

from ..exact import Law, require_law
from ..model import Counted
from ..ode import SampleError
from ..process import require_linear, require_reverse
from ..quantize import Quantized
from ..shapes import lifted, state, times
from ..steps.step import predictor

MANY = 100_000  # steps, terms, draws or probes: more would take days, and say no more


def entry(x: Tensor, quantized: Quantized | None = None) -> Tensor:
    """x (B, *D) as it is computed with: in float32 or better, and no tensor of `torch.inference_mode`, which could not
    carry a graph. Raises ValueError unless it is finite and, if there is a grid, on it.
    """
    if not isinstance(quantized, Quantized | None):
        raise ValueError(f"quantized must be a grid such as Quantized(256, -1, 1), got {quantized!r}")
    x = lifted(state("x", x) if quantized is None else quantized.check(x))
    return x.clone() if x.is_inference() else x


def finite(what: str, t: Tensor, *values: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return the first of the values (b, ...); raise `SampleError` for the first sample that is not finite in all of
    them, with its time t, () or (b,). rows (b,): which samples of the batch they are, if not all.
    """
    good = torch.stack([value.detach().reshape(len(value), -1).isfinite().all(1) for value in values]).all(0)
    if not good.all():
        i = int((~good).nonzero()[0])
        at = float(t.expand(len(good))[i])
        raise SampleError(f"{what} of sample {{}} is not finite at t = {at:.6g}", i if rows is None else int(rows[i]))
    return values[0]


def rounding(score: Any) -> float:
    """Half the distance of 1 to the next number in the type of a score's weights, if that is half precision, or 0."""
    while isinstance(score, Counted):
        score = score.f
    if members := getattr(score, "scores", ()):  # of which it is made
        return max(rounding(member) for member in members)
    types = {v.dtype for v in score.parameters()} if isinstance(score, torch.nn.Module) else set()
    half = types & {torch.float16, torch.bfloat16}
    return max((torch.finfo(dtype).eps / 2 for dtype in half), default=0.0)


def sampled(p: Any, x: Tensor, ts: Tensor, step: Any, prior: Law | None) -> Tensor:
    """ts, the times of a sampler of one predictor. Raises ValueError unless they begin at T, or at the prior, a law of
    samples like x, and the step carries x through the intervals that it is given.
    """
    ts = times("ts", ts, require_linear("sde", require_reverse(p).sde).T)
    predictor(step)
    if prior is not None:
        require_law("prior", prior, x.shape[1:])
    elif ts[0] < p.T * (1 - 1e-6):
        raise ValueError(f"ts must begin at T = {p.T:g} unless a prior is given for its first time, got {ts[0]:.6g}")
    return ts
