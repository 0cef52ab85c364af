"""Brownian paths have their law, and are one path whoever reads them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scoresde import VP, grid
from scoresde.brownian import Brownian, GridPath, Path

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(z):
    """Kolmogorov and Smirnov's probability that z are draws of N(0, 1)."""
    return stats.kstest(z.flatten().double().numpy(), "norm").pvalue


def within(values, mean, variance):
    """The mean of independent values is within 4.5 of their standard errors of `mean`."""
    assert abs(float(values.mean()) - mean) < 4.5 * (variance / values.numel()) ** 0.5


# Brownian


def test_increments_and_integrals_have_their_law():
    """Over any intervals W ~ N(0, h), U = int (W - W(start)) has variance h^3/3 and covariance h^2/2 with W, and
    disjoint intervals are independent.
    """
    W, cuts, L = Brownian(1.7, torch.zeros(20_000, 1, dtype=F64), 3), [0.0, 0.4, 0.85, 0.9123, 1.3, 1.7], 1.7
    parts = []
    for a, b in zip(cuts, cuts[1:]):
        w, u = W(a, b, return_U=True)
        h = b - a
        parts += [w / h**0.5, (u - h / 2 * w) / (h**3 / 12) ** 0.5]
    for i, z in enumerate(parts):
        within(z, 0, 1)
        within(z**2, 1, 2)
        within(z**4, 3, 96)
        for other in parts[:i]:
            within(z * other, 0, 1)
    torch.testing.assert_close(sum(W(a, b) for a, b in zip(cuts, cuts[1:])), W(0.0, L), rtol=0, atol=1e-12)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.lists(st.floats(0, 1), max_size=6), st.integers(0, 9))
def test_the_path_does_not_depend_on_its_readers(cuts, before, seed):
    """Increments and integrals over [a, b] and [b, c] add up to those over [a, c], and no bit of them depends on what
    was read before.
    """
    (a, b, c), x = sorted(2.5 * v for v in cuts), torch.zeros(2, 3, dtype=F64)
    W = Brownian(2.5, x, seed)
    (w_1, u_1), (w_2, u_2), (w, u) = (W(*ends, return_U=True) for ends in ((a, b), (b, c), (a, c)))
    torch.testing.assert_close(w_1 + w_2, w, rtol=0, atol=1e-12)
    torch.testing.assert_close(u_1 + u_2 + (c - b) * w_1, u, rtol=0, atol=1e-12)
    again = Brownian(2.5, x, seed)
    for end in before:
        again(0.0, 2.5 * end)
    assert all(torch.equal(v, v_2) for v, v_2 in zip((w, u), again(a, c, return_U=True)))
    assert a == b or not torch.equal(Brownian(2.5, x, seed + 1)(a, b), w_1) or b - a < 1e-9


def test_the_path_is_continuous():
    """Over ever shorter intervals the increment tends to 0 as h^1/2 down to the resolution, and then as h."""
    W = Brownian(1.0, torch.zeros(500, 1, dtype=F64), 0)
    for a in (0.25, 0.3, 1 / 3):
        for h in (1e-2, 1e-4, 1e-6, 1e-9):
            size = float(W(a, a + h).square().mean()) ** 0.5
            assert size < 1.2 * min(h**0.5, 40 * 2**8 * h)
        assert not W(a, a).any()


@pytest.mark.parametrize("levels", [0, 3, 10])
def test_levels_refine_one_path(levels):
    """At multiples of 2^-levels of the length the path and its integral are those of any finer resolution."""
    x, ends = torch.zeros(3, 2, dtype=F64), (5 * torch.linspace(0, 1, 2 ** min(levels, 4) + 1)).tolist()
    coarse, fine = Brownian(5.0, x, 1, levels), Brownian(5.0, x, 1, 20)
    for a, b in zip(ends, ends[1:]):
        for v, w in zip(coarse(a, b, return_U=True), fine(a, b, return_U=True)):
            torch.testing.assert_close(v, w, rtol=0, atol=1e-12)


