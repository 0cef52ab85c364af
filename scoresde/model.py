"""Any network, read as a score, or as a classifier of noisy samples.

A network F sees c_in x and a clock value, and every parametrisation in the literature is one line that turns what it
says into the noise in x = alpha x_0 + sigma z:

    eps(x, t) = a y + b F(c_in y, clock(t)),    y = x - alpha m,    score = -eps / sigma.

m is 0 but for a parametrisation that knows the data's mean.

The network computes in its own dtype (or autocast's); the state keeps its own. Everything around the network, and the
clock that it is told, is float32 or better: a thousand steps are not told apart in 8 bits.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .closures import Counted as Counted
from .closures import Through as Through
from .closures import clamped as clamped
from .closures import thresholded as thresholded
from .closures import transport as transport
from .process import LinearSDE, needs_noise
from .reference import Reference
from .shapes import answer, count, inside, like, number, recordable, recording, wide

Scalings = tuple[Tensor | float, Tensor | float, Tensor | float]


class Parametrisation(ABC):
    """What the network predicts: (alpha, sigma) -> (a, b, c_in), each a number or of the shape of alpha."""

    mean: float = 0.0
    """m."""

    @abstractmethod
    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scalings: ...

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor | float:
        """The weight of the squared error of eps that is 1 on the network's own output, 1/b^2."""
        return self(alpha, sigma)[1] ** -2


@dataclass(frozen=True)
class Epsilon(Parametrisation):
    """F = z, the noise (Ho et al. 2020)."""

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scalings:
        return 0.0, 1.0, 1.0


@dataclass(frozen=True)
class Data(Parametrisation):
    """The network predicts the data: F = x_0."""

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scalings:
        return 1 / sigma, -alpha / sigma, 1.0


@dataclass(frozen=True)
class Velocity(Parametrisation):
    """F = v = alpha z - sigma x_0 (Salimans & Ho 2022, section 4)."""

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scalings:
        return sigma / (alpha**2 + sigma**2), alpha / (alpha**2 + sigma**2), 1.0


@dataclass(frozen=True)
class ScoreValue(Parametrisation):
    """The network predicts the score itself: F = score."""

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scalings:
        return 0.0, -sigma, 1.0

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor | float:
        """1: sigma^2 on the output, which makes all noise levels count about equally (Song & Ermon 2019, eq. 6)."""
        return 1.0


@dataclass(frozen=True)
class Karras(Parametrisation):
    """F has input and target of unit variance at every noise level, and is what the data have beyond the Gaussian
    around (Karras et al. 2022, eq. 7 and table 1, written for any alpha and mean).

    A network treats all pixels alike, so it is told the overall mean and deviation. Raises ValueError unless the
    deviation is above 0 and finite.
    """

    around: Reference = Reference(std=0.5)

    def __post_init__(self) -> None:
        if not isinstance(self.around, Reference):
            raise ValueError(f"around must be a Reference such as Reference.fit(data), got {self.around!r}")
        self.around.checked(getattr(self.around.mean, "shape", ()))
        overall = self.around.overall
        object.__setattr__(self, "mean", overall.mean)
        object.__setattr__(self, "_std", overall.std)

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scalings:
        c: float = self._std  # type: ignore[attr-defined]
        total = (alpha * c) ** 2 + sigma**2
        return sigma / total, -alpha * c / total.sqrt(), 1 / total.sqrt()


@dataclass(frozen=True)
class FlowVelocity(Parametrisation):
    """F = z - x_0, the velocity of the straight paths x = (1 - t) x_0 + t z (Liu et al. 2023; Lipman et al. 2023), or,
    towards the data, x_0 - z, that of the same paths in the time 1 - t.
    """

    towards_data: bool = False

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scalings:
        total = alpha + sigma
        return 1 / total, (-alpha if self.towards_data else alpha) / total, 1.0


