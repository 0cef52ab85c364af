"""Particles without derivatives: p(y) on average however few there are, and the posterior where they are many."""

import math

import pytest
import torch

from scoresde import VP, Ancestral, Counted, Reference, UniPC, grid, iid
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.inverse import Map, Mask, Matrix, Observation, log_evidence, mcgdiff, posterior

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


MASK = Mask(torch.tensor([True, False, True, False]))
FULL = Matrix(torch.diag(torch.tensor([2.0, 1.0, 0.3], dtype=F64)) @ torch.linalg.qr(randn(4, 4, seed=1))[0][:3], (4,))
LAW = GaussianMixture.from_covariances(
    torch.tensor([0.6, 0.4], dtype=F64),
    torch.tensor([[-1.0, 0.3, 0.5, 0.0], [1.0, -0.5, 0.2, 0.8]], dtype=F64),
    torch.stack([0.2 * torch.eye(4) + 0.1, 0.1 * torch.eye(4) + 0.05]).double(),
)
SEEN = Observation(MASK, [0.3, 0.2], 0.4)
AROUND = Reference(0.0, 0.9)
SDE = VP()


def drawn(score, seen, n, ts, seed=0, **more):
    """Particles, of which everything follows from the seed."""
    x_T = SDE.prior((n, *seen.A.shape), iid(generator(3 * seed)), F64)
    return mcgdiff(score, seen, x_T, ts, noise=iid(generator(3 * seed + 1)), generator=generator(3 * seed + 2), **more)


def end(step, score, ts, c2):
    """The covariance (d, d) of x/alpha at the end of a step's own chain, for data N(0, diag c2), by its recursion."""
    var, p = SDE.var(ts[0]) * torch.ones_like(c2), SDE.reverse(score)
    for t, u in zip(ts[:-1], ts[1:]):
        a, b, c = (float(v) for v in step.line(p, t, u))
        var = (a - b / (SDE.alpha(t) ** 2 * c2 + SDE.var(t))) ** 2 * var + c**2
    return torch.diag(var / SDE.alpha(ts[-1]) ** 2)


