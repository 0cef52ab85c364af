"""Solvers have the orders that they claim, in both directions of time, and the adaptive one treats samples singly."""

import math

import pytest
import torch
from made import stiff, stiff_start, tableau

from scoresde import Counted, ode

F64 = torch.float64
SPAN = {"forward": (-1.0, 2.0), "backward": (2.0, -1.0)}
both_ways = pytest.mark.parametrize("way", SPAN)


def field(t, y):
    """dy/dt = -2 t y^2, solved by y = 1/(t^2 + c)."""
    return -2 * (t.view(-1, 1) if t.ndim else t) * y**2


def solution(t, c=(0.7, 1.3, 4.0)):
    """(3, 2): a curve for each row, at its own scale in each column."""
    return torch.stack([1 / (t**2 + torch.tensor(c, dtype=F64)), 1 / (t**2 + 2 * torch.tensor(c, dtype=F64))], 1)


def time(t):
    return torch.tensor(t, dtype=F64)


def error(method, way, n):
    """|y_n - y(end)| after n equal steps."""
    ts = torch.linspace(*SPAN[way], n + 1, dtype=F64)
    y = solution(ts[0])
    for t, s in zip(ts, ts[1:]):
        y = method(field, y, t, s)
    return float((y - solution(ts[-1])).norm())


@both_ways
@pytest.mark.parametrize(("method", "order"), [(ode.Euler(), 1), (ode.Heun(), 2), (ode.RK4(), 4)], ids=repr)
def test_order(method, order, way):
    """Halving the steps divides the error by 2^order, on a nonlinear equation that depends on time."""
    assert math.log2(error(method, way, 160) / error(method, way, 320)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("method", "calls"), [(ode.Euler(), 1), (ode.Heun(), 2), (ode.RK4(), 4)], ids=repr)
def test_cost(method, calls):
    """One step calls the field as often as the method says, and with the dtype of the state."""
    f = Counted(lambda t, y: field(t, y))
    assert method(f, solution(time(0.0)).float(), time(0.0), time(0.1)).dtype == torch.float32
    assert f.nfe == calls


def trees(n):
    """The rooted trees with n vertices, each the sorted tuple of the trees at its root."""

    def forests(n, largest):
        if n == 0:
            yield ()
        for k in range(min(n, largest), 0, -1):
            for tree in trees(k):
                for rest in forests(n - k, k):
                    if not rest or rest[0] <= tree or size(rest[0]) < k:
                        yield (tree, *rest)

    yield from forests(n - 1, n - 1)


def size(tree):
    return 1 + sum(map(size, tree))


def density(tree):
    """gamma(t): the number of vertices times the densities of the trees at its root."""
    return size(tree) * math.prod(map(density, tree))


def stages(tree, A):
    """The elementary weights of a tree at every stage: the product over its branches of A times theirs."""
    out = torch.ones(len(A), dtype=F64)
    for branch in tree:
        out = out * (A @ stages(branch, A))
    return out


def symmetry(tree):
    """sigma(t): the number of ways to exchange equal branches."""
    equal = [math.factorial(tree.count(branch)) for branch in set(tree)]
    return math.prod(equal) * math.prod(map(symmetry, tree))


def defect(b, A, n):
    """The largest |b Phi(t) - 1/gamma(t)| over the trees with n vertices."""
    return max(abs(float(b @ stages(tree, A)) - 1 / density(tree)) for tree in trees(n))


def test_the_trees_are_all_there():
    """1, 1, 2, 4, 9 rooted trees with 1 to 5 vertices (Hairer, Norsett & Wanner 1993, table II.2.1), all different."""
    assert [len(list(trees(n))) for n in range(1, 6)] == [1, 1, 2, 4, 9]
    assert [len(set(trees(n))) for n in range(1, 6)] == [1, 1, 2, 4, 9]


@pytest.mark.parametrize(("pair", "tol"), [(ode.DORMAND_PRINCE, 1e-14), (ode.TSITOURAS, 1e-13)], ids=["dopri", "tsit"])
def test_tableau(pair, tol):
    """Rows of A sum to c; b satisfies the 17 conditions of order 5, b_hat the 8 of order 4 and not those of order 5."""
    A, b, c, e = tableau(pair)
    assert (A.sum(1) - c).abs().max() < tol
    assert abs(float(e.sum())) < tol
    assert max(defect(b, A, n) for n in range(1, 6)) < tol < 1e-5 < defect(b, A, 6)
    assert max(defect(b - e, A, n) for n in range(1, 5)) < tol < 1e-5 < defect(b - e, A, 5)


