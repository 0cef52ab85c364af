"""Samples on their way in, of any type and inside any mode, and the name of one that fails on the way out."""

import copy
import math
import pickle

import pytest
import torch

from scoresde import (
    VE,
    VP,
    Ancestral,
    Chain,
    Counted,
    Quadrature,
    Quantized,
    Reference,
    ScoreModel,
    Settings,
    elbo,
    exact,
    grid,
    iid,
    log_prob,
    per_sample,
    train,
)
from scoresde.data import Moons
from scoresde.likelihood import (
    Adams,
    AsNeeded,
    Decoded,
    Exact,
    Hutchinson,
    RungeKutta,
    TruncatedNormal,
    Uniform,
    continuous_elbo,
    decode,
    encode,
)
from scoresde.likelihood.samples import finite
from scoresde.model import EnergyModel, Karras, Velocity
from scoresde.nn import MLP
from scoresde.noise import seeded
from scoresde.ode import Dopri5, SampleError
from scoresde.process import LinearSDE

F64 = torch.float64
SDE = VP()
LAW = exact.GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-0.5, 0.1], [0.4, 0.6]]), torch.tensor([0.1, 0.2]))
CHAIN = Chain(SDE, grid.quadratic(SDE, 6))
GREY = Quantized(17, -2.0, 2.0)


def samples(n=4):
    """On the levels of GREY, which every precision holds."""
    return (LAW.sample(n, torch.Generator().manual_seed(0)) * 4).round().clamp(-8, 8) / 4


def of(score=None, sde=SDE, chain=CHAIN):
    """Everything that is computed of samples, as functions of x: (n, ...) tensors."""
    p, streams = sde.reverse(score or LAW.diffuse(sde), 0.0), lambda x: per_sample(range(len(x)))
    how = Quadrature(Adams(12), Exact())
    return {
        "log_prob": lambda x: log_prob(p, x, how=how, noise=streams(x)).log_p,
        "adaptive": lambda x: log_prob(p, x, how=Quadrature(Dopri5(1e-3, 1e-3)), noise=streams(x)).log_p,
        "uniform": lambda x: log_prob(p, x, Uniform(GREY), how=how, noise=streams(x)).log_p,
        "truncated": lambda x: log_prob(p, x, TruncatedNormal(GREY), how=how, noise=streams(x)).log_p,
        "decoded": lambda x: log_prob(p, x, Decoded(GREY), how=how, noise=streams(x)).log_p,
        "encode": lambda x: encode(p, x, Adams(12)),
        "decode": lambda x: decode(p, x, RungeKutta(2)),
        "elbo": lambda x: elbo(chain, p.score, x, noise=streams(x)).nats,
        "some terms": lambda x: elbo(chain, p.score, x, GREY, terms=2, noise=streams(x)).nats,
        "continuous_elbo": lambda x: continuous_elbo(p, x, terms=3, noise=streams(x)).nats,
    }


every = pytest.mark.parametrize("name", of())


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(name, dtype):
    """The result is that of the same numbers in float32, bit for bit: also where they are not on a grid."""
    x = samples() if name in ("uniform", "truncated", "decoded", "some terms") else samples() + 0.1
    x = x.to(dtype)
    found = of()[name](x)
    assert torch.equal(found, of()[name](x.float())) and found.dtype in (torch.float32, F64)


def test_half_precision_is_within_the_budget():
    """For Gaussian data in bfloat16 log p is the density of the rounded samples within the errors that are told."""
    law = exact.Gaussian(torch.zeros(2), torch.full((2,), 0.25))
    x = law.sample(16, torch.Generator().manual_seed(1)).to(torch.bfloat16)
    found = log_prob(SDE.reverse(law.diffuse(SDE)), x)
    told = found.budget["solver"] + found.budget["end"]
    assert abs(float((found.log_p.double() - law.log_prob(x.double())).mean())) / 2 < 2 * told + 1e-6


