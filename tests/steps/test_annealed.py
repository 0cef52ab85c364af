"""Annealed Langevin dynamics and its relatives: consistent annealed sampling, MALA, energies, two-headed networks."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from scoresde import (
    EDM,
    NCSN,
    SNR,
    VE,
    VP,
    Ancestral,
    Counted,
    Epsilon,
    Karras,
    Langevin,
    Reference,
    ScoreModel,
    dsm,
    exact,
    grid,
    iid,
    loss,
    per_sample,
    sample,
)
from scoresde.model import Data, EnergyModel, TwoHeads, Velocity, clamped
from scoresde.steps import MALA, ConsistentAnnealed, Constant, LearnedVariance, ncsnv2_step

F64 = torch.float64
LAW = exact.GaussianMixture(torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.09, 0.04]))


def same(a, b, tol=1e-10):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


class Tape:
    def __init__(self, z):
        self.z, self.used = z, 0

    def __call__(self, x, t, s):
        self.used += 1
        return self.z[self.used - 1]


# consistent annealed sampling


@pytest.mark.parametrize("h", [0.5, 0.8, 1.0])
def test_consistent_annealed_sampling(h):
    """Jolicoeur-Martineau et al. 2021, Algorithm 2: x + eta s_i^2 score + beta s_{i+1} z with
    beta = sqrt(1 - (1 - eta)^2 gamma^2), gamma = s_i/s_{i+1}.
    """
    ve = VE(0.1, 10.0)
    score = lambda x, t: -torch.tanh(x / ve.sigma(t)) / ve.sigma(t)  # noqa: E731
    ts, z = torch.linspace(1, 0, 9, dtype=F64), torch.randn(8, 2, 3, dtype=F64)
    x = start = 10 * torch.randn(2, 3, dtype=F64)
    for k, (t, s) in enumerate(zip(ts, ts[1:])):
        gamma = ve.sigma(t) / ve.sigma(s)
        beta = (1 - (1 - h) ** 2 * gamma**2).sqrt()
        x = x + h * ve.var(t) * score(x, t) + beta * ve.sigma(s) * z[k]
    same(sample(ve.reverse(score), start, ts, ConsistentAnnealed(h), noise=Tape(z)), x)


@pytest.mark.parametrize("sde", [VP(), EDM(T=10.0)], ids=lambda s: type(s).__name__)
def test_consistent_annealed_sampling_ends(sde):
    """With the smallest h a step is DDIM, with h = 1 all noise is fresh; in between the level is sigma_s exactly."""
    score = lambda x, t: -torch.tanh(x + t)  # noqa: E731
    t, s = sde.T * torch.tensor(0.6, dtype=F64), sde.T * torch.tensor(0.4, dtype=F64)
    x, z = torch.randn(2, 4, 3, dtype=F64)
    p, q = sde.reverse(score), sde.reverse(score, eta=0)
    same(ConsistentAnnealed(ratio=1.0)(p, x, t, s, lambda *_: z), Ancestral()(q, x, t, s, None), 1e-7)
    same(ConsistentAnnealed(1.0)(p, x, t, s, lambda *_: z), sde.alpha(s) * p.denoise(x, t) + sde.sigma(s) * z)
    point = sde.reverse(lambda x, t: -x / sde.var(t))  # the score of data at 0: x_s is then all noise
    one = ConsistentAnnealed()
    slope = one(point, torch.ones(1, 1, dtype=F64), t, s, lambda *_: torch.zeros(1, 1, dtype=F64))
    fresh = one(point, torch.zeros(1, 1, dtype=F64), t, s, lambda *_: torch.ones(1, 1, dtype=F64))
    same(slope**2 * sde.var(t) + fresh**2, sde.var(s).view(1, 1))


def test_too_small_h_raises_before_work():
    """An h below 1 - sigma_s/sigma_t cannot leave the noise of the next level, and the score is not asked."""
    with pytest.raises(ValueError, match="h must be at least"):
        sample(
            VE().reverse(None or (lambda x, t: 1 / 0)),
            torch.zeros(1, 1),
            grid.uniform(VE(), 4),
            ConsistentAnnealed(0.1),
        )


# stationary laws of Langevin dynamics


@pytest.mark.parametrize("sde", [VE(0.1, 10.0), VP()], ids=lambda s: type(s).__name__)
def test_stationary_bias_of_a_level(sde):
    """Unadjusted Langevin dynamics on N(0, C) is affine with slope 1 - e/C and noise 2e: its stationary variance is
    C/(1 - e/(2C)), the fixed point of that recursion, which one step leaves as it is.
    """
    law = exact.Gaussian(torch.zeros(1, dtype=F64), 0.7)
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    for t in (0.2, 0.7):
        t = torch.tensor(t, dtype=F64)
        C, p = sde.alpha(t) ** 2 * 0.7 + sde.var(t), sde.reverse(law.diffuse(sde))
        for share in (0.01, 0.5, 1.5):
            step = Langevin(Constant(float(share * C)))
            slope, fresh = step(p, one, t, t, lambda *_: zero), step(p, zero, t, t, lambda *_: one)
            stationary = C / (1 - share / 2)
            same(slope**2 * stationary + fresh**2, stationary.view(1, 1), 1e-12)


@pytest.mark.parametrize(("ratio", "n"), [(1.1, 3), (1.5, 5), (2.0, 100)])
def test_ncsnv2_step(ratio, n):
    """Song & Ermon 2020, technique 4: the r it returns brings n Langevin steps on point data, from variance
    (ratio sigma)^2, closest to sigma^2 - measured by running the steps as affine maps, not by the formula.
    """
    ve = VE(0.5, 8.0)
    t, p = torch.tensor(0.3, dtype=F64), ve.reverse(lambda x, t: -x / ve.var(t))
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)

    def after(r):
        step = Langevin(NCSN(float(2 * r * 0.25), 0.5))
        slope, fresh = float(step(p, one, t, t, lambda *_: zero)), float(step(p, zero, t, t, lambda *_: one))
        var = ratio**2 * float(ve.var(t))
        for _ in range(n):
            var = slope**2 * var + fresh**2
        return var / float(ve.var(t))

    r = ncsnv2_step(ratio, n)
    best = minimize_scalar(after, bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-10})
    assert after(r) == pytest.approx(best.fun, rel=1e-9)
    assert after(r) >= 1 - 1e-12


# MALA


def test_mala_accepts_by_the_metropolis_ratio():
    """One step against the algorithm written out with log-densities of the proposal, decision by decision."""
    sde, t, e = VP(), torch.tensor(0.05, dtype=F64), 0.02
    score = LAW.diffuse(sde)
    x, g = LAW.sample(500, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    z, w = torch.randn(2, 500, 1, generator=g, dtype=F64)
    y = x + e * score(x, t) + math.sqrt(2 * e) * z
    log_q = lambda a, b: -((a - b - e * score(b, t)) ** 2).sum(1) / (4 * e)  # noqa: E731
    ratio = score.log_prob(y, t) + log_q(x, y) - score.log_prob(x, t) - log_q(y, x)
    u = torch.distributions.Normal(0, 1).cdf(w[:, 0])
    expected = torch.where((u < ratio.exp())[:, None], y, x)
    got = MALA(Constant(e))(sde.reverse(score), x, t, t, Tape(torch.stack([z, w])))
    same(got, expected)
    assert 0.02 < (got == x).double().mean() < 0.6


@pytest.mark.parametrize("k", [2, 3])
def test_mala_by_scores(k):
    """For Gaussian data both rules are exact: every decision is that by log_prob, from the same draws. A network is
    asked n + 1 or 2n + 1 times, and for no log_prob.
    """
    sde, t = VP(), torch.tensor(0.4, dtype=F64)
    law = exact.Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([0.5, 0.1]))
    x = torch.randn(500, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    p, noise = sde.reverse(law.diffuse(sde)), lambda: iid(torch.Generator().manual_seed(1))
    by_level, by_scores = (MALA(NCSN(0.5, 1.0), 5, how)(p, x, t, t, noise()) for how in (0, k))
    torch.testing.assert_close(by_scores, by_level, rtol=1e-10, atol=1e-10)
    score = Counted(lambda x, t: -x)
    MALA(NCSN(0.5, 1.0), 3, k)(sde.reverse(score), x, t, t, noise())
    assert score.nfe == {2: 4, 3: 7}[k]


def test_mala_leaves_the_law_as_it_is_where_langevin_does_not():
    """From exact samples, 30 large steps: MALA's moments stay within 4 standard errors, plain Langevin's do not."""
    sde, t, n = VP(), torch.tensor(0.02, dtype=F64), 20_000
    law, noise = LAW.diffuse(sde), iid(torch.Generator().manual_seed(1))
    x = law.sample(n, t, torch.Generator().manual_seed(0))
    p = sde.reverse(law)
    adjusted, plain = (step(p, x, t, t, noise) for step in (MALA(Constant(0.06), 30), Langevin(Constant(0.06), 30)))
    fresh = law.sample(400_000, t, torch.Generator().manual_seed(2))
    inner = lambda a: (a.abs() - 1).square()  # noqa: E731  (the width of the modes)
    for f in (lambda a: a, torch.square, inner, lambda a: (a > 0).double()):
        error = f(adjusted).mean() - f(fresh).mean()
        assert abs(error) < 4 * f(x).std() / math.sqrt(n) * math.sqrt(1 + n / 400_000)
    assert abs(inner(plain).mean() - inner(fresh).mean()) > 10 * inner(x).std() / math.sqrt(n)


def test_mala_rows_and_calls():
    """A sample decides for itself: any split of the batch gives the same rows. n + 1 calls of score and of log_prob."""
    sde, ts = VE(0.1, 3.0), grid.uniform(VE(0.1, 3.0), 3)
    x = torch.randn(9, 1, dtype=F64)
    whole = sample(sde.reverse(LAW.diffuse(sde)), x, ts, MALA(NCSN(0.004, 0.1), 3), noise=per_sample(range(9)))
    parts = [
        sample(sde.reverse(LAW.diffuse(sde)), x[a:b], ts, MALA(NCSN(0.004, 0.1), 3), noise=per_sample(range(a, b)))
        for a, b in ((0, 2), (2, 9))
    ]
    same(whole, torch.cat(parts), 1e-12)
    score = Counted(LAW.diffuse(sde))
    MALA(NCSN(), 3)(sde.reverse(score), x, ts[0], ts[0], iid(torch.Generator().manual_seed(0)))
    assert score.nfe == 8


# energies and two heads


class Net(nn.Module):
    """A smooth function of x and c with `outputs` values a dimension, or one a sample if 0."""

    def __init__(self, outputs):
        super().__init__()
        self.first, self.outputs = nn.Linear(4, 32), outputs
        self.last = nn.Linear(32, 3 * outputs or 1)

    def forward(self, x, c):
        h = torch.tanh(self.first(torch.cat([x, c[:, None]], 1)))
        return self.last(h) if self.outputs else self.last(h)[:, 0]


@pytest.mark.parametrize("predicts", [Epsilon(), Data(), Velocity(), Karras()], ids=repr)
def test_energy_is_the_integral_of_its_score(predicts):
    """score = grad log_prob by automatic differentiation, in every parametrisation, at () and (B,) times."""
    model = EnergyModel(Net(0).double(), VP(), predicts)
    x = torch.randn(5, 3, dtype=F64)
    for t in (torch.tensor(0.3, dtype=F64), torch.linspace(0.1, 0.9, 5, dtype=F64)):
        y = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.log_prob(y, t).sum(), y)
        with torch.no_grad():
            same(model(x, t), gradient, 1e-9)


def test_energy_learns_by_dsm():
    """dsm through the gradient brings an energy close to the optimum on Gaussian data, sum alpha^2 v/C."""
    v, sde = torch.tensor([0.5, 0.1, 1.0]), VP()
    model = EnergyModel(Net(0), sde, Karras(Reference(std=0.7)))
    optimizer, g = torch.optim.Adam(model.parameters(), 5e-3), torch.Generator().manual_seed(0)
    t = torch.full((512,), 0.3)
    C = sde.alpha(0.3) ** 2 * v + sde.var(0.3)
    best = float((sde.alpha(0.3) ** 2 * v / C).sum())
    losses = []
    for _ in range(500):
        off = dsm(model, v.sqrt() * torch.randn(512, 3, generator=g), t, loss.Simple(), noise=iid(g)).mean()
        optimizer.zero_grad()
        off.backward()
        optimizer.step()
        losses.append(float(off.detach()))
    assert sum(losses[:5]) / 5 > 1.1 * best
    assert sum(losses[-100:]) / 100 == pytest.approx(best, rel=0.04)


def test_two_heads_are_one_call():
    """`both` gives the score that the model is and v = (second half + 1)/2, by one call; LearnedVariance takes it."""
    model, x, t = TwoHeads(Net(2).double(), VP(), Karras()), torch.randn(4, 3, dtype=F64), torch.tensor(0.4, dtype=F64)
    calls = []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        score, v = model.both(x, t)
        assert len(calls) == 1
        same(score, model(x, t))
        u = x * Karras()(VP().alpha(t), VP().sigma(t))[2]
        raw = model.net(u, VP().log_snr(t).expand(4))
        same(2 * v - 1, raw[:, 3:])
        same(model.eps(x, t), ScoreModel(First(model.net), VP(), Karras()).eps(x, t))
    counted = Counted(lambda x, t: (model.both(x, t)[0], torch.full_like(x, 0.3)))
    z = torch.randn(40, 4, 3, dtype=F64)
    ts = grid.uniform(VP(), 5)
    with torch.no_grad():
        same(
            sample(VP().reverse(model), x, ts, LearnedVariance(counted), noise=Tape(z)),
            sample(VP().reverse(model), x, ts, Ancestral(0.3), noise=Tape(z)),
        )
    assert counted.nfe == 5


class First(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, c):
        return self.net(x, c)[:, :3]


def test_clamped_cuts_the_denoiser():
    """E[x_0 | x_t] of the clamped score is that of the score, cut; inside the bounds nothing changes."""
    sde, t, x = VP(), torch.tensor([0.1, 0.5, 0.9], dtype=F64), 3 * torch.randn(3, 4, dtype=F64)
    score = lambda x, t: -torch.sin(x)  # noqa: E731
    p, q = sde.reverse(score), sde.reverse(clamped(score, sde, -0.5, 0.4))
    same(q.denoise(x, t), p.denoise(x, t).clamp(-0.5, 0.4))
    same(sde.reverse(clamped(score, sde, -1e3, 1e3)).eps(x, t), p.eps(x, t))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: MALA(SNR()), "step_size"),
        (lambda: MALA(Constant(0.1), 0), "n must"),
        (lambda: MALA(Constant(0.1), by_scores=1), "by_scores must be 0, 2 or 3"),
        (lambda: ConsistentAnnealed(0.0), "h must"),
        (lambda: ConsistentAnnealed(1.1), "h must"),
        (lambda: ConsistentAnnealed(ratio=0.5), "ratio"),
        (lambda: ncsnv2_step(1.0, 5), "ratio"),
        (lambda: ncsnv2_step(2.0, 0), "n must"),
        (lambda: clamped(lambda x, t: x, VP(), 1.0, -1.0), "high"),
        (lambda: EnergyModel(Net(1), VP())(torch.zeros(2, 3), 0.5), "one number"),
        (lambda: sample(VP().reverse(lambda x, t: x), torch.zeros(2, 3), grid.uniform(VP(), 3), MALA()), "log_prob"),
        (
            lambda: sample(
                VP().reverse(lambda x, t: x, 0.5), torch.zeros(2, 3), grid.uniform(VP(), 3), ConsistentAnnealed()
            ),
            "eta",
        ),
    ],
)
def test_bad_input(make, word):
    """One clear line that names what is wrong."""
    with pytest.raises(ValueError, match=word) as error:
        make()
    assert "\n" not in str(error.value)


def test_mala_does_not_reject_nan_in_silence():
    """A score that is nan for one sample is named, where a proposal that is nan would never be accepted."""
    sde = VE(0.1, 10.0)
    exact_score = LAW.diffuse(sde)

    class Torn:
        def __call__(self, x, t):
            return exact_score(x, t) + torch.where(torch.arange(len(x)) == 2, math.nan, 0.0)[:, None]

        def log_prob(self, x, t):
            return exact_score.log_prob(x, t)

    x, ts = torch.randn(5, 1, dtype=F64), grid.uniform(sde, 3)
    with pytest.raises(RuntimeError, match="^sample 2 is not finite at t = "):
        sample(sde.reverse(Torn()), x, ts, MALA(NCSN(0.004, 0.1), 2))
