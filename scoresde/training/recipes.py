"""Recipes: what to train on well-known images, as values.

A name is DATA-PROCESS, such as "mnist-vp", or DATA-PROCESS-likelihood, which is for small -log p rather than for
samples to look at. The former draws noise levels by a log-normal law with weight 1 on the network's output (Karras et
al. 2022); the latter takes the weight g^2 with which the loss bounds -log p, and times in proportion to g^2/sigma^2,
which are uniform in log SNR, so that its gradient varies least (Song et al. 2021b, section 5). For uniform
dequantisation of 256 levels these go down to noise of about an eighth of a level.

Those of digits, MNIST and Fashion-MNIST are for hours of one CPU core at most. Those of CIFAR-10 are for a GPU: the
networks are Song et al.'s (2021), NCSN++ for VE and DDPM++ for the others, in the size for which it published results,
told log SNR or, for VE, log sigma; a smaller one is named beside the recipe, as in `--net "NCSNpp(width=32)"`.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..data import Dataset
from ..loss import LogNormal, MaximumLikelihood, Unbiased, UniformLogSNR
from ..model import Clock, Karras, LogSNR, ScoreModel
from ..nn import MLP, DDPMpp, MLPEncoder, NCSNpp, UNet, UNetEncoder
from ..noise import seeded
from ..process import EDM, VE, VP, LinearSDE, SubVP
from .settings import Settings


@dataclass(frozen=True)
class Recipe:
    """A process, a network with its arguments, what it is told the noise level by, and settings."""

    sde: LinearSDE
    width: int
    multipliers: tuple[int, ...]
    settings: Settings
    net: type[UNet | DDPMpp] = UNet
    blocks: int = 2
    attention: int | tuple[int, ...] = 1
    dropout: float = 0.0
    clock: Clock = LogSNR()

    def model(self, data: Dataset, conditional: bool = False) -> ScoreModel:
        """Before training; its first weights depend on the seed of the settings alone. conditional: with a class for
        each label of the data.
        """
        options: dict[str, Any] = {"attention": self.attention, "classes": data.classes * conditional}
        with seeded(self.settings.seed):
            net = self.net(data.shape, self.width, self.multipliers, self.blocks, dropout=self.dropout, **options)
            return ScoreModel(net, self.sde, Karras(data.around), self.clock)


IMAGES = {
    "digits": Recipe(VP(), 16, (1, 2), Settings(steps=12_000), dropout=0.1),
    "mnist": Recipe(VP(), 16, (1, 2, 2), Settings(steps=10_000, batch=64, lr=3e-3)),
    "fashion-mnist": Recipe(VP(), 16, (1, 2, 2), Settings(steps=10_000, batch=64, lr=3e-3)),
    "cifar10": Recipe(
        VP(),
        128,
        (1, 2, 2, 2),
        Settings(steps=400_000, batch=128, lr=2e-4, warmup=5_000, flips=True),
        net=DDPMpp,
        blocks=4,
        attention=(16,),
        dropout=0.1,
    ),
}
TIMES = UniformLogSNR()


def _processes(images: str) -> dict[str, tuple[LinearSDE, LinearSDE]]:
    """Down to the noise for samples, and for likelihoods; the 17 levels of the digits are wide enough for either."""
    if images == "digits":
        return {k: (sde, sde) for k, sde in (("vp", VP()), ("subvp", SubVP()), ("ve", VE(0.01, 20.0)), ("edm", EDM()))}
    return {
        "vp": (VP(), VP(t_min=1e-5)),
        "subvp": (SubVP(), SubVP(t_min=6e-3)),
        "ve": (VE(0.01, 50.0), VE(0.001, 50.0)),
        "edm": (EDM(), EDM(t_min=0.001)),
    }


def _made() -> dict[str, Recipe]:
    found = {}
    for images, recipe in IMAGES.items():
        likely = replace(recipe.settings, times=TIMES, weight=Unbiased(MaximumLikelihood(), TIMES))
        for process, (for_samples, for_likelihood) in _processes(images).items():
            own = recipe
            if recipe.net is DDPMpp and process == "ve":
                own = replace(recipe, net=NCSNpp, clock=LogSNR(-1.0))
            found[f"{images}-{process}"] = replace(own, sde=for_samples)
            found[f"{images}-{process}-likelihood"] = replace(own, sde=for_likelihood, settings=likely)
    return found


RECIPES = _made()
"""By name."""


def usual_net(shape: tuple[int, ...], classes: int = 0) -> MLP | UNet:
    """The network for samples of a shape where none is named: an MLP for vectors, whose width grows with them; for
    series, images and volumes a U-Net that halves the sides until they are about 8, at most five times, of width 16 for
    one channel of at most 32 pixels a side, as in the recipes of digits and MNIST, and else 32.
    """
    if not 2 <= len(shape) <= 4:
        size = math.prod(shape)
        return MLP(shape, 128 if size <= 32 else 256 if size <= 256 else 512, classes=classes)
    side = max(shape[1:])
    levels = min(5, max(1, math.ceil(math.log2(side / 8))))
    return UNet(shape, 16 if shape[0] == 1 and side <= 32 else 32, (1, *[2] * levels), classes=classes)


def usual_encoder(shape: tuple[int, ...], classes: int) -> MLPEncoder | UNetEncoder:
    """The network of a classifier where none is named: as wide and as deep as `usual_net`."""
    config: dict[str, Any] = usual_net(shape).config
    if "multipliers" not in config:
        return MLPEncoder(shape, classes, config["width"])
    return UNetEncoder(shape, classes, config["width"], config["multipliers"])


def usual_settings(net: nn.Module, data: Dataset, classifier: bool = False) -> Settings:
    """Settings for a network and data where nothing is said: the learning rate falls in inverse proportion to a width
    above that of the recipes of digits, and 10,000 images or more come in batches of 64. A classifier sees much noise
    more often: what a score knows there by its parametrisation, that nothing can be told, it must learn.
    """
    most = 1.0
    if isinstance(net, MLP | UNet | DDPMpp | MLPEncoder | UNetEncoder):
        config: dict[str, Any] = net.config
        most = (128 if isinstance(net, MLP | MLPEncoder) else 16) / config["width"]
    large = len(data.shape) == 3 and len(data.train) >= 10_000
    times = LogNormal(0.0, 2.0) if classifier else Settings.times
    return Settings(lr=Settings.lr * min(1.0, most), batch=64 if large else Settings.batch, times=times)
