"""Closed-form laws against torch.distributions, automatic differentiation, quadrature and their own samples."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions as D

from scoresde import EDM, VE, VP, Cosine, RectifiedFlow, SubVP, exact

F64 = torch.float64
SDES = [VP(), SubVP(), VE(), Cosine(), RectifiedFlow(), EDM()]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=F64)


def close(a, b, rtol=1e-10, atol=0.0):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def within(estimates, value, k=4.5):
    """The mean of the rows of `estimates` is `value` to k standard errors."""
    error = (estimates.mean(0) - value) / (estimates.std(0) / math.sqrt(len(estimates)))
    assert error.abs().max() < k, f"{float(error.abs().max()):.1f} standard errors"


def orthonormal(K, d, r):
    return torch.linalg.qr(randn(K, d, d, seed=3))[0][:, :, :r]


def covariances(K, d):
    A = randn(K, d, d, seed=4)
    return A @ A.mT / d + 0.1 * torch.eye(d, dtype=F64)


def build():
    """name -> (law, weights (K,), means (K, d), covariances (K, d, d)); the covariances are put together by hand."""
    w, m = torch.tensor([2.0, 5.0, 3.0], dtype=F64), 2 * randn(3, 4, seed=1)
    eye, one = torch.eye(4, dtype=F64), torch.ones(1, dtype=F64)
    v = torch.tensor([0.3, 1.0, 0.05], dtype=F64)
    diagonal = randn(3, 4, seed=2).square() + 0.1
    U, top, floor = orthonormal(3, 4, 2), diagonal[:, :2], torch.tensor([0.02, 3.0, 0.2], dtype=F64)
    low = U * top[:, None] @ U.mT + floor.view(3, 1, 1) * (eye - U @ U.mT)
    full = covariances(3, 4)
    mixture, gaussian = exact.GaussianMixture, exact.Gaussian
    return {
        "isotropic": (mixture(w, m, v), w, m, v.view(3, 1, 1) * eye),
        "diagonal": (mixture(w, m, diagonal), w, m, torch.diag_embed(diagonal)),
        "low rank": (mixture(w, m, top, U, floor), w, m, low),
        "full": (mixture.from_covariances(w, m, full), w, m, full),
        "image": (mixture(w, m.view(3, 1, 2, 2), diagonal), w, m, torch.diag_embed(diagonal)),
        "Gaussian": (gaussian(m[0], 0.4), one, m[:1], 0.4 * eye[None]),
        "Gaussian diagonal": (gaussian(m[0], diagonal[0]), one, m[:1], torch.diag(diagonal[0])[None]),
        "Gaussian full": (gaussian(m[0], full[1]), one, m[:1], full[1:2]),
        "Empirical": (exact.Empirical(m), torch.ones(3, dtype=F64), m, 0 * low),
        "Empirical image": (exact.Empirical(m.view(3, 2, 2)), torch.ones(3, dtype=F64), m, 0 * low),
    }


LAWS = build()
every_law = pytest.mark.parametrize("name", LAWS)
SMOOTH = [name for name in LAWS if "Empirical" not in name]


def diffused(name, sde, t):
    """torch's distribution of x_t at one time: the mixture of N(alpha m, alpha^2 C + sigma^2 I)."""
    _, w, m, C = LAWS[name]
    a, v = sde.alpha(t), sde.sigma(t) ** 2
    components = D.MultivariateNormal(a * m, a**2 * C + v * torch.eye(4, dtype=F64))
    return D.MixtureSameFamily(D.Categorical(w / w.sum()), components)


def states(name, sde, t, n=6):
    """Places where p_t has mass, shaped for the law, and one in its tail."""
    _, _, m, C = LAWS[name]
    spread = (sde.alpha(t) ** 2 * C.diagonal(dim1=1, dim2=2).mean() + sde.sigma(t) ** 2).sqrt()
    x = sde.alpha(t) * m[torch.arange(n) % len(m)] + spread * randn(n, 4, seed=5)
    x[-1] = sde.alpha(t) * m[0] + 5 * spread
    return x.view(n, *LAWS[name][0].shape)


def instants(sde):
    return [torch.tensor(t, dtype=F64) for t in (sde.t_min, 0.1 * sde.T, 0.5 * sde.T, sde.T)]


# density, score, denoiser


