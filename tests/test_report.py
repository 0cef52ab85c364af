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

from scoresde import report as module
from scoresde.report import SORT, Curve, Diagram, Report, curves, grid_picture, path_picture, side_by_side, tile

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
    """No script but the one that sorts tables, no link and nothing loaded; pictures are inside, byte for byte."""
    report, pictures = make(tmp_path)
    report.write(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text == report.html(tmp_path)
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "a"}
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}] and "".join(page.said("script")) == SORT
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


@pytest.fixture
def figure(monkeypatch):
    """The figures that are saved, each looked at before it is closed."""
    seen, real = [], module.save_figure

    def save(figure, file):
        figure.canvas.draw()
        seen.append(figure)
        real(figure, file)

    monkeypatch.setattr(module, "save_figure", save)
    return seen


def shown(figure):
    """The axes that are visible."""
    return [a for a in figure.axes if a.axison]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_points_side_by_side(tmp_path, figure, k):
    """A cloud for each part, in order, each point where it is, all on one scale with equal units, which holds the whole
    of the last part; nothing where there is no part.
    """
    g = torch.Generator().manual_seed(k)
    parts = [(f"part {i}", torch.randn(7 + i, 2, generator=g, dtype=torch.float64) * (i + 1)) for i in range(k)]
    side_by_side(parts, tmp_path / "points.png")
    axes = shown(figure[0])
    assert [a.get_title() for a in axes] == [title for title, _ in parts]
    for a, (_, x) in zip(axes, parts):
        (cloud,) = a.collections
        np.testing.assert_allclose(cloud.get_offsets(), x.numpy(), rtol=1e-6)
    limits = {(*a.get_xlim(), *a.get_ylim()) for a in axes}
    (left, right, low, high) = limits.pop()
    assert not limits and (left, low) == (-right, -high) and right == high
    assert float(parts[-1][1].abs().max()) < right < 1.5 * float(parts[-1][1].abs().max())
    boxes = [a.get_position() for a in axes]
    inches = figure[0].get_size_inches()
    assert all(b.width * inches[0] == pytest.approx(b.height * inches[1], rel=1e-6) for b in boxes)
    assert len({(round(b.x0, 6), round(b.y0, 6)) for b in boxes}) == k


def test_points_are_seen(tmp_path):
    """A point of each part leaves ink in its own quarter of its own picture: to the right of the middle and above."""
    x = torch.tensor([[0.5, 0.5]]).repeat(50, 1) + 0.02 * torch.randn(50, 2)
    side_by_side([("a", x), ("b", -x), ("all", torch.tensor([[1.0, 1.0]]))], tmp_path / "p.png")
    a = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    blue = np.argwhere(a[..., 2] - a[..., 0] > 40)
    y, x = blue[:, 0], blue[:, 1]
    first, second = y[x < x.min() + 60], y[(x > x.min() + 60) & (x < x.max() - 60)]
    assert len(first) > 10 and len(second) > 10
    assert first.max() < second.min()


def made():
    """Three diagrams; two share a curve, the last has no floor."""
    n = [10, 20, 40]
    power = [3 * v**-1.5 for v in n]
    return [
        Diagram("one", "calls", [Curve("a", n, power), Curve("b", n, [2.0, 2.0, 1.0])], 0.3),
        Diagram("two", "calls", [Curve("b", [10], [0.5]), Curve("c", n[1:], [1.0, 4.0])], 0.2),
        Diagram("three", "steps", [Curve("a", n, power)]),
    ]


def test_curves(tmp_path, figure):
    """Every diagram has its title, its numbers on logarithmic axes, ticks where there are points, its floor as a level
    line; a name has one colour and one marker in all of them, and one entry in the legend.
    """
    diagrams, looks = made(), {}
    curves(diagrams, tmp_path / "curves.png")
    axes = shown(figure[0])
    assert [(a.get_title(), a.get_xlabel()) for a in axes] == [(d.title, d.across) for d in diagrams]
    for a, d in zip(axes, diagrams):
        assert a.get_xscale() == a.get_yscale() == "log"
        floor = [line for line in a.lines if len(set(line.get_ydata())) == 1 and line.get_linestyle() == ":"]
        assert [line.get_ydata()[0] for line in floor] == ([] if d.floor is None else [d.floor])
        lines = [line for line in a.lines if line not in floor]
        assert [(list(v.get_xdata()), list(v.get_ydata())) for v in lines] == [(list(c.x), list(c.y)) for c in d.lines]
        for line, c in zip(lines, d.lines):
            looks.setdefault(c.name, set()).add((line.get_color(), line.get_marker()))
        assert sorted(a.get_xticks()) == sorted({v for c in d.lines for v in c.x})
    assert all(len(look) == 1 for look in looks.values())
    assert all(len({look[i] for (look,) in looks.values()}) == 3 for i in (0, 1))
    (legend,) = figure[0].legends
    entries = {t.get_text(): h for t, h in zip(legend.get_texts(), legend.legend_handles)}
    assert set(entries) == {"a", "b", "c", "real samples"} and len(legend.get_texts()) == 4
    for name, ((colour, marker),) in looks.items():
        assert (entries[name].get_color(), entries[name].get_marker()) == (colour, marker)


def test_a_power_law_is_a_straight_line(tmp_path):
    """What is drawn: the ink of y = 3 x^-1.5 lies on a line, and the legend is inside the picture, below."""
    x = [float(v) for v in range(10, 200, 3)]
    curves([Diagram("t", "n", [Curve("a", x, [3 * v**-1.5 for v in x])])], tmp_path / "c.png")
    a = np.asarray(Image.open(tmp_path / "c.png").convert("RGB")).astype(int)
    blue = np.argwhere(np.abs(a - [31, 119, 180]).sum(2) < 10)
    legend = blue[:, 0] > blue[:, 0].max() - 20
    assert legend.sum() > 10
    y, x = blue[~legend].T
    assert x.max() - x.min() > 300 and y.max() - y.min() > 200
    residual = y - np.polyval(np.polyfit(x, y, 1), x)
    assert np.abs(residual).max() < 12
    assert np.corrcoef(x, y)[0, 1] > 0.999  # pixels count downwards
