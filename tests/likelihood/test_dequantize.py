"""Dequantisations bound the probability of discrete data, whatever they are stored as."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from scoresde import EDM, VE, VP, Quadrature, Quantized, Reference, exact, iid, log_prob, per_sample
from scoresde.likelihood import Adams, Decoded, Exact, TruncatedNormal, Uniform
from scoresde.ode import Dopri5

F64 = torch.float64
EVERY = [Uniform, TruncatedNormal, Decoded]
every_one = pytest.mark.parametrize("dequantization", EVERY, ids=lambda cls: cls.__name__)
LAW = exact.Gaussian(torch.tensor([0.1], dtype=F64), 0.2)
UNIT, SIGNED = Quantized(17, 0.0, 1.0), Quantized(17, -1.0, 1.0)
TIGHT = Dopri5(1e-8, 1e-8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def time(t):
    return torch.tensor(t, dtype=F64)


def images(n=6):
    return torch.randint(17, (n, 1, 4, 4), generator=generator(4)).to(F64)


def flow(law, sde):
    return sde.reverse(law.diffuse(sde), eta=0)


# states and weights


def given_z(z):
    """A noise that is z."""
    return lambda x, t, s: z.to(x).view(x.shape)


def dequantised(dequantization, sde, x, t, noise, law=LAW):
    return dequantization(flow(law, sde), x, t, noise)


def test_uniform_log_w():
    """x + h (u - 1/2) with u = Phi(z), and log w = d log h, to 1e-10."""
    x, z = -1 + images() / 8, torch.randn(6, 1, 4, 4, generator=generator(), dtype=F64)
    law = exact.Gaussian(torch.zeros(1, 4, 4), 0.5)
    y, log_w = dequantised(Uniform(SIGNED), VP(), x, time(1e-3), given_z(z), law)
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
    y, log_w = dequantised(TruncatedNormal(SIGNED), sde, x, t, given_z(z), law)
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
        y, log_w = dequantised(TruncatedNormal(SIGNED), VP(), x, time(t), given_z(z), law)
        assert (y.abs() <= 1 / 16 * (1 + 1e-6)).all() and log_w.isfinite().all()


@pytest.mark.parametrize("sde", [VP(), VE(0.02, 10.0), EDM(T=10.0)], ids=lambda s: type(s).__name__)
def test_decoded_in_closed_form(sde):
    """x_t = alpha x + sigma z, and log w is the log-mass of x's bin under N(E[x_0 | x_t], (sigma/alpha)^2), with open
    outermost bins, less log N(x_t; alpha x, sigma^2): to 1e-10 with the posterior mean of a Gaussian law.
    """
    x, z = -1 + images() / 8, torch.randn(6, 1, 4, 4, generator=generator(), dtype=F64)
    x[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    law, t = exact.Gaussian(torch.full((1, 4, 4), 0.1, dtype=F64), 0.2), time(0.05)
    y, log_w = dequantised(Decoded(SIGNED), sde, x, t, given_z(z), law)
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
    if dequantization is Decoded:
        gain, end = alpha * 0.2 / v, 100.0  # E[x_0 | x_t] = 0.1 + gain (x_t - m)
        P = bins(0.1, gain**2 * v + var / alpha**2, data, open_=True)
    else:
        P = bins(m, v, data if dequantization is Uniform else Quantized(9, -alpha, alpha))
    z = torch.linspace(-end, end, n, dtype=F64)
    log_weight = -z.square() / 2 - math.log(2 * math.pi) / 2 + math.log(2 * end / (n - 1))
    for k in range(9):
        x = torch.full((n, 1), -1 + k / 4, dtype=F64)
        y, log_w = dequantised(dequantization(data), sde, x, t, given_z(z))
        log_p = LAW.marginal(sde, t).log_prob(y) + log_w
        assert float((log_p + log_weight).exp().sum()) == pytest.approx(float(P[k]), rel=1e-8)
        assert float((log_weight.exp() * log_p).sum()) < math.log(float(P[k]))


@every_one
def test_dequantisations_do_not_depend_on_the_batch(dequantization):
    """With streams of its own a sample has the same state and weight in any chunk; both are in the dtype of x."""
    law, x, streams = exact.Gaussian(torch.zeros(1, 4, 4), 0.5), -1 + images() / 8, per_sample(range(6))
    run = lambda a, b: dequantised(dequantization(SIGNED), VP(), x[a:b], time(0.01), streams.rows(a, b), law)  # noqa: E731
    for whole, first, rest in zip(run(0, 6), run(0, 2), run(2, 6)):
        torch.testing.assert_close(torch.cat([first, rest]), whole, rtol=1e-12, atol=1e-12)
    for part in dequantised(dequantization(SIGNED), VP(), x.float(), time(0.01), per_sample(range(6)), law):
        assert part.dtype == torch.float32


# log p of discrete data


def stored(levels, low, high):
    """The same six images of 2x2 pixels, a law for them and a process, all scaled along."""
    h = (high - low) / (levels - 1)
    k = torch.randint(levels, (6, 1, 2, 2), generator=generator(4)).to(F64)
    means, var = levels * torch.rand(2, 1, 2, 2, generator=generator(5), dtype=F64), torch.tensor([0.3, 0.2]) * levels
    law = exact.GaussianMixture(torch.tensor([0.4, 0.6]), low + h * means, h**2 * var**2)
    sde = VE(0.2 * h, 100 * h * levels)
    return Quantized(levels, low, high), low + h * k, law, sde, Reference(low + h * levels / 2, h * levels / 4)


@pytest.mark.parametrize("levels", [17, 256])
@every_one
@pytest.mark.parametrize("method", [pytest.param(Dopri5(1e-6, 1e-6), marks=pytest.mark.slow), Adams(20)], ids=repr)
def test_bits_do_not_depend_on_the_storage(levels, dequantization, method):
    """The same images in [0, 1], in [-1, 1], standardised and as integers have the same bits/dim, and the same errors,
    to 1e-6; they are log_p in bits for each dimension.
    """
    found = []
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (-1.7, 2.9), (0.0, levels - 1.0)):
        data, x, law, sde, around = stored(levels, low, high)
        how, noise = Quadrature(method, prior=law.marginal(sde, sde.T)), per_sample(range(6))
        one = log_prob(flow(law, sde), x, dequantization(data), around=around, how=how, noise=noise)
        torch.testing.assert_close(one.bits_per_dim, -one.log_p / (4 * math.log(2)), rtol=1e-12, atol=0)
        found.append(one)
    for one in found[1:]:
        torch.testing.assert_close(one.bits_per_dim, found[0].bits_per_dim, rtol=0, atol=1e-6)
        torch.testing.assert_close(one.solver_error, found[0].solver_error, rtol=1e-3, atol=1e-6)


@every_one
def test_log_p_is_that_of_the_dequantised(dequantization):
    """log p_t(x_t) + log w for the states and weights that the dequantisation gives with the same noise."""
    data, x, law, sde, around = stored(17, -1.0, 1.0)
    q, discrete = flow(law, sde), dequantization(data)
    how = Quadrature(TIGHT, prior=law.marginal(sde, sde.T))
    found = log_prob(q, x, discrete, around=around, how=how, noise=per_sample(range(6)))
    x_t, log_w = discrete(q, x, time(0.0), per_sample(range(6)))
    torch.testing.assert_close(found.log_p, law.diffuse(sde).log_prob(x_t, 0.0) + log_w, rtol=0, atol=4e-6)
    assert found.discrete == discrete


def test_a_grid_alone_is_dequantised_uniformly():
    """`discrete` may be the grid: that is `Uniform` on it, by one draw."""
    data, x, law, sde, around = stored(17, -1.0, 1.0)
    plain, uniform = (
        log_prob(flow(law, sde), x, discrete, around=around, how=Quadrature(Adams(12)), noise=per_sample(range(6)))
        for discrete in (data, Uniform(data))
    )
    assert torch.equal(plain.log_p, uniform.log_p) and plain.discrete == uniform.discrete == Uniform(data, draws=1)


GREY_LAW = exact.Gaussian(torch.tensor([0.1, -0.3], dtype=F64), 0.3)


def grey(n, t, decoded=False):
    """n images of two pixels on a coarse grid, and -log2 P/d of each by the normal distribution function: of p_t in the
    bin of alpha x, or of the decoder's x_0 in the bin of x, the outermost being open.
    """
    data, sde, m = Quantized(9, -2.0, 2.0), VP(), GREY_LAW.means[0]
    x = (GREY_LAW.sample(n, generator()) * 2).round().clamp(-4, 4) / 2
    alpha, var = sde.alpha(t), sde.var(time(t))
    v = 0.3 * alpha**2 + var
    std = (v.sqrt() / alpha) if not decoded else ((alpha * 0.3) ** 2 / v + var / alpha**2).sqrt()
    a, b = ((x + side * 0.25 - m) / std for side in (-1, 1))
    if decoded:
        a, b = torch.where(x == -2, -math.inf, a), torch.where(x == 2, math.inf, b)
    P = torch.where(
        a > 0, torch.special.ndtr(-a) - torch.special.ndtr(-b), torch.special.ndtr(b) - torch.special.ndtr(a)
    )
    return data, sde, x, -P.log2().mean(1)


@pytest.mark.parametrize(
    ("dequantization", "v", "most"),
    [
        (Uniform, 0.0, 0.1),
        (TruncatedNormal, 0.083**2, 0.7),
        (TruncatedNormal, 0.3**2, 0.1),
        (Decoded, 0.3**2, 0.2),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_dequantisation_bounds_the_discrete_data(dequantization, v, most):
    """Mean bits/dim are not below those of the bins under the law, and near them where t suits the bins."""
    t = float(VP().time(time(-math.log(v) / 2))) if v else VP().t_min
    data, sde, x, truth = grey(4000, t, dequantization is Decoded)
    found = log_prob(
        flow(GREY_LAW, sde),
        x,
        dequantization(data),
        around=Reference(0.0, 0.55),
        how=Quadrature(Adams(40), t=t, prior=GREY_LAW.marginal(sde, sde.T)),
        noise=iid(generator(3)),
    )
    gap = found.bits_per_dim - truth
    assert -3 * float(gap.std()) / len(gap) ** 0.5 < float(gap.mean()) < most
    assert float(gap.mean()) > 0


def test_draws_tighten_the_bound():
    """The mean over K draws inside the logarithm falls with K, in the mean over images, and not below the truth; it is
    what K single draws of the same noise give.
    """
    data, sde, x, truth = grey(4000, VP().t_min)
    q, how = flow(GREY_LAW, sde), Quadrature(Adams(20), Exact(), prior=GREY_LAW.marginal(sde, sde.T))
    noise = iid(generator(6))
    singles = [log_prob(q, x, data, how=how, noise=noise) for _ in range(6)]
    whole = log_prob(q, x, Uniform(data, draws=6), how=how, noise=iid(generator(6)))
    want = torch.stack([one.log_p for one in singles]).logsumexp(0) - math.log(6)
    torch.testing.assert_close(whole.log_p, want, rtol=1e-12, atol=1e-12)
    assert whole.nfe == sum(one.nfe for one in singles) and whole.discrete.draws == 6
    weights = torch.stack([one.log_p for one in singles]).softmax(0)
    errors = (weights * torch.stack([one.solver_error for one in singles])).sum(0)
    torch.testing.assert_close(whole.solver_error, errors, rtol=1e-10, atol=0)  # as d log of the mean is
    two = log_prob(q, x, Uniform(data, draws=2), how=how, noise=iid(generator(6)))
    bits = [singles[0].bits_per_dim, two.bits_per_dim, whole.bits_per_dim, truth]
    for looser, tighter in zip(bits, bits[1:]):
        gap = looser - tighter
        assert float(gap.mean()) > -float(gap.std()) / len(gap) ** 0.5
    gap = bits[0] - bits[2]
    assert float(gap.mean()) > 4.5 * float(gap.std()) / len(gap) ** 0.5


# bad input


@given(st.floats(-1, 2).filter(lambda v: abs(v * 16 - round(v * 16)) > 0.01 or not -0.01 < v * 16 < 16.01))
def test_values_that_are_not_levels_are_refused(value):
    """A value between two levels or outside the range is no quantised datum: dequantised twice, or scaled wrongly."""
    x = torch.zeros(2, 3, dtype=F64)
    x[1, 2] = value
    p = flow(exact.Gaussian(torch.zeros(3), 1.0), VP())
    for dequantization in EVERY:
        with pytest.raises(ValueError, match="x must be inside" if not 0 <= value <= 1 else "x must"):
            dequantization(UNIT)(p, x, time(0.1), per_sample([0, 1]))


@every_one
def test_bad_values(dequantization):
    """What is no grid, and draws that are none, are named."""
    for bad in (None, 17, "grey", Quantized):
        with pytest.raises(ValueError, match="^quantized must be a grid"):
            dequantization(bad)
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="^draws must"):
            dequantization(UNIT, bad)
