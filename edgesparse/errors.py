"""The error family. Every failure a user can meet is one of these; each says what, why, and what to do.

The command line prints an `EdgesparseError` as its message and leaves with its `exit_code`; nothing else reaches a
user. `Reason` is the value that explains a decision ("not pruned", "dense kernel kept") without being a failure.
"""

from __future__ import annotations

from dataclasses import dataclass


class EdgesparseError(Exception):
    """A failure told in three parts.

    Parameters
    ----------
    what:
        What went wrong, naming the file, node or argument.
    why:
        The cause, where it is known.
    fix:
        What the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what = what
        self.why = why
        self.fix = fix
        super().__init__(": ".join(part for part in (what, why) if part) + (f" ({fix})" if fix else ""))


class UsageError(EdgesparseError):
    """An argument, option or API call that cannot be meant."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that does not parse or does not fit the model; names the path of the wrong key."""


class PatternError(UsageError):
    """A sparsity pattern that does not parse or is not available."""


class ModelError(EdgesparseError):
    """A model that cannot be read, or is not valid ONNX."""


class UnsupportedError(EdgesparseError):
    """A valid model with something that cannot be lowered; names node, operator and what to do."""

    exit_code = 4


class CompileError(EdgesparseError):
    """TVM or the linker failed inside; names the layer."""


class ArtifactError(EdgesparseError):
    """An artifact that is damaged, of another version, or not one at all."""


class DeviceError(EdgesparseError):
    """A device that cannot be reached or cannot run the artifact."""


class NumbersDifferError(EdgesparseError):
    """The compiled model does not compute what the portable model computes."""

    exit_code = 3


class RegressionError(EdgesparseError):
    """Slower than the baseline that was given."""

    exit_code = 5


@dataclass(frozen=True)
class Reason:
    """Why something was not done: a stable code to test for, a sentence to read, the node it is about."""

    code: str
    message: str
    node: str = ""

    def __str__(self) -> str:
        return f"{self.node}: {self.message} [{self.code}]" if self.node else f"{self.message} [{self.code}]"
