"""The folder of a command: of what its results are, one process that writes them, and which of them are whole.

Nothing is taken for a result because it lies there. Every row and every file of a folder is entered with the identity
of the recipe that it was made by and with its own sha256. What was cut off goes on: rows and files that are entered
are not made again, and of a longer piece of work the answers of the network are kept until it is done.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from .. import __version__
from ..files import alone, digest, write
from ..model import Counted
from ..process import Score
from ..values import identity, natural, plain, sealed, unsealed

RECIPE, LEDGER, JOURNAL = "recipe.json", ".files.jsonl", ".answers"
LEDGERS = ".files-*.jsonl"
"""Those of other processes of a group."""
Row = dict[str, Any]


class Rows(dict[tuple[Any, ...], Row]):
    """The rows of a file of JSON lines by their columns `key`, without a last line that was cut off.

    Raises ValueError, naming the file, for a row that is none, or that another recipe has made.
    """

    def __init__(self, file: Path, of: str, *key: str) -> None:
        self.file, self.of, self.key = file, of, key
        super().__init__({tuple(row[k] for k in key): row for row in read_rows(file, of, *key)})
        self.write()

    def add(self, *rows: Row) -> None:
        """New rows, here and in the file."""
        with self.file.open("a") as lines:
            lines.write("".join(map(self._line, rows)))
        self.update({tuple(row[k] for k in self.key): row for row in rows})

    def write(self) -> None:
        """The file anew, with the rows that are here."""
        write(self.file, "".join(map(self._line, self.values())).encode())

    def _line(self, row: Row) -> str:
        said = plain({**row, "recipe": self.of})
        return json.dumps({**said, "seal": identity(said)[:16]}) + "\n"


def read_rows(file: Path, of: str, *key: str) -> list[Row]:
    """What `Rows` has written into a file; none if there is no file."""
    found = []
    text = file.read_text() if file.is_file() else ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break  # it was cut off
        try:
            said = json.loads(line)
            seal, made_by = said.pop("seal", None), said.get("recipe")
            good = all(k in said for k in key) and (made_by != of or seal == identity(said)[:16])
        except (ValueError, AttributeError, TypeError, RecursionError):
            good = False
        if not good:
            raise ValueError(f"{file} is damaged in line {number}: delete that line, or give another --out")
        if made_by != of:
            raise ValueError(f"{file} holds a row of another recipe in line {number}: give another --out")
        del said["recipe"]
        found.append(natural(said))
    return found


class Folder:
    """A folder that is open to this process alone."""

    def __init__(self, path: Path, of: str) -> None:
        self.path, self.of = path, of
        self.files = Rows(path / LEDGER, of, "file")

    def rows(self, name: str, *key: str) -> Rows:
        """Those of a file of this folder."""
        return Rows(self.path / name, self.of, *key)

    def keep(self, name: str, content: bytes) -> None:
        """Write a file, and enter it."""
        (self.path / name).parent.mkdir(exist_ok=True)
        write(self.path / name, content)
        self.files.add({"file": name, "sha256": digest(content)})

    def read(self, name: str) -> bytes | None:
        """A file that was entered; None if it was not, or is not there. Raises ValueError for another content."""
        entered, file = self.files.get((name,)), self.path / name
        if entered is None or not file.is_file():
            return None
        content = file.read_bytes()
        if digest(content) != entered["sha256"]:
            raise ValueError(f"{file} is not what was written there: move it away, or give another --out")
        return content

    def kept(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The content of a file, made if it was not entered yet."""
        content = self.read(name)
        if content is None:
            content = make()
            self.keep(name, content)
        return content

    def gather(self) -> None:
        """Enter the files that other processes of the group have made."""
        for ledger in sorted(self.path.glob(LEDGERS)):
            self.files.add(*read_rows(ledger, self.of, "file"))
            ledger.unlink()

    def drop(self, *names: str) -> None:
        """Remove files that were entered."""
        for name in names:
            if self.files.pop((name,), None):
                (self.path / name).unlink(missing_ok=True)
        self.files.write()


@contextmanager
def opened(out: Path, code: dict[str, str], rank: int = 0, **values: Any) -> Iterator[Folder]:
    """The folder of results that `values` tell of, made if need be, and its recipe written or found there.

    code: digests of modules of one's own; others may be added to those that are there. rank: which process of its group
    this is; the first one's is the folder.
    Raises ValueError if there are results of another recipe, or files without one; a recipe alone, left by a command
    that failed before its first result, is replaced.
    """
    _require_folder(out)
    now, file = plain({"version": __version__, **values}), out / RECIPE
    of, now["code"] = identity(now)[:16], code
    with alone(out) if rank == 0 else nullcontext():
        if rank == 0:
            if not _agrees(out, now):
                for name in (LEDGER, JOURNAL, *(ledger.name for ledger in out.glob(LEDGERS))):
                    (out / name).unlink(missing_ok=True)
            write(file, sealed(now))
            yield Folder(out, of)
        else:
            yield Joined(out, of, rank)


def require_fitting(out: Path, code: dict[str, str], **values: Any) -> bool:
    """Whether there are results that `opened`, with the same arguments, would go on from. Nothing is written. Raises
    ValueError as it.
    """
    _require_folder(out)
    return out.is_dir() and _agrees(out, {**plain({"version": __version__, **values}), "code": code}) and _results(out)


