"""Schedulers of diffusers, on tables of betas that are the grid."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoresde import LinearSDE, grid
from scoresde.process import Score

from .common import GRIDS, Grid, Peer, Problem, whole


@dataclass(frozen=True)
class Scheduler:
    """A scheduler whose table of betas is the grid."""

    make: Callable[..., Any]
    nodes: Grid = grid.uniform
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    """Options of `step`."""
    stages: int = 1
    extra: int = 0
    scaled: bool = False
    """Whether the state is y, in which case the scheduler's last step goes to sigma = 0 and is not taken."""

    def build(self, problem: Problem, n: int) -> tuple[Any, Tensor]:
        """The scheduler, and s at the start of each of its steps and at the end."""
        s = problem.levels(self.nodes(problem.sde, n)).flip(0)
        if s[0] < 1e-3:
            raise ValueError(f"a table in float32 cannot hold sigma/alpha = {float(s[0]):.2g}: end where it is 1e-3")
        a2 = 1 / (1 + s**2)
        betas = 1 - a2 / torch.cat([torch.ones_like(a2[:1]), a2[:-1]])
        scheduler = self.make(num_train_timesteps=n + 1, trained_betas=betas.tolist(), **self.options)
        scheduler.set_timesteps(n + 1 if self.scaled else n)
        a2 = scheduler.alphas_cumprod.double()
        s = ((1 - a2) / a2).sqrt()
        return scheduler, torch.cat([s[scheduler.timesteps.long()], s[:1]])

    def output(self, eps: Tensor, v: Tensor, s: Tensor) -> Tensor:
        """What the network would say."""
        return eps

    @torch.no_grad()
    def __call__(self, sde: LinearSDE, score: Score, x: Tensor, calls: int) -> Tensor:
        n, problem = whole(calls, self.stages, self.extra), Problem(sde, score)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "dpmsolver", noise prediction, is to go
            warnings.simplefilter("ignore", DeprecationWarning)  # numpy 2 on tensors
            scheduler, s = self.build(problem, n)
            unit = (1 + s**2).sqrt() if self.scaled else torch.ones_like(s)
            state = x / problem.norm(sde.T) * unit[0]
            for k, t in enumerate(scheduler.timesteps[: n * self.stages + self.extra]):
                v = scheduler.scale_model_input(state, t)
                out = self.output(problem.eps(v, s[k]), v, s[k])
                state = scheduler.step(out, t, state, **self.call).prev_sample.double()
        return state / unit[-1] * problem.norm(sde.t_min)


class Shipped(Scheduler):
    """A scheduler's own grid on 1,000 betas."""

    def build(self, problem: Problem, n: int) -> tuple[Any, Tensor]:
        """As its flags have it; the levels are its own."""
        table = Scheduler(self.make, grid.uniform, self.options).build(problem, 999)[0]
        table.set_timesteps(n)
        table.set_begin_index(0)  # rounded timesteps may repeat
        return table, table.sigmas.double()


class Velocity(Scheduler):
    """A scheduler that takes the velocity (eps - sigma_v v)/alpha_v = hypot(1, s) eps - s v."""

    def output(self, eps: Tensor, v: Tensor, s: Tensor) -> Tensor:
        """The velocity."""
        return (1 + s**2).sqrt() * eps - s * v


class Pseudo(Velocity):
    """IPNDM: its table holds sigma/hypot(alpha, sigma), decreasing, and alpha is found from it."""

    def build(self, problem: Problem, n: int) -> tuple[Any, Tensor]:
        """The levels are the scheduler's own."""
        s = problem.levels(self.nodes(problem.sde, n))
        scheduler = self.make(num_train_timesteps=n, trained_betas=(s / (1 + s**2).sqrt()).tolist())
        scheduler.set_timesteps(n)
        return scheduler, scheduler.betas.double() / scheduler.alphas.double()


class Elucidated(Velocity):
    """The EDM schedulers, which know the ends of s and two grids. With sigma_data = 1 their network is the velocity."""

    def build(self, problem: Problem, n: int) -> tuple[Any, Tensor]:
        """The last of n + 1 steps has length zero and is not taken."""
        high, low = problem.levels(grid.uniform(problem.sde, 1)).tolist()
        ends = {"sigma_max": high, "sigma_min": low, "sigma_data": 1.0, "final_sigmas_type": "sigma_min"}
        scheduler = self.make(**ends, prediction_type="v_prediction", **self.options)
        scheduler.set_timesteps(n + 1)
        return scheduler, scheduler.sigmas[:-1].double()


