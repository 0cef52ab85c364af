"""Samplers on laws whose answer is known: measured orders, exact moments, independent rows, counted calls."""

import math
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from papers import Probe

from scoresde import (
    EDM,
    NCSN,
    SNR,
    VE,
    VP,
    Ancestral,
    Cosine,
    Counted,
    DPMSolverPP,
    EulerMaruyama,
    Flow,
    GaussianReference,
    Langevin,
    RectifiedFlow,
    Reference,
    ReverseDiffusion,
    ScoreModel,
    Step,
    SubVP,
    Tabulated,
    UniPC,
    exact,
    grid,
    per_sample,
    sample,
    trajectory,
)
from scoresde.brownian import Path
from scoresde.model import Velocity
from scoresde.nn import MLP, UNet
from scoresde.ode import RK4, Dopri5, Euler, Heun
from scoresde.steps import DEIS, RES, Churn, Constant, DPMSolver, EDMHeun

F64 = torch.float64
MIXTURE = exact.GaussianMixture.from_covariances(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[-1.0, 0.5], [1.0, -0.3]]),
    torch.tensor([[[0.4, 0.1], [0.1, 0.3]], [[0.3, -0.1], [-0.1, 0.5]]]),
)
MEAN = torch.tensor([0.7, -0.4], dtype=F64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=F64)
TABLE = torch.linspace(1e-3, 0.2, 50, dtype=F64)
SDES = [VP(), SubVP(), VE(0.05, 20.0), Cosine(), RectifiedFlow(), EDM(T=30.0), Tabulated(TABLE)]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)

# a process, the steps on it, and the calls of the score that they take on an interval (or, alone, on a visit of a time)
SAMPLERS = [
    (1.0, (EulerMaruyama(),), 1),
    (0.0, (EulerMaruyama(),), 1),
    (1.0, (ReverseDiffusion(),), 1),
    (0.3, (ReverseDiffusion(),), 1),
    (1.0, (Ancestral(),), 1),
    (0.7, (Ancestral(0.5),), 1),
    (1.0, (Ancestral(1.0),), 1),
    (0.0, (Ancestral(),), 1),
    (0.0, (Flow(Euler()),), 1),
    (0.0, (Flow(Heun()),), 2),
    (0.0, (Flow(RK4()),), 4),
    (1.0, (Langevin(Constant(1e-3)),), 1),
    (0.5, (Langevin(NCSN(1e-4, 0.05), n=3),), 3),
    (1.0, (Langevin(SNR(0.16), n=2),), 2),
    (1.0, (Langevin(SNR(0.16), n=2), ReverseDiffusion()), 3),
    (1.0, (Ancestral(), Langevin(SNR(0.1))), 2),
    (0.5, (Langevin(Constant(1e-3)), EulerMaruyama(), Langevin(SNR(0.1), n=2)), 4),
    (0.0, (Churn(Flow(Heun()), churn=4.0),), 2),
    (1.0, (Churn(Ancestral(), churn=3.0), Langevin(Constant(1e-3))), 2),
]
DOPRI = [(0.0, (Flow(Dopri5(1e-3, 1e-3)),), None), (0.0, (Churn(Flow(Dopri5(1e-3, 1e-3)), churn=2.5),), None)]


def name(sampler):
    return f"eta={sampler[0]:g}:" + "+".join(str(step) for step in sampler[1])


every_sampler = pytest.mark.parametrize("sampler", SAMPLERS + DOPRI, ids=name)
predictors = pytest.mark.parametrize("sampler", [s for s in SAMPLERS if any(step.moves for step in s[1])], ids=name)


class Tape:
    """Draws of one generator, made in float64 whatever the state is; `used` counts them."""

    def __init__(self, seed=0):
        self.generator, self.used = torch.Generator().manual_seed(seed), 0

    def __call__(self, x, t, s):
        self.used += 1
        return torch.randn(x.shape, generator=self.generator, dtype=F64).to(x)


def no_noise(x, t, s):
    raise AssertionError("noise was drawn")


