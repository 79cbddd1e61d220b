"""Prove that an artifact is whole, and that it computes what its portable model computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgesparse.artifacts import samples
from edgesparse.artifacts.artifact import Artifact, open_artifact
from edgesparse.errors import ArtifactError, NumbersDifferError
from edgesparse.runtimes.local import LocalRunner

if TYPE_CHECKING:
    import onnxruntime

#: Largest error allowed, relative to the largest magnitude of the output.
TOLERANCE = 1e-5

PORTABLE = "model.onnx"


@dataclass(frozen=True)
class OutputError:
    """How far one output of one sample is from a reference ("samples" or "onnxruntime").

    `relative` is the largest absolute error over the reference's largest magnitude; infinite where one has
    a NaN or an infinity that the other has not.
    """

    reference: str
    sample: int
    output: str
    absolute: float
    relative: float


@dataclass(frozen=True)
class Verification:
    """What was checked: files with their sizes in bytes, and, where the model was run, the errors found."""

    path: Path
    files: Mapping[str, int]
    errors: tuple[OutputError, ...]
    tolerance: float

    @property
    def worst(self) -> OutputError | None:
        """The largest relative error, None where nothing was run."""
        return max(self.errors, key=lambda error: error.relative, default=None)

    @property
    def same(self) -> bool:
        return all(error.relative <= self.tolerance for error in self.errors)


def verify(
    path: Path,
    run: bool = False,
    *,
    tolerance: float = TOLERANCE,
    must_agree: bool = True,
    tick: Callable[[float, str], None] | None = None,
) -> Verification:
    """Check an artifact's hashes; with `run` also its numbers, on its samples. `tick` is told the share done.

    Each sample's outputs are compared with the stored ones, and with what onnxruntime computes from the
    artifact's portable model.

    Raises
    ------
    ArtifactError
        The artifact is damaged, or has no samples or portable model.
    DeviceError
        This machine cannot run it.
    NumbersDifferError
        An output is off by more than the tolerance, unless `must_agree` is false.
    """
    say = tick or (lambda share, text: None)
    say(0.0, "hashes")
    artifact = open_artifact(path)
    errors = tuple(_errors(artifact, say)) if run else ()
    files = {name: entry.size for name, entry in artifact.manifest.files.items()}
    result = Verification(path, files, errors, tolerance)
    worst = result.worst
    if must_agree and worst is not None and not result.same:
        raise NumbersDifferError(
            f"'{worst.output}' of {path} is not what {worst.reference} says on sample {worst.sample}",
            why=f"off by {worst.relative:.2g} of the largest value; {tolerance:.2g} is allowed",
            fix="compile it again; if that does not help, please report it with the model",
        )
    return result


def compare(found: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Largest absolute error, and the same relative to the reference's largest finite magnitude.

    Equal NaNs and infinities count as equal; others as an infinite error. An all-zero reference gives the
    absolute error twice. Shapes must be equal.
    """
    if found.size == 0:
        return 0.0, 0.0
    a, b = found.astype(np.float64), reference.astype(np.float64)
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if not np.array_equal(a[odd], b[odd], equal_nan=True):
        return float("inf"), float("inf")
    a, b = a[~odd], b[~odd]
    absolute = float(np.max(np.abs(a - b), initial=0.0))
    scale = float(np.max(np.abs(b), initial=0.0))
    return absolute, absolute / scale if scale else absolute


def _errors(artifact: Artifact, say: Callable[[float, str], None]) -> list[OutputError]:
    cases = samples.load(artifact.file(samples.NAME), artifact.manifest)
    say(0.2, "loading it into onnxruntime")
    session = _session(artifact)
    names = [info.name for info in artifact.manifest.outputs]
    found = []
    with LocalRunner(artifact) as runner:
        for index, case in enumerate(cases):
            say(0.5 + 0.5 * index / len(cases), "samples")
            outputs = runner.run(case.inputs)
            found += _compared("samples", index, names, outputs, case.outputs)
            reference = dict(zip(names, session.run(names, dict(case.inputs)), strict=True))
            found += _compared("onnxruntime", index, names, outputs, reference)
    return found


def _compared(
    reference: str,
    sample: int,
    names: Sequence[str],
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
) -> list[OutputError]:
    return [OutputError(reference, sample, name, *compare(found[name], expected[name])) for name in names]


def _session(artifact: Artifact) -> onnxruntime.InferenceSession:
    """onnxruntime on the portable model, quiet, on one thread."""
    import onnxruntime

    path = artifact.file(PORTABLE)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own for each kind of failure
        raise ArtifactError(
            f"{path} cannot be run by onnxruntime",
            why=str(error).splitlines()[0],
            fix="compile the model again",
        ) from error
    expected = {info.name for info in artifact.manifest.inputs}
    if {node.name for node in session.get_inputs()} != expected or not {
        info.name for info in artifact.manifest.outputs
    } <= {node.name for node in session.get_outputs()}:
        raise ArtifactError(
            f"{artifact.path} contradicts itself",
            why=f"{PORTABLE} has other inputs or outputs than the manifest",
            fix="compile the model again",
        )
    return session
