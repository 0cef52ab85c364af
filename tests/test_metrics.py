"""Distances between samples and data, against closed forms and brute force."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde.data import Digits
from scoresde.metrics import Classifier, frechet, nearest

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


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
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


def test_nearest_errors():
    """Samples of another shape, and no data."""
    with pytest.raises(ValueError, match="^data must hold samples of shape"):
        nearest(torch.zeros(2, 1, 4, 4), torch.zeros(3, 16))
    with pytest.raises(ValueError, match="^data must"):
        nearest(torch.zeros(2, 4), torch.zeros(0, 4))
    with pytest.raises(ValueError, match="^x must"):
        nearest(torch.full((2, 4), math.nan), torch.zeros(3, 4))
