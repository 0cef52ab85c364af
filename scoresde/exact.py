"""Laws of data whose score is known in closed form at every time of every linear SDE.

x_t = alpha x_0 + sigma z has the law of x_0 scaled by alpha and convolved with N(0, sigma^2 I). For a mixture of
Gaussians sum_k w_k N(m_k, C_k) that is the mixture of N(alpha m_k, alpha^2 C_k + sigma^2 I), so

    score(x) = -sum_k r_k(x) (alpha^2 C_k + sigma^2 I)^-1 (x - alpha m_k),    r = softmax of log w_k N(x; ...),

and E[x_0 | x_t] = (x + sigma^2 score)/alpha. The training set itself is the mixture with C_k = 0. Everything is
computed in float64 and returned in the state's dtype: the weights r compare squared distances divided by sigma^2, and
float32 loses them at small sigma. Everything is differentiable in x.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .process import LinearSDE, require_linear
from .shapes import count, floating, inside, like, reals, state


class Law(ABC):
    """A distribution of x_0 with shape D.

    In the methods to write, everything is float64: x is (B, d), alpha and var (sigma^2) are (1, 1) or (B, 1).
    """

    shape: torch.Size

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of shape {tuple(self.shape)}>"

    @abstractmethod
    def _log_prob(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        """log p_t(x) in nats, (B,)."""

    @abstractmethod
    def _score(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        """grad log p_t(x), (B, d)."""

    @abstractmethod
    def _posterior(self, x: Tensor, alpha: Tensor, var: Tensor, generator: torch.Generator | None) -> Tensor:
        """One draw of x_0 | x_t for each row, (B, d)."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws of x_0, (n, *D) in float64."""

    @abstractmethod
    def _moments(self) -> tuple[Tensor, Tensor]:
        """The mean and the variance of each dimension, (d,) in float64."""

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean and the standard deviation of each dimension of x_0, (*D) in float64."""
        mean, var = self._moments()
        return mean.view(self.shape), var.sqrt().view(self.shape)

    def _denoise(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        """E[x_0 | x_t], (B, d)."""
        return (x + var * self._score(x, alpha, var)) / alpha

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x_0) in nats: (B, *D) -> (B,). -inf or nan for a law without a density."""
        rows = self._rows(x)
        one = rows.new_ones(1, 1)
        return self._log_prob(rows, one, 0 * one).to(x.dtype)

    def diffuse(self, sde: LinearSDE) -> "Diffused":
        """The law of x_t under `sde`, whose value is a score: `sde.reverse(law.diffuse(sde))`."""
        return Diffused(self, sde)

    def _rows(self, x: Tensor) -> Tensor:
        if floating("x", x).ndim == 0 or x.shape[1:] != self.shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        return x.flatten(1).to(torch.float64)


def require_law(name: str, law: Any, shape: torch.Size | tuple[int, ...]) -> Law:
    """Return law; raise ValueError naming it unless it is a `Law` of samples of that shape."""
    if not isinstance(law, Law) or law.shape != shape:
        raise ValueError(f"{name} must be a law of shape {tuple(shape)}, got {law!r}")
    return law


