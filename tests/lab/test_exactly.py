"""Samplers on a line: rows are the law's own numbers, with the calls that were made."""

import math

import pytest
import torch

from scoresde import VE, VP, grid, iid, sample
from scoresde.lab import density_paths, exact_rows, law_of
from scoresde.lab.exactly import LINE
from scoresde.steps import METHODS, Ancestral
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
