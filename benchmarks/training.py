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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgesparse.errors import EdgesparseError
from edgesparse.models import digits, fashion
from edgesparse.recipe import Recipe
from edgesparse.training import Sparsifier, methods
from edgesparse.training.distil import logit_loss

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
    (inputs, classes), held = data
    torch.manual_seed(1000 + seed)
    model = copy.deepcopy(teacher.model).train()
    per_epoch = len(classes) // task.batch
    steps = per_epoch * epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=task.rate, total_steps=steps, pct_start=0.2)
    sparsifier = None
    if method != "dense, longer":
        share = {} if pattern.startswith("nm") else {"sparsity": sparsity}
        recipe = Recipe.from_dict({"targets": list(task.targets), "pattern": pattern, "seed": seed, **share})
        sparsifier = Sparsifier(model, recipe, steps=steps, method=method, allocation=allocation)
    began, spent = time.perf_counter(), 0.0
    for _ in range(epochs):
        for rows in torch.randperm(len(classes))[: per_epoch * task.batch].split(task.batch):
            batch, flips = task.augmented(inputs[rows])
            optimizer.zero_grad()
            logits = model(batch)
            loss = nn.functional.cross_entropy(logits, classes[rows])
            if distil:
                loss = 0.3 * loss + 0.7 * logit_loss(logits, teacher.logits(rows, batch, flips))
            tick = time.perf_counter()
            if sparsifier is not None:
                loss = loss + sparsifier.regularizer()
            spent += time.perf_counter() - tick
            loss.backward()
            optimizer.step()
            schedule.step()
            tick = time.perf_counter()
            if sparsifier is not None:
                sparsifier.step(loss)
            spent += time.perf_counter() - tick
    seconds = time.perf_counter() - began
    row: dict[str, Any] = {"seconds": round(seconds, 1), "overhead": round(spent / (seconds - spent), 4)}
    if sparsifier is not None:
        sparsifier.finalize()
        row["reached"] = round(sparsifier.sparsity, 4)
        if time_it:
            row["ms"] = compiled_ms(sparsifier, inputs[:1])
    return {"accuracy": accuracy(model, held), **row}


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
    """Mean and spread (standard deviation) over the seeds, and the difference to the dense network of the seed."""
    made = [row for row in rows(out) if "accuracy" in row]
    base = {row["key"][5]: row["accuracy"] for row in made if row["key"][0] == "dense"}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in made:
        groups.setdefault((*row["key"][:5], row["key"][6]), []).append(row)
    print("| method | pattern | sparsity | allocation | distilled | epochs | seeds | top-1 | to dense | ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for key, group in sorted(groups.items(), key=lambda item: (item[0][2], item[0][1], item[0])):
        method, pattern, sparsity, allocation, distil, epochs = key
        values = [row["accuracy"] for row in group]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        gap = statistics.mean(row["accuracy"] - base[row["key"][5]] for row in group)
        times = [row["ms"] for row in group if row.get("ms")]
        ms = f"{statistics.median(times):.3f}" if times else ""
        cells = (method, pattern, f"{sparsity:g}", allocation, "yes" if distil else "", epochs, len(values))
        print("| " + " | ".join(map(str, (*cells, f"{statistics.mean(values):.2f}{spread}", f"{gap:+.2f}", ms))) + " |")


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--methods", nargs="+", default=list(methods()), help="or 'dense, longer'")
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
