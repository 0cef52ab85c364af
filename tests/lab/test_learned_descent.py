"""Learned solvers of `benchmarks/peers` that are fitted by gradients: what each is before a fit, on what it is exact,
and what a fit does.
"""

import pytest
import torch
from made import F64, benchmark

from scoresde import VP, Counted, DPMSolverPP, Reference, exact, grid, iid, sample
from scoresde.lab.problems import DigitClasses, Modes
from scoresde.steps import IPNDM, DPMSolver
from scoresde.steps.singlestep import THIRD, SingleStep

SDE = VP()
NAMES = ("NonStationary", "Generalized", "Alternating", "Discretized", "DyWeight", "Parallel")


@pytest.fixture(scope="module")
def module():
    """The peers."""
    with benchmark("peers") as loaded:
        yield loaded


@pytest.fixture(scope="module", params=NAMES)
def named(request, module):
    """Each class in turn."""
    return next(type(one) for one in module.LEARNED if type(one).__name__ == request.param)


@pytest.fixture(scope="module")
def digits(module):
    """A task of 6 calls with 64 pilots; the ends of 100 fresh starts, and those."""
    law, (y, x) = DigitClasses().law(), starts(100, (1, 8, 8), 9)
    around = Reference.fit(law.sample(500, torch.Generator().manual_seed(2)))
    task = module.learned.Task(SDE, law.diffuse(SDE), around, (1, 8, 8), 6, 64, 0, 30)
    return task, ends(task, grid.reference(SDE, 60, around=around), SingleStep(THIRD, around), x), y


def ring(module, calls, n=16, fine=30, score=None):
    """The 8-mode ring as a task."""
    law = Modes().law()
    around = Reference.fit(law.sample(2000, torch.Generator().manual_seed(2)))
    return module.learned.Task(SDE, score or law.diffuse(SDE), around, (2,), calls, n, 0, fine)


def steps(module, n, **more):
    return module.descent.Descent(n, **more)


def starts(n, shape, seed):
    """y at the highest level, and x."""
    x = SDE.prior((n, *shape), iid(torch.Generator().manual_seed(seed)), F64)
    return x / SDE.alpha(SDE.T), x


def point(m):
    """The score of x_t where all data are at m: (alpha m - x)/sigma^2."""
    return lambda x, t: (SDE.alpha(t)[..., None] * m - x) / SDE.var(t)[..., None]


def ends(task, ts, step, x):
    """y at the lowest level."""
    return sample(SDE.reverse(task.score, 0.0), x, ts, step) / SDE.alpha(SDE.t_min)


@pytest.mark.parametrize("calls", [2, 3, 5, 7])
def test_all_calls_are_spent_and_no_more(module, named, calls):
    task = ring(module, calls)
    carry, counted = named(descent=steps(module, 0)).fit(task), Counted(task.score)
    end = carry(module.Problem(SDE, counted), task.starts)
    assert counted.nfe == calls
    assert end.shape == task.starts.shape and end.dtype == F64 and not end.requires_grad


def test_fewer_calls_than_two_are_refused(module, named):
    with pytest.raises(ValueError, match="needs at least 2 network calls, got 1"):
        named().fit(ring(module, 1))


def test_a_fit_lowers_the_error_on_fresh_starts(module, named, digits):
    """On classes of digits in 6 calls, the mean of log e falls by 0.1 at least, against the start it is fitted from."""
    task, truth, y = digits
    off = []
    for n in (0, 60):
        end = named(descent=steps(module, n, batch=32)).fit(task)(task.problem, y)
        off.append(float(module.learned.distance(end, truth).log().mean()))
    assert off[1] < off[0] - 0.1


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_the_start_is_multistep_dpm_solver_pp(module, order, n):
    """Its weights, carried in the form of a linear solver, give the states that the step gives."""
    task, (y, x) = ring(module, n), starts(20, (2,), 3)
    for ts in (grid.log_snr(SDE, n), grid.karras(SDE, n)):
        c, s = module.linear.multistep(task, ts, order)
        end = module.linear.Linear.local(c, s, s[:-1])(task.problem, y)
        assert (end - ends(task, ts, DPMSolverPP(order), x)).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["NonStationary", "Generalized", "Alternating"])
