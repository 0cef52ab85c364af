"""Guided scores are the formulas of their papers, and those of exact laws where they are; what guidance samples is the
tilted law only with weights.
"""

import math
import re

import pytest
import torch

from scoresde import (
    EDM,
    VE,
    VP,
    Ancestral,
    Counted,
    EulerMaruyama,
    Reference,
    ReverseDiffusion,
    ScoreModel,
    UniPC,
    grid,
    iid,
    log_prob,
    sample,
    trajectory,
    transport,
)
from scoresde.exact import Gaussian, GaussianMixture
from scoresde.guide import (
    Guided,
    Momentum,
    autoguided,
    classified,
    classifier_free,
    combined,
    conditioned,
    projected,
    tempered,
    tilted,
)
from scoresde.likelihood import Adams, Exact, Quadrature
from scoresde.nn import MLP

F64 = torch.float64
MEANS, SHARES = (
    torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -1.2]], dtype=F64),
    torch.tensor([0.5, 0.3, 0.2], dtype=F64),
)
VARS = torch.tensor([0.2, 0.1, 0.3], dtype=F64)
SDE = VP()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Known:
    """The mixture's score, under a label that of a component, as a network with classes is."""

    def __init__(self, sde=SDE):
        self.sde, self.asked = sde, []
        parts = [slice(None), *(slice(k, k + 1) for k in range(3))]
        self.laws = [GaussianMixture(SHARES[k], MEANS[k], VARS[k]).diffuse(sde) for k in parts]

    def __call__(self, x, t, label=None):
        self.asked.append(label)
        if label is None:
            return self.laws[0](x, t)
        t = torch.as_tensor(t, dtype=F64).expand(len(x))
        rows = [self.laws[1 + int(k)](x[i : i + 1], t[i : i + 1]) for i, k in enumerate(label)]
        return torch.cat(rows)


X = torch.randn(4, 2, generator=generator(1), dtype=F64)
LABEL = torch.tensor([0, 1, 2, 0])
T = torch.tensor(0.3, dtype=F64)


def same(a, b, tol=1e-12):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def test_classifier_free():
    """s + w (s_c - s), with the same at w = 1 and 0 as with and without a label; times of each sample's own too."""
    known = Known()
    s, c = known(X, T), known(X, T, LABEL)
    for w in (0.0, 1.0, 2.5, -0.5):
        same(classifier_free(known, w)(X, T, label=LABEL), s + w * (c - s))
    each = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=F64)
    s, c = known(X, each), known(X, each, LABEL)
    same(classifier_free(known, 3.0)(X, each, label=LABEL), 3 * c - 2 * s)


def test_between_noise_levels():
    """Guided inside, conditional outside, where one call is made; each sample by its own time."""
    known = Known()
    noise = lambda t: float(SDE.sigma(t) / SDE.alpha(t))  # noqa: E731
    low, high = noise(0.2), noise(0.6)
    guided = classifier_free(known, 3.0, low=low, high=high)
    for t, inside in ((0.1, False), (0.19, False), (0.21, True), (0.59, True), (0.61, False)):
        before = guided.calls
        t = torch.tensor(t, dtype=F64)
        c, s = known(X, t, LABEL), known(X, t)
        same(guided(X, t, label=LABEL), 3 * c - 2 * s if inside else c)
        assert guided.calls - before == 1 + inside
    each = torch.tensor([0.1, 0.4, 0.5, 0.9], dtype=F64)
    c, s = known(X, each, LABEL), known(X, each)
    want = torch.where(torch.tensor([False, True, True, False])[:, None], 3 * c - 2 * s, c)
    same(guided(X, each, label=LABEL), want)


