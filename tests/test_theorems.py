"""The samplers of the literature, written out from their papers with a made-up nonlinear network, against the library.

Both sides read the same noise from a tape, so equalities hold to rounding.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scoresde import (
    EDM,
    NCSN,
    SNR,
    VE,
    VP,
    Ancestral,
    Cosine,
    Epsilon,
    Karras,
    Langevin,
    LinearSDE,
    RectifiedFlow,
    Reference,
    ReverseDiffusion,
    ScoreModel,
    SubVP,
    Tabulated,
    dsm,
    exact,
    loss,
    sample,
    transport,
)
from scoresde.model import Data, ScoreValue, Velocity
from scoresde.process import TabulatedVE
from scoresde.process.chain import geometric_sigmas
from scoresde.steps import Constant

F64 = torch.float64


def ddpm(N):
    return torch.linspace(1e-4, 0.02, N, dtype=F64)


def nichol(N):
    u = (torch.arange(N + 1, dtype=F64) / N + 0.008) / 1.008 * math.pi / 2
    return (1 - (u[1:].cos() / u[:-1].cos()) ** 2).clamp_max(0.999)


SDES = [
    VP(),
    VP(0.5, 3.0),
    SubVP(),
    VE(),
    VE(0.2, 7.0),
    Cosine(),
    RectifiedFlow(),
    EDM(),
    Tabulated(ddpm(1000)),
    Tabulated(nichol(50)),
]
IDS = [f"{type(sde).__name__}{i}" for i, sde in enumerate(SDES)]
every_sde = pytest.mark.parametrize("sde", SDES, ids=IDS)


class Tape:
    """z_0, z_1, ... in order; `used` counts them."""

    def __init__(self, n, shape=(2, 3), seed=0):
        self.z, self.used = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=F64), 0

    def __call__(self, x, t, s):
        self.used += 1
        return self.z[self.used - 1]


def eps(x, t):
    """A network that no formula was fitted to."""
    return torch.tanh(1.3 * x + 0.4 * x.flip(-1) + 3 * t) + 0.2 * torch.sin(5 * x * t)


def start(scale=1.0, seed=7):
    return scale * torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)


def same(a, b, tol=1e-10):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


# tables and marginals


@every_sde
def test_override_is_derivation(sde):
    """f = d log alpha/dt and g^2 = d sigma^2/dt - 2 f sigma^2 in closed form and by automatic differentiation."""
    t = sde.T * torch.tensor([1e-6, 1e-4, 1e-2, 0.05, 0.1234, 0.3, 0.5, 0.7123, 0.9, 0.99, 1 - 1e-6], dtype=F64)
    torch.testing.assert_close(sde.f(t), LinearSDE.f(sde, t), rtol=1e-9, atol=0)
    torch.testing.assert_close(sde.g2(t), LinearSDE.g2(sde, t), rtol=1e-9, atol=0)
    same(sde.diffusion(t) ** 2, LinearSDE.g2(sde, t), 1e-9)


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(), Cosine(), RectifiedFlow(), EDM()], ids=lambda s: type(s).__name__)
def test_override_is_finite_difference(sde):
    """The same f and g^2 from central differences of log alpha and sigma^2: no derivative is taken on trust."""
    t, h = sde.T * torch.linspace(0.1, 0.9, 9, dtype=F64), sde.T * 1e-5
    f = (sde.log_alpha(t + h) - sde.log_alpha(t - h)) / (2 * h)
    torch.testing.assert_close(sde.f(t), f, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        sde.g2(t), (sde.var(t + h) - sde.var(t - h)) / (2 * h) - 2 * f * sde.var(t), rtol=1e-6, atol=0
    )


def check_table(betas):
    sde, N = Tabulated(betas), len(betas)
    alpha = sde.alpha(torch.arange(N + 1, dtype=F64) / N)
    torch.testing.assert_close(1 - (alpha[1:] / alpha[:-1]) ** 2, betas, rtol=0, atol=1e-12)
    torch.testing.assert_close(alpha[1:] ** 2, (1 - betas).cumprod(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(sde.var(torch.arange(N + 1, dtype=F64) / N), 1 - alpha**2, rtol=0, atol=1e-14)


@pytest.mark.parametrize("betas", [ddpm(1000), nichol(1000), nichol(10)], ids=["linear", "cosine", "cosine10"])
def test_table_to_sde_to_table(betas):
    """The chain on the knots i/N of Tabulated(betas) has these betas, and alpha_i^2 = prod (1 - beta_j)."""
    check_table(betas)


@given(st.lists(st.floats(1e-5, 0.999), min_size=1, max_size=32))
def test_any_table_to_sde_to_table(betas):
    """The same for every table."""
    check_table(torch.tensor(betas, dtype=F64))


# DDPM, DDIM, SMLD


def chain(betas):
    """(the SDE, its knots from T to 0, alpha-bar_0..N as a plain product, the score of eps on the knots)."""
    N, bar = len(betas), torch.cat([torch.ones(1, dtype=F64), (1 - betas).cumprod(0)])
    score = lambda x, t: -eps(x, t) / (1 - bar[round(float(t) * N)]).sqrt()  # noqa: E731
    return Tabulated(betas), torch.arange(N, -1, -1, dtype=F64) / N, bar, score


@pytest.mark.parametrize("betas", [ddpm(1000), ddpm(50), nichol(50)], ids=["N1000", "N50", "cosine50"])
@pytest.mark.parametrize("v", [0.0, 1.0, 0.5])
def test_ancestral_is_ddpm(betas, v):
    """Ho et al. 2020, Algorithm 2: x <- (x - beta/sqrt(1 - abar) eps)/sqrt(1 - beta) + sigma z, no z at the last hop.

    sigma^2 is the posterior variance (v=0), beta (v=1), or their geometric mean (v=1/2).
    """
    sde, ts, bar, score = chain(betas)
    N, tape = len(betas), Tape(len(betas) - 1)
    x = start()
    for i in range(N, 0, -1):
        beta = betas[i - 1]
        x = (x - beta / (1 - bar[i]).sqrt() * eps(x, ts[N - i])) / (1 - beta).sqrt()
        if i > 1:
            posterior = (1 - bar[i - 1]) / (1 - bar[i]) * beta
            x = x + {0.0: posterior, 1.0: beta, 0.5: (posterior * beta).sqrt()}[v].sqrt() * tape.z[N - i]
    same(sample(sde.reverse(score), start(), ts, Ancestral(v), noise=tape), x)
    assert tape.used == N - 1


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("stride", [1, 7, 50])
def test_ancestral_is_ddim(eta, stride):
    """Song, Meng & Ermon 2021, eq. 12 with sigma(eta) of eq. 16, on a sub-sequence of the steps."""
    sde, ts, bar, score = chain(ddpm(100))
    taus = [100 - k for k in range(0, 100, stride)] + [0]
    x, tape = start(), Tape(len(taus))
    for k, (i, j) in enumerate(zip(taus, taus[1:])):
        e = eps(x, ts[100 - i])
        sigma = eta * ((1 - bar[j]) / (1 - bar[i])).sqrt() * (1 - bar[i] / bar[j]).sqrt()
        x_0 = (x - (1 - bar[i]).sqrt() * e) / bar[i].sqrt()
        x = bar[j].sqrt() * x_0 + (1 - bar[j] - sigma**2).clamp_min(0).sqrt() * e + sigma * tape.z[k]
    grid = torch.tensor(taus, dtype=F64) / 100
    same(sample(sde.reverse(score, eta), start(), grid, Ancestral(), noise=tape), x)
    assert tape.used == (len(taus) - 2 if eta else 0)


def levels(L, sigma_min=0.1, sigma_max=20.0):
    """(the SDE, times from T to 0, sigma_1 > ... > sigma_L, a score that depends on the level)."""
    sigmas = sigma_max * (sigma_min / sigma_max) ** (torch.arange(L, dtype=F64) / (L - 1))
    s = lambda x, sigma: -torch.tanh(x / sigma + 0.3 * x.flip(-1)) / sigma  # noqa: E731
    ve = VE(sigma_min, sigma_max)
    return ve, torch.linspace(1, 0, L, dtype=F64), sigmas, s, lambda x, t: s(x, sigmas[round((1 - float(t)) * (L - 1))])


def test_ancestral_is_smld():
    """Song et al. 2021, eq. 47: x + (s_i^2 - s_{i-1}^2) score + sqrt(s_{i-1}^2 (s_i^2 - s_{i-1}^2)/s_i^2) z."""
    ve, ts, sigmas, s, score = levels(40)
    x, tape = start(20.0), Tape(39)
    for k, (hi, lo) in enumerate(zip(sigmas, sigmas[1:])):
        x = x + (hi**2 - lo**2) * s(x, hi) + (lo**2 * (hi**2 - lo**2) / hi**2).sqrt() * tape.z[k]
    same(sample(ve.reverse(score), start(20.0), ts, Ancestral(), noise=tape), x)
    assert tape.used == 39


@pytest.mark.parametrize("n", [1, 5])
def test_langevin_alone_is_ncsn(n):
    """Song & Ermon 2019, Algorithm 1: a_i = e s_i^2/s_L^2; n times at each level x + a_i/2 score + sqrt(a_i) z."""
    ve, ts, sigmas, s, score = levels(10)
    x, tape, k = start(20.0), Tape(10 * n), 0
    for sigma in sigmas:
        a = 2e-3 * sigma**2 / sigmas[-1] ** 2
        for _ in range(n):
            x, k = x + a / 2 * s(x, sigma) + a.sqrt() * tape.z[k], k + 1
    same(sample(ve.reverse(score), start(20.0), ts, Langevin(NCSN(2e-3, 0.1), n), noise=tape), x)
    assert tape.used == 10 * n


def test_reverse_diffusion_vp():
    """Song et al. 2021, eq. 46 and Algorithm 3: x <- (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z."""
    betas = ddpm(50)
    sde, ts, _, score = chain(betas)
    x, tape = start(), Tape(50)
    for k, beta in enumerate(betas.flip(0)):
        x = (2 - (1 - beta).sqrt()) * x + beta * score(x, ts[k]) + beta.sqrt() * tape.z[k]
    same(sample(sde.reverse(score), start(), ts, ReverseDiffusion(), noise=tape), x)


@pytest.mark.parametrize("eta", [1.0, 0.0, 0.5])
def test_reverse_diffusion_ve(eta):
    """Song et al. 2021, eq. 46 for VE; at eta=0 its probability flow, eq. 48: half the score and no noise."""
    ve, ts, sigmas, s, score = levels(30)
    x, tape = start(20.0), Tape(29)
    for k, (hi, lo) in enumerate(zip(sigmas, sigmas[1:])):
        v = hi**2 - lo**2
        x = x + (1 + eta**2) / 2 * v * s(x, hi) + eta * v.sqrt() * tape.z[k]
    same(sample(ve.reverse(score, eta), start(20.0), ts, ReverseDiffusion(), noise=tape), x)
    assert tape.used == (29 if eta else 0)


# predictor-corrector


def correct(x, score, z, r, bound):
    """Langevin step of Song et al. 2021, Algorithm 4, row by row: e = 2 (r |z|/|score|)^2, bounded by sigma^2."""
    rows = []
    for xi, si, zi in zip(x, score, z):
        e = torch.minimum(2 * (r * zi.norm() / si.norm()) ** 2, bound)
        rows.append(xi + e * si + (2 * e).sqrt() * zi)
    return torch.stack(rows)


@pytest.mark.parametrize("first", ["corrector", "predictor"])
def test_predictor_corrector(first):
    """Song et al. 2021, Algorithm 2 (VE) in both orders; a corrector after the predictor acts at the new time."""
    ve, ts, sigmas, s, score = levels(12)
    x, tape, k = start(20.0), Tape(3 * 11), 0
    for hi, lo in zip(sigmas, sigmas[1:]):

        def corrected(x, sigma):
            nonlocal k
            for _ in range(2):
                x, k = correct(x, s(x, sigma), tape.z[k], 0.16, sigma**2), k + 1
            return x

        x = corrected(x, hi) if first == "corrector" else x
        x, k = x + (hi**2 - lo**2) * s(x, hi) + (hi**2 - lo**2).sqrt() * tape.z[k], k + 1
        x = corrected(x, lo) if first == "predictor" else x
    steps = [Langevin(SNR(0.16), n=2), ReverseDiffusion()]
    steps = steps if first == "corrector" else steps[::-1]
    same(sample(ve.reverse(score), start(20.0), ts, *steps, noise=tape), x)
    assert tape.used == 33


def test_step_size_bound():
    """Where the score nearly vanishes the bound e = sigma_t^2 acts: x + sigma^2 score + sqrt(2) sigma z, twice here."""
    flat, ts, tape = (lambda x, t: 1e-3 * torch.tanh(x + t)), torch.tensor([0.5, 0.3], dtype=F64), Tape(2)
    x = start()
    for t, z in zip(ts, tape.z):
        x = x + VE().var(t) * flat(x, t) + math.sqrt(2) * VE().sigma(t) * z
    same(sample(VE().reverse(flat), start(), ts, Langevin(SNR(0.16)), noise=tape), x)


def test_corrected_ddpm():
    """Corrector then DDPM step, in the middle of the chain: Langevin with e = 0.01, then Ho et al.'s Algorithm 2."""
    sde, ts, bar, score = chain(ddpm(50))
    x, tape = start(), Tape(20)
    for k, i in enumerate(range(40, 30, -1)):
        t, beta = ts[50 - i], sde.betas[i - 1]
        x = x + 0.01 * score(x, t) + math.sqrt(0.02) * tape.z[2 * k]
        x = (x - beta / (1 - bar[i]).sqrt() * eps(x, t)) / (1 - beta).sqrt()
        x = x + ((1 - bar[i - 1]) / (1 - bar[i]) * beta).sqrt() * tape.z[2 * k + 1]
    grid = ts[10:21]
    same(sample(sde.reverse(score), start(), grid, Langevin(Constant(0.01)), Ancestral(), noise=tape), x)


# parametrisations and transport


class Says(nn.Module):
    """A network that answers `out`, and remembers what it was asked."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, c):
        self.seen = x
        return self.out


def karras(alpha, sigma, x_0, x, sd):
    """F with D = c_skip y + c_out F(c_in y) = x_0, y = x/alpha the state of Karras et al. 2022 at noise sigma/alpha."""
    y, s = x / alpha, sigma / alpha
    c_skip, c_out = sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt()
    return (x_0 - c_skip * y) / c_out, y / (s**2 + sd**2).sqrt()


TARGETS = {
    Epsilon(): lambda a, s, x_0, z, x: (z, x),
    Data(): lambda a, s, x_0, z, x: (x_0, x),
    Velocity(): lambda a, s, x_0, z, x: (a * z - s * x_0, x),
    ScoreValue(): lambda a, s, x_0, z, x: (-z / s, x),
    Karras(): lambda a, s, x_0, z, x: karras(a, s, x_0, x, 0.5),
    Karras(Reference(std=1.7)): lambda a, s, x_0, z, x: karras(a, s, x_0, x, 1.7),
}


@every_sde
@pytest.mark.parametrize("predicts", TARGETS, ids=repr)
def test_every_parametrisation_recovers_eps(sde, predicts):
    """The output that the paper defines gives eps = z and score = -z/sigma, at either shape of t."""
    x_0, z = start(seed=1), start(seed=2)
    for t in (torch.tensor(0.4 * sde.T, dtype=F64), sde.T * torch.tensor([0.05, 0.97], dtype=F64)):
        a, s = (c if c.ndim == 0 else c[:, None] for c in (sde.alpha(t), sde.sigma(t)))
        x = a * x_0 + s * z
        out, seen = TARGETS[predicts](a, s, x_0, z, x)
        model = ScoreModel(Says(out), sde, predicts)
        same(model.eps(x, t), z)
        same(model.net.seen, seen)
        same(model(x, t) * s, -z)
        same(sde.reverse(model).denoise(x, t) * a, a * x_0)


class Denoiser(nn.Module):
    """D(x, c) for any function."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x, c):
        return self.fn(x, c)


EXPLODING = [VE(0.05, 20.0), VE(0.3, 7.0), TabulatedVE(geometric_sigmas(10, 0.05, 3.0)), EDM(T=30.0)]
every_exploding = pytest.mark.parametrize("sde", EXPLODING, ids=["VE0", "VE1", "TabulatedVE", "EDM"])


@every_exploding
def test_reconstruction_is_denoising_score_matching(sde):
    """Vincent 2011: with D any autoencoder, |D(x_0 + sigma z) - x_0|^2 = sigma^2 dsm, a sample at a time, each at its
    own sigma; and dsm is sigma^2 times the squared error of the score (D(x) - x)/sigma^2 of the kernel, -z/sigma, all
    with the weight 1; with that of the network's output it is the reconstruction itself.
    """
    g = torch.Generator().manual_seed(3)
    x_0, z = (torch.randn(40, 2, 3, generator=g, dtype=F64) for _ in range(2))
    t = sde.t_min + (sde.T - sde.t_min) * torch.rand(40, generator=g, dtype=F64)
    D = Denoiser(lambda x, c: 0.4 * x + torch.tanh(1.3 * x.flip(-1) + c.view(-1, 1, 1)))
    sigma = sde.sigma(t).view(-1, 1, 1)
    x = x_0 + sigma * z
    out = D(x, sde.log_snr(t))
    off = dsm(ScoreModel(D, sde, Data()), x_0, t, loss.Simple(), lambda *_: z)
    reconstruction = (out - x_0).square().flatten(1).sum(1)
    torch.testing.assert_close(sde.var(t) * off, reconstruction, rtol=1e-12, atol=0)
    plain = dsm(ScoreModel(D, sde, Data()), x_0, t, noise=lambda *_: z)
    torch.testing.assert_close(plain, reconstruction, rtol=1e-12, atol=0)
    score = ((out - x) / sigma**2 + z / sigma).square().flatten(1).sum(1)
    torch.testing.assert_close(off, sde.var(t) * score, rtol=1e-10, atol=0)


@every_exploding
def test_optimal_denoiser_is_the_score(sde):
    """The posterior mean of a mixture, put together component by component, is the denoiser: (D(x) - x)/sigma^2 is the
    gradient of the log of the density smoothed by sigma, and of all autoencoders it reconstructs best.
    """
    w, v = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([0.2, 0.05], dtype=F64)
    m, g = torch.tensor([[-1.0, 0.5], [0.8, 0.2]], dtype=F64), torch.Generator().manual_seed(4)
    law = exact.GaussianMixture(w, m, v)
    for t in (sde.t_min, 0.3 * sde.T, 0.8 * sde.T):
        var = sde.var(torch.tensor(t, dtype=F64))

        def log_parts(x, var=var):
            square = (x[:, None] - m).square().sum(2)
            return w.log() - square / (2 * (v + var)) - (2 * math.pi * (v + var)).log()

        def posterior_mean(x, c=None, var=var, log_parts=log_parts):
            means = (v[:, None] * x[:, None] + var * m) / (v + var)[:, None]
            return (log_parts(x).softmax(1)[..., None] * means).sum(1)

        x_0, z = law.sample(4000, g), torch.randn(4000, 2, generator=g, dtype=F64)
        x = (x_0 + var.sqrt() * z).requires_grad_()
        (grad,) = torch.autograd.grad(log_parts(x).logsumexp(1).sum(), x)
        x = x.detach()
        score = (posterior_mean(x) - x) / var
        torch.testing.assert_close(score, grad, rtol=1e-10, atol=1e-10 / float(var.sqrt()))
        model = ScoreModel(Denoiser(posterior_mean), sde, Data())
        torch.testing.assert_close(model(x, t), grad, rtol=1e-10, atol=1e-10 / float(var.sqrt()))
        torch.testing.assert_close(law.diffuse(sde)(x, t), grad, rtol=1e-9, atol=1e-9 / float(var.sqrt()))
        shift = lambda x: 0.3 * x.cos()  # noqa: E731
        other = lambda x, c, D=posterior_mean, shift=shift: D(x) + shift(x)  # noqa: E731
        told = lambda *_, z=z: z  # noqa: E731
        models = [ScoreModel(Denoiser(D), sde, Data()) for D in (posterior_mean, other)]
        ts = torch.full((4000,), t, dtype=F64)
        best, worse = (dsm(model, x_0, ts, loss.Simple(), told) for model in models)
        excess = var * (worse - best) - shift(x).square().sum(1)
        assert abs(float(excess.mean())) < 4.5 * float(excess.std()) / math.sqrt(4000)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (VP(), VE()),
        (VE(), VP(0.1, 10.0)),
        (VP(), EDM(T=80.0)),
        (VP(), RectifiedFlow(T=0.99)),
        (EDM(), Cosine(T=0.98)),
        (Tabulated(ddpm(1000)), SubVP(0.1, 15.0)),
        (RectifiedFlow(), Tabulated(ddpm(200))),
    ],
    ids=lambda s: type(s).__name__,
)
def test_transport_of_exact_score(source, target):
    """The score of a mixture under `source`, transported, is its score under `target`; and there and back is itself."""
    law = exact.GaussianMixture(torch.ones(3), 2 * torch.randn(3, 4, dtype=F64), torch.tensor([0.3, 0.1, 0.6]))
    moved, x = transport(law.diffuse(source), source, target), torch.randn(5, 4, dtype=F64)
    low = float(target.time(torch.tensor(min(4.0, float(source.log_snr(0.0))), dtype=F64)))
    for t in (low, 0.2 * target.T, 0.6 * target.T, target.T):
        y = target.sigma(t) * x + target.alpha(t)
        same(moved(y, t), law.diffuse(target)(y, torch.tensor(t, dtype=F64)), 1e-9)
    t = target.T * torch.linspace(0.2, 1, 5, dtype=F64)
    same(moved(x, t), law.diffuse(target)(x, t), 1e-9)


def test_transport_out_of_range():
    """A score says nothing of noise levels that it was never asked at: above the source's T, or below its t=0."""
    score = exact.Gaussian(torch.zeros(2), 1.0).diffuse(VE())
    with pytest.raises(ValueError, match="target"):
        transport(score, VE(), VP())
    moved = transport(score, VE(), VP(0.1, 10.0))
    with pytest.raises(ValueError, match="t must"):
        moved(torch.zeros(2, 2, dtype=F64), VP(0.1, 10.0).time(torch.tensor(-math.log(0.009), dtype=F64)))
    moved(torch.zeros(2, 2, dtype=F64), VP(0.1, 10.0).time(torch.tensor(-math.log(0.011), dtype=F64)))
