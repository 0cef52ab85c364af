"""Methods for y = A(x) + noise against posteriors that are known.

Of a mixture of Gaussians p(x | y), p(y) and the score of every p_t(x | y) have closed forms where A is linear, and
where it is not draws of the law have weights (`inverse.importance`). The exact score, by the same steps as a method's,
is off by what the steps are: what a method is off beyond that is its approximation's, and more steps do not mend it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..exact import GaussianMixture
from ..grid import log_snr
from ..inverse import (
    DAPS,
    DDRM,
    DPS,
    Average,
    Function,
    Linear,
    Mask,
    Observation,
    Particles,
    Replacement,
    ddnm,
    diffpir,
    importance,
    log_evidence,
    mcgdiff,
    mmps,
    pigdm,
    posterior,
    twisted,
)
from ..model import Counted
from ..noise import iid
from ..process import LinearSDE, Score
from ..reference import Reference
from ..shapes import count
from ..steps import Ancestral, Step, sample
from .metrics import sliced_wasserstein
from .problems import DigitClasses
from .subjects import Row

EXACT = "exact score"
LEVELS = 20
"""How many a score is looked at, and one."""
DRAWS = 200_000
"""Weighted draws of the law that stand for a posterior without a closed form."""


@dataclass(frozen=True)
class Task:
    """What is to be inferred: x of the law, of which y was measured."""

    law: GaussianMixture
    seen: Observation

    @property
    def linear(self) -> bool:
        """Whether the posterior has a closed form."""
        return isinstance(self.seen.A, Linear)


@dataclass(frozen=True)
class Asked:
    """What a method is given: the score of the law on a process, the task, the Gaussian around the data, starts at the
    first of the times, the times, and the seed of what it draws.
    """

    sde: LinearSDE
    score: Score
    task: Task
    around: Reference
    x_T: Tensor
    ts: Tensor
    seed: int

    def generator(self, k: int) -> torch.Generator:
        """A new stream, one for each k."""
        return torch.Generator().manual_seed(self.seed + k)

    def sampled(self, score: Score, step: Step) -> "Answer":
        """Samples by a step."""
        counted = Counted(score)
        x = sample(self.sde.reverse(counted), self.x_T, self.ts, step, noise=iid(self.generator(1)))
        return Answer(x / float(self.sde.alpha(self.ts[-1])), counted.nfe)

    def weighed(self, sampler: Callable[..., Particles], **options: Any) -> "Answer":
        """Samples by particles, drawn by their weights."""
        counted, noise, draws = Counted(self.score), iid(self.generator(1)), self.generator(2)
        made = sampler(counted, self.task.seen, self.x_T, self.ts, noise=noise, generator=draws, **options)
        w = made.samples.log_w.softmax(0)
        x = made.samples.x[torch.multinomial(w, len(w), replacement=True, generator=self.generator(3))]
        return Answer(x / float(self.sde.alpha(self.ts[-1])), counted.nfe, made.log_evidence, made.error)


class Answer(NamedTuple):
    """Samples of the data, x/alpha at the last time, the network calls that they took, and log p(y) with its standard
    error if the method tells it.
    """

    x: Tensor
    calls: int
    log_evidence: float | None = None
    error: float = 0.0


InverseMethod = Callable[[Asked], Answer]
STEP = Ancestral(1.0)


@dataclass(frozen=True)
class Scored:
    """DDPM, fixed-large, by a score of p_t(x | y), or what is taken for it."""

    make: Callable[[Asked], Score]

    def __call__(self, a: Asked) -> Answer:
        return a.sampled(self.make(a), STEP)


@dataclass(frozen=True)
class Stepped:
    """The law's score, by a step that knows what was measured."""

    make: Callable[[Asked], Step]

    def __call__(self, a: Asked) -> Answer:
        return a.sampled(a.score, self.make(a))


def of_score(make: Callable[[Score, Observation], Score]) -> Scored:
    """A method of one's own: make(score, seen) -> a score of p_t(x | y), as `pigdm`."""
    return Scored(lambda a: make(a.score, a.task.seen))


