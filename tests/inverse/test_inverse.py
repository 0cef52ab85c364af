"""Methods for y = A x + noise against exact posteriors: exact where their assumption holds, biased where it does not,
and tending to the truth where they are made of particles.
"""

import math

import pytest
import torch

from scoresde import (
    EDM,
    SNR,
    VP,
    Ancestral,
    GaussianReference,
    Langevin,
    Reference,
    UniPC,
    draw,
    grid,
    iid,
    load,
    log_prob,
    sample,
    shipped,
)
from scoresde.brownian import GridPath
from scoresde.data import Digits
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.inverse import (
    DPS,
    Average,
    Blur,
    Grey,
    Map,
    Mask,
    Matrix,
    Observation,
    Replacement,
    ddnm,
    diffpir,
    log_evidence,
    mmps,
    pigdm,
    posterior,
    twisted,
)
from scoresde.inverse.krylov import conjugate
from scoresde.likelihood import Adams, Exact, Quadrature
from scoresde.steps import GottaGoFast

F64 = torch.float64
SDES = [VP(), EDM()]
by_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


B = randn(2, 2, seed=5)
FULL = Matrix(randn(3, 4, seed=1), (4,))
MASK = Mask(torch.tensor([True, False, True, False]))
SKEW = torch.tensor([[0.0, 1.0, -2.0], [-1.0, 0.0, 0.5], [2.0, -0.5, 0.0]])
MAPS = [
    MASK,
    FULL,
    Average((2, 4, 6), 2),
    Grey((3, 2, 2)),
    Blur(torch.tensor([[0.1, 0.5, 0.0], [0.2, -0.3, 0.4]]), (2, 4, 5)),
    Blur.gaussian(0.8, (1, 4, 6)),
    Map(lambda x: x.flatten(1)[:, :3] * 2, lambda y: torch.cat([2 * y, 0 * y[:, :1]], 1).view(-1, 2, 2), (2, 2)),
]


# maps


@pytest.mark.parametrize("A", MAPS, ids=lambda A: type(A).__name__)
def test_maps(A):
    """<A x, y> = <x, A^T y>; (a A A^T + b I)^(-1) and its determinant are those of the matrix; types are kept."""
    x, y = randn(5, *A.shape, seed=2), randn(5, A.m, seed=3)
    torch.testing.assert_close((A(x) * y).sum(1), (x * A.adjoint(y)).flatten(1).sum(1), rtol=1e-10, atol=1e-10)
    M = A(torch.eye(math.prod(A.shape), dtype=F64).view(-1, *A.shape)).T
    a, b = torch.tensor([0.0, 0.3, 1.0, 2.0, 5.0], dtype=F64), torch.tensor([1.0, 0.1, 0.5, 1e-3, 2.0], dtype=F64)
    K = a[:, None, None] * (M @ M.T) + b[:, None, None] * torch.eye(A.m, dtype=F64)
    torch.testing.assert_close(A.solve(y, a, b), torch.linalg.solve(K, y), rtol=1e-7, atol=1e-7)
    if isinstance(A, Map):
        with pytest.raises(ValueError, match="A must be a map whose A A.T is known, such as Matrix, got Map"):
            A.log_det(a, b)
    else:
        torch.testing.assert_close(A.log_det(a, b), torch.logdet(K), rtol=1e-9, atol=1e-9)
    if A.gram is not None:
        torch.testing.assert_close(M @ M.T, A.gram * torch.eye(A.m, dtype=F64))
    assert A(x.float()).dtype == A.adjoint(y.float()).dtype == torch.float32


def test_maps_of_other_types():
    """`like` says what a function takes."""
    A = Map(lambda x: x @ SKEW.double(), lambda y: y @ SKEW.double().T, (3,), like=randn(1))
    torch.testing.assert_close(A(randn(2, 3)), randn(2, 3) @ SKEW.double())


