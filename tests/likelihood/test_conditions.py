"""Likelihoods of what a score is told: each class's own, their mixture, and which class a sample is of."""

import math
import re

import pytest
import torch

from scoresde import (
    VE,
    VP,
    Chain,
    Counted,
    Quadrature,
    Quantized,
    Reference,
    ScoreModel,
    elbo,
    exact,
    grid,
    iid,
    log_prob,
    per_sample,
)
from scoresde.likelihood import (
    Adams,
    Exact,
    Hutchinson,
    class_log_prob,
    continuous_elbo,
    decode,
    encode,
)
from scoresde.nn import MLP
from scoresde.ode import Dopri5

F64 = torch.float64
TIGHT = Dopri5(1e-9, 1e-9)
SDES = [VP(), VE(0.05, 20.0)]
AROUND = Reference(0.1, 0.8)  # an exact law knows its own, and coordinates must be the same to compare few nodes


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parts(law):
    """Each component of a mixture as a law of its own."""
    found, means = [], law.means.view(-1, *law.shape)
    for k in range(len(law.weights)):
        one, low = slice(k, k + 1), law.diagonal[k : k + 1]
        wide = (law.extra[one], law.factors[one], low[:, 0]) if law.extra.numel() else (low.expand(1, law.d),)
        found.append(exact.GaussianMixture(torch.ones(1), means[one], *wide))
    return found


class Told:
    """The exact score of the component that the label says, one label a sample; of the whole law for the label None."""

    def __init__(self, law, sde):
        self.classes, self.whole = [part.diffuse(sde) for part in parts(law)], law.diffuse(sde)

    def __call__(self, x, t, label=None):
        if label is None:
            return self.whole(x, t)
        assert label.shape == (len(x),)
        out = torch.full_like(x, math.nan)
        for k, score in enumerate(self.classes):
            rows = label == k
            out[rows] = score(x[rows], t[rows] if t.ndim else t)
        return out


def plane():
    """Three classes of different widths in the plane."""
    means = torch.tensor([[-1.0, 0.0], [0.6, 0.5], [0.4, -1.0]], dtype=F64)
    return exact.GaussianMixture(torch.tensor([0.5, 0.2, 0.3]), means, torch.tensor([0.1, 0.3, 0.02], dtype=F64))


