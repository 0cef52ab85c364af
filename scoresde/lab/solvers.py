"""Measuring samplers: `bench` solvers of one flow by their error and of one SDE by their samples, `compare` the
samplers of the literature from the same starting points. Functions from values to rows, each of which says how it can
be made again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from .. import grid
from ..model import Counted
from ..noise import iid, seeds
from ..ode import Dopri5
from ..process import EDM, VE, VP, Cosine, LinearSDE, RectifiedFlow, Score, SubVP
from ..shapes import count
from ..steps import Pilots, tune
from ..steps.adaptive import DPMSolverAdaptive, GottaGoFast, Tallied
from ..steps.catalogue import FLOWS, METHODS, Method
from ..steps.euler import Flow
from ..steps.step import Step, draw, sample
from ..steps.tuned import Error, distance
from .subjects import Row, Subject

PROCESSES: dict[str, LinearSDE]
PROCESSES = {"vp": VP(), "ve": VE(), "subvp": SubVP(), "cosine": Cosine(), "flow": RectifiedFlow(), "edm": EDM()}
SPACINGS = tuple(grid.usual())
SWITCHED = 0.5  # deviations of the data: an error beyond it is taken for another mode
TOLERANCES = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
COMPARED = (
    *("DDPM, fixed-small", "DDPM, fixed-large", "DDPM, optimal", "ReverseDiffusion", "EulerMaruyama"),
    *("ConsistentAnnealed", "Predictor-corrector", "Predictor-corrector, MALA", "Annealed Langevin", "DDIM"),
    "Flow(Heun())",
)
BENCHED = (
    *("DDPM, fixed-small", "EulerMaruyama", "ReverseDiffusion", "DPMSolverPP(2), eta 1", "DPMSolverPP(3), eta 1"),
    *("SASolver(3, 4), eta 1", "SASolver(3, 4), eta 0.6", "GaussianReference, eta 1", "GaussianReference, eta 0.6"),
)


def known_spacing(spacing: str) -> str:
    """The name of a usual grid. Raises ValueError for any other."""
    if spacing not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")
    return spacing


def spaced(subject: Subject, spacing: str, n: int) -> tuple[Tensor, str]:
    """n intervals of the usual grid of that name, and how that is said."""
    said = ", around=Reference.fit(x_0)" if spacing == "reference" else ""
    ts = grid.usual(subject.known.around)[known_spacing(spacing)](subject.sde, n)
    return ts, f"grid.{spacing}(sde, {n}{said})"


def recipe_of(steps: Sequence[Step], subject: Subject) -> list[str]:
    """The steps as `repr` shows them, the Gaussian of the data by where it comes from."""
    return [repr(step).replace(repr(subject.known.around), "Reference.fit(x_0)") for step in steps]


def paid(method: Method, calls: int, more: int = 0) -> int:
    """The intervals that network calls pay for, of which `more` go elsewhere. Raises ValueError if there are none."""
    if (n := method.intervals(calls - more)) < 1:
        raise ValueError(f"{method.name} needs at least {method.least + more} network calls, got {calls}")
    return n


@dataclass(frozen=True)
class Solver:
    """A solver on a kind of grid, that has to be told its budget alone.

    solve: (subject, score, x_T, calls) -> (x at t_min, the recipe). Raises ValueError where the budget is too small.
    eta: 0 for the flow. package: whose it is. weak: whether its samples are measured as a whole, rather than each by
    its error.
    """

    name: str
    grid: str
    eta: float
    solve: Callable[[Subject, Score, Tensor, int], tuple[Tensor, Row]]
    package: str = "scoresde"
    weak: bool = False


def on_grid(method: Method, spacing: str) -> Solver:
    """A method of the catalogue, or one of your own, on that kind of grid."""

    def solve(subject: Subject, score: Score, x_T: Tensor, calls: int) -> tuple[Tensor, Row]:
        ts, said = spaced(subject, spacing, paid(method, calls))
        p = subject.sde.reverse(score, method.eta)
        steps = method.steps(p, ts, subject.known)
        x = sample(p, x_T, ts, *steps, noise=iid(torch.Generator().manual_seed(calls)))
        return x, {"steps": recipe_of(steps, subject), "grid": said, "noise": f"seed {calls}"}

    return Solver(method.name, known_spacing(spacing), method.eta, solve, weak=method.eta > 0)


class Watched(Counted):
    """Counts calls, the seconds spent in them and the samples that they were of; before each of them `ask` is told its
    number, and may raise.
    """

    def __init__(self, f: Score, ask: Callable[[int], None] = lambda n: None) -> None:
        super().__init__(f)
        self.ask, self.seconds, self.evaluations = ask, 0.0, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.ask(self.nfe + 1)
        began = perf_counter()
        said = super().__call__(*args, **kwargs)
        self.seconds += perf_counter() - began
        self.evaluations += len(said)
        return said


class Spent(Exception):
    """All network calls are made."""


def adaptive(name: str, step: Callable[[float, float], Step], eta: float) -> Solver:
    """A step that chooses its own times, made from rtol and atol, here equal: the tightest of TOLERANCES whose
    calls are in the budget.
    """

    def solve(subject: Subject, score: Score, x_T: Tensor, calls: int) -> tuple[Tensor, Row]:
        def ask(n: int) -> None:
            if n > calls:
                raise Spent

        ts, best = torch.tensor([subject.sde.T, subject.sde.t_min], dtype=torch.float64), None
        for tol in TOLERANCES:
            counted, method, began = Watched(score, ask), Tallied(step(tol, tol)), perf_counter()
            noise = iid(torch.Generator().manual_seed(calls))
            try:
                x = sample(subject.sde.reverse(counted, eta), x_T, ts, method, noise=noise)
            except Spent:
                break
            taken = {k: float(getattr(method, k).double().mean()) for k in ("accepted", "rejected")}
            said = {"steps": [repr(method.step)], "grid": "its own", "noise": f"seed {calls}", "nfe": counted.nfe}
            best = x, {**said, **taken, "seconds": perf_counter() - began}
        if best is None:
            raise ValueError(f"{name} needs more than {calls} network calls at any tolerance")
        return best

    return Solver(name, "its own", eta, solve, weak=eta > 0)


def tuned(pilots: int = 64) -> Solver:
    """The one recipe with nothing chosen by hand: `tune` on noise of its own, which the starts here are not."""

    def solve(subject: Subject, score: Score, x_T: Tensor, calls: int) -> tuple[Tensor, Row]:
        fitting, began, sde = Counted(subject.score), perf_counter(), subject.sde
        found = tune(sde.reverse(fitting, 0.0), x_T, calls, subject.known.around, Pilots(pilots))
        cost = {"nfe_to_fit": fitting.nfe, "seconds_to_fit": perf_counter() - began}
        said = f"tune(q, x_T, {calls}, Reference.fit(x_0), Pilots({pilots}))"
        x = sample(sde.reverse(score, 0.0), x_T, found.ts, found.step)
        return x, {"steps": [said], "grid": "of the tuning", "found": found.name, **cost}

    return Solver("Tuned", "tuned", 0.0, solve)


def flows(own: Sequence[Method] = ()) -> list[Solver]:
    """The solvers of the probability flow, and methods of your own on all grids."""
    placed = [on_grid(method, spacing) for method in (*FLOWS, *own) for spacing in SPACINGS]
    loose = [adaptive(f"DPMSolverAdaptive({k})", partial(DPMSolverAdaptive, k), 0.0) for k in (2, 3)]
    pair = adaptive("Flow(Dopri5)", lambda rtol, atol: Flow(Dopri5(rtol, atol)), 0.0)
    return [tuned(), *placed, *loose, pair]


def diffusions(own: Sequence[Method] = ()) -> list[Solver]:
    """The solvers of the reverse SDE, and of processes between it and the flow; and methods of your own."""
    methods = (*(METHODS[name] for name in BENCHED), *own)
    placed = [on_grid(method, spacing) for method in methods for spacing in ("log_snr", "uniform", "reference")]
    return [*placed, adaptive("GottaGoFast", GottaGoFast, 1.0), replace(tuned(), name="Tuned flow", weak=True)]


def bench(
    subject: Subject,
    cells: Sequence[tuple[Solver, int]],
    n: int,
    n_weak: int,
    seed: int = 0,
    truth: Tensor | None = None,
) -> Iterator[Row]:
    """One row for each solver and number of network calls, in turn; one that says why where it could not be run.

    n: starts whose ends are compared with the flow's own (`truth`, if it is known already); n_weak: samples of the
    solvers that are measured as a whole. Raises ValueError for a truth of another shape than the starts.
    """
    starts = {weak: subject.starts(k, seed + 1 + weak) for weak, k in ((False, n), (True, n_weak))}
    if truth is None and not all(solver.weak for solver, _ in cells):
        truth = subject.truth(starts[False])
    if truth is not None and truth.shape != starts[False].shape:
        raise ValueError(f"truth must have the shape of the starts, {(n, *subject.shape)}, got {tuple(truth.shape)}")
    for solver, calls in cells:
        x_T = starts[solver.weak]
        try:
            row = _benched(subject, solver, calls, x_T, None if solver.weak else truth)
            row |= {"n": len(x_T), "seed": seed, "starts": f"seed {seed + 1 + solver.weak}"}
        except (ValueError, RuntimeError) as error:  # what diverges, as some do in a few calls, stops no other
            row = {"skipped": str(error)}
        yield {"solver": solver.name, "package": solver.package, "spacing": solver.grid, "budget": calls, **row}


def _benched(subject: Subject, solver: Solver, calls: int, x_T: Tensor, truth: Tensor | None) -> Row:
    score, began = Watched(subject.score), perf_counter()
    x, said = solver.solve(subject, score, x_T, calls)
    seconds = perf_counter() - began - said.get("seconds_to_fit", 0.0)
    found = {"nfe": score.nfe, **(subject.measured(x) if truth is None else _strong(subject, x, truth))}
    spent = {"seconds": seconds, "overhead_us": 1e6 * (seconds - score.seconds) / max(1, score.nfe)}
    return {**found, **spent, "eta": solver.eta, **said, "subject": subject.name, "sde": repr(subject.sde)}


def _strong(subject: Subject, x: Tensor, truth: Tensor) -> Row:
    switched = float((distance(x, truth) > SWITCHED * subject.known.around.std).double().mean())
    return {**vars(Error.of(x, truth)), "switched": switched}


def compare(
    subject: Subject,
    cells: Sequence[tuple[Method, int]],
    spacing: str = "log_snr",
    seed: int = 0,
    batch: int = 4096,
) -> Iterator[tuple[Row, Tensor]]:
    """One row for each method and number of network calls, in turn, and the samples; one that says why, and no samples,
    where it could not be run. All methods have the same kind of grid and the same starting points, and end at t_min, or
    one call further if the subject says so. The calls of a row, nfe, are those of a batch, the most where batches
    differ, and at most the number that was given. Raises ValueError for a grid that is not a usual one, and for
    batch < 1.
    """
    known_spacing(spacing), count("batch", batch)
    for method, budget in cells:
        try:
            row, x = _compared(subject, method, budget, spacing, seed, batch)
        except (ValueError, RuntimeError) as error:
            row, x = {"skipped": str(error)}, torch.empty(0, *subject.shape)
        yield {"method": method.name, "budget": budget, **row}, x


def _compared(subject: Subject, method: Method, budget: int, spacing: str, seed: int, batch: int) -> tuple[Row, Tensor]:
    ts, said = spaced(subject, spacing, paid(method, budget, subject.denoise))
    fitted, score = Counted(subject.score), Counted(subject.score)
    steps = method.steps(subject.sde.reverse(fitted, method.eta), ts, subject.known)
    p, began, parts, calls = subject.sde.reverse(score, method.eta), perf_counter(), [], [0]
    like = torch.empty(0, device=subject.x_0.device)
    for start in range(0, subject.n, batch):
        every = seeds(seed, min(batch, subject.n - start), start)
        parts.append(draw(p, subject.shape, ts, *steps, seeds=every, like=like, denoise=subject.denoise))
        calls.append(score.nfe)
    seconds, x = perf_counter() - began, torch.cat(parts).cpu()
    nfe = max(b - a for a, b in zip(calls, calls[1:], strict=False))
    found = {"nfe": nfe, "nfe_to_fit": fitted.nfe, **subject.measured(x), "seconds": seconds}
    of = {"subject": subject.name, "sde": repr(subject.sde), "eta": method.eta, "grid": said}
    how = {"steps": recipe_of(steps, subject), "denoise": subject.denoise, "seed": seed, "n": subject.n}
    return {**found, **of, **how}, x
