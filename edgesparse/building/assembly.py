"""Read the inner loops out of a kernel's assembly, to judge them: instructions, multiply-adds, spills.

For the tests and the benchmarks: what is measured on an ARM core depends on the core, this does not.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from edgesparse.errors import EdgesparseError

_LABEL = re.compile(r"^(\.?LBB\w+):")
_BRANCH = re.compile(r"^\s+(?:b\.?(?:eq|ne|lt|gt|le|ge|lo|hi|ls|hs|cc|cs|mi|pl)|b|cbn?z|tbn?z)\s.*?(\.?LBB\w+)\s*$")
_STACK = re.compile(r"\[sp\b|\badd\s+\w+, sp\b")
_VECTOR_FMA = re.compile(r"^\s+(?:fmla\s|vfma\.f32\s+q)")


@dataclass(frozen=True)
class Loop:
    """One innermost loop: its instructions, and how many of them are vector multiply-adds or touch the stack."""

    body: tuple[str, ...]

    @property
    def multiply_adds(self) -> int:
        return sum(bool(_VECTOR_FMA.match(line)) for line in self.body)

    @property
    def spills(self) -> int:
        return sum(bool(_STACK.search(line)) for line in self.body)

    @property
    def per_multiply_add(self) -> float:
        """Instructions per vector multiply-add."""
        return len(self.body) / self.multiply_adds


def inner_loops(asm: str, least: int = 4) -> list[Loop]:
    """The innermost loops of ARM assembly that have at least so many vector multiply-adds."""
    lines = [line.split("//")[0].split("@")[0].rstrip() for line in asm.splitlines()]
    places: dict[str, int] = {}
    found = []
    for index, line in enumerate(lines):
        if label := _LABEL.match(line):
            places[label[1]] = index
        branch = _BRANCH.match(line)
        if branch and branch[1] in places:
            inside = lines[places[branch[1]] + 1 : index + 1]
            if any(_LABEL.match(text) for text in inside):
                continue
            loop = Loop(tuple(text for text in inside if text.strip() and not text.strip().startswith(".")))
            if loop.multiply_adds >= least:
                found.append(loop)
    return found


def llvm_mca() -> str | None:
    """The newest llvm-mca there is; its models of the cores change from version to version."""
    return next((path for name in ("llvm-mca-19", "llvm-mca-20", "llvm-mca") if (path := shutil.which(name))), None)


def predicted_cycles(loop: Loop, cpu: str, iterations: int = 200) -> float:
    """Cycles of one round of a loop by LLVM's model of a core. Raises EdgesparseError where llvm-mca is missing."""
    tool = llvm_mca()
    if tool is None:
        raise EdgesparseError("there is no llvm-mca", fix="apt-get install llvm-19")
    command = [tool, "-mtriple=aarch64", f"-mcpu={cpu}", f"-iterations={iterations}"]
    done = subprocess.run(command, input="\n".join(loop.body) + "\n", capture_output=True, text=True, check=False)
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if not found:
        raise EdgesparseError("llvm-mca says nothing", why=done.stderr.strip()[-300:])
    return int(found[1]) / iterations
