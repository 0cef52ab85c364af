"""Trajectories of a flow from which a solver is fitted to it, and what they tell.

Pilots are solved by Adams' method of four nodes and a corrector around the Gaussian of the data, one call a node. Their
states and residuals q are kept at all nodes, so that nothing of it is paid for twice: they tell the size of the
residual, where the flow bends, and by Hermite's cubic polynomials (q is the derivative of y = (x~ - m)/S, but for a
known factor) the states at any times.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import grid
from ..model import Counted
from ..noise import Noise, iid
from ..process import Reverse, Score, require_reverse
from ..reference import DATA, Reference
from ..shapes import answer, count, lifted
from .exponential import Seen, advance, asking, lagrange, stages_of
from .multistep import GaussianReference, Multistep
from .step import sample

FINE = 120
"""Network calls of a pilot, at least."""
FAR = 30.0
"""The deviations of the data in sigma/alpha where the mean is taken: nearer it varies, further a network is loud."""
BUDGET = 150_000
SCREENED = 16
"""Pilots that tell which of the methods that need no fit are worth trying on all."""


@dataclass(frozen=True)
class Pilots:
    """How a fit is made. Raises ValueError for fewer than 8 trajectories."""

    n: int = 64
    """Trajectories of each of three sets: to fit, to decide, to report."""
    seed: int = 0
    """Of their starts."""
    fine: int | None = None
    """Network calls of each, at least: 120, or eight times the solver's calls if that is more, unless given."""
    evaluations: int = BUDGET
    """Of the network for one sample, up to which a fit is improved as a whole: by default as many as 150 samples of
    1,000 steps cost. What the pilots and the choice of a method cost is spent in any case."""

    def __post_init__(self) -> None:
        count("pilots", self.n, least=8, most=grid.MOST)
        count("evaluations", self.evaluations, least=0)
        if self.fine is not None:
            count("fine", self.fine, most=grid.MOST)

    def calls(self, solver: int) -> int:
        """Those of a pilot, for a solver of that many. Raises ValueError unless they are twice as many or more."""
        return max(FINE, 8 * solver) if self.fine is None else count("fine", self.fine, least=2 * solver)

    def sets(self, q: Reverse, like: Tensor) -> list[Tensor]:
        """Three sets of starts, as states like `like` (any, *D), in float32 if that is of half precision."""
        g, kind = torch.Generator().manual_seed(self.seed), lifted(like).dtype
        return [q.sde.prior((self.n, *like.shape[1:]), iid(g), kind, like.device) for _ in range(3)]


class Metered(Counted):
    """A score that counts the samples that networks are asked for. each: the most networks that it asks for one."""

    def __init__(self, f: Any) -> None:
        super().__init__(f)
        self.evaluations, self.each = 0, 1

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        before = self.nfe
        said = super().__call__(*args, **kwargs)
        made, flows = self.nfe - before, parts(self.f)
        self.evaluations += len(args[0]) * made // flows
        self.each = max(self.each, math.ceil(made / flows))
        return said


class Divided:
    """Scores of one process, of which the k-th of K is asked about the rows k, k + K, ...: so one fit is to flows under
    several conditions. calls: of networks, so far.
    """

    def __init__(self, scores: Sequence[Score]) -> None:
        self.scores, self.calls, self.divided = [Counted(score) for score in scores], 0, len(scores)

    def __getattr__(self, name: str) -> Any:
        """What the first says of itself, such as the Gaussian of the data."""
        return getattr(self.scores[0].f, name)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        said, n = torch.empty_like(x), len(self.scores)
        for k, score in enumerate(self.scores[: len(x)]):
            said[k::n] = answer("score", score(x[k::n], t), x[k::n])
        self.calls = sum(score.nfe for score in self.scores)
        return said


def parts(score: Any) -> int:
    """The flows that a score divides its rows among."""
    return int(getattr(score, "divided", 1))


