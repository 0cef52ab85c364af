"""The trace of a score's Jacobian J(x) = d score/d x, exact or estimated.

With E z z^T = I, z^T J z has the mean tr J (Hutchinson 1990). For Rademacher z and symmetric J its variance is
2 sum_{i != j} J_ij^2, for Gaussian z it is 2 |J|_F^2.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..noise import Noise
from ..process import Score
from ..shapes import as_time, count
from .samples import MANY

MOST = 32  # GiB of vectors at a node


class Estimate(NamedTuple):
    """The trace at a node: q, (b, m), in m channels; the variance of the error of their mean, (b,), that is independent
    of other nodes: 0 where channels tell the error of the whole path, nan where nothing does. lasting: one of the
    estimates that the mean is of, (b,), whose probe stays over a block of nodes; the variance of its error, (b,); its
    part in the mean.
    """

    q: Tensor
    var: Tensor
    lasting: tuple[Tensor, Tensor, float] | None = None


class Trace(ABC):
    """How the trace is found."""

    kept: bool = False
    """Whether channels are estimates for the whole path, so that their spread at its end tells the error; else that is
    the sum of the variances of nodes."""
    tells: bool = True
    """Whether it is known how much of what an estimate changes by along the path is chance: none, where probes stay."""

    @abstractmethod
    def products(self, d: int) -> int:
        """Vector-Jacobian products a node."""

    def held(self, d: int) -> int:
        """Vectors a sample that are held at once."""
        return self.products(d)

    def start(self, x: Tensor, noise: Noise) -> "Probes":
        """What is drawn for the length of one path from x. Raises ValueError if it takes more than 32 GiB."""
        size = self.held(x[0].numel()) * x.numel() * x.element_size() / 2**30
        if size > MOST:
            raise ValueError(
                f"trace must hold at most {MOST} GiB of vectors at a node, but {self} of a batch of shape "
                f"{tuple(x.shape)} takes {size:.3g}: ask for fewer, or for fewer samples at once"
            )
        return Probes(self, x, noise)

    @abstractmethod
    def probes(self, memory: "Probes") -> Tensor:
        """The probes of the next node, (k, B, *D)."""

    @abstractmethod
    def measure(self, y: Tensor, x: Tensor, z: Tensor, graph: bool = False) -> Estimate:
        """From y = score(x), with its graph, and probes z. graph: keep the graph of the estimates."""


class Probes:
    """A `Trace` on one path."""

    def __init__(self, trace: Trace, x: Tensor, noise: Noise) -> None:
        self.trace, self.x, self.noise, self.node = trace, x.detach(), noise, 0
        self.first: Tensor | None = None
        self.lasting: Tensor | None = None
        self.block = 0

    def together(self, n: int) -> None:
        """The next n nodes are a block."""
        self.lasting, self.block = None, n

    def draw(self) -> Tensor:
        """The probes of the next node, for all samples, so that a sample's own do not depend on which are left."""
        if self.block == 0:
            self.together(1)
        z = self.trace.probes(self)
        self.node, self.block = self.node + 1, self.block - 1
        return z

    def normal(self) -> Tensor:
        """N(0, 1) like x."""
        t = as_time(0.0)
        return self.noise(self.x, t, t)

    def measure(self, score: Score, x: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Estimate]:
        """The score at x, and its trace; with a graph if gradients are enabled."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if graph and x.requires_grad else x.detach().requires_grad_()
            try:
                y = score(x, t)
            except RuntimeError as error:
                if "Inference tensors" in str(error):
                    raise ValueError(
                        "score must be differentiable in x, but it holds tensors that were made inside of "
                        "torch.inference_mode: make or load it outside"
                    ) from error
                raise
            if not y.requires_grad:
                raise ValueError(
                    "score must be differentiable in x, but its result carries no gradient: is it computed under "
                    "no_grad or inference_mode? (A score that is constant in x can add 0 * x.)"
                )
            found = self.trace.measure(y, x, z, graph)
        return (y, found) if graph else (y.detach(), found._replace(q=found.q.detach()))


def _pull(y: Tensor, x: Tensor, z: Tensor, graph: bool) -> Tensor:
    """J^T z."""
    try:
        return torch.autograd.grad(y, x, z, retain_graph=True, create_graph=graph)[0]
    except RuntimeError as error:
        if "donated buffers" not in str(error):
            raise
        raise ValueError(
            "a compiled network must keep what its gradient needs, as several are taken from one call: set "
            "torch._functorch.config.donated_buffer = False before it is called first, or give it uncompiled"
        ) from error


def _pulls(y: Tensor, x: Tensor, many: Tensor, graph: bool) -> Tensor:
    """J^T z for each of many z, at once where that can be done: a compiled network may not be able to."""
    try:
        return torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True, create_graph=graph)[0]
    except RuntimeError:  # whatever else it may be is raised by each alone
        return torch.stack([_pull(y, x, z, graph) for z in many])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


@dataclass(frozen=True)
class Exact(Trace):
    """sum_i dscore_i/dx_i, by vector-Jacobian products of `chunk` dimensions at a time. d products for d dimensions."""

    chunk: int = 64
    """Products at once: less takes less memory."""

    def __post_init__(self) -> None:
        count("chunk", self.chunk)

    def products(self, d: int) -> int:
        """d vector-Jacobian products a node: one a dimension."""
        return d

    def held(self, d: int) -> int:
        """A chunk of them."""
        return min(self.chunk, d)

    def probes(self, memory: Probes) -> Tensor:
        """No probes are drawn: every basis vector is used."""
        return memory.x.new_zeros(0, len(memory.x))

    def measure(self, y: Tensor, x: Tensor, z: Tensor, graph: bool = False) -> Estimate:
        """The trace, without an error."""
        d, total = x[0].numel(), x.new_zeros(len(x))
        for start in range(0, d, self.chunk):
            units = torch.eye(min(self.chunk, d - start), d, dtype=x.dtype, device=x.device).roll(start, 1)
            units = units.view(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
            g = _pulls(y, x, units, graph)
            total = total + torch.einsum("kbk->b", g.flatten(2)[..., start : start + self.chunk])
        return Estimate(total[:, None], torch.zeros_like(total).detach())


@dataclass(frozen=True)
class Hutchinson(Trace):
    """z^T J z with independent probes for each sample: Rademacher ones, the signs of a normal draw, or Gaussian ones.

    fresh: new ones at every node, so that their errors average over the path (Grathwohl et al. 2019 keep one, as the
    error of a solver is then told without chance). Of several the last stays over a block of nodes, two neighbours of
    Adams' method or the stages of a step, from whose values the solver's error is told: it counts half, as it averages
    half as well, and the standard error is the larger by (m/(m - 1/2))^(1/2), 15 % for two. With `per_sample` noise
    a sample's probes are its own. The error of a single fresh probe cannot be told, and is nan; nor can the solver's be
    told from it, so that it is counted in that, and `AsNeeded` refuses it.
    """

    m: int = 2
    """Probes a node."""
    fresh: bool = True
    """New ones at every node, but for the last of several."""
    gaussian: bool = False
    """Normal instead of Rademacher ones, which have the smaller variance."""

    def __post_init__(self) -> None:
        count("m", self.m, most=MANY)

    @property
    def kept(self) -> bool:  # type: ignore[override]
        """Whether the probes stay."""
        return not self.fresh

    @property
    def tells(self) -> bool:  # type: ignore[override]
        """Unless it is one that does not stay."""
        return not self.fresh or self.m > 1

    def products(self, d: int) -> int:
        """One vector-Jacobian product a probe."""
        return self.m

    def probes(self, memory: Probes) -> Tensor:
        """m independent probes for each sample, (m, B, *D)."""
        if memory.first is not None and not self.fresh:
            return memory.first
        z = torch.stack([memory.normal() for _ in range(self.m)])
        z = memory.first = z if self.gaussian else torch.where(z < 0, -1.0, 1.0).to(z)
        if self.fresh and self.m > 1:
            memory.lasting = z[-1].clone() if memory.lasting is None else memory.lasting
            z[-1] = memory.lasting
        return z

    def measure(self, y: Tensor, x: Tensor, z: Tensor, graph: bool = False) -> Estimate:
        """One estimate a probe, or the mean of all."""
        q = torch.stack([_dot(_pull(y, x, one, graph), one) for one in z], 1)
        told = q.detach()
        if not self.fresh or self.m == 1:
            return Estimate(q, torch.full_like(told[:, 0], math.nan if self.fresh else 0.0))
        whole, var = self.m - 1 / 2, told.var(1)
        mean = (q[:, :-1].sum(1) + q[:, -1] / 2) / whole
        return Estimate(mean[:, None], (self.m - 1) / whole**2 * var, (told[:, -1], var, 1 / 2 / whole))


@dataclass(frozen=True)
class Hadamard(Trace):
    """Orthogonal Rademacher probes, cycled over the nodes: the rows of a Hadamard matrix in turn, signs flipped at
    random for each sample (Sylvester 1867). d of them, d a power of 2, give the trace exactly, and where J changes
    slowly along the path the errors of neighbouring nodes cancel.

    m must be even: two halves with their own signs are the channels, whose spread at the end tells the error. As it
    tells nothing of one node, what changes from node to node is counted in the solver's, and `AsNeeded` refuses it.
    """

    m: int = 4
    """Probes a node."""
    kept = True
    tells = False

    def __post_init__(self) -> None:
        if count("m", self.m, least=2, most=MANY) % 2:
            raise ValueError(f"m must be even, got {self.m}")

    def products(self, d: int) -> int:
        """One vector-Jacobian product a probe."""
        return self.m

    def probes(self, memory: Probes) -> Tensor:
        """m orthogonal probes for each sample, (m, B, *D)."""
        if memory.first is None:
            z = torch.stack([memory.normal(), memory.normal()])
            memory.first = torch.where(z < 0, -1.0, 1.0).to(z)
        d, half = memory.x[0].numel(), self.m // 2
        rows = 1 << (d - 1).bit_length()
        # a fixed odd stride visits all rows, far apart in turn
        index = torch.arange(half) + half * memory.node
        i = (index * (rows // 2 - 1 if rows > 4 else 1)) % rows
        ones = _parity(i[:, None] & torch.arange(d)).to(memory.x).view(half, 1, *memory.x.shape[1:])
        return torch.cat([ones * memory.first[0], ones * memory.first[1]])

    def measure(self, y: Tensor, x: Tensor, z: Tensor, graph: bool = False) -> Estimate:
        """The mean of each half."""
        q = torch.stack([_dot(_pull(y, x, one, graph), one) for one in z], 1)
        halves = torch.stack([half.mean(1) for half in q.chunk(2, 1)], 1)
        return Estimate(halves, torch.zeros_like(q[:, 0].detach()))


def _parity(i: Tensor) -> Tensor:
    """(-1)^(number of ones in the binary digits of i): the entries of Sylvester's Hadamard matrix, of row & column."""
    for shift in (32, 16, 8, 4, 2, 1):
        i = i ^ (i >> shift)
    return 1 - 2 * (i & 1)


