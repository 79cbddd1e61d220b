"""Compiling and linking by zig."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from edgesparse import cache
from edgesparse.building import link
from edgesparse.errors import CompileError
from edgesparse.lowering import arena, emit

import toy  # isort: skip


@pytest.fixture(scope="module")
def kernels() -> bytes:
    return link.compile_c(toy.KERNELS, toy.TRIPLE)


@pytest.fixture(scope="module")
def tables() -> str:
    return emit.emit(arena.assign(toy.program())).program_c


def test_equal_input_gives_equal_bytes(kernels: bytes, tables: str, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        link.link_shared([kernels], tables, tmp_path / name / f"{name}.so", toy.TRIPLE)
    one, other = (tmp_path / name / f"{name}.so" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    assert len(one.read_bytes()) < 40_000
    assert str(tmp_path).encode() not in one.read_bytes()


def test_only_the_interface_is_exported(kernels: bytes, tables: str, tmp_path: Path) -> None:
    path = tmp_path / "kernels.o"
    path.write_bytes(kernels)
    link.link_shared([path], tables, tmp_path / "m.so", toy.TRIPLE)
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", tmp_path / "m.so"], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    header = (link.native_folder() / "edgesparse.h").read_text()
    assert names == set(re.findall(r"^ES_API .*?(es_\w+)\(", header, re.MULTILINE))


def test_the_runtime_is_compiled_once(
    own_cache: Path, kernels: bytes, tables: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link.link_shared([kernels], tables, tmp_path / "m.so", toy.TRIPLE)
    assert cache.stats().entries == 3, "runtime, platform, pool"
    compiled: list[str] = []
    true_compile = link.compile_c

    def spy(source: str, triple: str, flags: tuple[str, ...] = ()) -> bytes:
        compiled.append(source)
        return true_compile(source, triple, flags)

    monkeypatch.setattr(link, "compile_c", spy)
    link.link_shared([kernels], tables, tmp_path / "m.so", toy.TRIPLE)
    assert compiled == [tables]


def test_a_missing_kernel_is_named(tables: str, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="toy_affine"):
        link.link_shared([], tables, tmp_path / "m.so", toy.TRIPLE)
    assert not (tmp_path / "m.so").exists()


def test_the_compiler_s_message_is_told() -> None:
    with pytest.raises(CompileError, match="expected"):
        link.compile_c("int broken = ;", toy.TRIPLE)


def test_a_broken_object_is_told(tables: str, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="linking the compiled model failed"):
        link.link_shared([b"not an object"], tables, tmp_path / "m.so", toy.TRIPLE)


def test_an_output_that_cannot_be_written_is_told(kernels: bytes, tables: str, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="cannot write"):
        link.link_shared([kernels], tables, tmp_path / "no" / "m.so", toy.TRIPLE)


def test_a_missing_zig_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    link._zig.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CompileError, match="pip install ziglang"):
        link.compile_c("", toy.TRIPLE)


def test_a_wedged_zig_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stuck = tmp_path / "zig"
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    monkeypatch.setattr(link, "_zig", lambda: (str(stuck),))
    monkeypatch.setattr(link, "TIMEOUT", 0.1)
    with pytest.raises(CompileError, match="stuck"):
        link.compile_c("", toy.TRIPLE)


def test_an_unstartable_zig_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_zig", lambda: ("/nonexistent/zig",))
    with pytest.raises(CompileError, match="cannot be started"):
        link.compile_c("", toy.TRIPLE)


@pytest.mark.parametrize("triple", ["wasm32-freestanding", "aarch64-linux-gnu"])
def test_the_runtime_compiles_for_others(triple: str) -> None:
    """runtime.c asks nothing of a system: what does is in platform_*.c."""
    link.compile_c((link.native_folder() / "runtime.c").read_text(), triple)
