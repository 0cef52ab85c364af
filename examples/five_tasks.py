"""Train, sample with DDPM and with predictor-corrector, and measure the likelihood, in a line or two each.

    python examples/five_tasks.py [STEPS]

The fifth task, a process and a solver of your own, is `own_parts.py`.
"""

import sys

from scoresde import (
    SNR,
    VP,
    Ancestral,
    Karras,
    Langevin,
    Reference,
    ReverseDiffusion,
    ScoreModel,
    Settings,
    draw,
    grid,
    log_prob,
    nn,
    train,
)
from scoresde.data import Digits


def main(steps: int = 300) -> None:
    data, sde = Digits().load(), VP()
    model = ScoreModel(nn.UNet(data.shape), sde, Karras(Reference.fit(data.train)))
    p = sde.reverse(train(model, data, Settings(steps), progress=False))
    ddpm = draw(p, data.shape, grid.uniform(sde, 100), Ancestral(), seeds=range(16))
    pair = draw(p, data.shape, grid.quadratic(sde, 60), Langevin(SNR(0.16)), ReverseDiffusion(), seeds=range(16))
    print(f"mean pixel: data {data.train.mean():.2f}, DDPM {ddpm.mean():.2f}, predictor-corrector {pair.mean():.2f}")
    print(log_prob(p, data.held_out[:32], data.quantized))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