def test_blur():
    """It is the sum that is said, the same in every channel; a Gaussian's sums to 1, and keeps what is even."""
    k, x = randn(3, 2, seed=4), randn(2, 3, 4, 5, seed=5)
    want = sum(
        k[a, b] * x.roll((a - 1, b - 1), (2, 3)) for a in range(3) for b in range(2)
    )  # x_(i - a + 1), as index - shift
    torch.testing.assert_close(Blur(k, (3, 4, 5))(x).view_as(x), want)
    flat = torch.full((1, 1, 6, 7), 0.3)
    torch.testing.assert_close(Blur.gaussian(1.5, (1, 6, 7))(flat), flat.flatten(1))
    dot = torch.zeros(1, 1, 9, 9, dtype=F64)
    dot[..., 4, 4] = 1
    seen = Blur.gaussian(1.0, (1, 9, 9))(dot).view(9, 9)
    torch.testing.assert_close(seen, seen.T), torch.testing.assert_close(seen, seen.flip(0))
    assert abs(float(seen[4, 5] / seen[4, 4]) - math.exp(-0.5)) < 1e-12


# exact posteriors

LAW = GaussianMixture.from_covariances(
    torch.tensor([0.6, 0.4], dtype=F64),
    torch.stack([torch.tensor([-1.0, 0.3, 0.5, 0.0]), torch.tensor([1.0, -0.5, 0.2, 0.8])]).double(),
    torch.stack([0.2 * torch.eye(4) + 0.1, 0.1 * torch.eye(4) + 0.05]).double(),
)


@pytest.mark.parametrize("A", [MASK, FULL], ids=lambda A: type(A).__name__)
def test_posterior(A):
    """p(x | y) p(y) = p(x) p(y | x) at any x, which fixes both; and its moments are those of weighted samples."""
    seen = Observation.of(A, LAW.sample(1, generator(4)), 0.4, generator(5))
    seen = Observation(A, seen.y[0], 0.4)
    after, x = posterior(LAW, seen), randn(50, 4, seed=6)
    log_like = -(seen.left(x) ** 2).sum(1) / 2 / 0.4**2 - A.m * math.log(0.4 * math.sqrt(2 * math.pi))
    want = LAW.log_prob(x) + log_like - log_evidence(LAW, seen)
    torch.testing.assert_close(after.log_prob(x), want, rtol=1e-8, atol=1e-8)
    y = LAW.sample(200_000, generator(7))
    w = (-(seen.left(y) ** 2).sum(1) / 2 / 0.4**2).softmax(0)
    mean = (w[:, None] * y).sum(0)
    error = (w[:, None] * (y - mean)).square().sum(0).sqrt()
    assert ((mean - after.moments[0]).abs() < 5 * error).all()


# methods


@by_sde
@pytest.mark.parametrize("A", [MASK, FULL], ids=lambda A: type(A).__name__)
def test_exact_for_one_gaussian(sde, A):
    """Moment matching is the score of p_t(x | y) for any Gaussian, and pseudo-inverse guidance for one of one variance,
    at every time, of each sample its own too; restoration, which takes the noise for the variance, is not, but tends to
    it as the noise falls.
    """
    cov = torch.linalg.qr(randn(4, 4, seed=8))[0]
    wide = Gaussian(
        torch.tensor([0.3, -0.5, 1.0, 0.0], dtype=F64),
        cov @ torch.diag(torch.tensor([2.0, 1, 0.5, 0.1]).double()) @ cov.T,
    )  # noqa: E501
    even = Gaussian(torch.tensor([0.3, -0.5, 1.0, 0.0], dtype=F64), 0.49)
    seen = Observation(A, randn(A.m, seed=9), 0.3)
    times = (0.05, 0.4, 0.9) if sde.T == 1 else (0.05, 0.7, 20.0)
    for t in (*times, torch.tensor(times, dtype=F64)):
        x = randn(3, 4, seed=10) * sde.sigma(torch.as_tensor(t, dtype=F64)).view(-1, 1)
        want = posterior(wide, seen).diffuse(sde)(x, t)
        t = torch.as_tensor(t, dtype=F64)
        torch.testing.assert_close(mmps(wide.diffuse(sde), seen)(x, t), want, rtol=1e-6, atol=1e-6)
        want = posterior(even, seen).diffuse(sde)(x, t)
        around = Reference(0.0, 0.7)
        torch.testing.assert_close(pigdm(even.diffuse(sde), seen, around)(x, t), want, rtol=1e-8, atol=1e-8)
        off = (diffpir(even.diffuse(sde), seen)(x, t) - want).abs().max()
        assert off > 1e-4 * want.abs().max()
    late = torch.tensor(sde.t_min, dtype=F64)
    x = randn(3, 4, seed=10)
    close = diffpir(even.diffuse(sde), seen)(x, late) - posterior(even, seen).diffuse(sde)(x, late)
    assert close.abs().max() < 0.02 * even.diffuse(sde)(x, late).abs().max()