def test_tsit5_errs_less():
    """The conditions of order 6 are missed by less than Dormand & Prince miss them, which is what it was made for."""
    errors = []
    for pair in (ode.DORMAND_PRINCE, ode.TSITOURAS):
        A, b, _, _ = tableau(pair)
        errors.append(sum((float(b @ stages(t, A)) - 1 / density(t)) ** 2 / symmetry(t) ** 2 for t in trees(6)) ** 0.5)
    assert errors[1] < 0.5 * errors[0]


both_pairs = pytest.mark.parametrize("method", [ode.Dopri5, ode.Tsit5], ids=lambda m: m.__name__)


@both_pairs
@both_ways
def test_adaptive_is_proportional_to_its_tolerance(method, way):
    """The error follows the tolerance over five decades with slope 1, and does not exceed ten times it."""
    t, s = map(time, SPAN[way])
    tolerances = [10.0**-k for k in range(4, 10)]
    errors = [float((method(e, e)(field, solution(t), t, s) - solution(s)).abs().max()) for e in tolerances]
    assert all(error < 10 * e for error, e in zip(errors, tolerances))
    slope = (math.log10(errors[0]) - math.log10(errors[-1])) / (len(errors) - 1)
    assert slope == pytest.approx(1, abs=0.2)


def test_dopri5_tolerances_are_relative_and_absolute():
    """rtol bounds the error in parts of |y|, the same at every scale; atol bounds it in the units of y."""
    t, s, scale = time(0.0), time(3.0), torch.tensor([[1.0], [1e6]], dtype=F64)

    def decay(t, y):
        return -y

    relative = ode.Dopri5(1e-6, 1e-30)(decay, scale, t, s) / scale - math.exp(-3)
    torch.testing.assert_close(relative[0], relative[1], rtol=1e-6, atol=0)
    assert 1e-9 < float(relative[0].abs()) < 1e-6
    absolute = (ode.Dopri5(0.0, 1e-6)(decay, scale, t, s) - scale * math.exp(-3)).abs()
    assert (absolute < 1e-5).all()