def test_a_network_in_half_precision():
    """Where noise is small the score is large, and so is its Jacobian: of a network in float16, eps = 100 x in float32,
    neither may overflow there.
    """

    class Steep(torch.nn.Linear):
        def forward(self, x, c):
            return super().forward(x)

    def value(dtype):
        net = Steep(2, 2, bias=False)
        torch.nn.init.eye_(net.weight)
        net.weight.data *= 100
        sde = VE(5e-4, 0.02)
        x = 0.01 * torch.tensor([[1.0, 0.5], [-0.3, 0.2]])
        return log_prob(sde.reverse(ScoreModel(net.to(dtype), sde)), x, how=Quadrature(Adams(200)))

    half, whole = value(torch.float16), value(torch.float32)
    assert half.log_p.isfinite().all() and half.end_bias.isfinite().all()
    torch.testing.assert_close(half.log_p, whole.log_p, rtol=2e-3, atol=0)


@pytest.fixture(scope="module")
def moons():
    """A small network, trained."""
    data = Moons(n=2000, std=0.2).load()
    with seeded(0):
        model = ScoreModel(MLP((2,), 64, 2), SDE, Karras(Reference.fit(data.train)))
    settings = Settings(steps=500, batch=256, warmup=20)
    return train(model, data, settings, progress=False).requires_grad_(False), data.held_out[:100]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_of_a_network_is_told(moons, dtype):
    """What weights in half precision change beside the same weights in float32 is within three of the errors told in 99
    of 100 samples, and these are of its size; every fourth call is made again, and none of a network in float32. Errors
    of kept probes hold it too, and a row's own does not depend on the batch.
    """
    model, x = moons
    half = copy.deepcopy(model)
    half.net.to(dtype)
    whole = copy.deepcopy(half)
    whole.net.float()

    def run(model, x, trace=Exact()):
        score = Counted(model)
        found = log_prob(
            SDE.reverse(score), x, how=Quadrature(Adams(20), trace), noise=iid(torch.Generator().manual_seed(1))
        )
        assert found.nfe == score.nfe == (22 if model is whole else 28)
        return found

    found, exactly = run(half, x), run(whole, x)
    off, told = (found.log_p - exactly.log_p).abs(), found.probe_error
    assert (exactly.probe_error == 0).all() and off.max() > 1e-4
    assert (off <= 3 * told).double().mean() >= 0.99
    assert told.square().mean().sqrt() < 8 * off.square().mean().sqrt()
    kept = [run(one, x, Hutchinson(2, fresh=False)).probe_error for one in (half, whole)]
    assert (kept[0] >= 0.9 * kept[1]).double().mean() > 0.95 and float((kept[0] ** 2 - kept[1] ** 2).mean()) > 0
    torch.testing.assert_close(run(half, x[5:7]).probe_error, told[5:7], rtol=0.5, atol=1e-4)


class Complex(torch.nn.Module):
    """A network with complex weights; its output is their real part, or complex too."""

    def __init__(self, real=True):
        super().__init__()
        self.real, self.weight = real, torch.nn.Parameter(torch.tensor([[0.3, 0.1j], [-0.1j, 0.2]]))

    def forward(self, x, c):
        out = x.to(torch.complex64) @ self.weight
        return out.real if self.real else out


class Energy(torch.nn.Module):
    """One number a sample: |x|^2/8."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.125))

    def forward(self, x, c):
        return self.scale * x.square().flatten(1).sum(1)


@pytest.mark.parametrize("trace", [Exact(), Hutchinson(2)], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("kind", ["compiled", "complex", "energy"])
def test_networks_of_other_kinds(moons, kind, trace):
    """A compiled network is the network; complex weights are those of their real part; the gradient of an energy is a
    network.
    """
    model, x = moons
    if kind == "compiled":
        one = model
        other = copy.deepcopy(model)
        other.net = torch.compile(other.net, backend="aot_eager")
    elif kind == "complex":
        real = torch.nn.Linear(2, 2, bias=False)
        real.weight.data = Complex().weight.real.T.detach().clone()
        one = ScoreModel(Told(real), SDE)
        other = ScoreModel(Complex(), SDE)
    else:
        real = torch.nn.Linear(2, 2, bias=False)
        real.weight.data = 0.25 * torch.eye(2)
        one, other = ScoreModel(Told(real), SDE), EnergyModel(Energy(), SDE)
    values = [
        log_prob(SDE.reverse(m), x[:8], how=Quadrature(Adams(12), trace), noise=iid(torch.Generator().manual_seed(0)))
        for m in (one, other)
    ]
    torch.testing.assert_close(values[0].log_p, values[1].log_p, rtol=1e-4, atol=1e-4)


class Told(torch.nn.Module):
    """A network of x alone."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, c):
        return self.net(x)


