"""CIFAR-10: what was written is what is loaded, from either version; and no pickle runs what is in it."""

import hashlib
import io
import os
import pickle
import pickletools
import struct
import tempfile
import tracemalloc
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import damaged

from scoresde import Quantized
from scoresde.data import pickles
from scoresde.data.cifar import TEST, TRAIN, Cifar10
from scoresde.data.pickles import unpickle

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MD5 = {
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
PROTOCOLS = range(6)


class Two:
    """cPickle of Python 2, protocol 2, for dicts, lists, str, small numbers and arrays of bytes."""

    def __init__(self):
        self.put, self.known = 0, {}

    def memo(self):
        self.put += 1
        return b"q" + bytes([self.put]) if self.put < 256 else b"r" + struct.pack("<I", self.put)

    def named(self, module, name):
        if name in self.known:
            return b"h" + bytes([self.known[name]])
        out = b"c" + f"{module}\n{name}\n".encode() + self.memo()
        self.known[name] = self.put
        return out

    def string(self, s, memo=True):
        short = len(s) < 256
        head = b"U" + bytes([len(s)]) if short else b"T" + struct.pack("<i", len(s))
        return head + s + (self.memo() if memo else b"")

    def number(self, n):
        if not 0 <= n < 2**16:
            return b"J" + struct.pack("<i", n)
        return b"K" + bytes([n]) if n < 256 else b"M" + struct.pack("<H", n)

    def array(self, a):
        out = self.named("numpy.core.multiarray", "_reconstruct") + self.named("numpy", "ndarray")
        out += b"K\0\x85U\x01b\x87R" + self.memo() + b"(K\x01" + b"".join(map(self.number, a.shape)) + b"\x86"
        out += self.named("numpy", "dtype") + b"U\x02u1K\0K\x01\x87R" + self.memo()
        out += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89"
        return out + self.string(a.tobytes(), memo=False) + b"tb"

    def value(self, x):
        if isinstance(x, np.ndarray):
            return self.array(x)
        if isinstance(x, str | bytes):
            return self.string(x if isinstance(x, bytes) else x.encode())
        if isinstance(x, int):
            return self.number(x)
        if isinstance(x, list):
            return b"]" + self.memo() + b"(" + b"".join(map(self.value, x)) + b"e"
        return b"}" + self.memo() + b"(" + b"".join(self.value(part) for item in x.items() for part in item) + b"u"


def python2(x):
    return b"\x80\x02" + Two().value(x) + b"."


def batches(n=2, seed=0):
    """Labels and pixels of the six batches."""
    rng = np.random.RandomState(seed)
    draw = lambda: (rng.randint(0, 10, n), rng.randint(0, 256, (n, 3072)).astype(np.uint8))  # noqa: E731
    return {name: draw() for name in (*TRAIN, TEST)}


def binary(folder, made):
    folder = Path(folder)
    folder.mkdir(exist_ok=True, parents=True)
    for name, (labels, pixels) in made.items():
        np.concatenate([labels[:, None].astype(np.uint8), pixels], 1).tofile(folder / f"{name}.bin")
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")


def keyed(value, keys):
    """The str in a value as str, or as the bytes that they are in Python 2."""
    if isinstance(value, dict):
        return {keyed(k, keys): keyed(v, keys) for k, v in value.items()}
    if isinstance(value, list):
        return [keyed(v, keys) for v in value]
    return value.encode() if keys is bytes and isinstance(value, str) else value


def batch(name, labels, pixels):
    """A batch, as the Python version has it."""
    files = [f"ship_s_{k:06}.png" for k in range(len(labels))]
    return {"batch_label": f"training {name}", "labels": labels.tolist(), "data": pixels, "filenames": files}


META = {"num_cases_per_batch": 10000, "label_names": list(NAMES), "num_vis": 3072}


def python(folder, made, dumps):
    folder = Path(folder)
    folder.mkdir(exist_ok=True, parents=True)
    for name, (labels, pixels) in made.items():
        (folder / name).write_bytes(dumps(batch(name, labels, pixels)))
    (folder / "batches.meta").write_bytes(dumps(META))


def same(data, made):
    parts = [(data.train, data.train_labels, TRAIN), (data.held_out, data.held_out_labels, (TEST,))]
    return data.names == NAMES and all(
        np.array_equal(x.numpy(), np.concatenate([made[name][1] for name in names]).reshape(-1, 3, 32, 32))
        and np.array_equal(y.numpy(), np.concatenate([made[name][0] for name in names]))
        for x, y, names in parts
    )


def read(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some_pickle"
        path.write_bytes(content)
        return unpickle(path)


def refused(content, said=""):
    """Whether a pickle is refused by the name of its file, for a reason."""
    with pytest.raises(ValueError, match="some_pickle cannot be read as a pickle of plain values: ") as error:
        read(content)
    message = str(error.value)
    assert said in message and "\n" not in message and len(message) < 500, message


# what is read


@given(st.integers(1, 4), st.integers(0, 99), st.sampled_from(["", "cifar-10-batches-bin"]))
def test_binary_version(n, seed, inside):
    """The records of the binary version are the images and labels, in the order of the batches."""
    made = batches(n, seed)
    with tempfile.TemporaryDirectory() as folder:
        binary(Path(folder) / inside, made)
        data = Cifar10(folder).load()
    assert same(data, made) and data.shape == (3, 32, 32) and data.quantized == Quantized(256, -1.0, 1.0)
    assert (data.train.dtype, data.train_labels.dtype) == (torch.uint8, torch.int64)


@given(
    st.integers(1, 4),
    st.integers(0, 99),
    st.sampled_from(["", "cifar-10-batches-py"]),
    st.sampled_from([None, *PROTOCOLS]),
    st.sampled_from([str, bytes]),
)
def test_python_version(n, seed, inside, protocol, keys):
    """The Python version is the same images, whichever Python and protocol wrote it, with keys of str or bytes."""
    made = batches(n, seed)
    dumps = python2 if protocol is None else lambda x: pickle.dumps(keyed(x, keys), protocol)
    with tempfile.TemporaryDirectory() as folder:
        python(Path(folder) / inside, made, dumps)
        assert same(Cifar10(folder).load(), made)


def test_which_version(tmp_path):
    """The folder itself comes before those inside, and the binary version before the Python one."""
    for k, (inside, write) in enumerate(
        [
            ("cifar-10-batches-py", lambda *a: python(*a, python2)),
            ("cifar-10-batches-bin", binary),
            ("", lambda *a: python(*a, python2)),
            ("", binary),
        ]
    ):
        write(tmp_path / inside, batches(2, seed=k))
        assert same(Cifar10(tmp_path).load(), batches(2, seed=k))


@pytest.mark.slow
def test_published(shared, tmp_path):
    """The 60,000 images that Krizhevsky published, as uint8, from either version, at the official sums."""
    image = pytest.importorskip("PIL.Image")
    where, made = shared / "cifar10", {}
    labels = [*np.load(where / "labels_train.npy").reshape(5, -1), np.load(where / "labels_test.npy")]
    for name, y in zip(MD5, labels, strict=True):
        tiles = np.asarray(image.open(where / f"{name}.webp").convert("RGB")).reshape(100, 32, 100, 32, 3)
        made[name] = (y, tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3072))
    binary(tmp_path / "bin", made)
    for name, md5 in MD5.items():
        assert hashlib.md5((tmp_path / "bin" / f"{name}.bin").read_bytes()).hexdigest() == md5
    data = Cifar10(tmp_path / "bin").load()
    assert same(data, made) and data.train.shape == (50000, 3, 32, 32) and data.held_out.shape == (10000, 3, 32, 32)
    assert data.train.dtype == torch.uint8 and data.train.nbytes == 50000 * 3072
    assert data.train_labels.bincount().tolist() == [5000] * 10
    python(tmp_path / "py", made, python2)
    assert Cifar10(tmp_path / "py").load().digest == data.digest


def test_writer_of_python_2():
    """The writer of these tests makes the published batches.meta, byte for byte, and what `pickle` reads back."""
    assert hashlib.md5(python2(META)).hexdigest() == "5ff9c542aee3614f3951f8cda6e48888"
    made = batch("batch", *batches(300)[TEST])
    found = pickle.loads(python2(made), encoding="bytes")
    assert np.array_equal(found.pop(b"data"), made.pop("data")) and found == keyed(made, bytes)


simple = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(min_size=1)
values = st.recursive(
    simple,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.binary(min_size=1) | st.integers(-9, 2**40), inner)
    ),
    max_leaves=20,
)


