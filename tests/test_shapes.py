"""Coefficients broadcast over whole states, and arguments are refused by name."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import VP, Counted
from scoresde.shapes import as_time, count, like, number, state, times

F64 = torch.float64
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(lambda d: (3, *d))
numbers = st.one_of(st.floats(), st.integers(-5, 5), st.sampled_from(["1", None, 1j, torch.tensor(1.0)]))


@given(shapes)
def test_like_multiplies_rows(shape):
    """like(c, x) x is c_i x_i for every row, for every shape of state, also where B equals a size in D."""
    x, c = torch.randn(shape, dtype=F64), torch.tensor([2.0, -3.0, 0.5], dtype=F64)
    assert torch.equal(like(c, x) * x, torch.stack([ci * xi for ci, xi in zip(c, x)]))


@given(shapes, st.sampled_from([torch.float32, torch.float16, torch.bfloat16, F64]))
def test_like_keeps_the_dtype(shape, dtype):
    """A coefficient of shape () or (B,) in float64 never promotes a state."""
    x = torch.ones(shape, dtype=dtype)
    for c in (torch.tensor(2.0, dtype=F64), torch.full((3,), 2.0, dtype=F64), 2.0):
        assert (like(c, x) * x).dtype == dtype and torch.equal(like(c, x) * x, 2 * x)


@pytest.mark.parametrize("shape", [(1,), (2,), (4,), (3, 1), (1, 3), (3, 2)])
def test_like_refuses_other_shapes(shape):
    """Nothing but () and (B,) broadcasts, not even (1,) or what torch would accept."""
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(3,\)"):
        like(torch.ones(shape), torch.ones(3, 2))


def test_as_time():
    """Numbers and whole tensors become float64; floating-point tensors stay what they are."""
    assert as_time(0.1).dtype == as_time(1).dtype == as_time(torch.tensor(1)).dtype == F64
    assert float(as_time(0.1)) == 0.1  # not rounded to float32 on the way
    t = torch.rand(3)
    assert as_time(t) is t


@given(numbers, st.sampled_from(["above", "least", "most", "below"]), st.integers(-3, 3))
def test_number(value, bound, at):
    """number returns the value exactly where it is finite and on the right side of the bound, and else names it."""
    inside = {
        "above": lambda v: v > at,
        "least": lambda v: v >= at,
        "most": lambda v: v <= at,
        "below": lambda v: v < at,
    }
    if isinstance(value, (int, float)) and math.isfinite(value) and inside[bound](value):
        assert number("width", value, **{bound: at}) == value
    else:
        with pytest.raises(ValueError, match=r"^width must be a finite number (>|>=|<|<=) -?\d"):
            number("width", value, **{bound: at})


@given(st.one_of(numbers, st.booleans()), st.integers(-2, 3))
def test_count(value, least):
    """count returns whole numbers from `least` up and refuses all else, True included."""
    if type(value) is int and value >= least:
        assert count("n", value, least) == value
    else:
        with pytest.raises(ValueError, match=f"^n must be a whole number >= {least}"):
            count("n", value, least)


@pytest.mark.parametrize(
    "x",
    [[[1.0]], torch.ones(3), torch.ones(()), torch.ones(0, 2), torch.ones(2, 0), torch.ones(2, 2, dtype=torch.int64)],
    ids=lambda x: str(getattr(x, "shape", "list")),
)
def test_state_refuses(x):
    """A state is a non-empty floating-point tensor with at least two dimensions."""
    with pytest.raises(ValueError, match=r"^x_T must be a non-empty floating-point tensor of shape \(B, \*D\)"):
        state("x_T", x)


@given(shapes, st.integers(0, 2), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_state_names_the_sample(shape, i, value):
    """One value that is not finite is reported with the row it is in; without it the state is returned as it is."""
    x = torch.zeros(shape)
    assert state("x", x) is x
    x[i].view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"^x must be finite, but sample {i} is not"):
        state("x", x)


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=6), st.booleans())
def test_times(values, down):
    """times accepts the decreasing lists inside [0, T], and says between which two another fails."""
    values = sorted(values, reverse=True) if down else values
    ts = torch.tensor(values)
    if all(a > b for a, b in zip(values, values[1:])):
        out = times("ts", ts, 1.0)
        assert out.dtype == F64 and out.tolist() == values
    else:
        k = next(k for k, (a, b) in enumerate(zip(values, values[1:])) if not a > b)
        with pytest.raises(ValueError, match=rf"^ts must strictly decrease, but ts\[{k}\] = .* and ts\[{k + 1}\] = "):
            times("ts", ts, 1.0)


@pytest.mark.parametrize("bad", [[1.0, 0.0], torch.tensor([1, 0]), torch.ones(1), torch.tensor(1.0), torch.ones(2, 2)])
def test_times_refuses(bad):
    """Times are a 1-D floating-point tensor of two or more."""
    with pytest.raises(ValueError, match="^ts must be a 1-D floating-point tensor of at least 2 times"):
        times("ts", bad, 1.0)


@pytest.mark.parametrize("bad", [[1.001, 0.0], [1.0, -1e-9]])
def test_times_stay_inside(bad):
    """Neither end of a grid leaves [0, T]."""
    with pytest.raises(ValueError, match=r"^ts must lie in \[0, T\] = \[0, 1\]"):
        times("ts", torch.tensor(bad, dtype=F64), 1.0)
    assert times("ts", torch.tensor([bad[0], 0.1], dtype=F64), 1.1).tolist() == [bad[0], 0.1]


def test_times_refuses_nan():
    """A time that is not a number is neither before nor after another."""
    with pytest.raises(ValueError, match=r"ts\[1\] = 0.5 and ts\[2\] = nan"):
        times("ts", torch.tensor([1.0, 0.5, math.nan]), 1.0)


def test_counted():
    """Counted(f) is f, with the number of calls made."""
    f = Counted(VP().drift)
    assert f.nfe == 0
    x = torch.randn(2, 3)
    for n in (1, 2, 3):
        assert torch.equal(f(x, t=torch.tensor(0.3)), VP().drift(x, torch.tensor(0.3))) and f.nfe == n
