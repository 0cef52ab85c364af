"""What a command would do, and about how long that takes, told before it does it."""

from collections.abc import Callable
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import unwrapped
from ..model import Counted
from ..ode import Embedded
from ..process import LinearSDE, Reverse
from ..steps import Flow, Step, draw

SAID = 10.0
"""Seconds from which on a command says how long it will take."""


def tell(*lines: str) -> None:
    """Print what would be done."""
    print("\n".join((*(line for line in lines if line), "a dry run: nothing was written")))


def duration(seconds: float) -> str:
    """About how long that is, in words."""
    if seconds < 1:
        return "less than a second"
    units = (("s", 1.0, 100.0), ("min", 60.0, 6000.0), ("h", 3600.0, 200_000.0), ("days", 86_400.0, float("inf")))
    unit, size = next((unit, size) for unit, size, most in units if seconds < most)
    return f"about {seconds / size:.2g} {unit}"


def weighs(numbers: float) -> str:
    """Bytes, in words."""
    return f"{numbers / 2**20:.3g} MiB"


def network(model: torch.nn.Module, device: torch.device) -> str:
    """Which network computes where, and how large it is."""
    parameters = list(model.parameters())
    size = sum(p.numel() * p.element_size() for p in parameters)
    name = type(unwrapped(getattr(model, "net", model))).__name__
    return f"{name} of {sum(p.numel() for p in parameters):,} weights, {weighs(size)}, on {device}"


def seconds_a_call(score: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> float:
    """How long a network takes about x, measured on the second of two calls."""
    with torch.no_grad():
        for _ in range(2):
            began = monotonic()
            score(x, t)
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
    return monotonic() - began


def chooses(step: Step) -> bool:
    """Whether a step chooses its own sizes within an interval."""
    return hasattr(step, "run") and not (isinstance(step, Flow) and not isinstance(step.method, Embedded))


class Normal:
    """The score of N(0, I) on a process, whatever else it is told."""

    def __init__(self, sde: LinearSDE) -> None:
        self.sde = sde

    def __call__(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
        return -x / (self.sde.alpha(t) ** 2 + self.sde.var(t)).to(x)


def calls_of(
    make: Callable[[Counted], Reverse], sde: LinearSDE, shape: tuple[int, ...], ts: Tensor, *steps: Step, **how: Any
) -> int:
    """The network calls of a sample, counted with the score of N(0, I) on sde in the network's place; 0 where they
    depend on x, as of steps that choose their own sizes, or where that score does not do. make: the process backwards
    from a score; how: options of `draw`.
    """
    if any(map(chooses, steps)):
        return 0
    counted = Counted(Normal(sde))
    try:
        p = make(counted)
        counted.nfe = 0  # what it takes to make the process is of no sample
        draw(p, shape, ts, *steps, seeds=[0], **how)
    except (ValueError, TypeError, AttributeError, RuntimeError):  # of steps and guidance of one's own
        return 0
    return counted.nfe
