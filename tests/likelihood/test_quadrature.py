"""Integrators carry what they observe along, and know how wrong they are."""

import math
from functools import partial

import pytest
import torch
from made import stiff, stiff_start, tableau

from scoresde import Counted, ode
from scoresde.likelihood import Adams, AsNeeded, RungeKutta, quadrature
from scoresde.likelihood.quadrature import SAFETY, Common, Node, integrate

F64 = torch.float64
SPAN = {"forward": (-1.0, 2.0), "backward": (2.0, -1.0)}
both_ways = pytest.mark.parametrize("way", SPAN)
both_pairs = pytest.mark.parametrize("method", [ode.Dopri5, ode.Tsit5], ids=lambda m: m.__name__)


def time(t):
    return torch.tensor(t, dtype=F64)


def solution(t, c=(0.7, 1.3, 4.0)):
    """y = 1/(t^2 + c), which solves dy/dt = -2 t y^2, (3, 2): a curve for each row, at its own scale in each column."""
    return torch.stack([1 / (t**2 + torch.tensor(c, dtype=F64)), 1 / (t**2 + 2 * torch.tensor(c, dtype=F64))], 1)


def observed(t, y, rows, end, var=0.0):
    """dy/dt = -2 t y^2, with Q = int div dt and the same weighted by (t, 1); the report is sum y(s) + Q.

    From y at t, y(s) = y/(1 + (s^2 - t^2) y) and int -4 t y dt = -2 log(1 + (s^2 - t^2) y), whose derivatives by y are
    the gradient.
    """
    t_ = t.view(-1, 1) if t.ndim else t
    div = (-4 * t_ * y).sum(1)
    rest = end**2 - t_**2
    below = 1 + rest * y
    gradient = (1 / below**2 - 2 * rest / below).detach()
    return Node(-2 * t_ * y**2, torch.stack([div - 1, div + 1], 1), torch.full_like(div, var), gradient)


noisy = partial(observed, var=1.0)


def report(y, t, s):
    """The true y(s) and Q."""
    below = 1 + (s**2 - t**2) * y
    return y / below, -2 * below.log().sum(1)


def solve(method, y, t, s, f=observed, most=torch.inf):
    calls = []

    def counted(t, y, rows):
        calls.append(rows.clone())
        return f(t, y, rows, s)

    found = integrate(method, counted, y, t, s, most)
    assert found.nodes == len(calls)
    return found, calls


INTEGRATORS = [ode.Dopri5(1e-9, 1e-9), ode.Tsit5(1e-9, 1e-9), RungeKutta(40), *(Adams(400, k) for k in (2, 3))]
every_integrator = pytest.mark.parametrize("method", INTEGRATORS, ids=repr)


@every_integrator
@both_ways
def test_integrate(method, way):
    """y and Q are the true ones, Q in each channel, and the error is of the size of what the report is off by."""
    t, s = map(time, SPAN[way])
    y = solution(t)
    found, _ = solve(method, y, t, s)
    want, Q = report(y, t, s)
    torch.testing.assert_close(found.y, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.Q, torch.stack([Q - (s - t), Q + (s - t)], 1), rtol=0, atol=1e-5)
    off = found.y.sum(1) + found.Q.mean(1) - want.sum(1) - Q
    assert (off.abs() <= 5 * found.error).all() and (found.error < 1e-3).all()


MEASURED = {
    "Adams1": (lambda n: Adams(n, 1), 2, 1, (200, 400)),
    "Adams2": (lambda n: Adams(n, 2), 3, 2, (200, 400)),
    "Adams3": (lambda n: Adams(n, 3), 4, 3, (400, 800)),
    "RungeKutta": (lambda n: RungeKutta(n), 5, 4, (80, 160)),
}


