"""Whole networks for ARM under QEMU: what onnxruntime computes, at two patterns.

They are small: the depth is the networks', width and image are not. The full MobileNet-v1 is for its counts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from devicekit import check_emulated, needs_qemu
from networks import taking_form, windows_network
from recurrences import feeds_of, recurrent_model
from shapes import random_network

from edgesparse import pipeline
from edgesparse.artifacts import samples
from edgesparse.artifacts.verify import compare
from edgesparse.models import convnets, export
from edgesparse.models.exporting import to_onnx
from edgesparse.models.registry import spec
from edgesparse.planning.gathering import PADDED, SHIFTED
from edgesparse.recipe import Recipe
from edgesparse.runtimes.device import DeviceRunner, open_device
from edgesparse.runtimes.emulated import count_instructions
from edgesparse.target import Target

pytestmark = needs_qemu

SIDE = 32
NETWORKS = {
    "mobilenet-v1": convnets.mobilenet_v1,
    "mobilenet-v2": convnets.mobilenet_v2,
    "efficientnet-lite0": convnets.efficientnet_lite0,
    "resnet18": convnets.resnet18,
}
#: What is run each time; the others take long.
QUICK = {("mobilenet-v1", "aarch64"), ("resnet18", "aarch64")}
CASES = [
    pytest.param(network, target, marks=() if (network, target) in QUICK else pytest.mark.long)
    for network in NETWORKS
    for target in ("aarch64", "armv7")
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Networks that were made already."""
    return {"folder": tmp_path_factory.mktemp("networks")}


def network_file(small: dict[str, Path], name: str) -> Path:
    if name not in small:
        module = NETWORKS[name](width=0.25, resolution=SIDE, classes=16, seed=0)
        small[name] = small["folder"] / f"{name}.onnx"
        onnx.save(to_onnx(module, replace(spec(name), input_shape=(1, 3, SIDE, SIDE))), small[name])
    return small[name]


@pytest.mark.parametrize(("network", "target"), CASES)
@pytest.mark.parametrize("pattern", ["group:8x1", "unstructured"])
def test_outputs_are_onnxruntimes(
    network: str, pattern: str, target: str, small: dict[str, Path], tmp_path: Path
) -> None:
    made = pipeline.compile_model(
        network_file(small, network),
        target=Target.parse(target),
        output=tmp_path / "artifact",
        recipe=Recipe.from_dict({"pattern": pattern, "density": 0.2}),
    )
    assert made is not None
    assert sum("group:" in str(layer["kernel"]) for layer in made.manifest.layers) >= 10
    sample = samples.load(made.file(samples.NAME), made.manifest)[0]
    with open_device("qemu", made) as device:
        found = DeviceRunner(device, timeout=600).run(sample.inputs)
    for name, expected in sample.outputs.items():
        assert compare(found[name], expected)[1] < 1e-5


WINDOWS = [
    (PADDED, "aarch64"),
    pytest.param(SHIFTED, "aarch64", marks=pytest.mark.long),
    pytest.param(PADDED, "armv7", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("form", "target"), WINDOWS)
def test_windows_in_each_form(form: str, target: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(windows_network().SerializeToString())
    output = tmp_path / "artifact"
    made = pipeline.compile_model(path, target=Target.parse(target), output=output, measure=taking_form(form))
    assert made is not None
    kernels = [str(layer["kernel"]) for layer in made.manifest.layers if layer["kind"] == "conv"]
    assert len(kernels) == 8
    assert all(kernel.startswith(f"{form} group:") for kernel in kernels)
    sample = samples.load(made.file(samples.NAME), made.manifest)[0]
    with open_device("qemu", made) as device:
        found = DeviceRunner(device, timeout=300).run(sample.inputs)
    for name, expected in sample.outputs.items():
        assert compare(found[name], expected)[1] < 3e-6


@pytest.mark.parametrize(("kind", "hidden"), [("LSTM", 18), ("LSTM", 16), ("GRU", 9)])
@pytest.mark.parametrize("target", ["aarch64", "armv7"])
def test_recurrences_are_onnxruntimes(kind: str, hidden: int, target: str, tmp_path: Path) -> None:
    """Gates are cut into stages there, with and without a last vector that overlaps. States are below 1."""
    model = recurrent_model(kind, hidden, direction="bidirectional", states=True)
    check_emulated(model, feeds_of(model), target, tmp_path, 2e-6)


#: Random networks that are run: those with a kernel in a modest form (for armv7 36, 45, 73 and 87, for aarch64 5, 11,
#: 16, 19 and 70), recurrences, attention, products.
SHAPES = [
    pytest.param(number, target, marks=() if number in (17, 45) and target == "armv7" else pytest.mark.long)
    for number in (5, 8, 11, 16, 17, 19, 26, 36, 44, 45, 62, 70, 73, 87)
    for target in ("aarch64", "armv7")
]


@pytest.mark.parametrize(("number", "target"), SHAPES)
def test_any_shape_is_onnxruntimes(number: int, target: str, tmp_path: Path) -> None:
    """Kernels in whatever form they were taken in (see test_arm_shapes.py)."""
    onnx.save(random_network(number), tmp_path / "model.onnx")
    made = pipeline.compile_model(
        tmp_path / "model.onnx", target=Target.parse(target), output=tmp_path / "artifact", tune=False
    )
    assert made is not None
    sample = samples.load(made.file(samples.NAME), made.manifest)[0]
    with open_device("qemu", made) as device:
        found = DeviceRunner(device, timeout=300).run(sample.inputs)
    for name, expected in sample.outputs.items():
        assert compare(found[name], expected)[1] < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("target", ["armv7", "android-arm64", "android-armv7"])
def test_the_program_of_a_whole_network_is_small(target: str, tmp_path: Path) -> None:
    """Beside its weights: kernels, sparse and dense, tables, harness."""
    made = pipeline.compile_model(
        export("mobilenet-v1", tmp_path / "model.onnx"),
        target=Target.parse(target),
        output=tmp_path / "artifact",
        recipe=Recipe.from_dict({"pattern": "group:8x1", "density": 0.1}),
    )
    assert made is not None
    assert made.module.stat().st_size < 100_000
    for name in ("libmodel.so",) if Target.parse(target).apps else ():
        assert made.file(name).stat().st_size < 100_000


@pytest.mark.long
def test_instructions_of_mobilenet(tmp_path: Path) -> None:
    model = export("mobilenet-v1", tmp_path / "model.onnx")
    counts = {}
    for density in (0.1, 0.3, 0.7):
        made = pipeline.compile_model(
            model,
            target=Target.parse("aarch64"),
            output=tmp_path / str(density),
            recipe=Recipe.from_dict({"pattern": "group:8x1", "density": density}),
        )
        assert made is not None
        counts[density] = count_instructions(made)
        assert made.module.stat().st_size < 100_000
    dense = count_instructions(made, "dense")
    macs = sum(int(layer["macs"]) for layer in made.manifest.layers)
    assert dense / (macs / 4) <= 2.0
    assert dense / counts[0.1] >= 5
    assert dense / counts[0.3] >= 2.7
    assert dense / counts[0.7] >= 1.33
