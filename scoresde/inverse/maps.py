"""Functions of samples that can be measured, most of them linear."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..shapes import count, dims, floating, function, number, reals, recording
from .krylov import conjugate


class Measurement(ABC):
    """A function A of samples (B, *D) to rows (B, m), each of its own sample alone.

    shape: D; m: how many numbers come out.
    """

    shape: tuple[int, ...]
    m: int

    def __call__(self, x: Tensor) -> Tensor:
        """A(x). Raises ValueError unless x is (B, *D)."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must be (B, *{self.shape}), got {tuple(x.shape)}")
        return self.forward(x)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x), (B, m)."""


@dataclass(frozen=True, eq=False)
class Function(Measurement):
    """Any function f of samples of the shape D that autograd can differentiate: f: (B, *D) -> (B, m). It is tried with
    random x of the type and on the device of `like`. Raises ValueError unless rows are finite, each of its own sample
    alone, and have gradients.
    """

    f: Callable[[Tensor], Tensor]
    of: tuple[int, ...]
    like: Tensor = torch.empty(0)

    def __post_init__(self) -> None:
        function("f", self.f, "a callable (B, *D) -> (B, m)")
        shape = tuple(dims("of", self.of))
        with recording():
            x = _randn(self.like, 3, *shape).requires_grad_()
            rows = _rows("f", self.f, x)
            one = _rows("f", self.f, x[:1])
        if not rows.isfinite().all():
            raise ValueError(f"f must return finite rows, got {rows.tolist()} for samples of N(0, I)")
        if rows.shape[1:] != one.shape[1:] or (one[0] - rows[0]).norm() > 1e-4 * (rows[0].norm() + 1e-30):
            raise ValueError("f must make each row of its own sample alone, but that of one depends on the others")
        if not rows.requires_grad:
            raise ValueError("f must be differentiable by autograd, but its rows have no gradient")
        for name, value in (("shape", shape), ("m", rows.shape[1])):
            object.__setattr__(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        """f(x)."""
        return self.f(x)


def _randn(like: Tensor, *shape: int, seed: int = 0) -> Tensor:
    """Numbers of N(0, 1), the same ones each time, of the type and on the device of another tensor."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(floating("like", like))


