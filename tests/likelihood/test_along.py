"""log p along the path that led to a sample: exact where the law is, and within its error of the law elsewhere."""

import math

import pytest
import torch

from scoresde import (
    VE,
    VP,
    Ancestral,
    Counted,
    EulerMaruyama,
    Langevin,
    RectifiedFlow,
    Reference,
    ReverseDiffusion,
    SASolver,
    SubVP,
    grid,
    iid,
    per_sample,
    sample,
)
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.lab.problems import DigitClasses, Modes
from scoresde.likelihood import sample_and_log_prob
from scoresde.noise import seeds
from scoresde.ode import SampleError
from scoresde.steps import Churn, GottaGoFast

F64 = torch.float64
PLANE = Gaussian(torch.tensor([0.4, -0.3], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
STEPS = [Ancestral(), Ancestral(1.0), EulerMaruyama(), ReverseDiffusion(), SASolver()]
SDES = [VP(), VE(0.02, 10.0), RectifiedFlow(T=0.99), SubVP()]


def noise(seed=0):
    return iid(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{type(step).__name__}{getattr(step, 'v', '')}")
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_nothing_is_left_where_q_is_the_law(sde, step):
    """However rough the steps: the gap is that of the prior, and does not move."""
    law = Modes(5, 0.1).law()
    ts, score = grid.log_snr(sde, 6), law.diffuse(sde)
    x = sde.prior((20, 2), noise(), F64)
    found = sample_and_log_prob(sde.reverse(score), x, ts, step, around=law, noise=noise(1))
    gap = sde.log_prior(x) - score.log_prob(x, ts[0])
    torch.testing.assert_close(found.log_p - score.log_prob(found.x, ts[-1]), gap, rtol=1e-9, atol=1e-9)
    assert (found.error < 1e-9).all()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{type(step).__name__}{getattr(step, 'v', '')}")
def test_it_is_the_density_within_its_error(step):
    """In 64 dimensions, with a control variate that knows the covariance only: at most twice the error that it tells
    in 95 %, and that is of the size of the true one. The theorem alone is 78 nats off on equal steps (`Ancestral`).
    """
    sde, law = VP(), DigitClasses().law()
    score = law.diffuse(sde)
    data = law.sample(3000, torch.Generator().manual_seed(1))
    ts = grid.reference(sde, 60, around=Reference.fit(data))
    x = sde.prior((100, *law.shape), noise(2), F64)
    found = sample_and_log_prob(sde.reverse(score), x, ts, step, around=Gaussian.fit(data), noise=noise(3))
    off = found.log_p - score.log_prob(found.x, ts[-1])
    rms, told = (float(v.square().mean().sqrt()) for v in (off, found.error))
    assert rms < 3.0 and 0.5 < told / rms < 2.0
    assert (off.abs() < 2 * found.error).float().mean() >= 0.9


@pytest.mark.parametrize("around", [None, Reference(0.2, 0.5), Gaussian(torch.zeros(2, dtype=F64), 4.0)], ids=str)
@pytest.mark.parametrize("step", [Ancestral(), Ancestral(1.0), Churn(Ancestral(1.0), churn=10.0)], ids=repr)
def test_the_error_falls_to_zero_whatever_q(step, around):
    """In two dimensions, where the size of noise is looked at over many steps. A forgotten trace, or |e|^2 of the wrong
    sign, would leave an error of size 1; noise that is too large for the SDE one of a half.
    """
    sde, law = VP(), Modes(5, 0.2).law()
    score, wrong = law.diffuse(sde), []
    for n in (64, 1024):
        ts, draws = grid.log_snr(sde, n), noise(4)
        x = sde.prior((400, 2), draws, F64)
        found = sample_and_log_prob(sde.reverse(score), x, ts, step, around=around, noise=draws)
        off = found.log_p - score.log_prob(found.x, ts[-1])
        wrong.append((float(off.mean().abs()), float(off.square().mean().sqrt())))
        assert (off.abs() < 2 * found.error).float().mean() > 0.8
    assert wrong[1][1] < 0.4 * wrong[0][1] and wrong[1][1] < 0.3
    assert wrong[1][0] < 0.06


def test_samples_and_calls():
    """The samples are those of `sample`, at one network call more, whether the step asks for the score where x is or
    elsewhere first.
    """
    sde = VP()
    ts, score = grid.log_snr(sde, 12), Counted(PLANE.diffuse(sde))
    for step, calls in ((Ancestral(), 13), (SASolver(), 13), (Churn(Ancestral(), 12.0), 24)):
        x = sde.prior((3, 2), noise(5), F64)
        want, before = sample(sde.reverse(PLANE.diffuse(sde)), x, ts, step, noise=noise(6)), score.nfe
        found = sample_and_log_prob(sde.reverse(score), x, ts, step, noise=noise(6))
        assert torch.equal(found.x, want) and found.nfe == score.nfe - before == calls


def test_a_sample_does_not_depend_on_its_batch():
    sde = VP()
    p, ts, x = sde.reverse(PLANE.diffuse(sde)), grid.log_snr(sde, 9), torch.randn(6, 2, dtype=F64)
    whole, part = (
        sample_and_log_prob(p, x[rows], ts, Ancestral(), noise=per_sample(seeds(1, 6)[rows]))
        for rows in (slice(0, 6), slice(3, 5))
    )
    torch.testing.assert_close(whole.log_p[3:5], part.log_p, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.error[3:5], part.error, rtol=1e-10, atol=1e-12)


def test_a_process_of_any_noise():
    """Variances that float32 cannot hold: what is left of the data at T is e^-50."""
    sde, law = VP(0.1, 200.0), PLANE
    ts, score = grid.log_snr(sde, 40), law.diffuse(sde)
    found = sample_and_log_prob(sde.reverse(score), sde.prior((50, 2), noise(8), F64), ts, Ancestral(), noise=noise(9))
    off = found.log_p - score.log_prob(found.x, ts[-1])
    assert off.isfinite().all() and (off.abs() < 3 * found.error).float().mean() > 0.9


def test_what_is_not_finite_is_named():
    """A log p that is not a number is not returned."""
    ts, law = grid.log_snr(VP(), 8), Gaussian(torch.full((2,), 1e200, dtype=F64), 0.1)
    with pytest.raises(SampleError, match="log p"):
        sample_and_log_prob(VP().reverse(PLANE.diffuse(VP())), X, ts, Ancestral(), around=law, noise=noise())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_of_states(dtype):
    """A state of half precision is carried in float32, and its log-density is that of what is returned, rounded."""
    sde = VP()
    ts, score = grid.log_snr(sde, 40), PLANE.diffuse(sde)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = sample_and_log_prob(sde.reverse(score), x, ts, Ancestral(), around=PLANE, noise=noise(7))
    assert found.x.dtype == dtype
    off = found.log_p - score.log_prob(found.x.double(), ts[-1])
    gap = sde.log_prior(x.double()) - score.log_prob(x.double(), ts[0])
    assert (off - gap).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)


P, TS, X = VP().reverse(PLANE.diffuse(VP())), grid.log_snr(VP(), 4), torch.zeros(2, 2, dtype=F64)
LINE = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1))


