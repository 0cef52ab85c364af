"""Distances between samples and data, against closed forms and brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, stats
from scipy.optimize import linprog

from scoresde.data import Digits
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.lab.metrics import (
    Classifier,
    energy_distance,
    frechet,
    frechet_bias,
    nearest,
    sliced_wasserstein,
    weights_error,
)

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def orthogonal(d, seed=0):
    return torch.linalg.qr(randn(d, d, seed=seed))[0]


def features(mean, root, n=40, seed=0):
    """n points whose mean is exactly `mean` and whose covariance, with the divisor n - 1, is exactly root root^T."""
    white = torch.linalg.qr(randn(n, len(mean) + 1, seed=seed) + torch.eye(n, len(mean) + 1))[0]
    white = white - white.mean(0)
    white = torch.linalg.qr(white[:, : len(mean)])[0] * math.sqrt(n - 1)
    return mean + white @ root.T


def test_the_points_are_as_they_say():
    """What the tests below stand on: mean and covariance are exact."""
    root = randn(5, 5)
    x = features(randn(5), root, seed=3)
    torch.testing.assert_close(x.mean(0), randn(5), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cov(x.T), root @ root.T, rtol=0, atol=1e-11)


# Frechet distance


@given(st.integers(1, 6), st.integers(0, 2**16))
def test_frechet_of_commuting_covariances(d, seed):
    """|m_a - m_b|^2 + sum (sqrt(u) - sqrt(v))^2 for covariances Q diag(u) Q^T and Q diag(v) Q^T."""
    g = torch.Generator().manual_seed(seed)
    u, v = (torch.rand(2, d, generator=g, dtype=F64) * 3).unbind()
    m_a, m_b, q = randn(d, seed=seed), randn(d, seed=seed + 1), orthogonal(d, seed)
    a, b = features(m_a, q * u.sqrt(), 30, seed), features(m_b, q * v.sqrt(), 50, seed + 2)
    want = (m_a - m_b).square().sum() + (u.sqrt() - v.sqrt()).square().sum()
    assert frechet(a, b) == pytest.approx(float(want), abs=1e-7)


@given(st.integers(1, 5), st.integers(0, 2**16))
def test_frechet_of_any_covariances(d, seed):
    """tr(C_a + C_b) - 2 |R_a^T R_b|_* with C = R R^T: the cross term is the nuclear norm of any roots' product."""
    r_a, r_b, m = randn(d, d, seed=seed), randn(d, d, seed=seed + 1), randn(d, seed=seed + 2)
    a, b = features(0 * m, r_a, seed=seed), features(m, r_b, seed=seed + 3)
    cross = torch.linalg.svdvals(r_a.T @ r_b).sum()
    want = m.square().sum() + r_a.square().sum() + r_b.square().sum() - 2 * cross
    assert frechet(a, b) == pytest.approx(float(want), abs=1e-7)
    assert frechet(b, a) == pytest.approx(frechet(a, b), abs=1e-7)


@pytest.mark.parametrize(("n", "m"), [(600, 600), (300, 2000)])
def test_frechet_of_samples_of_one_gaussian(n, m):
    """A law has a distance from itself, in the mean that which is told, to its own order: 5 standard errors and two per
    cent; a formula with l_i l_j in place of the quotient, or without the means, is off by a quarter and more.
    """
    std, g = torch.tensor([3.0, 1.0, 0.5, 0.1, 0.0], dtype=torch.float64), torch.Generator().manual_seed(0)
    draw = lambda k: torch.randn(k, 5, generator=g, dtype=torch.float64) * std  # noqa: E731
    found = torch.tensor([frechet(draw(n), draw(m)) for _ in range(400)], dtype=torch.float64)
    want = frechet_bias(std.square().diag(), n, m)
    assert abs(float(found.mean()) - want) < 5 * float(found.std()) / 20 + 0.02 * want
    one = frechet_bias(torch.eye(4), n, m)
    assert one == pytest.approx((1 / n + 1 / m) * (4 + 4 * 5 / 4), rel=1e-12)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64))[0]
    assert frechet_bias(turn @ std.square().diag() @ turn.T, n, m) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(
    ("covariance", "n", "named"),
    [
        (torch.eye(3)[:2], 5, "covariance"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), 5, "covariance"),
        (-torch.eye(2), 5, "covariance"),
        (torch.full((2, 2), torch.nan), 5, "covariance"),
        (torch.eye(2), 1, "n"),
    ],
)
def test_frechet_bias_refuses(covariance, n, named):
    with pytest.raises(ValueError, match=f"^{named} must"):
        frechet_bias(covariance, n, 9)


