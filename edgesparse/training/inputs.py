"""Inputs without labels: read from a folder of pictures or arrays, and changed a little at random."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from edgesparse.errors import UsageError
from edgesparse.passes.calibration import check, ports, read_named
from edgesparse.sections import MAX_SAMPLES, Calibration
from edgesparse.training.layers import Tensor

MAX_BYTES = 4 << 30
AUGMENTATIONS = ("none", "shift", "crop", "strong")
"""How inputs are changed: not at all; moved, mixed and in other contrast; pictures also cropped and mirrored; and, for
long training on few photographs, with smaller, turned crops, places of each other, and other colours. For its last
steps there is "whole": the same without crops."""
AREA, ASPECT = (0.35, 1.0), (3 / 4, 4 / 3)
"""Share of the picture that a crop shows, and its width over height."""
STRONG_AREA, STRONG_ASPECT = (0.15, 1.0), (0.7, 1 / 0.7)
"""Share of the picture that a strong crop shows, and its width over height."""
TURN, SHEAR = 20.0, 0.15
"""Degrees up to which half of the strong crops are turned, and how far another half leans."""
WOVEN, BLENDED, TIMES = 0.35, 0.2, 2
"""Shares of strongly changed inputs that have places of another one, and that are blended with one; how many times."""
WAVES = (2, 7)
"""Numbers of points, along each side, between which the border of such places runs smoothly: from, and below."""
COLOUR = 0.3
"""How far strong changes move the saturation and the channels, relative to what they are."""


def read_inputs(path: Path | str, model: ir.Model, settings: Calibration | None = None) -> Tensor:
    """All samples of a folder (pictures, .npy, .npz) for a model of one input, as one float32 tensor [N, ...].

    Read as `sparsify --calibrate` reads them; a `.npy` may also hold one input without the batch dimension. Raises
    UsageError for a folder without samples, for a file that is damaged or does not fit, and for too many.
    """
    settings = settings or Calibration()
    (port,) = ports(model)
    # `limit` is for passes that measure; all there is may be trained on
    every = Calibration(settings.mean, settings.scale, settings.order, MAX_SAMPLES)
    found, total = [], 0
    for file, feeds in read_named(path, model, every)():
        if port.name in feeds and np.asarray(feeds[port.name]).ndim == len(port.dims) - 1:
            feeds = {port.name: np.asarray(feeds[port.name])[None]}
        try:
            found.append(check(feeds, port).astype(np.float32))
        except UsageError as error:
            raise UsageError(
                f"{file}: {error.what}", why=error.why, fix=error.fix or "save preprocessed inputs"
            ) from None
        total += found[-1].nbytes
        if total > MAX_BYTES:
            raise UsageError(f"{path} holds more than {MAX_BYTES >> 30} GB of inputs", fix="take fewer of them")
    return torch.from_numpy(np.concatenate(found))


def augment(batch: Tensor, source: torch.Generator, kind: str = "shift", side: int | None = None) -> Tensor:
    """Inputs that the teacher can answer as well: `kind` is one of `AUGMENTATIONS`.

    The teacher sees the same input, so nothing here needs to keep a label: half of the inputs are mixed with another
    (with crops as strong as these: Beyer et al., 2106.05237). Moves, crops and mirrors are for pictures [N, C, H, W];
    crops have the pictures' size, or that share of it that makes their shorter side `side` pixels. Strong changes are
    for pictures; few photographs can so teach a thousand classes (Asano and Saeed, 2112.00725).
    """
    if kind == "none":
        return batch
    count = len(batch)
    ones = (count,) + (1,) * (batch.ndim - 1)
    if kind == "strong" and batch.ndim == 4:
        return _coloured(_woven(batch, source, lambda one: _strong_crop(one, source, side)), source)
    if kind == "whole" and batch.ndim == 4:
        return _coloured(_woven(batch, source, lambda one: _mirrored(one, source)), source)
    if kind == "crop" and batch.ndim == 4:
        batch = crop(batch, source, side)
    share = torch.rand(ones, generator=source)
    mixed = torch.rand(ones, generator=source) < 0.5
    other = batch[torch.randperm(count, generator=source)]
    made = torch.where(mixed, share * batch + (1 - share) * other, batch)
    if made.ndim == 4 and kind == "shift":
        reach = max(min(made.shape[2:]) // 16, 1)
        down, right = (int(torch.randint(-reach, reach + 1, (), generator=source)) for _ in range(2))
        made = torch.roll(made, (down, right), (2, 3))
    return made * (0.8 + 0.4 * torch.rand(ones, generator=source))


def crop(batch: Tensor, source: torch.Generator, side: int | None = None, shares: tuple[float, float] = AREA) -> Tensor:
    """Each picture's random part, of the same size or with `side` pixels on the shorter side; every second mirrored.

    `shares` of the picture's area; sampled bilinearly.
    """
    count = len(batch)
    area, aspect = _between(shares, count, source), _logarithmic(ASPECT, count, source)
    upright = torch.eye(2).repeat(count, 1, 1)
    return _part(batch, source, side, area, aspect, upright)


def _strong_crop(batch: Tensor, source: torch.Generator, side: int | None) -> Tensor:
    """As `crop`, with the shares of `STRONG_AREA`, and some parts turned or leaning."""
    count = len(batch)
    area, aspect = _between(STRONG_AREA, count, source), _logarithmic(STRONG_ASPECT, count, source)
    angle, lean = (
        _between((-most, most), count, source) * (torch.rand(count, generator=source) < 0.5)
        for most in (math.radians(TURN), SHEAR)
    )
    sine, cosine = angle.sin(), angle.cos()
    return _part(batch, source, side, area, aspect, torch.stack([cosine, lean - sine, sine, cosine], 1).view(-1, 2, 2))


def _part(
    batch: Tensor, source: torch.Generator, side: int | None, area: Tensor, aspect: Tensor, turned: Tensor
) -> Tensor:
    """Parts of these shares of the area and shapes, at random places, every second mirrored, by `turned` [N, 2, 2]."""
    count = len(batch)
    width, height = (area * aspect).sqrt().clamp_max(1.0), (area / aspect).sqrt().clamp_max(1.0)
    mirrored = torch.rand(count, generator=source) < 0.5
    across = torch.where(mirrored, -width, width)
    theta = torch.empty(count, 2, 3)
    theta[:, :, :2] = turned * torch.stack([across, height], 1)[:, None]
    theta[:, 0, 2] = (1 - width) * _between((-1.0, 1.0), count, source)
    theta[:, 1, 2] = (1 - height) * _between((-1.0, 1.0), count, source)
    whole = batch.shape[2:]
    scale = 1.0 if side is None else side / min(whole)
    size = [count, batch.shape[1], *(max(round(length * scale), 1) for length in whole)]
    grid = torch.nn.functional.affine_grid(theta, size, align_corners=False)
    return torch.nn.functional.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)


def _mirrored(batch: Tensor, source: torch.Generator) -> Tensor:
    """Every second picture mirrored."""
    return torch.where(torch.rand((len(batch), 1, 1, 1), generator=source) < 0.5, batch.flip(3), batch)


def _woven(batch: Tensor, source: torch.Generator, shown: Callable[[Tensor], Tensor]) -> Tensor:
    """What is `shown` of each, some with places of another's, some blended with one (after FMix, 2002.12047, and mixup,
    1710.09412).

    Few pictures make many: what a network can learn of each by heart is then of less use to it.
    """
    count = len(batch)
    made = shown(batch)
    for _ in range(TIMES):
        other = shown(batch[torch.randperm(count, generator=source)])
        lot, share = (torch.rand((count, 1, 1, 1), generator=source) for _ in range(2))
        places = _places(count, made.shape[2:], source)
        weight = torch.where(lot < WOVEN, places, torch.where(lot < WOVEN + BLENDED, share, torch.zeros(())))
        made = torch.lerp(made, other, weight)
    return made


def _places(count: int, size: Sequence[int], source: torch.Generator) -> Tensor:
    """Smooth random weights [count, 1, *size] within 0 and 1, mostly near one of them, with hard or soft borders."""
    points = int(torch.randint(*WAVES, (), generator=source))
    field = torch.randn(count, 1, points, points, generator=source)
    field = torch.nn.functional.interpolate(field, size=tuple(size), mode="bicubic", align_corners=False)
    steep, shift = (torch.randn((count, 1, 1, 1), generator=source) for _ in range(2))
    return torch.sigmoid(field * (steep + 1.5).exp() + shift)


def _between(ends: tuple[float, float], count: int, source: torch.Generator) -> Tensor:
    """`[count]` numbers, evenly spread."""
    return ends[0] + (ends[1] - ends[0]) * torch.rand(count, generator=source)


def _logarithmic(ends: tuple[float, float], count: int, source: torch.Generator) -> Tensor:
    """`[count]` numbers whose logarithms are evenly spread."""
    return _between((math.log(ends[0]), math.log(ends[1])), count, source).exp()


def _coloured(batch: Tensor, source: torch.Generator) -> Tensor:
    """Pictures with another contrast, saturation, tint and balance of channels."""
    count, channels = batch.shape[:2]

    def between(low: float, high: float, width: int = 1) -> Tensor:
        return low + (high - low) * torch.rand((count, width, 1, 1), generator=source)

    grey = batch.mean(1, keepdim=True)
    made = grey + (batch - grey) * between(1 - 1.5 * COLOUR, 1 + 1.5 * COLOUR)
    tint = 0.5 * COLOUR * batch.std() * between(-1.5, 1.5, channels)
    return (made * between(1 - COLOUR, 1 + COLOUR, channels) + tint) * between(0.8, 1.2)
