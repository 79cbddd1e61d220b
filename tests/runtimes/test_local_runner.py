"""A program from its calls to its numbers, and everything that can be wrong at run."""

from __future__ import annotations

import ctypes
import re
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgesparse.artifacts import artifact
from edgesparse.artifacts.artifact import open_artifact
from edgesparse.artifacts.manifest import Manifest, TensorInfo
from edgesparse.building import link
from edgesparse.errors import ArtifactError, DeviceError, UsageError
from edgesparse.lowering import arena, emit
from edgesparse.lowering.program import Buffer, Call, Port, Program, Ref
from edgesparse.runtimes import base
from edgesparse.runtimes.local import LocalRunner

import toy  # isort: skip

FEEDS = toy.some_samples(1)[0].inputs


@pytest.fixture
def runner(toy_built: Path) -> Iterator[LocalRunner]:
    with LocalRunner(toy_built) as opened:
        yield opened


def rewritten(folder: Path, change: Callable[[Manifest], Manifest]) -> Path:
    """The artifact with another manifest."""
    opened = open_artifact(folder)
    out = folder.with_name("rewritten")
    artifact.write(out, change(opened.manifest), {name: folder / name for name in opened.manifest.files})
    return out


def test_it_computes_what_numpy_computes(runner: LocalRunner) -> None:
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((toy.ROWS, toy.COLUMNS), np.float32)
        found, expected = runner.run({toy.INPUT: x}), toy.reference(x)
        assert list(found) == [toy.OUTPUT, toy.SUMS]
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6)


def test_results_are_the_caller_s_own(runner: LocalRunner) -> None:
    first = runner.run(FEEDS)[toy.OUTPUT]
    kept = first.copy()
    runner.run({toy.INPUT: FEEDS[toy.INPUT] * 2})
    np.testing.assert_array_equal(first, kept)
    assert first.flags.writeable


def test_any_strides_are_taken(runner: LocalRunner) -> None:
    x = FEEDS[toy.INPUT]
    turned = np.asfortranarray(x)
    swapped = x.astype(">f4")
    for variant in (turned, swapped):
        np.testing.assert_array_equal(runner.run({toy.INPUT: variant})[toy.SUMS], runner.run(FEEDS)[toy.SUMS])


def test_load_and_step_for_measuring(runner: LocalRunner) -> None:
    expected = runner.run(FEEDS)[toy.SUMS]
    runner.run({toy.INPUT: FEEDS[toy.INPUT] * 0})
    runner.load(FEEDS)
    runner.step()
    np.testing.assert_array_equal(runner._outputs[1], expected)


def test_the_profile_names_every_layer(runner: LocalRunner) -> None:
    runner.run(FEEDS)
    profile = runner.profile()
    assert [name for name, _ in profile] == ["affine", "relu", "rows"]
    assert all(0 <= ns < 10**9 for _, ns in profile)
    assert sum(ns for _, ns in profile) > 0


def test_sizes(runner: LocalRunner, toy_built: Path) -> None:
    assert runner.weights_bytes == (toy_built / "weights.bin").stat().st_size
    assert runner.arena_bytes == arena.assign(toy.program()).arena_bytes


def test_the_zipped_form_runs(toy_built: Path, tmp_path: Path, own_cache: Path) -> None:
    with LocalRunner(artifact.pack(toy_built, tmp_path / "toy.esp")) as opened:
        opened.run(FEEDS)