class Clock(ABC):
    """The number by which the network is told the noise level: (sde, t) -> the shape of t."""

    @abstractmethod
    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LogSNR(Clock):
    """scale * lambda_t. EDM's c_noise = log(sigma)/4 is scale=-0.25, that of consistency models -250."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        number("scale", self.scale, least=-1e6, most=1e6)

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        return self.scale * sde.log_snr(t)


@dataclass(frozen=True)
class Steps(Clock):
    """(n - 1) t/T, from 0 at t = 0 to n - 1 at T: 999 t, as networks of Song et al. (2021) for VP are told with n=1000.

    `shift` is added. The index of a chain whose step i is at t = (i + 1) T/n, as in most DDPM code, is `StepIndex(n)`,
    which `Steps(n + 1, shift=-1)` is but for the ends.
    """

    n: int = 1000
    shift: float = 0.0

    def __post_init__(self) -> None:
        count("n", self.n, most=10**9)
        number("shift", self.shift, least=-1e9, most=1e9)

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        return (self.n - 1) * t / sde.T + self.shift


@dataclass(frozen=True)
class StepIndex(Clock):
    """n t/T - 1, from 0 to n - 1: the index of a step of a discrete chain whose knots are i T/n, as `Tabulated`'s are,
    and whose first step has index 0, as in most DDPM code. whole: the nearest whole number, for networks that have a
    row of a table for each step; the score is then constant between the middles of steps.
    """

    n: int = 1000
    whole: bool = False

    def __post_init__(self) -> None:
        count("n", self.n, most=10**9)

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        index = (self.n * t / sde.T - 1).clamp(0, self.n - 1)
        return index.round() if self.whole else index


@dataclass(frozen=True)
class Time(Clock):
    """scale * t + shift: t itself, 1 - t by Time(-1, 1), or t in thousandths."""

    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        number("scale", self.scale, least=-1e9, most=1e9)
        number("shift", self.shift, least=-1e9, most=1e9)

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        return self.scale * t + self.shift


@dataclass(frozen=True)
class NoiseLevel(Clock):
    """sigma/alpha, as denoisers D(x; sigma) are told (Karras et al. 2022), and networks of Song et al. (2021) for VE,
    where it is sigma_t.
    """

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        return (-sde.log_snr(t)).exp()


class NoisyModel(nn.Module):
    """A network that is asked about x at a noise level of `sde`: what every kind of model has."""

    kind: ClassVar[str]
    """What it is, in words."""
    parts: ClassVar[dict[str, type]]
    """The arguments that it is made from beside the network, by name, and their classes."""

    def __init__(self, net: nn.Module, sde: LinearSDE, clock: Clock, **parts: Any) -> None:
        super().__init__()
        for name, value in {"net": net, "sde": sde, **parts}.items():
            kind = self.parts.get(name, nn.Module)
            if not isinstance(value, kind):
                raise ValueError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
        if isinstance(clock, type) or not callable(clock):
            raise ValueError(f"clock must be a value such as LogSNR(), got {clock!r}")
        self.net, self.sde, self.clock = net, sde, clock

    @property
    def around(self) -> Reference | None:
        """The Gaussian of the data that the network was made for, if it is known."""
        return None

    def _dtype(self, x: Tensor) -> torch.dtype:
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), x.dtype)

    def _clock(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network is told of t, (B,)."""
        clock = torch.ones(len(x), dtype=torch.promote_types(self._dtype(x), torch.float32), device=x.device)
        return clock * like(self.clock(self.sde, t), clock)


