"""log p, its divergence, its error budget, and bounds."""

from .along import Sampled, sample_and_log_prob
from .bounds import Bound, continuous_elbo, elbo
from .classes import ClassLikelihood, class_log_prob
from .codes import decode, encode
from .dequantize import Decoded, Dequantization, TruncatedNormal, Uniform
from .flow import Likelihood, Quadrature, log_prob, tightest
from .parallel import Picard
from .paths import PathBound, sampler_log_prob
from .prior import prior_mismatch
from .quadrature import Adams, AsNeeded, Integrator, RungeKutta
from .trace import Exact, Hadamard, Hutchinson, HutchPP, Trace

__all__ = [
    "Adams", "AsNeeded", "Bound", "ClassLikelihood", "Decoded", "Dequantization", "Exact", "Hadamard", "HutchPP",
    "Hutchinson", "Integrator", "Likelihood", "PathBound", "Picard", "Quadrature", "RungeKutta", "Sampled", "Trace",
    "TruncatedNormal", "Uniform", "class_log_prob", "continuous_elbo", "decode", "elbo", "encode", "log_prob",
    "prior_mismatch", "sample_and_log_prob", "sampler_log_prob", "tightest",
]  # fmt: skip
