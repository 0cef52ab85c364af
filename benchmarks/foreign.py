"""Networks that were not trained here, as scores: two small published ones, in ../shared/data of the repository.

They are epsilon-networks of 28x28 images on [-1, 1], made for T = 1000 and linear betas, and are rough in time: a hard
test of what a likelihood says of its own error.
"""

import gzip
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from scoresde import ScoreModel
from scoresde.interop import from_betas
from scoresde.process import linear_betas
from scoresde.quantize import Quantized

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
GREY = Quantized(256, -1.0, 1.0)
STAGES = {  # height, input channels, output channels of the three blocks; the channels that the time is told in
    "b1": (28, 1, (10, 10, 10)),
    "b2": (14, 10, (20, 20, 20)),
    "b3": (7, 20, (40, 40, 40)),
    "b_mid": (3, 40, (20, 20, 40)),
    "b4": (7, 80, (40, 20, 20)),
    "b5": (14, 40, (20, 10, 10)),
    "b_out": (28, 20, (10, 10, 10)),
}


class Block(nn.Module):
    """Normalised over (C, H, W), two convolutions, each followed by SiLU."""

    def __init__(self, height: int, enter: int, leave: int, plain: bool) -> None:
        super().__init__()
        self.ln = nn.LayerNorm((enter, height, height))
        self.conv1, self.conv2 = nn.Conv2d(enter, leave, 3, padding=1), nn.Conv2d(leave, leave, 3, padding=1)
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        silu = nn.functional.silu
        return silu(self.conv2(silu(self.conv1(x if self.plain else self.ln(x)))))


class Published(nn.Module):
    """A U-Net of seven stages, told a step index from 0 to 999, which need not be whole."""

    def __init__(self) -> None:
        super().__init__()
        for name, (height, enter, widths) in STAGES.items():
            sizes = zip((enter, *widths), widths, strict=False)
            blocks = [Block(height, a, b, name == "b_out" and k == 2) for k, (a, b) in enumerate(sizes)]
            setattr(self, name, nn.Sequential(*blocks))
            told = nn.Sequential(nn.Linear(100, enter), nn.SiLU(), nn.Linear(enter, enter))
            setattr(self, name.replace("b", "te", 1), told)
        self.time_embed = nn.Embedding(1000, 100)
        self.down1, self.down2 = nn.Conv2d(10, 10, 4, 2, 1), nn.Conv2d(20, 20, 4, 2, 1)
        self.down3 = nn.Sequential(nn.Conv2d(40, 40, 2, 1), nn.SiLU(), nn.Conv2d(40, 40, 4, 2, 1))
        self.up1 = nn.Sequential(nn.ConvTranspose2d(40, 40, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(40, 40, 2, 1))
        self.up2, self.up3 = nn.ConvTranspose2d(20, 20, 4, 2, 1), nn.ConvTranspose2d(10, 10, 4, 2, 1)
        self.conv_out = nn.Conv2d(10, 1, 3, padding=1)

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        # the even rows of the published table, as a function of time; its odd rows run backwards
        w = 10_000.0 ** (-2 * torch.arange(100, device=x.device) / 100)
        clock = (i[:, None] * w).sin().to(x)

        def stage(name: str, x: Tensor) -> Tensor:
            told = getattr(self, name.replace("b", "te", 1))(clock)
            return getattr(self, name)(x + told[:, :, None, None])

        one = stage("b1", x)
        two = stage("b2", self.down1(one))
        three = stage("b3", self.down2(two))
        mid = stage("b_mid", self.down3(three))
        four = stage("b4", torch.cat([three, self.up1(mid)], 1))
        five = stage("b5", torch.cat([two, self.up2(four)], 1))
        return self.conv_out(stage("b_out", torch.cat([one, self.up3(five)], 1)))


def published(name: str) -> ScoreModel:
    """The network of "mnist" or "fashion", without gradients of its weights."""
    found = load_file(SHARED / "weights" / f"ddpm_{name}_brianpulfer.safetensors")
    net = Published()
    net.load_state_dict({key.removeprefix("network."): value for key, value in found.items()})
    return from_betas(net, linear_betas(), data=images(name, 64))


def images(name: str, n: int) -> Tensor:
    """The first n test images of "mnist" or "fashion", on the grid GREY: (n, 1, 28, 28)."""
    folder = SHARED / {"mnist": "mnist", "fashion": "fashion-mnist"}[name]
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read(16 + 784 * n), np.uint8, offset=16)
    return torch.from_numpy(raw.reshape(n, 1, 28, 28).copy()).float() / 127.5 - 1
