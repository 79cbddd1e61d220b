"""The Python interface, and the demo, for real: TVM compiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgesparse
from edgesparse.artifacts.verify import verify
from edgesparse.demonstration import DENSE, EXTREME, ORT, PRUNED, demonstrate
from edgesparse.errors import UsageError
from edgesparse.measuring.bench import Plan
from edgesparse.target import Target


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """One 1x1 convolution, 8 to 16 channels on 14x14 pixels."""
    weight = np.random.default_rng(0).standard_normal((16, 8, 1, 1)).astype(np.float32)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 14, 14])
        for name, channels in (("x", 8), ("y", 16))
    ]
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    graph = helper.make_graph([node], "tiny", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "t.onnx")
    return tmp_path / "t.onnx"


def test_compile_and_load(tiny: Path) -> None:
    recipe = {"pattern": "group:8x1", "density": 0.5}
    made = edgesparse.compile(tiny, target="x86-64-v3", recipe=recipe)
    assert made.path == tiny.with_suffix(".x86-64-v3")
    assert made.manifest.layers[0]["density"] == 0.5
    if not Target.parse("x86-64-v3").runs_here():
        return
    assert verify(made.path, run=True).same
    x = np.random.default_rng(1).standard_normal((1, 8, 14, 14)).astype(np.float32)
    outputs = edgesparse.load(made.path).run({"x": x})
    assert outputs["y"].shape == (1, 16, 14, 14)


def test_recipes_in_every_form(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("pattern: group:8x1\ndensity: 0.5\n")
    one = edgesparse.compile(str(tiny), tmp_path / "a.esp", recipe=str(tmp_path / "r.yaml"))
    two = edgesparse.compile(tiny, tmp_path / "b", target=Target.parse("native"), recipe=tmp_path / "r.yaml")
    assert one.manifest.recipe == two.manifest.recipe
    with pytest.raises(UsageError):
        edgesparse.compile(tiny, target="nonsense")


@pytest.mark.long
def test_the_demo(tmp_path: Path) -> None:
    plan = Plan(seconds=0.5, runs=50, warm_up=1.0)
    found = demonstrate(tmp_path, Target.parse("native"), plan, progress=lambda *_: None, say=lambda _: None)
    rows = {row.name: row for row in found.rows}
    assert list(rows) == [ORT, DENSE, PRUNED, EXTREME]
    assert rows[DENSE].hard.top1 == rows[ORT].hard.top1
    assert rows[PRUNED].easy.top1 >= 0.97
    assert rows[PRUNED].hard.top1 >= rows[ORT].hard.top1 - 0.1
    assert rows[PRUNED].density < 0.65
    assert rows[EXTREME].size_bytes < 0.25 * rows[ORT].size_bytes
    assert found.worst_error < 1e-5
    assert found.speedups[EXTREME].low > 1
    assert all(layer.kernel for layer in found.layers)
