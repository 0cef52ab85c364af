"""What the site adds when it is built: the lecture's pages, files outside docs, and links that lead to them."""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
pytest.importorskip("mkdocs")
hooks = importlib.import_module("hooks")


def navigation(folder):
    """What the navigation becomes."""
    nav = [{"Home": "index.md"}, {hooks.LECTURE: "lecture"}, {"Start": ["start/a.md"]}]
    return hooks.on_config(SimpleNamespace(docs_dir=str(folder), nav=nav)).nav


def test_the_lecture_comes_by_itself(tmp_path):
    """Its pages in the order of their names, then explain.md, each if it is there, and no empty heading."""
    assert navigation(tmp_path) == [{"Home": "index.md"}, {"Start": ["start/a.md"]}]
    (tmp_path / "explain.md").touch()
    assert navigation(tmp_path)[1] == {hooks.LECTURE: ["explain.md"]}
    (tmp_path / "lecture").mkdir()
    for name in ("2-langevin.md", "1-sde.md"):
        (tmp_path / "lecture" / name).touch()
    assert navigation(tmp_path)[1] == {hooks.LECTURE: ["lecture/1-sde.md", "lecture/2-langevin.md", "explain.md"]}
    assert f"- {hooks.LECTURE}: lecture\n" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("index.md", "![x](../examples/a.png)", "![x](examples/a.png)"),
        ("results/a.md", "[x](../../benchmarks/results/a.json)", "[x](../benchmarks/results/a.json)"),
        ("results/a.md", "[x](../limits.md), [y](b.md#c)", "[x](../limits.md), [y](b.md#c)"),
        ("a/b/c.md", "[x](../../../examples/a.py)", "[x](../../examples/a.py)"),
    ],
)
def test_links_out_of_docs(page, text, expected):
    """They lead as many folders up as the site is deep; links inside stay."""
    found = SimpleNamespace(file=SimpleNamespace(src_uri=page), meta={})
    assert hooks.on_page_markdown(text, page=found, config=None, files=None) == expected


def test_what_pages_link_to_comes_along():
    """Every file outside docs that a page links to is one that the site takes."""
    there = {file.resolve() for pattern in hooks.OUTSIDE for file in ROOT.glob(pattern)}
    for page in (path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "templates"):
        for target in re.findall(r"\]\((\.\./[^)#\s]+)\)", page.read_text()):
            path = (page.parent / target).resolve()
            assert path.is_relative_to(ROOT / "docs") or path in there, (page.name, target)
