"""Accuracy after sparse training: methods x patterns x sparsity, seed by seed, and the time of the compiled result.

    python benchmarks/training.py --minutes 60 --jobs 2             # digits, then Fashion-MNIST: the whole plan
    python benchmarks/training.py --task digits --quick             # a minute, for CI
    python benchmarks/training.py --task fashion --methods gradual sr-ste --patterns unstructured group:4x1

Every run starts from the dense network of its seed and trains it on for the same number of epochs, whatever the method.
The dense network is once left as it is ("dense") and once trained on just the same ("dense, longer"). Rows go to a file
of JSON lines as they are made, and those that are there already are not made again. The 1x1 convolutions and, for
digits, the last layer are pruned; stem and depthwise layers stay dense, as in the field. One network of each cell is
exported, and `benchmarks/training_table.py` times them at the end and prints the table. What `--minutes` leaves no time
for is told by name.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
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
Key = tuple[str, str, float, str, bool, int, int]
"""Of a run, as `training_table.py` reads it: method, pattern, sparsity, allocation, whether distilled, seed, epochs."""


@dataclass(frozen=True)
class Cells:
    """Runs that are asked for: all these methods at all these patterns and sparsities."""

    methods: tuple[str, ...]
    patterns: tuple[str, ...]
    sparsity: tuple[float, ...]
    allocation: str = "lamp"
    distil: bool = False

    def keys(self, seeds: Iterable[int], epochs: int) -> Iterator[Key]:
        """One key a run. Random masks are as ERK allocates them, patterns of fixed density as they are."""
        for pattern in self.patterns:
            for sparsity in (0.5,) if pattern.startswith("nm") else self.sparsity:
                for method in self.methods:
                    split = "uniform" if pattern.startswith("nm") else "erk" if method == "random" else self.allocation
                    for seed in seeds:
                        yield (method, pattern, sparsity, split, self.distil, seed, epochs)


PLAN = {
    "digits": (
        Cells(("gradual", "random"), PATTERNS, (0.9, 0.8)),
        Cells(("gradual",), ("unstructured", "group:4x1", "group:8x1"), (0.9,), "uniform"),
        Cells(("gradual",), ("unstructured", "group:4x1", "group:8x1"), (0.9,), distil=True),
        Cells(tuple(METHODS), PATTERNS, (0.9, 0.8)),
    ),
    "fashion": (
        Cells(("gradual",), ("unstructured", "group:4x1"), (0.8, 0.9), distil=True),
        Cells(("gradual",), ("group:8x1",), (0.8,), distil=True),
        Cells(("gradual",), ("group:4x1",), (0.9,), "uniform"),
        Cells(("gradual",), ("group:4x1",), (0.9,)),
        Cells(tuple(METHODS), ("group:4x1",), (0.9,)),
        Cells(("gradual",), PATTERNS, (0.8, 0.9)),
        Cells(tuple(METHODS), PATTERNS, (0.9, 0.8)),
    ),
}
"""What to run, the most telling first; runs that are there already are passed over."""
TIMING = 6.0
"""Seconds that compiling and timing a network takes, kept of the time for each that is exported."""


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
            return digits._shifted(inputs).contiguous(memory_format=torch.channels_last), None
        flips = torch.rand(len(inputs)) < 0.5
        inputs[flips] = inputs[flips].flip(3)
        return inputs.contiguous(memory_format=torch.channels_last), flips


TASKS = {
    "digits": Task("digits", digits, ("re:expand[.]conv|pointwise2?[.]conv|head[.]fc",), 40, 40, 64, 1e-2),
    "fashion": Task("fashion", fashion, ("re:block[0-9][.]pointwise[.]conv",), 4, 3, 128, 5e-3),
}


class Teacher:
    """The dense network, and its logits for augmented inputs: kept in a file where they are few."""

    def __init__(self, task: Task, model: Any, path: Path) -> None:
        self.model, self.path = model, path
        self.inputs, self.held = loaded(task.name)[0][0], loaded(task.name)[1]
        self.known: list[Any] = []
        self.few = task.name == "fashion"  # as it is, and mirrored

    @functools.cached_property
    def accuracy(self) -> float:
        """Percent of the evaluation pictures."""
        return accuracy(self.model, self.held)

    def logits(self, rows: Any, batch: Any, flips: Any) -> Any:
        """Of the augmented batch, made of these rows of the inputs."""
        with torch.no_grad():
            if not self.few:
                return self.model(batch)
            if not self.known and self.path.is_file():
                self.known = torch.load(self.path, weights_only=True)
            if not self.known:
                for half in (self.inputs, self.inputs.flip(3)):
                    parts = (part.contiguous(memory_format=torch.channels_last) for part in half.split(500))
                    self.known.append(torch.cat([self.model(part) for part in parts]))
                torch.save(self.known, self.path)
            return torch.where(flips[:, None], self.known[1][rows], self.known[0][rows])


def main() -> None:
    """Make the runs that are asked for and are not there yet; then the table."""
    args = parsed()
    end = time.monotonic() + 60 * args.minutes
    for task in (TASKS[args.task],) if args.task else TASKS.values():
        out = args.out or Path(f"out/training-{task.name}.jsonl")
        out.parent.mkdir(parents=True, exist_ok=True)
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        keys = asked(args, task, seeds)
        first = list(seeds) if args.dense_seed is None else [args.dense_seed]
        fixed = [("dense", "", 0.0, "", False, seed, 0) for seed in first]
        missing: list[Key] = []
        for part in (fixed, keys):  # all others begin with the dense networks
            missing += train(task, out, part, args.jobs, end, args.dense_seed, export=not args.untimed)
        words = [str(Path(__file__).with_name("training_table.py")), str(out)]
        subprocess.run([sys.executable, *words, *([] if args.untimed else ["--time"])], check=True)
        if missing:
            print(f"no time was left for {len(missing)} of {len(fixed) + len(keys)} runs on {task.name}:")
            for line in told(missing):
                print(f"  {line}")


def told(keys: Sequence[Key]) -> list[str]:
    """Cells and their seeds, one line each, in the keys' order."""
    seeds: dict[tuple[Any, ...], list[int]] = {}
    for *cell, seed, epochs in keys:
        seeds.setdefault((*cell, epochs), []).append(seed)
    lines = []
    for (method, pattern, sparsity, allocation, distil, _), found in seeds.items():
        words = (f"{method}, distilled" if distil else method, pattern, f"{sparsity:g}", allocation)
        lines.append(f"{' '.join(word for word in words if word)}, seeds {', '.join(map(str, found))}")
    return lines