def test_combined_and_autoguided():
    """Products of laws, of which two equal ones with weights that sum to 1 are the law; and a worse network beside."""
    known = Known()
    one, two = conditioned(known, label=1), conditioned(known, label=2)
    same(combined((0.7, one), (0.3, one))(X, T), one(X, T))
    s, a, b = known(X, T), one(X, T), two(X, T)
    same(combined((1 - 1.5 + 0.5, known), (1.5, one), (-0.5, two))(X, T), s + 1.5 * (a - s) - 0.5 * (b - s))
    before = len(known.asked)
    combined((0.0, known), (1.0, one))(X, T)
    assert len(known.asked) == before + 1  # what has no weight is not asked
    worse = lambda x, t, label=None: 0.5 * known(x, t, label)  # noqa: E731
    c = known(X, T, LABEL)
    same(autoguided(known, worse, 2.0)(X, T, label=LABEL), 0.5 * c + 2 * 0.5 * c)
    same(autoguided(known, worse, 2.0)(X, T), 1.5 * known(X, T))


def test_projected():
    """All of it is classifier-free guidance; without the part along it, the change of E[x_0 | x_t] is at right angles
    to the conditional one, and no longer than asked.
    """
    known, w = Known(), 4.0
    c, free = known(X, T, LABEL), classifier_free(known, w)(X, T, label=LABEL)
    same(projected(known, w, along=1.0)(X, T, label=LABEL), free)
    alpha, var = SDE.alpha(T), SDE.var(T)
    D = lambda s: (X + var * s) / alpha  # noqa: E731
    change = D(projected(known, w)(X, T, label=LABEL)) - D(c)
    assert (change * D(c)).sum(1).abs().max() < 1e-12 and change.abs().max() > 0.01
    full = D(free) - D(c)
    same(change, full - (full * D(c)).sum(1, keepdim=True) / D(c).square().sum(1, keepdim=True) * D(c))
    short = D(projected(known, w, along=1.0, norm=0.05)(X, T, label=LABEL)) - D(c)
    length = full.norm(dim=1) / (w - 1)
    same(short.norm(dim=1), (w - 1) * length.clamp_max(0.05))


def by_hand(x, ts, w, beta, along, norm, step=Ancestral()):
    """Steps along the score of `projected` with momentum, written out for labels LABEL."""
    known, before = Known(), 0.0
    for t, s in zip(ts[:-1], ts[1:]):
        alpha, var, c, u = SDE.alpha(t), SDE.var(t), known(x, t, LABEL), known(x, t)
        before = d = var * (c - u) / alpha + beta * before
        d = d * (norm / d.norm(dim=1, keepdim=True)).clamp_max(1)
        D = (x + var * c) / alpha
        d = d - (1 - along) * (d * D).sum(1, keepdim=True) / D.square().sum(1, keepdim=True) * D
        score = c + (w - 1) * d * alpha / var
        x = step(SDE.reverse(lambda *_, score=score: score, 0.0), x, t, s, iid())
    return x


@pytest.mark.parametrize("step", [Ancestral(), EulerMaruyama()], ids=repr)
@pytest.mark.parametrize(("beta", "along", "norm"), [(-0.5, 0.0, 0.4), (0.3, 1.0, 1e9), (0.0, 0.2, 0.4)])
def test_momentum(step, beta, along, norm):
    """The recursion written out; a second run starts afresh; beta = 0 is `projected` itself; each row by itself."""
    ts, x = grid.uniform(SDE, 9), 1.5 * X
    guided = projected(Known(), 3.0, along=along, norm=norm)
    p, moving = SDE.reverse(conditioned(guided, label=LABEL), 0.0), Momentum(guided, beta, step)
    found = sample(p, x, ts, moving)
    same(found, by_hand(x, ts, 3.0, beta, along, norm, step), 1e-10)
    assert torch.equal(sample(p, x, ts, moving), found)
    plain = sample(p, x, ts, step)
    assert torch.equal(found, plain) if beta == 0 else (found - plain).abs().max() > 1e-3
    one = sample(SDE.reverse(conditioned(guided, label=LABEL[2:3]), 0.0), x[2:3], ts, moving)
    same(one, found[2:3], 1e-12)


