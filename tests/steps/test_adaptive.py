"""Steps that choose their own sizes: the path that rejections leave alone, papers' formulas, orders, counted calls."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scoresde import (
    EDM,
    VE,
    VP,
    Cosine,
    Counted,
    EulerMaruyama,
    Flow,
    LinearSDE,
    RectifiedFlow,
    SubVP,
    Tabulated,
    exact,
    grid,
    iid,
    per_sample,
    sample,
)
from scoresde.brownian import Bridge, Draws, Path
from scoresde.lab.problems import Modes
from scoresde.ode import Dopri5, Heun, Tsit5
from scoresde.steps.adaptive import Adaptive, DPMSolverAdaptive, GottaGoFast, Tallied, phi

F64 = torch.float64
MIXTURE = exact.GaussianMixture.from_covariances(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[-1.0, 0.5], [1.0, -0.3]]),
    torch.tensor([[[0.4, 0.1], [0.1, 0.3]], [[0.3, -0.1], [-0.1, 0.5]]]),
)
MEAN = torch.tensor([0.7, -0.4], dtype=F64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=F64)
SDES = [VP(), SubVP(), VE(0.05, 20.0), Cosine(), RectifiedFlow(), EDM(T=30.0), Tabulated(torch.linspace(1e-3, 0.2, 50))]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
STEPS = [(1.0, GottaGoFast(0.05, 0.02)), (0.4, GottaGoFast(0.05, 0.02))]
STEPS += [(0.0, DPMSolverAdaptive(order, 0.01, 0.001)) for order in (2, 3)]
every_step = pytest.mark.parametrize(("eta", "step"), STEPS, ids=str)
PAIRS = [(0.0, Flow(method(1e-4, 1e-4))) for method in (Dopri5, Tsit5)]
and_pairs = pytest.mark.parametrize(("eta", "step"), STEPS + PAIRS, ids=str)
both_orders = pytest.mark.parametrize("order", [2, 3])
ALWAYS = {"rtol": 1e30, "atol": 1e30, "h_init": 1e30}  # one step an interval


def normal(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def time(*values):
    return torch.tensor(values, dtype=F64)


def ends(sde, end=0.1):
    """T, and the time where sigma/alpha = end."""
    return torch.stack([time(sde.T)[0], sde.time(-torch.tensor(end, dtype=F64).log())])


def within(values, mean, k=4.5):
    """The mean of independent values along the first dimension is within k standard errors of `mean`."""
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - mean).abs() < k * error).all(), ((values.mean(0) - mean) / error).tolist()


def forgetful(monkeypatch):
    """From here on a rejected increment is forgotten, and noise is drawn anew."""
    settle = Bridge.settle
    monkeypatch.setattr(Bridge, "settle", lambda self, accept, reject: settle(self, accept, reject & False))


def no_noise(x, t, s):
    raise AssertionError("noise was drawn")


# the Brownian path


def walk(B, rejects, seed=0):
    """Steps from 1 to 0 by a `Bridge`, shortened to a random part where `rejects(dW, h, coin)`: lists of (h, dW), with
    h = 0 where a row has arrived or rejected.
    """
    g = torch.Generator().manual_seed(seed)
    now, bridge, taken = torch.ones(B, dtype=F64), Bridge(torch.zeros(B, 2, dtype=F64), torch.ones(B, dtype=F64)), []
    h = torch.rand(B, generator=g, dtype=F64)
    while (now > 0).any():
        to = torch.where(h >= now, 0.0, now - h)
        dW = bridge.reach(to, torch.randn(B, 2, generator=g, dtype=F64))
        coin = torch.rand(2, B, generator=g, dtype=F64)
        reject = rejects(dW, now - to, coin[0]) & (now > 0)
        accept = ~reject & (now > 0)
        bridge.settle(accept, reject)
        taken.append((torch.where(accept, now - to, 0.0), dW * accept[:, None]))
        h = torch.where(reject, (now - to) * coin[1], coin[1])
        now = torch.where(accept, to, now)
    return taken


def test_accepted_increments_are_independent_and_normal():
    """Where rejections do not look at the path, increments over the steps taken are independent N(0, h I), however many
    of them were parts of rejected ones.
    """
    taken = walk(6000, lambda dW, h, coin: coin < 0.7)
    h, dW = (torch.stack(values) for values in zip(*taken))
    z, on = dW / h.clamp_min(1e-300).sqrt()[..., None], h > 0
    own = [z[on[:, i], i] for i in range(z.shape[1])]
    lagged = torch.cat([a[1:] * a[:-1] for a in own])
    assert len(lagged) > 20_000
    for values, moment, variance in (
        (z[on], 0, 1),
        (z[on] ** 2, 1, 2),
        (z[on] ** 3, 0, 15),
        (z[on] ** 4, 3, 96),
        (z[on].prod(1), 0, 1),
        (lagged, 0, 1),
    ):
        assert ((values.mean(0) - moment).abs() < 4.5 * (variance / len(values)) ** 0.5).all()
    torch.testing.assert_close(h.sum(0), torch.ones(6000, dtype=F64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "forgotten"])
def test_selection_does_not_change_the_path(keeps, monkeypatch):
    """Where large increments are rejected, W(1) and W(1) - W(1/2) are still what they are; not so with noise drawn anew
    (Rackauckas & Nie 2017).
    """
    if not keeps:
        forgetful(monkeypatch)
    taken = walk(6000, lambda dW, h, coin: ((dW[:, 0] / h.clamp_min(1e-300).sqrt()).abs() > 0.6) & (coin < 0.8))
    total = sum(dW for _, dW in taken)
    within(total[:, 1], 0.0)
    variance = total[:, 0].square().mean()
    off = abs(float(variance - 1)) / (2 / 6000) ** 0.5
    assert off < 4.5 if keeps else off > 15


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.booleans()), min_size=1, max_size=30), st.integers(0, 99))
def test_what_was_reached_stays(attempts, seed):
    """A time that was ever reached has one value of W, whatever the numbers given, and others do not move it."""
    z, known, now, at = normal(60, 1, 3, seed=seed), {1.0: torch.zeros(1, 3, dtype=F64)}, 1.0, 0
    bridge = Bridge(z[0], time(now))
    for part, accept in attempts:
        to = now * (1 - part) if part < 1 else 0.0
        for z_i in z[at : at + 2]:
            W = known[now] + bridge.reach(time(to), z_i)
            torch.testing.assert_close(W, known.setdefault(to, W), rtol=0, atol=1e-13)
            bridge.settle(torch.tensor([False]), torch.tensor([True]))
        at += 2
        for u in [u for u in known if u < now]:
            torch.testing.assert_close(known[now] + bridge.reach(time(u), z[0]), known[u], rtol=0, atol=1e-13)
        if accept and to > 0:
            bridge.reach(time(to), z[0])
            bridge.settle(torch.tensor([True]), torch.tensor([False]))
            now = to


def test_draws_are_dealt_in_order():
    """Row i receives the draws made for it one after the other, whoever else asks."""
    made, draws = [], Draws()
    draws.keep, got = True, [[], [], []]

    def noise(x, t, s):
        made.append(normal(3, 2, seed=len(made)))
        return made[-1]

    for asking in np.random.default_rng(0).random((40, 3)) < [0.2, 0.5, 0.9]:
        z = draws(torch.zeros(3, 2, dtype=F64), time(1.0)[0], noise, torch.from_numpy(asking))
        for i in asking.nonzero()[0]:
            got[i].append(z[i])
        assert not z[~torch.from_numpy(asking)].any()
    assert len(made) == max(map(len, got)) > min(map(len, got))
    for i, rows in enumerate(got):
        assert torch.equal(torch.stack(rows), torch.stack([draw[i] for draw in made[: len(rows)]]))


# GottaGoFast


def algorithm_1(sde, score, eta, x, t, s, z):
    """x' and x'' of Jolicoeur-Martineau et al. 2021, from the forward drift and diffusion."""

    def D(x, t):
        return sde.drift(x, t) - (1 + eta**2) / 2 * sde.diffusion(t) ** 2 * score(x, t)

    h = t - s
    first = x - h * D(x, t) + h.sqrt() * eta * sde.diffusion(t) * z
    second = x - h * D(first, s) + h.sqrt() * eta * sde.diffusion(s) * z
    return first, (first + second) / 2


