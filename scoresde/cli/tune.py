"""`scoresde tune`."""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from ..checkpoint import load
from ..count import Counted
from ..model import transport
from ..problems import DigitClasses, Lattice, Modes
from ..processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from ..sde import LinearSDE, Score
from ..shapes import count
from ..tune import tune
from .common import Command

KNOWN = 2000  # samples of the data that tell its mean and deviation


@dataclass(frozen=True, kw_only=True)
class Tune(Command):
    """Fit a solver of the probability flow to one model: grid, residual size and weights from its own trajectories.

    The result is JSON, which `scoresde sample MODEL --tuned FILE` takes. It is tried on trajectories that it was not
    fitted to, beside the usual methods on the usual grids; where one of these is better, that is what is written.
    Without a MODEL the score is that of an exact law.
    """

    model: tyro.conf.Positional[Path | None] = None
    """The folder of a checkpoint; without one, the exact law."""
    law: None | Modes | Lattice | DigitClasses = None
    """The exact law, without a model; a ring of 8 modes unless given."""
    sde: None | VP | VE | SubVP | Cosine | RectifiedFlow | EDM = None
    """The process; the one that a checkpoint was trained on, and VP for an exact law, unless given."""
    nfe: int = 10
    """Network calls of the solver."""
    pilots: int = 64
    """Trajectories in each of the three sets: one to fit, one to decide, one to report."""
    out: Path = Path("runs/tuned.json")
    """The file to write."""

    def run(self) -> None:
        """Tune, and say how good the result is."""
        count("nfe", self.nfe, least=2)
        if self.model and self.law:
            raise ValueError(f"law must not be given beside a model, got {self.law!r}")
        if self.out.is_dir():
            raise ValueError(f"out must be a file to write, and {self.out} is a folder")
        sde, score, shape, data, dtype = self._subject(self.place())
        counted = Counted(score)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        found = tune(
            sde.reverse(counted, 0.0),
            shape,
            self.nfe,
            data,
            pilots=self.pilots,
            seed=self.seed,
            dtype=dtype,
            device=self.place(),
            progress=lambda said: print(f"... {said}"),
        )
        found.save(self.out)
        print(f"{found.name}, {found.calls} network calls: error {found.fresh} on fresh noise")
        print(f"on the pilots that decided: {found.validation}")
        print(f"there, {found.untuned}, the best method without a fit: {found.untuned_validation}")
        if not found.tuned:
            print("no fit was better, so that method is what was written")
        print(f"noise amplification {found.noise_amplification:.2f}; {counted.nfe} network calls to tune; {self.out}")

    def _subject(self, device: torch.device) -> tuple[LinearSDE, Score, tuple[int, ...], Tensor | None, torch.dtype]:
        """(sde, score, shape, data, dtype)."""
        if self.model is None:
            law, g = (self.law or Modes()).law(), torch.Generator().manual_seed(self.seed)
            sde: LinearSDE = self.sde or VP()
            return sde, law.to(device).diffuse(sde), tuple(law.shape), law.sample(KNOWN, g), torch.float64
        checkpoint = load(self.model, device=device)
        own: LinearSDE = checkpoint.model.sde
        sde = self.sde or own
        score = checkpoint.model if sde == own else transport(checkpoint.model, own, sde)
        data = checkpoint.source.load().train[:KNOWN] if checkpoint.source else None
        return sde, score, checkpoint.shape, data, torch.float32