def test_frechet_where_a_covariance_is_singular():
    """Features that do not vary, or fewer rows than features: the closed form holds there too."""
    u, v = torch.tensor([4.0, 0.0, 1.0], dtype=F64), torch.tensor([0.0, 9.0, 1.0], dtype=F64)
    a, b = features(u, u.sqrt().diag()), features(u, v.sqrt().diag(), seed=1)
    assert frechet(a, b) == pytest.approx(4 + 9, abs=1e-6)
    line = torch.tensor([[-1.0], [1.0]], dtype=F64) * torch.tensor([1.0, 2.0, 2.0], dtype=F64)
    assert frechet(line, 3 * line) == pytest.approx((3 - 1) ** 2 * 2 * 9, rel=1e-6)


@given(st.integers(0, 2**16), st.floats(0.1, 10))
def test_frechet_symmetries(seed, scale):
    """Zero for itself; unchanged by order of rows, rotation and shift; c^2 times itself when all is scaled by c."""
    a, b = randn(30, 4, seed=seed) @ randn(4, 4, seed=seed + 1), randn(20, 4, seed=seed + 2) + 1
    d, q, m = frechet(a, b), orthogonal(4, seed), randn(4, seed=seed)
    assert d > 0.1
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a.flip(0), b) == pytest.approx(d, abs=1e-7)
    assert frechet(a @ q + m, b @ q + m) == pytest.approx(d, abs=1e-6)
    assert frechet(scale * a, scale * b) == pytest.approx(scale**2 * d, rel=1e-6, abs=1e-6)
    assert frechet(a.float(), b.float()) == pytest.approx(d, rel=1e-4)


@given(st.integers(2, 40), st.integers(1, 60), st.sampled_from([0.0, 1e6]), st.integers(0, 2**16))
def test_frechet_of_a_set_with_itself(n, d, offset, seed):
    """0, to rounding and never below, in any order of rows, far from the origin too, with fewer rows than columns or
    more, and also where one direction is a million times narrower.
    """
    a = randn(n, d, seed=seed)
    a[:, 0] *= 1e-6
    a, order = a + offset, torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for b in (a, a[order], a.flip(0)):
        assert 0 <= frechet(a, b) < 1e-9 * d


@given(st.integers(1, 6), st.integers(0, 2**16))
def test_frechet_with_fewer_rows_than_columns(k, seed):
    """The closed form sum (sqrt(u) - sqrt(v))^2 holds to 1e-8 where k + 1 rows lie in a k-dimensional part of 4k
    dimensions, for each set its own number of rows; a shift adds |shift|^2; both ways are one.
    """
    g = torch.Generator().manual_seed(seed)
    u, v = (torch.rand(2, k, generator=g, dtype=F64) * 3).unbind()
    frame, zero, shift = orthogonal(4 * k, seed)[:, :k], torch.zeros(k, dtype=F64), randn(4 * k, seed=seed)
    a, b = (features(zero, w.sqrt().diag(), k + m, seed + m) @ frame.T for m, w in ((1, u), (3, v)))
    want = float((u.sqrt() - v.sqrt()).square().sum())
    assert frechet(a, b) == pytest.approx(want, abs=1e-8) == frechet(b, a)
    assert frechet(a, b + shift) == pytest.approx(want + float(shift.square().sum()), abs=1e-8)


def test_frechet_is_that_of_matrix_roots():
    """tr (C_a^(1/2) C_b C_a^(1/2))^(1/2) by scipy's root of C_a C_b, which has the same eigenvalues, to 1e-8."""
    a, b = randn(80, 6) @ randn(6, 6, seed=1), randn(50, 6, seed=2) @ randn(6, 6, seed=3) + 1
    C_a, C_b = (np.cov(x.T.numpy()) for x in (a, b))
    want = np.square((a.mean(0) - b.mean(0)).numpy()).sum() + np.trace(C_a + C_b - 2 * linalg.sqrtm(C_a @ C_b).real)
    assert frechet(a, b) == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        (torch.full((4, 3), 1e200, dtype=F64), torch.zeros(4, 3), "a"),
        (torch.zeros(1, 3), torch.zeros(4, 3), "a"),
        (torch.zeros(4, 3), torch.zeros(1, 3), "b"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "b"),
        (torch.zeros(4, 3, 1), torch.zeros(4, 3), "a"),
        (torch.zeros(4, 3), torch.zeros(4, 3, 1), "b"),
        (torch.full((4, 3), math.nan), torch.zeros(4, 3), "a"),
        (torch.zeros(4, 3), torch.zeros(4, 3).long(), "b"),
        (torch.zeros(4), torch.zeros(4, 3), "a"),
    ],
)
def test_frechet_errors(a, b, named):
    """One row has no covariance; features have one width, and are finite."""
    with pytest.raises(ValueError, match=f"^{named} must"):
        frechet(a, b)


