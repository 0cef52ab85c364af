"""The adapters of `benchmarks/peers` pose the same problem to other libraries as to ours.

Each law runs over all peers of one package, and is skipped, with the reason, where that package is not installed.
"""

import sys

import pytest
import torch
from made import benchmark

from scoresde import VP, Ancestral, Counted, Flow, RectifiedFlow, SubVP, exact, iid, ode, sample
from scoresde.lab.problems import Modes

PACKAGES = ("diffusers", "k-diffusion", "azula", "torchdiffeq", "flow_matching", "torchsde")


@pytest.fixture(scope="module")
def module():
    """The adapters."""
    with benchmark("peers") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def known(module):
    """The peers by name, and why others are not here."""
    found, missing = module.peers()
    assert len({p.name for p in found}) == len(found)
    return {p.name: p for p in found}, missing


def of(known, package):
    found, missing = known
    if package in missing:
        pytest.skip(f"{package}: {missing[package]}")
    return [p for p in found.values() if p.package == package]


def ring(sde, n):
    """The exact score of the 8-mode ring, and n starts."""
    return Modes().law().diffuse(sde), sde.prior((n, 2), iid(torch.Generator().manual_seed(1)), torch.float64)


def tight(sde, score, x):
    """The end of the flow, to 1e-10."""
    ts = torch.tensor([sde.T, sde.t_min], dtype=torch.float64)
    return sample(sde.reverse(score, 0.0), x, ts, Flow(ode.Dopri5(1e-10, 1e-10)))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_budget_is_spent_to_the_last_whole_step(known, package):
    """Of 9 calls, all, or as many as steps of several calls divide; less than one step is an error."""
    sde = VP()
    score, x = ring(sde, 4)
    for p in of(known, package):
        stages, extra = getattr(p.solve, "stages", 1), getattr(p.solve, "extra", 0)
        counted = Counted(score)
        end = p.solve(sde, counted, x, 9)
        assert counted.nfe == 9 - (9 - extra) % stages, p.name
        assert end.shape == x.shape and end.dtype == x.dtype and end.isfinite().all(), p.name
        with pytest.raises(ValueError, match="network calls"):
            p.solve(sde, score, x, extra + stages - 1)


@pytest.mark.parametrize(("sde", "float32"), [(VP(), 2e-5), (RectifiedFlow(), 2e-4)], ids=["VP", "RectifiedFlow"])
@pytest.mark.parametrize("package", ["diffusers", "k-diffusion", "azula", "flow_matching"])
def test_first_order_is_ddim(module, known, package, sde, float32):
    """On one grid the first-order solvers of the flow are all `Ancestral` at eta=0, Euler's method on the straight path
    too, to the last digits; diffusers' to those of float32, which its table of betas amplifies at both ends.
    """
    score, x = ring(sde, 32)
    q, first = sde.reverse(score, 0.0), [p for p in of(known, package) if p.order == 1 and not p.eta]
    assert len(first) >= len(module.GRIDS)
    for p in first:
        ours = sample(q, x, module.GRIDS[p.name.split(", ")[1]](sde, 8), Ancestral())
        assert (p.solve(sde, score, x, 8) - ours).abs().max() < (float32 if package == "diffusers" else 1e-11), p.name


def test_torchdiffeq_takes_one_step_an_interval(module, known):
    """Its Runge-Kutta methods in t are ours."""
    of(known, "torchdiffeq")
    sde = VP()
    score, x = ring(sde, 16)
    for name, method, calls in (("euler", ode.Euler(), 8), ("heun2", ode.Heun(), 16)):
        for at, nodes in module.GRIDS.items():
            ours = sample(sde.reverse(score, 0.0), x, nodes(sde, 8), Flow(method))
            theirs = known[0][f"torchdiffeq {name} in t, {at}"].solve(sde, score, x, calls)
            assert (theirs - ours).abs().max() < 1e-11, (name, at)


SAME = [
    ("diffusers dpmsolver++ 2 full", "k-diffusion dpmpp_2m"),
    ("diffusers dpmsolver++ 3 full", "k-diffusion dpmpp_3m_sde eta 0"),
    ("diffusers EDM dpmsolver++ 2", "k-diffusion dpmpp_2m"),
    ("diffusers Heun", "k-diffusion heun"),
    ("diffusers LMS 4", "k-diffusion lms"),
    ("diffusers DEIS 3 full", "azula zEAB 3"),
    ("k-diffusion heun", "azula Heun"),
]


