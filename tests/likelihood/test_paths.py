"""The likelihood of a sampler by paths, against the law of its kernels, exact on a line and for Gaussian data."""

import math

import pytest
import torch

from scoresde import (
    VE,
    VP,
    Ancestral,
    Chain,
    Counted,
    DPMSolverPP,
    EulerMaruyama,
    Langevin,
    Quantized,
    RectifiedFlow,
    ReverseDiffusion,
    SASolver,
    Step,
    Tabulated,
    elbo,
    grid,
    iid,
    per_sample,
)
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.lab import gaussian_law_of, law_of
from scoresde.likelihood import PathBound, sampler_log_prob
from scoresde.noise import seeds
from scoresde.process.chain import linear_betas
from scoresde.steps import Churn, LearnedVariance

F64 = torch.float64
MODES = GaussianMixture(
    torch.tensor([0.7, 0.3]), torch.tensor([[-1.0], [1.0]], dtype=F64), torch.tensor([0.04, 0.06], dtype=F64)
)
SHAPE, PLANE = (1, 2), Gaussian(torch.tensor([[0.4, -0.3]], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))


def noise(seed=0):
    return iid(torch.Generator().manual_seed(seed))


def by_paths(p, x, ts, step, K, seed=0):
    """K paths for each of the samples, side by side, which for a law in closed form is faster than one by one."""
    found = sampler_log_prob(p, x.repeat(K, *(1,) * (x.ndim - 1)), ts, step, noise=noise(seed))
    assert found.nfe == len(ts) - 1
    return PathBound(found.log_w.view(K, len(x)), found.nfe, found.d)


@pytest.mark.parametrize("step", [Ancestral(), Ancestral(1.0), EulerMaruyama(), ReverseDiffusion()], ids=repr)
@pytest.mark.parametrize("sde", [VP(), VE(0.05, 4.0), RectifiedFlow(T=0.99)], ids=lambda sde: type(sde).__name__)
def test_it_is_the_law_of_the_sampler_on_a_line(sde, step):
    """Where many of the paths count, log_p is that of `law_of` within its own error, and its bias is far below that."""
    score, ts = MODES.diffuse(sde), grid.log_snr(sde, 80)
    p, x = sde.reverse(score), score.sample(50, sde.t_min, torch.Generator().manual_seed(1))
    found = by_paths(p, x, ts, step, 1000)
    off = found.log_p - law_of(p, ts, step).log_prob(x[:, 0])
    told = found.effective > 100
    assert told.float().mean() > 0.3
    z = (off / found.paths_error)[told]
    assert z.abs().max() < 4.5 and z.abs().mean() < 1.3
    assert (found.elbo <= found.log_p + 1e-12).all()


@pytest.mark.parametrize("step, n", [(Ancestral(), 30), (DPMSolverPP(2), 100), (SASolver(), 200)], ids=str)
def test_it_is_the_law_of_the_sampler_for_gaussian_data(step, n):
    """Methods with memory too, which see the path in their own order: their noise is narrower than that of a bridge, so
    that fewer paths count.
    """
    sde = VP()
    p, ts = sde.reverse(PLANE.diffuse(sde)), grid.log_snr(sde, n)
    law = gaussian_law_of(p, ts, step)
    x = PLANE.marginal(sde, sde.t_min).sample(30, torch.Generator().manual_seed(2))
    found = by_paths(p, x, ts, step, 1500, seed=1)
    off = found.log_p - Gaussian(law.mean, law.covariance).log_prob(x)
    told = found.effective > 50
    assert told.float().mean() > 0.6
    assert (off / found.paths_error)[told].abs().max() < 4.5
    assert off[told].mean().abs() < 0.06


def test_the_weights_have_the_density_as_their_mean():
    """E w = p(x), which a bound without one of its factors, or with the forward transitions of other times, misses."""
    sde = VP()
    p, ts = sde.reverse(MODES.diffuse(sde)), grid.log_snr(sde, 12)
    x = torch.tensor([[-1.0], [1.1]], dtype=F64).repeat_interleave(2000, 0)
    w = sampler_log_prob(p, x, ts, Ancestral(1.0), paths=5, noise=noise(2)).log_w.exp().view(5, 2, 2000)
    want = law_of(p, ts, Ancestral(1.0)).log_prob(torch.tensor([-1.0, 1.1], dtype=F64)).exp()
    mean, error = w.mean((0, 2)), w.transpose(0, 1).flatten(1).std(1) / 100
    assert ((mean - want).abs() < 4 * error).all() and (error < 0.05 * want).all()


