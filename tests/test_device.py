"""What is computed on a device is what is computed on the CPU, from the same seeds, and no step waits for the device.

    pytest tests/test_device.py --device cuda

Noise of a generator on the CPU and of `per_sample` is drawn there and moved, so that samples are equal to rounding; a
generator of the device has a stream of its own, and gives other samples of the same law. In float32 networks round
differently on a GPU, and a likelihood's probes are signs of normal numbers, which are equal.
"""

import warnings
from collections import deque
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import scoresde
from scoresde import (
    EDM,
    NCSN,
    SNR,
    VE,
    VP,
    Ancestral,
    Chain,
    Cosine,
    DPMSolverPP,
    EulerMaruyama,
    Flow,
    GaussianReference,
    Karras,
    Langevin,
    Quadrature,
    Quantized,
    RectifiedFlow,
    Reference,
    ReverseDiffusion,
    SASolver,
    ScoreModel,
    SubVP,
    Tabulated,
    UniPC,
    elbo,
    exact,
    grid,
    iid,
    log_prob,
    ode,
    per_sample,
    sample,
    transport,
)
from scoresde.brownian import GridPath, Path
from scoresde.data import Dataset
from scoresde.lab.metrics import energy_distance, frechet, sliced_wasserstein
from scoresde.likelihood import Adams, Exact, Hadamard, Hutchinson, HutchPP, continuous_elbo
from scoresde.loss import LogNormal, UniformTime
from scoresde.nn import drop_labels
from scoresde.process import TabulatedVE, cosine_betas, geometric_sigmas, linear_betas, scaled_linear_betas
from scoresde.shapes import times
from scoresde.steps import (
    IPNDM,
    MALA,
    RES,
    Churn,
    ConsistentAnnealed,
    DPMSolver,
    DPMSolverAdaptive,
    EDMHeun,
    GottaGoFast,
    captured,
)
from scoresde.steps.step import run, started
from scoresde.training import Settings, train

LAW = exact.GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.04, 0.01]))
SDES = [VP(), SubVP(), VE(), Cosine(), RectifiedFlow(), EDM(), Tabulated(torch.linspace(1e-3, 0.05, 100))]
AROUND = Reference(std=0.7)
FLOWS = [
    Ancestral(),
    EulerMaruyama(),
    ReverseDiffusion(),
    Flow(ode.Heun()),
    Flow(ode.Dopri5(1e-6, 1e-6)),
    DPMSolverAdaptive(),
    DPMSolverPP(3),
    UniPC(3),
    IPNDM(4),
    DPMSolver(2),
    RES(3),
    EDMHeun(),
    GaussianReference(AROUND),
]
NOISY = [
    Ancestral(),
    Ancestral(1.0),
    EulerMaruyama(),
    ReverseDiffusion(),
    ConsistentAnnealed(),
    DPMSolverPP(2),
    SASolver(),
    GaussianReference(AROUND),
    GottaGoFast(),
    Langevin(SNR(0.16), n=2),
    Langevin(NCSN(1e-2, 0.1)),
    MALA(NCSN(1e-2, 0.1)),
]
LOOKING = (GottaGoFast, DPMSolverAdaptive, MALA)  # at their own values, to choose a step or to accept one


def network(sde):
    """A small U-Net with weights that make it more than the identity."""
    torch.manual_seed(0)
    net = scoresde.nn.UNet((1, 8, 8), 8)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    return ScoreModel(net.eval().requires_grad_(False), sde, Karras(Reference(std=0.5)))


