"""STORK: the stabilised method's polynomial and times, and what it becomes with velocities and with noise."""

import numpy as np
import pytest
import torch
from made import F64, benchmark

from scoresde import VP, Counted, DPMSolverPP, Reference, exact, grid, iid, sample

SDE = VP()


@pytest.fixture(scope="module")
def module():
    """The peers."""
    with benchmark("peers") as loaded:
        yield loaded


def flow(module, calls):
    """To two broad modes."""
    law = exact.GaussianMixture(
        torch.ones(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64), torch.full((2,), 0.5)
    )
    return module.Task(SDE, law.diffuse(SDE), Reference(std=1.0), (2,), calls, n=16)


def start(n):
    return SDE.prior((n, 2), iid(torch.Generator().manual_seed(9)), F64)


def carried(module, solver, task, x):
    """x at t_min."""
    return solver.fit(task)(module.Problem(SDE, task.score), x / SDE.alpha(SDE.T)) * SDE.alpha(SDE.t_min)


@pytest.mark.parametrize("stages", [2, 3, 8, 50])
def test_the_stability_polynomial(module, stages):
    """For z' = L z it is 1 + hL + (hL)^2/2 + O((hL)^3), and at most 1 down to hL = -(S + 4)(S - 1)/3."""

    def grown(z):
        return float(module.stork.recursion(np.array([1.0]), lambda j, Y: z * Y, stages)[0])

    assert abs(grown(1e-3) - 1 - 1e-3 - 5e-7) < 1e-9 / 6
    far = (stages + 4) * (stages - 1) / 3
    assert max(abs(grown(-z)) for z in np.linspace(1e-3, far, 300)) < 1 + 1e-10
    assert abs(grown(-2 * far)) > 1


def test_the_times_of_the_stages(module):
    """Are what the recursion makes of F = 1."""
    seen = np.zeros(9)

    def one(j, Y):
        seen[j] = Y[0]
        return np.array([1.0])

    assert abs(module.stork.recursion(np.array([0.0]), one, 9)[0] - 1) < 1e-12
    assert abs(seen - module.stork.times(9)).max() < 1e-12


def test_velocities_with_a_slope_are_adams_bashforth(module):
    """On the straight path: z + h v, and from then on z + h v + h^2/2 (v - v_before)/h_before."""
    task, ts, x = flow(module, 6), grid.quadratic(SDE, 6), start(16)
    s = task.problem.levels(ts)
    r, z, before = s / (1 + s), x / SDE.alpha(SDE.T) / (1 + s[0]), None
    for k, h in enumerate(r.diff()):
        y = z * (1 + s[k])
        D = task.problem.denoise(y, s[k])
        v = (y - D) / s[k] - D
        z = z + h * v + (0 if before is None else h**2 / 2 * (v - before) / (r[k] - r[k - 1]))
        before = v
    end = carried(module, module.STORK(nodes=grid.quadratic, derivatives=1), task, x)
    assert (end - z * (1 + s[-1]) * SDE.alpha(SDE.t_min)).abs().max() < 1e-10


@pytest.mark.parametrize("stages", [3, 50])
def test_an_interval_with_noise_is_ddim(module, stages):
    """But for O(h^3), that of a constant eps: alpha_s/alpha_t, and sigma_s - sigma_t alpha_s/alpha_t."""
    off, t = [], torch.tensor(0.5, dtype=F64)
    for h in (0.02, 0.01, 0.005):
        s = t - h
        own, eps = module.stork.weights(SDE, module.stork.IN_T, torch.stack([s, t]), stages)
        a = SDE.alpha(s) / SDE.alpha(t)
        off.append((abs(float(own - a)), abs(float(eps - (SDE.sigma(s) - a * SDE.sigma(t))))))
    assert (np.log2(np.divide(off[:-1], off[1:])) > 2.8).all()


def test_a_point_is_reached_exactly(module):
    """The straight path to it is a line: two calls end at m + s_min/s_max (y - m)."""
    mean = torch.tensor([1.0, -0.5], dtype=F64)

    def score(x, t):
        return -(x - SDE.alpha(t) * mean) / SDE.var(t)

    task, x = module.Task(SDE, score, Reference(), (2,), 2), start(8)
    high, low = task.levels
    end = SDE.alpha(SDE.t_min) * (mean + low / high * (x / SDE.alpha(SDE.T) - mean))
    assert (carried(module, module.STORK(nodes=grid.quadratic), task, x) - end).abs().max() < 1e-10


@pytest.mark.parametrize("form", ["IN_T", "STRAIGHT"])
def test_the_order_is_two(module, form):
    """At least, with one derivative or more."""
    x = start(16)
    truth = sample(SDE.reverse(flow(module, 4).score, 0.0), x, grid.log_snr(SDE, 1500), DPMSolverPP(3))
    for derivatives in (1, 2):
        solver = module.STORK(getattr(module.stork, form), grid.quadratic, derivatives, stages=8)
        off = [(carried(module, solver, flow(module, n), x) - truth).square().mean().sqrt() for n in (100, 200)]
        assert float((off[0] / off[1]).log2()) > 1.7, derivatives


def test_it_asks_once_an_interval(module):
    """And no less often than for two."""
    task, counted = flow(module, 7), Counted(flow(module, 7).score)
    module.STORK().fit(task)(module.Problem(SDE, counted), start(4) / SDE.alpha(SDE.T))
    assert counted.nfe == 7
    with pytest.raises(ValueError, match="STORK needs at least 2 network calls, got 1"):
        module.STORK().fit(flow(module, 1))
