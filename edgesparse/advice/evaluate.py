"""Evaluation: how well a model does, against the dense one without labels, against labels where there are some.

A model is any function from inputs by name to outputs by name: `onnx_model` makes one of an ONNX model, a runner's
`run` is one. Samples are read once and one at a time; only small counts are kept, unless a metric of the caller's wants
all outputs. What is compared is the first output, row by row; a row is its last axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesparse.errors import ModelError, UsageError
from edgesparse.passes.agreement import cosines, divergences, log_probabilities, rows

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Outputs = Mapping[str, Array]
Model = Callable[[Feeds], Outputs]
Metric = Callable[[Sequence[Outputs], Sequence[Array | None]], float]
"""Any measure: from the outputs of all samples and their labels (None where there is none) to a number."""

BINS = 15
"""Equal bins of confidence for the calibration error, as in Guo et al., 1706.04599."""


@dataclass(frozen=True)
class Agreement:
    """A model against the dense one on the same inputs; no labels are needed.

    Attributes
    ----------
    rows:
        Rows compared, over all samples.
    top1:
        Share of rows, 0 to 1, in which both put the same class first.
    kl:
        Mean Kullback-Leibler divergence of the dense model's probabilities from the other's, nats.
    cosine, worst_cosine:
        Mean and least cosine of the two rows.
    """

    rows: int
    top1: float
    kl: float
    cosine: float
    worst_cosine: float


@dataclass(frozen=True)
class ClassScore:
    """A class: its rows, and the share of them that is right, 0 to 1."""

    rows: int
    top1: float


@dataclass(frozen=True)
class Quality:
    """A model against labels; shares from 0 to 1.

    Attributes
    ----------
    rows, top1, top5:
        Labelled rows, and the shares whose label is first, and among the five largest (equal scores count against it).
    per_class:
        By label, ascending.
    calibration_error:
        Expected calibration error of the confidence in the first class, over `BINS` equal bins (1706.04599).
    """

    rows: int
    top1: float
    top5: float
    per_class: Mapping[int, ClassScore]
    calibration_error: float

    @property
    def worst(self) -> int:
        """The class with the smallest share right; the one with the smallest number of several."""
        return min(self.per_class, key=lambda label: (self.per_class[label].top1, label))


@dataclass(frozen=True)
class Evaluation:
    """What was found; None for what was not asked. `dense` is the quality of the model compared with."""

    samples: int
    agreement: Agreement | None = None
    quality: Quality | None = None
    dense: Quality | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    dense_metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def drop(self) -> float:
        """Points lost: of top-1 with labels and a dense model, else those without agreement with the dense model.

        UsageError where neither is known.
        """
        if self.quality is not None and self.dense is not None:
            return 100.0 * (self.dense.top1 - self.quality.top1)
        if self.agreement is None:
            raise UsageError("there is no drop without a dense model", fix="give the model to compare with")
        return 100.0 * (1.0 - self.agreement.top1)


def evaluate(
    model: Model,
    samples: Iterable[tuple[Feeds, Array | int | None]],
    *,
    against: Model | None = None,
    output: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    tick: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run all samples once through `model`, and through the dense model `against` where it is given.

    Parameters
    ----------
    samples:
        Pairs of inputs by name and label: None, a class, or one class for each row of the output. All samples have
        labels, or none has.
    output:
        Name of the output that is looked at; the first by default.
    metrics:
        Measures of the caller's own by name; all outputs are kept for them.

    Raises
    ------
    UsageError
        There is no sample, an output is not finite or of another shape than the dense model's, a label fits no class,
        or some samples have labels and some not.
    """
    compared, own, dense = _Compared(), _Labelled(), _Labelled()
    kept: list[list[Any]] = [[], [], []]
    labelled: bool | None = None
    count = 0
    for feeds, label in samples:
        if labelled is not None and labelled != (label is not None):
            raise UsageError(
                f"sample {count} {'lacks' if labelled else 'has'} a label", fix="label all samples or none"
            )
        labelled = label is not None
        found = model(feeds)
        wanted = None if against is None else against(feeds)
        name = output if output is not None else next(iter(found))
        scores = _rows(found, name, count)
        if wanted is not None:
            compared.add(scores, _rows(wanted, name, count), count)
        if label is not None:
            truth = _label(label, scores, count)
            own.add(scores, truth)
            if wanted is not None:
                dense.add(_rows(wanted, name, count), truth)
        if metrics:
            for row, value in zip(
                kept, (dict(found), wanted, None if label is None else np.asarray(label)), strict=True
            ):
                row.append(value)
        count += 1
        if tick:
            tick(count)
    if count == 0:
        raise UsageError("there are no samples to evaluate on", fix="give at least one, better hundreds")
    measures = metrics or {}
    return Evaluation(
        count,
        compared.result() if against is not None else None,
        own.result(),
        dense.result(),
        {key: float(metric(kept[0], kept[2])) for key, metric in measures.items()},
        {key: float(metric(kept[1], kept[2])) for key, metric in measures.items()} if against is not None else {},
    )


