"""The samplers of other libraries on our problems: the same SDE, the same score, the same start, a budget of calls.

    pip install -e '.[bench]' && pip install --no-deps k-diffusion azula

A peer starts from x_T at t = T and returns x at t = sde.t_min. It spends the calls that it is given, or as many as its
stages divide, never more, and takes no denoising step beyond t_min. Every one runs on every grid of `GRIDS` that its
arguments allow. All libraries speak of s = sigma/alpha, and their states are

    v = x/hypot(alpha, sigma)     the variance-preserving schedulers of diffusers, whose alpha is 1/hypot(1, s)
    y = x/alpha = v hypot(1, s)   k-diffusion, and the schedulers of diffusers that scale their input
    x                             azula, and torchdiffeq and torchsde in t; in log-SNR they have v
    x/(alpha + sigma)             flow_matching, in u = 1 - r of the straight path r = sigma/(alpha + sigma)

with eps = -sigma score and D = (x + sigma^2 score)/alpha = y - s eps.

diffusers reads noise levels from a table of betas. Here the table is the grid, beta_i = 1 - (a_i/a_(i-1))^2 for a_i the
alphas from t_min (a_1) up to T and a_0 = 1, so that every level is a node and none is interpolated; with "leading"
spacing and an offset of 1, or with `final_sigmas_type="sigma_min"`, the last call leads to t_min. (What insists on
sigma = 0 at the end is stopped one step before.) The karras and lu flags of a scheduler name t_min twice instead, and
spend a call on a step of length zero: "as shipped" is that, on 1,000 betas. "full" is `lower_order_final=False`.
Tables and coefficients are float32 in all schedulers, and so is the state in DPMSolverMultistep and Euler. 1 - beta
rounds s = 0.01 by up to 1.4e-4 of itself, so eps is asked for at the rounded levels. What is left under VP, by
first-order schedulers against `Ancestral` on the 8-mode ring, is 2e-6 RMS and 1e-5 at most from 2 calls on, and 1e-4 in
a single step from T; third-order data prediction at 6 calls amplifies it to 1e-3, and cancellation in the coefficients
of DEIS 3 and SASolver to 1e-4 from about 60 calls on. The float64 libraries leave 1e-12.

azula and k-diffusion ask for torchvision and more, which nothing here uses: hence `--no-deps`. k-diffusion is loaded as
its one module `sampling`, since the package imports what training needs. What takes a
tolerance in place of a budget is in `adaptive()`: dpm_adaptive, and torchdiffeq's embedded pairs told to step at t_min
(left to themselves, as in flow_matching, they step beyond it and interpolate, and no score is known there).
"""

import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde import LinearSDE, Reverse, grid
from scoresde.process import Score

Grid = Callable[[LinearSDE, int], Tensor]
Solve = Callable[[LinearSDE, Score, Tensor, int], Tensor]


@dataclass(frozen=True)
class Peer:
    """A sampler of another library, with its grid."""

    name: str
    package: str
    eta: float
    """0 for the probability flow; 1 for what draws noise."""
    order: int | None
    """The order that the method is named with."""
    solve: Solve
    """(sde, score, x_T (B, *D) in float64, network calls) -> x at t = sde.t_min. Raises ValueError if they are few."""


@dataclass(frozen=True)
class Adaptive:
    """A sampler of another library that chooses its steps, for the whole batch, by a tolerance."""

    name: str
    package: str
    order: int
    solve: Callable[[LinearSDE, Score, Tensor, float], Tensor]
    """(sde, score, x_T, relative tolerance) -> x at t = sde.t_min."""


def straight(sde: LinearSDE, n: int) -> Tensor:
    """Equal steps in r = sigma/(alpha + sigma), the time of the straight path."""
    r = (-sde.log_snr(grid.uniform(sde, 1))).sigmoid()
    ts = sde.time(-torch.logit(torch.lerp(r[0], r[1], torch.linspace(0, 1, n + 1, dtype=torch.float64))))
    ts[0], ts[-1] = sde.T, sde.t_min
    return ts


GRIDS: dict[str, Grid] = {
    "uniform": grid.uniform,
    "quadratic": grid.quadratic,
    "karras": grid.karras,
    "log-SNR": grid.log_snr,
    "straight": straight,
}


def whole(calls: int, stages: int, extra: int = 0) -> int:
    """The steps of `stages` calls each that `calls` buy, beside `extra` calls."""
    if calls < stages + extra:
        raise ValueError(f"this method needs at least {stages + extra} network calls, got {calls}")
    return (calls - extra) // stages


