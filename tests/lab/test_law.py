"""The law of what a sampler returns, against closed forms, recursions and samples."""

import math

import pytest
import torch

from scoresde import VE, VP, DPMSolverPP, Reference, grid, iid, sample
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.lab import LINE, exact_rows, law_of, law_path, tabulated
from scoresde.lab.exactly import KNOWN
from scoresde.ode import Heun
from scoresde.steps import (
    MALA,
    NCSN,
    SNR,
    Ancestral,
    ConsistentAnnealed,
    Constant,
    EulerMaruyama,
    Flow,
    GaussianReference,
    Langevin,
    ReverseDiffusion,
    SASolver,
)
from scoresde.steps.catalogue import METHODS, Known

F64 = torch.float64
POINT = Gaussian(torch.tensor([0.4], dtype=F64), 0.3)


@pytest.mark.parametrize("sde", [VP(), VE(0.05, 4.0)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("step", [Ancestral(), Ancestral(0.6), EulerMaruyama(), ReverseDiffusion()], ids=repr)
def test_gaussian_data_follow_the_affine_recursion(sde, step):
    """x' = a x + b score + c z with the score (alpha m - x)/v takes the mean and the variance where they are told."""
    ts = grid.log_snr(sde, 24)
    p, (m, C) = sde.reverse(POINT.diffuse(sde)), (0.4, 0.3)
    mean, var = 0.0, float(sde.var(torch.tensor(sde.T, dtype=F64)))
    for a, b, c, t in zip(*step.line(p, ts[:-1], ts[1:]), ts[:-1], strict=True):
        v = float(sde.alpha(t)) ** 2 * C + float(sde.var(t))
        mean, var = float(a) * mean + float(b) * (float(sde.alpha(t)) * m - mean) / v, (float(a - b / v)) ** 2 * var
        var += float(c) ** 2
    found = law_of(p, ts, step, n=256)
    assert found.mean == pytest.approx(mean, abs=1e-10) and found.var == pytest.approx(var, abs=1e-10)
    want = Gaussian(torch.tensor([mean], dtype=F64), var)
    true = want.log_prob(found.x[:, None])
    assert (found.log_p - true)[true > true.max() + math.log(1e-20)].abs().max() < 1e-9
    assert abs(found.mass - 1) < 1e-10


@pytest.mark.parametrize("step", [Ancestral(), DPMSolverPP(2), GaussianReference(Reference(0.1, 0.5))], ids=repr)
def test_flows_of_gaussian_data_are_affine_maps(step):
    """Steps with memory too: on Gaussian data the whole sampler is x -> a + b x, whose a and b two points tell."""
    sde = VP()
    ts, q = grid.log_snr(sde, 12), sde.reverse(POINT.diffuse(sde), eta=0)
    at = sample(q, torch.tensor([[0.0], [1.0]], dtype=F64), ts, step)[:, 0]
    found, var = law_of(q, ts, step, n=256), float(sde.var(torch.tensor(sde.T, dtype=F64)))
    assert found.mean == pytest.approx(float(at[0]), abs=1e-9)
    assert found.var == pytest.approx(float(at[1] - at[0]) ** 2 * var, abs=1e-9)


@pytest.mark.parametrize("step", [Ancestral(), Flow(Heun()), DPMSolverPP(2)], ids=repr)
@pytest.mark.parametrize("denoise", [False, True])
def test_flows_keep_the_order_of_points(step, denoise):
    """A point has as much mass below it at the end as at the beginning, wherever it goes: so by one step after another,
    and by all at once, as those with memory are taken.
    """
    sde = VP()
    ts, q = grid.log_snr(sde, 20), sde.reverse(LINE.diffuse(sde), eta=0)
    x = torch.linspace(-3.0, 3.0, 101, dtype=F64)[:, None]
    end = sample(q, x, ts, step)
    found = law_of(q, ts, step, denoise=denoise)
    mass = torch.special.ndtr(x[:, 0] / sde.sigma(torch.tensor(1.0, dtype=F64)))
    torch.testing.assert_close(found.cdf((q.denoise(end, ts[-1]) if denoise else end)[:, 0]), mass, rtol=0, atol=1e-8)
    assert abs(found.mass - 1) < 1e-9


def test_denoising_ends_the_chain():
    """E[x_0 | x_t] of Gaussian data is affine: the mean and the variance move as it says; where there is no noise left,
    nothing does.
    """
    sde, t = VP(), grid.log_snr(VP(), 12)
    p = sde.reverse(POINT.diffuse(sde))
    before, after = (law_of(p, t, Ancestral(), denoise=on, n=256) for on in (False, True))
    x = torch.tensor([[0.0], [1.0]], dtype=F64)
    a, b = p.denoise(x, t[-1])[:, 0].tolist()
    assert after.mean == pytest.approx(a + (b - a) * before.mean, abs=1e-10)
    assert after.var == pytest.approx((b - a) ** 2 * before.var, rel=1e-9)


def test_quantiles_invert_the_distribution():
    """In the tails and in the valley between two modes too."""
    law = tabulated(LINE, 512)
    u = torch.tensor([1e-12, 1e-6, 0.1, 0.5, 0.6999, 0.7001, 0.9, 1 - 1e-9], dtype=F64)
    torch.testing.assert_close(law.cdf(law.quantile(u)), u, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.2])
def test_unadjusted_langevin_has_a_law_of_its_own(share):
    """Steps e of Langevin dynamics on N(m, C) tend to N(m, C/(1 - e/(2C)))."""
    sde, t = VP(), torch.tensor([0.5], dtype=F64)
    C = float(POINT.marginal(sde, 0.5).moments[1]) ** 2
    step = Langevin(Constant(share * C), n=math.ceil(30 / share))
    found = law_of(sde.reverse(POINT.diffuse(sde)), torch.cat([t, t - 1e-12]), step, prior=POINT, n=128)
    assert found.var == pytest.approx(C / (1 - share / 2), rel=1e-9)


def test_metropolis_keeps_what_it_is_for():
    """The density of x_t stays as it is under MALA, for steps of any size; other densities come closer to it."""
    sde, t = VP(), torch.tensor([0.3, 0.3 - 1e-12], dtype=F64)
    p, true = sde.reverse(LINE.diffuse(sde)), LINE.marginal(sde, 0.3)
    other = Gaussian(torch.tensor([0.3], dtype=F64), 1.0)
    for e in (0.3, 3.0):
        step = MALA(NCSN(2 * e, 1.0), n=4)
        found = law_of(p, t, step, prior=true, n=512)
        density = true.log_prob(found.x[:, None]).exp()
        assert (found.log_p.exp() - density).abs().max() < 1e-9
        kept, before = law_of(p, t, step, prior=other, n=512), tabulated(other, 512)
        assert kept.distances(true)["kl"] < 0.9 * before.distances(true)["kl"]
        assert abs(kept.mass - 1) < 1e-3


def test_scores_alone_correct_most_of_the_bias():
    """MALA by scores keeps Gaussian data exactly; of a mixture its stationary law is off by the step with two scores,
    by less than unadjusted steps, and by the square of the step with three.
    """
    sde, t = VP(), torch.tensor([0.3, 0.3 - 1e-12], dtype=F64)

    def off(law, *steps):
        true = law.marginal(sde, 0.3)
        return law_of(sde.reverse(law.diffuse(sde)), t, *steps, prior=true, n=512).distances(true)["total_variation"]

    for k in (2, 3):
        assert off(POINT, MALA(NCSN(0.8, 1.0), 40, k)) < 1e-9
    law = GaussianMixture(torch.tensor([0.7, 0.3]), torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.04], [0.09]]))
    rules = {e: (NCSN(2 * e, 1.0), int(12 / e)) for e in (0.2, 0.1)}
    plain, two, three = (
        [off(law, kind(*rule)) for rule in rules.values()]
        for kind in (Langevin, lambda e, n: MALA(e, n, 2), lambda e, n: MALA(e, n, 3))
    )
    for found, order in ((plain, 1), (two, 1), (three, 2)):
        assert math.log2(found[0] / found[1]) == pytest.approx(order, abs=0.25)
    assert three[1] < two[1] / 10 < plain[1] / 15


