"""Samplers of azula, which take the mean of x_0 given x_t."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from scoresde import LinearSDE, Reverse
from scoresde.process import Score

from .common import GRIDS, Grid, Peer, Problem, whole


@dataclass(frozen=True)
class Denoiser:
    """What azula's samplers ask of a denoiser, in the time k = n, ..., 0 for which t is ts[n - k]."""

    problem: Problem
    ts: Tensor

    def t(self, k: Tensor) -> Tensor:
        """The time of the grid."""
        return self.ts[len(self.ts) - 1 - k.round().long()]

    def schedule(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma."""
        return self.problem.sde.alpha(self.t(k)), self.problem.sde.sigma(self.t(k))

    def __call__(self, x: Tensor, k: Tensor) -> SimpleNamespace:
        """The law of x_0 given x, of which samplers read the mean."""
        return SimpleNamespace(mean=Reverse(self.problem.sde, self.problem.score, 0.0).denoise(x, self.t(k)))


@dataclass(frozen=True)
class Stepwise:
    """A sampler of azula."""

    make: Callable[..., Any]
    nodes: Grid
    stages: int
    options: dict[str, Any]

    def __call__(self, sde: LinearSDE, score: Score, x: Tensor, calls: int) -> Tensor:
        n = whole(calls, self.stages)
        clock = {"start": float(n), "stop": 0.0, "steps": n, "silent": True, "dtype": torch.float64}
        return self.make(Denoiser(Problem(sde, score), self.nodes(sde, n)), **clock, **self.options)(x)


def azula_peers() -> list[Peer]:
    """Samplers of azula on every grid: name, order, calls a step, eta, options."""
    from azula import sample as a

    rows: list[tuple[str, int, int, float, dict[str, Any]]] = [
        ("DDIM", 1, 1, 0.0, {}),
        ("Euler", 1, 1, 0.0, {}),
        ("Heun", 2, 2, 0.0, {}),
        *((f"{kind}AB", k, 1, 0.0, {"order": k}) for kind in ("z", "v", "zE", "xE", "RE") for k in (2, 3)),
        ("DDPM", 1, 1, 1.0, {}),
        ("Ito", 1, 1, 1.0, {"eta": 1.0}),
        ("PC", 1, 2, 1.0, {}),
    ]
    found = []
    for name, order, stages, eta, options in rows:
        for at, nodes in GRIDS.items():
            label = f"azula {name}{f' {order}' if 'order' in options else ''}, {at}"
            solve = Stepwise(getattr(a, f"{name}Sampler"), nodes, stages, options)
            found.append(Peer(label, "azula", eta, order, solve))
    return found
