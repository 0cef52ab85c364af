"""Samplers on a line: rows are the law's own numbers, with the calls that were made."""

import math

import pytest
import torch

from scoresde import VE, VP, Karras, Reference, ScoreModel, grid, iid, sample
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.lab import SPREAD, density_paths, error_budget, exact_rows, law_of, tabulated
from scoresde.lab.exactly import LINE
from scoresde.nn import MLP
from scoresde.ode import Heun
from scoresde.steps import METHODS, Ancestral, Flow
from scoresde.steps.catalogue import own

NAMES = ("DDPM, fixed-small", "DDIM", "Annealed Langevin", "SASolver(3, 4), eta 1")


def test_rows_are_those_of_the_law():
    """KL, total variation and Wasserstein-2 to the law of x_t at t_min; annealed Langevin makes 20 of 24 calls, and
    says so; what has no chain of kernels says why.
    """
    sde = VP()
    rows = list(exact_rows(sde, [(METHODS[name], 24) for name in NAMES]))
    assert [row["method"] for row in rows] == list(NAMES)
    assert [row.get("nfe") for row in rows] == [24, 24, 20, None]
    assert "remembers earlier states" in rows[3]["skipped"]
    ts = grid.log_snr(sde, 24)
    found = law_of(sde.reverse(LINE.diffuse(sde)), ts, Ancestral())
    truth = LINE.marginal(sde, ts[-1])
    for key, value in found.distances(truth).items():
        assert rows[0][key] == pytest.approx(value, rel=1e-9)
    assert rows[0]["error"] == pytest.approx(found.errors(truth), abs=1e-12)
    (short,) = exact_rows(sde, [(METHODS["Annealed Langevin"], 3)])
    assert "needs at least" in short["skipped"]
    with pytest.raises(ValueError, match="spacing must be one of"):
        list(exact_rows(sde, [], "linear"))


def test_rates_in_more_dimensions():
    """Gaussian data, in closed form: divergence falls with the square of the step, Wasserstein-2 with the step; under
    Metropolis' correction there is no Gaussian.
    """
    sde, names = VP(), ("DDPM, fixed-small", "ReverseDiffusion", "EulerMaruyama")
    rows = list(exact_rows(sde, [(METHODS[name], k) for name in names for k in (200, 400)], law=SPREAD))
    for half, whole in zip(rows[::2], rows[1::2]):
        assert half["kl"] / whole["kl"] == pytest.approx(4, rel=0.05)
        assert half["wasserstein2"] / whole["wasserstein2"] == pytest.approx(2, rel=0.1)
        assert set(half["error"].values()) == {0.0} and half["nfe"] == 200
    (adjusted,) = exact_rows(sde, [(METHODS["Predictor-corrector, MALA"], 12)], law=SPREAD)
    assert "accepts by what it draws" in adjusted["skipped"]


def test_metropolis_on_a_line():
    """Corrected by the scores alone, predictor-corrector sampling with as many calls comes several times closer."""
    names = ("Predictor-corrector, MALA", "Predictor-corrector")
    adjusted, plain = exact_rows(VP(), [(METHODS[name], 50) for name in names])
    assert adjusted["nfe"] == 48 and adjusted["kl"] < plain["kl"] / 3


def test_a_step_of_ones_own():
    """Stands in the table as those of the library do."""
    mine = own("mine", Ancestral(0.3), 1.0)
    ((ours,), (theirs,)) = ([*exact_rows(VP(), [(m, 12)])] for m in (mine, METHODS["DDPM, fixed-small"]))
    assert 0 < ours["kl"] != theirs["kl"] and ours["nfe"] == 12


