"""Four families of networks, pruned and bundled: Node, pages and wasmtime compute what onnxruntime computes.

The networks are narrow and their pictures small, so that a test takes seconds; every kind of layer of theirs is there.
Networks of all other kinds, as they are, are a long test.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from networks import windows_network
from webtools import THREADS, check

from edgesparse.commands.common import read_recipe
from edgesparse.passes import load_model, save_model
from edgesparse.planning import place as placing
from edgesparse.planning.gathering import PADDED, SHIFTED
from edgesparse.planning.products import Job, Product
from edgesparse.runtimes.engines import Engine
from edgesparse.runtimes.wasm import Wasmtime
from edgesparse.target import Target
from edgesparse.web import bundle
from edgesparse.web.bundle import VARIANTS, Bundle

SIDE = 64


def _torch(function: str, **options: Any) -> onnx.ModelProto:
    pytest.importorskip("torch")
    from edgesparse.models import convnets
    from edgesparse.models.exporting import to_onnx
    from edgesparse.models.registry import ModelSpec

    module = getattr(convnets, function)(**options)
    return to_onnx(module, ModelSpec(function, function, (1, 3, SIDE, SIDE), "seeded"))  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "mobilenet-v1": lambda: _torch("mobilenet_v1", width=0.25, resolution=SIDE, classes=10),
    "mobilenet-v2": lambda: _torch("mobilenet_v2", width=0.25, resolution=SIDE, classes=10),
    "efficientnet-lite0": lambda: _torch("efficientnet_lite0", resolution=SIDE, classes=10),
    "resnet18": lambda: _torch("resnet18", width=0.25, resolution=SIDE, classes=10),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle at density 0.3 with the model that it computes beside it."""
    room = tmp_path_factory.mktemp(request.param)
    onnx.save(NETWORKS[request.param](), room / "model.onnx")
    recipe = read_recipe(None, "group:4x1", 0.3, None)
    return bundle.bundle_model(
        room / "model.onnx", output=room / "web", recipe=recipe, threads=THREADS, portable=room / "web.onnx"
    )


def test_node_and_wasmtime(node: Engine, network: Bundle) -> None:
    check(node, network).close()
    check(node, network, threads=THREADS).close()
    with Wasmtime() as engine:
        check(engine, network, variant="relaxed").close()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_page(chromium: Engine, network: Bundle, variant: str) -> None:
    for threads in (1, THREADS):
        loaded = check(chromium, network, variant=variant, threads=threads)
        assert loaded.told == {**loaded.told, "variant": variant, "threads": threads}
        loaded.close()


@pytest.mark.parametrize("form", [SHIFTED, PADDED])
def test_windows_in_each_form(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = placing.candidates

    def candidates(job: Job, target: Target, *, dense_only: bool) -> list[Product]:
        return [each for each in usual(job, target, dense_only=dense_only) if dense_only or each.form == form]

    monkeypatch.setattr(placing, "candidates", candidates)
    onnx.save(windows_network(), tmp_path / "model.onnx")
    made = bundle.bundle_model(tmp_path / "model.onnx", output=tmp_path / "web", portable=tmp_path / "web.onnx")
    with Wasmtime() as engine:
        check(engine, made, variant="simd").close()
        check(engine, made, variant="relaxed").close()


#: Reference networks of all kinds: voice, text, detection, segmentation, super-resolution, transformers, mixers.
OTHERS = (
    *("ds-cnn", "voice-lstm", "voice-gru", "digits", "page-orientation", "ppocr-cls", "ppocr-rec", "espcn", "unet"),
    *("yolo", "mobilenet-v3", "efficientnet-b0", "regnet-x400", "vit-tiny", "mixer-s16", "minilm-l6"),
)


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_all_kinds_of_networks_in_node(node: Engine, name: str, tmp_path: Path) -> None:
    models = pytest.importorskip("edgesparse.models")
    pytest.importorskip("torch")
    spec = models.spec(name)
    fixed = load_model(models.model_path(name), {spec.input_name: spec.input_shape} if spec.dynamic else None)
    save_model(fixed, tmp_path / "model.onnx")
    recipe = read_recipe(None, "group:4x1", 0.3, None)
    made = bundle.bundle_model(
        tmp_path / "model.onnx", output=tmp_path / "web", recipe=recipe, threads=THREADS, portable=tmp_path / "web.onnx"
    )
    for threads in (1, THREADS):
        loaded = check(node, made, threads=threads)
        assert loaded.told["threads"] == threads
        loaded.close()
