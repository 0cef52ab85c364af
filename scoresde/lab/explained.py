"""One HTML file that plays a story: it holds every number that it draws, and asks for nothing from anywhere. It is
`explain.html`, with the style, the scripts and the numbers put in.

Numbers are JSON in the page. Positions and densities, which a picture needs to a part in thousands, are whole numbers
in one zlib stream in base64: of each array the differences along its first axis, modulo 2^8 or 2^16, and of 16 bits all
low bytes before all high ones. A browser undoes that and nothing else.
"""

import base64
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .. import __version__
from .story import DRAWS, ETAS, RATES, Film, Scene

MARK = b'<meta name="generator" content="scoresde explain">'
"""What a page says of itself near its beginning."""
LEVELS = 2047
"""Whole numbers that tell a coordinate in the window, 0 at its left or lower edge."""
CELLS = {1: 192, 2: 96}
"""Cells of a density along the window, by dimensions of the law."""
EVERY = {1: 1, 2: 2}
"""Frames from one density to the next, by dimensions of the law."""


class Packing:
    """Arrays of whole numbers, packed one after the other, and an index that tells where each lies."""

    def __init__(self) -> None:
        self.index: dict[str, dict[str, Any]] = {}
        self.content = bytearray()

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Values of 8 or 16 bits, without signs."""
        change = np.diff(values, axis=0, prepend=np.zeros_like(values[:1])).astype(values.dtype)
        planes = change.astype(f"<u{values.itemsize}").reshape(-1, 1).view(np.uint8).T
        where = {"at": len(self.content), "shape": list(values.shape), "bytes": values.itemsize}
        self.index[name] = where
        self.content += planes.tobytes()

    def text(self) -> str:
        """Everything in base64."""
        return base64.b64encode(zlib.compress(bytes(self.content), 9)).decode()


def told(
    scenes: dict[str, Scene], each: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> tuple[dict[str, Any], Packing]:
    """The numbers of all scenes, named law/process, and their arrays. each: wraps the work that is to be done, one
    scene or one way of it after the other, as a progress bar does.
    """
    packing = Packing()
    work = [(name, scene, task) for name, scene in scenes.items() for task in (None, *scene.tasks())]
    found: dict[str, Any] = {}
    for name, scene, task in each(work):
        if task is None:
            found[name] = _setting(name, scene, packing)
        else:
            key, way, n = task
            film = scene.film(way, n)
            found[name]["runs"][key] = _run(film)
            packing.add(f"{name}/{key}", placed(scene, film.x, film.frames))
    first = next(iter(scenes.values()))
    story = {
        "version": __version__,
        "particles": first.particles,
        "shown": first.shown,
        "exact": first.exact,
        "directions": first.directions,
        "seed": first.seed,
        "steps": list(first.steps),
        "etas": list(ETAS),
        "rates": RATES,
        "draws": DRAWS,
        "levels": LEVELS,
        "scenes": found,
        "arrays": packing.index,
    }
    return story, packing


def _setting(name: str, scene: Scene, packing: Packing) -> dict[str, Any]:
    """What all ways of a scene share."""
    d, ts, last = scene.law.d, scene.ts, scene.last
    every = EVERY[d]
    density = np.stack([scene.density(f, CELLS[d]).numpy() for f in range(0, last + 1, every)])
    packing.add(f"{name}/density", np.round(255 * density).astype(np.uint8))
    forward, frames = scene.forward(), list(range(last + 1))
    packing.add(f"{name}/forward", placed(scene, forward[:, : scene.shown], frames))
    measured = scene.measured
    floor, least, most = zip(*(scene.floor(f) for f in measured), strict=True)
    return {
        "d": d,
        "problem": repr(scene.problem),
        "sde": repr(scene.sde),
        "code": scene.code(),
        "last": last,
        "every": every,
        "t": _rounded(ts.tolist()),
        "alpha": _rounded(scene.sde.alpha(ts).tolist()),
        "sigma": _rounded(scene.sde.sigma(ts).tolist()),
        "width": _rounded(scene.width.tolist(), 7),
        "measured": measured,
        "floor": _rounded(floor),
        "least": _rounded(least),
        "most": _rounded(most),
        "forward": _rounded([scene.distance(forward[f], f) for f in measured]),
        "runs": {},
    }


def _run(film: Film) -> dict[str, Any]:
    return {
        "frames": film.frames,
        "nfe": film.nfe,
        "measured": film.measured,
        "distance": _rounded(film.distance),
        "off": _rounded(film.off),
        "code": film.code,
    }


def placed(scene: Scene, x: Tensor, frames: list[int]) -> NDArray[Any]:
    """States (S, n, d) at these frames as whole numbers of their windows, what lies outside at its edge."""
    w = scene.width[frames][:, None, None]
    return ((x / w + 1) / 2 * LEVELS).round().clamp(0, LEVELS).numpy().astype(np.uint16)


def _rounded(values: Iterable[float], digits: int = 4) -> list[float]:
    """To so many digits."""
    return [round(v, digits - 1 - math.floor(math.log10(abs(v)))) if v else 0.0 for v in values]


def page(story: dict[str, Any], packing: Packing) -> str:
    """The file."""
    said = json.dumps(story, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    style, draw, move, text = (
        (Path(__file__).parent / f"explain.{kind}").read_text(encoding="utf-8")
        for kind in ("css", "draw.js", "move.js", "html")
    )
    parts = {"style": style, "script": draw + move, "story": said, "numbers": packing.text()}
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], text)
