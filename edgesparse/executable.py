"""Link a compiled model into one static executable for a Linux or Android device: the bench program.

It holds the kernels, the tables of the sparse and of the dense program, the C runtime once for each of them (the second
time with every name of its interface renamed), and the harness of `runtimes/native/bench.c`. musl is linked in, so that
the same file runs on any Linux of its kind of machine.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import edgesparse
from edgesparse import cache, link
from edgesparse.errors import CompileError, UnsupportedError

#: LLVM's triple of the kernels to zig's of a static program.
STATIC_TRIPLES = {
    "aarch64-linux-gnu": "aarch64-linux-musl",
    "armv7-linux-gnueabihf": "arm-linux-musleabihf",
    "x86_64-linux-gnu": "x86_64-linux-musl",
}

_HARNESS = ("bench.c", "machine.c", "platform_posix.c")
#: What is in the program once for each form of the model.
_TWICE = ("runtime.c", "variant.c")
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
    renamed = _renamed()
    with tempfile.TemporaryDirectory(prefix="edgesparse-link-") as folder:
        work = Path(folder)
        # Between two marks, in this order: instructions of the kernels are counted by address.
        parts = [_compiled("void es_kernels_begin(void);void es_kernels_begin(void){}", zig)]
        parts += [*objects, _compiled("void es_kernels_end(void);void es_kernels_end(void){}", zig)]
        parts += [_native(name, zig) for name in (*_HARNESS, *_TWICE)]
        parts += [_native(name, zig, *renamed) for name in _TWICE]
        parts += [link.compile_c(sparse_c, zig), link.compile_c(dense_c, zig, renamed)]
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


def _renamed() -> list[str]:
    """Flags under which the runtime compiles under other names, as the dense form's."""
    header = (link.native_folder() / "edgesparse.h").read_text(encoding="utf-8")
    names = re.findall(r"^ES_API [^(;]*?\b(es_\w+)\(", header, re.MULTILINE)
    pairs = {name: f"es_twin_{name[3:]}" for name in [*names, "es_main_program"]}
    pairs |= {"ES_VARIANT": "es_dense_variant", "ES_VARIANT_NAME": '"dense"'}
    return [f"-D{name}={value}" for name, value in pairs.items()]


def _native(name: str, zig: str, *flags: str) -> bytes:
    """One of the runtime's sources as an object, through the cache."""
    folder = link.native_folder()
    source = (folder / name).read_text(encoding="utf-8")
    headers = [path.read_bytes() for path in sorted(folder.glob("*.h"))]
    key = cache.key_of("native", name, source, zig, link.zig_version(), edgesparse.__version__, *flags, *headers)
    found = cache.get(key)
    if found is None:
        found = link.compile_c(source, zig, [f'-DES_VERSION="{edgesparse.__version__}"', *flags])
        cache.put(key, found)
    return found


def _compiled(source: str, zig: str) -> bytes:
    return link.compile_c(source, zig, ["-fno-function-sections"])
