"""Run an artifact in this process: its shared library through ctypes, its weights mapped and never copied."""

from __future__ import annotations

import ctypes
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgesparse.artifacts.artifact import Artifact, open_artifact
from edgesparse.artifacts.manifest import TensorInfo
from edgesparse.errors import ArtifactError, DeviceError, UsageError
from edgesparse.runtimes.base import Closing, check_feeds, check_host

#: The ABI of edgesparse.h that this module speaks.
ABI = 2

_NO_MEMORY = 5


class _Port(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int32),
        ("nbytes", ctypes.c_uint64),
    )


class LocalRunner(Closing):
    """One model in this process.

    All memory is taken when it is made; `run` allocates the arrays it returns and nothing else.

    Parameters
    ----------
    artifact:
        A path (checked before anything is loaded), or an artifact that was opened before.
    threads:
        How many threads a run uses; at most what the model was compiled for.

    Raises
    ------
    ArtifactError
        The artifact is damaged, or its library cannot be loaded.
    DeviceError
        This machine cannot run its code, or lacks the memory.
    """

    def __init__(self, artifact: Path | str | Artifact, *, threads: int = 1) -> None:
        self._model = ctypes.c_void_p()
        self._lock = threading.Lock()
        self.artifact = artifact if isinstance(artifact, Artifact) else open_artifact(Path(artifact))
        check_host(self.artifact)
        self._library = _load(self.artifact)
        status = self._library.es_create(bytes(self.artifact.weights), ctypes.byref(self._model))
        if status:
            message = self._library.es_error(status).decode()
            if status == _NO_MEMORY:
                raise DeviceError(f"{self.artifact.path} cannot run here", why=message)
            raise ArtifactError(f"{self.artifact.weights} cannot be used", why=message, fix="copy the artifact again")
        self._set_threads(threads)
        self._inputs = self._views("input", self.inputs)
        self._outputs = self._views("output", self.outputs)

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return self.artifact.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return self.artifact.manifest.outputs

    @property
    def arena_bytes(self) -> int:
        """Bytes of working memory."""
        return int(self._library.es_arena_bytes(self._open()))

    @property
    def weights_bytes(self) -> int:
        """Bytes of the mapped weights file."""
        return int(self._library.es_weights_bytes(self._open()))

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name for inputs by name; callers in several threads take turns.

        Raises
        ------
        UsageError
            Wrong names, shapes or dtypes, or the runner is closed.
        """
        arrays = check_feeds(self.inputs, feeds)
        with self._lock:
            self._open()
            for view, array in zip(self._inputs, arrays, strict=True):
                np.copyto(view, array)
            self._library.es_run(self._model)
            return {info.name: view.copy() for info, view in zip(self.outputs, self._outputs, strict=True)}

    def load(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Put inputs in place for `step`. UsageError as for `run`."""
        arrays = check_feeds(self.inputs, feeds)
        with self._lock:
            self._open()
            for view, array in zip(self._inputs, arrays, strict=True):
                np.copyto(view, array)

    def step(self) -> None:
        """Run on the inputs that are in place, and leave the outputs there: for measuring. Not checked."""
        self._library.es_run(self._model)

    def profile(self) -> list[tuple[str, int]]:
        """Name and nanoseconds of each layer in one run of its own, on the inputs of the last run."""
        with self._lock:
            model = self._open()
            count = self._library.es_layer_count(model)
            spent = (ctypes.c_uint64 * max(count, 1))()
            self._library.es_profile(model, spent)
            names = [self._library.es_layer_name(model, index).decode() for index in range(count)]
            return list(zip(names, spent[:count], strict=True))

    def close(self) -> None:
        """Give the memory back. Closing twice is allowed."""
        with self._lock:
            if self._model:
                self._inputs, self._outputs = [], []
                self._library.es_destroy(self._model)
                self._model = ctypes.c_void_p()

    def __del__(self) -> None:
        if getattr(self, "_library", None) is not None:
            self.close()

    def _set_threads(self, threads: int) -> None:
        most = self._library.es_most_threads(self._model)
        if not 1 <= threads <= most:
            self.close()
            raise UsageError(
                f"{self.artifact.path} cannot run on {threads} threads",
                why=f"it was compiled for at most {most}",
                fix=f"compile it again with --threads {threads}" if threads > most else "use 1 or more",
            )
        if self._library.es_set_threads(self._model, threads):
            self.close()
            raise DeviceError(f"{threads} threads cannot be started", fix="use fewer")

    def _open(self) -> ctypes.c_void_p:
        if not self._model:
            raise UsageError("the runner is closed", fix="open the artifact again")
        return self._model

    def _views(self, kind: str, infos: tuple[TensorInfo, ...]) -> list[np.ndarray]:
        """Arrays over the model's own memory, which must be what the manifest promises."""
        library = self._library
        count = getattr(library, f"es_{kind}_count")(self._model)
        views = []
        for index in range(count):
            port = getattr(library, f"es_{kind}_info")(self._model, index).contents
            found = TensorInfo(port.name.decode(), port.dtype.decode(), tuple(port.shape[: port.rank]))
            if count != len(infos) or found != infos[index]:
                break
            address = getattr(library, f"es_{kind}")(self._model, index)
            memory = (ctypes.c_uint8 * port.nbytes).from_address(address)
            views.append(np.frombuffer(memory, dtype=found.dtype).reshape(found.shape))
        if count != len(infos) or len(views) != count:
            self.close()
            raise ArtifactError(
                f"{self.artifact.path} contradicts itself",
                why=f"the {kind}s of its library are not those of its manifest",
                fix="compile the model again",
            )
        return views


def _load(artifact: Artifact) -> ctypes.CDLL:
    """The artifact's library with the functions' types declared."""
    try:
        with tempfile.TemporaryDirectory(prefix="edgesparse-load-") as folder:
            # By a name of its own: the dynamic linker would give back an older library that it knows by this path.
            link = Path(folder) / "model.so"
            link.symlink_to(artifact.module.absolute())
            library = ctypes.CDLL(str(link))
        _declare(library)
        abi = library.es_abi()
    except (OSError, AttributeError) as error:
        raise ArtifactError(
            f"{artifact.module} cannot be loaded", why=str(error), fix="compile the model again"
        ) from error
    if abi != ABI:
        raise ArtifactError(
            f"{artifact.module} has the interface {abi}",
            why=f"this edgesparse speaks {ABI}",
            fix="compile the model again with this version",
        )
    return library


def _declare(library: ctypes.CDLL) -> None:
    model, index = ctypes.c_void_p, ctypes.c_int32
    library.es_abi.restype = index
    library.es_error.restype = ctypes.c_char_p
    library.es_create.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)]
    library.es_destroy.argtypes = [model]
    library.es_destroy.restype = None
    library.es_run.argtypes = [model]
    library.es_profile.argtypes = [model, ctypes.POINTER(ctypes.c_uint64)]
    library.es_layer_count.argtypes = [model]
    library.es_most_threads.argtypes = [model]
    library.es_set_threads.argtypes = [model, index]
    library.es_layer_name.argtypes = [model, index]
    library.es_layer_name.restype = ctypes.c_char_p
    for kind in ("input", "output"):
        getattr(library, f"es_{kind}_count").argtypes = [model]
        info = getattr(library, f"es_{kind}_info")
        info.argtypes, info.restype = [model, index], ctypes.POINTER(_Port)
        data = getattr(library, f"es_{kind}")
        data.argtypes, data.restype = [model, index], ctypes.c_void_p
    for size in (library.es_arena_bytes, library.es_weights_bytes):
        size.argtypes, size.restype = [model], ctypes.c_uint64