def test_before_a_fit_it_is_dpm_solver_pp_on_the_best_grid(module, name):
    task, (y, x) = ring(module, 5), starts(20, (2,), 3)
    carry = getattr(module, name)(descent=steps(module, 0)).fit(task)
    ts, off = SDE.time(-carry.s.log()), {}
    for spacing in (grid.log_snr, grid.karras, lambda sde, n: grid.reference(sde, n, around=task.around)):
        for order in (2, 3):
            at = spacing(SDE, 5)
            here = ends(task, at, DPMSolverPP(order), task.starts * SDE.alpha(SDE.T))
            off[at, order] = float(module.learned.distance(here, task.ends).log().mean())
    at, order = min(off, key=off.get)
    assert (ts - at).abs().max() < 1e-12
    assert (carry(task.problem, y) - ends(task, at, DPMSolverPP(order), x)).abs().max() < 1e-10


def test_ld3_is_second_order_dpm_solver_pp_on_its_own_levels(module):
    """After a fit as before: only the levels have moved, and their ends have not."""
    task, (y, x) = ring(module, 5), starts(20, (2,), 3)
    carry = module.Discretized(descent=steps(module, 20)).fit(task)
    ts = SDE.time(-carry.s.log())
    assert min((ts - spacing(SDE, 5)).abs().max() for spacing in (grid.log_snr, grid.karras)) > 1e-3
    assert (ts[[0, -1]] - torch.tensor([SDE.T, SDE.t_min])).abs().max() < 1e-9
    ts[0], ts[-1] = SDE.T, SDE.t_min
    assert (carry(task.problem, y) - ends(task, ts, DPMSolverPP(2), x)).abs().max() < 1e-7


def test_s4s_keeps_three_weights_a_step(module):
    """Also after a fit, which changes them all."""
    task = ring(module, 6)
    before, after = (module.Alternating(descent=steps(module, n)).fit(task) for n in (0, 40))
    own = []
    for carry in (before, after):
        r = carry.s[1:] / carry.s[:-1]
        own.append((carry.w - r[:, None] * torch.cat([torch.zeros(1, 6), carry.w[:-1]])) / (1 - r)[:, None])
    kept = torch.ones(6, 6, dtype=torch.bool).tril().triu(-2)
    assert own[1][~kept].abs().max() < 1e-12
    assert (own[1] - own[0])[kept].abs().min() > 1e-9


def test_at_a_point_the_sum_of_weights_is_all_that_counts(module):
    """Where all data are at m, D = m whatever the network is told, and y - m shrinks as s: a step whose weights add up
    to 1 is exact. What is beyond 1 adds (1 - s'/s) m of it at s', and s_N/s' of that in the end.
    """
    g, m, (y, _) = torch.Generator().manual_seed(6), torch.tensor([0.3, -0.7], dtype=F64), starts(4, (2,), 5)
    s = module.Problem(SDE, point(m)).levels(grid.karras(SDE, 4))
    c, told = torch.randn(4, 4, generator=g, dtype=F64).tril(), s[:-1] * (0.5 + torch.rand(4, generator=g, dtype=F64))
    for beyond in (torch.zeros(4, dtype=F64), torch.randn(4, generator=g, dtype=F64)):
        c[:, 0] += 1 + beyond - c.sum(1)
        off = (beyond * (1 - s[1:] / s[:-1]) * s[-1] / s[1:]).sum()
        end = module.linear.Linear.local(c, s, told)(module.Problem(SDE, point(m)), y)
        assert (end - m - s[-1] / s[0] * (y - m) - off * m).abs().max() < 1e-10


