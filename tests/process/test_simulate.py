"""torchsde's solvers on one Brownian path converge to one limit."""

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torchsde

from scoresde import EDM, SDE, VE, VP, Cosine, Counted, EulerMaruyama, RectifiedFlow, SubVP, grid, sample
from scoresde.brownian import Brownian
from scoresde.lab.orders import resolved, slope
from scoresde.lab.problems import Modes

F64 = torch.float64
# calls of the drift in n steps
METHODS = {
    "euler": lambda n: n,
    "milstein": lambda n: n,
    "srk": lambda n: 4 * n,
    "euler_heun": lambda n: n,
    "heun": lambda n: 2 * n,
    "midpoint": lambda n: 2 * n,
    "log_ode": lambda n: 2 * n,
    "reversible_heun": lambda n: n + 1,
}
every_method = pytest.mark.parametrize("method", METHODS)
SDE_, T, END, B = VP(0.1, 5.0), 1.0, 0.1, 96
LAW = Modes(8, 0.2).law()


def time(*values):
    return torch.tensor(values, dtype=F64)


def normal(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@cache
def limit():
    """A process, a batch at T, and where 4,096 steps of Euler's method take it."""
    p, x = SDE_.reverse(LAW.diffuse(SDE_)), normal(B, 2)
    return p, x, p.simulate(x, time(T, END), steps=4096, seed=5)[-1]


@cache
def errors(method, ns):
    """The root mean square over dimensions of the distance from the limit, (len(ns), B)."""
    p, x, want = limit()
    got = [p.simulate(x, time(T, END), steps=n, seed=5, method=method)[-1] for n in ns]
    return torch.stack([(y - want).square().mean(1).sqrt().detach() for y in got])


@every_method
def test_strong_convergence_to_one_limit(method):
    """On the path of one seed all methods tend to what Euler's tends to, with strong order 1 as the noise is additive,
    and 1.5 for srk (Kloeden & Platen 1992; Roessler 2010): 95 % intervals exclude the orders beside it.
    """
    ns = (32, 64, 128) if method == "srk" else (256, 512, 1024) if method == "reversible_heun" else (64, 128, 256)
    e = errors(method, ns)
    fit = slope(torch.tensor(ns), e)
    assert resolved(e).all() and e[-1].mean() < 0.03
    if method == "srk":
        assert 1.2 < fit.low and fit.high < 1.8
    elif method == "reversible_heun":  # not stable in fewer steps, and still falling faster
        assert fit.low > 0.8
    else:
        assert abs(fit.value - 1) < 0.2 and 0.6 < fit.low and fit.high < 1.4


def test_srk_is_more_accurate():
    """At equal steps srk's error is a fraction of every other method's, at equal calls less than Euler's."""
    srk = errors("srk", (32, 64, 128)).mean(1)
    for method in METHODS.keys() - {"srk", "reversible_heun"}:
        assert (srk[1:] < 0.3 * errors(method, (64, 128, 256)).mean(1)[:2]).all()
    assert srk[1] < 0.5 * errors("euler", (64, 128, 256)).mean(1)[2]


def test_another_path_has_another_limit():
    """The distance between methods is not that between paths."""
    p, x, want = limit()
    other = p.simulate(x, time(T, END), steps=256, seed=6)[-1]
    assert (other - want).square().mean() > 100 * errors("euler", (64, 128, 256))[2].square().mean()


@pytest.mark.parametrize("method", ["euler", "srk", "midpoint", "heun"])
@pytest.mark.filterwarnings("ignore:Numerical solution is not guaranteed")
def test_adaptive_solvers_follow_the_path(method):
    """With less tolerance torchsde's adaptive steps, which go where they like, come nearer to the same limit."""
    p, x, want = limit()
    tols = (1e-1, 1e-2, 1e-3)
    got = [p.simulate(x, time(T, END), steps=16, seed=5, method=method, adaptive=True, rtol=u, atol=u) for u in tols]
    e = torch.stack([(y[-1] - want).square().mean(1).sqrt().mean() for y in got])
    assert (e[1:] < 0.7 * e[:-1]).all() and e[-1] < 0.01


def test_methods_that_coincide():
    """With additive noise Milstein's method is Euler's, and the log-ODE is the midpoint rule."""
    p, x, _ = limit()
    for a, b in (("euler", "milstein"), ("midpoint", "log_ode")):
        y, z = (p.simulate(x, time(T, END), steps=40, seed=5, method=method)[-1].detach() for method in (a, b))
        torch.testing.assert_close(y, z, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_euler_is_euler_maruyama(eta):
    """simulate's "euler" is `EulerMaruyama` on the same increments, on uniform and other grids."""
    x, p = normal(4, 2), SDE_.reverse(LAW.diffuse(SDE_), eta)
    for ts in (grid.uniform(SDE_, 24, END), grid.log_snr(SDE_, 24, END)):
        W = Brownian(float(ts[0] - ts[-1]), x, 9)
        noise = lambda x, t, s: W(ts[0] - t, ts[0] - s) / (t - s).sqrt()  # noqa: B023, E731
        steps = 24 if torch.allclose(ts, grid.uniform(SDE_, 24, END)) else 1
        got = p.simulate(x, ts, steps=steps, seed=9)[-1]
        torch.testing.assert_close(got, sample(p, x, ts, EulerMaruyama(), noise=noise), rtol=1e-9, atol=1e-9)


@every_method
@pytest.mark.parametrize("n", [1, 10, 49])
def test_calls(method, n):
    """n steps ask for the drift as often as the method's formula has stages, no step being left over by rounding; what
    is asked for twice is computed once.
    """
    score = Counted(LAW.diffuse(SDE_))
    p = SDE_.reverse(score)
    p.simulate(normal(3, 2), time(0.9, 0.2), steps=n, method=method)
    assert score.nfe == METHODS[method](n)
    score.nfe = 0
    p.simulate(normal(3, 2), time(0.9, 0.55, 0.2), steps=2 * n, method=method)
    assert score.nfe == (2 * METHODS[method](n) if method != "reversible_heun" else 2 * (n + 1))


@dataclass(frozen=True)
class DoubleWell(SDE):
    """dx = (x - x^3) dt + s dw, stationary at exp((x^2 - x^4/2)/s^2)."""

    s: float = 0.8

    def drift(self, x, t):
        return x - x**3

    def diffusion(self, t):
        return self.s + 0 * t

    def score(self, x, t):
        return 2 * (x - x**3) / self.s**2


@cache
def images(sde, eta):
    """A process on images in float32, times, a batch, where 128 steps of Euler's lead, and how far other paths do."""
    if isinstance(sde, DoubleWell):
        score, ts = sde.score, time(1.0, 0.2)
    else:
        lam, law = sde.log_snr(time(sde.T))[0], LAW.diffuse(sde)
        ts = sde.time(torch.stack([lam.clamp_min(-1.5), torch.tensor(0.5, dtype=F64)]))
        score = lambda x, t: law(x.flatten(1), t).view(x.shape)  # noqa: E731
    p, x = sde.reverse(score, eta), normal(8, 2, 1, 1).float()
    want, other = (p.simulate(x, ts, steps=128, seed=seed)[-1] for seed in (2, 3))
    return p, ts, x, want, (other - want).norm()


PROCESSES = [(VP(), 1.0), (SubVP(), 0.5), (VE(0.1, 10.0), 1.0), (Cosine(), 0.5), (RectifiedFlow(), 1.0)]
PROCESSES += [(EDM(T=10.0), 0.5), (DoubleWell(), 1.0)]


@every_method
@pytest.mark.parametrize(("sde", "eta"), PROCESSES, ids=lambda v: type(v).__name__ if isinstance(v, SDE) else f"{v}")
def test_every_reverse_process(sde, eta, method):
    """Along every process, linear or not, by any method to where Euler's lead, far from where other paths do."""
    p, ts, x, want, far = images(sde, eta)
    got = p.simulate(x, ts, steps=128 if method == "reversible_heun" else 48, seed=2, method=method)
    assert got.dtype == torch.float32 and got.shape == (2, *x.shape) and (got[-1] - want).norm() < 0.15 * far


def test_own_path():
    """A path given as `bm` is the one that is used."""
    p, x, _ = limit()
    bm = torchsde.BrownianInterval(0.0, T - END, size=x.shape, dtype=F64, entropy=1)
    a, b = (p.simulate(x, time(T, END), steps=16, seed=seed, bm=bm) for seed in (1, 2))
    assert torch.equal(a, b) and not torch.equal(a, p.simulate(x, time(T, END), steps=16, seed=1))


def test_seed_is_checked():
    """By name; so that no seed is taken for another."""
    for seed in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match="^seed must be a whole number >= 0"):
            VP().simulate(torch.zeros(2, 2), time(0.0, 1.0), seed=seed)
    assert math.isfinite(float(VP().simulate(torch.zeros(1, 1), time(0.0, 1.0), steps=2, seed=2**70)[-1]))
