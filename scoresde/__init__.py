"""Continuous-time score-based models: which process, which times, which steps."""

from . import chain, exact, grid, loss, nn, ode
from .ancestral import AnalyticDPM, Ancestral, ConsistentAnnealed, LearnedVariance
from .chain import Chain, TabulatedVE
from .correct import MALA, NCSN, SNR, Constant, Langevin, StepSize, ncsnv2_step
from .count import Counted
from .elbo import Bound, continuous_elbo, elbo
from .likelihood import Exact, Hutchinson, Quantized, bits_per_dim, log_prob
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
from .noise import Noise, Path, iid, per_sample
from .predict import Churn, EulerMaruyama, Flow, ReverseDiffusion
from .processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP, Tabulated
from .sample import Step, sample, trajectory
from .sde import SDE, LinearSDE, Reverse, Score
