"""What `bench` can time: an artifact through its runner, and an ONNX model through onnxruntime at
its best.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgesparse.artifacts.artifact import Artifact, open_artifact
from edgesparse.artifacts.feeds import random_feeds
from edgesparse.artifacts.manifest import TensorInfo
from edgesparse.errors import ModelError, UnsupportedError, UsageError
from edgesparse.measuring.bench import Contender

Feeds = Mapping[str, np.ndarray]
Make = Callable[[Path, int], Contender]


class ArtifactContender:
    """A compiled model in this process. Inputs lie in place; a run is the call of the program,
    nothing else.
    """

    def __init__(self, name: str, artifact: Artifact | Path, feeds: Feeds | None = None, *, threads: int = 1) -> None:
        from edgesparse.runtimes.local import LocalRunner

        # hashes are checked when it is opened, which is no part of loading
        opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
        started = time.perf_counter_ns()
        self.runner = LocalRunner(opened, threads=threads)
        self.load_seconds = (time.perf_counter_ns() - started) / 1e9
        self.name = name
        self.runner.load(feeds if feeds is not None else random_feeds(self.runner.inputs))

    def run_once(self) -> float:
        """Run once and return the seconds it took."""
        started = time.perf_counter_ns()
        self.runner.step()
        return (time.perf_counter_ns() - started) / 1e9

    def close(self) -> None:
        """Give the model's memory back."""
        self.runner.close()


class OrtContender:
    """An ONNX model in onnxruntime, all optimisations on, inputs and outputs bound; threads spin within a run only.

    Raises
    ------
    ModelError
        If onnxruntime refuses the model.
    """

    def __init__(self, name: str, model: Path, feeds: Feeds | None = None, *, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        started = time.perf_counter_ns()
        try:
            session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of its own for each kind of failure
            why = (str(error).splitlines() or [""])[0]
            raise ModelError(f"onnxruntime cannot load {model}", why=why) from error
        self.load_seconds = (time.perf_counter_ns() - started) / 1e9
        self.name = name
        self._session = session
        self._binding = session.io_binding()
        values = feeds if feeds is not None else random_feeds([_tensor_info(item) for item in session.get_inputs()])
        for key, value in values.items():
            self._binding.bind_cpu_input(key, np.ascontiguousarray(value))
        for output in session.get_outputs():
            self._binding.bind_output(output.name)

    def run_once(self) -> float:
        """Run once and return the seconds it took."""
        started = time.perf_counter_ns()
        self._session.run_with_iobinding(self._binding)
        return (time.perf_counter_ns() - started) / 1e9

    def close(self) -> None:
        """Give the model's memory back."""
        del self._binding, self._session


def prepare(kind: str) -> Make:
    """Import what a kind of contender ("artifact" or "onnx") needs, and return what makes one from a path."""
    if kind == "artifact":
        from edgesparse.runtimes import local  # noqa: F401

        return lambda path, threads: ArtifactContender(kind, path, threads=threads)
    if kind == "onnx":
        import onnxruntime  # noqa: F401

        return lambda path, threads: OrtContender(kind, path, threads=threads)
    raise UsageError(f"there is no contender of kind {kind!r}", fix="artifact or onnx")


_DTYPES = {"float": "float32", "double": "float64"}


def _tensor_info(item: Any) -> TensorInfo:
    """Return the name, dtype and shape of a session's input; open dimensions are refused."""
    if not all(isinstance(dim, int) for dim in item.shape):
        raise UnsupportedError(
            f"input {item.name!r} has open dimensions", why=f"its shape is {item.shape}", fix="fix them with --shape"
        )
    kind = item.type.removeprefix("tensor(").removesuffix(")")
    return TensorInfo(item.name, _DTYPES.get(kind, kind), tuple(item.shape))