@dataclass(frozen=True)
class Problem:
    """An SDE and a score as functions of s = sigma/alpha."""

    sde: LinearSDE
    score: Score

    def levels(self, ts: Tensor) -> Tensor:
        """s at the times ts."""
        return (-self.sde.log_snr(ts)).exp()

    def norm(self, t: Tensor | float) -> Tensor:
        """x/v = hypot(alpha, sigma)."""
        return torch.hypot(self.sde.alpha(t), self.sde.sigma(t))

    def eps(self, v: Tensor, s: Tensor) -> Tensor:
        """The noise in x = v hypot(alpha, sigma)."""
        t = self.sde.time(-s.log())  # a little beyond T, and farther, in some of their methods
        return -self.sde.sigma(t) * self.score(v * self.norm(t), t)

    def denoise(self, y: Tensor, s: Tensor) -> Tensor:
        """D of y = x/alpha."""
        return y - s * self.eps(y / (1 + s**2).sqrt(), s)

    def rate(self, u: Tensor, v: Tensor, eta: float = 0.0) -> Tensor:
        """dv/dlambda at lambda = u: with h = hypot(1, s), (s/h)^2 v - (1 + eta^2) s/h eps."""
        c = torch.sigmoid(-2 * u)  # (s/h)^2
        return c * v - (1 + eta**2) * c.sqrt() * self.eps(v, (-u).exp())


# ------------------------------------------------------------------------------------------------------- diffusers


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


# ----------------------------------------------------------------------------------------------------- k-diffusion


def k_sampling() -> ModuleType:
    """The module `k_diffusion.sampling`, of whose package it needs one function, `utils.append_dims`."""
    spec, alias = importlib.util.find_spec("k_diffusion"), "_k_diffusion"
    if spec is None:
        raise ImportError("No module named 'k_diffusion'")
    if alias not in sys.modules:
        package, utils = ModuleType(alias), ModuleType(f"{alias}.utils")
        package.__path__ = list(spec.submodule_search_locations or [])
        utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
        package.utils = utils  # type: ignore[attr-defined]
        sys.modules[alias], sys.modules[utils.__name__] = package, utils
    return importlib.import_module(f"{alias}.sampling")


@dataclass(frozen=True)
class Sampler:
    """A function of k-diffusion, which takes the denoiser of y and a decreasing tensor of s."""

    run: Callable[..., Tensor]
    nodes: Grid = grid.log_snr
    stages: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    ends: bool = False
    """Whether it takes s at the ends and the number of calls, and chooses the rest."""

    def __call__(self, sde: LinearSDE, score: Score, x: Tensor, calls: int) -> Tensor:
        problem = Problem(sde, score)
        s = problem.levels(self.nodes(sde, whole(calls, self.stages)))
        where = (s[-1].numpy(), s[0].numpy(), len(s) - 1) if self.ends else (s,)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Should have t", UserWarning)  # torchsde's tree, of the last digit of s
            model = lambda y, s: problem.denoise(y, s[0])  # noqa: E731
            y = self.run(model, x / sde.alpha(sde.T), *where, disable=True, **self.options)
        return y * sde.alpha(sde.t_min)


def k_diffusion_peers() -> list[Peer]:
    """Samplers of k-diffusion on every grid: name, order, calls a step, and eta if the sampler takes one."""
    k = k_sampling()
    rows: list[tuple[str, int, int, float | None]] = [
        ("euler", 1, 1, None),
        ("heun", 2, 2, None),
        ("dpm_2", 2, 2, None),
        ("lms", 4, 1, None),
        ("dpmpp_2m", 2, 1, None),
        ("dpmpp_2s_ancestral", 2, 2, 0.0),
        ("dpmpp_3m_sde", 3, 1, 0.0),
        ("euler_ancestral", 1, 1, 1.0),
        ("dpm_2_ancestral", 2, 2, 1.0),
        ("dpmpp_2s_ancestral", 2, 2, 1.0),
        ("dpmpp_sde", 2, 2, 1.0),
        ("dpmpp_2m_sde", 2, 1, 1.0),
        ("dpmpp_3m_sde", 3, 1, 1.0),
    ]
    found = []
    for name, order, stages, eta in rows:
        for at, nodes in GRIDS.items():
            run, options = getattr(k, f"sample_{name}"), {} if eta is None else {"eta": eta}
            label = f"k-diffusion {name}{'' if eta is None else f' eta {eta:g}'}, {at}"
            found.append(Peer(label, "k-diffusion", eta or 0.0, order, Sampler(run, nodes, stages, options)))
    return [*found, Peer("k-diffusion dpm_fast, log-SNR", "k-diffusion", 0.0, 3, Sampler(k.sample_dpm_fast, ends=True))]


