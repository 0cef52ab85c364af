"""Whatever a function is called with, it returns what is finite, or says in one line which argument is wrong."""

import dataclasses
import inspect
import math
import re
import signal
import warnings
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde import Quantized, Reference, ScoreModel, exact, grid, log_prob, loss, nn, ode, sample
from scoresde.data import Dataset, Moons, Ring
from scoresde.lab import energy_distance, frechet, sliced_wasserstein
from scoresde.likelihood import Adams, Exact, Hutchinson, HutchPP, Quadrature, RungeKutta, elbo
from scoresde.model import Karras, LogSNR, Steps
from scoresde.noise import per_sample, seeds
from scoresde.process import EDM, VE, VP, Chain, Cosine, RectifiedFlow, SubVP, Tabulated
from scoresde.steps import (
    MALA,
    NCSN,
    SNR,
    Ancestral,
    Churn,
    Constant,
    DPMSolverAdaptive,
    EulerMaruyama,
    Flow,
    GottaGoFast,
    Langevin,
    Pilots,
    UniPC,
    draw,
)
from scoresde.training import Settings

CALLS, SECONDS = 500, 20
F64 = torch.float64
LAW = exact.Gaussian(torch.zeros(2), torch.ones(2))
P, Q = VP().reverse(LAW.diffuse(VP())), VP().reverse(LAW.diffuse(VP()), 0.0)
X, T = torch.linspace(-1, 1, 6, dtype=F64).view(3, 2), torch.tensor([0.2, 0.5, 1.0], dtype=F64)
TS = torch.linspace(1, 0.01, 5, dtype=F64)

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
    draw: {"p": Q, "shape": (2,), "ts": TS, "steps": Ancestral(), "seeds": [1, 2]},
    log_prob: {"p": Q, "x": X, "discrete": None, "around": Reference(std=1.0)},
    partial(elbo, score=LAW.diffuse(VP())): {"chain": Chain(VP(), TS), "x": X, "terms": 2},
    Adams: {"n": 20},
    RungeKutta: {"n": 4},
    Hutchinson: {"m": 2},
    HutchPP: {"rank": 2},
    Quantized: {"levels": 17, "low": -1.0, "high": 1.0},
    frechet: {"a": X, "b": X + 1},
    energy_distance: {"a": X, "b": X + 1},
    sliced_wasserstein: {"a": X, "b": X + 1, "directions": 4, "seed": 0},
    nn.MLP: {"shape": (2,), "width": 8, "depth": 1, "classes": 0},
    nn.UNet: {"shape": (1, 4, 4), "width": 4, "blocks": 1, "classes": 0},
    Dataset: {"train": X.float(), "held_out": X.float(), "train_labels": None, "held_out_labels": None},
    Ring: {"n": 50, "seed": 0, "modes": 8, "std": 0.05},
    Moons: {"n": 50, "seed": 0, "std": 0.1},
    Pilots: {"n": 8, "seed": 0, "fine": None},
    per_sample: {"seeds": [1, 2]},
    seeds: {"seed": 0, "n": 3, "start": 0},
    Settings: {"steps": 5, "batch": 4, "lr": 0.1, "warmup": 1, "decay": 0.5, "beta2": 0.9, "clip": 1.0, "ema": 0.1},
}  # fmt: skip
ODD = [
    *(0, -1, -0.0, 1e-320, 1e200, -1e200, 10**30, -(10**30), 2**63, math.nan, math.inf, -math.inf, None, "x", "", []),
    *((), {}, True, 1j, object(), np.float64("nan"), np.int64(-3), np.zeros(3), VP, Ancestral, print),
    *(torch.zeros(3, 2, dtype=kind) for kind in (torch.long, torch.bool, torch.cfloat, torch.half)),
    *(torch.full((3, 2), v, dtype=F64) for v in (math.nan, math.inf, 1e30)),
    *(torch.zeros(0), torch.zeros(4, 5), torch.tensor(0.5), torch.tensor([0.5, math.nan, 2.0])),
]


SAID = {
    "p": "score|sde|eta", "x": "sample|state|dtype|score|t must have shape", "ts": "intervals|end|time",
    "steps": "step", "chain": "ts|sde", "seeds": "seed", "shape": "weights",
    "train": "data|held_out", "held_out": "train|data",
    "train_labels": "labels", "held_out_labels": "labels", "a": "x|b", "b": "a|x",
    "n": "pilots", "t_min": "T",
    "x_0": "data|sample|t must have shape", "std": "standard", "low": "high", "sigma_min": "sigma_max", "t": "time",
    "beta_min": "beta_max", "predicts": "around", "seed": "start|n",
}  # fmt: skip


def called(f, values):
    """f with these arguments, steps in their place."""
    values = dict(values)
    if f in (sample, draw):
        steps, places = values.pop("steps"), [values.pop(k) for k in ("p", "shape" if f is draw else "x", "ts")]
        return f(*places, steps, **values)
    return f(**values)


def finite(value):
    """Whether all numbers in a result are, as far as it is looked into."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def late(number, frame):
    raise AssertionError(f"the call did not end in {SECONDS} s")


@st.composite
def calls(draw_):
    """A function, and one or two of its arguments that are odd."""
    f = draw_(st.sampled_from(list(GOOD)))
    names = draw_(st.lists(st.sampled_from(sorted(GOOD[f])), min_size=1, max_size=2, unique=True))
    return f, {name: draw_(st.sampled_from(range(len(ODD)))) for name in names}


def test_good_calls():
    """What the odd calls below differ from is right."""
    for f, values in GOOD.items():
        assert finite(called(f, values))


def test_calls(capsys):
    """500 calls, the same each time: never an error of another kind than ValueError (or one that names a sample and a
    time), or that names no argument; never a result that is not finite from finite input.
    """
    told = Counter()

    @settings(max_examples=CALLS, derandomize=True, deadline=None, database=None)
    @given(calls())
    def each(call):
        f, odd = call
        values = {**GOOD[f], **{name: ODD[i] for name, i in odd.items()}}
        before = signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = called(f, values)
        except (ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())
            names = "|".join([*odd, *(SAID[k] for k in odd if k in SAID)])
            assert re.search(rf"\b(?:{names})", said), (f, odd, said)
            assert isinstance(error, ValueError) or re.search("sample .* is not finite|max_steps", said), (f, odd, said)
            told["refused"] += 1
        else:
            assert finite(result) or not finite(list(values.values())), (f, odd, result)
            told["returned"] += 1
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    each()
    with capsys.disabled():
        print(f"\n{sum(told.values())} calls (derandomized): {dict(told)}")


def test_every_argument_is_tried():
    """The tables name arguments that the functions have."""
    for f, values in GOOD.items():
        known = (
            {x.name for x in dataclasses.fields(f)} if dataclasses.is_dataclass(f) else inspect.signature(f).parameters
        )
        assert set(values) <= set(known), f


@pytest.mark.parametrize("trace", [Exact, 1j, [], 0])
def test_quadrature_fields(trace):
    """A class, a number and a list are no trace."""
    for name in ("trace", "method", "prior"):
        with pytest.raises(ValueError, match=f"^{name} must"):
            Quadrature(**{name: trace})
