"""Step sizes by acceptance: what is fitted is what is accepted, and what is told of the line integral is its error."""

import math

import pytest
import torch

from scoresde import VE, VP, Ancestral, Counted, Langevin, Reverse, grid, iid, sample
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.lab import law_of
from scoresde.lab.problems import DigitClasses
from scoresde.steps import MALA, SNR, Calibrated, Constant, Tallied

F64 = torch.float64
DIGITS = DigitClasses().law()
MODES = GaussianMixture(
    torch.tensor([0.7, 0.3]), torch.tensor([[-1.0], [1.0]], dtype=F64), torch.tensor([0.01, 0.02], dtype=F64)
)


def noise(seed=0):
    return iid(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("accept", [0.4, 0.574, 0.8])
@pytest.mark.parametrize("by_scores", [0, 2, 3])
def test_as_many_are_accepted_as_were_asked_for(by_scores, accept):
    """On fresh samples of every level, of a mixture in 64 dimensions; a step size of another power of the width, or one
    that kept that of the first level, would be off by far more.
    """
    sde = VP()
    score, x_0 = DIGITS.diffuse(sde), DIGITS.sample(300, torch.Generator().manual_seed(1))
    ts, p = grid.log_snr(sde, 12), sde.reverse(score)
    rule = Calibrated.fit(p, x_0, ts, accept=accept, by_scores=by_scores, most=1e9, noise=noise())
    for k, t in enumerate(ts[2:], 2):  # the first of them are Gaussian, where no step is too long
        tallied = Tallied(MALA(rule, 3, by_scores)).start(p, t[None], t[None])
        tallied(p, score.sample(400, t, torch.Generator().manual_seed(2)), t, t, noise(3))
        assert (tallied.accepted + tallied.rejected == 3).all()
        assert abs(float(tallied.accepted.double().mean()) / 3 - accept) < 0.1
        assert abs(float(rule.accepted[k]) - accept) < 0.06
    assert repr(rule) == "Calibrated(fitted at 13 times)"


def test_doubt_shortens_steps_of_two_scores_alone():
    """Between two modes the line integral is told worst, where as many would be accepted as are asked for."""
    sde, x_0 = VP(), MODES.sample(2000, torch.Generator().manual_seed(0))
    p, ts = sde.reverse(MODES.diffuse(sde)), grid.log_snr(sde, 20)
    free, kept, three = (
        Calibrated.fit(p, x_0, ts, by_scores=k, most=most, noise=noise(1)) for k, most in ((2, 1e9), (2, 0.1), (3, 0.1))
    )
    assert free.doubt.max() > 0.5 and kept.doubt.max() < 0.3
    assert (kept.sizes <= free.sizes * 1.3).all() and (kept.accepted >= free.accepted - 0.05).all()
    torch.testing.assert_close(three.doubt.max(), free.doubt.max(), rtol=0.5, atol=0)


def test_where_every_step_is_accepted():
    """Of one Gaussian a proposal by its own mean square is drawn anew, so that no longer step is of use."""
    sde, law = VE(0.05, 5.0), Gaussian(torch.zeros(3, dtype=F64), 0.7)
    p, ts = sde.reverse(law.diffuse(sde)), grid.log_snr(sde, 5)
    rule = Calibrated.fit(p, law.sample(4000, torch.Generator().manual_seed(0)), ts, accept=0.2, noise=noise())
    torch.testing.assert_close(rule.sizes, 0.7 + sde.var(ts), rtol=0.05, atol=0)
    assert (rule.doubt < 1e-12).all()  # the score is a line, which the trapezoid rule integrates


def test_the_doubt_is_the_error_of_the_trapezoid_rule():
    sde = VP()
    score, ts = MODES.diffuse(sde), sde.time(torch.tensor([0.0, 0.5, 1.0, 1.5], dtype=F64))
    p = sde.reverse(score)
    rule = Calibrated.fit(
        p, MODES.sample(20_000, torch.Generator().manual_seed(0)), ts, accept=0.7, most=1e9, noise=noise(1)
    )
    for t, e, doubt in zip(ts, rule.sizes, rule.doubt, strict=True):
        x = score.sample(20_000, t, torch.Generator().manual_seed(2))
        y = (
            x
            + e * score(x, t)
            + (2 * e).sqrt() * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=F64)
        )
        found = MALA(rule, 1, 2).integral(p, x, y, score(x, t), score(y, t), t)
        true = score.log_prob(y, t) - score.log_prob(x, t)
        rms = float((found - true).square().mean().sqrt())
        assert 0.6 * rms < doubt < 1.8 * rms


