"""A captured sampler is the sampler."""

import pytest
import torch

from scoresde import VP, Ancestral, DPMSolverPP, Langevin, exact, grid, sample
from scoresde.steps import captured

LAW = exact.Gaussian(torch.zeros(3), torch.tensor([0.5, 1.0, 2.0]))


def test_captured_flow_is_sample(device):
    """On the flow, for any start, also one that differs from that of the recording; the result is not overwritten."""
    sde = VP()
    q, ts = sde.reverse(LAW.to(device).diffuse(sde), eta=0), grid.log_snr(sde, 6)
    a, b = torch.randn(2, 5, 3, device=device)
    run = captured(q, a, ts, DPMSolverPP(2))
    first = run(b)
    torch.testing.assert_close(first, sample(q, b, ts, DPMSolverPP(2)))
    kept = first.clone()
    run(a)
    assert torch.equal(first, kept)


def test_captured_noise_is_new_each_time(device):
    """Two runs from one start differ, and have the moments of the marginal at the end."""
    sde, n = VP(), 4000
    p, ts = sde.reverse(LAW.to(device).diffuse(sde)), grid.log_snr(sde, 60)
    x = torch.randn(n, 3, device=device)
    run = captured(p, x, ts, Ancestral())
    y, z = run(x), run(x)
    assert (y - z).abs().mean() > 0.1
    var = torch.tensor([0.5, 1.0, 2.0], device=device) * sde.alpha(sde.t_min).float() ** 2 + sde.var(ts[-1]).float()
    for end in (y, z):
        assert ((end.var(0) / var - 1).abs() < 6 * (2 / n) ** 0.5 + 0.03).all()


def test_bad_input():
    """What `sample` refuses is refused before; and a state that is not like the one it was captured with."""
    sde = VP()
    q, ts = sde.reverse(LAW.diffuse(sde), eta=0), grid.log_snr(sde, 3)
    with pytest.raises(ValueError, match="ts must strictly decrease"):
        captured(q, torch.zeros(2, 3), ts.flip(0), Ancestral())
    with pytest.raises(ValueError, match="needs a process with eta > 0"):
        captured(q, torch.zeros(2, 3), ts, Langevin())
    run = captured(q, torch.zeros(2, 3), ts, Ancestral())
    for other in (torch.zeros(3, 3), torch.zeros(2, 3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="x must be like the state"):
            run(other)
