"""Accuracy after sparse training: methods x patterns x sparsity, seed by seed, and the time of the compiled result.

    python benchmarks/training.py --jobs 2                   # all of digits, and of Fashion-MNIST in seconds a run
    python benchmarks/training.py --task digits --quick      # a minute, for CI
    python benchmarks/training.py --task fashion --methods gradual sr-ste --patterns unstructured group:4x1

The tasks and what one run is are in `training_runs.py`. Besides, a dense network is once left as it is ("dense"), and
can be trained on just the same ("dense, longer"). Rows go to a file of JSON lines as they are made, and those that are
there already are not made again. One network of each cell is exported, and `training_table.py` compiles and times them
at the end and prints the table. What `--minutes` leaves no time for is told by name; nothing is begun later, and the
same command goes on with it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from training_runs import METHODS, TASKS, Key, Task, dense, loaded, run

from edgesparse.errors import EdgesparseError
from edgesparse.training.memory import keep_freed

PATTERNS = ("unstructured", "group:4x1", "group:8x1", "nm:2:4", "fanin")


@dataclass(frozen=True)
class Cells:
    """Runs that are asked for: all these methods at all these patterns and sparsities."""

    methods: tuple[str, ...]
    patterns: tuple[str, ...]
    sparsity: tuple[float, ...]
    allocation: str = "lamp"
    distil: bool = False

    def keys(self, seeds: Iterable[int], epochs: float) -> Iterator[Key]:
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
    "fashion-short": (Cells(tuple(METHODS), PATTERNS, (0.9,)), Cells(tuple(METHODS), PATTERNS, (0.8,))),
    "fashion": (
        Cells(("gradual",), ("unstructured", "group:4x1"), (0.8, 0.9), distil=True),
        Cells(("gradual",), ("group:8x1",), (0.8,), distil=True),
        Cells(("gradual",), ("group:4x1",), (0.9,), "uniform"),
        Cells(("gradual",), ("group:4x1",), (0.9,)),
        Cells(tuple(METHODS), ("group:4x1",), (0.9,)),
    ),
}
"""What to run, the most telling first; runs that are there already are passed over."""
UNASKED = ("digits", "fashion-short")
"""Tasks of the whole table. A run on `fashion` takes minutes."""
TIMING = 1.5
"""Seconds that compiling and timing a network takes, kept of the time for each that is exported."""


def main() -> None:
    """Make the runs that are asked for and are not there yet; then the tables."""
    args = parsed()
    end = time.monotonic() + 60 * args.minutes
    tasks = [TASKS[name] for name in ([args.task] if args.task else UNASKED)]
    asked = [one for task in tasks for one in runs(args, task)]
    asked.sort(key=lambda one: not one.dense)  # all others begin with these
    missing = train(asked, args.jobs, end, export=not args.untimed)
    for task in tasks:
        out = rows_of(args, task)
        words = [str(Path(__file__).with_name("training_table.py")), str(out), "--jobs", str(args.jobs)]
        subprocess.run([sys.executable, *words, *([] if args.untimed else ["--time"])], check=True)
        if left := [one.key for one in missing if one.name == task.name]:
            every = sum(one.name == task.name for one in asked)
            print(f"no time was left for {len(left)} of {every} runs on {task.name}:")
            for line in told(left):
                print(f"  {line}")


@dataclass(frozen=True)
class Run:
    """A run that is asked for: what it is, the dense network's seed that it begins with, the file its row goes to."""

    name: str
    key: Key
    begin: int
    out: Path

    @property
    def task(self) -> Task:
        """The task of this name: its module does not go to other processes."""
        return TASKS[self.name]

    @property
    def dense(self) -> bool:
        """Whether it makes a dense network, which others begin with."""
        return self.key[0] == "dense"


def rows_of(args: argparse.Namespace, task: Task) -> Path:
    """The file of a task's rows."""
    return args.out or Path(f"out/training-{task.name}.jsonl")


