"""Marginals, transitions, reversals and simulated paths of linear and other SDEs."""

import copy
import dataclasses
import math
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate

from scoresde import (
    EDM,
    SDE,
    VE,
    VP,
    Ancestral,
    Cosine,
    Counted,
    LinearSDE,
    RectifiedFlow,
    Reverse,
    SubVP,
    Tabulated,
    exact,
    grid,
    iid,
    sample,
)

F64 = torch.float64


@dataclass(frozen=True)
class OU(LinearSDE):
    """dx = -k x dt + sqrt(2 k) s dw, whose stationary law is N(0, s^2): an SDE that a user writes."""

    k: float = 1.5
    s: float = 0.8
    T: float = 2.0

    def log_alpha(self, t):
        return -self.k * t

    def var(self, t):
        return -(self.s**2) * torch.expm1(-2 * self.k * t)


@dataclass(frozen=True)
class DoubleWell(SDE):
    """dx = (x - x^3) dt + s dw, whose stationary density is proportional to exp((x^2 - x^4/2)/s^2)."""

    s: float = 1.0
    T: float = 6.0

    def drift(self, x, t):
        return x - x**3

    def diffusion(self, t):
        return self.s + 0 * t

    def score(self, x, t):
        """Of the stationary law."""
        return 2 * (x - x**3) / self.s**2


SDES = [
    VP(),
    VP(0.0, 5.0),
    VP(3.0, 3.0),
    SubVP(),
    VE(),
    VE(0.2, 7.0),
    Cosine(),
    RectifiedFlow(),
    EDM(),
    Tabulated(torch.linspace(1e-4, 0.02, 1000, dtype=F64)),
    Tabulated(torch.tensor([0.3, 0.01, 0.7], dtype=F64)),
    OU(),
]
every_sde = pytest.mark.parametrize("sde", SDES, ids=[f"{type(sde).__name__}{i}" for i, sde in enumerate(SDES)])
fractions = st.floats(0.001, 1)


def time(t):
    return torch.tensor(t, dtype=F64)


def close(a, b, rtol=1e-10, atol=0.0):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def within(estimates, value, k=4.5):
    """The mean of the rows of `estimates` is `value` to k standard errors, which are small beside its spread."""
    error = (estimates.mean(0) - value) / (estimates.std(0) / math.sqrt(len(estimates)))
    assert error.abs().max() < k, f"{float(error.abs().max()):.1f} standard errors"


def tape(z):
    """Noise that is always z."""
    return lambda x, t, s: z


# marginals


@every_sde
@given(st.tuples(fractions, fractions, fractions))
def test_transitions_compose(sde, fractions):
    """From r to s and on to t is from r to t: the factors multiply, the noise of the first is scaled by the second."""
    r, s, t = (sde.T * time(u) for u in sorted(fractions))
    assume(r < s < t)
    (a, v), (b, w), (c, u) = sde.transition(t, s), sde.transition(s, r), sde.transition(t, r)
    close(a * b, c)
    close(a**2 * w + v, u, rtol=1e-9)


@every_sde
def test_transition_is_the_marginals(sde):
    """What x_0 became at s, carried on to t, is what it is at t; from t to t nothing happens; from 0 it is perturb."""
    s, t = sde.T * time([0.0, 1e-3, 0.3, 0.9]), sde.T * time([1e-3, 0.5, 0.6, 1.0])
    a, v = sde.transition(t, s)
    close(a * sde.alpha(s), sde.alpha(t))
    close(a**2 * sde.var(s) + v, sde.var(t))
    a, v = sde.transition(t, t)
    assert torch.equal(a, torch.ones_like(t)) and torch.equal(v, torch.zeros_like(t))
    assert float(sde.alpha(0.0)) == 1


@every_sde
def test_short_transition_is_the_sde(sde):
    """Over a short time h, a = 1 + f h and v = g^2 h, the closer the shorter h is."""
    t = sde.T * time([0.11037, 0.40037, 0.52037, 0.90037])  # between the knots of every table
    for h in (1e-4 * sde.T, 1e-7 * sde.T):
        a, v = sde.transition(t + h / 2, t - h / 2)
        close(torch.log(a) / h, sde.f(t), rtol=1e-3 if h > 1e-5 * sde.T else 1e-5, atol=1e-8)
        close(v / h, sde.g2(t), rtol=1e-3 if h > 1e-5 * sde.T else 1e-5)


@every_sde
@given(st.floats(1e-3, 1))
def test_time_inverts_log_snr(sde, u):
    """time(log_snr(t)) = t, and the closed form of a class is what bisection finds."""
    t = sde.T * time(u)
    lam = sde.log_snr(t)
    close(sde.time(lam), t, rtol=1e-9)
    close(LinearSDE.time(sde, lam), t, rtol=1e-9)
    close(sde.log_snr(sde.time(lam)), lam, rtol=1e-9, atol=1e-9)


