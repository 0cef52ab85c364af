"""log p(x) by the instantaneous change of variables along the probability flow, and how wrong it may be.

With dx/dt = v(x, t): log p_{t_0}(x(t_0)) = log p_T(x(T)) + int_{t_0}^T div v dt (Chen et al. 2018; Song et al. 2021,
eq. 39). The flow is solved where it is mild: in y = (x/alpha - m)/S with S^2 = c^2 + (sigma/alpha)^2, which does not
move at all if the data are N(m, c^2 I), over u = log((1 + r/k)/(1 + r/K)), r = sigma/alpha: equal steps in u are equal
in r below k, in log r between k and K, and in 1/r above. With lambda = log(alpha/sigma), E[x_0 | x] the
denoiser and l = c^2/S^2,

    dy/dlambda = (E[x_0 | x] - m - l (x/alpha - m))/S,    d log p_y/dlambda = -(sigma^2 tr grad score + d (1 - l)),

so that the linear part of the drift and its divergence are exact, and only what a network adds is integrated.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .count import Counted
from .exact import GaussianMixture
from .noise import Noise, iid
from .ode import Adams, Dopri5, Integrator, Node, Solution
from .quantize import Dequantization, Quantized, Uniform
from .sde import LinearSDE, Reverse
from .shapes import as_time, like, number, state
from .trace import Exact, Hutchinson, Probes, Trace

FEW = 16  # dimensions up to which accuracy costs little


@dataclass(frozen=True)
class Frame:
    """The coordinates y and u of the module, for data of mean m and standard deviation c."""

    sde: LinearSDE
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.04
    """k in units of c."""
    high: float = 3.0
    """K in units of c."""

    def u(self, t: Tensor) -> Tensor:
        """log((1 + r/k)/(1 + r/K))."""
        r = (-self.sde.log_snr(t)).exp() / self.std
        return torch.log1p(r / self.low) - torch.log1p(r / self.high)

    def at(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(t, dlambda/du, S)."""
        r = torch.expm1(u) / (1 / self.low - u.exp() / self.high)
        rate = -(self.low + r) * (self.high + r) / ((self.high - self.low) * r)
        return self.sde.time(-(self.std * r).log()), rate, self.std * (1 + r**2).sqrt()

    def y(self, x: Tensor, t: Tensor) -> Tensor:
        """From the state x at t ()."""
        _, _, S = self.at(self.u(t))
        return (x / self.sde.alpha(t) - self.mean) / S

    def x(self, y: Tensor, u: Tensor) -> Tensor:
        """Back."""
        t, _, S = self.at(u)
        return like(self.sde.alpha(t), y) * (self.mean + like(S, y) * y)

    def drift(self, y: Tensor, u: Tensor, denoised: Tensor) -> Tensor:
        """dy/du, from E[x_0 | x], (B, *D)."""
        _, rate, S = self.at(u)
        return like(rate / S, y) * (denoised - self.mean) - like(rate * self.std**2 / S**2, y) * y

    def log_volume(self, u: Tensor) -> Tensor:
        """log |dx/dy| of one dimension."""
        t, _, S = self.at(u)
        return self.sde.log_alpha(t) + S.log()


