"""Starts of multistep methods, and their way to sigma = 0: the code that is widely used, orders, what is refused."""

import re

import pytest
import torch
from made import of_k_diffusion
from papers import F64, Problem, mixture, near, no_noise, normal, times
from test_declared_orders import check

from scoresde import EDM, VE, VP, Counted, RectifiedFlow, Reference, sample
from scoresde.reference import DATA, NOISE
from scoresde.steps import (
    DEIS,
    LMS,
    PNDM,
    InSigma,
    InTime,
    Line,
    Multistep,
    PseudoRungeKutta,
    Rising,
    Staged,
    Thirds,
)

CLEAN = torch.zeros(1, dtype=F64)


@pytest.mark.parametrize("end", [None, CLEAN], ids=["noise", "clean"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_lms_of_k_diffusion(k, end):
    """Its sample_lms, on noise levels in float64, with all nodes to sigma = 0."""
    sde, x = VP(), normal(5, 2)
    ts, law = times(sde), mixture(sde)
    ts = ts if end is None else torch.cat([ts, end])

    def model(y, level):
        t = sde.time(-level[0].log())
        return law.denoise(sde.alpha(t) * y, t)

    levels = sde.sigma(ts) / sde.alpha(ts)
    theirs = of_k_diffusion("sampling").sample_lms(model, x / sde.alpha(ts[0]), levels, order=k, disable=True)
    near(sample(sde.reverse(law, 0.0), x, ts, LMS(k), noise=no_noise), sde.alpha(ts[-1]) * theirs)


@pytest.mark.parametrize("end", [0.05, 0.0])
@pytest.mark.parametrize("n", [4, 9])
@pytest.mark.parametrize("runge_kutta", [True, False])
def test_pndm_of_diffusers(runge_kutta, n, end):
    """The loop of its PNDMScheduler over every other of 2n + 1 times, whose alphas are ours in float64: 12 calls for
    the first three intervals, or two for the first.
    """
    diffusers, sde, x = pytest.importorskip("diffusers"), VP(), normal(5, 2)
    u, law = torch.linspace(0.9, end, 2 * n + 1, dtype=F64), Counted(mixture(sde))
    its = diffusers.PNDMScheduler(num_train_timesteps=2 * n + 1, skip_prk_steps=not runge_kutta, steps_offset=2)
    its.alphas_cumprod, p, y = sde.alpha(u).flip(0) ** 2, Problem(sde, mixture(sde)), x
    its.set_timesteps(n)
    for t in its.timesteps:
        y = its.step(p.eps(y, u.flip(0)[t]), int(t), y).prev_sample
    near(sample(sde.reverse(law, 0.0), x, u[::2], PNDM(runge_kutta), noise=no_noise), y, 1e-11)
    assert law.nfe == len(its.timesteps) == n + (9 if runge_kutta else 1)


@pytest.mark.parametrize("sde", [VE(0.05, 20.0), RectifiedFlow(), EDM(T=30.0)], ids=lambda sde: type(sde).__name__)
def test_pseudo_runge_kutta_step(sde):
    """Liu et al. 2022, eq. 13, from t to s with the middle in t, phi(x, e, t, s) the step of DDIM."""
    p, x, (t, *_, s) = Problem(sde, mixture(sde)), normal(5, 2), times(sde)[2:5]
    m = (t + s) / 2

    def phi(e, s):
        return p.alpha(s) * ((x - p.sigma(t) * e) / p.alpha(t)) + p.sigma(s) * e

    e_1 = p.eps(x, t)
    e_2 = p.eps(phi(e_1, m), m)
    e_3 = p.eps(phi(e_2, m), m)
    e_4 = p.eps(phi(e_3, s), s)
    truth = phi((e_1 + 2 * e_2 + 2 * e_3 + e_4) / 6, s)
    near(sample(sde.reverse(p.score, 0.0), x, torch.stack([t, s]), PNDM()), truth)


def test_polynomials_go_through_to_clean_data():
    """Of eps = sigma^k on EDM the last interval is exact with k + 1 nodes, in sigma or in t, and not with k; one node
    is the denoised state.
    """
    sde, x = EDM(T=30.0), torch.zeros(1, 1, dtype=F64)
    ts = torch.tensor([7.0, 5.0, 4.0, 2.5, 0.0], dtype=F64)
    for k in (1, 2, 3):
        q = sde.reverse(lambda x, t, k=k: -(t ** (k - 1)) * torch.ones_like(x), 0.0)
        for n, interpolation in ((k, InSigma()), (k + 1, InSigma()), (k + 1, InTime())):
            step = Multistep(n, 0, NOISE, interpolation, startup=Rising(), through=True)
            last = sample(q, x, ts, step) - sample(q, x, ts[:-1], step)
            off = float((last + 2.5 ** (k + 1) / (k + 1)).abs())
            assert off < 1e-12 if n > k else off > 0.1
        near(sample(q, x + 1, ts[-2:], LMS(4)), q.denoise(x + 1, ts[-2]))


def test_orders():
    """As declared, on unequal steps of VP: those of the start and of the tableau, and no more; with weights of equal
    steps on steps that change gradually.
    """
    heun = Staged(Line(1.0, centred=True))
    for step, order in (
        (LMS(4), 2),
        (Multistep(3, 0, NOISE, InSigma(), startup=heun), 3),
        (Multistep(4, 0, NOISE, InSigma(), startup=heun), 3),
        (Multistep(4, 0, NOISE, InSigma(), startup=Staged(Thirds())), 3),
        (Multistep(4, 0, NOISE, InSigma(), startup=Staged(Thirds(), 2)), 4),
        (Multistep(4, 0, NOISE, InSigma(), startup=Staged(PseudoRungeKutta(), 3)), 3),
    ):
        check(step, order)
        assert step.order == order
    for step in (PNDM(), PNDM(False)):
        check(step, 2, "VP", True)
        assert step.order == 2


@pytest.mark.parametrize("step", [PNDM(), PNDM(False), LMS(3)], ids=["PNDM", "skipped", "LMS"])
def test_short_grids(step):
    """An interval to sigma = 0 is never one of those that a Runge-Kutta method takes, whose stages ask there."""
    sde, x, p = VP(), normal(3, 2), Problem(VP(), mixture(VP()))
    for n in (0, 1, 2, 3):
        ts = torch.cat([times(sde)[: n + 1], CLEAN])
        found = sample(sde.reverse(p.score, 0.0), x, ts, step, noise=no_noise)
        assert found.isfinite().all()
        if n == 0:
            near(found, p.x_0(x, ts[0]))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Staged(2), "tableau must be a value such as Thirds(), got 2"),
        (lambda: Staged(Thirds(), 0), "intervals must be a whole number >= 1, got 0"),
        (lambda: Multistep(2, 3, startup=Staged(Thirds())), "startup must not be Staged with a corrector, got"),
        (
            lambda: Multistep(2, analytic=True, startup=Staged(Thirds())),
            "analytic must be False with startup",
        ),
        (lambda: Multistep(2, through=True), "through must be False but for noise prediction in sigma/alpha or t, got"),
        (lambda: Multistep(2, 0, NOISE, through=True), "through must be False but for noise prediction in sigma/alpha"),
        (lambda: Multistep(2, 0, DATA, InSigma(), through=True), "through must be False but for noise prediction in"),
        (lambda: Multistep(2, 0, Reference(std=9.0), InTime(), through=True), "through must be False but for noise"),
        (lambda: Multistep(2, 0, NOISE, InTime(), through=1), "through must be a bool, got 1"),
    ],
)
def test_bad_values(make, said):
    """One clear error, naming the argument."""
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        make()


def test_they_need_the_flow():
    """A start by stages, and the way to sigma = 0 by noise prediction."""
    sde, x = VP(), normal(3, 2)
    p, ts = sde.reverse(mixture(sde), 0.5), times(sde)
    for step, grid in ((PNDM(), ts), (LMS(2), torch.cat([ts, CLEAN]))):
        with pytest.raises(ValueError, match="^an ODE step needs the probability flow, eta=0, got eta=0.5$"):
            sample(p, x, grid, step)
    assert sample(p, x, ts, LMS(2)).isfinite().all() and DEIS(3, Rising()).order == 2
