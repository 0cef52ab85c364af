"""Our steps and grids in the loops of others."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..grid import log_snr
from ..model import Data, NoiseLevel, ScoreModel
from ..noise import Noise, iid
from ..process import EDM, Between, LinearSDE, Reverse
from ..shapes import answer, count, function, like
from ..steps import Step, sample, started
from .networks import Adapted
from .pipelines import parts_of, reading_of

Grid = Callable[[LinearSDE, int], Tensor]


class Scheduler:
    """A sampler of ours as a scheduler of diffusers: `pipe.scheduler = Scheduler(pipe, step, grid)`.

    source: the pipeline, or a network of diffusers; scheduler: whose betas and prediction it has, that of the pipeline
    unless given. grid: (sde, n) -> n + 1 times. n inference steps are n calls of the network: the step on n - 1
    intervals, and E[x_0 | x_t] at the last time. The network is told times between the steps that it was trained on,
    unless it has rows for these alone.

    Raises ValueError as `from_diffusers`, and for what is no step; on its way for a step that asks for the score more
    than once an interval, and where the pipeline calls with other times than it was given.
    """

    order = 1

    def __init__(
        self, source: Any, step: Step, grid: Grid = log_snr, eta: float | Between = 0.0, scheduler: Any = None
    ) -> None:
        net, plan = parts_of(source, scheduler)
        self.reading, self.config = reading_of(plan, net.config), plan.config
        self.grid = function("grid", grid, "a callable (sde, n) -> times")
        if not isinstance(step, Step):
            raise ValueError(f"step must be a Step such as Ancestral(), got {step!r}")
        self.own, self.p = step, Reverse(self.reading.sde, self._score, eta)
        self.timesteps, self.ts, self.at = torch.empty(0), torch.empty(0), 0
        self.given: tuple[Tensor, Tensor] | None = None

    @property
    def init_noise_sigma(self) -> float:
        """The deviation of the prior."""
        return float(self.p.sde.sigma(torch.tensor(self.p.T, dtype=torch.float64)))

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """The times of n calls."""
        n = count("num_inference_steps", num_inference_steps, least=2)
        self.ts = self.grid(self.p.sde, n - 1)
        (self.move,), self.at = started(self.p, self.ts, (self.own,)), 0
        self.timesteps = self.reading.clock(self.p.sde, self.ts).to(device, torch.float32)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """c_in x."""
        t = self.ts[self.at]
        c_in = self.reading.predicts(self.p.sde.alpha(t), self.p.sde.sigma(t))[2]
        return sample if c_in == 1.0 else like(torch.as_tensor(c_in), sample) * sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float | None = None,
        use_clipped_model_output: bool | None = None,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """The state at the next time. eta is that which the scheduler was made with; 0 is what pipelines hand on unless
        they are told. Raises ValueError for another, and for clipped outputs, which are those of no score.
        """
        if (eta and eta != self.p.eta) or use_clipped_model_output:
            raise ValueError(
                f"eta and use_clipped_model_output must be those of this scheduler, {self.p.eta:g} and False, got "
                f"{eta} and {use_clipped_model_output}"
            )
        if self.at >= len(self.ts) or abs(float(timestep) - float(self.timesteps[self.at])) > 1e-3:
            raise ValueError(f"timestep must be the next of those that were set, got {float(timestep):g}")
        t, out = self.ts[self.at], model_output
        if self.reading.variance and out.shape[1] == 2 * sample.shape[1]:  # unless the pipeline has split it off
            out = out.chunk(2, 1)[0]
        sde = self.p.sde
        a, b, _ = self.reading.predicts(sde.alpha(t), sde.sigma(t))
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        eps = like(torch.as_tensor(a), x) * x + like(torch.as_tensor(b), x) * answer("model_output", out, x).to(x)
        self.given = t, -eps / like(sde.sigma(t), x)
        if self.at + 1 < len(self.ts):
            x = self.move(self.p, x, t, self.ts[self.at + 1], _noise(generator))
        else:
            x = self.p.denoise(x, t)
        self.at += 1
        return SimpleNamespace(prev_sample=x.to(sample)) if return_dict else (x.to(sample),)

    def _score(self, x: Tensor, t: Tensor) -> Tensor:
        given, self.given = self.given, None
        if given is None or float(t) != float(given[0]):
            raise ValueError(
                f"step must ask for the score once an interval, where it begins, which {self.own} does not"
            )
        return given[1].to(x)


def _noise(generator: Any) -> Noise:
    """By one generator, or one for each sample."""
    if not isinstance(generator, list):
        return iid(generator)
    return lambda x, t, s: torch.cat([iid(g)(x[k : k + 1], t, s) for k, g in enumerate(generator)])


def k_sampler(*steps: Step, eta: float | Between = 0.0, noise: Noise = iid()) -> Callable[..., Tensor]:
    """A sampler of ours as a function of k-diffusion: sampler(model, x, sigmas, extra_args=None, callback=None, ...),
    with a denoiser model(x, sigma, **extra_args) and decreasing noise levels, at whose end 0 stands for E[x_0 | x].

    Of the callback's dictionary x and i are told, at the end. Raises ValueError as `sample`.
    """

    def sampler(
        model: Callable[..., Any],
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        ts = sigmas.detach().to("cpu", torch.float64)
        last = ts[ts > 0]
        if len(last) < 2 or not last[0] > last[-1]:
            raise ValueError(f"sigmas must be at least two decreasing noise levels above 0, got {sigmas.tolist()}")
        sde, told = EDM(T=float(last[0]), t_min=float(last[-1])), extra_args or {}
        score = ScoreModel(Adapted(lambda y, sigma: model(y, sigma, **told)), sde, Data(), NoiseLevel())
        p = sde.reverse(score, eta)
        x = sample(p, x, last, *steps, noise=noise)
        with torch.no_grad():
            x = p.denoise(x, last[-1]) if ts[-1] == 0 else x
        if callback is not None:
            callback({"x": x, "i": len(ts) - 2, "sigma": sigmas[-1], "sigma_hat": sigmas[-1], "denoised": x})
        return x

    return sampler
