"""Decoupled annealing posterior sampling."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..noise import Noise
from ..process import Reverse
from ..reference import Reference
from ..shapes import count, like, number, recordable, recording
from ..steps import DDIM, Step
from ..steps.step import end
from .maps import Linear
from .measure import Observation, level, linear, observation, own_noise
from .pseudo import spread


@dataclass(frozen=True, eq=False)
class DAPS(Step):
    """x_0 given x_t and y anew at each time, then noised: alpha_s x_0 + sigma_s z (Zhang, Chu, Berner, Meng, Anandkumar
    & Song 2024, algorithm 1). x_0 is drawn from N(m, r^2 I) p(y | x_0), where m is the end of the flow from x_t by
    `calls` network calls, DDIM at even steps of log SNR down to t_min and then E[x_0 | x_t]; r^2 as in `pigdm`, with
    `around` as there: that of a large deviation is the paper's r = sigma/alpha.

    n = 0: that draw is exact, for a linear A. Else it is by n steps of Langevin dynamics from m,

        x + h grad log p(x | m, y) + sqrt(2h) z,    h = size/(1/r^2 + L/std^2),

    without a test, whose law tends to that for small sizes and many steps; L is the largest |J^T u|^2 of each sample so
    far, J the derivative of A and u the direction of y - A(x).

    With one call m = E[x_0 | x_t], and the step is exact for data N(m, c^2 I). The end of the flow is no mean, but has
    the variance of the data already, to which each step adds r^2. (The paper takes 5.) Raises ValueError unless the
    arguments are as stated, A is linear or n >= 1, and std > 0 where n >= 1; for the eta of a process other than 1, as
    the noise is the step's own; and for the noise of a path, which has none for x_0.
    """

    seen: Observation
    calls: int = 1
    n: int = 0
    size: float = 0.1
    around: Reference | None = None

    def __post_init__(self) -> None:
        count("calls", self.calls), number("size", self.size, above=0, below=2)
        if not isinstance(observation(self.seen).A, Linear):
            count("n where A is not linear", self.n)
        if count("n", self.n, least=0):
            number("std", self.seen.std, above=0)

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """eta of the process is 1."""
        own_noise(p)

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        r2 = spread(self.around, p.score, x, level(p.sde, t, x)[1])
        x_0 = (self._langevin if self.n else self._exactly)(self._end(p, x, t), r2, lambda: noise(x, t, t))
        return float(p.sde.alpha(s)) * x_0 + float(p.sde.sigma(s)) * noise(x, t, s)

    def _end(self, p: Reverse, x: Tensor, t: Tensor) -> Tensor:
        """Where the flow goes from x_t."""
        if self.calls == 1 or t <= p.sde.t_min:
            return p.denoise(x, t)
        q, low, high = replace(p, eta=0.0), float(p.sde.log_snr(t)), float(p.sde.log_snr(p.sde.t_min))
        lam = torch.linspace(low, high, self.calls, dtype=torch.float64, device="cpu")
        ts = torch.cat([t[None], p.sde.time(lam[1:])])
        return q.denoise(end(q, x, ts, DDIM()), ts[-1])

    def _exactly(self, m: Tensor, r2: Tensor, z: Callable[[], Tensor]) -> Tensor:
        """A draw without y, corrected by its own error (Matheron's rule)."""
        A, std2 = linear(self.seen), torch.full_like(r2, self.seen.std**2)
        x = m + like(r2.sqrt(), m) * z()
        draws = [z().flatten(1) for _ in range(-(-A.m // m[0].numel()))]
        off = self.seen.left(x) - self.seen.std * torch.cat(draws, 1)[:, : A.m]
        return x + like(r2, m) * A.adjoint(A.solve(off, r2, std2))

    def _langevin(self, m: Tensor, r2: Tensor, z: Callable[[], Tensor]) -> Tensor:
        x, bend, std2 = m, torch.zeros_like(r2), self.seen.std**2
        for _ in range(self.n):
            with recording():
                y = recordable(x).detach().requires_grad_()
                left = self.seen.left(y)
                (g,) = torch.autograd.grad(left.square().sum() / -2, y)  # J^T (y - A(x))
            square = left.detach().square().sum(1).clamp_min(torch.finfo(left.dtype).tiny)
            bend = torch.maximum(bend, g.flatten(1).square().sum(1) / square)
            h = self.size / (1 / r2 + bend / std2)
            x = x + like(h, x) * ((m - x) / like(r2, x) + g / std2) + like((2 * h).sqrt(), x) * z()
        return x
