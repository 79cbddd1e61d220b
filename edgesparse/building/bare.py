"""Link a compiled model into a shared library that needs no libc and nothing else: what an Android app brings along.

Android's libc differs from version to version and is not here to link with. The library has no undefined symbol and
names no other library: the few things that the runtime needs of a system are system calls.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgesparse.building import link
from edgesparse.errors import CompileError, UnsupportedError

#: LLVM's triple of the kernels to zig's of a library for Android.
BARE_TRIPLES = {"aarch64-linux-gnu": "aarch64-linux-android", "armv7-unknown-linux-gnueabihf": "arm-linux-androideabi"}

_SOURCES = ("runtime.c", "platform_linux.c")
_FLAGS = (
    "-shared",
    "-nostdlib",
    "-s",
    "-Wl,-z,defs",
    "-Wl,-z,noexecstack",
    # Phones have pages of 4 or 16 KiB; before Android 6 the loader knew one kind of hash table.
    "-Wl,-z,max-page-size=16384",
    "-Wl,--hash-style=both",
    "-Wl,--build-id=none",
    "-Wl,--gc-sections",
)


def link_bare(objects: Sequence[bytes], program_c: str, out: Path, triple: str) -> None:
    """Link kernels, a program's tables and the runtime for one thread into a library without libc.

    Parameters
    ----------
    objects, program_c:
        As for `link.link_shared`.
    out:
        The library to write; its name becomes its soname.
    triple:
        LLVM's triple of the kernels.

    Raises
    ------
    UnsupportedError
        There is no such library for the triple.
    CompileError
        zig fails, or a kernel needs a function that only a libc has.
    """
    zig = BARE_TRIPLES.get(triple)
    if zig is None:
        raise UnsupportedError(f"no library for {triple}", fix=f"there are ones for {', '.join(BARE_TRIPLES)}")
    with tempfile.TemporaryDirectory(prefix="edgesparse-link-") as folder:
        work = Path(folder)
        parts = [*objects, *(link.runtime_object(name, zig) for name in _SOURCES), link.compile_c(program_c, zig)]
        names = [f"part{index:04}.o" for index in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            (work / name).write_bytes(part)
        (work / "exports.map").write_text(link.EXPORTS, encoding="utf-8")
        # compiler_rt is zig's: memcpy, memset, division.
        flags = [*_FLAGS, f"-Wl,-soname,{out.name}", "-Wl,--version-script=exports.map", "-lcompiler_rt"]
        command = ["-target", zig, *flags, *names]
        link.zig_cc([*command, "-o", "out.so"], work, "linking the library for apps")
        try:
            out.write_bytes((work / "out.so").read_bytes())
        except OSError as error:
            raise CompileError(f"cannot write {out}", why=error.strerror or str(error)) from error
