"""`scoresde compare`: the laboratory's rows and samples in files, a run that goes on, a report that has every number,
and one line where something is wrong.
"""

import inspect
import json
import math
import random
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from made import Mine, network_calls, one_line

from scoresde import VE, VP, ScoreModel, Step, lab
from scoresde.checkpoint import Checkpoint, load, save
from scoresde.cli import compare as module
from scoresde.cli import main, options
from scoresde.cli.folder import JOURNAL, Journal
from scoresde.data import Ring
from scoresde.lab import (
    COMPARED,
    DigitClasses,
    Lattice,
    Modes,
    compare,
    energy_distance,
    exact_subject,
    orders,
    pages,
    sliced_wasserstein,
    solvers,
    trained_subject,
)
from scoresde.lab.pages import TITLES
from scoresde.nn import MLP
from scoresde.steps import METHODS
from scoresde.steps.catalogue import annealed_langevin, own, predictor_corrector
from scoresde.values import natural

N = 200


def quick(patch):
    """Without pictures, laws on a line and Brownian paths, which have tests of their own."""
    patch.setattr(pages, "curves", lambda diagrams, file, order: file.write_bytes(b"curves"))
    patch.setattr(module, "exact_rows", lambda sde, cells, *_: [{"method": m.name, "budget": k} for m, k in cells])
    patch.setattr(module, "density_paths", lambda *args: ())
    patch.setattr(pages, "_exactly", lambda *args: None)
    patch.setattr(pages, "side_by_side", lambda parts, file: file.write_bytes(b"clouds"))
    for home in (module, lab):
        patch.setattr(home, "paths", lambda *args: iter(()), raising=False)


@pytest.fixture
def fast(monkeypatch):
    quick(monkeypatch)


def compared(out, *args):
    assert main(["compare", *map(str, args), "--device", "cpu", "--out", str(out)]) == 0
    return rows(out)


def rows(out):
    lines = [natural(json.loads(line)) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("recipe", "seal")} for row in lines]


def samples(out, row):
    name = row["method"].lower().replace(",", "").replace(" ", "-")
    return torch.from_numpy(np.load(out / "samples" / f"{name}-{row['budget']}.npy"))


def without_seconds(found):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def are_of_the_laboratory(out, subject, methods, budgets, *args):
    """The rows and samples in `out` are those of `compare`, but for the seconds and the place of the samples."""
    want = list(compare(subject, [(m, k) for k in budgets for m in methods], *args))
    for row, (told, x) in zip(rows(out), want, strict=True):
        if "skipped" in row:
            assert row == told
            continue
        assert samples(out, row).equal(x) and (out / row["samples"]).is_file()
        told = {**told, "samples": row["samples"]}
        assert without_seconds([row]) == without_seconds([told])


ALL = [METHODS[name] for name in COMPARED]


@pytest.fixture(scope="module")
def modes(tmp_path_factory):
    """All samplers on eight Gaussians with two budgets."""
    out = tmp_path_factory.mktemp("compare") / "modes"
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        compared(out, "--n", N, "--nfe", 24, 12, 12)
    return out


@pytest.fixture(scope="module")
def subject():
    """What is compared there, once more."""
    return exact_subject(repr(Modes()), Modes().law(), VP(), N)


# rows


def test_rows_are_those_of_the_laboratory(modes, subject):
    """A row for each sampler and budget, in the order of the budgets; a budget that is given twice counts once."""
    found = rows(modes)
    assert [(row["method"], row["budget"]) for row in found] == [(name, k) for k in (12, 24) for name in COMPARED]
    assert len(list((modes / "samples").iterdir())) == len(found)
    are_of_the_laboratory(modes, subject, ALL, (12, 24))