@by_sde
def test_two_are_one_where_the_noise_is_none(sde):
    """Null-space sampling is restoration without noise in y, and denoises to what was measured."""
    s = LAW.diffuse(sde)
    x, t, y = randn(3, 4, seed=10), torch.tensor(0.3, dtype=F64), randn(3, 3, seed=11)
    a, b = ddnm(s, Observation(FULL, y, 0.0)), diffpir(s, Observation(FULL, y, 1e-7))
    torch.testing.assert_close(a(x, t), b(x, t), rtol=1e-5, atol=1e-5)
    clean = (x + sde.var(t) * a(x, t)) / sde.alpha(t)
    torch.testing.assert_close(FULL(clean), y, rtol=1e-6, atol=1e-6)


def test_the_steps_of_papers():
    """DPS is the step inside less zeta times the gradient of the residual's length; replacement puts what is known in,
    with noise of its own, and RePaint does so after going back.
    """
    sde, x, noise = VP(), randn(3, 4, seed=12), iid(generator(1))
    s = LAW.diffuse(sde)
    seen = Observation(MASK, torch.tensor([0.5, -0.2], dtype=F64), 0.0)
    t, u, p = torch.tensor(0.5, dtype=F64), torch.tensor(0.4, dtype=F64), sde.reverse(s)
    inner = Ancestral()
    moved = DPS(inner, seen, 0.7).start(p, t[None], u[None])(p, x, t, u, iid(generator(1)))
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(seen.left((z + sde.var(t) * s(z, t)) / sde.alpha(t)).norm(dim=1).sum(), z)
    want = inner(p, x, t, u, iid(generator(1))) - 0.7 * g
    torch.testing.assert_close(moved, want, rtol=1e-10, atol=1e-12)
    found = Replacement(inner, seen).start(p, t[None], u[None])(p, x, t, u, noise)
    g = generator(1)
    free = inner(p, x, t, u, iid(g))
    known = sde.alpha(u) * seen.y + sde.sigma(u) * iid(g)(free, t, u)[:, MASK.keep]
    torch.testing.assert_close(found[:, MASK.keep], known, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[:, ~MASK.keep], free[:, ~MASK.keep], rtol=1e-10, atol=1e-12)
    calls = []
    counted = sde.reverse(lambda x, t: (calls.append(0), s(x, t))[1])
    Replacement(inner, seen, 5).start(counted, t[None], u[None])(counted, x, t, u, iid(generator(1)))
    assert len(calls) == 5


@pytest.mark.parametrize("method", ["ddnm", "replacement", "repaint"])
def test_what_is_known_comes_out_exactly(method):
    """Where y has no noise, what was measured of the samples is y, to 1e-6, and the rest is not."""
    sde, ts = VP(), torch.cat([grid.log_snr(VP(), 40), torch.zeros(1, dtype=F64)])
    seen = Observation(MASK, torch.tensor([0.9, 0.3], dtype=F64), 0.0)
    s, x_T = LAW.diffuse(sde), sde.prior((200, 4), iid(generator(2)), F64)
    if method == "ddnm":
        p, ts = sde.reverse(ddnm(s, seen)), ts[:-1]
        x = p.denoise(sample(p, x_T, ts, Ancestral(), noise=iid(generator(3))), ts[-1])
    else:
        step = Replacement(Ancestral(), seen, 1 if method == "replacement" else 3)
        x = sample(sde.reverse(s), x_T, ts, step, noise=iid(generator(3)))
    torch.testing.assert_close(MASK(x), seen.y.expand(200, 2), rtol=0, atol=1e-6)
    assert float(x[:, 1].std()) > 0.1 and float(x[:, 3].std()) > 0.1


TS = grid.log_snr(VP(), 5)
SEEN = Observation(Mask(torch.tensor([True, False, False, False])), torch.tensor([0.3], dtype=F64), 0.5)


