"""`scoresde bench --inverse`."""

from argparse import Namespace
from time import monotonic

from .. import lab
from ..lab.posteriors import METHODS, TASKS, InverseMethod, inverse_rows, of_score
from ..process import VP, LinearSDE
from ..progress import bar
from ..shapes import count
from .common import code_of, join_processes
from .folder import opened, require_fitting
from .parts import evaluated, own_module, read
from .plan import tell

UNUSED = ("model", "data", "processes", "nfe_sde", "n_sde", "step", "eta", "net", "full")
STEPS, SAMPLES = (50, 200), 2000


def measure(o: Namespace) -> None:
    """Measure methods for inverse problems, and write a report."""
    from ..lab.pages import inverse_page

    if join_processes():
        return  # to the first of several
    began = monotonic()
    for name in UNUSED:
        if getattr(o, name):
            raise ValueError(f"{name} must not be given beside inverse, got {getattr(o, name)!r}")
    if o.device not in ("auto", "cpu"):
        raise ValueError(f"device must be cpu for inverse, whose laws are small, got {o.device!r}")
    tasks, methods = _tasks(o), _methods(o)
    sde, n = read("sde", o.sde, LinearSDE) or VP(), SAMPLES if o.n is None else count("n", o.n, least=2)
    budgets = sorted({count("nfe", k) for k in o.nfe or STEPS})
    if o.dry_run:
        require_fitting(o.out, code_of(o), command="bench --inverse", seed=o.seed, n=n, sde=sde)
        what = f"{', '.join(methods)} for {', '.join(tasks)}, on {sde!r}"
        return tell(f"{what}: {n} samples of each by {' and '.join(map(str, budgets))} steps, into {o.out}")
    with opened(o.out, code_of(o), command="bench --inverse", seed=o.seed, n=n, sde=sde) as folder:
        rows = folder.rows("results.jsonl", "task", "method", "steps")
        cells = [(task, k) for task in tasks for k in budgets]
        for task, steps in bar(cells, desc="inverse", unit="task"):
            missing = {name: method for name, method in methods.items() if (task, name, steps) not in rows}
            for row in inverse_rows(TASKS[task](), sde, n, steps, o.seed, missing) if missing else ():
                rows.add({"task": task, **row})
        shown = [rows[task, name, k] for task in tasks for name in methods for k in budgets]
        made = {**lab.origin("cpu", ("scoresde", "torch")), "seconds": round(monotonic() - began)}
        inverse_page(shown, made, o.out)
    print(f"{monotonic() - began:.0f} s; open {o.out / 'report.html'}")


def _tasks(o: Namespace) -> list[str]:
    """Those that were asked for, or all."""
    named = list(dict.fromkeys(o.problems or TASKS))
    for name in named:
        if name not in TASKS:
            raise ValueError(f"problems must be of {', '.join(TASKS)} with inverse, got {name}")
    return named


def _methods(o: Namespace) -> dict[str, InverseMethod]:
    """All, or those that were named, and one's own."""
    own: dict[str, InverseMethod] = {}
    for text in o.method:
        if not own_module(text) or not callable(found := evaluated("method", text, {})):
            raise ValueError(
                f"method must name a function (score, seen) -> score, package.module:function, got {text!r}"
            )
        own[text] = of_score(found)
    methods = {**METHODS, **own}
    if unknown := sorted(set(o.only or ()) - set(methods)):
        raise ValueError(f"only must name methods, got {unknown}; there are {', '.join(map(repr, methods))}")
    return {name: method for name, method in methods.items() if not o.only or name in o.only or name in own}
