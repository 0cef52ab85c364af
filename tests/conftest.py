"""Every law is checked with one thread: sums then have one order, and shared cores do not slow each other down."""

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("laws", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("laws")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
