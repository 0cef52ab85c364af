"""What a training says of itself: every fiftieth loss once, however often it was broken off, and losses held out."""

import json

import pytest
import torch

from scoresde import VP, Karras, Quantized, Reference, ScoreModel, Settings, grid
from scoresde.data import Dataset
from scoresde.exact import Gaussian
from scoresde.logbook import LEVELS, Logbook, held_out_loss
from scoresde.nn import MLP
from scoresde.noise import seeded
from scoresde.training import train

SETTINGS = Settings(steps=170, batch=8, lr=1e-3)


def data(n=60, m=10, seed=0):
    x = torch.randn(n + m, 2, generator=torch.Generator().manual_seed(seed))
    return Dataset(x[:n], x[n:])


def model(seed=0, net=None, sde=VP()):
    with seeded(seed):
        return ScoreModel(net or MLP((2,), 8, 1), sde, Karras(Reference(std=1.0)))


def rows(folder):
    return [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]


def run(folder, resume=False, on_step=None, **options):
    train(model(), data(), SETTINGS, folder=folder, resume=resume, progress=False, on_step=on_step, **options)


def test_rows_of_a_training(tmp_path):
    """Every fiftieth loss, the learning rate that it had, and at the end the loss held out at every level."""
    seen = {}
    run(tmp_path, on_step=lambda step, loss: seen.update({step: loss}))
    *losses, last = rows(tmp_path)
    assert [row["step"] for row in losses] == [50, 100, 150, 170]
    for row in losses:
        assert row["loss"] == seen[row["step"]] and row["samples_per_second"] > 0
        assert row["lr"] == 1e-3 * SETTINGS.lr_factor(row["step"])
    assert last["step"] == 170 and len(last["held_out"]) == LEVELS


def test_what_is_broken_off_is_said_once(tmp_path):
    """Killed after the last checkpoint, rows of steps that are taken again are not there twice; interrupted, none is
    lost; and the numbers are those of one training.
    """

    class Killed(Exception):
        pass

    def stop(kind, at):
        def on_step(step, loss):
            if step == at:
                raise kind

        return on_step

    run(tmp_path / "whole")
    for kind, at in ((KeyboardInterrupt, 60), (Killed, 120)):
        with pytest.raises(kind):
            run(tmp_path / "broken", resume=at > 60, on_step=stop(kind, at), save_every=1e9)
    assert [row["step"] for row in rows(tmp_path / "broken") if "loss" in row] == [50, 100]
    run(tmp_path / "broken", resume=True, save_every=1e9)
    whole, broken = rows(tmp_path / "whole"), rows(tmp_path / "broken")
    same = ("step", "loss", "lr", "held_out")
    assert [{k: row.get(k) for k in same} for row in whole] == [{k: row.get(k) for k in same} for row in broken]


def test_lines_of_others_stay(tmp_path):
    """What is no row of a training is not taken out of the file."""
    file = tmp_path / "loss.jsonl"
    file.write_text('my own notes\n[3]\n{"step": 70}\n{"step": 30}\n{"other": 1}')
    Logbook(tmp_path, 50)
    assert file.read_text() == 'my own notes\n[3]\n{"step": 30}\n{"other": 1}\n'
    file.write_text('{"step": 30}\n{"step": 40, "lo')  # of a process that was killed
    Logbook(tmp_path, 50)
    assert file.read_text() == '{"step": 30}\n'


def test_a_training_that_is_finished_says_nothing_again(tmp_path):
    """Nor is a loss held out there twice for one step."""
    run(tmp_path)
    before = rows(tmp_path)
    for _ in range(2):
        run(tmp_path, resume=True)
    assert rows(tmp_path) == before


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_losses_held_out_do_not_depend_on_the_batch(batch):
    """And no more samples go through the network at once."""
    seen, net = [], model()
    net.net.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    found = held_out_loss(net, data(), batch)
    assert found == pytest.approx(held_out_loss(net, data()), rel=1e-5) and max(seen[:8]) <= batch


def test_loss_held_out_is_that_of_the_denoiser():
    """With the exact score of Gaussian data, v = 0.3, E |eps - z|^2 is alpha^2 v / (alpha^2 v + sigma^2)."""
    law, sde = Gaussian(torch.zeros(40), 0.3), VP()
    score = law.diffuse(sde)

    class Exact(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sde, self.net, self.w = sde, torch.nn.Identity(), torch.nn.Parameter(torch.zeros(1))

        def eps(self, x, t):
            return -sde.sigma(t)[:, None] * score(x, t)

    x = law.sample(64, torch.Generator().manual_seed(0)).float()
    found = held_out_loss(Exact(), Dataset(x, x))
    for t, value in zip(grid.log_snr(sde, LEVELS - 1), found.values(), strict=True):
        signal = 0.3 * float(sde.alpha(t)) ** 2
        assert value == pytest.approx(signal / (signal + float(sde.var(t))), rel=5 * (2 / 64 / 40) ** 0.5)


def test_grey_levels_and_labels_held_out():
    """Levels are dequantised, with one noise at all times; a network with classes is told the labels."""
    x, y = torch.randint(9, (20, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8), torch.arange(20) % 3
    grey = Dataset(x, x, y, y, Quantized(9, -1.0, 1.0))
    net = model(net=MLP((2,), 8, 1, classes=3))
    for w in net.parameters():
        w.data.normal_(generator=torch.Generator().manual_seed(1))
    found = held_out_loss(net, grey)
    assert found == held_out_loss(net, grey) and all(v > 0 for v in found.values())
    net.net.embed.label.weight.data[3].add_(5.0)  # of no label
    assert found == held_out_loss(net, grey)


def test_what_is_trained_is_said_first(capsys):
    """The network, the process, the data, and how often all of them are seen; once it is known to fit together."""
    train(model(), data(), Settings(steps=3, batch=20))
    first = capsys.readouterr().err.splitlines()[0]
    assert (
        first.startswith("MLP(width=8, depth=1) of 626 ")
        and "weights, VP(beta_min=0.1, beta_max=20.0, t_min=0.001); 60 samples of 2, as they are" in first
    )
    assert first.endswith("and 10 held out; 3 steps of 20, 1 times all samples, at a learning rate of 0.004")
    with pytest.raises(ValueError, match="net must take samples"):
        train(model(net=MLP((3,), 8, 1)), data(), Settings(steps=3))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("levels", "t_min", "said"), [(256, 1e-3, True), (256, 1e-5, False), (9, 1e-3, False)])
def test_noise_that_hides_levels_is_said_first(capsys, levels, t_min, said):
    """Bits/dim by uniform dequantisation need less noise at the end than a third of a level, 0.0026 of 256 of them."""
    x = torch.randint(levels, (20, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    train(model(sde=VP(t_min=t_min)), Dataset(x, x, quantized=Quantized(levels, -1.0, 1.0)), Settings(steps=1))
    assert ("The least noise, sigma/alpha = 0.01, is not small" in capsys.readouterr().err) == said
