"""Methods for inverse problems are measured against posteriors that are what is said of them."""

import math

import pytest
import torch

from scoresde import VE, VP, exact
from scoresde.inverse import Mask, Observation, pigdm
from scoresde.lab.posteriors import (
    EXACT,
    METHODS,
    TASKS,
    Asked,
    Task,
    inverse_rows,
    of_score,
    one_of_four,
    posterior_distances,
    score_error,
    truth_of,
)
from scoresde.reference import Reference

F64 = torch.float64
GAUSSIAN = exact.GaussianMixture(torch.ones(1), torch.tensor([[0.3, -0.5]]), torch.tensor([0.49]))
HALF = Task(GAUSSIAN, Observation(Mask(torch.tensor([True, False])), torch.tensor([0.8], dtype=F64), 0.3))


def asked(task, sde):
    return Asked(sde, task.law.diffuse(sde), task, Reference(torch.tensor([0.3, -0.5]), 0.7), None, None, 0)


@pytest.mark.parametrize("name", TASKS)
def test_truth(name):
    """Samples that stand for a posterior have its mean and deviations, and those of a linear task its weights."""
    n, truth = 4000, truth_of(TASKS[name](), 4000, 1)
    for x in truth.samples:
        off = (x.mean(0) - truth.mean) / truth.std * n**0.5
        assert off.abs().max() < 4.5
        assert ((x.std(0) / truth.std).log().abs() * n**0.5).max() < 6
        found = posterior_distances(x, truth)
        assert abs(found["covered"] - 0.9) < 0.01 and found["weights"] < 0.02


def test_truth_of_a_length():
    """Draws by weights know E|x|^2 given that it is measured: the posterior of u = |x|^2 is p(u) N(y; u, std^2), and
    log p(y) its normaliser, here by a histogram of two million draws.
    """
    task = TASKS["length-of-four"]()
    u = task.law.sample(2_000_000, torch.Generator().manual_seed(0)).square().sum(1)
    log_w = -((2.0 - u) ** 2) / (2 * 0.2**2) - math.log(0.2 * math.sqrt(2 * math.pi))
    truth = truth_of(task, 2000, 3)
    assert abs(float(log_w.logsumexp(0)) - math.log(len(u)) - truth.log_evidence) < 0.02
    x = truth.samples[0]
    assert abs(float(x.square().sum(1).mean()) - float((log_w.softmax(0) * u).sum())) < 0.03


def test_distances():
    """A shift by delta is delta over the deviation in the mean and nothing in std; a stretch about the mean the
    reverse; one mode alone is off by the weight of the other.
    """
    truth = truth_of(one_of_four(), 4000, 1)
    x, delta = truth.samples[0], torch.tensor([0.1, -0.2, 0.3, 0.0], dtype=F64)
    base, moved = (posterior_distances(y, truth) for y in (x, x + delta))
    want = ((x.mean(0) + delta - truth.mean) / truth.std).square().mean().sqrt()
    assert abs(moved["mean"] - float(want)) < 1e-12 and abs(moved["std"] - base["std"]) < 1e-12
    wide = posterior_distances(truth.mean + 2 * (x - truth.mean), truth)
    want = (2 * x.std(0) / truth.std).log().square().mean().sqrt()
    assert abs(wide["std"] - float(want)) < 1e-12 and wide["covered"] > 0.98 and wide["w2"] > 5
    one = exact.GaussianMixture.from_covariances(torch.ones(1), truth.law.means[:1], truth.law.covariances[:1]).sample(
        4000, torch.Generator().manual_seed(0)
    )
    assert abs(posterior_distances(one, truth)["weights"] - float(truth.law.weights[1])) < 0.05


