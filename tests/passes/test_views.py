"""Views: random parts of pictures that statistics are also of, against scipy's interpolation and what they promise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest
from scipy.ndimage import map_coordinates

from edgesparse.errors import RecipeError, UsageError
from edgesparse.passes import run_passes, sparsify_passes, weight_layers
from edgesparse.passes.allocate import split
from edgesparse.passes.calibration import samples_of
from edgesparse.passes.layers import canonical_weight
from edgesparse.passes.observe import Feeds
from edgesparse.passes.views import MIXED, Views, part, places, with_views
from edgesparse.recipe import Recipe
from edgesparse.sections import MAX_VIEWS


def pictures(count: int, side: int = 12) -> list[Feeds]:
    source = np.random.default_rng(3)
    return [{"x": source.normal(size=(1, 3, side, side)).astype(np.float32)} for _ in range(count)]


def test_a_part_is_the_picture_between_its_pixels() -> None:
    height, width = 20, 31
    picture = np.random.default_rng(0).normal(size=(height, width))
    ramps = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    source, areas, mirrored = np.random.default_rng(1), [], 0
    for _ in range(60):
        made = part(np.stack([picture, *ramps])[None].astype(np.float64), source)[0]
        # the ramps tell where each pixel is from
        np.testing.assert_allclose(made[0], map_coordinates(picture, made[1:], order=1, mode="nearest"), atol=1e-9)
        mirrored += made[2, 0, 0] > made[2, 0, -1]
        step = made[:, height // 2 + 1, width // 2 + 1] - made[:, height // 2, width // 2]
        areas.append(abs(step[1] * step[2]))
    assert 15 < mirrored < 45
    assert 0.35 <= min(areas) + 1e-6 < 0.5
    assert 0.85 < max(areas) <= 1.0 + 1e-6


def test_views_follow_their_sample_and_are_the_same_each_time() -> None:
    own = pictures(6)
    seen = with_views(own, 3, seed=7)
    first, again = list(seen), list(seen)
    assert len(first) == 24
    assert all(np.array_equal(first[4 * i]["x"], one["x"]) for i, one in enumerate(own))
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, again, strict=True))
    assert len({one["x"].tobytes() for one in first}) == 24
    assert all(one["x"].dtype == np.float32 and one["x"].shape == (1, 3, 12, 12) for one in first)
    other = list(with_views(own, 3, seed=8))
    assert not np.array_equal(first[1]["x"], other[1]["x"])
    assert with_views(own, 0) is own


def test_half_of_the_parts_have_places_of_the_sample_before() -> None:
    # every picture is of one number, so that a view tells what it is made of
    own = [{"x": np.full((1, 3, 16, 16), 10.0**number, np.float32)} for number in range(3)]
    mixed = {0: 0, 1: 0, 2: 0}
    for seed in range(150):
        for number, feeds in enumerate(Views(own, 1, seed)):
            if number % 2:
                value, low = feeds["x"], 10.0 ** max(number // 2 - 1, 0)
                assert low * (1 - 1e-5) <= value.min() <= value.max() <= 10.0 ** (number // 2) * (1 + 1e-5)
                mixed[number // 2] += not np.allclose(value, 10.0 ** (number // 2), rtol=1e-4)
    assert mixed[0] == 0, "nothing is before the first"
    assert mixed[1] / 150 == pytest.approx(MIXED, abs=0.12)
    assert mixed[2] / 150 == pytest.approx(MIXED, abs=0.12)


def test_places_are_smooth_and_mostly_of_one_picture() -> None:
    found = np.stack([places(40, 50, np.random.default_rng(seed)) for seed in range(50)])
    assert found.shape == (50, 40, 50)
    assert np.abs(np.diff(found, axis=1)).max() < 0.8
    assert ((found < 0.25) | (found > 0.75)).mean() > 0.6
    assert 0.3 < found.mean() < 0.7


def test_only_pictures_have_views() -> None:
    feeds = [{"x": np.ones((1, 3, 16, 16), np.float32), "ids": np.arange(5)}] * 2
    assert all(np.array_equal(one["ids"], np.arange(5)) for one in with_views(feeds, 2))
    for value in (
        np.ones((1, 64), np.float32),
        np.ones((1, 3, 4, 16), np.float32),
        np.ones((1, 7, 16, 16), np.float32),
    ):
        with pytest.raises(UsageError, match=r"asks for views of its samples.*none of the inputs is a picture"):
            with_views([{"x": value}], 2)


def test_no_view_of_what_judges_is_fitted_to() -> None:
    own = [{"x": np.full((1, 1, 8, 8), float(number), np.float32)} for number in range(12)]
    fitted, judge = split(Views(own, 4, 0), 48)
    judges = {float(one["x"].max()) for one in judge}
    assert len(judge) == len(judges) == 4
    others = [one for number, one in enumerate(Views(own, 4, 0)) if number // 5 not in judges]
    found = list(fitted)
    assert len(found) == len(others) == 8 * 5
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(found, others, strict=True))


@pytest.fixture
def net(load: Callable[..., ir.Model]) -> ir.Model:
    source = np.random.default_rng(5)
    weights = {"a": source.normal(size=(16, 3, 3, 3)), "b": source.normal(size=(8, 16, 1, 1))}
    body = "h = Conv <pads = [1,1,1,1]> (x, a)  r = Relu(h)  y = Conv(r, b)"
    return load(
        f"g (float[1,3,16,16] x) => (float[1,N,H,W] y) {{ {body} }}",
        {name: value.astype(np.float32) for name, value in weights.items()},
    )


def test_a_recipe_with_views_measures_them_and_fits_to_the_samples_themselves(net: ir.Model) -> None:
    samples = samples_of([one["x"] for one in pictures(9, 16)], net)
    given: list[list[Feeds]] = []

    def fitter(model: ir.Model, dense: ir.Model, inputs: Iterable[Feeds], *rest: object) -> dict[str, float]:
        given.append(list(inputs))
        return {}

    def weight(inputs: Iterable[Feeds], views: int) -> np.ndarray:
        text = f"""
            {{pattern: unstructured, density: 0.5, criterion: obs, reconstruction: {{method: refit}},
            fitting: {{method: weights}}, calibration: {{views: {views}}}}}"""
        steps = sparsify_passes(Recipe.from_yaml(text), inputs, fitter=fitter)
        made = run_passes(net.clone(), steps).model
        (layer,) = (one for one in weight_layers(made) if one.kind == "conv1x1")
        return canonical_weight(made, layer)

    plain, seen = weight(samples, 0), weight(samples, 4)
    assert not np.allclose(plain, seen)
    assert np.array_equal(weight(samples, 4), seen)
    assert np.array_equal(weight(list(with_views(samples, 4)), 0), seen), "as if the views were samples"
    assert [len(one) for one in given] == [9, 9, 9, 45]


@pytest.mark.parametrize("views", [-1, MAX_VIEWS + 1, 1.5, True, "many"])
def test_a_bad_number_of_views_is_refused(views: object) -> None:
    with pytest.raises(RecipeError, match=r"calibration.views.*it takes a whole number from 0 to 100"):
        Recipe.from_dict({"pattern": "unstructured", "density": 0.5, "calibration": {"views": views}})


def test_a_recipe_keeps_its_own_number_of_views() -> None:
    recipe = Recipe.from_dict({"pattern": "unstructured", "density": 0.5, "calibration": {"views": 4, "mean": 3}})
    assert recipe.with_views(2) is recipe
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_dict({"pattern": "unstructured", "density": 0.5}).with_views(2).calibration.views == 2
