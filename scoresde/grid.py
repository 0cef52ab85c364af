"""A time grid is a decreasing float64 tensor of n + 1 times from T to `end`; these build the usual ones.

`end` is `sde.t_min` unless given. Any other decreasing tensor serves as well. Raises ValueError if n < 1 or end is not
inside [0, T).
"""

import torch
from torch import Tensor

from .sde import LinearSDE
from .shapes import as_time, count, number


def _range(sde: LinearSDE, n: int, end: float | None) -> tuple[Tensor, Tensor]:
    count("n", n)
    return as_time(sde.T), as_time(number("end", sde.t_min if end is None else end, least=0, below=sde.T))


def uniform(sde: LinearSDE, n: int, end: float | None = None) -> Tensor:
    """Equal steps in t."""
    T, end_ = _range(sde, n, end)
    return torch.linspace(float(T), float(end_), n + 1, dtype=torch.float64)


def quadratic(sde: LinearSDE, n: int, end: float | None = None) -> Tensor:
    """Equal steps in sqrt(t) (Song, Meng & Ermon 2021, appendix D.2)."""
    T, end_ = _range(sde, n, end)
    return _pinned(torch.linspace(float(T) ** 0.5, float(end_) ** 0.5, n + 1, dtype=torch.float64) ** 2, T, end_)


def log_snr(sde: LinearSDE, n: int, end: float | None = None) -> Tensor:
    """Equal steps in lambda = log(alpha/sigma) (Lu et al. 2022a). Needs sigma(end) > 0."""
    return karras(sde, n, end, rho=float("inf"))


def karras(sde: LinearSDE, n: int, end: float | None = None, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma/alpha)^(1/rho) (Karras et al. 2022, eq. 5); rho=inf is `log_snr`. Needs sigma(end) > 0."""
    T, end_ = _range(sde, n, end)
    high, low = float(sde.log_snr(T)), float(sde.log_snr(end_))
    if low == float("inf"):
        raise ValueError(f"end must be a time with sigma > 0 on a grid in log-SNR, got {float(end_):g}")
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    if rho == float("inf"):
        lam = high + u * (low - high)
    else:
        number("rho", rho, above=0)
        a, b = (torch.tensor(-v / rho, dtype=torch.float64).exp() for v in (high, low))
        lam = -rho * (a + u * (b - a)).log()
    return _pinned(sde.time(lam), T, end_)


def _pinned(ts: Tensor, T: Tensor, end: Tensor) -> Tensor:
    """ts with its ends exact."""
    ts[0], ts[-1] = T, end
    return ts