@pytest.mark.parametrize("case", MEASURED)
@both_ways
def test_order_of_integrators(case, way):
    """Halving the steps divides the errors of y and of Q by 2^order; Adams corrects by one order more than it predicts
    with. The reported error, the change from an order less, falls by one order less at least.
    """
    (method, order, lower, ns), (t, s) = MEASURED[case], map(time, SPAN[way])
    y = solution(t)
    want, Q = report(y, t, s)
    found = [solve(method(n), y, t, s)[0] for n in ns]
    slope = lambda of: math.log2(float(of(found[0]).norm() / of(found[1]).norm()))  # noqa: E731
    assert slope(lambda f: f.y - want) == pytest.approx(order, abs=0.2 if "Adams" in case else 0.35)
    assert slope(lambda f: f.Q.mean(1) - Q) > order - 0.35
    assert slope(lambda f: f.error) > lower - 0.35


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("n", [6, 8, 12, 14, 20])
def test_adams_is_exact_for_polynomials(order, n):
    """y' = q = t^k is integrated exactly for k up to `order` in y (Moulton's formulas) and up to 3 in Q (Gregory's
    rule), and not beyond.
    """
    t, s, y = time(-0.3), time(1.1), time([[0.2]])
    zero = torch.zeros(1, dtype=F64)
    for k in range(6):
        power = lambda t, y, rows, end, k=k: Node(0 * y + t**k, t**k + 0 * y, zero, 1 + 0 * y)  # noqa: E731
        found, _ = solve(Adams(n, order), y, t, s, power)
        want = (s ** (k + 1) - t ** (k + 1)) / (k + 1)
        assert (abs(float(found.y - y - want)) < 1e-13) == (k <= order), (k, order)
        assert (abs(float(found.Q - want)) < 1e-13) == (k <= 3)


def test_variance_of_independent_nodes():
    """The variance of Q is sum w^2 for the weights w with which it sums q: those found from q that is 1 at one node.

    For Gregory's rule at n = 20 that is within 3 % of the least possible, h^2 n; all nodes are weighted, the second by
    its second call.
    """
    for method in (Adams(20), RungeKutta(3)):
        whole, calls = solve(method, solution(time(-1.0)), time(-1.0), time(2.0), noisy)
        weights = []
        for j in range(len(calls)):
            k = iter(range(len(calls)))

            def f(t, y, rows, end, j=j, k=k):
                node, now = observed(t, y, rows, end), next(k)
                return node._replace(q=torch.full_like(node.q, float(now == j)))

            weights.append(float(solve(method, solution(time(-1.0)), time(-1.0), time(2.0), f)[0].Q[0, 0]))
        assert sum(weights) == pytest.approx(3.0, rel=1e-12)
        assert float(whole.var[0]) == pytest.approx(sum(w * w for w in weights), rel=1e-12)
        if isinstance(method, Adams):
            assert (
                weights.pop(1) == 0 and all(w > 0 for w in weights) and float(whole.var[0]) < 1.03 * (3 / 20) ** 2 * 20
            )


@both_pairs
def test_variance_of_adaptive_nodes(method):
    """Of accepted steps only: sum h^2 sum b^2. A step from t to t + h asks at t + c h first and at t + h last."""
    seen, c = [], method.pair.c[0]

    def f(t, y, rows, end):
        seen.append(float(t[0]))
        return noisy(t, y, rows, end)

    found, _ = solve(method(1e-11, 1e-11), solution(time(-1.0))[:1], time(-1.0), time(2.0), f)
    steps = [((first - c * last) / (1 - c), last) for first, last in zip(seen[1::6], seen[6::6])]
    accepted = [b - a for (a, b), (now, _) in zip(steps, [*steps[1:], (2.0, 2.0)]) if abs(now - b) < 1e-9]
    assert sum(accepted) == pytest.approx(3.0, rel=1e-12) and len(accepted) < len(steps)
    squares = float(tableau(method.pair)[1].square().sum())
    assert float(found.var[0]) == pytest.approx(squares * sum(h * h for h in accepted), rel=1e-9)


def embedded_step(pair, y, t, h, s):
    """y and Q after a step by b, and |gradient (y_5 - y_4)| + |Q_5 - Q_4|, from the tableau."""
    A, b, c, e = tableau(pair)
    k, q = [], []
    for i in range(7):
        z = y + h * sum((A[i, j] * k[j] for j in range(i)), torch.zeros_like(y))
        node = observed(t + c[i] * h, z, None, s)
        k.append(node.rate), q.append(node.q.mean(1))
    y_5, Q_5, off_y, off_Q = (h * sum(w[i] * v[i] for i in range(7)) for w in (b, e) for v in (k, q))
    error = (observed(t + h, y + y_5, None, s).gradient * off_y).sum(1).abs() + off_Q.abs()
    return y + y_5, Q_5, error


