"""Samples with labels for evaluation: labels from file names, from a table of names, or from an array."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesparse.errors import UsageError
from edgesparse.passes.calibration import check, ports, read_named
from edgesparse.passes.observe import Feeds
from edgesparse.sections import Calibration

NAMES = "names"
"""Stands for: the number that a file's name begins with, or else its folder's, is its class."""

Label = NDArray[Any] | int | None
Pair = tuple[Feeds, Label]


class Labelled:
    """Samples with labels that can be iterated over any number of times; a label is None where none were given."""

    def __init__(self, make: Callable[[], Iterator[Pair]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Pair]:
        return self._make()


def read_labelled(
    path: str | Path, model: ir.Model, settings: Calibration | None = None, labels: str | Path | None = None
) -> Labelled:
    """All samples of a folder or file (see `passes.calibration.read_samples`) with their labels.

    Parameters
    ----------
    settings:
        How pictures become inputs; its limit does not count here.
    labels:
        "names" (see `NAMES`); a `.csv` file with lines `file,class`, files named as in the folder or by their last
        part; or a `.npy` file of whole numbers, one entry along the first axis for each sample, in the samples' order.

    Raises
    ------
    UsageError
        There is no sample, one does not fit the model, or one has no label.
    """
    named = read_named(path, model, replace(settings or Calibration(), limit=sys.maxsize))
    inputs = ports(model)
    root = Path(path)
    find = _finder(labels, root if root.is_dir() else root.parent)

    def make() -> Iterator[Pair]:
        number = -1
        for number, (file, feeds) in enumerate(named()):
            yield {port.name: check(feeds, port) for port in inputs}, find(file, number)
        if isinstance(find, _Stack):
            find.done(number + 1)

    return Labelled(make)


def label_of(path: Path) -> int:
    """The class that a file's name begins with, or else its folder's. UsageError where neither begins with a number."""
    for name in (path.stem, path.parent.name):
        digits = name[: len(name) - len(name.lstrip("0123456789"))]
        if digits and len(digits) <= 18:
            return int(digits)
    raise UsageError(f"cannot tell the class of {path}", fix="begin its name with the class, as in 7.jpg or 7/a.jpg")


def _finder(labels: str | Path | None, root: Path) -> Callable[[Path, int], Label]:
    if labels is None:
        return lambda _file, _number: None
    if str(labels) == NAMES:
        return lambda file, _number: label_of(file)
    source = Path(labels)
    if source.suffix == ".csv":
        return _Table(source, root)
    if source.suffix == ".npy":
        return _Stack(source)
    raise UsageError(f"--labels {labels} cannot be read", fix=f"give {NAMES}, a .csv or a .npy file")


class _Table:
    """Labels by file name, from a .csv file."""

    def __init__(self, source: Path, root: Path) -> None:
        self.source, self.root = source, root
        self.known: dict[str, int] = {}
        try:
            lines = list(csv.reader(source.read_text(encoding="utf-8").splitlines()))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"cannot read labels {source}", why=str(error).splitlines()[0][:200]) from error
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            text = line[-1].strip()
            whole = text.isascii() and text.isdigit() and len(text) <= 18
            if number == 1 and not whole:
                continue  # a header
            if len(line) != 2 or not whole:
                raise UsageError(f"labels {source}, line {number}", why="it is not `file,class`", fix="as in a.jpg,7")
            if line[0] in self.known:
                raise UsageError(f"labels {source}, line {number}", why=f"{line[0]!r} is there twice")
            self.known[line[0]] = int(text)

    def __call__(self, file: Path, _number: int) -> Label:
        full = file.relative_to(self.root).as_posix()
        for name in (full, file.name, file.stem):
            if name in self.known:
                return self.known[name]
        raise UsageError(f"labels {self.source} do not have {full!r}", fix=f"add the line {full},CLASS")


class _Stack:
    """Labels in the order of the samples, from a .npy file."""

    def __init__(self, source: Path) -> None:
        self.source = source
        try:
            loaded = np.load(source, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"cannot read labels {source}", why=str(error).splitlines()[0][:200]) from error
        if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in "iu" or loaded.ndim == 0:
            raise UsageError(f"labels {source} are no array of whole numbers", fix="save class indices by numpy.save")
        self.values = loaded

    def __call__(self, _file: Path, number: int) -> Label:
        if number >= len(self.values):
            raise UsageError(f"labels {self.source} end before sample {number}", why=f"there are {len(self.values)}")
        return np.asarray(self.values[number])

    def done(self, count: int) -> None:
        """UsageError if there are labels left: they would belong to other samples."""
        if count != len(self.values):
            raise UsageError(f"labels {self.source} are {len(self.values)}", why=f"there are {count} samples")
