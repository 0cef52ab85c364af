"""The orders that steps declare, measured: on the flow against the flow, on the reverse SDE on one Brownian path.

Between lambda = 0.3 and 2.5 the modes of the mixture part, so that everything that a solver interpolates changes from
the first step on, and a start-up of low order shows. Steps of unequal length, 1 : 1.6 in turn, show weights that are
right for equal ones alone; on a grid that changes gradually such weights cost no more than third order.
"""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from papers import F64, probed

from scoresde import (
    DDIM,
    VE,
    VP,
    Ancestral,
    DPMSolverPP,
    EulerMaruyama,
    Flow,
    GaussianReference,
    Langevin,
    Reference,
    ReverseDiffusion,
    SASolver,
    UniPC,
    exact,
    iid,
    ode,
    sample,
)
from scoresde.brownian import GridPath
from scoresde.lab.orders import Limit, path_errors, slope
from scoresde.reference import NOISE
from scoresde.steps import (
    BH1,
    DEIS,
    IPNDM,
    MALA,
    RES,
    AnalyticDPM,
    Centred,
    Churn,
    ConsistentAnnealed,
    DPMSolver,
    DPMSolverPP2S,
    DPMSolverPPSDE,
    EDMHeun,
    EqualSteps,
    HalfBent,
    InTime,
    LearnedVariance,
    Multistep,
    Renoised,
    Rising,
    SingleStep,
)
from scoresde.steps.singlestep import Line, Refined, Thirds

LAW = exact.GaussianMixture(
    torch.tensor([1.0, 2.0, 1.0]),
    torch.tensor([[-1.0, 0.0], [0.8, 0.5], [0.0, -1.0]]),
    torch.tensor([0.2, 0.3, 0.15], dtype=F64),
)
LOW, HIGH = 0.3, 2.5
NUMBERS = [96, 192]
AROUND = Reference(torch.tensor([0.1, -0.1], dtype=F64), 0.6)
PROCESSES = {"VP": VP(), "VE": VE(0.05, 20.0)}

NAMED = {
    "DDIM": DDIM(),
    **{f"DPMSolverPP({k})": DPMSolverPP(k) for k in (1, 2, 3)},
    **{f"UniPC({k})": UniPC(k) for k in (1, 2, 3)},
    **{f"DEIS({k})": DEIS(k) for k in (1, 2, 3, 4)},
    **{f"IPNDM({k})": IPNDM(k) for k in (1, 2, 3, 4)},
    **{f"SASolver({a}, {b})": SASolver(a, b) for a, b in ((1, 2), (2, 2), (2, 3), (3, 4))},
    **{f"DPMSolver({k})": DPMSolver(k) for k in (2, 3)},
    "DPMSolverPP2S": DPMSolverPP2S(),
    **{f"RES({k})": RES(k) for k in (2, 3)},
    "EDMHeun": EDMHeun(),
    "GaussianReference, asked at once": replace(GaussianReference(AROUND), analytic=False),
    "EulerMaruyama": EulerMaruyama(),
    "ReverseDiffusion": ReverseDiffusion(),
    "Euler": Flow(ode.Euler()),
    "Heun": Flow(ode.Heun()),
    "RK4": Flow(ode.RK4()),
}
OTHERS = {
    "Multistep(4)": Multistep(4),
    "Multistep(4) around": Multistep(4, 0, AROUND),
    "Multistep(3) in time": Multistep(3, 0, AROUND, InTime()),
    **{f"Multistep{o}": Multistep(*o) for o in ((1, 3), (1, 5), (2, 4), (3, 2), (3, 3), (4, 2), (4, 5))},
    "UniPC of noise": Multistep(2, 3, NOISE, Centred()),
    **{f"UniPC({k}), bh1": UniPC(k, interpolation=BH1()) for k in (1, 2)},
    "BH1 alone": Multistep(2, interpolation=BH1()),
    "Line(1) around": SingleStep(Line(1.0), AROUND),
    "Line(0.3), centred": SingleStep(Line(0.3, centred=True), NOISE),
    "Thirds around": SingleStep(Thirds(), AROUND),
    "Refined around": SingleStep(Refined(), AROUND),
}


