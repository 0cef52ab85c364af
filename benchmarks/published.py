"""Two DDPM networks of another author, read as scores: what every part of the library says of them.

    python benchmarks/published.py [--images 32]

Each is read by `interop.from_betas` and looked at by `interop.readings` on test images. The chain: DDPM's own loop,
written out here from the paper (Ho et al. 2020, algorithm 2, sigma_i^2 = beta_i), against `sample` with the same noise.
Bits/dim of test images: along the flow, with its budget, and by Ho et al.'s bound. The solver that `tune` chose for ten
calls, on fresh noise, and the best without a fit where it was chosen. 64 samples of each by the whole chain are drawn
into the results, with E[x_0 | x_t] kept to grey levels on the way, without which these networks drift in brightness.
They are looked for in ../shared/data.
"""

import argparse
from typing import Any

import torch
from foreign import GREY, SHARED, images, published
from harness import RESULTS, save, table
from torch import Tensor

from scoresde import Ancestral, Chain, ScoreModel, draw, elbo, iid, log_prob, sample, tune
from scoresde.interop import readings
from scoresde.lab.report import grid_picture
from scoresde.model import Counted, clamped


def noise(seed: int) -> iid:
    """A new stream."""
    return iid(torch.Generator().manual_seed(seed))


@torch.no_grad()
def ddpm(model: ScoreModel, x: Tensor, seed: int) -> Tensor:
    """Algorithm 2, with the network alone, told whole steps; as far as x_1."""
    betas = model.sde.betas.float()  # type: ignore[attr-defined]
    kept, g = (1 - betas).cumprod(0), torch.Generator().manual_seed(seed)
    for i in range(len(betas) - 1, 0, -1):
        eps = model.net(x, torch.full((len(x),), float(i)))
        mean = (x - betas[i] / (1 - kept[i]).sqrt() * eps) / (1 - betas[i]).sqrt()
        x = mean + betas[i].sqrt() * torch.randn(x.shape, generator=g)
    return x


def row(name: str, n: int) -> dict[str, Any]:
    """What is told of one of them; its samples are drawn."""
    model, x = published(name), images(name, n)
    sde, p = model.sde, model.sde.reverse(model)
    found = readings(model, images(name, 256))
    x_T = torch.randn(4, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    chain = Chain(sde, sde.grid())
    ours, theirs = sample(p, x_T, sde.grid()[:-1], Ancestral(1.0), noise=noise(1)), ddpm(model, x_T, 1)
    flow, bound = log_prob(p, x, GREY, noise=noise(2)), elbo(chain, model, x, GREY, terms=100, noise=noise(3))
    bits, counted = bound.bits_per_dim, Counted(model)
    fitted = tune(sde.reverse(counted, 0.0), x_T[:1], 10)
    made = draw(sde.reverse(clamped(model, sde)), x.shape[1:], sde.grid()[:-1], Ancestral(1.0), seeds=range(64))
    grid_picture(made, RESULTS / f"published-{name}.png")
    (own, error), (best, other) = sorted(found.items(), key=lambda pair: pair[1])[:2]
    assert own == model.predicts
    return {
        "network": name,
        "error as noise": round(error, 3),
        "next best reading": f"{type(best).__name__}: {other:.3f}",
        "ours - DDPM's own loop": f"{float((ours - theirs).norm() / theirs.norm()):.1e}",
        "bits/dim": str(flow).split(" over")[0],
        "budget": ", ".join(f"{k} {v:.1g}" for k, v in flow.budget.items()),
        "network calls": flow.nfe,
        "Ho et al.'s bound": f"{float(bits.mean()):.2f} +- {float(bits.std()) / n**0.5:.2f}",
        "chosen for 10 calls, fresh": f"{fitted.name}: {fitted.fresh}",
        "without a fit, where chosen": f"{fitted.untuned}: {fitted.untuned_validation}",
        "calls of the fit": counted.nfe,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    options = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"left out, as there is no {SHARED}")
    torch.set_num_threads(1)
    rows = []
    for name in ("mnist", "fashion"):
        rows.append(row(name, options.images))
        print(rows[-1], flush=True)
    file = save("published", "cpu", ("scoresde", "torch"), rows)
    print(table(rows), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