def _require_folder(out: Path) -> None:
    """Raise ValueError for a file."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, and {out} is a file")


def _results(out: Path) -> bool:
    """Whether a folder holds more than a recipe."""
    there = [f for f in out.iterdir() if not f.name.startswith(".") and f.name != RECIPE]
    return any(f.is_dir() or f.stat().st_size for f in there)


def _agrees(out: Path, now: Row) -> bool:
    """Whether the recipe in a folder, if there is one, says the same as `now`, which then has the code of both. Raises
    ValueError if there are results of another one, or files without one.
    """
    file = out / RECIPE
    there = sorted(f.name for f in out.iterdir() if not f.name.startswith(".") and f != file)
    if there and not file.is_file():
        raise ValueError(f"out must be new, or a folder of this command, but {out} holds {there[0]!r} and no {RECIPE}")
    was = plain(unsealed(file.read_bytes(), file)) if file.is_file() else now
    try:
        now["code"] = _agreed(was, now)
    except ValueError:
        if _results(out):
            raise
        return False
    return True


class Joined(Folder):
    """A folder that another process of the group has opened: rows and files of one's own may be added."""

    def __init__(self, path: Path, of: str, rank: int) -> None:
        self.path, self.of, self.rank = path, of, rank

    @cached_property
    def files(self) -> Rows:  # type: ignore[override]
        """Those of this process, in a file of its own, beside those that are entered in the folder."""
        own = Rows(self.path / LEDGERS.replace("*", str(self.rank)), self.of, "file")
        own.update({(row["file"],): row for row in read_rows(self.path / LEDGER, self.of, "file")})
        return own


def _agreed(was: Row, now: Row) -> Row:
    """The code of both recipes. Raises ValueError, naming it, for the first thing that they say differently."""
    codes = was.get("code", {}), now["code"]
    for key in sorted(now.keys() | was.keys()):
        old, new = was.get(key), now.get(key)
        if key == "code":
            old, new = ({k: code[k] for k in codes[0].keys() & codes[1].keys()} for code in codes)
        if old != new:
            raise ValueError(f"out holds results with {key} = {old!r}, not {new!r}: give another --out")
    return {**codes[0], **codes[1]}


class Journal:
    """A score whose answers to a piece of work that takes longer than a second are kept in a file until it is done.

    Cut off and begun again, the work asks the same questions in the same order, and those that were answered are not
    put to the network again. An answer belongs to its place in that order, to x and, on the CPU, to t; where they
    differ, that one and all after it are asked anew. calls: of networks, so far, those of answers that were kept
    included; recalled: of these.
    """

    PATIENCE, MOST = 1.0, 1 << 31  # seconds without a file; bytes in it

    def __init__(self, score: Score, folder: Folder) -> None:
        self.score, self.file, self.calls = score, folder.path / JOURNAL, 0
        self.stop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["score"], name)

    def start(self, *work: Any) -> "Journal":
        """Begin a piece of work, or go on with it if it was cut off."""
        self.work, self.asked, self.recalled = identity(work), 0, 0
        self.waiting: list[bytes] = []
        self.answers = dict(self._read()) if self.file.is_file() else {}
        self.began = self.written = monotonic()
        return self

    def stop(self) -> None:
        """The work is done."""
        self.work, self.answers, self.waiting, self.recalled = "", {}, [], 0

    def done(self, row: Row) -> Row:
        """The work is done, and this is its row: of what was cut off no time can be told."""
        if self.recalled:
            row |= {k: float("nan") for k in ("seconds", "overhead_us", "seconds_to_fit") if k in row}
        self.stop()
        self.file.unlink(missing_ok=True)
        return row

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if not self.work or (torch.is_grad_enabled() and x.requires_grad):
            return self._ask(x, t)[0]
        self.asked += 1
        if self.asked in self.answers:
            question, answer, calls = self.answers.pop(self.asked)
            if question == self._question(x, t):
                self.recalled += calls
                self.calls += calls
                return answer.to(x.device)
            self.answers = {}
            self.file.unlink(missing_ok=True)
        said, calls = self._ask(x, t)
        if monotonic() - self.began > self.PATIENCE:
            self._keep(x, t, said, calls)
        return said

    def _ask(self, x: Tensor, t: Tensor) -> tuple[Tensor, int]:
        """What the score says, and the network calls that it took."""
        counted = Counted(self.score)
        said = counted(x, t)
        self.calls += counted.nfe
        return said, counted.nfe

    def _question(self, x: Tensor, t: Tensor) -> str:
        known = [a.detach().contiguous() for a in (x, torch.as_tensor(t)) if a.device.type == "cpu"]
        return f"{tuple(x.shape)} {x.dtype} " + " ".join(
            str(zlib.crc32(a.view(-1).view(torch.uint8).numpy().data)) for a in known
        )

    def _keep(self, x: Tensor, t: Tensor, said: Tensor, calls: int) -> None:
        content = safetensors.torch.save({"answer": said.detach().cpu().contiguous()})
        head = {"work": self.work, "number": self.asked, "question": self._question(x, t), "bytes": len(content)}
        head |= {"calls": calls, "crc32": zlib.crc32(content)}
        self.waiting += [json.dumps(head).encode() + b"\n", content]
        if monotonic() - self.written > self.PATIENCE / 2:
            if not self.file.is_file() or self.file.stat().st_size < self.MOST:
                with self.file.open("ab") as file:
                    file.write(b"".join(self.waiting))
            self.waiting, self.written = [], monotonic()

    def _read(self) -> Iterator[tuple[int, tuple[str, Tensor, int]]]:
        """The answers to this work that are whole; what follows one that is not is cut off."""
        with self.file.open("r+b") as file:
            while True:
                at, line = file.tell(), file.readline()
                try:
                    head = json.loads(line)
                    content = file.read(head["bytes"])
                    if zlib.crc32(content) != head["crc32"]:
                        raise ValueError("it was cut off, or changed")
                    if head["work"] == self.work:
                        answer = safetensors.torch.load(content)["answer"]
                        yield head["number"], (head["question"], answer, head["calls"])
                except (ValueError, KeyError, TypeError, safetensors.SafetensorError):
                    file.truncate(at)
                    return
