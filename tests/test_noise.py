"""What a draw depends on is exactly what the noise says, and every draw is standard normal."""

import math

import pytest
import torch
from scipy import stats

from scoresde import iid, per_sample

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
    for none in (3, None):
        with pytest.raises(ValueError, match="^seeds must be a sequence of one whole number a sample, got "):
            per_sample(none)
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