def test_a_linear_solver_at_a_point(module):
    """y_N = (s_N/s_0) a y_0 + sum_j w_j m."""
    g, m, (y, _) = torch.Generator().manual_seed(6), torch.tensor([0.3, -0.7], dtype=F64), starts(4, (2,), 5)
    problem = module.Problem(SDE, point(m))
    s = problem.levels(grid.karras(SDE, 4))
    a, w = torch.rand(4, generator=g, dtype=F64), torch.randn(4, 4, generator=g, dtype=F64).tril()
    end = module.linear.Linear(a, w, s, s[:-1])(problem, y)
    assert (end - s[-1] / s[0] * a[-1] * y - w[-1].sum() * m).abs().max() < 1e-10


@pytest.mark.parametrize("order", [1, 2, 3])
def test_dyweight_with_ipndm_weights_is_ipndm(module, order):
    """In one interval more than calls, if the first direction is right: on Gaussian data, it is."""
    law, (y, x) = exact.Gaussian(torch.tensor([0.3, -0.7], dtype=F64), 0.25), starts(20, (2,), 4)
    task = module.learned.Task(SDE, law.diffuse(SDE), Reference(torch.tensor([0.3, -0.7], dtype=F64), 0.5), (2,), 6)
    ts = grid.karras(SDE, 7)
    w, s = module.dyweight.ipndm(task, ts, order), task.problem.levels(ts)
    carry = module.dyweight.Weighted(w, s, torch.ones(7, dtype=F64), task.around.mean, 0.5)
    assert (carry(task.problem, y) - ends(task, ts, IPNDM(order), x)).abs().max() < 1e-10


def test_dyweight_knows_its_noise_level_at_a_point(module):
    """Where all data are at m, all directions are z = (y_0 - m)/s_0, whatever W is, and the end is at the level that
    the solver believes, m + tau_N z.
    """
    g, m, (y, _) = torch.Generator().manual_seed(6), torch.tensor([0.3, -0.7], dtype=F64), starts(4, (2,), 5)
    s = module.Problem(SDE, point(m)).levels(grid.karras(SDE, 5))
    w = torch.randn(5, 5, generator=g, dtype=F64).mul(0.1).tril() + torch.eye(5, dtype=F64)
    tau = s[0]
    for row, to in zip(w, s[1:], strict=True):
        tau = tau + row.sum() * (to - tau)
    assert (tau / s[-1] - 1).abs() > 0.1
    carry = module.dyweight.Weighted(w, s, torch.ones(5, dtype=F64), m, 0.0)
    exactly = m + tau / s[0] * (y - m)
    assert (carry(module.Problem(SDE, point(m)), y) - exactly).abs().max() < 1e-10


def test_dyweight_tells_the_network_c_times_its_level(module):
    """Two intervals: the network is asked once, at c_1 tau_1, and d is in units of that."""
    m, (y, _) = torch.tensor([0.3, -0.7], dtype=F64), starts(4, (2,), 5)
    s, w = torch.tensor([150.0, 2.0, 0.02], dtype=F64), torch.tensor([[0.9, 0.0], [0.2, 0.7]], dtype=F64)
    tau = 150 + 0.9 * (2 - 150)
    asked = []

    def score(x, t):
        asked.append(t)
        return point(m)(x, t)

    problem = module.Problem(SDE, score)
    end = module.dyweight.Weighted(w, s, torch.tensor([1.0, 1.3], dtype=F64), m, 0.0)(problem, y)
    z = (y - m) / 150
    assert len(asked) == 1 and (problem.levels(asked[0]) / (1.3 * tau) - 1).abs() < 1e-10
    assert (end - (m + tau * z + (0.02 - tau) * (0.2 * z + 0.7 * z / 1.3))).abs().max() < 1e-10


