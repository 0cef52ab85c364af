"""Where samples come from: what is loaded is what is there, and is refused where it is not what it is said to be."""

import io
import math
import os
import struct
import tempfile
import warnings
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits

from scoresde import Quantized, Reference
from scoresde.data import Array, Checkerboard, Dataset, Digits, Images, Moons, Ring, SwissRoll, split

F64 = torch.float64
AsIs = partial(Array, standardise=False)
TOYS = [Ring(), Moons(), SwissRoll(), Checkerboard()]
every_toy = pytest.mark.parametrize("toy", TOYS, ids=lambda toy: type(toy).__name__)


def points(toy, n=4000, seed=0):
    return toy.draw(n, torch.Generator().manual_seed(seed))


def rows(x):
    """The samples as a sorted list, to compare sets."""
    return sorted(map(tuple, x.flatten(1).tolist()))


def uniform(x):
    return stats.kstest(np.asarray(x), "uniform").pvalue


def normal(x, std):
    return stats.kstest(np.asarray(x) / std, "norm").pvalue


# what a set of data is

X, Y = torch.arange(12.0).view(6, 2), torch.arange(6) % 3
GREYS = Quantized(3, -1.0, 1.0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"train": X.to(torch.uint8)}, "train must be a dense float32 or float64 tensor.*got torch.uint8 of shape"),
        ({"train": X.half()}, "train must be a dense float32 or float64 tensor.*got torch.float16"),
        ({"train": X.to(torch.bfloat16)}, "train must be a dense float32 or float64 tensor.*got torch.bfloat16"),
        ({"train": X.to(torch.complex64)}, "train must be a dense float32 or float64 tensor.*got torch.complex64"),
        ({"train": X.numpy()}, "train must be a dense float32 or float64 tensor.*got ndarray"),
        ({"train": X.to_sparse()}, "train must be a dense float32.*sparse_coo"),
        ({"train": X.to("meta")}, "train must be a dense float32.*meta"),
        ({"quantized": 256}, "quantized must be a Quantized or None, got 256"),
        ({"train": X[:, 0]}, "train must be a dense float32 or float64 tensor.*got torch.float32 of shape"),
        ({"train": X[:0]}, "data must have samples to train on"),
        ({"train": X / 0}, "train must be finite, but sample 0 is not"),
        ({"held_out": torch.full((3, 2), math.inf)}, "held_out must be finite, but sample 0 is not"),
        ({"held_out": X.long()}, "held_out must be a dense float32 or float64 tensor"),
        ({"held_out": X.view(4, 3)}, "held_out must hold samples of shape \\(2,\\), as train does"),
        ({"held_out": X.view(6, 1, 2)}, "held_out must hold samples of shape"),
        ({"quantized": GREYS}, "train must lie on Quantized"),
        ({"train": Y.repeat(2, 1) - 1.0, "held_out": torch.full((2, 6), 0.5), "quantized": GREYS}, "held_out must lie"),
        ({"train_labels": Y}, "held_out_labels must be given if train_labels are"),
        ({"held_out_labels": Y[:2]}, "train_labels must be given if held_out_labels are"),
        ({"train_labels": Y - 1, "held_out_labels": Y[:2]}, "train_labels must count classes from 0 on.*got -1 to 1"),
        ({"train_labels": Y, "held_out_labels": -Y[:2]}, "held_out_labels must count classes from 0 on"),
        ({"train_labels": Y + 10**6, "held_out_labels": Y[:2]}, "train_labels must count classes from 0 on, below"),
        ({"train_labels": Y.float(), "held_out_labels": Y[:2]}, "train_labels must be whole numbers.*torch.float32"),
        ({"train_labels": Y > 0, "held_out_labels": Y[:2] > 0}, "train_labels must be whole numbers.*torch.bool"),
        ({"train_labels": Y.tolist(), "held_out_labels": Y[:2]}, "train_labels must be whole numbers.*got list"),
        ({"train_labels": Y[:5], "held_out_labels": Y[:2]}, "train_labels must be whole numbers.*of shape \\(6,\\)"),
        ({"train_labels": Y[:, None] == torch.arange(3), "held_out_labels": Y[:2]}, "train_labels must.*argmax"),
        (
            {"train_labels": (Y[:, None] == torch.arange(3)).long(), "held_out_labels": Y[:2]},
            "train_labels must.*argmax",
        ),
    ],
)
def test_dataset_errors(fields, said):
    """What cannot be trained on is refused when the set is made, by the name of the field and what was found there."""
    with pytest.raises(ValueError, match=f"^{said}"):
        Dataset(**{"train": X, "held_out": X[:2], **fields})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16])
@pytest.mark.parametrize("held", [0, 2])
def test_labels_of_whole_numbers(dtype, held):
    """Labels of any whole type are the same labels, and classes count those that are only held out."""
    kept = Dataset(X, X[:held], Y.to(dtype), (Y[:held] + 5).to(dtype))
    assert kept.train_labels.dtype == torch.int64 and torch.equal(kept.train_labels, Y)
    assert kept.classes == (7 if held else 3)


@given(st.integers(1, 9000), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.floats(-1e3, 1e3))
@settings(max_examples=20, deadline=None)
def test_moments(n, shape, offset):
    """The moments of a set are those of numpy in float64, however many samples there are."""
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(n)) + offset
    mean, std = Dataset(x[..., None], x[:0, ..., None]).moments
    wide = x.double().numpy()
    assert mean.dtype == std.dtype == F64 and mean.shape == (*shape, 1)
    np.testing.assert_allclose(mean[..., 0], wide.mean(0), atol=1e-10)
    np.testing.assert_allclose(std[..., 0], wide.std(0), atol=1e-10)


@pytest.mark.parametrize("ratio", [1e-4, 0.002, 1.0, 500.0, 1e4])
@pytest.mark.parametrize("constant", [False, True])
def test_columns_of_a_table(ratio, constant):
    """Columns that differ more than a thousand times in deviation, or not at all within, are named in a warning; those
    of grey levels and the pixels of images are not compared.
    """
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    x = 5 + (z - z.mean(0)) / z.std(0) * torch.tensor([1.0, 0.0 if constant else 2.0, ratio])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Dataset(x[:, :, None, None], x[:0, :, None, None])
        Dataset((x > 5) * 1.0, x[:0], quantized=Quantized(2, 0.0, 1.0))
        assert not caught
        Dataset(x, x[:0])
    said = " and ".join(str(warning.message) for warning in caught)
    assert ("1 columns of train are constant, such as 1" in said) == constant
    assert ("standardise" in said) == (max(ratio, 1 / ratio) > 1000 or (not constant and ratio < 0.002))
    assert all(warning.filename == __file__ for warning in caught)


