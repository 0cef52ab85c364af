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


def tableau():
    """(A, b, c, b - b_hat) of the seven stages, the last of which is taken at the new point."""
    A = torch.zeros(7, 7, dtype=F64)
    for i, row in enumerate(ode.A):
        A[i + 1, : i + 1] = torch.tensor(row, dtype=F64)
    return A, A[6], torch.tensor((0.0, *ode.C), dtype=F64), torch.tensor(ode.E, dtype=F64)


def defect(b, A, n):
    """The largest |b Phi(t) - 1/gamma(t)| over the trees with n vertices."""
    return max(abs(float(b @ stages(tree, A)) - 1 / density(tree)) for tree in trees(n))


def test_the_trees_are_all_there():
    """1, 1, 2, 4, 9 rooted trees with 1 to 5 vertices (Hairer, Norsett & Wanner 1993, table II.2.1), all different."""
    assert [len(list(trees(n))) for n in range(1, 6)] == [1, 1, 2, 4, 9]
    assert [len(set(trees(n))) for n in range(1, 6)] == [1, 1, 2, 4, 9]


def test_tableau_of_dopri5():
    """Rows of A sum to c; b satisfies the 17 conditions of order 5, b_hat the 8 of order 4 and not those of order 5."""
    A, b, c, e = tableau()
    assert (A.sum(1) - c).abs().max() < 1e-14
    assert abs(float(e.sum())) < 1e-14
    assert max(defect(b, A, n) for n in range(1, 6)) < 1e-14 < 1e-4 < defect(b, A, 6)
    assert max(defect(b - e, A, n) for n in range(1, 5)) < 1e-14 < 1e-4 < defect(b - e, A, 5)


@both_ways
def test_dopri5_is_proportional_to_its_tolerance(way):
    """The error follows the tolerance over five decades with slope 1, and does not exceed ten times it."""
    t, s = map(time, SPAN[way])
    tolerances = [10.0**-k for k in range(4, 10)]
    errors = [float((ode.Dopri5(e, e)(field, solution(t), t, s) - solution(s)).abs().max()) for e in tolerances]
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


@both_ways
def test_dopri5_steps_per_sample(way):
    """A sample in a batch becomes what it becomes alone, whatever the stiffness of its neighbours and its place."""
    t, s = (time(0.0), time(2.0)) if way == "forward" else (time(0.0), time(-0.1))
    method, y = ode.Dopri5(1e-5, 1e-5), stiff_start()
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


def test_dopri5_of_an_empty_interval():
    """From t to t nothing moves."""
    y = solution(time(0.3))
    for method in (ode.Euler(), ode.Heun(), ode.RK4(), ode.Dopri5()):
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
