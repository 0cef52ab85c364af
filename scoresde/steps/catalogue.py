"""The samplers of the literature, each of which has only to be told its times: the one list from which `tune`, the
laboratory and the command line choose.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import grid
from ..model import Counted
from ..noise import iid
from ..ode import Heun
from ..process import VP, Reverse
from ..reference import Reference
from .ancestral import AnalyticDPM, Ancestral, ConsistentAnnealed
from .euler import EulerMaruyama, Flow, ReverseDiffusion
from .exponential import EqualSteps
from .langevin import NCSN, Langevin, ncsnv2_step
from .metropolis import MALA, Calibrated
from .multistep import DEIS, IPNDM, DPMSolverPP, GaussianReference, SASolver, UniPC
from .singlestep import RES, DPMSolver, DPMSolverPP2S, EDMHeun
from .step import Step, end

CALIBRATED = 512
"""Samples on which step sizes are calibrated."""


@dataclass(frozen=True)
class Known:
    """What is known of the data: their Gaussian, and some of them (n, *D) if they are at hand."""

    around: Reference
    x_0: Tensor | None = None


Recipe = Callable[[Reverse, Tensor, Known], tuple[Step, ...]]


@dataclass(frozen=True)
class Method:
    """A sampler, its process and what it costs.

    steps: from the process, the grid and what is known of the data. eta: of the process, 0 for the flow. each: network
    calls an interval. free: intervals that cost none; negative where a grid has more times than intervals to visit.
    """

    name: str
    steps: Recipe
    eta: float = 0.0
    each: int = 1
    free: int = 0

    @property
    def least(self) -> int:
        """The fewest network calls."""
        return self.each * max(1, 1 - self.free)

    def intervals(self, calls: int) -> int:
        """The intervals that `calls` network calls pay for, 0 if they are too few."""
        return calls // self.each + self.free if calls >= self.least else 0


def fixed(name: str, *steps: Step, eta: float = 0.0, each: int = 1) -> Method:
    """A method whose steps are these."""
    return Method(name, lambda *_: steps, eta, each)


def own(name: str, step: Step, eta: float = 0.0) -> Method:
    """A step of your own, whose network calls are counted on three short grids. Raises ValueError unless every interval
    costs the same.
    """
    sde, calls = VP(), []
    for n in (8, 16, 32):
        score = Counted(lambda x, t: torch.tanh(3 * x) - x)
        end(sde.reverse(score, eta), torch.ones(1, 2), grid.log_snr(sde, n), step)
        calls.append(score.nfe)
    each = (calls[1] - calls[0]) // 8
    if each < 1 or [calls[0] + 8 * each, calls[0] + 24 * each] != calls[1:]:
        raise ValueError(f"step must make as many network calls in every interval, got {calls} in 8, 16 and 32")
    return Method(name, lambda *_: (step,), eta, each, (8 * each - calls[0]) // each)


def gaussian_reference(name: str, eta: float) -> Method:
    """`GaussianReference` around the data."""
    return Method(name, lambda p, ts, known: (GaussianReference(known.around),), eta, 1, 1)


def relative(e: float) -> NCSN:
    """The step size e sigma_t^2 of Langevin dynamics."""
    return NCSN(2 * e, 1.0)


def predictor_corrector(r: float = 0.16) -> Method:
    """Song et al. (2021). r: the signal-to-noise ratio of the corrector, whose step is 2 r^2 sigma_t^2: that of
    `SNR(r)` where |score| = sqrt(d)/sigma, without its bias.
    """
    steps = Langevin(relative(2 * r**2)), ReverseDiffusion()
    return fixed("Predictor-corrector", *steps, eta=1.0, each=2)


def _adjusted(p: Reverse, ts: Tensor, known: Known) -> tuple[Step, ...]:
    if known.x_0 is None:
        raise ValueError("x_0 must be data to calibrate step sizes on, got none")
    rule = Calibrated.fit(p, known.x_0[:CALIBRATED], ts[:-1], noise=iid(torch.Generator().manual_seed(0)))
    return MALA(rule, 1, by_scores=2), ReverseDiffusion()


def annealed_langevin(corrections: int = 5) -> Method:
    """Song & Ermon (2020): a corrector alone, so many steps a level, whose size is technique 4's for the levels."""

    def steps(p: Reverse, ts: Tensor, known: Known) -> tuple[Step, ...]:
        ratio = float(p.sde.log_snr(ts).diff().max().exp())
        return (Langevin(relative(ncsnv2_step(ratio, corrections)), corrections),)

    return Method("Annealed Langevin", steps, 1.0, corrections, -1)


def _optimal(p: Reverse, ts: Tensor, known: Known) -> tuple[Step, ...]:
    if known.x_0 is None:
        raise ValueError("x_0 must be data to fit the variances to, got none")
    return (AnalyticDPM.fit(p, known.x_0, ts, iid(torch.Generator().manual_seed(0))),)


FLOWS = (
    fixed("DDIM", Ancestral()),
    *(fixed(f"DPMSolverPP({k})", DPMSolverPP(k)) for k in (2, 3)),
    *(fixed(f"UniPC({k})", UniPC(k)) for k in (2, 3)),
    *(fixed(f"DEIS({k})", DEIS(k)) for k in (2, 3)),
    *(fixed(f"IPNDM({k})", IPNDM(k)) for k in (2, 3)),
    fixed("IPNDM(4, EqualSteps())", IPNDM(4, EqualSteps())),
    *(fixed(f"UniPC({k}, taper)", UniPC(k, taper=True)) for k in (2, 3)),
    fixed("SASolver(2, 3)", SASolver(2, 3)),
    gaussian_reference("GaussianReference", 0.0),
    *(fixed(f"DPMSolver({k})", DPMSolver(k), each=k) for k in (2, 3)),
    fixed("DPMSolverPP2S", DPMSolverPP2S(), each=2),
    *(fixed(f"RES({k})", RES(k), each=k) for k in (2, 3)),
    fixed("EDMHeun", EDMHeun(), each=2),
    fixed("Flow(Heun())", Flow(Heun()), each=2),
)
DIFFUSIONS = (
    fixed("DDPM, fixed-small", Ancestral(), eta=1.0),
    fixed("DDPM, fixed-large", Ancestral(1.0), eta=1.0),
    Method("DDPM, optimal", _optimal, 1.0),
    fixed("ReverseDiffusion", ReverseDiffusion(), eta=1.0),
    fixed("EulerMaruyama", EulerMaruyama(), eta=1.0),
    fixed("ConsistentAnnealed", ConsistentAnnealed(), eta=1.0),
    *(fixed(f"DPMSolverPP({k}), eta 1", DPMSolverPP(k), eta=1.0) for k in (2, 3)),
    *(fixed(f"SASolver(3, 4), eta {eta:g}", SASolver(), eta=eta) for eta in (1.0, 0.6)),
    *(gaussian_reference(f"GaussianReference, eta {eta:g}", eta) for eta in (1.0, 0.6)),
    predictor_corrector(),
    Method("Predictor-corrector, MALA", _adjusted, 1.0, 3),
    annealed_langevin(),
)
METHODS = {method.name: method for method in (*FLOWS, *DIFFUSIONS)}
