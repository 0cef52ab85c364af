"""Samplers compared where the law of what they return is computed, on a line and for Gaussian data: no error of
sampling, to nine digits.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import grid
from ..exact import Gaussian, GaussianMixture
from ..model import Counted
from ..noise import iid
from ..process import LinearSDE, Reverse, require_reverse
from ..reference import Reference
from ..steps import Step, sample
from ..steps.catalogue import Known, Method
from .gaussian import gaussian_law_of
from .law import law_of, law_path
from .line import LineLaw, tabulated
from .solvers import known_spacing, paid
from .subjects import Row

LINE = GaussianMixture(torch.tensor([0.7, 0.3]), torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.01], [0.02]]))
"""What is sampled: 0.7 N(-1, 0.1^2) + 0.3 N(1, 0.141^2), two modes that no path joins where there is little noise."""
SPREAD = Gaussian(torch.full((8,), 0.5), torch.logspace(math.log10(0.05), math.log10(2.0), 8, dtype=torch.float64) ** 2)
"""Gaussian data in eight dimensions, of deviations 0.05 to 2."""
KNOWN = 4000
"""Samples of them that steps may be fitted to."""


def _setting(spacing: str, law: GaussianMixture) -> tuple[Known, Callable[[LinearSDE, int], Tensor]]:
    """What steps may know of the data, and the usual grid of that name."""
    x_0 = law.sample(KNOWN, torch.Generator().manual_seed(0))
    known = Known(Reference.fit(x_0), x_0)
    return known, grid.usual(known.around)[known_spacing(spacing)]


def exact_rows(
    sde: LinearSDE, cells: Sequence[tuple[Method, int]], spacing: str = "log_snr", law: GaussianMixture = LINE
) -> Iterator[Row]:
    """One row for each method and number of network calls, in turn: the calls that were made, nfe, the distances to the
    law of x_t at t_min, and under `error` what half the points change in each; or `skipped`, why the law cannot be
    told. law: one on a line, by `law_of`, or a Gaussian, by `gaussian_law_of`, whose errors are 0. Raises ValueError
    for a grid that is not a usual one.
    """
    known, usual = _setting(spacing, law)
    for method, budget in cells:
        row: Row = {"method": method.name, "budget": budget, "sde": repr(sde), "eta": method.eta}
        try:
            ts, score = usual(sde, paid(method, budget)), law.diffuse(sde)
            p, counted = sde.reverse(score, method.eta), Counted(score)
            steps, truth = method.steps(p, ts, known), law.marginal(sde, ts[-1])
            x_T = sde.prior((2, *law.shape), iid(torch.Generator().manual_seed(0)), torch.float64)
            sample(sde.reverse(counted, method.eta), x_T, ts, *steps, noise=iid(torch.Generator().manual_seed(0)))
            if law.shape == (1,):
                found = law_of(p, ts, *steps)
                told, errors = found.distances(truth), found.errors(truth)
            else:
                told = gaussian_law_of(p, ts, *steps).distances(truth)
                errors = dict.fromkeys(told, 0.0)
            row |= {"nfe": counted.nfe, **told, "error": errors}
        except (ValueError, RuntimeError) as error:
            row["skipped"] = str(error)
        yield row


def density_paths(
    sde: LinearSDE, methods: Sequence[Method], budget: int, spacing: str = "log_snr"
) -> list[tuple[str, list[tuple[float, LineLaw]]]]:
    """The forward process backwards, and the law of each method on its way from the prior, with that many network
    calls; methods whose law cannot be told so are left out.
    """
    known, usual = _setting(spacing, LINE)
    found = [("forward process", [(float(t), tabulated(LINE.marginal(sde, t), 256)) for t in usual(sde, budget)])]
    for method in methods:
        try:
            ts = usual(sde, paid(method, budget))
            p = sde.reverse(LINE.diffuse(sde), method.eta)
            found.append((method.name, law_path(p, ts, *method.steps(p, ts, known))))
        except (ValueError, RuntimeError):
            continue
    return found


class ErrorBudget(dict[str, dict[str, float]]):
    """Distances by where they come from; `str` is a table of them."""

    def __str__(self) -> str:
        heads = list(self["whole"])
        lines = [f"{'':15}" + "".join(f"{head:>17}" for head in heads)]
        lines += [f"{name:15}" + "".join(f"{row[head]:17.3g}" for head in heads) for name, row in self.items()]
        return "\n".join(lines)


def error_budget(law: GaussianMixture, p: Reverse, ts: Tensor, *steps: Step, denoise: bool = False) -> ErrorBudget:
    """Where the distance of a sampler to the law of the data on a line comes from, by switching one thing at a time,
    each as `LineLaw.distances`:

    stopping: from the data to the law of x_t at the last time; discretisation: from that to what the steps return from
    the true law of x_T by the exact score; prior: from what they return so to what they return from N(0, sigma_T^2);
    score: from that to what they return by the score of p, absent if it is the exact one; whole: from the data to that.
    denoise: the samplers end with E[x_0 | x_t], and there is no stopping: what that does is in the discretisation.

    Parts do not add up, as divergences do not; the larger ones are what to mend. Raises ValueError as `law_of` does.
    """
    require_reverse(p)
    exact = replace(p, score=law.diffuse(p.sde))
    start, stop = (law.marginal(p.sde, t) for t in (ts[0], ts[-1]))
    truth = law if denoise else stop
    true_start, from_prior = (law_of(exact, ts, *steps, prior=prior, denoise=denoise) for prior in (start, None))
    parts = {} if denoise else {"stopping": tabulated(stop).distances(law)}
    parts |= {"discretisation": true_start.distances(truth), "prior": from_prior.distances(true_start)}
    own = from_prior
    if p.score != exact.score:
        own = law_of(p, ts, *steps, denoise=denoise)
        parts["score"] = own.distances(from_prior)
    return ErrorBudget(parts | {"whole": own.distances(law)})
