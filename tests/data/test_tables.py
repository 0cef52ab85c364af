"""Tables: the numbers that are loaded are those that were written, and what is no table of numbers is refused by line
and column.
"""

import csv
import gzip
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde.data import split
from scoresde.data.tables import Table

BOM = b"\xef\xbb\xbf"
finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text("abcxyz_ äß,;\"'\n\t.", min_size=1, max_size=6).filter(lambda s: s.strip() == s)


def numbers(data):
    """The samples to train on in the units of the file, in float64."""
    return data.units.restore(data.train.double()) if data.units else data.train.double()


def written(folder, content, name="a.csv"):
    path = Path(folder) / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def rows_of(text, name="a.csv", **fields):
    """The numbers that a file of this text holds, in the order of its lines and undivided, and the labels."""
    with tempfile.TemporaryDirectory() as folder:
        return Table(written(folder, text, name), **fields)._read()[:2]


def refused(text, said, name="a.csv", **fields):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = written(folder, text, name)
        with pytest.raises(ValueError) as error:
            Table(path, **fields).load()
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    assert said in message, message


# what is read


@given(
    st.data(),
    st.integers(1, 4),
    st.integers(0, 5),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.booleans(),
)
def test_csv_is_read_back(data, d, n, delimiter, quoting, end, bom, packed):
    """Whatever names and finite numbers the csv module writes, in any of its ways, are read to the bit."""
    head = data.draw(st.lists(names, min_size=d, max_size=d, unique=True))
    a = data.draw(st.lists(st.lists(finite, min_size=d, max_size=d), min_size=n, max_size=n))
    if any(mark in "".join(head) for mark in "\n\t;,"):
        quoting = csv.QUOTE_ALL  # as what ends lines or separates columns elsewhere is not quoted otherwise
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a.tsv" if delimiter == "\t" else "a.csv")
        with open(path, "w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
            csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([head, *a])
        content = path.read_bytes()
        if packed:
            path = written(folder, content, path.name + ".gz")
        found, labels = Table(path)._read()[:2]
        assert labels is None and found.tobytes() == np.array(a, np.float64).reshape(n, d).tobytes()
        order = data.draw(st.permutations(head))
        found, _ = Table(path, columns=tuple(order))._read()[:2]
        assert np.array_equal(found, np.array(a).reshape(n, d)[:, [head.index(name) for name in order]])


@given(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=5))
def test_csv_without_a_header(a):
    """A first line with a number in it is a sample, and columns have the names 0, 1, ...."""
    text = "".join(",".join(map(repr, row)) + "\n" for row in a)
    assert rows_of(text)[0].tobytes() == np.array(a).tobytes()
    assert np.array_equal(rows_of(text, columns=("2", "0"))[0], np.array(a)[:, [2, 0]])


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a,b\n1,2\n", [[1, 2]]),
        (BOM + b"a,b\n1,2", [[1, 2]]),
        (BOM + b"3,4\n1,2", [[3, 4], [1, 2]]),
        ("a, b\n 1 , 2 \n", [[1, 2]]),
        ('"a"; "b"\n"1";"2e3"\n', [[1, 2000]]),
        ("\n\na\tb\n\n1\t2\n\n", [[1, 2]]),
        ('"temp (°C; dry)"\n.5\n-7.\n+1E-3\n', [[0.5], [-7], [0.001]]),
        ('"x;y","z\tw"\n1,2\n', [[1, 2]]),
        ('"x\ny",b\r\n1,2\r\n', [[1, 2]]),
        ("-inf_,b\n1,2\n", [[1, 2]]),
        ("Na,inf_\n1,2\n", [[1, 2]]),
    ],
)
def test_ways_to_write_a_table(text, want):
    """A byte order mark, quotes, spaces, empty lines and what is quoted change nothing."""
    assert rows_of(text)[0].tolist() == want


