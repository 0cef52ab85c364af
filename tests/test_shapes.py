"""Coefficients broadcast over whole states, and arguments are refused by name."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scoresde.shapes as shapes_module
from scoresde import EDM, NCSN, SNR, VE, VP, Chain, Cosine, Counted, Tabulated
from scoresde.loss import Unbiased, UniformTime
from scoresde.model import LogSNR, Steps
from scoresde.nn import MLP, DDPMpp, UNet
from scoresde.process import TabulatedVE, geometric_sigmas, linear_betas
from scoresde.shapes import as_time, count, inside, like, number, place, state, times, wide
from scoresde.steps import ConsistentAnnealed, Constant

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


# precision


def test_half_times_and_states_are_lifted():
    """Times and states of half precision become float32 without loss; better ones stay what they are."""
    for half in (torch.float16, torch.bfloat16):
        t = torch.rand(5).to(half)
        for lifted in (as_time(t), wide("x", t)):
            assert lifted.dtype == torch.float32 and torch.equal(lifted.to(half), t)
    for x in (torch.rand(3), torch.rand(3, dtype=F64)):
        assert wide("x", x) is x


@pytest.mark.parametrize("t", [True, 1j, "now", None, torch.tensor(True), torch.tensor(1j), 10**400], ids=repr)
def test_as_time_refuses_what_is_no_number(t):
    """By name, whatever it is."""
    with pytest.raises(ValueError, match="^t must"):
        as_time(t)


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan, [0.5, 2.0], [0.5, math.nan]], ids=repr)
def test_inside(t):
    """A time outside [0, T] is named; one that rounding has carried over is not."""
    with pytest.raises(ValueError, match=r"^t must lie in \[0, T\] = \[0, 1\], got"):
        inside(torch.tensor(t), 1.0)
    for u in (0.0, 1.0, -1e-9, 1 + 1e-7):
        assert float(inside(u, 1.0)) == u
    assert inside(torch.empty(2, device="meta"), 1.0).is_meta  # is not looked at


def test_no_float64_goes_where_there_is_none(monkeypatch):
    """A device that knows no float64 gets float32, in one move; times and tables of processes too. Here torch's `meta`
    stands for such a device, which none of the machines that run these laws has.
    """
    monkeypatch.setattr(shapes_module, "WITHOUT_FLOAT64", {"meta"})
    t = torch.rand(3, dtype=F64)
    assert place(t, "meta").dtype == torch.float32 and place(t, "cpu") is t
    assert place(t.half(), "meta").dtype == torch.float16
    assert as_time(torch.ones(2, dtype=torch.int64, device="meta")).dtype == torch.float32
    assert UniformTime().draw(VP(), 4, device="meta").dtype == torch.float32
    for sde in (Tabulated(linear_betas(10)), TabulatedVE(geometric_sigmas(10))):
        u = torch.rand(3, device="meta")
        assert {sde.var(u).dtype, sde.f(u).dtype, sde.g2(u).dtype, sde.log_snr(u).dtype} == {torch.float32}


@pytest.mark.parametrize("value", [True, 1j, 10**400, -(10**400), "1", None, math.nan], ids=lambda v: repr(v)[:9])
def test_number_and_count_refuse(value):
    """What is no number, and whole numbers that no float holds, in one line that names the argument."""
    for check, word in ((number, "a finite number"), (count, "a whole number")):
        with pytest.raises(ValueError, match=f"^width must be {word}") as said:
            check("width", value)
        assert len(str(said.value)) < 200


def test_numbers_of_numpy_are_numbers():
    """Exactly."""
    assert number("x", np.float64(0.1)) == 0.1 and number("x", np.int64(3)) == 3.0
    assert count("n", np.int64(3)) == 3 and type(count("n", np.int64(3))) is int
    with pytest.raises(ValueError, match="^n must be a whole number >= 1 and <= 9"):
        count("n", 2**80)


BAD = [
    (VE, {"sigma_min": 1e-200}), (VE, {"sigma_max": 1e200}), (VP, {"beta_max": 1e300}), (EDM, {"T": 1e200}),
    (EDM, {"t_min": 1e-300}), (Cosine, {"s": 1e300}), (SNR, {"r": 1e300}), (NCSN, {"eps": math.nan}),
    (NCSN, {"eps": 1e200}), (NCSN, {"sigma_min": 1e-200}), (Constant, {"e": 1e200}), (Steps, {"shift": None}),
    (Steps, {"n": 2**70}), (Steps, {"n": 10.5}), (LogSNR, {"scale": "x"}), (LogSNR, {"scale": 1e200}),
    (ConsistentAnnealed, {"ratio": 1e200}), (Tabulated, {"betas": "x"}), (TabulatedVE, {"sigmas": [1e-200, 1.0]}),
    (TabulatedVE, {"sigmas": [[1.0]]}), (linear_betas, {"n": 10**12}), (geometric_sigmas, {"n": 10**30}),
    (Unbiased, {"weight": 1.0, "times": UniformTime()}), (Chain, {"sde": 1, "ts": torch.tensor([1.0, 0.5, 0.1])}),
    (MLP, {"shape": (2,), "depth": 10**8}), (MLP, {"shape": (2,), "width": 10**7}),
    (UNet, {"shape": (1, 4, 4), "blocks": 10**8}), (DDPMpp, {"shape": (1, 4, 4), "width": 10**5}),
]  # fmt: skip


@pytest.mark.parametrize(("make", "wrong"), BAD, ids=lambda v: getattr(v, "__name__", None) or str(v)[:25])
def test_values_check_their_fields(make, wrong):
    """Every value refuses by name what overflows when it is squared, what is no number, and sizes that none means."""
    with pytest.raises(ValueError, match=rf"{[*wrong][-1]}|{[*wrong][0]}"):
        make(**wrong)


def test_eta_is_bounded():
    """eta^2 is squared again in a drift."""
    with pytest.raises(ValueError, match="^eta must be a finite number >= 0 and <= 1000, got 1e\\+200"):
        VP().reverse(lambda x, t: -x, 1e200)


@given(st.integers(-5, 10**30), st.integers(1, 10**9))
def test_count_has_an_upper_bound(value, most):
    """A whole number beyond `most`, however large, is refused with both bounds."""
    if 1 <= value <= most:
        assert count("width", value, most=most) == value
    else:
        with pytest.raises(ValueError, match=r"^width must be a whole number >= 1 and <= [\d.e+]+, got -?\d+$"):
            count("width", value, most=most)