def priors(law, sde):
    """The law of x_T of each class."""
    return [part.marginal(sde, sde.T) for part in parts(law)]


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("method", [TIGHT, Adams(40)], ids=lambda m: type(m).__name__)
def test_a_label_for_each_sample(sde, method):
    """In a batch of mixed classes every sample has the log-density that it has alone under its own class's score, also
    where samples arrive at different times; a number is the label of all.
    """
    law = plane()
    x, label = law.sample(9, generator()), torch.tensor([0, 1, 2, 2, 1, 0, 0, 2, 1])
    score, how = Told(law, sde), Quadrature(method, Exact())
    found = log_prob(sde.reverse(score), x, around=AROUND, how=how, label=label)
    for k, part in enumerate(parts(law)):
        rows = label == k
        want = log_prob(sde.reverse(part.diffuse(sde)), x[rows], around=AROUND, how=how).log_p
        torch.testing.assert_close(found.log_p[rows], want, rtol=0, atol=1e-6 if method is TIGHT else 1e-10)
        same = log_prob(sde.reverse(score), x[rows], around=AROUND, how=how, label=k).log_p
        torch.testing.assert_close(same, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_encode_and_decode_of_a_class(sde):
    """The flow of N(m, c^2 I) keeps the number of deviations from the mean, of each sample by its own class."""
    law, label = plane(), torch.arange(12) % 3
    x, p = law.sample(12, generator(1)), sde.reverse(Told(law, sde))
    z = encode(p, x, TIGHT, label=label)
    first, last = (torch.as_tensor(t, dtype=F64) for t in (sde.t_min, sde.T))
    std = law.diagonal[label].sqrt()

    def deviations(y, t):
        return (y - sde.alpha(t) * law.means[label]) / ((sde.alpha(t) * std) ** 2 + sde.var(t)).sqrt()

    torch.testing.assert_close(deviations(z, last), deviations(x, first), rtol=0, atol=1e-7)
    torch.testing.assert_close(decode(p, z, TIGHT, label=label), x, rtol=0, atol=1e-6)


def test_bounds_of_a_class():
    """The bounds of a batch of mixed classes are those that each sample has under its class's score and equal noise."""
    sde, law, label = VP(), plane(), torch.tensor([2, 0, 1, 1])
    x, score, chain = law.sample(4, generator(2)), Told(law, VP()), Chain(sde, grid.uniform(sde, 40))
    whole = {
        "elbo": elbo(chain, score, x, terms=3, noise=per_sample(range(4)), label=label),
        "continuous": continuous_elbo(sde.reverse(score), x, noise=per_sample(range(4)), label=label),
    }
    for k, part in enumerate(parts(law)):
        rows = (label == k).nonzero()[:, 0]
        alone, own = part.diffuse(sde), per_sample(rows.tolist())
        want = {"elbo": elbo(chain, alone, x[rows], terms=3, noise=own)}
        want["continuous"] = continuous_elbo(sde.reverse(alone), x[rows], noise=own.rows(0, len(rows)))
        for name, bound in whole.items():
            torch.testing.assert_close(bound.nats[rows], want[name].nats, rtol=0, atol=1e-9)
            assert "given label" in str(bound) and "given" not in str(want[name])


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_the_mixture_is_that_of_the_classes(sde):
    """With the exact trace: log p(x | c) is that of the class, p(x) that of the mixture, and p(c | x) its weights by
    Bayes' rule, within the errors told; equal weights are meant by a number.
    """
    law = plane()
    x, end = law.sample(40, generator(3)), law.marginal(sde, sde.t_min)
    prior = exact.GaussianMixture(torch.ones(1), torch.zeros(1, 2, dtype=F64), sde.var(torch.tensor(sde.T))[None])
    found = class_log_prob(sde.reverse(Told(law, sde)), x, classes=law.weights * 7, how=Quadrature(TIGHT, Exact()))
    by_class = torch.stack([part.marginal(sde, sde.t_min).log_prob(x) for part in parts(law)], 1)
    # the prior is N(0, sigma_T^2 I) in place of the class's own law at T: what that changes is known at x_T
    swap = []
    for part in parts(law):
        x_T = encode(sde.reverse(part.diffuse(sde)), x, TIGHT)
        swap.append(prior.log_prob(x_T) - part.marginal(sde, sde.T).log_prob(x_T))
    want = by_class + torch.stack(swap, 1)
    torch.testing.assert_close(found.by_class, want, rtol=0, atol=3e-5)
    joint = want + law.weights.log()
    torch.testing.assert_close(found.log_p, joint.logsumexp(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.posterior, joint.softmax(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.posterior, end.responsibilities(x), rtol=0, atol=0.05)
    assert torch.equal(found.label, joint.argmax(1)) and found.posterior.shape == found.posterior_error.shape
    assert (found.posterior_error < 1e-5).all() and "mixed over 3 classes" in str(found)
    equal = class_log_prob(sde.reverse(Told(law, sde)), x, classes=3, how=Quadrature(TIGHT, Exact()))
    torch.testing.assert_close(equal.posterior, want.softmax(1), rtol=0, atol=1e-5)


def test_errors_of_the_posterior():
    """Four classes in 32 dimensions by two fresh probes a node: p(c | x) and log p(x) are within three of the errors
    told of those with the exact trace, and where they are felt they are of the errors' size, not twice too large.
    """
    sde, g = VP(), generator(4)
    means = 0.15 * torch.randn(4, 32, generator=g, dtype=F64)
    mixing = torch.eye(32, dtype=F64) + 0.07 * torch.randn(4, 32, 32, generator=g, dtype=F64)
    wide = exact.GaussianMixture.from_covariances(torch.ones(4), means, 0.3 * mixing @ mixing.mT)
    x, p = wide.sample(40, g), sde.reverse(Told(wide, sde))
    true = class_log_prob(p, x, classes=wide.weights, how=Quadrature(Adams(40), Exact()))
    off, told, whole = [], [], []
    for seed in range(4):
        how = Quadrature(Adams(40), Hutchinson(2))
        found = class_log_prob(p, x, classes=wide.weights, how=how, noise=iid(generator(seed)))
        off.append((found.posterior - true.posterior).abs())
        told.append(found.posterior_error + 1e-9)
        whole.append((found.log_p - true.log_p).abs() <= 3 * (found.probe_error + found.solver_error))
    off, told = torch.stack(off), torch.stack(told)
    assert torch.stack(whole).double().mean() >= 0.97
    felt = told > 0.01
    assert felt.sum() > 100 and (off <= 3 * told)[felt].double().mean() >= 0.95
    assert off[felt].square().mean() > 0.3 * told[felt].square().mean()


def test_no_error_of_the_posterior_without_that_of_probes():
    """One fresh probe tells no error of log p(x | c), and then there is none of p(c | x) to tell, rather than a small
    one.
    """
    sde, law = VP(), plane()
    how = Quadrature(Adams(12), Hutchinson(1))
    found = class_log_prob(sde.reverse(Told(law, sde)), law.sample(3, generator()), classes=3, how=how)
    assert found.posterior.isfinite().all()
    assert all(v.isnan().all() for v in (found.posterior_error, found.probe_error, found.solver_error))


def test_dequantisation_is_the_same_for_all_classes():
    """A sample's noise does not depend on the class: a score that ignores its label finds all classes equally likely,
    and log p(x) that of any of them.
    """
    sde, q = VP(), Quantized(3, -1.0, 1.0)
    x = torch.tensor([[-1.0, 0.0], [1.0, 1.0], [0.0, -1.0]], dtype=F64)
    blind = plane().diffuse(sde)
    p = sde.reverse(lambda x, t, label=None: blind(x, t))
    found = class_log_prob(p, x, q, classes=4, noise=per_sample([5, 6, 7]))
    torch.testing.assert_close(found.posterior, torch.full((3, 4), 0.25, dtype=F64), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.log_p, log_prob(p, x, q, noise=per_sample([5, 6, 7])).log_p, rtol=0, atol=1e-6)


def test_what_was_told_is_said():
    """A network with classes that is told none says whose density it is; calls are counted through conditions."""
    torch.manual_seed(0)
    model = ScoreModel(MLP((2,), 8, 1, classes=3), VP()).eval()
    x, how = torch.randn(5, 2, generator=generator()), Quadrature(Adams(12))
    score = Counted(model)
    found = log_prob(VP().reverse(score), x, how=how, label=1)
    assert found.nfe == score.nfe == 14 and "given label" in found.says and "given label" in found.statement()
    untold = log_prob(VP().reverse(model), x, how=how)
    assert "under the network's label for none" in str(untold) and "label for none" in untold.statement()
    torch.testing.assert_close(untold.log_p, log_prob(VP().reverse(model), x, how=how, label=3).log_p)
    bare = log_prob(VP().reverse(ScoreModel(MLP((2,), 8, 1), VP())), x, how=how)
    assert bare.given == "" and "label" not in str(bare)


def test_gradients_under_a_label():
    """The gradient of log p(x | c) is that of the class's own score, where samples arrive at different times too."""
    sde, law, label = VP(), plane(), torch.tensor([0, 2, 1])
    x = law.sample(3, generator(6)).requires_grad_()
    how = Quadrature(Adams(20), Exact(), gradients=True)
    (g,) = torch.autograd.grad(
        log_prob(sde.reverse(Told(law, sde)), x, around=AROUND, how=how, label=label).log_p.sum(), x
    )
    for i, k in enumerate(label):
        own = x[i : i + 1].detach().requires_grad_()
        score = parts(law)[k].diffuse(sde)
        (want,) = torch.autograd.grad(log_prob(sde.reverse(score), own, around=AROUND, how=how).log_p.sum(), own)
        torch.testing.assert_close(g[i : i + 1], want, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (torch.zeros(4, dtype=torch.long), "label must be one for each of the 5 samples, got shape (4,)"),
        (torch.zeros(1, dtype=torch.long), "label must be one for each of the 5 samples, got shape (1,)"),
        ("owl", "label must be a number or a tensor, got 'owl'"),
        (None, "label must be a number or a tensor, got None"),
        (7, "label must be in 0..3, got 7"),
        (1.0, "label must hold whole numbers"),
    ],
)
def test_condition_errors(label, said):
    """What is no condition of these samples is refused by its name."""
    p = VP().reverse(ScoreModel(MLP((2,), 8, 1, classes=3), VP()))
    x = torch.randn(5, 2, generator=generator())
    for call in (log_prob, encode, continuous_elbo):
        with pytest.raises(ValueError, match=re.escape(said)):
            call(p, x, label=label)


def test_a_score_that_takes_no_condition():
    """It is said before the score is asked, by the condition's name."""
    p = VP().reverse(plane().diffuse(VP()))
    for call in (log_prob, encode, continuous_elbo):
        with pytest.raises(ValueError, match="^label must not be given to a score that does not take it"):
            call(p, torch.zeros(2, 2), label=1)


@pytest.mark.parametrize("classes", [1, 0, 2.5, torch.tensor([1.0]), torch.tensor([1.0, -1.0]), "ab", torch.ones(2, 2)])
def test_classes_errors(classes):
    """Fewer than two classes, and probabilities that are none, are refused by name."""
    p = VP().reverse(ScoreModel(MLP((2,), 8, 1, classes=3), VP()))
    with pytest.raises(ValueError, match="^classes must"):
        class_log_prob(p, torch.zeros(5, 2), classes=classes)
