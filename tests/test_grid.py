"""A grid decreases from T to its end, both exact, and is equally spaced in the variable that names it, or has equal
integrals of a density.
"""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from scoresde import EDM, VE, VP, Cosine, RectifiedFlow, Reference, SubVP, Tabulated, grid

F64 = torch.float64
SDES = [
    VP(),
    VP(0.0, 5.0),
    SubVP(),
    VE(),
    VE(0.2, 7.0),
    Cosine(),
    RectifiedFlow(),
    EDM(),
    Tabulated(torch.linspace(1e-4, 0.02, 1000, dtype=F64)),
]
every_sde = pytest.mark.parametrize("sde", SDES, ids=[f"{type(sde).__name__}{i}" for i, sde in enumerate(SDES)])


def noise_to_signal(sde, ts):
    """sigma/alpha."""
    return sde.sigma(ts) / sde.alpha(ts)


SPACED = {
    "uniform": (grid.uniform, lambda sde, ts: ts),
    "quadratic": (grid.quadratic, lambda sde, ts: ts.sqrt()),
    "log_snr": (grid.log_snr, lambda sde, ts: noise_to_signal(sde, ts).log()),
    "karras": (grid.karras, lambda sde, ts: noise_to_signal(sde, ts) ** (1 / 7)),
}


@every_sde
@pytest.mark.parametrize("kind", SPACED)
@pytest.mark.parametrize("end", [None, 0.1])
@pytest.mark.parametrize("n", [1, 2, 17])
def test_spacing(sde, kind, end, n):
    """n + 1 decreasing times in float64, the first T and the last `end` to the bit, equal steps in the variable."""
    make, variable = SPACED[kind]
    ts = make(sde, n, end)
    assert ts.shape == (n + 1,) and ts.dtype == F64
    assert float(ts[0]) == sde.T and float(ts[-1]) == (sde.t_min if end is None else end)
    assert (ts.diff() < 0).all()
    steps = variable(sde, ts).diff()
    torch.testing.assert_close(steps, steps.mean().expand(n), rtol=1e-8, atol=0)


@given(st.floats(1.0, 20.0), st.floats(0.01, 0.5), st.integers(1, 30))
def test_karras_rho(rho, end, n):
    """Equal steps in (sigma/alpha)^(1/rho) whatever rho is; for EDM it is Karras et al. 2022, eq. 5, as printed."""
    u = noise_to_signal(VP(), grid.karras(VP(), n, end, rho)) ** (1 / rho)
    torch.testing.assert_close(u.diff(), u.diff().mean().expand(n), rtol=1e-7, atol=0)
    i = torch.arange(n + 1, dtype=F64) / n
    eq5 = (80 ** (1 / rho) + i * (end ** (1 / rho) - 80 ** (1 / rho))) ** rho
    torch.testing.assert_close(grid.karras(EDM(), n, end, rho), eq5, rtol=1e-10, atol=0)


def test_karras_tends_to_log_snr():
    """log-SNR is the limit of large rho, with a difference of first order in 1/rho."""
    limit = grid.log_snr(VP(), 10)
    far, near = ((grid.karras(VP(), 10, rho=rho) - limit).abs().max() for rho in (1e3, 1e4))
    assert 0 < float(near) and float(far / near) == pytest.approx(10, rel=0.05)


@every_sde
@pytest.mark.parametrize("kind", SPACED)
def test_bad_arguments(sde, kind):
    """The number of steps is a whole number from 1, and the end a finite time in [0, T)."""
    make = SPACED[kind][0]
    for n in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="^n must"):
            make(sde, n)
    for end in (-1e-9, sde.T, 2 * sde.T, math.nan, math.inf, "0"):
        with pytest.raises(ValueError, match="^end must"):
            make(sde, 5, end)


@every_sde
def test_no_noise_at_the_end(sde):
    """A grid in log-SNR needs sigma(end) > 0; grids in t do not."""
    assert float(grid.uniform(sde, 5, 0.0)[-1]) == float(grid.quadratic(sde, 5, 0.0)[-1]) == 0
    for make in (grid.log_snr, grid.karras):
        if isinstance(sde, VE):
            assert float(make(sde, 5, 0.0)[-1]) == 0
        else:
            with pytest.raises(ValueError, match="^end must be a time with sigma > 0"):
                make(sde, 5, 0.0)