def test_load(tmp_path):
    """The rows are split as `split` says, labels with them; words are numbered in the order of the alphabet."""
    rng = np.random.RandomState(0)
    a, kind = rng.randn(50, 2).astype(np.float32), rng.choice(["red", "blue", "dark blue"], 50)
    text = "x,kind,y\n" + "".join(f"{x!s},{word},{y!s}\n" for (x, y), word in zip(a, kind))
    data = Table(written(tmp_path, text), label="kind", held_out=0.2, seed=3).load()
    train, held = split(50, 0.2, 3)
    torch.testing.assert_close(numbers(data), torch.tensor(a)[train].double(), rtol=1e-5, atol=1e-6)
    assert data.names == ("blue", "dark blue", "red") and data.quantized is None and len(data.held_out) == 10
    assert [data.names[k] for k in data.train_labels] == kind[train.numpy()].tolist()
    assert [data.names[k] for k in data.held_out_labels] == kind[held.numpy()].tolist()


def test_column_order(tmp_path):
    """Columns come in the order that is asked for, and the others, words too, are not read."""
    path = written(tmp_path, "a,b,c\n1,word,3\n4,,6\n9,,7\n")
    data = Table(path, columns=["c", "a"], held_out=0.0).load()
    want = torch.tensor([[3.0, 1.0], [6.0, 4.0], [7.0, 9.0]], dtype=torch.float64)[split(3, 0.0, 0)[0]]
    torch.testing.assert_close(numbers(data), want, rtol=1e-5, atol=1e-5)
    assert Table(path, columns=["c"]).columns == ("c",)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=20), st.booleans())
def test_labels_that_are_whole_numbers(y, as_floats):
    """Whole numbers are the labels that they are, without names, also as pandas writes them where some were missing."""
    text = "x,y\n" + "".join(f"0.5,{float(k) if as_floats else k}\n" for k in y)
    found, known = rows_of(text, label="y")[1]
    assert found.tolist() == y and found.dtype == np.int64 and known == ()


