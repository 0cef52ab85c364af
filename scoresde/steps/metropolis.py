"""Metropolis' correction of Langevin dynamics, exact where the density is known, and nearly so where only its score is.

y = x + e score(x) + sqrt(2 e) z is accepted with probability min(1, p_t(y) q(x | y) / (p_t(x) q(y | x))), q the density
of the proposal (Besag 1994; Roberts & Tweedie 1996); otherwise x stays. log p_t(y) - log p_t(x) is the line integral of
the score from x to y, which a network can be asked for. In d dimensions mixing is fastest where 0.574 are accepted, and
log of the ratio is as wide as e^(3/2) (Roberts & Rosenthal 1998, theorem 1).
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..noise import Noise, iid, require_noise
from ..process import Reverse, require_reverse
from ..shapes import as_table, choose, count, inside, number, state, wide
from .langevin import NCSN, SNR, Constant, Langevin, StepSize
from .step import Run, Step

OPTIMAL = 0.574
"""The rate of acceptance at which MALA mixes fastest in many dimensions."""
TRIALS = 4
"""Step sizes that are tried at a level."""


class _Place(NamedTuple):
    """A state, its score, and its log-density, or 0 if that is not asked for."""

    x: Tensor
    score: Tensor
    level: Tensor


@dataclass(frozen=True)
class MALA(Step):
    """n steps of the Metropolis-adjusted Langevin algorithm at time t: exact for p_t, whatever the step size. Each
    sample decides for itself, by one more draw of its noise; `Tallied(MALA(...))` counts what each accepted.

    p.score must have `log_prob(x, t)`, up to a constant, as exact laws and `EnergyModel` have; the two are asked n + 1
    times each. Other scores, such as networks, need `by_scores`, which takes log p_t(y) - log p_t(x) to be the line
    integral of the score along y - x: of 2 scores by the trapezoid rule, at no further call, of 3 by Simpson's, which
    asks for the one half way, 2n + 1 in all. Both are exact for Gaussian data. Else the stationary law is off by e, as
    that of unadjusted steps is, but less, or by e^2.

    step_size must not depend on x and z, so `SNR` raises ValueError, as does a score without log_prob;
    `Calibrated.fit` finds one for each level.
    """

    step_size: StepSize = NCSN()
    n: int = 1
    by_scores: int = 0
    """By how many scores to accept, 2 or 3, instead of by log_prob."""
    moves: ClassVar[bool] = False

    def __post_init__(self) -> None:
        count("n", self.n)
        if not isinstance(self.step_size, StepSize) or isinstance(self.step_size, SNR):
            raise ValueError(f"step_size must be a rule that does not look at x, got {self.step_size!r}")
        if count("by_scores", self.by_scores, least=0) not in (0, 2, 3):
            raise ValueError(f"by_scores must be 0, 2 or 3, got {self.by_scores}")

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """The score has a log_prob unless it is not asked, eta > 0, and sigma > 0 at every time."""
        if not self.by_scores and not hasattr(p.score, "log_prob"):
            raise ValueError(
                f"score must have log_prob(x, t), as an energy has, got {type(p.score).__name__}: take by_scores=2"
            )
        Langevin(self.step_size).check(p, t, s)

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        return self.run(p, x, t, s, noise).x

    def run(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Run:
        """With what was accepted and rejected."""
        self.check(p, t, s)
        here = self.place(p, wide("x", x), t)
        e = self.step_size(p, t, here.score, here.score)
        here = here._replace(x=here.x + 0 * here.score)
        accepted = torch.zeros(len(x), dtype=torch.long, device=x.device)
        for _ in range(self.n):
            there, ratio = self.proposed(p, here, t, e, noise(here.x, t, t))
            accept = torch.special.ndtr(noise(here.x, t, t).flatten(1)[:, 0]).log() < ratio
            torn = here.x + math.nan  # what is not a number is not rejected in silence
            here = _Place(*(choose(accept, new, old) for new, old in zip(there, here, strict=True)))
            here = here._replace(x=choose(ratio.isnan(), torn, here.x))
            accepted += accept
        return Run(here.x.to(x.dtype), accepted, self.n - accepted)

    def place(self, p: Reverse, x: Tensor, t: Tensor) -> _Place:
        """x with its score, and its log-density if that is asked for."""
        level = x.new_zeros(len(x)) if self.by_scores else p.score.log_prob(x, t)  # type: ignore[attr-defined]
        return _Place(x, p.ask(x, t), level)

    def proposed(self, p: Reverse, here: _Place, t: Tensor, e: Tensor, z: Tensor) -> tuple[_Place, Tensor]:
        """y, and log of the ratio by which it is accepted, (B,)."""
        there = self.place(p, here.x + e * here.score + (2 * e).sqrt() * z, t)
        back = (here.x - there.x - e * there.score) / (2 * e).sqrt()
        along = there.level - here.level
        if self.by_scores:
            along = self.integral(p, here.x, there.x, here.score, there.score, t)
        return there, along + (z.square() - back.square()).flatten(1).sum(1) / 2

    def integral(self, p: Reverse, x: Tensor, y: Tensor, score_x: Tensor, score_y: Tensor, t: Tensor) -> Tensor:
        """log p_t(y) - log p_t(x), (B,), from their scores, and that half way if three are to be had."""
        between = p.ask((x + y) / 2, t) if self.by_scores == 3 else None
        return (mean_score(score_x, score_y, between) * (y - x)).flatten(1).sum(1)


def mean_score(here: Tensor, there: Tensor, between: Tensor | None = None) -> Tensor:
    """The mean along the way by the trapezoid rule, or with what is half way between by Simpson's."""
    ends = (here + there) / 2
    return ends if between is None else (ends + 2 * between) / 3


