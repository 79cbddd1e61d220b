"""What `edgesparse demo` does: a trained page-orientation network, dense, pruned with care, and pruned hard.

The network tells by how many quarter turns a page is rotated. Pages are drawn, so their labels are known.
*Careful* rearranges the channels, takes out half of the 1x1 layers' multiply-adds in groups of 4 where that costs
least, and repairs what is left on other pages without labels. *Hard* keeps a tenth of all layers' weights in groups
of 8 by magnitude alone: it shows the speed of that density, and its accuracy is shown as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesparse.measuring.bench import Contender, Outcome, Plan, Progress, measure
from edgesparse.measuring.contenders import ArtifactContender, OrtContender
from edgesparse.measuring.loads import close_all
from edgesparse.measuring.stats import Comparison, compare

if TYPE_CHECKING:
    from edgesparse.artifacts.artifact import Artifact
    from edgesparse.measuring.report import LayerTime
    from edgesparse.models import Sample, Score
    from edgesparse.target import Target

MODEL = "page-orientation"

CAREFUL: Mapping[str, Any] = {
    "pattern": "group:4x1",
    "density": 0.5,
    "targets": ["conv1x1"],
    "criterion": "obs",
    "rearrangement": {"method": "search"},
    "allocation": {"method": "sensitivity"},
    "reconstruction": {"method": "refit"},
    "recalibration": {"layers": "all"},
}
HARD: Mapping[str, Any] = {"pattern": "group:8x1", "density": 0.1}

EASY_PAGES, HARD_PAGES = 48, 96
PAGE_SEED = 2024

CALIBRATION_PAGES, CALIBRATION_SEED = 64, 7
"""Other pages, without labels, on which the careful form is repaired."""

ORT, DENSE, PRUNED, EXTREME = "onnxruntime, dense", "edgesparse, dense", "edgesparse, careful", "edgesparse, hard"


@dataclass(frozen=True)
class Row:
    """One form of the network: accuracy on easy and hard pages, bytes on the device, share of
    weights kept.
    """

    name: str
    easy: Score
    hard: Score
    size_bytes: int
    density: float


@dataclass(frozen=True)
class Demonstration:
    """All forms, their timings, each one's speed against onnxruntime, and the careful one's layers."""

    rows: tuple[Row, ...]
    outcome: Outcome
    speedups: Mapping[str, Comparison]
    layers: tuple[LayerTime, ...]
    peak: float | None
    artifacts: Mapping[str, Path]
    worst_error: float


def draw_pages(progress: Progress) -> tuple[list[Sample], list[Sample]]:
    """Return easy and hard pages with their labels; always the same ones."""
    from edgesparse.models import pages

    found: tuple[list[Sample], list[Sample]] = ([], [])
    total = EASY_PAGES + HARD_PAGES
    for kind, (count, damage) in enumerate(((EASY_PAGES, pages.EASY), (HARD_PAGES, pages.HARD))):
        for sample in pages.samples(count, seed=PAGE_SEED + kind, damage=damage):
            found[kind].append(sample)
            progress((len(found[0]) + len(found[1])) / total, "drawing pages")
    return found


def demonstrate(
    room: Path, target: Target, plan: Plan, *, progress: Progress, say: Callable[[str], None]
) -> Demonstration:
    """Prune, compile, verify and measure; artifacts stay in `room`.

    Raises
    ------
    EdgesparseError
        Of any step: a missing package, a failed compile, numbers that differ.
    """
    from edgesparse.measuring.peak import peak_gflops
    from edgesparse.models import model_path

    model = model_path(MODEL)
    easy, hard = draw_pages(progress)
    repaired = _repair(model, room / "careful.onnx", progress)
    artifacts = {
        name: _compile(source, target, recipe, room / name.rpartition(" ")[2], progress)
        for name, source, recipe in ((DENSE, model, None), (PRUNED, repaired, None), (EXTREME, model, HARD))
    }
    say(f"artifacts are in {room}")
    worst = _verify(artifacts, progress)
    rows = _rows(model, artifacts, easy, hard, progress)
    outcome, layers = _time(model, artifacts, easy[0][0], plan, progress)
    base = outcome[ORT].samples
    speedups = {name: compare(outcome[name].samples, base, seed=plan.seed) for name in artifacts}
    places = {name: artifact.path for name, artifact in artifacts.items()}
    peak = peak_gflops(target) if target.runs_here() else None
    return Demonstration(rows, outcome, speedups, layers, peak, places, worst)


def _repair(model: Path, place: Path, progress: Progress) -> Path:
    """Prune by `CAREFUL` on pages without labels, and write the portable model."""
    from edgesparse.models import pages
    from edgesparse.passes import load_model, run_passes, save_model, sparsify_passes
    from edgesparse.passes.calibration import samples_of
    from edgesparse.recipe import Recipe

    drawn = pages.samples(CALIBRATION_PAGES, seed=CALIBRATION_SEED, damage=pages.HARD)
    inputs = [page for page, _ in drawn]
    loaded = load_model(model, None, lambda text: None)
    steps = sparsify_passes(Recipe.from_dict(CAREFUL), samples_of(inputs, loaded), progress)
    place.parent.mkdir(parents=True, exist_ok=True)
    save_model(run_passes(loaded, steps).model, place)
    return place


def _compile(
    model: Path, target: Target, recipe: Mapping[str, Any] | None, place: Path, progress: Progress
) -> Artifact:
    from edgesparse.pipeline import compile_model
    from edgesparse.recipe import Recipe

    rules = None if recipe is None else Recipe.from_dict(recipe)

    def tick(share: float, text: str) -> None:
        progress(share, f"compiling {place.name}: {text}")

    made = compile_model(model, target=target, recipe=rules, output=place, force=True, progress=tick)
    assert made is not None, "only stop_after ends without an artifact"
    return made


def _verify(artifacts: Mapping[str, Artifact], progress: Progress) -> float:
    """Return the largest relative error of all artifacts against onnxruntime."""
    from edgesparse.artifacts.verify import verify

    worst = 0.0
    for name, artifact in artifacts.items():
        progress(1.0, f"verifying {name}")
        found = verify(artifact.path, run=True).worst
        worst = max(worst, found.relative if found else 0.0)
    return worst


def _rows(
    model: Path, artifacts: Mapping[str, Artifact], easy: list[Sample], hard: list[Sample], progress: Progress
) -> tuple[Row, ...]:
    from edgesparse.models import evaluate, onnx_run
    from edgesparse.runtimes.local import LocalRunner

    progress(1.0, "reading the pages")
    original = onnx_run(model)
    rows = [Row(ORT, evaluate(original, easy), evaluate(original, hard), model.stat().st_size, 1.0)]
    for name, artifact in artifacts.items():
        with LocalRunner(artifact) as runner:
            key = runner.inputs[0].name

            def run(value: Any, runner: LocalRunner = runner, key: str = key) -> Any:
                return next(iter(runner.run({key: value}).values()))

            scores = evaluate(run, easy), evaluate(run, hard)
        files = artifact.manifest.files
        size = files["weights.bin"].size + files[artifact.manifest.module].size
        rows.append(Row(name, *scores, size, _density(artifact)))
    return tuple(rows)


def _density(artifact: Artifact) -> float:
    """Return the share of the weights that the portable model keeps."""
    from edgesparse.artifacts.verify import PORTABLE
    from edgesparse.graph.survey import survey

    layers = survey(artifact.file(PORTABLE))
    return sum(item.weights * item.density for item in layers) / (sum(item.weights for item in layers) or 1)


def _time(
    model: Path, artifacts: Mapping[str, Artifact], page: Any, plan: Plan, progress: Progress
) -> tuple[Outcome, tuple[LayerTime, ...]]:
    from edgesparse.measuring.session import profile

    feeds = {name: {artifact.manifest.inputs[0].name: page} for name, artifact in artifacts.items()}

    def load() -> list[Contender]:
        ours = [ArtifactContender(name, artifacts[name], feeds[name]) for name in (PRUNED, EXTREME, DENSE)]
        return [*ours, OrtContender(ORT, model, feeds[DENSE], threads=plan.threads)]

    contenders = load()
    outcome = measure(contenders, plan, again=load, progress=progress)
    layers = profile(contenders[0], artifacts[PRUNED])
    close_all([contenders])
    return outcome, layers
