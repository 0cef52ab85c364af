"""IDX files: the bytes that are stored are the tensors that are loaded, and a file that is not what it declares is
refused by its name.
"""

import gzip
import hashlib
import os
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import damaged

from scoresde import Quantized
from scoresde.data import Dataset
from scoresde.data.idx import Idx

MD5 = {
    "train-images": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels": "a25bea736e30d166cdddb491f175f624",
    "t10k-images": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels": "27ae3e4e09519cfbb04c329615203637",
}
CLOTHES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def idx(a, kind=8):
    """The file of an array of bytes, as LeCun describes it."""
    return bytes([0, 0, kind, a.ndim]) + b"".join(n.to_bytes(4, "big") for n in a.shape) + a.tobytes()


def name_of(part, mark="-", end=""):
    return f"{part}{mark}idx{3 if part.endswith('images') else 1}-ubyte{end}"


def arrays(n=5, m=3, height=4, width=3, seed=0):
    rng = np.random.RandomState(seed)
    return {
        "train-images": rng.randint(0, 256, (n, height, width)).astype(np.uint8),
        "train-labels": rng.randint(0, 10, n).astype(np.uint8),
        "t10k-images": rng.randint(0, 256, (m, height, width)).astype(np.uint8),
        "t10k-labels": rng.randint(0, 10, m).astype(np.uint8),
    }


def written(folder, a, packed=False, mark="-"):
    for part, x in a.items():
        content = x if isinstance(x, bytes) else idx(x)
        file = Path(folder) / name_of(part, mark, ".gz" if packed else "")
        file.write_bytes(gzip.compress(content) if packed else content)
    return Idx(folder)


def same(data, a):
    x = [data.train, data.held_out, data.train_labels, data.held_out_labels]
    want = [a["train-images"][:, None], a["t10k-images"][:, None], a["train-labels"], a["t10k-labels"]]
    return all(np.array_equal(found.numpy(), y) for found, y in zip(x, want, strict=True))


def refused(source, part, said):
    with pytest.raises(ValueError) as error:
        source.load()
    message = str(error.value)
    assert part in message and said in message and "\n" not in message, message


# what is read


@given(
    st.integers(1, 30),
    st.integers(0, 9),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from("-."),
    st.integers(0, 99),
)
def test_bytes_are_tensors(n, m, height, width, packed, mark, seed):
    """Images of any size and their labels are what was written, packed or not, in either spelling."""
    a = arrays(n, m, height, width, seed)
    with tempfile.TemporaryDirectory() as folder:
        data = written(folder, a, packed, mark).load()
    assert same(data, a) and data.shape == (1, height, width) and data.quantized == Quantized(256, -1.0, 1.0)
    assert (data.train.dtype, data.train_labels.dtype) == (torch.uint8, torch.int64) and data.names == ()


def test_no_labels_and_names(tmp_path):
    """Without files of labels there are none; names are those that are given."""
    a = arrays()
    source = written(tmp_path, a)
    assert Idx(tmp_path, names=CLOTHES).load().names == CLOTHES
    with pytest.raises(ValueError, match="^names must be those of all labels, got 1 for"):
        Idx(tmp_path, names=("top",)).load()
    for part in ("train", "t10k"):
        (tmp_path / name_of(f"{part}-labels")).unlink()
    data = source.load()
    assert data.classes == 0 and data.train_labels is None and data.held_out_labels is None
    with pytest.raises(ValueError, match="^names must be those of all labels"):
        Idx(tmp_path, names=CLOTHES).load()


def test_spellings(tmp_path):
    """The plain file comes before the packed, and what is in a file tells whether it is packed, not its name."""
    a, b = arrays(seed=1), arrays(seed=2)
    written(tmp_path, b, packed=True)
    assert same(written(tmp_path, a).load(), a)
    for part, x in a.items():
        (tmp_path / name_of(part)).unlink()
        (tmp_path / name_of(part, end=".gz")).write_bytes(idx(x))
    assert same(Idx(tmp_path).load(), a)
    for part, x in b.items():
        (tmp_path / name_of(part)).write_bytes(gzip.compress(idx(x)[:7]) + gzip.compress(idx(x)[7:]))
    assert same(Idx(tmp_path).load(), b)


