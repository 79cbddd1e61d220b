"""Reading reports that anybody may have written: the shipped JSON Schema, and the part of JSON Schema that it uses.

Known keywords: type, const, enum, required, properties, additionalProperties, items, minItems, maxItems, minimum,
maximum, exclusiveMinimum, pattern, $ref. Infinities and NaN are no JSON.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from edgesparse.errors import EdgesparseError, UsageError

MAX_BYTES = 64 << 20
"""Most bytes of a report that is read."""

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


@functools.cache
def bench_schema() -> dict[str, Any]:
    """Return the JSON Schema of `edgesparse.bench/1`."""
    text = resources.files("edgesparse.measuring").joinpath("schemas/bench-1.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def faults(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None, where: str = "") -> list[str]:
    """Return what of a JSON value is not as a schema has it, each with its place; none if it is valid."""
    root = schema if root is None else root
    if "$ref" in schema:
        schema = functools.reduce(lambda part, key: part[key], schema["$ref"].removeprefix("#/").split("/"), root)
    place = where or "the report"
    if "const" in schema and value != schema["const"]:
        return [f"{place} is {_short(value)}, not {_short(schema['const'])}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{place} is {_short(value)}, not one of {', '.join(map(_short, schema['enum']))}"]
    if "type" in schema:
        wanted = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(_is(value, kind) for kind in wanted):
            return [f"{place} is {_short(value)}, not {' or '.join(wanted)}"]
    if isinstance(value, dict):
        return _object_faults(value, schema, root, where)
    if isinstance(value, list):
        return _array_faults(value, schema, root, where)
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return [f"{place} is {_short(value)}, which does not match {schema['pattern']}"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
        if (low is not None and value < low) or (above is not None and value <= above):
            return [f"{place} is {_short(value)}, which is too small"]
        if high is not None and value > high:
            return [f"{place} is {_short(value)}, which is too large"]
    return []


def _object_faults(value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> list[str]:
    known = schema.get("properties", {})
    found = [
        f"{where + '.' if where else ''}{key} is missing" for key in schema.get("required", ()) if key not in value
    ]
    for key, one in value.items():
        rule = known.get(key, schema.get("additionalProperties", {}))
        found += faults(one, rule, root, f"{where}.{key}" if where else key)
    return found


def _array_faults(value: list[Any], schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> list[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return [f"{where} has {len(value)} items"]
    return [
        fault
        for index, one in enumerate(value)
        for fault in faults(one, schema.get("items", {}), root, f"{where}[{index}]")
    ]


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}.."


def read_report(path: Path) -> dict[str, Any]:
    """Read a bench's JSON.

    Raises
    ------
    EdgesparseError
        The file cannot be read.
    UsageError
        It is no bench report of a version that is known here, or a field of it cannot be meant.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        raise EdgesparseError(f"cannot read {path}", why=error.strerror or str(error)) from error
    if size > MAX_BYTES:
        raise UsageError(f"{path} is no bench report", why=f"it has {size} bytes")
    try:
        value = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON", why=str(error)[:200], fix="give what `bench --json` wrote") from error
    schema = bench_schema()
    told = value.get("schema") if isinstance(value, dict) else None
    if told != schema["$id"]:
        why = f"its schema is {_short(told)}, this edgesparse reads {schema['$id']}"
        raise UsageError(f"{path} is no bench report", why=why, fix="give what `bench --json` wrote")
    found = faults(value, schema)
    if found:
        raise UsageError(f"{path} is damaged", why="; ".join(found[:3]), fix="measure again with `bench --json`")
    return dict(value)


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no JSON")
