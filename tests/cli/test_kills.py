"""A process that is killed at any moment loses nothing that was written and doubles nothing, and what goes on ends as
if nobody had come.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from scoresde import VP, ScoreModel
from scoresde.checkpoint import MANIFEST, exists, load, load_state
from scoresde.cli import main
from scoresde.data import Dataset
from scoresde.noise import seeded
from scoresde.training import Settings, train

HERE = Path(__file__).parent
SETTINGS = Settings(steps=300, batch=16, warmup=10, seed=3)


class Dropping(nn.Module):
    """A network with dropout and running statistics."""

    def __init__(self):
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.drop = nn.Dropout(0.2)

    def forward(self, x, c):
        return self.leave(self.drop(self.norm(self.enter(torch.cat([x, c[:, None]], 1))).tanh()))


def training(folder, pause=0.0):
    """One training, from wherever it stands."""
    with seeded(0):
        model = ScoreModel(Dropping(), VP())
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    options = {"folder": folder, "save_every": 0.05, "resume": exists(folder), "progress": False}
    return train(model, Dataset(x, x[:2]), SETTINGS, on_step=lambda k, loss: time.sleep(pause), **options)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def until(done, process, seconds=60.0):
    """Wait until something is there, or the process has ended."""
    end = time.monotonic() + seconds
    while not done() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.slow
def test_a_training_that_is_killed_twenty_times(tmp_path):
    """12 SIGKILLs, 4 SIGTERMs and 4 SIGINTs at random moments: every tensor is that of the uninterrupted training."""
    training(tmp_path / "whole")
    chance, folder = random.Random(0), tmp_path / "killed"
    signals = [signal.SIGKILL] * 12 + [signal.SIGTERM] * 4 + [signal.SIGINT] * 4
    chance.shuffle(signals)
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import test_kills as t; t.training({str(folder)!r}, 0.02)"
    steps = []
    for number in signals:
        started, process = time.time(), subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        until(lambda: exists(folder) and (folder / MANIFEST).stat().st_mtime > started, process)  # noqa: B023
        time.sleep(chance.uniform(0, 0.25))
        process.send_signal(number)
        process.wait()
        steps.append(load(folder, net=Dropping()).notes["step"])
    assert steps == sorted(steps) and 0 < steps[0] and steps[len(steps) // 2] < SETTINGS.steps
    training(folder)
    whole, killed = (load(f, net=Dropping()).model.state_dict() for f in (tmp_path / "whole", folder))
    assert equal(whole, killed) and equal(load_state(tmp_path / "whole"), load_state(folder))


TIMES = {"seconds", "seconds_to_fit", "overhead_us", "command", "seal"}


def results(out):
    """All rows that a command has left, without times, and its other results."""
    if out.suffix == ".json":
        return json.loads(out.read_text())
    found = {}
    for file in sorted(out.glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[file.name] = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    return {**found, **{f.name: f.read_bytes() for f in sorted(out.rglob("*.npy"))}}


COMMANDS = {
    "likelihood": ["likelihood", "--law", "digitclasses", "--n", "24", "--batch", "4", "--method", "Adams(20)"],
    "bench": ["bench", "--problems", "modes", "--nfe", "5", "--nfe-sde", "10", "--n", "16", "--n-sde", "64"],
    "compare": ["compare", "--nfe", "10", "--n", "200"],
    "tune": ["tune", "--law", "digitclasses", "--nfe", "5", "--pilots", "16"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_killed(tmp_path, name):
    """Killed at random moments of its work and called again, a command has the rows and files of an uninterrupted one,
    each once.
    """
    whole, killed = (tmp_path / (f + (".json" if name == "tune" else "")) for f in ("whole", "killed"))
    assert main([*COMMANDS[name], "--out", str(whole)]) == 0
    chance, done = random.Random(name), 0
    for _ in range(6):
        line = [sys.executable, "-m", "scoresde", *COMMANDS[name], "--out", str(killed)]
        process = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ)
        lock = killed / ".lock.json" if name != "tune" else killed.with_name(f".{killed.name}.work") / ".lock.json"
        until(lock.exists, process)
        time.sleep(chance.uniform(0.05, 1.5))
        process.kill()
        done += process.wait() == 0
    assert done < 6
    assert main([*COMMANDS[name], "--out", str(killed)]) == 0
    assert results(killed) == results(whole)
