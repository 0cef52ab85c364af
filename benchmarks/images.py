"""Recipes for images: train for some minutes, then say how good the network is, with everything that was measured.

    python benchmarks/images.py mnist --data DIR --minutes 8 --out runs/mnist [--device cuda] [--features FILE]
    python benchmarks/images.py cifar10 --data DIR --minutes 8 --out runs/cifar10 [--device cuda] [--features FILE]
    python benchmarks/images.py cifar10 --data DIR --trained runs/cifar10/half --out runs/cifar10-again

mnist: maximum likelihood on the grey levels themselves: EDM from sigma = 40 to a sixth of a grey level, times uniform
in log-SNR, which is the importance sampling of the likelihood weight (Song et al. 2021b; Kingma et al. 2021), and a
bound by truncated-normal dequantisation (Zheng et al. 2023). DIR holds the four IDX files of MNIST.
cifar10: a small DDPM++ (VP, continuous time, down to t = 1e-5), uniform dequantisation, flips. DIR holds the batches as
mosaics of 100x100 images, data_batch_1.webp to data_batch_5.webp and test_batch.webp.

With --trained a network is measured that is there. The number of steps follows from the speed that is measured first.
OUT/model holds the training, which goes on from there when called again; OUT/half the averaged weights in half
precision; OUT/results.json what was measured: loss by noise level, bits/dim of test images with its error budget, the
Frechet distance in the features of EfficientNet-Lite0 (--features, its weights; no FID) beside that of training images,
and the errors of a tuned solver and of the usual ones at 5, 10 and 20 network calls; OUT/samples.png samples.
"""

import argparse
import copy
import gzip
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from features import Features
from PIL import Image
from torch import Tensor

from scoresde import (
    EDM,
    VP,
    Checkpoint,
    Flow,
    GaussianReference,
    Karras,
    LinearSDE,
    Quantized,
    Reference,
    ScoreModel,
    Settings,
    draw,
    grid,
    iid,
    load,
    log_prob,
    loss,
    ode,
    per_sample,
    sample,
    save,
    train,
    tune,
)
from scoresde.checkpoint import exists
from scoresde.data import Dataset
from scoresde.files import write
from scoresde.lab import frechet, origin
from scoresde.lab.report import grid_picture
from scoresde.likelihood import Adams, Dequantization, Quadrature, TruncatedNormal, Uniform
from scoresde.nn import UNet
from scoresde.noise import seeded, seeds
from scoresde.steps import Error, Pilots
from scoresde.steps.fit import untuned

GREY = Quantized(256, -1.0, 1.0)


