"""Calibration data: samples for a model's inputs from a folder of pictures, from .npy or .npz files, or from Python.

Samples are read again for every pass over them and one at a time, so that memory does not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgesparse.errors import UsageError
from edgesparse.passes.graph import Array
from edgesparse.passes.observe import Feeds
from edgesparse.sections import Calibration

PICTURES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
ARRAYS = (".npy", ".npz")
_RESIZE = 256 / 224
"""Short side before the centre is cut out, over the side of the cut, as networks for ImageNet are measured."""


@dataclass(frozen=True)
class Port:
    """A model input: name, numpy dtype, and dims with None for open ones."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | None, ...]


@dataclass(frozen=True)
class Samples:
    """Samples that can be iterated over any number of times, each one a mapping of input name to array."""

    make: Callable[[], Iterator[Feeds]]

    def __iter__(self) -> Iterator[Feeds]:
        return self.make()


def ports(model: ir.Model) -> tuple[Port, ...]:
    """The model's inputs. UsageError for one without a rank or dtype."""
    found = []
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        if value.shape is None or value.dtype is None:
            raise UsageError(f"input {value.name!r} has no shape", fix="give it with --shape")
        dims = tuple(dim if isinstance(dim, int) else None for dim in value.shape)
        found.append(Port(value.name or "", value.dtype.numpy(), dims))
    return tuple(found)


def read_samples(path: str | Path, model: ir.Model, settings: Calibration | None = None) -> Samples:
    """Samples from a folder (pictures, .npy and .npz files, by name), or from one .npy or .npz file.

    A .npy holds an array for a model of one input, a .npz one per input name: one sample, or several along the first
    axis where the model takes one at a time. Raises UsageError where there is nothing, or a file does not fit.
    """
    settings = settings or Calibration()
    inputs = ports(model)
    named = read_named(path, model, settings)
    return _limited(lambda: (feeds for _, feeds in named()), inputs, settings)