def normal(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def short(sde, n, end=None):
    """A grid on which every SDE above is tame: equal steps in log-SNR down to sigma/alpha = 0.1."""
    return grid.log_snr(sde, n, float(sde.time(torch.tensor(-math.log(0.1), dtype=F64))) if end is None else end)


def slope(n, error):
    """p of the least-squares fit of error ~ n^-p."""
    x, y = -torch.tensor(n, dtype=F64).log(), torch.tensor(error, dtype=F64).log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


# orders of convergence


@cache
def flow_map(sde, end):
    """The probability flow of the mixture, a batch at T, and what the flow makes of it, by Dopri5."""
    q, x = sde.reverse(MIXTURE.diffuse(sde), eta=0), sde.sigma(sde.T) * normal(8, 2)
    return q, x, sample(q, x, torch.tensor([sde.T, end], dtype=F64), Flow(Dopri5(1e-11, 1e-11)))


@pytest.mark.parametrize(
    ("sde", "end"),
    [(VP(), 0.1), (VE(0.1, 5.0), 0.1), (RectifiedFlow(T=0.9), 0.1)],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize(
    ("step", "order", "ns"),
    [
        (Flow(Euler()), 1, (40, 80, 160)),
        (Ancestral(), 1, (40, 80, 160)),
        (EulerMaruyama(), 1, (40, 80, 160)),
        (ReverseDiffusion(), 1, (40, 80, 160)),
        (Flow(Heun()), 2, (30, 60, 120)),
        (Flow(RK4()), 4, (20, 40, 80)),
    ],
    ids=lambda v: str(v),
)
def test_order_on_the_probability_flow(sde, end, step, order, ns):
    """The error at the end of the flow of a mixture falls as h^order."""
    q, x, reference = flow_map(sde, end)
    errors = [float((sample(q, x, grid.uniform(sde, n, end), step) - reference).norm()) for n in ns]
    assert abs(slope(ns, errors) - order) < 0.15


def test_dopri5_error_follows_its_tolerance():
    """Ten times less tolerance, about ten times less error, and at the end the answer of 640 steps of RK4."""
    sde = VP()
    q, x = sde.reverse(MIXTURE.diffuse(sde), eta=0), normal(8, 2)
    reference = sample(q, x, grid.log_snr(sde, 640, 0.05), Flow(RK4()))
    ends, tols = torch.tensor([1.0, 0.05], dtype=F64), [10.0**-k for k in range(4, 11)]
    errors = [float((sample(q, x, ends, Flow(Dopri5(tol, tol))) - reference).norm()) for tol in tols]
    assert abs(slope([1 / tol for tol in tols], errors) - 1) < 0.25
    assert all(error < 20 * tol for error, tol in zip(errors, tols))


@pytest.mark.slow
def test_strong_order_on_a_brownian_path():
    """With additive noise EM has strong order 1 on one Brownian path, and the chains tend to its solution with order 1.

    EM's errors are differences of successive refinements over 128 paths; the 95 % interval of the slope over 8 seeds
    is inside 1 +- 0.25, away from the orders 1/2 and 3/2.
    """
    sde, ns, slopes = VP(0.1, 5.0), (32, 64, 128, 256), []
    p = sde.reverse(MIXTURE.diffuse(sde))
    for seed in range(8):
        path, x = Path(0.1, 1.0, (128, 2), seed), normal(128, 2, seed=seed)
        em, *chains = (
            [sample(p, x, grid.uniform(sde, n, 0.1), step, noise=path) for n in ns]
            for step in (EulerMaruyama(), Ancestral(0.5), ReverseDiffusion())
        )
        slopes.append(slope(ns[:-1], [float((a - b).norm()) for a, b in zip(em, em[1:])]))
        for chain in chains:
            assert abs(slope(ns, [float((a - b).norm()) for a, b in zip(chain, em)]) - 1) < 0.1
    fits = torch.tensor(slopes)
    half = 2.365 * float(fits.std()) / len(fits) ** 0.5
    assert 0.75 < float(fits.mean()) - half and float(fits.mean()) + half < 1.25


# affine probing: on Gaussian data a sampler is x_T, z_1, ..., z_K -> c + A x_T + sum B_k z_k


def probed(p, ts, steps, mean, cov):
    """Mean and covariance of what the sampler returns for x_T ~ N(mean, cov), by its response to unit vectors."""
    dry, d = Probe(), len(mean)
    sample(p, torch.zeros(1, d, dtype=F64), ts, *steps, noise=dry)
    x = torch.zeros(1 + (1 + dry.draws) * d, d, dtype=F64)
    x[1 : 1 + d] = torch.eye(d)
    y = sample(p, x, ts, *steps, noise=Probe())
    A, *B = (y[1:] - y[0]).view(-1, d, d).mT
    return y[0] + A @ mean, A @ cov @ A.T + sum(b @ b.T for b in B)


class Recursion:
    """Mean and covariance under x <- c_x x + c_s score(x, t) + sqrt(q) z for data N(MEAN, COV), in n intervals."""

    def __init__(self, sde, n, mean, cov):
        self.sde, self.n, self.mean, self.cov = sde, n, mean, cov

    def precision(self, t):
        return torch.linalg.inv(self.sde.alpha(t) ** 2 * COV + self.sde.var(t) * torch.eye(2, dtype=F64))

    def affine(self, A, b, q):
        self.mean, self.cov = A @ self.mean + b, A @ self.cov @ A.T + q * torch.eye(2, dtype=F64)

    def __call__(self, t, c_x, c_s, q):
        P = self.precision(t)
        self.affine(c_x * torch.eye(2, dtype=F64) - c_s * P, c_s * self.sde.alpha(t) * P @ MEAN, q)


def between(sde, t, s):
    """alpha_t/alpha_s and the variance of x_t | x_s."""
    a = sde.alpha(t) / sde.alpha(s)
    return a, sde.var(t) - a**2 * sde.var(s)


def euler_maruyama(r, t, s, eta):
    """Euler steps of dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw (Song et al. 2021, appendix D and eq. 13)."""
    f, g2, h = r.sde.f(t), r.sde.g2(t), t - s
    r(t, 1 - f * h, (1 + eta**2) / 2 * g2 * h, eta**2 * g2 * h)


def reverse_diffusion(r, t, s, eta):
    """Song et al. 2021, eq. 46: x_i + ((1 - a) x_i + G^2 score) + G z."""
    a, v = between(r.sde, t, s)
    r(t, 2 - a, (1 + eta**2) / 2 * v, eta**2 * v)


def ancestral(v):
    def step(r, t, s, eta):
        """Song, Meng & Ermon 2021, eq. 12 and 16 for any alpha and sigma; the variance between small and large."""
        a, large = between(r.sde, t, s)
        small = eta**2 * r.sde.var(s) / r.sde.var(t) * large
        keep = (r.sde.var(s) - small).clamp_min(0).sqrt()
        # alpha_s (x + var_t score)/alpha_t + keep (-sigma_t score)
        c_s = r.sde.var(t) / a - keep * r.sde.sigma(t)
        r(t, 1 / a, c_s, (small ** (1 - v) * (eta**2 * large) ** v) if r.sde.var(s) > 0 else 0.0)

    return step


def posterior(r, t, s, eta):
    """Ho et al. 2020, eq. 6 and 7 as Bayes' rule: N(x_t; a x_s, v) N(x_s; alpha_s x_0, var_s), x_0 = E[x_0 | x_t]."""
    a, v = between(r.sde, t, s)
    w = 1 / (1 / r.sde.var(s) + a**2 / v)
    to_x, to_x_0 = w * a / v, w * r.sde.alpha(s) / r.sde.var(s) / r.sde.alpha(t)
    r(t, to_x + to_x_0, to_x_0 * r.sde.var(t), w)


def langevin(e, n=1):
    def step(r, t, s, eta):
        """x + e score + sqrt(2 e) z, n times."""
        for _ in range(n):
            r(t, 1.0, e(r.sde, t), 2 * e(r.sde, t))

    return step


def churned(churn, then):
    def step(r, t, s, eta):
        """Karras et al. 2022, Algorithm 2, on y = x/alpha: sigma_hat = (1 + gamma) sigma, never beyond that of T, with
        gamma = min(S_churn/N, sqrt(2) - 1).
        """
        gamma = min(churn / r.n, math.sqrt(2) - 1)
        lam, last = r.sde.log_snr(t), r.sde.log_snr(r.sde.T)
        u = r.sde.time(torch.maximum(lam - math.log(1 + gamma), last)) if lam > last + 1e-9 else t
        a, v = between(r.sde, u, t)
        r(t, a, 0.0, v)
        then(r, u, s, eta)

    return step


AFFINE = {
    "em": (EulerMaruyama(), euler_maruyama),
    "reverse diffusion": (ReverseDiffusion(), reverse_diffusion),
    "small": (Ancestral(0.0), ancestral(0.0)),
    "middle": (Ancestral(0.5), ancestral(0.5)),
    "large": (Ancestral(1.0), ancestral(1.0)),
    "churn": (Churn(Ancestral(), 3.0), churned(3.0, ancestral(0.0))),
    "churn+em": (Churn(EulerMaruyama(), 1.2), churned(1.2, euler_maruyama)),
}
# with SNR the step size depends on |z| and |score|, so the map is not affine: test_theorems has its formula
CORRECT = {
    "constant": (Langevin(Constant(2e-3), n=2), langevin(lambda sde, t: 2e-3, n=2)),
    "ncsn": (Langevin(NCSN(1e-3, 0.1)), langevin(lambda sde, t: 1e-3 * sde.var(t) / 0.1**2 / 2)),
}


def check_moments(p, ts, steps, recursion, tol=1e-12):
    """The probed moments are those of the recursion, relative to the largest entry, from a law that is not p_t's."""
    r = Recursion(p.sde, len(ts) - 1, p.sde.alpha(ts[0]) * MEAN + 0.1, p.sde.var(ts[0]) * COV)
    mean, cov = probed(p, ts, steps, r.mean, r.cov)
    recursion(r)
    assert (mean - r.mean).abs().max() < tol * r.mean.abs().max()
    assert (cov - r.cov).abs().max() < tol * r.cov.abs().max()


def gaussian(sde, eta):
    return sde.reverse(exact.Gaussian(MEAN, COV).diffuse(sde), eta)


@every_sde
@pytest.mark.parametrize("n", [1, 12])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("method", AFFINE)
def test_moments_of_predictors(sde, method, eta, n):
    """Mean and covariance of the sampler are exactly those of the recursion of its paper, with no Monte Carlo."""
    step, paper = AFFINE[method]
    ts = short(sde, 12) if n > 1 else short(sde, 12)[5:7]

    def recursion(r):
        for t, s in zip(ts, ts[1:]):
            paper(r, t, s, eta)

    check_moments(gaussian(sde, eta), ts, (step,), recursion)


@every_sde
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("corrector", CORRECT)
@pytest.mark.parametrize("method", [None, "em", "small", "churn"])
@pytest.mark.parametrize("corrector_first", [True, False])
def test_moments_of_predictor_corrector(sde, method, corrector, eta, corrector_first):
    """The same for annealed Langevin dynamics and for both orders of predictor and corrector (at t, and then at s)."""
    (fix, fix_paper), ts = CORRECT[corrector], short(sde, 8)
    move, move_paper = AFFINE[method] if method else (None, None)

    def recursion(r):
        for t, s in zip(ts, ts[1:]) if method else zip(ts, ts):
            if corrector_first or not method:
                fix_paper(r, t, t, eta)
            if method:
                move_paper(r, t, s, eta)
            if method and not corrector_first:
                fix_paper(r, s, s, eta)

    steps = (fix,) if move is None else (fix, move) if corrector_first else (move, fix)
    check_moments(gaussian(sde, eta), ts, steps, recursion)


@every_sde
def test_ancestral_is_bayes(sde):
    """At eta=1 the step is the posterior of x_s | x_t, x_0, written as the product of two Gaussians."""
    ts = short(sde, 12)

    def recursion(r):
        for t, s in zip(ts, ts[1:]):
            posterior(r, t, s, 1.0)

    check_moments(gaussian(sde, 1.0), ts, (Ancestral(),), recursion, 1e-11)


@pytest.mark.parametrize("sde", [VP(), SubVP(), Cosine(), RectifiedFlow(), EDM(T=30.0), Tabulated(TABLE)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_last_hop_is_the_denoiser(sde, eta):
    """Ancestral to sigma_s = 0 is E[x_0 | x_t] for every eta, and draws no noise there."""
    p, x = gaussian(sde, eta), normal(3, 2)
    y = sample(p, x, torch.tensor([0.3 * sde.T, 0.0], dtype=F64), Ancestral(0.5), noise=no_noise)
    torch.testing.assert_close(y, exact.Gaussian(MEAN, COV).diffuse(sde).denoise(x, 0.3 * sde.T), rtol=1e-11, atol=0)


def test_moments_of_edm():
    """Karras et al. 2022, Algorithm 2 with Heun's method: x_hat = x + sqrt(t_hat^2 - t^2) z, then the trapezoidal rule.

    On N(m, C) the slope is d = (x - D)/t = t P (x - m) with P = (C + t^2)^-1.
    """
    sde, gamma = EDM(T=30.0), math.sqrt(2) - 1
    ts, eye = grid.karras(sde, 9, 0.1), torch.eye(2, dtype=F64)

    def recursion(r):
        for t, s in zip(ts, ts[1:]):
            u = t * (1 + gamma if 0.5 <= t < 30 and t <= 25 else 1)
            r(t, 1.0, 0.0, u**2 - t**2)
            G, H, h = u * r.precision(u), s * r.precision(s), s - u
            A = eye + h / 2 * (G + H @ (eye + h * G))
            r.affine(A, MEAN - A @ MEAN, 0.0)

    check_moments(gaussian(sde, 0.0), ts, (Churn(Flow(Heun()), 9 * gamma, low=0.5, high=25.0),), recursion)


@pytest.mark.parametrize("sde", [VP(0.1, 10.0), VE(0.3, 3.0)], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize(
    ("eta", "step"),
    [(1.0, EulerMaruyama()), (0.5, EulerMaruyama()), (1.0, ReverseDiffusion())]
    + [(1.0, Ancestral()), (0.5, Ancestral(0.5)), (1.0, Ancestral(1.0))],
    ids=str,
)
def test_moments_converge_to_the_data(sde, eta, step):
    """From the exact law at T, mean and covariance at the end tend to those of p_end, with order 1 in the step."""
    p, ns, end = gaussian(sde, eta), (32, 64, 128), 0.1
    law = lambda t: (sde.alpha(t) * MEAN, sde.alpha(t) ** 2 * COV + sde.var(t) * torch.eye(2, dtype=F64))  # noqa: E731
    found = [probed(p, grid.uniform(sde, n, end), (step,), *law(sde.T)) for n in ns]
    errors = [float((m - law(end)[0]).norm() + (c - law(end)[1]).norm()) for m, c in found]
    assert abs(slope(ns, errors) - 1) < 0.15
    assert errors[-1] < 0.05


@pytest.mark.parametrize("sde", [SubVP()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("step", [EulerMaruyama(), ReverseDiffusion(), Ancestral(), Flow(Euler())], ids=str)
def test_a_thousand_steps(sde, step):
    """A thousand steps of any one-call method on the flow of N(m, v I) end near where the exact flow does.

    The flow is affine and carries p_t along: it keeps (x - alpha_t m)/C_t with C_t^2 = alpha_t^2 v + sigma_t^2.
    """
    x, end = sde.sigma(sde.T) * normal(3, 2), short(sde, 1)[-1]
    C = lambda t: (0.5 * sde.alpha(t) ** 2 + sde.var(t)).sqrt()  # noqa: E731
    want = sde.alpha(end) * MEAN + C(end) / C(sde.T) * (x - sde.alpha(sde.T) * MEAN)
    q = sde.reverse(exact.Gaussian(MEAN, 0.5).diffuse(sde), eta=0)
    assert (sample(q, x, short(sde, 1000), step) - want).abs().max() < 0.05


# rows, shapes, types


def whole_and_parts(run, B):
    """run(a, b) samples rows a to b: the whole batch, and the same in 7 and the rest, and one by one."""
    whole = run(0, B)
    return whole, torch.cat([run(0, 7), run(7, B)]), torch.cat([run(i, i + 1) for i in range(B)])


@every_sampler
def test_rows_are_independent(sampler):
    """A batch of 64 is 64 batches of 1, and 7 + 57, with the exact score to 1e-12."""
    (eta, steps, calls), sde = sampler, VE(0.05, 20.0)
    p, x, seeds = sde.reverse(MIXTURE.diffuse(sde), eta), sde.sigma(sde.T) * normal(64, 2), per_sample(range(100, 164))
    ts = short(sde, 2 if calls else 1)
    whole, *parts = whole_and_parts(lambda a, b: sample(p, x[a:b], ts, *steps, noise=seeds.rows(a, b)), 64)
    for part in parts:
        torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12)
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def awake(net, seed=3):
    """The network with its zero-initialised layers drawn at random, so that it says something."""
    generator = torch.Generator().manual_seed(seed)
    for w in net.parameters():
        if not w.any():
            w.data.normal_(std=0.1, generator=generator)
    return net.requires_grad_(False)


@every_sampler
def test_rows_are_independent_with_a_network(sampler):
    """The same with a network in float32, whose own sums depend on the batch size by about 1e-6; an adaptive step may
    then be accepted here and refused there, which changes a sample by less than its tolerance, 1e-3.
    """
    (eta, steps, calls), sde = sampler, VP(0.1, 5.0)
    model = ScoreModel(awake(MLP((2,), width=16, depth=1)), sde, Velocity())
    p, x, seeds = sde.reverse(model, eta), normal(24, 2).float(), per_sample(range(24))
    ts = short(sde, 2 if calls else 1)
    whole, *parts = whole_and_parts(lambda a, b: sample(p, x[a:b], ts, *steps, noise=seeds.rows(a, b)), 24)
    assert whole.dtype == torch.float32
    for part in parts:
        torch.testing.assert_close(part, whole, rtol=3e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", [SAMPLERS[5], SAMPLERS[14]], ids=name)
def test_rows_are_independent_with_a_unet(sampler):
    """The same for images."""
    (eta, steps, _), sde = sampler, VP(0.1, 5.0)
    model = ScoreModel(awake(UNet((1, 5, 4), width=4, multipliers=(1, 2), blocks=1)), sde, Velocity())
    p, x, seeds = sde.reverse(model, eta), normal(16, 1, 5, 4).float(), per_sample(range(16))
    ts = short(sde, 3)
    whole, *parts = whole_and_parts(lambda a, b: sample(p, x[a:b], ts, *steps, noise=seeds.rows(a, b)), 16)
    for part in parts:
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)


@every_sde
@every_sampler
def test_every_sampler_on_every_sde(sde, sampler):
    """Series (B, C, L) and images (B, C, H, W) are sampled as their flattened rows are; float32 stays and agrees."""
    (eta, steps, _), ts, x = sampler, short(sde, 4), sde.sigma(sde.T) * normal(3, 12)
    means = torch.linspace(-1, 1, 24, dtype=F64).view(2, 12)

    def run(shape, dtype):
        law = exact.GaussianMixture(torch.ones(2), means.view(2, *shape), torch.tensor([0.3, 0.2]))
        p = sde.reverse(law.diffuse(sde), eta)
        return sample(p, x.to(dtype).view(3, *shape), ts, *steps, noise=Tape())

    rows = run((12,), F64)
    for shape in [(3, 4), (3, 2, 2)]:
        y = run(shape, F64)
        assert y.shape == (3, *shape) and y.dtype == F64
        torch.testing.assert_close(y.flatten(1), rows, rtol=1e-12, atol=1e-12)
    single = run((3, 2, 2), torch.float32)
    assert single.dtype == torch.float32
    near = 2e-2 if "Dopri5" in repr(steps) else 1e-3  # its tolerance a step is 1e-3, and steps differ with rounding
    torch.testing.assert_close(single.flatten(1).double(), rows, rtol=1e-3, atol=near * float(rows.abs().max()))


@every_sampler
def test_a_trajectory_is_the_visited_states(sampler):
    """trajectory yields x at ts[0], then after every interval (every visit, with no predictor); sample is its end.

    The state on the way is that of a sampler stopped there (of Churn at its largest gamma, which fewer intervals do not
    change), and none of them carries gradients.
    """
    (eta, steps, _), sde = sampler, VP()
    p, x, ts = sde.reverse(MIXTURE.diffuse(sde), eta), normal(3, 2).requires_grad_(), short(sde, 5)
    xs = list(trajectory(p, x, ts, *steps, noise=Tape()))
    assert len(xs) == 1 + (5 if any(step.moves for step in steps) else 6)
    assert torch.equal(xs[0], x) and not any(y.requires_grad for y in xs[1:])
    assert torch.equal(xs[-1], sample(p, x, ts, *steps, noise=Tape()))
    if any(step.moves for step in steps):
        assert torch.equal(xs[2], sample(p, x, ts[:3], *steps, noise=Tape()))


def test_start_is_called_once_a_trajectory():
    """A step with memory begins every trajectory afresh, and Churn starts the step inside it."""

    class Count(Step):
        def __init__(self):
            self.calls = 0

        def prepare(self, p, t, s):
            return Count()

        def __call__(self, p, x, t, s, noise):
            self.calls += 1
            return x + self.calls

    p, x, step = VP().reverse(MIXTURE.diffuse(VP())), torch.zeros(1, 2, dtype=F64), Count()
    for each in (step, Churn(step, churn=0)):
        for _ in range(2):
            assert sample(p, x, short(VP(), 4), each).tolist() == [[10.0, 10.0]]
    assert step.calls == 0


# calls and draws


@predictors
@pytest.mark.parametrize("n", [1, 5])
def test_nfe_of_predictors(sampler, n):
    """Counted(score).nfe is the method's number of calls an interval, and the number that a hook on the net saw."""
    check_nfe(sampler, n, n)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if not any(step.moves for step in s[1])], ids=name)
def test_nfe_of_annealed_langevin(sampler):
    """A corrector alone visits all n + 1 times of the grid."""
    check_nfe(sampler, 5, 6)


def check_nfe(sampler, n, visits):
    (eta, steps, calls), sde, seen = sampler, VP(), []
    net = MLP((2,), width=4, depth=1)
    net.register_forward_hook(lambda *_: seen.append(1))
    model = Counted(ScoreModel(net, sde))
    sample(sde.reverse(model, eta), normal(3, 2), short(sde, n), *steps)
    assert model.nfe == len(seen) == calls * visits


@pytest.mark.parametrize(("intervals", "steps"), [(1, 7), (8, 4)])
def test_nfe_of_dopri5(intervals, steps):
    """Six calls a step and one to start. On a vanishing drift it takes h/50 and, each five times the last, 4 steps;
    more where that is farther than 1.5 in lambda, of which VE has log(5000): 0.17, 0.85, and 5 steps for the rest.
    """
    sde, still = VE(), Counted(lambda x, t: 0 * x)
    x = normal(3, 2)
    y = sample(sde.reverse(still, eta=0), x, grid.uniform(sde, intervals), Flow(Dopri5()))
    assert torch.equal(x, y) and still.nfe == intervals * (1 + 6 * steps)


@pytest.mark.parametrize("step", [EulerMaruyama(), ReverseDiffusion(), Ancestral(0.5), Flow(Heun()), Churn(churn=0)])
@every_sde
def test_eta_zero_draws_no_noise(sde, step):
    """The probability flow is deterministic: no step on it asks for noise, and eta > 0 asks once an interval."""
    score = exact.Gaussian(MEAN, COV).diffuse(sde)
    sample(sde.reverse(score, 0.0), normal(3, 2), short(sde, 3), step, noise=no_noise)
    if not isinstance(step, (Flow, Churn)):
        tape = Tape()
        sample(sde.reverse(score, 0.1), normal(3, 2), short(sde, 3), step, noise=tape)
        assert tape.used == 3


# what is asked of the noise


@every_sde
def test_noise_is_told_its_interval(sde):
    """A predictor asks for the noise from t to s, a corrector at t, and Churn from t back to the noisier time."""
    asked, ts = [], short(sde, 2)

    def noise(x, t, s):
        asked.append((float(t), float(s)))
        return torch.zeros_like(x)

    p = gaussian(sde, 1.0)
    sample(p, normal(2, 2), ts, Langevin(Constant(1e-3)), Ancestral(), noise=noise)
    a, b, c = ts.tolist()
    assert asked == [(a, a), (a, b), (b, b), (b, c)]
    asked.clear()
    sample(p, normal(2, 2), ts[1:], Churn(Ancestral(), 0.25), noise=noise)
    (t, u), (again, s) = asked
    assert (t, again, s) == (b, u, c)
    assert float(sde.log_snr(t) - sde.log_snr(u)) == pytest.approx(math.log(1.25), rel=1e-9)


def test_churn_is_only_between_its_bounds():
    """Karras et al. 2022, Algorithm 2: gamma = S_churn/N acts where low <= sigma/alpha <= high, and never beyond T."""
    sde, ts = EDM(T=10.0), torch.tensor([10.0, 8.0, 3.0, 1.0, 0.2], dtype=F64)
    asked = []

    def noise(x, t, s):
        asked.append((float(t), float(s)))
        return torch.zeros_like(x)

    step = Churn(Flow(Euler()), churn=1.6, low=0.5, high=9.0)
    sample(gaussian(sde, 0.0), normal(2, 2), ts, step, noise=noise)
    assert asked == [(8.0, 10.0), (3.0, pytest.approx(4.2)), (1.0, pytest.approx(1.4))]


# the law of the samples


# not SNR: its step size depends on x and z, so that p_t is not stationary, and in 2 dimensions that is seen at any r
END_TO_END = [
    (VP(), 1.0, (EulerMaruyama(),), 500),
    (VP(), 1.0, (Ancestral(),), 300),
    (SubVP(), 0.7, (Ancestral(0.5),), 300),
    (RectifiedFlow(), 1.0, (Ancestral(1.0),), 300),
    (Cosine(), 1.0, (ReverseDiffusion(),), 500),
    (Tabulated(TABLE), 0.0, (Ancestral(),), 200),
    (EDM(T=40.0), 0.0, (Flow(Heun()),), 60),
    (VE(0.05, 40.0), 0.0, (Flow(RK4()),), 30),
    (VP(), 0.0, (Flow(Dopri5()),), 1),
    (EDM(T=40.0), 0.0, (Churn(Flow(Heun()), 18.0),), 60),
    (VE(0.05, 40.0), 1.0, (Langevin(Constant(1e-3)), ReverseDiffusion()), 300),
    (VP(), 1.0, (Ancestral(), Langevin(Constant(1e-3))), 300),
    (VE(0.05, 20.0), 1.0, (Langevin(NCSN(5e-4, 0.05), n=2),), 400),
]


@pytest.mark.slow
@pytest.mark.parametrize(("sde", "eta", "steps", "n"), END_TO_END, ids=lambda v: str(v) if isinstance(v, tuple) else "")
def test_samples_follow_the_law(sde, eta, steps, n):
    """With the exact score of a mixture the samples have its mode weights and its mean log-density, within 4.5 SE.

    The means of the two modes and their variances are checked as well: a sampler that is too cold or too hot moves
    the log-density by far more than its error.
    """
    weights, N = torch.tensor([0.25, 0.75], dtype=F64), 1000
    law = exact.GaussianMixture(weights, torch.tensor([[-2.0, 1.0], [2.0, 0.0]]), torch.tensor([0.15, 0.3]))
    end = float(sde.time(torch.tensor(-math.log(0.05), dtype=F64)))
    p = sde.reverse(law.diffuse(sde), eta)
    ts = grid.log_snr(sde, n, end)
    x = sample(p, sde.sigma(sde.T) * normal(N, 2, seed=11), ts, *steps, noise=Tape(12))
    p_end = law.diffuse(sde)
    first = ((x / sde.alpha(end))[:, 0] < 0).to(F64)
    assert abs(float(first.mean()) - 0.25) < 4.5 * (0.25 * 0.75 / N) ** 0.5
    truth = p_end.log_prob(p_end.sample(20_000, end, torch.Generator().manual_seed(5)), end)
    mine = p_end.log_prob(x, end)
    error = (truth.var() / N + truth.var() / len(truth)) ** 0.5
    assert abs(float(mine.mean() - truth.mean())) < 4.5 * float(error)


# what cannot be done


def counted():
    return Counted(MIXTURE.diffuse(VP()))


X, TS = torch.zeros(2, 2, dtype=F64), torch.tensor([1.0, 0.5, 0.1], dtype=F64)


@pytest.mark.parametrize(
    ("eta", "steps", "match"),
    [
        (1.0, (Flow(),), "eta"),
        (0.1, (Flow(Dopri5()),), "eta"),
        (1.0, (Churn(),), "eta"),
        (0.0, (Langevin(),), "eta"),
        (0.0, (Langevin(), Ancestral()), "eta"),
        (1.5, (Ancestral(),), "eta"),
        (1.0, (Ancestral(), EulerMaruyama()), "predictor"),
        (1.0, (Langevin(), Ancestral(), Churn(Ancestral())), "predictor"),
        (1.0, (), "steps"),
        (1.0, ("Ancestral",), "Step"),
        (1.0, (Ancestral,), "Step"),
        (1.0, ([Ancestral()],), "Step"),
    ],
)
def test_impossible_samplers(eta, steps, match):
    """A step on a process that it cannot follow says so before the score is called once."""
    score = counted()
    with pytest.raises(ValueError, match=match):
        sample(VP().reverse(score, eta), X, TS, *steps)
    assert score.nfe == 0


@pytest.mark.parametrize(
    ("ts", "match"),
    [
        (TS.flip(0), "decrease"),
        (torch.tensor([1.0, 0.5, 0.5], dtype=F64), r"ts\[1\] = 0.5"),
        (torch.tensor([1.0, math.nan], dtype=F64), "ts"),
        (torch.tensor([1.5, 0.5], dtype=F64), "T"),
        (torch.tensor([1.0, -0.5], dtype=F64), "T"),
        (torch.tensor([1.0], dtype=F64), "at least 2"),
        (torch.tensor([3, 2, 1]), "floating"),
        (torch.ones(2, 2, dtype=F64), "1-D"),
        ([1.0, 0.5], "list"),
        (None, "NoneType"),
    ],
)
@pytest.mark.parametrize("step", [EulerMaruyama(), Ancestral(), Langevin(), Flow()], ids=lambda s: type(s).__name__)
def test_impossible_times(ts, match, step):
    """Times that do not strictly decrease inside [0, T] raise, naming ts, before the score is called once."""
    score = counted()
    with pytest.raises(ValueError, match=match) as error:
        trajectory(VP().reverse(score, 1.0), X, ts, step)
    assert "ts" in str(error.value) and score.nfe == 0


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.tensor([[0.0, 1.0], [0.0, math.nan]]), "sample 1"),
        (torch.tensor([[math.inf, 1.0], [0.0, 0.0]]), "sample 0"),
        (torch.zeros(2, 2, dtype=torch.long), "int64"),
        (torch.zeros(2), r"\(2,\)"),
        (torch.zeros(0, 2), "non-empty"),
        ([[0.0, 0.0]], "list"),
        (None, "NoneType"),
    ],
)
def test_impossible_states(x, match):
    """A state that is no finite floating-point batch raises, naming x, and the sample if one is not finite."""
    score = counted()
    with pytest.raises(ValueError, match=match) as error:
        trajectory(VP().reverse(score), x, TS, Ancestral())
    assert "x must" in str(error.value) and score.nfe == 0


@pytest.mark.parametrize("p", [VP(), MIXTURE.diffuse(VP()), None, "vp"], ids=lambda p: type(p).__name__)
def test_impossible_processes(p):
    """Only a reverse process can be sampled."""
    with pytest.raises(ValueError, match="p must be a Reverse"):
        trajectory(p, X, TS, Ancestral())


@pytest.mark.parametrize("sde", [VP(), RectifiedFlow(), EDM(T=5.0)], ids=lambda sde: type(sde).__name__)
def test_no_score_at_sigma_zero(sde):
    """Where sigma = 0 there is no score: what would ask for it raises, and what does not ask gets there."""
    ts = torch.tensor([0.9 * sde.T, 0.5 * sde.T, 0.0], dtype=F64)
    flow, walk = sde.reverse(MIXTURE.diffuse(sde), 0.0), sde.reverse(MIXTURE.diffuse(sde))
    for method in (Heun(), RK4(), Dopri5()):
        for step in (Flow(method), Churn(Flow(method))):
            with pytest.raises(ValueError, match="singular"):
                sample(flow, X, ts, step)
    for steps in [(Langevin(),), (Langevin(Constant(1e-3)),), (Ancestral(), Langevin())]:
        with pytest.raises(ValueError, match="singular"):
            sample(walk, X, ts, *steps)
    before = sample(flow, X, ts[:2], Flow(Euler()))
    want = before - ts[1] * flow.drift(before, ts[1])
    torch.testing.assert_close(sample(flow, X, ts, Flow(Euler())), want, rtol=1e-12, atol=0)
    sample(walk, X, ts, Langevin(), Ancestral())


BAD = st.one_of(st.just(math.nan), st.just(math.inf), st.just(-math.inf), st.none(), st.just("1"))


def refuses(name, make, value):
    with pytest.raises(ValueError, match=name):
        make(value)


@given(st.one_of(BAD, st.floats(max_value=-1e-300)))
def test_negative_numbers_are_refused(value):
    """churn, low and eta are at least 0."""
    refuses("churn", lambda v: Churn(churn=v), value)
    refuses("low", lambda v: Churn(low=v), value)
    refuses("eta", lambda v: VP().reverse(MIXTURE.diffuse(VP()), v), value)


@given(st.one_of(BAD, st.floats(max_value=0)))
def test_step_sizes_are_positive(value):
    """e, eps, sigma_min and r are above 0."""
    refuses("e must", Constant, value)
    refuses("eps", lambda v: NCSN(eps=v), value)
    refuses("sigma_min", lambda v: NCSN(sigma_min=v), value)
    refuses("r must", SNR, value)


@given(st.one_of(BAD, st.floats(max_value=-1e-300), st.floats(min_value=math.nextafter(1, 2))))
def test_v_is_between_zero_and_one(value):
    """Fixed-small and fixed-large are the ends."""
    refuses("v must", Ancestral, value)


@given(st.one_of(BAD, st.integers(max_value=0), st.floats(), st.booleans()))
def test_n_is_a_whole_number(value):
    """A corrector takes at least one step."""
    refuses("n must", lambda v: Langevin(n=v), value)


@given(st.floats(0, 1e100), st.floats(0, 1e100))
def test_churn_bounds_are_ordered(a, b):
    """high is at least low."""
    low, high = sorted((a, b))
    assert Churn(low=low, high=high).high == high
    if low < high:
        refuses("high", lambda v: Churn(low=high, high=v), low)


@pytest.mark.parametrize("rule", [SNR, Constant, None, 0.16, "snr"], ids=str)
def test_step_size_is_a_rule(rule):
    """A number or a class is no rule."""
    refuses("step_size", Langevin, rule)


@pytest.mark.parametrize("step", [Langevin(), Flow, None, "flow", Heun()], ids=str)
def test_churn_needs_a_predictor(step):
    """A corrector, a class or a solver cannot pay for the churn."""
    refuses("step", Churn, step)


@pytest.mark.parametrize("step", [UniPC(2), DPMSolverPP(2), GaussianReference(Reference(std=0.7))], ids=str)
def test_churn_needs_one_step(step):
    """What remembers earlier intervals cannot begin them elsewhere; without churn it can."""
    refuses("step", Churn, step)
    assert Churn(step, churn=0).step is step


@pytest.mark.parametrize("end", [0.0, 0.01])
@pytest.mark.parametrize("step", [DPMSolver(2), DPMSolver(3), RES(2), DPMSolverPP(1), DEIS(1), EDMHeun()], ids=str)
def test_churn_of_exponential_steps(step, end):
    """From the noisier time the step is the one that it takes there alone, and it costs no more calls."""
    sde, ts = VP(), torch.tensor([0.8, 0.5, 0.2, end], dtype=F64)
    score = Counted(MIXTURE.diffuse(sde))
    q, x = sde.reverse(score, 0.0), normal(3, 2)
    got = sample(q, x, ts, Churn(step, 0.6, low=0.5), noise=per_sample(range(3)))
    calls, noise = score.nfe, per_sample(range(3))
    for t, s in zip(ts, ts[1:]):
        lam = sde.log_snr(t)
        if (-lam).exp() >= 0.5:
            u = sde.time(lam - math.log(1.2))
            a, v = sde.transition(u, t)
            x, t = a * x + v.sqrt() * noise(x, t, u), u
        score.nfe = 0
        x = sample(q, x, torch.stack([t, s]), step)
        calls -= score.nfe
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)
    assert calls == 0


