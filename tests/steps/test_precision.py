"""Half precision is the state's alone: times, coefficients, norms and clocks are float32 or better, and a result is
rounded once. Integers are refused by name.
"""

import pytest
import torch

from scoresde import (
    EDM,
    NCSN,
    SNR,
    VE,
    VP,
    Ancestral,
    Chain,
    Cosine,
    Langevin,
    RectifiedFlow,
    ScoreModel,
    SubVP,
    Tabulated,
    exact,
    grid,
    iid,
)
from scoresde.loss import dsm, ssm
from scoresde.model import Steps, clamped
from scoresde.nn import MLP, UNet
from scoresde.process import TabulatedVE, geometric_sigmas, linear_betas
from scoresde.steps import MALA, LearnedVariance

F64 = torch.float64
SDES = [
    VP(), SubVP(), VE(0.01, 378.0), Cosine(), RectifiedFlow(), EDM(), Tabulated(linear_betas()),
    TabulatedVE(geometric_sigmas(20, 0.01, 378.0)),
]  # fmt: skip
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
every_half = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
LAW = exact.Gaussian(torch.zeros(16), torch.full((16,), 0.25))
FUNCTIONS = ["log_alpha", "var", "alpha", "sigma", "log_snr", "f", "g2", "diffusion"]


def draws(seed=0):
    return iid(torch.Generator().manual_seed(seed))


def times_of(sde, half):
    """Times of that precision between knots, from 0.07 T to 0.93 T, and where tables begin."""
    return (sde.T * torch.tensor([0.0071, 0.0703, 0.311, 0.6213, 0.9307], dtype=F64)).to(half)


@every_half
@every_sde
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_half_times(sde, half, name):
    """A function of time has the value at the (rounded) time that float64 gives, to float32 rounding."""
    t = times_of(sde, half)
    want = getattr(sde, name)(t.double())
    for got in (getattr(sde, name)(t), torch.stack([getattr(sde, name)(u) for u in t])):
        assert got.dtype.itemsize >= 4
        torch.testing.assert_close(got.double(), want, rtol=5e-5, atol=1e-6)


@every_half
@every_sde
def test_transitions_and_inverses_of_half_times(sde, half):
    """So have a transition and the inverse of log-SNR."""
    t = times_of(sde, half)
    for got, want in zip(sde.transition(t[1:], t[:-1]), sde.transition(t[1:].double(), t[:-1].double()), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-6)
    lam = torch.linspace(-1.0, 1.0, 5, dtype=half)
    torch.testing.assert_close(sde.time(lam).double(), sde.time(lam.double()), rtol=1e-4, atol=1e-6)


@every_half
@every_sde
@pytest.mark.parametrize("rows", [False, True])
def test_half_states_are_rounded_once(sde, half, rows):
    """What is made of a state of half precision is what is made of it in float32, rounded: at the noisiest time too,
    where sigma^2 = 142884 is no number of float16 and what it multiplies is.
    """
    t = torch.tensor([sde.T, sde.T / 2, sde.T / 4, sde.T / 8], dtype=F64) if rows else torch.tensor(sde.T, dtype=F64)
    p = sde.reverse(LAW.diffuse(sde))
    x = sde.perturb(LAW.sample(4, torch.Generator().manual_seed(1)), t, draws())[0].to(half)
    w = x.float()
    model = ScoreModel(MLP((16,), 8, 1), sde)
    for f in (
        lambda x: sde.perturb(x, t, draws())[0],
        lambda x: sde.perturb(x, t, draws())[1],
        lambda x: sde.drift(x, t),
        lambda x: p.ask(x, t),
        lambda x: p.eps(x, t),
        lambda x: p.denoise(x, t),
        lambda x: clamped(p.score, sde)(x, t),
        lambda x: model.eps(x, t),
        lambda x: model(x, t),
    ):
        got = f(x)
        assert got.dtype == half and got.isfinite().all() and torch.equal(got, f(w).to(half))
    assert torch.equal(sde.log_prior(x), sde.log_prior(w))


@every_half
def test_the_prior_of_half_precision_is_drawn_in_float32(half):
    """So that one stream serves the prior and the steps after it."""
    ve = VE(0.01, 378.0)
    assert torch.equal(ve.prior((4, 16), draws(), half), ve.prior((4, 16), draws(), torch.float32).to(half))


@every_half
def test_chains_of_half_states(half):
    """The Gaussians of a chain have the means of float32, rounded."""
    chain = Chain(VE(0.01, 378.0), grid.uniform(VE(0.01, 378.0), 10))
    x, y, i = 200 * torch.randn(3, 4).to(half), torch.randn(3, 4).to(half), torch.tensor([1, 5, 10])
    for f in (lambda x, y: chain.step(x, i), lambda x, y: chain.marginal(x, i), lambda x, y: chain.posterior(x, y, i)):
        assert torch.equal(f(x, y)[0], f(x.float(), y.float())[0].to(half))


