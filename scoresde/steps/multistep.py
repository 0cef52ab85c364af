"""Multistep exponential integrators: a predictor of Adams and Bashforth's kind, a corrector of Adams and Moulton's.

The predictor extends the polynomial through the last q over the next interval. Once q is known at its end, a corrector
redoes the interval with the polynomial through that as well; the network is not asked again (predict, evaluate,
correct). Both are linear in q, and in `exponential`'s variables a correction is carried on as the state is. So the
corrected method is a multistep method without corrector whose weights are, on the interval n,

    w_n = predictor_n + decay_n (corrector_{n-1} - predictor_{n-1}),

and every member of the family is the same loop: one call of the network, one weighted sum.

Start-up: without a corrector, interval n < order - 1 has only n + 1 nodes. For order 3 the first interval is corrected
with two nodes, for order 4 it is taken in three stages (two further calls), and the second is corrected with three, so
that every error at the start is O(h^order). The orders just rise where `startup` says so, on the reverse SDE, whose
strong order is 1 anyway, with published formulas, and on a grid of no more intervals than nodes, where nothing after a
correction of so large a step would make up for it.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..process import LinearSDE, Reverse
from ..reference import DATA, NOISE, Reference
from ..shapes import count
from .ancestral import Ancestral
from .euler import needs_flow
from .exponential import Centred, EqualSteps, Exponential, InLogSNR, InSigma, Interpolation, Interval, InTime, stages_of
from .singlestep import THIRD, Line, PseudoRungeKutta, substeps
from .startup import FullOrder, Rising, Staged, StartUp

LONGER = 1000
"""The factor in lambda by which steps may grow: what is not smooth in q, such as what a corrector changes in the state,
is extended by the slope over the last step, so that it grows by as much.
"""


@dataclass(frozen=True)
class Multistep(Exponential):
    """An exponential Adams method, on the flow or on the reverse SDE.

    predictor: nodes of the predictor, 1 to 4. corrector: nodes of the corrector with the new one, 2 to 5; 0 for none.
    around: what is solved exactly. interpolation: of q between nodes. analytic: take q = 0 at the first node without
    asking the network, which is right where the noise hides everything but the data's mean and variance, and saves a
    call. taper: lower the orders over the last intervals to 1, as the code of DPM-Solver does in few steps; an interval
    to sigma = 0 is the last, and of order 1 anyway. startup: of a method without corrector on the flow; with a
    published interpolation `FullOrder()` is `Rising()`. through: take an interval to sigma = 0 as any other, with all
    nodes, instead of alpha_s E[x_0 | x_t]; of noise prediction on the flow alone, whose polynomials in sigma/alpha or t
    go on to there.

    n intervals make n calls, n - 1 if `analytic`, n + 2 with predictor 4 on the flow if n > 4, one more for every
    further stage of `Staged`. Raises ValueError for orders that do not exist, for a corrector with weights that are
    a predictor's, and for a startup or `through` where they are not as stated.
    """

    strong: ClassVar[float] = 1.0
    predictor: int = 2
    corrector: int = 0
    around: Reference = DATA
    interpolation: Interpolation = InLogSNR()
    analytic: bool = False
    taper: bool = False
    startup: StartUp = FullOrder()
    through: bool = False

    def __post_init__(self) -> None:
        kinds = {"around": Reference, "interpolation": Interpolation, "startup": StartUp}
        kinds |= {"analytic": bool, "taper": bool, "through": bool}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} must be a {kind.__name__}, got {getattr(self, name)!r}")
        if count("predictor", self.predictor) > 4:
            raise ValueError(f"predictor must be 1, 2, 3 or 4, got {self.predictor}")
        if count("corrector", self.corrector, least=0) > 5 or self.corrector == 1:
            raise ValueError(f"corrector must be 0, for none, or 2 to 5 nodes, got {self.corrector}")
        stages = isinstance(self.startup, Staged)
        if self.analytic and (stages or (self.predictor == 4 and not self.corrector)):
            what = f"startup {self.startup!r}" if stages else "predictor 4"
            raise ValueError(f"analytic must be False with {what}, whose first interval needs the network")
        if self.corrector and stages:
            raise ValueError(f"startup must not be Staged with a corrector, got {self.startup!r}")
        if self.through and not (self.around.std == math.inf and isinstance(self.interpolation, InSigma | InTime)):
            what = "through must be False but for noise prediction in sigma/alpha or t"
            raise ValueError(f"{what}, got {self.around!r} and {self.interpolation!r}")
        if self.corrector and isinstance(self.interpolation, EqualSteps):
            raise ValueError("interpolation must not be EqualSteps() with a corrector: its weights are a predictor's")

    @property
    def fixed(self) -> bool:  # type: ignore[override]
        """It is, unless it is of one step."""
        return self.predictor > 1 or self.corrector > 0 or self.analytic

    @property
    def upwards(self) -> bool:  # type: ignore[override]
        """It is, unless the first node is taken to be that of noise."""
        return not self.analytic

    @property
    def order(self) -> int:  # type: ignore[override]
        """Of convergence on the flow: that of the predictor, one more with a corrector of more nodes. The first
        interval, corrected with two nodes, lets no corrected method be of order 4; `taper` and published formulas let
        none be of order 3. (`analytic` supposes that q is 0 at the first node.)
        """
        k, m = self.predictor, self.corrector
        order = min(max(2, m), k + 1, 3) if m else self.startup.order(k)
        return min(order, 2) if self.taper or self.interpolation.published else order

    @property
    def weak(self) -> float:  # type: ignore[override]
        """2 with two nodes or a corrector. What an interval's noise does to q inside it is left out, but the line
        through two nodes adds it in the next, and a corrector at once; noise that does not depend on x asks no more.
        """
        return float(min(self.order, 2))

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """Unless the method is of one step, each interval begins where the last one ends, and none is `LONGER` times as
        long in lambda as that. eta is 0 for a start by stages, and to go through to sigma = 0.
        """
        if isinstance(self.startup, Staged) or (self.through and (p.sde.var(s) == 0).any()):
            needs_flow(p)
        if self.fixed and not torch.equal(t[1:], s[:-1]):
            raise ValueError(f"{self} needs intervals that follow one another, and these do not")
        if self.predictor > 1:
            h = (p.sde.log_snr(s) - p.sde.log_snr(t))[p.sde.var(s) > 0].abs()
            if (wrong := h[1:] > LONGER * h[:-1]).any():
                k = int(wrong.nonzero()[0])
                raise ValueError(
                    f"ts must have no two times as close as {t[k]:.9g} and {s[k]:.9g}: the next step is "
                    f"{float(h[k + 1] / h[k]):.3g} times as long in lambda, and a multistep method would extend "
                    "over it what it saw on so short a one. Leave one of the two out"
                )

    def plan(self, p: Reverse, t: Tensor, s: Tensor, hops: int = 0) -> list[Interval]:
        """The coefficients of each interval from t to s, (n,)."""
        sde, n, low, high, eta = p.sde, len(t), p.sde.log_snr(t), p.sde.log_snr(s), p.eta_at(t)
        lam = torch.cat([low, high[-1:]])
        width = max(self.predictor + bool(self.corrector), self.corrector)
        weights = _Weights(sde, lam, self.interpolation, self.around.masses(low, high, eta), width)
        decay = self.around.decay(low, high, eta)
        steps = torch.arange(n, device="cpu")
        nodes = (steps + 1).clamp_max(self.predictor)
        if self.taper:
            nodes = torch.minimum(nodes, n + hops - steps)
        predicted = weights(steps, nodes)
        start = n > self.predictor and self._full(p)
        again, redone = self._corrected(nodes, start)
        correction = torch.zeros(n + 1, width, dtype=torch.float64, device="cpu")
        correction[redone + 1] = weights(redone, again, new=1)
        correction[redone + 1, 1:] -= predicted[redone, : width - 1]
        w = predicted + decay[:, None] * correction[:-1]

        alpha, (A, B, C) = sde.alpha(s), self.around.q(sde, t)
        if self.analytic:
            A[0] = B[0] = C[0] = 0.0
        a, k = alpha / sde.alpha(t) * decay, alpha * (1 - decay)
        std = alpha * self.around.noise(low, high, eta)
        rows = stages_of(t, (A, B, C), a, k, alpha[:, None] * w)
        ends = zip(t.tolist(), s.tolist(), rows, std.tolist(), strict=True)
        plan = [Interval(t_n, s_n, [row], e, width - 1) for t_n, s_n, row, e in ends]
        begin = Staged(THIRD) if self.predictor == 4 and start else self.startup
        if isinstance(begin, Staged):
            m = min(begin.intervals, int(high.isfinite().sum()))
            every = substeps(self.around, sde, t[:m], s[:m], begin.tableau)
            plan[:m] = [now._replace(stages=stages) for now, stages in zip(plan, every, strict=False)]
        return plan

    def _full(self, p: Reverse) -> bool:
        """Whether the start is to be of full order, if there are intervals enough."""
        return self.startup == FullOrder() and not (p.eta or self.corrector or self.interpolation.published)

    def _corrected(self, nodes: Tensor, start: bool) -> tuple[Tensor, Tensor]:
        """The nodes of each correction, and the intervals that are corrected: those that have a next one, at whose
        start their end is evaluated; or the one of the start-up.
        """
        rows = torch.arange(len(nodes) - 1, device="cpu")
        if self.corrector:
            lowered = (rows + 1).clamp_max(self.predictor) - nodes[:-1]
            return torch.minimum(rows + 2, self.corrector - lowered).clamp_min(2), rows
        rows = rows[rows == self.predictor - 3] if start else rows[:0]
        return rows + 2, rows


class _Weights(NamedTuple):
    """What q weighs on intervals between the nodes lam (n + 1,), whose quadrature is that of `Reference.masses`."""

    sde: LinearSDE
    lam: Tensor
    interpolation: Interpolation
    quadrature: tuple[Tensor, Tensor]
    width: int

    def __call__(self, rows: Tensor, nodes: Tensor, new: int = 0) -> Tensor:
        """The weights of q, newest first, on the intervals `rows` through as many nodes, the newest being that at the
        interval's start, or at its end if new is 1: (len(rows), width).
        """
        w = torch.zeros(len(rows), self.width, dtype=torch.float64, device="cpu")
        for k in nodes.unique().tolist():
            at = rows[nodes == k]
            known = self.lam[at[:, None] + new - torch.arange(k, device="cpu")]
            w[nodes == k, :k] = self.interpolation(self.sde, known, *(c[at] for c in self.quadrature))
        return w


def DDIM() -> Ancestral:
    """DDIM (Song, Meng & Ermon 2021, eq. 12): the step of DDPM on the process with their eta, 0 on the flow."""
    return Ancestral()


def DPMSolverPP(order: int = 2, taper: bool = False, interpolation: Interpolation = Centred()) -> Multistep:
    """Multistep DPM-Solver++ of order 1, 2 or 3 (Lu et al. 2022b, Algorithm 2); with eta > 0, SDE-DPM-Solver++ (there,
    appendix; for third order with the reverse SDE's weights).

    interpolation: `HalfBent()` gives the third-order formula of widely used code, which is of second order.
    """
    if count("order", order) > 3:
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    return Multistep(order, interpolation=interpolation, taper=taper)


def UniPC(order: int = 2, taper: bool = False, interpolation: Interpolation = Centred()) -> Multistep:
    """UniPC of order 1, 2 or 3, in data prediction with B(h) = e^h - 1 (Zhao et al. 2023, Algorithms 1 and 2); its
    corrector raises the order by one, to 3 at most.

    interpolation: `BH1()` gives B(h) = h, which is another method where two nodes are used, at the start too.
    """
    if count("order", order) > 3:
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    return Multistep(order, order + 1, interpolation=interpolation, taper=taper)


def DEIS(order: int = 3, startup: StartUp = FullOrder()) -> Multistep:
    """tAB-DEIS (Zhang & Chen 2023, eq. 15) through `order` nodes, 1 to 4: eps, by polynomials in t.

    startup: `Rising()` gives the published start, after which it is of second order.
    """
    return Multistep(order, around=NOISE, interpolation=InTime(), startup=startup)


def IPNDM(order: int = 4, interpolation: Interpolation = InSigma()) -> Multistep:
    """iPNDM (Zhang & Chen 2023, Algorithm 3, after Liu et al. 2022) through `order` nodes, 1 to 4: eps, by polynomials
    in sigma/alpha.

    interpolation: `EqualSteps()` gives the published formula, with the weights of equal steps on any grid.
    """
    return Multistep(order, around=NOISE, interpolation=interpolation)


def LMS(order: int = 4) -> Multistep:
    """The linear multistep method of k-diffusion and diffusers through `order` nodes, 1 to 4: `IPNDM` whose orders just
    rise, and which goes on with all nodes to sigma = 0: in these variables the rhoAB-DEIS of Zhang & Chen 2023. Of
    second order by its start, beyond one node.
    """
    return Multistep(order, around=NOISE, interpolation=InSigma(), startup=Rising(), through=True)


def PNDM(runge_kutta: bool = True) -> Multistep:
    """PNDM (Liu et al. 2022, Algorithm 2): three intervals by pseudo Runge-Kutta, of four calls each, then Adams and
    Bashforth's weights for equal steps through four nodes, with all of them to sigma = 0; eps, on any grid.

    runge_kutta: False starts with one interval by Heun's method instead, and nodes that rise from two, as the variant
    of latent diffusion models (`skip_prk_steps` of diffusers).
    """
    startup = Staged(PseudoRungeKutta(), 3) if runge_kutta else Staged(Line(1.0, centred=True))
    return Multistep(4, 0, NOISE, EqualSteps(), startup=startup, through=True)


def SASolver(predictor: int = 3, corrector: int = 4, interpolation: Interpolation = InLogSNR()) -> Multistep:
    """SA-Solver (Xue et al. 2023, Algorithm 1): predictor and corrector through that many nodes, for any eta, their
    tau; on an interval of noise levels with `Between`. predictor: 1 to 4; corrector: 2 to 5, 0 for none.

    interpolation: `BH1()` integrates lines as widely used code does.
    """
    return Multistep(predictor, corrector, interpolation=interpolation)


def GaussianReference(around: Reference) -> Multistep:
    """Two nodes corrected with three around Gaussian data, `Reference.fit(data)`, the first node without a call."""
    return Multistep(2, 3, around, analytic=True)