@pytest.mark.parametrize("method", [Heun, None, "rk4", 4], ids=str)
def test_flow_needs_a_solver(method):
    """A class, a name or an order is no solver."""
    refuses("method", Flow, method)


@given(
    st.lists(st.floats(-0.5, 1.5), min_size=0, max_size=5),
    st.sampled_from([EulerMaruyama(), Ancestral(), ReverseDiffusion(), Langevin(Constant(1e-4))]),
)
def test_any_times(values, step):
    """Any list of times is either strictly decreasing inside [0, T], and sampled, or refused."""
    ts = torch.tensor(values, dtype=F64)
    good = len(ts) >= 2 and bool((ts.diff() < 0).all()) and ts[-1] >= 0.1 and ts[0] <= 1
    p = VP().reverse(MIXTURE.diffuse(VP()))
    if good:
        assert sample(p, X, ts, step).shape == X.shape
    elif len(ts) < 2 or not (ts.diff() < 0).all() or ts[-1] < 0 or ts[0] > 1 + 1e-6:
        refuses("ts", lambda v: trajectory(p, X, v, step), ts)


@pytest.mark.parametrize(
    ("eta", "steps", "end"),
    [
        (1.0, [Langevin(Constant(0.01)), Flow()], 0.1),
        (0.0, [Flow()], 0.0),
        (0.0, [Flow(Dopri5())], 0.0),
        (1.0, [ReverseDiffusion(), Langevin(Constant(0.01))], 0.0),
        (0.0, [Ancestral(), Langevin(Constant(0.01))], 0.1),
        (1.5, [Langevin(Constant(0.01)), Ancestral()], 0.1),
    ],
)
def test_impossible_steps_raise_before_work(eta, steps, end):
    """Where any step of the list cannot do what is asked at any of its times, the score is never called."""

    def score(x, t):
        raise AssertionError("called")

    ts = torch.tensor([1.0, 0.5, end], dtype=torch.float64)
    with pytest.raises(ValueError, match="sigma = 0|eta"):
        trajectory(VP().reverse(score, eta), torch.zeros(2, 3), ts, *steps)


