"""Exponential integrators: what is linear is solved exactly, the rest is interpolated.

In x~ = x/alpha, sigma~ = sigma/alpha and lambda = -log sigma~, the reverse processes of all linear SDEs are one,

    dx~ = (1 + eta^2) (D - x~) dlambda + eta sqrt(2) sigma~ dw,    D = E[x_0 | x_t].

Were the data N(m, c^2 I), D would be m + c^2/S^2 (x~ - m) with S = sqrt(c^2 + sigma~^2). Let R be D less that. Solving
the linear part (variation of constants) leaves, from lambda_0 to lambda_1, with e = 1 + eta^2,

    x~_1 = m + (S_1/S_0)^e (x~_0 - m) + e int (S_1/S)^e R dlambda + S_1 sqrt(1 - (S_1/S_0)^(2 eta^2)) z,

exactly but for how z depends on the path. An integrator interpolates q = R/g, which it knows where the network was
asked, by polynomials, and integrates them against g (S_1/S)^e exactly. With g = sigma~/S, in which q is the output of
the network of Karras et al. (2022), both customary forms are members: c = 0 interpolates D (data prediction: Lu et al.
2022b), and c = infinity -eps (noise prediction: Lu et al. 2022a). A step is exact for data that are N(m, c^2 I).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..noise import Noise
from ..ode import BASHFORTH
from ..process import LinearSDE, Reverse
from ..reference import DATA, MASSES, POINTS, Reference
from .step import Prepared, Step, off_grid


class Interpolation(ABC):
    """A polynomial through what is known of q, in some variable u, and its integral."""

    published: ClassVar[bool] = False
    """Whether it is a formula as widely used code has it, where that differs from the mathematics. A method then starts
    plainly too, with as many nodes as there are, and is of second order at most."""

    @abstractmethod
    def u(self, sde: LinearSDE, lam: Tensor) -> Tensor:
        """The variable at lambda."""

    def __call__(self, sde: LinearSDE, nodes: Tensor, lam: Tensor, mass: Tensor) -> Tensor:
        """The weights (N, k) of q at nodes (N, k), newest first, in the integrals with mass (N, G) at lam (N, G)."""
        return (lagrange(self.u(sde, nodes), self.u(sde, lam)) * mass[:, None]).sum(-1)


def lagrange(nodes: Tensor, u: Tensor) -> Tensor:
    """Lagrange's polynomials of nodes (N, k) at u (N, G) -> (N, k, G)."""
    k = nodes.shape[1]
    factors = []
    for j in range(k):
        other = nodes[:, [i for i in range(k) if i != j]]
        factors.append(((u[:, None] - other[..., None]) / (nodes[:, j, None] - other)[..., None]).prod(1))
    return torch.stack(factors, 1)


@dataclass(frozen=True)
class InLogSNR(Interpolation):
    """A polynomial in u = lambda, the log signal-to-noise ratio."""

    def u(self, sde: LinearSDE, lam: Tensor) -> Tensor:
        return lam


@dataclass(frozen=True)
class InTime(Interpolation):
    """u = t (the tAB-DEIS of Zhang & Chen 2023)."""

    def u(self, sde: LinearSDE, lam: Tensor) -> Tensor:
        return sde.time(lam)


@dataclass(frozen=True)
class InSigma(Interpolation):
    """u = sigma~ (the rhoAB-DEIS of Zhang & Chen 2023)."""

    def u(self, sde: LinearSDE, lam: Tensor) -> Tensor:
        return (-lam).exp()


@dataclass(frozen=True)
class EqualSteps(InSigma):
    """Adams and Bashforth's weights for equal steps whatever the nodes, as iPNDM has them (Liu et al. 2022; Zhang &
    Chen 2023): of second order on any other grid, and of first where the steps do not change gradually.
    """

    published: ClassVar[bool] = True

    def __call__(self, sde: LinearSDE, nodes: Tensor, lam: Tensor, mass: Tensor) -> Tensor:
        return mass.sum(1, keepdim=True) * torch.tensor(
            BASHFORTH[nodes.shape[1] - 1], dtype=torch.float64, device="cpu"
        )


