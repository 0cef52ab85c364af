"""Where samples come from: what is loaded is what is there, and is refused where it is not what it is said to be."""

import io
import math
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits

from scoresde import Quantized
from scoresde.data import Array, Checkerboard, Digits, Images, Moons, Ring, SwissRoll, split

F64 = torch.float64
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
    ("toy", "named"),
    [(Ring(modes=0), "modes"), (Ring(std=0.0), "std"), (Moons(std=-1.0), "std"), (SwissRoll(std=0.0), "std")],
)
def test_toy_field_errors(toy, named):
    """A mode less than one, a width that is not positive."""
    with pytest.raises(ValueError, match=f"^{named} must"):
        toy.load()


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
    """Level k is stored as 2k/(levels - 1) - 1, on its grid, each sample once; (n, h, w) is one channel."""
    a = np.random.RandomState(seed).randint(0, levels, (n, *shape)).astype(np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        data = Array(stored(folder, a), levels=levels, held_out=0.3, seed=seed).load()
    D = (1, *shape) if len(shape) == 2 else tuple(shape)
    assert data.shape == D and data.quantized == Quantized(levels, -1.0, 1.0)
    x = torch.cat([data.train, data.held_out])
    assert data.quantized.check(x) is x
    back = ((x.double() + 1) * (levels - 1) / 2).round()
    assert rows(back) == rows(torch.tensor(a.astype(np.float64)).reshape(n, *D))
    assert len(data.held_out) == round(0.3 * n)


def test_array_seed_chooses_what_is_held_out(tmp_path):
    """The two parts are disjoint, together all, and differ from seed to seed."""
    a = np.arange(200.0).reshape(100, 2)
    held = []
    for seed in (0, 1):
        data = Array(stored(tmp_path, a), held_out=0.25, seed=seed).load()
        assert len(data.held_out) == 25
        assert rows(torch.cat([data.train, data.held_out])) == rows(torch.tensor(a))
        held.append(set(rows(data.held_out)))
    assert held[0] != held[1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_array_of_floats(tmp_path, dtype):
    """Floating-point numbers are continuous data, taken as they are."""
    a = (1000 * np.random.RandomState(0).randn(10, 3)).astype(dtype)
    data = Array(stored(tmp_path, a), held_out=0.0).load()
    assert data.quantized is None and data.train.dtype == torch.float32 and len(data.held_out) == 0
    assert rows(data.train) == rows(torch.tensor(a.astype(np.float32)))


def test_array_channels_last(tmp_path):
    """(n, h, w, c) with channels_last is what (n, c, h, w) is without."""
    a = np.random.RandomState(0).randint(0, 256, (6, 4, 5, 3)).astype(np.uint8)
    last = Array(stored(tmp_path, a, "last.npy"), channels_last=True).load()
    first = Array(stored(tmp_path, np.ascontiguousarray(a.transpose(0, 3, 1, 2)), "first.npy")).load()
    assert last.shape == (3, 4, 5) and torch.equal(last.train, first.train)


def test_npz(tmp_path):
    """Of several arrays the key names one; a lone one needs no key."""
    a, b = np.random.RandomState(0).randn(2, 5, 2)
    one = stored(tmp_path, {"a": a}, "one.npz")
    two = stored(tmp_path, {"a": a, "b": b}, "two.npz")
    assert rows(Array(one, held_out=0.0).load().train) == rows(torch.tensor(a).float())
    assert rows(Array(two, key="b", held_out=0.0).load().train) == rows(torch.tensor(b).float())
    for key in ("", "c"):
        with pytest.raises(ValueError, match="two.npz cannot be read.*key must be one of a, b, got"):
            Array(two, key=key).load()


@pytest.mark.parametrize(
    ("a", "said"),
    [
        (np.array([{"a": 1}, {"b": 2}], dtype=object), "cannot be read as a plain array"),
        (np.zeros((5, 2), dtype=complex), "must hold numbers"),
        (np.zeros((5, 2), dtype=bool), "must hold numbers"),
        (np.zeros(5), "must hold numbers"),
        (np.zeros((1, 2)), "must hold numbers"),
        (np.zeros((5, 0)), "must hold numbers"),
        (np.array([["a", "b"]] * 3), "must hold numbers"),
        (np.array([[0.0, math.nan]] * 3), "must hold finite numbers"),
        (np.array([[0.0, math.inf]] * 3), "must hold finite numbers"),
        (np.array([[0, 256]] * 3), "levels must cover the grey levels"),
        (np.array([[0, -1]] * 3), "levels must cover the grey levels"),
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
    return (x.double() + 1) * 127.5


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
    assert data.quantized.check(x) is x
    assert rows(levels(x).round()) == rows(a.double())


def test_images_grey(tmp_path):
    """Grey is ITU-R 601's luma, 0.299 R + 0.587 G + 0.114 B, to a level; a grey image read in colour has it thrice."""
    a = pictures(tmp_path)
    luma = (a.double() * torch.tensor([0.299, 0.587, 0.114], dtype=F64)[:, None, None]).sum(1, keepdim=True)
    x = levels(Images(tmp_path, grey=True, held_out=0.0).load().train)
    near = torch.cdist(x.flatten(1), luma.flatten(1), p=math.inf).min(1).values
    assert near.max() < 1
    b = pictures(tmp_path, channels=1, seed=1)
    assert rows(levels(Images(tmp_path, held_out=0.0).load().train).round()) == rows(b.double().expand(-1, 3, -1, -1))


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
    assert Images(tmp_path, size=4).load().shape == (3, 4, 4)


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
