"""What a sweep is to measure, read from YAML. Strict: an error names the path of the wrong key.

    models:
      - network.onnx
      - {path: page.onnx, name: page, shapes: {x: [1, 3, 224, 224]}, calibrate: pages/, eval: {inputs: test.npz}}
    recipes:
      - dense                                                  # nothing is pruned
      - careful.yaml                                           # a recipe file
      - {name: g8, pattern: group:8x1, densities: [0.1, 0.3]}  # a recipe written here; one for each density
    targets: [native]
    devices: [local]
    bench: {seconds: 10, runs: 100, threads: 1}

Paths are relative to the file's folder. `eval` takes inputs as calibration does, and `labels`: `names`, a .csv or
a .npy, as in `edgesparse.advice.labels`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from edgesparse.errors import EdgesparseError, UsageError
from edgesparse.recipe import Recipe, load_recipe
from edgesparse.target import Target
from edgesparse.yamltext import MAX_TEXT, kind, read_mapping

DENSE = "dense"
ENGINES = ("node", "chromium")
MAX_CELLS = 100_000

_KEYS = ("models", "recipes", "targets", "devices", "bench", "seed")
_MODEL_KEYS = ("path", "name", "shapes", "calibrate", "eval")


@dataclass(frozen=True)
class Evaluation:
    """Inputs that quality is measured on, and their labels if there are any: a file, or the word `names`."""

    inputs: Path
    labels: Path | str | None = None


@dataclass(frozen=True)
class SweptModel:
    """A model under the name that reports call it by."""

    name: str
    path: Path
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    calibrate: Path | None = None
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class SweptRecipe:
    """A recipe and its name; None prunes nothing."""

    name: str
    recipe: Recipe | None


@dataclass(frozen=True)
class Timing:
    """How each cell is measured; seconds, runs, threads and cores as `bench` has them.

    Attributes
    ----------
    onnxruntime, memory:
        Whether to measure these beside the dense form, which always is.
    timeout:
        Seconds after which a cell is given up.
    """

    seconds: float = 10.0
    runs: int = 100
    threads: int = 1
    cores: str = "big"
    onnxruntime: bool = True
    memory: bool = False
    timeout: float = 7200.0


@dataclass(frozen=True)
class Sweep:
    """All that is to be combined."""

    models: tuple[SweptModel, ...]
    recipes: tuple[SweptRecipe, ...]
    targets: tuple[Target, ...]
    devices: tuple[str, ...]
    timing: Timing = field(default_factory=Timing)
    seed: int = 0


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep's file. UsageError names the path of the wrong key."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TEXT + 1).decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read sweep {path}", why=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"sweep {path} is not text", why="it is not UTF-8") from error
    return read_sweep(text, path.parent)


def read_sweep(text: str, folder: Path) -> Sweep:
    """Read a sweep from YAML text; its paths are relative to `folder`."""
    data = read_mapping(text, _refuse, example="models: [network.onnx]")
    _check_keys(data, _KEYS, "")
    for key in ("models", "recipes"):
        if key not in data:
            _refuse(key, "it is missing", "a sweep needs models and recipes")
    models = tuple(_model(item, f"models[{i}]", folder) for i, item in enumerate(_list(data, "models")))
    recipes = tuple(r for i, item in enumerate(_list(data, "recipes")) for r in _recipes(item, f"recipes[{i}]", folder))
    targets = tuple(_target(item, f"targets[{i}]") for i, item in enumerate(_list(data, "targets", ["native"])))
    devices = tuple(_device(item, f"devices[{i}]") for i, item in enumerate(_list(data, "devices", ["local"])))
    _unique([model.name for model in models], "models", "give them names of their own with name")
    _unique([recipe.name for recipe in recipes], "recipes", "give them names of their own with name")
    _unique([str(target) for target in targets], "targets", "keep one of them")
    _unique(list(devices), "devices", "keep one of them")
    if len(models) * len(recipes) * len(targets) * len(devices) > MAX_CELLS:
        _refuse("", "it has too many cells", f"at most {MAX_CELLS}")
    seed = _number(data.get("seed", 0), "seed", 0, 2**32 - 1, whole=True)
    return Sweep(models, recipes, targets, devices, _timing(data.get("bench", {})), int(seed))


def _model(item: Any, where: str, folder: Path) -> SweptModel:
    data: Mapping[str, Any] = {"path": item} if isinstance(item, str) else item
    _check_keys(data, _MODEL_KEYS, where)
    path = _path(data.get("path"), f"{where}.path", folder)
    shapes = data.get("shapes", {})
    if not isinstance(shapes, Mapping):
        _refuse(f"{where}.shapes", kind(shapes), "it takes a mapping such as {x: [1, 3, 224, 224]}")
    read = {str(name): _shape(value, f"{where}.shapes.{name}") for name, value in shapes.items()}
    calibrate = _path(data["calibrate"], f"{where}.calibrate", folder) if "calibrate" in data else None
    evaluation = _evaluation(data["eval"], f"{where}.eval", folder) if "eval" in data else None
    return SweptModel(_name(data.get("name", path.stem), f"{where}.name"), path, read, calibrate, evaluation)


def _evaluation(data: Any, where: str, folder: Path) -> Evaluation:
    from edgesparse.advice.labels import NAMES

    _check_keys(data, ("inputs", "labels"), where)
    labels: Path | str | None = data.get("labels")
    if "labels" in data and labels != NAMES:
        labels = _path(labels, f"{where}.labels", folder)
    return Evaluation(_path(data.get("inputs"), f"{where}.inputs", folder), labels)


def _recipes(item: Any, where: str, folder: Path) -> list[SweptRecipe]:
    if item == DENSE:
        return [SweptRecipe(DENSE, None)]
    try:
        if isinstance(item, str):
            path = _path(item, where, folder)
            return [SweptRecipe(path.stem, load_recipe(path))]
        if not isinstance(item, Mapping):
            _refuse(where, kind(item), "it takes dense, a recipe's file, or a recipe's keys and a name")
        keys = {key: value for key, value in item.items() if key not in ("name", "densities")}
        name = _name(item.get("name", item.get("pattern")), f"{where}.name")
        if "densities" not in item:
            return [SweptRecipe(name, Recipe.from_dict(keys))]
        if "density" in item or "sparsity" in item:
            _refuse(f"{where}.densities", "density or sparsity is given too", "keep one of them")
        shares = item["densities"]
        if not isinstance(shares, list) or not shares:
            _refuse(f"{where}.densities", kind(shares), "it takes a list such as [0.1, 0.3]")
        return [SweptRecipe(f"{name} at {share}", Recipe.from_dict({**keys, "density": share})) for share in shares]
    except UsageError as error:
        if error.what.startswith("sweep"):
            raise
        raise UsageError(f"sweep key {where}: {error.what}", why=error.why, fix=error.fix) from error


def _target(item: Any, where: str) -> Target:
    if not isinstance(item, str):
        _refuse(where, kind(item), "`edgesparse targets` lists them")
    try:
        return Target.parse(item)
    except EdgesparseError as error:
        raise UsageError(f"sweep key {where}: {error.what}", why=error.why, fix=error.fix) from error


def _device(item: Any, where: str) -> str:
    if not isinstance(item, str):
        _refuse(where, kind(item), "e.g. local, node, qemu, ssh://user@host:port, adb://serial")
    if item == "local" or item in ENGINES:
        return item
    if not re.fullmatch(r"qemu|adb|(ssh|ssh\+qemu|adb)://\S*", item):
        _refuse(where, f"{item[:80]!r} is no device", "e.g. local, node, qemu, ssh://user@host:port, adb://serial")
    return item


def _timing(data: Any) -> Timing:
    defaults = Timing()
    _check_keys(data, tuple(one.name for one in fields(Timing)), "bench")
    found: dict[str, Any] = {}
    for key, value in data.items():
        where, default = f"bench.{key}", getattr(defaults, key)
        if isinstance(default, bool):
            if not isinstance(value, bool):
                _refuse(where, kind(value), "true or false")
            found[key] = value
        elif isinstance(default, str):
            if not isinstance(value, str) or not re.fullmatch(r"big|little|all|(0x)?[0-9a-fA-F]{1,16}", value):
                _refuse(where, f"it is {str(value)[:40]!r}", "big, little, all, or a hex mask")
            found[key] = value
        else:
            whole = isinstance(default, int)
            most = {"threads": 256, "runs": 10**7, "seconds": 3600, "timeout": 10**6}[key]
            number = _number(value, where, 1 if whole else 0.01, most, whole=whole)
            found[key] = int(number) if whole else number
    return Timing(**found)


def _path(value: Any, where: str, folder: Path) -> Path:
    if not isinstance(value, str) or not value:
        _refuse(where, "it is missing" if value is None else kind(value), "it takes a path")
    path = folder / value
    if "\0" in value or not os.path.exists(path):  # Path.exists raises for names that no file can have
        _refuse(where, f"there is no {path}", "paths are relative to the sweep's own folder")
    return path


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 8:
        _refuse(where, kind(value), "it takes a list of dimensions, e.g. [1, 3, 224, 224]")
    return tuple(int(_number(dim, f"{where}[{i}]", 1, 2**31 - 1, whole=True)) for i, dim in enumerate(value))


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():
        _refuse(where, "it is missing" if value is None else kind(value), "it takes a short text")
    return value


def _number(value: Any, where: str, low: float, high: float, *, whole: bool) -> float:
    right = isinstance(value, int) if whole else isinstance(value, int | float)
    if isinstance(value, bool) or not right or not low <= value <= high:
        kind_of = "a whole number" if whole else "a number"
        _refuse(where, f"it is {str(value)[:40]!r}", f"it takes {kind_of} from {low:g} to {high:g}")
    return float(value) if not whole else value


def _list(data: Mapping[str, Any], key: str, default: list[str] | None = None) -> list[Any]:
    value = data.get(key, default)
    if not isinstance(value, list) or not value:
        _refuse(key, "it is an empty list" if value == [] else kind(value), "it takes a list of at least one")
    return value


def _unique(names: list[str], where: str, fix: str) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            _refuse(where, f"{name!r} is there twice", fix)


def _check_keys(data: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(data, Mapping):
        _refuse(where, kind(data), f"it takes a mapping of {', '.join(known)}")
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key)[:100], known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            place = f"{where}.{key}" if where else str(key)
            _refuse(place[:200], "there is no such key", f"{hint}keys are {', '.join(known)}")


def _refuse(where: str, why: str, fix: str = "") -> NoReturn:
    raise UsageError(f"sweep key {where}" if where else "the sweep", why=why, fix=fix)
