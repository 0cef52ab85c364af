"""Values from the command line: what is typed is what `repr` shows, `VE(sigma_max=20)`, `Langevin(SNR(0.3), n=5)`, or
just `vp`. A part of your own is `package.module:Name`, with or without arguments: the module is imported because it was
typed, and nothing that is read from a file comes here.
"""

import ast
import importlib
import inspect
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import data, grid, inverse, likelihood, loss, model, ode, process, reference, steps
from .. import nn as networks
from ..lab import problems
from ..steps.catalogue import Method, own
from ..training import usual_encoder, usual_net

PLAIN = (ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.Tuple, ast.List, ast.UnaryOp)
SIGNS = (ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub, ast.UAdd)


def public(*modules: Any) -> dict[str, Any]:
    """The parts of modules by name, and by name in small letters."""
    found = {k: v for m in modules for k, v in vars(m).items() if callable(v) and not k.startswith("_")}
    return {**{k.lower(): v for k, v in found.items()}, **found}


@contextmanager
def told(name: str, text: str) -> Iterator[None]:
    """Whatever is raised inside is an error of what was typed: a ValueError that names the option."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name} must be like VP() or package.module:Name, got {text!r}: {error}") from error


def own_module(text: str) -> str:
    """The module that a typed part names, package.module:Name; "" if it names none."""
    module, colon, _ = text.partition(":")
    return module if colon and module.replace(".", "_").isidentifier() else ""


def evaluated(name: str, text: str, names: dict[str, Any]) -> Any:
    """What `text` says: calls, names and numbers, and no other expression. Raises ValueError in one line."""
    module, rest = own_module(text), text.partition(":")[2]
    with told(name, text):
        if module:
            sys.path.insert(0, "")  # as `python -m` has it: parts of your own lie where you are
            try:
                names = vars(importlib.import_module(module))
            finally:
                sys.path.remove("")
        else:
            rest = text
        tree = ast.parse(rest.strip(), mode="eval")
        if strange := [type(n).__name__ for n in ast.walk(tree) if not isinstance(n, PLAIN + SIGNS)]:
            raise ValueError(f"{strange[0]} has no place in it")
        return eval(compile(tree, name, "eval"), {**names, "__builtins__": {}})


def read(name: str, text: str | None, kind: Any, **known: Any) -> Any:
    """The value that `text` says, a `kind`; None for None. A name alone is called, with those of the arguments `known`
    that it takes, such as `around`. Raises ValueError in one line, naming the option.
    """
    if text is None:
        return None
    value = evaluated(name, text, PUBLIC)
    if inspect.isclass(value) or inspect.isfunction(value):
        takes = inspect.signature(value).parameters
        with told(name, text):
            value = value(**{k: v for k, v in known.items() if k in takes})
    if not isinstance(value, kind):
        raise ValueError(f"{name} must name a {kind.__name__}, got {text!r}, which is {type(value).__name__}")
    return value


def eta_of(text: str, step: steps.Step) -> float:
    """That of the process that a step is taken on where none is said: 1 for a method of the reverse SDE, 0 for others.
    SA-Solver is one by its name alone: it is a `Multistep`, as methods of the flow are.
    """
    return float(step.noisy or text.partition("(")[0].strip().lower() == "sasolver")


def read_steps(o: Namespace) -> list[Method]:
    """The steps of your own, by what was typed after the module, and eta. Raises ValueError for a name in use."""
    found: list[Method] = []
    for text in o.step:
        step = read("step", text, steps.Step)
        eta = eta_of(text, step) if o.eta is None else o.eta
        name = (text.partition(":")[2] or text) + (f", eta {eta:g}" if eta else "")
        if name in (*steps.METHODS, *(method.name for method in found)):
            raise ValueError(f"step must have a name of its own, got {name!r}, which is in the table already")
        found.append(own(name, step, eta))
    return found


def read_data(text: str) -> data.Source:
    """A source of data: `digits`, `Ring(modes=5)`, a .npy, .npz, .csv or .parquet file, or a folder of MNIST's files,
    of CIFAR-10's, or of images.
    """
    path = Path(text)
    if path.suffix in (".npy", ".npz"):
        return data.Array(path)
    if path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv", ".parquet", ".pq")):
        return data.Table(path)
    if not path.is_dir():
        return read("data", text, data.Source)
    for at in (path, path / "raw", path / "MNIST" / "raw", path / "FashionMNIST" / "raw"):  # as torchvision keeps them
        if any(at.glob("train-images*ubyte*")):
            return data.Idx(at)
    if splits := sorted({f.name.split("-")[1] for f in path.glob("emnist-*-train-images*ubyte*")}):
        raise ValueError(f"data must say which split of EMNIST it is, of {', '.join(splits)}: Idx({text!r}, split=...)")
    batches = (path, path / "cifar-10-batches-bin", path / "cifar-10-batches-py")
    known = any((at / f"data_batch_1{end}").is_file() for at in batches for end in ("", ".bin"))
    return data.Cifar10(path) if known else data.Images(path)


def read_grid(text: str, **known: Any) -> Callable[..., Tensor]:
    """A usual grid, with its options: called as (sde, n, end)."""
    names = {k: partial(spacing) for k, spacing in grid.usual(**known).items()}
    name, bracket, options = text.partition("(")
    typed = f"partial({name}, {options}" if bracket else name
    found = evaluated("grid", typed, {**names, "partial": partial}) if name in names else None
    if not isinstance(found, partial):
        raise ValueError(f"grid must be one of {', '.join(names)}, got {text!r}")
    return found


def read_net(text: str | None, shape: tuple[int, ...], classes: int, classifier: bool = False) -> nn.Module:
    """A network for samples of that shape: a library's one with its options, or what a function of your own makes of
    (shape, classes); by the shape alone unless said, `training.usual_net`, or `usual_encoder` of a classifier.
    """
    if text is None:
        return (usual_encoder if classifier else usual_net)(shape, classes)
    own = (networks.MLPEncoder, networks.UNetEncoder) if classifier else SCORES
    made = {k: partial(v, shape, classes=classes) for k, v in public(networks).items() if v in own}
    net = evaluated("net", text, {**PUBLIC, **made})
    if not isinstance(net, nn.Module) and callable(net):
        with told("net", text):
            net = net() if isinstance(net, partial) else net(shape, classes)
    if not isinstance(net, nn.Module):
        raise ValueError(f"net must name what makes an nn.Module, got {text!r}, which is {type(net).__name__}")
    return net


@dataclass(frozen=True)
class Restoration:
    """A method for y = A x + noise, with the options that were typed."""

    name: str
    make: Any
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        said = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        return f"{self.name}({said})" if said else self.name

    def __call__(self, score: Any, seen: Any, step: steps.Step) -> tuple[Any, steps.Step]:
        """The score and the step to sample by, of which one is made anew. Raises ValueError where it is not made."""
        own: Any = self.make  # whose arguments are its own
        steps_itself = inspect.isclass(own) and issubclass(own, steps.Step)
        given = [seen] if _own_step(own) else [step if steps_itself else score, seen]
        try:
            made = own(*given, **self.options)
            if not callable(made):
                raise ValueError(f"it makes {made!r}")
        except Exception as error:
            raise ValueError(f"method must make a score of what was measured, got {self!r}: {error}") from error
        return (score, made) if steps_itself else (made, step)


def read_method(text: str) -> Restoration:
    """A method of `scoresde.inverse` with its options, or a function of your own of (score, seen), or a step of (step,
    seen) or of (seen) alone.
    """
    methods = {k: partial(_with_options, v) for k, v in methods_of_inverse_problems().items()}
    methods |= {k.lower(): v for k, v in methods.items()}
    if not own_module(text) and text.partition("(")[0].strip() not in methods:
        names = ", ".join(sorted({method.args[0].__name__ for method in methods.values()}))
        raise ValueError(f"method must be one of {names}, or package.module:function of (score, seen), got {text!r}")
    found = evaluated("method", text, {**PUBLIC, **methods})
    if isinstance(found, partial) and found.func is _with_options:
        return _with_options(*found.args)
    if isinstance(found, Restoration):
        return found
    if not callable(found):
        raise ValueError(f"method must name a function of (score, seen), got {text!r}, which is {found!r}")
    return Restoration(text, found)


def methods_of_inverse_problems() -> dict[str, Any]:
    """Those of `scoresde.inverse`, by their names."""
    return {k: v for k, v in public(inverse).items() if k == v.__name__ and _restores(v)}


def _restores(f: Any) -> bool:
    """Whether f takes a score, or a step, and what was measured, or as a step that alone, and needs nothing else."""
    needed = [p.name for p in inspect.signature(f).parameters.values() if p.default is p.empty]
    return needed in (["score", "seen"], ["step", "seen"]) or _own_step(f)


def _own_step(f: Any) -> bool:
    """Whether f is a class of steps that are made of what was measured alone."""
    needed = [p.name for p in inspect.signature(f).parameters.values() if p.default is p.empty]
    return inspect.isclass(f) and issubclass(f, steps.Step) and needed == ["seen"]


def _with_options(f: Callable[..., Any], *unnamed: Any, **options: Any) -> Restoration:
    if unnamed:
        raise ValueError(f"options must be named, as in diffpir(weight=2), got {unnamed[0]!r} for {f.__name__}")
    inspect.signature(f).bind(*[None] * (1 if _own_step(f) else 2), **options)
    return Restoration(f.__name__, f, options)


SCORES = (networks.MLP, networks.UNet, networks.DDPMpp, networks.NCSNpp)
PUBLIC = public(reference, model, problems, loss, networks, data, ode, likelihood, steps, process)
PUBLIC |= {"inf": math.inf, "Path": Path}
