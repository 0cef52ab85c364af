"""What a step costs beyond the network: ours, a loop written by hand for the same method, and other libraries'.

    pip install -e '.[bench]' && pip install --no-deps k-diffusion azula
    python benchmarks/overhead.py [--repeats 21] [--device cpu]

The network is x -> -x, whatever a library takes that for, and 50 steps of 50 calls are taken in float32; said is
the median time of a call, and the median over repeats of the ratios to the loop by hand, which is the method's formula
with Python numbers: no checks, no noise argument, no other method. All compute their coefficients inside the time. On a
GPU there is also ours recorded once as a CUDA graph (`captured`), without the recording. "Other steps" are ours, beside
`Ancestral` on the reverse SDE: their cost should be that of their noise and of one more sum of tensors.
"""

import argparse
import importlib
import statistics
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from harness import interleaved, ratio, save, table
from peers import k_sampling
from torch import Tensor

from scoresde import (
    VP,
    Ancestral,
    DPMSolverPP,
    EulerMaruyama,
    GaussianReference,
    Reference,
    ReverseDiffusion,
    UniPC,
    grid,
    sample,
)
from scoresde.steps import AnalyticDPM, Churn, ConsistentAnnealed, DPMSolver, EDMHeun, captured

N = 50
SHAPES = ((1, 1, 8, 8), (16, 3, 32, 32))
GPU_SHAPES = ((1, 3, 32, 32), (64, 3, 32, 32))
SDE = VP()


def network(x: Tensor, t: Tensor) -> Tensor:
    """A trivial score."""
    return -x


def ddim_by_hand(x: Tensor) -> Tensor:
    """x_s = a x + b score."""
    ts = grid.log_snr(SDE, N)
    alpha, sigma = SDE.alpha(ts), SDE.sigma(ts)
    a = (alpha[1:] / alpha[:-1]).tolist()
    b = (sigma[:-1] * (alpha[1:] / alpha[:-1] * sigma[:-1] - sigma[1:])).tolist()
    for t, a_n, b_n in zip(ts, a, b, strict=False):
        x = a_n * x + b_n * network(x, t)
    return x


def ddpm_by_hand(x: Tensor) -> Tensor:
    """x_s = a x + b score + c z."""
    ts = grid.log_snr(SDE, N)
    (ratio_, v), var = SDE.transition(ts[:-1], ts[1:]), SDE.var(ts)
    a, b, c = (1 / ratio_).tolist(), (v / ratio_).tolist(), (v * var[1:] / var[:-1]).sqrt().tolist()
    for t, a_n, b_n, c_n in zip(ts, a, b, c, strict=False):
        x = a_n * x + b_n * network(x, t) + c_n * torch.randn_like(x)
    return x


def dpm_by_hand(x: Tensor) -> Tensor:
    """x_s = a x + b D + c D_before, D = (x + sigma^2 score)/alpha (Lu et al. 2022b, Algorithm 2)."""
    ts = grid.log_snr(SDE, N)
    lam, alpha, sigma, var = SDE.log_snr(ts), SDE.alpha(ts), SDE.sigma(ts), SDE.var(ts)
    a, whole = (sigma[1:] / sigma[:-1]).tolist(), alpha[1:] * -torch.expm1(-lam.diff())
    r = torch.cat([lam.new_full((1,), torch.inf), lam.diff()[:-1]]) / lam.diff()
    b, c = (whole * (1 + 1 / (2 * r))).tolist(), (whole / (2 * r)).tolist()
    before = torch.zeros_like(x)
    for t, a_n, b_n, c_n, i, v in zip(ts, a, b, c, (1 / alpha).tolist(), (var / alpha).tolist(), strict=False):
        D = i * x + v * network(x, t)
        x, before = a_n * x + b_n * D - c_n * before, D
    return x