def asked(args: argparse.Namespace, task: Task, seeds: range) -> list[Key]:
    """The runs, each once: the plan's, or those that the options name."""
    if args.methods is None and args.patterns is None and args.sparsity is None:
        cells: tuple[Cells, ...] = PLAN[task.name]
    else:
        sparsity = tuple(args.sparsity or (0.8, 0.9))
        cells = (
            Cells(
                tuple(args.methods or METHODS), tuple(args.patterns or PATTERNS), sparsity, args.allocation, args.distil
            ),
        )
    epochs = args.epochs or task.epochs
    return list(dict.fromkeys(key for one in cells for key in one.keys(seeds, epochs)))


def train(
    task: Task, out: Path, keys: list[Key], jobs: int, end: float, dense_seed: int | None, *, export: bool
) -> list[Key]:
    """Train what is missing in so many processes of one thread each; the runs that there was no time for.

    Nothing is begun after `end`, less what timing the exported networks takes.
    """
    lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
    rows = [json.loads(line) for line in lines]
    known = {tuple(row["key"]) for row in rows}
    missing = [key for key in keys if key not in known][::-1]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running = {}
        end -= TIMING * (sum("onnx" in row for row in rows) - sum("ms" in row for row in rows)) if export else 0.0
        while running or (missing and time.monotonic() < end):
            while missing and len(running) < jobs and time.monotonic() < end:
                key = missing.pop()
                begin = key[5] if dense_seed is None else dense_seed
                running[pool.submit(work, task.name, key, begin, out.parent, export)] = key
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                made = future.result()
                end -= TIMING if "onnx" in made else 0.0
                record(out, running.pop(future), made)
    return missing[::-1]


