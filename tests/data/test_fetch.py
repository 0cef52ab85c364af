"""Downloads from a server that breaks off, sends rubbish or other files: right content or none, and nothing twice."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from scoresde.cli import main
from scoresde.data import Idx
from scoresde.data.fetch import PUBLISHED, Published, fetch
from scoresde.files import digest

FILES = {"a": bytes(range(256)) * 900, "b": b"short"}
DATA = {name: digest(content) for name, content in FILES.items()}


class Mirror:
    """A server on this machine. breaks: after how many bytes of an answer it hangs up; ranges: whether it knows them;
    spoilt: files of which it sends others, or a part; lacks: files that it has not.
    """

    def __init__(self, breaks=10**9, ranges=True, spoilt=(), lacks=(), cut=()):
        self.asked, self.sent = [], 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name, start = self.path.split("/")[-1].removesuffix(".gz"), 0
                outer.asked.append((name, self.headers.get("Range")))
                if name in lacks or name not in FILES:
                    self.send_error(404)
                    return
                content = gzip.compress(b"another" if name in spoilt else FILES[name], mtime=0)
                content = content[:-9] if name in cut else content
                if ranges and self.headers.get("Range"):
                    start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                    if start >= len(content):
                        self.send_error(416)
                        return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                part = content[start : start + breaks]
                self.wfile.write(part)
                outer.sent += len(part)
                self.close_connection = True

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/files"


@pytest.fixture
def mirror():
    made = []

    def make(**options):
        made.append(Mirror(**options))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def fetched(folder, *mirrors):
    return fetch(Published(DATA, tuple(m if isinstance(m, str) else m.url for m in mirrors)), folder, progress=False)


def whole(folder):
    """All files are there as they were published, and nothing else."""
    there = {path.name: path.read_bytes() for path in folder.iterdir()}
    return there == FILES


def test_files_are_what_was_published(tmp_path, mirror):
    """And are not fetched again, but for one that was changed."""
    server = mirror()
    assert fetched(tmp_path / "new", server) == [tmp_path / "new" / name for name in FILES] and whole(tmp_path / "new")
    assert len(server.asked) == 2 and fetched(tmp_path / "new", server) and len(server.asked) == 2
    (tmp_path / "new" / "b").write_bytes(b"changed")
    fetched(tmp_path / "new", server)
    assert whole(tmp_path / "new") and [name for name, _ in server.asked] == ["a", "b", "b"]


@pytest.mark.parametrize("breaks", [1, 97, 400])
def test_what_breaks_off_goes_on(tmp_path, mirror, breaks):
    """However often, every byte is sent once."""
    server = mirror(breaks=breaks)
    fetched(tmp_path, server)
    size = sum(len(gzip.compress(content, mtime=0)) for content in FILES.values())
    assert whole(tmp_path) and server.sent == size and len(server.asked) > 2


def test_a_server_that_cannot_go_on_begins_anew(tmp_path, mirror):
    """And if it always breaks off, another goes on where it was; of servers like it alone nothing comes of it."""
    assert whole(tmp_path) is False and fetched(tmp_path, mirror(breaks=10, ranges=False), mirror()) and whole(tmp_path)
    with pytest.raises(RuntimeError, match="a is to be had from none of its mirrors. http.*broke off 5 times"):
        fetched(tmp_path / "2", mirror(breaks=10, ranges=False))
    assert not (tmp_path / "2" / "a").exists()


@pytest.mark.parametrize("fault", ["spoilt", "cut", "lacks"])
def test_what_is_wrong_is_taken_from_another(tmp_path, mirror, fault):
    """Another file, one without its end, and none: never kept under the name, and told if there is no other mirror."""
    bad, good = mirror(**{fault: ("a",)}), mirror()
    fetched(tmp_path / "1", bad, good)
    assert whole(tmp_path / "1")
    with pytest.raises(RuntimeError, match="a is to be had from none of its mirrors. http"):
        fetched(tmp_path / "2", bad, bad)
    assert [path.name for path in (tmp_path / "2").iterdir()] == []


def test_an_interrupted_download_goes_on_at_the_next_call(tmp_path, mirror):
    """With what was there; even if that was all of it."""
    content = gzip.compress(FILES["a"], mtime=0)
    for have in (100, len(content)):
        folder, server = tmp_path / str(have), mirror()
        folder.mkdir()
        (folder / ".a.gz.part").write_bytes(content[:have])
        fetched(folder, server)
        assert whole(folder) and server.asked[0] == ("a", f"bytes={have}-")


def test_no_server(tmp_path):
    with pytest.raises(RuntimeError, match="none of its mirrors.*refused"):
        fetched(tmp_path, "http://127.0.0.1:9/x")


def test_from_the_shell(tmp_path, mirror, monkeypatch, capsys):
    """What is fetched is what `scoresde train` reads."""

    def idx(a):
        head = bytes([0, 0, 8, a.ndim]) + b"".join(n.to_bytes(4, "big") for n in a.shape)
        return head + a.astype(np.uint8).tobytes()

    a = np.random.RandomState(0).randint(0, 256, (12, 5, 5))
    for part in ("train", "t10k"):
        monkeypatch.setitem(FILES, f"{part}-images-idx3-ubyte", idx(a))
        monkeypatch.setitem(FILES, f"{part}-labels-idx1-ubyte", idx(np.arange(12) % 3))
    sums = {name: digest(FILES[name]) for name in PUBLISHED["mnist"].files}
    monkeypatch.setitem(PUBLISHED, "mnist", Published(sums, ("http://127.0.0.1:9",)))
    out = tmp_path / "mnist"
    assert main(["fetch", "mnist", "--out", str(out), "--mirror", mirror().url]) == 0
    assert f"scoresde train {out}" in capsys.readouterr().out
    assert np.array_equal(Idx(out).load().train[:, 0].numpy(), a)
    assert main(["fetch", "cifar", "--out", str(out)]) == 2 and "mnist, fashion-mnist" in capsys.readouterr().err
    assert main(["fetch", "mnist", "--out", str(out / "t10k-images-idx3-ubyte")]) == 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_sums_of_published_data(name):
    """The published files, where they are at hand, are those whose sums are known."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / name
    if not folder.is_dir():
        pytest.skip(f"there is no {folder.name} beside the repository")
    for file, known in PUBLISHED[name].files.items():
        assert digest(gzip.decompress((folder / f"{file}.gz").read_bytes())) == known
