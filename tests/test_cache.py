"""The cache: many processes, damaged entries, a bound."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from edgesparse import cache
from edgesparse.errors import UsageError

pytestmark = pytest.mark.usefixtures("own_cache")


def entry_of(key: str) -> Path:
    return cache._entry(key)


def test_what_was_put_is_got() -> None:
    assert cache.get("key") is None
    cache.put("key", b"value")
    cache.put("empty", b"")
    assert cache.get("key") == b"value"
    assert cache.get("empty") == b""
    assert cache.stats() == cache.CacheStats(cache.root(), 2, 5 + 2 * 32, cache.DEFAULT_LIMIT)


def test_any_text_is_a_key(own_cache: Path) -> None:
    for key in ("../../evil", "", "x" * 10_000, "ü\n"):
        cache.put(key, key.encode())
        assert cache.get(key) == key.encode()
    assert all(own_cache in path.parents for path in own_cache.rglob("*"))


def test_keys_tell_their_parts_apart() -> None:
    assert cache.key_of("ab", "c") != cache.key_of("a", "bc")
    assert cache.key_of("ab", b"c") == cache.key_of("ab", b"c")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"\1" + data[1:], lambda data: b""])
def test_a_damaged_entry_is_dropped(damage) -> None:
    cache.put("key", b"value")
    path = entry_of("key")
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("key") is None
    assert not path.exists()


def test_the_least_recently_used_go_first() -> None:
    for index in range(10):
        cache.put(str(index), bytes(968), limit=10_000)
        os.utime(entry_of(str(index)), (index, index))
    cache.get("0")
    cache.put("new", bytes(968), limit=10_000)
    assert cache.stats().nbytes <= 10_000
    assert cache.get("0") is not None, "used just now"
    assert cache.get("new") is not None
    assert cache.get("1") is None


def test_clear_says_what_it_removed() -> None:
    cache.put("key", b"value")
    cache.folder("folder", lambda path: (path / "file").write_bytes(b"12345") and None)
    assert (cache.clear().entries, cache.stats().entries, cache.stats().nbytes) == (2, 0, 0)


def test_orphans_of_killed_processes_go(own_cache: Path) -> None:
    cache.put("key", b"value")
    orphan, young = entry_of("key").parent / ".new-orphan", entry_of("key").parent / ".new-young"
    for path in (orphan, young):
        path.write_bytes(b"half")
    os.utime(orphan, (time.time() - 7200,) * 2)
    cache._evict(cache.DEFAULT_LIMIT)
    assert not orphan.exists()
    assert young.exists()


def test_a_full_disk_costs_time_only(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache.put("key", b"value")
    assert "No space left" in caplog.text
    assert cache.get("key") is None
    assert not list(cache.root().rglob(".new-*"))


def test_an_unusable_folder_costs_time_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EDGESPARSE_CACHE", str(tmp_path / "file"))
    cache.put("key", b"value")
    assert cache.get("key") is None
    assert cache.stats().entries == 0
    with pytest.raises(UsageError, match="EDGESPARSE_CACHE"):
        cache.folder("key", lambda path: None)


def test_a_folder_is_filled_once_and_as_a_whole() -> None:
    calls = []

    def fill(path: Path) -> None:
        calls.append(path)
        (path / "a").write_bytes(b"1")

    assert cache.folder("key", fill) == cache.folder("key", fill)
    assert len(calls) == 1
    with pytest.raises(ZeroDivisionError):
        cache.folder("other", lambda path: print(1 / 0))
    assert cache.stats().entries == 1
    cache.drop_folder("key")
    assert cache.stats().entries == 0


def work(seed: int) -> int:
    """Put and get the same keys as all the others, under a limit that evicts all the time."""
    wrong = 0
    for step in range(60):
        key = str((step * 7 + seed) % 10)
        cache.put(key, key.encode() * 3000, limit=20_000)
        found = cache.get(key)
        wrong += found is not None and found != key.encode() * 3000
        folder = cache.folder(f"f{key}", lambda path, key=key: (path / "f").write_text(key) and None, limit=20_000)
        with contextlib.suppress(FileNotFoundError):  # evicted by another
            wrong += (folder / "f").read_text() != key
    return wrong


def test_many_processes_at_once() -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(work, range(4)) == [0] * 4
    assert cache.stats().nbytes <= 40_000
    assert not list(cache.root().rglob(".new-*"))
