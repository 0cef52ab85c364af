"""Solvers fitted by gradients through all of their calls: the loop, and the coordinates that it walks in.

A fit minimises the mean over pilots of log e, e being the distance of the solver's end from the teacher's, with Adam
(Kingma & Ba 2015), rates that fall along half a cosine to 0, and minibatches; the values that were best on pilots held
out are kept. log e, the loss of Shaul et al. (2024), lets all pilots count by their relative errors; with e itself,
which others minimise in some perceptual distance, medians were a quarter larger here and mean squares no smaller.
Adam's steps are of one length in every coordinate, so coordinates should have one scale, and rates are in units of the
median of e at the start, since a solver that starts near is to be moved by little:

    weights of known vectors    w = w_start + R v, where R is an inverse root of the vectors' Gram matrix on the pilots,
                                so that each coordinate moves the state by as much, in RMS, and no two the same way
    levels                      log s_k falls from the highest to the lowest in shares softmax(u) (Tong et al. 2025)

A gradient by a level needs the network's derivative by its time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .common import Problem
from .learned import Task

FLAT = 1e-7
"""The least eigenvalue of a Gram matrix that is walked along in full, in units of the largest."""


@dataclass(frozen=True)
class Descent:
    """steps of Adam on `batch` pilots each, with `checks` looks at the share `held` of all pilots, which is not walked
    on. log: whether the loss is log e, so that all pilots count by their relative errors, or e.
    """

    steps: int = 800
    batch: int = 64
    held: float = 0.25
    checks: int = 20
    log: bool = True

    def loss(self, e: Tensor) -> Tensor:
        """Of distances e (B,), per sample."""
        return e.log() if self.log else e

    def __call__(
        self,
        error: Callable[[Sequence[Tensor], Tensor], Tensor],
        values: Sequence[Tensor],
        rates: Sequence[float],
        task: Task,
        after: Callable[[Tensor], None] = lambda rows: None,
    ) -> list[Tensor]:
        """The values that are best on the pilots held out.

        error: (values, rows (B,)) -> e (B,) of those pilots. rates: of each value, at the start, for e of 1. after: is
        called with the rows of each step once gradients are known.
        """
        walked = [v.detach().clone().requires_grad_() for v in values]
        n = task.n - max(1, round(self.held * task.n))
        held = torch.arange(n, task.n)
        with torch.no_grad():
            unit = float(error(walked, held).median())
        adam = torch.optim.Adam([{"params": [v], "lr": r * unit} for v, r in zip(walked, rates, strict=True)])
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, self.steps))
        best, kept = math.inf, [v.detach().clone() for v in walked]
        for k in range(self.steps + 1):
            if k % max(1, self.steps // self.checks) == 0 or k == self.steps:
                with torch.no_grad():
                    now = float(self.loss(error(walked, held)).mean())
                if now < best:
                    best, kept = now, [v.detach().clone() for v in walked]
            if k < self.steps:
                rows = torch.randperm(n, generator=task.generator)[: self.batch]
                adam.zero_grad()
                self.loss(error(walked, rows)).mean().backward()
                for v in walked:
                    v.grad.nan_to_num_(0.0, 0.0, 0.0)  # of pilots that were thrown out of all bounds
                adam.step()
                falling.step()
                after(rows)
        return kept


class SoftTeacher:
    """The soft teacher of LD3 (Tong et al. 2025): a pilot may start anywhere within `radius`, in RMS and units of s_0,
    of where it does, and is moved there, at every step it is in, by a tenth of the radius down the loss. With radius 0
    pilots stay.
    """

    def __init__(self, task: Task, radius: float) -> None:
        self.starts, self.most = task.starts, radius * task.levels[0]
        self.moved = torch.zeros_like(task.starts).requires_grad_(radius > 0)

    def __call__(self, rows: Tensor) -> Tensor:
        """Where these pilots start."""
        return self.starts[rows] + self.moved[rows]

    @torch.no_grad()
    def after(self, rows: Tensor) -> None:
        """Move these pilots, whose gradients are known."""
        if self.moved.grad is None:
            return
        down = self.moved.grad[rows].flatten(1)
        to = self.moved[rows].flatten(1) - self.most / 10 * down / rms(down)
        self.moved[rows] = (to * (self.most / rms(to)).clamp_max(1.0)).view_as(self.starts[rows])
        self.moved.grad = None


def rms(rows: Tensor) -> Tensor:
    """The root mean square of each row, (B, d) -> (B, 1)."""
    return rows.square().mean(1, keepdim=True).clamp_min(1e-60).sqrt()


def denoise(problem: Problem, y: Tensor, s: Tensor) -> Tensor:
    """D of y = x/alpha at the level s (), with the derivative by s where that is asked for. No network is asked beyond
    T and t_min.
    """
    sde = problem.sde
    t = sde.time(-s.log()).clamp(sde.t_min, sde.T)
    alpha, var = sde.alpha(t), sde.var(t)
    told = t.expand(len(y)) if t.requires_grad else t
    return y + (var / alpha).to(y) * problem.score(y * alpha.to(y), told)


def levels(u: Tensor, high: float, low: float) -> Tensor:
    """len(u) + 1 levels from high to low, log s in shares softmax(u)."""
    fall = torch.cat([u.new_zeros(1), u.softmax(0).cumsum(0)])
    return (math.log(high) - fall * math.log(high / low)).exp()


def shares(s: Tensor) -> Tensor:
    """u of levels s, one less."""
    return (s[:-1] / s[1:]).log().log()


def roots(known: Tensor, used: Tensor) -> Tensor:
    """For each row of `used` (N, K), R (K, K) with R^T G R = I, G the Gram matrix of those vectors of known (B, *D, K)
    that are used, in the mean over samples and dimensions; R is less along directions in which G is nearly 0, and 0 for
    the others. v -> R v has (N, K) whitened coordinates.
    """
    rows = known.flatten(0, -2).double()
    gram = rows.T @ rows / len(rows)
    found = torch.zeros(len(used), *gram.shape, dtype=torch.float64)
    for R, at in zip(found, used, strict=True):
        values, vectors = torch.linalg.eigh(gram[at][:, at])
        k = at.nonzero()[:, 0]
        R[k[:, None], k] = vectors / values.clamp_min(FLAT * values[-1]).sqrt()
    return found


def gain(task: Task, s: Tensor) -> Tensor:
    """sqrt(1 + (s/c)^2), c the deviation of the data: how much larger a change of y at levels s is than the change of
    the end that it leads to, were the data Gaussian.
    """
    return (1 + (s / task.around.std) ** 2).sqrt()
