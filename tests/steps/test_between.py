"""Noise on a part of the way: each interval has the eta of its beginning, whatever the step, or the step says no."""

from dataclasses import dataclass, replace

import pytest
import torch
from papers import F64, MEAN, SDES, STD, Problem, Tape, gaussian, mixture, near, no_noise, normal, probed, times

from scoresde import (
    SDE,
    VP,
    Ancestral,
    DPMSolverPP,
    EulerMaruyama,
    Flow,
    GaussianReference,
    Reference,
    ReverseDiffusion,
    SASolver,
    sample,
)
from scoresde.likelihood import sampler_log_prob
from scoresde.process import Between
from scoresde.steps import (
    BH1,
    PNDM,
    AffineDPM,
    AnalyticDPM,
    Churn,
    ConsistentAnnealed,
    DPMSolver,
    DPMSolverAdaptive,
    GottaGoFast,
    LearnedVariance,
    Multistep,
    Renoised,
    TwoStage,
)

every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
LOW, HIGH = 0.5, 5.0
"""In lambda from -1.6 to 0.7: of the grid of `times` the intervals 2 to 5 begin there."""
NOISY = slice(2, 6)
AROUND = Reference(MEAN, STD)


def learned(sde):
    """With a variance that a network says."""
    return LearnedVariance(lambda x, t: (mixture(sde)(x, t), torch.full_like(x, 0.4)))


MEMORYLESS = {
    "EulerMaruyama": lambda sde: EulerMaruyama(),
    "ReverseDiffusion": lambda sde: ReverseDiffusion(),
    "Ancestral(0)": lambda sde: Ancestral(),
    "Ancestral(1)": lambda sde: Ancestral(1.0),
    "Ancestral(0.5)": lambda sde: Ancestral(0.5),
    "AnalyticDPM": lambda sde: AnalyticDPM(times(sde)[:-1], torch.linspace(0.9, 0.2, 7)),
    "LearnedVariance": learned,
    "DPMSolverPP(1)": lambda sde: DPMSolverPP(1),
    "Multistep(1) around": lambda sde: Multistep(1, 0, AROUND),
    "TwoStage": lambda sde: TwoStage(0.4, AROUND),
    "Renoised": lambda sde: Renoised(DPMSolver(2)),
}


@every_sde
@pytest.mark.parametrize("name", MEMORYLESS)
def test_a_step_without_memory_has_three_parts(name, sde):
    """The flow, the process with eta, the flow again; noise is drawn on the middle part alone."""
    step, ts, score, eta = MEMORYLESS[name](sde), times(sde), mixture(sde), 0.7
    x, z = normal(4, 2), normal(8, 4, 2, seed=1)
    whole = sample(sde.reverse(score, Between(eta, LOW, HIGH)), x, ts, step, noise=Tape(z))
    flow, middle = sde.reverse(score, 0.0), sde.reverse(score, eta)
    y = sample(flow, x, ts[: NOISY.start + 1], step, noise=no_noise)
    y = sample(middle, y, ts[NOISY.start : NOISY.stop + 1], step, noise=Tape(z))
    near(whole, sample(flow, y, ts[NOISY.stop :], step, noise=no_noise), 1e-11)


