"""`scoresde sample`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from .. import grid
from ..ancestral import Ancestral
from ..checkpoint import Checkpoint, describe, load, write
from ..correct import NCSN, SNR, Constant, Langevin
from ..count import Counted
from ..model import transport
from ..ode import RK4, Dopri5, Euler, Heun
from ..predict import EulerMaruyama, Flow, ReverseDiffusion
from ..processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from ..progress import bar
from ..report import grid_picture
from ..sample import Step
from ..sde import LinearSDE, Reverse, Score
from ..shapes import count
from ..tune import Tuning
from .common import Command, as_bytes, draw, recipe

ODE = Euler | Heun | RK4 | Dopri5


@dataclass(frozen=True, kw_only=True)
class Sample(Command):
    """Draw samples from a checkpoint: which process, on which times, by which steps.

    DDPM is the default; predictor:heun is the probability-flow ODE, corrector:snr makes a predictor-corrector sampler,
    and predictor:none corrector:snr sde:ve is annealed Langevin dynamics. Samples go to samples.npy and a picture of
    them to samples.png; an interrupted run goes on when called again.
    """

    model: tyro.conf.Positional[Path]
    """The folder of the checkpoint."""
    n: int = 64
    """How many samples to draw."""
    steps: int | None = None
    """Steps of the grid of times; 100 unless given, and 1 for dopri5, which chooses its own steps in between."""
    spacing: Literal["uniform", "quadratic", "log_snr", "karras"] = "uniform"
    """How the times are spaced: equally in t, sqrt(t), log-SNR, or as in Karras et al. 2022."""
    end: float | None = None
    """The last time; the process's own t_min unless given."""
    predictor: Ancestral | EulerMaruyama | ReverseDiffusion | Euler | Heun | RK4 | Dopri5 | None = Ancestral()
    """The step that moves on in time. The last four are solvers of the probability-flow ODE."""
    tuned: Path | None = None
    """A file that `scoresde tune` wrote: its step and grid in place of predictor, steps, spacing and end."""
    corrector: None | SNR | NCSN | Constant = None
    """The step size of Langevin corrections before each step, if any."""
    corrections: int = 1
    """Langevin corrections at each time."""
    eta: float | None = None
    """1 for the reverse SDE, 0 for the probability flow; 0 for ODE solvers and 1 otherwise, unless given."""
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
            p, steps = self._process(found, score), self._steps()
            intervals = (1 if isinstance(self.predictor, Dopri5) else 100) if self.steps is None else self.steps
            ts = getattr(grid, self.spacing)(p.sde, intervals, self.end)
        chosen = {k: v for k, v in vars(self).items() if k not in ("model", "out", "batch", "device")}
        recipe(self.out, weights=found.digest, **chosen)
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

    def _process(self, found: Checkpoint, score: Score) -> Reverse:
        own: LinearSDE = found.model.sde
        sde = self.sde or own
        eta = (0.0 if isinstance(self.predictor, ODE) else 1.0) if self.eta is None else self.eta
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

    def _steps(self) -> tuple[Step, ...]:
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