def test_rejections_are_told_to_their_error():
    """Samples wait between two modes, where all proposals are rejected, in laws with narrow parts: on too few points
    those are missed, and so is the error.
    """
    sde = VP()
    (row,) = exact_rows(sde, [(METHODS["Predictor-corrector, MALA"], 50)])
    ts, x_0 = grid.log_snr(sde, 16), LINE.sample(KNOWN, torch.Generator().manual_seed(0))
    p = sde.reverse(LINE.diffuse(sde))
    steps = METHODS["Predictor-corrector, MALA"].steps(p, ts, Known(Reference.fit(x_0), x_0))
    fine = law_of(p, ts, *steps, n=2048).distances(LINE.marginal(sde, ts[-1]))
    for key, error in row["error"].items():
        assert abs(row[key] - fine[key]) < error < 5e-3 * fine[key]


def test_distances_in_closed_form():
    """KL both ways, total variation and Wasserstein-2 of two Gaussians of different mean and deviation."""
    (m, a), (k, b) = (0.2, 0.7), (0.5, 1.1)
    p, q = (Gaussian(torch.tensor([u], dtype=F64), v**2) for u, v in ((m, a), (k, b)))
    found = tabulated(q, 512).distances(p)
    kl = lambda m, a, k, b: math.log(b / a) + (a**2 + (m - k) ** 2) / (2 * b**2) - 0.5  # noqa: E731
    assert found["kl"] == pytest.approx(kl(m, a, k, b), abs=1e-10)
    assert found["reverse_kl"] == pytest.approx(kl(k, b, m, a), abs=1e-10)
    assert found["wasserstein2"] == pytest.approx(math.hypot(m - k, a - b), abs=1e-10)
    cdf = lambda x, m, s: 0.5 * math.erfc((m - x) / (s * math.sqrt(2)))  # noqa: E731
    A, B = 1 / b**2 - 1 / a**2, 2 * (m / a**2 - k / b**2)
    c = k**2 / b**2 - m**2 / a**2 - 2 * math.log(a / b)
    roots = [(-B + s * math.sqrt(B * B - 4 * A * c)) / (2 * A) for s in (1, -1)]
    tv = abs(sum(s * (cdf(x, m, a) - cdf(x, k, b)) for s, x in zip((1, -1), roots, strict=True)))
    assert found["total_variation"] == pytest.approx(tv, abs=1e-10)
    none = tabulated(p, 512).distances(p)
    assert max(none.values()) < 1e-9


