"""Dense products by Strassen's algorithm: the right numbers in every form, taken only where measured to be faster."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import HOST_TARGETS, compiled_outputs, feeds_of, onnx_outputs, text_model

from edgesparse.artifacts.artifact import open_artifact
from edgesparse.artifacts.verify import verify
from edgesparse.cli import main
from edgesparse.graph.ops import Conv, Graph, Linear
from edgesparse.graph.recognise import recognise
from edgesparse.lowering import strassen as lowering
from edgesparse.measuring import session
from edgesparse.measuring.report import layer_flops
from edgesparse.passes import model_from_proto
from edgesparse.pipeline import compile_model
from edgesparse.planning import algorithms
from edgesparse.planning.algorithms import ALGORITHMS, STRASSEN, levels_for, other_jobs, split_name
from edgesparse.planning.place import Jobs, Placement, place
from edgesparse.planning.plan import plan
from edgesparse.runtimes.device import DeviceRunner, open_device
from edgesparse.runtimes.local import LocalRunner
from edgesparse.target import Target

V4 = Target.parse("x86-64-v4")
needs_qemu = pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="needs qemu-user")
TARGETS = [HOST_TARGETS[0], HOST_TARGETS[-1]]
#: A clip, a residual before the activation, groups that leave rows over, a linear layer with a bias.
NETWORK = """a = Conv(x, w) b = Clip(a, lo, hi) c = Conv(b, v) d = Add(c, b) e = HardSwish(d)
    f = Conv<strides=[2,2], kernel_shape=[3,3], pads=[1,1,1,1], group=72>(e, k) g = Conv(f, u) h = Relu(g)
    i = Reshape(h, s) j = MatMul(i, m) y = Add(j, n)"""


def network(height: int, width: int) -> onnx.ModelProto:
    rng = np.random.default_rng(height)
    shapes = {"w": (72, 68, 1, 1), "v": (72, 72, 1, 1), "k": (72, 1, 3, 3), "u": (80, 72, 1, 1), "m": (80, 96)}
    weights: dict[str, Any] = {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }
    half = ((height + 1) // 2) * ((width + 1) // 2)
    weights |= {"lo": np.float32(-0.5), "hi": np.float32(2.0), "n": rng.standard_normal(96).astype(np.float32)}
    weights["s"] = np.array([half, 80])
    return text_model(f"g (float[1,68,{height},{width}] x) => (float[{half},96] y) {{ {NETWORK} }}", weights, opset=20)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is measured, it is taken where it is possible, halving twice where that is."""
    for algorithm in STRASSEN:
        monkeypatch.setitem(ALGORITHMS, algorithm.name, replace(algorithm, margin=float("inf")))
    monkeypatch.setattr(algorithms, "_LEAST_SIDE", 4)