@dataclass(frozen=True)
class Centred(InLogSNR):
    """u = lambda, and a line is taken at the middle of the interval instead of being integrated, as in the published
    formulas of DPM-Solver-2 (Lu et al. 2022a), DPM-Solver++(2M) (Lu et al. 2022b) and UniPC (Zhao et al. 2023,
    B(h) = e^h - 1).
    """

    def __call__(self, sde: LinearSDE, nodes: Tensor, lam: Tensor, mass: Tensor) -> Tensor:
        if nodes.shape[1] == 2:
            return lagrange(nodes, lam.mean(1, keepdim=True))[..., 0] * mass.sum(1, keepdim=True)
        return super().__call__(sde, nodes, lam, mass)


@dataclass(frozen=True)
class BH1(Centred):
    """`Centred` with the slope of a line integrated as if all lambda weighed what the interval's end does: UniPC with
    B(h) = h (Zhao et al. 2023, theorem 3.1). In data prediction it adds alpha h/2 (D_1 - D_0) to the step with D_0.
    """

    def __call__(self, sde: LinearSDE, nodes: Tensor, lam: Tensor, mass: Tensor) -> Tensor:
        if nodes.shape[1] != 2:
            return super().__call__(sde, nodes, lam, mass)
        half = (lam[:, -1] - lam[:, 0]) / (POINTS[-1] - POINTS[0])
        end = (mass / MASSES * lagrange(POINTS[None], torch.ones_like(POINTS[None, :1]))[..., 0]).sum(1)  # h/2 of it
        tilt = 2 * half * end / (nodes[:, 0] - nodes[:, 1])
        start = lagrange(nodes, lam.mean(1, keepdim=True) - half[:, None])[..., 0]
        return start * mass.sum(1, keepdim=True) + torch.stack([tilt, -tilt], 1)


@dataclass(frozen=True)
class HalfBent(Centred):
    """`Centred` with the second derivative of the parabola through three nodes halved, as widely used code has it,
    which takes the second divided difference for the derivative: of second order.
    """

    published: ClassVar[bool] = True

    def __call__(self, sde: LinearSDE, nodes: Tensor, lam: Tensor, mass: Tensor) -> Tensor:
        right = super().__call__(sde, nodes, lam, mass)
        if nodes.shape[1] != 3:
            return right
        bend = 1 / torch.stack([(nodes[:, [j]] - nodes[:, [i for i in range(3) if i != j]]).prod(1) for j in range(3)])
        return right - bend.T / 2 * ((lam - nodes[:, :1]).square() * mass).sum(1, keepdim=True)


class Stage(NamedTuple):
    """Ask the network at time t and x; q = A x + B score + C mean, 0 without asking if B is 0. Then x becomes
    a times x at the start of the interval, plus k mean, plus what the q known weigh, newest first.
    """

    t: Tensor
    A: float
    B: float
    C: float
    a: float
    k: float
    w: tuple[float, ...]


def stages_of(t: Tensor, ask: tuple[Tensor, Tensor, Tensor], a: Tensor, k: Tensor, w: Tensor) -> list[Stage]:
    """One stage a row of t, ask = (A, B, C), a, k, all (n,), and w (n, m)."""
    columns = zip(t, *(c.tolist() for c in (*ask, a, k, w)), strict=True)
    return [Stage._make((*row[:-1], tuple(row[-1]))) for row in columns]


class Kick(NamedTuple):
    """Noise of [t_0, t] and standard deviation std in the state of the stages after the first, t_0 the interval's
    start; times `on` it is in the result.
    """

    t: Tensor
    std: float
    on: float


class Interval(NamedTuple):
    """From time t to s by stages, and then noise of standard deviation std, which is that from `kick` on if there is
    one. kept: the q of the first stage is kept for the intervals to come, so that each interval finds this many.
    """

    t: float
    s: float
    stages: Sequence[Stage]
    std: float
    kept: int
    kick: Kick | None = None


Seen = tuple[Tensor, ...]
Ask = Callable[[Stage, Tensor], Tensor]