def together(flows: Reverse | Sequence[Reverse], pilots: Pilots) -> Reverse:
    """One process or several, by rows. Raises ValueError unless all are of one SDE and one eta, and no more than there
    are pilots.
    """
    several = [flows] if isinstance(flows, Reverse) else list(flows)
    if not several:
        raise ValueError("q must be a probability flow, or several, got none")
    for q in several:
        if require_reverse(q).sde != several[0].sde:
            raise ValueError(f"q must be flows of one process, got {several[0].sde!r} and {q.sde!r}")
        if q.eta != several[0].eta:
            raise ValueError(f"q must be of one eta, got {several[0].eta:g} and {q.eta:g}")
    if len(several) > pilots.n:
        raise ValueError(f"pilots must be at least as many as flows, {len(several)}, got {pilots.n}")
    return several[0] if len(several) == 1 else replace(several[0], score=Divided([q.score for q in several]))


def mean_like(around: Reference, x: Tensor) -> Tensor:
    """The mean, as states like x."""
    return torch.as_tensor(around.mean).to(x)


def fine_step(around: Reference) -> Multistep:
    """What pilots are solved by."""
    return Multistep(4, 5, around)


def ends(q: Reverse, x_T: Tensor, around: Reference, fine: int) -> Tensor:
    """The last states of pilots, for whom no more is asked."""
    return sample(q, x_T, grid.reference(q.sde, fine, around=around), fine_step(around))


class Course(Protocol):
    """What weights are fitted to: starts x_T of q, where they should be at the times of a grid, and by which noise."""

    q: Reverse
    x_T: Tensor
    noise: Noise

    def at(self, ts: Tensor) -> list[Tensor]: ...


class Trajectories:
    """Pilots of q from x_T, in `fine` calls: ts, states and residuals seen, (K, B, *D), around a Gaussian."""

    def __init__(self, q: Reverse, x_T: Tensor, around: Reference, fine: int) -> None:
        self.q, self.x_T, self.around = q, x_T, around
        self.noise: Noise = iid()
        self.ts = ts = grid.reference(q.sde, fine, around=around)
        mean = mean_like(around, x_T)
        ask, x = asking(q, mean), x_T
        known: Seen = ()
        self.states, self.seen = [x], []
        for now in fine_step(around).plan(q, ts[:-1], ts[1:]):
            x, known = advance(now, x, known, mean, ask)
            self.states.append(x)
            self.seen.append(known[0])
        (last,) = stages_of(ts[-1:], around.q(q.sde, ts[-1:]), 0 * ts[-1:], 0 * ts[-1:], ts[-1:, None])
        self.seen.append(ask(last, x))
        if not x.isfinite().all():
            raise RuntimeError("the flow's own trajectories are not finite: there is nothing to fit a solver to")

    @property
    def end(self) -> Tensor:
        """The last states."""
        return self.states[-1]

    def roughness(self) -> tuple[float, Tensor, Tensor]:
        """What no polynomial of a solver's order carries of how q changes in t: the root mean square, over samples,
        dimensions and every other node k, of what the cubic polynomial in lambda through the nodes k - 3, k - 1, k + 1
        and k + 3 misses q_k by, over that of q_(k+1) - q_(k-1). In all, and at each of these nodes: (ratio, lambda of
        the nodes (n,), their ratios (n,)). It falls with the cube of the nodes' distance if q is smooth; for q that are
        independent at equal steps it is sqrt(105/128) = 0.906. Changes below the square root of what x can tell, in
        units of the data's deviation, are rounding, and smooth. It does not depend on the data's scale; NaN for fewer
        than 7 nodes.
        """
        lam = self.q.sde.log_snr(self.ts)
        k = torch.arange(3, max(3, len(lam) - 3), 2, device="cpu")
        at = torch.stack([k - 3, k - 1, k + 1, k + 3], 1)
        weights = lagrange(lam[at], lam[k, None])[..., 0]
        least = (self.around.std * math.sqrt(torch.finfo(self.x_T.dtype).eps)) ** 2
        missed, changed = torch.zeros(2, len(k), dtype=torch.float64, device="cpu")
        for i, (nodes, w) in enumerate(zip(at.tolist(), weights.tolist(), strict=True)):
            near = sum(a * self.seen[j] for a, j in zip(w, nodes, strict=True))
            missed[i] = (self.seen[int(k[i])] - near).double().square().mean()
            changed[i] = (self.seen[nodes[2]] - self.seen[nodes[1]]).double().square().mean()
        told = torch.where(changed > least, (missed / changed.clamp_min(least)).sqrt(), 0.0)
        clear = bool(changed.mean() > least)
        whole = float((missed.sum() / changed.sum()).sqrt()) if clear else 0.0
        return (whole if len(k) else math.nan), lam[k], told

    def at(self, ts: Tensor) -> list[Tensor]:
        """The states at times ts, by cubic polynomials through two nodes and the derivatives there."""
        sde, around = self.q.sde, self.around
        lam, mean = sde.log_snr(self.ts), mean_like(around, self.x_T)
        slope, S = (around.log_g(lam) - around.log_S(lam)).exp().tolist(), around.log_S(lam).exp().tolist()
        alpha = sde.alpha(self.ts).tolist()
        wanted = sde.log_snr(ts)
        found = []
        size, scale = around.log_S(wanted).exp().tolist(), sde.alpha(ts).tolist()
        for u, S_u, a in zip(wanted.tolist(), size, scale, strict=True):
            k = min(max(int(torch.searchsorted(lam, u, right=True)) - 1, 0), len(lam) - 2)
            h = float(lam[k + 1] - lam[k])
            v = min(max((u - float(lam[k])) / h, 0.0), 1.0)
            y = [(self.states[i] / alpha[i] - mean) / S[i] for i in (k, k + 1)]
            dy = [h * slope[i] * self.seen[i] for i in (k, k + 1)]
            rest = y[1] - y[0]
            bent = y[0] + v * (dy[0] + v * ((3 * rest - 2 * dy[0] - dy[1]) + v * (dy[0] + dy[1] - 2 * rest)))
            found.append(a * (mean + S_u * bent))
        return [self.x_T, *found[1:-1], self.end]


