"""Solvers have the orders that they claim, in both directions of time, and the adaptive one treats samples singly."""

import math

import pytest
import torch

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


def tableau(pair):
    """(A, b, c, b - b_hat) of the seven stages, the last of which is taken at the new point."""
    A = torch.zeros(7, 7, dtype=F64)
    for i, row in enumerate(pair.a):
        A[i + 1, : i + 1] = torch.tensor(row, dtype=F64)
    return A, A[6], torch.tensor((0.0, *pair.c), dtype=F64), torch.tensor(pair.e, dtype=F64)


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


def stiff(t, y):
    """y' = -k (y - cos t) - sin t, with k in the last column: y -> cos t at the rate k."""
    k = y[:, -1:]
    return torch.cat([-k * (y[:, :-1] - t[:, None].cos()) - t[:, None].sin(), 0 * k], 1)


def stiff_start():
    k = torch.tensor([0.1, 300.0, 3.0, 40.0, 3.0], dtype=F64)
    return torch.stack([2 + 0 * k, -1 + 0 * k, k], 1)


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
    with pytest.raises(RuntimeError, match="did not reach t = 2"):
        ode.Dopri5(max_steps=steps - 1)(field, y, t, s)


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
    with pytest.raises(RuntimeError, match=r"did not reach t = 2: sample 1 is at t = 0\.\d+"):
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
    ("name", "bad"),
    [("rtol", -1e-9), ("rtol", math.nan), ("atol", 0.0), ("atol", math.inf), ("max_steps", 0), ("max_steps", 1.5)],
)
def test_bad_arguments(name, bad):
    """A tolerance or a number of steps that makes no sense is refused by name."""
    with pytest.raises(ValueError, match=f"^{name} must"):
        ode.Dopri5(**{name: bad})
    with pytest.raises(ValueError, match=f"^{name} must"):
        ode.Tsit5(**{name: bad})


# equations observed on the way


def observed(t, y, rows, end):
    """The same equation, with Q = int div field dt and the same weighted by (t, 1); the report is sum y(s) + Q.

    From y at t, y(s) = y/(1 + (s^2 - t^2) y) and int -4 t y dt = -2 log(1 + (s^2 - t^2) y), whose derivatives by y are
    the gradient.
    """
    t_ = t.view(-1, 1) if t.ndim else t
    div = (-4 * t_ * y).sum(1)
    rest = end**2 - t_**2
    below = 1 + rest * y
    gradient = (1 / below**2 - 2 * rest / below).detach()
    return ode.Node(-2 * t_ * y**2, torch.stack([div - 1, div + 1], 1), torch.ones_like(div), gradient)


def report(y, t, s):
    """The true y(s) and Q."""
    below = 1 + (s**2 - t**2) * y
    return y / below, -2 * below.log().sum(1)


def solve(method, y, t, s, f=observed):
    calls = []

    def counted(t, y, rows):
        calls.append(rows.clone())
        return f(t, y, rows, s)

    found = method.integrate(counted, y, t, s)
    assert found.nodes == len(calls)
    return found, calls


INTEGRATORS = [ode.Dopri5(1e-9, 1e-9), ode.Tsit5(1e-9, 1e-9), ode.RungeKutta(40), *(ode.Adams(400, k) for k in (2, 3))]
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
    "Adams1": (lambda n: ode.Adams(n, 1), 2, 1, (200, 400)),
    "Adams2": (lambda n: ode.Adams(n, 2), 3, 2, (200, 400)),
    "Adams3": (lambda n: ode.Adams(n, 3), 4, 3, (400, 800)),
    "RungeKutta": (lambda n: ode.RungeKutta(n), 5, 4, (80, 160)),
}


@pytest.mark.parametrize("case", MEASURED)
@both_ways
def test_order_of_integrators(case, way):
    """Halving the steps divides the errors of y and of Q by 2^order; Adams corrects by one order more than it predicts
    with, up to 3 where its first step, which is predicted by Euler's formula, counts. The reported error, the change
    from an order less, falls by one order less at least.
    """
    (method, order, lower, ns), (t, s) = MEASURED[case], map(time, SPAN[way])
    order, y = min(order, 3) if "Adams" in case else order, solution(t)
    want, Q = report(y, t, s)
    found = [solve(method(n), y, t, s)[0] for n in ns]
    slope = lambda of: math.log2(float(of(found[0]).norm() / of(found[1]).norm()))  # noqa: E731
    assert slope(lambda f: f.y - want) == pytest.approx(order, abs=0.2 if "Adams" in case else 0.35)
    assert slope(lambda f: f.Q.mean(1) - Q) > order - 0.35
    assert slope(lambda f: f.error) > lower - 0.35


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_adams_from_rest(order):
    """Where the rate begins with t^3, as in y' = -4 t^3 y^2, y = 1/(t^4 + c), the order is order + 1, that of the
    corrector, in y and in Q = int -8 t^3 y dt = -2 log(1 + t^4/c).
    """
    c, t, s = torch.tensor([[0.7], [1.3]], dtype=F64), time(0.0), time(1.5)

    def f(t, y, rows, end):
        return ode.Node(-4 * t**3 * y**2, -8 * t**3 * y, y[:, 0], 0 * y)

    off = []
    for n in (100, 200):
        found, _ = solve(ode.Adams(n, order), 1 / c, t, s, f)
        off.append((float((found.y - 1 / (s**4 + c)).norm()), float((found.Q + 2 * torch.log1p(s**4 / c)).norm())))
    for a, b in zip(*off):
        assert math.log2(a / b) == pytest.approx(order + 1, abs=0.3)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("n", [12, 14, 20])
