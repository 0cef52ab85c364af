"""`scoresde compare`: true counts, rows that can be made again, and distances that are what they say."""

import json
import math
import re

import numpy as np
import pytest
import torch

import scoresde
from scoresde import VE, VP, Ancestral, exact, grid, iid, ode, per_sample, sample, transport
from scoresde.ancestral import AnalyticDPM
from scoresde.checkpoint import load
from scoresde.cli import compare as module
from scoresde.cli import main
from scoresde.cli.compare import TITLES, Compare
from scoresde.cli.contenders import exact_subject, methods, trained_subject
from scoresde.data import Ring
from scoresde.metrics import energy_distance, sliced_wasserstein
from scoresde.nn import MLP
from scoresde.noise import seeds
from scoresde.problems import DigitClasses, Lattice, Modes

F64 = torch.float64
NAMES = [m.name for m in methods(0.16, 5)]
N = 200
PUBLIC = {**vars(scoresde), **vars(ode)}


def network_calls(name, budget):
    """As many as fit: two an interval of the predictor-corrector and of Heun, five a level of Langevin dynamics."""
    each = {"Predictor-corrector": 2, "Probability-flow ODE, Heun": 2, "Annealed Langevin": 5}.get(name, 1)
    return budget // each * each


def quick(patch):
    """Without pictures and Brownian paths, which have tests of their own."""
    patch.setattr(module, "curves", lambda diagrams, file: file.write_bytes(b"curves"))
    patch.setattr(module, "side_by_side", lambda parts, file: file.write_bytes(b"clouds"))
    patch.setattr(module, "_convergence", lambda paths, out, r: None)
    patch.setattr(Compare, "_paths", lambda self, subject, device: {})


@pytest.fixture
def fast(monkeypatch):
    quick(monkeypatch)


def compared(out, *args):
    assert main(["compare", *map(str, args), "--device", "cpu", "--out", str(out)]) == 0
    return rows(out)


