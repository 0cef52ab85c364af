"""The Gaussian of the data: fitted, seen as a whole, carried to T, and taken out of what a network has to add."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import (
    EDM,
    VE,
    VP,
    Cosine,
    Counted,
    DPMSolverPP,
    RectifiedFlow,
    Reference,
    SubVP,
    draw,
    exact,
    grid,
    sample,
)
from scoresde.reference import known, misfit

F64 = torch.float64
SDES = [VP(0.1, 6.0), SubVP(), VE(0.05, 20.0), Cosine(), RectifiedFlow(), EDM(T=30.0)]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
SHAPES = [(3,), (1, 2, 2), (2, 1, 3)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def normal(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def data(n, *shape):
    """Rows whose dimensions have means and deviations of their own."""
    return normal(n, *shape) * (0.2 + normal(*shape, seed=4).abs()) + 3 * normal(*shape, seed=5)


# fit


@every_shape
def test_fit_is_the_mean_and_the_deviation_from_it(shape):
    """The mean of the rows, of their shape, and the root mean square deviation from it over rows and dimensions, both
    in float64 whatever the dtype of the data.
    """
    for x in (data(50, *shape), data(50, *shape).float() + 1e4):
        around = Reference.fit(x)
        assert around.mean.dtype == F64 and around.mean.shape == shape and around.size == ()
        torch.testing.assert_close(around.mean, x.double().sum(0) / 50, rtol=1e-12, atol=0)
        variance = (x.double() - around.mean).square().sum() / x.numel()
        assert around.std == pytest.approx(math.sqrt(variance), rel=1e-10)


@every_shape
def test_fit_has_the_largest_likelihood(shape):
    """Of all N(m, c^2 I) the fitted one makes the data most likely: any other mean or deviation makes them less."""
    x = data(50, *shape)
    around = Reference.fit(x)

    def fits(mean, std):
        return float(exact.Gaussian(mean, std**2).log_prob(x).sum())

    best = fits(around.mean, around.std)
    for k in range(5):
        assert fits(around.mean + 1e-2 * normal(*shape, seed=k), around.std) < best
    for factor in (0.98, 1.02):
        assert fits(around.mean, factor * around.std) < best


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(1, 3), "x_0 must hold at least 2 samples, got 1"),
        (torch.zeros(0, 3), "x_0 must be a non-empty floating-point tensor"),
        (torch.zeros(4), "x_0 must be a non-empty floating-point tensor"),
        (torch.zeros(4, 3, dtype=torch.long), "x_0 must be a non-empty floating-point tensor"),
        (torch.tensor([[0.0], [math.nan]]), "x_0 must be finite, but sample 1 is not"),
        (torch.zeros(4, 3), "data must vary, got 4 samples that are all the same"),
        (torch.tensor([[1.0, -2.0], [1.0, -2.0]]), "data must vary, got 2 samples that are all the same"),
        (torch.full((100, 2), 0.3, dtype=F64), "data must vary, got 100 samples that are all the same"),
    ],
)
def test_data_that_have_no_gaussian(x, said):
    """One sample has no deviation, and samples that are all the same have none either, whatever number they are."""
    with pytest.raises(ValueError, match=f"^{said}"):
        Reference.fit(x)


# overall


@given(st.integers(2, 9), st.sampled_from(SHAPES), st.integers(0, 99))
def test_overall_keeps_the_total_variance(n, shape, seed):
    """The variance of all numbers of all rows is the mean of the variances within the dimensions and the variance of
    the means between them: `overall` of the fitted Gaussian is the mean and deviation of all numbers alike.
    """
    x = normal(n, *shape, seed=seed) + normal(*shape, seed=seed + 1)
    overall = Reference.fit(x).overall
    assert isinstance(overall.mean, float) and overall.mean == pytest.approx(float(x.mean()), rel=1e-10, abs=1e-12)
    assert overall.std == pytest.approx(float(x.std(correction=0)), rel=1e-10)


def test_overall_of_one_mean():
    """A Gaussian whose dimensions are all alike is its own whole, and `size` stays."""
    size = ((-1.0, 0.5), (2.0, 0.3))
    for around in (Reference(0.3, 0.7, size), Reference(torch.full((2, 3), 0.25, dtype=F64), 0.7, size)):
        again = around.overall.overall
        assert again == around.overall and again.size == size
        assert (again.mean, again.std) == (pytest.approx(float(torch.as_tensor(around.mean).mean())), 0.7)
    for std in (0.0, math.inf):
        assert Reference(1.0, std).overall == Reference(1.0, std)


# fitting


@pytest.mark.parametrize("mean", [0.3, torch.tensor(0.3), torch.zeros(2, 3)], ids=["number", "0-dim", "array"])
def test_fitting_is_the_value(mean):
    """A Gaussian of samples of the shape is returned as it is; a number stands for all dimensions."""
    around = Reference(mean, 0.5)
    assert around.checked((2, 3)) is around and around.checked(torch.Size((2, 3))) is around


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3), (3,), (1,)], ids=str)
def test_a_mean_of_another_shape(shape):
    """Nothing is broadcast: the mean has the samples' shape, or is a number."""
    with pytest.raises(ValueError, match=r"^around must have a number or an array of shape \(2, 3\) as mean, got \("):
        Reference(torch.zeros(shape), 1.0).checked((2, 3))


