"""What long jobs share: progress bars on standard error, and work that an interrupt does not tear."""

import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """A tqdm bar, lively on a terminal, a line every half minute in a log; `options` are its own."""
    live = sys.stderr.isatty()
    return tqdm(iterable, mininterval=0.1 if live else 30.0, dynamic_ncols=live, **options)


@contextmanager
def unbroken() -> Iterator[None]:
    """Inside, an interrupt from the keyboard waits until the end, so that what belongs together changes together."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
    if came:
        signal.raise_signal(signal.SIGINT)
