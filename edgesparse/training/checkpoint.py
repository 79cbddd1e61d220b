"""Checkpoints that are whole or not there: written beside, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgesparse.errors import EdgesparseError


class CheckpointError(EdgesparseError):
    """A checkpoint that is damaged, or of another recipe, method or model."""


def save_checkpoint(path: str | Path, parts: Mapping[str, Any]) -> None:
    """Write `state_dict()` of each part, and plain values as they are; an older file stays until then."""
    path = Path(path)
    data = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in parts.items()}
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}", why=error.strerror or str(error)) from error
    try:
        with os.fdopen(handle, "wb") as out:
            torch.save(data, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}", why=error.strerror or str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def load_checkpoint(path: str | Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Load the states into the parts; returns the plain values. The sparsifier is loaded first, as it checks most.

    Nothing but tensors and plain values is unpickled. Raises CheckpointError.
    """
    try:
        data = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except Exception as error:  # torch has a kind of failure for each kind of damage
        raise CheckpointError(f"cannot read checkpoint {path}", why=str(error).splitlines()[0][:200]) from error
    if not isinstance(data, dict) or parts.keys() - data.keys():
        raise CheckpointError(f"{path} is not a checkpoint of this run", why="parts are missing")
    for name in sorted(parts, key=lambda key: key != "sparsifier"):
        try:
            parts[name].load_state_dict(data[name])
        except EdgesparseError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{path}: the state of {name} does not fit",
                why=str(error).splitlines()[0][:200],
                fix="resume with the model that the run was started with",
            ) from error
    return {name: value for name, value in data.items() if name not in parts}
