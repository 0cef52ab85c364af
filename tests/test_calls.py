"""Whatever a function is called with, it returns what is finite, or says in one line which argument is wrong."""

import dataclasses
import inspect
import math
import re
import signal
import warnings
from collections import Counter
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde import Quantized, Reference, Reverse, ScoreModel, exact, grid, log_prob, loss, nn, ode, sample, trajectory
from scoresde.data import Array, Dataset, Moons, Ring, SwissRoll, split
from scoresde.lab import energy_distance, frechet, nearest, sliced_wasserstein, weights_error
from scoresde.likelihood import (
    Adams,
    Bound,
    Decoded,
    Exact,
    Hutchinson,
    HutchPP,
    Likelihood,
    Quadrature,
    RungeKutta,
    TruncatedNormal,
    Uniform,
    continuous_elbo,
    decode,
    elbo,
    encode,
    prior_mismatch,
)
from scoresde.model import ClassModel, Epsilon, Karras, LogSNR, Steps, clamped, thresholded, transport
from scoresde.noise import iid, per_sample, seeds
from scoresde.process import (
    EDM,
    VE,
    VP,
    Chain,
    Cosine,
    RectifiedFlow,
    SubVP,
    Tabulated,
    TabulatedVE,
    cosine_betas,
    geometric_sigmas,
    linear_betas,
)
from scoresde.steps import (
    DEIS,
    IPNDM,
    MALA,
    NCSN,
    RES,
    SNR,
    AnalyticDPM,
    Ancestral,
    Churn,
    Consistency,
    Constant,
    DPMSolver,
    DPMSolverAdaptive,
    DPMSolverPP,
    EulerMaruyama,
    Flow,
    GaussianReference,
    GottaGoFast,
    Langevin,
    Pilots,
    SASolver,
    Tallied,
    UniPC,
    draw,
    exact_inverse,
    invert,
)
from scoresde.training import Settings

