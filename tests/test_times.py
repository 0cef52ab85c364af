"""Importance sampling of the likelihood weight: what it does to the mean and to the variance of a loss."""

import pytest
import torch

from scoresde import EDM, VE, VP, SubVP, dsm, exact, loss

F64 = torch.float64
V = torch.tensor([0.6, 0.1], dtype=F64)
LAW = exact.Gaussian(torch.zeros(2), V)
WEIGHT = loss.MaximumLikelihood()


def moments(sde, times):
    """int w L dt and int (w L)^2/p dt of the loss of the exact score, whose error in dimension i is N(0, r_i) with r =
    alpha^2 v/(alpha^2 v + sigma^2): E L = sum r, E L^2 = (sum r)^2 + 2 sum r^2.
    """
    ends = (torch.tensor(t, dtype=F64).clamp_min(1e-12).log() for t in (sde.t_min, sde.T))
    t = torch.linspace(*map(float, ends), 200_001, dtype=F64).exp().clamp(sde.t_min, sde.T)
    a2, s2 = sde.alpha(t)[:, None] ** 2, sde.var(t)[:, None]
    r, w, p = a2 * V / (a2 * V + s2), WEIGHT(sde, t), times.density(sde, t)
    square = r.sum(1) ** 2 + 2 * r.square().sum(1)
    return float(torch.trapezoid(w * r.sum(1), t)), float(torch.trapezoid(w**2 / p * square, t))


@pytest.mark.parametrize(
    ("sde", "gain"),
    [(VP(), 10), (SubVP(), 10), (EDM(T=30.0), 100), (VE(0.05, 20.0), 1)],
    ids=lambda v: type(v).__name__,
)
def test_mean_and_variance(sde, gain):
    """With t uniform in log-SNR in place of uniform the mean stays and the variance is that of the loss alone: of the
    closed form of both, each within 4.5 standard errors of 40,000 draws. It falls by the factor `gain` at least, but on
    VE, where log sigma is linear in t and both laws are one.
    """
    n, model, x_0 = 40_000, sde.reverse(LAW.diffuse(sde)), LAW.sample(40_000, torch.Generator().manual_seed(0))
    means, variances = [], []
    for times in (loss.UniformTime(), loss.UniformLogSNR()):
        mean, square = moments(sde, times)
        t = times.draw(sde, n, torch.Generator().manual_seed(1))
        found = dsm(model, x_0, t, loss.Unbiased(WEIGHT, times))
        for got, want in ((found, mean), (found.square(), square)):
            assert abs(float(got.mean()) - want) < 4.5 * float(got.std()) / n**0.5
        means.append(mean), variances.append(square - mean**2)
    assert means[0] == pytest.approx(means[1], rel=1e-9)
    assert variances[0] > 0.999 * gain * variances[1], variances
