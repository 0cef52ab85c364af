"""A sampler as one CUDA graph: the loop is run once and recorded, and then replayed without Python.

For small networks and small batches the time between kernels is most of a step. No step waits for the device, and all
coefficients are numbers before the loop begins, so a whole trajectory can be recorded.
"""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from ..noise import iid
from ..process import Reverse
from ..shapes import times
from .step import Step, run, sample, started

Sampler = Callable[[Tensor], Tensor]


@torch.no_grad()
def captured(p: Reverse, like: Tensor, ts: Tensor, *steps: Step) -> Sampler:
    """The function x -> sample(p, x, ts, *steps) for states x shaped, typed and placed like `like`.

    On a GPU it is recorded once as a CUDA graph; random steps draw from torch's global generator there, anew in each
    replay. Anywhere else it is `sample` itself. What the steps hold must be numbers or lie on the device already (the
    mean of a `Reference`), steps that look at their own values, such as adaptive ones, cannot be recorded, and the
    network must be one that can: no synchronisation, no shapes that depend on data. The result is the caller's to keep.

    Raises ValueError as `sample` does, before anything is recorded, and for an x of another shape, type or place.
    """

    sample(p, like, ts, *steps)  # checks, and lets libraries choose their kernels
    replay = _recorded(p, like, ts, steps) if like.is_cuda else lambda x: sample(p, x, ts, *steps)

    def call(x: Tensor) -> Tensor:
        if (x.shape, x.dtype, x.device) != (like.shape, like.dtype, like.device):
            was, now = ((tuple(a.shape), a.dtype, str(a.device)) for a in (like, x))
            raise ValueError(f"x must be like the state that the sampler was captured with, {was}, got {now}")
        return replay(x)

    return call


def _recorded(p: Reverse, like: Tensor, ts: Tensor, steps: tuple[Step, ...]) -> Sampler:
    x, graph, side, ts = like.clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream(), times("ts", ts, p.T)

    def loop() -> Tensor:  # without the checks of `sample`, which wait for the device
        return deque(run(p, x, ts, started(p, ts, steps), iid()), maxlen=1).pop()

    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as CUDA graphs want it: warm on another stream than the one that records
        loop()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        out = loop()

    def replay(start: Tensor) -> Tensor:
        x.copy_(start)
        graph.replay()
        return out.clone()

    return replay
