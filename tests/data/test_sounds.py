"""Folders of sounds: series are what the files hold, in order, and no recording is in both parts."""

import os
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import wavfile

from scoresde.data.sounds import Sounds

AsIs = partial(Sounds, standardise=False)


def written(folder, a, name="a.wav", rate=8000):
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, a)
    return path


def written24(path, a, rate=8000):
    """A file of 24 bits of the numbers (n, channels), which scipy does not write."""
    raw = a.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    wide = 3 * a.shape[1]
    head = b"WAVEfmt " + np.array([16], "<u4").tobytes() + np.array([1, a.shape[1]], "<u2").tobytes()
    head += np.array([rate, rate * wide], "<u4").tobytes() + np.array([wide, 24], "<u2").tobytes()
    body = head + b"data" + np.array([len(raw)], "<u4").tobytes() + raw + b"\0" * (len(raw) % 2)
    Path(path).write_bytes(b"RIFF" + np.array([len(body)], "<u4").tobytes() + body)


def constants(n):
    """The samples of n files, ten in each, all of which are the number of the file over 64."""
    return [np.full(10, k / 64, np.float32) for k in range(n)]


def heard(data):
    """The numbers of the files that each part holds series of, as `constants` writes them."""
    return [sorted((64 * x[:, 0, 0]).int().tolist()) for x in (data.train, data.held_out)]


@given(
    st.sampled_from([np.uint8, np.int16, np.int32, np.float32, np.float64]),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(0, 30),
    st.integers(0, 2**16),
)
def test_sounds_are_read_back(dtype, channels, length, more, seed):
    """Series are the consecutive pieces of what scipy wrote, channels first: whole numbers moved to [-1, 1), others as
    they are; the remainder is left out.
    """
    rng, n = np.random.RandomState(seed), length + more
    if np.dtype(dtype).kind == "f":
        a = (10 * rng.randn(n, channels)).astype(dtype)
        want = a.astype(np.float32)
    else:
        info = np.iinfo(dtype)
        a = rng.randint(info.min, info.max, (n, channels), dtype)
        a[0], a[-1] = info.min, info.max
        half = 2.0 ** (8 * a.itemsize - 1)
        want = ((a.astype(np.float64) - (half if dtype == np.uint8 else 0)) / half).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        written(folder, a if channels > 1 or seed % 2 else a[:, 0])
        data = AsIs(folder, length, held_out=0.0).load()
    k = n // length
    assert data.train.dtype == torch.float32 and data.shape == (channels, length) and len(data.held_out) == 0
    assert data.quantized is None and len(data.train) == k
    assert np.array_equal(np.concatenate(list(data.train.numpy()), 1).T, want[: k * length])