@pytest.mark.parametrize("at", ["karras", "log-SNR"])
@pytest.mark.parametrize("pair", SAME, ids=[f"{a}, {b}" for a, b in SAME])
def test_one_method_in_two_libraries_is_one(known, pair, at):
    """Where two libraries hold the same method, the adapters of both lead to the same samples."""
    found, missing = known
    for name in pair:
        of(known, name.split()[0])
    sde = VP()
    score, x = ring(sde, 32)
    one, other = (found[f"{name}, {at}"].solve(sde, score, x, 20) for name in pair)
    assert (one - other).abs().max() < 3e-5


@pytest.mark.parametrize("at", ["karras", "log-SNR"])
def test_flags_spend_a_call_on_nothing(known, at):
    """A scheduler's own karras and lu grids name t_min twice: with a call more they are the same grid in the table."""
    of(known, "diffusers")
    sde = VP()
    score, x = ring(sde, 32)
    shipped = known[0][f"diffusers dpmsolver++ 2 as shipped, {at}"].solve(sde, score, x, 21)
    assert (shipped - known[0][f"diffusers dpmsolver++ 2, {at}"].solve(sde, score, x, 20)).abs().max() < 3e-5


@pytest.mark.slow
@pytest.mark.parametrize("package", [p for p in PACKAGES if p != "torchsde"])
def test_the_flow_is_solved(known, package):
    """Four times the calls bring every solver nearer to the end of the flow, and to within a mode's width of it."""
    sde = VP()
    score, x = ring(sde, 24)
    end = tight(sde, score, x)
    for p in of(known, package):
        if p.eta or p.name == "diffusers dpmsolver++ 3, uniform":  # which lowers its order at the end of 10, not of 40
            continue
        few, many = ((p.solve(sde, score, x, n) - end).square().mean(1).sqrt().median() for n in (10, 40))
        assert many < few and (many < 0.05 or p.name.endswith("uniform")), p.name


@pytest.mark.parametrize("package", [p for p in PACKAGES if p not in ("torchdiffeq", "flow_matching")])
def test_noise_keeps_the_law(known, package):
    """What draws noise draws it from torch's seed, and carries a Gaussian to a Gaussian of the right mean, and of the
    right variance as well as 60 calls allow.
    """
    noisy = [p for p in of(known, package) if p.eta and p.name.endswith(("quadratic", "log-SNR", "in t"))]
    assert noisy
    sde, law = VP(), exact.Gaussian(torch.tensor([1.0, -0.5], dtype=torch.float64), 0.25)
    score, x = law.diffuse(sde), sde.prior((500, 2), iid(torch.Generator().manual_seed(1)), torch.float64)
    target = law.marginal(sde, sde.t_min)
    for p in noisy:
        torch.manual_seed(3)
        end = p.solve(sde, score, x, 60)
        off = (end - target.means).mean(0) / (end.var(0) / len(x)).sqrt()
        assert off.abs().max() < 4.5, p.name
        assert 0.8 < float(end.var(0).mean() / target.diagonal.mean()) < 1.2, p.name
    torch.manual_seed(3)
    assert torch.equal(noisy[-1].solve(sde, score, x, 60), end)


def test_a_tolerance_bounds_the_error(module):
    """A tolerance of 1e-4 costs more calls than one of 1e-2, and leaves an error below that, and below 1e-2."""
    found, missing = module.adaptive()
    if not found:
        pytest.skip(f"no adaptive solver: {missing}")
    sde = VP()
    score, x = ring(sde, 16)
    end = tight(sde, score, x)
    for a in found:
        errors, calls = [], []
        for tolerance in (1e-2, 1e-4):
            counted = Counted(score)
            errors.append((a.solve(sde, counted, x, tolerance) - end).square().mean().sqrt())
            calls.append(counted.nfe)
        assert errors[1] < min(1e-2, errors[0]) and calls[0] < calls[1], a.name


def test_a_missing_package_is_named(module, monkeypatch):
    """The reason stands in place of the peers."""
    monkeypatch.setitem(sys.modules, "azula", None)
    found, missing = module.peers()
    assert "azula" in missing["azula"] and not [p for p in found if p.package == "azula"]


def test_a_table_that_float32_cannot_hold_is_refused(known):
    """SubVP has sigma/alpha = 1e-4 at t_min, whose square is lost in 1 - beta."""
    of(known, "diffusers")
    sde = SubVP()
    with pytest.raises(ValueError, match="float32"):
        known[0]["diffusers DDIM, karras"].solve(sde, *ring(sde, 2), 10)
