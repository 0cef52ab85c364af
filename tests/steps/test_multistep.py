"""The multistep solvers: their papers' formulas, exactness, the weights of a corrector, counted calls."""

import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from papers import (
    F64,
    LAMBDAS,
    MEAN,
    MIXTURE,
    SDES,
    SIZE,
    STD,
    Problem,
    Tape,
    around_gaussian,
    ddim,
    deis,
    dpm_solver_pp_2m,
    dpm_solver_pp_3m,
    gaussian,
    ipndm,
    ipndm_published,
    mixture,
    near,
    no_noise,
    normal,
    point,
    probed,
    sa_solver,
    sde_dpm_solver_pp,
    smooth,
    times,
    unipc,
)

from scoresde import (
    DDIM,
    EDM,
    VE,
    VP,
    Ancestral,
    Counted,
    DPMSolverPP,
    Flow,
    GaussianReference,
    Langevin,
    RectifiedFlow,
    Reference,
    SASolver,
    UniPC,
    exact,
    grid,
    per_sample,
    sample,
    trajectory,
)
from scoresde.ode import Dopri5
from scoresde.reference import DATA, NOISE
from scoresde.steps import (
    BH1,
    DEIS,
    IPNDM,
    Centred,
    Constant,
    EqualSteps,
    HalfBent,
    InLogSNR,
    InSigma,
    InTime,
    Multistep,
    Rising,
)
from scoresde.steps.catalogue import FLOWS, METHODS, Known

every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
REFERENCE = Reference(MEAN, STD)
SIZED = Reference(MEAN, STD, SIZE)
ORDERS, TAUS = range(1, 5), (0.0, 0.7, 1.0)

DATA_MEMBERS = {
    **{f"DPMSolverPP({k})": DPMSolverPP(k) for k in (1, 2, 3)},
    "DPMSolverPP(3, HalfBent())": DPMSolverPP(3, interpolation=HalfBent()),
    "DPMSolverPP(3, taper)": DPMSolverPP(3, taper=True),
    "Multistep(4)": Multistep(4),
    **{f"UniPC({k})": UniPC(k) for k in (1, 2, 3)},
    "UniPC(2, BH1())": UniPC(2, interpolation=BH1()),
    "UniPC(3, taper)": UniPC(3, True),
    **{f"SASolver({a}, {b})": SASolver(a, b) for a, b in ((1, 0), (2, 2), (3, 4), (4, 5))},
}
NOISE_MEMBERS = {
    **{f"DEIS({k})": DEIS(k) for k in ORDERS},
    **{f"IPNDM({k})": IPNDM(k) for k in ORDERS},
    **{f"IPNDM({k}, EqualSteps())": IPNDM(k, EqualSteps()) for k in ORDERS},
}
REFERENCE_MEMBERS = {
    "GaussianReference": GaussianReference(REFERENCE),
    "GaussianReference, sized": GaussianReference(SIZED),
    "asked at once": replace(GaussianReference(SIZED), analytic=False),
    "predictor 4": Multistep(4, 0, REFERENCE),
    "predictor 3, in time": Multistep(3, 0, SIZED, InTime()),
    "UniPC around": Multistep(3, 4, SIZED, Centred(), taper=True),
    "published weights": Multistep(3, 0, REFERENCE, EqualSteps()),
}
MEMBERS = {**DATA_MEMBERS, **NOISE_MEMBERS, **REFERENCE_MEMBERS}


def over(members):
    return pytest.mark.parametrize("step", members.values(), ids=members.keys())


# the papers' formulas

FORMULAS = {
    "DDIM": (0.0, DDIM(), ddim, {}),
    "DDIM 0.7": (0.7, DDIM(), ddim, {"eta": 0.7}),
    "DDIM 1": (1.0, DDIM(), ddim, {"eta": 1.0}),
    "DPMSolverPP(1)": (0.0, DPMSolverPP(1), ddim, {}),
    "DPMSolverPP(2)": (0.0, DPMSolverPP(2), dpm_solver_pp_2m, {}),
    "DPMSolverPP(3)": (0.0, DPMSolverPP(3), dpm_solver_pp_3m, {"halved": False}),
    "DPMSolverPP(3, HalfBent())": (0.0, DPMSolverPP(3, interpolation=HalfBent()), dpm_solver_pp_3m, {"halved": True}),
    **{f"SDE-DPMSolverPP({k})": (1.0, DPMSolverPP(k), sde_dpm_solver_pp, {"order": k}) for k in (1, 2)},
    **{f"UniPC({k})": (0.0, UniPC(k), unipc, {"order": k}) for k in (1, 2, 3)},
    **{f"UniPC({k}, BH1())": (0.0, UniPC(k, False, BH1()), unipc, {"order": k, "bh1": True}) for k in (1, 2, 3)},
    **{f"DEIS({k})": (0.0, DEIS(k), deis, {"order": k}) for k in ORDERS},
    **{f"DEIS({k}, Rising())": (0.0, DEIS(k, Rising()), deis, {"order": k, "rising": True}) for k in (3, 4)},
    **{f"IPNDM({k})": (0.0, IPNDM(k), ipndm, {"order": k}) for k in ORDERS},
    **{f"IPNDM({k}, EqualSteps())": (0.0, IPNDM(k, EqualSteps()), ipndm_published, {"order": k}) for k in ORDERS},
    **{
        f"SASolver({a}, {b}) {tau:g}": (tau, SASolver(a, b), sa_solver, {"tau": tau, "predictor": a, "corrector": b})
        for a, b in ((1, 0), (2, 0), (2, 2), (3, 4), (4, 3), (4, 5))
        for tau in TAUS
        if b or a < 3
    },
    **{
        f"GaussianReference {eta:g}": (
            eta,
            GaussianReference(REFERENCE),
            around_gaussian,
            {"predictor": 2, "corrector": 3, "eta": eta, "m": MEAN, "c": STD, "analytic": True},
        )
        for eta in TAUS
    },
}


