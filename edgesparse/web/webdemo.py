"""The demo page of a bundle: one picture through its sparse and its dense form, side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesparse.errors import UnsupportedError, UsageError
from edgesparse.web.bundle import Bundle, bundle_model, web_folder

FOLDER = "demo"
"""Where the page lies in a bundle; it is no part of the npm package."""

#: Mean and standard deviation of ImageNet's pixels, by channel: what most networks for pictures are trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_FILES = {"demo.html": "index.html", "demo.mjs": "demo.mjs", "picture.mjs": "picture.mjs"}


def add_demo(bundle: Bundle, portable: Path, *, labels: Path | None = None) -> Path:
    """Add the page to a bundle that was just made from the model `portable`: the page's path.

    Parameters
    ----------
    labels:
        A text file with the name of each class on a line of its own.

    Raises
    ------
    UnsupportedError
        The model does not take one picture, of one or three channels.
    UsageError
        The labels cannot be read.
    """
    inputs = bundle.manifest["inputs"]
    shape = inputs[0]["shape"] if len(inputs) == 1 else []
    if len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3) or inputs[0]["dtype"] != "float32":
        raise UnsupportedError(
            "there is no demo page for this model",
            why="the page gives it one picture: a float32 input of 1x3xHxW or 1x1xHxW",
            fix="leave --demo out",
        )
    names = read_labels(labels) if labels is not None else None
    place = bundle.path / FOLDER
    place.mkdir()
    dense = bundle_model(portable, output=place / "dense", dense=True, threads=1)
    for source, name in _FILES.items():
        shutil.copyfile(web_folder() / source, place / name)
    channels = shape[1]
    settings: dict[str, Any] = {
        "name": bundle.manifest["name"],
        "sparseBytes": bundle.manifest["files"]["weights.bin"]["size"],
        "denseBytes": dense.manifest["files"]["weights.bin"]["size"],
        "density": bundle.manifest["density"],
        "labels": names,
        "mean": list(MEAN[:channels]),
        "std": list(STD[:channels]),
    }
    (place / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return place / "index.html"


def read_labels(path: Path) -> list[str]:
    """The lines of a text file. Raises UsageError."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the labels {path}", why=str(error)) from error


def to_tensor(pixels: np.ndarray, channels: int, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Pixels ``[H, W, 3 or 4]`` of 8 bits as a model's input ``[1, channels, H, W]``; as picture.mjs has it."""
    values = pixels[..., :3].astype(np.float64)
    if channels == 1:
        values = values @ np.array([[0.299], [0.587], [0.114]])
    scaled = (values / 255 - np.asarray(mean)) / np.asarray(std)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)
