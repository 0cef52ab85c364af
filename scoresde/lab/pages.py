"""Reports of the laboratory: from rows to tables, pictures and pages."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..files import write
from .line import LineLaw
from .report import Curve, Diagram, Report, curves, heat_maps, side_by_side
from .subjects import Row, Subject

SHOWN = 9  # curves in a picture of solvers
PICTURED = 50  # images in a picture
NOT_RUN = "not run"
FEWER = (
    "A column is a budget. Where several calls pay for one interval it cannot always be spent: the cell then says how "
    "many calls were made, and pictures stand at those."
)
Densities = Sequence[tuple[str, Sequence[tuple[float, LineLaw]]]]
FLOW = {"rms": "Root mean square error", "median": "Median error"}
POSTERIOR = ("weights", "mean", "std", "covered", "w2", "score", "log p(y)", "calls", "seconds")
TITLES = {
    "frechet": "Frechet distance in the features of a small classifier",
    "sliced_wasserstein": "Sliced Wasserstein distance",
    "energy_distance": "Energy distance",
    "log_density_gap": "Mean log-density, less that of the truth, in nats",
    "mode_weights": "Error of the mode weights (total variation)",
}


SIGNED = ("log_density_gap",)
"""Measures whose sign says something: too spread out, or too much at the peaks."""

EXACT = {
    "kl": "KL(truth || sampler), nats",
    "total_variation": "Total variation",
    "wasserstein2": "Wasserstein-2",
}
SLOPES = {"kl": (-2.0,), "total_variation": (-1.0,), "wasserstein2": (-0.5, -1.0)}
MAPPED = ("DDPM, fixed-small", "Annealed Langevin", "Predictor-corrector", "DDIM", "Flow(Heun())")
"""What is pictured over time, beside the forward process."""


def leaders(rows: Sequence[Row], key: str) -> dict[str, dict[int, Row]]:
    """Solver -> budget -> its row with the smallest |key| over grids; the solvers in the order of their means of logs,
    those that have no row for some of the budgets behind those that have more.
    """
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        of = found.setdefault(row["solver"], {})
        if row["budget"] not in of or _size(row, key) < _size(of[row["budget"]], key):
            of[row["budget"]] = row

    def level(name: str) -> tuple[int, float]:
        of = found[name].values()
        return -len(of), sum(math.log(_size(row, key)) for row in of) / len(of)

    return {name: found[name] for name in sorted(found, key=level)}


def _size(row: Row, key: str) -> float:
    return max(abs(row[key]), 1e-300) if math.isfinite(row[key]) else math.inf


def bench_page(rows: Sequence[Row], floors: dict[str, dict[str, float]], made: Row, out: Path) -> None:
    """report.md and report.html into out: for each problem and process, every solver on its best grid."""
    r = Report("Solvers against exact truth")
    r.text(
        "Flow: the distance a dimension between where a solver ends and where the flow does, as root mean square over "
        "samples, and in brackets the median; the first hangs on the few samples that end in another mode. SDE: "
        "distances of samples to as many real ones. A solver stands on the grid that was best for it within each "
        f"budget of network calls; results.jsonl has all. {FEWER} A click on the head of a column sorts by it."
    )
    r.text(_counted(rows))
    for place in dict.fromkeys((row["problem"], row["process"]) for row in rows):
        every = [row for row in rows if (row["problem"], row["process"]) == place]
        here, missing = [row for row in every if "skipped" not in row], [row for row in every if "skipped" in row]
        name, file, diagrams = ", ".join(place), "-".join(place), []
        if flow := [row for row in here if "rms" in row]:
            r.heading(f"Flow: {name}")
            _solvers(r, flow, missing, "rms", "{rms:.2e} ({median:.1e}) {spacing}")
            _picture(r, flow, [_diagram(flow, key, title) for key, title in FLOW.items()], f"flow-{file}.png", out)
        for key, title in TITLES.items():
            if found := [row for row in here if key in row]:
                floor = floors[file][key]
                r.heading(f"{title}: {name}")
                r.text(f"Real samples, as many: {floor:.3g}.")
                _solvers(r, found, missing, key, f"{{{key}:.3g}} {{spacing}}")
                diagrams.append(_diagram(found, key, title, floor))
        if diagrams:
            _picture(r, [row for row in here if "rms" not in row], diagrams, f"sde-{file}.png", out)
    _end(r, [_skipped(rows, "solver")], made, out)


def inverse_page(rows: Sequence[Row], made: Row, out: Path) -> None:
    """report.md and report.html into out: for each task, every method by each number of steps."""
    r = Report("Inverse problems against exact posteriors")
    r.text(
        "y = A(x) + noise for a law whose posterior is known. The exact score, by the same steps, is off by what the "
        "steps are; what a method is off beyond it is its approximation's, which more steps do not mend. weights: "
        "total variation between the modes' weights of samples and of the posterior. mean: the error of the mean, in "
        "deviations of the posterior. std: that of the logarithm of the deviations. covered: the share of the "
        "posterior in the interval that 90 % of the samples are in. w2: sliced Wasserstein distance to exact samples, "
        "over that between two sets of them. score: how far E[x_0 | x_t, y] by the score is from the true one, as a "
        "share of what y adds to E[x_0 | x_t]. log p(y): an estimate, whose error is that of the particles alone and "
        "not of the steps, and in brackets the truth."
    )
    r.text(_counted(rows))
    for task in dict.fromkeys(row["task"] for row in rows):
        here = [row for row in rows if row["task"] == task and "skipped" not in row]
        diagrams = []
        for key, title in (
            ("w2", "Sliced Wasserstein distance over that of exact samples"),
            ("mean", "Error of the mean"),
        ):
            lines = []
            for name in dict.fromkeys(row["method"] for row in here):
                line = sorted((row for row in here if row["method"] == name), key=lambda row: row["steps"])
                lines.append(Curve(name, [row["steps"] for row in line], [row[key] for row in line]))
            diagrams.append(Diagram(title, "steps", lines, 1.0 if key == "w2" else None))
        r.heading(task)
        body = [[row["method"], row["steps"], *map(_posterior_cell, [row] * len(POSTERIOR), POSTERIOR)] for row in here]
        r.table(["method", "steps", *POSTERIOR], body)
        if here:
            curves(diagrams, out / f"{task}.png")
            r.picture(f"{task}.png", f"By the number of steps.{_off(diagrams)}")
    _end(r, [_skipped(rows, "method")], made, out)


def _posterior_cell(row: Row, key: str) -> str:
    if key == "log p(y)":
        return "{log_evidence:.2f} +- {error:.2f} ({true:.2f})".format(**row) if "log_evidence" in row else ""
    value = row.get(key, "")
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _solvers(r: Report, rows: Sequence[Row], missing: Sequence[Row], key: str, cell: str) -> None:
    found = leaders(rows, key)
    told = {(row["solver"], row["budget"]): NOT_RUN for row in missing if row["solver"] in found}
    told |= {(name, k): cell.format(**row) + _fewer(row) for name, of in found.items() for k, row in of.items()}
    budgets = sorted({k for _, k in told})
    body = [[name, *(told.get((name, k), "") for k in budgets)] for name in found]
    r.table(["solver", *(f"{k} calls" for k in budgets)], body)


def _fewer(row: Row) -> str:
    """The network calls that were made, where they are not the budget."""
    return "" if row["nfe"] == row["budget"] else f", {row['nfe']} calls"


def _picture(r: Report, rows: Sequence[Row], diagrams: list[Diagram], file: str, out: Path) -> None:
    curves(diagrams, out / file)
    shown, every = max(len(d.lines) for d in diagrams), len({row["solver"] for row in rows})
    which = f"The best {shown} of {every} solvers in each diagram, each on its best grid"
    r.picture(file, f"{which}, by the network calls made.{_off(diagrams)}")


def _diagram(rows: Sequence[Row], key: str, title: str, floor: float | None = None) -> Diagram:
    found = list(leaders(rows, key).items())[:SHOWN]
    drawn = [(name, [of[k] for k in sorted(of)]) for name, of in found]
    lines = [Curve(name, [row["nfe"] for row in line], [abs(row[key]) for row in line]) for name, line in drawn]
    return Diagram(title, "network calls", lines, floor)


def _off(diagrams: Sequence[Diagram]) -> str:
    """How many values logarithmic axes cannot show."""
    n = sum(not (d.signed or 0 < y) or not math.isfinite(y) for d in diagrams for line in d.lines for y in line.y)
    return f" Not drawn: {n} values that are 0 or not finite." if n else ""


def _counted(rows: Sequence[Row]) -> str:
    """How many rows have their numbers."""
    ran = [row for row in rows if "skipped" not in row]
    wild = sum(any(isinstance(v, float) and not math.isfinite(v) for v in row.values()) for row in ran)
    said = f"{len(ran)} of {len(rows)} cells were run" + (
        f", {wild} of them to numbers that are not finite" if wild else ""
    )
    return f"{said}." if len(ran) == len(rows) else f"{said}; why the others were not stands at the end."


def _skipped(rows: Sequence[Row], key: str) -> str:
    """What was not run, and why."""
    said = Counter(f"{row[key]}: {row['skipped']}" for row in rows if "skipped" in row)
    return f"Not run: {'; '.join(f'{why} (cells: {n})' for why, n in sorted(said.items()))}." if said else ""


def _end(r: Report, texts: Sequence[str], made: Row, out: Path) -> None:
    """Where the numbers came from; and the files."""
    r.heading("Where this came from")
    for text in filter(None, texts):
        r.text(text)
    r.commands(json.dumps(made, indent=2))
    write(out / "made.json", json.dumps(made, indent=2).encode())
    r.write(out)


def compare_page(
    subject: Subject,
    rows: Sequence[Row],
    paths: Sequence[Row],
    samples: Sequence[tuple[str, Tensor]],
    real: Sequence[Row],
    made: Row,
    out: Path,
    laws: Sequence[Row] = (),
    densities: Densities = (),
    gaussians: Sequence[Row] = (),
) -> None:
    """report.md and report.html into out: how far every sampler is from the truth on a line and for Gaussian data,
    exactly, and densities over time, if they are given; every measure of samples by sampler and budget, and of sets of
    real samples; samples of the smallest budget, and the orders of convergence; what was not run, and why.
    """
    r, ran = Report(f"Samplers of {subject.sde!r}, compared"), [row for row in rows if "skipped" not in row]
    r.text(_introduction(subject))
    r.text(_counted(rows))
    order = list(dict.fromkeys(row["method"] for row in rows))
    if laws:
        _exactly(r, laws, gaussians, densities, order, out)
    diagrams = _measures(r, rows, real)
    curves(diagrams, out / "distances.png", order)
    said = "Distance against the network calls made; dotted: real samples, and twice their deviation from set to set."
    r.picture("distances.png", f"{said}{_off(diagrams)}")
    points = subject.shape == (2,)
    if points or (len(subject.shape) == 3 and subject.shape[0] in (1, 3)):
        shown, least = 2000 if points else PICTURED, min(row["budget"] for row in ran)
        made_by = {row["method"]: _fewer(row) for row in ran if row["budget"] == least}
        parts = [*((name + made_by[name], x) for name, x in samples), ("real samples", subject.fresh[0])]
        side_by_side([(name, x[:shown]) for name, x in parts], out / "samples.png")
        r.heading("Samples")
        said = f"{least} network calls, or as many as are said, not selected, from the same starting points."
        r.picture("samples.png", said)
    _convergence(paths, out, r, order)
    said = (
        "results.jsonl holds one line a sampler and budget, with its grid, its steps, its seed and what was measured; "
        "samples/ holds the samples; an optimal variance was fitted with nfe_to_fit further calls, to 1000 samples of "
        "the data and noise of seed 0, and step sizes of MALA to 512."
    )
    if subject.standardised:
        said += " Distances and samples are in units in which the data have mean 0 and deviation 1 in every column."
    exactly = (("On a line", laws), ("In eight dimensions", gaussians))
    missing = [f"{where}. {told}" for where, found in exactly if (told := _skipped(found, "method"))]
    _end(r, [said, _skipped(rows, "method"), *missing], made, out)


def _exactly(
    r: Report, laws: Sequence[Row], gaussians: Sequence[Row], densities: Densities, order: Sequence[str], out: Path
) -> None:
    """What is computed instead of sampled."""
    r.heading("On a line, exactly")
    r.text(
        "The law of what each sampler returns, computed without sampling: 0.7 N(-1, 0.01) + 0.3 N(1, 0.02), its exact "
        "score, the same process, grid and calls as below, from the prior N(0, sigma_T^2) to t_min, against the law of "
        "x_t there. Its numerical error is what half the points change; points below it are hollow. The slope is "
        "between the two largest budgets. Divergence falls with the square of the step and total variation with the "
        "step where it is of weak order 1; Wasserstein-2 with its root, as long as mass goes to the wrong mode."
    )
    _rates(r, laws, "a line", "laws.png", SLOPES, order, out)
    if gaussians:
        r.heading("In eight dimensions, exactly")
        r.text(
            "The same for Gaussian data of mean 0.5 whose deviations are 0.05 to 2, in closed form: there is no wrong "
            "mode to go to, and Wasserstein-2 falls with the step. Metropolis' correction leaves no Gaussian."
        )
        _rates(r, gaussians, "eight dimensions", "gaussians.png", {"kl": (-2.0,), "wasserstein2": (-1.0,)}, order, out)
    if densities:
        panels = [
            (
                name,
                [math.hypot(1.0, math.sqrt(law.var)) for _, law in path],
                [(law.low, law.high, law.log_p.exp()) for _, law in path],
            )
            for name, path in densities
        ]
        heat_maps(panels, out / "densities.png", 2.5)
        least = min(row["budget"] for row in laws)
        r.picture("densities.png", f"The density on its way, {least} network calls each, a column a time.")


def _rates(
    r: Report,
    rows: Sequence[Row],
    where: str,
    file: str,
    slopes: dict[str, tuple[float, ...]],
    order: Sequence[str],
    out: Path,
) -> None:
    """A table for each distance with its last slope, and their picture."""
    names, budgets = list(dict.fromkeys(row["method"] for row in rows)), sorted({row["budget"] for row in rows})
    of = {(row["method"], row["budget"]): row for row in rows if "skipped" not in row}
    diagrams = []
    for key, guides in slopes.items():
        body = []
        for name in names:
            here = [of.get((name, k)) for k in budgets]
            body.append([name, *(NOT_RUN if row is None else f"{row[key]:.3g}{_fewer(row)}" for row in here)])
            body[-1].append(_last_slope([row for row in here if row], key))
        r.heading(f"{EXACT[key]}: {where}")
        r.table(["sampler", *(f"{k} calls" for k in budgets), "slope"], body)
        drawn = {name: [of[name, k] for k in budgets if (name, k) in of] for name in names}
        lines = [
            Curve(n, [row["nfe"] for row in q], [row[key] for row in q], [row[key] <= row["error"][key] for row in q])
            for n, q in drawn.items()
        ]
        diagrams.append(Diagram(EXACT[key], "network calls", lines, slopes=guides))
    curves(diagrams, out / file, order)
    worst = max((e for row in of.values() for key in slopes if math.isfinite(e := row["error"][key])), default=0.0)
    r.picture(file, f"Against the network calls made; dashed: slopes. Numerical errors are at most {worst:.1g}.")


def _last_slope(rows: Sequence[Row], key: str) -> str:
    """Of log value by log calls, between the last two rows."""
    if len(rows) < 2:
        return ""
    (x, u), (y, v) = ((row[key], row["nfe"]) for row in rows[-2:])
    return f"{math.log(y / x) / math.log(v / u):.2f}" if 0 < x < math.inf and 0 < y < math.inf and u != v else ""


def _measures(r: Report, rows: Sequence[Row], real: Sequence[Row]) -> list[Diagram]:
    """A table for each measure, and its picture."""
    budgets, names = sorted({row["budget"] for row in rows}), list(dict.fromkeys(row["method"] for row in rows))
    of, diagrams = {(row["method"], row["budget"]): row for row in rows if "skipped" not in row}, []
    told = {(row["method"], row["budget"]): NOT_RUN for row in rows}
    for key in real[0]:
        floor = [row[key] for row in real]
        told |= {at: f"{row[key]:.3g}{_fewer(row)}" for at, row in of.items()}
        body = [[name, *(told.get((name, k), "") for k in budgets)] for name in names]
        spread = f" +- {np.std(floor, ddof=1):.2g}" if len(floor) > 1 else ""
        last = ["real samples", f"{np.mean(floor):.3g}{spread}", *[""] * (len(budgets) - 1)]
        r.heading(TITLES[key])
        r.table(["sampler", *(f"{k} calls" for k in budgets)], [*body, last])
        here = {name: [of[name, k] for k in budgets if (name, k) in of] for name in names}
        signed = key in SIGNED
        sizes = {n: [row[key] if signed else abs(row[key]) for row in here[n]] for n in names}
        lines = [Curve(n, [row["nfe"] for row in here[n]], sizes[n]) for n in names]
        sets = np.array(floor if signed else np.abs(floor))
        mean, error = float(sets.mean()), 2 * float(sets.std(ddof=1)) if len(floor) > 1 else 0.0
        band = (mean - error, mean + error) if error else None
        diagrams.append(Diagram(TITLES[key], "network calls", lines, mean, band=band, signed=signed))
    return diagrams


def _introduction(subject: Subject) -> str:
    if subject.denoise:
        truth = (
            "Distances are to held-out data; the row of real samples is the mean over sets of as many samples of the "
            "training data, +- their standard deviation. The last call of each sampler removes the rest of the noise."
        )
    else:
        truth = (
            "Distances are to as many draws from the exact law of x_t at t = t_min, where the samplers stop; the row "
            f"of real samples is the mean over {len(subject.fresh)} fresh sets of draws, +- their standard deviation."
        )
    return (
        f"The score is that of {subject.name}. All samplers have the same kind of grid and start from the same "
        f"{subject.n} points; one network call evaluates the score once for a batch of them. {FEWER} {truth}"
    )


def _convergence(paths: Sequence[Row], out: Path, r: Report, order: Sequence[str]) -> None:
    r.heading("On one Brownian path")
    r.text(
        "Each discretisation of the reverse SDE was given one Brownian path with ever more steps, and those of the "
        "probability flow one starting point. Strong: the mean of the distance |x_h - x| to the limit, a "
        "dimension; weak: the difference of the means of |x|^2. The slopes are fitted to all the numbers of steps, "
        "with 95 % intervals by bootstrap over the paths, weak ones where the error exceeds twice its own. "
        "Langevin corrections add noise of their own, so annealed Langevin and predictor-corrector have no path to "
        "converge to."
    )
    slopes = ("strong_slope", "weak_slope")
    r.table(
        ["discretisation", "strong slope", "weak slope"],
        [[row["name"], *(row.get(key, NOT_RUN) for key in slopes)] for row in paths],
    )
    if missing := _skipped(paths, "name"):
        r.text(missing)
    paths = [row for row in paths if "skipped" not in row]
    titles: dict[str, Any] = {"strong": "Strong error", "weak": "Weak error of |x|^2/d"}
    drawn = [[Curve(row["name"], row["steps"], row[key]) for row in paths] for key in titles]
    diagrams = [Diagram(t, "steps", lines) for t, lines in zip(titles.values(), drawn, strict=True)]
    curves(diagrams, out / "paths.png", order)
    r.picture("paths.png", "Errors against the number of steps.")
