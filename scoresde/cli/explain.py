"""`scoresde explain`."""

from argparse import Namespace
from pathlib import Path
from time import monotonic

from ..files import write
from ..lab.explained import MARK, page, told
from ..lab.story import TOLD, UNDER, Scene
from ..noise import seeds
from ..progress import bar


def run(o: Namespace) -> None:
    """Compute, and write the page."""
    began = monotonic()
    seeds(o.seed, 1)
    _require_page(o.out)
    scenes = {
        f"{law}/{process}": Scene(problem, sde, o.particles, o.shown, seed=o.seed)
        for law, problem in TOLD.items()
        for process, sde in UNDER.items()
    }
    content = page(*told(scenes, lambda work: bar(work, desc="explain", unit="run"))).encode()
    o.out.parent.mkdir(parents=True, exist_ok=True)
    write(o.out, content)
    print(f"{monotonic() - began:.0f} s; {len(content) / 1e6:.1f} MB; open {o.out}")


def _require_page(out: Path) -> None:
    """Raise ValueError for a folder, and for a file that is no such page: it is not written over."""
    if out.is_dir():
        raise ValueError(f"out must be a file to write, and {out} is a folder")
    if out.exists() and MARK not in out.read_bytes()[:1000]:
        raise ValueError(f"out must be new, or a page of this command, and {out} is another file")
