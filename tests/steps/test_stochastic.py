"""Steps of several calls for eta > 0: k-diffusion's functions, exactness, the same by two names, what is refused."""

import math
import re

import pytest
import torch
from made import of_k_diffusion
from papers import F64, MEAN, SDES, STD, Tape, gaussian, mixture, near, no_noise, normal, probed, times
from test_multistep import REFERENCE, check_line

from scoresde import EDM, VE, VP, Ancestral, Counted, DPMSolverPP, Flow, Langevin, RectifiedFlow, sample
from scoresde.steps import DPMSolver, DPMSolverPP2S, DPMSolverPPSDE, Line, Renoised, SingleStep, TwoStage

CLEAN = torch.zeros(1, dtype=F64)
three = pytest.mark.parametrize("sde", [VP(), EDM(T=30.0), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)


def of_theirs(name, sde, x, ts, draws, **options):
    """A function of k-diffusion on our noise levels, with these draws."""
    law, z = mixture(sde), iter(draws)

    def model(y, level):
        t = sde.time(-level[0].log())
        return law.denoise(sde.alpha(t) * y, t)

    run, levels = getattr(of_k_diffusion("sampling"), name), sde.sigma(ts) / sde.alpha(ts)
    options |= {"disable": True, "noise_sampler": lambda *_: next(z)}
    return sde.alpha(ts[-1]) * run(model, x / sde.alpha(ts[0]), levels, **options)


@three
@pytest.mark.parametrize("eta", [1.0, 0.6, 0.0])
@pytest.mark.parametrize(
    ("name", "inner"), [("sample_dpm_2_ancestral", DPMSolver(2)), ("sample_dpmpp_2s_ancestral", DPMSolverPP2S())]
)
def test_ancestral_of_k_diffusion(name, inner, eta, sde):
    """On seven unequal steps and the hop to sigma = 0, which is one call and draws nothing."""
    ts, x, z = torch.cat([times(sde), CLEAN]), normal(5, 2), normal(7, 5, 2, seed=1)
    law = Counted(mixture(sde))
    found = sample(sde.reverse(law, eta), x, ts, Renoised(inner), noise=Tape(z) if eta else no_noise)
    near(found, of_theirs(name, sde, x, ts, z.repeat(2, 1, 1), eta=eta), 1e-11)
    assert law.nfe == 15


@three
@pytest.mark.parametrize("r", [0.5, 0.7, 1.0])
def test_dpmpp_sde_of_k_diffusion(r, sde):
    """Of its two draws the second is that of the whole interval on one path: that of the first part, carried on by
    e^(-2 (1 - r) h), and that of the rest.
    """
    ts, x, z = torch.cat([times(sde), CLEAN]), normal(5, 2), normal(14, 5, 2, seed=1)
    ours, draws, lam = iter(z), [], sde.log_snr(ts[:-1]).tolist()
    for low, high in zip(lam, lam[1:]):
        h, first = high - low, next(ours)
        part = math.exp(-2 * (1 - r) * h - low - r * h) * math.sqrt(-math.expm1(-2 * r * h)) * first
        rest = math.exp(-high) * math.sqrt(-math.expm1(-2 * (1 - r) * h)) * next(ours) if r < 1 else 0
        draws += [first, (part + rest) / math.exp(-high) / math.sqrt(-math.expm1(-2 * h))]
    found = sample(sde.reverse(mixture(sde)), x, ts, DPMSolverPPSDE(r), noise=Tape(z))
    near(found, of_theirs("sample_dpmpp_sde", sde, x, ts, draws, r=r), 1e-11)


@every_sde
def test_the_same_by_two_names(sde):
    """Around DDIM, ancestral sampling is that of DDPM with eta; without noise, two stages are DPM-Solver++(2S)."""
    ts, x, z = times(sde)[:-1], normal(4, 2), normal(6, 4, 2, seed=1)
    for eta in (0.4, 0.0):
        p = sde.reverse(mixture(sde), eta)
        near(sample(p, x, ts, Renoised(Ancestral()), noise=Tape(z)), sample(p, x, ts, Ancestral(), noise=Tape(z)), 1e-9)
    near(sample(p, x, ts, TwoStage(), noise=no_noise), sample(p, x, ts, DPMSolverPP2S()), 1e-14)


@every_sde
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("c2", [0.3, 1.0])
def test_two_stages_are_exact_for_gaussian_data(c2, eta, sde):
    """Mean, factor and variance after one step or seven, around the data; and for data at a point."""
    for ts in (times(sde), times(sde)[[0, -1]]):
        check_line(sde, TwoStage(c2, REFERENCE), ts, MEAN, STD, eta)
        check_line(sde, TwoStage(c2), ts, MEAN, 0.0, eta)


@three
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_sampling_keeps_gaussian_marginals(eta, sde):
    """Around a step that solves their flow exactly, p_t goes to p_s in one step or seven."""
    p, step = sde.reverse(gaussian(sde), eta), Renoised(SingleStep(Line(0.7), REFERENCE))
    for ts in (times(sde), times(sde)[[0, -1]]):
        start, A, V = probed(lambda x, noise, ts=ts: sample(p, x, ts, step, noise=noise))
        (a, v), (b, w) = ((sde.alpha(t), sde.alpha(t) ** 2 * STD**2 + sde.var(t)) for t in (ts[0], ts[-1]))
        near(start + A @ (a * MEAN), b * MEAN, 1e-8)
        near(v * A @ A.T + V, w * torch.eye(2, dtype=F64), 1e-8)
        assert V[0, 0] > 0.01 * w


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Renoised(3), "step must be a predictor that takes the intervals of ts, such as Ancestral(), got 3"),
        (
            lambda: Renoised(Langevin()),
            "step must be a predictor that takes the intervals of ts, such as Ancestral(), got Langevin(step_size="
            "SNR(r=0.16), n=1), a corrector, which stays at its time: only `sample` takes one, beside a predictor",
        ),
        (
            lambda: Renoised(Flow()),
            "step must be a predictor that takes the intervals of ts, such as Ancestral(), got Flow(method=Heun()), "
            "which may choose sizes of its own: take EDMHeun() or DPMSolver(2) on the flow, Ancestral() on the SDE",
        ),
        (lambda: Renoised(DPMSolverPP(2)), "step must take any interval, as a method of one step does, got Multistep("),
        (lambda: TwoStage(0.0), "c2 must be a finite number > 0 and <= 1, got 0.0"),
        (lambda: TwoStage(0.5, 3), "around must be a Reference, got 3"),
    ],
)
def test_bad_values(make, said):
    """One clear error, naming the argument."""
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        make()