def _called(name: str, f: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    try:
        return f(x)
    except Exception as error:  # whatever a function of one's own may raise
        raise ValueError(f"{name} must take {x.dtype} on {x.device}, such as `like` is: {error}") from error


def _rows(name: str, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f(x). Raises ValueError unless it is (B, m)."""
    found = _called(name, f, x)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x) or not found.shape[1]:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{name} must return rows (B, m), got {what} for {len(x)} samples")
    return found


class Linear(Measurement):
    """A linear map A.

    gram: the number c with A A^T = c I, None if there is none; scale: the largest eigenvalue of A A^T, or 1 where it is
    not known.
    """

    gram: float | None = None

    @property
    def scale(self) -> float:
        """gram, or 1."""
        return 1.0 if self.gram is None else self.gram

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, (B, *D)."""

    def spectrum(self) -> tuple[Tensor, Tensor | None]:
        """The eigenvalues S^2 of A A^T, (m,) in float64, and its eigenvectors U, (m, m), None where they are those of
        I. Raises ValueError where A A^T is not known.
        """
        if self.gram is None:
            raise ValueError(f"A must be a map whose A A^T is known, such as Matrix, got {type(self).__name__}")
        return torch.full((self.m,), self.gram, dtype=torch.float64), None

    def coordinates(self, y: Tensor) -> Tensor:
        """S^(-1) U^T y, (B, m): of y = A x those of x along the right singular vectors of A, S the singular values.
        Raises ValueError as `spectrum`, and unless y is (B, m).
        """
        values, vectors = self.spectrum()
        self._table("y", y)
        return (y if vectors is None else y @ vectors.to(y)) / values.sqrt().to(y)

    def embed(self, v: Tensor) -> Tensor:
        """A^T U S^(-1) v, (B, *D): what has the coordinates v (B, m), and nothing that A does not see. Raises
        ValueError as `coordinates`.
        """
        values, vectors = self.spectrum()
        self._table("v", v)
        v = v / values.sqrt().to(v)
        return self.adjoint(v if vectors is None else v @ vectors.T.to(v))

    def _table(self, name: str, rows: Tensor) -> None:
        if floating(name, rows).ndim != 2 or rows.shape[1] != self.m:
            raise ValueError(f"{name} must be rows (B, {self.m}), got {tuple(rows.shape)}")

    def solve(self, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """(a A A^T + b I)^(-1) y for a and b of each sample, (B,): where A A^T is no multiple of I by conjugate
        gradients, as far as the type of y goes.
        """
        a, b = a.to(y)[:, None], b.to(y)[:, None]
        if self.gram is not None:
            return y / (a * self.gram + b)
        return conjugate(lambda v: a * self.forward(self.adjoint(v)) + b * v, y)

    def log_det(self, a: Tensor, b: Tensor) -> Tensor:
        """log det(a A A^T + b I), (B,). Raises ValueError as `spectrum`."""
        values = self.spectrum()[0].to(a.device)
        return (a[:, None] * values + b[:, None]).log().sum(1)


@dataclass(frozen=True, eq=False)
class Mask(Linear):
    """The numbers of x where keep, of the shape D of a sample, is True."""

    keep: Tensor
    gram = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.keep, Tensor) or self.keep.dtype != torch.bool or not self.keep.any():
            raise ValueError(f"keep must be a tensor of True and False, True somewhere, got {self.keep!r}")
        object.__setattr__(self, "shape", tuple(self.keep.shape))
        object.__setattr__(self, "m", int(self.keep.sum()))

    def forward(self, x: Tensor) -> Tensor:
        """Those that are kept."""
        return x[:, self.keep.to(x.device)]

    def adjoint(self, y: Tensor) -> Tensor:
        """Back to where they were, and 0 elsewhere."""
        x = y.new_zeros(len(y), *self.shape)
        x[:, self.keep.to(y.device)] = y
        return x


@dataclass(frozen=True, eq=False)
class Matrix(Linear):
    """A matrix A (m, d) of samples of the shape D, whose rows are independent: what is told twice is told once. Raises
    ValueError otherwise.
    """

    A: Tensor
    of: tuple[int, ...]

    def __post_init__(self) -> None:
        A, shape = reals("A", self.A), dims("of", self.of)
        size = int(torch.tensor(shape).prod())
        if A.ndim != 2 or A.shape[1] != size or not A.isfinite().all():
            raise ValueError(f"A must be a finite matrix (m, {size}) of samples {tuple(shape)}, got {tuple(A.shape)}")
        values, vectors = torch.linalg.eigh(A.double() @ A.double().T)
        if not values[0] > 1e-9 * values[-1]:
            raise ValueError(f"A must have independent rows, but A A^T has the eigenvalues {values.tolist()}")
        for name, value in (("A", A), ("shape", tuple(shape)), ("m", len(A)), ("_eigen", (values, vectors))):
            object.__setattr__(self, name, value)

    @property
    def scale(self) -> float:
        """The largest eigenvalue."""
        return float(self._eigen[0][-1])  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """A x."""
        return x.flatten(1) @ self.A.T.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y."""
        return (y @ self.A.to(y)).view(len(y), *self.shape)

    def solve(self, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """By the eigenvectors of A A^T."""
        values, vectors = (v.to(y) for v in self._eigen)  # type: ignore[attr-defined]
        return ((y @ vectors) / (a.to(y)[:, None] * values + b.to(y)[:, None])) @ vectors.T

    def spectrum(self) -> tuple[Tensor, Tensor | None]:
        """By those that were found when it was made."""
        return self._eigen  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Average(Linear):
    """Means of blocks of k x k pixels of images (C, H, W): down-sampling. Raises ValueError unless k divides both."""

    of: tuple[int, int, int]
    k: int = 2

    def __post_init__(self) -> None:
        C, H, W = _image(self.of)
        if H % count("k", self.k) or W % self.k:
            raise ValueError(f"k must divide {H} and {W}, got {self.k}")
        values = (("shape", (C, H, W)), ("m", C * H * W // self.k**2), ("gram", 1 / self.k**2))
        for name, value in values:
            object.__setattr__(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Means."""
        return torch.nn.functional.avg_pool2d(x, self.k).flatten(1)

    def adjoint(self, y: Tensor) -> Tensor:
        """Each mean in all pixels of its block, over their number."""
        C, H, W = self.shape
        small = y.view(len(y), C, H // self.k, W // self.k) / self.k**2
        return small.repeat_interleave(self.k, 2).repeat_interleave(self.k, 3)


@dataclass(frozen=True, eq=False)
class Grey(Linear):
    """The mean over channels of images (C, H, W)."""

    of: tuple[int, int, int]

    def __post_init__(self) -> None:
        C, H, W = _image(self.of)
        for name, value in (("shape", (C, H, W)), ("m", H * W), ("gram", 1 / C)):
            object.__setattr__(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Means."""
        return x.mean(1).flatten(1)

    def adjoint(self, y: Tensor) -> Tensor:
        """The same in all channels."""
        C, H, W = self.shape
        return (y.view(len(y), 1, H, W) / C).expand(-1, C, -1, -1)


@dataclass(frozen=True, eq=False)
class Blur(Linear):
    """Each channel of images (C, H, W) convolved with a kernel k (m, n), whose middle is at (m // 2, n // 2), the image
    going on at its other end: (A x)_ij = sum_ab k_ab x_(i - a + m // 2, j - b + n // 2). Equations are solved by
    Fourier transforms, frequency by frequency; a blur leaves next to nothing of some, so it is to be told with noise.
    Raises ValueError unless the kernel is finite, somewhere not 0, and no larger than the image.
    """

    kernel: Tensor
    of: tuple[int, int, int]

    def __post_init__(self) -> None:
        (C, H, W), k = _image(self.of), reals("kernel", self.kernel)
        if k.ndim != 2 or not k.isfinite().all() or not k.any() or k.shape[0] > H or k.shape[1] > W:
            raise ValueError(f"kernel must be finite, not all 0 and at most ({H}, {W}), got {tuple(k.shape)}: {k}")
        whole = torch.zeros(H, W, dtype=torch.float64)
        whole[: k.shape[0], : k.shape[1]] = k
        waves = torch.fft.fft2(whole.roll((-(k.shape[0] // 2), -(k.shape[1] // 2)), (0, 1)))
        for name, value in (("kernel", k), ("shape", (C, H, W)), ("m", C * H * W), ("_waves", waves)):
            object.__setattr__(self, name, value)

    @classmethod
    def gaussian(cls, std: float, of: tuple[int, int, int]) -> "Blur":
        """That by a Gaussian of a deviation in pixels, cut off at three of it or at the image's end, of the sum 1."""
        _, H, W = _image(of)
        reach = int(3 * number("std", std, above=0)) + 1
        ends = (min(reach, (n - 1) // 2) for n in (H, W))
        rows, columns = (torch.arange(-r, r + 1, dtype=torch.float64) for r in ends)
        k = torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * std**2))
        return cls(k / k.sum(), of)

    @property
    def scale(self) -> float:
        """The largest |waves|^2."""
        return float(self._power.max())

    @property
    def _power(self) -> Tensor:
        return self._waves.abs().square()  # type: ignore[attr-defined]

    def _by_waves(self, x: Tensor, factor: Tensor) -> Tensor:
        """x (B, m) or (B, C, H, W) with each frequency times a factor (H, W), or (B, 1, H, W), as rows."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32)).view(len(x), *self.shape)
        return torch.fft.ifft2(torch.fft.fft2(wide) * factor.to(x.device)).real.flatten(1).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution."""
        return self._by_waves(x, self._waves)  # type: ignore[attr-defined]

    def adjoint(self, y: Tensor) -> Tensor:
        """The correlation."""
        return self._by_waves(y, self._waves.conj()).view(len(y), *self.shape)  # type: ignore[attr-defined]

    def solve(self, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Frequency by frequency."""
        a, b = (v.double().cpu().view(-1, 1, 1, 1) for v in (a, b))
        return self._by_waves(y, 1 / (a * self._power + b))

    def log_det(self, a: Tensor, b: Tensor) -> Tensor:
        """By its frequencies."""
        a, b = a[:, None], b[:, None]
        return self.shape[0] * (a * self._power.flatten().to(a.device) + b).log().sum(1)


def _image(of: Any) -> tuple[int, int, int]:
    C, H, W = dims("of", of) if isinstance(of, (tuple, list)) and len(of) == 3 else (0, 0, 0)
    if not C:
        raise ValueError(f"of must be the shape of an image, (C, H, W), got {of!r}")
    return C, H, W


@dataclass(frozen=True, eq=False)
class Map(Linear):
    """Any linear function f of samples of the shape D and its adjoint: f: (B, *D) -> (B, m). Raises ValueError unless
    <f(x), y> = <x, adjoint(y)> and f(x) + f(y) = f(x + y), for random x and y of the type and on the device of `like`.
    """

    f: Callable[[Tensor], Tensor]
    transposed: Callable[[Tensor], Tensor]
    of: tuple[int, ...]
    like: Tensor = torch.empty(0)

    def __post_init__(self) -> None:
        function("f", self.f, "a callable (B, *D) -> (B, m)"), function("transposed", self.transposed, "its adjoint")
        shape = tuple(dims("of", self.of))
        x, other = _randn(self.like, 2, 3, *shape)
        Ax = _rows("f", self.f, x)
        y = _randn(Ax, *Ax.shape, seed=1)
        back = _called("transposed", self.transposed, y)
        if tuple(back.shape) != tuple(x.shape):
            raise ValueError(f"transposed must return samples (B, *{shape}), got {tuple(back.shape)} for 3")
        left, right = (Ax * y).sum(1), (x * back).flatten(1).sum(1)
        scale = 1e-4 * (Ax.norm(dim=1) * y.norm(dim=1) + 1e-30)
        if ((left - right).abs() > scale).any():
            raise ValueError(
                f"transposed must be the adjoint of f, with <f(x), y> = <x, transposed(y)>, got {float(left[0]):.4g} "
                f"and {float(right[0]):.4g}"
            )
        if ((self.f(x + other) - Ax - self.f(other)).norm(dim=1) > 1e-4 * (Ax.norm(dim=1) + 1e-30)).any():
            raise ValueError("f must be linear, but f(x + y) is not f(x) + f(y)")
        for name, value in (("shape", shape), ("m", Ax.shape[1])):
            object.__setattr__(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        """f(x)."""
        return self.f(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """The adjoint."""
        return self.transposed(y)
