"""`sparsify`: from a model to a sparse one, by a recipe, under a budget, or as far as accuracy allows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgesparse.commands import common
from edgesparse.commands.building import step_options
from edgesparse.console import Console
from edgesparse.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgesparse.advice.evaluate import Evaluation
    from edgesparse.advice.frontier import Ground
    from edgesparse.passes.calibration import Samples
    from edgesparse.passes.choose import Weigher
    from edgesparse.passes.sparsify import Pricer
    from edgesparse.recipe import Recipe

Judge = Callable[["ir.Model"], "Evaluation"]


@dataclass(frozen=True)
class Made:
    """A pruned model, why layers were left as they are, and what was found about it, as JSON values."""

    model: ir.Model
    reasons: tuple[str, ...]
    facts: dict[str, Any]


def _percent(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Points of accuracy from `1%`, `1` or `0.5 %`."""
    if value is None:
        return None
    try:
        points = float(value.strip().removesuffix("%"))
    except ValueError:
        points = -1.0
    if not 0.0 <= points <= 100.0:
        raise click.BadParameter(f"{value!r} is no drop; write it as 1%", param_hint="--max-drop")
    return points


@click.command()
@common.model_argument
@common.recipe_options
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Samples without labels: a folder of pictures or .npy/.npz files. With --pattern: all that keeps accuracy.",
)
@click.option(
    "--budget", metavar="KIND=AMOUNT", help="latency=0.5x, latency=8ms, flops=300M, size=2MB, instead of a density."
)
@click.option(
    "--max-drop", metavar="POINTS", callback=_percent, help="Prune as far as this drop allows, e.g. 1%; needs --eval."
)
@click.option("--cost", type=click.Choice(("flops", "latency", "size")), default="flops", show_default=True,
              help="What --max-drop and --frontier save.")  # fmt: skip
@click.option(
    "--eval",
    "judged_on",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Samples to evaluate on, as --calibrate.",
)
@click.option("--labels", help="Of --eval: `names`, a .csv or a .npy. Without: agreement with the dense model.")
@click.option(
    "--frontier",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Also write drop over cost there, and a plot beside it.",
)
@click.option("--measured", is_flag=True, help="Latencies as measured on this machine, instead of predicted.")
@common.target_option
@common.shape_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File.  [default: MODEL.sparse.onnx]")
@common.force_option
@step_options
@common.seed_option
@common.json_option
@common.verbosity_options
@click.pass_obj
def sparsify(
    console: Console,
    model: Path,
    recipe: Path | None,
    pattern: str | None,
    density: float | None,
    sparsity: float | None,
    calibrate: Path | None,
    budget: str | None,
    max_drop: float | None,
    cost: str,
    judged_on: Path | None,
    labels: str | None,
    frontier: Path | None,
    measured: bool,
    target: str,
    shapes: tuple[str, ...],
    output: Path | None,
    force: bool,
    stop_after: str | None,
    dump_after: tuple[str, ...],
    seed: int,
    json_to: str | None,
) -> None:
    """Prune MODEL: ONNX in, ONNX out, with the zeros in place; it runs anywhere.

    With --calibrate and --pattern, the criterion is chosen by measuring, channels are rearranged for the pattern,
    densities follow each layer's measured sensitivity, and weights are repaired layer by layer; a recipe can choose
    each of these. With --budget the densities are the best that the budget allows, with --max-drop the network is
    pruned as far as the drop allows.
    """
    from edgesparse.passes import load_model, save_model
    from edgesparse.passes.calibration import read_samples

    free = budget is not None or max_drop is not None or frontier is not None
    _check(
        free,
        density if density is not None else sparsity,
        budget,
        max_drop,
        judged_on,
        labels,
        frontier,
        stop_after,
        dump_after,
    )
    if free and recipe is None and pattern is not None:
        rules: Recipe | None = _free_recipe(pattern, cost, seed)
    else:
        rules = common.read_recipe(recipe, pattern, density, sparsity, seed)
    if rules is None:
        raise UsageError("nothing says what to prune", fix="give --recipe, or --pattern group:8x1 --density 0.5")
    if calibrate is not None and recipe is None:
        rules = rules.with_repair()
    if free and calibrate is None:
        raise UsageError(
            "a budget or drop needs calibration data", why="layers are weighed by measuring", fix="give --calibrate DIR"
        )
    if budget is not None:
        rules = _with_budget(rules, budget, target)
    place = output or Path(f"{model.stem}.sparse.onnx")
    if place.exists() and (place.is_dir() or not force or place.samefile(model)):
        raise UsageError(f"{place} is there already", fix="choose another --output, or --force to replace a file")
    sizes = common.read_shapes(shapes)
    loaded = load_model(model, sizes, console.notice)
    samples = None if calibrate is None else read_samples(calibrate, loaded, rules.calibration)
    judge = None if judged_on is None else _judge(loaded, judged_on, labels, rules)
    section = rules.allocation
    pricer = _pricer((section.target if section else "") or target, measured)
    if (max_drop is not None and budget is None) or frontier is not None:
        assert judge is not None
        assert samples is not None
        made = _searched(console, loaded, rules, samples, judge, pricer, cost, max_drop, frontier)
    else:
        made = _once(console, loaded, rules, samples, pricer, place, stop_after, dump_after, keep=judge is not None)
        if judge is not None:
            made = _evaluated(console, made, judge, max_drop)
    save_model(made.model, place, apart=True)
    show_sparse(console, place, made, json_to)


