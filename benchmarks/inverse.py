"""Methods for y = A(x) + noise against posteriors that are known: how biased each is, and by what.

    python benchmarks/inverse.py [--samples 2000] [--steps 50 200]

The tasks, the methods and what is measured are those of `scoresde bench --inverse` (`scoresde.lab.posteriors`), and
azula's methods where it is installed (`inverse_peers.py`), by the same score at the same times. A row is of the most
steps, and says beside the distance W2 what it is with fewer: what more steps mend is theirs, the rest is the method's.
azula's DPS depends on how many samples are drawn together, and is called for one at a time, of `ALONE` only.
"""

import argparse
from collections.abc import Iterator
from time import process_time
from typing import Any

import torch
from harness import save, table

from scoresde import VP
from scoresde.lab.posteriors import METHODS, TASKS, Answer, Asked, InverseMethod, Task, inverse_rows
from scoresde.model import Counted

ALONE = 100


def peers(task: Task) -> dict[str, InverseMethod]:
    """azula's, if it is installed and the task is linear."""
    if not task.linear:
        return {}
    try:
        from inverse_peers import NAMES, azula_method
    except ImportError as error:
        print(f"without azula: {error}")
        return {}

    def method(name: str) -> InverseMethod:
        def run(a: Asked) -> Answer:
            score = Counted(a.score)
            x = azula_method(name, a, score, ALONE)
            return Answer(x / float(a.sde.alpha(a.ts[-1])), score.nfe)

        return run

    return {f"azula {name}": method(name) for name in NAMES}


def told(row: dict[str, Any], key: str, digits: int = 3) -> Any:
    """A number as it is shown, or nothing."""
    return round(row[key], digits) if key in row else ""


def rows_of(name: str, n: int, steps: list[int]) -> Iterator[dict[str, Any]]:
    """A row a method."""
    task = TASKS[name]()
    methods = {**METHODS, **peers(task)}
    *fewer, last = ({r["method"]: r for r in inverse_rows(task, VP(), n, k, 0, methods)} for k in steps)
    for method, row in last.items():
        if "skipped" in row:
            print(f"{name}, {method}: {row['skipped']}")
            continue
        evidence = "{log_evidence:.2f} ({true:.2f})".format(**row) if "log_evidence" in row else ""
        yield {
            "task": name,
            "method": method,
            **{key: told(row, key) for key in ("weights", "mean", "std", "covered", "score")},
            **{f"W2, {k} steps": told(of[method], "w2", 2) for k, of in zip(steps, [*fewer, last], strict=True)},
            "log p(y)": evidence,
            "calls": row["calls"],
            "CPU seconds": told(row, "seconds", 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, began = [], process_time()
    for name in TASKS:
        for row in rows_of(name, options.samples, sorted(options.steps)):
            rows.append(row)
            print(row, flush=True)
    file = save("inverse", "cpu", ("scoresde", "torch", "azula"), rows)
    print(table(rows), f"\n{process_time() - began:.0f} CPU seconds; written to {file}")


if __name__ == "__main__":
    main()
