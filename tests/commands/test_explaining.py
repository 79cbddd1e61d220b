"""`profile`, `explain`, `predict` and `inspect --plan` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from networks import Net

from edgesparse.costing.costs import cost_table
from edgesparse.pipeline import compile_model
from edgesparse.target import Target

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, 70 % of whose 1x1 layer's weights are zero in no pattern."""
    made = Net(4)
    x = made.conv(made.input(1, 3, 40, 40), 16, (3, 3), (2, 2), pads=(1, 1, 1, 1))
    x = made.conv(x, 16, (3, 3), pads=(1, 1, 1, 1), groups=16)
    made.outputs = [made.conv(x, 32, density=0.3)]
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(made.model(), path)
    return path


@pytest.fixture(scope="module")
def artifact(net: Path) -> Path:
    made = compile_model(net, target=Target.parse("native"), output=net.parent / "artifact", tune=False)
    assert made is not None
    return made.path


def test_explain_a_model(run: Run, net: Path) -> None:
    code, out, err = run("explain", net, "--target", "cortex-a76")
    assert code == 0, err
    assert "cause: " in out
    assert "counted instructions; nothing was measured on this target" in out
    data = json.loads(run("explain", net, "--target", "cortex-a76", "--json")[1])
    assert data["schema"] == "edgesparse.explain/1"
    assert [layer["kind"] for layer in data["layers"]] == ["conv", "depthwise", "conv1x1"]
    assert data["layers"][2]["pattern"] == "unstructured"
    assert data["layers"][0]["cause"] == "not-pruned"
    code, _, err = run("explain", net, "--target", "cortex-a76", "--measure")
    assert (code, "does not run here" in err) == (2, True)
    assert run("explain", "none.onnx")[0] == 1


def test_explain_an_artifact_by_the_clock_too(run: Run, artifact: Path) -> None:
    data = json.loads(run("explain", artifact, "--measure", "--json")[1])
    assert all(layer["measured"] > 0 for layer in data["layers"])
    plain = json.loads(run("explain", artifact, "--json")[1])
    assert [layer["cause"] for layer in plain["layers"]] == [layer["cause"] for layer in data["layers"]]
    assert all(layer["measured"] is None for layer in plain["layers"])


def test_profile(run: Run, artifact: Path, net: Path) -> None:
    code, out, err = run("profile", artifact, "--runs", "5")
    assert code == 0, err
    assert "peak" in out
    data = json.loads(run("profile", artifact, "--runs", "5", "--json")[1])
    assert data["schema"] == "edgesparse.profile/1"
    assert sum(layer["share"] for layer in data["layers"]) == pytest.approx(1)
    assert data["layers"][0]["flops"] >= 2 * 16 * 27 * 400
    assert all(layer["seconds"] > 0 for layer in data["layers"])
    wide = compile_model(net, target=Target.parse("native"), output=net.parent / "wide", tune=False, threads=2)
    assert wide is not None
    code, _, err = run("profile", wide.path)
    assert (code, "several threads" in err) == (2, True)


def test_predict(run: Run, net: Path, tmp_path: Path) -> None:
    options = ("predict", net, "--patterns", "unstructured,group:8x1", "--densities", "0.5,0.1")
    code, out, err = run(*options, "--plot", "p.svg")
    assert code == 0, err
    assert "1 layers pruned" in out or "2 layers pruned" in out
    assert (tmp_path / "p.svg").read_text().startswith("<svg xmlns=")
    assert run(*options, "--plot", "p.svg")[0] == 2
    assert run(*options, "--plot", "p.png")[0] == 2
    data = json.loads(run(*options, "--layers", "conv1x1", "--json")[1])
    assert len(data["layers"]) == 1
    assert [(point["pattern"], point["density"]) for point in data["points"]] == [
        ("unstructured", 0.5),
        ("unstructured", 0.1),
        ("group:8x1", 0.5),
        ("group:8x1", 0.1),
    ]
    assert run("predict", net, "--densities", "half")[0] == 2
    assert run("predict", net, "--layers", "nothing")[0] == 2
    assert run("predict", net, "--target", "wasm-simd", "--measure")[0] == 2


def test_predict_prints_how_far_its_prices_were_off(run: Run, net: Path) -> None:
    options = ("--patterns", "group:8x1", "--densities", "0.1")
    code, out, err = run("predict", net, "--target", "x86-64-v4", *options)
    assert code == 0, err
    errors = cost_table("x86-64-v4").errors.values()
    far, layers = (sum(each[key] for each in errors) for key in ("over_30", "layers"))
    told = " ".join(out.split())
    assert f"by over 30 % for {far} of {layers} layers, by {100 * max(each['worst'] for each in errors):.0f} %" in told
    counted = run("predict", net, "--target", "cortex-a53", *options)[1]
    assert "nothing was measured" in counted
    assert "missed" not in counted


def test_predict_and_confirm(run: Run, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgesparse.advice.confirm._SECONDS", 0.01)
    options = ("--patterns", "group:8x1", "--densities", "0.1", "--layers", "conv1x1")
    data = json.loads(run("predict", net, *options, "--measure", "--json")[1])
    (point,) = data["points"]
    assert point["measured"] > 0
    assert point["measured_speedup"] > 0


def test_inspect_plan(run: Run, net: Path, artifact: Path) -> None:
    code, out, err = run("inspect", net, "--plan", "--target", "cortex-a53")
    assert code == 0, err
    assert "arena" in out
    assert "ring of" in out or "plane" in out
    for arguments in ((net,), (artifact,)):
        data = json.loads(run("inspect", *arguments, "--plan", "--json")[1])
        assert data["schema"] == "edgesparse.plan/1"
        assert data["least_bytes"] <= data["arena_bytes"]
        assert len(data["bytes_by_level"]) == 3
        made = [name for stage in data["plan"]["stages"] for name in (*stage["inside"], stage["makes"])]
        assert sorted(made) == sorted(data["bytes_by_level"])
