"""Slopes of known power laws, and the orders of steps against limits in closed form or on one path."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import Broken, Wild

from scoresde import EDM, VE, VP, Ancestral, EulerMaruyama, Flow, ReverseDiffusion, exact, grid, iid, ode, sample
from scoresde.brownian import GridPath
from scoresde.lab import Modes, exact_subject, orders
from scoresde.lab.orders import Limit, PathErrors, Slope, path_errors, resolved, slope
from scoresde.steps import METHODS, ConsistentAnnealed
from scoresde.steps.catalogue import fixed

F64 = torch.float64
STEPS = torch.tensor([8, 16, 32, 64])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=F64)


# slopes


@given(
    st.lists(st.integers(1, 500), min_size=2, max_size=6, unique=True),
    st.floats(-3, 5),
    st.floats(1e-3, 1e3),
    st.integers(1, 20),
    st.integers(0, 2**16),
)
def test_slope_of_a_power_law(steps, r, c, B, seed):
    """Errors c h^r have the slope r; so they have in every resample if each sample has a factor of its own at all step
    sizes, since the samples are drawn whole; and the interval is then one point.
    """
    steps, own = torch.tensor(steps), torch.rand(B, generator=generator(seed), dtype=F64) + 0.5
    errors = c * steps[:, None].double() ** -r * own
    for e in (errors, -errors, errors.flip(1)):
        found = slope(steps, e, resamples=50)
        for end in (found.value, found.low, found.high):
            assert end == pytest.approx(r, abs=1e-12 * (1 + 100 / float(steps.log().std())))


@given(st.floats(0.5, 4), st.integers(0, 2**16))
def test_slope_is_that_of_the_mean_error(r, seed):
    """Signed errors may be larger than their mean: the mean over samples counts, not that of their sizes."""
    noise = randn(4, 30, seed=seed)
    errors = STEPS[:, None].double() ** -r * (1 + torch.cat([noise, -noise], 1))
    assert slope(STEPS, errors).value == pytest.approx(r, abs=1e-9)


def test_slope_is_least_squares():
    """Off a power law: the value that leaves residuals without a slope."""
    errors = torch.rand(5, 7, generator=generator(1), dtype=F64) + 0.1
    steps = torch.tensor([3, 4, 9, 20, 50])
    y, h = errors.mean(1).log(), -steps.double().log()
    residual = y - slope(steps, errors).value * h
    assert float(((residual - residual.mean()) * (h - h.mean())).sum()) == pytest.approx(0, abs=1e-12)


def test_interval_covers_the_truth():
    """In 300 repetitions on noisy errors of order 1.3, independent over step sizes or shared, the interval holds 1.3 in
    90 to 99 % of them; four times the samples make it half as long.
    """
    truth, g = STEPS[:, None].double() ** -1.3, generator(3)
    hits, lengths = {True: 0, False: 0}, {100: [], 400: []}
    for i in range(300):
        shared = i % 2 == 0
        z = torch.randn(4, 100, generator=g, dtype=F64)
        z = (0.8 * z[:1] + 0.6 * z) if shared else z
        found = slope(STEPS, truth * (1 + 0.5 * z), resamples=400, seed=i)
        assert found.low <= found.value <= found.high
        hits[shared] += found.low <= 1.3 <= found.high
    assert 135 <= hits[True] <= 149 and 135 <= hits[False] <= 149, hits
    for B in lengths:
        for i in range(20):
            found = slope(STEPS, truth * (1 + 0.5 * torch.randn(4, B, generator=g, dtype=F64)), seed=i)
            lengths[B].append(found.high - found.low)
    assert sum(lengths[100]) / sum(lengths[400]) == pytest.approx(2, rel=0.1)


def test_slope_is_decided_by_its_seed():
    """The same seed gives the same interval, another another, and the value has nothing to do with it."""
    errors = STEPS[:, None].double() ** -1 * (1 + 0.3 * randn(4, 50))
    a = slope(STEPS, errors, seed=1)
    torch.manual_seed(9)
    b, c = slope(STEPS, errors.float().requires_grad_(), seed=1), slope(STEPS, errors, seed=2)
    assert a == slope(STEPS, errors, seed=1) and (a.low, a.high) != (c.low, c.high) and a.value == c.value
    assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high), rel=1e-5)
    assert str(Slope(1.004, 0.896, 1.1)) == "1.00 (0.90 to 1.10)"


@pytest.mark.parametrize(
    ("steps", "errors"),
    [
        (STEPS, torch.ones(4)),
        (STEPS, torch.ones(3, 5)),
        (STEPS, torch.ones(5, 4)),
        (STEPS, torch.ones(4, 5, 1)),
    ],
)
def test_slope_errors(steps, errors):
    """One row for each number of steps, of which there are two at least."""
    with pytest.raises(ValueError, match=r"^errors must be \(K, B\)"):
        slope(steps, errors)


# orders

LINE = exact.GaussianMixture(
    torch.tensor([1.0, 2.0]), torch.tensor([[-1.0], [0.8]]), torch.tensor([0.2, 0.3], dtype=F64)
)
PLANE = exact.GaussianMixture(
    torch.tensor([1.0, 2.0, 1.0]),
    torch.tensor([[-1.0, 0.0], [0.8, 0.5], [0.0, -1.0]]),
    torch.tensor([0.2, 0.3, 0.15], dtype=F64),
)
NUMBERS = [12, 24, 48, 96]
SMOOTH = VP(0.5, 6.0)


class Setting:
    """A law, its processes, one Brownian path on a fine grid and where the two processes go from the same points."""

    def __init__(self, law, sde, end, n=400, fine=1536):
        self.ts = grid.log_snr(sde, fine, end)
        self.noise = GridPath(self.ts, (n, *law.shape), generator(5))
        self.x = sde.prior((n, *law.shape), iid(generator(6)), F64)
        score = law.diffuse(sde)
        self.p, self.q = sde.reverse(score), sde.reverse(score, 0.0)
        self.limit = sample(self.p, self.x, self.ts, EulerMaruyama(), noise=self.noise)
        self.end = sample(self.q, self.x, self.ts[[0, -1]], Flow(ode.Dopri5(1e-11, 1e-11)))

    def errors(self, step, flow=False, steps=NUMBERS):
        p, end = (self.q, self.end) if flow else (self.p, self.limit)
        return path_errors(p, step, list(steps), Limit(self.x, self.ts, end, self.noise))


@pytest.fixture(scope="module", params=["line", "plane"])
def setting(request):
    return Setting(LINE, SMOOTH, 0.05) if request.param == "line" else Setting(PLANE, VE(0.2, 3.0), 0.0)


def holds(found, order):
    """The interval holds the order, or the value is within 0.1 of it where the interval is narrower than the next
    term of the error.
    """
    return found.low <= order <= found.high or abs(found.value - order) < 0.1


@pytest.mark.parametrize(
    "step", [EulerMaruyama(), Ancestral(0.0), Ancestral(1.0), ReverseDiffusion(), ConsistentAnnealed()], ids=repr
)
def test_strong_order_of_random_steps(setting, step):
    """Noise that does not depend on x: every discretisation of the reverse SDE is of strong order 1, not 1/2, and the
    interval is short enough to tell.
    """
    found = setting.errors(step).strong_slope()
    assert holds(found, 1.0) and found.high - found.low < 0.2, str(found)


@pytest.mark.parametrize("step", [Ancestral(0.0), ConsistentAnnealed(), ReverseDiffusion()], ids=repr)
def test_weak_order_of_random_steps(setting, step):
    """Of weak order 1, on few paths, because both states are on the same one."""
    found = setting.errors(step).weak_slope()
    assert holds(found, 1.0) and found.high - found.low < 0.25, str(found)


@pytest.mark.parametrize(
    ("step", "order"),
    [(Ancestral(), 1), (Flow(ode.Euler()), 1), (Flow(ode.Heun()), 2), (Flow(ode.RK4()), 4)],
    ids=["DDIM", "Euler", "Heun", "RK4"],
)
def test_order_of_deterministic_steps(setting, step, order):
    """DDIM and Euler are of order 1 on the probability flow, Heun of 2, the classical Runge-Kutta method of 4."""
    assert abs(setting.errors(step, flow=True).strong_slope().value - order) < 0.1


@pytest.mark.parametrize(("method", "order"), [(ode.Euler(), 1), (ode.Heun(), 2), (ode.RK4(), 4)], ids=repr)
@pytest.mark.parametrize("sde", [SMOOTH, VE(0.2, 3.0), EDM(T=2.0, t_min=0.1)], ids=lambda sde: type(sde).__name__)
def test_order_on_a_gaussian(sde, method, order):
    """The probability flow of N(m, v) in closed form: x - alpha m stretches by the ratio of sqrt(alpha^2 v + sigma^2).
    The errors fall to it with the method's order, strong and weak; no limit is computed by another method.
    """
    m, v = torch.tensor([0.7, -0.4], dtype=F64), torch.tensor([0.6, 0.3], dtype=F64)
    ts, x = grid.log_snr(sde, 128, max(sde.t_min, 0.05)), randn(50, 2)
    wide = [(sde.alpha(t) ** 2 * v + sde.var(t)).sqrt() for t in ts[[0, -1]]]
    limit = sde.alpha(ts[-1]) * m + wide[1] / wide[0] * (x - sde.alpha(ts[0]) * m)
    q = sde.reverse(exact.Gaussian(m, v).diffuse(sde), 0.0)
    errors = path_errors(q, Flow(method), [32, 64, 128], Limit(x, ts, limit))
    assert abs(errors.strong_slope().value - order) < 0.1 and abs(errors.weak_slope().value - order) < 0.15


def test_errors_by_hand(setting):
    """strong is the root mean square over dimensions of x_h - x, a sample at a time, weak the mean of x_h^2 - x^2, and
    the slopes are those of their means; with as many steps as the limit took, its own method has no error at all.
    """
    found = setting.errors(ReverseDiffusion(), steps=[8, 64])
    for k, n in enumerate([8, 64]):
        y = sample(setting.p, setting.x, setting.ts[:: 1536 // n], ReverseDiffusion(), noise=setting.noise)
        for i in (0, 17):
            a, b = y[i], setting.limit[i]
            assert float(found.strong[k, i]) == pytest.approx(float((a - b).norm()) / math.sqrt(len(a)), abs=1e-12)
            assert float(found.weak[k, i]) == pytest.approx(float(a @ a - b @ b) / len(a), abs=1e-12)
    assert found.strong.shape == found.weak.shape == (2, 400) and found.steps.tolist() == [8, 64]
    assert found.strong_slope(9) == slope(found.steps, found.strong, 9)
    assert found.weak_slope(9) == slope(found.steps, found.weak, 9)
    same = setting.errors(EulerMaruyama(), steps=[1536])
    assert not same.strong.any() and not same.weak.any()


def test_weak_slope_is_signed():
    """Weak errors that cancel on average are no error, however large each of them is."""
    h = 1 / STEPS.double()
    noise = torch.cat([h[:, None] * torch.ones(4, 5, dtype=F64), -h[:, None] * torch.ones(4, 5, dtype=F64)], 1)
    errors = PathErrors(STEPS, noise.abs(), noise + h[:, None] ** 3)
    assert errors.strong_slope().value == pytest.approx(1, abs=1e-12)
    assert errors.weak_slope().value == pytest.approx(3, abs=1e-9)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([3], "^steps must divide the 8 intervals of ts, got 3$"),
        ([4, 16], "^steps must divide the 8 intervals of ts, got 16$"),
        ([0], "^steps must be a whole number >= 1"),
        ([-2], "^steps must be a whole number >= 1"),
        ([2.0], "^steps must be a whole number >= 1"),
    ],
)
def test_path_errors_errors(steps, said):
    """Numbers of steps that do not fit the grid are named."""
    ts, x = grid.uniform(VP(), 8), torch.zeros(2, 1, dtype=F64)
    with pytest.raises(ValueError, match=said):
        path_errors(VP().reverse(LINE.diffuse(VP())), EulerMaruyama(), steps, Limit(x, ts, x))


def test_one_step_size_has_no_slope():
    """Two different numbers of steps are needed, and errors that are numbers."""
    with pytest.raises(ValueError, match="^steps must hold two different numbers, got"):
        slope(torch.tensor([8, 8]), torch.ones(2, 5))
    with pytest.raises(ValueError, match="^errors must be finite"):
        slope(torch.tensor([8, 16]), torch.tensor([[1.0, 2.0], [torch.nan, 1.0]]))


def test_resolved():
    """A mean is resolved if it exceeds twice its standard error, sd/sqrt(B), whatever its sign."""
    e = torch.tensor([1.0, -1.0]).repeat(50, 1).flatten()  # sd 1 of 100, so standard error 0.1
    assert resolved(torch.stack([e + 0.21, e - 0.21, e + 0.19, e])).tolist() == [True, True, False, False]


@pytest.mark.parametrize("wild", [Wild(), Broken()], ids=["nan", "raises"])
def test_what_diverges_stops_no_other_path(monkeypatch, wild):
    """Its row says why, in its place, and has no slopes; the others are what they are without it."""
    law = Modes().law()
    subject = replace(exact_subject("modes", law, VP(), 20), tol=1e-5)
    monkeypatch.setattr(orders, "REVERSED", ("ReverseDiffusion", "EulerMaruyama"))
    want = list(orders.paths(subject))
    monkeypatch.setitem(METHODS, "ReverseDiffusion", fixed("ReverseDiffusion", wild, eta=1.0))
    first, *rest = orders.paths(subject)
    assert first.keys() == {"name", "steps", "skipped"} and first["name"] == "ReverseDiffusion"
    assert "finite" in first["skipped"] and rest == want[1:]
