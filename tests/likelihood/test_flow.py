"""Likelihoods against closed forms, and their error budgets against the errors."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, kl_divergence

from scoresde import (
    EDM,
    VE,
    VP,
    Cosine,
    Counted,
    Quadrature,
    Quantized,
    RectifiedFlow,
    Reference,
    ScoreModel,
    SubVP,
    exact,
    iid,
    log_prob,
    per_sample,
)
from scoresde.lab.problems import DigitClasses, Modes
from scoresde.likelihood import (
    Adams,
    AsNeeded,
    Decoded,
    Exact,
    Hadamard,
    Hutchinson,
    HutchPP,
    Likelihood,
    RungeKutta,
    TruncatedNormal,
    Uniform,
    decode,
    encode,
    prior_mismatch,
    tightest,
)
from scoresde.likelihood.coordinates import Coordinates
from scoresde.model import Karras, Velocity
from scoresde.nn import MLP
from scoresde.ode import Dopri5, Tsit5
from scoresde.shapes import as_time

F64 = torch.float64
ONE = torch.ones(9, dtype=F64)
SDES = [VP(), SubVP(), VE(0.05, 20.0), Cosine(), RectifiedFlow(), EDM(T=30.0)]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
TIGHT = Dopri5(1e-8, 1e-8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=3):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def time(t):
    return torch.tensor(t, dtype=F64)


def mixture(*shape, low=0.1):
    """Two components with their own diagonal variances."""
    d = math.prod(shape)
    means = torch.stack([torch.full(shape, -0.8, dtype=F64), torch.linspace(-1, 1, d, dtype=F64).view(shape)])
    return exact.GaussianMixture(torch.tensor([0.4, 0.6]), means, low + torch.rand(2, d, generator=generator(1)))


def moments(d):
    """A mean and a full covariance."""
    L = 0.3 * normal(d, d) + 0.4 * torch.eye(d, dtype=F64)
    return torch.linspace(-1, 1, d, dtype=F64), L @ L.T + 0.05 * torch.eye(d, dtype=F64)


def correlated(*shape):
    """A Gaussian of that shape with them."""
    m, C = moments(math.prod(shape))
    return exact.GaussianMixture.from_covariances(torch.ones(1), m.view(1, *shape), C[None])


def flow(law, sde):
    return sde.reverse(law.diffuse(sde), eta=0)


def at_end(law, sde, n, seed=0):
    """n samples of the law at t_min."""
    return law.diffuse(sde).sample(n, sde.t_min, generator(seed))


X_3 = normal(4, 3)


# Gaussian data, in closed form


@every_sde
@pytest.mark.parametrize(
    ("method", "shape"), [(Dopri5(1e-8, 1e-8), (1, 2, 2)), (Tsit5(1e-8, 1e-8), (3,))], ids=["dopri5", "tsit5"]
)
def test_gaussian_data(sde, method, shape):
    """With p_T for a prior log p is the log-density at t_min, to 1e-6 bits/dim, far from data too."""
    law = correlated(*shape)
    x = torch.cat([at_end(law, sde, 3), 2 + normal(1, *shape)])
    found = log_prob(flow(law, sde), x, how=Quadrature(method, Exact(), prior=law.marginal(sde, sde.T)))
    d = math.prod(shape)
    m, C = moments(d)
    alpha, var = sde.alpha(sde.t_min), sde.var(time(sde.t_min))
    want = MultivariateNormal(alpha * m, alpha**2 * C + var * torch.eye(d, dtype=F64)).log_prob(x.flatten(1))
    assert found.log_p.dtype == F64 and found.d == d and found.t == sde.t_min and found.discrete is None
    torch.testing.assert_close(found.log_p, want, rtol=0, atol=1e-6 * d * math.log(2))
    torch.testing.assert_close(found.values, -want / d, rtol=0, atol=1e-6 * math.log(2))
    assert torch.equal(found.probe_error, torch.zeros_like(want))


@every_sde
@pytest.mark.parametrize("part", [0.3, 0.7])
def test_density_at_any_time(sde, part):
    """log p at t is that of the law at t, whatever t."""
    law = correlated(3)
    r = -float(sde.log_snr(sde.T)) * part + float(sde.log_snr(max(sde.t_min, 1e-3))) * -(1 - part)
    t = float(sde.time(time(-r)))
    x = law.diffuse(sde).sample(3, t, generator())
    found = log_prob(flow(law, sde), x, how=Quadrature(TIGHT, t=t, prior=law.marginal(sde, sde.T)))
    torch.testing.assert_close(found.log_p, law.diffuse(sde).log_prob(x, t), rtol=0, atol=1e-6)
    assert found.t == t


@every_sde
def test_default_prior(sde):
    """The prior is N(0, sigma_T^2) unless given: the value is off by what the two say of x_T, where the flow leads."""
    law = correlated(3)
    x = at_end(law, sde, 4)
    found = log_prob(flow(law, sde), x, how=Quadrature(TIGHT))
    x_T = gaussian_map(sde, x)
    prior = MultivariateNormal(torch.zeros(3, dtype=F64), sde.var(time(sde.T)) * torch.eye(3, dtype=F64))
    want = law.diffuse(sde).log_prob(x, sde.t_min) + prior.log_prob(x_T) - law.diffuse(sde).log_prob(x_T, sde.T)
    torch.testing.assert_close(found.log_p, want, rtol=0, atol=2e-6)


def gaussian_map(sde, x, t=None):
    """The flow of correlated(3) from t (t_min) to T: alpha_T m + C_T^(1/2) C_t^(-1/2) (x - alpha_t m)."""
    (m, C), t = moments(3), time(sde.t_min if t is None else t)
    values, U = torch.linalg.eigh(C)
    scale = [(sde.alpha(s) ** 2 * values + sde.var(s)).sqrt() for s in (time(sde.T), t)]
    return sde.alpha(sde.T) * m + (x - sde.alpha(t) * m) @ U @ torch.diag(scale[0] / scale[1]) @ U.T


@every_sde
@pytest.mark.parametrize("t", [None, 0.3])
def test_prior_mismatch_in_closed_form(sde, t):
    """KL(N || prior) for the Gaussian N with the moments of x_T = a x_t + v^(1/2) z, if x are samples of x_t: for the
    default prior and a given one, nan for one sample and for a prior of several components.
    """
    t, law = sde.t_min if t is None else t * sde.T, correlated(3)
    x, eye = law.diffuse(sde).sample(40, t, generator()), torch.eye(3, dtype=F64)
    a = float(sde.alpha(sde.T) / sde.alpha(t))
    v = float(sde.var(time(sde.T)) - a**2 * sde.var(time(t)))
    N = MultivariateNormal(a * x.mean(0), a**2 * torch.cov(x.T, correction=0) + v * eye)
    default = MultivariateNormal(torch.zeros(3, dtype=F64), sde.var(time(sde.T)) * eye)
    m, C = torch.tensor([0.3, -0.2, 1.0], dtype=F64), sde.var(time(sde.T)) * (eye + 0.3)
    given_ = exact.GaussianMixture.from_covariances(torch.ones(1), m[None], C[None])
    for prior, law_T in ((None, default), (given_, MultivariateNormal(m, C))):
        want = float(kl_divergence(N, law_T))
        assert prior_mismatch(sde, x, time(t), prior) == pytest.approx(want, rel=1e-6, abs=1e-12)
        found = log_prob(flow(law, sde), x, how=Quadrature(Adams(12), t=t, prior=prior))
        assert found.prior_mismatch == pytest.approx(want, rel=1e-6, abs=1e-12)
        assert found.budget["prior"] == pytest.approx(want / 3, rel=1e-6, abs=1e-12)
    assert math.isnan(prior_mismatch(sde, x[:1], time(t)))
    two = log_prob(flow(law, sde), x, how=Quadrature(Adams(12), t=t, prior=mixture(3).marginal(sde, sde.T)))
    assert math.isnan(two.prior_mismatch) and two.log_p.isfinite().all()


@pytest.mark.parametrize("n", [2, 5, 8, 9, 30])
@pytest.mark.parametrize("prior", ["default", "isotropic", "diagonal", "full"])
def test_prior_mismatch_by_samples_or_by_dimensions(n, prior):
    """With fewer samples than dimensions, as many, or more, it is the divergence of the moments written out with the
    d x d covariance, to 1e-10, for each kind of prior.
    """
    sde, d = VP(0.1, 4.0), 8
    x, t, T = 2 + 3 * normal(n, 2, 4, seed=n), time(0.2), as_time(sde.T)
    a, v = (float(c) for c in sde.transition(T, t))
    C = a**2 * torch.cov(x.flatten(1).T, correction=0) + v * torch.eye(d, dtype=F64)
    covariance = {"isotropic": time(0.7), "diagonal": torch.linspace(0.5, 2, d, dtype=F64), "full": moments(d)[1]}
    given_ = None if prior == "default" else exact.Gaussian(normal(2, 4), covariance[prior])
    law = given_ or exact.Gaussian(torch.zeros(2, 4), sde.var(T))
    want = law.kl_from(a * x.flatten(1).mean(0), C)
    assert prior_mismatch(sde, x, t, given_) == pytest.approx(want, rel=1e-10)
    assert prior_mismatch(sde, x.float(), t, given_) == pytest.approx(want, rel=1e-5)


def test_prior_mismatch_in_many_dimensions():
    """Two samples of 100,000 dimensions, whose covariance would take 80 gigabytes: one eigenvalue of it is v + a^2
    |x - y|^2/4 and all others are v.
    """
    sde, d, t = VP(0.1, 4.0), 100_000, time(0.2)
    x, over = normal(2, d), float(sde.var(as_time(sde.T)))
    a, v = (float(c) for c in sde.transition(as_time(sde.T), t))
    lone = v + a**2 * float((x[0] - x[1]).square().sum()) / 4
    square = lone + (d - 1) * v + a**2 * float(x.mean(0).square().sum())
    want = (square / over - d + d * math.log(over) - math.log(lone) - (d - 1) * math.log(v)) / 2
    assert prior_mismatch(sde, x, t) == pytest.approx(want, rel=1e-10)
    assert prior_mismatch(sde, x, as_time(sde.T)) == math.inf  # no noise is added: a singular covariance


@pytest.mark.parametrize(
    ("args", "named"),
    [((X_3 * math.nan, time(0.1)), "x"), ((X_3, time(2.0)), "t"), ((X_3, time(0.1), mixture(2)), "prior"),
     ((X_3, time(0.1), 3), "prior")],
)  # fmt: skip
def test_prior_mismatch_refuses(args, named):
    """Samples, times and laws that are none of its own."""
    with pytest.raises(ValueError, match=f"^{named} must "):
        prior_mismatch(VP(), *args)


@every_sde
def test_fitted_priors(sde):
    """N(alpha_T m, alpha_T^2 C + sigma_T^2 I) with the moments of the data: C whole by `Gaussian.fit`, and c^2 I with
    the mean of its diagonal by `Reference.fit`.
    """
    data = correlated(1, 2, 2).sample(30, generator())
    rows, x, eye = data.flatten(1), float(sde.sigma(sde.T)) * normal(5, 1, 2, 2), torch.eye(4, dtype=F64)
    alpha, C = sde.alpha(sde.T), torch.cov(rows.T, correction=0)
    priors = exact.Gaussian.fit(data).marginal(sde, sde.T), Reference.fit(data).prior(sde, (1, 2, 2))
    for prior, inner in zip(priors, (C, C.trace() / 4 * eye)):
        want = MultivariateNormal(alpha * rows.mean(0), alpha**2 * inner + sde.var(time(sde.T)) * eye)
        torch.testing.assert_close(prior.log_prob(x), want.log_prob(x.flatten(1)), rtol=1e-10, atol=0)


@pytest.mark.parametrize("fit", ["reference", "gaussian"])
def test_fitted_prior_of_gaussian_data(fit):
    """With the moments of the law's samples the prior costs less than the default by ten times."""
    sde, law = VP(0.1, 6.0), correlated(3)
    known, x = law.sample(4000, generator(5)), at_end(law, sde, 50)
    priors = {
        "reference": Reference.fit(known).prior(sde, (3,)),
        "gaussian": exact.Gaussian.fit(known).marginal(sde, sde.T),
    }
    want = law.diffuse(sde).log_prob(x, sde.t_min)
    off = [
        float((log_prob(flow(law, sde), x, how=Quadrature(prior=p)).log_p - want).mean()) for p in (None, priors[fit])
    ]
    assert abs(off[1]) < abs(off[0]) / 10


