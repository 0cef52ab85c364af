"""A training loop of your own around `dsm`, and a network of your own: nothing has to be subclassed.

    python examples/train_your_own.py

The network is any nn.Module called as net(x, c); the times of a batch are drawn here, by the caller.
"""

import torch
from torch import Tensor, nn

from scoresde import VP, GaussianReference, Karras, Reference, ScoreModel, draw, dsm, grid, log_prob, loss
from scoresde.data import Moons


class Net(nn.Module):
    """Three layers that see x and the log-SNR."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([x, c[:, None] / 4], 1))
        return out


def main(steps: int = 1000) -> None:
    torch.manual_seed(0)
    data, sde = Moons().load(), VP()
    around = Reference.fit(data.train)
    model = ScoreModel(Net(), sde, Karras(around))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(steps):
        x_0 = data.train[torch.randint(len(data.train), (256,))]
        value = dsm(model, x_0, loss.LogNormal().draw(sde, len(x_0), stratified=True)).mean()
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step}: loss {value.item():.3f}")
    print(f"held out: {log_prob(sde.reverse(model), data.held_out[:500])}")
    ts = grid.reference(sde, 20, around=around)
    x = draw(sde.reverse(model, eta=0), (2,), ts, GaussianReference(around), seeds=range(1000))
    print(f"{len(x)} samples with standard deviations {x.std(0).tolist()}")


if __name__ == "__main__":
    main()
