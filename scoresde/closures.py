"""Scores by what another says: cut to a range, carried to another process, counted. They go wherever a score goes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .process import LinearSDE, Score, needs_noise, require_linear, require_score_of
from .shapes import answer, function, inside, like, number, wide

EXACT = 1 << 24
"""The most numbers that float32 can tell apart by their place, and that `torch.quantile` takes."""


def clamped(score: Score, sde: LinearSDE, low: float = -1.0, high: float = 1.0) -> Score:
    """The score whose E[x_0 | x_t] is cut to [low, high] elementwise, as DDPM code does for images when it samples.

    It is a bias wherever it acts. Raises ValueError unless low < high and, on the CPU, at sigma = 0, where it is
    singular.
    """
    number("high", high, above=number("low", low))
    return _by_data(score, sde, lambda x_0: x_0.clamp(low, high))


def thresholded(score: Score, sde: LinearSDE, ratio: float = 0.995, most: float = 1e15) -> Score:
    """The score whose E[x_0 | x_t], of data in [-1, 1], is cut to [-s, s] and divided by s, with each sample's own

        s = max(1, the quantile `ratio` of |x_0| over its dimensions)

    (dynamic thresholding: Saharia et al. 2022, section 2.3; Lu et al. 2022b): where strong guidance leads
    out of the range a sample keeps its contrast, which `clamped` takes. most: the largest s; with 1 it is `clamped`.

    It is a bias wherever it acts. Raises ValueError unless 0 < ratio <= 1 and most >= 1 and, on the CPU, at sigma = 0,
    where it is singular.
    """
    number("ratio", ratio, above=0, most=1), number("most", most, least=1)

    def cut(x_0: Tensor) -> Tensor:
        s = _quantile(wide("x", x_0, dims=2).abs().flatten(1), ratio).clamp(1.0, most)
        scale = torch.as_tensor(like(s, x_0))
        return x_0.clamp(-scale, scale) / scale

    return _by_data(score, sde, cut)


def _quantile(x: Tensor, ratio: float) -> Tensor:
    """That of each row, (B, n) -> (B,), linear between values in order: `torch.quantile` for any n."""
    n = x.shape[1]
    kind = x.dtype if n <= EXACT else torch.float64  # of the place among them: torch's own where it has one
    rank = torch.tensor(ratio, dtype=kind, device="cpu") * (n - 1)
    low = int(rank)
    ordered = x.sort(1).values
    below, above = ordered[:, low], ordered[:, min(low + 1, n - 1)]
    found = below.lerp(above, torch.full_like(below, float(rank) - low))
    return found.masked_fill(x.isnan().any(1), torch.nan)


def _by_data(score: Score, sde: LinearSDE, cut: Callable[[Tensor], Tensor]) -> Score:
    """The score whose E[x_0 | x_t] is cut(E[x_0 | x_t])."""
    p = require_linear("sde", sde).reverse(score)

    def through(x: Tensor, t: Tensor) -> Tensor:
        w, t = wide("x", x), inside(t, sde.T)
        if t.is_cpu:
            needs_noise(p, t)
        return ((like(sde.alpha(t), w) * cut(p.denoise(w, t)) - w) / like(sde.var(t), w)).to(x.dtype)

    return Through(score, through)


def transport(score: Score, source: LinearSDE, target: LinearSDE) -> Score:
    """The score of `source`'s marginals as that of `target`'s: p_t of both are one density at equal log-SNR, scaled.

    With lambda_u(source) = lambda_t(target) and c = alpha_u / alpha_t: score_target(x, t) = c score_source(c x, u). For
    equal processes it is the score itself.

    Raises ValueError for the score of another process than the source, and where the target is noisier than the source
    ever is, or (times on the CPU) less noisy than it is at t=0: the network was never asked there.
    """
    function("score", score, "a callable (x, t) -> (B, *D)")
    require_linear("source", source), require_linear("target", target)
    require_score_of(score, source)
    if source == target:
        return score
    most, least = (float(source.log_snr(t)) for t in (0.0, source.T))
    wanted = float(target.log_snr(target.T))
    if wanted < least - 1e-6:
        raise ValueError(
            f"target reaches log-SNR {wanted:.4g} at T, beyond the source's {least:.4g}: lower the noise of {target} "
            f"to sigma/alpha <= {torch.tensor(-least).exp():.6g}"
        )

    def moved(x: Tensor, t: Tensor) -> Tensor:
        w, t = wide("x", x), inside(t, target.T)
        lam = target.log_snr(t)
        if lam.is_cpu and (lam > most + 1e-6).any():
            raise ValueError(
                f"t must be a time with log-SNR at most {most:.4g}, that of {source} at t=0, got {lam.max():.4g}"
            )
        u = source.time(lam)
        c = like(source.alpha(u) / target.alpha(t), w)
        return (c * answer("score", score(c * w, u), w)).to(x.dtype)

    return Through(score, moved)


class Through:
    """A score by what another says, once a call. calls: those that the other says it has made of networks, if it is one
    that does.
    """

    def __init__(self, score: Score, f: Score) -> None:
        self.score, self.f = score, f

    @property
    def calls(self) -> int:
        """Network calls. Raises AttributeError where the score does not count them."""
        made: int = self.score.calls  # type: ignore[attr-defined]
        return made

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.f(x, t)


class Counted:
    """A callable that counts its calls: `Counted(score).nfe` is the number of network calls made so far.

    Rejected steps, correctors and the stages of a Runge-Kutta method all call the score, so all are counted; of a score
    that is made of others, and says in `calls` how many it has made of them, those.
    """

    def __init__(self, f: Any) -> None:
        self.f, self.nfe = f, 0  # before any look-up can reach __getattr__

    def __getattr__(self, name: str) -> Any:
        """The same attribute of f; a method of it, such as `log_prob` of an energy, counts as a call too."""
        value = getattr(self.f, name)
        if not callable(value):
            return value

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.nfe += 1
            return value(*args, **kwargs)

        return counted

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        before = getattr(self.f, "calls", None)
        out: Tensor = self.f(*args, **kwargs)
        self.nfe += 1 if before is None else self.f.calls - before
        return out

    def __repr__(self) -> str:
        return f"Counted({self.f!r}, nfe={self.nfe})"