@given(values, st.sampled_from(PROTOCOLS))
def test_plain_values(value, protocol):
    """Plain values of every protocol are what `pickle` reads, and of its types."""
    found = read(pickle.dumps(value, protocol))
    assert found == value and repr(found) == repr(value)


@given(
    st.sampled_from(["?", "u1", "i1", "<u2", ">i2", "<i4", "<i8", "<f2", ">f4", "<f8"]),
    st.lists(st.integers(1, 4), max_size=4),
    st.booleans(),
    st.sampled_from(PROTOCOLS),
    st.integers(0, 99),
)
def test_arrays(kind, shape, by_columns, protocol, seed):
    """Arrays of numbers, in any order of bytes or axes, in one place or in several: their type, shape and values."""
    a = np.asarray(100 * np.random.RandomState(seed).randn(*shape)).astype(kind)
    a = np.array(a, order="F" if by_columns else "C")
    found = read(pickle.dumps({"a": a, "b": [a, a[..., None]]}, protocol))
    for x, y in ((found["a"], a), (found["b"][0], a), (found["b"][1], a[..., None])):
        assert x.dtype == y.dtype and x.shape == y.shape and np.array_equal(x, y)
    assert found["a"] is found["b"][0]


def test_names_of_older_and_newer_numpy():
    """The modules that NumPy has renamed are known by either name."""
    a = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for protocol in PROTOCOLS:
        content = pickle.dumps(a, protocol)
        core = b"numpy._core." if b"numpy._core." in content else b"numpy.core."
        if protocol < 4:  # without lengths before names
            for other in (b"numpy._core.", b"numpy.core."):
                assert np.array_equal(read(content.replace(core, other)), a)


