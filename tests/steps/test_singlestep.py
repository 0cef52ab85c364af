"""The single-step solvers: their papers' formulas, exactness, order conditions, counted calls."""

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
    MEAN,
    MIXTURE,
    SDES,
    SIZE,
    STD,
    Problem,
    Tape,
    dpm_solver_2,
    dpm_solver_3,
    dpm_solver_pp_2s,
    edm_heun,
    gaussian,
    mixture,
    near,
    no_noise,
    normal,
    phi,
    point,
    probed,
    res_2,
    res_3,
    smooth,
    times,
)

from scoresde import EDM, VE, VP, Counted, Flow, RectifiedFlow, Reference, grid, ode, per_sample, sample, trajectory
from scoresde.reference import DATA, NOISE
from scoresde.steps import RES, Churn, DPMSolver, DPMSolverPP2S, EDMHeun, SingleStep
from scoresde.steps.singlestep import Line, Refined, Thirds

every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
three = pytest.mark.parametrize("sde", [VP(), VE(0.05, 20.0), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
REFERENCE, SIZED = Reference(MEAN, STD), Reference(MEAN, STD, SIZE)
STAGES = {  # and the calls of the network that an interval takes
    "DPMSolver(2)": (DPMSolver(2), 2),
    "DPMSolver(3)": (DPMSolver(3), 3),
    "DPMSolverPP2S": (DPMSolverPP2S(), 2),
    "RES(2)": (RES(2), 2),
    "RES(3)": (RES(3), 3),
    "Line(0.3)": (SingleStep(Line(0.3)), 2),
    "Line(1), noise": (SingleStep(Line(1.0, centred=True), NOISE), 2),
    "Thirds, data": (SingleStep(Thirds()), 3),
}
REFERENCE_MEMBERS = {
    "Line": (SingleStep(Line(0.7), REFERENCE), 2),
    "Thirds": (SingleStep(Thirds(), SIZED), 3),
    "Refined": (SingleStep(Refined(), SIZED), 3),
}
MEMBERS = {**STAGES, **REFERENCE_MEMBERS}
CHURNED = EDMHeun(churn=4.0, low=0.2, high=5.0, noise=1.003)


def over(members):
    return pytest.mark.parametrize(("step", "stages"), members.values(), ids=members.keys())


# the papers' formulas

CHURN = {"churn": 4.0, "low": 0.2, "high": 5.0, "noise": 1.003}
FORMULAS = {
    "DPMSolver(2)": (DPMSolver(2), dpm_solver_2, {}),
    "DPMSolver(3)": (DPMSolver(3), dpm_solver_3, {}),
    "DPMSolverPP2S": (DPMSolverPP2S(), dpm_solver_pp_2s, {}),
    "DPMSolverPP2S(0.3)": (SingleStep(Line(0.3, centred=True)), dpm_solver_pp_2s, {"r": 0.3}),
    "RES(2)": (RES(2), res_2, {}),
    "RES(2), c_2 = 0.8": (SingleStep(Line(0.8)), res_2, {"c_2": 0.8}),
    "RES(3)": (RES(3), res_3, {}),
    "EDMHeun": (EDMHeun(), edm_heun, {}),
    "EDMHeun, churned": (CHURNED, edm_heun, CHURN),
    "EDMHeun, churned at most": (EDMHeun(churn=1e3), edm_heun, {"churn": 1e3}),
}


@three
@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name, sde):
    """The solver is what its paper says, on seven unequal steps."""
    (step, paper, options), ts = FORMULAS[name], times(sde)
    score, x, z = mixture(sde), sde.sigma(ts[0]) * normal(5, 2), normal(7, 5, 2, seed=1)
    found = sample(sde.reverse(score, 0.0), x, ts, step, noise=Tape(z) if "churn" in options else no_noise)
    near(found, paper(Problem(sde, score), x, ts, z, **options))


def test_edm_to_clean_data():
    """Algorithm 2 to the end, t_N = 0, with churn from the first step that T leaves room for: 2n - 1 calls, and a draw
    for each raised level.
    """
    sde = EDM(T=30.0)
    ts = torch.cat([grid.karras(sde, 6, 0.05), torch.zeros(1, dtype=F64)])
    law, x, z = mixture(sde), 30 * normal(5, 2), normal(7, 5, 2, seed=1)
    score = Counted(law)
    for churn, high in ((0.0, 80.0), (2.0, 80.0), (1e3, 10.0)):
        step, before, tape = EDMHeun(churn, 0.1, high, 1.01), score.nfe, Tape(z)
        found = sample(sde.reverse(score, 0.0), x, ts, step, noise=tape)
        assert score.nfe - before == 13
        levels = [float(t) for t in ts[:-1] if churn and 0.1 <= t <= high and t < 30]
        assert len(list(tape.z)) == 7 - len(levels)
        near(found, edm_heun(Problem(sde, law), x, ts, z, churn, 0.1, high, 1.01))


@pytest.mark.parametrize("gamma", [0.05, math.sqrt(2) - 1])
def test_churn_is_churn(gamma):
    """On EDM, where t is sigma, EDMHeun is Churn around Heun's method in t, with gamma = churn/n."""
    sde, ts = EDM(T=30.0), times(EDM(T=30.0))
    q, x, z = sde.reverse(mixture(sde), 0.0), 12 * normal(4, 2), normal(7, 4, 2, seed=1)
    a = sample(q, x, ts, EDMHeun(7 * gamma, 0.2, 5.0), noise=Tape(z))
    near(a, sample(q, x, ts, Churn(Flow(ode.Heun()), 7 * gamma, 0.2, 5.0), noise=Tape(z)))


@given(st.floats(0.05, 3), st.floats(0.05, 1), st.sampled_from([DATA, NOISE, REFERENCE]))
def test_line_weights(h, c, around):
    """The line through the stages is integrated exactly: constants and lambda itself; taken at the middle, half of it.
    In phi functions, for data: b_1 + b_2 = h phi_1(-h), c b_2 = h phi_2(-h); for noise the same of h.
    """
    low, h = torch.tensor([-0.7], dtype=F64), torch.tensor(h, dtype=F64)

    def moments(a, b):
        at, mass = around.masses(a, b, 0.0)
        r = around.decay(a, b, 0.0)
        return mass.sum(1) / r, (mass * (at - low[:, None])).sum(1) / h / r

    mu = [moments(low, low + c * h), moments(low, low + h)]
    S = [around.log_S(low + c * h).exp(), around.log_S(low + h).exp()]
    (first,), (b_1, b_2) = Line(c).rows(mu, S)
    torch.testing.assert_close(first, mu[0][0])
    torch.testing.assert_close(b_1 + b_2, mu[1][0])
    torch.testing.assert_close(c * b_2, mu[1][1])
    _, (b_1, b_2) = Line(c, centred=True).rows(mu, S)
    torch.testing.assert_close(b_1 + b_2, mu[1][0])
    torch.testing.assert_close(c * b_2, mu[1][0] / 2)
    if around is not REFERENCE:
        z = float(h if around is NOISE else -h)
        unit = (low + h).exp() if around is NOISE else around.decay(low, low + h, 0.0)
        for k in (1, 2):
            torch.testing.assert_close(unit * mu[1][k - 1], float(h) * phi(k, z) * torch.ones(1, dtype=F64))


# exactness


@every_sde
def test_exact_for_a_point(sde):
    """Data at one point: x_s = alpha_s m + sigma_s/sigma_t (x - alpha_t m) in one step or seven, by data or noise."""
    x = normal(3, 2)
    for ts in (times(sde), times(sde)[[0, -1]]):
        ratio = sde.sigma(ts[-1]) / sde.sigma(ts[0])
        truth = sde.alpha(ts[-1]) * MEAN + ratio * (x - sde.alpha(ts[0]) * MEAN)
        for step in [*(step for step, _ in STAGES.values()), EDMHeun()]:
            near(sample(sde.reverse(point(sde), 0.0), x, ts, step, noise=no_noise), truth, 1e-11)


@every_sde
def test_exact_for_gaussian_data(sde):
    """Data N(m, c^2 I): (x - alpha m)/sqrt(alpha^2 c^2 + sigma^2) is kept, in one step or seven, for any sizes."""
    q, x = sde.reverse(gaussian(sde), 0.0), normal(3, 2)
    for ts in (times(sde), times(sde)[[0, -1]]):
        wide = [torch.hypot(STD * sde.alpha(t), sde.sigma(t)) for t in (ts[0], ts[-1])]
        truth = sde.alpha(ts[-1]) * MEAN + wide[1] / wide[0] * (x - sde.alpha(ts[0]) * MEAN)
        for step, _ in REFERENCE_MEMBERS.values():
            near(sample(q, x, ts, step, noise=no_noise), truth, 1e-11)


def test_churn_keeps_the_law_of_a_point():
    """With churn, and S_noise = 1, x_t has the law N(alpha_t m, sigma_t^2 I) at every time: kicks are transitions."""
    for sde in SDES:
        ts = times(sde)
        q = sde.reverse(point(sde), 0.0)
        start, A, V = probed(lambda x, noise, q=q, ts=ts: sample(q, x, ts, EDMHeun(3.0), noise=noise))
        eye = torch.eye(2, dtype=F64)
        near(start + A @ (sde.alpha(ts[0]) * MEAN), sde.alpha(ts[-1]) * MEAN, 1e-10)
        near(sde.var(ts[0]) * A @ A.T + V, sde.var(ts[-1]) * eye, 1e-10)
        assert V[0, 0] > 0.1 * sde.var(ts[-1])


@three
def test_reference_between_data_and_noise(sde):
    """std -> 0 is data prediction and std -> infinity noise prediction."""
    q, ts, x = sde.reverse(mixture(sde), 0.0), times(sde), normal(4, 2)
    for tableau in (Line(0.4), Thirds(), Refined()):
        for limit, sign in ((DATA, -1), (NOISE, 1)):
            truth = sample(q, x, ts, SingleStep(tableau, limit))
            off = [
                float((sample(q, x, ts, SingleStep(tableau, Reference(std=10.0 ** (sign * n)))) - truth).norm())
                for n in (2, 3, 7)
            ]
            assert off[0] / off[1] == pytest.approx(100, rel=0.05) and off[2] < 1e-10


def test_sizes():
    """One size changes nothing; several change the weights, but of the first stage of one step."""
    sde, ts = VP(), times(VP())
    q, x = sde.reverse(mixture(sde), 0.0), normal(4, 2)
    for tableau, around in itertools.product((Line(0.4), Thirds(), Refined()), (DATA, REFERENCE, NOISE)):
        truth = sample(q, x, ts, SingleStep(tableau, around))
        near(sample(q, x, ts, SingleStep(tableau, replace(around, size=((0.1, 7.0),)))), truth)
        assert (sample(q, x, ts, SingleStep(tableau, replace(around, size=SIZE))) - truth).abs().max() > 1e-4


# calls, states, grids


@over(MEMBERS)
def test_calls_and_states(step, stages):
    """As many calls an interval as stages, in one step or seven, and one in the last to sigma = 0, where the result is
    alpha_s E[x_0 | x_t].
    """
    sde, x = VP(), normal(3, 2)
    law, score = mixture(sde), Counted(mixture(sde))
    q = sde.reverse(score, 0.0)
    for n in (1, 2, 7):
        ts, before = times(sde)[: n + 1], score.nfe
        states = list(trajectory(q, x, ts, step, noise=no_noise))
        assert len(states) == n + 1 and score.nfe - before == n * stages
        longer, before = torch.cat([ts, torch.zeros(1, dtype=F64)]), score.nfe
        last = sample(q, x, longer, step, noise=no_noise)
        assert score.nfe - before == n * stages + 1
        near(last, law.denoise(states[-1], ts[-1]), 1e-11)
    near(sample(q, x, longer[-2:], step), law.denoise(x, longer[-2]), 1e-11)


def test_calls_of_edm():
    """2n calls, 2n - 1 to sigma = 0, with churn or without."""
    sde, x = VP(), normal(3, 2)
    score = Counted(mixture(sde))
    for step, n in itertools.product((EDMHeun(), CHURNED), (1, 2, 7)):
        ts, before = times(sde)[: n + 1], score.nfe
        assert len(list(trajectory(sde.reverse(score, 0.0), x, ts, step))) == n + 1 and score.nfe - before == 2 * n
        longer, before = torch.cat([ts[:n], torch.zeros(1, dtype=F64)]), score.nfe
        sample(sde.reverse(score, 0.0), x, longer, step)
        assert score.nfe - before == 2 * n - 1


EVERY = {**{name: step for name, (step, _) in MEMBERS.items()}, "EDMHeun": EDMHeun(), "churned": CHURNED}
every_step = pytest.mark.parametrize("step", EVERY.values(), ids=EVERY.keys())


@every_step
def test_memory_is_fresh(step):
    """One value samples twice, and two trajectories at once, each as if alone; a call is a trajectory of one step."""
    sde, ts, other = VP(), times(VP()), times(VP(), [-2.0, -1.0, 0.5, 1.0])
    q, x, y = sde.reverse(mixture(sde), 0.0), normal(3, 2), normal(3, 2, seed=8)
    z = normal(7, 3, 2, seed=1)
    a, b = sample(q, x, ts, step, noise=Tape(z)), sample(q, y, other, step, noise=Tape(z))
    pair = (trajectory(q, x, ts, step, noise=Tape(z)), trajectory(q, y, other, step, noise=Tape(z)))
    both = list(itertools.zip_longest(*pair))
    assert torch.equal(both[-1][0], a) and torch.equal(both[3][1], b)
    assert torch.equal(sample(q, x, ts, step, noise=Tape(z)), a)
    assert torch.equal(step(q, x, ts[2], ts[3], Tape(z)), sample(q, x, ts[2:4], step, noise=Tape(z)))


@every_step
def test_rows_are_independent(step):
    """Bit for bit: a row depends on itself and its seed, not on the batch; and (B, C, H, W) is (B, d)."""
    sde, x, seeds = VP(), normal(9, 2), per_sample(range(9))
    q, ts = sde.reverse(smooth, 0.0), times(VP())
    whole = sample(q, x, ts, step, noise=seeds)
    for cut in ([0, 5, 9], [0, 1, 2, 9]):
        parts = [sample(q, x[a:b], ts, step, noise=seeds.rows(a, b)) for a, b in zip(cut, cut[1:])]
        assert torch.equal(torch.cat(parts), whole)
    if isinstance(step, SingleStep) and isinstance(step.around.mean, torch.Tensor):
        step = replace(step, around=replace(step.around, mean=step.around.mean.view(2, 1, 1)))
    assert torch.equal(sample(q, x.view(9, 2, 1, 1), ts, step, noise=seeds.rows(0, 9)).view(9, 2), whole)


@every_step
def test_single_precision(step):
    """A state in float32 stays so, and agrees with float64 to its digits."""
    sde, x, z = VP(), normal(20, 2), normal(7, 20, 2, seed=1)
    q, ts = sde.reverse(mixture(sde), 0.0), times(VP())
    y = sample(q, x.float(), ts, step, noise=Tape(z))
    assert y.dtype == torch.float32
    near(y.double(), sample(q, x, ts, step, noise=Tape(z)), 2e-5)


@pytest.mark.parametrize(
    "sde", [VP(), VE(0.05, 20.0), RectifiedFlow(), EDM(T=30.0)], ids=lambda sde: type(sde).__name__
)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_few_steps_do_not_overshoot(sde, n):
    """From the prior to sigma/alpha = 0.1 in one step, two or five equal ones of log-SNR: no sample of data prediction
    ends beyond twice the largest of as many data. Noise prediction goes along sigma, where the middle of the first step
    is as far as half the prior: it has a part 2^-n of the prior to spare.
    """
    end = sde.time(torch.tensor(-math.log(0.1), dtype=F64))
    ts, x = grid.log_snr(sde, n, float(end)), sde.sigma(sde.T) * normal(200, 2)
    q, most = sde.reverse(mixture(sde), 0.0), 2 * float(MIXTURE.sample(2000, torch.Generator()).abs().max())
    far = (x / sde.alpha(sde.T)).abs().max()
    for name, step in EVERY.items():
        y = sample(q, x, ts, step, noise=Tape(normal(n, 200, 2, seed=1))) / sde.alpha(end)
        more = 0.0 if isinstance(step, SingleStep) and step.around is not NOISE else float(far) / 2**n
        assert y.abs().max() < most + more, name


# bad input


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DPMSolver(1), "order must be 2 or 3, got 1"),
        (lambda: DPMSolver(4), "order must be 2 or 3, got 4"),
        (lambda: RES("2"), "order must be 2 or 3, got '2'"),
        (lambda: Line(0.0), "c2 must be a finite number > 0 and <= 1, got 0.0"),
        (lambda: Line(1.1), "c2 must be a finite number > 0 and <= 1, got 1.1"),
        (lambda: SingleStep(3), "tableau must be a value such as Line(), got 3"),
        (lambda: EDMHeun(churn=-1.0), "churn must be a finite number >= 0, got -1.0"),
        (lambda: EDMHeun(low=-1.0), "low must be a finite number >= 0, got -1.0"),
        (lambda: EDMHeun(low=2.0, high=1.0), "high must be a finite number >= 2, got 1.0"),
        (lambda: EDMHeun(noise=math.inf), "noise must be a finite number >= 0, got inf"),
    ],
)
def test_bad_values(make, said):
    """One clear error, naming the argument."""
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        make()


