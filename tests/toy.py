"""A small model made by hand, with C kernels in place of TVM's: y = relu(x * w + b) + x, s = the sums of its rows."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser

from edgesparse.artifacts import artifact, samples
from edgesparse.artifacts.manifest import Manifest, TensorInfo
from edgesparse.building import link
from edgesparse.lowering import arena, emit
from edgesparse.lowering.program import ARENA, Buffer, Call, Port, Program, Ref

ROWS, COLUMNS = 5, 7
TRIPLE = f"{platform.machine()}-linux-gnu"

KERNELS = """
#include <stdint.h>
#define OUT __attribute__((visibility("default"))) void
OUT toy_affine(void *x, void *y, void *w, void *b, const int32_t *a, int32_t begin, int32_t end) {
    for (int32_t row = begin; row < end; row++)
        for (int32_t i = 0; i < a[0]; i++)
            ((float *)y)[row * a[0] + i] = ((float *)x)[row * a[0] + i] * ((float *)w)[i] + *(float *)b;
}
OUT toy_relu_add(void *arena, const int32_t *a, int32_t begin, int32_t end) {
    float *h = (float *)arena + a[0], *x = (float *)arena + a[1], *y = (float *)arena + a[2];
    for (int32_t i = begin * a[3]; i < end * a[3]; i++)
        y[i] = (h[i] > 0 ? h[i] : 0) + x[i];
}
OUT toy_rows(void *y, void *s, const int32_t *a, int32_t begin, int32_t end) {
    for (int32_t row = begin; row < end; row++) {
        float sum = 0;
        for (int32_t i = 0; i < a[0]; i++)
            sum += ((float *)y)[row * a[0] + i];
        ((float *)s)[row] = sum;
    }
}
"""

#: Names as exporters give them, and worse.
INPUT, OUTPUT, SUMS = "x", 'y/"out":0??/', "s\\n ü"


def program(weights: np.ndarray | None = None) -> Program:
    """The model, not yet placed."""
    n = ROWS * COLUMNS
    w = np.linspace(-1, 2, COLUMNS, dtype=np.float32) if weights is None else weights
    calls = (
        Call("toy_affine", (Ref("x"), Ref("h"), Ref("w"), Ref("b", 4)), (COLUMNS,), 0, 2, 0),
        Call("toy_affine", (Ref("x"), Ref("h"), Ref("w"), Ref("b", 4)), (COLUMNS,), 2, ROWS, 0),
        Call("toy_relu_add", (Ref(ARENA),), (Ref("h"), Ref("x"), Ref("y"), COLUMNS), 0, ROWS, 1),
        Call("toy_rows", (Ref("y"), Ref("s")), (COLUMNS,), 0, ROWS, 2),
    )
    buffers = (
        Buffer("x", 4 * n, True),
        Buffer("h", 4 * n),
        Buffer("y", 4 * n, True),
        Buffer("s", 4 * ROWS, True),
    )
    constants = {"w": w, "b": np.array([9.0, 0.25], ">f4")}
    return Program(
        calls,
        buffers,
        constants,
        (Port(INPUT, "float32", (ROWS, COLUMNS), "x"),),
        (Port(OUTPUT, "float32", (ROWS, COLUMNS), "y"), Port(SUMS, "float32", (ROWS,), "s")),
        ("affine", "relu", "rows"),
    )


def reference(x: np.ndarray, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The same by numpy."""
    w = np.linspace(-1, 2, COLUMNS, dtype=np.float32) if weights is None else weights
    y = np.maximum(x * w + np.float32(0.25), 0) + x
    return {OUTPUT: y, SUMS: y.sum(axis=1)}


def portable() -> bytes:
    """The same as an ONNX model."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        toy (float[5,7] x) => (float[5,7] y, float[5] s)
        <float[7] w = {-1, -0.5, 0, 0.5, 1, 1.5, 2}, float b = {0.25}, int64[1] axes = {1}>
        { m = Mul(x, w)  h = Add(m, b)  r = Relu(h)  y = Add(r, x)  s = ReduceSum<keepdims = 0>(y, axes) }"""
    )
    for node in model.graph.node:
        node.input[:] = [{"y": OUTPUT, "s": SUMS}.get(name, name) for name in node.input]
        node.output[:] = [{"y": OUTPUT, "s": SUMS}.get(name, name) for name in node.output]
    for info, name in zip(model.graph.output, (OUTPUT, SUMS), strict=True):
        info.name = name
    return bytes(model.SerializeToString())


def manifest(target: Mapping[str, Any] | None = None) -> Manifest:
    default = {"name": "toy", "triple": TRIPLE, "machine": platform.machine(), "needs": []}
    return Manifest(
        target=target or default,
        inputs=(TensorInfo(INPUT, "float32", (ROWS, COLUMNS)),),
        outputs=(TensorInfo(OUTPUT, "float32", (ROWS, COLUMNS)), TensorInfo(SUMS, "float32", (ROWS,))),
        layers=({"name": "affine", "density": 1.0},),
        tools={"edgesparse": "test"},
        info={"model_bytes": 1000},
    )


def library(folder: Path, made: Program) -> Path:
    """Link a placed program with the kernels."""
    out = folder / "model.so"
    link.link_shared([link.compile_c(KERNELS, TRIPLE)], emit.emit(made).program_c, out, TRIPLE)
    return out


def some_samples(count: int = 2) -> list[samples.Sample]:
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((ROWS, COLUMNS), np.float32) for _ in range(count)]
    return [samples.Sample({INPUT: x}, reference(x)) for x in inputs]


def files(made: Program, module: Path) -> dict[str, artifact.Content]:
    """All files of an artifact of the model."""
    described = manifest()
    return {
        "model.so": module,
        "weights.bin": emit.weights_chunks(made),
        "model.onnx": portable(),
        "samples.npz": samples.dump(some_samples(), described.inputs, described.outputs),
    }


def build(path: Path, folder: Path) -> artifact.Artifact:
    """An artifact at `path`, made in `folder`."""
    made = arena.assign(program())
    return artifact.write(path, manifest(), files(made, library(folder, made)))
