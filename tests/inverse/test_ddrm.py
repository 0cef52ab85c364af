"""Denoising diffusion restoration, number by number against the paper's theorem."""

import pytest
import torch

from scoresde import EDM, VP, Ancestral, Counted, grid, iid, per_sample, sample
from scoresde.exact import GaussianMixture
from scoresde.inverse import DDRM, Average, Map, Mask, Matrix, Observation

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


MASK = Mask(torch.tensor([True, False, True, False]))
FULL = Matrix(torch.diag(torch.tensor([3.0, 0.5, 0.02], dtype=F64)) @ torch.linalg.qr(randn(4, 4, seed=1))[0][:3], (4,))
LAW = GaussianMixture.from_covariances(
    torch.tensor([0.6, 0.4], dtype=F64),
    torch.tensor([[-1.0, 0.3, 0.5, 0.0], [1.0, -0.5, 0.2, 0.8]], dtype=F64),
    torch.stack([0.2 * torch.eye(4) + 0.1, 0.1 * torch.eye(4) + 0.05]).double(),
)
T, U = torch.tensor(0.5, dtype=F64), torch.tensor(0.4, dtype=F64)


def knowing(sde, x_0):
    """The score of one who knows x_0."""
    return lambda x, t: (sde.alpha(t) * x_0 - x) / sde.var(t)


@pytest.mark.parametrize("sde", [VP(), EDM()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("A", [MASK, FULL, Average((1, 2, 4), 2)], ids=lambda A: type(A).__name__)
@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.3, 0.6), (0.0, 0.0), (1.0, 1.0)])
def test_marginals(sde, A, eta, eta_b):
    """With x_0 known, x_s is linear in the noises of x_t, of y and of the step, which are independent: what they make
    of it together is alpha_s x_0 and sigma_s^2 I (proposition 3.1), where y knows less than x_s, and more.
    """
    t, u = (T, U) if sde.T == 1 else (torch.tensor(0.8, dtype=F64), torch.tensor(0.5, dtype=F64))
    d, std, x_0 = torch.Size(A.shape).numel(), 0.2, randn(*A.shape, seed=2)
    e, zero = torch.eye(d, dtype=F64).view(d, *A.shape), torch.zeros(d, *A.shape, dtype=F64)
    w, none = torch.eye(A.m, dtype=F64), torch.zeros(d, A.m, dtype=F64)

    def moved(x_noise, y_noise, z):
        n = len(x_noise)
        seen = Observation(A, A(x_0[None]) + std * y_noise, std)
        p, x = sde.reverse(knowing(sde, x_0)), sde.alpha(t) * x_0 + sde.sigma(t) * x_noise
        return DDRM(seen, eta, eta_b)(p, x, t, u, lambda *_: z).view(n, d)

    m = A.m
    mean = moved(zero, none, zero)
    torch.testing.assert_close(mean[0], float(sde.alpha(u)) * x_0.flatten(), rtol=1e-10, atol=1e-10)
    parts = moved(e, none, zero) - mean, moved(zero[:m], w, zero[:m]) - mean[:m], moved(zero, none, e) - mean
    covariance = sum(part.T @ part for part in parts)
    torch.testing.assert_close(covariance, float(sde.var(u)) * torch.eye(d, dtype=F64), rtol=1e-10, atol=1e-10)


