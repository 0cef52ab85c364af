"""A network read as a score: which dtype computes, what the network is told, and what is refused."""

import math

import pytest
import torch
from torch import nn

from scoresde import (
    EDM,
    VE,
    VP,
    Ancestral,
    Cosine,
    Epsilon,
    EulerMaruyama,
    Flow,
    Karras,
    RectifiedFlow,
    Reference,
    ScoreModel,
    SubVP,
    Tabulated,
    exact,
    grid,
    sample,
    transport,
)
from scoresde.model import Data, EnergyModel, LogSNR, ScoreValue, Steps, TwoHeads, Velocity, clamped
from scoresde.nn import MLP

F64 = torch.float64
SDES = [VP(), SubVP(), VE(0.05, 20.0), Cosine(), RectifiedFlow(), EDM(T=30.0)]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
PREDICTS = [Epsilon(), Data(), Velocity(), ScoreValue(), Karras(Reference(std=0.6)), Karras(Reference(0.4, 0.6))]
every_parametrisation = pytest.mark.parametrize("predicts", PREDICTS, ids=repr)


class Net(nn.Module):
    """tanh(W x) + sin c, which remembers what it was called with."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.W = nn.Linear(3, 3, dtype=dtype)
        nn.init.normal_(self.W.weight, generator=torch.Generator().manual_seed(1))

    def forward(self, x, c, **cond):
        self.seen = x, c, cond
        return torch.tanh(self.W(x)) + c.sin()[:, None]


def normal(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# dtypes


@every_parametrisation
@pytest.mark.parametrize("inside", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outside", [torch.float64, torch.float32])
def test_network_and_state_keep_their_dtypes(predicts, inside, outside):
    """The network is asked in the dtype of its parameters and told its clock in float32 or better; score and eps come
    in the state's dtype.

    Only the network's answer is rounded: a y + b F(c_in y, c), y = x - alpha m, with F alone in the lower precision.
    """
    sde, net, x, t = VP(0.1, 5.0), Net(inside), normal(4, 3).to(outside), torch.tensor(0.4, dtype=F64)
    model = ScoreModel(net, sde, predicts)
    e = model.eps(x, t)
    assert e.dtype == model(x, t).dtype == outside
    told = torch.promote_types(inside, torch.float32)
    assert net.seen[0].dtype == inside and net.seen[1].dtype == told and net.seen[1].shape == (4,)
    a, b, c_in = predicts(sde.alpha(t), sde.sigma(t))
    y = x - sde.alpha(t) * (0.4 if predicts == PREDICTS[-1] else 0.0)
    assert y.dtype == outside
    F = net((c_in * y).to(inside), sde.log_snr(t).to(told).expand(4)).to(F64)
    rtol = 1e-12 if outside == F64 else 1e-5
    torch.testing.assert_close(e.to(F64), a * y.to(F64) + b * F, rtol=rtol, atol=rtol)
    torch.testing.assert_close(model(x, t) * sde.sigma(t), -e, rtol=10 * rtol, atol=rtol)


def test_a_network_without_parameters_computes_in_the_state():
    """With no floating-point parameter to follow, the network is asked in x's dtype."""

    class Bare(nn.Module):
        def forward(self, x, c):
            self.seen = x.dtype, c.dtype
            return x

    for dtype in (torch.float32, F64):
        model = ScoreModel(Bare(), VP())
        assert model(torch.zeros(2, 3, dtype=dtype), 0.5).dtype == dtype
        assert model.net.seen == (dtype, dtype)


