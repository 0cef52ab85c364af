"""The law of a sampler for Gaussian data in any dimension, against recursions, closed forms and the line."""

import math

import pytest
import torch

from scoresde import VE, VP, DPMSolverPP, Reference, grid, iid, sample
from scoresde.data import Digits
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.lab import GaussianLaw, gaussian_law_of, law_of
from scoresde.ode import Dopri5, Heun
from scoresde.steps import (
    MALA,
    NCSN,
    SNR,
    Ancestral,
    Constant,
    EulerMaruyama,
    Flow,
    GaussianReference,
    Langevin,
    ReverseDiffusion,
    SASolver,
)

F64 = torch.float64
G = torch.Generator().manual_seed(0)
ROOT = torch.randn(4, 4, generator=G, dtype=F64)
COVARIANCE = ROOT @ ROOT.T / 8 + 0.05 * torch.eye(4, dtype=F64)
DATA = Gaussian(torch.randn(2, 2, generator=G, dtype=F64), COVARIANCE)
LINE = Gaussian(torch.tensor([0.4], dtype=F64), 0.3)


@pytest.mark.parametrize("step", [Ancestral(), Ancestral(0.6), EulerMaruyama(), ReverseDiffusion()], ids=repr)
def test_every_direction_is_a_line_of_its_own(step):
    """Along an eigenvector of the covariance, x' = a x + b score + c z is the recursion of a number."""
    sde = VP()
    ts = grid.log_snr(sde, 20)
    p = sde.reverse(DATA.diffuse(sde))
    values, vectors = torch.linalg.eigh(COVARIANCE)
    found = gaussian_law_of(p, ts, step)
    mean, var = torch.zeros(4, dtype=F64), sde.var(torch.tensor(sde.T, dtype=F64)).expand(4)
    m = DATA.means[0] @ vectors
    for a, b, c, t in zip(*step.line(p, ts[:-1], ts[1:]), ts[:-1], strict=True):
        v = sde.alpha(t) ** 2 * values + sde.var(t)
        mean, var = a * mean + b * (sde.alpha(t) * m - mean) / v, (a - b / v) ** 2 * var + c**2
    torch.testing.assert_close(found.mean.flatten() @ vectors, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(vectors.T @ found.covariance @ vectors, torch.diag(var), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("steps", "eta"),
    [
        ((Ancestral(),), 1),
        ((Langevin(NCSN(0.2, 1.0), n=2), ReverseDiffusion()), 1),
        ((Ancestral(),), 0),
        ((Flow(Heun()),), 0),
        ((DPMSolverPP(3),), 0),
        ((GaussianReference(Reference(0.1, 0.5)),), 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("denoise", [False, True])
def test_the_line_agrees(steps, eta, denoise):
    """In one dimension the moments are those of the density, by another method."""
    sde = VP()
    p, ts = sde.reverse(LINE.diffuse(sde), eta=eta), grid.log_snr(sde, 12)
    found, line = gaussian_law_of(p, ts, *steps, denoise=denoise), law_of(p, ts, *steps, denoise=denoise)
    assert float(found.mean) == pytest.approx(line.mean, abs=1e-9)
    assert float(found.covariance) == pytest.approx(line.var, abs=1e-9)
    ours, theirs = found.distances(LINE), line.distances(LINE)
    for key, value in ours.items():
        assert value == pytest.approx(theirs[key], rel=1e-7, abs=1e-8)


def test_unadjusted_langevin_has_a_law_of_its_own():
    """Steps e tend to C (I - e C^-1 / 2)^-1, in every direction."""
    sde, t = VP(), torch.tensor([0.5], dtype=F64)
    C = DATA.marginal(sde, 0.5).covariances[0]
    e = 0.8 * float(torch.linalg.eigvalsh(C)[0])
    p, start = sde.reverse(DATA.diffuse(sde)), Gaussian(DATA.marginal(sde, 0.5).means[0].view(2, 2), C)
    found = gaussian_law_of(p, torch.cat([t, t - 1e-12]), Langevin(Constant(e), n=400), prior=start)
    want = C @ torch.linalg.inv(torch.eye(4, dtype=F64) - e / 2 * torch.linalg.inv(C))
    torch.testing.assert_close(found.covariance, want, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.mean.flatten(), DATA.marginal(sde, 0.5).means[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("steps", [(SASolver(3, 3),), (DPMSolverPP(2),)], ids=repr)
def test_samples_of_steps_with_memory_have_the_law(steps):
    """Noise and memory together: the moments of 50,000 samples, within 5 standard errors."""
    sde, n, noise = VE(0.05, 4.0), 50_000, iid(torch.Generator().manual_seed(1))
    p, ts = sde.reverse(DATA.diffuse(sde)), grid.log_snr(sde, 8)
    x = sample(p, sde.prior((n, 2, 2), noise, F64), ts, *steps, noise=noise).flatten(1)
    found = gaussian_law_of(p, ts, *steps)
    C = found.covariance
    assert ((x.mean(0) - found.mean.flatten()).abs() < 5 * (C.diagonal() / n).sqrt()).all()
    spread = ((C.diagonal()[:, None] * C.diagonal() + C**2) / n).sqrt()
    assert ((torch.cov(x.T) - C).abs() < 5 * spread).all()


def test_distances_in_closed_form():
    """Of diagonal covariances they are sums over directions; small ones keep their digits."""
    off, a, b = torch.tensor([0.3, -0.1], dtype=F64), torch.tensor([0.5, 2.0], dtype=F64), torch.tensor([0.7, 1.5])
    found = GaussianLaw(off, torch.diag(b.double())).distances(Gaussian(torch.zeros(2), a))
    b = b.double()
    kl = lambda a, b: float((a / b - 1 - (a / b).log() + off**2 / b).sum() / 2)  # noqa: E731
    assert found["kl"] == pytest.approx(kl(a, b), rel=1e-12)
    assert found["reverse_kl"] == pytest.approx(kl(b, a), rel=1e-12)
    square = float((off**2 + (a.sqrt() - b.sqrt()) ** 2).sum())
    assert found["wasserstein2"] == pytest.approx(math.sqrt(square), rel=1e-10)
    near = GaussianLaw(torch.zeros(2, dtype=F64), torch.diag(a * (1 + 1e-8))).distances(Gaussian(torch.zeros(2), a))
    assert near["kl"] == pytest.approx(2 * 1e-16 / 4, rel=1e-6)


@pytest.mark.parametrize("step", [Ancestral(0.0), Ancestral(1.0), EulerMaruyama()], ids=repr)
def test_kl_of_the_digits_falls_with_the_square_of_the_step(step):
    """Weak order 1, for the covariance of real data in 64 dimensions."""
    law = Gaussian.fit(
        Digits().load().train + 0.1 * torch.randn(1438, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    )
    sde = VP()
    p, found = sde.reverse(law.diffuse(sde)), []
    for n in (400, 800):
        ts = grid.log_snr(sde, n)
        found.append(gaussian_law_of(p, ts, step).distances(law.marginal(sde, ts[-1]))["kl"])
    assert math.log2(found[0] / found[1]) == pytest.approx(2, abs=0.15)


def test_what_is_not_affine_is_refused():
    """By name: other data, rules that look at the noise or at x, Metropolis."""
    sde, ts = VP(), grid.log_snr(VP(), 6)
    p = sde.reverse(DATA.diffuse(sde))
    two = GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.1, 0.1]))
    for process, step, said in (
        (p, Langevin(SNR()), r"Langevin\(.*SNR.*is not affine"),
        (p, MALA(NCSN(0.2, 1.0)), "steps must be affine in x and their noise, got MALA"),
        (sde.reverse(two.diffuse(sde)), Ancestral(), "Ancestral.*is not affine"),
        (sde.reverse(DATA.diffuse(sde), eta=0), Flow(Dopri5(1e-3, 1e-3)), "Flow.*is not affine"),
        (sde.reverse(lambda x, t: -x), Ancestral(), "whose score knows the law"),
    ):
        with pytest.raises(ValueError, match=said):
            gaussian_law_of(process, ts, step)
    with pytest.raises(ValueError, match="Reverse"):
        gaussian_law_of(None, ts, Ancestral())
    with pytest.raises(ValueError, match="ts must begin at T"):
        gaussian_law_of(p, ts[1:], Ancestral())
    with pytest.raises(ValueError, match="prior must be a Gaussian of shape"):
        gaussian_law_of(p, ts, Ancestral(), prior=LINE)
    with pytest.raises(ValueError, match="truth must be a Gaussian of shape"):
        gaussian_law_of(p, ts, Ancestral()).distances(LINE)
