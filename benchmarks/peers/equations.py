"""The methods of torchdiffeq and flow_matching for ordinary differential equations."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde import LinearSDE, Reverse, grid
from scoresde.process import Score

from .common import GRIDS, Adaptive, Grid, Peer, Problem, whole


class Equation(NamedTuple):
    """dy/du = rate(u, y) from y at the first of the times u; x at the end is y times `back`."""

    rate: Callable[[Tensor, Tensor], Tensor]
    y: Tensor
    u: Tensor
    back: Tensor | float


def in_t(p: Reverse, x: Tensor, ts: Tensor) -> Equation:
    """dx/dt = f x - g^2/2 score; at the ends also beyond them, where some methods try and then reject."""
    return Equation(lambda t, x: p.drift(x, t.clamp(0, p.T)), x, ts, 1.0)


def in_log_snr(p: Reverse, x: Tensor, ts: Tensor) -> Equation:
    """dv/dlambda, with v = x/hypot(alpha, sigma)."""
    problem = Problem(p.sde, p.score)
    return Equation(problem.rate, x / problem.norm(ts[0]), p.sde.log_snr(ts), problem.norm(ts[-1]))


def in_r(p: Reverse, x: Tensor, ts: Tensor) -> Equation:
    """dy/du = D - eps, with y = x/(alpha + sigma) = u D + r eps and u = 1 - r."""
    problem = Problem(p.sde, p.score)

    def rate(u: Tensor, y: Tensor) -> Tensor:
        r = 1 - u
        eps = problem.eps(y / torch.hypot(u, r), r / u)
        return (y - r * eps) / u - eps

    def scale(t: Tensor) -> Tensor:
        return p.sde.alpha(t) + p.sde.sigma(t)

    return Equation(rate, x / scale(ts[0]), p.sde.log_snr(ts).sigmoid(), scale(ts[-1]))


@dataclass(frozen=True)
class Integrator:
    """A solver of ordinary differential equations: (rate, y, times, **options) -> y at the last time."""

    run: Callable[..., Tensor]
    equation: Callable[[Reverse, Tensor, Tensor], Equation]
    nodes: Grid = grid.uniform
    stages: int = 1
    extra: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, sde: LinearSDE, score: Score, x: Tensor, calls: int) -> Tensor:
        ts = self.nodes(sde, whole(calls, self.stages, self.extra))
        rate, y, u, back = self.equation(sde.reverse(score, 0.0), x, ts)
        return self.run(rate, y, u, **self.options) * back

    def adaptive(self, sde: LinearSDE, score: Score, x: Tensor, tolerance: float) -> Tensor:
        """With a tolerance, absolute and relative, in place of a grid: no step goes beyond t_min."""
        end = self.equation(sde.reverse(score, 0.0), x, grid.uniform(sde, 1)).u[1:]
        options = {**self.options, "rtol": tolerance, "atol": tolerance, "options": {"step_t": end}}
        return Integrator(self.run, self.equation, options=options)(sde, score, x, 1)


def torchdiffeq_run(rate: Callable[[Tensor, Tensor], Tensor], y: Tensor, u: Tensor, **options: Any) -> Tensor:
    """torchdiffeq, one step between two times if the method has fixed steps."""
    from torchdiffeq import odeint

    return odeint(rate, y, u, **options)[-1]


def flow_matching_run(rate: Callable[[Tensor, Tensor], Tensor], y: Tensor, u: Tensor, **options: Any) -> Tensor:
    """flow_matching, the same on its own velocity model."""
    from flow_matching.solver import ODESolver

    return ODESolver(lambda x, t: rate(t, x)).sample(x_init=y, step_size=None, time_grid=u, **options)


FIXED = {"euler": (1, 1), "midpoint": (2, 2), "heun2": (2, 2), "heun3": (3, 3), "rk4": (4, 4)}
"""Order and calls a step."""


def torchdiffeq_peers() -> list[Peer]:
    """In t on every grid, and in log-SNR. explicit_adams supposes equal steps, and starts by two steps of rk4."""
    importlib.import_module("torchdiffeq")
    found = []
    places = [(f"t, {at}", in_t, nodes) for at, nodes in GRIDS.items()] + [("log-SNR", in_log_snr, grid.log_snr)]
    for at, equation, nodes in places:
        for method, (order, stages) in FIXED.items():
            solve = Integrator(torchdiffeq_run, equation, nodes, stages, 0, {"method": method})
            found.append(Peer(f"torchdiffeq {method} in {at}", "torchdiffeq", 0.0, order, solve))
        if at in ("t, uniform", "log-SNR"):
            options = {"method": "explicit_adams", "options": {"max_order": 4}}
            solve = Integrator(torchdiffeq_run, equation, nodes, 1, 6, options)
            found.append(Peer(f"torchdiffeq explicit_adams in {at}", "torchdiffeq", 0.0, 4, solve))
    return found


def torchdiffeq_adaptive() -> list[Adaptive]:
    """In t, in log-SNR, and along the straight path."""
    importlib.import_module("torchdiffeq")
    found = []
    for at, equation in (("t", in_t), ("log-SNR", in_log_snr), ("r", in_r)):
        for method, order in (("bosh3", 3), ("dopri5", 5), ("dopri8", 8)):
            solve = Integrator(torchdiffeq_run, equation, options={"method": method}).adaptive
            found.append(Adaptive(f"torchdiffeq {method} in {at}", "torchdiffeq", order, solve))
    return found


def flow_matching_peers() -> list[Peer]:
    """The velocity of the straight path, which a rectified flow itself is, on every grid."""
    importlib.import_module("flow_matching.solver")
    found = []
    for at, nodes in GRIDS.items():
        for method in ("euler", "midpoint", "heun3"):
            order, stages = FIXED[method]
            solve = Integrator(flow_matching_run, in_r, nodes, stages, 0, {"method": method})
            found.append(Peer(f"flow_matching {method}, {at}", "flow_matching", 0.0, order, solve))
    return found
