"""A report as Markdown and as one HTML file that needs nothing beside it, and the pictures in it."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import numpy as np
import torch
from markdown import markdown
from torch import Tensor

from ..files import write
from ..shapes import count

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.legend import Legend  # noqa: E402
from matplotlib.ticker import NullLocator  # noqa: E402

GREY = "#7f7f7f"
"""Equally far from black and white."""


@dataclass
class Report:
    """Headings, paragraphs, tables, pictures and commands in order; `write` makes report.md and report.html of them."""

    title: str
    parts: list[str] = field(default_factory=list)
    """Markdown."""

    def heading(self, text: str) -> None:
        """A heading of the second level."""
        self.parts.append(f"## {_plain(text)}")

    def text(self, text: str) -> None:
        """A paragraph of plain text."""
        self.parts.append(_plain(text))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, numbers to two decimals."""
        self.parts.append(table(columns, rows))

    def picture(self, file: str, caption: str) -> None:
        """A PNG that lies in the report's folder."""
        self.parts.append(f"![{_plain(caption)}]({file})")

    def commands(self, text: str) -> None:
        """Lines for a shell."""
        self.parts.append(f"```\n{text}\n```")

    def markdown(self) -> str:
        """The report as Markdown; pictures are links."""
        return "\n\n".join([f"# {_plain(self.title)}", *self.parts]) + "\n"

    def html(self, folder: Path) -> str:
        """The report as one page, with the pictures inside, whose tables sort by the column that is clicked."""
        body = markdown(self.markdown(), extensions=["tables", "fenced_code"])
        figure = r'<figure><img alt="\1" src="data:image/png;base64,{}"><figcaption>\1</figcaption></figure>'

        def inside(match: re.Match[str]) -> str:
            data = base64.b64encode((folder / match[2]).read_bytes()).decode()
            return match.expand(figure.format(data))

        body = re.sub(r'<p><img alt="(.*?)" src="(.*?)" /></p>', inside, body)
        page = Template((Path(__file__).parent / "report.html").read_text())
        return page.substitute(title=escape(self.title), body=body)

    def write(self, folder: Path) -> None:
        """Write report.md and report.html into folder."""
        write(folder / "report.md", self.markdown().encode())
        write(folder / "report.html", self.html(folder).encode())


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown, numbers to two decimals."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    """A value for a cell of a Markdown table, which ends at a bar."""
    return _plain(f"{value:.2f}" if isinstance(value, float) else str(value)).replace("|", "\\|")


def _plain(text: str) -> str:
    """Text as one line of Markdown that says the same."""
    marks = r"[*`\[\]#]|(?<![^\W_])_|_(?![^\W_])|\\(?![^\W_]|\s)"
    return " ".join(re.sub(marks, r"\\\g<0>", escape(text, quote=False)).split())


def tile(x: Tensor, columns: int) -> np.ndarray:
    """Images x (n, 1 or 3, H, W) on [-1, 1], in rows of `columns`, one pixel apart: (height, width, 3) on [0, 1]."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.numel() == 0:
        raise ValueError(f"x must be images of shape (n, 1 or 3, H, W), got {tuple(x.shape)}")
    count("columns", columns)
    x = ((x.float().cpu() + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)
    n, _, h, w = x.shape
    rows = -(-n // columns)
    sheet = torch.ones(rows * (h + 1) - 1, columns * (w + 1) - 1, 3)
    for k, image in enumerate(x):
        i, j = k // columns * (h + 1), k % columns * (w + 1)
        sheet[i : i + h, j : j + w] = image.permute(1, 2, 0)
    return sheet.numpy()


def save_figure(figure: Figure, file: Path, paper: bool = False) -> None:
    """Write a figure as a PNG, and close it. paper: as a PDF beside it too."""
    kinds: dict[str, Any] = {"png": {"dpi": 130}} | ({"pdf": {"metadata": {"CreationDate": None}}} if paper else {})
    for kind, more in kinds.items():
        content = io.BytesIO()
        figure.savefig(content, format=kind, bbox_inches="tight", **more)
        write(file.with_suffix(f".{kind}"), content.getvalue())
    plt.close(figure)


def embedded(figure: Figure, caption: str) -> str:
    """A figure as one line of HTML with its picture inside, an SVG whose text and axes are grey on nothing, to be read
    on light and on dark pages; the figure is closed.
    """
    for legend in figure.findobj(Legend):
        legend.set_frame_on(False)
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption}):
        figure.savefig(content, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    plt.close(figure)
    svg = (
        content.getvalue()
        .decode()
        .replace("#000000", GREY)
        .replace("<defs>", f"<style>text{{fill:{GREY}}}</style><defs>", 1)
    )
    data, said = base64.b64encode(svg.encode()).decode(), escape(caption)
    return f'<figure><img alt="{said}" src="data:image/svg+xml;base64,{data}"><figcaption>{said}</figcaption></figure>'


def _show(axes: Axes, x: Tensor, columns: int, size: float = 4) -> None:
    """Images as a sheet, points of the plane as a cloud."""
    if x.ndim == 2 and x.shape[1] == 2:
        axes.scatter(x[:, 0].float().cpu(), x[:, 1].float().cpu(), s=size, alpha=0.5, linewidths=0)
        axes.set_aspect("equal")
    else:
        axes.imshow(tile(x, columns), interpolation="nearest")
        axes.axis("off")


def grid_picture(x: Tensor, file: Path, title: str = "", columns: int = 16) -> None:
    """Samples as a picture: images side by side, points of the plane as a scatter plot."""
    wide = (5.0, 5.0)
    if x.ndim != 2:
        sheet = tile(x, columns)
        wide = (8.0, 8.0 * sheet.shape[0] / sheet.shape[1])
    figure, axes = plt.subplots(figsize=wide)
    _show(axes, x, columns)
    axes.set_title(title)
    save_figure(figure, file)


def gallery(groups: Sequence[tuple[str, Tensor]], file: Path) -> None:
    """Rows of images, side by side under the titles of groups (title, x), x (rows, k, 1 or 3, H, W) on [-1, 1]."""
    x = torch.cat([x.float().cpu().expand(-1, -1, 3, -1, -1) for _, x in groups], 1)
    rows, columns, _, h, w = x.shape
    sheet = tile(x.flatten(0, 1), columns)
    width = max(4.0, 0.9 * columns)
    figure, axes = plt.subplots(figsize=(width, width * sheet.shape[0] / sheet.shape[1]))
    axes.imshow(sheet, interpolation="nearest")
    axes.axis("off")
    at = 0
    for title, part in groups:
        middle = (at + part.shape[1] / 2) * (w + 1) - 1
        axes.text(middle, -0.5 - h / 16, title, ha="center", va="bottom", fontsize=10)
        at += part.shape[1]
    save_figure(figure, file)


def side_by_side(parts: Sequence[tuple[str, Tensor]], file: Path, columns: int = 10) -> None:
    """Samples, each under its title: sheets of images two in a row, points of the plane four, on one scale."""
    points = parts[0][1].ndim == 2
    across = 4 if points else 2
    rows = -(-len(parts) // across)
    ratio = 1.0 if points else np.divide(*tile(parts[0][1], columns).shape[:2])
    width = 9.0 / across
    figure, axes = plt.subplots(rows, across, figsize=(9, rows * (width * ratio + 0.3)), squeeze=False)
    reach = 1.1 * float(parts[-1][1].abs().max())
    for a, (title, x) in zip(axes.flat, parts, strict=False):
        _show(a, x, columns, size=2)
        a.set_title(title, fontsize=8 if points else 11)
        if points:
            a.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
    for a in axes.flat[len(parts) :]:
        a.axis("off")
    figure.tight_layout()
    save_figure(figure, file)


@dataclass(frozen=True)
class Curve:
    """A line of a diagram."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    hollow: Sequence[bool] = ()
    """Which points are below their own error, if any."""


@dataclass(frozen=True)
class Diagram:
    """Curves on logarithmic axes, with a dotted line at `floor`, if any, a band about it, and thin lines of some
    slopes. signed: values have a sign; the axis is linear in the band, and logarithmic away from it on both sides.
    """

    title: str
    across: str
    lines: Sequence[Curve]
    floor: float | None = None
    slopes: Sequence[float] = ()
    band: tuple[float, float] | None = None
    signed: bool = False


def curves(diagrams: Sequence[Diagram], file: Path, order: Sequence[str] = ()) -> None:
    """Diagrams two in a row, with one legend below them all. A name has one colour, the same in every picture whose
    names begin by the same order.
    """
    rows = -(-len(diagrams) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 4 * rows), squeeze=False)
    names = list(dict.fromkeys([*order, *(line.name for d in diagrams for line in d.lines)]))
    many = [f"C{i}" for i in range(10)] if len(names) <= 10 else [plt.get_cmap("tab20")(i) for i in range(20)]
    styles = {name: (many[i % len(many)], "ov^sDPX*<"[i % 9]) for i, name in enumerate(names)}
    shown = {}
    for a, d in zip(axes.flat, diagrams, strict=False):
        for line in filter(lambda line: len(line.x), d.lines):
            colour, marker = styles[line.name]
            (shown[line.name],) = a.loglog(line.x, line.y, color=colour, marker=marker, markersize=4, linewidth=1.2)
            for x, y, hollow in zip(line.x, line.y, line.hollow, strict=False):
                if hollow:
                    a.plot(x, y, color=colour, marker=marker, markersize=4, markerfacecolor="white", zorder=3)
        _guides(a, d)
        if d.floor is not None:
            shown["real samples"] = a.axhline(d.floor, color="gray", linestyle=":")
        if d.signed:
            reach = max(map(abs, d.band or (0.0,))) or 1e-3
            a.set_yscale("symlog", linthresh=reach)
        if d.band is not None:
            low = d.band[0] if d.signed else max(d.band[0], a.get_ylim()[0])
            a.axhspan(low, d.band[1], color="gray", alpha=0.15, linewidth=0, zorder=0)
        a.set_title(d.title, fontsize=10)
        a.set_xlabel(d.across)
        a.set_xticks(_apart([v for line in d.lines for v in line.x]), minor=False)
        a.xaxis.set_major_formatter("{x:g}")
        a.xaxis.set_minor_locator(NullLocator())
        a.grid(alpha=0.3)
    for a in axes.flat[len(diagrams) :]:
        a.axis("off")
    figure.legend(list(shown.values()), list(shown), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, fontsize=9)
    figure.tight_layout()
    save_figure(figure, file, paper=True)


def _guides(a: Axes, d: Diagram) -> None:
    """A line of each slope, from the upper left corner of what is drawn on."""
    points = [(x, y) for line in d.lines for x, y in zip(line.x, line.y, strict=True) if y > 0]
    for slope in d.slopes if points else ():
        low, high, top = min(x for x, _ in points), max(x for x, _ in points), max(y for _, y in points)
        y = top * (high / low) ** slope
        a.plot([low, high], [top, y], color="gray", linewidth=0.8, linestyle="--", zorder=0)
        a.annotate(f"{slope:g}", (high, y), color="gray", fontsize=8, xytext=(2, 0), textcoords="offset points")


def heat_maps(
    panels: Sequence[tuple[str, Sequence[float], Sequence[tuple[float, float, Tensor]]]], file: Path, reach: float
) -> None:
    """Densities on a line over time, three panels in a row on one scale: (title, scales, columns). A column is (low,
    high, density at equal steps from low to high); it is drawn in units of its scale, from -reach to reach, as log10 of
    the density less that of its peak.
    """
    rows = -(-len(panels) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(11, 3 * rows), squeeze=False, sharey=True, layout="constrained")
    at = np.linspace(-reach, reach, 400)
    for a, (title, scales, columns) in zip(axes.flat, panels, strict=False):
        sheet = []
        for scale, (low, high, density) in zip(scales, columns, strict=True):
            told = np.interp(at * scale, np.linspace(low, high, len(density)), density.numpy(), 0.0, 0.0)
            sheet.append(np.log10(np.maximum(told / told.max(), 1e-4)))
        seen = a.imshow(
            np.array(sheet).T, origin="lower", aspect="auto", extent=(0.0, 1.0, -reach, reach), cmap="magma", vmin=-4
        )
        a.set_title(title, fontsize=10)
        a.set_xticks([0.0, 1.0], ["noise", "data"])
    for a in axes[:, 0]:
        a.set_ylabel("x in deviations of x_t")
    for a in list(axes.flat)[len(panels) :]:
        a.axis("off")
    figure.colorbar(seen, ax=axes, label="log10 of the density, its peak being 1", shrink=0.8)
    save_figure(figure, file, paper=True)


def _apart(values: Sequence[float]) -> list[float]:
    """Some of the values, from the largest on, whose labels do not touch on a logarithmic axis."""
    kept: list[float] = []
    for v in sorted(set(values), reverse=True):
        if not kept or kept[-1] / v > (kept[0] / min(values)) ** 0.06:
            kept.append(v)
    return kept


def path_picture(paths: Sequence[tuple[str, Tensor, Sequence[str]]], file: Path) -> None:
    """One row for each (title, x (k, C, H, W), labels): a sample on its way from noise to data.

    Every picture is scaled to its own range, since noise is larger than data.
    """
    k = max(len(x) for _, x, _ in paths)
    figure, axes = plt.subplots(len(paths), k, figsize=(1.05 * k, 1.45 * len(paths)), squeeze=False)
    for row, (title, x, labels) in zip(axes, paths, strict=True):
        for a in row:
            a.axis("off")
        for a, image, label in zip(row, x, labels, strict=False):
            a.imshow(tile(image[None] / max(1.0, float(image.abs().max())), 1), interpolation="nearest")
            a.set_title(label, fontsize=8)
        row[0].text(-0.1, 0.5, title, transform=row[0].transAxes, ha="right", va="center", fontsize=9)
    save_figure(figure, file)
