"""Compile a program's tables and link them with the kernels and the C runtime, by zig's C compiler.

The C side is built for the plainest processor of its kind: the kernels carry their own instruction set in
their objects, and zig then builds each libc only once. The runtime's own objects are cached. Equal inputs
give equal bytes.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.resources
import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import edgesparse
from edgesparse import cache
from edgesparse.errors import CompileError

#: Seconds until a run of the compiler counts as wedged; zig's first use of a libc builds it, which takes
#: minutes.
TIMEOUT = 900.0

#: LLVM's name of a target to zig's: zig wants a libc version that old systems have too.
_ZIG_TRIPLES = {
    "x86_64-linux-gnu": "x86_64-linux-gnu.2.17",
    "aarch64-linux-gnu": "aarch64-linux-gnu.2.17",
    "wasm32-unknown-unknown": "wasm32-freestanding",
}
#: What the C side of a kind of machine needs beyond `_CFLAGS`.
_ZIG_FLAGS: dict[str, tuple[str, ...]] = {
    "wasm32-unknown-unknown": ("-fno-PIC", "-mcpu=baseline+bulk_memory"),
}

_CFLAGS = (
    "-std=c99",
    "-O2",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-sanitize=undefined",
    "-Wall",
    "-Wextra",
    "-Werror",
)
_LDFLAGS = (
    "-shared",
    "-s",
    "-Wl,-z,defs",
    "-Wl,--build-id=none",
    "-Wl,--gc-sections",
)
_SOURCES = ("runtime.c", "platform_posix.c", "pool_posix.c")
_WEB_SOURCES = ("runtime.c", "platform_wasm.c")
_WEB_THREADS_SOURCES = (*_WEB_SOURCES, "pool_wasm.c")
#: What the C side and the linker need for threads: JavaScript makes the memory, of a size that it knows, and gives
#: every thread a stack. Kernels use no atomics, so their objects are those for one thread.
_WEB_THREADS_FLAGS = ("-DES_THREADS", "-mcpu=baseline+bulk_memory+atomics")
_WEB_THREADS_LDFLAGS = (
    "-Wl,--shared-memory",
    "-Wl,--import-memory",
    "-Wl,--max-memory=4294901760",
    "-Wl,--export=__stack_pointer",
)
_WEB_LDFLAGS = (
    "-nostdlib",
    "-s",
    "-Wl,--no-entry",
    "-Wl,--gc-sections",
    "-Wl,-z,stack-size=65536",
)

#: Only the runtime's interface leaves the library; kernels come from objects with default visibility.
EXPORTS = "{ global: es_abi; es_version; es_error; es_create*; es_destroy; es_input*; es_output*; es_run; \
es_most_threads; es_set_threads; es_profile; es_layer_*; es_arena_bytes; es_weights_bytes; local: *; };\n"


def native_folder() -> Path:
    """The folder with the runtime's C sources and headers."""
    # Through the loader and not by import: the compiler does not know the runners.
    return Path(str(importlib.resources.files("edgesparse.runtimes"))) / "native"


def zig_version() -> str:
    """Version of the installed ziglang package."""
    return importlib.metadata.version("ziglang")


def zig_triple(triple: str) -> str:
    """zig's name for an LLVM triple."""
    return _ZIG_TRIPLES.get(triple, triple)


