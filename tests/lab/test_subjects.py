"""What is measured: the score of a law on a process, where its flow leads, and samples that are as good as can be."""

import math

import pytest
import torch

from scoresde import EDM, VE, VP, Flow, Reference, ScoreModel, iid, sample, transport
from scoresde.data import Digits, Ring
from scoresde.exact import Empirical
from scoresde.lab import (
    PROCESSES,
    DigitClasses,
    Lattice,
    Modes,
    energy_distance,
    exact_subject,
    floors,
    memorised_subject,
    sliced_wasserstein,
    trained_subject,
)
from scoresde.model import Karras
from scoresde.nn import MLP
from scoresde.ode import Dopri5

F64 = torch.float64
N = 200


@pytest.fixture(scope="module")
def subject():
    return exact_subject("x", Modes().law(), VP(), N)


def truth(score, sde, x_T):
    ts = torch.tensor([sde.T, sde.t_min], dtype=F64)
    return sample(sde.reverse(score, 0.0), x_T, ts, Flow(Dopri5(1e-10, 1e-10)))


DIGITS = pytest.param(DigitClasses(), marks=pytest.mark.slow)


@pytest.mark.parametrize("problem", [Modes(), Lattice(), DIGITS])
@pytest.mark.parametrize("process", ["vp", "edm"])
def test_exact_subjects(problem, process):
    """The score is the law's on the process, the truth where its flow ends, and the Gaussian that of its data."""
    law, sde = problem.law(), PROCESSES[process]
    here, score = exact_subject(repr(problem), law, sde, 300), law.diffuse(sde)
    x_T = here.starts(3, 7)
    assert x_T.equal(sde.prior((3, *law.shape), iid(torch.Generator().manual_seed(7)), F64)) and here.sde == sde
    assert here.score(x_T, torch.tensor(sde.T)).equal(score(x_T, torch.tensor(sde.T)))
    if process == "vp":
        torch.testing.assert_close(here.truth(x_T), truth(score, sde, x_T), rtol=0, atol=1e-12)
    x_0 = law.sample(20_000, torch.Generator().manual_seed(1))
    std = float((x_0 - x_0.mean(0)).square().mean().sqrt())
    assert here.known.x_0 is here.x_0 and here.known.around == Reference.fit(here.x_0)
    assert here.known.around.std == pytest.approx(std, rel=0.1)
    assert float((here.known.around.mean - x_0.mean(0)).abs().max()) < 6 / math.sqrt(1000)
    assert (here.name, here.n, here.shape, here.denoise) == (repr(problem), 300, tuple(law.shape), False)


def test_fresh_samples_are_of_the_law(subject):
    """The floor: eight sets of n draws, none of them the truth itself, each with the law's second moment at t_min."""
    a, v = float(VP().alpha(VP().t_min)), float(VP().var(torch.tensor(VP().t_min, dtype=F64)))
    assert len(subject.fresh) == 8 and all(x.shape == (N, 2) for x in subject.fresh) and subject.n == N
    every = torch.cat(subject.fresh)
    assert len(every.unique(dim=0)) == 8 * N
    square = every.square().sum(1)
    want = a**2 * (1 + 2 * 0.05**2) + 2 * v
    assert abs(float(square.mean()) - want) < 4.5 * float(square.std()) / math.sqrt(8 * N)


def test_measures_of_real_samples(subject):
    """Small, and above 0 where they are distances: the truth that they are measured by is another set of draws."""
    real = subject.fresh[0]
    assert abs(subject.measures["log_density_gap"](real)) < 4.5 / math.sqrt(N)
    assert min(subject.measures[k](real) for k in ("sliced_wasserstein", "energy_distance")) > 0


def test_floors(subject):
    """What fresh exact samples have: a mean of absolute values over the sets, a signed measure's too."""
    found = floors([subject.measured(x) for x in subject.fresh])
    assert found.keys() == subject.measures.keys()
    for key, value in found.items():
        each = [subject.measures[key](x) for x in subject.fresh]
        assert value == pytest.approx(sum(map(abs, each)) / 8)
    assert found["log_density_gap"] > abs(sum(map(subject.measures["log_density_gap"], subject.fresh)) / 8)


