"""Randomness as an argument.

A noise is a callable `(x, t, s) -> z` with z ~ N(0, I), shaped, typed and placed like x, for the step from t to s.
Every random step, prior and perturbation of the library takes one, so that the caller decides what the result
depends on: one generator (`iid`), the seed of each sample alone (`per_sample`), or a Brownian path (`Path`).
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .shapes import answer, count, floating, function, shown, wide


class Noise(Protocol):
    """z ~ N(0, I) like x, for the interval from time t to time s."""

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, /) -> Tensor: ...


def require_noise(noise: Any) -> Noise:
    """Return noise; raise ValueError unless it can be asked."""
    return function("noise", noise, "a callable (x, t, s) -> z, such as iid()")


def drawn(noise: Noise, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """noise(x, t, s). Raises ValueError for what is no noise, and for draws in another shape than that of x."""
    return answer("noise", require_noise(noise)(x, t, s), x)


class iid:
    """Independent draws for the whole batch, from `generator` (torch's global one if None).

    Draws are made on the generator's device and moved to the state's. Raises ValueError for a state of whole numbers.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(f"generator must be a torch.Generator or None, got {generator!r}")
        self.generator = generator

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        g, x = self.generator, floating("x", x)
        return torch.randn(x.shape, generator=g, dtype=x.dtype, device=g.device if g else x.device).to(x.device)


class per_sample:
    """Row i of every draw depends on `seeds[i]` alone: not on the batch it stands in, its position, or the process.

    The draws are made on the CPU, so that a GPU sees the same samples. Each row owns a generator and draws several
    steps ahead into one buffer; rows are padded to a multiple of 16 values, because below that and for the last 16
    values torch's normal sampler reads its stream differently. (The idea of one generator a row: Karras et al. 2022,
    reference code.)

    Shapes: every state must have `len(seeds)` rows of one shape and floating-point dtype; another raises ValueError,
    since the streams could not then be continued. So does a seed above 2**32 - 1: torch's generator on the CPU reads 32
    bits of it, and two samples would be one. `rows(a, b)` gives fresh streams for a slice of the seeds.
    """

    AHEAD = 4096  # values drawn ahead per row: enough to hide the cost of a call
    BUFFER = 1 << 24  # values held by the whole buffer at most, unless one step needs more

    def __init__(self, seeds: Sequence[int]) -> None:
        if not hasattr(seeds, "__len__") or getattr(seeds, "ndim", 1) != 1 or isinstance(seeds, (str, bytes, dict)):
            raise ValueError(f"seeds must be a sequence of one whole number a sample, got {shown(seeds)}")
        for i, seed in enumerate(seeds):
            if not isinstance(seed, (int, float, np.number, torch.Tensor)) or not (0 <= seed < 2**32 and seed % 1 == 0):
                raise ValueError(f"seeds must be whole numbers from 0 to 2**32 - 1, got seeds[{i}] = {shown(seed)}")
        self.seeds = [int(seed) for seed in seeds]
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]
        self.row: tuple[torch.Size, torch.dtype] | None = None
        self.buffer = torch.empty(0, 0, 0, device="cpu")
        self.used = 0

    def rows(self, a: int, b: int) -> "per_sample":
        """Fresh streams for seeds[a:b]."""
        count("a", a, least=-len(self.seeds)), count("b", b, least=-len(self.seeds))
        return per_sample(self.seeds[a:b])

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if len(wide("x", x)) != len(self.seeds):
            raise ValueError(f"per_sample has {len(self.seeds)} seeds, but the state has {len(x)} rows")
        if self.row is None:
            self.row = x.shape[1:], x.dtype
        if self.row != (x.shape[1:], x.dtype):
            raise ValueError(f"per_sample began with rows {self.row}, got {(x.shape[1:], x.dtype)}: use new streams")
        n = x[0].numel()
        if self.used == self.buffer.shape[1]:
            self._refill(-(-n // 16) * 16)
        z = self.buffer[:, self.used, :n].clone().view(x.shape)  # the buffer is written again
        self.used += 1
        return z.to(x.device)

    def _refill(self, padded: int) -> None:
        assert self.row is not None
        steps = max(1, min(self.AHEAD // padded, self.BUFFER // (padded * len(self.seeds))))
        if self.buffer.shape[1] != steps:
            self.buffer = torch.empty(len(self.seeds), steps, padded, dtype=self.row[1], device="cpu")
        for row, generator in zip(self.buffer, self.generators, strict=True):
            row.normal_(generator=generator)
        self.used = 0


def seeds(seed: int, n: int, start: int = 0) -> list[int]:
    """The seeds of samples start, ..., start + n - 1 of the collection `seed`, for `per_sample`: no two are equal.

    They are start + i + seed * 2654435769 modulo 2**32, so collections with different small seeds lie far apart.
    """
    for name, value in (("seed", seed), ("n", n), ("start", start)):
        count(name, value, least=0, most=2**32)
    if seed == 2**32 or start + n > 2**32:
        raise ValueError(f"seed, n and start must be whole numbers inside 0..2**32, got {seed}, {n} and {start}")
    return [(start + i + seed * 2654435769) % 2**32 for i in range(n)]


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside, the global generators of torch (also that of a GPU, if it is the device), NumPy and Python start from
    seed; outside they are as before. Layers draw their first weights from them, and dropout what it drops: they take
    no generator.
    """
    where = torch.device(device)
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