METHODS: dict[str, InverseMethod] = {
    EXACT: Scored(lambda a: posterior(a.task.law, a.task.seen).diffuse(a.sde)),
    "pigdm": Scored(lambda a: pigdm(a.score, a.task.seen, a.around)),
    "mmps": Scored(lambda a: mmps(a.score, a.task.seen, around=a.around)),
    "diffpir": of_score(diffpir),
    "ddnm": of_score(ddnm),
    "DDRM": Stepped(lambda a: DDRM(a.task.seen)),
    "DPS": Stepped(lambda a: DPS(STEP, a.task.seen)),
    "DAPS": Stepped(lambda a: DAPS(a.task.seen, n=0 if a.task.linear else 20, around=a.around)),
    "DAPS, 5 calls": Stepped(lambda a: DAPS(a.task.seen, 5, 0 if a.task.linear else 20, around=a.around)),
    "Replacement": Stepped(lambda a: Replacement(STEP, a.task.seen)),
    "RePaint": Stepped(lambda a: Replacement(STEP, a.task.seen, times=5)),
    "twisted": lambda a: a.weighed(twisted, around=a.around),
    "mcgdiff": lambda a: a.weighed(mcgdiff),
    "mcgdiff, around": lambda a: a.weighed(mcgdiff, around=a.around),
}
"""Those of the library, as they come; RePaint takes every interval five times, and "around" has the Gaussian of the
data."""


def _two_modes() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.3, 0.5, 0.0], [1.0, -0.5, 0.2, 0.8]], dtype=torch.float64)
    covariances = torch.stack([0.2 * torch.eye(4) + 0.1, 0.1 * torch.eye(4) + 0.05]).double()
    return GaussianMixture.from_covariances(torch.tensor([0.6, 0.4], dtype=torch.float64), means, covariances)


def one_of_four() -> Task:
    """Two modes in four dimensions, of which one number is known, to 0.5."""
    keep = torch.tensor([True, False, False, False])
    return Task(_two_modes(), Observation(Mask(keep), torch.tensor([0.3], dtype=torch.float64), 0.5))


def length_of_four() -> Task:
    """The same law, of which |x|^2 is known, to 0.2."""
    square = Function(lambda x: x.square().sum(1, keepdim=True), (4,))
    return Task(_two_modes(), Observation(square, torch.tensor([2.0], dtype=torch.float64), 0.2))


def digit(A: Linear, std: float, seed: int = 4) -> Task:
    """A digit of the mixture of ten classes in 64 dimensions."""
    law, g = DigitClasses().law(), torch.Generator().manual_seed(seed)
    seen = Observation.of(A, law.sample(1, g), std, g)
    return Task(law, Observation(A, seen.y[0], std))


def upper_half() -> Mask:
    """The upper half of an 8 x 8 image."""
    keep = torch.zeros(1, 8, 8, dtype=torch.bool)
    keep[:, :4] = True
    return Mask(keep)


TASKS: dict[str, Callable[[], Task]] = {
    "one-of-four": one_of_four,
    "length-of-four": length_of_four,
    "upper-half": lambda: digit(upper_half(), 0.2),
    "blocks": lambda: digit(Average((1, 8, 8), 4), 0.1),
}
"""One or |x|^2 of four numbers, whose law has two modes; the upper half of a digit, or its means of 4 x 4 pixels."""


class Truth(NamedTuple):
    """Two sets of samples of a posterior, its mean and deviations, log p(y), the shares in it of the modes of `of`, and
    the law if it has a closed form, which is then `of`.
    """

    samples: tuple[Tensor, Tensor]
    mean: Tensor
    std: Tensor
    log_evidence: float
    of: GaussianMixture
    shares: Tensor
    law: GaussianMixture | None = None


def truth_of(task: Task, n: int, seed: int) -> Truth:
    """The posterior of a task, with two times n samples of it."""
    g = torch.Generator().manual_seed(seed)
    if task.linear:
        law = posterior(task.law, task.seen)
        mean, std = law.moments
        fresh = law.sample(n, g), law.sample(n, g)
        return Truth(fresh, mean, std, log_evidence(task.law, task.seen), law, law.weights, law)
    made = importance(task.law, task.seen, DRAWS, g)
    mean = made.samples.mean()
    std = made.samples.mean(lambda x: (x - mean).square()).sqrt()
    w = made.samples.log_w.softmax(0)
    drawn = [made.samples.x[torch.multinomial(w, n, replacement=True, generator=g)] for _ in range(2)]
    shares = made.samples.mean(task.law.responsibilities)
    return Truth((drawn[0], drawn[1]), mean, std, made.log_evidence, task.law, shares)