@every_half
def test_correctors_of_half_states(half):
    """A corrector moves a state of half precision as it moves one of float32: norms and steps do not overflow."""
    ve, t = VE(0.01, 50.0), torch.tensor(0.0, dtype=F64)
    x = torch.full((4, 64), 0.01, dtype=half)
    p = ve.reverse(exact.Gaussian(torch.zeros(64), torch.full((64,), 1e-8)).diffuse(ve))
    for step in (Langevin(SNR(0.16), 20), Langevin(NCSN(2e-5, 0.01), 5), MALA(NCSN(2e-5, 0.01), 5)):
        y = step(p, x, t, t, draws())
        assert y.dtype == half and torch.equal(y, step(p, x.float(), t, t, draws()).to(half))
        assert float((y - x).float().abs().mean()) > 1e-3


@every_half
def test_learned_variances_of_half_states(half):
    """A step whose variance a network says rounds once, and is `Ancestral` where the network says so."""
    ve = VE(0.01, 378.0)
    p, x = ve.reverse(LAW.diffuse(ve)), ve.prior((4, 16), draws(), half)
    step, (t, s) = LearnedVariance(lambda x, t: (p.ask(x, t), torch.zeros_like(x))), torch.tensor([1.0, 0.9], dtype=F64)
    y = step(p, x, t, s, draws())
    assert torch.equal(y, step(p, x.float(), t, s, draws()).to(half))
    torch.testing.assert_close(y.float(), Ancestral()(p, x.float(), t, s, draws()), rtol=0.01, atol=0.1)


@every_half
def test_losses_of_half_data(half):
    """dsm and ssm are computed in float32: E |eps - z|^2 is what it is for the same data in float32."""
    ve = VE(0.01, 378.0)
    x, t = LAW.sample(8, torch.Generator().manual_seed(0)).to(half), torch.full((8,), 0.9, dtype=F64)
    model = ScoreModel(MLP((16,), 8, 1), ve)
    for f in (lambda x: dsm(model, x, t, noise=draws()), lambda x: ssm(LAW.diffuse(ve), x, t, draws())):
        assert f(x).dtype == torch.float32 and torch.equal(f(x), f(x.float()))


class Told(torch.nn.Module):
    """A network that remembers its clock."""

    def __init__(self, dtype):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, x, c):
        self.seen = c
        return self.w * x


@every_half
def test_a_half_network_tells_all_steps_apart(half):
    """It is told a thousand steps as a network of float32 is: (N) t - 1 at t = i/N."""
    model = ScoreModel(Told(half), Tabulated(linear_betas()), clock=Steps(1001, shift=-1.0))
    model(torch.zeros(1000, 2), torch.arange(1, 1001, dtype=F64) / 1000)
    torch.testing.assert_close(model.net.seen, torch.arange(1000.0), rtol=0, atol=1e-3)


@every_half
@pytest.mark.parametrize("net", [MLP((4,), 8, 1), UNet((1, 4, 4), 8, fourier=(6.0, 50.0))], ids=["MLP", "UNet"])
def test_features_of_half_networks(net, half):
    """A network keeps its frequencies in whatever type its weights are turned to: its embedding of the clock, of 80
    radians, is that of the same weights in float32, to the precision of the weights.
    """
    c = torch.linspace(-10.0, 10.0, 9)
    narrow = net.to(half)
    seen = []
    narrow.embed.level.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    narrow.embed(c, None)
    w = torch.logspace(-4, 3, 16, 2.0, dtype=F64)
    phase = c.double()[:, None] * w
    torch.testing.assert_close(
        seen[0].double(), torch.cat([phase.cos(), phase.sin()], 1), rtol=0, atol=float(torch.finfo(half).eps)
    )


WHOLE = torch.randint(0, 256, (4, 16), dtype=torch.uint8)


@pytest.mark.parametrize("x", [WHOLE, WHOLE.long(), WHOLE > 9, torch.complex(WHOLE.float(), WHOLE.float())], ids=str)
def test_states_of_whole_numbers_are_refused(x):
    """By name: alpha and sigma would be cast to them, and be 0. So is noise that is to be like them."""
    sde, t = VP(), torch.full((4,), 0.5, dtype=F64)
    p, model, chain = (
        sde.reverse(LAW.diffuse(sde)),
        ScoreModel(MLP((16,), 8, 1), sde),
        Chain(VP(), grid.uniform(VP(), 5)),
    )
    calls = {
        "x_0": [lambda: sde.perturb(x, t), lambda: dsm(model, x, t), lambda: chain.marginal(x, 1)],
        "x_t": [lambda: ssm(model, x, t)],
        "dtype": [lambda: sde.prior((4, 16), iid(), x.dtype)],
        "x": [
            lambda: p.ask(x, t),
            lambda: p.eps(x, t),
            lambda: p.denoise(x, t),
            lambda: p.drift(x, t),
            lambda: sde.drift(x, t),
            lambda: sde.log_prior(x),
            lambda: model.eps(x, t),
            lambda: model(x, t),
            lambda: chain.step(x, 1),
            lambda: clamped(model, sde)(x, t),
            lambda: iid()(x, t, t),
            lambda: Langevin()(p, x, t[0], t[0], iid()),
        ],
    }
    for name, call in ((name, call) for name, every in calls.items() for call in every):
        with pytest.raises(ValueError, match=f"^{name} must be a tensor of floating-point numbers, got torch"):
            call()