@given(st.lists(st.text("abcß éZ.,;\"'", min_size=1, max_size=4).filter(lambda s: s.strip() == s), min_size=1))
def test_labels_that_are_words(words):
    """Words are numbered in the order of the alphabet, whatever their letters and marks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["x", "y"], *([0.5, word] for word in words)])
        found, known = Table(path, label="y")._read()[1]
    assert known == tuple(sorted(set(words))) and [known[k] for k in found] == words


def test_headless_labels():
    """A table without a header may have words for labels: they are then in the column of its number."""
    a, (y, known) = rows_of("5.1,3.5,setosa\n4.9,3.0,virginica\n5.0,3.1,setosa\n", label="2")
    assert a.tolist() == [[5.1, 3.5], [4.9, 3.0], [5.0, 3.1]]
    assert y.tolist() == [0, 1, 0] and known == ("setosa", "virginica")


def test_long_tables():
    """Blocks of lines are put together in order, and errors name the line in the file, not in its block."""
    a = np.random.RandomState(0).randn(10_000, 2)
    lines = ["x,y", *(f"{x!r},{y!r}" for x, y in a.tolist())]
    assert np.array_equal(rows_of("\n".join(lines))[0], a)
    lines[9_000] = "1,red"
    refused("\n".join(lines), "got 'red' in line 9001, column 'y'")


def test_protein(shared):
    """The 45,730 proteins of UCI, which have no header."""
    path = shared / "uci" / "protein.csv.gz"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns of other scales
        data = Table(path, held_out=0.1).load()
    want = torch.from_numpy(np.loadtxt(path, delimiter=","))[split(45730, 0.1, 0)[0]]
    assert data.shape == (10,) and (len(data.train), len(data.held_out)) == (41157, 4573)
    torch.testing.assert_close(numbers(data), want, rtol=1e-5, atol=1e-5 * float(want.std(0).min()))


# what is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a,b\n1,2\n3,\n",
            "must hold finite numbers, got '', a missing value, in line 3, column 'b': leave out the row",
        ),
        ("a,b\n1,NA\n3,4\n", "got 'NA', a missing value, in line 2, column 'b'"),
        ("a,b\n1,?\n3,4\n", "got '?', a missing value, in line 2, column 'b'"),
        ("a,b\n1,nan\n3,4\n", "got 'nan', a missing value, in line 2, column 'b'"),
        ('a\n1\n" "\n', "got '', a missing value, in line 3, column 'a'"),
        ("nan,nan\n1,2\n", "got 'nan', a missing value, in line 1, column '0'"),
        ("a,b\n1,2\n-inf,4\n", "got '-inf' in line 3, column 'a': leave out the row or the column"),
        ("a,b\n1,1e999\n3,4\n", "got '1e999' in line 2, column 'b'"),
        ("a,b\n1,red\n3,4\n", "got 'red' in line 2, column 'b': leave the column out by columns, or make it the label"),
        ("a,b\n1,1_000\n3,4\n", "got '1_000' in line 2, column 'b'"),
        ("a,b\n1,2020-01-01\n3,4\n", "got '2020-01-01' in line 2, column 'b'"),
        ("a,b\n1,True\n3,false\n", "got 'True', a boolean, in line 2, column 'b': write 1 and 0, or leave"),
        ("a;b\n1,5;2\n", "got '1,5' in line 2, column 'a': write numbers with a decimal point and no commas"),
        ("a\tb\n1\t-1.234,5\n", "got '-1.234,5' in line 2, column 'b': write numbers with a decimal point"),
        ('a,b\n1,"1,234"\n', "got '1,234' in line 2, column 'b': write numbers with a decimal point"),
        ("a b\n1 2\n3 4\n", "got '1 2' in line 2, column 'a b': separate columns by a comma, a semicolon or a tab"),
        (
            "x,2019\n1,2\n",
            "got 'x' in line 1, column '0': leave the column out by columns, or make it the label, and if",
        ),
        ("a,b\n1,2\n3,4,5\n", "must have 2 cells in all lines, as line 1 has, got 3 in line 3, separated by ','"),
        ("\na,b\n1,2\n3\n", "must have 2 cells in all lines, as line 2 has, got 1 in line 4"),
        ("a;b,c\n1,2\n", "must have 2 cells in all lines, as line 1 has, got 1 in line 2, separated by ';'"),
        ("a,b,a\n1,2,3\n", "must name its columns differently, got 'a' twice"),
        (",a\n0,2\n1,3\n", "must name all its columns, got '' for column 0, which pandas writes unless index=False"),
        ("", "must hold a table, got no line that is not empty"),
        ("\n\n", "must hold a table, got no line that is not empty"),
        ("a,b\n", "must hold at least 2 rows of numbers, got 0"),
        ("a,b\n1,2\n", "must hold at least 2 rows of numbers, got 1"),
        ('a,b\n1,"2\n3,4\n', "cannot be read as CSV in line 3: unexpected end of data"),
        ('a,b\n1,"2"3\n', "cannot be read as CSV in line 2"),
        ("a,b\n1," + "2" * 200_000, "cannot be read as CSV in line 2: field larger than field limit"),
        ("größe,b\n1,2\n".encode("latin-1"), "must be a CSV file in UTF-8, or a .parquet, got the byte 0xf6 in line 1"),
        (b"a,b\n" + b"1,2\n" * 9000 + b"3,\xe9\n", "got the byte 0xe9 in line 9002: save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "got the byte 0xff in line 1"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_text_that_is_no_table_of_numbers(text, said, name):
    """What is wrong is said by file, line and column."""
    refused(text, said, name)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"columns": ("a", "z")}, "columns must be of those of {path}, 'a', 'b', got 'z'"),
        ({"label": "z"}, "label must be of those of {path}, 'a', 'b', got 'z'"),
    ],
)
def test_unknown_columns(tmp_path, fields, said):
    """Columns that are not there are named, with those that are."""
    path = written(tmp_path, "a,b\n1,2\n3,4\n")
    with pytest.raises(ValueError) as error:
        Table(path, **fields).load()
    assert str(error.value) == said.format(path=path)
    wide = written(tmp_path, ",".join(f"c{k}" for k in range(900)) + "\n")
    with pytest.raises(ValueError, match=r"'c19', \.\.\., got"):
        Table(wide, **fields).load()


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["0", "1.5"], "below 10^6, got '1.5' in line 3"),
        (["-1", "1"], "below 10^6, got '-1' in line 2"),
        (["1000000", "1"], "below 10^6, got '1000000' in line 2"),
        (["1", "1e300"], "below 10^6, got '1e300' in line 3"),
        (["1", "inf"], "got 'inf' in line 3"),
        (["1", ""], "got '', a missing value, in line 3: leave out the row"),
        (["red", "NaN"], "got 'NaN', a missing value, in line 3"),
        (["red", "3"], "got '3' in line 3 and 'red' in line 2"),
    ],
)
def test_labels_that_are_none(cells, said):
    """Labels are whole numbers from 0 on or words, all of one kind."""
    text = "x,y\n" + "".join(f"0.5,{cell}\n" for cell in cells)
    refused(text, "column 'y', must be whole numbers from 0 on, or words", label="y")
    refused(text, said, label="y")


def test_nothing_but_a_label():
    """A table of labels alone has no samples."""
    refused("y\n1\n2\n", "must hold a column of numbers besides the label", label="y")


def test_first_line_that_counts(tmp_path):
    """A first line 0, 1, ..., as pandas writes for columns without names, is a sample, with a warning."""
    path = written(tmp_path, "0,1,2\n3.5,4.5,5.5\n1,2,3\n")
    with pytest.warns(UserWarning, match="line 1 of .*a.csv, '0', '1', '2', is taken as a sample") as caught:
        data = Table(path, held_out=0.0).load()
    assert len(data.train) == 3 and caught[0].filename == __file__


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"path": ""}, "path must be a path"),
        ({"columns": "abc"}, "columns must be names of columns, got 'abc'"),
        ({"columns": ("a", "")}, "columns must be names of columns"),
        ({"columns": ("a", 1)}, "columns must be names of columns"),
        ({"columns": ("a", "a")}, "columns must differ, got 'a' twice"),
        ({"label": None}, "label must be the name of a column, got None"),
        ({"columns": ("a", "b"), "label": "b"}, "columns must not hold the label, got 'b'"),
        ({"held_out": 1.0}, "held_out must"),
        ({"seed": -1}, "seed must"),
    ],
)
def test_fields(fields, said):
    """A field that is none is refused when the source is made."""
    with pytest.raises(ValueError, match=f"^{said}"):
        Table(**{"path": "a.csv", **fields})


def test_files_that_are_none(tmp_path):
    """A file that is not there, and one that is cut off or no .gz at all."""
    for path in (tmp_path / "none.csv", tmp_path, tmp_path / "none.parquet"):
        with pytest.raises(ValueError, match="^path must be a CSV or Parquet file, got .* which is not there"):
            Table(path).load()
    whole = gzip.compress(b"a,b\n" + b"1,2\n" * 1000)
    for content in (whole[:-9], whole[:30] + b"\xff\xff\xff" + whole[33:], b"a,b\n1,2\n"):
        (tmp_path / "a.csv.gz").write_bytes(content)
        with pytest.raises(ValueError, match="a.csv.gz cannot be read"):
            Table(tmp_path / "a.csv.gz").load()


def test_more_than_memory_holds(monkeypatch, tmp_path):
    """A table that unpacks to more than there is memory for is refused on the way."""
    path = written(tmp_path, "a,b\n" + "1,2\n" * 10_000, "a.csv.gz")
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 500}.get)
    with pytest.raises(ValueError, match="a.csv.gz must fit into memory, but needs"):
        Table(path).load()


# Parquet


@pytest.fixture
def parquet():
    """pyarrow and pyarrow.parquet."""
    return pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


def packed(folder, columns, name="a.parquet"):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = Path(folder) / name
    parquet.write_table(arrow.table(columns), path)
    return path


@given(
    st.data(),
    st.integers(1, 5),
    st.lists(st.sampled_from(["f8", "f4", "f2", "i8", "i4", "u1", "u4"]), min_size=1, max_size=4),
)
def test_parquet_is_read_back(data, n, dtypes):
    """Numbers of every type are read as they are, columns in the order asked for."""
    pytest.importorskip("pyarrow")
    columns = {}
    for k, dtype in enumerate(dtypes):
        kind = np.dtype(dtype)
        info = None if kind.kind == "f" else np.iinfo(kind)
        values = (
            st.floats(allow_nan=False, allow_infinity=False, width=8 * kind.itemsize)
            if info is None
            else st.integers(max(info.min, -(2**53)), min(info.max, 2**53))
        )
        columns[f"c.{k}"] = np.array(data.draw(st.lists(values, min_size=n, max_size=n)), kind)
    order = data.draw(st.permutations(list(columns)))
    with tempfile.TemporaryDirectory() as folder:
        path = packed(folder, columns)
        found, labels = Table(path)._read()[:2]
        chosen, _ = Table(path, columns=tuple(order))._read()[:2]
    assert labels is None and np.array_equal(found, np.stack([c.astype(float) for c in columns.values()], 1))
    assert np.array_equal(chosen, np.stack([columns[name].astype(float) for name in order], 1))


def test_parquet_and_csv_agree(parquet, tmp_path):
    """A table is the same samples from both kinds of file, with labels of words and of whole numbers."""
    arrow, _ = parquet
    a, rng = np.random.RandomState(0).randn(40, 2), np.random.RandomState(1)
    for y in (rng.randint(0, 3, 40), rng.choice(["one", "two"], 40)):
        text = "x,y,z\n" + "".join(f"{x!r},{word},{z!r}\n" for (x, z), word in zip(a.tolist(), y))
        one = Table(written(tmp_path, text), label="y").load()
        cells = arrow.array(y.tolist())
        for column in (cells, cells.dictionary_encode()):
            two = Table(packed(tmp_path, {"x": a[:, 0], "y": column, "z": a[:, 1]}, "a.pq"), label="y").load()
            assert torch.equal(numbers(one), numbers(two)) and torch.equal(one.train_labels, two.train_labels)
            assert one.names == two.names and one.digest == two.digest


def test_parquet_errors(parquet, tmp_path):
    """What is no number is refused by file, column and row, counted from 0."""
    arrow, writer = parquet
    whole = {"a": [1.0, 2.0, 3.0]}
    for columns, fields, said in (
        ({"b": [1.0, None, 2.0]}, {}, "got 'null', a missing value, in row 1, column 'b'"),
        ({"b": [1.0, 2.0, float("nan")]}, {}, "got 'nan', a missing value, in row 2, column 'b'"),
        ({"b": [1.0, 2.0, float("inf")]}, {}, "got 'inf' in row 2, column 'b'"),
        (
            {"b": ["x", "y", "z"]},
            {},
            "must hold numbers, got a column of string, 'b': leave it out by columns, or make",
        ),
        ({"b": [True, False, True]}, {}, "must hold numbers, got a column of booleans, 'b'"),
        ({"b": [[1], [2], [3]]}, {}, "must hold numbers, got a column of list<"),
        ({"__index_level_0__": [1, 2, 3]}, {}, "must name all its columns, got '__index_level_0__' for column 1"),
        ({"y": [1, None, 2]}, {"label": "y"}, "got 'null', a missing value, in row 1"),
        ({"y": ["x", "y", None]}, {"label": "y"}, "got 'null', a missing value, in row 2"),
        ({"y": [[1], [2], [3]]}, {"label": "y"}, "must be whole numbers from 0 on, or words, got a column of list<"),
        ({"y": [0.5, 1.0, 2.0]}, {"label": "y"}, "below 10^6, got '0.5' in row 0"),
        ({}, {"label": "y"}, "label must be of those of"),
    ):
        path = packed(tmp_path, {**whole, **columns})
        with pytest.raises(ValueError) as error:
            Table(path, **fields).load()
        assert said in str(error.value) and str(path) in str(error.value), str(error.value)
        assert "\n" not in str(error.value)
    twice = arrow.Table.from_arrays([arrow.array([1.0]), arrow.array([2.0])], ["a", "a"])
    writer.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="must name its columns differently, got 'a' twice"):
        Table(tmp_path / "twice.parquet").load()
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(ValueError, match="damaged.parquet cannot be read as Parquet"):
        Table(tmp_path / "damaged.parquet").load()


def test_parquet_columns_that_are_not_asked_for(parquet, tmp_path):
    """Columns of other types do not matter where they are left out; decimals are numbers."""
    from decimal import Decimal

    path = packed(tmp_path, {"a": [Decimal("1.25"), Decimal("2.50")], "b": ["x", None], "c": [[1], [2]]})
    assert Table(path, columns=("a",))._read()[0].tolist() == [[1.25], [2.5]]


def test_parquet_without_pyarrow(monkeypatch, tmp_path):
    """Where pyarrow is missing it is said how to get it."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1")

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ValueError, match="^Parquet needs pyarrow: pip install pyarrow$"):
        Table(tmp_path / "a.parquet").load()
