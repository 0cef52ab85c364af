"""How long Langevin dynamics takes at one noise level: the spectrum of its kernel on a line.

Whatever law x has, its difference to the stationary one falls with the second largest eigenvalue of the kernel to the
power of the number of steps: 1/(1 - |lambda_2|) steps or so, the relaxation time. Between modes that are apart it grows
as e to the height of the barrier, beyond what an eigenvalue near 1 can tell in floating point; there the time to cross
and come back is told by elimination of states without subtraction, which keeps all digits.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..process import Reverse, require_reverse
from ..shapes import as_time, count, inside, number
from ..steps import MALA, Langevin
from .law import NARROW, kernels, metropolis
from .line import LineLaw

WIDER = 1.5
"""How much further than the density the points reach, since unadjusted steps spread it."""
MOST = 4096
"""Points of a matrix."""


@dataclass(frozen=True)
class Mixing:
    """A chain on a line at equal steps x (n,): P (n, n), the probability to go from one point to another in a step."""

    x: Tensor
    P: Tensor

    @property
    def eigenvalues(self) -> Tensor:
        """(n,), complex128, from the largest in size on; the first is 1."""
        found = torch.linalg.eigvals(self.P)
        return found[found.abs().argsort(descending=True)]

    @property
    def gap(self) -> float:
        """1 - |lambda_2|, told to some 1e-14."""
        return 1 - float(self.eigenvalues[1].abs())

    @property
    def relaxation(self) -> float:
        """-1/log |lambda_2|, the steps in which the slowest difference falls by a factor e; infinite where the gap is
        below what can be told, 1e-12: there see `crossing`.
        """
        gap = self.gap
        return -1 / math.log1p(-gap) if gap > 1e-12 else math.inf

    def crossing(self, a: float, b: float) -> float:
        """The mean number of steps from the point next to a to that next to b and back, to all digits: 1/(pi_a P(b is
        reached before a is again)), by elimination of all other states (Grassmann, Taksar & Heyman 1985). Where it is
        long, it is the relaxation time over the product of the weights of the two sides. Raises ValueError unless a and
        b are different points.
        """
        i, j = (int((self.x - number(name, v)).abs().argmin()) for name, v in (("a", a), ("b", b)))
        if i == j:
            raise ValueError(
                f"a and b must be points more than {float(self.x[1] - self.x[0]):g} apart, got {a} and {b}"
            )
        order = [i, j, *(k for k in range(len(self.x)) if k not in (i, j))]
        P = self.P[order][:, order].clone()
        outs = torch.zeros(len(order), dtype=torch.float64)
        for k in range(len(order) - 1, 0, -1):
            outs[k] = P[k, :k].sum()
            if k > 1:
                P[:k, :k] += torch.outer(P[:k, k], P[k, :k]) / outs[k]
        weight = torch.ones(len(order), dtype=torch.float64)
        for k in range(1, len(order)):
            weight[k] = (weight[:k] @ P[:k, k]) / outs[k]
        return float(weight.sum() / (weight[0] * P[0, 1]))


def mixing(p: Reverse, t: Tensor | float, step: Langevin | MALA, within: LineLaw, n: int = 512) -> Mixing:
    """The kernel of one step of Langevin dynamics on a line, plain or with Metropolis' correction, at time t. within:
    where the stationary law lies, such as `tabulated(law.marginal(sde, t))`; the points reach half as far again. n: how
    many points at least; more are taken for short steps.

    Of N(m, C), plain steps e have the eigenvalues (1 - e/C)^k. Raises ValueError for what is no Langevin dynamics, for
    a rule that looks at the noise, and for steps so short that they need more than 4,096 points.
    """
    require_reverse(p), count("n", n, least=64, most=MOST)
    if not isinstance(step, Langevin | MALA):
        raise ValueError(f"step must be Langevin dynamics or MALA, got {step!r}")
    t = as_time(inside(t, p.sde.T))
    one = Langevin(step.step_size) if isinstance(step, MALA) else replace(step, n=1)
    step.check(p, t[None], t[None])
    middle, half = (within.low + within.high) / 2, WIDER * (within.high - within.low) / 2
    with torch.no_grad():
        for _ in range(2):
            x = torch.linspace(middle - half, middle + half, n, dtype=torch.float64)
            ((m, c),) = kernels(one, p, [x], t, t)
            need = math.ceil(2 * half * NARROW / float(c.min())) + 1
            if need <= n:
                break
            n = need
            if n > MOST:
                raise ValueError(f"step_size must be such that {MOST} points tell a step, not {n}, got {step}")
        if isinstance(step, MALA):
            P = torch.zeros(n, n, dtype=torch.float64)
            for rows, up, down, there in metropolis(p, step, one, t, x):
                i, j = torch.arange(n)[rows, None].expand_as(up), there.view_as(up).clamp_max(n - 1)
                P.index_put_((i, j), up, accumulate=True)
                P.index_put_((j, i), down, accumulate=True)
            P += torch.diag((1 - P.sum(1)).clamp_min(0))
        else:
            h = float(x[1] - x[0])
            P = h * (-(((x - m[:, None]) / c[:, None]) ** 2) / 2).exp() / (math.sqrt(2 * math.pi) * c[:, None])
    return Mixing(x, P)
