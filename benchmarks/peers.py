"""edgesparse beside other engines, each at its best, all in one process on one core, in alternation.

    pip install openvino MNN ai-edge-litert     # whichever are wanted; all are optional
    pip install --no-deps deepsparse==1.8.0     # the last one with an engine; Python up to 3.11
    python benchmarks/peers.py --model mobilenet-v1 --pattern group:8x1 --density 0.1 -o out/peers.json

onnxruntime is always there. A peer that is not installed, or refuses the model, is told and left out. All run the
pruned model's portable form in float32 on the same threads, and their outputs are checked against onnxruntime's first.
LiteRT (XNNPACK) needs a .tflite file of the same model, given with --tflite: its sparse kernels are chosen by XNNPACK.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime

from edgesparse import environment
from edgesparse.artifacts.verify import PORTABLE
from edgesparse.errors import EdgesparseError
from edgesparse.measuring.bench import Contender, Plan, measure
from edgesparse.measuring.contenders import ArtifactContender, OrtContender
from edgesparse.measuring.report import Report, as_json, latency_table, remarks
from edgesparse.models import model_path
from edgesparse.models import spec as model_spec
from edgesparse.pipeline import compile_model
from edgesparse.recipe import Recipe
from edgesparse.target import Target

Feeds = Mapping[str, np.ndarray]

TOLERANCE = 1e-4
"""Largest difference from onnxruntime, relative to its largest output, with which a peer is still in the race."""


class Peer:
    """A contender around two functions: one runs the model, the other returns its outputs."""

    def __init__(self, name: str, load_seconds: float, run: Callable[[], Any], outputs: Callable[[], Any]) -> None:
        self.name, self.load_seconds = name, load_seconds
        self._run, self.outputs = run, outputs

    def run_once(self) -> float:
        """Run once and return the seconds it took."""
        started = time.perf_counter_ns()
        self._run()
        return (time.perf_counter_ns() - started) / 1e9


def openvino(model: Path, feeds: Feeds, threads: int, room: Path) -> Peer:
    """OpenVINO's CPU plugin for latency, in float32, inputs bound once."""
    from openvino import Core, Tensor

    started = time.perf_counter()
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = Core().compile_model(str(model), "CPU", hints).create_infer_request()
    for name, value in feeds.items():
        request.set_tensor(name, Tensor(np.ascontiguousarray(value)))
    spent = time.perf_counter() - started
    return Peer("openvino", spent, request.infer, lambda: request.get_output_tensor(0).data)


def mnn(model: Path, feeds: Feeds, threads: int, room: Path) -> Peer:
    """MNN on the CPU, precision high (float32); converted by the library itself.

    Its command `mnnconvert` is not used: it installs a package and reports what was converted.
    """
    import MNN.expr
    import MNN.nn

    converted = room / "peer.mnn"
    words = ["mnnconvert", "-f", "ONNX", "--modelFile", str(model), "--MNNModel", str(converted), "--bizCode", "x"]
    code = f"import sys; sys.path[:] = {sys.path!r}; import MNN, _tools; _tools.mnnconvert({words!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if not converted.exists():
        raise EdgesparseError("MNN cannot convert the model", why=done.stdout.strip()[-200:])
    session = onnxruntime.InferenceSession(str(model))
    names = [item.name for item in session.get_outputs()]
    started = time.perf_counter()
    config = ({"backend": "CPU", "precision": "high", "numThread": threads},)
    manager = MNN.nn.create_runtime_manager(config)
    network = MNN.nn.load_module_from_file(str(converted), list(feeds), names, runtime_manager=manager)
    inputs = []
    for value in feeds.values():
        placed = MNN.expr.placeholder(list(value.shape), MNN.expr.NCHW)
        placed.write(np.ascontiguousarray(value))
        inputs.append(placed)
    spent = time.perf_counter() - started

    def run() -> Any:
        made = network.forward(inputs)
        return (made[0] if isinstance(made, list | tuple) else made).read()

    return Peer("mnn", spent, run, run)


def litert(model: Path, feeds: Feeds, threads: int, room: Path) -> Peer:
    """LiteRT with its default delegate, XNNPACK; `model` is a .tflite file with images as NHWC."""
    from ai_edge_litert.interpreter import Interpreter

    started = time.perf_counter()
    interpreter = Interpreter(model_path=str(model), num_threads=threads)
    interpreter.allocate_tensors()
    spent = time.perf_counter() - started
    for detail, value in zip(interpreter.get_input_details(), feeds.values(), strict=True):
        wanted = tuple(detail["shape"])
        given = value if value.shape == wanted else np.moveaxis(value, 1, -1)
        interpreter.set_tensor(detail["index"], np.ascontiguousarray(given))
    index = interpreter.get_output_details()[0]["index"]
    return Peer("litert", spent, interpreter.invoke, lambda: interpreter.get_tensor(index))


