"""`scoresde tune`."""

import shutil
from argparse import Namespace
from dataclasses import replace
from itertools import product
from time import monotonic

import torch

from ..checkpoint import Checkpoint
from ..lab import Problem
from ..model import Counted, transport
from ..noise import iid
from ..process import LinearSDE, Score
from ..reference import Reference, known
from ..shapes import count, number
from ..steps import Pilots, Tuning, tune
from ..steps.fit import least
from ..steps.pilots import together
from ..steps.renewed import bounds
from ..values import build, describe
from .common import classifier_of, code_of, condition, guided, label_of, model_of, one_subject, place
from .folder import Journal, opened, require_fitting
from .parts import read
from .plan import duration, seconds_a_call, tell

KNOWN = 2000  # samples of an exact law that tell its mean and deviation


def run(o: Namespace) -> None:
    """Tune, and say how good the result is."""
    count("nfe", o.nfe, least=2), number("eta", o.eta, least=0, most=1)
    pilots = Pilots(o.pilots, o.seed, evaluations=o.evaluations)
    device, around = place(o), None
    one_subject(o)
    if o.out.is_dir():
        raise ValueError(f"out must be a file to write, and {o.out} is a folder")
    if o.out.exists():
        Tuning.load(o.out)  # another file is not written over
    sde = read("sde", o.sde or "vp", LinearSDE)
    if o.model:
        found = model_of(o, device)
        sde, around = sde if o.sde else found.model.sde, found.around
        said, nets = told(o, found, device)
        scores = [transport(net, found.model.sde, sde) for net in nets]
        like = torch.empty(1, *found.shape, device=device)
    else:
        if any(v is not None for v in (o.label, o.classifier, o.guidance, o.interval)):
            raise ValueError(
                "label, classifier, guidance and interval must not be given with a law, which has no classes"
            )
        problem, said = read("law", o.law or "modes", Problem), ""
        law = problem.law()
        around = Reference.fit(law.sample(KNOWN, torch.Generator().manual_seed(o.seed)))
        like = torch.empty(1, *law.shape, dtype=torch.float64, device=device)
        scores = [law.to(device).diffuse(sde)]
    build(LinearSDE, describe(sde))  # what could not be written and read again must fail before the tuning
    of = {"subject": found.digest if o.model else repr(problem), "sde": sde, "around": around, "device": device.type}
    kept = {k: getattr(o, k) for k in ("seed", "nfe", "pilots", "evaluations")}
    kept |= {"condition": said} if said else {}
    kept |= {"eta": o.eta} if o.eta else {}
    flow = together([sde.reverse(score, o.eta) for score in scores], pilots)
    fewest, most = cost(o, pilots, known(around, flow.score, like.shape[1:]) is not None, len(scores))
    x = sde.prior((pilots.n, *like.shape[1:]), iid(torch.Generator().manual_seed(0)), like.dtype, device)
    asked = Counted(scores[0])  # twice, and by guidance the network as often each time
    each = 2 * seconds_a_call(asked, x, torch.tensor(sde.T, dtype=torch.float64)) / (max(1, asked.nfe) * pilots.n)
    lasts = f"{duration(fewest * each)} to {duration(most * each).removeprefix('about ')}"
    costs = (
        f"the fit takes from {fewest:,} to {most:,} evaluations of the network for one sample, as many as "
        f"{max(1, most // 1000):,} samples of 1,000 steps: {lasts}"
    )
    work = o.out.with_name(f".{o.out.name}.work")
    if o.dry_run:
        require_fitting(work, code_of(o), command="tune", **of, **kept)
        what = f"a solver of {o.nfe} calls for {o.model or repr(problem)} on {sde!r}{f', {said}' if said else ''}"
        return tell(f"{what}, by {pilots.n} pilots, into {o.out}", costs)
    print(costs)
    o.out.parent.mkdir(parents=True, exist_ok=True)
    with opened(work, code_of(o), command="tune", **of, **kept) as folder:
        journal, began = Journal(flow.score, folder).start(folder.of), monotonic()
        counted = Counted(journal)
        fitted = sde.reverse(counted, o.eta), like, o.nfe, around, pilots
        made = tune(*fitted, lambda text: print(f"... {text} ({monotonic() - began:.0f} s)"))
        made = replace(made, condition=said)
        made.save(o.out)
        again = journal.recalled
        journal.done({})
    shutil.rmtree(folder.path)
    print(f"{made.name}, {made.calls} network calls: error {made.fresh} on fresh noise")
    print(f"on the pilots that decided: {made.validation}")
    print(f"there, {made.untuned}, the best method without a fit: {made.untuned_validation}")
    if not made.tuned:
        print("no fit was better, so that method is what was written")
    calls = f"{counted.nfe} network calls to tune" + (f", {again} of them before it was cut off" if again else "")
    rough = f"roughness in t {made.roughness:.2g}"
    print(f"noise amplification {made.noise_amplification:.2f}; {rough}; {calls}; {o.out}")
    print(f"{made.evaluations:,} evaluations of the network for one sample in {monotonic() - began:.0f} s")


def cost(o: Namespace, pilots: Pilots, told_around: bool, flows: int) -> tuple[int, int]:
    """The fewest and the most evaluations of the network for one sample: guidance that is free of a classifier asks it
    twice each time, and where it is given an interval only there.
    """
    once = least(o.nfe, pilots, told_around, flows)
    fewest, most = bounds(o.nfe, pilots, told_around, flows) if o.eta else (once, once)
    each = 2 if o.guidance and not o.classifier else 1
    return fewest * (1 if o.interval else each), max(each * most, o.evaluations)


def told(o: Namespace, found: Checkpoint, device: torch.device) -> tuple[str, list[Score]]:
    """What the network is told, in words, and its scores: one under every label and guidance that was asked for."""
    by = classifier_of(o, found, device)
    labels, weights = o.label or [None], o.guidance or [None]
    if labels == ["all"] and "all" not in (by or found).names:
        labels = [str(k) for k in range(getattr((by or found).model.net, "classes", 0))] or labels
    each = [Namespace(**{**vars(o), "label": label, "guidance": w}) for label, w in product(labels, weights)]
    those = [label_of(one, by or found) for one in each]
    nets = [guided(one, found.model, label, by) for one, label in zip(each, those, strict=True)]
    return "; ".join(condition(one, label, by) for one, label in zip(each, those, strict=True)), nets
