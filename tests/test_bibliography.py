"""What is cited: every part rests on works of the table, or is the project's own, and every work is of some part."""

import importlib
import inspect
import re

import pytest
import torch

import scoresde
from scoresde import VE, VP, Ancestral, Flow, Langevin, Reference, Step, exact, ode, transport
from scoresde.bibliography import citation, cited, works, works_in
from scoresde.guide import classifier_free
from scoresde.likelihood import Hutchinson, Quadrature
from scoresde.steps import (
    DEIS,
    IPNDM,
    LMS,
    PNDM,
    SNR,
    DPMSolver,
    DPMSolverPP,
    EDMHeun,
    EqualSteps,
    GaussianReference,
    SASolver,
    UniPC,
)  # fmt: skip

WINGS = ("process", "steps", "likelihood", "guide", "edit", "inverse", "interop", "loss", "grid", "model", "ode")
MORE = ("noise", "brownian")
"""Others whose docstrings name works."""
METHODS = ("process", "steps", "likelihood", "guide", "edit", "inverse")

OWN = (
    "GaussianReference Multistep SingleStep TwoStage Renoised Tuned Tuning Error Pilots tune distance Rising FullOrder "
    "Staged AsNeeded Adaptive captured round_trip importance log_evidence posterior prior_mismatch encode decode "
    "RungeKutta conditioned"
)
"""The project's own methods and results."""
MADE_OF = (
    "StartUp StepSize Tableau Integrator Guided Levels Memory Flow Constant Known Method Tallied Average Blur Function "
    "Grey Linear Map Mask Matrix Measurement Observation Particles"
)
"""Base classes and what others are made of: no methods."""


def parts(*wings):
    """The public classes and functions of modules, by their names."""
    found = {}
    for wing in wings:
        home = importlib.import_module(f"scoresde.{wing}")
        here = [k for k, v in vars(home).items() if getattr(v, "__module__", "") == home.__name__]
        for name in getattr(home, "__all__", None) or [k for k in here if not k.startswith("_")]:
            value = getattr(home, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found[f"{wing}.{name}"] = value
    return found


def keys(*used):
    return set().union(*map(cited, used))


def test_every_method_is_cited():
    """Each public process, step and method rests on a work of the table, or is listed with a reason not to; and no more
    are listed.
    """
    listed = {*OWN.split(), *MADE_OF.split()}
    bare = {name.partition(".")[2] for name, part in parts(*METHODS).items() if not cited(part)}
    assert bare == listed
    steps = {name for name, part in parts("steps").items() if inspect.isclass(part) and issubclass(part, Step)}
    assert len(steps) >= 15


def test_every_work_is_used():
    """Each entry of the table is named by the docstring of some public part, or of its module."""
    assert keys(*parts(*WINGS, *MORE).values()) == works().keys()


def test_every_work_that_is_named_is_there():
    """When the names of works in the table are taken out of the docstrings, no year of another one is left."""
    for name, part in parts(*WINGS, *MORE).items():
        for text in (inspect.getdoc(part), importlib.import_module(part.__module__).__doc__):
            left = text or ""
            for key in works_in(left):
                words = r"[\s,.()&-]+(?:and\s+)?".join(map(re.escape, key.split("-")))
                left = re.sub(rf"\b{words}\b", "", left, flags=re.IGNORECASE)
            assert not re.search(r"\b(19|20)\d\d[a-d]?\b", left), (name, left)


def fields(entry):
    """The kind, the key and the fields of an entry of BibTeX."""
    kind, key = re.match(r"@(\w+)\{([\w-]+),\n", entry).groups()
    return kind, key, dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.M))


def entries(text):
    return [e.strip() + "\n" for e in re.split(r"(?m)^(?=@)", text) if e.strip()]


NEEDED = {
    "article": {"journal"}, "inproceedings": {"booktitle"}, "book": {"publisher"}, "misc": {"howpublished"},
}  # fmt: skip


