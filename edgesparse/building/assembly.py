"""Read the inner loops out of a kernel's ARM assembly, to judge them: instructions, multiply-adds, spills.

For the tests and the benchmarks: what is measured on an ARM core depends on the core, this does not. Loops are found
in the graph of basic blocks, not by their place in the text, where LLVM turns loops around and moves blocks out.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgesparse.errors import EdgesparseError

_LABEL = re.compile(r"^(\.?\w[\w.$]*):")
_INSTRUCTION = re.compile(r"^\s+([a-z][\w.]*)\s*(.*)$")
_CONDITION = "eq|ne|lt|gt|le|ge|lo|hi|ls|hs|cc|cs|mi|pl|vs|vc"
_BRANCH = re.compile(rf"^(?:b|b\.?(?:{_CONDITION})|cbn?z|tbn?z)(?:\.[nw])?$")
_END = re.compile(r"^(?:b(?:\.w)?|br|ret|bx)$")
_POP = re.compile(r"^(?:pop|ldm(?:ia|fd|db|ea)?)(?:\.w)?$")  # with a condition it may go on
_VECTOR_FMA = re.compile(r"^\s+(?:fmla\s|vfma\.f32\s+q)")
_BASE = re.compile(r"\[\s*(\w+)")
_REGISTER = re.compile(r"\b(?:sp|fp|ip|lr|[xwr]\d+)\b")
_KEEPS = re.compile(r"^(?:v?st|push|vpush|cmp|cmn|tst|teq|prfm|pld|cb|tb|b)")
_ADDRESS = re.compile(r"^(?:add|sub|mov|orr|bic)s?$")


@dataclass(frozen=True)
class Loop:
    """One innermost loop: its instructions in the order of the text, and those of them that touch the stack."""

    body: tuple[str, ...]
    stack: tuple[str, ...] = ()

    @property
    def multiply_adds(self) -> int:
        """Vector multiply-adds."""
        return sum(bool(_VECTOR_FMA.match(line)) for line in self.body)

    @property
    def spills(self) -> int:
        """Instructions that read or write the stack."""
        return len(self.stack)

    @property
    def per_multiply_add(self) -> float:
        """Instructions per vector multiply-add."""
        return len(self.body) / self.multiply_adds


@dataclass
class _Block:
    """A basic block: its instructions, and the numbers of the blocks that may follow."""

    lines: list[str]
    after: list[int]
    entry: bool


def inner_loops(asm: str, least: int = 0) -> list[Loop]:
    """The innermost loops of ARM assembly that have at least so many vector multiply-adds."""
    blocks = _blocks(asm)
    before: list[list[int]] = [[] for _ in blocks]
    for index, block in enumerate(blocks):
        for after in block.after:
            before[after].append(index)
    loops = _natural_loops(blocks, before)
    inside = [members for head, members in loops.items() if not any(each in members for each in loops if each != head)]
    known = _stack_addresses(blocks, before)
    found = []
    for members in inside:
        body, stack = [], []
        for index in sorted(members):
            held = set(known[index])
            for line in blocks[index].lines:
                body.append(line)
                if _touches(line, held):
                    stack.append(line)
                _follow(line, held)
        found.append(Loop(tuple(body), tuple(stack)))
    return [loop for loop in found if loop.multiply_adds >= least]


def _blocks(asm: str) -> list[_Block]:
    blocks = [_Block([], [], True)]
    places: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    ended = True
    for text in asm.splitlines():
        line = text.split("//")[0].split("@")[0].rstrip()
        label, instruction = _LABEL.match(line), _INSTRUCTION.match(line)
        if label or (instruction and blocks[-1].lines and _BRANCH.match(_parts(blocks[-1].lines[-1])[0])):
            blocks.append(_Block([], [], bool(label) and not line.startswith(".")))
            if not ended:
                blocks[-2].after.append(len(blocks) - 1)
            ended = False
        if label:
            places[label[1]] = len(blocks) - 1
        elif instruction:
            name, operands = instruction.groups()
            blocks[-1].lines.append(line)
            if _BRANCH.match(name):
                jumps.append((len(blocks) - 1, operands.split(",")[-1].strip()))
            ended = bool(_END.match(name)) or bool(_POP.match(name) and "pc}" in operands.replace(" ", ""))
    for index, label_name in jumps:
        if label_name in places:
            blocks[index].after.append(places[label_name])
    return _reached(blocks)


def _reached(blocks: list[_Block]) -> list[_Block]:
    """The same blocks, where those that are never run (tables between the code) lead nowhere."""
    waiting = [index for index, block in enumerate(blocks) if block.entry]
    reached = set(waiting)
    while waiting:
        new = set(blocks[waiting.pop()].after) - reached
        reached |= new
        waiting += new
    return [block if index in reached else _Block([], [], True) for index, block in enumerate(blocks)]


def _natural_loops(blocks: Sequence[_Block], before: Sequence[list[int]]) -> dict[int, set[int]]:
    """By its head, the blocks of each loop: those that reach a branch back to a block that dominates it."""
    everything = set(range(len(blocks)))
    dominators = [{index} if block.entry else everything for index, block in enumerate(blocks)]
    changed = True
    while changed:
        changed = False
        for index, block in enumerate(blocks):
            if not block.entry:
                now = {index} | set.intersection(*(dominators[each] for each in before[index]))
                changed, dominators[index] = changed or now != dominators[index], now
    loops: dict[int, set[int]] = {}
    for index, block in enumerate(blocks):
        for head in block.after:
            if head in dominators[index]:
                members, waiting = loops.setdefault(head, {head}), [index]
                while waiting:
                    each = waiting.pop()
                    if each not in members:
                        members.add(each)
                        waiting += before[each]
    return loops


def _stack_addresses(blocks: Sequence[_Block], before: Sequence[list[int]]) -> list[set[str]]:
    """For each block, the registers that may hold an address on the stack where it begins."""
    leave: list[set[str]] = [set() for _ in blocks]
    enter: list[set[str]] = [set() for _ in blocks]
    changed = True
    while changed:
        changed = False
        for index, block in enumerate(blocks):
            enter[index] = set().union(*(leave[each] for each in before[index]))
            held = set(enter[index])
            for line in block.lines:
                _follow(line, held)
            changed, leave[index] = changed or held != leave[index], held
    return enter


def _parts(line: str) -> tuple[str, str]:
    name, _, operands = line.strip().partition("\t")
    if not operands:
        name, _, operands = line.strip().partition(" ")
    return name, operands


def _named(text: str) -> list[str]:
    """The registers of some operands; both widths of one have one name."""
    return [each.replace("w", "x") for each in _REGISTER.findall(text)]


def _touches(line: str, held: Iterable[str]) -> bool:
    """Whether an instruction reads or writes memory at an address on the stack."""
    name, operands = _parts(line)
    base = _BASE.search(operands)
    if base:
        return base[1] == "sp" or base[1] in held
    first = _named(operands)[:1]
    return name.startswith(("ldm", "stm", "vldm", "vstm")) and bool(first) and (first[0] == "sp" or first[0] in held)


def _follow(line: str, held: set[str]) -> None:
    """What an instruction does to the set of registers that hold addresses on the stack."""
    name, operands = _parts(line)
    if _KEEPS.match(name):
        return
    written, bracket, _ = operands.partition("[")
    registers = _named(written)
    if bracket or not registers:
        held -= set(registers)
    elif _ADDRESS.match(name) and any(each == "sp" or each in held for each in registers[1:]):
        held |= {registers[0]} - {"sp"}
    else:
        held.discard(registers[0])


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
