"""Likelihoods against closed forms: Gaussians and mixtures with their own log p_T, traces, and quantised data."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import (
    EDM,
    VE,
    VP,
    Cosine,
    Counted,
    Exact,
    Hutchinson,
    Quantized,
    RectifiedFlow,
    ScoreModel,
    SubVP,
    Velocity,
    bits_per_dim,
    exact,
    log_prob,
    per_sample,
)
from scoresde.nn import MLP
from scoresde.ode import RK4, Dopri5

F64 = torch.float64
SDES = [VP(), SubVP(), VE(0.05, 20.0), Cosine(), RectifiedFlow(), EDM(T=30.0)]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
TIGHT = Dopri5(1e-9, 1e-9)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=3):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def mixture(*shape):
    """Two components with their own diagonal variances."""
    d = math.prod(shape)
    means = torch.stack([torch.full(shape, -0.8, dtype=F64), torch.linspace(-1, 1, d, dtype=F64).view(shape)])
    return exact.GaussianMixture(torch.tensor([0.4, 0.6]), means, 0.1 + torch.rand(2, d, generator=generator(1)))


def correlated(d):
    """A Gaussian with a full covariance."""
    L = 0.3 * normal(d, d) + 0.4 * torch.eye(d, dtype=F64)
    return exact.Gaussian(torch.linspace(-1, 1, d, dtype=F64), L @ L.T + 0.05 * torch.eye(d, dtype=F64))


LAWS = {
    "gaussian2": correlated(2),
    "mixture2": mixture(2),
    "gaussian16": correlated(16),
    "mixture1x4x4": mixture(1, 4, 4),
}


def log_p_T(law, sde):
    return lambda x: law.diffuse(sde).log_prob(x, sde.T)


# against closed forms


@every_sde
@pytest.mark.parametrize("law", LAWS)
def test_log_prob_is_the_density(sde, law):
    """With the exact score and log p_T the value is log p at ts[0], to 1e-6 at tight tolerance, far from data too."""
    law = LAWS[law]
    start = float(sde.time(torch.tensor(math.log(20.0), dtype=F64)))
    x = torch.cat([law.diffuse(sde).sample(3, start, generator()), 1.5 + normal(1, *law.shape)])
    q, ts = sde.reverse(law.diffuse(sde), eta=0), torch.tensor([start, sde.T], dtype=F64)
    got = log_prob(q, x, ts, TIGHT, log_prior=log_p_T(law, sde))
    assert got.shape == (4,) and got.dtype == F64
    torch.testing.assert_close(got, law.diffuse(sde).log_prob(x, start), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sde", [VP(), VE(0.05, 20.0), EDM(T=30.0)], ids=lambda sde: type(sde).__name__)
def test_default_times_and_prior(sde):
    """By default the density is that at t_min, and the prior N(0, sigma_T^2): exact for the law that has it as p_T.

    For data N(0, v I) with any score, replacing log p_T by the prior adds exactly the difference of the two at x(T).
    """
    law = exact.Gaussian(torch.zeros(2), 0.4)
    q, x = sde.reverse(law.diffuse(sde), eta=0), law.sample(5, generator())
    got = log_prob(q, x, method=TIGHT)
    C = lambda t: 0.4 * sde.alpha(t) ** 2 + sde.var(t)  # noqa: E731
    x_T = x * (C(sde.T) / C(sde.t_min)).sqrt()
    want = law.diffuse(sde).log_prob(x, sde.t_min)
    prior = -x_T.square().sum(1) / 2 / sde.var(sde.T) - (2 * math.pi * sde.var(sde.T)).log()
    torch.testing.assert_close(got, want + prior - law.diffuse(sde).log_prob(x_T, sde.T), rtol=0, atol=1e-6)


def test_fixed_steps_and_adaptive_steps_agree():
    """RK4 takes one step an interval of ts: its error falls with order 4 to the value of Dopri5."""
    sde, law = VP(), LAWS["mixture2"]
    q, x = sde.reverse(law.diffuse(sde), eta=0), law.sample(4, generator())
    low, high = (float(sde.log_snr(t)) for t in (0.05, 1.0))
    grids = [sde.time(torch.linspace(low, high, n + 1, dtype=F64)).clamp(0.05, 1.0) for n in (30, 60)]
    want = law.diffuse(sde).log_prob(x, 0.05)
    errors = [(log_prob(q, x, ts, RK4(), log_prior=log_p_T(law, sde)) - want).abs().max() for ts in grids]
    assert 3.5 < math.log2(errors[0] / errors[1]) < 4.7


def test_float32_stays():
    """A state in float32 gives a value in float32 that is that of float64 to 1e-3."""
    sde, law = VP(), LAWS["mixture2"]
    q, x = sde.reverse(law.diffuse(sde), eta=0), law.sample(4, generator())
    single = log_prob(q, x.float(), log_prior=log_p_T(law, sde))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), law.diffuse(sde).log_prob(x, sde.t_min), rtol=1e-3, atol=1e-3)


def test_the_state_is_left_alone():
    """x is neither changed nor drawn into a graph, and parameters get no gradient."""
    model = ScoreModel(MLP((2,), width=8, depth=1), VP())
    x = normal(3, 2).float().requires_grad_()
    before = x.detach().clone()
    value = log_prob(VP().reverse(model, eta=0), x)
    assert torch.equal(x, before) and not value.requires_grad and x.grad is None
    assert all(w.grad is None for w in model.parameters())


# traces


def field(x):
    """A nonlinear field that mixes the dimensions of a sample, not the samples."""
    y = x.flatten(1)
    return (torch.sin(y @ MIX[: y.shape[1], : y.shape[1]]) * y.flip(1) + y**2).view(x.shape)


MIX = normal(8, 8, seed=9)


@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (2, 2, 2, 2), (1, 4)])
@pytest.mark.parametrize("chunk", [1, 2, 3, 64])
def test_exact_trace_is_that_of_the_jacobian(shape, chunk):
    """sum_i dv_i/dx_i of each sample, whatever the chunk, against the Jacobian of the whole batch; v comes along."""
    x = normal(*shape)
    v, trace = Exact(chunk).start(x)(field, x)
    J = torch.autograd.functional.jacobian(field, x).view(len(x), x[0].numel(), len(x), x[0].numel())
    torch.testing.assert_close(v, field(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(trace, torch.einsum("bibi->b", J), rtol=1e-12, atol=1e-12)
    assert not v.requires_grad and not trace.requires_grad


def every_sign(d):
    """A noise that gives row k the k-th of all 2^d vectors of signs, times a magnitude that must not matter."""
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=d)), dtype=F64)
    return lambda x, t, s: (signs * (0.1 + torch.arange(d))).view(x.shape)


def test_hutchinson_over_all_probes():
    """Over all 2^d sign vectors its mean is the trace, and its variance 2 sum_{i != j} S_ij^2 with S = (A + A^T)/2.

    Gaussian probes would have the variance 2 sum_ij S_ij^2.
    """
    d, A = 4, normal(4, 4)
    x, S = normal(1, d).expand(2**d, d).contiguous(), (A + A.T) / 2
    v, values = Hutchinson(every_sign(d)).start(x)(lambda x: x @ A.T, x)
    torch.testing.assert_close(v, x @ A.T, rtol=1e-12, atol=0)
    assert float(values.mean()) == pytest.approx(float(A.trace()), rel=1e-12)
    want = 2 * (S.square().sum() - S.diagonal().square().sum())
    assert float(values.var(correction=0)) == pytest.approx(float(want), rel=1e-12)


def test_hutchinson_is_unbiased():
    """Its own probes: mean and variance as above, within 4.5 standard errors, and one call of v."""
    n, A = 20_000, normal(4, 4)
    x, S, v = normal(n, 4), (A + A.T) / 2, Counted(lambda x: x @ A.T)
    values = Hutchinson().start(x)(v, x)[1]
    assert v.nfe == 1
    assert abs(float(values.mean() - A.trace())) < 4.5 * float(values.std()) / n**0.5
    want = 2 * (S.square().sum() - S.diagonal().square().sum())
    square = (values - A.trace()) ** 2
    assert abs(float(square.mean() - want)) < 4.5 * float(square.std()) / n**0.5


def test_a_probe_is_kept_over_the_path():
    """One draw of noise an integration; the next one draws anew."""
    asked = []

    def noise(x, t, s):
        asked.append(x.shape)
        return normal(*x.shape)

    sde, law = VP(), LAWS["mixture1x4x4"]
    q, x = sde.reverse(law.diffuse(sde), eta=0), law.sample(2, generator())
    a, b = (log_prob(q, x, method=Dopri5(1e-3, 1e-3), divergence=Hutchinson(noise)) for _ in range(2))
    assert asked == [x.shape, x.shape] and torch.equal(a, b)


def test_hutchinson_likelihood_over_all_probes():
    """With fixed steps the path does not depend on the probe, so the mean over all probes is the exact-trace value."""
    sde, law, d = VP(0.1, 5.0), correlated(3), 3
    q, x = sde.reverse(law.diffuse(sde), eta=0), law.sample(1, generator()).expand(2**d, d).contiguous()
    ts = torch.linspace(0.1, 1, 20, dtype=F64)
    values = log_prob(q, x, ts, RK4(), Hutchinson(every_sign(d)))
    truth = log_prob(q, x[:1], ts, RK4(), Exact())
    torch.testing.assert_close(values.mean(0, keepdim=True), truth, rtol=1e-12, atol=0)
    assert values.std() > 1e-3


# what a value may not depend on


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_rows_are_independent(trace):
    """The log-densities of 64 samples are those of 7 + 57, and of each alone: steps and probes are a sample's own."""
    sde, law = VP(), LAWS["mixture2"]
    q, x, streams = sde.reverse(law.diffuse(sde), eta=0), law.sample(64, generator()), per_sample(range(64))

    def run(a, b):
        divergence = Exact() if trace == "exact" else Hutchinson(streams.rows(a, b))
        return log_prob(q, x[a:b], method=Dopri5(1e-3, 1e-3), divergence=divergence)

    whole = run(0, 64)
    torch.testing.assert_close(torch.cat([run(0, 7), run(7, 64)]), whole, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(torch.cat([run(i, i + 1) for i in range(0, 64, 3)]), whole[::3], rtol=1e-11, atol=1e-11)


def test_rows_are_independent_with_a_network():
    """The same with a network in float32, to 1e-3 of a nat: an outlier in the batch changes no other sample."""
    sde, net = VP(), MLP((2,), width=16, depth=1)
    for w in net.parameters():
        torch.nn.init.normal_(w, std=0.2, generator=generator(2))
    q, x = sde.reverse(ScoreModel(net, sde, Velocity()), eta=0), normal(16, 2).float()
    x[3] = 30.0
    run = lambda rows: log_prob(q, rows, method=Dopri5(1e-3, 1e-3))  # noqa: E731
    whole = run(x)
    torch.testing.assert_close(torch.cat([run(row[None]) for row in x]), whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 5, 16, 1000])
