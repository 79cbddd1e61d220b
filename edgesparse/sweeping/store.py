"""Finished cells on disk: one file each, named by the cell's key, there as a whole or not at all.

A cell is held by a lock while somebody measures it, so that two sweeps in one folder share the work. The lock is the
system's: it is free again when its holder ends, however that ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from edgesparse.errors import UsageError
from edgesparse.sweeping.grid import SCHEMA, Cell


@dataclass(frozen=True)
class Store:
    """The folder of a sweep."""

    root: Path

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's result, or None. A file that is damaged, or another cell's, counts as none."""
        try:
            data = json.loads(self._file(cell).read_text(encoding="utf-8"))
            record = data["record"]
            whole = data["sha256"] == _digest(record) and record["schema"] == SCHEMA and record["key"] == cell.key
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return dict(record["result"]) if whole else None

    def put(self, cell: Cell, result: dict[str, Any]) -> None:
        """Keep a result. EdgesparseError if the folder cannot be written."""
        from edgesparse.passes.write import write_atomic

        record = {"schema": SCHEMA, "key": cell.key, "cell": cell.names(), "result": result}
        text = json.dumps({"sha256": _digest(record), "record": record}, indent=1, allow_nan=False)
        write_atomic(self._file(cell), text.encode())

    @contextlib.contextmanager
    def hold(self, cell: Cell) -> Iterator[bool]:
        """Hold a cell for the length of the block; yields False where another process holds it."""
        lock = FileLock(self.root / "locks" / f"{cell.key}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def make(self) -> None:
        """Make the folder. UsageError if that cannot be."""
        try:
            for name in ("cells", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {self.root}", why=error.strerror or str(error)) from error

    def _file(self, cell: Cell) -> Path:
        return self.root / "cells" / f"{cell.key}.json"


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
