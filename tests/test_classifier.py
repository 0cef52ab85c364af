"""A classifier of noisy samples learns the exact posterior at every noise level, by the loop that trains scores."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from scoresde import VE, VP, Checkpoint, Karras, Reference, ScoreModel, iid, load, loss, save
from scoresde.checkpoint import load_as, load_state
from scoresde.data import Dataset, Digits
from scoresde.exact import GaussianMixture
from scoresde.guide import classified
from scoresde.logbook import held_out_loss
from scoresde.loss import LogNormal, cross_entropy
from scoresde.model import ClassModel, NoisyModel
from scoresde.nn import MLP, MLPEncoder, UNetEncoder
from scoresde.noise import seeded
from scoresde.training import Settings, averaged, train, usual_encoder, usual_settings

F64 = torch.float64
SHARES, VARS = torch.tensor([0.65, 0.35], dtype=F64), torch.tensor([0.3, 0.1], dtype=F64)
LAW = GaussianMixture(SHARES, torch.tensor([[-1.0], [0.8]], dtype=F64), VARS)
SHORT = Settings(steps=40, batch=16, warmup=5, ema=0.2, seed=1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(n, seed=0):
    """Samples of the law with their labels."""
    g = generator(seed)
    y = (torch.rand(n, generator=g) < 0.35).long()
    z = torch.randn(n, 1, generator=g, dtype=F64)
    x = (LAW.means[y] + VARS.sqrt()[y, None] * z).float()
    return Dataset(x, x[:50], y, y[:50])


def model(data, seed=0, sde=VP(), width=8, depth=1):
    with seeded(seed):
        return ClassModel(MLPEncoder(data.shape, data.classes, width, depth), sde, data.around)


def weights(m):
    return {k: v.clone() for k, v in m.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Told(nn.Module):
    """Logits that are linear in the input and the clock, and what it was asked."""

    classes = 3

    def forward(self, u, c):
        self.asked = u, c
        return torch.stack([u.sum(1), c, 0 * c], 1)


@pytest.mark.parametrize("sde", [VP(), VE(0.01, 20.0)], ids=lambda sde: type(sde).__name__)
def test_what_the_network_sees(sde):
    """(x - alpha m)/sqrt(alpha^2 c^2 + sigma^2), which for Gaussian data has mean 0 and variance 1 at every level, and
    the clock; below t_min it is asked at t_min. The loss is -log softmax at x_t.
    """
    m, c, net = 0.7, 0.4, Told()
    made, t = ClassModel(net, sde, Reference(m, c)), torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=F64)
    x = torch.randn(4, 2, generator=generator(), dtype=F64)
    logits, at = made(x, t), t.clamp_min(sde.t_min)
    alpha, sigma = sde.alpha(at)[:, None], sde.sigma(at)[:, None]
    u = (x - alpha * m) / (alpha**2 * c**2 + sigma**2).sqrt()
    torch.testing.assert_close(net.asked[0], u, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net.asked[1], sde.log_snr(at), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits, torch.stack([u.sum(1), sde.log_snr(at), 0 * at], 1), rtol=1e-12, atol=1e-12)
    label, z = torch.tensor([0, 1, 2, 0]), torch.randn(4, 2, generator=generator(1), dtype=F64)
    found = cross_entropy(made, x, t, label, lambda *_: z)
    x_t = sde.alpha(t)[:, None] * x + sde.sigma(t)[:, None] * z
    want = -made(x_t, t).log_softmax(1)[torch.arange(4), label]
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


def test_training_reaches_the_posterior():
    """p(c | x_t) of a mixture of two Gaussians, to 0.02 in the mean at each of five noise levels, far nearer than
    posteriors that forget the noise, alpha, or how common the classes are.
    """
    data, sde = drawn(20_000), VP()
    made = train(
        model(data, width=32, depth=2), data, Settings(steps=700, batch=256, times=LogNormal(0.0, 2.0)), progress=False
    )
    errors, wrong = [], []
    for t in (0.05, 0.15, 0.3, 0.5, 0.8):
        at = torch.tensor(t, dtype=F64)
        law = LAW.marginal(sde, at)
        x = law.sample(2000, generator(1))
        want = law.responsibilities(x)
        off = lambda p, want=want: float((p - want).abs().mean())  # noqa: E731
        errors.append(off(made(x.float(), at).softmax(1).double()))
        noisier, equal = GaussianMixture(SHARES, LAW.means, VARS + sde.var(at)), want / SHARES
        wrong.append((off(LAW.responsibilities(x)), off(noisier.responsibilities(x)), off(equal / equal.sum(1, True))))
    assert max(errors) < 0.02
    for k, forgotten in enumerate(zip(*wrong, strict=True)):
        assert max(forgotten) > (0.3, 0.1, 0.1)[k]


@pytest.mark.parametrize("options", [{}, {"accumulate": 4, "precision": "bfloat16", "snapshots": 4}], ids=repr)
def test_resumed_is_uninterrupted(tmp_path, options):
    """Every tensor, of weights, averages and optimiser; and what is loaded is a classifier."""

    class Killed(Exception):
        pass

    def killed(step, _):
        if step == 9:
            raise Killed

    data, settings = drawn(100), replace(SHORT, steps=16, **options)
    how = {"progress": False, "save_every": -1.0}
    whole = train(model(data), data, settings, folder=tmp_path / "a", **how)
    with pytest.raises(Killed):
        train(model(data), data, settings, folder=tmp_path / "b", on_step=killed, **how)
    again = train(model(data, seed=5), data, settings, folder=tmp_path / "b", resume=True, **how)
    assert same(weights(whole), weights(again)) and same(load_state(tmp_path / "a"), load_state(tmp_path / "b"))
    found = load_as(ClassModel, tmp_path / "b")
    assert same(weights(found.model), weights(whole)) and isinstance(found.model, ClassModel)
    assert found.around == found.model.around == data.around and found.model.sde == VP()
    x, t = data.train[:5], torch.tensor(0.3)
    assert torch.equal(found.model(x, t), whole(x, t))
    if "snapshots" in options:
        kept, missed = averaged(tmp_path / "b", 0.05)
        assert isinstance(kept.model, ClassModel) and missed < 0.1


def test_parts_of_a_batch_are_the_batch():
    """The gradient of a batch in four parts is that of the batch, so that the weights agree to rounding."""
    data = drawn(100)
    one, four = (train(model(data), data, replace(SHORT, accumulate=k), progress=False) for k in (1, 4))
    for k, v in weights(one).items():
        torch.testing.assert_close(weights(four)[k], v, rtol=0, atol=1e-4)


def test_the_labels_are_what_it_learns():
    """All labels, none hidden: with other labels the training is another, and the loss on data held out is the mean
    cross-entropy, log K before training, since the head is 0.
    """
    data = drawn(100)
    turned = replace(data, train_labels=1 - data.train_labels)
    a, b = (train(model(data), d, SHORT, progress=False) for d in (data, turned))
    t, x = torch.tensor(0.01), torch.tensor([[-1.0], [0.8]])
    assert (a(x, t).softmax(1) + b(x, t).softmax(1) - 1).abs().max() < 0.4 and a(x, t).argmax(1).tolist() == [0, 1]
    before, after = held_out_loss(model(data), data), held_out_loss(a, data)
    assert all(v == pytest.approx(math.log(2), abs=1e-6) for v in before.values())
    assert min(after.values()) < 0.6


def test_wrapped_networks():
    """A network inside of DataParallel learns the same labels, and too few classes for them are named."""
    d, plain = drawn(100), model(drawn(100))
    wrapped = model(d)
    wrapped.net = nn.DataParallel(wrapped.net)
    found = [train(m, d, SHORT, progress=False) for m in (plain, wrapped)]
    for a, b in zip(*(list(m.parameters()) for m in found), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="net must have a class for each of the 3 labels, got 2"):
        train(wrapped, Dataset(d.train, d.held_out, d.train_labels + 1, d.held_out_labels), SHORT, progress=False)


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 7, 4), (1, 4, 3, 5)])
def test_networks(tmp_path, shape):
    """Logits of every shape of sample, rows independent of each other, gradients for the input at every level, and the
    same network from its checkpoint.
    """
    with seeded(0):
        made = ClassModel(usual_encoder(shape, 4), VP(), Reference(0.0, 0.5)).eval()
        for p in made.parameters():
            nn.init.normal_(p, std=0.2)
    x = torch.randn(5, *shape, generator=generator())
    t = torch.linspace(0.1, 1, 5, dtype=F64)
    out = made(x, t)
    assert out.shape == (5, 4)
    torch.testing.assert_close(made(x[2:3], t[2:3]), out[2:3], rtol=0, atol=1e-4)
    assert not torch.allclose(made(x, t.flip(0)), out, atol=1e-3)
    x.requires_grad_()
    (g,) = torch.autograd.grad(made(x, t)[:, 0].sum(), x)
    assert (g != 0).flatten(1).all(1).all()
    save(tmp_path, Checkpoint(made, shape))
    assert torch.equal(load_as(ClassModel, tmp_path).model(x, t), out)


def test_usual_settings():
    """A wide encoder learns as slowly as a wide network of a score, and a classifier's times reach into much noise."""
    data = drawn(100)
    assert usual_settings(MLPEncoder((1,), 2, 256), data, True).lr == Settings.lr / 2
    assert usual_settings(MLPEncoder((1,), 2), data, True).times == LogNormal(0.0, 2.0)
    assert usual_encoder((1,), 2).config == MLPEncoder((1,), 2).config
    assert usual_encoder((1, 28, 28), 10).config == UNetEncoder((1, 28, 28), 10, 16, (1, 2, 2)).config