def posterior_distances(x: Tensor, truth: Truth) -> Row:
    """How far samples (n, *D) are from a posterior. weights: total variation between the modes' weights of samples and
    of the posterior; mean: root mean square over dimensions of the error of the mean, in deviations of the posterior;
    std: that of log(deviation of samples/of the posterior); covered: the share of the posterior inside the interval
    that 90 % of the samples are in, over dimensions; w2: sliced Wasserstein distance to samples of it, over that of
    others of it.
    """
    one, other = (set_[: len(x)] for set_ in truth.samples)
    low, high = (x.flatten(1).quantile(q, 0) for q in (0.05, 0.95))
    inside = (one.flatten(1) >= low) & (one.flatten(1) <= high)
    wide = (x.std(0) / truth.std).clamp_min(1e-12).log()
    return {
        "weights": float((truth.of.responsibilities(x).mean(0) - truth.shares).abs().sum() / 2),
        "mean": float(((x.mean(0) - truth.mean) / truth.std).square().mean().sqrt()),
        "std": float(wide.square().mean().sqrt()),
        "covered": float(inside.double().mean()),
        "w2": sliced_wasserstein(x, one) / sliced_wasserstein(other, one),
    }


def inverse_rows(
    task: Task,
    sde: LinearSDE,
    n: int = 2000,
    steps: int = 200,
    seed: int = 0,
    methods: Mapping[str, InverseMethod] = METHODS,
) -> Iterator[Row]:
    """A row a method, by so many equal steps of log SNR: `posterior_distances` of n samples, the estimate of log p(y)
    beside the truth, network calls and CPU seconds. A method that is not for this task, or fails, by a ValueError or
    a RuntimeError, has its message under "skipped".
    """
    count("n", n, least=2), count("steps", steps)
    truth, ts = truth_of(task, n, seed + 1000), log_snr(sde, steps)
    around = Reference.fit(task.law.sample(2000, torch.Generator().manual_seed(seed + 2000))).overall
    x_T = sde.prior((n, *task.law.shape), iid(torch.Generator().manual_seed(seed)), torch.float64)
    asked = Asked(sde, task.law.diffuse(sde), task, around, x_T, ts, seed)
    for name, method in methods.items():
        row: Row = {"method": name, "steps": steps}
        began = process_time()
        try:
            answer = method(asked)
            seconds = round(process_time() - began, 2)
            if not answer.x.isfinite().all():
                raise RuntimeError("samples are not finite")
            off = score_error(method.make(asked), asked, truth) if isinstance(method, Scored) and truth.law else None
        except (ValueError, RuntimeError) as error:
            yield row | {"skipped": str(error)}
            continue
        row |= {"calls": answer.calls, "seconds": seconds}
        if answer.log_evidence is not None:
            row |= {"log_evidence": answer.log_evidence, "error": answer.error, "true": truth.log_evidence}
        yield row | posterior_distances(answer.x, truth) | ({} if off is None else {"score": off})


def score_error(score: Score, asked: Asked, truth: Truth) -> float:
    """How far E[x_0 | x_t, y] by a score s is from the true one at samples of p_t(x | y), in units of what y adds to
    E[x_0 | x_t],

        sqrt(sum E |sigma^2/alpha (s - s_y)|^2 / sum E |sigma^2/alpha (s_0 - s_y)|^2),

    s_y the score of p_t(x | y) and s_0 that of the law, over `LEVELS` even steps of log SNR: 0 for the exact one, 1 for
    one that forgets y. Raises ValueError unless the posterior has a closed form.
    """
    if truth.law is None:
        raise ValueError("truth must have a closed form, and has none")
    sde, exact, noise = asked.sde, truth.law.diffuse(asked.sde), iid(asked.generator(4))
    off, added = 0.0, 0.0
    for t in log_snr(sde, LEVELS):
        x, _ = sde.perturb(truth.samples[0][:256], t, noise)
        s = exact(x, t)
        scale = float(sde.var(t) / sde.alpha(t)) ** 2
        off += scale * float((score(x, t) - s).square().mean())
        added += scale * float((asked.score(x, t) - s).square().mean())
    return math.sqrt(off / added)
