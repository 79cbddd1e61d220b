"""Sparse finetuning from an ONNX model and inputs alone: the dense model is the teacher, so no labels are needed.

The graph goes into torch (`edgesparse.training.converter`), is pruned while it trains to give the dense model's outputs
(softened logits, 1503.02531) and the dense model's values at every sparse layer (SquareHead, 2310.06927), and its
weights go back into the graph. A recipe may prune and rearrange before (`edgesparse.training.starting`). Some inputs
are held back: the state that agrees best with the dense model on them is what is written, as agreement on the inputs
trained on says nothing about others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from edgesparse.errors import ModelError, UsageError
from edgesparse.passes import SIMPLIFY, load_model, run_passes, save_model
from edgesparse.passes.prune import LAYERS_KEY, RECIPE_KEY, VERSION_KEY
from edgesparse.recipe import Recipe
from edgesparse.training.checkpoint import CheckpointError
from edgesparse.training.converter import Converted
from edgesparse.training.inputs import read_inputs
from edgesparse.training.layers import Tensor
from edgesparse.training.sparsifier import LayerReport
from edgesparse.training.starting import begin, forget, keep, kept
from edgesparse.training.trainer import Logits, Settings, Trainer

__all__ = ["Finetuned", "Settings", "check_equal", "finetune"]


@dataclass(frozen=True)
class Finetuned:
    """What came of it: shares of held-back inputs on which the two models agree, steps done, and the layers."""

    output: Path
    agreement: float
    steps: int
    seconds: float
    layers: tuple[LayerReport, ...]


def finetune(
    path: Path | str,
    data: Path | str,
    output: Path | str,
    recipe: Recipe,
    settings: Settings | None = None,
    *,
    shapes: dict[str, tuple[int, ...]] | None = None,
    resume: bool = False,
    progress: Callable[[float, str], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Finetuned:
    """Prune a model by `recipe` while training it to agree with itself, and write the portable ONNX.

    A checkpoint lies beside the output (`OUTPUT.checkpoint`) until it is done; with `resume` a run goes on from it.

    Raises
    ------
    UsageError, UnsupportedError: arguments, data or operators that do not fit.
    CheckpointError: nothing to resume, or the checkpoint of another run.
    NotFiniteError: training diverged; the last good checkpoint stays.
    """
    settings, path, output = settings or Settings(), Path(path), Path(output)
    if not output.parent.is_dir():
        raise UsageError(f"cannot write {output}", why=f"there is no folder {output.parent}")
    tick = progress or (lambda share, text: None)
    model = run_passes(load_model(path, shapes, notice or (lambda text: None)), SIMPLIFY).model
    if len(model.graph.inputs) != 1:
        raise UsageError(f"{path.name} has {len(model.graph.inputs)} inputs", why="finetune takes models of one input")
    inputs = read_inputs(data, model, recipe.calibration)
    held = max(int(len(inputs) * settings.held_back), 1)
    if len(inputs) - held < 1:
        raise UsageError(
            f"{data} has {len(inputs)} inputs", why="some are held back, and some must be left to train on"
        )
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(settings.seed))
    held_back, trained = inputs[order[:held]], inputs[order[held:]]
    check_equal(Converted(model), model, held_back[:2])
    checkpoint = Path(f"{output}.checkpoint")
    if resume and not checkpoint.is_file():
        raise CheckpointError(f"there is no checkpoint {checkpoint}", fix="start without --resume")
    start = kept(checkpoint, recipe) if resume else None
    if start is None:
        forget(checkpoint)
        start = begin(model, recipe, trained, tick)
        if start.dense is not model:
            keep(start, checkpoint)
    method = settings.method or ("given" if start.pruned else "gradual")
    teacher, student = Logits(Converted(start.dense)), Logits(Converted(start.begun))
    check_equal(student.graph, start.begun, held_back[:2])
    model = start.begun
    who = identity(path, inputs, recipe, settings)
    if start.pruned:  # its densities are found already
        settings = replace(settings, allocation="uniform")
    trainer = Trainer(teacher, student, trained, held_back, start.recipe, method, settings, checkpoint, resume, who)
    agreement, seconds = trainer.run(tick)
    reports = tuple(trainer.sparsifier.report())
    student.graph.write_back(model)
    said = {one.name: {"pattern": one.pattern, "density": round(one.density, 6)} for one in reports}
    model.metadata_props[RECIPE_KEY] = recipe.to_yaml()
    model.metadata_props[VERSION_KEY] = version("edgesparse")
    model.metadata_props[LAYERS_KEY] = json.dumps(said, sort_keys=True)
    check_equal(student.graph, model, held_back[:2])
    save_model(model, output)
    checkpoint.unlink(missing_ok=True)
    forget(checkpoint)
    return Finetuned(output, agreement, trainer.done, seconds, reports)


def identity(path: Path, inputs: Tensor, recipe: Recipe, settings: Settings) -> dict[str, str]:
    """What a run must have in common with the one that it goes on from; how long it may take is not part of it."""
    asked = {name: value for name, value in vars(settings).items() if name not in ("minutes", "steps")}
    return {
        "model": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        "data": hashlib.sha256(np.ascontiguousarray(inputs.numpy()).tobytes()).hexdigest()[:16],
        "recipe": recipe.to_yaml(),
        "setting": ", ".join(f"{name} {value}" for name, value in asked.items()),
    }


def check_equal(module: Converted, model: ir.Model, inputs: Tensor, tolerance: float = 1e-5) -> None:
    """Raise ModelError unless torch and onnxruntime agree, one by one and as a batch, to 1e-5 of the largest output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    module.eval()
    try:
        with torch.no_grad():
            made = module(inputs)
    except RuntimeError as error:
        why = str(error).splitlines()[0][:200]
        raise ModelError("the converted model cannot run in batches", why=why) from error
    ours = made if isinstance(made, tuple) else (made,)
    for index, one in enumerate(inputs):
        for mine, theirs in zip(ours, session.run(None, {name: one[None].numpy()}), strict=True):
            off = float(np.abs(mine[index].numpy() - theirs[0]).max()) / max(float(np.abs(theirs).max()), 1e-12)
            if not off <= tolerance:
                raise ModelError(
                    "the converted model computes other numbers than onnxruntime",
                    why=f"they differ by {off:.2g} of the largest output",
                    fix="report it with the model",
                )