def test_momentum_in_small_steps():
    """d/(1 - beta): where nothing is shortened or left out, guidance of w - 1 over that; to first order in the step."""
    beta, off = -0.5, []
    guided = projected(Known(), 2.5, along=1.0)
    q = SDE.reverse(conditioned(classifier_free(Known(), 1 + 1.5 / (1 - beta)), label=LABEL), 0.0)
    for n in (100, 200, 400):
        ts = grid.log_snr(SDE, n)
        p = SDE.reverse(conditioned(guided, label=LABEL), 0.0)
        off.append(float((sample(p, X, ts, Momentum(guided, beta)) - sample(q, X, ts, Ancestral())).abs().max()))
    assert off[0] > 1.7 * off[1] > 1.7**2 * off[2] > 0


def test_momentum_between_noise_levels():
    """Outside there is nothing to remember, and nothing to guide."""
    low, high = (float(SDE.sigma(t) / SDE.alpha(t)) for t in (0.3, 0.61))
    ts, guided = grid.uniform(SDE, 10, end=0.05), projected(Known(), 3.0, low=low, high=high)
    p, steps = SDE.reverse(conditioned(guided, label=LABEL), 0.0), (Momentum(guided), Ancestral())
    a, b = (list(trajectory(p, X, ts, step)) for step in steps)
    asked = [bool(low <= SDE.sigma(t) / SDE.alpha(t) <= high) for t in ts[:-1]]
    second = [i for i, inside in enumerate(asked) if inside][1]
    for k, (one, other) in enumerate(zip(a, b)):
        assert torch.equal(one, other) == (k <= second)


def test_momentum_of_what_is_not_asked_once():
    """A process whose score asks another guided score, or this one twice, is refused; so is a later use unharmed."""
    guided, ts = projected(Known(), 3.0), grid.uniform(SDE, 4)
    label = conditioned(guided, label=LABEL)
    for score, often in ((conditioned(Known(), label=LABEL), "not"), (combined((0.5, label), (0.5, label)), "2 times")):
        with pytest.raises(ValueError, match=f"must ask guided once an interval, and has {often} asked it"):
            sample(SDE.reverse(score, 0.0), X, ts, Momentum(guided))
    same(label(X, T), conditioned(projected(Known(), 3.0), label=LABEL)(X, T))


def test_an_exact_classifier_gives_the_conditional_score():
    """grad log p(c | x_t) is s_c - s, of any label and at any time; and w multiplies it."""
    known, law = Known(), GaussianMixture(SHARES, MEANS, VARS)

    def classifier(x, t):
        return law.marginal(SDE, t).responsibilities(x).log()

    for label in (torch.tensor(2), LABEL):
        c = known(X, T, label.expand(4))
        same(classified(known, classifier)(X, T, label=label), c, 1e-9)
        s = known(X, T)
        same(classified(known, classifier, 2.0)(X, T, label=label), s + 2 * (c - s), 1e-9)


def test_a_classifier_takes_labels_and_nothing_else():
    """Other conditions are the score's, labels of inference mode are labels, and what is no whole number is refused."""
    asked, law = {}, GaussianMixture(SHARES, MEANS, VARS)

    def score(x, t, **cond):
        asked.update(cond)
        return Known()(x, t)

    classifier = lambda x, t: law.marginal(SDE, t).responsibilities(x).log()  # noqa: E731
    want = classified(score, classifier)(X, T, label=LABEL, text="a")
    assert asked == {"text": "a"}
    with torch.inference_mode():
        same(classified(score, classifier)(X, T, label=LABEL.clone()), want)
    for bad in (1.7, torch.tensor([True] * 4), LABEL[:, None]):
        with pytest.raises(ValueError, match="label must be whole numbers"):
            classified(score, classifier)(X, T, label=bad)


def test_a_classifier_between_noise_levels():
    """It guides inside, for each sample by its own time, and elsewhere the score is as it was; nowhere without a label,
    and not for the score of another process than it says.
    """
    known, law = Known(), GaussianMixture(SHARES, MEANS, VARS)
    classifier = lambda x, t: law.marginal(SDE, 0.4).responsibilities(x).log()  # noqa: E731
    low, high = (float(SDE.sigma(t) / SDE.alpha(t)) for t in (0.2, 0.6))
    each = torch.tensor([0.1, 0.4, 0.5, 0.9], dtype=F64)
    some, every = (classified(known, classifier, 2.0, **k) for k in ({"low": low, "high": high}, {}))
    want = torch.where(torch.tensor([False, True, True, False])[:, None], every(X, each, label=LABEL), known(X, each))
    same(some(X, each, label=LABEL), want)
    with pytest.raises(ValueError, match="label must be given"):
        some(X, torch.tensor(0.9, dtype=F64))
    classifier.sde = VE(0.01, 5.0)
    with pytest.raises(ValueError, match="score is that of VP"):
        classified(known, classifier)


