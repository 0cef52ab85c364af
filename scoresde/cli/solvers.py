"""What `scoresde bench` measures: problems with their truth, and solvers for any number of network calls."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from .. import grid
from ..adaptive import DPMSolverAdaptive, GottaGoFast, Tallied
from ..ancestral import Ancestral
from ..count import Counted
from ..data import Digits
from ..exact import Empirical
from ..exponential import Reference, fit_reference
from ..metrics import energy_distance, sliced_wasserstein
from ..multistep import DEIS, IPNDM, DPMSolverPP, GaussianReference, SASolver, UniPC
from ..noise import iid
from ..ode import Dopri5
from ..predict import EulerMaruyama, Flow, ReverseDiffusion
from ..problems import DigitClasses, Lattice, Modes
from ..processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from ..sample import Step, sample
from ..sde import LinearSDE, Score
from ..singlestep import RES, DPMSolver, DPMSolverPP2S, EDMHeun
from ..tune import tune
from .contenders import FRESH, Subject, exact_subject, trained_subject

LAWS = {"modes": Modes(), "lattice": Lattice(), "digits": DigitClasses()}
PROCESSES: dict[str, LinearSDE] = {
    "vp": VP(),
    "ve": VE(),
    "subvp": SubVP(),
    "cosine": Cosine(),
    "flow": RectifiedFlow(),
    "edm": EDM(),
}
SPACINGS = ("uniform", "quadratic", "log_snr", "karras", "reference")


@dataclass(frozen=True)
class Case:
    """A problem on a process: a subject (its score, and what samples should be), the type of its states, the tolerance
    of the reference solution, and the Gaussian with the data's mean and deviation.
    """

    problem: str
    process: str
    subject: Subject
    dtype: torch.dtype
    tol: float
    around: Reference

    @property
    def sde(self) -> LinearSDE:
        """The process."""
        return self.subject.sde

    def starts(self, n: int, seed: int, device: torch.device) -> Tensor:
        """n states x_T."""
        return self.sde.prior((n, *self.subject.shape), iid(torch.Generator().manual_seed(seed)), self.dtype, device)

    def truth(self, x_T: Tensor) -> Tensor:
        """Where the flow takes them at t_min, by Dormand and Prince's pair."""
        ts = torch.tensor([self.sde.T, self.sde.t_min], dtype=torch.float64)
        return sample(self.sde.reverse(self.subject.score, 0.0), x_T, ts, Flow(Dopri5(self.tol, self.tol)))


def case(problem: str, process: str, model: Path | None, n: int, seed: int, device: torch.device) -> Case:
    """A law of LAWS, "memorised" (the bundled digits themselves), or "model", the checkpoint."""
    sde = PROCESSES[process]
    if problem == "model":
        assert model is not None
        subject = replace(trained_subject(model, sde, None, seed, device), denoise=False)
        return Case(problem, process, subject, torch.float32, 1e-5, fit_reference(subject.x_0))
    if problem == "memorised":
        digits = Digits().load()
        data = torch.cat([digits.train, digits.held_out]).to(device, torch.float64)
        law, g = Empirical(data), torch.Generator().manual_seed(seed)
        end = law.diffuse(sde)
        truth, fresh = end.sample(n, sde.t_min, g), [end.sample(n, sde.t_min, g) for _ in range(FRESH)]
        measures = {
            "sliced_wasserstein": lambda x: sliced_wasserstein(x, truth),
            "energy_distance": lambda x: energy_distance(x, truth),
        }
        subject = Subject("the digits themselves", sde, end, tuple(data.shape[1:]), data, fresh, measures, False)
        return Case(problem, process, subject, torch.float64, 1e-8, fit_reference(data))
    subject = exact_subject(repr(LAWS[problem]), LAWS[problem].law(), sde, n, seed, device)
    return Case(problem, process, subject, torch.float64, 1e-10, fit_reference(subject.x_0))


