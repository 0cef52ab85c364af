"""What is told of the solver's error beside any trace: all of it, whatever is known of the probes' own."""

import pytest
import torch

from scoresde import VP, iid, log_prob
from scoresde.likelihood import Adams, AsNeeded, Exact, Hadamard, Hutchinson, Quadrature, RungeKutta
from scoresde.ode import Dopri5

SDE = VP()
X = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def wavy(x, t):
    """The score of N(0, 1) in every dimension, and a wave in x and in the noise level: its Jacobian is diagonal, of
    which one product with signs gives the trace."""
    sigma = SDE.sigma(t).to(x).reshape(-1, *(1,) * (x.ndim - 1))
    wave = (10 * SDE.log_snr(t).to(x).reshape(sigma.shape) + 2 * x).sin()
    return -x + 0.1 * wave / sigma


def measured(method, trace):
    found = log_prob(SDE.reverse(wavy), X, how=Quadrature(method, trace), noise=iid(torch.Generator().manual_seed(1)))
    return found.log_p, found.solver_error


METHODS = [Adams(12), RungeKutta(2), Dopri5(1e-3, 1e-3), AsNeeded()]
SIGNS = [Hutchinson(1, fresh=False), Hutchinson(2), Hutchinson(3, fresh=False)]
UNTOLD = [Hutchinson(1), Hadamard(2), Hadamard(4)]


@pytest.mark.parametrize(
    ("method", "trace"),
    [
        *((method, trace) for method in METHODS for trace in SIGNS),
        *((method, trace) for method in METHODS[:3] for trace in UNTOLD),
    ],
    ids=repr,
)
def test_what_is_told_of_the_solver(method, trace):
    """The same as beside the exact trace where each estimate is exact: an error that is not known to be the probes' is
    the solver's.
    """
    want, told = measured(method, Exact())
    log_p, error = measured(method, trace)
    rounding = 1e-4 if isinstance(method, AsNeeded) else 1e-7
    torch.testing.assert_close(log_p, want, rtol=rounding, atol=rounding)
    torch.testing.assert_close(error, told, rtol=10 * rounding, atol=rounding)
    assert (told > 1e-3).all()


@pytest.mark.parametrize("trace", UNTOLD, ids=repr)
@pytest.mark.parametrize("method", [None, AsNeeded(0.1)], ids=repr)
def test_what_cannot_choose_is_refused(method, trace):
    """Before the network is asked; in few dimensions nothing is refined by default."""
    how = Quadrature(method, trace)
    with pytest.raises(ValueError, match=r"trace must tell its error at a node.*got H.*\(m=\d"):
        log_prob(SDE.reverse(lambda x, t: 1 / 0), X, how=how)
    if method is None:
        assert log_prob(SDE.reverse(lambda x, t: -x), X[:, :4], how=how).log_p.isfinite().all()