def test_making_a_source_touches_no_file(monkeypatch, tmp_path):
    """What a source's fields say is checked without a look at the disk, which `load` alone takes."""
    touched = []
    for module, names in ((os, ("stat", "open", "scandir", "listdir")), (os.path, ("isfile", "isdir", "exists"))):
        for name in names:
            monkeypatch.setattr(module, name, lambda path, *_, **__: touched.append(path))
    monkeypatch.setattr("builtins.open", lambda path, *_, **__: touched.append(path))
    made = [Array("/none.npz", labels="y"), Images("/none"), Digits(), Ring(n=7)]
    monkeypatch.undo()
    assert not touched and made[1].folder == Path("/none")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Array(""), "path"),
        (lambda: Array(3), "path"),
        (lambda: Array("a.npz", key=0), "key"),
        (lambda: Array("a.npz", labels=None), "labels"),
        (lambda: Array("a.npy", levels=1), "levels"),
        (lambda: Array("a.npy", levels=16.0), "levels"),
        (lambda: Array("a.npy", levels=2**16), "levels"),
        (lambda: Array("a.npy", channels_last="yes"), "channels_last"),
        (lambda: Array("a.npy", held_out=math.nan), "held_out"),
        (lambda: Array("a.npy", held_out=1), "held_out"),
        (lambda: Array("a.npy", seed=2**32), "seed"),
        (lambda: Array("a.npy", seed=-1), "seed"),
        (lambda: Array("a.npy", seed=10**30), "seed"),
        (lambda: Images(""), "folder"),
        (lambda: Images(None), "folder"),
        (lambda: Images("a", size=-1), "size"),
        (lambda: Images("a", size=10**8), "size"),
        (lambda: Images("a", size=10**400), "size"),
        (lambda: Images("a", grey="no"), "grey"),
        (lambda: Images("a", held_out="half"), "held_out"),
        (lambda: Images("a", seed=1.5), "seed"),
        (lambda: Ring(n=4), "n"),
        (lambda: Ring(n=10**30), "n"),
        (lambda: Ring(modes=10**30), "modes"),
        (lambda: Moons(seed=2**64), "seed"),
        (lambda: Checkerboard(seed=-1), "seed"),
        (lambda: SwissRoll(std=math.nan), "std"),
        (lambda: split(10, 0.5, 2**32), "seed"),
    ],
)
def test_fields_of_sources(make, named):
    """A field that is none is refused by its name when the source is made."""
    with pytest.raises(ValueError, match=f"^{named} must"):
        make()


def test_more_than_memory_holds(monkeypatch, tmp_path):
    """What would not fit into the memory of the machine is refused before it is taken, and what fits is not."""
    pictures(tmp_path)
    path = stored(tmp_path, np.zeros((4, 1000)))
    packed = stored(tmp_path, {"a": np.zeros((4, 1000))}, "a.npz")
    sources = [Ring(n=10**12), Ring(n=10_000), Images(tmp_path, size=200), Array(path), Array(packed)]
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 20}.get)
    for source in sources:
        with pytest.raises(ValueError, match="must fit into memory, but needs"):
            source.load()
    Ring(n=200).load(), Images(tmp_path, size=4).load()


def test_default_device_is_not_where_data_are(tmp_path):
    """Samples are on the CPU and the same, whatever device is torch's default."""
    pictures(tmp_path)
    path = stored(tmp_path, {"x": np.random.RandomState(0).randn(9, 2), "y": np.arange(9)}, "a.npz")
    for source in (*TOYS, Digits(), Images(tmp_path), Array(path, labels="y")):
        want = source.load()
        with torch.device("meta"):
            found = source.load()
        for name in ("train", "held_out"):
            assert torch.equal(getattr(found, name), getattr(want, name))
        assert found.classes == want.classes


# what is held out


@given(st.integers(1, 400), st.floats(0, 0.999), st.integers(0, 2**32 - 1))
def test_split_is_a_partition(n, share, seed):
    """Every index is on exactly one side, round(share n) of them held out, and the seed alone decides which."""
    train, held = split(n, share, seed)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(n))
    assert len(held) == round(share * n)
    again = split(n, share, seed)
    assert torch.equal(train, again[0]) and torch.equal(held, again[1])


def test_split_is_fair():
    """Every index is held out as often as its share says, over seeds: 400 draws of a Bernoulli(0.3)."""
    often = np.zeros(50)
    for seed in range(400):
        often[split(50, 0.3, seed)[1]] += 1
    assert abs(often / 400 - 0.3).max() < 4.5 * math.sqrt(0.3 * 0.7 / 400)


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan, "half"])
def test_split_errors(share):
    """A share is in [0, 1)."""
    with pytest.raises(ValueError, match="^held_out must"):
        split(10, share, 0)


# digits


def test_digits_are_those_of_scikit_learn():
    """1438 + 359 digits, together the 1797 of scikit-learn with their labels, grey level k stored as k/8 - 1."""
    data, raw = Digits().load(), load_digits()
    assert (len(data.train), len(data.held_out), data.shape, data.classes) == (1438, 359, (1, 8, 8), 10)
    x = torch.cat([data.train, data.held_out])
    y = torch.cat([data.train_labels, data.held_out_labels])
    want = torch.tensor(raw.images)[:, None] / 8 - 1
    labelled = lambda x, y: rows(torch.cat([x.flatten(1), y[:, None].to(x)], 1))  # noqa: E731
    assert labelled(x.double(), y) == labelled(want, torch.tensor(raw.target))
    assert torch.equal(x.unique(), torch.arange(17) / 8 - 1)
    assert data.quantized == Quantized(17, -1.0, 1.0) and data.quantized.check(x) is x


def test_digits_held_out_are_not_trained_on():
    """The two parts share no image, and are the same at every load."""
    a, b = Digits().load(), Digits().load()
    assert not set(rows(a.train)) & set(rows(a.held_out))
    for name in ("train", "held_out", "train_labels", "held_out_labels"):
        assert torch.equal(getattr(a, name), getattr(b, name))


# toys


@every_toy
def test_toy_seeds(toy):
    """The seed of the value decides the points, to the bit; a fifth, drawn apart, is held out; n counts all."""
    kind = type(toy)
    a, b, c = kind(n=1000, seed=3).load(), kind(n=1000, seed=3).load(), kind(n=1000, seed=4).load()
    assert torch.equal(a.train, b.train) and torch.equal(a.held_out, b.held_out)
    assert a.train.shape == (800, 2) and a.held_out.shape == (200, 2) and a.train.dtype == torch.float32
    assert not set(rows(a.train)) & set(rows(a.held_out)) and not set(rows(a.train)) & set(rows(c.train))
    assert a.quantized is None and a.classes == 0
    assert rows(torch.cat([a.held_out, a.train])) == rows(points(toy, 1000, seed=3).float())


@every_toy
def test_toy_errors(toy):
    """Fewer than five points cannot be split."""
    with pytest.raises(ValueError, match="^n must"):
        type(toy)(n=4).load()


@pytest.mark.parametrize(
    ("toy", "fields"),
    [(Ring, {"modes": 0}), (Ring, {"std": 0.0}), (Moons, {"std": -1.0}), (SwissRoll, {"std": 0.0})],
)
def test_toy_field_errors(toy, fields):
    """A mode less than one, a width that is not positive: refused when the value is made."""
    with pytest.raises(ValueError, match=f"^{min(fields)} must"):
        toy(**fields)