def test_arrays_in_the_memo():
    """Every entry of the memo that an array was put into before its state came holds the array, unless something else
    was put there since.
    """
    state = array()[len(BLANK) : -2]
    found = read(b"(" + BLANK + b"q\1q\2q\3" + state.replace(b"K\3\x85", b"K\3q\3\x85", 1) + b"bh\1h\2h\3l.")
    assert found[0].tolist() == [97, 98, 99] and found[1] is found[2] is found[0] and found[3] == 3


def test_long_lists_share_a_mark():
    """As many values as a batch has, of which a thousand share a mark."""
    value = list(range(10_000))
    assert all(read(pickle.dumps(value, protocol)) == value for protocol in PROTOCOLS)


# what no pickle does


class Call:
    """A value that is made by a call, when `pickle` reads it."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


class Own:
    pass


def exec_here(path):
    return f"open({str(path)!r}, 'w').close()"


def canary(kind, path, protocol):
    call = {
        "system": (os.system, (f"touch {path}",)),
        "eval": (eval, (exec_here(path),)),
        "exec": (exec, (exec_here(path),)),
        "open": (io.open, (str(path), "w")),
        "mkdir": (os.mkdir, (str(path),)),
    }[kind]
    return pickle.dumps({"data": [Call(*call)]}, protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["system", "eval", "exec", "open", "mkdir"])
def test_no_code_is_run(tmp_path, kind, protocol):
    """A pickle that runs a command makes a file when `pickle` reads it, and none here, where its function is named."""
    path = tmp_path / "canary"
    content = canary(kind, path, protocol)
    refused(content, kind)
    for name in ("data_batch_1", "batches.meta"):
        python(tmp_path, batches(), python2)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} .*{kind}"):
            Cifar10(tmp_path).load()
    assert not path.exists()
    pickle.loads(content)
    assert path.exists()


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
BLANK = RECONSTRUCT + b"cnumpy\nndarray\nK\0\x85U\x01b\x87R"
BYTES = b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"


def array(shape=b"K\x03\x85", dtype=BYTES, order=b"\x89", data=b"U\x03abc", version=b"K\x01"):
    return BLANK + b"(" + version + shape + dtype + order + data + b"tb."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cos\nsystem\n(U\x04truetR.", "got 'os system' by GLOBAL at byte 0"),
        (b"(cos\nsystem\nU\x04trueo.", "got 'os system' by GLOBAL at byte 1"),
        (b"(U\x04trueios\nsystem\n.", "got INST at byte 7"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "got 'os system' by STACK_GLOBAL"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.", "got 'numpy dtype.__init__' by STACK_GLOBAL"),
        (b"\x80\x04\x8c\x05numpyK\x01\x93.", "names must be text, got a int"),
        (b"cnumpy \ndtype\n.", "got 'numpy dtype' by GLOBAL"),
        (b"cnumpy.core.multiarray\nscalar\n.", "got 'numpy.core.multiarray scalar'"),
        (b"cnumpy\nload\nU\x01a\x85R.", "got 'numpy load'"),
        (b"c__builtin__\nbytes\n)R.", "got '__builtin__ bytes'"),
        (b"ccopy_reg\n_reconstructor\n.", "got 'copy_reg _reconstructor'"),
        (b"cnumpy\nndarray\n)R.", "got 'numpy ndarray' called by REDUCE"),
        (b"cnumpy\nndarray\nK\x01\x85\x81.", "got NEWOBJ"),
        (b"cnumpy\nndarray\n.", "got a part of an array alone, Named"),
        (BLANK + b".", "got a part of an array alone, Blank"),
        (BLANK + b"q\1h\1.", "must end with one value"),
        (b"]" + BYTES + b"a.", "got a part of an array alone, Dtype"),
        (b"U\x02idU\x01a\x85R.", "got 'a bytes' called by REDUCE"),
        (RECONSTRUCT + RECONSTRUCT + b"K\0\x85U\x01b\x87R.", "'numpy.core.multiarray _reconstruct' called by REDUCE"),
        (RECONSTRUCT + b"cnumpy\nndarray\nM\xff\xff\x85U\x01b\x87R.", "_reconstruct' called by REDUCE"),
        (b"c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0rot13\x86R.", "'_codecs encode' called by REDUCE"),
        (b"c_codecs\nencode\nX\x02\0\0\0\xc4\x80X\x06\0\0\0latin1\x86R.", "'latin-1' codec can't encode"),
        (b"c_codecs\ndecode\n.", "got '_codecs decode'"),
        (b"cnumpy\ndtype\nU\x02u1K\0\x86R.", "'numpy dtype' called by REDUCE"),
        (b"}}b.", "got BUILD at byte 2 of a dict"),
        (b"cnumpy\nndarray\n}b.", "got BUILD at byte 16 of a function"),
        (BLANK + b"}b.", "of an array"),
        (b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R}b.", "of an array's type"),
        (array(version=b"K\x02"), "of an array"),
        (array(dtype=b"U\x02u1"), "of an array"),
        (array(data=b"]"), "of an array"),
        (array(data=b"U\x02ab"), "an array of (3,) must hold 3 bytes, got 2"),
        (array(shape=b"J\xff\xff\xff\xff\x85"), "of lengths from 0 on"),
        (array(shape=b"\x88\x85", data=b"U\x01a"), "of lengths from 0 on"),
        (array(shape=b"(" + b"\x8a\x08" + b"\xff" * 7 + b"\x7f" + b"K\x09t"), "must hold"),
        (array(shape=b"(" + 9 * b"K\x01" + b"t", data=b"U\x01a"), "8 axes at most"),
        (array(dtype=BYTES.replace(b"u1", b"O8"), data=b"U\x18" + bytes(24)), "plain numbers, got the type '|O8'"),
        (array(dtype=BYTES.replace(b"u1", b"V1")), "plain numbers, got the type '|V1'"),
        (array(dtype=BYTES.replace(b"u1", b"S1")), "plain numbers, got the type '|S1'"),
        (array(dtype=BYTES.replace(b"U\x01|", b"U\x01(")), "plain numbers, got the type '(u1'"),
        (b"G" + bytes(8) + b".", "got BINFLOAT at byte 0"),
        (b"F1.5\n.", "got FLOAT"),
        (b"Pa\n.", "got PERSID"),
        (b"K\x01Q.", "got BINPERSID"),
        (b"\x82\x01.", "got EXT1"),
        (b"\x97.", "got NEXT_BUFFER"),
        (b"\x8f.", "got EMPTY_SET"),
        (b"K\x012\x86.", "got DUP"),
        (b"K\x010.", "got POP"),
        (b"\x80\x06K\x01.", "its protocol must be 0 to 5, got 6"),
        (b"\x8a\x09" + b"\xff" * 8 + b"\x01.", "whole numbers must fit into 64 bits"),
        (b"I" + b"9" * 30 + b"\n.", "whole numbers must fit into 64 bits"),
        (b"I" + b"9" * 9999 + b"\n.", ""),
        (b"S" + b"a" * 9999 + b"\n.", "no string quotes around"),
        (b"]\xff.", "opcode b'\\xff' unknown"),
        (b"", "exhausted before seeing STOP"),
        (b"K\x01", "exhausted before seeing STOP"),
        (b".", "must end with one value"),
        (b"K\x01K\x01.", "must end with one value"),
        (b"K\x01(.", "must end with one value"),
        (b"(K\x01.", "must end with one value"),
        (b"(" * 33, "32 deep at most, got MARK at byte 32"),
        (b"K\x01.rest", "must end with one value, got STOP at byte 2 of 7"),
        (b"t.", "a mark must come before"),
        (b"\x85.", "the stack must hold 1 values more, got 0"),
        (b"K\x01\x86.", "the stack must hold 2 values more, got 1"),
        (b"q\1.", "the memo must be given a value, got BINPUT at byte 0"),
        (b"K\1(q\1.", "the memo must be given a value, got BINPUT at byte 3"),
        (b"h\1.", "the memo must hold what is taken from it, got BINGET at byte 0 of entry 1"),
        (b"K\x01K\x01a.", "items must be added to a list"),
        (b"}K\x01a.", "items must be added to a list"),
        (b"]K\x01K\x01s.", "items must be added to a dict"),
        (b"}(K\x01u.", "a dict must have a value for each key"),
        (b"}]K\x01s.", "keys must be text or whole numbers, got a list"),
        (b"})K\x01s.", "keys must be text or whole numbers, got a tuple"),
        (b"X\xff\xff\xff\xff.", "expected 4294967295 bytes"),
        (b"\x8e" + b"\xff" * 7 + b"\x0fabc.", "bytes"),
        (b"T\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (b"\x8b\xff\xff\xff\x7f.", "not enough data"),
        (b"X\x01\0\0\0\xff.", "utf-8"),
    ],
)
def test_what_is_no_plain_value(content, said):
    """Another function or opcode, an array that is none, a stack without what is taken: refused, by what it is."""
    refused(content, said)


def test_pickles_of_objects():
    """Whatever `pickle` makes by calls is refused, in every protocol."""
    for value in (Own(), OrderedDict(a=1), Fraction(1, 2), 1.5, {1}, 2j, bytearray, np.float64(1), torch.zeros(1), b""):
        for protocol in PROTOCOLS:
            if value != b"" and not (isinstance(value, bytearray) and protocol == 5):
                refused(pickle.dumps(value, protocol))
    refused(pickle.dumps(np.array([Own()]), 2))
    refused(pickle.dumps(np.zeros(3, "u1,f4"), 2))


@pytest.mark.parametrize("n", [31, 32, 33, 40, 10**5])
@pytest.mark.parametrize(
    "made",
    [
        lambda n: b"]" * n + b"a" * (n - 1),
        lambda n: b"(" * n + b"t" * n,
        lambda n: b"(" * n + b"l" * n,
        lambda n: b")" + b"\x85" * (n - 1),
        lambda n: b"}K\0" * (n - 1) + b"}" + b"s" * (n - 1),
    ],
    ids=["append", "tuple", "list", "tuple1", "dict"],
)
def test_deep_values(made, n):
    """Values lie 32 deep in each other and no deeper, however they are made."""
    content = made(n) + b"."
    if n > 32:
        refused(content, "values must lie in each other 32 deep at most")
    else:
        assert read(content) == pickle.loads(content)


@pytest.mark.parametrize("content", [b"]q\0h\0a.", b"}q\0K\1h\0s.", b"]q\0]q\1h\0aa.", b"]q\0(h\0ta."])
def test_circles(content):
    """A value that holds itself is refused."""
    refused(content, "in no circle")


def test_one_value_in_many_places():
    """Lists that hold the one before them twice, 2^31 values in the end, are read at once."""
    doubled = b"".join(b"(h%ch%cl" % (k, k) + b"q%c" % (k + 1) for k in range(30))
    found = read(b"(]q\0" + doubled + b"l.")
    assert len(found) == 31 and found[-1][0] is found[-1][1] is found[-2]
    refused(b"(]q\0" + b"".join(b"(h%ch%cl" % (k, k) + b"q%c" % (k + 1) for k in range(40)) + b"l.", "32 deep")


@pytest.mark.parametrize("op", [b"]", b"}", b")", b"N", b"K\1q\1", b"]q\1", BLANK + b"q\1"])
def test_steps(monkeypatch, op):
    """A pickle takes a hundred bytes or so a step besides what is in the file, and its steps are counted."""
    monkeypatch.setattr(pickles, "STEPS", 20_000)
    content = op * 20_001
    tracemalloc.start()
    refused(content, "it has more than 20000 opcodes")
    assert tracemalloc.get_traced_memory()[1] < 2 * len(content) + 120 * 20_000
    tracemalloc.stop()


def test_text_encoded_again_and_again(monkeypatch):
    """The same text in the memo, which each call would copy, is encoded no more often than the file is long."""
    text = b"X" + struct.pack("<I", 2**20) + bytes(2**20) + b"q\0"
    call = b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R"
    assert read(b"(" + text + call + b"l.") == ["\0" * 2**20, bytes(2**20)]
    tracemalloc.start()
    refused(b"(" + text + call * 200 + b"l.", "text must be encoded once, got REDUCE")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_pickles_that_memory_does_not_hold(monkeypatch):
    """A file that would not fit into the memory of the machine, once it is read, is not."""
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 10, "SC_PHYS_PAGES": 10}.get)
    refused(pickle.dumps("a" * 100), "must fit into memory")


@given(st.binary(max_size=60))
def test_any_bytes(content):
    """Any bytes are a value that `pickle` reads the same, or refused."""
    try:
        found = read(content)
    except ValueError as error:
        assert "some_pickle" in str(error)
    else:
        assert repr(found) == repr(pickle.loads(content, encoding="bytes"))


@given(st.data())
def test_damaged_pickle(data):
    """A batch with changed bytes is refused or read as `pickle` would read it, if that can."""
    content = bytearray(python2(batch("batch", np.arange(3), np.arange(12, dtype=np.uint8).reshape(3, 4))))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
            st.sampled_from(sorted(ord(op.code) for op in pickletools.opcodes)) | st.integers(0, 255)
        )
    try:
        found = read(bytes(content))
    except ValueError as error:
        assert "some_pickle" in str(error)
    else:
        assert repr(found) == repr(pickle.loads(bytes(content), encoding="bytes"))


# what is no CIFAR-10


@given(st.data(), st.sampled_from(["binary", "python2", "python3"]), st.sampled_from([*TRAIN, TEST]))
def test_damaged_batch(data, kind, name):
    """A batch with its end missing is refused by name; one with a changed byte too, or it differs there alone."""
    made = batches()
    with tempfile.TemporaryDirectory() as folder:
        if kind == "binary":
            binary(folder, made)
        else:
            python(folder, made, python2 if kind == "python2" else pickle.dumps)
        file = Path(folder) / (f"{name}.bin" if kind == "binary" else name)
        _, cut, _ = damaged(file, data)
        try:
            found = Cifar10(folder).load()
        except ValueError as error:
            assert str(file) in str(error)
            return
    assert not cut
    x, y = (found.held_out, found.held_out_labels) if name == TEST else (found.train, found.train_labels)
    at = 0 if name == TEST else 2 * TRAIN.index(name)
    labels, pixels = made[name]
    changed = int((x[at : at + 2].flatten(1).numpy() != pixels).sum()) + int((y[at : at + 2].numpy() != labels).sum())
    assert changed <= 1
    x[at : at + 2] = torch.from_numpy(pixels).view(2, 3, 32, 32)
    y[at : at + 2] = torch.from_numpy(labels)
    assert same(found, made)


def test_missing_files(tmp_path):
    """An empty folder, and each file that is not there, by name."""
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="^folder must hold data_batch_1.bin or data_batch_1, or"):
            Cifar10(folder).load()
    for inside, write in (("bin", binary), ("py", lambda *a: python(*a, python2))):
        write(tmp_path / inside, batches())
        for file in sorted((tmp_path / inside).iterdir()):
            content = file.read_bytes()
            file.unlink()
            with pytest.raises(ValueError, match=f"/{file.name}"):
                Cifar10(tmp_path / inside).load()
            file.write_bytes(content)
        Cifar10(tmp_path / inside).load()


LABELS, PIXELS = batches()[TEST]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "must hold a dict, got a list"),
        ({"data": PIXELS}, "must hold 'labels' once, got the keys"),
        ({"data": PIXELS, b"data": PIXELS, "labels": [1, 2]}, "must hold 'data' once, got the keys"),
        ({"data": PIXELS, "labels": [1]}, "must hold a list of 2 labels, whole numbers, got 1"),
        ({"data": PIXELS, "labels": (1, 2)}, "must hold a list of 2 labels, whole numbers, got a tuple"),
        ({"data": PIXELS, "labels": [1, True]}, "must hold a list of 2 labels, whole numbers, got a list of others"),
        ({"data": PIXELS, "labels": [1, 2**40]}, "must hold a list of 2 labels, whole numbers, got a list of others"),
        ({"data": PIXELS, "labels": [1, 10]}, "must hold labels 0 to 9, got 1 to 10"),
        ({"data": PIXELS, "labels": [-1, 1]}, "must hold labels 0 to 9, got -1 to 1"),
        ({"data": PIXELS[:1], "labels": [1]}, "must hold 2 images, as data_batch_1 does, got 1"),
        ({"data": PIXELS[:0], "labels": []}, "must hold data .*\\(0, 3072\\)"),
        ({"data": PIXELS[:, :9], "labels": [1, 2]}, ".*of shape \\(n, 3072\\), got uint8 of \\(2, 9\\)"),
        ({"data": PIXELS[0], "labels": [1, 2]}, ".*of shape \\(n, 3072\\), got uint8 of \\(3072,\\)"),
        ({"data": PIXELS / 1, "labels": [1, 2]}, ".*got float64 of"),
        ({"data": [1, 2], "labels": [1, 2]}, ".*got a list"),
    ],
)
def test_pickles_that_are_no_batch(tmp_path, content, said):
    """A pickle of plain values that are not those of a batch is refused by the name of its file."""
    python(tmp_path, batches(), python2)
    (tmp_path / TRAIN[2]).write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"data_batch_3 {said}"):
        Cifar10(tmp_path).load()


def test_records_that_are_no_batch(tmp_path):
    """An empty file, records of another size, another number of them, and labels that are none."""
    binary(tmp_path, batches())
    file = tmp_path / "test_batch.bin"
    content = file.read_bytes()
    for bad, said in (
        (b"", "must hold images of 3073 bytes, a label and 3072 pixels, got 0 bytes"),
        (content + content[:3074], "must hold images of 3073 bytes, a label and 3072 pixels, got 9220 bytes"),
        (content[:3073], "must hold 2 images, as data_batch_1.bin does, got 1"),
        (b"\x0a" + content[1:], "must hold labels 0 to 9"),
    ):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=f"test_batch.bin {said}"):
            Cifar10(tmp_path).load()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (NAMES[:9], "10 lines or words, got 9"),
        ((*NAMES, "plane"), "10 lines or words, got 11"),
        ((*NAMES[:9], "bird"), "names must differ, got 'bird' twice"),
    ],
)
def test_names_that_are_none(tmp_path, words, said):
    """Ten names that differ, in either version."""
    for write, name, content in (
        (binary, "batches.meta.txt", "\n".join(words).encode()),
        (lambda *a: python(*a, python2), "batches.meta", pickle.dumps({"label_names": list(words)})),
    ):
        write(tmp_path / name, batches())
        (tmp_path / name / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} must hold the names of the 10 labels: .*{said}"):
            Cifar10(tmp_path / name).load()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\xff" * 99])
def test_names_in_other_codes(tmp_path, content):
    """What is no text is refused by the name of its file."""
    binary(tmp_path, batches())
    (tmp_path / "batches.meta.txt").write_bytes(content)
    with pytest.raises(ValueError, match="batches.meta.txt must hold the names"):
        Cifar10(tmp_path).load()


@pytest.mark.parametrize("words", [[1] * 10, "airplane", {"a": 1}, [b"\xff", *NAMES[1:]], [None, *NAMES[1:]]])
def test_label_names_that_are_none(tmp_path, words):
    """Other values under label_names are refused by the name of the file."""
    python(tmp_path, batches(), python2)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": words}))
    with pytest.raises(ValueError, match="batches.meta must hold the names of the 10 labels"):
        Cifar10(tmp_path).load()


def test_more_than_memory_holds(tmp_path, monkeypatch):
    """Batches that would not fit into the memory of the machine are refused before they are read."""
    binary(tmp_path, batches())
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 20}.get)
    with pytest.raises(ValueError, match="^the batches in .* must fit into memory"):
        Cifar10(tmp_path).load()


@pytest.mark.parametrize("folder", ["", 3, None])
def test_fields(folder):
    """A folder that is none is refused when the source is made."""
    with pytest.raises(ValueError, match="^folder must be a path"):
        Cifar10(folder)
