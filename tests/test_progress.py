"""Long jobs: a bar that does not fill a log, and work that an interrupt does not tear."""

import io
import signal
import sys
import threading

import pytest

from scoresde.progress import bar, unbroken


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_bar_passes_everything_on(monkeypatch, stream):
    """What is iterated comes through in order, and the bar goes to standard error with its title and count."""
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(bar(range(2000), desc="title")) == list(range(2000))
    said = sys.stderr.getvalue()
    assert "title" in said and "2000/2000" in said


def test_bar_in_a_log(monkeypatch):
    """Where nobody watches, thousands of quick steps say no more than that they began and ended."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert sum(bar(range(20_000))) == sum(range(20_000))
    assert sys.stderr.getvalue().count("%|") == 2
    monkeypatch.setattr(sys, "stderr", Terminal())
    with bar(total=1) as watched:
        assert watched.mininterval <= 0.1


@pytest.fixture
def handled(monkeypatch):
    """The interrupts that arrived, in place of Python's handler."""
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append("interrupt"))
    yield came
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits(handled):
    """Inside, work goes on to its end; then the interrupt, however often it came, arrives once."""
    with unbroken():
        for k in range(3):
            signal.raise_signal(signal.SIGINT)
            handled.append(k)
    assert handled == [0, 1, 2, "interrupt"]
    with unbroken():
        pass
    signal.raise_signal(signal.SIGINT)
    assert handled[3:] == ["interrupt", "interrupt"]


def test_an_interrupt_waits_for_the_outermost(handled):
    """Inside twice, it waits twice."""
    with unbroken():
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            handled.append("inner")
        handled.append("outer")
    assert handled == ["inner", "outer", "interrupt"]


def test_errors_pass(handled):
    """An exception inside comes out, and the handler is as before."""
    with pytest.raises(KeyError), unbroken():
        raise KeyError
    signal.raise_signal(signal.SIGINT)
    assert handled == ["interrupt"]


def test_interrupt_is_pythons():
    """With Python's own handler the interrupt is a KeyboardInterrupt after the last line inside."""
    done = []
    with pytest.raises(KeyboardInterrupt):
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1]


def test_other_threads():
    """Only the main thread is interrupted, so elsewhere there is nothing to hold back, and no error."""
    done = []

    def work():
        with unbroken():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