def test_paths_of_densities_end_where_the_law_does():
    """From the prior, through as many levels as the sampler has, to the law that `law_of` tells; the forward process is
    the exact marginals, and samples on the way have the density.
    """
    sde, n = VE(0.05, 4.0), 20_000
    methods = [METHODS[name] for name in (*NAMES[:2], "Predictor-corrector", NAMES[3])]
    (first, forward), *others = density_paths(sde, methods, 12)
    assert first == "forward process" and len(forward) == 13
    assert [name for name, _ in others] == [*NAMES[:2], "Predictor-corrector"]
    for t, law in forward:
        assert max(law.distances(LINE.marginal(sde, t)).values()) < 1e-4
    ts, path = grid.log_snr(sde, 12), others[0][1]
    assert [t for t, _ in path] == pytest.approx(ts.tolist())
    noise = iid(torch.Generator().manual_seed(0))
    p = sde.reverse(LINE.diffuse(sde))
    x = sample(p, sde.prior((n, 1), noise, torch.float64), ts[:7], Ancestral(), noise=noise)[:, 0].sort()[0]
    off = (path[6][1].cdf(x) - torch.arange(n) / n).abs().max()
    assert float(off) * math.sqrt(n) < 1.95


def test_the_error_budget_switches_one_thing_at_a_time():
    """From the true law of x_T with many steps only the stop is left; a prior that is wrong shows as that alone, and on
    the flow as KL(p_T || prior), which a map keeps; a score that is wrong by a factor shows as that alone.
    """
    sde = VP(beta_max=12.0)
    ts, score = grid.log_snr(sde, 80), LINE.diffuse(sde)
    found = error_budget(LINE, sde.reverse(score, 0.0), ts, Flow(Heun()))
    assert set(found) == {"stopping", "discretisation", "prior", "whole"}
    start = LINE.marginal(sde, 1.0)
    mismatch = tabulated(Gaussian(torch.zeros(1), float(sde.var(torch.tensor(1.0))))).distances(start)["kl"]
    assert found["prior"]["kl"] == pytest.approx(mismatch, rel=1e-4)
    assert found["discretisation"]["kl"] < 1e-4 < found["prior"]["kl"]
    assert found["stopping"]["kl"] == pytest.approx(tabulated(LINE.marginal(sde, ts[-1])).distances(LINE)["kl"])
    off = error_budget(LINE, sde.reverse(lambda x, t: 1.1 * score(x, t)), ts, Ancestral())
    assert off["score"]["kl"] > 10 * off["prior"]["kl"]
    head, *lines = str(off).splitlines()
    assert head.split() == ["kl", "reverse_kl", "total_variation", "wasserstein2"]
    assert [line.split()[0] for line in lines] == ["stopping", "discretisation", "prior", "score", "whole"]
    assert lines[-1].split()[1] == f"{off['whole']['kl']:.3g}"
    exactly = error_budget(LINE, sde.reverse(score), ts, Ancestral())
    for key in ("stopping", "discretisation", "prior"):
        assert off[key] == pytest.approx(exactly[key], rel=1e-9)
    other = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.01], [0.02]]))
    wrong = error_budget(LINE, sde.reverse(other.diffuse(sde)), ts, Ancestral())  # exact, but of another law
    assert wrong["score"]["total_variation"] == pytest.approx(0.2, abs=0.02)
    same = error_budget(LINE, sde.reverse(lambda x, t: score(x, t)), ts, Ancestral())
    assert max(same["score"].values()) < 1e-7 and same["whole"] == pytest.approx(exactly["whole"], rel=1e-9)


def test_the_error_budget_of_a_network():
    """A network in float32 that knows the mean and the deviation of the data and no more; with the last step that
    denoises, nothing is said of stopping.
    """
    sde = VP()
    model = ScoreModel(MLP((1,), width=16, depth=1), sde, Karras(Reference(-0.4, 0.925)))
    found = error_budget(LINE, sde.reverse(model), grid.log_snr(sde, 12), Ancestral(), denoise=True)
    assert set(found) == {"discretisation", "prior", "score", "whole"}
    assert found["score"]["total_variation"] > 0.1 and found["whole"]["total_variation"] > 0.1
