"""Discrete data: bins, the Jacobian that follows from them, and dequantisations that bound their probability."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from scoresde import EDM, VE, VP, Decoded, Quantized, TruncatedNormal, Uniform, exact, per_sample

F64 = torch.float64
UNIT, SIGNED, WHOLE = Quantized(17, 0.0, 1.0), Quantized(17, -1.0, 1.0), Quantized(17, 0.0, 16.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def time(t):
    return torch.tensor(t, dtype=F64)


def images(n=6):
    return torch.randint(17, (n, 1, 4, 4), generator=generator(4)).to(F64)


# bins


def test_bits_do_not_depend_on_the_storage():
    """The same images in [0, 1], in [-1, 1] and as 0..16, with the law scaled along, have the same bits/dim."""
    k, w = images(), torch.tensor([0.4, 0.6])
    mean, var = 16 * torch.rand(2, 1, 4, 4, generator=generator(5), dtype=F64), torch.tensor([20.0, 9.0])
    found = []
    for data in (UNIT, SIGNED, WHOLE):
        h = (data.high - data.low) / 16
        law = exact.GaussianMixture(w, data.low + h * mean, h**2 * var)
        x = data.dequantize(data.low + h * k, per_sample(range(len(k))))
        found.append(data.bits_per_dim(law.log_prob(x), 16))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=0)
    torch.testing.assert_close(found[0], found[2], rtol=1e-10, atol=0)


@pytest.mark.parametrize("data", [UNIT, SIGNED, WHOLE, Quantized(256, -1.0, 1.0), Quantized(2, 0.0, 1.0)], ids=str)
def test_uniform_data_cost_log_levels(data):
    """The uniform density over all bins, 1/(levels h)^d, costs log2(levels) bits/dim: 8 bits for a byte."""
    for d in (1, 16):
        log_p = torch.tensor([-d * math.log(data.levels * (data.high - data.low) / (data.levels - 1))], dtype=F64)
        assert float(data.bits_per_dim(log_p, d)) == pytest.approx(math.log2(data.levels), rel=1e-12)


def test_bits_bound_the_discrete_model_from_above():
    """For one dimension: mean bits over dequantisation >= -log2 of the bin's probability, which averages the density.

    The density over u has the mean P(bin)/h, so 2^-bits has the mean P(bin), within 4.5 standard errors.
    """
    data, n = Quantized(9, -1.0, 1.0), 20_000
    law = exact.Gaussian(torch.tensor([0.1]), 0.05)
    cdf = torch.special.ndtr((torch.tensor([0.125, 0.375], dtype=F64) - 0.1) / 0.05**0.5)
    x = torch.full((n, 1), 0.25, dtype=F64)
    bits = data.bits_per_dim(law.log_prob(data.dequantize(x)), 1)
    p = 2**-bits
    assert abs(float(p.mean() - cdf.diff())) < 4.5 * float(p.std()) / n**0.5
    assert float(bits.mean()) > -math.log2(float(cdf.diff()))


@given(st.integers(2, 300), st.floats(-100, 100), st.floats(0.01, 100), st.integers(0, 1000))
def test_dequantised_values_stay_in_their_bins(levels, low, width, seed):
    """x + h (u - 1/2) is inside the bin of x, in x's dtype, and rounds back to x."""
    data = Quantized(levels, low, low + width)
    h = width / (levels - 1)
    x = low + h * torch.randint(levels, (4, 3), generator=generator(seed)).to(F64)
    y = data.dequantize(x, per_sample(range(seed, seed + 4)))
    assert y.dtype == x.dtype and y.shape == x.shape
    assert ((y - x).abs() <= h / 2 * (1 + 1e-9)).all() and (y != x).any()
    torch.testing.assert_close(data.check(x), x, rtol=0, atol=0)