def test_embedded_error_of_equal_steps():
    """RungeKutta reports the sum over steps of |gradient (y_5 - y_4)| + |Q_5 - Q_4|, the solutions by b and b_hat."""
    t, s, n = time(0.2), time(1.4), 3
    y = want = solution(t)
    Q, error = torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)
    for j in range(n):
        want, dQ, de = embedded_step(ode.DORMAND_PRINCE, want, t + j * (s - t) / n, (s - t) / n, s)
        Q, error = Q + dQ, error + de
    found, _ = solve(RungeKutta(n), y, t, s)
    torch.testing.assert_close(found.y, want, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.Q.mean(1), Q, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.error, error, rtol=1e-7, atol=0)


@both_pairs
def test_embedded_error_of_chosen_steps(method):
    """Three times the same of the adaptive methods, over the steps that are accepted."""
    seen, c, t, s = [], method.pair.c[0], time(-1.0), time(2.0)

    def f(t, y, rows, end):
        seen.append(float(t[0]))
        return observed(t, y, rows, end)

    y = want = solution(t)[:1]
    found, _ = solve(method(1e-5, 1e-5), y, t, s, f)
    steps = [((first - c * last) / (1 - c), last) for first, last in zip(seen[1::6], seen[6::6])]
    Q, error, taken = torch.zeros(1, dtype=F64), torch.zeros(1, dtype=F64), 0
    for (a, b), (now, _) in zip(steps, [*steps[1:], (2.0, 2.0)]):
        if abs(now - b) < 1e-9:
            want, dQ, de = embedded_step(method.pair, want, time(a), time(b - a), s)
            Q, error, taken = Q + dQ, error + de, taken + 1
    assert taken > 5
    torch.testing.assert_close(found.y, want, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.Q.mean(1), Q, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.error, SAFETY * error, rtol=1e-5, atol=0)


@both_pairs
def test_rows_that_have_arrived_leave(method):
    """In `integrate` each sample is asked for as often as it would be alone, and the rows say which are left; called as
    a method of a sampler, all are asked for at every call.
    """

    def f(t, y, rows, end):
        nothing = y.new_zeros(len(y), 1)
        assert len(t) == len(y) == len(rows) and (t <= 2).all()
        assert torch.equal(y[:, -1], stiff_start()[rows, -1])
        return Node(stiff(t, y), nothing + y[:, :1], nothing[:, 0], 0 * y)

    y, t, s = stiff_start(), time(0.0), time(2.0)
    found, calls = solve(method(1e-5, 1e-5), y, t, s, f)
    times = torch.stack([sum((rows == i).sum() for rows in calls) for i in range(len(y))])

    def alone(i):
        return solve(method(1e-5, 1e-5), y[i : i + 1], t, s, lambda t, y, rows, end: f(t, y, rows + i, end))

    single = [alone(i) for i in range(len(y))]
    assert times.tolist() == [found.nodes for found, _ in single]
    assert found.nodes == int(times.max()) > 3 * int(times.min())
    for name in ("y", "Q", "var", "error"):
        together = torch.cat([getattr(found, name) for found, _ in single])
        torch.testing.assert_close(getattr(found, name), together, rtol=1e-10, atol=1e-13)
    count = Counted(stiff)
    method(1e-5, 1e-5)(lambda t, y: count(t, y), y, t, s)
    assert count.nfe == found.nodes


@pytest.mark.parametrize("method", [RungeKutta(4), Adams(12)], ids=repr)
def test_fixed_steps_do_not_depend_on_neighbours(method):
    """A row of the solution is that of the row alone."""
    t, s = map(time, SPAN["forward"])
    y = solution(t)
    found, _ = solve(method, y, t, s)
    single = [solve(method, row[None], t, s)[0] for row in y]
    for name in ("y", "Q", "var", "error"):
        torch.testing.assert_close(
            getattr(found, name), torch.cat([getattr(one, name) for one in single]), rtol=1e-12, atol=1e-14
        )