@dataclass(frozen=True)
class Recipe:
    """What is trained, and by what settings but for the number of steps. discrete: on the grey levels themselves."""

    sde: LinearSDE
    width: int
    attention: int
    octaves: tuple[int, ...]
    times: loss.Times
    weight: loss.Weight | None
    batch: int
    lr: float
    discrete: bool
    flips: bool
    dequantization: Dequantization
    multipliers: tuple[int, ...] = (1, 2, 2)

    def model(self, data: Dataset) -> ScoreModel:
        """Before training."""
        std = float(data.train.std())
        fourier = [2**n * math.pi * std for n in self.octaves]
        with seeded(0):
            net = UNet(data.shape, self.width, self.multipliers, 2, self.attention, fourier=fourier)
            return ScoreModel(net, self.sde, Karras(Reference(std=std)))

    def settings(self, steps: int, bf16: bool) -> Settings:
        """For that many steps."""
        precision = "bfloat16" if bf16 else "float32"
        rest = {"weight": self.weight, "times": self.times, "warmup": min(500, steps // 10), "precision": precision}
        return Settings(steps, self.batch, lr=self.lr, flips=self.flips, **rest)  # type: ignore[arg-type]


RECIPES = {
    "mnist": Recipe(
        sde=EDM(T=40.0, t_min=2 / 255 / 6),
        width=40,
        attention=1,
        octaves=(7, 8),
        times=loss.UniformLogSNR(),
        weight=loss.Simple(),
        batch=256,
        lr=2e-3,
        discrete=True,
        flips=False,
        dequantization=TruncatedNormal(GREY),
    ),
    "cifar10": Recipe(
        sde=VP(t_min=1e-5),
        width=80,
        attention=2,
        octaves=(),
        times=loss.LogNormal(-1.5, 2.0),
        weight=None,
        batch=256,
        lr=1e-3,
        discrete=False,
        flips=True,
        dequantization=Uniform(GREY),
    ),
}


def idx(file: Path) -> Tensor:
    """The images of an IDX file, (n, 1, height, width)."""
    raw = gzip.decompress(file.read_bytes())
    n, h, w = np.frombuffer(raw, ">u4", 3, 4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=16).reshape(n, 1, h, w).copy())


def mosaic(file: Path) -> Tensor:
    """The 10,000 images of 3x32x32 pixels in 100 rows of 100."""
    sheet = torch.from_numpy(np.asarray(Image.open(file).convert("RGB")).copy())
    return sheet.view(100, 32, 100, 32, 3).permute(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)


def images(name: str, folder: Path) -> tuple[Tensor, Tensor]:
    """Training and test images on [-1, 1]."""
    if name == "mnist":
        raw = tuple(idx(folder / f"{part}-images-idx3-ubyte.gz") for part in ("train", "t10k"))
    else:
        files = [folder / f"data_batch_{i}.webp" for i in range(1, 6)]
        raw = torch.cat([mosaic(file) for file in files if file.is_file()]), mosaic(folder / "test_batch.webp")
    train_, test = (x.float() * (2 / 255) - 1 for x in raw)
    return train_, test


def rate(recipe: Recipe, model: ScoreModel, data: Dataset, bf16: bool, n: int) -> float:
    """Steps a second, after a few that do not count."""
    train(model, data, recipe.settings(max(2, n // 4), bf16), progress=False)
    start = perf_counter()
    train(model, data, recipe.settings(n, bf16), progress=False)
    return n / (perf_counter() - start)


@torch.no_grad()
def by_level(model: ScoreModel, x: Tensor, n: int = 17) -> dict[str, float]:
    """The mean squared error of eps a dimension at n levels of sigma/alpha, equally spaced in log-SNR."""
    ts, said = grid.log_snr(model.sde, n - 1), {}
    for t in ts:
        noise = iid(torch.Generator().manual_seed(0))
        errors = []
        for part in x.split(256):
            x_t, z = model.sde.perturb(part, t, noise)
            errors.append((model.eps(x_t, t) - z).square().flatten(1).mean(1))
        said[f"{float((-model.sde.log_snr(t)).exp()):.3g}"] = float(torch.cat(errors).mean())
    return said


def bits(recipe: Recipe, model: ScoreModel, data: Dataset, x: Tensor, nodes: int) -> dict[str, Any]:
    """Bits/dim of grey levels with its budget, of 128 images at a time."""
    q, total, how = model.sde.reverse(model, 0.0), [], Quadrature(Adams(nodes))
    around = Reference.fit(data.train).overall
    for start in range(0, len(x), 128):
        part = x[start : start + 128]
        noise = per_sample(seeds(0, len(part), start))
        total.append(log_prob(q, part, recipe.dequantization, around=around, how=how, noise=noise))
    values, n = torch.cat([r.bits_per_dim for r in total]), len(x)
    unit = x[0].numel() * math.log(2)
    return {
        "bits_per_dim": float(values.mean()),
        "standard_error": float(values.std()) / math.sqrt(n),
        "images": n,
        "solver_error": float(torch.cat([r.solver_error for r in total]).mean()) / unit,
        "probe_error": float(torch.cat([r.probe_error for r in total]).square().sum().sqrt()) / n / unit,
        "end_bias": float(torch.cat([r.end_bias for r in total]).mean()) / unit,
        "prior_mismatch": total[0].budget["prior"],
        "what": total[0].says,
        "network_calls": total[0].nfe,
    }


def samples(model: ScoreModel, data: Dataset, n: int, calls: int, device: str) -> Tensor:
    """n samples on the CPU, in `calls` network calls."""
    q, around = model.sde.reverse(model, 0.0), Reference.fit(data.train[:5000])
    ts, parts = grid.reference(model.sde, calls + 1, around=Reference(std=around.std)), []
    like, step = torch.empty(0, device=device), GaussianReference(around)
    for start in range(0, n, 500):
        every = seeds(0, min(500, n - start), start)
        parts.append(draw(q, data.shape, ts, step, seeds=every, like=like, denoise=False).cpu())
    return torch.cat(parts) / float(model.sde.alpha(ts[-1]))


def solvers(
    model: ScoreModel, data: Dataset, n: int, pilots: int, device: str, budgets: list[int]
) -> list[dict[str, Any]]:
    """Errors of last states against the flow solved to 1e-5, at those numbers of network calls: `tune`, and the five
    best of the usual methods on the usual grids.
    """
    q, around = model.sde.reverse(model, 0.0), Reference.fit(data.train[:5000])
    x_T = model.sde.prior((n, *data.shape), per_sample(seeds(1, n)), torch.float32, device)
    ends = torch.tensor([model.sde.T, model.sde.t_min], dtype=torch.float64)
    truth, rows = sample(q, x_T, ends, Flow(ode.Dopri5(1e-5, 1e-5))), []
    for calls in budgets:
        began = perf_counter()
        found = tune(q, x_T, calls, around, Pilots(pilots))
        fit = round(perf_counter() - began, 1)
        tried = [(name, sample(q, x_T, ts, step)) for name, step, ts in untuned(q, calls, around)]
        usual = sorted(((name, Error.of(x, truth)) for name, x in tried), key=lambda row: row[1].rms)[:5]
        tuned = (f"tune: {found.name}", Error.of(sample(q, x_T, found.ts, found.step), truth))
        rows += [{"calls": calls, "solver": name, **vars(e)} for name, e in (tuned, *usual)]
        rows[-1 - len(usual)]["seconds to fit"] = fit
    return rows


def trained(
    recipe: Recipe, model: ScoreModel, data: Dataset, options: argparse.Namespace, note: Callable[..., None]
) -> ScoreModel:
    """The averaged network after options.minutes, or after what is left of a training that is in OUT/model."""
    folder = options.out / "model"
    if options.compile:
        model.net.compile()
    if exists(folder):
        steps = int(load(folder).notes["settings"]["steps"])
    else:
        trial = copy.deepcopy(model) if not options.compile else model
        speed = rate(recipe, trial, data, options.bf16, options.speed_steps)
        steps = max(10, int(60 * options.minutes * speed))
        note(steps=steps, images_a_second=speed * recipe.batch)
        model.load_state_dict(recipe.model(data).state_dict())
    start, settings = perf_counter(), recipe.settings(steps, options.bf16)
    found = train(model, data, settings, folder=folder, resume=exists(folder), progress=options.device == "cpu")
    note(training_seconds=perf_counter() - start, epochs=steps * recipe.batch / len(data.train))
    if options.device != "cpu":
        note(peak_memory_mib=torch.cuda.max_memory_allocated() / 2**20, capability=torch.cuda.get_device_capability())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trained", type=Path, help="a checkpoint to measure instead of training")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--nhwc", action="store_true")
    parser.add_argument("--images", type=int, default=512, help="test images for bits/dim")
    parser.add_argument("--samples", type=int, default=10_000, help="for the Frechet distance")
    parser.add_argument("--nodes", type=int, default=80, help="of the likelihood's solver")
    parser.add_argument("--starts", type=int, default=128, help="for the table of solvers")
    parser.add_argument("--pilots", type=int, default=32, help="of the tuned solver")
    parser.add_argument("--budgets", type=int, nargs="*", default=[5, 10, 20], help="network calls of the solvers")
    parser.add_argument("--speed-steps", type=int, default=200, help="to measure the speed with")
    options = parser.parse_args()
    began, device, out = perf_counter(), options.device, options.out
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    recipe = RECIPES[options.recipe]
    train_x, test = images(options.recipe, options.data)
    data = Dataset(train_x, test[:0], quantized=None if recipe.discrete else GREY)
    model = recipe.model(data).to(device)
    if options.nhwc:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    out.mkdir(parents=True, exist_ok=True)
    said: dict[str, Any] = {**origin(device), "recipe": repr(recipe), "parameters": size(model)}

    def note(**values: Any) -> None:
        said.update(values)
        print({**values, "at": round(perf_counter() - began)}, flush=True)
        write(out / "results.json", json.dumps(said, indent=2).encode())

    if options.trained:
        model = load(options.trained, device=device).model.float()
    else:
        model = trained(recipe, model, data, options, note)
        half = copy.deepcopy(model).half().cpu()
        save(out / "half", Checkpoint(half, data.shape, GREY, notes={"recipe": options.recipe}))
    x = samples(model, data, max(64, options.samples), 30, device)
    grid_picture(x[:64], out / "samples.png", columns=8)
    note(loss_by_noise_level=by_level(model, test[:512].to(device)))
    note(test=bits(recipe, model, data, test[: options.images].to(device), options.nodes))
    note(train=bits(recipe, model, data, train_x[: options.images].to(device), options.nodes))
    if options.features:
        features = Features(options.features, device)
        at_test = features(test[: len(x)])
        real = frechet(features(train_x[: len(x)]), at_test)
        note(frechet={"samples": frechet(features(x), at_test), "training images": real, "n": len(x), "calls": 30})
    note(solvers=solvers(model, data, options.starts, options.pilots, device, options.budgets))
    note(seconds=perf_counter() - began)


def size(model: ScoreModel) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    main()