@pytest.mark.parametrize("outside", [torch.float64, torch.float32])
def test_autocast(outside):
    """Under autocast the layers compute in bfloat16, the state keeps its dtype, and the score is near float32's."""
    sde, x, t = VP(0.1, 5.0), normal(6, 3).to(outside), torch.tensor(0.4, dtype=F64)
    model, inside = ScoreModel(Net(), sde, Velocity()), []
    model.net.W.register_forward_hook(lambda module, args, out: inside.append(out.dtype))
    plain = model.eps(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model.eps(x, t)
        y = sample(sde.reverse(model), x, grid.uniform(sde, 3, 0.1), Ancestral())
    assert inside[0] == torch.float32 and set(inside[1:]) == {torch.bfloat16}
    assert cast.dtype == y.dtype == outside
    assert 0 < (cast - plain).abs().max() < 0.05


@every_parametrisation
def test_times_of_both_shapes_agree(predicts):
    """t of shape () is t of shape (B,) filled with it, and a row's answer is that of its own time."""
    sde, x = VP(0.1, 5.0), normal(4, 3)
    model, ts = ScoreModel(Net(F64), sde, predicts), torch.tensor([0.1, 0.4, 0.4, 0.9], dtype=F64)
    each = torch.cat([model(x[i : i + 1], ts[i]) for i in range(4)])
    torch.testing.assert_close(model(x, ts), each, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(x, torch.full((4,), 0.4, dtype=F64)), model(x, 0.4), rtol=1e-12, atol=1e-12)


# what the network is told


@every_sde
def test_clocks(sde):
    """LogSNR(k) is k log(alpha/sigma), EDM's log(sigma)/4 at k = -1/4; Steps(n, shift) is (n-1) t/T + shift."""
    t = sde.T * torch.tensor([0.1, 0.5, 1.0], dtype=F64)
    for clock, want in [
        (LogSNR(), (sde.alpha(t) / sde.sigma(t)).log()),
        (LogSNR(-0.25), (sde.sigma(t) / sde.alpha(t)).log() / 4),
        (Steps(), 999 * t / sde.T),
        (Steps(51, shift=-1.0), 50 * t / sde.T - 1),
    ]:
        torch.testing.assert_close(clock(sde, t), want, rtol=1e-12, atol=1e-12)
        model = ScoreModel(Net(F64), sde, clock=clock)
        model(normal(3, 3), t)
        torch.testing.assert_close(model.net.seen[1], want, rtol=1e-12, atol=1e-12)


def test_clock_of_a_discrete_chain():
    """On the knots i/n of a table, Steps(n + 1, shift=-1) counts 0, 1, ..., n - 1 as a DDPM network expects."""
    sde = Tabulated(torch.linspace(1e-4, 0.02, 40, dtype=F64))
    knots = torch.arange(1, 41, dtype=F64) / 40
    torch.testing.assert_close(Steps(41, shift=-1.0)(sde, knots), torch.arange(40, dtype=F64), rtol=0, atol=1e-12)


# data with a mean


class Zero(nn.Module):
    """0 in the shape that a model's class wants, which remembers what it was asked."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x, c):
        self.seen = x
        return nothing(self.kind, 0 * x)


def nothing(kind, x):
    return {ScoreModel: x, TwoHeads: torch.cat([x, x], 1), EnergyModel: x.flatten(1).sum(1)}[kind]


class Wave(nn.Module):
    """cos(3 x) + c in that shape."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x, c):
        self.seen = x
        return nothing(self.kind, torch.cos(3 * x) + c.view(-1, *(1,) * (x.ndim - 1)))


every_kind = pytest.mark.parametrize("kind", [ScoreModel, TwoHeads, EnergyModel], ids=lambda kind: kind.__name__)


@every_sde
def test_karras_has_unit_variance(sde):
    """The network's input and its target have mean 0 and variance 1 over samples and pixels at every noise level, for
    data whose pixels have means of their own, seen around their Gaussian (Karras et al. 2022, eq. 7).

    Both are affine in z, so that their first two moments over z ~ N(0, 1) are those over z = +-1.
    """
    x_0 = normal(9, 1, 2, 3) * torch.tensor([0.2, 0.7, 1.1], dtype=F64) + 2 * normal(1, 2, 3, seed=4) + 1.5
    model = ScoreModel(Zero(ScoreModel), sde, Karras(Reference.fit(x_0)))
    z = torch.cat([torch.ones_like(x_0), -torch.ones_like(x_0)])
    for share in (0.02, 0.3, 0.9):
        t = torch.tensor(share * sde.T, dtype=F64)
        eps = model.eps(sde.alpha(t) * x_0.repeat(2, 1, 1, 1) + sde.sigma(t) * z, t)
        _, b, _ = model.predicts(sde.alpha(t), sde.sigma(t))
        for values in (model.net.seen, (z - eps) / b):  # eps + b F = z is what F should make of it
            assert float(values.mean()) == pytest.approx(0, abs=1e-10)
            assert float(values.square().mean()) == pytest.approx(1, rel=1e-10)


@every_kind
@every_sde
def test_karras_is_exact_around_a_gaussian(sde, kind):
    """For data N(m, c^2 I) a network that answers 0 has the true eps and score, and as an energy the true density."""
    law = exact.Gaussian(torch.full((3,), 0.7, dtype=F64), 0.36).diffuse(sde)
    model, p = kind(Zero(kind), sde, Karras(Reference(0.7, 0.6))), sde.reverse(law)
    for t in (torch.tensor(0.4 * sde.T, dtype=F64), sde.T * torch.tensor([0.02, 0.5, 0.7, 0.98], dtype=F64)):
        x = law.sample(4, t, torch.Generator().manual_seed(1))
        torch.testing.assert_close(model.eps(x, t), p.eps(x, t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model(x, t), law(x, t), rtol=1e-9, atol=1e-9)
        if kind is TwoHeads:
            torch.testing.assert_close(model.both(x, t)[0], law(x, t), rtol=1e-9, atol=1e-9)
        if kind is EnergyModel:
            y = law.sample(4, t, torch.Generator().manual_seed(2))
            rise = model.log_prob(y, t) - model.log_prob(x, t)
            torch.testing.assert_close(rise, law.log_prob(y, t) - law.log_prob(x, t), rtol=1e-9, atol=1e-9)


@every_kind
@pytest.mark.parametrize(
    ("around", "mean", "std"),
    [
        (Reference(0.7, 0.6), 0.7, 0.6),
        (Reference(torch.tensor(-1.5), 0.6), -1.5, 0.6),
        (Reference(torch.tensor([[[1.0, 2.0], [1.5, 1.5]]]), 0.6), 1.5, (0.36 + 0.125) ** 0.5),
    ],
    ids=["number", "tensor", "image"],
)
def test_every_model_sees_the_shift(kind, around, mean, std):
    """A model around the mean m is the model around 0 at x - alpha m, in all that it can be asked; of an image of means
    m is the mean over pixels, and their spread is part of the deviation. An energy's score is its slope.
    """
    sde, x = VP(0.1, 5.0), normal(4, 1, 2, 2)
    model, centred = kind(Wave(kind), sde, Karras(around)), kind(Wave(kind), sde, Karras(Reference(std=std)))
    assert model.around is around
    for t in (torch.tensor(0.4, dtype=F64), torch.tensor([0.1, 0.4, 0.5, 1.0], dtype=F64)):
        y = x - mean * sde.alpha(t).view(-1, 1, 1, 1)
        asked = [(model(x, t), centred(y, t)), (model.eps(x, t), centred.eps(y, t))]
        asked += [(model.net.seen, centred.net.seen)]
        if kind is TwoHeads:
            asked += zip(model.both(x, t), centred.both(y, t))
        if kind is EnergyModel:
            asked += [(model.log_prob(x, t), centred.log_prob(y, t))]
            u = x.clone().requires_grad_()
            asked += [(model(x, t), torch.autograd.grad(model.log_prob(u, t).sum(), u)[0])]
        for a, b in asked:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert (model(x, t) - centred(x, t)).abs().min() > 1e-3


def test_only_karras_knows_a_gaussian():
    """`around` is None for a model whose parametrisation has none, and the mean is then 0."""
    for predicts in PREDICTS[:4]:
        model = ScoreModel(Net(), VP(), predicts)
        assert model.around is None and predicts.mean == 0
    assert ScoreModel(Net(), VP(), Karras()).around == Reference(std=0.5)


# what else it is told


def test_conditions_reach_the_network():
    """Keyword arguments of eps and of the score arrive at the network's forward as they are."""
    model, label = ScoreModel(Net(), VP()), torch.tensor([1, 2])
    for call in (model.eps, model):
        call(torch.zeros(2, 3), 0.5, label=label, mask=None)
        assert model.net.seen[2]["label"] is label and model.net.seen[2]["mask"] is None


# any callable is a score


def test_any_callable_is_a_score():
    """A model, its bound method, a closure over it with guidance, and an exact law are sampled by the same call."""
    sde, x = VP(), normal(5, 3)
    model, law = ScoreModel(Net(F64), sde, Velocity()), exact.Gaussian(torch.zeros(3), 1.0).diffuse(sde)
    run = lambda score: sample(sde.reverse(score, 0.0), x, grid.uniform(sde, 5, 0.1), EulerMaruyama())  # noqa: E731
    assert torch.equal(run(model), run(model.forward))
    assert torch.equal(run(model), run(lambda x, t: model(x, t, label=None)))
    mixed = lambda w: lambda x, t: w * model(x, t) + (1 - w) * law(x, t)  # noqa: E731
    torch.testing.assert_close(run(mixed(1.0)), run(model), rtol=1e-12, atol=0)
    torch.testing.assert_close(run(mixed(0.0)), run(law), rtol=1e-12, atol=0)
    # for data N(0, I) the marginals of VP are N(0, I), and the drift of the flow is 0
    torch.testing.assert_close(run(law), x, rtol=1e-12, atol=1e-12)


# transport


@pytest.mark.parametrize(
    ("source", "target"),
    [(VP(), VE(0.05, 20.0)), (EDM(T=80.0), Cosine(T=0.98)), (RectifiedFlow(), VP(0.1, 12.0))],
    ids=lambda sde: type(sde).__name__,
)
def test_transport_there_and_back(source, target):
    """A model's score, taken to another SDE and back, is the model's, at every time that both of them have."""
    model, x = ScoreModel(Net(F64), source, Karras(Reference(std=0.6))), normal(7, 3)
    low = max(float(target.log_snr(target.T)), float(source.log_snr(source.T))) + 1e-6
    high = min(float(source.log_snr(0.05 * source.T)), float(target.log_snr(0.0)) - 1e-6)
    t = source.time(torch.linspace(low, high, 7, dtype=F64))
    there = transport(model, source, target)
    u, c = target.time(source.log_snr(t)), (target.alpha(target.time(source.log_snr(t))) / source.alpha(t))[:, None]
    torch.testing.assert_close(c * there(c * x, u), model(x, t), rtol=1e-8, atol=1e-8)


@every_sde
def test_transport_to_the_same_process(sde):
    """Between equal processes a score is itself; tables are equal by their numbers."""
    score = lambda x, t: -x  # noqa: E731
    assert transport(score, sde, sde) is score
    table = torch.linspace(1e-4, 0.02, 40, dtype=F64)
    assert transport(score, Tabulated(table), Tabulated(table.clone())) is score


def test_transport_of_the_score_of_another_process():
    """A score that says it is of another process than the source is refused, whatever the target."""
    for target in (VP(0.1, 12.0), EDM()):
        with pytest.raises(
            ValueError, match=r"^score is that of VP\(.*\), not of VP\(beta_min=0.1, beta_max=12.0, t_min=0.001\)"
        ):
            transport(ScoreModel(Net(F64), VP()), VP(0.1, 12.0), target)


def test_a_model_made_for_samples_of_another_shape():
    """A Gaussian of data of shape (2,) is none of samples of shape (3,)."""
    model = ScoreModel(Net(F64), VP(), Karras(Reference.fit(normal(10, 2))))
    for call in (model, model.eps):
        with pytest.raises(ValueError, match=r"^around must have a number or an array of shape \(3,\) as mean"):
            call(normal(4, 3), torch.tensor(0.5, dtype=F64))


def test_transport_carries_the_flow():
    """The probability flow of a transported model is the model's, scaled: one ODE in two sets of coordinates."""
    source, target = VP(0.1, 8.0), VE(0.05, 20.0)
    model, x = ScoreModel(Net(F64), source, Velocity()), normal(4, 3)
    lam = torch.linspace(float(source.log_snr(1.0)), 1.5, 200, dtype=F64)
    u = target.time(lam)
    wide = VE(0.05, float(target.sigma(u[0])))
    a = sample(source.reverse(model, 0.0), x, source.time(lam).clamp_max(1.0), Flow())
    scaled = x / source.alpha(1.0)
    moved = transport(model, source, wide)
    b = sample(wide.reverse(moved, 0.0), scaled, wide.time(lam).clamp_max(1.0), Flow())
    torch.testing.assert_close(b, a / source.alpha(source.time(lam[-1])), rtol=1e-3, atol=1e-3)


# what is refused


@pytest.mark.parametrize("change", ["narrow", "flat", "more"])
def test_wrong_output_shapes(change):
    """A network that returns another shape than x's is an error with both shapes, and no broadcast."""

    class Wrong(nn.Module):
        def forward(self, x, c):
            return {"narrow": x[:, :1], "flat": x.flatten(), "more": torch.cat([x, x])}[change]

    with pytest.raises(ValueError, match=r"net must return the shape of x, \(2, 3\)"):
        ScoreModel(Wrong(), VP())(torch.zeros(2, 3), 0.5)


@pytest.mark.parametrize("t", [torch.full((3,), 0.5), torch.full((1,), 0.5), torch.full((2, 1), 0.5)], ids=str)
def test_wrong_shapes_of_t(t):
    """Two samples have one time or two: any other number is refused, by the score and by eps."""
    model = ScoreModel(Net(), VP())
    for call in (model, model.eps):
        with pytest.raises(ValueError, match="t must have shape"):
            call(torch.zeros(2, 3), t)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"net": lambda x, c: x}, "net"),
        ({"net": None}, "net"),
        ({"net": MLP}, "net"),
        ({"sde": VP}, "sde"),
        ({"sde": "vp"}, "sde"),
        ({"predicts": Epsilon}, "predicts"),
        ({"predicts": "epsilon"}, "predicts"),
        ({"clock": LogSNR}, "clock"),
        ({"clock": 1000}, "clock"),
    ],
)
def test_wrong_arguments(change, match):
    """Each argument of another type is named; a class in place of its value is the usual slip."""
    with pytest.raises(ValueError, match=f"{match} must be"):
        ScoreModel(**({"net": Net(), "sde": VP()} | change))


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, None, "1"])
def test_data_have_a_deviation(value):
    """The data of a Karras network are given as a Gaussian, whose standard deviation is a finite number above 0."""
    with pytest.raises(ValueError, match="^around must be a Reference"):
        Karras(value)
    with pytest.raises(ValueError, match="^std must|^around must have a standard deviation above 0 and below infinity"):
        Karras(Reference(std=value))


