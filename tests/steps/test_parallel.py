"""Picard's iteration: what it ends at is the sampler itself, in as many sweeps as it says, for each sample alone."""

import math
import re

import numpy as np
import pytest
import torch
from papers import APART, F64, MEAN, MIDDLE, MIXTURE, SDES, STD, VARIANCE, normal, smooth

from scoresde import (
    DDIM,
    EDM,
    VE,
    VP,
    Ancestral,
    Counted,
    DPMSolverPP,
    EulerMaruyama,
    GaussianReference,
    Reference,
    ReverseDiffusion,
    SASolver,
    Step,
    UniPC,
    exact,
    grid,
    ode,
    per_sample,
    sample,
)
from scoresde.guide import conditioned
from scoresde.lab import Modes
from scoresde.steps import (
    DEIS,
    RES,
    AnalyticDPM,
    ConsistentAnnealed,
    DPMSolver,
    DPMSolverPPSDE,
    EDMHeun,
    Flow,
    Langevin,
    Renoised,
    sample_parallel,
)

AROUND = Reference(MIDDLE, math.sqrt(VARIANCE + float(APART.square().mean())))
SEEDS = range(6)
SOLVERS = [
    DDIM(),
    DPMSolverPP(2),
    DPMSolverPP(3),
    UniPC(3),
    DEIS(4),
    GaussianReference(AROUND),
    DPMSolver(3),
    RES(2),
    EDMHeun(),
    EDMHeun(10.0),
]
SAMPLERS = [Ancestral(), Ancestral(1.0), EulerMaruyama(), ReverseDiffusion(), ConsistentAnnealed(), SASolver()]
SAMPLERS += [Renoised(), Renoised(DPMSolver(3)), DPMSolverPPSDE()]


class Rows:
    """A score that counts its calls and keeps how many samples each saw."""

    def __init__(self, score):
        self.score, self.seen = score, []

    def __call__(self, x, t):
        self.seen.append(len(x))
        return self.score(x, t)


def mixture(sde):
    return MIXTURE.diffuse(sde)


def gaussian(sde, std=STD, mean=MEAN):
    return exact.Gaussian(mean, std**2).diffuse(sde)


LABEL = "label must be a whole number or a tensor, () or one row for each of the 6 samples"


def start(sde, d=2):
    return sde.prior((len(SEEDS), d), per_sample(SEEDS), F64)