def test_guided_samplers_are_biased_and_particles_are_not():
    """Two modes, of which a number between them tells little: the exact twisted score has the modes' weights within
    four standard errors of 3,000 and the step's own; moment matching, exact for one Gaussian, does not;
    particles do within four of theirs, and their evidence is p(y) to 0.1.
    """
    sde, n, ts = VP(), 3000, grid.log_snr(VP(), 150)
    truth, s = posterior(LAW, SEEN), LAW.diffuse(sde)
    x_T = sde.prior((n, 4), iid(generator(2)), F64)
    share = lambda x: LAW.responsibilities(x)[:, 0]  # noqa: E731
    want = float(share(truth.sample(100_000, generator(9))).mean())
    assert 0.2 < want < 0.8
    end = float(sde.alpha(ts[-1]))

    def drawn(score):
        return sample(sde.reverse(score), x_T, ts, Ancestral(1.0), noise=iid(generator(3))) / end

    exactly = float(share(drawn(truth.diffuse(sde))).mean())
    assert abs(exactly - want) < 4 * 0.5 / n**0.5 + 0.02
    off = abs(float(share(drawn(mmps(s, SEEN))).mean()) - want)
    assert off > 8 * 0.5 / n**0.5
    found = twisted(s, SEEN, x_T, ts, noise=iid(generator(3)), generator=generator(4), around=Reference(0.0, 0.8))
    of = lambda x: share(x / end)  # noqa: E731
    assert abs(float(found.samples.mean(of)) - want) < 4 * float(found.samples.error(of)) + 0.02
    assert abs(found.log_evidence - log_evidence(LAW, SEEN)) < 0.1
    assert found.samples.effective > 100 and found.samples.nfe == 150


@pytest.mark.parametrize("ts", [(1.0, 0.5, 0.2, 0.001), (1.0, 0.5, 0.2, 0.0)])
def test_evidence_of_few_steps(ts):
    """However few steps, p(y) is that of the sampler's own law, for N(0, 1) by the recursion of its variance, and also
    where the last one adds no noise: within 0.1, of 20,000 particles.
    """
    law, sde, ts = Gaussian(torch.zeros(1, dtype=F64), 1.0), VP(), torch.tensor(ts, dtype=F64)
    s, step, x_T = law.diffuse(sde), Ancestral(1.0), sde.prior((20_000, 1), iid(generator(2)), F64)
    var, p = float(sde.var(ts[0])), sde.reverse(s)
    for t, u in zip(ts[:-1], ts[1:]):
        a, b, c = (float(v) for v in step.line(p, t, u))
        var = (a - b / float(sde.alpha(t) ** 2 + sde.var(t))) ** 2 * var + c**2
    var = var / float(sde.alpha(ts[-1])) ** 2 + 0.3**2
    want = -(1.5**2) / 2 / var - math.log(2 * math.pi * var) / 2
    seen = Observation(Mask(torch.tensor([True])), [1.5], 0.3)
    found = twisted(s, seen, x_T, ts, step, noise=iid(generator(3)), generator=generator(4))
    assert abs(found.log_evidence - want) < 0.1


def test_small_matrices_and_lists():
    """The pseudo-inverse of a matrix of any size; A and y may be lists of numbers."""
    seen = Observation(Matrix([[1e-6, 0.0], [0.0, 1e-6]], (2,)), [1e-6, 2e-6], 0.0)
    x, t, sde = randn(3, 2), torch.tensor(0.3, dtype=F64), VP()
    s = ddnm(Gaussian(torch.zeros(2, dtype=F64), 1.0).diffuse(sde), seen)
    clean = (x + sde.var(t) * s(x, t)) / sde.alpha(t)
    torch.testing.assert_close(clean, torch.tensor([[1.0, 2.0]], dtype=F64).expand(3, 2), rtol=1e-6, atol=1e-6)


def test_repaint_refuses_the_noise_of_a_path():
    """Which is the same each time that an interval is taken."""
    sde, ts = VP(), grid.uniform(VP(), 5)
    step, x_T = Replacement(Ancestral(), Observation(MASK, torch.zeros(2), 0.1), 2), randn(3, 4)
    with pytest.raises(ValueError):
        sample(sde.reverse(LAW.diffuse(sde)), x_T, ts, step, noise=GridPath(ts, (3, 4), generator()))


