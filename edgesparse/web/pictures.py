"""From a picture's pixels to a model's input, as the demo page does it: `picture.mjs` has the same arithmetic.

The middle of the picture is taken and brought to the model's size by linear interpolation that takes the mean where
pixels become fewer: each result is the sum of the pixels under a triangle, one axis after the other. This is what
Pillow calls BILINEAR, without its rounding to 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import UsageError

ORDERS = ("rgb", "bgr")

_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Preparation:
    """What a model wants done with a picture; by default what most networks for ImageNet were trained with.

    Attributes
    ----------
    mean, std:
        Of pixels from 0 to 1, for each channel in the model's order; one number counts for all channels.
    order:
        "rgb" or "bgr". A model of one channel gets the luma of BT.601.
    crop:
        Share of the largest window of the model's shape that is taken, around the middle: 0.875 is 224 pixels of 256.

    Raises
    ------
    UsageError
        For values that make no sense.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    order: str = "rgb"
    crop: float = 0.875

    def __post_init__(self) -> None:
        if not all(np.isfinite(self.mean)) or not all(0 < value < np.inf for value in self.std):
            raise UsageError(f"no mean {self.mean} and deviation {self.std}", fix="deviations are above 0")
        if self.order not in ORDERS or not 0 < self.crop <= 1:
            raise UsageError(f"no order {self.order!r} or crop {self.crop}", fix="rgb or bgr; a share up to 1")

    def settings(self, channels: int) -> dict[str, Any]:
        """The same as the page reads it, for a model of 1 or 3 channels. UsageError."""
        return {**asdict(self), "mean": _each(self.mean, channels), "std": _each(self.std, channels)}


def _each(values: Sequence[float], channels: int) -> list[float]:
    if channels == 1 and len(values) == 3:  # of colours: their luma's
        return [float(np.dot(values, _LUMA))]
    if len(values) not in (1, channels):
        raise UsageError(f"{len(values)} numbers for {channels} channels: {', '.join(map(str, values))}")
    return [*values] * (channels // len(values))


def to_tensor(pixels: NDArray[Any], shape: Sequence[int], preparation: Preparation | None = None) -> NDArray[Any]:
    """A picture as a model's input.

    Parameters
    ----------
    pixels:
        ``[H, W, 3 or 4]`` of 8 bits: red, green, blue; a fourth is left out.
    shape:
        Of the input: ``[1, 1 or 3, height, width]``. The result has it, in float32.

    Raises
    ------
    UsageError
        The preparation does not fit the number of channels.
    """
    _, channels, height, width = shape
    settings = (preparation or Preparation()).settings(channels)
    values = take_middle(pixels, height, width, settings["crop"])
    values = values @ _LUMA[:, None] if channels == 1 else values[..., :: -1 if settings["order"] == "bgr" else 1]
    scaled = (values / 255 - np.array(settings["mean"])) / np.array(settings["std"])
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def take_middle(pixels: NDArray[Any], height: int, width: int, crop: float) -> NDArray[np.float64]:
    """The middle of a picture ``[H, W, 3 or more]`` as ``[height, width, 3]``, with values from 0 to 255."""
    step = min(pixels.shape[1] / width, pixels.shape[0] / height) * crop
    down, across = (
        _triangles(size, (size - count * step) / 2, step, count)
        for size, count in zip(pixels.shape[:2], (height, width), strict=True)
    )
    return np.asarray(np.einsum("yh,hwc,xw->yxc", down, pixels[..., :3].astype(np.float64), across, optimize=True))


def _triangles(size: int, start: float, step: float, count: int) -> NDArray[np.float64]:
    """Weights ``[count, size]`` of `size` pixels in windows that begin at `start` and are `step` wide."""
    centres = start + (np.arange(count) + 0.5) * step
    distances = np.abs(np.arange(size) + 0.5 - centres[:, None])
    weights = np.maximum(0.0, 1 - distances / max(step, 1.0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
