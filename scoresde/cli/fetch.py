"""`scoresde fetch`."""

from argparse import Namespace
from dataclasses import replace

from ..data.fetch import PUBLISHED, fetch


def run(o: Namespace) -> None:
    """Fetch data."""
    if o.data not in PUBLISHED:
        raise ValueError(f"data must be one of {', '.join(PUBLISHED)}, got {o.data!r}")
    if o.out.exists() and not o.out.is_dir():
        raise ValueError(f"out must be a folder, got the file {str(o.out)!r}")
    published = PUBLISHED[o.data]
    fetch(replace(published, mirrors=tuple(o.mirror or published.mirrors)), o.out)
    print(f"{o.data} is in {o.out}: scoresde train {o.out}")