@dataclass(frozen=True)
class Solver:
    """A solver on a kind of grid, that has to be told its budget alone.

    solve: (case, score, x_T, calls) -> (x at t_min, the recipe). Raises ValueError where the budget is too small.
    eta: 0 for the flow. package: whose it is.
    """

    name: str
    grid: str
    eta: float
    solve: Callable[[Case, Score, Tensor, int], tuple[Tensor, dict[str, Any]]]
    package: str = "scoresde"
    weak: bool = False
    """Whether its samples are measured as a whole, rather than each by its error."""


def on_grid(name: str, step: Step, spacing: str, eta: float = 0.0, each: int = 1, free: int = 0) -> Solver:
    """A step of this library; each: calls an interval, free: intervals that cost none. `step` is made around Gaussian
    data with the case's mean and deviation if it is `GaussianReference`.
    """

    def solve(case: Case, score: Score, x_T: Tensor, calls: int) -> tuple[Tensor, dict[str, Any]]:
        if calls < each:
            raise ValueError(f"{name} needs at least {each} network calls, got {calls}")
        n = calls // each + free
        options = {"std": case.around.std} if spacing == "reference" else {}
        ts = getattr(grid, spacing)(case.sde, n, **options)
        method = replace(step, around=case.around) if free else step  # type: ignore[type-var]
        x = sample(case.sde.reverse(score, eta), x_T, ts, method, noise=iid(torch.Generator().manual_seed(calls)))
        said = f"grid.{spacing}(sde, {n}{''.join(f', {k}={v!r}' for k, v in options.items())})"
        return x, {"steps": [_short(method)], "grid": said, "noise": f"seed {calls}"}

    return Solver(name, spacing, eta, solve)


def _short(step: Step) -> str:
    """The step's repr, in which the data's mean and deviation are said to be those."""
    around = getattr(step, "around", None)
    if around is None:
        return repr(step)
    std = "float('inf')" if around.std == math.inf else repr(around.std)
    said = "fit_reference(x_0)" if isinstance(around.mean, Tensor) else f"Reference(std={std})"
    return repr(step).replace(repr(around), said)


TOLERANCES = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


class Spent(Exception):
    """All network calls are made."""


class Limited(Counted):
    """Counts calls, and raises `Spent` in place of one that is too many."""

    def __init__(self, f: Score, most: int) -> None:
        super().__init__(f)
        self.most = most

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.nfe >= self.most:
            raise Spent
        return super().__call__(*args, **kwargs)


def adaptive(name: str, step: Callable[[float, float], Step], eta: float) -> Solver:
    """A step that chooses its own times, made from rtol and atol, here equal: the tightest of TOLERANCES whose
    calls are in the budget.
    """

    def solve(case: Case, score: Score, x_T: Tensor, calls: int) -> tuple[Tensor, dict[str, Any]]:
        ts = torch.tensor([case.sde.T, case.sde.t_min], dtype=torch.float64)
        best: tuple[Tensor, dict[str, Any]] | None = None
        for tol in TOLERANCES:
            counted, method, began = Limited(score, calls), Tallied(step(tol, tol)), perf_counter()
            noise = iid(torch.Generator().manual_seed(calls))
            try:
                x = sample(case.sde.reverse(counted, eta), x_T, ts, method, noise=noise)
            except Spent:
                break
            taken = {k: float(getattr(method, k).double().mean()) for k in ("accepted", "rejected")}
            said = {"steps": [repr(method.step)], "grid": "its own", "noise": f"seed {calls}", "nfe": counted.nfe}
            best = x, {**said, **taken, "seconds": perf_counter() - began}
        if best is None:
            raise ValueError(f"{name} needs more than {calls} network calls at any tolerance")
        return best

    return Solver(name, "its own", eta, solve)


