"""`scoresde tune` writes the library's solver of a law or a checkpoint, and `scoresde sample --tuned` takes it."""

import math
import re
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from made import one_line
from test_compare import Network

from scoresde import EDM, VE, VP, Counted, LinearSDE, Reference, grid, transport
from scoresde.checkpoint import load
from scoresde.cli import main
from scoresde.cli.folder import Journal
from scoresde.data import Ring
from scoresde.guide import classifier_free, conditioned
from scoresde.lab.problems import Modes
from scoresde.model import ScoreModel
from scoresde.noise import seeds
from scoresde.steps import Pilots, tune
from scoresde.steps.fit import least
from scoresde.steps.multistep import DDIM
from scoresde.steps.renewed import bounds
from scoresde.steps.step import draw
from scoresde.steps.tuned import Error, Tuning
from scoresde.values import describe

F64 = torch.float64
QUICK = partial(Pilots, fine=20)  # few intervals for the pilots
SMALL = ("--net", "MLP(width=16, depth=1)", "--steps", "60", "--warmup", "10", "--device", "cpu")


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """A small network on a toy in the plane."""
    folder = tmp_path_factory.mktemp("ring") / "model"
    assert main(["train", "Ring(n=150)", *SMALL, "--out", str(folder)]) == 0
    return folder


