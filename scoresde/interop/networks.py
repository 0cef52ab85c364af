"""A network that was trained elsewhere, read as a score.

Three things have to be known of it: which process its noise belongs to, what it predicts, and how it is told the time.
Each function here states them for one habit of the field and returns a `ScoreModel`, which any solver, likelihood or
fit takes. Whether they were stated rightly is seen from data: `readings`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..model import (
    Clock,
    Data,
    Epsilon,
    FlowVelocity,
    NoiseLevel,
    Parametrisation,
    ScoreModel,
    ScoreValue,
    StepIndex,
    Time,
    TwoHeads,
    Velocity,
)
from ..process import EDM, LinearSDE, RectifiedFlow, Tabulated
from ..reference import Reference
from ..shapes import as_time, count, function, like, number, shown, state

READINGS: tuple[Parametrisation, ...] = (
    Epsilon(),
    Data(),
    Velocity(),
    ScoreValue(),
    FlowVelocity(),
    FlowVelocity(towards_data=True),
)
"""What a network may predict."""
LEVELS, DRAWS = 6, 256
"""Noise levels that a network is looked at, and samples at each, at most."""
WORST = 10.0
"""The most that the error at a level counts, in units of a linear guess's."""
POOR, CLEARLY, FEWEST = 1.05, 1.15, 8
"""Of a network whose least error is above the first, and beyond chance, something else is wrong; a reading is better by
the second, if it is; so many samples tell it."""
Seen = Tensor | tuple[Tensor, Tensor]
"""Samples as a network was trained on, or these and their labels."""


class Adapted(nn.Module):
    """A network of another signature, called as ours are: net(x, c, label=None, **cond).

    net: called as net(x, c, **cond), and what it answers, a tensor, one with the attribute `sample`, a tuple that
    begins with one, or a dictionary with "sample", is the tensor. label: how it calls the class label. classes: how
    many labels it knows; none: the label that stands for none, if there is one. integers: c is given as whole numbers.
    """

    def __init__(
        self,
        net: Callable[..., Any],
        label: str = "label",
        classes: int = 0,
        none: int | None = None,
        integers: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.label, self.none, self.integers = function("net", net, "a network"), label, none, integers
        self.classes = count("classes", classes, least=0)

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None, **cond: Any) -> Tensor:
        if label is None and self.none is not None:
            label = torch.full((len(x),), self.none, device=x.device)
        told = cond if label is None else cond | {self.label: label}
        return _tensor(self.net(x, c.round().long() if self.integers else c, **told))


def _tensor(out: Any) -> Tensor:
    if isinstance(out, dict):
        out = out.get("sample", out)
    elif isinstance(out, (tuple, list)) and out:
        out = out[0]
    found = getattr(out, "sample", out) if not isinstance(out, Tensor) else out
    if not isinstance(found, Tensor):
        raise ValueError(f"net must return a tensor, or what holds one under 'sample', got {type(found).__name__}")
    return found


def adapted(
    net: Adapted, sde: LinearSDE, predicts: Parametrisation, clock: Clock, variance: bool, data: Seen | None
) -> ScoreModel:
    """The score, which is as data show, if there are some. Weights require no gradients, as they are not trained."""
    model = (TwoHeads if variance else ScoreModel)(net, sde, predicts, clock).eval().requires_grad_(False)
    if data is not None:
        require_reading(model, data)
    return model


def from_betas(
    net: Callable[..., Any],
    betas: Tensor,
    predicts: Parametrisation = Epsilon(),
    *,
    whole: bool = False,
    variance: bool = False,
    label: str = "label",
    classes: int = 0,
    none: int | None = None,
    data: Seen | None = None,
) -> ScoreModel:
    """The score of a DDPM network net(x, i), told the index i from 0 to n - 1 of a step of the table beta_1..beta_n (Ho
    et al. 2020; `process.linear_betas`, `scaled_linear_betas` and `cosine_betas` are those in use).

    predicts: `Epsilon`, `Data`, `Velocity` (v-prediction) or another. whole: it takes whole indices only, such as rows
    of a table; else it is asked between them too, as one with sines of i may be. variance: it returns twice the
    channels, the second half for `LearnedVariance` (Nichol & Dhariwal 2021). label, classes, none: how it calls the
    class label, how many there are, and which it is told where there is none. data: from 8 samples on as the network
    was trained on, or (samples, labels), by which it is seen whether all of this is so.

    Weights are set to require no gradients, and layers to evaluate. Raises ValueError for what is no table, and, with
    data, where the network predicts noise clearly better read in another way, or worse than a linear guess.
    """
    sde = Tabulated(betas)
    clock = StepIndex(len(sde.betas), whole)
    return adapted(Adapted(net, label, classes, none, whole), sde, predicts, clock, variance, data)


