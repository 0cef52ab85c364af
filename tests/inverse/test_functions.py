"""Measurements that are not linear, the singular vectors of those that are, and posteriors by weights."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from scoresde import VP, Ancestral, grid, iid, sample
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.inverse import (
    DDRM,
    DPS,
    Average,
    Function,
    Grey,
    Map,
    Mask,
    Matrix,
    Observation,
    Replacement,
    ddnm,
    diffpir,
    importance,
    log_evidence,
    mcgdiff,
    mmps,
    pigdm,
    posterior,
    twisted,
)

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


FULL = Matrix(randn(3, 4, seed=1), (4,))
MASK = Mask(torch.tensor([True, False, True, False]))
SQUARE = Function(lambda x: x.square().sum(1, keepdim=True), (4,))
LAW = GaussianMixture.from_covariances(
    torch.tensor([0.6, 0.4], dtype=F64),
    torch.tensor([[-1.0, 0.3, 0.5, 0.0], [1.0, -0.5, 0.2, 0.8]], dtype=F64),
    torch.stack([0.2 * torch.eye(4) + 0.1, 0.1 * torch.eye(4) + 0.05]).double(),
)


@pytest.mark.parametrize("A", [MASK, FULL, Average((2, 4, 6), 2), Grey((3, 2, 2))], ids=lambda A: type(A).__name__)
def test_singular_vectors(A):
    """A = U S V^T with orthonormal U and V: V is `embed`, and V^T x the coordinates of A x."""
    M = A(torch.eye(math.prod(A.shape), dtype=F64).view(-1, *A.shape)).T
    values, U = A.spectrum()
    U = torch.eye(A.m, dtype=F64) if U is None else U
    V = A.embed(torch.eye(A.m, dtype=F64)).flatten(1).T
    torch.testing.assert_close(V.T @ V, torch.eye(A.m, dtype=F64), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(U @ values.sqrt().diag() @ V.T, M, rtol=1e-10, atol=1e-10)
    x = randn(5, *A.shape, seed=2)
    torch.testing.assert_close(A.coordinates(A(x)), x.flatten(1) @ V, rtol=1e-10, atol=1e-10)


def test_of_a_linear_function():
    """DPS through a function that is a matrix is DPS through the matrix."""
    sde, ts, x_T = VP(), grid.log_snr(VP(), 10), randn(6, 4, seed=2)
    s, y = LAW.diffuse(sde), randn(3, seed=3)
    found, want = (
        sample(sde.reverse(s), x_T, ts, DPS(Ancestral(), Observation(A, y, 0.1)), noise=iid(generator(4)))
        for A in (Function(FULL, (4,)), FULL)
    )
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


def test_dps_of_a_square():
    """For data N(0, I) and A = |x|^2, E[x_0 | x_t] = k x, k = alpha/(alpha^2 + sigma^2), and the gradient is 2 k^2 x
    away from the sphere |k x|^2 = y.
    """
    sde, t, u = VP(), torch.tensor(0.5, dtype=F64), torch.tensor(0.4, dtype=F64)
    p, x = sde.reverse(Gaussian(torch.zeros(4, dtype=F64), 1.0).diffuse(sde)), randn(6, 4, seed=2)
    seen, k = Observation(SQUARE, [0.3], 0.1), sde.alpha(t) / (sde.alpha(t) ** 2 + sde.var(t))
    moved = DPS(Ancestral(), seen, 0.7).start(p, t[None], u[None])(p, x, t, u, iid(generator(1)))
    side = (k**2 * x.square().sum(1, keepdim=True) - 0.3).sign()
    assert side.unique().numel() == 2
    want = Ancestral()(p, x, t, u, iid(generator(1))) - 0.7 * side * 2 * k**2 * x
    torch.testing.assert_close(moved, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("A", [MASK, FULL], ids=lambda A: type(A).__name__)
def test_weights_against_closed_forms(A):
    """Over 60 seeds the weighted means and log p(y) differ from the exact ones by their errors, root mean square, to a
    quarter, and not on average, to 4 of its standard errors.
    """
    y = Observation.of(A, LAW.sample(1, generator(4)), 0.4, generator(5)).y[0]
    seen, off = Observation(A, y, 0.4), []
    want, log_p = posterior(LAW, seen).moments[0], log_evidence(LAW, seen)
    for seed in range(60):
        found = importance(LAW, seen, 4000, generator(seed))
        mean = (found.samples.mean() - want) / found.samples.error()
        off.append(torch.cat([mean, torch.tensor([(found.log_evidence - log_p) / found.error], dtype=F64)]))
    off = torch.stack(off)
    assert (off.mean(0).abs() < 4 / 60**0.5).all()
    size = off.square().mean(0).sqrt()
    assert (size > 0.75).all() and (size < 1.25).all(), size


def test_weights_of_a_square():
    """For data N(0, I) in four dimensions and A = |x|^2: p(y) and E[|x|^2 | y] by quadrature over the chi-squared law;
    E[x | y] = 0.
    """
    y, std = 6.0, 0.5
    like = lambda r: stats.norm.pdf(y, r, std) * stats.chi2.pdf(r, 4)  # noqa: E731
    p = integrate.quad(like, 0, 30, points=[y])[0]
    mean = integrate.quad(lambda r: r * like(r), 0, 30, points=[y])[0] / p
    found = importance(Gaussian(torch.zeros(4, dtype=F64), 1.0), Observation(SQUARE, [y], std), 100_000, generator(3))
    assert abs(found.log_evidence - np.log(p)) < 4 * found.error < 0.05
    samples, square = found.samples, lambda x: x.square().sum(1)
    assert abs(float(samples.mean(square)) - mean) < 4 * float(samples.error(square)) < 0.1
    assert (samples.mean().abs() < 4 * samples.error()).all()


ROUND = Observation(SQUARE, [1.0], 0.1)
S, TS = LAW.diffuse(VP()), grid.log_snr(VP(), 5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pigdm(S, ROUND),
        lambda: mmps(S, ROUND),
        lambda: ddnm(S, ROUND),
        lambda: diffpir(S, ROUND),
        lambda: posterior(LAW, ROUND),
        lambda: log_evidence(LAW, ROUND),
        lambda: Replacement(Ancestral(), ROUND),
        lambda: DDRM(ROUND),
        lambda: mcgdiff(S, ROUND, randn(3, 4), TS),
        lambda: twisted(S, ROUND, randn(3, 4), TS),
    ],
)
def test_what_needs_a_linear_map_says_so(make):
    with pytest.raises(ValueError, match="seen must be through a (Linear map|Mask).*got Function"):
        make()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Function(None, (4,)), "f must be a callable"),
        (lambda: Function(lambda x: x.sum(1), (4,)), r"f must return rows \(B, m\), got \(3,\) for 3 samples"),
        (lambda: Function(lambda x: x[:2], (4,)), r"f must return rows \(B, m\), got \(2, 4\)"),
        (lambda: Function(lambda x: x @ torch.ones(4, 1).double(), (4,)), "f must take torch.float32 on cpu"),
        (lambda: Function(lambda x: None, (4,)), "f must return rows.*got NoneType"),
        (lambda: Function(lambda x: x.log(), (4,)), "f must return finite rows"),
        (lambda: Function(lambda x: x - x.mean(0), (4,)), "f must make each row of its own sample alone"),
        (lambda: Function(lambda x: x.detach(), (4,)), "f must be differentiable by autograd"),
        (lambda: Function(lambda x: x, (0,)), "of must be a whole number >= 1"),
        (lambda: SQUARE(torch.zeros(2, 3)), r"x must be \(B, \*\(4,\)\), got \(2, 3\)"),
        (lambda: Map(lambda x: x, lambda y: y, (4,)).coordinates(randn(2, 4)), "A must be a map whose A A.T is known"),
        (lambda: Map(lambda x: x, lambda y: y, (4,)).embed(randn(2, 4)), "A must be a map whose A A.T is known"),
        (lambda: DPS(Ancestral(), SQUARE), r"seen must be an Observation\(A, y, std\)"),
        (lambda: pigdm(S, SQUARE), r"seen must be an Observation\(A, y, std\)"),
        (lambda: importance(LAW, Observation(SQUARE, [1.0], 0.0), 10), "std must be a finite number > 0"),
        (lambda: importance(LAW, Observation(SQUARE, [[1.0], [2.0]], 0.1), 10), "y must be one observation"),
        (lambda: MASK.coordinates(randn(2, 3)), r"y must be rows \(B, 2\), got \(2, 3\)"),
        (lambda: MASK.embed(randn(2)), r"v must be rows \(B, 2\), got \(2,\)"),
        (lambda: twisted(S, Observation(MASK, [0.1, 0.2], 0.1), randn(3, 4), TS, generator=0), "generator must be"),
        (lambda: importance(LAW, ROUND, 10, 0), "generator must be a torch.Generator"),
        (lambda: importance(LAW, ROUND, 1), "n must be a whole number >= 2"),
        (lambda: importance(Gaussian(torch.zeros(3), 1.0), ROUND, 10), "law must be a law of shape"),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
