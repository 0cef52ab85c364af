"""Samplers of k-diffusion, which take the denoiser of y = x/alpha."""

import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import Tensor

from scoresde import LinearSDE, grid
from scoresde.process import Score

from .common import GRIDS, Adaptive, Grid, Peer, Problem, whole


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
