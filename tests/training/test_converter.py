"""The converter from ONNX to torch against onnxruntime."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graphs import graph, prepared

from edgesparse.errors import ModelError, UnsupportedError
from edgesparse.models.exporting import export
from edgesparse.passes import model_from_proto, weight_layers
from edgesparse.training.converter import Converted
from edgesparse.training.finetune import check_equal


@pytest.mark.parametrize(
    "name",
    [
        "digits",
        "page-orientation",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("efficientnet-lite0-imagenet", "mobilenet-v1", "mobilenet-v2", "mobilenet-v3", "resnet18")
        ),
    ],
)
def test_the_converter_agrees_with_onnxruntime(name: str, trained: Path, tmp_path: Path) -> None:
    path = trained / "digits.onnx" if name == "digits" else export(name, tmp_path / "model.onnx")
    model = prepared(path)
    module = Converted(model)
    shape = tuple(model.graph.inputs[0].shape)[1:]
    inputs = torch.from_numpy(np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32))
    check_equal(module, model, inputs)
    # and back again, unchanged
    module.write_back(model)
    check_equal(module, model, inputs)
    layers = {layer.name for layer in weight_layers(model)}
    assert set(module.names.values()) == layers


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu(x)",
        "y = Clip(x, low, high)",
        "y = HardSigmoid<alpha: float = 0.3, beta: float = 0.4>(x)",
        "y = MaxPool<kernel_shape: ints = [3, 3], strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]>(x)",
        "y = AveragePool<kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1], count_include_pad: int = 0>(x)",
        "t = Transpose<perm: ints = [0, 2, 3, 1]>(x) y = Softmax<axis: int = -1>(t)",
        "p = Sigmoid(x) q = Tanh(x) r = Concat<axis: int = 1>(p, q) y = Sub(r, low)",
        "y = Conv<pads: ints = [0, 1, 1, 0], strides: ints = [2, 1]>(x, w)",
        "m = ReduceMean<keepdims: int = 0>(x, axes) y = Unsqueeze(m, last)",
        "g = GlobalAveragePool(x) f = Flatten(g) y = Gemm(f, v, b)",
        "l = LeakyRelu<alpha: float = 0.2>(x) e = Elu<alpha: float = 0.7>(x) n = Neg(e) y = Max(l, n)",
        "p = PRelu(x, low) a = Abs(p) s = Sqrt(a) y = Pow(s, high)",
        "e = Erf(x) f = Exp(x) y = Min(e, f, high)",
        "g = GlobalAveragePool(x) s = Squeeze(g, axes) h = MatMul(s, v) d = Div(h, high) y = HardSwish(d)",
    ],
)
def test_operators_agree_with_onnxruntime(body: str) -> None:
    source = np.random.default_rng(0)
    head = "agraph (float[1,3,6,6] x) => (float y) "
    values = {
        "low": np.float32(-0.5),
        "high": np.float32(0.7),
        "axes": np.array([2, 3], np.int64),
        "last": np.array([2], np.int64),
        "w": source.standard_normal((4, 3, 2, 2)).astype(np.float32),
        "v": source.standard_normal((3, 5)).astype(np.float32),
        "b": source.standard_normal(5).astype(np.float32),
    }
    lines = body.replace(") ", ")\n")
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {head} {{ {lines} }}')
    used = [name for name in values if any(name in node.input for node in proto.graph.node)]
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(values[name]), name) for name in used)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = model_from_proto(onnx.shape_inference.infer_shapes(proto))
    check_equal(Converted(model), model, torch.from_numpy(source.standard_normal((1, 3, 6, 6)).astype(np.float32)))


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_gelu_agrees_with_onnxruntime(form: str) -> None:
    text = f'agraph (float[1,30] x) => (float[1,30] y) {{ y = Gelu<approximate: string = "{form}">(x) }}'
    model = graph(text, opset=20)
    check_equal(Converted(model), model, torch.randn(2, 30))


def test_an_unknown_operator() -> None:
    model = graph("agraph (float[1,3] x) => (float[1,3] y) { y = Softplus(x) }")
    with pytest.raises(UnsupportedError, match=r"operator Softplus cannot be trained"):
        Converted(model)


def test_a_converter_that_is_wrong_is_found() -> None:
    model = graph("agraph (float[1,3] x) => (float[1,3] y) { y = Relu(x) }")
    module = Converted(graph("agraph (float[1,3] x) => (float[1,3] y) { y = Tanh(x) }"))
    with pytest.raises(ModelError, match="other numbers than onnxruntime"):
        check_equal(module, model, torch.ones(1, 3))


def test_copies_of_a_long_graph_share_its_nodes() -> None:
    body = "".join(f"v{i + 1} = Relu(v{i})\n" for i in range(400))
    module = Converted(graph(f"agraph (float[1,3] v0) => (float[1,3] v400) {{ {body} }}"))
    twin = copy.deepcopy(module)  # a node leads to its neighbours: copied one by one they end the stack
    assert torch.equal(twin(torch.ones(2, 3)), torch.ones(2, 3))
