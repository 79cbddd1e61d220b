"""Inputs without labels: read from a folder of pictures or arrays, and changed a little at random."""

from __future__ import annotations

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
long training on few photographs, with smaller crops, patches of each other, and other colours."""
AREA, ASPECT = (0.35, 1.0), (3 / 4, 4 / 3)
"""Share of the picture that a crop shows, and its width over height."""
STRONG_AREA = (0.15, 1.0)
"""Share of the picture that a strong crop shows."""
BLENDED, PATCHED = 0.4, 0.3
"""Shares of strongly changed inputs that are blended with another, and that have a patch of one."""
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
        return _coloured(_mixed(crop(batch, source, side, STRONG_AREA), source), source)
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

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=source)

    area, aspect = between(*shares), torch.exp(between(*np.log(ASPECT)))
    width, height = (area * aspect).sqrt().clamp_max(1.0), (area / aspect).sqrt().clamp_max(1.0)
    theta = torch.zeros(count, 2, 3)
    mirrored = torch.rand(count, generator=source) < 0.5
    theta[:, 0, 0] = torch.where(mirrored, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (1 - width) * between(-1.0, 1.0)
    theta[:, 1, 2] = (1 - height) * between(-1.0, 1.0)
    whole = batch.shape[2:]
    scale = 1.0 if side is None else side / min(whole)
    size = [count, batch.shape[1], *(max(round(length * scale), 1) for length in whole)]
    grid = torch.nn.functional.affine_grid(theta, size, align_corners=False)
    return torch.nn.functional.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)


def _mixed(batch: Tensor, source: torch.Generator) -> Tensor:
    """Some pictures blended with another (mixup, 1710.09412), some with a rectangle of another (CutMix, 1905.04899)."""
    ones = (len(batch), 1, 1, 1)
    lot, share = (torch.rand(ones, generator=source) for _ in range(2))
    other = batch[torch.randperm(len(batch), generator=source)]
    blended = torch.where(lot < BLENDED, share * batch + (1 - share) * other, batch)
    inside = torch.ones(())
    for axis in (2, 3):
        length = batch.shape[axis]
        middle = length * torch.rand(ones, generator=source)
        at = torch.arange(length).reshape([-1 if i == axis else 1 for i in range(4)]) + 0.5
        inside = inside * ((at - middle).abs() <= 0.5 * length * (1 - share).sqrt())
    return torch.where((lot >= BLENDED) & (lot < BLENDED + PATCHED) & (inside > 0), other, blended)


def _coloured(batch: Tensor, source: torch.Generator) -> Tensor:
    """Pictures with another contrast, saturation, tint and balance of channels."""
    count, channels = batch.shape[:2]

    def between(low: float, high: float, width: int = 1) -> Tensor:
        return low + (high - low) * torch.rand((count, width, 1, 1), generator=source)

    grey = batch.mean(1, keepdim=True)
    made = grey + (batch - grey) * between(1 - 1.5 * COLOUR, 1 + 1.5 * COLOUR)
    tint = 0.5 * COLOUR * batch.std() * between(-1.5, 1.5, channels)
    return (made * between(1 - COLOUR, 1 + COLOUR, channels) + tint) * between(0.8, 1.2)