@given(st.floats(0, 10), st.floats(0.01, 30), st.floats(1e-3, 1), st.sampled_from([VP, SubVP]))
def test_time_for_every_beta(low, rise, u, kind):
    """The same for every linear beta, constant or from 0."""
    sde = kind(low, low + rise)
    close(sde.time(sde.log_snr(time(u))), time(u), rtol=1e-6)


@every_sde
def test_time_at_the_ends(sde):
    """log_snr(0), infinite where sigma(0) = 0, is at t = 0, and log_snr(T) at T; a vector of them keeps its shape."""
    ends = time([0.0, sde.T])
    assert bool(sde.log_snr(ends)[0].isinf()) == (not isinstance(sde, VE))
    for invert in (sde.time, lambda lam: LinearSDE.time(sde, lam)):
        close(invert(sde.log_snr(ends)), ends, rtol=1e-9, atol=1e-9)
        assert invert(sde.log_snr(ends[1])).shape == ()


@every_sde
def test_log_snr(sde):
    """lambda = log(alpha/sigma) falls from end to end."""
    t = sde.T * torch.linspace(0, 1, 200, dtype=F64)
    close(sde.log_snr(t), (sde.alpha(t) / sde.sigma(t)).log(), rtol=1e-9, atol=1e-9)
    assert (sde.log_snr(t).diff() < 0).all()


@every_sde
def test_perturb(sde):
    """x_t = alpha x_0 + sigma z with the z that is returned, for each row at its own time."""
    x_0, z = torch.randn(3, 2, 4, dtype=F64), torch.randn(3, 2, 4, dtype=F64)
    t = sde.T * time([0.0, 0.3, 1.0])
    x_t, out = sde.perturb(x_0, t, tape(z))
    assert torch.equal(out, z)
    for i in range(3):
        close(x_t[i], sde.alpha(t[i]) * x_0[i] + sde.var(t[i]).sqrt() * z[i])


@every_sde
def test_perturb_moments(sde):
    """Over many draws x_t has mean alpha x_0, variance sigma^2 in every dimension, and no covariance between them."""
    x_0, t = time([1.5, -0.5]), 0.4 * sde.T
    x_t, z = sde.perturb(x_0.expand(40_000, 2), t, iid(torch.Generator().manual_seed(1)))
    within(x_t, sde.alpha(t) * x_0)
    within((x_t - sde.alpha(t) * x_0) ** 2, sde.var(time(t)))
    within((x_t - sde.alpha(t) * x_0).prod(1, keepdim=True), 0.0)
    within(z * x_t, sde.sigma(t))


