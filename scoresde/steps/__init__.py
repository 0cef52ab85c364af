"""The loop of sampling, and everything that carries x from t to s."""

from .adaptive import Adaptive, DPMSolverAdaptive, GottaGoFast, Tallied
from .ancestral import AffineDPM, AnalyticDPM, Ancestral, ConsistentAnnealed, LearnedVariance, Posterior
from .capture import captured
from .catalogue import METHODS, Known, Method
from .consistency import Consistency
from .euler import Churn, EulerMaruyama, Flow, ReverseDiffusion
from .exponential import BH1, Centred, EqualSteps, Exponential, HalfBent, InLogSNR, InSigma, Interpolation, InTime
from .inversion import exact_inverse, invert
from .langevin import NCSN, SNR, Constant, Langevin, StepSize, ncsnv2_step
from .metropolis import MALA, Calibrated
from .multistep import DDIM, DEIS, IPNDM, LMS, PNDM, DPMSolverPP, GaussianReference, Multistep, SASolver, UniPC
from .parallel import Parallel, sample_parallel
from .pilots import Pilots
from .singlestep import (
    RES,
    DPMSolver,
    DPMSolverPP2S,
    EDMHeun,
    Line,
    PseudoRungeKutta,
    Refined,
    SingleStep,
    Tableau,
    Thirds,
)
from .startup import FullOrder, Rising, Staged, StartUp
from .step import Affine, Prepared, Run, Step, draw, run, sample, started, trajectory
from .stochastic import DPMSolverPPSDE, Renoised, TwoStage
from .tuned import Error, Tuned, Tuning, distance
from .tuning import tune

__all__ = [
    "BH1", "DDIM", "DEIS", "IPNDM", "LMS", "MALA", "METHODS", "NCSN", "PNDM", "RES", "SNR", "Adaptive", "Affine",
    "AffineDPM", "AnalyticDPM", "Ancestral", "Calibrated", "Centred", "Churn", "Consistency", "ConsistentAnnealed",
    "Constant", "DPMSolver", "DPMSolverAdaptive", "DPMSolverPP", "DPMSolverPP2S", "DPMSolverPPSDE", "EDMHeun",
    "EqualSteps", "Error", "EulerMaruyama", "Exponential", "Flow", "FullOrder", "GaussianReference", "GottaGoFast",
    "HalfBent", "InLogSNR", "InSigma", "InTime", "Interpolation", "Known", "Langevin", "LearnedVariance", "Line",
    "Method", "Multistep", "Parallel", "Pilots", "Posterior", "Prepared", "PseudoRungeKutta", "Refined", "Renoised",
    "ReverseDiffusion", "Rising", "Run", "SASolver", "SingleStep", "Staged", "StartUp", "Step", "StepSize", "Tableau",
    "Tallied", "Thirds", "Tuned", "Tuning", "TwoStage", "UniPC", "captured", "distance", "draw", "exact_inverse",
    "invert", "ncsnv2_step", "sample_parallel", "run", "sample", "started", "trajectory", "tune",
]  # fmt: skip
