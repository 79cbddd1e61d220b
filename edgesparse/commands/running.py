"""`run` and `verify`: use an artifact, and check it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgesparse.commands import common
from edgesparse.console import Console

if TYPE_CHECKING:
    import numpy as np


@click.command()
@common.artifact_argument
@common.input_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="FILE.npz for the outputs.")
@common.threads_option
@common.force_option
@common.json_option
@common.verbosity_options
@click.pass_obj
def run(
    console: Console,
    artifact: Path,
    inputs: tuple[str, ...],
    output: Path | None,
    threads: int,
    force: bool,
    json_to: str | None,
) -> None:
    """Run ARTIFACT once, and say what came out."""
    from edgesparse.artifacts import samples
    from edgesparse.artifacts.artifact import open_artifact
    from edgesparse.errors import UsageError
    from edgesparse.runtimes.local import LocalRunner

    if output is not None:
        if output.suffix != ".npz":
            raise UsageError(f"--output {output} does not end in .npz", fix="outputs are written as an .npz file")
        if output.exists() and not force:
            raise UsageError(f"{output} is there already", fix="choose another --output, or --force")
    feeds = common.read_inputs(inputs)
    opened = open_artifact(artifact)
    if not feeds:
        feeds = dict(samples.load(opened.file(samples.NAME), opened.manifest)[0].inputs)
        console.notice("no --input: taking the artifact's first sample")
    with LocalRunner(opened, threads=threads) as runner:
        outputs = runner.run(feeds)
    if output is not None:
        _write_npz(output, outputs)
        console.notice(f"wrote {output}")
    rows = [_summary(name, value) for name, value in outputs.items()]
    if json_to:
        console.json({"schema": "edgesparse.run/1", "outputs": rows}, json_to)
        return
    keys = ("name", "dtype", "shape", "min", "max", "mean", "top")
    cells = [tuple(_cell(row[key]) for key in keys) for row in rows]
    console.table(("output", *keys[1:-1], "largest at"), cells, text_columns=("output", "dtype", "shape"))


@click.command()
@common.artifact_argument
@click.option("--run", "run_it", is_flag=True, help="Also run it, and compare with its samples and onnxruntime.")
@click.option("--tolerance", type=click.FloatRange(0), help="Largest relative error allowed.  [default: 1e-5]")
@common.json_option
@common.verbosity_options
@click.pass_obj
def verify(console: Console, artifact: Path, run_it: bool, tolerance: float | None, json_to: str | None) -> None:
    """Check that ARTIFACT is whole, and with --run that its numbers are right (exit code 3 if not)."""
    from edgesparse.artifacts import verify as verification

    allowed = verification.TOLERANCE if tolerance is None else tolerance
    with console.progress("verify") as tick:
        found = verification.verify(artifact, run_it, tolerance=allowed, must_agree=json_to is None, tick=tick)
    worst = found.worst
    if json_to:
        data = {
            "schema": "edgesparse.verify/1",
            "artifact": str(artifact),
            "files": dict(found.files),
            "ran": run_it,
            "same": found.same,
            "tolerance": found.tolerance,
            "errors": [{key: _number(item) for key, item in vars(error).items()} for error in found.errors],
        }
        console.json(data, json_to)
        if not found.same:
            raise click.exceptions.Exit(3)
        return
    console.result(f"{artifact}: {len(found.files)} files, all hashes right")
    if worst is not None:
        samples = 1 + max(error.sample for error in found.errors)
        console.result(
            f"{samples} samples run: largest error {worst.relative:.2g} of the largest value "
            f"(against {worst.reference}; {found.tolerance:.2g} is allowed)"
        )


def _summary(name: str, value: np.ndarray) -> dict[str, Any]:
    """Return what is told of an output; `top` is the flat index of its largest value."""
    told = value.size > 0
    return {
        "name": name,
        "dtype": str(value.dtype),
        "shape": list(value.shape),
        "min": _number(float(value.min())) if told else None,
        "max": _number(float(value.max())) if told else None,
        "mean": _number(float(value.mean())) if told else None,
        "top": int(value.argmax()) if told else None,
    }


def _number(value: Any) -> Any:
    """Return the value as JSON can hold it: NaN and infinities as text."""
    return str(value) if isinstance(value, float) and not abs(value) < float("inf") else value


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays under their names, as a whole or not at all."""
    import os

    import numpy as np

    from edgesparse.errors import EdgesparseError

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(partial, path)
    except OSError as error:
        raise EdgesparseError(f"cannot write {path}", why=error.strerror or str(error)) from error
    finally:
        partial.unlink(missing_ok=True)
