"""Recipes: keys, errors with paths, selection, canonical text."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesparse.errors import RecipeError
from edgesparse.pattern import SparsePattern
from edgesparse.recipe import Choice, LayerRule, Recipe, load_recipe
from edgesparse.select import MAX_NAME, Candidate, Selector

GROUP8 = SparsePattern("group", 8, 1)
UNSTRUCTURED = SparsePattern("unstructured")
LAYERS = [
    Candidate("stem", "Conv"),
    Candidate("dw", "Conv", default=False),
    Candidate("pw", "Conv"),
    Candidate("fc", "Gemm"),
]

names = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=9).filter(
    lambda text: not text.startswith("re:")
)
targets = st.lists(names | st.sampled_from(["re:.*", "re:a[bc]+"]), max_size=3).map(tuple)
choices = st.one_of(
    st.just((SparsePattern(), None)),
    st.just((SparsePattern("nm", 2, 4), None)),
    st.tuples(st.sampled_from([GROUP8, UNSTRUCTURED]), st.floats(0, 1)),
)
rules = st.builds(lambda t, c: LayerRule(t, *c), targets.filter(bool), choices)
recipes = st.builds(
    lambda t, i, c, s, r: Recipe(t, i, *c, seed=s, layers=tuple(r)),
    targets,
    targets,
    choices,
    st.integers(0, 2**32 - 1),
    st.lists(rules, max_size=3),
)


@given(recipes)
def test_dict_and_yaml_round_trip(recipe: Recipe) -> None:
    # a dense or fixed override under a free default must not inherit the default's density
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_yaml(recipe.to_yaml()).to_yaml() == recipe.to_yaml()


def test_sparsity_is_one_minus_density() -> None:
    recipe = Recipe.from_yaml("{pattern: unstructured, sparsity: 0.7}")
    assert recipe.density == 0.3
    assert recipe == Recipe.from_yaml("{pattern: unstructured, density: 0.3}")


def test_overrides_inherit_and_win() -> None:
    recipe = Recipe.from_yaml(
        """
        pattern: group:8x1
        density: 0.5
        ignore: [stem]
        layers:
          - {targets: [fc], density: 0.25}
          - {targets: ["re:d."], pattern: unstructured}
        """
    )
    assert recipe.resolve(LAYERS) == {
        "dw": Choice(UNSTRUCTURED, 0.5),
        "pw": Choice(GROUP8, 0.5),
        "fc": Choice(GROUP8, 0.25),
    }


@pytest.mark.parametrize(
    ("selector", "matched"),
    [
        ("Conv", {"stem", "pw"}),
        ("dw", {"dw"}),
        ("re:.w", {"dw", "pw"}),
        ("re:.*", {"stem", "dw", "pw", "fc"}),
        ("re:Gem.", {"fc"}),
        ("re:Con.", {"stem", "pw"}),
        ("p", set()),
    ],
)
def test_selectors(selector: str, matched: set[str]) -> None:
    assert Selector(selector).match(LAYERS) == matched


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("densty: 0.5", r"key densty: there is no such key \(did you mean density"),
        ("{pattern: unstructured, density: 1.5}", "key density: it is 1.5"),
        ("{pattern: unstructured, density: .nan}", "key density: it is nan"),
        ("{pattern: unstructured, density: yes}", "key density: it is a truth value"),
        ("{pattern: unstructured, density: half}", "key density: it is text"),
        ("{pattern: unstructured}", "key density: pattern unstructured needs it"),
        ("{pattern: unstructured, density: 0.5, sparsity: 0.5}", "key sparsity: density is given too"),
        ("{pattern: dense, density: 0.5}", "key density: pattern dense has its own"),
        ("pattern: grup:8x1", "key pattern: unknown pattern 'grup:8x1'.*did you mean group"),
        ("pattern: [a]", "key pattern: it is a list"),
        ("targets: Conv", "key targets: it is text"),
        ("targets: [3]", r"key targets\[0\]: it is a int"),
        ("ignore: ['']", r"key ignore\[0\]"),
        ("targets: ['re:(']", r"key targets\[0\]: the pattern is not a regular expression"),
        ("layers: [3]", r"key layers\[0\]: it is a int"),
        ("layers: [{targets: [a], densty: 0.5}]", r"key layers\[0\]\.densty: .*did you mean density"),
        ("layers: [{targets: [a]}, {density: 0.5}]", r"key layers\[1\]\.targets: an override must say"),
        ("layers: [{targets: [a], pattern: unstructured}]", r"key layers\[0\]\.density: .*needs it"),
        ("criterion: [1]", "key criterion: .* is not known"),
        ("seed: -1", "key seed: it is -1"),
        ("seed: yes", "key seed"),
        ("seed: x", "key seed: it is text"),
        ("quantization: {}", "key quantization: this section is not there yet"),
        ("allocation: 3", "key allocation: it is '3'"),
        ("allocation: {metod: erk}", r"key allocation\.metod: .*did you mean method"),
        ("allocation: {method: best}", r"key allocation\.method: 'best' is not known.*take uniform, erk"),
        ("reconstruction: {damping: -1}", r"key reconstruction\.damping: it is -1"),
        ("recalibration: {layers: some}", r"key recalibration\.layers: 'some' is not known"),
        ("rearrangement: {method: 1}", r"key rearrangement\.method: '1' is not known"),
        ("calibration: {mean: [1, 2]}", r"key calibration\.mean: it has 2 entries"),
        ("calibration: {scale: 0}", r"key calibration\.scale: it is 0"),
        ("calibration: {limit: 0}", r"key calibration\.limit: it is 0"),
        ("calibration: {order: gbr}", r"key calibration\.order: 'gbr' is not known"),
        ("{seed: 1, seed: 2}", "key seed: the key is given twice"),
        ("[1]", "it is a list"),
        ("", "it is nothing"),
        ("a: [", "the recipe: it is not YAML: line 1"),
        ("!!python/object/apply:os.system [ls]", "the recipe: it is not YAML"),
        ("[" * 5000, "the recipe: it is not YAML"),
        ("{[a]: 1}", "the recipe"),
        ("seed: 0 #" + "x" * 300_000, "bytes of text"),
    ],
)
def test_each_wrong_recipe_is_one_error(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(text)


def test_a_target_that_matches_nothing() -> None:
    recipe = Recipe.from_yaml("{pattern: group:8x1, density: 0.5, targets: [pw, sten]}")
    with pytest.raises(RecipeError, match=r"key targets\[1\]: 'sten' matches no layer.*did you mean 'stem'"):
        recipe.resolve(LAYERS)
    recipe = Recipe.from_yaml("layers: [{targets: ['re:x.*'], pattern: group:8x1, density: 1}]")
    with pytest.raises(RecipeError, match=r"key layers\[0\]\.targets\[0\]"):
        recipe.resolve(LAYERS)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+",
        "(a|a)*b",
        "((ab*)c)+",
        "(?:a*)*",
        r"(a)\1",
        "(?=a)b",
        "(?P<x>a)(?P=x)",
        ".*.*.*.*.*x",
        "(a?){30}",
        "x" * 201,
        "([*]a*)+",
        "(a{1,9}){2,}",
        "(?i)a",
    ],
)
def test_patterns_that_might_be_slow_are_refused(pattern: str) -> None:
    assert Selector.problem(f"re:{pattern}")


@pytest.mark.parametrize("pattern", [".*/conv[12]/.*", r"a\(b\)+", "(a|b)c.*", "[(*]+", "layer[0-9]{1,2}", "(?:ab)+"])
def test_common_patterns_are_taken(pattern: str) -> None:
    assert Selector.problem(f"re:{pattern}") == ""


def test_the_worst_pattern_ends() -> None:
    start = time.perf_counter()
    Selector("re:a*a*a*b").match([Candidate("a" * MAX_NAME, "Conv"), Candidate("a" * (MAX_NAME + 1), "Conv")])
    assert time.perf_counter() - start < 2


def test_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("{pattern: group:8x1, density: 0.5}")
    assert load_recipe(path) == Recipe(pattern=GROUP8, density=0.5)
    path.write_text("densty: 1")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: recipe key densty"):
        load_recipe(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="cannot read recipe"):
        load_recipe(tmp_path)