def runs(args: argparse.Namespace, task: Task) -> Iterator[Run]:
    """The dense networks, and all that the plan or the options name."""
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    begin = task.dense_seed if args.dense_seed is None else args.dense_seed
    for seed in seeds if begin is None else [begin]:
        yield Run(task.name, ("dense", "", 0.0, "", False, seed, 0), seed, rows_of(args, task))
    for key in asked_keys(args, task, seeds):
        yield Run(task.name, key, key[5] if begin is None else begin, rows_of(args, task))


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


def asked_keys(args: argparse.Namespace, task: Task, seeds: range) -> list[Key]:
    """The runs with a method, each once: the plan's, or those that the options name."""
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


def train(asked: Sequence[Run], jobs: int, end: float, *, export: bool) -> list[Run]:
    """Train what is missing in so many processes of one thread each; the runs that there was no time for.

    A run waits for the dense networks of its task. Nothing is begun after `end`, less what timing the exported
    networks takes.
    """
    rows = []
    for out in {one.out for one in asked}:
        out.parent.mkdir(parents=True, exist_ok=True)
        lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
        rows += [(out, json.loads(line)) for line in lines]
    known = {(out, *row["key"]) for out, row in rows}
    missing = [one for one in asked if (one.out, *one.key) not in known]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running: dict[Future[dict[str, Any]], Run] = {}
        if export:
            end -= TIMING * (sum("onnx" in row for _, row in rows) - sum("ms" in row for _, row in rows))
        while running or (missing and time.monotonic() < end):
            begun = {one.name for one in running.values() if one.dense}
            for one in list(missing):
                if len(running) == jobs or time.monotonic() >= end:
                    break
                if one.name in begun and not one.dense:
                    continue
                missing.remove(one)
                running[pool.submit(work, one, export)] = one
                begun |= {one.name} if one.dense else set()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                made = future.result()
                end -= TIMING if "onnx" in made else 0.0
                record(running.pop(future), made)
    return missing


def work(one: Run, export: bool) -> dict[str, Any]:
    """One run, in a process of its own; the first network of a cell is exported, to be timed later."""
    torch.set_num_threads(1)
    keep_freed()
    teacher = dense(one.task, one.begin, one.out.parent)
    row = {"dense": teacher.accuracy, "dense seed": one.begin}
    if one.dense:
        return {"accuracy": teacher.accuracy, **row}
    path = exported(one.out.parent, one.task, one.key) if export else None
    try:
        return row | run(one.task, loaded(one.task.data), teacher, one.key, path)
    except EdgesparseError as error:
        return {"refused": str(error)}


def exported(folder: Path, task: Task, key: Key) -> Path:
    """Where the network of a run is kept."""
    method, pattern, sparsity, allocation, distil, _, epochs = key
    words = (task.name, method, pattern, f"{sparsity:g}", allocation, "distilled" if distil else "", str(epochs))
    return folder / f"{'-'.join(word.replace(':', '').replace(', ', '-') for word in words if word)}.onnx"


def record(one: Run, made: dict[str, Any]) -> None:
    """Add a row to the task's file."""
    with one.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": one.key, **made}) + "\n")
    print(one.name, *(word for word in one.key if word != ""), made, flush=True)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, help=f"else {' and '.join(UNASKED)}")
    parser.add_argument("--methods", nargs="+", help=f"of {', '.join(METHODS)}; or 'dense, longer'")
    parser.add_argument("--patterns", nargs="+", help=f"else {' '.join(PATTERNS)}")
    parser.add_argument("--sparsity", nargs="+", type=float, help="else 0.8 0.9")
    parser.add_argument("--allocation", default="lamp")
    parser.add_argument("--distil", action="store_true", help="teach by the dense network's logits")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--dense-seed", type=int, help="begin all runs with this dense network; digits else each with its own"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="end within so many: begin nothing later; else 60")
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
