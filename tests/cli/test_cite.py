"""`scoresde cite`: what a run rests on, by its folder or as it is typed."""

import json
import re

import pytest

from scoresde import VP, UniPC, citation
from scoresde.cli import main


def keys(capsys, *args):
    assert main(["cite", *map(str, args)]) == 0
    return re.findall(r"@\w+\{([\w-]+),", capsys.readouterr().out)


def test_what_is_typed(capsys):
    """The library's `citation` of the same, and of nothing the package alone."""
    assert main(["cite", "UniPC(3)", "vp"]) == 0
    assert capsys.readouterr().out == citation(UniPC(3), VP())
    assert keys(capsys) == ["scoresde"]
    assert keys(capsys, "Dopri5") == ["scoresde", "dormand-prince-1980"]


def test_what_a_folder_tells(capsys, tmp_path):
    """Of a checkpoint its process and parametrisation, of samples how they were drawn, of a fit the file."""
    trained = keys(capsys, "digits-vp")
    assert {"scoresde", "karras-et-al-2022", "song-et-al-2021"} <= {*trained} and "zhao-et-al-2023" not in trained
    line = ["sample", "digits-vp", "--n", "2", "--steps", "2", "--eta", "1", "--grid", "uniform", "--out"]
    assert main([*line, str(tmp_path / "a"), "--step", "Langevin", "--step", "ReverseDiffusion"]) == 0
    capsys.readouterr()
    assert keys(capsys, tmp_path / "a") == ["scoresde", "song-et-al-2021"]
    recipe = tmp_path / "a" / "recipe.json"
    recipe.write_text(json.dumps({"solver": ["(DDRM(), __import__('os'), Churn(step=None))"]}))
    assert keys(capsys, tmp_path / "a") == ["scoresde", "karras-et-al-2022"]


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ({"guidance": 2.0}, "ho-salimans-2022"),
        ({"guidance": 2.0, "classifier": "0a"}, "dhariwal-nichol-2021"),
        ({"temperature": 0.8}, "ingraham-et-al-2023"),
        ({"method": "DPS(zeta=2.0)"}, "chung-et-al-2023"),
        ({"method": "pigdm"}, "song-vahdat-mardani-kautz-2023"),
        ({"guidance": None, "method": "none"}, None),
    ],
)
def test_what_the_options_of_a_run_rest_on(capsys, tmp_path, recipe, key):
    """Guidance, temperature and the method of an inverse problem, where the recipe says them."""
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert keys(capsys, tmp_path)[1:2] == ([key] if key else [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "used must be like VP() or package.module:Name, got 'nothing'"),
        ("3", "used must be steps, processes or other parts of scoresde, got 3"),
        ("EMPTY", "used must be the folder of a checkpoint or of results, or a part such as UniPC(3), got"),
        ("DAMAGED", "recipe.json is damaged"),
    ],
)
def test_what_is_nothing(capsys, tmp_path, text, said):
    """One line that names what was typed."""
    for name in ("EMPTY", "DAMAGED"):
        (tmp_path / name).mkdir()
    (tmp_path / "DAMAGED" / "recipe.json").write_text("{")
    assert main(["cite", str(tmp_path / text) if text.isupper() else text]) == 2
    out, err = capsys.readouterr()
    assert not out and said in err and len(err.splitlines()) == 1
