"""The command line is the library: the same numbers, the true counts, and one line where something is wrong."""

import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch

from scoresde import (
    NCSN,
    SNR,
    VE,
    VP,
    Ancestral,
    DPMSolverPP,
    EulerMaruyama,
    Flow,
    GaussianReference,
    Langevin,
    Reference,
    ReverseDiffusion,
    UniPC,
    grid,
    log_prob,
    ode,
    per_sample,
    sample,
    transport,
)
from scoresde.checkpoint import load
from scoresde.cli import Parser, main
from scoresde.cli.folder import Folder
from scoresde.cli.options import COMMANDS, Rare
from scoresde.data import Digits, Ring
from scoresde.guide import tempered
from scoresde.lab import Target, report
from scoresde.likelihood import (
    Adams,
    Decoded,
    Exact,
    Hadamard,
    Hutchinson,
    HutchPP,
    Quadrature,
    RungeKutta,
    TruncatedNormal,
    Uniform,
    continuous_elbo,
    prior_mismatch,
)
from scoresde.nn import MLP
from scoresde.noise import seeds
from scoresde.steps import Renoised
from scoresde.training import Settings
from scoresde.values import natural

SMALL = ("--steps", "60", "--warmup", "10", "--net", "MLP(width=16, depth=1)")
RING = "Ring(n=150)"


