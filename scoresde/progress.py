"""What long jobs share: progress bars on standard error, and work that an interrupt does not tear."""

import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

from tqdm import tqdm


def bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """A tqdm bar, lively on a terminal, a line every half minute in a log; `options` are its own."""
    live = sys.stderr.isatty()
    return tqdm(iterable, mininterval=0.1 if live else 30.0, dynamic_ncols=live, **options)


def portions(todo: Sequence[Any], most: int, seconds: float = 1.0) -> Iterator[Sequence[Any]]:
    """Slices of todo, first of 8 and then twice as many while one takes less than so long, never more than `most`."""
    start, size = 0, min(8, most)
    while start < len(todo):
        began = monotonic()
        yield todo[start : start + size]
        start += size
        size = min(2 * size, most) if monotonic() - began < seconds else size


class Stopped(KeyboardInterrupt):
    """A signal that asks the process to end, as `kill`, a cluster or a closed terminal send it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


ASKING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, a signal that asks the process to end raises `Stopped`, as one from the keyboard raises its
    KeyboardInterrupt, so that what is done can be saved; a handler that somebody has set stays.
    """

    def stop(number: int, _: Any) -> None:
        raise Stopped(number)

    with _handled({number: stop for number in ASKING if signal.getsignal(number) is signal.SIG_DFL}):
        yield


@contextmanager
def unbroken() -> Iterator[list[int]]:
    """Inside, such signals and an interrupt from the keyboard wait until the end, so that what belongs together changes
    together; gives the list of those that came.
    """
    came: list[int] = []
    waiting = [number for number in (signal.SIGINT, *ASKING) if callable(signal.getsignal(number))]
    with _handled({number: lambda number, _: came.append(number) for number in waiting}):
        yield came
    if came:
        signal.raise_signal(came[0])


@contextmanager
def _handled(handlers: dict[int, Any]) -> Iterator[None]:
    """Inside, these handlers; in the main thread, since no other is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