@pytest.mark.filterwarnings("ignore:the chain ends")
@pytest.mark.parametrize("v", [0.0, 1.0])
def test_one_path_is_the_bound_of_ddpm(v):
    """The mean of log w over paths is `elbo`, whose terms are divergences in closed form; more paths are above it."""
    sde, levels = Tabulated(linear_betas(20, 1e-2, 0.5)), Quantized(16, -1, 1)
    chain = Chain(sde, sde.grid())
    score = Gaussian(torch.tensor([0.1, -0.2], dtype=F64), 0.2).diffuse(sde)
    x = torch.linspace(-1, 1, 16, dtype=F64)[torch.randint(16, (16000, 2), generator=torch.Generator().manual_seed(3))]
    bound = elbo(chain, score, x, levels, kernel=Ancestral(v), noise=noise(3))
    found = sampler_log_prob(sde.reverse(score), x, chain.t.flip(0), Ancestral(v), levels, paths=20, noise=noise(4))
    off = bound.nats + found.elbo
    assert off.mean().abs() < 4 * off.std() / math.sqrt(len(off))
    assert off.std() / math.sqrt(len(off)) < 0.04
    assert (found.log_p - found.elbo).mean() > 0.05
    assert found.nfe == 20 * len(chain.t)  # one for each kernel, and one for the decoder


def test_a_learned_variance_is_the_same_kernel():
    sde = VP()
    score, ts = PLANE.diffuse(sde), grid.log_snr(sde, 8)
    learned = LearnedVariance(lambda x, t: (score(x, t), torch.full_like(x, 0.3)))
    x = PLANE.sample(5, torch.Generator().manual_seed(5))
    found = [
        sampler_log_prob(sde.reverse(score), x, ts, step, paths=3, noise=noise(6)).log_w
        for step in (learned, Ancestral(0.3))
    ]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_a_sample_does_not_depend_on_its_batch():
    sde = VP()
    p, ts = sde.reverse(PLANE.diffuse(sde)), grid.log_snr(sde, 8)
    x = PLANE.sample(6, torch.Generator().manual_seed(7))
    whole, part = (
        sampler_log_prob(p, x[rows], ts, Ancestral(), paths=2, noise=per_sample(seeds(1, 6)[rows]))
        for rows in (slice(0, 6), slice(3, 5))
    )
    torch.testing.assert_close(whole.log_w[:, 3:5], part.log_w, rtol=1e-12, atol=1e-12)


def test_states_of_float32_keep_five_digits():
    """The path is carried in float64, whatever the network's type: noise of 0.03 beside x = 1 would lose digits."""
    sde, asked = VP(), []

    def score(x, t):
        asked.append(x.dtype)
        return PLANE.diffuse(sde)(x, t)

    ts, x = grid.log_snr(sde, 100), PLANE.sample(4, torch.Generator().manual_seed(8))
    fine, rough = (
        sampler_log_prob(sde.reverse(score), y, ts, Ancestral(), noise=lambda y, t, s: 0.3 * torch.ones_like(y))
        for y in (x, x.float())
    )
    assert set(asked) == {F64, torch.float32}
    torch.testing.assert_close(fine.log_p, rough.log_p.double(), rtol=1e-5, atol=1e-5)


def test_conditions_and_prior():
    """A condition reaches the score, and the prior of the first time is the one that is given."""
    sde = VP()
    both = [Gaussian(torch.full(SHAPE, m, dtype=F64), 0.1).diffuse(sde) for m in (-1.0, 1.0)]

    def score(x, t, label):
        return torch.where(label.view(-1, 1, 1) > 0, both[1](x, t), both[0](x, t))

    x, ts = torch.full((3, *SHAPE), 0.9, dtype=F64), grid.log_snr(sde, 15)
    first, second = (
        sampler_log_prob(sde.reverse(score), x, ts, Ancestral(1.0), paths=20, noise=noise(), label=label).log_p
        for label in (1, 0)
    )
    assert (first > second + 10).all()
    told = sampler_log_prob(sde.reverse(score), x, ts, Ancestral(1.0), noise=noise(), label=torch.tensor([1, 0, 1]))
    assert "given label" in str(told)
    start = both[1].law.marginal(sde, 0.5)
    part = torch.tensor([0.5, 0.2], dtype=F64)
    found = sampler_log_prob(sde.reverse(both[1]), x, part, Ancestral(1.0), paths=1000, prior=start, noise=noise())
    want = gaussian_law_of(
        sde.reverse(both[1]),
        part,
        Ancestral(1.0),
        prior=Gaussian(start.means[0].view(SHAPE), float(start.diagonal[0, 0])),
    )
    off = found.log_p - Gaussian(want.mean, want.covariance).log_prob(x)
    assert (off.abs() < 4.5 * found.paths_error).all()


