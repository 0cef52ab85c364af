"""Pages that are made of the code: what is public, one page a wing, the commands, and the theory in opening texts.

The pages are made when the site is built, from the folders of the package, so that no module can be left out. Nothing
here needs mkdocs.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import scoresde
from scoresde.cli import Parser
from scoresde.cli.options import COMMANDS

PACKAGE = Path(scoresde.__file__).parent
PAGES = {
    "process": ("Processes", ["process"]),
    "times": ("Times and ODE methods", ["grid", "ode"]),
    "noise": ("Noise and Brownian paths", ["noise", "brownian"]),
    "steps": ("Steps", ["steps"]),
    "model": ("Models and losses", ["model", "closures", "loss", "nn"]),
    "exact": ("Exact laws", ["exact", "reference"]),
    "likelihood": ("Likelihoods", ["likelihood"]),
    "guide": ("Guidance and editing", ["guide", "edit"]),
    "inverse": ("Inverse problems", ["inverse"]),
    "data": ("Data", ["data", "quantize", "units"]),
    "training": ("Training and checkpoints", ["training", "checkpoint", "logbook"]),
    "interop": ("Other libraries", ["interop"]),
    "lab": ("Laboratory", ["lab"]),
    "ground": ("Ground floor", ["shapes", "values", "files", "progress", "weighted", "bibliography"]),
}
"""Page -> its title, and the wings and modules that it tells of."""
THEORY = {
    "process": ("Processes, models, losses", ["process", "model", "loss", "exact", "reference", "grid", "noise"]),
    "steps": ("Steps and solvers", ["steps", "ode", "brownian"]),
    "likelihood": ("Likelihoods", ["likelihood"]),
    "conditions": ("Guidance and inverse problems", ["guide", "edit", "inverse"]),
    "learning": ("Learning", ["training", "nn", "data", "units", "checkpoint", "interop"]),
    "measuring": ("Measuring", ["lab"]),
}
"""Page -> its title, and the wings and modules whose opening texts it shows."""
FIRST = ("scoresde.process.sde", "scoresde.steps.step", "scoresde.likelihood.flow")
WORDS = 40
"""Texts that are shorter than this state no theory."""


def modules(name: str) -> list[str]:
    """The modules of a wing, or the module itself, by their dotted names: `process` -> scoresde.process.sde, ..."""
    if not (PACKAGE / name).is_dir():
        return [f"scoresde.{name}"]
    files = sorted(path for path in (PACKAGE / name).glob("*.py") if path.stem != "__init__")
    return [f"scoresde.{name}.{path.stem}" for path in files]


def page(title: str, names: list[str]) -> str:
    """The source of one page."""
    lines = [f"# {title}\n"]
    for name in names:
        if (PACKAGE / name).is_dir():
            lines.append(f"::: scoresde.{name}\n    options:\n      members: false\n      heading_level: 2\n")
        lines += [f"::: {module}\n    options:\n      heading_level: 2\n" for module in modules(name)]
    return "\n".join(lines)


def opening(module: str) -> str:
    """The docstring of a module."""
    return ast.get_docstring(ast.parse(source(module).read_text())) or ""


def source(module: str) -> Path:
    """The file of a module or of a wing."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def theory(title: str, names: list[str]) -> str:
    """The opening texts of modules, each under its first sentence."""
    wings = [f"scoresde.{name}" for name in names if (PACKAGE / name).is_dir()]
    every = [*wings, *(module for name in names for module in modules(name))]
    lines = [f"# {title}\n"]
    for module in sorted(every, key=lambda module: module not in FIRST):
        head, _, rest = opening(module).partition("\n\n")
        if len(head.split()) + len(rest.split()) >= WORDS:
            lines += [f"## {' '.join(head.split()).rstrip('.')}\n", f"[`{module}`][{module}]\n", rest + "\n"]
    return "\n".join(lines)


def front_door() -> str:
    """The page of what `import scoresde` offers: every name, its home and the first line of what is said of it."""
    lines = ["# Names of every day\n", scoresde.__doc__ or "", "", "| name | is | from |", "| --- | --- | --- |"]
    for name, home in sorted(homes().items(), key=lambda item: item[0].lower()):
        said = (getattr(scoresde, name).__doc__ or "").strip().split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        lines.append(f"| [`{name}`][{home}] | {escaped(first_sentence(said))} | `{home.rsplit('.', 1)[0]}` |")
    return "\n".join(lines) + "\n"


def homes() -> dict[str, str]:
    """Every name of `scoresde.__all__` but the version -> the full name under which it is defined."""
    found = {}
    for name in scoresde.__all__:
        value = getattr(scoresde, name)
        if name != "__version__":
            here = getattr(value, "__module__", None)
            found[name] = f"{here}.{value.__qualname__}" if here else value.__name__
    return found


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, and no abbreviation."""
    return re.split(r"(?<!\bal)(?<!\beq)(?<!\beqs)\.\s+(?=[A-Z])", text)[0].rstrip(".:") + "."


def escaped(text: str) -> str:
    """Markdown that shows the text as it is, but for names in back quotes."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part[:1] == "`" else re.sub(r"([*_\[\]<>])", r"\\\1", part) for part in parts)


def commands() -> str:
    """The page of `scoresde --help`, of all commands."""
    lines = ["# Commands\n", "Every command says what follows when it is asked by `--help`.\n"]
    for name in COMMANDS:
        lines += [f"## scoresde {name}\n", "```text", Parser(name).format_help().rstrip(), "```\n"]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Path in the site -> source, of all reference pages."""
    made = {f"theory/{name}.md": theory(title, names) for name, (title, names) in THEORY.items()}
    made |= {f"reference/{name}.md": page(title, names) for name, (title, names) in PAGES.items()}
    return {**made, "reference/index.md": front_door(), "reference/commands.md": commands()}


def public(module: str) -> Iterator[tuple[str, bool]]:
    """The public classes and functions of a module, and whether each has a docstring."""
    for node in ast.parse(source(module).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, ast.get_docstring(node) is not None