@given(st.one_of(st.floats(max_value=0), st.sampled_from([math.nan, -math.inf])))
def test_bad_rho(rho):
    """rho is positive."""
    with pytest.raises(ValueError, match="^rho must"):
        grid.karras(VP(), 5, rho=rho)


# a density of steps


def table(sde, end=None):
    """lambda at T and at the end."""
    return float(sde.log_snr(sde.T)), float(sde.log_snr(sde.t_min if end is None else end))


def between(ts, sde, density, kinks=()):
    """Integrals of density(lambda) from node to node, by adaptive quadrature."""
    lam = sde.log_snr(ts).tolist()
    parts = [[p for p in kinks if a < p < b] for a, b in zip(lam, lam[1:])]
    found = [quad(density, a, b, points=p or None, epsabs=1e-13, limit=200)[0] for a, b, p in zip(lam, lam[1:], parts)]
    return torch.tensor(found, dtype=F64)


@every_sde
@pytest.mark.parametrize(("start", "stop"), [(-0.2, 1.2), (0.2, 0.7)], ids=["beyond the ends", "inside"])
@pytest.mark.parametrize("K", [2, 6])
def test_equal_integrals(sde, start, stop, K):
    """The density, linear between its few values and constant beyond them, has one integral between any two nodes."""
    low, high = table(sde, 0.1)
    lam = low + (high - low) * torch.linspace(start, stop, K, dtype=F64) ** 3
    density = 10 ** (3 * torch.rand(K, generator=torch.Generator().manual_seed(K), dtype=F64))
    ts = grid.equal(sde, 7, lam, density, 0.1)
    assert ts.shape == (8,) and ts.dtype == F64 and (ts.diff() < 0).all()
    assert float(ts[0]) == sde.T and float(ts[-1]) == 0.1
    parts = between(ts, sde, lambda v: np.interp(v, lam.numpy(), density.numpy()), lam.tolist())
    torch.testing.assert_close(parts, parts.mean().expand(7), rtol=1e-8, atol=0)
    for scale in (1e-200, 1e-3, 1e200):
        torch.testing.assert_close(grid.equal(sde, 7, lam, scale * density, 0.1), ts, rtol=1e-12, atol=0)


@every_sde
@pytest.mark.parametrize("n", [1, 2, 13])
def test_a_constant_density(sde, n):
    """It is the grid in log-SNR, whatever its table."""
    low, high = table(sde)
    lam = low + (high - low) * torch.linspace(0, 1, 50, dtype=F64) ** 2
    ts = grid.equal(sde, n, lam, torch.full_like(lam, 3.0))
    torch.testing.assert_close(ts, grid.log_snr(sde, n), rtol=1e-12, atol=1e-12)
    assert float(ts[0]) == sde.T and float(ts[-1]) == sde.t_min


def test_a_steep_density():
    """Where it falls by twelve orders of magnitude between two values, nodes are still inside, in order, and equal."""
    low, high = table(VP())
    lam, density = torch.tensor([low, high], dtype=F64), torch.tensor([1.0, 1e-12], dtype=F64)
    ts = grid.equal(VP(), 50, lam, density)
    assert (ts.diff() < 0).all()
    u = (high - VP().log_snr(ts)) / (high - low)  # the integral from here to the end is u^2/2, but for 1e-12
    torch.testing.assert_close(u**2, torch.linspace(1, 0, 51, dtype=F64), rtol=0, atol=1e-10)


@every_sde
@pytest.mark.parametrize("std", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("end", [None, 0.1])
def test_reference(sde, std, end):
    """Equal integrals of sech(lambda + log std)^(1/2) + 0.1."""
    ts = grid.reference(sde, 9, end, Reference(std=std))
    assert float(ts[0]) == sde.T and float(ts[-1]) == (sde.t_min if end is None else end)
    parts = between(ts, sde, lambda v: 1 / math.sqrt(math.cosh(v + math.log(std))) + 0.1)
    torch.testing.assert_close(parts, parts.mean().expand(9), rtol=1e-4, atol=0)


def test_reference_is_for_half_a_deviation():
    """Unless another is given, wherever the mean is."""
    for mean in (0.0, 3.0, torch.tensor([-1.0, 2.0])):
        assert grid.reference(EDM(), 9).equal(grid.reference(EDM(), 9, around=Reference(mean, 0.5)))


# from a trajectory


@every_sde
def test_arcs_of_a_line(sde):
    """States linear in lambda, at whatever times they are known: the grid in log-SNR."""
    ts = grid.uniform(sde, 40)
    way = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]], dtype=F64)
    states = 5 + sde.log_snr(ts)[:, None, None] * way
    torch.testing.assert_close(grid.arc_length(sde, 11, ts, states), grid.log_snr(sde, 11), rtol=1e-8, atol=1e-10)


