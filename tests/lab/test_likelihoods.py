"""`Target`: likelihoods as rows, and what they come to."""

import math
import re
from dataclasses import replace

import pytest
import torch

from scoresde import VP, Quadrature, Quantized, Reference, exact, log_prob, per_sample
from scoresde.lab import Target
from scoresde.likelihood import Adams, Exact, Hutchinson, Uniform, prior_mismatch
from scoresde.noise import seeds
from scoresde.ode import Dopri5

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
    exactly = Quadrature(Adams(20), Exact(), prior=LAW.marginal(SDE, SDE.T))
    target, end = replace(continuous(), how=exactly), LAW.marginal(SDE, SDE.t_min)
    rows = target.rows(range(7), 0)
    for x, row in zip(X, rows, strict=True):
        assert row["truth"] == pytest.approx(-float(end.log_prob(x[None])) / 3, rel=1e-12)
        assert abs(row["nats_per_dim"] - row["truth"]) < 2 * row["solver_error"]
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


# samples that fail


def failing(bad, how):
    """The target whose score is not finite for the samples `bad`, at times above 0.2."""
    law, x = LAW.diffuse(SDE), X.clone()
    x[bad, 0] = 20.0 + 5 * torch.arange(len(bad), dtype=F64)

    def score(x, t):
        wrong = (x[:, :1] > 8) & (torch.as_tensor(t).view(-1, 1) > 0.1)
        return torch.where(wrong, torch.full_like(x, math.nan), law(x, t))

    return Target("law", SDE, score, x, AROUND, None, how, LAW, terms=3, chain=20)


@pytest.mark.filterwarnings("ignore:the samples")
@pytest.mark.parametrize("how", [HOW, Quadrature(Dopri5(1e-2, 1e-2), Exact())], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("bad", [[], [3], [0, 6], [2, 3, 4], list(range(7))], ids=str)
def test_one_bad_sample_does_not_end_a_run(bad, how):
    """A sample whose score is not finite has a row that names it by its number in the data, and its time; the others
    have the rows that they have alone, and by the score that has no fault; the summary is of them and counts the rest.
    """
    target, index = failing(bad, how), [5, 3, 0, 1, 6, 2, 4]
    rows, sound = target.rows(index, 5), Target(**{**vars(target), "score": LAW.diffuse(SDE)})
    assert [row["index"] for row in rows] == index
    for row in rows:
        i = row["index"]
        if i in bad:
            assert row.keys() == {"index", "error"}
            assert re.fullmatch(rf"the score of sample {i} is not finite at t = 0\.\d+", row["error"])
            assert row == target.rows([i], 5)[0]
        else:
            want = sound.rows([i], 5)[0]
            assert row.keys() == want.keys()
            assert all(
                row[k] == pytest.approx(want[k], rel=1e-9, abs=1e-12) for k in row if k not in ("nfe", "products")
            )
    said, good = target.summary(rows), [row for row in rows if "error" not in row]
    assert (said["samples"], said["failed"]) == (len(good), len(bad))
    if len(good) > 1:
        assert said["table"] == target.summary(good)["table"]
        keep = torch.tensor([i not in bad for i in range(7)])
        want = prior_mismatch(SDE, target.x[keep], torch.tensor(SDE.t_min)) / 3
        assert said["errors_of_the_first"]["prior"] == pytest.approx(want, rel=1e-9)
    if not good:
        assert said["table"] == [] and all(math.isnan(v) for v in said["errors_of_the_first"].values())


@pytest.mark.filterwarnings("ignore:the samples")
def test_the_work_of_finding_bad_samples_is_bounded():
    """By halves: one that fails among 64 costs less than three times the calls of samples, and all of them at most
    1 + log2(64) times those up to where they fail.
    """
    asked = []

    def score(x, t):
        asked.append(len(x))
        return torch.where(x[:, :1] > 8, torch.full_like(x, math.nan), LAW.diffuse(SDE)(x, t))

    x = X[:1].repeat(64, 1)
    for bad, most in ((slice(0), 1), (slice(40, 41), 3), (slice(None), 7 / 22)):
        y, asked[:] = x.clone(), []
        y[bad] = 20.0
        Target("law", SDE, score, y, AROUND, None, HOW, terms=0).rows(range(64), 0)
        assert sum(asked) <= most * 22 * 64


def test_a_fault_of_all_is_no_sample_s():
    """What does not say which sample it is of ends the run, as it did."""
    target = Target("law", SDE, lambda x, t: torch.zeros(3, 3)[5], X, AROUND)
    with pytest.raises(IndexError):
        target.rows([0, 1], 0)


@pytest.mark.parametrize("index", [[7], [-1], [0, 10**9]])
def test_numbers_of_samples_that_there_are_not(index):
    """They are named; no sample is no row."""
    with pytest.raises(ValueError, match="^index must hold numbers of samples from 0 to 6"):
        continuous().rows(index, 0)
    assert continuous().rows([], 0) == []


def test_bad_targets():
    """Samples that are not finite, and counts that are none, are named where they are said."""
    score = LAW.diffuse(SDE)
    for more, named in (({"x": X * math.nan}, "x"), ({"terms": -1}, "terms"), ({"chain": 1}, "chain")):
        with pytest.raises(ValueError, match=f"^{named} must"):
            Target(**{"name": "law", "sde": SDE, "score": score, "x": X, "around": AROUND, **more})
