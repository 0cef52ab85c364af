"""Averages of weights that are chosen after the training (Karras et al. 2024, section 3).

With the half-life `ema` e, as a part of the steps so far, the average of step t is

    a_t = a_{t-1} + r_t (w_t - a_{t-1}),    r_t = 1 - 2^(-1/(e t)),

a mean of the first weights w_0, ..., w_t with weights v_j = r_j prod_{k=j+1..t} (1 - r_k), close to the power law
j^(log 2/e - 1). Averages of two half-lives are kept at some steps; the combination of these whose v is nearest to that
of another half-life, and of another step, is close to its average. Both are known to the last weight here, so that no
profile is approximated but by the combination itself.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..checkpoint import Checkpoint, fill, load_as
from ..files import write
from ..model import NoisyModel
from ..process import LinearSDE
from ..shapes import count, number
from ..values import describe, identity

HALF_LIVES = (0.0386, 0.0873)
"""Those that are kept, whose profiles have the relative widths 0.05 and 0.10 of Karras et al. (2024, section 3.2)."""
FOLDER, WORST = "averages", 0.1
"""Where snapshots lie in a checkpoint's folder, and the part of a profile that may be missed."""


def rate(ema: float, step: int) -> float:
    """r_t."""
    return -float(np.expm1(-np.log(2) / (ema * step)))


def profile(ema: float, step: int, steps: int) -> np.ndarray:
    """v_0, ..., v_steps of the average at a step; 0 after it."""
    k = np.arange(1.0, step + 1)
    lost = np.log(2) / ema * np.append(np.cumsum((1 / k)[::-1])[::-1], 0.0)  # -log of what is left of 0, 1, ...
    v = np.zeros(steps + 1)
    v[0] = np.exp(-lost[0])
    v[1 : step + 1] = -np.expm1(-np.log(2) / (ema * k)) * np.exp(-lost[1:])
    return v


def combination(kept: list[tuple[float, int]], ema: float, step: int) -> tuple[np.ndarray, float]:
    """The factors of averages (half-life, step) whose sum is nearest to that of `ema` at `step`, by least squares over
    v, and the part of its norm that they miss.
    """
    last = max([step, *(at for _, at in kept)])
    wanted = profile(ema, step, last)
    gram, onto = np.zeros((len(kept), len(kept))), np.zeros(len(kept))
    for i, (e, at) in enumerate(kept):
        v = profile(e, at, last)
        onto[i] = v @ wanted
        gram[i, i:] = [v @ profile(e_2, at_2, last) for e_2, at_2 in kept[i:]]
    gram += np.triu(gram, 1).T
    scale = 1 / np.sqrt(np.diag(gram))
    factors = scale * np.linalg.lstsq(scale[:, None] * gram * scale, scale * onto, rcond=1e-12)[0]
    factors /= factors.sum()  # so that what did not change is as it was
    found = sum(f * profile(e, at, last) for f, (e, at) in zip(factors, kept, strict=True))
    return factors, float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def keep(folder: Path, step: int, averages: list[dict[str, Tensor]], training: str) -> None:
    """Write the averages of HALF_LIVES at a step; training: which it is."""
    flat = {f"{i}.{k}": v.detach().cpu().contiguous() for i, a in enumerate(averages) for k, v in a.items()}
    said = {"step": step, "half_lives": HALF_LIVES, "training": training}
    (folder / FOLDER).mkdir(exist_ok=True)
    write(folder / FOLDER / f"{step:09d}.safetensors", safetensors.torch.save(flat, {"said": json.dumps(said)}))


def averaged(folder: str | Path, ema: float, step: int | None = None) -> tuple[Checkpoint[Any], float]:
    """The checkpoint in folder with the weights averaged by another half-life `ema`, in units of the steps until then,
    at a step, its last unless given; and the part of the average's profile that the kept ones do not reach.

    Raises ValueError if the training kept no snapshots (`Settings.snapshots`), if one is damaged or of another
    training, or if more than a tenth of the profile is missed: it is too narrow for the snapshots, or later than these.
    """
    found, folder = load_as(NoisyModel, folder), Path(folder)
    if "data" not in found.notes or not (folder / FOLDER).is_dir():
        raise ValueError(f"folder must hold averages that a training with snapshots kept, got {str(folder)!r}")
    last = int(found.notes["step"])
    step = last if step is None else count("step", step, most=last)
    number("ema", ema, above=0)
    snapshots = {}
    for file in sorted((folder / FOLDER).glob("*.safetensors")):
        try:
            with safetensors.safe_open(file, "pt") as opened:
                said = json.loads(opened.metadata()["said"])
            at, half_lives = int(said["step"]), tuple(said["half_lives"])
        except (safetensors.SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{file} is no snapshot of a training: {error}") from error
        if said["training"] != training_of(found.notes, found.model.sde):
            raise ValueError(f"{file} must be of the training whose checkpoint is in {folder}, and is of another")
        if at <= last:
            snapshots[file] = [(float(e), at) for e in half_lives]
    kept = [one for several in snapshots.values() for one in several]
    if not kept:
        raise ValueError(f"folder must hold averages that a training with snapshots kept, got {str(folder)!r}")
    factors, missed = combination(kept, ema, step)
    if missed > WORST:
        raise ValueError(
            f"ema must be one whose average the {len(kept)} kept ones make to a tenth, got {ema:g} at step {step}, of "
            f"which they miss {missed:.2g}"
        )
    total = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in found.model.named_parameters()}
    several = iter(factors)
    for file, these in snapshots.items():
        tensors = safetensors.torch.load_file(file)
        for i in range(len(these)):
            factor = float(next(several))
            for k in total:
                total[k] += factor * tensors[f"{i}.{k}"].double()
    state = found.model.state_dict()
    fill(found.model, {**state, **{k: v.to(state[k].dtype) for k, v in total.items()}})
    return found, missed


def training_of(notes: dict[str, Any], sde: LinearSDE) -> str:
    """What tells a training from others: its process, its data and its settings but for the number of steps."""
    settings = {k: v for k, v in notes["settings"].items() if k != "steps"}
    return identity([describe(sde), notes["data"], settings])
