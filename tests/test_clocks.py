"""What a network is told of the time is what the code that trained it tells, at the same noise."""

import math

import numpy as np
import pytest
import torch

from scoresde import EDM, VE, VP, RectifiedFlow, Tabulated
from scoresde.model import LogSNR, NoiseLevel, StepIndex, Steps, Time
from scoresde.process import cosine_betas, linear_betas

F64 = torch.float64
T = torch.tensor([0.001, 0.0375, 0.5, 0.999, 1.0], dtype=F64)


def near(a, b, tol=1e-12):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=tol, atol=tol)


def test_index_of_widely_used_code():
    """diffusers' alphas_cumprod at the index that is told at t is alpha_t^2, for every step of a chain."""
    diffusers = pytest.importorskip("diffusers")
    sde, its = Tabulated(linear_betas()), diffusers.DDPMScheduler()
    t = sde.grid()[:-1]
    index = StepIndex(1000, whole=True)(sde, t).long()
    assert index.tolist() == list(range(999, -1, -1))
    near(sde.alpha(t) ** 2, its.alphas_cumprod.double()[index], 1e-4)
    near(StepIndex(1000)(sde, t), index, 1e-9)
    near(Steps(1001, shift=-1)(sde, t), index, 1e-9)


def test_noise_of_widely_used_code():
    """c_noise of diffusers' EDM, consistency models and rectified flows."""
    diffusers = pytest.importorskip("diffusers")
    sigma = torch.tensor([0.002, 0.5, 3.0, 80.0], dtype=F64)
    near(LogSNR(-0.25)(EDM(), sigma), diffusers.EDMEulerScheduler().precondition_noise(sigma))
    near(LogSNR(-250.0)(EDM(), sigma), diffusers.CMStochasticIterativeScheduler().sigma_to_t(sigma.numpy()))
    its, flow = diffusers.FlowMatchEulerDiscreteScheduler(), RectifiedFlow()
    its.set_timesteps(10)
    level = its.sigmas[1:-1].double()
    near(flow.sigma(level), level)
    near(Time(1000.0)(flow, level), its.timesteps[1:].double(), 1e-6)


def test_of_score_sde():
    """Song et al. (2021), reference code: 999 t for VP, sigma_t for VE."""
    near(Steps(1000)(VP(), T), 999 * T)
    near(Time(999.0)(VP(), T), 999 * T)
    near(NoiseLevel()(VE(0.01, 50.0), T), 0.01 * 5000**T)


def test_of_edm():
    """Karras et al. (2022), reference code: c_noise of VP is 999 times the inverse of sigma(t), that of iDDPM M - 1 - j
    with u_j the nearest of the levels u_M = 0, u_{j-1}^2 = (u_j^2 + 1)/max(abar_{j-1}/abar_j, C_1) - 1.
    """
    sde = VP()
    sigma, d, low = NoiseLevel()(sde, T), sde.beta_max - sde.beta_min, sde.beta_min
    inverse = ((low**2 + 2 * d * (sigma**2 + 1).log()).sqrt() - low) / d
    near(Steps(1000)(sde, T), 999 * inverse, 1e-9)
    M, C_1, C_2 = 50, 0.001, 0.008
    u, bar = np.zeros(M + 1), lambda j: math.sin(0.5 * math.pi * j / M / (C_2 + 1)) ** 2
    for j in range(M, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(bar(j - 1) / bar(j), C_1) - 1)
    table = Tabulated(cosine_betas(M, C_2, 1 - C_1))
    t = table.grid()[:-1]
    nearest = [int(np.abs(u - float(level)).argmin()) for level in NoiseLevel()(table, t)]
    assert StepIndex(M, whole=True)(table, t).tolist() == [M - 1 - j for j in nearest] == list(range(M - 1, -1, -1))
