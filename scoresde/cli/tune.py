"""`scoresde tune`."""

from argparse import Namespace

import torch

from ..lab import Problem
from ..model import Counted, transport
from ..process import LinearSDE
from ..reference import Reference
from ..shapes import count
from ..steps import Pilots, tune
from ..values import build, describe
from .common import model_of, one_subject, place
from .parts import read

KNOWN = 2000  # samples of an exact law that tell its mean and deviation


def run(o: Namespace) -> None:
    """Tune, and say how good the result is."""
    count("nfe", o.nfe, least=2)
    device, around = place(o), None
    one_subject(o)
    if o.out.is_dir():
        raise ValueError(f"out must be a file to write, and {o.out} is a folder")
    sde = read("sde", o.sde or "vp", LinearSDE)
    if o.model:
        found = model_of(o, device)
        sde, around = sde if o.sde else found.model.sde, found.model.around
        score, like = transport(found.model, found.model.sde, sde), torch.empty(1, *found.shape, device=device)
    else:
        law = read("law", o.law or "modes", Problem).law()
        around = Reference.fit(law.sample(KNOWN, torch.Generator().manual_seed(o.seed)))
        like = torch.empty(1, *law.shape, dtype=torch.float64, device=device)
        score = law.to(device).diffuse(sde)
    build(LinearSDE, describe(sde))  # what could not be written and read again must fail before the tuning
    counted = Counted(score)
    o.out.parent.mkdir(parents=True, exist_ok=True)
    pilots = Pilots(o.pilots, o.seed)
    found_ = tune(sde.reverse(counted, 0.0), like, o.nfe, around, pilots, lambda said: print(f"... {said}"))
    found_.save(o.out)
    print(f"{found_.name}, {found_.calls} network calls: error {found_.fresh} on fresh noise")
    print(f"on the pilots that decided: {found_.validation}")
    print(f"there, {found_.untuned}, the best method without a fit: {found_.untuned_validation}")
    if not found_.tuned:
        print("no fit was better, so that method is what was written")
    print(f"noise amplification {found_.noise_amplification:.2f}; {counted.nfe} network calls to tune; {o.out}")
