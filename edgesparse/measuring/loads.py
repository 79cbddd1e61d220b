"""Further loads of the same contenders, each in memory of its own.

Two loads of one artifact differ by up to a few per cent for as long as they live: where an arena lies in physical
memory, beside weights and code, is settled when it is made, and nobody chooses it. A user gets any of them. So a bench
makes several and has them take turns block by block: they share what changes in the machine, and how they differ is a
part of the interval.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from edgesparse.errors import EdgesparseError, UsageError
from edgesparse.measuring.memory import resident

MOST_BYTES = 1 << 30
"""What further loads may take together."""

LEAST_FREE = 0.25
"""Share of the machine's memory that must be free for one more load."""


class Named(Protocol):
    """What loads are compared by."""

    @property
    def name(self) -> str: ...

    def run_once(self) -> float:
        """Run the model once."""
        ...


@runtime_checkable
class Closable(Protocol):
    """A contender that gives its memory back when it is told to."""

    def close(self) -> None:
        """Give the memory back."""
        ...


One = TypeVar("One", bound=Named)


def load_again(
    first: Sequence[One], again: Callable[[], Sequence[One]], count: int, tell: Callable[[float, str], None]
) -> tuple[list[Sequence[One]], tuple[str, ...]]:
    """Make the contenders anew until there are `count` loads of each, the first ones included, and run each once.

    Returns the further loads, and a note where memory allows fewer. `tell` gets the share done, and what is done.

    Raises
    ------
    UsageError
        What `again` makes has other names than the first.
    EdgesparseError
        As `again` does; what was made until then is closed.
    """
    made: list[Sequence[One]] = []
    names = [item.name for item in first]
    before = _resident()
    try:
        while len(made) + 1 < count:
            tell(len(made) / count, "loading again")
            if _resident() - before > MOST_BYTES or free_memory() < LEAST_FREE:
                return made, (f"{len(made) + 1} loads of each instead of {count}: memory",)
            made.append(again())
            if [item.name for item in made[-1]] != names:
                raise UsageError("a further load has other contenders", why=f"expected {', '.join(names)}")
            for item in made[-1]:
                item.run_once()  # takes its memory now
    except BaseException:
        close_all(made)
        raise
    return made, ()


def close_all(loads: Sequence[Sequence[Named]]) -> None:
    """Close what can be closed."""
    for one in loads:
        for item in one:
            if isinstance(item, Closable):
                item.close()


def free_memory(path: Path = Path("/proc/meminfo")) -> float:
    """Return the share of the machine's memory that is available; 1 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, KeyError, ZeroDivisionError):
        lines = path.read_text(encoding="ascii").splitlines()
        told = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines) if rest}
        return told["MemAvailable"] / told["MemTotal"]
    return 1.0


def _resident() -> int:
    try:
        return resident()
    except EdgesparseError:
        return 0