@pytest.mark.parametrize("sde", [VP(), VE(0.05, 20.0), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name, sde):
    """The solver is what its paper says, on seven unequal steps."""
    (eta, step, paper, options), ts = FORMULAS[name], times(sde)
    score, x, z = mixture(sde), sde.sigma(ts[0]) * normal(5, 2), normal(7, 5, 2, seed=1)
    found = sample(sde.reverse(score, eta), x, ts, step, noise=Tape(z) if eta else no_noise)
    near(found, paper(Problem(sde, score), x, ts, z, **options))


@pytest.mark.parametrize("taper", [False, True])
@pytest.mark.parametrize("analytic", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_corrector_as_weights(eta, analytic, taper):
    """Predict, evaluate, correct from the corrected state with the interval's own noise is one weighted sum a step: for
    all predictors and correctors, on data prediction.
    """
    sde, ts = VP(), times(VP())[:7]
    score, x, z = mixture(sde), normal(4, 2), normal(6, 4, 2, seed=1)
    for k, m in itertools.product(ORDERS, (0, 2, 3, 4, 5)):
        if analytic and k == 4 and not m:
            continue  # an error: see below
        found = sample(sde.reverse(score, eta), x, ts, Multistep(k, m, analytic=analytic, taper=taper), noise=Tape(z))
        options = {"analytic": analytic, "taper": taper}
        near(found, around_gaussian(Problem(sde, score), x, ts, z, k, m, eta, **options))


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize(("k", "m"), [(1, 2), (2, 3), (3, 0), (3, 5), (4, 0), (4, 2)])
def test_corrector_as_weights_around_gaussian(k, m, eta):
    """The same around Gaussian data with a table of sizes."""
    sde, ts = VE(0.05, 20.0), times(VE(0.05, 20.0))
    score, x, z = mixture(sde), sde.sigma(ts[0]) * normal(4, 2), normal(7, 4, 2, seed=1)
    found = sample(sde.reverse(score, eta), x, ts, Multistep(k, m, SIZED, taper=True), noise=Tape(z))
    near(found, around_gaussian(Problem(sde, score), x, ts, z, k, m, eta, MEAN, STD, SIZE, taper=True))


DIFFUSERS = {
    **{f"dpmsolver++ {k}": (0.0, {"solver_order": k}, Multistep(k, 0, DATA, HalfBent())) for k in (1, 2, 3)},
    **{
        f"dpmsolver {k}": (
            0.0,
            {"solver_order": k, "algorithm_type": "dpmsolver"},
            Multistep(k, 0, NOISE, HalfBent()),
        )
        for k in (1, 2, 3)
    },
    **{
        f"sde-dpmsolver++ {k}": (1.0, {"solver_order": k, "algorithm_type": "sde-dpmsolver++"}, DPMSolverPP(k))
        for k in (1, 2)
    },
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", DIFFUSERS)
def test_widely_used_code(name):
    """The updates of diffusers' DPMSolverMultistepScheduler on noise levels in float64: its third order is HalfBent,
    of second order, with the orders rising at the start.
    """
    diffusers = pytest.importorskip("diffusers")
    (eta, options, step), sde = DIFFUSERS[name], VP()
    ts = times(sde)
    p, x, z = Problem(sde, mixture(sde)), normal(5, 2), normal(7, 5, 2, seed=1)
    its = diffusers.DPMSolverMultistepScheduler(**options, final_sigmas_type="sigma_min")
    its.sigmas, y, outputs = torch.tensor([p.sigma(t) / p.alpha(t) for t in ts], dtype=F64), x, []
    update = [
        lambda given, **rest: its.dpm_solver_first_order_update(given[-1], **rest),
        its.multistep_dpm_solver_second_order_update,
        its.multistep_dpm_solver_third_order_update,
    ]
    for i in range(7):
        its._step_index = i
        outputs.append(p.eps(y, ts[i]) if options.get("algorithm_type") == "dpmsolver" else p.x_0(y, ts[i]))
        y = update[min(options["solver_order"], i + 1) - 1](outputs, sample=y, noise=z[i])
    near(sample(sde.reverse(p.score, eta), x, ts, step, noise=Tape(z)), y)


ENDS = {
    **{
        f"dpmsolver++ {k}": ("DPMSolverMultistepScheduler", {"solver_order": k}, DPMSolverPP(k, True, HalfBent()))
        for k in (2, 3)
    },
    "sde-dpmsolver++ 2": (
        "DPMSolverMultistepScheduler",
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
        DPMSolverPP(2, taper=True),
    ),
    **{
        f"UniPC {k} {kind}{of}": (
            "UniPCMultistepScheduler",
            {"solver_order": k, "solver_type": kind, "predict_x0": not of},
            Multistep(k, k + 1, NOISE if of else DATA, interpolation, taper=True),
        )
        for k in (1, 2, 3)
        for kind, interpolation in (("bh1", BH1()), ("bh2", Centred()))
        for of in ("", " of noise")
    },
}


@pytest.mark.parametrize("n", [3, 7])
@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_widely_used_code(name, n):
    """The loop of diffusers to sigma = 0, with lower_order_final: the orders fall to 2 before the hop, which is of
    order 1. Its noise levels are ours, in float64, but the state is float32 in DPMSolverMultistep. (Its B(h) = h and
    its noise prediction are not finite there, and end one level before.)
    """
    diffusers = pytest.importorskip("diffusers")
    (scheduler, options, step), sde = ENDS[name], VP()
    finite = "bh1" in name or "noise" in name
    ts = times(sde)[-n - 1 :] if finite else torch.cat([times(sde)[-n:], torch.zeros(1, dtype=F64)])
    p, x, z = Problem(sde, mixture(sde)), normal(5, 2), normal(n, 5, 2, seed=1)
    its = getattr(diffusers, scheduler)(**options, final_sigmas_type="zero", lower_order_final=True)
    its.set_timesteps(n)
    its.sigmas, y = sde.sigma(ts) / sde.alpha(ts), x
    for i, t in enumerate(its.timesteps):
        noise = {"variance_noise": z[i]} if scheduler.startswith("DPM") else {}
        y = its.step(p.eps(y, ts[i]), t, y, **noise).prev_sample
    found = sample(sde.reverse(p.score, float(name[:3] == "sde")), x, ts, step, noise=Tape(z))
    near(found, y.to(F64), 1e-12 if "UniPC" in name else 2e-6)


# the same method by two names


@every_sde
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_first_order_is_ancestral(sde, eta):
    """One node is DDIM on the flow, by whatever prediction, and Ancestral, DDPM, on the reverse SDE."""
    ts, x, z = times(sde), sde.sigma(times(sde)[0]) * normal(4, 2), normal(7, 4, 2, seed=1)
    p = sde.reverse(mixture(sde), eta)
    truth = sample(p, x, ts, Ancestral(), noise=Tape(z))
    for step in (DPMSolverPP(1), SASolver(1, 0), *((DEIS(1), IPNDM(1), IPNDM(1, EqualSteps())) if not eta else ())):
        near(sample(p, x, ts, step, noise=Tape(z)), truth)


def test_time_that_is_noise():
    """On EDM t is sigma/alpha, so that DEIS is iPNDM there; on VP it is not."""
    for k in (2, 3, 4):
        for sde, same in ((EDM(T=30.0), True), (VP(), False)):
            ts, q = times(sde), sde.reverse(mixture(sde), 0.0)
            x = sde.sigma(ts[0]) * normal(4, 2)
            a, b = (sample(q, x, ts, step) for step in (DEIS(k), IPNDM(k)))
            assert (float((a - b).abs().max()) < 1e-12) == same


def test_equal_steps_of_noise():
    """On equal steps of sigma/alpha, and past the start, the weights are Adams and Bashforth's."""
    sde = EDM(T=30.0)
    ts, score = torch.linspace(3.0, 0.3, 10, dtype=F64), (lambda x, t: -(t**2) / t * torch.ones_like(x))  # eps = t^2
    for k in ORDERS:
        right, published = (
            list(trajectory(sde.reverse(score, 0.0), torch.zeros(1, 1, dtype=F64), ts, IPNDM(k, interpolation)))
            for interpolation in (InSigma(), EqualSteps())
        )
        for a, b in zip(itertools.pairwise(right[k:]), itertools.pairwise(published[k:])):
            near(a[1] - a[0], b[1] - b[0], 1e-11)


# interpolation


@given(
    st.lists(st.floats(0.05, 1.5), min_size=2, max_size=5),
    st.floats(-2.5, 0.0),
    st.sampled_from([InLogSNR(), InTime(), InSigma()]),
    st.sampled_from([DATA, NOISE, REFERENCE]),
    st.floats(0, 1.5),
)
def test_weights_integrate_polynomials(steps, start, interpolation, around, eta):
    """With k nodes, every polynomial of degree below k in the variable is integrated as at the points."""
    sde, lam = VP(), torch.tensor(start, dtype=F64) + torch.tensor([0.0, *steps], dtype=F64).cumsum(0)
    for k in range(1, len(steps) + 1):
        at, mass = around.masses(lam[-2:-1], lam[-1:], eta)
        nodes = lam[:-1].flip(0)[None, :k]
        w = interpolation(sde, nodes, at, mass)
        u, v = interpolation.u(sde, nodes) / interpolation.u(sde, lam[-1:]), interpolation.u(sde, at)
        v = v / interpolation.u(sde, lam[-1:])
        for degree in range(k):
            torch.testing.assert_close((w * u**degree).sum(1), (mass * v**degree).sum(1), rtol=1e-8, atol=1e-10)


@given(st.lists(st.floats(0.05, 1.5), min_size=4, max_size=4), st.sampled_from([(Centred(), 1.0), (HalfBent(), 0.5)]))
def test_centred_weights(steps, member):
    """A line is taken at the middle; a parabola m + D1 u + D2 u^2 about the newest node counts D2 whole, or by half
    where it is published so.
    """
    interpolation, part = member
    sde, lam = VP(), torch.tensor([0.0, *steps], dtype=F64).cumsum(0) - 2
    at, mass = DATA.masses(lam[-2:-1], lam[-1:], 0.0)
    nodes, whole = lam[:-1].flip(0)[None], mass.sum(1)
    close = {"rtol": 1e-9, "atol": 1e-10}
    w = interpolation(sde, nodes[:, :2], at, mass)
    torch.testing.assert_close(w.sum(1), whole, **close)
    torch.testing.assert_close((w * nodes[:, :2]).sum(1), whole * (lam[-1] + lam[-2]) / 2, **close)
    w, u, v = interpolation(sde, nodes[:, :3], at, mass), nodes[:, :3] - lam[-2], at - lam[-2]
    torch.testing.assert_close(w.sum(1), whole, **close)
    torch.testing.assert_close((w * u).sum(1), (mass * v).sum(1), **close)
    torch.testing.assert_close((w * u**2).sum(1), part * (mass * v**2).sum(1), **close)
    w = interpolation(sde, nodes[:, :4], at, mass)
    torch.testing.assert_close((w * (nodes[:, :4] - lam[-2]) ** 3).sum(1), (mass * v**3).sum(1), **close)


@given(st.floats(0.05, 1.5), st.floats(0.05, 3), st.floats(0, 1.5), st.sampled_from([DATA, NOISE, REFERENCE]))
def test_bh1_weights(before, h, eta, around):
    """A constant weighs the whole mass, and lambda beyond the interval's start h^2/2 times the weight at its end, for
    data e, for noise e sigma~, otherwise e g.
    """
    lam, e = torch.tensor([-1.0 - before, -1.0, -1.0 + h], dtype=F64), 1 + eta**2
    at, mass = around.masses(lam[1:2], lam[2:], eta)
    for nodes in (lam[[1, 0]][None], lam[[2, 1]][None]):
        w = BH1()(VP(), nodes, at, mass)
        torch.testing.assert_close(w.sum(1), mass.sum(1), rtol=1e-11, atol=0)
        tilted = h**2 / 2 * e * around.log_g(lam[2:]).exp()
        torch.testing.assert_close((w * (nodes + 1)).sum(1), tilted, rtol=1e-9, atol=1e-11)


@given(st.floats(-3, 2), st.floats(0.01, 3), st.sampled_from([DATA, REFERENCE, NOISE]), st.floats(0, 1.5))
def test_masses_are_the_integral(low, h, around, eta):
    """The masses add up to what a constant q gives, in closed form: for data 1 - (S_1/S_0)^e, for noise e (sigma~_0 -
    sigma~_1), and otherwise a derivative by lambda that is e g (S_1/S)^e at the start.
    """
    low = torch.tensor([low], dtype=F64)
    high, e = low + h, 1 + eta**2

    def whole(low):
        return around.masses(low, high, eta)[1].sum()

    if around is DATA:
        truth = -torch.expm1(-e * h * torch.ones((), dtype=F64))
    elif around is NOISE:
        truth = e * ((-low).exp() - (-high).exp()).squeeze()
    else:
        d = 1e-4
        slope = (whole(low + d) - whole(low - d)) / (2 * d)
        S = torch.hypot(torch.tensor([STD, STD], dtype=F64), (-torch.cat([low, high])).exp())
        torch.testing.assert_close(-slope, e * (-low[0]).exp() / S[0] * (S[1] / S[0]) ** e, rtol=1e-6, atol=0)
        return
    torch.testing.assert_close(whole(low), truth, rtol=1e-11, atol=0)


# exactness


def line(sde, ts, m, c, eta):
    """(mean of x_s from x = 0, factor of x, variance) of what an integrator around N(m, c^2 I) does to x."""
    (a0, s0), (a1, s1) = ((sde.alpha(t), torch.hypot(c * sde.alpha(t), sde.sigma(t))) for t in (ts[0], ts[-1]))
    fall = (s1 / a1) / (s0 / a0)
    factor = a1 / a0 * fall ** (1 + eta**2)
    return a1 * m - factor * a0 * m, factor, s1**2 * (1 - fall ** (2 * eta**2))


def check_line(sde, step, ts, m, c, eta):
    """The sampler is that affine map, and so takes p_t to p_s in mean and covariance."""
    c, p = torch.tensor(c, dtype=F64), sde.reverse(gaussian(sde, c, m), eta)
    start, A, V = probed(lambda x, noise: sample(p, x, ts, step, noise=noise))
    want, factor, variance = line(sde, ts, m, c, eta)
    eye, scale = torch.eye(2, dtype=F64), float(torch.hypot(c * sde.alpha(ts[-1]), sde.sigma(ts[-1])))
    assert (A - factor * eye).abs().max() < 1e-12 * max(1.0, float(factor))
    assert (V - variance * eye).abs().max() < 1e-12 * scale**2
    assert (start - want).abs().max() < 1e-11
    law_t = sde.alpha(ts[0]) ** 2 * c**2 + sde.var(ts[0])
    near(start + A @ (sde.alpha(ts[0]) * m), sde.alpha(ts[-1]) * m, 1e-11)
    near(law_t * A @ A.T + V, (sde.alpha(ts[-1]) ** 2 * c**2 + sde.var(ts[-1])) * eye, 1e-11)


@every_sde
@pytest.mark.parametrize("eta", [0.0, 1.7, pytest.param(0.5, marks=pytest.mark.slow)])
def test_data_members_are_exact_for_a_point(sde, eta):
    """Data at one point: mean and covariance after one step or seven, for every member with data prediction."""
    for step in DATA_MEMBERS.values():
        for ts in (times(sde), times(sde)[[0, -1]]):
            check_line(sde, step, ts, MEAN, 0.0, eta)


@every_sde
def test_noise_members_are_exact_for_a_point(sde):
    """So are those with noise prediction on the flow, along which eps is constant."""
    for step in NOISE_MEMBERS.values():
        for ts in (times(sde), times(sde)[[0, -1]]):
            q, x = sde.reverse(point(sde), 0.0), sde.sigma(ts[0]) * normal(3, 2)
            start, factor, _ = line(sde, ts, MEAN, torch.zeros((), dtype=F64), 0.0)
            near(sample(q, x, ts, step, noise=no_noise), start + factor * x, 1e-11)


@every_sde
@pytest.mark.parametrize("eta", [0.0, 1.7, pytest.param(0.5, marks=pytest.mark.slow)])
def test_reference_members_are_exact_for_gaussian_data(sde, eta):
    """Data N(m, c^2 I): the same, whatever the interpolation, the orders and the sizes."""
    for step in REFERENCE_MEMBERS.values():
        for ts in (times(sde), times(sde)[[0, -1]]):
            check_line(sde, step, ts, MEAN, STD, eta)


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(0.1, 10)), min_size=1, max_size=5, unique_by=lambda row: row[0]),
    st.floats(0.05, 5),
    st.lists(st.floats(0.02, 1.5), min_size=1, max_size=5),
    st.floats(0, 1.5),
    st.integers(1, 4),
    st.sampled_from([0, 2, 3, 4, 5]),
)
def test_exact_for_gaussian_data_with_any_sizes(table, std, steps, eta, predictor, corrector):
    """On any grid, with any table and any standard deviation."""
    sde = VP()
    step = Multistep(predictor, corrector, Reference(MEAN, std, tuple(sorted(table))))
    check_line(sde, step, times(sde, [-2.0, *(-2 + s for s in itertools.accumulate(steps))]), MEAN, std, eta)