def loop(pair, x, now, end, h, step, power, longest=math.inf):
    """The loop of both papers for one sample, but for what an error is relative to, the size at the end of its step,
    and for how far a step grows: x at the end, steps accepted and rejected.
    """
    accepted = rejected = 0
    while now != end:
        h = math.copysign(min(abs(h), longest), h)
        to = end if abs(h) >= abs(end - now) else now + h
        low, high = pair(x, now, to)
        delta = torch.maximum(torch.tensor(step.atol, dtype=F64), step.rtol * torch.minimum(low.abs(), high.abs()))
        E = float(((low - high) / delta).norm()) / x.numel() ** 0.5
        h = (to - now) * min(2.0, 0.9 * E**-power)
        if E <= 1:
            x, now, accepted = high, to, accepted + 1
        else:
            rejected += 1
    return x, accepted, rejected


@every_sde
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_one_step_is_algorithm_1(sde, eta):
    """An interval that is one step ends in x''."""
    x, z, ts, score = normal(5, 2), normal(5, 2, seed=1), ends(sde, 2.0), MIXTURE.diffuse(sde)
    _, want = algorithm_1(sde, score, eta, x, *ts, z)
    got = sample(sde.reverse(score, eta), x, ts, GottaGoFast(**ALWAYS), noise=lambda x, t, s: z)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", [VP(), VE(0.05, 20.0), EDM(T=30.0)], ids=lambda sde: type(sde).__name__)