# sliced Wasserstein and energy distance


def transport_cost(x, y):
    """min over couplings of E|x - y|^2 for numbers x (n,) and y (m,): the linear program itself."""
    n, m = len(x), len(y)
    cost = (x[:, None] - y[None]).square().flatten().numpy()
    rows, columns = np.kron(np.eye(n), np.ones((1, m))), np.kron(np.ones((1, n)), np.eye(m))
    marginals = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return linprog(cost, A_eq=np.concatenate([rows, columns]), b_eq=marginals, bounds=(0, None)).fun


@given(st.integers(1, 40), st.integers(0, 2**16))
def test_sliced_wasserstein_on_the_line(n, seed):
    """In one dimension it is W_2, which for equally many samples pairs the sorted ones; so it is between whole clouds
    on one line in space, up to the length of the directions along it.
    """
    x, y = randn(n, seed=seed), 2 * randn(n, seed=seed + 1) + 0.5
    want = float((x.sort().values - y.sort().values).square().mean().sqrt())
    assert sliced_wasserstein(x[:, None], y[:, None]) == pytest.approx(want, abs=1e-10)
    c = randn(3, seed=seed + 2)
    along = sliced_wasserstein(torch.zeros(1, 3, dtype=F64), c[None])
    assert sliced_wasserstein(x[:, None] * c, y[:, None] * c) == pytest.approx(along * want, abs=1e-10)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**16))
def test_sliced_wasserstein_is_the_cheapest_coupling(n, m, seed):
    """For any two numbers of samples in one dimension: the least mean square of x - y over all their couplings."""
    x, y = randn(n, seed=seed), randn(m, seed=seed + 1) + 1
    assert sliced_wasserstein(x[:, None], y[:, None]) ** 2 == pytest.approx(transport_cost(x, y), abs=1e-9)


def test_sliced_wasserstein_of_a_shift():
    """The root mean square of v . shift over unit vectors v: over an orthonormal basis the squares add up to 1 exactly,
    and for uniform v they are |shift|^2/d, with the variance of a Beta(1/2, (d - 1)/2) variable a direction.
    """
    a, basis = randn(50, 4), orthogonal(4, 1)
    squares = [sliced_wasserstein(a, a + e) ** 2 for e in basis]
    assert sum(squares) == pytest.approx(1, abs=1e-10)
    assert squares == pytest.approx([sliced_wasserstein(a[:1], a[:1] + e) ** 2 for e in basis], abs=1e-10)
    k = 20_000
    error = math.sqrt(stats.beta(0.5, 1.5).var() / k)
    for e in (*basis, *torch.eye(4, dtype=F64), torch.full((4,), 0.5, dtype=F64)):
        for seed in (0, 1):
            got = sliced_wasserstein(a[:1], a[:1] + 3 * e, directions=k, seed=seed) ** 2
            assert abs(got / 9 - 1 / 4) < 4.5 * error


DISTANCES = pytest.mark.parametrize("distance", [sliced_wasserstein, energy_distance], ids=lambda f: f.__name__)


@DISTANCES
@given(seed=st.integers(0, 2**16), n=st.integers(2, 40), m=st.integers(2, 40), copies=st.integers(2, 4))
def test_distances_are_of_empirical_laws(distance, seed, n, m, copies):
    """Zero for one law, symmetric, blind to order, to repetition of a whole sample, and to a shift of both."""
    a, b = randn(n, 3, seed=seed), 0.5 * randn(m, 3, seed=seed + 1) + 1
    d, order = distance(a, b), torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert d > 0.1
    assert (
        distance(a, a) ** 2 < 1e-8
        and distance(a, a[order]) ** 2 < 1e-8
        and distance(a, a.repeat(copies, 1)) ** 2 < 1e-8
    )
    for x, y in ((b, a), (a[order], b), (a.repeat(copies, 1), b), (a + 5, b + 5), (a.repeat(3, 1), b.repeat(2, 1))):
        assert distance(x, y) == pytest.approx(d, abs=1e-7)


