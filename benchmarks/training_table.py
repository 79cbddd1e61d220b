"""What `benchmarks/training.py` has trained: the time of the compiled networks, a table, and accuracy over latency.

    python benchmarks/training_table.py out/training-digits.jsonl --time --plot digits.svg
    python benchmarks/training_table.py out/training-digits.jsonl --grid       # methods down, patterns across

Times are those of the compiled network in alternation with its dense form, in this one process; they are added to the
file, and what is timed already is not timed again. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

PATTERNS = {name: place for place, name in enumerate(("unstructured", "fanin", "nm:2:4", "group:4x1", "group:8x1"))}
"""The order of patterns in a table."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--time", "timed", is_flag=True, help="Compile and time what was exported.")
@click.option("--jobs", default=1, show_default=True, help="Processes that compile.")
@click.option("--grid", "across", is_flag=True, help="Print means and deviations alone, methods by patterns.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="An SVG file for accuracy over latency.")
def main(file: Path, timed: bool, jobs: int, across: bool, picture: Path | None) -> None:
    """Time what is not timed yet, print the table, draw the plot."""
    if timed:
        time_all(file, jobs)
    if across:
        grid(file)
    else:
        table(file)
    if picture is not None:
        picture.write_text(plot(file), encoding="utf-8")


def time_all(file: Path, jobs: int) -> None:
    """Compile what was exported and is not timed yet, then time each in alternation with its dense form."""
    known = rows(file)
    timed = {row["key"] for row in known if "ms" in row}
    waiting = [row for row in known if "onnx" in row and row["key"] not in timed]
    if not waiting:
        return
    with tempfile.TemporaryDirectory() as folder, file.open("a", encoding="utf-8") as out:
        paths = [file.parent / row["onnx"] for row in waiting]
        into = [Path(folder) / str(place) for place in range(len(paths))]
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            dense = pool.submit(compiled, paths[0], Path(folder) / "dense", dense=True)
            made = list(pool.map(compiled, paths, into))
            begin = dense.result()  # where weights are zero does not matter to it
        for row, sparse in zip(waiting, made, strict=True):
            print(json.dumps({"key": row["key"], **paired_times(sparse, begin)}), file=out, flush=True)


def compiled(path: Path, into: Path, *, dense: bool = False) -> Path:
    """The artifact for this machine, one thread; `dense` makes nothing of the zeros."""
    from edgesparse.pipeline import compile_model
    from edgesparse.target import Target

    compile_model(path, target=Target.parse("native"), output=into, dense=dense)
    return into


def paired_times(sparse: Path, begin: Path) -> dict[str, float]:
    """Median milliseconds, and how many times as fast as dense with the ends of its 95 % interval."""
    from edgesparse.measuring.bench import Plan, measure
    from edgesparse.measuring.contenders import ArtifactContender

    both = [ArtifactContender("sparse", sparse), ArtifactContender("dense", begin)]
    outcome = measure(both, Plan(seconds=0.2, runs=200, warm_up=0.1, limit=0.4, patience=1.0))
    for one in both:
        one.close()
    found, ms = outcome.comparisons[0], 1e3 * outcome.measured[0].stats.p50
    return {
        "ms": round(ms, 4),
        "times": round(found.ratio, 3),
        "low": round(found.low, 3),
        "high": round(found.high, 3),
    }


def rows(file: Path) -> list[dict[str, Any]]:
    """All rows so far."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [row | {"key": tuple(row["key"])} for row in map(json.loads, lines)]


@dataclass(frozen=True)
class Cell:
    """What the seeds of one method, pattern, sparsity and allocation have come to."""

    method: str
    pattern: str
    sparsity: float
    allocation: str
    distil: bool
    epochs: float
    accuracy: dict[int, float]
    gaps: list[float]
    overhead: float | None
    time: dict[str, float]

    @property
    def name(self) -> str:
        """The method, and whether logits taught besides."""
        return f"{self.method}, distilled" if self.distil else self.method

    @property
    def place(self) -> tuple[str, float, float]:
        """What it shares with the other methods' cells."""
        return self.pattern, self.sparsity, self.epochs

    def told(self) -> str:
        """Mean and standard deviation over the seeds."""
        spread = f" ± {statistics.stdev(self.accuracy.values()):.2f}" if len(self.accuracy) > 1 else ""
        return f"{statistics.mean(self.accuracy.values()):.2f}{spread}"


def gathered(file: Path) -> list[Cell]:
    """The rows by cell, in the table's order; cells of refused runs alone are left out."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows(file):
        method, pattern, sparsity, allocation, distil, _, epochs = row["key"]
        groups.setdefault((sparsity, pattern, method, allocation, distil, epochs), []).append(row)
    found = []
    for (sparsity, pattern, method, allocation, distil, epochs), group in sorted(groups.items()):
        seeds = {row["key"][5]: row["accuracy"] for row in group if "accuracy" in row}
        gaps = [row["accuracy"] - row["dense"] for row in group if "accuracy" in row]
        took = [row["overhead"] for row in group if "overhead" in row]
        timed = next((row for row in group if "ms" in row), {})
        if seeds:
            more = statistics.median(took) if took else None
            found.append(Cell(method, pattern, sparsity, allocation, distil, epochs, seeds, gaps, more, timed))
    return found


def table(file: Path) -> None:
    """Mean and spread over the seeds; differences to dense, to plain gradual pruning and to the baseline; and speed.

    The differences to gradual pruning, as its paper has it and at the same allocation, and to random masks are told
    with their 95 % intervals by Student's t, where at least three seeds have both.
    """
    cells = gathered(file)
    base = baseline(cells)
    plain = {
        (one.pattern, one.sparsity, one.epochs, one.allocation): one.accuracy
        for one in cells
        if one.method == "gradual" and not one.distil
    }
    head = ("method", "pattern", "sparsity", "allocation", "epochs", "seeds", "top-1", "to dense")
    last = (
        "to gradual, uniform",
        "to gradual, same allocation",
        "to random",
        "overhead of a step",
        "ms",
        "times dense",
    )
    header(*head, *last)
    for one in cells:
        words = [
            one.name,
            one.pattern,
            f"{one.sparsity:g}",
            one.allocation,
            f"{one.epochs:g}",
            len(one.accuracy),
            one.told(),
        ]
        words.append(f"{statistics.mean(one.gaps):+.2f}")
        for allocation in ("uniform", one.allocation):
            words.append(paired(one.accuracy, plain.get((one.pattern, one.sparsity, one.epochs, allocation), {})))
        words.append("" if one.method == "random" else paired(one.accuracy, base.get(one.place, {})))
        words.append("" if one.overhead is None else f"{one.overhead:.1%}")
        speed = ("{ms:.4f}", "{times:.2f} [{low:.2f}, {high:.2f}]") if one.time else ("", "")
        words += [text.format(**one.time) for text in speed]
        print("| " + " | ".join(map(str, words)) + " |")


def grid(file: Path) -> None:
    """Mean and spread, a table for each sparsity and number of epochs: methods down, patterns across.

    A star is for a mean that is no better than that of random masks (`baseline`)."""
    cells = [one for one in gathered(file) if one.method != "dense"]
    base = baseline(cells)
    for sparsity, epochs in sorted({(one.sparsity, one.epochs) for one in cells}):
        here = [one for one in cells if (one.sparsity, one.epochs) == (sparsity, epochs)]
        patterns = sorted({one.pattern for one in here}, key=lambda name: PATTERNS.get(name, len(PATTERNS)))
        names = sorted({(one.name, one.allocation) for one in here}, key=lambda pair: (pair[0] == "random", pair))
        header(f"{sparsity:.0%}, {epochs:g} epochs", "allocation", *patterns)
        for name, allocation in names:
            words = [name, allocation]
            for pattern in patterns:
                found = [one for one in here if (one.name, one.allocation, one.pattern) == (name, allocation, pattern)]
                words.append(found[0].told() + starred(found[0], base) if found else "")
            print("| " + " | ".join(words) + " |")
        print()


def starred(cell: Cell, base: dict[tuple[str, float, float], dict[int, float]]) -> str:
    """A star if the cell's mean is no better than the baseline's, as shown, over the seeds that both have."""
    theirs = base.get(cell.place, {})
    gaps = [value - theirs[seed] for seed, value in cell.accuracy.items() if seed in theirs]
    return " *" if gaps and cell.method != "random" and round(statistics.mean(gaps), 2) <= 0 else ""


def baseline(cells: list[Cell]) -> dict[tuple[str, float, float], dict[int, float]]:
    """Accuracy by seed of random masks, as ERK allocates them, by pattern, sparsity and epochs."""
    return {one.place: one.accuracy for one in cells if one.method == "random" and not one.distil}


def header(*words: str) -> None:
    """The two first lines of a table."""
    print("| " + " | ".join(words) + " |")
    print("|" + " --- |" * len(words))


def plot(file: Path) -> str:
    """Points lost over the share of the dense network's time, as an SVG picture: the cells that no other one beats."""
    from edgesparse.advice.frontier import plot as drawn

    cells = gathered(file)
    points = [{"cost": 1 / one.time["times"], "drop": -statistics.mean(one.gaps)} for one in cells if one.time]
    best = [one for one in points if not any(o["cost"] < one["cost"] and o["drop"] < one["drop"] for o in points)]
    return drawn({"points": [*best, {"cost": 1.0, "drop": 0.0}], "dense": 1.0, "kind": "latency", "pattern": file.stem})


def paired(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """The mean difference over the seeds that both have, with its 95 % interval."""
    from scipy.stats import t

    gaps = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
    if len(gaps) < 3 or statistics.stdev(gaps) < 1e-6:  # as few pictures as digits has differ by the same count
        return ""
    half = float(t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / len(gaps) ** 0.5
    return f"{statistics.mean(gaps):+.2f} ± {half:.2f}"


if __name__ == "__main__":
    main()
