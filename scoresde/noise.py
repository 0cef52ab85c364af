"""Randomness as an argument.

A noise is a callable `(x, t, s) -> z` with z ~ N(0, I), shaped, typed and placed like x, for the step from t to s.
Every random step, prior and perturbation of the library takes one, so that the caller decides what the result
depends on: one generator (`iid`), the seed of each sample alone (`per_sample`), or a Brownian path (`Path`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import torchsde
from torch import Tensor

from .shapes import number


class Noise(Protocol):
    """z ~ N(0, I) like x, for the interval from time t to time s."""

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor: ...


class iid:
    """Independent draws for the whole batch, from `generator` (torch's global one if None).

    Draws are made on the generator's device and moved to the state's.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        g = self.generator
        return torch.randn(x.shape, generator=g, dtype=x.dtype, device=g.device if g else x.device).to(x.device)


class per_sample:
    """Row i of every draw depends on `seeds[i]` alone: not on the batch it stands in, its position, or the process.

    The draws are made on the CPU, so that a GPU sees the same samples. Each row owns a generator and draws several
    steps ahead into one buffer; rows are padded to a multiple of 16 values, because below that and for the last 16
    values torch's normal sampler reads its stream differently. (The idea of one generator a row: Karras et al. 2022,
    reference code.)

    Shapes: every state must have `len(seeds)` rows of one shape and dtype; another raises ValueError, since the
    streams could not then be continued. So does a seed above 2**32 - 1: torch's generator on the CPU reads 32 bits of
    it, and two samples would be one. `rows(a, b)` gives fresh streams for a slice of the seeds.
    """

    AHEAD = 4096  # values drawn ahead per row: enough to hide the cost of a call
    BUFFER = 1 << 24  # values held by the whole buffer at most, unless one step needs more

    def __init__(self, seeds: Sequence[int]) -> None:
        for i, seed in enumerate(seeds):
            if not (0 <= seed < 2**32 and seed == int(seed)):
                raise ValueError(f"seeds must be whole numbers from 0 to 2**32 - 1, got seeds[{i}] = {seed}")
        self.seeds = [int(seed) for seed in seeds]
        self.generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        self.row: tuple[torch.Size, torch.dtype] | None = None
        self.buffer = torch.empty(0, 0, 0)
        self.used = 0

    def rows(self, a: int, b: int) -> "per_sample":
        """Fresh streams for seeds[a:b]."""
        return per_sample(self.seeds[a:b])

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if len(x) != len(self.seeds):
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
            self.buffer = torch.empty(len(self.seeds), steps, padded, dtype=self.row[1])
        for row, generator in zip(self.buffer, self.generators, strict=True):
            row.normal_(generator=generator)
        self.used = 0


def seeds(seed: int, n: int, start: int = 0) -> list[int]:
    """The seeds of samples start, ..., start + n - 1 of the collection `seed`, for `per_sample`: no two are equal.

    They are start + i + seed * 2654435769 modulo 2**32, so collections with different small seeds lie far apart.
    """
    if not 0 <= seed < 2**32 or n < 0 or start < 0 or start + n > 2**32:
        raise ValueError(f"seed, n and start must be whole numbers inside 0..2**32, got {seed}, {n} and {start}")
    return [(start + i + seed * 2654435769) % 2**32 for i in range(n)]


class Path:
    """One Brownian path W on [t0, t1], the same at every step size: z = (W(t) - W(s)) / sqrt(t - s) for t > s,
    and the same for the step from s to t.

    Increments over the halves of an interval add up to the increment over the whole, whatever is asked first, so two
    discretisations that are given the same Path approximate the same solution (strong convergence). It is
    `torchsde.BrownianInterval` with a fixed dyadic tree, in units of the whole interval.

    shape: that of the state, (B, *D). tol: the resolution of times, as a part of t1 - t0. Raises ValueError when asked
    for another shape, for times outside [t0, t1] or for an interval below the resolution: an empty one, as a corrector
    asks for, is no increment of the path.
    """

    def __init__(
        self,
        t0: float,
        t1: float,
        shape: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        tol: float = 1e-9,
    ) -> None:
        self.t0 = number("t0", t0)
        self.t1 = number("t1", t1, above=self.t0)
        self.tol = number("tol", tol, above=0, below=1)
        self.W = torchsde.BrownianInterval(
            0.0, 1.0, size=tuple(shape), dtype=dtype, entropy=seed, tol=tol, halfway_tree=True
        )

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if x.shape != self.W.shape:
            raise ValueError(f"this Path has shape {tuple(self.W.shape)}, but the state has {tuple(x.shape)}")
        low, high = ((float(u) - self.t0) / (self.t1 - self.t0) for u in sorted((t, s), key=float))
        if low < -self.tol or high > 1 + self.tol:
            raise ValueError(f"a Path on [{self.t0:g}, {self.t1:g}] has no increment from {float(s):g} to {float(t):g}")
        low, high = max(low, 0.0), min(high, 1.0)
        if high - low <= self.tol:
            raise ValueError(
                f"a Path has no increment over the empty interval at t = {float(t):g}: correctors need their own noise"
            )
        return (self.W(low, high) / (high - low) ** 0.5).to(x)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global generator starts from seed; outside it is as before. Layers draw their first weights from
    it and take no generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
