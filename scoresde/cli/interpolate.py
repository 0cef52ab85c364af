"""`scoresde interpolate`."""

from argparse import Namespace
from typing import Any

import torch

from ..edit import interpolate, round_trip
from ..files import digest
from ..likelihood import AsNeeded, Integrator
from ..model import Counted
from ..ode import Embedded
from ..shapes import count
from .batches import enter, held
from .common import as_bytes, code_of, fitting, join_processes, label_of, labelled, model_of, place
from .folder import opened
from .images import alone, held_out, of_file, require_images, visibly
from .parts import read

SHOWN = 12
"""States in the picture."""


def run(o: Namespace) -> None:
    """Join two images."""
    if join_processes():
        return  # to the first of several, as two images are nothing to share
    n, device = count("n", o.n, least=2), place(o)
    alone(o)
    method = read("method", o.method, object)
    if not isinstance(method, Integrator | Embedded) or isinstance(method, AsNeeded):
        raise ValueError(f"method must be a value such as Adams(40) or Dopri5(), got {o.method!r}")
    found = model_of(o, device)
    require_images(found)
    fitting(n, found.shape)
    x = held_out(o, found, o.images or [0, 1]) if o.image is None else torch.stack([of_file(f, found) for f in o.image])
    net, label = Counted(found.model), label_of(o, found)
    p = found.model.sde.reverse(labelled(net, label), 0.0)
    of: dict[str, Any] = {"n": n, "method": repr(method), "label": label, "model": found.digest}
    of |= {"images": digest(as_bytes(x.numpy()))}
    with opened(o.out, code_of(o), command="interpolate", **of) as folder:
        if held(folder, 0, n) >= n:
            return
        a, b = x.to(device).split(1)
        made = interpolate(p, a, b, n, method, found.around)[:, 0].cpu()
        calls = net.nfe
        off = round_trip(p, x.to(device), method, found.around)
        from ..lab.report import gallery

        seen = made[torch.linspace(0, n - 1, min(n, SHOWN)).round().long()]
        shown = visibly(torch.cat([x[:1], seen, x[1:]]), found)[None]
        title = f"{n} states" if n <= SHOWN else f"{SHOWN} of {n} states"
        groups = [("from", shown[:, :1]), (title, shown[:, 1:-1]), ("to", shown[:, -1:])]
        gallery(groups, folder.path / "picture.png")
        enter(folder, made)
    there = " and ".join(f"{v:.3g}" for v in off.tolist())
    print(f"{n} states in {o.out}: {calls} network calls; the flow brings both back {there} off (root mean square)")
