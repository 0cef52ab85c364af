"""Steps that choose their own sizes, for each sample on its own, by comparing two solutions of different order.

From where a sample is, both solutions are carried over a step; E, the root mean square over dimensions of their
difference divided by max(atol, rtol min(|rough|, |fine|)), accepts the better of them if E <= 1, and the next step is
theta E^-power times the last, at most twice as long and never beyond the end. What a sample becomes does not depend on
its neighbours in the batch: a sample that has arrived waits for the others, the network being asked for all of them.

The papers divide by the size before the step as well. Where that is the noise's, a hundred times the data's, a step is
accepted whose error is larger than the data; but an error made at a noisy time shrinks on the way as the marginal's
deviation does, so it is the size where the step ends that it is relative to.

On an SDE a rejected step has already told something of the Brownian path. Were that forgotten and noise drawn anew,
small increments, which are accepted more easily, would be too frequent. `Bridge` keeps what is known of the path.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..brownian import Bridge, Draws
from ..noise import Noise
from ..ode import Control, Embedded, Trial
from ..process import Reverse, needs_noise
from ..shapes import choose, count, like, number
from .euler import FARTHEST, Flow
from .step import Run, Step


class Adaptive(Step):
    """A step that chooses its own sizes."""

    rtol: float
    atol: float
    h_init: float
    theta: float
    max_steps: int

    def __post_init__(self) -> None:
        number("rtol", self.rtol, least=0)
        number("atol", self.atol, above=0)
        number("h_init", self.h_init, above=0)
        number("theta", self.theta, above=0, below=1)
        count("max_steps", self.max_steps)

    @abstractmethod
    def run(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Run:
        """From x at t to s, with what it took."""

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        return self.run(p, x, t, s, noise).x

    def steered(self, pair: "Compared", now: Tensor, end: Tensor, h: float, power: float) -> Run:
        """From `now` to `end`, (B,) in float64, first by steps of h."""
        control = Control(self.theta, power, most=2.0, max_steps=self.max_steps)
        tally = control(pair, now, end, torch.full_like(now, h))
        return Run(pair.x, *tally)


class Compared(Trial):
    """Two solutions of different order of one equation, compared with a step's tolerances."""

    def __init__(self, step: Adaptive, x: Tensor) -> None:
        self.rtol, self.atol, self.x = step.rtol, step.atol, x

    @abstractmethod
    def solve(self, x: Tensor, now: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """The rough and the fine solution from x (B, *D), each row from its own place to another, (B,)."""

    def attempt(self, now: Tensor, to: Tensor, h: Tensor, rows: Tensor) -> Tensor:
        """E of the two."""
        rough, self.fine = self.solve(self.x, now, to)
        scale = torch.minimum(rough.detach().abs(), self.fine.detach().abs()).mul_(self.rtol).clamp_min_(self.atol)
        off = (self.fine - rough).detach().div_(scale)
        return off.flatten(1).square_().mean(1).sqrt_().to(now)

    def settle(self, accept: Tensor, reject: Tensor, rows: Tensor) -> None:
        """Take the fine solution where it is accepted; nothing changes where nothing is."""
        if accept.any():
            self.x = choose(accept, self.fine, self.x)


class Recent:
    """f(x, t), computed again only if x is another tensor than last time: no row has moved."""

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.f = f
        self.x: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if x is not self.x:
            self.x, self.value = x, self.f(x, t)
        return self.value


class ImprovedEuler(Compared):
    """The step x' of Euler and Maruyama, and (x' + x~)/2 with x~ the same with the coefficients at x' and its time, on
    the same increment of the path: the improved Euler method (Roberts 2012).
    """

    def __init__(
        self, step: Adaptive, p: Reverse, x: Tensor, t: Tensor, draw: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__(step, x)
        self.p, self.draw, self.bridge, self.drift = p, draw, Bridge(x, t), Recent(p.drift)

    def solve(self, x: Tensor, now: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """From t = now down to t = to."""
        dW, h = self.bridge.reach(to, self.draw(x, now != to)), like(now - to, x)
        rough = x - h * self.drift(x, now) + like(self.p.diffusion(now), x) * dW
        again = x - h * self.p.drift(rough, to) + like(self.p.diffusion(to), x) * dW
        return rough, (rough + again) / 2

    def settle(self, accept: Tensor, reject: Tensor, rows: Tensor) -> None:
        """Move along the path, or keep it."""
        super().settle(accept, reject, rows)
        self.bridge.settle(accept, reject)


@dataclass(frozen=True)
class GottaGoFast(Adaptive):
    """The adaptive solver of reverse SDEs of Jolicoeur-Martineau et al. (2021b, Algorithm 1), each sample with its own
    times and steps, on a Brownian path that rejections do not change.

    x' = x - h drift(x, t) + g(t) dW is compared with x'' = (x' + x~)/2, x~ = x - h drift(x', t - h) + g(t - h) dW; E
    as above, then h becomes theta h E^-r. Two network calls a step; the first is not repeated where every sample has
    rejected. One draw of noise a step, or none where samples have left some, asked for as a corrector does; of a
    corrector beside it, what it draws depends on the slowest sample.

    Raises ValueError on the flow, eta = 0, and where sigma = 0 at the end; RuntimeError naming the sample and its time
    if the drift is not finite or `max_steps` do not suffice.
    """

    rtol: float = 0.02
    """Relative tolerance."""
    atol: float = 0.0078
    """Absolute tolerance; 2/256, a grey level of images in [-1, 1], in the paper."""
    h_init: float = 0.01
    """The first step, as a part of T."""
    theta: float = 0.9
    """By which steps are shorter than E says."""
    r: float = 0.9
    """The power of E."""
    max_steps: int = 10_000
    """Steps after which to give up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number("r", self.r, above=0)

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """eta > 0 throughout, and sigma > 0 at the end."""
        if not p.eta:
            raise ValueError("GottaGoFast needs an SDE, eta > 0, got eta=0: an ODE has solvers in Flow(ode.Dopri5())")
        if not isinstance(p.eta, float | int):
            raise ValueError(f"GottaGoFast chooses its own steps: it needs one eta for all times, got {p.eta:g}")
        needs_noise(p, s)

    def prepare(self, p: Reverse, t: Tensor, s: Tensor) -> Step:
        """With a memory for draws that were not used."""
        return _Started(self, s[-1])

    def run(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, draws: Draws | None = None) -> Run:
        """From x at t to s."""
        self.check(p, t, s)
        deal = draws or Draws()
        now, end = (u.to(x.device, torch.float64).expand(len(x)) for u in (t, s))
        pair = ImprovedEuler(self, p, x, now, lambda x, asking: deal(x, t, noise, asking))
        return self.steered(pair, now, end, -self.h_init * p.T, self.r)


class _Started(Step):
    """GottaGoFast at work on a grid that ends at `last`."""

    def __init__(self, step: GottaGoFast, last: Tensor) -> None:
        self.step, self.last, self.draws = step, last, Draws()

    def run(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Run:
        self.draws.keep = bool(s > self.last)
        return self.step.run(p, x, t, s, noise, self.draws)

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        return self.run(p, x, t, s, noise).x


class SharedStages(Compared):
    """DPM-Solver-1 and -2, or -2 and -3, with common stages (Lu et al. 2022a, Algorithms 1 and 2, appendix C)."""

    def __init__(self, step: Adaptive, p: Reverse, x: Tensor, order: int) -> None:
        super().__init__(step, x)
        self.p, self.order = p, order
        self.eps = Recent(p.eps)
        self.parts = torch.tensor([*(k / order for k in range(order)), 1.0], dtype=torch.float64, device=x.device)

    def reach(self, now: Tensor, h: Tensor) -> Tensor:
        return h.clamp_max(FARTHEST)

    def time(self, now: Tensor) -> Tensor:
        """The time with this lambda."""
        return self.p.sde.time(now)

    def solve(self, x: Tensor, now: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """From lambda = now up to lambda = to."""
        sde, c, h = self.p.sde, 1 / self.order, to - now
        along = self.parts[:, None] * h
        t = self.time(now + along)
        log_alpha, sigma, grown = sde.log_alpha(t), sde.sigma(t), torch.expm1(along)
        kept, moved, eps = (log_alpha - log_alpha[0]).exp(), sigma * grown, self.eps(x, t[0])

        def at(i: int) -> Tensor:
            """x at the i-th part, with the eps at the start."""
            return (like(kept[i], x) * x).sub_(like(moved[i], x) * eps)

        d_1, first = self.p.eps(at(1), t[1]) - eps, at(-1)
        second = first - like(moved[-1] / (2 * c), x) * d_1
        if self.order == 2:
            return first, second
        bent = sigma[2:] * phi(along[2:])
        d_2 = self.p.eps(at(2).sub_(like(2 * bent[0], x) * d_1), t[2]) - eps
        return second, first.sub_(like(bent[1] / (2 * c), x) * d_2)


def phi(h: Tensor) -> Tensor:
    """(exp(h) - 1 - h)/h, by its series where that would cancel."""
    series = sum(h**k / math.factorial(k + 1) for k in range(1, 15))
    return torch.where(h.abs() < 0.5, series, torch.expm1(h) / h - 1)


@dataclass(frozen=True)
class DPMSolverAdaptive(Adaptive):
    """DPM-Solver-12 (order 2) and -23 (order 3), adaptive in lambda (Lu et al. 2022a, appendix C), each sample with its
    own times and steps.

    With h the step in lambda, x_s = alpha_s/alpha_t x - sigma_s (e^h - 1) eps is of order 1. It is of order 2 with
    -sigma_s (e^h - 1)/(2 r_1) (eps_1 - eps) added, r_1 = 1/2 in -12 and 1/3 in -23, and of order 3 instead with
    -sigma_s/r_2 ((e^h - 1)/h - 1) (eps_2 - eps), r_2 = 2/3. E is as above, then h becomes theta h E^(-1/order) and
    is never above `FARTHEST`.
    `order` network calls a step; the first is not repeated where every sample has rejected.

    Raises ValueError unless eta = 0 and sigma > 0 at the end; RuntimeError naming the sample and its time if the drift
    is not finite or `max_steps` do not suffice.
    """

    order: int = 3  # type: ignore[misc]
    """Of the better solution, 2 or 3."""
    rtol: float = 0.05
    """Relative tolerance."""
    atol: float = 0.0078
    """Absolute tolerance."""
    h_init: float = 0.05
    """The first step, in lambda."""
    theta: float = 0.9
    """By which steps are shorter than E says."""
    max_steps: int = 10_000
    """Steps after which to give up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if count("order", self.order) not in (2, 3):
            raise ValueError(f"order must be 2 or 3, got {self.order}")

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """eta = 0, and sigma > 0 at the end."""
        if p.eta:
            raise ValueError(f"DPMSolverAdaptive needs the probability flow, eta=0, got eta={p.eta:g}")
        needs_noise(p, s)

    def run(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Run:
        """From x at t to s."""
        self.check(p, t, s)
        now, end = (p.sde.log_snr(u).to(x.device, torch.float64).expand(len(x)) for u in (t, s))
        return self.steered(SharedStages(self, p, x, self.order), now, end, self.h_init, 1 / self.order)


class Tallied(Step):
    """A step that accepts and rejects, as those of this module and `Flow(Dopri5())` do, which choose their own sizes,
    and `MALA`, with a count: after sampling, `accepted` and `rejected` are (B,), summed over the intervals of the grid.
    """

    def __init__(self, step: Any) -> None:
        told = isinstance(step, Flow) and not isinstance(step.method, Embedded)
        if not isinstance(step, Step) or not hasattr(step, "run") or told:
            raise ValueError(f"step must accept and reject, as GottaGoFast() and MALA() do, got {step!r}")
        self.step, self.at_work = step, step
        self.accepted, self.rejected = torch.zeros(2, 1, dtype=torch.long)

    @property
    def moves(self) -> bool:  # type: ignore[override]
        """As the step does."""
        return self.step.moves

    def prepare(self, p: Reverse, t: Tensor, s: Tensor) -> Step:
        """The same step at work, counting from 0."""
        self.at_work = self.step.start(p, t, s)
        self.accepted, self.rejected = torch.zeros(2, 1, dtype=torch.long)
        return self

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        done = self.at_work.run(p, x, t, s, noise)
        self.accepted, self.rejected = self.accepted + done.accepted, self.rejected + done.rejected
        return done.x