@both_pairs
@both_ways
def test_adaptive_steps_per_sample(method, way):
    """A sample in a batch becomes what it becomes alone, whatever the stiffness of its neighbours and its place."""
    t, s = (time(0.0), time(2.0)) if way == "forward" else (time(0.0), time(-0.1))
    method, y = method(1e-5, 1e-5), stiff_start()
    batch = method(stiff, y, t, s)
    alone = torch.cat([method(stiff, row[None], t, s) for row in y])
    torch.testing.assert_close(batch, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(method(stiff, y.flip(0), t, s), batch.flip(0), rtol=1e-12, atol=1e-12)
    exact = s.cos() + (y[:, :-1] - 1) * (-y[:, -1:] * s).exp()
    torch.testing.assert_close(batch[:, :-1], exact, rtol=1e-3, atol=1e-3)


def test_dopri5_waits_for_others():
    """A sample that has arrived is asked for at its end only: nobody sees a time outside [t, s]."""
    seen = []

    def f(t, y):
        seen.append(t.clone())
        return stiff(t, y)

    ode.Dopri5()(f, stiff_start(), time(0.0), time(2.0))
    seen = torch.stack(seen)
    assert seen.min() == 0 and seen.max() == 2
    assert (seen[-1] == torch.tensor(2.0)).sum() >= 4  # the last step is the stiffest sample's alone


def test_dopri5_cost():
    """Six calls a step and one to start; as many steps as are taken are allowed, and one less is not."""
    f = Counted(field)
    y, t, s = solution(time(0.0)), time(0.0), time(2.0)
    out = ode.Dopri5()(f, y, t, s)
    steps, rest = divmod(f.nfe - 1, 6)
    assert rest == 0 and steps > 5
    assert torch.equal(ode.Dopri5(max_steps=steps)(field, y, t, s), out)
    with pytest.raises(RuntimeError, match="do not suffice to t = 2"):
        ode.Dopri5(max_steps=steps - 1)(field, y, t, s)


@both_pairs
def test_tally(method):
    """`solve` gives the y of a call and the steps of each sample: accepted and rejected, they are all that a sample
    alone is asked six times for, and in a batch what they are alone.
    """
    method, y, t, s = method(1e-5, 1e-5), stiff_start(), time(0.0), time(2.0)
    out, tally = method.solve(stiff, y, t, s)
    assert torch.equal(out, method(stiff, y, t, s))
    assert (tally.accepted > 5).all() and (tally.rejected > 0).any()
    for i, row in enumerate(y):
        f = Counted(stiff)
        _, alone = method.solve(f, row[None], t, s)
        assert (alone.accepted, alone.rejected) == (tally.accepted[i : i + 1], tally.rejected[i : i + 1])
        assert f.nfe == 1 + 6 * int(alone.accepted + alone.rejected)


def test_dopri5_step_sizes():
    """Where there is no error each step is five times the last, the first being 1/50: four steps cross any interval."""
    f = Counted(lambda t, y: torch.ones_like(y))
    y = ode.Dopri5()(f, torch.zeros(2, 3, dtype=F64), time(1.0), time(-6.0))
    torch.testing.assert_close(y, torch.full_like(y, -7.0), rtol=1e-14, atol=0)
    assert f.nfe == 1 + 6 * 4


@both_pairs
def test_step_sizes_by_proportional_integral_control(method):
    """h min(5, max(0.2, 0.9 r^-0.14 r_before^0.08)) follows a step h whose error is r tolerances, and one that is
    rejected shrinks; seen from the times of calls, for a quadrature over a peak, where r = |h sum e f(t + c h)|/atol.
    """
    seen, atol, peak = [], 1e-6, lambda t: 1 / (t**2 + 1e-3)
    _, _, c, e = tableau(method.pair)
    method(0.0, atol)(lambda t, y: seen.append(float(t[0])) or peak(t)[:, None], time([[0.0]]), time(-1.0), time(2.0))
    now, before, h, rejected, steps = -1.0, 1.0, 3.0 / 50, 0, 0
    for end in seen[6:-6:6]:
        assert end - now == pytest.approx(h, rel=1e-6)
        r = max(1e-10, abs(float((e * peak(now + c * h)).sum())) * h / atol)
        grow = min(5, max(0.2, 0.9 * r**-0.14 * before**0.08))
        rejected, h = rejected + (r > 1), h * (grow if r <= 1 else min(grow, 1))
        if r <= 1:
            now, before, steps = end, max(r, 1e-4), steps + 1
    assert rejected >= 3 and steps >= 20


def test_dopri5_of_an_empty_interval():
    """From t to t nothing moves."""
    y = solution(time(0.3))
    for method in (ode.Euler(), ode.Heun(), ode.RK4(), ode.Dopri5(), ode.Tsit5()):
        assert torch.equal(method(field, y, time(0.3), time(0.3)), y)


def test_dopri5_names_the_late_sample():
    """When the steps run out the error says which sample is late and where it stands."""
    with pytest.raises(RuntimeError, match=r"do not suffice to t = 2: sample 1 is at t = 0\.\d+"):
        ode.Dopri5(max_steps=60)(stiff, stiff_start()[:3], time(0.0), time(2.0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_dopri5_names_the_sample_that_is_not_finite(value):
    """A drift that is not finite is reported with its sample, at a time not past the place where it happens."""

    def f(t, y):
        out = -y.clone()
        out[2] = torch.where(t[2] > 0.5, value, out[2])
        return out

    with pytest.raises(RuntimeError, match=r"the drift of sample 2 is not finite at t = (0\.\d+)") as e:
        ode.Dopri5()(f, torch.ones(4, 2, dtype=F64), time(0.0), time(1.0))
    assert 0.1 < float(str(e.value).split("=")[1]) <= 0.5


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 1, 2, 2)])
@pytest.mark.parametrize("method", [ode.Euler(), ode.Heun(), ode.RK4(), ode.Dopri5()], ids=lambda m: type(m).__name__)
def test_any_shape_of_state(method, shape):
    """The equation y' = -y does not care how the state is arranged."""
    y = torch.rand(shape, dtype=F64)
    out = method(lambda t, y: -y, y, time(0.0), time(0.5))
    flat = method(lambda t, y: -y, y.flatten(1), time(0.0), time(0.5))
    assert out.shape == shape
    torch.testing.assert_close(out.flatten(1), flat, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "method", [ode.Heun(), ode.RK4(), ode.Dopri5(1e-9, 1e-9), ode.Tsit5(1e-9, 1e-9)], ids=lambda m: type(m).__name__
)
def test_gradients(method):
    """y(s) is differentiable by y(t), with the derivative of the true solution y(0)/(1 + s^2 y(0))."""
    y, ts = solution(time(0.0)).requires_grad_(), torch.linspace(0, 2, 200, dtype=F64)
    out = y
    for t, s in zip(ts, ts[1:]) if method.order < 5 else [ts[[0, -1]]]:
        out = method(field, out, t, s)
    (g,) = torch.autograd.grad(out.sum(), y)
    torch.testing.assert_close(g, (1 / (1 + 4 * y) ** 2).detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "bad"),
    [("rtol", -1e-9), ("rtol", math.nan), ("atol", 0.0), ("atol", math.inf), ("max_steps", 0), ("max_steps", 1.5)],
)
def test_bad_arguments(name, bad):
    """A tolerance or a number of steps that makes no sense is refused by name."""
    with pytest.raises(ValueError, match=f"^{name} must"):
        ode.Dopri5(**{name: bad})
    with pytest.raises(ValueError, match=f"^{name} must"):
        ode.Tsit5(**{name: bad})


