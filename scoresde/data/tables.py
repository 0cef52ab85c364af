"""Tables of numbers in CSV and Parquet files."""

import csv
import gzip
import importlib
import io
import itertools
import math
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..shapes import shown
from .dataset import Dataset, Source, check_memory, check_split, flag, known_path
from .divide import divided, numbered

Labels = tuple[np.ndarray, tuple[str, ...]]
Contents = tuple[np.ndarray, Labels | None, tuple[str, ...]]
"""Numbers (n, d), labels with their names, and the names of the columns."""

MISSING = {"", "?", "NA", "N/A", "n/a", "nan", "NaN", "NAN", "null", "NULL"}
"""What stands for no value, neither a number nor the name of a class."""
PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class Table(Source):
    """A table in a CSV or Parquet file, one sample a row: continuous numbers.

    A CSV file is UTF-8, plain or .gz; its columns are separated by what its first line holds outside of quotes, a tab,
    else a semicolon, else a comma, and by tabs in a .tsv. Its first line names the columns if none of its cells is a
    number; otherwise it is a sample, and the columns are named "0", "1", .... Spaces around cells and empty lines are
    passed over.
    """

    path: Path
    """The file: Parquet if its name ends in .parquet or .pq, CSV otherwise."""
    columns: tuple[str, ...] = ()
    """The columns of numbers, in this order; all but the label unless given."""
    label: str = ""
    """The column of labels, whole numbers from 0 on, or words, which are numbered in the order of the alphabet; empty
    for none."""
    held_out: float = 0.1
    """The share of the rows that is not trained on."""
    seed: int = 0
    """The seed that chooses them."""
    standardise: bool = True
    """Whether the columns are moved to mean 0 and deviation 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", known_path("path", self.path))
        names = self.columns
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"columns must be names of columns, got {shown(names)}")
        if not isinstance(self.label, str):
            raise ValueError(f"label must be the name of a column, got {shown(self.label)}")
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise ValueError(f"columns must differ, got {twice[0]!r} twice")
        if self.label in names:
            raise ValueError(f"columns must not hold the label, got {self.label!r} in both")
        object.__setattr__(self, "columns", tuple(names))
        flag("standardise", self.standardise)
        check_split(self.held_out, self.seed)

    def load(self) -> Dataset:
        """The rows, (n, d).

        Raises ValueError, naming the file, the line or row and the column, for missing values, words and booleans among
        numbers, numbers with commas, labels that are neither whole numbers nor words, or some of each, lines of
        different lengths, columns that are not there, share a name or have none, and for what is not UTF-8.
        """
        a, labels, columns = self._read()
        if len(a) < 2:
            raise ValueError(f"{self.path} must hold at least 2 rows of numbers, got {len(a)}")
        return divided(a, None, self.held_out, self.seed, str(self.path), labels, self.standardise, columns)

    def _read(self) -> Contents:
        if not os.path.isfile(self.path):
            raise ValueError(f"path must be a CSV or Parquet file, got {str(self.path)!r}, which is not there")
        return self._parquet() if self._ends(*PARQUET) else self._csv()

    def _choose(self, names: Sequence[str]) -> tuple[list[int], int | None]:
        """The places of the columns of numbers, and that of the label."""
        if twice := [name for name, times in Counter(names).items() if times > 1 and name]:
            raise ValueError(f"{self.path} must name its columns differently, got {twice[0]!r} twice")
        places = {name: k for k, name in enumerate(names)}
        for field, asked in (("columns", self.columns), ("label", (self.label,) if self.label else ())):
            if unknown := [name for name in asked if name not in places]:
                known = ", ".join(map(repr, names[:20])) + ", ..." * (len(names) > 20)
                raise ValueError(f"{field} must be of those of {self.path}, {known}, got {unknown[0]!r}")
        chosen = self.columns or tuple(name for name in names if not self.label or name != self.label)
        for index in ("", "__index_level_0__"):
            if index in chosen and not self.columns:
                raise ValueError(
                    f"{self.path} must name all its columns, got {index!r} for column {places[index]}, which pandas "
                    "writes unless index=False: leave it out by columns"
                )
        if not chosen:
            raise ValueError(f"{self.path} must hold a column of numbers besides the label, got {list(names)}")
        return [places[name] for name in chosen], places[self.label] if self.label else None

    def _csv(self) -> Contents:
        try:
            with self._opened() as file:
                return self._table(csv_reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), self._ends(".tsv")))
        except UnicodeDecodeError as error:
            with self._opened() as file:
                line = next((k for k, text in enumerate(file, 1) if not is_utf8(text)), 0)
            what = f"got the byte {error.object[error.start]:#04x} in line {line}: save it as UTF-8"
            raise ValueError(f"{self.path} must be a CSV file in UTF-8, or a .parquet, {what}") from error
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{self.path} cannot be read: {error}") from error

    def _ends(self, *suffixes: str) -> bool:
        return self.path.name.lower().removesuffix(".gz").endswith(suffixes)

    def _opened(self) -> Any:
        return gzip.open(self.path) if self.path.suffix.lower() == ".gz" else open(self.path, "rb")

    def _table(self, reader: Any) -> Contents:
        rows = self._rows(reader)
        start, first = next(rows, (0, []))
        if not first:
            raise ValueError(f"{self.path} must hold a table, got no line that is not empty")
        first, counted = [cell.strip() for cell in first], [str(k) for k in range(len(first))]
        headed = not all(map(is_missing, first)) and not any(map(is_number, first))
        if first == counted and len(first) > 1:
            warnings.warn(
                f"line {start} of {self.path}, {shown(first)[1:-1]}, is taken as a sample: give the columns names if "
                "it numbers them",
                stacklevel=5,
            )
        names = first if headed else counted
        chosen, label = self._choose(names)
        rows, start = (rows, 0) if headed else (itertools.chain([(start, first)], rows), start)
        blocks, words, lines, n = [np.empty((0, len(chosen)))], [], [], 0
        while block := list(itertools.islice(rows, 4096)):
            blocks.append(self._block(block, chosen, names, start))
            n += len(block)
            check_memory(f"{self.path}", 40 * n * len(chosen))  # its numbers, and again where they are divided
            if label is not None:
                words += [row[label].strip() for _, row in block]
                lines += [line for line, _ in block]
        labels = None if label is None else self._labels(words, lambda i: f"line {lines[i]}")
        return np.concatenate(blocks), labels, tuple(names[k] for k in chosen)

    def _rows(self, reader: Any) -> Iterator[tuple[int, list[str]]]:
        """The lines that are not empty, with the number of each. Raises ValueError unless all have as many cells."""
        width, start = 0, 0
        try:
            for row in reader:
                if row:
                    width, start = width or len(row), start or reader.line_num
                    if len(row) != width:
                        raise ValueError(
                            f"{self.path} must have {width} cells in all lines, as line {start} has, got {len(row)} in "
                            f"line {reader.line_num}, separated by {reader.dialect.delimiter!r}"
                        )
                    yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{self.path} cannot be read as CSV in line {reader.line_num}: {error}") from error

    def _block(
        self, block: list[tuple[int, list[str]]], chosen: list[int], names: Sequence[str], start: int
    ) -> np.ndarray:
        """The numbers (len(block), len(chosen)) of lines; the first of the file is `start` if it is among them."""
        cells = [row[k] for _, row in block for k in chosen]
        try:
            a = np.fromiter(map(float, cells), np.float64, len(cells)).reshape(len(block), -1)
            if np.isfinite(a).all() and "_" not in "".join(cells):
                return a
        except ValueError:
            pass
        i = next(i for i, cell in enumerate(cells) if not (is_number(cell) and math.isfinite(float(cell))))
        (line, row), k = block[i // len(chosen)], chosen[i % len(chosen)]
        self._refuse(cells[i].strip(), f"line {line}", names[k], alone=len(row) == 1, first=line == start)

    def _refuse(self, cell: str, where: str, column: str, alone: bool = False, first: bool = False) -> NoReturn:
        """Raise the ValueError of a cell that is no number."""
        said, hint = repr(cell), "leave the column out by columns, or make it the label"
        if is_missing(cell):
            said, hint = f"{said}, a missing value,", "leave out the row or the column"
        elif is_number(cell):
            hint = "leave out the row or the column"
        elif cell.lower() in ("true", "false"):
            said, hint = f"{said}, a boolean,", f"write 1 and 0, or {hint}"
        elif re.fullmatch(r"[+-]?[\d.]*,\d[\d.,]*([eE][+-]?\d+)?", cell):
            hint = "write numbers with a decimal point and no commas, as 1234.5"
        elif alone and len(cell.split()) > 1:
            hint = "separate columns by a comma, a semicolon or a tab"
        elif first:
            hint += ", and if this line names the columns, let no name be a number"
        raise ValueError(f"{self.path} must hold finite numbers, got {said} in {where}, column {column!r}: {hint}")

    def _labels(self, cells: Sequence[str], where: Callable[[int], str]) -> Labels:
        """Labels of cells, where(i) being that of cell i."""
        numeric = np.fromiter(map(is_number, cells), bool, len(cells))
        missing = np.fromiter(map(is_missing, cells), bool, len(cells))
        said = f"labels of {self.path}, column {self.label!r}, must be whole numbers from 0 on, or words"
        if missing.any():
            i = int(missing.argmax())
            raise ValueError(f"{said}, got {cells[i]!r}, a missing value, in {where(i)}: leave out the row")
        if numeric.any() and not numeric.all():
            i, j = int(numeric.argmax()), int(numeric.argmin())
            raise ValueError(f"{said}, got {cells[i]!r} in {where(i)} and {cells[j]!r} in {where(j)}")
        if not numeric.any():
            return numbered(np.array(cells, dtype=object))
        y = np.fromiter(map(float, cells), np.float64, len(cells))
        if (bad := ~((y >= 0) & (y < 1e6) & (y == np.floor(y)))).any():
            i = int(bad.argmax())
            raise ValueError(f"{said}, below 10^6, got {cells[i]!r} in {where(i)}")
        return y.astype(np.int64), ()

    def _parquet(self) -> Contents:
        try:
            arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise ValueError("Parquet needs pyarrow: pip install pyarrow") from error
        try:
            with parquet.ParquetFile(self.path) as file:
                names, n = file.schema_arrow.names, file.metadata.num_rows
                chosen, label = self._choose(names)
                check_memory(f"{self.path}", 40 * n * len(chosen))
                table = file.read([names[k] for k in (*chosen, *(() if label is None else (label,)))])
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.path} cannot be read as Parquet: {error}") from error
        a = np.empty((n, len(chosen)))
        for j, k in enumerate(chosen):
            a[:, j] = self._column(table.column(names[k]), names[k])
        columns = tuple(names[k] for k in chosen)
        if label is None:
            return a, None, columns
        cells = table.column(self.label).to_pylist()
        if not all(isinstance(cell, str | int | float | Decimal | None) for cell in cells):
            what = f"must be whole numbers from 0 on, or words, got a column of {table.column(self.label).type}"
            raise ValueError(f"labels of {self.path}, column {self.label!r}, {what}")
        words = ["null" if cell is None else str(cell).strip() for cell in cells]
        return a, self._labels(words, lambda i: f"row {i}"), columns

    def _column(self, column: Any, name: str) -> np.ndarray:
        """The numbers of a column of pyarrow."""
        kind = importlib.import_module("pyarrow").types
        if not any(is_kind(column.type) for is_kind in (kind.is_integer, kind.is_floating, kind.is_decimal)):
            what = "a column of booleans" if kind.is_boolean(column.type) else f"a column of {column.type}"
            hint = "leave it out by columns, or make it the label"
            raise ValueError(f"{self.path} must hold numbers, got {what}, {name!r}: {hint}")
        if column.null_count:
            self._refuse("null", f"row {column.is_null().to_pylist().index(True)}", name)
        a = np.asarray(column.to_numpy(), dtype=np.float64)
        if not np.isfinite(a).all():
            i = int((~np.isfinite(a)).argmax())
            self._refuse(str(a[i]), f"row {i}", name)
        return a


def csv_reader(file: Any, tabs: bool) -> Any:
    """A reader of the cells of each line."""
    head = ""
    for line in itertools.islice(file, 1000):
        head += line
        if head.strip() and head.count('"') % 2 == 0:  # no quote goes on in the next line
            break
    bare = re.sub(r'"[^"]*"', "", head)
    delimiter = "\t" if tabs else next((mark for mark in "\t;," if mark in bare), ",")
    lines = itertools.chain(io.StringIO(head, newline=""), file)
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)


def is_utf8(text: bytes) -> bool:
    """Whether bytes are text in UTF-8."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def is_number(cell: str) -> bool:
    """Whether a cell is a number that is there, or infinite."""
    try:
        return not math.isnan(float(cell)) and "_" not in cell
    except ValueError:
        return False


def is_missing(cell: str) -> bool:
    """Whether a cell stands for a number that is not there."""
    return cell.strip() in MISSING