@DISTANCES
def test_distances_far_from_the_origin(distance):
    """Numbers that can be told apart at 1e6 have the distance they have at 0, and none to themselves."""
    a, b = (x.mul(2**20).round() / 2**20 for x in (randn(40, 3), 0.5 * randn(30, 3, seed=1) + 1))
    d = distance(a, b)
    assert distance(a + 1e6, b + 1e6) == pytest.approx(d, rel=1e-8)
    assert distance(a + 1e6, a.flip(0) + 1e6) ** 2 < 1e-12


@DISTANCES
def test_distances_of_arrays(distance):
    """Samples of any shape are vectors, and float32 counts as the same numbers in float64."""
    a, b = randn(30, 1, 2, 3).float(), randn(20, 1, 2, 3, seed=1).float()
    d = distance(a, b)
    assert d == distance(a.flatten(1), b.flatten(1)) == distance(a.double(), b.double())
    assert distance(a, a) ** 2 < 1e-8 < d


@given(st.floats(0.1, 10), st.integers(0, 2**16))
def test_units_of_distances(c, seed):
    """Sliced Wasserstein is in the data's units, the energy distance in the root of them."""
    a, b = randn(20, 3, seed=seed), randn(30, 3, seed=seed + 1) + 1
    assert sliced_wasserstein(c * a, c * b) == pytest.approx(c * sliced_wasserstein(a, b), rel=1e-9)
    assert energy_distance(c * a, c * b) == pytest.approx(math.sqrt(c) * energy_distance(a, b), rel=1e-8)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**16))
def test_energy_distance_on_the_line(n, m, seed):
    """In one dimension it is scipy's: (2 int (F - G)^2)^(1/2)."""
    x, y = randn(n, 1, seed=seed), 2 * randn(m, 1, seed=seed + 1)
    want = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert energy_distance(x, y) ** 2 == pytest.approx(want**2, abs=1e-10)


def test_energy_distance_by_all_pairs():
    """More samples than are compared at once: every pair once, with equal weight; unchanged by a rotation of both."""
    a, b, q = randn(1500, 3), 0.7 * randn(1100, 3, seed=1) + 0.2, orthogonal(3)
    mean = lambda x, y: np.mean([np.linalg.norm(row - y.numpy(), axis=1).mean() for row in x.numpy()])  # noqa: E731
    want = math.sqrt(2 * mean(a, b) - mean(a, a) - mean(b, b))
    assert energy_distance(a, b) == pytest.approx(want, abs=1e-10)
    assert energy_distance(a @ q, b @ q) == pytest.approx(want, abs=1e-9)
    point = torch.tensor([[3.0, -4.0, 12.0]])
    assert energy_distance(point, 0 * point) == pytest.approx(math.sqrt(2 * 13), abs=1e-12)


def test_directions_are_decided_by_the_seed():
    """The same seed the same directions, another seed others; torch's own generator is neither read nor moved."""
    a, b = randn(30, 3), randn(30, 3, seed=1)
    d = sliced_wasserstein(a, b, 16, seed=3)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert sliced_wasserstein(a, b, 16, seed=3) == d != sliced_wasserstein(a, b, 16, seed=4)
    assert torch.equal(torch.get_rng_state(), before)


@DISTANCES
@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 2), "b must hold samples of shape"),
        (torch.zeros(4, 6), torch.zeros(4, 2, 3), "b must hold samples of shape"),
        (torch.zeros(4), torch.zeros(4, 3), "a must"),
        (torch.zeros(4, 3), torch.zeros(0, 3), "b must"),
        (torch.full((4, 3), math.nan), torch.zeros(4, 3), "a must"),
        (torch.zeros(4, 3), torch.full((4, 3), math.inf), "b must"),
        (torch.zeros(4, 3), torch.full((4, 3), -1e200, dtype=F64), "b must hold numbers of at most 1e100"),
        (torch.zeros(4, 3, dtype=torch.complex64), torch.zeros(4, 3), "a must"),
    ],
)
def test_distances_errors(distance, a, b, named):
    """Samples have one shape, there is one at least, and they are finite."""
    with pytest.raises(ValueError, match=f"^{named}"):
        distance(a, b)