@dataclass(frozen=True)
class Likelihood:
    """log p of each sample in nats, (B,), and its error budget. `str` gives no more digits than the budget supports.

    log_p: of the density at time t, or, of discrete data, a lower bound of the log-probability (in expectation over
    dequantisation). probe_error: the standard error (B,) from random probes; nan if it cannot be told. solver_error: an
    estimate (B,) of the size of the solver's error. end_bias: (B,), log p_t - log p_0 at x to first order in sigma^2
    and log alpha, what stopping at t instead of 0 adds. prior_mismatch: KL(p_T || prior) in nats for the moments of
    these samples; nan for one sample, or a prior of several components. nfe: network calls; products: vector-Jacobian
    products.
    """

    log_p: Tensor
    probe_error: Tensor
    solver_error: Tensor
    end_bias: Tensor
    prior_mismatch: float
    d: int
    t: float
    nfe: int
    products: int
    quantized: Quantized | None = None
    dequantization: Dequantization | None = None
    draws: int = 1

    @property
    def values(self) -> Tensor:
        """(B,): bits/dim of discrete data, -log p/d in nats/dim of continuous ones."""
        return -self.log_p / self._unit

    @property
    def bits_per_dim(self) -> Tensor:
        """(B,). Raises ValueError for continuous data."""
        if self.quantized is None:
            raise ValueError("bits/dim are of discrete data: give `quantized`, or report nats")
        return self.values

    @property
    def _unit(self) -> float:
        return self.d * (math.log(2) if self.quantized else 1.0)

    @property
    def mean(self) -> float:
        """Of `values`."""
        return float(self.values.mean())

    @property
    def budget(self) -> dict[str, float]:
        """Of the mean of `values`, in their unit. samples: its standard error over samples, in which that from probes
        and dequantisation is contained; probes: the standard error from probes alone; solver, end, prior: sizes of
        systematic errors, the last two against the density at 0 and under p_T.
        """
        n = len(self.log_p)
        return {
            "samples": float(self.values.std()) / math.sqrt(n) if n > 1 else math.nan,
            "probes": float(self.probe_error.square().sum().sqrt()) / n / self._unit,
            "solver": float(self.solver_error.mean()) / self._unit,
            "end": float(self.end_bias.mean().abs()) / self._unit,
            "prior": self.prior_mismatch / self._unit,
        }

    @property
    def says(self) -> str:
        """Which quantity it is."""
        if self.quantized is None:
            return f"-log p/d of the density at t = {self.t:g}"
        draws = f", {self.draws} draws" if self.draws > 1 else ""
        return f"upper bound for the discrete data, {self.dequantization!r} at t = {self.t:g}{draws}"

    def __str__(self) -> str:
        budget, unit = self.budget, "bits/dim" if self.quantized else "nats/dim"
        known = [v for v in budget.values() if math.isfinite(v)]
        total = math.sqrt(sum(v * v for v in known))
        digits = max(0, min(12, 1 - math.floor(math.log10(total)))) if total > 0 else 6
        rows = ", ".join(f"{k} {v:.1g}" for k, v in budget.items())
        return (
            f"{self.mean:.{digits}f} {unit} over {len(self.log_p)} samples ({self.says}); errors: {rows}; "
            f"{self.nfe} network calls, {self.products} vector-Jacobian products"
        )


def log_prob(
    p: Reverse,
    x: Tensor,
    quantized: Quantized | None = None,
    *,
    method: Integrator | None = None,
    trace: Trace | None = None,
    prior: GaussianMixture | None = None,
    dequantization: Dequantization = Uniform(),
    draws: int = 1,
    noise: Noise = iid(),
    frame: Frame | None = None,
    t: float | None = None,
    gradients: bool = False,
) -> Likelihood:
    """The log-density of x (B, *D) at time t under the flow of p and its prior, or bits/dim of discrete data.

    quantized: the grid that x lies on; None for continuous data. method and trace: `Dopri5(1e-6, 1e-6)` and `Exact` up
    to 16 dimensions, `Adams()` and two fresh Rademacher probes a node above, unless given. prior: the law of x_T, such
    as `gaussian_prior(sde, data)`; N(0, sigma_T^2 I) unless given. draws: of the dequantisation, averaged inside the
    logarithm. noise: all randomness; with `per_sample`, each sample's own. frame: the mean and standard deviation of
    the data, which make the flow mild and change no result. t: where the flow ends, sde.t_min unless given. gradients:
    keep the graph of log_p, computing the network at each node again when differentiating, so that the activations of
    one node are held at a time.

    Raises ValueError before any work unless p has eta=0, x is finite and on its grid, and sigma_t > 0; RuntimeError,
    naming the sample and the time, if the score is not finite on the way.
    """
    if not isinstance(p, Reverse) or p.eta:
        raise ValueError(f"p must be a probability flow, sde.reverse(score, eta=0), got {p!r}")
    sde, d = p.sde, state("x", x)[0].numel()
    frame = frame or Frame(sde)
    end = as_time(number("t", sde.t_min if t is None else t, least=0, below=sde.T))
    if sde.var(end) == 0:
        raise ValueError(f"t must be a time with sigma > 0, since the score is singular at sigma = 0, got {end:g}")
    trace = trace or (Exact() if d <= FEW else Hutchinson())
    method = method or (Dopri5(1e-6, 1e-6) if d <= FEW else Adams())
    if not isinstance(trace, Trace) or not isinstance(method, Integrator):
        raise ValueError(f"trace and method must be values such as Exact() and Adams(), got {trace!r} and {method!r}")
    if draws < 1 or (draws > 1 and (quantized is None or not isinstance(trace, Exact))):
        raise ValueError(
            f"draws must be 1 unless data are quantized and the trace is Exact(), since errors of an estimate would "
            f"bias the mean inside the logarithm, got {draws}"
        )
    if quantized is not None:
        quantized.check(x)
    score = Counted(p.score)
    q = Reverse(sde, score, 0.0)
    with torch.set_grad_enabled(gradients):
        parts = [_one(q, x, quantized, method, trace, prior, dequantization, noise, frame, end) for _ in range(draws)]
        log_p = torch.stack([part.log_p for part in parts]).logsumexp(0) - math.log(draws)
    first = parts[0]
    weights = torch.stack([part.log_p.detach() for part in parts]).softmax(0)
    return replace(
        first,
        log_p=log_p,
        solver_error=(weights * torch.stack([part.solver_error for part in parts])).sum(0),
        nfe=score.nfe,
        products=sum(part.products for part in parts),
        draws=draws,
    )


