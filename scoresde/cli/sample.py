"""`scoresde sample`."""

import math
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from .. import grid, multistep
from ..ancestral import Ancestral
from ..checkpoint import Checkpoint, describe, load, write
from ..correct import NCSN, SNR, Constant, Langevin
from ..count import Counted
from ..exponential import DATA, Reference, fit_reference
from ..model import transport
from ..multistep import DPMSolverPP, GaussianReference
from ..noise import iid
from ..ode import RK4, Dopri5, Euler, Heun
from ..predict import EulerMaruyama, Flow, ReverseDiffusion
from ..processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from ..progress import bar
from ..report import grid_picture
from ..sample import Step, sample
from ..sde import LinearSDE, Reverse, Score
from ..shapes import count
from ..tuned import Tuning
from .common import Command, as_bytes, draw, recipe

ODE = Euler | Heun | RK4 | Dopri5
KNOWN = 2000  # samples of the training data that tell its mean and deviation


@dataclass(frozen=True)
class Gaussian:
    """Multistep, exact for Gaussian data with the mean and deviation of the training data."""

    def step(self, around: Reference) -> Step:
        """The step."""
        return GaussianReference(around)


@dataclass(frozen=True)
class DPM:
    """Multistep DPM-Solver++."""

    order: int = 2
    """1, 2 or 3."""

    def step(self, around: Reference) -> Step:
        """The step."""
        return DPMSolverPP(self.order)


@dataclass(frozen=True)
class UniPC:
    """Unified predictor-corrector."""

    order: int = 3
    """1, 2 or 3."""

    def step(self, around: Reference) -> Step:
        """The step."""
        return multistep.UniPC(self.order)


FAST = Gaussian | DPM | UniPC