def test_seeds_of_subjects(subject):
    """The same seed gives the same draws, another one others."""
    again, other = (exact_subject("x", Modes().law(), VP(), N, seed) for seed in (0, 1))
    assert again.x_0.equal(subject.x_0) and all(map(torch.equal, again.fresh, subject.fresh))
    assert not other.x_0.equal(subject.x_0) and not any(map(torch.equal, other.fresh, subject.fresh))
    assert again.starts(3, 5).equal(subject.starts(3, 5)) and not again.starts(3, 6).equal(subject.starts(3, 5))


def test_one_sample_is_no_subject():
    """Two are needed."""
    with pytest.raises(ValueError, match="^n must be a whole number >= 2, got 1"):
        exact_subject("x", Modes().law(), VP(), 1)


@pytest.mark.slow
def test_memorised_digits():
    """The law of the digits themselves: exact samples are digits with the noise of t_min."""
    digits = Digits().load()
    here = memorised_subject(torch.cat([digits.train, digits.held_out]), VP(), 200)
    law = here.score.law
    assert isinstance(law, Empirical) and law.n == 1797
    near = torch.cdist(here.truth(here.starts(4, 1)).flatten(1), law.data).min(1).values / 8
    assert (near < 4 * float(VP().sigma(VP().t_min))).all()
    fresh = here.fresh
    for measure, f in ((sliced_wasserstein, "sliced_wasserstein"), (energy_distance, "energy_distance")):
        assert here.measures[f](fresh[0]) < 2 * measure(fresh[1], fresh[2])


def test_memorised_points():
    """Of a few points: from anywhere the flow leads to one of them, and fresh samples are them with the noise of t_min;
    there are only distances to measure, since it has no density.
    """
    data = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -2.0]])
    here, s = memorised_subject(data, VP(), 50), float(VP().sigma(VP().t_min))
    near = torch.cdist(here.truth(here.starts(20, 1)), data.double()).min(1)
    assert (near.values < 6 * s).all() and len(near.indices.unique()) == 3
    assert all((torch.cdist(x.double(), data.double()).min(1).values < 6 * s).all() for x in here.fresh)
    assert here.measures.keys() == {"sliced_wasserstein", "energy_distance"} and here.x_0.equal(data.double())


# a network


def network(data, sde=VP()):
    """One that was not trained, but is not 0."""
    net, g = MLP(data.shape, 16, 1), torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=g)
    return ScoreModel(net, sde, Karras(Reference.fit(data.train)))


@pytest.mark.parametrize("sde", [None, VE(0.01, 20.0), EDM()])
def test_a_network(sde):
    """Its score on its own process or another one, in the type of the data; samples end with the mean of the data
    given the last state, and are measured against the data that were held out; real ones are those it was trained on.
    """
    data = Ring(n=150).load()
    model = network(data)
    here = trained_subject(model, data, sde)
    at, x = sde or VP(), here.starts(4, 3)
    assert here.sde == at and x.equal(at.prior((4, 2), iid(torch.Generator().manual_seed(3)), torch.float32))
    t = torch.tensor(at.T / 3, dtype=F64)
    want = transport(model, VP(), at)(x, t) if sde else model(x, t)
    torch.testing.assert_close(here.score(x, t), want, rtol=0, atol=0)
    assert here.denoise
    assert (here.n, here.shape) == (len(data.held_out), (2,)) == (30, (2,)) and here.x_0.equal(data.train)
    assert [len(part) for part in here.fresh] == [30] * 4 and torch.cat(here.fresh).equal(data.train)
    for measure, f in ((sliced_wasserstein, "sliced_wasserstein"), (energy_distance, "energy_distance")):
        assert here.measures[f](data.train[:30]) == pytest.approx(measure(data.train[:30], data.held_out))


def test_a_network_of_labelled_images():
    """Images with labels are measured in the features of a classifier besides; sets of real ones are at most 359."""
    data = Digits().load()
    here = trained_subject(network(data), data)
    assert list(here.measures) == ["frechet", "sliced_wasserstein", "energy_distance"]
    assert here.n == min(len(data.held_out), 359) and len(here.x_0) == 1000
    real, noise = (here.measures["frechet"](x) for x in (here.fresh[0], torch.randn_like(here.fresh[0])))
    assert 0 < real < noise


@pytest.mark.parametrize(("n", "said"), [(121, "n must be at most 120"), (1, "n must be a whole number >= 2")])
def test_as_many_samples_as_there_are(n, said):
    """No set of real samples is larger than the data."""
    data = Ring(n=150).load()
    with pytest.raises(ValueError, match=f"^{said}"):
        trained_subject(network(data), data, n=n)