def test_constant_size_changes_nothing():
    """A table with one size, or the same size twice, whatever it is."""
    sde, ts = VP(), times(VP())
    q, x = sde.reverse(mixture(sde), 0.0), normal(4, 2)
    for around, (k, m) in itertools.product((DATA, REFERENCE, NOISE), ((2, 3), (4, 0), (3, 4))):
        truth = sample(q, x, ts, Multistep(k, m, around))
        for table in (((0.3, 1e-3),), ((-1.0, 47.0), (1.0, 47.0))):
            near(sample(q, x, ts, Multistep(k, m, replace(around, size=table))), truth)


def test_a_table_of_sizes_changes_the_weights():
    """A table that is not constant does, on data that are not Gaussian, and beyond one node."""
    sde, ts = VP(), times(VP())
    q, x = sde.reverse(mixture(sde), 0.0), normal(4, 2)
    off = [
        float((sample(q, x, ts, Multistep(k, 0, SIZED)) - sample(q, x, ts, Multistep(k, 0, REFERENCE))).abs().max())
        for k in (1, 2)
    ]
    assert min(off) > 1e-3


@every_sde
def test_reference_between_data_and_noise(sde):
    """std -> 0 is data prediction and std -> infinity noise prediction, with errors that fall as std^2 and std^-2."""
    ts, x = times(sde), sde.sigma(times(sde)[0]) * normal(4, 2)
    for eta, (k, m) in itertools.product((0.0, 0.7), ((1, 0), (3, 0), (2, 3), (4, 0))):
        p, z = sde.reverse(mixture(sde), eta), normal(7, 4, 2, seed=1)

        def run(around, p=p, z=z, k=k, m=m):
            return sample(p, x, ts, Multistep(k, m, around), noise=Tape(z))

        for limit, sign in ((DATA, -1), (NOISE, 1)):
            truth = run(limit)
            off = [float((run(Reference(std=10.0 ** (sign * n))) - truth).norm() / truth.norm()) for n in (2, 3, 7)]
            assert off[0] / off[1] == pytest.approx(100, rel=0.05) and off[2] < 1e-10


