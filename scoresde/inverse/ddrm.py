"""Denoising diffusion restoration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import Noise
from ..process import Reverse
from ..shapes import number
from ..steps import Step
from .measure import Observation, linear, own_noise


@dataclass(frozen=True, eq=False)
class DDRM(Step):
    """One measured number at a time, in the right singular vectors v_i of A, of the singular values s_i (Kawar, Elad,
    Ermon & Song 2022, eqs. 7 and 8). With x~ = x/alpha, its noise r = sigma/alpha, x_0 = E[x_0 | x_t], and what y says
    of v_i . x_0, y_i with noise l_i = std/s_i, x~_s is

        x_0 + sqrt(1 - eta^2) r_s (x~_t - x_0)/r_t + eta r_s z             along what A does not see,
        x_0 + sqrt(1 - eta^2) r_s (y_i - x_0)/l_i + eta r_s z              where l_i > r_s,
        x_0 + eta_b (y_i - x_0) + sqrt(r_s^2 - eta_b^2 l_i^2) z            where l_i <= r_s.

    With x_0 itself in place of E[x_0 | x_t] each x~_s has the law N(x_0, r_s^2 I) over the noise of y too (proposition
    3.1), which is what makes the step one of the same objective (theorem 3.2). What A sees forgets x_t but for E[x_0 |
    x_t], so that it may begin at the prior. It is the step of no posterior. One call. eta and eta_b are those of the
    paper's experiments.

    Raises ValueError unless A is linear with A A^T known and eta and eta_b are in [0, 1]; for the eta of a process
    other than 1, as the noise is the step's own.
    """

    seen: Observation
    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        linear(self.seen).spectrum()
        number("eta", self.eta, least=0, most=1), number("eta_b", self.eta_b, least=0, most=1)

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """eta of the process is 1."""
        own_noise(p)

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        A = linear(self.seen)
        a, b = (float(p.sde.alpha(u)) for u in (t, s))
        r, w = float(p.sde.sigma(t)) / a, float(p.sde.sigma(s)) / b
        kept, x_0, z = (1 - self.eta**2) ** 0.5, p.denoise(x, t), noise(x, t, s)
        free = x_0 + kept * w / r * (x / a - x_0) + self.eta * w * z
        m, n, known = (A.coordinates(row) for row in (A(x_0), A(z), self.seen.rows(x)))
        far = (self.seen.std / A.spectrum()[0].sqrt()).to(m)
        less = m + kept * w * (known - m) / far.clamp_min(1e-30) + self.eta * w * n
        more = m + self.eta_b * (known - m) + (w**2 - (self.eta_b * far) ** 2).clamp_min(0).sqrt() * n
        along = torch.where(far > w, less, more) - A.coordinates(A(free))
        return b * (free + A.embed(along))