def rows(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def samples(out, row):
    name = row["method"].lower().replace(",", "").replace(" ", "-")
    return torch.from_numpy(np.load(out / "samples" / f"{name}-{row['budget']}.npy"))


def without_seconds(found):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def one_line(capsys):
    """The only line on standard error."""
    err = capsys.readouterr().err
    assert err.startswith("scoresde: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.fixture(scope="module")
def modes(tmp_path_factory):
    """All samplers on eight Gaussians with two budgets, and how often the score was asked for how many points."""
    out, asked, real = tmp_path_factory.mktemp("compare") / "modes", [], exact.Diffused.__call__

    def call(self, x, t):
        asked.append(len(x))
        return real(self, x, t)

    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        patch.setattr(exact.Diffused, "__call__", call)
        compared(out, "--n", N, "--nfe", 24, 12, 12)
    return out, asked


@pytest.fixture(scope="module")
def subject():
    """What is compared there, once more."""
    return exact_subject("x", Modes().law(), VP(), N, 0, torch.device("cpu"))


# counts


def test_a_row_for_each_sampler_and_budget(modes):
    """Each once, in the order of the budgets; a budget that is given twice counts once."""
    found = rows(modes[0])
    assert [(row["method"], row["budget"]) for row in found] == [(name, k) for k in (12, 24) for name in NAMES]
    assert len(list((modes[0] / "samples").iterdir())) == len(found)


def test_network_calls_are_true(modes):
    """nfe is what the sampler's formula says, never above the budget, and all of them together are the calls that the
    score got, with those to fit variances, which are told apart.
    """
    out, asked = modes
    found = rows(out)
    for row in found:
        assert row["nfe"] == network_calls(row["method"], row["budget"]) <= row["budget"]
        assert row["nfe_to_fit"] == (row["budget"] if row["method"] == "DDPM ancestral, optimal" else 0)
    assert asked.count(N) == sum(row["nfe"] for row in found)
    assert asked.count(1000) == sum(row["nfe_to_fit"] for row in found)
    assert len(asked) == asked.count(N) + asked.count(1000)


def test_budgets_that_are_too_small(capsys, fast, tmp_path):
    """Below what a sampler needs there is one line on it, no row and an empty cell; the others have theirs."""
    least = {"Predictor-corrector": 2, "Probability-flow ODE, Heun": 2, "Annealed Langevin": 6}
    found = compared(tmp_path, "--n", 20, "--nfe", 1, 5, "--corrections", 3)
    said = [line for line in capsys.readouterr().out.splitlines() if "needs" in line]
    assert sorted(said) == sorted(
        f"{name} needs at least {k} network calls, so there is no row of it at {budget}"
        for name, k in least.items()
        for budget in (1, 5)
        if k > budget
    )
    assert {(row["method"], row["budget"]) for row in found} == {
        (name, budget) for name in NAMES for budget in (1, 5) if least.get(name, 1) <= budget
    }
    report = (tmp_path / "report.md").read_text()
    assert re.search(r"\| Predictor-corrector \|  \| [^ |]+ \|", report) and "| Annealed Langevin |" not in report


# the numbers do not depend on how they were made


def test_batches_do_not_show(modes, fast, tmp_path):
    """The same seed gives the same samples and the same numbers in batches of 64."""
    for a, b in zip(rows(modes[0]), compared(tmp_path, "--n", N, "--nfe", 12, "--batch", 64)):
        torch.testing.assert_close(samples(tmp_path, b), samples(modes[0], a), rtol=1e-4, atol=1e-5)
        for key in a.keys() - {"seconds"}:
            assert b[key] == (pytest.approx(a[key], rel=1e-3, abs=1e-5) if isinstance(a[key], float) else a[key]), key


def test_another_seed_gives_other_samples(modes, fast, tmp_path):
    """Of every sampler; from the same law, so that their means agree within 5 standard errors."""
    for a, b in zip(rows(modes[0]), compared(tmp_path, "--n", N, "--nfe", 12, "--seed", 1)):
        x, y = samples(modes[0], a), samples(tmp_path, b)
        assert not torch.isclose(x, y).all(1).any() and b["seed"] == 1
        error = ((x.var(0) + y.var(0)) / N).sqrt()
        assert ((x.mean(0) - y.mean(0)).abs() < 5 * error).all()


def test_again_and_with_more_budgets(modes, fast, tmp_path):
    """What is there is not made again, nor changed; a new budget adds lines, and those that are not asked for stay."""
    for file in modes[0].iterdir():
        if file.name in ("results.jsonl", "recipe.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "samples").mkdir()
    for file in (modes[0] / "samples").iterdir():
        (tmp_path / "samples" / file.name).write_bytes(file.read_bytes())
    before = contents(tmp_path)
    compared(tmp_path, "--n", N, "--nfe", 12, 24)
    after = contents(tmp_path)
    assert all(after[name] == before[name] for name in before)
    found = compared(tmp_path, "--n", N, "--nfe", 5)
    text = (tmp_path / "results.jsonl").read_bytes()
    assert text.startswith(before["results.jsonl"]) and {row["budget"] for row in found[20:]} == {5}
    assert all(contents(tmp_path)[name] == before[name] for name in before if name != "results.jsonl")
    report = (tmp_path / "report.md").read_text()
    assert "| network calls | 5 |" in report


@pytest.mark.parametrize("cut", [1, 2, 30, 10_000])
def test_a_line_that_was_cut_off(fast, tmp_path, cut):
    """A last line without its end is made again, wherever it ends, and the others are kept as they are."""
    whole = compared(tmp_path, "--n", 20, "--nfe", 3)
    lines = (tmp_path / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines)[: -min(cut, len(lines[-1]))])
    again = compared(tmp_path, "--n", 20, "--nfe", 3)
    assert without_seconds(again) == without_seconds(whole)
    assert (tmp_path / "results.jsonl").read_bytes().startswith(b"".join(lines[:-1]))


def test_interrupted(capsys, fast, monkeypatch, tmp_path):
    """Stopped after any row, it goes on from there, and ends with the rows of a run that was not stopped."""
    args, real, made = ("--n", 20, "--nfe", 3), Compare._row, []

    def row(self, method, *rest):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(method.name)
        return real(self, method, *rest)

    want = compared(tmp_path / "whole", *args)
    with monkeypatch.context() as patch:
        patch.setattr(Compare, "_row", row)
        assert main(["compare", *map(str, args), "--device", "cpu", "--out", str(tmp_path / "cut")]) == 130
    assert without_seconds(rows(tmp_path / "cut")) == without_seconds(want[:4])
    assert without_seconds(compared(tmp_path / "cut", *args)) == without_seconds(want)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (("--seed", "1"), "seed"),
        (("--n", "21"), "n"),
        (("--spacing", "uniform"), "spacing"),
        (("--r", "0.2"), "r"),
        (("--corrections", "2"), "corrections"),
        (("law:lattice",), "subject"),
        (("law:modes", "--law.n", "3"), "subject"),
        (("sde:ve",), "sde"),
    ],
)
def test_other_options_in_the_same_folder(capsys, fast, tmp_path, more, key):
    """Rows of another seed, law, process or sampler are not put beside these: one line, and the folder stays."""
    (tmp_path / "recipe.json").write_text(
        json.dumps({
            "subject": "Modes(n=8, std=0.05)", "sde": {"class": "VP", "beta_min": 0.1, "beta_max": 20.0},
            "n": 20, "seed": 0, "spacing": "log_snr", "r": 0.16, "corrections": 5,
        })
    )  # fmt: skip
    (tmp_path / "results.jsonl").write_text('{"method": "DDIM", "budget": 7}\n')
    before = contents(tmp_path)
    args = ["compare", "--nfe", "3", "--out", str(tmp_path), *([] if "--n" in more else ["--n", "20"])]
    assert main([*args, *more]) == 2
    assert f"out holds results with {key} = " in one_line(capsys)
    assert contents(tmp_path) == before


