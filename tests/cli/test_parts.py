"""What is typed is what `repr` shows, from the library or from modules of one's own, and nothing else can be said."""

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import VE, VP, Flow, Langevin, Reference, grid, lab, steps
from scoresde.checkpoint import load
from scoresde.cli import Parser, main, parts
from scoresde.cli import bench as bench_module
from scoresde.cli import compare as compare_module
from scoresde.cli.options import COMMANDS
from scoresde.data import Array, Cifar10, Digits, Idx, Images, Ring, Source, Table
from scoresde.lab import Modes, Problem, Subject, pages
from scoresde.likelihood import Exact, HutchPP, Trace
from scoresde.loss import LogNormal, MinSNR, Times, Weight
from scoresde.nn import MLP, UNet
from scoresde.ode import Dopri5
from scoresde.process import EDM, LinearSDE
from scoresde.steps import SNR, DPMSolver, DPMSolverPP, GaussianReference, Step, UniPC
from scoresde.training import Settings

OWN = '''
"""Parts of one's own."""

from dataclasses import dataclass

import torch
from torch import nn

from scoresde import VP, Flow, Step, ode
from scoresde.lab import Modes, Problem
from scoresde.nn import MLP

SEVEN = 7


@dataclass(frozen=True)
class Plain(Step):
    """Euler's method, of which a share is taken."""

    share: float = 1.0
    name: str = ""

    def __call__(self, p, x, t, s, noise):
        flow = p.sde.reverse(p.score, 0.0)
        return x + self.share * (Flow(ode.Euler())(flow, x, t, s, noise) - x)


@dataclass(frozen=True)
class Slow(VP):
    """VP with other numbers."""

    beta_max: float = 12.0


@dataclass(frozen=True)
class Two(Problem):
    """Two modes."""

    def law(self):
        return Modes(2).law()


class Foreign(nn.Module):
    """A network that a manifest cannot make."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 2)

    def forward(self, x, t):
        return self.line(torch.cat([x, t.to(x).expand(len(x))[:, None]], 1))


def small(shape, classes):
    return MLP(shape, 16, 1, classes=classes)


def foreign(shape, classes):
    assert shape == (2,) and classes == 0
    return Foreign()


def nothing(shape, classes):
    return None


def angry(*args):
    raise LookupError("no such thing")


class Angry(Step):
    def __init__(self):
        raise LookupError("no such thing")

    def __call__(self, p, x, t, s, noise):
        return x
'''


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with modules of one's own, and one that cannot be imported."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "odd_parts.py").write_text(OWN)
    (folder / "odd_broken.py").write_text("import nothing_of_the_kind\n")
    (folder / "odd_exits.py").write_text("raise SystemExit('no more')\n")
    (folder / "odd_package").mkdir()
    (folder / "odd_package" / "__init__.py").write_text("")
    (folder / "odd_package" / "inner.py").write_text("from odd_parts import Plain\n")
    return folder


@pytest.fixture
def at_home(here, monkeypatch):
    """The working directory is that folder."""
    monkeypatch.chdir(here)
    return here


TRAIN = ("train", "Ring(n=150)", "--steps", "20", "--warmup", "5")


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """A small network on a toy in the plane."""
    out = tmp_path_factory.mktemp("ring") / "model"
    assert main([*TRAIN, "--net", "MLP(width=16, depth=1)", "--out", str(out)]) == 0
    return out


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc"}


def drawn(out, *args):
    assert main(["sample", *map(str, args), "--n", "5", "--out", str(out)]) == 0
    return np.load(out / "samples.npy")


def one_line(capsys):
    """The only line that was said, on standard error."""
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("scoresde: ") and err.count("\n") == 1 and "\r" not in err
    return err


# what can be said