@pytest.mark.parametrize("by_scores", [2, 3])
def test_a_score_that_is_not_a_number_is_told(by_scores):
    """Not taken for a rejection, by the fit or by a step: the sample is lost, and others are not."""
    sde = VP()
    score, ts = MODES.diffuse(sde), grid.log_snr(VP(), 3)

    def torn(x, t):
        return torch.where(x > 0.5, math.nan, score(x, t))

    with pytest.raises(ValueError, match="score must be finite where data and proposals are, but at t = 1 it is not"):
        Calibrated.fit(sde.reverse(torn), MODES.sample(50), ts, by_scores=by_scores, noise=noise())
    x, t = torch.tensor([[0.49], [-1.0]], dtype=F64), ts[-1]
    found = MALA(Constant(1e-4), 40, by_scores)(sde.reverse(torn), x, t, t, noise())
    assert found.isnan().flatten().tolist() == [True, False]


def test_calls_and_samples():
    """Nine network calls a level to fit, four more with three scores; and counting changes nothing, alone or beside a
    predictor.
    """
    sde = VP()
    counted, ts = Counted(MODES.diffuse(sde)), grid.log_snr(sde, 9)
    rule = Calibrated.fit(sde.reverse(lambda x, t: counted(x, t)), MODES.sample(50), ts, noise=noise())
    assert counted.nfe == 9 * 10
    Calibrated.fit(sde.reverse(lambda x, t: counted(x, t)), MODES.sample(50), ts, by_scores=3, noise=noise())
    assert counted.nfe == 9 * 10 + 13 * 10
    p, x = sde.reverse(MODES.diffuse(sde)), torch.randn(20, 1, dtype=F64)
    step = MALA(rule, 2, 2)
    for more in ((), (Ancestral(),)):
        tallied = Tallied(step)
        found = sample(p, x, ts, tallied, *more, noise=noise(1))
        assert torch.equal(found, sample(p, x, ts, step, *more, noise=noise(1)))
        assert (tallied.accepted + tallied.rejected == 2 * (len(ts) - bool(more))).all()
        assert 0 < tallied.accepted.double().mean() < 2 * len(ts)


def test_langevin_dynamics_takes_it_too_and_its_law_is_told():
    """A step size a level, in the kernels of both."""
    sde = VP()
    ts = grid.log_snr(sde, 12)
    p = sde.reverse(MODES.diffuse(sde))
    rule = Calibrated.fit(p, MODES.sample(500, torch.Generator().manual_seed(0)), ts, noise=noise())
    truth = MODES.marginal(sde, ts[-1])
    plain, by_scores, exact = (
        law_of(p, ts, corrector, Ancestral(1.0)).distances(truth)["kl"]
        for corrector in (Langevin(rule), MALA(rule, 1, 2), MALA(rule))
    )
    assert exact < by_scores < plain


P, TS = VP().reverse(MODES.diffuse(VP())), grid.log_snr(VP(), 3)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: Calibrated(TS, TS[1:]), "ts and sizes must have one shape"),
        (lambda: Calibrated(TS, -TS), "sizes must be a table of numbers > 0"),
        (lambda: Calibrated(TS, TS + math.inf), "sizes must be a table of numbers > 0, and finite"),
        (lambda: MALA(Calibrated(TS, TS))(P, torch.zeros(1, 1, dtype=F64), TS[0] / 2, TS[0] / 2, noise()), "fitted at"),
        (lambda: Calibrated.fit(P, MODES.sample(9), TS, accept=1.0), "accept must be"),
        (lambda: Calibrated.fit(P, MODES.sample(9), 2 * TS), "t must lie in"),
        (lambda: Calibrated.fit(P, MODES.sample(9), TS, most=0.0), "most must be"),
        (lambda: Calibrated.fit(P, torch.ones(9), TS), "x_0 must be"),
        (lambda: Calibrated.fit(VP().reverse(lambda x, t: x), MODES.sample(9), TS, by_scores=0), "log_prob"),
        (lambda: Calibrated.fit(Reverse(VP(), P.score, 0.0), MODES.sample(9), TS), "eta > 0"),
        (lambda: Calibrated.fit(P, MODES.sample(9), TS, noise=3), "noise must be"),
        (lambda: MALA(SNR()), "step_size must be a rule"),
        (lambda: MALA(Constant(0.1), by_scores=4), "by_scores must be 0, 2 or 3"),
    ],
)
def test_bad_input_is_refused_by_name(call, says):
    with pytest.raises(ValueError, match=says):
        call()
