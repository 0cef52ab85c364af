"""Every law is checked with one thread, in the processes that it starts too: sums then have one order, and shared cores
do not slow each other down.

`pytest --device cuda` checks the laws that take a device on it.
"""

import os
import signal
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
torch.manual_seed(0)  # of what modules draw for their tests: every worker collects the same ones
os.environ["OMP_NUM_THREADS"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored in processes that a shell put behind
hypothesis.settings.register_profile("laws", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("laws")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the laws that take a device are checked: cpu, cuda, ...")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The device, for laws that say nothing elsewhere."""
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    return device


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and weights, in ../shared/data of the repository, for laws that need them."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data in {folder}")
    return folder


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