def test_steps_are_chosen_as_in_algorithm_1(sde):
    """With z = 0, where W need not be remembered, the whole of the paper's loop, accepted and rejected steps too."""
    score, ts, tallied = MIXTURE.diffuse(sde), ends(sde), Tallied(step := GottaGoFast(0.03, 0.003))
    x = sde.sigma(sde.T) * normal(3, 2)
    got = sample(sde.reverse(score), x, ts, tallied, noise=lambda x, t, s: 0 * x)
    for i in range(3):
        pair = lambda x, t, s: algorithm_1(sde, score, 1.0, x, t, s, 0 * x)  # noqa: E731
        want, accepted, rejected = loop(pair, x[i : i + 1], *ts, -0.01 * sde.T, step, 0.9)
        torch.testing.assert_close(got[i : i + 1], want, rtol=1e-9, atol=1e-9)
        assert (tallied.accepted[i], tallied.rejected[i]) == (accepted, rejected) and rejected > 0


def test_without_noise_it_solves_the_drift():
    """With z = 0 what remains is an ODE: ten times less tolerance, about ten times less error; rejected steps too."""
    sde, x = VP(), normal(16, 2)
    p, ts = sde.reverse(MIXTURE.diffuse(sde)), time(1.0, 0.05)
    want = Dopri5(1e-11, 1e-11)(lambda t, x: p.drift(x, t), x, *ts)
    errors, tols = [], [10.0**-k for k in range(2, 6)]
    for tol in tols:
        tallied = Tallied(GottaGoFast(tol, tol))
        errors.append(float((sample(p, x, ts, tallied, noise=lambda x, t, s: 0 * x) - want).abs().max()))
        assert tallied.rejected.sum() > 0
    slope = np.polyfit(np.log10(tols), np.log10(errors), 1)[0]
    assert abs(slope - 1) < 0.25 and all(error < 10 * tol for error, tol in zip(errors, tols))


@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "forgotten"])
def test_rejections_do_not_change_the_variance(keeps, monkeypatch):
    """With score 0, x_s - x_T = int g dW ~ N(0, sigma_T^2 - sigma_s^2), though a step is rejected if dW is large; noise
    drawn anew loses variance.
    """
    if not keeps:
        forgetful(monkeypatch)
    sde, N = VE(0.1, 10.0), 8000
    tallied = Tallied(GottaGoFast(0.0, 0.02))
    x = sample(sde.reverse(lambda x, t: 0 * x), torch.zeros(N, 1, dtype=F64), time(1.0, 0.0), tallied)
    assert tallied.rejected.double().mean() > 20
    off = (float(x.square().mean()) / (100 - 0.01) - 1) / (2 / N) ** 0.5
    assert abs(off) < 4.5 if keeps else off < -15