def link_shared(objects: Sequence[Path | bytes], program_c: str, out: Path, triple: str = "x86_64-linux-gnu") -> None:
    """Link kernels (object files, or their bytes), a program's tables and the runtime into a shared library.

    Parameters
    ----------
    objects:
        Object files for `triple`, with every kernel that the program calls.
    program_c:
        `emit.Emitted.program_c`.
    out:
        The library to write.

    Raises
    ------
    CompileError
        zig is missing, or does not accept its input: with the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="edgesparse-link-") as folder:
        work = Path(folder)
        parts = [_as_file(work / f"kernels{index}.o", item) for index, item in enumerate(objects)]
        parts += [
            _as_file(work / f"{Path(name).stem}.o", runtime_object(name, triple, "-DES_THREADS")) for name in _SOURCES
        ]
        parts.append(_as_file(work / "program.o", compile_c(program_c, triple)))
        exports = _as_file(work / "exports.map", EXPORTS.encode())
        library = work / "out.so"
        command = [
            "-target",
            zig_triple(triple),
            *_LDFLAGS,
            f"-Wl,--version-script={exports}",
            *map(str, parts),
            "-lpthread",
        ]
        zig_cc([*command, "-o", str(library)], work, "linking the compiled model")
        try:
            out.write_bytes(library.read_bytes())
        except OSError as error:
            raise CompileError(f"cannot write {out}", why=error.strerror or str(error)) from error


def link_wasm(
    objects: Sequence[bytes], program_c: str, out: Path, features: Sequence[str], *, threads: bool = False
) -> None:
    """Link kernels, a program's tables and the runtime into a WebAssembly module that needs no libc.

    Parameters
    ----------
    objects, program_c, out:
        As for `link_shared`.
    features:
        LLVM's names of the features of the kernels, such as "+simd128": the module is checked against them.
    threads:
        Link for shared memory, with the pool of threads.

    Raises
    ------
    CompileError
        As for `link_shared`.
    """
    triple = "wasm32-unknown-unknown"
    with tempfile.TemporaryDirectory(prefix="edgesparse-link-") as folder:
        work = Path(folder)
        parts = [_as_file(work / f"kernels{index}.o", item) for index, item in enumerate(objects)]
        sources, flags = (_WEB_THREADS_SOURCES, _WEB_THREADS_FLAGS) if threads else (_WEB_SOURCES, ())
        parts += [_as_file(work / f"{Path(name).stem}.o", runtime_object(name, triple, *flags)) for name in sources]
        parts.append(_as_file(work / "program.o", compile_c(program_c, triple, flags)))
        module = work / "out.wasm"
        wanted = (*features, "+atomics") if threads else features
        cpu = "baseline" + "".join(feature.replace("-", "_") for feature in wanted)
        ldflags = (*_WEB_LDFLAGS, *_WEB_THREADS_LDFLAGS) if threads else _WEB_LDFLAGS
        command = ["-target", zig_triple(triple), f"-mcpu={cpu}", *ldflags, *map(str, parts), "-o", str(module)]
        zig_cc(command, work, "linking the compiled model")
        try:
            out.write_bytes(module.read_bytes())
        except OSError as error:
            raise CompileError(f"cannot write {out}", why=error.strerror or str(error)) from error


def compile_probe(source: str) -> bytes:
    """A C source without a runtime as a WebAssembly module with relaxed SIMD. Raises CompileError."""
    with tempfile.TemporaryDirectory(prefix="edgesparse-cc-") as folder:
        work = Path(folder)
        _as_file(work / "source.c", source.encode())
        cpu = "-mcpu=baseline+simd128+relaxed_simd"
        flags = [flag for flag in _CFLAGS if flag != "-fPIC"]
        command = ["-target", "wasm32-freestanding", cpu, *flags, "-ffp-contract=off", *_WEB_LDFLAGS]
        zig_cc([*command, "source.c", "-o", "out.wasm"], work, "compiling C for the web")
        return (work / "out.wasm").read_bytes()


def link_objects(objects: Sequence[bytes], out: Path, triple: str = "x86_64-linux-gnu") -> None:
    """Link kernels alone into a shared library that exports them all, for tuning. Raises CompileError."""
    with tempfile.TemporaryDirectory(prefix="edgesparse-link-") as folder:
        work = Path(folder)
        parts = [str(_as_file(work / f"kernels{index}.o", item)) for index, item in enumerate(objects)]
        command = ["-target", zig_triple(triple), "-shared", "-nostdlib", *parts, "-o", str(out.absolute())]
        zig_cc(command, work, "linking kernels")


def compile_c(source: str, triple: str, flags: Sequence[str] = ()) -> bytes:
    """One C source as object code; the runtime's headers are found. Raises CompileError."""
    with tempfile.TemporaryDirectory(prefix="edgesparse-cc-") as folder:
        work = Path(folder)
        # By its bare name from its own folder: a path in the object would differ from run to run.
        _as_file(work / "source.c", source.encode())
        command = [
            "-target",
            zig_triple(triple),
            *_CFLAGS,
            *_ZIG_FLAGS.get(triple, ()),
            *flags,
            "-I",
            str(native_folder()),
        ]
        zig_cc([*command, "-c", "source.c", "-o", "source.o"], work, "compiling C for the model")
        return (work / "source.o").read_bytes()


def runtime_object(name: str, triple: str, *flags: str) -> bytes:
    """One of the runtime's C sources as object code, through the cache. Raises CompileError."""
    source, key = _runtime_source(name)
    given = (*_CFLAGS, *_ZIG_FLAGS.get(triple, ()), *flags)
    full_key = cache.key_of("runtime", key, zig_triple(triple), zig_version(), *given)
    found = cache.get(full_key)
    if found is None:
        found = compile_c(source, triple, [f'-DES_VERSION="{edgesparse.__version__}"', *flags])
        cache.put(full_key, found)
    return found


@functools.cache
def _runtime_source(name: str) -> tuple[str, str]:
    """A source of the runtime, and a key that changes with it and with any header."""
    folder = native_folder()
    headers = [path.read_bytes() for path in sorted(folder.glob("*.h"))]
    source = (folder / name).read_text(encoding="utf-8")
    return source, cache.key_of(edgesparse.__version__, source, *headers)


def _as_file(path: Path, item: Path | bytes) -> Path:
    if isinstance(item, Path):
        return item.absolute()
    path.write_bytes(item)
    return path


@functools.cache
def _zig() -> tuple[str, ...]:
    """The compiler's binary itself: `python -m ziglang` would start a Python first."""
    spec = importlib.util.find_spec("ziglang")
    places = (spec.submodule_search_locations if spec else None) or []
    for place in places:
        binary = Path(place) / "zig"
        if binary.is_file():
            return (str(binary), "cc")
    raise CompileError(
        "the C compiler is missing",
        why="the Python package ziglang is not installed",
        fix="pip install ziglang",
    )


def zig_cc(arguments: Sequence[str], work: Path, what: str) -> None:
    """Run zig's C compiler in a folder; `what` it does goes into the CompileError where it fails."""
    # zig leaves a copy of each link in its local cache: let that go with the folder.
    environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(work / "zig")}
    try:
        done = subprocess.run(
            [*_zig(), *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"{what} took more than {TIMEOUT:.0f} s", why="zig seems to be stuck") from error
    except OSError as error:
        raise CompileError(f"{what} failed", why=f"zig cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        raise CompileError(f"{what} failed", why=_tail(done.stderr) or f"zig ended with {done.returncode}")


def _tail(stderr: bytes, lines: int = 12) -> str:
    """The end of a tool's messages."""
    return "\n".join(stderr.decode(errors="replace").strip().splitlines()[-lines:])
