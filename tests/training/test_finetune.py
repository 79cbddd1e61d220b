"""From ONNX and inputs alone: the way through `finetune`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graphs import graph, prepared

from edgesparse.cli import main
from edgesparse.errors import UsageError
from edgesparse.models import digits
from edgesparse.models.data import onnx_run
from edgesparse.passes import load_model, weight_layers
from edgesparse.passes.layers import canonical_weight
from edgesparse.pattern import SparsePattern, keeps
from edgesparse.recipe import Recipe
from edgesparse.training import CheckpointError, NotFiniteError, trainer
from edgesparse.training.finetune import Settings, finetune


def test_finetune_keeps_the_graph_and_nearly_all_accuracy(trained: Path, tmp_path: Path) -> None:
    made = finetune(
        trained / "digits.onnx",
        trained / "inputs",
        tmp_path / "out.onnx",
        Recipe.from_dict({"pattern": "group:4x1", "sparsity": 0.6, "targets": ["Conv"]}),
        Settings(steps=150, batch=32, rate=2e-2),
    )
    assert made.agreement > 0.9
    dense, sparse = load_model(trained / "digits.onnx"), load_model(made.output)
    for one, other in ((dense.graph.inputs, sparse.graph.inputs), (dense.graph.outputs, sparse.graph.outputs)):
        assert [(v.name, v.shape, v.dtype) for v in one] == [(v.name, v.shape, v.dtype) for v in other]
    weights = {layer.name: canonical_weight(sparse, layer) for layer in weight_layers(sparse)}
    for report in made.layers:
        assert keeps(SparsePattern("group", 4, 1), weights[report.name])
        assert np.mean(weights[report.name] != 0) == pytest.approx(report.density, abs=0.01)
    total = sum(one.weights for one in made.layers)
    assert sum(one.density * one.weights for one in made.layers) / total == pytest.approx(0.4, abs=0.02)
    pictures, classes = digits.load()[1]
    run = onnx_run(made.output)
    right = np.mean([int(run(one[None]).argmax()) == label for one, label in zip(pictures, classes, strict=True)])
    assert right > 0.93
    assert not list(tmp_path.glob("*.checkpoint"))


def test_finetune_resumes_bit_for_bit(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", -1.0)  # after every step
    targets = Recipe.from_dict({"pattern": "unstructured", "sparsity": 0.5, "targets": ["Conv"]})

    def go(name: str, progress: Callable[[float, str], None] | None = None, resume: bool = False) -> bytes:
        settings = Settings(steps=16, batch=8)
        path = tmp_path / name
        finetune(trained / "digits.onnx", trained / "inputs", path, targets, settings, resume=resume, progress=progress)
        return path.read_bytes()

    whole = go("whole.onnx")
    for stop in (5, 14):  # before and after the masks are final

        def ended(share: float, text: str, stop: int = stop) -> None:
            if text.startswith(f"step {stop}/"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            go(f"cut{stop}.onnx", ended)
        assert not (tmp_path / f"cut{stop}.onnx").exists()
        assert go(f"cut{stop}.onnx", resume=True) == whole


def test_training_that_diverges_keeps_the_last_good_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", -1.0)
    targets = Recipe.from_dict({"pattern": "unstructured", "sparsity": 0.5, "targets": ["Conv"]})
    where = (trained / "digits.onnx", trained / "inputs", tmp_path / "out.onnx", targets)
    right = trainer.augment

    def wrong(batch: torch.Tensor, source: torch.Generator, kind: str, side: int | None) -> torch.Tensor:
        made = right(batch, source, kind, side)
        return made * float("nan") if source.initial_seed() == 5 else made

    monkeypatch.setattr(trainer, "augment", wrong)
    with pytest.raises(NotFiniteError, match="last good checkpoint"):
        finetune(*where, Settings(steps=8, batch=8))
    state = torch.load(tmp_path / "out.onnx.checkpoint", weights_only=True)
    assert state["done"] == 5
    assert all(value.isfinite().all() for value in state["student"].values())
    assert not (tmp_path / "out.onnx").exists()
    monkeypatch.setattr(trainer, "augment", right)
    assert finetune(*where, Settings(steps=8, batch=8), resume=True).steps == 8


def test_the_time_budget_holds_on_a_machine_that_gets_busier(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = Recipe.from_dict({"pattern": "unstructured", "sparsity": 0.5, "targets": ["Conv"]})
    monkeypatch.setattr(trainer.Trainer, "_steps_in", lambda self, seconds: 100_000)
    where = (trained / "digits.onnx", trained / "inputs", tmp_path / "out.onnx", targets)
    made = finetune(*where, Settings(minutes=0.03, batch=8))
    assert made.steps < 100_000
    assert made.seconds < 5
    kept = sum(one.density * one.weights for one in made.layers) / sum(one.weights for one in made.layers)
    assert kept == pytest.approx(0.5, abs=0.01)


def test_a_plan_that_takes_too_long_is_shortened(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = Recipe.from_dict({"pattern": "unstructured", "sparsity": 0.5, "targets": ["Conv"]})
    clock, seen = [0.0], []
    right = trainer.Trainer._step

    def step(self: trainer.Trainer) -> float:
        seen.append((self.optimizer.param_groups[0]["lr"], self.sparsifier.sparsity))
        clock[0] += 1.0
        return right(self)

    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(trainer.Trainer, "_steps_in", lambda self, seconds: 400)
    monkeypatch.setattr(trainer.Trainer, "_step", step)
    where = (trained / "digits.onnx", trained / "inputs", tmp_path / "out.onnx", targets)
    made = finetune(*where, Settings(minutes=1.0, batch=4))
    assert made.steps == pytest.approx(60, abs=1)
    rates, sparsity = zip(*seen, strict=True)
    assert rates[-1] < 0.05 * max(rates), "the rate has come down"
    assert sparsity[40] == pytest.approx(0.5, abs=0.02), "the schedule of pruning has come to its end in time"
    assert max(b - a for a, b in pairwise(sparsity[9:])) < 0.1, "and not in one jump"


def test_each_round_of_rewinding_has_rates_of_its_own(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = Recipe.from_dict({"pattern": "unstructured", "sparsity": 0.5, "targets": ["Conv"]})
    rates = []
    right = trainer.Trainer._step

    def step(self: trainer.Trainer) -> float:
        rates.append(self.optimizer.param_groups[0]["lr"])
        return right(self)

    monkeypatch.setattr(trainer.Trainer, "_step", step)
    where = (trained / "digits.onnx", trained / "inputs", tmp_path / "out.onnx", targets)
    finetune(*where, Settings(steps=40, batch=4, method="rewinding", rate=1.0))
    assert [at for at, rate in enumerate(rates) if rate < 0.0105] == [0, 5, 10, 15, 20]
    assert all(max(rates[at : at + 5]) > 0.8 for at in (0, 5, 10, 15, 20))


def test_fewer_inputs_than_classes_teach_by_features(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    np.save(tmp_path / "few" / "a.npy", digits.load()[0][0][:9])
    recipe = Recipe.from_dict({"pattern": "unstructured", "sparsity": 0.5, "targets": ["Conv"]})

    def head(**teach: str) -> tuple[np.ndarray, np.ndarray]:
        settings = Settings(steps=8, batch=4, **teach)
        path = tmp_path / "out.onnx"
        finetune(trained / "digits.onnx", tmp_path / "few", path, recipe, settings)
        dense, made = prepared(trained / "digits.onnx"), load_model(path)
        layers = [weight_layers(one)[-1] for one in (dense, made)]
        assert layers[0].kind == "gemm"
        before, after = (canonical_weight(m, one) for m, one in zip((dense, made), layers, strict=True))
        return before.ravel(), after.ravel()

    before, after = head()
    factors = after[before != 0] / before[before != 0]
    assert np.ptp(factors) < 1e-5, "the layer of the classes gets a factor, and nothing else"
    before, after = head(teach="both")
    assert np.ptp(after[before != 0] / before[before != 0]) > 1e-3


def test_nothing_to_resume_and_other_runs(trained: Path, tmp_path: Path) -> None:
    targets = Recipe.from_dict({"pattern": "unstructured", "sparsity": 0.5, "targets": ["Conv"]})
    where = (trained / "digits.onnx", trained / "inputs", tmp_path / "out.onnx", targets)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        finetune(*where, Settings(steps=4), resume=True)
    checkpoint = tmp_path / "out.onnx.checkpoint"
    torch.save({"steps": "many"}, checkpoint)
    with pytest.raises(CheckpointError, match="not a checkpoint of finetune"):
        finetune(*where, Settings(steps=4), resume=True)

    def ended(share: float, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(*where, Settings(steps=4), progress=ended)
    kept = checkpoint.read_bytes()
    model, data, output, _ = where
    other = Recipe.from_dict({"pattern": "unstructured", "sparsity": 0.6, "targets": ["Conv"]})
    (tmp_path / "few").mkdir()
    np.save(tmp_path / "few" / "a.npy", digits.load()[0][0][:10])
    proto = onnx.load(model)
    proto.producer_name = "somebody else"
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    for what, arguments, settings in (
        ("recipe", (model, data, output, other), Settings(steps=4)),
        ("setting", where, Settings(steps=4, seed=1)),
        ("data", (model, tmp_path / "few", output, targets), Settings(steps=4)),
        ("model", (tmp_path / "model.onnx", data, output, targets), Settings(steps=4)),
    ):
        with pytest.raises(CheckpointError, match=f"is of another {what}"):
            finetune(*arguments, settings, resume=True)
        assert checkpoint.read_bytes() == kept
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"best": {"loss": 0.1}}, checkpoint)
    with pytest.raises(CheckpointError, match="not a checkpoint of finetune"):
        finetune(*where, Settings(steps=4), resume=True)
    checkpoint.write_bytes(kept)
    assert finetune(*where, Settings(steps=4), resume=True).steps == 4


@pytest.mark.parametrize("side", [6, 8])
def test_smaller_crops_where_the_network_takes_them(trained: Path, tmp_path: Path, side: int) -> None:
    targets = Recipe.from_dict({"pattern": "unstructured", "sparsity": 0.5, "targets": ["Conv"]})
    settings = Settings(steps=4, batch=8, augment="crop", crop_size=side)
    made = finetune(trained / "digits.onnx", trained / "inputs", tmp_path / "out.onnx", targets, settings)
    assert made.steps == 4  # a global pooling takes maps of any size


def test_the_last_third_shows_photographs_whole(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = Recipe.from_dict({"pattern": "unstructured", "sparsity": 0.5, "targets": ["Conv"]})
    shown: list[tuple[str, tuple[int, ...]]] = []
    right = trainer.augment

    def seen(batch: torch.Tensor, source: torch.Generator, kind: str, side: int | None) -> torch.Tensor:
        made = right(batch, source, kind, side)
        shown.append((kind, tuple(made.shape[2:])))
        return made

    monkeypatch.setattr(trainer, "augment", seen)
    where = (trained / "digits.onnx", trained / "inputs", tmp_path / "out.onnx", targets)
    finetune(*where, Settings(steps=6, batch=8, augment="strong", crop_size=6))
    assert shown[-6:] == [("strong", (6, 6))] * 4 + [("whole", (8, 8))] * 2
    finetune(*where, Settings(steps=6, batch=8, augment="crop", crop_size=6))
    assert shown[-6:] == [("crop", (6, 6))] * 6


def test_a_time_budget_counts_what_whole_photographs_take(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = Recipe.from_dict({"pattern": "unstructured", "sparsity": 0.5, "targets": ["Conv"]})
    clock, planned = [0.0], []
    answer, plan = trainer.Logits.forward, trainer.Trainer._steps_in

    def slow(self: trainer.Logits, inputs: torch.Tensor) -> torch.Tensor:
        clock[0] += 0.5 if inputs.shape[-1] == 6 else 2.0  # teacher and student, once each
        return answer(self, inputs)

    def steps(self: trainer.Trainer, seconds: float) -> int:
        planned.append(plan(self, 600.0))
        return 2

    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(trainer.Logits, "forward", slow)
    monkeypatch.setattr(trainer.Trainer, "_steps_in", steps)
    where = (trained / "digits.onnx", trained / "inputs", tmp_path / "out.onnx", targets)
    finetune(*where, Settings(batch=8, augment="strong", crop_size=6))
    assert planned == [int(600.0 / 1.2 / (1.2 * (2 / 3 * 1.0 + 1 / 3 * 4.0)))]


def test_smaller_crops_where_the_shape_is_fixed(tmp_path: Path) -> None:
    model = graph(
        "agraph (float[1,2,4,4] x) => (float[1,3] y) "
        "<float[3,2,1,1] w = {1, 2, 3, 4, 5, 6}, float[3,48] d = {" + ", ".join("1" for _ in range(144)) + "}> "
        "{ c = Conv(x, w)\n f = Flatten(c)\n y = Gemm<transB = 1>(f, d) }"
    )
    ir.save(model, tmp_path / "fixed.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 2, 4, 4)).astype(np.float32))
    targets = Recipe.from_dict({"pattern": "unstructured", "sparsity": 0.5, "targets": ["Gemm"]})
    settings = Settings(steps=2, batch=4, augment="crop", crop_size=3)
    with pytest.raises(UsageError, match="does not take pictures of 3 pixels"):
        finetune(tmp_path / "fixed.onnx", tmp_path, tmp_path / "out.onnx", targets, settings)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"teach": "labels"},
        {"minutes": 0.0},
        {"batch": 0},
        {"held_back": 1.0},
        {"augment": "blur"},
        {"rate": -1.0},
        {"crop_size": 8},
    ],
)
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)


def test_the_command(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = str(trained / "digits.onnx"), str(tmp_path / "out.onnx")
    common = ["finetune", model, "--data", str(trained / "inputs"), "-o", out, "--steps", "8", "-q"]
    assert main([*common, "--pattern", "unstructured", "--sparsity", "0.5"]) == 0
    assert "agrees with the dense model on" in capsys.readouterr().out
    assert main([*common, "--pattern", "unstructured", "--sparsity", "0.5"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*common, "--force"]) == 2
    assert "needs to know what to prune" in capsys.readouterr().err


def test_the_share_of_inputs_held_back_is_asked_for(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[float] = []
    right = trainer.Trainer.run

    def run(self: trainer.Trainer, tick: Any) -> tuple[float, float]:
        seen.append(len(self.held_back) / (len(self.held_back) + len(self.trained)))
        return right(self, tick)

    monkeypatch.setattr(trainer.Trainer, "run", run)
    common = ["finetune", str(trained / "digits.onnx"), "--data", str(trained / "inputs"), "--steps", "2", "-q"]
    common += ["--pattern", "unstructured", "--sparsity", "0.5", "-o", str(tmp_path / "out.onnx"), "--held-back"]
    assert main([*common, "0.4"]) == 0
    assert seen == [pytest.approx(0.4, abs=0.01)]
    assert main([*common, "1", "--force"]) == 2
    assert "--held-back" in capsys.readouterr().err