@pytest.mark.parametrize("split", ["letters", "digits"])
def test_emnist(tmp_path, split):
    """A split of EMNIST is turned upright, and its letters are numbered from 0 on; the other splits stay where they
    are.
    """
    a, other = arrays(seed=3), arrays(seed=4)
    b = {k: x.transpose(0, 2, 1) if x.ndim == 3 else x + (split == "letters") for k, x in a.items()}
    for name, x in ((f"emnist-{split}", b), ("emnist-balanced", other)):
        for part, content in x.items():
            file = name_of(f"{name}-{part}".replace("t10k", "test"), end=".gz")
            (tmp_path / file).write_bytes(gzip.compress(idx(content)))
    assert same(Idx(tmp_path, split=split).load(), a)
    with pytest.raises(ValueError, match="^folder must hold train-images-idx3-ubyte or .gz"):
        Idx(tmp_path).load()
    with pytest.raises(ValueError, match="^folder must hold emnist-mnist-train-images-idx3-ubyte or .gz"):
        Idx(tmp_path, split="mnist").load()
    file = tmp_path / name_of("emnist-letters-train-labels", end=".gz")
    file.write_bytes(gzip.compress(idx(0 * a["train-labels"])))
    if split == "letters":
        refused(Idx(tmp_path, split=split), file.name, "must hold 1 to 26, the letters, got 0")


def test_mnist(shared):
    """MNIST as LeCun wrote it: the bytes of the official sums, in uint8, and how often each digit is there."""
    data = Idx(shared / "mnist").load()
    assert data.train.shape == (60000, 1, 28, 28) and data.held_out.shape == (10000, 1, 28, 28)
    assert data.train.dtype == data.held_out.dtype == torch.uint8 and data.train.nbytes == 60000 * 28 * 28
    x = (data.train, data.train_labels, data.held_out, data.held_out_labels)
    for (part, md5), values in zip(MD5.items(), x, strict=True):
        content = values.to(torch.uint8).numpy().reshape(-1, *([28, 28] if part.endswith("images") else []))
        assert hashlib.md5(idx(content)).hexdigest() == md5
    often = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.train_labels.bincount().tolist() == often


def test_fashion_mnist(shared):
    """Fashion-MNIST, plain and packed: the same set, by its digest."""
    source = Idx(shared / "fashion-mnist", names=CLOTHES)
    data = source.load()
    assert data.classes == 10 and data.train_labels.bincount().tolist() == [6000] * 10 and data.names == CLOTHES
    with tempfile.TemporaryDirectory() as folder:
        for file in source.folder.glob("*.gz"):
            (Path(folder) / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        assert Idx(folder).load().digest == data.digest


# what is refused


@given(st.data(), st.sampled_from(sorted(MD5)), st.booleans())
def test_damaged(data, part, packed):
    """A packed file with a changed byte or a missing end is refused by name or holds the same; so is a plain one,
    unless a pixel or label was changed, and then nothing else is.
    """
    a = arrays()
    with tempfile.TemporaryDirectory() as folder:
        source = written(folder, a, packed)
        file = Path(folder) / name_of(part, end=".gz" if packed else "")
        k, cut, content = damaged(file, data)
        try:
            found = source.load()
        except ValueError as error:
            assert str(file) in str(error)
            return
    header = 4 + 4 * a[part].ndim
    assert not cut and (packed or k >= header)
    if not packed:
        a[part].reshape(-1)[k - header] = content[k]
    assert same(found, a)


A = arrays()
IMAGES, LABELS = A["train-images"], A["train-labels"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("part", "content", "said"),
    [
        ("train-images", b"", "it must begin with 0, 0, a type and the number of dimensions, got []"),
        ("train-images", b"\x00\x00\x08", "it must begin with 0, 0, a type"),
        ("train-images", b"\x01" + idx(IMAGES)[1:], "it must begin with 0, 0, a type"),
        ("train-images", b"PK\x03\x04" + bytes(99), "it must begin with 0, 0, a type"),
        ("t10k-images", idx(IMAGES, 7), "it must begin with 0, 0, a type and the number of dimensions, got [0, 0, 7,"),
        ("t10k-images", idx(IMAGES, 9), "it must hold uint8 in 3 dimensions, got int8 in 3 dimensions"),
        ("t10k-images", idx(IMAGES, 0x0B), "got int16"),
        ("t10k-images", idx(IMAGES, 0x0C), "got int32"),
        ("t10k-images", idx(IMAGES, 0x0D), "got float32"),
        ("train-labels", idx(LABELS, 0x0E), "it must hold uint8 in 1 dimensions, got float64 in 1 dimensions"),
        ("train-images", idx(LABELS), "it must hold uint8 in 3 dimensions, got uint8 in 1 dimensions"),
        ("train-labels", idx(IMAGES), "it must hold uint8 in 1 dimensions, got uint8 in 3 dimensions"),
        ("train-images", idx(IMAGES)[:9], "it must declare 3 lengths"),
        ("train-images", idx(IMAGES[:, :, :0]), "it must declare 3 lengths, and images of pixels, got (5, 4, 0)"),
        ("train-images", idx(IMAGES)[:-1], "it must hold 60 bytes after its header, an array of (5, 4, 3), got 59"),
        (
            "train-images",
            idx(IMAGES) + b"\0",
            "it must hold 60 bytes after its header, an array of (5, 4, 3), got more",
        ),
        ("t10k-images", b"\0\0\x08\3" + bytes(4) + b"\xff" * 8, "cannot be read as IDX"),
        ("train-labels", idx(LABELS[:4]), "must hold 5 labels, one for each image of"),
        ("t10k-labels", idx(LABELS), "must hold 3 labels, one for each image of"),
        (
            "t10k-images",
            idx(IMAGES[:3, :, :2].copy()),
            "must hold images of (1, 4, 3), as those to train on are, got (1, 4, 2)",
        ),
        ("train-images", idx(IMAGES[:0]), "data must have samples to train on"),
    ],
)
def test_files_that_are_others(tmp_path, packed, part, content, said):
    """Another magic number, type or number of dimensions, another length or size, each by the name of the file."""
    a = dict(A, **{part: content})
    if "samples" in said:
        a["train-labels"], part = LABELS[:0], ""
    refused(written(tmp_path, a, packed), part, said)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(2**32 - 1, 2**32 - 1, 2**32 - 1), (60000, 2**10, 2**10), (0, 2**32 - 1, 2**32 - 1)])
