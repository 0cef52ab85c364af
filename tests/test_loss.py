"""Score matching on laws whose minimum is known in closed form, and the laws of the times that it is taken at."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.interpolate import interp1d

from scoresde import (
    EDM,
    SDE,
    VE,
    VP,
    Cosine,
    Epsilon,
    Karras,
    RectifiedFlow,
    Reference,
    ScoreModel,
    SubVP,
    Tabulated,
    dsm,
    exact,
    loss,
)
from scoresde.loss import ssm
from scoresde.model import Data, FlowVelocity, Parametrisation, ScoreValue, Velocity
from scoresde.nn import MLP

F64 = torch.float64
SDES = [VP(), SubVP(), VE(0.05, 20.0), Cosine(), RectifiedFlow(), EDM(T=30.0)]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
TABLE = Tabulated(torch.linspace(1e-3, 0.2, 50, dtype=F64))
MEAN, V = torch.tensor([0.7, -0.4], dtype=F64), torch.tensor([0.6, 0.1], dtype=F64)
WEIGHTS = [loss.Simple(), loss.MaximumLikelihood(), loss.MinSNR(5.0), loss.Output(Karras(Reference(std=0.5)))]
TIMES = [loss.UniformTime(), loss.UniformLogSNR(), loss.LogNormal(), loss.LogNormal(0.3, 2.0)]
every_weight = pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
every_times = pytest.mark.parametrize("times", TIMES, ids=repr)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(n, seed=0):
    return exact.Gaussian(MEAN, V).sample(n, generator(seed))


def minimum(sde, t):
    """sum alpha^2 v/C, C = alpha^2 v + sigma^2: the variance of z given x_t, summed over dimensions, at times (B,)."""
    a2, s2 = sde.alpha(t)[:, None] ** 2, sde.var(t)[:, None]
    return (a2 * V / (a2 * V + s2)).sum(1)


def standard_error(x):
    return float(x.std()) / len(x) ** 0.5


class Linear:
    """An eps that is linear in x, A(t) x + b(t) about the exact one: off by the matrix E times x and by e."""

    def __init__(self, sde, E=torch.zeros(2, 2, dtype=F64), e=torch.zeros(2, dtype=F64)):
        self.sde, self.exact, self.E, self.e = sde, sde.reverse(exact.Gaussian(MEAN, V).diffuse(sde)), E, e

    def eps(self, x, t):
        return self.exact.eps(x, t) + x @ self.E.T + self.e


def karras(m, c):
    """What the network of Karras et al. 2022 should say of data of mean m and deviation c: F with c_skip y + c_out F =
    x_0 - m, at y = x/alpha - m and the noise sigma/alpha.
    """

    def target(a, s, x_0, z):
        r = s / a
        return (x_0 - m - c**2 / (r**2 + c**2) * (x_0 - m + r * z)) * (r**2 + c**2).sqrt() / (r * c)

    return target


# denoising score matching


@every_sde
@every_weight
def test_minimum_of_dsm(sde, weight):
    """With the exact eps the loss at t has the mean weight(t) sum alpha^2 v/C, within 4.5 standard errors."""
    for share in (0.02, 0.3, 0.9):
        t = torch.full((4000,), share * sde.T, dtype=F64)
        values = dsm(sde.reverse(exact.Gaussian(MEAN, V).diffuse(sde)), data(4000), t, weight)
        want = weight(sde, t[:1]) * minimum(sde, t[:1])
        assert values.shape == (4000,)
        assert abs(float(values.mean() - want)) < 4.5 * standard_error(values)


@every_sde
def test_excess_of_dsm_is_the_error_of_eps(sde):
    """The loss of eps + delta exceeds the minimum by E |delta(x_t)|^2, for delta = E x + e exactly computable.

    On the same draws the difference is |delta|^2 + 2 delta . (eps - z), whose second term has mean zero because
    eps = E[z | x_t]: any other eps than the conditional mean fails.
    """
    E, e = torch.tensor([[0.1, -0.2], [0.05, 0.15]], dtype=F64), torch.tensor([0.3, -0.1], dtype=F64)
    for share in (0.05, 0.5, 0.95):
        t, x_0 = torch.full((8000,), share * sde.T, dtype=F64), data(8000)
        draws = lambda x, t, s: torch.randn(x.shape, generator=generator(1), dtype=x.dtype)  # noqa: E731
        best, worse = (dsm(Linear(sde, *off), x_0, t, loss.Simple(), draws) for off in ((), (E, e)))
        m, C = sde.alpha(t[0]) * MEAN, torch.diag(sde.alpha(t[0]) ** 2 * V + sde.var(t[0]))
        want = torch.trace(E @ C @ E.T) + (E @ m + e).square().sum()
        assert abs(float((worse - best).mean() - want)) < 4.5 * standard_error(worse - best)


@every_sde
def test_dsm_is_its_formula(sde):
    """weight(t) |eps(alpha x_0 + sigma z, t) - z|^2, row by row, for an eps that no formula was fitted to."""

    class Model:
        def eps(self, x, t):
            return torch.sin(2 * x) + t[:, None, None]

    model, x_0 = Model(), torch.randn(5, 2, 3, dtype=F64)
    model.sde, z = sde, torch.randn(5, 2, 3, dtype=F64)
    t = sde.T * torch.linspace(0.1, 0.9, 5, dtype=F64)
    values = dsm(model, x_0, t, loss.Output(Karras(Reference(std=0.7))), noise=lambda x, t, s: z)
    for i in range(5):
        a, s = sde.alpha(t[i]), sde.sigma(t[i])
        error = (torch.sin(2 * (a * x_0[i] + s * z[i])) + t[i] - z[i]).square().sum()
        want = (1 + (s / a) ** 2 / 0.7**2) * error
        torch.testing.assert_close(values[i], want, rtol=1e-10, atol=0)


@pytest.mark.slow
def test_training_reaches_the_minimum():
    """A small network trained for a few hundred steps on a Gaussian comes within 4 % of the minimum of the loss.

    Averaged over the law of t; the minimum is far from that of a network which answers 0, and from 0.
    """
    sde, law = VP(0.1, 10.0), exact.Gaussian(MEAN, V)
    model = ScoreModel(MLP((2,), width=32, depth=1), sde, Karras(Reference(std=0.6)))
    adam, g = torch.optim.Adam(model.parameters(), lr=1e-2), generator()
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.02, 600)
    for _ in range(600):
        t = loss.UniformLogSNR().draw(sde, 256, g, stratified=True)
        adam.zero_grad()
        dsm(model, law.sample(256, g).float(), t, loss.Simple()).mean().backward()
        adam.step()
        schedule.step()
    t = loss.UniformLogSNR().draw(sde, 8000, g, stratified=True)
    best = float(minimum(sde, t).mean())
    with torch.no_grad():
        got = dsm(model, law.sample(8000, g).float(), t, loss.Simple())
        excess = (model.eps(x := law.diffuse(sde).sample(8000, t, g), t) - Linear(sde).eps(x, t)).square().sum(1)
    assert 0.2 < best < 1.8
    assert float(excess.mean()) < 0.04 * best
    assert abs(float(got.mean()) - best - float(excess.mean())) < 4.5 * standard_error(got)


def test_dsm_passes_conditions_and_gradients():
    """Keyword arguments reach the network's forward, and the loss is differentiable in its parameters."""
    model = ScoreModel(MLP((2,), width=8, depth=1, classes=3), VP())
    for w in model.parameters():
        torch.nn.init.normal_(w, std=0.3)
    x_0, t, z = torch.randn(4, 2), torch.full((4,), 0.5), torch.randn(4, 2)
    a, b = (dsm(model, x_0, t, noise=lambda *_: z, label=torch.full((4,), k)) for k in (0, 1))
    assert ((a - b).abs() > 1e-6).all()
    a.mean().backward()
    grad = model.net.embed.label.weight.grad
    assert grad[0].abs().max() > 0 and not grad[1:].any()


