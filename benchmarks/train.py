"""A training step of scoresde.nn.UNet against diffusers' UNet2DModel: forward, backward and Adam, on the same batch.

    python benchmarks/train.py [--repeats 15] [--device cuda]

A ratio above 1 says that ours is faster. "equal parameters": both have the same number of parameters to 4 %, each in
its own shape; "equal channels": both have the same channels at each resolution, so ours has fewer parameters.
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


def stepper(net: nn.Module, x: Tensor, c: Tensor) -> Callable[[], None]:
    """One training step, as a function."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        (net(x, c) - x).square().mean().backward()
        optimizer.step()

    return step


def size(net: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in net.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case, shape, batch, ours_shape, peer_shape in CASES:
        ours, peer = UNet(shape, *ours_shape).to(options.device), Peer(shape, *peer_shape).to(options.device)
        x, c = torch.randn(batch, *shape, device=options.device), torch.rand(batch, device=options.device)
        calls = {"ours": stepper(ours, x, c), "diffusers": stepper(peer, x, c)}
        times = interleaved(calls, options.repeats, options.device)
        rows.append(
            {
                "case": case,
                "image": "x".join(map(str, shape)),
                "batch": batch,
                "parameters": size(ours),
                "parameters of diffusers": size(peer),
                "ms a step": round(1e3 * statistics.median(times["ours"]), 2),
                "ms of diffusers": round(1e3 * statistics.median(times["diffusers"]), 2),
                "diffusers/ours": round(ratio(times, "diffusers", "ours"), 3),
            }
        )
        print(rows[-1], flush=True)
    file = save("train", options.device, ("scoresde", "torch", "diffusers"), rows)
    print(table(rows), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