@pytest.mark.slow
def test_digits():
    """More than nine in ten digits that were held out are known at little noise after 500 steps, and at so much noise
    that nothing is left the classes are as common as they are.
    """
    data, sde = Digits().load(), VP()
    with seeded(0):
        made = ClassModel(usual_encoder(data.shape, 10), sde, data.around)
    made = train(made, data, replace(usual_settings(made.net, data, True), steps=500), progress=False)
    x, noise = data.values(data.held_out), iid(generator(1))
    for t, least, most in ((0.001, 0.93, 1.01), (0.05, 0.93, 1.01), (0.2, 0.6, 0.9), (1.0, 0.0, 0.2)):
        at = torch.full((len(x),), t, dtype=F64)
        x_t, _ = sde.perturb(x, at, noise)
        right = (made(x_t, at).argmax(1) == data.held_out_labels).double().mean()
        assert least < right < most
    p = made(x_t, at).softmax(1)
    assert (p - data.train_labels.bincount() / len(data.train)).abs().mean() < 0.03


def test_two_kinds_of_checkpoints(tmp_path):
    """A classifier is not loaded as a score, nor a score as a classifier, nor is one resumed as the other."""
    data = drawn(100)
    score = ScoreModel(MLP((1,), 8, 1), VP(), Karras(data.around))
    train(model(data), data, SHORT, folder=tmp_path / "c", progress=False)
    train(score, data, SHORT, folder=tmp_path / "s", progress=False)
    with pytest.raises(ValueError, match="does not give a model: it is a classifier, where a score model is asked for"):
        load(tmp_path / "c")
    with pytest.raises(ValueError, match="does not give a model: it is a score model, where a classifier is asked for"):
        load_as(ClassModel, tmp_path / "s")
    assert isinstance(load_as(NoisyModel, tmp_path / "c").model, ClassModel)
    with pytest.raises(ValueError, match="model must be as in .*c to resume, ClassModel, got ScoreModel"):
        train(score, data, SHORT, folder=tmp_path / "c", resume=True, progress=False)
    with pytest.raises(ValueError, match="model must be as in .*s to resume, ScoreModel, got ClassModel"):
        train(model(data), data, SHORT, folder=tmp_path / "s", resume=True, progress=False)
    for other, name in ((model(data, sde=VE(0.01, 5.0)), "sde"), (model(drawn(100, 3)), "around")):
        with pytest.raises(ValueError, match=f"{name} must be as in .*c to resume"):
            train(other, data, SHORT, folder=tmp_path / "c", resume=True, progress=False)