def test_likelihoods_of_guided_scores():
    """A guided score is differentiated through all that it is made of: with the exact classifier log p is that of the
    conditional score, in inference mode too; the label is said; rounding of weights in half precision is told.
    """
    known, how = Known(), Quadrature(Adams(20), Exact())

    def differentiable(x, t):
        parts = [Known().laws[1 + k].log_prob(x, t) for k in range(3)]
        return torch.stack(parts, 1) + SHARES.log()

    want = log_prob(SDE.reverse(known), X, how=how, label=torch.tensor(1)).log_p
    guided = conditioned(classified(known, differentiable), label=1)
    found = log_prob(SDE.reverse(guided), X, how=how)
    same(found.log_p, want, 1e-8)
    assert "given label 1" in found.says
    with torch.inference_mode():
        same(guided(X, T), known(X, T, torch.ones(4, dtype=torch.long)), 1e-9)
    torch.manual_seed(0)
    net = ScoreModel(MLP((2,), 16, 1, classes=3).to(torch.bfloat16), SDE)
    for v in net.parameters():
        torch.nn.init.normal_(v, std=0.3)
    x, plain = X.float(), Quadrature(Adams(12), Exact())
    one = log_prob(SDE.reverse(net), x, how=plain, label=1)
    two = log_prob(SDE.reverse(conditioned(net, label=1)), x, how=plain)
    same(one.log_p, two.log_p, 1e-5)
    same(one.probe_error, two.probe_error, 1e-3)
    assert (two.probe_error > 0).all()


def test_members_of_other_processes_are_refused():
    """Wherever they stand."""
    a, b = LINE.diffuse(SDE), LINE.diffuse(VE(0.01, 10.0))
    for make in (
        lambda: combined((1.0, a), (1.0, b)),
        lambda: SDE.reverse(combined((1.0, lambda x, t: -x), (1.0, b))),
        lambda: autoguided(a, b, 2.0),
        lambda: tilted(SDE, a, b, 2.0, X[:, :1], grid.uniform(SDE, 5)),
    ):
        with pytest.raises(ValueError, match="score is that of VE"):
            make()


def test_half_states_are_carried_in_single():
    """One rounding at the end."""
    x_T, ts = SDE.prior((50, 1), iid(generator(2)), torch.float32).half(), grid.log_snr(SDE, 100)
    noises = [iid(generator(3)), iid(generator(3))]
    half, single = (
        tilted(SDE, LINE.diffuse(SDE), PART.diffuse(SDE), 1.5, x, ts, noise=noise, generator=generator(4), least=0.0)
        for x, noise in zip((x_T, x_T.float()), noises)
    )
    assert half.x.dtype == torch.float16 and torch.equal(half.x, single.x.half())


