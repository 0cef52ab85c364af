"""AdaSDE: DPM-Solver-2 without noise, the right law with it, and what learning its numbers gains."""

import pytest
import torch
from made import F64, benchmark

from scoresde import VP, Counted, Reference, exact, grid, iid, sample
from scoresde.lab.problems import Modes
from scoresde.steps import DPMSolver

SDE = VP()


@pytest.fixture(scope="module")
def module():
    """The peers."""
    with benchmark("peers") as loaded:
        yield loaded


def ring(module, calls):
    """A flow to eight modes."""
    return module.Task(SDE, Modes().law().diffuse(SDE), Reference(std=0.7), (2,), calls, n=128)


def start(n, d=2):
    return SDE.prior((n, d), iid(torch.Generator().manual_seed(9)), F64)


def levels(n):
    """Equal steps in log s."""
    return (-SDE.log_snr(grid.log_snr(SDE, n))).exp()


def test_without_noise_it_is_dpm_solver_2(module):
    """Before anything is learned, on the same levels."""
    score, x = ring(module, 4).score, start(16)
    carry = module.adasde.TwoStage(torch.zeros(4, 4, dtype=F64), levels(4))
    ours = sample(SDE.reverse(score, 0.0), x, grid.log_snr(SDE, 4), DPMSolver(2))
    y = carry(module.Problem(SDE, score), x / SDE.alpha(SDE.T))
    assert (y * SDE.alpha(SDE.t_min) - ours).abs().max() < 1e-10


@pytest.mark.parametrize("w", [0.0, 0.8])
def test_towards_a_point(module, w):
    """A step ends on the line from where the noise leads, s w z away, to the point, at s'/t of the way, t^2 = s^2 (1 +
    w^2); and so noise of level s becomes noise of level s'.
    """
    mean, s = torch.tensor([1.0, -0.5], dtype=F64), torch.tensor([2.0, 0.5], dtype=F64)
    problem = module.Problem(SDE, lambda x, t: -(x - SDE.alpha(t[0]) * mean) / SDE.var(t[0]))
    numbers = torch.tensor([[w, 0.4, 0.0, 0.0]], dtype=F64)
    y, z = start(8), start(8).flip(0)
    end = module.adasde.TwoStage(numbers, s).step(problem, 0, numbers[0], y, z)
    ratio = 0.5 / (2.0 * (1 + w**2) ** 0.5)
    assert (end - mean - ratio * (y + 2.0 * w * z - mean)).abs().max() < 1e-10
    assert ratio**2 * 2.0**2 * (1 + w**2) == pytest.approx(0.25)


def test_noise_keeps_the_variance(module):
    """Of a Gaussian, where a step is linear, y' - m = A (y - m) + B z, so that the variance is known without sampling:
    it tends to c^2 + s^2 with the second order of the steps, if what noise each adds goes with its length.
    """
    c2, m, off = 0.09, 0.7, []
    law = exact.Gaussian(torch.tensor([m], dtype=F64), c2)
    problem, one = module.Problem(SDE, law.diffuse(SDE)), torch.ones(1, 1, dtype=F64)
    for n in (40, 80, 160):
        numbers = torch.tensor([[4.7 / n**0.5, 0.0, 0.0, 0.0]], dtype=F64).expand(n, 4)
        carry = module.adasde.TwoStage(numbers, levels(n))
        v = c2 + carry.s[0] ** 2
        for k in range(n):
            A, B = (carry.step(problem, k, numbers[k], m + a * one, b * one) - m for a, b in ((1, 0), (0, 1)))
            v = A**2 * v + B**2
        off.append(abs(float(v / (c2 + carry.s[-1] ** 2)) - 1))
    assert off[-1] < 0.01 and all(a / b > 2**1.7 for a, b in zip(off, off[1:]))


def test_the_teacher_has_the_same_noise(module):
    """Towards a point steps and teacher are exact, and so the pilots are where they should be, whatever the noise."""
    mean, seen = torch.tensor([1.0, -0.5], dtype=F64), []

    class Noisy(module.AdaSDE):
        def learned(self, task, found, k, y, exact):
            seen.append(float((y - exact).abs().max()))
            return torch.tensor([0.7, 0.0, 0.0, 0.0], dtype=F64)

    def score(x, t):
        return -(x - SDE.alpha(t.flatten()[0]) * mean) / SDE.var(t.flatten()[0])

    Noisy().fit(module.Task(SDE, score, Reference(mean, 1.0), (2,), 6, n=8))
    assert len(seen) == 3 and max(seen) < 1e-10


@pytest.mark.parametrize("calls", [4, 5])
def test_it_spends_its_calls(module, calls):
    """All, an odd one with a first slope that is the reference's."""
    task, counted = ring(module, calls), Counted(ring(module, calls).score)
    carry = module.AdaSDE(steps=1).fit(task)
    carry(module.Problem(SDE, counted), start(4) / SDE.alpha(SDE.T))
    assert counted.nfe == calls and (carry.s.diff() < 0).all()


def test_learning_brings_samples_nearer_to_the_law(module):
    """The mean log-density of fresh samples is nearer to that of the law's own than before, by half; so is the end of
    the flow, with the noise left out.
    """
    task, x, law = ring(module, 8), start(512), Modes().law()
    before, learned = module.AdaSDE().untrained(task), module.AdaSDE(steps=40).fit(task)
    before.numbers[:] = 0
    truth = sample(SDE.reverse(task.score, 0.0), x, grid.log_snr(SDE, 200), DPMSolver(2))
    goal = float(law.diffuse(SDE).log_prob(truth, SDE.t_min).mean())
    torch.manual_seed(1)

    def ends(carry):
        return carry(task.problem, x / SDE.alpha(SDE.T)) * SDE.alpha(SDE.t_min)

    gap = [abs(float(task.score.log_prob(ends(c), SDE.t_min).mean()) - goal) for c in (before, learned)]
    assert gap[1] < gap[0] / 2
    learned.numbers[:, 0] = 0
    off = [float(module.learned.distance(ends(c), truth).mean()) for c in (before, learned)]
    assert off[1] < off[0]