def test_both_cases_occur():
    """In the test above y says less than x_s of one number of `FULL`, and more of another."""
    far, r = 0.2 / FULL.spectrum()[0].sqrt(), (-VP().log_snr(U)).exp()
    assert far.min() < r / 3 and far.max() > 3 * r


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim_where_nothing_is_seen(eta):
    """Along what A does not see it is Ancestral's step of the same noise, eta r_s; and what y says with little noise
    less than x_s has does not depend on x_t but by E[x_0 | x_t].
    """
    sde, x = VP(), randn(6, 4, seed=3)
    seen, s = Observation(MASK, [0.5, -0.2], 0.1), LAW.diffuse(sde)
    own = eta / float((-torch.expm1(2 * (sde.log_snr(T) - sde.log_snr(U)))).sqrt())
    found = DDRM(seen, eta)(sde.reverse(s), x, T, U, iid(generator(4)))
    q = sde.reverse(s, own)
    want = Ancestral()(q, x, T, U, iid(generator(4)))
    torch.testing.assert_close(found[:, ~MASK.keep], want[:, ~MASK.keep], rtol=1e-10, atol=1e-10)
    z, x_0 = iid(generator(4))(x, T, U)[:, MASK.keep], q.denoise(x, T)[:, MASK.keep]
    far, a = 0.1, float(sde.alpha(U))
    assert far < float(sde.sigma(U)) / a
    want = a * seen.y + (sde.var(U) - (a * far) ** 2).sqrt() * z
    torch.testing.assert_close(found[:, MASK.keep], want, rtol=1e-10, atol=1e-10)
    free = DDRM(Observation(MASK, [0.5, -0.2], 1e9), eta)(sde.reverse(s), x, T, U, iid(generator(4)))[:, MASK.keep]
    torch.testing.assert_close(free, a * x_0 + eta * sde.sigma(U) * z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("A", [MASK, FULL], ids=lambda A: type(A).__name__)
def test_what_is_known_comes_out_exactly(A):
    """Where y has no noise, A x is y at the end, to 1e-10, of each sample its own; the rest varies."""
    sde, ts = VP(), torch.cat([grid.log_snr(VP(), 20), torch.zeros(1, dtype=F64)])
    y = A(LAW.sample(50, generator(5)))
    score = Counted(LAW.diffuse(sde))
    x_T = sde.prior((50, 4), iid(generator(2)), F64)
    x = sample(sde.reverse(score), x_T, ts, DDRM(Observation(A, y, 0.0)), noise=iid(generator(3)))
    torch.testing.assert_close(A(x), y, rtol=0, atol=1e-10)
    hidden = x - A.embed(A.coordinates(A(x)))
    assert float(hidden.std(0).norm()) > 0.1 and score.nfe == 21


def test_rows_are_their_own():
    """A sample depends on its own seed and y alone; in single precision a step is what it is in double, to 1e-5."""
    sde, ts, y, x_T = VP(), grid.log_snr(VP(), 20), randn(5, 3, seed=6), randn(5, 4, seed=7)

    def drawn(rows):
        noise = per_sample([7 + i for i in rows])
        return sample(sde.reverse(LAW.diffuse(sde)), x_T[rows], ts, DDRM(Observation(FULL, y[rows], 0.2)), noise=noise)

    torch.testing.assert_close(drawn([0, 1, 2, 3, 4])[3:4], drawn([3]), rtol=1e-12, atol=1e-12)
    step, z = DDRM(Observation(FULL, y, 0.2)), randn(5, 4, seed=8)
    wide, narrow = (
        step(sde.reverse(LAW.diffuse(sde)), x_T.to(kind), T, U, lambda x, *_: z.to(x)) for kind in (F64, torch.float32)
    )
    torch.testing.assert_close(narrow, wide.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DDRM(MASK), r"seen must be an Observation"),
        (lambda: DDRM(Observation(Map(lambda x: x, lambda y: y, (4,)), randn(4), 0.1)), "A must be a map whose A A.T"),
        (lambda: DDRM(Observation(MASK, randn(2), 0.1), eta=1.5), "eta must be a finite number >= 0 and <= 1"),
        (lambda: DDRM(Observation(MASK, randn(2), 0.1), eta_b=-1), "eta_b must be a finite number >= 0 and <= 1"),
        (
            lambda: DDRM(Observation(MASK, randn(2), 0.1)).start(
                VP().reverse(LAW.diffuse(VP()), 0.5), T[None], U[None]
            ),
            "eta must be 1 for a step that has its own noise, got eta=0.5",
        ),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
