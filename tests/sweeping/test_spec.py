"""What a sweep's file says, and what is refused with which key; what identifies a cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from edgesparse.errors import UsageError
from edgesparse.sweeping.grid import cells_of, model_digest
from edgesparse.sweeping.spec import Sweep, Timing, load_sweep, read_sweep

from smallmodel import save_model  # isort: skip

HEAD = "models: [small.onnx]\n"


def test_a_whole_sweep(folder: Path) -> None:
    (folder / "careful.yaml").write_text("{pattern: group:8x1, density: 0.5}", encoding="utf-8")
    np.save(folder / "x.npy", np.zeros((4, 16), np.float32))
    text = """
        models:
          - small.onnx
          - {path: small.onnx, name: again, shapes: {x: [2, 16]}, eval: {inputs: x.npy, labels: names}}
        recipes: [dense, careful.yaml, {name: f, pattern: fanin, densities: [0.25, 0.5]}]
        targets: [x86-64-v3, cortex-a76]
        devices: [local, qemu]
        bench: {seconds: 2, threads: 2, memory: true}
        seed: 7
    """
    found = read_sweep(text, folder)
    assert [model.name for model in found.models] == ["small", "again"]
    assert found.models[1].shapes == {"x": (2, 16)}
    assert [recipe.name for recipe in found.recipes] == ["dense", "careful", "f at 0.25", "f at 0.5"]
    assert found.recipes[0].recipe is None
    assert found.timing == Timing(seconds=2, threads=2, memory=True)
    cells, left_out = cells_of(found, cluster=True)
    assert len(cells) == 2 * 4 * 2
    assert {(cell.target, cell.device) for cell in cells} == {("x86-64-v3", "local"), ("cortex-a76", "qemu")}
    assert [str(reason).partition(":")[0] for reason in left_out] == ["x86-64-v3 on qemu", "cortex-a76 on local"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("recipes: [dense]", "sweep key models: it is missing"),
        ("models: []\nrecipes: [dense]", "sweep key models: it is an empty list"),
        (HEAD + "recipes: dense", "sweep key recipes: it is text"),
        (HEAD + "recipe: [dense]", "sweep key recipe: there is no such key (did you mean recipes?"),
        ("models: [{path: none.onnx}]\nrecipes: [dense]", "sweep key models[0].path: there is no "),
        (
            "models: [{path: small.onnx, shape: {}}]\nrecipes: [dense]",
            "sweep key models[0].shape: there is no such key",
        ),
        (f"models: [{'m' * 300}]\nrecipes: [dense]", "sweep key models[0].path: there is no "),
        ("models: [{path: small.onnx, shapes: {x: [0]}}]\nrecipes: [dense]", "sweep key models[0].shapes.x[0]: it is"),
        ("models: [{path: small.onnx, eval: {}}]\nrecipes: [dense]", "sweep key models[0].eval.inputs: it is missing"),
        (HEAD + "recipes: [{name: a, pattern: group:4x1}]", "sweep key recipes[0]: recipe key density"),
        (HEAD + "recipes: [{pattern: group:4x1, densities: []}]", "sweep key recipes[0].densities: it is a list"),
        (HEAD + "recipes: [dense, {pattern: fanin, densities: [2]}]", "sweep key recipes[1]: recipe key density"),
        (HEAD + "recipes: [dense, dense]", "sweep key recipes: 'dense' is there twice"),
        (HEAD + "recipes: [dense]\ntargets: [pdp-11]", "sweep key targets[0]: unknown target"),
        (HEAD + "recipes: [dense]\ndevices: ['ssh:x']", "sweep key devices[0]: 'ssh:x' is no device"),
        (HEAD + "recipes: [dense]\nbench: {secs: 1}", "sweep key bench.secs: there is no such key"),
        (HEAD + "recipes: [dense]\nbench: {seconds: .nan}", "sweep key bench.seconds: it is 'nan'"),
        (HEAD + "recipes: [dense]\nbench: {memory: 1}", "sweep key bench.memory: it is a int"),
        (HEAD + "recipes: [dense]\nseed: 1\nseed: 2", "sweep key seed: the key is given twice"),
        ("[1]", "the sweep: it is a list"),
        ("a: [", "the sweep: it is not YAML: line 1"),
    ],
)
def test_wrong_keys_are_named(folder: Path, text: str, key: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_sweep(text, folder)
    assert str(caught.value).startswith(key)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read sweep"):
        load_sweep(tmp_path / "none.yaml")


def keys(sweep: Sweep) -> list[str]:
    return [cell.key for cell in cells_of(sweep)[0]]


def test_a_key_follows_from_all_that_the_result_depends_on(folder: Path) -> None:
    text = (folder / "sweep.yaml").read_text(encoding="utf-8")
    plain = keys(read_sweep(text, folder))
    assert plain == keys(read_sweep(text + "bench: {timeout: 5}", folder))
    assert len(set(plain)) == 3
    settled = set(plain)
    for more in ("bench: {seconds: 3}", "bench: {threads: 2}", "seed: 1", "targets: ['x86-64-v2,l2=1048576']"):
        other = set(keys(read_sweep(f"{text}\n{more}", folder)))
        assert not settled & other, more
        settled |= other
    assert not settled & set(keys(read_sweep(text.replace("4x1", "8x1"), folder)))
    assert plain[0] in keys(read_sweep(text.replace("0.2, 0.4", "0.2, 0.3"), folder))
    save_model(folder / "small.onnx", 2.0)
    assert not settled & set(keys(read_sweep(text, folder)))


def test_data_and_weights_beside_the_model_belong_to_the_key(folder: Path) -> None:
    (folder / "data").mkdir()
    np.save(folder / "data/x.npy", np.zeros((4, 16), np.float32))
    text = "models: [{path: small.onnx, calibrate: data}]\nrecipes: [{pattern: group:4x1, density: 0.5}]"
    before = keys(read_sweep(text, folder))
    np.save(folder / "data/x.npy", np.ones((4, 16), np.float32))
    assert before != keys(read_sweep(text, folder))

    model = onnx.load(folder / "small.onnx")
    (weight,) = model.graph.initializer
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, folder / "out.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    before_digest = model_digest(folder / "out.onnx")
    (folder / "w.bin").write_bytes(bytes(len((folder / "w.bin").read_bytes())))
    assert before_digest != model_digest(folder / "out.onnx")
