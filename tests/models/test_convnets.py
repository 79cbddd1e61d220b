"""The reference networks: their size, their numbers, their export."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgesparse.models import MODELS, model_path, onnx_run

torch = pytest.importorskip("torch", reason="the reference networks are built with torch")
from edgesparse.models import convnets  # noqa: E402

# Parameters and multiply-adds as in the papers. EfficientNet-lite0 is published as 407 M; that figure counts
# elementwise work too: convolutions and the linear layer alone are 385 M.
PUBLISHED = {
    "mobilenet_v1": (4.2e6, 569e6),
    "mobilenet_v2": (3.5e6, 300e6),
    "efficientnet_lite0": (4.7e6, 385e6),
    "resnet18": (11.7e6, 1.8e9),
    "resnet50": (25.6e6, 4.1e9),
}
SEEDED = ("mobilenet-v1", "mobilenet-v2", "efficientnet-lite0", "resnet18", "resnet50")


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_is_the_papers(name):
    cost = convnets.cost(getattr(convnets, name)(), (1, 3, 224, 224))
    parameters, macs = PUBLISHED[name]
    assert cost.parameters == pytest.approx(parameters, rel=0.02)
    assert cost.macs == pytest.approx(macs, rel=0.02)


@pytest.mark.parametrize(
    ("name", "optimize"),
    [
        *[(name, True) for name in SEEDED[:-1]],
        pytest.param("resnet50", True, marks=pytest.mark.long),
        ("mobilenet-v1", False),
        ("efficientnet-lite0", False),
    ],
)
def test_export_computes_what_torch_computes(name, optimize):
    path = model_path(name, optimize=optimize)
    picture = convnets.random_images(1, 224, torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = MODELS[name].builder()(picture).numpy()
    got = onnx_run(path)(picture.numpy())
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["output"]
    normed = any(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert normed != optimize
    assert b"/" + b"models/" not in model.SerializeToString()  # no path of this machine


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "efficientnet_lite0", "resnet18", "resnet50"])
def test_activations_stay_in_range_and_depend_on_the_input(name):
    module = getattr(convnets, name)(width=0.5, resolution=96)
    seen: list[float] = []
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.register_forward_hook(lambda _part, _inputs, output: seen.append(float(output.std())))
    with torch.no_grad():
        out = module(convnets.random_images(4, 96, torch.Generator().manual_seed(3)))
    assert len(seen) > 10
    assert min(seen) > 0.1
    assert max(seen) < 20
    assert float(out.std(0).mean()) > 0.02 * float(out.std())


def test_same_seed_same_weights_and_random_state_is_left_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one, two, other = (convnets.mobilenet_v1(width=0.25, resolution=64, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    for (name, left), right in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(left, right), name
    assert not torch.equal(one.stem.conv.weight, other.stem.conv.weight)


@pytest.mark.parametrize("width", [0.25, 0.5, 1.3])
def test_width_resolution_and_classes_are_parameters(width):
    for build in (
        convnets.mobilenet_v1,
        convnets.mobilenet_v2,
        convnets.efficientnet_lite0,
        convnets.resnet18,
    ):
        module = build(width=width, resolution=65, classes=7)
        assert tuple(module(torch.zeros(2, 3, 65, 65)).shape) == (2, 7)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [(224, 3, 2, (0, 1)), (56, 5, 2, (1, 2)), (7, 5, 1, (2, 2)), (7, 3, 2, (1, 1)), (8, 1, 2, (0, 0))],
)
def test_same_padding_is_tensorflows(size, kernel, stride, expected):
    assert convnets.same_padding(size, kernel, stride) == expected


def test_a_foreign_state_dict_is_refused():
    with pytest.raises(ValueError, match="not of this network"):
        convnets.efficientnet_lite0(weights=convnets.mobilenet_v1(width=0.25, resolution=32).state_dict())
