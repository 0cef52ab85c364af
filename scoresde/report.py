"""A report as Markdown and as one HTML file that needs nothing beside it, and the pictures in it."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from .checkpoint import write
from .shapes import count

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import NullLocator  # noqa: E402

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 58rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid #ddd; }
th { text-align: left; border-bottom: 2px solid #888; cursor: pointer; } td { font-variant-numeric: tabular-nums; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; } img { max-width: 100%; }
figure { margin: 1.5rem 0; } figcaption { color: #555; font-size: .9rem; }
"""

SORT = """
for (const head of document.querySelectorAll('th')) head.onclick = () => {
  const i = [...head.parentNode.children].indexOf(head), body = head.closest('table').tBodies[0];
  const down = head.dataset.down === 'yes', key = row => row.children[i].textContent;
  head.dataset.down = down ? '' : 'yes';
  const last = row => isNaN(parseFloat(key(row)));  // text, or nothing, stands after numbers either way
  const order = (a, b) => parseFloat(a) - parseFloat(b) || a.localeCompare(b);  // NaN is falsy
  const sorted = (a, b) => last(a) - last(b) || (down ? -1 : 1) * order(key(a), key(b));
  [...body.rows].sort(sorted).forEach(row => body.append(row));
};
"""


@dataclass
class Report:
    """Headings, paragraphs, tables, pictures and commands in order; `write` makes report.md and report.html of them."""

    title: str
    blocks: list[tuple[str, Any]] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """A heading."""
        self.blocks.append(("heading", text))

    def text(self, text: str) -> None:
        """A paragraph, plain text."""
        self.blocks.append(("text", text))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of strings."""
        self.blocks.append(("table", (columns, rows)))

    def picture(self, file: str, caption: str) -> None:
        """A PNG that lies in the report's folder."""
        self.blocks.append(("picture", (file, caption)))

    def commands(self, text: str) -> None:
        """Lines for a shell."""
        self.blocks.append(("commands", text))

    def write(self, folder: Path) -> None:
        """Write both files."""
        write(folder / "report.md", self.markdown().encode())
        write(folder / "report.html", self.html(folder).encode())

    def markdown(self) -> str:
        """The report as Markdown; pictures are links."""
        parts = [f"# {self.title}"]
        for kind, value in self.blocks:
            match kind, value:
                case "heading", text:
                    parts.append(f"## {text}")
                case "text", text:
                    parts.append(text)
                case "commands", text:
                    parts.append(f"```\n{text}\n```")
                case "picture", (file, caption):
                    parts.append(f"![{caption}]({file})")
                case "table", (columns, rows):
                    lines = [columns, ["---"] * len(columns), *rows]
                    parts.append("\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines))
        return "\n\n".join(parts) + "\n"

    def html(self, folder: Path) -> str:
        """The report as HTML, with the pictures inside."""
        title = html.escape(self.title)
        parts = [f"<h1>{title}</h1>"]
        for kind, value in self.blocks:
            match kind, value:
                case "heading", text:
                    parts.append(f"<h2>{html.escape(text)}</h2>")
                case "text", text:
                    parts.append(f"<p>{html.escape(text)}</p>")
                case "commands", text:
                    parts.append(f"<pre>{html.escape(text)}</pre>")
                case "picture", (file, caption):
                    data, caption = base64.b64encode((folder / file).read_bytes()).decode(), html.escape(caption)
                    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
                    parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
                case "table", (columns, rows):
                    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
                    body = "".join(
                        "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows
                    )
                    parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{STYLE}</style></head>\n'
            "<body>\n" + "\n".join(parts) + f"\n<script>{SORT}</script></body></html>\n"
        )


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table, which ends at a bar or a line's end."""
    return " ".join(text.replace("|", "\\|").split())


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


def save_figure(figure: Figure, file: Path) -> None:
    """As a PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)
    write(file, content.getvalue())


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


@dataclass(frozen=True)
class Diagram:
    """Curves on logarithmic axes, with a dotted line at `floor`, if any."""

    title: str
    across: str
    lines: Sequence[Curve]
    floor: float | None = None


def curves(diagrams: Sequence[Diagram], file: Path) -> None:
    """Diagrams two in a row, with one legend below them all. A name has one colour."""
    rows = -(-len(diagrams) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 4 * rows), squeeze=False)
    names = list(dict.fromkeys(line.name for d in diagrams for line in d.lines))
    styles = {name: (f"C{i % 10}", "ov^sDPX*<"[i % 9]) for i, name in enumerate(names)}
    shown = {}
    for a, d in zip(axes.flat, diagrams, strict=False):
        for line in d.lines:
            colour, marker = styles[line.name]
            (shown[line.name],) = a.loglog(line.x, line.y, color=colour, marker=marker, markersize=4, linewidth=1.2)
        if d.floor is not None:
            shown["real samples"] = a.axhline(d.floor, color="gray", linestyle=":")
        a.set_title(d.title, fontsize=10)
        a.set_xlabel(d.across)
        a.set_xticks(sorted({v for line in d.lines for v in line.x}), minor=False)
        a.xaxis.set_major_formatter("{x:g}")
        a.xaxis.set_minor_locator(NullLocator())
        a.grid(alpha=0.3)
    for a in axes.flat[len(diagrams) :]:
        a.axis("off")
    figure.legend(list(shown.values()), list(shown), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, fontsize=9)
    figure.tight_layout()
    save_figure(figure, file)


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