def test_where_ancestral_sampling_cannot_go():
    """For eta > 1."""
    with pytest.raises(ValueError, match="^eta must be a finite number <= 1, got 1.2$"):
        sample(VP().reverse(mixture(VP()), 1.2), normal(2, 2), times(VP()), Renoised())


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("inner", [Ancestral(), DPMSolver(2), DPMSolverPP2S()], ids=repr)
def test_where_a_process_has_noise_at_the_end(inner, eta):
    """To t = 0 of VE it goes by the step alone; and where u would be before 0, it goes there and back by the forward
    transition, with the variance sigma_s^2 - sigma_0^2.
    """
    sde, x, z = VE(0.05, 20.0), normal(5, 2), normal(2, 5, 2, seed=1)
    q, p = sde.reverse(mixture(sde), 0.0), sde.reverse(mixture(sde), eta)
    t, s, end = torch.tensor([0.6, math.log(1.1) / math.log(400), 0.0], dtype=F64)  # of sigma_s = 1.1 sigma_0
    assert sde.var(s) * (1 - eta**2 * (1 - sde.var(s) / sde.var(t))) < sde.var(end)
    on, last = (torch.stack([a, end]) for a in (t, s))
    near(sample(p, x, last, Renoised(inner), noise=no_noise), sample(q, x, last, inner), 1e-14)
    back = sample(q, x, on, inner) + (sde.var(s) - sde.var(end)).sqrt() * z[0]
    near(sample(p, x, torch.stack([t, s]), Renoised(inner), noise=Tape(z)), back, 1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_marginals_are_kept_where_a_process_has_noise_at_the_end(eta):
    """Around a step that solves the flow of Gaussian data exactly, to t = 0 and all the way, by four steps."""
    sde = VE(0.05, 20.0)
    p, step = sde.reverse(gaussian(sde), eta), Renoised(SingleStep(Line(0.7), REFERENCE))
    ts = torch.tensor([1.0, 0.4, 0.1, 0.02, 0.0], dtype=F64)
    start, A, V = probed(lambda x, noise: sample(p, x, ts, step, noise=noise))
    v, w = (STD**2 + sde.var(t) for t in (ts[0], ts[-1]))
    near(start + A @ MEAN, MEAN, 1e-8)
    near(v * A @ A.T + V, w * torch.eye(2, dtype=F64), 1e-8)
