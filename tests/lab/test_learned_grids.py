"""GITS and AYS: their tables in closed form, the best path through a table, and grids that lower the error."""

import itertools

import pytest
import torch
from made import F64, benchmark

from scoresde import DDIM, VP, Counted, DPMSolverPP, Reference, exact, grid, iid, sample
from scoresde.lab.problems import Modes

SDE, C = VP(), 0.3
MEAN = torch.tensor([1.0, -0.5, 0.2], dtype=F64)


@pytest.fixture(scope="module")
def module():
    """The peers."""
    with benchmark("peers") as loaded:
        yield loaded


def gaussian(module, n, c=C):
    """A flow to a Gaussian, of which everything is known."""
    law = exact.Gaussian(MEAN, c**2)
    return module.Task(SDE, law.diffuse(SDE), Reference(MEAN, c), (3,), 4, n=n)


def ring(module, calls):
    """A flow to eight modes."""
    return module.Task(SDE, Modes().law().diffuse(SDE), Reference(std=0.7), (2,), calls, n=128)


def test_an_euler_step_is_wrong_by_what_a_gaussian_says(module):
    """y - m is S e with S^2 = c^2 + s^2, so that the step from j to i is wrong by S_j + (s_i - s_j) s_j/S_j - S_i."""
    task, ts = gaussian(module, 5), grid.log_snr(SDE, 9)
    s = task.problem.levels(ts)
    S = (C**2 + s**2).sqrt()
    wrong = (S[:, None] + (s - s[:, None]) * (s / S)[:, None] - S).abs().triu(1)
    size = ((task.starts - MEAN) / S[0]).norm(dim=1).mean()
    assert (module.gits.euler_errors(task, ts) - wrong * size).abs().max() < 1e-10


def test_euler_is_exact_towards_a_point(module):
    """Straight lines cost nothing."""

    def score(x, t):
        return -(x - SDE.alpha(t) * MEAN) / SDE.var(t)

    task = module.Task(SDE, score, Reference(MEAN, 0.0), (3,), 4, n=5)
    assert module.gits.euler_errors(task, grid.log_snr(SDE, 9)).max() < 1e-10


def test_the_bound_of_a_gaussian(module):
    """E |D_s - D_j|^2 = c^4 (1/(c^2 + s^2) - 1/(c^2 + s_j^2)) a dimension, integrated over ds/s^3."""
    task, ts = gaussian(module, 20_000), grid.log_snr(SDE, 12)
    s = task.problem.levels(ts)
    inner = 1 / (C**2 + s**2)
    density = 3 * C**4 * (inner - inner[:, None]) / s**2
    pieces = (density[:, 1:] + density[:, :-1]) / 2 * -s.log().diff()
    cost = module.ays.bounds(task, ts)
    for j, i in itertools.combinations(range(13), 2):
        assert float(cost[j, i]) == pytest.approx(float(pieces[j, j:i].sum()), rel=0.03), (j, i)


def test_the_best_path_is_that_of_all(module):
    """Over all paths of four intervals through nine nodes, the least sum of growth^i times a random cost."""
    cost = torch.rand(9, 9, generator=torch.Generator().manual_seed(2), dtype=F64)
    for growth in (0.5, 1.0, 2.0):
        paths = [(0, *p, 8) for p in itertools.combinations(range(1, 8), 3)]
        total = {p: sum(growth**i * float(cost[p[i], p[i + 1]]) for i in range(4)) for p in paths}
        assert module.grids.shortest(cost, 4, growth) == list(min(total, key=total.get))


def test_sweeps_lower_the_cost_until_no_node_moves(module):
    """Each sweep lowers the sum, and the last path is one that none of its nodes could better."""
    i = torch.arange(30.0, dtype=F64)
    cost = torch.rand(30, 30, generator=torch.Generator().manual_seed(3), dtype=F64) * (i - i[:, None]) ** 2
    found = list(module.grids.sweeps(cost, [0, 6, 12, 18, 24, 29]))
    total = [float(cost[k[:-1], k[1:]].sum()) for k in found]
    assert len(found) > 2 and all(a > b for a, b in zip(total, total[1:]))
    k = found[-1]
    for i in range(1, 5):
        others = [[*k[:i], m, *k[i + 1 :]] for m in range(k[i - 1] + 1, k[i + 1])]
        assert min(float(cost[o[:-1], o[1:]].sum()) for o in others) == pytest.approx(total[-1], abs=1e-12)


@pytest.mark.parametrize("step", [DDIM(), DPMSolverPP(2)], ids=["DDIM", "2M"])
@pytest.mark.parametrize("name", ["GITS", "AYS"])
def test_a_grid_found_is_better_than_where_it_began(module, name, step):
    """On fresh starts, with no more calls, from T to t_min; and the carry is the step on its grid."""
    task = ring(module, 7)
    carry = getattr(module, name)(step).fit(task)
    assert len(carry.ts) == 8 and (carry.ts.diff() < 0).all()
    assert carry.ts[0] == SDE.T and carry.ts[-1] == SDE.t_min
    x = SDE.prior((256, 2), iid(torch.Generator().manual_seed(9)), F64)
    counted = Counted(task.score)
    end = carry(module.Problem(SDE, counted), x / SDE.alpha(SDE.T)) * SDE.alpha(SDE.t_min)
    assert counted.nfe == 7
    q = SDE.reverse(task.score, 0.0)
    assert (end - sample(q, x, carry.ts, step)).abs().max() < 1e-10
    truth = sample(q, x, grid.log_snr(SDE, 300), DPMSolverPP(3))
    before = sample(q, x, grid.log_snr(SDE, 7), step)
    off, then = (module.learned.distance(v, truth).mean() for v in (end, before))
    assert off < then


@pytest.mark.parametrize("name", ["GITS", "AYS"])
def test_one_call_is_too_few(module, name):
    """Two are needed for there to be a grid."""
    with pytest.raises(ValueError, match=f"{name} needs at least 2 network calls, got 1"):
        getattr(module, name)().fit(ring(module, 1))
