"""Orders of convergence, measured: ours beside what each step declares, and other libraries' beside their names.

    pip install -e '.[bench]' && pip install --no-deps k-diffusion azula
    python benchmarks/orders.py

The exact score of a ring of eight modes (deviation 0.3) in float64. Ours: the flow from log(alpha/sigma) = 0.3, where x
is drawn from the exact marginal, to 2.5 in equal steps of it, so that what happens in the first steps matters; the
slope of the root mean square error from 200 to 400 steps. Others: the flow of EDM from sigma = 10 to 0.05 in equal
steps of log-SNR, the slope from 240 to 480 calls; of diffusers, whose schedulers compute in float32, over the last
doubling from 15 calls on whose error is above 3e-5. Methods that do not start in their order show it here, too.
"""

import math

import torch
from harness import save, table
from peers import peers
from torch import Tensor

from scoresde import (
    DDIM,
    EDM,
    VP,
    DPMSolverPP,
    EulerMaruyama,
    Flow,
    Reference,
    ReverseDiffusion,
    SASolver,
    Step,
    UniPC,
    grid,
    iid,
    ode,
    sample,
)
from scoresde.lab.problems import Modes
from scoresde.steps import DEIS, IPNDM, RES, DPMSolver, DPMSolverPP2S, EDMHeun, EqualSteps, HalfBent, Multistep

STEPS, CALLS, FLOAT = (200, 400), (15, 30, 60, 120, 240, 480), 3e-5
OURS: dict[str, Step] = {
    "DDIM()": DDIM(),
    "EulerMaruyama()": EulerMaruyama(),
    "ReverseDiffusion()": ReverseDiffusion(),
    "Flow(ode.Euler())": Flow(ode.Euler()),
    "Flow(ode.Heun())": Flow(ode.Heun()),
    "Flow(ode.RK4())": Flow(ode.RK4()),
    **{f"Multistep({k})": Multistep(k) for k in (1, 2, 3, 4)},
    **{f"DPMSolverPP({k})": DPMSolverPP(k) for k in (2, 3)},
    "DPMSolverPP(3, interpolation=HalfBent())": DPMSolverPP(3, interpolation=HalfBent()),
    **{f"UniPC({k})": UniPC(k) for k in (1, 2, 3)},
    **{f"DEIS({k})": DEIS(k) for k in (2, 3, 4)},
    **{f"IPNDM({k})": IPNDM(k) for k in (2, 3, 4)},
    "IPNDM(4, EqualSteps())": IPNDM(4, EqualSteps()),
    "SASolver(3, 4)": SASolver(3, 4),
    **{f"DPMSolver({k})": DPMSolver(k) for k in (2, 3)},
    "DPMSolverPP2S()": DPMSolverPP2S(),
    **{f"RES({k})": RES(k) for k in (2, 3)},
    "EDMHeun()": EDMHeun(),
    "Multistep(2, 3) around N(0, 0.7^2)": Multistep(2, 3, Reference(std=0.7)),
}


def slope(errors: list[float], least: float = 0.0) -> float:
    """Over the last doubling whose error is above `least`."""
    seen = [e for e in errors if e > least]
    return round(math.log2(seen[-2] / seen[-1]), 2)


def ours() -> list[dict[str, object]]:
    """A row for each step."""
    sde, law = VP(), Modes(8, 0.3).law()
    q = sde.reverse(law.diffuse(sde), eta=0)

    def ts(n: int) -> Tensor:
        return sde.time(torch.linspace(0.3, 2.5, n + 1, dtype=torch.float64))

    x = law.diffuse(sde).sample(64, ts(1)[0], torch.Generator().manual_seed(0))
    truth = sample(q, x, ts(1), Flow(ode.Dopri5(1e-12, 1e-12)))
    rows: list[dict[str, object]] = []
    for name, step in OURS.items():
        errors = [float((sample(q, x, ts(n), step) - truth).square().mean().sqrt()) for n in STEPS]
        rows.append({"who": "scoresde", "solver": name, "order": step.order, "measured": slope(errors)})
    return rows


def theirs() -> list[dict[str, object]]:
    """A row for each deterministic peer in equal steps of log-SNR."""
    sde, law = EDM(T=10.0, t_min=0.05), Modes(8, 0.3).law()
    score = law.diffuse(sde)
    x_T = sde.prior((64, 2), iid(torch.Generator().manual_seed(0)), torch.float64)
    truth = sample(sde.reverse(score, eta=0), x_T, grid.uniform(sde, 1), Flow(ode.Dopri5(1e-12, 1e-12)))
    found, reasons = peers()
    for package, reason in reasons.items():
        print(f"{package} is left out: {reason}")
    rows: list[dict[str, object]] = []
    for peer in found:
        if peer.eta or not peer.name.endswith("log-SNR") or "as shipped" in peer.name:
            continue
        errors = [float((peer.solve(sde, score, x_T, calls) - truth).square().mean().sqrt()) for calls in CALLS]
        name = peer.name.removeprefix(f"{peer.package} ").removesuffix(", log-SNR")
        rows.append(
            {
                "who": peer.package,
                "solver": name,
                "order": peer.order,
                "measured": slope(errors, FLOAT if peer.package == "diffusers" else 0.0),
            }
        )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    rows = [*ours(), *theirs()]
    packages = ("scoresde", "torch", "diffusers", "k-diffusion", "azula", "torchdiffeq", "flow_matching")
    file = save("orders", "cpu", packages, rows)
    print(table(rows), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