@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "forgotten"])
def test_mode_weights(keeps, monkeypatch):
    """The eight modes of the ring come out equally often (chi-squared with 7 degrees of freedom); not so with noise
    drawn anew after a rejection, which prefers those that the norm over dimensions sees less of.
    """
    if not keeps:
        forgetful(monkeypatch)
    sde, law, N, g = VE(0.01, 20.0), Modes(8).law(), 6000, torch.Generator().manual_seed(3)
    x = law.diffuse(sde).sample(N, sde.T, g)
    x = sample(sde.reverse(law.diffuse(sde)), x, time(1.0, 0.0), GottaGoFast(0.05, 0.02), noise=iid(g))
    n = torch.bincount(law.responsibilities(x).argmax(1), minlength=8)
    p = stats.chi2.sf(float(((n - N / 8) ** 2).sum() / (N / 8)), 7)
    assert p > 1e-3 if keeps else p < 1e-12


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_moments_on_gaussian_data(eta):
    """Mean and covariance are those of p_end, whatever eta."""
    sde, N, g = VP(), 8000, torch.Generator().manual_seed(5)
    law = exact.Gaussian(MEAN, COV).diffuse(sde)
    x = sample(sde.reverse(law, eta), law.sample(N, 1.0, g), time(1.0, 0.01), GottaGoFast(0.01, 0.004), noise=iid(g))
    z = x - sde.alpha(0.01) * MEAN
    within(z, torch.zeros(2))
    want = sde.alpha(0.01) ** 2 * COV + sde.var(time(0.01)) * torch.eye(2)
    within(z[:, :, None] * z[:, None], want)


@pytest.mark.slow
def test_the_law_improves_with_the_tolerance():
    """E log p of the samples tends to that of the data, and is within 4.5 standard errors of it at the default."""
    sde, law, N, g = VE(0.01, 20.0), Modes(8).law(), 6000, torch.Generator().manual_seed(3)
    score = law.diffuse(sde)
    true, off = score.log_prob(score.sample(N, 0.0, g), 0.0), []
    x_T = score.sample(N, sde.T, g)
    for step in (GottaGoFast(1.0, 0.2), GottaGoFast(0.5, 0.1), GottaGoFast()):
        got = score.log_prob(sample(sde.reverse(score), x_T, time(1.0, 0.0), step, noise=iid(g)), 0.0)
        off.append(abs(float(got.mean() - true.mean())))
    error = float((got.var() + true.var()) / N) ** 0.5
    assert off[0] > 3 * off[1] > 18 * error and off[2] < 4.5 * error


def test_a_given_path_is_refused():
    """Draws are no increments of a path given from outside, which says so."""
    p, x = VP().reverse(MIXTURE.diffuse(VP())), normal(2, 2)
    with pytest.raises(ValueError, match="empty interval"):
        sample(p, x, time(1.0, 0.1), GottaGoFast(), noise=Path(0.1, 1.0, (2, 2)))


# DPMSolverAdaptive


def dpm_solvers(order, sde, score, x, lam, lam_s):
    """DPM-Solver-(order - 1) and -order of Lu et al. 2022a, Algorithms 1 and 2 and appendix C, in the letters there."""
    h, t = lam_s - lam, sde.time(lam)
    r1 = {2: 1 / 2, 3: 1 / 3}[order]

    def eps(x, t):
        return -sde.sigma(t) * score(x, t)

    def u(r):
        t_i = sde.time(lam + r * h)
        return t_i, sde.alpha(t_i) / sde.alpha(t) * x - sde.sigma(t_i) * ((r * h).exp() - 1) * eps(x, t)

    s1, u1 = u(r1)
    s, first = u(1.0)
    D1 = eps(u1, s1) - eps(x, t)
    second = first - sde.sigma(s) / (2 * r1) * (h.exp() - 1) * D1
    if order == 2:
        return first, second
    r2 = 2 / 3
    s2, u2 = u(r2)
    u2 = u2 - sde.sigma(s2) * r2 / r1 * (((r2 * h).exp() - 1) / (r2 * h) - 1) * D1
    D2 = eps(u2, s2) - eps(x, t)
    return second, first - sde.sigma(s) / r2 * ((h.exp() - 1) / h - 1) * D2


@every_sde
@both_orders
def test_one_step_is_dpm_solver(sde, order):
    """An interval that is one step ends in the better solution."""
    x, ts, score = normal(5, 2), torch.cat([ends(sde, 5.0)[1:], ends(sde, 2.0)[1:]]), MIXTURE.diffuse(sde)
    _, want = dpm_solvers(order, sde, score, x, *sde.log_snr(ts))
    got = sample(sde.reverse(score, 0.0), x, ts, DPMSolverAdaptive(order, **ALWAYS), noise=no_noise)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)  # alpha_T of RectifiedFlow is 1 - 0.999


