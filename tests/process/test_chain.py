"""Chains: tables and SDEs are each other's, and the calculus of Ho et al. is theirs to rounding."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import (
    EDM,
    VE,
    VP,
    Ancestral,
    Chain,
    Cosine,
    Epsilon,
    LinearSDE,
    RectifiedFlow,
    ScoreModel,
    SubVP,
    Tabulated,
    dsm,
    exact,
    grid,
    sample,
)
from scoresde.model import Steps
from scoresde.process import TabulatedVE
from scoresde.process.chain import cosine_betas, geometric_sigmas, linear_betas, scaled_linear_betas
from scoresde.steps import AnalyticDPM, LearnedVariance

F64 = torch.float64
SDES = [VP(), SubVP(), VE(0.05, 5.0), Cosine(), RectifiedFlow(), EDM(T=20.0), Tabulated(linear_betas(50))]
pytestmark = pytest.mark.filterwarnings("ignore:the chain ends")


def same(a, b, tol=1e-10):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def on(sde, n=12):
    return Chain(sde, grid.quadratic(sde, n, 0.0))


# tables


def test_published_tables():
    """The tables are what the papers write: linear in beta, in sqrt(beta), Nichol & Dhariwal's cosine, geometric."""
    i = torch.arange(1, 1001, dtype=F64)
    same(linear_betas(), 1e-4 + (i - 1) / 999 * (0.02 - 1e-4), 1e-14)
    root = math.sqrt(8.5e-4) + (i - 1) / 999 * (math.sqrt(0.012) - math.sqrt(8.5e-4))
    same(scaled_linear_betas(), root**2, 1e-14)
    f = lambda i: torch.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    same(cosine_betas(), torch.minimum(1 - f(i) / f(i - 1), torch.tensor(0.999, dtype=F64)), 1e-12)
    s = geometric_sigmas(10, 0.01, 1.0)
    same(s[1:] / s[:-1], torch.full((9,), 100 ** (1 / 9), dtype=F64), 1e-12)
    assert float(s[0]) == pytest.approx(0.01, rel=1e-14) and float(s[-1]) == 1.0


@pytest.mark.parametrize("betas", [linear_betas(), scaled_linear_betas(), cosine_betas(), cosine_betas(7)])
def test_betas_to_sde_to_betas(betas):
    """The chain of Tabulated(betas) on its knots has those betas, v_i = beta_i and Ho et al.'s posterior variances."""
    chain = Chain(Tabulated(betas), Tabulated(betas).grid())
    bar = (1 - betas).cumprod(0)
    same(chain.betas, betas, 1e-12)
    same(chain.v, betas, 1e-12)
    torch.testing.assert_close(chain.alphas_cumprod, bar, rtol=1e-11, atol=0)
    before = torch.cat([torch.ones(1, dtype=F64), bar[:-1]])
    same(chain.posterior_variances, (1 - before) / (1 - bar) * betas, 1e-12)
    assert len(chain) == len(betas)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20, unique=True))
def test_sigmas_to_sde_to_sigmas(sigmas):
    """Any table of increasing sigmas comes back from the SDE through it, and time inverts log-SNR between its knots."""
    s = torch.tensor(sorted(sigmas), dtype=F64)
    if (s[1:] / s[:-1]).min() < 1 + 1e-9:
        return
    sde = TabulatedVE(s)
    torch.testing.assert_close(Chain(sde, sde.grid()).sigmas, s, rtol=1e-12, atol=0)
    t = torch.linspace(0.01, 0.99, 7, dtype=F64)
    same(sde.time(sde.log_snr(t)), t, 1e-8)


def test_geometric_sigmas_are_ve():
    """The SDE through NCSN's geometric levels is VE, between the knots too; its derivatives are the derived ones."""
    sde, ve, t = (
        TabulatedVE(geometric_sigmas(10, 0.01, 50.0)),
        VE(0.01, 50.0),
        torch.linspace(0.013, 0.987, 9, dtype=F64),
    )
    torch.testing.assert_close(sde.var(t), ve.var(t), rtol=1e-11, atol=0)
    torch.testing.assert_close(sde.g2(t), ve.g2(t), rtol=1e-10, atol=0)
    torch.testing.assert_close(sde.g2(t), LinearSDE.g2(sde, t), rtol=1e-10, atol=0)
    same(sde.f(t), LinearSDE.f(sde, t))


