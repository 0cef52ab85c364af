"""A law, the noise that hides it, and five ways back, as numbers: what `scoresde explain` draws.

All ways leave from one start x_T and are told one Brownian path, whatever their steps. Beside each state stands how far
the particles are from the exact law at its time, in the sliced Wasserstein distance (`sliced_wasserstein`), the calls
made so far, and for the flow and its first-order step DDIM the root mean square distance from the exact flow.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from .. import grid
from ..brownian import Path
from ..exact import Diffused, GaussianMixture
from ..model import Counted
from ..noise import Noise, iid, seeds
from ..ode import RK4, Dopri5
from ..process import VE, VP, LinearSDE
from ..reference import Reference
from ..shapes import count
from ..steps import NCSN, Ancestral, Flow, Langevin, Step, trajectory
from .metrics import sliced_wasserstein
from .problems import Modes, Peaks, Problem

STEPS = (5, 10, 20, 50, 100)
"""Numbers of steps; each divides the last, whose times are those that are shown."""
ETAS = (0.0, 0.5, 1.0)
RATES = {"small": 0.03, "medium": 0.3, "large": 1.0}
"""r of Langevin steps e = r sigma_t^2."""
CORRECTIONS = 5
"""Langevin steps a level where nothing else moves."""
DRAWS = 12
"""Sets of exact samples that say what noise alone would give."""
MEASURED = 25
"""The most steps after which a way's distance is measured."""
TOLD: dict[str, Problem] = {"plane": Modes(8, 0.06), "line": Peaks()}
"""The laws."""
UNDER: dict[str, LinearSDE] = {"vp": VP(), "ve": VE(sigma_min=0.01, sigma_max=8.0)}
"""The processes."""


