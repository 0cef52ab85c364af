"""Several processes that torchrun starts: they do the work of one, and one that dies ends the job, not what is done."""

import json
import os
import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_kills import until

from scoresde.checkpoint import exists, load
from scoresde.cli import Parser, common, main, sample
from scoresde.cli.folder import opened

LAUNCH = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "scoresde",
    "--",
]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
TRAIN = ["train", "Ring(n=200)", "--net", "MLP(width=8, depth=1)", "--batch", "16"]


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    out = tmp_path_factory.mktemp("ring") / "model"
    assert main([*TRAIN, "--steps", "20", "--warmup", "5", "--out", str(out)]) == 0
    return out


def together(*args):
    done = subprocess.run([*LAUNCH, *map(str, args)], env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_measures_of_two_processes(tmp_path):
    """They share the measures, and the table is that of one."""
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "x.npy", x.numpy())
    args = ["evaluate", tmp_path / "x.npy", "Ring(n=200)"]
    assert main([*map(str, args), "--out", str(tmp_path / "one.json")]) == 0
    said = together(*args, "--out", tmp_path / "two.json")
    one, two = (json.loads((tmp_path / name).read_text())["quality"] for name in ("one.json", "two.json"))
    assert one == two and said.count("frechet") == 1


def cut():
    raise KeyboardInterrupt


@pytest.mark.slow
def test_samples_of_two_processes(capsys, monkeypatch, tmp_path, ring):
    """They are those of one, in one file, and the calls that are told are those of both; what one process left off is
    gone on with by two, and nothing but the samples stays.
    """
    args = ["sample", ring, "--n", "22", "--batch", "4", "--steps", "5"]
    assert main([*map(str, args), "--out", str(tmp_path / "one")]) == 0
    told = capsys.readouterr().out
    said = together(*args, "--out", tmp_path / "two")
    assert re.search(r"(\d+) network calls, for the 6 of 6 batches", said).group() in told
    assert said.count("22 samples in") == 1
    with monkeypatch.context() as at, pytest.raises(KeyboardInterrupt):
        real, made = sample.draw, []
        at.setattr(sample, "draw", lambda *a, **k: real(*a, **k) if made.append(0) or len(made) < 4 else cut())
        sample.run(Parser("sample").parse_args([*map(str, args[1:]), "--out", str(tmp_path / "cut")]))
    assert "for the 3 of 6 batches drawn now" in together(*args, "--out", tmp_path / "cut")
    assert np.array_equal(np.load(tmp_path / "cut" / "samples.npy"), np.load(tmp_path / "one" / "samples.npy"))
    one, two = (np.load(tmp_path / name / "samples.npy") for name in ("one", "two"))
    assert one.shape == (22, 2) and np.array_equal(one, two)
    assert sorted(f.name for f in (tmp_path / "two").iterdir()) == sorted(f.name for f in (tmp_path / "one").iterdir())
    assert "complete already" in together(*args, "--out", tmp_path / "two")


@pytest.mark.slow
def test_restorations_of_two_processes(tmp_path):
    """Two share the images, and every file is that of one; what is told is told once."""
    args = ["inpaint", "digits-vp", "--images", "5", "--n", "2", "--steps", "4", "--batch", "1"]
    assert main([*args, "--out", str(tmp_path / "one")]) == 0
    said = together(*args, "--out", tmp_path / "two")
    assert said.count("2 samples for each of 5 images") == 1 and "for the 5 of 5 batches drawn now" in said
    one, two = (
        {f.name: f.read_bytes() for f in (tmp_path / k).iterdir() if f.suffix == ".npy"} for k in ("one", "two")
    )
    assert one == two and len(one) == 5


def test_files_of_other_processes(tmp_path):
    """What the second process has made is the folder's once the first one gathers it, and nobody makes it again; it is
    not when another recipe is asked for.
    """
    with opened(tmp_path / "a", {}, n=1) as first, opened(tmp_path / "a", {}, 1, n=1) as second:
        first.keep("part-0", b"0")
        assert second.kept("part-0", lambda: b"never") == b"0"
        assert second.kept("part-1", lambda: b"1") == b"1" and first.read("part-1") is None
        first.gather()
        assert first.read("part-1") == b"1" and first.kept("part-1", lambda: b"never") == b"1"
    with opened(tmp_path / "a", {}, n=1) as again:
        again.gather()
        assert again.read("part-0") == b"0" and again.read("part-1") == b"1"
    with opened(tmp_path / "b", {}, n=1), opened(tmp_path / "b", {}, 1, n=1) as second:
        second.keep("part-1", b"1")
    (tmp_path / "b" / "part-1").unlink()
    with opened(tmp_path / "b", {}, n=2) as other:
        other.gather()
        assert not other.files


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of processes")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies(tmp_path, rank):
    """One of two is killed: the other does not wait for it, the job fails, the last checkpoint is whole, and two new
    processes go on from there.
    """
    out = tmp_path / "model"
    line = [*TRAIN, "--warmup", "5", "--save-every", "0.1", "--views", "0", "--out", str(out)]
    job = subprocess.Popen([*LAUNCH, *line, "--steps", "500"], env=ENV, stderr=subprocess.PIPE, text=True)
    until(lambda: exists(out), job, 120.0)
    os.kill(children(job.pid)[rank], signal.SIGKILL)
    _, said = job.communicate(timeout=60)
    assert job.returncode != 0 and "Signal 9" in said
    step = load(out).notes["step"]
    assert 0 < step < 500
    assert "trained 500 steps" in together(*line, "--steps", 500)


@pytest.mark.slow
def test_weights_in_parts(capsys, tmp_path, ring):
    """Two processes with --shard write the checkpoint of one, and pictures on the way; asked to end they save first;
    one alone is refused.
    """
    line = [*TRAIN, "--warmup", "5", "--steps"]
    assert together(*line, 20, "--shard", "--views", 1, "--out", tmp_path / "two").count("trained 20 steps") == 1
    assert (tmp_path / "two" / "samples-0000020.png").is_file()
    one, two = (load(at).model.state_dict() for at in (ring, tmp_path / "two"))
    for k in one:
        torch.testing.assert_close(two[k], one[k], rtol=0, atol=1e-6)
    out, long = tmp_path / "asked", [*line, "100000", "--save-every", "1e9", "--views", "0"]
    job = subprocess.Popen([*LAUNCH, *long, "--shard", "--out", str(out)], env=ENV, stderr=subprocess.PIPE, text=True)
    until(lambda: (out / "loss.jsonl").is_file(), job, 120.0)
    job.terminate()
    job.communicate(timeout=60)
    step = load(out).notes["step"]
    assert job.returncode != 0 and 50 <= step < 100000
    assert main([*line, "100000", "--shard", "--out", str(out)]) == 2
    assert "sharded needs two processes or more" in capsys.readouterr().err and load(out).notes["step"] == step


def test_each_process_has_its_own_device(monkeypatch):
    """Of processes on one machine each takes the GPU of its number; a device that is named is taken."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "empty", lambda *_, device: device)
    for rank, device, want in ((None, "auto", "cuda"), (3, "auto", "cuda:3"), (5, "cuda", "cuda:1"), (3, "cpu", "cpu")):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert str(common.place(Namespace(seed=0, device=device))) == want
    assert chosen == ["cuda:3", "cuda:1"]
