"""The pages of the lecture run as they stand, and each number that they tell is computed there."""

import re
from pathlib import Path

import pytest
from markdown import markdown

PAGES = sorted((Path(__file__).parents[2] / "docs" / "lecture").glob("[0-9]*.md"))
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)


def prose(text):
    """What stands outside of code, but for the sections of papers."""
    return re.sub(r"`[^`\n]+`|section \d\.\d", "", FENCE.sub("", text))


def test_ten_pages():
    """They are numbered from 1 to 10."""
    assert [page.name[:2] for page in PAGES] == [f"{i:02}" for i in range(1, 11)]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page, capsys):
    """Its blocks run in order in the one session of the page, and print a table or a picture."""
    blocks = FENCE.findall(page.read_text())
    assert blocks and all(said == f'python exec="on" source="above" session="{page.stem}"' for said, _ in blocks)
    namespace = {"__name__": page.stem}
    for i, (_, code) in enumerate(blocks):
        exec(compile(code, f"{page.name}, block {i + 1}", "exec"), namespace)
    shown = markdown(capsys.readouterr().out, extensions=["tables"])
    assert "<table>" in shown or "data:image/svg+xml;base64," in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_is_whole(page):
    """It begins with a question, holds laws that its code asserts, and ends with what to try and who found it."""
    text = page.read_text()
    title, question = text.split("\n\n")[:2]
    assert title.startswith("# ") and question.endswith("?*")
    assert re.findall(r"^## (.*)$", text, re.M)[-2:] == ["Try", "Reference"]
    assert re.search(r"\((?:19|20)\d\d\)", text.split("## Reference\n")[1])
    assert "    assert " in text or "\nassert " in text
    assert 60 <= len(text.splitlines()) <= 120 and max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_number_is_copied(page):
    """No number with decimals stands in the prose: it would be one that nothing computes."""
    assert not re.findall(r"\d\.\d|\de-?\d", prose(page.read_text()))
