"""Networks for `ScoreModel`: called as `net(x, c, label=None)` with x (B, *D), c and label (B,), they return x's shape.

`MLP` is for vectors and small arrays, `UNet` for series, images and volumes; `DDPMpp` and `NCSNpp` are the published
arrangements of Song et al. (2021) for images. Any other nn.Module with that signature serves as well.
`MLPEncoder` and `UNetEncoder` are for `ClassModel`, net(x, c) to logits.
"""

from .embed import Network, drop_labels
from .encoder import MLPEncoder, UNetEncoder
from .mlp import MLP
from .song import DDPMpp, NCSNpp
from .unet import UNet

__all__ = [
    "DDPMpp", "MLP", "MLPEncoder", "NCSNpp", "Network", "UNet", "UNetEncoder", "drop_labels",
]  # fmt: skip
