"""Accuracy after sparse training: methods x patterns x sparsity, seed by seed, and the time of the compiled result.

    python benchmarks/training.py --task digits --quick             # a minute, for CI
    python benchmarks/training.py --task fashion --methods gradual sr-ste --patterns unstructured group:4x1
    python benchmarks/training.py --task digits --table             # what is there so far

Every run starts from the dense network of its seed and trains it on for the same number of epochs, whatever the method.
The dense network is once left as it is ("dense") and once trained on just the same ("dense, longer"). Rows go to a file
of JSON lines as they are made, and those that are there already are not made again. The 1x1 convolutions and, for
digits, the last layer are pruned; stem and depthwise layers stay dense, as in the field.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgesparse.errors import EdgesparseError
from edgesparse.models import digits, fashion
from edgesparse.recipe import Recipe
from edgesparse.training import Sparsifier, methods
from edgesparse.training.activations import rechoose
from edgesparse.training.distil import logit_loss
from edgesparse.training.soup import average, recalibrate
from edgesparse.training.soup import share as meet

METHODS = [*(name for name in methods() if name != "given"), "soup", "swamp", "safs"]
PATTERNS = ("unstructured", "group:4x1", "group:8x1", "nm:2:4", "fanin")


@dataclass(frozen=True)
class Task:
    """A network, its data, and how long it trains."""

    name: str
    module: Any
    targets: tuple[str, ...]
    dense_epochs: int
    epochs: int
    batch: int
    rate: float

    def augmented(self, inputs: Any) -> tuple[Any, Any]:
        """A batch, changed at random as in the training of the dense network; and which of them are mirrored."""
        if self.name == "digits":
            return digits._shifted(inputs), None
        flips = torch.rand(len(inputs)) < 0.5
        inputs[flips] = inputs[flips].flip(3)
        return inputs.contiguous(memory_format=torch.channels_last), flips


TASKS = {
    "digits": Task("digits", digits, ("re:expand[.]conv|pointwise2?[.]conv|head[.]fc",), 40, 40, 64, 1e-2),
    "fashion": Task("fashion", fashion, ("re:block[0-9][.]pointwise[.]conv",), 4, 4, 128, 5e-3),
}


class Teacher:
    """The dense network's logits for augmented inputs. All that can be asked is computed once, where that is little."""

    def __init__(self, task: Task, model: Any, inputs: Any) -> None:
        self.model, self.inputs = model, inputs
        self.known: list[Any] = []
        self.few = task.name == "fashion"  # as it is, and mirrored

    def logits(self, rows: Any, batch: Any, flips: Any) -> Any:
        """Of the augmented batch, made of these rows of the inputs."""
        with torch.no_grad():
            if not self.few:
                return self.model(batch)
            if not self.known:
                for half in (self.inputs, self.inputs.flip(3)):
                    self.known.append(torch.cat([self.model(part) for part in half.split(500)]))
            return torch.where(flips[:, None], self.known[1][rows], self.known[0][rows])