def advance(now: Interval, x: Tensor, known: Seen, mean: Tensor | None, q: Ask) -> tuple[Tensor, Seen]:
    """x after an interval but for its noise, and the q that are known then: the one recursion of all these methods.

    q: from a stage and the state there; mean: the reference's, None if it is 0.
    """
    y, seen = x, known
    for i, stage in enumerate(now.stages):
        seen = (q(stage, y), *seen)
        if i == 0:
            known = seen[: now.kept]
        y = stage.a * x
        if mean is not None:
            y = y.add_(mean, alpha=stage.k)
        for w, value in zip(stage.w, seen, strict=False):
            y = y.add_(value, alpha=w)
    return y, known


def asking(p: Reverse, mean: Tensor | None) -> Ask:
    """q = A x + B score + C mean, 0 where the network is not to be asked."""

    def q(stage: Stage, y: Tensor) -> Tensor:
        if not stage.B:
            return torch.zeros_like(y)
        score = p.ask(y, stage.t)
        value = (stage.A * y).add_(score, alpha=stage.B) if stage.A else stage.B * score
        return value if mean is None else value.add_(mean, alpha=stage.C)

    return q


class Exponential(Prepared):
    """A step whose coefficients follow from its intervals: a subclass says them. An interval that ends where sigma = 0
    is x_s = alpha_s E[x_0 | x_t].
    """

    around: Reference
    through: bool = False
    """Whether it plans intervals to sigma = 0 itself."""

    @abstractmethod
    def plan(self, p: Reverse, t: Tensor, s: Tensor, hops: int = 0) -> list[Interval]:
        """All that there is to compute for intervals (n,), but for what the network says; hops: how many others there
        are, to sigma = 0.
        """

    def prepare(self, p: Reverse, t: Tensor, s: Tensor) -> "Plan":
        """With its coefficients, and no memory."""
        clean = (p.sde.var(s) == 0) & (not self.through)
        made = iter(self.plan(p, t[~clean], s[~clean], int(clean.sum())) if not clean.all() else [])
        every = zip(t, s, clean.tolist(), strict=True)
        return Plan(self, [last_hop(p.sde, a, b) if last else next(made) for a, b, last in every])


def last_hop(sde: LinearSDE, t: Tensor, s: Tensor) -> Interval:
    """x_s = alpha_s E[x_0 | x_t], whatever the reference's mean."""
    A, B, _ = (float(v) for v in DATA.q(sde, t))
    return Interval(float(t), float(s), [Stage(t, A, B, 0.0, 0.0, 0.0, (float(sde.alpha(s)),))], 0.0, 0)


class Plan(Step):
    """A step at work on its intervals."""

    def __init__(self, step: Exponential, plan: list[Interval]) -> None:
        self.step, self.plan, self.next = step, plan, 0
        self.known: Seen = ()
        self.mean: Tensor | None = None

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        now = self.plan[self.next] if self.next < len(self.plan) else None
        if now is None or now.t != float(t) or now.s != float(s):
            raise off_grid(self.step, t, s)
        self.next += 1
        mean, kick = self._mean(x), now.kick
        q = asking(p, mean)
        z = None if kick is None else noise(x, t, kick.t)
        if kick is not None and z is not None:
            ask, q = q, lambda stage, y: ask(stage, y if stage is now.stages[0] else y.add(z, alpha=kick.std))
        y, self.known = advance(now, x, self.known, mean, q)
        if kick is not None and z is not None:
            t, y = kick.t, y.add_(z, alpha=kick.on * kick.std)
        return y.add_(noise(x, t, s), alpha=now.std) if now.std else y

    def _mean(self, x: Tensor) -> Tensor | None:
        """The reference's mean, where x is; None if it is 0."""
        mean = self.step.around.mean
        if self.mean is None and (isinstance(mean, Tensor) or mean):
            self.mean = torch.as_tensor(mean).to(x)
            if self.mean.ndim and self.mean.shape != x.shape[1:]:
                self.step.around.checked(x.shape[1:])
        return self.mean
