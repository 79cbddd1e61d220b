"""Give every buffer of a program its place in the arena; buffers that never live together share memory.

A buffer lives from the first to the last call that refers to it, also through a `Ref` among the arguments.
Placement is greedy: buffers in some order (the largest first, the longest-lived first, ..), each in the
smallest gap that is free for its whole life; the best of a few orders is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from edgesparse.errors import CompileError
from edgesparse.lowering.program import ALIGNMENT, ARENA, Buffer, Program, Ref

#: Bytes after the last buffer that a kernel may read (never use) when its last vector runs over the end.
TAIL_BYTES = 64


@dataclass(frozen=True)
class Life:
    """A buffer's size, rounded up to the alignment, and its first and last call."""

    name: str
    size: int
    first: int
    last: int


def aligned(nbytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def lives(program: Program) -> list[Life]:
    """The life of every buffer that a call or a port refers to; pinned ones and ports live through all calls.

    Raises
    ------
    CompileError
        A call or a port refers to a name that is neither buffer, constant nor the arena; two buffers share a
        name; a port's buffer is too small or not pinned.
    """
    buffers = _by_name(program)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    moments = program.moments()
    for index, call in enumerate(program.calls):
        for ref in (*call.refs, *(arg for arg in call.args if isinstance(arg, Ref))):
            if ref.name == ARENA or ref.name in program.constants:
                continue
            if ref.name not in buffers:
                raise CompileError(
                    f"call {index} ({call.kernel}) refers to '{ref.name}'",
                    why="there is no such buffer or constant",
                    fix="this is a bug in edgesparse; please report it",
                )
            first.setdefault(ref.name, moments[index])
            last[ref.name] = moments[index]
    _check_ports(program, buffers)
    end = max(len(program.calls) - 1, 0)
    return [
        Life(buffer.name, aligned(buffer.nbytes), 0, end)
        if buffer.pinned
        else Life(buffer.name, aligned(buffer.nbytes), first[buffer.name], last[buffer.name])
        for buffer in program.buffers
        if buffer.pinned or buffer.name in first
    ]


def lower_bound(program: Program) -> int:
    """The most bytes that live at once in any call: no placement can need fewer (the tail is not counted)."""
    changes = [0] * (len(program.calls) + 2)
    for life in lives(program):
        changes[life.first] += life.size
        changes[life.last + 1] -= life.size
    most = current = 0
    for change in changes:
        current += change
        most = max(most, current)
    return most


def assign(program: Program) -> Program:
    """The program with `offsets` and `arena_bytes` filled in.

    Offsets are multiples of 64 bytes and at least 64 readable bytes follow the last buffer. A buffer that no
    call refers to is given the arena's start and no room.

    Raises
    ------
    CompileError
        The program is inconsistent (see `lives`).
    """
    alive = lives(program)
    offsets: dict[str, int] = {}
    height = -1
    for key in _ORDERS:
        placed, top = _place(sorted(alive, key=key))
        if height < 0 or top < height:
            offsets, height = placed, top
    complete = {buffer.name: offsets.get(buffer.name, 0) for buffer in program.buffers}
    return replace(program, offsets=complete, arena_bytes=aligned(height) + TAIL_BYTES)


def _span(life: Life) -> int:
    return life.last - life.first + 1


#: Orders in which buffers are placed; names break ties, so that the result does not depend on their order.
_ORDERS: Sequence[Callable[[Life], tuple[int, int, str]]] = (
    lambda life: (-life.size, -_span(life), life.name),
    lambda life: (-life.size * _span(life), -life.size, life.name),
    lambda life: (-_span(life), -life.size, life.name),
    lambda life: (life.first, -life.size, life.name),
)


def _place(order: Iterable[Life]) -> tuple[dict[str, int], int]:
    """Best fit: each buffer in the smallest gap between those placed before that live at the same time."""
    placed: list[tuple[int, Life]] = []
    top = 0
    for life in order:
        rivals = sorted(
            (offset, other.size)
            for offset, other in placed
            if other.first <= life.last and life.first <= other.last and other.size
        )
        best, best_gap, free = -1, 0, 0
        for offset, size in rivals:
            gap = offset - free
            if gap >= life.size and (best < 0 or gap < best_gap):
                best, best_gap = free, gap
            free = max(free, offset + size)
        where = best if best >= 0 else free
        placed.append((where, life))
        top = max(top, where + life.size)
    return {life.name: offset for offset, life in placed}, top


def _by_name(program: Program) -> dict[str, Buffer]:
    buffers = {buffer.name: buffer for buffer in program.buffers}
    twice = len(buffers) != len(program.buffers) or ARENA in buffers or buffers.keys() & program.constants.keys()
    if twice:
        raise CompileError(
            "two buffers or constants of the program share a name",
            fix="this is a bug in edgesparse; please report it",
        )
    return buffers


def _check_ports(program: Program, buffers: dict[str, Buffer]) -> None:
    for port in (*program.inputs, *program.outputs):
        buffer = buffers.get(port.buffer)
        if buffer is None or not buffer.pinned or buffer.nbytes < port.nbytes:
            raise CompileError(
                f"the buffer '{port.buffer}' of the port '{port.name}' is missing, too small or not pinned",
                fix="this is a bug in edgesparse; please report it",
            )