class OnePath:
    """The noise of one Brownian path on [0, T], whose increments are looked up once; `fresh` gives it beside a
    generator that begins anew, which correctors draw from: they move along no interval.
    """

    def __init__(self, T: float, shape: tuple[int, ...], seed: int) -> None:
        self.path, self.seed = Path(0.0, T, shape, seed), seed
        self.known: dict[tuple[float, float], Tensor] = {}

    def fresh(self) -> Noise:
        """The noise of one run."""
        draws = iid(torch.Generator().manual_seed(self.seed))

        def noise(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            key = float(t), float(s)
            if key[0] == key[1]:
                return draws(x, t, s)
            if key not in self.known:
                self.known[key] = self.path(x, t, s)
            return self.known[key]

        return noise


@dataclass(frozen=True)
class Way:
    """How x_T is brought back: the process's eta, and the steps."""

    eta: float
    steps: tuple[Step, ...]

    def code(self, n: int) -> str:
        """The line that runs it in n steps, where sde, score, around, x_T and noise are those of a `Scene`."""
        steps = ", ".join(map(repr, self.steps))
        spaced = f"grid.reference(sde, {n}, around=around)"
        return f"trajectory(sde.reverse(score, eta={self.eta:g}), x_T, {spaced}, {steps}, noise=noise)"


def ways() -> dict[str, Way]:
    """The ways by name; of those that differ in a setting only, it stands after a slash."""
    rules = {name: NCSN(2 * r * 0.01**2, 0.01) for name, r in RATES.items()}
    return {
        **{f"ancestral/{eta:g}": Way(eta, (Ancestral(),)) for eta in ETAS},
        **{f"langevin/{name}": Way(1.0, (Langevin(rule, CORRECTIONS),)) for name, rule in rules.items()},
        **{f"corrected/{name}": Way(1.0, (Ancestral(), Langevin(rule))) for name, rule in rules.items()},
        "flow": Way(0.0, (Flow(RK4()),)),
    }


@dataclass(frozen=True)
class Film:
    """What is shown of a way in n steps.

    frames: (S,) the frame from which on each state is shown. x: (S, shown, d) states of the first particles. nfe: (S,)
    network calls until then. measured: the frames where distances were measured, distance: (len(measured),) those from
    the exact law. off: (S,) root mean square distances from the exact flow, or nothing. code: the line that made it.
    """

    frames: list[int]
    x: Tensor
    nfe: list[int]
    measured: list[int]
    distance: list[float]
    off: list[float]
    code: str


@dataclass(frozen=True)
class Scene:
    """A law under a process, with one start and one Brownian path for all who come back.

    particles: how many there are. shown: how many of them are drawn. steps: numbers of steps. exact: samples of the
    law that distances are measured to. directions: of the sliced distance. Raises ValueError unless each number of
    steps divides the last, and shown is at most particles.
    """

    problem: Problem
    sde: LinearSDE
    particles: int = 1024
    shown: int = 256
    steps: tuple[int, ...] = STEPS
    exact: int = 2048
    directions: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("exact", "directions"):
            count(name, getattr(self, name))
        count("shown", self.shown, most=count("particles", self.particles))
        if not self.steps or any(self.steps[-1] % count("steps", n) for n in self.steps):
            raise ValueError(f"steps must be numbers that divide the last of them, got {self.steps}")

    @property
    def last(self) -> int:
        """The frame of the data; frame 0 is noise."""
        return self.steps[-1]

    @cached_property
    def law(self) -> GaussianMixture:
        """That of the data."""
        return self.problem.law()

    @cached_property
    def score(self) -> Diffused:
        """That of the exact law at every time."""
        return self.law.diffuse(self.sde)

    @cached_property
    def around(self) -> Reference:
        """The deviation of the data, which tells where times are needed."""
        return Reference(std=float(self.law.moments[1].square().mean().sqrt()))

    def code(self) -> str:
        """The lines that make what `Way.code` names."""
        lines = (
            "import torch",
            "from scoresde import NCSN, VE, VP, Ancestral, Flow, Langevin, Reference, grid, iid",
            "from scoresde.lab import Modes, Peaks",
            "from scoresde.lab.story import OnePath",
            "from scoresde.ode import RK4",
            "from scoresde.steps import trajectory",
            "",
            f"law, sde = {self.problem!r}.law(), {self.sde!r}",
            f"score, around = law.diffuse(sde), {self.around!r}",
            f"generator = torch.Generator().manual_seed({self._seeds[0]})",
            f"x_T = sde.prior(({self.particles}, {self.law.d}), iid(generator), torch.float64)",
            f"noise = OnePath(sde.T, ({self.particles}, {self.law.d}), {self._seeds[1]}).fresh()",
        )
        return "\n".join(lines)

    def times(self, n: int) -> Tensor:
        """(n + 1,): the grid of n steps."""
        return grid.reference(self.sde, n, around=self.around)

    @cached_property
    def _seeds(self) -> list[int]:
        return seeds(self.seed, 8)

    def _generator(self, k: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seeds[k])

    @cached_property
    def ts(self) -> Tensor:
        """(frames,): the times of the frames."""
        return self.times(self.last)

    @cached_property
    def x_T(self) -> Tensor:
        """(particles, *D): the start of every way."""
        return self.sde.prior((self.particles, *self.law.shape), iid(self._generator(0)), torch.float64)

    @cached_property
    def noise(self) -> OnePath:
        """The Brownian path of every way."""
        return OnePath(self.sde.T, (self.particles, *self.law.shape), self._seeds[1])

    @cached_property
    def width(self) -> Tensor:
        """(frames,): half the side of the window, 2.8 deviations from 0 of a dimension of x_t."""
        ts, (mean, std) = self.ts, self.law.moments
        return 2.8 * (self.sde.alpha(ts) ** 2 * (mean**2 + std**2).mean() + self.sde.var(ts)).sqrt()

    def forward(self) -> Tensor:
        """(frames, particles, *D): exact samples of the data on the same Brownian path upwards, by exact transitions
        x_t = a x_s + sqrt(v) z, in the order of the frames, from noise to data.
        """
        ts, noise = self.ts, self.noise.fresh()
        x, states = self.score.sample(self.particles, ts[-1], self._generator(2)), []
        states.append(x)
        for s, t in pairwise(ts.flip(0)):
            a, v = self.sde.transition(t, s)
            x = a * x + v.sqrt() * noise(x, t, s)
            states.append(x)
        return torch.stack(states[::-1])

    def path(self, way: Way, n: int) -> tuple[Tensor, list[int]]:
        """(n + 1, particles, *D), the states at the times of the grid, and the calls made until each. What corrects
        alone visits the first time too; there the start is kept.
        """
        score = Counted(self.score)
        states, nfe, ts = [], [], self.times(n)
        for x in trajectory(self.sde.reverse(score, way.eta), self.x_T, ts, *way.steps, noise=self.noise.fresh()):
            states.append(x)
            nfe.append(score.nfe)
        alone = len(states) - len(ts)
        return torch.stack(states[:1] + states[1 + alone :]), nfe[:1] + nfe[1 + alone :]

    @cached_property
    def flow(self) -> Tensor:
        """(frames, shown, *D): the exact flow of the particles that are shown, to 1e-9."""
        q = self.sde.reverse(self.score, 0.0)
        return torch.stack(list(trajectory(q, self.x_T[: self.shown], self.ts, Flow(Dopri5(1e-9, 1e-9)))))

    @cached_property
    def truth(self) -> list[Tensor]:
        """Samples of the exact law at every frame, (exact, *D), by one draw of data and noise."""
        return [self.score.sample(self.exact, t, self._generator(3)) for t in self.ts]

    def distance(self, x: Tensor, frame: int) -> float:
        """How far samples x are from the exact law at the time of a frame."""
        return sliced_wasserstein(x, self.truth[frame], self.directions if self.law.d > 1 else 1)

    def floor(self, frame: int) -> tuple[float, float, float]:
        """The mean, the least and the most of `distance` over `DRAWS` sets of as many exact samples as there are
        particles.
        """
        t, each = self.ts[frame], seeds(self.seed, DRAWS, start=8)
        samples = (self.score.sample(self.particles, t, torch.Generator().manual_seed(k)) for k in each)
        found = [self.distance(x, frame) for x in samples]
        return sum(found) / DRAWS, min(found), max(found)

    def density(self, frame: int, points: int) -> Tensor:
        """(points,) or (points, points): the square root of the density at the middles of the window's cells at a
        frame, divided by its largest. The first index of two is the second coordinate, from the top.
        """
        w, t = float(self.width[frame]), self.ts[frame]
        line = w * ((2 * torch.arange(points, dtype=torch.float64) + 1) / points - 1)
        if self.law.d == 1:
            at = line.flip(0)[:, None]
        else:
            at = torch.stack(torch.meshgrid(line, line.flip(0), indexing="xy"), -1).reshape(-1, 2)
        p = (self.score.log_prob(at, t) / 2).exp()
        return (p / p.max()).view((points,) * self.law.d)

    def frames(self, n: int) -> list[int]:
        """Where the states of n steps stand among the frames."""
        return list(range(0, self.last + 1, self.last // n))

    @property
    def measured(self) -> list[int]:
        """Every frame where the distance of some way is measured."""
        return sorted({frame for n in self.steps for frame in self.frames(n)[:: self._every(n)]})

    def _every(self, n: int) -> int:
        """States from one measured distance to the next."""
        return next(k for k in range(1, n + 1) if n % k == 0 and n <= MEASURED * k)

    def film(self, way: Way, n: int) -> Film:
        """A way in n steps."""
        (x, nfe), frames, every = self.path(way, n), self.frames(n), self._every(n)
        measured, seen = frames[::every], x[:, : self.shown]
        off = (seen - self.flow[frames]).square().flatten(1).mean(1).sqrt().tolist() if not way.eta else []
        distance = [self.distance(state, frame) for state, frame in zip(x[::every], measured, strict=True)]
        return Film(frames, seen, nfe, measured, distance, off, way.code(n))

    def tasks(self) -> list[tuple[str, Way, int]]:
        """Every way in every number of steps, named way/n; the flow in the most alone."""
        return [
            (f"{name}/{n}", way, n)
            for name, way in ways().items()
            for n in (self.steps if name != "flow" else self.steps[-1:])
        ]