def test_several_models_at_once(toy_built: Path) -> None:
    """Two models of one library in threads of their own do not disturb each other."""
    wrong: list[int] = []

    def many(seed: int) -> None:
        x = np.full((toy.ROWS, toy.COLUMNS), seed, np.float32)
        with LocalRunner(toy_built) as opened:
            for _ in range(200):
                if not np.allclose(opened.run({toy.INPUT: x})[toy.OUTPUT], toy.reference(x)[toy.OUTPUT]):
                    wrong.append(seed)

    threads = [threading.Thread(target=many, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weights_are_mapped_and_memory_is_given_back(toy_built: Path) -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(str(toy_built / "weights.bin"))

    before = mappings()
    opened = LocalRunner(toy_built)
    assert mappings() == before + 1
    opened.close()
    opened.close()
    assert mappings() == before
    for use in (lambda: opened.run(FEEDS), opened.profile, lambda: opened.load(FEEDS), lambda: opened.arena_bytes):
        with pytest.raises(UsageError, match="closed"):
            use()


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "missing: x (it takes x: float32[5x7])"),
        ({"X": FEEDS["x"]}, "unknown: X; missing: x"),
        ({**FEEDS, "y": FEEDS["x"]}, "unknown: y"),
        ({"x": FEEDS["x"].tolist()}, "is a list"),
        ({"x": FEEDS["x"].astype(np.float64)}, "has the dtype float64: the model takes float32"),
        ({"x": FEEDS["x"][:4]}, "has the shape (4, 7): the model was compiled for (5, 7)"),
        ({"x": FEEDS["x"][None]}, "has the shape (1, 5, 7)"),
    ],
)
def test_wrong_inputs_are_told(runner: LocalRunner, feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        runner.run(feeds)
    with pytest.raises(UsageError, match=re.escape(message)):
        runner.load(feeds)


def test_damage_is_told_before_anything_is_loaded(toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray((toy_artifact / "model.so").read_bytes())
    data[100] ^= 1
    (toy_artifact / "model.so").write_bytes(data)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: pytest.fail("loaded"))
    with pytest.raises(ArtifactError, match=r"model\.so is damaged"):
        LocalRunner(toy_artifact)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"machine": "riscv64"}, "compiled for other (riscv64), this machine is"),
        ({"triple": "riscv64-linux-gnu"}, "compiled for other (riscv64)"),
        ({"needs": ["fpu9", "warp"]}, "this processor lacks fpu9, warp"),
    ],
)
def test_a_machine_that_cannot_run_it_is_told(toy_artifact: Path, target: dict[str, object], message: str) -> None:
    path = rewritten(toy_artifact, lambda m: replace(m, target={"name": "other", **target}))
    with pytest.raises(DeviceError, match=re.escape(message)):
        LocalRunner(path)


def test_unknown_features_stop_nothing(monkeypatch: pytest.MonkeyPatch, toy_built: Path, tmp_path: Path) -> None:
    assert base.host_flags()
    monkeypatch.setattr(base, "_CPUINFO", tmp_path / "no")
    assert base.host_flags() == frozenset()
    LocalRunner(toy_built).close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "truncated or has extra bytes"),
        (lambda data: data + b"x", "truncated or has extra bytes"),
        (lambda data: data[:20], "truncated or has extra bytes"),
        (lambda data: b"", "missing, empty or cannot be read"),
        (lambda data: b"X" + data[1:], "not a weights file of this version"),
        (lambda data: data[:8] + struct.pack("<I", 9) + data[12:], "not a weights file of this version"),
        (lambda data: data[:30] + b"\0\0\0" + data[33:], "belongs to another model"),
    ],
)
def test_the_library_itself_checks_its_weights(
    toy_artifact: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    """As on a device, where no Python has checked hashes."""
    path = toy_artifact / "weights.bin"
    opened = open_artifact(toy_artifact)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtifactError, match=message):
        LocalRunner(opened)


def test_missing_weights_and_null_pointers(toy_built: Path) -> None:
    library = ctypes.CDLL(str(toy_built / "model.so"))
    library.es_error.restype = ctypes.c_char_p
    model = ctypes.c_void_p()
    assert library.es_create(b"/nonexistent", ctypes.byref(model)) == 1
    assert library.es_create(b"/", ctypes.byref(model)) == 1
    assert not model
    assert library.es_create(None, ctypes.byref(model)) == 6
    assert library.es_create(b"x", None) == 6
    assert library.es_create_from_memory(None, ctypes.c_uint64(0), ctypes.byref(model)) == 6
    assert library.es_run(None) == 6
    assert library.es_profile(None, None) == 6
    library.es_destroy(None)
    messages = {library.es_error(status) for status in range(-1, 9)}
    assert len(messages) == 9, "eight statuses and 'unknown'"


