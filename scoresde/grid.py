"""A time grid is a decreasing float64 tensor of n + 1 times from T to `end`; these build the usual ones.

`end` is `sde.t_min` unless given. Any other decreasing tensor serves as well. Raises ValueError unless 1 <= n <= 1e7
and end is inside [0, T). `equal` makes one from any density of steps, `arc_length` and `equal_curvature` from a
trajectory.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .process import LinearSDE, require_linear
from .reference import Reference
from .shapes import as_time, count, number, reals, times

MOST = 10_000_000
"""Steps of a grid: more are a gigabyte of coefficients and months of network calls."""


def _range(sde: LinearSDE, n: int, end: float | None) -> tuple[Tensor, Tensor]:
    count("n", n, most=MOST)
    require_linear("sde", sde)
    return as_time(sde.T), as_time(number("end", sde.t_min if end is None else end, least=0, below=sde.T))


def uniform(sde: LinearSDE, n: int, end: float | None = None) -> Tensor:
    """Equal steps in t."""
    T, end_ = _range(sde, n, end)
    return torch.linspace(float(T), float(end_), n + 1, dtype=torch.float64, device="cpu")


def quadratic(sde: LinearSDE, n: int, end: float | None = None) -> Tensor:
    """Equal steps in sqrt(t) (Song, Meng & Ermon 2021, appendix D.2)."""
    T, end_ = _range(sde, n, end)
    return _pinned(
        torch.linspace(float(T) ** 0.5, float(end_) ** 0.5, n + 1, dtype=torch.float64, device="cpu") ** 2, T, end_
    )


def log_snr(sde: LinearSDE, n: int, end: float | None = None) -> Tensor:
    """Equal steps in lambda = log(alpha/sigma) (Lu et al. 2022a). Needs sigma(end) > 0."""
    return karras(sde, n, end, rho=float("inf"))


def karras(sde: LinearSDE, n: int, end: float | None = None, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma/alpha)^(1/rho) (Karras et al. 2022, eq. 5); rho=inf is `log_snr`, and else it is from
    0.05 to 1e6, between which powers keep their digits. Needs sigma(end) > 0.
    """
    T, end_ = _range(sde, n, end)
    high, low = float(sde.log_snr(T)), _finite(sde, end_)
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64, device="cpu")
    if isinstance(rho, float) and rho == float("inf"):
        lam = high + u * (low - high)
    else:
        number("rho", rho, least=0.05, most=1e6)
        a, b = (torch.tensor(-v / rho, dtype=torch.float64, device="cpu").exp() for v in (high, low))
        lam = -rho * (a + u * (b - a)).log()
    return _pinned(sde.time(lam), T, end_)


def reference(sde: LinearSDE, n: int, end: float | None = None, around: Reference = Reference(std=0.5)) -> Tensor:
    """A density of steps in lambda proportional to sech(lambda - lambda_c)^(1/2) + 0.1 with lambda_c = -log c: most
    steps where the noise is as large as the deviation c of the data around, where the flow of anything but a Gaussian
    is decided. It goes with integrators around Gaussian data (`GaussianReference`). Needs sigma(end) > 0.
    """
    if not isinstance(around, Reference):
        raise ValueError(f"around must be a Reference, got {around!r}")
    T, end_ = _range(sde, n, end)
    center = -math.log(number("std", around.std, above=0))
    lam = torch.linspace(float(sde.log_snr(T)), _finite(sde, end_), 1025, dtype=torch.float64, device="cpu")
    return equal(sde, n, lam, torch.cosh(lam - center) ** -0.5 + 0.1, end)


def usual(around: Reference = Reference(std=0.5)) -> dict[str, Callable[..., Tensor]]:
    """The grids above by name, called as (sde, n, end); `reference` is that of the data around."""
    named = {spacing.__name__: spacing for spacing in (uniform, quadratic, log_snr, karras)}
    return {**named, "reference": partial(reference, around=around)}