@pytest.mark.parametrize(("modes", "std"), [(8, 0.05), (3, 0.1), (1, 0.02)])
def test_ring(modes, std):
    """Each point is one of `modes` equally likely corners on the unit circle, from (1, 0) on, plus N(0, std^2 I)."""
    x = points(Ring(modes=modes, std=std))
    corner = 2 * math.pi * torch.arange(modes, dtype=F64) / modes
    corners = torch.stack([corner.cos(), corner.sin()], 1)
    k = torch.cdist(x, corners).argmin(1)
    for coordinate in (x - corners[k]).T:
        assert normal(coordinate, std) > 1e-3
    count = torch.bincount(k, minlength=modes) / len(x)
    assert (count - 1 / modes).abs().max() <= 4.5 * math.sqrt(1 / modes * (1 - 1 / modes) / len(x))
    noise = (x - corners[k]) / std
    assert abs(float(noise.prod(1).mean())) < 4.5 / math.sqrt(len(x))


def test_checkerboard():
    """All points lie on squares (i, j) with i + j even, equally many on each, uniform inside and uncorrelated."""
    x = points(Checkerboard(), 8000)
    assert x.min() >= -1 and x.max() < 1
    at = (x + 1) * 2
    cell = at.floor().long()
    assert (cell.sum(1) % 2 == 0).all()
    count = torch.bincount(cell[:, 0] * 4 + cell[:, 1], minlength=16).double() / len(x)
    assert int((count > 0).sum()) == 8
    assert (count[count > 0] - 1 / 8).abs().max() < 4.5 * math.sqrt(1 / 8 * 7 / 8 / len(x))
    inside = at - cell
    assert uniform(inside[:, 0]) > 1e-3 and uniform(inside[:, 1]) > 1e-3
    assert abs(np.corrcoef(inside.T)[0, 1]) < 4.5 / math.sqrt(len(x))