def centred(q: Reverse, x_T: Tensor, around: Reference) -> Reference:
    """Around the mean m that D = E[x_0|x_t] tells where Gaussian data lead to from x_T: D = m + shrink (x~ - m)."""
    sde, x, ts = q.sde, x_T, torch.tensor([q.sde.T, q.sde.T], dtype=torch.float64, device="cpu")
    lam = torch.tensor(-math.log(FAR * around.std), dtype=torch.float64, device="cpu")
    if lam > sde.log_snr(ts[0]):
        ts[1] = sde.time(lam)
        x = sample(q, x_T, ts, GaussianReference(around))
    A, B, _ = (float(v) for v in DATA.q(sde, ts[1]))
    shrink = 1 / (1 + math.exp(-2 * float(sde.log_snr(ts[1]))) / around.std**2)
    off = (A - shrink / float(sde.alpha(ts[1]))) * x + B * q.ask(x, ts[1])
    return replace(around, mean=off.mean(0) / (1 - shrink))


def residual(pilots: Trajectories) -> tuple[Reference, Tensor, Tensor]:
    """The reference with the size of the residual; lambda and the density of a grid: (RMS |q''| g/S)^(1/3), which makes
    errors of second order equal, smoothed.
    """
    lam, around = pilots.q.sde.log_snr(pilots.ts), pilots.around
    values = torch.stack([seen.flatten().to("cpu", torch.float64) for seen in pilots.seen])
    size = values.square().mean(1).sqrt()
    size = size.clamp_min(1e-6 * size.max())
    around = replace(around, size=tuple(zip(lam.tolist(), size.tolist(), strict=True)))
    bend = values / size[:, None]
    for _ in range(2):
        (bend,) = torch.gradient(bend, spacing=(lam,), dim=0)
    density = (bend.square().mean(1).sqrt() * (around.log_g(lam) - around.log_S(lam)).exp()) ** (1 / 3)
    density = F.avg_pool1d(F.pad(density[None], (3, 3), mode="replicate"), 7, 1)[0]
    return around, lam, density
