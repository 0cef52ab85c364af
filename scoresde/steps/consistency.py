"""Sampling by networks that jump along the flow: consistency models, and those of its whole trajectory.

The flow's map f(x_t, t, u) = x_u from t down to u < t is what such a network has learnt. A jump to u and the forward
transition from there to s, x_s | x_u ~ N(a x_u, v I), keep the marginals:

    x_s = a f(x_t, t, u) + sqrt(v) z,    u = s - gamma (s - end).

gamma = 1 jumps to `end` each time and noises anew (Song et al. 2023, Algorithm 1, with end = eps; Luo et al. 2023, with
end = 0); gamma = 0 jumps to s without noise; between are strategic stochastic sampling, whose gamma it is (Zheng et al.
2024), and gamma-sampling (Kim et al. 2024).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..noise import Noise
from ..process import Reverse, require_linear
from ..shapes import answer, function, number
from .step import ByInterval, Prepared, Step

Jump = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Consistency(Prepared):
    """The step of the module, of consistency models (Song et al. 2023) and of those of whole trajectories (Kim et al.
    2024). f: (x, t, u) -> x_u, (B, *D), t and u 0-dim; a network that knows `end` alone is told so
    by lambda x, t, u: net(x, t). None reads the score so, with E = E[x_0 | x_t]:

        x_u = alpha_u E + sigma_u (x - alpha_t E)/sigma_t,

    as distilled networks that tell eps or x_0 are read (Luo et al. 2023; Zheng et al. 2024); with gamma = 0 it is DDIM.

    Raises ValueError unless 0 <= gamma <= 1, the intervals end at `end` or above, and eta is 1, as it has noise of its
    own, or 0 for gamma = 0, as it has none.
    """

    f: Jump | None = None
    gamma: float = 1.0
    """How far beyond s it jumps, and comes back by noise."""
    end: float = 0.0
    """The time of what a consistency model tells."""

    def __post_init__(self) -> None:
        if self.f is not None:
            function("f", self.f, "a callable (x, t, u) -> x_u")
        number("gamma", self.gamma, least=0, most=1), number("end", self.end, least=0)

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        """eta is that of its noise, and no interval ends before `end`."""
        require_linear("p.sde", p.sde)
        eta = 1 if self.gamma else 0
        if p.eta != eta:
            raise ValueError(f"eta must be {eta}, whose noise gamma = {self.gamma:g} has, got {p.eta:g}")
        if s.min() < self.end:
            raise ValueError(f"ts must end at end = {self.end:g} or above, got {float(s.min()):g}")

    def prepare(self, p: Reverse, t: Tensor, s: Tensor) -> Step:
        """With the place of each jump, and the transition from there."""
        u = (s - self.gamma * (s - self.end)).clamp_min(self.end)
        a, v = p.sde.transition(s, u)
        return _Jumps(self, t, s, zip(u, a.tolist(), v.clamp_min(0).sqrt().tolist(), strict=True), self.f or read(p))


def read(p: Reverse) -> Jump:
    """The jump that a score tells, alpha_u E + sigma_u eps."""

    def jump(x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        (alpha, sigma), (alpha_u, sigma_u) = ((p.sde.alpha(v), p.sde.sigma(v)) for v in (t, u))
        ratio = alpha_u / alpha
        return ratio * x + sigma * (ratio * sigma - sigma_u) * p.ask(x, t)

    return jump


class _Jumps(ByInterval):
    """The step at work: of each interval (u, a, sqrt(v))."""

    def __init__(self, step: Step, t: Tensor, s: Tensor, known: "zip[tuple[Tensor, float, float]]", f: Jump) -> None:
        super().__init__(step, t, s, known)
        self.f = f

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        u, a, std = self.at(t, s)
        y = a * answer("f", self.f(x.clone(), t, u), x).to(x.dtype)
        return y.add_(noise(x, t, s), alpha=std) if std else y
