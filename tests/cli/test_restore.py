"""Inverse problems and paths from the command line: the library's numbers, what was measured kept exactly, and one line
where something is wrong.
"""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import VP, Ancestral, Quantized, Reference, ScoreModel, draw, edit, grid, load, shipped
from scoresde.checkpoint import Checkpoint
from scoresde.cli import main, parts
from scoresde.cli.folder import Folder
from scoresde.data import Digits
from scoresde.guide import Guided
from scoresde.inverse import DAPS, DDRM, DPS, Average, Grey, Mask, Observation, Replacement, diffpir, mmps, pigdm
from scoresde.lab import report
from scoresde.likelihood import Adams
from scoresde.model import Karras
from scoresde.noise import seeds

FAST = ("--images", "3", "--n", "3", "--steps", "5")
MEAN, STD = 0.1, 0.4


class Nothing(torch.nn.Module):
    """A network that has nothing to add to its Gaussian, but under a label."""

    classes = 3

    def forward(self, x, t, label=None):
        shift = 0 if label is None else torch.where(label >= 0, label, 0).to(x).view(-1, 1, 1, 1)
        return torch.zeros_like(x) + shift


def gaussian():
    """A model of N(m, c^2 I) on images of three channels."""
    around = Reference(MEAN, STD)
    model = ScoreModel(Nothing(), VP(), Karras(around))
    return Checkpoint(model, (3, 4, 6), Quantized(256, -1.0, 1.0), around=around)


@pytest.fixture(scope="module")
def digits():
    data = Digits().load()
    return load(shipped("digits-vp")).model.float(), data.values(data.held_out)


def done(out, *args):
    """The arrays that a command leaves."""
    assert main([*map(str, args), "--out", str(out)]) == 0
    return {f.stem: torch.from_numpy(np.load(f)) for f in out.glob("*.npy")}


def told(capsys):
    """The network calls that were told, and how far A x was from y."""
    said = capsys.readouterr().out
    return int(re.search(r"(\d+) network calls", said)[1]), float(re.search(r"A x - y is ([\d.e-]+)", said)[1])


def upper():
    keep = torch.zeros(1, 8, 8, dtype=torch.bool)
    keep[:, :4] = True
    return Mask(keep)


def contents(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir() if not f.name.startswith(".")}