def test_epd_with_midpoints_is_dpm_solver_2(module):
    """If its first direction is right: on Gaussian data, it is."""
    law, (y, x) = exact.Gaussian(torch.tensor([0.3, -0.7], dtype=F64), 0.25), starts(20, (2,), 4)
    task = module.learned.Task(SDE, law.diffuse(SDE), Reference(torch.tensor([0.3, -0.7], dtype=F64), 0.5), (2,), 5, 16)
    one = module.Parallel().first(task)
    ts = SDE.time(-one.s.log())
    ts[0], ts[-1] = SDE.T, SDE.t_min
    assert one.many == (1, 1, 1)
    assert (one(task.problem, y) - ends(task, ts, DPMSolver(2), x)).abs().max() < 1e-10


def test_epd_at_a_point_turns_by_the_sum_of_its_weights(module):
    """There every direction is y - m over the level, so y - m is multiplied by 1 + (s'/s - 1) sum_k w_k, whatever r
    and b are.
    """
    g, m, (y, _) = torch.Generator().manual_seed(6), torch.tensor([0.3, -0.7], dtype=F64), starts(4, (2,), 5)
    problem = module.Problem(SDE, point(m))
    s = problem.levels(grid.karras(SDE, 3))
    r, w, b = (torch.rand(4, generator=g, dtype=F64) + 0.1 for _ in range(3))
    one = module.parallel.Ensemble(s, (1, 1, 2), r.clamp_max(0.9), w, b, m, 0.0)
    sums = torch.stack([w[0], w[1], w[2] + w[3]])
    exactly = m + (1 + (s[1:] / s[:-1] - 1) * sums).prod() * (y - m)
    assert (one(problem, y) - exactly).abs().max() < 1e-10


def asked(module, carry, m):
    """The levels that a solver asks the network at, of data at m."""
    seen = []
    problem = module.Problem(SDE, lambda x, t: (seen.append(t), point(m)(x, t))[1])
    carry(problem, starts(4, m.shape, 5)[0])
    return problem.levels(torch.stack(seen))


def test_epd_asks_at_b_times_the_levels_between(module):
    """At s, unless it is the first, and at b_k s_k with s_k = s'^r s^(1 - r)."""
    m, s = torch.tensor([0.3, -0.7], dtype=F64), torch.tensor([150.0, 2.0, 0.02], dtype=F64)
    r, w, b = (torch.tensor(v, dtype=F64) for v in ((0.4, 0.3, 0.8), (1.0, 0.5, 0.5), (1.2, 0.9, 1.1)))
    levels = asked(module, module.parallel.Ensemble(s, (1, 2), r, w, b, m, 0.0), m)
    between = s[[0, 1, 1]] ** (1 - r) * s[[1, 2, 2]] ** r
    assert (levels / torch.stack([(b * between)[0], s[1], *(b * between)[1:]]) - 1).abs().max() < 1e-10


def test_a_linear_solver_asks_at_the_levels_that_are_told(module, digits):
    """Which fits of GS and S4S move away from those where the states are, and a fit of BNS does not."""
    m, s = torch.tensor([0.3, -0.7], dtype=F64), torch.tensor([150.0, 2.0, 0.02], dtype=F64)
    told = torch.tensor([140.0, 2.5], dtype=F64)
    levels = asked(module, module.linear.Linear.local(torch.eye(2, dtype=F64), s, told), m)
    assert (levels / told - 1).abs().max() < 1e-10
    for name, moves in (("Generalized", True), ("Alternating", True), ("NonStationary", False)):
        carry = getattr(module, name)(descent=steps(module, 40, batch=32)).fit(digits[0])
        assert ((carry.told / carry.s[:-1] - 1).abs().max() > 1e-6) == moves, name