@every_integrator
def test_gradients_through_integrators(method):
    """y(s) and Q are differentiable by y(t), with the derivatives of the true solution; the error estimate is not."""
    t, s = map(time, SPAN["forward"])
    y = solution(t).requires_grad_()
    found, _ = solve(method, y, t, s)
    want, Q = report(y, t, s)
    (g,) = torch.autograd.grad(found.y.sum() + found.Q.mean(1).sum(), y)
    torch.testing.assert_close(g, torch.autograd.grad(want.sum() + Q.sum(), y)[0], rtol=0, atol=1e-4)
    assert not found.error.requires_grad


def wavy(t, y, rows, end):
    """The same, on which row 1 alone has a wave that 20 steps do not follow."""
    node = observed(t, y, rows, end)
    wave = 0.5 * torch.sin(15 * (t.view(-1, 1) if t.ndim else t)) * (rows == 1)[:, None]
    return node._replace(rate=node.rate + wave)


@both_ways
def test_refined_where_it_is_needed(monkeypatch, way):
    """Rows whose error suffices are those of Adams' steps, which are all that is asked; the others are those of the
    pair alone, from where they began, to a quarter of the tolerance, of which a fifth is told at least; all calls are
    counted.
    """
    monkeypatch.setattr(quadrature, "USUAL", math.inf)
    t, s = map(time, SPAN[way])
    y, method, names = solution(t), AsNeeded(0.05, Adams(20), ode.Tsit5(1e-4, 1e-4)), ("y", "Q", "var", "error")
    few, _ = solve(Adams(20), y, t, s, wavy)
    assert (few.error > 2 * 0.05).tolist() == [False, True, False]
    found, calls = solve(method, y, t, s, wavy)
    most = 0.05 * y[0].numel()
    alone, asked = solve(method.then, y[1:2], t, s, lambda t, y, rows, end: wavy(t, y, rows + 1, end), most / 4)
    for name in names:
        a, b, c = (getattr(part, name) for part in (few, alone, found))
        assert torch.equal(c[[0, 2]], a[[0, 2]])
        assert torch.equal(c[1:2], b.clamp_min(0.2 * most) if name == "error" else b)
    assert [rows.tolist() for rows in calls] == [[0, 1, 2]] * 22 + [[1]] * len(asked)
    smooth, calls = solve(method, y, t, s)
    assert len(calls) == 22 and all(
        torch.equal(getattr(smooth, k), getattr(solve(Adams(20), y, t, s)[0], k)) for k in names
    )


def test_twice_the_steps_where_that_suffices(monkeypatch):
    """Rows of an error up to two times the tolerance are solved by twice the steps, and by the pair only if these do
    not suffice either; rows of a larger error by the pair at once. Each has the values of what solved it.
    """
    monkeypatch.setattr(quadrature, "USUAL", math.inf)
    t, s = map(time, SPAN["forward"])
    y = solution(t)

    def f(t, y, rows, end):  # waves in q alone, of a size for each row, which 24 steps follow and 12 do not quite
        node = observed(t, y, rows, end)
        return node._replace(q=node.q + (torch.tensor([1.0, 40.0, 0.0], dtype=F64)[rows] * (7 * t).sin())[:, None])

    few, more = (solve(Adams(n), y, t, s, f)[0].error for n in (12, 24))
    tol = float(few[0]) / 2 / 1.8
    assert (few > 2 * tol).tolist() == [True, True, False] and few[1] > 4 * tol and more[0] < 2 * tol
    found, calls = solve(AsNeeded(tol, Adams(12)), y, t, s, f)
    assert [rows.tolist() for rows in calls[:40]] == [[0, 1, 2]] * 14 + [[0]] * 26 and calls[40].tolist() == [1]
    assert found.error[0] == more[0] and found.error[2] == few[2]


