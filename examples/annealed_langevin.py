"""Annealed Langevin dynamics on images, as Song & Ermon (2019) had it, with a network that comes with the library.

    python examples/annealed_langevin.py [MODEL] [FOLDER]

Ten noise levels from 1 to 0.01 in units of the grey scale, 100 steps at each, of 2e-5 of that unit squared at the last
(their Algorithm 1; here the scale is 2 wide). MODEL, mnist-vp unless said, or the folder of a model of images of one's
own, may have been trained with any process: its network is read on the VE process, as the same density at the same
noise. A row of FOLDER/annealed-langevin.png is an
image at the end of each level, and without its last noise.
"""

import sys
from pathlib import Path

import torch

from scoresde import NCSN, VE, Langevin, grid, load, per_sample, shipped, transport
from scoresde.lab.report import grid_picture
from scoresde.steps import trajectory

LEVELS, STEPS, IMAGES, SCALE = 10, 100, 10, 2.0
FIRST, LAST, STEP = 1.0, 0.01, 2e-5


def main() -> None:
    """Draw."""
    name, folder = (*sys.argv[1:], *("mnist-vp", "runs/annealed-langevin")[len(sys.argv) - 1 :])
    found = load(name if Path(name).is_dir() else shipped(name), dtype=torch.float32)
    sde = VE(SCALE * LAST, SCALE * FIRST)
    p = sde.reverse(transport(found.model, found.model.sde, sde))
    step, noise = Langevin(NCSN(SCALE**2 * STEP, SCALE * LAST), n=STEPS), per_sample(range(IMAGES))
    ts = grid.log_snr(sde, LEVELS - 1)
    _, *states = trajectory(p, sde.prior((IMAGES, *found.shape), noise), ts, step, noise=noise)
    for t, x in zip(ts, states, strict=True):
        print(f"sigma {float(sde.sigma(t)):.3f}: numbers of deviation {float(x.std()):.3f}")
    rows = torch.stack([*states, p.denoise(states[-1], ts[-1])], 1)
    Path(folder).mkdir(parents=True, exist_ok=True)
    grid_picture(rows.flatten(0, 1).clamp(-1, 1), Path(folder) / "annealed-langevin.png", columns=LEVELS + 1)
    print(f"{IMAGES} images by {LEVELS * STEPS} network calls; the picture is in {folder}")


if __name__ == "__main__":
    main()
