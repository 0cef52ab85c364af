"""A report says what it was told, in Markdown and in one HTML file that needs nothing beside it."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scoresde.report import Report, grid_picture, path_picture, side_by_side, tile

NASTY = "a < b & c > \"d\" 'e' <script src='http://x/y.js'></script> &amp; | \\ é"


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, text, and tags left open."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append((self.open[-1] if self.open else "", data))

    def said(self, tag):
        return [data for inside, data in self.words if inside == tag]


def png(file, seed=0):
    a = np.random.RandomState(seed).randint(0, 256, (4, 5, 3)).astype(np.uint8)
    Image.fromarray(a).save(file)
    return file.read_bytes()


def make(folder):
    report = Report(NASTY)
    report.heading(NASTY + "h")
    report.text(NASTY + "p")
    report.table(["one", NASTY + "th"], [["1", NASTY + "td"], ["", "4"]])
    report.picture("a.png", NASTY + "c")
    report.commands(NASTY + "$\nsecond line")
    report.picture("b.png", "b")
    return report, [png(folder / "a.png", 1), png(folder / "b.png", 2)]


def test_html_says_what_it_was_told(tmp_path):
    """Every text comes out of a browser as it went in, in its own element, and all elements are closed."""
    report, _ = make(tmp_path)
    page = Page(report.html(tmp_path))
    assert page.open == []
    assert page.said("title") == page.said("h1") == [NASTY]
    assert page.said("h2") == [NASTY + "h"] and page.said("p") == [NASTY + "p"]
    assert page.said("th") == ["one", NASTY + "th"] and page.said("td") == ["1", NASTY + "td", "4"]
    assert page.said("figcaption") == [NASTY + "c", "b"] and page.said("pre") == [NASTY + "$\nsecond line"]
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2", "p", "table", "figure", "pre")] == [
        "h1", "h2", "p", "table", "figure", "pre", "figure",
    ]  # fmt: skip
    assert [tag for tag, _ in page.tags].count("td") == 4


def test_html_needs_nothing_beside_it(tmp_path):
    """No script, no link and nothing loaded; pictures are inside, byte for byte."""
    report, pictures = make(tmp_path)
    report.write(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text == report.html(tmp_path)
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "a"}
    sources = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    found = [re.fullmatch(r"data:image/png;base64,([A-Za-z0-9+/=]+)", source) for source in sources]
    assert [base64.b64decode(match[1]) for match in found] == pictures
    style = "".join(page.said("style"))
    assert style and "url(" not in style and "@import" not in style
    assert [attrs["alt"] for tag, attrs in page.tags if tag == "img"] == [NASTY + "c", "b"]


CELLS = st.text(st.characters(min_codepoint=32, exclude_characters="\\"), max_size=6)


@given(st.data())
def test_markdown_tables(data):
    """As many cells in every line as there are columns, whatever they hold, and each the text that went in."""
    k = data.draw(st.integers(1, 4))
    line = st.lists(st.one_of(CELLS, st.sampled_from(["|", "a|b", "a\nb"])), min_size=k, max_size=k)
    columns, rows = data.draw(line), data.draw(st.lists(line, max_size=4))
    report = Report("t")
    report.table(columns, rows)
    title, _, *lines = report.markdown().removesuffix("\n").split("\n")
    assert title == "# t" and len(lines) == len(rows) + 2
    cells = [re.split(r"(?<!\\)\|", line) for line in lines]
    assert all(cell[0] == cell[-1] == "" and len(cell) == k + 2 for cell in cells)
    assert all(set(cell.strip()) == {"-"} for cell in cells[1][1:-1])
    for cell, want in zip([cells[0], *cells[2:]], [columns, *rows]):
        assert [" ".join(c.replace("\\|", "|").split()) for c in cell[1:-1]] == [" ".join(w.split()) for w in want]


def test_markdown_blocks(tmp_path):
    """Blocks stand in order with a blank line between them; a picture is a link to its file."""
    report = Report("Title")
    report.text("words")
    report.heading("Part")
    report.commands("a\nb")
    report.picture("x.png", "caption")
    png(tmp_path / "x.png")
    report.write(tmp_path)
    want = "# Title\n\nwords\n\n## Part\n\n```\na\nb\n```\n\n![caption](x.png)\n"
    assert report.markdown() == want == (tmp_path / "report.md").read_text()


# pictures


@given(
    st.integers(1, 7),
    st.sampled_from([1, 3]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_tile(n, c, h, w, columns, seed):
    """Pixel (y, x) of image k stands at (k // columns (h + 1) + y, k % columns (w + 1) + x); all else is white."""
    x = torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed)) * 3 - 1.5
    rows = (n + columns - 1) // columns
    want = np.ones((rows * (h + 1) - 1, columns * (w + 1) - 1, 3), np.float32)
    for k in range(n):
        for i in range(h):
            for j in range(w):
                for channel in range(3):
                    value = x[k, channel if c == 3 else 0, i, j]
                    at = (k // columns * (h + 1) + i, k % columns * (w + 1) + j, channel)
                    want[at] = ((value + 1) / 2).clamp(0, 1)
    assert np.array_equal(tile(x, columns), want)


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (2, 4, 4), (4, 4), (0, 1, 4, 4), (2, 1, 0, 4)])
def test_tile_errors(shape):
    """Only images of one or three channels, at least one of them, in at least one column."""
    with pytest.raises(ValueError, match="^x must be images of shape"):
        tile(torch.zeros(shape), 3)
    with pytest.raises(ValueError, match="^columns must"):
        tile(torch.zeros(2, 1, 4, 4), 0)


def colours(file):
    """How many pixels of each colour a PNG has."""
    a = np.asarray(Image.open(io.BytesIO(file.read_bytes())).convert("RGB")).reshape(-1, 3)
    values, counts = np.unique(a, axis=0, return_counts=True)
    return {tuple(v): int(n) for v, n in zip(values.tolist(), counts)}


def test_pictures_show_their_images(tmp_path):
    """Images of one strong colour each appear in that colour, in equal areas, in sheets, pairs of sheets and paths."""
    strong = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    x = strong[:, :, None, None].expand(-1, -1, 8, 8)
    grid_picture(x, tmp_path / "grid.png", columns=3)
    side_by_side([("a", x), ("b", x), ("c", x)], tmp_path / "side.png", columns=3)
    path_picture([("a", x, ["1", "2", "3"]), ("b", 40 * x, ["1", "2", "3"])], tmp_path / "path.png")
    for name in ("grid", "side", "path"):
        found = colours(tmp_path / f"{name}.png")
        areas = [found.get(colour, 0) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
        assert min(areas) > 100 and max(areas) < 1.3 * min(areas), (name, areas)


def test_points_are_scattered(tmp_path):
    """Points of the plane are drawn where they are: all of them on the right of the axis, ink on the right only."""
    grid_picture(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), tmp_path / "points.png")
    a = np.asarray(Image.open(tmp_path / "points.png").convert("RGB")).astype(int)
    blue = np.argwhere(a[..., 2] - a[..., 0] > 60)
    y, x = (blue[:, k] for k in (0, 1))
    left, right, low = x.min(), x.max(), y.max()
    assert right - left > 300 and low - y.min() > 300
    on_left = blue[x < left + 20]
    assert (on_left[:, 0] > low - 20).all()  # of the left points only the lower is there
