"""Solvers fitted to reverse processes with noise: the truth of each sample, and what is exact whatever the weights."""

import math
from dataclasses import replace

import pytest
import torch
from flows import LAWS, close, data

from scoresde import EDM, VE, VP, Cosine, Counted, Flow, Reference, grid, iid, sample
from scoresde.exact import Gaussian
from scoresde.lab.gaussian import gaussian_law_of
from scoresde.ode import Dopri5
from scoresde.process import Between
from scoresde.steps import Ancestral, Multistep, Pilots, Renoised, Step
from scoresde.steps import renewed as module
from scoresde.steps.newton import Family, Runs, improve
from scoresde.steps.renewed import Restarts, bare, renewed
from scoresde.steps.tuned import Error, Tuned, Tuning, distance

F64 = torch.float64
SDES = {"VP": VP(), "VE": VE(), "EDM": EDM(), "Cosine": Cosine()}
ETAS = [0.3, 1.0, Between(0.8, low=0.1, high=2.0)]


def process(law, sde, eta=1.0):
    return sde.reverse(LAWS[law].diffuse(sde), eta)


def starts(p, shape, n, seed=1234):
    return p.sde.prior((n, *shape), iid(torch.Generator().manual_seed(seed)), F64)


def noise(seed=7):
    return iid(torch.Generator().manual_seed(seed))


def weights(n, seed=0, size=0.05):
    """Some that were not fitted to anything."""
    return size * torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=F64)


def renew(p, law, calls, pilots=Pilots(16, fine=60), around=True):
    """The solver found for a law."""
    known = Reference.fit(data(LAWS[law])) if around else None
    return renewed(p, torch.empty(1, *LAWS[law].shape, dtype=F64), calls, known, pilots, lambda said: None)


def at(law, sde, t):
    """The law at time t of Gaussian data."""
    there = law.marginal(sde, t)
    return Gaussian(there.means[0], float(there.covariances[0, 0, 0]))


class Solved(Step):
    """The flow, by an adaptive method."""

    def __init__(self, tol):
        self.tol = tol

    def __call__(self, p, x, t, s, noise):
        return sample(p, x, torch.stack([t, s]), Flow(Dopri5(self.tol, self.tol)))


# the step


@pytest.mark.parametrize("eta", ETAS, ids=str)
@pytest.mark.parametrize("sde", SDES.values(), ids=str)
def test_of_one_node_it_is_ddpm(sde, eta):
    """Around data at a point, of one node and with nothing added, it is DDPM's step with DDIM's eta, by another way."""
    p = process("modes", sde, eta)
    ts, x = grid.log_snr(sde, 7)[:-2], starts(p, (2,), 8)
    close(sample(p, x, ts, bare(p, Multistep(1), ts), noise=noise()), sample(p, x, ts, Ancestral(), noise=noise()))


