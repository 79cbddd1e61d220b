"""From a trained module to portable ONNX, checked: what the compiler will find is what was trained."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from edgesparse.errors import ModelError, UsageError
from edgesparse.passes import model_from_proto, save_model
from edgesparse.passes.layers import canonical_weight, weight_layers
from edgesparse.passes.prune import LAYERS_KEY, RECIPE_KEY, VERSION_KEY

if TYPE_CHECKING:
    from edgesparse.training.sparsifier import Sparsifier

OPSET = 20


def export_sparse(
    sparsifier: Sparsifier,
    path: Path,
    example: Any,
    *,
    input_names: Sequence[str] = ("input",),
    output_names: Sequence[str] = ("output",),
) -> Path:
    """Export the module in evaluation mode and prove that every mask has survived.

    The model carries the metadata that `sparsify` writes: the recipe, our version, and the layers that are sparse.

    Parameters
    ----------
    example:
        A tensor or a tuple of tensors, of the shapes to compile for.

    Raises
    ------
    UsageError
        No folder to write into, or an example that is no tensor.
    ModelError
        torch cannot export the module, or the export has lost the zeros of a layer.
    """
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}", why=f"there is no folder {path.parent}")
    inputs = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    if not inputs or not all(isinstance(one, torch.Tensor) for one in inputs):
        raise UsageError("the example for the export is no tensor", fix="give the tensors that the model takes")
    module = copy.deepcopy(sparsifier.model).eval().to("cpu", torch.float32)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                tuple(one.cpu() for one in inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(input_names),
                output_names=list(output_names),
                optimize=True,
                verbose=False,
            )
        proto = program.model_proto
    except Exception as error:  # the exporter's failures have no common class
        raise ModelError("torch cannot export the model", why=str(error).strip().splitlines()[0][:300]) from error
    model = model_from_proto(_stripped(proto))
    found = _sparse_layers(model, sparsifier)
    model.metadata_props[RECIPE_KEY] = sparsifier.recipe.to_yaml()
    model.metadata_props[VERSION_KEY] = version("edgesparse")
    model.metadata_props[LAYERS_KEY] = json.dumps(found, sort_keys=True)
    save_model(model, path)
    return path


def _sparse_layers(model: ir.Model, sparsifier: Sparsifier) -> dict[str, dict[str, object]]:
    """Each sparse layer's node, by the mask that its weight keeps; ModelError for one that is nowhere."""
    candidates = {layer.name: canonical_weight(model, layer) != 0 for layer in weight_layers(model)}
    named = {layer.name: layer.weight for layer in weight_layers(model)}
    modules = {id(module): name for name, module in sparsifier.model.named_modules()}
    found: dict[str, dict[str, object]] = {}
    for report in sparsifier.report():
        layer = sparsifier.run.layers[report.name]
        mask = layer.canonical_mask(sparsifier.run.masks[report.name])
        kept = np.asarray(mask)
        fits = [n for n, w in candidates.items() if n not in found and w.shape == kept.shape and not (w & ~kept).any()]
        # the exporter keeps parameter names, except where it folds or transposes
        fits.sort(key=lambda n: named[n] != f"{modules[id(layer.module)]}.weight")
        if not fits:
            raise ModelError(
                f"the export has lost the zeros of layer {report.name!r}",
                why="no layer of the ONNX model has its mask",
                fix="report it with the model",
            )
        found[fits[0]] = {"pattern": report.pattern, "density": round(report.density, 6)}
    return found


def _stripped(proto: Any) -> Any:
    """The message without what the exporter records of this machine (source paths, stack traces)."""
    graph = proto.graph
    parts = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for holder in (proto, graph, *(item for part in parts for item in part)):
        del holder.metadata_props[:]
        holder.doc_string = ""
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter: its warnings, its logger and what it prints."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
