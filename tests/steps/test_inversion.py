"""Steps taken upwards: their papers' formulas on the rising grid, widely used code, orders, and exact inverses."""

import math
import re
from functools import cache

import pytest
import torch
from papers import (
    F64,
    MEAN,
    SDES,
    STD,
    Problem,
    deis,
    dpm_solver_2,
    dpm_solver_pp_2m,
    dpm_solver_pp_3m,
    edm_heun,
    gaussian,
    ipndm,
    mixture,
    near,
    normal,
    point,
    res_3,
    smooth,
    times,
    unipc,
)

from scoresde import (
    DDIM,
    VE,
    VP,
    Counted,
    DPMSolverPP,
    EulerMaruyama,
    Flow,
    GaussianReference,
    Langevin,
    RectifiedFlow,
    Reference,
    ReverseDiffusion,
    Tabulated,
    UniPC,
    grid,
    sample,
)
from scoresde.likelihood import RungeKutta, encode
from scoresde.ode import Dopri5, Euler, Heun
from scoresde.process import linear_betas
from scoresde.reference import DATA, NOISE
from scoresde.steps import (
    DEIS,
    IPNDM,
    RES,
    Churn,
    DPMSolver,
    EDMHeun,
    HalfBent,
    Multistep,
    exact_inverse,
    invert,
)

