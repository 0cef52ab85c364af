"""Laws to measure on, against their closed forms and, for the digits, the digits themselves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from scoresde.lab.problems import DigitClasses, Lattice, Modes, Peaks

F64 = torch.float64
STD = st.floats(0.02, 2)


def points(n, seed=0):
    """Places in [-1.5, 1.5]^2."""
    return 3 * torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64) - 1.5


def close(a, b, rtol=1e-10, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def equal_mixture(x, means, std):
    """log of the mean over k of N(x; m_k, std^2 I), written out."""
    square = (x[:, None] - means).square().sum(2)
    density = -square / (2 * std**2) - x.shape[1] / 2 * math.log(2 * math.pi * std**2)
    return density.logsumexp(1) - math.log(len(means))


@given(st.integers(1, 12), STD, st.integers(0, 2**16))
def test_modes(n, std, seed):
    """N(e^(2 pi i k/n), std^2 I) with equal weights: the density, its symmetry under a turn by 2 pi/n, E|x|^2."""
    law, x = Modes(n, std).law(), points(20, seed)
    angles = [2 * math.pi * k / n for k in range(n)]
    means = torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=F64)
    close(law.log_prob(x), equal_mixture(x, means, std))
    c, s = math.cos(2 * math.pi / n), math.sin(2 * math.pi / n)
    close(law.log_prob(x @ torch.tensor([[c, -s], [s, c]], dtype=F64)), law.log_prob(x))
    assert law.shape == (2,)
    square = law.sample(4000, torch.Generator().manual_seed(seed)).square().sum(1)
    assert abs(float(square.mean()) - (1 + 2 * std**2)) < 5 * float(square.std()) / math.sqrt(4000)


@given(st.integers(2, 6), STD, st.integers(0, 2**16))
def test_lattice(side, std, seed):
    """It factorises: log p(x, y) = log q(x) + log q(y), q the mixture of `side` equal Gaussians evenly over [-1, 1]."""
    law, x = Lattice(side, std).law(), points(20, seed)
    means = torch.tensor([[-1 + 2 * i / (side - 1)] for i in range(side)], dtype=F64)
    close(law.log_prob(x), equal_mixture(x[:, :1], means, std) + equal_mixture(x[:, 1:], means, std))
    assert law.shape == (2,) and len(law.weights) == side**2


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(-2, 2), STD), min_size=1, max_size=5), st.integers(0, 2**16))
def test_peaks(parts, seed):
    """log sum_k w_k N(x; m_k, s_k^2) / sum_k w_k, written out, whatever the order of the peaks."""
    x = points(20, seed)[:, :1]
    p = sum(w * torch.exp(-((x - m) ** 2) / (2 * s**2)) / (s * math.sqrt(2 * math.pi)) for w, m, s in parts)
    law, back = (Peaks(*map(tuple, zip(*order))).law() for order in (parts, parts[::-1]))
    assert law.shape == (1,)
    near = p[:, 0] > 1e-200
    close(law.log_prob(x)[near], (p / sum(w for w, _, _ in parts)).log()[near, 0], atol=1e-8)
    close(back.log_prob(x), law.log_prob(x))


@pytest.mark.parametrize(
    ("problem", "K", "std"), [(Modes(), 8, 0.05), (Lattice(), 25, 0.05), (Modes(3, 0.2), 3, 0.2)], ids=repr
)
def test_each_mode_has_its_share(problem, K, std):
    """Seen from far inside a mode that is alone there, the density is 1/K of that mode's."""
    law = problem.law()
    close(law.weights, torch.full((K,), 1 / K, dtype=F64))
    peak = -math.log(K) - math.log(2 * math.pi * std**2)
    close(law.log_prob(law.means), torch.full((K,), peak, dtype=F64), atol=1e-8)
    close(law.responsibilities(law.means), torch.eye(K, dtype=F64), atol=1e-8)


# digits


@pytest.fixture(scope="module")
def classes():
    """The 1797 digits on [-1, 1] as vectors, a class in each entry."""
    raw = load_digits()
    x = raw.images.reshape(-1, 64) / 8 - 1
    assert len(x) == 1797
    return [x[raw.target == k] for k in range(10)]


def covariance(law, k):
    """C_k of a mixture: extra on the columns of factors, diagonal on what is orthogonal to them."""
    U = law.factors[k]
    return U * law.extra[k] @ U.T + law.diagonal[k] * (torch.eye(64, dtype=F64) - U @ U.T)


