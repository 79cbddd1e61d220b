"""Inputs without labels: read from a folder of arrays, and changed a little at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgesparse.errors import UsageError
from edgesparse.training.layers import Tensor

MAX_BYTES = 4 << 30


def read_inputs(folder: Path | str, shape: tuple[int, ...]) -> Tensor:
    """All `.npy` files of a folder as one float32 tensor [N, *shape[1:]], in the order of their names.

    A file holds one input, with or without the batch dimension, or a batch of them. Raises UsageError for a folder
    without arrays, and for a file that is damaged, of another shape, or not finite.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.npy")) if folder.is_dir() else []
    if not files:
        raise UsageError(
            f"there are no inputs in {folder}",
            why="it has no .npy files" if folder.is_dir() else "it is no folder",
            fix=f"save preprocessed inputs of shape {shape} by numpy.save",
        )
    if sum(file.stat().st_size for file in files) > MAX_BYTES:
        raise UsageError(f"{folder} holds more than {MAX_BYTES >> 30} GB of inputs", fix="take fewer of them")
    found = []
    for file in files:
        try:
            array = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"cannot read {file}", why=str(error).splitlines()[0][:200]) from error
        if array.shape == shape[1:]:
            array = array[None]
        if array.shape[1:] != shape[1:] or array.dtype.kind not in "fiu":
            raise UsageError(
                f"{file} holds {array.dtype} of shape {array.shape}",
                why=f"the model takes float32 of shape {shape}",
                fix="save preprocessed inputs",
            )
        if not np.isfinite(array).all():
            raise UsageError(f"{file} holds NaN or infinite numbers")
        found.append(array.astype(np.float32))
    return torch.from_numpy(np.concatenate(found))


def augment(batch: Tensor, source: torch.Generator) -> Tensor:
    """Inputs that the teacher can answer as well: half of them mixed with another, moved a little, in other contrast.

    The teacher sees the same input, so nothing here needs to keep a label (mixing: Beyer et al., 2106.05237). Moves are
    for pictures [N, C, H, W] only.
    """
    count = len(batch)
    ones = (count,) + (1,) * (batch.ndim - 1)
    share = torch.rand(ones, generator=source)
    mixed = torch.rand(ones, generator=source) < 0.5
    other = batch[torch.randperm(count, generator=source)]
    made = torch.where(mixed, share * batch + (1 - share) * other, batch)
    if made.ndim == 4:
        reach = max(min(made.shape[2:]) // 16, 1)
        down, right = (int(torch.randint(-reach, reach + 1, (), generator=source)) for _ in range(2))
        made = torch.roll(made, (down, right), (2, 3))
    return made * (0.8 + 0.4 * torch.rand(ones, generator=source))
