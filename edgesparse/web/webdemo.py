"""The demo page of a bundle: one picture through its sparse and its dense form, side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edgesparse.errors import UnsupportedError, UsageError
from edgesparse.web.bundle import SCRIPTS, Bundle, bundle_model, web_folder
from edgesparse.web.pictures import Preparation

FOLDER = "demo"
"""Where the page lies in a bundle; it is no part of the npm package."""

_FILES = {"demo.html": "index.html", "demo.css": "demo.css", "demo.mjs": "demo.mjs", "picture.mjs": "picture.mjs"}


def add_demo(
    bundle: Bundle, portable: Path, *, labels: Path | None = None, preparation: Preparation | None = None
) -> Path:
    """Add the page to a bundle that was made from the model `portable`: the page's path.

    Parameters
    ----------
    labels:
        A text file with the name of each class on a line of its own.
    preparation:
        What the model wants done with pictures.

    Raises
    ------
    UnsupportedError
        The model does not take one picture, of one or three channels.
    UsageError
        The labels cannot be read; the preparation does not fit the model.
    """
    channels = channels_of(bundle)
    prepared = (preparation or Preparation()).settings(channels)
    names = read_labels(labels) if labels is not None else None
    place = bundle.path / FOLDER
    place.mkdir()
    dense = bundle_model(portable, output=place / "dense", dense=True, threads=1)
    for source, name in _FILES.items():
        shutil.copyfile(web_folder() / source, place / name)
    settings: dict[str, Any] = {
        "name": bundle.manifest["name"],
        "sparseBytes": download_bytes(bundle),
        "denseBytes": download_bytes(dense),
        "density": bundle.manifest["density"],
        "labels": names,
        **prepared,
    }
    (place / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return place / "index.html"


def channels_of(bundle: Bundle) -> int:
    """Channels of the one picture that a bundle's model takes. Raises UnsupportedError."""
    inputs = bundle.manifest["inputs"]
    shape = inputs[0]["shape"] if len(inputs) == 1 else []
    if len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3) or inputs[0]["dtype"] != "float32":
        raise UnsupportedError(
            "there is no demo page for this model",
            why="the page gives it one picture: a float32 input of 1x3xHxW or 1x1xHxW",
            fix="leave --demo out",
        )
    return int(shape[1])


def download_bytes(bundle: Bundle) -> int:
    """Bytes of the files that a session on one thread loads, as they are: weights, scripts, the larger variant."""
    files, modules = bundle.manifest["files"], bundle.manifest["modules"]
    scripts = sum(int(files[name]["size"]) for name in ("weights.bin", "index.mjs", *SCRIPTS))
    return scripts + max(int(files[name]["size"]) for key, name in modules.items() if "." not in key)


def read_labels(path: Path) -> list[str]:
    """The lines of a text file. Raises UsageError."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the labels {path}", why=str(error)) from error