def offsets(x, curve, u):
    """(u at the nearest point of the curve, the signed distance along the normal there)."""
    on = curve(u)
    tangent = curve(u + 1e-5) - curve(u - 1e-5)
    normals = torch.stack([-tangent[:, 1], tangent[:, 0]], 1) / tangent.norm(dim=1, keepdim=True)
    k = torch.cdist(x, on, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    return u[k], ((x - on[k]) * normals[k]).sum(1)


def moon(side):
    return lambda u: side * torch.stack([(math.pi * u).cos() - 0.5, (math.pi * u).sin() - 0.25], 1)


@pytest.mark.parametrize("std", [0.01, 0.02])
def test_moons(std):
    """Two unit half circles, mirrored in the origin, equally likely and uniform in angle, plus N(0, std^2 I)."""
    x, u = points(Moons(std=std)), torch.linspace(0, 1, 2000, dtype=F64)
    (u_a, d_a), (u_b, d_b) = (offsets(x, moon(side), u) for side in (1, -1))
    first = torch.cdist(x, moon(1)(u)).min(1).values < torch.cdist(x, moon(-1)(u)).min(1).values
    at, d = torch.where(first, u_a, u_b), torch.where(first, d_a, d_b)
    inner = (at > 0.05) & (at < 0.95)  # at its ends a curve has no normal
    assert normal(d[inner], std) > 1e-3
    assert uniform((at[inner] - 0.05) / 0.9) > 1e-3
    for share, want in ((first.double().mean(), 0.5), (inner.double().mean(), 0.9)):
        assert abs(float(share) - want) < 4.5 * math.sqrt(want * (1 - want) / len(x))


def test_moons_interleave():
    """The law is centred, with variances 3/4 + s^2 and 9/16 - 1/pi + s^2 and covariance 1/8 - 1/pi (by integration)."""
    s = 0.1
    x = points(Moons(std=s), 20_000)
    off = 1 / 8 - 1 / math.pi
    want = torch.tensor([[0.75 + s**2, off], [off, 9 / 16 - 1 / math.pi + s**2]], dtype=F64)
    outer = x[:, :, None] * x[:, None]
    for values, mean in ((x, torch.zeros(2, dtype=F64)), (outer, want)):
        assert ((values.mean(0) - mean).abs() < 4.5 * values.std(0) / math.sqrt(len(x))).all()


@pytest.mark.parametrize("std", [0.01, 0.02])
def test_swiss_roll(std):
    """The spiral r = phi/(4.5 pi), phi from 1.5 pi to 4.5 pi, uniform in phi, plus N(0, std^2 I): a turn and a half."""
    x, u = points(SwissRoll(std=std)), torch.linspace(1 / 3, 1, 4000, dtype=F64)
    at, d = offsets(x, lambda r: r[:, None] * torch.stack([(4.5 * math.pi * r).cos(), (4.5 * math.pi * r).sin()], 1), u)
    at = (at - 1 / 3) * 1.5
    inner = (at > 0.05) & (at < 0.95)
    assert normal(d[inner], std) > 1e-3
    assert uniform((at[inner] - 0.05) / 0.9) > 1e-3
    assert abs(float(inner.double().mean()) - 0.9) < 4.5 * math.sqrt(0.09 / len(x))


# arrays


def stored(folder, content, name="a.npy"):
    path = Path(folder) / name
    np.savez(path, **content) if isinstance(content, dict) else np.save(path, content)
    return path


@given(
    st.integers(2, 6), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(2, 300), st.integers(0, 2**16)
)
def test_array_of_levels(n, shape, levels, seed):
    """Level k is kept as it is, and is 2k/(levels - 1) - 1, on its grid, each sample once; (n, h, w) is one channel."""
    a = np.random.RandomState(seed).randint(0, levels, (n, *shape)).astype(np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        data = Array(stored(folder, a), levels=levels, held_out=0.3, seed=seed).load()
    D = (1, *shape) if len(shape) == 2 else tuple(shape)
    assert data.shape == D and data.quantized == Quantized(levels, -1.0, 1.0)
    stored_as = torch.cat([data.train, data.held_out])
    x = data.quantized.check(data.values(stored_as))
    back = ((x.double() + 1) * (levels - 1) / 2).round()
    assert rows(back) == rows(stored_as) == rows(torch.tensor(a.astype(np.float64)).reshape(n, *D))
    assert stored_as.dtype == (torch.uint8 if levels <= 256 else torch.int16)
    assert len(data.held_out) == round(0.3 * n)


def test_array_seed_chooses_what_is_held_out(tmp_path):
    """The two parts are disjoint, together all, and differ from seed to seed."""
    a = np.arange(200.0).reshape(100, 2)
    held = []
    for seed in (0, 1):
        data = AsIs(stored(tmp_path, a), held_out=0.25, seed=seed).load()
        assert len(data.held_out) == 25
        assert rows(torch.cat([data.train, data.held_out])) == rows(torch.tensor(a))
        held.append(set(rows(data.held_out)))
    assert held[0] != held[1]


@given(st.integers(0, 2**16), st.floats(-300, 300), st.floats(-3, 20), st.sampled_from(["<f8", ">f8"]))
@example(0, math.log10(30), math.log10(1.6e9 / 30), "<f8")
@example(0, 308.0, 0.0, "<f8")
@example(0, -300.0, 0.0, "<f8")
@example(0, 300.0, 3.0, "<f8")
@example(0, 0.0, 5.2, "<f8")
def test_float64_survives_or_is_refused(seed, scale, offset, dtype):
    """Columns of 10^scale (N(0, 1) + 10^offset) are taken if float32 keeps the distances between their numbers to 2e-3
    in the mean, and are refused only if it loses 2e-4; beyond its range, all.
    """
    with np.errstate(over="ignore"):
        a = ((np.random.RandomState(seed).randn(40, 2) + 10**offset) * 10**scale).astype(dtype)
        rounded = a.astype(np.float32).astype(float)
    assume(np.isfinite(a).all() and (a != a[0]).any(0).all())
    with np.errstate(invalid="ignore"):
        before, after = ((b[:, None] / 10**scale - b / 10**scale) for b in (a, rounded))
    lost = (abs(after - before).mean((0, 1)) / abs(before).mean((0, 1))).max()
    with tempfile.TemporaryDirectory() as folder:
        try:
            x = AsIs(stored(folder, a), held_out=0.0).load().train
        except ValueError as error:
            assert "float32 can tell apart" in str(error) and not lost < 2e-4
        else:
            assert lost < 2e-3 and rows(x.double()) == rows(torch.tensor(rounded))


def test_float64_beyond_float32(tmp_path):
    """A column that never varies is refused too, where float32 has no such number."""
    with pytest.raises(ValueError, match=r"float32 can tell apart, but numbers like 1e\+300 in column 1"):
        AsIs(stored(tmp_path, np.stack([np.arange(5.0), np.full(5, 1e300)], 1))).load()


def test_float64_that_float32_holds(tmp_path):
    """What float32 holds exactly is taken, whatever its size; so is a white margin, in which one pixel differs once."""
    whole = np.random.RandomState(0).randint(0, 2, (20, 2)) + 2.0**23
    assert rows(AsIs(stored(tmp_path, whole), held_out=0.0).load().train.double()) == rows(torch.tensor(whole))
    white = np.ones((2000, 1, 5, 5))
    white[3, 0, 0, 0] -= 1 / 255
    assert AsIs(stored(tmp_path, white)).load().shape == (1, 5, 5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_array_of_floats(tmp_path, dtype):
    """Floating-point numbers are continuous data, taken as they are."""
    a = (1000 * np.random.RandomState(0).randn(10, 3)).astype(dtype)
    data = AsIs(stored(tmp_path, a), held_out=0.0).load()
    assert data.quantized is None and data.train.dtype == torch.float32 and len(data.held_out) == 0
    assert rows(data.train) == rows(torch.tensor(a.astype(np.float32)))


def test_array_channels_last(tmp_path):
    """(n, h, w, c) with channels_last is what (n, c, h, w) is without."""
    a = np.random.RandomState(0).randint(0, 256, (6, 4, 5, 3)).astype(np.uint8)
    last = Array(stored(tmp_path, a, "last.npy"), channels_last=True).load()
    first = Array(stored(tmp_path, np.ascontiguousarray(a.transpose(0, 3, 1, 2)), "first.npy")).load()
    assert last.shape == (3, 4, 5) and torch.equal(last.train, first.train)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(32, 32), (9, 2), (6, 7, 8)])
def test_array_whose_channels_look_last(tmp_path, size, channels):
    """Images whose few channels are stored last are refused until it is said what is what, either way; those whose
    channels come first are taken, and refused where they are said to be last.
    """
    last = np.random.RandomState(0).rand(5, *size, channels).astype(np.float32)
    path = stored(tmp_path, last)
    with pytest.raises(ValueError, match="^channels_last must be given"):
        Array(path).load()
    assert Array(path, channels_last=True).load().shape == (channels, *size)
    assert Array(path, channels_last=False).load().shape == (*size, channels)
    path = stored(tmp_path, np.moveaxis(last, -1, 1))
    assert Array(path).load().shape == (channels, *size)
    if channels in (1, 3) and min(size) > 4:
        with pytest.raises(ValueError, match="^channels_last must be False"):
            Array(path, channels_last=True).load()
    for table in (last[:, 0, 0], last.reshape(5, -1)[:, :, None]):
        with pytest.raises(ValueError, match="^channels_last must be False"):
            Array(stored(tmp_path, table), channels_last=True).load()


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, ">i4"])
def test_array_of_zeros_and_ones(tmp_path, dtype):
    """Whatever they are stored as, 0 and 1 are two levels, at the ends of [-1, 1]; 256 of them must be asked for."""
    a = np.random.RandomState(0).randint(0, 2, (20, 3, 3)).astype(dtype)
    found = Array(stored(tmp_path, a), held_out=0.0).load()
    x = found.values(found.train)
    assert found.quantized == Quantized(2, -1.0, 1.0) and x.unique().tolist() == [-1.0, 1.0]
    assert rows(x) == rows(torch.tensor(2.0 * a.astype(float) - 1)[:, None])
    assert Array(stored(tmp_path, a), levels=256).load().quantized.levels == 256


def test_array_of_series(tmp_path):
    """(n, channels, length) keep their channels, each of which has units of its own; (n, h, w) are images otherwise."""
    a = np.random.RandomState(0).randn(20, 2, 7) * np.array([[1.0], [10.0]])
    path = stored(tmp_path, a)
    data = Array(path, series=True, held_out=0.0).load()
    assert data.shape == (2, 7) and len(data.units.mean) == 2
    np.testing.assert_allclose(sorted(data.units.restore(data.train.double())[:, 1, 0]), sorted(a[:, 1, 0]), atol=1e-4)
    assert Array(path).load().shape == (1, 2, 7)
    with pytest.raises(ValueError, match="series must be False for .*no .n, channels, length"):
        Array(stored(tmp_path, a[:, 0]), series=True).load()


@pytest.mark.parametrize(("top", "dtype"), [(255, np.int64), (255, ">u2"), (255, np.uint8), (128, np.uint8)])
def test_array_of_bytes(tmp_path, top, dtype):
    """Bytes that go beyond 127, and numbers that go to 255, are 256 levels; no number says that of floats."""
    a = np.array([[0, top]] * 3).astype(dtype)
    assert Array(stored(tmp_path, a)).load().quantized == Quantized(256, -1.0, 1.0)
    with pytest.raises(ValueError, match="^levels must be None"):
        Array(stored(tmp_path, a.astype(float)), levels=256).load()


