"""`scoresde train`: recipes, first weights of another model, and pictures on the way."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from scoresde import EDM, VE, VP, Quantized, Settings, load, loss, shipped
from scoresde.cli import main
from scoresde.data import Dataset, Digits
from scoresde.nn import MLP, Network, UNet
from scoresde.training import RECIPES, usual_net, usual_settings
from scoresde.values import describe

SMALL = ("--steps", "8", "--warmup", "2", "--batch", "16")


def run(folder, *args):
    return main(["train", "digits", *SMALL, *map(str, args), "--out", str(folder)])


def settings(folder):
    return json.loads((folder / "manifest.json").read_text())["notes"]["settings"]


def weights(folder):
    return load(folder).model.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name):
    """A recipe names a process of its kind and settings of its purpose, as the module says; digits' networks fit."""
    images, process, *likely = name.rsplit("-", 2) if name.endswith("likelihood") else name.rsplit("-", 1)
    recipe, kinds = RECIPES[name], {"vp": "VP", "subvp": "SubVP", "ve": "VE", "edm": "EDM"}
    assert type(recipe.sde).__name__ == kinds[process]
    least = float((-recipe.sde.log_snr(torch.tensor(recipe.sde.t_min, dtype=torch.float64))).exp())
    if likely:
        assert recipe.settings.weight == loss.Unbiased(loss.MaximumLikelihood(), loss.UniformLogSNR())
        assert recipe.settings.times == loss.UniformLogSNR()
        assert least < (2 / 16 if images == "digits" else 2 / 255) / 3
    else:
        assert recipe.settings.weight is None and recipe.settings.times == loss.LogNormal()
    if images == "digits":
        assert recipe.model(Digits().load()).sde == recipe.sde