CALLS, SECONDS = 500, 120
F64 = torch.float64
LAW = exact.Gaussian(torch.zeros(2), torch.ones(2))
P, Q = VP().reverse(LAW.diffuse(VP())), VP().reverse(LAW.diffuse(VP()), 0.0)
X, T = torch.linspace(-1, 1, 6, dtype=F64).view(3, 2), torch.tensor([0.2, 0.5, 1.0], dtype=F64)
TS = torch.linspace(1, 0.01, 5, dtype=F64)
BETAS = torch.tensor([0.1, 0.2])
PROCESSES = (VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow(), Tabulated(BETAS), TabulatedVE(torch.arange(1, 4)))
MIX = exact.GaussianMixture(torch.ones(2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.ones(2))
MODEL = ScoreModel(nn.MLP((2,), 8, 1).double(), VP())
CLASSES = ClassModel(nn.MLPEncoder((2,), 2, 8, 1).double(), VP(), Reference(std=0.5))
CLOUD = X + torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
PATH = torch.stack([CLOUD, CLOUD + 1, CLOUD * 2, CLOUD - 1, CLOUD + 3])
GREY, LEVELS = Quantized(17, -1.0, 1.0), torch.tensor([[0.0, 0.5], [-1.0, 1.0], [0.25, 0.125]], dtype=F64)
ODES = [partial(method, t=T[1], s=T[0]) for method in (ode.Euler(), ode.Heun(), ode.RK4(), ode.Dopri5(), ode.Tsit5())]

GOOD = {
    VP: {"beta_min": 0.1, "beta_max": 20.0},
    SubVP: {"beta_min": 0.1, "beta_max": 20.0},
    VE: {"sigma_min": 0.01, "sigma_max": 50.0},
    EDM: {"T": 80.0, "t_min": 0.002},
    Cosine: {"s": 0.008, "T": 0.99},
    RectifiedFlow: {"T": 0.99},
    Tabulated: {"betas": torch.tensor([0.1, 0.2])},
    VP().perturb: {"x_0": X, "t": T},
    VP().reverse: {"score": lambda x, t: -x, "eta": 1.0},
    P.denoise: {"x": X, "t": T},
    P.eps: {"x": X, "t": T},
    Reference: {"mean": 0.0, "std": 1.0, "size": ()},
    Reference.fit: {"x_0": X},
    Karras: {"around": Reference(std=0.5)},
    LogSNR: {"scale": 1.0},
    Steps: {"n": 1000, "shift": 0.0},
    ScoreModel: {"net": torch.nn.Linear(2, 2), "sde": VP(), "predicts": Karras(), "clock": LogSNR()},
    ClassModel: {"net": nn.MLPEncoder((2,), 2, 8, 1), "sde": VP(), "around": Reference(std=0.5), "clock": LogSNR()},
    loss.cross_entropy: {"model": CLASSES, "x_0": X, "t": T, "label": torch.tensor([0, 1, 1])},
    loss.LogNormal: {"mean": -1.2, "std": 1.2},
    loss.MinSNR: {"gamma": 5.0},
    grid.uniform: {"sde": VP(), "n": 5, "end": 0.01},
    grid.quadratic: {"sde": VP(), "n": 5, "end": 0.01},
    grid.karras: {"sde": VP(), "n": 5, "end": 0.01, "rho": 7.0},
    grid.reference: {"sde": VP(), "n": 5, "end": 0.01, "around": Reference(std=0.5)},
    Ancestral: {"v": 0.0},
    Churn: {"step": Flow(), "churn": 40.0, "low": 0.0, "high": 1.0, "noise": 1.0},
    Flow: {"method": ode.Heun()},
    Langevin: {"step_size": SNR(), "n": 1},
    MALA: {"step_size": NCSN(), "n": 1},
    SNR: {"r": 0.16},
    NCSN: {"eps": 2e-5, "sigma_min": 0.01},
    Constant: {"e": 0.1},
    UniPC: {"order": 3},
    ode.Dopri5: {"rtol": 1e-5, "atol": 1e-5, "max_steps": 100},
    GottaGoFast: {"rtol": 0.02, "atol": 0.01, "h_init": 0.01, "theta": 0.9, "r": 0.9},
    DPMSolverAdaptive: {"order": 3, "rtol": 0.05, "atol": 0.01, "h_init": 0.05, "theta": 0.9},
    sample: {"p": P, "x": X, "ts": TS, "steps": EulerMaruyama()},
    invert: {"p": Q, "x": X, "ts": TS, "step": Ancestral()},
    exact_inverse: {"p": Q, "x": X, "ts": TS, "step": Ancestral(), "most": 1000},
    Consistency: {"f": lambda x, t, u: x, "gamma": 1.0, "end": 0.0},
    draw: {"p": Q, "shape": (2,), "ts": TS, "steps": Ancestral(), "seeds": [1, 2]},
    log_prob: {"p": Q, "x": X, "discrete": None, "around": Reference(std=1.0)},
    partial(elbo, score=LAW.diffuse(VP())): {"chain": Chain(VP(), TS), "x": X, "terms": 2, "width": 0.5},
    Adams: {"n": 20},
    RungeKutta: {"n": 4},
    Hutchinson: {"m": 2},
    HutchPP: {"rank": 2},
    Quantized: {"levels": 17, "low": -1.0, "high": 1.0},
    frechet: {"a": X, "b": X + 1},
    energy_distance: {"a": X, "b": X + 1},
    sliced_wasserstein: {"a": X, "b": X + 1, "directions": 4, "seed": 0},
    nn.MLP: {"shape": (2,), "width": 8, "depth": 1, "classes": 0},
    nn.MLPEncoder: {"shape": (2,), "classes": 2, "width": 8, "depth": 1},
    nn.UNetEncoder: {"shape": (1, 4, 4), "classes": 2, "width": 4, "blocks": 1},
    nn.UNet: {"shape": (1, 4, 4), "width": 4, "blocks": 1, "classes": 0},
    Dataset: {"train": X.float(), "held_out": X.float(), "train_labels": None, "held_out_labels": None},
    Ring: {"n": 50, "seed": 0, "modes": 8, "std": 0.05},
    Moons: {"n": 50, "seed": 0, "std": 0.1},
    Pilots: {"n": 8, "seed": 0, "fine": None},
    per_sample: {"seeds": [1, 2]},
    seeds: {"seed": 0, "n": 3, "start": 0},
    **{
        f: {"t": 0.9 * T * sde.T}
        for sde in PROCESSES
        for f in (sde.alpha, sde.sigma, sde.log_snr, sde.diffusion)
    },
    **{sde.drift: {"x": X, "t": 0.9 * T * sde.T} for sde in PROCESSES},
    **{sde.transition: {"t": 0.9 * T * sde.T, "s": 0.5 * T * sde.T} for sde in PROCESSES},
    **{sde.prior: {"shape": (3, 2), "noise": iid()} for sde in PROCESSES},
    **{sde.log_prior: {"x": X} for sde in PROCESSES},
    **{partial(sde.perturb, t=0.5 * sde.T): {"x_0": X, "noise": iid()} for sde in PROCESSES},
    **{sde.time: {"log_snr": torch.zeros(3)} for sde in (VP(), VE(), Cosine(), RectifiedFlow(), Tabulated(BETAS))},
    VP().simulate: {"x": X, "ts": torch.tensor([0.0, 0.5, 1.0]), "steps": 4, "seed": 0},
    P.drift: {"x": X, "t": T},
    P.diffusion: {"t": T},
    Reverse: {"sde": VP(), "score": lambda x, t: -x, "eta": 1.0},
    Reference(std=1.0).prior: {"sde": VP(), "shape": (2,)},
    transport: {"score": lambda x, t: -x, "source": VP(), "target": Cosine()},
    transport(lambda x, t: -x, VP(), Cosine()): {"x": X, "t": 0.9 * T},
    clamped: {"score": lambda x, t: -x, "sde": VP(), "low": -1.0, "high": 1.0},
    clamped(lambda x, t: -x, VP()): {"x": X, "t": T},
    thresholded: {"score": lambda x, t: -x, "sde": VP(), "ratio": 0.995, "most": 2.0},
    thresholded(lambda x, t: -9 * x, VP()): {"x": X, "t": T},
    exact.Gaussian: {"mean": torch.zeros(2), "covariance": torch.ones(2)},
    exact.Gaussian.fit: {"x": CLOUD},
    exact.GaussianMixture: {"weights": torch.ones(2), "means": torch.zeros(2, 2), "variances": torch.ones(2)},
    exact.GaussianMixture.from_covariances: {
        "weights": torch.ones(1), "means": torch.zeros(1, 2), "covariances": torch.eye(2)[None],
    },
    LAW.kl_from: {"mean": torch.zeros(2, dtype=F64), "covariance": torch.eye(2, dtype=F64)},
    MIX.log_prob: {"x": X},
    MIX.responsibilities: {"x": X},
    MIX.sample: {"n": 3},
    MIX.marginal: {"sde": VP(), "t": 0.5},
    MIX.diffuse: {"sde": VP()},
    MIX.diffuse(VP()): {"x": X, "t": T},
    MIX.diffuse(VP()).log_prob: {"x": X, "t": T},
    MIX.diffuse(VP()).denoise: {"x": X, "t": T},
    MIX.diffuse(VP()).posterior: {"x": X, "t": T},
    MIX.diffuse(VP()).sample: {"n": 3, "t": 0.5},
    exact.Empirical: {"data": X, "chunk": 100},
    exact.Empirical(X).sample: {"n": 3},
    exact.Empirical(X).diffuse(VP()): {"x": X, "t": T},
    MODEL.eps: {"x": X, "t": T},
    MODEL.forward: {"x": X, "t": T},
    loss.dsm: {"model": MODEL, "x_0": X, "t": T, "weight": loss.Simple(), "noise": iid()},
    loss.ssm: {"score": lambda x, t: -x, "x_t": X, "t": T, "noise": iid()},
    loss.Unbiased: {"weight": loss.Simple(), "times": loss.UniformTime()},
    loss.Output: {"predicts": Epsilon()},
    **{law.draw: {"sde": VP(), "n": 3} for law in (loss.UniformTime(), loss.UniformLogSNR(), loss.LogNormal())},
    grid.log_snr: {"sde": VP(), "n": 5, "end": 0.01},
    grid.equal: {"sde": VP(), "n": 5, "lam": torch.linspace(-4, 4, 5), "density": torch.ones(5), "end": 0.01},
    grid.arc_length: {"sde": VP(), "n": 5, "ts": TS, "states": PATH, "end": 0.01},
    grid.equal_curvature: {"sde": VP(), "n": 5, "ts": TS, "states": PATH, "end": 0.01},
    grid.usual: {"around": Reference(std=0.5)},
    **{method: {"f": lambda t, y: -y, "y": X} for method in ODES},
    **{f: {"order": 2} for f in (DEIS, IPNDM, DPMSolver, RES)},
    DPMSolverPP: {"order": 2, "taper": False},
    SASolver: {"predictor": 3, "corrector": 4},
    GaussianReference: {"around": Reference(std=1.0)},
    AnalyticDPM: {"ts": TS, "second_moment": torch.linspace(0.5, 0.9, 5)},
    Tallied: {"step": GottaGoFast()},
    trajectory: {"p": P, "x": X, "ts": TS, "steps": EulerMaruyama()},
    continuous_elbo: {"p": P, "x": X, "quantized": None, "terms": 2, "times": loss.UniformLogSNR(), "noise": iid()},
    elbo: {"chain": Chain(VP(), TS), "score": LAW.diffuse(VP()), "x": X, "kernel": Ancestral(v=1.0), "noise": iid()},
    encode: {"p": Q, "x": X, "method": Adams(12), "around": Reference(std=1.0), "start": 0.1, "end": 0.9},
    decode: {"p": Q, "x_T": X, "method": Adams(12), "around": Reference(std=1.0), "start": 0.9, "end": 0.1},
    partial(prior_mismatch, x=CLOUD): {"sde": VP(), "t": 0.1, "prior": None},
    Quadrature: {"method": None, "trace": None, "t": 0.1, "prior": None, "gradients": False},
    **{f: {"quantized": GREY, "draws": 2} for f in (Uniform, TruncatedNormal, Decoded)},
    GREY.check: {"x": LEVELS},
    GREY.dequantize: {"x": LEVELS, "noise": iid()},
    GREY.bits_per_dim: {"log_p": T, "d": 2},
    nearest: {"x": X, "data": X + 1},
    weights_error: {"law": MIX, "x": X},
    Array: {"path": "a.npy", "key": "", "levels": None, "channels_last": None, "held_out": 0.1, "seed": 0},
    SwissRoll: {"n": 50, "seed": 0, "std": 0.1},
    split: {"n": 20, "share": 0.1, "seed": 0},
    Chain: {"sde": VP(), "ts": TS},
    Chain(VP(), TS).step: {"x": X, "i": 1},
    Chain(VP(), TS).marginal: {"x_0": X, "i": 2},
    Chain(VP(), TS).posterior: {"x_i": X, "x_0": X, "i": 2},
    Chain(VP(), TS).draw: {"n": 3},
    linear_betas: {"n": 10, "first": 1e-4, "last": 0.02},
    cosine_betas: {"n": 10, "s": 0.008, "most": 0.999},
    geometric_sigmas: {"n": 10, "first": 0.01, "last": 1.0},
    TabulatedVE: {"sigmas": torch.tensor([0.1, 0.2])},
    iid: {"generator": None},
    partial(iid(), t=T[0], s=T[0]): {"x": X},
    per_sample([1, 2, 3]).rows: {"a": 0, "b": 2},
    Settings: {"steps": 5, "batch": 4, "lr": 0.1, "warmup": 1, "decay": 0.5, "beta2": 0.9, "clip": 1.0, "ema": 0.1},
}  # fmt: skip


def nothing(*_, **__):
    """A callable that answers None."""


ODD = [
    *(0, -1, -0.0, 1e-320, 1e200, -1e200, 10**30, -(10**30), 2**63, math.nan, math.inf, -math.inf, None, "x", "", []),
    *((), {}, True, 1j, object(), np.float64("nan"), np.int64(-3), np.zeros(3), VP, Ancestral, nothing),
    *(torch.zeros(3, 2, dtype=kind) for kind in (torch.long, torch.bool, torch.cfloat, torch.half)),
    *(torch.full((3, 2), v, dtype=F64) for v in (math.nan, math.inf, 1e30)),
    *(torch.zeros(0), torch.zeros(4, 5), torch.tensor(0.5), torch.tensor([0.5, math.nan, 2.0])),
]


SAID = {
    "p": "process|score|sde|eta",
    "x": "sample|state|dtype|score|data must|t must have shape", "ts": "intervals|end|time",
    "steps": "step", "chain": "ts|sde", "seeds": "seed", "shape": "weights", "y": "sample",
    "train": "data|held_out", "held_out": "train|data",
    "train_labels": "labels", "held_out_labels": "labels", "a": "b must", "b": "a must", "x_T": "x",
    "n": "pilots", "t_min": "T", "share": "held_out", "first": "last",
    "x_0": "data|sample|t must have shape", "x_t": "t must have shape", "std": "standard", "low": "high",
    "sigma_min": "sigma_max", "t": "time", "beta_min": "beta_max", "predicts": "around", "seed": "start|n",
    "mean": "means|covariance", "covariance": "covariances|variances", "order": "predictor",
}  # fmt: skip
"""What an argument is also called. (That p is a process, x a state and its rows samples, is the house's language.)"""
INFINITE = {"log_snr"}
"""What is infinite by its definition where sigma = 0."""
BEYOND = ("alpha", "sigma", "log_snr", "__call__")
"""What goes on beyond T as far as its formula does, of a process and (called) an exact score."""


def names(argument):
    """A pattern of what an argument is called. (The article a names none.)"""
    own = "a must" if argument == "a" else re.escape(argument)
    return rf"\b(?:{own}|{SAID.get(argument, own)})\b"


def called(f, values):
    """f with these arguments, steps in their place; all states of a trajectory."""
    values = dict(values)
    if f in (sample, draw, trajectory):
        steps, places = values.pop("steps"), [values.pop(k) for k in ("p", "shape" if f is draw else "x", "ts")]
        result = f(*places, steps, **values)
        return list(result) if f is trajectory else result
    return f(**values)


def finite(value):
    """Whether all numbers in a result are, but for those that a likelihood says it cannot tell."""
    if isinstance(value, torch.Tensor):
        return not (value.is_floating_point() or value.is_complex()) or bool(value.isfinite().all())
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    if isinstance(value, Likelihood | Bound):
        return all(finite(v) for k, v in vars(value).items() if k not in ("probe_error", "prior_mismatch"))
    return not isinstance(value, float) or math.isfinite(value)


def late(number, frame):
    raise AssertionError(f"the call did not end in {SECONDS} s")


def end(f, odd):
    """How f ends with the odd values, given by argument: "returned" what is finite, or not, from what is not; "refused"
    by a ValueError (or one that names a sample and a time) in which an odd argument is named. Anything else is raised.
    """
    values = {**GOOD[f], **odd}
    signal.alarm(SECONDS)
    try:
        result = called(f, values)
    except (ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        assert any(re.search(names(k), said) for k in odd), (f, odd, said)
        assert isinstance(error, ValueError) or re.search("sample .* is not finite|max_steps", said), (f, odd, said)
        return "refused"
    finally:
        signal.alarm(0)
    infinite = getattr(f, "__name__", "") in INFINITE and not result.isnan().any()
    beyond = getattr(f, "__name__", "__call__") in BEYOND and "t" in odd and (torch.as_tensor(odd["t"]) > 80).any()
    assert finite(result) or infinite or beyond or not finite(list(values.values())), (f, odd, result)
    return "returned"


@pytest.fixture
def ends():
    """`end`, where a call that hangs is stopped and warnings are not shown."""
    before = signal.signal(signal.SIGALRM, late)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield end
    signal.signal(signal.SIGALRM, before)


@st.composite
def calls(draw_):
    """A function, and one or two of its arguments that are odd."""
    f = draw_(st.sampled_from(list(GOOD)))
    arguments = draw_(st.lists(st.sampled_from(sorted(GOOD[f])), min_size=1, max_size=2, unique=True))
    return f, {name: draw_(st.sampled_from(range(len(ODD)))) for name in arguments}


def test_good_calls():
    """What the odd calls below differ from is right."""
    for f, values in GOOD.items():
        assert finite(called(f, values)), f


def test_calls(capsys, ends):
    """500 calls, the same each time: never an error of another kind than ValueError (or one that names a sample and a
    time), or that names no argument; never a result that is not finite from finite input.
    """
    told = Counter()

    @settings(max_examples=CALLS, derandomize=True, deadline=None, database=None)
    @given(calls())
    def each(call):
        f, odd = call
        told[ends(f, {name: ODD[i] for name, i in odd.items()})] += 1

    each()
    with capsys.disabled():
        print(f"\n{sum(told.values())} calls (derandomized): {dict(told)}")


def test_every_odd_value_in_every_place(capsys, ends):
    """The same of each odd value in place of each argument, one at a time."""
    told, wrong = Counter(), []
    for f, good in GOOD.items():
        for name, value in product(good, ODD):
            try:
                told[ends(f, {name: value})] += 1
            except Exception as error:  # all that is wrong is told at once
                wrong.append(f"{f}: {name} = {value!r}: {type(error).__name__} {error}"[:400])
    with capsys.disabled():
        print(f"\n{sum(told.values())} calls: {dict(told)}")
    assert not wrong, f"{len(wrong)} calls:\n" + "\n".join(wrong[:20])


def test_every_argument_is_tried():
    """The tables name arguments that the functions have."""
    for f, values in GOOD.items():
        known = (
            {x.name for x in dataclasses.fields(f)}
            if isinstance(f, type) and dataclasses.is_dataclass(f)
            else inspect.signature(f).parameters
        )
        assert set(values) <= set(known), f


@pytest.mark.parametrize("trace", [Exact, 1j, [], 0])
def test_quadrature_fields(trace):
    """A class, a number and a list are no trace."""
    for name in ("trace", "method", "prior"):
        with pytest.raises(ValueError, match=f"^{name} must"):
            Quadrature(**{name: trace})
