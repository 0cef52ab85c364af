"""Files that are whole or not there, whose content is known by its digest, and folders that one process writes into."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, HOLDER = ".lock", ".lock.json"
WEIGHTS = Path(__file__).parent / "weights"
"""Where the checkpoints lie that come with the library."""


def all_shipped() -> list[str]:
    """The names of the checkpoints that come with the library."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/manifest.json"))


def shipped(name: str) -> Path:
    """The folder of a checkpoint that comes with the library, which `load` takes. Raises ValueError for any other."""
    if name not in all_shipped():
        raise ValueError(f"name must be one of {', '.join(all_shipped())}, got {name!r}")
    return WEIGHTS / name


def digest(*contents: bytes | memoryview) -> str:
    """The sha256 of contents, one after the other, in hexadecimal."""
    found = sha256()
    for content in contents:
        found.update(content)
    return found.hexdigest()


def write(path: Path, content: bytes) -> None:
    """Write a file so that the path never holds a part of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other process is here for the same folder, made if need be.

    Raises ValueError, naming the process, while another one is. The lock is the operating system's: that of a process
    which was killed is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK), folder / HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{folder} is being written by {_said(holder)}: wait for it, or give another folder"
        ) from error
    try:
        write(holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _said(holder: Path) -> str:
    """Who holds a lock."""
    try:
        told = json.loads(holder.read_bytes())
        return f"process {told['pid']} on {told['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun, or just ended
        return "another process"
