"""Continuous-time score-based models: which process, which times, which steps."""

from . import chain, exact, grid, loss, nn, ode
from .adaptive import DPMSolverAdaptive, GottaGoFast, Tallied
from .ancestral import AnalyticDPM, Ancestral, ConsistentAnnealed, LearnedVariance
from .capture import captured
from .chain import Chain, TabulatedVE
from .correct import MALA, NCSN, SNR, Constant, Langevin, StepSize, ncsnv2_step
from .count import Counted
from .elbo import Bound, continuous_elbo, elbo
from .exponential import Centred, InLogSNR, InSigma, Interpolation, InTime, Reference, fit_reference
from .likelihood import Frame, Likelihood, decode, encode, gaussian_prior, log_prob, prior_mismatch
from .loss import dsm, ssm
from .model import (
    Clock,
    Data,
    EnergyModel,
    Epsilon,
    Karras,
    LogSNR,
    Parametrisation,
    ScoreModel,
    ScoreValue,
    Steps,
    TwoHeads,
    Velocity,
    clamped,
    transport,
)
from .multistep import DDIM, DEIS, IPNDM, DPMSolverPP, GaussianReference, Multistep, SASolver, UniPC
from .noise import Noise, Path, iid, per_sample
from .predict import Churn, EulerMaruyama, Flow, ReverseDiffusion
from .processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP, Tabulated
from .quantize import Decoded, Dequantization, Quantized, TruncatedNormal, Uniform
from .sample import Step, sample, trajectory
from .sde import SDE, LinearSDE, Reverse, Score
from .singlestep import RES, DPMSolver, DPMSolverPP2S, EDMHeun, SingleStep
from .trace import Exact, Hadamard, Hutchinson, HutchPP, Trace