def test_entries_are_of_bibtex():
    """Each has the fields of its kind, in balanced braces and ASCII; its key ends in the year and begins with the first
    author; and no two are of one title.
    """
    every, titles = entries(citation(*parts(*WINGS, *MORE).values())), []
    assert [fields(e)[1] for e in every] == ["scoresde", *works()]
    for entry in every:
        kind, key, said = fields(entry)
        assert {"author", "title", "year"} | NEEDED[kind] <= said.keys() and all(said.values())
        assert entry.isascii() and len(said) == len(re.findall(r"(?m)^  \w+ = ", entry))
        for value in (*said.values(), entry):
            depth = [value[:k].count("{") - value[:k].count("}") for k in range(len(value) + 1)]
            assert min(depth) == 0 and depth[-1] == 0
        titles.append(said["title"].lower())
        if key != "scoresde":
            plain = re.sub(r"\\.\s?|[{}]", "", said["author"].split(" and ")[0]).lower().replace("-", " ")
            first = key.split("-")[0]
            assert re.fullmatch(rf".*-{said['year']}[a-d]?", key) and first in plain, key
            assert ("-et-al-" in key) <= (said["author"].count(" and ") >= 2 or "others" in said["author"])
        if "eprint" in said:
            assert re.fullmatch(r"\d{4}\.\d{5}|\d{4}\.\d{4}", said["eprint"])
            assert 0 <= int(said["year"]) - 2000 - int(said["eprint"][:2]) <= 2
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("as in Song et al. (2021, eq. 7)", "song-et-al-2021"),
        ("(Song, Meng & Ermon 2021)", "song-meng-ermon-2021"),
        ("(Song, Meng and\nErmon 2021)", "song-meng-ermon-2021"),
        ("of Song et al. 2021b, theorem 1", "song-et-al-2021b"),
        ("Dhariwal & Nichol 2021", "dhariwal-nichol-2021"),
        ("Nichol and Dhariwal (2021)", "nichol-dhariwal-2021"),
        ("de Boor 1973", "de-boor-1973"),
    ],
)
def test_names_of_works(text, key):
    """A work is known by the words that it is named by, and is not taken for another of like names."""
    assert works_in(text) == [key]


def test_what_a_value_rests_on():
    """A method that is a member of a family is known by its numbers, and what a value is made of is cited with it."""
    around = Reference(std=0.5)
    assert {"zhao-et-al-2023"} <= cited(UniPC(3)) and "xue-et-al-2023" not in cited(UniPC(3))
    assert "xue-et-al-2023" in cited(SASolver()) and "zhao-et-al-2023" not in cited(SASolver())
    assert "lu-et-al-2022b" in cited(DPMSolverPP(3)) and "lu-et-al-2022a" in cited(DPMSolver(3))
    assert cited(PNDM()) == {"liu-et-al-2022", "zhang-chen-2023"}
    assert "liu-et-al-2022" in cited(IPNDM(4, EqualSteps())) and cited(LMS()) == cited(DEIS()) == {"zhang-chen-2023"}
    assert "karras-et-al-2022" in cited(EDMHeun(10.0)) and "song-meng-ermon-2021" in cited(Ancestral())
    assert not {"zhao-et-al-2023", "xue-et-al-2023"} & cited(GaussianReference(around))
    assert cited(Langevin(SNR())) == {"song-et-al-2021"} and cited(Flow(ode.Tsit5())) == {"tsitouras-2011"}
    assert "grathwohl-et-al-2019" in cited(Quadrature(trace=Hutchinson(2)))


def test_what_a_score_rests_on():
    """A process backwards is cited with the guidance of its score, through whatever the score is wrapped in."""
    law = exact.Gaussian(torch.zeros(2), torch.ones(2))
    score = transport(classifier_free(lambda x, t, label=None: law.diffuse(VP())(x, t), 2.0), VP(), VE())
    found = cited(VE().reverse(score))
    assert {"anderson-1982", "song-et-al-2021", "ho-salimans-2022", "kynkaanniemi-et-al-2024"} <= found
    assert "ho-salimans-2022" not in cited(VE().reverse(law.diffuse(VE())))


def test_a_step_of_ones_own():
    """What its docstring names is cited if it is in the table; if it names nothing, the package alone."""

    class Mine(Step):
        """After Karras et al. (2022) and Nobody et al. (1999)."""

        def __call__(self, p, x, t, s, noise):
            return x

    class Silent(Mine):
        pass

    assert cited(Mine()) == cited(Silent()) == {"karras-et-al-2022"}
    assert [fields(e)[1] for e in entries(citation(Mine()))] == ["scoresde", "karras-et-al-2022"]


def test_the_package_comes_first():
    """Also alone, in its version; and each work once, however often it was used."""
    assert [fields(e)[1] for e in entries(citation())] == ["scoresde"]
    assert f"version {scoresde.__version__}" in citation()
    found = [fields(e)[1] for e in entries(citation(VP(), VP(), VE(), Ancestral))]
    assert found[0] == "scoresde" and len(set(found)) == len(found) and found[1:] == sorted(found[1:])


@pytest.mark.parametrize("value", [3, "UniPC", None, object(), torch.zeros(2), len])
def test_what_is_no_part(value):
    """Anything else is refused by one error."""
    with pytest.raises(ValueError, match="used must be steps, processes or other parts of scoresde, got "):
        citation(VP(), value)