@pytest.mark.parametrize("method", [ode.Dopri5(1e-10, 1e-10), ode.Tsit5(1e-10, 1e-10)], ids=repr)
def test_the_state_keeps_its_precision(method):
    """A field that answers in float32 is summed in the state's float64: what it loses is the field's own rounding."""
    y, (t, s) = torch.ones(1, 4, dtype=torch.float64), (torch.tensor(u, dtype=torch.float64) for u in (0.0, 1.0))
    found = method(lambda u, y: torch.ones(1, 4), y, t, s)
    assert found.dtype == torch.float64 and float((found - 2).abs().max()) < 1e-14


# the loop that accepts and rejects


class Walk(ode.Trial):
    """Each sample goes from place to place by steps of at most its own length, and writes down what happens."""

    def __init__(self, longest, fails=math.inf):
        self.longest, self.fails, self.steps, self.asked = torch.tensor(longest, dtype=F64), fails, [], []

    def attempt(self, now, to, h, rows):
        everyone = torch.arange(len(self.longest))[rows]
        self.asked.append(everyone.tolist())
        E = h.abs() / self.longest[rows]
        self.tried = [v.tolist() for v in (everyone, now, to, h, E)]
        return torch.where((now >= self.fails) & (everyone == 2), math.nan, E)

    def settle(self, accept, reject, rows):
        assert not (accept & reject).any()
        for (*tried,), good, bad in zip(zip(*self.tried), accept.tolist(), reject.tolist()):
            if good or bad:
                self.steps.append((*tried, good))

    def time(self, now):
        return 10 * now


def halving(max_steps):
    return ode.Control(0.9, 1.0, least=0.5, most=2.0, max_steps=max_steps)