def test_chunks_do_not_matter(chunk):
    """Exact(chunk) trades memory for calls and nothing else."""
    sde, law = Cosine(), LAWS["mixture1x4x4"]
    q, x = sde.reverse(law.diffuse(sde), eta=0), law.sample(3, generator())
    run = lambda divergence: log_prob(q, x, method=Dopri5(1e-3, 1e-3), divergence=divergence)  # noqa: E731
    torch.testing.assert_close(run(Exact(chunk)), run(Exact()), rtol=1e-11, atol=0)


def test_shapes_do_not_matter():
    """An image's likelihood is that of its flattened row."""
    sde, flat = VP(), mixture(16)
    x = flat.sample(3, generator())
    run = lambda law, x: log_prob(sde.reverse(law.diffuse(sde), 0.0), x, method=Dopri5(1e-3, 1e-3))  # noqa: E731
    torch.testing.assert_close(run(LAWS["mixture1x4x4"], x.view(3, 1, 4, 4)), run(flat, x), rtol=1e-11, atol=0)


# quantised data


UNIT, SIGNED, WHOLE = Quantized(17, 0.0, 1.0), Quantized(17, -1.0, 1.0), Quantized(17, 0.0, 16.0)


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


def test_bits_by_the_flow_do_not_depend_on_the_scale():
    """The same through the flow: VE scaled with the data, prior and all, is the same model."""
    k, mean = images(3), 16 * torch.rand(1, 4, 4, generator=generator(5), dtype=F64)
    found = []
    for data in (UNIT, WHOLE):
        h = data.high / 16
        sde, law = VE(0.2 * h, 100 * h), exact.Gaussian(h * mean, 20.0 * h**2)
        q = sde.reverse(law.diffuse(sde), eta=0)
        found.append(bits_per_dim(q, h * k, data, method=Dopri5(1e-9, 1e-12), noise=per_sample(range(3))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=0)


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


def test_bits_per_dim_is_log_prob_of_the_dequantised():
    """-log2 of the density in units of bins, for each dimension: (-log p - d log h)/(d log 2) with the same draws."""
    sde, law = VP(), mixture(1, 4, 4)
    q, x = sde.reverse(law.diffuse(sde), eta=0), -1 + images(3) / 8
    ts = torch.tensor([0.02, 1.0], dtype=F64)
    u = torch.special.ndtr(per_sample(range(3))(x, ts[0], ts[0]))
    log_p = log_prob(q, x + (u - 0.5) / 8, ts)
    got = bits_per_dim(q, x, SIGNED, ts, noise=per_sample(range(3)))
    torch.testing.assert_close(got, (-log_p + 16 * math.log(8)) / (16 * math.log(2)), rtol=1e-11, atol=0)


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


# bad input


Q = VP().reverse(exact.Gaussian(torch.zeros(2), 1.0).diffuse(VP()), eta=0)
X = torch.zeros(3, 2, dtype=F64)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"p": VP().reverse(Q.score, 1.0)}, "eta=0"),
        ({"p": VP().reverse(Q.score, 1e-3)}, "eta=0"),
        ({"p": VP()}, "p must"),
        ({"p": Q.score}, "p must"),
        ({"x": torch.tensor([[0.0, 1.0], [0.0, 1.0], [math.nan, 0.0]])}, "x must be finite, but sample 2"),
        ({"x": torch.zeros(3, 2, dtype=torch.long)}, "x must be .*int64"),
        ({"x": torch.zeros(3)}, "x must"),
        ({"x": torch.zeros(0, 2)}, "x must"),
        ({"x": [[0.0]]}, "x must"),
        ({"ts": torch.tensor([1.0, 0.1], dtype=F64)}, "ts must strictly increase"),
        ({"ts": torch.tensor([0.1, 0.5, 0.5, 1.0], dtype=F64)}, r"ts\[1\] = 0.5"),
        ({"ts": torch.tensor([0.1, 0.9], dtype=F64)}, "ts must end at T"),
        ({"ts": torch.tensor([0.1, 1.1], dtype=F64)}, "ts must lie"),
        ({"ts": torch.tensor([-0.1, 1.0], dtype=F64)}, "ts must lie"),
        ({"ts": torch.tensor([0.0, 1.0], dtype=F64)}, "ts must begin where sigma > 0"),
        ({"ts": torch.tensor([1.0], dtype=F64)}, "ts must be"),
        ({"ts": torch.tensor([math.nan, 1.0], dtype=F64)}, "ts must"),
        ({"ts": [0.1, 1.0]}, "ts must be"),
    ],
)
def test_bad_arguments_of_log_prob(change, match):
    """What is not a flow, a finite batch, or times from sigma > 0 up to T is named, before the score is called."""
    score = Counted(Q.score)
    args = {"p": VP().reverse(score, 0.0), "x": X, "ts": None} | change
    with pytest.raises(ValueError, match=match):
        log_prob(**args)
    assert score.nfe == 0