def from_denoiser(
    net: Callable[..., Any],
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    *,
    label: str = "label",
    classes: int = 0,
    none: int | None = None,
    data: Seen | None = None,
) -> ScoreModel:
    """The score of a denoiser D(x, sigma) of x = x_0 + sigma z, with whatever scalings it has inside (Karras et al.
    2022; the models of k-diffusion and of EDM's code): (D - x)/sigma^2. The noise levels are those it was trained on.
    The other arguments are those of `from_betas`, which raises the errors.
    """
    sde = EDM(T=number("sigma_max", sigma_max, above=number("sigma_min", sigma_min, above=0)), t_min=sigma_min)
    return adapted(Adapted(net, label, classes, none), sde, Data(), NoiseLevel(), False, data)


def from_velocity(
    net: Callable[..., Any],
    *,
    towards_data: bool = False,
    scale: float = 1.0,
    label: str = "label",
    classes: int = 0,
    none: int | None = None,
    data: Seen | None = None,
) -> ScoreModel:
    """The score of a flow-matching velocity v(x, t) on the straight paths between data and N(0, I).

    Data are at t = 0 and v = z - x_0 (Liu et al. 2023), or, towards_data, at t = 1 and v = x_0 - z (Lipman et al.
    2023). scale: what the network is told is scale times t, such as 1000. The other arguments are those of
    `from_betas`, which raises the errors.
    """
    clock = Time(-scale, scale) if towards_data else Time(scale)
    predicts = FlowVelocity(towards_data)
    return adapted(Adapted(net, label, classes, none), RectifiedFlow(), predicts, clock, False, data)


def from_azula(denoiser: Any, *, data: Seen | None = None) -> ScoreModel:
    """The score of a denoiser of azula, whose `denoiser(x_t, t).mean` is E[x_0 | x_t] and `denoiser.schedule(t)` is
    (alpha_t, sigma_t), at the noise levels sigma/alpha from t = 0 to 1. Raises ValueError for what is none, and as
    `from_betas`.
    """
    schedule = getattr(denoiser, "schedule", None)
    if not callable(denoiser) or not callable(schedule):
        raise ValueError(f"denoiser must be one of azula, with a schedule, got {type(denoiser).__name__}")
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    low, high = (_log_noise(schedule, ends)).tolist()
    if not math.isfinite(low) or not low < high < math.inf:
        raise ValueError(f"denoiser.schedule must add noise from t = 0 to 1, got log sigma/alpha {low:g} to {high:g}")
    sde = EDM(T=math.exp(high), t_min=math.exp(low))
    return adapted(Adapted(_Azula(denoiser)), sde, Data(), NoiseLevel(), False, data)


def _log_noise(schedule: Callable[[Tensor], Any], t: Tensor) -> Tensor:
    alpha, sigma = schedule(t)
    return (sigma / alpha).log()