class Fails:
    """A score that is right but for one sample below a time, where it is `value`."""

    def __init__(self, sde, row, below, value):
        self.law, self.row, self.below, self.value = MIXTURE.diffuse(sde), row, below, value

    def __call__(self, x, t):
        score = self.law(x, t)
        if float(t.max()) < self.below:
            score[self.row] = self.value
        return score


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("eta", "steps", "calls"), SAMPLERS)
def test_the_sample_that_goes_wrong_is_named(eta, steps, calls, value):
    """Every fixed-step sampler and corrector names the sample and the first time at which it is not finite, after its
    last state, whose other rows are those of a run in which nothing fails.
    """
    sde, x, ts = VP(), normal(4, 2), torch.linspace(1, 0.1, 10, dtype=F64)
    run = lambda score: trajectory(sde.reverse(score, eta), x, ts, *steps, noise=per_sample(range(4)))  # noqa: E731
    want, states = list(run(MIXTURE.diffuse(sde))), []
    with pytest.raises(RuntimeError, match=r"^sample 2 is not finite at t = 0\.\d+ and after$") as error:
        for state in run(Fails(sde, 2, 0.55, value)):
            states.append(state)
    first = next(i for i, state in enumerate(states) if not state.isfinite().all())
    times_ = ts if any(step.moves for step in steps) else torch.cat([ts[:1], ts])
    assert float(str(error.value).split()[8]) == pytest.approx(float(times_[first])) and len(states) == len(want)
    others = [0, 1, 3]
    torch.testing.assert_close(states[-1][others], want[-1][others], rtol=1e-9, atol=1e-9)
    with pytest.raises(RuntimeError, match="^sample 2 is not finite"):
        sample(sde.reverse(Fails(sde, 2, 0.55, value), eta), x, ts, *steps, noise=per_sample(range(4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("step", [Ancestral(), UniPC(3), Flow(Heun())], ids=repr)
def test_half_precision_is_carried_in_float32(step, dtype):
    """At sigma = 378, whose square no float16 holds, the end is that of the same start in float32, rounded once."""
    sde, law = VE(0.01, 378.0), exact.Gaussian(torch.zeros(2), torch.full((2,), 0.25))
    q, x, ts = sde.reverse(law.diffuse(sde), 0.0), (378 * normal(5, 2)).to(dtype), grid.karras(sde, 20)
    found = sample(q, x, ts, step)
    assert found.dtype == dtype and torch.equal(found, sample(q, x.float(), ts, step).to(dtype))