def test_noise_of_probes_hides_no_error_of_the_path(monkeypatch):
    """However noisy q is, rows whose path itself is solved badly, which no probe enters, are solved again."""
    monkeypatch.setattr(quadrature, "USUAL", math.inf)
    t, s = map(time, SPAN["forward"])
    y = solution(t)
    path = solve(Adams(), y, t, s, lambda t, y, rows, end: observed(t, y, rows, end)._replace(q=0 * y))[0].error
    tol = float(path.sort().values[1:].mean()) / y[0].numel()  # of which the worst row alone is beyond
    noisy = lambda t, y, rows, end: observed(t, y, rows, end, var=1e4)  # noqa: E731
    found, calls = solve(AsNeeded(tol), y, t, s, noisy)
    assert {tuple(rows.tolist()) for rows in calls[22:]} == {(int(path.argmax()),)}


@pytest.mark.parametrize("size", [0.1, 0.39, 2.6, 30.0])
def test_refined_where_coordinates_are_not_those_of_the_sample(size):
    """Rows whose y is not of size 1 are refined, however small an error few steps tell; those of usual size are not."""
    y, t, s = torch.full((3, 4), 1.0, dtype=F64), time(0.0), time(1.0)
    y[1] *= size * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=F64)
    still = lambda t, y, rows, end: Node(0 * y, 0 * y[:, :1], 0 * y[:, 0], 0 * y)  # noqa: E731
    found, calls = solve(AsNeeded(1e-3), y, t, s, still)
    assert {tuple(rows.tolist()) for rows in calls[22:]} == {(1,)}
    assert torch.equal(found.y, y) and found.error.tolist() == [0.0, 0.2 * 4 * 1e-3, 0.0]


@both_ways
def test_the_error_of_the_report_is_controlled(way):
    """However loose the tolerances of y, no step is off by more than a third of `most` times the root of its share, so
    that the report follows it by orders of magnitude, and calls are spent as the order of the pair says.
    """
    t, s = map(time, SPAN[way])
    y = solution(t)
    exactly, _ = solve(ode.Dopri5(1e-12, 1e-12), y, t, s)
    calls = []
    for most in (1e-2, 1e-4, 1e-6, 1e-8):
        found, asked = solve(ode.Dopri5(1e9, 1e9), y, t, s, most=most)
        off = (found.y.sum(1) + found.Q.mean(1) - exactly.y.sum(1) - exactly.Q.mean(1)).abs()
        calls.append(len(asked))
        assert (off <= most).all() and (off <= found.error + 1e-12).all()
    assert calls[3] > 2 * calls[0] and calls[3] < 1e6 ** (1 / 4) * calls[0]


def test_noise_of_probes_does_not_shorten_steps():
    """An error of Q that is within three of its standard errors at every step is not one that shorter steps mend."""
    y, t, s, g = solution(time(-1.0)), time(-1.0), time(2.0), torch.Generator().manual_seed(0)

    def shaken(t, y, rows, end):
        node = observed(t, y, rows, end)
        return node._replace(q=node.q + torch.randn(node.q.shape, generator=g, dtype=F64), var=node.var + 1.0)

    quiet, asked = solve(ode.Dopri5(1e-4, 1e-4), y, t, s, most=0.1)
    found, again = solve(ode.Dopri5(1e-4, 1e-4), y, t, s, shaken, most=0.1)
    assert len(again) < 1.5 * len(asked) and torch.allclose(found.y, quiet.y, rtol=1e-3, atol=1e-3)


def test_refined_to_a_tolerance():
    """Where no row is good enough for Adams, errors are below the tolerance and what is told, and follow it."""
    t, s = map(time, SPAN["forward"])
    y, before = solution(t), math.inf
    for tol in (1e-2, 1e-4, 1e-6):
        found, _ = solve(AsNeeded(tol), y, t, s, wavy)
        exactly, _ = solve(ode.Dopri5(1e-11, 1e-11), y, t, s, wavy)
        off = (found.y.sum(1) + found.Q.mean(1) - exactly.y.sum(1) - exactly.Q.mean(1)).abs()
        assert (off <= found.error).all() and float(off.max()) < min(2 * tol, before / 2)
        before = float(off.max())