def test_the_mean_of_the_reference_is_a_shift():
    """Data moved by m, states by alpha m, the reference by m: the same answer moved."""
    sde, ts, x, z = VP(), times(VP()), normal(4, 2), normal(7, 4, 2, seed=1)
    moved = exact.GaussianMixture(torch.ones(2), torch.tensor([[0.0, 1.0], [1.0, -1.0]]), torch.tensor([0.1, 0.2]))
    still = exact.GaussianMixture(torch.ones(2), moved.means - MEAN, torch.tensor([0.1, 0.2]))
    for eta, (k, m) in itertools.product((0.0, 0.7), ((2, 3), (3, 0), (4, 0))):
        a = sample(
            sde.reverse(moved.diffuse(sde), eta),
            x + sde.alpha(ts[0]) * MEAN,
            ts,
            Multistep(k, m, REFERENCE),
            noise=Tape(z),
        )
        b = sample(sde.reverse(still.diffuse(sde), eta), x, ts, Multistep(k, m, Reference(std=STD)), noise=Tape(z))
        near(a - sde.alpha(ts[-1]) * MEAN, b, 1e-11)


def test_the_reference_of_data():
    """The mean of the rows, of their shape, and the root mean square deviation from it over all dimensions."""
    x = normal(50, 2, 3).float() * torch.tensor([1.0, 2.0, 3.0]) + 5
    around = Reference.fit(x)
    assert around.mean.shape == (2, 3) and around.mean.dtype == F64
    near(around.mean, x.double().sum(0) / 50)
    variance = sum(float((x[:, i, j].double() - around.mean[i, j]).square().mean()) for i in range(2) for j in range(3))
    assert around.std == pytest.approx(math.sqrt(variance / 6), rel=1e-12)
    with pytest.raises(ValueError, match="^x_0 must hold at least 2 samples, got 1$"):
        Reference.fit(x[:1])