def off(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("window", [5, 64])
@pytest.mark.parametrize("eta, step", [*((0.0, s) for s in SOLVERS), *((1.0, s) for s in SAMPLERS)], ids=repr)
def test_the_fixed_point_is_the_sampler_run_in_sequence(eta, step, window):
    sde = VP()
    p, x, ts = sde.reverse(mixture(sde), eta), start(sde), grid.log_snr(sde, 16)
    found = sample_parallel(p, x, ts, step, tol=1e-13, window=window, around=AROUND, noise=per_sample(SEEDS))
    assert off(found.x, sample(p, x, ts, step, noise=per_sample(SEEDS))) < 1e-10


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_the_fixed_point_is_that_of_every_process_and_of_a_last_hop_to_no_noise(sde):
    ts = grid.log_snr(sde, 12)
    ts = torch.cat([ts, ts.new_zeros(1)]) if sde.var(ts.new_zeros(())) == 0 else ts
    q, x = sde.reverse(mixture(sde), 0.0), start(sde)
    assert off(sample_parallel(q, x, ts, UniPC(2), tol=1e-13, around=AROUND).x, sample(q, x, ts, UniPC(2))) < 1e-10


def test_the_fixed_point_is_that_of_a_fitted_sampler():
    sde = VP()
    p, x, ts = sde.reverse(mixture(sde)), start(sde), grid.log_snr(sde, 10)
    step = AnalyticDPM.fit(p, mixture_data(), ts)
    found = sample_parallel(p, x, ts, step, tol=1e-13, around=AROUND, noise=per_sample(SEEDS))
    assert off(found.x, sample(p, x, ts, step, noise=per_sample(SEEDS))) < 1e-10


def mixture_data(n=64):
    return MIDDLE + torch.sign(normal(n, 1)) * APART + VARIANCE**0.5 * normal(n, 2, seed=3)


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_one_sweep_is_enough_for_gaussian_data(sde):
    """On the flow and on the reverse SDE, from any x, whatever the step."""
    ts, x = grid.log_snr(sde, 12), 2 * start(sde)
    for eta, step in ((0.0, UniPC(2)), (0.0, DPMSolver(2)), (1.0, Ancestral()), (1.0, SASolver())):
        p = sde.reverse(gaussian(sde), eta)
        noise = per_sample(SEEDS)
        found = sample_parallel(p, x, ts, step, tol=1e-9, around=Reference(MEAN, STD), noise=noise)
        calls = 24 if isinstance(step, type(DPMSolver(2))) else 12
        assert (found.sweeps == 1).all() and (found.nfe == calls).all()
        assert off(found.x, sample(p, x, ts, step, noise=per_sample(SEEDS))) < 1e-10


@pytest.mark.parametrize("step, calls", [(DDIM(), 15), (UniPC(2), 15), (RES(2), 30)], ids=repr)
def test_k_sweeps_make_k_calls_right_at_the_least(step, calls):
    """So there are no more sweeps than calls, whatever the score, and with a window of one call it is the sequence."""
    sde = VP()
    rough = sde.reverse(lambda x, t: mixture(sde)(x, t) + torch.sin(3 * x), 0.0)
    q, x, ts = rough, start(sde), grid.log_snr(sde, 15)
    truth = sample(q, x, ts, step)
    whole, one = (sample_parallel(q, x, ts, step, tol=0.0, window=w) for w in (calls, 1))
    assert off(whole.x, truth) < 1e-10 and off(one.x, truth) < 1e-10
    assert (whole.sweeps <= calls).all() and (whole.nfe <= calls * (calls + 1) / 2).all()
    assert (one.sweeps == calls).all() and (one.nfe == calls).all()


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_what_was_said_last_is_the_guess_for_what_was_not_asked(sde):
    """Of a score whose q is one number at all times, only the calls of the first window are made twice, but for the
    first of them.
    """
    normal_score = gaussian(sde)

    def score(x, t):
        S = (STD**2 + sde.var(t) / sde.alpha(t) ** 2).sqrt()
        return normal_score(x, t) + (0.3 / (sde.sigma(t) * S)).reshape(-1, 1)

    q, x, ts = sde.reverse(score, 0.0), start(sde), grid.log_snr(sde, 20)
    found = sample_parallel(q, x, ts, DDIM(), tol=1e-9, window=5, around=Reference(MEAN, STD))
    assert (found.nfe == 20 + 4).all() and (found.sweeps == 2 + 3).all()


@pytest.mark.parametrize("window", [4, 64])
def test_sweeps_and_evaluations_are_those_of_the_network(window):
    sde = VP()
    score = Rows(mixture(sde))
    found = sample_parallel(
        sde.reverse(score, 0.0), start(sde), grid.log_snr(sde, 20), DDIM(), window=window, around=AROUND
    )
    assert len(score.seen) == int(found.sweeps.max()) and sum(score.seen) == int(found.nfe.sum())
    assert max(score.seen) <= len(SEEDS) * window


@pytest.mark.parametrize("window", [3, 64])
def test_a_sample_depends_on_nothing_but_itself(window):
    """To the last bit, and in what it costs: neighbours that need more sweeps give it none."""
    sde = VP()
    ts, scale = grid.log_snr(sde, 20), torch.tensor([1e-3, 1.0, 3.0, 0.1, 20.0, 1.0], dtype=F64)
    x, p = scale[:, None] * start(sde, 16), sde.reverse(lambda x, t: smooth(x, t[:, None] if t.ndim else t))
    together = sample_parallel(p, x, ts, Ancestral(), window=window, noise=per_sample(SEEDS))
    assert len(together.sweeps.unique()) > 1
    for i in SEEDS:
        alone = sample_parallel(p, x[[i]], ts, Ancestral(), window=window, noise=per_sample([i]))
        assert torch.equal(alone.x[0], together.x[i])
        assert (alone.sweeps, alone.nfe) == (together.sweeps[i], together.nfe[i])


def test_what_is_left_is_of_the_size_of_the_tolerance():
    sde = VP()
    q, x, ts = sde.reverse(mixture(sde), 0.0), start(sde), grid.log_snr(sde, 40)
    truth, before = sample(q, x, ts, UniPC(2)), torch.zeros(len(x))
    for tol in (1e-2, 1e-4, 1e-6, 1e-8):
        found = sample_parallel(q, x, ts, UniPC(2), tol=tol, around=AROUND)
        assert 0 < off(found.x, truth) < 10 * tol and (found.sweeps > before).all()
        before = found.sweeps


def test_every_answer_is_that_to_a_state_within_the_tolerance():
    """For a network that is asked once a sweep and place, the last places that it saw at a time are those of the path,
    to `tol` in units of alpha S.
    """
    sde, asked = EDM(T=20.0, t_min=0.02), {}

    def score(x, t):
        for row, at in zip(x, t.expand(len(x)).tolist(), strict=True):
            asked[at] = row
        return mixture(sde)(x, t)

    q, x, ts, tol = sde.reverse(score, 0.0), start(sde)[:1], grid.log_snr(sde, 20), 1e-3
    found = sample_parallel(q, x, ts, DDIM(), tol=tol, around=AROUND)
    off_by = []

    def told(y, t):
        """The answers as the module says that they are used."""
        v = AROUND.std**2 + t**2
        off_by.append(float((y - asked[float(t)]).square().mean().sqrt() / v.sqrt()))
        return mixture(sde)(asked[float(t)][None], t) - (y - asked[float(t)]) / v

    assert off(sample(sde.reverse(told, 0.0), x, ts, DDIM()), found.x) < 1e-10
    assert max(off_by) <= tol * (1 + 1e-6) and max(off_by) > tol / 100


def test_data_in_other_units_need_the_same_sweeps():
    k, counts = 1000.0, []
    for unit in (1.0, k):
        sde = EDM(T=20.0 * unit, t_min=0.02 * unit)
        score = mixture(EDM(T=20.0, t_min=0.02))
        q = sde.reverse(lambda x, t, unit=unit, score=score: score(x / unit, t / unit) / unit, 0.0)
        around = Reference(MIDDLE * unit, AROUND.std * unit)
        counts.append(sample_parallel(q, start(sde), grid.log_snr(sde, 30), DDIM(), window=10, around=around))
    assert torch.equal(counts[0].sweeps, counts[1].sweeps) and torch.equal(counts[0].nfe, counts[1].nfe)
    assert off(counts[0].x, counts[1].x / k) < 1e-10


def test_a_reference_changes_the_sweeps_and_not_what_they_come_to():
    sde = VP()
    q, x, ts = sde.reverse(mixture(sde), 0.0), start(sde), grid.log_snr(sde, 40)
    near, far = (sample_parallel(q, x, ts, DDIM(), tol=1e-12, around=r) for r in (AROUND, Reference(MIDDLE + 9, 50.0)))
    assert off(near.x, far.x) < 1e-10 and near.sweeps.double().mean() < far.sweeps.double().mean()


def test_each_interval_draws_once_in_the_order_of_the_sampler():
    sde, drawn = VP(), []

    def noise(x, t, s):
        drawn.append((float(t), float(s)))
        return normal(*x.shape, seed=len(drawn))

    ts = grid.log_snr(sde, 12)
    sample_parallel(sde.reverse(mixture(sde)), start(sde), ts, Ancestral(), window=4, around=AROUND, noise=noise)
    assert drawn == list(zip(ts[:-1].tolist(), ts[1:].tolist(), strict=True))


@pytest.mark.parametrize("label", [1, np.int64(1), np.array(1), torch.tensor(1), [1] * 6, (1,) * 6], ids=repr)
def test_a_condition_may_be_a_number(label):
    """As `conditioned` takes it, for `sample`: one for all, or one for each."""
    sde, law = VP(), Modes(3).law().diffuse(VP())

    def score(x, t, label):
        assert label.dtype == torch.long and label.shape == (len(x),)
        return law(x, t) * (1 + 0.1 * label[:, None])

    x, ts = start(sde), grid.log_snr(sde, 6)
    found = sample_parallel(sde.reverse(score, 0.0), x, ts, DDIM(), tol=0.0, label=label)
    assert off(found.x, sample(sde.reverse(conditioned(score, label=label), 0.0), x, ts, DDIM())) < 1e-12


def test_a_condition_goes_with_its_sample():
    sde = VP()
    mean = torch.tensor([[-1.0, 0.0], [0.5, 2.0]], dtype=F64)
    law = [gaussian(sde, 0.3, m) for m in mean]

    def score(x, t, label, scale):
        assert label.shape == scale.shape == (len(x),)
        return torch.stack([law[k](x[[i]], t[i] if t.ndim else t)[0] for i, k in enumerate(label.tolist())]) * scale[0]

    x, ts, label = start(sde), grid.log_snr(sde, 10), torch.tensor([0, 1, 1, 0, 0, 1])
    found = sample_parallel(
        sde.reverse(score, 0.0), x, ts, DDIM(), tol=1e-12, window=3, label=label, scale=torch.tensor(1.1, dtype=F64)
    )
    for k in (0, 1):
        q = sde.reverse(lambda x, t, k=k: 1.1 * law[k](x, t), 0.0)
        assert off(found.x[label == k], sample(q, x[label == k], ts, DDIM())) < 1e-10


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_the_state_keeps_its_type(dtype, tol):
    sde = VP()
    q, x, ts = sde.reverse(mixture(sde), 0.0), start(sde).to(dtype), grid.log_snr(sde, 20)
    found = sample_parallel(q, x, ts, DDIM(), tol=1e-6, around=AROUND).x
    assert found.dtype == dtype and off(found, sample(q, x, ts, DDIM())) < tol


def test_a_score_that_is_not_finite_names_the_sample_and_the_time():
    sde, ts, x = VP(), grid.log_snr(VP(), 10), start(VP())
    bad = float(ts[6])

    def score(y, t):
        wrong = (torch.as_tensor(t) - bad).abs() < 1e-9
        return torch.where((wrong & (y[:, 0] > 0))[:, None], torch.nan, mixture(sde)(y, t))

    at_bad = sample(sde.reverse(mixture(sde), 0.0), x, ts[:7], DDIM())
    which = "|".join(map(str, (at_bad[:, 0] > 0).nonzero()[:, 0].tolist()))
    with pytest.raises(RuntimeError, match=rf"the score of sample ({which}) is not finite at t = {bad:.6g}"):
        sample_parallel(sde.reverse(score, 0.0), x, ts, DDIM(), tol=1e-8, around=AROUND)


def test_a_score_that_is_not_finite_off_the_path_does_no_harm():
    """A sweep may lead where the sampler never comes: there it asks in vain, and again when it knows more."""
    sde, ts, x = VP(), grid.log_snr(VP(), 20), start(VP())
    q = sde.reverse(mixture(sde), 0.0)
    far = sde.reverse(lambda y, t: torch.where(y.abs() > 9, torch.nan, mixture(sde)(y, t)), 0.0)
    astray = Reference(torch.tensor([30.0, 0.0], dtype=F64), 0.5)
    assert off(sample_parallel(far, x, ts, DDIM(), tol=1e-12, around=astray).x, sample(q, x, ts, DDIM())) < 1e-10


class Silent(Step):
    """A step that asks nothing."""

    def __call__(self, p, x, t, s, noise):
        return x / 2


def test_what_cannot_be_done_is_said_before_any_work():
    sde = VP()
    score = Counted(mixture(sde))
    q, x, ts = sde.reverse(score, 0.0), start(sde), grid.log_snr(sde, 5)
    for error, change in (
        ("p must be a Reverse process", {"p": sde}),
        ("x must be a non-empty floating-point tensor", {"x": x[0]}),
        ("ts must strictly decrease", {"ts": ts.flip(0)}),
        ("step must be a predictor", {"step": Langevin()}),
        ("step must be a predictor", {"step": Flow(ode.Dopri5())}),
        ("step must ask the score of p, which is asked in parallel, and Silent() does not", {"step": Silent()}),
        ("tol must be a finite number >= 0, got -1", {"tol": -1}),
        ("window must be a whole number >= 1, got 0", {"window": 0}),
        ("around must be a Reference", {"around": 0.5}),
        ("around must have a standard deviation above 0", {"around": Reference()}),
        ("noise must be a callable", {"noise": 3}),
        (
            "label must be a whole number or a tensor, () or one row for each of the 6 samples",
            {"label": torch.zeros(5)},
        ),
        ("label must be a whole number or a tensor, () or one row for each of the 6 samples", {"label": [1, 2]}),
        (
            "label must be a whole number or a tensor, () or one row for each of the 6 samples, got 'cat'",
            {"label": "cat"},
        ),
    ):
        call = {"p": q, "x": x, "ts": ts, "step": DDIM(), **change}
        with pytest.raises(ValueError, match=re.escape(error)):
            sample_parallel(call.pop("p"), call.pop("x"), call.pop("ts"), call.pop("step"), **call)
    assert score.nfe == 0


def test_a_noisy_prior_is_warned_of_as_by_the_sampler():
    law = Reference(torch.full((2,), 100.0, dtype=F64), 1.0)
    sde = VE(0.02, 20.0)
    score = gaussian(sde, 1.0, law.mean)

    class Told:
        around = law

        def __call__(self, x, t):
            return score(x, t)

    with pytest.warns(UserWarning, match="are not hidden by the noise"):
        sample_parallel(sde.reverse(Told(), 0.0), start(sde), grid.log_snr(sde, 4), DDIM())
