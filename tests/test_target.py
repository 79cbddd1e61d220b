"""Targets: presets, parsing, detection."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesparse import target as T
from edgesparse.errors import UsageError
from edgesparse.target import Target


@pytest.fixture
def fake_host(monkeypatch, tmp_path: Path):
    def make(flags: str, machine: str = "x86_64", caches: tuple[tuple[str, str, str], ...] = ()) -> None:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n")
        for number, values in enumerate(caches):
            folder = tmp_path / "cache" / f"index{number}"
            folder.mkdir(parents=True)
            for key, value in zip(("level", "type", "size"), values, strict=True):
                (folder / key).write_text(value + "\n")
        monkeypatch.setattr(T, "_CPUINFO", cpuinfo)
        monkeypatch.setattr(T, "_CACHES", tmp_path / "cache")
        monkeypatch.setattr(T.platform, "machine", lambda: machine)
        T.host_flags.cache_clear()
        T.host_caches.cache_clear()

    yield make
    monkeypatch.undo()
    T.host_flags.cache_clear()
    T.host_caches.cache_clear()


@pytest.mark.parametrize("preset", T.TARGETS, ids=str)
def test_text_round_trips(preset: Target) -> None:
    assert Target.parse(str(preset)) == preset
    changed = preset.with_cache("l1d", 49152).with_cache("l2", 2 << 20)
    assert str(changed) == f"{preset.name},l1d=49152,l2=2097152"
    assert Target.parse(str(changed)) == changed


def test_v4_asks_for_whole_vectors() -> None:
    assert Target.parse("x86-64-v4").tvm_target() == {
        "kind": "llvm",
        "mtriple": "x86_64-linux-gnu",
        "mcpu": "x86-64-v4",
        "mattr": ["-prefer-256-bit"],
    }
    assert "mattr" not in Target.parse("x86-64-v3").tvm_target()


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_native_takes_the_highest_that_runs(fake_host, level: str) -> None:
    preset = Target.parse(level)
    fake_host(" ".join(sorted(preset.needs)))
    assert Target.parse("native") == preset


def test_native_keeps_the_caches(fake_host) -> None:
    data, code, shared = ("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M")
    fake_host(" ".join(T._V4), caches=(data, code, shared, ("3", "Unified", "30M"), ("2", "Unified", "?")))
    assert str(Target.parse("native")) == "x86-64-v4,l1d=49152,l2=2097152"


@pytest.mark.parametrize(("flags", "machine"), [("sse2", "x86_64"), (" ".join(T._V4), "riscv64")])
def test_native_on_an_unknown_host(fake_host, flags: str, machine: str) -> None:
    fake_host(flags, machine)
    with pytest.raises(UsageError, match="no target fits this machine"):
        Target.parse("native")


def test_no_cpuinfo(fake_host, monkeypatch, tmp_path: Path) -> None:
    fake_host("sse2")
    monkeypatch.setattr(T, "_CPUINFO", tmp_path / "nothing")
    assert T.host_flags() == frozenset()
    assert T.host_caches() == (0, 0)


def test_unknown_target_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean x86-64-v3\? .*x86-64-v4, .*native"):
        Target.parse("x86_64_v3")
    with pytest.raises(UsageError, match="unknown target"):
        Target.parse("")


@pytest.mark.parametrize("text", ["x86-64-v3,l3=4", "x86-64-v3,l1d=0", "x86-64-v3,l1d=", "x86-64-v3,"])
def test_bad_setting(text: str) -> None:
    with pytest.raises(UsageError, match="is not l1d=BYTES"):
        Target.parse(text)
