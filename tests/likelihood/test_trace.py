"""Traces: exact ones are those of the Jacobian, estimates have its mean and the variance that theory says."""

import math
from itertools import product

import pytest
import torch

from scoresde import Counted, iid, per_sample
from scoresde.likelihood import Exact, Hadamard, Hutchinson, HutchPP

F64 = torch.float64
SHAPES = [(2,), (2, 2, 2)]
T0 = torch.tensor(0.5, dtype=F64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=3):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def linear(A):
    """x -> A x for each sample of any shape, whose Jacobian is A."""
    return lambda x, t: (x.flatten(1) @ A.T).view(x.shape)


def low_rank(d, r, seed=5):
    """An asymmetric matrix of rank r."""
    return normal(d, r, seed=seed) @ normal(r, d, seed=seed + 1)


def symmetric(A):
    return (A + A.T) / 2


def off_diagonal(A):
    """2 sum_{i != j} S_ij^2 of the symmetric part S: the variance of a Rademacher probe, whose z_i^2 are 1."""
    S = symmetric(A)
    return 2 * float(S.square().sum() - S.diagonal().square().sum())


@torch.no_grad()
def measured(trace, score, x, noise=None, nodes=1):
    """The (score, estimates, variance of the mean of the estimates) of each of some nodes on one path."""
    probes = trace.start(x, noise or iid(generator()))
    return [told(trace, *probes.measure(score, x, T0, probes.draw())) for _ in range(nodes)]


def told(trace, y, found):
    """What is known of the variance of an estimate: from its channels if they stay, else what is said of its parts."""
    if trace.kept:
        assert torch.equal(found.var, torch.zeros_like(found.var))
        return y, found.q, found.q.var(1) / found.q.shape[1]
    _, tied, part = found.lasting or (0, 0.0, 0.0)
    return y, found.q, found.var + part**2 * tied


def every_sign(d):
    """A noise that gives row k the k-th of all 2^d vectors of signs, times a magnitude that must not matter."""
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=d)), dtype=F64)
    return lambda x, t, s: (signs * (0.1 + torch.arange(d))).view(x.shape)


def repeated(x, n):
    return x.expand(n, *x.shape[1:]).contiguous()


# exact


def field(x, t):
    """A nonlinear field that mixes the dimensions of a sample, not the samples."""
    y = x.flatten(1)
    return (torch.sin(y @ MIX[: y.shape[1], : y.shape[1]]) * y.flip(1) + y**2).view(x.shape)


MIX = normal(8, 8, seed=9)


@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (2, 2, 2, 2), (1, 4)])
@pytest.mark.parametrize("chunk", [1, 2, 3, 64])
def test_exact_trace_is_that_of_the_jacobian(shape, chunk):
    """sum_i dv_i/dx_i of each sample, whatever the chunk, against the Jacobian of the whole batch; v comes along."""
    x = normal(*shape)
    ((v, trace, variance),) = measured(Exact(chunk), field, x)
    J = torch.autograd.functional.jacobian(lambda x: field(x, T0), x).view(len(x), x[0].numel(), len(x), x[0].numel())
    torch.testing.assert_close(v, field(x, T0), rtol=1e-12, atol=0)
    torch.testing.assert_close(trace, torch.einsum("bibi->b", J)[:, None], rtol=1e-12, atol=1e-12)
    assert torch.equal(variance, torch.zeros_like(variance))
    assert not v.requires_grad and not trace.requires_grad


# estimates

ESTIMATES = [
    Hutchinson(1),
    Hutchinson(2),
    Hutchinson(3, fresh=False),
    Hutchinson(2, gaussian=True),
    Hadamard(2),
    Hadamard(4),
    HutchPP(2),
]
every_estimate = pytest.mark.parametrize("trace", ESTIMATES, ids=repr)


