"""Sparse training in torch. This is the one room that needs torch: `pip install 'edgesparse[torch]'`."""

from __future__ import annotations

from importlib.util import find_spec

from edgesparse.errors import UsageError

if find_spec("torch") is None:
    raise UsageError(
        "edgesparse.training needs torch", why="it is not installed", fix="pip install 'edgesparse[torch]'"
    )

from edgesparse.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from edgesparse.training.methods import Method, methods
from edgesparse.training.run import NotFiniteError
from edgesparse.training.sparsifier import LayerReport, Sparsifier

__all__ = [
    "CheckpointError",
    "LayerReport",
    "Method",
    "NotFiniteError",
    "Sparsifier",
    "load_checkpoint",
    "methods",
    "save_checkpoint",
]