@both_orders
@pytest.mark.parametrize("sde", [VP(), VE(0.05, 20.0), EDM(T=30.0)], ids=lambda sde: type(sde).__name__)
def test_steps_are_chosen_as_in_appendix_c(sde, order):
    """The whole loop, accepted and rejected steps too."""
    score, ts, tallied = MIXTURE.diffuse(sde), ends(sde), Tallied(step := DPMSolverAdaptive(order, 0.03, 0.003))
    x = sde.sigma(sde.T) * normal(3, 2)
    got = sample(sde.reverse(score, 0.0), x, ts, tallied)
    for i in range(3):
        pair = lambda x, a, b: dpm_solvers(order, sde, score, x, a, b)  # noqa: E731
        want, accepted, rejected = loop(pair, x[i : i + 1], *sde.log_snr(ts), 0.05, step, 1 / order, 1.5)
        torch.testing.assert_close(got[i : i + 1], want, rtol=1e-9, atol=1e-9)
        assert (tallied.accepted[i], tallied.rejected[i]) == (accepted, rejected) and rejected > 0


@every_sde
@both_orders
def test_exact_where_eps_is_a_polynomial_in_lambda(sde, order):
    """With eps of degree order - 2 in lambda, x_s/alpha_s = x_t/alpha_t - int exp(-lambda) eps dlambda is exact, at any
    tolerance: order 2 for a constant, order 3 for a line.
    """
    slope, x, ts = order - 2, normal(4, 2), ends(sde)
    score = lambda x, t: (-(1 + slope * sde.log_snr(t)) / sde.sigma(t)).view(-1, 1) + 0 * x  # noqa: E731
    low, high = sde.log_snr(ts)
    integral = [-(-v).exp() * (1 + slope * (v + 1)) for v in (low, high)]
    want = sde.alpha(ts[1]) * (x / sde.alpha(ts[0]) - (integral[1] - integral[0]))
    for tol in (1.0, 1e-4):
        got = sample(sde.reverse(score, 0.0), x, ts, DPMSolverAdaptive(order, tol, tol))
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@both_orders
@pytest.mark.parametrize("sde", [VP(), VE(0.05, 20.0), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
def test_order_of_convergence(sde, order):
    """Accepting every step, the better solution has its order on the flow of a mixture."""
    p, x, end = sde.reverse(MIXTURE.diffuse(sde), 0.0), sde.sigma(sde.T) * normal(8, 2), float(ends(sde)[1])
    want = sample(p, x, time(sde.T, end), Flow(Dopri5(1e-11, 1e-11)))
    ns = (24, 48, 96)
    errors = [
        float((sample(p, x, grid.log_snr(sde, n, end), DPMSolverAdaptive(order, **ALWAYS)) - want).norm()) for n in ns
    ]
    assert abs(np.polyfit(-np.log(ns), np.log(errors), 1)[0] - order) < 0.25


@both_orders
def test_error_follows_the_tolerance(order):
    """Ten times less tolerance, about ten times less error, against Dopri5 at 1e-11."""
    sde, x = VP(), normal(32, 2)
    p, ts = sde.reverse(MIXTURE.diffuse(sde), 0.0), time(1.0, 1e-3)
    want = sample(p, x, ts, Flow(Dopri5(1e-11, 1e-11)))
    tols = [10.0**-k for k in range(2, 7)]
    errors = [float((sample(p, x, ts, DPMSolverAdaptive(order, tol, tol)) - want).abs().max()) for tol in tols]
    assert abs(np.polyfit(np.log10(tols), np.log10(errors), 1)[0] - 1) < 0.25
    assert all(error < 30 * tol for error, tol in zip(errors, tols))


EVERY = [VP(), SubVP(), VE(), Cosine(), RectifiedFlow(), EDM()]
LAWS = {
    "gaussian": exact.Gaussian(torch.zeros(4), torch.full((4,), 0.25)),
    "mixture": exact.GaussianMixture(
        torch.tensor([0.4, 0.6]),
        torch.tensor([[-0.4, 0.1, 0.2, 0.0], [0.3, 0.2, -0.3, 0.0]]),
        torch.tensor([0.09, 0.12]),
    ),
}
TOLS = [(0.05, 0.0078), (0.05, 0.05), (0.01, 0.001), (0.001, 0.001), (0.0001, 0.0001)]
SOLVERS = {
    "DPM2": lambda r, a: DPMSolverAdaptive(2, r, a),
    "DPM3": lambda r, a: DPMSolverAdaptive(3, r, a),
    "Dopri5": lambda r, a: Flow(Dopri5(r, a)),
    "Tsit5": lambda r, a: Flow(Tsit5(r, a)),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("sde", EVERY, ids=lambda sde: type(sde).__name__)
def test_error_is_what_was_tolerated_on_every_process(sde, law):
    """In deviations c of the data the error of the ends is at most 3 (rtol + atol/c), from all of the noise that the
    process has, by every solver at every tolerance, and the strictest is a hundred times nearer than the loosest.
    """
    p, x = sde.reverse(law.diffuse(sde), 0.0), sde.sigma(sde.T) * normal(24, 4)
    ts, c = (
        time(sde.T, sde.t_min),
        float(law.sample(4000, torch.Generator().manual_seed(1)).std(0).square().mean().sqrt()),
    )
    want = sample(p, x, ts, Flow(Dopri5(1e-9, 1e-9)))
    for make in SOLVERS.values():
        errors = [float((sample(p, x, ts, make(r, a)) - want).square().mean().sqrt()) / c for r, a in TOLS]
        assert all(e < 3 * (r + a / c) for e, (r, a) in zip(errors, TOLS)), errors
        assert errors[-1] < 0.1 * 3 * TOLS[0][0]


def test_no_step_is_longer_than_what_tells_its_error():
    """However loose the tolerance, steps grow to twice the last and to 1.5 in lambda: 0.05, 0.1, 0.2, ..., 1.5, 1.5."""
    sde, seen = EDM(), []

    def score(x, t):
        seen.append(float(sde.log_snr(t[0])))
        return -x / t.view(-1, 1) ** 2

    sample(sde.reverse(score, 0.0), normal(1, 2), time(sde.T, sde.t_min), DPMSolverAdaptive(2, 1e3, 1e3))
    steps = time(*seen[::2]).diff()
    assert steps[:3].tolist() == pytest.approx([0.05, 0.1, 0.2]) and steps.max() == pytest.approx(1.5)


def test_phi():
    """(e^h - 1 - h)/h, at every h as accurate as its integral int_0^1 (e^(h u) - 1) du, which does not cancel."""
    u, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(40))
    h = torch.cat([10 ** torch.linspace(-12, 1.3, 200, dtype=F64), -(10 ** torch.linspace(-12, 1, 50, dtype=F64))])
    torch.testing.assert_close(phi(h), torch.expm1(h[:, None] * (u + 1) / 2) @ (w / 2), rtol=1e-13, atol=0)
    assert phi(time(0.0)) == 0


# rows, calls, types


@dataclass(frozen=True)
class Bends(LinearSDE):
    """VP at one rate, in elementary operations, whose last bit does not depend on the batch."""

    def log_alpha(self, t):
        return -2 * t

    def var(self, t):
        return -torch.expm1(-4 * t)

    def time(self, log_snr):
        return torch.log1p((-2 * log_snr).exp()) / 4

    def score(self, x, t):
        """Not linear, of one row alone, and elementwise."""
        t = t.view(-1, 1).expand_as(x)
        return -x / (0.1 + t) + 3 * x / (0.3 + x * x)


@and_pairs
@pytest.mark.parametrize("ts", [time(1.0, 0.05), time(1.0, 0.7, 0.3, 0.05)], ids=["one interval", "three"])
def test_rows_are_independent_to_the_last_bit(eta, step, ts):
    """A batch of 24 is 24 batches of 1, and 7 + 17, with noise per sample; so are the steps that each row took."""
    sde, x, noise = Bends(), normal(24, 3), per_sample(range(24))

    def run(a, b):
        tallied = Tallied(step)
        y = sample(sde.reverse(sde.score, eta), x[a:b], ts, tallied, noise=noise.rows(a, b))
        return y, tallied.accepted, tallied.rejected

    whole = run(0, 24)
    assert len(set(whole[1].tolist())) > 3 and (whole[2].sum() > 0 or (0.0, step) in PAIRS)
    for parts in ([run(0, 7), run(7, 24)], [run(i, i + 1) for i in range(24)]):
        for a, b in zip(whole, zip(*parts)):
            assert torch.equal(a, torch.cat(b))


@and_pairs
def test_rows_are_independent_with_the_exact_score(eta, step):
    """The same to 1e-9 with a mixture's score, whose own sums depend on the batch in the last bits."""
    sde, x, noise = VE(0.05, 20.0), 20 * normal(24, 2), per_sample(range(24))
    p = sde.reverse(MIXTURE.diffuse(sde), eta)
    run = lambda a, b: sample(p, x[a:b], ends(sde), step, noise=noise.rows(a, b))  # noqa: E731
    torch.testing.assert_close(torch.cat([run(0, 5), run(5, 24)]), run(0, 24), rtol=1e-9, atol=1e-9)


@every_step
@pytest.mark.parametrize("seed", range(4))
def test_every_call_is_accounted_for(eta, step, seed):
    """For one sample, a step that is accepted costs all calls of its formula, and one that is rejected all but the
    first, which the next step uses; there is one draw of noise a step on an SDE, and none on the flow.
    """
    score, draws, tallied = Counted(MIXTURE.diffuse(VP())), Counted(iid()), Tallied(step)
    sample(VP().reverse(score, eta), normal(1, 2, seed=seed), time(1.0, 0.01), tallied, noise=draws)
    calls, taken, refused = getattr(step, "order", None) or 2, int(tallied.accepted), int(tallied.rejected)
    assert score.nfe == calls * taken + (calls - 1) * refused and refused > 0
    assert draws.nfe == (taken + refused if eta else 0)


@pytest.mark.parametrize(("eta", "step"), PAIRS, ids=str)
@pytest.mark.parametrize("tol", [1e-2, 1e-5])
def test_calls_of_an_embedded_pair(eta, step, tol):
    """Six a step, accepted or not, and one to start each interval; a stricter tolerance takes more steps, to less than
    it of the tightest result.
    """
    score, ts, x = Counted(MIXTURE.diffuse(VP())), time(1.0, 0.5, 0.01), normal(1, 2)
    tallied = Tallied(Flow(type(step.method)(tol, tol)))
    y = sample(VP().reverse(score, eta), x, ts, tallied)
    assert score.nfe == 6 * int(tallied.accepted + tallied.rejected) + 2
    rough = Tallied(Flow(type(step.method)(10 * tol, 10 * tol)))
    sample(VP().reverse(score, eta), x, ts, rough)
    assert tallied.accepted > rough.accepted
    best = sample(VP().reverse(score, eta), x, ts, Flow(type(step.method)(1e-11, 1e-11)))
    assert float((y - best).abs().max()) < 10 * tol


@every_step
def test_the_network_always_sees_the_whole_batch(eta, step):
    """A score may hold one label a row: it is asked for all rows, each at a time of its own between the ends; the
    longest run among the rows is how long the batch takes.
    """
    law, seen = MIXTURE.diffuse(VP()), []

    def score(x, t):
        seen.append(t)
        return law(x, t)

    tallied = Tallied(step)
    sample(VP().reverse(score, eta), normal(20, 2), time(1.0, 0.01), tallied)
    times, longest = torch.stack(seen), int((tallied.accepted + tallied.rejected).max())
    assert times.shape[1:] == (20,) and times.min() > 0.01 - 1e-12 and times.max() <= 1
    calls = getattr(step, "order", None) or 2
    assert (calls - 1) * longest < len(times) <= calls * longest


@and_pairs
def test_counts_add_up_over_a_grid(eta, step):
    """Over a grid the counts are the sums of those of its intervals; sampling again counts anew."""
    sde, ts = Bends(), time(1.0, 0.5, 0.05)
    p, x, tallied = sde.reverse(sde.score, eta), normal(6, 3), Tallied(step)
    for _ in range(2):
        y = sample(p, x, ts, tallied, noise=per_sample(range(6)))
    a = step.run(p, x, ts[0], ts[1], noise := per_sample(range(6)))
    if not eta:
        b = step.run(p, a.x, ts[1], ts[2], noise)
        assert torch.equal(y, b.x) and torch.equal(tallied.accepted, a.accepted + b.accepted)
        assert torch.equal(tallied.rejected, a.rejected + b.rejected)
    assert (tallied.accepted > a.accepted).all() and (tallied.rejected >= a.rejected).all()


@every_step
def test_images_and_float32(eta, step):
    """(B, C, H, W) is sampled as its flattened rows are, and float32 stays."""
    law = exact.GaussianMixture(torch.ones(2), torch.linspace(-1, 1, 24).view(2, 3, 2, 2), torch.tensor([0.3, 0.2]))
    flat = exact.GaussianMixture(torch.ones(2), torch.linspace(-1, 1, 24).view(2, 12), torch.tensor([0.3, 0.2]))
    x, sde = normal(4, 12), VP()

    def run(law, x):
        return sample(sde.reverse(law.diffuse(sde), eta), x, time(1.0, 0.1), step, noise=per_sample(range(4)))

    rows = run(flat, x)
    torch.testing.assert_close(run(law, x.view(4, 3, 2, 2)).flatten(1), rows, rtol=1e-10, atol=1e-10)
    y = run(law, x.view(4, 3, 2, 2).float())
    assert y.dtype == torch.float32 and y.shape == (4, 3, 2, 2)


# what cannot be done


class Unreadable(torch.nn.Module):
    """A score that is nan for one row below t = 1/2."""

    def forward(self, x, t):
        score = -x
        score[2] = torch.where(t[2] < 0.5, math.nan, score[2])
        return score


@every_step
def test_a_drift_that_is_not_finite(eta, step):
    """The sample and where it is are named."""
    with pytest.raises(RuntimeError, match=r"^the drift of sample 2 is not finite at t = 0\.[5-9]"):
        sample(VP().reverse(Unreadable(), eta), normal(4, 2), time(1.0, 0.1), step)


@every_step
def test_too_few_steps(eta, step):
    """The sample that is late and where it is are named."""
    short = type(step)(rtol=1e-6, atol=1e-6, max_steps=5)
    with pytest.raises(RuntimeError, match=r"^max_steps = 5 do not suffice to t = 0\.1: sample 0 is at t = 0\.\d+$"):
        sample(VP().reverse(MIXTURE.diffuse(VP()), eta), normal(4, 2), time(1.0, 0.1), short)


@pytest.mark.parametrize(
    ("step", "eta", "end", "match"),
    [
        (GottaGoFast(), 0.0, 0.1, "eta > 0, got eta=0"),
        (DPMSolverAdaptive(), 1.0, 0.1, "eta=0, got eta=1"),
        (Tallied(DPMSolverAdaptive()), 0.5, 0.1, "eta=0, got eta=0.5"),
        (GottaGoFast(), 1.0, 0.0, "sigma = 0"),
        (DPMSolverAdaptive(), 0.0, 0.0, "sigma = 0"),
    ],
)
def test_impossible_processes(step, eta, end, match):
    """A step on a process or to a time that it cannot follow says so before the score is called once."""
    score = Counted(MIXTURE.diffuse(VP()))
    with pytest.raises(ValueError, match=match):
        sample(VP().reverse(score, eta), normal(2, 2), time(1.0, end), step)
    if isinstance(step, Adaptive):
        with pytest.raises(ValueError, match=match):
            step(VP().reverse(score, eta), normal(2, 2), *time(1.0, end), iid())
    assert score.nfe == 0


@pytest.mark.parametrize("make", [GottaGoFast, DPMSolverAdaptive])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rtol", [-1e-300, math.nan, None, "1"]),
        ("atol", [0, -1, math.inf]),
        ("h_init", [0.0, math.nan]),
        ("theta", [0, 1, 1.5]),
        ("max_steps", [0, 1.5, True]),
    ],
)
def test_arguments_are_checked(make, name, values):
    """By name."""
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must"):
            make(**{name: value})


def test_own_arguments_are_checked():
    """r, order, and what can be tallied."""
    for order in (0, 1, 4, 2.0, None):
        with pytest.raises(ValueError, match="^order must"):
            DPMSolverAdaptive(order)
    with pytest.raises(ValueError, match="^r must"):
        GottaGoFast(r=0)
    for step in (EulerMaruyama(), GottaGoFast, None, Flow(Heun())):
        with pytest.raises(ValueError, match="^step must accept and reject"):
            Tallied(step)
