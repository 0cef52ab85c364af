"""Edits on Gaussian data, where latents, paths and variations have closed forms."""

import math

import pytest
import torch

from scoresde import EDM, VE, VP, Ancestral, GaussianReference, Reference, grid, iid
from scoresde.edit import interpolate, round_trip, vary
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.likelihood import Adams, encode

F64 = torch.float64
MEAN, STD = torch.tensor([0.5, -1.0, 2.0], dtype=F64), 0.7
LAW, AROUND = Gaussian(MEAN, STD**2), Reference(0.3, 1.0)
SDES = [VP(), VE(0.01, 30.0), EDM()]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flow(sde):
    return sde.reverse(LAW.diffuse(sde), 0.0)


def at(sde, t):
    """alpha, and the deviation of x_t."""
    t = torch.tensor(t, dtype=F64)
    return float(sde.alpha(t)), math.sqrt(float(sde.alpha(t)) ** 2 * STD**2 + float(sde.var(t)))


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_interpolate(sde):
    """The flow of a Gaussian is affine, x_T = alpha_T m + s_T/s (x - alpha m): what lies between two samples is that of
    the great circle between their latents, and both ends are themselves.
    """
    (alpha, s), (alpha_T, s_T) = at(sde, sde.t_min), at(sde, sde.T)
    a, b = (alpha * LAW.sample(4, generator(k)) for k in (1, 2))
    found = interpolate(flow(sde), a, b, 5, Adams(200), AROUND)
    assert found.shape == (5, 4, 3)
    to = lambda x: alpha_T * MEAN + s_T / s * (x - alpha * MEAN)  # noqa: E731
    back = lambda z: alpha * MEAN + s / s_T * (z - alpha_T * MEAN)  # noqa: E731
    z_a, z_b = to(a), to(b)
    torch.testing.assert_close(encode(flow(sde), a, Adams(200), AROUND), z_a, rtol=1e-5, atol=1e-5)
    w = ((z_a * z_b).sum(1) / z_a.norm(dim=1) / z_b.norm(dim=1)).arccos()[:, None]
    for k in range(5):
        u = k / 4
        want = back((((1 - u) * w).sin() * z_a + (u * w).sin() * z_b) / w.sin())
        torch.testing.assert_close(found[k], want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], a, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[4], b, rtol=1e-4, atol=1e-4)


def test_between_a_sample_and_itself():
    """All of it is the sample, though the circle has no angle."""
    a = LAW.sample(2, generator())
    found = interpolate(flow(VP()), a, a.clone(), 3, Adams(100), AROUND)
    torch.testing.assert_close(found, a.expand(3, 2, 3), rtol=1e-4, atol=1e-4)


def test_round_trip_falls_with_the_steps():
    """By the order of the solver, to nothing; and it is what comes back."""
    law = GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64), torch.tensor([0.1, 0.2]))
    p, x = VP().reverse(law.diffuse(VP()), 0.0), law.sample(20, generator())
    errors = [float(round_trip(p, x, Adams(n)).mean()) for n in (20, 80, 320)]
    assert errors[0] > 20 * errors[1] > 400 * errors[2] and errors[2] < 1e-5


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_vary(sde):
    """Variations of samples of the law are of the law, and their covariance with the samples is that of draws of
    p(x_0 | x_t), alpha^2 s^4/(alpha^2 s^2 + sigma^2): within five standard errors of 20,000.
    """
    n, end = 20_000, grid.log_snr(sde, 800)
    t = end[end <= float(sde.time(torch.tensor(0.0, dtype=F64)))][0]
    ts = end[end <= t]
    x = LAW.sample(n, generator(3))
    y = vary(sde.reverse(LAW.diffuse(sde)), x, ts, Ancestral(), noise=iid(generator(4)))
    alpha, var = float(sde.alpha(t)), float(sde.var(t))
    off_x, off_y = x - MEAN, y - float(sde.alpha(ts[-1])) * MEAN
    want = alpha**2 * STD**4 / (alpha**2 * STD**2 + var)
    assert 0.2 * STD**2 < want < 0.8 * STD**2
    chance = STD**2 / n**0.5
    assert ((off_x * off_y).mean(0) - want).abs().max() < 5 * 1.5 * chance + 0.01
    assert (off_y.square().mean(0) - STD**2).abs().max() < 5 * 1.5 * chance + 0.02
    late = vary(sde.reverse(LAW.diffuse(sde)), x[:2000], end, Ancestral(), noise=iid(generator(4)))
    assert ((x - MEAN)[:2000] * (late - MEAN)).mean(0).abs().max() < 0.05


def test_on_the_flow_and_by_hand():
    """With one latent the flow brings one sample back: noise alone decides."""
    p, x, ts = flow(VP()), LAW.sample(3, generator()), torch.linspace(0.5, 0.001, 30, dtype=F64)
    step = GaussianReference(Reference.fit(LAW.sample(500, generator(1))))
    one, two = (vary(p, x, ts, step, noise=iid(generator(7))) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, vary(p, x, ts, step, noise=iid(generator(8))))
    still = vary(p, x, ts, step, noise=lambda x, t, s: torch.zeros_like(x))
    alpha, s = at(VP(), 0.5)
    end, s_0 = at(VP(), 0.001)
    want = end * MEAN + s_0 / s * (alpha * x - alpha * MEAN)
    torch.testing.assert_close(still, want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p, x: interpolate(p, x, x[:1]), "b must have the shape of a"),
        (lambda p, x: interpolate(p, x, x, 1), "n must"),
        (lambda p, x: vary(p, x, torch.tensor([0.1, 0.5]), Ancestral()), "ts must strictly decrease"),
        (lambda p, x: vary(p, x.long(), torch.tensor([0.5, 0.1]), Ancestral()), "x must be"),
        (lambda p, x: round_trip(p, x, "adams"), "method must"),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make(flow(VP()), LAW.sample(3, generator()))