def test_what_a_fit_costs_is_counted(module):
    """Each step goes forward and back through all calls of its batch."""
    task = ring(module, 4)
    assert len(task.ends) == 16
    counted = module.learned.Evaluated(task.score)
    other = module.learned.Task(SDE, counted, task.around, (2,), 4, 16, 0, 30)
    other.__dict__["ends"] = task.ends
    module.Discretized(descent=steps(module, 10, batch=8, checks=5)).fit(other)
    assert counted.backward == 10 * 8 * 4
    choice, held = 3 * 16 * 4, (1 + 6) * 4 * 4
    assert counted.forward == counted.backward + choice + held


def test_descent_keeps_what_is_best_on_pilots_held_out(module):
    """Where the pilots walked on and those held out pull one way, it arrives; where they pull apart, it stays."""
    task = ring(module, 2, 16)
    target = torch.tensor([2.0, -1.0], dtype=F64)

    def error(sign):
        signs = torch.cat([torch.ones(12), sign * torch.ones(4)]).double()
        return lambda values, rows: (values[0] - signs[rows, None] * target).norm(dim=1) + 1e-9

    none = torch.zeros(2, dtype=F64)
    (same,) = steps(module, 300, log=False)(error(1.0), [none], [0.05], task)
    assert (same - target).norm() < 1e-2
    (apart,) = steps(module, 300, log=False)(error(-1.0), [none], [0.05], task)
    assert torch.equal(apart, none)


def test_a_derivative_by_the_level_sees_the_network(module):
    """D of N(m, c^2 I) is m + c^2/(c^2 + s^2) (y - m), whose derivative by s is known."""
    m, (y, _) = torch.tensor([0.3, -0.7], dtype=F64), starts(5, (2,), 4)
    problem = module.Problem(SDE, exact.Gaussian(m, 0.25).diffuse(SDE))
    s = torch.tensor(1.7, dtype=F64, requires_grad=True)
    D = module.descent.denoise(problem, y, s)
    assert (D - m - 0.25 / (0.25 + 1.7**2) * (y - m)).abs().max() < 1e-10
    (slope,) = torch.autograd.grad(D.sum(), s)
    assert (slope + (0.25 * 2 * 1.7 / (0.25 + 1.7**2) ** 2 * (y - m)).sum()).abs() < 1e-9


def test_whitened_coordinates(module):
    """R^T G R = I for the vectors that are used, and no others move."""
    known = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0)).double() @ torch.rand(4, 4).double()
    used = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 1], [0, 1, 1, 1]], dtype=torch.bool)
    gram = torch.einsum("bdi,bdj->ij", known, known) / 150
    for R, at in zip(module.descent.roots(known, used), used, strict=True):
        assert (R.T @ gram @ R - torch.diag(at.double())).abs().max() < 1e-9
        assert R[~at].abs().sum() == R[:, ~at].abs().sum() == 0


def test_levels_and_their_shares(module):
    s = module.learned.Task(SDE, None, Reference(), (2,), 5).log_snr_levels(5) ** 1.1
    high, low = float(s[0]), float(s[-1])
    assert (module.descent.levels(module.descent.shares(s), high, low) / s - 1).abs().max() < 1e-12
    assert (module.descent.levels(torch.zeros(5).double(), high, low).log().diff(n=2)).abs().max() < 1e-12


def test_a_soft_teacher_moves_pilots_to_the_edge_of_a_ball(module):
    """Down the distance to a far target, in a straight line; those that are not in the batch stay."""
    task = ring(module, 2)
    teacher, rows = module.descent.SoftTeacher(task, 0.01), torch.tensor([1, 4])
    for _ in range(15):
        (teacher(rows) - 1e6).square().sum().backward()
        teacher.after(rows)
    moved = teacher(torch.arange(16)).detach() - task.starts
    edge = 0.01 * task.levels[0]
    assert (module.learned.distance(moved, 0 * moved)[rows] / edge - 1).abs().max() < 1e-9
    assert (moved[rows] - edge).abs().max() < 1e-3 * edge
    assert moved[[0, 2, 3, *range(5, 16)]].abs().max() == 0