# Path


def path(seed=0, t0=0.0, t1=1.0, shape=(4, 3)):
    return Path(t0, t1, shape, seed)


def increment(p, t, s, shape=(4, 3)):
    """W(t) - W(s) = z sqrt|t - s|."""
    return p(torch.zeros(shape, dtype=F64), *(torch.tensor(u, dtype=F64) for u in (t, s))) * abs(t - s) ** 0.5


@given(
    st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5, unique=True), st.sampled_from([(0.0, 1.0), (-2.0, 5.0)])
)
def test_increments_add_up(cuts, ends):
    """The increments over the parts of an interval, cut anywhere, add up to that over the whole, in units of time."""
    t0, t1 = ends
    cuts = sorted({0.0, 1.0, *(round(c, 3) for c in cuts)})
    ts = [t0 + c * (t1 - t0) for c in cuts]
    p = path(1, t0, t1)
    parts = sum(increment(p, b, a) for a, b in zip(ts, ts[1:]))
    torch.testing.assert_close(parts, increment(p, t1, t0), rtol=1e-9, atol=1e-9)


def test_path_does_not_depend_on_the_queries():
    """Whatever is asked before, in whatever order and direction, the path of a seed is one path."""
    cuts = torch.linspace(0, 1, 38, dtype=F64).tolist()
    intervals = list(zip(cuts, cuts[1:])) + [(0.0, 0.3), (0.1, 0.77), (0.0, 1.0)]
    forward, backward, x = path(2), path(2), torch.zeros(4, 3, dtype=F64)
    a = [increment(forward, t, s) for s, t in intervals]
    b = [increment(backward, t, s) for s, t in intervals[::-1]][::-1]
    torch.testing.assert_close(torch.stack(a), torch.stack(b), rtol=0, atol=1e-12)
    fresh = [increment(path(2), t, s) for s, t in intervals]
    torch.testing.assert_close(torch.stack(a), torch.stack(fresh), rtol=0, atol=1e-12)
    s, t = torch.tensor(0.1, dtype=F64), torch.tensor(0.3, dtype=F64)
    assert torch.equal(forward(x, t, s), forward(x, s, t))
    assert not torch.equal(path(2)(x, t, s), path(3)(x, t, s))


def test_path_is_brownian():
    """z is N(0, 1) on intervals of every length, disjoint increments are independent, and the dtype is the state's."""
    shape = (50, 40)
    ts = [0.0, 0.5, 0.501, 0.6, 1.7, 3.0]
    p, x = Path(0.0, 3.0, shape, seed=4), torch.zeros(shape)
    z = torch.stack([p(x, torch.tensor(b), torch.tensor(a)) for a, b in zip(ts, ts[1:])])
    assert z.dtype == torch.float32
    for row in z:
        assert normal(row) > 1e-3
    correlation = torch.corrcoef(z.flatten(1)) - torch.eye(len(z))
    assert correlation.abs().max() < 4.5 / math.sqrt(math.prod(shape))


def test_path_errors():
    """No increment outside the interval, none over an empty one, and none for a state of another shape."""
    p = path(0, 1.0, 2.0)
    for t, s in ((1.5, 0.9), (2.1, 1.5), (0.5, 0.2), (3.0, 0.0)):
        with pytest.raises(ValueError, match=r"a Path on \[1, 2\] has no increment from"):
            increment(p, t, s)
    with pytest.raises(ValueError, match="no increment over the empty interval at t = 1.5"):
        p(torch.zeros(4, 3), torch.tensor(1.5), torch.tensor(1.5))
    with pytest.raises(ValueError, match=r"this Path has shape \(4, 3\), but the state has \(1, 3\)"):
        increment(p, 1.5, 1.2, shape=(1, 3))
    with pytest.raises(ValueError, match="^t1 must"):
        path(0, 1.0, 1.0)
    with pytest.raises(ValueError, match="^tol must"):
        Path(0.0, 1.0, (1, 1), tol=0.0)
    with pytest.raises(ValueError, match="^t0 must"):
        path(0, math.nan, 1.0)


