"""Values of options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgesparse.commands import common
from edgesparse.errors import UsageError

Run = Callable[..., tuple[int, str, str]]


def test_shapes_are_read() -> None:
    assert common.read_shapes(["x:1x3x224X224", "a:b:7"]) == {"x": (1, 3, 224, 224), "a:b": (7,)}


@pytest.mark.parametrize(
    "text", ["x", "x:", ":1x2", "x:1x", "x:0x3", "x:-1", "x:1x2.5", "x:" + "9" * 30, "x:" + "x".join("1" * 9)]
)
def test_wrong_shapes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shape"):
        common.read_shapes([text])


def test_a_shape_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        common.read_shapes(["x:1", "x:2"])


def test_inputs_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    assert common.read_inputs([f"x={tmp_path}/a.npy"])["x"].tolist() == [0, 1, 2]


def test_wrong_inputs_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "a.npy"
    np.save(good, np.arange(3))
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "z.npz", a=np.arange(3))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "empty.npy").write_text("")
    for text, words in {
        "x": "cannot be read",
        "=a.npy": "cannot be read",
        f"x={tmp_path}/none.npy": "No such file",
        f"x={tmp_path}/o.npy": "not a .npy",
        f"x={tmp_path}/z.npz": "several arrays",
        f"x={tmp_path}/text.npy": "not a .npy",
        f"x={tmp_path}/empty.npy": "not a .npy",
    }.items():
        with pytest.raises(UsageError, match=words):
            common.read_inputs([text])
    with pytest.raises(UsageError, match="twice"):
        common.read_inputs([f"x={good}", f"x={good}"])


def test_recipes_and_their_shortcuts(tmp_path: Path) -> None:
    assert common.read_recipe(None, None, None, None) is None
    recipe = common.read_recipe(None, "group:8x1", None, 0.75, seed=3)
    assert recipe is not None
    assert (str(recipe.pattern), recipe.density, recipe.seed) == ("group:8x1", 0.25, 3)
    (tmp_path / "r.yaml").write_text("pattern: group:4x1\ndensity: 0.5\n")
    loaded = common.read_recipe(tmp_path / "r.yaml", None, None, None)
    assert loaded is not None
    assert loaded.density == 0.5
    with pytest.raises(UsageError, match="exclude each other"):
        common.read_recipe(tmp_path / "r.yaml", "group:4x1", None, None)
    with pytest.raises(UsageError, match="need --pattern"):
        common.read_recipe(None, None, 0.5, None)


def test_json_is_written_to_a_file(run: Run, tmp_path: Path) -> None:
    code, out, err = run("targets", "--json", tmp_path / "t.json")
    assert (code, out) == (0, "")
    assert "wrote" in err
    assert json.loads((tmp_path / "t.json").read_text())["schema"] == "edgesparse.targets/1"
    code, _, err = run("targets", "--json", tmp_path / "no" / "t.json")
    assert code == 1
    assert "cannot write" in err
