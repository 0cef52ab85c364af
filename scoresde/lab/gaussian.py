"""The law of what a sampler returns for Gaussian data, in any dimension: there every step is affine in x and in its
noise, x' = A x + b + sum_j G_j z_j, so that means and covariances follow exactly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..exact import Gaussian, GaussianMixture
from ..noise import Noise
from ..process import Reverse, require_reverse
from ..steps import MALA, Step
from ..steps.step import end
from .law import beginning, calls, remembers

ROWS = 4096
"""Of a batch by which a map is probed."""
CHECKED = 16
"""Points at which it must be affine."""
MOST = 1024
"""Dimensions, as a map has d^2 numbers."""

Map = Callable[[Tensor, Noise], Tensor]


@dataclass(frozen=True)
class GaussianLaw:
    """N(mean, covariance): mean (*D), covariance (d, d), float64."""

    mean: Tensor
    covariance: Tensor

    def distances(self, truth: GaussianMixture) -> dict[str, float]:
        """How far it is from the truth: kl, KL(truth || this), and reverse_kl, KL(this || truth), in nats, without loss
        of digits where both are small; wasserstein2 (Dowson & Landau 1982), whose square is told to some 1e-14 of the
        variances. Raises ValueError unless truth is a Gaussian of this shape.
        """
        if not isinstance(truth, GaussianMixture) or len(truth.weights) > 1 or truth.shape != self.mean.shape:
            raise ValueError(f"truth must be a Gaussian of shape {tuple(self.mean.shape)}, got {truth!r}")
        off, true = self.mean.flatten() - truth.means[0], truth.covariances[0]
        root = _root(true)
        both = _root(root @ self.covariance @ root)
        square = off @ off + true.trace() + self.covariance.trace() - 2 * both.trace()
        return {
            "kl": _divergence(off, true, self.covariance),
            "reverse_kl": _divergence(off, self.covariance, true),
            "wasserstein2": math.sqrt(max(0.0, float(square))),
        }


def gaussian_law_of(
    p: Reverse, ts: Tensor, *steps: Step, prior: Gaussian | None = None, denoise: bool = False
) -> GaussianLaw:
    """The law of `sample(p, x, ts, *steps)` for the score of Gaussian data, which must know its shape, as
    `law.diffuse(sde)` does; x is drawn from the prior at ts[0], N(0, sigma_T^2 I) at T unless given. denoise: end with
    E[x_0 | x_t], as `draw` does, unless sigma is 0 there.

    Each step is probed by points and draws along every direction, and is checked to be affine; steps with memory are
    probed as a whole sampler, with every draw that it makes. Raises ValueError before any work as `sample` does, for
    more than 1,024 dimensions, and, naming the step, for one that is not affine: data that are not Gaussian, a rule
    that looks at the noise (`SNR`), Metropolis' acceptance, sizes that depend on x.
    """
    shape = getattr(getattr(require_reverse(p).score, "law", None), "shape", None)
    if shape is None:
        raise ValueError("p must be a Reverse whose score knows the law of the data, such as law.diffuse(sde)")
    if prior is not None and (not isinstance(prior, Gaussian) or prior.shape != shape):
        raise ValueError(f"prior must be a Gaussian of shape {tuple(shape)}, got {prior!r}")
    if mala := [step for step in steps if isinstance(step, MALA)]:
        raise ValueError(
            f"steps must be affine in x and their noise, got {mala[0]!r}, which accepts by what it draws: take "
            "Langevin(Constant(0.1)), say, or sample it"
        )
    if math.prod(shape) > MOST:
        raise ValueError(f"the data must have at most {MOST} dimensions, got {tuple(shape)}")
    ts, start = beginning(p, ts, prior, shape, denoise)
    assert isinstance(start, Gaussian)
    law = GaussianLaw(start.means[0].view(shape), start.covariances[0])
    with torch.no_grad():
        if remembers(p, ts, steps, shape):
            law = _moved(law, lambda x, noise: end(p, x, ts, *steps, noise=noise), ", ".join(map(str, steps)))
        else:
            for step, going, t, s in calls(p, ts, steps):
                law = _moved(law, partial(_one, p, going, t, s), str(step))
        if denoise and p.sde.var(ts[-1]) > 0:
            law = _moved(law, lambda x, noise: p.denoise(x, ts[-1]), "E[x_0 | x_t]")
    return law


def _one(p: Reverse, step: Step, t: Tensor, s: Tensor, x: Tensor, noise: Noise) -> Tensor:
    return step(p, x, t, s, noise)


def _moved(law: GaussianLaw, f: Map, name: str) -> GaussianLaw:
    """The law of f(x, noise), an affine map."""
    shape, d = law.mean.shape, law.mean.numel()
    unit = torch.eye(d, dtype=torch.float64)
    b, draws = _asked(f, torch.zeros(1, d, dtype=torch.float64), shape, lambda j: None)
    A = _asked(f, unit, shape, lambda j: None)[0] - b
    mean, covariance = law.mean.flatten() @ A + b[0], A.T @ law.covariance @ A
    g = torch.Generator().manual_seed(0)
    x, *z = (torch.randn(CHECKED, d, generator=g, dtype=torch.float64) for _ in range(1 + draws))
    want = x @ A + b
    for first in range(0, draws, max(1, ROWS // d)):
        some = range(first, min(draws, first + max(1, ROWS // d)))
        zero = torch.zeros(len(some) * d, d, dtype=torch.float64)
        G = _asked(f, zero, shape, partial(_in_turn, unit, some))[0] - b
        for k, j in enumerate(some):
            part = G[k * d : (k + 1) * d]
            covariance, want = covariance + part.T @ part, want + z[j] @ part
    found, again = _asked(f, x, shape, lambda j: (z[j], 0) if j < draws else None)
    if again != draws or not (found - want).abs().max() <= 1e-9 * (1 + found.abs().max()):
        raise ValueError(f"{name} is not affine in x and its noise, so that what it returns is not Gaussian: sample it")
    return GaussianLaw(mean.view(shape), (covariance + covariance.T) / 2)


def _in_turn(unit: Tensor, some: range, j: int) -> tuple[Tensor, int] | None:
    """Every direction for one draw after another, of some of them."""
    return (unit, (j - some.start) * len(unit)) if j in some else None


def _asked(
    f: Map, x: Tensor, shape: torch.Size, draw: Callable[[int], tuple[Tensor, int] | None]
) -> tuple[Tensor, int]:
    """f at x (n, d), whose j-th draw is 0 but for the rows that draw(j) tells, from a first one on; and how many."""
    asked: list[int] = []

    def noise(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        z, told = torch.zeros_like(x), draw(len(asked))
        asked.append(1)
        if told is not None:
            z.flatten(1)[told[1] : told[1] + len(told[0])] = told[0]
        return z

    return f(x.view(-1, *shape), noise).flatten(1), len(asked)


def _root(C: Tensor) -> Tensor:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(C)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _divergence(off: Tensor, true: Tensor, other: Tensor) -> float:
    """KL(N(0, true) || N(off, other)) from the eigenvalues of true - other in units of other."""
    L = torch.linalg.cholesky(other)
    change = torch.linalg.solve_triangular(L, true - other, upper=False)
    change = torch.linalg.solve_triangular(L, change.T, upper=False)
    values = torch.linalg.eigvalsh((change + change.T) / 2)
    away = torch.linalg.solve_triangular(L, off[:, None], upper=False)
    return float((values - values.log1p()).sum() + away.square().sum()) / 2