class Wide(Told):
    classes = 4


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda d: train(model(d), Dataset(d.train, d.held_out), SHORT), "a classifier needs data with labels"),
        (lambda d: train(model(d), d, replace(SHORT, weight=loss.Simple())), "weight must be None for a classifier"),
        (lambda d: train(model(d), d, replace(SHORT, label_dropout=0.2)), "label_dropout must be left as it is, 0.1"),
        (lambda d: train(model(d), replace(d, train_labels=d.train_labels + 1), SHORT), "net must have a class for ea"),
        (lambda d: ClassModel(nn.Linear(1, 2), VP(), d.around), "net.classes must be a whole number >= 2"),
        (lambda d: ClassModel(Told(), VP(), Reference()), "around must have a standard deviation above 0"),
        (lambda d: ClassModel(Told(), VP(), Karras()), "around must be a Reference, got Karras"),
        (
            lambda d: ClassModel(Wide(), VP(), d.around)(d.train, torch.tensor(0.5)),
            r"net must return logits of shape \(",
        ),
        (lambda d: model(d)(d.train, torch.tensor(1.5)), "t must lie in"),
        (lambda d: cross_entropy(None, d.train, torch.ones(100), d.train_labels), "model must be a ClassModel"),
        (lambda d: cross_entropy(model(d), d.train, torch.tensor(0.5), d.train_labels), r"t must have shape \(100,\)"),
        (lambda d: cross_entropy(model(d), d.train, torch.ones(100), None), r"label must have shape \(100,\)"),
        (lambda d: cross_entropy(model(d), d.train, torch.ones(100), d.train_labels + 1), r"label must be in 0\.\.1"),
        (lambda d: cross_entropy(model(d), d.train, torch.ones(100), d.train_labels * 1.0), r"label must be in 0\.\.1"),
        (lambda d: classified(LAW.diffuse(VE(0.01, 5.0)), model(d)), "score is that of VE"),
        (lambda d: MLPEncoder((1,), 1), "classes must be a whole number >= 2"),
        (lambda d: UNetEncoder((1,), 2), "shape must be that of a series, an image or a volume"),
        (lambda d: UNetEncoder((1, 8), 2, multipliers=()), "multipliers must name at least one level"),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make(drawn(100))
