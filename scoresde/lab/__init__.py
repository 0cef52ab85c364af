"""Measuring: functions from values to rows, usable from Python; no options and no command line. `pages` and `report`
make tables and pictures of rows, and are imported where they are wanted.
"""

from .exactly import LINE, SPREAD, density_paths, error_budget, exact_rows
from .fidelity import Neighbourhoods, Quality, copied, kernel_distance, neighbour_test, quality
from .gaussian import GaussianLaw, gaussian_law_of
from .law import law_of, law_path
from .likelihoods import Target
from .line import LineLaw, tabulated
from .metrics import Classifier, energy_distance, frechet, frechet_bias, nearest, sliced_wasserstein, weights_error
from .orders import Limit, PathErrors, Slope, path_errors, paths, resolved, slope
from .plane import PlaneLaw, plane_law_of
from .posteriors import Task, inverse_rows, of_score, posterior_distances, score_error
from .problems import DigitClasses, Lattice, Modes, Peaks, Problem
from .provenance import origin
from .solvers import COMPARED, PROCESSES, SPACINGS, Solver, adaptive, bench, compare, diffusions, flows, on_grid, tuned
from .spectrum import Mixing, mixing
from .subjects import Row, Subject, exact_subject, floors, memorised_subject, trained_subject

__all__ = [
    "COMPARED", "LINE", "PROCESSES", "SPACINGS", "SPREAD", "Classifier", "DigitClasses", "GaussianLaw", "Lattice",
    "Limit", "LineLaw", "Mixing", "Modes", "Neighbourhoods", "PathErrors", "Peaks", "PlaneLaw", "Problem", "Quality",
    "Row", "Slope", "Solver", "Subject", "Target", "Task", "adaptive", "bench", "compare", "copied", "density_paths",
    "diffusions", "energy_distance", "error_budget", "exact_rows", "exact_subject", "floors", "flows", "frechet",
    "frechet_bias", "gaussian_law_of", "inverse_rows", "kernel_distance", "law_of", "law_path", "memorised_subject",
    "mixing", "nearest", "neighbour_test", "of_score", "on_grid", "origin", "path_errors", "paths", "plane_law_of",
    "posterior_distances", "quality", "resolved", "score_error", "sliced_wasserstein", "slope", "tabulated",
    "trained_subject", "tuned", "weights_error",
]  # fmt: skip
