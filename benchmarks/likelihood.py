"""The likelihood of held-out digits: ours, the customary procedure, and torchdiffeq, under the same networks.

    python benchmarks/likelihood.py [--images 24] [--repeats 3] [--models runs/bench-likelihood] [--device cpu]
                                    [--only NAMES ...] [--cost]

The customary procedure (Song et al. 2021, appendix D.2): SciPy's RK45 at rtol = atol = 1e-5, all images one system, one
Rademacher probe an image for the whole path, drift and divergence by separate network calls. torchdiffeq: dopri5 at the
same tolerances, the same probe, drift and divergence by one call. The truth is the exact divergence under steps chosen
for each image at 1e-5. The flow ends at t = 1e-3, our default, or at 1e-5, as in that paper. Errors are in bits/dim, of
images dequantised once. "probe error": the standard deviation over images of the difference to the truth, what random
probes add; "mean error": the difference of the means, with its share of that. CPU time of one thread, medians. The
networks are trained first, if they are not there. Settings of ours were chosen on the U-Net at 1e-3 and an exact law.

Of the networks of MNIST a published one of another author is rough in time, and our EDM network with Fourier features
of x is rough in x; our VP networks of MNIST and Fashion-MNIST are smooth, and go down to an eighth of a grey level. A
third of the images are taken, a sixth for the EDM network, at the networks' own t_min, and the truth is the default
at a tight tolerance with four fresh probes. They are left out where ../shared/data is absent.

--cost: in place of that, what the default costs from 192 to 3,145,728 dimensions beside a network of one convolution,
two images at once, each size in a process of its own: its time, that of so many calls and products of the network
alone, and by how much either raises the peak of the memory.
"""

import argparse
import math
import resource
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from foreign import GREY, SHARED, images, published
from harness import save, seconds, table
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from scoresde import VP, Karras, Quantized, Reference, ScoreModel, Settings, iid, load, log_prob, ode, shipped, train
from scoresde.checkpoint import exists
from scoresde.data import Digits
from scoresde.likelihood import Adams, AsNeeded, Exact, Hadamard, Hutchinson, Likelihood, Quadrature, Uniform
from scoresde.model import Counted, Velocity
from scoresde.nn import MLP, UNet
from scoresde.noise import Noise, seeded
from scoresde.process import Reverse

try:
    from torchdiffeq import odeint
except ImportError as error:
    raise SystemExit(f"skipped: {error}; pip install -e '.[bench]'") from error

TOLERANCE = 1e-5
SHIPPED = {
    "our MNIST, VP": ("mnist-vp", "mnist", 3),
    "our Fashion-MNIST, VP": ("fashion-mnist", "fashion", 3),
    "our MNIST, EDM": ("mnist", "mnist", 6),
}
"""The model, the images, and the share of these."""

NAMES = ("U-Net", "MLP", "published MNIST", *SHIPPED)


@dataclass
class Result:
    """log p of each image, and what it cost."""

    log_p: Tensor
    calls: int
    products: int
    seconds: float = 0.0


Method = Callable[[ScoreModel, Tensor, int, float], Result]


def noise(seed: int) -> iid:
    """A new stream."""
    return iid(torch.Generator().manual_seed(seed))


def rademacher(x: Tensor, seed: int) -> Tensor:
    """Signs."""
    return torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(seed)).to(x) * 2 - 1


def customary(model: ScoreModel, x: Tensor, seed: int, t: float) -> Result:
    """RK45 over t, one system, one probe, two evaluations of the network at each of its stages."""
    score, probe, shape, stages = Counted(model), rademacher(x, seed), x.shape, 0
    p = model.sde.reverse(score, 0.0)

    def f(at: float, state: object) -> object:
        nonlocal stages
        stages += 1
        y = torch.as_tensor(state, dtype=torch.float32, device=x.device)[: x.numel()].view(shape)
        now = torch.full((len(x),), at, device=x.device)
        with torch.no_grad():
            drift = p.drift(y, now)
        y = y.requires_grad_()
        (g,) = torch.autograd.grad((p.drift(y, now) * probe).sum(), y)
        return torch.cat([drift.flatten(), (g * probe).flatten(1).sum(1)]).double().cpu().numpy()

    start = torch.cat([x.flatten(), x.new_zeros(len(x))]).double().cpu().numpy()
    found = solve_ivp(f, (t, model.sde.T), start, rtol=TOLERANCE, atol=TOLERANCE, method="RK45")
    end = torch.as_tensor(found.y[:, -1]).to(x)
    return Result(model.sde.log_prior(end[: x.numel()].view(shape)) + end[x.numel() :], score.nfe, stages)


