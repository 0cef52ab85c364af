"""What mkdocs asks when it builds the site: pages that are made of the code, and files that lie outside docs/."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import reference  # noqa: E402

ROOT = Path(__file__).parent.parent
OUTSIDE = ("examples/*.p*", "examples/*.json", "benchmarks/**/*.p*", "benchmarks/**/*.json*", "LICENSE")
"""Files of the repository that pages link to: programs, pictures and results."""
LECTURE = "The lecture, in code"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The pages of the lecture come into the navigation as they lie in docs/lecture, and explain.md where it is."""
    there = Path(config.docs_dir)
    lecture = [str(path.relative_to(there)) for path in sorted(there.glob("lecture/*.md"))]
    extra = [name for name in ("explain.md",) if (there / name).is_file()]
    nav: list[Any] = []
    for entry in config.nav or []:
        if entry == {LECTURE: "lecture"}:
            nav += [{LECTURE: lecture + extra}] if lecture + extra else []
        else:
            nav.append(entry)
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Reference pages, and the files outside docs/, under the paths that they have in the repository."""
    for path, text in reference.pages().items():
        files.append(File.generated(config, path, content=text))
    for pattern in OUTSIDE:
        for file in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, str(file.relative_to(ROOT)), abs_src_path=str(file)))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """The page that plays, which explain.md shows, is made beside it."""
    if (Path(config.docs_dir) / "explain.md").is_file():
        page = str(Path(config.site_dir) / "played.html")
        subprocess.run([sys.executable, "-m", "scoresde", "explain", "--out", page], check=True, cwd=ROOT)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that lead out of docs/ into the repository, as they do where the repository is read, lead to the same files
    here. Pages of results are wide.
    """
    if page.file.src_uri.startswith("results/"):
        page.meta["hide"] = ["toc"]
    up = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({re.escape(up)}\.\./(?=[\w])", f"]({up}", markdown)
