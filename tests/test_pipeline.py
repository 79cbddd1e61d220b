"""From an ONNX model to its outputs, end to end: small networks against onnxruntime, with any threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import (
    HOST_TARGETS,
    Net,
    check_against_onnx,
    compiled_outputs,
    feeds_of,
    random_network,
    text_model,
)

import edgesparse
from edgesparse.artifacts.artifact import open_artifact
from edgesparse.errors import CompileError, EdgesparseError, UsageError
from edgesparse.models.packages import MissingPackageError
from edgesparse.pipeline import compile_model
from edgesparse.recipe import Recipe
from edgesparse.runtimes.local import LocalRunner

WIDEST = HOST_TARGETS[-1]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def conv_square(channels: int = 3, size: int = 3) -> np.ndarray:
    return normal(channels, channels, size, size)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed: int, tmp_path: Path) -> None:
    check_against_onnx(random_network(seed), tmp_path, threads=1 + seed % 3)


@pytest.mark.long
@pytest.mark.parametrize("target", HOST_TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("seed", range(100, 140))
def test_more_random_networks(seed: int, target: Any, tmp_path: Path) -> None:
    check_against_onnx(random_network(seed, 16), tmp_path, target, threads=1 + seed % 4)


#: Graphs at the edges of what is recognised: each was wrong once, or might well have been.
GRAPHS: dict[str, tuple[str, dict[str, Any]]] = {
    "an operand of rank 3": ("(float[1,3,9,9] x, float[3,1,1] z) => (float[1,3,9,9] y) { y = Mul(x, z) }", {}),
    "an operand without batch": ("(float[1,3,9,9] x, float[3,9,9] z) => (float[1,3,9,9] y) { y = Sub(z, x) }", {}),
    "a bias by row": (
        "(float[4,3] x) => (float[4,4] y) { y = Gemm(x, w, c) }",
        {"w": normal(3, 4), "c": normal(4, 1)},
    ),
    "factors of a product": (
        "(float[2,3] x) => (float[2,4] y) { y = Gemm<alpha=0.5, beta=2.0>(x, w, c) }",
        {"w": normal(3, 4), "c": normal(4)},
    ),
    "an input that is an output": ("(float[1,3,9,9] x) => (float[1,3,9,9] x, float[1,3,9,9] y) { y = Relu(x) }", {}),
    "nothing but a name": ("(float[1,3,9,9] x) => (float[1,3,9,9] y) { y = Identity(x) }", {}),
    "other shapes of an input": (
        "(float[1,3,4,4] x) => (float[3,16] y, float[3,16] z) { y = Reshape(x, s) r = Relu(x) z = Reshape(r, s) }",
        {"s": np.array([3, 16])},
    ),
    "one value as both operands": (
        "(float[1,3,9,9] x) => (float[1,3,9,9] y, float[1,3,9,9] z) { c = Conv(x, w) y = Add(c, c) z = Mul(x, x) }",
        {"w": conv_square(size=1)},
    ),
    "an input nobody reads": ("(float[1,3,9,9] x, float[4] q) => (float[1,3,9,9] y) { y = Relu(x) }", {}),
    "integers": ("(int64[2,3] x) => (int64[2,3] y, float[2,3] z) { y = Add(x, x) z = Cast<to=1>(y) }", {}),
    "a bound on one side": ("(float[1,3,9,9] x) => (float[1,3,9,9] y) { y = Clip(x, m) }", {"m": np.float32(-0.3)}),
    "bounds the wrong way round": (
        "(float[1,3,9,9] x) => (float[1,3,9,9] y) { y = Clip(x, m, n) }",
        {"m": np.float32(0.5), "n": np.float32(-0.5)},
    ),
    "a product, a bias, an activation": (
        "(float[2,5,3] x) => (float[2,5,4] y) { h = MatMul(x, w) b = Add(c, h) y = Relu(b) }",
        {"w": normal(3, 4), "c": normal(4)},
    ),
    "a product of one vector": ("(float[3] x) => (float[4] y) { y = MatMul(x, w) }", {"w": normal(3, 4)}),
    "padding wider than the window": (
        "(float[1,2,5,5] x) => (float[1,2,11,15] y) { y = Conv<pads=[4,7,4,5]>(x, w) }",
        {"w": normal(2, 2, 3, 3)},
    ),
    "padding by rule": (
        '(float[1,2,8,9] x) => (float[1,2,4,5] y) { y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w) }',
        {"w": normal(2, 2, 3, 3)},
    ),
    "weights that are an input": (
        "(float[1,2,8,8] x, float[3,2,3,3] w) => (float[1,3,6,6] y) { y = Conv(x, w) }",
        {},
    ),
    "convolution of lines": ("(float[1,2,8] x) => (float[1,3,6] y) { y = Conv(x, w) }", {"w": normal(3, 2, 3)}),
    "a dilated maximum": (
        "(float[1,2,9,9] x) => (float[1,2,7,7] y) { n = Neg(x) "
        "y = MaxPool<kernel_shape=[3,3], dilations=[2,2], pads=[1,1,1,1]>(n) }",
        {},
    ),
    "a mean with a last window that hangs over": (
        "(float[1,2,8,8] x) => (float[1,2,4,4] y) "
        "{ y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x) }",
        {},
    ),
    "the gate is an output too": (
        "(float[1,4,9,9] x) => (float[1,4,9,9] y, float[1,4,9,9] s) { a = Conv(x, w) s = Sigmoid(a) y = Mul(a, s) }",
        {"w": conv_square(4, 1)},
    ),
    "a gate for another value": (
        "(float[1,4,9,9] x) => (float[1,4,9,9] y) { a = Conv(x, w) b = Conv(x, v) s = Sigmoid(a) y = Mul(b, s) }",
        {"w": conv_square(4, 1), "v": conv_square(4, 1)},
    ),
    "a residual that is made later": (
        "(float[1,4,9,9] x) => (float[1,4,9,9] y) { a = Conv(x, w) e = Elu(x) s = Add(a, e) y = Relu(s) }",
        {"w": conv_square(4, 1)},
    ),
    "an output that is used inside": (
        "(float[2,4,30,30] x) => (float[2,4,30,30] a, float[2,4,30,30] y) "
        "{ a = Conv(x, w) b = Conv(a, w) c = Relu(b) y = Add(c, a) }",
        {"w": conv_square(4, 1)},
    ),
    "a statistic of statistics": (
        "(float[1,2,8,8] x) => (float[1,2,8,8] y) "
        "{ g = GlobalAveragePool(x) m = ReduceMean<keepdims=1>(g, a) y = Sub(x, m) }",
        {"a": np.array([1])},
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_at_the_edge(name: str, tmp_path: Path) -> None:
    text, weights = GRAPHS[name]
    check_against_onnx(text_model(f"g {text}", weights), tmp_path)


def test_values_may_have_the_names_of_our_buffers(tmp_path: Path) -> None:
    model = text_model(
        """g (float[1,4,30,30] x) => (float[1,4,30,30] y)
        { [c] a = Conv(x, w) [d] b = Conv<pads=[1,1,1,1]>(a, v) y = Add(b, a) }""",
        {"w": conv_square(4, 1), "v": conv_square(4)},
    )
    for taken in ("d/panel", "panel0:d", "constant:c/bias", "0#x", "1#x", "@zeros", "@arena", "plain:y"):
        renamed = onnx.ModelProto.FromString(model.SerializeToString())
        for node in renamed.graph.node:
            for names in (node.input, node.output):
                names[:] = [taken if name == "a" else name for name in names]
        (tmp_path / "one").mkdir(exist_ok=True)
        check_against_onnx(renamed, tmp_path / "one", threads=2)


def test_a_chain_of_a_thousand_layers(tmp_path: Path) -> None:
    steps = " ".join(f"v{i + 1} = Conv(v{i}, w)" for i in range(1100))
    text = f"g (float[1,1,20,20] v0) => (float[1,1,20,20] y) {{ {steps} y = Relu(v1100) }}"
    check_against_onnx(text_model(text, {"w": np.ones((1, 1, 1, 1), np.float32)}), tmp_path)


@pytest.mark.parametrize(("group", "density"), [(1, 0.5), (4, 0.1), (8, 0.5), (8, 0.1)])
def test_pruned_layers_are_exact(group: int, density: float, tmp_path: Path) -> None:
    """The compiled form of a pruned network agrees with its portable form, whatever kernels are chosen."""
    net = Net(7)
    x = net.input(1, 3, 33, 31)
    x = net.node("Relu", net.conv(x, 20, (3, 3), (2, 2), pads=(1, 1, 1, 1)))
    x = net.node("HardSwish", net.conv(x, 36))
    y = net.node("Relu", net.conv(net.conv(x, 36, (3, 3), pads=(1, 1, 1, 1), groups=36), 36))
    y = net.node("Add", y, x)
    y = net.node("GlobalAveragePool", y, shape=(1, 36, 1, 1))
    y = net.node("Flatten", y, shape=(1, 36))
    weight = net.constant(net.rng.standard_normal((36, 10)))
    net.outputs = [net.node("Gemm", y, weight, net.weight(10), shape=(1, 10))]
    model = net.model()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    recipe = Recipe.from_dict({"pattern": f"group:{group}x1", "density": density})
    artifact = compile_model(path, target=WIDEST, output=tmp_path / "out", recipe=recipe, tune=False)
    assert artifact is not None
    pruned = onnx.load(artifact.file("model.onnx"))
    again = tmp_path / "again"
    again.mkdir()
    check_against_onnx(pruned, again)
    densities = [layer["density"] for layer in artifact.manifest.layers if layer["kind"] == "conv1x1"]
    assert densities
    assert all(abs(found - density) < 0.15 for found in densities)


def test_the_dense_baseline_computes_the_same(tmp_path: Path) -> None:
    model = random_network(3)
    (tmp_path / "d").mkdir()
    check_against_onnx(model, tmp_path / "d", dense=True)


def test_equal_inputs_give_equal_artifacts(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(random_network(2).SerializeToString())
    made = [compile_model(path, target=WIDEST, output=tmp_path / name, tune=False) for name in ("a", "b")]
    names = sorted(entry.name for entry in (tmp_path / "a").iterdir())
    assert all(made)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_models_digest_covers_the_weights_beside_it(tmp_path: Path) -> None:
    net = Net(3)
    net.outputs.append(net.conv(net.input(1, 8, 6, 6), 8))
    whole, split = tmp_path / "whole.onnx", tmp_path / "split.onnx"
    onnx.save(net.model(), whole)
    onnx.save(net.model(), split, save_as_external_data=True, location="weights.bin", size_threshold=0)
    data = tmp_path / "weights.bin"

    def told(path: Path) -> tuple[str, int]:
        made = compile_model(path, target=WIDEST, output=tmp_path / "made", force=True, tune=False)
        assert made is not None
        return str(made.manifest.info["model_sha256"]), int(str(made.manifest.info["model_bytes"]))

    def digest(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    assert told(whole) == (digest(whole.read_bytes()), whole.stat().st_size)
    lines = f"{digest(split.read_bytes())}  split.onnx\n{digest(data.read_bytes())}  weights.bin\n"
    first = told(split)
    assert first == (digest(lines.encode()), split.stat().st_size + data.stat().st_size)
    changed = bytearray(data.read_bytes())
    changed[0] ^= 1
    data.write_bytes(bytes(changed))
    assert told(split)[0] != first[0]
    data.unlink()
    with pytest.raises(EdgesparseError, match=r"cannot read 'weights.bin'"):
        told(split)


def test_a_second_compile_needs_no_tvm(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(random_network(4).SerializeToString())
    compile_model(path, target=WIDEST, output=tmp_path / "first", tune=False)
    code = f"""