@pytest.mark.parametrize(
    ("args", "sde", "law"),
    [
        (("--law", "lattice", "--sde", "VE(sigma_max=20)", "--grid", "uniform"), VE(0.01, 20), Lattice()),
        (("--law", "Modes(n=3)", "--grid", "karras", "--seed", "2"), VP(), Modes(3)),
        (("--grid", "reference", "--batch", "7", "--r", "0.3", "--corrections", "2"), VP(), Modes()),
    ],
)
def test_other_options(fast, tmp_path, args, sde, law):
    """The law, the process, the grid, the seed and the settings of the Langevin steps are those that were asked for."""
    compared(tmp_path, "--n", 20, "--nfe", 10, *args)
    told = {"--seed": "0", "--grid": "log_snr", "--batch": "4096", "--r": "0.16", "--corrections": "5"}
    told |= dict(zip(args[::2], args[1::2], strict=True))
    seed, batch = int(told["--seed"]), int(told["--batch"])
    given = {"Predictor-corrector": predictor_corrector(float(told["--r"]))}
    given["Annealed Langevin"] = annealed_langevin(int(told["--corrections"]))
    here = exact_subject(repr(law), law.law(), sde, 20, seed)
    are_of_the_laboratory(tmp_path, here, [given.get(m.name, m) for m in ALL], (10,), told["--grid"], seed, batch)


def test_budgets_that_are_too_small(capsys, fast, tmp_path):
    """Below what a sampler needs its row, a line, its cell and the end of the report say so; others have theirs."""
    least = {"Predictor-corrector": 2, "Predictor-corrector, MALA": 3, "Flow(Heun())": 2, "Annealed Langevin": 6}
    found = compared(tmp_path, "--n", 20, "--nfe", 1, 5, "--corrections", 3)
    said = [line for line in capsys.readouterr().out.splitlines() if "needs" in line]
    assert sorted(said) == sorted(
        f"{name} was not run with {budget} network calls: {name} needs at least {k} network calls, got {budget}"
        for name, k in least.items()
        for budget in (1, 5)
        if k > budget
    )
    assert {(row["method"], row["budget"]) for row in found if "skipped" not in row} == {
        (name, budget) for name in COMPARED for budget in (1, 5) if least.get(name, 1) <= budget
    }
    report = (tmp_path / "report.md").read_text()
    assert re.search(r"\| Predictor-corrector \| not run \| [^ |]+, 4 calls \|", report)
    assert "| Annealed Langevin | not run | not run |" in report and "17 of 22 cells were run; why" in report
    assert (
        report.count("needs at least") == len(said) and "Not run: Annealed Langevin: Annealed Langevin needs" in report
    )


@dataclass(frozen=True)
class Wild(Step):
    """A step to where there are no numbers."""

    def __call__(self, p, x, t, s, noise):
        return p.ask(x, t) * torch.nan


def test_what_diverges_stops_no_other(capsys, fast, tmp_path):
    """It is said, in its row and in the report, and is not run again; what others have is what they have without it."""
    args = ("--n", 20, "--nfe", 3)
    want = compared(tmp_path / "without", *args)
    found = compared(tmp_path / "with", *args, "--step", f"{__name__}:Wild")
    assert without_seconds(found[:-1]) == without_seconds(want)
    assert found[-1].keys() == {"method", "budget", "skipped"} and found[-1]["method"] == "Wild, eta 1"
    said = f"Wild, eta 1 was not run with 3 network calls: {found[-1]['skipped']}\n"
    assert "sample 0, of seed 0, is not finite" in said and said in capsys.readouterr().out
    assert "Wild, eta 1: sample 0, of seed 0, is not finite" in (tmp_path / "with" / "report.md").read_text()
    assert compared(tmp_path / "with", *args, "--step", f"{__name__}:Wild") == found
    assert said in capsys.readouterr().out


def test_where_all_diverge(capsys, fast, monkeypatch, tmp_path):
    """It is said of each, and one line says that there is nothing to report."""
    monkeypatch.setattr(module, "COMPARED", ())
    args = ["--n", "20", "--nfe", "3", "4", "--step", f"{__name__}:Wild", "--out", str(tmp_path)]
    assert main(["compare", *args]) == 2
    out, err = capsys.readouterr()
    assert out.count("was not run with") == 2 and err.endswith("scoresde: no sampler could be run\n")


