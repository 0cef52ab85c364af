"""The law of a sampler in the plane, against Gaussian data in closed form, products of lines, and samples."""

import math

import pytest
import torch

from scoresde import SNR, VE, VP, Ancestral, EulerMaruyama, Langevin, ReverseDiffusion, SASolver, grid, iid, sample
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.lab import Modes, PlaneLaw, gaussian_law_of, law_of, plane_law_of
from scoresde.steps import MALA, NCSN, Constant, LearnedVariance

F64 = torch.float64
PLANE = Gaussian(torch.tensor([0.4, -0.3], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64))
LINE = GaussianMixture(torch.tensor([0.7, 0.3]), torch.tensor([[-1.0], [1.0]], dtype=F64), torch.tensor([0.04, 0.06]))
SQUARE = GaussianMixture(
    torch.tensor([0.49, 0.21, 0.21, 0.09]),
    torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=F64),
    torch.tensor([[0.04, 0.04], [0.04, 0.06], [0.06, 0.04], [0.06, 0.06]]),
)
"""Two of that line, independent of each other."""


@pytest.mark.parametrize("sde", [VP(), VE(0.05, 5.0)], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize(
    "steps, eta",
    [
        ((Ancestral(0.5),), 1.0),
        ((EulerMaruyama(),), 1.0),
        ((Ancestral(),), 0.0),
        ((Langevin(NCSN(0.1, 1.0), 2), ReverseDiffusion()), 1.0),
    ],
    ids=str,
)
def test_it_is_the_closed_form_for_gaussian_data(sde, steps, eta):
    """Moments to eleven digits, of kernels and of flows, and divergences to the digits that have mass there."""
    p, ts = sde.reverse(PLANE.diffuse(sde), eta), grid.log_snr(sde, 8)
    found, want = plane_law_of(p, ts, *steps, n=128), gaussian_law_of(p, ts, *steps)
    assert found.mass == pytest.approx(1, abs=1e-10)
    torch.testing.assert_close(found.mean, want.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.covariance, want.covariance, rtol=0, atol=1e-9)
    truth = PLANE.marginal(sde, ts[-1])
    for key in ("kl", "reverse_kl"):
        assert found.distances(truth)[key] == pytest.approx(want.distances(truth)[key], abs=2e-5)


@pytest.mark.parametrize("step", [Ancestral(0.5), Ancestral(1.0), ReverseDiffusion()], ids=repr)
def test_independent_lines_have_the_sum_of_their_divergences(step):
    sde = VP()
    ts = grid.log_snr(sde, 16)
    one = law_of(sde.reverse(LINE.diffuse(sde)), ts, step).distances(LINE.marginal(sde, ts[-1]))
    found, truth = plane_law_of(sde.reverse(SQUARE.diffuse(sde)), ts, step, n=192), SQUARE.marginal(sde, ts[-1])
    told, errors = found.distances(truth), found.errors(truth)
    assert told["kl"] == pytest.approx(2 * one["kl"], rel=2e-3)
    assert told["reverse_kl"] == pytest.approx(2 * one["reverse_kl"], rel=1e-2)
    assert errors["total_variation"] < 1e-3 * told["total_variation"] + 1e-3


def test_it_is_the_law_of_samples():
    """Eight modes: the shares of squares of the plane, of 200,000 samples."""
    sde, law, n = VP(), Modes(8, 0.1).law(), 200_000
    ts, p = grid.log_snr(sde, 12), sde.reverse(law.diffuse(sde))
    found = plane_law_of(p, ts, Ancestral(), n=160)
    noise = iid(torch.Generator().manual_seed(0))
    x = sample(p, sde.prior((n, 2), noise, F64), ts, Ancestral(), noise=noise)
    cells = lambda at: ((at + 1.6) / 0.4).floor().clamp(0, 7).long() @ torch.tensor([8, 1])  # noqa: E731
    fine = PlaneLaw(found.low, found.high, found.p)
    count = torch.bincount(cells(x), minlength=64).double()
    # a cell of the grid may lie in two squares: those of the grid's points, shifted at random within their own cell
    h = (fine.high - fine.low) / (len(fine.p) - 1)
    shares = torch.zeros(64, dtype=F64)
    for seed in range(20):
        moved = fine.x + (torch.rand(fine.x.shape, generator=torch.Generator().manual_seed(seed), dtype=F64) - 0.5) * h
        shares += torch.bincount(cells(moved), fine.p.flatten() * fine.area, 64) / 20
    z = (count - n * shares) / (n * shares * (1 - shares) + 25).sqrt()
    assert z.abs().max() < 5 and float(found.mass) == pytest.approx(1, abs=1e-4)


def test_finer_grids_agree():
    """The error falls far when steps are halved; where the rectangle lacks the truth nothing is told."""
    sde = VP()
    ts, truth = grid.log_snr(sde, 12), SQUARE.marginal(sde, sde.t_min)
    p = sde.reverse(SQUARE.diffuse(sde))
    rough, fine = (plane_law_of(p, ts, Ancestral(1.0), n=n) for n in (96, 192))
    assert fine.errors(truth)["total_variation"] < rough.errors(truth)["total_variation"] / 4
    far = Gaussian(torch.full((2,), 30.0, dtype=F64), 0.1)
    assert math.isnan(fine.distances(far)["kl"])


def test_what_the_truth_has_elsewhere_counts():
    """Of a law that shares nothing with it the total variation is 1; of one with a mode beyond the rectangle, as much
    more as that mode weighs.
    """
    sde = VP()
    ts = grid.log_snr(sde, 12)
    law = Gaussian(torch.tensor([0.4, -0.3], dtype=F64), 0.3)
    found = plane_law_of(sde.reverse(law.diffuse(sde)), ts, Ancestral(1.0), n=96)
    far = Gaussian(torch.full((2,), 30.0, dtype=F64), 0.1)
    assert found.distances(far)["total_variation"] == pytest.approx(1, abs=1e-9)
    near = law.marginal(sde, ts[-1])
    half = GaussianMixture(torch.ones(2), torch.cat([near.means, far.means]), torch.tensor([near.diagonal[0, 0], 0.1]))
    told = found.distances(half)
    assert told["total_variation"] == pytest.approx(0.5, abs=1e-2)
    own = found.distances(near)["reverse_kl"]
    assert told["reverse_kl"] == pytest.approx(own + math.log(2), abs=1e-6) and math.isnan(told["kl"])


def test_a_truth_too_narrow_for_the_grid_is_refused():
    found = plane_law_of(VP().reverse(PLANE.diffuse(VP())), grid.log_snr(VP(), 4), Ancestral(), n=48)
    for shift in (0.0, 0.02):
        with pytest.raises(ValueError, match="n must be larger than 48"):
            found.distances(Gaussian(torch.full((2,), shift, dtype=F64), 1e-4))


P, TS = VP().reverse(PLANE.diffuse(VP())), grid.log_snr(VP(), 4)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"step": SASolver()}, r"^steps must each be a kernel of their own, got Multistep\(.*such as Ancestral\(\)"),
        (
            {"step": MALA(Constant(0.1))},
            r"^steps must each be a map with noise, got MALA\(.*: take Langevin, or sample",
        ),
        ({"step": Langevin(SNR(0.16))}, "depends on x|does not enter linearly"),
        ({"step": LearnedVariance(lambda x, t: (P.score(x, t), torch.sigmoid(x)))}, "depends on x"),
        ({"n": 8}, "n must be a whole number >= 32"),
        ({"prior": LINE}, r"prior must be a law of shape \(2,\)"),
        ({"p": VP().reverse(SQUARE.diffuse(VP()), 0.0), "ts": grid.log_snr(VP(), 16)}, "of the mass was lost"),
    ],
    ids=lambda v: v if isinstance(v, str) else next(iter(v)),
)
def test_what_cannot_be_told_is_refused_by_name(change, says):
    given = {"p": P, "ts": TS, "step": Ancestral(), "n": 64} | change
    with pytest.raises(ValueError, match=says):
        plane_law_of(given.pop("p"), given.pop("ts"), given.pop("step"), **given)


def test_a_truth_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="a law in the plane is wanted"):
        plane_law_of(P, TS, Ancestral(), n=48).distances(LINE)
