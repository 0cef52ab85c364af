"""Datasets of torch.utils.data: the samples are their items, in order, with their labels."""

import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data import Dataset as Items

from scoresde import Quantized
from scoresde.data import split
from scoresde.data.own import from_torch

BYTES = Quantized(256, -1.0, 1.0)


class Each(Items):
    """The items of a list, each of which may be read once."""

    def __init__(self, items, **more):
        self.items, self.asked = list(items), []
        self.__dict__.update(more)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        self.asked.append(i)
        return self.items[i]


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2)


def bytes_of(*shape, seed=0, high=256):
    return np.random.RandomState(seed).randint(0, high, shape).astype(np.uint8)


def images(n, mode="L", size=(6, 5)):
    return [Image.fromarray(a) for a in bytes_of(n, *size, *((3,) if mode == "RGB" else ()))]


def back(data):
    """All samples in the order of the items, for a set split by the share 0.1 and seed 0."""
    train, held = split(len(data.train) + len(data.held_out), 0.1, 0)
    return torch.cat([data.train, data.held_out])[torch.cat([train, held]).argsort()]


@given(
    st.integers(1, 20),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.uint8]),
    st.sampled_from(["tensor", "array", "tuple", "list", "one", "dict"]),
    st.integers(0, 2**16),
)
def test_items_are_the_samples(n, shape, dtype, kind, seed):
    """Whatever the items are, samples are what they hold, in the order of `split`, with the labels that they have."""
    shape = [2, 3, *shape] if kind == "dict" else shape
    x = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed))
    x = x.to(dtype) if dtype == torch.uint8 else x.to(dtype) + 0.1234
    y = torch.arange(n) % 3
    wrap = {
        "tensor": lambda v, k: v,
        "array": lambda v, k: v.numpy(),
        "tuple": lambda v, k: (v, int(k)),
        "list": lambda v, k: [v.numpy(), k],
        "one": lambda v, k: (v,),
        "dict": lambda v, k: {"x": v, "y": k.numpy(), "other": "kept apart"},
    }[kind]
    items = Each([wrap(v, k) for v, k in zip(x, y)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns that are constant
        data = from_torch(items)
    assert items.asked == list(range(n)) and len(data.held_out) == round(0.1 * n)
    want = x[:, None] if len(shape) == 2 and dtype == torch.uint8 else x
    assert back(data).dtype == dtype and torch.equal(back(data), want)
    assert data.quantized == (BYTES if dtype == torch.uint8 else None)
    if kind in ("tuple", "list", "dict"):
        train, held = split(n, 0.1, 0)
        assert torch.equal(data.train_labels, y[train]) and torch.equal(data.held_out_labels, y[held])
    else:
        assert data.train_labels is None


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_of_pil(mode):
    """An image of PIL is its bytes, channels first, on 256 levels."""
    pictures = images(12, mode)
    data = from_torch(Each([(image, 0) for image in pictures]))
    want = np.stack([np.asarray(image).reshape(6, 5, -1).transpose(2, 0, 1) for image in pictures])
    assert np.array_equal(back(data), want) and data.train.dtype == torch.uint8 and data.quantized == BYTES
    assert data.shape == ((1 if mode == "L" else 3), 6, 5)


def test_images_of_other_modes():
    """Palettes become colours and bits grey levels; what has no such is refused."""
    colours = images(1, "RGB")[0].quantize(8)
    assert np.array_equal(from_torch([colours]).train[0], np.asarray(colours.convert("RGB")).transpose(2, 0, 1))
    bits = images(1)[0].convert("1")
    assert from_torch([bits]).train.unique().tolist() == [0, 255]
    for mode in ("RGBA", "I", "F", "CMYK", "LA"):
        with pytest.raises(ValueError, match=rf"^train\[0\] must be an image in grey or RGB, got its mode '{mode}'"):
            from_torch([Image.new(mode, (6, 5))])


@pytest.mark.parametrize(("low", "grid"), [(0, 255), (-1, 255), (0, 1), (-1, 1)])
def test_images_through_totensor(low, grid):
    """Images k/255, as ToTensor makes them, or 2 k/255 - 1, as it is often followed by, are the bytes that they come
    from, with a warning; images of two levels are such; those that are not on the grid stay as they are.
    """
    k = torch.from_numpy(bytes_of(30, 3, 8, 8, high=grid + 1))
    x = k.float().div(grid)
    x = x if low == 0 else x.sub(0.5).div(0.5)
    levels = Quantized(grid + 1, -1.0, 1.0)
    with pytest.warns(UserWarning, match=rf"^images hold the {grid + 1} levels of a grid over \[{low}, 1\]") as caught:
        data = from_torch(TensorDataset(x, torch.zeros(30, dtype=torch.int64)))
    assert len(caught) == 1 and caught[0].filename == __file__
    assert data.train.dtype == torch.uint8 and torch.equal(back(data), k) and data.quantized == levels
    torch.testing.assert_close(data.values(back(data)), 2 * k.float() / grid - 1)
    with pytest.warns(UserWarning, match="^images hold"):
        parts = from_torch(x[:20], x[20:])
    assert torch.equal(parts.held_out, k[20:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        off = x.clone()
        off[17, 1, 2, 3] += 3e-6
        assert torch.equal(back(from_torch(off)), off) and from_torch(off).quantized is None
        assert from_torch(x[:17], off[17:]).held_out.dtype == torch.float32
        given = Quantized(grid + 1, float(low), 1.0)
        kept = from_torch(x, quantized=given)
        assert torch.equal(back(kept), x) and kept.quantized == given


def test_totensor_in_whole():
    """All 256 levels are told apart, in float32 as division gives them."""
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 1, 1, 1)
    with pytest.warns(UserWarning, match="^images hold the 256 levels"):
        assert torch.equal(from_torch(x.float() / 255).train, x)


def test_vectors_are_no_images():
    """Tables of numbers on such a grid are continuous, since a column is no pixel."""
    x = torch.from_numpy(bytes_of(20, 4)).float() / 255
    assert from_torch(x).quantized is None


def test_quantized_is_taken():
    """A grid that is given is that of the levels, in uint8 and int16, which must be on it."""
    x = torch.from_numpy(bytes_of(20, 1, 4, 4, high=17))
    data = from_torch(x, quantized=Quantized(17, -1.0, 1.0))
    assert data.quantized.levels == 17 and torch.equal(back(data), x)
    assert from_torch(300 * x.to(torch.int16), quantized=Quantized(5000, 0.0, 1.0)).train.dtype == torch.int16
    with pytest.raises(ValueError, match="^train must hold levels of Quantized.*, 0 to 15, got 0 to 16"):
        from_torch(x, quantized=Quantized(16, -1.0, 1.0))
    with pytest.raises(ValueError, match="^quantized must be a Quantized or None, got 17"):
        from_torch(x, quantized=17)


def test_half_precision():
    """bfloat16 and float16 become float32."""
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(20, 3).to(dtype)
        assert torch.equal(back(from_torch(x)), x.float())


def test_held_out_items():
    """Items that are held out are those that are given, in order, and train is then whole."""
    x, y = torch.randn(9, 2), torch.arange(9) % 3
    data = from_torch(TensorDataset(x[:6], y[:6]), TensorDataset(x[6:], y[6:]))
    assert torch.equal(data.train, x[:6]) and torch.equal(data.held_out, x[6:])
    assert torch.equal(data.train_labels, y[:6]) and torch.equal(data.held_out_labels, y[6:])
    none = from_torch(TensorDataset(x, y), [])
    assert torch.equal(none.train, x) and none.held_out.shape == (0, 2) and none.held_out_labels.shape == (0,)
    with pytest.raises(ValueError, match="^held_out_labels must be given if train_labels are"):
        from_torch(TensorDataset(x, y), x)
    for other in (torch.zeros(3, 4), torch.zeros(3, 2, dtype=torch.float64)):
        with pytest.raises(
            ValueError, match=r"^held_out must hold samples as train does, got torch.float32 of \(2,\) and"
        ):
            from_torch(x, other)


def test_share_and_seed():
    """The share is held out that is asked for, by the seed."""
    x = torch.randn(40, 2)
    data = from_torch(x, share=0.25, seed=5)
    train, held = split(40, 0.25, 5)
    assert torch.equal(data.train, x[train]) and torch.equal(data.held_out, x[held])
    for fields, said in (({"share": 1.0}, "share must"), ({"share": "x"}, "share must"), ({"seed": -1}, "seed must")):
        with pytest.raises(ValueError, match=f"^{said}"):
            from_torch(x, **fields)
    with pytest.raises(ValueError, match="^share must leave samples to train on, got 0.9 of 1"):
        from_torch(x[:1], share=0.9)


@pytest.mark.parametrize(
    ("names", "want"),
    [
        (["red", "blue"], ("red", "blue")),
        (("red", "blue", "green"), ("red", "blue", "green")),
        (["red"], ()),
        (["red", "red"], ()),
        ([("red", "rose"), ("blue",)], ()),
        (None, ()),
        (7, ()),
    ],
)
def test_names_of_classes(names, want):
    """The names that a dataset has for its classes are those of the labels, if they are names and enough; also those of
    what it is a subset of.
    """
    items = Each([(torch.randn(2), k % 2) for k in range(10)], classes=names)
    assert from_torch(items).names == from_torch(Subset(items, range(8))).names == want
    assert from_torch(Each(torch.randn(9, 2), classes=names)).names == ()


def test_a_bar_is_shown(capsys):
    """One bar counts the items of both parts."""
    from_torch(torch.randn(30, 2), torch.randn(12, 2))
    err = capsys.readouterr().err
    assert "42/42" in err and err.count("read:") - err.count("\r") <= 1


@pytest.mark.parametrize(
    "items",
    [Stream(), DataLoader(TensorDataset(torch.zeros(3, 2))), iter([1]), {"train": [1]}, "text", 3, None, Items()],
)
def test_what_is_no_map_style_dataset(items):
    """What has no length or no items is refused by the name of its class."""
    with pytest.raises(ValueError, match=f"^train must be a map-style dataset.*got {type(items).__name__}"):
        from_torch(items)
    if items is not None:
        with pytest.raises(ValueError, match=f"^held_out must be a map-style dataset.*got {type(items).__name__}"):
            from_torch(torch.zeros(3, 2), items)


Z = torch.zeros(2)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], r"train must hold items to train on, got none"),
        ([Z, torch.zeros(3)], r"samples must have one shape and type, but train\[1\] is torch.float32 of \(3,\), but"),
        ([Z, Z.double()], r"samples must have one shape and type, but train\[1\] is torch.float64"),
        ([Z, 3.0], r"train\[1\] must be a tensor, an array or an image of PIL, got float"),
        ([Z, None], r"train\[1\] must be a tensor, an array or an image of PIL, got NoneType"),
        ([np.array(["a"])], r"train\[0\] must be a tensor, an array or an image of PIL, got ndarray of <U1"),
        ([Z.to_sparse()], r"train\[0\] must be a tensor"),
        (
            [torch.tensor(1.0)],
            r"train\[0\] must hold floating-point numbers or uint8, .* got torch.float32 of shape \(\)",
        ),
        ([Z.long()], r"train\[0\] must hold floating-point numbers or uint8, .* got torch.int64 of shape \(2,\)"),
        ([Z.bool()], r"train\[0\] must hold floating-point numbers or uint8, .* got torch.bool"),
        ([np.zeros(2, complex)], r"train\[0\] must be a tensor"),
        ([bytes_of(6, 5, 3)], r"train\[0\] must have its channels first, got shape \(6, 5, 3\), where they look last"),
        ([torch.zeros(28, 28, 1)], r"train\[0\] must have its channels first"),
        ([(Z, 1, 2)], r"train\[0\] must be a sample or \(sample, label\), got 3 in a tuple"),
        ([()], r"train\[0\] must be a sample or \(sample, label\), got 0 in a tuple"),
        ([{"pixels": Z}], r"train\[0\] must have one sample as 'image' or 'img' or 'x' or 'data', .* \['pixels'\]"),
        ([{"x": Z, "image": Z}], r"train\[0\] must have one sample as"),
        ([{"x": Z, "y": 1, "label": 1}], r"train\[0\] must have one sample as"),
        ([(Z, 0), Z], r"train\[1\] must have a label, as train\[0\] has"),
        ([(Z, None), (Z, 0)], r"train\[1\] must have no label, as train\[0\] has"),
        ([(Z, 0.5)], r"the label of train\[0\] must be a whole number from 0 on, below 10\^6, got 0.5 \(float\)"),
        ([(Z, 0), (Z, -1)], r"the label of train\[1\] must be a whole number from 0 on, below 10\^6, got -1 \(int\)"),
        ([(Z, True)], r"the label of train\[0\] must be a whole number"),
        ([(Z, "red")], r"the label of train\[0\] must be a whole number.*got 'red' \(str\)"),
        ([(Z, torch.tensor([0, 1]))], r"the label of train\[0\] must be.* \(Tensor of torch.int64\)"),
        ([(Z, torch.tensor(1.0))], r"the label of train\[0\] must be.*got 1.0 \(Tensor of torch.float32\)"),
        ([Z, Z / 0], r"train must be finite"),
    ],
)
def test_items_that_are_no_samples(items, said):
    """What an item lacks is said by its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=f"^{said}"):
            from_torch(items, share=0.0)
        if items and "finite" not in said:
            whole = items[0][0] if isinstance(items[0], tuple) and len(items) > 1 else Z
            with pytest.raises(ValueError, match=said.replace("train", "held_out")):
                from_torch([whole], items)


def test_items_that_raise():
    """An item that cannot be read is named, with what went wrong."""

    class Broken(Each):
        def __getitem__(self, i):
            return self.items[i] if i < 2 else {}["gone"]

    with pytest.raises(ValueError, match=r"^train\[2\] cannot be read: KeyError\('gone'\)") as error:
        from_torch(Broken([Z] * 4))
    assert isinstance(error.value.__cause__, KeyError)


def test_labels_of_one_number():
    """A label is a Python number, or one number in a tensor or an array of NumPy."""
    for y in (2, np.int64(2), np.array(2), np.array([2]), torch.tensor(2), torch.tensor([2]), torch.tensor(2).short()):
        assert from_torch([(torch.randn(2), y) for _ in range(2)], share=0.0).train_labels.tolist() == [2, 2]


def test_what_is_loaded_is_a_copy():
    """Writing into the samples does not write into the items, nor are these part of a graph."""
    x = torch.randn(6, 2, requires_grad=True)
    data = from_torch(x, share=0.0)
    data.train.zero_()
    assert x.detach().any() and not data.train.requires_grad
    locked = np.random.RandomState(0).randn(6, 2)[::-1].astype(">f8")
    locked.setflags(write=False)
    assert np.array_equal(from_torch(locked, []).train, locked)


def test_more_than_memory_holds(monkeypatch):
    """What would not fit into the memory is refused after the first item."""
    items = Each(torch.zeros(100, 1000))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 700}.get)
    with pytest.raises(ValueError, match=r"^100 samples as train\[0\], \(1000,\), must fit into memory, but needs"):
        from_torch(items)
    assert items.asked == [0]


def test_default_device_is_not_where_data_are():
    """Samples are on the CPU, whatever device is torch's default."""
    x = torch.randn(9, 2)
    with torch.device("meta"):
        data = from_torch([(v, k) for k, v in enumerate(x)])
    assert torch.equal(back(data), x)


def test_names_of_labels_that_are_changed():
    """A dataset that changes its labels has the names of others."""

    class Changed(list):
        classes = ["zero", "one", "two"]
        target_transform = None

    items = Changed((torch.randn(2), k % 2) for k in range(20))
    assert from_torch(items).names == ("zero", "one", "two")
    items.target_transform = lambda y: int(y == 2)
    assert from_torch(items).names == ()
