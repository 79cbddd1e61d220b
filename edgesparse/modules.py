"""What a compiled model is linked into, for each kind of runner: a table from kind to linker.

A linker takes the kernels' objects and the program's tables, writes files into a folder, and names the one that holds
the code. More kinds (a static bench program, WebAssembly) are more rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgesparse.errors import UnsupportedError
from edgesparse.link import link_shared, link_wasm
from edgesparse.target import Target

#: objects, program in C, folder to write to, target -> name of the module, and all files by name.
Linker = Callable[[Sequence[bytes], str, Path, Target], tuple[str, dict[str, Path]]]


def link_module(objects: Sequence[bytes], program_c: str, folder: Path, target: Target) -> tuple[str, dict[str, Path]]:
    """Link a compiled model in the form that the target's runner takes.

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
    return linker(objects, program_c, folder, target)


def _shared(objects: Sequence[bytes], program_c: str, folder: Path, target: Target) -> tuple[str, dict[str, Path]]:
    """A shared library for this machine's kind of system."""
    library = folder / "model.so"
    link_shared(objects, program_c, library, target.triple)
    return library.name, {library.name: library}


def _web(objects: Sequence[bytes], program_c: str, folder: Path, target: Target) -> tuple[str, dict[str, Path]]:
    """A WebAssembly module: `edgesparse bundle` puts a package around it."""
    module = folder / "model.wasm"
    link_wasm(objects, program_c, module, target.features)
    return module.name, {module.name: module}


LINKERS: Mapping[str, Linker] = {"local": _shared, "node": _web}
