"""The one broadcasting helper, and the argument checks that every module shares.

States are `(B, *D)` for any D; times and the coefficients computed from them are `()` or `(B,)`. A 0-dim tensor does
not promote a state's dtype and needs no transfer to its device; a `(B,)` coefficient is cast to the state's.
"""

import math
from typing import Any

import torch
from torch import Tensor


def like(c: Tensor | float, x: Tensor) -> Tensor | float:
    """View a coefficient of shape () or (B,) so that it multiplies a state x of shape (B, *D).

    Raises ValueError if c has another shape.
    """
    if not isinstance(c, Tensor) or c.ndim == 0:
        return c
    if c.ndim != 1 or len(c) != len(x):
        raise ValueError(
            f"t must have shape () or ({len(x)},) for a state of shape {tuple(x.shape)}, got {tuple(c.shape)}"
        )
    return c.to(x).view(-1, *(1,) * (x.ndim - 1))


def choose(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The rows of a (B, *D) where mask (B,) is true, and those of b elsewhere."""
    return torch.where(mask.view(-1, *(1,) * (a.ndim - 1)), a, b)


def as_time(t: Tensor | float) -> Tensor:
    """t as a floating-point tensor; a Python number becomes 0-dim float64."""
    if isinstance(t, Tensor) and t.is_floating_point():
        return t
    return torch.as_tensor(t, dtype=torch.float64)


def number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> float:
    """Return value as a float; raise ValueError naming it unless it is finite and inside the open or closed bounds."""
    ok = isinstance(value, (int, float)) and math.isfinite(value)
    if not (ok and above < value < below and least <= value <= most):
        bounds = ((">", above), (">=", least), ("<", below), ("<=", most))
        said = " and".join(f" {sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
        raise ValueError(f"{name} must be a finite number{said}, got {value!r}")
    return float(value)


def count(name: str, value: Any, least: int = 1, most: float = math.inf) -> int:
    """Return value as an int; raise ValueError naming it unless it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        bound = f" and <= {most}" if most < math.inf else ""
        raise ValueError(f"{name} must be a whole number >= {least}{bound}, got {value!r}")
    return value


def lifted(x: Tensor) -> Tensor:
    """x in float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def state(name: str, x: Any) -> Tensor:
    """Return x; raise ValueError unless it is a non-empty floating-point tensor of shape (B, *D) with finite values."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a non-empty floating-point tensor of shape (B, *D), got {what}")
    finite = x.detach().flatten(1).isfinite().all(1)
    if not finite.all():
        raise ValueError(f"{name} must be finite, but sample {int((~finite).nonzero()[0])} is not")
    return x


def times(name: str, ts: Any, T: float) -> Tensor:
    """Return ts on the CPU in float64; raise ValueError unless it is a decreasing 1-D tensor inside [0, T]."""
    if not isinstance(ts, Tensor) or not ts.is_floating_point() or ts.ndim != 1 or len(ts) < 2:
        what = f"{ts.dtype} of shape {tuple(ts.shape)}" if isinstance(ts, Tensor) else type(ts).__name__
        raise ValueError(f"{name} must be a 1-D floating-point tensor of at least 2 times, got {what}")
    ts = ts.detach().to("cpu", torch.float64)
    if (wrong := ~(ts.diff() < 0)).any():
        k = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name} must strictly decrease, but {name}[{k}] = {ts[k]:.6g} and {name}[{k + 1}] = {ts[k + 1]:.6g}"
        )
    if ts[-1] < 0 or ts[0] > T * (1 + 1e-6):
        raise ValueError(f"{name} must lie in [0, T] = [0, {T:g}], got {ts[-1]:.6g} to {ts[0]:.6g}")
    return ts


def intervals(t: Tensor, s: Tensor, T: float, *, empty: bool = False) -> tuple[Tensor, Tensor]:
    """Return the starts t and the ends s, (n,), on the CPU in float64; raise ValueError unless every interval goes
    down, or has no length where `empty` is set, inside [0, T].
    """
    for name, u in (("t", t), ("s", s)):
        if not isinstance(u, Tensor) or not u.is_floating_point() or u.ndim != 1 or len(u) != len(t) or not len(u):
            what = f"{u.dtype} of shape {tuple(u.shape)}" if isinstance(u, Tensor) else type(u).__name__
            raise ValueError(f"{name} must be the (n,) ends of n intervals as floating-point numbers, got {what}")
    t, s = (u.detach().to("cpu", torch.float64) for u in (t, s))
    wrong = ~((t == s) if empty else (t > s))
    if wrong.any():
        k, word = int(wrong.nonzero()[0]), "be empty" if empty else "decrease"
        raise ValueError(f"intervals must {word}, but number {k} goes from t = {t[k]:.6g} to s = {s[k]:.6g}")
    if s.min() < 0 or t.max() > T * (1 + 1e-6):
        raise ValueError(f"intervals must lie in [0, T] = [0, {T:g}], got {s.min():.6g} to {t.max():.6g}")
    return t, s
