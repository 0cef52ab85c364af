"""From rows of result files to tables and numbers of pages. A row is a dictionary; a table is Markdown."""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

Row = dict[str, Any]


def table(head: Sequence[Any], body: Iterable[Sequence[Any]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def columns(rows: Sequence[Row], names: Sequence[str] = ()) -> str:
    """All columns of all rows as they stand in the file, or those that are named."""
    head = list(names or rows[0])
    return table(head, [[row.get(name, "") for name in head] for row in rows])


def where(rows: Iterable[Row], **equal: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row.get(k) == v for k, v in equal.items())]


def one(rows: Iterable[Row], **equal: Any) -> Row:
    """The row with these values. Raises ValueError unless there is one."""
    found = where(rows, **equal)
    if len(found) != 1:
        raise ValueError(f"rows must have one with {equal}, got {len(found)}")
    return found[0]


def e(x: float, digits: int = 1) -> str:
    """1.6e-02."""
    return f"{x:.{digits}e}"


def f(x: float, digits: int = 2) -> str:
    """1.34."""
    return f"{x:.{digits}f}"


def between(values: Iterable[float], digits: int = 2) -> str:
    """The least and the largest of some numbers to significant digits, 1.2 to 2.5."""
    found = sorted(short(v, digits) for v in values)
    said = [f"{v:,.0f}" if v >= 10 else f"{v:g}" for v in (found[0], found[-1])]
    return said[0] if said[0] == said[1] else " to ".join(said)


def short(x: float, digits: int = 2) -> float:
    """A number to significant digits."""
    return float(f"{x:.{digits}g}")


def by_budget(rows: Sequence[Row], key: str, digits: int) -> str:
    """A sampler a line, a budget of network calls a column."""
    values = {(row["method"], row["budget"]): row[key] for row in rows}
    budgets = sorted({row["budget"] for row in rows})
    methods = dict.fromkeys(row["method"] for row in rows)
    return table(["sampler", *budgets], [[m, *(f(values[m, k], digits) for k in budgets)] for m in methods])


def slope(a: Row, b: Row, key: str) -> str:
    """The slope of a distance between two rows, by the calls that were made."""
    return f(math.log(b[key] / a[key]) / math.log(b["nfe"] / a["nfe"]))


def laws(rows: Sequence[Row]) -> str:
    """KL(truth || sampler) by budgets, and its slope between the last two."""
    of = {(row["method"], row["budget"]): row for row in rows}
    budgets = sorted({row["budget"] for row in rows})
    body = [
        [m, *(e(of[m, k]["kl"], 2) for k in budgets), slope(of[m, budgets[-2]], of[m, budgets[-1]], "kl")]
        for m in dict.fromkeys(row["method"] for row in rows)
    ]
    return table(["sampler", *budgets, "slope"], body)


def gaussians(rows: Sequence[Row]) -> str:
    """KL and Wasserstein-2 with 50 and 500 calls and their slopes from 200 to 500, where there is a closed form."""
    of = {(row["method"], row["budget"]): row for row in rows if "skipped" not in row}
    body = []
    for m in dict.fromkeys(method for method, _ in of):
        few, more, many = (of[m, k] for k in (50, 200, 500))
        cells = [[e(few[k], 2), e(many[k], 2), slope(more, many, k)] for k in ("kl", "wasserstein2")]
        body.append([m, *cells[0], *cells[1]])
    return table(["sampler", "KL, 50", "KL, 500", "slope", "W2, 50", "W2, 500", "slope"], body)


def least(rows: Iterable[Row], key: str = "rms") -> Row:
    """The row in which the number is least."""
    return min((row for row in rows if key in row), key=lambda row: float(row[key]))


def ends(row: Row, spacing: bool = True) -> str:
    """Where a solver ends: root mean square error, median and grid."""
    return f"{e(row['rms'])} ({e(row['median'])})" + (f" {row['spacing']}" if spacing else "")


def solvers(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Each solver on its best grid, a budget a column."""
    budgets = sorted({row["budget"] for row in rows if "rms" in row})
    body = [[name, *(ends(least(where(rows, solver=name, budget=k))) for k in budgets)] for name in names]
    return table(["solver", *budgets], body)


def leading(rows: Sequence[Row]) -> str:
    """By process, each solver on its best grid, those that were run at all budgets."""
    budgets = sorted({row["budget"] for row in rows if "rms" in row})
    body = []
    for process in dict.fromkeys(row["process"] for row in rows):
        of = [row for row in where(rows, process=process) if "rms" in row]
        for name in dict.fromkeys(row["solver"] for row in of):
            cells = [where(of, solver=name, budget=k) for k in budgets]
            if all(cells):
                body.append([process, name, *(ends(least(cell)) for cell in cells)])
    return table(["process", "solver", *budgets], body)


GROUPS: dict[str, Callable[[Row], bool]] = {
    "Tuned": lambda row: row["solver"] == "Tuned",
    "best other of ours": lambda row: row["package"] == "scoresde" and not row["solver"].startswith("Tuned"),
    "best peer": lambda row: row["package"] != "scoresde",
}


def groups(rows: Sequence[Row]) -> str:
    """Of each problem and process, the least root mean square error and the least median of each group."""
    flow = [row for row in rows if "rms" in row]
    budgets, body = sorted({row["budget"] for row in flow}), []
    for problem, process in dict.fromkeys((row["problem"], row["process"]) for row in flow):
        for name, belongs in GROUPS.items():
            of = [row for row in where(flow, problem=problem, process=process) if belongs(row)]
            cells = [where(of, budget=k) for k in budgets]
            said = [f"{e(least(c)['rms'])} ({e(least(c, 'median')['median'])})" for c in cells]
            body.append([f"{problem}, {process}", name, *said])
    return table(["problem, process", "who", *budgets], body)


def beyond(rows: Sequence[Row], key: str, **equal: Any) -> list[float]:
    """The best peer's number over `Tuned`'s, a number for each budget."""
    flow = [row for row in where(rows, **equal) if key in row]
    found = []
    for budget, problem, process in dict.fromkeys((row["budget"], row["problem"], row["process"]) for row in flow):
        of = where(flow, budget=budget, problem=problem, process=process)
        ours, theirs = ([row for row in of if GROUPS[who](row)] for who in ("Tuned", "best peer"))
        found.append(least(theirs, key)[key] / least(ours, key)[key])
    return found


def drifts(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Solvers of the reverse SDE: mean log-density less that of the truth, on the grid where it is nearest to 0."""
    budgets = sorted({row["budget"] for row in rows})
    body = []
    for name in names:
        best = [min(where(rows, solver=name, budget=k), key=lambda r: abs(r["log_density_gap"])) for k in budgets]
        body.append([name, *(f"{f(row['log_density_gap'])} {row['spacing']}" for row in best)])
    return table(["solver", *budgets], body)


def fits(rows: Sequence[Row], by: str, cell: tuple[Any, ...]) -> dict[str, tuple[float, str]]:
    """Of one problem, process and number of calls: kind of solver -> the least number over its solvers, the medians
    over their fits, and whose it is.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if (row["problem"], row["process"], row["calls"]) == cell and by in row:
            name = row["solver"]
            kind = name if name.startswith("Tuned") else "without a fit" if row["fit"] is None else "learned"
            found.setdefault(kind, {}).setdefault(name, []).append(row[by])
    return {kind: min((median(v), name) for name, v in of.items()) for kind, of in found.items()}


def made(rows: Iterable[Row]) -> str:
    """The network calls that were made, by budgets: 46, 96 and 196."""
    *some, last = (str(calls) for _, calls in sorted({(row["budget"], row["nfe"]) for row in rows}))
    return f"{', '.join(some)} and {last}"


def peers(rows: Sequence[Row]) -> list[str]:
    """The fitted solvers of others."""
    names = dict.fromkeys(row["solver"] for row in rows if row["fit"] is not None)
    return [name for name in names if not name.startswith("Tuned")]


def cells(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Problem, process and calls, as they were measured."""
    return list(dict.fromkeys((row["problem"], row["process"], row["calls"]) for row in rows))


def learned(rows: Sequence[Row]) -> str:
    """Root mean square error and (median) of ours, of the best fitted peer, and of the best without a fit."""
    body = []
    for cell in cells(rows):
        rms, middle = fits(rows, "rms", cell), fits(rows, "median", cell)
        line = [f"{cell[0]}, {cell[1]}", cell[2]]
        for kind in ("Tuned", "Tuned, more", "learned", "without a fit"):
            if kind not in rms:
                line.append("not run")
                continue
            (a, whose), (b, other) = rms[kind], middle[kind]
            named = not kind.startswith("Tuned")
            line.append(f"{e(a)} {whose} ({e(b)} {other})" if named else f"{e(a)} ({e(b)})")
        body.append(line)
    return table(["problem, process", "calls", "Tuned", "Tuned, more", "best learned", "best without a fit"], body)


def problems(rows: Sequence[Row]) -> list[str]:
    """Those in which both `Tuned` and a fitted peer were measured."""
    return [name for name in dict.fromkeys(row["problem"] for row in rows) if advantage(rows, "learned", "rms", name)]


def advantage(rows: Sequence[Row], kind: str, by: str, problem: str | None = None) -> list[float]:
    """The best of a kind over `Tuned`, a number for each cell where both were measured."""
    found = [fits(rows, by, cell) for cell in cells(rows) if problem in (None, cell[0])]
    return [of[kind][0] / of["Tuned"][0] for of in found if kind in of and "Tuned" in of]


def behind(rows: Sequence[Row]) -> str:
    """The cells where a fitted peer has less error than `Tuned`, a sentence each measure."""
    said = []
    for by, what in (("median", "median"), ("rms", "root mean square")):
        for cell in cells(rows):
            of = fits(rows, by, cell)
            if "learned" in of and "Tuned" in of and of["learned"][0] < of["Tuned"][0]:
                ratio = of["Tuned"][0] / of["learned"][0]
                said.append(
                    f"{of['learned'][1]} at {cell[2]} calls on {cell[0]}, {cell[1]} ({what}, by {ratio:.2g} times)"
                )
    return f"Less error than ours has {'; and '.join(said)}." if said else "In no cell of the table."


def cheaper(rows: Sequence[Row], by: str = "median") -> list[float]:
    """How many times fewer evaluations a fit of ours takes than one of the best fitted peer, for each cell."""
    found = []
    for cell in cells(rows):
        problem, process, calls = cell
        of, best = where(rows, problem=problem, process=process, calls=calls), fits(rows, by, cell)
        if "learned" in best and "Tuned" in best:
            names = (best["learned"][1], "Tuned")
            theirs, ours = (median(numbers(where(of, solver=name), "forward")) for name in names)
            found.append(theirs / ours)
    return found


def paths(rows: Sequence[Row]) -> str:
    """-log p under samplers by 1 path / by 16, and what many steps come to."""
    body = []
    for of, sampler in dict.fromkeys((row["of"], row["sampler"]) for row in rows):
        here = where(rows, of=of, sampler=sampler)
        if here[0]["steps"] == "":
            body.append([of, sampler, "", "", here[0]["16 paths"]])
        else:
            told = [one(here, steps=k) for k in ("20", "50", "200")]
            body.append([of, sampler, *(f"{row['1 path']} / {row['16 paths']}" for row in told)])
    return table(["of", "sampler", 20, 50, 200], body)


def along(rows: Sequence[Row]) -> str:
    """Errors of log p along the path of sampling, by control variates, in brackets what is told."""
    variates = list(dict.fromkeys(row["control variate"] for row in rows))
    variates.sort(key=lambda name: -median(row["RMS error"] for row in where(rows, **{"control variate": name})))
    body = []
    for sampler, steps in dict.fromkeys((row["sampler"], row["steps"]) for row in rows):
        here = [one(rows, **{"sampler": sampler, "steps": steps, "control variate": name}) for name in variates]
        body.append([sampler, steps, *(f"{r['RMS error']} ({r['told']})".removesuffix(" ()") for r in here)])
    return table(["sampler", "steps", *variates], body)


def demo(results: dict[str, Any]) -> str:
    """Samplers of the demo."""
    body = [[name, r["nfe"], f(r["frechet"])] for name, r in results["samplers"].items()]
    body.append(["359 training digits", "", f(results["frechet_of_training_digits"])])
    return table(["sampler", "network calls", "Frechet distance"], body)


def bounds(rows: Sequence[Row]) -> str:
    """A likelihood by several yardsticks."""
    body = [[row["quantity"], f(row["mean"], 3), f(row["standard_error"], 3)] for row in rows]
    return table(["quantity", "bits/dim", "standard error"], body)


def numbers(rows: Iterable[Row], name: str) -> list[float]:
    """The numbers of a column, without cells that hold none."""
    return [row[name] for row in rows if isinstance(row.get(name), int | float)]


def quotients(over: Iterable[float], under: Iterable[float]) -> list[float]:
    """a/b for each pair."""
    return [a / b for a, b in zip(over, under, strict=True)]


def percent(values: Iterable[float]) -> list[float]:
    """Shares as numbers of a hundred."""
    return [100 * value for value in values]


def singles(rows: Sequence[Row], by: str) -> list[float]:
    """The best fitted peer's number over that of each single fit of `Tuned`."""
    found = []
    for cell in cells(rows):
        best = fits(rows, by, cell).get("learned", (math.nan, ""))[0]
        found += [
            best / row[by]
            for row in where(rows, solver="Tuned")
            if (row["problem"], row["process"], row["calls"]) == cell and by in row
        ]
    return found


def off(row: Row) -> float:
    """The two errors of a law's samples, of the density and of the second moment, in one number."""
    return float(row["surprise"]) + abs(float(row["second"]))


def middle_fit(rows: Sequence[Row], **equal: Any) -> Row:
    """Of the fits of a solver the one whose error is in the middle."""
    found = sorted(where(rows, **equal), key=off)
    return found[len(found) // 2]


def weak(rows: Sequence[Row], problem: str, eta: float) -> str:
    """The errors of the laws that solvers sample at that eta, beside those with noise of their own, or none."""
    of = where(rows, problem=problem)
    calls = sorted({row["calls"] for row in of})
    names = {(row["solver"], row["eta"]): None for row in of if row["eta"] in (eta, 0.0, None)}
    body = []
    for solver, own in sorted(names, key=lambda name: (name[1] != eta, not name[0].startswith("Tuned"))):
        line = [solver if own is not None else f"{solver}, noise of its own"]
        for k in calls:
            row = middle_fit(of, solver=solver, eta=own, calls=k)
            line.append(f"{row['surprise']:.4f}, {row['second']:+.1%}, {row['modes']:.3f}")
        body.append(line)
    chance = of[0]["by_chance"]
    heads = [f"{k} calls ({chance['surprise']:.4f}, 0, {chance['modes']:.3f})" for k in calls]
    return table(["solver", *heads], body)


def lead(rows: Sequence[Row]) -> dict[int, list[float]]:
    """By the number of calls, the least error of the others over that of Tuned, each problem and eta once."""
    found: dict[int, list[float]] = {}
    for problem, eta, calls in {(row["problem"], row["eta"], row["calls"]): None for row in rows if row["eta"]}:
        of = where(rows, problem=problem, eta=eta, calls=calls)
        others = min(off(row) for row in of if row["solver"] != "Tuned")
        found.setdefault(calls, []).append(others / off(middle_fit(of, solver="Tuned")))
    return found
