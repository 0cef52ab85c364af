"""The process of a command: whom it tells, and how others start it."""

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

CLUSTER = (Path(__file__).parents[2] / "docs" / "howto" / "cluster.md").read_text()


@pytest.mark.parametrize("line", ["--help", "train --help", "sample nowhere 2>&1", "completion bash", "cite VP UniPC"])
def test_nobody_reads(line):
    """A reader that is gone, as after `| head -1`, ends a command without a traceback, with the status of what SIGPIPE
    ends, whether the command would have said help or what is wrong.
    """
    late = "import time; time.sleep(0.2); from scoresde.cli import main; raise SystemExit(main())"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(late)} {line} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    swallowed = "0\n" if line == "train --help" else ""  # argparse ignores it where a text outgrows the buffer
    assert done.stdout in ("141\n", swallowed) and not done.stderr


def test_an_interrupt_from_the_keyboard(tmp_path):
    """Ends a command with one line beside its progress, and the status of what SIGINT ends; what was done is kept."""
    line = ["train", "Ring(n=150)", "--net", "MLP(width=16, depth=1)", "--steps", "1000000", "--save-every", "0.1"]
    run = [sys.executable, "-m", "scoresde", *line, "--views", "0", "--out", str(tmp_path / "out")]
    started = subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "manifest.json").is_file():
        assert started.poll() is None
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=120)
    said = [line for line in re.split(r"[\n\r]", err) if line.startswith("scoresde: ")]
    assert started.returncode == 130 and not out and "Traceback" not in err
    assert said == ["scoresde: stopped by SIGINT; the same command with the same --out goes on from what is there"]


def torchrun(line):
    """What torchrun starts: the module and its arguments."""
    o = get_args_parser().parse_args(shlex.split(line)[1:])
    assert o.module
    return [o.training_script, *o.training_script_args]


def test_torchrun_leaves_options_alone(capsys):
    """As the documentation spells it, no option of a command is taken for one of torchrun's, which takes the first
    letters of its own: `--n` alone is ambiguous to it.
    """
    (start,) = re.findall(r"`(torchrun .* -m scoresde --) train \.\.\.`", CLUSTER)
    line = "likelihood M --n 4 --net x:y --no-denoise --max 3"
    assert torchrun(f"{start} {line}") == ["scoresde", *line.split()]
    with pytest.raises(SystemExit):
        torchrun(f"{start.removesuffix(' --')} {line}")
    assert "ambiguous option: --n" in capsys.readouterr().err
