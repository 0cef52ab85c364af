"""Measures of samples: what they are for sets of one law, for copies, for lost modes, and how far chance moves them."""

import math

import pytest
import torch

from scoresde.lab import energy_distance, frechet, metrics
from scoresde.lab.fidelity import (
    SHARE,
    Neighbourhoods,
    copied,
    expected,
    kernel_distance,
    neighbour_test,
    quality,
    with_error,
)

F64 = torch.float64


def randn(n, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_kernel_distance_is_its_double_sum():
    """In blocks or not, without the diagonal."""
    a, b = randn(1030, 2), 1.5 * randn(7, 2, seed=1) + 0.3
    k = lambda x, y: (x @ y.T / 2 + 1) ** 3  # noqa: E731
    own = [(k(x, x).sum() - k(x, x).diag().sum()) / (len(x) * (len(x) - 1)) for x in (a, b)]
    assert kernel_distance(a, b) == pytest.approx(float(sum(own) - 2 * k(a, b).mean()), rel=1e-10)
    assert kernel_distance(a, b) == pytest.approx(kernel_distance(b, a), rel=1e-10)


def test_kernel_distance_is_unbiased():
    """On a line sum_j binom(3, j) (E x^j - E y^j)^2, from sets of five, of N(0, 1) and N(0.5, 0.25)."""
    moments = [1, 0, 1, 0], [1, 0.5, 0.5, 0.5**3 + 3 * 0.5 * 0.25]
    want = sum(math.comb(3, j) * (p - q) ** 2 for j, (p, q) in enumerate(zip(*moments, strict=True)))
    found = torch.tensor([kernel_distance(randn(5, 1, 2 * s), 0.5 + 0.5 * randn(5, 1, 2 * s + 1)) for s in range(4000)])
    assert abs(float(found.mean()) - want) < 4 * float(found.std()) / 4000**0.5


@pytest.mark.parametrize("k", [1, 3])
def test_neighbourhoods_of_one_law(k):
    """Density 1 and coverage 1 - C(N-1, k)/C(2N-1, k) on average, whatever the law; precision and recall are alike."""
    n, found = 20, []
    for seed in range(600):
        x = randn(2 * n, 2, seed).exp()
        found.append(Neighbourhoods.of(x[:n], x[n:], k))
    for name, want in (("density", 1.0), ("coverage", 1 - math.comb(n - 1, k) / math.comb(2 * n - 1, k))):
        values = torch.tensor([getattr(f, name) for f in found])
        assert abs(float(values.mean()) - want) < 4 * float(values.std()) / 600**0.5
    apart = torch.tensor([f.precision - f.recall for f in found])
    assert abs(float(apart.mean())) < 4 * float(apart.std()) / 600**0.5


def test_neighbourhoods_and_neighbours_of_many():
    """Blocks of a thousand are no other sums: by the whole matrix of distances, which has no ties here."""
    a, b, k = randn(1100, 2), 1.1 * randn(2050, 2, 1), 5
    apart, own = (a[:, None] - b).norm(dim=2), [torch.cdist(x, x).sort().values[:, k] for x in (a, b)]
    inside = apart < own[1]
    found = Neighbourhoods.of(a, b, k)
    want = inside.any(1), (apart < own[0][:, None]).any(0), inside.double().sum(1) / k, inside.any(0)
    for value, of in zip((found.precision, found.recall, found.density, found.coverage), want, strict=True):
        assert value == pytest.approx(float(of.double().mean()), abs=1e-12)
    both = torch.cat([a, b[:1100]])
    near = torch.cdist(both, both).fill_diagonal_(math.inf).argmin(1)
    assert neighbour_test(a, b) == float(((near < 1100) == (torch.arange(2200) < 1100)).double().mean())


@pytest.mark.parametrize(("n", "m"), [(40, 40), (30, 70), (70, 30)])
def test_what_is_expected_of_one_law(n, m):
    """The mean over 300 pairs of sets of one Gaussian is what is told of one of them, where something is: the numbers
    are within four standard errors, that of the Frechet distance, of first order in 1/n, within a tenth, and the root
    of a mean, as of the energy distance, is above the mean of roots.
    """
    std, found, told = torch.tensor([1.0, 0.5], dtype=F64), [], []
    measures = {
        "frechet": frechet,
        "kernel distance": kernel_distance,
        "energy distance": lambda a, b: energy_distance(a, b) ** 2,
        "density": lambda a, b: Neighbourhoods.of(a, b).density,
        "coverage": lambda a, b: Neighbourhoods.of(a, b).coverage,
        "neighbour test": neighbour_test,
    }
    for seed in range(300):
        a, b = randn(n, 2, 2 * seed) * std, randn(m, 2, 2 * seed + 1) * std
        found.append([measure(a, b) for measure in measures.values()])
        said = expected(n, b)
        told.append([said[name] ** (2 if "energy" in name else 1) for name in measures])
    found, told = torch.tensor(found), torch.tensor(told)
    off, chance = (found - told).mean(0), (found - told).std(0) / 300**0.5
    for k, name in enumerate(measures):
        bound = 0.1 * float(told[:, k].mean()) if name == "frechet" else 0.0
        assert abs(float(off[k])) < 4 * float(chance[k]) + bound, name
    assert expected(n, b)["copies"] == SHARE and not set(expected(n, b)) & {"precision", "recall"}


def test_a_lost_mode_is_no_loss_of_precision():
    """Samples of one of two modes: all are good, half of the data are missed."""
    real = torch.cat([randn(200), randn(200, seed=1) + 50])
    found = Neighbourhoods.of(randn(200, seed=2), real)
    assert found.precision > 0.85 and 0.35 < found.recall <= 0.5 and 0.4 < found.coverage <= 0.5
    far = Neighbourhoods.of(randn(200, seed=2) + 500, real)
    assert far == Neighbourhoods(0.0, 0.0, 0.0, 0.0)
    same = Neighbourhoods.of(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)


def test_two_sets_are_told_apart_by_their_neighbours():
    """Half of one law, exactly all of two that do not meet; and copies are each other's neighbours, which none can be
    told from.
    """
    values = torch.tensor([neighbour_test(randn(40, 4, 2 * s), randn(60, 4, 2 * s + 1)) for s in range(300)])
    assert abs(float(values.mean()) - 0.5) < 4 * float(values.std()) / 300**0.5 + 1 / 79
    assert neighbour_test(randn(50), randn(50, seed=1) + 100) == 1
    assert neighbour_test(randn(50), randn(50)) == 0


def test_copies_are_found():
    train, held, fresh = randn(500, 4), randn(2000, 4, 1), randn(2000, 4, 2)
    assert copied(train[:100], train, held) == 1
    assert abs(copied(fresh, train, held) - SHARE) < 4 * (2 * SHARE * (1 - SHARE) / 2000) ** 0.5
    assert copied(torch.cat([train[:100], 5 + fresh[:100]]), train, held) == 0.5


def test_the_error_is_that_of_chance():
    """Of a mean s/sqrt(n), in 400 halves; of the sliced and the kernel distance what fresh sets vary by."""
    a = randn(200)
    value, error = with_error(lambda x, y: float(x.mean()), a, a, draws=400)
    assert value == float(a.mean()) and error == pytest.approx(float(a.mean(1).std()) / 200**0.5, rel=0.12)
    b = randn(4000, seed=9) + 0.5
    told = torch.tensor([with_error(kernel_distance, randn(300, seed=s), b)[1] for s in range(10)])
    true = torch.tensor([kernel_distance(randn(300, seed=s), b) for s in range(100, 160)]).std()
    assert 0.6 < float(told.mean() / true) < 1.6


def test_all_at_once():
    """Samples of the law are as good as training data; wider ones are worse in every distance; copies are told."""
    train, held = randn(600), randn(300, seed=1)
    good, wide, again = (quality(x, train, held) for x in (randn(200, seed=2), 2 * randn(200, seed=3), train[:200]))
    for row in good:
        expected = SHARE if row.name == "copies" else row.train
        assert abs(row.value - expected) < 5 * (row.error + (0 if row.name == "copies" else row.train_error)) + 0.02
    for row, bad in zip(good, wide):
        if row.name in ("frechet", "kernel distance", "energy distance", "sliced Wasserstein"):
            assert bad.value > row.value + 3 * bad.error
    assert {row.name: row.value for row in again}["copies"] == 1
    assert str(good[0]).startswith("frechet") and "best 0   training data" in str(good[0])
    assert "expected 0.0" in str(good[0]) and "expected" not in str(good[3]) and good[3].name == "precision"
    assert list(map(str, quality(randn(200, seed=2), train, held))) == list(map(str, good))


def test_one_dimension():
    """All measures of numbers, whose covariance is one."""
    assert len(quality(randn(60, 1), randn(80, 1, 1), randn(70, 1, 2))) == 10


def test_training_data_as_they_are_stored(monkeypatch):
    """Levels, made numbers a few at a time, are the numbers; and measures may be made in any order, elsewhere."""
    monkeypatch.setattr(metrics, "PART", 7)
    levels, sizes = (3 * randn(90)).round(), []
    made, held = 0.1 * (3 * randn(40, seed=1)).round() + 0.01, 0.1 * (3 * randn(50, seed=2)).round()

    def values(x):
        sizes.append(len(x))
        return x.double() / 10

    said = quality(made, levels.to(torch.int8), held, values=values, spread=lambda tasks: [t() for t in tasks[::-1]])
    assert list(map(str, said[::-1])) == list(map(str, quality(made, levels / 10, held)))
    assert sizes == [40, *[7] * 12, 6]


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: kernel_distance(randn(1), randn(5)), "a must hold at least 2 samples"),
        (lambda: kernel_distance(randn(5), randn(5, 2)), "b must hold samples of shape"),
        (lambda: Neighbourhoods.of(randn(5), randn(50)), "a must hold at least 6 samples"),
        (lambda: neighbour_test(randn(5), randn(1)), "b must hold at least 2 samples"),
        (lambda: quality(randn(5), randn(50), randn(50)), "samples must hold at least 12 samples, got 5"),
        (lambda: quality(randn(50), randn(50), randn(5)), "held_out must hold at least 12 samples, got 5"),
        (lambda: with_error(kernel_distance, randn(9), randn(9), draws=1), "draws"),
    ],
)
def test_bad_input_is_refused_by_name(call, says):
    with pytest.raises(ValueError, match=says):
        call()