@pytest.mark.parametrize("std", [0.0, math.inf])
def test_a_deviation_that_is_none(std):
    """Data at a point and noise without data are limits of a Gaussian and not one."""
    said = "^around must have a standard deviation above 0 and below infinity, got"
    with pytest.raises(ValueError, match=said):
        Reference(0.0, std).checked((2,))
    with pytest.raises(ValueError, match=said):
        Reference(0.0, std).prior(VP(), (2,))


# prior


@every_sde
@every_shape
def test_prior_is_the_gaussian_at_T(sde, shape):
    """N(alpha_T m, (alpha_T^2 c^2 + sigma_T^2) I): its density in closed form, from a mean that is an array or a
    number, and its samples have these moments.
    """
    d, alpha, var = math.prod(shape), float(sde.alpha(sde.T)), float(sde.var(torch.tensor(sde.T, dtype=F64)))
    for mean in (normal(*shape, seed=6), 0.4):
        prior = Reference(mean, 0.6).prior(sde, shape)
        m, v = alpha * torch.as_tensor(mean, dtype=F64).expand(shape), alpha**2 * 0.36 + var
        x = m + math.sqrt(v) * normal(5, *shape)
        want = -((x - m) ** 2 / v + math.log(2 * math.pi * v)).flatten(1).sum(1) / 2
        torch.testing.assert_close(prior.log_prob(x), want, rtol=1e-10, atol=1e-10)
        assert prior.kl_from(m.flatten(), v * torch.eye(d, dtype=F64)) == pytest.approx(0, abs=1e-10)
        drawn = prior.sample(4000, torch.Generator().manual_seed(0))
        assert drawn.shape == (4000, *shape)
        z = (drawn - m) / math.sqrt(v)
        assert (z.mean(0).abs() < 4.5 / 4000**0.5).all()
        assert abs(float(z.square().mean()) - 1) < 4.5 * (2 / z.numel()) ** 0.5