@pytest.mark.parametrize("leave", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_control(sign, leave):
    """Each sample goes from its own start to its own end without a gap, by the steps whose error is at most 1, and by
    no others; it is told of each once, as the tally is; with `leave` only those that move are asked for. The next step
    is the last times safety E^-power, between the bounds of the growth, and not longer after a rejection.
    """
    walk, end = Walk([0.3, 5.0, 0.05, 1.0]), sign * torch.tensor([2.0, 3.0, 1.0, 0.5], dtype=F64)
    start = sign * torch.tensor([0.0, 0.0, 0.5, 0.5], dtype=F64)  # the last has arrived
    h = sign * torch.full((4,), 1.0, dtype=F64)
    tally = halving(100)(walk, start, end, h, leave)
    assert (h == sign).all()  # as it was
    for i in range(4):
        mine = [tried for j, *tried in walk.steps if j == i]
        kept = [(a, b) for a, b, _, _, good in mine if good]
        assert (len(kept), len(mine) - len(kept)) == (int(tally.accepted[i]), int(tally.rejected[i]))
        ends = [float(start[i]), *(b for _, b in kept)]
        assert ends[-1] == float(end[i]) and [a for a, _ in kept] == ends[:-1]
        assert all(good == (E <= 1) for *_, E, good in mine)
        for (a, b, step, E, good), (_, _, following, _, _) in zip(mine, mine[1:]):
            grown = step * min(2.0 if good else 1.0, max(0.5, 0.9 / E))
            left = float(end[i]) - (b if good else a)
            assert following == pytest.approx(left if abs(left) <= abs(grown) else grown, rel=1e-12)
    assert int(tally.rejected[0]) >= 2 and int(tally.rejected[1]) == 0 and int(tally.accepted[3]) == 0
    asked = [sum(i in rows for rows in walk.asked) for i in range(4)]
    own = (tally.accepted + tally.rejected).tolist()
    assert asked == (own if leave else 4 * [max(own)])


def test_growth_of_the_next_step():
    """safety E^-power E_before^memory between the bounds, and after a rejection at most 1, elementwise."""
    control = ode.Control(2.0, 0.5, 0.25, least=0.25, most=3.0)
    E = torch.tensor([0.0, 0.1, 1.0, 1.0, 2.0, 64.0, 2.0, 1e9], dtype=F64)
    before = torch.tensor([1.0, 1.0, 1.0, 1 / 16, 1.0, 1.0, 1e-4, 1.0], dtype=F64)
    want = torch.tensor([3.0, 3.0, 2.0, 1.0, 1.0, 0.25, 0.25, 0.25], dtype=F64)
    torch.testing.assert_close(control.growth(E, before, E <= 1), want, rtol=1e-12, atol=0)
    assert float(control.growth(E, before, E <= 2)[4]) == pytest.approx(2**0.5, rel=1e-12)


def test_control_names_what_goes_wrong():
    """The sample is that of the batch, also when others have left, and times are called what the equation calls them;
    as many steps as are needed suffice, and one fewer does not.
    """
    zero, one = torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)
    run = lambda walk, n: halving(n)(walk, zero, one, one / 8, leave=True)  # noqa: E731
    with pytest.raises(RuntimeError, match=r"^the drift of sample 2 is not finite at t = [56]\.\d+$"):
        run(Walk([2.0, 2.0, 0.06], fails=0.55), 100)
    steps = int(sum(run(Walk([2.0, 2.0, 0.06]), 100))[2])
    assert int(sum(run(Walk([2.0, 2.0, 0.06]), steps))[2]) == steps
    with pytest.raises(RuntimeError, match=rf"^max_steps = {steps - 1} do not suffice to t = 10: sample 2 is at t = 9"):
        run(Walk([2.0, 2.0, 0.06]), steps - 1)


@pytest.mark.parametrize("method", [ode.Euler(), ode.Heun(), ode.RK4(), ode.Dopri5()], ids=repr)
def test_each_row_has_its_own_times(method):
    """Times (B,) carry row i from t_i to s_i, as alone, also where B is not the number of columns."""
    t, s = time([0.1, 0.2, 0.4]), time([0.5, 0.9, 0.3])
    y = solution(time(0.0))
    together = method(field, y, t, s)
    for i in range(3):
        alone = method(field, y[i : i + 1], t[i], s[i])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", [ode.Euler(), ode.Heun(), ode.RK4(), ode.Tsit5()], ids=repr)
def test_what_is_no_equation_is_refused(method):
    """By name: no function, no state, no times, or a rate that would broadcast."""
    y, t, s = solution(time(0.0)), time(0.1), time(0.2)
    for said, values in (
        ("f must be a callable", (None, y, t, s)),
        ("f must return the shape of x", (lambda t, y: y[:1], y, t, s)),
        ("y must be a tensor", (field, 1, t, s)),
        ("t must be a number", (field, y, None, s)),
        ("s must be a number", (field, y, t, "x")),
        ("t must have shape", (field, y, time([0.1, 0.2]), s)),
    ):
        with pytest.raises(ValueError, match=f"^{said}"):
            method(*values)
