"""Networks of other habits as scores: an exact law's answers, given in every habit of the field, give back its score,
and a habit that was stated wrongly is seen from data.
"""

import re

import pytest
import torch
from torch import nn

from scoresde import Ancestral, Epsilon, Karras, Reference, ScoreModel, iid, log_prob, sample
from scoresde.exact import GaussianMixture
from scoresde.interop import Adapted, from_azula, from_betas, from_denoiser, from_velocity, readings, require_reading
from scoresde.model import Data, FlowVelocity, LogSNR, NoiseLevel, ScoreValue, StepIndex, Time, Velocity
from scoresde.process import EDM, RectifiedFlow, Tabulated, linear_betas

F64 = torch.float64
LAW = GaussianMixture(
    torch.tensor([0.7, 0.3]), torch.tensor([[-0.5, 0.2], [0.6, -0.1]]), torch.tensor([[0.1, 0.2], [0.3, 0.05]])
)
SDE = Tabulated(linear_betas())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def column(t, x):
    return torch.as_tensor(t, dtype=F64).expand(len(x)).view(-1, *[1] * (x.ndim - 1))


def parts(sde, x, t):
    """(alpha, sigma, z, x_0) of x: E[z | x] and E[x_0 | x] of the law."""
    t = torch.as_tensor(t, dtype=F64).expand(len(x))
    alpha, sigma = column(sde.alpha(t), x), column(sde.sigma(t), x)
    z = -sigma * LAW.diffuse(sde)(x, t)
    return alpha, sigma, z, (x - sigma * z) / alpha


SAYS = {
    Epsilon(): lambda a, s, z, x_0: z,
    Data(): lambda a, s, z, x_0: x_0,
    Velocity(): lambda a, s, z, x_0: a * z - s * x_0,
    ScoreValue(): lambda a, s, z, x_0: -z / s,
    FlowVelocity(): lambda a, s, z, x_0: z - x_0,
    FlowVelocity(towards_data=True): lambda a, s, z, x_0: x_0 - z,
}


def of_steps(predicts):
    """The law as a network of the chain that is told an index from 0 to 999."""
    return lambda x, i: SAYS[predicts](*parts(SDE, x, (i.double() + 1) / 1000))


def same_score(model, sde, ts, tol=1e-9):
    assert model.sde == sde
    for t in ts:
        x = torch.randn(5, 2, generator=generator(), dtype=F64)
        torch.testing.assert_close(model(x, t), LAW.diffuse(sde)(x, t), rtol=tol, atol=tol)


@pytest.mark.parametrize("predicts", SAYS, ids=repr)
def test_what_a_network_of_steps_predicts(predicts):
    """At the knots and between them."""
    same_score(from_betas(of_steps(predicts), linear_betas(), predicts), SDE, (0.001, 0.0375, 0.5, 0.8123, 1.0))


def test_whole_indices():
    """A network of rows is asked for the nearest row alone, as a whole number, and is its own score at the knots."""
    asked = []

    def rows(x, i):
        asked.append(i)
        return of_steps(Epsilon())(x, i)

    model = from_betas(rows, linear_betas(), whole=True)
    same_score(model, SDE, (0.001, 0.5, 1.0))
    x = torch.randn(5, 2, generator=generator(), dtype=F64)
    between = model.eps(x, torch.tensor([0.4994, 0.4996, 0.5, 0.5004, 0.5006], dtype=F64))
    assert all(i.dtype == torch.int64 for i in asked)
    assert asked[-1].tolist() == [498, 499, 499, 499, 500]
    torch.testing.assert_close(between[1], of_steps(Epsilon())(x, torch.tensor(499))[1])
    assert StepIndex(1000)(SDE, torch.tensor(0.0004)) == 0 and StepIndex(10)(SDE, torch.tensor(1.0)) == 9


def test_denoisers_and_velocities():
    """D(x, sigma), and v(x, t) either way round and in thousandths."""
    denoise = lambda x, sigma: parts(EDM(), x, sigma)[3]  # noqa: E731
    same_score(from_denoiser(denoise), EDM(), (0.002, 0.3, 5.0, 80.0), 1e-7)
    assert from_denoiser(denoise, 0.01, 50.0).sde == EDM(T=50.0, t_min=0.01)
    flow, ts = RectifiedFlow(), (0.001, 0.25, 0.7, 0.999)
    away = lambda x, t: SAYS[FlowVelocity()](*parts(flow, x, t))  # noqa: E731
    same_score(from_velocity(away), flow, ts)
    same_score(from_velocity(lambda x, t: away(x, t / 1000), scale=1000.0), flow, ts)
    same_score(from_velocity(lambda x, t: -away(x, 1 - t), towards_data=True), flow, ts)
    same_score(from_velocity(lambda x, t: -away(x, 1 - t / 9), towards_data=True, scale=9.0), flow, ts)


