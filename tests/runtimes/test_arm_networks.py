"""Whole networks for ARM under QEMU: what onnxruntime computes, at two patterns. Minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from devicekit import needs_qemu

from edgesparse import pipeline, samples
from edgesparse.models import export
from edgesparse.recipe import Recipe
from edgesparse.runtimes.device import DeviceRunner, open_device
from edgesparse.runtimes.emulated import count_instructions
from edgesparse.target import Target
from edgesparse.verify import compare

pytestmark = [pytest.mark.long, needs_qemu]


@pytest.mark.parametrize("target", ["aarch64", "armv7"])
@pytest.mark.parametrize("pattern", ["group:8x1", "unstructured"])
@pytest.mark.parametrize("network", ["mobilenet-v1", "mobilenet-v2", "efficientnet-lite0", "resnet18"])
def test_outputs_are_onnxruntimes(network: str, pattern: str, target: str, tmp_path: Path) -> None:
    made = pipeline.compile_model(
        export(network, tmp_path / "model.onnx"),
        target=Target.parse(target),
        output=tmp_path / "artifact",
        recipe=Recipe.from_dict({"pattern": pattern, "density": 0.2}),
    )
    assert made is not None
    sample = samples.load(made.file(samples.NAME), made.manifest)[0]
    with open_device("qemu", made) as device:
        found = DeviceRunner(device, timeout=1200).run(sample.inputs)
    for name, expected in sample.outputs.items():
        assert compare(found[name], expected)[1] < 1e-5


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
    dense = count_instructions(made, "dense")
    macs = sum(int(layer["macs"]) for layer in made.manifest.layers)
    assert dense / (macs / 4) <= 2.0
    assert dense / counts[0.1] >= 5
    assert dense / counts[0.3] >= 2.7
    assert dense / counts[0.7] >= 1.33
