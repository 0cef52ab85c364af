"""Score matching: objectives, their weights, and the laws that the times of a batch are drawn from.

Denoising score matching (Vincent 2011; Ho et al. 2020, eq. 14; Song et al. 2021, eq. 7), written for the noise:

    dsm = weight(t) |eps(alpha x_0 + sigma z, t) - z|^2.

Its minimum over all functions is the exact noise predictor. For Gaussian data with variances v it is not zero but
weight(t) sum alpha^2 v / C with C = alpha^2 v + sigma^2: the part of z that x_t does not tell.

`cross_entropy` is what a classifier of noisy samples learns by.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .model import ClassModel, NoisyModel, Parametrisation, ScoreModel
from .noise import Noise, drawn, iid
from .process import LinearSDE, Score, require_linear
from .shapes import answer, as_time, count, function, number, place, recordable, recording, shown, wide


class Weight(ABC):
    """A weight of the squared error of eps: (sde, t) -> the shape of t."""

    @abstractmethod
    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Simple(Weight):
    """1 (Ho et al. 2020, eq. 14)."""

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class MaximumLikelihood(Weight):
    """g^2/sigma^2, that is g^2 on the error of the score: its integral bounds 2 KL (Song et al. 2021b, theorem 1)."""

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        return sde.g2(t) / sde.var(t)


@dataclass(frozen=True)
class MinSNR(Weight):
    """min(SNR, gamma)/SNR with SNR = alpha^2/sigma^2 (Hang et al. 2023). gamma = inf is `Simple`; as gamma -> 0 it is
    proportional to 1/SNR, the plain squared error of x_0.
    """

    gamma: float = 5.0
    """The SNR above which the weight of x_0 stops growing."""

    def __post_init__(self) -> None:
        if not (isinstance(self.gamma, float) and self.gamma == math.inf):
            number("gamma", self.gamma, above=0)

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        return (self.gamma * (-2 * sde.log_snr(t)).exp()).clamp_max(1.0)


@dataclass(frozen=True)
class Output(Weight):
    """1 on the output of a network that predicts so: what a network is trained with unless another weight is asked for.
    For `Epsilon` it is `Simple`, for `Karras` 1 + (sigma/alpha)^2/c^2 (Karras et al. 2022, table 1).
    """

    predicts: Parametrisation
    """What the network predicts."""

    def __post_init__(self) -> None:
        if not isinstance(self.predicts, Parametrisation):
            raise ValueError(f"predicts must be a parametrisation such as Epsilon(), got {self.predicts!r}")

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        return torch.ones_like(t) * self.predicts.weight(sde.alpha(t), sde.sigma(t))


class Times(ABC):
    """A law of t on [t_min, T], by its quantile function, so that every law can be stratified."""

    @abstractmethod
    def quantile(self, sde: LinearSDE, u: Tensor) -> Tensor:
        """The t below which a fraction u of the draws falls (or above which; the laws are used with u uniform)."""

    @abstractmethod
    def density(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """The probability density in t."""

    def draw(
        self,
        sde: LinearSDE,
        n: int,
        generator: torch.Generator | None = None,
        *,
        stratified: bool = False,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """n times, (n,), in float64 where the device knows it.

        Stratified: one in each n-th of the law, in random order; each follows the law.
        """
        require_linear("sde", sde)
        u = torch.rand(count("n", n), generator=generator, dtype=torch.float64, device="cpu")
        if stratified:
            u = (torch.randperm(n, generator=generator, device="cpu") + u) / n
        return place(self.quantile(sde, u), device)


@dataclass(frozen=True)
class UniformTime(Times):
    """Times uniform in t from t_min to T (Song et al. 2021)."""

    def quantile(self, sde: LinearSDE, u: Tensor) -> Tensor:
        return sde.t_min + (sde.T - sde.t_min) * u

    def density(self, sde: LinearSDE, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 / (sde.T - sde.t_min))


@dataclass(frozen=True)
class UniformLogSNR(Times):
    """Uniform in lambda. Since g^2/sigma^2 = -2 dlambda/dt for every linear SDE, this is the importance sampling of the
    likelihood weight (Song et al. 2021b, section 4; Kingma et al. 2021): use it with `Simple`, or with
    `Unbiased(MaximumLikelihood(), UniformLogSNR())`, which is the same up to a constant. `MaximumLikelihood` by itself
    would count twice.
    """

    def quantile(self, sde: LinearSDE, u: Tensor) -> Tensor:
        high, low = sde.log_snr(sde.t_min), sde.log_snr(sde.T)
        return sde.time(high + (low - high) * u).clamp(sde.t_min, sde.T)

    def density(self, sde: LinearSDE, t: Tensor) -> Tensor:
        return sde.g2(t) / sde.var(t) / 2 / (sde.log_snr(sde.t_min) - sde.log_snr(sde.T))


@dataclass(frozen=True)
class LogNormal(Times):
    """log(sigma/alpha) ~ N(mean, std^2), cut off at t_min and T (Karras et al. 2022, table 1).

    Probabilities are told on the side where they are small and in logarithms, so that the law is right far in a tail
    too. Raises ValueError if the process has less than 1e-300 of it.
    """

    mean: float = -1.2
    """Mean of log(sigma/alpha)."""
    std: float = 1.2
    """Its standard deviation."""

    def __post_init__(self) -> None:
        number("mean", self.mean)
        number("std", self.std, above=0)

    def _z(self, sde: LinearSDE, t: Tensor | float) -> Tensor:
        return (-sde.log_snr(as_time(t)) - self.mean) / self.std

    def _within(self, sde: LinearSDE) -> tuple[float, Tensor, Tensor]:
        """The sign that turns z to the side of small probabilities, and those of both ends there, the smaller first."""
        low, high = self._z(sde, as_time(sde.t_min).double()), self._z(sde, as_time(sde.T).double())
        sign = -1.0 if low > 0 else 1.0
        a, b = (torch.special.log_ndtr(z).exp() for z in sorted([sign * low, sign * high]))
        if not b - a > 1e-300:
            least, most = (float(-sde.log_snr(as_time(t))) for t in (sde.t_min, sde.T))
            raise ValueError(
                f"mean and std must be of log(sigma/alpha), which is {least:.3g} to {most:.3g} here, "
                f"got mean={self.mean:g} and std={self.std:g}"
            )
        return sign, a, b

    def quantile(self, sde: LinearSDE, u: Tensor) -> Tensor:
        sign, a, b = self._within(sde)
        z = sign * torch.special.ndtri(a + (b - a) * (u if sign > 0 else 1 - u))
        return sde.time(-(self.mean + self.std * z)).clamp(sde.t_min, sde.T)

    def density(self, sde: LinearSDE, t: Tensor) -> Tensor:
        _, a, b = self._within(sde)
        z = self._z(sde, t)
        log_mass = (b - a).log() + math.log(2 * math.pi) / 2 + math.log(self.std)
        return (-(z**2) / 2 - log_mass).exp() * sde.g2(t) / sde.var(t) / 2


@dataclass(frozen=True)
class Unbiased(Weight):
    """weight/density: with t drawn from `times`, the mean loss is int weight(t) loss(t) dt whatever the law."""

    weight: Weight
    times: Times

    def __post_init__(self) -> None:
        if not isinstance(self.weight, Weight) or not isinstance(self.times, Times):
            raise ValueError(
                f"weight must be a Weight and times a law of Times, got {self.weight!r} and {self.times!r}"
            )

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        return self.weight(sde, t) / self.times.density(sde, t)


def dsm(
    model: ScoreModel, x_0: Tensor, t: Tensor, weight: Weight | None = None, noise: Noise = iid(), **cond: Any
) -> Tensor:
    """weight(t) |eps(x_t, t) - z|^2 summed over dimensions: x_0 (B, *D), t (B,) -> (B,).

    The caller draws t; where sigma = 0, eps is 0 and nothing is learnt. weight: `Output(model.predicts)` unless given.
    Computed in float32 for x_0 of half precision. Raises ValueError if t does not have shape (B,) or, on the CPU, lies
    outside [0, T], and for x_0 of whole numbers.
    """
    if not (callable(getattr(model, "eps", None)) and isinstance(getattr(model, "sde", None), LinearSDE)):
        raise ValueError(f"model must be a ScoreModel, got {shown(model)}")
    x_0, t, weight = wide("x_0", x_0, dims=2), as_time(t), Output(model.predicts) if weight is None else weight
    if t.shape != (len(x_0),):
        raise ValueError(f"t must have shape ({len(x_0)},), one time for each sample, got {tuple(t.shape)}")
    function("weight", weight, "a Weight such as Simple()")
    x_t, z = model.sde.perturb(x_0, t, noise)
    error = (model.eps(x_t, t, **cond) - z).square().flatten(1).sum(1)
    return answer("weight", weight(model.sde, t), t).to(error) * error


def cross_entropy(model: NoisyModel, x_0: Tensor, t: Tensor, label: Tensor, noise: Noise = iid()) -> Tensor:
    """-log p(label | x_t, t) of a `ClassModel` at x_t = alpha x_0 + sigma z: x_0 (B, *D), t and label (B,) -> (B,).

    Its least mean is the entropy of the labels given x_t, that of the exact posterior. Raises ValueError as `dsm`, and
    unless label is whole numbers, on the CPU those of the model's classes.
    """
    if not isinstance(model, ClassModel):
        raise ValueError(f"model must be a ClassModel, got {shown(model)}")
    x_0, t = wide("x_0", x_0, dims=2), as_time(t)
    for name, value in (("t", t), ("label", label)):
        if not isinstance(value, Tensor) or value.shape != (len(x_0),):
            raise ValueError(f"{name} must have shape ({len(x_0)},), one for each sample, got {shown(value)}")
    if label.is_floating_point() or label.is_cpu and ((label < 0) | (label >= model.classes)).any():
        raise ValueError(f"label must be in 0..{model.classes - 1}, the model's, got {shown(label.tolist())}")
    x_t, _ = model.sde.perturb(x_0, t, noise)
    return torch.nn.functional.cross_entropy(model(x_t, t), label.long(), reduction="none")


def ssm(score: Score, x_t: Tensor, t: Tensor, noise: Noise = iid()) -> Tensor:
    """Sliced score matching with reduced variance: v^T (d score/dx) v + |score|^2/2 (Song et al. 2019, eq. 8), (B,).

    It needs samples of x_t and no marginals, so it trains scores of non-linear SDEs from `simulate`. Its minimum is the
    score of p_t. x_t is (B, *D), t () or (B,). Computed in float32 for x_t of half precision.
    """
    with recording():
        x_t, t = recordable(wide("x_t", x_t, dims=2)).detach().requires_grad_(), recordable(as_time(t))
        v = drawn(noise, x_t, t, t)
        s = answer("score", function("score", score, "a callable (x, t) -> (B, *D)")(x_t.clone(), t), x_t)
        (grad,) = torch.autograd.grad((s * v).sum(), x_t, create_graph=True)
    return (grad * v).flatten(1).sum(1) + s.square().flatten(1).sum(1) / 2