def main() -> None:
    """Make the runs that are asked for and are not there yet; print the table."""
    args = parsed()
    task = TASKS[args.task]
    out = args.out or Path(f"out/training-{task.name}.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    if not args.table:
        torch.set_num_threads(1)
        data = [tuple(map(torch.from_numpy, half)) for half in task.module.load()]
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            teacher = dense(task, data, seed, out.parent)
            taught = Teacher(task, teacher, data[0][0])
            record(out, ("dense", "", 0.0, "", False, seed, 0), lambda t=teacher: {"accuracy": accuracy(t, data[1])})
            for key in keys(args, seed, args.epochs or task.epochs):
                record(out, key, lambda k=key, t=taught: run(task, data, t, k, time_it=not args.untimed))
    table(out)


def keys(args: argparse.Namespace, seed: int, epochs: int) -> list[tuple[Any, ...]]:
    """The runs, each (method, pattern, sparsity, allocation, distilled, seed, epochs)."""
    found: list[tuple[Any, ...]] = []
    for pattern in args.patterns:
        for sparsity in (0.5,) if pattern.startswith("nm") else args.sparsity:
            found += [(m, pattern, sparsity, args.allocation, args.distil, seed, epochs) for m in args.methods]
    return found


def run(task: Task, data: Any, teacher: Teacher, key: tuple[Any, ...], *, time_it: bool) -> dict[str, Any]:
    """Train one network; its accuracy in percent, sparsity, seconds, and milliseconds of the compiled form."""
    method, pattern, sparsity, allocation, distil, seed, epochs = key
    torch.manual_seed(1000 + seed)
    model = copy.deepcopy(teacher.model).train()
    fit = Fit(task, data[0], teacher, distil)
    share = {} if pattern.startswith("nm") else {"sparsity": sparsity}
    recipe = Recipe.from_dict({"targets": list(task.targets), "pattern": pattern, "seed": seed, **share})
    sparsifier = None
    if method == "dense, longer":
        fit.train(model, None, epochs)
    elif method in ("soup", "swamp"):
        sparsifier = {"soup": soup, "swamp": swamp}[method](fit, model, recipe, allocation, epochs)
    else:
        if method == "safs":
            rechosen(fit, model, recipe, allocation, seed)
        name = "gradual" if method == "safs" else method
        sparsifier = Sparsifier(model, recipe, steps=fit.steps(epochs), method=name, allocation=allocation)
        fit.train(model, sparsifier, epochs)
    row: dict[str, Any] = {
        "seconds": round(fit.seconds, 1),
        "overhead": round(fit.spent / (fit.seconds - fit.spent), 4),
    }
    if sparsifier is not None:
        model = sparsifier.model
        sparsifier.finalize()
        row["reached"] = round(sparsifier.sparsity, 4)
        if time_it:
            row["ms"] = compiled_ms(sparsifier, data[0][0][:1])
    return {"accuracy": accuracy(model, data[1]), **row}


class Fit:
    """Training epochs on labelled inputs, and how much of their time the sparsifier took."""

    def __init__(self, task: Task, data: Any, teacher: Teacher, distil: bool) -> None:
        self.task, self.teacher, self.distil = task, teacher, distil
        self.inputs, self.classes = data
        self.seconds = self.spent = 0.0

    def steps(self, epochs: float) -> int:
        """Optimizer steps of so many epochs."""
        return max(int(len(self.classes) // self.task.batch * epochs), 1)

    def train(self, model: Any, sparsifier: Sparsifier | None, epochs: float) -> None:
        """From a rate of zero over the highest back to zero."""
        steps = self.steps(epochs)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.task.rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.task.rate, total_steps=max(steps, 10), pct_start=0.2
        )
        model.train()
        began = time.perf_counter()
        for rows in self.batches(steps):
            batch, flips = self.task.augmented(self.inputs[rows])
            optimizer.zero_grad()
            logits = model(batch)
            loss = nn.functional.cross_entropy(logits, self.classes[rows])
            if self.distil:
                loss = 0.3 * loss + 0.7 * logit_loss(logits, self.teacher.logits(rows, batch, flips))
            tick = time.perf_counter()
            if sparsifier is not None:
                loss = loss + sparsifier.regularizer()
            self.spent += time.perf_counter() - tick
            loss.backward()
            optimizer.step()
            schedule.step()
            tick = time.perf_counter()
            if sparsifier is not None:
                sparsifier.step(loss)
            self.spent += time.perf_counter() - tick
        self.seconds += time.perf_counter() - began

    def batches(self, steps: int) -> Iterator[Any]:
        """Rows of the batches, every epoch in an order of its own."""
        left: list[Any] = []
        for _ in range(steps):
            if not left:
                whole = len(self.classes) // self.task.batch * self.task.batch
                left = list(torch.randperm(len(self.classes))[:whole].split(self.task.batch))[::-1]
            yield left.pop()

    def averaged(self, particles: Sequence[Sparsifier]) -> Sparsifier:
        """The mean of runs that share a mask, with batch norms' statistics of its own."""
        made = average(particles)
        recalibrate(made, (self.task.augmented(self.inputs[rows])[0] for rows in self.batches(20)))
        return Sparsifier(made, particles[0].recipe, steps=1, method="given")


def soup(fit: Fit, model: Any, recipe: Recipe, allocation: str, epochs: int) -> Sparsifier:
    """Sparse model soup (2306.16788): gradual in the first half, two particles in the second, and their mean."""
    first = Sparsifier(model, recipe, steps=fit.steps(epochs / 2), allocation=allocation)
    fit.train(model, first, epochs / 2)
    first.finalize()
    particles = []
    for _ in range(2):
        twin = copy.deepcopy(model)
        particles.append(Sparsifier(twin, recipe, steps=fit.steps(epochs / 2), method="given"))
        fit.train(twin, particles[-1], epochs / 2)
    return fit.averaged(particles)


def swamp(fit: Fit, model: Any, recipe: Recipe, allocation: str, epochs: int, rounds: int = 3) -> Sparsifier:
    """SWAMP (2305.14852): rounds of pruning, in each of which two particles train and meet in their mean."""
    models = [model, copy.deepcopy(model)]
    final = recipe.density if recipe.density is not None else 0.5
    particles: list[Sparsifier] = []
    for number in range(1, rounds + 1):
        step = recipe if recipe.pattern.fixed else replace(recipe, density=final ** (number / rounds))
        particles = [Sparsifier(one, step, steps=1, allocation=allocation) for one in models]
        for one in particles:
            one.finalize()
            fit.train(one.model, one, epochs / rounds)
        if number < rounds:
            meet(particles)
    return fit.averaged(particles)


def rechosen(fit: Fit, model: Any, recipe: Recipe, allocation: str, seed: int, epochs: float = 4) -> None:
    """Activation re-choice (2305.10964), judged by short sparse trainings on a fifth of the training inputs."""
    cut = len(fit.classes) // 5
    held, part = (fit.inputs[:cut], fit.classes[:cut]), (fit.inputs[cut:], fit.classes[cut:])

    def judge(candidate: Any) -> float:
        torch.manual_seed(seed)
        short = Fit(fit.task, part, fit.teacher, False)
        sparsifier = Sparsifier(candidate, recipe, steps=short.steps(epochs), allocation=allocation)
        short.train(candidate, sparsifier, epochs)
        candidate.eval()
        with torch.no_grad():
            return float(nn.functional.cross_entropy(candidate(held[0]), held[1]))

    rechoose(model, judge, rounds=12, seed=seed)


def dense(task: Task, data: Any, seed: int, folder: Path) -> Any:
    """The trained dense network of a seed, kept in a file beside the results."""
    path = folder / f"{task.name}-dense-{seed}.pt"
    model = task.module.network()
    if task.name == "fashion":
        model = model.to(memory_format=torch.channels_last)
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    if task.name == "digits":
        model = digits.trained(seed=seed)
    else:
        (inputs, classes), _ = data
        torch.manual_seed(seed)
        model = task.module.network().to(memory_format=torch.channels_last).train()
        steps = len(classes) // task.batch * task.dense_epochs
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
        for _ in range(task.dense_epochs):
            order = torch.randperm(len(classes))[: steps // task.dense_epochs * task.batch]
            for rows in order.split(task.batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(task.augmented(inputs[rows])[0]), classes[rows]).backward()
                optimizer.step()
                schedule.step()
    torch.save(model.state_dict(), path)
    return model.eval()


def accuracy(model: Any, held: Any) -> float:
    """Percent of the evaluation pictures whose class the model finds."""
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(a).argmax(1) == b).sum()) for a, b in zip(held[0].split(500), held[1].split(500), strict=True)
        )
    return 100 * right / len(held[1])