def _check(
    free: bool,
    density: float | None,
    budget: str | None,
    max_drop: float | None,
    judged_on: Path | None,
    labels: str | None,
    frontier: Path | None,
    stop_after: str | None,
    dump_after: tuple[str, ...],
) -> None:
    """Raise UsageError for options that exclude or need each other."""
    if free and density is not None:
        raise UsageError("a density and a budget or drop exclude each other", fix="give one of them")
    for name, value in (("--max-drop", max_drop), ("--frontier", frontier), ("--labels", labels)):
        if value is not None and judged_on is None:
            raise UsageError(f"{name} needs samples to evaluate on", fix="give --eval PATH")
    if frontier is not None and frontier.suffix != ".json":
        raise UsageError(f"--frontier {frontier} does not end in .json", fix="the plot goes beside it, as .svg")
    if frontier is not None and (budget is None) == (max_drop is None):
        raise UsageError("--frontier alone makes no model", fix="say which one to keep, by --budget or by --max-drop")
    if (max_drop is not None or frontier is not None) and (stop_after or dump_after):
        raise UsageError("--stop-after and --dump-after do not go with a search", fix="leave them out")


def _free_recipe(pattern: str, cost: str, seed: int) -> Recipe:
    """A recipe of one pattern whose densities are left to a budget."""
    from edgesparse.recipe import Recipe

    section = {"method": "sensitivity", "budget": f"{cost}=1x"}
    return Recipe.from_dict({"pattern": pattern, "seed": seed, "allocation": section})


def _with_budget(rules: Recipe, budget: str, target: str) -> Recipe:
    from edgesparse.budget import Budget
    from edgesparse.sections import Allocation

    kind = Budget.parse(budget).kind
    section = Allocation("sensitivity", budget, "" if kind == "flops" else target)
    return replace(rules, density=None, allocation=section)


def _pricer(target: str, measured: bool) -> Pricer:
    from edgesparse.target import Target

    chosen = Target.parse(target)

    def prices(*asked: Any) -> Any:
        from edgesparse.costing.pricing import pricer_for
        from edgesparse.measuring.insitu import layer_seconds

        return pricer_for(chosen, layer_seconds(chosen) if measured else None)(*asked)

    return prices


def _judge(dense: ir.Model, path: Path, labels: str | None, rules: Recipe) -> Judge:
    from edgesparse.advice.evaluate import evaluate, onnx_model
    from edgesparse.advice.labels import read_labelled

    samples = read_labelled(path, dense, rules.calibration, labels)
    reference = onnx_model(dense)
    return lambda model: evaluate(onnx_model(model), samples, against=reference)


def _once(
    console: Console,
    loaded: ir.Model,
    rules: Recipe,
    samples: Samples | None,
    pricer: Pricer,
    place: Path,
    stop_after: str | None,
    dump_after: tuple[str, ...],
    *,
    keep: bool,
) -> Made:
    from edgesparse.passes import run_passes, save_model, sparsify_passes

    with console.progress("sparsify") as tick:
        steps = sparsify_passes(rules, samples, tick, pricer, _fitter(rules, tick), _weigher(rules))
        names = [step.name for step in steps]
        for name in dump_after:
            if name not in names:
                raise UsageError(f"unknown step {name!r}", fix=f"steps are {', '.join(names)}")
        result = run_passes(
            loaded,
            steps,
            on_step=lambda name, _result: tick((1 + names.index(name)) / len(names), name),
            stop_after=stop_after,
            dump=lambda name, made: (
                save_model(made, place.with_suffix(f".{name}.onnx")) if name in dump_after else None
            ),
            keep=keep,
        )
    return Made(result.model, tuple(map(str, result.reasons)), {})


def _fitter(rules: Recipe, tick: Callable[[float, str], None]) -> Any:
    """How to fit by gradient, where the recipe asks for it: only then is torch loaded.

    None where the recipe leaves it open and there is no torch.
    """
    from importlib.util import find_spec

    method = "none" if rules.fitting is None else rules.fitting.method
    if method == "none" or (method == "auto" and find_spec("torch") is None):
        return None
    import edgesparse.training  # says what to install without torch
    from edgesparse.training.fitting import fitter

    assert edgesparse.training
    return fitter(tick)


def _weigher(rules: Recipe) -> Weigher | None:
    """What errors of channels cost, where the recipe asks for it: only then is torch loaded.

    None where the recipe leaves the criterion open and there is no torch.
    """
    from importlib.util import find_spec

    if rules.criterion not in ("fisher", "auto") or (rules.criterion == "auto" and find_spec("torch") is None):
        return None
    import edgesparse.training  # says what to install without torch
    from edgesparse.training.information import information

    assert edgesparse.training
    return information