@every_sde
def test_arcs_are_equal(sde):
    """Of two samples, one of speed 1 and one that turns at exp(lambda/4): nodes have equal integrals of the root mean
    square of both speeds. Neither order nor shape of the samples matters.
    """
    ts = grid.log_snr(sde, 2000)
    lam = sde.log_snr(ts)
    turn = 4 * (lam / 4).exp()
    states = torch.stack([torch.stack([lam, 0 * lam], 1), torch.stack([turn.sin(), turn.cos()], 1)], 1)
    made = grid.arc_length(sde, 8, ts, states)
    parts = between(made, sde, lambda v: math.sqrt((1 + math.exp(v / 2)) / 4))
    torch.testing.assert_close(parts, parts.mean().expand(8), rtol=2e-3, atol=0)
    torch.testing.assert_close(grid.arc_length(sde, 8, ts, states.flip(1)[:, :, None]), made, rtol=1e-9, atol=1e-12)


def test_arcs_where_nothing_moves():
    """Where the states stand still the density is a thousandth of its mean, so that there are few steps."""
    sde = VE()
    ts = grid.log_snr(sde, 1000)
    low, high = table(sde)
    middle = (low + high) / 2
    states = (sde.log_snr(ts) - middle).clamp_min(0)[:, None, None]
    lam = sde.log_snr(grid.arc_length(sde, 20_000, ts, states))
    parts = (lam[lam < middle - 0.01].diff().mean(), lam[lam > middle + 0.01].diff().mean())
    assert float(parts[0] / parts[1]) == pytest.approx(1 / (1e-3 / 2), rel=0.01)  # where it moves it is twice the mean


@every_sde
@pytest.mark.parametrize("k", [2, 3, 5])
def test_curvature(sde, k):
    """Of states u^k, u = lambda - lambda_T + 1, in one dimension of two: a density u^((k-2)/3) and a fifth of its mean;
    the second coordinate, which is linear, changes nothing.
    """
    ts, (low, high) = grid.log_snr(sde, 4000), table(sde)
    u = sde.log_snr(ts) - low + 1
    power = (k - 2) / 3
    mean = ((high - low + 1) ** (power + 1) - 1) / (power + 1) / (high - low)
    made = grid.equal_curvature(sde, 9, ts, torch.stack([u**k, 100 * u], 1)[:, None])
    parts = between(made, sde, lambda v: (v - low + 1) ** power + mean / 5)
    torch.testing.assert_close(parts, parts.mean().expand(9), rtol=3e-3, atol=0)
    if k == 2:
        torch.testing.assert_close(sde.log_snr(made), sde.log_snr(grid.log_snr(sde, 9)), rtol=2e-3, atol=2e-3)