@pytest.mark.parametrize("way", ["attribute", "tuple", "dictionary"])
def test_answers_and_labels(way):
    """A tensor is found in what holds it; the label goes by the network's own name, and one stands for none."""
    told = []

    class Out:
        def __init__(self, x):
            self.sample = x

    def net(x, i, y=None, scale=1.0):
        told.append((y, scale))
        x = x * scale
        return {"attribute": Out(x), "tuple": (x, None), "dictionary": {"sample": x}}[way]

    model, x = from_betas(net, linear_betas(), label="y", classes=3), torch.ones(2, 2)
    assert torch.equal(model.eps(x, 0.5, label=torch.tensor([0, 2]), scale=2.0), 2 * x)
    assert told[0][0].tolist() == [0, 2] and told[0][1] == 2.0 and model.net.classes == 3
    Adapted(net, "y", 3, none=3)(x, torch.ones(2))
    assert told[1][0].tolist() == [3, 3]
    with pytest.raises(ValueError, match="net must return a tensor, or what holds one under 'sample', got str"):
        from_betas(lambda x, i: "x", linear_betas()).eps(x, 0.5)


def test_weights_are_the_networks_own():
    """A module is a part of the model: it moves with it, computes in its own type, is set to evaluate, and asks for no
    gradients of its weights; a variance comes from the second half of the channels.
    """

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.drop = nn.Parameter(torch.ones(1, dtype=torch.bfloat16)), nn.Dropout(0.5)

        def forward(self, x, i):
            assert x.dtype == torch.bfloat16 and i.dtype == torch.float32
            return torch.cat([self.w * self.drop(x), 0 * x], 1)

    net = Net()
    model = from_betas(net, linear_betas(), variance=True)
    x = torch.randn(3, 2, 4, 4, generator=generator())
    score, v = model.both(x, 0.5)
    assert score.shape == x.shape and torch.equal(v, torch.full_like(x, 0.5)) and not score.requires_grad
    assert [*model.parameters()] == [net.w] and not net.w.requires_grad and not net.training


def test_a_wrong_statement_is_seen_from_data():
    """Each reading of each network but its own is refused, by the name of the right one; so is a time that runs the
    wrong way, and data in other units.
    """
    data = LAW.sample(200, generator(1))
    for told in SAYS:
        for predicts in SAYS:
            if predicts == told:
                best = from_betas(of_steps(told), linear_betas(), predicts, data=data)
                assert readings(best, data)[predicts] < 0.97
            else:
                with pytest.raises(ValueError, match=re.escape(f"as {told} ")):
                    from_betas(of_steps(told), linear_betas(), predicts, data=data)
    backwards = lambda x, i: of_steps(Epsilon())(x, 999 - i)  # noqa: E731
    for net, x_0 in ((backwards, data), (of_steps(Epsilon()), 30 * data + 40)):
        with pytest.raises(ValueError, match="must tell more of the noise .* are data in the units .* told the time"):
            from_betas(net, linear_betas(), data=x_0)
    with pytest.raises(ValueError, match="predicts must be|must tell more of the noise"):
        from_betas(lambda x, i: 0 * x, linear_betas(), data=data)
    with pytest.raises(ValueError, match="predicts must be"):
        require_reading(from_velocity(lambda x, t: SAYS[Data()](*parts(RectifiedFlow(), x, t))), data)
    assert readings(best, data, seed=1) != readings(best, data) == readings(best, data)


def test_data_with_labels_and_few():
    """A network that needs its label is told those of the data; fewer than eight samples tell nothing."""
    x, y = LAW.sample(40, generator(1)), torch.arange(40) % 3

    def net(x, i, label):
        assert len(label) == len(x)
        return of_steps(Epsilon())(x, i)

    assert readings(from_betas(net, linear_betas(), classes=3, data=(x, y)), (x, y))[Epsilon()] < 1
    assert from_betas(net, linear_betas(), classes=3, none=3, data=x).net.none == 3
    with pytest.raises(ValueError, match="data must be such samples .* or give .data, labels. if it needs labels"):
        from_betas(net, linear_betas(), classes=3, data=x)
    with pytest.raises(ValueError, match="data must hold a label for each of 40 samples"):
        from_betas(net, linear_betas(), classes=3, data=(x, y[:3]))
    with pytest.raises(ValueError, match="data must hold at least 8 samples, got 7"):
        from_betas(of_steps(Epsilon()), linear_betas(), data=x[:7])
    for seed in range(20):
        from_betas(of_steps(Epsilon()), linear_betas(), data=LAW.sample(16, generator(seed)))
    with pytest.raises(ValueError, match="must tell more of the noise|predicts must be"):
        from_betas(of_steps(Epsilon()), linear_betas(), data=4 * x)


