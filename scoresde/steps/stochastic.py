"""Steps for eta > 0: ancestral sampling by any step of the flow, and two stages on one path."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..noise import Noise
from ..process import Reverse
from ..reference import DATA, Reference
from ..shapes import number
from .exponential import Exponential, Interval, Kick
from .singlestep import DPMSolverPP2S, Line, substeps
from .step import Prepared, Step, Wrapping, predictor


def farther(p: Reverse, t: Tensor, s: Tensor) -> Tensor:
    """lambda at u < s, from where as much noise leads back to s as eta adds from t to s: sigma~_u^2 = sigma~_s^2
    (1 - eta^2 (1 - sigma~_s^2/sigma~_t^2)), the eta of DDIM (Song, Meng & Ermon 2021, eq. 16); at t = 0 at most.
    """
    low, high = p.sde.log_snr(t), p.sde.log_snr(s)
    there = high - torch.log1p(p.eta_at(t) ** 2 * torch.expm1(2 * (low - high))) / 2
    return torch.minimum(there, p.sde.log_snr(torch.zeros_like(t)))


def there_and_back(p: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(u, a, std) of the intervals from t to s: down to u, which is s where there is no noise, and x_s = a x_u + std z
    back.
    """
    noisy = (p.sde.var(s) > 0) & (torch.as_tensor(p.eta_at(t), device="cpu") > 0)
    u = torch.where(noisy, torch.minimum(p.sde.time(farther(p, t, s)).clamp_min(0), s), s)
    a, v = p.sde.transition(s, u)
    return u, a, v.sqrt()


def and_back(step: Exponential, p: Reverse, t: Tensor, s: Tensor) -> list[Interval]:
    """The intervals of a multistep method on the flow from t to u, and by the forward transition x_s | x_u back to s.
    The nodes are still those at t.
    """
    u, a, std = there_and_back(p, t, s)
    made = []
    plan = step.plan(replace(p, eta=0.0), t, u)
    for now, *to in zip(plan, s.tolist(), a.tolist(), std.tolist(), strict=True):
        at, c, loud = to
        *first, last = now.stages
        last = last._replace(a=c * last.a, k=c * last.k, w=tuple(c * w for w in last.w))
        made.append(now._replace(s=at, stages=[*first, last], std=loud))
    return made


@dataclass(frozen=True)
class Renoised(Prepared):
    """Farther than s on the flow, and back by noise: ancestral sampling by any step of the flow, for 0 <= eta <= 1.

    `step` goes on the flow to the time u < s with sigma~_u^2 = sigma~_s^2 (1 - eta^2 (1 - sigma~_s^2/sigma~_t^2)), and
    the forward transition x_s | x_u draws the rest. Wrapping `Ancestral()` it is that step, around `DPMSolver(2)` the
    dpm_2_ancestral and around `DPMSolverPP2S()` the dpmpp_2s_ancestral of k-diffusion. Where `step` solves the flow
    exactly all marginals are exact, so begun at p_t its weak order is that of the step. Of a process that has noise at
    t = 0, such as `VE`, u is 0 where it would be before that, and less noise brings back from there: none to t = 0
    itself. The hop to sigma_s = 0 is the step's own. Raises ValueError for a multistep method, whose memory does not
    outlast noise, and when used for eta > 1.
    """

    step: Step = DPMSolverPP2S()
    noisy: ClassVar[bool] = True
    strong: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if predictor(self.step).fixed:
            raise ValueError(f"step must take any interval, as a method of one step does, got {self.step!r}")

    @property
    def order(self) -> int | None:  # type: ignore[override]
        """That of the step."""
        return self.step.order

    @property
    def weak(self) -> float | None:  # type: ignore[override]
        """That of the step, of the marginals."""
        return None if self.step.order is None else float(self.step.order)

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """eta is at most 1."""
        number("eta", float(torch.as_tensor(p.eta_at(t), dtype=torch.float64, device="cpu").max()), most=1)

    def prepare(self, p: Reverse, t: Tensor, s: Tensor) -> Step:
        """With `step` started on the intervals to u."""
        u, a, std = there_and_back(p, t, s)
        flow = Reverse(p.sde, p.score, 0.0)
        return _Renoised(self, t, s, zip(u, a.tolist(), std.tolist(), strict=True), self.step.start(flow, t, u))


class _Renoised(Wrapping):
    """A step `inner` to u, then (a, std) of x_s | x_u."""

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        u, a, std = self.at(t, s)
        y = self.inner(Reverse(p.sde, p.score, 0.0), x, t, u, noise)
        return (a * y).add_(noise(x, t, s), alpha=std) if std else y


@dataclass(frozen=True)
class TwoStage(Exponential):
    """An exponential method of two stages on the reverse SDE, for any eta, at the part c2 of the interval in lambda.

    The first reaches the time m there with the noise of [t, m]; the line through both q, taken at the middle of the
    interval, is then integrated from t, and the noise of [t, s] is that of [t, m], carried on as the state is, and that
    of [m, s]. So both are on one path, without which it would be of weak order 1 alone. On the flow it is
    `SingleStep(Line(c2, centred=True), around)`. A step is exact for data that are `around`. Raises ValueError unless
    0 < c2 <= 1.
    """

    c2: float = 0.5
    around: Reference = DATA
    noisy: ClassVar[bool] = True
    order: ClassVar[int] = 2
    strong: ClassVar[float] = 1.0
    weak: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        number("c2", self.c2, above=0, most=1)
        if not isinstance(self.around, Reference):
            raise ValueError(f"around must be a Reference, got {self.around!r}")

    def plan(self, p: Reverse, t: Tensor, s: Tensor, hops: int = 0) -> list[Interval]:
        """The stages of each interval, and the noises."""
        sde, around, eta = p.sde, self.around, p.eta_at(t)
        rows = substeps(around, sde, t, s, Line(self.c2, centred=True), eta)
        m = torch.stack([stages[1].t for stages in rows])
        low, middle, high = sde.log_snr(t), sde.log_snr(m), sde.log_snr(s)
        first = sde.alpha(m) * around.noise(low, middle, eta)
        on = sde.alpha(s) / sde.alpha(m) * around.decay(middle, high, eta)
        last = sde.alpha(s) * around.noise(middle, high, eta)
        kicks = [Kick(*row) if row[1] else None for row in zip(m, first.tolist(), on.tolist(), strict=True)]
        every = zip(t.tolist(), s.tolist(), rows, last.tolist(), kicks, strict=True)
        return [Interval(a, b, stages, std, 0, kick) for a, b, stages, std, kick in every]


def DPMSolverPPSDE(r: float = 0.5) -> TwoStage:
    """DPM-Solver++ on the reverse SDE in two stages, the dpmpp_sde of k-diffusion at eta = 1 (after Lu et al. 2022b,
    Algorithm 1 and appendix): E[x_0 | x_t], with two network calls a step. r: the part of the first stage.
    """
    return TwoStage(r)