def both(f, device):
    """f on the CPU and on the device."""
    here, there = f(torch.device("cpu")), f(device)
    assert there.device.type == device.type
    return here, there.cpu()


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_times_on_the_device(sde, device):
    """Functions of time take times on the device, and stay there."""
    t = torch.linspace(max(sde.t_min, 1e-3 * sde.T), 0.99 * sde.T, 7, dtype=torch.float64)
    for name in ("alpha", "var", "f", "g2", "log_snr"):
        torch.testing.assert_close(*both(lambda d, name=name: getattr(sde, name)(t.to(d)), device), rtol=1e-12, atol=0)
    torch.testing.assert_close(*both(lambda d: sde.time(sde.log_snr(t.to(d))), device), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_exact_laws(sde, device):
    """Score, density and denoiser of a mixture, at one time and at one a sample."""
    x = torch.randn(5, 2, dtype=torch.float64)
    for t in (torch.tensor(0.3 * sde.T), torch.linspace(0.1, 0.9, 5) * sde.T):
        for name in ("__call__", "log_prob", "denoise"):
            f = lambda d, t=t, name=name: getattr(LAW.to(d).diffuse(sde), name)(x.to(d), t.to(d) if t.ndim else t)  # noqa: E731
            torch.testing.assert_close(*both(f, device), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", [VP(), VE(), EDM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("eta, step", [*((0.0, s) for s in FLOWS), *((1.0, s) for s in NOISY)], ids=str)
def test_samples_equal(sde, eta, step, device):
    """Float64 samples of an exact score from the same seeds are the same, by every step."""
    ts = sde.time(torch.linspace(-1, 1.5, 9, dtype=torch.float64))

    def draw(d):
        noise = per_sample(range(6))
        x = noise(torch.empty(6, 2, dtype=torch.float64, device=d), ts, ts)
        return sample(sde.reverse(LAW.to(d).diffuse(sde), eta), x, ts, step, noise=noise)

    torch.testing.assert_close(*both(draw, device), rtol=1e-9, atol=1e-9)


def test_samples_of_a_network(device):
    """In float32 to the rounding of its layers; so do transported scores."""
    ve, ts = VE(0.02, 20.0), grid.log_snr(VP(), 8)

    def draw(d, sde=None):
        model, noise = network(VP()).to(d), per_sample(range(4))
        p = VP().reverse(model) if sde is None else sde.reverse(transport(model, VP(), sde))
        x = p.sde.prior((4, 1, 8, 8), noise, torch.float32, d)
        return sample(p, x, ts if sde is None else grid.log_snr(sde, 8), Ancestral(), noise=noise)

    for f in (draw, lambda d: draw(d, ve)):
        torch.testing.assert_close(*both(f, device), rtol=1e-3, atol=1e-3)


def test_generators(device):
    """A generator on the CPU gives the samples that it gives there; one on the device another draw of the same law."""
    x, t = torch.zeros(2000, 3), torch.tensor(0.5)
    f = lambda d: iid(torch.Generator().manual_seed(1))(x.to(d), t, t)  # noqa: E731
    assert torch.equal(*both(f, device))
    own = iid(torch.Generator(device).manual_seed(1))(x.to(device), t, t)
    assert own.device.type == device.type and abs(float(own.mean())) < 6 / 6000**0.5


@pytest.mark.parametrize("trace", [Exact(), Hutchinson(2), Hadamard(4), HutchPP(2)], ids=str)
@pytest.mark.parametrize("method", [Adams(20), ode.Dopri5(1e-5, 1e-5)], ids=str)
def test_likelihoods(trace, method, device):
    """log p and its budget, in float64, from the same probes."""
    sde = VP()
    x = torch.randn(6, 2, dtype=torch.float64)

    def found(d):
        q = sde.reverse(LAW.to(d).diffuse(sde), eta=0)
        r = log_prob(q, x.to(d), how=Quadrature(method, trace), noise=per_sample(range(6)))
        return torch.stack([r.log_p, r.solver_error, r.end_bias])

    torch.testing.assert_close(*both(found, device), rtol=1e-7, atol=1e-7)


def test_bits_of_a_network(device):
    """Of grey levels under a network in float32, to its rounding."""
    grey = Quantized(17, -1.0, 1.0)
    x = torch.randint(0, 17, (3, 1, 8, 8)) / 8 - 1

    def found(d):
        q = VP().reverse(network(VP()).to(d), eta=0)
        return log_prob(q, x.to(d), grey, noise=per_sample(range(3))).bits_per_dim

    torch.testing.assert_close(*both(found, device), rtol=1e-3, atol=1e-3)


def test_bounds(device):
    """Both bounds, in float64."""
    sde = VP()
    x, chain = torch.randn(4, 2, dtype=torch.float64), Chain(sde, grid.uniform(sde, 20))

    def found(d):
        p = sde.reverse(LAW.to(d).diffuse(sde))
        a = elbo(chain, p.score, x.to(d), noise=per_sample(range(4))).nats
        b = elbo(chain, p.score, x.to(d), terms=3, noise=per_sample(range(4))).nats
        return torch.stack([a, b, continuous_elbo(p, x.to(d), noise=per_sample(range(4))).nats])

    torch.testing.assert_close(*both(found, device), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training(precision, device):
    """The same batches, times and noise: a few steps lead to the same weights, up to the rounding of the sums."""
    x = torch.randn(64, 1, 8, 8) / 2

    def trained(d):
        torch.manual_seed(0)
        model = ScoreModel(scoresde.nn.UNet((1, 8, 8), 8), VP(), Karras(Reference(std=0.5))).to(d)
        settings = Settings(steps=8, batch=16, lr=1e-3, warmup=2, precision=precision)
        return torch.cat([p.flatten() for p in train(model, Dataset(x, x[:2]), settings, progress=False).parameters()])

    torch.testing.assert_close(*both(trained, device), rtol=0, atol=2e-3 if precision == "float32" else 8e-3)


def test_metrics(device):
    """Distances of samples that lie on the device."""
    a, b = torch.randn(50, 3), torch.randn(60, 3) + 1
    for measure in (frechet, sliced_wasserstein, energy_distance):
        assert measure(a.to(device), b.to(device)) == pytest.approx(measure(a, b), rel=1e-9)


@contextmanager
def never_waiting():
    """An error inside for anything that makes the host wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def loop(p, x, ts, *steps):
    """The loop without the checks before it, which look at x."""
    ts = times("ts", ts, p.T)
    return deque(run(p, x, ts, started(p, ts, steps), iid()), maxlen=1).pop()


@pytest.mark.parametrize(
    "eta, step",
    [(eta, s) for eta, steps in ((0.0, FLOWS), (1.0, NOISY)) for s in steps if not isinstance(s, LOOKING)],
    ids=str,
)
def test_no_step_waits(eta, step, gpu):
    """No synchronisation of host and device inside the loop, with a network and with an exact score."""
    if isinstance(step, Flow) and isinstance(step.method, ode.Embedded):
        pytest.skip("adaptive steps look at their errors")
    vp, wide, ts = VP(), VE(0.005, 200.0), grid.log_snr(VP(), 6)
    for score, x in (
        (network(vp).to(gpu), torch.randn(4, 1, 8, 8, device=gpu)),
        (LAW.to(gpu).diffuse(vp), torch.randn(4, 2, device=gpu)),
        (transport(network(wide).to(gpu), wide, vp), torch.randn(4, 1, 8, 8, device=gpu)),
    ):
        p = vp.reverse(score, eta)
        loop(p, x, ts, step)  # libraries choose their kernels
        with never_waiting():
            loop(p, x, ts, step)


def test_a_training_step_does_not_wait(gpu):
    """Nor does a step of training: what waits is the start, and the loss that is shown at the end."""
    x = torch.randn(64, 1, 8, 8)
    torch.cuda.set_sync_debug_mode("warn")
    counts = []
    try:
        for steps in (20, 40):
            model = ScoreModel(scoresde.nn.UNet((1, 8, 8), 8), VP(), Karras(Reference(std=0.5))).to(gpu)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                train(model, Dataset(x, x[:2]), Settings(steps=steps, batch=16), progress=False)
            counts.append(sum("synchronizing" in str(w.message) for w in said))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "step", [Ancestral(), UniPC(3), GaussianReference(AROUND), Flow(), EDMHeun(), Churn(RES(2), 0)]
)
def test_captured_equals_the_loop(step, gpu):
    """A sampler of a network recorded as one CUDA graph."""
    vp, ts = VP(), grid.log_snr(VP(), 6)
    q, (a, b) = vp.reverse(network(vp).to(gpu), eta=0), torch.randn(2, 4, 1, 8, 8, device=gpu)
    run_ = captured(q, a, ts, step)
    torch.testing.assert_close(run_(b), sample(q, b, ts, step), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled_loop(device):
    """The loop compiled by `torch.compile` gives the same samples."""
    vp, ts = VP(), grid.log_snr(VP(), 4)
    q, x = vp.reverse(network(vp).to(device), eta=0), torch.randn(4, 1, 8, 8, device=device)
    fast = torch.compile(lambda x: loop(q, x, ts, DPMSolverPP(2)))
    with torch.no_grad():
        torch.testing.assert_close(fast(x), sample(q, x, ts, DPMSolverPP(2)), rtol=1e-4, atol=1e-4)


def test_numbers_do_not_depend_on_the_default_device():
    """Schedules, grids, seeds, Brownian paths, processes through tables and the coefficients of steps are computed on
    the CPU, whatever torch.set_default_device says.
    """
    cpu, t = torch.device("cpu"), torch.tensor([0.9, 0.4], dtype=torch.float64)
    x = torch.zeros(2, 16, dtype=torch.float64)
    at = torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    known, sigmas = torch.full((50,), 0.02), torch.linspace(0.1, 9.0, 10)
    rough = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))

    def numbers():
        g = [torch.Generator(cpu).manual_seed(i) for i in range(9)]
        table, chain = Tabulated(known), Chain(VP(), grid.uniform(VP(), 20))
        yield from (linear_betas(30), scaled_linear_betas(30), cosine_betas(30), geometric_sigmas(5))
        yield from (table.grid(), table.var(t), table.time(table.log_snr(t)), TabulatedVE(sigmas).grid())
        yield from (Tabulated([0.1, 0.2]).betas, TabulatedVE([0.1, 0.2, 0.4]).sigmas)
        yield from (VP().alpha(0.3), EDM().sigma(2), torch.stack(VP().transition(0.5, 0.2)), VP().f(t))
        yield from (chain.t, chain.v, chain.draw(5, g[0]), chain.posterior(x, x, torch.tensor([1, 2], device=cpu))[1])
        yield from (grid.log_snr(VP(), 9), grid.karras(EDM(), 9), grid.quadratic(VP(), 9), grid.uniform(VP(), 9))
        yield per_sample([1, 2])(x, t, t)
        yield Path(0.0, 1.0, (2, 3))(x[:, :3], at[0], at[1])
        yield GridPath(at, (2, 3), g[1])(x[:, :3], at[0], at[1])
        yield from (UniformTime().draw(VP(), 5, g[2]), LogNormal().draw(EDM(), 5, g[3], stratified=True))
        yield VP().prior((2, 16), per_sample([1, 2]), device=cpu)
        yield drop_labels(torch.arange(9, device=cpu), 0.5, 10, g[4])
        p, q = VP().reverse(lambda x, t: -x), VP().reverse(lambda x, t: -x, 0)
        yield from (
            sample(p, x, grid.log_snr(VP(), 5), step, noise=per_sample([1, 2])) for step in (Ancestral(), SASolver())
        )
        yield from (
            sample(q, x, grid.log_snr(VP(), 6), step) for step in (UniPC(3), GaussianReference(AROUND), IPNDM(4))
        )
        yield Reference.fit(rough).overall.std * torch.ones(1, device=cpu)

    want = list(numbers())
    torch.set_default_device("meta")
    try:
        got = list(numbers())
    finally:
        torch.set_default_device(None)
    assert all(a.device == cpu and torch.equal(a, b) for a, b in zip(got, want, strict=True))