@given(
    st.sampled_from(["<f4", ">f4", "<f8", ">f8", "<f2", ">u2", "<i8", "u1"]),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.booleans(),
)
def test_array_in_any_order(dtype, shape, fortran):
    """Byte order, Fortran order and memory that may only be read change nothing of what is loaded."""
    a = np.random.RandomState(0).randint(0, 200, (6, *shape)).astype(dtype)
    levels = None if a.dtype.kind == "f" else 200
    a = a if levels else a + a.dtype.type(0.5)
    with tempfile.TemporaryDirectory() as folder:
        path = stored(folder, np.asfortranarray(a) if fortran else a)
        path.chmod(0o400)
        data = AsIs(path, held_out=0.0, levels=levels).load()
    want = torch.tensor(a[split(6, 0.0, 0)[0].numpy()].astype(np.float64)).view(data.train.shape)
    x = data.values(data.train)
    torch.testing.assert_close(want.float() * (2 / 199) - 1 if levels else want.float(), x, rtol=0, atol=1e-6)
    assert not levels or torch.equal(data.train.double(), want)


def test_what_is_loaded_is_not_the_file(tmp_path):
    """Writing into the samples does not write into the file, and a file that changes does not change the samples."""
    a = np.random.RandomState(0).randn(6, 2).astype(np.float32)
    path = stored(tmp_path, a)
    x = AsIs(path, held_out=0.0).load().train
    kept = x.clone()
    np.save(path, 0 * a)
    assert torch.equal(x, kept)
    y = AsIs(stored(tmp_path, a), held_out=0.0).load().train
    y.zero_()
    assert np.array_equal(np.load(path), a)


def test_header_that_promises_too_much(tmp_path):
    """A header of 10^15 or 10^30 numbers is refused by the size of the file, alone or in a .npz."""
    for n in (10**15, 10**30):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (n, 2)})
        (tmp_path / "a.npy").write_bytes(header.getvalue() + bytes(64))
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
            file.writestr("x.npy", header.getvalue() + bytes(64))
        for name in ("a.npy", "a.npz"):
            with pytest.raises(ValueError, match=f"{name} cannot be read as a plain array") as error:
                Array(tmp_path / name).load()
            assert "\n" not in str(error.value)


def test_nothing_left_to_train_on(tmp_path):
    """A share that rounds to all samples leaves none to train on."""
    path = stored(tmp_path, np.arange(8.0).reshape(4, 2))
    with pytest.raises(ValueError, match="^held_out must leave samples to train on, got 0.9 of 4"):
        Array(path, held_out=0.9).load()


def test_npz(tmp_path):
    """Of several arrays the key names one; a lone one needs no key."""
    a, b = np.random.RandomState(0).randn(2, 5, 2)
    one = stored(tmp_path, {"a": a}, "one.npz")
    two = stored(tmp_path, {"a": a, "b": b}, "two.npz")
    assert rows(AsIs(one, held_out=0.0).load().train) == rows(torch.tensor(a).float())
    assert rows(AsIs(two, key="b", held_out=0.0).load().train) == rows(torch.tensor(b).float())
    for key in ("", "c"):
        with pytest.raises(ValueError, match="two.npz cannot be read.*key must be one of a, b, got"):
            AsIs(two, key=key).load()
    for fields in ({"key": "a"}, {"labels": "b"}):
        with pytest.raises(ValueError, match=f"{min(fields)} must be empty"):
            AsIs(stored(tmp_path, a), **fields).load()


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, ">i4"])
def test_labels_of_an_array(tmp_path, dtype):
    """The labels of a .npz go with their samples, whichever of them are held out."""
    x, y = np.random.RandomState(0).randn(30, 2).astype(np.float32), np.arange(30).astype(dtype) % 7
    path = stored(tmp_path, {"x": x, "y": y}, "a.npz")
    for fields in ({}, {"key": "x"}):
        found = AsIs(path, labels="y", held_out=0.3, seed=2, **fields).load()
        assert found.classes == 7 and len(found.held_out_labels) == 9
        pairs = [(found.train, found.train_labels), (found.held_out, found.held_out_labels)]
        both = torch.cat([torch.cat([a, b[:, None]], 1) for a, b in pairs])
        assert rows(both) == rows(torch.tensor(np.concatenate([x, y[:, None]], 1).astype(np.float32)))
    with pytest.raises(ValueError, match="labels must be one of x, y, got 'z'"):
        AsIs(path, key="x", labels="z").load()


def test_names_of_classes(tmp_path):
    """Words as labels of an array, and folders of images, are classes with these names in the order of the alphabet,
    whichever samples are held out; the images are those that they are without their classes.
    """
    words = np.array(["tree", "ash", "tree", "oak", "ash", "ash", "oak", "tree"])
    path = stored(tmp_path, {"x": np.arange(16.0).reshape(8, 2), "y": words}, "a.npz")
    found = AsIs(path, labels="y", held_out=0.25).load()
    assert found.names == ("ash", "oak", "tree") and found.classes == 3
    for x, y in ((found.train, found.train_labels), (found.held_out, found.held_out_labels)):
        assert [found.names[k] for k in y] == words[(x[:, 0] / 2).long().numpy()].tolist()

    folder = tmp_path / "images"
    for grey, where in ((10, "owl/a"), (20, "owl"), (30, "cat"), (40, "cat/b"), (50, "cat")):
        (folder / where).mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 3), grey).save(folder / where / f"{grey}.png")
    found = Images(folder, classes=True, held_out=0.4, seed=1).load()
    assert found.names == ("cat", "owl") and Images(folder).load().names == () == Ring(n=9).load().names
    for x, y in ((found.train, found.train_labels), (found.held_out, found.held_out_labels)):
        assert x.dtype == torch.uint8 and torch.equal(y, (x[:, 0, 0, 0] < 25).long())
    assert torch.equal(found.train, Images(folder, held_out=0.4, seed=1).load().train)
    assert Digits().load().names == tuple("0123456789")
    Image.new("L", (3, 3), 1).save(folder / "beside.png")
    with pytest.raises(ValueError, match="classes must be False where .*beside.png"):
        Images(folder, classes=True).load()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a", "b"), "names must be those of all labels, got 2 for 3 labels"),
        (("a", "b", "a"), "names must differ, got 'a' twice"),
        (("a", "b", 3), "names must be the names of labels"),
        ("abc", "names must be the names of labels"),
        (("a", "b", ""), "names must be the names of labels"),
    ],
)
def test_names_errors(names, said):
    """Names are words, one for each label; there may be more names than labels that occur, but none without labels."""
    with pytest.raises(ValueError, match=said):
        Dataset(X, X[:2], Y, Y[:2], names=names)
    assert Dataset(X, X[:2], Y, Y[:2], names=["a", "b", "c", "d"]).names == ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="names must be those of all labels, got 1 for no labels"):
        Dataset(X, X[:2], names=("a",))


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (np.arange(5) - 1, "train_labels must count classes from 0 on|held_out_labels must count"),
        (np.arange(5.0), "labels of .*must be whole numbers or names of shape \\(5,\\), got float64"),
        (np.eye(5, dtype=int), "labels of .*must be whole numbers or names of shape \\(5,\\), got int64 of \\(5, 5\\)"),
        (np.arange(4), "labels of .*must be whole numbers or names of shape \\(5,\\)"),
        (np.array(list("abcde"), dtype="S1"), "labels of .*must be whole numbers or names"),
        (np.array(["a", "b", " ", "a", "b"]), "names must be the names of labels 0, 1, ..., got"),
        (np.full(5, 2**64 - 1, dtype=np.uint64), "train_labels must count classes from 0 on"),
    ],
)
def test_labels_of_an_array_errors(tmp_path, y, said):
    """Labels that are no classes of the samples are refused by name."""
    path = stored(tmp_path, {"x": np.random.RandomState(0).randn(5, 2), "y": y}, "a.npz")
    with pytest.raises(ValueError, match=said):
        Array(path, labels="y").load()