def read_named(path: str | Path, model: ir.Model, settings: Calibration) -> Callable[[], Iterator[tuple[Path, Feeds]]]:
    """As `read_samples`, each sample with the file it comes from, and not yet checked against the model's inputs."""
    root = Path(path)
    inputs = ports(model)
    if root.is_dir():
        found = sorted((p for p in root.rglob("*") if p.suffix.lower() in (*PICTURES, *ARRAYS)), key=lambda p: str(p))
        if not found:
            kinds = ", ".join((*PICTURES, *ARRAYS))
            raise UsageError(f"there is no calibration data in {root}", why=f"no file ends in {kinds}")
    elif root.is_file():
        found = [root]
    else:
        raise UsageError(f"there is no calibration data {root}", fix="give a folder or a .npy file")
    step = max(1, len(found) // settings.limit)
    chosen = found[::step][: settings.limit]
    return lambda: ((file, feeds) for file in chosen for feeds in _read(file, inputs, settings))


def samples_of(items: Iterable[Any], model: ir.Model, settings: Calibration | None = None) -> Samples:
    """Samples from arrays (for a model of one input) or mappings of input name to array.

    A generator is read once and kept; anything that can be iterated again is not.
    """
    settings = settings or Calibration()
    inputs = ports(model)
    again: Iterable[Any] = list(items) if iter(items) is items else items
    return _limited(lambda: (_named(item, inputs, "a sample") for item in again), inputs, settings)


def _limited(make: Callable[[], Iterator[Feeds]], inputs: tuple[Port, ...], settings: Calibration) -> Samples:
    def checked() -> Iterator[Feeds]:
        for number, feeds in enumerate(make()):
            if number >= settings.limit:
                return
            yield {port.name: check(feeds, port) for port in inputs}

    samples = Samples(checked)
    if next(iter(samples), None) is None:
        raise UsageError("there is no calibration data", fix="give at least one sample, better a hundred")
    return samples


def check(feeds: Feeds, port: Port) -> Array:
    """The port's array in its dtype. UsageError for a missing one, a wrong shape or dtype, or NaN."""
    if port.name not in feeds:
        raise UsageError(f"a calibration sample lacks input {port.name!r}", why=f"it has {', '.join(feeds)[:200]}")
    array = np.asarray(feeds[port.name])
    fits = len(array.shape) == len(port.dims) and all(
        d is None or d == n for d, n in zip(port.dims, array.shape, strict=True)
    )
    if not fits:
        want = "x".join("?" if d is None else str(d) for d in port.dims)
        raise UsageError(
            f"calibration data of shape {'x'.join(map(str, array.shape))} for input {port.name!r}",
            why=f"the input is {want}",
            fix="give samples of that shape; files may hold several along the first axis where all inputs take one",
        )
    if array.dtype != port.dtype and not np.can_cast(array.dtype, port.dtype, "same_kind"):
        raise UsageError(f"calibration data of {array.dtype} for input {port.name!r}", why=f"it takes {port.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(f"calibration data for input {port.name!r} has NaN or infinite entries")
    return array.astype(port.dtype, copy=False)


def _named(item: Any, inputs: tuple[Port, ...], what: str) -> Feeds:
    if isinstance(item, Mapping):
        return item
    if len(inputs) != 1:
        raise UsageError(f"{what} is one array, but the model has {len(inputs)} inputs", fix="name them: .npz or dict")
    return {inputs[0].name: np.asarray(item)}


def _read(file: Path, inputs: tuple[Port, ...], settings: Calibration) -> Iterator[Feeds]:
    if file.suffix.lower() in PICTURES:
        yield {_image_port(inputs).name: picture(file, _image_port(inputs), settings)}
        return
    try:
        loaded = np.load(file, allow_pickle=False, mmap_mode="r" if file.suffix == ".npy" else None)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"cannot read calibration data {file}", why=str(error).splitlines()[0][:200]) from error
    if not isinstance(loaded, np.ndarray):
        try:
            feeds: Feeds = {name: loaded[name] for name in loaded.files}
        except ValueError as error:
            raise UsageError(f"cannot read calibration data {file}", why=str(error).splitlines()[0][:200]) from error
    else:
        feeds = _named(loaded, inputs, str(file))
    many = _several(feeds, inputs)
    if many == 1:
        yield feeds
        return
    for number in range(many):
        yield {port.name: np.asarray(feeds[port.name][number : number + 1]) for port in inputs}


def _several(feeds: Feeds, inputs: tuple[Port, ...]) -> int:
    """How many samples there are along the first axis of all inputs alike; 1 where an input does not take one."""
    lengths = set()
    for port in inputs:
        array = feeds.get(port.name, np.empty(()))
        one_at_a_time = port.dims[:1] == (1,) and array.ndim == len(port.dims)
        lengths.add(len(array) if one_at_a_time else 1)
    return max(lengths.pop(), 1) if len(lengths) == 1 else 1


def _image_port(inputs: tuple[Port, ...]) -> Port:
    if len(inputs) != 1 or len(inputs[0].dims) != 4 or inputs[0].dims[1] != 3:
        raise UsageError(
            "pictures do not fit the model", why="it does not take one 1x3xHxW input", fix="give .npy files"
        )
    return inputs[0]


def picture(file: Path, port: Port, settings: Calibration) -> Array:
    """A picture as `[1, 3, H, W]`: short side to 256/224 of H, centre cut out, `(pixel - mean) / scale`.

    A picture of the right size is left as it is.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UsageError("reading pictures needs pillow", fix="pip install pillow") from error
    height, width = port.dims[2] or 224, port.dims[3] or 224
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UsageError(f"cannot read picture {file}", why=str(error).splitlines()[0][:200]) from error
    if image.size != (width, height):
        scale = max(height * _RESIZE / image.height, width * _RESIZE / image.width)
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, dtype=np.float32)
    if settings.order == "bgr":
        pixels = pixels[:, :, ::-1]
    scaled = (pixels - np.asarray(settings.mean, np.float32)) / np.asarray(settings.scale, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])