@dataclass(frozen=True)
class Diffused:
    """The law of x_t: called as `(x, t)` it is the exact score. t is () or (B,); answers have x's dtype."""

    law: Law
    sde: LinearSDE

    def __post_init__(self) -> None:
        require_linear("sde", self.sde)

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean and the standard deviation of each dimension of x_0, (*D) in float64."""
        return self.law.moments

    def _at(self, x: Tensor, t: Tensor | float, beyond: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        t = inside(t, self.sde.T, beyond=beyond).to(torch.float64)
        rows = self.law._rows(x)
        if t.ndim:
            alpha, var = (torch.as_tensor(like(c, rows)) for c in (self.sde.alpha(t), self.sde.var(t)))
        else:  # filled in, since a copy would wait for the device
            alpha, var = (rows.new_full((1, 1), float(c)) for c in (self.sde.alpha(t), self.sde.var(t)))
        return rows, alpha, var

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """grad log p_t(x), also beyond T: (B, *D) -> (B, *D)."""
        return self.law._score(*self._at(x, t, beyond=True)).view(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log p_t(x) in nats: (B, *D) -> (B,)."""
        return self.law._log_prob(*self._at(x, t)).to(x.dtype)

    def denoise(self, x: Tensor, t: Tensor | float) -> Tensor:
        """E[x_0 | x_t = x]: (B, *D) -> (B, *D)."""
        return self.law._denoise(*self._at(x, t)).view(x.shape).to(x.dtype)

    def posterior(self, x: Tensor, t: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
        """One draw of x_0 | x_t = x for each row: (B, *D) -> (B, *D)."""
        return self.law._posterior(*self._at(state("x", x), t), generator).view(x.shape).to(x.dtype)

    def sample(self, n: int, t: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
        """n draws of x_t, (n, *D) in float64."""
        x_0 = self.law.sample(n, generator)
        return self.sde.perturb(
            x_0, t, lambda x, *_: torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device)
        )[0]


class GaussianMixture(Law):
    """sum_k w_k N(m_k, C_k), with C_k = U_k diag(v_k) U_k^T + floor_k (I - U_k U_k^T).

    weights: (K,), positive (normalised here); means: (K, *D);
    variances: (K,) isotropic, (K, d) diagonal, or, with factors, (K, r) the eigenvalues v_k of the columns of factors;
    factors: (K, d, r), orthonormal columns U_k; floor: (K,), the variance in all other directions.

    `from_covariances` takes full matrices. Raises ValueError for weights or variances that are not positive, for
    shapes that do not agree, and for columns that are not orthonormal.
    """

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        variances: Tensor,
        factors: Tensor | None = None,
        floor: Tensor | None = None,
    ) -> None:
        w, m, v = reals("weights", weights, 1), reals("means", means, 1), reals("variances", variances, 1)
        K = len(w)
        if w.ndim != 1 or m.ndim < 2 or len(m) != K or len(v) != K:
            raise ValueError(
                "weights (K,), means (K, *D) and variances (K, ...) must agree, "
                f"got {tuple(w.shape)}, {tuple(m.shape)}, {tuple(v.shape)}"
            )
        if (
            not (w > 0).all()
            or not (v > 0).all()
            or not (w.isfinite().all() and m.isfinite().all() and v.isfinite().all())
        ):
            raise ValueError("weights and variances must be positive, and they and means finite")
        self.weights, self.shape = w / w.sum(), m.shape[1:]
        self.means, self.d = m.flatten(1), m[0].numel()
        if (factors is None) != (floor is None):
            raise ValueError("factors and floor must be given together")
        if factors is None or floor is None:
            if v.shape not in ((K,), (K, self.d)):
                raise ValueError(f"variances must have shape ({K},) or ({K}, {self.d}), got {tuple(v.shape)}")
            self.diagonal, self.factors, self.extra = v.view(K, -1), m.new_zeros(K, self.d, 0), m.new_zeros(K, 0)
        else:
            U, low = reals("factors", factors), reals("floor", floor)
            positive = low.shape == (K,) and bool(((low > 0) & low.isfinite()).all())
            if v.ndim != 2 or U.shape != (K, self.d, v.shape[1]) or not positive:
                raise ValueError(
                    f"factors must be ({K}, {self.d}, r), variances ({K}, r) and floor ({K},) > 0, "
                    f"got {tuple(U.shape)}, {tuple(v.shape)}, {tuple(low.shape)}"
                )
            if not (U.mT @ U - torch.eye(U.shape[2]).to(U)).abs().max() <= 1e-6:
                raise ValueError("factors must have orthonormal columns for every component")
            self.diagonal, self.factors, self.extra = low.view(K, 1), U, v

    @classmethod
    def from_covariances(cls, weights: Tensor, means: Tensor, covariances: Tensor) -> "GaussianMixture":
        """From full covariance matrices (K, d, d), by their eigenvalues."""
        C = reals("covariances", covariances)
        if C.ndim != 3 or C.shape[1] != C.shape[2] or not torch.allclose(C, C.mT, rtol=1e-6, atol=0):
            raise ValueError(
                f"covariances must be symmetric matrices (K, d, d), got shape {tuple(C.shape)} and one that is not"
            )
        values, vectors = torch.linalg.eigh(C)
        if values.min() <= 0:
            raise ValueError(f"covariances must be positive definite, got an eigenvalue {float(values.min()):g}")
        return cls(weights, means, values, vectors, values[:, 0])

    @property
    def covariances(self) -> Tensor:
        """C_k, (K, d, d)."""
        low = self.diagonal.expand(-1, self.d)
        return torch.diag_embed(low) + (self.factors * (self.extra - self.diagonal[:, :1])[:, None]) @ self.factors.mT

    def to(self, device: torch.device | str) -> "GaussianMixture":
        """The same law on another device."""
        moved = object.__new__(type(self))
        moved.__dict__ = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.__dict__.items()}
        return moved

    def marginal(self, sde: LinearSDE, t: Tensor | float) -> "GaussianMixture":
        """The law of x_t under `sde`, itself a mixture: of N(alpha m_k, alpha^2 C_k + sigma^2 I). t is ()."""
        if (t := inside(t, require_linear("sde", sde).T)).ndim:
            raise ValueError(f"t must be one time, shape (), got {tuple(t.shape)}")
        alpha, var = float(sde.alpha(t)), float(sde.var(t))
        moved = object.__new__(GaussianMixture)
        diagonal, extra = alpha**2 * self.diagonal + var, alpha**2 * self.extra + var
        moved.__dict__ = self.__dict__ | {"means": alpha * self.means, "diagonal": diagonal, "extra": extra}
        return moved

    def _parts(self, x: Tensor, alpha: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k N(x; k) as (B, K), and the precision of component k times x - alpha m_k as (B, K, d)."""
        delta = x[:, None] - alpha[..., None] * self.means
        base = alpha[..., None] ** 2 * self.diagonal + var[..., None]  # (B or 1, K, 1 or d)
        high = alpha[..., None] ** 2 * self.extra + var[..., None]  # (B or 1, K, r)
        along = torch.einsum("kdr,bkd->bkr", self.factors, delta)
        pulled = delta / base + torch.einsum("kdr,bkr->bkd", self.factors, along * (1 / high - 1 / base[..., :1]))
        # base covers d directions if diagonal, and d - r of them if the r others are in `high`
        r = self.extra.shape[1]
        log_det = base.log().expand(-1, -1, self.d).sum(-1) - r * base[..., 0].log() + high.log().sum(-1)
        log_p = -0.5 * ((delta * pulled).sum(-1) + log_det + self.d * math.log(2 * math.pi))
        return self.weights.log() + log_p, pulled

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(component k | x_0 = x): (B, *D) -> (B, K) in float64. Their mean over samples tells the mode weights."""
        rows = self._rows(x)
        one = rows.new_ones(1, 1)
        return self._parts(rows, one, 0 * one)[0].softmax(1)

    def kl_from(self, mean: Tensor, covariance: Tensor) -> float:
        """KL(N(mean, covariance) || this) in nats for one component; mean (d,), covariance (d, d). Raises ValueError
        for a mixture of several, whose divergence has no closed form.
        """
        if len(self.weights) > 1:
            raise ValueError(f"a divergence in closed form needs one component, not {len(self.weights)}")
        mean, covariance = reals("mean", mean), reals("covariance", covariance)
        if (mean.shape, covariance.shape) != ((self.d,), (self.d, self.d)):
            raise ValueError(
                f"mean must be ({self.d},) and covariance ({self.d}, {self.d}), "
                f"got {tuple(mean.shape)} and {tuple(covariance.shape)}"
            )
        root, delta = torch.linalg.cholesky(self.covariances[0]), (mean - self.means[0])[:, None]
        inside = torch.cholesky_solve(covariance + delta @ delta.T, root).trace()
        return float(inside - self.d + 2 * root.diagonal().log().sum() - torch.logdet(covariance)) / 2

    def _moments(self) -> tuple[Tensor, Tensor]:
        mean = self.weights @ self.means
        own = self.diagonal + torch.einsum("kdr,kr->kd", self.factors**2, self.extra - self.diagonal[:, :1])
        return mean, self.weights @ (own + (self.means - mean) ** 2)

    def _log_prob(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        return self._parts(x, alpha, var)[0].logsumexp(1)

    def _score(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        log_p, pulled = self._parts(x, alpha, var)
        return -(log_p.softmax(1)[..., None] * pulled).sum(1)

    def _posterior(self, x: Tensor, alpha: Tensor, var: Tensor, generator: torch.Generator | None) -> Tensor:
        # Matheron's rule: a prior draw (x_0', x_t'), corrected by its own error (Wilson et al. 2020)
        k = torch.multinomial(self._parts(x, alpha, var)[0].softmax(1).cpu(), 1, generator=generator)[:, 0].to(x.device)
        x_0 = self._component(k, generator)
        x_t = alpha * x_0 + var.sqrt() * self._randn(x.shape, generator)
        delta = x - x_t
        base = alpha**2 * self.diagonal[k] + var
        high = alpha**2 * self.extra[k] + var
        gain = self.extra[k] / high - self.diagonal[k][:, :1] / base[:, :1]
        return x_0 + alpha * (self.diagonal[k] / base * delta + self._along(k, gain, delta))

    def _randn(self, shape: torch.Size | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(self.means.device)

    def _component(self, k: Tensor, generator: torch.Generator | None) -> Tensor:
        z = self._randn((len(k), self.d), generator)
        gain = self.extra[k].sqrt() - self.diagonal[k][:, :1].sqrt()
        return self.means[k] + self.diagonal[k].sqrt() * z + self._along(k, gain, z)

    def _along(self, k: Tensor, gain: Tensor, v: Tensor) -> Tensor:
        """U_k diag(gain) U_k^T v of each row, by component: the factors of all rows would not fit in memory."""
        out = torch.zeros_like(v)
        for c in k.unique().tolist() if gain.shape[1] else ():
            rows, U = k == c, self.factors[c]
            out[rows] = (v[rows] @ U * gain[rows]) @ U.T
        return out

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws of x_0, (n, *D) in float64."""
        k = torch.multinomial(self.weights.cpu(), count("n", n), True, generator=generator).to(self.means.device)
        return self._component(k, generator).view(n, *self.shape)


class Gaussian(GaussianMixture):
    """N(mean, covariance): mean (*D), covariance (), (d,) diagonal, or (d, d)."""

    def __init__(self, mean: Tensor, covariance: Tensor | float) -> None:
        mean, C = reals("mean", mean, 1), reals("covariance", covariance)
        if C.shape not in ((), (mean.numel(),), (mean.numel(),) * 2):
            raise ValueError(f"covariance must be (), (d,) or (d, d) for d = {mean.numel()}, got {tuple(C.shape)}")
        one = torch.ones(1, dtype=torch.float64)
        if C.ndim == 2:
            full = GaussianMixture.from_covariances(one, mean[None], C[None])
            self.__dict__.update(full.__dict__)
        else:
            super().__init__(one, mean[None], C[None])

    @classmethod
    def fit(cls, x: Tensor) -> "Gaussian":
        """The Gaussian of largest likelihood for x (n, *D), its covariance in full. Raises ValueError for samples that
        do not vary in every direction.
        """
        rows = state("x", x).flatten(1).to(torch.float64)
        try:
            return cls(x.to(torch.float64).mean(0), torch.cov(rows.T, correction=0))
        except ValueError as error:
            raise ValueError(f"x must vary in every direction: {error}") from error


def _require_noisy(var: Tensor) -> None:
    """Raise ValueError, on the CPU, where sigma = 0: the score of points is singular there."""
    if var.is_cpu and not var.all():
        raise ValueError("t must be a time with sigma > 0, where the score of points is not singular")


class Empirical(Law):
    """The data themselves: n equal points, (n, *D). Its denoiser is the best one on the training set, and memorises it.

    Distances are taken in float64 and chunks of the data, `chunk` numbers at a time, so that 60,000 images of 784
    pixels need no more than a fraction of a gigabyte beyond the data.
    """

    def __init__(self, data: Tensor, chunk: int = 1 << 24) -> None:
        self.data = state("data", data).flatten(1)
        self.shape, self.n = data.shape[1:], len(data)
        self.chunk = count("chunk", chunk)

    def to(self, device: torch.device | str) -> "Empirical":
        """The same law on another device."""
        return Empirical(self.data.to(device).view(self.n, *self.shape), self.chunk)

    def _moments(self) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(self.data, 0, correction=0)
        return mean.double(), var.double()

    def _chunks(self, rows: int) -> list[Tensor]:
        return list(self.data.split(max(1, self.chunk // max(rows, self.data.shape[1]))))

    @staticmethod
    def _logits(x: Tensor, y: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        """-|x - alpha y|^2 / (2 sigma^2), (B, len(y))."""
        square = x.square().sum(1, keepdim=True) - 2 * alpha * (x @ y.T) + alpha**2 * y.square().sum(1)
        return -0.5 * square.clamp_min(0) / var

    def _log_prob(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        parts = [self._logits(x, y.to(x), alpha, var).logsumexp(1) for y in self._chunks(len(x))]
        d = x.shape[1]
        return torch.stack(parts).logsumexp(0) - math.log(self.n) - d / 2 * (2 * math.pi * var[:, 0]).log()

    def _denoise(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        _require_noisy(var)
        top = x.new_full((len(x), 1), -math.inf)
        total, mean = x.new_zeros(len(x), 1), torch.zeros_like(x)
        for part in self._chunks(len(x)):
            y = part.to(x)
            logits = self._logits(x, y, alpha, var)
            new = torch.maximum(top, logits.detach().amax(1, keepdim=True))
            old, w = (top - new).exp(), (logits - new).exp()
            total, mean, top = old * total + w.sum(1, keepdim=True), old * mean + w @ y, new
        return mean / total

    def _score(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        return (alpha * self._denoise(x, alpha, var) - x) / var

    def _posterior(self, x: Tensor, alpha: Tensor, var: Tensor, generator: torch.Generator | None) -> Tensor:
        _require_noisy(var)
        # the largest logit plus Gumbel noise is a draw from the softmax, chunk by chunk
        best, pick = x.new_full((len(x),), -math.inf), torch.empty_like(x)
        for part in self._chunks(len(x)):
            y = part.to(x)
            u = torch.rand(len(x), len(y), generator=generator, dtype=torch.float64).clamp_min(1e-300).to(x.device)
            value, i = (self._logits(x, y, alpha, var) - (-u.log()).log()).max(1)
            pick = torch.where((value > best)[:, None], y[i], pick)
            best = torch.maximum(best, value)
        return pick

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws of x_0 with replacement, (n, *D) in float64."""
        i = torch.randint(self.n, (count("n", n),), generator=generator).to(self.data.device)
        return self.data[i].to(torch.float64).view(n, *self.shape)