def test_directions_error():
    """At least one direction."""
    with pytest.raises(ValueError, match="^directions must"):
        sliced_wasserstein(torch.zeros(4, 3), torch.zeros(4, 3), directions=0)


# weights of modes


def modes(*weights):
    """Modes so far apart that each sample belongs to one of them to rounding."""
    centres = 10 * torch.arange(len(weights), dtype=F64)
    return GaussianMixture(
        torch.tensor(weights), torch.stack([centres, -centres], 1), torch.full((len(weights),), 0.04)
    )


@given(st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(any), st.integers(0, 2**16))
def test_weights_error_of_separated_modes(counts, seed):
    """The total variation between the weights and the shares of the samples: sum |n_k/n - w_k|/2."""
    law, n = modes(1.0, 2.0, 5.0, 2.0), sum(counts)
    k = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    x = law.means[k] + 0.2 * randn(n, 2, seed=seed)
    want = sum(abs(c / n - w / 10) for c, w in zip(counts, (1, 2, 5, 2))) / 2
    assert weights_error(law, x) == pytest.approx(want, abs=1e-10)
    assert weights_error(law, x.flip(0)) == pytest.approx(want, abs=1e-10)
    assert weights_error(law, x.float()) == pytest.approx(want, abs=1e-10)


def test_weights_error_at_its_ends():
    """0 where every mode is found as often as it should be, 1 - w where one is, and 0 for a single mode."""
    law = modes(1.0, 2.0, 5.0)
    assert weights_error(law, law.means[[0, 1, 1, 2, 2, 2, 2, 2]]) == pytest.approx(0, abs=1e-12)
    for k, w in enumerate((1, 2, 5)):
        assert weights_error(law, law.means[k : k + 1]) == pytest.approx(1 - w / 8, abs=1e-12)
    assert weights_error(Gaussian(torch.zeros(2), 1.0), randn(5, 2)) == pytest.approx(0, abs=1e-12)


def test_weights_error_of_overlapping_modes():
    """Where modes overlap a sample counts for each by Bayes' rule, so that exact samples still average to the weights:
    within 4.5 standard errors of the share of each. Half way between two modes, each gets what the prior gives it.
    """
    v = torch.full((2,), 0.3, dtype=F64)
    law = GaussianMixture(torch.tensor([1.0, 3.0]), torch.tensor([[0.0], [1.0]]), v)
    x = law.sample(20_000, torch.Generator().manual_seed(0))
    density = [w * torch.exp(-((x[:, 0] - m) ** 2) / 0.6) for w, m in ((0.25, 0.0), (0.75, 1.0))]
    share = density[0] / (density[0] + density[1])
    assert weights_error(law, x) == pytest.approx(abs(float(share.mean()) - 0.25), abs=1e-10)
    assert weights_error(law, x) < 4.5 * float(share.std()) / math.sqrt(len(x))
    assert weights_error(law, torch.tensor([[0.5]])) == pytest.approx(0, abs=1e-12)


def test_weights_error_errors():
    """A law without modes, samples of another shape, and such as are not finite."""
    law = modes(1.0, 2.0)
    for bad, named in (((None, randn(3, 2)), "law"), ((law, randn(3, 3)), "x"), ((law, randn(3, 2) * math.nan), "x")):
        with pytest.raises(ValueError, match=f"^{named} must"):
            weights_error(*bad)


# classifier


@pytest.fixture(scope="module")
def digits():
    return Digits().load()


@pytest.fixture(scope="module")
def classifier(digits):
    return Classifier.fit(digits.train, digits.train_labels)


def test_classifier_learns(digits, classifier):
    """It knows digits that it has not seen: more than 93 % of them; the accuracy is that of the largest logit."""
    x, y = digits.held_out, digits.held_out_labels
    right = sum(int(classifier(x[i : i + 1]).argmax()) == int(y[i]) for i in range(len(x)))
    assert classifier.accuracy(x, y) == pytest.approx(right / len(x), abs=1e-12)
    assert right / len(x) > 0.93


