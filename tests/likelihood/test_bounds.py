"""Bounds: every term equals its closed form on Gaussian data, and the order of the bounds is right.

With a linear score every term is a quadratic function of the noise, whose mean over z ~ N(0, I) is its mean over the 2d
points +-sqrt(d) e_k: expectations are exact, no Monte Carlo.
"""

import math

import pytest
import torch
from scipy import integrate

from scoresde import (
    EDM,
    VE,
    VP,
    Ancestral,
    Chain,
    Counted,
    Quantized,
    ReverseDiffusion,
    Tabulated,
    elbo,
    exact,
    grid,
    iid,
    log_prob,
    loss,
    per_sample,
)
from scoresde.likelihood import Bound, continuous_elbo
from scoresde.process.chain import linear_betas
from scoresde.steps import AnalyticDPM

F64 = torch.float64
LAW_M, LAW_C = torch.tensor([0.3, -0.5], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
LAW = exact.Gaussian(LAW_M, LAW_C)
X = torch.tensor([[0.7, -0.1], [-1.2, 0.4], [0.0, 0.0]], dtype=F64)
pytestmark = pytest.mark.filterwarnings("ignore:the chain ends")


def same(a, b, tol=1e-10):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def cubature(d, n):
    """A noise for n samples repeated 2d times, whose rows go through +-sqrt(d) e_k, and the mean over repetitions."""
    points = math.sqrt(d) * torch.cat([torch.eye(d, dtype=F64), -torch.eye(d, dtype=F64)])
    noise = lambda x, t, s: points.repeat_interleave(n, 0)  # noqa: E731
    return noise, lambda values: values.view(2 * d, n, *values.shape[1:]).mean(0)


def squared_error(sde, t, x_0):
    """E|eps(x_t, t) - z|^2 for each x_0: eps = sigma C^-1 (x_t - alpha m) is affine in z."""
    a, s2, one = sde.alpha(t), sde.var(t), torch.eye(2, dtype=F64)
    inverse = torch.linalg.inv(a**2 * LAW_C + s2 * one)
    at_zero = s2.sqrt() * (a * (x_0 - LAW_M)) @ inverse
    return at_zero.square().sum(1) + (s2 * inverse - one).square().sum()


def integral(sde, x_0):
    """int g^2/(2 sigma^2) E|eps - z|^2 dt = int E|eps - z|^2 d lambda, from T to t_min, by quadrature."""
    value = lambda u: float(squared_error(sde, sde.time(torch.tensor(u, dtype=F64)), x_0[None])[0])  # noqa: E731
    ends = float(sde.log_snr(sde.T)), float(sde.log_snr(sde.t_min))
    return integrate.quad(value, *ends, epsabs=1e-11, limit=400)[0]


@pytest.mark.parametrize(
    "sde", [VP(), VE(0.05, 5.0), Tabulated(linear_betas(40)), EDM(T=10.0)], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_discrete_terms_in_closed_form(sde, v):
    """L_N, each L_{i-1} and L_0 on Gaussian data equal their formulas, written from alpha, sigma and the law's C."""
    chain = Chain(sde, grid.quadratic(sde, 6))
    noise, mean = cubature(2, len(X))
    bound = elbo(chain, LAW.diffuse(sde), X.repeat(4, 1), kernel=Ancestral(v), noise=noise)
    var, alpha = sde.var(chain.t), sde.alpha(chain.t)
    over = sde.var(torch.tensor(sde.T, dtype=F64))
    prior = ((alpha[-1] * X).square().sum(1) / over + 2 * (var[-1] / over - 1 - (var[-1] / over).log())) / 2
    same(mean(bound.prior), prior, 1e-9)
    for i in range(2, len(chain) + 1):
        vi, below = chain.v[i - 1], var[i - 2]
        small = vi * below / var[i - 1]
        w = small ** (1 - v) * vi**v
        # the posterior mean's weight of x_0 times the error of x_0, which is sigma/alpha that of eps
        weight = alpha[i - 2] * vi / var[i - 1] * var[i - 1].sqrt() / alpha[i - 1]
        gap = weight**2 * squared_error(sde, chain.t[i - 1], X)
        same(mean(bound.steps)[:, i - 2], gap / (2 * w) + (small / w - 1 - (small / w).log()), 1e-8)
    error = squared_error(sde, chain.t[0], X)
    same(mean(bound.decoder), error / 2 + (2 * math.pi * var[0] / alpha[0] ** 2).log(), 1e-8)


@pytest.mark.parametrize("sde", [VP(), VE(0.05, 5.0), EDM(T=10.0)], ids=lambda s: type(s).__name__)
def test_width_of_the_decoder_in_closed_form(sde):
    """L_0 = (sigma/alpha)^2 E|eps - z|^2/(2 w^2) + d/2 log(2 pi w^2) for a width w, of both bounds, whose other terms
    stay.
    """
    chain, score = Chain(sde, grid.quadratic(sde, 6)), LAW.diffuse(sde)
    noise, mean = cubature(2, len(X))
    x = X.repeat(4, 1)
    bounds = {
        float(chain.t[0]): lambda x, w: elbo(chain, score, x, width=w, noise=noise),
        sde.t_min: lambda x, w: continuous_elbo(sde.reverse(score), x, width=w, noise=noise),
    }
    for t, bound in bounds.items():
        at = torch.tensor(t, dtype=F64)
        var, alpha = sde.var(at), sde.alpha(at)
        usual = bound(x, None)
        same(bound(x, float(var.sqrt() / alpha)).nats, usual.nats)
        for w in (0.03, 0.4, float(chain.posterior_variances[1].sqrt())):
            found = bound(x, w)
            want = var / alpha**2 * squared_error(sde, at, X) / (2 * w**2) + math.log(2 * math.pi * w**2)
            same(mean(found.decoder), want, 1e-8)
            same(found.prior, usual.prior), same(found.steps, usual.steps)


@pytest.mark.parametrize("sde", [VP(), EDM(T=10.0)], ids=lambda s: type(s).__name__)
def test_best_width_of_the_decoder(sde):
    """Over the data the decoder costs least, d/2 (1 + log(2 pi w^2)), at w^2 = tr Var(x_0 | x_1)/d."""
    chain = Chain(sde, grid.quadratic(sde, 6))
    noise, _ = cubature(2, 4)
    axes = math.sqrt(2) * torch.linalg.cholesky(LAW_C).T
    x = (LAW_M + torch.cat([axes, -axes])).repeat(4, 1)
    over = lambda w: float(elbo(chain, LAW.diffuse(sde), x, width=w, noise=noise).decoder.mean())  # noqa: E731
    snr = (2 * sde.log_snr(chain.t[0])).exp()
    best = float((torch.linalg.inv(torch.linalg.inv(LAW_C) + snr * torch.eye(2)).trace() / 2).sqrt())
    assert over(best) == pytest.approx(1 + math.log(2 * math.pi * best**2), abs=1e-7)
    assert over(best) < min(over(0.98 * best), over(1.02 * best))


def test_width_of_the_decoder_of_grey_levels():
    """L_0 of the discrete data is what the width gives to each bin: nothing is lost once it is narrow, and the mean is
    at the level; and wide it is spread evenly over the bins that are not outermost.
    """
    sde, q = EDM(t_min=1e-4), Quantized(9, -1.0, 1.0)
    law, x = exact.Gaussian(torch.zeros(2), torch.ones(2)), torch.tensor([[0.25, -0.5], [0.0, 0.75]], dtype=F64)
    chain = Chain(sde, torch.tensor([80.0, 1.0, 1e-4], dtype=F64))
    zero = lambda x, t, s: torch.zeros_like(x)  # noqa: E731
    made = [elbo(chain, law.diffuse(sde), x, q, width=w, noise=zero).decoder for w in (0.01, 100.0)]
    assert made[0].abs().max() < 1e-9
    torch.testing.assert_close(
        made[1], torch.full((2,), -2 * math.log(q.width / (100 * math.sqrt(2 * math.pi))), dtype=F64), rtol=1e-4, atol=0
    )


def in_turn(*noises):
    """A noise that asks each of them in turn."""
    asked = iter(noises * 100_000)
    return lambda x, t, s: next(asked)(x, t, s)


@pytest.mark.parametrize("sde", [VP(), VE(0.05, 5.0), EDM(t_min=0.05, T=10.0)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("times", "tol"), [(loss.UniformLogSNR(), 1e-3), (loss.UniformTime(), 3e-2), (loss.LogNormal(), 2e-3)], ids=str
)
def test_continuous_integral_in_closed_form(sde, times, tol):
    """int g^2/(2 sigma^2) E|eps - z|^2 dt by quadrature is what the estimate is for every law of t: to 2e-3 (3 % for t
    uniform) with a time in the middle of every stratum, and in the mean with times from the noise, a sample's own.
    """
    (points, mean), zero = cubature(2, len(X)), lambda x, t, s: torch.zeros_like(x)
    p, expected = sde.reverse(LAW.diffuse(sde)), torch.tensor([integral(sde, x) for x in X], dtype=F64)
    middle = continuous_elbo(p, X.repeat(4, 1), terms=700, times=times, noise=in_turn(zero, points)).steps
    torch.testing.assert_close(mean(middle.sum(1)), expected, rtol=tol, atol=0)
    noise = in_turn(iid(torch.Generator().manual_seed(0)), points)
    steps = continuous_elbo(p, X.repeat(4, 1), terms=200, times=times, noise=noise).steps
    error = mean(steps.std(1)) * math.sqrt(200) / math.sqrt(4)  # stratified draws vary less than this
    assert ((mean(steps.sum(1)) - expected).abs() < 4 * error).all()
    assert (steps[: len(X)] - steps[len(X) : 2 * len(X)]).abs().min() > 0


def test_subsampled_terms_are_unbiased():
    """K of the N - 1 terms for each sample, one in each stratum, have the mean of all of them, which the closed form
    knows, and vary less with larger K; samples draw terms of their own.
    """
    sde, n = VP(), 20_000
    chain, score = Chain(sde, grid.quadratic(sde, 30)), LAW.diffuse(sde)
    points, mean = cubature(2, len(X))
    every = mean(elbo(chain, score, X.repeat(4, 1), noise=points).steps)
    errors = []
    for k in (2, 8):
        part = elbo(chain, score, X[:1].repeat(n, 1), terms=k, noise=iid(torch.Generator().manual_seed(k)))
        assert part.nfe == k + 1 and part.steps.shape == (n, k)
        errors.append(float(part.steps.sum(1).std()) / math.sqrt(n))
        assert abs(float(part.steps.sum(1).mean() - every[0].sum())) < 4.5 * errors[-1]
    assert errors[1] < errors[0]


def test_every_term_is_drawn_by_its_share_of_the_log_snr():
    """Over a fine grid of draws u the estimate of one sample takes each value term/share for a share of u, so the mean
    over u is the sum of all terms: each of K strata sees its K-th of the whole, and a term on a seam appears in two.
    """
    sde, n = VP(), 40_000
    chain, score = Chain(sde, grid.quadratic(sde, 12)), LAW.diffuse(sde)
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    x = X[:1].repeat(n, 1)
    fixed = lambda x, t, s: torch.full_like(x, 0.3)  # noqa: E731
    level = lambda x, t, s: torch.special.ndtri(u)[:, None].expand_as(x)  # noqa: E731
    every = elbo(chain, score, X[:1], noise=fixed).steps[0]
    for k in (1, 3):
        found = elbo(chain, score, x, terms=k, noise=in_turn(level, fixed)).steps
        assert float(found.sum(1).mean()) == pytest.approx(float(every.sum()), rel=1e-3)
        seen = torch.unique(found.mul(1e8).round())
        assert len(every) <= len(seen) <= len(every) + k - 1


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("terms", [None, 3])
def test_bounds_do_not_depend_on_the_batch(grey, terms):
    """With streams of its own a sample has the same terms in any chunk: of both bounds, all terms or some."""
    sde = VP()
    law = exact.Gaussian(torch.zeros(1, 2, 2), 0.4)
    x, q = law.sample(9, torch.Generator().manual_seed(0)), Quantized(9, -2.0, 2.0) if grey else None
    x = (x.clamp(-2, 2) * 2).round() / 2 if grey else x
    chain, p, streams = Chain(sde, grid.quadratic(sde, 7)), sde.reverse(law.diffuse(sde)), per_sample(range(9))

    def bounds(a, b):
        d = elbo(chain, p.score, x[a:b], q, terms=terms, noise=streams.rows(a, b))
        c = continuous_elbo(p, x[a:b], q, terms=terms or 5, noise=streams.rows(a, b))
        return torch.cat([torch.cat([v.prior[:, None], v.steps, v.decoder[:, None]], 1) for v in (d, c)], 1)

    whole = bounds(0, 9)
    same(torch.cat([bounds(0, 4), bounds(4, 5), bounds(5, 9)]), whole, 1e-10)
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_every_bound_is_one_and_they_fall_to_the_limit():
    """-log p <= continuous bound ~ long chain, optimal variance <= fixed-large, and finer chains are tighter."""
    sde, n = VP(), 4000
    x = LAW.sample(n, torch.Generator().manual_seed(0))
    p, noise = sde.reverse(LAW.diffuse(sde)), lambda k: iid(torch.Generator().manual_seed(k))
    exact_nll = float(-LAW.log_prob(x).mean())
    values, error = {}, 0.0
    for N in (10, 40, 160):
        chain = Chain(sde, grid.log_snr(sde, N))
        optimal = AnalyticDPM.fit(p, LAW.sample(n, torch.Generator().manual_seed(1)), chain.ts, noise(2))
        bounds = [elbo(chain, p.score, x, kernel=k, noise=noise(3)) for k in (optimal, Ancestral(1.0))]
        values[N], error = [float(b.nats.mean()) for b in bounds], max(b.error() for b in bounds)
    limit = continuous_elbo(p, x, terms=100, noise=noise(4))
    tolerance = 3 * math.hypot(error, limit.error())
    assert exact_nll < float(limit.nats.mean()) + tolerance
    assert abs(values[160][0] - float(limit.nats.mean())) < 0.03 + tolerance
    for N in (10, 40):
        assert values[N][0] < values[N][1]
        assert values[4 * N][0] < values[N][0] + tolerance and values[4 * N][1] < values[N][1]


def test_discrete_bound_tends_to_the_continuous_one():
    """The sum of the terms (each mean exact) tends to the integral, with error of order 1/N in the number of steps."""
    sde = VP()
    noise, mean = cubature(2, len(X))
    score, limit = LAW.diffuse(sde), integral(sde, X[0])
    gaps = []
    for N in (100, 200, 400):
        chain = Chain(sde, grid.log_snr(sde, N))
        gaps.append(
            float(mean(elbo(chain, score, X.repeat(4, 1), kernel=Ancestral(0.0), noise=noise).steps).sum(1)[0]) - limit
        )
    slopes = [math.log2(abs(a / b)) for a, b in zip(gaps, gaps[1:])]
    assert all(abs(slope - 1) < 0.1 for slope in slopes), (gaps, slopes)


# discrete data


def test_discrete_bound_holds_for_quantised_data():
    """For grey levels of a known law, the bound in bits/dim is above their entropy and near it, and so are the bits/dim
    of the flow of the law smeared over the bins.
    """
    q, g = Quantized(9, -1.0, 1.0), torch.Generator().manual_seed(0)
    points = torch.linspace(-1, 1, 9, dtype=F64)[:, None]
    w = (-((points[:, 0] - 0.1) ** 2) / 0.2).exp()
    law = exact.GaussianMixture(w, points, torch.full((9,), 1e-6))
    levels = points[torch.multinomial(w, 2000, True, generator=g)]
    p_levels = w / w.sum()
    entropy = float(-(p_levels * p_levels.log2()).sum())
    sde = VP()
    chain, p = Chain(sde, grid.log_snr(sde, 300)), sde.reverse(law.diffuse(sde))
    bound = elbo(chain, p.score, levels, q, kernel=AnalyticDPM.fit(p, levels, chain.ts, iid(g)), noise=iid(g))
    bits = bound.bits_per_dim
    se = float(bits.std()) / math.sqrt(len(bits))
    assert entropy - 3 * se < float(bits.mean()) < entropy + 0.15
    smooth = exact.GaussianMixture(w, points, torch.full((9,), q.width**2 / 12))
    flow = log_prob(sde.reverse(smooth.diffuse(sde), eta=0), levels[:300], q, noise=iid(g)).bits_per_dim
    assert float(flow.mean()) > entropy - 3 * float(flow.std()) / math.sqrt(300)


# bookkeeping


def test_a_bound_is_one_line():
    """Its mean and standard error in the unit of the data, of how many samples, terms and calls."""
    parts = torch.tensor([1.0, 3.0]), torch.tensor([[0.5, 0.5], [1.0, 1.0]]), torch.tensor([2.0, 1.0])
    assert str(Bound(*parts, 4, 2)) == (
        "2.5000 +- 0.5 nats/dim over 2 samples (upper bound of -log p, 2 times a sample); 4 network calls"
    )
    said = str(Bound(*(part[:1] for part in parts), 4, 2, Quantized(17, -1.0, 1.0)))
    assert said.startswith("2.8854 bits/dim over 1 samples (upper bound of -log p of the discrete data, 2 times")


def test_calls_are_counted():
    """nfe is the number of network calls: N for the whole bound, K + 1 for a part of it."""
    sde = VP()
    score = Counted(LAW.diffuse(sde))
    bound = elbo(Chain(sde, grid.quadratic(sde, 9)), score, X)
    assert bound.nfe == score.nfe == 10
    score.nfe = 0
    assert continuous_elbo(sde.reverse(score), X, terms=5).nfe == score.nfe == 6


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda c, p: elbo(c, p, X), "score must"),
        (lambda c, p: elbo(p.sde, p.score, X), "chain must be a Chain"),
        (lambda c, p: elbo(c, p.score, X, kernel=ReverseDiffusion()), "kernel must be a Posterior"),
        (lambda c, p: continuous_elbo(p.score, X), "p must be a Reverse process"),
        (lambda c, p: elbo(c, p.score, X, Quantized(17, -1.0, 1.0)), "x must"),
        (lambda c, p: elbo(c, p.score, X * math.nan), "x must"),
        (lambda c, p: elbo(c, p.score, X, terms=0), "terms"),
        (lambda c, p: elbo(c, p.score, X, width=0.0), "width must be"),
        (lambda c, p: continuous_elbo(p, X, width=-1.0), "width must be"),
        (lambda c, p: continuous_elbo(p, X, terms=0), "terms"),
        (lambda c, p: elbo(c, p.score, X).bits_per_dim, "discrete"),
    ],
)
def test_bad_input(call, word):
    """One clear line."""
    sde = VP()
    with pytest.raises(ValueError, match=word):
        call(Chain(sde, grid.quadratic(sde, 4)), sde.reverse(LAW.diffuse(sde)))