# runs that go on


def test_again_and_with_more_budgets(modes, fast, tmp_path):
    """What is there is not made again, nor changed; a new budget adds lines, and those that are not asked for stay."""
    for name in ("results.jsonl", "recipe.json", ".files.jsonl"):
        (tmp_path / name).write_bytes((modes / name).read_bytes())
    (tmp_path / "samples").mkdir()
    for file in (modes / "samples").iterdir():
        (tmp_path / "samples" / file.name).write_bytes(file.read_bytes())
    before = contents(tmp_path)
    compared(tmp_path, "--n", N, "--nfe", 12, 24)
    after = contents(tmp_path)
    assert all(after[name] == before[name] for name in before)
    found = compared(tmp_path, "--n", N, "--nfe", 5)
    text = (tmp_path / "results.jsonl").read_bytes()
    assert text.startswith(before["results.jsonl"]) and {row["budget"] for row in found[22:]} == {5}
    grown = ("results.jsonl", ".files.jsonl")
    assert all(contents(tmp_path)[name] == before[name] for name in before if name not in grown)
    report = (tmp_path / "report.md").read_text()
    assert "| sampler | 5 calls |" in report


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
    args, real, made = ("--n", 20, "--nfe", 3), solvers.draw, []

    def draw(*values, **options):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(values)
        return real(*values, **options)

    want = compared(tmp_path / "whole", *args)
    with monkeypatch.context() as patch:
        patch.setattr(solvers, "draw", draw)
        assert main(["compare", *map(str, args), "--device", "cpu", "--out", str(tmp_path / "cut")]) == 130
    assert "goes on from what is there" in capsys.readouterr().err
    assert without_seconds(rows(tmp_path / "cut")) == without_seconds(want[:4])
    assert without_seconds(compared(tmp_path / "cut", *args)) == without_seconds(want)


class Network:
    """In place of a command's network, with every answer kept at once: what it was asked and has answered, in order;
    after `stop` answers the process is interrupted.
    """

    def __init__(self, patch):
        self.answered, self.stop, real, network = [], math.inf, Journal.__init__, self

        class Asked:
            def __init__(self, score):
                self.score = score

            def __getattr__(self, name):
                return getattr(self.__dict__["score"], name)

            def __call__(self, x, t):
                if len(network.answered) >= network.stop:
                    raise KeyboardInterrupt
                said = self.score(x, t)
                network.answered.append((x.detach().cpu().numpy().tobytes(), torch.as_tensor(t).tolist()))
                return said

        patch.setattr(Journal, "PATIENCE", -1.0)
        patch.setattr(Journal, "__init__", lambda self, score, folder: real(self, Asked(score), folder))

    def cuts(self, most, times, seed=0):
        """Numbers of answers, 7 and random ones, in order: each is where the process is interrupted; none after."""
        for self.stop in (7, *sorted(random.Random(seed).sample(range(8, most), times))):
            yield self.stop
        self.stop = math.inf


def interrupted(network, whole, out, call, times, seed=0, begun="results.jsonl"):
    """A command called again and again until it is done; the numbers of the rows that were cut off in their middle,
    those before the file `begun` was there not counted.
    """
    cells = set()
    for cut in network.cuts(len(whole.answered), times, seed):
        assert call() == 130
        assert len(network.answered) == cut
        if (out / JOURNAL).is_file() and (out / begun).is_file():
            cells.add(len(rows(out)))
    assert call() == 0
    return sorted(cells)