def tuned(pilots: int = 64) -> Solver:
    """The one recipe with nothing chosen by hand: `tune` on noise of its own, which the starts here are not."""

    def solve(case: Case, score: Score, x_T: Tensor, calls: int) -> tuple[Tensor, dict[str, Any]]:
        fitting, began = Counted(case.subject.score), perf_counter()
        found = tune(
            case.sde.reverse(fitting, 0.0),
            case.subject.shape,
            calls,
            case.subject.x_0,
            pilots=pilots,
            dtype=case.dtype,
            device=x_T.device,
        )
        cost = {"nfe_to_fit": fitting.nfe, "seconds_to_fit": perf_counter() - began}
        x = sample(case.sde.reverse(score, 0.0), x_T, found.ts, found.step)
        said = f"tune(q, {case.subject.shape}, {calls}, x_0, pilots={pilots}, dtype={case.dtype})"
        return x, {"steps": [said], "grid": "of the tuning", "found": found.name, **cost}

    return Solver("Tuned", "tuned", 0.0, solve)


def flows() -> list[Solver]:
    """The solvers of the probability flow."""
    steps: list[tuple[str, Step, int, int]] = [
        ("DDIM", Ancestral(), 1, 0),
        *((f"DPMSolverPP({k})", DPMSolverPP(k), 1, 0) for k in (2, 3)),
        *((f"UniPC({k})", UniPC(k), 1, 0) for k in (2, 3)),
        *((f"DEIS({k})", DEIS(k), 1, 0) for k in (2, 3)),
        *((f"IPNDM({k})", IPNDM(k), 1, 0) for k in (2, 3)),
        ("IPNDM(4, compat=1)", IPNDM(4, 1.0), 1, 0),
        *((f"UniPC({k}, taper)", UniPC(k, taper=True), 1, 0) for k in (2, 3)),
        ("SASolver(2, 3)", SASolver(2, 3), 1, 0),
        ("GaussianReference", GaussianReference(Reference()), 1, 1),
        ("DPMSolver(2)", DPMSolver(2), 2, 0),
        ("DPMSolver(3)", DPMSolver(3), 3, 0),
        ("DPMSolverPP2S", DPMSolverPP2S(), 2, 0),
        ("RES(2)", RES(2), 2, 0),
        ("RES(3)", RES(3), 3, 0),
        ("EDMHeun", EDMHeun(), 2, 0),
        ("Flow(Heun())", Flow(), 2, 0),
    ]
    placed = [on_grid(name, step, spacing, 0.0, *cost) for name, step, *cost in steps for spacing in SPACINGS]
    loose = [adaptive(f"DPMSolverAdaptive({k})", partial(DPMSolverAdaptive, k), 0.0) for k in (2, 3)]
    pair = adaptive("Flow(Dopri5)", lambda rtol, atol: Flow(Dopri5(rtol, atol)), 0.0)
    return [tuned(), *placed, *loose, pair]


def diffusions() -> list[Solver]:
    """The solvers of the reverse SDE, and of processes between it and the flow."""
    steps: list[tuple[str, Step, float, int]] = [
        ("Ancestral", Ancestral(), 1.0, 0),
        ("EulerMaruyama", EulerMaruyama(), 1.0, 0),
        ("ReverseDiffusion", ReverseDiffusion(), 1.0, 0),
        ("DPMSolverPP(2), eta 1", DPMSolverPP(2), 1.0, 0),
        ("DPMSolverPP(3), eta 1", DPMSolverPP(3), 1.0, 0),
        ("SASolver(3, 4), eta 1", SASolver(), 1.0, 0),
        ("SASolver(3, 4), eta 0.6", SASolver(), 0.6, 0),
        ("GaussianReference, eta 1", GaussianReference(Reference()), 1.0, 1),
        ("GaussianReference, eta 0.6", GaussianReference(Reference()), 0.6, 1),
    ]
    placed = [
        on_grid(name, step, spacing, eta, 1, free)
        for name, step, eta, free in steps
        for spacing in ("log_snr", "uniform", "reference")
    ]
    loose = adaptive("GottaGoFast", GottaGoFast, 1.0)
    return [replace(solver, weak=True) for solver in (*placed, loose, replace(tuned(), name="Tuned flow"))]
