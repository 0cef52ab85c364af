"""The affine step of largest likelihood: DDPM's with the exact score, and the same with one that is off by a factor."""

import math

import pytest
import torch

from scoresde import VE, VP, Ancestral, Counted, RectifiedFlow, grid, iid, sample
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.lab import gaussian_law_of, law_of
from scoresde.likelihood import sampler_log_prob
from scoresde.steps import AffineDPM, AnalyticDPM, Calibrated

F64 = torch.float64
MODES = GaussianMixture(
    torch.tensor([0.7, 0.3]), torch.tensor([[-1.0], [1.0]], dtype=F64), torch.tensor([0.01, 0.02], dtype=F64)
)
PLANE = Gaussian(torch.tensor([0.4, -0.3], dtype=F64), torch.tensor([0.5, 0.05], dtype=F64))


def G(seed):
    return torch.Generator().manual_seed(seed)


def noise(seed=100):
    return iid(G(seed))


@pytest.mark.parametrize("sde", [VP(), VE(0.02, 5.0), RectifiedFlow(T=0.99)], ids=lambda sde: type(sde).__name__)
def test_with_the_exact_score_it_is_ddpm_with_the_optimal_variance(sde):
    """Up to the chance of 400,000 numbers, which the regression knows the law by."""
    p, ts, x_0 = sde.reverse(MODES.diffuse(sde)), grid.log_snr(sde, 8), MODES.sample(400_000, G(9))
    a, b, c = AffineDPM.fit(p, x_0, ts, noise()).line(p, ts[:-1], ts[1:])
    A, B, C = AnalyticDPM.fit(p, x_0, ts, noise()).line(p, ts[:-1], ts[1:])
    x = MODES.diffuse(sde)
    for k, t in enumerate(ts[:-1]):
        y = x.sample(1000, t, G(1))
        off = (a[k] - A[k]) * y + (b[k] - B[k]) * x(y, t)
        assert off.square().mean().sqrt() < 0.02 * C[k]
    torch.testing.assert_close(c, C, rtol=0.06, atol=0)


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_score_of_the_wrong_size_is_mended(factor):
    """The kernels are the same, number for number; with Ho et al.'s steps such a score is far off."""
    sde, ts = VP(), grid.log_snr(VP(), 20)
    score, x_0 = MODES.diffuse(sde), MODES.sample(2000, G(0))
    right, wrong = (sde.reverse(s) for s in (score, lambda x, t: factor * score(x, t)))
    truth = MODES.marginal(sde, ts[-1])
    steps = [AffineDPM.fit(p, x_0, ts, noise()) for p in (right, wrong)]
    torch.testing.assert_close(steps[0].a, steps[1].a, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(steps[0].b, factor * steps[1].b, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(steps[0].c, steps[1].c, rtol=1e-9, atol=1e-12)
    mended, usual = (law_of(wrong, ts, step).distances(truth)["kl"] for step in (steps[1], Ancestral()))
    assert mended < 0.02 < usual / 5


def test_no_other_affine_step_has_a_larger_bound():
    """-log p by one path is least in every one of a, b and c."""
    sde = VP()
    ts, p = grid.log_snr(sde, 6), sde.reverse(lambda x, t: 0.9 * PLANE.diffuse(sde)(x, t))
    x = PLANE.marginal(sde, sde.t_min).sample(4000, G(0))
    best = AffineDPM.fit(p, PLANE.sample(20_000, G(1)), ts, noise())

    def bound(step):
        return -float(sampler_log_prob(p, x, ts, step, noise=noise(2)).elbo.mean())

    least = bound(best)
    for name, size in (("a", 0.01), ("b", 0.02), ("c", 0.03)):
        for way in (-1, 1):
            tables = {k: getattr(best, k).clone() for k in "abc"}
            tables[name][2] *= 1 + way * 3 * size
            assert bound(AffineDPM(ts, **tables)) > least


def test_one_call_an_interval_and_no_noise_at_the_end():
    sde = VP()
    ts, score = grid.uniform(sde, 5, end=0.0), Counted(MODES.diffuse(sde))
    p = sde.reverse(score)
    step = AffineDPM.fit(p, MODES.sample(100), ts, noise())
    assert score.nfe == 5 and step.c[-1] == 0 and (step.c[:-1] > 0).all()
    x = sample(p, torch.randn(4, 1, dtype=F64), ts, step, noise=noise())
    assert x.isfinite().all() and score.nfe == 10 and repr(step) == "AffineDPM(fitted on 5 intervals)"


def test_where_state_and_score_are_one_direction():
    """Of isotropic data about 0 there is no telling a from b, but the kernel is DDPM's."""
    sde, law = VP(), Gaussian(torch.zeros(3, dtype=F64), 0.3)
    p, ts = sde.reverse(law.diffuse(sde)), grid.log_snr(sde, 10)
    x_0 = law.sample(50_000, G(0))
    found, want = (
        gaussian_law_of(p, ts, step)
        for step in (AffineDPM.fit(p, x_0, ts, noise()), AnalyticDPM.fit(p, x_0, ts, noise()))
    )
    torch.testing.assert_close(found.covariance, want.covariance, rtol=0.02, atol=1e-4)


def test_a_score_that_tells_nothing():
    """Of 0 everywhere the regression on x alone is left: Gaussian data about 0 lose nothing by it."""
    sde, law = VP(), Gaussian(torch.zeros(2, dtype=F64), 0.3)
    ts, x_0 = grid.log_snr(sde, 10), law.sample(20_000, G(0))
    found, want = (
        AffineDPM.fit(sde.reverse(score), x_0, ts, noise()) for score in (lambda x, t: 0 * x, law.diffuse(sde))
    )
    torch.testing.assert_close(found.c, want.c, rtol=1e-9, atol=0)
    score_of_x = -1 / (0.3 * sde.alpha(ts[:-1]) ** 2 + sde.var(ts[:-1]))
    torch.testing.assert_close(found.a, want.a + want.b * score_of_x, rtol=1e-9, atol=0)


def test_tables_of_any_kind_are_kept_as_float64():
    """A list, or numbers of float32: the same step."""
    step = AffineDPM(TS.tolist(), *torch.ones(3, 3, dtype=F64).tolist())
    other = AnalyticDPM(TS.tolist(), [1.0] * 4)
    rule = Calibrated(TS.tolist(), [0.1] * 4)
    told = (step.ts, step.a, step.b, step.c, other.ts, other.second_moment, rule.ts, rule.sizes)
    assert {v.dtype for v in told} == {F64}
    sample(P, torch.zeros(1, 1), TS, step, noise=noise()), sample(P, torch.zeros(1, 1), TS, other, noise=noise())


P, TS = VP().reverse(MODES.diffuse(VP())), grid.log_snr(VP(), 3)
FITTED = AffineDPM(TS, *torch.ones(3, 3))


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: AffineDPM(TS, *torch.ones(3, 2)), "a must have one number for each of the 3 intervals"),
        (lambda: AffineDPM(TS[:1], *torch.ones(3, 0)), "ts must be"),
        (lambda: AffineDPM(TS.flip(0), *torch.ones(3, 3)), "ts must strictly decrease"),
        (lambda: AffineDPM(TS, *torch.full((3, 3), math.nan)), "a must be finite"),
        (lambda: AffineDPM(TS, *-torch.ones(3, 3)), "c must be finite, and at least 0"),
        (lambda: AffineDPM.fit(VP().reverse(P.score, 0.5), MODES.sample(9), TS), "eta must be 1"),
        (lambda: AffineDPM.fit(VP().reverse(lambda x, t: x / 0), MODES.sample(9), TS), "score must be finite on the"),
        (lambda: sample(P, torch.zeros(1, 1), TS[[0, 2]], FITTED), "t and s must be an interval that was fitted"),
        (lambda: sample(P, torch.zeros(1, 1), grid.uniform(VP(), 3), FITTED), "t and s must be an interval"),
        (lambda: sample(VP().reverse(P.score, 0.0), torch.zeros(1, 1), TS, FITTED), "eta must be 1"),
        (lambda: AffineDPM.fit(P, MODES.sample(9), TS.flip(0)), "ts must strictly decrease"),
        (lambda: AffineDPM.fit(P, torch.ones(9), TS), "x_0 must be"),
    ],
)
def test_bad_input_is_refused_by_name(call, says):
    with pytest.raises(ValueError, match=says):
        call()