@every_sde
def test_prior_of_isotropic_data_is_their_law(sde):
    """For data N(m, c^2 I) the prior is p_T itself: no divergence, and equal densities."""
    m = normal(4, seed=7)
    law = exact.Gaussian(m, 0.49)
    prior, p_T = Reference(m, 0.7).prior(sde, (4,)), law.marginal(sde, sde.T)
    C = float(sde.alpha(sde.T)) ** 2 * 0.49 + float(sde.var(torch.tensor(sde.T, dtype=F64)))
    assert prior.kl_from(p_T.means[0], C * torch.eye(4, dtype=F64)) == pytest.approx(0, abs=1e-10)
    x = p_T.sample(5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(prior.log_prob(x), p_T.log_prob(x), rtol=1e-12, atol=1e-12)


@every_sde
def test_prior_is_the_nearest_of_its_form(sde):
    """For data of any covariance C with c^2 the mean of its diagonal, KL(p_T || prior) is least: other means and other
    deviations are further off.
    """
    A, m = 0.5 * normal(4, 4, seed=8), normal(4, seed=7)
    C = A @ A.T + 0.1 * torch.eye(4, dtype=F64)
    alpha, var = float(sde.alpha(sde.T)), float(sde.var(torch.tensor(sde.T, dtype=F64)))
    c = float(C.trace() / 4) ** 0.5

    def off(mean, std):
        prior = Reference(mean, std).prior(sde, (4,))
        return prior.kl_from(alpha * m, alpha**2 * C + var * torch.eye(4, dtype=F64))

    best = off(m, c)
    assert best > 0
    far = 0.1 / alpha  # so that what is left of it at T is seen
    for k in range(5):
        assert off(m + far * normal(4, seed=k), c) > best
    for factor in (1 - min(0.5, 0.1 / alpha**2), 1 + 0.1 / alpha**2):
        assert off(m, factor * c) > best


def test_prior_of_another_shape():
    """A mean of another shape than the samples' is refused."""
    with pytest.raises(ValueError, match="^around must have a number or an array of shape"):
        Reference(torch.zeros(3), 1.0).prior(VP(), (1, 3))


# equality


def test_equal_gaussians_are_equal():
    """By their numbers, whatever holds them; equal values have equal hashes, and serve as keys."""
    mean, size = torch.tensor([0.5, -0.25]), ((-1.0, 0.5), (2.0, 0.3))
    pairs = [
        (Reference(), Reference(0.0, 0.0, ())),
        (Reference(0.5, 1.0), Reference(torch.tensor(0.5), 1.0)),
        (Reference(mean, 1.0), Reference(mean.clone(), 1.0)),
        (Reference(mean, 1.0, size), Reference(mean.double(), 1.0, tuple(list(size)))),
        (Reference(std=math.inf), Reference(std=math.inf)),
    ]
    for a, b in pairs:
        assert a == b and not a != b and hash(a) == hash(b) and {a: 1}[b] == 1
    different = [
        Reference(),
        Reference(std=1.0),
        Reference(0.5, 1.0),
        Reference(0.5, 1.0, size),
        Reference(0.5, 1.0, size[:1]),
        Reference(mean, 1.0),
        Reference(mean[None], 1.0),
        Reference(mean + 1e-6, 1.0),
        Reference(torch.tensor([0.5]), 1.0),
        Reference(torch.tensor([0.5, 0.5]), 1.0),
        Reference(std=math.inf),
        None,
        0.0,
        "N(0, 1)",
    ]
    for i, a in enumerate(different):
        assert all(a != b for b in different[:i])
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Reference(std=-1e-9), "std must be a finite number >= 0"),
        (lambda: Reference(std=-math.inf), "std must be a finite number >= 0"),
        (lambda: Reference(std=math.nan), "std must be a finite number >= 0"),
        (lambda: Reference(std="1"), "std must be a finite number >= 0"),
        (lambda: Reference(std=None), "std must be a finite number >= 0"),
        (lambda: Reference(math.nan), "mean must be a finite number"),
        (lambda: Reference(math.inf), "mean must be a finite number"),
        (lambda: Reference(None), "mean must be a finite number"),
        (lambda: Reference([0.0, 1.0]), "mean must be a finite number"),
        (lambda: Reference(torch.tensor([0, 1])), "mean must be finite floating-point numbers"),
        (lambda: Reference(torch.tensor([0.0, math.nan])), "mean must be finite floating-point numbers"),
        (lambda: Reference(torch.zeros(0)), "mean must"),
        (lambda: Reference(size=((0.0, 1.0), (0.0, 2.0))), "size must be pairs"),
        (lambda: Reference(size=((1.0, 1.0), (0.0, 2.0))), "size must be pairs"),
        (lambda: Reference(size=((0.0, 0.0),)), "size must be pairs"),
        (lambda: Reference(size=((0.0, -1.0),)), "size must be pairs"),
        (lambda: Reference(size=((math.nan, 1.0),)), "size must be pairs"),
        (lambda: Reference(size=((0.0, math.inf),)), "size must be pairs"),
        (lambda: Reference(size=((0.0, 1.0, 2.0),)), "size must be pairs"),
        (lambda: Reference(size=(0.0, 1.0)), "size must be pairs"),
    ],
)
def test_bad_values(make, said):
    """What is no Gaussian, or no table, is named in one line."""
    with pytest.raises(ValueError, match=f"^{said}") as error:
        make()
    assert "\n" not in str(error.value)