@dataclass(frozen=True, kw_only=True)
class Sample(Command):
    """Draw samples from a checkpoint: which process, on which times, by which steps.

    The default solves the probability flow in 20 network calls; predictor:ancestral is DDPM, corrector:snr makes a
    predictor-corrector sampler, and predictor:none corrector:snr sde:ve is annealed Langevin dynamics. Samples go to
    samples.npy and a picture of them to samples.png; an interrupted run goes on when called again.
    """

    model: tyro.conf.Positional[Path]
    """The folder of the checkpoint."""
    n: int = 64
    """How many samples to draw."""
    steps: int | None = None
    """Steps of the grid of times. Unless given 20 for gaussian, dpm and uni-pc, 1 for dopri5, which chooses its own
    steps in between, and 100 otherwise."""
    spacing: Literal["uniform", "quadratic", "log_snr", "karras", "reference"] | None = None
    """How the times are spaced: equally in t, sqrt(t), log-SNR, as in Karras et al. 2022, or most where the noise is as
    large as the data. Unless given the last for gaussian, dpm and uni-pc, and the first otherwise."""
    end: float | None = None
    """The last time; the process's own t_min unless given."""
    predictor: (
        Gaussian | DPM | UniPC | Ancestral | EulerMaruyama | ReverseDiffusion | Euler | Heun | RK4 | Dopri5 | None
    ) = Gaussian()
    """The step that moves on in time. The first three take any eta, the last four the probability flow alone."""
    tuned: Path | None = None
    """A file that `scoresde tune` wrote: its step and grid in place of predictor, steps, spacing and end."""
    corrector: None | SNR | NCSN | Constant = None
    """The step size of Langevin corrections before each step, if any."""
    corrections: int = 1
    """Langevin corrections at each time."""
    eta: float | None = None
    """1 for the reverse SDE, 0 for the probability flow. Unless given 0 for the solvers of the flow, and for gaussian,
    dpm and uni-pc without a corrector; 1 otherwise."""
    sde: None | VP | VE | SubVP | Cosine | RectifiedFlow | EDM = None
    """Sample another process with the same network; the one that it was trained on, unless given."""
    label: int | None = None
    """The class to sample, if the network has classes."""
    denoise: bool = True
    """End with the mean of the data given the last state, one more network call."""
    batch: int = 256
    """Samples drawn together. The samples do not depend on it."""
    out: Path = Path("runs/samples")
    """The folder for the samples."""

    def run(self) -> None:
        """Sample."""
        n, batch, device = count("n", self.n), count("batch", self.batch), self.place()
        found = load(self.model, device=device)
        score = Counted(self._score(found, device))
        if self.steps is not None:
            count("steps", self.steps)
        if self.tuned:
            p, ts, steps = self._as_tuned(found, score)
        else:
            p = self._process(found, score)
            around = self._around(found, p)
            ts, steps = self._times(p.sde, around), self._steps(around)
        chosen = {k: v for k, v in vars(self).items() if k not in ("model", "out", "batch", "device")}
        solver = sha256(self.tuned.read_bytes()).hexdigest() if self.tuned else None
        recipe(self.out, weights=found.digest, solver=solver, **chosen)
        done = self.out / "samples.npy"
        if done.is_file():
            print(f"{done} is complete already")
            return
        parts, drawn = [], 0
        for start in bar(range(0, n, batch), desc="sample", unit="batch"):
            size = min(batch, n - start)
            part = self.out / f"part-{start:08d}-{size:08d}.npy"
            if not part.is_file():
                options = {"seed": self.seed, "n": size, "start": start, "device": device, "denoise": self.denoise}
                x = draw(p, found.shape, ts, steps, progress="steps", **options)
                write(part, as_bytes(x.cpu().numpy()))
                drawn += 1
            parts.append(part)
        x = torch.from_numpy(np.concatenate([np.load(part, allow_pickle=False) for part in parts]))
        if (x.ndim == 4 and x.shape[1] in (1, 3)) or x.shape[1:] == (2,):
            grid_picture(x[: 256 if x.ndim == 4 else 20_000], self.out / "samples.png")
        write(done, as_bytes(x.numpy()))  # last, since it says that all is there
        for part in self.out.glob("part-*.npy"):
            part.unlink()
        print(f"{n} samples in {self.out}: {score.nfe} network calls now, in {drawn} of {len(parts)} batches")

    def _score(self, found: Checkpoint, device: torch.device) -> Score:
        classes = getattr(found.model.net, "classes", 0)
        if self.label is None:
            return found.model
        if not classes:
            raise ValueError(f"label must not be given, since the network has no classes, got {self.label}")
        if not 0 <= self.label < classes:
            raise ValueError(f"label must be one of the network's classes, 0 to {classes - 1}, got {self.label}")
        label = torch.tensor(self.label, device=device)
        return lambda x, t: found.model(x, t, label=label.expand(len(x)))

    def _around(self, found: Checkpoint, p: Reverse) -> Reference:
        """The mean and deviation of the training data, or of some samples where they are not at hand."""
        if not isinstance(self.predictor, FAST):
            return DATA
        if found.source:
            return fit_reference(found.source.load().train[:KNOWN])
        q = p.sde.reverse(p.score, 0.0)
        x_T = p.sde.prior((256, *found.shape), iid(torch.Generator().manual_seed(0)), torch.float32, self.place())
        return fit_reference(sample(q, x_T, grid.log_snr(p.sde, 20), DPMSolverPP(2)) / float(p.sde.alpha(p.sde.t_min)))

    def _times(self, sde: LinearSDE, around: Reference) -> Tensor:
        fast, own = isinstance(self.predictor, FAST), isinstance(self.predictor, Dopri5)
        n = (20 if fast else 1 if own else 100) if self.steps is None else self.steps
        spacing = self.spacing or ("reference" if fast else "uniform")
        if spacing == "reference":
            return grid.reference(sde, n, self.end, around.std or 0.5)
        return getattr(grid, spacing)(sde, n, self.end)

    def _process(self, found: Checkpoint, score: Score) -> Reverse:
        own: LinearSDE = found.model.sde
        sde = self.sde or own
        flow = isinstance(self.predictor, ODE) or (isinstance(self.predictor, FAST) and self.corrector is None)
        eta = (0.0 if flow else 1.0) if self.eta is None else self.eta
        most = 0.0 if isinstance(self.predictor, ODE) else 1.0 if isinstance(self.predictor, Ancestral) else math.inf
        if eta > most:
            raise ValueError(f"eta must be at most {most:g} for this predictor, got {eta:g}")
        return sde.reverse(score if sde == own else transport(score, own, sde), eta)

    def _as_tuned(self, found: Checkpoint, score: Score) -> tuple[Reverse, Tensor, tuple[Step, ...]]:
        """Process, times and steps of a tuned solver."""
        assert self.tuned is not None
        default = Sample(model=self.model)
        for name in ("steps", "spacing", "end", "predictor", "corrector", "corrections", "eta", "sde"):
            if getattr(self, name) != getattr(default, name):
                raise ValueError(f"{name} must not be given beside tuned, which says it, got {getattr(self, name)!r}")
        solver, own = Tuning.load(self.tuned), found.model.sde
        same = describe(solver.sde) == describe(own)
        return (
            solver.sde.reverse(score if same else transport(score, own, solver.sde), 0.0),
            solver.ts,
            (solver.step,),
        )

    def _steps(self, around: Reference) -> tuple[Step, ...]:
        predictor: Step | None
        if isinstance(self.predictor, FAST):
            predictor = self.predictor.step(around)
        else:
            predictor = Flow(self.predictor) if isinstance(self.predictor, ODE) else self.predictor
        if self.corrector is None and self.corrections != 1:
            raise ValueError(
                f"corrections need a corrector, such as corrector:snr, got --corrections {self.corrections}"
            )
        corrector = Langevin(self.corrector, self.corrections) if self.corrector else None
        steps = tuple(step for step in (corrector, predictor) if step is not None)
        if not steps:
            raise ValueError("predictor and corrector must not both be none")
        return steps
