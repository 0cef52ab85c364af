"""Decoupled annealing: exact for one Gaussian, and what its parts make of noise number by number."""

import math

import pytest
import torch
from scipy import integrate

from scoresde import EDM, VP, Counted, Reference, grid, iid, per_sample, sample
from scoresde.brownian import GridPath
from scoresde.exact import Gaussian
from scoresde.inverse import DAPS, Function, Map, Mask, Matrix, Observation, posterior

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


MASK = Mask(torch.tensor([True, False, True, False]))
FULL = Matrix(randn(3, 4, seed=1), (4,))
MEAN, C2, AROUND = torch.tensor([0.3, -0.5, 1.0, 0.0], dtype=F64), 0.49, Reference(0.0, 0.7)
LAW = Gaussian(MEAN, C2)
T, U = torch.tensor(0.5, dtype=F64), torch.tensor(0.4, dtype=F64)
EYE, NONE = torch.eye(4, dtype=F64), torch.zeros(4, 4, dtype=F64)


class Given:
    """The noise of which one draw is z, and all others are 0."""

    def __init__(self, z, which):
        self.z, self.which, self.asked = z, which, 0

    def __call__(self, x, t, s):
        self.asked += 1
        return self.z if self.asked == self.which else 0 * self.z


def step_of(step, p, mean, root, draws):
    """The mean and covariance that a step, linear in x and its draws, makes of N(mean, root root^T)."""
    at = step(p, mean.expand(4, 4), T, U, Given(NONE, 0))
    parts = [step(p, mean + root.T, T, U, Given(NONE, 0)) - at]
    parts += [step(p, mean.expand(4, 4), T, U, Given(EYE, k + 1)) - at for k in range(draws)]
    return at[0], sum(part.T @ part for part in parts)


def diffused(law, sde, t):
    """The mean and covariance of x_t."""
    at = law.marginal(sde, t)
    return at.means[0], at.covariances[0]