def _one(
    p: Reverse,
    x: Tensor,
    quantized: Quantized | None,
    method: Integrator,
    trace: Trace,
    prior: GaussianMixture | None,
    dequantization: Dequantization,
    noise: Noise,
    frame: Frame,
    t: Tensor,
) -> Likelihood:
    """One draw of the dequantisation."""
    sde, d = p.sde, x[0].numel()
    x_t, log_w = dequantization(p, quantized, x, t, noise) if quantized else (x, x.new_zeros(len(x)))
    path = _Path(p, frame, trace.start(x_t, noise))
    T = as_time(sde.T)
    u, u_T = frame.u(t), frame.u(T)
    end = method.integrate(path, frame.y(x_t, t), u, u_T)
    x_T = frame.x(end.y, u_T)
    log_prior = sde.log_prior(x_T) if prior is None else prior.log_prob(x_T)
    volume = d * (frame.log_volume(u_T) - frame.log_volume(u))
    Q = end.Q.mean(1)
    m = end.Q.shape[1]
    spread = end.Q.detach().std(1) / math.sqrt(m) if m > 1 else torch.full_like(log_w, math.nan)
    return Likelihood(
        log_prior + Q + volume.to(x) + log_w,
        spread if trace.kept else end.var.sqrt(),
        end.error,
        path.end_bias(x_t.detach(), t),
        prior_mismatch(sde, x_t.detach(), t, prior),
        d,
        float(t),
        0,
        end.nodes * trace.products(d),
        quantized,
        dequantization if quantized else None,
    )


class _Path:
    """The flow in the coordinates of a frame, with the divergence: what an integrator solves."""

    def __init__(self, p: Reverse, frame: Frame, probes: Probes) -> None:
        self.p, self.frame, self.probes = p, frame, probes
        self.first: tuple[Tensor, Tensor] | None = None

    def __call__(self, u: Tensor, y: Tensor, rows: Tensor) -> Node:
        z = self.probes.draw()[:, rows]
        node = checkpoint(self._node, u, y, z, use_reentrant=False) if torch.is_grad_enabled() else self._node(u, y, z)
        finite = node.rate.detach().flatten(1).isfinite().all(1) & node.q.detach().isfinite().all(1)
        if not finite.all():
            i = int((~finite).nonzero()[0])
            t = self.frame.at(u)[0].expand(len(y))[i]
            raise RuntimeError(f"the score of sample {int(rows[i])} is not finite at t = {float(t):.6g}")
        return node

    def _node(self, u: Tensor, y: Tensor, z: Tensor) -> Node:
        frame, sde = self.frame, self.p.sde
        t, rate, S = frame.at(u)
        x, d = frame.x(y, u), y[0].numel()
        score, trace, variance = self.probes.measure(self.p.ask, x, t, z)
        if self.first is None:
            self.first = score.detach(), trace.detach().mean(1)
        var, alpha = sde.var(t), like(sde.alpha(t), y)
        scale = (var * rate).to(y)[..., None] if u.ndim else var * rate
        constant = (d * (1 - frame.std**2 / S**2) * rate).to(y)
        return Node(
            frame.drift(y, u, (x + like(var, y) * score) / alpha),
            scale * trace + (constant[:, None] if u.ndim else constant),
            (var * rate).to(y) ** 2 * variance,
            (alpha * like(S, y) * score).detach(),
        )

    def end_bias(self, x: Tensor, t: Tensor) -> Tensor:
        """int_0^t d log p/dt dt with the score and its trace at t, by the Fokker-Planck equation of the forward SDE."""
        assert self.first is not None
        score, trace = self.first
        L, V = self.p.sde.log_alpha(t), self.p.sde.var(t) / self.p.sde.alpha(t) ** 2
        inner, square = ((a * score).flatten(1).sum(1) for a in (x, score))
        return -x[0].numel() * L - L * inner + V / 2 * (trace + square)