@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.full((3,), 0.5), torch.full((4, 1), 0.5), 0.5], ids=str)
def test_dsm_wants_a_time_for_each_sample(t):
    """t of any shape but (B,) is refused: a broadcast would train on one time only."""
    with pytest.raises(ValueError, match="t must have shape"):
        dsm(ScoreModel(MLP((2,), width=4, depth=1), VP()), torch.zeros(4, 2), t)


# weights


@pytest.mark.parametrize("sde", [*SDES, TABLE], ids=lambda sde: type(sde).__name__)
def test_weights_are_their_formulas(sde):
    """1; g^2/sigma^2 = -d log SNR/dt, by central differences; min(SNR, gamma)/SNR; 1 + 1/(SNR sd^2)."""
    t = sde.T * torch.tensor([0.1013, 0.3301, 0.6502, 0.9001], dtype=F64)
    snr, h = sde.alpha(t) ** 2 / sde.var(t), 1e-6 * sde.T
    log_snr = lambda t: (sde.alpha(t) ** 2 / sde.var(t)).log()  # noqa: E731
    close = lambda a, b, rtol=1e-10: torch.testing.assert_close(a, b, rtol=rtol, atol=0)  # noqa: E731
    close(loss.Simple()(sde, t), torch.ones(4, dtype=F64))
    close(loss.MaximumLikelihood()(sde, t), -(log_snr(t + h) - log_snr(t - h)) / (2 * h), 1e-6)
    close(loss.MinSNR(0.7)(sde, t), snr.clamp_max(0.7) / snr)
    close(loss.MinSNR(math.inf)(sde, t), torch.ones(4, dtype=F64))
    close(loss.MinSNR(1e-9)(sde, t) * snr, torch.full((4,), 1e-9, dtype=F64))
    close(loss.Output(Karras(Reference(std=0.7)))(sde, t), 1 + 1 / snr / 0.7**2)


