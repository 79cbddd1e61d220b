"""The ONNX half of the way: from a file to the portable model, simplified and pruned."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgesparse.environment import sha256
from edgesparse.errors import ModelError, Reason, UsageError
from edgesparse.passes import SIMPLIFY, load_model, run_passes, save_model, sparsify_passes
from edgesparse.passes.write import write_atomic
from edgesparse.recipe import Recipe

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Steps:
    """Where to stop, and whose results to write beside `beside`; `more` names the steps that follow the passes."""

    beside: Path | None = None
    stop_after: str | None = None
    dump_after: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    def check(self, passes: Sequence[str]) -> None:
        """Raise UsageError for a name that is no step."""
        known = [*passes, *self.more]
        for name in (*self.dump_after, *([self.stop_after] if self.stop_after else [])):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UsageError(f"unknown step {name!r}", fix=f"{hint}steps are {', '.join(known)}")

    def dump_model(self, name: str, made: ir.Model) -> None:
        """Write the model that a pass made, if it was asked for."""
        if name in self.dump_after and self.beside is not None:
            save_model(made, self.beside.with_name(f"{self.beside.name}.{name}.onnx"))

    def done(self, name: str, describe: Callable[[], Any]) -> bool:
        """Write what a later step made as JSON, if it was asked for; True where the way ends here."""
        if name in self.dump_after and self.beside is not None:
            text = json.dumps(describe(), indent=1) + "\n"
            write_atomic(self.beside.with_name(f"{self.beside.name}.{name}.json"), text.encode())
        return name == self.stop_after


def fingerprint(path: Path, names: Sequence[str]) -> tuple[str, int]:
    """A digest of a model in hexadecimal, and its bytes, with the files `names` beside it that hold its weights.

    Without such files the digest is the SHA-256 of the model's file; else that of a list of names and digests, the
    model's own first, as `sha256sum` prints it. Raises ModelError for a file that cannot be read.
    """
    files = [path, *(path.parent / name for name in names)]
    try:
        digests = [sha256(file) for file in files]
        nbytes = sum(file.stat().st_size for file in files)
    except OSError as error:
        why = error.strerror or str(error)
        raise ModelError(f"cannot read {error.filename}", why=why, fix="keep the weights beside the model") from error
    if not names:
        return digests[0], nbytes
    lines = [f"{digest}  {name}\n" for digest, name in zip(digests, (path.name, *names), strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest(), nbytes


def prepare(
    path: Path | str,
    recipe: Recipe | None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    steps: Steps | None = None,
    reasons: list[Reason] | None = None,
) -> ir.Model:
    """Load, simplify and prune: the portable model.

    Parameters
    ----------
    path, recipe, shapes:
        The ONNX file, what to prune (None: nothing), and shapes of inputs with open dimensions.
    steps:
        Where to stop and what to write on the way.
    reasons:
        Collects why layers were left as they are.

    Raises
    ------
    ModelError, UnsupportedError, UsageError
        As `load_model` and the passes do; UsageError for a step that there is not.
    """
    tick = progress or (lambda share, text: None)
    tick(0.0, "loading")
    model = load_model(path, shapes, notice or (lambda text: None))
    passes = sparsify_passes(recipe) if recipe else SIMPLIFY
    names = [step.name for step in passes]
    steps = steps or Steps()
    steps.check(names)

    result = run_passes(
        model,
        passes,
        on_step=lambda name, _: tick(0.02 + 0.1 * names.index(name) / len(names), name),
        stop_after=steps.stop_after if steps.stop_after in names else None,
        dump=steps.dump_model,
        keep=False,
    )
    if reasons is not None:
        reasons.extend(result.reasons)
    return result.model