@every_sde
@pytest.mark.parametrize("shape", [(3, 1), (3, 3), (3, 2, 5), (3, 1, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_shapes_and_dtypes(sde, shape, dtype):
    """Functions of t have its shape; states keep theirs and their dtype; row i at times (B,) is row i at its time."""
    x, t = torch.randn(shape, dtype=dtype), sde.T * time([0.1, 0.5, 0.9])
    p = sde.reverse(lambda x, t: -x / 2)
    scalars = (sde.alpha, sde.sigma, sde.var, sde.log_alpha, sde.log_snr, sde.f, sde.g2, sde.diffusion, p.diffusion)
    for fn in scalars:
        assert fn(t).shape == (3,) and fn(t[0]).shape == () and fn(t).dtype == F64
        close(torch.stack([fn(ti) for ti in t]), fn(t), rtol=1e-14)
    for fn in (sde.drift, lambda x, t: sde.perturb(x, t, tape(x))[0], p.drift, p.eps, p.denoise):
        rows = fn(x, t)
        assert rows.shape == shape and rows.dtype == fn(x, t[0]).dtype == dtype
        close(torch.cat([fn(x[i : i + 1], t[i]) for i in range(3)]), rows, rtol=1e-5 if dtype != F64 else 1e-12)
        for wrong in (t[:1], t[:2], t.expand(3, 3)):
            with pytest.raises(ValueError, match=r"t must have shape \(\) or \(3,\)"):
                fn(x, wrong)
    assert sde.prior(shape, dtype=dtype).dtype == dtype and sde.prior(shape).shape == shape
    assert sde.log_prior(x).shape == (3,) and sde.log_prior(x).dtype == dtype


@every_sde
def test_numbers_are_times(sde):
    """A Python number is a time in float64."""
    t = 0.3 * sde.T
    for fn in (sde.alpha, sde.sigma, sde.log_snr):
        assert torch.equal(fn(t), fn(time(t)))
    assert torch.equal(torch.stack(sde.transition(t, t / 2)), torch.stack(sde.transition(time(t), time(t / 2))))
    x = torch.randn(2, 3)
    assert torch.equal(sde.perturb(x, t, tape(x))[0], sde.perturb(x, time(t), tape(x))[0])
    assert torch.equal(sde.drift(x, t), sde.drift(x, time(t)))


@every_sde
def test_prior(sde):
    """x_T = sigma_T z, and log_prior is its density."""
    z = torch.randn(4, 2, 3, dtype=F64)
    x = sde.prior(z.shape, tape(z))
    close(x, sde.sigma(sde.T) * z)
    normal = torch.distributions.Normal(time(0.0), sde.sigma(sde.T))
    close(sde.log_prior(x), normal.log_prob(x).sum((1, 2)))


# reversal


MEAN, SPREAD = time([1.0, -2.0, 0.5]), time([0.3, 1.0, 2.0])
GAUSSIAN = exact.Gaussian(MEAN, SPREAD)


@every_sde
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0, 1.5])
def test_reverse_keeps_the_marginals(sde, eta):
    """Mean and variance of Gaussian data follow the ODEs of their moments under the reverse SDE, whatever eta is.

    Backwards in time dm = k(m) and dv/dt = 2 k' v - (eta g)^2, with the slope k' of the drift; m and v are alpha m_0
    and alpha^2 v_0 + sigma^2, differentiated by central differences.
    """
    p, h = sde.reverse(GAUSSIAN.diffuse(sde), eta), 1e-5 * sde.T

    def moments(t):
        return sde.alpha(t) * MEAN, sde.alpha(t) ** 2 * SPREAD + sde.var(t)

    for t in (0.23037 * sde.T, 0.71037 * sde.T):
        t = time(t)
        (m, v), (m1, v1), (m0, v0) = moments(t), moments(t + h), moments(t - h)
        slope = p.drift((m + 1)[None], t)[0] - p.drift(m[None], t)[0]
        close(p.drift(m[None], t)[0], (m1 - m0) / (2 * h), rtol=1e-5, atol=1e-8)
        close(2 * slope * v - p.diffusion(t) ** 2, (v1 - v0) / (2 * h), rtol=1e-5, atol=1e-8)
        close(p.diffusion(t), eta * sde.diffusion(t))


@every_sde
def test_reverse_tells_of_x_0(sde):
    """For Gaussian data denoise is the posterior mean m + alpha v/(alpha^2 v + sigma^2) (x - alpha m), and eps agrees.

    x = alpha denoise + sigma eps is the split of x_t into signal and noise.
    """
    p, x = sde.reverse(GAUSSIAN.diffuse(sde)), 2 * torch.randn(4, 3, dtype=F64)
    for t in (time(0.6 * sde.T), sde.T * time([0.01, 0.2, 0.7, 1.0])):
        a, s = (c if c.ndim == 0 else c[:, None] for c in (sde.alpha(t), sde.sigma(t)))
        posterior = MEAN + a * SPREAD / (a**2 * SPREAD + s**2) * (x - a * MEAN)
        close(a * p.denoise(x, t), a * posterior, atol=1e-9)
        close(a * posterior + s * p.eps(x, t), x, atol=1e-9)


@every_sde
def test_reverse_of_nothing_known(sde):
    """With eta=0 and score 0 the reverse is the forward drift without noise, and T is that of the SDE."""
    p, x = sde.reverse(lambda x, t: 0 * x, eta=0), torch.randn(3, 4, dtype=F64)
    t = time(0.4 * sde.T)
    close(p.drift(x, t), sde.drift(x, t))
    assert float(p.diffusion(t)) == 0 and p.T == sde.T and isinstance(p, Reverse)
    assert sde.reverse(p.score).eta == 1


@given(st.one_of(st.floats(max_value=-1e-300), st.sampled_from([math.nan, math.inf, -1, "1", None])))
def test_reverse_refuses(eta):
    """eta is a finite number from 0; the SDE and the score are what they are called."""
    score = lambda x, t: x  # noqa: E731
    with pytest.raises(ValueError, match="^eta must"):
        VP().reverse(score, eta)
    with pytest.raises(ValueError, match="^sde must"):
        Reverse(score, score)
    with pytest.raises(ValueError, match="^score must"):
        VP().reverse(torch.zeros(2, 2))


class Identical(LinearSDE):
    """A user's SDE without an equality of its own."""

    def __init__(self, k):
        self.k = k

    def log_alpha(self, t):
        return -self.k * t

    def var(self, t):
        return -torch.expm1(-2 * self.k * t)


@every_sde
@pytest.mark.parametrize(
    "other", [VP(0.2, 11.0), SubVP(0.2, 11.0), VE(0.3, 4.0), EDM(T=9.0), RectifiedFlow(0.9)], ids=str
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_score_of_another_sde_is_refused(sde, other, eta):
    """A score that says it is of another `sde`, of another class or with other parameters, is refused with the names of
    both; counted ones too. A score that says nothing is taken at its word.
    """
    law = exact.Gaussian(torch.zeros(2), 1.0)
    for score in (law.diffuse(other), Counted(law.diffuse(other))):
        with pytest.raises(ValueError, match="(?s)^score is that of .* not of .*: `transport` reads it") as error:
            sde.reverse(score, eta)
        assert repr(other) in str(error.value) and repr(sde) in str(error.value)
    silent = law.diffuse(other)
    assert sde.reverse(lambda x, t: silent(x, t), eta).eta == eta


@every_sde
def test_a_score_of_an_equal_sde_is_taken(sde):
    """Equal parameters are the same process, whether the object is the same or not; so is another of a class that has
    no equality of its own, where nothing can be told.
    """
    law = exact.Gaussian(torch.zeros(2), 1.0)
    for own in (sde, copy.deepcopy(sde), pickle.loads(pickle.dumps(sde))):
        assert sde.reverse(law.diffuse(own)).score.sde is own
    assert Identical(1.0).reverse(law.diffuse(Identical(1.0))).eta == 1
    with pytest.raises(ValueError, match="^score is that of"):
        Identical(1.0).reverse(law.diffuse(sde))
    with pytest.raises(ValueError, match="^score is that of"):
        sde.reverse(law.diffuse(Identical(1.0)))


def test_other_attributes_of_a_score_are_its_own():
    """A `sde` that is no SDE says nothing."""
    score = Counted(lambda x, t: -x)
    score.sde = "vp"
    assert VP().reverse(score).score is score


# invalid parameters


def outside(low, high, *, closed_low=False):
    """Numbers that are not in (low, high) or [low, high), and what is no finite number at all."""
    edge = ([] if closed_low else [low]) + ([high] if high < math.inf else [])
    other = st.sampled_from([math.nan, math.inf, -math.inf, None, "1", 1j, *edge])
    below = st.floats(max_value=low, exclude_max=closed_low, allow_nan=False, allow_infinity=False)
    return st.one_of(below, st.floats(min_value=high), other) if high < math.inf else st.one_of(below, other)


BAD = {
    "VP.beta_min": (VP, "beta_min", outside(0, math.inf, closed_low=True), {}),
    "VP.beta_max": (VP, "beta_max", outside(0.5, math.inf, closed_low=True), {"beta_min": 0.5}),
    "VP without noise": (VP, "beta_max", outside(0, math.inf), {"beta_min": 0.0}),
    "SubVP.beta_min": (SubVP, "beta_min", outside(0, math.inf, closed_low=True), {}),
    "SubVP.beta_max": (SubVP, "beta_max", outside(0.5, math.inf, closed_low=True), {"beta_min": 0.5}),
    "VE.sigma_min": (VE, "sigma_min", outside(0, math.inf), {}),
    "VE.sigma_max": (VE, "sigma_max", outside(0.3, math.inf), {"sigma_min": 0.3}),
    "Cosine.s": (Cosine, "s", outside(0, math.inf), {}),
    "Cosine.T": (Cosine, "T", outside(1e-3, 1), {}),
    "RectifiedFlow.T": (RectifiedFlow, "T", outside(1e-3, 1), {}),
    "VP.t_min": (VP, "t_min", outside(0, 1), {}),
    "SubVP.t_min": (SubVP, "t_min", outside(0, 1), {}),
    "Cosine.t_min": (Cosine, "t_min", outside(0, math.inf), {"T": 0.5}),
    "RectifiedFlow.t_min": (RectifiedFlow, "t_min", outside(0, math.inf), {"T": 0.5}),
    "EDM.t_min": (EDM, "t_min", outside(0, math.inf), {}),
    "EDM.T": (EDM, "T", outside(0.1, math.inf), {"t_min": 0.1}),
}


@pytest.mark.parametrize("case", BAD)
@given(data=st.data())
def test_bad_parameters(case, data):
    """A parameter for which there is no process is refused by its name, with its value."""
    kind, name, values, others = BAD[case]
    value = data.draw(values)
    with pytest.raises(ValueError, match=f"^{name} must be a finite number") as e:
        kind(**{name: value}, **others)
    assert str(e.value).endswith(f"got {value!r}")


@given(
    st.lists(st.floats(0.01, 0.99), max_size=4),
    st.one_of(st.floats(max_value=0.0), st.floats(min_value=1.0), st.just(math.nan)),
    st.lists(st.floats(0.01, 0.99), max_size=4),
)
def test_bad_tables(before, bad, after):
    """A beta outside (0, 1) is named by its place in the table."""
    with pytest.raises(ValueError, match=rf"^betas must be inside \(0, 1\), got betas\[{len(before)}\]"):
        Tabulated(time([*before, bad, *after]))


@pytest.mark.parametrize(
    "betas", [torch.empty(0), torch.tensor(0.1), torch.full((2, 2), 0.1)], ids=lambda b: str(b.shape)
)
def test_tables_are_tables(betas):
    """A table has one dimension and at least one entry."""
    with pytest.raises(ValueError, match="^betas must be a non-empty 1-D table"):
        Tabulated(betas)


@pytest.mark.parametrize("sde", [VP(0.2, 9.0), SubVP(), VE(0.2, 7.0), Cosine(0.01), RectifiedFlow(0.9), EDM(9.0), OU()])
def test_an_sde_is_a_value(sde):
    """repr is the constructor's call, equal parameters are equal, and copies and pickles are too."""
    assert eval(repr(sde)) == sde == copy.deepcopy(sde) == pickle.loads(pickle.dumps(sde))
    assert hash(sde) == hash(copy.copy(sde))


def test_a_hidden_least_time_is_refused():
    """A subclass that sets t_min as a class attribute, which the field would hide, is told so; a field is taken."""
    with pytest.raises(TypeError, match="^t_min of Fine must be a field"):
        type("Fine", (VP,), {"t_min": 1e-5})

    @dataclasses.dataclass(frozen=True)
    class Finer(VP):
        t_min: float = 1e-5

    assert Finer().t_min == 1e-5


# an SDE that a user writes


def test_users_sde_derives():
    """From log_alpha and var alone: f = -k, g^2 = 2 k s^2, and the stationary variance s^2 is kept by transitions."""
    sde, t = OU(), time([0.01, 0.5, 2.0])
    close(sde.f(t), torch.full_like(t, -1.5))
    close(sde.g2(t), torch.full_like(t, 2 * 1.5 * 0.64))
    a, v = sde.transition(t, t / 3)
    close(a**2 * 0.64 + v, torch.full_like(t, 0.64))
    assert sde.t_min == LinearSDE.t_min


def test_users_sde_works_everywhere():
    """Prior, grid, steps and exact scores: ODE steps take a Gaussian of p_T to the data's, x_0 - m in their ratio."""
    sde, x_T = OU(), torch.randn(5, 3, dtype=F64)
    law = GAUSSIAN.diffuse(sde)
    x = sample(sde.reverse(law, eta=0), x_T, grid.log_snr(sde, 400), Ancestral())
    a, v = sde.alpha(sde.T), sde.alpha(sde.T) ** 2 * SPREAD + sde.var(time(sde.T))
    end = time(sde.t_min)
    scale = ((sde.alpha(end) ** 2 * SPREAD + sde.var(end)) / v).sqrt()
    close(x, sde.alpha(end) * MEAN + scale * (x_T - a * MEAN), rtol=0.02, atol=0.02)


# an SDE that is not linear


def double_well(power, s=1.0):
    """E x^power under the stationary density."""
    x = np.linspace(-4, 4, 20001)
    p = np.exp((x**2 - x**4 / 2) / s**2)
    return integrate.simpson(p * x**power, x=x) / integrate.simpson(p, x=x)


@pytest.mark.parametrize("s", [1.0, 0.8])
def test_double_well(s):
    """Simulated long enough the double well has the moments of exp((x^2 - x^4/2)/s^2), from either side."""
    x = DoubleWell(s).simulate(torch.randn(1500, 4), time([0.0, 8.0]), steps=400, seed=3, method="srk")[-1].double()
    values = torch.stack([x**n for n in (1, 2, 3, 4)], 1)
    rows = values.mean(2)  # the four columns of a row are independent, as the rows are
    within(rows, time([0.0, double_well(2, s), 0.0, double_well(4, s)]))


def test_double_well_reversed():
    """At its stationary law the probability flow stands still, and the reverse SDE is the forward one."""
    sde, x, t = DoubleWell(0.7), torch.randn(5, 2, dtype=F64), time(1.0)
    close(sde.reverse(sde.score, eta=0).drift(x, t), torch.zeros_like(x), atol=1e-14)
    close(sde.reverse(sde.score).drift(x, t), -sde.drift(x, t), atol=1e-14)
    x = x.abs() + 0.1
    still = sde.reverse(sde.score, eta=0).simulate(x, time([2.0, 1.0]), steps=5)
    close(still[-1], x, rtol=1e-12)


def test_a_property_that_fails_says_what_failed():
    """An AttributeError inside a property of an SDE is told as it is, and not as the lack of that property."""

    class Broken(DoubleWell):
        @property
        def table(self):
            return self.betas[0]

        @property
        def alpha(self):
            return self.betas[0]

    for name in ("table", "alpha"):
        with pytest.raises(AttributeError, match="'Broken' object has no attribute 'betas'"):
            getattr(Broken(), name)


@pytest.mark.parametrize(
    "name",
    ["perturb", "alpha", "sigma", "log_alpha", "var", "log_snr", "transition", "time", "prior", "log_prior", "f"],
)
def test_double_well_has_no_marginals(name):
    """What follows from closed-form marginals is missing, for hasattr too, and the error says why and what to do."""
    sde = DoubleWell()
    with pytest.raises(AttributeError, match=f"DoubleWell has no `{name}`.*not linear.*`simulate`"):
        getattr(sde, name)
    assert not hasattr(sde, name)
    x = torch.randn(2, 2)
    for ask in (sde.reverse(sde.score).denoise, sde.reverse(sde.score).eps):
        with pytest.raises(AttributeError, match="DoubleWell has no"):
            ask(x, time(0.5))


def test_other_attributes_are_ordinary():
    """Any other missing name gives the usual error."""
    with pytest.raises(AttributeError, match="'DoubleWell' object has no attribute 'colour'"):
        _ = DoubleWell().colour
    with pytest.raises(AttributeError, match="'VP' object has no attribute 'colour'"):
        _ = VP().colour


# simulation

METHODS = {
    "euler": {"steps": 300},
    "milstein": {"steps": 300},
    "srk": {"steps": 30},
    "heun": {"steps": 40},
    "midpoint": {"steps": 40},
    "euler_heun": {"steps": 300},
    "log_ode": {"steps": 40},
    "reversible_heun": {"steps": 40},
    "adaptive": {"steps": 10, "method": "srk", "adaptive": True, "rtol": 1e-2, "atol": 1e-2},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sde", [OU(), VP(0.1, 4.0)], ids=lambda s: type(s).__name__)
def test_simulated_paths_have_the_exact_law(sde, method):
    """By every method the path through s and t has the means, variances and covariance of the transitions."""
    options = {"method": method, **METHODS[method]}
    s, t, x_0 = 0.3 * sde.T, 0.8 * sde.T, 1.5
    paths = sde.simulate(torch.full((3000, 2), x_0, dtype=F64), time([0.0, s, t]), seed=5, **options)
    assert paths.shape == (3, 3000, 2) and torch.equal(paths[0], torch.full((3000, 2), x_0, dtype=F64))
    m = torch.stack([sde.alpha(s), sde.alpha(t)]) * x_0
    z = paths[1:] - m.view(2, 1, 1)
    a, _ = sde.transition(t, s)
    within(z[0], 0.0)
    within(z[1], 0.0)
    within(z[0] ** 2, sde.var(time(s)))
    within(z[1] ** 2, sde.var(time(t)))
    within(z[0] * z[1], a * sde.var(time(s)))
    within(z.prod(2).T, 0.0)


@dataclass(frozen=True)
class Brownian(SDE):
    """dx = dw, for which every solver is exact."""

    def drift(self, x, t):
        return 0 * x

    def diffusion(self, t):
        return 1 + 0 * t


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("ts", [[0.0, 0.25, 0.5, 0.9, 1.0], [2.0, 1.9, 1.45, 0.3]], ids=["up", "down"])
def test_simulated_times_need_not_be_steps(steps, ts):
    """Brownian motion has independent increments of variance |t - s| between any times, however few steps are asked."""
    x = Brownian().simulate(torch.zeros(4000, 2, dtype=F64), time(ts), steps=steps)
    z = x.diff(dim=0) / time(ts).diff().abs().sqrt().view(-1, 1, 1)
    for a, row in enumerate(z):
        within(row, 0.0)
        within(row**2, 1.0)
        for other in z[:a]:
            within(row * other, 0.0)


@pytest.mark.parametrize("method", ["euler", "heun", "reversible_heun"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_simulated_reverse_gives_the_data(method, eta):
    """From p_T backwards along the exact score, whatever eta, an image-shaped Gaussian gets its moments back."""
    sde = VP(0.1, 8.0)
    mean, spread = time([[[1.0, -1.0]], [[0.5, 2.0]]]), time([0.3, 1.0, 2.0, 0.6])
    law = exact.Gaussian(mean, spread).diffuse(sde)
    x_T = law.sample(2000, sde.T, torch.Generator().manual_seed(2))
    x = sde.reverse(law, eta).simulate(x_T, time([1.0, 0.5, 0.0]), steps=256, seed=1, method=method)
    assert x.shape == (3, 2000, 2, 1, 2)
    for t, x_t in zip((0.5, 0.0), x[1:]):
        v = sde.alpha(t) ** 2 * spread + sde.var(time(t))
        z = x_t.flatten(1) - sde.alpha(t) * mean.flatten()
        within(z, 0.0)
        within(z**2, v)
        within(z[:, :-1] * z[:, 1:], 0.0)


def test_simulated_flow_is_exact():
    """With eta=0 no noise enters: x - m shrinks as the standard deviation does, at the solver's order."""
    sde = VP(0.1, 8.0)
    p = sde.reverse(GAUSSIAN.diffuse(sde), eta=0)
    x, t, s = torch.randn(4, 3, dtype=F64), time(0.9), time(0.2)

    def std(t):
        return (sde.alpha(t) ** 2 * SPREAD + sde.var(t)).sqrt()

    truth = sde.alpha(s) * MEAN + std(s) / std(t) * (x - sde.alpha(t) * MEAN)
    for method, order in (("euler", 1), ("midpoint", 2)):
        coarse, fine = (
            float((p.simulate(x, torch.stack([t, s]), steps=n, method=method)[-1] - truth).norm()) for n in (60, 120)
        )
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_simulate_is_one_path():
    """The seed fixes the path, and reading it at more times does not change it."""
    sde, x = OU(), torch.randn(3, 2)
    a = sde.simulate(x, time([0.0, 1.0]), steps=8, seed=4)
    assert torch.equal(a, sde.simulate(x, time([0.0, 1.0]), steps=8, seed=4))
    assert not torch.equal(a[-1], sde.simulate(x, time([0.0, 1.0]), steps=8, seed=5)[-1])
    more = sde.simulate(x, time([0.0, 0.25, 0.5, 1.0]), steps=8, seed=4)
    torch.testing.assert_close(more[-1], a[-1], rtol=1e-5, atol=1e-6)
    assert a.dtype == torch.float32


@pytest.mark.parametrize(
    "ts",
    [time([0.0, 0.0]), time([0.0, 0.5, 0.2]), time([1.0, 0.5, 0.6]), time([0.0]), time(0.5), time([]), torch.ones(2, 2)]
    + [time([0.0, math.nan])],
    ids=str,
)
def test_simulate_refuses_times(ts):
    """Times go one way, and are at least two."""
    with pytest.raises(ValueError, match="^ts must be at least 2 strictly increasing or strictly decreasing times"):
        VP().simulate(torch.zeros(2, 2), ts)


def test_simulate_refuses_states():
    """States and steps are checked by name."""
    with pytest.raises(ValueError, match="^x must be finite, but sample 1 is not"):
        VP().simulate(torch.tensor([[0.0], [math.nan]]), time([0.0, 1.0]))
    with pytest.raises(ValueError, match="^steps must"):
        VP().simulate(torch.zeros(2, 2), time([0.0, 1.0]), steps=0)


class ConstantAlpha(LinearSDE):
    """sigma = t and nothing else, as a user would write it."""

    def log_alpha(self, t):
        return torch.zeros_like(t)

    def var(self, t):
        return t**2


def test_constant_alpha_has_no_drift():
    """An SDE whose log alpha does not depend on t has f = 0 and g^2 = d sigma^2/dt."""
    t = torch.linspace(0.1, 1, 5, dtype=torch.float64)
    assert torch.equal(ConstantAlpha().f(t), torch.zeros_like(t))
    torch.testing.assert_close(ConstantAlpha().g2(t), 2 * t)


@pytest.mark.parametrize("wrong", [lambda x, t: -x[:, :1], lambda x, t: -x[:, 0], lambda x, t: -x.mean()])
def test_a_score_of_another_shape_raises(wrong):
    """A score must have the shape of x: any other would broadcast, in drift, eps and denoise alike."""
    p, x, t = VP().reverse(wrong), torch.randn(3, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    for f in (p.drift, p.eps, p.denoise):
        with pytest.raises(ValueError, match="score must return the shape of x"):
            f(x, t)


# the ends


class Singular:
    """The score of N(0, 1) data where sigma > 0, and nan or infinite where it is 0, as that of a network is."""

    def __init__(self, sde, bad):
        self.law, self.var, self.bad = exact.Gaussian(torch.zeros(2), torch.ones(2)).diffuse(sde), sde.var, bad

    def __call__(self, x, t):
        return torch.where((self.var(t) == 0).view(-1, *(1,) * (x.ndim - 1)), self.bad, self.law(x, t))


@every_sde
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_singular_score_at_no_noise(sde, bad):
    """At t = 0, where sigma = 0, E[x_0 | x_t] is x itself and E[z | x_t] is 0, whatever the score says there; the other
    rows of the batch, and gradients, are as without that row.
    """
    x = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = time([0.0, 0.5 * sde.T, sde.T])
    p = sde.reverse(Singular(sde, bad))
    clean, eps = p.denoise(x, t), p.eps(x, t)
    if sde.var(time(0.0)) == 0:
        assert torch.equal(clean[0], x[0]) and not eps[0].any()
        assert torch.equal(p.denoise(x, t[0]), x) and not p.eps(x, t[0]).any()
    close(clean[1:], p.denoise(x[1:], t[1:]))
    close(eps[1:], p.eps(x[1:], t[1:]))
    (clean.sum() + eps.sum()).backward()
    assert x.grad.isfinite().all()


@every_sde
@pytest.mark.parametrize("t", [-0.5, 1.5, math.nan])
def test_times_outside_the_process_are_refused(sde, t):
    """By name, one time or one in a batch: there no law says what x_t is."""
    x, p, t = torch.zeros(2, 2, dtype=F64), sde.reverse(lambda x, t: -x), time(t) * sde.T
    for u in (t, torch.stack([time(sde.T / 2), t])):
        for call in (p.ask, p.eps, p.denoise, p.drift, sde.perturb):
            with pytest.raises(ValueError, match=r"^t must lie in \[0, T\]"):
                call(x, u)


def test_a_score_may_work_in_place():
    """On x and on t: it is given copies."""
    sde, x, t = VP(), torch.randn(3, 2, dtype=F64), time(0.5)

    def inplace(x, t):
        t.mul_(1000)
        return x.neg_()

    p, q = sde.reverse(inplace), sde.reverse(lambda x, t: -x)
    for f, g in ((p.ask, q.ask), (p.eps, q.eps), (p.denoise, q.denoise), (p.drift, q.drift)):
        assert torch.equal(f(x, t), g(x, t)) and t == 0.5


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda x, t: x.to(torch.complex128), "floating-point numbers, got torch.complex128"),
        (lambda x, t: x.long(), "floating-point numbers, got torch.int64"),
        (lambda x, t: None, "the shape of x, .*got NoneType"),
        (lambda x, t: (x, x), "the shape of x, .*got tuple"),
    ],
)
def test_what_is_no_score_is_refused(score, said):
    """Its imaginary part would be dropped."""
    with pytest.raises(ValueError, match=f"^score must return {said}"):
        VP().reverse(score).denoise(torch.zeros(2, 2), time(0.5))


def test_derivatives_in_inference_mode():
    """f and g^2 of an SDE that gives its marginals alone are the same there."""
    t = time([0.2, 0.7])
    want = OU().f(t), OU().g2(t)
    with torch.inference_mode():
        assert all(map(torch.equal, (OU().f(t.clone()), OU().g2(t.clone())), want))


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_times_outside_are_refused(sde):
    """What the formulas say there is of no process; rounding is let through. The marginals alone go on beyond T."""
    for t in (-0.1, 1.1 * sde.T, math.nan, time([0.5 * sde.T, math.nan])):
        for f in (sde.diffusion, lambda t: sde.drift(torch.zeros(2, 2), t)):
            with pytest.raises(ValueError, match=r"^t must lie in \[0, T\]"):
                f(t)
        with pytest.raises(ValueError, match=r"^s must lie in \[0, T\]"):
            sde.transition(sde.T, t)
    for t in (-0.1, math.inf, math.nan, time([0.5 * sde.T, math.nan])):
        for f in (sde.alpha, sde.sigma, sde.log_snr):
            with pytest.raises(ValueError, match=r"^t must lie in \[0, infinity\)"):
                f(t)
    close(sde.alpha(sde.T * (1 + 1e-9)), sde.alpha(sde.T), rtol=1e-4)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_transition_from_a_time_to_itself(sde):
    """x_t given x_t is x_t: also where sigma = 0, and log_snr is infinite on both sides."""
    for t in (0.0, sde.T / 2, time([0.0, sde.T])):
        a, v = sde.transition(t, t)
        assert (a == 1).all() and (v == 0).all()
    with pytest.raises(ValueError, match="^s must not be later than t"):
        sde.transition(sde.T / 3, sde.T / 2)
    with pytest.raises(ValueError, match="^t and s must have one shape"):
        sde.transition(time([0.5, 0.6]), time([0.1]))


@pytest.mark.parametrize("noise", [None, 0.5, torch.zeros(3, 2), VP])
def test_what_is_no_noise_is_refused(noise):
    """A class would be built with the state as its parameter."""
    p = VP().reverse(lambda x, t: -x)
    for call in (
        lambda: VP().perturb(torch.zeros(3, 2), 0.5, noise),
        lambda: VP().prior((3, 2), noise),
        lambda: sample(p, torch.zeros(3, 2), time([1.0, 0.5]), Ancestral(), noise=noise),
    ):
        with pytest.raises(ValueError, match="^noise must be a callable"):
            call()


@pytest.mark.parametrize("z", [torch.zeros(2), torch.zeros(1, 2), None, torch.zeros(3, 2).long()])
def test_draws_that_would_broadcast_are_refused(z):
    """One draw for all samples would correlate them."""
    with pytest.raises(ValueError, match="^noise must return"):
        VP().perturb(torch.zeros(3, 2), 0.5, lambda *_: z)
