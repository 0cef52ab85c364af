"""log p(x) by the instantaneous change of variables along the probability flow, and how wrong it may be.

With dx/dt = v(x, t): log p_{t_0}(x(t_0)) = log p_T(x(T)) + int_{t_0}^T div v dt (Chen et al. 2018; Song et al. 2021,
eq. 39). The flow is solved in `coordinates` where it is mild: the linear part of the drift and its divergence are
exact, and only what a network adds is integrated.
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..exact import GaussianMixture
from ..model import Counted
from ..noise import Noise, iid, require_noise
from ..ode import Dopri5, Embedded
from ..process import Reverse, require_reverse
from ..quantize import Quantized
from ..reference import Reference
from ..shapes import as_time, like, number
from .conditions import Conditions, conditions, given, under
from .coordinates import Coordinates, Place
from .dequantize import Decoded, Dequantization, TruncatedNormal, Uniform
from .prior import prior_mismatch
from .quadrature import AsNeeded, Common, Integrator, Node, integrate
from .samples import entry, finite, rounding
from .trace import Exact, Hutchinson, Probes, Trace

FEW = 16  # dimensions up to which accuracy costs little


@dataclass(frozen=True)
class Likelihood:
    """log p of each sample in nats, (B,), and its error budget. `str` gives no more digits than the budget supports.

    log_p: of the density at time t, or, of discrete data, a lower bound of the log-probability (in expectation over
    dequantisation). probe_error: the standard error (B,) from random probes, and from the rounding of a network with
    weights in half precision; nan if it cannot be told. solver_error: an estimate (B,) of the size of the solver's
    error. end_bias: (B,), log p_t - log p_0 at x to first order in sigma^2 and log alpha, what stopping at t instead of
    0 adds. prior_mismatch: KL(p_T || prior) in nats for the moments of these samples; nan for one sample, or a prior of
    several components. nfe: network calls; products: vector-Jacobian products. discrete: how discrete data became
    continuous; None for continuous data. how: by what it was integrated. given: what is to be said of conditions, such
    as ", given label". noise: sigma/alpha at t.
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
    discrete: Dequantization | None = None
    how: "Quadrature | None" = None
    given: str = ""
    noise: float = math.nan

    @property
    def at_zero(self) -> Tensor:
        """log p of the density at 0, (B,), to first order in sigma^2 and log alpha: log_p - end_bias. What is left is
        of second order, so that it says something where end_bias is small beside d, and nothing where it is not.
        """
        return self.log_p - self.end_bias

    @property
    def values(self) -> Tensor:
        """(B,): bits/dim of discrete data, -log p/d in nats/dim of continuous ones."""
        return -self.log_p / self._unit

    @property
    def bits_per_dim(self) -> Tensor:
        """(B,). Raises ValueError for continuous data."""
        if self.discrete is None:
            raise ValueError("bits/dim are of discrete data: give `discrete`, or report nats")
        return self.values

    @property
    def _unit(self) -> float:
        return self.d * (math.log(2) if self.discrete else 1.0)

    @property
    def mean(self) -> float:
        """The mean of `values`."""
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
        if self.discrete is None:
            return f"-log p/d of the density {self._where}{self.given}"
        draws = f", {self.discrete.draws} draws" if self.discrete.draws > 1 else ""
        return f"upper bound for the discrete data, {type(self.discrete).__name__} {self._where}{draws}{self.given}"

    @property
    def _where(self) -> str:
        """The time where the flow ends, and the noise that its density has."""
        return f"at t = {self.t:g}, which has noise of sigma/alpha = {self.noise:.2g}"

    def __str__(self) -> str:
        budget = self.budget
        rows = ", ".join(f"{k} {v:.1g}" for k, v in budget.items())
        if budget["solver"] > max(budget["probes"], budget["samples"]):  # nan if they are not known
            rows += " (the solver's dominates: ask for a smaller tol, or more steps)"
        return (
            f"{self._mean} over {len(self.log_p)} samples ({self.says}); errors: {rows}; "
            f"{self.nfe} network calls, {self.products} vector-Jacobian products"
        )

    @property
    def _mean(self) -> str:
        """The mean and its unit, with no more digits than the budget supports."""
        total = math.sqrt(sum(v * v for v in self.budget.values() if math.isfinite(v)))
        digits = max(0, min(12, 1 - math.floor(math.log10(total)))) if total > 0 else 6
        return f"{self.mean:.{digits}f} {'bits/dim' if self.discrete else 'nats/dim'}"

    def statement(self) -> str:
        """What a paper needs to say beside the number: of which density it is, under which prior, found by what, over
        how many samples, and how wrong it may be.
        """
        errors, how = {k: f"{v:.1g}" for k, v in self.budget.items()}, self.how or Quadrature()
        law = "N(0, sigma_T^2 I)" if how.prior is None else "a Gaussian fitted to data"
        if how.prior is not None and len(how.prior.weights) > 1:
            law = f"a mixture of {len(how.prior.weights)} Gaussians"
        return (
            f"{self._mean}, the mean over {len(self.log_p)} samples with a standard error of {errors['samples']}, is "
            f"the {self.says}, of the probability flow with the prior {law}. The flow was solved by {how.method!r} in "
            f"{self.nfe} network calls, its divergence found by {how.trace!r}. Errors of the mean: {errors['probes']} "
            f"(standard) from the divergence, some {errors['solver']} from the solver; it differs by {errors['end']} "
            f"from that of the density at t = 0, and by {errors['prior']} from that under the law of x_T."
        )


