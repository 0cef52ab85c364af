"""Samplers parallel in time: how many sweeps of Picard's iteration they need, and how much work those are.

    python benchmarks/parallel.py [--samples 4] [--device cpu]

The flow by DDIM and UniPC(2) and the reverse SDE by DDPM, of the digits' mixture and of eight modes in the plane, with
their exact scores in float64, and of the digits' network that is shipped, which computes in float32. For each grid, the
sweeps (batches of the network that wait for one another, of the slowest sample) and the work (network evaluations a
sample), until every answer is that to a state within `tol` of where it is used, in units of the data's deviation at
that time. error: what is left then, the largest root mean square of a sample from what the sampler gives in sequence,
in units of the deviation of the data. seconds: of the processor, or on a GPU until it is done there.

start: "reference" is `sample_parallel` with all calls in the window, and with 64. "x_T everywhere" is Algorithm 1 of
Shih et al. (2023) on all calls: it keeps how far each step moved, and begins with x_T at all times; it asks again where
the state has moved, as `sample_parallel` does.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from harness import save, seconds, table
from torch import Tensor

from scoresde import DDIM, VP, Ancestral, LinearSDE, Reference, Step, UniPC, grid, load, per_sample, sample, shipped
from scoresde.lab.problems import DigitClasses, Modes, Problem
from scoresde.noise import Noise
from scoresde.process import Reverse, Score
from scoresde.steps import Affine, sample_parallel

GRIDS, TOLS = (20, 50, 100, 1000), (1e-3, 1e-5, 1e-10)
PROBLEMS: dict[str, Problem] = {"digits' mixture": DigitClasses(), "8 modes": Modes()}
SAMPLERS: dict[str, tuple[float, Step]] = {
    "DDIM": (0.0, DDIM()),
    "UniPC(2)": (0.0, UniPC(2)),
    "DDPM": (1.0, Ancestral()),
}


@dataclass(frozen=True)
class Case:
    """A score with the Gaussian of its data; tolerances that its arithmetic allows, and grids that its cost does."""

    sde: LinearSDE
    score: Score
    around: Reference
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    tols: tuple[float, ...] = TOLS
    grids: tuple[int, ...] = GRIDS


def cases(device: str) -> dict[str, Case]:
    """The problems and the network."""
    found, sde = {}, VP()
    for name, problem in PROBLEMS.items():
        law = problem.law().to(torch.device(device))
        data = law.sample(5000, torch.Generator().manual_seed(0))
        found[name] = Case(sde, law.diffuse(sde), Reference.fit(data), tuple(law.shape))
    net = load(shipped("digits-vp")).model.to(device)
    found["digits' network"] = Case(net.sde, net, net.around, (1, 8, 8), torch.float32, (1e-3, 1e-5), GRIDS[:3])
    return found


@torch.no_grad()
def everywhere(
    p: Reverse, x: Tensor, ts: Tensor, step: Affine, size: Tensor, tol: float, noise: Noise
) -> tuple[Tensor, Tensor, Tensor]:
    """x, sweeps and evaluations a sample of Shih et al.'s iteration, x_{n+1} = x_0 + sum of steps, from x_T at all
    times. size: (n,), the units of the states before each step.
    """
    t, s = ts[:-1], ts[1:]
    a, b, c = (v.tolist() for v in step.line(p, t, s))
    z = torch.stack([noise(x, u, v) if k else torch.zeros_like(x) for u, v, k in zip(t, s, c, strict=True)])
    states, seen, moves = x.expand(len(t), *x.shape).clone(), torch.full_like(z, torch.nan), torch.zeros_like(z)
    column = (-1, *(1,) * x.ndim)
    a_, b_, c_ = (torch.tensor(v, dtype=x.dtype, device=x.device).view(column) for v in (a, b, c))
    sweeps, nfe = torch.zeros(2, len(x), dtype=torch.long)
    while True:
        moved = (states - seen).flatten(2).square().mean(2).sqrt() / size[:, None].to(x)
        stale = ~(moved <= tol)
        if not stale.any():
            return states[-1] + moves[-1], sweeps, nfe
        j, rows = stale.nonzero(as_tuple=True)
        asked = states[j, rows]
        score = p.ask(asked, t[j.cpu()].to(x.device))
        moves[j, rows] = (a_[j, 0] - 1) * asked + b_[j, 0] * score + c_[j, 0] * z[j, rows]
        seen[j, rows] = asked
        sweeps, nfe = sweeps + stale.any(0).cpu(), nfe + stale.sum(0).cpu()
        states = torch.cat([x[None], x + moves.cumsum(0)[:-1]])


def rows(of: str, case: Case, n: int, sampler: str, B: int, device: str) -> list[dict[str, Any]]:
    """A row for each start and tolerance."""
    (eta, step), found = SAMPLERS[sampler], []
    p, seeds = case.sde.reverse(case.score, eta), range(B, 2 * B)
    x = case.sde.prior((B, *case.shape), per_sample(range(B)), case.dtype, device)
    ts = grid.reference(case.sde, n, around=case.around)
    size = (case.sde.alpha(ts[:-1]) ** 2 * case.around.std**2 + case.sde.var(ts[:-1])).sqrt()
    every = torch.full((B,), n)
    truth: list[Tensor] = []

    def row(start: str, tol: float | str, solve: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> None:
        done: list[tuple[Tensor, Tensor, Tensor]] = []
        took = seconds(lambda: done.append(solve()), torch.device(device).type)
        y, sweeps, nfe = done[0]
        truth.append(y)
        off = float((y - truth[0]).flatten(1).square().mean(1).sqrt().max()) / case.around.std
        found.append(
            {
                "of": of,
                "sampler": sampler,
                "steps": n,
                "start": start,
                "tol": tol,
                "sweeps": int(sweeps.max()),
                "work": round(float(nfe.double().mean())),
                "error": float(f"{off:.1g}"),
                "seconds": float(f"{took:.2g}"),
            }
        )
        print(found[-1], flush=True)

    row("in sequence", "", lambda: (sample(p, x, ts, step, noise=per_sample(seeds)), every, every))
    for tol in case.tols:
        for window in (n, 64) if n > 64 else (n,):
            start, noise = "reference" if window == n else f"reference, window {window}", per_sample(seeds)
            row(
                start,
                tol,
                partial(sample_parallel, p, x, ts, step, tol=tol, window=window, around=case.around, noise=noise),
            )
        if isinstance(step, Affine):
            row("x_T everywhere", tol, partial(everywhere, p, x, ts, step, size, tol, per_sample(seeds)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()
    torch.set_num_threads(1)
    found = [
        row
        for of, case in cases(o.device).items()
        for n in case.grids
        for name in SAMPLERS
        for row in rows(of, case, n, name, o.samples, o.device)
    ]
    file = save("parallel", torch.device(o.device).type, ("scoresde", "torch"), found)
    print(table(found), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