def between(sde, n, gradual=False):
    """n steps from LOW to HIGH in lambda."""
    u = torch.arange(n + 1, dtype=F64) / n
    if gradual:
        u = u + 0.3 * u * (1 - u)
    elif n > 1:
        steps = torch.tensor([1.0, 1.6], dtype=F64).repeat(n // 2)
        u = torch.cat([torch.zeros(1, dtype=F64), steps.cumsum(0) / steps.sum()])
    return sde.time(LOW + (HIGH - LOW) * u)


@cache
def flow(process):
    """The flow, 40 points of the law at LOW, and where they go."""
    sde = PROCESSES[process]
    ends, q = between(sde, 1), sde.reverse(LAW.diffuse(sde), 0.0)
    x = LAW.diffuse(sde).sample(40, ends[0], torch.Generator().manual_seed(0))
    return sde, q, x, sample(q, x, ends, Flow(ode.Dopri5(1e-12, 1e-12)))


def measured(step, process="VP", gradual=False, numbers=NUMBERS):
    """The slope of the root mean square error."""
    sde, q, x, truth = flow(process)
    errors = [(sample(q, x, between(sde, n, gradual), step) - truth).square().mean().sqrt() for n in numbers]
    return slope(torch.tensor(numbers), torch.stack(errors)[:, None], resamples=1).value


def check(step, order, *where):
    found = measured(step, *where)
    assert abs(found - order) < (0.15 if order <= 3 else 0.3), f"{found:.2f}, declared {order}"


@pytest.mark.parametrize("name", NAMED)
def test_declared_order(name):
    """On unequal steps of VP, neither less nor more."""
    check(NAMED[name], NAMED[name].order)


@pytest.mark.slow
@pytest.mark.parametrize(("process", "gradual"), [("VE", False), ("VP", True), ("VE", True)])
@pytest.mark.parametrize("name", NAMED | OTHERS)
def test_declared_order_elsewhere(name, process, gradual):
    """The same on VE, and on steps that change gradually."""
    step = (NAMED | OTHERS)[name]
    check(step, step.order, process, gradual)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_declared_order_of_others(name):
    """Members of the families without a name of their own."""
    check(OTHERS[name], OTHERS[name].order)


def test_tapered():
    """The last interval is taken with one node, at an error of O(h^2)."""
    for step in (DPMSolverPP(2, taper=True), DPMSolverPP(3, taper=True), UniPC(3, taper=True)):
        check(step, 2)
        assert step.order == 2


def test_the_third_order_of_widely_used_code():
    """Half of the second derivative left out, DPM-Solver++(3M) is of order 2, whatever the grid."""
    for gradual in (False, True):
        check(DPMSolverPP(3, interpolation=HalfBent()), 2, "VP", gradual)
    assert DPMSolverPP(3, interpolation=HalfBent()).order == 2


def test_ipndm_as_published():
    """Adams and Bashforth's weights for equal steps are of order 2 where the steps change gradually, for any number of
    nodes, and of order 1 where they change in turn.
    """
    for k in (2, 3, 4):
        check(IPNDM(k, EqualSteps()), 2, "VP", True)
        check(IPNDM(k, EqualSteps()), 1)
        assert IPNDM(k, EqualSteps()).order == 2


def test_a_start_of_low_order_shows():
    """With orders that just rise, as published methods have it, three and four nodes are of order 2 on this interval,
    and say so; so the orders above are those of the start-up as well. A first node that is not asked for is of order 1.
    """
    for step in (Multistep(3, interpolation=Centred(), startup=Rising()), DEIS(4, Rising())):
        check(step, 2)
        assert step.order == 2
    assert [Multistep(k, startup=Rising()).order for k in (1, 2)] == [1, 2]
    check(GaussianReference(AROUND), 1)


@pytest.mark.parametrize("method", [ode.Dopri5(), ode.Tsit5()], ids=lambda m: type(m).__name__)
def test_order_of_embedded_pairs(method):
    """In steps that are given, the solution of the pair is of order 5."""
    _, q, x, truth = flow("VP")
    assert Flow(method).order == method.order == 5
    (*a, b), c, errors, numbers = method.pair.a, (0.0, *method.pair.c), [], [16, 32, 64]
    for n in numbers:
        ts, y = between(q.sde, n, True), x
        for t, h in zip(ts, ts.diff()):
            k = []
            for row, part in zip(((), *a), c):
                k.append(q.drift(y + h * sum(w * rate for w, rate in zip(row, k)), t + part * h))
            y = y + h * sum(w * rate for w, rate in zip(b, k))
        errors.append((y - truth).square().mean().sqrt())
    assert abs(slope(torch.tensor(numbers), torch.stack(errors)[:, None], 1).value - 5) < 0.3


# the reverse SDE

COARSE, FINE = [64, 128, 256], 2048
MEAN = torch.tensor([0.7, -0.4], dtype=F64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=F64)

RANDOM = {
    "EulerMaruyama": EulerMaruyama(),
    "ReverseDiffusion": ReverseDiffusion(),
    "Ancestral(0)": Ancestral(0.0),
    "Ancestral(1)": Ancestral(1.0),
    "AnalyticDPM": None,
    "LearnedVariance": None,
    **{f"DPMSolverPP({k})": DPMSolverPP(k) for k in (1, 2, 3)},
    **{f"UniPC({k})": UniPC(k) for k in (1, 2, 3)},
    **{f"SASolver({a}, {b})": SASolver(a, b) for a, b in ((1, 0), (2, 0), (3, 4))},
    "ConsistentAnnealed": ConsistentAnnealed(),
    "DPMSolverPPSDE": DPMSolverPPSDE(),
    "DPMSolverPPSDE(0.25)": DPMSolverPPSDE(0.25),
    "Renoised(DPMSolver(2))": Renoised(DPMSolver(2)),
    "Renoised(DPMSolverPP2S())": Renoised(DPMSolverPP2S()),
}


LATER = (
    *("AnalyticDPM", "LearnedVariance", "UniPC(1)", "UniPC(3)", "SASolver(1, 0)", "SASolver(2, 0)"),
    *("DPMSolverPPSDE(0.25)", "Renoised(DPMSolver(2))"),
)
every_random = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LATER else name for name in RANDOM]
)


