"""What finetuning starts from: rearranged, pruned and repaired graphs; and a run that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from edgesparse.cli import main
from edgesparse.errors import UsageError
from edgesparse.models import digits
from edgesparse.models.data import onnx_run
from edgesparse.models.exporting import to_onnx
from edgesparse.models.registry import spec
from edgesparse.passes import SIMPLIFY, load_model, run_passes, weight_layers
from edgesparse.passes.layers import canonical_weight
from edgesparse.pattern import SparsePattern, keeps
from edgesparse.recipe import Recipe
from edgesparse.training import Sparsifier
from edgesparse.training.finetune import Settings, finetune
from edgesparse.training.optim import Average, RelativeAdam, size
from edgesparse.training.starting import begin

GROUPS = {"targets": ["conv1x1"], "pattern": "group:4x1", "sparsity": 0.5}
REPAIR = {
    "criterion": "obs",
    "reconstruction": {"method": "refit"},
    "recalibration": {"layers": "all"},
    "allocation": {"method": "sensitivity"},
}
SEARCH = {"rearrangement": {"method": "search"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    proto = to_onnx(digits.trained(epochs=1), spec("digits"))
    onnx.helper.set_model_props(proto, {"owner": "tests"})
    (folder / "digits.onnx").write_bytes(proto.SerializeToString())
    (folder / "inputs").mkdir()
    np.save(folder / "inputs" / "a.npy", digits.load()[0][0][:120])
    return folder


def test_rearrangement_before_the_mask_is_chosen(trained: Path) -> None:
    model = run_passes(load_model(trained / "digits.onnx"), SIMPLIFY).model
    inputs = torch.from_numpy(digits.load()[0][0][:32])
    start = begin(model, Recipe.from_dict(GROUPS | SEARCH), inputs, lambda share, text: None)
    assert not start.pruned
    assert start.begun is start.dense
    moved = [
        not np.array_equal(canonical_weight(model, layer), canonical_weight(start.dense, layer))
        for layer in weight_layers(model)
    ]
    assert any(moved)
    before, after = (
        onnx_run(ir.to_proto(model).SerializeToString()),
        onnx_run(ir.to_proto(start.dense).SerializeToString()),
    )
    for one in inputs[:4].numpy():
        assert np.allclose(before(one[None]), after(one[None]), atol=1e-4)
    assert start.recipe.rearrangement is None
    # without the section, the graph is the one that was given
    plain = begin(model, Recipe.from_dict(GROUPS), inputs, lambda share, text: None)
    assert plain.dense is model


def test_finetune_goes_on_from_what_pruning_has_repaired(trained: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    recipe = Recipe.from_dict(GROUPS | REPAIR | SEARCH)
    made = finetune(
        trained / "digits.onnx", trained / "inputs", tmp_path / "out.onnx", recipe, Settings(steps=24, patience=99),
        progress=lambda share, text: seen.append(text),
    )  # fmt: skip
    sparse = load_model(made.output)
    weights = {layer.name: canonical_weight(sparse, layer) for layer in weight_layers(sparse)}
    assert {one.name for one in made.layers} <= weights.keys()
    for one in made.layers:
        assert keeps(SparsePattern("group", 4, 1), weights[one.name])
        assert np.mean(weights[one.name] != 0) == pytest.approx(one.density, abs=1e-6)
    assert len({round(one.density, 3) for one in made.layers}) > 1  # by sensitivity, not all alike
    assert Recipe.from_yaml(sparse.metadata_props["edgesparse.recipe"]) == recipe
    assert sparse.metadata_props["owner"] == "tests"
    assert "edgesparse.rearrangement" in sparse.metadata_props
    assert any("% sparse" in text and "min left" in text for text in seen)
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_repair_from_the_command_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    common = ["finetune", str(trained / "digits.onnx"), "--data", str(trained / "inputs"), "--recipe", str(recipe)]
    common += ["-o", str(tmp_path / "out.onnx"), "--repair", "--steps", "4", "--batch", "8", "--augment", "strong"]
    recipe.write_text(json.dumps(GROUPS))
    assert main(common) == 0
    made = load_model(tmp_path / "out.onnx")
    done = Recipe.from_yaml(made.metadata_props["edgesparse.recipe"])
    assert done == replace(Recipe.from_dict(GROUPS).with_repair(), fitting=None)
    layers = json.loads(made.metadata_props["edgesparse.layers"])
    assert len({one["density"] for one in layers.values()}) > 1
    for sections in (REPAIR, SEARCH):
        recipe.write_text(json.dumps(GROUPS | sections))
        capsys.readouterr()
        assert main([*common, "--force"]) == 2
        assert "--repair has nothing to add" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"fitting": {"method": "channels"}}, "has a fitting section"),
        ({"rearrangement": {"method": "cluster"}}, "for zeros that are there"),
    ],
)
def test_sections_that_do_not_go_with_training(section: dict, message: str, trained: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(GROUPS | section)
    with pytest.raises(UsageError, match=message):
        finetune(trained / "digits.onnx", trained / "inputs", tmp_path / "out.onnx", recipe, Settings(steps=4))


def test_given_zeros_must_make_the_pattern() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight[0, 0] = 0.0
    recipe = Recipe.from_dict({"pattern": "group:4x1", "density": 0.5})
    plain = Recipe.from_dict({"pattern": "unstructured", "density": 0.5})
    with pytest.raises(UsageError, match="no layer has a zero"):
        Sparsifier(torch.nn.Linear(4, 4), plain, steps=1, method="given")
    with pytest.raises(UsageError, match="do not make pattern group:4x1"):
        Sparsifier(model, recipe, steps=1, method="given")
    with torch.no_grad():
        model[0].weight[:4, :3] = 0.0
    sparsifier = Sparsifier(model, recipe, steps=1, method="given")
    model[0].weight.data.add_(1.0)
    sparsifier.step()
    assert not model[0].weight[:4, :3].any()
    assert model[0].weight[:, 3:].all()


def test_relative_steps() -> None:
    weight = torch.tensor([[30.0, 40.0, 0.0], [0.3, 0.4, 0.0]])
    assert torch.allclose(size(weight), torch.tensor([[1250.0], [0.125]]).sqrt())
    parameters = [torch.nn.Parameter(weight.clone()), torch.nn.Parameter(torch.tensor([3.0, 4.0])),
                  torch.nn.Parameter(torch.zeros(2))]  # fmt: skip
    before = [one.detach().clone() for one in parameters]
    optimizer = RelativeAdam(parameters, lr=0.01)
    for one in parameters:
        one.grad = torch.full_like(one, 5.0)
    optimizer.step()
    # Adam's first step is the rate, whatever the gradient
    for one, old in zip(parameters, before, strict=True):
        assert torch.allclose((old - one.detach()) / size(old), torch.full_like(one, 0.01), rtol=1e-3)
    assert float(size(torch.zeros(2))) > 0


WAITS = """
import sys, time
from edgesparse.training import trainer
save = trainer.Trainer._save
def saved(self):
    save(self)
    if self.done == 5:
        print("saved", flush=True)
        time.sleep(600)