def onnx_model(model: ir.Model | Path | str, *, threads: int = 1) -> Model:
    """A function that runs an ONNX model in onnxruntime. ModelError if onnxruntime refuses the model or the inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    source = ir.serde.serialize_model(model).SerializeToString() if isinstance(model, ir.Model) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each kind of failure
        raise ModelError("onnxruntime cannot run the model", why=str(error).splitlines()[0][:300]) from error
    names = [port.name for port in session.get_outputs()]

    def run(feeds: Feeds) -> Outputs:
        try:
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise ModelError("onnxruntime cannot run the model", why=str(error).splitlines()[0][:300]) from error

    return run


def _rows(outputs: Outputs, name: str, number: int) -> Array:
    if name not in outputs:
        raise UsageError(f"the model has no output {name!r}", fix=f"it has {', '.join(outputs)[:300]}")
    if outputs[name].dtype.kind not in "fiu" or outputs[name].size == 0:
        raise UsageError(f"output {name!r} is no array of numbers", why=f"{outputs[name].dtype} {outputs[name].shape}")
    scores = rows(outputs[name])
    if not np.isfinite(scores).all():
        raise UsageError(f"output {name!r} has NaN or infinite entries on sample {number}", fix="check the inputs")
    return scores


def _label(label: Array | int, scores: Array, number: int) -> Array:
    """The label as int `[rows]`. UsageError where it is no class of the output's."""
    truth = np.asarray(label)
    if truth.dtype.kind not in "iu" or truth.size != len(scores):
        why = f"it is {truth.dtype} of shape {truth.shape}, the output has {len(scores)} rows"
        raise UsageError(
            f"the label of sample {number} does not fit", why=why, fix="give one whole number for each row"
        )
    truth = truth.reshape(-1).astype(np.int64)
    if truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise UsageError(
            f"the label of sample {number} is no class",
            why=f"it is {truth.min() if truth.min() < 0 else truth.max()}, classes are 0 to {scores.shape[1] - 1}",
        )
    return truth


class _Compared:
    """Running sums of the comparison with the dense model."""

    def __init__(self) -> None:
        self.rows, self.same, self.kl, self.cosine, self.worst = 0, 0, 0.0, 0.0, math.inf

    def add(self, found: Array, wanted: Array, number: int) -> None:
        if found.shape != wanted.shape:
            raise UsageError(
                f"the two models' outputs differ in shape on sample {number}", why=f"{found.shape} and {wanted.shape}"
            )
        angles = cosines(wanted, found)
        self.rows += len(found)
        self.same += int(np.sum(found.argmax(axis=1) == wanted.argmax(axis=1)))
        self.kl += float(divergences(wanted, found).sum())
        self.cosine += float(angles.sum())
        self.worst = min(self.worst, float(angles.min()))

    def result(self) -> Agreement:
        n = self.rows
        return Agreement(n, self.same / n, max(self.kl / n, 0.0), self.cosine / n, self.worst)


class _Labelled:
    """Running counts of one model against the labels."""

    def __init__(self) -> None:
        self.count = self.five = 0
        self.classes: dict[int, list[int]] = {}
        self.bins = np.zeros((3, BINS))

    def add(self, scores: Array, truth: Array) -> None:
        own = np.take_along_axis(scores, truth[:, None], axis=1)
        # equal scores count as better ones: a constant output knows nothing
        better = np.sum(scores >= own, axis=1) - 1
        self.count += len(truth)
        self.five += int(np.sum(better < 5))
        for label, hit in zip(truth.tolist(), (better == 0).tolist(), strict=True):
            tally = self.classes.setdefault(label, [0, 0])
            tally[0] += 1
            tally[1] += hit
        sure = np.exp(log_probabilities(scores).max(axis=1))
        place = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
        for row, weight in enumerate((np.ones(len(sure)), sure, (better == 0).astype(float))):
            np.add.at(self.bins[row], place, weight)

    def result(self) -> Quality | None:
        if self.count == 0:
            return None
        scores = {label: ClassScore(n, right / n) for label, (n, right) in sorted(self.classes.items())}
        gap = float(np.abs(self.bins[1] - self.bins[2]).sum()) / self.count
        right = sum(tally[1] for tally in self.classes.values())
        return Quality(self.count, right / self.count, self.five / self.count, scores, gap)