def trained(folder, *args):
    assert main(["train", *args, *SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """A small network on a toy in the plane."""
    return trained(tmp_path_factory.mktemp("ring") / "model", RING)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A network with classes."""
    return trained(tmp_path_factory.mktemp("digits") / "model", "digits", "--conditional")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A network on ten images of 6x6 pixels and 5 grey levels, three of them held out."""
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "x.npy", np.random.RandomState(0).randint(0, 5, (10, 6, 6)).astype(np.uint8))
    return trained(folder / "model", source(folder / "model"))


def source(images):
    """What these images are typed as."""
    return f"Array(Path({str(images.with_name('x.npy'))!r}), levels=5, held_out=0.3)"


def contents(folder):
    """What a user sees in a folder."""
    files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
    return {name: f.read_bytes() for name, f in files.items() if not any(p.startswith(".") for p in name.split("/"))}


def shown(folder):
    return sorted(contents(folder))


# help

WITH_RARE = {name for name in COMMANDS if any(isinstance(a.help, Rare) for a in Parser(name)._actions)}


def helped(capsys, *args):
    assert main([*args, "--help-all" if args and args[0] in WITH_RARE else "--help"]) == 0
    out, err = capsys.readouterr()
    assert not err
    return " ".join(out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_commands(capsys, name):
    """--help, or --help-all where there is that, exits with 0 and tells what the command does, and the meaning of each
    option in the words of the code.
    """
    said = helped(capsys, name)
    assert said.startswith(f"usage: scoresde {name} ")
    assert " ".join(inspect.getdoc(COMMANDS[name]).split()) in said
    actions = Parser(name)._actions
    assert len(actions) >= 2
    for action in actions:
        assert action.help and " ".join(action.help.split()) in said
        assert (action.option_strings[-1] if action.option_strings else action.dest) in said
        assert action.dest == "help" or action.required or action.option_strings or action.nargs in ("?", "*")


def test_every_setting_is_an_option():
    """All that a training can be told is an option of `train`, by its own name."""
    known = {word for action in Parser("train")._actions for word in action.option_strings}
    for field in fields(Settings):
        assert ("--not-stratified" if field.name == "stratified" else f"--{field.name.replace('_', '-')}") in known


def test_help_of_all(capsys):
    """Help without a command names every command."""
    said = helped(capsys)
    assert all(f" {name} " in said for name in COMMANDS)


# one line where something is wrong

BAD = {
    "unknown command": ("trian", "trian"),
    "demo, no steps": ("demo --steps 0 --out OUT", "steps must"),
    "demo, no device": ("demo --device cuda:99 --out OUT", "device must"),
    "demo, unknown option": ("demo --stepz 5", "--stepz"),
    "demo, half an option": ("demo --step 5", "--step"),
    "demo, seed": ("demo --seed -1 --out OUT", "seed must"),
    "train, no data": ("train --out OUT", "data"),
    "train, unknown data": ("train cats --out OUT", "data must be like VP() or package.module:Name, got 'cats'"),
    "train, unknown network": ("train ring --net vnet --out OUT", "net must be like VP() or package.module:Name"),
    "train, missing value": ("train ring --out", "--out"),
    "train, no number": ("train ring --steps many --out OUT", "--steps"),
    "train, negative": ("train ring --steps -3 --out OUT", "steps must"),
    "train, nan": ("train ring --lr nan --out OUT", "lr must"),
    "train, bad process": ("train ring --sde VP(beta_min=30) --out OUT", "beta_max must"),
    "train, unknown argument": ("train ring --sde VP(beta=30) --out OUT", "sde must"),
    "train, no process": ("train ring --sde ring --out OUT", "sde must name a LinearSDE"),
    "train, missing array": ("train NONE.npy --out OUT", "path must"),
    "train, no such folder": ("train NONE --out OUT", "data must"),
    "train, missing folder": ("train Images(Path('NONE')) --out OUT", "folder must"),
    "train, few points": ("train Ring(n=3) --out OUT", "n must"),
    "train, no labels": ("train ring --conditional --out OUT", "conditional"),
    "train, wrong network": ("train ring --net UNet --out OUT", "shape must"),
    "train, no device": ("train ring --device nowhere --out OUT", "device must"),
    "tune, two subjects": ("tune RING --law lattice --out OUT", "law must not be given beside a model"),
    "compare, two subjects": ("compare RING --law lattice --out OUT", "law must not be given beside a model"),
    "sample, no model": ("sample", "model"),
    "sample, missing": ("sample NONE --out OUT", "checkpoint must"),
    "sample, negative": ("sample RING --n -1 --out OUT", "n must"),
    "sample, no batch": ("sample RING --batch 0 --out OUT", "batch must"),
    "sample, no steps": ("sample RING --steps 0 --out OUT", "steps must"),
    "sample, late end": ("sample RING --end 2 --out OUT", "end must"),
    "sample, grid": ("sample RING --grid random --out OUT", "grid must"),
    "sample, option of a grid": ("sample RING --grid uniform(rho=3) --out OUT", "rho"),
    "sample, no tuned solver": ("sample RING --tuned NONE --out OUT", "none"),
    "sample, tuned and told": ("sample RING --tuned NONE --steps 5 --out OUT", "steps must not be given beside tuned"),
    "sample, no kind of step": ("sample RING --step vp --out OUT", "step must name a Step, got 'vp', which is VP"),
    "sample, singular end": ("sample RING --grid log_snr --end 0 --out OUT", "end must"),
    "sample, noisy ODE": (
        "sample RING --step Flow(Heun()) --eta 1 --out OUT",
        "probability flow, eta=0, got eta=1",
    ),
    "sample, two predictors": ("sample RING --step Ancestral --step UniPC --out OUT", "at most one predictor"),
    "sample, flow of a corrector": ("sample RING --step Langevin --eta 0 --out OUT", "eta > 0"),
    "sample, eta": ("sample RING --step Ancestral --eta 1.5 --out OUT", "eta must"),
    "sample, negative eta": ("sample RING --eta -1 --out OUT", "eta must"),
    "sample, too noisy": ("sample RING --sde VE(sigma_max=500) --out OUT", "target reaches"),
    "sample, no classes": ("sample RING --label 0 --out OUT", "label must"),
    "sample, label too high": ("sample DIGITS --label 10 --out OUT", "label must"),
    "sample, label too low": ("sample DIGITS --label -1 --out OUT", "label must"),
    "sample, guidance to nothing": ("sample DIGITS --guidance 2 --out OUT", "guidance must be towards a label"),
    "sample, interval alone": (
        "sample DIGITS --label 1 --interval 0 1 --out OUT",
        "interval must not be given without",
    ),
    "sample, interval": ("sample DIGITS --label 1 --guidance 2 --interval 3 1 --out OUT", "interval must be two noise"),
    "sample, no temperature": ("sample RING --temperature 0 --out OUT", "temperature must be a finite number > 0"),
    "sample, negative temperature": ("sample RING --temperature -1 --out OUT", "temperature must"),
    "sample, temperature nan": ("sample RING --temperature nan --out OUT", "temperature must"),
    "sample, tuned and tempered": (
        "sample RING --tuned NONE --temperature 0.5 --out OUT",
        "temperature must not be given beside tuned",
    ),
    "sample, no device": ("sample RING --device cuda:99 --out OUT", "device must"),
    "likelihood, no model": ("likelihood --out OUT", "model must"),
    "likelihood, missing": ("likelihood NONE --out OUT", "checkpoint must"),
    "likelihood, model and law": ("likelihood RING --law modes --out OUT", "law must not be given beside a model, got"),
    "likelihood, law and data": (
        "likelihood --data ring --law modes --out OUT",
        "law must not be given beside data, got",
    ),
    "likelihood, unknown law": ("likelihood --law cats --out OUT", "law must"),
    "likelihood, process": ("likelihood RING --sde ve --out OUT", "sde belongs to --law"),
    "likelihood, no terms": ("likelihood RING --terms -1 --out OUT", "terms must"),
    "likelihood, no chain": ("likelihood RING --chain 1 --out OUT", "chain must"),
    "likelihood, no law": ("likelihood --law modes --n 0 --out OUT", "n must"),
    "likelihood, no method": ("likelihood RING --method ring --out OUT", "method must be a value such as"),
    "likelihood, draws of continuous data": ("likelihood RING --draws 2 --out OUT", "draws must be 1"),
    "likelihood, no trace": ("likelihood RING --trace ring --out OUT", "trace must"),
    "likelihood, odd Adams": ("likelihood RING --method Adams(13) --out OUT", "n must be even"),
    "likelihood, odd Hadamard": ("likelihood RING --trace Hadamard(3) --out OUT", "m must be even"),
    "likelihood, negative": ("likelihood RING --n -1 --out OUT", "n must"),
    "likelihood, no batch": ("likelihood RING --batch 0 --out OUT", "batch must"),
    "likelihood, tolerance": ("likelihood RING --method Dopri5(atol=0) --out OUT", "atol must"),
    "likelihood, other shape": ("likelihood RING --data digits --out OUT", "data must have the model's shape"),
    "likelihood, split": ("likelihood RING --split test --out OUT", "--split"),
    "likelihood, no classes": ("likelihood RING --label 0 --out OUT", "label must not be given"),
    "likelihood, no own labels": ("likelihood RING --own-labels --out OUT", "own_labels must not be given"),
    "likelihood, no such class": ("likelihood DIGITS --label ten --out OUT", "label must be one of the network's"),
    "likelihood, two labels": ("likelihood DIGITS --label 1 --own-labels --out OUT", "label must not be given beside"),
    "likelihood, label of a law": ("likelihood --law modes --label 1 --out OUT", "label and own_labels must not"),
    "likelihood, no device": ("likelihood RING --device cuda:99 --out OUT", "device must"),
}


def one_line(capsys, status=2):
    """The only line that was said, on standard error."""
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("scoresde: ") and err.endswith("\n")
    assert len(err.splitlines()) == 1 and not re.search("\r|Traceback|---|─", err)
    return err


@pytest.mark.parametrize("case", BAD)
def test_bad_input(capsys, tmp_path, ring, digits, case):
    """One line on standard error that names what is wrong, status 2, and no file changed, where results are or not."""
    line, said = BAD[case]
    places = {"OUT": tmp_path, "NONE": tmp_path / "none", "RING": ring, "DIGITS": digits}
    args = [re.sub("OUT|NONE|RING|DIGITS", lambda found: str(places[found[0]]), word) for word in line.split()]
    for name in ("recipe.json", "samples.npy", "likelihood.jsonl", "results.json", "report.html", "model"):
        (tmp_path / name).write_text("{}")
    before = contents(tmp_path)
    assert main(args) == 2
    assert said in one_line(capsys)
    assert contents(tmp_path) == before
    assert not any("OUT" == word for word in line.split()) or main([*args[:-1], str(tmp_path / "new")]) == 2
    assert not contents(tmp_path / "new")


def test_other_options_in_the_same_folder(capsys, tmp_path, ring):
    """Results of another seed, sampler or checkpoint are not mixed with those of a folder, which stays."""
    done = ["sample", str(ring), "--n", "3", "--steps", "2", "--out", str(tmp_path)]
    assert main(done) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    for more, key in (
        (["--seed", "1"], "seed"),
        (["--steps", "3"], "solver"),
        (["--step", "Flow(Heun())"], "solver"),
        (["--eta", "1"], "eta"),
        (["--sde", "VP(beta_max=19)"], "process"),
        (["--no-denoise"], "no_denoise"),
    ):
        assert main([*done, *more]) == 2
        assert f"out holds results with {key} = " in one_line(capsys)
    assert main(["likelihood", str(ring), "--out", str(tmp_path)]) == 2
    assert "out holds results with " in one_line(capsys)
    assert contents(tmp_path) == before
    assert main(done) == 0 and contents(tmp_path) == before


def test_a_command_that_failed_does_not_claim_its_folder(capsys, tmp_path, ring):
    """After a command that gave no result, the corrected one can have the same --out."""
    args = ["sample", str(ring), "--n", "2", "--steps", "3", "--out", str(tmp_path)]
    assert main([*args, "--step", "Flow(Heun())", "--grid", "uniform", "--end", "0", "--no-denoise"]) == 2
    capsys.readouterr()
    assert main([*args, "--step", "Flow(Heun())", "--grid", "uniform"]) == 0
    assert np.load(tmp_path / "samples.npy").shape == (2, 2)


def test_samples_are_finite(capsys, tmp_path, ring):
    """A grid may end at sigma = 0, where x is x_0 already; steps that diverge are an error and not a file of nan."""
    args = ["sample", str(ring), "--n", "2", "--steps", "3", "--grid", "uniform", "--end", "0"]
    ddpm = ["--step", "Ancestral", "--eta", "1"]
    assert main([*args, *ddpm, "--out", str(tmp_path / "a")]) == 0
    assert main([*args, *ddpm, "--no-denoise", "--out", str(tmp_path / "b")]) == 0
    a, b = (np.load(tmp_path / name / "samples.npy") for name in "ab")
    assert np.isfinite(a).all() and np.array_equal(a, b)
    capsys.readouterr()
    huge = ["--step", "Langevin(Constant(1e30))", "--out", str(tmp_path / "c")]
    assert main([*args[:-2], *huge]) == 2
    assert re.search("scoresde: sample 0, of seed 0, is not finite.* the grid 1 to 0.001\n", capsys.readouterr().err)
    assert not (tmp_path / "c" / "samples.npy").exists()


def test_damaged_recipe(capsys, tmp_path, ring):
    """A recipe that cannot be read is named, and nothing is written over it."""
    (tmp_path / "recipe.json").write_text('{"n": ')
    (tmp_path / "samples.npy").write_text("kept")
    assert main(["sample", str(ring), "--out", str(tmp_path)]) == 2
    assert "recipe.json is damaged" in one_line(capsys)
    assert (tmp_path / "samples.npy").read_text() == "kept"


def test_one_line_of_a_process(ring):
    """As a program too, in UTF-8 and in ASCII: the same line on standard error, and the status is 2."""
    said = set()
    for encoding in ("utf-8", "ascii"):
        env = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "scoresde", "train", "ring", "--lr", "fast"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
        said.add(done.stderr)
    assert len(said) == 1 and said.pop().startswith("scoresde: argument --lr: ")


# sample


def flow(p):
    return lambda score: p.reverse(score, 0.0)


def half(score):
    return VP().reverse(score, 0.5)


P, V = VP(), VE(0.01, 20.0)
AROUND = Reference.fit(Ring(n=150).load().train)
NEAR = grid.reference(P, 20, around=AROUND)
KINDS = {
    "default": ("", flow(P), NEAR, [GaussianReference(AROUND)]),
    "default, corrected": (
        "--step Langevin --step GaussianReference",
        P.reverse,
        NEAR,
        [Langevin(SNR()), GaussianReference(AROUND)],
    ),
    "dpm": ("--steps 5 --step DPMSolverPP(3) --grid karras", flow(P), grid.karras(P, 5), [DPMSolverPP(3)]),
    "rho": (
        "--steps 5 --step dpmsolverpp(2) --grid karras(rho=3)",
        flow(P),
        grid.karras(P, 5, rho=3),
        [DPMSolverPP(2)],
    ),
    "uni-pc": ("--steps 5 --step UniPC(3) --eta 0.5 --grid log_snr", half, grid.log_snr(P, 5), [UniPC(3)]),
    "ddpm": ("--steps 7 --step Ancestral --eta 1 --grid uniform", P.reverse, grid.uniform(P, 7), [Ancestral()]),
    "ddim": ("--steps 7 --step Ancestral --eta 0 --grid quadratic", flow(P), grid.quadratic(P, 7), [Ancestral()]),
    "large": (
        "--steps 6 --step Ancestral(1) --eta 1 --grid uniform --end 0.01",
        P.reverse,
        grid.uniform(P, 6, 0.01),
        [Ancestral(1.0)],
    ),
    "euler-maruyama": (
        "--steps 7 --step EulerMaruyama --eta 1 --grid uniform",
        P.reverse,
        grid.uniform(P, 7),
        [EulerMaruyama()],
    ),
    "renoised": ("--steps 4 --step Renoised() --grid uniform", P.reverse, grid.uniform(P, 4), [Renoised()]),
    "renoised flow": ("--steps 4 --step Renoised --grid uniform --eta 0", flow(P), grid.uniform(P, 4), [Renoised()]),
    "predictor-corrector": (
        "--steps 5 --step Langevin(SNR(0.1),n=2) --step reversediffusion --grid uniform",
        P.reverse,
        grid.uniform(P, 5),
        [Langevin(SNR(0.1), 2), ReverseDiffusion()],
    ),
    "langevin": (
        "--steps 4 --step Langevin(NCSN(),3) --sde VE(sigma_max=20) --grid uniform",
        V.reverse,
        grid.uniform(V, 4),
        [Langevin(NCSN(), 3)],
    ),
    "heun": ("--steps 6 --grid karras --step Flow(Heun())", flow(P), grid.karras(P, 6), [Flow(ode.Heun())]),
    "rk4": ("--steps 4 --grid log_snr --step Flow(RK4())", flow(P), grid.log_snr(P, 4), [Flow(ode.RK4())]),
    "dopri5": ("--step Flow(Dopri5())", flow(P), grid.uniform(P, 1), [Flow(ode.Dopri5())]),
}


@pytest.fixture
def calls(monkeypatch):
    """The number of calls of the network itself, one list entry a call."""
    made, real = [], MLP.forward

    def forward(self, x, *args, **kwargs):
        made.append(len(x))
        return real(self, x, *args, **kwargs)

    monkeypatch.setattr(MLP, "forward", forward)
    return made


def drawn(out, *args):
    assert main(["sample", *map(str, args), "--out", str(out)]) == 0
    return torch.from_numpy(np.load(out / "samples.npy"))


@pytest.mark.parametrize("kind", KINDS)
def test_sample_is_the_library(capsys, tmp_path, ring, calls, kind):
    """The samples are those of the six-line loop on the same choices; they do not depend on --batch, but on --seed; and
    the number of network calls that is told is the number made. (How a network rounds can depend on the batch, and that
    can decide whether an adaptive step is accepted: the samples are then equal to the solver's error.)
    """
    args, reverse, ts, steps = KINDS[kind]
    tol = 1e-2 if kind == "dopri5" else 1e-4
    n = 23
    x = drawn(tmp_path / "a", ring, "--n", n, "--seed", 5, *args.split())
    told = [int(re.search(r"(\d+) network calls, for the 1 of 1 batches drawn now", capsys.readouterr().out)[1])]
    assert told == [len(calls)] and set(calls) == {n}
    model = load(ring).model
    sde = reverse(lambda x, t: x).sde
    p = reverse(model if sde == model.sde else transport(model, model.sde, sde))
    noise = per_sample(seeds(5, n))
    want = sample(p, p.sde.prior((n, 2), noise, torch.float32), ts, *steps, noise=noise)
    with torch.no_grad():
        torch.testing.assert_close(x, p.denoise(want, ts[-1]), rtol=1e-5, atol=1e-5)
    calls.clear()
    chunks = drawn(tmp_path / "b", ring, "--n", n, "--seed", 5, "--batch", 7, *args.split())
    torch.testing.assert_close(chunks, x, rtol=tol, atol=tol / 10)
    assert int(re.search(r"(\d+) network calls, for the \d of 4 batches drawn now", capsys.readouterr().out)[1]) == len(
        calls
    )
    raw = drawn(tmp_path / "c", ring, "--n", n, "--seed", 5, "--no-denoise", *args.split())
    torch.testing.assert_close(raw, want, rtol=1e-5, atol=1e-5)
    other = drawn(tmp_path / "d", ring, "--n", n, "--seed", 6, *args.split())
    assert (other - x).abs().max() > 0.1
    assert shown(tmp_path / "b") == ["recipe.json", "samples.npy", "samples.png"]


@pytest.mark.parametrize(
    ("step", "eta"),
    [
        (step, 1)
        for step in ("Renoised", "twostage(0.7)", "DPMSolverPPSDE", "SASolver(2,3)", "sasolver", "EulerMaruyama")
    ]
    + [("ReverseDiffusion", 1), ("Ancestral(1)", 1), ("Langevin", 1), ("GottaGoFast(0.5)", 1)]
    + [("Ancestral", 0), ("UniPC(3)", 0), ("DPMSolverPP", 0), ("EDMHeun", 0), ("Flow(Heun())", 0)],
)
def test_steps_of_the_reverse_sde_are_taken_on_it(capsys, tmp_path, ring, step, eta):
    """Unless another eta is given; and which process it was is said."""
    args = ["sample", str(ring), "--n", "2", "--steps", "3", "--grid", "uniform", "--step", step, "--device", "cpu"]
    assert main([*args, "--out", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.strip().endswith(", on the reverse SDE, eta = 1" if eta else ", on the flow")
    assert json.loads((tmp_path / "a" / "recipe.json").read_text())["eta"] == eta
    if step not in ("Langevin", "EDMHeun", "Flow(Heun())") and "Fast" not in step:
        assert main([*args, "--eta", "0.5", "--out", str(tmp_path / "b")]) == 0
        assert json.loads((tmp_path / "b" / "recipe.json").read_text())["eta"] == 0.5


def test_more_samples_begin_with_the_same(tmp_path, ring):
    """Sample i is the same however many are drawn."""
    few, many = (drawn(tmp_path / str(n), ring, "--n", n, "--steps", 5) for n in (4, 11))
    torch.testing.assert_close(many[:4], few, rtol=1e-4, atol=1e-5)


def test_labels(tmp_path, digits):
    """--label samples the score that is told that label; without it, the score that is told none."""
    model = load(digits).model
    for name, args, label in (("none", (), None), ("three", ("--label", 3), 3), ("four", ("--label", 4), 4)):
        noise = per_sample(seeds(0, 5))
        told = {} if label is None else {"label": torch.full((5,), label)}
        p = VP().reverse(lambda x, t, told=told: model(x, t, **told))
        ts = grid.uniform(VP(), 5)
        x = sample(p, VP().prior((5, 1, 8, 8), noise, torch.float32), ts, Ancestral(), noise=noise)
        with torch.no_grad():
            want = p.denoise(x, ts[-1])
        ddpm = ("--step", "Ancestral", "--eta", 1, "--grid", "uniform", "--steps", 5)
        got = drawn(tmp_path / name, digits, *ddpm, "--n", 5, *args)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert not torch.equal(got, torch.from_numpy(np.load(tmp_path / "three" / "samples.npy")))


def test_guidance(tmp_path, digits, capsys):
    """--guidance mixes the two scores of the network at the noise levels of --interval, and the calls that are told are
    the network's; an interval between two of the levels guides nothing.
    """
    model = load(digits).model
    ts, noise = grid.uniform(VP(), 5), per_sample(seeds(0, 5))
    label = torch.full((5,), 3)

    def score(x, t):
        c, u = model(x, t, label=label), model(x, t)
        return u + 2.5 * (c - u) if float(VP().sigma(t) / VP().alpha(t)) <= 3 else c

    p = VP().reverse(score)
    x = sample(p, VP().prior((5, 1, 8, 8), noise, torch.float32), ts, Ancestral(), noise=noise)
    with torch.no_grad():
        want = p.denoise(x, ts[-1])
    ddpm = ("--step", "Ancestral", "--eta", 1, "--grid", "uniform", "--steps", 5, "--n", 5, "--label", 3)
    capsys.readouterr()
    got = drawn(tmp_path / "some", digits, *ddpm, "--guidance", 2.5, "--interval", 0, 3)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    guided = sum(float(VP().sigma(t) / VP().alpha(t)) <= 3 for t in ts)
    assert f"{6 + guided} network calls" in capsys.readouterr().out
    none = drawn(tmp_path / "none", digits, *ddpm, "--guidance", 2.5, "--interval", 1e4, 1e5)
    torch.testing.assert_close(none, drawn(tmp_path / "plain", digits, *ddpm), rtol=1e-4, atol=1e-5)


def test_temperature(tmp_path, ring, capsys):
    """--temperature samples the tempered score, on the grid and by the step of its own Gaussian, also where another
    process is asked for; 1 is none. The recipe says it, and another one is refused.
    """
    found = load(ring)
    for name, sde, args in (("same", VP(), ()), ("other", VP(beta_max=12.0), ("--sde", "VP(beta_max=12.0)"))):
        around = Reference(found.around.mean, 0.25**0.5 * found.around.std)
        ts, noise = grid.reference(sde, 20, around=around), per_sample(seeds(0, 6))
        p = sde.reverse(transport(tempered(found.model, 0.25, found.around), VP(), sde), 0.0)
        x = sample(p, sde.prior((6, 2), noise, torch.float32), ts, GaussianReference(around), noise=noise)
        with torch.no_grad():
            want = p.denoise(x, ts[-1])
        got = drawn(tmp_path / name, ring, "--n", 6, "--temperature", 0.25, *args)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    one = drawn(tmp_path / "one", ring, "--n", 6, "--temperature", 1)
    torch.testing.assert_close(one, drawn(tmp_path / "none", ring, "--n", 6), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "same" / "recipe.json").read_text())["temperature"] == 0.25
    assert "temperature" not in json.loads((tmp_path / "none" / "recipe.json").read_text())
    assert main(["sample", str(ring), "--n", "6", "--temperature", "0.5", "--out", str(tmp_path / "same")]) == 2
    assert "out holds results with" in capsys.readouterr().err


def test_labels_by_name(tmp_path, capsys):
    """A checkpoint knows the names of its classes when the data are gone, and a name goes before a number."""
    words = np.array(["2", "ash", "oak", "ash", "2", "oak"] * 4)
    file = tmp_path / "trees.npz"
    np.savez(file, x=np.random.RandomState(0).randn(24, 2).astype(np.float32), y=words)
    source = f"Array(path='{file}', key='x', labels='y')"
    model = trained(tmp_path / "model", source, "--conditional", "--batch", "8")
    file.unlink()
    assert load(model).names == ("2", "ash", "oak")
    got = {k: drawn(tmp_path / k, model, "--n", 3, "--steps", 3, "--label", k) for k in ("2", "ash", "oak", "1", "0")}
    assert torch.equal(got["2"], got["0"]) and torch.equal(got["ash"], got["1"])
    assert not torch.equal(got["2"], got["oak"]) and not torch.equal(got["ash"], got["oak"])
    for label in ("elm", "3", "-1", ""):
        assert main(["sample", str(model), f"--label={label}", "--out", str(tmp_path / "no")]) == 2
        assert "label must be one of the network's classes, 0 to 2, or one of 2, ash, oak" in capsys.readouterr().err


@pytest.mark.parametrize("after", [1, 3, 4, 5])
def test_interrupted_sampling(capsys, monkeypatch, tmp_path, ring, calls, after):
    """Stopped after any part, or before the last file, and called again: the same file, and no part drawn twice."""
    args = ("--step", "Ancestral", "--eta", 1, "--n", 20, "--steps", 3, "--batch", 6)
    want = drawn(tmp_path / "whole", ring, *args)
    with monkeypatch.context() as patch:
        real, written = Folder.keep, []

        def stop(name):
            if len(written) == after:
                raise KeyboardInterrupt
            written.append(name)

        patch.setattr(Folder, "keep", lambda self, name, content: (stop(name), real(self, name, content))[1])
        patch.setattr(report, "grid_picture", lambda x, file: (stop(file.name), file.write_bytes(b"a picture")))
        out = tmp_path / "broken"
        capsys.readouterr()
        assert main(["sample", str(ring), *map(str, args), "--out", str(out)]) == 130
        said = "scoresde: stopped by SIGINT; the same command with the same --out goes on from what is there\n"
        assert said in capsys.readouterr().err
    calls.clear()
    assert torch.equal(drawn(out, ring, *args), want)
    left = 4 - min(after, 4)
    assert (
        int(re.search(r"(\d+) network calls, for the \d of 4 batches drawn now", capsys.readouterr().out)[1])
        == len(calls)
        == 4 * left
    )
    assert contents(out) == contents(tmp_path / "whole")


def test_interrupted_sampling_with_other_batches(monkeypatch, tmp_path, ring):
    """Parts of another --batch do no harm: they are drawn again."""
    args = ("--n", 20, "--steps", 3)
    want = drawn(tmp_path / "whole", ring, *args)
    with monkeypatch.context() as patch:
        patch.setattr(report, "grid_picture", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["sample", str(ring), *map(str, args), "--batch", "6", "--out", str(tmp_path / "b")]) == 130
    torch.testing.assert_close(drawn(tmp_path / "b", ring, *args, "--batch", 8), want, rtol=1e-4, atol=1e-5)
    assert shown(tmp_path / "b") == ["recipe.json", "samples.npy", "samples.png"]


# likelihood


def rows(out):
    lines = [natural(json.loads(line)) for line in (out / "likelihood.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("recipe", "seal")} for row in lines]


def measured(out, *args):
    assert main(["likelihood", *map(str, args), "--out", str(out)]) == 0
    found = rows(out)
    assert sorted(row["index"] for row in found) == list(range(len(found)))
    return {row["index"]: row for row in found}


def column(found, key):
    return torch.tensor([found[i][key] for i in range(len(found))])


def alike(found, other, tol=1e-4):
    """Every column is the same but the calls, which are those of a batch."""
    assert len(found) == len(other)
    for key in found[0]:
        if key not in ("nfe", "products"):
            torch.testing.assert_close(column(found, key), column(other, key), rtol=tol, atol=tol, equal_nan=True)


def library(folder, x, known, seed, discrete=None, **how):
    """`log_prob` with the streams of the first samples of that seed."""
    p, noise = VP().reverse(load(folder).model, 0.0), per_sample(seeds(seed, len(x)))
    return log_prob(p, x, discrete, around=Reference.fit(known), how=Quadrature(**how), noise=noise)


CHOICES = {
    "default": ("", {}),
    "adams": ("--method Adams(12) --trace Hutchinson(3)", {"method": Adams(12), "trace": Hutchinson(3)}),
    "tsit5": (
        "--method Tsit5(rtol=1e-3,atol=1e-3) --trace hutchinson",
        {"method": ode.Tsit5(1e-3, 1e-3), "trace": Hutchinson()},
    ),
    "hadamard": ("--method RungeKutta --trace Hadamard", {"method": RungeKutta(), "trace": Hadamard()}),
    "hutch-pp": ("--method adams --trace HutchPP(2)", {"method": Adams(), "trace": HutchPP(2)}),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_likelihood_is_the_library(capsys, tmp_path, ring, choice):
    """Each line is what `log_prob` gives its sample, with errors for each dimension, and the bounds; printed are the
    means with standard errors, also in summary.json. --batch changes no value, the seed only those that are random. (Of
    an adaptive method --batch changes values by less than the solver's error, as it does samples.)
    """
    line, options = CHOICES[choice]
    data = Ring(n=150).load()
    args = [ring, "--seed", 3, *line.split()]
    found = measured(tmp_path / "a", *args)
    said = capsys.readouterr().out
    want = library(ring, data.held_out, data.train, 3, **options)
    assert len(found) == 30 and set(found[0]) == {
        "index", "log_p", "nats_per_dim", "probe_error", "solver_error", "end_bias", "continuous_bound",
        "continuous_bound_error", "discrete_bound", "discrete_bound_error", "nfe", "products",
    }  # fmt: skip
    for key, value in (("log_p", want.log_p), ("nats_per_dim", want.values), ("end_bias", want.end_bias / 2)):
        torch.testing.assert_close(column(found, key), value, rtol=1e-4, atol=1e-4)
    for key in ("probe_error", "solver_error"):
        torch.testing.assert_close(column(found, key), getattr(want, key) / 2, rtol=1e-2, atol=1e-5)
    assert (found[0]["nfe"], found[0]["products"]) == (want.nfe, want.products)
    values = column(found, "nats_per_dim").double()
    lines = said.splitlines()
    assert lines[0].startswith("30 samples (held-out), in nats/dim")
    assert lines[1].split()[:3] == [f"{float(values.mean()):.4f}", "+-", f"{float(values.std()) / math.sqrt(30):.4f}"]
    bounds = [column(found, key).double() for key in ("continuous_bound", "discrete_bound")]
    assert [said.split()[0] for said in lines[2:4]] == [f"{float(b.mean()):.4f}" for b in bounds]
    probes = float(column(found, "probe_error").square().sum().sqrt()) / 30
    assert f"probes {probes:.1g}, solver {float(column(found, 'solver_error').double().mean()):.1g};" in said
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert (summary["samples"], summary["unit"]) == (30, "nats/dim")
    assert summary["errors_of_the_first"]["probes"] == pytest.approx(probes, rel=1e-4, abs=1e-12)
    means = [float(v.mean()) for v in (values, *bounds)]
    assert [row["mean"] for row in summary["table"]] == pytest.approx(means, rel=1e-5)
    alike(measured(tmp_path / "b", *args, "--batch", 7), found, 0.1 if choice == "tsit5" else 1e-4)
    other = measured(tmp_path / "c", *args[:1], "--seed", 4, "--n", 10, *line.split())
    same = torch.allclose(column(other, "log_p"), column(found, "log_p")[:10], rtol=1e-4, atol=1e-4)
    assert same == (choice in ("default", "hadamard", "hutch-pp"))  # exact in the plane; the seed moves other probes
    assert (column(other, "continuous_bound") - column(found, "continuous_bound")[:10]).abs().max() > 1e-3


def test_likelihood_of_other_data(tmp_path, ring):
    """The split and the data can be chosen; the bounds be left out."""
    data = Ring(n=150).load()
    found = measured(tmp_path / "a", ring, "--split", "train", "--n", 4)
    want = library(ring, data.train[:4], data.train, 0)
    torch.testing.assert_close(column(found, "log_p"), want.log_p, rtol=1e-4, atol=1e-4)
    own = measured(tmp_path / "b", ring, "--n", 4, "--data", RING)
    alike(own, measured(tmp_path / "c", ring, "--n", 4), 0)
    bare = measured(tmp_path / "d", ring, "--n", 4, "--terms", 0)
    assert not any("bound" in key for key in bare[0])
    torch.testing.assert_close(column(bare, "log_p"), column(own, "log_p"), rtol=0, atol=0)


def test_likelihood_under_labels(capsys, tmp_path, digits):
    """--label is one class for all, --own-labels each sample's own, and what is printed says which; bounds are told
    them too. Without either the network's label for none is used, and that is said.
    """
    data, found = Digits().load(), load(digits)
    cheap = (digits, "--n", 6, "--method", "Adams(12)", "--trace", "Hutchinson(1)", "--terms", 4)
    for args, label, said in (
        ((), 10, "under the network's label for none"),
        (("--label", 3), 3, "given label"),
        (("--own-labels",), data.held_out_labels[:6], "given label"),
    ):
        rows = measured(tmp_path / said.replace(" ", "-") / str(args), *cheap, *args)
        assert said in capsys.readouterr().out
        x, noise, p = data.held_out[:6], per_sample(seeds(0, 6)), VP().reverse(found.model)
        how = Quadrature(Adams(12), Hutchinson(1))
        want = log_prob(p, x, data.quantized, around=found.around, how=how, noise=noise, label=label)
        torch.testing.assert_close(column(rows, "log_p"), want.log_p, rtol=1e-4, atol=1e-3)
        noise = noise.rows(0, 6)
        y = data.quantized.dequantize(x, noise)
        bound = continuous_elbo(p, y, terms=4, noise=noise, label=label)
        unit = 64 * math.log(2)
        torch.testing.assert_close(
            column(rows, "continuous_bound"), bound.nats / unit + math.log2(8), rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(
            column(rows, "continuous_bound_error"), 2 * bound.steps.std(1) / unit, rtol=1e-3, atol=1e-3
        )


def test_likelihood_with_a_fitted_prior(capsys, tmp_path, ring):
    """The prior with the moments of the training data, and its mismatch for those that are measured."""
    data = Ring(n=150).load()
    prior = Reference.fit(data.train).prior(VP(), data.shape)
    found = measured(tmp_path, ring, "--fitted-prior")
    said = capsys.readouterr().out
    want = library(ring, data.held_out, data.train, 0, prior=prior)
    torch.testing.assert_close(column(found, "log_p"), want.log_p, rtol=1e-4, atol=1e-4)
    off = prior_mismatch(VP(), VP().alpha(1e-3) * data.held_out, torch.tensor(1e-3, dtype=torch.float64), prior) / 2
    assert f"under the prior at T {off:.1g}" in said


@pytest.mark.parametrize("law", ["modes", "lattice", "digitclasses"])
def test_likelihood_of_an_exact_law(capsys, tmp_path, law):
    """Value and truth side by side: the truth is the density of the law at t_min, the value is within the budget that
    is printed, and the first samples are the same however many are asked for, and in whatever batches.
    """
    more = ("--n", 12, "--method", "Adams(40)") if law == "digitclasses" else ("--n", 24)
    seed = int(law == "lattice")
    found = measured(tmp_path / "a", "--law", law, "--seed", seed, *more)
    said = capsys.readouterr().out
    value, truth = column(found, "nats_per_dim").double(), column(found, "truth").double()
    budget = column(found, "solver_error").double() + 3 * column(found, "probe_error").double()
    assert ((value - truth).abs() <= budget).double().mean() >= (0.8 if law == "digitclasses" else 0.95)
    told = re.search(r"probes (\S+), solver (\S+);", said)
    off = re.search(r"first less truth: (\S+) in the mean, (\S+) at most", said)
    assert abs(float(off[1])) <= 3 * float(told[1]) + float(told[2])
    assert float(off[1]) == pytest.approx(float((value - truth).mean()), rel=0.1, abs=1e-12)
    assert float(off[2]) == pytest.approx(float((value - truth).abs().max()), rel=0.1, abs=1e-12)
    assert [line.split()[0] for line in said.splitlines()[1:3]] == [f"{float(v.mean()):.4f}" for v in (value, truth)]
    few = measured(tmp_path / "b", "--law", law, "--seed", seed, "--n", 5, "--batch", 2, *more[2:])
    alike(few, {i: found[i] for i in range(5)}, 1e-6)
    other = measured(tmp_path / "c", "--law", law, "--seed", 2, "--n", 5, *more[2:])
    assert (column(other, "truth") - column(few, "truth")).abs().min() > 1e-6


@pytest.mark.parametrize("sde", ["vp", "ve", "cosine", "edm"])
def test_likelihood_of_an_exact_law_by_other_processes(tmp_path, sde):
    """The value is the density of the law at that process's t_min."""
    found = measured(tmp_path, "--law", "modes", "--n", 10, "--terms", 0, "--fitted-prior", "--sde", sde)
    off = column(found, "nats_per_dim") - column(found, "truth")
    assert float(off.abs().max()) < 2e-3 and float(off.abs().max() - column(found, "solver_error").max()) < 1e-3


def test_bounds_are_in_order(tmp_path):
    """On an exact score -log p <= continuous bound <= discrete bound in the mean, within three standard errors, and the
    discrete one falls to the continuous one as the chain grows longer.
    """
    found = {}
    for chain in (20, 200):
        args = ("--law", "modes", "--n", 600, "--terms", 24, "--chain", chain, "--method", "Adams(40)")
        found[chain] = measured(tmp_path / str(chain), *args)
    truth = column(found[20], "truth").double()
    gaps = {n: column(found[n], "discrete_bound") - column(found[n], "continuous_bound") for n in found}
    above = column(found[20], "continuous_bound").double() - truth
    for gap in (above, *gaps.values(), gaps[20] - gaps[200]):
        assert float(gap.double().mean()) > -3 * float(gap.double().std()) / len(gap) ** 0.5
    assert float(gaps[20].mean()) > 3 * float(gaps[20].double().std()) / len(truth) ** 0.5


@pytest.mark.parametrize("keep", [0.0, 0.31, 0.99])
def test_likelihood_goes_on(capsys, tmp_path, ring, keep):
    """From a file cut anywhere, also inside a line, it goes on: each index once, the same values, the same mean."""
    whole = measured(tmp_path / "whole", ring, "--batch", 8)
    mean = capsys.readouterr().out.splitlines()[:-1]
    out = tmp_path / "cut"
    measured(out, ring, "--batch", 8, "--n", 1)
    text = (tmp_path / "whole" / "likelihood.jsonl").read_bytes()
    (out / "likelihood.jsonl").write_bytes(text[: round(keep * len(text))])
    capsys.readouterr()
    again = measured(out, ring, "--batch", 8)
    assert capsys.readouterr().out.splitlines()[:-1][0] == mean[0]
    alike(again, whole)
    kept = sum(line.endswith(b"}") for line in text[: round(keep * len(text))].splitlines())
    assert rows(out)[:kept] == rows(tmp_path / "whole")[:kept]


def test_interrupted_likelihood(capsys, monkeypatch, tmp_path, ring):
    """What was measured before an interrupt stays, and is not measured again."""
    real, solved = Target.rows, []

    def values(target, index, seed):
        if len(solved) == 2:
            raise KeyboardInterrupt
        solved.append(index)
        return real(target, index, seed)

    with monkeypatch.context() as patch:
        patch.setattr(Target, "rows", values)
        assert main(["likelihood", str(ring), "--batch", "8", "--out", str(tmp_path)]) == 130
    before = rows(tmp_path)
    assert [row["index"] for row in before] == list(range(16))
    solved.clear()
    solved += [None] * 3
    monkeypatch.setattr(Target, "rows", values)
    found = measured(tmp_path, ring, "--batch", 8)
    assert sum(solved[3:], []) == list(range(16, 30)) and len(found) == 30
    assert rows(tmp_path)[:16] == before


def test_likelihood_of_more_samples(capsys, tmp_path, ring):
    """A larger --n measures only what is new; a smaller one reports on the first."""
    for more in (ring,), ("--law", "modes"):
        out = tmp_path / str(len(more))
        first = measured(out, *more, "--n", 5)
        capsys.readouterr()
        found = measured(out, *more, "--n", 9)
        assert len(found) == 9 and capsys.readouterr().out.startswith("9 samples ")
        assert [found[i] for i in range(5)] == [first[i] for i in range(5)]
        alike(found, measured(tmp_path / f"at once {len(more)}", *more, "--n", 9))
        before = (out / "likelihood.jsonl").read_bytes()
        capsys.readouterr()
        measured(out, *more, "--n", 5)
        said = capsys.readouterr().out
        mean = float(column(found, "nats_per_dim")[:5].double().mean())
        assert said.startswith("5 samples ") and f"{mean:.4f} +- " in said
        assert (out / "likelihood.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (["--seed", "1"], "seed"),
        (["--split", "train"], "split"),
        (["--fitted-prior"], "fitted_prior"),
        (["--terms", "3"], "terms"),
        (["--chain", "30"], "chain"),
        (["--trace", "Exact"], "trace"),
        (["--method", "Dopri5(rtol=1e-3)"], "method"),
        (["--dequantization", "decoded"], "dequantization"),
        (["--data", "moons"], "data"),
    ],
)
def test_likelihood_with_other_options(capsys, tmp_path, ring, more, key):
    """Values of other options are not mixed in."""
    measured(tmp_path, ring, "--n", 2)
    before = contents(tmp_path)
    capsys.readouterr()
    assert main(["likelihood", str(ring), "--n", "3", *more, "--out", str(tmp_path)]) == 2
    assert f"out holds results with {key} = " in one_line(capsys)
    assert contents(tmp_path) == before


def test_likelihood_with_other_draws(capsys, tmp_path, images):
    """Nor are those of another number of draws of the dequantisation."""
    args = ["likelihood", str(images), "--data", source(images), "--n", "2", "--trace", "Exact", "--out", str(tmp_path)]
    assert main(args) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    assert main([*args, "--draws", "2"]) == 2
    assert "out holds results with draws = " in one_line(capsys)
    assert contents(tmp_path) == before


def test_a_sample_that_fails_stops_no_other(capsys, monkeypatch, tmp_path, ring):
    """Its row says what happened, by its own number and the time; the others have the values that they have without it,
    the mean is theirs, and the exit status is 1. Called again, nothing is measured twice.
    """
    whole = measured(tmp_path / "whole", ring, "--batch", 8)
    bad, real = Ring(n=150).load().held_out[19], MLP.forward
    first = load(ring).model
    seen = first.predicts(*(f(first.sde.t_min) for f in (first.sde.alpha, first.sde.sigma)))[2] * (
        bad - first.sde.alpha(first.sde.t_min) * first.predicts.mean
    )

    def forward(self, x, *args, **kwargs):
        out = real(self, x, *args, **kwargs)
        return out + torch.where((x - seen.to(x)).abs().amax(1) < 1e-6, math.nan, 0.0)[:, None]

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(MLP, "forward", forward)
        assert main(["likelihood", str(ring), "--batch", "8", "--out", str(tmp_path / "one")]) == 1
    said, found = capsys.readouterr().out, {row["index"]: row for row in rows(tmp_path / "one")}
    assert found[19] == {"index": 19, "error": "the score of sample 19 is not finite at t = 0.001"}
    assert said.startswith("29 samples") and "1 of 30 samples have no likelihood" in said
    rest = [found[i] for i in range(30) if i != 19]
    alike(dict(enumerate(rest)), dict(enumerate(row for i, row in sorted(whole.items()) if i != 19)))
    before = rows(tmp_path / "one")
    assert main(["likelihood", str(ring), "--batch", "8", "--out", str(tmp_path / "one")]) == 1
    assert rows(tmp_path / "one") == before


def test_parts_of_processes_are_gathered(tmp_path, ring):
    """What several processes had written when they were killed, a line cut off among it, goes on as one file."""
    whole = measured(tmp_path / "whole", ring)
    out = tmp_path / "cut"
    measured(out, ring, "--n", 1)
    lines = (tmp_path / "whole" / "likelihood.jsonl").read_text().splitlines(keepends=True)
    (out / "likelihood.jsonl").unlink()
    (out / "part-0.jsonl").write_text("".join(lines[0:12:2]))
    (out / "part-1.jsonl").write_text("".join(lines[1:8:2]) + lines[9][:20])
    again = measured(out, ring)
    assert shown(out) == ["likelihood.jsonl", "recipe.json", "summary.json"]
    alike(again, whole)
    assert [again[i] for i in (0, 1, 5, 10)] == [whole[i] for i in (0, 1, 5, 10)]


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--law", "modes", "--terms", "2"), ("RING",)], ids=["exact", "checkpoint"])
def test_likelihood_of_two_processes(tmp_path, ring, more):
    """Under torchrun the rows are those of one process, in one file, each once."""
    more = [str(ring) if word == "RING" else word for word in more]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "scoresde"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    args = ["likelihood", *more, "--batch", "40", "--out", str(tmp_path / "two")]
    done = subprocess.run([*command, *args], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("samples (") == 1
    found = {row["index"]: row for row in rows(tmp_path / "two")}
    assert [row["index"] for row in rows(tmp_path / "two")] == list(range(len(found)))
    assert not list((tmp_path / "two").glob("part-*"))
    alike(found, measured(tmp_path / "one", *more, "--batch", 50))


# data of one's own


def test_images_from_end_to_end(capsys, tmp_path, images):
    """Ten images of grey levels are trained on, sampled and measured: samples have their shape and are shown, and
    bits/dim are those of the library on the three that were held out, dequantised and probed by streams of their own.
    """
    x = drawn(tmp_path / "x", images, "--n", 5, "--steps", 5)
    assert x.shape == (5, 1, 6, 6) and (tmp_path / "x" / "samples.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    found = measured(tmp_path / "l", images, "--data", source(images))
    said = capsys.readouterr().out
    loaded = load(images)
    data = loaded.source.load()
    held, train = (data.values(part) for part in (data.held_out, data.train))
    assert len(found) == len(held) == 3 and loaded.quantized.levels == 5
    want = library(images, held, train, 0, loaded.quantized)
    bits = column(found, "bits_per_dim")
    torch.testing.assert_close(bits, want.bits_per_dim, rtol=1e-4, atol=1e-4)
    assert said.startswith("3 samples (held-out), in bits/dim") and "an upper bound in the mean" in said
    assert said.splitlines()[1].split()[0] == f"{float(bits.double().mean()):.4f}"
    for name, options in {
        "truncated": (["--dequantization", "truncated-normal"], [TruncatedNormal(loaded.quantized)], {}),
        "decoded": (["--dequantization", "decoded"], [Decoded(loaded.quantized)], {}),
        "draws": (["--draws", "3", "--trace", "Exact"], [Uniform(loaded.quantized, 3)], {"trace": Exact()}),
    }.items():
        found = measured(tmp_path / name, images, "--data", source(images), *options[0])
        want = library(images, held, train, 0, *options[1], **options[2])
        torch.testing.assert_close(column(found, "bits_per_dim"), want.bits_per_dim, rtol=1e-4, atol=1e-4)
        alone = measured(tmp_path / f"{name} alone", images, "--data", source(images), *options[0], "--batch", 1)
        alike(alone, found)


def test_training_goes_on_from_the_shell(monkeypatch, tmp_path, ring):
    """A training that is interrupted and called again ends with the weights of one that was not."""
    real, out = Settings.ema_rate, tmp_path / "cut"

    def interrupted(self, step):
        if step == 30:
            signal.raise_signal(signal.SIGINT)
        return real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Settings, "ema_rate", interrupted)
        assert main(["train", RING, *SMALL, "--out", str(out)]) == 130
    assert load(out).notes["step"] == 30
    trained(out, RING)
    assert load(out).digest == load(ring).digest


def test_training_with_other_options(capsys, tmp_path, ring):
    """A folder's training is not continued on other data, with another process or another seed; it stays as it is."""
    before = contents(ring)
    for args in (
        ("Ring(n=151)",),
        ("moons",),
        (RING, "--sde", "ve"),
        (RING, "--seed", "1"),
        (RING, "--times", "UniformTime"),
    ):
        assert main(["train", *args, *SMALL, "--out", str(ring)]) == 2
        assert re.search("(weight|data|sde|seed|times) must be as in", one_line(capsys))
    assert contents(ring) == before