trainer.SAVE_SECONDS, trainer.Trainer._save = -1.0, saved
"""
GOES = "import sys\nfrom edgesparse.cli import main\nsys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("sections", [SEARCH, REPAIR], ids=["pruned in training", "pruned before"])
def test_a_run_that_is_killed_goes_on(sections: dict, trained: Path, tmp_path: Path) -> None:
    """Signal 9 from outside while it trains; then `--resume` gives the very file that an undisturbed run gives."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(GROUPS | sections))

    def arguments(output: str) -> list[str]:
        options = ["--recipe", str(recipe), "--steps", "12", "--batch", "8", "-o", str(tmp_path / output)]
        return ["finetune", str(trained / "digits.onnx"), "--data", str(trained / "inputs"), *options]

    code = [sys.executable, "-c", WAITS + GOES]
    with subprocess.Popen(
        [*code, *arguments("cut.onnx")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"saved\n"
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut.onnx").exists()
    assert torch.load(tmp_path / "cut.onnx.checkpoint", weights_only=True)["done"] == 5
    assert main([*arguments("cut.onnx"), "--resume"]) == 0
    assert main(arguments("whole.onnx")) == 0
    assert (tmp_path / "cut.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.onnx", "recipe.yaml", "whole.onnx"]


def test_the_average_of_weights() -> None:
    module = torch.nn.Linear(3, 2)
    begun = Average(module, decay=0.75)
    values = np.random.default_rng(0).normal(size=(12, 2, 3)).astype(np.float32)
    for value in values:
        module.weight.data.copy_(torch.from_numpy(value))
        begun.update()
    wanted = values[:4].mean(0)  # the plain mean, until a step's share would be less than 1 - decay
    for value in values[4:]:
        wanted = 0.75 * wanted + 0.25 * value
    own = module.weight.detach().clone()
    with begun.in_place():
        assert np.allclose(module.weight.detach().numpy(), wanted, atol=1e-6)
    assert torch.equal(module.weight, own)
    resumed = Average(torch.nn.Linear(3, 2), decay=0.75)
    resumed.load_state_dict(begun.state_dict())
    for one in (begun, resumed):
        one.module.weight.data.fill_(1.0)
        one.update()
    assert torch.equal(begun.values["weight"], resumed.values["weight"])
    with pytest.raises(RuntimeError):
        Average(torch.nn.Linear(3, 4)).load_state_dict(begun.state_dict())
