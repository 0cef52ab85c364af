"""DPM-Solver-v3 (Zheng, Lu, Chen & Zhu 2023, "DPM-Solver-v3: improved diffusion ODE solver with empirical model
statistics", NeurIPS).

In y = x/alpha and lambda = -log s the flow is dy/dlambda = -s eps. With a part l y split off, N = s eps - l y,

    y_1 = e^(-L) (y_0 - integral of e^(L + S) (g + B) dlambda),    L, S = integrals of l and s_ from lambda_0 on,
    g = e^(-S) N - B,    B = integral of e^(-S) b,

and g changes least along trajectories for the coefficients, a number for each coordinate and lambda,

    l  = mean of the diagonal of s d eps/dy                        (the least mean |dN/dy|)
    s_ = cov(N, dN/dlambda)/var(N),   b = mean(dN/dlambda) - s_ mean(N)      (the least mean |dg/dlambda|).

(Section 3. Theirs are of x, which adds d log alpha/dlambda to s_ and alpha to b; the step is the same.) A predictor
takes for g the polynomial through the last nodes, `order` of them; the corrector takes the interval again with the node
at its end, of which it asks the network nothing more. `pseudo`, for few steps, keeps of three nodes the slope of two,

    g_0 + g[0, 1] (lambda - lambda_0) + g[0, 1, 2] (lambda - lambda_0)^2.

The statistics are of the pilots at levels equal in lambda, the diagonal by one product with random signs a pilot that
are kept along it (Hutchinson), the derivative dN/dlambda by cubic splines along it in place of products with the
Jacobian; between levels they are cubic splines. Order, corrector, pseudo-order and grid, which the paper chooses by FID
for each number of calls, are those with which the pilots end nearest to where they should.
"""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from scoresde import grid

from .common import Problem
from .learned import Learned, Task, distance

POINTS, MASSES = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True, eq=False)
class Statistics:
    """l, the integrals L and S of l and s_, and that of e^(-S) b, of each coordinate, over lambda."""

    l: CubicSpline  # noqa: E741
    L: CubicSpline
    S: CubicSpline
    B: CubicSpline

    @classmethod
    def of(cls, task: Task, n: int) -> "Statistics":
        """From the pilots, on n levels and one."""
        ts = grid.log_snr(task.sde, n)
        s, lam = task.problem.levels(ts), task.sde.log_snr(ts).numpy()
        y = task.along(ts)
        v = torch.randint(0, 2, y[0].shape, generator=task.generator).to(y) * 2 - 1
        eps, diagonal = zip(
            *(products(task.problem, at, level, v) for at, level in zip(y, s, strict=True)), strict=True
        )
        moved = s.view(-1, 1, 1) * torch.stack(eps).flatten(2)
        slope = s[:, None] * torch.stack(diagonal).flatten(1)
        N = (moved - slope[:, None] * y.flatten(2)).numpy()
        rate = CubicSpline(lam, N, axis=0)(lam, 1)
        tiny = 1e-12 * (moved**2).mean(1).numpy()  # what does not vary has s_ = 0
        s_ = covariance(N, rate) / (covariance(N, N) + tiny)
        b = rate.mean(1) - s_ * N.mean(1)
        S = CubicSpline(lam, s_, axis=0).antiderivative()
        split = CubicSpline(lam, slope.numpy(), axis=0)
        B = CubicSpline(lam, np.exp(-S(lam)) * b, axis=0).antiderivative()
        return cls(split, split.antiderivative(), S, B)


def covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Over samples: (K, n, D), (K, n, D) -> (K, D)."""
    return ((a - a.mean(1, keepdims=True)) * (b - b.mean(1, keepdims=True))).mean(1)


def products(problem: Problem, y: Tensor, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """eps at y, and the mean over samples of v (v d eps/dy), which is that of the diagonal for random signs v."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        eps = (y - problem.denoise(y, s)) / s
        (back,) = torch.autograd.grad(eps, y, v)
    return eps.detach(), (v * back).mean(0)


