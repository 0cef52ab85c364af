"""`scoresde average`."""

from argparse import Namespace
from dataclasses import replace

from ..checkpoint import exists, load, save
from ..training import averaged


def run(o: Namespace) -> None:
    """Average anew."""
    if exists(o.out) and "average" not in load(o.out).notes:
        raise ValueError(f"out must hold no checkpoint but one that was averaged so, got {str(o.out)!r}")
    found, missed = averaged(o.model, o.ema, o.step)
    step = o.step or found.notes["step"]
    save(o.out, replace(found, notes={**found.notes, "average": {"ema": o.ema, "step": step, "missed": missed}}))
    print(f"the average of step {step} by the half-life {o.ema:g}, to {missed:.2g} of its profile, is in {o.out}")
