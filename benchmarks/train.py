"""A training step of scoresde.nn.UNet against diffusers' UNet2DModel: forward, backward and Adam, on the same batch.

    python benchmarks/train.py [--repeats 15] [--device cuda] [--only 3x32x32] [--modes fp32 bf16]

A ratio above 1 says that ours is faster. "equal parameters": both have the same number of parameters to 4 %, each in
its own shape; "equal channels": both have the same channels at each resolution, so ours has fewer parameters. modes:
fp32 has float32 products on a GPU, tf32 those of its matrix units, bf16 autocast; "nhwc" adds channels-last memory and
"compiled" torch.compile besides. On a GPU batches are 16 times as large, and ten steps are timed together.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from harness import interleaved, ratio, save, table
from torch import Tensor, nn

from scoresde.nn import UNet

try:
    from diffusers import UNet2DModel
except ImportError as error:
    raise SystemExit(f"skipped: {error}; pip install -e '.[bench]'") from error

CASES = [
    ("equal parameters", (1, 8, 8), 32, (16, (1, 3), 2), (24, (1, 2), 1)),
    ("equal channels", (1, 8, 8), 32, (24, (1, 2), 1), (24, (1, 2), 1)),
    ("equal parameters", (1, 28, 28), 16, (32, (1, 1, 3), 2), (32, (1, 2, 2), 2)),
    ("equal channels", (1, 28, 28), 16, (32, (1, 2, 2), 2), (32, (1, 2, 2), 2)),
    ("equal parameters", (3, 32, 32), 8, (64, (1, 1, 3), 2), (64, (1, 2, 2), 2)),
    ("equal channels", (3, 32, 32), 8, (64, (1, 2, 2), 2), (64, (1, 2, 2), 2)),
]


class Peer(nn.Module):
    """UNet2DModel with attention at its lowest level, as ours has."""

    def __init__(self, shape: tuple[int, int, int], width: int, multipliers: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        levels = len(multipliers)
        self.net = UNet2DModel(
            sample_size=shape[1],
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=[width * m for m in multipliers],
            layers_per_block=blocks,
            down_block_types=["DownBlock2D"] * (levels - 1) + ["AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (levels - 1),
            norm_num_groups=4,
            attention_head_dim=32 if width * multipliers[-1] % 32 == 0 else None,
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.net(x, c).sample


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
    """The most that a step holds on a GPU beyond what is there before, in MiB; nan elsewhere."""
    if device == "cpu":
        return float("nan")
    step()
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
    parser.add_argument("--only", nargs="*", default=["1x8x8", "1x28x28", "3x32x32"])
    parser.add_argument("--modes", nargs="*", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    gpu = options.device != "cpu"
    modes = options.modes or (["fp32", "tf32", "bf16", "bf16 nhwc", "bf16 nhwc compiled"] if gpu else ["fp32"])
    rows = []
    for (case, shape, few, ours_shape, peer_shape), mode in ((case, mode) for case in CASES for mode in modes):
        image, batch = "x".join(map(str, shape)), few * (16 if gpu else 1)
        if image not in options.only:
            continue
        ours, peer = UNet(shape, *ours_shape).to(options.device), Peer(shape, *peer_shape).to(options.device)
        x, c = torch.randn(batch, *shape, device=options.device), torch.rand(batch, device=options.device)
        calls = {"ours": stepper(ours, x, c, mode), "diffusers": stepper(peer, x, c, mode)}
        times = interleaved(calls, options.repeats, options.device)
        ms = {name: 1e3 * statistics.median(t) / (10 if gpu else 1) for name, t in times.items()}
        row = {
            "case": case,
            "image": image,
            "batch": batch,
            "parameters": size(ours),
            "parameters of diffusers": size(peer),
            "ms a step": round(ms["ours"], 2),
            "ms of diffusers": round(ms["diffusers"], 2),
            "diffusers/ours": round(ratio(times, "diffusers", "ours"), 3),
        }
        if gpu:
            row |= {"mode": mode, "images a second": round(1e3 * batch / ms["ours"])}
            row |= {f"MiB, {name}": round(memory(call, options.device)) for name, call in calls.items()}
        rows.append(row)
        print(row, flush=True)
    file = save("train", options.device, ("scoresde", "torch", "diffusers"), rows)
    print(table(rows), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