P = VP().reverse(PLANE.diffuse(VP()))
TS = grid.log_snr(VP(), 4)
X = torch.zeros(2, *SHAPE, dtype=F64)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"step": Langevin()}, "step must be a predictor"),
        ({"step": "ddpm"}, "step must be a predictor"),
        ({"p": VP().reverse(P.score, 0.0)}, "Ancestral.* draws no noise for eta = 0"),
        ({"ts": torch.tensor([1.0, 0.5, 0.0])}, "Ancestral.* draws no noise for the hop to sigma = 0 at t = 0"),
        ({"step": Churn(Ancestral(), churn=1.0)}, "draws 2 times"),
        ({"paths": 0}, "paths must be a whole number >= 1"),
        ({"ts": TS[1:]}, "ts must begin at T = 1"),
        ({"prior": MODES}, r"prior must be a law of shape \(1, 2\)"),
        ({"prior": 3}, r"prior must be a law of shape \(1, 2\), got 3"),
        ({"x": torch.zeros(2, 1, 2, dtype=torch.long)}, "x must be"),
        ({"label": 1}, "label must not be given to a score that does not take it"),
        ({"noise": 3}, "noise must be a callable"),
    ],
    ids=lambda v: v if isinstance(v, str) else next(iter(v)),
)
def test_bad_input_is_refused_by_name(change, says):
    given = {"p": P, "x": X, "ts": TS, "step": Ancestral()} | change
    with pytest.raises(ValueError, match=says):
        sampler_log_prob(**given)


@pytest.mark.parametrize("change", [{"eta": 0.0}, {"ts": grid.uniform(VP(), 50, end=0.0)}], ids=str)
def test_a_law_without_a_density_is_refused_before_any_work(change):
    score = Counted(PLANE.diffuse(VP()))
    with pytest.raises(ValueError, match="draws no noise"):
        sampler_log_prob(VP().reverse(score, change.get("eta", 1.0)), X, change.get("ts", TS), DPMSolverPP(2))
    assert score.nfe == 0


def test_a_step_that_draws_before_it_asks():
    """The score is asked for B rows at a time, as many as a condition of rows has."""

    class Moved(Step):
        def __call__(self, p, x, t, s, noise):
            y = x + 0.1 * noise(x, t, s)
            return y + 0 * p.ask(y, t)

    seen = []

    def score(x, t, label):
        seen.append(len(x))
        return PLANE.diffuse(VP())(x, t) + 0 * label.view(-1, 1, 1)

    found = sampler_log_prob(VP().reverse(score), X, TS, Moved(), label=torch.tensor([0, 1]))
    assert found.log_w.isfinite().all() and set(seen) == {2}


def test_a_kernel_that_is_not_gaussian_is_refused():
    """Whose noise decides where the score is asked again."""

    class Twice(Step):
        def __call__(self, p, x, t, s, noise):
            y = x + noise(x, t, s)
            return y + p.ask(y, t)

    with pytest.raises(ValueError, match="no Gaussian kernel"):
        sampler_log_prob(VP().reverse(MODES.diffuse(VP())), MODES.sample(2), TS, Twice())


def test_the_line_says_what_it_is():
    found = sampler_log_prob(P, X, TS, Ancestral(), paths=3, noise=noise())
    assert isinstance(found, PathBound)
    assert "nats/dim over 2 samples (upper bound of -log p under the sampler, 3 paths a sample" in str(found)
    assert str(found).endswith("12 network calls")
    torch.testing.assert_close(found.values, -found.log_p / 2)
    assert math.isnan(sampler_log_prob(P, X, TS, Ancestral(), noise=noise()).paths_error[0])