def fitted(name, p, law, ts):
    """The step; what is fitted to p on ts, where it must be."""
    if name == "AnalyticDPM":
        data, noise = law.sample(2000, torch.Generator().manual_seed(3)), iid(torch.Generator().manual_seed(4))
        return AnalyticDPM.fit(p, data, ts, noise)
    if name == "LearnedVariance":
        return LearnedVariance(lambda x, t: (p.score(x, t), torch.full_like(x, 0.4)))
    return RANDOM[name]


def process(name, eta, law, sde):
    if name == "ConsistentAnnealed":
        eta = 1.0  # it has its own noise
    return sde.reverse(law.diffuse(sde), eta)


@cache
def path(eta):
    """One Brownian path on a fine grid and where it takes 200 points of the law at LOW."""
    sde = VP()
    ts = sde.time(torch.linspace(LOW, HIGH, FINE + 1, dtype=F64))
    x = LAW.diffuse(sde).sample(200, ts[0], torch.Generator().manual_seed(0))
    noise = GridPath(ts, x.shape, torch.Generator().manual_seed(1))
    return x, ts, noise, sample(process("", eta, LAW, sde), x, ts, DPMSolverPP(2), noise=noise)


@pytest.mark.parametrize("eta", [1.0, pytest.param(0.7, marks=pytest.mark.slow)])
@every_random
def test_strong_order(name, eta):
    """All tend to one solution, at the declared rate: the interval holds it, or the value is within 0.15 of it, or not
    more than 0.25 above, where the deterministic part, of higher order, is still seen.
    """
    x, ts, noise, limit = path(1.0 if name == "ConsistentAnnealed" else eta)
    p = process(name, eta, LAW, VP())
    step = fitted(name, p, LAW, ts[:: FINE // COARSE[-1]])

    def nearest(x, t, s):
        """Times between, in the middle of lambda, are of the grid but for their last digits."""
        return noise(x, *(ts[(ts - u).abs().argmin()] for u in (t, s)))

    found = path_errors(p, step, COARSE, Limit(x, ts, limit, nearest)).strong_slope()
    assert found.low <= step.strong <= found.high or -0.15 < found.value - step.strong < 0.25, str(found)
    assert found.high - found.low < 0.3


@pytest.mark.parametrize("eta", [1.0, pytest.param(0.7, marks=pytest.mark.slow)])
@every_random
def test_weak_order(name, eta):
    """On N(m, C) the sampler is affine, and its covariance is computed without chance: it tends to that of the process
    at the declared rate, on unequal steps; the mean at least as fast.
    """
    sde, law, errors = VP(), exact.Gaussian(MEAN, COV), []
    p = process(name, eta, law, sde)
    a, b = ((sde.alpha(t), sde.alpha(t) ** 2 * COV + sde.var(t) * torch.eye(2)) for t in between(sde, 1))
    for n in NUMBERS:
        ts = between(sde, n)
        step = fitted(name, p, law, ts)
        start, A, V = probed(lambda x, noise, ts=ts, step=step: sample(p, x, ts, step, noise=noise))
        errors.append(
            torch.stack([(start + A @ (a[0] * MEAN) - b[0] * MEAN).norm(), (A @ a[1] @ A.T + V - b[1]).norm()])
        )
    mean, cov = (slope(torch.tensor(NUMBERS), e[:, None], 1).value for e in torch.stack(errors, 1))
    assert abs(cov - step.weak) < 0.2, f"{cov:.2f}, declared {step.weak}"
    assert max(e[0] for e in errors) < 1e-12 or mean > step.weak - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Ancestral(0)", "DPMSolverPP(1)", "DPMSolverPP(2)", "SASolver(2, 0)", "UniPC(1)"])
def test_weak_order_on_a_mixture(name):
    """Between lambda = -1 and 2 on 50,000 paths of a mixture on the line, whose score is not linear: what doubling the
    steps changes in the second moment falls at the declared rate.
    """
    sde, B, numbers = VP(), 50_000, [8, 16, 32, 64]

    def score(x, t):
        """Of 0.6 N(1, 0.2) + 0.4 N(-1, 0.2)."""
        a, v = sde.alpha(t), sde.alpha(t) ** 2 * 0.2 + sde.var(t)
        return (a * torch.tanh(a * x / v + math.log(1.5) / 2) - x) / v

    ts = sde.time(torch.linspace(-1, 2, 129, dtype=F64))
    law = exact.GaussianMixture(torch.tensor([3, 2]), torch.tensor([[1.0], [-1.0]]), torch.full((2,), 0.2, dtype=F64))
    x, p = law.diffuse(sde).sample(B, ts[0], torch.Generator().manual_seed(0)), sde.reverse(score)
    assert (score(x[:9], ts[3]) - law.diffuse(sde)(x[:9], ts[3])).abs().max() < 1e-12
    noise = GridPath(ts, x.shape, torch.Generator().manual_seed(1))
    squares = [sample(p, x, ts[:: 128 // n], RANDOM[name], noise=noise)[:, 0].square() for n in (*numbers, 128)]
    found = slope(torch.tensor(numbers), torch.stack([b - a for a, b in zip(squares, squares[1:])]), resamples=200)
    assert found.low <= RANDOM[name].weak <= found.high or abs(found.value - RANDOM[name].weak) < 0.15, str(found)
    assert found.high - found.low < 0.3


# declarations


def test_what_is_not_declared():
    """A step that does not move, or whose limit is no solution of the process it is on, declares nothing."""
    for step in (Langevin(), MALA(), Churn()):
        assert (step.order, step.strong, step.weak) == (None, None, None)
    assert Flow(lambda f, y, t, s: y).order is None
    for step in (EDMHeun(), DPMSolver(2), Flow()):
        assert (step.order, step.strong, step.weak) == (2, None, None)
    assert (ConsistentAnnealed(0.5).strong, ConsistentAnnealed(0.5).weak) == (None, None)
    assert (ConsistentAnnealed(ratio=1.5).strong, ConsistentAnnealed(ratio=1.5).weak) == (None, 1.0)