def test_a_drift_that_is_not_finite_names_the_sample():
    """A score that fails for one sample on the way is reported with the sample and the time, not as nan."""
    broken = lambda x, t: torch.where(x[:, :1] > 5, math.nan, -x)  # noqa: E731
    x = torch.tensor([[0.0, 1.0], [9.0, 1.0]], dtype=F64)
    with pytest.raises(RuntimeError, match=r"sample 1 .* t = "):
        log_prob(VP().reverse(broken, 0.0), x)


@given(st.floats(-1, 2).filter(lambda v: abs(v * 16 - round(v * 16)) > 0.01 or not -0.01 < v * 16 < 16.01))
def test_values_that_are_not_levels_are_refused(value):
    """A value between two levels or outside the range is no quantised datum: dequantised twice, or scaled wrongly."""
    x = torch.zeros(2, 3, dtype=F64)
    x[1, 2] = value
    for call in (UNIT.check, UNIT.dequantize, lambda x: bits_per_dim(Q, x, UNIT)):
        with pytest.raises(ValueError, match="x must"):
            call(x)


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
        (lambda: Exact(0), "chunk"),
        (lambda: Exact(1.5), "chunk"),
    ],
)
def test_bad_values(make, match):
    """Levels, ranges, dimensions and chunks that make no sense are named."""
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("divergence", [Exact(), Hutchinson()])
def test_a_score_without_gradient_raises(divergence):
    """Under no_grad the score's part of the divergence would be dropped without a word."""
    score = torch.no_grad()(lambda x, t: -x)
    with pytest.raises(ValueError, match="score must be differentiable"):
        log_prob(VP().reverse(score, eta=0), torch.randn(3, 2, dtype=torch.float64), divergence=divergence)
