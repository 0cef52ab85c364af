"""The spectrum of Langevin dynamics, against closed forms and against the law as it goes on."""

import math

import pytest
import torch

from scoresde import VE, VP
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.lab import Mixing, law_of, mixing, tabulated
from scoresde.steps import MALA, NCSN, SNR, Ancestral, Constant, Langevin

F64 = torch.float64
POINT = Gaussian(torch.tensor([0.4], dtype=F64), 0.3)
TWO = GaussianMixture(torch.tensor([0.7, 0.3]), torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.01], [0.02]]))


@pytest.mark.parametrize("share", [0.05, 0.5, 1.1])
def test_the_spectrum_of_a_gaussian(share):
    """Steps e on N(m, C) have the eigenvalues (1 - e/C)^k, those of an autoregression."""
    sde, t = VP(), 0.5
    true = POINT.marginal(sde, t)
    C = float(true.covariances)
    found = mixing(sde.reverse(POINT.diffuse(sde)), t, Langevin(Constant(share * C), n=7), tabulated(true))
    want = (1 - share) ** torch.arange(6, dtype=F64)
    torch.testing.assert_close(found.eigenvalues[:6], want.to(torch.complex128), rtol=0, atol=1e-8)
    assert found.gap == pytest.approx(1 - abs(1 - share), abs=1e-8)
    assert found.relaxation == pytest.approx(-1 / math.log(abs(1 - share)), rel=1e-7)


def test_metropolis_decays_as_its_spectrum_says():
    """The mean of a law that starts elsewhere comes home by lambda_2 a step, which is real; both times of the grid have
    a step more.
    """
    sde, t = VP(), torch.tensor([0.3, 0.3 - 1e-12], dtype=F64)
    p, true = sde.reverse(POINT.diffuse(sde)), POINT.marginal(sde, 0.3)
    rule, start = NCSN(0.6, 1.0), Gaussian(true.means[0] + 0.3, float(true.covariances))
    found = mixing(p, t[0], MALA(rule), tabulated(true))
    assert float(found.eigenvalues[:4].imag.abs().max()) < 1e-12
    off = [law_of(p, t, MALA(rule, n=n), prior=start).mean - float(true.means[0]) for n in (30, 31)]
    assert off[1] / off[0] == pytest.approx(float(found.eigenvalues[1].abs()) ** 2, abs=1e-3)
    assert float((found.P.sum(1) - 1).abs().max()) < 1e-12


def test_modes_that_are_apart_take_long():
    """The relaxation time is the time to cross and to come back, times both weights; it is longer the less noise there
    is, and where an eigenvalue tells no more, the crossing still does: e to the height of the barrier.
    """
    sde = VE(0.05, 4.0)
    p, times = sde.reverse(TWO.diffuse(sde)), []
    for sigma in (0.5, 0.35, 0.25):
        t = sde.time(torch.tensor(-math.log(sigma), dtype=F64))
        chain = mixing(p, t, Langevin(NCSN(0.4, 1.0)), tabulated(TWO.marginal(sde, t)))
        times.append((chain.relaxation, chain.crossing(-1.0, 1.0)))
    assert times[0][0] < times[1][0] / 2 < times[2][0] / 20
    assert times[2][0] == pytest.approx(0.21 * times[2][1], rel=0.1)
    t = sde.time(torch.tensor(-math.log(0.06), dtype=F64))
    chain = mixing(p, t, Langevin(NCSN(0.4, 1.0)), tabulated(TWO.marginal(sde, t)))
    assert chain.relaxation == math.inf and 1e12 < chain.crossing(-1.0, 1.0) < 1e20


def test_crossing_in_closed_form():
    """Two states that change places with the probabilities u and v: 1/u + 1/v steps there and back, however small; a
    third between them, from which either is as near.
    """
    u, v = 1e-20, 3e-18
    two = Mixing(torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([[1 - u, u], [v, 1 - v]], dtype=F64))
    assert two.crossing(0.0, 1.0) == pytest.approx(1 / u + 1 / v, rel=1e-12)
    P = torch.tensor([[1 - u, u, 0.0], [0.5, 0.0, 0.5], [0.0, v, 1 - v]], dtype=F64)
    three = Mixing(torch.tensor([0.0, 1.0, 2.0], dtype=F64), P)
    there, back = 2 * (1 / u + 1), 2 * (1 / v + 1)
    assert three.crossing(0.0, 2.0) == pytest.approx(there + back, rel=1e-12)


def test_what_is_refused():
    """By name."""
    sde = VP()
    p, within = sde.reverse(POINT.diffuse(sde)), tabulated(POINT)
    for step, said in (
        (Ancestral(), "step must be Langevin"),
        (Langevin(SNR()), "does not enter linearly"),
        (Langevin(Constant(1e-9)), "step_size must be such that 4096 points"),
    ):
        with pytest.raises(ValueError, match=said):
            mixing(p, 0.5, step, within)
    with pytest.raises(ValueError, match="a and b must be points"):
        mixing(p, 0.5, Langevin(Constant(0.1)), within).crossing(0.1, 0.1)
