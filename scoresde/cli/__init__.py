"""The command line: `scoresde demo | train | sample | tune | bench | compare | likelihood`.

Every command is a frozen dataclass that tyro turns into arguments; SDEs, networks and steps are chosen as the library's
own values. An error is one line on standard error and exit status 2.
"""

import contextlib
import io
import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process if None) and return its exit status."""
    try:
        return _run(args)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command with the same --out goes on from here", 130)


def _run(args: Sequence[str] | None) -> int:
    try:
        import tyro

        from .bench import Bench
        from .common import Command
        from .compare import Compare
        from .demo import Demo
        from .likelihood import Likelihood
        from .sample import Sample
        from .train import Train
        from .tune import Tune
    except ImportError as error:
        return _fail(f"{error}: the command line needs pip install 'scoresde[app]'")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command: Command = tyro.cli(
                Demo | Train | Sample | Tune | Bench | Compare | Likelihood,
                config=(tyro.conf.CascadeSubcommandArgs,),
                prog="scoresde",
                description="Continuous-time score-based models: train, sample and measure.",
                args=args,
            )
    except SystemExit as stop:
        return _fail(_one_line(said.getvalue())) if stop.code else 0
    except (ValueError, TypeError) as error:
        return _fail(str(error))
    try:
        command.run()
    except (ValueError, RuntimeError, OSError) as error:
        return _fail(str(error))
    return 0


def _fail(message: str, status: int = 2) -> int:
    print("scoresde: " + " ".join(message.split()), file=sys.stderr)
    return status


def _one_line(box: str) -> str:
    """The message inside the box that tyro draws around it: what stands between the title and the next rule.

    Where the output cannot show lines, rules are dashes, and the title has one below it.
    """
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    rules = [i for i, line in enumerate(lines) if line and not line.strip("─╰╯-")]
    begin = 1 if rules[:1] == [0] else 0
    said = " ".join(lines[begin : next((i for i in rules if i > begin), len(lines))]).replace(
        "__tyro-dummy-inner__.", ""
    )
    return f"{said} (--help after any command lists what it takes)"