def test_conditions_and_calls():
    """A condition for all, and for each; what a step or a likelihood counts are calls of the network."""
    known = Known()
    same(conditioned(known, label=1)(X, T), known(X, T, torch.ones(4, dtype=torch.long)))
    same(conditioned(known, label=LABEL)(X, T), known(X, T, LABEL))
    with pytest.raises(ValueError, match=re.escape("label must be one for each of the 4 samples that are asked for")):
        conditioned(known, label=LABEL[:3])(X, T)
    guided = conditioned(classifier_free(known, 2.0), label=1)
    counted = Counted(guided)
    sample(SDE.reverse(counted), X, grid.uniform(SDE, 7), Ancestral(), noise=iid(generator()))
    assert counted.nfe == 14
    both, known.asked = Counted(combined((1.0, guided), (1.0, known))), []
    both(X, T)
    assert both.nfe == len(known.asked) == 3
    other = VP(beta_max=10.0)
    moved, known.asked = Counted(transport(guided, SDE, other)), []
    moved(X, T)
    assert moved.nfe == len(known.asked) == 2
    counted, known.asked = Counted(classifier_free(known, 2.0)), []
    counted(X, T, label=LABEL)
    assert counted.nfe == len(known.asked) == 2
    found = log_prob(SDE.reverse(classifier_free(known, 1.5)), X, how=Quadrature(Adams(12), Exact()), label=LABEL)
    assert found.nfe == 28 and found.log_p.isfinite().all()
    plain = log_prob(SDE.reverse(known), X, how=Quadrature(Adams(12), Exact()), label=LABEL)
    one = log_prob(SDE.reverse(classifier_free(known, 1.0)), X, how=Quadrature(Adams(12), Exact()), label=LABEL)
    same(one.log_p, plain.log_p, 1e-10)


LINE = GaussianMixture(
    torch.tensor([0.6, 0.4], dtype=F64), torch.tensor([[-0.8], [0.9]], dtype=F64), torch.tensor([0.15, 0.3], dtype=F64)
)
PART = GaussianMixture(torch.ones(1, dtype=F64), LINE.means[1:], torch.tensor([0.3], dtype=F64))


def tilted_moments(w, t):
    """The mean and variance of p_t(x)^(1-w) p_t(x|c)^w on a grid."""
    y = torch.linspace(-6, 8, 20_001, dtype=F64)[:, None]
    log = (1 - w) * LINE.marginal(SDE, t).log_prob(y) + w * PART.marginal(SDE, t).log_prob(y)
    p = (log - log.max()).exp()
    mean = float((p * y[:, 0]).sum() / p.sum())
    return mean, float((p * (y[:, 0] - mean) ** 2).sum() / p.sum())


@pytest.mark.parametrize("step", [Ancestral(), EulerMaruyama(), ReverseDiffusion()], ids=repr)
def test_guidance_does_not_sample_what_is_said_and_weights_do(step):
    """On a line, w = 2: mean and variance by weighted samples are those of the tilted law within four of the standard
    errors that are told; those of guidance alone are off by more than ten.
    """
    w, n, ts = 2.0, 6000, grid.log_snr(SDE, 160)
    mean, var = tilted_moments(w, float(ts[-1]))
    a, b = LINE.diffuse(SDE), PART.diffuse(SDE)
    x_T = SDE.prior((n, 1), iid(generator(2)), F64)
    found = tilted(SDE, a, b, w, x_T, ts, step, noise=iid(generator(3)), generator=generator(4))
    assert found.drawn > 0 and found.nfe == 160 and 100 < found.effective < n / 2
    assert float(found.log_w.exp().mean()) == pytest.approx(1, rel=1e-9)
    square = lambda x: (x - mean) ** 2  # noqa: E731
    assert abs(float(found.mean()) - mean) < 4 * float(found.error()) + 0.01
    assert abs(float(found.mean(square)) - var) < 4 * float(found.error(square)) + 0.01
    plain = sample(SDE.reverse(combined((1 - w, a), (w, b))), x_T, ts, step, noise=iid(generator(3)))
    assert abs(float(plain.mean()) - mean) > 10 * (var / n) ** 0.5 and abs(float(plain.mean()) - mean) > 0.1


def test_the_error_of_weighted_means():
    """Over 24 runs of 500 the mean is right within three standard errors, and spreads by what each run tells, within a
    factor of 1.5: by the weights at the end alone, half of it would be told at most.
    """
    w, ts, off, told, naive = 2.0, grid.log_snr(SDE, 60), [], [], []
    mean, var = tilted_moments(w, float(ts[-1]))
    for seed in range(24):
        x_T = SDE.prior((500, 1), iid(generator(seed)), F64)
        steps, draws = iid(generator(100 + seed)), generator(200 + seed)
        found = tilted(SDE, LINE.diffuse(SDE), PART.diffuse(SDE), w, x_T, ts, noise=steps, generator=draws)
        off.append(float(found.mean()) - mean), told.append(float(found.error()))
        naive.append((var * float(found.log_w.softmax(0).square().sum())) ** 0.5)
    off, told, naive = (torch.tensor(v) for v in (off, told, naive))
    spread = float(off.std())
    assert abs(float(off.mean())) < 3 * spread / 24**0.5 + 0.02
    assert 1 / 1.5 < float(told.square().mean().sqrt()) / spread < 1.5
    assert float(naive.mean()) < spread / 2