def test_adams_is_exact_for_polynomials(order, n):
    """y' = q = t^k is integrated exactly for k up to `order` in y (Moulton's formulas) and up to 3 in Q (Gregory's
    rule), and not beyond.
    """
    t, s, y = time(-0.3), time(1.1), time([[0.2]])
    zero = torch.zeros(1, dtype=F64)
    for k in range(6):
        power = lambda t, y, rows, end, k=k: ode.Node(0 * y + t**k, t**k + 0 * y, zero, 1 + 0 * y)  # noqa: E731
        found, _ = solve(ode.Adams(n, order), y, t, s, power)
        want = (s ** (k + 1) - t ** (k + 1)) / (k + 1)
        assert (abs(float(found.y - y - want)) < 1e-13) == (k <= order), (k, order)
        assert (abs(float(found.Q - want)) < 1e-13) == (k <= 3)


def test_variance_of_independent_nodes():
    """The variance of Q is sum w^2 for the weights w with which it sums q: those found from q that is 1 at one node.

    For Gregory's rule at n = 20 that is within 3 % of the least possible, h^2 n; all nodes are weighted.
    """
    for method in (ode.Adams(20), ode.RungeKutta(3)):
        whole, calls = solve(method, solution(time(-1.0)), time(-1.0), time(2.0))
        weights = []
        for j in range(len(calls)):
            k = iter(range(len(calls)))

            def f(t, y, rows, end, j=j, k=k):
                node, now = observed(t, y, rows, end), next(k)
                return node._replace(q=torch.full_like(node.q, float(now == j)))

            weights.append(float(solve(method, solution(time(-1.0)), time(-1.0), time(2.0), f)[0].Q[0, 0]))
        assert sum(weights) == pytest.approx(3.0, rel=1e-12)
        assert float(whole.var[0]) == pytest.approx(sum(w * w for w in weights), rel=1e-12)
        if isinstance(method, ode.Adams):
            assert all(w > 0 for w in weights) and float(whole.var[0]) < 1.03 * (3 / 20) ** 2 * 20


@both_pairs
def test_variance_of_adaptive_nodes(method):
    """Of accepted steps only: sum h^2 sum b^2. A step from t to t + h asks at t + c h first and at t + h last."""
    seen, c = [], method.pair.c[0]

    def f(t, y, rows, end):
        seen.append(float(t[0]))
        return observed(t, y, rows, end)

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
    found, _ = solve(ode.RungeKutta(n), y, t, s)
    torch.testing.assert_close(found.y, want, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.Q.mean(1), Q, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.error, error, rtol=1e-7, atol=0)


@both_pairs
def test_embedded_error_of_chosen_steps(method):
    """The same of the adaptive methods, over the steps that are accepted."""
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
    torch.testing.assert_close(found.error, error, rtol=1e-5, atol=0)


@both_pairs
def test_rows_that_have_arrived_leave(method):
    """In `integrate` each sample is asked for as often as it would be alone, and the rows say which are left; called as
    a method of a sampler, all are asked for at every call.
    """

    def f(t, y, rows, end):
        nothing = y.new_zeros(len(y), 1)
        assert len(t) == len(y) == len(rows) and (t <= 2).all()
        assert torch.equal(y[:, -1], stiff_start()[rows, -1])
        return ode.Node(stiff(t, y), nothing + y[:, :1], nothing[:, 0], 0 * y)

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


@pytest.mark.parametrize("method", [ode.RungeKutta(4), ode.Adams(12)], ids=repr)
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


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ode.Adams(13), "n must be even"),
        (lambda: ode.Adams(10), "n must"),
        (lambda: ode.Adams(20, 4), "order must be 1, 2 or 3"),
        (lambda: ode.Adams(20, 0), "order must"),
        (lambda: ode.Adams(20.0), "n must"),
        (lambda: ode.RungeKutta(0), "n must"),
    ],
)
def test_bad_integrators(make, match):
    """Numbers of steps and orders that there are not are refused by name."""
    with pytest.raises(ValueError, match=match):
        make()
