"""A cache of files and folders on disk, keyed by content, shared by all processes of a user, and bounded.

It lies in the user's cache folder, or where the environment variable EDGESPARSE_CACHE says. Writes are
atomic; every entry carries its own SHA-256, so that a damaged one is dropped and counts as missing. When
the cache outgrows its limit the entries that were not used for longest go first. A cache that cannot be
written costs time, never a result: that is logged, not raised.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from edgesparse.errors import UsageError

_log = logging.getLogger(__name__)

#: Bytes the cache may grow to.
DEFAULT_LIMIT = 2 << 30

#: Eviction goes down to this share of the limit, so that it does not run at every write.
_KEEP = 0.9

#: Seconds after which a half-written file must be an orphan.
_ORPHAN_AGE = 3600.0

_DIGEST_BYTES = 32

#: Bytes this process has written since it last measured the whole cache, by cache folder.
_written: dict[Path, int] = {}


@dataclass(frozen=True)
class CacheStats:
    """Where the cache is, how many entries and bytes it holds, and its limit in bytes."""

    root: Path
    entries: int
    nbytes: int
    limit: int


def root() -> Path:
    """The cache's folder; it need not exist yet."""
    override = os.environ.get("EDGESPARSE_CACHE")
    return Path(override).expanduser().absolute() if override else Path(platformdirs.user_cache_dir("edgesparse"))


def key_of(*parts: str | bytes) -> str:
    """A key made of all parts: equal if and only if all of them are."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def get(key: str) -> bytes | None:
    """The bytes stored under a key, or None. A damaged entry is dropped."""
    path = _entry(key)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    payload = data[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != data[:_DIGEST_BYTES]:
        _log.warning("the cache entry %s is damaged; dropped", path)
        _remove(path)
        return None
    _touch(path)
    return payload


def put(key: str, data: bytes, *, limit: int = DEFAULT_LIMIT) -> None:
    """Store bytes under a key; `limit` bounds the whole cache in bytes."""
    path = _entry(key)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        _log.warning("the cache at %s cannot be written: %s", root(), error)
        if temporary:
            _remove(Path(temporary))
        return
    _account(len(data), limit)


def folder(key: str, fill: Callable[[Path], None], *, limit: int = DEFAULT_LIMIT) -> Path:
    """The folder stored under a key; `fill` is given an empty folder to fill where there is none.

    What lies in the folder is not checked here. A folder that is in use may be evicted by another process:
    open its files at once and keep them open or mapped.

    Raises
    ------
    UsageError
        The cache cannot be written. Whatever `fill` raises passes through, and nothing is stored.
    """
    path = root() / "folders" / _name(key)
    if path.is_dir():
        _touch(path)
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=path.parent))
    except OSError as error:
        raise _unusable(error) from error
    try:
        fill(temporary)
        size = _tree_bytes(temporary)
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():  # else another process was faster, and its folder holds the same
                raise
    except OSError as error:
        raise _unusable(error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _account(size, limit)
    return path


def drop_folder(key: str) -> None:
    """Forget the folder stored under a key."""
    shutil.rmtree(root() / "folders" / _name(key), ignore_errors=True)


def stats(*, limit: int = DEFAULT_LIMIT) -> CacheStats:
    """What the cache holds now."""
    entries = list(_entries())
    return CacheStats(root(), len(entries), sum(size for _, size, _ in entries), limit)


def clear() -> CacheStats:
    """Remove every entry; what was removed. Entries that other processes are writing stay."""
    before = stats()
    for _, _, path in _entries():
        _remove(path)
    _written.pop(root(), None)
    return before


def _unusable(error: OSError) -> UsageError:
    return UsageError(
        f"the cache at {root()} cannot be written",
        why=error.strerror or str(error),
        fix="free some space, or set EDGESPARSE_CACHE to another folder",
    )


def _name(key: str) -> str:
    """Keys may hold anything; file names are their hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def _entry(key: str) -> Path:
    name = _name(key)
    return root() / "files" / name[:2] / name


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _tree_bytes(path: Path) -> int:
    total = 0
    for folder_path, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder_path, name)).st_size
    return total


def _places() -> Iterator[Path]:
    """Everything that lies where entries lie, also half-written ones."""
    for pattern in ("files/*/*", "files/*/.new-*", "folders/*", "folders/.new-*"):
        yield from root().glob(pattern)


def _entries() -> Iterator[tuple[float, int, Path]]:
    """Time of last use, bytes and path of every complete entry."""
    seen: set[Path] = set()
    for path in _places():
        if path in seen or path.name.startswith("."):
            continue
        seen.add(path)
        with contextlib.suppress(OSError):
            status = path.stat()
            yield status.st_mtime, _tree_bytes(path) if path.is_dir() else status.st_size, path


def _account(nbytes: int, limit: int) -> None:
    """Count what was written; measure the cache at first, and then whenever 1 % of the limit was written."""
    where = root()
    pending = _written.get(where)
    if pending is not None and pending + nbytes < limit // 100:
        _written[where] = pending + nbytes
        return
    _written[where] = 0
    _evict(limit)


def _evict(limit: int) -> None:
    """Drop orphans of killed processes, and what was used longest ago until the cache is within its limit."""
    try:
        with FileLock(root() / ".lock", timeout=0):
            for path in _places():
                with contextlib.suppress(OSError):
                    if path.name.startswith(".new-") and time.time() - path.stat().st_mtime > _ORPHAN_AGE:
                        _remove(path)
            entries = sorted(_entries())
            total = sum(size for _, size, _ in entries)
            if total <= limit:
                return
            for _, size, path in entries:
                if total <= _KEEP * limit:
                    break
                _remove(path)
                total -= size
    except Timeout:
        pass  # Another process is evicting: one is enough.
    except OSError as error:
        _log.warning("the cache at %s cannot be locked: %s", root(), error)
