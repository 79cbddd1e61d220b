"""Selectors: how recipes and options name layers. A node name, an operator type, or `re:PATTERN`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgesparse.errors import RecipeError

MAX_SELECTOR = 500
MAX_PATTERN = 200
MAX_REPEATS = 3
"""Repeats in one pattern: a match costs at most len(name) ** 3 / 6 steps, some hundredths of a second."""
MAX_NAME = 300
"""Longer node names are matched by name only, not by pattern: it bounds the time of a pattern."""


@dataclass(frozen=True)
class Candidate:
    """A layer that can be selected. `default` ones are those that an operator type, or no target at all,
    selects.
    """

    name: str
    op_type: str
    default: bool = True
    kind: str = ""


@dataclass(frozen=True)
class Selector:
    """One entry of `targets` or `ignore`."""

    text: str

    @staticmethod
    def problem(text: str) -> str:
        """Why `text` is no selector, or an empty string.

        Python's `re` backtracks without a time limit, and recipes come from strangers. So a pattern may
        neither repeat a group that has a repeat or a choice inside, nor refer back, nor look around, and has
        a few unbounded repeats at most: what is left takes polynomial time on names of bounded length.
        """
        if len(text) > MAX_SELECTOR:
            return f"it is longer than {MAX_SELECTOR} characters"
        if not text.startswith("re:"):
            return ""
        pattern = text[3:]
        if len(pattern) > MAX_PATTERN:
            return f"the pattern is longer than {MAX_PATTERN} characters"
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            return f"the pattern is not a regular expression: {error}"
        return _slow(pattern)

    def match(self, candidates: Sequence[Candidate]) -> set[str]:
        """Names of the candidates that this selects. Raises RecipeError if the text is no selector."""
        if why := self.problem(self.text):
            raise RecipeError(why)
        if not self.text.startswith("re:"):
            types = {c.name for c in candidates if c.default and self.text in (c.op_type, c.kind)}
            return types | {c.name for c in candidates if c.name == self.text}
        pattern = re.compile(self.text[3:])
        by_type = {op for op in {c.op_type for c in candidates} if pattern.fullmatch(op)}
        return {
            c.name
            for c in candidates
            if (c.default and c.op_type in by_type) or (len(c.name) <= MAX_NAME and pattern.fullmatch(c.name))
        }


def _slow(pattern: str) -> str:
    """Why a valid pattern might take too long, or an empty string. Errs on the side of refusing."""
    bare = re.sub(r"\\[^0-9]", "x", pattern)  # an escaped character is one plain character
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", bare)  # and so is a set
    if re.search(r"\\[0-9]|\(\?(?!:)", bare):
        return "the pattern refers back, looks around or sets flags"
    if len(re.findall(r"[*+]|\{[0-9]*,?[0-9]*\}", bare)) > MAX_REPEATS:
        return f"the pattern has more than {MAX_REPEATS} repeats"
    flat = bare.replace("(?:", "(")
    while inner := re.search(r"\(([^()]*)\)([*+{])?", flat):
        if inner[2] and re.search(r"[*+{|?]", inner[1]):
            return "the pattern repeats a group that repeats or chooses inside"
        kept = "x*" if re.search(r"[*+{|?]", inner[1]) else "x"
        flat = flat[: inner.start()] + kept + flat[inner.start() + len(inner[1]) + 2 :]
    return ""
