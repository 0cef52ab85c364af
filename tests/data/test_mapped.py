"""Samples that stay on the disk: what an array in memory is, from the file, and what is refused."""

import os

import numpy as np
import pytest
import torch

from scoresde import VP, Karras, Quantized, ScoreModel
from scoresde.data import Array, Dataset, Mapped, mapped
from scoresde.nn import MLP
from scoresde.noise import seeded
from scoresde.training import Settings, train


def stored(path, a):
    np.save(path, a)
    return path


def bytes_of(n=40, seed=0, shape=(6, 5)):
    return np.random.RandomState(seed).randint(0, 256, (n, *shape)).astype(np.uint8)


def test_the_last_are_held_out(tmp_path):
    """Grey levels, labels and shapes are as `Array` has them, in the order of the file."""
    a, y = bytes_of(), np.arange(40) % 3
    data = Mapped(stored(tmp_path / "x.npy", a), stored(tmp_path / "y.npy", y), held_out=0.25).load()
    assert data.shape == (1, 6, 5) and data.quantized == Quantized(256, -1.0, 1.0) and data.classes == 3
    assert torch.equal(data.train, torch.from_numpy(a[:30, None])) and torch.equal(
        data.held_out[:, 0], torch.from_numpy(a[30:])
    )
    assert data.train_labels.tolist() == y[:30].tolist() and data.held_out_labels.tolist() == y[30:].tolist()
    whole = Array(tmp_path / "x.npy", held_out=0.25).load()
    assert (whole.shape, whole.quantized, len(whole.train)) == (data.shape, data.quantized, len(data.train))
    series = np.random.RandomState(0).randn(10, 2, 7).astype(np.float32)
    found = Mapped(stored(tmp_path / "s.npy", series), series=True, held_out=0.0).load()
    assert found.shape == (2, 7) and found.quantized is None and torch.equal(found.train, torch.from_numpy(series))


def test_they_are_in_the_file(tmp_path):
    """What changes in the file changes in the data, which shows that they were not copied; and what is written into the
    data does not reach the file.
    """
    path = stored(tmp_path / "x.npy", bytes_of())
    data, before = Mapped(path).load(), path.read_bytes()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(bytes([before[-1] ^ 1]))
    assert int(data.held_out[-1, 0, -1, -1]) == before[-1] ^ 1
    data.held_out[-1] = 0
    assert path.read_bytes()[:-1] == before[:-1] and path.read_bytes()[-1] == before[-1] ^ 1


@pytest.mark.parametrize("kind", ["levels", "numbers"])
def test_training_from_the_file(tmp_path, kind):
    """Training on the file and on the same numbers in memory end in the same weights."""
    a = bytes_of(64, shape=(4,)) if kind == "levels" else np.random.RandomState(1).randn(64, 4).astype(np.float32)
    data = Mapped(stored(tmp_path / "x.npy", a)).load()
    memory = Dataset(data.train.clone(), data.held_out.clone(), quantized=data.quantized)
    assert memory.digest == data.digest

    def trained(data):
        with seeded(0):
            model = ScoreModel(MLP((4,), 8, 1), VP(), Karras(data.around))
        return train(model, data, Settings(steps=20, batch=8), progress=False).state_dict()

    one, two = trained(data), trained(memory)
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="needs the size of the memory")
def test_more_than_the_memory(tmp_path):
    """A file of more bytes than the machine has is opened, here one with nothing in it, and read where it is asked."""
    n = 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    with (tmp_path / "x.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, 2**20)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + n * 2**20)
    a = mapped._opened(tmp_path / "x.npy")
    assert a.shape == (n, 2**20) and a.flags.writeable and a[-1, -1] == 0


def test_latents_of_few_pixels(tmp_path):
    """Channels that are more than four and sides that are fewer are taken where it is said that they are."""
    a = np.random.RandomState(0).randn(20, 8, 4, 4).astype(np.float32)
    assert Mapped(stored(tmp_path / "x.npy", a), channels_last=False).load().shape == (8, 4, 4)
    with pytest.raises(ValueError, match="channels_last=False says"):
        Mapped(tmp_path / "x.npy").load()


def test_what_is_refused(tmp_path):
    """Files that are none, numbers that must be converted, channels last, labels of others: each by its name."""
    good = stored(tmp_path / "x.npy", bytes_of())
    for a, said in (
        (np.zeros((4, 3)), "must hold uint8 or float32 of shape"),
        (np.zeros((4, 3), np.int64), "must hold uint8 or float32 of shape"),
        (np.asfortranarray(bytes_of()), "in the order of C"),
        (np.zeros(4, np.float32), "of shape .*with n > 1"),
        (np.full((4, 3), np.nan, np.float32), "must hold finite numbers"),
        (bytes_of(shape=(8, 8, 3)), "must hold images with channels first: channels_last=False says"),
        (np.full((4, 3), 100, np.uint8), "levels must cover the grey levels"),
        (255 * np.ones((4, 3, 3), np.float32), "must hold whole numbers if these are grey levels"),
    ):
        with pytest.raises(ValueError, match=said):
            Mapped(stored(tmp_path / "bad.npy", a)).load()
    for y in (np.zeros(39, int), np.zeros(40), np.zeros((40, 1), int)):
        with pytest.raises(ValueError, match=r"y.npy must hold whole numbers of shape \(40,\)"):
            Mapped(good, stored(tmp_path / "y.npy", y)).load()
    with pytest.raises(ValueError, match="^path must be a .npy file"):
        Mapped(tmp_path / "none.npy").load()
    np.savez(tmp_path / "many.npz", x=bytes_of())
    np.save(tmp_path / "object.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    for path in (tmp_path / "many.npz", tmp_path / "object.npy"):
        with pytest.raises(ValueError, match="cannot be read as a .npy file"):
            Mapped(path).load()
    with pytest.raises(ValueError, match="^series must be False"):
        Mapped(stored(tmp_path / "t.npy", bytes_of(shape=(3,))), series=True).load()
    with pytest.raises(ValueError, match="^held_out must leave samples"):
        Mapped(good, held_out=0.99).load()
    for fields, named in (
        ({"levels": 257}, "levels"),
        ({"held_out": 1.0}, "held_out"),
        ({"labels": 3}, "labels"),
        ({"series": 1}, "series"),
        ({"channels_last": True}, "channels_last"),
    ):
        with pytest.raises(ValueError, match=f"^{named} must"):
            Mapped(good, **fields)