# how far the density at t is from the data's


def first_order(sde, t, law, x):
    """end_bias, and log p_t - log p_0, both at x."""
    found = log_prob(flow(law, sde), x, how=Quadrature(Adams(12), Exact(), t))
    return found.end_bias, law.diffuse(sde).log_prob(x, t) - law.log_prob(x)


# with sigma^2/alpha^2 at the earlier of two times: sub-VP and rectified flow scale x by more than sigma^2
EARLY = [(VP(), 2e-5), (SubVP(), 4e-6), (Cosine(), 2e-5), (RectifiedFlow(), 4e-6), (EDM(T=30.0), 2e-5)]


@pytest.mark.parametrize(("sde", "v"), EARLY, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("law", [correlated(3), mixture(2, 2)], ids=["gaussian", "mixture"])
def test_end_bias_is_of_first_order(sde, v, law):
    """end_bias is log p_t - log p_0 at the same x to 1 %, and their relative disagreement halves where log alpha and
    sigma^2 do.
    """
    x, disagree = law.sample(20, generator()), []
    for part in (1, 4 if v < 1e-5 else 2):
        t = float(sde.time(time(-math.log(v / part) / 2)))
        found, want = first_order(sde, t, law, x)
        disagree.append(float((found - want).norm() / want.norm()))
    assert disagree[0] < 1e-2
    assert disagree[0] / disagree[1] == pytest.approx(2, abs=0.2)


def test_end_bias_of_variance_exploding():
    """VE begins at sigma_min: log p_t - log p_0 counts from the data without noise."""
    law, disagree = correlated(3), []
    x = law.sample(20, generator())
    for v in (2e-5, 1e-5):
        found, want = first_order(VE(v**0.5, 20.0), 0.0, law, x)
        disagree.append(float((found - want).norm() / want.norm()))
    assert disagree[0] < 1e-2 and disagree[0] / disagree[1] == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("law", [correlated(3), mixture(2, 2)], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("sde", [VP(), EDM(T=30.0)], ids=lambda sde: type(sde).__name__)
def test_extrapolation_to_zero(sde, law):
    """With p_T for a prior, log p at t differs from that at 0 in proportion to sigma^2, and what is extrapolated to 0
    in proportion to its square; there it is ten times as near at least.
    """
    x, off = law.sample(20, generator()), []
    for v in (4e-4, 2e-4, 1e-4):
        t = float(sde.time(time(-math.log(v) / 2)))
        how = Quadrature(TIGHT, Exact(), t, law.marginal(sde, sde.T))
        found, want = log_prob(flow(law, sde), x, how=how), law.log_prob(x)
        assert found.noise == pytest.approx(v**0.5, rel=1e-9) and f"{v**0.5:.2g}" in found.says
        off.append((float((found.log_p - want).norm()), float((found.at_zero - want).norm())))
    for (a, b), (c, d) in zip(off, off[1:]):
        assert a / c == pytest.approx(2, abs=0.1) and b / d == pytest.approx(4, abs=0.4)
    assert off[-1][1] < off[-1][0] / 10


def test_end_bias_by_probes():
    """With an estimated trace it is that of the estimate at the first node, in which the probe that lasts counts half
    as much as the other, and so unbiased.
    """
    law, z = mixture(2, 2), normal(2, 4, 2, 2, seed=8)
    x = law.sample(4, generator())

    def bias(trace, *draws):
        draws = iter([*draws, *[z[0]] * 100])
        how = Quadrature(Adams(12), trace)
        return log_prob(flow(law, VP()), x, how=how, noise=lambda *_: next(draws)).end_bias

    apart = [bias(Hutchinson(1), one) for one in z]
    torch.testing.assert_close(bias(Hutchinson(2), *z), (2 * apart[0] + apart[1]) / 3, rtol=1e-10, atol=1e-12)
    assert (apart[0] - apart[1]).abs().max() > 1e-6


# mixtures, within the budget


@pytest.mark.parametrize("shape", [(2,), (16,), (1, 4, 5), (256,), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("sde", [VP(), VE(0.05, 20.0)], ids=lambda sde: type(sde).__name__)
def test_mixtures_within_the_budget(sde, shape):
    """The mean is off by no more than the solver error and three standard errors of the probes, and so are 95 % of the
    values, where there are probes enough to know their spread: two tell it roughly, and 80 % must do.
    """
    law = mixture(*shape)
    x = at_end(law, sde, 60)
    around = Reference(float(x.mean()), float(x.std()))
    want = law.diffuse(sde).log_prob(x, sde.t_min)
    for trace, share in ((None, 0.95 if law.d <= 16 else 0.8), (Hutchinson(8), 0.95)):
        how = Quadrature(Adams() if trace else None, trace, prior=law.marginal(sde, sde.T))
        found = log_prob(flow(law, sde), x, around=around, how=how, noise=iid(generator(2)))
        off, budget = found.log_p - want, found.solver_error + 3 * found.probe_error
        assert float((off.abs() <= budget).double().mean()) >= share
        probes = 3 * found.budget["probes"] * found.d
        assert abs(float(off.mean())) <= float(found.solver_error.mean()) + probes
        assert float(off.square().mean()) <= float(budget.square().mean())
        assert float(budget.mean()) < 0.05 * found.d


class Wavy:
    """The exact score, and beside it a wave in the noise level."""

    def __init__(self, score, sde, size, rate):
        self.score, self.sde, self.size, self.rate = score, sde, size, rate

    def __call__(self, x, t):
        lam, sigma = (
            c.view(-1, *[1] * (x.ndim - 1)) if c.ndim else c for c in (self.sde.log_snr(t), self.sde.sigma(t))
        )
        return self.score(x, t) + self.size * (self.rate * lam + 2 * x / (sigma**2 + 0.1).sqrt()).sin() / sigma


@pytest.mark.parametrize("rate", [2.0, 10.0])
def test_rough_scores_within_the_budget(rate):
    """Where a score changes faster with the noise level than 20 steps can follow, Adams' error is far above what it
    says, for all samples to the same side or not; by default all are refined, and the error is within what is said.
    """
    sde, law = VP(), mixture(20)
    x, trace = at_end(law, sde, 24), Exact()
    p, around = sde.reverse(Wavy(law.diffuse(sde), sde, 0.05, rate), 0.0), Reference(float(x.mean()), float(x.std()))
    value = lambda method: log_prob(p, x, around=around, how=Quadrature(method, trace))  # noqa: E731
    truth, few, found = value(Dopri5(1e-7, 1e-7)).log_p, value(Adams()), value(None)
    share = lambda found: float(((found.log_p - truth).abs() <= found.solver_error).double().mean())  # noqa: E731
    assert share(few) < 0.6 and (few.solver_error > 0.005 * 20).all()
    assert share(found) >= 0.95 and ((found.log_p - truth).abs() <= 2 * found.solver_error).all()
    assert float((found.log_p - truth).square().mean()) < float((few.log_p - truth).square().mean()) / 100
    assert found.nfe > 3 * few.nfe


def test_an_error_that_dominates_is_said():
    """Where the solver's error is the largest of those that more work would lessen, it says so."""
    sde, law = VP(), mixture(20)
    x = at_end(law, sde, 24)
    p = sde.reverse(Wavy(law.diffuse(sde), sde, 0.3, 10.0), 0.0)
    said = [str(log_prob(p, x, how=Quadrature(method, Exact()))) for method in (Adams(12), Dopri5(1e-5, 1e-5))]
    assert ["dominates" in text for text in said] == [True, False]


def test_choice_of_defaults():
    """Exact and adaptive up to 16 dimensions; two fresh probes at each of Adams' 22 calls above, where they suffice."""
    for d in (16, 17):
        law = exact.Gaussian(torch.zeros(d), 0.4)
        score = Counted(law.diffuse(VP()))
        found = log_prob(VP().reverse(score, 0.0), law.sample(3, generator()))
        assert found.nfe == score.nfe
        assert found.products == found.nfe * (16 if d == 16 else 2) and (found.nfe == 22) == (d == 17)


@pytest.mark.parametrize("method", [Dopri5(1e-3, 1e-3), Adams(12), RungeKutta(2)], ids=repr)
@pytest.mark.parametrize("trace", [Exact(), Hutchinson(3), HutchPP(2)], ids=repr)
def test_calls_are_counted(method, trace):
    """nfe is the number of network calls, of all draws and of a decoder too; products is nodes times the trace's."""
    law = mixture(4)
    score = Counted(law.diffuse(VP()))
    q, x = VP().reverse(score, 0.0), law.sample(3, generator())
    how = Quadrature(method, trace)
    found = log_prob(q, x, how=how)
    assert found.nfe == score.nfe and found.products == found.nfe * trace.products(4)
    data, score.nfe = Quantized(17, -4.0, 4.0), 0
    grey = (x * 2).round().clamp(-8, 8) / 2
    draws = 2 if isinstance(trace, Exact) else 1
    found = log_prob(q, grey, Decoded(data, draws), how=how)
    assert found.nfe == score.nfe and found.products == (found.nfe - draws) * trace.products(4)


@pytest.mark.parametrize("method", [Dopri5(1e-3, 1e-3), Adams(12), RungeKutta(2)], ids=repr)
def test_coordinates_are_computed_once_a_node(method):
    """The time of a node is asked of the process once, and once more at each end: for an SDE of one's own each answer
    is a bisection.
    """
    asked = []

    class Asked(VP):
        def time(self, log_snr):
            asked.append(log_snr)
            return super().time(log_snr)

    sde, law = Asked(), mixture(4)
    score = Counted(lambda x, t: law.diffuse(VP())(x, t))
    log_prob(sde.reverse(score), law.sample(3, generator()), how=Quadrature(method, Exact()))
    assert len(asked) == score.nfe + 2


# what a value may not depend on


AROUND = {
    "unit": (0.0, 1.0),
    "narrow": (0.7, 0.2),
    "wide": (-0.2, 4.0),
    "late bends": (0.1, 0.7, 0.3, 1.0),
    "early bends": (0.1, 0.7, 0.001, 30.0),
    "mean image": (torch.tensor([[0.3, -1.0], [0.0, 2.0]], dtype=F64), 0.5),
}


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("sde", [VP(), VE(0.05, 20.0)], ids=lambda sde: type(sde).__name__)
def test_coordinates_do_not_matter(sde, name, monkeypatch):
    """Mean, scale and the two bends of the clock change no value beyond the solver's error."""
    law, (mean, std, *bends) = mixture(2, 2), AROUND[name]
    for bend, value in zip(("LOW", "HIGH"), bends):
        monkeypatch.setattr(f"scoresde.likelihood.coordinates.{bend}", value)
    x, prior = at_end(law, sde, 5), law.marginal(sde, sde.T)
    want = law.diffuse(sde).log_prob(x, sde.t_min)
    run = lambda method: log_prob(  # noqa: E731
        flow(law, sde), x, around=Reference(mean, std), how=Quadrature(method, prior=prior)
    )
    torch.testing.assert_close(run(TIGHT).log_p, want, rtol=0, atol=4e-6)
    loose = run(Dopri5(1e-6, 1e-6))
    assert ((loose.log_p - want).abs() <= 2 * loose.solver_error + 1e-6).all()


@every_sde
@pytest.mark.parametrize("mean", [0.3, torch.tensor([0.3, -1.2], dtype=F64)], ids=["number", "array"])
@pytest.mark.parametrize("grain", [math.inf, 0.002])
def test_coordinates_are_a_change_of_variables(sde, mean, grain):
    """y -> x -> y, u -> t -> u and r = sigma/alpha are inverse to each other, dlambda/du is the derivative, and
    log_volume is that of x by y.
    """
    of = Coordinates(sde, Reference(mean, 0.6), normal(3, 2), grain)
    ts = torch.linspace(0, 1, 7, dtype=F64) * (0.98 * sde.T - max(sde.t_min, 1e-3)) + max(sde.t_min, 1e-3)
    for t in ts:
        x, u = normal(3, 2), of.u(t)
        at = of.at(u)
        y = of.y(x, at, t)
        torch.testing.assert_close(of.x(y, at), x, rtol=1e-9, atol=1e-9)
        assert float(at.t) == pytest.approx(float(t), rel=1e-8)
        torch.testing.assert_close(at.alpha, sde.alpha(at.t), rtol=1e-12, atol=0)
        assert float(at.S**2) == pytest.approx(0.36 + float(sde.var(t) / sde.alpha(t) ** 2), rel=1e-9)
        torch.testing.assert_close(y, (x / sde.alpha(t) - mean) / at.S, rtol=1e-9, atol=1e-9)
        h = 1e-5
        slope = float(sde.log_snr(of.at(u + h).t) - sde.log_snr(of.at(u - h).t)) / (2 * h)
        assert float(at.rate) == pytest.approx(slope, rel=1e-5)
        volume = (of.x(y + h, at) - of.x(y - h, at)) / (2 * h)
        torch.testing.assert_close(volume.log(), of.log_volume(at).expand(3, 2), rtol=0, atol=1e-8)
        many = of.at(u.expand(3))  # times of samples are times
        assert all(torch.equal(a, b.expand(3)) for a, b in zip(many, at))


@pytest.mark.filterwarnings("ignore:the density at t")
@pytest.mark.parametrize(("levels", "t", "least"), [(256, 1e-5, 4), (256, 1e-3, 4), (16, 1e-5, 1)])
def test_levels_have_nodes_where_they_are_told_apart(levels, t, least):
    """Where the least noise is about a level, as many steps make an error that is several times smaller if it is known
    that the data have levels; where they are wide it is the same, as noise tells them apart where it tells the data.
    """
    grid, sde = Quantized(levels, -1.0, 1.0), VP(t_min=t)
    centres = -1 + grid.width * torch.randint(levels, (3, 20), generator=generator(2)).double()
    law = exact.GaussianMixture(ONE[:3] / 3, centres, torch.full((3, 20), grid.width**2 / 12, dtype=F64))
    x, how = centres.repeat(2, 1), Quadrature(Adams(24), Exact(), prior=law.marginal(sde, sde.T))
    x_t = grid.dequantize(x, iid(generator(4)))
    want = law.diffuse(sde).log_prob(x_t, t)
    around = Reference.fit(law.sample(2000, generator(3))).overall
    told = log_prob(flow(law, sde), x, grid, around=around, how=how, noise=iid(generator(4))).log_p
    plain = log_prob(flow(law, sde), x_t, around=around, how=how).log_p
    off, before = (told - 20 * math.log(grid.width) - want).abs().mean(), (plain - want).abs().mean()
    assert off * least <= before * 1.001


@every_sde
def test_nothing_moves_around_the_data(sde):
    """For data N(m, c^2 I) seen around that Gaussian the drift is 0, and so are the flow's and the solver's error."""
    around = Reference(torch.tensor([0.3, -1.2], dtype=F64), 0.6)
    law = exact.Gaussian(around.mean, around.std**2)
    x, p = at_end(law, sde, 4), flow(law, sde)
    of = Coordinates(sde, around, x)
    for t in (0.1 * sde.T, 0.7 * sde.T):
        at, x_t = of.at(of.u(time(t))), law.diffuse(sde).sample(4, t, generator(1))
        still = of.drift(of.y(x_t, at, time(t)), at, p.denoise(x_t, time(t)))
        torch.testing.assert_close(still, torch.zeros_like(x), rtol=0, atol=1e-9)
    found = log_prob(p, x, around=around, how=Quadrature(Adams(12), Exact(), prior=around.prior(sde, (2,))))
    torch.testing.assert_close(found.log_p, law.diffuse(sde).log_prob(x, sde.t_min), rtol=0, atol=1e-8)
    assert (found.solver_error < 1e-8).all()


def test_a_score_knows_what_it_was_made_for():
    """Unless said, coordinates are around the Gaussian that a `ScoreModel` was made for, through counting too."""
    data = 0.3 * normal(50, 3) + torch.tensor([1.0, -1.0, 0.0], dtype=F64)
    around = Reference.fit(data)
    model, other = (ScoreModel(MLP((3,), width=8).double(), VP(), Karras(r)) for r in (around, Reference(std=2.0)))
    other.net = model.net
    p, x = VP().reverse(Counted(model)), data[:4]
    found = log_prob(p, x)
    assert torch.equal(found.log_p, log_prob(p, x, around=around).log_p)
    assert not torch.equal(found.log_p, log_prob(p, x, around=Reference(std=1.0)).log_p)
    assert torch.equal(encode(p, x), encode(p, x, around=around))
    assert torch.equal(decode(p, x), decode(p, x, around=around))
    law = mixture(3)
    q = VP().reverse(law.diffuse(VP()))
    mean, std = law.moments
    own = Reference(mean, float(std.square().mean().sqrt()))
    assert torch.equal(log_prob(q, x).log_p, log_prob(q, x, around=own).log_p)


@pytest.mark.parametrize(
    ("scale", "around", "warns"),
    [(100.0, None, True), (0.01, None, True), (10.0, None, False), (0.1, None, False), (100.0, 100.0, False),
     (0.01, 0.01, False), (1.0, 50.0, True)],
)  # fmt: skip
def test_coordinates_of_another_size_are_told(scale, around, warns):
    """Samples thirty times larger or smaller than the Gaussian around are warned of, by the name of what mends it; it
    changes no value, and a sample has the value that it has alone.
    """
    law = exact.Gaussian(torch.zeros(2), scale**2)
    p, x = VE(0.01 * scale, 50.0 * scale).reverse(lambda x, t: law.diffuse(p.sde)(x, t)), law.sample(8, generator())
    run = lambda x: log_prob(p, x, around=around and Reference(std=around), how=Quadrature(Adams(12)))  # noqa: E731
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        whole = run(x)
        assert [w.category for w in caught] == [UserWarning] * warns
        assert all("give around=Reference.fit(data)" in str(w.message) and w.filename == __file__ for w in caught)
        alone = torch.cat([run(row[None]).log_p for row in x])
    torch.testing.assert_close(alone, whole.log_p, rtol=1e-10, atol=1e-10)


SCALES = [1e-3, 1e-2, 0.1, 1 / 3, 1.0, 4.0, 10.0, 100.0, 1e4]


@pytest.mark.parametrize("trace", [Exact(), Hutchinson(2, fresh=False)], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("off", SCALES)
def test_whatever_gaussian_is_given(off, trace):
    """Coordinates for data of another deviation, 10^3 times smaller to 10^4 times larger, take more calls and no more
    than the tolerance: errors are within those told, which are within it, and nothing is warned of.
    """
    sde, law = VE(0.01, 50.0), switching(32)
    x, prior = at_end(law, sde, 24), law.marginal(sde, sde.T)
    run = lambda method: log_prob(  # noqa: E731
        flow(law, sde),
        x,
        around=Reference(std=1 / off),
        how=Quadrature(method, trace, prior=prior),
        noise=iid(generator()),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(None)
    truth = run(TIGHT).log_p
    if isinstance(trace, Exact):
        torch.testing.assert_close(truth, law.diffuse(sde).log_prob(x, sde.t_min), rtol=0, atol=1e-3)
    assert ((found.log_p - truth).abs() <= found.solver_error).all()
    assert (found.solver_error <= 32 * 0.005).all()


@pytest.mark.parametrize("unit", [1e-3, 100.0, 1e4])
def test_the_unit_of_data_does_not_matter(unit):
    """Data of another unit under the process of that unit, with no Gaussian given: log p is less by d log(unit), within
    the errors told of both. With the data's own Gaussian the two are equal to rounding.
    """
    law, d = switching(32), 32
    x = at_end(law, VE(0.01, 50.0), 16)
    found = {}
    for u in (1.0, unit):
        sde = VE(0.01 * u, 50.0 * u)
        score = exact.GaussianMixture(law.weights, u * law.means, u**2 * law.diagonal.expand(2, d)).diffuse(sde)
        p = sde.reverse(lambda x, t, score=score: score(x, t))
        for known in (False, True):
            around = Reference(std=u) if known else None
            found[u, known] = log_prob(p, u * x, around=around, how=Quadrature(trace=Exact()))
    a, b = found[1.0, False], found[unit, False]
    off = a.log_p - b.log_p - d * math.log(unit)
    assert (off.abs() <= a.solver_error + b.solver_error).all()
    a, b = found[1.0, True], found[unit, True]
    torch.testing.assert_close(a.log_p, b.log_p + d * math.log(unit), rtol=0, atol=1e-6)


def switching(d):
    """Two modes in d dimensions, between which samples are decided within a factor of two in noise."""
    g = generator()
    return exact.GaussianMixture(
        torch.tensor([0.3, 0.7]), torch.randn(2, d, generator=g), torch.full((2, d), 0.25, dtype=F64)
    )


def test_eta_does_not_matter():
    """Every reverse process of a score has its flow's density and codes."""
    sde, law = VP(), mixture(2)
    x = at_end(law, sde, 3)
    values, codes = zip(
        *((log_prob(p, x).log_p, encode(p, x)) for p in (sde.reverse(law.diffuse(sde), eta) for eta in (0.0, 0.3, 1.0)))
    )
    for value, code in zip(values[1:], codes[1:]):
        assert torch.equal(value, values[0]) and torch.equal(code, codes[0])


TRACES = [Exact(), Hutchinson(2), Hutchinson(2, fresh=False), Hutchinson(1, gaussian=True), Hadamard(4), HutchPP(2)]
METHODS = [Dopri5(1e-3, 1e-3), AsNeeded(1e-3, Adams(12)), Tsit5(1e-3, 1e-3), RungeKutta(2), Adams(12)]


def chunked(run, n, *cuts):
    edges = [0, *cuts, n]
    parts = [run(a, b) for a, b in zip(edges, edges[1:])]
    return {k: torch.cat([getattr(p, k) for p in parts]) for k in ("log_p", "probe_error", "solver_error", "end_bias")}


def same_rows(run, n, tol=1e-10):
    """Everything of a sample is the same in any chunk."""
    whole = run(0, n)
    for cuts in ((2,), range(1, n)):
        for key, value in chunked(run, n, *cuts).items():
            torch.testing.assert_close(value, getattr(whole, key), rtol=tol, atol=tol, equal_nan=True)


@pytest.mark.parametrize("method", METHODS[:2], ids=repr)
@pytest.mark.parametrize("trace", TRACES, ids=repr)
def test_rows_are_independent(method, trace):
    """Values and errors of five samples are those of 2 + 3, and of each alone: steps and probes are a sample's own."""
    untold = isinstance(method, AsNeeded) and not trace.tells
    rows_alone(method.first if untold else method, trace)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS[2:], ids=repr)
def test_rows_are_independent_of_other_methods(method):
    """The same."""
    rows_alone(method, Hutchinson(2))


def rows_alone(method, trace):
    sde, law, streams = VP(), mixture(1, 2, 2, low=0.01), per_sample(range(5))
    x = at_end(law, sde, 5)
    x[3] = 4.0  # far out, where steps are short
    q = flow(law, sde)
    tol = 1e-5 if isinstance(method, AsNeeded) else 1e-10  # rounding moves short steps
    same_rows(lambda a, b: log_prob(q, x[a:b], how=Quadrature(method, trace), noise=streams.rows(a, b)), 5, tol)


@pytest.mark.parametrize("method", METHODS[:2], ids=repr)
@pytest.mark.parametrize("dequantization", [Uniform, TruncatedNormal, Decoded], ids=lambda cls: cls.__name__)
def test_rows_of_discrete_data_are_independent(method, dequantization):
    """The same for each dequantisation, and for several draws of it."""
    sde, law, streams, data = VP(), mixture(1, 2, 2), per_sample(range(4)), Quantized(9, -2.0, 2.0)
    x = (law.sample(4, generator()) * 2).round().clamp(-4, 4) / 2
    discrete, how = dequantization(data), Quadrature(method, Hutchinson(2))
    if dequantization is Uniform:
        discrete, how = Uniform(data, draws=2), Quadrature(method, Exact())
    same_rows(lambda a, b: log_prob(flow(law, sde), x[a:b], discrete, how=how, noise=streams.rows(a, b)), 4)


def test_rows_are_independent_with_a_network():
    """The same with a network in float32, to 1e-3 of a nat: an outlier in the batch changes no other sample."""
    sde, net = VP(), MLP((2,), width=16, depth=1)
    for w in net.parameters():
        torch.nn.init.normal_(w, std=0.2, generator=generator(2))
    q, x = sde.reverse(ScoreModel(net, sde, Velocity()), eta=0), normal(16, 2).float()
    x[3] = 30.0
    run = lambda rows: log_prob(q, rows, how=Quadrature(Dopri5(1e-5, 1e-5))).log_p  # noqa: E731
    whole = run(x)
    torch.testing.assert_close(torch.cat([run(row[None]) for row in x]), whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 5, 16, 1000])
def test_chunks_do_not_matter(chunk):
    """Exact(chunk) trades memory for calls and nothing else."""
    sde, law = Cosine(), mixture(1, 4, 4)
    q, x = flow(law, sde), law.sample(3, generator())
    run = lambda trace: log_prob(q, x, how=Quadrature(Dopri5(1e-3, 1e-3), trace)).log_p  # noqa: E731
    torch.testing.assert_close(run(Exact(chunk)), run(Exact()), rtol=1e-11, atol=0)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_shapes_do_not_matter(method):
    """An image's likelihood is that of its flattened row."""
    sde, flat = VP(), mixture(16)
    x = flat.sample(3, generator())
    how = Quadrature(method)
    run = lambda law, x: log_prob(flow(law, sde), x, how=how, noise=per_sample(range(3))).log_p  # noqa: E731
    torch.testing.assert_close(run(mixture(1, 4, 4), x.view(3, 1, 4, 4)), run(flat, x), rtol=1e-11, atol=0)


def test_float32_stays():
    """A state in float32 gives a value in float32 that is that of float64 to 1e-3."""
    sde, law = VP(), mixture(2)
    q, x = flow(law, sde), law.sample(4, generator())
    single = log_prob(q, x.float(), how=Quadrature(prior=law.marginal(sde, sde.T))).log_p
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), law.diffuse(sde).log_prob(x, sde.t_min), rtol=1e-3, atol=1e-3)


def test_the_state_is_left_alone():
    """x is neither changed nor drawn into a graph, and parameters get no gradient."""
    model = ScoreModel(MLP((2,), width=8, depth=1), VP())
    x = normal(3, 2).float().requires_grad_()
    before = x.detach().clone()
    found = log_prob(VP().reverse(model, eta=0), x)
    assert torch.equal(x, before) and x.grad is None
    assert not any(v.requires_grad for v in (found.log_p, found.probe_error, found.solver_error, found.end_bias))
    assert all(w.grad is None for w in model.parameters())


# coverage: two reported standard errors hold the truth as often as they should


def covered(truth, means, errors):
    """The share of repetitions whose mean is within two standard errors of the truth."""
    return float(((means - truth).abs() <= 2 * errors).double().mean())


@pytest.mark.parametrize(
    "trace",
    [
        Hutchinson(2),
        Hutchinson(4),
        Hutchinson(8, fresh=False),
        Hutchinson(2, gaussian=True),
        HutchPP(2),
        Hadamard(4),
        Hadamard(8),
    ],
    ids=repr,
)
@pytest.mark.parametrize("shape", [(6,), (1, 3, 3)], ids=str)
def test_coverage_of_probes(trace, shape):
    """200 repetitions of 24 samples: the mean over them is off the exact one by at most twice `probes` of the budget
    93 to 97 % of the time, give or take three binomial standard errors.
    """
    sde, law, method = VP(), mixture(*shape), Adams(12)
    x = at_end(law, sde, 24)
    q = flow(law, sde)
    truth = log_prob(q, x, how=Quadrature(method, Exact())).mean
    rows = x.repeat(200, *(1,) * len(shape))
    many = log_prob(q, rows, how=Quadrature(method, trace), noise=iid(generator(7)))
    means, errors = [], []
    for k in range(200):
        rows = slice(24 * k, 24 * (k + 1))
        one = replace(many, log_p=many.log_p[rows], probe_error=many.probe_error[rows])
        means.append(one.mean), errors.append(one.budget["probes"])
    share = covered(truth, torch.tensor(means), torch.tensor(errors))
    assert 0.90 <= share <= 0.99
    off = torch.tensor(means) - truth
    assert abs(float(off.mean())) < 4.5 * float(off.std()) / 200**0.5  # fixed steps: no bias


@pytest.mark.parametrize("trace", [Exact(), Hutchinson(2)], ids=repr)
def test_coverage_of_samples(trace):
    """200 repetitions of 50 samples: the mean is off the entropy of the law by at most twice `samples` of the budget,
    with probes and without, for their errors are in the spread of the values.
    """
    sde, d = VP(), 6
    law, (m, C) = correlated(d), moments(d)
    x = at_end(law, sde, 200 * 50)
    how = Quadrature(Adams(20), trace, prior=law.marginal(sde, sde.T))
    many = log_prob(flow(law, sde), x, how=how, noise=iid(generator(7)))
    alpha, var = sde.alpha(sde.t_min), sde.var(time(sde.t_min))
    entropy = MultivariateNormal(m, alpha**2 * C + var * torch.eye(d, dtype=F64)).entropy() / d
    parts = [
        replace(many, log_p=many.log_p[50 * k : 50 * k + 50], probe_error=many.probe_error[50 * k : 50 * k + 50])
        for k in range(200)
    ]
    share = covered(entropy, torch.tensor([p.mean for p in parts]), torch.tensor([p.budget["samples"] for p in parts]))
    assert 0.90 <= share <= 0.99


@pytest.mark.parametrize(
    ("problem", "method", "n"),
    [
        (Modes(), Dopri5(1e-6, 1e-6), 300),
        (Modes(), Tsit5(1e-6, 1e-6), 300),
        (Modes(), Adams(40), 300),
        (DigitClasses(), Adams(20), 60),
        pytest.param(DigitClasses(), Adams(40), 100, marks=pytest.mark.slow),
        pytest.param(DigitClasses(), Dopri5(1e-6, 1e-6), 40, marks=pytest.mark.slow),
        pytest.param(DigitClasses(), Tsit5(1e-6, 1e-6), 40, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_solver_error_bounds_the_error(problem, method, n):
    """The reported error of the solver is at least the true one for 95 % of samples, and not a thousand times it for
    most, on sharp modes in the plane and on images, in which paths decide between modes.
    """
    sde, law = VP(), problem.law()
    known = law.sample(1000, generator(1))
    around = Reference(float(known.mean()), float(known.std()))
    x, how = at_end(law, sde, n), Quadrature(method, Exact(), prior=law.marginal(sde, sde.T))
    found = log_prob(flow(law, sde), x, around=around, how=how)
    off = (found.log_p - law.diffuse(sde).log_prob(x, sde.t_min)).abs()
    assert float((off <= found.solver_error).double().mean()) >= 0.95
    assert float((found.solver_error / off).median()) < 1000


# gradients


@pytest.mark.parametrize(
    ("method", "tol"), [(Dopri5(1e-6, 1e-6), 1e-3), (RungeKutta(10), 2e-3), (Adams(40), 1e-2)], ids=repr
)
@pytest.mark.parametrize("around", [Reference(0.0, 1.0), Reference(0.1, 0.5)], ids=["unit", "of the data"])
def test_gradient_is_the_score(method, tol, around):
    """d log p_t/dx is the score of the law at t: also where the flow stands still. The values and the errors
    are those found without gradients.
    """
    sde = VP()
    for law in (mixture(2, 2), exact.Gaussian(torch.full((2, 2), 0.1, dtype=F64), 0.25)):
        x = at_end(law, sde, 2).requires_grad_()
        how = Quadrature(method, Exact(), prior=law.marginal(sde, sde.T))
        found = log_prob(flow(law, sde), x, around=around, how=replace(how, gradients=True))
        (g,) = torch.autograd.grad(found.log_p.sum(), x)
        torch.testing.assert_close(g, law.diffuse(sde)(x, sde.t_min), rtol=tol, atol=tol)
        plain = log_prob(flow(law, sde), x, around=around, how=how)
        torch.testing.assert_close(found.log_p.detach(), plain.log_p, rtol=1e-12, atol=1e-12)
        for key in ("probe_error", "solver_error", "end_bias"):
            assert not getattr(found, key).requires_grad
            torch.testing.assert_close(getattr(found, key), getattr(plain, key), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [Dopri5(1e-7, 1e-7), RungeKutta(12)], ids=repr)
def test_gradient_by_parameters_in_closed_form(method):
    """For a Gaussian score of mean m and variance v, log p = log N(x_T; 0, sigma_T^2) + d/2 log(C_T/C_t) depends on m
    and v, with x_T = alpha_T m + (C_T/C_t)^(1/2) (x - alpha_t m) to which the flow leads.
    """
    sde, x = VP(0.1, 6.0), normal(5, 2)
    m, v = torch.tensor([0.3, -0.4], dtype=F64, requires_grad=True), torch.tensor(0.3, dtype=F64, requires_grad=True)

    def score(x, t):
        alpha, var = (c.view(-1, 1) for c in (sde.alpha(t), sde.var(t)))
        return -(x - alpha * m) / (alpha**2 * v + var)

    C = [sde.alpha(t) ** 2 * v + sde.var(t) for t in (time(sde.T), time(sde.t_min))]
    ratio = C[0] / C[1]
    want = sde.log_prior(sde.alpha(sde.T) * m + ratio.sqrt() * (x - sde.alpha(sde.t_min) * m)) + ratio.log()
    found = log_prob(sde.reverse(score, 0.0), x, how=Quadrature(method, gradients=True)).log_p
    torch.testing.assert_close(found, want, rtol=0, atol=1e-4)
    for a, b in zip(torch.autograd.grad(found.sum(), (m, v)), torch.autograd.grad(want.sum(), (m, v))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Net(torch.nn.Module):
    """A smooth score with parameters, of the right size at every noise level: (F(x) - x)/(sigma^2 + alpha^2)."""

    def __init__(self, sde, d=4, width=8):
        super().__init__()
        self.sde, self.calls = sde, 0
        self.w = torch.nn.Parameter(0.2 * normal(d, width, seed=1))
        self.v = torch.nn.Parameter(0.2 * normal(width, d, seed=2))

    def forward(self, x, t):
        self.calls += 1
        v = torch.as_tensor(self.sde.var(t) + self.sde.alpha(t) ** 2)
        F = torch.tanh(x.flatten(1) @ self.w) @ self.v
        return (F.view(x.shape) - x) / v.view(-1, *(1,) * (x.ndim - 1))


@pytest.mark.parametrize("method", [Adams(12), RungeKutta(2)], ids=repr)
@pytest.mark.parametrize("trace", [Exact(), Hutchinson(2, fresh=False), Hadamard(4)], ids=repr)
@pytest.mark.parametrize("discrete", [False, True])
def test_gradients_are_finite_differences(method, trace, discrete):
    """d log p/dx and d/dparameters along random directions equal central differences to 1e-6, the probes being the
    same; with dequantised data the parameters' alone.
    """
    sde, net, x = VP(), Net(VP()), normal(3, 1, 2, 2).clamp(-2, 2)
    data = Quantized(9, -2.0, 2.0) if discrete else None
    x = ((x * 2).round() / 2 if discrete else x).requires_grad_()

    def total(x, gradients=False):
        how = Quadrature(method, trace, gradients=gradients)
        return log_prob(sde.reverse(net, 0.0), x, data, how=how, noise=per_sample(range(3))).log_p.sum()

    g = torch.autograd.grad(total(x, True), (x, net.w, net.v))
    for k, (tensor, gradient) in enumerate(zip((x, net.w, net.v), g)):
        if discrete and k == 0:
            continue
        along = normal(*tensor.shape, seed=20 + k)
        values, h = [], 2e-4
        for step in (2, 1, -1, -2):
            with torch.no_grad():
                tensor += step * h * along
                values.append(float(total(x)))
                tensor -= step * h * along
        slope = (-values[0] + 8 * values[1] - 8 * values[2] + values[3]) / (12 * h)
        assert float((gradient * along).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_gradients_with_fresh_probes_are_unbiased():
    """The gradient with fresh probes has the mean of the exact one, within 4.5 standard errors."""
    sde, net, n = VP(), Net(VP()), 2000
    x = normal(1, 4)

    def gradient(trace, n):
        rows = x.repeat(n, 1).requires_grad_()
        how = Quadrature(Adams(12), trace, gradients=True)
        found = log_prob(sde.reverse(net, 0.0), rows, how=how, noise=iid(generator()))
        return torch.autograd.grad(found.log_p.sum(), rows)[0]

    many, one = gradient(Hutchinson(2), n), gradient(Exact(), 1)
    assert ((many.mean(0) - one[0]).abs() < 4.5 * many.std(0) / n**0.5).all()


@pytest.mark.parametrize("method", [Adams(12), RungeKutta(2), Dopri5(1e-3, 1e-3)], ids=repr)
def test_gradients_hold_one_node_at_a_time(method):
    """On the way back the network is called once more for each node that counts, and what is held in between does not
    grow with its width: activations are of one node at a time.
    """
    sde, held = VP(), []
    for width in (8, 512):
        net, x, kept = Net(sde, width=width), normal(3, 4).requires_grad_(), []

        def pack(tensor, kept=kept, net=net):
            kept.append(tensor.numel() if tensor.numel() != net.w.numel() else 0)
            return tensor

        nodes = log_prob(sde.reverse(net, 0.0), x, how=Quadrature(method)).nfe
        net.calls = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = log_prob(sde.reverse(net, 0.0), x, how=Quadrature(method, gradients=True))
        before = net.calls
        assert before == found.nfe <= 2 * nodes
        found.log_p.sum().backward()
        assert nodes / 2 < net.calls - before <= nodes
        held.append(sum(kept) / nodes)
    assert held[1] < 1.5 * held[0] + 100 and held[1] < 3 * 512


# codes


@every_sde
def test_encode_is_the_gaussian_map(sde):
    """The latent of Gaussian data is the closed form's, and its law that of p_T; decode leads back."""
    law = correlated(3)
    x = at_end(law, sde, 5)
    q, want = flow(law, sde), gaussian_map(sde, at_end(law, sde, 5))
    scale = float(want.abs().max())
    torch.testing.assert_close(encode(q, x, TIGHT), want, rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(decode(q, want, TIGHT), x, rtol=0, atol=1e-6)
    for mean in (0.4, torch.tensor([0.4, -0.2, 1.0], dtype=F64)):
        around = Reference(mean, 0.3)
        torch.testing.assert_close(encode(q, x, TIGHT, around), want, rtol=0, atol=1e-6 * scale)
        torch.testing.assert_close(decode(q, want, TIGHT, around=around), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(encode(q, x), want, rtol=0, atol=1e-3 * scale)  # by default


@pytest.mark.parametrize("sde", [VP(), VE(0.05, 20.0)], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)], ids=str)
def test_round_trip_falls_with_order_three(sde, shape):
    """decode(encode(x)) - x falls at least as n^-3 with the number of steps n."""
    law = mixture(*shape)
    q, x = flow(law, sde), at_end(law, sde, 8)
    off = [float((decode(q, encode(q, x, Adams(n)), Adams(n)) - x).norm()) for n in (80, 160)]
    assert math.log2(off[0] / off[1]) > 2.75 and off[1] < 1e-2


def test_codes_of_the_flow_are_those_of_log_prob():
    """log p is the log-density of the prior at the latent plus the volume of the map, from differences of the map."""
    sde, law = VP(), mixture(3)
    q, x = flow(law, sde), at_end(law, sde, 2)
    x_T = encode(q, x, TIGHT)
    h, eye = 1e-4, torch.eye(3, dtype=F64)
    columns = [(encode(q, x + h * e, TIGHT) - encode(q, x - h * e, TIGHT)) / (2 * h) for e in eye]
    volume = torch.linalg.slogdet(torch.stack(columns, 2))[1]
    found = log_prob(q, x, how=Quadrature(TIGHT))
    torch.testing.assert_close(found.log_p, sde.log_prior(x_T) + volume, rtol=0, atol=1e-4)


@pytest.mark.parametrize("code", [encode, decode])
def test_codes_refuse(code):
    """States that are none, and a Gaussian of other data."""
    p = VP().reverse(lambda x, t: -x, 0.0)
    with pytest.raises(ValueError, match="x must be finite, but sample 1"):
        code(p, torch.tensor([[0.0, 1.0], [math.nan, 0.0]]))
    with pytest.raises(ValueError, match="around must"):
        code(p, normal(2, 2), around=Reference(torch.zeros(3), 1.0))


# what is told


def told(log_p, *, probes=None, solver=0.0, end=0.0, prior=0.0, d=3, quantized=None):
    log_p = torch.tensor(log_p, dtype=F64)
    fill = lambda v: torch.full_like(log_p, v)  # noqa: E731
    probe = fill(0.0) if probes is None else torch.tensor(probes, dtype=F64)
    discrete = quantized and Uniform(quantized)
    return Likelihood(log_p, probe, fill(solver), fill(end), prior, d, 0.1, 21, 42, discrete)


@pytest.mark.parametrize("quantized", [None, Quantized(17, -1.0, 1.0)])
def test_budget(quantized):
    """Means and standard errors in the unit of the values: nats, or bits for discrete data, for each dimension."""
    found = told(
        [-3.0, -6.0, -12.0, -3.0], probes=[0.3, 0.4, 0.0, 1.2], solver=0.06, end=-0.3, prior=0.9, quantized=quantized
    )
    unit = 3 * (math.log(2) if quantized else 1)
    assert float(found.values[1]) == pytest.approx(6 / unit) and found.mean == pytest.approx(6 / unit)
    assert found.budget == pytest.approx(
        {
            "samples": math.sqrt((9 + 0 + 36 + 9) / 3) / 2 / unit,
            "probes": 1.3 / 4 / unit,
            "solver": 0.06 / unit,
            "end": 0.3 / unit,
            "prior": 0.9 / unit,
        }
    )
    assert math.isnan(told([-1.0]).budget["samples"])
    if quantized is None:
        with pytest.raises(ValueError, match="bits/dim are of discrete data"):
            _ = found.bits_per_dim
        assert "density at t = 0.1" in found.says and "nats/dim" in str(found)
    else:
        torch.testing.assert_close(found.bits_per_dim, found.values)
        assert "bound" in found.says and "Uniform at t = 0.1" in found.says and "bits/dim" in str(found)
        assert "5 draws" in replace(found, discrete=Uniform(quantized, draws=5)).says
    assert "21 network calls, 42 vector-Jacobian products" in str(found)


@given(
    st.floats(-1e3, 1e3),
    st.floats(1e-9, 1e3),
    st.sampled_from(["probes", "solver", "end", "prior"]),
    st.sampled_from([1, 3, 64]),
)
def test_no_more_digits_than_the_budget_supports(mean, error, which, d):
    """The last digit is worth between a hundredth and a tenth of all errors together, whichever they come from, as far
    as there are digits behind the point; the number is the mean, so rounded.
    """
    found = told([-mean * d] * 4, **{which: [2 * error * d] * 4 if which == "probes" else error * d}, d=d)
    number, unit = str(found).split()[:2]
    digits = len(number.split(".")[1]) if "." in number else 0
    assert unit == "nats/dim" and number == f"{found.mean:.{digits}f}"
    assert 10.0**-digits <= error / 10 * (1 + 1e-9) or digits == 0
    assert 10.0**-digits >= error / 100 * (1 - 1e-9) or digits in (0, 12)


@pytest.mark.parametrize("quantized", [None, Quantized(17, -1.0, 1.0)])
def test_statement(quantized):
    """Two sentences with all that the number hangs on, as it was: whatever was chosen or left to the defaults."""
    sde, law = VP(), exact.Gaussian(torch.zeros(20), 0.3)
    x = (law.sample(5, generator()).clamp(-1, 1) * 8).round() / 8 if quantized else law.sample(5, generator())
    for how, said in (
        (
            Quadrature(),
            ("N(0, sigma_T^2 I)", "AsNeeded(tol=0.005", "Hutchinson(m=2, fresh=True, gaussian=False)", "t = 0.001"),
        ),
        (
            Quadrature(Adams(14), Exact(), 0.01, law.marginal(sde, sde.T)),
            ("a Gaussian fitted to data", "Adams(n=14, order=3)", "Exact(chunk=64)", "t = 0.01"),
        ),
        (Quadrature(prior=mixture(20).marginal(sde, sde.T)), ("a mixture of 2 Gaussians",)),
    ):
        found = log_prob(flow(law, sde), x, quantized, how=how, noise=iid(generator()))
        text = found.statement()
        assert "\n" not in text and str(found).split(" over ")[0] in text and found.says in text
        for part in (*said, "over 5 samples", f"{found.nfe} network calls"):
            assert part in text, part
        for value in (v for k, v in found.budget.items()):
            assert f"{value:.1g}" in text
    assert ("bits/dim" in text) == (quantized is not None)


@pytest.mark.parametrize(
    ("noise", "own", "kind"), [(0.01, 0.3, Uniform), (0.2, 1e-6, TruncatedNormal), (0.6, 1e-6, Decoded)]
)
def test_the_tightest_dequantisation(noise, own, kind):
    """The kind with the smallest bound: uniform for a model of smooth data that ends at little noise, and for one of
    three grey levels themselves one of the others, by the noise where the flow ends.
    """
    sde, grid = VP(), Quantized(3, -1.0, 1.0)
    law = exact.GaussianMixture(torch.ones(9), torch.cartesian_prod(*[grid.low + torch.arange(3.0)] * 2), own * ONE)
    x = law.means[torch.arange(90) % 9].round()
    how = Quadrature(t=float(sde.time(time(-math.log(noise)))), prior=law.marginal(sde, sde.T))
    run = lambda of: log_prob(flow(law, sde), x, of, how=how, noise=iid(generator()))  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        means = {of: run(of(grid)).mean for of in (Uniform, TruncatedNormal, Decoded)}
    assert means[kind] == min(means.values())
    chosen = tightest(flow(law, sde), x, grid, how=how, noise=iid(generator()))
    assert type(chosen) is kind and chosen.quantized == grid


@pytest.mark.parametrize("dequantization", [Uniform, TruncatedNormal, Decoded], ids=lambda cls: cls.__name__)
def test_noise_beside_a_grey_level(dequantization):
    """Uniform dequantisation takes the density at t for that at 0, and warns, with both numbers, where the noise there
    is more than a third of a grey level; those that know the noise do not.
    """
    sde, law, x = VE(0.01, 20.0), mixture(3), torch.full((2, 3), -1.0, dtype=F64)
    for levels, h in ((201, 0.01), (67, 2 / 66), (51, 0.04)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            log_prob(flow(law, sde), x, dequantization(Quantized(levels, -1.0, 1.0)), how=Quadrature(Adams(12)))
        said = [str(w.message) for w in caught if "grey level" in str(w.message)]
        assert len(said) == (dequantization is Uniform and h < 0.03)
        assert not said or ("sigma/alpha = 0.01, " in said[0] and f"grey level of {h:.3g}:" in said[0])


def test_digits_of_one_sample():
    """What is not known, such as the spread of one sample, is passed over."""
    assert str(told([-1.23456789], solver=3e-3)).startswith("0.4115 nats/dim over 1 samples")
    assert str(replace(told([-3.0, -9.0], solver=1e-9))).startswith("2.0 nats/dim")  # the samples' spread counts


# bad input


Q = VP().reverse(exact.Gaussian(torch.zeros(2), 1.0).diffuse(VP()), eta=0)
X = torch.zeros(3, 2, dtype=F64)
GREY = Quantized(17, 0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"p": VP()}, "p must"),
        ({"p": Q.score}, "p must"),
        ({"x": torch.tensor([[0.0, 1.0], [0.0, 1.0], [math.nan, 0.0]])}, "x must be finite, but sample 2"),
        ({"x": torch.zeros(3, 2, dtype=torch.long)}, "x must be .*int64"),
        ({"x": torch.zeros(3)}, "x must"),
        ({"x": torch.zeros(0, 2)}, "x must"),
        ({"x": [[0.0]]}, "x must"),
        ({"how": Quadrature(t=0.0)}, "t must be a time with sigma > 0"),
        ({"how": Quadrature(t=1.0)}, "t must be a finite number >= 0 and < 1"),
        ({"noise": 1j}, "noise must be a callable"),
        ({"discrete": GREY, "x": X + 1.5}, r"x must be inside \[0, 1\], got 1.5 to 1.5"),
        ({"discrete": GREY, "x": X - 1 / 16}, "x must be inside"),
        ({"discrete": GREY, "x": X + 0.4}, "x must hold the 17 levels"),
        ({"discrete": Decoded(GREY), "x": X + 0.4}, "x must hold the 17 levels"),
        ({"discrete": "grey"}, "discrete must be a grid or a dequantisation"),
        ({"discrete": Uniform}, "discrete must be a grid or a dequantisation"),
        ({"discrete": Uniform(GREY, 2), "how": Quadrature(trace=Hutchinson())}, "draws must be 1"),
        ({"discrete": Uniform(GREY, 2), "x": torch.zeros(3, 17), "p": None}, "draws must be 1"),
        ({"around": Reference(torch.zeros(3), 1.0)}, r"around must .* shape \(2,\) as mean, got \(3,\)"),
        ({"around": Reference(0.0, 0.0)}, "around must have a standard deviation above 0"),
        ({"around": Reference(std=math.inf)}, "around must have a standard deviation above 0 and below infinity"),
        ({"around": 0.5}, "around must be a Reference, such as "),
        ({"how": Adams()}, "how must be a Quadrature"),
        ({"how": Quadrature(prior=exact.Gaussian(torch.zeros(3), 1.0))}, r"prior must be a law of shape \(2,\), got"),
    ],
)
def test_bad_arguments_of_log_prob(change, match):
    """What is not a reverse process, a finite batch, on its grid, of its shape, or a time with sigma > 0 is named in
    one line, before the score is called.
    """
    score = Counted(Q.score)
    args = {"p": VP().reverse(score, 0.0), "x": X} | change
    args["p"] = args["p"] or VP().reverse(lambda x, t: score(x[:, :2], t), 0.0)
    with pytest.raises(ValueError, match=match) as error:
        log_prob(**args)
    assert score.nfe == 0 and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"trace": "exact"},
        {"method": "dopri5"},
        {"trace": Exact},
        {"method": Dopri5},
        {"prior": 3},
        {"prior": Reference(std=1.0)},
    ],
)
def test_bad_quadratures(bad):
    """What is no solver, no trace or no prior is refused where it is said."""
    with pytest.raises(ValueError, match=f"^{next(iter(bad))} must be a value such as "):
        Quadrature(**bad)


@pytest.mark.parametrize("bad", [{"t": -0.1}, {"t": math.nan}, {"t": "0"}, {"gradients": 1}])
def test_bad_fields_of_quadratures(bad):
    """No time, and no truth value, are refused there too."""
    with pytest.raises(ValueError, match=f"^{next(iter(bad))} must be "):
        Quadrature(**bad)


@pytest.mark.parametrize("sde", [SubVP(), Cosine(), RectifiedFlow(), EDM()], ids=lambda s: type(s).__name__)
def test_no_density_without_noise(sde):
    """Where sigma(0) = 0 there is no score at t = 0; VE has one."""
    with pytest.raises(ValueError, match="singular at sigma = 0"):
        log_prob(flow(mixture(2), sde), X, how=Quadrature(t=0.0))
    assert log_prob(flow(mixture(2), VE()), X, how=Quadrature(Adams(12), t=0.0)).log_p.isfinite().all()


@pytest.mark.parametrize("method", [Dopri5(1e-3, 1e-3), Adams(12), RungeKutta(2)], ids=repr)
@pytest.mark.parametrize("trace", [Exact(), Hutchinson()], ids=repr)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_named(method, trace, value):
    """A score that fails for one sample on the way is reported with the sample and the time, not as nan: the first
    time in order at which it does, as the score itself sees it.
    """
    failed = []

    def broken(x, t):
        bad = (x[:, :1] > 5) & (t.view(-1, 1) > 0.2)
        if bad.any():
            failed.append(float(t.expand(len(x))[bad[:, 0]][0]))
        return torch.where(bad, torch.full_like(x, value), -x)

    x = torch.tensor([[0.0, 1.0], [0.0, -1.0], [60.0, 1.0]], dtype=F64)
    with pytest.raises(RuntimeError, match=r"^the score of sample 2 is not finite at t = 0\.\d+$") as error:
        log_prob(VP().reverse(broken, 0.0), x, how=Quadrature(method, trace))
    assert float(str(error.value).split("=")[1]) == pytest.approx(failed[0], rel=1e-5)


def test_a_divergence_that_is_not_finite_is_named():
    """The same where the score is finite and its derivative is not."""
    kink = lambda x, t: -x + (x - x.detach()).abs().sqrt()  # noqa: E731
    with pytest.raises(RuntimeError, match="the score of sample 0 is not finite at t = 0.001"):
        log_prob(VP().reverse(kink, 0.0), X)


def test_a_sample_whose_neighbours_have_arrived_is_named():
    """The sample is that of the batch, also when others have left it: the one that takes most steps alone."""
    sde, law = VP(), Modes().law()
    x = at_end(law, sde, 6)
    method, score = Dopri5(1e-6, 1e-6), law.diffuse(sde)
    nodes = [log_prob(sde.reverse(score, 0.0), row[None], how=Quadrature(method)).nfe for row in x]
    last = nodes.index(max(nodes))
    assert nodes.count(max(nodes)) == 1 and last > 0

    def broken(x, t):
        return score(x, t) * (math.nan if len(x) == 1 else 1.0)

    with pytest.raises(RuntimeError, match=f"the score of sample {last} is not finite at t = "):
        log_prob(sde.reverse(broken, 0.0), x, how=Quadrature(method))


@pytest.mark.parametrize("trace", [Exact(), Hutchinson()])
def test_a_score_without_gradient_raises(trace):
    """Under no_grad the score's part of the divergence would be dropped without a word."""
    score = torch.no_grad()(lambda x, t: -x)
    with pytest.raises(ValueError, match="score must be differentiable"):
        log_prob(VP().reverse(score, eta=0), normal(3, 2), how=Quadrature(trace=trace))