def test_forged_headers(tmp_path, packed, shape):
    """A small file that declares a huge array is refused before memory is taken for it."""
    content = b"\0\0\x08\3" + b"".join(n.to_bytes(4, "big") for n in shape) + bytes(500)
    source = written(tmp_path, dict(A, **{"train-images": content}), packed)
    tracemalloc.start()
    refused(source, "train-images", "cannot be read as IDX")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_more_than_is_declared(tmp_path):
    """Of a packed file that unfolds to far more than it declares, no more is read; what does not fit is refused."""
    file = tmp_path / name_of("train-images", end=".gz")
    written(tmp_path, A, packed=True)
    file.write_bytes(gzip.compress(idx(IMAGES) + bytes(2**28), 1))
    tracemalloc.start()
    refused(Idx(tmp_path), "train-images", "got more")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_more_than_memory_holds(tmp_path, monkeypatch):
    """Images that would not fit into the memory of the machine are refused by the name of their file."""
    source = written(tmp_path, arrays(n=100))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 100, "SC_PHYS_PAGES": 20}.get)
    refused(source, "train-images", "must fit into memory")


@pytest.mark.parametrize("part", sorted(MD5))
def test_missing_files(tmp_path, part):
    """A missing file is named, and so is one that cannot be opened; labels of one part alone are refused."""
    source = written(tmp_path, A)
    file = tmp_path / name_of(part)
    file.unlink()
    with pytest.raises(ValueError, match=f"^folder must hold {name_of(part)}"):
        source.load()
    file.mkdir()
    with pytest.raises(ValueError, match=f"^folder must hold {name_of(part)}"):
        source.load()


def test_gzip_with_rubbish_behind(tmp_path):
    """What follows the packed bytes and is no packed bytes is refused."""
    written(tmp_path, A, packed=True)
    file = tmp_path / name_of("t10k-labels", end=".gz")
    file.write_bytes(file.read_bytes() + b"rubbish")
    refused(Idx(tmp_path), file.name, "cannot be read as IDX")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"folder": ""}, "folder must be a path"),
        ({"folder": 3}, "folder must be a path"),
        ({"folder": "a", "names": "top"}, "names must be the names of labels"),
        ({"folder": "a", "names": ("top", "top")}, "names must differ"),
        ({"folder": "a", "split": "words"}, "split must be one of balanced, byclass, .*, or empty, got 'words'"),
        ({"folder": "a", "split": None}, "split must be one of"),
    ],
)
def test_fields(fields, said):
    """A field that is none is refused by its name when the source is made, before any file is read."""
    with pytest.raises(ValueError, match=f"^{said}"):
        Idx(**fields)


def test_data_stay_on_the_cpu(tmp_path):
    """Images are on the CPU whatever device is torch's default."""
    source = written(tmp_path, A)
    with torch.device("meta"):
        data = source.load()
    assert isinstance(data, Dataset) and same(data, A)