def _evaluated(console: Console, made: Made, judge: Judge, max_drop: float | None) -> Made:
    """The same with its evaluation; DropError where it loses more than was allowed."""
    from edgesparse.advice.frontier import DropError
    from edgesparse.commands.evaluation import as_dict

    found = judge(made.model)
    if max_drop is not None and found.drop > max_drop:
        raise DropError(
            f"within the budget the model loses {found.drop:.1f} points",
            why=f"{max_drop:g} are allowed",
            fix="allow a larger budget or drop, or give more calibration data",
        )
    console.result(f"drop from dense: {found.drop:.1f} points of {_measure(found)}")
    return Made(made.model, made.reasons, {"evaluation": as_dict(found)})


def _searched(
    console: Console,
    loaded: ir.Model,
    rules: Recipe,
    samples: Samples,
    judge: Judge,
    pricer: Pricer,
    cost: str,
    max_drop: float | None,
    curve: Path | None,
) -> Made:
    from edgesparse.advice import frontier
    from edgesparse.budget import Budget
    from edgesparse.commands.evaluation import as_dict

    text = rules.allocation.budget if rules.allocation is not None and max_drop is None else ""
    asked = Budget.parse(text) if text else None
    kind = cost if asked is None else asked.kind
    with console.progress("sparsify") as tick:
        ground = frontier.prepare(loaded, rules, samples, kind=kind, pricer=pricer, tick=tick, weigher=_weigher(rules))
        if asked is None:
            assert max_drop is not None
            found = frontier.cheapest(ground, judge, max_drop, tick=tick)
        else:
            found = frontier.prune_to(ground, frontier.share_of(ground, asked), judge)
        if curve is not None:
            _write_curve(ground, curve, frontier.frontier(ground, judge, tick=tick))
    point = found.point
    console.result(
        f"{point.cost / ground.measured.prices.dense:.1%} of the dense {kind}, drop from dense "
        f"{point.evaluation.drop:.1f} points of {_measure(point.evaluation)}"
    )
    facts = {"kind": kind, **point.as_dict(), "evaluation": as_dict(point.evaluation)}
    return Made(found.model, tuple(map(str, found.reasons)), facts)


def _write_curve(ground: Ground, path: Path, points: Any) -> None:
    import json

    from edgesparse.advice.frontier import as_json, plot
    from edgesparse.passes.write import write_atomic

    data = as_json(ground, points)
    write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())
    write_atomic(path.with_suffix(".svg"), plot(data).encode())


def _measure(found: Evaluation) -> str:
    return "top-1" if found.quality is not None else "agreement"


def show_sparse(console: Console, path: Path, made: Made, json_to: str | None) -> None:
    """Print the pruned model's layers in short, and what was not pruned and why."""
    from edgesparse.graph.survey import survey_model
    from edgesparse.passes.sparsify import CRITERION_KEY, ORDER_KEY

    layers = survey_model(made.model)
    prunable = [layer for layer in layers if layer.weights]
    kept = sum(layer.weights * layer.density for layer in prunable)
    total = sum(layer.weights for layer in prunable) or 1
    orders = json.loads(made.model.metadata_props.get(ORDER_KEY, "[]"))
    if json_to:
        data = {
            "schema": "edgesparse.sparsify/1",
            "model": str(path),
            "density": kept / total,
            "layers": [layer.as_dict() for layer in layers],
            "reasons": list(made.reasons),
            "rearrangement": orders,
            "criterion": json.loads(made.model.metadata_props.get(CRITERION_KEY, "null")),
            **made.facts,
        }
        console.json(data, json_to)
        return
    pruned = sum(layer.density < 1 for layer in prunable)
    console.result(f"{path}  {pruned} of {len(prunable)} layers pruned, density {kept / total:.3f} over all weights")
    criteria = json.loads(made.model.metadata_props.get(CRITERION_KEY, "{}"))
    if len(criteria) > 1:
        told = ", ".join(f"{name} {value:.3f}" for name, value in criteria.items() if name != "chosen")
        console.result(f"criterion {criteria['chosen']}: nats from dense on samples held back, {told}")
    if orders:
        console.result(_brought(orders))
    for reason in made.reasons:
        console.detail(f"  {reason}")


def _brought(orders: Sequence[Mapping[str, Any]]) -> str:
    """What an order of channels brought, in the mean over the layers of all sets."""
    count = sum(len(one["layers"]) for one in orders)
    given, found = (sum(one[key] * len(one["layers"]) for one in orders) / count for key in ("given", "found"))
    if "unstructured" in orders[0]:
        return f"channels rearranged in {len(orders)} sets: {given:.3f} of the saliency retained became {found:.3f}"
    return f"channels clustered in {len(orders)} sets: groups of 4 ran {given:.3f} of the weights, now {found:.3f}"