def test_particles_of_one_gaussian_weigh_alike():
    """Where the twist is exact and steps are small, weights hardly differ, and p(y) is right to 0.02."""
    law, sde = Gaussian(torch.tensor([0.3, -0.5, 1.0, 0.0], dtype=F64), 0.49), VP()
    ts, x_T = grid.log_snr(sde, 300), sde.prior((500, 4), iid(generator(2)), F64)
    seen = Observation(FULL, torch.tensor([0.2, 0.1, -0.4], dtype=F64), 0.5)
    found = twisted(law.diffuse(sde), seen, x_T, ts, noise=iid(generator(3)), around=Reference(0.0, 0.7))
    assert found.samples.drawn == 0 and found.samples.effective > 400
    assert abs(found.log_evidence - log_evidence(law, seen)) < 0.03
    want = posterior(law, seen).moments[0]
    assert (found.samples.mean() - want).abs().max() < 5 * float(found.samples.error().max())


def test_likelihoods_differentiate_through_them():
    """log p(x | y) by a method that is exact for a Gaussian is that of the posterior, to the solver's error, and all of
    them sample in inference mode.
    """
    law, sde = Gaussian(torch.tensor([0.3, -0.5, 1.0, 0.0], dtype=F64), 0.49), VP()
    seen, x, s = (
        Observation(FULL, torch.tensor([0.2, 0.1, -0.4], dtype=F64), 0.5),
        randn(3, 4, seed=3),
        law.diffuse(sde),
    )
    how = Quadrature(Adams(40), Exact())
    want = log_prob(sde.reverse(posterior(law, seen).diffuse(sde)), x, how=how).log_p
    for score in (pigdm(s, seen, Reference(0.0, 0.7)), mmps(s, seen)):
        torch.testing.assert_close(log_prob(sde.reverse(score), x, how=how).log_p, want, rtol=0, atol=1e-3)
    x_T, ts = sde.prior((5, 4), iid(generator(2)), F64), grid.log_snr(sde, 10)
    with torch.inference_mode():
        for score in (pigdm(s, seen), mmps(s, seen), diffpir(s, seen), ddnm(s, seen)):
            assert sample(sde.reverse(score), x_T, ts, Ancestral(), noise=iid(generator(3))).isfinite().all()
        assert sample(sde.reverse(s), x_T, ts, DPS(Ancestral(), seen), noise=iid(generator(3))).isfinite().all()
        assert math.isfinite(twisted(s, seen, x_T, ts, noise=iid(generator(3))).log_evidence)


