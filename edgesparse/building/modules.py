"""What a compiled model is linked into, for each kind of runner: a table from kind to linker.

A linker takes the kernels' objects and the program's tables, writes files into a folder, and names the one that holds
the code. Kinds in `TWINS` also get the tables of the same model compiled dense, and hold both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgesparse.building.bare import link_bare
from edgesparse.building.executable import link_executable
from edgesparse.building.link import link_shared, link_wasm, native_folder
from edgesparse.errors import UnsupportedError
from edgesparse.target import Target

#: objects, programs in C, folder to write to, target -> name of the module, and all files by name.
Linker = Callable[[Sequence[bytes], Sequence[str], Path, Target], tuple[str, dict[str, Path]]]

TWINS = frozenset({"device"})
"""Kinds of runner whose module holds the dense form too, to compare with on the device."""


APART = frozenset({"node"})
"""Kinds of runner with a module of its own for threads, beside the one for one thread."""

#: The module for threads of the kinds in `APART`.
THREADED = "model.threads.wasm"

#: What apps take: the library, and the C header of what is in it.
LIBRARY, HEADER = "libmodel.so", "edgesparse.h"


def link_module(
    objects: Sequence[bytes], programs: Sequence[str], folder: Path, target: Target
) -> tuple[str, dict[str, Path]]:
    """Link a compiled model in the form that the target's runner takes.

    `programs` are the tables in C: the model's, and for `TWINS` those of its dense form, for `APART` those for threads
    if there are any.

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
    objects: Sequence[bytes], programs: Sequence[str], folder: Path, target: Target
) -> tuple[str, dict[str, Path]]:
    """A shared library for this machine's kind of system."""
    library = folder / "model.so"
    link_shared(objects, programs[0], library, target.triple)
    return library.name, {library.name: library}


def _web(
    objects: Sequence[bytes], programs: Sequence[str], folder: Path, target: Target
) -> tuple[str, dict[str, Path]]:
    """WebAssembly modules for one thread and for more: `edgesparse bundle` puts a package around them."""
    module = folder / "model.wasm"
    link_wasm(objects, programs[0], module, target.features)
    files = {module.name: module}
    if len(programs) > 1:
        files[THREADED] = folder / THREADED
        link_wasm(objects, programs[1], files[THREADED], target.features, threads=True)
    return module.name, files


def _device(
    objects: Sequence[bytes], programs: Sequence[str], folder: Path, target: Target
) -> tuple[str, dict[str, Path]]:
    """A static executable with harness, sent to a device and run there; for apps a library and its header as well."""
    program = folder / "bench"
    link_executable(objects, programs[0], programs[1], program, target.triple)
    files = {program.name: program}
    if target.apps:
        files[LIBRARY], files[HEADER] = folder / LIBRARY, native_folder() / HEADER
        link_bare(objects, programs[0], files[LIBRARY], target.triple)
    return program.name, files


LINKERS: Mapping[str, Linker] = {"local": _shared, "node": _web, "device": _device}