@every_sde
def test_karras_weight_is_plain_error_of_the_network(sde):
    """`Output` on `Karras` is |F - target|^2, whatever the time (Karras et al. 2022, eq. 8)."""

    class Net(torch.nn.Module):
        def forward(self, x, c):
            return torch.cos(3 * x) + c[:, None]

    model, x_0 = ScoreModel(Net(), sde, Karras(Reference(std=0.8))), torch.randn(6, 2, dtype=F64)
    t, z = sde.T * torch.linspace(0.05, 0.95, 6, dtype=F64), torch.randn(6, 2, dtype=F64)
    y = x_0 + (s := (sde.sigma(t) / sde.alpha(t))[:, None]) * z
    c_skip, c_out, c_in = 0.64 / (s**2 + 0.64), s * 0.8 / (s**2 + 0.64).sqrt(), 1 / (s**2 + 0.64).sqrt()
    F = torch.cos(3 * c_in * y) + sde.log_snr(t)[:, None]
    want = (F - (x_0 - c_skip * y) / c_out).square().sum(1)
    values = dsm(model, x_0, t, loss.Output(Karras(Reference(std=0.8))), noise=lambda *_: z)
    torch.testing.assert_close(values, want, rtol=1e-9, atol=0)


# the error of the output, in terms of (alpha, sigma, x_0, z): what F should be, and the weight by which |F - target|^2
# is that of eps, the inverse square of what F is multiplied by
OUTPUTS = {
    Epsilon(): (lambda a, s, x_0, z: z, lambda a, s: 0 * a + 1),
    Data(): (lambda a, s, x_0, z: x_0, lambda a, s: s**2 / a**2),
    Velocity(): (lambda a, s, x_0, z: a * z - s * x_0, lambda a, s: (a**2 + s**2) ** 2 / a**2),
    Karras(Reference(std=0.8)): (karras(0.0, 0.8), lambda a, s: 1 + (s / a / 0.8) ** 2),
    Karras(Reference(0.3, 0.8)): (karras(0.3, 0.8), lambda a, s: 1 + (s / a / 0.8) ** 2),
    Karras(Reference(torch.tensor([0.5, 2.5], dtype=F64), 0.75)): (
        karras(1.5, 1.25),
        lambda a, s: 1 + (s / a / 1.25) ** 2,
    ),
    ScoreValue(): (lambda a, s, x_0, z: -z / s, lambda a, s: 0 * a + 1),
    FlowVelocity(): (lambda a, s, x_0, z: z - x_0, lambda a, s: ((a + s) / a) ** 2),
    FlowVelocity(towards_data=True): (lambda a, s, x_0, z: x_0 - z, lambda a, s: ((a + s) / a) ** 2),
}