@pytest.mark.parametrize(
    "change, says",
    [
        ({"p": VP().reverse(P.score, 0.0)}, "eta must be 1, .*got 0"),
        ({"p": VP().reverse(P.score, 0.5)}, "eta must be 1, .*got 0.5"),
        ({"step": Langevin()}, "step must be a predictor"),
        ({"step": GottaGoFast()}, "step must be a predictor that takes the intervals"),
        ({"ts": TS[1:]}, "ts must begin at T = 1"),
        ({"ts": torch.tensor([1.0, 0.5, 0.0])}, "singular where sigma = 0"),
        ({"around": LINE}, r"around must be a law of shape \(2,\)"),
        ({"around": 1.0}, "around must be a Reference"),
        ({"prior": LINE}, r"prior must be a law of shape \(2,\)"),
        ({"x": X[0]}, "x must be a non-empty"),
    ],
    ids=lambda v: v if isinstance(v, str) else next(iter(v)),
)
def test_bad_input_is_refused_by_name(change, says):
    with pytest.raises(ValueError, match=says):
        sample_and_log_prob(**({"p": P, "x": X, "ts": TS, "step": Ancestral()} | change))


def test_the_line_says_what_it_is():
    found = sample_and_log_prob(P, X, TS, Ancestral(), noise=noise())
    assert "nats/dim on average over 2 samples (-log p/d of the density at t = 0.001" in str(found)
    assert str(found).endswith("5 network calls")
    assert math.isnan(sample_and_log_prob(P, X, TS[[0, -1]], Ancestral(), noise=noise()).error[0])