# the ends, and networks that do what they should not


@pytest.mark.parametrize("clock", [LogSNR(), Steps(1000)], ids=repr)
@every_parametrisation
def test_no_noise_tells_nothing_of_z(predicts, clock):
    """At sigma = 0 eps is E[z | x_0] = 0, in that row of a batch alone, and no gradient is nan; the score, which is
    singular, is refused with its time.
    """
    model, x = ScoreModel(Net(F64), VP(), predicts, clock), normal(3, 3)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    e = model.eps(x, t)
    assert not e[0].any() and not model.eps(x, 0.0).any()
    torch.testing.assert_close(e[1:], model.eps(x[1:], t[1:]), rtol=1e-12, atol=1e-12)
    e.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    for call in (model, clamped(model, VP()), transport(model, VP(), VP(0.1, 19.0))):
        with pytest.raises(ValueError, match="sigma = 0: .*t = 0"):
            call(x, t)


@pytest.mark.parametrize("t", [-0.5, 1.5, math.nan, [0.5, 0.5, 3.0]], ids=str)
def test_times_outside_the_process(t):
    """Are named, and no network is asked about them."""
    model, x, t = ScoreModel(Net(F64), VP()), normal(3, 3), torch.tensor(t, dtype=F64)
    for call in (model, model.eps, transport(model, VP(), VP(0.1, 19.0)), clamped(model, VP())):
        with pytest.raises(ValueError, match=r"^t must lie in \[0, T\] = \[0, 1\]"):
            call(x, t)


