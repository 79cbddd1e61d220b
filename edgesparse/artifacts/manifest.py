"""The manifest of an artifact: what it is for, what it computes, and the hash of each of its files.

It is JSON, sealed by its own SHA-256 (`digest`, taken with the digest's 64 places set to zero), so that one
changed byte anywhere in an artifact is noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgesparse.errors import ArtifactError

#: Version of the manifest's meaning; readers accept exactly their own.
SCHEMA = 1

NAME = "manifest.json"

#: Most bytes of a manifest, of one file and of all files of an artifact: a stranger's artifact may claim
#: anything.
MAX_MANIFEST_BYTES = 64 << 20
MAX_FILE_BYTES = 4 << 30
MAX_TOTAL_BYTES = 8 << 30
MAX_FILES = 64

#: Element types an artifact may take and give: numpy's names.
DTYPES = frozenset(
    (
        "float16",
        "float32",
        "float64",
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    )
)

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class TensorInfo:
    """A model input or output: ONNX name, numpy's name of the dtype, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{'x'.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class FileInfo:
    """SHA-256 (hex) and size in bytes of one file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """All that an artifact says of itself.

    Attributes
    ----------
    target:
        The target's fields. Runners read `name`, `triple`, `machine` (as `platform.machine()` has it) and
        `needs` (cpu flags as /proc/cpuinfo has them).
    inputs, outputs:
        The signature.
    layers:
        One mapping per layer: shape, pattern, density, kernel, reason, ..: JSON values.
    recipe, tools, info:
        The resolved recipe (or None), tool versions, and whatever else there is to tell (model hash,
        statistics).
    files:
        Hash and size of each file; filled in by the writer.
    module:
        The file that holds the code.
    """

    target: Mapping[str, Any]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layers: tuple[Mapping[str, Any], ...] = ()
    recipe: Any = None
    tools: Mapping[str, str] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileInfo] = field(default_factory=dict)
    module: str = "model.so"


def dump(manifest: Manifest) -> bytes:
    """The manifest as sealed JSON; deterministic.

    Raises
    ------
    TypeError, ValueError
        A value is not JSON (also NaN and infinities).
    """
    document = {
        "schema": SCHEMA,
        "digest": _NO_DIGEST,
        "module": manifest.module,
        "target": dict(manifest.target),
        "inputs": [_tensor(info) for info in manifest.inputs],
        "outputs": [_tensor(info) for info in manifest.outputs],
        "files": {name: {"sha256": entry.sha256, "size": entry.size} for name, entry in sorted(manifest.files.items())},
        "tools": dict(manifest.tools),
        "recipe": manifest.recipe,
        "info": dict(manifest.info),
        "layers": [dict(layer) for layer in manifest.layers],
    }
    text = json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text.replace(_NO_DIGEST, digest, 1).encode()


def load(data: bytes, where: str) -> Manifest:
    """Read a sealed manifest; `where` names it in errors.

    Raises
    ------
    ArtifactError
        It is not JSON, of another schema, changed since it was written, or says what cannot be.
    """
    document = _parse(data, where)
    schema = document.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        raise ArtifactError(
            f"{where} has schema {str(schema)[:20]}",
            why=f"this edgesparse reads schema {SCHEMA}",
            fix="compile the model again with this version",
        )
    _check_seal(data, document, where)
    try:
        return _from_document(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{where} is not a valid manifest",
            why=f"{type(error).__name__}: {error}",
            fix="compile the model again",
        ) from error


def is_file_name(name: str) -> bool:
    """Whether a file of an artifact may be called so: a plain name, no path, not hidden."""
    return bool(_FILE_NAME.fullmatch(name))


def _tensor(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}


def _parse(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{where} is larger than {MAX_MANIFEST_BYTES >> 20} MiB", why="it cannot be a manifest")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{where} is not JSON", why=str(error) or "it is nested too deeply", fix="compile the model again"
        ) from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{where} is not a manifest", why="it holds no JSON object")
    return document


def _check_seal(data: bytes, document: Mapping[str, Any], where: str) -> None:
    digest = document.get("digest")
    sealed = isinstance(digest, str) and _SHA256.fullmatch(digest)
    blank = data.replace(str(digest).encode(), _NO_DIGEST.encode(), 1) if sealed else data
    if not sealed or hashlib.sha256(blank).hexdigest() != digest:
        raise ArtifactError(
            f"{where} was changed after it was written",
            why="its digest does not fit its content",
            fix="compile the model again, or copy the artifact again",
        )


def _from_document(document: Mapping[str, Any]) -> Manifest:
    files = {name: _file_from(name, entry) for name, entry in _typed(document["files"], dict).items()}
    module = _typed(document["module"], str)
    if not {module, "weights.bin"} <= files.keys():
        raise ValueError(f"no file entry for {module} or weights.bin")
    if len(files) > MAX_FILES or sum(entry.size for entry in files.values()) > MAX_TOTAL_BYTES:
        raise ValueError("too many or too large files")
    return Manifest(
        target=_typed(document["target"], dict),
        inputs=_tensors(document["inputs"]),
        outputs=_tensors(document["outputs"]),
        layers=tuple(_typed(layer, dict) for layer in _typed(document["layers"], list)),
        recipe=document.get("recipe"),
        tools=_typed(document["tools"], dict),
        info=_typed(document["info"], dict),
        files=files,
        module=module,
    )


def _file_from(name: str, entry: Any) -> FileInfo:
    if not is_file_name(name) or name == NAME:
        raise ValueError(f"{name[:120]!r} is not a plain file name")
    info = FileInfo(_typed(entry["sha256"], str), _typed(entry["size"], int))
    if not _SHA256.fullmatch(info.sha256) or not 0 <= info.size <= MAX_FILE_BYTES:
        raise ValueError(f"the entry of {name} is out of range")
    return info


def _tensors(rows: Any) -> tuple[TensorInfo, ...]:
    infos = tuple(
        TensorInfo(
            _typed(row["name"], str),
            _typed(row["dtype"], str),
            tuple(_typed(dim, int) for dim in _typed(row["shape"], list)),
        )
        for row in _typed(rows, list)
    )
    for info in infos:
        if info.dtype not in DTYPES:
            raise ValueError(f"'{info.name}' has the dtype {info.dtype!r}")
        if any(dim < 0 for dim in info.shape) or math.prod(info.shape) > MAX_FILE_BYTES:
            raise ValueError(f"'{info.name}' has an impossible shape")
    if len({info.name for info in infos}) != len(infos):
        raise ValueError("two inputs or outputs share a name")
    return infos


def _typed(value: Any, kind: type) -> Any:
    """The value, which must be of that type; True is no number."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def tensor_list(infos: Sequence[TensorInfo]) -> str:
    """A signature as one line of text, for messages."""
    return ", ".join(map(str, infos)) or "none"
