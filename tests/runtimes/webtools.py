"""What tests of bundles share: small networks, engines, npm's tools, and the comparison with onnxruntime."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
import pytest

from edgesparse.artifacts.manifest import TensorInfo
from edgesparse.errors import DeviceError
from edgesparse.runtimes.engines import PROGRAMS, Engine, EngineModel, find_package
from edgesparse.runtimes.wasm import Wasmtime, WasmtimeModel
from edgesparse.web.bundle import Bundle

SEEDS = (0, 5)
#: Threads that the bundles are made for, and those that the bundle "pruned" is made for.
THREADS, MORE = 2, 3
#: Bytes of the parts in which the weights of "pruned" are checked: so few that there are several.
PART = 1024


def pruned_network() -> onnx.ModelProto:
    """A separable network with weights in groups of 4, on pictures that are large enough for bands."""
    net = networks.Net(7)
    x = net.input(1, 3, 40, 40)
    x = net.node("Conv", x, net.weight(16, 3, 3, 3), shape=(1, 16, 20, 20), strides=[2, 2], pads=[1, 1, 1, 1])
    for _ in range(2):
        depthwise = net.weight(16, 1, 3, 3, scale=0.4)
        x = net.node("Conv", x, depthwise, shape=(1, 16, 20, 20), group=16, pads=[1, 1, 1, 1])
        weight = net.weight(16, 16, 1, 1)
        kept = net.rng.random((4, 1, 16, 1, 1)) < 0.3
        net.weights[weight] = np.where(kept, net.weights[weight].reshape(4, 4, 16, 1, 1), 0).reshape(16, 16, 1, 1)
        x = net.node("Relu", net.node("Conv", x, weight, shape=(1, 16, 20, 20)))
    x = net.node("Flatten", net.node("GlobalAveragePool", x, shape=(1, 16, 1, 1)), shape=(1, 16))
    net.outputs.append(net.node("Gemm", x, net.weight(10, 16), shape=(1, 10), transB=1))
    return net.model()


MODELS = {
    **{f"random{seed}": lambda seed=seed: networks.random_network(seed) for seed in SEEDS},
    "pruned": pruned_network,
}


def tensors(made: Bundle, kind: str) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(x["name"], x["dtype"], tuple(x["shape"])) for x in made.manifest[kind])


def load(engine: Engine | Wasmtime, made: Bundle, **options: Any) -> EngineModel | WasmtimeModel:
    return engine.load_bundle(made.path, tensors(made, "inputs"), tensors(made, "outputs"), **options)


def needs(kind: str) -> None:
    if not any(map(shutil.which, PROGRAMS[kind])):
        pytest.skip(f"{kind} is not installed here; `make test` installs it where apt is")


def check(engine: Engine | Wasmtime, made: Bundle, **options: Any) -> EngineModel | WasmtimeModel:
    """Run a bundle twice on other inputs, and compare it with onnxruntime."""
    model = onnx.load(made.path.with_suffix(".onnx"))
    loaded = load(engine, made, **options)
    for seed in (1, 2):
        feeds = networks.feeds_of(model, seed)
        expected = networks.onnx_outputs(model.SerializeToString(), feeds)
        for name, value in loaded.run(feeds).items():
            scale = max(1.0, float(np.abs(expected[name]).max()))
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-5 * scale, err_msg=name)
    return loaded


def tool(name: str) -> Path:
    try:
        return find_package(name)
    except DeviceError as error:
        pytest.skip(f"{error}; `make test` installs it where npm is")


def said_by(*command: str | Path, cwd: Path) -> str:
    """What a program prints; it must succeed."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
