"""Fashion-MNIST: 28x28 pictures of clothes in ten classes, and a MobileNet of 55 k weights that learns them.

The data (Xiao et al., 1708.07747; MIT) comes with the Debian package `dataset-fashion-mnist`; another folder with
the same four files can be named by `EDGESPARSE_FASHION_MNIST`. Nothing is fetched at run time.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import EdgesparseError
from edgesparse.models.data import Array
from edgesparse.models.packages import MissingPackageError

FOLDER = Path("/usr/share/datasets/fashion-mnist")
SIDE = 28
_MAGIC = {1: 2049, 3: 2051}  # IDX: unsigned bytes, in one dimension (labels) or three (pictures)


def folder() -> Path:
    """Where the four files are looked for."""
    return Path(os.environ.get("EDGESPARSE_FASHION_MNIST") or FOLDER)


def load() -> tuple[tuple[Array, NDArray[np.int64]], tuple[Array, NDArray[np.int64]]]:
    """Return (training, evaluation), each pictures [N, 1, 28, 28], scaled to mean 0 and deviation 1, and classes [N].

    60 000 and 10 000 of them. Raises MissingPackageError without the files, EdgesparseError for damaged ones.
    """
    return _half("train"), _half("t10k")


def network(*, width: float = 1.0) -> Any:
    """Return the untrained module: input [N, 1, 28, 28], output logits [N, 10]; 54 922 parameters at width 1.

    MobileNet-v1 (1704.04861) at the size of the task: a stem and six separable convolutions. The 1x1 convolutions
    (`block*.pointwise.conv`) hold 48 of its 55 k weights.
    """
    from edgesparse.models.convnets import chain, classifier, conv_bn, divisible

    channels = divisible(16 * width)
    parts: dict[str, Any] = {"stem": conv_bn(1, channels, 3)}
    for index, (outputs, stride) in enumerate(((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (128, 1))):
        outputs = divisible(outputs * width)
        parts[f"block{index + 1}"] = chain(
            depthwise=conv_bn(channels, channels, 3, stride=stride, groups=channels),
            pointwise=conv_bn(channels, outputs, 1),
        )
        channels = outputs
    return chain(**parts, head=classifier(channels, 10))


def _half(name: str) -> tuple[Array, NDArray[np.int64]]:
    raw = _read(f"{name}-images-idx3-ubyte.gz", 3)
    pictures = (raw.astype(np.float32)[:, None] / np.float32(255) - np.float32(0.2860)) / np.float32(0.3530)
    return pictures, _read(f"{name}-labels-idx1-ubyte.gz", 1).astype(np.int64)


def _read(name: str, rank: int) -> NDArray[np.uint8]:
    """One IDX file: a big-endian header of magic number and extents, then bytes."""
    path = folder() / name
    if not path.is_file():
        raise MissingPackageError(
            f"the Fashion-MNIST file {name} is not there",
            why=f"it was looked for in {path.parent}",
            fix="apt install dataset-fashion-mnist, or name another folder by EDGESPARSE_FASHION_MNIST",
        )
    try:
        with gzip.open(path) as file:
            raw = file.read(64 << 20)
    except (OSError, EOFError, zlib.error) as error:
        raise EdgesparseError(f"cannot read {path}", why=str(error), fix="install the data again") from error
    header = np.frombuffer(raw[: 4 + 4 * rank].ljust(4 + 4 * rank, b"\0"), ">u4")
    extents = tuple(int(extent) for extent in header[1:])
    if header[0] != _MAGIC[rank] or len(raw) != 4 + 4 * rank + int(np.prod(extents)):
        raise EdgesparseError(f"{path} is not the file it should be", why="its header does not fit its length")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(extents)
