"""Scores made of scores: labels, guidance, composition. A step knows nothing of it.

A `Guided` score is called as those that it is made of, (x, t, **cond), and goes wherever a score goes. What it is the
score of is another question: the flow of a guided score does not end in p(x) p(c|x)^w, as its terms are noised each by
itself. `tilted` draws from that law, by weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from .model import Counted
from .noise import Noise, iid, require_noise
from .process import LinearSDE, Reverse, Score, require_linear, require_score_of
from .reference import Reference, said
from .shapes import answer, as_time, function, lifted, like, number, recordable, recording, shown, state, times, wide
from .steps import Ancestral, Step, started
from .steps.step import Affine, Prepared, memoryless
from .weighted import Weighted, redrawn

Ask = Callable[..., Tensor]


class Guided:
    """A score made of others by `rule(ask, x, t, cond)`, where ask(k, x, t, **cond) is what the k-th of them says.

    calls: how many network calls they have made, which is what `Counted` counts: one each time, or those that one which
    is made of others says. Raises ValueError for scores of different processes.
    """

    given = ""
    """What is to be said of conditions."""
    memory: "Memory | None" = None
    """What `Momentum` carries, of a score that has such."""

    def __init__(
        self,
        scores: Sequence[Score],
        rule: Callable[[Ask, Tensor, Tensor, dict[str, Any]], Tensor],
        around: Reference | None = None,
    ) -> None:
        for k, score in enumerate(scores):
            function(f"scores[{k}]", score, "a callable (x, t) -> (B, *D)")
        self.scores, self.rule, self.calls, self.own = tuple(scores), rule, 0, around
        if self.sde is not None:
            for score in self.scores:
                require_score_of(score, self.sde)

    @property
    def sde(self) -> LinearSDE | None:
        """The process that they say that they are of, if one does."""
        said = (getattr(score, "sde", None) for score in self.scores)
        return next((sde for sde in said if isinstance(sde, LinearSDE)), None)

    @property
    def around(self) -> Reference | None:
        """The Gaussian that it was given, or else that which the first of them says that it was made for."""
        return self.own or getattr(self.scores[0], "around", None)

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        w = wide("x", x)
        return self.rule(self._ask, w, as_time(t), cond).to(x.dtype)

    def _ask(self, k: int, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        counted = Counted(self.scores[k])
        said = answer("score", counted(x, t, **cond), x)
        self.calls += counted.nfe
        return said


class Levels(NamedTuple):
    """Noise levels sigma/alpha, ends included."""

    low: float = 0.0
    high: float = math.inf

    def at(self, sde: LinearSDE | None, t: Tensor) -> Tensor:
        """Whether t is inside, in its shape."""
        if self == (0.0, math.inf):
            return torch.ones_like(t, dtype=torch.bool)
        noise = (-require_linear("score.sde, which an interval of noise levels is told by,", sde).log_snr(t)).exp()
        return (noise >= self.low) & (noise <= self.high)


def _between(low: float, high: float) -> Levels:
    return Levels(number("low", low, least=0), math.inf if high == math.inf else number("high", high, above=low))


def _differing(
    scores: Sequence[Score],
    first: Callable[[Ask, Tensor, Tensor, dict[str, Any]], Tensor],
    second: Callable[[Ask, Tensor, Tensor, dict[str, Any]], Tensor],
    mix: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    levels: Levels,
) -> Guided:
    """first outside of an interval, and mix(x, t, first, second) in it; second is not asked where no sample is."""

    def rule(ask: Ask, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        here, a = levels.at(made.sde, t), first(ask, x, t, cond)
        if not here.any():
            return a
        both = mix(x, t, a, second(ask, x, t, cond))
        return both if here.all() else torch.where(here.view(-1, *[1] * (x.ndim - 1)).to(x.device), both, a)

    made = Guided(scores, rule)
    return made


def _told(ask: Ask, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
    if all(value is None for value in cond.values()):
        raise ValueError("a guided score must be told what to guide to, such as label=: see `conditioned`")
    return ask(0, x, t, **cond)


def conditioned(score: Score, **cond: Any) -> Guided:
    """The score under conditions, such as label=3, as any step asks for it: (x, t). A whole number, and a tensor (), is
    meant for every sample. A likelihood, whose samples leave a batch one by one, is told conditions of (B,) itself,
    log_prob(..., label=y). Raises ValueError where one of (B,) is given for another number of samples.
    """
    numbers = (int, np.integer, np.ndarray, list, tuple)
    fixed = {k: torch.as_tensor(v) if isinstance(v, numbers) else v for k, v in cond.items()}

    def rule(ask: Ask, x: Tensor, t: Tensor, more: dict[str, Any]) -> Tensor:
        return ask(0, x, t, **{k: _for_each(k, v, x) for k, v in fixed.items()}, **more)

    made = Guided([score], rule)
    made.given = f", given {' and '.join(f'{k} {v.item()}' if _single(v) else k for k, v in fixed.items())}"
    return made


def _single(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def _for_each(name: str, value: Any, x: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.ndim and len(value) != len(x):
        raise ValueError(
            f"{name} must be one for each of the {len(x)} samples that are asked for together, got shape "
            f"{tuple(value.shape)}"
        )
    return (value.expand(len(x)) if not value.ndim else value).to(x.device)


def combined(*parts: tuple[float, Score]) -> Guided:
    """sum_k w_k score_k, of parts (w_k, score_k): that of prod_k p_k^w_k at each noise level. Composition of conditions
    c_k is s + sum_k w_k (s_k - s), negation has a negative w (Liu, Li, Du, Torralba & Tenenbaum 2022). All are told the
    same conditions.
    """
    weights = [number(f"parts[{k}]", part[0]) for k, part in enumerate(parts)]
    if not parts:
        raise ValueError("parts must hold at least one (weight, score), got none")

    def rule(ask: Ask, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        total = torch.zeros_like(x)
        for k, w in enumerate(weights):
            total = total + w * ask(k, x, t, **cond) if w else total
        return total

    return Guided([score for _, score in parts], rule)


def classifier_free(score: Score, w: float, *, low: float = 0.0, high: float = math.inf) -> Guided:
    """s(x, t) + w (s(x, t, c) - s(x, t)), with s(x, t) what the network says without a condition (Ho & Salimans 2022; w
    here is 1 + their w): w = 1 is the conditional score. Only at noise levels sigma/alpha from low to high, and w = 1
    elsewhere (Kynkaanniemi et al. 2024), where the network is called once and not twice.

    Raises ValueError for bad numbers; when called, if there is no condition, or the score says no process and there is
    an interval.
    """
    number("w", w)
    without = lambda ask, x, t, cond: ask(0, x, t)  # noqa: E731
    return _differing([score], _told, without, lambda x, t, c, u: u + w * (c - u), _between(low, high))


def autoguided(score: Score, worse: Score, w: float, *, low: float = 0.0, high: float = math.inf) -> Guided:
    """s_worse + w (s - s_worse), with a smaller or less trained network of the same task (Karras et al. 2024b), between
    noise levels as in `classifier_free`. Both are told the same conditions, if any.
    """
    number("w", w)
    mix = lambda x, t, a, b: b + w * (a - b)  # noqa: E731
    good, bad = (lambda ask, x, t, cond, k=k: ask(k, x, t, **cond) for k in (0, 1))
    return _differing([score, worse], good, bad, mix, _between(low, high))


def projected(
    score: Score, w: float, *, along: float = 0.0, norm: float = math.inf, low: float = 0.0, high: float = math.inf
) -> Guided:
    """Classifier-free guidance of which the part along the denoised sample, which saturates, is left out but for the
    share `along` (Sadat et al. 2025, adaptive projected guidance; its memory is a step's, `Momentum`). In
    D = E[x_0 | x_t]:

        D_c + (w - 1) (along d_par + d_orth),    d = D_c - D_u, shortened to `norm` where it is longer,

    d_par its part along D_c, for each sample. along = 1 without a norm is `classifier_free`. Raises ValueError as that,
    and when called if the score says no process.
    """
    number("w", w), number("along", along), norm == math.inf or number("norm", norm, above=0)
    without = lambda ask, x, t, cond: ask(0, x, t)  # noqa: E731
    memory = Memory()

    def mix(x: Tensor, t: Tensor, c: Tensor, u: Tensor) -> Tensor:
        sde = require_linear("score.sde, which samples are denoised by,", getattr(score, "sde", None))
        alpha, var = like(sde.alpha(t), x), like(sde.var(t), x)
        D, d = (x + var * c) / alpha, memory(var * (c - u) / alpha)
        dot = lambda a, b: (a * b).flatten(1).sum(1).view(-1, *[1] * (x.ndim - 1))  # noqa: E731
        if norm < math.inf:
            d = d * (norm / dot(d, d).sqrt().clamp_min(1e-30)).clamp_max(1)
        parallel = dot(d, D) / dot(D, D).clamp_min(1e-30) * D
        return c + (w - 1) * (d - (1 - along) * parallel) * alpha / var

    made = _differing([score], _told, without, mix, _between(low, high))
    made.memory = memory
    return made


class Memory:
    """d + beta d_before, and that as the next d_before, while a `Momentum` is on its way; else d."""

    def __init__(self) -> None:
        self.beta: float | None = None
        self.before: Tensor | None = None
        self.asked = 0

    def __call__(self, d: Tensor) -> Tensor:
        if self.beta is None:
            return d
        self.asked += 1
        self.before = d if self.before is None else d + self.beta * self.before
        return self.before


@dataclass(frozen=True)
class Momentum(Prepared):
    """A step along a `projected` score whose d remembers those of the intervals before (Sadat et al. 2025, reverse
    momentum, beta < 0):

        d_n <- d_n + beta d_(n-1),    before it is shortened and projected.

    In small steps that is d/(1 - beta): what it does to samples depends on how many they are. guided: the projected
    score, which the process's score asks, as by `conditioned`. step: a predictor that remembers nothing, since one that
    asks several times an interval has no d_(n-1). Correctors, and the denoising at the end, ask without memory.

    Raises ValueError for what is not as stated, and when called if the process's score does not ask the guided one, or
    asks it twice.
    """

    fixed = True
    guided: Guided = field(repr=False)
    beta: float = -0.5
    step: Affine = Ancestral()

    def __post_init__(self) -> None:
        if not isinstance(self.guided, Guided) or self.guided.memory is None:
            raise ValueError(f"guided must be a score that `projected` made, got {shown(self.guided)}")
        number("beta", self.beta, above=-1, below=1), memoryless(self.step)

    def check(self, p: Reverse, t: Tensor, s: Tensor) -> None:
        self.step.check(p, t, s)

    def prepare(self, p: Reverse, t: Tensor, s: Tensor) -> Step:
        return _Moving(self, self.step.prepare(p, t, s))


class _Moving(Step):
    """A step with momentum at work."""

    fixed = True

    def __init__(self, of: Momentum, step: Step) -> None:
        self.of, self.step = of, step
        self.before: Tensor | None = None

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        guided, memory = self.of.guided, cast(Memory, self.of.guided.memory)
        calls, memory.beta, memory.before, memory.asked = guided.calls, self.of.beta, self.before, 0
        try:
            x = self.step(p, x, t, s, noise)
            self.before = memory.before
        finally:
            memory.beta = memory.before = None
        if guided.calls == calls or memory.asked > 1:
            often = f"{memory.asked} times" if memory.asked else "not"
            raise ValueError(f"the process's score must ask guided once an interval, and has {often} asked it")
        return x


def tempered(score: Score, temperature: float, around: Reference | None = None) -> Guided:
    """The score that for data N(m, c^2 I) is that of p^(1/T), T the temperature, whose p is of the data:

        s(x, t) (alpha^2 c^2 + sigma^2)/(alpha^2 T c^2 + sigma^2)

    (Ingraham et al. 2023, Chroma, low-temperature sampling, where c = 1 and 1/T is called lambda_0). For p is raised to
    a power at t = 0 and then noised: p^(1/T) is N(m, T c^2 I), whose score at t is -(x - alpha m)/(alpha^2 T c^2 +
    sigma^2), and that of p is the same with T = 1. Where the noise is large nothing is changed, where there is none the
    score is s/T. c is that of `around`, or of what the score was made for, or of the law that it is of.

    For other data it is a rule of thumb, and samples are not of p^(1/T). Weighted ones are, by `tilted(sde, score,
    flat, 1 - 1/T, x, ts)` with flat = lambda x, t: torch.zeros_like(x), and x from the prior, times sqrt(T), as p_t is
    raised to that power at every t, at the first one too.

    Raises ValueError unless 0 < T, the score says its process, and c is known.
    """
    T = number("temperature", temperature, above=0)
    sde = require_linear("score.sde, by which noise is told,", getattr(score, "sde", None))
    own = around if around is not None else said(score)
    if not isinstance(own, Reference):
        raise ValueError(f"around must be a Reference, such as Reference.fit(data), for a score of none, got {own!r}")
    c2 = own.checked(own.mean.shape if isinstance(own.mean, Tensor) else ()).std ** 2

    def rule(ask: Ask, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        a2, var = sde.alpha(t) ** 2, sde.var(t)
        return ask(0, x, t, **cond) * like((a2 * c2 + var) / (a2 * T * c2 + var), x)

    return Guided([score], rule, Reference(own.mean, T**0.5 * own.std))


def classified(
    score: Score,
    classifier: Callable[[Tensor, Tensor], Tensor],
    w: float = 1.0,
    *,
    low: float = 0.0,
    high: float = math.inf,
) -> Guided:
    """s(x, t) + w grad log p(label | x, t), with a classifier (x, t) -> logits (B, K) of noisy samples (Dhariwal and
    Nichol 2021, section 4), such as a `ClassModel`: with w = 1 and the exact one that is the score of p_t(x | label).
    Only at noise levels sigma/alpha from low to high, and s elsewhere. It is told label=, () or (B,), which the score
    is not, while it is told any other condition; the classifier's calls are not counted. Raises ValueError for the
    classifier of another process than the score's, and, when called, without labels or for unknown ones.
    """
    number("w", w), function("classifier", classifier, "a callable (x, t) -> (B, K)")

    if (sde := getattr(classifier, "sde", None)) is not None:
        require_score_of(score, sde)

    def plain(ask: Ask, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        if cond.get("label") is None:
            raise ValueError("label must be given to a score that a classifier guides: see `conditioned`")
        return ask(0, x, t, **{k: v for k, v in cond.items() if k != "label"})

    def towards(ask: Ask, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        label = torch.as_tensor(cond["label"])
        if label.ndim > 1 or label.dtype == torch.bool or label.is_floating_point() or label.is_complex():
            raise ValueError(f"label must be whole numbers, () or (B,), got {label.dtype} of {tuple(label.shape)}")
        of, graph = _for_each("label", label, x), torch.is_grad_enabled() and x.requires_grad
        with recording():
            y, u = recordable(x), recordable(t)
            y = y if y.requires_grad else y.detach().requires_grad_()
            log_p = classifier(y, u).log_softmax(1)
            K = log_p.shape[1]
            if label.is_cpu and ((label < 0) | (label >= K)).any():
                raise ValueError(f"label must be in 0..{K - 1}, the classifier's, got {label.tolist()}")
            log_p = log_p.gather(1, recordable(of).long()[:, None])
            (g,) = torch.autograd.grad(log_p.sum(), y, create_graph=graph)
        return g

    return _differing([score], plain, towards, lambda x, t, s, g: s + w * g, _between(low, high))


@torch.no_grad()
def tilted(
    sde: LinearSDE,
    score: Score,
    conditional: Score,
    w: float,
    x: Tensor,
    ts: Tensor,
    step: Step = Ancestral(),
    *,
    noise: Noise = iid(),
    generator: torch.Generator | None = None,
    least: float = 0.5,
) -> Weighted:
    """Weighted samples of p(x)^(1 - w) p(x | c)^w, p(x) p(c | x)^w but for a constant, at the last of the times ts, of
    x (B, *D) drawn from the prior at ts[0]: what guidance is said to sample.

    They go by the reverse SDE of the guided score s = (1 - w) s_u + w s_c, and each gathers

        d log w = w (w - 1)/2 g^2 |s_u - s_c|^2 dtau

    (the Feynman-Kac corrector of Skreta et al. 2025, for a geometric mean), as the product of two densities that
    diffuse does not diffuse as one. Where fewer than `least` of the samples are left in effect, all are drawn anew by
    their weights, evenly spaced (`generator` draws where). In the limit of small steps and many samples weighted means
    are exact; a step is a predictor that remembers nothing, of which the SDE is asked once.

    Raises ValueError before any work for what is not as stated.
    """
    require_noise(noise), require_linear("sde", sde), number("w", w), number("least", least, least=0, most=1)
    memoryless(step)
    x, ts, gap = state("x", x), times("ts", ts, sde.T), [torch.zeros(0)]
    dtype, x = x.dtype, lifted(x)

    def rule(ask: Ask, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        u, c = ask(0, x, t), ask(1, x, t)
        gap[0] = (u - c).square().flatten(1).sum(1)
        return u + w * (c - u)

    guided = Guided([score, conditional], rule)
    p = sde.reverse(guided)
    (move,) = started(p, ts, (step,))
    log_w, start, drawn = x.new_zeros(len(x), dtype=torch.float64), torch.arange(len(x), device=x.device), 0
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        x = move(p, x, t, s, noise)
        noisier = float(sde.var(t) * (sde.log_snr(s) - sde.log_snr(t)))
        log_w = log_w + w * (w - 1) * noisier * gap[0].double()
        if (rows := redrawn(log_w, least, generator)) is not None:
            x, start, log_w, drawn = x[rows], start[rows], torch.zeros_like(log_w), drawn + 1
    return Weighted.at(ts[-1], x.to(dtype), log_w, start, drawn, guided.calls // 2)