@every_sde
@pytest.mark.parametrize(
    "step",
    [GaussianReference(AROUND), Multistep(3, 4, AROUND), Multistep(3, 0, AROUND), TwoStage(0.5, AROUND)],
    ids=str,
)
def test_gaussian_marginals_are_exact(step, sde):
    """Data that are `around`: p_t goes to p_s on any part of the grid, with noise on the middle."""
    p = sde.reverse(gaussian(sde), Between(1.3, LOW, HIGH))
    for ts in (times(sde), times(sde)[1:4], times(sde)[[0, -1]], times(sde)[[3, -1]]):
        start, A, V = probed(lambda x, noise, ts=ts: sample(p, x, ts, step, noise=noise))
        (a, v), (b, w) = ((sde.alpha(t), sde.alpha(t) ** 2 * STD**2 + sde.var(t)) for t in (ts[0], ts[-1]))
        near(start + A @ (a * MEAN), b * MEAN, 1e-10)
        near(v * A @ A.T + V, w * torch.eye(2, dtype=F64), 1e-10)
        inside = (LOW <= (-sde.log_snr(ts[:-1])).exp()) & ((-sde.log_snr(ts[:-1])).exp() <= HIGH)
        assert bool(V.any()) == bool(inside.any())


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 2), (2, 2), (2, 3), (3, 4)])
@pytest.mark.parametrize("final", [True, False])
def test_sa_solver_of_diffusers(predictor, corrector, final):
    """The loop of its SASolverScheduler with a tau that is switched on and off, on our noise levels in float64, with
    orders lowered at the end or not. (It integrates a line as UniPC with B(h) = h does.)
    """
    diffusers, sde = pytest.importorskip("diffusers"), VP()
    ts, n, tau, x = times(sde), 7, 0.8, normal(5, 2)
    p, orders = Problem(sde, mixture(sde)), {"predictor_order": predictor, "corrector_order": corrector}
    its = diffusers.SASolverScheduler(**orders, lower_order_final=final, tau_func=lambda t: taus[int(t)])
    its.set_timesteps(n)
    taus = {int(t): tau if i in range(7)[NOISY] else 0.0 for i, t in enumerate(its.timesteps)}
    its.sigmas, y, z = sde.sigma(ts) / sde.alpha(ts), x, []
    for i, t in enumerate(its.timesteps):
        z.append(torch.randn(5, 2, generator=torch.Generator().manual_seed(i), dtype=F64))
        y = its.step(p.eps(y, ts[i]), t, y, generator=torch.Generator().manual_seed(i)).prev_sample
    step = replace(SASolver(predictor, corrector, BH1()), taper=final)
    found = sample(sde.reverse(p.score, Between(tau, LOW, HIGH)), x, ts, step, noise=Tape(z[NOISY]))
    near(found, y, 1e-11)


def test_drift_and_diffusion():
    """Those of eta where the noise level is between, of the flow elsewhere, at one time and at one a sample."""
    sde, x = VP(), normal(3, 2)
    ts = times(sde)[[0, 4, 7]]
    parts = [sde.reverse(mixture(sde), eta) for eta in (0.0, 0.7, 0.0)]
    p = sde.reverse(mixture(sde), Between(0.7, LOW, HIGH))
    for t, q in zip(ts, parts):
        assert torch.equal(p.drift(x, t), q.drift(x, t)) and torch.equal(p.diffusion(t), q.diffusion(t))
    each = torch.stack([q.diffusion(t) for t, q in zip(ts, parts)])
    assert torch.equal(p.diffusion(ts), each) and each.count_nonzero() == 1
    assert p.eta_at(ts).tolist() == [0.0, 0.7, 0.0] and parts[1].eta_at(ts) == 0.7


AFFINE = AffineDPM(times(VP()), *torch.ones(3, 7, dtype=F64))
REFUSING = [DPMSolver(2), PNDM(), Flow(), DPMSolverAdaptive(), GottaGoFast(), ConsistentAnnealed(), AFFINE, Churn()]


@pytest.mark.parametrize("step", REFUSING, ids=lambda step: type(step).__name__)
def test_who_refuses(step):
    """Steps of the flow, of one eta, and those that choose their times, naming what they were given."""
    p = VP().reverse(mixture(VP()), Between(1.0, LOW, HIGH))
    with pytest.raises(ValueError, match=r"eta.* got (eta=)?Between\(eta=1.0, low=0.5, high=5.0\)$"):
        sample(p, normal(3, 2), times(VP()), step)


@dataclass(frozen=True)
class Cubic(SDE):
    """dx = -x^3 dt + dw, without noise levels."""

    def drift(self, x, t):
        return -(x**3)

    def diffusion(self, t):
        return torch.ones_like(t)


def test_bad_input():
    """Values, processes without noise levels, steps that need eta <= 1, and densities of samples without noise."""
    with pytest.raises(ValueError, match="^eta must be a finite number > 0 and <= 1000, got 0.0$"):
        Between(0.0)
    with pytest.raises(ValueError, match="^high must be a finite number >= 2, got 1.0$"):
        Between(1.0, 2.0, 1.0)
    with pytest.raises(ValueError, match=r"^eta must be a number on Cubic\(\), which has no noise level, got Between"):
        Cubic().reverse(mixture(VP()), Between())
    p, x = VP().reverse(mixture(VP()), Between(1.2, LOW, HIGH)), normal(3, 2)
    for step in (Ancestral(), Renoised()):
        with pytest.raises(ValueError, match="^eta must be a finite number <= 1, got 1.2$"):
            sample(p, x, times(VP()), step)
    with pytest.raises(ValueError, match="draws no noise from t = "):
        sampler_log_prob(p, x, torch.cat([torch.ones(1, dtype=F64), times(VP())]), EulerMaruyama())
    near(sample(p, x, times(VP())[:2], SASolver()), sample(VP().reverse(p.score, 0.0), x, times(VP())[:2], SASolver()))
