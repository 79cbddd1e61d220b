"""Recipes: what to do to which layers, as data. Read from YAML by a safe loader; strangers may write them.

    targets: [Conv, Gemm, "re:.*/fc/.*"]   # node names, operator types, re: patterns; default: all
    ignore: [/classifier/Gemm]             # the same, taken out again
    pattern: group:8x1                     # see `edgesparse patterns`
    density: 0.5                           # or sparsity: 0.5, not both
    criterion: magnitude
    seed: 0
    layers:                                # overrides; the last one wins; what is left out comes from above
      - targets: ["re:/features/1/.*"]
        density: 0.8

An operator type stands for the layers of that type that are pruned by default: depthwise convolutions, which
hold few weights and lose much, are taken only where their node's own name is given or matched. So does a kind
(`conv1x1`, `conv`, `gemm`, `matmul`). The sections `calibration`, `reconstruction`, `recalibration`, `allocation`,
`rearrangement` and `fitting` are in `edgesparse.sections`; `quantization` is reserved, and refused until it does
something.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

from edgesparse.errors import EdgesparseError, PatternError, RecipeError
from edgesparse.pattern import DENSE, SparsePattern
from edgesparse.sections import (
    SECTIONS,
    Allocation,
    Calibration,
    Fitting,
    Rearrangement,
    Recalibration,
    Reconstruction,
    read_section,
    section_dict,
)
from edgesparse.select import Candidate, Selector
from edgesparse.yamltext import MAX_TEXT, read_mapping
from edgesparse.yamltext import kind as _kind

MAX_ITEMS = 10_000

AUTO = "auto"
CRITERIA = ("magnitude", "l1", "wanda", "obs", "fisher", AUTO)
"""Criteria that layers are scored by; all but the first two need calibration data, "fisher" torch as well; "auto" is
that of "obs" and "fisher" with which the model agrees better with the dense one.
"""

_LATER = ("quantization",)
_LAYER_KEYS = ("targets", "pattern", "density", "sparsity")
_KEYS = ("targets", "ignore", "pattern", "density", "sparsity", "criterion", "seed", "layers", *SECTIONS)


@dataclass(frozen=True)
class LayerRule:
    """An override: the layers that `targets` select get this pattern and density (None: its own)."""

    targets: tuple[str, ...]
    pattern: SparsePattern
    density: float | None


@dataclass(frozen=True)
class Choice:
    """What a recipe says about one layer: its pattern, its density (None: the pattern's own)."""

    pattern: SparsePattern
    density: float | None


@dataclass(frozen=True)
class Recipe:
    """A whole recipe; see the module's text for the keys. The default leaves everything dense."""

    targets: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    pattern: SparsePattern = DENSE
    density: float | None = None
    criterion: str = "magnitude"
    seed: int = 0
    layers: tuple[LayerRule, ...] = ()
    calibration: Calibration | None = None
    reconstruction: Reconstruction | None = None
    recalibration: Recalibration | None = None
    allocation: Allocation | None = None
    rearrangement: Rearrangement | None = None
    fitting: Fitting | None = None

    @property
    def needs_data(self) -> bool:
        """Whether the recipe cannot be followed without calibration data."""
        wants = self.allocation is not None and self.allocation.method in ("global", "sensitivity")
        repairs = any(part is not None for part in (self.reconstruction, self.recalibration, self.fitting))
        return repairs or wants or self.criterion not in ("magnitude", "l1")

    def with_repair(self) -> Recipe:
        """The same with everything that keeps accuracy, where there is calibration data and a free density."""
        allocation = Allocation("uniform" if self.pattern.fixed else "sensitivity")
        return replace(
            self,
            criterion=AUTO,
            reconstruction=Reconstruction(),
            recalibration=Recalibration(),
            allocation=allocation,
            rearrangement=Rearrangement(),
            fitting=Fitting("auto"),
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Check and take over a mapping as YAML or JSON gives it. RecipeError names the path of what is
        wrong.
        """
        _check_keys(data, _KEYS, "")
        section = data.get("allocation")
        free = isinstance(section, Mapping) and "budget" in section
        pattern, density = _pattern_density(data, "", DENSE, None, free=free)
        rules = _list(data, "layers", "")
        return cls(
            targets=_selectors(data, "targets", ""),
            ignore=_selectors(data, "ignore", ""),
            pattern=pattern,
            density=density,
            criterion=_criterion(data),
            seed=_seed(data),
            layers=tuple(_rule(rule, f"layers[{i}]", pattern, density) for i, rule in enumerate(rules)),
            **{name: read_section(name, data[name]) for name in SECTIONS if name in data},
        )

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Read a recipe from YAML text. Raises RecipeError."""
        data = read_mapping(text, _refuse, example="pattern: group:8x1")
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` takes back to an equal recipe; defaults are left out."""
        data: dict[str, Any] = {}
        for key in ("targets", "ignore"):
            if getattr(self, key):
                data[key] = list(getattr(self, key))
        data |= _pattern_dict(self.pattern, self.density)
        data |= {"criterion": self.criterion, "seed": self.seed}
        if self.layers:
            data["layers"] = [
                {"targets": list(rule.targets)} | _pattern_dict(rule.pattern, rule.density) for rule in self.layers
            ]
        data |= {name: section_dict(getattr(self, name)) for name in SECTIONS if getattr(self, name) is not None}
        return data

    def to_yaml(self) -> str:
        """The canonical text: the same bytes for equal recipes, readable by `from_yaml`."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)

    def resolve(self, candidates: Sequence[Candidate]) -> dict[str, Choice]:
        """What to do with each layer that the recipe selects, by node name, in the order of `candidates`.

        Raises RecipeError, naming the key, for a target or `ignore` entry that matches no candidate.
        """
        chosen = _matched(self.targets, candidates, "targets")
        if not self.targets:
            chosen = {candidate.name for candidate in candidates if candidate.default}
        choices = dict.fromkeys(chosen, Choice(self.pattern, self.density))
        for i, rule in enumerate(self.layers):
            matched = _matched(rule.targets, candidates, f"layers[{i}].targets")
            choices |= dict.fromkeys(matched, Choice(rule.pattern, rule.density))
        ignored = _matched(self.ignore, candidates, "ignore")
        kept = choices.keys() - ignored
        return {one.name: choices[one.name] for one in candidates if one.name in kept}


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file. RecipeError for a file that cannot be read, is too long or is no recipe."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_TEXT + 1)
        return Recipe.from_yaml(raw.decode("utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}", why=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not text", why="it is not UTF-8") from error
    except RecipeError as error:
        raise RecipeError(f"recipe {path}: {error.what}", why=error.why, fix=error.fix) from error


def _refuse(path: str, why: str, fix: str = "") -> NoReturn:
    raise RecipeError(f"recipe key {path}" if path else "the recipe", why=why, fix=fix)


def _check_keys(data: object, known: tuple[str, ...], path: str) -> None:
    if not isinstance(data, Mapping):
        _refuse(path, _kind(data), f"it takes a mapping of {', '.join(known)}")
    for key in data:
        if key in known:
            continue
        where = f"{path}.{key}" if path else str(key)
        if not path and key in _LATER:
            _refuse(where, "this section is not there yet", "leave it out")
        near = difflib.get_close_matches(str(key)[:100], known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        _refuse(where[:200], "there is no such key", f"{hint}keys are {', '.join(known)}")


def _list(data: Mapping[str, Any], key: str, path: str) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list | tuple):
        _refuse(f"{path}{key}", _kind(value), "it takes a list")
    if len(value) > MAX_ITEMS:
        _refuse(f"{path}{key}", f"it has {len(value)} entries", f"at most {MAX_ITEMS}")
    return list(value)


def _selectors(data: Mapping[str, Any], key: str, path: str) -> tuple[str, ...]:
    items = _list(data, key, path)
    for i, item in enumerate(items):
        if not isinstance(item, str) or not item:
            _refuse(f"{path}{key}[{i}]", _kind(item), "it takes a node name, an operator type or re:PATTERN")
        if why := Selector.problem(item):
            _refuse(f"{path}{key}[{i}]", why, "write it as names or a simpler pattern")
    return tuple(items)


def _rule(data: Any, path: str, pattern: SparsePattern, density: float | None) -> LayerRule:
    _check_keys(data, _LAYER_KEYS, path)
    targets = _selectors(data, "targets", f"{path}.")
    if not targets:
        _refuse(f"{path}.targets", "an override must say which layers it is for")
    own_pattern, own_density = _pattern_density(data, f"{path}.", pattern, density)
    return LayerRule(targets, own_pattern, own_density)


def _pattern_density(
    data: Mapping[str, Any], path: str, pattern: SparsePattern, density: float | None, *, free: bool = False
) -> tuple[SparsePattern, float | None]:
    """The pattern and density of one section; what it leaves out comes from the arguments. `free`: no density."""
    if "pattern" in data:
        text = data["pattern"]
        if not isinstance(text, str):
            _refuse(f"{path}pattern", _kind(text), "it takes text such as group:8x1")
        try:
            pattern = SparsePattern.parse(text)
        except PatternError as error:
            raise RecipeError(f"recipe key {path}pattern: {error.what}", why=error.why, fix=error.fix) from error
    if "density" in data and "sparsity" in data:
        _refuse(f"{path}sparsity", "density is given too", "keep one: density is 1 - sparsity")
    for key in ("density", "sparsity"):
        if key in data:
            share = _share(data[key], f"{path}{key}")
            # rounded, as 1 - 0.7 is 0.30000000000000004
            density = round(1.0 - share, 12) if key == "sparsity" else share
            if pattern.fixed:
                _refuse(f"{path}{key}", f"pattern {pattern} has its own density", "leave it out")
    if pattern.fixed:
        return pattern, None
    if free and density is not None:
        _refuse(f"{path}density", "a budget is given too", "keep one of them")
    if density is None and not free:
        _refuse(f"{path}density", f"pattern {pattern} needs it", "give density or sparsity, e.g. density: 0.5")
    return pattern, density


def _share(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(path, _kind(value), "it takes a number from 0 to 1")
    if not 0.0 <= value <= 1.0:  # nor is NaN
        _refuse(path, f"it is {str(value)[:40]}", "it takes a number from 0 to 1")
    return float(value)


def _criterion(data: Mapping[str, Any]) -> str:
    value = data.get("criterion", CRITERIA[0])
    if not isinstance(value, str) or value not in CRITERIA:
        _refuse("criterion", f"{str(value)[:40]!r} is not known", f"take {', '.join(CRITERIA)}")
    return value


def _seed(data: Mapping[str, Any]) -> int:
    value = data.get("seed", 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        _refuse("seed", _kind(value) if not isinstance(value, int) else f"it is {value}", "0 to 4294967295")
    return value


def _pattern_dict(pattern: SparsePattern, density: float | None) -> dict[str, Any]:
    return {"pattern": str(pattern)} | ({} if density is None else {"density": density})


def _matched(targets: Sequence[str], candidates: Sequence[Candidate], key: str) -> set[str]:
    matched: set[str] = set()
    for i, target in enumerate(targets):
        try:
            names = Selector(target).match(candidates)
        except EdgesparseError as error:
            raise RecipeError(f"recipe key {key}[{i}]", why=error.what, fix=error.fix) from error
        if not names:
            known = [one.name for one in candidates] + sorted({one.op_type for one in candidates})
            near = difflib.get_close_matches(target, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            fix = f"{hint}`edgesparse inspect` lists the layers"
            _refuse(f"{key}[{i}]", f"{target!r} matches no layer of the model that can be pruned", fix)
        matched |= names
    return matched