def test_dequantised_values_are_uniform():
    """(y - x)/h has the quantiles of the uniform law on (-1/2, 1/2): Kolmogorov's distance at the 1e-5 level."""
    x = torch.full((20_000, 1), 0.5)
    u = ((UNIT.dequantize(x) - x) * 16 + 0.5).flatten().sort().values
    edges = torch.arange(1, len(u) + 1) / len(u)
    assert float((u - edges).abs().max()) < 2.47 / len(u) ** 0.5


@given(st.floats(-60, 60), st.floats(0.01, 3.0), st.integers(0, 16))
def test_log_bin_is_the_mass_of_the_bin(mean, std, k):
    """log(Phi(b) - Phi(a)) with open ends, against SciPy's log of the tails, to 1e-9 relative, however far out."""
    q = Quantized(17, -1.0, 1.0)
    x = torch.tensor([[k / 8 - 1]], dtype=F64)
    a, b = (float(x) + sign * q.width / 2 - mean for sign in (-1, 1))
    a, b = -math.inf if k == 0 else a / std, math.inf if k == 16 else b / std
    if a > 0:
        a, b = -b, -a
    low, high = norm.logcdf(a), norm.logcdf(b)
    expected = high + math.log(-math.expm1(low - high))
    got = float(q.log_bin(x, torch.tensor([[mean]], dtype=F64), torch.tensor(std, dtype=F64)))
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_log_bin_sums_to_one():
    """The masses of all bins are a distribution."""
    q = Quantized(5, 0.0, 4.0)
    x = torch.arange(5, dtype=F64)[:, None]
    for mean, std in ((1.3, 0.4), (-3.0, 2.0), (7.0, 0.5)):
        total = q.log_bin(x, torch.full((5, 1), mean, dtype=F64), torch.tensor(std, dtype=F64)).logsumexp(0)
        torch.testing.assert_close(total, torch.zeros(1, dtype=F64), rtol=0, atol=1e-9)


# dequantisations

EVERY = [Uniform(), TruncatedNormal(), Decoded()]
every_one = pytest.mark.parametrize("dequantization", EVERY, ids=repr)
LAW = exact.Gaussian(torch.tensor([0.1], dtype=F64), 0.2)


def given_z(z):
    """A noise that is z."""
    return lambda x, t, s: z.to(x).view(x.shape)


def dequantised(dequantization, sde, data, x, t, noise, law=LAW):
    p = sde.reverse(law.diffuse(sde), 0.0)
    return dequantization(p, data, x, t, noise)