def deepsparse(model: Path, feeds: Feeds, threads: int, room: Path) -> Peer:
    """DeepSparse, which ended in 2025: its last wheel is 1.8.0, for Python up to 3.11.

    It reads a table that onnx has dropped since, which is put back, and models of operator sets up to 14 at its best.
    """
    import types

    import onnx
    import onnx.version_converter

    table = types.ModuleType("onnx.mapping")
    kinds = onnx.helper.get_all_tensor_dtypes()
    vars(table)["TENSOR_TYPE_TO_NP_TYPE"] = {kind: onnx.helper.tensor_dtype_to_np_dtype(kind) for kind in kinds}
    sys.modules.setdefault("onnx.mapping", table)
    from deepsparse import Engine

    old = onnx.version_converter.convert_version(onnx.load(str(model)), 14)
    old.ir_version = 8
    for node in old.graph.node:  # the converter leaves an attribute of a later ReduceMean at its default
        kept = [item for item in node.attribute if item.name != "noop_with_empty_axes"]
        del node.attribute[:]
        node.attribute.extend(kept)
    onnx.save(old, str(room / "deepsparse.onnx"))
    started = time.perf_counter()
    engine = Engine(str(room / "deepsparse.onnx"), batch_size=1, num_cores=threads)
    spent = time.perf_counter() - started
    values = [np.ascontiguousarray(value) for value in feeds.values()]
    return Peer("deepsparse", spent, lambda: engine.run(values), lambda: engine.run(values)[0])


PEERS: Mapping[str, tuple[str, Callable[[Path, Feeds, int, Path], Peer]]] = {
    "openvino": ("openvino", openvino),
    "mnn": ("MNN", mnn),
    "litert": ("ai-edge-litert", litert),
    "deepsparse": ("deepsparse", deepsparse),
}
"""By name: what pip calls it, and what makes it."""


def join(name: str, model: Path, feeds: Feeds, threads: int, room: Path, expected: np.ndarray) -> Peer | None:
    """Make a peer and check its numbers; None, with a word about it, where it cannot take part."""
    package, make = PEERS[name]
    try:
        peer = make(model, feeds, threads, room)
        peer.run_once()
        found = np.asarray(peer.outputs()).reshape(expected.shape)
    except ImportError:
        click.echo(f"{name}: not installed (pip install {package}); left out", err=True)
        return None
    except Exception as error:  # each engine has classes of its own for refusing a model
        click.echo(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}; left out", err=True)
        return None
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not off <= TOLERANCE:
        click.echo(f"{name}: differs from onnxruntime by {off:.2g} of the largest output; left out", err=True)
        return None
    return peer


@click.command()
@click.option("--model", default="mobilenet-v1", show_default=True, help="A model of edgesparse.models.")
@click.option("--pattern", default="group:8x1", show_default=True)
@click.option("--density", default=0.1, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Timed seconds of each contender.")
@click.option("--peers", default=",".join(PEERS), show_default=True)
@click.option("--tflite", type=click.Path(path_type=Path, exists=True), help="The same model for LiteRT.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the report as JSON.")
def main(
    model: str,
    pattern: str,
    density: float,
    threads: int,
    seconds: float,
    peers: str,
    tflite: Path | None,
    output: Path | None,
) -> None:
    """Measure."""
    spec = model_spec(model)
    feeds = {spec.input_name: np.random.default_rng(0).standard_normal(spec.input_shape).astype(np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        recipe = Recipe.from_dict({"pattern": pattern, "density": density}) if density < 1 else None
        made = compile_model(
            model_path(model), target=Target.parse("native"), output=room / "a", recipe=recipe, threads=threads
        )
        assert made is not None, "only stop_after ends without an artifact"
        portable = made.file(PORTABLE)
        expected = onnxruntime.InferenceSession(str(portable)).run(None, dict(feeds))[0]
        wanted = peers.split(",")
        if "litert" in wanted and tflite is None:
            click.echo("litert: no --tflite; left out", err=True)
            wanted.remove("litert")

        def load() -> list[Contender]:
            """All contenders, loaded anew; peers that were left out once are not tried again."""
            made_now: list[Contender] = [ArtifactContender("edgesparse", made, feeds, threads=threads)]
            made_now.append(OrtContender("onnxruntime", portable, feeds, threads=threads))
            for name in tuple(wanted):
                source = tflite if name == "litert" and tflite is not None else portable
                peer = join(name, source, feeds, threads, room, expected)
                if peer is None:
                    wanted.remove(name)
                else:
                    made_now.append(peer)
            return made_now

        outcome = measure(load(), Plan(seconds=seconds, threads=threads), again=load)
    subject = {"artifact": model, "artifact_sha256": None, "model_sha256": None, "target": "native", "info": {}}
    subject["recipe"] = {"pattern": pattern, "density": density}
    here = environment.record()
    versions = {package: environment.version(package) for package, _ in PEERS.values()}
    report = Report(outcome, subject, here | {"tools": here["tools"] | versions})
    columns, rows = latency_table(report)
    for row in [columns, *rows]:
        click.echo(" | ".join(cell for cell in row))
    for text in remarks(report):
        click.echo(f"note: {text}")
    if output is not None:
        import json

        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(as_json(report), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