@pytest.mark.parametrize("predicts", OUTPUTS, ids=repr)
@pytest.mark.parametrize("sde", [*SDES, TABLE], ids=lambda sde: type(sde).__name__)
def test_output_is_one_on_the_output(sde, predicts):
    """Output(predicts) is 1/b^2, so that dsm is |F - target|^2, of a score sigma^2 times it (Song & Ermon 2019), and
    this is the weight of dsm when none is given.
    """

    class Net(torch.nn.Module):
        def forward(self, x, c):
            self.out = torch.cos(3 * x) + c[:, None]
            return self.out

    (target, weight), model = OUTPUTS[predicts], ScoreModel(Net(), sde, predicts)
    t = sde.T * torch.tensor([0.1013, 0.3301, 0.6502, 0.9001], dtype=F64)
    a, s = sde.alpha(t), sde.sigma(t)
    b = torch.as_tensor(predicts(a, s)[1])
    inverse = torch.ones_like(t) / b**2 if predicts != ScoreValue() else torch.ones_like(t)
    found = loss.Output(predicts)(sde, t)
    torch.testing.assert_close(found, inverse, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, weight(a, s), rtol=1e-10, atol=0)
    x_0, z = data(4), torch.randn(4, 2, generator=generator(1), dtype=F64)
    values = dsm(model, x_0, t, noise=lambda *_: z)
    assert torch.equal(values, dsm(model, x_0, t, loss.Output(predicts), noise=lambda *_: z))
    error = model.net.out - target(a[:, None], s[:, None], x_0, z)
    want = error.square().sum(1) * (s**2 if predicts == ScoreValue() else 1.0)
    torch.testing.assert_close(values, want, rtol=1e-9, atol=0)


def test_outputs_of_every_parametrisation_are_checked():
    """The table above misses none that the library has."""
    assert {type(predicts) for predicts in OUTPUTS} == set(Parametrisation.__subclasses__())


# the laws of t


@pytest.mark.parametrize("sde", [*SDES, TABLE], ids=lambda sde: type(sde).__name__)
@every_times
def test_quantile_and_density_are_one_law(sde, times):
    """The density integrates to u over [t_min, quantile(u)] (or to 1 - u, where the quantile falls): so to 1 in all."""
    u = torch.tensor([0.0, 0.013, 0.21, 0.5, 0.83, 0.99, 1.0], dtype=F64)
    t = times.quantile(sde, u)
    ends = torch.tensor([sde.t_min, sde.T], dtype=F64)
    torch.testing.assert_close(t[[0, -1]].sort().values, ends, rtol=1e-6, atol=1e-9)
    for a, b, mass in zip(t.tolist(), t[1:].tolist(), u.diff().tolist()):
        got = mass_between(times, sde, *sorted((a, b)))
        assert got == pytest.approx(mass, rel=1e-5, abs=1e-7)