def test_sizes_of_recipes():
    """What the networks of the recipes weigh: 0.3 million weights for MNIST, 62 million for CIFAR-10."""
    for name, shape, least, most in (("mnist-vp", (1, 28, 28), 0.3, 0.4), ("cifar10-ve", (3, 32, 32), 62, 63)):
        x = torch.randint(256, (4, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        model = RECIPES[name].model(Dataset(x, x, quantized=Quantized(256, -1.0, 1.0)))
        assert least * 1e6 < sum(p.numel() for p in model.parameters()) < most * 1e6


@pytest.mark.parametrize(
    ("shape", "n", "want", "lr", "batch"),
    [
        ((2,), 20_000, MLP((2,), 128), 4e-3, 32),
        ((90,), 10, MLP((90,), 256), 2e-3, 32),
        ((2, 2, 2, 2, 2), 10, MLP((2, 2, 2, 2, 2), 128), 4e-3, 32),
        ((1, 8, 8), 1438, UNet((1, 8, 8)), 4e-3, 32),
        ((1, 28, 28), 10_000, UNet((1, 28, 28), 16, (1, 2, 2)), 4e-3, 64),
        ((1, 28, 28), 9_999, UNet((1, 28, 28), 16, (1, 2, 2)), 4e-3, 32),
        ((3, 32, 32), 10, UNet((3, 32, 32), 32, (1, 2, 2)), 2e-3, 32),
        ((1, 64, 48), 10, UNet((1, 64, 48), 32, (1, 2, 2, 2)), 2e-3, 32),
        ((1, 4), 10, UNet((1, 4)), 4e-3, 32),
        ((2, 100_000), 10, UNet((2, 100_000), 32, (1, 2, 2, 2, 2, 2)), 2e-3, 32),
    ],
)
def test_what_the_data_decide(shape, n, want, lr, batch):
    """Network, learning rate and batch where nothing is said: deeper for larger images, wider for colour, slower for
    wide networks; those of the digits are the demo's.
    """
    net = usual_net(shape, 3)
    assert type(net) is type(want) and net.config == {**want.config, "classes": 3}
    x = torch.zeros(1).expand(n, *shape) if n > 100 else torch.zeros(n, *shape)
    found = usual_settings(net, Dataset(x.to(torch.uint8), x[:0].to(torch.uint8), quantized=Quantized(256, -1.0, 1.0)))
    assert (found.lr, found.batch) == (lr, batch)
    own = Network(width=[32, 64])
    assert usual_settings(own, Dataset(torch.randn(9, 2), torch.randn(1, 2))) == Settings()
    assert usual_settings(nn.Linear(2, 2), Dataset(torch.randn(9, 2), torch.randn(1, 2))) == Settings()


def test_what_is_said_before_training(tmp_path, capsys):
    """The network with its arguments and size, the data, and the settings; what is typed counts more."""
    assert main(["train", "Ring(n=200)", "--steps", "2", "--warmup", "1", "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err
    assert "MLP(width=128, depth=4) of " in said and "2 steps of 32" in said and "learning rate of 0.004" in said
    line = ["train", "Ring(n=200)", "--net", "MLP(width=512, depth=1)", "--steps", "2", "--warmup", "1"]
    assert main([*line, "--out", str(tmp_path / "b")]) == 0 and settings(tmp_path / "b")["lr"] == 1e-3
    assert main([*line, "--lr", "0.01", "--out", str(tmp_path / "c")]) == 0 and settings(tmp_path / "c")["lr"] == 0.01


def test_a_recipe_is_what_is_not_said(tmp_path):
    """Process, network and settings are the recipe's, but for those that are typed; its objective stays unbiased under
    other times.
    """
    assert run(tmp_path / "a", "--recipe", "digits-ve-likelihood", "--views", 1) == 0
    recipe, found = RECIPES["digits-ve-likelihood"], load(tmp_path / "a").model
    assert found.sde == recipe.sde == VE(0.01, 20.0) and found.net.config["dropout"] == 0.1
    assert settings(tmp_path / "a") == describe(replace(recipe.settings, steps=8, warmup=2, batch=16))
    args = ("--sde", "edm", "--times", "UniformTime", "--lr", 0.01, "--seed", 3, "--net", "UNet(width=8)")
    assert run(tmp_path / "b", "--recipe", "digits-ve-likelihood", *args, "--views", 1) == 0
    found = load(tmp_path / "b").model
    assert found.sde == EDM() and found.net.config["width"] == 8
    own = Settings(8, 16, lr=0.01, warmup=2, weight=loss.MaximumLikelihood(), times=loss.UniformTime(), seed=3)
    assert settings(tmp_path / "b") == describe(own)


def test_the_clock_of_a_recipe(tmp_path):
    """NCSN++ is told log sigma, also a smaller one that is named beside the recipe."""
    net, sde = "NCSNpp(width=4, multipliers=(1,2), blocks=1)", RECIPES["cifar10-ve"].sde
    assert run(tmp_path / "a", "--recipe", "cifar10-ve", "--net", net, "--views", 0) == 0
    found, t = load(tmp_path / "a").model, torch.tensor([0.1, 1.0], dtype=torch.float64)
    assert found.sde == sde
    torch.testing.assert_close(found.clock(sde, t), sde.sigma(t).log(), rtol=1e-12, atol=0)


def test_a_recipe_trains_as_its_parts(tmp_path):
    """The recipe's name and its parts typed out give the same weights."""
    typed = ("--sde", "VE(0.01, 20)", "--times", "UniformLogSNR", "--weight", "MaximumLikelihood")
    assert run(tmp_path / "a", "--recipe", "digits-ve-likelihood", "--views", 1) == 0
    assert run(tmp_path / "b", *typed, "--net", "UNet(dropout=0.1)", "--views", 1) == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_what_is_typed_is_kept(tmp_path):
    """A weight that is typed unbiased stays so, and a recipe's warm-up is not longer than a short training."""
    args = ("--weight", "Unbiased(Simple(), UniformLogSNR())", "--times", "UniformLogSNR", "--views", 0)
    assert run(tmp_path / "a", "--net", "UNet(width=8)", *args) == 0
    assert settings(tmp_path / "a")["weight"] == describe(loss.Unbiased(loss.Simple(), loss.UniformLogSNR()))
    line = ["train", "digits", "--recipe", "cifar10-vp", "--net", "UNet(width=8)", "--steps", "20", "--batch", "4"]
    assert main([*line, "--views", "0", "--out", str(tmp_path / "b")]) == 0
    assert settings(tmp_path / "b")["warmup"] == 2 and not list(tmp_path.glob("*/*.png"))


def test_a_picture_that_fails_ends_no_training(tmp_path, monkeypatch, capsys):
    """It is told, and the training goes on."""
    monkeypatch.setattr("scoresde.cli.train.draw", lambda *a, **k: 1 / 0)
    assert run(tmp_path / "a", "--net", "UNet(width=8)", "--views", 1) == 0
    assert "no picture of step 8: division by zero" in capsys.readouterr().err and load(tmp_path / "a")


def test_init(tmp_path):
    """Training begins with the network of another checkpoint: with a learning rate of almost nothing it stays that;
    another process may be trained with it.
    """
    assert run(tmp_path / "a", "--init", "digits-vp", "--lr", 1e-12, "--views", 1) == 0
    first, after = load(shipped("digits-vp"), dtype=torch.float32).model, load(tmp_path / "a").model
    assert after.sde == VP()
    for k, v in after.state_dict().items():
        torch.testing.assert_close(v, first.state_dict()[k], rtol=0, atol=1e-6)
    assert run(tmp_path / "b", "--init", tmp_path / "a", "--sde", "edm", "--views", 1) == 0
    assert load(tmp_path / "b").model.sde == EDM() and not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--recipe", "digits"), "recipe must be one of digits-vp, digits-vp-likelihood, .*, got 'digits'"),
        (("--init", "mnist"), r"init must be of samples of shape \(1, 8, 8\), got one of \(1, 28, 28\)"),
        (("--init", "digits-vp", "--net", "UNet"), "net and conditional must not be given beside init"),
        (("--init", "digits-vp", "--conditional"), "net and conditional must not be given beside init"),
        (("--accumulate", 3), "accumulate must divide the 16 samples"),
        (("--views", -1), "views must be a whole number >= 0, got -1"),
    ],
)
def test_errors(tmp_path, capsys, args, said):
    """What does not fit is named, in one line, and nothing is written."""
    assert run(tmp_path / "a", *args) == 2
    err = capsys.readouterr().err
    assert re.search(f"scoresde: {said}", err) and not list(tmp_path.glob("a/[!.]*"))


def test_pictures_on_the_way(tmp_path):
    """As many as asked for, after equal numbers of steps, and they move no weight."""
    for folder, n in (("a", 1), ("b", 4)):
        assert run(tmp_path / folder, "--net", "UNet(width=8)", "--views", n) == 0
        found = sorted(f.name for f in (tmp_path / folder).glob("*.png"))
        assert found == [f"samples-{8 * (k + 1) // n:07d}.png" for k in range(n)]
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.slow
def test_compiled(tmp_path):
    """--compile trains the same network, to rounding, and writes a checkpoint that needs no compiler."""
    for folder, more in (("plain", ()), ("compiled", ("--compile",))):
        assert run(tmp_path / folder, "--net", "MLP(width=4, depth=1)", "--views", 1, *more) == 0
    plain, compiled = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    for k, v in plain.items():
        torch.testing.assert_close(compiled[k], v, rtol=0, atol=2e-3)