# what is left over


@every_sde
@pytest.mark.parametrize("size", [(), ((-2.0, 0.4), (0.5, 1.5), (3.0, 0.1))], ids=["plain", "sized"])
def test_what_remains_of_a_gaussian_is_nothing(sde, size):
    """q = A x + B score + C m vanishes on the score of N(m, c^2 I), at every time and state."""
    m = normal(3, seed=9)
    around, law = Reference(m, 0.8, size), exact.Gaussian(m, 0.64).diffuse(sde)
    for t in (0.02 * sde.T, 0.4 * sde.T, sde.T):
        t = torch.tensor(t, dtype=F64)
        x = law.sample(4, t, torch.Generator().manual_seed(2))
        A, B, C = around.q(sde, t)
        scale = float((A * x).abs().max() + (B * law(x, t)).abs().max() + (C * m).abs().max())
        assert float((A * x + B * law(x, t) + C * m).abs().max()) < 1e-12 * scale


@every_sde
@pytest.mark.parametrize("std", [0.0, 0.8, math.inf])
def test_what_remains_is_the_rest_of_the_denoiser(sde, std):
    """q = R S/sigma~, divided by its size, with R = E[x_0 | x_t] - m - c^2/S^2 (x~ - m): for c = 0 it is the error of
    the point m, for c -> infinity (S in units of c) the noise, -eps.
    """
    law, m = exact.GaussianMixture(torch.tensor([0.3, 0.7]), normal(2, 3), torch.tensor([0.3, 0.1])), normal(3, seed=9)
    size = ((-9.0, 0.7), (9.0, 0.7))
    p = sde.reverse(law.diffuse(sde))
    for share in (0.02, 0.4, 1.0):
        t = torch.tensor(share * sde.T, dtype=F64)
        x = law.diffuse(sde).sample(4, t, torch.Generator().manual_seed(2))
        A, B, C = Reference(m, std, size).q(sde, t)
        tilde, r = x / sde.alpha(t), sde.sigma(t) / sde.alpha(t)
        if std == math.inf:
            want = -p.eps(x, t)
        else:
            S2 = std**2 + r**2
            want = (p.denoise(x, t) - m - std**2 / S2 * (tilde - m)) * S2.sqrt() / r
        torch.testing.assert_close(A * x + B * p.score(x, t) + C * m, want / 0.7, rtol=1e-8, atol=1e-8)


# the data and the process

USUAL = [VP(), SubVP(), VE(), Cosine(), RectifiedFlow(), EDM()]
LAWS = {
    "gaussian": exact.Gaussian(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([[2.0, 0.3, 0], [0.3, 1, 0], [0, 0, 0.1]])),
    "mixture": exact.GaussianMixture(
        torch.tensor([0.2, 0.8]), normal(2, 2, 2), torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]])
    ),
    "data": exact.Empirical(data(40, 2, 3)),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_a_score_in_closed_form_says_the_moments_of_its_data(law):
    """Mean and deviations are those of many samples within 5 standard errors, and their root mean square is that of the
    Gaussian around; also of a score that is counted.
    """
    score, x = Counted(law.diffuse(VP())), law.sample(100_000, torch.Generator().manual_seed(0))
    mean, std = score.moments
    assert ((x.mean(0) - mean).abs() < 5 * std / len(x) ** 0.5).all()
    assert ((x.std(0) / std - 1).abs() < 0.02).all()
    around = known(None, score, law.shape)
    assert torch.equal(around.mean, mean) and around.std == pytest.approx(float(std.square().mean().sqrt()))