def test_classifier_features(digits, classifier):
    """The head reads the features, unscaled; over the images it was fitted to they have mean 0 and variance 1."""
    x = digits.train
    f = classifier.features(x).double()
    assert f.shape == (1438, 64)
    torch.testing.assert_close(f.mean(0), torch.zeros(64, dtype=F64), rtol=0, atol=1e-4)
    torch.testing.assert_close(f.std(0), torch.ones(64, dtype=F64), rtol=0, atol=1e-4)
    raw = classifier.features(x[:5]) * classifier.std + classifier.mean
    torch.testing.assert_close(classifier.head(raw), classifier(x[:5]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(classifier.features(x[600:605]), f[600:605].float(), rtol=1e-4, atol=1e-4)


def test_classifier_tells_noise_from_digits(digits, classifier):
    """Real digits are nearer to real digits than noise of their mean and variance is."""
    x = digits.train
    noise = x.mean() + x.std() * torch.randn(359, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    held = classifier.features(digits.held_out)
    real = frechet(classifier.features(x[:359]), held)
    assert frechet(classifier.features(noise), held) > 10 * real


def test_classifier_seeds(digits):
    """The seed decides every weight, torch's own generator is neither read nor moved, another seed gives another."""
    x, y = digits.train[:128], digits.train_labels[:128]
    a = Classifier.fit(x, y, seed=3, epochs=1).state_dict()
    torch.manual_seed(9)
    before = torch.get_rng_state()
    with torch.no_grad():
        b = Classifier.fit(x, y, seed=3, epochs=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a)
    c = Classifier.fit(x, y, seed=4, epochs=1).state_dict()
    assert not all(torch.equal(a[k], c[k]) for k in a)


# nearest


@given(st.integers(1, 40), st.integers(1, 60), st.sampled_from([(2,), (1, 4, 4), (3, 2, 5)]), st.integers(0, 2**16))
def test_nearest(n, m, shape, seed):
    """Against all pairs one by one in float64: the least root mean square difference, and where it is."""
    x, data = randn(n, *shape, seed=seed).float(), randn(m, *shape, seed=seed + 1).float()
    d, i = nearest(x, data)
    pairs = torch.stack([(x.double() - y.double()).square().flatten(1).mean(1).sqrt() for y in data])
    torch.testing.assert_close(d.double(), pairs.min(0).values, rtol=1e-5, atol=0)
    torch.testing.assert_close(pairs[i, torch.arange(n)], pairs.min(0).values, rtol=1e-5, atol=0)


def test_nearest_of_a_copy(digits):
    """A copy is at distance 0 and is found; nearly a copy is at the distance by which it differs."""
    x = digits.train[100:200]
    d, i = nearest(x, digits.train)
    assert (d == 0).all() and torch.equal(digits.train[i], x)
    moved = x.clone()
    moved[:, 0, 0, 0] += 1e-3
    d, i = nearest(moved, digits.train)
    torch.testing.assert_close(d, torch.full((100,), 1e-3 / 8), rtol=1e-3, atol=0)
    assert torch.equal(digits.train[i], x)


def test_nearest_in_any_precision():
    """Samples and data of two types are compared as the same numbers in float64: where float32 has no squares too."""
    x, data = randn(30, 5).half(), randn(50, 5, seed=1)
    (d, i), (want, at) = nearest(x, data), nearest(x.double(), data)
    assert torch.equal(d, want.float()) and torch.equal(i, at)
    far = nearest(1e30 * x.float(), 1e30 * data.float())[0]
    torch.testing.assert_close(far, 1e30 * nearest(x.float(), data.float())[0], rtol=1e-5, atol=0)


def test_nearest_by_parts():
    """More samples than are compared at once have the neighbours that they have alone."""
    x, data = randn(1100, 3), randn(20, 3, seed=1)
    d, i = nearest(x, data)
    assert torch.equal(torch.cat([nearest(part, data)[1] for part in x.split(50)]), i)
    torch.testing.assert_close(d, (x - data[i]).square().mean(1).sqrt(), rtol=1e-12, atol=0)


def test_nearest_errors():
    """Samples of another shape, and no data."""
    with pytest.raises(ValueError, match="^data must hold samples of shape"):
        nearest(torch.zeros(2, 1, 4, 4), torch.zeros(3, 16))
    with pytest.raises(ValueError, match="^data must"):
        nearest(torch.zeros(2, 4), torch.zeros(0, 4))
    with pytest.raises(ValueError, match="^x must"):
        nearest(torch.full((2, 4), math.nan), torch.zeros(3, 4))
