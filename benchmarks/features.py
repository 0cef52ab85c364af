"""EfficientNet-Lite0, for a Frechet distance in its features: "FD-EffNetLite0", which is no FID.

The architecture is that of Tan & Le (2019) without squeeze-and-excitation and with ReLU6 throughout (the Lite variant);
the numbers are ImageNet's, in a safetensors file with the names of `Block` and `EfficientNetLite0` below.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = (  # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Conv(nn.Conv2d):
    """Padded as TensorFlow does: the output has ceil(size/stride) pixels, and what is odd goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        k, s = self.kernel_size[0], self.stride[0]
        high, wide = (max((-(-n // s) - 1) * s + k - n, 0) for n in x.shape[-2:])
        return super().forward(F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)))


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation as TensorFlow's."""
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Expansion, depthwise convolution, projection; with the input added where shapes allow."""

    def __init__(self, before: int, kernel: int, stride: int, expansion: int, after: int) -> None:
        super().__init__()
        wide = before * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and before == after
        if self.expands:
            self._expand_conv, self._bn0 = Conv(before, wide, 1, bias=False), norm(wide)
        self._depthwise_conv = Conv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1, self._project_conv, self._bn2 = norm(wide), Conv(wide, after, 1, bias=False), norm(after)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(h)))))
        return x + h if self.adds else h


class EfficientNetLite0(nn.Module):
    """Images (B, 3, H, W) of grey levels 0..255 to ImageNet's 1000 logits; `features` are the 1280 numbers before."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = Conv(3, 32, 3, 2, bias=False), norm(32)
        self._blocks, before = nn.ModuleList(), 32
        for n, kernel, stride, expansion, after in STAGES:
            for i in range(n):
                self._blocks.append(Block(before, kernel, stride if i == 0 else 1, expansion, after))
                before = after
        self._conv_head, self._bn1, self._fc = Conv(320, 1280, 1, bias=False), norm(1280), nn.Linear(1280, 1000)

    def features(self, x: Tensor) -> Tensor:
        """(B, 1280)."""
        h = F.relu6(self._bn0(self._conv_stem((x - 127) / 128)))
        for block in self._blocks:
            h = block(h)
        return F.relu6(self._bn1(self._conv_head(h))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self._fc(self.features(x))


class Features:
    """The features of images on [-1, 1], scaled to `side` pixels a side: (n, 1 or 3, H, W) -> (n, 1280)."""

    def __init__(self, weights: Path, device: str, side: int = 224) -> None:
        net = EfficientNetLite0()
        net.load_state_dict(load_file(weights))
        self.net, self.device, self.side = net.to(device).eval(), device, side

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([self.net.features(part).cpu() for part in self._scaled(x)])

    def _scaled(self, x: Tensor) -> Iterator[Tensor]:
        for part in x.split(256):
            grey = ((part.to(self.device) + 1) * 127.5).round().clamp(0, 255).expand(-1, 3, -1, -1)
            yield F.interpolate(grey, (self.side, self.side), mode="bilinear")
