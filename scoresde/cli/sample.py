"""`scoresde sample`."""

from argparse import Namespace
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..checkpoint import Checkpoint
from ..files import digest
from ..guide import tempered
from ..lab.solvers import Watched
from ..model import transport
from ..noise import iid, seeds
from ..process import LinearSDE, Reverse, Score
from ..shapes import count, number
from ..steps import Step, Tuning, draw, started
from ..steps.fit import estimated
from .batches import DONE, enter, held, in_batches
from .common import (
    as_array,
    classifier_of,
    code_of,
    condition,
    fitting,
    guided,
    join_processes,
    label_of,
    model_of,
    picture,
    place,
)
from .folder import opened, require_fitting
from .images import warn_of_range
from .parts import eta_of, read, read_grid
from .plan import calls_of, chooses, duration, network, seconds_a_call, tell, weighs
from .written import as_data


def run(o: Namespace) -> None:
    """Sample."""
    rank, n, batch, device = join_processes(), count("n", o.n), count("batch", o.batch), place(o)
    o.temperature is None or number("temperature", o.temperature, above=0)
    read("sde", o.sde, LinearSDE)  # before the checkpoint, which may be of this process of your own
    found = model_of(o, device)
    fitting(n, found.shape)
    by = classifier_of(o, found, device)
    label = label_of(o, by or found)
    net = Watched(found.model)
    choose = partial(_tuned if o.tuned else _chosen, o, found)
    said = condition(o, label, by)
    p, ts, steps = choose(guided(o, net, label, by), said)

    def expected() -> int:
        """Network calls of a sample, 0 if they are not known before."""
        counted = partial(calls_of, lambda score: choose(guided(o, score, label, by), said)[0], found.model.sde)
        return counted(found.shape, ts, *steps, denoise=not o.no_denoise, like=torch.empty(0, device=device))

    solver = digest(o.tuned.read_bytes()) if o.tuned else [repr(steps), ts.tolist()]
    kept: dict[str, Any] = {k: getattr(o, k) for k in ("seed", "no_denoise")}
    strength = 1.0 if by and o.guidance is None else o.guidance
    kept |= {"guidance": strength, "interval": o.interval} if strength is not None else {}
    kept |= {"classifier": by.digest} if by else {}
    kept |= {"temperature": o.temperature} if o.temperature is not None else {}
    kept |= {"label": label, "model": found.digest, "process": repr(p.sde), "eta": p.eta, "solver": solver}
    if o.dry_run:
        if rank == 0:
            require_fitting(o.out, code_of(o), command="sample", **kept)
            _plan(o, found, p, ts, steps, expected())
        return
    with opened(o.out, code_of(o), rank, command="sample", **kept) as folder:
        if (there := held(folder, rank, n)) >= n:
            return
        like = torch.empty(0, device=device)

        def make(start: int, k: int) -> torch.Tensor:
            every = seeds(o.seed, k, start)
            return draw(p, found.shape, ts, *steps, seeds=every, like=like, denoise=not o.no_denoise)

        x, calls = in_batches(folder, rank, n, batch, net, make, "sample", there, expected=expected())
        if x is None:
            return
        if found.quantized:
            warn_of_range(x, found, "take more --steps" + (" or a higher --temperature" if o.temperature else ""))
        own = x if found.units is None else found.units.restore(x)
        if there:
            own = torch.cat([torch.from_numpy(as_array(folder.read(DONE) or b"")), own])
        picture(own, found.units, o.out / "samples.png")
        written = as_data(own, found, o.out, there)
        enter(folder, own)
    before = f", {there} of them from before" if there else ""
    on = f"the reverse SDE, eta = {p.eta:g}" if p.eta else "the flow"
    print(f"{n} samples in {o.out}{before}: {calls}, on {on}" + (f"; also in {written}" if written else ""))


def _plan(o: Namespace, found: Checkpoint, p: Reverse, ts: torch.Tensor, steps: tuple[Step, ...], calls: int) -> None:
    """Say what would be drawn, and how long that would take."""
    there = len(np.load(o.out / DONE, mmap_mode="r")) if (o.out / DONE).is_file() else 0
    left, device = max(0, o.n - there), next(found.model.parameters()).device
    size = min(o.batch, max(1, left))
    x = torch.zeros(size, *found.shape, device=device)
    each = seconds_a_call(found.model, x, ts[0])
    batches = -(-left // o.batch)
    held = f", which holds {there}" if there else ""
    known = f"{calls} network calls a sample, {duration(calls * each * left / size)}"
    shape, how = "x".join(map(str, found.shape)), ", ".join(map(repr, steps))
    tell(
        f"{o.n} samples of {shape} into {o.out}{held}: {batches} batches of up to {o.batch}",
        network(found.model, device),
        f"{p.sde!r}, eta {p.eta!r}, {len(ts) - 1} intervals from {ts[0]:g} to {ts[-1]:g}, {how}",
        f"{known if calls else 'the steps choose how many network calls'}; one takes {each:.2g} s for {size} samples",
        f"all samples take {weighs(o.n * x[0].numel() * x.element_size())}",
    )


def _chosen(o: Namespace, found: Checkpoint, score: Score, _: str) -> tuple[Reverse, torch.Tensor, tuple[Step, ...]]:
    """Process, times and steps as typed."""
    own: LinearSDE = found.model.sde
    sde = read("sde", o.sde, LinearSDE) if o.sde else own
    p = sde.reverse(transport(score, own, sde), o.eta or 0.0)
    pilots = (256, *found.shape), iid(torch.Generator().manual_seed(0)), torch.float32, place(o)
    around = found.around or estimated(replace(p, eta=0.0), sde.prior(*pilots))
    if o.temperature is not None:
        cooler = tempered(score, o.temperature, around)
        p, around = replace(p, score=transport(cooler, own, sde)), cooler.around or around
    every = o.step or ["GaussianReference"]
    steps = tuple(read("step", text, Step, around=around) for text in every)
    p = replace(p, eta=max(map(eta_of, every, steps)) if o.eta is None else o.eta)
    chosen = any(step.moves and chooses(step) for step in steps)  # by the step, which needs no grid
    n = count("steps", o.steps) if o.steps is not None else 1 if chosen else 20
    ts = read_grid(o.grid or "reference", around=around)(sde, n, o.end)
    try:
        started(p, ts, steps)
    except ValueError:
        if o.eta is not None:
            raise
        p = replace(p, eta=1.0)
        started(p, ts, steps)
    return p, ts, steps


def _tuned(o: Namespace, found: Checkpoint, score: Score, said: str) -> tuple[Reverse, torch.Tensor, tuple[Step, ...]]:
    """Process, times and step of a tuned solver."""
    for name in ("steps", "grid", "end", "step", "eta"):
        if getattr(o, name) is not None:
            raise ValueError(f"{name} must not be given beside tuned, which says it, got {getattr(o, name)!r}")
    if o.temperature is not None:
        raise ValueError(f"temperature must not be given beside tuned, a solver fitted without, got {o.temperature:g}")
    solver = Tuning.load(o.tuned)
    if said not in solver.condition.split("; "):
        fitted, asked = (text or "no label" for text in (solver.condition, said))
        raise ValueError(f"tuned must be a solver that was fitted under what is asked for, {asked}, and not {fitted}")
    if read("sde", o.sde, LinearSDE) not in (None, solver.sde):
        raise ValueError(f"sde must be {solver.sde!r}, which the solver was tuned for, got {o.sde!r}")
    return solver.sde.reverse(transport(score, found.model.sde, solver.sde), solver.eta), solver.ts, (solver.step,)
