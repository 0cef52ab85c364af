"""Samples as their data came in, PNG files and a table, and folders that are filled up."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.cli import main
from scoresde.cli.written import pixels, png, rows
from scoresde.data import Images, Table
from scoresde.nn import MLP
from scoresde.quantize import Quantized

SMALL = ("--steps", "20", "--warmup", "5", "--views", "0")
NAMES = ("length", 'width, "outer"', "mass")


def trained(folder, *args):
    assert main(["train", *args, *SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A network on images of 6x6 pixels and 5 grey levels, stored as 0 to 4."""
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "x.npy", np.random.RandomState(0).randint(0, 5, (10, 6, 6)).astype(np.uint8))
    return trained(folder / "model", f"Array({str(folder / 'x.npy')!r}, levels=5)", "--net", "MLP(width=16)")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A network on a table of three columns of different size, one of whose names has a comma and quotes in it."""
    folder = tmp_path_factory.mktemp("table")
    x = np.random.RandomState(0).randn(50, 3) * [1.0, 30.0, 1e-3] + [0.0, 5.0, 1.0]
    (folder / "x.csv").write_bytes(rows(torch.from_numpy(x), NAMES))
    return trained(folder / "model", str(folder / "x.csv"), "--net", "MLP(width=16)")


def drawn(out, *args):
    assert main(["sample", *map(str, args), "--out", str(out)]) == 0
    return np.load(out / "samples.npy")


def pictures(out):
    return {f.name: np.asarray(Image.open(f)) for f in sorted((out / "images").iterdir())}


@pytest.mark.parametrize("levels", [2, 5, 17, 256])
@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 3.0)])
def test_levels_are_kept(levels, ends):
    """Of data on their own levels no two become one in a file, black is 0 and white 255, what is within half a level
    of one is that one, and what lies beyond is black or white.
    """
    grid = Quantized(levels, *ends)
    k = torch.arange(levels).view(1, 1, 1, -1)
    x = grid.low + grid.width * k
    for off in (-0.49, 0.0, 0.49):
        found = pixels(x + off * grid.width, grid)
        assert found.shape == (1, 1, levels, 1) and found.min() == 0 and found.max() == 255
        assert np.array_equal(np.round(found.ravel().astype(float) * (levels - 1) / 255), np.arange(levels))
    assert pixels(x - 2 * (grid.high - grid.low), grid).max() == 0
    assert pixels(x + 2 * (grid.high - grid.low), grid).min() == 255


@pytest.mark.parametrize("channels", [1, 3])
def test_files_are_read_as_they_were(tmp_path, channels):
    """A folder of such files is data of the same grey levels, whose channels are red, green and blue."""
    grid = Quantized(256, -1.0, 1.0)
    levels = torch.randint(0, 256, (6, channels, 4, 5), generator=torch.Generator().manual_seed(0))
    for k, image in enumerate(pixels(grid.low + grid.width * levels, grid)):
        (tmp_path / f"{k}.png").write_bytes(png(image))
    data = Images(tmp_path, held_out=0.0).load()
    found, want = ({tuple(x) for x in a.flatten(1).tolist()} for a in (data.train, levels))
    assert found == want and data.shape == (channels, 4, 5) and data.quantized.levels == 256


def test_images_of_a_model(tmp_path, images):
    """`sample` writes each image on the grey level nearest to its number, of the five that the data have."""
    x = drawn(tmp_path, images, "--n", 7, "--steps", 4)
    found = pictures(tmp_path)
    assert list(found) == [f"{k:06d}.png" for k in range(7)]
    for k, image in enumerate(found.values()):
        assert image.shape == (6, 6) and image.dtype == np.uint8
        nearest = np.abs(x[k, 0, :, :, None] - np.linspace(-1, 1, 5)).argmin(-1)
        assert np.array_equal(np.round(image.astype(float) * 4 / 255), nearest)
    assert len({*np.unique(list(found.values()))} - {0, 64, 128, 191, 255}) == 0


def test_rows_of_a_table(tmp_path, table):
    """`sample` writes the columns by their names, in the units of the data; read as a table they are the samples."""
    x = drawn(tmp_path, table, "--n", 40, "--steps", 4)
    data = Table(tmp_path / "samples.csv", held_out=0.0, standardise=False).load()
    assert data.columns == NAMES and not (tmp_path / "images").exists()
    found, want = ({tuple(row) for row in np.asarray(a, dtype=np.float32).tolist()} for a in (data.train, x))
    assert found == want and len(want) == 40
    assert np.allclose(x.std(0), [1, 30, 1e-3], rtol=0.6)


def test_numbers_of_a_table_are_exact():
    """Whatever the size of a number, the file has it to the last digit."""
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 3)
    lines = rows(x, ("a", "b", "c")).decode().splitlines()
    assert lines[0] == "a,b,c"
    assert np.array_equal(np.array([line.split(",") for line in lines[1:]], dtype=np.float32), x.numpy())


@pytest.mark.parametrize("batches", [(256, 256), (3, 4)])
def test_a_folder_is_filled_up(capsys, tmp_path, images, table, batches):
    """Asked for more samples, a folder keeps those that are there, draws the others alone, by the seeds that follow,
    and then holds what one run would have made.
    """
    for name, model in (("images", images), ("table", table)):
        args = (model, "--steps", 4, "--seed", 3)
        whole = drawn(tmp_path / f"{name} whole", *args, "--n", 12)
        out = tmp_path / name
        few = drawn(out, *args, "--n", 5, "--batch", batches[0])
        capsys.readouterr()
        many = drawn(out, *args, "--n", 12, "--batch", batches[1])
        said = capsys.readouterr().out
        assert f"12 samples in {out}, 5 of them from before: 4 network calls a sample" in said
        assert np.array_equal(many[:5], few) and not np.array_equal(many[5:7], few[:2])
        assert np.allclose(many, whole, rtol=1e-3, atol=1e-4)
        same, other = ({f.name for f in (tmp_path / k).iterdir()} for k in (name, f"{name} whole"))
        assert same == other
    found, want = pictures(tmp_path / "images"), pictures(tmp_path / "images whole")
    assert found.keys() == want.keys() and all(np.array_equal(found[k], want[k]) for k in want)
    data = [Table(tmp_path / k / "samples.csv", held_out=0.0) for k in ("table", "table whole")]
    assert all(len(source.load().train) == 12 for source in data)


def test_fewer_than_there_are(capsys, tmp_path, images):
    """Nothing is drawn and nothing is changed, and how many there are is said."""
    args = (images, "--steps", 4)
    drawn(tmp_path, *args, "--n", 6)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file() and not f.name.startswith(".")}
    capsys.readouterr()
    drawn(tmp_path, *args, "--n", 4)
    assert capsys.readouterr().out == f"{tmp_path / 'samples.npy'} is complete already, and holds 6\n"
    assert {f: f.read_bytes() for f in before} == before


def test_filling_up_that_was_cut_off(monkeypatch, tmp_path, images):
    """Goes on from the batches that were drawn, and keeps the samples from before."""
    args = (images, "--steps", 4)
    whole = drawn(tmp_path / "whole", *args, "--n", 11)
    out = tmp_path / "out"
    drawn(out, *args, "--n", 4)
    with monkeypatch.context() as patch:
        patch.setattr("scoresde.cli.sample.as_data", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["sample", *map(str, args), "--n", "11", "--batch", "4", "--out", str(out)]) == 130
    with monkeypatch.context() as patch:
        patch.setattr("scoresde.cli.sample.draw", lambda *_, **__: 1 / 0)  # all of it is there
        found = drawn(out, *args, "--n", 11, "--batch", 4)
    assert np.allclose(found, whole, rtol=1e-3, atol=1e-4)
    assert pictures(out).keys() == pictures(tmp_path / "whole").keys()


@pytest.mark.parametrize("step", ["Flow(Dopri5(1e-2, 1e-2))", "UniPC(2)", "Flow(Heun())"])
def test_calls_are_those_of_a_sample(capsys, monkeypatch, tmp_path, table, step):
    """The number is how often the network was asked about one sample, in the mean, and not the calls of all batches."""
    asked, real = [], MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x, *a, **k: (asked.append(len(x)), real(self, x, *a, **k))[1])
    drawn(tmp_path, table, "--n", 20, "--batch", 8, "--step", step)
    each, calls = re.search(
        r": ([\d.]+) network calls a sample \((\d+) network calls", capsys.readouterr().out
    ).groups()
    assert int(calls) == len(asked) and float(each) == pytest.approx(sum(asked) / 20, rel=1e-3)
    assert int(calls) > 2 * float(each)
