"""Latents parallel in time: those of the method in sequence, in fewer calls."""

import re

import pytest
import torch
from papers import F64, MEAN, MIXTURE, SDES, STD, normal

from scoresde import VP, Counted, Reference, exact, ode
from scoresde.likelihood import Adams, AsNeeded, Picard, Quadrature, RungeKutta, decode, encode

AROUND = Reference(MEAN, STD)
METHODS = [Adams(20), Adams(20, order=1), RungeKutta(4)]


class Rows:
    """A score that keeps how many samples each call saw."""

    def __init__(self, score):
        self.score, self.seen = score, []

    def __call__(self, x, t):
        self.seen.append(len(x))
        return self.score(x, t)


def off(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_latents_and_states_are_those_of_the_method_in_sequence(sde, method):
    score, x = Rows(MIXTURE.diffuse(sde)), MIXTURE.sample(5, torch.Generator().manual_seed(0))
    p, one = sde.reverse(score), sde.reverse(Counted(MIXTURE.diffuse(sde)))
    for carry, y in ((encode, x), (decode, float(sde.sigma(sde.T)) * normal(5, 2))):
        score.seen.clear()
        found, truth = carry(p, y, Picard(method, 1e-13), AROUND), carry(one, y, method, AROUND)
        assert off(found, truth) < 1e-10 * max(1.0, float(truth.abs().max()))
        assert score.seen[0] == 5 * len(method_calls(method)) and len(score.seen) <= len(method_calls(method))


def method_calls(method):
    """The times that a method asks at."""
    calls = Counted(lambda x, t: -x)
    encode(VP().reverse(calls), torch.ones(1, 2), method)
    return range(calls.nfe)


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_one_call_is_enough_for_gaussian_data(sde):
    law = exact.Gaussian(MEAN, STD**2)
    score = Counted(law.diffuse(sde))
    x = law.sample(5, torch.Generator().manual_seed(0))
    found = encode(sde.reverse(score), x, Picard(Adams(20), 1e-9), AROUND)
    assert score.nfe == 1 and off(found, encode(sde.reverse(score), x, Adams(20), AROUND)) < 1e-9 * float(
        found.abs().max()
    )


def test_what_is_left_is_of_the_size_of_the_tolerance_and_costs_calls():
    sde, x, before = VP(), MIXTURE.sample(5, torch.Generator().manual_seed(0)), 0
    truth = encode(sde.reverse(MIXTURE.diffuse(sde)), x, Adams(40), AROUND)
    for tol in (1e-2, 1e-5, 1e-8):
        score = Counted(MIXTURE.diffuse(sde))
        assert 0 < off(encode(sde.reverse(score), x, Picard(Adams(40), tol), AROUND), truth) < 10 * tol
        assert before < score.nfe < 20
        before = score.nfe


def test_a_sample_depends_on_nothing_but_itself():
    """What it costs, too: neighbours that need more sweeps give it none."""
    sde, x = VP(), torch.tensor([1.0, 3.0, 0.2, 20.0], dtype=F64)[:, None] * MIXTURE.sample(4, torch.Generator())
    together = Rows(MIXTURE.diffuse(sde))
    latents, cost = encode(sde.reverse(together), x, Picard(Adams(20), 1e-4), AROUND), 0
    for i in range(4):
        score = Rows(MIXTURE.diffuse(sde))
        assert off(encode(sde.reverse(score), x[[i]], Picard(Adams(20), 1e-4), AROUND), latents[[i]]) < 1e-12
        cost += sum(score.seen)
    assert cost == sum(together.seen)


def test_a_condition_goes_with_its_sample():
    sde = VP()
    means = torch.stack([MEAN, -MEAN])

    def score(x, t, label):
        return exact.Gaussian(torch.zeros(2), 0.25).diffuse(sde)(x - torch.as_tensor(alpha(t)) * means[label], t)

    def alpha(t):
        return sde.alpha(t)[:, None] if t.ndim else sde.alpha(t)

    p, x, label = sde.reverse(score), normal(4, 2), torch.tensor([0, 1, 1, 1])
    found = encode(p, x, Picard(Adams(20), 1e-12), label=label)
    assert off(found, encode(p, x, Adams(20), label=label)) < 1e-10


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: Picard(AsNeeded()), "method must be of a fixed number of calls, such as Adams(40), got AsNeeded("),
        (lambda: Picard(ode.Dopri5()), "method must be of a fixed number of calls"),
        (lambda: Picard(tol=-1.0), "tol must be a finite number >= 0, got -1.0"),
        (lambda: Quadrature(Picard()), "method must be a value such as AsNeeded(), got Picard("),
    ],
)
def test_what_cannot_be_done_is_said(make, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        make()