@every_law
@every_sde
def test_log_prob_is_torchs(name, sde):
    """log p_t is the density of the mixture of N(alpha m, alpha^2 C + sigma^2 I), from end to end of time.

    Where sigma is small it is the difference of large numbers, so rounding is measured in units of |x|^2/sigma^2.
    """
    for t in instants(sde):
        x = states(name, sde, t)
        rounding = 1e-15 * float(x.square().sum() / sde.var(t))
        law = LAWS[name][0].diffuse(sde)
        close(law.log_prob(x, t), diffused(name, sde, t).log_prob(x.flatten(1)), atol=rounding)


@pytest.mark.parametrize("name", SMOOTH)
def test_log_prob_of_data(name):
    """The law's own log_prob is the density of x_0."""
    law, w, m, C = LAWS[name]
    x = states(name, VP(), torch.tensor(1e-9, dtype=F64))
    mixture = D.MixtureSameFamily(D.Categorical(w / w.sum()), D.MultivariateNormal(m, C))
    close(law.log_prob(x), mixture.log_prob(x.flatten(1)))


@every_law
@every_sde
def test_score_is_the_gradient(name, sde):
    """The score is the derivative of log p_t, the library's and torch's, at every time."""
    for t in instants(sde):
        x, law = states(name, sde, t).requires_grad_(), LAWS[name][0].diffuse(sde)
        score, scale = law(x, t), 1e-8 / float(sde.sigma(t))
        assert score.shape == x.shape
        (own,) = torch.autograd.grad(law.log_prob(x, t).sum(), x)
        (torchs,) = torch.autograd.grad(diffused(name, sde, t).log_prob(x.flatten(1)).sum(), x)
        close(score, own, rtol=1e-8, atol=scale)
        close(score, torchs, rtol=1e-8, atol=scale)