# rows are recipes


def rebuilt(row, score, sde, shape):
    """The samples, from nothing but a row, the score and public names."""
    assert repr(sde) == row["sde"]
    ts = eval(row["grid"], {"grid": grid, "sde": sde})
    steps = [eval(step, dict(PUBLIC)) for step in row["steps"]]
    noise, p = per_sample(seeds(row["seed"], row["n"])), sde.reverse(score, row["eta"])
    x = sample(p, sde.prior((row["n"], *shape), noise, torch.float32), ts, *steps, noise=noise)
    with torch.no_grad():
        return p.denoise(x, ts[-1]) if row["denoise"] else x


def test_rows_are_recipes(modes):
    """The samples of every row whose steps are values follow from it, to 1e-6."""
    law, k = Modes().law(), 0
    for row in rows(modes[0]):
        assert row["subject"] == repr(Modes()) and not row["denoise"]
        if row["method"] != "DDPM ancestral, optimal":
            x = rebuilt(row, law.diffuse(VP()), eval(row["sde"], dict(PUBLIC)), (2,))
            scale = float(x.abs().max())
            torch.testing.assert_close(samples(modes[0], row), x, rtol=0, atol=1e-6 * max(1.0, scale))
            k += 1
    assert k == 2 * (len(NAMES) - 1)


def test_the_steps_of_the_literature(modes):
    """Which steps a row names, and with which eta; the optimal variance is that of `AnalyticDPM` fitted on its grid."""
    found = {row["method"]: row for row in rows(modes[0]) if row["budget"] == 12}
    steps = {name: row["steps"] for name, row in found.items()}
    assert steps["DDPM ancestral, fixed-small"] == steps["DDIM"] == [repr(Ancestral(0.0))]
    assert steps["DDPM ancestral, fixed-large"] == [repr(Ancestral(1.0))]
    assert {name for name, row in found.items() if row["eta"] == 0} == {"DDIM", "Probability-flow ODE, Heun"}
    corrector, _ = (eval(step, dict(PUBLIC)) for step in steps["Predictor-corrector"])
    (langevin,) = (eval(step, dict(PUBLIC)) for step in steps["Annealed Langevin"])
    p, t, z = VP().reverse(Modes().law().diffuse(VP())), torch.tensor(0.3, dtype=F64), torch.zeros(1, 2)
    assert float(corrector.step_size(p, t, z, z)) == pytest.approx(2 * 0.16**2 * float(VP().var(t)), rel=1e-12)
    assert (corrector.n, langevin.n) == (1, 5)
    assert [row["grid"] for name, row in found.items() if name == "Annealed Langevin"] == ["grid.log_snr(sde, 1)"]