def compiled_ms(sparsifier: Sparsifier, example: Any) -> float | None:
    """Median milliseconds of the exported, compiled network on this machine, one thread."""
    from edgesparse.pipeline import compile_model
    from edgesparse.runtimes.local import LocalRunner
    from edgesparse.target import Target

    with tempfile.TemporaryDirectory() as folder:
        path = sparsifier.export(Path(folder) / "sparse.onnx", example)
        artifact = compile_model(path, target=Target.parse("native"), output=Path(folder) / "artifact")
        assert artifact is not None
        with LocalRunner(artifact) as runner:
            return round(1e3 * statistics.median(timed(runner, 200)), 4)


def timed(runner: Any, count: int) -> list[float]:
    """Seconds of each of `count` runs, after as many to warm up; the inputs are whatever lies in the arena."""
    seconds = []
    for _ in range(2 * count):
        tick = time.perf_counter()
        runner.step()
        seconds.append(time.perf_counter() - tick)
    return seconds[count:]


def record(out: Path, key: tuple[Any, ...], make: Any) -> None:
    """Make a row unless the file has it."""
    if any(tuple(row["key"]) == key for row in rows(out)):
        return
    try:
        made = make()
    except EdgesparseError as error:
        made = {"refused": str(error)}
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": key, **made}) + "\n")
    print(key, made, flush=True)