def diffusers_peers() -> list[Peer]:
    """Schedulers of diffusers on every grid."""
    import diffusers as d

    leading = {"timestep_spacing": "leading", "steps_offset": 1}
    chain = {**leading, "clip_sample": False}
    last, full = {"final_sigmas_type": "sigma_min"}, {"lower_order_final": False}
    dpm, unipc = d.DPMSolverMultistepScheduler, d.UniPCMultistepScheduler
    found: list[Peer] = []

    def add(name: str, order: int, solver: Scheduler, eta: float = 0.0) -> None:
        for at, nodes in GRIDS.items():
            solve = type(solver)(**{**vars(solver), "nodes": nodes})
            found.append(Peer(f"diffusers {name}, {at}", "diffusers", eta, order, solve))

    def multi(make: Any, k: int, *options: dict[str, Any], **more: Any) -> Scheduler:
        return Scheduler(make, options={"solver_order": k, **{n: v for o in options for n, v in o.items()}, **more})

    add("DDIM", 1, Scheduler(d.DDIMScheduler, options={**chain, "set_alpha_to_one": False}))
    add("Euler", 1, Scheduler(d.EulerDiscreteScheduler, scaled=True))
    add("Heun", 2, Scheduler(d.HeunDiscreteScheduler, stages=2, scaled=True))
    add("LMS 4", 4, Scheduler(d.LMSDiscreteScheduler, scaled=True))
    add("PNDM", 4, Scheduler(d.PNDMScheduler, options={**leading, "skip_prk_steps": True}, extra=1))
    add("IPNDM", 4, Pseudo(d.IPNDMScheduler))
    add("dpmsolver++ 1", 1, multi(dpm, 1, last))
    add("dpmsolver 1", 1, multi(dpm, 1, last, algorithm_type="dpmsolver"))
    for k, end, how in ((k, end, how) for k in (2, 3) for end, how in (("", {}), (" full", full))):
        add(f"dpmsolver++ {k}{end}", k, multi(dpm, k, last, how))
        add(f"dpmsolver {k}{end}", k, multi(dpm, k, last, how, algorithm_type="dpmsolver"))
        add(f"UniPC {k}{end}", k, multi(unipc, k, last, how))
        add(f"DEIS {k}{end}", k, multi(d.DEISMultistepScheduler, k, how))
    for k in (2, 3):
        add(f"dpmsolver++ {k} single-step", k, multi(d.DPMSolverSinglestepScheduler, k, last, lower_order_final=True))
        add(f"sde-dpmsolver++ {k}", k, multi(dpm, k, last, algorithm_type="sde-dpmsolver++"), 1.0)
        for tau in (0.0, 1.0):
            options = {"predictor_order": k, "corrector_order": k, "tau_func": lambda t, tau=tau: tau}
            add(f"SASolver {k} tau {tau:g}", k, Scheduler(d.SASolverScheduler, options=options), tau)
        for at, rule in (("karras", "karras"), ("log-SNR", "exponential")):
            options = {"solver_order": k, "sigma_schedule": rule}
            edm = Elucidated(d.EDMDPMSolverMultistepScheduler, options=options, scaled=True)
            found.append(Peer(f"diffusers EDM dpmsolver++ {k}, {at}", "diffusers", 0.0, k, edm))
    add("DDPM", 1, Scheduler(d.DDPMScheduler, options=chain), 1.0)
    add(
        "DDIM eta 1",
        1,
        Scheduler(d.DDIMScheduler, options={**chain, "set_alpha_to_one": False}, call={"eta": 1.0}),
        1.0,
    )
    add("Euler ancestral", 1, Scheduler(d.EulerAncestralDiscreteScheduler, scaled=True), 1.0)
    karras, lu = {"use_karras_sigmas": True}, {"use_lu_lambdas": True}
    for name, make, at, flags in (
        ("dpmsolver++ 2", dpm, "uniform", {}),
        ("dpmsolver++ 2", dpm, "karras", karras),
        ("dpmsolver++ 2", dpm, "log-SNR", lu),
        ("UniPC 2", unipc, "uniform", {}),
        ("UniPC 2", unipc, "karras", karras),
    ):
        solve = Shipped(make, options={**last, **flags})
        found.append(Peer(f"diffusers {name} as shipped, {at}", "diffusers", 0.0, 2, solve))
    return found
