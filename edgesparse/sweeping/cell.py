"""One cell of a sweep, in a process of its own: prune, compile, verify, evaluate, measure.

`python -m edgesparse.sweeping.cell` reads a job (one line of JSON) from stdin and writes one line of JSON to what was
stdout: the result, or the error in its parts. It holds its cores from beginning to end, as tuning is timing too. When
its stdin closes, whoever asked is gone, and it ends at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesparse.errors import EdgesparseError, ModelError, UsageError
from edgesparse.recipe import Recipe
from edgesparse.sweeping.claims import claim_cores, claim_device
from edgesparse.sweeping.grid import SCHEMA, contents_of
from edgesparse.sweeping.spec import ENGINES
from edgesparse.target import Target

if TYPE_CHECKING:
    from edgesparse.artifacts.artifact import Artifact
    from edgesparse.measuring.bench import Plan

Job = Mapping[str, Any]


def measure_cell(job: Job) -> dict[str, Any]:
    """Do all that a job says; the result as JSON values, see docs/sweep.md.

    Raises
    ------
    EdgesparseError
        Of any step; UsageError if a file is no longer what it was when the sweep began.
    """
    if contents_of(job["paths"]) != job["contents"]:
        raise UsageError(
            "the model or its data are not what they were",
            why="they changed, or are missing here, since the sweep began",
            fix="start the sweep again; on a cluster all workers must see the same files",
        )
    with tempfile.TemporaryDirectory(prefix="edgesparse-") as room, claim_cores(job["timing"]["threads"]):
        portable = _portable(job, Path(room))
        shared = {"density": _density(portable), "quality": _quality(job, portable)}
        if job["device"] in ENGINES:
            return {**shared, **_in_engine(job, portable)}
        artifact = _compiled(job, portable, Path(room) / "artifact")
        shared |= {
            "weights_bytes": artifact.manifest.files["weights.bin"].size,
            "model_bytes": Path(job["paths"]["model"]).stat().st_size,
        }
        return {**shared, **(_here(job, artifact) if job["device"] == "local" else _there(job, artifact))}


def _portable(job: Job, room: Path) -> Path:
    """The pruned model, in a file."""
    from edgesparse.passes import SIMPLIFY, load_model, run_passes, save_model, sparsify_passes
    from edgesparse.passes.calibration import read_samples

    recipe = None if job["recipe"] is None else Recipe.from_dict(job["recipe"])
    model = load_model(job["paths"]["model"], _shapes(job), lambda text: None)
    data = job["paths"].get("calibrate")
    samples = read_samples(data, model, recipe.calibration) if data and recipe else None
    steps = SIMPLIFY if recipe is None else sparsify_passes(recipe, samples)
    save_model(run_passes(model, steps).model, room / "portable.onnx")
    return room / "portable.onnx"


def _density(portable: Path) -> float:
    """Share of the weights that are kept, over all layers that have any."""
    from edgesparse.graph.survey import survey

    layers = survey(portable)
    return sum(one.weights * one.density for one in layers) / (sum(one.weights for one in layers) or 1)


def _quality(job: Job, portable: Path) -> dict[str, Any] | None:
    """Agreement with the dense model, and accuracy of both where there are labels; None where nobody asks."""
    data = job["paths"].get("inputs")
    if data is None:
        return None
    from edgesparse.advice.evaluate import evaluate, onnx_model
    from edgesparse.advice.labels import read_labelled
    from edgesparse.passes import load_model

    dense = load_model(job["paths"]["model"], _shapes(job), lambda text: None)
    settings = Recipe.from_dict(job["recipe"]).calibration if job["recipe"] else None
    samples = read_labelled(data, dense, settings, job["paths"].get("labels") or job["labels"])
    found = evaluate(onnx_model(portable), samples, against=onnx_model(dense))
    return {
        "samples": found.samples,
        "agreement": found.agreement.top1 if found.agreement else None,
        "accuracy": found.quality.top1 if found.quality else None,
        "dense_accuracy": found.dense.top1 if found.dense else None,
    }


def _compiled(job: Job, portable: Path, place: Path) -> Artifact:
    from edgesparse.pipeline import compile_model

    threads, target = job["timing"]["threads"], Target.parse(job["target"])
    made = compile_model(portable, target=target, output=place, seed=job["seed"], threads=threads)
    assert made is not None, "only stop_after ends without an artifact"
    return made


def _here(job: Job, artifact: Artifact) -> dict[str, Any]:
    """Verified and timed in this process, against dense and onnxruntime."""
    from edgesparse.artifacts.verify import verify
    from edgesparse.measuring import report as reports
    from edgesparse.measuring.session import Wanted, bench_artifact

    worst = verify(artifact.path, run=True).worst
    timing = job["timing"]
    wanted = Wanted(onnxruntime=timing["onnxruntime"], memory=timing["memory"])
    report = bench_artifact(artifact, _plan(job), wanted)
    return {"worst_error": worst.relative if worst else 0.0, "bench": reports.as_json(report)}


def _in_engine(job: Job, portable: Path) -> dict[str, Any]:
    """Bundled and timed in a JavaScript engine, in the variant that the target names."""
    from edgesparse.measuring import report as reports
    from edgesparse.measuring.webbench import bench_engine, built, check_engine
    from edgesparse.runtimes.engines import Engine

    timing, device = job["timing"], job["device"]
    check_engine(device, timing["threads"])
    variant = job["target"].partition(",")[0].removeprefix("wasm-")
    with claim_device(device), Engine(device) as engine, built(portable) as it:
        report = bench_engine(engine, it, _plan(job), onnxruntime=timing["onnxruntime"], variant=variant)
    return {"bench": reports.as_json(report)}


def _there(job: Job, artifact: Artifact) -> dict[str, Any]:
    """Verified and timed on a device; on an emulated one instructions are counted instead."""
    from edgesparse.measuring.devicebench import Wanted, bench_device
    from edgesparse.runtimes.device import open_device

    timing, name = job["timing"], job["device"]
    with claim_device(name), open_device(name, artifact) as device:
        wanted = Wanted(_plan(job), timing["cores"], onnxruntime=timing["onnxruntime"])
        found = bench_device(device, wanted)
        return {"device_bench" if found.report is None else "bench": found.record()}


def _plan(job: Job) -> Plan:
    from edgesparse.measuring.bench import Plan

    timing = job["timing"]
    return Plan(seconds=timing["seconds"], runs=timing["runs"], threads=timing["threads"], seed=job["seed"])


def _shapes(job: Job) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in job["shapes"].items()}


@contextlib.contextmanager
def answering() -> Iterator[tuple[dict[str, Any], Any]]:
    """The job from stdin, and what takes the answer; all that libraries print goes to stderr."""
    out = os.dup(1)
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def answer(data: Mapping[str, Any]) -> None:
        with os.fdopen(out, "w", encoding="utf-8") as file:
            file.write(json.dumps(data, allow_nan=False) + "\n")

    yield job, answer


def _end_with_parent() -> None:
    while sys.stdin.read(1):
        pass
    os._exit(1)


def main() -> None:
    """Answer one job."""
    with answering() as (job, answer):
        try:
            if job.get("schema") != SCHEMA:
                raise ModelError("the job is of another version", fix="install the same edgesparse everywhere")
            answer({"result": measure_cell(job)})
        except EdgesparseError as error:
            answer({"error": {"what": error.what, "why": error.why, "fix": error.fix}})


if __name__ == "__main__":
    main()