class _Azula(nn.Module):
    """D(x, sigma) by a denoiser whose own time is found from sigma by bisection, as schedules are monotone."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        wanted = sigma.double().log()
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(60):
            middle = (low + high) / 2
            above = _log_noise(self.denoiser.schedule, middle) > wanted
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        t = (low + high) / 2
        t = t[0] if bool((t == t[0]).all()) else t  # which all of its denoisers take
        alpha, _ = self.denoiser.schedule(t)
        out: Tensor = self.denoiser(like(alpha, x) * x, t.to(x), **cond).mean
        return out


@torch.no_grad()
def readings(model: ScoreModel, data: Seen, seed: int = 0) -> dict[Parametrisation, float]:
    """How wrong each reading of the network's answers is about the noise z in x = alpha x_0 + sigma z, of data x_0 (n,
    *D), or (x_0, labels), in units of the best guess that is linear in x and treats all dimensions alike:

        E|eps - z|^2/d (1 + sigma^2/(alpha c)^2),    c^2 = E|x_0 - m|^2/d,

    the geometric mean over six noise levels between t_min and T at equal steps of log-SNR, of at most 10 each, as a
    network may be poor at one. One that has learned something is below 1. Raises ValueError unless data are samples.
    """
    x_0, y = data if isinstance(data, tuple) else (data, None)
    x_0, sde = state("data", x_0)[:DRAWS], model.sde
    if len(x_0) < FEWEST:
        raise ValueError(f"data must hold at least {FEWEST} samples, got {len(x_0)}")
    if y is not None and (not isinstance(y, Tensor) or y.shape != data[0].shape[:1]):
        raise ValueError(f"data must hold a label for each of {len(data[0])} samples, got {shown(y)}")
    p = next(model.parameters(), x_0)
    told = {} if y is None else {"label": y[:DRAWS].to(p.device)}
    g = torch.Generator().manual_seed(count("seed", seed, least=0))
    most, least = (float(sde.log_snr(as_time(t))) for t in (max(sde.t_min, sde.T * 1e-6), sde.T))
    lam = torch.linspace(most, least, LEVELS + 2, dtype=torch.float64)[1:-1]
    found = dict.fromkeys((model.predicts, *READINGS), 0.0)
    c = Reference.fit(x_0).overall.std
    for t in sde.time(lam):
        guess = 1 / (1 + float((-2 * sde.log_snr(t)).exp()) / c**2)
        z = torch.randn(x_0.shape, generator=g, dtype=x_0.dtype).to(p.device)
        x = float(sde.alpha(t)) * x_0.to(p.device) + float(sde.sigma(t)) * z
        for predicts in found:
            read = _read(model, predicts)
            error = float((_asked(read, x, t, told) - z).square().mean()) / guess
            found[predicts] += math.log(min(WORST, error if error == error else WORST)) / LEVELS
    return {predicts: math.exp(error) for predicts, error in found.items()}


def _asked(model: ScoreModel, x: Tensor, t: Tensor, told: dict[str, Tensor]) -> Tensor:
    """eps. Raises ValueError if the network does not answer."""
    try:
        return model.eps(x, t, **told)
    except Exception as error:  # whatever a network of one's own may raise
        also = "" if told else ", or give (data, labels) if it needs labels"
        raise ValueError(f"data must be such samples as the network takes{also}: {error}") from error


def _read(model: ScoreModel, predicts: Parametrisation) -> ScoreModel:
    """The same network, whose answers mean something else."""
    return type(model)(model.net, model.sde, predicts, model.clock).train(model.training)


def require_reading(model: ScoreModel, data: Seen) -> None:
    """Raise ValueError where another reading of the network's answers is clearly better, or the one at hand is worse
    than a linear guess by far: a wrong one gives wrong samples without a word.
    """
    found, x_0 = readings(model, data), data[0] if isinstance(data, tuple) else data
    own, best = found[model.predicts], min(found, key=lambda k: found[k])
    chance = 3 * math.sqrt(2 / (min(len(x_0), DRAWS) * x_0[0].numel() * LEVELS))
    if found[best] > POOR + chance:
        raise ValueError(
            "the network must tell more of the noise in data than a linear guess, but its error is "
            f"{found[best]:.3g} times as large, or more, however it is read: are data in the units that it was trained "
            "in, and is it told the time as it was?"
        )
    if found[best] < own / CLEARLY:  # of the same noise, which chance hardly moves apart
        raise ValueError(
            f"predicts must be what the network predicts: read as {model.predicts} its error of the noise in data is "
            f"{own:.3g} times that of a linear guess, as {best} {found[best]:.3g} times"
        )
