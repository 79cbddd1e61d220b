"""What all data sets share: a sample, a way to run a model, and a score.

A data set is an iterator of `(input, label)`: the input one float32 array with batch 1 as the model takes it,
the label an int (a class) or a str (a line of text). A model is any function from such an array to its
output, be it onnxruntime, a compiled program or torch; so dense and sparse are measured by the same code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import UsageError

Array = NDArray[np.float32]
Label = int | str
Sample = tuple[Array, Label]
Run = Callable[[Array], Any]


@dataclass(frozen=True)
class Score:
    """Shares between 0 and 1 of samples got right; `worst` is the lowest of any class."""

    count: int
    top1: float
    top5: float
    per_class: Mapping[Label, float]

    @property
    def worst(self) -> float:
        """Accuracy of the class with the lowest."""
        return min(self.per_class.values())

    def __str__(self) -> str:
        return f"{100 * self.top1:.1f} % of {self.count}"


def ranked_classes(output: Any) -> list[Label]:
    """Return the five likeliest classes, best first, from scores [1, classes] (or [classes])."""
    scores = np.asarray(output).reshape(-1)
    return [int(index) for index in np.argsort(-scores, kind="stable")[:5]]


def evaluate(run: Run, samples: Iterable[Sample], *, decode: Callable[[Any], list[Label]] = ranked_classes) -> Score:
    """Run all samples and compare with their labels.

    Parameters
    ----------
    run:
        The model, from an input array to its output.
    samples:
        Read once, one at a time, so a data set of any size fits.
    decode:
        From an output to the candidate labels, best first; by default the classes by score.

    Raises
    ------
    UsageError
        If there are no samples.
    """
    first = five = 0
    hits: defaultdict[Label, list[bool]] = defaultdict(list)
    for value, label in samples:
        candidates = decode(run(value))
        right = bool(candidates) and candidates[0] == label
        first += right
        five += label in candidates[:5]
        hits[label].append(right)
    count = sum(map(len, hits.values()))
    if count == 0:
        raise UsageError("there are no samples to evaluate on")
    per_class = {label: sum(right) / len(right) for label, right in sorted(hits.items(), key=lambda item: str(item[0]))}
    return Score(count, first / count, five / count, per_class)


def accuracy(run: Run, samples: Iterable[Sample], *, decode: Callable[[Any], list[Label]] = ranked_classes) -> float:
    """Return the share of samples, 0 to 1, whose first candidate is the label."""
    return evaluate(run, samples, decode=decode).top1


def onnx_run(model: str | Path | bytes, *, threads: int = 1) -> Run:
    """Return a function that runs a model of one input and one output in onnxruntime.

    `model` is a path or the bytes of a ModelProto.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: warnings about a model's form are not the user's to act on
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(value: Array) -> Any:
        return session.run(None, {name: value})[0]

    return run
