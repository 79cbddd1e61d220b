"""Reading YAML that strangers wrote: plain values only, bounded text, and no key that silently replaces another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import yaml

MAX_TEXT = 256 << 10
"""Longest text in bytes; a resolved recipe with a line per layer of a large network fits many times."""

Refuse = Callable[[str, str, str], NoReturn]
"""Raises the caller's error from the path of the wrong key ("" for the whole text), why, and what to do."""


def read_mapping(text: str, refuse: Refuse, *, example: str, limit: int = MAX_TEXT) -> dict[Any, Any]:
    """The mapping that `text` holds. `example` is told where it holds something else."""
    if len(text) > limit:
        refuse("", f"{len(text)} bytes of text", f"at most {limit} are read")
    try:
        # a SafeLoader: it makes plain values only
        data = yaml.load(text, Loader=_Loader)
    except _Twice as error:
        refuse(str(error), "the key is given twice", "keep one of them")
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or error.__class__.__name__
        refuse("", f"it is not YAML: {where}{problem}", "")
    if not isinstance(data, dict):
        refuse("", kind(data), f"it is a mapping such as `{example}`")
    return data


def kind(value: object) -> str:
    """What a value is, in words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return f"it is {names.get(type(value), f'a {type(value).__name__}')}"


class _Twice(Exception):
    """A key that a mapping has twice."""


class _Loader(yaml.SafeLoader):
    """A SafeLoader that does not let a key silently replace an earlier one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if isinstance(key, str) and keys.count(key) > 1:
                raise _Twice(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if value.bit_length() > 64:
        raise yaml.constructor.ConstructorError(None, None, "a number of more than 64 bits", node.start_mark)
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