every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
three = pytest.mark.parametrize("sde", [VP(), VE(0.05, 20.0), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
FORMULAS = {
    "DPMSolverPP(2)": (DPMSolverPP(2), dpm_solver_pp_2m, {}),
    "DPMSolverPP(3)": (DPMSolverPP(3), dpm_solver_pp_3m, {"halved": False}),
    "UniPC(2)": (UniPC(2), unipc, {"order": 2}),
    "DEIS(3)": (DEIS(3), deis, {"order": 3}),
    "IPNDM(2)": (IPNDM(2), ipndm, {"order": 2}),
    "DPMSolver(2)": (DPMSolver(2), dpm_solver_2, {}),
    "RES(3)": (RES(3), res_3, {}),
    "EDMHeun": (EDMHeun(), edm_heun, {}),
}
ONE_STEP = {
    **{repr(step): step for step in (DDIM(), EulerMaruyama(), ReverseDiffusion(), Flow(Euler()), Flow(Heun()))},
    **{"DPMSolver(2)": DPMSolver(2), "RES(3)": RES(3), "EDMHeun": EDMHeun(), "DPMSolverPP(1)": DPMSolverPP(1)},
}


def flow(sde, score=mixture):
    return sde.reverse(score(sde), 0.0)


def state(sde, t):
    """Samples at a time near the data."""
    return float(sde.alpha(t)) * normal(5, 2) + float(sde.sigma(t)) * normal(5, 2, seed=8)


@three
@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name, sde):
    """The step upwards is its paper's formula with the times in rising order, on seven unequal steps."""
    (step, paper, options), ts = FORMULAS[name], times(sde)
    x = state(sde, ts[-1])
    want = paper(Problem(sde, mixture(sde)), x, ts.flip(0), torch.zeros(7, 5, 2), **options)
    near(invert(flow(sde), x, ts, step), want, 1e-11)


@every_sde
def test_ddim_inversion(sde):
    """x/alpha rises by eps at the lower time times the rise of sigma/alpha (Song, Meng & Ermon 2021, eq. 14)."""
    ts, q = times(sde), flow(sde)
    x = state(sde, ts[-1])
    y = x / sde.alpha(ts[-1])
    for s, t in zip(ts.flip(0)[:-1], ts.flip(0)[1:], strict=True):
        rise = (-sde.log_snr(t)).exp() - (-sde.log_snr(s)).exp()
        y = y + rise * q.eps(sde.alpha(s) * y, s)
    near(invert(q, x, ts, DDIM()), sde.alpha(ts[0]) * y)


def chain(its):
    """The process of a scheduler's betas, and the time of each index."""
    sde = Tabulated(linear_betas())
    its.alphas_cumprod = sde.alpha(sde.grid()).flip(0)[1:] ** 2
    return sde, lambda i: (torch.as_tensor(i).double() + 1) / 1000


def test_ddim_inverse_of_widely_used_code():
    """diffusers' DDIMInverseScheduler, its table in float64: its first interval leads from the first step to itself."""
    diffusers = pytest.importorskip("diffusers")
    its = diffusers.DDIMInverseScheduler(set_alpha_to_one=False, clip_sample=False)
    its.set_timesteps(20)
    sde, at = chain(its)
    its.initial_alpha_cumprod = its.alphas_cumprod[0]
    q, low = flow(sde), [0, *its.timesteps.tolist()[:-1]]
    y = x = state(sde, at(0))
    for i, j in zip(low, its.timesteps.tolist(), strict=True):
        y = its.step(q.eps(y, at(i)), j, y).prev_sample
    near(invert(q, x, at(its.timesteps).flip(0), DDIM()), y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_inverse_of_widely_used_code(order, kind):
    """diffusers' DPMSolverMultistepInverseScheduler on its own 20 noise levels, in float64."""
    diffusers = pytest.importorskip("diffusers")
    its = diffusers.DPMSolverMultistepInverseScheduler(solver_order=order, algorithm_type=kind)
    its.set_timesteps(20)
    sde, at = chain(its)
    ts = torch.cat([at(its.timesteps), at([999])])
    its.sigmas = (-sde.log_snr(ts)).exp()
    q = flow(sde)
    y = x = state(sde, ts[0])
    for i, t in zip(its.timesteps, ts, strict=False):
        y = its.step(q.eps(y, t), i, y).prev_sample
    around = NOISE if kind == "dpmsolver" else DATA
    near(invert(q, x, ts.flip(0), Multistep(order, 0, around, HalfBent())), y)


@cache
def latents():
    """A process, samples, and where the flow carries them."""
    sde = VE(0.05, 20.0)
    x = state(sde, torch.tensor(sde.t_min, dtype=F64))
    return sde, x, encode(flow(sde), x, RungeKutta(200))


@pytest.mark.parametrize(
    "step", [DDIM(), EulerMaruyama(), DPMSolverPP(2), UniPC(2), DEIS(3), RES(2), Flow(Heun())], ids=repr
)
def test_order(step):
    """Upwards the error falls by the order that the step has downwards, to the latent of the flow; so does what is left
    of x after a round trip.
    """
    sde, x, truth = latents()
    q, grids = flow(sde), [grid.log_snr(sde, n) for n in (80, 160)]
    ups = [invert(q, x, ts, step) for ts in grids]
    for errors in (
        [float((up - truth).norm()) for up in ups],
        [float((sample(q, up, ts, step) - x).norm()) for up, ts in zip(ups, grids, strict=True)],
    ):
        assert math.log2(errors[0] / errors[1]) > step.order - 0.25, errors


@three
@pytest.mark.parametrize("name", ONE_STEP)
def test_exact_inverse(name, sde):
    """`sample` comes back to x, on a grid on which the step upwards does not."""
    step, q, ts = ONE_STEP[name], flow(sde), grid.log_snr(sde, 20, float(times(sde)[-1]))
    x = state(sde, ts[-1])
    z = exact_inverse(q, x, ts, step, tol=1e-13)
    near(sample(q, z, ts, step), x, 1e-10)
    if step.upwards:
        assert (sample(q, invert(q, x, ts, step), ts, step) - x).abs().max() > 1e-6


@every_sde
def test_exact_inverse_of_a_gaussian(sde):
    """DDIM on N(m, c^2): x~ - m falls by 1 - (sigma~_t - sigma~_s) sigma~_t/(c^2 + sigma~_t^2) each interval, in few
    steps as in many; upwards it would rise by 1 + (sigma~_t - sigma~_s) sigma~_s/(c^2 + sigma~_s^2).
    """
    ts = times(sde)
    noise, x = (-sde.log_snr(ts)).exp(), state(sde, ts[-1])
    fall = 1 - (noise[:-1] - noise[1:]) * noise[:-1] / (STD**2 + noise[:-1] ** 2)
    rise = 1 + (noise[:-1] - noise[1:]) * noise[1:] / (STD**2 + noise[1:] ** 2)
    off, q = x / sde.alpha(ts[-1]) - MEAN, sde.reverse(gaussian(sde), 0.0)
    near(exact_inverse(q, x, ts, DDIM(), 1e-13, 1000), sde.alpha(ts[0]) * (MEAN + off / fall.prod()), 1e-11)
    near(invert(q, x, ts, DDIM()), sde.alpha(ts[0]) * (MEAN + off * rise.prod()))


def test_the_iteration_converges_as_stated():
    """By (1 - sigma~_s/sigma~_t)/(1 + c^2/sigma~_t^2) an iteration: so many and no more are made."""
    sde = VP()
    ts = times(sde)[:2]
    ratio = float((sde.log_snr(ts[0]) - sde.log_snr(ts[1])).exp())
    rate = (1 - ratio) / (1 + STD**2 * float((2 * sde.log_snr(ts[0])).exp()))
    calls = []
    for tol in (1e-4, 1e-12):
        score = Counted(gaussian(sde, mean=0.0))
        exact_inverse(sde.reverse(score, 0.0), state(sde, ts[1]), ts, DDIM(), tol)
        calls.append(score.nfe)
    assert abs(calls[1] - calls[0] - 8 * math.log(10) / -math.log(rate)) <= 1


def test_at_a_point_ddim_is_exact():
    """Of data at one point eps is what it was, so both come back, and to the same."""
    sde = VP()
    q, ts = sde.reverse(point(sde), 0.0), times(sde)
    x = state(sde, ts[-1])
    z = invert(q, x, ts, DDIM())
    near(sample(q, z, ts, DDIM()), x, 1e-11)
    near(exact_inverse(q, x, ts, DDIM(), 1e-13, 10_000), z, 1e-9)


@pytest.mark.parametrize("inverse", [invert, exact_inverse])
def test_rows(inverse):
    """A row is what it is alone, though its neighbours take more iterations; half precision is carried in float32."""
    sde, ts = VP(), times(VP())
    q, x = sde.reverse(smooth, 0.0), torch.linspace(0.01, 3, 10, dtype=F64).view(5, 2)
    every = inverse(q, x, ts, DDIM())
    for i in range(5):
        assert torch.equal(inverse(q, x[i : i + 1], ts, DDIM())[0], every[i])
    half = x.half()
    options = {} if inverse is invert else {"tol": 1e-3}
    found = inverse(q, half, ts, DDIM(), **options)
    assert found.dtype == torch.float16 and torch.equal(found, inverse(q, half.float(), ts, DDIM(), **options).half())


Q, X, TS = flow(VP()), normal(3, 2), times(VP())


@pytest.mark.parametrize(
    ("inverse", "values", "says"),
    [
        (invert, {"p": VP().reverse(mixture(VP()))}, "eta=0, got eta=1"),
        (exact_inverse, {"p": VP().reverse(mixture(VP()))}, "eta=0, got eta=1"),
        (invert, {"x": X.long()}, "x must be"),
        (invert, {"ts": TS.flip(0)}, "ts must strictly decrease"),
        (invert, {"ts": torch.tensor([1.0, 0.0])}, "singular where sigma = 0"),
        (invert, {"step": GaussianReference(Reference(std=0.5))}, "step must be one whose formula goes upwards"),
        (invert, {"step": ReverseDiffusion()}, "step must be one whose formula goes upwards"),
        (invert, {"step": Flow(Dopri5())}, "step must be one whose formula goes upwards"),
        (invert, {"step": Langevin()}, "step must be one whose formula goes upwards"),
        (invert, {"step": Churn(Flow(Heun()))}, "step must be one whose formula goes upwards"),
        (invert, {"step": DDIM}, "step must be one whose formula goes upwards"),
        (exact_inverse, {"step": DPMSolverPP(2)}, "step must be one that remembers nothing"),
        (exact_inverse, {"step": Langevin()}, "step must be one that remembers nothing"),
        (exact_inverse, {"step": Churn(Flow(Heun()))}, "step must draw no noise"),
        (exact_inverse, {"tol": 0.0}, "tol must be"),
        (exact_inverse, {"most": 0}, "most must be"),
    ],
)
def test_bad_input_is_named(inverse, values, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        inverse(**{"p": Q, "x": X, "ts": TS, "step": DDIM(), **values})


def test_what_is_not_solved_is_told():
    """The first sample whose step has no such beginning, and the interval; at once where it is not finite."""
    score = Counted(lambda x, t: torch.where(x > 5, torch.full_like(x, math.nan), -x))
    q = VP().reverse(score, 0.0)
    x = torch.tensor([[0.1, 0.2], [900.0, 0.1], [0.3, 0.1]], dtype=F64)
    with pytest.raises(
        RuntimeError, match=r"^sample 1 is not finite between t = 0\.\d+ and 0\.\d+: the score must be finite there"
    ):
        exact_inverse(q, x, TS, DDIM())
    assert score.nfe == 1
    far = VP().reverse(lambda x, t: 40 * torch.sin(30 * x), 0.0)
    with pytest.raises(RuntimeError, match=r"^sample 0 is not solved to tol = 1e-06 between t = .* in 7 iterations"):
        exact_inverse(far, x, TS, DDIM(), most=7)
    with pytest.raises(RuntimeError, match=r"^sample 1 is not finite at t = 0\.\d+ and after"):
        invert(q, x, TS, DDIM())