@pytest.mark.parametrize(
    ("a", "said"),
    [
        (np.array([{"a": 1}, {"b": 2}], dtype=object), "cannot be read as a plain array"),
        (np.zeros((5, 2), dtype=complex), "must hold numbers"),
        (np.zeros((5, 2), dtype="M8[s]"), "must hold numbers"),
        (np.zeros((5, 2), dtype=[("a", "f4"), ("b", "i4")]), "must hold numbers"),
        (np.zeros(()), "must hold numbers"),
        (np.zeros((0, 3)), "must hold numbers"),
        (np.zeros(5), "must hold numbers"),
        (np.zeros((1, 2)), "must hold numbers"),
        (np.zeros((5, 0)), "must hold numbers"),
        (np.array([["a", "b"]] * 3), "must hold numbers"),
        (np.array([[0.0, math.nan]] * 3), "must hold finite numbers"),
        (np.array([[0.0, math.inf]] * 3), "must hold finite numbers"),
        (np.array([[0, 256]] * 3), "levels must cover the grey levels"),
        (np.array([[0, -1]] * 3), "levels must cover the grey levels"),
        (np.array([[0, 16]] * 3, dtype=np.uint8), "levels must cover the grey levels.*0 to 16.*give their number"),
        (np.array([[0, 200]] * 3), "levels must cover the grey levels.*0 to 200.*store as float32"),
        (np.array([[0, 2**63]] * 3, dtype=np.uint64), "levels must cover the grey levels"),
        (np.zeros((3, 2), dtype=np.uint8), "levels must cover the grey levels.*0 to 0"),
    ],
)
def test_array_errors(tmp_path, a, said):
    """What is no array of finite numbers or grey levels is refused in one line that names the file."""
    path = Path(tmp_path) / "wrong.npy"
    np.save(path, a, allow_pickle=True)
    with pytest.raises(ValueError, match=said) as error:
        Array(path).load()
    assert str(path) in str(error.value)


def test_pickled_array_does_not_run(tmp_path):
    """An array of objects is a pickle, and no pickle is opened: what it would do is not done."""

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=np.array([Trap()], dtype=object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a plain array"):
            Array(tmp_path / name).load()
    assert not (tmp_path / "ran").exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert (tmp_path / "ran").exists()  # the trap was one


def test_missing_array(tmp_path):
    """A path that is not there, or is a folder, is named."""
    for path in (tmp_path / "none.npy", tmp_path):
        with pytest.raises(ValueError, match="^path must be a .npy or .npz file") as error:
            Array(path).load()
        assert str(path) in str(error.value)


def blob(write, *args, **kwargs):
    file = io.BytesIO()
    write(file, *args, **kwargs)
    return file.getvalue()


NUMBERS = np.arange(60, dtype=np.uint8).reshape(15, 4)
FILES = {"npy": blob(np.save, NUMBERS), "npz": blob(np.savez, a=NUMBERS), "zip": blob(np.savez_compressed, a=NUMBERS)}


@given(st.sampled_from(sorted(FILES)), st.data())
def test_truncated_array(kind, data):
    """A file cut anywhere is refused as a damaged file, whichever way its reader notices."""
    cut = data.draw(st.integers(0, len(FILES[kind]) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"cut.{kind}"
        path.write_bytes(FILES[kind][:cut])
        with pytest.raises(ValueError, match=f"cut.{kind} cannot be read as a plain array"):
            Array(path).load()


@given(st.sampled_from(sorted(FILES)), st.data())
def test_damaged_array(kind, data):
    """A file with a changed byte is an array still, or a ValueError; no other error comes out."""
    content = bytearray(FILES[kind])
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"bad.{kind}"
        path.write_bytes(bytes(content))
        try:
            assert len(Array(path).load().shape) >= 1
        except ValueError as error:
            assert "bad" in str(error)


def test_zip_of_something_else(tmp_path):
    """A zip file that holds no arrays is no .npz."""
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as file:
        file.writestr("a.txt", "hello")
    with pytest.raises(ValueError, match="text.npz"):
        Array(tmp_path / "text.npz").load()


# images


def pictures(folder, n=5, size=(6, 7), channels=3, seed=0):
    a = np.random.RandomState(seed).randint(0, 256, (n, *size, channels)).astype(np.uint8)
    for i, image in enumerate(a):
        Image.fromarray(image.squeeze()).save(folder / f"{i}.png")
    return torch.tensor(a).permute(0, 3, 1, 2)


def levels(x):
    return x.double() if x.dtype == torch.uint8 else (x.double() + 1) * 127.5


@pytest.mark.parametrize("channels", [3, 1])
def test_png_round_trip(tmp_path, channels):
    """The pixels of PNG files come back exactly, as 256 levels on [-1, 1]; what is no image's name is passed over."""
    a = pictures(tmp_path, channels=channels)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "sub").mkdir()
    (tmp_path / "0.png").rename(tmp_path / "sub" / "0.PNG")
    data = Images(tmp_path, grey=channels == 1, held_out=0.4).load()
    assert data.quantized == Quantized(256, -1.0, 1.0) and data.shape == (channels, 6, 7) and len(data.held_out) == 2
    x = torch.cat([data.train, data.held_out])
    data.quantized.check(data.values(x))
    assert rows(levels(x)) == rows(levels(data.values(x)).round()) == rows(a.double())


def test_images_grey(tmp_path):
    """Grey is ITU-R 601's luma, 0.299 R + 0.587 G + 0.114 B, to a level; images stored in grey have one channel, and
    are not mixed with those in colour unless all are made grey.
    """
    a = pictures(tmp_path)
    luma = (a.double() * torch.tensor([0.299, 0.587, 0.114], dtype=F64)[:, None, None]).sum(1, keepdim=True)
    x = levels(Images(tmp_path, grey=True, held_out=0.0).load().train)
    near = torch.cdist(x.flatten(1), luma.flatten(1), p=math.inf).min(1).values
    assert near.max() < 1
    with Image.open(tmp_path / "2.png") as one:
        one.convert("L").save(tmp_path / "2.png")
    with pytest.raises(ValueError, match="^grey must be True.*2.png is stored in grey and .*0.png in colour"):
        Images(tmp_path).load()
    assert torch.equal(levels(Images(tmp_path, grey=True, held_out=0.0).load().train), x)
    b = pictures(tmp_path, channels=1, seed=1)
    for grey in (False, True):
        assert rows(levels(Images(tmp_path, grey=grey, held_out=0.0).load().train).round()) == rows(b.double())
    for file in tmp_path.glob("*.png"):
        with Image.open(file) as one:
            one.convert("RGB").save(file)
    with pytest.warns(UserWarning, match="are grey: grey=True gives them one channel"):
        assert Images(tmp_path).load().shape == (3, 6, 7)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
def test_images_stored_in_grey(tmp_path, mode):
    """Black and white, grey, grey without transparency and a palette of greys are one channel, with their values."""
    a = np.random.RandomState(0).randint(0, 2, (3, 5, 5)).astype(np.uint8) * 255
    for i, image in enumerate(a):
        Image.fromarray(image).convert(mode).save(tmp_path / f"{i}.png")
        if mode == "P":
            one = Image.fromarray(image // 255)
            one.putpalette([0, 0, 0, 255, 255, 255])
            one.save(tmp_path / f"{i}.png")
            assert one.mode == "P"
    assert rows(levels(Images(tmp_path, held_out=0.0).load().train)) == rows(torch.tensor(a)[:, None].double())


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_images_are_turned(tmp_path, turn, suffix):
    """Each of EXIF's eight orientations is undone: the row that is stored first is where its number says (EXIF 2.3,
    section 4.6.4): at the top, top, bottom, bottom, left, right, right, left; the column likewise.
    """
    seen = np.random.RandomState(0).randint(0, 256, (4, 6, 3)).astype(np.uint8)
    across, flip_rows, flip_columns = turn > 4, turn in (3, 4, 6, 7), turn in (2, 3, 7, 8)
    a = seen[:: -1 if flip_columns else 1] if across else seen[:: -1 if flip_rows else 1]
    a = a[:, :: -1 if flip_rows else 1] if across else a[:, :: -1 if flip_columns else 1]
    a = a.transpose(1, 0, 2) if across else a
    image = Image.fromarray(np.ascontiguousarray(a))
    exif = image.getexif()
    exif[274] = turn
    for i in range(2):
        image.save(tmp_path / f"{i}.{suffix}", exif=exif, lossless=True)
    x = levels(Images(tmp_path, held_out=0.0).load().train).round()
    assert torch.equal(x, torch.tensor(seen).permute(2, 0, 1).double().expand(2, -1, -1, -1))


def coloured(mode):
    """An image of random colours, without the alpha channel that it may have."""
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (6, 7, 3)).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
@pytest.mark.parametrize("alpha", [255, 254, 0])
def test_transparent_images(tmp_path, mode, alpha):
    """The colour under a transparent pixel is not used: one that lets anything through is refused, by channel, palette
    or colour; an image that is opaque everywhere is what it is without.
    """
    image = coloured(mode)
    if "A" in mode:
        image.putalpha(Image.new("L", image.size, 255))
        pixel = image.getpixel((3, 2))
        image.putpixel((3, 2), (*pixel[:-1], alpha))
        how = {}
    elif mode == "P":
        how = {"transparency": bytes([255] * image.getpixel((3, 2)) + [alpha])}
    else:  # one colour is transparent, which the image has or has not
        pixel = image.getpixel((3, 2))
        absent = (1, 2, 3) if mode == "RGB" else next(k for k in range(256) if not image.histogram()[k])
        how = {"transparency": pixel if alpha < 255 else absent}
    for i in range(2):
        image.save(tmp_path / f"{i}.png", **how)
    source = Images(tmp_path, held_out=0.0)
    if alpha < 255:
        with pytest.raises(ValueError, match="0.png cannot be read as an image: it is transparent in places"):
            source.load()
    else:
        x = source.load().train
        for i in range(2):
            image.convert("L" if mode[0] == "L" else "RGB").save(tmp_path / f"{i}.png")
        assert torch.equal(x, source.load().train)


def deep_png(colour, channels):
    """A PNG file of 16 bits a channel."""
    content = zlib.compress(b"".join(b"\0" + bytes(range(7 * channels * 2)) for _ in range(6)))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 7, 6, 16, colour, 0, 0, 0)), (b"IDAT", content), (b"IEND", b"")]
    lengths = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(lengths)