def test_uniform_log_w():
    """x + h (u - 1/2) with u = Phi(z), and log w = d log h, to 1e-10."""
    x, z = -1 + images() / 8, torch.randn(6, 1, 4, 4, generator=generator(), dtype=F64)
    law = exact.Gaussian(torch.zeros(1, 4, 4), 0.5)
    y, log_w = dequantised(Uniform(), VP(), SIGNED, x, time(1e-3), given_z(z), law)
    torch.testing.assert_close(y, x + (torch.special.ndtr(z) - 0.5) / 8, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_w, torch.full((6,), 16 * math.log(1 / 8), dtype=F64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("t", [1e-4, 2e-3, 0.05, 0.3])
@pytest.mark.parametrize("sde", [VP(), VE(0.02, 10.0), EDM(T=10.0)], ids=lambda s: type(s).__name__)
def test_truncated_normal_in_closed_form(sde, t):
    """(x_t - alpha x)/sigma has SciPy's normal law cut to |u| < alpha h/(2 sigma): its quantiles at Phi(z), and log w
    is less the logarithm of its density, to 1e-10, for bins from a part of sigma to many.
    """
    x, z = -1 + images() / 8, torch.randn(6, 1, 4, 4, generator=generator(), dtype=F64)
    law, t = exact.Gaussian(torch.zeros(1, 4, 4), 0.5), time(t)
    y, log_w = dequantised(TruncatedNormal(), sde, SIGNED, x, t, given_z(z), law)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    tau = alpha / 8 / sigma / 2
    mass, below = norm.cdf(tau) - norm.cdf(-tau), norm.cdf(-tau)
    u = torch.from_numpy(norm.ppf(below + mass * norm.cdf(z.numpy())))
    torch.testing.assert_close(y, alpha * x + sigma * u, rtol=0, atol=1e-10)
    log_q = torch.from_numpy(norm.logpdf(u.numpy())) - math.log(mass) - math.log(sigma)
    torch.testing.assert_close(log_w, -log_q.flatten(1).sum(1), rtol=1e-10, atol=1e-10)
    assert ((y / alpha - x).abs() <= 1 / 16 + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_truncated_normal_of_far_noise(dtype):
    """Noise far out gives the edge of the bin and not infinity, where the cut is far out and where it is near."""
    x, z = torch.zeros(2, 2, dtype=dtype), torch.tensor([[9.0, -9.0], [40.0, -40.0]])
    for t in (1e-5, 1e-2, 0.9):
        law = exact.Gaussian(torch.zeros(2), 0.5)
        y, log_w = dequantised(TruncatedNormal(), VP(), SIGNED, x, time(t), given_z(z), law)
        assert (y.abs() <= 1 / 16 * (1 + 1e-6)).all() and log_w.isfinite().all()


@pytest.mark.parametrize("sde", [VP(), VE(0.02, 10.0), EDM(T=10.0)], ids=lambda s: type(s).__name__)
def test_decoded_in_closed_form(sde):
    """x_t = alpha x + sigma z, and log w is the log-mass of x's bin under N(E[x_0 | x_t], (sigma/alpha)^2), with open
    outermost bins, less log N(x_t; alpha x, sigma^2): to 1e-10 with the posterior mean of a Gaussian law.
    """
    x, z = -1 + images() / 8, torch.randn(6, 1, 4, 4, generator=generator(), dtype=F64)
    x[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    law, t = exact.Gaussian(torch.full((1, 4, 4), 0.1, dtype=F64), 0.2), time(0.05)
    y, log_w = dequantised(Decoded(), sde, SIGNED, x, t, given_z(z), law)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    torch.testing.assert_close(y, alpha * x + sigma * z, rtol=0, atol=1e-12)
    mean = 0.1 + alpha * 0.2 / (alpha**2 * 0.2 + sigma**2) * (y - alpha * 0.1)
    a, b = (((x + side / 16 - mean) * alpha / sigma).numpy() for side in (-1, 1))
    a[x.numpy() == -1], b[x.numpy() == 1] = -math.inf, math.inf
    mass = np.where(a > 0, norm.sf(a) - norm.sf(b), norm.cdf(b) - norm.cdf(a))  # the tail that keeps its digits
    want = torch.from_numpy(np.log(mass)) - torch.from_numpy(norm.logpdf(z.numpy())) + math.log(sigma)
    torch.testing.assert_close(log_w, want.flatten(1).sum(1), rtol=1e-10, atol=1e-10)


def bins(law_mean, law_var, data, open_=False):
    """The masses of N(mean, var) in the bins of one dimension, of which the outermost may be open."""
    edges = torch.arange(data.levels + 1, dtype=F64) * data.width + data.low - data.width / 2
    if open_:
        edges[0], edges[-1] = -math.inf, math.inf
    return torch.special.ndtr((edges - law_mean) / law_var**0.5).diff()


@every_one
@pytest.mark.parametrize("sde", [VP(), VE(0.04, 10.0)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("t", [0.01, 0.1])
def test_every_dequantisation_is_a_bound(dequantization, sde, t):
    """For a Gaussian law in one dimension E w p_t(x_t) is the probability of the bin, to 1e-8 by quadrature over the
    noise, so E log (w p_t(x_t)) is less: each is a bound of -log2 P and not of something else.

    The probability is that of p_t in the bin of alpha x, for those on the bin; p_t read by N(E[x_0 | x_t], sigma^2 /
    alpha^2), in which x_0 is normal, for the decoder, whose outermost bins are open.
    """
    data, n, t = Quantized(9, -1.0, 1.0), 4001, time(t)
    alpha, var = float(sde.alpha(t)), float(sde.var(t))
    m, v = 0.1 * alpha, 0.2 * alpha**2 + var
    end = 8.0
    if isinstance(dequantization, Decoded):
        gain, end = alpha * 0.2 / v, 100.0  # E[x_0 | x_t] = 0.1 + gain (x_t - m)
        P = bins(0.1, gain**2 * v + var / alpha**2, data, open_=True)
    else:
        P = bins(m, v, data if isinstance(dequantization, Uniform) else Quantized(9, -alpha, alpha))
    z = torch.linspace(-end, end, n, dtype=F64)
    log_weight = -z.square() / 2 - math.log(2 * math.pi) / 2 + math.log(2 * end / (n - 1))
    for k in range(9):
        x = torch.full((n, 1), -1 + k / 4, dtype=F64)
        y, log_w = dequantised(dequantization, sde, data, x, t, given_z(z))
        log_p = LAW.marginal(sde, t).log_prob(y) + log_w
        assert float((log_p + log_weight).exp().sum()) == pytest.approx(float(P[k]), rel=1e-8)
        assert float((log_weight.exp() * log_p).sum()) < math.log(float(P[k]))


@every_one
def test_dequantisations_do_not_depend_on_the_batch(dequantization):
    """With streams of its own a sample has the same state and weight in any chunk; both are in the dtype of x."""
    law, x, streams = exact.Gaussian(torch.zeros(1, 4, 4), 0.5), -1 + images() / 8, per_sample(range(6))
    run = lambda a, b: dequantised(dequantization, VP(), SIGNED, x[a:b], time(0.01), streams.rows(a, b), law)  # noqa: E731
    for whole, first, rest in zip(run(0, 6), run(0, 2), run(2, 6)):
        torch.testing.assert_close(torch.cat([first, rest]), whole, rtol=1e-12, atol=1e-12)
    for part in dequantised(dequantization, VP(), SIGNED, x.float(), time(0.01), per_sample(range(6)), law):
        assert part.dtype == torch.float32


# bad input


@given(st.floats(-1, 2).filter(lambda v: abs(v * 16 - round(v * 16)) > 0.01 or not -0.01 < v * 16 < 16.01))
def test_values_that_are_not_levels_are_refused(value):
    """A value between two levels or outside the range is no quantised datum: dequantised twice, or scaled wrongly."""
    x = torch.zeros(2, 3, dtype=F64)
    x[1, 2] = value
    p = VP().reverse(exact.Gaussian(torch.zeros(3), 1.0).diffuse(VP()), 0.0)
    calls = [lambda d=d: d(p, UNIT, x, time(0.1), per_sample([0, 1])) for d in EVERY]
    for call in (lambda: UNIT.check(x), lambda: UNIT.dequantize(x), *calls):
        with pytest.raises(ValueError, match="x must be inside" if not 0 <= value <= 1 else "x must"):
            call()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Quantized(1, 0.0, 1.0), "levels"),
        (lambda: Quantized(2.5, 0.0, 1.0), "levels"),
        (lambda: Quantized(True, 0.0, 1.0), "levels"),
        (lambda: Quantized(17, 1.0, 1.0), "high"),
        (lambda: Quantized(17, 1.0, 0.0), "high"),
        (lambda: Quantized(17, math.nan, 1.0), "low"),
        (lambda: Quantized(17, 0.0, math.inf), "high"),
        (lambda: UNIT.bits_per_dim(torch.zeros(2), 0), "d must"),
        (lambda: UNIT.check(torch.zeros(2, 3, dtype=torch.uint8)), "x must"),
        (lambda: UNIT.check(torch.full((2, 3), math.nan)), "x must be finite, but sample 0"),
    ],
)
def test_bad_values(make, match):
    """Levels, ranges and dimensions that make no sense are named."""
    with pytest.raises(ValueError, match=match):
        make()
