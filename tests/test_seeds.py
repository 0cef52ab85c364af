"""The seeds of samples, and torch's global generator lent for a while."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde.noise import per_sample, seeded, seeds


@given(st.integers(0, 2**32 - 1), st.integers(0, 500), st.integers(0, 500), st.integers(0, 10**6))
def test_seeds_in_chunks(seed, a, b, start):
    """Two chunks of a collection are the collection, no seed is there twice, and `per_sample` takes them."""
    whole = seeds(seed, a + b, start)
    assert seeds(seed, a, start) + seeds(seed, b, start + a) == whole
    assert len(set(whole)) == a + b and all(0 <= s < 2**32 for s in whole)
    assert per_sample(whole[:3]).seeds == whole[:3]


def test_collections_do_not_meet():
    """The first million samples of each of the seeds 0..99 share no seed with another's."""
    starts = sorted(seeds(seed, 1)[0] for seed in range(100))
    gaps = [b - a for a, b in zip(starts, [*starts[1:], starts[0] + 2**32])]
    assert min(gaps) > 10**6
    assert seeds(7, 5)[4] == (seeds(7, 1)[0] + 4) % 2**32  # a collection is one run of numbers


@pytest.mark.parametrize("args", [(-1, 1), (2**32, 1), (0, -1), (0, 1, -1), (0, 2, 2**32 - 1)])
def test_seeds_errors(args):
    """Nothing outside 0..2**32."""
    with pytest.raises(ValueError, match="^(seed|n|start|seed, n and start) must"):
        seeds(*args)
    assert len(seeds(0, 1, 2**32 - 1)) == 1


@given(st.integers(0, 2**32 - 1))
def test_seeded(seed):
    """Inside, the global generator is that of manual_seed(seed); after it, also after an error, it is as before."""
    before = torch.get_rng_state()
    want = torch.randn(5, generator=torch.Generator().manual_seed(seed))
    with seeded(seed):
        assert torch.equal(torch.randn(5), want)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError), seeded(seed):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