@pytest.mark.parametrize("seed", range(2))
def test_interrupted_at_any_network_call(capsys, fast, monkeypatch, tmp_path, seed):
    """Rows and samples are those of a run that was not stopped; the network has answered what it answers there, each
    question once and in that order; the seconds of what was cut off are not known, those of the others are.
    """
    args = ["compare", "--n", "20", "--nfe", "3", "12", "--batch", "8", "--device", "cpu", "--out"]
    with monkeypatch.context() as patch:
        whole = Network(patch)
        assert main([*args, str(tmp_path / "whole")]) == 0
    network, out = Network(monkeypatch), tmp_path / "cut"
    cells = interrupted(network, whole, out, lambda: main([*args, str(out)]), 6, seed)
    assert (network.answered == whole.answered) is True  # without the difference, which is long
    found, want = rows(out), rows(tmp_path / "whole")
    assert without_seconds(found) == without_seconds(want)
    for row in found:
        assert "skipped" in row or samples(out, row).equal(samples(tmp_path / "whole", row))
    unknown = [n for n, row in enumerate(found) if math.isnan(row.get("seconds", 0.0))]
    assert cells and unknown == cells
    assert all(row["seconds"] > 0 for n, row in enumerate(found) if "seconds" in row and n not in unknown)
    assert not (out / JOURNAL).exists()


@pytest.mark.parametrize("left", [0.05, 0.5, 0.95])
def test_answers_that_were_cut_off(fast, monkeypatch, tmp_path, left):
    """An answer of which a part was written is none, also to a run after the one that found it."""
    args = ["compare", "--n", "20", "--nfe", "3", "30", "--device", "cpu", "--out"]
    monkeypatch.setattr(module, "COMPARED", ("DDIM",))
    with monkeypatch.context() as patch:
        Network(patch)
        assert main([*args, str(tmp_path / "whole")]) == 0
    network, out = Network(monkeypatch), tmp_path / "cut"
    sizes = []
    for network.stop in (12, 13):  # the tenth of the second row is the one that is cut
        assert main([*args, str(out)]) == 130
        sizes.append((out / JOURNAL).stat().st_size)
    with (out / JOURNAL).open("r+b") as file:
        file.truncate(sizes[0] + int(left * (sizes[1] - sizes[0])))
    for network.stop in (23, math.inf):
        assert main([*args, str(out)]) == (130 if network.stop == 23 else 0)
    assert rows(out)[1]["energy_distance"] == rows(tmp_path / "whole")[1]["energy_distance"]
    assert samples(out, rows(out)[1]).equal(samples(tmp_path / "whole", rows(out)[1]))
    assert len(network.answered) == 33 + 1


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (("--seed", "1"), "seed"),
        (("--n", "21"), "n"),
        (("--grid", "uniform"), "grid"),
        (("--r", "0.2"), "r"),
        (("--corrections", "2"), "corrections"),
        (("--law", "lattice"), "subject"),
        (("--law", "Modes(n=3)"), "subject"),
        (("--sde", "ve"), "sde"),
    ],
)
def test_other_options_in_the_same_folder(capsys, fast, tmp_path, more, key):
    """Rows of another seed, law, process or sampler are not put beside these: one line, and the folder stays."""
    compared(tmp_path, "--n", 20, "--nfe", 3)
    before = contents(tmp_path)
    capsys.readouterr()
    args = ["compare", "--nfe", "3", "--out", str(tmp_path), *([] if "--n" in more else ["--n", "20"])]
    assert main([*args, *more]) == 2
    assert f"out holds results with {key} = " in one_line(capsys)
    assert contents(tmp_path) == before


# the report


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
    found = tables((modes / "report.md").read_text())
    assert list(found) == [TITLES[key] for key in subject.measures]
    for key, measure in subject.measures.items():
        head, _, *body, floor = found[TITLES[key]]
        assert head == ["sampler", "12 calls", "24 calls"] and [line[0] for line in body] == list(COMPARED)
        for row in rows(modes):
            line = body[COMPARED.index(row["method"])]
            made = network_calls(row["method"], row["budget"])
            fewer = f", {made} calls" if made != row["budget"] else ""
            assert line[1 + (12, 24).index(row["budget"])] == f"{row[key]:.3g}{fewer}"
        fresh = [measure(x) for x in subject.fresh]
        assert floor == ["real samples", f"{np.mean(fresh):.3g} +- {np.std(fresh, ddof=1):.2g}", ""]