@given(st.lists(st.integers(-(2**23), 2**23 - 1), min_size=2, max_size=12), st.integers(1, 2))
def test_sounds_of_24_bits(values, channels):
    """24 bits are what they are in float32, exactly."""
    a = np.array(values[: len(values) // channels * channels]).reshape(-1, channels)
    with tempfile.TemporaryDirectory() as folder:
        written24(Path(folder) / "a.wav", a)
        data = AsIs(folder, len(a), held_out=0.0).load()
    assert np.array_equal(data.train[0].numpy().T.astype(np.float64), a / 2.0**23)


@given(st.lists(st.integers(1, 25), min_size=10, max_size=30), st.floats(0, 0.9), st.integers(0, 2**32 - 1))
def test_recordings_are_in_one_part(lengths, share, seed):
    """Of ten files or more, round(share n) are held out with all of their series, by the seed."""
    with tempfile.TemporaryDirectory() as folder:
        for k, n in enumerate(lengths):
            written(folder, np.full(n, k / 64, np.float32), f"{k:02}.wav")
        source = AsIs(folder, 1, held_out=share, seed=seed)
        data, again = source.load(), source.load()
    train, held = heard(data)
    assert not set(train) & set(held) and len(set(held)) == round(share * len(lengths))
    assert sorted(train + held) == [k for k, n in enumerate(lengths) for _ in range(n)]
    assert torch.equal(data.train, again.train) and torch.equal(data.held_out, again.held_out)


def test_seed_chooses_the_files(tmp_path):
    """Other files are held out for another seed; files that give no series do not count."""
    for k, a in enumerate(constants(20)):
        written(tmp_path, a, f"{k:02}.wav")
    held = [heard(AsIs(tmp_path, 10, held_out=0.25, seed=seed).load())[1] for seed in range(3)]
    assert all(len(files) == 5 for files in held) and held[0] != held[1]
    for k in range(11):
        written(tmp_path, np.zeros(9, np.float32), f"{k:02}.wav")
    with pytest.warns(UserWarning, match="^11 of 20 files, such as .*00.wav of 9 samples, are shorter"):
        data = AsIs(tmp_path, 10, held_out=0.3).load()  # of nine files, one series each
    assert len(data.held_out) == 3


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.floats(0, 0.99))
def test_few_recordings_end_in_the_other_part(counts, share):
    """Of fewer than ten files, the last series of each are held out, round(share n) in all and within one of the share
    of each, whatever the seed.
    """
    n = sum(counts)
    with tempfile.TemporaryDirectory() as folder:
        for k, m in enumerate(counts):
            written(folder, np.stack([np.full(m, k / 64), np.arange(m)], 1).astype(np.float32), f"{k}.wav")
        if round(share * n) == n:
            with pytest.raises(ValueError, match="^held_out must leave sounds to train on"):
                AsIs(folder, 1, held_out=share).load()
            return
        data = AsIs(folder, 1, held_out=share, seed=7).load()
    assert len(data.held_out) == round(share * n) and len(data.train) + len(data.held_out) == n
    for k, m in enumerate(counts):
        train, held = (x[x[:, 0, 0] * 64 == k][:, 1, 0].tolist() for x in (data.train, data.held_out))
        assert train + held == list(range(m)) and abs(len(held) - share * m) <= 1


def test_nothing_left_to_train_on(tmp_path):
    """Of ten files, ten are not held out."""
    for k, a in enumerate(constants(10)):
        written(tmp_path, a, f"{k}.wav")
    with pytest.raises(ValueError, match="^held_out must leave sounds to train on, got 0.99 of 10 files"):
        AsIs(tmp_path, 10, held_out=0.99).load()


def test_folders(tmp_path):
    """Files are found in folders below, whatever the case of .wav, in order; hidden ones and other files are not."""
    for k, name in enumerate(["a/0.wav", "a/b/1.WAV", "c.wav"]):
        written(tmp_path, np.full(4, k / 64, np.float32), name)
    for name in (".hidden.wav", ".git/x.wav", "__MACOSX/x.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no sound")
    data = AsIs(tmp_path, 4, held_out=0.0).load()
    assert (64 * data.train[:, 0, 0]).tolist() == [0, 1, 2] and data.names == ()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="^folder must hold no links to folders"):
        AsIs(tmp_path, 4).load()


@pytest.mark.parametrize("each", [2, 8])
def test_classes(tmp_path, each):
    """Every series has the label of its folder, in the order of the alphabet."""
    for k, kind in enumerate(["yes", "no"]):
        for i in range(each):
            written(tmp_path, np.full(12, k, np.float32), f"{kind}/deep/{i}.wav")
    data = AsIs(tmp_path, 4, held_out=0.25, classes=True).load()
    assert data.names == ("no", "yes") and len(data.held_out) == 2 * each * 3 // 4
    for x, y in ((data.train, data.train_labels), (data.held_out, data.held_out_labels)):
        assert torch.equal(1 - x[:, 0, 0].long(), y)
    written(tmp_path, np.zeros(4, np.float32))
    with pytest.raises(
        ValueError, match="^classes must be False where files lie in no folder of a class, such as .*a.w"
    ):
        AsIs(tmp_path, 4, classes=True).load()


def test_silence(tmp_path):
    """Silence is a sound, in 8 bits too."""
    for k in range(3):
        written(tmp_path, np.full(100, 128, np.uint8), f"{k}.wav")
    assert not AsIs(tmp_path, 10).load().train.any()


