"""A report says what it was told, in Markdown and in one HTML file that needs nothing beside it."""

import base64
import json
import math
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from PIL import Image

from scoresde.lab import report as module
from scoresde.lab.report import (
    Curve,
    Diagram,
    Report,
    curves,
    embedded,
    grid_picture,
    heat_maps,
    path_picture,
    save_figure,
    side_by_side,
    table,
    tile,
)

HTML = "a < b & c > \"d\" 'e' <script src='http://x/y.js'></script> &amp;"
NASTY = f"{HTML} | $x ${{y}} {{z}} \\1 \\ *e* __f__ _g_ `h` [i](j) k_l \\* é"
TEMPLATE = (Path(module.__file__).parent / "report.html").read_text()


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


def seen(report, folder=None):
    return Page(report.html(folder))


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
    page = seen(*make(tmp_path)[:1], tmp_path)
    assert page.open == []
    assert page.said("title") == page.said("h1") == [NASTY]
    assert page.said("h2") == [NASTY + "h"] and page.said("p") == [NASTY + "p"]
    assert page.said("th") == ["one", NASTY + "th"] and page.said("td") == ["1", NASTY + "td", "4"]
    assert page.said("figcaption") == [NASTY + "c", "b"] and page.said("code") == [NASTY + "$\nsecond line\n"]
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2", "p", "table", "figure", "pre")] == [
        "h1", "h2", "p", "table", "figure", "pre", "figure",
    ]  # fmt: skip
    assert [tag for tag, _ in page.tags].count("td") == 4


def test_markdown_says_what_it_was_told(tmp_path):
    """Markdown says every text too, with backslashes and the character references of HTML where a character would mean
    something there; commands stand there as they are.
    """
    *parts, commands, last = make(tmp_path)[0].markdown().split("\n\n")
    assert [unescaped(part) for part in parts] == [
        f"# {NASTY}", f"## {NASTY}h", f"{NASTY}p", f"| one | {NASTY}th | | --- | --- | | 1 | {NASTY}td | | | 4 |",
        f"![{NASTY}c](a.png)",
    ]  # fmt: skip
    assert commands == f"```\n{NASTY}$\nsecond line\n```" and last == "![b](b.png)\n"
    assert "<" not in "".join(parts) and not re.search(r"(?<!\\)[*`]|(?<!\\|!)\[", "".join(parts))


def test_html_needs_nothing_beside_it(tmp_path):
    """No script but the one that sorts tables, no link and nothing loaded; pictures are inside, byte for byte."""
    report, pictures = make(tmp_path)
    report.write(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text == report.html(tmp_path)
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "a"}
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]
    assert "".join(page.said("script")) == script() and not re.search("http|import|fetch|src|XML", script())
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    sources = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    found = [re.fullmatch(r"data:image/png;base64,([A-Za-z0-9+/=]+)", source) for source in sources]
    assert [base64.b64decode(match[1]) for match in found] == pictures
    style = "".join(page.said("style"))
    assert style and "url(" not in style and "@import" not in style
    assert [attrs["alt"] for tag, attrs in page.tags if tag == "img"] == [NASTY + "c", "b"]
    assert [attrs["charset"] for tag, attrs in page.tags if "charset" in attrs] == ["utf-8"]


def script():
    """The one that sorts tables."""
    (found,) = re.findall("<script>(.*)</script>", TEMPLATE, re.DOTALL)
    return found


