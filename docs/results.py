"""The pages of results, and those of README, from the result files: every table, every number and every command.

    python docs/results.py [--check]

docs/templates/NAME.md, a Jinja template, becomes docs/results/NAME.md; what docs/templates/readme.md gives goes between
the two comments in README.md. A template says what the numbers mean; the numbers come from the files, by `tables`.
With --check nothing is written, and pages that are not what the files give are an error.
"""

import argparse
import inspect
import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import tables

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: python docs/results.py -->", "<!-- end of results -->"


@cache
def load(name: str) -> dict[str, Any]:
    """A result file, by its path in benchmarks/results or, if it begins with examples/, in the repository: what made
    it, and its `rows`. A file of JSON lines has beside it a `made.json` that says what made it.
    """
    file = ROOT / name if name.startswith("examples/") else FILES / name
    if file.suffix == ".jsonl":
        made = load(str(Path(name).parent / "made.json"))
        return {**made, "rows": [json.loads(line) for line in file.read_text().splitlines()]}
    return dict(json.loads(file.read_text()))


class Page:
    """A template, and the files that it has asked for."""

    def __init__(self, template: Path) -> None:
        self.template, self.files = template, set[str]()

    def load(self, name: str) -> dict[str, Any]:
        """A result file, which is entered as one that the page is of."""
        self.files.add(name)
        if name.endswith(".jsonl"):
            self.files.add(str(Path(name).parent / "made.json"))
        return load(name)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Its rows."""
        return list(self.load(name)["rows"])

    def told(self, name: str, command: str = "") -> str:
        """What made a file: its command, the machine, the versions, and a link to it. `command` is the file's own with
        the quotes that a shell needs; raises ValueError if it is another.
        """
        made, own = self.load(name), full(self.load(name)["command"])
        if command and " ".join(shlex.split(command)) != " ".join(own.split()):
            raise ValueError(f"command must be that of {name}, {own!r}, got {command!r}")
        path = name if name.startswith("examples/") else f"benchmarks/results/{name}"
        threads = f"{made['threads']} thread{'s' if made['threads'] > 1 else ''}"
        packages = ", ".join(f"{k} {v}" for k, v in {"Python": made["python"], **made["versions"]}.items())
        stopped = f" Stopped {made['stopped']}." if "stopped" in made else ""
        where = f"Rows: [{path}](../../{path})."
        how = f"\n\n{made['how']}" if "how" in made else ""
        return f"```console\n{command or own}\n```{how}\n\n*{made['device']}, {threads}; {packages}.{stopped} {where}*"

    def render(self) -> str:
        """The page."""
        outside = jinja2.Environment(
            loader=jinja2.FileSystemLoader(self.template.parent),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        outside.globals.update({k: v for k, v in vars(tables).items() if inspect.isfunction(v)})
        outside.globals.update(load=self.load, rows=self.rows, told=self.told, zip=zip, min=min, max=max, abs=abs)
        return outside.get_template(self.template.name).render()


def full(command: str) -> str:
    """A command as it is typed: programs of benchmarks/ are told without `python benchmarks/`."""
    return f"python benchmarks/{command}" if command.split()[0].endswith(".py") else command


def pages() -> dict[Path, tuple[str, set[str]]]:
    """File -> what it should hold, and the result files that it is of."""
    found = {}
    for template in sorted((ROOT / "docs" / "templates").glob("*.md")):
        page = Page(template)
        text = page.render()
        if template.stem == "readme":
            readme = (ROOT / "README.md").read_text()
            before, _, after = readme.partition(BEGIN)
            found[ROOT / "README.md"] = f"{before}{BEGIN}\n\n{text}\n{END}{after.partition(END)[2]}", page.files
        else:
            found[ROOT / "docs" / "results" / template.name] = text, page.files
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a page is not what it should")
    check = parser.parse_args().check
    for file, (text, _) in pages().items():
        if not file.exists() or file.read_text() != text:
            if check:
                raise SystemExit(f"{file.relative_to(ROOT)} is not what the result files give: python docs/results.py")
            file.write_text(text)
            print(f"wrote {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