def test_no_weight_where_there_is_no_difference():
    """w = 0 and 1 are one of the two laws, without weights, and the step's own samples."""
    x_T, ts = SDE.prior((50, 1), iid(generator(2)), F64), grid.uniform(SDE, 20)
    for w, law in ((0.0, LINE), (1.0, PART)):
        found = tilted(SDE, LINE.diffuse(SDE), PART.diffuse(SDE), w, x_T, ts, noise=iid(generator(3)))
        want = sample(SDE.reverse(law.diffuse(SDE)), x_T, ts, Ancestral(), noise=iid(generator(3)))
        same(found.x, want, 1e-9)
        assert found.drawn == 0 and found.log_w.abs().max() < 1e-12
        assert found.effective == pytest.approx(50)


SCORE = LINE.diffuse(SDE)


@pytest.mark.parametrize("sde", [VP(), VE(0.01, 30.0), EDM()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_temperature_of_a_gaussian(sde, temperature):
    """Data N(m, c^2 I) become N(m, T c^2 I), whose score it is at every noise, for times of each sample's own too; its
    Gaussian is that one, so that temperatures multiply; T = 1 changes nothing.
    """
    m, c = torch.tensor([0.5, -1.0], dtype=F64), 0.7
    law, want = Gaussian(m, c**2).diffuse(sde), Gaussian(m, temperature * c**2).diffuse(sde)
    found = tempered(law, temperature)
    for u in (sde.t_min, 0.3 * sde.T, sde.T):
        t = torch.tensor(u, dtype=F64)
        same(found(X, t), want(X, t))
        same(tempered(law, 1.0)(X, t), law(X, t), 1e-15)
        same(tempered(tempered(law, temperature), 0.4)(X, t), tempered(law, 0.4 * temperature)(X, t))
    each = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=F64) * sde.T
    same(found(X, each), want(X, each))
    same(found.around.mean, m), same(found.around.std, temperature**0.5 * c)


def test_temperature_under_conditions():
    """It multiplies what the score says under a label by a number of the noise alone, with the deviation that is given,
    and counts the calls that it makes.
    """
    known, around = Known(), Reference(std=0.5)
    for t in (0.01, 0.3, 1.0):
        t = torch.tensor(t, dtype=F64)
        a2, var = float(SDE.alpha(t)) ** 2, float(SDE.var(t))
        share = (0.25 * a2 + var) / (0.25 * 4 * a2 + var)
        same(tempered(known, 4.0, around)(X, t, label=LABEL), share * known(X, t, LABEL))
    counted = Counted(tempered(classifier_free(known, 2.0), 0.5, around))
    counted(X, T, label=LABEL)
    assert counted.nfe == 2


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_weights_sample_a_temperature(temperature):
    """Beside a flat law the tilted one is p^(1/T): on a line mean and variance are right within four of the errors that
    are told. Those of the tempered score, which is a rule of thumb for two modes, have another mean.
    """
    n, ts = 6000, grid.log_snr(SDE, 160)
    y = torch.linspace(-6, 8, 20_001, dtype=F64)[:, None]
    log = LINE.marginal(SDE, ts[-1]).log_prob(y) / temperature
    p = (log - log.max()).exp() / (log - log.max()).exp().sum()
    mean = float((p * y[:, 0]).sum())
    var = float((p * (y[:, 0] - mean) ** 2).sum())
    x_T = SDE.prior((n, 1), iid(generator(2)), F64)
    flat = lambda x, t: torch.zeros_like(x)  # noqa: E731
    start, w = temperature**0.5 * x_T, 1 - 1 / temperature
    how = {"step": EulerMaruyama(), "noise": iid(generator(3)), "generator": generator(4)}
    found = tilted(SDE, SCORE, flat, w, start, ts, **how)
    square = lambda x: (x - mean) ** 2  # noqa: E731
    assert abs(float(found.mean()) - mean) < 4 * float(found.error()) < 0.12
    assert abs(float(found.mean(square)) - var) < 4 * float(found.error(square)) < 0.12
    plain = sample(SDE.reverse(tempered(SCORE, temperature)), x_T, ts, EulerMaruyama(), noise=iid(generator(3)))
    assert abs(float(plain.mean()) - mean) > 0.08
    # much noise: p_t is N(0, 1), and its power N(0, T), which is where the samples must begin
    noisy = torch.tensor([1.0, 0.99], dtype=F64)
    for x, right in ((start, True), (x_T, False)):
        late = tilted(SDE, SCORE, flat, w, x, noisy, noise=iid(generator(3)), generator=generator(4))
        off = abs(float(late.mean(torch.square)) - temperature)
        assert (off < 4 * float(late.error(torch.square))) == right


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: classifier_free(Known(), math.nan), "w must"),
        (lambda: classifier_free(Known(), 1.0, low=2.0, high=1.0), "high must"),
        (lambda: classifier_free(Known(), 2.0)(X, T), "must be told what to guide to, such as label="),
        (
            lambda: classifier_free(lambda x, t, label=None: x, 2.0, high=1.0)(X, T, label=1),
            "score.sde, which an interv",
        ),
        (lambda: projected(lambda x, t, label=None: x, 2.0)(X, T, label=1), "score.sde, which samples are denoised by"),
        (lambda: projected(Known(), 2.0, norm=0.0), "norm must"),
        (lambda: Momentum(classifier_free(Known(), 2.0)), "guided must be a score that `projected` made"),
        (lambda: Momentum(projected(Known(), 2.0), -1.0), "beta must be a finite number > -1 and < 1, got -1.0"),
        (lambda: Momentum(projected(Known(), 2.0), step=UniPC(2)), "step must be one that remembers nothing"),
        (lambda: combined(), "parts must hold at least one"),
        (lambda: combined((math.inf, Known())), r"parts\[0\] must"),
        (lambda: Guided([3], None), r"scores\[0\] must be a callable"),
        (lambda: classified(Known(), lambda x, t: x)(X, T), "label must be given"),
        (
            lambda: classified(Known(), lambda x, t: x)(X, T, label=torch.tensor(7)),
            r"label must be in 0..1, the classif",
        ),
        (lambda: classified(Known(), lambda x, t: x)(X, T, label=LABEL[:3]), "label must be one for each of the 4"),
        (lambda: classifier_free(Known(), 2.0)(X, T, label=None), "must be told what to guide to"),
        (
            lambda: tilted(SDE, SCORE, SCORE, 2.0, X[:, :1], grid.uniform(SDE, 5), UniPC(2)),
            "step must be one that rememb",
        ),
        (lambda: tilted(SDE, SCORE, SCORE, 2.0, X[:, :1], grid.uniform(SDE, 5), least=2.0), "least must"),
        (lambda: SDE.reverse(classifier_free(Known(VP(beta_max=5.0)), 2.0)), "score is that of"),
        (lambda: tempered(SCORE, 0.0), "temperature must be a finite number > 0, got 0"),
        (lambda: tempered(SCORE, -1.0), "temperature must"),
        (lambda: tempered(SCORE, math.nan), "temperature must"),
        (lambda: tempered(SCORE, "cold"), "temperature must"),
        (lambda: tempered(Known(), 0.5), "around must be a Reference"),
        (lambda: tempered(SCORE, 0.5, 0.7), "around must be a Reference"),
        (lambda: tempered(SCORE, 0.5, Reference(std=0.0)), "around must have a standard deviation above 0"),
        (lambda: tempered(lambda x, t: -x, 0.5, Reference(std=1.0)), "score.sde, by which noise is told"),
        (lambda: SDE.reverse(tempered(LINE.diffuse(VP(beta_max=5.0)), 0.5)), "score is that of"),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