@every_step
def test_it_needs_the_flow(step):
    """eta is 0, and the grid decreases."""
    sde, x = VP(), normal(2, 2)
    for eta in (0.3, 1.0):
        p, ts = sde.reverse(mixture(sde), eta), times(sde)
        said = f"^an ODE step needs the probability flow, eta=0, got eta={eta:g}$"
        for run in (lambda p=p, ts=ts: sample(p, x, ts, step), lambda p=p, ts=ts: step(p, x, ts[0], ts[1], no_noise)):
            with pytest.raises(ValueError, match=said):
                run()
    with pytest.raises(ValueError, match=r"^ts must strictly decrease, but ts\[1\] = 0.4 and ts\[2\] = 0.4$"):
        sample(sde.reverse(mixture(sde), 0.0), x, torch.tensor([0.9, 0.4, 0.4], dtype=F64), step)


@every_step
def test_off_its_grid(step):
    """A started step takes the intervals of its grid, in order, and no other."""
    sde, x, ts = VP(), normal(2, 2), times(VP())
    q, said = sde.reverse(mixture(sde), 0.0), r"^(SingleStep|Churn)\(.*\) was started on intervals of which none from t"
    for t, s in ((ts[1], ts[2]), (ts[0], ts[2]), (ts[0], ts[0])):
        with pytest.raises(ValueError, match=said):
            step.start(q, ts[:-1], ts[1:])(q, x, t, s, Tape(normal(7, 2, 2)))
    started = step.start(q, ts[:1], ts[1:2])
    started(q, x, ts[0], ts[1], Tape(normal(7, 2, 2)))
    with pytest.raises(ValueError, match=said):
        started(q, x, ts[1], ts[2], Tape(normal(7, 2, 2)))


@pytest.mark.parametrize("step", [DPMSolver(2), DPMSolver(3), RES(3), EDMHeun(), Churn(DPMSolver(2), 10.0)], ids=repr)
def test_intervals_that_end_without_noise_may_stand_anywhere(step):
    """Intervals need not follow one another, and those that end at sigma = 0 need not be the last: each is what the
    step is there alone.
    """
    p = VP().reverse(lambda x, t: -torch.tanh(x), 0.0)
    t, s = (torch.tensor(u, dtype=F64) for u in ([0.5, 1.0, 0.4, 0.9], [0.0, 0.5, 0.0, 0.2]))
    begun = step.start(p, t, s)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for a, b in zip(t, s):
        churned = getattr(step, "churn", 0.0)
        alone = replace(step, churn=churned / 4) if churned else step
        found = begun(p, x, a, b, per_sample(range(3)))
        assert found.isfinite().all() and torch.equal(found, alone(p, x, a, b, per_sample(range(3))))