def test_the_longest_step():
    """Whatever is tolerated, no step of a pair is longer than a sixteenth of the whole."""
    seen = []

    def f(t, y, rows, end):
        seen.append(float(t[0]))
        return observed(t, y, rows, end)

    solve(ode.Dopri5(1e9, 1e9), solution(time(-1.0))[:1], time(-1.0), time(2.0), f)
    ends = torch.tensor(seen[6::6])
    assert ends.diff().max() < 3 / 16 * (1 + 1e-6) and len(ends) < 22


@pytest.mark.parametrize("size", [0.0, 0.5, 2.0])
def test_noise_is_no_error(size):
    """Of estimates q with an error of known variance, independent from node to node, the change of Q on half the nodes
    tells an error as far as it is larger than its own standard error: on average 0.083 of that, over 4, beyond what is
    told without noise; not 0.8.
    """
    t, s, g = time(-1.0), time(2.0), torch.Generator().manual_seed(0)
    y = solution(t)[:1].expand(4000, 2)

    def f(t, y, rows, end):
        node = observed(t, y, rows, end, size**2)
        return node._replace(q=node.q + size * torch.randn(len(y), 1, generator=g, dtype=F64))

    quiet, found = solve(Adams(20), y[:1], t, s)[0], solve(Adams(20), y, t, s, f)[0]
    noise = float(found.var[0]) ** 0.5  # the weights of the change are nearly those of Q, with other signs
    assert float(found.error.mean() - quiet.error) < 0.25 * 2 * 0.083 * 1.3 * noise + 1e-12


def test_noise_refines_nothing():
    """Where the error suffices but for noise, one or two samples in a hundred are refined: those beyond two standard
    errors.
    """
    t, s, g = time(-1.0), time(2.0), torch.Generator().manual_seed(0)
    y, asked = solution(t)[:1].expand(4000, 2), []

    def f(t, y, rows, end):
        asked.append(len(rows))
        node = observed(t, y, rows, end, 0.25)
        return node._replace(q=node.q + 0.5 * torch.randn(len(y), 1, generator=g, dtype=F64))

    tol = 1.05 * float(solve(Adams(20), y[:1], t, s)[0].error) / 2
    solve(AsNeeded(tol, then=ode.Dopri5(1e-3, 1e-3)), y, t, s, f)
    assert 0.005 < asked[22] / 4000 < 0.03


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: AsNeeded(0.0), "tol must be"),
        (lambda: AsNeeded(math.nan), "tol must be"),
        (lambda: AsNeeded(0.1, RungeKutta(3)), "first must be a value such as Adams"),
        (lambda: AsNeeded(0.1, then=Adams()), "then must be a value such as Dopri5"),
        (lambda: Adams(13), "n must be even"),
        (lambda: Adams(4), "n must"),
        (lambda: Adams(20, 4), "order must be 1, 2 or 3"),
        (lambda: Adams(20, 0), "order must"),
        (lambda: Adams(20.0), "n must"),
        (lambda: RungeKutta(0), "n must"),
        (lambda: RungeKutta(10**9), "n must be a whole number >= 1 and <= 100000"),
        (lambda: Adams(10**30), "n must"),
    ],
)
def test_bad_integrators(make, match):
    """Numbers of steps and orders that there are not are refused by name."""
    with pytest.raises(ValueError, match=match):
        make()


# an estimate whose error a block of nodes has in common


class Blocks:
    """`observed`, with a common estimate beside it that is wrong by a draw of the deviation `size` for each block, and
    has a third of the mean of q. q has that part of its error, and errors of its own of the same size.
    """

    def __init__(self, end, size=1.0, wave=lambda k, t: 0.0):
        self.end, self.size, self.wave, self.left, self.block, self.calls = end, size, wave, 0, -1, []
        self.g = torch.Generator().manual_seed(0)

    def together(self, n):
        self.left, self.block = n, self.block + 1
        self.error = self.size * torch.randn(5000, generator=self.g, dtype=F64)

    def skip(self, n):
        self.calls += [None] * n

    def __call__(self, t, y, rows):
        if self.left == 0:
            self.together(1)
        self.left -= 1
        node, own = observed(t, y, rows, self.end), torch.randn(len(y), generator=self.g, dtype=F64) * self.size
        right = node.q + self.wave(len(self.calls), t)
        self.calls.append((float(t.flatten()[0]), self.block))
        common = Common(
            right.mean(1) + self.error[rows], torch.zeros(len(y), dtype=F64), torch.full_like(own, self.size**2), 1 / 3
        )
        q = right + (own * 2 / 3 + self.error[rows] / 3)[:, None]
        return node._replace(q=q, var=torch.full_like(own, 4 / 9 * self.size**2), common=common)