def test_short_files(tmp_path):
    """A file that is too short is named in a warning, and refused if there is no other."""
    written(tmp_path, np.zeros(7, np.int16), "a.wav")
    written(tmp_path, np.zeros(9, np.int16), "b.wav")
    with pytest.raises(ValueError, match="^length must be at most the 9 samples of the longest file, .*b.wav, got 10"):
        AsIs(tmp_path, 10).load()
    with pytest.warns(
        UserWarning, match="^1 of 2 files, such as .*a.wav of 7 samples, are shorter than length = 8"
    ) as c:
        assert AsIs(tmp_path, 8).load().train.shape == (1, 1, 8)
    assert len(c) == 1 and c[0].filename == __file__


def test_empty_file(tmp_path):
    """A file of no samples gives no series."""
    written(tmp_path, np.zeros(0, np.int16), "a.wav")
    written(tmp_path, np.zeros(9, np.int16), "b.wav")
    with pytest.warns(UserWarning, match="a.wav of 0 samples"):
        assert len(AsIs(tmp_path, 3, held_out=0.0).load().train) == 3


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (8000, 2)])
def test_sounds_that_differ(tmp_path, rate, channels):
    """Files of two sampling rates or numbers of channels are refused, and both are named."""
    written(tmp_path, np.zeros((9, 1), np.int16), "a.wav")
    written(tmp_path, np.zeros((9, channels), np.int16), "b.wav", rate)
    said = rf"^sounds must .* but .*a.wav has 8000 Hz and 1 channels and .*b.wav {rate} Hz and {channels} channels"
    with pytest.raises(ValueError, match=said):
        AsIs(tmp_path, 3).load()


def test_damaged_files(tmp_path):
    """What is no sound, is cut off or holds no numbers is refused by its name; other chunks are passed over."""
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="^folder must hold .wav files, got .* with none"):
            AsIs(folder, 3).load()
    path = written(tmp_path, np.arange(1000, dtype=np.int16))
    whole = path.read_bytes()
    for content in (b"", b"no sound at all", whole[:30], whole[:900], whole[:20] + b"\x02\x00" + whole[22:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.wav cannot be read as a sound: .") as error:
            AsIs(tmp_path, 3).load()
        assert "\n" not in str(error.value)
    extra = b"odd " + np.array([4], "<u4").tobytes() + b"1234"
    path.write_bytes(whole[:4] + np.array([len(whole) + len(extra) - 8], "<u4").tobytes() + whole[8:] + extra)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert AsIs(tmp_path, 100, held_out=0.0).load().train.shape == (10, 1, 100)
    for bad in (np.nan, np.inf, 1e300):
        written(tmp_path, np.array([0.0, bad, 0.5]))
        with pytest.raises(ValueError, match="a.wav must hold finite numbers, got nan or inf, or beyond float32"):
            AsIs(tmp_path, 3).load()


def test_more_than_memory_holds(monkeypatch, tmp_path):
    """A folder that is larger than the memory is refused after its first file."""
    for k in range(20):
        written(tmp_path, np.zeros(1000, np.uint8), f"{k}.wav")
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 100}.get)
    with pytest.raises(ValueError, match="^20 files must fit into memory, but needs"):
        AsIs(tmp_path, 10).load()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"folder": ""}, "folder"),
        ({"folder": None}, "folder"),
        ({"length": 0}, "length"),
        ({"length": 1.5}, "length"),
        ({"classes": "no"}, "classes"),
        ({"held_out": 1}, "held_out"),
        ({"seed": -1}, "seed"),
    ],
)
def test_fields(fields, named):
    """A field that is none is refused by its name when the source is made."""
    with pytest.raises(ValueError, match=f"^{named} must"):
        AsIs(**{"folder": "a", "length": 4, **fields})


def test_series_are_standardised_unless_said(tmp_path):
    """Of quiet sounds too the deviation is 1, and the units give back what was heard."""
    a = (1000 * np.random.RandomState(0).randn(4000)).astype(np.int16)
    wavfile.write(tmp_path / "a.wav", 8000, a)
    data, heard = (kind(tmp_path, 100, held_out=0.25).load() for kind in (Sounds, AsIs))
    assert data.train.std(correction=0) == pytest.approx(1, abs=1e-4) and heard.train.std() < 0.05
    for x, y in ((data.train, heard.train), (data.held_out, heard.held_out)):
        torch.testing.assert_close(data.units.restore(x), y.double(), rtol=1e-5, atol=1e-6)
