"""Steps that choose their own sizes, for each sample on its own, by comparing two solutions of different order.

From where a sample is, both solutions are carried over a step; E, the root mean square over dimensions of their
difference divided by max(atol, rtol max(|rough|, |rough before|)), accepts the better of them if E <= 1, and the next
step is theta E^-power times the last, never beyond the end. What a sample becomes does not depend on its neighbours in
the batch: a sample that has arrived waits for the others, the network being asked for all of them.

On an SDE a rejected step has already told something of the Brownian path. Were that forgotten and noise drawn anew,
small increments, which are accepted more easily, would be too frequent. `Bridge` keeps what is known of the path.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .bridge import Bridge, Draws, Recent, choose
from .noise import Noise
from .ode import Adaptive as Embedded
from .predict import Flow
from .sample import Run, Step, needs_noise
from .sde import Reverse
from .shapes import count, like, number


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

    def control(self, pair: "Pair", x: Tensor, now: Tensor, end: Tensor, h: Tensor) -> Run:
        """The loop: x (B, *D) at `now` to `end`, first by steps of h, all (B,) in float64.

        Raises RuntimeError naming the sample and its time if a solution is not finite, or max_steps do not suffice.
        """
        before, accepted, rejected = x, *torch.zeros(2, len(x), dtype=torch.long, device=x.device)
        moving = now != end
        for _ in range(self.max_steps):
            to = torch.where(h.abs() >= (end - now).abs(), end, now + h)
            rough, fine = pair.solve(x, now, to)
            scale = (self.rtol * torch.maximum(rough.abs(), before.abs())).clamp_min(self.atol)
            E = ((fine - rough) / scale).flatten(1).square().mean(1).sqrt().to(now)
            wrong = moving & ~E.isfinite()
            if wrong.any():
                i = int(wrong.nonzero()[0])
                raise RuntimeError(f"the drift of sample {i} is not finite at t = {float(pair.time(now)[i]):.6g}")
            accept = moving & (E <= 1)
            pair.settle(accept, moving & ~accept)
            h = torch.where(moving, (to - now) * self.theta * (-pair.power * E.clamp_min(1e-12).log()).exp(), h)
            if accept.any():
                x, before = choose(accept, fine, x), choose(accept, rough, before)
                now = torch.where(accept, to, now)
            accepted, rejected = accepted + accept, rejected + (moving & ~accept)
            moving = now != end
            if not moving.any():
                return Run(x, accepted, rejected)
        i, at = int(moving.nonzero()[0]), pair.time(now)
        raise RuntimeError(f"max_steps = {self.max_steps} were not enough: sample {i} is at t = {float(at[i]):.6g}")


class Pair(ABC):
    """Two solutions of different order of one equation; `power` says how the step follows from their difference."""

    power: float

    @abstractmethod
    def solve(self, x: Tensor, now: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """The rough and the fine solution from x (B, *D), each row from its own place to another, (B,)."""

    def time(self, now: Tensor) -> Tensor:
        """The time t of a place."""
        return now

    def settle(self, accept: Tensor, reject: Tensor) -> None:  # noqa: B027  (an ODE has nothing to remember)
        """Told which rows of the last answer are kept and which are not; those that are neither have arrived."""


class ImprovedEuler(Pair):
    """The step x' of Euler and Maruyama, and (x' + x~)/2 with x~ the same with the coefficients at x' and its time, on
    the same increment of the path: the improved Euler method (Roberts 2012).
    """

    def __init__(
        self, p: Reverse, x: Tensor, t: Tensor, power: float, draw: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self.p, self.power, self.draw, self.bridge = p, power, draw, Bridge(x, t)
        self.drift = Recent(p.drift)

    def solve(self, x: Tensor, now: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """From t = now down to t = to."""
        dW, h = self.bridge.reach(to, self.draw(x, now != to)), like(now - to, x)
        rough = x - h * self.drift(x, now) + like(self.p.diffusion(now), x) * dW
        again = x - h * self.p.drift(rough, to) + like(self.p.diffusion(to), x) * dW
        return rough, (rough + again) / 2

    def settle(self, accept: Tensor, reject: Tensor) -> None:
        """Move along the path, or keep it."""
        self.bridge.settle(accept, reject)


@dataclass(frozen=True)
class GottaGoFast(Adaptive):
    """The adaptive solver of reverse SDEs of Jolicoeur-Martineau et al. (2021, Algorithm 1), each sample with its own
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

    def check(self, p: Reverse, ts: Tensor) -> None:
        """eta > 0, and sigma > 0 at the end."""
        if not p.eta:
            raise ValueError("GottaGoFast needs an SDE, eta > 0, got eta=0: an ODE has solvers in Flow(ode.Dopri5())")
        needs_noise(p, ts[-1])

    def start(self, p: Reverse, ts: Tensor) -> Step:
        """With a memory for draws that were not used."""
        return _Started(self, ts[-1])

    def run(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, draws: Draws | None = None) -> Run:
        """From x at t to s."""
        self.check(p, s[None])
        deal = draws or Draws()
        now, end = (u.to(x.device, torch.float64).expand(len(x)) for u in (t, s))
        pair = ImprovedEuler(p, x, now, self.r, lambda x, asking: deal(x, t, noise, asking))
        return self.control(pair, x, now, end, torch.full_like(now, -self.h_init * p.T))


