"""A bench in a JavaScript engine or wasmtime: sparse, dense by the same compiler and onnxruntime-web, in one process.

All take turns. Times are taken inside of the engine, around one run with its inputs and outputs copied; asking for a
run is outside.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesparse import environment
from edgesparse.artifacts.feeds import random_feeds
from edgesparse.artifacts.manifest import TensorInfo
from edgesparse.errors import EdgesparseError, UnsupportedError
from edgesparse.measuring.bench import Plan, Progress, measure
from edgesparse.measuring.masks import mask_pictures
from edgesparse.measuring.memory import Memory
from edgesparse.measuring.report import LayerTime, Report, layer_times
from edgesparse.measuring.session import DENSE, PROFILE_RUNS, SPARSE
from edgesparse.recipe import Recipe
from edgesparse.runtimes.engines import Engine, EngineModel, find_package
from edgesparse.runtimes.wasm import Wasmtime, WasmtimeModel
from edgesparse.web.bundle import Bundle, bundle_model, probe

ORT_WEB = "onnxruntime-web"
"""Name of that contender in reports, and of its npm package."""

#: Runs that are asked for at once: about so long, at most so many.
_BATCH_SECONDS, _MOST_RUNS = 0.01, 100
#: Seconds that one timing lasts at least, where the engine's clock has ticks: of 5 us in pages that are isolated.
_TIMING = 0.0001
#: Seconds after which timings that nobody took are of an earlier turn.
_STALE = 0.02


class EngineContender:
    """One model of an engine under the name that reports call it by.

    Asking for a run takes about a millisecond, in which threads fall asleep and the engine works on the answer, so
    short runs are asked for a few at a time. What is left of them when another contender's turn comes is dropped: the
    next turn shall begin with a run on cold caches. Runs that are short for the engine's clock are timed in groups.
    """

    def __init__(self, name: str, model: EngineModel | WasmtimeModel) -> None:
        self.name = name
        self.model = model
        self.load_seconds = model.load_seconds
        model.load(random_feeds(model.inputs))
        self._ahead: list[float] = []
        self._batch = 0  # not known before the first run
        self._group = 1
        self._taken = 0.0
        self._interrupted = 0
        self._disturbed = False

    def run_once(self) -> float:
        """Run once and return the seconds it took."""
        if not self._ahead or time.monotonic() - self._taken > _STALE:
            before = self.model.engine.preemptions()
            self._ahead = self._ask()
            self._disturbed = self.model.engine.preemptions() != before
        self._interrupted += self._disturbed
        self._taken = time.monotonic()
        return self._ahead.pop(0)

    def _ask(self) -> list[float]:
        """The seconds of some runs; of one, alone, at first."""
        if not self._batch:
            self._batch = 1
            return self.model.step()
        while True:
            found = self.model.step(self._batch, self._group)
            fastest = max(min(found), 1e-6)
            self._batch = min(max(int(_BATCH_SECONDS / (fastest * self._group)), 1), _MOST_RUNS)
            if fastest * self._group >= _TIMING / 2 or isinstance(self.model, WasmtimeModel):
                return found
            self._group = math.ceil(_TIMING / fastest)

    def close(self) -> None:
        """Give the model's memory back."""
        self.model.close()

    def interruptions(self) -> int:
        """Return in how many runs the system took the core away; all of those that were asked for at once count."""
        return self._interrupted


@dataclass(frozen=True)
class Built:
    """What a bench compares: the bundle, its dense form, and the ONNX model that both compute."""

    sparse: Bundle
    dense: Bundle | None
    portable: Path

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return _tensors(self.sparse, "inputs")

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return _tensors(self.sparse, "outputs")


