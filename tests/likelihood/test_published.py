"""Networks that others have trained, in ../shared/data of the repository: what is told of errors holds for them too."""

import pytest
import torch
from made import benchmark

from scoresde import Quadrature, iid, log_prob
from scoresde.likelihood import Adams, Hutchinson
from scoresde.ode import Dopri5


@pytest.fixture(scope="module")
def foreign(shared):
    """Their networks, and the images that they are of."""
    with benchmark("foreign") as loaded:
        yield loaded


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_published_networks_are_read_as_they_were_made(foreign, name):
    """The mean squared error of the noise at the last but one of its thousand steps is that of a trained network, 0.003
    to 0.004, and 0.016 in the middle, also between two steps.
    """
    model, x, g = foreign.published(name), foreign.images(name, 32), torch.Generator().manual_seed(0)
    for t, most in ((0.999, 0.0045), (0.501, 0.02), (0.5005, 0.02)):
        t = torch.tensor(t, dtype=torch.float64)
        x_t, z = model.sde.perturb(x, t, iid(g))
        assert float((model.eps(x_t, t) - z).square().mean()) < most


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_published_networks_within_the_budget(foreign, name):
    """With two probes that stay, the default is within the error that it tells of a solution at a tolerance of 1e-5 for
    three of four images and within twice that for all, whatever the machine, whose rounding moves short steps; the
    error is at most 0.02 bits/dim. 22 calls alone are off by more than 0.01 in the root mean square.
    """
    g = torch.Generator().manual_seed(0)
    model, x = foreign.published(name), foreign.GREY.dequantize(foreign.images(name, 4), iid(g))

    def value(method):
        how = Quadrature(method, Hutchinson(2, fresh=False))
        return log_prob(model.sde.reverse(model), x, how=how, noise=iid(torch.Generator().manual_seed(1)))

    truth, found, few = value(Dopri5(1e-5, 1e-5)), value(None), value(Adams())
    bit = 784 * torch.tensor(2.0).log()
    ratio = (found.log_p - truth.log_p).abs() / found.solver_error
    assert (ratio <= 1).sum() >= 3 and (ratio <= 2).all() and (found.solver_error / bit < 0.02).all()
    assert float(((few.log_p - truth.log_p) / bit).square().mean().sqrt()) > 0.01
