"""Link a compiled model into one static executable for a Linux or Android device: the bench program.

It holds the kernels, the tables of the sparse and of the dense program, the C runtime, and the harness of
`runtimes/native/bench.c`. musl is linked in, so that the same file runs on any Linux of its kind of machine; only what
little the harness calls of it, and that is neither stdio nor malloc.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgesparse.building import link
from edgesparse.errors import CompileError, UnsupportedError

#: LLVM's triple of the kernels to zig's of a static program.
STATIC_TRIPLES = {
    "aarch64-linux-gnu": "aarch64-linux-musl",
    "armv7-unknown-linux-gnueabihf": "arm-linux-musleabihf",
    "x86_64-linux-gnu": "x86_64-linux-musl",
}

_SOURCES = ("bench.c", "timing.c", "text.c", "machine.c", "runtime.c", "platform_posix.c")
#: All of it runs between the kernels: size counts, not speed. Nothing unwinds the stack.
_SMALL = ("-Os", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables")
_FLAGS = ("-static", "-s", "-Wl,--build-id=none", "-Wl,--gc-sections", "-Wl,-z,noexecstack")


def link_executable(objects: Sequence[bytes], sparse_c: str, dense_c: str, out: Path, triple: str) -> None:
    """Link kernels and both programs' tables with runtime and harness.

    Parameters
    ----------
    objects:
        Object files with every kernel that either program calls.
    sparse_c, dense_c:
        `emit.Emitted.program_c` of the two programs.
    out:
        The executable to write.
    triple:
        LLVM's triple of the kernels.

    Raises
    ------
    UnsupportedError
        There is no static libc for the triple.
    CompileError
        zig fails.
    """
    zig = STATIC_TRIPLES.get(triple)
    if zig is None:
        raise UnsupportedError(f"no executable for {triple}", fix=f"there are ones for {', '.join(STATIC_TRIPLES)}")
    with tempfile.TemporaryDirectory(prefix="edgesparse-link-") as folder:
        work = Path(folder)
        # Between two marks, in this order: instructions of the kernels are counted by address.
        parts = [_mark("es_kernels_begin", zig), *objects, _mark("es_kernels_end", zig)]
        parts += [link.runtime_object(name, zig, *_SMALL) for name in _SOURCES]
        parts += [link.compile_c(sparse_c, zig), link.compile_c(dense_c, zig, ["-Des_main_program=es_dense_program"])]
        names = []
        for index, part in enumerate(parts):
            name = f"part{index:04}.o"
            (work / name).write_bytes(part)
            names.append(name)
        link.zig_cc(["-target", zig, *_FLAGS, *names, "-o", "out"], work, "linking the bench program")
        try:
            out.write_bytes((work / "out").read_bytes())
            out.chmod(0o755)
        except OSError as error:
            raise CompileError(f"cannot write {out}", why=error.strerror or str(error)) from error


def _mark(name: str, zig: str) -> bytes:
    """An empty function that stays where it is linked."""
    return link.compile_c(f"void {name}(void);void {name}(void){{}}", zig, ["-fno-function-sections"])
