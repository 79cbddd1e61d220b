"""How the pixels of a band are cut into tiles of vectors: pure arithmetic, shared by kernels, planner and cost model.

No tile reads or writes beyond the band's pixels. A remainder that does not fill a vector is either covered by a last
vector that overlaps its neighbour, or, when it is small, done pixel by pixel with the vector along the group's output
channels (49 = 48 + 1 is faster that way than with a fourth vector): in a pass of their own, or spread over the tiles.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Run:
    """`repeat` like tiles; tile `i` holds the vectors from pixels ``offset + i * step`` on, for each of `offsets`.

    And, where single pixels are spread over the tiles, those from ``first_single + i * singles`` on.
    """

    offsets: tuple[int, ...]
    repeat: int
    step: int
    singles: int = 0
    first_single: int = 0


@dataclass(frozen=True)
class Cut:
    """The tiles of a band: vector runs, then `tail` single pixels from `tail_start`."""

    runs: tuple[Run, ...]
    tail_start: int = 0
    tail: int = 0

    @property
    def vectors(self) -> int:
        """Vectors in all runs."""
        return sum(len(run.offsets) * run.repeat for run in self.runs)


def vector_starts(pixels: int, lanes: int) -> tuple[int, ...]:
    """First pixels of the vectors that cover `pixels` (at least `lanes` of them); the last one may overlap."""
    starts = tuple(range(0, pixels - lanes + 1, lanes))
    return starts if starts[-1] == pixels - lanes else (*starts, pixels - lanes)


def cut_pixels(pixels: int, lanes: int, vectors: int, tail_limit: int) -> Cut:
    """Cut `pixels` into tiles of at most `vectors` vectors of `lanes` lanes.

    A remainder of up to `tail_limit` pixels, and all of a band narrower than one vector, goes pixel by pixel. Vectors
    are spread evenly over the tiles (7 by at most 3 gives 3 + 2 + 2), so that no tile is left with a lone vector.
    """
    full, rest = divmod(pixels, lanes)
    if full == 0:
        return Cut((), 0, pixels)
    tail = rest if rest <= tail_limit else 0
    starts = vector_starts(pixels - tail, lanes)
    count = -(-len(starts) // vectors)
    small, large = divmod(len(starts), count)
    bounds = [index * small + min(index, large) for index in range(count + 1)]
    tiles = [starts[a:b] for a, b in itertools.pairwise(bounds)]
    return Cut(runs_of(tiles), pixels - tail, tail)


def join_tail(cut: Cut) -> Cut:
    """The same cut with its single pixels spread evenly over the tiles, the last ones having one more."""
    tiles = [tuple(offset + i * run.step for offset in run.offsets) for run in cut.runs for i in range(run.repeat)]
    if not tiles:
        return cut
    few, more = divmod(cut.tail, len(tiles))
    found: list[Run] = []
    single = cut.tail_start
    for part, singles in ((tiles[: len(tiles) - more], few), (tiles[len(tiles) - more :], few + 1)):
        for run in runs_of(part):
            found.append(replace(run, singles=singles, first_single=single))
            single += singles * run.repeat
    return Cut(tuple(found), single)


def runs_of(tiles: Sequence[tuple[int, ...]]) -> tuple[Run, ...]:
    """Merge neighbouring tiles that differ only by a constant step."""
    runs: list[Run] = []
    for tile in tiles:
        if runs and len(runs[-1].offsets) == len(tile):
            last = runs[-1]
            step = last.step or tile[0] - last.offsets[0]
            if tuple(start + step * last.repeat for start in last.offsets) == tile:
                runs[-1] = Run(last.offsets, last.repeat + 1, step)
                continue
        runs.append(Run(tile, 1, 0))
    return tuple(runs)
