"""Discrete data: bins, and the Jacobian that follows from them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from scoresde import Quantized, exact, per_sample

F64 = torch.float64
UNIT, SIGNED, WHOLE = Quantized(17, 0.0, 1.0), Quantized(17, -1.0, 1.0), Quantized(17, 0.0, 16.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=6):
    return torch.randint(17, (n, 1, 4, 4), generator=generator(4)).to(F64)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_dequantised_in_float32(dtype):
    """Bytes in half precision are told apart, and their noise keeps its digits: the values are those of float32."""
    data, x = Quantized(256, 0.0, 255.0), torch.arange(256, dtype=torch.float32).view(16, 16)
    found = data.dequantize(x.to(dtype), per_sample(range(16)))
    assert found.dtype == torch.float32
    assert torch.equal(found, data.dequantize(x, per_sample(range(16)))) and torch.equal(found.round(), x)


# bad input


@given(st.floats(-1, 2).filter(lambda v: abs(v * 16 - round(v * 16)) > 0.01 or not -0.01 < v * 16 < 16.01))
def test_values_that_are_not_levels_are_refused(value):
    """A value between two levels or outside the range is no quantised datum: dequantised twice, or scaled wrongly."""
    x = torch.zeros(2, 3, dtype=F64)
    x[1, 2] = value
    for call in (lambda: UNIT.check(x), lambda: UNIT.dequantize(x)):
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
