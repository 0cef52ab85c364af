"""DPM-Solver-v3: exact for a Gaussian, of its order elsewhere, and other methods at special statistics."""

import math

import numpy as np
import pytest
import torch
from made import F64, benchmark
from scipy.interpolate import CubicSpline

from scoresde import VP, Counted, DPMSolverPP, Reference, exact, grid, iid, sample
from scoresde.lab.problems import Modes
from scoresde.steps import Multistep

SDE = VP()
MEAN = torch.tensor([1.0, -0.5, 0.2], dtype=F64)


@pytest.fixture(scope="module")
def module():
    """The peers."""
    with benchmark("peers") as loaded:
        yield loaded


def ring(module, calls):
    """A flow to eight modes."""
    return module.Task(SDE, Modes().law().diffuse(SDE), Reference(std=0.7), (2,), calls, n=128)


def solved(task, x, ts, step):
    """x at t_min by a step of ours."""
    return sample(SDE.reverse(task.score, 0.0), x, ts, step)


def carried(module, carry, task, x):
    """x at t_min by a learned solver."""
    return carry(module.Problem(SDE, task.score), x / SDE.alpha(SDE.T)) * SDE.alpha(SDE.t_min)


def start(n, d):
    return SDE.prior((n, d), iid(torch.Generator().manual_seed(9)), F64)


def flat(module, ts, split, scale, order, corrector, pseudo=False):
    """The method with l and s_ that do not change, and b = 0."""
    lam = SDE.log_snr(ts).numpy()
    fine = np.linspace(lam[0], lam[-1], 9)
    one, S, B = (CubicSpline(fine, np.full((9, 2), v), axis=0) for v in (split, scale, 0.0))
    known = module.statistics.Statistics(one, one.antiderivative(), S.antiderivative(), B.antiderivative())
    return module.statistics.Predicted(known, ts, lam, order, corrector, pseudo)


@pytest.mark.parametrize(("order", "corrector"), [(2, False), (2, True), (3, True)])
def test_without_statistics_it_is_a_multistep_method(module, order, corrector):
    """l = b = 0 and s_ = -1 leave g = eps, integrated over e^(-lambda), and so Adams' methods for eps in lambda; l = 1
    and s_ = 0 leave -D, and those of data prediction.
    """
    task, ts, x = ring(module, 7), grid.log_snr(SDE, 7), start(16, 2)
    for split, scale, around in ((0.0, -1.0, Reference(std=math.inf)), (1.0, 0.0, Reference())):
        carry = flat(module, ts, split, scale, order, corrector)
        ours = Multistep(order, order if corrector else 0, around)
        assert (carried(module, carry, task, x) - solved(task, x, ts, ours)).abs().max() < 1e-9


@pytest.mark.parametrize(("order", "corrector"), [(2, False), (3, True)])
def test_the_orders(module, order, corrector):
    """Of convergence, in steps of a spread-out law's flow, between 80 and 160; without a corrector no start-up is of
    third order.
    """
    law = exact.GaussianMixture(
        torch.ones(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64), torch.full((2,), 0.5)
    )
    task, x, off = module.Task(SDE, law.diffuse(SDE), Reference(), (2,), 4), start(16, 2), []
    truth = solved(task, x, grid.log_snr(SDE, 1500), DPMSolverPP(3))
    for n in (80, 160):
        carry = flat(module, grid.log_snr(SDE, n), 0.7, -0.2, order, corrector)
        off.append((carried(module, carry, task, x) - truth).square().mean().sqrt())
    assert float((off[0] / off[1]).log2()) > order - 0.3


def test_the_pseudo_order(module):
    """Lines are kept, and (lambda - lambda_0)^2 becomes (lambda - lambda_0)^2 + (lambda_1 - lambda_0)(lambda -
    lambda_0), lambda_1 being the next node, whichever end of the interval that is.
    """
    carry, lam = flat(module, grid.log_snr(SDE, 3), 0.0, 0.0, 3, True, True), np.linspace(0.0, 1.0, 5)
    for nodes in ([0.0, -0.7, -1.6], [1.0, 0.0, -0.7]):
        basis = np.array(carry.basis(lam, 0.0, np.array(nodes)))
        following = next(v for v in nodes if v)
        assert abs(basis.sum(0) - 1).max() < 1e-12 and abs(nodes @ basis - lam).max() < 1e-12
        assert abs(np.square(nodes) @ basis - lam**2 - following * lam).max() < 1e-12