@pytest.mark.slow
def test_digit_classes(tmp_path):
    """Images too, with pictures and paths: the rows are the laboratory's, and the slopes of the ODE those of its
    methods.
    """
    law = DigitClasses(8)
    compared(tmp_path, "--n", 30, "--nfe", 10, "--law", "DigitClasses(rank=8)")
    are_of_the_laboratory(tmp_path, exact_subject(repr(law), law.law(), VP(), 30), ALL, (10,))
    paths = {row["name"]: row for row in map(json.loads, (tmp_path / "paths.jsonl").read_text().splitlines())}
    assert abs(float(paths["Flow(Heun())"]["strong_slope"].split()[0]) - 2) < 0.3
    assert abs(float(paths["DDIM"]["strong_slope"].split()[0]) - 1) < 0.15
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


# a step of one's own


def test_ones_own_stands_in_the_table(modes, subject, fast, tmp_path):
    """Named by its module and class: with the rows and samples that the functions give it, on the process of --eta,
    beside ours, which are what they are without it.
    """
    found = compared(tmp_path, "--n", N, "--nfe", 12, "--step", f"{__name__}:Mine", "--eta", 0)
    assert [row["method"] for row in found] == [*COMPARED, "Mine"]
    assert without_seconds(found[:-1]) == without_seconds(row for row in rows(modes) if row["budget"] == 12)
    are_of_the_laboratory(tmp_path, subject, [*ALL, own("Mine", Mine(), 0.0)], (12,))
    assert (found[-1]["nfe"], found[-1]["eta"], found[-1]["steps"]) == (12, 0.0, ["Mine(w=0.5)"])
    heun = next(row for row in found if row["method"] == "Flow(Heun())")
    torch.testing.assert_close(samples(tmp_path, found[-1]), samples(tmp_path, heun), rtol=1e-4, atol=1e-5)
    report = tables((tmp_path / "report.md").read_text())
    for key in subject.measures:
        assert [line[0] for line in report[TITLES[key]][2:]] == [*COMPARED, "Mine", "real samples"]


def test_ones_own_on_two_processes(fast, tmp_path):
    """In one folder the rows of one eta are not taken for those of another, and a name may hold a fraction."""
    step = ("--n", 20, "--nfe", 6, "--step", f"{__name__}:Mine(1/2)")
    compared(tmp_path, *step)
    found = {row["method"]: row for row in compared(tmp_path, *step, "--eta", 0)}
    assert (found["Mine(1/2), eta 1"]["eta"], found["Mine(1/2)"]["eta"]) == (1, 0)
    assert all((tmp_path / row["samples"]).is_file() for row in found.values() if "skipped" not in row)