def gaussian_prior(sde: LinearSDE, data: Tensor) -> GaussianMixture:
    """N(alpha_T m, alpha_T^2 C + sigma_T^2 I) with the mean and covariance of data (n, *D), the Gaussian nearest to
    p_T: for the `prior` of `log_prob` where N(0, sigma_T^2 I) is not near enough.
    """
    T = as_time(sde.T)
    mean, C = _moments(state("data", data), sde.alpha(T), sde.var(T))
    return GaussianMixture.from_covariances(torch.ones(1), mean.view(1, *data.shape[1:]), C[None])


def prior_mismatch(sde: LinearSDE, x: Tensor, t: Tensor, prior: GaussianMixture | None = None) -> float:
    """KL(N || prior) in nats for the Gaussian N with the mean and covariance that x_T has if x are samples of x_t: what
    replacing p_T by the prior costs, as far as moments tell. nan for one sample, and for a prior of several components.
    """
    if len(x) < 2 or (prior is not None and len(prior.weights) > 1):
        return math.nan
    T = as_time(sde.T)
    mean, C = _moments(x, *sde.transition(T, t))
    if prior is None:
        prior = GaussianMixture(torch.ones(1), torch.zeros(1, len(C)), sde.var(T).view(1)).to(x.device)
    return prior.kl_from(mean, C)


def _moments(x: Tensor, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and covariance of a x + v^(1/2) z."""
    rows = x.flatten(1).to(torch.float64)
    C = torch.cov(rows.T, correction=0).view(rows.shape[1], -1)
    return float(a) * rows.mean(0), float(a) ** 2 * C + float(v) * torch.eye(len(C), dtype=C.dtype, device=C.device)


def encode(p: Reverse, x: Tensor, method: Integrator = Adams(40), frame: Frame | None = None) -> Tensor:
    """The latent x_T of x (B, *D) at t_min along the probability flow: (B, *D)."""
    sde = p.sde
    return _carry(p, x, as_time(sde.t_min), as_time(sde.T), method, frame)


def decode(p: Reverse, x_T: Tensor, method: Integrator = Adams(40), frame: Frame | None = None) -> Tensor:
    """The state at t_min of the latent x_T: the inverse of `encode` up to the solver's error."""
    sde = p.sde
    return _carry(p, x_T, as_time(sde.T), as_time(sde.t_min), method, frame)


@torch.no_grad()
def _carry(p: Reverse, x: Tensor, t: Tensor, s: Tensor, method: Integrator, frame: Frame | None) -> Tensor:
    if not isinstance(p, Reverse) or p.eta:
        raise ValueError(f"p must be a probability flow, sde.reverse(score, eta=0), got {p!r}")
    frame = frame or Frame(p.sde)

    def node(u: Tensor, y: Tensor, rows: Tensor) -> Node:
        nothing, denoised = y.new_zeros(len(y), 1), p.denoise(frame.x(y, u), frame.at(u)[0])
        return Node(frame.drift(y, u, denoised), nothing, nothing[:, 0], torch.zeros_like(y))

    end: Solution = method.integrate(node, frame.y(state("x", x), t), frame.u(t), frame.u(s))
    return frame.x(end.y, frame.u(s))