def equal(sde: LinearSDE, n: int, lam: Tensor, density: Tensor, end: float | None = None) -> Tensor:
    """n steps from T to end with equal integrals of a density over lambda.

    lam: (K,) increasing values of log(alpha/sigma); density: (K,) positive numbers there, linear between them and
    constant beyond. Raises ValueError if they are not as stated.
    """
    (T, end_), lam, density = _range(sde, n, end), reals("lam", lam, 1), reals("density", density, 1)
    ok = lam.ndim == 1 and lam.shape == density.shape and len(lam) > 1 and (lam.diff() > 0).all()
    if not (ok and (density > 0).all() and lam.isfinite().all() and density.isfinite().all()):
        raise ValueError("lam must be an increasing table and density one of as many positive numbers")
    low, high = float(sde.log_snr(T)), _finite(sde, end_)
    inside = lam[(lam > low) & (lam < high)].cpu().numpy()
    at = np.concatenate([[low], inside, [high]])
    height = np.interp(at, lam.cpu().numpy(), (density / density.max()).cpu().numpy())
    total = np.concatenate([[0.0], np.cumsum((height[1:] + height[:-1]) / 2 * np.diff(at))])
    wanted = np.linspace(0, total[-1], n + 1)
    i = np.searchsorted(total[1:-1], wanted, side="right")
    rest, h, slope = wanted - total[i], height[i], (np.diff(height) / np.diff(at))[i]
    cuts = at[i] + 2 * rest / (h + np.sqrt(np.maximum(h**2 + 2 * slope * rest, 0)))  # h u + slope u^2/2 = rest
    return _pinned(sde.time(torch.from_numpy(cuts)), T, end_)


def arc_length(sde: LinearSDE, n: int, ts: Tensor, states: Tensor, end: float | None = None) -> Tensor:
    """Steps in which a trajectory covers equal lengths of arc, in the root mean square over samples and dimensions.

    ts: (K,) times from T to end; states: (K, B, *D) there, x_t itself or anything else that should change equally from
    step to step, such as E[x_0 | x_t].
    """
    lam, way = _curve(sde, ts, states, 1)
    return equal(sde, n, lam, way.clamp_min(1e-3 * way.mean()), end)


def equal_curvature(sde: LinearSDE, n: int, ts: Tensor, states: Tensor, end: float | None = None) -> Tensor:
    """Steps in which a trajectory bends equally: a density proportional to the cube root of its second derivative by
    lambda, which makes equal the error of the line through two nodes (de Boor 1973), and a fifth of its mean besides.

    ts: (K,) times from T to end; states: (K, B, *D) there, such as E[x_0 | x_t].
    """
    lam, bend = _curve(sde, ts, states, 2)
    density = bend ** (1 / 3)
    return equal(sde, n, lam, density + 0.2 * density.mean(), end)


def _curve(sde: LinearSDE, ts: Tensor, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """lambda at ts, and the size of the k-th derivative of the states by it."""
    ts, states = times("ts", ts, require_linear("sde", sde).T), reals("states", states)
    if len(ts) < 3 or states.ndim < 2 or len(states) != len(ts):
        raise ValueError(f"states must be (K, B, *D) at K = {len(ts)} >= 3 times, got {tuple(states.shape)}")
    _finite(sde, ts[-1])
    lam = sde.log_snr(ts)
    values = states.flatten(1).to("cpu", torch.float64)
    values = values - values[0]  # so that what stands still has derivatives 0
    for _ in range(k):
        (values,) = torch.gradient(values, spacing=(lam,), dim=0)
    size = values.square().mean(1).sqrt()
    if not (size.isfinite().all() and size.any()):
        raise ValueError(f"states must be finite and change, but derivative {k} by lambda is nan, inf or 0 everywhere")
    return lam, size


def _finite(sde: LinearSDE, end: Tensor) -> float:
    lam = float(sde.log_snr(end))
    if lam == float("inf"):
        raise ValueError(f"end must be a time with sigma > 0 on a grid in log-SNR, got {float(end):g}")
    return lam


def _pinned(ts: Tensor, T: Tensor, end: Tensor) -> Tensor:
    """ts with its ends exact."""
    ts[0], ts[-1] = T, end
    return ts