def test_any_solver_takes_them():
    """A fast solver on the flow of a guided score ends where fine steps do."""
    sde, s = VP(), LAW.diffuse(VP())
    q = sde.reverse(mmps(s, SEEN), 0.0)
    x_T = sde.prior((50, 4), iid(generator(2)), F64)
    around = Reference.fit(LAW.sample(500, generator(1)))
    fine = sample(q, x_T, grid.reference(sde, 400, around=around), GaussianReference(around))
    fast = sample(q, x_T, grid.reference(sde, 20, around=around), GaussianReference(around))
    assert float((fast - fine).square().mean().sqrt()) < 0.05


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Mask(torch.ones(3)), "keep must be a tensor of True and False"),
        (lambda: Mask(torch.zeros(3, dtype=torch.bool)), "keep must be a tensor of True and False, True somewhere"),
        (lambda: Matrix(randn(3, 5), (4,)), r"A must be a finite matrix \(m, 4\)"),
        (lambda: Matrix(torch.ones(2, 4), (4,)), "A must have independent rows"),
        (lambda: Average(8), "of must be the shape of an image"),
        (
            lambda: twisted(LAW.diffuse(VP()), Observation(MASK, torch.zeros(3, 2), 0.1), randn(3, 4), TS),
            "y must be one",
        ),
        (lambda: twisted(LAW.diffuse(VP()), SEEN, randn(3, 5), TS), r"x must be \(B, \*\(4,\)\)"),
        (lambda: Average((1, 5, 4), 2), "k must divide 5 and 4, got 2"),
        (lambda: Blur(torch.zeros(2, 2), (1, 5, 4)), "kernel must be finite, not all 0"),
        (lambda: Blur(torch.ones(2, 5), (1, 5, 4)), r"kernel must be finite, not all 0 and at most \(5, 4\)"),
        (lambda: Blur(torch.ones(3), (1, 5, 4)), "kernel must"),
        (lambda: Blur(torch.ones(2, 2), (5, 4)), "of must be the shape of an image"),
        (lambda: Blur.gaussian(0.0, (1, 5, 4)), "std must be a finite number > 0"),
        (lambda: Grey((5, 4)), r"of must be the shape of an image, \(C, H, W\)"),
        (lambda: Map(lambda x: x, lambda y: 2 * y, (3,)), "transposed must be the adjoint of f"),
        (lambda: Map(lambda x: x @ SKEW, lambda y: y @ SKEW, (3,)), "transposed must be the adjoint of f"),
        (
            lambda: Map(lambda x: x @ SKEW.double(), lambda y: y, (3,)),
            "f must take torch.float32 on cpu",
        ),
        (lambda: Map(lambda x: x + 1, lambda y: y, (3,)), "transposed must be the adjoint|f must be linear"),
        (lambda: Map(lambda x: x[:, None], lambda y: y[:, 0], (3,)), r"f must return rows \(B, m\)"),
        (lambda: Observation(MASK, torch.zeros(3), 0.1), "y must hold 2 finite numbers"),
        (lambda: Observation(MASK, torch.tensor([0.0, math.nan]), 0.1), "y must hold 2 finite numbers"),
        (lambda: Observation(MASK, torch.zeros(2), -1.0), "std must"),
        (lambda: Observation(MASK.keep, torch.zeros(2), 1.0), "A must be a Measurement such as Mask"),
        (lambda: MASK(torch.zeros(1, 5)), r"x must be \(B, \*\(4,\)\), got \(1, 5\)"),
        (
            lambda: Observation(MASK, torch.zeros(3, 2), 0.1).left(torch.zeros(2, 4)),
            "y must be one, or one for each of",
        ),
        (lambda: posterior(LAW, Observation(MASK, torch.zeros(2), 0.0)), "std must"),
        (lambda: posterior(LAW, Observation(Mask(torch.tensor([True])), torch.zeros(1), 0.1)), "law must be of shape"),
        (lambda: Replacement(Ancestral(), Observation(FULL, torch.zeros(3), 0.1)), "seen must be through a Mask"),
        (
            lambda: Replacement(UniPC(2), Observation(MASK, torch.zeros(2), 0.1), 2),
            "step must remember nothing where int",
        ),
        (lambda: Replacement(Langevin(SNR(0.1)), Observation(MASK, torch.zeros(2), 0.1)), "step must be a predictor"),
        (lambda: DPS(GottaGoFast(), SEEN), "step must be a predictor"),
        (lambda: DPS(Ancestral(), SEEN, -1.0), "zeta must"),
        (lambda: pigdm(lambda x, t: x, SEEN), "score.sde, by which samples are denoised, must be"),
        (lambda: mmps(LAW.diffuse(VP()), SEEN, 0), "iterations must"),
        (lambda: diffpir(LAW.diffuse(VP()), SEEN, 0.0), "weight must"),
        (
            lambda: twisted(
                LAW.diffuse(VP()), Observation(MASK, torch.zeros(2), 0.0), randn(3, 4), grid.uniform(VP(), 5)
            ),
            "std",
        ),  # noqa: E501
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_variances_that_a_network_cannot_mean():
    """What is known without noise leaves a network's samples in the range of its data, though its Jacobian tells next
    to no variance in some direction, by which a solution would be thousands; conjugate gradients stop there.
    """
    found, data = load(shipped("digits-vp"), dtype=torch.float32), Digits().load()
    keep = torch.zeros(1, 8, 8, dtype=torch.bool)
    keep[:, :4] = True
    seen = Observation.of(Mask(keep), data.values(data.held_out[:8]).float())
    p = found.model.sde.reverse(mmps(found.model, seen, 5, found.around))
    x = draw(p, (1, 8, 8), grid.log_snr(p.sde, 60), Ancestral(1.0), seeds=range(8))
    assert x.abs().max() < 1.5
    values = torch.tensor([1.0, 1e-5], dtype=F64)
    y, start = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=F64), torch.full((2, 2), 0.5, dtype=F64)
    solved = conjugate(lambda v: values * v, y, start)
    torch.testing.assert_close(solved, y / values, rtol=1e-6, atol=1e-6)
    kept = conjugate(lambda v: values * v, y, start, least=lambda d: 0.01 * d.square().sum(1, keepdim=True))
    assert kept.abs().max() < 100