LAM, ONES, TS, X = torch.linspace(-4, 4, 9), torch.ones(9), grid.uniform(VP(), 8), torch.arange(18.0).view(9, 2) ** 2
BAD = {
    "table falls": (lambda: grid.equal(VP(), 5, LAM.flip(0), ONES), "lam must be an increasing table"),
    "table stands": (lambda: grid.equal(VP(), 5, 0 * LAM, ONES), "lam must be an increasing table"),
    "table of one": (lambda: grid.equal(VP(), 5, LAM[:1], ONES[:1]), "lam must be an increasing table"),
    "table in two": (lambda: grid.equal(VP(), 5, LAM[None], ONES[None]), "lam must be an increasing table"),
    "shorter": (lambda: grid.equal(VP(), 5, LAM, ONES[1:]), "lam must be an increasing table"),
    "no density": (lambda: grid.equal(VP(), 5, LAM, 0 * ONES), "lam must be an increasing table and density one"),
    "a hole": (lambda: grid.equal(VP(), 5, LAM, LAM.abs()), "lam must be an increasing table and density one"),
    "negative": (lambda: grid.equal(VP(), 5, LAM, -ONES), "lam must be an increasing table and density one"),
    "nan": (lambda: grid.equal(VP(), 5, LAM, ONES * math.nan), "lam must be an increasing table and density one"),
    "inf": (lambda: grid.equal(VP(), 5, LAM, ONES * math.inf), "lam must be an increasing table and density one"),
    "end": (lambda: grid.equal(VP(), 5, LAM, ONES, 0.0), "end must be a time with sigma > 0"),
    "late end": (lambda: grid.equal(VP(), 5, LAM, ONES, 1.0), "end must be a finite number"),
    "n": (lambda: grid.equal(VP(), 0, LAM, ONES), "n must be a whole number"),
    "reference, end": (lambda: grid.reference(VP(), 5, 0.0), "end must be a time with sigma > 0"),
    "reference, n": (lambda: grid.reference(VP(), 0), "n must be a whole number"),
    "reference, std": (lambda: grid.reference(VP(), 5, None, Reference(std=0.0)), "std must be a finite number > 0"),
    "reference, inf": (lambda: grid.reference(VP(), 5, None, Reference(std=math.inf)), "std must be a finite number"),
}  # fmt: skip
for name, make in (("arcs", grid.arc_length), ("curvature", grid.equal_curvature)):
    BAD |= {
        f"{name}, fewer states": (lambda make=make: make(VP(), 5, TS, X[1:]), "states must be"),
        f"{name}, no samples": (lambda make=make: make(VP(), 5, TS, X[:, 0]), "states must be"),
        f"{name}, two times": (lambda make=make: make(VP(), 5, TS[:2], X[:2]), "states must be"),
        f"{name}, times": (lambda make=make: make(VP(), 5, TS.flip(0), X), "ts must strictly decrease"),
        f"{name}, shape of times": (lambda make=make: make(VP(), 5, TS[None], X), "ts must be a 1-D"),
        f"{name}, late times": (lambda make=make: make(VP(), 5, 2 * TS, X), "ts must lie in"),
        f"{name}, no noise": (lambda make=make: make(VP(), 5, TS - TS[-1], X), "end must be a time with sigma > 0"),
        f"{name}, at rest": (lambda make=make: make(VP(), 5, TS, 0 * X + 1), "states must be finite and change"),
        f"{name}, nan": (lambda make=make: make(VP(), 5, TS, X * math.nan), "states must be finite and change"),
        f"{name}, end": (lambda make=make: make(VP(), 5, TS, X, 0.0), "end must be a time with sigma > 0"),
    }  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_densities_and_trajectories(case):
    """One line that names what is wrong."""
    make, said = BAD[case]
    with pytest.raises(ValueError, match=f"^{re.escape(said)}[^\\n]*$"):
        make()


@pytest.mark.parametrize("name", ["uniform", "quadratic", "log_snr", "karras", "reference"])
@pytest.mark.parametrize("n", [10_000_001, 2**70, 10**23])
def test_absurd_numbers_of_steps(name, n):
    """More steps than 1e7 are refused by name, before memory is taken."""
    with pytest.raises(ValueError, match=r"^n must be a whole number >= 1 and <= 10000000, got \d+$"):
        grid.usual()[name](VP(), n)


@pytest.mark.parametrize("rho", [1e-200, 0.049, 1.1e6, 1e200])
def test_rho_whose_powers_lose_their_digits(rho):
    """(sigma/alpha)^(1/rho) would overflow or be 1."""
    with pytest.raises(ValueError, match="^rho must"):
        grid.karras(VP(), 5, rho=rho)


@pytest.mark.parametrize("rho", [0.05, 1e6])
@pytest.mark.parametrize("sde", [VP(), EDM(), VE(1e-3, 1e7)], ids=repr)
def test_the_ends_of_rho(rho, sde):
    """At the ends of what is allowed the times still decrease, and are those of the formula to 1e-9 in lambda."""
    ts, u = grid.karras(sde, 6, rho=rho), torch.arange(7, dtype=F64) / 6
    low, high = (float(-sde.log_snr(t)) / rho for t in (sde.t_min, sde.T))
    want = rho * (high + torch.log1p(u * math.expm1(low - high)))[:-1]
    torch.testing.assert_close(-sde.log_snr(ts)[:-1], want, rtol=0, atol=1e-8)
    assert (ts.diff() < 0).all()