def frames(kind, **options):
    """A file of two pictures."""
    one = coloured("RGB")
    return blob(one.save, kind, save_all=True, append_images=[one.rotate(180)], **options)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("grey.png", deep_png(0, 1), "more than 8 bits"),
        ("colour.png", deep_png(2, 3), "more than 8 bits"),
        ("grey_alpha.png", deep_png(4, 2), "more than 8 bits"),
        ("alpha.png", deep_png(6, 4), "more than 8 bits"),
        ("colour.ppm", b"P6 7 6 1023\n" + bytes(7 * 6 * 6), "more than 8 bits"),
        ("plain.ppm", b"P3 7 6 65535\n" + b"9 " * (7 * 6 * 3), "more than 8 bits"),
        ("grey.pgm", b"P5 7 6 65535\n" + bytes(7 * 6 * 2), "more than 8 bits"),
        ("float.tif", blob(coloured("F").save, "TIFF"), "more than 8 bits"),
        ("ink.jpg", blob(coloured("CMYK").save, "JPEG"), "its colours are CMYK"),
        ("lab.tif", blob(coloured("LAB").save, "TIFF"), "its colours are LAB"),
        ("moves.gif", frames("GIF"), "several frames"),
        ("moves.png", frames("PNG"), "several frames"),
        ("moves.webp", frames("WEBP"), "several frames"),
        ("pages.tif", frames("TIFF"), "several frames"),
    ],
)
def test_images_that_are_not_one_picture_of_bytes(tmp_path, name, content, said):
    """What would lose its digits, its colours or its other pages by being read as one RGB image is refused by name."""
    pictures(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read as an image: .*{said}"):
        Images(tmp_path).load()


def test_images_of_photographs_and_few_levels(tmp_path):
    """The first picture of a photograph with previews is taken; so are files of 8 bits and less, as they are seen."""
    one = coloured("RGB")
    (tmp_path / "a.jpg").write_bytes(blob(one.save, "MPO", save_all=True, append_images=[one.rotate(180)], quality=95))
    (tmp_path / "b.jpg").write_bytes(blob(one.save, "JPEG", quality=95))
    x = Images(tmp_path, held_out=0.0).load().train
    assert torch.equal(x[0], x[1])
    for file in tmp_path.iterdir():
        file.unlink()
    for i in range(2):
        (tmp_path / f"{i}.pgm").write_bytes(b"P5 4 1 15\n" + bytes([0, 3, 5, 15]))
    assert levels(Images(tmp_path, held_out=0.0).load().train)[0].flatten().round().tolist() == [0, 51, 85, 255]


def test_hidden_images(tmp_path):
    """What the system keeps beside pictures is none: hidden files and folders, and those of an archive of a Mac."""
    folder = tmp_path / ".hidden" / "mine"
    for name in (".thumbnails", "__MACOSX", "sub/.cache/deep"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (50, 50)).save(folder / name / "a.png")
    (folder / "._0.png").write_bytes(b"not an image")
    a = pictures(folder)
    assert rows(levels(Images(folder, held_out=0.0).load().train).round()) == rows(a.double())


def test_images_that_are_links_or_no_files(tmp_path):
    """A link to an image is one; a broken one, one in a circle, a pipe and a link to a folder are named."""
    (tmp_path / "in").mkdir()
    a = pictures(tmp_path / "in", n=3)
    (tmp_path / "in" / "0.png").rename(tmp_path / "elsewhere.png")
    link = tmp_path / "in" / "0.png"
    link.symlink_to(tmp_path / "elsewhere.png")
    source = Images(tmp_path / "in", held_out=0.0)
    assert rows(levels(source.load().train).round()) == rows(a.double())
    for target in ("nothing.png", "0.png"):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(ValueError, match="0.png cannot be read as an image: it is no file"):
            source.load()
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(ValueError, match="0.png cannot be read as an image: it is no file"):
        source.load()
    link.unlink()
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    with pytest.raises(ValueError, match="^folder must hold no links to folders, got .*round"):
        source.load()


def test_folder_that_cannot_be_read(tmp_path, monkeypatch):
    """A folder inside that may not be opened is no empty one."""
    pictures(tmp_path)
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def locked(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(ValueError, match="^folder must be readable.*Permission denied.*locked"):
        Images(tmp_path).load()


def test_images_size(tmp_path):
    """size cuts the central square and scales it: whole blocks of one colour are that colour, whatever the margins."""
    colours = np.random.RandomState(0).randint(0, 256, (4, 2, 2, 3)).astype(np.uint8)
    for i, image in enumerate(colours):
        block = image.repeat(8, 0).repeat(8, 1)
        wide = np.concatenate([np.full((16, 6, 3), 255, np.uint8), block, np.zeros((16, 6, 3), np.uint8)], 1)
        Image.fromarray(wide if i % 2 else wide.transpose(1, 0, 2)).save(tmp_path / f"{i}.png")
        colours[i] = image if i % 2 else image.transpose(1, 0, 2)
    x = levels(Images(tmp_path, size=16, held_out=0.0).load().train)
    assert x.shape == (4, 3, 16, 16)
    inside = x[:, :, 2::8, 2::8].round()  # away from the edges between blocks
    assert rows(inside) == rows(torch.tensor(colours).permute(0, 3, 1, 2).double())


def test_images_of_different_sizes(tmp_path):
    """Images of two sizes are refused by name, and taken once a size is given."""
    pictures(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"^images must have one size, but 0.png has \(6, 7\) and other.png \(9, 9\)"):
        Images(tmp_path).load()
    with pytest.warns(UserWarning, match="^1 of 6 images, such as .*other.png of 9x9, are not of 7x6 pixels") as caught:
        assert Images(tmp_path, size=4).load().shape == (3, 4, 4)
    assert len(caught) == 1 and caught[0].filename == __file__
    (tmp_path / "other.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Images(tmp_path, size=6).load()
    with pytest.warns(UserWarning, match="^5 of 5 images, such as .*0.png of 7x6, are smaller than size = 8"):
        Images(tmp_path, size=8).load()


def test_images_errors(tmp_path):
    """A folder without images, an image that is none, one of more than 8 bits, and a size below 0, each by name."""
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="^folder must hold at least 2 images, got .* with 0"):
            Images(folder).load()
    pictures(tmp_path)
    with pytest.raises(ValueError, match="^size must"):
        Images(tmp_path, size=-1).load()
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"text.png cannot be read as an image"):
        Images(tmp_path).load()
    Image.fromarray(np.full((6, 7), 1000, np.uint16)).save(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"text.png cannot be read as an image.*8 bits"):
        Images(tmp_path, grey=True).load()


@given(st.data())
def test_damaged_image(data):
    """A PNG file with a changed byte or a missing end is an image still, or a ValueError that names it."""
    with tempfile.TemporaryDirectory() as name:
        pictures(Path(name), n=2)
        path = Path(name) / "1.png"
        content = bytearray(path.read_bytes())
        k = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content = content[:k]
        else:
            content[k] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(content))
        try:
            assert Images(Path(name)).load().shape == (3, 6, 7)
        except ValueError as error:
            assert "1.png" in str(error)