def mass_between(times, sde, a, b):
    """The integral of the density, in log t where t spans decades, and between the knots of a table."""
    if isinstance(sde, Tabulated):
        cuts = [a, *[k / 50 for k in range(51) if a < k / 50 < b], b]
    else:
        cuts = [a, b]
    density = lambda y: float(times.density(sde, torch.tensor(y, dtype=F64)))  # noqa: E731
    if a > 0:
        parts = (
            quad(lambda y: math.exp(y) * density(math.exp(y)), math.log(p), math.log(q), epsabs=1e-9, limit=200)[0]
            for p, q in zip(cuts, cuts[1:])
        )
        return sum(parts)
    return quad(density, a, b, epsabs=1e-9, limit=200)[0]


@every_sde
@every_times
def test_slope_of_the_quantile(sde, times):
    """|d quantile/du| = 1/density, by central differences."""
    u, h = torch.linspace(0.03, 0.97, 11, dtype=F64), 1e-6
    slope = (times.quantile(sde, u + h) - times.quantile(sde, u - h)).abs() / (2 * h)
    torch.testing.assert_close(
        slope * times.density(sde, times.quantile(sde, u)), torch.ones_like(u), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("sde", [*SDES, TABLE], ids=lambda sde: type(sde).__name__)
def test_uniform_log_snr_is_importance_sampling(sde):
    """Its density is proportional to the likelihood weight g^2/sigma^2 (Song et al. 2021b, section 4)."""
    t = sde.t_min + (sde.T - sde.t_min) * torch.linspace(0.01, 0.99, 30, dtype=F64)
    ratio = loss.UniformLogSNR().density(sde, t) / (sde.g2(t) / sde.var(t))
    torch.testing.assert_close(ratio, ratio[:1].expand(30), rtol=1e-12, atol=0)


@every_sde
def test_log_normal_is_normal(sde):
    """Well inside the cut-offs, (log(sigma/alpha) - mean)/std of the draws has the quantiles of N(0, 1)."""
    t = loss.LogNormal(-0.5, 0.3).draw(sde, 2000, generator(), stratified=True)
    z = ((-sde.log_snr(t) + 0.5) / 0.3).sort().values
    want = torch.special.ndtri((torch.arange(2000, dtype=F64) + 0.5) / 2000)
    torch.testing.assert_close(z[20:-20], want[20:-20], rtol=0, atol=0.03)


@given(n=st.integers(1, 40), seed=st.integers(0, 1000), k=st.integers(0, len(TIMES) - 1))
def test_stratified_draws(n, seed, k):
    """Exactly one draw falls in each n-th of the law, in float64 and shape (n,), and the order is random."""
    sde, times = VP(), TIMES[k]
    t = times.draw(sde, n, generator(seed), stratified=True)
    assert t.shape == (n,) and t.dtype == F64 and t.min() >= sde.t_min and t.max() <= sde.T
    edges = times.quantile(sde, torch.linspace(0, 1, n + 1, dtype=F64)).sort().values
    index = torch.searchsorted(edges, t, right=True) - 1
    assert index.clamp(0, n - 1).sort().values.tolist() == list(range(n))


def test_draws_are_in_random_order_and_fill_their_strata():
    """A given place of the batch sees every stratum equally often, and draws are uniform inside a stratum."""
    g, n, m = generator(), 4, 2000
    t = torch.stack([loss.UniformTime().draw(EDM(T=1.002), n, g, stratified=True) for _ in range(m)]) - 0.002
    stratum, inside = (t * n).floor(), (t * n).frac()
    counts = torch.stack([(stratum[:, 0] == k).sum() for k in range(n)]).double()
    assert ((counts - m / n) ** 2 / (m / n)).sum() < 21.1  # the 0.9999 quantile of chi^2 with 3 degrees of freedom
    assert abs(float(inside.mean()) - 0.5) < 4.5 * (1 / 12 / (n * m)) ** 0.5
    assert abs(float(inside.var()) - 1 / 12) < 4.5 * (1 / 180 / (n * m)) ** 0.5


@every_times
def test_plain_draws_follow_the_density(times):
    """The fraction of draws below each quantile is its mass within 4.5 SE; a seed gives the same draws again."""
    sde, n = VE(0.05, 20.0), 5000
    t = times.draw(sde, n, generator(3))
    assert torch.equal(t, times.draw(sde, n, generator(3)))
    for u in (0.1, 0.5, 0.9):
        edge = float(times.quantile(sde, torch.tensor(u, dtype=F64)))
        mass = mass_between(times, sde, 0.0, edge)
        assert abs(float((t < edge).double().mean()) - mass) < 4.5 * (mass * (1 - mass) / n) ** 0.5


@every_times
@pytest.mark.parametrize("sde", [VP(), RectifiedFlow(), EDM(T=30.0)], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("weight", [loss.MaximumLikelihood(), loss.MinSNR(5.0)], ids=repr)
def test_unbiased_losses_do_not_depend_on_the_law_of_t(sde, times, weight):
    """The mean with weight/density is int weight(t) sum alpha^2 v/C dt for every law of t, within 4.5 SE."""
    fine = lambda y: float(weight(sde, y) * minimum(sde, y[None])[0])  # noqa: E731
    at = lambda y: torch.tensor(math.exp(y), dtype=F64)  # noqa: E731
    want = quad(lambda y: math.exp(y) * fine(at(y)), math.log(sde.t_min), math.log(sde.T), limit=200)[0]
    t = times.draw(sde, 20_000, generator(1), stratified=True)
    model = sde.reverse(exact.Gaussian(MEAN, V).diffuse(sde))
    values = dsm(model, data(20_000), t, loss.Unbiased(weight, times))
    assert abs(float(values.mean()) - want) < 4.5 * standard_error(values)


@given(st.one_of(st.floats(max_value=0), st.just(math.nan), st.just("1"), st.none()))
def test_scales_are_positive(value):
    """gamma, std and the data's deviation are positive numbers; only gamma may be infinite."""
    for name, make in [
        ("gamma", loss.MinSNR),
        ("std must|standard deviation above 0", lambda v: loss.Output(Karras(Reference(std=v)))),
        ("std", lambda v: loss.LogNormal(0.0, v)),
    ]:
        with pytest.raises(ValueError, match=name):
            make(value)


@pytest.mark.parametrize("n", [0, -1, 2.0, True, None])
@every_times
def test_number_of_draws(times, n):
    """n is a whole number of at least 1."""
    with pytest.raises(ValueError, match="n must"):
        times.draw(VP(), n)


# sliced score matching


A = torch.tensor([[1.2, 0.3], [0.1, 0.8]], dtype=F64)
B = torch.tensor([0.2, -0.5], dtype=F64)


def test_ssm_is_its_formula():
    """v^T (ds/dx) v + |s|^2/2 (Song et al. 2019, eq. 8): -v^T A v + |b - A x|^2/2 for s = b - A x, row by row."""
    x, v = torch.randn(6, 2, dtype=F64), torch.randn(6, 2, dtype=F64)
    values = ssm(lambda x, t: B - x @ A.T, x, torch.tensor(0.3), noise=lambda *_: v)
    want = -torch.einsum("bi,ij,bj->b", v, A, v) + (B - x @ A.T).square().sum(1) / 2
    torch.testing.assert_close(values, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [torch.tensor(0.4, dtype=F64), torch.full((20_000,), 0.4, dtype=F64)], ids=["()", "(B,)"])
def test_ssm_is_the_error_of_the_score(t):
    """E ssm(s) = E |s - s*|^2/2 - E |s*|^2/2: with s* = -C^-1 (x - m) it is -tr C^-1/2 at the true score.

    E |s - s*|^2/2 is in closed form for the linear score b - A x.
    """
    sde, n = VP(), 20_000
    p_t = exact.Gaussian(MEAN, V).diffuse(sde)
    x = p_t.sample(n, t, generator(2))
    m, C = sde.alpha(0.4) * MEAN, sde.alpha(0.4) ** 2 * V + sde.var(0.4)
    constant = -(1 / C).sum() / 2
    values = ssm(p_t, x, t)
    assert abs(float(values.mean() - constant)) < 4.5 * standard_error(values)
    # s - s* = (b - A m) - (A - C^-1)(x - m)
    off = A - torch.diag(1 / C)
    error = ((B - A @ m).square().sum() + torch.trace(off @ torch.diag(C) @ off.T)) / 2
    values = ssm(lambda x, t: B - x @ A.T, x, t)
    assert abs(float(values.mean() - constant - error)) < 4.5 * standard_error(values)


class DoubleWell(SDE):
    """dx = (x - x^3) dt + sqrt(2) dw, stationary under exp(x^2/2 - x^4/4): no closed-form marginals."""

    def drift(self, x, t):
        return x - x**3

    def diffusion(self, t):
        return torch.as_tensor(2.0, dtype=F64).sqrt().expand(torch.as_tensor(t).shape)


def test_ssm_learns_the_score_of_a_nonlinear_sde():
    """Paths of a non-linear SDE in equilibrium have the score x - x^3: ssm is least at these two coefficients.

    The loss is quadratic in the coefficients of a x + b x^3, so its minimum is solved for; the distance from (1, -1) is
    within 4 standard errors by the sandwich formula.
    """
    grid = torch.linspace(-4, 4, 4001, dtype=F64)
    cdf = (grid**2 / 2 - grid**4 / 4).exp().cumsum(0)
    u = torch.rand(6000, generator=generator(4), dtype=F64)
    x = torch.from_numpy(interp1d((cdf / cdf[-1]).numpy(), grid.numpy())(u.clamp(1e-6, 1 - 1e-6).numpy()))[:, None]
    x = DoubleWell().simulate(x, torch.tensor([0.0, 0.5], dtype=F64), steps=40, seed=1)[-1]
    v = torch.randn(x.shape, generator=generator(5), dtype=F64)

    def losses(c):
        return ssm(lambda x, t: c[0] * x + c[1] * x**3, x, torch.tensor(0.5), noise=lambda *_: v)

    zero = torch.zeros(2, dtype=F64)
    J = torch.autograd.functional.jacobian(losses, zero)
    H = torch.autograd.functional.hessian(lambda c: losses(c).mean(), zero)
    c = -torch.linalg.solve(H, J.mean(0))
    scores = torch.autograd.functional.jacobian(losses, c)
    inverse = torch.linalg.inv(H)
    error = (inverse @ (scores.T @ scores / len(x)) @ inverse / len(x)).diagonal().sqrt()
    assert ((c - torch.tensor([1.0, -1.0])).abs() < 4 * error).all()
    assert 4 * error[1] < 0.5  # a factor of 2 between the terms of the loss moves it by 1/2 or more


def test_ssm_trains():
    """The loss keeps its graph: the gradient in a parameter of the score is that of the closed form."""
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    x, v = torch.randn(50, 2, dtype=F64), torch.randn(50, 2, dtype=F64)
    values = ssm(lambda x, t: -a * x, x, torch.tensor(0.5), noise=lambda *_: v)
    values.mean().backward()
    want = (-v.square().sum(1) + a.detach() * x.square().sum(1)).mean()
    torch.testing.assert_close(a.grad, want, rtol=1e-12, atol=0)


# the ends


@pytest.mark.parametrize("weight", [None, loss.Simple(), loss.MinSNR()], ids=str)
def test_one_clean_sample_does_not_spoil_a_batch(weight):
    """At t = 0 the error of eps is |z|^2, since x_t tells nothing of z; all else is as without."""
    torch.manual_seed(0)
    model, x = ScoreModel(MLP((2,), 8, 1), VP()), torch.randn(4, 2)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    z, t = torch.randn(4, 2), torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=F64)
    whole = dsm(model, x, t, weight, lambda *_: z)
    rest = dsm(model, x[1:], t[1:], weight, lambda *_: z[1:])
    torch.testing.assert_close(whole[1:], rest)
    if weight != loss.MinSNR():
        torch.testing.assert_close(whole[0], z[0].square().sum())
    else:
        assert whole[0] == 0
    gradients = [torch.autograd.grad(out.sum(), model.parameters()) for out in (whole, rest)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="sigma = 0: .*t = 0"):
        ssm(model, x, t)


def test_wrong_times_and_weights_are_named():
    """Before any network is asked."""
    model, x = ScoreModel(MLP((2,), 8, 1), VP()), torch.randn(2, 2)
    for t in ([0.5, 1.5], [0.5, math.nan]):
        with pytest.raises(ValueError, match=r"^t must lie in \[0, T\]"):
            dsm(model, x, torch.tensor(t))
    for weight in (0, 2.0, "simple"):
        with pytest.raises(ValueError, match="^weight must be a Weight"):
            dsm(model, x, torch.tensor([0.5, 0.6]), weight)


def test_a_score_in_place_and_in_inference_mode():
    """ssm is the same for a score that overwrites its input, and under inference_mode."""
    x, v, t = torch.randn(5, 2, dtype=F64), torch.randn(5, 2, dtype=F64), torch.tensor(0.5, dtype=F64)
    want = ssm(lambda x, t: -2 * x, x, t, lambda *_: v)
    assert torch.equal(ssm(lambda x, t: x.mul_(-2), x, t, lambda *_: v), want)
    with torch.inference_mode():
        assert torch.equal(ssm(lambda x, t: -2 * x, x.clone(), t.clone(), lambda *_: v), want)


@pytest.mark.parametrize("mean", [-1.2, -20.0, 40.0])
def test_lognormal_times_far_in_a_tail(mean):
    """Where the process has 1e-18 or 1e-130 of the law, the times are still its own: the density integrates to u up to
    quantile(u) and log(sigma/alpha) is all but exponential from the nearer end, of rate |z|/std there.
    """
    sde, times, u = VE(1e4, 1e7), loss.LogNormal(mean, 1.2), torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=F64)
    t = times.quantile(sde, u)
    assert t[[0, -1]].tolist() == pytest.approx([0.0, 1.0], abs=1e-9)
    masses = [mass_between(times, sde, a, b) for a, b in zip(t.tolist(), t[1:].tolist())]
    assert masses == pytest.approx(u.diff().tolist(), rel=1e-4)
    start, end = math.log(1e4), math.log(1e7)
    edge, way = (start, u) if mean < start else (end, 1 - u)
    rate = abs(edge - mean) / 1.2**2
    far = (-sde.log_snr(t) - edge).abs()[1:-1]
    assert (far * rate / -torch.log1p(-way[1:-1]) - 1).abs().max() < 4 / (rate * 1.2) ** 2
    assert times.draw(sde, 1000, generator()).unique().numel() > 990


@pytest.mark.parametrize("mean", [-100.0, 100.0])
def test_lognormal_times_that_the_process_does_not_have(mean):
    """Less than 1e-300 of the law inside is refused, with what log(sigma/alpha) is."""
    for ask in (lambda law: law.draw(VP(), 4), lambda law: law.density(VP(), torch.ones(2, dtype=F64) / 2)):
        with pytest.raises(
            ValueError, match=r"^mean and std must be of log\(sigma/alpha\), which is -4\.\d+ to 5\.\d+"
        ):
            ask(loss.LogNormal(mean, 1.2))