@every_law
@every_sde
def test_times_per_sample(name, sde):
    """With t of shape (B,) row i is at t_i, for everything that is asked."""
    t, x = torch.stack(instants(sde)), states(name, sde, torch.tensor(0.3 * sde.T, dtype=F64), 4)
    law = LAWS[name][0].diffuse(sde)
    for ask in (law, law.log_prob, law.denoise, lambda x, t: law.posterior(x, t, generator())):
        close(ask(x, t), torch.stack([ask(x, ti)[i] for i, ti in enumerate(t)]), rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(4,\)"):
        law(x, t[:2])


@every_law
def test_curvature_is_the_posterior_covariance(name):
    """Second order of Tweedie: d denoise/dx = alpha/sigma^2 Cov[x_0 | x_t], computed component by component."""
    sde, t = VP(), torch.tensor(0.2, dtype=F64)
    law, w, m, C = LAWS[name]
    x, a, v = states(name, sde, t, 3), sde.alpha(t), sde.var(t)
    J = torch.stack(
        [torch.autograd.functional.jacobian(lambda y: law.diffuse(sde).denoise(y[None], t)[0], xi) for xi in x]
    )
    gain = a * C @ torch.linalg.inv(a**2 * C + v * torch.eye(4, dtype=F64))
    delta = x.flatten(1)[:, None] - a * m
    means = m + (gain @ delta[..., None])[..., 0]
    inner = C - a * gain @ C
    log_p = D.MultivariateNormal(a * m, a**2 * C + v * torch.eye(4, dtype=F64)).log_prob(x.flatten(1)[:, None])
    r = (log_p + w.log()).softmax(1)[..., None]
    mean = (r * means).sum(1)
    off = means - mean[:, None]
    covariance = (r[..., None] * (inner + off[..., None] * off[..., None, :])).sum(1)
    close(law.diffuse(sde).denoise(x, t).flatten(1), mean, atol=1e-10)
    close(J.view(3, 4, 4), a / v * covariance, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("law", ["Gaussian", "mixture", "points"])
@pytest.mark.parametrize("sde", [VP(), VE(0.3, 4.0)], ids=lambda s: type(s).__name__)
def test_density_in_one_dimension(law, sde):
    """p_t integrates to 1, and to the moments alpha E x_0 and alpha^2 E x_0^2 + sigma^2."""
    w, m, v = torch.tensor([0.2, 0.8], dtype=F64), torch.tensor([[-1.5], [0.7]], dtype=F64), torch.tensor([0.04, 0.5])
    laws = {
        "Gaussian": exact.Gaussian(m[1], 0.5),
        "mixture": exact.GaussianMixture(w, m, v),
        "points": exact.Empirical(m),
    }
    first = {"Gaussian": 0.7, "mixture": 0.26, "points": -0.4}[law]
    second = {"Gaussian": 0.99, "mixture": 0.2 * 2.29 + 0.8 * 0.99, "points": (2.25 + 0.49) / 2}[law]
    x = torch.linspace(-30, 30, 60_001, dtype=F64)
    for t in (0.1, 0.5, 1.0):
        p = laws[law].diffuse(sde).log_prob(x[:, None], t).exp()
        a, var = float(sde.alpha(t)), float(sde.sigma(t)) ** 2
        for power, moment in ((0, 1.0), (1, a * first), (2, a**2 * second + var)):
            assert float(torch.trapezoid(p * x**power, x)) == pytest.approx(moment, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", ["full", "low rank", "points"])
def test_density_in_two_dimensions(name):
    """p_t integrates to 1 over the plane, to alpha E x_0, and to its second moments."""
    w, m, C = torch.tensor([0.3, 0.7], dtype=F64), randn(2, 2, seed=1), covariances(2, 2)
    U = orthonormal(2, 2, 1)
    law = {
        "full": exact.GaussianMixture.from_covariances(w, m, C),
        "low rank": exact.GaussianMixture(w, m, torch.ones(2, 1), U, torch.tensor([0.2, 0.1])),
        "points": exact.Empirical(m),
    }[name]
    if name == "low rank":
        floor = torch.tensor([0.2, 0.1], dtype=F64).view(2, 1, 1)
        C = U @ U.mT + floor * (torch.eye(2, dtype=F64) - U @ U.mT)
    if name == "points":
        w, C = torch.tensor([0.5, 0.5], dtype=F64), 0 * C
    sde, t = VP(), 0.3
    u = torch.linspace(-9, 9, 361, dtype=F64)
    x = torch.cartesian_prod(u, u)
    p = law.diffuse(sde).log_prob(x, t).exp() * float(u[1] - u[0]) ** 2
    a, v = sde.alpha(t), sde.sigma(t) ** 2
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    close(p @ x, a * (w @ m), rtol=1e-8, atol=1e-9)
    second = torch.einsum("k,kij->ij", w, C + m[:, :, None] * m[:, None])
    close(torch.einsum("n,ni,nj->ij", p, x, x), a**2 * second + v * torch.eye(2, dtype=F64), rtol=1e-8, atol=1e-9)


# samples


@every_law
def test_sample_moments(name):
    """Draws of x_0 and of x_t have the means and second moments of the mixture."""
    law, w, m, C = LAWS[name]
    w, sde, n, eye = w / w.sum(), VP(), 20_000, torch.eye(4, dtype=F64)
    mean, second = w @ m, torch.einsum("k,kij->ij", w, C + m[:, :, None] * m[:, None])
    x = law.sample(n, generator(1))
    assert x.shape == (n, *law.shape) and x.dtype == F64
    pairs = [(i, j) for i in range(4) for j in range(i + 1)]
    for t in (None, 0.25):
        a, v = (1.0, 0.0) if t is None else (sde.alpha(t), sde.sigma(t) ** 2)
        x = (law.sample(n, generator(1)) if t is None else law.diffuse(sde).sample(n, t, generator(2))).flatten(1)
        within(x, a * mean)
        products = torch.stack([x[:, i] * x[:, j] for i, j in pairs], 1)
        within(products, torch.stack([(a**2 * second + v * eye)[i, j] for i, j in pairs]))


@pytest.mark.parametrize("name", SMOOTH)
def test_samples_have_the_density(name):
    """E log p over draws is the negative entropy that torch's draws of the same mixture give, and the shares are w."""
    law, w, m, C = LAWS[name]
    mixture = D.MixtureSameFamily(D.Categorical(w / w.sum()), D.MultivariateNormal(m, C))
    ours, torchs = law.sample(20_000, generator(3)), mixture.sample((20_000,)).view(20_000, *law.shape)
    within(law.log_prob(ours)[:, None] - law.log_prob(torchs)[:, None], 0.0)


def test_empirical_draws_every_point_equally():
    """Draws with replacement: each point has the share 1/n of them, and nothing else is drawn."""
    data = randn(5, 3)
    x = exact.Empirical(data).sample(20_000, generator(1))
    hit = (x[:, None] == data).all(2)
    assert (hit.sum(1) == 1).all()
    within(hit.to(F64), 0.2)


@every_law
def test_denoise_is_the_conditional_mean(name):
    """E[(x_0 - denoise(x_t)) h(x_t)] = 0 for every h, over draws of (x_0, x_t): that is what a conditional mean is."""
    law, sde, t = LAWS[name][0], VP(), torch.tensor(0.2, dtype=F64)
    x_0 = law.sample(20_000, generator(4))
    x_t = sde.perturb(x_0, t, lambda x, *_: randn(*x.shape, seed=9))[0]
    error, x_t = (x_0 - law.diffuse(sde).denoise(x_t, t)).flatten(1), x_t.flatten(1)
    for h in (torch.ones_like(x_t), x_t, x_t.flip(1), x_t.sin(), x_t.square(), (x_t > 0.3).to(F64)):
        within(error * h, 0.0)


@every_law
def test_posterior_draws(name):
    """(posterior draw, x_t) has the joint law of (x_0, x_t): equal means of products up to second order and beyond."""
    law, sde, t = LAWS[name][0], VP(), torch.tensor(0.2, dtype=F64)
    x_0 = law.sample(20_000, generator(5))
    x_t = sde.perturb(x_0, t, lambda x, *_: randn(*x.shape, seed=10))[0]
    again = law.diffuse(sde).posterior(x_t, t, generator(6))
    assert again.shape == x_0.shape
    x_0, x_t, again = x_0.flatten(1), x_t.flatten(1), again.flatten(1)
    for h in (torch.ones_like(x_t), x_t.sin(), x_t.flip(1)):
        for g in (lambda x: x, lambda x: x**2, lambda x: x * x.roll(1, 1), lambda x: x.sin()):
            within((g(x_0) - g(again)) * h, 0.0)
    assert not (again == x_0).all(1).all()


@pytest.mark.parametrize("name", ["Gaussian", "Gaussian diagonal", "Gaussian full"])
def test_posterior_covariance(name):
    """Given one x_t of a Gaussian, draws have the covariance C - alpha^2 C (alpha^2 C + sigma^2 I)^-1 C."""
    law, _, m, C = LAWS[name]
    m, C, sde, t = m[0], C[0], VP(), 0.15
    a, v, eye = sde.alpha(t), sde.sigma(t) ** 2, torch.eye(4, dtype=F64)
    x = (a * m + 1.5).expand(20_000, 4)
    gain = a * C @ torch.linalg.inv(a**2 * C + v * eye)
    mean, covariance = m + gain @ (x[0] - a * m), C - a * gain @ C
    z = law.diffuse(sde).posterior(x, t, generator(7)) - mean
    within(z, 0.0)
    for i, j in itertools.combinations_with_replacement(range(4), 2):
        within((z[:, i] * z[:, j])[:, None], covariance[i, j])
    close(law.diffuse(sde).denoise(x[:1], t)[0], mean)


@every_law
def test_draws_are_reproducible(name):
    """A generator decides the draw, and two draws differ."""
    law = LAWS[name][0]
    p, x = law.diffuse(VP()), law.sample(8, generator(1))
    for draw in (lambda g: law.sample(8, g), lambda g: p.sample(8, 0.9, g), lambda g: p.posterior(x, 0.9, g)):
        g = generator(2)
        first = draw(g)
        assert torch.equal(first, draw(generator(2))) and not torch.equal(first, draw(g))


# other ways to say the same


def test_low_rank_is_full():
    """Factors and a floor, or the matrices that they stand for: the same density, score and denoiser."""
    low, w, m, C = LAWS["low rank"]
    full, sde = exact.GaussianMixture.from_covariances(w, m, C), VP()
    for t in instants(sde):
        x = states("low rank", sde, t)
        for ask in ("log_prob", "__call__", "denoise"):
            a, b = (getattr(law.diffuse(sde), ask)(x, t) for law in (low, full))
            close(a, b, rtol=1e-9, atol=1e-9)


@given(st.floats(0.01, 100), st.integers(1, 5))
def test_weights_are_relative(c, split):
    """Weights count only in proportion, and a component may be split in parts of the same shape."""
    law, w, m, C = LAWS["isotropic"]
    v = C[:, 0, 0]
    x = states("isotropic", VP(), torch.tensor(0.3, dtype=F64))
    close(exact.GaussianMixture(c * w, m, v).log_prob(x), law.log_prob(x))
    w = torch.cat([w[:1].expand(split) / split, w[1:]])
    m, v = torch.cat([m[:1].expand(split, 4), m[1:]]), torch.cat([v[:1].expand(split), v[1:]])
    close(exact.GaussianMixture(w, m, v).log_prob(x), law.log_prob(x))


def test_points_are_narrow_gaussians():
    """The data are the mixture of Gaussians of variance 0 at them, which small variances tend to."""
    data, sde, t = randn(6, 4), VP(), torch.tensor(0.1, dtype=F64)
    x = sde.perturb(data, t, lambda x, *_: randn(6, 4, seed=1))[0]
    points = exact.Empirical(data).diffuse(sde)
    far, near = (
        (exact.GaussianMixture(torch.ones(6), data, torch.full((6,), v)).diffuse(sde)(x, t) - points(x, t)).abs().max()
        for v in (1e-5, 1e-7)
    )
    assert float(far / near) == pytest.approx(100, rel=0.01)


def test_fit():
    """The Gaussian of largest likelihood has the data's mean and covariance: no other near it has a larger one."""
    x = randn(50, 2, 2) @ randn(2, 2, seed=1) + 3
    law = exact.Gaussian.fit(x.float())
    best = law.log_prob(x).mean()
    close(law.means.view(2, 2), x.mean(0), rtol=1e-6)
    C = torch.cov(x.flatten(1).T, correction=0)
    close(best, -0.5 * (4 * math.log(2 * math.pi) + torch.logdet(C) + 4), rtol=1e-6)
    for k in range(8):
        shift, turn = 0.02 * randn(4, seed=k), torch.eye(4, dtype=F64) + 0.02 * randn(4, 4, seed=100 + k)
        other = exact.Gaussian((x.mean(0).flatten() + shift).view(2, 2), turn @ C @ turn.T)
        assert other.log_prob(x).mean() < best


@every_law
def test_on_the_same_device(name):
    """Moving a law where it is changes nothing."""
    law, sde = LAWS[name][0], VP()
    x, moved = states(name, sde, torch.tensor(0.3, dtype=F64)), LAWS[name][0].to("cpu")
    assert torch.equal(moved.diffuse(sde)(x, 0.3), law.diffuse(sde)(x, 0.3))
    assert torch.equal(moved.sample(5, generator()), law.sample(5, generator()))


# precision


@every_law
@every_sde
def test_float32_is_float64_rounded(name, sde):
    """For a float32 state the answer is that for the same numbers in float64, rounded once."""
    law = LAWS[name][0].diffuse(sde)
    for t in instants(sde):
        x = states(name, sde, t).float()
        for ask in (law, law.log_prob, law.denoise, lambda x, t: law.posterior(x, t, generator())):
            out = ask(x, t)
            assert out.dtype == torch.float32 and torch.equal(out, ask(x.double(), t).float())
        assert torch.equal(law(x, t.float().expand(len(x))), law(x.double(), t.float().double()).float())


@every_sde
def test_empirical_at_both_ends(sde):
    """Where sigma is least and where alpha is, denoiser and score are those of plain differences |x - alpha y|^2.

    The weights of the nearest points must be right at sigma = t_min, and at T all points must count almost equally.
    """
    data = randn(60, 30) + 2
    data[1] = data[0] + 2e-3 * randn(30, seed=2)  # a pair that the smallest sigma can confuse
    law = exact.Empirical(data).diffuse(sde)
    for t in (sde.t_min, sde.T):
        a, v = sde.alpha(t), sde.sigma(t) ** 2
        x = a * data[:8] + v.sqrt() * randn(8, 30, seed=3)
        w = (-0.5 * (x[:, None] - a * data).square().sum(2) / v).softmax(1)
        close(law.denoise(x, t), w @ data, rtol=1e-8)
        close(law(x, t), (a * (w @ data) - x) / v, rtol=1e-6, atol=1e-6 / float(v.sqrt()))
        if t == sde.T:
            assert w.max() < 0.9


@every_sde
def test_shifting_the_data_shifts_the_law(sde):
    """p_t of x_0 + c at x + alpha c is p_t of x_0 at x: also when c is large beside sigma."""
    c, data = 10.0, randn(12, 5)
    mixture = (torch.ones(12), data, torch.full((12,), 1e-4))
    for t in instants(sde):
        x = sde.alpha(t) * data + sde.sigma(t) * randn(12, 5, seed=1)
        y = x + sde.alpha(t) * c
        moved = exact.GaussianMixture(mixture[0], data + c, mixture[2])
        for here, there in (
            (exact.Empirical(data), exact.Empirical(data + c)),
            (exact.GaussianMixture(*mixture), moved),
        ):
            close(there.diffuse(sde).denoise(y, t) - c, here.diffuse(sde).denoise(x, t), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 5, 16, 40, 1000])
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_chunks_do_not_show(chunk, dtype):
    """However the data are cut, density, score and denoiser are those of the whole, also when all weight is in one."""
    data, sde = randn(23, 5).to(dtype), VP()
    whole, cut = exact.Empirical(data).diffuse(sde), exact.Empirical(data, chunk).diffuse(sde)
    for t in instants(sde):
        x = sde.perturb(data[::3].double(), t, lambda x, *_: randn(*x.shape, seed=1))[0]
        for ask in ("log_prob", "__call__", "denoise"):
            close(getattr(cut, ask)(x, t), getattr(whole, ask)(x, t), rtol=1e-10, atol=1e-12)
        grads = []
        for law in (whole, cut):
            y = x.clone().requires_grad_()
            grads += torch.autograd.grad(law.denoise(y, t).square().sum(), y)
        close(grads[0], grads[1], rtol=1e-8, atol=1e-8)
        for seed in range(3):
            x_0 = cut.posterior(x, t, generator(seed))
            assert ((x_0[:, None] == data.double()).all(2).sum(1) == 1).all()


def test_posterior_draws_across_chunks():
    """The shares of the points among draws are the softmax of -|x - alpha y|^2/(2 sigma^2), in chunks of one point."""
    data, sde, t = randn(5, 2), VP(), 0.3
    a, v, x = sde.alpha(t), sde.sigma(t) ** 2, randn(1, 2, seed=1)
    w = (-0.5 * (x - a * data).square().sum(1) / v).softmax(0)
    draws = exact.Empirical(data, 1).diffuse(sde).posterior(x.expand(20_000, 2), t, generator(2))
    within((draws[:, None] == data).all(2).to(F64), w)


MEMORY = """
import resource, sys
import torch
from scoresde import VP, exact
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
g = torch.Generator().manual_seed(0)
data = torch.rand(60_000, 1, 28, 28, generator=g).mul_(2).sub_(1)
sde, t = VP(), torch.tensor([0.9, 0.2] * 16)
x = torch.cat([sde.perturb(data[i : i + 1], t[i])[0] for i in range(32)])
law = exact.Empirical(data).diffuse(sde)
before = peak()
out = law.denoise(x, t)
print(peak() - before)
print(float((out[1::2] - data[1:32:2]).abs().max()))
logits = torch.cat([
    (x[0] - sde.alpha(t[0]).double() * y.double()).square().flatten(1).sum(1) for y in data.split(2000)
]) / (-2 * sde.var(t[0]).double())
w = logits.softmax(0)
mean = sum(torch.tensordot(a, y.double(), 1) for a, y in zip(w.split(2000), data.split(2000)))
print(float((out[0] - mean).abs().max()))
"""


@pytest.mark.slow
def test_memory_of_a_training_set():
    """60,000 x 784 float32 data and 32 states need less than 1 GB beyond the data, and the answer is the plain sum.

    At little noise the denoiser returns the training points that the states came from.
    """
    out = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout.split()
    extra, nearest, plain = map(float, out)
    assert extra < 1e9
    assert nearest < 1e-6 and plain < 1e-6


# bad input

ONE, TWO = torch.ones(2, dtype=F64), torch.zeros(2, 3, dtype=F64)
EYE = torch.eye(3, dtype=F64)[None, :, :2].expand(2, 3, 2)
NAN = torch.tensor([1.0, math.nan])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ONE[:1], TWO, ONE), "must agree"),
        ((ONE, TWO, torch.ones(3)), "must agree"),
        ((ONE, torch.zeros(2), ONE), "must agree"),
        ((ONE[None], TWO, ONE), "must agree"),
        ((torch.tensor([1.0, 0.0]), TWO, ONE), "must be positive"),
        ((torch.tensor([1.0, -1.0]), TWO, ONE), "must be positive"),
        ((ONE, TWO, torch.tensor([1.0, 0.0])), "must be positive"),
        ((ONE, TWO, torch.tensor([1.0, math.inf])), "must be positive"),
        ((NAN, TWO, ONE), "must be positive"),
        ((ONE, TWO, NAN), "must be positive"),
        ((ONE, TWO * math.nan, ONE), "must be positive"),
        ((ONE, TWO, torch.ones(2, 2)), r"variances must have shape \(2,\) or \(2, 3\)"),
        ((ONE, TWO, torch.ones(2, 1, 3)), "variances must have shape"),
        ((ONE, TWO, torch.ones(2, 2), EYE), "given together"),
        ((ONE, TWO, ONE, None, ONE), "given together"),
        ((ONE, TWO, torch.ones(2, 1), EYE, ONE), "factors must be"),
        ((ONE, TWO, torch.ones(2, 2), EYE, torch.tensor([1.0, 0.0])), "factors must be"),
        ((ONE, TWO, torch.ones(2, 2), EYE, torch.tensor([1.0, math.inf])), "factors must be"),
        ((ONE, TWO, torch.ones(2, 2), EYE, NAN), "factors must be"),
        ((ONE, TWO, torch.ones(2, 2), 1.01 * EYE, ONE), "orthonormal"),
        ((ONE, TWO, torch.ones(2, 2), EYE.flip(2) + EYE, ONE), "orthonormal"),
        ((ONE, TWO, torch.ones(2, 2), math.nan * EYE, ONE), "orthonormal"),
    ],
)
def test_bad_mixtures(arguments, message):
    """Weights, variances and factors of no mixture are refused."""
    with pytest.raises(ValueError, match=message):
        exact.GaussianMixture(*arguments)


