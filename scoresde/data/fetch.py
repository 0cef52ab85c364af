"""Published data from where they lie: whole files or none, and only those whose content is known.

A download that breaks off goes on where it was, from the same mirror or the next; a file counts by the sha256 of what
is in it once it is unpacked, so that mirrors may pack it as they like.
"""

import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ..files import digest, write
from ..progress import bar

CHUNK = 1 << 16
TRIES = 5
"""How often a mirror may break off without having sent more."""
SECONDS = 30.0
"""After which a mirror that is silent has broken off."""


@dataclass(frozen=True)
class Published:
    """Files by name, with the sha256 of their content, and the folders on the web that hold them packed as NAME.gz."""

    files: dict[str, str]
    mirrors: tuple[str, ...]


def _idx(sums: Sequence[str], *mirrors: str) -> Published:
    names = (f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    return Published(dict(zip(names, sums, strict=True)), mirrors)


PUBLISHED = {
    "mnist": _idx(
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    ),
    "fashion-mnist": _idx(
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    ),
}


def fetch(data: Published, folder: Path, progress: bool = True) -> list[Path]:
    """The files of data in folder, made if need be; those that are there are looked at, and fetched only if they are
    not what they should be. Each is written whole, once its content is right.

    Raises RuntimeError, saying what each mirror did, if a file is to be had from none; other files stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = [folder / name for name in data.files]
    left = [p for p in found if not (p.is_file() and digest(p.read_bytes()) == data.files[p.name])]
    for path in left:
        part, said = path.with_name(f".{path.name}.gz.part"), []
        for mirror in data.mirrors:
            url = f"{mirror.rstrip('/')}/{path.name}.gz"
            try:
                with bar(desc=path.name, unit="B", unit_scale=True, disable=not progress) as shown:
                    _download(url, part, shown.update)
                content = gzip.decompress(part.read_bytes())
                if digest(content) != data.files[path.name]:
                    raise ValueError("what it sent is not the file that was published")
            except (gzip.BadGzipFile, ValueError, EOFError, zlib.error) as error:
                part.unlink(missing_ok=True)
                said.append(f"{url}: {error}")
                continue
            except (OSError, HTTPException) as error:  # what came is kept: the next one may go on
                said.append(f"{url}: {error}")
                continue
            write(path, content)
            part.unlink(missing_ok=True)
            break
        else:
            raise RuntimeError(f"{path.name} is to be had from none of its mirrors. {'; '.join(said)}")
    return found


def _download(url: str, part: Path, shown: Callable[[int], object]) -> None:
    """All of url into part, from where that ends on. Raises ConnectionError if it breaks off again and again, and
    OSError for what the server refuses.
    """
    silent = 0
    while silent < TRIES:
        have = part.stat().st_size if part.is_file() else 0
        try:
            with urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=SECONDS) as answer:
                rest, got = int(answer.headers.get("Content-Length", -1)), 0
                with part.open("ab" if answer.status == 206 else "wb") as file:
                    while chunk := answer.read(CHUNK):
                        file.write(chunk)
                        got += len(chunk)
                        shown(len(chunk))
            if got == rest or rest < 0:
                return
        except HTTPError as error:
            if error.code == 416:  # there is nothing beyond what is here
                return
            raise
        except (ConnectionError, TimeoutError, HTTPException):
            pass
        silent = 0 if part.is_file() and part.stat().st_size > have else silent + 1
    raise ConnectionError(f"it broke off {TRIES} times without sending more")