def test_all_else_takes_them():
    """Samples and a likelihood of such a network are those of the law's own score."""
    model, x = from_betas(of_steps(Velocity()), linear_betas(), Velocity()), LAW.sample(4, generator(2))
    own = SDE.reverse(LAW.diffuse(SDE))
    torch.testing.assert_close(log_prob(SDE.reverse(model), x).log_p, log_prob(own, x).log_p, rtol=1e-6, atol=1e-6)
    x_T, ts = SDE.prior((7, 2), iid(generator()), F64), SDE.grid()[:-1:25]
    drawn = (sample(p, x_T, ts, Ancestral(), noise=iid(generator(3))) for p in (SDE.reverse(model), own))
    torch.testing.assert_close(*drawn, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: from_betas(nn.Linear, linear_betas()), "net must be a network, got"),
        (lambda: from_betas(lambda x, i: x, torch.tensor([0.1, 2.0])), "betas must be inside"),
        (lambda: from_betas(lambda x, i: x, linear_betas(), classes=-1), "classes must"),
        (lambda: from_betas(lambda x, i: x, linear_betas(), "epsilon"), "predicts must be a Parametrisation"),
        (lambda: from_denoiser(lambda x, s: x, 1.0, 0.5), "sigma_max must"),
        (lambda: from_velocity(lambda x, t: x, scale=float("nan")), "scale must"),
        (lambda: from_azula(lambda x, t: x), "denoiser must be one of azula, with a schedule, got function"),
        (lambda: readings(from_denoiser(lambda x, s: x), torch.zeros(3, dtype=torch.int64)), "data must be"),
        (lambda: StepIndex(0), "n must"),
        (lambda: Time(shift=float("inf")), "shift must"),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_azula():
    """A Gaussian of azula, on each of its schedules: E[z | x] as it has it natively, to 1e-6, at its own times."""
    denoise, noise = pytest.importorskip("azula.denoise"), pytest.importorskip("azula.noise")
    cov = pytest.importorskip("azula.linalg.covariance")
    mean, std = torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([0.5, 2.0], dtype=F64)
    for schedule in (noise.VPSchedule(), noise.VESchedule(), noise.CosineSchedule(), noise.RectifiedSchedule()):
        theirs = denoise.GaussianDenoiser(mean, cov.DiagonalCovariance(std**2), schedule)
        model = from_azula(theirs)
        y = torch.randn(4, 2, generator=generator(), dtype=F64)
        for t in torch.tensor([0.05, 0.4, 0.9], dtype=F64):
            alpha, sigma = schedule(t)
            want = (alpha * y - alpha * theirs(alpha * y, t).mean) / sigma
            torch.testing.assert_close(model.eps(y, float(sigma / alpha)), want, rtol=1e-6, atol=1e-6)


def test_a_denoiser_with_scalings_inside():
    """D = c_skip x + c_out F(c_in x, log(sigma)/4), as EDM's code and k-diffusion have it (Karras et al. 2022, table
    1), is Karras' parametrisation of F here, to 1e-6.
    """
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 2).double()

        def forward(self, x, c):
            return self.lin(torch.cat([x, c[:, None]], 1)).sin()

    net, d = Net(), 0.5

    def denoise(x, sigma):
        s = sigma[:, None]
        total = (s**2 + d**2).sqrt()
        return d**2 / total**2 * x + s * d / total * net(x / total, sigma.log() / 4)

    model, ours = from_denoiser(denoise), ScoreModel(net, EDM(), Karras(Reference(std=d)), LogSNR(-0.25))
    x = torch.randn(4, 2, generator=generator(), dtype=F64)
    for t in (0.01, 0.7, 20.0):
        torch.testing.assert_close(model.eps(t * x, t), ours.eps(t * x, t), rtol=1e-6, atol=1e-6)
    assert isinstance(model.clock, NoiseLevel)
