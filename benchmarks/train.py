"""A training step of scoresde.nn.UNet against diffusers' UNet2DModel and denoising_diffusion_pytorch's Unet: forward,
backward and Adam, on the same batch.

    python benchmarks/train.py [--repeats 15] [--device cuda] [--only 3x32x32] [--modes fp32 bf16]

A ratio above 1 says that ours is faster. "equal parameters": all have the same number of parameters to 7 %, each in its
own shape; "equal channels": all have the same channels and two blocks at each resolution, so ours has fewer parameters.
modes: fp32 has float32 products on a GPU, tf32 those of its matrix units, bf16 autocast; "nhwc" adds channels-last
memory and "compiled" torch.compile besides, which on the CPU needs a C++ compiler. On a GPU batches are 16 times as
large, and ten steps are timed together.

MiB: the most that torch's allocator gives out at once within a step, weights and moments not among it: on the CPU
activations and gradients, as its profiler counts them, on a GPU beyond what is there before the step, which is the
gradients of the last one. What libraries take for themselves besides, as oneDNN's scratch, is not in it.

denoising_diffusion_pytorch's U-Net has attention at every resolution, linear but for the lowest. `pip install --no-deps
denoising_diffusion_pytorch` is enough for it: what that package imports for its trainer alone is stood in for where it
is absent. Where the package is absent it is left out.
"""

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable
from itertools import accumulate
from unittest.mock import MagicMock

import torch
from harness import interleaved, ratio, save, table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from scoresde.nn import UNet

try:
    from diffusers import UNet2DModel
except ImportError as error:
    raise SystemExit(f"skipped: {error}; pip install -e '.[bench]'") from error

TRAINER = ("torchvision", "ema_pytorch", "accelerate", "pytorch_fid.fid_score", "pytorch_fid.inception")
"""What denoising_diffusion_pytorch imports for other things than its networks."""

CASES = [  # image, batch, and of ours, of diffusers and of denoising_diffusion_pytorch the width and multipliers
    ("equal parameters", (1, 8, 8), 32, (16, (1, 3)), (20, (1, 2)), (22, (1, 2))),
    ("equal channels", (1, 8, 8), 32, (24, (1, 2)), (24, (1, 2)), (24, (1, 2))),
    ("equal parameters", (1, 28, 28), 16, (32, (1, 1, 3)), (32, (1, 2, 2)), (34, (1, 2, 2))),
    ("equal channels", (1, 28, 28), 16, (32, (1, 2, 2)), (32, (1, 2, 2)), (32, (1, 2, 2))),
    ("equal parameters", (3, 32, 32), 8, (64, (1, 1, 3)), (64, (1, 2, 2)), (72, (1, 2, 2))),
    ("equal channels", (3, 32, 32), 8, (64, (1, 2, 2)), (64, (1, 2, 2)), (64, (1, 2, 2))),
]
BLOCKS = 2
MODES = ["fp32", "bf16", "fp32 compiled"]
IMAGES = ["1x8x8", "1x28x28", "3x32x32"]


class Peer(nn.Module):
    """UNet2DModel with attention at its lowest level, as ours has."""

    def __init__(self, shape: tuple[int, int, int], width: int, multipliers: tuple[int, ...]) -> None:
        super().__init__()
        levels = len(multipliers)
        self.net = UNet2DModel(
            sample_size=shape[1],
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=[width * m for m in multipliers],
            layers_per_block=BLOCKS,
            down_block_types=["DownBlock2D"] * (levels - 1) + ["AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (levels - 1),
            norm_num_groups=4,
            attention_head_dim=32 if width * multipliers[-1] % 32 == 0 else None,
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.net(x, c).sample


def plain(shape: tuple[int, int, int], width: int, multipliers: tuple[int, ...]) -> nn.Module | None:
    """denoising_diffusion_pytorch's Unet, if it is there."""
    if importlib.util.find_spec("denoising_diffusion_pytorch") is None:
        return None
    for name in TRAINER:
        if name not in sys.modules and importlib.util.find_spec(name.split(".")[0]) is None:
            sys.modules[name] = MagicMock()
    from denoising_diffusion_pytorch import Unet

    return Unet(width, dim_mults=multipliers, channels=shape[0])  # type: ignore[no-any-return]


def stepper(net: nn.Module, x: Tensor, c: Tensor, mode: str) -> Callable[[], None]:
    """Training steps in a mode, as a function."""
    steps = 1 if x.device.type == "cpu" else 10
    layout = torch.channels_last if "nhwc" in mode else torch.contiguous_format
    net, x = net.to(x.device, memory_format=layout), x.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=True)
    called = torch.compile(net) if "compiled" in mode else net

    def step() -> None:
        torch.set_float32_matmul_precision("high" if "tf32" in mode else "highest")
        torch.backends.cudnn.allow_tf32 = "fp32" not in mode
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(x.device.type, torch.bfloat16, enabled="bf16" in mode):
                loss = (called(x, c) - x).square().mean()
            loss.backward()
            optimizer.step()

    return step


def memory(step: Callable[[], None], device: str) -> float:
    """The most that a step takes at once, in MiB, as the module says."""
    step()
    if device == "cpu":
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            step()
        events = (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
        taken = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
        return max(accumulate(taken), default=0) / 2**20
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def size(net: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in net.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=IMAGES, default=IMAGES)
    parser.add_argument("--modes", nargs="*", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    gpu = options.device != "cpu"
    modes = options.modes or (["fp32", "tf32", "bf16", "bf16 nhwc", "bf16 nhwc compiled"] if gpu else MODES)
    rows = []
    for (case, shape, few, *shapes), mode in ((case, mode) for case in CASES for mode in modes):
        image, batch = "x".join(map(str, shape)), few * (16 if gpu else 1)
        if image not in options.only:
            continue
        torch.compiler.reset()  # so that each is compiled for its own shape
        made = {
            "ours": UNet(shape, *shapes[0], BLOCKS),
            "diffusers": Peer(shape, *shapes[1]),
            "denoising_diffusion": plain(shape, *shapes[2]),
        }
        nets = {name: net.to(options.device) for name, net in made.items() if net is not None}
        x, c = torch.randn(batch, *shape, device=options.device), torch.rand(batch, device=options.device)
        calls = {name: stepper(net, x, c, mode) for name, net in nets.items()}
        times = interleaved(calls, options.repeats, options.device)
        ms = {name: 1e3 * statistics.median(t) / (10 if gpu else 1) for name, t in times.items()}
        row = {"case": case, "image": image, "batch": batch, "mode": mode}
        row |= {f"parameters, {name}": size(net) for name, net in nets.items()}
        row |= {f"ms a step, {name}": round(value, 1) for name, value in ms.items()}
        row |= {f"{name}/ours": round(ratio(times, name, "ours"), 3) for name in nets if name != "ours"}
        if gpu:
            row |= {"images a second": round(1e3 * batch / ms["ours"])}
        row |= {f"MiB, {name}": round(memory(call, options.device), 1) for name, call in calls.items()}
        rows.append(row)
        print(row, flush=True)
    packages = [
        "scoresde",
        "torch",
        "diffusers",
        *(["denoising_diffusion_pytorch"] if "denoising_diffusion" in nets else []),
    ]
    file = save("train", options.device, tuple(packages), rows)
    print(table(rows), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
