"""Units of data: what a network sees is of one size, and what a user reads is in the units that the data came in."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import Quantized, load
from scoresde.cli import main
from scoresde.data import Array, Dataset, split
from scoresde.units import Units

F64 = torch.float64


def numbers(n, *shape, seed=0):
    """Samples whose features differ in mean and deviation by orders."""
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    size = 10.0 ** torch.arange(-2, shape[0] - 2, dtype=F64).view(-1, *(1,) * (len(shape) - 1))
    return size * (x + 3)


@given(st.sampled_from([(3,), (2, 5), (1, 4, 4), (2, 2, 3, 2)]), st.integers(0, 9))
def test_there_and_back(shape, seed):
    """Features of mean 0 and deviation 1, and the same numbers again; the volume is the determinant of the map."""
    x = numbers(50, *shape, seed=seed)
    units = Units.fit(x)
    y = units.standardise(x)
    rows = y.transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(shape[0], dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows.var(1, correction=0), torch.ones(shape[0], dtype=F64), rtol=1e-12, atol=0)
    torch.testing.assert_close(units.restore(y), x, rtol=1e-12, atol=1e-12)
    jacobian = torch.autograd.functional.jacobian(lambda v: units.restore(v[None])[0], y[0])
    volume = torch.linalg.slogdet(jacobian.reshape(x[0].numel(), -1)).logabsdet
    assert units.log_volume(shape) == pytest.approx(float(volume), rel=1e-12, abs=1e-12)


def test_a_constant_feature_keeps_its_size():
    x = torch.cat([numbers(20, 1), torch.full((20, 1), 7.0, dtype=F64)], 1)
    units = Units.fit(x)
    assert units.std[1] == 1 and units.mean[1] == 7 and (units.standardise(x)[:, 1] == 0).all()


def test_data_in_other_units():
    """Of a model that was trained elsewhere; of its own; and of none."""
    x = numbers(40, 3)
    own, other = Units.fit(x[:30]), Units((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    data = Dataset(own.standardise(x[:30]), own.standardise(x[30:]), units=own)
    assert data.in_units(own) is data
    torch.testing.assert_close(data.in_units(other).held_out, other.standardise(x[30:]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(data.in_units(None).train, x[:30], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(data.in_units(None).in_units(other).train, other.standardise(x[:30]))
    assert len({d.digest for d in (data, data.in_units(other), data.in_units(None))}) == 3


def test_arrays_of_any_offset(tmp_path):
    """What float32 cannot tell apart as it is, it can in units of its own."""
    a = 1e9 + np.random.RandomState(0).randn(100, 2)
    np.save(tmp_path / "a.npy", a)
    with pytest.raises(ValueError, match="float32 can tell apart"):
        Array(tmp_path / "a.npy", standardise=False).load()
    data = Array(tmp_path / "a.npy", held_out=0.2).load()
    back = torch.cat([data.units.restore(part.double()) for part in (data.train, data.held_out)])
    assert len(data.held_out) == 20
    np.testing.assert_allclose(sorted(back[:, 0]), sorted(a[:, 0]), rtol=0, atol=1e-6)
    assert data.train.mean(0).abs().max() < 1e-5


SMALL = ("--steps", "60", "--warmup", "10", "--net", "MLP(width=16, depth=1)", "--seed", "3")


def told(folder, data, *args):
    """The rows of a likelihood, and samples."""
    out = [folder.with_name(f"{folder.name}-{kind}") for kind in ("likelihood", "samples")]
    assert main(["likelihood", str(folder), "--data", data, "--terms", "4", "--out", str(out[0]), *args]) == 0
    assert main(["sample", str(folder), "--n", "20", "--out", str(out[1])]) == 0
    rows = [json.loads(line) for line in (out[0] / "likelihood.jsonl").read_text().splitlines()]
    return rows, json.loads((out[0] / "summary.json").read_text()), np.load(out[1] / "samples.npy")


def test_standardised_here_or_by_hand(tmp_path):
    """One training; likelihoods that differ by the volume, and samples by the map; and the units are kept."""
    a = numbers(60, 3).numpy()
    np.save(tmp_path / "a.npy", a)
    here = Array(tmp_path / "a.npy", held_out=0.2)
    units = here.load().units
    by_hand = units.standardise(torch.from_numpy(a)).numpy()
    np.save(tmp_path / "b.npy", by_hand)
    for name in "ab":
        source = f"Array(Path({str(tmp_path / name)!r} + '.npy'), held_out=0.2{', standardise=False' * (name == 'b')})"
        assert main(["train", source, *SMALL, "--out", str(tmp_path / name)]) == 0
    assert load(tmp_path / "a").units == units and load(tmp_path / "b").units is None
    (rows, summary, x), (plain, plain_summary, y) = (
        told(tmp_path / name, f"Array(Path({str(tmp_path / name)!r} + '.npy'), held_out=0.2{more})")
        for name, more in (("a", ""), ("b", ", standardise=False"))
    )
    volume = units.log_volume((3,))
    assert abs(volume) > 3 and len(rows) == 12
    for row, bare in zip(rows, plain):
        assert row["log_p"] == pytest.approx(bare["log_p"] - volume, abs=1e-5)
        for key in ("nats_per_dim", "continuous_bound", "discrete_bound"):
            assert row[key] == pytest.approx(bare[key] + volume / 3, abs=1e-5)
        assert row["solver_error"] == pytest.approx(bare["solver_error"], abs=1e-6)
    for found, bare in zip(summary["table"], plain_summary["table"]):
        assert found["mean"] == pytest.approx(bare["mean"] + volume / 3, abs=1e-6)
    np.testing.assert_allclose(x, units.restore(torch.from_numpy(y)).numpy(), rtol=1e-5, atol=1e-4)
    # other data are measured in the units of the model, not in their own: the same samples are held out of these
    a[split(60, 0.2, 0)[0]] *= 1.5
    np.save(tmp_path / "c.npy", a)
    again = tmp_path / "again"
    others = f"Array(Path({str(tmp_path / 'c.npy')!r}), held_out=0.2)"
    assert main(["likelihood", str(tmp_path / "a"), "--data", others, "--terms", "0", "--out", str(again)]) == 0
    lines = (again / "likelihood.jsonl").read_text().splitlines()
    for row, line in zip(rows, lines, strict=True):
        assert json.loads(line)["log_p"] == pytest.approx(row["log_p"], abs=1e-4)


def test_samples_keep_their_digits(tmp_path):
    """Of data far from 0, which float32 would round to one number."""
    np.save(tmp_path / "a.npy", 1.7e9 + 10 * np.random.RandomState(0).randn(200, 2))
    assert main(["train", str(tmp_path / "a.npy"), *SMALL, "--out", str(tmp_path / "m")]) == 0
    assert main(["sample", str(tmp_path / "m"), "--n", "50", "--out", str(tmp_path / "s")]) == 0
    x = np.load(tmp_path / "s" / "samples.npy")
    assert x.dtype == np.float64 and len(np.unique(x[:, 0])) == 50 and 1 < x[:, 0].std() < 100


def test_pictures_of_continuous_images(tmp_path):
    """From black to white, whatever units the pixels have."""
    from PIL import Image

    np.save(tmp_path / "a.npy", 1000 + 300 * np.random.RandomState(0).randn(40, 1, 6, 6))
    net = ("--net", "UNet(width=4, blocks=1)", "--steps", "20", "--warmup", "5")
    assert main(["train", str(tmp_path / "a.npy"), *net, "--out", str(tmp_path / "m")]) == 0
    assert main(["sample", str(tmp_path / "m"), "--n", "9", "--out", str(tmp_path / "s")]) == 0
    grey = np.asarray(Image.open(tmp_path / "s" / "samples.png").convert("L"))
    assert len(np.unique(grey)) > 30 and np.load(tmp_path / "s" / "samples.npy").mean() > 500


def test_columns_are_known_by_their_names(tmp_path, capsys):
    """Another table whose columns are in another order is refused; and what another split of the same file holds out is
    told to have been trained on.
    """
    rng = np.random.RandomState(0)
    rows = np.stack([rng.randn(80), 2 + rng.rand(80)], 1)
    for name, order in (("ab", (0, 1)), ("ba", (1, 0))):
        lines = [",".join("ab"[k] for k in order), *(",".join(repr(float(row[k])) for k in order) for row in rows)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    assert main(["train", str(tmp_path / "ab.csv"), *SMALL, "--out", str(tmp_path / "m")]) == 0

    def measured(data, out):
        capsys.readouterr()
        args = ["--data", data, "--n", "4", "--terms", "0", "--out", str(tmp_path / out)]
        return main(["likelihood", str(tmp_path / "m"), *args]), capsys.readouterr().err

    assert (
        measured(str(tmp_path / "ab.csv"), "0")[0] == 0 and "warning" not in measured(str(tmp_path / "ab.csv"), "1")[1]
    )
    status, said = measured(str(tmp_path / "ba.csv"), "2")
    assert status == 2 and "data must have the columns of the model, ('a', 'b'), in their order, got ('b', 'a')" in said
    status, said = measured(f"Table({str(tmp_path / 'ab.csv')!r}, seed=1)", "3")
    assert status == 0 and "holds out may be among that" in said


X = numbers(10, 2)
ONE = Units((0.0, 0.0), (1.0, 1.0))


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: Units((), ()), "mean must be a number for each feature"),
        (lambda: Units((0.0,), (0.0,)), "std must be a finite number > 0"),
        (lambda: Units((0.0, 1.0), (1.0,)), "std must have a number for each of the 2 means"),
        (lambda: Units((math.nan,), (1.0,)), "mean must be a finite number"),
        (lambda: ONE.restore(torch.zeros(3, 4)), "x must have 2 features"),
        (lambda: Dataset(X, X[:0], units=Units((0.0,), (1.0,))), "units must be of the 2 features"),
        (lambda: Dataset(X, X[:0], columns=("a",)), "columns must name the 2 columns"),
        (lambda: Dataset(X, X[:0], units=3), "units must be those of continuous data"),
        (lambda: Dataset(X.sign(), X[:0], quantized=Quantized(3, -1.0, 1.0), units=ONE), "units must be those of cont"),
        (lambda: Dataset(X.sign(), X[:0], quantized=Quantized(3, -1.0, 1.0)).in_units(ONE), "units must be None"),
    ],
)
def test_bad_units_are_refused_by_name(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_grey_levels_as_floats_are_refused(tmp_path):
    """Which would be trained on as continuous numbers of deviation 80."""
    np.save(tmp_path / "a.npy", np.random.RandomState(0).randint(0, 256, (10, 1, 4, 4)).astype(np.float32))
    with pytest.raises(ValueError, match=r"a\.npy must hold whole numbers if these are grey levels.* uint8"):
        Array(tmp_path / "a.npy").load()