def test_optimal_variance(modes, subject):
    """Its samples are those of `AnalyticDPM` fitted to 1000 points of the law."""
    row = next(row for row in rows(modes[0]) if row["method"] == "DDPM ancestral, optimal")
    p, ts, noise = VP().reverse(subject.score), grid.log_snr(VP(), 12), per_sample(seeds(0, N))
    assert subject.x_0.shape == (1000, 2)
    step = AnalyticDPM.fit(p, subject.x_0, ts, iid(torch.Generator().manual_seed(0)))
    x = sample(p, VP().prior((N, 2), noise, torch.float32), ts, step, noise=noise)
    torch.testing.assert_close(samples(modes[0], row), x, rtol=0, atol=1e-6)


# what is measured


def test_measures_are_of_the_samples(modes, subject):
    """Distances are the library's, to draws from the exact law at t_min; the log-density is less -entropy, in closed
    form where modes are apart, up to the 100,000 draws that it is measured with; weights are shares of the modes.
    """
    v = 0.05**2 * float(VP().alpha(VP().t_min)) ** 2 + float(VP().sigma(VP().t_min)) ** 2
    centres = Modes().law().means * VP().alpha(VP().t_min)
    level = -math.log(8) - 1 - math.log(2 * math.pi * v)
    for row in rows(modes[0]):
        x = samples(modes[0], row)
        square = (x.double()[:, None] - centres).square().sum(2)
        log_p = (-square / (2 * v)).logsumexp(1) - math.log(8 * 2 * math.pi * v)
        assert row["log_density_gap"] == pytest.approx(float(log_p.mean()) - level, abs=4.5 / math.sqrt(100_000))
        if row["method"] != "Annealed Langevin":  # far off, a sample may belong to two modes
            shares = torch.bincount(square.argmin(1), minlength=8) / N
            assert row["mode_weights"] == pytest.approx(float((shares - 1 / 8).abs().sum() / 2), abs=5e-3)
        for key in ("sliced_wasserstein", "energy_distance"):
            assert row[key] == pytest.approx(subject.measures[key](x), rel=1e-9)
    truth = subject.fresh[0]
    assert abs(subject.measures["log_density_gap"](truth)) < 4.5 / math.sqrt(N)
    assert min(subject.measures[k](truth) for k in ("sliced_wasserstein", "energy_distance")) > 0


def test_fresh_samples_are_of_the_law(subject):
    """The floor: eight sets of n draws, none of them the truth itself, each with the law's second moment at t_min."""
    a, v = float(VP().alpha(VP().t_min)), float(VP().var(torch.tensor(VP().t_min, dtype=F64)))
    assert len(subject.fresh) == 8 and all(x.shape == (N, 2) for x in subject.fresh) and subject.n == N
    every = torch.cat(subject.fresh)
    assert len(every.unique(dim=0)) == 8 * N
    square = every.square().sum(1)
    want = a**2 * (1 + 2 * 0.05**2) + 2 * v
    assert abs(float(square.mean()) - want) < 4.5 * float(square.std()) / math.sqrt(8 * N)


def tables(report):
    """heading -> the cells of the table below it."""
    parts = re.findall(r"^## (.*?)\n\n((?:\|.*\n)+)", report, re.M)
    return {
        title: [[c.strip() for c in line.strip("|\n").split("|")] for line in body.splitlines()]
        for title, body in parts
    }