def test_networks_that_do_not_do(monkeypatch, moons):
    """A complex output is refused, and a compiled network that gives its buffers away is told how to keep them."""
    model, x = moons
    with pytest.raises(ValueError, match="net must return floating-point numbers, got torch.complex64"):
        log_prob(SDE.reverse(ScoreModel(Complex(real=False), SDE)), x)

    def given_away(*args, **kwargs):
        raise RuntimeError("This backward function was compiled with non-empty donated buffers which requires ...")

    monkeypatch.setattr(torch.autograd, "grad", given_away)
    for trace in (Exact(), Hutchinson(1)):
        with pytest.raises(ValueError, match="compiled network must(?s:.*)donated_buffer = False"):
            log_prob(SDE.reverse(model), x, how=Quadrature(Adams(12), trace))


@every
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_other_numbers_are_refused(name, dtype):
    """Whole and complex numbers are named, before the score is asked."""

    def score(x, t):
        raise AssertionError

    with pytest.raises(ValueError, match=f"^x must be a non-empty floating-point tensor .* got {dtype}"):
        of(score)[name](torch.ones(3, 2, dtype=dtype))


class Own(LinearSDE):
    """VP by its marginal alone: f and g^2 by differentiation."""

    def log_alpha(self, t):
        return VP().log_alpha(t)

    def var(self, t):
        return VP().var(t)


@every
def test_inference_mode_is_no_grad(name):
    """Inside `torch.inference_mode` every result is that of `no_grad`, of samples made outside or inside, with a
    network and with a process that is differentiated.
    """
    sde, net = Own(), MLP((2,), width=8, depth=1)
    for w in net.parameters():
        torch.nn.init.normal_(w, std=0.3, generator=torch.Generator().manual_seed(1))
    model, chain = ScoreModel(net, sde, Velocity()), Chain(sde, grid.quadratic(sde, 6))
    calls = of(model, sde, chain)
    with torch.no_grad():
        want = calls[name](samples())
    outside = samples()
    with torch.inference_mode():
        found, inside = calls[name](outside), calls[name](samples())
    assert torch.equal(found, want) and torch.equal(inside, want)


@every
def test_gradients_stay_off(name):
    """What is computed carries no graph, with gradients enabled around it."""
    net = MLP((2,), width=8, depth=1)
    assert not of(ScoreModel(net, SDE))[name](samples().float().requires_grad_()).requires_grad


def test_inference_mode_without_gradients():
    """There are none in it, and tensors made in it carry none: both are said by name."""
    x, p = samples(), SDE.reverse(LAW.diffuse(SDE))
    with torch.inference_mode(), pytest.raises(ValueError, match="gradients must be .* torch.inference_mode"):
        log_prob(p, x, how=Quadrature(gradients=True))
    with torch.inference_mode():
        net = MLP((2,), width=8, depth=1)
    with pytest.raises(ValueError, match="score .* made inside of torch.inference_mode"):
        log_prob(SDE.reverse(ScoreModel(net, SDE)), x.float())


# what fails


def broken(at, value=math.nan):
    """A score that is not finite for one sample at times above `at`; -x for the others."""

    def score(x, t):
        bad = (x[:, :1] > 5) & (torch.as_tensor(t).view(-1, 1) > at)
        seen.extend(t.expand(len(x))[bad[:, 0]].tolist())
        return torch.where(bad, torch.full_like(x, value), -x)

    seen = []
    return score, seen


