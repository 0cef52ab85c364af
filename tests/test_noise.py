"""What a draw depends on is exactly what the noise says, and every draw is standard normal."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scoresde import Path, iid, per_sample

F64 = torch.float64
T = torch.tensor(0.5, dtype=F64)
SIZES = [(1,), (3,), (15,), (16,), (17,), (33,), (2, 3, 5), (1, 28, 28)]
each_size = pytest.mark.parametrize("shape", SIZES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)


def draws(noise, n, *shape, dtype=F64):
    """n successive draws, (n, B, *D)."""
    x = torch.zeros(shape, dtype=dtype)
    return torch.stack([noise(x, T, T) for _ in range(n)])


def normal(z):
    """Kolmogorov and Smirnov's probability that z are draws of N(0, 1)."""
    return stats.kstest(z.flatten().double().numpy(), "norm").pvalue


# per_sample


@each_size
@each_dtype
def test_row_depends_on_its_seed_alone(shape, dtype):
    """Reordered, cut, doubled or alone, a row is to the bit what its seed says, draw after draw."""
    seeds = [7, 0, 2**32 - 1, 123456, 8]
    whole = draws(per_sample(seeds), 40, 5, *shape, dtype=dtype)
    order = [3, 0, 4, 2, 1]
    permuted = draws(per_sample([seeds[i] for i in order]), 40, 5, *shape, dtype=dtype)
    assert torch.equal(permuted, whole[:, order])
    assert torch.equal(draws(per_sample(seeds[1:4]), 40, 3, *shape, dtype=dtype), whole[:, 1:4])
    assert torch.equal(draws(per_sample(seeds).rows(1, 4), 40, 3, *shape, dtype=dtype), whole[:, 1:4])
    assert torch.equal(draws(per_sample([8, 8]), 40, 2, *shape, dtype=dtype), whole[:, [4, 4]])
    for i, seed in enumerate(seeds):
        assert torch.equal(draws(per_sample([seed]), 40, 1, *shape, dtype=dtype), whole[:, i : i + 1])


@pytest.mark.parametrize(("ahead", "held"), [(1, 1 << 24), (48, 1 << 24), (4096, 1), (4096, 200), (4096, 3000)])
@each_dtype
def test_row_does_not_depend_on_the_buffer(monkeypatch, ahead, held, dtype):
    """How far ahead numbers are drawn, which depends on the batch, is a matter of speed."""
    whole = draws(per_sample([5, 6, 7]), 300, 3, 17, dtype=dtype)
    monkeypatch.setattr(per_sample, "AHEAD", ahead)
    monkeypatch.setattr(per_sample, "BUFFER", held)
    assert torch.equal(draws(per_sample([5, 6, 7]), 300, 3, 17, dtype=dtype), whole)
    assert torch.equal(draws(per_sample([6]), 300, 1, 17, dtype=dtype), whole[:, 1:2])


def test_row_does_not_depend_on_torchs_generator():
    """The streams leave torch's global generator alone and do not read it."""
    torch.manual_seed(1)
    a, after = draws(per_sample([5, 6]), 3, 2, 4), torch.rand(())
    torch.manual_seed(2)
    b = draws(per_sample([5, 6]), 3, 2, 4)
    torch.manual_seed(1)
    assert torch.equal(a, b) and torch.equal(after, torch.rand(()))


@each_size
@each_dtype
def test_per_sample_is_normal(shape, dtype):
    """All values of all rows and draws together, and every position of the row, are N(0, 1)."""
    d = math.prod(shape)
    z = draws(per_sample(range(20)), 4000 // d + 60, 20, *shape, dtype=dtype)
    assert z.dtype == dtype and normal(z[:1200]) > 1e-3
    flat = z.flatten(2)
    for j in {0, d - 1, d // 2}:
        assert normal(flat[..., j]) > 1e-3


def test_rows_and_draws_are_independent():
    """Between draws at any lag, also over the buffer's end, between rows, and inside a row, nothing is correlated."""
    n, d = 600, 17
    z = draws(per_sample(range(10)), n, 10, d)
    for lag in (1, 2, 127, 128, 129, 256):
        a, b = z[:-lag].flatten(), z[lag:].flatten()
        assert abs(float((a * b).mean())) < 4.5 / math.sqrt(len(a))
        a, b = a**2 - 1, b**2 - 1
        assert abs(float((a * b).mean())) < 4.5 * 2 / math.sqrt(len(a))
    for other in (z.roll(1, 1), z.roll(1, 2), z.roll(3, 2)):
        assert abs(float((z * other).mean())) < 4.5 / math.sqrt(z.numel())
    assert len(z.unique()) == z.numel()


def test_draws_are_not_written_again():
    """A draw that is kept is not changed by those that follow."""
    noise, x = per_sample([1, 2]), torch.zeros(2, 2000)
    first = noise(x, T, T)
    kept = first.clone()
    for _ in range(5):
        noise(x, T, T).add_(1)
    assert torch.equal(first, kept)
    assert torch.equal(noise(x, T, T), draws(per_sample([1, 2]), 7, 2, 2000, dtype=torch.float32)[6])


def test_per_sample_errors():
    """A batch of another size, a stream that would change shape or dtype, and seeds that torch cannot tell apart."""
    noise = per_sample([1, 2, 3])
    with pytest.raises(ValueError, match="per_sample has 3 seeds, but the state has 2 rows"):
        noise(torch.zeros(2, 4), T, T)
    noise(torch.zeros(3, 4), T, T)
    for x in (torch.zeros(3, 5), torch.zeros(3, 4, dtype=F64), torch.zeros(3, 2, 2)):
        with pytest.raises(ValueError, match="per_sample began with rows"):
            noise(x, T, T)
    for seed in (-1, 2**32, 0.5, math.nan):
        with pytest.raises(ValueError, match=r"seeds must be whole numbers from 0 to 2\*\*32 - 1, got seeds\[1\]"):
            per_sample([0, seed])


# iid


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (4, 3, 5, 5)])
@each_dtype
def test_iid(shape, dtype):
    """A generator makes draws reproducible and apart from torch's own; without one torch's seed decides."""
    x = torch.empty(shape, dtype=dtype)
    a, b = (draws(iid(torch.Generator().manual_seed(3)), 3, *shape, dtype=dtype) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == dtype and a.shape == (3, *shape)
    assert not torch.equal(a[0], a[1])
    torch.manual_seed(5)
    c = iid()(x, T, T)
    torch.manual_seed(5)
    assert torch.equal(c, torch.randn(shape, dtype=dtype))


def test_iid_is_normal():
    """Draws are N(0, 1) and independent between draws."""
    z = draws(iid(torch.Generator().manual_seed(0)), 2, 100, 60)
    assert normal(z) > 1e-3
    assert abs(float((z[0] * z[1]).mean())) < 4.5 / math.sqrt(z[0].numel())


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