def test_levels_are_the_numbers_that_they_stand_for():
    """A set of levels in uint8 and the same in float32: one mean and deviation, one Gaussian around, one batch."""
    grey, levels = (
        Quantized(200, -1.0, 3.0),
        torch.randint(200, (50, 1, 4, 4), generator=torch.Generator().manual_seed(0)),
    )
    kept = Dataset(levels.to(torch.uint8), levels[:5].to(torch.int16).to(torch.uint8), quantized=grey)
    floats = Dataset(kept.values(kept.train), kept.values(kept.held_out), quantized=grey)
    assert kept.values(kept.train).dtype == torch.float32 and kept.shape == floats.shape
    torch.testing.assert_close(kept.values(kept.train).double(), levels.double() * 4 / 199 - 1, rtol=0, atol=5e-7)
    for a, b in zip(kept.moments, floats.moments, strict=True):
        assert torch.equal(a, b)
    for around in (kept.around, floats.around):
        want = Reference.fit(floats.train)
        assert around.std == pytest.approx(want.std, rel=1e-12)
        torch.testing.assert_close(around.mean, want.mean, rtol=1e-12, atol=1e-12)


def test_few_levels_are_told(tmp_path):
    """Black and white in 256 levels, and 16 levels in steps of 17; not the levels of a few dark images."""
    for used, told in (
        (np.array([0, 255]), "uses 2 of 256 grey levels, 0, 255"),
        (17 * np.arange(16), "uses 16 of 256"),
    ):
        path = stored(tmp_path, used[np.random.RandomState(0).randint(0, len(used), (20, 12, 12))].astype(np.uint8))
        with pytest.warns(UserWarning, match=told):
            Array(path).load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Array(stored(tmp_path, np.random.RandomState(0).randint(0, 40, (20, 12, 12))), levels=256).load()


def test_data_in_any_order_of_memory():
    """Images made channels first by a view are the same data, and their digest is."""
    x = torch.rand(6, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    view, copy = x.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2).contiguous()
    assert Dataset(view, view[:2]).digest == Dataset(copy, copy[:2]).digest


NINE = torch.full((3, 2), 9, dtype=torch.uint8)


@pytest.mark.parametrize(
    "made, says",
    [
        (lambda: Dataset(NINE, NINE[:0], quantized=Quantized(9, -1.0, 1.0)), "train must hold .*, 0 to 8, got 9 to 9"),
        (lambda: Dataset(NINE.short() - 10, NINE[:0], quantized=GREYS), "train must hold .*, 0 to 2, got -1 to -1"),
        (lambda: Dataset(torch.ones(3, 2), torch.ones(1, 2)).around, "data must vary, got 3 samples"),
    ],
)
def test_levels_that_are_none(made, says):
    """Numbers that are no level of the grid, and data without a Gaussian around them."""
    with pytest.raises(ValueError, match=says):
        made()