DOM = """
const cells = texts => texts.map(textContent => ({textContent, dataset: {}}));
const body = {rows: ROWS.map(row => ({children: cells(row)}))};
body.append = row => { body.rows = [...body.rows.filter(other => other !== row), row]; };
const heads = cells(ROWS[0]);
for (const head of heads) Object.assign(head, {parentNode: {children: heads}, closest: () => ({tBodies: [body]})});
const document = {querySelectorAll: () => heads};
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the script")
@pytest.mark.parametrize(
    ("column", "once", "twice"),
    [(0, "b d a c e f", "a d b f c e"), (1, "c f a b d e", "b a f c e d"), (2, "a b c d e f", "f e d c b a")],
)
def test_a_click_sorts(column, once, twice):
    """By the number that a cell begins with, the largest last, and after a second click first; what begins with none is
    last either way, by the alphabet and then against it; rows that are equal keep their order.
    """
    rows = [
        ["10 %", "3", "a"], ["2.5e-1", "20", "b"], ["", "-1", "c"], ["1 of 2", "", "d"], ["", "none", "e"],
        ["none", "2", "f"],
    ]  # fmt: skip
    said = "const said = () => body.rows.map(row => row.children[2].textContent).join(' ');"
    clicks = f"for (let k = 0; k < 2; k++) {{ heads[{column}].onclick(); console.log(said()); }}"
    program = f"const ROWS = {json.dumps(rows)};{DOM}{script()}{said}{clicks}"
    found = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == [once, twice]


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
        assert [unescaped(c) for c in cell[1:-1]] == [" ".join(w.split()) for w in want]


def unescaped(cell):
    """What a cell of Markdown says."""
    return " ".join(unescape(re.sub(r"\\([^\w\s]|_)", r"\1", cell)).split())


MARKS = st.text(st.sampled_from("abc<>&|\"'$#{}()[]!*_`\\%+-=.,:;/^~ é"), max_size=8)
WORDS = MARKS.map(lambda s: f"x{s}")


@given(st.data())
def test_both_say_the_same(data):
    """Titles, headings, paragraphs, cells, captions and commands of any words come out of the HTML as they went in, but
    for spaces in a row, which are one.
    """
    k = data.draw(st.integers(1, 3))
    line = st.lists(WORDS, min_size=k, max_size=k)
    (title, head, text, more), columns = data.draw(st.lists(WORDS, min_size=4, max_size=4)), data.draw(line)
    rows = data.draw(st.lists(line, min_size=1, max_size=3))
    report = Report(title)
    report.heading(head)
    report.text(text)
    report.table(columns, rows)
    report.commands(more)
    page = seen(report)

    def flat(words):
        return [" ".join(w.split()) for w in words]

    assert page.open == [] and page.said("title") == [title] and page.said("code") == [more + "\n"]
    for tag, want in (("h1", [title]), ("h2", [head]), ("p", [text]), ("th", columns), ("td", sum(rows, []))):
        assert flat(page.said(tag)) == flat(want), tag


def test_numbers_to_two_decimals():
    """Of what is no whole number; whole ones, and all else, as Python shows them."""
    found = table(
        ["a", "b"], [[1, 1.0], [0.125, -1234.567], [math.nan, -math.inf], [None, True], [np.float64(2), "1.0"]]
    )
    assert [[c.strip() for c in line.strip("|").split("|")] for line in found.split("\n")] == [
        ["a", "b"], ["---", "---"], ["1", "1.00"], ["0.12", "-1234.57"], ["nan", "-inf"], ["None", "True"],
        ["2.00", "1.0"],
    ]  # fmt: skip
    report = Report("t")
    report.table(["a"], [[1.0]])
    assert report.parts == [table(["a"], [[1.0]])]


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


def test_markdown_of_ones_own(tmp_path):
    """A part that is given is Markdown as it is, with its headings, tables, pictures and code."""
    content, text = png(tmp_path / "x.png"), "*so* and\nso\n\n## Part\n\n![caption](x.png)\n\n| a |\n| --- |\n| 1 |"
    report = Report("T", [text])
    assert report.markdown() == f"# T\n\n{text}\n"
    page = seen(report, tmp_path)
    assert [page.said(tag) for tag in ("em", "h2", "th", "td", "figcaption")] == [
        ["so"],
        ["Part"],
        ["a"],
        ["1"],
        ["caption"],
    ]
    (source,) = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert base64.b64decode(source.partition(",")[2]) == content


def test_a_picture_that_is_missing(tmp_path):
    """It is an error, and no page is written."""
    report = Report("T")
    report.picture("none.png", "caption")
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


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


def test_heat_maps(figure, tmp_path):
    """A column a time, in units of its scale: a Gaussian stays where it is however it is scaled, its peak 0, its floor
    -4; as a PDF too.
    """
    x = torch.linspace(-8.0, 8.0, 1601, dtype=torch.float64)
    columns = [(-8.0 * s, 8.0 * s, (-(x**2) / 2).exp() / s) for s in (1.0, 3.0)]
    heat_maps([("one", [1.0, 3.0], columns), ("two", [1.0], columns[:1])], tmp_path / "heat.png", 5.0)
    (shown,) = [images(f) for f in figure]
    sheet = shown[0][1]
    assert sheet.shape == (400, 2) and [a.get_title() for a, _ in shown[:2]] == ["one", "two"]
    at = np.linspace(-5, 5, 400)
    want = np.maximum(-(at**2) / 2 / np.log(10), -4)
    np.testing.assert_allclose(sheet, np.stack([want, want], 1), atol=1e-3)
    assert (tmp_path / "heat.pdf").read_bytes().startswith(b"%PDF")


def test_slopes_and_hollow_points(figure, tmp_path):
    """A guide of slope -2 leaves the upper left corner; a hollow point is drawn in white; names have the colours of the
    order that they are told.
    """
    x = [10.0, 20.0, 40.0]
    lines = [Curve("b", x, [1.0, 0.5, 0.1], [False, False, True]), Curve("a", x, [0.5, 0.4, 0.3])]
    curves([Diagram("t", "calls", lines, slopes=(-2.0,))], tmp_path / "c.png", ["a", "b"])
    drawn = figure[0].axes[0].lines
    (guide,) = [line for line in drawn if line.get_linestyle() == "--"]
    assert list(guide.get_xdata()) == [10.0, 40.0] and list(guide.get_ydata()) == pytest.approx([1.0, 1 / 16])
    (hollow,) = [line for line in drawn if line.get_markerfacecolor() == "white"]
    assert (list(hollow.get_xdata()), list(hollow.get_ydata())) == ([40.0], [0.1])
    assert drawn[0].get_color() == "C1" == hollow.get_color()


def test_bands_and_signs(figure, tmp_path):
    """A band is shaded about the floor; values with a sign stand on their side of 0, linear in the band. Of more than
    ten names no two have one colour.
    """
    x, y = [10.0, 20.0], [[-0.5, -0.1], [0.2, 0.01]]
    lines = [Curve(name, x, v) for name, v in zip("ab", y)]
    signed = Diagram("s", "calls", lines, 0.0, band=(-0.05, 0.05), signed=True)
    plain = Diagram("p", "calls", [Curve(c, x, [1.0, 0.5]) for c in "abcdefghijkl"], 0.3, band=(-0.1, 0.7))
    curves([signed, plain], tmp_path / "c.png")
    left, right = figure[0].axes[:2]
    assert left.get_yscale() == "symlog" and right.get_yscale() == "log"
    assert [list(line.get_ydata()) for line in left.lines[:2]] == y
    (band,), (other,) = left.patches, right.patches
    assert (band.get_y(), band.get_height()) == (-0.05, pytest.approx(0.1))
    assert 0 < other.get_y() < 0.5 and other.get_y() + other.get_height() == pytest.approx(0.7)
    assert len({line.get_color() for line in right.lines[:12]}) == 12


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (2, 4, 4), (4, 4), (0, 1, 4, 4), (2, 1, 0, 4)])
def test_tile_errors(shape):
    """Only images of one or three channels, at least one of them, in at least one column."""
    with pytest.raises(ValueError, match="^x must be images of shape"):
        tile(torch.zeros(shape), 3)
    with pytest.raises(ValueError, match="^columns must"):
        tile(torch.zeros(2, 1, 4, 4), 0)


@pytest.fixture
def figure(monkeypatch):
    """The figures that are saved, each looked at before it is closed."""
    seen, real = [], module.save_figure

    def save(figure, file, **more):
        figure.canvas.draw()
        seen.append(figure)
        real(figure, file, **more)

    monkeypatch.setattr(module, "save_figure", save)
    return seen


def shown(figure):
    """The axes that are visible."""
    return [a for a in figure.axes if a.axison]


def images(figure):
    """The axes that show an image, with its numbers."""
    return [(a, np.asarray(a.images[0].get_array())) for a in figure.axes if a.images]


def test_a_figure_becomes_a_picture(tmp_path):
    """The PNG has the ink of the figure, which is closed."""
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.axis("off")
    axes.imshow([[[1.0, 0.0, 0.0]]])
    save_figure(figure, tmp_path / "new.png")
    image = Image.open(tmp_path / "new.png")
    assert image.format == "PNG" and (np.asarray(image.convert("RGB")) == [255, 0, 0]).all(2).mean() > 0.3
    assert not plt.fignum_exists(figure.number)
    assert [f.name for f in tmp_path.iterdir()] == ["new.png"]


def test_embedded_figure_needs_nothing_beside_it():
    """One line of HTML, the same each time, that holds the picture as an SVG without a dark or light background, and
    says what it is."""

    def shown():
        figure, axes = plt.subplots()
        axes.plot([0, 1], label="a line")
        axes.set(xlabel="x label")
        axes.legend()
        line = embedded(figure, HTML)
        assert not plt.fignum_exists(figure.number)
        return line

    line = shown()
    assert line == shown() and "\n" not in line
    said = re.fullmatch(
        r'<figure><img alt="(.*)" src="data:image/svg\+xml;base64,(.*)"><figcaption>(.*)</figcaption></figure>', line
    )
    assert unescape(said[1]) == unescape(said[3]) == HTML and "<" not in said[1] + said[3]
    svg = base64.b64decode(said[2]).decode()
    assert "x label" in svg and "a line" in svg and module.GREY in svg
    assert not any(word in svg for word in ("#000000", "#ffffff", 'href="http'))


def test_pictures_show_their_images(tmp_path, figure):
    """Images appear pixel by pixel in sheets, pairs of sheets and paths, each picture of a path over its own range
    where that exceeds 1; every sheet has its title, every station its label, every path its name.
    """
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    grid_picture(x, tmp_path / "grid.png", "all", columns=3)
    side_by_side([("a", x), ("b", -x), ("c", x[:2])], tmp_path / "side.png", columns=3)
    path_picture([("up", x, ["1", "2", "3"]), ("down", 40 * x[:2], ["4", "5"])], tmp_path / "path.png")
    grid, side, path = figure
    ((axes, found),) = images(grid)
    assert axes.get_title() == "all" and np.array_equal(found, tile(x, 3))
    assert [a.get_title() for a, _ in images(side)] == ["a", "b", "c"]
    for (_, found), want in zip(images(side), (x, -x, x[:2]), strict=True):
        assert np.array_equal(found, tile(want, 3))
    assert [a.get_title() for a, _ in images(path)] == ["1", "2", "3", "4", "5"]
    for (_, found), want in zip(images(path), [*x, *(y / y.abs().max() for y in 40 * x[:2])], strict=True):
        np.testing.assert_allclose(found, tile(want[None], 1), atol=1e-6)
    places = [(text.get_text(), a.get_position().y0) for a, _ in images(path) for text in a.texts]
    assert [name for name, _ in places] == ["up", "down"] and places[0][1] > places[1][1]
    assert shown(grid) == shown(side) == shown(path) == []
    assert all(i.get_interpolation() == "nearest" for f in figure for a in f.axes for i in a.images)
    assert all(Image.open(tmp_path / f"{name}.png").size[0] > 300 for name in ("grid", "side", "path"))


def test_points_are_scattered(tmp_path, figure):
    """Points of the plane are drawn where they are, seen whole and with equal units on both axes."""
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]])
    grid_picture(x, tmp_path / "points.png", "three")
    (axes,) = shown(figure[0])
    (cloud,) = axes.collections
    assert np.array_equal(cloud.get_offsets(), x.numpy()) and axes.get_title() == "three"
    assert (
        (cloud.get_sizes() > 0).all() and cloud.get_alpha() > 0 and axes.get_xscale() == axes.get_yscale() == "linear"
    )
    ink = axes.transData.transform(x.numpy())
    assert axes.bbox.count_contains(ink) == 3
    np.testing.assert_allclose(
        [ink[1, 0] - ink[0, 0], ink[2, 0] - ink[1, 0]], [(ink[2, 1] - ink[1, 1]) / 3, 0], rtol=1e-6
    )
    assert ink[1, 0] - ink[0, 0] > 30  # pixels


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


def test_points_are_seen(tmp_path, figure):
    """A part's points stand in their own quarter of their own picture: to the right of the middle and above, or to the
    left and below; the first part is the leftmost.
    """
    x = torch.tensor([[0.5, 0.5]]).repeat(50, 1) + 0.02 * torch.randn(50, 2)
    side_by_side([("a", x), ("b", -x), ("all", torch.tensor([[1.0, 1.0]]))], tmp_path / "p.png")
    first, second, _ = axes = shown(figure[0])
    assert [a.bbox.x0 for a in axes] == sorted({a.bbox.x0 for a in axes})
    for a, side in ((first, 1), (second, -1)):
        (cloud,) = a.collections
        ink = a.transData.transform(cloud.get_offsets())
        middle = [(a.bbox.x0 + a.bbox.x1) / 2, (a.bbox.y0 + a.bbox.y1) / 2]
        assert (side * (ink - middle) > 10).all() and a.bbox.count_contains(ink) == 50
        assert (cloud.get_sizes() > 0).all() and cloud.get_alpha() > 0 and cloud.get_visible()


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
        ticks = sorted({v for c in d.lines for v in c.x})
        assert sorted(a.get_xticks()) == ticks and not len(a.get_xticks(minor=True))
        assert sorted(int(t.get_text()) for t in a.get_xticklabels()) == ticks
    assert all(len(look) == 1 for look in looks.values())
    assert all(len({look[i] for (look,) in looks.values()}) == 3 for i in (0, 1))
    (legend,) = figure[0].legends
    entries = {t.get_text(): h for t, h in zip(legend.get_texts(), legend.legend_handles)}
    assert set(entries) == {"a", "b", "c", "real samples"} and len(legend.get_texts()) == 4
    for name, ((colour, marker),) in looks.items():
        assert (entries[name].get_color(), entries[name].get_marker()) == (colour, marker)
    assert entries["real samples"].get_linestyle() == ":"


@pytest.mark.parametrize("x", [[46, 49, 50, 96, 99, 100, 196, 199, 200], [4, 5, 6, 8, 9, 10, 18, 19, 20], [7, 8], [9]])
def test_ticks_do_not_touch(tmp_path, figure, x):
    """Numbers of calls that nearly agree share a tick, that of the largest; two alone have one each."""
    curves([Diagram("t", "n", [Curve("a", x, [1.0] * len(x))])], tmp_path / "c.png")
    (axes,) = shown(figure[0])
    boxes = sorted((b.x0, b.x1) for b in (label.get_window_extent() for label in axes.get_xticklabels()))
    assert all(a[1] < b[0] for a, b in zip(boxes, boxes[1:])) and set(axes.get_xticks()) <= set(x)
    assert max(axes.get_xticks()) == max(x) and len(boxes) >= min(3, len(x))


def test_a_power_law_is_a_straight_line(tmp_path, figure):
    """Where y = 3 x^-1.5 is drawn lies on one line that falls, across most of its diagram; the legend is inside the
    picture, below.
    """
    x = [float(v) for v in range(10, 200, 3)]
    curves([Diagram("t", "n", [Curve("a", x, [3 * v**-1.5 for v in x])])], tmp_path / "c.png")
    (axes,) = shown(figure[0])
    (line,) = axes.lines
    assert line.get_visible() and line.get_linewidth() > 0
    across, up = line.get_transform().transform(line.get_xydata()).T
    assert np.abs(up - np.polyval(np.polyfit(across, up, 1), across)).max() < 1e-6
    assert np.ptp(across) > 0.8 * axes.bbox.width and np.ptp(up) > 0.8 * axes.bbox.height and up[0] > up[-1]
    (legend,) = figure[0].legends
    assert legend.get_window_extent().y1 < axes.get_tightbbox().y0
    height = Image.open(tmp_path / "c.png").size[1] / 130
    whole = (axes.get_tightbbox().y1 - legend.get_window_extent().y0) / figure[0].dpi
    assert height > 0.98 * whole