@pytest.mark.parametrize("v", [0.0, 1.0])
def test_ddpm_converges_with_the_square_of_its_step(v):
    """KL falls with the square of the step and total variation with the step: weak order 1. Halving the points changes
    them by less than 1e-8.
    """
    sde = VP()
    p, found = sde.reverse(LINE.diffuse(sde)), []
    for n in (64, 128):
        ts = grid.log_snr(sde, n)
        law, true = law_of(p, ts, Ancestral(v)), LINE.marginal(sde, ts[-1])
        found.append(law.distances(true))
        errors = law.errors(true)
        assert max(errors.values()) < 1e-8
    for key, order in (("kl", 2), ("total_variation", 1)):
        assert math.log2(found[0][key] / found[1][key]) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(
    "steps",
    [(Ancestral(),), (Langevin(NCSN(0.2, 1.0), n=3),), (Langevin(NCSN(0.2, 1.0)), ConsistentAnnealed())],
    ids=["DDPM", "annealed Langevin", "predictor-corrector"],
)
def test_samples_have_the_law(steps):
    """The largest distance of the distribution of 40,000 samples is that of chance (Kolmogorov: 1.95 at 1 in 1000)."""
    sde, n = VE(0.05, 4.0), 40_000
    p, ts, noise = sde.reverse(LINE.diffuse(sde)), grid.log_snr(sde, 6), iid(torch.Generator().manual_seed(0))
    x = sample(p, sde.prior((n, 1), noise, F64), ts, *steps, noise=noise)[:, 0].sort()[0]
    off = (law_of(p, ts, *steps, n=512).cdf(x) - torch.arange(n) / n).abs().max()
    assert float(off) * math.sqrt(n) < 1.95


def test_what_is_no_chain_of_gaussian_kernels_is_refused():
    """By name, and before a wrong law is told."""
    sde = VP()
    p, q, ts = sde.reverse(LINE.diffuse(sde)), sde.reverse(LINE.diffuse(sde), eta=0), grid.log_snr(sde, 8)
    for steps, said in (
        ((Langevin(SNR()),), r"SNR.*does not enter linearly"),
        (
            (SASolver(),),
            r"^steps must each be a kernel of their own for eta > 0, got Multistep\(.* on eta = 1, which remembers "
            r"earlier states: take one that does not, such as Ancestral\(\), or eta = 0, or sample it$",
        ),
        ((DPMSolverPP(2),), "remembers earlier states"),
    ):
        with pytest.raises(ValueError, match=said):
            law_of(p, ts, *steps, n=64)
    with pytest.raises(
        ValueError, match=r"^steps must each .* got Multistep\(.*, or `law_of`, which tells the law at the"
    ):
        law_path(q, ts, DPMSolverPP(2))
    with pytest.raises(ValueError, match="change places on the flow by Multistep"):
        law_of(q, grid.log_snr(sde, 5), GaussianReference(Reference(0.0, 0.9)), n=64)
    with pytest.raises(ValueError, match=r"of shape \(1,\)"):
        law_of(p, ts, Ancestral(), prior=Gaussian(torch.zeros(2), 1.0))
    with pytest.raises(ValueError, match="ts must begin at T = 1 unless a prior is given"):
        law_of(p, ts[1:], Ancestral(), n=64)
    with pytest.raises(ValueError, match="n must"):
        law_of(p, ts, Ancestral(), n=10)