VALUES = [
    VP(),
    VP(0.2, 15.0),
    VE(sigma_max=20.0),
    EDM(),
    Ring(modes=5, n=100),
    Digits(),
    Modes(3, 0.1),
    MinSNR(2.0),
    LogNormal(-1.0, 1.5),
    Exact(),
    HutchPP(4),
    Langevin(SNR(0.3), n=5),
    Flow(Dopri5(1e-6, 1e-6)),
    UniPC(3),
    DPMSolverPP(2, taper=True),
    DPMSolver(2),
    GaussianReference(Reference(0.5, 2.0)),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_typed_is_what_repr_shows(value):
    """Reading what `repr` shows gives the value, whatever spaces are left out."""
    for text in (repr(value), repr(value).replace(" ", "")):
        assert parts.read("it", text, type(value)) == value


def test_names():
    """Every public value with defaults is read from its name, in capitals or not, and from what `repr` shows."""
    known = [v for v in parts.PUBLIC.values() if dataclasses.is_dataclass(v) and not inspect.isabstract(v)]
    free = [v for v in dict.fromkeys(known) if all(p.default is not p.empty for p in parameters(v))]
    assert len(free) >= 50
    for cls in free:
        for text in (cls.__name__, cls.__name__.lower(), f"{cls.__name__}()", repr(cls())):
            assert parts.read("it", text, cls) == cls(), text


def parameters(cls):
    return inspect.signature(cls).parameters.values()


@given(st.floats(1e-3, 10), st.floats(1e-3, 10))
def test_numbers(low, more):
    """Numbers arrive as they are written, signs and arithmetic too."""
    assert parts.read("sde", f"VP({low!r}, beta_max={low!r} + {more!r})", LinearSDE) == VP(low, low + more)
    assert parts.read("times", f"LogNormal(-{low!r}, {more!r}/2)", Times) == LogNormal(-low, more / 2)


def test_nothing_is_nothing():
    """An option that is not given is None."""
    assert parts.read("sde", None, LinearSDE) is None


def test_known_arguments_reach_a_name_alone():
    """A name alone is called with those of the known arguments that it takes; a call is as it is written."""
    around = Reference(0.5, 2.0)
    assert parts.read("step", "GaussianReference", Step, around=around) == GaussianReference(around)
    assert parts.read("step", "UniPC", Step, around=around) == parts.read("step", "UniPC()", Step, around=around)
    assert parts.read("step", "Ancestral", Step, around=around) == steps.Ancestral()


def test_data(tmp_path):
    """Arrays and folders are known by their paths, other data by their names, and a path may be a string."""
    (tmp_path / "pictures").mkdir()
    for name in ("x.npy", "x.npz"):
        assert parts.read_data(str(tmp_path / name)) == Array(tmp_path / name)
    for name in ("x.csv", "x.tsv.gz", "x.parquet"):
        assert parts.read_data(str(tmp_path / name)) == Table(tmp_path / name)
    assert parts.read_data(str(tmp_path / "pictures")) == Images(tmp_path / "pictures")
    for kind, file in ((Idx, "train-images.idx3-ubyte.gz"), (Cifar10, "data_batch_1"), (Cifar10, "a/data_batch_1.bin")):
        folder = tmp_path / file.replace("/", "-")
        (folder / "cifar-10-batches-bin").mkdir(parents=True)
        (folder / file.replace("a/", "cifar-10-batches-bin/")).write_bytes(b"")
        assert parts.read_data(str(folder)) == kind(folder)
    for home, at in (("tv", "raw"), ("root", "MNIST/raw"), ("clothes", "FashionMNIST/raw")):
        (tmp_path / home / at).mkdir(parents=True)
        (tmp_path / home / at / "train-images-idx3-ubyte").write_bytes(b"")
        assert parts.read_data(str(tmp_path / home)) == Idx(tmp_path / home / at)
    (tmp_path / "pictures" / "emnist-letters-train-images-idx3-ubyte.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="^data must say which split of EMNIST it is, of letters: Idx"):
        parts.read_data(str(tmp_path / "pictures"))
    assert parts.read_data("Ring(modes=5)") == Ring(modes=5) and parts.read_data("digits") == Digits()
    assert parts.read_data("Array(Path('x.npy'), levels=5)") == Array(Path("x.npy"), levels=5)
    np.save(tmp_path / "x.npy", np.random.RandomState(0).randn(5, 2))
    found = parts.read_data(f"Array({str(tmp_path / 'x.npy')!r}, held_out=0.4)").load()
    assert (len(found.train), len(found.held_out)) == (3, 2)


def test_grids():
    """A grid is one of the library's, with its options."""
    sde, around = VP(), Reference(0.5, 2.0)
    for name in ("uniform", "quadratic", "log_snr", "karras"):
        for text in (name, f"{name}()"):
            assert torch.equal(parts.read_grid(text)(sde, 5, 0.01), getattr(grid, name)(sde, 5, 0.01))
    assert torch.equal(parts.read_grid("karras(rho=3)")(sde, 5, None), grid.karras(sde, 5, rho=3))
    near = parts.read_grid("reference", around=around)(sde, 5, None)
    assert torch.equal(near, grid.reference(sde, 5, around=around))
    for text in ("uniform_", "vp", "1", "equal", "VP()", "karras.func", "(lambda s, n, e: 1)", ""):
        with pytest.raises(ValueError, match="^grid must "):
            parts.read_grid(text)


def test_networks():
    """A network is told the shape and the classes, and has the options that are typed; images have a U-Net."""
    assert isinstance(parts.read_net(None, (1, 8, 8), 0), UNet) and isinstance(parts.read_net(None, (2,), 0), MLP)
    for text in ("MLP(width=16, depth=1)", "mlp(16, 1)", " MLP(16, depth = 1) "):
        found, made = parts.read_net(text, (2,), 3), MLP((2,), 16, 1, classes=3)
        assert isinstance(found, MLP) and found.config == made.config
    for text in ("VP()", "7", "ring", "MLP(breadth=3)", "MLP.forward", "nothing"):
        with pytest.raises(ValueError, match="^net must "):
            parts.read_net(text, (2,), 0)


# what cannot

PLAIN = st.sampled_from(["vp", "VP()", "1", "2.5", "-1", "Ring(n=5)", "'text'", "SNR", "(1, 2)", "[1]", "iid"])
STRANGE = st.sampled_from(
    [
        "{0}.__class__",
        "{0}.beta_min",
        "VP.t_min",
        "{0}[0]",
        "{0}[{1}:]",
        "lambda: {0}",
        "(lambda x: {0})({1})",
        "[x for x in {0}]",
        "(x for x in {0})",
        "{{{0}: {1}}}",
        "{{{0}, {1}}}",
        "VP(**{{'beta_min': {0}}})",
        "VP(*{0})",
        "f'{{{1}}}'",
        "{0} if {1} else {0}",
        "{0} and {1}",
        "not {0}",
        "{0} < {1}",
        "{0} == {1}",
        "{0} ** {1}",
        "{0} % {1}",
        "{0} // {1}",
        "{0} << {1}",
        "{0} | {1}",
        "~{0}",
        "{0} @ {1}",
        "(x := {0})",
        "(yield {0})",
        "(await {0})",
        "VP().__init__.__globals__",
        "getattr({0}, 'beta_min')",
        "__import__('os')",
        "__builtins__",
        "open('written', 'w')",
        "eval('1')",
        "exec('x = 1')",
        "print({0})",
        "type({0})",
        "_range",
        "torch",
        "np",
        "x = {0}",
        "{0}; {1}",
        "import os",
        "{0}\n{1}",
        "#",
    ]
)
INSIDE = st.sampled_from(
    ["{}", "({})", "VP({})", "VP(beta_min={})", "Langevin(SNR({}), n=2)", "1 + {}", "({}, 1)", "[{}]"]
)


@given(STRANGE, PLAIN, PLAIN, INSIDE, INSIDE)
def test_no_other_expression_is_read(strange, a, b, inner, outer):
    """Only calls of public names, numbers, strings, tuples and signs are read: no attributes, subscripts, operators of
    other kinds, functions, comprehensions, private names, builtins or statements, however deep. Nothing is run.
    """
    text = outer.format(inner.format(f"{strange.format(a, b)}"))
    with pytest.raises(ValueError, match="^it must be like ") as error:
        parts.read("it", text, object)
    assert "\n" not in str(error.value)
    assert not Path("written").exists()


@given(st.text(st.characters(exclude_characters=":"), max_size=30))
def test_any_text_is_a_value_or_an_error_that_names_the_option(text):
    """There is no other end, whatever is typed."""
    for read, name in (
        (lambda: parts.read("sde", text, LinearSDE), "sde"),
        (lambda: parts.read_grid(text), "grid"),
        (lambda: parts.read_net(text or "0", (2,), 0), "net"),
    ):
        try:
            read()
        except ValueError as error:
            assert str(error).startswith(f"{name} must ")


KINDS = {
    "sde": LinearSDE,
    "step": Step,
    "weight": Weight,
    "times": Times,
    "trace": Trace,
    "law": Problem,
    "data": Source,
}
OTHERS = {
    "vp": "sde",
    "Ancestral": "step",
    "Simple": "weight",
    "UniformTime": "times",
    "Exact": "trace",
    "modes": "law",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_value_must_be_of_its_kind(name):
    """A part of another kind, a number and an abstract class are refused, naming option, kind and what was got."""
    for text in [*(text for text, of in OTHERS.items() if of != name), "1", "'text'", "(1, 2)"]:
        with pytest.raises(ValueError, match=f"^{name} must name a {KINDS[name].__name__}, got ") as error:
            parts.read(name, text, KINDS[name])
        assert repr(text) in str(error.value)
    with pytest.raises(ValueError, match=f"^{name} must be like .*abstract"):
        parts.read(name, KINDS[name].__name__, KINDS[name])


# parts of one's own


def test_own_parts_are_read(at_home):
    """A name of a module, with or without arguments, of a package too; arguments may be strings that hold colons. Where
    Python looks for modules stays as it was.
    """
    before = list(sys.path)
    for text in ("odd_parts:Plain", "odd_parts:Plain()", "odd_package.inner:Plain"):
        found = parts.read("step", text, Step)
        assert type(found).__name__ == "Plain" and found.share == 1.0
    assert parts.read("step", "odd_parts:Plain(0.5)", Step).share == 0.5
    assert parts.read("step", "odd_parts:Plain(name='cuda:0')", Step).name == "cuda:0"
    assert sys.path == before


def test_own_steps_sample(at_home, tmp_path, ring):
    """A step of one's own is a step like the library's, alone and beside others."""
    args = (ring, "--steps", 4)
    euler = drawn(tmp_path / "a", *args, "--step", "Flow(Euler())")
    assert np.array_equal(drawn(tmp_path / "b", *args, "--step", "odd_parts:Plain"), euler)
    assert not np.array_equal(drawn(tmp_path / "c", *args, "--step", "odd_parts:Plain(0.5)"), euler)
    both = drawn(tmp_path / "d", *args, "--step", "Langevin", "--step", "odd_parts:Plain(name='one')", "--eta", 1)
    assert np.isfinite(both).all() and not np.array_equal(both, euler)


def lines(out):
    """The rows of a likelihood, whatever their recipe."""
    rows = [json.loads(line) for line in (out / "likelihood.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("recipe", "seal")} for row in rows]


def test_own_processes(at_home, tmp_path, ring):
    """A process of one's own is sampled, trained on and measured as the library's with the same numbers."""
    args = (ring, "--steps", 4)
    slow = drawn(tmp_path / "a", *args, "--sde", "odd_parts:Slow")
    assert np.array_equal(drawn(tmp_path / "b", *args, "--sde", "VP(beta_max=12)"), slow)
    assert np.array_equal(
        drawn(tmp_path / "c", *args, "--sde", "odd_parts:Slow(beta_max=20)"), drawn(tmp_path / "d", *args)
    )
    small = (*TRAIN, "--net", "MLP(width=16, depth=1)")
    assert main([*small, "--sde", "odd_parts:Slow", "--out", str(tmp_path / "own")]) == 0
    assert main([*small, "--sde", "VP(beta_max=12)", "--out", str(tmp_path / "library")]) == 0
    own, library = load(tmp_path / "own"), load(tmp_path / "library")
    weights = own.model.state_dict(), library.model.state_dict()
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0]) and own.digest != library.digest
    assert type(own.model.sde).__name__ == "Slow"
    law = ("likelihood", "--law", "modes", "--n", "4", "--terms", "0", "--method", "Adams(20)")
    for name, sde in (("x", "odd_parts:Slow"), ("y", "VP(beta_max=12)")):
        assert main([*law, "--sde", sde, "--out", str(tmp_path / name)]) == 0
    assert lines(tmp_path / "x") == lines(tmp_path / "y")


def test_own_laws(at_home, tmp_path):
    """A law of one's own is measured as the library's that it is."""
    args = ("likelihood", "--n", "4", "--terms", "0", "--method", "Adams(20)")
    for name, law in (("x", "odd_parts:Two"), ("y", "Modes(2)")):
        assert main([*args, "--law", law, "--out", str(tmp_path / name)]) == 0
    assert lines(tmp_path / "x") == lines(tmp_path / "y")


def test_own_networks(at_home, capsys, tmp_path, ring):
    """A function that gives a network trains as the library's does; one that a manifest cannot make is asked for again,
    and then sampled and measured.
    """
    assert main([*TRAIN, "--net", "odd_parts:small", "--out", str(tmp_path / "small")]) == 0
    assert load(tmp_path / "small").digest == load(ring).digest
    foreign = str(tmp_path / "foreign")
    assert main([*TRAIN, "--net", "odd_parts:foreign", "--out", foreign]) == 0
    capsys.readouterr()
    for command in (["sample", foreign], ["likelihood", foreign]):
        assert main([*command, "--n", "4", "--out", str(tmp_path / "none")]) == 2
        assert "has no recorded arguments: give `net`" in one_line(capsys)
    assert not (tmp_path / "none").exists()
    net = ("--net", "odd_parts:foreign")
    assert drawn(tmp_path / "x", foreign, *net).shape == (5, 2)
    assert main(["likelihood", foreign, "--n", "4", *net, "--out", str(tmp_path / "y")]) == 0
    assert len((tmp_path / "y" / "likelihood.jsonl").read_text().splitlines()) == 4
    assert drawn(tmp_path / "z", ring, "--net", "odd_parts:small").shape == (5, 2)


@pytest.mark.slow
def test_own_parts_of_a_new_process(at_home, tmp_path):
    """What was trained with a process of one's own is sampled, measured and tuned by programs that have not imported
    it, if they are told where it is, and what was tuned is used; modules are found where the user is.
    """
    model, own = str(tmp_path / "model"), ("--sde", "odd_parts:Slow")
    assert main([*TRAIN, *own, "--out", model]) == 0
    tuned = str(tmp_path / "tuned.json")
    for out, name, *more in (
        ("samples", "sample", model, "--n", "3", "--step", "odd_parts:Plain"),
        ("likelihood", "likelihood", model, "--n", "3", "--terms", "0"),
        ("bench", "bench", "--model", model, "--n", "3", "--n-sde", "3", "--nfe", "3", "--only", "DDIM"),
        ("compare", "compare", model, "--n", "3", "--nfe", "3"),
        ("tuned.json", "tune", model, "--nfe", "2", "--pilots", "8"),
        ("tuned", "sample", model, "--n", "3", "--tuned", tuned),
    ):
        done = shell(name, *more, *own, "--out", str(tmp_path / out))
        assert done.returncode == 0, done.stderr


def shell(*args, **env):
    command = [sys.executable, "-m", "scoresde", *args]
    path = os.pathsep.join([str(Path(parts.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **env}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


WRONG = {
    "no module": ("step sde net law", "odd_nowhere:Part", "No module named 'odd_nowhere'"),
    "no module in a package": ("step sde net law", "odd_package.none:Part", "No module named 'odd_package.none'"),
    "a module that fails": ("step sde net law", "odd_broken:Part", "No module named 'nothing_of_the_kind'"),
    "a module that exits": ("step sde net law", "odd_exits:Part", "no more"),
    "no such name": ("step sde net law", "odd_parts:Missing", "name 'Missing' is not defined"),
    "no name": ("step sde net law", "odd_parts:", "syntax"),
    "no such argument": ("step", "odd_parts:Plain(colour=3)", "colour"),
    "a number": ("step sde net law", "odd_parts:SEVEN", "which is int"),
    "a module": ("step sde net law", "odd_parts:torch", "which is module"),
    "a step": ("sde net law", "odd_parts:Plain", "Plain"),
    "a process": ("step net law", "odd_parts:Slow()", "which is Slow"),
    "a function": ("step sde law", "odd_parts:small", "small"),
    "a function of nothing": ("net", "odd_parts:nothing", "which is NoneType"),
    "an error in the part": ("step sde net law", "odd_parts:angry", "no such thing"),
    "an error in the class": ("step sde law", "odd_parts:Angry", "no such thing"),
    "attributes": ("step sde net law", "odd_parts:Plain.share", "Attribute has no place in it"),
    "builtins": ("step sde net law", "odd_parts:open('written', 'w')", "name 'open' is not defined"),
    "import": ("step sde net law", "odd_parts:__import__('os')", "name '__import__' is not defined"),
    "an attribute of a package": ("step sde net law", "odd_package:inner.Plain", "Attribute has no place in it"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_parts(at_home, capsys, tmp_path, ring, case):
    """One line on standard error that names the option and what was typed, status 2, and nothing is written."""
    options, text, said = WRONG[case]
    before, out = contents(at_home), str(tmp_path / "out")
    commands = {
        "step": [["sample", str(ring)]],
        "sde": [["sample", str(ring)], [*TRAIN], ["likelihood", "--law", "modes"]],
        "net": [["sample", str(ring)], [*TRAIN], ["likelihood", str(ring)]],
        "law": [["likelihood"]],
    }
    for option in options.split():
        for command in commands[option]:
            assert main([*command, f"--{option}", text, "--out", out]) == 2, (option, command)
            line = one_line(capsys)
            assert line.startswith(f"scoresde: {option} must ") and said in line and repr(text) in line
            assert not (tmp_path / "out").exists() and contents(at_home) == before


# help


def helped(capsys, *args):
    assert main([*args, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_is_one_screen(capsys, monkeypatch, name):
    """The help of each command, and of all, is at most 40 lines of at most 110 columns, on any terminal."""
    for columns in ("60", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        lines = helped(capsys, *name.split()).splitlines()
        assert 8 <= len(lines) <= 40 and max(map(len, lines)) <= 110


def test_help_of_all_says_whole_sentences(capsys):
    """Beside each command stands what it does, not broken off inside a sentence's dots."""
    said = " ".join(helped(capsys).split())
    for name, takes in COMMANDS.items():
        sentence = re.split(r"(?<=\w)[.:;] ", " ".join(inspect.getdoc(takes).split()) + " ")[0]
        assert f" {name} {sentence[:40]}" in said
    assert ", .." not in re.sub(r"\.\.\.", "", said)


NEEDED = {
    "train": ["digits"],
    "average": ["digits", "--ema", "0.1"],
    "sample": ["digits"],
    "evaluate": ["samples", "digits"],
    "fetch": ["mnist"],
    "completion": ["bash"],
    **{name: ["digits"] for name in ("inpaint", "colorize", "superres", "interpolate")},
}


def test_help_and_options_do_not_import_torch():
    """Help, the parsing of options and errors in them come without torch and numpy."""
    code = """
        import sys
        from scoresde.cli import COMMANDS, Parser, main
        assert main([]) == main(["--help"]) == 0
        for name in COMMANDS:
            assert main([name, "--help"]) == 0
            assert main([name, "--no-such-option"]) == 2
            Parser(name).parse_args({needed}.get(name, []))
        slow = {"torch", "numpy", "scipy", "matplotlib"} & set(sys.modules)
        assert not slow, slow
    """
    code = code.replace("{needed}", repr(NEEDED))
    env = {**os.environ, "PYTHONPATH": str(Path(parts.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def stated(text):
    """What stands in brackets at the end of a help text."""
    found = re.search(r"(?:^| )\(([^()]*)\)$", text)
    return found and found[1]


def test_stated_defaults_are_those_of_training(capsys):
    """The numbers that `train` states are the defaults of `Settings`, and the law of times is that of `Settings`."""
    said = helps("train")
    numbers = {f.name: f.default for f in dataclasses.fields(Settings) if type(f.default) in (int, float)}
    assert len(numbers) >= 9
    for name, default in numbers.items():
        assert name == "seed" or float(stated(said[name])) == default
    text = re.match(r"(.*\)), which is the default", said["times"])[1]
    assert parts.read("times", text, Times) == Settings().times
    assert re.match(r"vp, which is the default", said["sde"]) and Settings().precision in stated(said["precision"])
    given = vars(Parser("train").parse_args(["digits"]))
    assert given["seed"] == Settings().seed and not given["not_stratified"] and Settings().stratified
    for name in (*numbers, "weight", "times", "sde", "flips", "precision"):
        assert name == "seed" or given[name] is None


@pytest.mark.parametrize("name", COMMANDS)
def test_stated_defaults_are_those_of_options(name):
    """Where an option has a default and states one in brackets, they are the same; --out always does."""
    values = vars(Parser(name).parse_args(NEEDED.get(name, [])))
    for action in Parser(name)._actions:
        if action.dest == "out" or (values.get(action.dest) is not None and stated(action.help or "")):
            told, value = stated(action.help), values[action.dest]
            assert told == str(value) or float(told) == value, action.dest


def test_stated_defaults_of_samples(tmp_path, capsys, ring):
    """`sample` takes as many intervals and network calls as it states."""
    assert main(["sample", str(ring), "--out", str(tmp_path)]) == 0
    calls = re.search(r" (\d+) network calls a sample", capsys.readouterr().out)[1]
    assert f"By default {calls} network calls" in " ".join(helped(capsys, "sample").split())
    n = int(re.match(r"\d+", stated(helps("sample")["steps"]))[0])
    assert len(json.loads((tmp_path / "recipe.json").read_text())["solver"][1]) == n + 1


def helps(name):
    return {action.dest: action.help for action in Parser(name)._actions}


def subject(name, law, sde, n, *more):
    """In place of a measured one, which takes long to make."""
    x_0 = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Subject(name, sde, lambda x, t: -x, (2,), x_0, [x_0.new_zeros(n, 2)], {}, tol=0.1)


def instead(monkeypatch, module, **functions):
    """Functions of the laboratory replaced, where they live and where a command may have their names."""
    for name, function in functions.items():
        for where in (lab, module):
            monkeypatch.setattr(where, name, function, raising=False)


def test_stated_defaults_of_compare(monkeypatch, tmp_path):
    """The law, its process, its samples and the budgets that `compare` states are those that it runs."""

    seen = []

    def skip(subject, cells, *more):
        seen.append((subject, *cells))
        yield {"method": cells[0][0].name, "budget": cells[0][1], "skipped": "it is not run here"}, torch.empty(0)

    instead(monkeypatch, compare_module, exact_subject=subject, compare=skip)
    assert main(["compare", "--out", str(tmp_path)]) == 2
    said = helps("compare")
    assert {k for _, (_, k) in seen} == {int(k) for k in re.findall(r"\d+", stated(said["nfe"]))}
    for told, _ in seen:
        assert told.name == repr(parts.read("law", stated(said["law"]), Problem)) and told.sde == VP()
        assert f"({told.n} of a law" in said["n"] and "vp for a law" in said["sde"]


@pytest.mark.parametrize("full", [False, True])
def test_stated_defaults_of_bench(monkeypatch, tmp_path, full):
    """The problems, processes, sizes and budgets that `bench` states are those that it runs, in full or not."""
    seen, said = [], helps("bench")
    memorised = lambda x, *more: subject("memorised", x, *more)  # noqa: E731

    def ran(*args):
        seen.append(args)
        ((solver, calls),) = args[1]
        yield {"solver": solver.name, "package": "", "spacing": solver.grid, "budget": calls, "skipped": "not run"}

    instead(monkeypatch, bench_module, exact_subject=subject, memorised_subject=memorised, bench=ran)
    monkeypatch.setattr(pages, "bench_page", lambda *_: None)
    assert main(["bench", *["--full"][: int(full)], "--out", str(tmp_path)]) == 0
    problems, processes = {args[0].name: args for args in seen}, {args[0].sde: args for args in seen}
    every = [str(bench_module.LAWS.get(name, name)) for name in ("modes", "digits", "lattice", "memorised")]
    assert said["problems"].startswith("laws (modes digits; all if --full)") and stated(said["processes"]) == "vp"
    assert sorted(problems) == sorted(every if full else every[:2])
    assert len(processes) == 3 if full else list(processes) == [VP()]
    sizes = [re.search(r"\((\d+), or (\d+) if --full\)", said[name]) for name in ("n", "n_sde")]
    for _, _, n, n_sde, *_ in seen:
        assert [n, n_sde] == [int(size[1 + full]) for size in sizes]
    for problem, sde in {(args[0].name, args[0].sde) for args in seen}:
        cells = [args[1][0] for args in seen if (args[0].name, args[0].sde) == (problem, sde)]
        for name, weak in (("nfe", False), ("nfe_sde", True)):
            budgets, told = {k for solver, k in cells if bool(solver.weak) == weak}, stated(said[name]).split()
            assert budgets > {int(k) for k in told} if full else budgets == {int(k) for k in told}


READERS = {
    "sde": lambda text: parts.read("sde", text, LinearSDE),
    "step": lambda text: parts.read("step", text, Step, around=Reference(std=0.5)),
    "weight": lambda text: parts.read("weight", text, Weight),
    "times": lambda text: parts.read("times", text, Times),
    "law": lambda text: parts.read("law", text, Problem),
    "method": lambda text: parts.read("method", text, object),
    "trace": lambda text: parts.read("trace", text, Trace),
    "grid": lambda text: parts.read_grid(text, around=Reference(std=0.5))(VP(), 4, None),
    "net": lambda text: parts.read_net(text, (1, 8, 8), 0),
    "data": parts.read_data,
}


def reader(command, dest):
    """What reads an option: a method of an inverse problem is another thing than that of a flow."""
    inverse = dest == "method" and command in ("inpaint", "colorize", "superres")
    return parts.read_method if inverse else READERS[dest]


def examples(text):
    """The values among the words of a help text: `a, b(c, d), ...`."""
    words = re.split(r"[,:;] (?![^(]*\))", re.sub(r" \([^()]*\)$", "", text))
    return [word for word in words if re.fullmatch(r"\w+(\(.*\))?", word)]


def test_examples_of_options_are_readable():
    """Every value that the help of an option gives as an example is one."""
    found = []
    for name in COMMANDS:
        for action in Parser(name)._actions:
            if action.dest in READERS and action.choices is None:
                for text in examples(action.help):
                    assert reader(name, action.dest)(text) is not None
                    found.append(text)
    assert len(found) >= 35 and {"Langevin(SNR(0.3), n=5)", "karras(rho=7)", "digits", "Adams(40)"} <= set(found)


def test_examples_of_commands_are_options(capsys):
    """Every command line in a help text can be parsed, its values too."""
    texts = {name: " ".join(inspect.getdoc(takes).split()) for name, takes in COMMANDS.items()}
    whole = [line.split() for text in [*texts.values(), helped(capsys)] for line in commands(text)]
    alone = [[name, "digits", *line.split()] for name, text in texts.items() for line in re.findall(OPTIONS, text)]
    assert len(whole) >= 4 and len(alone) >= 1
    for name, *args in [*whole, *alone]:
        if args in ([], ["MODEL", "--tuned", "FILE"]):
            assert name in COMMANDS
            continue
        o = Parser(name).parse_args(args)
        for dest, value in vars(o).items():
            if dest in READERS and value and not (name == "sample" and dest == "data"):
                for text in value if isinstance(value, list) else [value]:
                    reader(name, dest)(text)


OPTIONS = r"(?:--[a-z]+ [A-Za-z0-9]+ ){2,}"


def commands(text):
    """The command lines in a text: quoted, or after `-m`."""
    return [line for line in re.findall(r"`scoresde ([^`]*)`", text)] + re.findall(r"-m scoresde -- ([\w ]+)$", text)
