"""Jumps along the flow: exact marginals on Gaussian data, DDIM, and the schedulers of widely used code."""

import pytest
import torch
from papers import F64, MEAN, SDES, STD, Tape, gaussian, mixture, near, no_noise, normal, probed, times

from scoresde import DDIM, EDM, VE, VP, Counted, Tabulated, per_sample, sample
from scoresde.process import linear_betas
from scoresde.steps import Consistency

every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)


def spread(sde, t):
    """alpha, and the deviation of x_t."""
    alpha = sde.alpha(t)
    return alpha, (alpha**2 * STD**2 + sde.var(t)).sqrt()


def exactly(sde):
    """The flow's map for data N(MEAN, STD^2)."""

    def f(x, t, u):
        (alpha, S), (alpha_u, S_u) = spread(sde, t), spread(sde, u)
        return alpha_u * MEAN.to(x) + S_u / S * (x - alpha * MEAN.to(x))

    return f


def process(sde, gamma, score=mixture):
    return sde.reverse(score(sde), 1.0 if gamma else 0.0)


@every_sde
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("to_end", [False, True])
def test_marginals_are_exact(sde, gamma, to_end):
    """By the exact map what is N(alpha_T m, S_T^2) at first is N(alpha_s m, S_s^2) at last, in steps of any length: in
    the mean, the covariance, and what is left of x_T, prod of S_u/S_t a over the steps.
    """
    ts = times(sde)
    end = float(ts[-1]) if to_end else 0.5 * float(ts[-1])
    step = Consistency(exactly(sde), gamma, end)
    c, A, V = probed(lambda x, noise: sample(process(sde, gamma), x, ts, step, noise=noise))
    (alpha, S), (alpha_s, S_s) = spread(sde, ts[0]), spread(sde, ts[-1])
    near(c + A @ (alpha * MEAN), alpha_s * MEAN, 1e-10)
    near(A @ A.T * S**2 + V, S_s**2 * torch.eye(2, dtype=F64), 1e-10)
    u = end + (1 - gamma) * (ts[1:] - end)
    left = spread(sde, u)[1] / spread(sde, ts[:-1])[1] * sde.alpha(ts[1:]) / sde.alpha(u)
    near(A, left.prod() * torch.eye(2, dtype=F64), 1e-10)


@every_sde
def test_without_noise_it_is_ddim(sde):
    """Reading a score, with gamma = 0: no draws, one call an interval."""
    ts, score = times(sde), Counted(mixture(sde))
    x = sde.sigma(ts[0]) * normal(4, 2)
    found = sample(sde.reverse(score, 0.0), x, ts, Consistency(gamma=0.0), noise=no_noise)
    near(found, sample(sde.reverse(mixture(sde), 0.0), x, ts, DDIM()))
    assert score.nfe == len(ts) - 1


@pytest.mark.parametrize("sde", [VP(), EDM()], ids=lambda sde: type(sde).__name__)
def test_algorithm_1(sde):
    """alpha_s E[x_0 | x_t] + sigma_s z down to the data, where E[x_0 | x_t] is the last: by hand."""
    p = sde.reverse(mixture(sde))
    ts = torch.cat([times(sde), torch.zeros(1, dtype=F64)])
    x, z = sde.sigma(ts[0]) * normal(5, 2), normal(7, 5, 2, seed=1)
    y = x
    for t, s, noise in zip(ts[:-2], ts[1:-1], z, strict=True):
        y = sde.alpha(s) * p.denoise(y, t) + sde.sigma(s) * noise
    near(sample(p, x, ts, Consistency(), noise=Tape(z)), p.denoise(y, ts[-2]))


def drawing(monkeypatch, module, z):
    """A scheduler's draws, in order."""
    draws = iter(z)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(draws))


def chain(its):
    """The process of a scheduler's betas, and the time of each index."""
    sde = Tabulated(linear_betas())
    its.alphas_cumprod = sde.alpha(sde.grid()).flip(0)[1:] ** 2
    return sde, lambda i: (torch.as_tensor(i).double() + 1) / 1000


