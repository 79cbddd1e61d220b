"""The cells of a sweep: which combinations there are, which of them cannot be measured, and what identifies each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgesparse import environment
from edgesparse.errors import Reason
from edgesparse.sweeping.spec import ENGINES, Sweep, SweptModel, Timing
from edgesparse.target import Target

SCHEMA = "edgesparse.sweep-cell/1"

_ANY_HOST = "any worker"


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes
    ----------
    model, recipe, target, device:
        Names, as reports call them.
    job:
        All that a process needs to measure it, as JSON values.
    key:
        Hash of all that the result depends on, in hexadecimal: contents of model, recipe and data, target, device,
        settings, tools, and for what runs on this machine its processor.
    """

    model: str
    recipe: str
    target: str
    device: str
    job: Mapping[str, Any]
    key: str

    @property
    def name(self) -> str:
        return f"{self.model} / {self.recipe} / {self.target} / {self.device}"

    def names(self) -> dict[str, str]:
        """The four names, as JSON values."""
        return {key: getattr(self, key) for key in ("model", "recipe", "target", "device")}


def cells_of(sweep: Sweep, *, cluster: bool = False) -> tuple[list[Cell], list[Reason]]:
    """All cells in the order of the file, and for each pair of target and device that is left out, why.

    On a cluster "local" is the worker that a cell comes to.
    """
    host = _ANY_HOST if cluster else _host()
    tools = {name: environment.version(name) for name in environment.TOOLS}
    cells, left_out = [], []
    pairs = []
    for target in sweep.targets:
        for device in sweep.devices:
            why = _misfit(target, device, cluster)
            if why:
                left_out.append(Reason("not-measured", why, f"{target} on {device}"))
            else:
                pairs.append((target, device))
    for model in sweep.models:
        contents = _contents(model)
        for entry in sweep.recipes:
            for target, device in pairs:
                job: dict[str, Any] = {
                    "schema": SCHEMA,
                    "shapes": {name: list(shape) for name, shape in model.shapes.items()},
                    "recipe": None if entry.recipe is None else entry.recipe.to_dict(),
                    "target": str(target),
                    "device": device,
                    "timing": dataclasses.asdict(sweep.timing),
                    "seed": sweep.seed,
                    "labels": _label_word(model),
                    "contents": contents,
                }
                here = host if device == "local" or device in ENGINES else ""
                known = {**job, "timing": _settings(sweep.timing), "tools": tools, "host": here}
                key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
                cells.append(Cell(model.name, entry.name, str(target), device, {**job, "paths": _paths(model)}, key))
    return cells, left_out


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their names; empty where there is none."""
    if path.is_file():
        return environment.sha256(path)
    digest = hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        digest.update(f"{file.relative_to(path)}\0{environment.sha256(file)}\n".encode())
    return digest.hexdigest() if path.is_dir() else ""


def model_digest(path: Path) -> str:
    """SHA-256 of an ONNX file and of the weights that lie beside it."""
    parts = [environment.sha256(path)]
    try:
        tensors = onnx.load(path, load_external_data=False).graph.initializer
    except Exception:  # protobuf has classes of its own; what is no model fails with its reason when it is loaded
        tensors = []
    named = {entry.value for one in tensors for entry in one.external_data if entry.key == "location"}
    parts += [file_digest(path.parent / name) for name in sorted(named)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if named else parts[0]


def contents_of(paths: Mapping[str, str]) -> dict[str, str]:
    """Digests of a job's files by role, to be compared with the job's own."""
    return {role: (model_digest if role == "model" else file_digest)(Path(path)) for role, path in paths.items()}


def _contents(model: SweptModel) -> dict[str, str]:
    return contents_of(_paths(model))


def _paths(model: SweptModel) -> dict[str, str]:
    given: dict[str, Path | str | None] = {"model": model.path, "calibrate": model.calibrate}
    if model.evaluation is not None:
        given |= {"inputs": model.evaluation.inputs, "labels": model.evaluation.labels}
    return {role: str(path.absolute()) for role, path in given.items() if isinstance(path, Path)}


def _label_word(model: SweptModel) -> str | None:
    """How labels are told where that is no file."""
    labels = model.evaluation.labels if model.evaluation else None
    return labels if isinstance(labels, str) else None


def _settings(timing: Timing) -> dict[str, Any]:
    """What the figures depend on: not how long one waits for them."""
    return {key: value for key, value in dataclasses.asdict(timing).items() if key != "timeout"}


def _host() -> str:
    here = environment.record()
    return json.dumps([here[key] for key in ("cpu", "architecture", "features")])


def _misfit(target: Target, device: str, cluster: bool) -> str:
    """Why a target's code cannot run on a device, as far as that can be told without asking it."""
    if device in ENGINES or target.machine == "wasm32":
        if device in ENGINES and target.machine == "wasm32":
            return ""
        return "WebAssembly runs in node and chromium, and they run nothing else"
    if device != "local":
        return "" if target.runner != "local" else "programs for devices are made for the ARM targets"
    if target.runner != "local":
        return "its programs are made for devices; for this machine there is native"
    return "" if cluster or target.runs_here() else "this machine has not its instructions"