def test_a_library_that_is_none_is_told(toy_artifact: Path) -> None:
    opened = open_artifact(toy_artifact)
    (toy_artifact / "model.so").write_bytes(b"no library")
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        LocalRunner(opened)


def test_a_library_without_the_interface_is_told(toy_artifact: Path, tmp_path: Path) -> None:
    opened = open_artifact(toy_artifact)
    link.zig_cc(["-shared", "-x", "c", "/dev/null", "-o", str(tmp_path / "empty.so")], tmp_path, "a test")
    (toy_artifact / "model.so").unlink()  # not in place: the file may be mapped
    (toy_artifact / "model.so").write_bytes((tmp_path / "empty.so").read_bytes())
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        LocalRunner(opened)


def test_another_interface_is_told(toy_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgesparse.runtimes.local.ABI", 99)
    with pytest.raises(ArtifactError, match="this edgesparse speaks 99"):
        LocalRunner(toy_built)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: replace(m, inputs=(TensorInfo("x", "float32", (7, 5)),)),
        lambda m: replace(m, outputs=m.outputs[:1]),
        lambda m: replace(m, outputs=m.outputs[::-1]),
        lambda m: replace(m, inputs=()),
    ],
)
def test_a_manifest_that_contradicts_the_library_is_told(
    toy_artifact: Path, change: Callable[[Manifest], Manifest]
) -> None:
    path = rewritten(toy_artifact, change)
    with pytest.raises(ArtifactError, match="contradicts itself"):
        LocalRunner(path)


def test_an_arena_beyond_memory_is_told(toy_artifact: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    opened = open_artifact(toy_artifact)
    with LocalRunner(opened):  # everything else is in memory now
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used, limits[1]))
        try:
            with pytest.raises((DeviceError, ArtifactError)):
                LocalRunner(opened)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("short", [True, False])
def test_every_number_of_pointers_is_called_right(short: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel kN writes the sum of (i + 1) * p_i[0], of its argument and of its range, to its last pointer."""
    if not short:
        monkeypatch.setattr(emit, "_SHORT", 0)
    source, calls, buffers = ["#include <stdint.h>"], [], [Buffer("x", 64, True), Buffer("out", 4 * 17, True)]
    source.append("static float *seen;")
    for n in range(17):
        params = "".join(f"float *p{i}, " for i in range(n))
        total = "".join(f" + {i + 1} * p{i}[0]" for i in range(n - 1))
        body = f"*p{n - 1} = a[0] + begin * 100 + end * 1000{total};" if n else "seen[0] = a[0] + begin + end;"
        keep = "seen = p0;" if n == 1 else ""
        head = f'__attribute__((visibility("default"))) void k{n}'
        source.append(f"{head}({params}const int32_t *a, int32_t begin, int32_t end) {{ {body} {keep} }}")
        pointers = tuple(Ref("x", 4 * (i % 16)) for i in range(n - 1))
        calls.append(Call(f"k{n}", (*pointers, Ref("out", 4 * n)) if n else (), (n,), 2, 3))
    made = arena.assign(
        Program(
            (*calls[1:2], calls[0], *calls[2:]),
            tuple(buffers),
            {},
            (Port("x", "float32", (16,), "x"),),
            (Port("out", "float32", (17,), "out"),),
            ("l",),
        )
    )
    link.link_shared(
        [link.compile_c("\n".join(source), toy.TRIPLE)], emit.emit(made).program_c, tmp_path / "m.so", toy.TRIPLE
    )
    described = Manifest({"name": "toy"}, (TensorInfo("x", "float32", (16,)),), (TensorInfo("out", "float32", (17,)),))
    files: dict[str, artifact.Content] = {"model.so": tmp_path / "m.so", "weights.bin": emit.weights_bytes(made)}
    x = np.arange(1, 17, dtype=np.float32)
    with LocalRunner(artifact.write(tmp_path / "a", described, files)) as opened:
        found = opened.run({"x": x})["out"]
    expected = [n + 200 + 3000 + sum((i + 1) * x[i % 16] for i in range(n - 1)) for n in range(17)]
    expected[1] = 0 + 2 + 3  # overwritten by the kernel without pointers
    np.testing.assert_array_equal(found[1:], expected[1:])