class _Started(Step):
    """GottaGoFast at work on a grid that ends at `last`."""

    def __init__(self, step: GottaGoFast, last: Tensor) -> None:
        self.step, self.last, self.draws = step, last, Draws()

    def run(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Run:
        self.draws.keep = bool(s > self.last)
        return self.step.run(p, x, t, s, noise, self.draws)

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        return self.run(p, x, t, s, noise).x


class SharedStages(Pair):
    """DPM-Solver-1 and -2, or -2 and -3, with common stages (Lu et al. 2022a, Algorithms 1 and 2, appendix C)."""

    def __init__(self, p: Reverse, order: int) -> None:
        self.p, self.order, self.power = p, order, 1 / order
        self.eps = Recent(lambda x, lam: p.eps(x, self.time(lam)))

    def time(self, now: Tensor) -> Tensor:
        """The time with this lambda."""
        return self.p.sde.time(now)

    def solve(self, x: Tensor, now: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """From lambda = now up to lambda = to."""
        sde, h = self.p.sde, to - now
        log_alpha = sde.log_alpha(self.time(now))

        def at(part: float) -> tuple[Tensor, Tensor, Tensor]:  # the time there, x with the eps at the start, sigma
            t = self.time(now + part * h)
            carried = like((sde.log_alpha(t) - log_alpha).exp(), x) * x
            return t, carried - like(sde.sigma(t) * torch.expm1(part * h), x) * eps, sde.sigma(t)

        eps, c = self.eps(x, now), 1 / self.order
        (t_1, x_1, _), (_, first, sigma) = at(c), at(1.0)
        d_1 = self.p.eps(x_1, t_1) - eps
        second = first - like(sigma * torch.expm1(h) / (2 * c), x) * d_1
        if self.order == 2:
            return first, second
        t_2, x_2, sigma_2 = at(2 * c)
        d_2 = self.p.eps(x_2 - like(2 * sigma_2 * phi(2 * c * h), x) * d_1, t_2) - eps
        return second, first - like(sigma * phi(h) / (2 * c), x) * d_2


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
    -sigma_s/r_2 ((e^h - 1)/h - 1) (eps_2 - eps), r_2 = 2/3. E is as above, then h becomes theta h E^(-1/order).
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

    def check(self, p: Reverse, ts: Tensor) -> None:
        """eta = 0, and sigma > 0 at the end."""
        if p.eta:
            raise ValueError(f"DPMSolverAdaptive needs the probability flow, eta=0, got eta={p.eta:g}")
        needs_noise(p, ts[-1])

    def run(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Run:
        """From x at t to s."""
        self.check(p, s[None])
        now, end = (p.sde.log_snr(u).to(x.device, torch.float64).expand(len(x)) for u in (t, s))
        return self.control(SharedStages(p, self.order), x, now, end, torch.full_like(now, self.h_init))


class Tallied(Step):
    """A step that chooses its own sizes, as those of this module and `Flow(Dopri5())` do, with a count of those that it
    took: after sampling, `accepted` and `rejected` are (B,), summed over the intervals of the grid.
    """

    def __init__(self, step: Any) -> None:
        told = isinstance(step, Flow) and not isinstance(step.method, Embedded)
        if not isinstance(step, Step) or not hasattr(step, "run") or told:
            raise ValueError(f"step must choose its own sizes, as GottaGoFast() does, got {step!r}")
        self.step, self.at_work = step, step
        self.accepted, self.rejected = torch.zeros(2, 1, dtype=torch.long)

    def check(self, p: Reverse, ts: Tensor) -> None:
        """As `step` has it."""
        self.step.check(p, ts)

    def start(self, p: Reverse, ts: Tensor) -> Step:
        """Counting from 0."""
        self.at_work = self.step.start(p, ts)
        self.accepted, self.rejected = torch.zeros(2, 1, dtype=torch.long)
        return self

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        done = self.at_work.run(p, x, t, s, noise)
        self.accepted, self.rejected = self.accepted + done.accepted, self.rejected + done.rejected
        return done.x
