"""`scoresde models`."""

from argparse import Namespace

from ..checkpoint import load
from ..files import WEIGHTS


def run(o: Namespace) -> None:
    """List the models that come with the library."""
    for path in sorted(WEIGHTS.glob("*/manifest.json")):
        found = load(path.parent)
        size, shape = sum(p.numel() for p in found.model.parameters()), "x".join(map(str, found.shape))
        print(
            f"{path.parent.name:14s} {found.model.sde!r}, samples of {shape}, {size:,} weights: {found.notes['result']}"
        )
        if o.commands:
            print(f"{'':14s} {found.notes['command']}\n{'':14s} {found.notes['took']}")