@pytest.mark.parametrize("eta", ETAS, ids=str)
@pytest.mark.parametrize("sde", SDES.values(), ids=str)
def test_gaussian_data_are_exact_whatever_the_weights(sde, eta):
    """Weights are of q, which is 0 for data that are `around`: so the law of the result is exact, to rounding, for any
    weights, any eta and any grid. A noise that does not suit the time u would be seen in the variance.
    """
    mean, std = torch.tensor([1.0, -2.0], dtype=F64), 0.3
    law, around = Gaussian(mean, std**2), Reference(mean, std)
    p, ts = sde.reverse(law.diffuse(sde), eta), grid.karras(sde, 5)
    step = Tuned(Multistep(2, around=around, analytic=True), sde, ts, weights(5), eta)
    found, exact = gaussian_law_of(p, ts, step, prior=at(law, sde, sde.T)), law.marginal(sde, sde.t_min)
    close(found.mean, exact.means[0], atol=1e-10)
    close(found.covariance, exact.covariances[0], atol=1e-10)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_pilots_are_renoised_on_the_flow(eta):
    """Pilots are where `Renoised` takes them that solves the flow by another method, with the same noise."""
    p, sde = process("modes", VP(), eta), VP()
    ts, x = grid.reference(sde, 4, around=Reference(0.0, 0.7)), starts(p, (2,), 16)
    chain = Restarts(p, ts, x, 3, Reference(0.0, 0.7), 800)
    solved = [x]
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        solved.append(Renoised(Solved(1e-11))(p, solved[-1], t, s, chain.noise))
    for a, b in zip(chain.states, solved, strict=True):
        close(a, b, atol=1e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_pilots_have_the_law_of_the_data(eta):
    """Though in six intervals: the mean, the second moment and the shares of the modes within 4 standard errors of
    those of the law at the end, where noise of another size or place would move the second moment.
    """
    sde, law = VP(), LAWS["modes"]
    p, around = process("modes", sde, eta), Reference.fit(data(law))
    end = law.marginal(sde, sde.t_min)
    x = Restarts(p, grid.reference(sde, 6, around=around), starts(p, (2,), 4000), 5, around, 60).states[-1]
    exact = end.sample(200_000, torch.Generator().manual_seed(1))
    for f in (lambda x: x[:, 0], lambda x: x.square().sum(1), lambda x: -end.log_prob(x)):
        a, b = f(x), f(exact)
        assert abs(float(a.mean() - b.mean())) < 4 * math.sqrt(float(a.var()) / len(a) + float(b.var()) / len(b))
    share = torch.bincount(torch.cdist(x, end.means).argmin(1), minlength=8) / len(x)
    assert float((share - 1 / 8).abs().max()) < 4 * math.sqrt(7 / 64 / len(x))


def test_where_there_is_no_time_before():
    """VE has noise at t = 0 already: u is then t = 0, and the noise that leads back is what there is between."""
    sde = VE(sigma_min=0.05, sigma_max=5.0)
    law = Gaussian(torch.zeros(2, dtype=F64), 0.09)
    p, ts = sde.reverse(law.diffuse(sde), 1.0), torch.tensor([1.0, 0.5, 0.1, 0.01, 0.0], dtype=F64)
    step = bare(p, Multistep(1, around=Reference(0.0, 0.3)), ts)
    found = gaussian_law_of(p, ts, step, prior=at(law, sde, 1.0))
    close(found.covariance, law.marginal(sde, 0.0).covariances[0], atol=1e-12)
    plan = step.plan(p, ts[:-1], ts[1:])
    assert plan[-1].std == 0 < plan[-2].std
    close(torch.tensor(plan[-2].std), (sde.var(ts[-2]) - sde.var(ts[-1])).sqrt().float(), rtol=1e-6)


# the fit


@pytest.fixture(scope="module")
def found():
    """One that was fitted, and its process."""
    p = process("modes", VP())
    return p, renew(p, "modes", 10, Pilots(64))


def test_less_error_than_what_needs_no_fit(found):
    """On fresh starts and fresh noise, of 1,000 samples each: typical errors are below two thirds of the least of the
    methods that need no fit (measured 0.41 to 0.51 of it, at eta = 1 and 1/2), with as many calls as asked for.
    """
    half = process("modes", VP(), 0.5)
    for p, f in (found, (half, renew(half, "modes", 10, Pilots(64)))):
        sets = module.OnGrids(p, [starts(p, (2,), 1000, 99)], 40, Reference.fit(data(LAWS["modes"])), 120)
        counted = Counted(p.score)
        ours = module.typical(
            module.off_of(replace(p, score=counted), module.Candidate("", f.step, f.ts), sets(0, f.ts).ends)
        )
        assert counted.nfe == f.calls == 10 and f.tuned
        others = [
            module.typical(module.off_of(p, one, sets(0, one.ts).ends))
            for one in module.bare_methods(p, 10, Reference.fit(data(LAWS["modes"])))
        ]
        assert ours < 2 / 3 * min(others)


def test_what_it_says_of_itself(found):
    """The error that decided, and that on fresh noise, are those on the pilots of the second and the third set, solved
    by another method with the noise that they were drawn.
    """
    p, f = found
    g = torch.Generator().manual_seed(0)
    sets = [p.sde.prior((64, 2), iid(g), F64) for _ in range(3)]
    for which, said in ((1, f.validation), (2, f.fresh)):
        given = module.Given(f.ts, sets[which], torch.Generator().manual_seed(which + 1))
        x = sets[which]
        for t, s in zip(f.ts[:-1], f.ts[1:], strict=True):
            x = Renoised(Solved(1e-9))(p, x, t, s, given)
        want = Error.of(sample(p, sets[which], f.ts, f.step, noise=given), x)
        assert (said.rms, said.median, said.p90) == pytest.approx((want.rms, want.median, want.p90), rel=5e-2, abs=1e-3)


def test_improved_together_by_the_noise_of_the_pilots():
    """Derivatives are those of the last states, and no weights come out that are worse on the second set."""
    p, sde = process("mixture", VP(), 0.7), VP()
    around = Reference.fit(data(LAWS["mixture"]))
    ts = grid.reference(sde, 5, around=around)
    sets = module.OnGrids(p, [starts(p, (16,), 32, k) for k in range(2)], 0, around, 60)
    first, second = (sets(k, ts).ends for k in range(2))
    solver = replace(bare(p, Multistep(1, around=around), ts), extra=weights(5, size=0.2))
    family = Family(p, solver)
    runs = Runs(family, first)
    theta = torch.zeros(family.size, dtype=F64)
    J = runs.derivative(theta)
    assert family.size == len(family.weights) == 1 + 2 + 3 + 4 + 4
    g = torch.Generator().manual_seed(3)
    way = torch.randn(family.size, generator=g, dtype=F64)
    ends = [sample(p, first.x_T, ts, family.at(h * way), noise=first.noise) for h in (1e-4, -1e-4)]
    close(J @ way, (ends[0] - ends[1]) / 2e-4, rtol=1e-2, atol=1e-2)
    better = improve(p, solver, first, second, lambda: 10**6)
    off = [
        module.typical(distance(sample(p, second.x_T, ts, one, noise=second.noise), second.end))
        for one in (solver, better)
    ]
    assert off[1] < 0.9 * off[0] and better.ts.equal(ts) and better.eta == 0.7


def test_the_seed_says_all():
    """One seed gives one result, to the bit, and no other generator is touched."""
    p = process("modes", EDM(), 0.5)
    before = torch.get_rng_state()
    one, same = (renew(p, "modes", 4) for _ in range(2))
    assert one.ts.equal(same.ts) and one.step.extra.equal(same.step.extra) and torch.get_rng_state().equal(before)


def test_without_data():
    """The Gaussian of the data is then that of its own samples."""
    p = process("modes", VP(), 1.0)
    silent = replace(p, score=lambda x, t: p.score(x, t))
    made = renew(silent, "modes", 4, around=False)
    assert made.step.around.std == pytest.approx(Reference.fit(data(LAWS["modes"])).std, rel=0.2)


def test_the_file(found, tmp_path):
    """It keeps eta, and is refused with another."""
    p, f = found
    f.save(tmp_path / "solver.json")
    again = Tuning.load(tmp_path / "solver.json")
    x = starts(p, (2,), 4)
    close(sample(p, x, again.ts, again.step, noise=noise()), sample(p, x, f.ts, f.step, noise=noise()), 0, 0)
    with pytest.raises(ValueError, match="eta must be 1, which the solver was tuned for, got 0"):
        sample(replace(p, eta=0.0), x, again.ts, again.step)


def test_the_file_of_noise_in_the_middle(tmp_path):
    """It keeps the levels between which there is noise."""
    p = process("mixture", VP(), Between(0.8, low=0.1, high=2.0))
    made = renew(p, "mixture", 4, Pilots(8, fine=20, evaluations=0))
    made.save(tmp_path / "solver.json")
    again = Tuning.load(tmp_path / "solver.json")
    x = starts(p, LAWS["mixture"].shape, 4)
    assert again.eta == p.eta
    close(sample(p, x, again.ts, again.step, noise=noise()), sample(p, x, made.ts, made.step, noise=noise()), 0, 0)


@pytest.mark.parametrize(("eta", "said"), [(1.5, "got 1.5"), (-0.1, "got -0.1"), ("x", "got 'x'")])
def test_bad_eta(eta, said):
    """It is a number from 0 to 1, or `Between`."""
    with pytest.raises(ValueError, match=f"^eta must be a .*{said}"):
        Tuned(Multistep(1), VP(), grid.log_snr(VP(), 3), torch.zeros(3, 5, dtype=F64), eta)
