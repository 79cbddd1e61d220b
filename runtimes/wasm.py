"""wasmtime as a device: it runs a bundle's code outside of any JavaScript engine, in this process, on one thread."""

from __future__ import annotations

import importlib.metadata
import json
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesparse.artifacts.manifest import TensorInfo
from edgesparse.errors import DeviceError
from edgesparse.runtimes.base import Closing, check_feeds

#: Rounds of one timing of the probe, and how often each of its loops is timed; the least time counts.
_PROBE_ROUNDS, _PROBE_TURNS = 1200, 40
#: Relaxed SIMD must not be slower than this many times plain SIMD, as in a bundle's own choice.
_SLOWER = 1.2


class Wasmtime(Closing):
    """The engine, with the interface of `engines.Engine` as far as a bench needs it.

    Raises
    ------
    DeviceError
        The Python package is missing.
    """

    kind = "wasmtime"

    def __init__(self) -> None:
        try:
            import wasmtime
        except ImportError as error:
            raise DeviceError("wasmtime is not installed here", fix="pip install wasmtime") from error
        self.api: Any = wasmtime
        config = wasmtime.Config()
        config.wasm_relaxed_simd = True
        self.engine = wasmtime.Engine(config)
        version = importlib.metadata.version("wasmtime")
        self.told: dict[str, Any] = {"engine": f"wasmtime {version}", "isolated": None}

    def pick(self, probe: bytes) -> str:
        """The variant that is the faster one here: "relaxed" or "simd", by the module that bundles carry for that."""
        store = self.api.Store(self.engine)
        code = self.api.Instance(store, self.api.Module(self.engine, probe), []).exports(store)
        best = {"plain": float("inf"), "relaxed": float("inf")}
        for _ in range(_PROBE_TURNS):
            for name in best:
                began = time.perf_counter()
                code[name](store, _PROBE_ROUNDS)
                best[name] = min(best[name], time.perf_counter() - began)
        return "simd" if best["relaxed"] > _SLOWER * best["plain"] else "relaxed"

    def load_bundle(
        self, folder: Path, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], *, variant: str
    ) -> WasmtimeModel:
        """Load one variant of a bundle. Raises DeviceError."""
        return WasmtimeModel(self, folder, tuple(inputs), tuple(outputs), variant)

    def preemptions(self) -> int:
        """How often the system took the core away from this process."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

    def close(self) -> None:
        """Nothing runs beside this process."""


class WasmtimeModel(Closing):
    """One bundle in wasmtime: a `Runner`."""

    def __init__(
        self,
        engine: Wasmtime,
        folder: Path,
        inputs: tuple[TensorInfo, ...],
        outputs: tuple[TensorInfo, ...],
        variant: str,
    ) -> None:
        began = time.perf_counter()
        self.engine = engine
        self.inputs = inputs
        self.outputs = outputs
        self.told = {"variant": variant, "threads": 1}
        manifest = json.loads((folder / "manifest.json").read_bytes())
        self._layers = [str(layer["name"]) for layer in manifest["layers"]]
        api = engine.api
        try:
            self._store = api.Store(engine.engine)
            module = api.Module.from_file(engine.engine, str(folder / manifest["modules"][variant]))
            clock = api.Func(self._store, api.FuncType([], [api.ValType.f64()]), lambda: float(time.perf_counter_ns()))
            code = api.Instance(self._store, module, [clock]).exports(self._store)
            self._create(code, (folder / "weights.bin").read_bytes())
        except api.WasmtimeError as error:
            raise DeviceError("wasmtime cannot load the bundle", why=str(error).splitlines()[0]) from error
        self._code = code
        memory = code["memory"]
        # Memory does not grow after `create`, so that this stays valid.
        self._memory = np.ctypeslib.as_array(memory.data_ptr(self._store), (memory.data_len(self._store),))
        self._given = [self._place("input", index, info) for index, info in enumerate(inputs)]
        self._results = [self._place("output", index, info) for index, info in enumerate(outputs)]
        self._feeds = [np.zeros(info.shape, info.dtype) for info in inputs]
        self._taken = [np.zeros(info.shape, info.dtype) for info in outputs]
        self.load_seconds = time.perf_counter() - began

    def _create(self, code: Any, weights: bytes) -> None:
        at = code["allocate"](self._store, len(weights)) & 0xFFFFFFFF
        status = -1
        if at:
            code["memory"].write(self._store, weights, at)
            status = code["create"](self._store, at, len(weights))
        if status != 0:
            raise DeviceError("wasmtime cannot load the bundle", why=f"the model cannot be made: status {status}")

    def _place(self, kind: str, index: int, info: TensorInfo) -> np.ndarray:
        """An input or output in the model's memory."""
        at = self._code[kind](self._store, index) & 0xFFFFFFFF
        nbytes = int(np.prod(info.shape, dtype=np.int64)) * np.dtype(info.dtype).itemsize
        return np.asarray(self._memory[at : at + nbytes].view(info.dtype).reshape(info.shape))

    def load(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Put inputs in place for `step`. UsageError for wrong names, shapes or dtypes."""
        self._feeds = check_feeds(self.inputs, feeds)

    def step(self, count: int = 1, group: int = 1) -> list[float]:
        """Run on the inputs that are in place: the seconds of each run, with inputs and outputs copied.

        With a `group`, each of the `count` numbers is the mean over so many runs.
        """
        run, store, seconds = self._code["run"], self._store, []
        for _ in range(count):
            began = time.perf_counter()
            for _ in range(group):
                for place, value in zip(self._given, self._feeds, strict=True):
                    place[...] = value
                run(store)
                for place, value in zip(self._results, self._taken, strict=True):
                    value[...] = place
            seconds.append((time.perf_counter() - began) / group)
        return seconds

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name for inputs by name. UsageError."""
        self.load(feeds)
        self.step()
        return {info.name: value.copy() for info, value in zip(self.outputs, self._taken, strict=True)}

    def profile(self) -> list[tuple[str, int]]:
        """Name and nanoseconds of each layer in one run of its own, on the inputs of the last run."""
        at = self._code["profile"](self._store) & 0xFFFFFFFF
        spent = self._memory[at : at + 8 * len(self._layers)].view(np.uint64)
        return [(name, int(each)) for name, each in zip(self._layers, spent, strict=True)]

    def close(self) -> None:
        """Give the model's memory back."""
        del self._memory, self._given, self._results, self._code, self._store
