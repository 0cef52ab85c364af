"""A grid decreases from T to its end, both exact, and is equally spaced in the variable that names it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import EDM, VE, VP, Cosine, RectifiedFlow, SubVP, Tabulated, grid

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