def kernels_of(artifact: Path) -> list[str]:
    return [str(layer["kernel"]) for layer in open_artifact(artifact).manifest.layers]


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize(("size", "least"), [((14, 14), 4), ((9, 11), 2), ((24, 26), 3)], ids=str)
def test_a_network(target: Target, size: tuple[int, int], least: int, tmp_path: Path) -> None:
    """A plane, one of an odd number of pixels, bands."""
    proto = network(*size)
    feeds = feeds_of(proto)
    found = compiled_outputs(proto, tmp_path, target, feeds, tune=True, strassen=True)["y"]
    kernels = kernels_of(tmp_path / "artifact")
    assert sum(kernel.startswith("strassen2 dense:") for kernel in kernels) >= min(least, 1 + 2 * (target.lanes < 16))
    assert sum(kernel.startswith("strassen") for kernel in kernels) >= least
    expected = onnx_outputs(proto.SerializeToString(), feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("size", [(14, 14), (24, 26)], ids=str)
def test_threads_share_the_products(size: tuple[int, int], tmp_path: Path) -> None:
    """Rows of all seven products go to one thread, or each has its own pixels: bits do not depend on how many run."""
    proto = network(*size)
    feeds = feeds_of(proto)
    compiled_outputs(proto, tmp_path, TARGETS[0], feeds, threads=3, tune=True, strassen=True)
    assert sum(kernel.startswith("strassen") for kernel in kernels_of(tmp_path / "artifact")) >= 3
    expected = onnx_outputs(proto.SerializeToString(), feeds)["y"]
    found = []
    for threads in (1, 2, 3):
        with LocalRunner(tmp_path / "artifact", threads=threads) as runner:
            found += [runner.run(feeds)["y"] for _ in range(5)]
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def errors(weight: np.ndarray, x: np.ndarray, folder: Path, *, strassen: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Errors of a layer's outputs ``[128, 196]``, and the outputs in float64."""
    text = "g (float[1,128,14,14] x) => (float[1,128,14,14] y) { y = Conv(x, w) }"
    weight, x = weight.astype(np.float32), x.astype(np.float32)
    proto = text_model(text, {"w": weight.reshape(128, 128, 1, 1)}, opset=20)
    feeds = {"x": x.reshape(1, 128, 14, 14)}
    found = compiled_outputs(proto, folder, TARGETS[0], feeds, tune=True, strassen=strassen)["y"].reshape(128, 196)
    assert kernels_of(folder / "artifact")[0].startswith("strassen2 ") == strassen
    exact = weight.astype(np.float64) @ x.astype(np.float64)
    return np.abs(found - exact), np.abs(exact)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("scaled", [True, False])
def test_small_channels_keep_their_digits(scaled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels a thousand times as large, or as small, as those that they are mixed with: inputs and outputs."""
    if not scaled:
        monkeypatch.setattr(lowering, "_factors", lambda large, small, axis: np.ones(large.shape[1 - axis]))
    rng = np.random.default_rng(5)
    weight, x = rng.standard_normal((128, 128)), np.maximum(rng.standard_normal((128, 196)), 0)
    outputs, inputs = (2.0 ** rng.integers(-10, 11, 128) for _ in range(2))
    error, exact = errors(weight * outputs[:, None] / inputs, x * inputs[:, None], tmp_path)
    worst = (error.max(axis=1) / exact.max(axis=1)).max()
    assert worst < 6e-6 if scaled else worst > 1e-3


@pytest.mark.usefixtures("everywhere")
def test_small_pixels_do_not(tmp_path: Path) -> None:
    """What makes it a matter of choice: beside a pixel a thousand times as large, three digits are lost."""
    rng = np.random.default_rng(6)
    weight, x = rng.standard_normal((128, 128)), np.maximum(rng.standard_normal((128, 196)), 0)
    x[:, 7] *= 1000
    (tmp_path / "usual").mkdir()
    for strassen, least, most in ((False, 0, 1e-6), (True, 1e-4, 3e-3)):
        error, exact = errors(weight, x, tmp_path if strassen else tmp_path / "usual", strassen=strassen)
        assert error.max() < 3e-6 * exact.max()
        assert least < (error.max(axis=0) / exact.max(axis=0)).max() < most


def square(density: float = 1.0) -> Graph:
    rng = np.random.default_rng(2)
    w = rng.standard_normal((128, 128, 1, 1)).astype(np.float32)
    w[rng.random((16, 8, 128, 1, 1)).reshape(w.shape) >= density] = 0
    text = "g (float[1,128,14,14] x) => (float[1,128,14,14] y) { y = Conv(x, w) }"
    return recognise(model_from_proto(text_model(text, {"w": w}, opset=20)))


def placed(speed: dict[str, float], *, density: float = 1.0, dense: bool = False, asked: bool = True) -> Placement:
    """How a layer is placed if products by the algorithms take so much of the time of the others."""
    graph = square(density)

    def measure(jobs: Jobs) -> dict[str, list[float]]:
        return {name: [speed.get(split_name(name)[1], 1.0)] * len(job[1]) for name, job in jobs.items()}

    return place(graph, plan(graph, V4), V4, measure=measure, dense=dense, strassen=asked)[graph.ops[0].name]


def test_measurement_decides() -> None:
    assert placed({"strassen": 0.98, "strassen2": 0.98}).algorithm == ""
    assert placed({"strassen": 0.93, "strassen2": 0.96}).algorithm == "strassen"
    both = placed({"strassen": 0.93, "strassen2": 0.9})
    assert both.algorithm == "strassen2"
    record = both.record()
    assert str(record["kernel"]).startswith("strassen2 dense:")
    assert record["bytes"] == 49 * 4 * 32 * 32
    assert layer_flops(record) == pytest.approx(2 * 128 * 128 * 196 * 49 / 64)


def test_few_zeros_only() -> None:
    fast = {"strassen": 0.5, "strassen2": 0.5}
    assert placed(fast, density=0.9).algorithm
    assert not placed(fast, density=0.5).algorithm
    assert placed(fast, density=0.5, dense=True).algorithm


def test_nobody_gets_it_unasked() -> None:
    assert not placed({"strassen": 0.5, "strassen2": 0.5}, asked=False).algorithm


def test_without_measurement_it_is_not_taken() -> None:
    graph = square()
    assert not place(graph, plan(graph, V4), V4, strassen=True)[graph.ops[0].name].algorithm


@pytest.mark.parametrize(
    ("node", "shape", "found"),
    [
        ("y = Conv(x, w)", (128, 128, 1, 1), {"strassen", "strassen2"}),
        ("y = Conv(x, w)", (64, 128, 1, 1), {"strassen"}),
        ("y = Conv(x, w)", (129, 128, 1, 1), set()),
        ("y = Conv<group=2>(x, w)", (128, 64, 1, 1), set()),
        ("y = Conv<strides=[4,4]>(x, w)", (128, 128, 1, 1), set()),
        ("a = Conv(x, w) b = Relu(a) y = Add(b, x)", (128, 128, 1, 1), set()),
        ("a = Conv(x, w) b = Add(a, x) y = Relu(b)", (128, 128, 1, 1), {"strassen", "strassen2"}),
    ],
)
def test_where_it_is_possible(node: str, shape: tuple[int, ...], found: set[str]) -> None:
    text = f"g (float[1,128,14,14] x) => (float[1,N,M,K] y) {{ {node} }}"
    proto = onnx.shape_inference.infer_shapes(text_model(text, {"w": np.ones(shape, np.float32)}, opset=20))
    graph = recognise(model_from_proto(proto))
    ops = [op for op in graph.ops if isinstance(op, (Conv, Linear))]
    assert set(other_jobs(ops[0], plan(graph, V4), V4, 1.0, strassen=True)) == found


def test_a_share_of_the_pixels_is_halved_less_often() -> None:
    assert [levels_for(pixels, 2, 49) for pixels in (196, 195, 98, 97, 49)] == [2, 2, 1, 1, 0]
    assert split_name("a/strassen2") == ("a", "strassen2")
    assert split_name("a/b") == ("a/b", "")


@pytest.mark.usefixtures("everywhere")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = np.random.default_rng(3).standard_normal((128, 128, 1, 1)).astype(np.float32)
    text = "g (float[1,128,14,14] x) => (float[1,128,14,14] y) { y = Conv(x, w) }"
    (tmp_path / "model.onnx").write_bytes(text_model(text, {"w": w}, opset=20).SerializeToString())
    stored = {}
    for flag in ([], ["--strassen"]):
        out = tmp_path / f"out{len(flag)}"
        assert main(["compile", str(tmp_path / "model.onnx"), "-o", str(out), *flag]) == 0
        verify(out, run=True)
        stored[len(flag)] = sum(int(layer["bytes"]) for layer in open_artifact(out).manifest.layers)
    tuned = ["compile", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "tuned"), "--strassen", "--tune", "1s"]
    assert main(tuned) == 0
    verify(tmp_path / "tuned", run=True)
    assert kernels_of(tmp_path / "tuned")[0].startswith("strassen")
    capsys.readouterr()
    assert main(["explain", str(tmp_path / "out1")]) == 0
    assert "strassen2 dense:" in capsys.readouterr().out
    assert stored == {0: 4 * 128 * 128, 1: 49 * 4 * 32 * 32}
    for number, out in ((0, "out0"), (1, "out1")):
        dense = session._dense(open_artifact(tmp_path / out), tmp_path / f"dense{number}", lambda share, text: None)
        assert kernels_of(dense.path)[0].startswith("strassen") == bool(number)
    foreign = ["compile", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "arm"), "-t", "cortex-a76", "--strassen"]
    assert main(foreign) == 2
    told = capsys.readouterr().err
    assert "nothing is measured here" in told
    assert "--tune-on" in told
    assert not (tmp_path / "arm").exists()


@needs_qemu
@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("name", ["armv7", "cortex-a53", "aarch64"])
def test_on_arm(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As tuned for a device: no innermost loop touches the stack, and the numbers are right, under QEMU."""

    def measure(jobs: Jobs) -> dict[str, list[float]]:
        return {job: [float(rank) for rank in range(len(products))] for job, (_, products) in jobs.items()}

    proto = network(14, 14)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    made = compile_model(
        tmp_path / "model.onnx", target=Target.parse(name), output=tmp_path / name, measure=measure, strassen=True
    )
    assert made is not None
    assert [str(layer["kernel"]).split()[0] for layer in made.manifest.layers].count("strassen2") == 4
    assert "touch the stack" not in caplog.text
    feeds = feeds_of(proto)
    expected = onnx_outputs(proto.SerializeToString(), feeds)["y"]
    with open_device("qemu", made) as device:
        found = DeviceRunner(device).run(feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())
