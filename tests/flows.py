"""Flows that solvers are fitted to, noise that none has seen, and where it leads."""

import torch

from scoresde import Flow, iid, sample
from scoresde.exact import GaussianMixture
from scoresde.lab.problems import Modes
from scoresde.ode import Dopri5

F64 = torch.float64


def mixture():
    """Three clusters in 16 dimensions."""
    g = torch.Generator().manual_seed(5)
    weights, means = torch.tensor([0.2, 0.3, 0.5]), torch.randn(3, 16, generator=g, dtype=F64)
    return GaussianMixture(weights, means, torch.full((3,), 0.04))


LAWS = {"modes": Modes().law(), "mixture": mixture()}


def data(law, n=2000):
    return law.sample(n, torch.Generator().manual_seed(5))


def fresh(q, shape, n=128, seed=1234, dtype=F64):
    """Noise that no solver has seen."""
    return q.sde.prior((n, *shape), iid(torch.Generator().manual_seed(seed)), dtype)


def truth(q, x_T, tol=1e-10, ts=None):
    """Where the flow takes it, at the end or at the last of two times."""
    ts = torch.tensor([q.T, q.sde.t_min], dtype=F64) if ts is None else ts
    return sample(q, x_T, ts, Flow(Dopri5(tol, tol)))


def close(a, b, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
