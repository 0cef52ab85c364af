"""The units of continuous data: what a network sees has mean 0 and deviation 1 in every feature.

Noise is of one size in all dimensions, so that columns of a table in millimetres and in tons have no noise level that
suits both. A density of y, where x = mean + std y, is one of x: log p(x) = log p(y) - sum log std.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import number


@dataclass(frozen=True)
class Units:
    """x = mean + std y, feature by feature: the columns of vectors (n, d), the channels of series, images and volumes
    (n, C, ...). Raises ValueError unless there are as many deviations, all > 0, as means, and at least one.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            told = getattr(self, name)
            if not isinstance(told, list | tuple) or not told:
                raise ValueError(f"{name} must be a number for each feature, got {told!r}")
            least = {"above": 0} if name == "std" else {}
            object.__setattr__(self, name, tuple(number(name, v, **least) for v in told))
        if len(self.mean) != len(self.std):
            raise ValueError(f"std must have a number for each of the {len(self.mean)} means, got {len(self.std)}")

    def __repr__(self) -> str:
        return f"Units(of {len(self.mean)} features)"

    @classmethod
    def fit(cls, x: Tensor) -> "Units":
        """Mean and deviation of every feature of x (n, C, ...); a feature that is constant keeps the deviation 1."""
        rows = x.to(torch.float64).transpose(0, 1).flatten(1)
        std = rows.std(1, correction=0)
        varies = (rows != rows[:, :1]).any(1)
        return cls(tuple(rows.mean(1).tolist()), tuple(torch.where(varies, std, 1.0).tolist()))

    def standardise(self, x: Tensor) -> Tensor:
        """y, in float64. Raises ValueError for another number of features."""
        mean, std = self._like(x)
        return (x.to(torch.float64) - mean) / std

    def restore(self, y: Tensor) -> Tensor:
        """x, in float64, since float32 does not tell numbers apart that lie far from 0."""
        mean, std = self._like(y)
        return mean + std * y.to(torch.float64)

    def log_volume(self, shape: tuple[int, ...] | torch.Size) -> float:
        """log |dx/dy| of one sample of that shape, which log p(y) is larger by than log p(x)."""
        return math.prod(shape[1:]) * sum(math.log(std) for std in self.std)

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim < 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"x must have {len(self.mean)} features, (n, {len(self.mean)}, ...), got {tuple(x.shape)}")
        shape = (-1, *(1,) * (x.ndim - 2))
        mean, std = (torch.tensor(v, dtype=torch.float64, device=x.device).view(shape) for v in (self.mean, self.std))
        return mean, std
