"""`Target`: likelihoods as rows, and what they come to."""

import math

import pytest
import torch

from scoresde import VP, Quadrature, Quantized, Reference, exact, log_prob, per_sample
from scoresde.lab import Target
from scoresde.likelihood import Adams, Exact, Hutchinson, Uniform
from scoresde.noise import seeds

F64 = torch.float64
SDE, GREY = VP(), Quantized(9, -1.0, 1.0)
LAW = exact.GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-0.5] * 3, [0.4] * 3]), torch.tensor([0.1, 0.2]))
X = LAW.sample(7, torch.Generator().manual_seed(0))
AROUND = Reference.fit(LAW.sample(500, torch.Generator().manual_seed(1)))
HOW = Quadrature(Adams(20), Hutchinson(2))


def continuous(**more):
    return Target("law", SDE, LAW.diffuse(SDE), X, AROUND, None, HOW, LAW, terms=3, chain=20, **more)


def discrete(draws=1):
    x = ((X + 1) * 4).round().clamp(0, 8) / 4 - 1
    how = Quadrature(Adams(20), Exact()) if draws > 1 else HOW
    return Target("grey", SDE, LAW.diffuse(SDE), x, AROUND, Uniform(GREY, draws), how, terms=3, chain=20)


@pytest.mark.parametrize("target", [continuous(), discrete(), discrete(2)], ids=["continuous", "discrete", "draws"])
def test_rows_are_their_samples_own(target):
    """Whatever stands beside it in a batch, and in whatever order."""
    whole = target.rows(range(7), 5)
    parts = [*target.rows([6, 2], 5), *target.rows([0], 5), *target.rows([5, 1, 3, 4], 5)]
    assert [row["index"] for row in whole] == list(range(7))
    for row in parts:
        want = whole[row["index"]]
        assert row.keys() == want.keys()
        for k, v in row.items():
            assert v == pytest.approx(want[k], rel=1e-9, abs=1e-12), k
    other = target.rows([0], 6)[0]
    assert other["continuous_bound"] != whole[0]["continuous_bound"]


@pytest.mark.parametrize("target", [continuous(), discrete()], ids=["continuous", "discrete"])
def test_rows_are_log_prob(target):
    """The first columns are those of `log_prob` with the same streams, in the unit of the row."""
    rows, p = target.rows(range(7), 3), SDE.reverse(LAW.diffuse(SDE))
    found = log_prob(p, target.x, target.discrete, around=AROUND, how=HOW, noise=per_sample(seeds(3, 7)))
    per = 3 * (math.log(2) if target.discrete else 1)
    assert target.per == per and target.key == ("bits_per_dim" if target.discrete else "nats_per_dim")
    for i, row in enumerate(rows):
        assert row["log_p"] == float(found.log_p[i]) == pytest.approx(-per * row[target.key], rel=1e-12)
        assert row["solver_error"] == pytest.approx(float(found.solver_error[i]) / per)
        assert (row["nfe"], row["products"]) == (found.nfe, found.products)


def test_the_truth():
    """That of an exact law is its density at t_min; the flow's differs by what its own errors say, the bounds lie above
    in the mean.
    """
    target, end = continuous(), LAW.marginal(SDE, SDE.t_min)
    rows = target.rows(range(7), 0)
    for x, row in zip(X, rows, strict=True):
        assert row["truth"] == pytest.approx(-float(end.log_prob(x[None])) / 3, rel=1e-12)
        assert abs(row["nats_per_dim"] - row["truth"]) < 6 * row["probe_error"] + row["solver_error"]
    many = Target("law", SDE, LAW.diffuse(SDE), LAW.sample(400), AROUND, None, HOW, LAW, 4, 200).rows(range(400), 0)
    for bound in ("continuous_bound", "discrete_bound"):
        over = torch.tensor([row[bound] - row["truth"] for row in many])
        assert float(over.mean()) > -4 * float(over.std()) / 20


def test_summary():
    """Means and their standard errors, of the quantities that there are; errors add up as errors of a mean do."""
    target = continuous()
    rows = target.rows(range(7), 0)
    said = target.summary(rows)
    columns = ("nats_per_dim", "truth", "continuous_bound", "discrete_bound")
    assert (said["unit"], said["samples"], len(said["table"])) == ("nats/dim", 7, 4)
    for row, column in zip(said["table"], columns, strict=True):
        values = torch.tensor([r[column] for r in rows], dtype=F64)
        assert row["mean"] == pytest.approx(float(values.mean()), rel=1e-12)
        assert row["standard_error"] == pytest.approx(float(values.std()) / math.sqrt(7), rel=1e-12)
    errors = said["errors_of_the_first"]
    found = log_prob(SDE.reverse(LAW.diffuse(SDE)), X, around=AROUND, how=HOW, noise=per_sample(seeds(0, 7)))
    assert errors == pytest.approx({k: found.budget[k] for k in errors}, rel=1e-9)
    assert math.isnan(target.summary(rows[:1])["table"][0]["standard_error"])
    alone = Target("law", SDE, LAW.diffuse(SDE), X, AROUND, None, HOW, terms=0)
    assert len(alone.summary(alone.rows([0, 1], 0))["table"]) == 1
