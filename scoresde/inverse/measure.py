"""What was measured of samples, and scores that are made of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guide import Guided
from ..process import LinearSDE, Reverse, Score, require_linear
from ..shapes import like, number, reals, recordable, recording, shown
from .maps import Linear, Measurement


@dataclass(frozen=True, eq=False)
class Observation:
    """y = A(x) + std z. y: (m,) for all samples, or (B, m). Raises ValueError unless they fit together."""

    A: Measurement
    y: Tensor
    std: float

    def __post_init__(self) -> None:
        if not isinstance(self.A, Measurement):
            raise ValueError(f"A must be a Measurement such as Mask(keep) or Function(f, of), got {self.A!r}")
        number("std", self.std, least=0)
        y = reals("y", self.y)
        if y.ndim not in (1, 2) or y.shape[-1] != self.A.m or not y.isfinite().all():
            raise ValueError(f"y must hold {self.A.m} finite numbers, or (B, {self.A.m}), got {tuple(y.shape)}")
        object.__setattr__(self, "y", y)

    @classmethod
    def of(cls, A: Measurement, x: Tensor, std: float = 0.0, generator: torch.Generator | None = None) -> "Observation":
        """What is measured of x (B, *D)."""
        y = A(x)
        device = "cpu" if generator is None else generator.device
        z = torch.randn(y.shape, generator=generator, dtype=y.dtype, device=device)
        return cls(A, y + std * z.to(y.device), std)

    def rows(self, x: Tensor) -> Tensor:
        """y for each of the samples x. Raises ValueError where there are not as many."""
        y = self.y.to(x)
        if y.ndim == 2 and len(y) != len(x):
            raise ValueError(f"y must be one, or one for each of the {len(x)} samples, got {tuple(y.shape)}")
        return y.expand(len(x), -1)

    def left(self, x_0: Tensor) -> Tensor:
        """y - A(x_0), (B, m)."""
        return self.rows(x_0) - self.A(x_0)


def observation(seen: Any) -> Observation:
    """Return seen; raise ValueError unless it is an `Observation`."""
    if not isinstance(seen, Observation):
        raise ValueError(f"seen must be an Observation(A, y, std), got {shown(seen)}")
    return seen


def single(seen: Observation) -> Observation:
    """Return seen; raise ValueError unless it is one observation."""
    if observation(seen).y.ndim != 1:
        raise ValueError(f"y must be one observation, ({seen.A.m},), got {tuple(seen.y.shape)}")
    return seen


def linear(seen: Observation) -> Linear:
    """The map of seen. Raises ValueError where it is not linear."""
    A = observation(seen).A
    if not isinstance(A, Linear):
        raise ValueError(f"seen must be through a Linear map, such as Mask(keep), got {type(A).__name__}")
    return A


def own_noise(p: Reverse) -> None:
    """Raise ValueError unless eta is 1, on which a step that adds noise by a rule of its own does not depend."""
    if p.eta != 1:
        raise ValueError(f"eta must be 1 for a step that has its own noise, got eta={p.eta:g}")


def sde_of(score: Score) -> LinearSDE:
    """The process of a score. Raises ValueError if it says none."""
    return require_linear("score.sde, by which samples are denoised,", getattr(score, "sde", None))


def level(sde: LinearSDE, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha, and the noise sigma/alpha, (B,) in the type of t, of samples at t, () or (B,)."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return alpha.expand(len(x)).to(x.device), (sigma / alpha).expand(len(x)).to(x.device)


def corrected(score: Score, correct: Callable[[Tensor, Tensor], Tensor]) -> Guided:
    """The score whose E[x_0 | x_t] is what `correct` makes of it: correct(x_0, noise), with the noise sigma/alpha of
    each sample, (B,).
    """
    sde = sde_of(score)

    def rule(ask: Callable[..., Tensor], x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        alpha, var, s = like(sde.alpha(t), x), like(sde.var(t), x), ask(0, x, t, **cond)
        x_0 = (x + var * s) / alpha
        return s + alpha / var * (correct(x_0, level(sde, t, x)[1]) - x_0)

    return Guided([score], rule)


Back = Callable[[Tensor], Tensor]


def pulled(score: Score, push: Callable[[Tensor, Tensor, Tensor, Back], Tensor]) -> Guided:
    """The score plus J^T push, J = d E[x_0 | x_t]/d x_t: push(x_0, alpha, noise, back) is (B, *D), with alpha and the
    noise sigma/alpha of each sample, (B,), and back(v) = J^T v.
    """
    sde = sde_of(score)

    def rule(ask: Callable[..., Tensor], x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        graph = torch.is_grad_enabled() and x.requires_grad
        with recording():
            z, u = recordable(x), recordable(t)
            z = z if z.requires_grad else z.detach().requires_grad_()
            s = ask(0, z, u, **cond)
            x_0 = (z + like(sde.var(u), z) * s) / like(sde.alpha(u), z)

        def back(v: Tensor) -> Tensor:
            with recording():
                return torch.autograd.grad(x_0, z, v, retain_graph=True, create_graph=graph)[0]

        known = x_0 if graph else x_0.detach()
        return (s if graph else s.detach()) + back(push(known, *level(sde, t, x), back))

    return Guided([score], rule)
