"""Continuous-time score-based models: which process, which times, which steps."""

from . import chain, exact, grid, loss, nn, ode
from .ancestral import AnalyticDPM, Ancestral, LearnedVariance
from .chain import Chain, TabulatedVE
from .correct import NCSN, SNR, Constant, Langevin, StepSize
from .count import Counted
from .elbo import Bound, continuous_elbo, elbo
from .likelihood import Exact, Hutchinson, Quantized, bits_per_dim, log_prob
from .loss import dsm, ssm
from .model import (
    Clock,
    Data,
    Epsilon,
    Karras,
    LogSNR,
    Parametrisation,
    ScoreModel,
    ScoreValue,
    Steps,
    Velocity,
    transport,
)
from .noise import Noise, Path, iid, per_sample
from .predict import Churn, EulerMaruyama, Flow, ReverseDiffusion
from .processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP, Tabulated
from .sample import Step, sample, trajectory
from .sde import SDE, LinearSDE, Reverse, Score