def k_diffusion_adaptive() -> list[Adaptive]:
    """DPM-Solver-12 and -23, with the library's ratio of the absolute to the relative tolerance."""
    k = k_sampling()

    def solver(order: int) -> Callable[[LinearSDE, Score, Tensor, float], Tensor]:
        def solve(sde: LinearSDE, score: Score, x: Tensor, tolerance: float) -> Tensor:
            def run(model: Any, y: Tensor, low: Any, high: Any, calls: int, **options: Any) -> Tensor:
                return k.sample_dpm_adaptive(model, y, low, high, **options)

            options = {"order": order, "rtol": tolerance, "atol": tolerance * 0.0078 / 0.05}
            return Sampler(run, options=options, ends=True)(sde, score, x, 1)

        return solve

    return [Adaptive(f"k-diffusion dpm_adaptive {order}", "k-diffusion", order, solver(order)) for order in (2, 3)]


# ----------------------------------------------------------------------------------------------------------- azula


@dataclass(frozen=True)
class Denoiser:
    """What azula's samplers ask of a denoiser, in the time k = n, ..., 0 for which t is ts[n - k]."""

    problem: Problem
    ts: Tensor

    def t(self, k: Tensor) -> Tensor:
        """The time of the grid."""
        return self.ts[len(self.ts) - 1 - k.round().long()]

    def schedule(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma."""
        return self.problem.sde.alpha(self.t(k)), self.problem.sde.sigma(self.t(k))

    def __call__(self, x: Tensor, k: Tensor) -> SimpleNamespace:
        """The law of x_0 given x, of which samplers read the mean."""
        return SimpleNamespace(mean=Reverse(self.problem.sde, self.problem.score, 0.0).denoise(x, self.t(k)))


@dataclass(frozen=True)
class Stepwise:
    """A sampler of azula."""

    make: Callable[..., Any]
    nodes: Grid
    stages: int
    options: dict[str, Any]

    def __call__(self, sde: LinearSDE, score: Score, x: Tensor, calls: int) -> Tensor:
        n = whole(calls, self.stages)
        clock = {"start": float(n), "stop": 0.0, "steps": n, "silent": True, "dtype": torch.float64}
        return self.make(Denoiser(Problem(sde, score), self.nodes(sde, n)), **clock, **self.options)(x)


def azula_peers() -> list[Peer]:
    """Samplers of azula on every grid: name, order, calls a step, eta, options."""
    from azula import sample as a

    rows: list[tuple[str, int, int, float, dict[str, Any]]] = [
        ("DDIM", 1, 1, 0.0, {}),
        ("Euler", 1, 1, 0.0, {}),
        ("Heun", 2, 2, 0.0, {}),
        *((f"{kind}AB", k, 1, 0.0, {"order": k}) for kind in ("z", "v", "zE", "xE", "RE") for k in (2, 3)),
        ("DDPM", 1, 1, 1.0, {}),
        ("Ito", 1, 1, 1.0, {"eta": 1.0}),
        ("PC", 1, 2, 1.0, {}),
    ]
    found = []
    for name, order, stages, eta, options in rows:
        for at, nodes in GRIDS.items():
            label = f"azula {name}{f' {order}' if 'order' in options else ''}, {at}"
            solve = Stepwise(getattr(a, f"{name}Sampler"), nodes, stages, options)
            found.append(Peer(label, "azula", eta, order, solve))
    return found


# ------------------------------------------------------------------------- torchdiffeq, flow_matching and torchsde


class Equation(NamedTuple):
    """dy/du = rate(u, y) from y at the first of the times u; x at the end is y times `back`."""

    rate: Callable[[Tensor, Tensor], Tensor]
    y: Tensor
    u: Tensor
    back: Tensor | float


def in_t(p: Reverse, x: Tensor, ts: Tensor) -> Equation:
    """dx/dt = f x - g^2/2 score; at the ends also beyond them, where some methods try and then reject."""
    return Equation(lambda t, x: p.drift(x, t.clamp(0, p.T)), x, ts, 1.0)


def in_log_snr(p: Reverse, x: Tensor, ts: Tensor) -> Equation:
    """dv/dlambda, with v = x/hypot(alpha, sigma)."""
    problem = Problem(p.sde, p.score)
    return Equation(problem.rate, x / problem.norm(ts[0]), p.sde.log_snr(ts), problem.norm(ts[-1]))


def in_r(p: Reverse, x: Tensor, ts: Tensor) -> Equation:
    """dy/du = D - eps, with y = x/(alpha + sigma) = u D + r eps and u = 1 - r."""
    problem = Problem(p.sde, p.score)

    def rate(u: Tensor, y: Tensor) -> Tensor:
        r = 1 - u
        eps = problem.eps(y / torch.hypot(u, r), r / u)
        return (y - r * eps) / u - eps

    def scale(t: Tensor) -> Tensor:
        return p.sde.alpha(t) + p.sde.sigma(t)

    return Equation(rate, x / scale(ts[0]), p.sde.log_snr(ts).sigmoid(), scale(ts[-1]))


@dataclass(frozen=True)
class Integrator:
    """A solver of ordinary differential equations: (rate, y, times, **options) -> y at the last time."""

    run: Callable[..., Tensor]
    equation: Callable[[Reverse, Tensor, Tensor], Equation]
    nodes: Grid = grid.uniform
    stages: int = 1
    extra: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, sde: LinearSDE, score: Score, x: Tensor, calls: int) -> Tensor:
        ts = self.nodes(sde, whole(calls, self.stages, self.extra))
        rate, y, u, back = self.equation(sde.reverse(score, 0.0), x, ts)
        return self.run(rate, y, u, **self.options) * back

    def adaptive(self, sde: LinearSDE, score: Score, x: Tensor, tolerance: float) -> Tensor:
        """With a tolerance, absolute and relative, in place of a grid: no step goes beyond t_min."""
        end = self.equation(sde.reverse(score, 0.0), x, grid.uniform(sde, 1)).u[1:]
        options = {**self.options, "rtol": tolerance, "atol": tolerance, "options": {"step_t": end}}
        return Integrator(self.run, self.equation, options=options)(sde, score, x, 1)


def torchdiffeq_run(rate: Callable[[Tensor, Tensor], Tensor], y: Tensor, u: Tensor, **options: Any) -> Tensor:
    """torchdiffeq, one step between two times if the method has fixed steps."""
    from torchdiffeq import odeint

    return odeint(rate, y, u, **options)[-1]


def flow_matching_run(rate: Callable[[Tensor, Tensor], Tensor], y: Tensor, u: Tensor, **options: Any) -> Tensor:
    """flow_matching, the same on its own velocity model."""
    from flow_matching.solver import ODESolver

    return ODESolver(lambda x, t: rate(t, x)).sample(x_init=y, step_size=None, time_grid=u, **options)


FIXED = {"euler": (1, 1), "midpoint": (2, 2), "heun2": (2, 2), "heun3": (3, 3), "rk4": (4, 4)}
"""Order and calls a step."""


def torchdiffeq_peers() -> list[Peer]:
    """In t on every grid, and in log-SNR. explicit_adams supposes equal steps, and starts by two steps of rk4."""
    importlib.import_module("torchdiffeq")
    found = []
    places = [(f"t, {at}", in_t, nodes) for at, nodes in GRIDS.items()] + [("log-SNR", in_log_snr, grid.log_snr)]
    for at, equation, nodes in places:
        for method, (order, stages) in FIXED.items():
            solve = Integrator(torchdiffeq_run, equation, nodes, stages, 0, {"method": method})
            found.append(Peer(f"torchdiffeq {method} in {at}", "torchdiffeq", 0.0, order, solve))
        if at in ("t, uniform", "log-SNR"):
            options = {"method": "explicit_adams", "options": {"max_order": 4}}
            solve = Integrator(torchdiffeq_run, equation, nodes, 1, 6, options)
            found.append(Peer(f"torchdiffeq explicit_adams in {at}", "torchdiffeq", 0.0, 4, solve))
    return found


def torchdiffeq_adaptive() -> list[Adaptive]:
    """In t, in log-SNR, and along the straight path."""
    importlib.import_module("torchdiffeq")
    found = []
    for at, equation in (("t", in_t), ("log-SNR", in_log_snr), ("r", in_r)):
        for method, order in (("bosh3", 3), ("dopri5", 5), ("dopri8", 8)):
            solve = Integrator(torchdiffeq_run, equation, options={"method": method}).adaptive
            found.append(Adaptive(f"torchdiffeq {method} in {at}", "torchdiffeq", order, solve))
    return found


def flow_matching_peers() -> list[Peer]:
    """The velocity of the straight path, which a rectified flow itself is, on every grid."""
    importlib.import_module("flow_matching.solver")
    found = []
    for at, nodes in GRIDS.items():
        for method in ("euler", "midpoint", "heun3"):
            order, stages = FIXED[method]
            solve = Integrator(flow_matching_run, in_r, nodes, stages, 0, {"method": method})
            found.append(Peer(f"flow_matching {method}, {at}", "flow_matching", 0.0, order, solve))
    return found


class Backward:
    """The reverse SDE as torchsde wants it, in a time u that increases, for a state (B, d); g does not depend on it.

    In t: u = T - t. In log-SNR: dv = rate dlambda + sqrt(2) s/hypot(1, s) dw. SRK asks for a rate several times, and is
    answered once.
    """

    def __init__(self, problem: Problem, shape: torch.Size, in_t: bool, noise: str, kind: str) -> None:
        self.problem, self.p, self.shape, self.in_t = problem, problem.sde.reverse(problem.score), shape, in_t
        self.noise_type, self.sde_type = noise, kind
        self.known: list[tuple[Tensor, Tensor, Tensor]] = []

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        """The drift, (B, d)."""
        for at, state, value in self.known:
            if state is y and at == u:
                return value
        x = y.view(self.shape)
        rate = -self.p.drift(x, self.p.T - u) if self.in_t else self.problem.rate(u, x, 1.0)
        self.known = [(u, y, rate.flatten(1)), *self.known[:1]]
        return self.known[0][2]

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        """The diffusion, (B, d), or (B, d, d) if additive."""
        g = self.p.diffusion(self.p.T - u) if self.in_t else (2 * torch.sigmoid(-2 * u)).sqrt()
        diagonal = g.to(y) + 0 * y
        return torch.diag_embed(diagonal) if self.noise_type == "additive" else diagonal


@dataclass(frozen=True)
class Stochastic:
    """A method of torchsde, with equal steps in t or in log-SNR; its Brownian path is seeded by torch's."""

    method: str
    stages: int
    in_t: bool
    noise: str
    kind: str

    @torch.no_grad()
    def __call__(self, sde: LinearSDE, score: Score, x: Tensor, calls: int) -> Tensor:
        import torchsde

        n, ts, problem = whole(calls, self.stages), grid.uniform(sde, 1), Problem(sde, score)
        u = ts[0] - ts if self.in_t else sde.log_snr(ts)
        unit = torch.ones_like(ts) if self.in_t else problem.norm(ts)
        y = (x / unit[0]).flatten(1)
        seed = int(torch.randint(2**31 - 1, ()))
        ends = {"t0": float(u[0]), "t1": float(u[1]), "size": y.shape, "dtype": y.dtype, "device": y.device}
        bm = torchsde.BrownianInterval(**ends, entropy=seed, levy_area_approximation="space-time")
        dt = float(u[1] - u[0]) / n * (1 + 1e-12)  # not a hair less, which takes one step more
        equation = Backward(problem, x.shape, self.in_t, self.noise, self.kind)
        return torchsde.sdeint(equation, y, u, bm=bm, method=self.method, dt=dt)[-1].view(x.shape) * unit[1]


def torchsde_peers() -> list[Peer]:
    """The reverse SDE, whose noise is additive, so that Milstein's method is Euler's."""
    importlib.import_module("torchsde")
    rows = [
        ("euler", 1, 1, "diagonal", "ito"),
        ("milstein", 1, 1, "diagonal", "ito"),
        ("srk", 2, 2, "additive", "ito"),
        ("heun", 1, 2, "diagonal", "stratonovich"),
        ("midpoint", 1, 2, "diagonal", "stratonovich"),
    ]
    found = []
    for method, order, stages, noise, kind in rows:
        for at, is_t in (("t", True), ("log-SNR", False)):
            solve = Stochastic(method, stages, is_t, noise, kind)
            found.append(Peer(f"torchsde {method} in {at}", "torchsde", 1.0, order, solve))
    return found


# ------------------------------------------------------------------------------------------------------------- all

PACKAGES: dict[str, tuple[Callable[[], list[Peer]], Callable[[], list[Adaptive]] | None]] = {
    "diffusers": (diffusers_peers, None),
    "k-diffusion": (k_diffusion_peers, k_diffusion_adaptive),
    "azula": (azula_peers, None),
    "torchdiffeq": (torchdiffeq_peers, torchdiffeq_adaptive),
    "flow_matching": (flow_matching_peers, None),
    "torchsde": (torchsde_peers, None),
}


def _collect(which: int) -> tuple[list[Any], dict[str, str]]:
    found: list[Any] = []
    missing: dict[str, str] = {}
    for package, makers in PACKAGES.items():
        make = makers[which]
        try:
            found += make() if make else []
        except (ImportError, RuntimeError) as error:  # diffusers' lazy imports raise the latter
            missing[package] = str(error)
    return found, missing


def peers() -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run here, and for each package that cannot the reason."""
    return _collect(0)


def adaptive() -> tuple[list[Adaptive], dict[str, str]]:
    """The same for those that take a tolerance."""
    return _collect(1)
