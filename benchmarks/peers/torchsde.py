"""The methods of torchsde for the reverse SDE."""

import importlib
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import LinearSDE, grid
from scoresde.process import Score

from .common import Peer, Problem, whole


class Backward:
    """The reverse SDE as torchsde wants it, in a time u that increases, for a state (B, d); g does not depend on it.

    In t: u = T - t. In log-SNR: dv = rate dlambda + sqrt(2) s/hypot(1, s) dw. SRK asks for a rate several times, and is
    answered once.
    """

    def __init__(self, problem: Problem, shape: torch.Size, in_t: bool, noise: str, kind: str) -> None:
        self.problem, self.p, self.shape, self.in_t = problem, problem.sde.reverse(problem.score), shape, in_t
        self.noise_type, self.sde_type = noise, kind
        self.known: list[tuple[Tensor, Tensor, Tensor]] = []

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        """The drift, (B, d)."""
        for at, state, value in self.known:
            if state is y and at == u:
                return value
        x = y.view(self.shape)
        rate = -self.p.drift(x, self.p.T - u) if self.in_t else self.problem.rate(u, x, 1.0)
        self.known = [(u, y, rate.flatten(1)), *self.known[:1]]
        return self.known[0][2]

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        """The diffusion, (B, d), or (B, d, d) if additive."""
        g = self.p.diffusion(self.p.T - u) if self.in_t else (2 * torch.sigmoid(-2 * u)).sqrt()
        diagonal = g.to(y) + 0 * y
        return torch.diag_embed(diagonal) if self.noise_type == "additive" else diagonal


@dataclass(frozen=True)
class Stochastic:
    """A method of torchsde, with equal steps in t or in log-SNR; its Brownian path is seeded by torch's."""

    method: str
    stages: int
    in_t: bool
    noise: str
    kind: str

    @torch.no_grad()
    def __call__(self, sde: LinearSDE, score: Score, x: Tensor, calls: int) -> Tensor:
        import torchsde

        n, ts, problem = whole(calls, self.stages), grid.uniform(sde, 1), Problem(sde, score)
        u = ts[0] - ts if self.in_t else sde.log_snr(ts)
        unit = torch.ones_like(ts) if self.in_t else problem.norm(ts)
        y = (x / unit[0]).flatten(1)
        seed = int(torch.randint(2**31 - 1, ()))
        ends = {"t0": float(u[0]), "t1": float(u[1]), "size": y.shape, "dtype": y.dtype, "device": y.device}
        bm = torchsde.BrownianInterval(**ends, entropy=seed, levy_area_approximation="space-time")
        dt = float(u[1] - u[0]) / n * (1 + 1e-12)  # not a hair less, which takes one step more
        equation = Backward(problem, x.shape, self.in_t, self.noise, self.kind)
        return torchsde.sdeint(equation, y, u, bm=bm, method=self.method, dt=dt)[-1].view(x.shape) * unit[1]


def torchsde_peers() -> list[Peer]:
    """The reverse SDE, whose noise is additive, so that Milstein's method is Euler's."""
    importlib.import_module("torchsde")
    rows = [
        ("euler", 1, 1, "diagonal", "ito"),
        ("milstein", 1, 1, "diagonal", "ito"),
        ("srk", 2, 2, "additive", "ito"),
        ("heun", 1, 2, "diagonal", "stratonovich"),
        ("midpoint", 1, 2, "diagonal", "stratonovich"),
    ]
    found = []
    for method, order, stages, noise, kind in rows:
        for at, is_t in (("t", True), ("log-SNR", False)):
            solve = Stochastic(method, stages, is_t, noise, kind)
            found.append(Peer(f"torchsde {method} in {at}", "torchsde", 1.0, order, solve))
    return found