def test_lcm_of_widely_used_code(monkeypatch):
    """diffusers' LCMScheduler, with its boundary c_skip x + c_out E[x_0 | x_t], on its own four times."""
    lcm = pytest.importorskip("diffusers.schedulers.scheduling_lcm")
    its = lcm.LCMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    its.set_timesteps(4)
    (sde, at), z = chain(its), normal(3, 5, 2, seed=1)
    drawing(monkeypatch, lcm, z)
    p = sde.reverse(mixture(sde))
    ts = torch.cat([at(its.timesteps), torch.zeros(1, dtype=F64)])
    y = x = normal(5, 2)
    for i, t in zip(its.timesteps, ts, strict=False):
        y = its.step(p.eps(y, t), int(i), y).prev_sample

    def f(x, t, u):
        assert u == 0
        skip, out = its.get_scalings_for_boundary_condition_discrete(round(float(t) * 1000) - 1)
        return skip * x + out * p.denoise(x, t)

    near(sample(p, x, ts, Consistency(f), noise=Tape(z)), y, 1e-10)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0])
def test_tcd_of_widely_used_code(gamma, monkeypatch):
    """diffusers' TCDScheduler on times whose parts are whole numbers, as it rounds them."""
    tcd = pytest.importorskip("diffusers.schedulers.scheduling_tcd")
    its = tcd.TCDScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    its.set_timesteps(4)
    its.timesteps = torch.tensor([960, 720, 400, 200])
    (sde, at), z = chain(its), normal(3, 5, 2, seed=1)
    drawing(monkeypatch, tcd, z)
    p = process(sde, gamma)
    y = x = normal(5, 2)
    for i in its.timesteps:
        y = its.step(p.eps(y, at(i)), i, y, eta=gamma).prev_sample
    ts = at(torch.cat([its.timesteps, torch.zeros(1)]))
    near(sample(p, x, ts, Consistency(gamma=gamma, end=1e-3), noise=Tape(z)), y, 1e-10)


def test_consistency_models_of_widely_used_code(monkeypatch):
    """diffusers' CMStochasticIterativeScheduler in float64, down to sigma_min."""
    cm = pytest.importorskip("diffusers.schedulers.scheduling_consistency_models")
    its, sde = cm.CMStochasticIterativeScheduler(clip_denoised=False), EDM()
    its.set_timesteps(5)
    ts = torch.tensor([80.0, 24.0, 5.8, 0.9, 0.1, 0.002], dtype=F64)
    its.sigmas, its.is_scale_input_called, z = ts, True, normal(5, 5, 2, seed=1)
    drawing(monkeypatch, cm, z)
    net = lambda x, t: torch.tanh(x / (1 + t) + t.log())  # noqa: E731
    y = x = 80 * normal(5, 2)
    for k, t in enumerate(ts[:-1]):
        its._step_index = k
        y = its.step(net(y, t), its.timesteps[k], y).prev_sample

    def f(x, t, u):
        skip, out = its.get_scalings_for_boundary_condition(t)
        return skip * x + out * net(x, t)

    near(sample(process(sde, 1.0), x, ts, Consistency(f, end=0.002), noise=Tape(z)), y)


def test_rows():
    """A row depends on its seed alone, and half precision is carried in float32."""
    sde, ts = VE(0.05, 20.0), times(VE(0.05, 20.0))
    p, x, step = process(sde, 0.5, gaussian), normal(4, 2), Consistency(exactly(sde), 0.5, float(ts[-1]))
    every = sample(p, x, ts, step, noise=per_sample(range(4)))
    near(sample(p, x[2:], ts, step, noise=per_sample([2, 3])), every[2:], 1e-14)
    assert sample(p, x.half(), ts, step, noise=per_sample(range(4))).dtype == torch.float16


P, TS, X = process(VP(), 1.0), times(VP()), normal(3, 2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Consistency(gamma=1.5), "gamma must be"),
        (lambda: Consistency(end=-0.1), "end must be"),
        (lambda: Consistency(f=3), "f must be a callable"),
        (lambda: sample(P, X, TS, Consistency(gamma=0.0)), "eta must be 0, whose noise gamma = 0 has, got 1"),
        (lambda: sample(process(VP(), 0.0), X, TS, Consistency()), "eta must be 1"),
        (lambda: sample(P, X, TS, Consistency(end=0.2)), "ts must end at end = 0.2 or above, got 0.05"),
        (lambda: sample(P, X, TS, Consistency(lambda x, t, u: x[:1])), "f must"),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