def test_the_report_has_every_number(modes, subject):
    """Each measure has a table: a column a budget, a row a sampler with the numbers of results.jsonl, and last the
    floor, mean and standard deviation over fresh samples.
    """
    found = tables((modes[0] / "report.md").read_text())
    assert list(found) == [TITLES[key] for key in subject.measures]
    for key, measure in subject.measures.items():
        head, _, *body, floor = found[TITLES[key]]
        assert head == ["network calls", "12", "24"] and [line[0] for line in body] == NAMES
        for row in rows(modes[0]):
            line = body[NAMES.index(row["method"])]
            assert line[1 + (12, 24).index(row["budget"])] == f"{row[key]:.3g}"
        fresh = [measure(x) for x in subject.fresh]
        assert floor == ["real samples", f"{np.mean(fresh):.3g} +- {np.std(fresh, ddof=1):.2g}", ""]


@pytest.mark.slow
def test_samplers_come_close_to_the_law(fast, tmp_path):
    """With 160 calls DDIM, all three DDPM and Heun are as far from the law as real samples are, within 4 standard
    deviations of that. From the same points DDIM goes where Heun goes: its distance to Heun's end, sample by sample,
    falls with order 1.
    """
    n, law = 1000, ("sliced_wasserstein", "energy_distance", "mode_weights")
    found = {(row["method"], row["budget"]): row for row in compared(tmp_path, "--n", n, "--nfe", 40, 80, 160)}
    fresh = exact_subject("x", Modes().law(), VP(), n, 0, torch.device("cpu"))
    heun, close = "Probability-flow ODE, Heun", [name for name in NAMES if name.startswith("DDPM")]
    for key in law:
        floor = [fresh.measures[key](x) for x in fresh.fresh]
        for name in (*close, "DDIM", heun):
            assert abs(found[name, 160][key] - np.mean(floor)) < 4 * np.std(floor, ddof=1), (name, key)
    end = samples(tmp_path, found[heun, 160])
    off = [float((samples(tmp_path, found["DDIM", k]) - end).norm(dim=1).median()) for k in (40, 80, 160)]
    assert off[0] / off[1] == pytest.approx(2, rel=0.3) and off[1] / off[2] == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("args", "sde", "law", "shape"),
    [
        (("law:lattice", "sde:ve", "--sde.sigma-max", "20", "--spacing", "uniform"), VE(0.01, 20.0), Lattice(), (2,)),
        (("law:modes", "--law.n", "3", "--spacing", "karras"), VP(), Modes(3), (2,)),
    ],
)
def test_other_laws_and_processes(fast, tmp_path, args, sde, law, shape):
    """The law, the process and the grid are those that were asked for."""
    for row in compared(tmp_path, "--n", 20, "--nfe", 10, *args):
        assert row["subject"] == repr(law) and f"grid.{args[args.index('--spacing') + 1]}(" in row["grid"]
        if row["method"] != "DDPM ancestral, optimal":
            x = rebuilt(row, law.law().diffuse(sde), sde, shape)
            torch.testing.assert_close(samples(tmp_path, row), x, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_digit_classes(tmp_path):
    """Images too, with pictures and paths: the rows are recipes, and the slopes of the ODE those of its methods."""
    law = DigitClasses(8)
    for row in compared(tmp_path, "--n", 30, "--nfe", 10, "law:digit-classes", "--law.rank", "8"):
        if row["method"] != "DDPM ancestral, optimal":
            x = rebuilt(row, law.law().diffuse(VP()), VP(), (1, 8, 8))
            torch.testing.assert_close(samples(tmp_path, row), x, rtol=1e-4, atol=1e-4)
    paths = json.loads((tmp_path / "paths.json").read_text())
    assert abs(float(paths["Probability-flow ODE, Heun"]["strong_slope"].split()[0]) - 2) < 0.3
    assert abs(float(paths["DDIM"]["strong_slope"].split()[0]) - 1) < 0.15
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


# a checkpoint


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """A small network on a toy in the plane."""
    folder = tmp_path_factory.mktemp("ring") / "model"
    small = ("--steps", "60", "--warmup", "10", "net:mlp", "--net.width", "16", "--net.depth", "1")
    assert main(["train", "data:ring", "--data.n", "150", *small, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(ring, tmp_path_factory):
    """It, compared, with pictures and paths."""
    out = tmp_path_factory.mktemp("trained")
    compared(out, ring, "--nfe", 8)
    return out


def test_checkpoint(ring, trained):
    """The samples are those of the network, from the rows; the last call removes the noise, and is counted; distances
    are to the held-out data, of which there are as many.
    """
    found, held = rows(trained), Ring(n=150).load().held_out
    assert [row["method"] for row in found] == [name for name in NAMES if name != "Annealed Langevin"]
    for row in found:
        assert row["denoise"] and row["n"] == len(held) == 30 and load(ring).digest[:12] in row["subject"]
        assert row["nfe"] == network_calls(row["method"], 7) + 1 <= 8
        x = samples(trained, row)
        if row["method"] != "DDPM ancestral, optimal":
            torch.testing.assert_close(x, rebuilt(row, load(ring).model, VP(), (2,)), rtol=1e-5, atol=1e-5)
        assert row["sliced_wasserstein"] == pytest.approx(sliced_wasserstein(x, held), rel=1e-9)
        assert row["energy_distance"] == pytest.approx(energy_distance(x, held), rel=1e-9)


def test_network_is_called_as_often_as_is_told(fast, monkeypatch, tmp_path, ring):
    """nfe and nfe_to_fit are all the calls that the network gets, in each of the batches."""
    made, real = [], MLP.forward

    def forward(self, x, *args, **kwargs):
        made.append(len(x))
        return real(self, x, *args, **kwargs)

    monkeypatch.setattr(MLP, "forward", forward)
    found = compared(tmp_path, ring, "--nfe", 12, "--batch", 13)
    assert len(found) == len(NAMES)
    for size in (13, 13, 4):
        assert made.count(size) == sum(row["nfe"] for row in found) * (13, 13, 4).count(size)
    assert made.count(120) == sum(row["nfe_to_fit"] for row in found) == 11
    assert len(made) == made.count(13) + made.count(4) + made.count(120)


def test_report_of_a_checkpoint(ring, trained):
    """Pictures are there and inside the one file; the floor is that of training data; slopes are fits to the errors
    that stand beside them.
    """
    report, page = (trained / "report.md").read_text(), (trained / "report.html").read_text()
    for name in ("distances.png", "samples.png", "paths.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG") and f"]({name})" in report
    assert page.count("data:image/png;base64,") == 3
    train, held = Ring(n=150).load().train, Ring(n=150).load().held_out
    for title, distance in (
        (TITLES["sliced_wasserstein"], sliced_wasserstein),
        (TITLES["energy_distance"], energy_distance),
    ):
        floor = [distance(part, held) for part in train.split(30)]
        assert len(floor) == 4
        assert tables(report)[title][-1] == ["real samples", f"{np.mean(floor):.3g} +- {np.std(floor, ddof=1):.2g}"]
    paths, (_, _, *lines) = json.loads((trained / "paths.json").read_text()), tables_of_paths(report)
    assert [line[0] for line in lines] == list(paths)
    for line, path in zip(lines, paths.values()):
        h = -np.log(path["steps"])
        assert line[1:] == [path["strong_slope"], path["weak_slope"]]
        value, low, high = map(float, re.findall(r"-?\d+\.\d\d", line[1]))
        assert value == pytest.approx(np.polyfit(h, np.log(path["strong"]), 1)[0], abs=0.006) and low <= value <= high


def tables_of_paths(report):
    """The cells of the table of slopes, which has a paragraph above it."""
    lines = re.search(r"^\| discretisation .*\n(?:\|.*\n)+", report, re.M)[0].splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines]


def test_checkpoint_on_another_process(fast, tmp_path, ring):
    """The network read on another process than its own: its score is transported there."""
    sde = VE(0.01, 20.0)
    score = transport(load(ring).model, VP(), sde)
    for row in compared(tmp_path, ring, "--nfe", 6, "--n", 10, "sde:ve", "--sde.sigma-max", "20"):
        if row["method"] != "DDPM ancestral, optimal":
            x = rebuilt(row, score, sde, (2,))
            torch.testing.assert_close(samples(tmp_path, row), x, rtol=1e-4, atol=1e-4)


def test_all_budgets_too_small(capsys, fast, tmp_path, ring):
    """One call removes the noise and none is left: a line for each sampler, one for the error, and status 2."""
    assert main(["compare", str(ring), "--nfe", "1", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert err == "scoresde: nfe must pay for one sampler at least, got 1\n"
    least = {"Predictor-corrector": 3, "Probability-flow ODE, Heun": 3, "Annealed Langevin": 11}
    said = [f"{n} needs at least {least.get(n, 2)} network calls, so there is no row of it at 1" for n in NAMES]
    assert out.splitlines() == said
    assert not (tmp_path / "results.jsonl").exists()
    compared(tmp_path, ring, "--nfe", 4, "--seed", 3)  # the folder was not claimed


def test_trained_subject_of_own_data(tmp_path):
    """A checkpoint that does not say what data it is of cannot be compared with them."""
    from scoresde import ScoreModel
    from scoresde.checkpoint import Checkpoint, save

    save(tmp_path, Checkpoint(ScoreModel(MLP((2,), 4, 1), VP()), (2,)))
    with pytest.raises(ValueError, match="^model must be a checkpoint that says what data it was trained on"):
        trained_subject(tmp_path, None, None, 0, torch.device("cpu"))


# bad input

BAD = {
    "no calls": ("--nfe 0", "nfe must be a whole number >= 1"),
    "negative": ("--nfe 20 -5", "nfe must be a whole number >= 1"),
    "half a call": ("--nfe 2.5", "--nfe"),
    "one sample": ("--n 1", "n must be a whole number >= 2"),
    "no batch": ("--batch 0", "batch must"),
    "no ratio": ("--r 0", "r must"),
    "large ratio": ("--r 0.8", "r must"),
    "no corrections": ("--corrections 0", "corrections must"),
    "spacing": ("--spacing random", "--spacing"),
    "law": ("law:cats", "law:cats"),
    "no modes": ("law:modes --law.n 0", "n must"),
    "flat modes": ("law:modes --law.std 0", "std must"),
    "thin lattice": ("law:lattice --law.side 1", "side must"),
    "rank": ("law:digit-classes --law.rank 64", "rank must"),
    "process": ("sde:vp --sde.beta-min 30", "beta_max must"),
    "seed": ("--seed -1", "seed must"),
    "device": ("--device cuda:99", "device must"),
    "no model": ("NONE", "checkpoint must"),
    "many samples": ("RING --n 121", "n must be at most 120"),
    "too noisy": ("RING sde:ve --sde.sigma-max 500", "target reaches"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(capsys, tmp_path, ring, case):
    """One line on standard error that names what is wrong, status 2, and no file."""
    line, said = BAD[case]
    places = {"NONE": tmp_path / "none", "RING": ring}
    out = tmp_path / "out"
    args = [str(places.get(word, word)) for word in line.split()]
    assert main(["compare", "--out", str(out), *args]) == 2
    assert said in one_line(capsys)
    assert not out.exists() or not contents(out)


def test_help(capsys):
    """--help tells what the command does and has every option."""
    assert main(["compare", "--help"]) == 0
    said = capsys.readouterr().out
    squeezed = re.sub(r"[\s│]", "", said)
    assert re.sub(r"\s", "", Compare.__doc__.split("\n\n")[0]) in squeezed
    for name in ("nfe", "n", "spacing", "r", "corrections", "batch", "seed", "device", "out"):
        assert f"--{name}" in said
    assert all(f"law:{name}" in said for name in ("modes", "lattice", "digit-classes"))