def work(name: str, key: Key, begin: int, folder: Path, export: bool) -> dict[str, Any]:
    """One run, in a process of its own; the first network of a cell is exported, to be timed later."""
    torch.set_num_threads(1)
    task = TASKS[name]
    teacher = dense(task, begin, folder)
    row = {"dense": teacher.accuracy, "dense seed": begin}
    if key[0] == "dense":
        return {"accuracy": teacher.accuracy, **row}
    try:
        return row | run(task, loaded(name), teacher, key, exported(folder, task, key) if export else None)
    except EdgesparseError as error:
        return {"refused": str(error)}


@functools.cache
def loaded(name: str) -> Any:
    """Training and evaluation halves of the data, each inputs and classes."""
    return [tuple(map(torch.from_numpy, half)) for half in TASKS[name].module.load()]


def exported(folder: Path, task: Task, key: Key) -> Path:
    """Where the network of a run is kept."""
    method, pattern, sparsity, allocation, distil, _, epochs = key
    words = (task.name, method, pattern, f"{sparsity:g}", allocation, "distilled" if distil else "", str(epochs))
    return folder / f"{'-'.join(word.replace(':', '').replace(', ', '-') for word in words if word)}.onnx"


def run(task: Task, data: Any, teacher: Teacher, key: Key, export: Path | None) -> dict[str, Any]:
    """Train one network; its accuracy in percent, its sparsity, and the seconds."""
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
        if export is not None and not export.is_file():
            row["onnx"] = sparsifier.export(export, data[0][0][:1]).name
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
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.task.rate, weight_decay=1e-2, fused=True)
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


@functools.cache
def dense(task: Task, seed: int, folder: Path) -> Teacher:
    """The trained dense network of a seed, kept in a file beside the results."""
    path = folder / f"{task.name}-dense-{seed}.pt"
    model = task.module.network()
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
    elif task.name == "digits":
        model = digits.trained(seed=seed)
    else:
        torch.manual_seed(seed)
        model = task.module.network()
        train_dense(task, model.to(memory_format=torch.channels_last).train())
    if not path.is_file():
        torch.save(model.state_dict(), path)
    logits = folder / f"{task.name}-dense-{seed}-logits.pt"
    return Teacher(task, model.to(memory_format=torch.channels_last).eval(), logits)


def train_dense(task: Task, model: Any) -> None:
    """From untrained to dense, by the labels."""
    inputs, classes = loaded(task.name)[0]
    steps = len(classes) // task.batch * task.dense_epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(task.dense_epochs):
        order = torch.randperm(len(classes))[: steps // task.dense_epochs * task.batch]
        for rows in order.split(task.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(task.augmented(inputs[rows])[0]), classes[rows]).backward()
            optimizer.step()
            schedule.step()


def accuracy(model: Any, held: Any) -> float:
    """Percent of the evaluation pictures whose class the model finds."""
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(a).argmax(1) == b).sum()) for a, b in zip(held[0].split(500), held[1].split(500), strict=True)
        )
    return 100 * right / len(held[1])


def record(out: Path, key: Key, made: dict[str, Any]) -> None:
    """Add a row to the file."""
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": key, **made}) + "\n")
    print(*(word for word in key if word != ""), made, flush=True)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, help="else both")
    parser.add_argument("--methods", nargs="+", help=f"of {', '.join(METHODS)}; or 'dense, longer'")
    parser.add_argument("--patterns", nargs="+", help=f"else {' '.join(PATTERNS)}")
    parser.add_argument("--sparsity", nargs="+", type=float, help="else 0.8 0.9")
    parser.add_argument("--allocation", default="lamp")
    parser.add_argument("--distil", action="store_true", help="teach by the dense network's logits")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--dense-seed", type=int, help="begin all runs with this dense network, else each with its own")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing later than that")
    parser.add_argument("--jobs", type=int, default=1, help="processes that train, one thread each")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--untimed", action="store_true", help="do not compile and time the result")
    parser.add_argument("--quick", action="store_true", help="digits, one seed, two methods, two patterns, few epochs")
    args = parser.parse_args()
    if args.quick:
        args.task, args.seeds, args.epochs, args.sparsity = args.task or "digits", 1, args.epochs or 4, [0.8]
        args.methods, args.patterns = ["gradual", "random"], ["unstructured", "group:4x1"]
    return args


if __name__ == "__main__":
    main()