# GridPath


def test_increments_over_a_grid_add_up():
    """sqrt(t - s) z(t, s) + sqrt(s - u) z(s, u) = sqrt(t - u) z(t, u), whatever is asked first, as a path has it."""
    ts = grid.quadratic(VP(), 30)
    path, x = GridPath(ts, (4, 2, 3), generator()), torch.zeros(4, 2, 3, dtype=F64)
    for i, j, k in ((0, 10, 30), (3, 4, 5), (7, 20, 29), (0, 1, 2)):
        (t, s, u) = ts[[i, j, k]]
        whole = (t - u).sqrt() * path(x, t, u)
        parts = (t - s).sqrt() * path(x, t, s) + (s - u).sqrt() * path(x, s, u)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
        assert torch.equal(path(x, t, u), path(x, t, u)) and float((path(x, t, s) - path(x, s, u)).abs().min()) > 0


def test_a_grids_path_is_of_one_shape_and_direction():
    """A state of another shape would be broadcast, and times that increase have no root."""
    ts = grid.uniform(VP(), 4)
    path = GridPath(ts, (1, 2), generator())
    with pytest.raises(ValueError, match=r"^this GridPath has shape \(1, 2\), but the state has \(4, 2\)$"):
        path(torch.zeros(4, 2), ts[0], ts[1])
    with pytest.raises(ValueError, match="^ts must strictly decrease"):
        GridPath(ts.flip(0), (1, 2), generator())


def test_increments_over_a_grid_are_normal():
    """z ~ N(0, 1) over steps of any length: moments to the fourth within 4.5 standard errors; over two steps without a
    common part their product has mean 0, over a step and a part of it sqrt(part/whole).
    """
    ts, n = torch.tensor([1.0, 0.9, 0.5, 0.499, 0.1], dtype=F64), 40_000
    path, x = GridPath(ts, (n, 1), generator(1)), torch.zeros(n, 1, dtype=F64)
    for i in range(5):
        for j in range(i + 1, 5):
            z = path(x, ts[i], ts[j])
            for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
                v = z**power
                assert abs(float(v.mean()) - moment) < 4.5 * float(v.std()) / math.sqrt(n)
            for k in range(j + 1, 5):
                next_, whole = z * path(x, ts[j], ts[k]), z * path(x, ts[i], ts[k])
                share = float(((ts[i] - ts[j]) / (ts[i] - ts[k])).sqrt())
                assert abs(float(next_.mean())) < 4.5 * float(next_.std()) / math.sqrt(n)
                assert abs(float(whole.mean()) - share) < 4.5 * float(whole.std()) / math.sqrt(n)


def test_a_grids_path_is_decided_by_its_generator():
    """The same seed gives the same path, in the state's dtype; a finer or coarser step is read off the same path."""
    ts, x = grid.uniform(VP(), 8), torch.zeros(3, 2)
    a, b, c = (GridPath(ts, (3, 2), generator(seed)) for seed in (0, 0, 1))
    assert a(x, ts[2], ts[6]).dtype == torch.float32
    assert torch.equal(a(x, ts[2], ts[6]), b(x, ts[2], ts[6])) and not torch.equal(
        a(x, ts[2], ts[6]), c(x, *ts[[2, 6]])
    )
    assert torch.equal(a(x.double(), ts[0], ts[8]).float(), a(x, ts[0], ts[8]))


def test_times_off_the_grid():
    """The path is known on its grid alone, and the time that is not is named."""
    path, x = GridPath(grid.uniform(VP(), 4), (2, 1), generator()), torch.zeros(2, 1)
    for t, s in ((1.0, 0.123), (0.123, 0.001)):
        with pytest.raises(ValueError, match="^the path is not known at t = 0.123$"):
            path(x, torch.tensor(t, dtype=F64), torch.tensor(s, dtype=F64))
