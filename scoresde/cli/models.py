"""`scoresde models`."""

from argparse import Namespace

from ..checkpoint import load
from ..files import all_shipped, shipped


def run(o: Namespace) -> None:
    """List the models that come with the library."""
    for name in all_shipped():
        found = load(shipped(name))
        size, shape = sum(p.numel() for p in found.model.parameters()), "x".join(map(str, found.shape))
        print(f"{name:14s} {found.model.sde!r}, samples of {shape}, {size:,} weights: {found.notes['result']}")
        if o.commands:
            print(f"{'':14s} {found.notes['command']}\n{'':14s} {found.notes['took']}")
