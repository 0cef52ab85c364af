"""A training loop of your own around `dsm`, and a network of your own: nothing has to be subclassed.

    python examples/train_your_own.py

The network is any nn.Module called as net(x, c); the times of a batch are drawn here, by the caller.
"""

import torch
from torch import Tensor, nn

from scoresde import VP, Flow, Karras, ScoreModel, dsm, grid, log_prob, loss, ode, sample
from scoresde.data import Moons


class Net(nn.Module):
    """Three layers that see x and the log-SNR."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.layers(torch.cat([x, c[:, None] / 4], 1))


def main(steps: int = 1000) -> None:
    torch.manual_seed(0)
    data, sde = Moons().load(), VP()
    model = ScoreModel(Net(), sde, Karras(float(data.train.std())))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(steps):
        x_0 = data.train[torch.randint(len(data.train), (256,))]
        t = loss.LogNormal().draw(sde, len(x_0), stratified=True)
        value = dsm(model, x_0, t, loss.Karras(float(data.train.std()))).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step}: loss {value.item():.3f}")
    q = sde.reverse(model, eta=0)
    print(f"held out: {log_prob(q, data.held_out[:500])}")
    x = sample(q, sde.prior((1000, 2), dtype=torch.float32), grid.karras(sde, 20), Flow(ode.Heun()))
    print(f"{len(x)} samples with standard deviations {x.std(0).tolist()}")


if __name__ == "__main__":
    main()
