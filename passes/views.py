"""More to calibrate on than there is: of every photograph some random parts, half of them with places of another.

What a layer deep in a network sees of a hundred photographs is little, and weights fitted to it do not fit others.
Parts of a photograph are other photographs, to a network that was trained on parts; and so are mixtures, to one that
need not say what they show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from edgesparse.errors import UsageError
from edgesparse.passes.graph import Array
from edgesparse.passes.observe import Feeds

AREA, ASPECT = (0.35, 1.0), (3 / 4, 4 / 3)
"""Share of the picture that a part shows, and its width over height."""
MIXED, POINTS, STEEP = 0.5, (2, 7), 4.0
"""Share of the parts that are mixed, how many random points along a side say where, and how sharp borders are."""
LEAST = 8
"""Pixels on the shorter side of what counts as a picture."""


@dataclass(frozen=True)
class Views:
    """Samples, and behind each of them `count` random parts of it: the same ones each time they are read."""

    samples: Iterable[Feeds]
    count: int
    seed: int

    @property
    def together(self) -> int:
        """Samples in a row that are of one."""
        return 1 + self.count

    def __iter__(self) -> Iterator[Feeds]:
        before: Feeds | None = None
        for number, feeds in enumerate(self.samples):
            yield feeds
            source = np.random.default_rng((self.seed, number))
            for _ in range(self.count):
                yield {name: _view(value, (before or {}).get(name), source) for name, value in feeds.items()}
            before = feeds


def with_views(samples: Iterable[Feeds], count: int, seed: int = 0) -> Iterable[Feeds]:
    """The samples themselves and `count` parts of each; UsageError where no input of theirs is a picture."""
    if count == 0:
        return samples
    first = next(iter(samples))
    if not any(map(is_picture, first.values())):
        shapes = ", ".join("x".join(map(str, np.shape(value))) for value in first.values())
        raise UsageError(
            "the recipe asks for views of its samples",
            why=f"none of the inputs is a picture [N, channels, height, width]: {shapes[:200]}",
            fix="leave `views` out",
        )
    return Views(samples, count, seed)


def is_picture(value: Array) -> bool:
    """Whether an input is one of floats, `[N, 1 or 3, H, W]`, and not tiny."""
    return value.ndim == 4 and value.shape[1] in (1, 3) and min(value.shape[2:]) >= LEAST and value.dtype.kind == "f"


def part(pictures: Array, source: np.random.Generator) -> Array:
    """One random part of pictures `[N, C, H, W]`, in their size and dtype, mirrored or not; sampled bilinearly."""
    area, aspect = source.uniform(*AREA), np.exp(source.uniform(*np.log(ASPECT)))
    height, width = pictures.shape[2:]
    rows = _sampled(height, min(float(np.sqrt(area / aspect)), 1.0), source)
    columns = _sampled(width, min(float(np.sqrt(area * aspect)), 1.0), source)
    if source.random() < 0.5:
        columns = columns[::-1]
    return np.asarray(rows @ pictures.astype(np.float64) @ columns.T).astype(pictures.dtype)


def _view(value: Array, other: Array | None, source: np.random.Generator) -> Array:
    """A part of a picture, perhaps mixed with one of `other`, another sample's; what is no picture stays as it is."""
    if not is_picture(value):
        return value
    made = part(value, source)
    if other is None or other.shape != value.shape or source.random() >= MIXED:
        return made
    share = places(value.shape[2], value.shape[3], source)
    return np.asarray((1.0 - share) * made + share * part(other, source)).astype(value.dtype)


def places(height: int, width: int, source: np.random.Generator) -> Array:
    """Smooth random weights `[height, width]` within 0 and 1, mostly near one of them (after FMix, 2002.12047)."""
    points = int(source.integers(*POINTS))
    rows, columns = (_between(points, length) for length in (height, width))
    field = rows @ source.standard_normal((points, points)) @ columns.T
    return np.asarray(1.0 / (1.0 + np.exp(-STEEP * field - source.standard_normal())))


def _between(points: int, length: int) -> Array:
    """`[length, points]`: the weights of points, spread evenly over a side, at each of its pixels."""
    return np.asarray(np.maximum(1.0 - np.abs(np.linspace(0, points - 1, length)[:, None] - np.arange(points)), 0.0))


def _sampled(length: int, share: float, source: np.random.Generator) -> Array:
    """`[length, length]`: the weights of pixels in a random part of a side, of that share of it, at the same length."""
    begin = source.uniform(0.0, 1.0 - share) * length
    places = np.clip(begin + (np.arange(length) + 0.5) * share - 0.5, 0, length - 1)
    return np.asarray(np.maximum(1.0 - np.abs(places[:, None] - np.arange(length)), 0.0))