def test_a_network_may_work_in_place():
    """On its input and on its clock; the state and the time are the caller's."""

    class Inplace(nn.Module):
        def forward(self, x, c):
            c.mul_(1000)
            return x.mul_(2).tanh_()

    class Pure(nn.Module):
        def forward(self, x, c):
            return (2 * x).tanh()

    x, t = normal(3, 3), torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    for predicts in PREDICTS:
        got, want = (ScoreModel(net, VP(), predicts)(x, t) for net in (Inplace(), Pure()))
        assert torch.equal(got, want)
    assert torch.equal(x, normal(3, 3)) and t.tolist() == [0.2, 0.5, 0.9]


def test_complex_answers_are_refused():
    """By name: their imaginary part would be dropped."""

    class Complex(nn.Module):
        def forward(self, x, c):
            return x + 1j

    with pytest.raises(ValueError, match="^net must return floating-point numbers, got torch.complex128"):
        ScoreModel(Complex(), VP()).eps(normal(3, 3), 0.5)


def test_energies_in_inference_mode():
    """The score of an energy is the same under no_grad and inference_mode, labels included."""

    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.W, self.told = nn.Linear(3, 3, dtype=F64), nn.Embedding(4, 3, dtype=F64)

        def forward(self, x, c, label):
            return (self.W(x) + self.told(label) + c[:, None]).square().sum(1)

    model, x, label = EnergyModel(Energy(), VP()), normal(3, 3), torch.tensor([0, 3, 1])
    with torch.no_grad():
        want = model(x, 0.5, label=label)
    with torch.inference_mode():
        assert torch.equal(model(x.clone(), torch.tensor(0.5, dtype=F64), label=label.clone()), want)
