"""The samplers of other libraries on our problems: the same SDE, the same score, the same start, a budget of calls.

    pip install -e '.[bench]' && pip install --no-deps k-diffusion azula

A peer starts from x_T at t = T and returns x at t = sde.t_min. It spends the calls that it is given, or as many as its
stages divide, never more, and takes no denoising step beyond t_min. Every one runs on every grid of `GRIDS` that its
arguments allow. All libraries speak of s = sigma/alpha, and their states are

    v = x/hypot(alpha, sigma)     the variance-preserving schedulers of diffusers, whose alpha is 1/hypot(1, s)
    y = x/alpha = v hypot(1, s)   k-diffusion, and the schedulers of diffusers that scale their input
    x                             azula, and torchdiffeq and torchsde in t; in log-SNR they have v
    x/(alpha + sigma)             flow_matching, in u = 1 - r of the straight path r = sigma/(alpha + sigma)

with eps = -sigma score and D = (x + sigma^2 score)/alpha = y - s eps.

diffusers reads noise levels from a table of betas. Here the table is the grid, beta_i = 1 - (a_i/a_(i-1))^2 for a_i the
alphas from t_min (a_1) up to T and a_0 = 1, so that every level is a node and none is interpolated; with "leading"
spacing and an offset of 1, or with `final_sigmas_type="sigma_min"`, the last call leads to t_min. (What insists on
sigma = 0 at the end is stopped one step before.) The karras and lu flags of a scheduler name t_min twice instead, and
spend a call on a step of length zero: "as shipped" is that, on 1,000 betas. "full" is `lower_order_final=False`.
Tables and coefficients are float32 in all schedulers, and so is the state in DPMSolverMultistep and Euler. 1 - beta
rounds s = 0.01 by up to 1.4e-4 of itself, so eps is asked for at the rounded levels. What is left under VP, by
first-order schedulers against `Ancestral` on the 8-mode ring, is 2e-6 RMS and 1e-5 at most from 2 calls on, and 1e-4 in
a single step from T; third-order data prediction at 6 calls amplifies it to 1e-3, and cancellation in the coefficients
of DEIS 3 and SASolver to 1e-4 from about 60 calls on. The float64 libraries leave 1e-12.

azula and k-diffusion ask for torchvision and more, which nothing here uses: hence `--no-deps`. k-diffusion is loaded as
its one module `sampling`, since the package imports what training needs. What takes a
tolerance in place of a budget is in `adaptive()`: dpm_adaptive, and torchdiffeq's embedded pairs told to step at t_min
(left to themselves, as in flow_matching, they step beyond it and interpolate, and no score is known there). What is
fitted to a flow before it solves it is in `LEARNED`, written anew from papers: see `learned`.
"""

from collections.abc import Callable
from typing import Any

from .adasde import AdaSDE
from .alternating import Alternating
from .ays import AYS
from .azula import Denoiser, azula_peers
from .common import GRIDS, Adaptive, Peer, Problem, whole
from .diffusers import diffusers_peers
from .discretized import Discretized
from .dyweight import DyWeight
from .equations import flow_matching_peers, torchdiffeq_adaptive, torchdiffeq_peers
from .generalized import Generalized
from .gits import GITS
from .k_diffusion import k_diffusion_adaptive, k_diffusion_peers, k_sampling
from .learned import Learned, Task
from .nonstationary import NonStationary
from .parallel import Parallel
from .statistics import DPMSolverV3
from .stork import STORK
from .torchsde import torchsde_peers

__all__ = [
    "AYS",
    "GITS",
    "GRIDS",
    "LEARNED",
    "STORK",
    "AdaSDE",
    "Adaptive",
    "Alternating",
    "DPMSolverV3",
    "Denoiser",
    "Discretized",
    "DyWeight",
    "Generalized",
    "Learned",
    "NonStationary",
    "Parallel",
    "Peer",
    "Problem",
    "Task",
    "adaptive",
    "k_sampling",
    "peers",
    "whole",
]

LEARNED: list[Learned] = [
    *(NonStationary(), Generalized(), Alternating(), Discretized(), DyWeight(), Parallel()),
    *(GITS(), AYS(), DPMSolverV3(), STORK(), AdaSDE()),
]
"""Solvers that are fitted to a flow, as their papers have them."""

PACKAGES: dict[str, tuple[Callable[[], list[Peer]], Callable[[], list[Adaptive]] | None]] = {
    "diffusers": (diffusers_peers, None),
    "k-diffusion": (k_diffusion_peers, k_diffusion_adaptive),
    "azula": (azula_peers, None),
    "torchdiffeq": (torchdiffeq_peers, torchdiffeq_adaptive),
    "flow_matching": (flow_matching_peers, None),
    "torchsde": (torchsde_peers, None),
}


def _collect(which: int) -> tuple[list[Any], dict[str, str]]:
    found: list[Any] = []
    missing: dict[str, str] = {}
    for package, makers in PACKAGES.items():
        make = makers[which]
        try:
            found += make() if make else []
        except (ImportError, RuntimeError) as error:  # diffusers' lazy imports raise the latter
            missing[package] = str(error)
    return found, missing


def peers() -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run here, and for each package that cannot the reason."""
    return _collect(0)


def adaptive() -> tuple[list[Adaptive], dict[str, str]]:
    """The same for those that take a tolerance."""
    return _collect(1)