def png(file, x):
    """Write levels (C, H, W) on [-1, 1] as an image."""
    levels = ((x + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(levels.squeeze(-1) if levels.shape[-1] == 1 else levels).save(file)
    return file


METHODS = {
    "pigdm": lambda score, seen: (pigdm(score, seen), Ancestral(1.0)),
    "mmps(iterations=2)": lambda score, seen: (mmps(score, seen, 2), Ancestral(1.0)),
    "diffpir(weight=2)": lambda score, seen: (diffpir(score, seen, 2.0), Ancestral(1.0)),
    "DDRM(eta=0.5)": lambda score, seen: (score, DDRM(seen, 0.5)),
    "daps": lambda score, seen: (score, DAPS(seen)),
    "DPS(zeta=0.5)": lambda score, seen: (score, DPS(Ancestral(1.0), seen, 0.5)),
    "Replacement(times=2)": lambda score, seen: (score, Replacement(Ancestral(1.0), seen, 2)),
}


@pytest.mark.parametrize("method", METHODS)
def test_inpaint_is_the_library(capsys, tmp_path, digits, method):
    """Sample j of image i is that of the seed 3 i + j given what was measured of image i, with the noise that was asked
    for; whatever the batch, to rounding, and for mmps, whose conjugate gradients stop by it, to 3e-3. Mean and
    deviation are those of the samples.
    """
    model, x = digits
    most = 3e-3 if method.startswith("mmps") else 1e-4
    args = ("inpaint", "digits-vp", *FAST, "--std", 0.1, "--seed", 7, "--method", method)
    found = done(tmp_path / "a", *args)
    calls, off = told(capsys)
    y = found["measured"]
    want = []
    for i in range(3):
        score, step = METHODS[method](model, Observation(upper(), y[i], 0.1))
        p, own = model.sde.reverse(score), seeds(7, 3, 3 * i)
        want.append(draw(p, (1, 8, 8), grid.log_snr(model.sde, 5), step, seeds=own))
    got = found["samples"]
    torch.testing.assert_close(got, torch.stack(want), rtol=most, atol=most)
    assert off == pytest.approx(float((got[:, :, :, :4].flatten(2) - y[:, None]).square().mean().sqrt()), rel=1e-2)
    assert calls == (11 if "times" in method else 6) and got.shape == (3, 3, 1, 8, 8)
    same = done(tmp_path / "b", *args, "--batch", 1)
    torch.testing.assert_close(same["samples"], got, rtol=most, atol=most)
    torch.testing.assert_close(found["mean"], got.mean(1))
    torch.testing.assert_close(found["deviation"], got.std(1))
    assert torch.equal(found["known"], upper().keep) and torch.equal(same["measured"], y)


def test_noise_of_what_is_measured(tmp_path, digits):
    """y = A x + std z: over 60 images z has the deviation 1 within five standard errors, and is another for each image
    and seed; one sample has no deviation.
    """
    _, x = digits
    args = ("inpaint", "digits-vp", "--images", 60, "--n", 1, "--steps", 2, "--method", "ddnm", "--std", 0.3)
    found = done(tmp_path / "a", *args)
    z = (found["measured"] - upper()(x[:60])) / 0.3
    assert abs(float(z.square().mean().sqrt()) - 1) < 5 / (2 * z.numel()) ** 0.5
    assert float(torch.corrcoef(z)[0, 1:].abs().max()) < 0.7
    assert "deviation" not in found and torch.equal(found["mean"], found["samples"][:, 0])
    assert not torch.equal(done(tmp_path / "b", *args, "--seed", 1)["measured"], found["measured"])


@pytest.mark.parametrize("method", ["pigdm", "ddnm", "DPS", "replacement"])
def test_known_pixels_are_exact_without_noise(capsys, tmp_path, digits, method):
    """They are the image's, to the last bit, whatever the method; what is said is how far samples were before."""
    _, x = digits
    found = done(tmp_path / "a", "inpaint", "digits-vp", *FAST, "--method", method)
    assert torch.equal(found["samples"][:, :, :, :4], x[:3, None, :, :4].expand(-1, 3, -1, -1, -1))
    assert not torch.equal(found["samples"][:, :, :, 4:], x[:3, None, :, 4:].expand(-1, 3, -1, -1, -1))
    _, off = told(capsys)
    assert off < 1e-6 if method == "ddnm" else 1e-4 < off < 1


KEPT = {
    "upper": lambda y, x: y < 4,
    "lower": lambda y, x: y >= 4,
    "left": lambda y, x: x < 4,
    "right": lambda y, x: x >= 4,
    "border": lambda y, x: (y < 2) | (y > 5) | (x < 2) | (x > 5),
}


def test_what_is_kept(tmp_path, digits):
    """The sides of an image, all but its middle, a share of the pixels that the seed chooses, or what is white in a
    file; what is measured are those numbers.
    """
    _, images = digits
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    few = ("inpaint", "digits-vp", "--images", 2, "--n", 1, "--steps", 1)
    for word, where in KEPT.items():
        found = done(tmp_path / word, *few, "--keep", word)
        assert torch.equal(found["known"][0], where(y, x)), word
        assert torch.equal(found["measured"], Mask(found["known"])(images[:2]))
    some = [done(tmp_path / f"0.3 {seed}", *few, "--keep", 0.3, "--seed", seed)["known"] for seed in (0, 1)]
    assert [int(keep.sum()) for keep in some] == [19, 19] and not torch.equal(*some)
    levels = torch.where(some[0], 200.0, 60.0).to(torch.uint8)[0]
    Image.fromarray(levels.numpy()).save(tmp_path / "mask.png")
    found = done(tmp_path / "file", *few, "--mask", tmp_path / "mask.png")
    assert torch.equal(found["known"], some[0])


def test_superres(tmp_path, digits):
    """Means over blocks are kept to rounding without noise; a small image is what was measured, and its samples are
    those of the large one that it was made of.
    """
    _, x = digits
    A = Average((1, 8, 8), 4)
    found = done(tmp_path / "a", "superres", "digits-vp", *FAST, "--factor", 4)
    torch.testing.assert_close(found["measured"], A(x[:3]))
    torch.testing.assert_close(A(found["samples"].flatten(0, 1)), found["measured"].repeat_interleave(3, 0))
    large = torch.where(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5, 1.0, -1.0)
    large = large[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    same = ("superres", "digits-vp", "--n", 2, "--steps", 3)
    whole = done(tmp_path / "whole", *same, "--image", png(tmp_path / "large.png", large))
    small = done(tmp_path / "small", *same, "--image", png(tmp_path / "small.png", large[:, ::2, ::2]))
    assert torch.equal(whole["measured"], small["measured"]) and torch.equal(whole["samples"], small["samples"])
    assert torch.equal(small["measured"].view(4, 4), large[0, ::2, ::2])


def test_colours_of_a_gaussian(tmp_path):
    """Data N(m, c^2 I) have the posterior N(m + A^+ (y - A m), c^2 (I - A^+ A)), which `pigdm` samples: mean and
    deviation of 400 samples are those within five standard errors, and the mean over channels is what was measured. A
    grey file gives the same as the grey of one in colour; a label reaches the network.
    """
    model = f"{__name__}:gaussian"
    x = torch.randint(0, 256, (3, 4, 6), generator=torch.Generator().manual_seed(1)) / 127.5 - 1
    n, args = 400, ("colorize", model, "--steps", 60)
    found = done(tmp_path / "a", *args, "--n", n, "--image", png(tmp_path / "x.png", x))
    A, y = Grey((3, 4, 6)), x.mean(0).view(1, -1)
    torch.testing.assert_close(found["measured"], y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(A(found["samples"][0]), y.expand(n, -1), rtol=1e-4, atol=1e-5)
    deviation = STD * (2 / 3) ** 0.5
    assert (found["mean"][0] - x.mean(0)).abs().max() < 5 * deviation / n**0.5
    assert (found["deviation"] / deviation - 1).abs().max() < 5 / (2 * n) ** 0.5 + 0.03
    grey = png(tmp_path / "grey.png", torch.linspace(-1, 1, 24).view(1, 4, 6))
    plain, one, two = (
        done(tmp_path / f"grey {k}", *args, "--n", 2, "--image", grey, *label)
        for k, label in enumerate([(), ("--label", 1), ("--label", 2)])
    )
    assert plain["measured"].shape == (1, 24) and plain["measured"].unique().numel() == 24
    assert not any(torch.equal(a["samples"], b["samples"]) for a, b in ((plain, one), (one, two)))


def test_image_files(tmp_path, digits):
    """A grey image stays grey, however it is stored, and levels are those of the data; a mask hides the rest of it."""
    x = torch.randint(0, 256, (1, 8, 8), generator=torch.Generator().manual_seed(2)) / 127.5 - 1
    args = ("inpaint", "digits-vp", "--n", 2, "--steps", 2, "--keep", "left", "--image")
    one = done(tmp_path / "a", *args, png(tmp_path / "grey.png", x))
    three = done(tmp_path / "b", *args, png(tmp_path / "rgb.png", x.expand(3, -1, -1)))
    assert torch.equal(one["samples"], three["samples"]) and one["samples"].shape == (1, 2, 1, 8, 8)
    torch.testing.assert_close(one["measured"].view(8, 4), x[0, :, :4])


@pytest.mark.parametrize("after", [1, 2, 3, 5, 7])
def test_interrupted(monkeypatch, tmp_path, digits, after):
    """Stopped after any file and called again, a command leaves what an uninterrupted one does, byte for byte, and
    nothing is drawn twice; a third call does nothing, and other options are refused.
    """
    args = ("inpaint", "digits-vp", *FAST, "--batch", 1)
    done(tmp_path / "whole", *args)
    real, written = Folder.keep, []

    def keep(self, name, content):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(name)
        real(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "keep", keep)
        assert main([*map(str, args), "--out", str(tmp_path / "cut")]) == 130
    drawn = [name for name in written if name.startswith("part-")]
    assert len(drawn) == min(after, 3) and not (tmp_path / "cut" / "samples.npy").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "keep", lambda self, name, content: (written.append(name), real(self, name, content))[1])
        done(tmp_path / "cut", *args)
    drawn = [name for name in written if name.startswith("part-")]
    assert len(drawn) == len(set(drawn)) == 3
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    before = contents(tmp_path / "whole")
    done(tmp_path / "whole", *args)
    assert main([*map(str, args), "--seed", "1", "--out", str(tmp_path / "whole")]) == 2
    assert contents(tmp_path / "whole") == before


def test_pictures(monkeypatch, tmp_path):
    """A row of each image: the truth, what was measured with what is not known in a colour that no grey has, at most
    six samples, their mean, and their deviation from black, which is none, to white, the largest one, which is stated.
    """
    seen = []
    monkeypatch.setattr(report, "gallery", lambda groups, file: seen.append(groups))
    found = done(tmp_path / "a", "inpaint", "digits-vp", "--images", 2, "--n", 8, "--steps", 3)
    ((truth, measured, samples, mean, deviation),) = seen
    assert [title for title, _ in (truth, measured, samples, mean)] == ["truth", "measured", "samples", "mean"]
    assert measured[1].shape == (2, 1, 3, 8, 8) and samples[1].shape == (2, 6, 1, 8, 8)
    assert torch.equal(measured[1][:, 0, :, :4], truth[1][:, 0, :, :4].expand(-1, 3, -1, -1))
    assert (measured[1][:, 0, 0, 4:] != measured[1][:, 0, 2, 4:]).all()
    top = float(found["deviation"].max())
    assert deviation[0] == f"deviation\n0 to {top:.2g}"
    torch.testing.assert_close((deviation[1][:, 0] + 1) / 2 * top, found["deviation"])
    monkeypatch.undo()
    picture = report.gallery([("a", torch.zeros(2, 1, 1, 4, 4)), ("b", torch.ones(2, 3, 3, 4, 4))], tmp_path / "x.png")
    assert picture is None and np.asarray(Image.open(tmp_path / "x.png").convert("L")).std() > 20


def test_interpolate_is_the_library(capsys, tmp_path, digits):
    """The states are those of `edit.interpolate`, and what is told is `edit.round_trip`; two files of the same images
    give the same path to their levels.
    """
    model, x = digits
    found = done(tmp_path / "a", "interpolate", "digits-vp", "--images", 3, 8, "--n", 5)["samples"]
    said = capsys.readouterr().out
    p, around = model.sde.reverse(model, 0.0), load(shipped("digits-vp")).around
    want = edit.interpolate(p, x[3:4], x[8:9], 5, Adams(40), around)[:, 0]
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    off = edit.round_trip(p, x[[3, 8]], Adams(40), around)
    told = [float(v) for v in re.search(r"brings both back ([\d.e-]+) and ([\d.e-]+) off", said).groups()]
    assert told == pytest.approx(off.tolist(), rel=0.3) and max(told) < 0.01
    assert (found[[0, -1]] - x[[3, 8]]).abs().max() < 0.01 and "5 states" in said
    files = [png(tmp_path / f"{k}.png", x[k]) for k in (3, 8)]
    other = done(tmp_path / "b", "interpolate", "digits-vp", "--image", *files, "--n", 5)["samples"]
    assert (other - found).abs().max() < 0.5 and (other[[0, -1]] - x[[3, 8]]).abs().max() < 0.02
    assert sorted(contents(tmp_path / "a")) == ["picture.png", "recipe.json", "samples.npy"]
    before = contents(tmp_path / "a")
    done(tmp_path / "a", "interpolate", "digits-vp", "--images", 3, 8, "--n", 5)
    assert "complete already" in capsys.readouterr().out and contents(tmp_path / "a") == before


# what is typed


def seen():
    return Observation(upper(), torch.zeros(32), 0.1)


def test_methods_are_typed_as_in_python(digits):
    """Every method of `scoresde.inverse` that needs a score or a step and what was measured, in capitals or not, with
    its options by name; and functions and steps of one's own.
    """
    model, step = digits[0], Ancestral(1.0)
    for text in (
        "pigdm",
        "mmps",
        "ddnm",
        "diffpir",
        "PiGDM".lower(),
        "mmps(iterations=3)",
        "pigdm(around=Reference())",
    ):
        score, same = parts.read_method(text)(model, seen(), step)
        assert isinstance(score, Guided) and same is step
    for text, kind in (("DPS", DPS), ("dps(zeta=0.5)", DPS), ("replacement(times=3)", Replacement)):
        score, made = parts.read_method(text)(model, seen(), step)
        assert score is model and isinstance(made, kind) and made.step is step
    assert made.times == 3 and repr(parts.read_method("replacement( times = 3)")) == "Replacement(times=3)"
    score, _ = parts.read_method(f"{__name__}:half")(model, seen(), step)
    assert isinstance(score, Guided)


def half(score, seen):
    """A method of one's own."""
    return pigdm(score, seen)


def far(score, seen):
    """A method that leads away."""
    return Guided([score], lambda ask, x, t, cond: ask(0, x, t) + 3.0)


def test_samples_far_beyond_black_and_white_are_told(capsys, tmp_path):
    """One line warns of a method that has not held; none does otherwise."""
    for method in ("pigdm", f"{__name__}:far"):
        done(tmp_path / method[-3:], "inpaint", "digits-vp", *FAST, "--method", method)
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scoresde: warning: samples")]
        assert len(said) == (method != "pigdm")
        assert not said or "grey levels from -1 to 1: take more --steps or another --method" in said[0]


def test_a_method_that_takes_noise_for_truth_is_told(capsys, tmp_path):
    """One line warns of samples that reproduce the noise of y; and a run that is called again says what it said."""
    for method in ("ddnm", "diffpir"):
        done(tmp_path / method, "inpaint", "digits-vp", *FAST, "--method", method, "--std", 0.3)
        out, err = capsys.readouterr()
        assert ("where y has noise of 0.3: the method takes y as exact" in err) == (method == "ddnm")
        done(tmp_path / method, "inpaint", "digits-vp", *FAST, "--method", method, "--std", 0.3, "--keep", "upper")
        assert capsys.readouterr().out.splitlines()[-1] == out.splitlines()[-1]


def nothing(score, seen):
    """A method that makes nothing."""


BAD = {
    "unnamed": ("inpaint digits-vp --method diffpir(2)", "options must be named, as in diffpir(weight=2), got 2"),
    "as needed": ("interpolate digits-vp --method AsNeeded(0.1)", "method must be a value such as Adams"),
    "no samples": ("inpaint digits-vp --n 0", "n must be a whole number >= 1, got 0"),
    "negative": ("superres digits-vp --n -2", "n must"),
    "no steps": ("inpaint digits-vp --steps 0", "steps must"),
    "no batch": ("inpaint digits-vp --batch 0", "batch must"),
    "no images": ("inpaint digits-vp --images 0", "images must be a whole number >= 1"),
    "too many images": ("inpaint digits-vp --images 9999", "images must be a whole number >= 1 and <= 359"),
    "negative noise": ("inpaint digits-vp --std -1", "std must"),
    "noise nan": ("inpaint digits-vp --std nan", "std must"),
    "no model": ("inpaint NONE", "checkpoint must"),
    "model of points": ("inpaint tests_none:nothing", "model must"),
    "label": ("inpaint digits-vp --label 3", "label must not be given, since the network has no classes"),
    "image and images": ("inpaint digits-vp --image WIDE --images 3", "images must not be given beside image"),
    "image and data": ("inpaint digits-vp --image WIDE --data digits", "data must not be given beside image"),
    "wrong size": ("inpaint digits-vp --image WIDE", "image must have the model's shape, (1, 8, 8), got (1, 8, 10)"),
    "colours": ("inpaint digits-vp --image COLOUR", "image must have the model's shape, (1, 8, 8), got (3, 8, 8)"),
    "small of another size": (
        "superres digits-vp --image WIDE",
        "image must have the model's shape, (1, 8, 8) or",
    ),
    "no image": ("inpaint digits-vp --image NONE", "image must be the file of an image"),
    "broken image": ("inpaint digits-vp --image TEXT", "image must be the file of an image"),
    "mask and keep": ("inpaint digits-vp --mask WIDE --keep upper", "keep must not be given beside mask"),
    "mask of another size": ("inpaint digits-vp --mask WIDE", "mask must have 8 x 8 pixels, got 8 x 10"),
    "black mask": ("inpaint digits-vp --mask BLACK", "pixels must be known, got none"),
    "no mask": ("inpaint digits-vp --mask NONE", "mask must be the file of an image"),
    "side": ("inpaint digits-vp --keep top", "keep must be one of upper, lower, left, right, border, or a share above"),
    "share": ("inpaint digits-vp --keep 1.5", "keep must be one of upper"),
    "share nan": ("inpaint digits-vp --keep nan", "keep must be one of upper"),
    "grey": ("colorize digits-vp", "model must be of images of 3 channels to be coloured, got one of shape (1, 8, 8)"),
    "factor": ("superres digits-vp --factor 3", "factor must divide the 8 x 8 pixels of the model, got 3"),
    "no factor": ("superres digits-vp --factor 1", "factor must be a whole number >= 2"),
    "method": (
        "inpaint digits-vp --method magic",
        "method must be one of DAPS, DDRM, DPS, Replacement, ddnm,",
    ),
    "particles": ("inpaint digits-vp --method twisted", "method must be one of"),
    "option": ("inpaint digits-vp --method pigdm(weight=2)", "weight"),
    "value": ("inpaint digits-vp --method diffpir(weight=-1)", "weight must be a finite number > 0, got -1"),
    "by place": ("inpaint digits-vp --method DPS(0.5)", "method must"),
    "nothing made": (f"inpaint digits-vp --method {__name__}:nothing", "method must make a score of what was measured"),
    "only masks": ("superres digits-vp --method Replacement", "seen must be through a Mask, got Average"),
    "one state": ("interpolate digits-vp --n 1", "n must be a whole number >= 2"),
    "no such image": ("interpolate digits-vp --images 0 359", "images must be among the 359 that are held out"),
    "before the first": ("interpolate digits-vp --images -1 3", "images must be among"),
    "flow": ("interpolate digits-vp --method vp", "method must"),
    "wrong end": ("interpolate digits-vp --image WIDE WIDE", "image must have the model's shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(capsys, tmp_path, case):
    """One line that says what is wrong, status 2, and no folder."""
    line, says = BAD[case]
    files = {name: tmp_path / f"{name}.png" for name in ("WIDE", "COLOUR", "BLACK", "TEXT", "NONE")}
    Image.new("L", (10, 8), 200).save(files["WIDE"])
    Image.new("RGB", (8, 8), (200, 0, 0)).save(files["COLOUR"])
    Image.new("L", (8, 8), 0).save(files["BLACK"])
    files["TEXT"].write_text("no image")
    args = [str(files.get(word, word)) for word in line.split()]
    assert main([*args, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("scoresde: ") and says in err
    assert not (tmp_path / "out").exists()


def test_the_recipe_says_what_was_done(tmp_path, digits):
    """Model, method and its options, steps and noise."""
    done(tmp_path / "a", "superres", "digits-vp", *FAST, "--method", "diffpir(weight=2)", "--std", 0.2)
    recipe = json.loads((tmp_path / "a" / "recipe.json").read_text())
    want = {"command": "superres", "method": "diffpir(weight=2)", "steps": 5, "std": 0.2, "factor": 2, "n": 3}
    assert {k: recipe[k] for k in want} == want and recipe["model"] == load(shipped("digits-vp")).digest
