"""The one broadcasting helper, the one rule of precision, and the argument checks that every module shares.

States are `(B, *D)` for any D; times and the coefficients computed from them are `()` or `(B,)`. A 0-dim tensor does
not promote a state's dtype and needs no transfer to its device; a `(B,)` coefficient is cast to the state's.

Times, clocks, coefficients and norms are float32 or better, whatever the state: `as_time` lifts times, and `wide` lifts
a state before it meets a coefficient, so that the result alone is rounded, once. Integers are no states: what is
computed from them would be rounded to whole numbers.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
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


WITHOUT_FLOAT64 = {"mps"}
"""Types of devices that know no float64."""


def place(t: Tensor, device: torch.device | str) -> Tensor:
    """Times or coefficients t on a device, float64 as float32 where it knows no float64, as Apple's GPUs do not."""
    narrow = t.dtype == torch.float64 and torch.device(device).type in WITHOUT_FLOAT64
    return t.to(device, torch.float32 if narrow else t.dtype)


def as_time(t: Tensor | float, name: str = "t") -> Tensor:
    """t as a tensor of float32 or better: a Python number becomes 0-dim float64 on the CPU, whole numbers float64, half
    precision float32. Raises ValueError, naming it, for what is no real number.
    """
    if not isinstance(t, Tensor):
        try:
            t = torch.from_numpy(np.asarray(t))
        except TypeError as error:
            raise ValueError(f"{name} must be a number or a tensor of numbers, got {shown(t)}") from error
        t = t.double() if t.is_floating_point() else t
    if t.is_floating_point():
        return lifted(t)
    if t.is_complex() or t.dtype == torch.bool:
        raise ValueError(f"{name} must hold real numbers, got {t.dtype}")
    return t.to(torch.float32 if t.device.type in WITHOUT_FLOAT64 else torch.float64)


def inside(t: Tensor | float, T: float, name: str = "t", beyond: bool = False) -> Tensor:
    """as_time(t); raise ValueError unless it lies inside [0, T], to rounding, or `beyond` that in [0, infinity). What
    lies on another device than the CPU is not looked at, since that would wait for the device.
    """
    t = as_time(t, name)
    if t.is_cpu and t.numel():
        low, high = (t.item(), t.item()) if t.ndim == 0 else (u.item() for u in t.detach().aminmax())
        if not (low >= -1e-6 * T and high <= (math.inf if beyond else T * (1 + 1e-6)) and high < math.inf):  # nor nan
            span = "[0, infinity)" if beyond else f"[0, T] = [0, {T:g}]"
            raise ValueError(f"{name} must lie in {span}, got {shown(t.tolist())}")
    return t


def floating(name: str, x: Any) -> Tensor:
    """Return x; raise ValueError unless it is a tensor of floating-point numbers."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a tensor of floating-point numbers, got {what}")
    return x


def lifted(x: Tensor) -> Tensor:
    """x in float32 if it is of half precision, else x itself."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def wide(name: str, x: Any, dims: int = 1) -> Tensor:
    """`lifted`; raise ValueError as `floating`, or for fewer `dims`."""
    if floating(name, x).ndim < dims:
        raise ValueError(f"{name} must be a batch (B, *D), got shape {tuple(x.shape)}")
    return lifted(x)


def rounded(y: Tensor, x: Tensor) -> Tensor:
    """y, which was computed from wide(x), in the type of x if that is of half precision."""
    return y if x.dtype.itemsize >= 4 else y.to(x.dtype)


def answer(name: str, out: Any, x: Tensor) -> Tensor:
    """Return what `name` said of x; raise ValueError unless it is of floating-point numbers in the shape of x: another
    would broadcast.
    """
    if not isinstance(out, Tensor) or out.shape != x.shape:
        what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"{name} must return the shape of x, {tuple(x.shape)}, got {what}")
    if not out.is_floating_point():
        raise ValueError(f"{name} must return floating-point numbers, got {out.dtype}")
    return out


@contextmanager
def recording() -> Iterator[None]:
    """Inside, autograd records, within torch.no_grad and torch.inference_mode too; see `recordable`."""
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext(), torch.enable_grad():
        yield


def recordable(v: Any) -> Any:
    """v, or a copy of a tensor that was made in torch.inference_mode, which autograd does not take."""
    return v.clone() if isinstance(v, Tensor) and v.is_inference() else v


def shown(value: Any) -> str:
    """A value in a message: `repr`, on one line and not too long."""
    said = " ".join(repr(value).split())
    return said if len(said) <= 100 else said[:97] + "..."


def function(name: str, f: Any, such: str) -> Any:
    """Return f; raise ValueError naming it unless it can be called. A class would only be built."""
    if isinstance(f, type) or not callable(f):
        raise ValueError(f"{name} must be {such}, got {shown(f)}")
    return f


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
    try:
        v = float(value) if isinstance(value, (int, float, np.integer)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        v = math.inf
    if not (math.isfinite(v) and above < v < below and least <= v <= most):
        bounds = ((">", above), (">=", least), ("<", below), ("<=", most))
        said = " and".join(f" {sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
        raise ValueError(f"{name} must be a finite number{said}, got {shown(value)}")
    return v


def count(name: str, value: Any, least: int = 1, most: float = 2**63 - 1) -> int:
    """Return value as an int; raise ValueError naming it unless it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        beyond = isinstance(value, int) and value > most
        said = f" and <= {most}" if most < 2**63 - 1 else f" and <= {most:g}" if beyond else ""
        raise ValueError(f"{name} must be a whole number >= {least}{said}, got {shown(value)}")
    return int(value)


SCALE = 1e15
"""Deviations lie between its inverse and it: the squares are then numbers of float32."""


def reals(name: str, values: Any, least: int = 0, device: str | None = None) -> Tensor:
    """values in float64; raise ValueError naming them unless they are real numbers in at least `least` dimensions."""
    try:
        out = torch.as_tensor(values, dtype=None if isinstance(values, Tensor) else torch.float64, device=device)
    except (TypeError, RuntimeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be a table of real numbers, got {shown(values)}") from error
    if out.is_complex() or out.ndim < least:
        raise ValueError(
            f"{name} must be real numbers in at least {least} dimensions, got {out.dtype} of shape {tuple(out.shape)}"
        )
    return out.to(torch.float64)


def as_table(name: str, values: Any, least: int = 1) -> Tensor:
    """values as a table (N,) in float64 on the CPU; raise ValueError unless they are at least `least` numbers."""
    out = reals(name, values, device="cpu").detach()
    if out.ndim != 1 or len(out) < least:
        raise ValueError(
            f"{name} must be a non-empty 1-D table of at least {least} numbers, got shape {tuple(out.shape)}"
        )
    return out


def dims(name: str, shape: Any, least: int = 1) -> tuple[int, ...]:
    """Return shape as a tuple; raise ValueError naming it unless it is a sequence of whole numbers >= least."""
    if not isinstance(shape, (list, tuple)):
        raise ValueError(f"{name} must be a sequence of whole numbers, got {shown(shape)}")
    return tuple(count(name, n, least) for n in shape)


def state(name: str, x: Any) -> Tensor:
    """Return x; raise ValueError unless it is a non-empty floating-point tensor of shape (B, *D) with finite values."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a non-empty floating-point tensor of shape (B, *D), got {what}")
    finite = torch.cat([part.flatten(1).isfinite().all(1) for part in x.detach().split(4096)])
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
