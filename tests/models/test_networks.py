"""Networks of every kind, small: what edgesparse makes of them, dense and pruned, is what onnxruntime makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import HOST_TARGETS, check_against_onnx, compiled_outputs, feeds_of, onnx_outputs

from edgesparse.models import MODELS, MissingPackageError, model_path
from edgesparse.models.exporting import to_onnx
from edgesparse.recipe import Recipe

torch = pytest.importorskip("torch", reason="the reference networks are built with torch")

CNN, OTHER = 1e-5, 1e-4
#: Network to its options, its input's shape, and the bound on the difference as a share of the largest output.
SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...], float]] = {
    "mobilenet-v1": ({"width": 0.25, "resolution": 64}, (1, 3, 64, 64), CNN),
    "mobilenet-v2": ({"width": 0.35, "resolution": 64}, (1, 3, 64, 64), CNN),
    "mobilenet-v3": ({"width": 0.35, "resolution": 64}, (1, 3, 64, 64), CNN),
    "efficientnet-lite0": ({"width": 0.35, "resolution": 64}, (1, 3, 64, 64), CNN),
    "efficientnet-b0": ({"width": 0.35, "resolution": 64}, (1, 3, 64, 64), CNN),
    "resnet18": ({"width": 0.25, "resolution": 64}, (1, 3, 64, 64), CNN),
    "resnet50": ({"width": 0.125, "resolution": 64}, (1, 3, 64, 64), CNN),
    "vgg11": ({"width": 0.125, "resolution": 64}, (1, 3, 64, 64), CNN),
    "regnet-x400": ({"width": 0.25, "resolution": 64}, (1, 3, 64, 64), CNN),
    "unet": ({"width": 0.25, "resolution": 32}, (1, 3, 32, 32), CNN),
    "yolo": ({"width": 0.5, "resolution": 64}, (1, 3, 64, 64), CNN),
    "espcn": ({"width": 0.25, "resolution": 24}, (1, 3, 24, 24), CNN),
    "ds-cnn": ({"width": 0.25}, (1, 1, 49, 10), CNN),
    "voice-lstm": ({"width": 24, "features": 10}, (1, 12, 10), OTHER),
    "voice-gru": ({"width": 24, "features": 10}, (1, 12, 10), OTHER),
    "minilm-l6": ({"width": 48, "depth": 2, "tokens": 20, "vocabulary": 50}, (1, 20), OTHER),
    "vit-tiny": ({"width": 48, "depth": 2, "resolution": 32}, (1, 3, 32, 32), OTHER),
    "mixer-s16": ({"width": 32, "depth": 2, "resolution": 32, "patch": 8}, (1, 3, 32, 32), OTHER),
}
#: The rest of `SMALL` is long: each kind of network has one quick stand-in.
QUICK = ("unet", "ds-cnn", "voice-gru", "minilm-l6")


def small(name: str) -> onnx.ModelProto:
    """The network at the size of its row, as torch exports it."""
    options, shape, _ = SMALL[name]
    spec = MODELS[name]
    assert spec.builder is not None
    proto: onnx.ModelProto = to_onnx(spec.builder(seed=1, **options), replace(spec, input_shape=shape))
    return proto


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in SMALL])
def test_dense_and_pruned_equal_onnxruntime(name: str, tmp_path: Path) -> None:
    proto, bound = small(name), SMALL[name][2]
    (tmp_path / "dense").mkdir()
    check_against_onnx(proto, tmp_path / "dense", bound=bound)
    # The reference for a pruned network is the portable model that the artifact carries.
    for target, group in ((HOST_TARGETS[-1], 8), (HOST_TARGETS[0], 4)):
        folder = tmp_path / target.name
        folder.mkdir()
        pruned_equals(proto, folder, target, Recipe.from_dict({"pattern": f"group:{group}x1", "density": 0.3}), bound)


def pruned_equals(
    proto: onnx.ModelProto, folder: Path, target: Any, recipe: Recipe, bound: float, feeds: Any = None
) -> None:
    """Compile with a recipe and compare with the artifact's portable model in onnxruntime."""
    feeds = feeds or feeds_of(proto)
    found = compiled_outputs(proto, folder, target, feeds, recipe=recipe)
    expected = onnx_outputs((folder / "artifact" / "model.onnx").read_bytes(), feeds)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert np.isfinite(found[name]).all()
        assert float(np.abs(value).max()) > 1e-6, "nothing to compare"
        np.testing.assert_allclose(found[name], value, rtol=0, atol=bound * float(np.abs(value).max()))


@pytest.mark.long
@pytest.mark.parametrize("name", ["page-orientation", "ppocr-rec", "ppocr-det", "ppocr-cls"])
@pytest.mark.parametrize("density", [1.0, 0.8])
def test_published_networks_equal_onnxruntime(name: str, density: float, tmp_path: Path) -> None:
    """Weights that were trained, graphs that other tools wrote; at half of the usual size."""
    try:
        path = model_path(name)
    except MissingPackageError as error:
        pytest.skip(str(error))
    spec = MODELS[name]
    shape = (*spec.input_shape[:2], *(max(side // 2 // 32 * 32, 48) for side in spec.input_shape[2:]))
    proto = onnx.load(str(path))
    for value, size in zip(proto.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        value.dim_value = size
    recipe = Recipe.from_dict({"pattern": "group:4x1", "density": density})
    feeds = {proto.graph.input[0].name: page(shape)} if name == "ppocr-det" else None
    # Detection ends in steep sigmoids: what is rounding in its logits (up to 30) is more in the probabilities, and
    # onnxruntime with and without its fusions differs by 7e-6.
    bound = OTHER if name in ("ppocr-rec", "ppocr-det") else CNN
    pruned_equals(proto, tmp_path, HOST_TARGETS[-1], recipe, bound, feeds)


@pytest.mark.long
@pytest.mark.parametrize("target", HOST_TARGETS, ids=str)
def test_network_that_was_trained_sparse_equals_onnxruntime(target: Any, tmp_path: Path) -> None:
    """Its own unstructured zeros are used, without a recipe."""
    try:
        proto = onnx.load(str(model_path("face-sparse")))
    except MissingPackageError as error:
        pytest.skip(str(error))
    feeds = {"input_1": np.random.default_rng(0).uniform(-1, 1, (1, 3, 192, 192)).astype(np.float32)}
    expected = onnx_outputs(proto.SerializeToString(), feeds)
    found = compiled_outputs(proto, tmp_path, target, feeds)
    assert {name: value.shape for name, value in found.items()} == {
        "Identity": (1, 2304, 16),
        "Identity_1": (1, 2304, 1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=CNN * float(np.abs(value).max()))


def page(shape: tuple[int, ...]) -> np.ndarray:
    """A piece of a page: where there is no text, detection gives zeros, and there is nothing to compare."""
    pages = pytest.importorskip("edgesparse.models.pages")
    drawn = np.asarray(pages.page(np.random.default_rng(1), fonts=("builtin",)), np.float32)[: shape[2], : shape[3]]
    return np.broadcast_to((drawn / 255 - 0.5) / 0.5, shape).copy()