BLOCKED = [Adams(20), Adams(12), RungeKutta(4), ode.Dopri5(1e-3, 1e-3), ode.Tsit5(1e-3, 1e-3)]


@pytest.mark.parametrize("method", BLOCKED, ids=repr)
def test_blocks(method):
    """Blocks are neighbours of Adams' method, of which the last is alone, and the stages of a step but the first, which
    is the last of the step before. The variance of Q is that of its errors over 4,000 samples.
    """
    t, s, quiet = time(-1.0), time(2.0), solution(time(-1.0))[:1]
    f = Blocks(s)
    found = integrate(method, f, quiet.expand(4000, 2), t, s)
    seen = [block for _, block in f.calls]
    n = len(seen)
    if isinstance(method, Adams):
        assert seen == [0, 0, *(k // 2 for k in range(1, n - 1))]
    else:
        assert seen == [0, *(1 + k // 6 for k in range(n - 1))]
    off = (found.Q - integrate(method, Blocks(s, 0.0), quiet, t, s).Q).mean(1)
    assert float(off.square().mean() / found.var.mean()) == pytest.approx(1, abs=0.1)


def test_an_error_in_common_hides_nothing():
    """However large the errors of estimates, what a wave in q changes is seen from the estimate that lasts. By Adams'
    method all but the error of the ends, whose weights differ.
    """
    t, s, y = time(-1.0), time(2.0), solution(time(-1.0))[:1]
    wave = lambda k, t: 50.0 * (-1) ** k  # noqa: E731
    told = {}
    for size in (0.0, 10.0):
        for name, f in (("blocks", Blocks(s, size, wave)), ("quiet", Blocks(s, size))):
            told[name, size] = float(integrate(Adams(20), f, y.expand(2000, 2), t, s).error.mean())
    seen = told["blocks", 0.0] - told["quiet", 0.0]
    assert told["blocks", 10.0] == pytest.approx(seen, rel=0.1)
    assert told["quiet", 10.0] < seen / 50


def test_a_pair_is_not_blind_for_errors_of_estimates():
    """A wave in q is followed by as many steps beside errors that a block has in common, however large they are, as
    without errors; where they are each node's own, most of it is within their scatter.
    """
    t, s, y, asked = time(-1.0), time(2.0), solution(time(-1.0))[:1].expand(60, 2), []
    for size, apart in ((0.0, False), (5.0, False), (10.0, False), (5.0, True), (10.0, True)):
        f = Blocks(s, size, lambda k, t: 0.0)

        def wavy(t, y, rows, f=f, size=size, apart=apart):
            node, wave = f(t, y, rows), 50 * torch.sin(40 * t + rows)
            common = node.common._replace(value=node.common.value + wave)
            own = torch.full_like(wave, 5 / 9 * size**2)
            node = node._replace(q=node.q + wave[:, None], common=common)
            return node._replace(common=None, var=own) if apart else node

        calls = _Counting(wavy, f)
        integrate(ode.Dopri5(1e-3, 1e-3), calls, y, t, s, most=0.1)
        asked.append(calls.samples)
    assert min(asked[1:3]) > asked[0] > 1.5 * max(asked[3:]), asked


class _Counting:
    """An equation with the blocks of another, and how many samples it was asked for."""

    def __init__(self, f, blocks):
        self.f, self.blocks, self.samples = f, blocks, 0

    def __call__(self, t, y, rows):
        self.samples += len(rows)
        return self.f(t, y, rows)

    def together(self, n):
        self.blocks.together(n)

    def skip(self, n):
        self.blocks.skip(n)
