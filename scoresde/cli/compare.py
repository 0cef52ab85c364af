"""`scoresde compare`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np
import torch
import tyro

from .. import grid
from ..ancestral import Ancestral, ConsistentAnnealed
from ..checkpoint import write
from ..convergence import GridPath, path_errors, resolved, slope
from ..count import Counted
from ..noise import iid
from ..ode import Dopri5, Euler, Heun
from ..predict import EulerMaruyama, Flow, ReverseDiffusion
from ..problems import DigitClasses, Lattice, Modes
from ..processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from ..progress import bar
from ..provenance import provenance
from ..report import Curve, Diagram, Report, curves, side_by_side
from ..sample import sample
from ..shapes import count, number
from .common import Command, as_bytes, as_lines, draw, read_lines, recipe
from .contenders import Method, Subject, exact_subject, methods, trained_subject

SHOWN = 50  # images in a picture
SLOPES = ("strong_slope", "weak_slope")
TITLES = {
    "frechet": "Frechet distance in the features of a small classifier",
    "sliced_wasserstein": "Sliced Wasserstein distance",
    "energy_distance": "Energy distance",
    "log_density_gap": "Mean log-density, less that of the truth, in nats",
    "mode_weights": "Error of the mode weights (total variation)",
}


@dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """Compare DDPM, annealed Langevin, predictor-corrector, DDIM, ... as discretisations of one SDE.

    Without a MODEL the score is that of an exact law, and distances are to that law at t = t_min, where all samplers
    stop; with one they are to held-out data. Every sampler has the same kind of grid, the same starting points and the
    same number of network calls. One line a sampler and budget goes to results.jsonl, everything to report.html; an
    interrupted run goes on when called again.
    """

    model: tyro.conf.Positional[Path | None] = None
    """The folder of a checkpoint; without one, the exact law."""
    law: None | Modes | Lattice | DigitClasses = None
    """The exact law, without a model; a ring of 8 modes unless given."""
    sde: None | VP | VE | SubVP | Cosine | RectifiedFlow | EDM = None
    """The process; the one that a checkpoint was trained on, and VP for an exact law, unless given."""
    nfe: tuple[int, ...] = ()
    """Budgets of network calls; 20 50 100 200 500 for an exact law and 20 50 100 for a checkpoint, unless given."""
    n: int | None = None
    """Samples; 4000 from an exact law, and from a checkpoint as many as are held out, at most 359, unless given."""
    spacing: Literal["log_snr", "uniform", "quadratic", "karras"] = "log_snr"
    """How the times are spaced: equally in log-SNR, t, sqrt(t), or as in Karras et al. 2022."""
    r: float = 0.16
    """The signal-to-noise ratio of the corrector beside a predictor: its step is 2 r^2 sigma_t^2."""
    corrections: int = 5
    """Steps of annealed Langevin dynamics a level; their size follows from technique 4 of Song & Ermon 2020."""
    batch: int = 4096
    """Samples drawn together. The samples do not depend on it."""
    out: Path = Path("runs/compare")
    """The folder for everything that is written."""

    def run(self) -> None:
        """Compare, and write a report."""
        began, device = monotonic(), self.place()
        count("batch", self.batch)
        every = methods(number("r", self.r, above=0, most=0.7), count("corrections", self.corrections))
        budgets = [count("nfe", k) for k in self.nfe or ((20, 50, 100) if self.model else (20, 50, 100, 200, 500))]
        if self.model and self.law:
            raise ValueError(f"law must not be given beside a model, got {self.law!r}")
        if self.model:
            subject = trained_subject(self.model, self.sde, self.n, self.seed, device)
        else:
            n, sde = 4000 if self.n is None else self.n, self.sde or VP()
            law = self.law or Modes()
            subject = exact_subject(repr(law), law.law(), sde, n, self.seed, device)
        kept = {k: getattr(self, k) for k in ("seed", "spacing", "r", "corrections")}
        recipe(self.out, subject=subject.name, sde=subject.sde, n=subject.n, **kept)
        cells = [(method, k) for k in sorted(set(budgets)) for method in every if _affordable(method, k, subject)]
        if not cells:
            raise ValueError(f"nfe must pay for one sampler at least, got {' '.join(map(str, budgets))}")
        rows = self._rows(cells, subject, device)
        paths = self._paths(subject, device)
        self._report(subject, cells, rows, paths, {**provenance(device), "seconds": round(monotonic() - began)})
        print(f"{monotonic() - began:.0f} s; open {self.out / 'report.html'}")

    def _rows(
        self, cells: list[tuple[Method, int]], subject: Subject, device: torch.device
    ) -> dict[tuple[str, int], dict[str, Any]]:
        """The rows that are there, and after them the others."""
        file = self.out / "results.jsonl"
        rows = [row for row in read_lines(file) if (self.out / row["samples"]).is_file()]
        write(file, as_lines(rows).encode())  # without a line that was cut off
        done = {(row["method"], row["budget"]): row for row in rows}
        with file.open("a") as lines:
            for method, budget in bar(cells, desc="compare", unit="run"):
                if (method.name, budget) not in done:
                    row = self._row(method, budget, subject, device)
                    lines.write(as_lines([row]))
                    lines.flush()
                    done[method.name, budget] = row
        return done

    def _row(self, method: Method, budget: int, subject: Subject, device: torch.device) -> dict[str, Any]:
        """Sample, measure, and say how."""
        fitted, score, n = Counted(subject.score), Counted(subject.score), subject.n
        ts = getattr(grid, self.spacing)(subject.sde, method.intervals(budget - subject.denoise))
        steps = method.steps(subject.sde.reverse(fitted, method.eta), ts, subject.x_0)
        p, began, starts = subject.sde.reverse(score, method.eta), monotonic(), range(0, n, self.batch)
        parts = []
        for start in starts:
            size = min(self.batch, n - start)
            parts.append(
                draw(
                    p,
                    subject.shape,
                    ts,
                    steps,
                    seed=self.seed,
                    n=size,
                    start=start,
                    device=device,
                    denoise=subject.denoise,
                )
            )
        seconds, x = monotonic() - began, torch.cat(parts).cpu()
        (self.out / "samples").mkdir(exist_ok=True)
        write(self._file(method, budget), as_bytes(x.numpy()))
        return {
            "method": method.name,
            "budget": budget,
            "nfe": score.nfe // len(starts),
            "nfe_to_fit": fitted.nfe,
            "samples": str(self._file(method, budget).relative_to(self.out)),
            **{name: measure(x) for name, measure in subject.measures.items()},
            "seconds": seconds,
            "subject": subject.name,
            "sde": repr(subject.sde),
            "eta": method.eta,
            "grid": f"grid.{self.spacing}(sde, {len(ts) - 1})",
            "steps": [repr(step) for step in steps],
            "denoise": subject.denoise,
            "seed": self.seed,
            "n": n,
        }

    def _file(self, method: Method, budget: int) -> Path:
        return self.out / "samples" / f"{method.name.lower().replace(',', '').replace(' ', '-')}-{budget}.npy"

    def _paths(self, subject: Subject, device: torch.device) -> dict[str, dict[str, Any]]:
        """How the discretisations of the reverse SDE converge on one Brownian path, and those of the flow without."""
        file = self.out / "paths.json"
        if file.is_file():
            return json.loads(file.read_bytes())
        few, fine, steps = 16, 1024, [8, 16, 32, 64]
        if not self.model:
            few, fine, steps = max(64, 4096 // math.prod(subject.shape)), 2048, [16, 32, 64, 128]
        ts, g = getattr(grid, self.spacing)(subject.sde, fine), torch.Generator().manual_seed(self.seed)
        noise = GridPath(ts, (few, *subject.shape), g)
        x = subject.sde.prior((few, *subject.shape), iid(g), torch.float32 if self.model else torch.float64, device)
        p, q = subject.sde.reverse(subject.score), subject.sde.reverse(subject.score, 0.0)
        tight = Dopri5(1e-5, 1e-5) if self.model else Dopri5(1e-10, 1e-10)
        limit, flow = sample(p, x, ts, EulerMaruyama(), noise=noise), sample(q, x, ts[[0, -1]], Flow(tight))
        runs = [
            ("DDPM ancestral, fixed-small", p, Ancestral(0.0), limit),
            ("DDPM ancestral, fixed-large", p, Ancestral(1.0), limit),
            ("Reverse diffusion", p, ReverseDiffusion(), limit),
            ("Euler-Maruyama", p, EulerMaruyama(), limit),
            ("Consistent annealed", p, ConsistentAnnealed(), limit),
            ("DDIM", q, Ancestral(), flow),
            ("Probability-flow ODE, Euler", q, Flow(Euler()), flow),
            ("Probability-flow ODE, Heun", q, Flow(Heun()), flow),
        ]
        paths = {}
        for name, process, step, end in bar(runs, desc="paths", unit="run"):
            errors = path_errors(process, x, ts, step, steps, end, noise)
            seen = resolved(errors.weak)
            weak = slope(errors.steps[seen], errors.weak[seen]) if seen.sum() > 1 else None
            paths[name] = {
                "steps": steps,
                "strong": errors.strong.mean(1).tolist(),
                "weak": errors.weak.mean(1).abs().tolist(),
                "strong_slope": str(errors.strong_slope()),
                "weak_slope": "below its sampling error" if weak is None else str(weak),
            }
        write(file, json.dumps(paths, indent=2).encode())
        return paths

    def _report(
        self,
        subject: Subject,
        cells: list[tuple[Method, int]],
        rows: dict[tuple[str, int], dict[str, Any]],
        paths: dict[str, dict[str, Any]],
        made: dict[str, Any],
    ) -> None:
        budgets, names = sorted({k for _, k in cells}), list(dict.fromkeys(m.name for m, _ in cells))
        r = Report(f"Samplers of {subject.sde!r}, compared")
        r.text(_introduction(subject, self))
        diagrams = []
        for key, measure in subject.measures.items():
            floor, body = [measure(x) for x in subject.fresh], []
            for name in names:
                body.append([name] + [f"{rows[name, k][key]:.3g}" if (name, k) in rows else "" for k in budgets])
            spread = f" +- {np.std(floor, ddof=1):.2g}" if len(floor) > 1 else ""
            body.append(["real samples", f"{np.mean(floor):.3g}{spread}"] + [""] * (len(budgets) - 1))
            r.heading(TITLES[key])
            r.table(["network calls", *map(str, budgets)], body)
            of = {name: [rows[name, k] for k in budgets if (name, k) in rows] for name in names}
            lines = [Curve(name, [v["nfe"] for v in of[name]], [abs(v[key]) for v in of[name]]) for name in names]
            diagrams.append(Diagram(TITLES[key], "network calls", lines, float(np.mean(np.abs(floor)))))
        curves(diagrams, self.out / "distances.png")
        r.picture("distances.png", "Distance against network calls; dotted: real samples.")
        self._samples(subject, cells, r)
        _convergence(paths, self.out, r)
        r.heading("Where this came from")
        r.text(
            "results.jsonl holds one line a sampler and budget, with its grid, its steps, its seed and what was "
            "measured; samples/ holds the samples; an optimal variance was fitted with nfe_to_fit "
            "further calls, to 1000 samples of the data and noise of seed 0."
        )
        r.commands(json.dumps(made, indent=2))
        write(self.out / "made.json", json.dumps(made, indent=2).encode())
        r.write(self.out)

    def _samples(self, subject: Subject, cells: list[tuple[Method, int]], r: Report) -> None:
        """Those of the smallest budget, and real ones."""
        points = len(subject.shape) == 1 and subject.shape[0] == 2
        if not points and not (len(subject.shape) == 3 and subject.shape[0] in (1, 3)):
            return
        shown, least = 2000 if points else SHOWN, min(k for _, k in cells)
        parts = [(m.name, torch.from_numpy(np.load(self._file(m, k)))[:shown]) for m, k in cells if k == least]
        side_by_side([*parts, ("real samples", subject.fresh[0][:shown])], self.out / "samples.png")
        r.heading("Samples")
        r.picture("samples.png", f"Samples with {least} network calls, not selected, from the same starting points.")


def _introduction(subject: Subject, compare: Compare) -> str:
    if subject.denoise:
        truth = (
            "Distances are to held-out data; the row of real samples is the mean over sets of as many samples of the "
            "training data, +- their standard deviation. The last call of each sampler removes the rest of the noise."
        )
    else:
        truth = (
            "Distances are to as many draws from the exact law of x_t at t = t_min, where the samplers stop; the row "
            f"of real samples is the mean over {len(subject.fresh)} fresh sets of draws, +- their standard deviation."
        )
    return (
        f"The score is that of {subject.name}. Each sampler took its times from grid.{compare.spacing} and started "
        f"from the same {subject.n} points; one network call evaluates the score once for all of them. {truth}"
    )


def _convergence(paths: dict[str, dict[str, Any]], out: Path, r: Report) -> None:
    """A table of slopes, and the errors they were fitted to."""
    r.heading("On one Brownian path")
    r.text(
        "Each discretisation of the reverse SDE was given one Brownian path with ever more steps, and those of the "
        "probability flow one starting point. Strong: the mean of the distance |x_h - x| to the limit, a "
        "dimension; weak: the difference of the means of |x|^2. The slopes are fitted to all the numbers of steps, "
        "with 95 % intervals by bootstrap over the paths, weak ones where the error exceeds twice its own. "
        "Langevin corrections add noise of their own, so annealed Langevin and predictor-corrector have no path to "
        "converge to."
    )
    said = {k: [v[kind] for kind in SLOPES] for k, v in paths.items()}
    r.table(["discretisation", "strong slope", "weak slope"], [[name, *slopes] for name, slopes in said.items()])
    diagrams = [
        Diagram(title, "steps", [Curve(name, v["steps"], v[key]) for name, v in paths.items()])
        for key, title in (("strong", "Strong error"), ("weak", "Weak error of |x|^2/d"))
    ]
    curves(diagrams, out / "paths.png")
    r.picture("paths.png", "Errors against the number of steps.")


def _affordable(method: Method, budget: int, subject: Subject) -> bool:
    if method.intervals(budget - subject.denoise) >= 1:
        return True
    least = method.least + subject.denoise
    print(f"{method.name} needs at least {least} network calls, so there is no row of it at {budget}")
    return False