@pytest.mark.parametrize(
    ("make", "table"),
    [(Tabulated, linear_betas(20)), (TabulatedVE, geometric_sigmas(20, 0.01, 50.0))],
    ids=["betas", "sigmas"],
)
def test_processes_of_one_table_are_equal(make, table):
    """Processes through equal tables are one value, also as keys; those of other tables and other classes are not."""
    sde, other = make(table), make(table * torch.linspace(1, 1.001, 20, dtype=F64))
    assert sde == make(table.clone()) and hash(sde) == hash(make(table.clone()))
    assert {sde: 1}[make(table.clone())] == 1
    assert sde != other and sde != make(table[:10]) and sde != VP() and sde != "a table"


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_steps_compose_to_marginals(sde):
    """On any grid of any process: x_0 through q(x_i | x_{i-1}) has the mean and variance of q(x_i | x_0)."""
    chain, x_0 = on(sde), torch.randn(3, 2, dtype=F64)
    mean, var = x_0, torch.zeros((), dtype=F64)
    for i in range(1, len(chain) + 1):
        a = chain.a[i - 1]
        mean, v = chain.step(mean, i)
        var = a**2 * var + v
        expected, marginal = chain.marginal(x_0, i)
        torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(var, marginal, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_posterior_is_bayes(sde):
    """q(x_i | x_{i-1}) q(x_{i-1} | x_0) = q(x_{i-1} | x_i, x_0) q(x_i | x_0) at random points, as densities."""
    chain, i = on(sde), torch.tensor([2, 5, 12])
    x_0, low, high = torch.randn(3, 3, 2, dtype=F64)

    def log_n(x, gaussian):
        mean, var = gaussian
        return (-(x - mean).square() / (2 * var[:, None]) - var[:, None].log() / 2).sum(1)

    left = log_n(high, chain.step(low, i)) + log_n(low, chain.marginal(x_0, i - 1))
    right = log_n(low, chain.posterior(high, x_0, i)) + log_n(high, chain.marginal(x_0, i))
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_posterior_of_the_first_step_is_the_data():
    """q(x_0 | x_1, x_0) is a point at x_0."""
    x_0, x_1 = torch.randn(2, 4, 3, dtype=F64)
    mean, var = on(VP()).posterior(x_1, x_0, 1)
    same(mean, x_0)
    assert float(var) == 0


def test_prior_mismatch():
    """KL(N(alpha x_0, sigma^2) || N(0, sigma_T^2)), averaged over x_0 of that mean square, by its general formula."""
    sde = Tabulated(linear_betas(100))
    for ts in (sde.grid(), sde.grid()[10:]):
        with pytest.warns(UserWarning, match="nats"):
            chain = Chain(sde, ts)
        alpha, s2, T = float(sde.alpha(ts[0])), float(sde.var(ts[0])), float(sde.var(1.0))
        kl = (alpha**2 * 0.7 + s2) / (2 * T) - 0.5 - 0.5 * math.log(s2 / T)
        assert chain.prior_mismatch(0.7) == pytest.approx(kl, rel=1e-10)


# Ho et al.


def net(x, c):
    return torch.tanh(x * (1 + c[:, None] / 50) + x.flip(1)) / 2


class Net(torch.nn.Module):
    def forward(self, x, c):
        return net(x, c)


def test_dsm_on_the_chain_is_algorithm_1():
    """Ho et al. 2020, eq. 14, with t ~ Uniform{1..T} from `draw`: |z - eps(sqrt(abar) x_0 + sqrt(1 - abar) z, t)|^2."""
    betas = linear_betas(50)
    sde = Tabulated(betas)
    chain, model = Chain(sde, sde.grid()), ScoreModel(Net(), sde, Epsilon(), Steps(51))
    x_0, z = torch.randn(2, 64, 3, dtype=F64)
    t = chain.draw(64, torch.Generator().manual_seed(0))
    i = (t * 50).round().long()
    bar = (1 - betas).cumprod(0)[i - 1][:, None]
    loss = (z - net(bar.sqrt() * x_0 + (1 - bar).sqrt() * z, i.to(F64))).square().sum(1)
    same(dsm(model, x_0, t, noise=lambda *_: z), loss)
    drawn = (chain.draw(20_000, torch.Generator().manual_seed(1)) * 50).round().long().bincount(minlength=51)
    assert drawn[0] == 0 and (drawn[1:] - 400).abs().max() < 5 * math.sqrt(400)


def test_optimal_variance_is_bao_et_al():
    """Bao et al. 2022, eq. 9 with lambda_n^2 = the posterior variance, in their letters and from a table."""
    betas = linear_betas(20)
    sde, bar = Tabulated(betas), (1 - betas).cumprod(0)
    law = exact.Gaussian(torch.tensor([0.3, -1.0]), torch.tensor([0.5, 0.1]))
    p = sde.reverse(law.diffuse(sde))
    step = AnalyticDPM.fit(p, law.sample(400), sde.grid())
    for n in (20, 7, 2):
        b, before, now, alpha_n = betas[n - 1], bar[n - 2], bar[n - 1], 1 - betas[n - 1]
        lam2 = (1 - before) / (1 - now) * b
        gamma = step.second_moment[20 - n] / (1 - now)  # E|score|^2/d
        gap = ((1 - now) / alpha_n).sqrt() - (1 - before - lam2).sqrt()
        expected = lam2 + gap**2 * (1 - (1 - now) * gamma)
        t, s = torch.tensor([n / 20, (n - 1) / 20], dtype=F64)
        same(step.variance(p, t, s), expected, 1e-12)


def test_optimal_variance_is_exact_on_isotropic_data():
    """On N(m, c I) the kernel with the optimal variance is the true reverse kernel: p_0 comes back at any length."""
    sde, law = VP(), exact.Gaussian(torch.tensor([0.5, -1.0]), 0.3)
    for n in (3, 10):
        ts = grid.uniform(sde, n)
        gamma = [float(sde.var(t) / (sde.alpha(t) ** 2 * 0.3 + sde.var(t))) for t in ts[:-1]]  # E eps^2 = sigma^2/C
        p, var = sde.reverse(law.diffuse(sde)), law_var(sde, ts[0])
        step = AnalyticDPM(ts[:-1], torch.tensor(gamma, dtype=F64))
        zero = torch.zeros(2, 2, dtype=F64)
        zero[1] = 1.0
        for t, s in zip(ts, ts[1:]):
            mean, w = step.kernel(p, zero, t, s)
            var = (mean[1] - mean[0]) ** 2 * var + w
            same(var, law_var(sde, s).expand(2), 1e-11)


def law_var(sde, t):
    return sde.alpha(t) ** 2 * 0.3 + sde.var(t)


def test_learned_variance_is_nichol_dhariwal():
    """Nichol & Dhariwal 2021, eq. 15: exp(v log beta + (1 - v) log beta-tilde) elementwise, with one network call."""
    betas = linear_betas(30)
    sde, calls = Tabulated(betas), 0
    score = lambda x, t: -torch.tanh(x + t)  # noqa: E731

    def both(x, t):
        nonlocal calls
        calls += 1
        return score(x, t), torch.sigmoid(3 * x)

    t, s, i = torch.tensor(0.5, dtype=F64), torch.tensor(14 / 30, dtype=F64), 15
    bar = (1 - betas).cumprod(0)
    tilde = (1 - bar[i - 2]) / (1 - bar[i - 1]) * betas[i - 1]
    x, z = torch.randn(2, 4, 3, dtype=F64)
    v = torch.sigmoid(3 * x)
    p = sde.reverse(score)
    got = LearnedVariance(both)(p, x, t, s, lambda *_: z)
    var = (v * betas[i - 1].log() + (1 - v) * tilde.log()).exp()
    same(got, Ancestral().kernel(p, x, t, s)[0] + var.sqrt() * z)
    assert calls == 1
    for value, want in zip(LearnedVariance(both).kernel(p, x, t, s), (Ancestral().kernel(p, x, t, s)[0], var)):
        same(value, want)
    sample(p, x, sde.grid(), LearnedVariance(both), noise=lambda *_: z)
    assert calls == 32


# bad input


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Tabulated(torch.tensor([0.1, 1.0])), "betas"),
        (lambda: TabulatedVE(torch.tensor([0.1, 0.1])), "sigmas"),
        (lambda: TabulatedVE(torch.tensor([0.0, 0.1])), "sigmas"),
        (lambda: TabulatedVE(torch.tensor([0.1])), "sigmas"),
        (lambda: TabulatedVE(torch.tensor([0.1, math.inf])), "sigmas"),
        (lambda: Chain(VP(), torch.linspace(0, 1, 5, dtype=F64)), "decrease"),
        (lambda: Chain(VP(), torch.tensor([1.0, 0.0], dtype=F64)), "2 steps"),
        (lambda: on(VP()).step(torch.zeros(1, 1), 0), "i must"),
        (lambda: on(VP()).step(torch.zeros(1, 1), 13), "i must"),
        (lambda: on(VP()).marginal(torch.zeros(1, 1), 1.5), "i must"),
        (lambda: linear_betas(0), "n must"),
        (lambda: linear_betas(10, last=1.0), "last"),
        (lambda: geometric_sigmas(10, 1.0, 0.1), "last"),
        (lambda: cosine_betas(10, most=1.0), "most"),
        (lambda: AnalyticDPM(torch.zeros(2), torch.zeros(3)), "second_moment"),
        (lambda: AnalyticDPM(torch.zeros(1), torch.tensor([-1.0])), "second_moment"),
    ],
)
def test_bad_tables_and_grids(make, word):
    """One clear line that names the argument."""
    with pytest.raises(ValueError, match=word) as error:
        make()
    assert "\n" not in str(error.value)