# a checkpoint


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """A small network on a toy in the plane."""
    folder = tmp_path_factory.mktemp("ring") / "model"
    small = ("--steps", "60", "--warmup", "10", "--net", "MLP(width=16, depth=1)")
    assert main(["train", "Ring(n=150)", *small, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(ring, tmp_path_factory):
    """It, compared, with pictures and paths."""
    out = tmp_path_factory.mktemp("trained")
    compared(out, ring, "--nfe", 8)
    return out


def of(folder, *args):
    """The subject that a checkpoint is."""
    return trained_subject(load(folder).model, Ring(n=150).load(), *args)


def test_checkpoint(ring, trained):
    """The rows and samples are the laboratory's; the folder says which checkpoint they are of; the last call removes
    the noise, and is counted; distances are to the held-out data, of which there are as many.
    """
    found, held = [row for row in rows(trained) if "skipped" not in row], Ring(n=150).load().held_out
    assert [row["method"] for row in rows(trained)] == list(COMPARED)
    assert [row["method"] for row in found] == [name for name in COMPARED if name != "Annealed Langevin"]
    assert json.loads((trained / "recipe.json").read_text())["subject"] == load(ring).digest
    are_of_the_laboratory(trained, of(ring), ALL, (8,))
    for row in found:
        assert row["denoise"] and row["n"] == len(held) == 30
        assert row["nfe"] == network_calls(row["method"], 7) + 1 <= 8
        x = samples(trained, row)
        assert row["sliced_wasserstein"] == pytest.approx(sliced_wasserstein(x, held), rel=1e-9)
        assert row["energy_distance"] == pytest.approx(energy_distance(x, held), rel=1e-9)


def test_report_of_a_checkpoint(ring, trained):
    """Pictures are there and inside the one file; the floor is that of training data; slopes are fits to the errors
    that stand beside them.
    """
    report, page = (trained / "report.md").read_text(), (trained / "report.html").read_text()
    for name in ("laws.png", "gaussians.png", "densities.png", "distances.png", "samples.png", "paths.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG") and f"]({name})" in report
    assert page.count("data:image/png;base64,") == 6
    train, held = Ring(n=150).load().train, Ring(n=150).load().held_out
    for title, distance in (
        (TITLES["sliced_wasserstein"], sliced_wasserstein),
        (TITLES["energy_distance"], energy_distance),
    ):
        floor = [distance(part, held) for part in train.split(30)]
        assert len(floor) == 4
        assert tables(report)[title][-1] == ["real samples", f"{np.mean(floor):.3g} +- {np.std(floor, ddof=1):.2g}"]
    paths = [json.loads(line) for line in (trained / "paths.jsonl").read_text().splitlines()]
    _, _, *lines = tables_of_paths(report)
    assert [line[0] for line in lines] == [path["name"] for path in paths] and len(paths) == 8
    for line, path in zip(lines, paths, strict=True):
        h = -np.log(path["steps"])
        assert line[1:] == [path["strong_slope"], path["weak_slope"]]
        value, low, high = map(float, re.findall(r"-?\d+\.\d\d", line[1]))
        assert value == pytest.approx(np.polyfit(h, np.log(path["strong"]), 1)[0], abs=0.006) and low <= value <= high


@pytest.fixture
def four_paths(monkeypatch):
    """Four paths, and no pictures."""
    real = module.paths
    quick(monkeypatch)
    monkeypatch.setattr(module, "paths", real)
    monkeypatch.setattr(module, "COMPARED", ("DDIM",))
    monkeypatch.setattr(orders, "REVERSED", ("DDPM, fixed-small", "EulerMaruyama"))
    monkeypatch.setattr(orders, "FLOWING", ("DDIM", "Flow(Euler())"))


def paths_of(out):
    return (out / "paths.jsonl").read_bytes()


def test_paths_grow_row_by_row(four_paths, monkeypatch, tmp_path, ring):
    """Interrupted at any of them, those before it are there, and they are neither made again nor changed."""
    args, made = ["compare", str(ring), "--nfe", "3", "--n", "10", "--device", "cpu", "--out"], []
    real, stops = orders.path_errors, ()

    def errors(process, step, *more):
        made.append(repr(step))
        if len(made) - 1 in stops:
            raise KeyboardInterrupt
        return real(process, step, *more)

    monkeypatch.setattr(orders, "path_errors", errors)
    assert main([*args, str(tmp_path / "whole")]) == 0
    lines, steps, out = paths_of(tmp_path / "whole").splitlines(keepends=True), made[:], tmp_path / "cut"
    assert len(lines) == len(steps) == 4
    made.clear()
    stops = (0, 3, 5)  # the first, the third and the fourth of them, those before begun twice
    for there in (0, 2, 3):
        assert main([*args, str(out)]) == 130
        assert paths_of(out) == b"".join(lines[:there])
    assert main([*args, str(out)]) == 0
    assert paths_of(out) == b"".join(lines)
    assert made == [*steps[:1], *steps[:3], *steps[2:], *steps[3:]]
    made.clear()
    assert main([*args, str(out)]) == 0
    assert not made and paths_of(out) == b"".join(lines)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_paths_interrupted_at_any_network_call(four_paths, monkeypatch, tmp_path, ring, elsewhere):
    """They are those of a run that was not stopped, and the network has answered each question once; also where the
    states lie on another device, so that answers are told by their order and their time.
    """
    if elsewhere:
        monkeypatch.setattr(Journal, "_question", lambda self, x, t: f"{tuple(x.shape)} {torch.as_tensor(t).tolist()}")
    args = ["compare", str(ring), "--nfe", "3", "--n", "10", "--device", "cpu", "--out"]
    with monkeypatch.context() as patch:
        whole = Network(patch)
        assert main([*args, str(tmp_path / "whole")]) == 0
    network, out = Network(monkeypatch), tmp_path / "cut"
    network.stop = len(whole.answered) - 3 * 60  # in the second path
    assert main([*args, str(out)]) == 130 and 0 < len(paths_of(out).splitlines()) < 4
    network.stop = len(whole.answered) - 60
    assert main([*args, str(out)]) == 130 and len(network.answered) == network.stop
    network.stop = math.inf
    assert main([*args, str(out)]) == 0
    assert paths_of(out) == paths_of(tmp_path / "whole")
    assert (network.answered == whole.answered) is True


def tables_of_paths(report):
    """The cells of the table of slopes, which has a paragraph above it."""
    lines = re.search(r"^\| discretisation .*\n(?:\|.*\n)+", report, re.M)[0].splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines]


def test_checkpoint_on_another_process(fast, tmp_path, ring):
    """The network read on another process than its own: its score is transported there."""
    compared(tmp_path, ring, "--nfe", 6, "--n", 10, "--sde", "VE(sigma_max=20)")
    are_of_the_laboratory(tmp_path, of(ring, VE(0.01, 20), 10), ALL, (6,))


def test_all_budgets_too_small(capsys, fast, tmp_path, ring):
    """One call removes the noise and none is left: one line, and status 2."""
    assert main(["compare", str(ring), "--nfe", "1", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert err == "scoresde: nfe must pay for one sampler at least, got 1\n"
    assert not out
    assert not (tmp_path / "results.jsonl").exists()
    compared(tmp_path, ring, "--nfe", 4, "--seed", 3)  # the folder was not claimed


def test_checkpoint_of_own_data(capsys, tmp_path):
    """A checkpoint that does not say what data it is of cannot be compared with them."""
    save(tmp_path / "model", Checkpoint(ScoreModel(MLP((2,), 4, 1), VP()), (2,)))
    assert main(["compare", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 2
    assert "data must be given, --data FILE or FOLDER: the checkpoint does not say" in one_line(capsys)


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
    "grid": ("--grid random", "--grid"),
    "law": ("--law cats", "law must be like VP() or package.module:Name, got 'cats'"),
    "no law": ("--law vp", "law must name a Problem"),
    "no modes": ("--law Modes(n=0)", "n must"),
    "flat modes": ("--law Modes(std=0)", "std must"),
    "thin lattice": ("--law Lattice(side=1)", "side must"),
    "rank": ("--law DigitClasses(rank=64)", "rank must"),
    "process": ("--sde VP(beta_min=30)", "beta_max must"),
    "no process": ("--sde modes", "sde must name a LinearSDE"),
    "a step that is there": ("--step DDIM --eta 0", "step must have a name of its own"),
    "a step with times of its own": ("--step GottaGoFast", "step must make as many network calls in every interval"),
    "no step": ("--step nowhere:Step", "step must be like"),
    "seed": ("--seed -1", "seed must"),
    "device": ("--device cuda:99", "device must"),
    "no model": ("NONE", "checkpoint must"),
    "a law beside a model": ("RING --law modes", "law must not be given beside a model"),
    "many samples": ("RING --n 121", "n must be at most 120"),
    "too noisy": ("RING --sde VE(sigma_max=500)", "target reaches"),
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
    """--help-all tells what the command does and has every option."""
    assert main(["compare", "--help-all"]) == 0
    said = capsys.readouterr().out
    assert re.sub(r"\s", "", inspect.getdoc(options.compare)) in re.sub(r"\s", "", said)
    for name in ("nfe", "n", "grid", "law", "sde", "step", "eta", "r", "corrections", "batch", "seed", "device", "out"):
        assert f"--{name}" in said
    assert all(name in said for name in ("Modes(n=8)", "lattice", "digitclasses"))