@pytest.mark.parametrize("rank", [1, 15, 30])
def test_digit_classes_are_the_digits(classes, rank):
    """Weights and means are the classes'. On its `rank` principal directions the covariance is the class's, on all
    others together it has the class's trace, the same in each of them.
    """
    law = DigitClasses(rank).law()
    assert law.shape == (1, 8, 8)
    shares = torch.tensor([len(c) / 1797 for c in classes], dtype=F64)
    close(law.weights, shares)
    close(law.means, torch.from_numpy(np.stack([c.mean(0) for c in classes])))
    for k, c in enumerate(classes):
        centred = c - c.mean(0)
        C = torch.from_numpy(centred.T @ centred / (len(c) - 1))
        ours, (values, vectors) = covariance(law, k), torch.linalg.eigh(C)
        top, rest = vectors[:, -rank:], vectors[:, :-rank]
        close(ours @ top, C @ top)
        close(ours @ rest, values[:-rank].mean() * rest)
        close(ours.trace(), C.trace())


def test_digit_classes_have_their_density(classes):
    """log p of digits is that of ten Gaussians with full covariance matrices, put together with numpy alone."""
    rank, logs = 15, []
    x = np.concatenate([c[:5] for c in classes])
    for c in classes:
        values, vectors = np.linalg.eigh(np.cov(c.T))
        values[:-rank] = values[:-rank].mean()
        white = (x - c.mean(0)) @ vectors / np.sqrt(values)
        logs.append(np.log(len(c) / 1797) - 0.5 * (np.square(white).sum(1) + np.log(2 * np.pi * values).sum()))
    law = DigitClasses().law()
    close(law.log_prob(torch.from_numpy(x).view(-1, 1, 8, 8)), torch.from_numpy(np.logaddexp.reduce(logs)), rtol=1e-9)
    assert float((law.responsibilities(law.means.view(10, 1, 8, 8)).argmax(1) - torch.arange(10)).abs().max()) == 0


# bad input


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Modes(0), "n"),
        (lambda: Modes(-2), "n"),
        (lambda: Modes(2.5), "n"),
        (lambda: Modes(10**9), "n"),
        (lambda: Modes(std=0.0), "std"),
        (lambda: Modes(std=-1.0), "std"),
        (lambda: Modes(std=math.nan), "std"),
        (lambda: Modes(std=math.inf), "std"),
        (lambda: Modes(std=1e200), "std"),
        (lambda: Modes(std=1e-200), "std"),
        (lambda: Lattice(1), "side"),
        (lambda: Lattice(0), "side"),
        (lambda: Lattice(10**6), "side"),
        (lambda: Lattice(std=0.0), "std"),
        (lambda: Peaks(weights=()), "weights"),
        (lambda: Peaks(weights=(0.5, 0.0, 0.3)), "weights"),
        (lambda: Peaks(weights=[0.5, 0.2, 0.3]), "weights"),
        (lambda: Peaks(means=(0.0, 1.0)), "means"),
        (lambda: Peaks(means=(0.0, 1.0, math.nan)), "means"),
        (lambda: Peaks(stds=(0.1, 0.1, -0.1)), "stds"),
        (lambda: Peaks(stds=(0.1, 0.1, 1e-200)), "stds"),
        (lambda: DigitClasses(0), "rank"),
        (lambda: DigitClasses(-1), "rank"),
        (lambda: DigitClasses(64).law(), "rank"),
    ],
)
def test_bad_problems(make, named):
    """One line that names the argument, where it is said."""
    with pytest.raises(ValueError, match=f"^{named} must [^\\n]*$"):
        make()


def test_digits_are_the_mixture_of_the_bars(shared):
    """The law that is computed from the bundled digits is the one that was published as arrays: w_k, m_k and
    F_k diag(v_k - c_k) F_k' + c_k I, by the density at the digits themselves, whatever the sign of an eigenvector.
    """
    told = {k: torch.from_numpy(v) for k, v in np.load(shared / "mixtures" / "digits64.npz").items()}
    x = torch.from_numpy(load_digits().data) / 8 - 1
    spread = (told["variances"] - told["floor"][:, None])[:, None]
    cov = told["factors"] * spread @ told["factors"].mT + told["floor"][:, None, None] * torch.eye(64, dtype=F64)
    each = torch.distributions.MultivariateNormal(told["means"], cov).log_prob(x[:, None])
    want = (each + (told["weights"] / told["weights"].sum()).log()).logsumexp(1)
    close(DigitClasses().law().log_prob(x.reshape(-1, 1, 8, 8)), want, rtol=1e-9)
