"""What several tests are made of: steps of one's own, equations, and what a command says."""

import importlib.util
import math
import sys
import types
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st

from scoresde import Step

F64 = torch.float64


@contextmanager
def benchmark(name):
    """A file or a folder of `benchmarks`, which is no part of the package, as a module."""
    at = Path(__file__).parents[1] / "benchmarks" / name
    at = at / "__init__.py" if at.is_dir() else at.with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, at)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    yield loaded
    for part in [key for key in sys.modules if key.partition(".")[0] == name]:
        del sys.modules[part]


def one_line(capsys):
    """The only line on standard error."""
    err = capsys.readouterr().err
    assert err.startswith("scoresde: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def network_calls(name, budget):
    """As many as fit: two an interval of the predictor-corrector and of Heun, five a level of Langevin dynamics."""
    each = {"Predictor-corrector": 2, "Predictor-corrector, MALA": 3, "Flow(Heun())": 2, "Annealed Langevin": 5}.get(
        name, 1
    )
    return budget // each * each


@dataclass(frozen=True)
class Mine(Step):
    """Heun's method on the flow, by hand: two network calls a step."""

    w: float = 0.5

    def __call__(self, p, x, t, s, noise):
        h = float(s - t)
        first = p.drift(x, t)
        second = p.drift(x + h * first, s)
        return x + h * ((1 - self.w) * first + self.w * second)


class Broken(Step):
    """A step that diverges."""

    def __call__(self, p, x, t, s, noise):
        raise RuntimeError("the drift of sample 0 is not finite")


class Wild(Step):
    """A step to where there are no numbers."""

    def __call__(self, p, x, t, s, noise):
        return p.ask(x, t) * math.nan


def tableau(pair):
    """(A, b, c, b - b_hat) of the seven stages, the last of which is taken at the new point."""
    A = torch.zeros(7, 7, dtype=F64)
    for i, row in enumerate(pair.a):
        A[i + 1, : i + 1] = torch.tensor(row, dtype=F64)
    return A, A[6], torch.tensor((0.0, *pair.c), dtype=F64), torch.tensor(pair.e, dtype=F64)


def stiff(t, y):
    """y' = -k (y - cos t) - sin t, with k in the last column: y -> cos t at the rate k."""
    k = y[:, -1:]
    return torch.cat([-k * (y[:, :-1] - t[:, None].cos()) - t[:, None].sin(), 0 * k], 1)


def stiff_start():
    k = torch.tensor([0.1, 300.0, 3.0, 40.0, 3.0], dtype=F64)
    return torch.stack([2 + 0 * k, -1 + 0 * k, k], 1)


def damaged(file, data):
    """Cut a file off at a byte that hypothesis draws, or change that byte: where, whether it is cut, what is left."""
    content = bytearray(file.read_bytes())
    k, cut = data.draw(st.integers(0, len(content) - 1)), data.draw(st.booleans())
    if cut:
        content = content[:k]
    else:
        content[k] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(content))
    return k, cut, content


def of_k_diffusion(name):
    """A module of k-diffusion, without the package around it, which asks for more than is used: of its helpers one."""
    spec, alias = importlib.util.find_spec("k_diffusion"), "_k_diffusion_alone"
    if spec is None:
        pytest.skip("k-diffusion is not installed")
    if alias not in sys.modules:
        package, utils = types.ModuleType(alias), types.ModuleType(f"{alias}.utils")
        package.__path__ = list(spec.submodule_search_locations)
        utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
        package.utils = utils
        sys.modules[alias], sys.modules[utils.__name__] = package, utils
    return importlib.import_module(f"{alias}.{name}")