def rows(out: Path) -> list[dict[str, Any]]:
    """All rows so far."""
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.is_file() else []


def table(out: Path) -> None:
    """Mean and spread (standard deviation) over the seeds, and the differences to dense and to gradual, seed by seed.

    The last is told with its 95 % interval by Student's t, where at least three seeds have both.
    """
    made = [row for row in rows(out) if "accuracy" in row]
    base = {row["key"][5]: row["accuracy"] for row in made if row["key"][0] == "dense"}
    plain: dict[tuple[Any, ...], float] = {}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in made:
        method, pattern, sparsity, allocation, distil, seed, epochs = row["key"]
        groups.setdefault((method, pattern, sparsity, allocation, distil, epochs), []).append(row)
        if (method, allocation, distil) == ("gradual", "uniform", False):
            plain[(pattern, sparsity, epochs, seed)] = row["accuracy"]
    head = ("method", "pattern", "sparsity", "allocation", "distilled", "epochs", "seeds", "top-1", "to dense")
    print("| " + " | ".join((*head, "to gradual, uniform", "overhead of a step", "ms")) + " |")
    print("|" + " --- |" * (len(head) + 3))
    for key, group in sorted(groups.items(), key=lambda item: (item[0][2], item[0][1], item[0])):
        method, pattern, sparsity, allocation, distil, epochs = key
        values = [row["accuracy"] for row in group]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        gap = statistics.mean(row["accuracy"] - base[row["key"][5]] for row in group)
        pairs = [(row["accuracy"], plain.get((pattern, sparsity, epochs, row["key"][5]))) for row in group]
        times = [row["ms"] for row in group if row.get("ms")]
        ms = f"{statistics.median(times):.3f}" if times else ""
        took = [row["overhead"] for row in group if "overhead" in row]
        more = f"{statistics.median(took):.1%}" if took else ""
        cells = (method, pattern, f"{sparsity:g}", allocation, "yes" if distil else "", epochs, len(values))
        told = (f"{statistics.mean(values):.2f}{spread}", f"{gap:+.2f}", paired(pairs), more, ms)
        print("| " + " | ".join(map(str, (*cells, *told))) + " |")


def paired(pairs: Sequence[tuple[float, float | None]]) -> str:
    """The mean difference of the pairs that are whole, with its 95 % interval."""
    from scipy.stats import t

    gaps = [one - other for one, other in pairs if other is not None]
    if len(gaps) < 3 or statistics.stdev(gaps) < 1e-6:  # as few pictures as digits has differ by the same count
        return ""
    half = float(t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / len(gaps) ** 0.5
    return f"{statistics.mean(gaps):+.2f} ± {half:.2f}"


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[*(name for name in methods() if name != "given"), "soup", "swamp", "safs"],
        help="or 'dense, longer'",
    )
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8, 0.9])
    parser.add_argument("--allocation", default="uniform")
    parser.add_argument("--distil", action="store_true", help="teach by the dense network's logits")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--untimed", action="store_true", help="do not compile and time the result")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--quick", action="store_true", help="one seed, two methods, two patterns, few epochs")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.epochs, args.sparsity = 1, args.epochs or 4, [0.8]
        args.methods, args.patterns = ["gradual", "random"], ["unstructured", "group:4x1"]
    return args


if __name__ == "__main__":
    main()