@pytest.mark.parametrize("sde", USUAL, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("std", [0.25, 1.0, 2.0])
def test_usual_data_fit_every_process(sde, std):
    """Data of some mean and about unit deviation, some dimensions of which do not vary or little, are no misfit."""
    stds = std * torch.tensor([1.0, 0.5, 0.3, 0.2, 0.7, 0.0, 0.002, 1.5])
    assert misfit(sde, 0.5, stds) == misfit(sde, torch.full((8,), -0.5), std) == []


@pytest.mark.parametrize("sde", USUAL, ids=lambda sde: type(sde).__name__)
def test_the_prior_of_too_large_data(sde):
    """It is said from where KL(p_T || prior), in closed form, passes 0.03 nats a dimension, for deviations and means;
    not where sampling begins below T.
    """
    alpha, sigma = float(sde.alpha(sde.T)), float(sde.sigma(sde.T))
    prior, one = exact.Gaussian(torch.zeros(1), sigma**2), torch.ones(1, dtype=F64)

    def kl(m, c):
        return prior.kl_from(alpha * m * one, ((alpha * c) ** 2 + sigma**2) * one[:, None])

    for size in torch.logspace(-1, 1, 9, dtype=F64).tolist():
        for m, c in ((0.0, size * sigma / alpha), (size * sigma / alpha, 0.5)):
            assert bool(misfit(sde, m, c)) == (kl(m, c) > 0.03)
            assert not misfit(sde, m, c, (0.9 * sde.T, sde.t_min))
    (what,) = misfit(sde, 0.0, 5 * sigma / alpha)
    assert repr(sde) in what and f"{5 * sigma / alpha:.3g}" in what and "Standardise" in what


@pytest.mark.parametrize("sde", USUAL, ids=lambda sde: type(sde).__name__)
def test_columns_that_no_noise_suits(sde):
    """Where the least noise is as large as a quarter of the deviations and another is far larger, the data are refused;
    where it is larger than all it is said; one that is just above it is sampled, and no end in the middle matters.
    """
    low = float((-sde.log_snr(sde.t_min)).exp())
    for wrong in ([0.9, 31.0], [0.5, 40.0, 50.0, 0.0, 60.0]):
        with pytest.raises(ValueError, match="^data must be of one scale, but deviations are .*divide each column"):
            misfit(sde, 0.0, low * torch.tensor(wrong))
    assert misfit(sde, 0.0, low * torch.tensor([1.1, 31.0])) == []
    assert misfit(sde, 0.0, torch.tensor([2 * low, 1.0]), (sde.T, sde.T / 2)) == []
    (what,) = misfit(sde, 0.0, low * torch.tensor([0.5, 0.9]))
    assert "are hidden by the least noise" in what


def test_sampling_says_what_does_not_fit():
    """`sample` and `draw` warn of a wrong prior and refuse columns of two scales before the score is asked; of data
    that fit, and of a score that says nothing, they say nothing.
    """
    vp, ts, x = VP(), grid.log_snr(VP(), 5), normal(3, 2)

    def run(law):
        q = vp.reverse(Counted(law.diffuse(vp)), 0.0)
        return [lambda: sample(q, x, ts, DPMSolverPP(2)), lambda: draw(q, (2,), ts, DPMSolverPP(2), seeds=[1])], q.score

    for go in run(exact.Gaussian(torch.zeros(2), 1e6))[0]:
        with pytest.warns(UserWarning, match="^data of mean 0 and deviation 1e"):
            go()
    ways, score = run(exact.Gaussian(torch.zeros(2), torch.tensor([1.0, 1e-4])))
    for go in ways:
        with pytest.raises(ValueError, match="^data must be of one scale"):
            go()
    assert score.nfe == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for go in run(exact.Gaussian(torch.zeros(2), 0.25))[0]:
            go()
        sample(vp.reverse(lambda x, t: -x / 1e6, 0.0), x, ts, DPMSolverPP(2))
