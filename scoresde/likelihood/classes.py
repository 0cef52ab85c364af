"""Which class a sample is of: Bayes' rule with the likelihoods under each class.

    log p(x) = log sum_c w_c p(x | c),    p(c | x) = w_c p(x | c)/p(x),

for a score that is told the class as `label` (Li et al. 2023; Clark & Jaini 2023 take bounds in place of likelihoods).
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..noise import Noise, iid, require_noise
from ..process import Reverse
from ..quantize import Quantized
from ..reference import Reference
from ..shapes import count, reals, state
from .dequantize import Dequantization
from .flow import Likelihood, Quadrature, log_prob
from .samples import MANY


@dataclass(frozen=True, kw_only=True)
class ClassLikelihood(Likelihood):
    """log p(x) of the mixture over K classes, and p(c | x).

    posterior: (B, K). posterior_error: (B, K), its standard error to first order, by the errors from probes and solver
    of each log p(x | c), taken for independent; it is meant for probabilities that are not near 0 or 1, where errors
    of the exponent multiply. by_class: log p(x | c) in nats, (B, K).

    probe_error and solver_error of log p(x) are the means over p(c | x) of those of the classes; to the latter half the
    variance over p(c | x) of errors from probes is added, by which the logarithm of a sum of independent estimates is
    too large. Where errors from probes cannot be told, as of one fresh probe, all of these are nan.
    """

    posterior: Tensor
    posterior_error: Tensor
    by_class: Tensor

    @property
    def label(self) -> Tensor:
        """The class of largest probability, (B,)."""
        return self.posterior.argmax(1)


def class_log_prob(
    p: Reverse,
    x: Tensor,
    discrete: Quantized | Dequantization | None = None,
    *,
    classes: int | Tensor,
    around: Reference | None = None,
    how: Quadrature = Quadrature(),
    noise: Noise = iid(),
) -> ClassLikelihood:
    """`log_prob` under each of the classes, in one batch of K B samples, and what they come to.

    classes: their number K, all equally probable, or their probabilities (K,), in proportion. Dequantisation and probes
    of a sample are the same for all classes. nfe counts calls of the batch of all classes. The other arguments are
    those of `log_prob`, which raises the errors; ValueError too for fewer than two classes, or probabilities that are
    not positive.
    """
    state("x", x), require_noise(noise)
    share = torch.ones(count("classes", classes, least=2, most=MANY)) if isinstance(classes, int) else classes
    share = reals("classes", share)
    if share.ndim != 1 or len(share) < 2 or not (share > 0).all() or not share.isfinite().all():
        raise ValueError(f"classes must be a number from 2 on, or positive probabilities (K,), got {classes!r}")
    n, K = len(x), len(share)
    every = x.repeat(K, *[1] * (x.ndim - 1))
    label = torch.arange(K, device=x.device).repeat_interleave(n)

    def common(y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return noise(y[:n], t, s).repeat(K, *[1] * (y.ndim - 1))

    found = log_prob(p, every, discrete, around=around, how=how, noise=common, label=label)
    log_p, probe, solver, end = (
        a.view(K, n).T for a in (found.log_p, found.probe_error, found.solver_error, found.end_bias)
    )
    joint = log_p + (share / share.sum()).log().to(log_p)
    r, noisy = joint.detach().softmax(1), probe.square()
    variance = noisy + solver.square()
    mixed = {
        "log_p": joint.logsumexp(1),
        "probe_error": (r * probe).sum(1),
        "solver_error": (r * solver + r * (1 - r) * noisy / 2).sum(1),
        "end_bias": (r * end).sum(1),
        "given": f", mixed over {K} classes",
    }
    return ClassLikelihood(
        **{f.name: getattr(found, f.name) for f in fields(Likelihood)} | mixed,
        posterior=joint.softmax(1),
        posterior_error=r * ((1 - 2 * r) * variance + (r**2 * variance).sum(1, keepdim=True)).clamp_min(0).sqrt(),
        by_class=log_p,
    )