@dataclass(frozen=True, eq=False)
class Calibrated(StepSize):
    """A step size for each of some times; `fit` finds those at which MALA accepts a wanted share of its proposals.

    ts: (N,) times; sizes: (N,) step sizes e > 0 there. accepted: (N,), the share that was accepted, and doubt: (N,),
    the root mean square error in nats of the trapezoid rule for log p_t(y) - log p_t(x), told by Simpson's, whose own
    is a small part of it: where it is not far below 1, MALA with two scores is not exact. Raises ValueError at other
    times than those, and for tables that are not as stated.
    """

    ts: Tensor
    sizes: Tensor
    accepted: Tensor = field(default_factory=lambda: torch.empty(0))
    doubt: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        for name in ("ts", "sizes"):
            object.__setattr__(self, name, as_table(name, getattr(self, name)))
        if self.ts.shape != self.sizes.shape:
            raise ValueError(
                f"ts and sizes must have one shape (N,), got {tuple(self.ts.shape)} and {tuple(self.sizes.shape)}"
            )
        if not ((self.sizes > 0) & self.sizes.isfinite()).all():
            raise ValueError("sizes must be a table of numbers > 0, and finite")

    def __repr__(self) -> str:
        return f"Calibrated(fitted at {len(self.ts)} times)"

    def __call__(self, p: Reverse, t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        off, i = (self.ts - t.cpu()).abs().min(0)
        if off > 1e-9 * p.T:
            raise ValueError(f"t must be a time that step sizes were fitted at, got {float(t):.6g}")
        return self.sizes[i]

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        p: Reverse,
        x_0: Tensor,
        ts: Tensor,
        *,
        accept: float = OPTIMAL,
        by_scores: int = 2,
        most: float = 0.03,
        noise: Noise = iid(),
    ) -> "Calibrated":
        """For `MALA(rule, n, by_scores)`, on data x_0 (n, *D) noised to each of the times ts (N,), at 2 `TRIALS` + 1
        network calls a time, `TRIALS` more with three scores: the step size at which the share `accept` is accepted, or
        with two scores a smaller one, whose doubt is `most` nats. Each begins from the last and changes by the power
        that the widths of log ratio and doubt have in many dimensions, between 1e-4 sigma^2 and the mean square of x_t,
        at which a proposal for Gaussian data no longer knows where it came from.

        Raises ValueError unless 0 < accept < 1 and most > 0, as MALA does, and naming the time where the score is not
        finite.
        """
        number("accept", accept, above=0, below=1), number("most", most, above=0)
        require_noise(noise), require_reverse(p)
        step, x_0 = MALA(Constant(1.0), 1, by_scores), wide("x_0", state("x_0", x_0))
        ts = inside(as_table("ts", ts), p.T)
        step.check(p, ts, ts)
        rows, share = [], 0.1
        for t in ts:
            x = p.sde.perturb(x_0, t, noise)[0]
            here, z, square = step.place(p, x, t), noise(x, t, t), float(x.square().mean())
            least, tried = min(1.0, 1e-4 * float(p.sde.var(t)) / square), []
            for _ in range(TRIALS):
                e = torch.tensor(share * square, dtype=torch.float64, device="cpu")
                there, ratio = step.proposed(p, here, t, e, z)
                rate = float(ratio.exp().clamp_max(1).mean())
                bent = p.ask((x + there.x) / 2, t) - (here.score + there.score) / 2
                doubt = float((2 / 3 * bent * (there.x - x)).flatten(1).sum(1).square().mean().sqrt())
                if not math.isfinite(rate) or not math.isfinite(doubt):
                    raise ValueError(f"score must be finite where data and proposals are, but at t = {t:.6g} it is not")
                tried.append((float(e), rate, doubt))
                longer = _width(accept) / _width(rate)
                if by_scores == 2:
                    longer = min(longer, most / max(doubt, 1e-12))
                share = min(1.0, max(least, share * longer ** (2 / 3)))
            good = [row for row in tried if by_scores != 2 or row[2] < 1.5 * most]
            best = min(good, key=lambda row: abs(row[1] - accept)) if good else min(tried, key=lambda row: row[2])
            rows.append(best)
            share = best[0] / square
        return cls(ts, *torch.tensor(rows, dtype=torch.float64, device="cpu").T)


def _width(rate: float) -> float:
    """The half width w of a log ratio of N(-2 w^2, 4 w^2), which is accepted at that rate, 2 Phi(-w)."""
    at = torch.tensor(min(0.999, max(1e-3, rate)) / 2, dtype=torch.float64, device="cpu")
    return -float(torch.special.ndtri(at))