@dataclass(frozen=True)
class Quadrature:
    """How log p is integrated: the solver, the divergence, where the flow ends, and under which prior.

    Raises ValueError for what is no solver, no trace, no law, or no time; `log_prob` also for `AsNeeded`, which decides
    what to refine, beside a trace that does not tell its error at a node: one fresh probe, or Hadamard's.
    """

    method: Integrator | Embedded | None = None
    """`Dopri5(1e-6, 1e-6)` up to 16 dimensions and `AsNeeded()` above, unless given."""
    trace: Trace | None = None
    """`Exact()` up to 16 dimensions and two fresh Rademacher probes a node above, unless given."""
    t: float | None = None
    """Where the flow ends; the process's own t_min, unless given."""
    prior: GaussianMixture | None = None
    """The law of x_T, such as `Reference.fit(data).prior(sde, shape)`; N(0, sigma_T^2 I) unless given."""
    gradients: bool = False
    """Keep the graph of log_p, computing the network at each node again when differentiating, so that the activations
    of one node are held at a time."""

    def __post_init__(self) -> None:
        for name, kind, such in (
            ("method", Integrator | Embedded | None, "AsNeeded()"),
            ("trace", Trace | None, "Exact()"),
            ("prior", GaussianMixture | None, "Reference.fit(data).prior(sde, shape)"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} must be a value such as {such}, got {getattr(self, name)!r}")
        if self.t is not None:
            number("t", self.t, least=0)
        if not isinstance(self.gradients, bool):
            raise ValueError(f"gradients must be True or False, got {self.gradients!r}")

    def of(self, d: int) -> tuple[Integrator | Embedded, Trace]:
        """The solver and the divergence for d dimensions. Raises ValueError if the first cannot tell from the second
        what is to be refined.
        """
        method = self.method or (Dopri5(1e-6, 1e-6) if d <= FEW else AsNeeded())
        trace = self.trace or (Exact() if d <= FEW else Hutchinson())
        if isinstance(method, AsNeeded) and not trace.tells:
            raise ValueError(
                f"trace must tell its error at a node, by which AsNeeded refines, got {trace}: take Hutchinson(2), a "
                "probe that is kept, Hutchinson(1, fresh=False), or a fixed number of calls, such as Adams(40)"
            )
        return method, trace


def log_prob(
    p: Reverse,
    x: Tensor,
    discrete: Quantized | Dequantization | None = None,
    *,
    around: Reference | None = None,
    how: Quadrature = Quadrature(),
    noise: Noise = iid(),
    **cond: Any,
) -> Likelihood:
    """The log-density of x (B, *D) under the probability flow of p and its prior, or bits/dim of discrete data. All eta
    share that density, so p may have any.

    discrete: the grid that x lies on, or how its levels become continuous, `Uniform` unless said; None for continuous
    data. around: the mean and deviation of the data, `Reference.fit(data)`, which make the flow mild; unless given,
    those that the score was made for, or 0 and 1. They move the result by no more than the solver's error; where the
    deviation is not that of the samples `AsNeeded` takes more calls, and of other methods, whose error is then told too
    small, a factor of thirty is warned of. noise: all randomness; with
    `per_sample`, each sample's own. cond: what the score is told beside x and t, such as label=y, y () or (B,): then it
    is log p(x | y). A network with classes that is told none uses the label that it has for none.

    Samples in half precision are computed with in float32. A network keeps its own type: if its weights are in half
    precision, every fourth call is made again with an input that differs by one rounding. Inside `torch.inference_mode`
    the result is that of `no_grad`. Raises ValueError before any work unless x is finite and on its grid, around is of
    its shape, a condition is there for every sample, sigma_t > 0 and gradients are asked for outside of inference mode;
    `SampleError`, a RuntimeError naming the sample and the time, if the score or the result is not finite.
    """
    require_reverse(p), require_noise(noise)
    if not isinstance(how, Quadrature):
        raise ValueError(f"how must be a Quadrature, such as Quadrature(Adams(40)), got {how!r}")
    if how.gradients and torch.is_inference_mode_enabled():
        raise ValueError("gradients must be asked for outside of torch.inference_mode: nothing carries a graph in it")
    discrete = Uniform(discrete) if isinstance(discrete, Quantized) else discrete
    if not isinstance(discrete, Dequantization | None):
        raise ValueError(f"discrete must be a grid or a dequantisation such as Uniform(grid), got {discrete!r}")
    with torch.inference_mode(False), torch.set_grad_enabled(how.gradients):
        x = entry(x, discrete.quantized if discrete else None)
        score, told, flow = Counted(p.score), conditions(cond, x, p.score), _Flow(p, x, around, how, discrete)
        if discrete and discrete.draws > 1 and not isinstance(flow.trace, Exact):
            raise ValueError(
                "draws must be 1 unless the trace is Exact(), since errors of an estimate would bias the mean inside "
                f"the logarithm, got {discrete.draws}"
            )
        far = "" if isinstance(flow.method, AsNeeded) else flow.coordinates.far(x, flow.t)
        for doubt in (far, discrete.doubt(p.sde, flow.t) if discrete else ""):
            if doubt:
                warnings.warn(doubt, stacklevel=2)
        q, ulp = Reverse(p.sde, score, 0.0), rounding(p.score)
        parts = [flow(q, x, discrete, noise, told, ulp) for _ in range(discrete.draws if discrete else 1)]
        log_p = torch.stack([part.log_p for part in parts]).logsumexp(0) - math.log(len(parts))
        weights = torch.stack([part.log_p.detach() for part in parts]).softmax(0)
        return replace(
            parts[0],
            log_p=log_p,
            solver_error=(weights * torch.stack([part.solver_error for part in parts])).sum(0),
            nfe=score.nfe,
            products=sum(part.products for part in parts),
            given=under(p.score, told),
        )


def tightest(
    p: Reverse,
    x: Tensor,
    quantized: Quantized,
    *,
    around: Reference | None = None,
    how: Quadrature = Quadrature(),
    noise: Noise = iid(),
    **cond: Any,
) -> Dequantization:
    """Which of `Uniform`, `TruncatedNormal` and `Decoded` gives x (B, *D) the smallest bits/dim in the mean. Each is an
    upper bound in expectation, so the least is the tightest; choose on other samples than those to report, since the
    least of three is too small by chance. The arguments are those of `log_prob`, which raises the errors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that Uniform is not meant for this noise, as it may not be
        found = {
            kind: log_prob(p, x, kind, around=around, how=how, noise=noise, **cond).mean
            for kind in (Uniform(quantized), TruncatedNormal(quantized), Decoded(quantized))
        }
    return min(found, key=lambda kind: found[kind])


class _Flow:
    """The flow of p from the end time to T, for states like x."""

    def __init__(
        self, p: Reverse, x: Tensor, around: Reference | None, how: Quadrature, discrete: Dequantization | None
    ) -> None:
        sde = p.sde
        if how.prior is not None and how.prior.shape != x.shape[1:]:
            raise ValueError(f"prior must be a law of shape {tuple(x.shape[1:])}, got {tuple(how.prior.shape)}")
        self.t = as_time(number("t", sde.t_min if how.t is None else how.t, least=0, below=sde.T))
        if sde.var(self.t) == 0:
            raise ValueError(
                f"t must be a time with sigma > 0, since the score is singular at sigma = 0, got {self.t:g}"
            )
        self.method, self.trace = how.of(x[0].numel())
        self.noise = float((-sde.log_snr(self.t)).exp())
        self.how = replace(how, method=self.method, trace=self.trace, t=float(self.t))
        grain = max(discrete.quantized.width / 12**0.5, self.noise) if discrete else math.inf
        self.coordinates, self.prior, self.T = Coordinates.of(p, around, x, grain), how.prior, as_time(sde.T)

    def __call__(
        self, q: Reverse, x: Tensor, discrete: Dequantization | None, noise: Noise, told: Conditions, ulp: float
    ) -> Likelihood:
        """One draw of the dequantisation."""
        sde, d, of = q.sde, x[0].numel(), self.coordinates
        x_t, log_w = discrete(given(q, told), x, self.t, noise) if discrete else (x, x.new_zeros(len(x)))
        path, u, u_T = _Path(q, of, self.trace.start(x_t, noise), told, ulp), of.u(self.t), of.u(self.T)
        low, high = of.at(u), of.at(u_T)
        end = integrate(self.method, path, of.y(x_t, low, self.t), u, u_T)
        x_T, m = of.x(end.y, high), end.Q.shape[1]
        log_prior = sde.log_prior(x_T) if self.prior is None else self.prior.log_prob(x_T)
        volume = d * (of.log_volume(high) - of.log_volume(low))
        log_p = log_prior + end.Q.mean(1) + volume.to(x) + log_w
        finite("log p", low.t, log_p, end.error)
        spread = end.Q.detach().var(1) / m if m > 1 else torch.full_like(log_w, math.nan)
        return Likelihood(
            log_p,
            (end.var if not self.trace.kept else spread + end.var if ulp else spread).sqrt(),
            end.error,
            path.end_bias(x_t.detach(), self.t),
            prior_mismatch(sde, x_t.detach(), self.t, self.prior),
            d,
            float(self.t),
            0,
            end.nodes * self.trace.products(d),
            discrete,
            self.how,
            noise=self.noise,
        )


class _Path:
    """The flow in coordinates, with the divergence: what an integrator solves."""

    def __init__(self, p: Reverse, coordinates: Coordinates, probes: Probes, told: Conditions, ulp: float) -> None:
        self.p, self.coordinates, self.probes, self.told, self.ulp = p, coordinates, probes, told, ulp
        self.calls, self.rounded = 0, probes.x.new_zeros(len(probes.x))
        self.first: tuple[Tensor, Tensor] | None = None

    def __call__(self, u: Tensor, y: Tensor, rows: Tensor) -> Node:
        z, at, p = self.probes.draw()[:, rows], self.coordinates.at(u), given(self.p, self.told, rows)
        if torch.is_grad_enabled():
            node = checkpoint(self._node, p, at, y, z, use_reentrant=False)
        else:
            node = self._node(p, at, y, z)
        finite("the score", at.t, node.rate, node.q, rows=rows)
        if self.ulp:
            if self.calls % 4 == 0:
                self.rounded[rows] = self._rounding(p, at, y, z, node)
            self.calls += 1
            common = node.common and node.common._replace(var=node.common.var + self.rounded[rows])
            node = node._replace(var=node.var + self.rounded[rows], common=common)
        return node

    def together(self, n: int) -> None:
        """The next n nodes share what lasts."""
        self.probes.together(n)

    def skip(self, n: int) -> None:
        """Draw the probes of n nodes, and use none."""
        for _ in range(n):
            self.probes.together(1)
            self.probes.draw()
        self.calls += n

    @torch.no_grad()
    def _rounding(self, p: Reverse, at: Place, y: Tensor, z: Tensor, node: Node) -> Tensor:
        """The square of what the node would give otherwise if the input of the score were rounded to its neighbour."""
        g = torch.Generator().manual_seed(self.calls)
        change = self.ulp * (torch.randint(0, 2, y[0].shape, generator=g, device="cpu") * 2 - 1).to(y)
        again = self._node(replace(p, score=lambda x, t: p.score(x + x * change, t)), at, y, z)
        moved = (node.gradient * (again.rate - node.rate)).flatten(1).sum(1)
        return (moved + (again.q - node.q).mean(1)) ** 2

    def _node(self, p: Reverse, at: Place, y: Tensor, z: Tensor) -> Node:
        """The divergence is that of eps, whose size is 1 at every noise level, as a network in half precision needs."""
        of, sde = self.coordinates, p.sde
        x, d, sigma, alpha = of.x(y, at), y[0].numel(), sde.sigma(at.t), like(at.alpha, y)
        s = like(sigma, y)
        eps, trace = self.probes.measure(lambda x, t: -s * p.ask(x, t), x, at.t, z)
        if self.first is None:
            self.first = eps.detach(), trace.q.detach().mean(1)
        scale, constant = (-sigma * at.rate).to(y), (d * (1 - of.std**2 / at.S**2) * at.rate).to(y)
        common = None
        if trace.lasting:
            value, var, part = trace.lasting
            common = Common(scale * value + constant, torch.zeros_like(var), scale**2 * var, part)
        return Node(
            of.drift(y, at, (x - s * eps) / alpha),
            scale[..., None] * trace.q + constant[..., None],
            scale**2 * trace.var,
            (-alpha * like(at.S / sigma, y) * eps).detach(),
            common,
        )

    def end_bias(self, x: Tensor, t: Tensor) -> Tensor:
        """int_0^t d log p/dt dt with the score and its trace at t, by the Fokker-Planck equation of the forward SDE."""
        assert self.first is not None
        sigma = self.p.sde.sigma(t)
        score, trace = (-a / sigma for a in self.first)
        L, V = self.p.sde.log_alpha(t), self.p.sde.var(t) / self.p.sde.alpha(t) ** 2
        inner, square = ((a * score).flatten(1).sum(1) for a in (x, score))
        return -x[0].numel() * L - L * inner + V / 2 * (trace + square)