def tune_quickly(*args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scoresde.cli.tune.Pilots", QUICK)
        assert main(["tune", *map(str, args), "--device", "cpu"]) == 0


@pytest.fixture(scope="module")
def solver(ring):
    """Tuned to it, for 5 calls."""
    tune_quickly(ring, "--nfe", 5, "--pilots", 16, "--out", ring.parent / "tuned.json")
    return ring.parent / "tuned.json"


def drawn(folder):
    return torch.from_numpy(np.load(folder / "samples.npy"))


def test_tune_a_law(capsys, tmp_path):
    """The file is that of the library with the same seed; what is printed is what is in it, and the calls are true."""
    out = tmp_path / "new" / "tuned.json"
    tune_quickly("--out", out, "--nfe", 4, "--pilots", 8, "--seed", 3, "--law", "Modes(n=5)", "--sde", "edm")
    said, law = capsys.readouterr().out, Modes(5).law()
    score = Counted(law.diffuse(EDM()))
    around = Reference.fit(law.sample(2000, torch.Generator().manual_seed(3)))
    parts = []
    want = tune(EDM().reverse(score, 0.0), torch.empty(1, 2, dtype=F64), 4, around, QUICK(8, 3), parts.append)
    want.save(tmp_path / "want.json")
    assert out.read_bytes() == (tmp_path / "want.json").read_bytes()
    assert f"{want.name}, 4 network calls: error {want.fresh} on fresh noise" in said
    assert str(want.validation) in said and f"{want.untuned}, the best method without a fit: " in said
    assert f"{score.nfe} network calls to tune; {out}" in said and "no fit was better" not in said
    assert f"noise amplification {want.noise_amplification:.2f}; roughness in t {want.roughness:.2g}; " in said
    lines = [line.rpartition(" (")[0] for line in said.splitlines() if line.startswith("...")]
    assert lines == [f"... {part}" for part in parts]
    fewest = f"{least(4, QUICK(8, 3)):,}"
    assert said.startswith(f"the fit takes from {fewest} to 150,000 evaluations of the network for one sample, as many")
    assert f"\n{want.evaluations:,} evaluations of the network for one sample in " in said


def test_what_is_tuned_unless_said(monkeypatch, tmp_path):
    """A ring of 8 modes on VP, for 10 calls, with 64 pilots a set and seed 0, in float64."""
    seen, was = [], Tuning(DDIM(), grid.uniform(VP(), 10), VP(), "DDIM", False, 10, None, *UNKNOWN)
    monkeypatch.setattr("scoresde.cli.tune.tune", lambda *args: seen.append(args) or was)
    assert main(["tune", "--out", str(tmp_path / "tuned.json"), "--device", "cpu"]) == 0
    ((q, like, calls, around, pilots, _),) = seen
    x = torch.randn(5, 2, dtype=F64)
    assert q.sde == VP() and q.eta == 0 and q.score(x, 0.1).equal(Modes().law().diffuse(VP())(x, 0.1))
    assert like.shape == (1, 2) and like.dtype == F64 and calls == 10 and pilots == Pilots(64, 0)
    want = Reference.fit(Modes().law().sample(2000, torch.Generator().manual_seed(0)))
    assert describe(around) == describe(want)


ERROR = Error(1.0, 0.5, math.inf)
UNKNOWN = (ERROR, ERROR, "DDIM", ERROR, 1.0)


def test_tune_where_no_fit_is_better(capsys, monkeypatch, tmp_path):
    """It is said, and the method that is written is that one."""
    found = Tuning(DDIM(), grid.uniform(VP(), 10), VP(), "DDIM on grid.uniform", False, 10, None, *UNKNOWN)
    monkeypatch.setattr("scoresde.cli.tune.tune", lambda *args: found)
    assert main(["tune", "--out", str(tmp_path / "tuned.json"), "--device", "cpu"]) == 0
    assert "no fit was better, so that method is what was written" in capsys.readouterr().out
    assert describe(Tuning.load(tmp_path / "tuned.json")) == describe(found)


def test_tune_a_checkpoint(ring, solver, tmp_path):
    """Around the data that it was trained on, in float32; on another process the network is read there, and samples
    with what was found are drawn there.
    """
    found, model = Tuning.load(solver), load(ring).model
    around, like = Reference.fit(Ring(150).load().train), torch.empty(1, 2)
    want = tune(model.sde.reverse(model, 0.0), like, 5, around, QUICK(16))
    assert describe(found) == describe(want)
    sde, other = VE(sigma_max=20.0), tmp_path / "ve.json"
    tune_quickly(ring, "--nfe", 3, "--pilots", 8, "--out", other, "--sde", "VE(sigma_max=20)")
    q = sde.reverse(transport(model, model.sde, sde), 0.0)
    want = tune(q, like, 3, around, QUICK(8))
    assert describe(Tuning.load(other)) == describe(want)

    args = ["--tuned", str(other), "--n", "5", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["sample", str(ring), *args]) == 0
    assert draw(q, (2,), want.ts, want.step, seeds=seeds(0, 5)).equal(drawn(tmp_path / "out"))


def test_sample_with_it(capsys, ring, solver, tmp_path):
    """Samples are the library's, do not depend on --batch, and take the calls that it was tuned for, and one more for
    the mean at the end, a batch.
    """
    out = {}
    for batch, calls, more in (("30", 6, ()), ("7", 30, ()), ("30", 5, ("--no-denoise",))):
        folder = tmp_path / f"{batch}{len(more)}"
        args = ["--tuned", str(solver), "--n", "30", "--batch", batch, "--device", "cpu", "--out", str(folder)]
        capsys.readouterr()
        assert main(["sample", str(ring), *args, *more]) == 0
        each = 5 if more else 6
        assert f"{folder}: {each} network calls a sample ({calls} network calls, for the " in capsys.readouterr().out
        out[batch, more] = drawn(folder)
    torch.testing.assert_close(out["7", ()], out["30", ()], rtol=0, atol=1e-6)
    found, model = Tuning.load(solver), load(ring).model
    q = model.sde.reverse(model, 0.0)
    assert draw(q, (2,), found.ts, found.step, seeds=seeds(0, 30)).equal(out["30", ()])
    assert draw(q, (2,), found.ts, found.step, seeds=seeds(0, 30), denoise=False).equal(out["30", ("--no-denoise",)])


@pytest.mark.parametrize("law", [True, False])
def test_interrupted_at_any_network_call(capsys, monkeypatch, ring, tmp_path, law):
    """The file is that of a tuning that was not stopped; the network has answered what it answers there, each question
    once and in that order; how many of them before is said; nothing else stays.
    """
    monkeypatch.setattr("scoresde.cli.tune.Pilots", QUICK)
    args = ["tune", *(["--law", "modes"] if law else [str(ring)]), "--nfe", "3", "--pilots", "8", "--device", "cpu"]
    with monkeypatch.context() as patch:
        whole = Network(patch)
        assert main([*args, "--out", str(tmp_path / "whole.json")]) == 0
    assert " of them before" not in capsys.readouterr().out
    network, out = Network(monkeypatch), tmp_path / "cut.json"
    for cut in network.cuts(len(whole.answered), 5):
        assert main([*args, "--out", str(out)]) == 130
        assert not out.exists() and len(network.answered) == cut
    assert main([*args, "--out", str(out)]) == 0
    assert (network.answered == whole.answered) is True  # without the difference, which is long
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert (
        f"{len(whole.answered)} network calls to tune, {cut} of them before it was cut off" in capsys.readouterr().out
    )
    assert sorted(f.name for f in tmp_path.iterdir()) == ["cut.json", "whole.json"]


def numbers(said, before, after=""):
    """The whole numbers between two texts of what was printed."""
    return [int(n.replace(",", "")) for n in re.findall(rf"{before}([\d,]+){after}", said)]


@pytest.mark.parametrize(
    ("told", "asks"),
    [(("--label", "all"), (1, 1)), (("--label", "all", "--guidance", "2"), (2, 2))]
    + [(("--label", "all", "--guidance", "1", "2", "--interval", "0.1", "1"), (1, 2))],
    ids=["labels", "guided", "in an interval"],
)
def test_what_it_costs_is_what_is_told(capsys, monkeypatch, classes, tmp_path, told, asks):
    """Before it starts, by the evaluations that are made where no more is spent and the budget; afterwards, by the
    network's own count, whether it was cut off in between or not: of both, of those before, and of samples.
    """
    monkeypatch.setattr("scoresde.cli.tune.seconds_a_call", lambda *about: 1e-3)  # it asks the network before
    monkeypatch.setattr("scoresde.cli.tune.Pilots", QUICK)
    args = ["tune", str(classes), "--nfe", "3", "--pilots", "16", "--evaluations", "20000", *told, "--device", "cpu"]
    monkeypatch.setattr(Journal, "PATIENCE", -1.0)
    made, real = [], ScoreModel.forward
    monkeypatch.setattr(
        ScoreModel, "forward", lambda self, x, *a, **k: (made.append(len(x)), real(self, x, *a, **k))[1]
    )
    assert main([*args, "--out", str(tmp_path / "whole.json")]) == 0
    said, whole, rows = capsys.readouterr().out, len(made), sum(made)
    ((low,), (high,)) = numbers(said, "the fit takes from "), numbers(said, r"[\d,]+ to ", " evaluations")
    once = least(3, QUICK(16), flows=2 * (len(told) > 4) + 2)
    assert (low, high) == (asks[0] * once, max(20000, asks[1] * once)) and low <= rows <= high
    assert numbers(said, "\n", " evaluations of the network for one sample in ") == [rows]
    assert numbers(said, "; ", " network calls to tune; ") == [whole]
    for stop in (whole // 3, whole // 2):
        made.clear()
        with monkeypatch.context() as patch:
            patch.setattr(ScoreModel, "forward", cut(made, stop, real))
            assert main([*args, "--out", str(tmp_path / "cut.json")]) == 130
    capsys.readouterr(), made.clear()
    assert main([*args, "--out", str(tmp_path / "cut.json")]) == 0
    said = capsys.readouterr().out
    ((before,),) = (numbers(said, " network calls to tune, ", " of them before it was cut off"),)
    assert numbers(said, "; ", " network calls to tune, ") == [whole] and 0 < before == whole - len(made)
    assert numbers(said, "\n", " evaluations of the network for one sample in ") == [rows]
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_solver_with_noise(capsys, ring, tmp_path):
    """With --eta it is of that process, costs what it says, and `sample` draws by it from the process."""
    file, folder = tmp_path / "solver.json", tmp_path / "drawn"
    args = ["tune", str(ring), "--nfe", "4", "--eta", "0.5", "--pilots", "8", "--evaluations", "0", "--device", "cpu"]
    assert main([*args, "--out", str(file)]) == 0
    said = capsys.readouterr().out
    ((low,), (high,)) = numbers(said, "the fit takes from "), numbers(said, r"[\d,]+ to ", " evaluations")
    (spent,) = numbers(said, "\n", " evaluations of the network for one sample in ")
    assert (low, high) == bounds(4, Pilots(8)) and low <= spent <= high
    found = Tuning.load(file)
    assert found.eta == found.step.eta == 0.5 and found.evaluations == spent
    assert main(["sample", str(ring), "--tuned", str(file), "--n", "3", "--out", str(folder), "--device", "cpu"]) == 0
    loaded = load(ring, dtype=torch.float32)
    p = loaded.model.sde.reverse(loaded.model, 0.5)
    want = draw(p, loaded.shape, found.ts, found.step, seeds=seeds(0, 3))
    torch.testing.assert_close(drawn(folder).to(want), want, rtol=1e-5, atol=1e-5)
    assert main([*args[:5], "1.5", "--out", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.endswith("scoresde: eta must be a finite number >= 0 and <= 1, got 1.5\n")


def cut(made, stop, real):
    """The network, until it has answered so often."""

    def forward(self, x, *args, **cond):
        if len(made) == stop:
            raise KeyboardInterrupt
        made.append(len(x))
        return real(self, x, *args, **cond)

    return forward


@dataclass(frozen=True)
class Slower(VP):
    """VP with other numbers."""

    beta_max: float = 12.0


def test_a_process_of_ones_own(ring, tmp_path):
    """A solver that was tuned on it is used beside it: it is where the module is named, and changes nothing."""
    own, file, out = f"{__name__}:Slower", tmp_path / "slow.json", {}
    tune_quickly(ring, "--nfe", 3, "--pilots", 8, "--out", file, "--sde", own)
    for more in ((), ("--sde", own)):
        args = ["--tuned", str(file), "--n", "4", "--device", "cpu", "--out", str(tmp_path / str(len(more)))]
        assert main(["sample", str(ring), *args, *more]) == 0
        out[more] = drawn(tmp_path / str(len(more)))
    found, model = Tuning.load(file), load(ring).model
    q = Slower().reverse(transport(model, model.sde, Slower()), 0.0)
    assert found.sde == Slower() and draw(q, (2,), found.ts, found.step, seeds=seeds(0, 4)).equal(out[()])
    assert out[()].equal(out["--sde", own])


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (("--steps", "5"), "steps"),
        (("--grid", "uniform"), "grid"),
        (("--grid", "reference"), "grid"),
        (("--end", "0.1"), "end"),
        (("--eta", "0"), "eta"),
        (("--step", "Flow(Heun())"), "step"),
        (("--step", "Langevin(SNR(0.16))", "--step", "Ancestral"), "step"),
    ],
)
def test_what_a_tuned_solver_says_itself(capsys, ring, solver, tmp_path, more, name):
    """It is refused beside it, whatever its value."""
    args = ["sample", str(ring), "--tuned", str(solver), "--n", "3", "--out", str(tmp_path / "out")]
    assert main([*args, *more]) == 2
    assert f"scoresde: {name} must not be given beside tuned, which says it, got " in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_samples_of_another_solver_are_not_mixed(capsys, ring, solver, tmp_path):
    """A file that has changed since is another solver."""
    file, out = tmp_path / "tuned.json", tmp_path / "out"
    file.write_bytes(solver.read_bytes())
    args = ["sample", str(ring), "--tuned", str(file), "--n", "3", "--device", "cpu", "--out", str(out)]
    assert main(args) == 0 and main(args) == 0
    capsys.readouterr()
    found = Tuning.load(file)
    replace(found, step=DDIM(), ts=grid.uniform(found.sde, 5)).save(file)
    assert main(args) == 2
    assert "out holds results with solver = " in one_line(capsys)


class Foreign(LinearSDE):
    """A process that is no dataclass."""

    t_min = 1e-3

    def log_alpha(self, t):
        return -t

    def var(self, t):
        return -torch.expm1(-2 * t)


@dataclass(frozen=True)
class Twin(VP):
    """One of two of that name."""


def inner():
    """The other one."""

    @dataclass(frozen=True)
    class Twin(VP):
        """Of the same name."""

    return Twin()


BAD = {
    "one call": ("tune --nfe 1 --out OUT", "nfe must be a whole number >= 2"),
    "no calls": ("tune --nfe 0 --out OUT", "nfe must be a whole number >= 2"),
    "no number": ("tune --nfe ten --out OUT", "--nfe"),
    "few pilots": ("tune --pilots 7 --out OUT", "pilots must be a whole number >= 8"),
    "a folder": ("tune --out FOLDER", "out must be a file to write"),
    "no model": ("tune NONE --out OUT", "checkpoint must"),
    "a law beside a model": ("tune RING --law modes --out OUT", "law must not be given beside a model, got 'modes'"),
    "no law": ("tune --out OUT --law cats", "law must be like VP() or package.module:Name, got 'cats'"),
    "a process for a law": ("tune --out OUT --law vp", "law must name a Problem, got 'vp', which is VP"),
    "a bad law": ("tune --out OUT --law Modes(n=0)", "n must"),
    "a bad process": ("tune --out OUT --sde VE(sigma_max=0)", "sigma_max must"),
    "a process that cannot be saved": (f"tune --out OUT --sde {__name__}:Foreign", "must be a dataclass to be saved"),
    "nor read again": (f"tune --out OUT --sde {__name__}:inner()", "class must tell one LinearSDE"),
    "too noisy": ("tune RING --out OUT --sde VE(sigma_max=500)", "target reaches"),
    "no device": ("tune --device cuda:99 --out OUT", "device must"),
    "no seed": ("tune --seed -1 --out OUT", "seed must"),
    "no solver": ("sample RING --tuned NONE --out OUT", "none"),
    "another process than the solver's": ("sample RING --tuned SOLVER --sde ve --out OUT", "the solver was tuned for"),
    "a process before its solver": ("sample RING --tuned NONE --sde nowhere:Mine --out OUT", "sde must be like"),
    "no tuned solver": ("sample RING --tuned OTHER --out OUT", "is damaged, or is no tuned solver"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options(capsys, monkeypatch, tmp_path, ring, solver, case):
    """One line on standard error that names what is wrong, status 2, and nothing written."""
    line, said = BAD[case]
    (tmp_path / "folder").mkdir()
    places = {"OUT": tmp_path / "out", "NONE": tmp_path / "none", "FOLDER": tmp_path / "folder", "RING": ring}
    places["SOLVER"] = solver
    monkeypatch.setattr("scoresde.cli.tune.tune", None)  # nothing is tuned
    places["OTHER"] = ring / "manifest.json"
    assert main([str(places.get(word, word)) for word in line.split()]) == 2
    assert said in one_line(capsys)
    assert [f.name for f in tmp_path.rglob("[!.]*")] == ["folder"]


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A small network of two classes in the plane."""
    folder = tmp_path_factory.mktemp("classes")
    g = np.random.RandomState(0)
    y = np.arange(100) % 2
    np.savez(folder / "data.npz", x=(g.randn(100, 2) * 0.3 + y[:, None]).astype(np.float32), y=y)
    source = f"Array(path='{folder / 'data.npz'}', key='x', labels='y')"
    assert main(["train", source, *SMALL, "--conditional", "--out", str(folder / "model")]) == 0
    return folder / "model"


def test_a_solver_of_a_label(classes, tmp_path, capsys):
    """It is that of the guided score, says so, and is refused under another label or guidance, or without."""
    told, out = ("--label", "1", "--guidance", "2", "--interval", "0.1", "9"), tmp_path / "tuned.json"
    tune_quickly(classes, "--nfe", 4, "--pilots", 8, "--out", out, *told)
    found, model = Tuning.load(out), load(classes)
    assert found.condition == "label 1, guidance 2 at noise from 0.1 to 9"
    guided = conditioned(classifier_free(model.model, 2.0, low=0.1, high=9.0), label=1)
    want = tune(VP().reverse(guided, 0.0), torch.empty(1, 2), 4, model.around, QUICK(8, 0))
    assert describe(found) == describe(replace(want, condition=found.condition))
    tune_quickly(classes, "--nfe", 4, "--pilots", 8, "--out", tmp_path / "none.json", "--label", "1", "--guidance", "0")
    assert Tuning.load(tmp_path / "none.json").condition == "label 1, guidance 0"
    capsys.readouterr()
    for args in ((), ("--label", "1"), ("--label", "0", *told[2:]), (*told[:2], "--guidance", "3", *told[4:])):
        assert main(["sample", str(classes), "--tuned", str(out), *args, "--out", str(tmp_path / "no")]) == 2
        assert "tuned must be a solver that was fitted under what is asked for" in capsys.readouterr().err
    args = ["sample", str(classes), "--tuned", str(out), *told, "--n", "5", "--out", str(tmp_path / "yes")]
    assert main(args) == 0
    x = draw(VP().reverse(guided, 0.0), (2,), found.ts, found.step, seeds=range(5))
    own = model.units.restore(x) if model.units else x
    torch.testing.assert_close(drawn(tmp_path / "yes"), own, rtol=1e-4, atol=1e-5)
    assert main(["tune", "--label", "1", "--out", str(tmp_path / "law.json")]) == 2
    assert "must not be given with a law, which has no classes" in capsys.readouterr().err


def test_the_time_of_guidance_is_told_once(classes, tmp_path, capsys, monkeypatch):
    """It asks the network twice where another score asks once: by a clock on which each takes as long, twice as many
    evaluations are told of the same time.
    """
    said = []
    for guidance in ((), ("--guidance", "2")):
        clock = iter(range(100))
        monkeypatch.setattr("scoresde.cli.plan.monotonic", lambda: next(clock))  # noqa: B023
        args = ["tune", str(classes), "--nfe", "3", "--evaluations", "0", "--label", "0", *guidance, "--device", "cpu"]
        assert main([*args, "--out", str(tmp_path / "new.json"), "--dry-run"]) == 0
        said.append(re.search(r"takes from ([\d,]+) to .* of 1,000 steps: (.*)", capsys.readouterr().out).groups())
    (once, time), (twice, same) = said
    assert int(twice.replace(",", "")) == 2 * int(once.replace(",", "")) and time == same


def test_a_solver_of_several_labels(classes, tmp_path, capsys):
    """Fitted under every label and guidance at once, in turn by rows, it says which, is taken under each, and refused
    under others; `all` are all labels; and there are not more of them than pilots.
    """
    out = tmp_path / "tuned.json"
    tune_quickly(classes, "--nfe", 4, "--pilots", 8, "--out", out, "--label", "all", "--guidance", "1", "2")
    found, model = Tuning.load(out), load(classes)
    assert found.condition == "; ".join(f"label {k}, guidance {w}" for k in (0, 1) for w in (1, 2))
    flows = [
        VP().reverse(conditioned(classifier_free(model.model, w), label=k), 0.0) for k in (0, 1) for w in (1.0, 2.0)
    ]
    want = tune(flows, torch.empty(1, 2), 4, model.around, QUICK(8, 0))
    assert describe(found) == describe(replace(want, condition=found.condition))
    capsys.readouterr()
    for label, w, code in ((0, 1, 0), (1, 2, 0), (1, 3, 2)):
        told = ("--label", str(label), "--guidance", str(w), "--n", "4", "--out", str(tmp_path / f"{label}{w}"))
        assert main(["sample", str(classes), "--tuned", str(out), *told]) == code
    assert "under what is asked for, label 1, guidance 3, and not label 0, guidance 1; " in capsys.readouterr().err
    args = [
        "tune",
        str(classes),
        "--pilots",
        "8",
        "--label",
        "all",
        "--guidance",
        *"12345",
        "--out",
        str(tmp_path / "no"),
    ]
    assert main(args) == 2
    assert "pilots must be at least as many as flows, 10, got 8" in capsys.readouterr().err