# noise


@over(MEMBERS)
def test_the_flow_draws_no_noise(step):
    """At eta=0 no noise is drawn, and eta -> 0 leads there, but for the start-up that only the flow has."""
    sde, ts = VP(), times(VP())
    score, x, z = mixture(sde), normal(4, 2), normal(7, 4, 2, seed=1)
    flow = sample(sde.reverse(score, 0.0), x, ts, step, noise=no_noise)
    almost = sample(sde.reverse(score, 1e-7), x, ts, step, noise=Tape(z))
    starts = step.predictor > 2 and not step.corrector and not step.interpolation.published
    assert (float((flow - almost).abs().max()) < 1e-5) != starts


def test_langevin_beside_it():
    """A corrector of another kind in between: on data at one point the predictor is the affine map above whatever it
    remembers, and Langevin's step of size e multiplies deviations by 1 - e/sigma^2 and adds the variance 2e.
    """
    sde, e, eta = VP(), 2e-3, 0.8
    ts = times(sde)
    p = sde.reverse(point(sde), eta)
    zero = torch.zeros((), dtype=F64)
    for step in DATA_MEMBERS.values():
        for first in (True, False):
            steps = (Langevin(Constant(e)), step) if first else (step, Langevin(Constant(e)))
            factor, variance = 1 + zero, zero
            for t, s in zip(ts, ts[1:]):
                moved = line(sde, torch.stack([t, s]), MEAN, zero, eta)[1:]
                stayed = 1 - e / sde.var(t if first else s), 2 * e
                for a, v in (stayed, moved) if first else (moved, stayed):
                    factor, variance = a * factor, a**2 * variance + v
            start, A, V = probed(lambda x, noise, steps=steps: sample(p, x, ts, *steps, noise=noise))
            eye = torch.eye(2, dtype=F64)
            near(A, factor * eye, 1e-11)
            near(V, variance * eye, 1e-11)
            near(start + A @ (sde.alpha(ts[0]) * MEAN), sde.alpha(ts[-1]) * MEAN, 1e-11)