class ScoreModel(NoisyModel):
    """Reads `net` as the score of the marginals of `sde`.

    net: an nn.Module with `forward(x, c, **cond)`, x of shape (B, *D), c of shape (B,), returning x's shape. x comes in
    the dtype of the network's parameters, c in float32 where that is of half precision, for the network to cast what it
    makes of it.
    predicts: what the network's output means; clock: how it is told the time.

    eps is 0, as E[z | x_t] is, where sigma = 0. Raises ValueError if an argument has the wrong type, if the network
    returns another shape than x's or complex numbers, and on the CPU for times outside [0, T] and for a score at
    sigma = 0, where it is singular.
    """

    kind = "a score model"
    parts: ClassVar[dict[str, type]] = {"sde": LinearSDE, "predicts": Parametrisation, "clock": Clock}

    def __init__(
        self, net: nn.Module, sde: LinearSDE, predicts: Parametrisation = Epsilon(), clock: Clock = LogSNR()
    ) -> None:
        super().__init__(net, sde, clock, predicts=predicts)
        self.predicts = predicts

    @property
    def around(self) -> Reference | None:
        """The Gaussian of the data that the network was made for, if its parametrisation knows one."""
        return getattr(self.predicts, "around", None)

    def _asked(self, x: Tensor, t: Tensor | float) -> tuple[Scalings, Tensor, Tensor, Tensor]:
        """(a, b, c_in), y, and what the network is called with: c_in y and the clock, in its dtype. Where sigma = 0, a
        and b are 0, and the network is asked at T.
        """
        x, t = wide("x", x, dims=2), inside(t, self.sde.T)
        like(t, x)  # t of another shape raises here, where some parametrisations would broadcast it
        if self.around:
            self.around.checked(x.shape[1:])
        sigma = self.sde.sigma(t)
        noisy = sigma > 0
        clean = not (t.is_cpu and noisy.all())  # or it may be: to look elsewhere would wait for the device
        if clean:
            t = torch.where(noisy, t, self.sde.T)
            sigma = self.sde.sigma(t)
        alpha = self.sde.alpha(t)
        (a, b, c_in), mean = self.predicts(alpha, sigma), self.predicts.mean
        y = x - like(alpha * mean, x) if mean else x
        line = (a * noisy, b * noisy, c_in) if clean else (a, b, c_in)
        return line, y, (like(c_in, x) * y).to(self._dtype(x)), self._clock(x, t)

    def _F(self, u: Tensor, c: Tensor, **cond: Any) -> Tensor:
        return self.net(u, c, **cond)

    def _eps(self, line: Scalings, y: Tensor, out: Tensor) -> Tensor:
        return like(line[0], y) * y + like(line[1], y) * answer("net", out, y).to(y.dtype)

    def _sigma(self, t: Tensor | float) -> Tensor:
        """sigma_t where a score is asked for. Raises ValueError, on the CPU, where it is 0."""
        t = inside(t, self.sde.T)
        sigma = self.sde.sigma(t)
        if sigma.is_cpu and not sigma.all():
            needs_noise(self, t)
        return sigma

    def eps(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """The predicted noise, a y + b F(c_in y, clock(t)): (B, *D), () or (B,) -> (B, *D)."""
        line, y, u, c = self._asked(x, t)
        return self._eps(line, y, self._F(u, c, **cond)).to(x.dtype)

    def forward(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """The score, -eps / sigma."""
        w, sigma = wide("x", x), self._sigma(t)
        return (-self.eps(w, t, **cond) / like(sigma, w)).to(x.dtype)


class TwoHeads(ScoreModel):
    """A network that returns twice the channels of x: F, and 2v - 1 for the variance of `LearnedVariance` (Nichol &
    Dhariwal 2021, section 3.1). As a score it is its first half.
    """

    def _F(self, u: Tensor, c: Tensor, **cond: Any) -> Tensor:
        return self.net(u, c, **cond).chunk(2, 1)[0]

    def both(self, x: Tensor, t: Tensor | float, **cond: Any) -> tuple[Tensor, Tensor]:
        """(score, v) by one network call, each (B, *D)."""
        sigma, (line, y, u, c) = self._sigma(t), self._asked(x, t)
        out, v = self.net(u, c, **cond).chunk(2, 1)
        score = -self._eps(line, y, out) / like(sigma, y)
        return score.to(x.dtype), ((v.to(y.dtype) + 1) / 2).to(x.dtype)


class EnergyModel(ScoreModel):
    """A network that returns one number a sample, read as an energy whose gradient is F: score = -grad E exactly.

        E(x, t) = a/(2 sigma) |y|^2 + b/(sigma c_in) net(c_in y, clock(t)),    log p_t = -E + const(t),

    in every parametrisation (a, b, c_in), so that eps = sigma grad E = a y + b (grad net)(c_in y). (Energies: Hyvarinen
    2005; Salimans & Ho 2021.) It is trained by the same `dsm`, through the gradient.
    """

    def _F(self, u: Tensor, c: Tensor, **cond: Any) -> Tensor:
        graph = torch.is_grad_enabled()
        with recording():
            u, c, cond = recordable(u), recordable(c), {name: recordable(v) for name, v in cond.items()}
            u = u if u.requires_grad else u.detach().requires_grad_()
            return torch.autograd.grad(self._net(u, c, **cond).sum(), u, create_graph=graph)[0]

    def _net(self, u: Tensor, c: Tensor, **cond: Any) -> Tensor:
        out = self.net(u, c, **cond)
        if out.shape != c.shape:
            raise ValueError(f"net must return one number a sample, shape {tuple(c.shape)}, got {tuple(out.shape)}")
        return out

    def log_prob(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """-E(x, t), the log-density up to a constant that depends on t: (B, *D) -> (B,), in float32 for a state of half
        precision.
        """
        sigma, ((a, b, c_in), y, u, c) = self._sigma(t), self._asked(x, t)
        value = self._net(u, c, **cond).to(y.dtype)
        quadratic, linear = (torch.as_tensor(k).to(value) for k in (a / (2 * sigma), b / (sigma * c_in)))
        return -quadratic * y.square().flatten(1).sum(1) - linear * value


class ClassModel(NoisyModel):
    """Reads `net` as log p(c | x_t) + const of classes c = 0..K-1 at every noise level (Song et al. 2021, section 5;
    Dhariwal & Nichol 2021, section 4): with `guide.classified` it turns a score into that of a class.

    net: an nn.Module with `forward(u, c)`, u (B, *D), c (B,), returning (B, K), and K, at least 2, as `classes`; they
    come as to `ScoreModel`. around: the data's Gaussian N(m, c^2), by which the input has unit variance at every level,

        logits = net((x - alpha m)/sqrt(alpha^2 c^2 + sigma^2), clock(t)).

    Times below t_min, where none is trained, are taken as t_min. Raises ValueError if an argument has the wrong type or
    the network returns another shape, and on the CPU for times outside [0, T].
    """

    kind = "a classifier"
    parts: ClassVar[dict[str, type]] = {"sde": LinearSDE, "around": Reference, "clock": Clock}

    def __init__(self, net: nn.Module, sde: LinearSDE, around: Reference, clock: Clock = LogSNR()) -> None:
        super().__init__(net, sde, clock, around=around)
        self.classes = count("net.classes", getattr(net, "classes", None), least=2)
        self._input = Karras(around)

    @property
    def around(self) -> Reference:
        """The Gaussian of the data."""
        return self._input.around

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Logits (B, K), in float32 or better, of x (B, *D) at t, () or (B,)."""
        x, t = wide("x", x, dims=2), inside(t, self.sde.T).clamp_min(self.sde.t_min)
        like(t, x), self.around.checked(x.shape[1:])
        alpha = self.sde.alpha(t)
        c_in = self._input(alpha, self.sde.sigma(t))[2]
        u = like(c_in, x) * (x - like(alpha * self._input.mean, x))
        out = self.net(u.to(self._dtype(x)), self._clock(x, t))
        if not isinstance(out, Tensor) or out.shape != (len(x), self.classes) or not out.is_floating_point():
            what = f"{out.dtype} of {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"net must return logits of shape {(len(x), self.classes)}, got {what}")
        return out.to(x.dtype)
