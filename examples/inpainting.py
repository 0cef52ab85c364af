"""The lower half of digits from the upper half, by a network that never saw such a task.

    python examples/inpainting.py [FOLDER]

Held-out digits of which the upper half is measured with a little noise; for each the digit, what is known, eight
samples of p(x | y) by moment matching on the shipped network, their mean and their deviation. Drawn into
FOLDER/inpainting.png.
"""

import sys
from pathlib import Path

import torch

from scoresde import Ancestral, grid, iid, load, sample, shipped
from scoresde.data import Digits
from scoresde.inverse import Mask, Observation, mmps
from scoresde.lab.report import grid_picture

SAMPLES, CHOSEN = 8, (0, 3, 7, 12, 20)


def main() -> None:
    """Sample, and draw."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/inpainting")
    folder.mkdir(parents=True, exist_ok=True)
    model, data, g = load(shipped("digits-vp")).model.float(), Digits().load(), torch.Generator().manual_seed(0)
    keep = torch.zeros(1, 8, 8, dtype=torch.bool)
    keep[:, :4] = True
    A, sde, ts, rows = Mask(keep), model.sde, grid.log_snr(model.sde, 100), []
    for k in CHOSEN:
        x = data.values(data.held_out[k : k + 1])
        seen = Observation.of(A, x, 0.05, g)
        p = sde.reverse(mmps(model, Observation(A, seen.y[0], 0.05), 5))
        x_T = sde.prior((SAMPLES, 1, 8, 8), iid(g), torch.float32)
        made = p.denoise(sample(p, x_T, ts, Ancestral(1.0), noise=iid(g)), ts[-1]).clamp(-1, 1)
        known = torch.where(keep, A.adjoint(seen.y), torch.full_like(x, -1.0))
        spread = 2 * made.std(0, keepdim=True) - 1
        rows += [x, known, made, made.mean(0, keepdim=True), spread]
        error = float((A(made) - seen.y).square().mean().sqrt())
        print(
            f"digit {k}: {error:.3f} off what was measured, whose noise is 0.05; "
            f"deviation {float(made.std(0).mean()):.3f}"
        )
    title = "digit, known, eight samples, mean, deviation"
    grid_picture(torch.cat(rows), folder / "inpainting.png", title, SAMPLES + 4)
    print(f"drawn into {folder / 'inpainting.png'}")


if __name__ == "__main__":
    main()
