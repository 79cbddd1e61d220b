"""Photographs in a folder, named by their class: data for networks trained on ImageNet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgesparse.errors import UsageError
from edgesparse.models.data import Array, Sample
from edgesparse.models.packages import require

SUFFIXES = (".jpeg", ".jpg", ".png")


def files(folder: str | Path) -> list[Path]:
    """Return the pictures of a folder, sorted by class and name.

    A picture's class is the number that its name begins with (`7.jpg`, `7-b.jpg`), or, if its name does not
    begin with one, that of the folder it lies in.

    Raises
    ------
    UsageError
        If there is no such folder, no picture in it, or a picture without a class.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"there is no folder of pictures {root}")
    found = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES]
    if not found:
        raise UsageError(f"there are no pictures in {root}", fix=f"put {', '.join(SUFFIXES)} files there")
    return sorted(found, key=lambda path: (label(path), path.name))


def label(path: Path) -> int:
    """Return the class that a picture's name, or else its folder's, begins with."""
    for name in (path.stem, path.parent.name):
        digits = name[: len(name) - len(name.lstrip("0123456789"))]
        if digits:
            return int(digits)
    raise UsageError(f"cannot tell the class of {path}", fix="begin its name with the class index, as in 7.jpg")


def preprocess(image: Any, *, resolution: int = 224, resize: int = 256) -> Array:
    """Return EfficientNet-lite's input [1, 3, resolution, resolution]: `(pixel - 127) / 128`, red first.

    The short side becomes `resize` pixels, of which the centre is taken; a picture of the right size is left
    as it is.
    """
    from PIL import Image

    image = image.convert("RGB")
    if image.size != (resolution, resolution):
        scale = resize / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
        image = image.crop((left, top, left + resolution, top + resolution))
    pixels = np.asarray(image, dtype=np.float32)
    scaled = (pixels - np.float32(127)) / np.float32(128)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def samples(folder: str | Path, *, limit: int | None = None, resolution: int = 224) -> Iterator[Sample]:
    """Yield (input [1, 3, resolution, resolution], class) for a folder's pictures, reading one at a time."""
    require("PIL", "reading pictures")
    from PIL import Image

    for path in files(folder)[:limit]:
        with Image.open(path) as image:
            yield preprocess(image, resolution=resolution), label(path)