@pytest.mark.parametrize("std", [0.1, 4.0])
def test_one_step_by_hand(std):
    """On a line: x_T and x_s move toward y by what their noise and that of y say, and weights are as in the paper, of
    potentials with the larger of sigma/alpha and std.
    """
    ts, y, x, z = torch.tensor([0.4, 0.2], dtype=F64), 0.7, randn(30, 1, seed=2), randn(30, 1, seed=3)
    seen, score = Observation(Mask(torch.tensor([True])), [y], std), Gaussian(torch.zeros(1), 1.0).diffuse(SDE)
    found = mcgdiff(score, seen, x, ts, noise=lambda *_: z, least=0.0).samples
    (a_t, a_s), sigma = SDE.alpha(ts), SDE.sigma(ts[0])
    assert 0.1 < sigma / a_t < 4
    v = max(sigma**2 / a_t**2, std**2)
    k = sigma**2 / (sigma**2 + a_t**2 * v)
    x = k * a_t * y + (1 - k).sqrt() * x
    a, b, c = Ancestral(1.0).line(SDE.reverse(score), *ts)
    mean = a * x + b * score(x, ts[0])
    k = c**2 / (c**2 + a_s**2 * std**2)
    torch.testing.assert_close(found.x, mean + k * (a_s * y - mean) + (1 - k).sqrt() * c * z, rtol=1e-10, atol=1e-10)
    log_w = ((y - x / a_t) ** 2 / v - (y - mean / a_s) ** 2 / (std**2 + c**2 / a_s**2))[:, 0] / 2
    torch.testing.assert_close(found.log_w - found.log_w.mean(), log_w - log_w.mean(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("around", [None, AROUND], ids=["", "around"])
@pytest.mark.parametrize("last", [0.001, 0.0])
def test_evidence_without_bias(last, around):
    """However few the steps, p(y) of the step's own law: within four standard errors of the mean of 100,000 independent
    weights, which are less than 3 %, and of 100 runs of 40 particles that are always drawn anew.
    """
    c2, ts = torch.tensor([1.0, 0.2, 0.5, 2.0], dtype=F64), torch.tensor([1.0, 0.6, 0.3, 0.1, last])
    score, std = Gaussian(torch.zeros(4, dtype=F64), torch.diag(c2)).diffuse(SDE), 0.5
    seen = Observation(FULL, [0.4, -0.5, 0.2], std)
    cov = FULL.A @ end(Ancestral(1.0), score, ts.double(), c2) @ FULL.A.T + std**2 * torch.eye(3, dtype=F64)
    want = float(torch.distributions.MultivariateNormal(torch.zeros(3, dtype=F64), cov).log_prob(seen.y))
    many = drawn(score, seen, 100_000, ts, around=around, least=0.0)
    assert many.samples.drawn == 0 and abs(many.log_evidence - want) < 4 * many.error < 0.12
    found = [drawn(score, seen, 40, ts, k, around=around, least=1.0) for k in range(100)]
    assert all(f.samples.drawn == 4 for f in found)
    ratio = torch.tensor([math.exp(f.log_evidence - want) for f in found])
    error = float(ratio.std()) / 10
    assert abs(float(ratio.mean()) - 1) < 4 * error < 0.5


@pytest.mark.parametrize("around", [None, AROUND], ids=["", "around"])
def test_y_without_noise(around):
    """With std = 0, log p(y) is the log density of A x, and y is met to 1e-10 where the last step has noise."""
    c2, ts, step = torch.tensor([1.0, 0.2, 0.5, 2.0], dtype=F64), grid.log_snr(SDE, 12), Ancestral(1.0)
    score = Gaussian(torch.zeros(4, dtype=F64), torch.diag(c2)).diffuse(SDE)
    seen = Observation(FULL, [1.0, -0.5, 0.2], 0.0)
    cov = FULL.A @ end(step, score, ts, c2) @ FULL.A.T
    want = float(torch.distributions.MultivariateNormal(torch.zeros(3, dtype=F64), cov).log_prob(seen.y))
    found = drawn(score, seen, 20_000, ts, around=around)
    assert abs(found.log_evidence - want) < 4 * found.error < 0.6
    y = FULL(found.samples.x / SDE.alpha(ts[-1]))
    torch.testing.assert_close(y, seen.y.expand_as(y), rtol=0, atol=1e-10)


def test_rate():
    """The variance of log p(y) over 40 seeds, and that of the means, fall as 1/N: by 8 from 300 to 2,400 particles, to
    a factor 2.5; the errors that are told are those of log p(y), root mean square, to a third.
    """
    score, ts, kept = LAW.diffuse(SDE), grid.log_snr(SDE, 12), []
    for n in (300, 2400):
        found = [drawn(score, SEEN, n, ts, k, around=AROUND) for k in range(40)]
        told = torch.tensor([f.error for f in found]).square().mean().sqrt()
        log_p, means = torch.tensor([f.log_evidence for f in found]), torch.stack([f.samples.mean() for f in found])
        assert 2 / 3 < float(told / log_p.std()) < 3 / 2
        kept.append((float(log_p.var()), float(means.var(0).sum())))
    for few, many in zip(*kept, strict=True):
        assert 3.2 < few / many < 20, kept


@pytest.mark.parametrize("A", [MASK, FULL], ids=lambda A: type(A).__name__)
def test_the_posterior(A):
    """In 150 steps of 10,000 particles the modes' weights and the means are those of the posterior within four of the
    errors told and a hundredth, and log p(y) to 0.1.
    """
    seen, ts = Observation(A, A(torch.tensor([[0.0, 0.0, 0.4, 0.3]], dtype=F64))[0], 0.4), grid.log_snr(SDE, 150)
    truth, alpha = posterior(LAW, seen), float(SDE.alpha(ts[-1]))
    found = drawn(LAW.diffuse(SDE), seen, 10_000, ts, around=AROUND)
    for f, of in ((LAW.responsibilities, truth.sample(100_000, generator(9))), (lambda x: x, truth.moments[0][None])):
        want, here = f(of).mean(0), lambda x, f=f: f(x / alpha)
        error = found.samples.error(here)
        assert ((found.samples.mean(here) - want).abs() < 4 * error + 0.01).all() and (error < 0.03).all()
    assert abs(found.log_evidence - log_evidence(LAW, seen)) < 0.1


def test_one_gaussian_weighs_alike():
    """Of the data that `around` says potentials are p(y | x_t): with small steps weights hardly differ. Those of x_t
    itself do.
    """
    law, ts = Gaussian(torch.tensor([0.3, -0.5, 1.0, 0.0], dtype=F64), 0.49), grid.log_snr(SDE, 300)
    seen, s = Observation(FULL, [0.2, 0.1, -0.4], 0.5), law.diffuse(SDE)
    found = drawn(s, seen, 500, ts, around=Reference(law.moments[0], 0.7))
    assert found.samples.drawn == 0 and found.samples.effective > 470
    assert abs(found.log_evidence - log_evidence(law, seen)) < 0.03
    assert drawn(s, seen, 500, ts).samples.drawn > 3


def test_no_derivatives():
    """The score is asked once a step, without a graph, and may refuse to be differentiated."""

    def score(x, t):
        assert not torch.is_grad_enabled() and not x.requires_grad
        return LAW.diffuse(SDE)(x, t)

    score.sde = SDE
    counted, ts = Counted(score), grid.log_snr(SDE, 20)
    found = drawn(counted, SEEN, 50, ts)
    assert counted.nfe == found.samples.nfe == 20
    x_T = SDE.prior((50, 4), iid(generator(1)), torch.float32)
    again = mcgdiff(score, SEEN, x_T, ts, noise=iid(generator(2)), generator=generator(3))
    assert again.samples.x.dtype == torch.float32 and again.samples.log_w.dtype == F64


S, TS = LAW.diffuse(SDE), grid.log_snr(SDE, 5)
MAP = Map(lambda x: x, lambda y: y, (4,))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mcgdiff(S, MASK, randn(3, 4), TS), "seen must be an Observation"),
        (lambda: mcgdiff(S, Observation(MAP, randn(4), 0.1), randn(3, 4), TS), "A must be a map whose A A.T is known"),
        (lambda: mcgdiff(S, Observation(MASK, randn(3, 2), 0.1), randn(3, 4), TS), "y must be one observation"),
        (lambda: mcgdiff(S, SEEN, randn(3, 5), TS), r"x must be \(B, \*\(4,\)\)"),
        (lambda: mcgdiff(S, SEEN, randn(3, 4), TS.flip(0)), "ts must strictly decrease"),
        (lambda: mcgdiff(S, SEEN, randn(3, 4), TS, UniPC(2)), "step must be one that remembers nothing"),
        (lambda: mcgdiff(S, SEEN, randn(3, 4), TS, least=2), "least must be a finite number >= 0 and <= 1"),
        (lambda: mcgdiff(S, SEEN, randn(3, 4), TS, noise=None), "noise must be a callable"),
        (lambda: mcgdiff(S, SEEN, randn(3, 4), TS, noise=lambda *_: None), "noise must return the shape of x"),
        (lambda: mcgdiff(S, SEEN, randn(3, 4), TS, generator=0), "generator must be a torch.Generator"),
        (lambda: mcgdiff(S, SEEN, randn(3, 4), TS, around=0), "around must be a Reference"),
        (lambda: mcgdiff(lambda x, t: -x, SEEN, randn(3, 4), TS), "score.sde"),
        (
            lambda: mcgdiff(S, Observation(MASK, [0.3, 0.2], 0.0), randn(3, 4), torch.tensor([1.0, 0.5, 0.0])),
            "std where the last step adds no noise must be a finite number > 0",
        ),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