def test_gaussians_of_independent_coordinates_are_solved_exactly(module):
    """In two steps, but for the splines: y - m goes with (c^2 + s^2)^(1/2), a c for each coordinate."""
    v = torch.tensor([0.01, 0.09, 1.0], dtype=F64)
    task = module.Task(SDE, exact.Gaussian(MEAN, v.diag()).diffuse(SDE), Reference(MEAN, 0.5), (3,), 2, n=16)
    carry, x = module.DPMSolverV3().fit(task), start(8, 3)
    high, low = task.levels
    end = MEAN + (x / SDE.alpha(SDE.T) - MEAN) * ((v + low**2) / (v + high**2)).sqrt()
    assert (carried(module, carry, task, x) / SDE.alpha(SDE.t_min) - end).abs().max() < 1e-5
    assert (solved(task, x, carry.ts, DPMSolverPP(2)) / SDE.alpha(SDE.t_min) - end).abs().max() > 0.1


def test_the_statistics_of_correlated_coordinates(module):
    """Of variances 1/2 and correlation 0.8, s d eps/dy has eigenvalues f = s^2/(v + s^2), p and r being half their sum
    and half their difference; N_1 = r (y_2 - m_2) - p m_1, and so l = p, s_ = r'/r - p - r corr(y_1, y_2), and
    b = m (s_ p - p').
    """
    v, m = torch.tensor([0.9, 0.1], dtype=F64), torch.tensor([0.4, -0.3], dtype=F64)
    covariance = torch.tensor([[0.5, 0.4], [0.4, 0.5]], dtype=F64)
    task = module.Task(SDE, exact.Gaussian(m, covariance).diffuse(SDE), Reference(m, 0.7), (2,), 4, n=4000)
    known = module.statistics.Statistics.of(task, 60)
    lam = torch.tensor([-2.0, -0.5, 0.5, 2.0], dtype=F64)
    s2, top = (-2 * lam).exp()[:, None], task.levels[0] ** 2
    f, df, spread = s2 / (v + s2), -2 * s2 * v / (v + s2) ** 2, (v + s2) / (v + top)
    (p, r), (dp, dr) = (((w[:, 0] + w[:, 1]) / 2, (w[:, 1] - w[:, 0]) / 2) for w in (f, df))
    correlation = (spread[:, 0] - spread[:, 1]) / spread.sum(1)
    sign = -1  # the first eigenvalue's vector is (1, 1), and its f the smaller
    scale = dr / r - p - sign * r * correlation
    assert abs(known.l(lam.numpy()) - p[:, None].numpy()).max() < 0.02
    assert abs(known.S(lam.numpy(), 1) - scale[:, None].numpy()).max() < 0.1
    b = (m * (scale * p - dp)[:, None]).numpy()
    assert abs(known.B(lam.numpy(), 1) * np.exp(known.S(lam.numpy())) - b).max() < 0.06


def test_it_is_better_than_without(module):
    """On fresh starts, by as many calls as are given."""
    task = ring(module, 8)
    x, counted = start(256, 2), Counted(task.score)
    end = module.DPMSolverV3().fit(task)(module.Problem(SDE, counted), x / SDE.alpha(SDE.T)) * SDE.alpha(SDE.t_min)
    assert counted.nfe == 8
    truth = solved(task, x, grid.log_snr(SDE, 300), DPMSolverPP(3))
    usual = [solved(task, x, make(SDE, 8), DPMSolverPP(2)) for make in grid.usual(task.around).values()]
    off, *others = (float(module.learned.distance(v, truth).mean()) for v in (end, *usual))
    assert off < min(others)
