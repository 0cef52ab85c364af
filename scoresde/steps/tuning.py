"""The best solver for a model and a number of network calls, fitted to a few of its own trajectories."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..process import Between, Reverse
from ..reference import Reference, known
from ..shapes import count, number
from .fit import fitted
from .pilots import Pilots, together
from .renewed import renewed
from .tuned import Tuning


@torch.no_grad()
def tune(
    q: Reverse | Sequence[Reverse],
    like: Tensor,
    calls: int,
    around: Reference | None = None,
    pilots: Pilots = Pilots(),
    progress: Callable[[str], None] = lambda said: None,
) -> Tuning:
    """The best solver that is found of q for that number of network calls, from T to q.sde.t_min.

    q: a probability flow, eta = 0, or with 0 < eta <= 1 a process with noise, for which see `renewed`; also several of
    one SDE and one eta, such as under several labels and guidances, which share the pilots in turn. like: a state
    (any, *D), whose shape, type and place the pilots have. around: the mean and deviation of the data; unless given,
    those that the score was made for, or of the pilots' own ends. progress: called with a line before each part of the
    work.

    Raises ValueError for several processes that differ or are more than the pilots, for eta above 1, for fewer than 2
    calls, and for a reference of another shape.
    """
    count("calls", calls, least=2)
    pilots.calls(calls)
    p = together(q, pilots)
    number("eta", p.eta.eta if isinstance(p.eta, Between) else p.eta, most=1)
    find = renewed if p.eta else fitted
    return find(p, like, calls, known(around, p.score, like.shape[1:]), pilots, progress)
