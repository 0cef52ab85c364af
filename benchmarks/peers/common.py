"""What every peer is: a name, a budget of calls, the SDE and the score as functions of s = sigma/alpha."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import LinearSDE, grid
from scoresde.process import Score

Grid = Callable[[LinearSDE, int], Tensor]
Solve = Callable[[LinearSDE, Score, Tensor, int], Tensor]


@dataclass(frozen=True)
class Peer:
    """A sampler of another library, with its grid."""

    name: str
    package: str
    eta: float
    """0 for the probability flow; 1 for what draws noise."""
    order: int | None
    """The order that the method is named with."""
    solve: Solve
    """(sde, score, x_T (B, *D) in float64, network calls) -> x at t = sde.t_min. Raises ValueError if they are few."""


@dataclass(frozen=True)
class Adaptive:
    """A sampler of another library that chooses its steps, for the whole batch, by a tolerance."""

    name: str
    package: str
    order: int
    solve: Callable[[LinearSDE, Score, Tensor, float], Tensor]
    """(sde, score, x_T, relative tolerance) -> x at t = sde.t_min."""


def straight(sde: LinearSDE, n: int) -> Tensor:
    """Equal steps in r = sigma/(alpha + sigma), the time of the straight path."""
    r = (-sde.log_snr(grid.uniform(sde, 1))).sigmoid()
    ts = sde.time(-torch.logit(torch.lerp(r[0], r[1], torch.linspace(0, 1, n + 1, dtype=torch.float64))))
    ts[0], ts[-1] = sde.T, sde.t_min
    return ts


GRIDS: dict[str, Grid] = {
    "uniform": grid.uniform,
    "quadratic": grid.quadratic,
    "karras": grid.karras,
    "log-SNR": grid.log_snr,
    "straight": straight,
}


def whole(calls: int, stages: int, extra: int = 0) -> int:
    """The steps of `stages` calls each that `calls` buy, beside `extra` calls."""
    if calls < stages + extra:
        raise ValueError(f"this method needs at least {stages + extra} network calls, got {calls}")
    return (calls - extra) // stages


@dataclass(frozen=True)
class Problem:
    """An SDE and a score as functions of s = sigma/alpha."""

    sde: LinearSDE
    score: Score

    def levels(self, ts: Tensor) -> Tensor:
        """s at the times ts."""
        return (-self.sde.log_snr(ts)).exp()

    def norm(self, t: Tensor | float) -> Tensor:
        """x/v = hypot(alpha, sigma)."""
        return torch.hypot(self.sde.alpha(t), self.sde.sigma(t))

    def eps(self, v: Tensor, s: Tensor) -> Tensor:
        """The noise in x = v hypot(alpha, sigma)."""
        t = self.sde.time(-s.log())  # a little beyond T, and farther, in some of their methods
        return -self.sde.sigma(t) * self.score(v * self.norm(t), t)

    def denoise(self, y: Tensor, s: Tensor) -> Tensor:
        """D of y = x/alpha."""
        return y - s * self.eps(y / (1 + s**2).sqrt(), s)

    def rate(self, u: Tensor, v: Tensor, eta: float = 0.0) -> Tensor:
        """dv/dlambda at lambda = u: with h = hypot(1, s), (s/h)^2 v - (1 + eta^2) s/h eps."""
        c = torch.sigmoid(-2 * u)  # (s/h)^2
        return c * v - (1 + eta**2) * c.sqrt() * self.eps(v, (-u).exp())
