"""`scoresde train`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from .. import loss
from ..checkpoint import exists
from ..data import Array, Checkerboard, Digits, Images, Moons, Ring, SwissRoll
from ..model import Karras, ScoreModel
from ..noise import seeded
from ..processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from ..train import Settings, train
from .common import MLP, Command, UNet, join_processes

Data = Digits | Ring | Moons | SwissRoll | Checkerboard | Array | Images
Process = VP | VE | SubVP | Cosine | RectifiedFlow | EDM


@dataclass(frozen=True)
class Options(Settings):
    """The numbers of a training; the rest of its settings are options of the command."""

    weight: tyro.conf.Suppress[loss.Weight] = loss.Karras()
    times: tyro.conf.Suppress[loss.Times] = loss.LogNormal()
    seed: tyro.conf.Suppress[int] = 0


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train a score network on data, and write a checkpoint. An interrupted training goes on when called again.

    For example: scoresde train data:digits sde:vp --steps 2000 --out runs/digits.
    Several processes can share one training: torchrun --nproc-per-node 2 -m scoresde train data:digits
    """

    data: Data
    """What to train on."""
    sde: Process = VP()
    """The forward process, from data to noise."""
    net: None | UNet | MLP = None
    """The network; a U-Net for images and an MLP otherwise, unless given."""
    weight: None | loss.Karras | loss.Simple | loss.Likelihood | loss.SNR = None
    """The weight of the loss at each noise level; Karras with the data's standard deviation, unless given."""
    times: loss.LogNormal | loss.Uniform | loss.UniformLogSNR = loss.LogNormal()
    """The law that training times are drawn from; weight:likelihood is divided by its density."""
    conditional: bool = False
    """Tell the network the labels, if the data have them, and hide a share of them (--label-dropout)."""
    settings: Annotated[Options, tyro.conf.arg(name="")] = Options()
    """How to train."""
    out: Path = Path("runs/model")
    """The folder for the checkpoint."""

    def run(self) -> None:
        """Train."""
        rank, device = join_processes(), self.place()
        data = self.data.load()
        sigma_data = float(data.train.std())
        given = {f.name: getattr(self.settings, f.name) for f in fields(Settings)}
        if not sigma_data > 0:
            raise ValueError(f"data must hold different samples to train on, got standard deviation {sigma_data:g}")
        weight: loss.Weight = self.weight or loss.Karras(sigma_data)
        if isinstance(weight, loss.Likelihood) and not isinstance(self.times, loss.Uniform):
            weight = loss.Unbiased(weight, self.times)  # the same objective, whatever the law of t
        settings = Settings(**{**given, "weight": weight, "times": self.times, "seed": self.seed})
        net = self.net or (UNet() if len(data.shape) == 3 else MLP())
        if self.conditional and not data.classes:
            raise ValueError("conditional training needs data with labels")
        with seeded(self.seed):
            model = ScoreModel(net.build(data.shape, data.classes * self.conditional), self.sde, Karras(sigma_data)).to(
                device
            )
        train(model, data, settings, folder=self.out, source=self.data, resume=exists(self.out))
        if rank == 0:
            print(f"trained {settings.steps} steps; the checkpoint is in {self.out}")