def differentiated(model: ScoreModel, x: Tensor, seed: int, t: float) -> Result:
    """torchdiffeq's dopri5 over t, with the log-density beside the state."""
    score, probe = Counted(model), rademacher(x, seed)
    p = model.sde.reverse(score, 0.0)

    def f(at: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = state[0].detach().requires_grad_()
            drift = p.drift(y, at.expand(len(y)))
            (g,) = torch.autograd.grad((drift * probe).sum(), y)
        return drift.detach(), (g * probe).flatten(1).sum(1)

    ts = torch.tensor([t, model.sde.T], device=x.device)
    options = {"step_t": ts[1:]}  # no step beyond T, where the score is not defined
    start = x, x.new_zeros(len(x))
    y, log_p = odeint(f, start, ts, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5", options=options)
    return Result(model.sde.log_prior(y[-1]) + log_p[-1], score.nfe, score.nfe)


@dataclass(frozen=True)
class Given(Uniform):
    """Levels that were dequantised before, as all procedures must take the same: x, and no weight."""

    x: Tensor = torch.empty(0)

    def __call__(self, p: Reverse, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return self.x, x.new_zeros(len(x))


def told(x: Tensor, grey: Quantized) -> tuple[Tensor, Given]:
    """The levels that x was dequantised from, and how they were."""
    return grey.low + grey.width * ((x - grey.low) / grey.width).round(), Given(grey, x=x)


def ours(around: Reference | None, grey: Quantized, how: Quadrature = Quadrature()) -> Method:
    """`log_prob` with these choices, which is told that the data are on levels."""

    def run(model: ScoreModel, x: Tensor, seed: int, t: float) -> Result:
        how_at = replace(how, t=t)
        found = log_prob(model.sde.reverse(model), *told(x, grey), around=around, how=how_at, noise=noise(seed))
        return Result(found.log_p, found.nfe, found.products)

    return run


def network(name: str, folder: Path, device: str) -> ScoreModel:
    """The demo's U-Net, or a multilayer perceptron of the same kind, trained as in the demo."""
    data, here = Digits().load(), folder / name
    std = float(data.train.std())
    if not exists(here):
        nets: dict[str, Callable[[], nn.Module]] = {
            "U-Net": lambda: UNet(data.shape),
            "MLP": lambda: MLP(data.shape, 256, 4),
        }
        with seeded(0):
            model = ScoreModel(nets[name](), VP(), Karras(Reference(std=std)))
        train(model, data, Settings(steps=1500), folder=here, source=Digits())
    return load(here, device=device).model


class Convolution(nn.Module):
    """A network that costs next to nothing, so that all the rest is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, 3, H, W)."""
        out: Tensor = self.net(x)
        return out


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """The CPU seconds of work, and by how many MiB it raises the peak of the memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = seconds(work, "cpu")
    return taken, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def cost(side: int) -> dict[str, Any]:
    """What two images of side x side pixels cost."""
    torch.set_num_threads(1)
    with seeded(0):
        model = ScoreModel(Convolution(), VP(), Velocity()).requires_grad_(False)
    p: Reverse = VP().reverse(model)
    found: list[Likelihood] = []
    log_prob(p, 0.5 * torch.randn(2, 3, 4, 4), noise=noise(0))  # what is loaded at the first call
    x = 0.5 * torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))

    def alone(calls: int, products: int) -> None:
        for _ in range(calls):
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                out = model(y, 0.5)
            for _ in range(products // calls):
                torch.autograd.grad(out, y, x, retain_graph=True)

    own, memory = spent(lambda: alone(22, 44))
    whole, peak = spent(lambda: found.append(log_prob(p, x, noise=noise(0))))
    return {
        "image": f"{side}x{side}x3",
        "dimensions": 3 * side * side,
        "network calls": found[0].nfe,
        "CPU seconds": round(whole, 3),
        "network alone": round(own, 3),
        "us a dimension": round(1e6 * whole / (2 * 3 * side * side), 3),
        "MiB": round(memory + peak, 1),
        "MiB of the network": round(memory, 1),
        "MiB of x": round(x.numel() * 4 / 2**20, 2),
    }


def costs() -> None:
    """The table of `cost`."""
    rows = []
    for side in (8, 32, 64, 256, 1024):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append(pool.submit(cost, side).result())
            print(rows[-1], flush=True)
    file = save("likelihood-cost", "cpu", ("scoresde", "torch"), rows)
    print(table(rows), f"\nwritten to {file}")


def subjects(
    options: argparse.Namespace,
) -> Iterator[tuple[str, ScoreModel, Tensor, Quantized, Reference | None, float]]:
    """The name of a network, itself, images at its end time, their levels, the Gaussian that it is measured around, and
    that time.
    """
    data, n = Digits().load(), options.images
    assert data.quantized is not None
    x, around = data.quantized.dequantize(data.held_out[:n], noise(1001)), Reference.fit(data.train).overall
    for name in NAMES if options.only is None else options.only:
        if name in ("U-Net", "MLP"):
            model = network(name, options.models, options.device)
            yield from ((name, model, x.to(options.device), data.quantized, around, t) for t in (1e-3, 1e-5))
        elif not SHARED.is_dir():
            print(f"{name}: left out, as there is no {SHARED}")
        else:
            which, of, share = SHIPPED.get(name, ("", "mnist", 3))
            model = load(shipped(which), dtype=torch.float32).model if which else published("mnist")
            x_0 = GREY.dequantize(images(of, max(1, n // share)), noise(1001))
            yield name, model.to(options.device), x_0.to(options.device), GREY, model.around, model.sde.t_min


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", type=Path, default=Path("runs/bench-likelihood"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="of these alone, in a file of their own")
    parser.add_argument("--cost", action="store_true", help="what dimensions cost, in place of the comparison")
    options = parser.parse_args()
    if options.cost:
        return costs()
    torch.set_num_threads(1)
    device, clock, rows = options.device, "CPU" if options.device == "cpu" else "GPU", []
    for name, model, x, grey, around, t in subjects(options):
        unit, small = x[0].numel() * math.log(2), x[0].numel() <= 64
        methods: dict[str, Method] = {
            "customary: RK45, one system": customary,
            "torchdiffeq dopri5": differentiated,
            "ours, default": ours(around, grey),
            "ours, 22 calls, one probe": ours(around, grey, Quadrature(Adams(), Hutchinson(1))),
            "ours, 22 calls, Hadamard(4)": ours(around, grey, Quadrature(Adams(), Hadamard(4))),
        }
        for n in (8, 12) if small else (12, 30):
            methods[f"ours, {n + 2} calls, one probe"] = ours(around, grey, Quadrature(Adams(n), Hutchinson(1)))
        if small:
            methods["ours, exact divergence"] = ours(around, grey, Quadrature(Adams(22), Exact()))
        pair = ode.Dopri5(TOLERANCE, TOLERANCE)
        tight = Quadrature(pair, Exact()) if small else Quadrature(AsNeeded(0.001, Adams(12), pair), Hutchinson(4))
        truth = ours(around, grey, tight)(model, x, 1000, t)
        found: dict[str, list[Result]] = {key: [] for key in methods}
        for seed in range(options.repeats):
            for key, method in methods.items():
                if seed and key == "ours, exact divergence":
                    continue  # the same again
                taken = seconds(lambda: found[key].append(method(model, x, seed, t)), device)  # noqa: B023
                found[key][-1].seconds = taken
        for key, results in found.items():
            off = torch.stack([(truth.log_p - r.log_p).double() / unit for r in results])
            pairs = zip(found["customary: RK45, one system"], results, strict=False)
            faster = statistics.median(a.seconds / b.seconds for a, b in pairs)
            rows.append(
                {
                    "network": name,
                    "t": t,
                    "procedure": key,
                    "mean error": round(float(off.mean()), 4),
                    "probe error": round(float(off.std(1).square().mean().sqrt()), 4),
                    "worst image": round(float(off.abs().max()), 4),
                    "network calls": results[0].calls,
                    "products": results[0].products,
                    f"{clock} seconds": round(statistics.median(r.seconds for r in results), 2),
                    f"customary/this, {clock} time": round(faster, 2),
                }
            )
            print(rows[-1], flush=True)
    name = "-".join(["likelihood", *(w.lower().replace(" ", "-") for w in options.only or ())])
    file = save(name, device, ("scoresde", "torch", "scipy", "torchdiffeq"), rows)
    print(table(rows), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