def heun_by_hand(x: Tensor) -> Tensor:
    """Heun's method for dx~/dsigma~ = eps, with x~ = x/alpha and sigma~ = sigma/alpha (Karras et al. 2022)."""
    ts = grid.log_snr(SDE, N // 2)
    alpha, sigma = SDE.alpha(ts).tolist(), SDE.sigma(ts).tolist()
    x = x / alpha[0]
    for i in range(N // 2):
        h = sigma[i + 1] / alpha[i + 1] - sigma[i] / alpha[i]
        d = -sigma[i] * network(alpha[i] * x, ts[i])
        ahead = x + h * d
        x = x + h / 2 * (d - sigma[i + 1] * network(alpha[i + 1] * ahead, ts[i + 1]))
    return alpha[-1] * x


def scheduler(make: Callable[..., Any], **options: Any) -> Callable[[Tensor], Tensor]:
    """The loop of diffusers around one of its schedulers, with the table of betas that it has by default."""

    def run(x: Tensor) -> Tensor:
        steps = make(**options)
        steps.set_timesteps(N // 2 if "Heun" in make.__name__ else N)
        for t in steps.timesteps:
            x = steps.step(-x, t, x).prev_sample
        return x

    return run


def azula_run(make: Callable[..., Any], **options: Any) -> Callable[[Tensor], Tensor]:
    """A sampler of azula on its own VP schedule; -x is the mean of x_0."""
    from azula.noise import VPSchedule

    class Trivial:
        schedule = VPSchedule()

        def __call__(self, x: Tensor, t: Tensor) -> SimpleNamespace:
            return SimpleNamespace(mean=-x)

    return lambda x: make(Trivial(), steps=N, silent=True, **options)(x)


def others() -> dict[str, dict[str, Callable[[Tensor], Tensor]]]:
    """method -> name -> what other libraries make of x, in float32 and as their own examples call them."""
    found: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {}

    def add(method: str, name: str, make: Callable[[], Callable[[Tensor], Tensor]]) -> None:
        try:
            found.setdefault(method, {})[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}")

    def d(name: str, **options: Any) -> Callable[[], Callable[[Tensor], Tensor]]:
        return lambda: scheduler(getattr(importlib.import_module("diffusers"), name), **options)

    def a(name: str, **options: Any) -> Callable[[], Callable[[Tensor], Tensor]]:
        return lambda: azula_run(getattr(importlib.import_module("azula.sample"), name), **options)

    def k(name: str) -> Callable[[], Callable[[Tensor], Tensor]]:
        def make() -> Callable[[Tensor], Tensor]:
            sampler = getattr(k_sampling(), name)
            sigmas = (-SDE.log_snr(grid.log_snr(SDE, N // 2 if "heun" in name else N))).exp().float()
            return lambda x: sampler(lambda x, sigma: -x, x, sigmas.to(x.device), disable=True)

        return make

    add("DDIM", "diffusers DDIMScheduler", d("DDIMScheduler", clip_sample=False))
    add("DDIM", "k-diffusion sample_euler", k("sample_euler"))
    add("DDIM", "azula DDIMSampler", a("DDIMSampler", eta=0.0))
    add("DDPM", "diffusers DDPMScheduler", d("DDPMScheduler", clip_sample=False))
    add("DDPM", "k-diffusion sample_euler_ancestral", k("sample_euler_ancestral"))
    add("DDPM", "azula DDPMSampler", a("DDPMSampler"))
    add("DPM-Solver++(2M)", "diffusers DPMSolverMultistepScheduler", d("DPMSolverMultistepScheduler"))
    add("DPM-Solver++(2M)", "k-diffusion sample_dpmpp_2m", k("sample_dpmpp_2m"))
    add("DPM-Solver++(2M)", "azula xEABSampler", a("xEABSampler", order=2))
    add("UniPC(3)", "diffusers UniPCMultistepScheduler", d("UniPCMultistepScheduler", solver_order=3))
    add("Heun", "diffusers HeunDiscreteScheduler", d("HeunDiscreteScheduler"))
    add("Heun", "k-diffusion sample_heun", k("sample_heun"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = others()
    p, q = SDE.reverse(network), SDE.reverse(network, 0.0)
    rows, ts, half = [], grid.log_snr(SDE, N), partial(grid.log_snr, SDE, N // 2)
    for shape in SHAPES if options.device == "cpu" else GPU_SHAPES:
        x, g = torch.randn(shape, device=options.device), GaussianReference(Reference(std=0.5))
        others_of_ours = {
            "Ancestral()": Ancestral(),
            "Ancestral(v=1)": Ancestral(1.0),
            "EulerMaruyama()": EulerMaruyama(),
            "ReverseDiffusion()": ReverseDiffusion(),
            "ConsistentAnnealed()": ConsistentAnnealed(),
            "AnalyticDPM": AnalyticDPM.fit(p, x, ts),
        }
        methods: dict[str, dict[str, Callable[[], Tensor]]] = {
            "DDIM": {
                "by hand": lambda x=x: ddim_by_hand(x),
                "ours": lambda x=x: sample(q, x, grid.log_snr(SDE, N), Ancestral()),
            },
            "DDPM": {
                "by hand": lambda x=x: ddpm_by_hand(x),
                "ours": lambda x=x: sample(p, x, grid.log_snr(SDE, N), Ancestral()),
            },
            "DPM-Solver++(2M)": {
                "by hand": lambda x=x: dpm_by_hand(x),
                "ours": lambda x=x: sample(q, x, grid.log_snr(SDE, N), DPMSolverPP(2)),
                "ours, GaussianReference": lambda x=x, g=g: sample(q, x, grid.log_snr(SDE, N + 1), g),
            },
            "UniPC(3)": {
                "DPM-Solver++(2M) by hand": lambda x=x: dpm_by_hand(x),
                "ours": lambda x=x: sample(q, x, grid.log_snr(SDE, N), UniPC(3)),
            },
            "Heun": {
                "by hand": lambda x=x: heun_by_hand(x),
                "ours, EDMHeun()": lambda x=x: sample(q, x, half(), EDMHeun()),
                "ours, EDMHeun(churn=10)": lambda x=x: sample(q, x, half(), EDMHeun(10.0)),
                "ours, Churn(DPMSolver(2), 10)": lambda x=x: sample(q, x, half(), Churn(DPMSolver(2), 10.0)),
            },
            "other steps": {
                name: lambda x=x, step=step: sample(p, x, grid.log_snr(SDE, N), step)
                for name, step in others_of_ours.items()
            },
        }
        if x.is_cuda:
            methods["DDIM"]["ours, captured"] = partial(captured(q, x, ts, Ancestral()), x)
            methods["DDPM"]["ours, captured"] = partial(captured(p, x, ts, Ancestral()), x)
            methods["DPM-Solver++(2M)"]["ours, captured"] = partial(captured(q, x, ts, DPMSolverPP(2)), x)
        for method, calls in methods.items():
            for name, run in found.get(method, {}).items():
                try:
                    run(x)
                    calls[name] = partial(run, x)
                except RuntimeError as error:  # not every library has its tables on the device
                    print(f"{name} is left out: {error}")
            with torch.no_grad():
                times = interleaved(calls, options.repeats, options.device)
            hand = next(iter(calls))
            for name in calls:
                rows.append(
                    {
                        "method": method,
                        "batch": "x".join(map(str, shape)),
                        "who": name,
                        "us a call": round(1e6 * statistics.median(times[name]) / N, 1),
                        "to the first": round(ratio(times, name, hand), 2),
                    }
                )
    file = save("overhead", options.device, ("scoresde", "torch", "diffusers", "k-diffusion", "azula"), rows)
    print(table(rows), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