@every_estimate
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_estimates_are_unbiased(trace, shape):
    """Every channel has the mean tr A for an asymmetric A, at the first node and at a later one, and the variance that
    is reported has the mean E(estimate - tr A)^2: within 4.5 standard errors over samples.
    """
    n, d = 20_000, math.prod(shape)
    A = normal(d, d)
    x = repeated(normal(1, *shape, seed=4), n)
    for v, q, variance in measured(trace, linear(A), x, nodes=3)[::2]:
        torch.testing.assert_close(v, linear(A)(x, T0), rtol=1e-12, atol=0)
        off = q - A.trace()
        # where an estimate is exact, as two rows of Hadamard's matrix are in two dimensions, it is so but for rounding
        assert (off.mean(0).abs() < 4.5 * off.std(0) / n**0.5 + 1e-12).all()
        square = off.mean(1) ** 2 - variance
        if trace == Hutchinson(1):
            assert variance.isnan().all()
        else:
            assert abs(float(square.mean())) < 4.5 * float(square.std()) / n**0.5 + 1e-12


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("trace", [Hutchinson(1), Hutchinson(3, fresh=False), Hadamard(2)], ids=repr)
def test_variance_over_all_signs(trace, shape):
    """Over all 2^d sign vectors the mean is the trace and the variance of a probe 2 sum_{i != j} S_ij^2 with the
    symmetric part S of A, which is 2 sum_{i != j} A_ij^2 for symmetric A.

    A Gaussian probe would have the variance 2 sum_ij S_ij^2, and one that keeps the magnitudes of its draw another.
    """
    d = math.prod(shape)
    for A in (normal(d, d), symmetric(normal(d, d))):
        x = repeated(normal(1, *shape, seed=4), 2**d)
        ((_, q, _),) = measured(trace, linear(A), x, every_sign(d))
        for channel in q.T:
            assert float(channel.mean()) == pytest.approx(float(A.trace()), rel=1e-12)
            assert float(channel.var(correction=0)) == pytest.approx(off_diagonal(A), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_variance_of_gaussian_probes(shape):
    """2 |S|_F^2 for N(0, I) probes, and 2 sum_{i != j} S_ij^2 for their signs: within 4.5 standard errors."""
    n, d = 40_000, math.prod(shape)
    A = normal(d, d) + torch.diag(2 * torch.ones(d, dtype=F64))
    x, S = repeated(normal(1, *shape, seed=4), n), symmetric(A)
    for gaussian, want in ((True, 2 * float(S.square().sum())), (False, off_diagonal(A))):
        ((_, q, _),) = measured(Hutchinson(1, gaussian=gaussian), linear(A), x)
        square = (q[:, 0] - A.trace()) ** 2
        assert abs(float(square.mean()) - want) < 4.5 * float(square.std()) / n**0.5 + 1e-12


def test_reported_variance_is_the_sample_variance():
    """The variance of the mean over m channels is sum (q - mean)^2/((m - 1) m)."""
    x, A = normal(50, 5), normal(5, 5)
    ((_, q, variance),) = measured(HutchPP(3), linear(A), x)
    torch.testing.assert_close(variance, (q - q.mean(1, keepdim=True)).square().sum(1) / 6, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("m", [2, 3, 8])
def test_the_last_probe_lasts(m):
    """Of fresh probes the last is that of every node of a block, and of no other block; it counts half, and the rest
    once; of its estimate and theirs the variance is s^2, that of the sample, so that the mean over blocks of two has
    that of m - 1/2 independent probes a node; what it changes by in a block is that of A alone, whatever the probe.
    """
    x, A = normal(50, 5), normal(5, 5)
    probes, z, found = Hutchinson(m).start(x, iid(generator())), [], []
    for block in (2, 3, 1):
        probes.together(block)
        for _ in range(block):
            z.append(probes.draw())
            found.append(probes.measure(linear(A), x, T0, z[-1])[1])
    z.append(probes.draw())  # a node that is in no block
    same = [[torch.equal(a[k], b[k]) for b in z] for k in (0, m - 1) for a in z]
    assert same[:7] == torch.eye(7, dtype=torch.bool).tolist()
    assert same[7:] == torch.block_diag(*(torch.ones(n, n) for n in (2, 3, 1, 1))).bool().tolist()
    for one, estimate in zip(z, found, strict=False):
        q = torch.einsum("kbi,ij,kbj->bk", one, A, one)
        value, tied, part = estimate.lasting
        want = (q[:, :-1].sum(1) + q[:, -1] / 2) / (m - 1 / 2)
        torch.testing.assert_close(estimate.q, want[:, None], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(value, q[:, -1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(tied, q.var(1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(estimate.var + 2 * part**2 * tied, q.var(1) / (m - 1 / 2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0].lasting[0], found[1].lasting[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("m", "nodes"), [(2, 8), (4, 4), (8, 2), (16, 1)])
@pytest.mark.parametrize("shape", [(8,), (2, 2, 2), (5,), (1, 7)], ids=str)
def test_hadamard_rows_are_orthogonal(m, nodes, shape):
    """Probes are signs; m/2 rows a half and node, and over 8 rows both halves have sum z z^T = 8 I in up to 8
    dimensions, so the mean of either half is the trace, not to be had from one node or from rows that repeat.
    """
    d, A = math.prod(shape), normal(math.prod(shape), math.prod(shape))
    x = normal(3, *shape)
    probes = Hadamard(m).start(x, iid(generator()))
    z = [probes.draw() for _ in range(2 * nodes)]
    assert all(a.shape == (m, *x.shape) and torch.equal(a.abs(), torch.ones_like(a)) for a in z)
    for start in (0, nodes):
        for half in (slice(0, m // 2), slice(m // 2, m)):
            rows = torch.cat([a[half] for a in z[start : start + nodes]]).flatten(2)
            gram = torch.einsum("kbi,kbj->bij", rows, rows)
            torch.testing.assert_close(gram, 8 * torch.eye(d, dtype=F64).expand(3, d, d), rtol=0, atol=0)
    q = torch.stack([q for _, q, *_ in measured(Hadamard(m), linear(A), x, nodes=nodes)]).mean(0)
    torch.testing.assert_close(q, A.trace().expand(3, 2), rtol=1e-12, atol=1e-12)
    assert (z[0][0] != z[0][m // 2]).any()  # the halves have their own signs, as samples have
    assert (z[0][:, 0] != z[0][:, 1]).any()


def test_hadamard_in_many_dimensions():
    """All rows of a long cycle are visited, and neighbours in turn are far apart, so that slow changes cancel."""
    x = normal(1, 64)
    probes = Hadamard(2).start(x, iid(generator()))
    rows = torch.cat([probes.draw()[:1, 0] for _ in range(64)])
    torch.testing.assert_close(rows @ rows.T, 64 * torch.eye(64, dtype=F64), rtol=0, atol=0)


@pytest.mark.parametrize(("d", "r", "rank"), [(8, 1, 2), (16, 3, 4), (16, 1, 5), (2, 2, 2), (5, 5, 5)])
def test_hutchpp_is_exact_for_low_rank(d, r, rank):
    """Where A has at most `rank` dimensions every channel is tr A, with no variance; Hutchinson's are not."""
    A, x = low_rank(d, r), normal(4, d)
    ((_, q, variance),) = measured(HutchPP(rank), linear(A), x)
    torch.testing.assert_close(q, A.trace().expand(4, rank), rtol=1e-9, atol=1e-9)
    assert variance.max() < 1e-16
    assert (measured(Hutchinson(rank), linear(A), x)[0][1] - A.trace()).abs().min() > 1e-6


def test_hutchpp_given_its_sketch():
    """With any sketch fixed, the mean over all signs of the other probes is the trace: for each channel exactly."""
    d, A = 4, normal(4, 4)
    x, asked = repeated(normal(1, 4), 2**d), []

    def noise(x, t, s):
        asked.append(0)
        return repeated(normal(1, 4, seed=len(asked)), 2**d) if len(asked) <= 2 else every_sign(d)(x, t, s)

    ((_, q, _),) = measured(HutchPP(2), linear(A), x, noise)
    torch.testing.assert_close(q.mean(0), A.trace().expand(2), rtol=1e-12, atol=0)
    assert q.std() > 1e-3


# what they ask for


@pytest.mark.parametrize(
    ("trace", "once", "node"),
    [
        (Exact(), 0, 0),
        (Hutchinson(3), 0, 3),
        (Hutchinson(3, gaussian=True), 0, 3),
        (Hutchinson(3, fresh=False), 3, 0),
        (Hadamard(4), 2, 0),
        (HutchPP(2), 0, 4),
    ],
    ids=repr,
)
def test_draws(trace, once, node):
    """Fresh probes draw at every node, kept ones at the first, Hadamard's signs once; always for the whole batch."""
    asked = []

    def noise(x, t, s):
        asked.append(x.shape)
        return normal(*x.shape, seed=len(asked))

    x = normal(3, 4)
    probes = trace.start(x, noise)
    z = [probes.draw() for _ in range(3)]
    assert asked == [x.shape] * (once + 3 * node)
    changes = len(z[0]) and not torch.equal(z[0], z[1])
    assert bool(changes) == (node > 0 or isinstance(trace, Hadamard))


@every_estimate
def test_probes_are_the_samples_own(trace):
    """With streams of its own a sample has the same probes in any chunk, at every node."""
    x, streams = normal(7, 2, 2), per_sample(range(7))

    def drawn(a, b):
        probes = trace.start(x[a:b], streams.rows(a, b))
        return torch.stack([probes.draw() for _ in range(3)])

    assert torch.equal(torch.cat([drawn(0, 2), drawn(2, 7)], 2), drawn(0, 7))


@pytest.mark.parametrize("trace", [*ESTIMATES, Exact(1), Exact(3), Exact()], ids=repr)
def test_cost(trace):
    """The score is called once; as many products as are told are made: each passes once through the score's result."""
    d, score, passed = 6, Counted(linear(normal(6, 6))), []

    def seen(x, t):
        y = score(x, t)
        y.register_hook(lambda g: passed.append(0))
        return y

    measured(trace, seen, normal(2, d))
    assert score.nfe == 1
    chunks = math.ceil(d / trace.chunk) if isinstance(trace, Exact) else trace.products(d)
    assert len(passed) == chunks
    assert trace.products(d) == (d if isinstance(trace, Exact) else len(passed))


@pytest.mark.parametrize(
    "trace", [Exact(2), Hutchinson(2), Hutchinson(2, gaussian=True), Hadamard(4), HutchPP(2)], ids=repr
)
def test_gradients_of_estimates(trace):
    """With a graph, the mean over all signs of d estimate/dx is d trace/dx, of a nonlinear field with its parameters;
    without gradients nothing carries one.
    """
    x, w = repeated(normal(1, 4), 16).requires_grad_(), normal(4, 4, seed=8).requires_grad_()
    score = lambda x, t: torch.sin(x @ w) * x  # noqa: E731
    probes = trace.start(x, every_sign(4) if not getattr(trace, "gaussian", False) else iid(generator()))
    z = probes.draw()
    y, (q, variance, _) = probes.measure(score, x, T0, z)
    assert y.requires_grad and q.requires_grad and not variance.requires_grad
    ((_, want, _),) = measured(Exact(), score, x)
    assert not want.requires_grad
    exact = Exact().start(x, iid())
    _, (trace_, *_) = exact.measure(score, x, T0, exact.draw())
    g, w_g = torch.autograd.grad(q.mean(), (x, w))
    e, w_e = torch.autograd.grad(trace_.mean(), (x, w))
    if isinstance(trace, Exact) or (isinstance(trace, Hutchinson) and not trace.gaussian):
        torch.testing.assert_close(w_g, w_e, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(g.sum(0), e.sum(0), rtol=1e-10, atol=1e-12)
    else:
        assert g.abs().sum() > 0 and w_g.abs().sum() > 0


# bad input


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Exact(0), "chunk must"),
        (lambda: Exact(1.5), "chunk must"),
        (lambda: Hutchinson(0), "m must"),
        (lambda: Hutchinson(True), "m must"),
        (lambda: Hadamard(3), "m must be even"),
        (lambda: Hadamard(0), "m must"),
        (lambda: HutchPP(1), "rank must"),
        (lambda: Hutchinson(10**9), "m must be a whole number >= 1 and <= 100000"),
        (lambda: Hadamard(10**30), "m must"),
        (lambda: HutchPP(10**9), "rank must"),
        (lambda: Hutchinson(100_000).start(torch.zeros(1, 1).expand(1000, 1000), iid()), "trace must hold at most 32"),
        (lambda: Exact(10**9).start(torch.zeros(1, 1).expand(100, 30_000), iid()), "trace must hold at most 32"),
        (lambda: measured(HutchPP(3), linear(normal(2, 2)), normal(4, 2)), "rank must be at most d = 2"),
    ],
)
def test_bad_values(make, match):
    """Numbers of probes that make no sense are named."""
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("trace", [*ESTIMATES, Exact()], ids=repr)
def test_a_score_without_gradient_raises(trace):
    """Under no_grad the score's part of the divergence would be dropped without a word."""
    score = torch.no_grad()(lambda x, t: -x)
    with pytest.raises(ValueError, match="score must be differentiable"):
        measured(trace, score, normal(3, 4))