@pytest.mark.filterwarnings("ignore:the samples")
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name", [name for name in of() if name not in ("uniform", "truncated", "decoded", "some terms")]
)
def test_a_sample_that_fails_is_named(name, value):
    """The sample and the first time at which its score is not finite, with fixed steps as with others, for codes and
    bounds as for densities: never nan.
    """
    score, seen = broken(0.1, value)
    x = torch.cat([samples(2), torch.full((1, 2), 600.0), samples(1)])
    with pytest.raises(SampleError, match=r"of sample 2 is not finite at t = \d") as error:
        of(score)[name](x)
    assert error.value.sample == 2
    assert float(str(error.value).split("=")[1]) == pytest.approx(seen[0], rel=1e-5)


def test_a_decoder_that_fails_is_named():
    """L_0 of both bounds, at the time it is of."""
    score, x = lambda x, t: x * (math.nan if float(torch.as_tensor(t).max()) < 2e-3 else 0.0), samples()
    for bound in ("elbo", "continuous_elbo"):
        with pytest.raises(SampleError, match="the bound of sample 0 is not finite at t = 0.001$"):
            of(score)[bound](x)


@pytest.mark.filterwarnings("ignore:the samples")
@pytest.mark.parametrize("name", ["log_prob", "elbo", "continuous_elbo"])
def test_what_float32_does_not_hold_is_named(name):
    """Finite samples whose log-density is beyond the largest number are named, not given as -inf."""
    x = torch.tensor([[0.0, 1.0], [1e30, 0.0]])
    with pytest.raises(SampleError, match="of sample 1 is not finite at t = "):
        of(lambda x, t: -x)[name](x)


def test_finite():
    """The first of the values comes back; the first sample that is not finite in any of them is named, by its number in
    the batch, with its own time.
    """
    t, a, b = torch.tensor([0.1, 0.2, 0.3], dtype=F64), torch.ones(3, 2), torch.ones(3)
    assert finite("x", t, a, b) is a
    b[1], a[2, 0] = math.inf, math.nan
    with pytest.raises(RuntimeError, match="^it of sample 7 is not finite at t = 0.2$") as found:
        finite("it", t, a, b, rows=torch.tensor([4, 7, 9]))
    copy = pickle.loads(pickle.dumps(found.value))
    assert (copy.sample, str(copy)) == (7, str(found.value)) and copy.said.format(12).startswith("it of sample 12 is")


# bad input


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda p, x: log_prob(p, x, noise=1j), "noise"),
        (lambda p, x: log_prob(p, x, noise=None), "noise"),
        (lambda p, x: elbo(CHAIN, p.score, x, noise=1j), "noise"),
        (lambda p, x: continuous_elbo(p, x, noise=0), "noise"),
        (lambda p, x: continuous_elbo(p, x, times="uniform"), "times"),
        (lambda p, x: continuous_elbo(p, x, terms=10**9), "terms"),
        (lambda p, x: continuous_elbo(p, x, terms=2.0), "terms"),
        (lambda p, x: elbo(CHAIN, p.score, x, terms=10**30), "terms"),
        (lambda p, x: elbo(CHAIN, p.score, x, 256), "quantized"),
        (lambda p, x: continuous_elbo(p, x, "grey"), "quantized"),
        (lambda p, x: elbo(CHAIN, 3, x), "score"),
        (lambda p, x: elbo(CHAIN, p.score, x, kernel=Ancestral), "kernel"),
        (lambda p, x: encode(p, x, 0), "method"),
        (lambda p, x: encode(p, x, Adams), "method"),
        (lambda p, x: encode(p, x, AsNeeded()), "method"),
        (lambda p, x: decode(p, x, "dopri5"), "method"),
        (lambda p, x: decode(p, x, around=[]), "around"),
        (lambda p, x: encode(p, None), "x"),
        (lambda p, x: encode(p.score, x), "p"),
        (lambda p, x: Uniform(GREY, 10**9), "draws"),
    ],
)
def test_bad_arguments(call, named):
    """One line names the argument, before the score is asked."""

    def score(x, t):
        raise AssertionError

    with pytest.raises(ValueError, match=f"^{named} must [^\\n]*$"):
        call(SDE.reverse(score), samples())