@pytest.mark.parametrize("sde", [VP(), VE(0.01, 20.0)], ids=["vp", "ve"])
def test_score_error(sde):
    """0 for the exact score, and for pseudo-inverse guidance of one round Gaussian; 1 for a score that forgets y; and a
    part of the way between the two is that part.
    """
    a, truth = asked(HALF, sde), truth_of(HALF, 500, 1)
    right = truth.law.diffuse(sde)
    assert score_error(right, a, truth) == 0
    assert score_error(pigdm(a.score, HALF.seen, a.around), a, truth) < 1e-6
    assert abs(score_error(a.score, a, truth) - 1) < 1e-12
    part = lambda x, t: 0.25 * a.score(x, t) + 0.75 * right(x, t)  # noqa: E731
    assert abs(score_error(part, a, truth) - 0.25) < 1e-12


def test_rows():
    """The exact score errs by its steps alone, which more of them mend, and the bias of `ddnm`, which forgets the noise
    of y, they do not; calls are those that were made; particles tell log p(y) within their error.
    """
    few, many = ({r["method"]: r for r in inverse_rows(one_of_four(), VP(), 1000, k)} for k in (8, 100))
    assert few[EXACT]["w2"] > 2 * many[EXACT]["w2"] and many[EXACT]["w2"] < 2
    assert many["ddnm"]["w2"] > 2.5 and few["ddnm"]["score"] == many["ddnm"]["score"] > 0.1
    assert {name: row["calls"] for name, row in many.items()} == {
        **dict.fromkeys(METHODS, 100), "RePaint": 5 * 99 + 5, "DAPS, 5 calls": 500, "twisted": 100, "mcgdiff": 100,
    }  # fmt: skip
    for name in ("twisted", "mcgdiff"):
        off = {k: rows[name]["log_evidence"] - rows[name]["true"] for k, rows in ((8, few), (100, many))}
        assert abs(off[100]) < 3 * many[name]["error"] + 0.05 and abs(off[8]) > 0.15
    assert "score" not in many["DPS"] and many[EXACT]["score"] == 0


def test_rows_are_of_their_own_method():
    """The same, to the last digit, beside others or alone, by name or one's own."""
    task, of = one_of_four(), {"mine": of_score(lambda score, seen: pigdm(score, seen, Reference(0.0, 0.7)))}
    both = list(inverse_rows(task, VP(), 50, 10, 0, {"pigdm": METHODS["pigdm"], "ddnm": METHODS["ddnm"], **of}))
    (alone,) = inverse_rows(task, VP(), 50, 10, 0, {"ddnm": METHODS["ddnm"]})
    assert {**both[1], "seconds": 0} == {**alone, "seconds": 0}
    (again,) = inverse_rows(task, VP(), 50, 10, 0, of)
    assert {**both[2], "seconds": 0} == {**again, "seconds": 0} and again["w2"] != both[0]["w2"]
    (other,) = inverse_rows(task, VP(), 50, 10, 1, {"ddnm": METHODS["ddnm"]})
    assert other["w2"] != alone["w2"]


def test_what_a_method_refuses():
    """It is a row that says why, and so is what does not end in numbers."""
    rows = {r["method"]: r for r in inverse_rows(TASKS["length-of-four"](), VP(), 50, 10)}
    assert {"DPS", "DAPS", "DAPS, 5 calls"} == {name for name, row in rows.items() if "skipped" not in row}
    assert all("linear" in row["skipped"] or "Mask" in row["skipped"] for row in rows.values() if "skipped" in row)
    wild = {"wild": of_score(lambda score, seen: lambda x, t: torch.full_like(x, float("nan")))}
    (row,) = inverse_rows(one_of_four(), VP(), 50, 10, 0, wild)
    assert "finite" in row["skipped"]
    with pytest.raises(ValueError, match="truth must have a closed form"):
        length = TASKS["length-of-four"]()
        score_error(length.law.diffuse(VP()), asked(length, VP()), truth_of(length, 50, 1))
    for bad, says in (({"n": 1}, "n must"), ({"steps": 0}, "steps must")):
        with pytest.raises(ValueError, match=says):
            list(inverse_rows(one_of_four(), VP(), **bad))
