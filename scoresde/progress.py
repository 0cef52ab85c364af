"""Progress bars on standard error: lively on a terminal, a line every half minute in a log."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """A tqdm bar; `options` are its own."""
    live = sys.stderr.isatty()
    return tqdm(iterable, mininterval=0.1 if live else 30.0, dynamic_ncols=live, **options)
