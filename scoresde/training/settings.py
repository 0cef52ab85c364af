"""How a training is to go."""

from dataclasses import dataclass

import torch

from ..loss import LogNormal, Times, Weight
from ..shapes import count, number
from .averages import rate

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """How to train. Raises ValueError, naming the field, where one is out of range."""

    steps: int = 5000
    """Optimiser steps."""
    batch: int = 32
    """Samples a step, over all processes together."""
    lr: float = 4e-3
    """The learning rate of Adam, after warm-up and before its linear decay to 0."""
    warmup: int | None = None
    """Steps over which the learning rate rises from 0: 100, or all if there are fewer, unless given."""
    decay: float = 0.5
    """The share of the steps, at the end, over which it falls to 0."""
    beta2: float = 0.99
    """Adam's memory of squared gradients."""
    clip: float = 1.0
    """The largest norm of a step's gradient."""
    ema: float = 0.05
    """Half-life of the averaged weights, as a part of the steps so far (Karras et al. 2022, 2024)."""
    weight: Weight | None = None
    """The weight of the loss at each noise level; 1 on the network's output unless given."""
    times: Times = LogNormal()
    """The law that times are drawn from."""
    stratified: bool = True
    """Whether the times of a batch are spread evenly over their law."""
    label_dropout: float = 0.1
    """The share of labels hidden from a network that has classes."""
    precision: str = "float32"
    """What the network is computed in: float32, or by autocast bfloat16, or float16, whose loss is scaled so that its
    gradients do not vanish (Micikevicius et al. 2018). Weights, their average and the loss stay in float32."""
    seed: int = 0
    """The seed of batches, times and noise."""
    accumulate: int = 1
    """Equal parts of a process's share of the batch that go through the network one after the other, which takes less
    memory for the same gradient, to the rounding of sums, if the network draws nothing."""
    weight_decay: float = 0.0
    """What is taken from weights of two and more dimensions at a step, in units of lr times themselves (AdamW:
    Loshchilov & Hutter 2019)."""
    flips: bool = False
    """Show images and their mirror images equally often."""
    snapshots: int = 0
    """How often, after equally many steps, averages are kept of which `training.averaged` makes others afterwards."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            count(name, getattr(self, name))
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not isinstance(self.flips, bool):
            raise ValueError(f"flips must be True or False, got {self.flips!r}")
        if self.warmup is not None and count("warmup", self.warmup, least=0) > self.steps:
            raise ValueError(f"warmup must not be longer than the training of {self.steps} steps, got {self.warmup}")
        count("seed", self.seed, least=0)
        number("lr", self.lr, above=0)
        number("weight_decay", self.weight_decay, least=0)
        number("clip", self.clip, above=0)
        number("decay", self.decay, least=0, most=1)
        number("beta2", self.beta2, above=0, below=1)
        number("ema", self.ema, above=0)
        count("snapshots", self.snapshots, least=0, most=self.steps)
        number("label_dropout", self.label_dropout, least=0, most=1)

    def lr_factor(self, step: int) -> float:
        """The learning rate of step 1, 2, ... in units of `lr`."""
        rising = min(100, self.steps) if self.warmup is None else self.warmup
        left = (self.steps - step + 1) / max(1.0, self.decay * self.steps)
        return min(1.0, step / max(1, rising), left)

    def ema_rate(self, step: int) -> float:
        """The share by which the average moves at a step: 1 - 2^(-1/(ema step))."""
        return rate(self.ema, step)


def evenly(step: int, steps: int, times: int) -> bool:
    """Whether step 1, 2, ... of `steps` is one of so many, after equally many steps each."""
    return step > 0 and step * times // steps > (step - 1) * times // steps
