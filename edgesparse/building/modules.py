"""What a compiled model is linked into, for each kind of runner: a table from kind to linker.

A linker takes the kernels' objects and the program's tables, writes files into a folder, and names the one that holds
the code. Kinds in `TWINS` also get the tables of the same model compiled dense, and hold both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgesparse.building.bare import link_bare
from edgesparse.building.executable import link_executable
from edgesparse.building.link import link_shared, link_wasm, native_folder
from edgesparse.errors import UnsupportedError
from edgesparse.target import Target


class Table(NamedTuple):
    """A program as C source, and the strips that it is cut into: the most threads that it runs on."""

    source: str
    strips: int


#: objects, programs, folder to write to, target -> name of the module, and all files by name.
Linker = Callable[[Sequence[bytes], Sequence[Table], Path, Target], tuple[str, dict[str, Path]]]

TWINS = frozenset({"device"})
"""Kinds of runner whose module holds the dense form too, to compare with on the device."""


APART = frozenset({"node"})
"""Kinds of runner with modules of their own for threads, beside the one for one thread."""

#: What apps take: the library, and the C header of what is in it.
LIBRARY, HEADER = "libmodel.so", "edgesparse.h"


def strip_counts(threads: int) -> tuple[int, ...]:
    """The numbers of strips, beside one, that a model for up to `threads` threads is cut into in `APART`.

    These are the powers of two below, and the number itself. A program runs on fewer threads than it has strips, but
    then computes the rows where strips overlap more often than it must; in the web a session loads just one of them.
    """
    if threads == 1:
        return ()
    powers = [2**power for power in range(1, threads.bit_length()) if 2**power < threads]
    return (*powers, threads)


def threaded(strips: int) -> str:
    """Name of the module that is cut into so many strips, of the kinds in `APART`."""
    return f"model.threads{strips}.wasm"


def link_module(
    objects: Sequence[bytes], programs: Sequence[Table], folder: Path, target: Target
) -> tuple[str, dict[str, Path]]:
    """Link a compiled model in the form that the target's runner takes.

    The first of `programs` is the model's; for `TWINS` that of its dense form follows, for `APART` those for threads.

    Raises
    ------
    UnsupportedError
        Nothing links for this kind of runner.
    CompileError
        The linker fails.
    """
    linker = LINKERS.get(target.runner)
    if linker is None:
        raise UnsupportedError(
            f"target {target.name!r} cannot be linked",
            why=f"there is no linker for {target.runner!r}",
            fix=f"targets that link run on: {', '.join(LINKERS)}",
        )
    return linker(objects, programs, folder, target)


def _shared(
    objects: Sequence[bytes], programs: Sequence[Table], folder: Path, target: Target
) -> tuple[str, dict[str, Path]]:
    """A shared library for this machine's kind of system."""
    library = folder / "model.so"
    link_shared(objects, programs[0].source, library, target.triple)
    return library.name, {library.name: library}


def _web(
    objects: Sequence[bytes], programs: Sequence[Table], folder: Path, target: Target
) -> tuple[str, dict[str, Path]]:
    """WebAssembly modules for one thread and for more: `edgesparse bundle` puts a package around them."""
    module = folder / "model.wasm"
    link_wasm(objects, programs[0].source, module, target.features)
    files = {module.name: module}
    for program in programs[1:]:
        name = threaded(program.strips)
        files[name] = folder / name
        link_wasm(objects, program.source, files[name], target.features, threads=True)
    return module.name, files


def _device(
    objects: Sequence[bytes], programs: Sequence[Table], folder: Path, target: Target
) -> tuple[str, dict[str, Path]]:
    """A static executable with harness, sent to a device and run there; for apps a library and its header as well."""
    program = folder / "bench"
    link_executable(objects, programs[0].source, programs[1].source, program, target.triple)
    files = {program.name: program}
    if target.apps:
        files[LIBRARY], files[HEADER] = folder / LIBRARY, native_folder() / HEADER
        link_bare(objects, programs[0].source, files[LIBRARY], target.triple)
    return program.name, files


LINKERS: Mapping[str, Linker] = {"local": _shared, "node": _web, "device": _device}