@dataclass(frozen=True, eq=False)
class Predicted:
    """The multistep method on times ts (n + 1,): a call an interval."""

    known: Statistics
    ts: Tensor
    lam: np.ndarray
    order: int = 3
    corrector: bool = True
    pseudo: bool = False

    @torch.no_grad()
    def __call__(self, problem: Problem, y: Tensor) -> Tensor:
        """y at the highest level (B, *D) -> y at the lowest."""
        shape, y, s = y.shape, y.flatten(1), problem.levels(self.ts)
        N: list[Tensor] = []
        before = y
        for k in range(len(self.ts) - 1):
            eps = (y - problem.denoise(y.view(shape), s[k]).flatten(1)) / s[k]
            N.append(s[k] * eps - torch.from_numpy(self.known.l(self.lam[k])) * y)
            if k and self.corrector:
                y = self.advance(before, N, k - 1, min(k + 1, self.order), new=1)
            before, y = y, self.advance(y, N, k, min(k + 1, self.order))
        return y.view(shape)

    def advance(self, y: Tensor, N: list[Tensor], k: int, nodes: int, new: int = 0) -> Tensor:
        """y after the interval k by the newest `nodes` of N, of which the first is at its start, or its end if new."""
        at = [k + new - i for i in range(nodes)]
        decay, rest, weights = self.weights(k, tuple(at))
        for j, w in zip(at, weights, strict=True):
            y = y - w[0] * N[j] + w[1]
        return decay * (y - rest)

    def weights(self, k: int, at: tuple[int, ...]) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """e^(-L), the integral of e^(L + S) B, and for each node e^(-S_j) and B_j times what g weighs there."""
        known, (low, high) = self.known, self.lam[k : k + 2]
        mid, half = (low + high) / 2, (high - low) / 2
        lam, mass = mid + half * POINTS, half * MASSES[:, None]
        L, S, B = known.L(low), known.S(low), known.B(low)
        E = mass * np.exp(known.L(lam) - L + known.S(lam) - S)
        rest = (E * np.exp(S) * (known.B(lam) - B)).sum(0)
        weights = []
        for j, values in zip(at, self.basis(lam, low, self.lam[list(at)]), strict=True):
            w = (E * values[:, None]).sum(0)
            weights.append((w * np.exp(S - known.S(self.lam[j])), w * np.exp(S) * (known.B(self.lam[j]) - B)))
        to = torch.from_numpy
        return to(np.exp(L - known.L(high))), to(rest), [(to(a), to(b)) for a, b in weights]

    def basis(self, lam: np.ndarray, low: float, nodes: np.ndarray) -> list[np.ndarray]:
        """What g at each node weighs in the polynomial at lam."""
        if not (self.pseudo and len(nodes) == 3):
            return [
                np.prod([(lam - other) / (node - other) for other in np.delete(nodes, i)], axis=0) + 0 * lam
                for i, node in enumerate(nodes)
            ]
        first = int(np.flatnonzero(nodes == low)[0])  # the node at the interval's start comes first
        order = [first, *(i for i in range(3) if i != first)]
        a, b, c = nodes[order]
        d, bend = lam - a, (lam - a) ** 2
        found = {
            order[0]: 1 + d / (a - b) + bend / (a - b) / (a - c),
            order[1]: d / (b - a) + bend / (b - a) / (b - c),
            order[2]: bend / (c - a) / (c - b),
        }
        return [found[i] for i in range(3)]


@dataclass(frozen=True)
class DPMSolverV3(Learned):
    """DPM-Solver-v3, by multistep predictor and corrector."""

    nodes: int = 240
    """Levels of the statistics, less one."""
    orders: tuple[int, ...] = (2, 3)
    correctors: tuple[bool, ...] = (False, True)
    pseudo: tuple[bool, ...] = (False, True)
    name: ClassVar[str] = "DPM-Solver-v3"
    source: ClassVar[str] = "Zheng et al. 2023"

    def fit(self, task: Task) -> Predicted:
        """With the statistics of the pilots, and what does best for them."""
        task.enough(self)
        known = Statistics.of(task, self.nodes)
        grids = [make(task.sde, task.calls) for make in grid.usual(task.around).values()]
        tried = [
            Predicted(known, ts, task.sde.log_snr(ts).numpy(), order, corrector, pseudo)
            for ts, order, corrector, pseudo in product(grids, self.orders, self.correctors, self.pseudo)
            if order == 3 or not pseudo
        ]
        off = [float(distance(one(task.problem, task.starts), task.ends).mean()) for one in tried]
        return tried[int(np.nanargmin(off))]
