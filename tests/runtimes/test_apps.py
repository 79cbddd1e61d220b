"""The library for Android apps: it needs no libc, and computes what onnxruntime does, under QEMU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from devicekit import needs_qemu, small_artifact

from edgesparse.artifacts import samples
from edgesparse.artifacts.artifact import Artifact
from edgesparse.artifacts.verify import compare
from edgesparse.building import link
from edgesparse.building.bare import link_bare
from edgesparse.building.executable import STATIC_TRIPLES
from edgesparse.building.modules import HEADER, LIBRARY
from edgesparse.errors import CompileError, UnsupportedError
from edgesparse.runtimes.device import EMULATORS, files_of

LOADER = Path(__file__).with_name("loader.c")


@pytest.fixture(scope="module")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_artifact(tmp_path_factory.mktemp("apps"), "android-arm64")


@pytest.fixture(scope="module")
def armv7(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_artifact(tmp_path_factory.mktemp("apps"), "android-armv7")


@pytest.fixture(params=["arm64", "armv7"])
def made(request: pytest.FixtureRequest) -> Artifact:
    found: Artifact = request.getfixturevalue(request.param)
    return found


def run_library(library: Path, artifact: Artifact, room: Path) -> subprocess.CompletedProcess[bytes]:
    target = artifact.manifest.target
    triple = STATIC_TRIPLES[str(target["triple"])]
    flags = ["-target", triple, "-static", "-O1", "-std=gnu99", "-I", str(link.native_folder()), str(LOADER)]
    link.zig_cc([*flags, "-o", "loader"], room, "compiling the loader")
    given = files_of(artifact)["sample.in"]
    assert isinstance(given, bytes)
    (room / "input").write_bytes(given)
    command = [EMULATORS[str(target["machine"])], "loader", str(library), str(artifact.weights), "input"]
    return subprocess.run(command, cwd=room, capture_output=True, check=False)


@needs_qemu
def test_it_runs_without_any_other_library(made: Artifact, tmp_path: Path) -> None:
    done = run_library(made.file(LIBRARY), made, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    sample = samples.load(made.file(samples.NAME), made.manifest)[0]
    expected = next(iter(sample.outputs.values()))
    assert compare(np.frombuffer(done.stdout, np.float32).reshape(expected.shape), expected)[1] < 1e-5


def test_it_is_what_an_app_can_take(made: Artifact) -> None:
    text = subprocess.run(
        ["readelf", "-dW", "--dyn-syms", str(made.file(LIBRARY))], capture_output=True, text=True, check=True
    ).stdout
    assert "NEEDED" not in text
    assert "TEXTREL" not in text
    assert "Library soname: [libmodel.so]" in text
    rows = [line.split() for line in text.splitlines() if re.match(r" +\d+: ", line)]
    names = {row[7] for row in rows if len(row) > 7}
    assert [row[7:] for row in rows if row[6] == "UND"] == [[]], "only the first, which has no name"
    header = made.file(HEADER).read_text(encoding="utf-8")
    assert {"es_create", "es_run", "es_output"} <= names
    assert all(f"{name}(" in header for name in names)


@needs_qemu
def test_a_library_with_libc_is_told_by_the_loader(arm64: Artifact, tmp_path: Path) -> None:
    library = tmp_path / "libc.so"
    triple = "aarch64-linux-gnu"
    source = '#include <unistd.h>\nvoid es_create(void); __attribute__((visibility("default"))) void es_create(void)'
    code = link.compile_c(source + "{ getpid(); }", triple)
    (tmp_path / "one.o").write_bytes(code)
    flags = ["-target", link.zig_triple(triple), "-shared", "-Wl,-z,max-page-size=16384", "-Wl,--hash-style=both"]
    link.zig_cc([*flags, "one.o", "-o", str(library)], tmp_path, "linking")
    done = run_library(library, arm64, tmp_path)
    assert done.returncode == 1
    assert b"the library needs libc.so" in done.stderr


def test_a_kernel_that_wants_libc_is_told(tmp_path: Path) -> None:
    triple = "aarch64-linux-gnu"
    kernel = link.compile_c("int getpid(void); int k(void); int k(void) { return getpid(); }", triple)
    tables = '#include "program.h"\nint k(void);\nconst es_program es_main_program = {.digest = (void *)k};\n'
    with pytest.raises(CompileError, match="undefined symbol: getpid"):
        link_bare([kernel], tables, tmp_path / "a.so", triple)
    assert not (tmp_path / "a.so").exists()
    with pytest.raises(UnsupportedError, match="no library for wasm32"):
        link_bare([], "", tmp_path / "a.so", "wasm32-unknown-unknown")