@pytest.mark.parametrize("sde", [VP(), EDM()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("A", [MASK, FULL], ids=lambda A: type(A).__name__)
def test_exact_for_one_gaussian(sde, A):
    """For data N(m, c^2 I) a step carries p_t(x | y) into p_s(x | y), to 1e-10."""
    after = posterior(LAW, seen := Observation(A, randn(A.m, seed=9), 0.3))
    mean, covariance = diffused(after, sde, T)
    found = step_of(
        DAPS(seen, around=AROUND), sde.reverse(LAW.diffuse(sde)), mean, torch.linalg.cholesky(covariance), 3
    )
    torch.testing.assert_close(found, diffused(after, sde, U), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("calls", [2, 5, 300])
def test_the_end_of_the_flow_is_no_mean(calls):
    """More calls are DDIM's: for data N(m, c^2 I) m + g (x~ - m), of the product g of its factors; what A does not see
    then has the variance g^2 V + r^2 + r_s^2, which is too much by r^2 in the limit, where g^2 V is c^2.
    """
    sde, seen = VP(), Observation(MASK, [0.5, -0.2], 0.3)
    lam = torch.linspace(float(sde.log_snr(T)), float(sde.log_snr(sde.t_min)), calls, dtype=F64)
    v = torch.cat([(-2 * lam).exp(), torch.zeros(1, dtype=F64)])
    # x~ - m becomes (c^2 + sqrt(v_t v_s))/(c^2 + v_t) times that
    g = ((C2 + (v[:-1] * v[1:]).sqrt()) / (C2 + v[:-1])).prod()
    mean, covariance = diffused(posterior(LAW, seen), sde, T)
    score = Counted(LAW.diffuse(sde))
    step, root = DAPS(seen, calls, around=AROUND), torch.linalg.cholesky(covariance)
    found = step_of(step, sde.reverse(score), mean, root, 3)[1][1, 1] / sde.alpha(U) ** 2
    V, r2 = C2 + v[0], C2 * v[0] / (C2 + v[0])
    torch.testing.assert_close(found, g**2 * V + r2 + (-2 * sde.log_snr(U)).exp(), rtol=1e-8, atol=1e-10)
    assert score.nfe == 5 * calls
    if calls == 300:
        assert abs(float(g**2 * V) - C2) < 0.02 * C2 < 0.1 * r2


@pytest.mark.parametrize(
    "A", [FULL, Map(lambda x: x.repeat(1, 2)[:, :5], lambda y: torch.cat([y[:, :1] + y[:, 4:], y[:, 1:4]], 1), (4,))]
)
def test_samples_of_the_posterior(A):
    """From the prior to t_min in 30 steps the mean and the covariance are those of the posterior within five standard
    errors of 4,000 samples, also where more numbers than there are were measured, at one call a step.
    """
    sde, ts, n = VP(), grid.log_snr(VP(), 30), 4000
    seen, score = Observation(A, randn(A.m, seed=9) / 2, 0.5), Counted(LAW.diffuse(VP()))
    x_T = sde.prior((n, 4), iid(generator(2)), F64)
    x = sample(sde.reverse(score), x_T, ts, DAPS(seen, around=AROUND), noise=iid(generator(3)))
    mean, covariance = diffused(posterior(LAW, seen), sde, ts[-1])
    var = covariance.diagonal()
    assert ((x.mean(0) - mean).abs() < 5 * (var / n).sqrt()).all()
    error = ((covariance.square() + var[:, None] * var) / n).sqrt()
    assert ((torch.cov(x.T) - covariance).abs() < 5 * error).all()
    assert score.nfe == 30


def test_langevin_of_one_number():
    """Through one row a of A the steps have the precision P = I/r^2 + a a^T/std^2, and the law after n of them is that
    of the recursion m + h (b - P m), (I - h P) V (I - h P) + 2 h I, to 1e-10; after many of small size it is the exact
    draw's, to 1 %.
    """
    sde, a, std = VP(), randn(1, 4, seed=4), 0.2
    seen = Observation(Matrix(a, (4,)), [0.7], std)
    x, p = randn(1, 4, seed=5), sde.reverse(LAW.diffuse(sde))
    v = float((-2 * sde.log_snr(T)).exp())
    x_0, r2 = p.denoise(x, T)[0], C2 * v / (C2 + v)
    P, b = EYE / r2 + a.T @ a / std**2, x_0 / r2 + a[0] * 0.7 / std**2
    for n, size in ((3, 0.5), (6000, 0.05)):
        h = size / (1 / r2 + float(a.square().sum()) / std**2)
        want, V, shrink = x_0, 0 * EYE, EYE - h * P
        for _ in range(n):
            want, V = want + h * (b - P @ want), shrink @ V @ shrink + 2 * h * EYE
        if n == 3:
            step = DAPS(seen, n=n, size=size, around=AROUND)
            mean, covariance = step_of(step, p, x[0], 0 * EYE, n + 1)
            torch.testing.assert_close(mean, sde.alpha(U) * want, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(covariance, sde.alpha(U) ** 2 * V + sde.var(U) * EYE, rtol=1e-10, atol=1e-10)
    found = step_of(DAPS(seen, around=AROUND), p, x[0], 0 * EYE, 3)
    torch.testing.assert_close(found[0], sde.alpha(U) * torch.linalg.solve(P, b), rtol=1e-10, atol=1e-10)
    exactly = (found[1] - sde.var(U) * EYE) / sde.alpha(U) ** 2
    torch.testing.assert_close(exactly, torch.linalg.inv(P), rtol=1e-8, atol=1e-10)
    assert (V - exactly).norm() < 0.01 * exactly.norm() and (want - found[0] / sde.alpha(U)).norm() < 0.01


def test_langevin_of_a_square():
    """On a line, A = x^2: x_0 has the density N(x; m, r^2) N(y; x^2, std^2), whose mean and variance by quadrature are
    those of 5,000 draws to 0.06 deviations and 6 %.
    """
    sde, y, std = VP(), 0.8, 0.6
    law, n = Gaussian(torch.tensor([0.2], dtype=F64), C2), 5000
    p, x = sde.reverse(law.diffuse(sde)), torch.full((n, 1), 0.1, dtype=F64)
    m, v = float(p.denoise(x[:1], T)), float((-2 * sde.log_snr(T)).exp())
    r2 = C2 * v / (C2 + v)
    density = lambda u: math.exp(-((u - m) ** 2) / 2 / r2 - (y - u * u) ** 2 / 2 / std**2)  # noqa: E731
    total, first, second = (integrate.quad(lambda u, k=k: u**k * density(u), -4, 4)[0] for k in range(3))
    mean, var = first / total, second / total - (first / total) ** 2
    seen, g = Observation(Function(lambda x: x.square(), (1,)), [y], std), iid(generator(6))
    step = DAPS(seen, n=3000, size=0.05, around=AROUND)
    last = lambda x, t, s: 0 * x if t > s else g(x, t, s)  # noqa: E731
    found = step(p, x, T, U, last) / sde.alpha(U)
    assert abs(float(found.mean()) - mean) < 0.06 * var**0.5
    assert abs(float(found.var()) - var) < 0.06 * var


@pytest.mark.parametrize("n", [0, 5])
def test_rows_are_their_own(n):
    """A sample depends on its own seed and y alone."""
    sde, ts, y, x_T = VP(), grid.log_snr(VP(), 10), randn(5, 3, seed=6), randn(5, 4, seed=7)

    def drawn(rows):
        step, noise = DAPS(Observation(FULL, y[rows], 0.2), 3, n), per_sample([7 + i for i in rows])
        return sample(sde.reverse(LAW.diffuse(sde)), x_T[rows], ts, step, noise=noise)

    torch.testing.assert_close(drawn([0, 1, 2, 3, 4])[3:4], drawn([3]), rtol=1e-10, atol=1e-10)


def test_types_and_modes():
    """It samples in single precision and inference mode."""
    sde, ts, x_T = VP(), grid.log_snr(VP(), 10), randn(5, 4, seed=7).float()
    round_ = Observation(Function(lambda x: x.square().sum(1, keepdim=True), (4,)), [1.0], 0.3)
    with torch.inference_mode():
        for step in (DAPS(round_, n=5), DAPS(Observation(FULL, [0.1, 0.2, 0.3], 0.3), 4)):
            x = sample(sde.reverse(LAW.diffuse(sde)), x_T, ts, step, noise=iid(generator(1)))
            assert x.dtype == torch.float32 and x.isfinite().all()


SEEN, ROUND = Observation(MASK, [0.5, -0.2], 0.1), Observation(Function(lambda x: x, (4,)), [0.0] * 4, 0.1)
TS = grid.log_snr(VP(), 5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DAPS(MASK), "seen must be an Observation"),
        (lambda: DAPS(SEEN, 0), "calls must be a whole number >= 1"),
        (lambda: DAPS(SEEN, n=-1), "n must be a whole number >= 0"),
        (lambda: DAPS(ROUND), "n where A is not linear must be a whole number >= 1, got 0"),
        (lambda: DAPS(SEEN, n=3, size=2.0), "size must be a finite number > 0 and < 2"),
        (lambda: DAPS(Observation(MASK, [0.5, -0.2], 0.0), n=3), "std must be a finite number > 0"),
        (
            lambda: sample(VP().reverse(LAW.diffuse(VP()), 0.5), randn(2, 4), TS, DAPS(SEEN)),
            "eta must be 1 for a step that has its own noise",
        ),
        (
            lambda: sample(
                VP().reverse(LAW.diffuse(VP())), randn(2, 4), TS, DAPS(SEEN), noise=GridPath(TS, (2, 4), generator())
            ),
            "path has no increment",
        ),
        (
            lambda: sample(VP().reverse(lambda x, t: -x), randn(2, 4), TS, DAPS(SEEN, around="x")),
            "around must be a Reference",
        ),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