@contextlib.contextmanager
def built(
    model: Path,
    recipe: Recipe | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    dense: bool = True,
    threads: int = 1,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Iterator[Built]:
    """Bundle a model, and its dense form, into a folder that is gone afterwards. Raises EdgesparseError."""
    with tempfile.TemporaryDirectory(prefix="edgesparse-") as room:
        portable = Path(room) / "portable.onnx"
        sparse = bundle_model(
            model,
            output=Path(room) / "sparse",
            recipe=recipe,
            shapes=shapes,
            progress=progress,
            notice=notice,
            portable=portable,
            threads=threads,
        )
        plain = None
        if dense:
            plain = bundle_model(portable, output=Path(room) / "dense", dense=True, threads=threads, progress=progress)
        yield Built(sparse, plain, portable)


def bench_engine(
    engine: Engine | Wasmtime,
    it: Built,
    plan: Plan,
    *,
    onnxruntime: bool = True,
    layers: bool = False,
    masks: bool = False,
    peak: float | None = None,
    variant: str | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Report:
    """Measure a bundle against its dense form and onnxruntime-web in one engine, on `plan.threads` threads.

    Parameters
    ----------
    variant:
        Which code to run; by default the one that a session picks.

    Raises
    ------
    EdgesparseError
        The bundle cannot run there. What cannot be measured of the others is told through `notice`.
    """
    say = notice or (lambda text: None)
    options: dict[str, Any] = {"variant": variant} if variant else {}
    if isinstance(engine, Wasmtime):
        options.setdefault("variant", engine.pick(probe()))
    else:
        options["threads"] = plan.threads
    bundles = {SPARSE: it.sparse} | ({DENSE: it.dense} if it.dense is not None else {})

    def ours() -> list[EngineContender]:
        return [
            EngineContender(name, engine.load_bundle(bundle.path, it.inputs, it.outputs, **options))
            for name, bundle in bundles.items()
        ]

    def rival() -> EngineContender:
        assert isinstance(engine, Engine)
        library = find_package(ORT_WEB)
        return EngineContender(ORT_WEB, engine.load_onnx(library, it.portable, it.inputs, it.outputs, plan.threads))

    contenders = ours()
    sparse = contenders[0]
    if sparse.model.told["threads"] != plan.threads:
        raise UnsupportedError(
            f"the bundle runs on {sparse.model.told['threads']} threads here, not {plan.threads}",
            why=f"it was made for at most {it.sparse.manifest['threads']}, and the engine must allow them",
        )
    if onnxruntime and isinstance(engine, Wasmtime):
        say(f"{ORT_WEB} needs a JavaScript engine: it is left out")
    elif onnxruntime:
        try:
            contenders.append(rival())
        except EdgesparseError as error:
            say(str(error))
    rivals = len(contenders) - len(bundles)
    outcome = measure(contenders, plan, again=lambda: [*ours(), *(rival() for _ in range(rivals))], progress=progress)
    found = _layers(sparse.model, it.sparse) if layers else ()
    before = _layers(contenders[1].model, it.dense) if layers and it.dense is not None else ()
    subject = {
        "artifact": it.sparse.manifest["name"],
        "artifact_sha256": environment.sha256(it.sparse.path / "manifest.json"),
        "model_sha256": environment.sha256(it.portable),
        "target": f"{engine.kind}, {sparse.model.told['variant']} SIMD",
        "recipe": it.sparse.manifest["recipe"],
        "info": {**it.sparse.manifest["info"], "engine": engine.told["engine"], "isolated": engine.told["isolated"]},
    }
    memory = {name: _memory(bundle) for name, bundle in bundles.items()}
    sizes = {SPARSE: size_of(it.sparse), ORT_WEB: it.portable.stat().st_size}
    if it.dense is not None:
        sizes[DENSE] = size_of(it.dense)
    return Report(
        outcome,
        subject,
        environment.record(),
        memory,
        sizes,
        found,
        peak,
        dense_layers=before,
        masks=mask_pictures(it.portable) if masks else (),
    )


def check_engine(kind: str, threads: int) -> None:
    """Raise UnsupportedError for what cannot be measured in an engine."""
    if kind == Wasmtime.kind and threads > 1:
        raise UnsupportedError(
            f"bundles run on one thread in wasmtime, not {threads}", fix="--device node or chromium have threads"
        )


def size_of(bundle: Bundle) -> int:
    """Bytes that a visitor downloads: the weights, and the larger variant's code with the scripts, gzipped."""
    return int(bundle.manifest["files"]["weights.bin"]["size"]) + bundle.code_gzipped


def _memory(bundle: Bundle) -> Memory:
    """What a bundle tells of itself: no engine tells what one model of several keeps resident."""
    weights = int(bundle.manifest["files"]["weights.bin"]["size"])
    return Memory(None, None, bundle.manifest["info"].get("arena_bytes"), weights)


def _layers(model: EngineModel | WasmtimeModel, bundle: Bundle) -> tuple[LayerTime, ...]:
    return layer_times([model.profile() for _ in range(PROFILE_RUNS)], bundle.manifest["layers"])


def _tensors(bundle: Bundle, kind: str) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(item["name"], item["dtype"], tuple(item["shape"])) for item in bundle.manifest[kind])