# calls, states, grids


def calls(step, n, eta):
    """Network calls on n intervals."""
    extra = 2 if step.predictor == 4 < n and not (step.corrector or eta or step.interpolation.published) else 0
    return n - step.analytic + extra


@over(MEMBERS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("end", [None, 0.0])
def test_calls_and_states(step, eta, end):
    """n intervals, n calls; n - 1 if the first is analytic; n + 2 with four nodes on the flow if n > 4. A trajectory
    yields n + 1 states, and a last interval to sigma = 0 counts like any.
    """
    sde = VP()
    for n in (1, 2, 3, 7):
        ts = times(sde)[: n + 1].clone()
        if end is not None:
            ts[-1] = end
        score = Counted(mixture(sde))
        states = list(trajectory(sde.reverse(score, eta), normal(3, 2), ts, step))
        clean = end is not None
        expected = (calls(step, n - 1, eta) if n > 1 else 0) + 1 if clean else calls(step, n, eta)
        assert len(states) == n + 1 and score.nfe == expected
        assert all(y.isfinite().all() for y in states)


@pytest.mark.parametrize("sde", [VP(), RectifiedFlow(), EDM(T=30.0)], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_last_interval_to_clean_data(sde, eta):
    """Where sigma = 0 at the end, the last state is alpha_s E[x_0 | x_t] of the one before, without noise, and those
    before are as without it, unless orders are lowered towards it.
    """
    law, z = mixture(sde), normal(7, 4, 2, seed=1)
    p, x, ts = sde.reverse(law, eta), sde.sigma(times(sde)[0]) * normal(4, 2), times(sde)
    longer = torch.cat([ts, torch.zeros(1, dtype=F64)])
    for step in MEMBERS.values():
        states = list(trajectory(p, x, longer, step, noise=Tape(z)))  # 7 draws, not 8
        near(states[-1], law.denoise(states[-2], ts[-1]), 1e-11)
        if not step.taper:
            near(states[-2], sample(p, x, ts, step, noise=Tape(z)), 1e-13)
        near(sample(p, x, longer[-2:], step, noise=no_noise), law.denoise(x, ts[-1]), 1e-11)


@over(MEMBERS)
def test_memory_is_fresh(step):
    """One value samples twice, and two trajectories at once, each as if alone; a call is a trajectory of one step."""
    sde, ts, other = VP(), times(VP()), times(VP(), [-2.0, -1.0, 0.5, 1.0])
    q = sde.reverse(mixture(sde), 0.0)
    x, y = normal(3, 2), normal(3, 2, seed=8)
    a, b = sample(q, x, ts, step), sample(q, y, other, step)
    both = list(itertools.zip_longest(trajectory(q, x, ts, step), trajectory(q, y, other, step)))
    assert torch.equal(both[-1][0], a) and torch.equal(both[3][1], b) and torch.equal(sample(q, x, ts, step), a)
    assert torch.equal(step(q, x, ts[2], ts[3], no_noise), sample(q, x, ts[2:4], step))


@over(MEMBERS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_rows_are_independent(step, eta):
    """Bit for bit: a row depends on itself and its seed, not on the batch; and (B, C, H, W) is (B, d)."""
    sde, x, seeds = VP(), normal(9, 2), per_sample(range(9))
    p, ts = sde.reverse(smooth, eta), times(VP())
    whole = sample(p, x, ts, step, noise=seeds)
    for cut in ([0, 5, 9], [0, 1, 2, 9]):
        parts = [sample(p, x[a:b], ts, step, noise=seeds.rows(a, b)) for a, b in zip(cut, cut[1:])]
        assert torch.equal(torch.cat(parts), whole)
    if isinstance(step.around.mean, torch.Tensor):
        step = replace(step, around=replace(step.around, mean=step.around.mean.view(2, 1, 1)))
    assert torch.equal(sample(p, x.view(9, 2, 1, 1), ts, step, noise=seeds.rows(0, 9)).view(9, 2), whole)


@over(MEMBERS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_single_precision(step, eta):
    """A state in float32 stays so, and agrees with float64 to its digits: coefficients are computed in float64."""
    sde, x, z = VP(), normal(20, 2), normal(7, 20, 2, seed=1)
    p, ts = sde.reverse(mixture(sde), eta), times(VP())
    y = sample(p, x.float(), ts, step, noise=Tape(z))
    assert y.dtype == torch.float32
    near(y.double(), sample(p, x, ts, step, noise=Tape(z)), 2e-5)


@pytest.mark.parametrize(
    "sde", [VP(), VE(0.05, 20.0), RectifiedFlow(), EDM(T=30.0)], ids=lambda sde: type(sde).__name__
)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_few_steps_do_not_overshoot(sde, n):
    """From the prior to sigma/alpha = 0.1 in one step, two or five equal ones of log-SNR, 1.5 each in lambda: no sample
    ends beyond twice the largest of as many data. (Polynomials in time around Gaussian data do.)
    """
    end = sde.time(torch.tensor(-math.log(0.1), dtype=F64))
    ts, z = grid.log_snr(sde, n, float(end)), normal(n, 200, 2, seed=1)
    x, most = sde.sigma(sde.T) * normal(200, 2), 2 * float(MIXTURE.sample(2000, torch.Generator()).abs().max())
    for eta, (name, step) in itertools.product((0.0, 1.0), MEMBERS.items()):
        if (eta and step.around is NOISE) or name == "predictor 3, in time":
            continue  # eps is for the flow
        y = sample(sde.reverse(mixture(sde), eta), x, ts, step, noise=Tape(z)) / sde.alpha(end)
        assert y.abs().max() < most, name


# bad input


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Multistep(0), "predictor must be a whole number >= 1, got 0"),
        (lambda: Multistep(2.0), "predictor must be a whole number >= 1, got 2.0"),
        (lambda: Multistep(5), "predictor must be 1, 2, 3 or 4, got 5"),
        (lambda: Multistep(2, 1), "corrector must be 0, for none, or 2 to 5 nodes, got 1"),
        (lambda: Multistep(2, 6), "corrector must be 0, for none, or 2 to 5 nodes, got 6"),
        (lambda: Multistep(2, -1), "corrector must be a whole number >= 0, got -1"),
        (lambda: Multistep(4, analytic=True), "analytic must be False with predictor 4, whose first interval needs"),
        (lambda: Multistep(3, startup=True), "startup must be a StartUp, got True"),
        (lambda: DPMSolverPP(4), "order must be 1, 2 or 3, got 4"),
        (lambda: DPMSolverPP(0), "order must be a whole number >= 1, got 0"),
        (lambda: UniPC(4), "order must be 1, 2 or 3, got 4"),
        (lambda: UniPC(2.5), "order must be a whole number >= 1, got 2.5"),
        (lambda: DEIS(5), "predictor must be 1, 2, 3 or 4, got 5"),
        (lambda: IPNDM(0), "predictor must be a whole number >= 1, got 0"),
        (lambda: SASolver(3, 1), "corrector must be 0, for none, or 2 to 5 nodes, got 1"),
        (
            lambda: Multistep(2, 3, interpolation=EqualSteps()),
            "interpolation must not be EqualSteps() with a corrector: its weights are a predictor's",
        ),
        (lambda: Reference(std=-1.0), "std must be a finite number >= 0, got -1.0"),
        (lambda: Reference(std=math.nan), "std must be a finite number >= 0, got nan"),
        (lambda: Reference(size=((1.0, 1.0), (0.0, 1.0))), "size must be pairs (lambda, size) with increasing lambda"),
        (lambda: Reference(size=((0.0, 1.0), (0.0, 2.0))), "size must be pairs (lambda, size) with increasing lambda"),
        (
            lambda: Reference(size=((0.0, 0.0),)),
            "size must be pairs (lambda, size) with increasing lambda and positive",
        ),
        (lambda: Reference(size=((math.inf, 1.0),)), "size must be pairs (lambda, size) with increasing lambda"),
    ],
)
def test_bad_values(make, said):
    """One clear error, naming the argument."""
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        make()


@pytest.mark.parametrize("step", [Multistep(2, 3), GaussianReference(REFERENCE), DPMSolverPP(3)], ids=str)
def test_bad_grids(step):
    """Grids must decrease, strictly, and eta cannot be negative."""
    sde, x = VP(), normal(2, 2)
    q = sde.reverse(mixture(sde), 0.0)
    for bad in ([0.2, 0.5], [0.5, 0.5], [0.9, 0.3, 0.4]):
        with pytest.raises(ValueError, match=r"^ts must strictly decrease, but ts\["):
            sample(q, x, torch.tensor(bad, dtype=F64), step)
    for bad in ([1.5, 0.5], [0.5, -0.1]):
        with pytest.raises(ValueError, match=r"^ts must lie in \[0, T\]"):
            sample(q, x, torch.tensor(bad, dtype=F64), step)
    with pytest.raises(ValueError, match="^eta must be a finite number >= 0 and <= 1000, got -0.5$"):
        sde.reverse(mixture(sde), -0.5)


def test_off_its_grid():
    """A started step takes the intervals of its grid, in order, and no other."""
    sde, x, ts = VP(), normal(2, 2), times(VP())
    q = sde.reverse(mixture(sde), 0.0)
    for t, s in ((ts[1], ts[2]), (ts[0], ts[2]), (ts[0], ts[0])):
        with pytest.raises(ValueError, match=r"^Multistep\(.*\) was started on intervals of which none from t = "):
            DPMSolverPP(2).start(q, ts[:-1], ts[1:])(q, x, t, s, no_noise)
    started = DPMSolverPP(2).start(q, ts[:1], ts[1:2])
    started(q, x, ts[0], ts[1], no_noise)
    with pytest.raises(ValueError, match=r"^Multistep\(.*\) was started on intervals of which none from t = "):
        started(q, x, ts[1], ts[2], no_noise)


def test_a_score_of_another_shape():
    """It would broadcast."""
    p = VP().reverse(lambda x, t: x[:, :1], 0.0)
    with pytest.raises(ValueError, match="^score must return the shape of x"):
        sample(p, normal(3, 2), times(VP()), DPMSolverPP(2))


def test_what_these_laws_suppose():
    """The grid is inside every process and decreases; the scores in closed form are those of exact laws."""
    x = normal(5, 2)
    for sde in SDES:
        ts = times(sde)
        torch.testing.assert_close(sde.log_snr(ts), torch.tensor(LAMBDAS, dtype=F64), rtol=1e-9, atol=1e-9)
        assert (ts.diff() < 0).all() and ts[0] <= sde.T
        for t in ts:
            near(mixture(sde)(x, t), MIXTURE.diffuse(sde)(x, t), 1e-11)
            near(gaussian(sde)(x, t), exact.Gaussian(MEAN, STD**2).diffuse(sde)(x, t), 1e-11)
            near(point(sde)(x, t), exact.Empirical(MEAN[None]).diffuse(sde)(x, t), 1e-11)


def test_reference_at_one_time():
    """The coefficients of q at one time are those of a grid there, with sizes too."""
    sde, around = VP(), Reference(0.3, 0.7, ((-2.0, 0.5), (1.0, 2.0)))
    ts = grid.log_snr(sde, 4)
    for many, i in ((around.q(sde, ts), i) for i in range(5)):
        assert all(torch.equal(one, c[i]) for one, c in zip(around.q(sde, ts[i]), many))


@pytest.mark.parametrize("gap", [1e-8, 1e-6, 1e-5, 1e-3, 1e-2])
@pytest.mark.parametrize("name", [method.name for method in FLOWS if method.name != "Flow(Heun())"])
def test_a_time_that_is_almost_doubled(name, gap):
    """Another time, so near to one of the grid that a corrector's change of the state would be extended a thousandfold,
    is refused by name; where it is not, the error is as without it, but for what uneven steps cost formulas that take
    them for equal.
    """
    sde, law = (
        VP(),
        exact.GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.04, 0.01])),
    )
    q, x = sde.reverse(law.diffuse(sde), 0.0), torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    method, ts, known = METHODS[name], grid.log_snr(sde, 30), Known(Reference(torch.tensor([0.0, 0.25]), 0.75))
    doubled = torch.cat([ts[:16], ts[15:16] * (1 - gap), ts[16:]])
    (step,) = method.steps(q, ts, known)
    if getattr(step, "predictor", 1) > 1 and gap < 1e-4:
        with pytest.raises(ValueError, match=r"^ts must have no two times as close as 0\.30463\d* and 0\.3046\d*: "):
            sample(q, x, doubled, step)
        return
    want = sample(q, x, ts[[0, -1]], Flow(Dopri5(1e-9, 1e-9)))
    errors = [float((sample(q, x, grid_, step) - want).square().mean().sqrt()) for grid_ in (ts, doubled)]
    assert errors[1] < 2 * errors[0] or step == IPNDM(4, EqualSteps())