@pytest.mark.parametrize("C", [torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 1.0, -0.1]))])
def test_bad_covariances(C):
    """A covariance is positive definite."""
    with pytest.raises(ValueError, match="covariances must be positive definite"):
        exact.Gaussian(torch.zeros(3), C)


def test_bad_states():
    """A state of another shape, data that are no data, and a count that is none."""
    for law, *_ in LAWS.values():
        with pytest.raises(ValueError, match="^x must have shape"):
            law.diffuse(VP())(torch.zeros(2, 5), 0.5)
        with pytest.raises(ValueError, match="^n must"):
            law.sample(0)
    for data in (torch.zeros(3), torch.zeros(0, 2), torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), math.nan)):
        with pytest.raises(ValueError, match="^data must be"):
            exact.Empirical(data)
    with pytest.raises(ValueError, match="^chunk must"):
        exact.Empirical(torch.zeros(2, 2), 0)
    with pytest.raises(ValueError, match="^x must be"):
        exact.Gaussian.fit(torch.zeros(3))


def test_asymmetric_covariance_raises():
    """A matrix that is no covariance is not read by one of its triangles."""
    with pytest.raises(ValueError, match="symmetric"):
        exact.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.0, 1.0]]))


def test_responsibilities_are_bayes():
    """p(k | x) = w_k N(x; m_k, C_k) / p(x), and over exact samples they average to the weights within 4 SE."""
    law = exact.GaussianMixture(
        torch.tensor([1.0, 3.0]), torch.tensor([[0.0, 0.0], [1.0, 0.5]]), torch.tensor([0.2, 0.5])
    )
    x = law.sample(5000, torch.Generator().manual_seed(0))
    parts = [torch.distributions.Normal(m, v.sqrt()).log_prob(x).sum(1) for m, v in zip(law.means, law.diagonal)]
    expected = (law.weights.log() + torch.stack(parts, 1)).exp() / law.log_prob(x).exp()[:, None]
    got = law.responsibilities(x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert ((got.mean(0) - law.weights).abs() < 4 * got.std(0) / 5000**0.5).all()


# the law of x_t as a mixture


@pytest.mark.parametrize("name", SMOOTH)
@every_sde
def test_marginal_is_the_diffused_law(name, sde):
    """The mixture `marginal` has the density, score and shape of the diffused law at t, in torch's words too, and tells
    the components apart by Bayes' rule.
    """
    _, w, m, C = LAWS[name]
    for t in instants(sde):
        x, law, at = states(name, sde, t), LAWS[name][0].diffuse(sde), LAWS[name][0].marginal(sde, t)
        rounding = 1e-15 * float(x.square().sum() / sde.var(t))
        assert at.shape == LAWS[name][0].shape and isinstance(at, exact.GaussianMixture)
        close(at.log_prob(x), law.log_prob(x, t))
        close(at.log_prob(x), diffused(name, sde, t).log_prob(x.flatten(1)), atol=rounding)
        y = x.clone().requires_grad_()
        (score,) = torch.autograd.grad(at.log_prob(y).sum(), y)
        close(score, law(x, t), rtol=1e-8, atol=1e-8 / float(sde.sigma(t)))
        parts = diffused(name, sde, t)
        logits = parts.component_distribution.log_prob(x.flatten(1)[:, None]) + (w / w.sum()).log()
        close(at.responsibilities(x), logits.softmax(1), rtol=1e-8, atol=1e-8)
        assert torch.equal(LAWS[name][0].marginal(sde, float(t)).log_prob(x), at.log_prob(x))


@pytest.mark.parametrize("name", SMOOTH)
def test_marginals_compose(name):
    """Where alpha = 1, variances add: x_t noised once more by s is C + (t^2 + s^2) I. At t = 0 of VP it is the law. And
    the law that was asked stays what it was.
    """
    law, w, m, C = LAWS[name]
    x = states(name, VP(), torch.tensor(0.3, dtype=F64))
    before, weights = law.log_prob(x), law.weights.clone()
    wider = exact.GaussianMixture.from_covariances(w, m, C + (0.3**2 + 0.4**2) * torch.eye(4, dtype=F64))
    twice = law.marginal(EDM(), 0.3).marginal(EDM(), 0.4)
    close(twice.log_prob(x), wider.log_prob(x.flatten(1)), rtol=1e-9)
    close(twice.log_prob(x), law.marginal(EDM(), 0.5).log_prob(x), rtol=1e-9)
    close(law.marginal(VP(), 0.0).log_prob(x), before)
    assert torch.equal(law.log_prob(x), before) and torch.equal(law.marginal(VP(), 0.5).weights, weights)


@pytest.mark.parametrize("name", SMOOTH)
def test_marginal_draws(name):
    """Draws of it have the mean and the second moments of alpha x_0 + sigma z; as a law it has scores of its own."""
    law, w, m, C = LAWS[name]
    w, sde, t, n, eye = w / w.sum(), VP(), 0.25, 20_000, torch.eye(4, dtype=F64)
    a, v = sde.alpha(t), sde.var(torch.tensor(t, dtype=F64))
    x = law.marginal(sde, t).sample(n, generator(8))
    assert x.shape == (n, *law.shape)
    x, second = x.flatten(1), torch.einsum("k,kij->ij", w, C + m[:, :, None] * m[:, None])
    within(x, a * (w @ m))
    within(torch.einsum("ni,nj->nij", x, x).flatten(1), (a**2 * second + v * eye).flatten())


def test_points_have_no_score_at_sigma_0():
    """0/0 there: refused, and near it the denoiser is the nearest point."""
    points = randn(5, 2)
    p = exact.Empirical(points).diffuse(VP())
    for f in (p, p.denoise, p.posterior):
        with pytest.raises(ValueError, match="^t must be a time with sigma > 0"):
            f(points, 0.0)
        with pytest.raises(ValueError, match=r"^t must lie in \[0, "):
            f(points, math.nan)
    close(p.denoise(points + 1e-4, 1e-6), points)


@pytest.mark.parametrize("bad", [None, "x", {}, 1j, object()], ids=lambda v: type(v).__name__)
def test_tables_that_are_none_are_named(bad):
    """By the argument that they are."""
    one, two = torch.ones(2), torch.zeros(2, 3)
    for name, make in (
        ("weights", lambda: exact.GaussianMixture(bad, two, one)),
        ("means", lambda: exact.GaussianMixture(one, bad, one)),
        ("variances", lambda: exact.GaussianMixture(one, two, bad)),
        ("covariances", lambda: exact.GaussianMixture.from_covariances(one, two, bad)),
        ("mean", lambda: exact.Gaussian(bad, 1.0)),
        ("covariance", lambda: exact.Gaussian(two[0], bad)),
        ("mean", lambda: exact.Gaussian(two[0], 1.0).kl_from(bad, torch.eye(3))),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            make()
