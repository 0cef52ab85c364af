"""What the benchmarks share: timing two things in one run, and a result file that says how it was made."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scoresde.lab.provenance import origin

RESULTS = Path(__file__).parent / "results"


def seconds(call: Callable[[], Any], device: str) -> float:
    """CPU time of one call, or on a GPU the time until it is done there."""
    if device == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times in turn after one round that does not count."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return times


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """The median of slow/fast, pair by pair."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def kept(out: Path) -> tuple[list[dict[str, Any]], Callable[[dict[str, Any]], None]]:
    """The rows that a run has left in OUT/rows.jsonl, and what adds one to them and to the file."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        with file.open("a") as end:
            end.write(json.dumps(row) + "\n")

    return rows, keep


def save(name: str, device: str, packages: tuple[str, ...], rows: list[dict[str, Any]]) -> Path:
    """Write results/NAME-DEVICE.json, which says how it was made."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}-{device}.json"
    file.write_text(json.dumps({**origin(device, packages), "rows": rows}, indent=2) + "\n")
    return file


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0])] + [[str(v) for v in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