import sys
from pathlib import Path
from edgesparse.pipeline import compile_model
from edgesparse.target import Target
target = Target.parse({WIDEST.name!r})
compile_model(Path({str(path)!r}), target=target, output=Path({str(tmp_path / "second")!r}), tune=False)
print("tvm" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- what cannot be done is told ------------------------------------------------------------------------------------


def compile_text(text: str, weights: dict[str, Any], folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(text_model(text, weights).SerializeToString())
    compile_model(path, target=WIDEST, output=folder / "out", tune=False)


def test_threads_that_get_no_core_hold_nobody_up(tmp_path: Path) -> None:
    """Four threads on one core: strips that a thread has not begun are run by others, with the same bits."""
    model, cores = random_network(3, 16), os.sched_getaffinity(0)
    check_against_onnx(model, tmp_path, threads=4)
    made = open_artifact(tmp_path / "artifact")
    try:
        os.sched_setaffinity(0, {min(cores)})
        with LocalRunner(made, threads=1) as one, LocalRunner(made, threads=4) as four:
            for seed in range(60):
                feeds = feeds_of(model, seed)
                expected, found = one.run(feeds), four.run(feeds)
                for name, value in expected.items():
                    np.testing.assert_array_equal(found[name], value)
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize("threads", [0, 65])
def test_no_program_for_so_many_threads(threads: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 to 64"):
        compile_model(tmp_path / "model.onnx", target=WIDEST, output=tmp_path / "out", threads=threads)


def test_an_output_may_be_constant(tmp_path: Path) -> None:
    text = "g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Identity(c) }"
    held = normal(2)
    compile_text(text, {"c": held}, tmp_path)
    with edgesparse.load(tmp_path / "out") as runner:
        found = runner.run({"x": np.array([-1, 2], np.float32)})
    np.testing.assert_array_equal(found["z"], held)
    np.testing.assert_array_equal(found["y"], np.array([0, 2], np.float32))


def test_an_operator_nobody_lowers_is_told_with_its_node(tmp_path: Path) -> None:
    text = "g (float[1,3,9,9] x) => (int64[N,4] y) { r = Relu(x) [looker] y = NonZero(r) }"
    with pytest.raises(EdgesparseError) as caught:
        compile_text(text, {}, tmp_path)
    assert "NonZero" in str(caught.value) or "looker" in str(caught.value) or "'y'" in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx"]


CONV = "g (float[1,3,9,9] x) => (float[1,3,9,9] y) { [first] a = Relu(x) [culprit] y = Conv<pads=[1,1,1,1]>(a, w) }"


def test_tvm_failing_inside_is_told_with_the_layer(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgesparse.building import codegen
    from edgesparse.kernels import Spmm

    real = codegen.compile_object

    def fail(funcs: Any, target: Any) -> bytes:
        if any("spmm" in name for name in funcs):
            raise CompileError(f"cannot compile {', '.join(funcs)}", why="InternalError: boom")
        return real(funcs, target)

    monkeypatch.setattr(codegen, "compile_object", fail)
    with pytest.raises(CompileError, match=r"layer 'culprit': cannot compile es_spmm.*boom"):
        compile_text(CONV, {"w": conv_square()}, tmp_path)
    monkeypatch.setattr(codegen, "compile_object", real)

    def broken(self: Spmm) -> Any:
        raise ValueError("no such thing\nas a kernel")

    monkeypatch.setattr(Spmm, "build", broken)
    with pytest.raises(CompileError, match=r"layer 'culprit': cannot build kernel es_spmm.*as a kernel"):
        compile_text(CONV, {"w": conv_square()}, tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name != own_cache.name) == ["model.onnx"]


def test_the_linker_failing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgesparse import pipeline
    from edgesparse.building import build, link

    def garbage(*arguments: Any, **options: Any) -> dict[str, bytes]:
        return {"es": b"not an object"}

    monkeypatch.setattr(pipeline, "build_kernels", garbage)
    with pytest.raises(CompileError, match="linking the compiled model failed"):
        compile_text(CONV, {"w": conv_square()}, tmp_path)
    monkeypatch.setattr(pipeline, "build_kernels", build.build_kernels)
    monkeypatch.setattr(link, "_zig", lambda: ("/nonexistent/zig", "cc"))
    with pytest.raises(CompileError, match="zig cannot be started"):
        compile_text(CONV, {"w": conv_square()}, tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx"]


# -- the matrix of issue 2 ------------------------------------------------------------------------------------------

MATRIX = [(1, 1.0), *((group, density) for group in (1, 4, 8) for density in (0.5, 0.1))]


def check_matrix(name: str, target: Any, group: int, density: float, folder: Path) -> float:
    from edgesparse.models import model_path

    try:
        model = onnx.load(model_path(name))
    except MissingPackageError as error:
        pytest.skip(str(error))
    recipe = Recipe.from_dict({"pattern": f"group:{group}x1", "density": density}) if density < 1 else None
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    from correctness import difference  # type: ignore[import-not-found]

    return float(difference(path, target, recipe, folder / "artifact"))


@pytest.mark.parametrize(("group", "density"), [(1, 1.0), (4, 0.5), (8, 0.1)])
def test_digits(group: int, density: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    assert check_matrix("digits", WIDEST, group, density, tmp_path) <= 1e-5


@pytest.mark.long
@pytest.mark.parametrize("target", HOST_TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize(("group", "density"), MATRIX)
@pytest.mark.parametrize("name", ["mobilenet-v1", "mobilenet-v2", "efficientnet-lite0", "resnet50", "page-orientation"])
def test_the_matrix_of_networks(
    name: str, target: Any, group: int, density: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    assert check_matrix(name, target, group, density, tmp_path) <= 1e-5


def test_outputs_do_not_depend_on_the_order(tmp_path: Path) -> None:
    model = random_network(11, 14)
    feeds = feeds_of(model)
    found = []
    for depth_first in (True, False):
        folder = tmp_path / str(depth_first)
        folder.mkdir()
        found.append(compiled_outputs(model, folder, WIDEST, feeds, depth_first=depth_first))
    for name, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][name])