@dataclass(frozen=True)
class HutchPP(Trace):
    """Hutch++ (Meyer, Musco, Musco & Woodruff 2021, Algorithm 1): the trace on the range of J^T S for `rank` normal
    vectors S exactly, and Hutchinson with as many Rademacher probes on its complement. It pays where J is close to low
    rank. (Signs for S would be parallel by chance in few dimensions, and rounding then choose the range.)
    """

    rank: int = 4
    """A third of the products a node."""

    def __post_init__(self) -> None:
        count("rank", self.rank, least=2, most=MANY)

    def products(self, d: int) -> int:
        """Three vector-Jacobian products for each direction of the sketch."""
        return 3 * self.rank

    def start(self, x: Tensor, noise: Noise) -> Probes:
        """As every trace. Raises ValueError if rank > d too."""
        if self.rank > x[0].numel():
            raise ValueError(f"rank must be at most d = {x[0].numel()}, got {self.rank}")
        return super().start(x, noise)

    def probes(self, memory: Probes) -> Tensor:
        """(2 rank, B, *D)."""
        z = torch.stack([memory.normal() for _ in range(2 * self.rank)])
        return torch.cat([z[: self.rank], torch.where(z[self.rank :] < 0, -1.0, 1.0).to(z)])

    def measure(self, y: Tensor, x: Tensor, z: Tensor, graph: bool = False) -> Estimate:
        """The exact part added to one estimate a probe."""
        sketch = torch.stack([_pull(y, x, one, graph).flatten(1) for one in z[: self.rank]], 2)
        Q = torch.linalg.qr(sketch.detach())[0]  # (b, d, rank)
        along = sum(_dot(_pull(y, x, q.reshape(x.shape), graph), q.reshape(x.shape)) for q in Q.unbind(2))
        estimates = []
        for one in z[self.rank :]:
            flat = one.flatten(1)
            off = (flat - torch.einsum("bdr,br->bd", Q, torch.einsum("bdr,bd->br", Q, flat))).view(x.shape)
            estimates.append(along + _dot(_pull(y, x, off, graph), off))
        q = torch.stack(estimates, 1)
        return Estimate(q, q.detach().var(1) / self.rank)
