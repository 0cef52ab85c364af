"""Latents at any time of the flow: closed forms on Gaussian data, and there and back on a mixture."""

import math

import pytest
import torch

from scoresde import EDM, VE, VP, Reference, exact
from scoresde.likelihood import Adams, RungeKutta, decode, encode
from scoresde.ode import Dopri5

F64 = torch.float64
MEAN, STD = torch.tensor([0.5, -1.0, 2.0], dtype=F64), 0.7
LAW, EXACT, ELSE = exact.Gaussian(MEAN, STD**2), Reference(MEAN, STD), Reference(0.3, 1.0)
MIXTURE = exact.GaussianMixture(
    torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64), torch.tensor([0.1, 0.2])
)
SDES = [VP(), VE(0.01, 30.0), EDM()]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
SPANS = [(None, 0.4), (0.2, None), (0.1, 0.6), (0.3, 0.31)]


def at(sde, part, usual):
    """A time by its part of T."""
    return usual if part is None else part * sde.T


def draw(law=LAW, n=4):
    return law.sample(n, torch.Generator().manual_seed(0))


@every_sde
@pytest.mark.parametrize("span", SPANS, ids=str)
def test_gaussian(sde, span):
    """x_s = alpha_s m + S_s/S_t (x_t - alpha_t m) with S^2 = alpha^2 c^2 + sigma^2, up and down: exactly around the
    data, and by the order of the method around another Gaussian. What is not given is t_min, or T.
    """
    q = sde.reverse(LAW.diffuse(sde), 0.0)
    low, high = at(sde, span[0], sde.t_min), at(sde, span[1], sde.T)
    given = [None if part is None else part * sde.T for part in span]
    (a, S), (b, R) = (
        (float(sde.alpha(t)), math.sqrt(float(sde.alpha(t)) ** 2 * STD**2 + float(sde.var(t)))) for t in (low, high)
    )
    x = a * draw()
    z = b * MEAN + R / S * (x - a * MEAN)
    for around, tol in ((EXACT, 1e-10), (ELSE, 1e-4)):
        up = encode(q, x, Adams(100), around, start=given[0], end=given[1])
        down = decode(q, z, Adams(100), around, start=given[1], end=given[0])
        torch.testing.assert_close(up, z, rtol=tol, atol=tol * R)
        torch.testing.assert_close(down, x, rtol=tol, atol=tol)


@pytest.mark.parametrize("sde", [VP(), VE(0.01, 30.0)], ids=lambda sde: type(sde).__name__)
def test_there_and_back_and_in_parts(sde):
    """By the order of the method, 4, what goes up to a time and on to T is where it goes at once, and what comes down
    is where it was.
    """
    q, t, x = sde.reverse(MIXTURE.diffuse(sde), 0.0), 0.6 * sde.T, draw(MIXTURE, 20)
    errors = []
    for n in (20, 40):
        method = RungeKutta(n)
        halfway = encode(q, x, method, end=t)
        parts = encode(q, halfway, method, start=t) - encode(q, x, method)
        back = decode(q, halfway, method, start=t) - x
        errors.append([float(part.norm()) for part in (parts, back)])
    assert all(coarse > 10 * fine > 0 for coarse, fine in zip(*errors, strict=True)), errors
    assert max(errors[1]) < 1e-2


def test_a_solver_that_chooses_its_steps():
    sde = VP()
    q, x = sde.reverse(MIXTURE.diffuse(sde), 0.0), draw(MIXTURE, 5)
    want = encode(q, x, RungeKutta(200), start=0.01, end=0.5)
    torch.testing.assert_close(encode(q, x, Dopri5(1e-9, 1e-9), start=0.01, end=0.5), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda q, x: encode(q, x, start=0.5, end=0.5), "end must be later than start = 0.5, got 0.5"),
        (lambda q, x: encode(q, x, start=0.5, end=0.2), "end must be later"),
        (lambda q, x: decode(q, x, start=0.2, end=0.5), "end must be earlier"),
        (lambda q, x: encode(q, x, end=1.5), "end must be a finite number >= 0 and <= 1, got 1.5"),
        (lambda q, x: decode(q, x, start="T"), "start must be"),
        (lambda q, x: decode(q, x, end=0.0), "end must be a time with sigma > 0"),
        (lambda q, x: encode(q, x, start=0.0), "start must be a time with sigma > 0"),
        (lambda q, x: encode(None, x, end=0.5), "p must be"),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make(VP().reverse(LAW.diffuse(VP()), 0.0), draw())
